"""Receptive fields path by path: what each way through the branches sees of each input.

Paths that see the same are kept as one route with their number, so that the 2^50 paths of a deep
residual network are a few hundred routes. An axis is followed through transposition, reshaping and
matrix products; where a unit sees all of it, its field is None ("all").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from lamina.compiler.inspect.axes import FIRST, RULES, Axis, Change, changes
from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Scope, Value
from lamina.compiler.ir.types import Dim, TensorType, product
from lamina.compiler.ops.define import GraphMath

MOST = 2000  # routes of one value that are told apart
AXES = {2: ("length",), 3: ("length",), 4: ("height", "width"), 5: ("time", "height", "width")}

Fields = tuple[Axis | None, ...]  # one for each axis of the input; None: all of it


@dataclass(frozen=True, slots=True)
class Place:
    """The field along one axis of the input, and the value's axis along which its units lie.

    `mixed`: that axis runs over more than this one, as after flattening.
    """

    axis: Axis
    at: int
    mixed: bool = False


Seen = tuple[Place | None, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A layer that changed the field, and the fields after it."""

    path: str
    op: str
    line: int
    fields: Fields
    before: Step | None


@dataclass(frozen=True, slots=True)
class Route:
    """`count` paths that see the same; `last` is the end of the way of one of them.

    `merged`: other fields between the smallest and the largest were too many to keep apart.
    """

    seen: Seen
    count: int = 1
    last: Step | None = None
    merged: bool = False

    @property
    def fields(self) -> Fields:
        """The field along each axis."""
        return tuple(None if place is None else place.axis for place in self.seen)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The layers that changed the field, first to last."""
        found = []
        step = self.last
        while step is not None:
            found.append(step)
            step = step.before
        return tuple(reversed(found))


Routes = Mapping[Value, tuple[Route, ...]]


@dataclass(frozen=True, slots=True)
class Misaligned:
    """Branches that meet at a layer without a grid in common.

    Their units lie `strides` positions apart, and where strides agree, first units' centres
    `offset` positions.
    """

    path: str
    op: str
    axis: str
    file: str
    line: int
    strides: tuple[float, ...]
    offset: float


def axes_of(type: TensorType) -> tuple[int, ...]:
    """The axes of an input along which fields may be measured: all but batch and channels.

    Channels may be second or third in a line [B, C, L] or [B, S, D] and in a film
    [B, C, T, H, W] or [B, T, C, H, W]: `_measured` tells.
    """
    first = 2 if type.rank == 4 else 1
    return tuple(range(first, type.rank)) if type.rank in AXES else ()


def trace(graph: Graph, source: Value) -> Routes:
    """The routes from an input to every value that depends on it, smallest field first."""
    axes = axes_of(graph.type(source))
    routes = _traced(graph, source, axes)
    ends = [routes[scope.result][0].seen for scope in graph.scopes if scope.result in routes]
    measured = [axes[index] for index in _measured(graph.type(source), ends)]
    return routes if measured == list(axes) else _traced(graph, source, measured)


def _measured(type: TensorType, ends: Sequence[Seen]) -> list[int]:
    """Which of an input's `axes_of` are no channels: of the first two, what layers mix less."""
    places = list(range(len(axes_of(type))))
    if type.rank not in (3, 5):
        return places
    local = [sum(end[place] is not None for end in ends) for place in (0, 1)]
    return [0 if local[0] > local[1] else 1, *places[2:]]


def _traced(graph: Graph, source: Value, axes: Iterable[int]) -> Routes:
    start = Route(tuple(Place(FIRST, axis) for axis in axes))
    return _follow(graph, {source: (start,)})


def _follow(graph: Graph, start: Routes) -> Routes:
    routes = dict(start)
    layers = _layer_paths(graph)
    for node in graph.nodes:
        if any(value in routes for value in node.inputs):
            routes |= dict.fromkeys(_results(node), _arriving(graph, node, routes, layers))
    return routes


def _results(node: Node) -> list[Value]:
    return [Value(node.id, port) for port in range(len(node.outs))]


def joined_places(graph: Graph, source: Value) -> dict[Value, Seen]:
    """What every value that depends on an input sees of it, over all paths at once.

    Branches are joined where they meet, which takes a walk over the graph, however many paths.
    """
    axes = axes_of(graph.type(source))
    found: dict[Value, Seen] = {source: tuple(Place(FIRST, axis) for axis in axes)}
    for node in graph.nodes:
        met = [value for value in dict.fromkeys(node.inputs) if value in found]
        if len(met) == 1 and _keeps_all(graph, node, met[0]):
            found[Value(node.id)] = found[met[0]]
        elif met:
            passage = _passage(graph, node)
            passed = [seen for index, value in enumerate(node.inputs) if value in found
                      for seen in passage(index, found[value])]
            joined = tuple(_join_places(places) for places in zip(*passed, strict=True))
            found |= dict.fromkeys(_results(node), joined)
    ends = [found[scope.result] for scope in graph.scopes if scope.result in found]
    measured = _measured(graph.type(source), ends)
    return {value: tuple(seen[place] for place in measured) for value, seen in found.items()}


def _join_places(places: Sequence[Place | None]) -> Place | None:
    known = [place for place in places if place is not None]
    if len(known) < len(places) or len({place.at for place in known}) > 1:
        return None
    axis = _join_all([place.axis for place in known])
    mixed = any(place.mixed for place in known)
    return None if axis is None else Place(axis, known[0].at, mixed)


def _layer_paths(graph: Graph) -> dict[int, str]:
    """The path of the layer that a node is the result of."""
    return {scope.result.node: scope.path for scope in reversed(graph.scopes) if scope.leaf}


def _arriving(graph: Graph, node: Node, routes: Routes, layers: Mapping[int, str]
              ) -> tuple[Route, ...]:
    """The routes to a node's result, those that see the same as one."""
    met = [value for value in dict.fromkeys(node.inputs) if value in routes]
    if len(met) == 1 and _keeps_all(graph, node, met[0]):
        return routes[met[0]]
    passage, path = _passage(graph, node), layers.get(node.id, node.path)
    found: dict[Seen, Route] = {}
    for value in met:
        indices = [i for i, operand in enumerate(node.inputs) if operand == value]
        for route in routes[value]:
            passed = {seen for index in indices for seen in passage(index, route.seen)}
            for seen in passed:
                found[seen] = _added(found.get(seen), node, path, route, seen)
    return _limited(sorted(found.values(), key=lambda route: extent(route.fields)))


def _keeps_all(graph: Graph, node: Node, value: Value) -> bool:
    return node.op.kind == "elementwise" and node.op.body is None \
        and graph.type(value).rank == node.type.rank


def _added(known: Route | None, node: Node, path: str, route: Route, seen: Seen) -> Route:
    if known is not None:
        return Route(seen, known.count + route.count, known.last, known.merged or route.merged)
    fields = tuple(None if place is None else place.axis for place in seen)
    last = route.last
    if fields != route.fields:
        line = node.span.line if node.span else 0
        last = Step(path, node.op.name, line, fields, route.last)
    return Route(seen, route.count, last, route.merged)


def _limited(routes: list[Route]) -> tuple[Route, ...]:
    if len(routes) <= MOST:
        return tuple(routes)
    low, high = routes[:MOST // 2], routes[-(MOST // 2):]
    dropped = sum(route.count for route in routes[MOST // 2:-(MOST // 2)])
    near = high[0]
    return (*low, Route(near.seen, near.count + dropped, near.last, True), *high[1:])


def extent(fields: Fields) -> tuple[float, ...]:
    """For ordering: the number of input positions, then starts and strides."""
    area = 1.0
    for axis in fields:
        area *= inf if axis is None else axis.size
    known = [axis for axis in fields if axis is not None]
    return (area, *(axis.start for axis in known), *(float(axis.stride) for axis in known))


def joined(routes: Sequence[Route]) -> Fields:
    """The field over all paths: from the first position that any sees to the last."""
    return tuple(_join_all(axes) for axes in zip(*(route.fields for route in routes),
                                                 strict=True))


def _join_all(axes: Sequence[Axis | None]) -> Axis | None:
    whole: Axis | None = axes[0]
    for axis in axes[1:]:
        whole = None if whole is None or axis is None else whole.joined(axis)
    return whole


# --- one operator -------------------------------------------------------------------------------


Passage = Callable[[int, Seen], Iterable[Seen]]


def _passage(graph: Graph, node: Node) -> Passage:
    """What the result of a node sees through an operand, given what the operand sees."""
    if node.op.name in RULES:
        change = changes(graph, node)
        return lambda index, seen: (_windowed(change, index, seen),)
    if node.op.body is not None:
        inner = _opened(graph, node)
        return lambda index, seen: _through(inner, index, seen)
    move = _MOVES.get(node.op.name) or _KINDS.get(node.op.kind)
    if move is None:
        return lambda index, seen: ((None,) * len(seen),)
    types = [graph.type(value) for value in node.inputs]
    return lambda index, seen: (tuple(
        None if place is None else move(place, types[index], node, index) for place in seen),)


def _opened(graph: Graph, node: Node) -> Graph:
    """The body of a composite as a graph of its own."""
    assert node.op.body is not None
    builder = Builder(node.op.name)
    m = GraphMath(builder)
    types = [graph.type(value) for value in node.inputs]
    operands = [m.input(name=str(i), shape=type.shape, dtype=type.dtype)
                for i, type in enumerate(types)]
    result = m.lift(node.op.body(m, *operands, **node.attributes))
    return builder.finish([("result", result.value)])


def _through(inner: Graph, index: int, seen: Seen) -> list[Seen]:
    routes = _follow(inner, {inner.inputs[str(index)]: (Route(seen),)})
    return [route.seen for route in routes.get(inner.output("result"), ())]


def _windowed(change: Mapping[int, Change], index: int, seen: Seen) -> Seen:
    if index > 0:  # weights made from the input
        return (None,) * len(seen)
    found = []
    for place in seen:
        if place is None or place.at not in change:
            found.append(place)
            continue
        axis = None if place.mixed else change[place.at](place.axis)
        found.append(None if axis is None else Place(axis, place.at))
    return tuple(found)


def _aligned(place: Place, type: TensorType, node: Node, index: int) -> Place | None:
    return _moved(place, place.at + node.type.rank - type.rank)


def _moved(place: Place, at: int, mixed: bool = False) -> Place:
    if at == place.at and mixed <= place.mixed:
        return place
    return Place(place.axis, at, place.mixed or mixed)


def _reduced(place: Place, type: TensorType, node: Node, index: int) -> Place | None:
    return None if place.at in node.attributes["axes"] else place


def _transposed(place: Place, type: TensorType, node: Node, index: int) -> Place | None:
    return _moved(place, node.attributes["perm"].index(place.at))


def _reversed(place: Place, type: TensorType, node: Node, index: int) -> Place | None:
    return None if place.at in {axis % type.rank for axis in node.attributes["axes"]} else place


def _concatenated(place: Place, type: TensorType, node: Node, index: int) -> Place | None:
    return None if place.at == node.attributes["axis"] % type.rank else place


def _multiplied(place: Place, type: TensorType, node: Node, index: int) -> Place | None:
    summed = type.rank - (1 if index == 0 else 2)
    return None if place.at == summed else _aligned(place, type, node, index)


def _taken(place: Place, type: TensorType, node: Node, index: int) -> Place | None:
    return place if index == 1 else None


def _reshaped(place: Place, type: TensorType, node: Node, index: int) -> Place | None:
    for old, new in _groups(type.shape, node.type.shape):
        if place.at in old:
            real = [axis for axis in new if node.type.shape[axis] != 1] or new[:1]
            if len(real) != 1:
                return None  # one axis becomes several
            others = [axis for axis in old if axis != place.at and type.shape[axis] != 1]
            return _moved(place, real[0], bool(others))
    return None


def _groups(old: Sequence[Dim], new: Sequence[Dim]) -> list[tuple[list[int], list[int]]]:
    """Axes of a reshape that belong together: the fewest on both sides of equal product."""
    groups = []
    i = j = 0
    while i < len(old) and j < len(new):
        first, second = i, j
        found = next(((a, b) for a in range(first + 1, len(old) + 1)
                      for b in range(second + 1, len(new) + 1)
                      if product(old[first:a]) == product(new[second:b])), None)
        if found is None:
            break
        i, j = found
        groups.append((list(range(first, i)), list(range(second, j))))
    return groups


_MOVES = {"transpose": _transposed, "reverse": _reversed, "concat": _concatenated,
          "reshape": _reshaped, "broadcast_to": _aligned, "matmul": _multiplied, "take": _taken}
_KINDS = {"elementwise": _aligned, "random": _aligned, "reduce": _reduced}


# --- branches that do not fit -------------------------------------------------------------------


def misaligned(graph: Graph, routes: Routes, names: Sequence[str]) -> list[Misaligned]:
    """Where branches meet whose units lie at different places of the input."""
    found = []
    layers = _layer_paths(graph)
    for node in graph.nodes:
        met = [routes[value] for value in dict.fromkeys(node.inputs) if value in routes]
        if len(met) < 2 or node.op.name not in _MOVES and node.op.kind != "elementwise":
            continue
        for index, name in enumerate(names):
            wrong = _apart([_grids(branch, index) for branch in met])
            if wrong is not None:
                place = (node.span.source.name, node.span.line) if node.span else ("", 0)
                path = layers.get(node.id, node.path)
                found.append(Misaligned(path, node.op.name, name, *place, *wrong))
    return found


def _grids(routes: Iterable[Route], index: int) -> dict[tuple[float, float], None]:
    places = (route.seen[index] for route in routes)
    return dict.fromkeys((float(p.axis.stride), p.axis.start) for p in places if p is not None)


def _apart(branches: list[dict[tuple[float, float], None]]) -> tuple | None:
    """(strides, offset) of the first two branches without a grid in common."""
    known = [grids for grids in branches if grids]
    for i, first in enumerate(known):
        for second in known[i + 1:]:
            if set(first) & set(second):
                continue
            strides = tuple(sorted({stride for stride, _ in (*first, *second)}))
            (_, a), (_, b) = next(reversed(first)), next(reversed(second))
            return strides, abs(a - b) if len(strides) == 1 else 0.0
    return None


# --- the whole model ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LayerField:
    """One layer: its field over all paths, and how many paths lead to it."""

    path: str
    op: str
    line: int
    out: TensorType
    fields: Fields
    paths: int


@dataclass(frozen=True, slots=True)
class Ending:
    """What an output, or the layer `name`, sees: over all paths, and on the smallest and largest.

    `distinct` is how many different fields the paths have.
    """

    name: str
    fields: Fields
    smallest: Fields
    largest: Fields
    paths: int
    distinct: int


@dataclass(frozen=True, slots=True)
class InputReport:
    """Everything about the fields over one input; `axes` are their names.

    `local` is the last layer that does not see everything, where some output does.
    """

    input: str
    axes: tuple[str, ...]
    layers: tuple[LayerField, ...]
    outputs: tuple[Ending, ...]
    local: Ending | None
    misaligned: tuple[Misaligned, ...]


def report(graph: Graph, name: str) -> InputReport:
    """The fields of all layers and outputs over the input `name`, which has axes to measure."""
    source = graph.inputs[name]
    names = AXES[graph.type(source).rank]
    routes = trace(graph, source)
    layers = {scope.path: _layer(graph, scope, routes[scope.result])
              for scope in graph.scopes if scope.leaf and scope.result in routes}
    outputs = tuple(_ending(output, routes[value]) for output, value in graph.outputs
                    if value in routes)
    local = None
    if any(None in output.fields for output in outputs):
        local = _last_local(graph, routes)
    return InputReport(name, names, tuple(layers.values()), outputs, local,
                       tuple(misaligned(graph, routes, names)))


def _last_local(graph: Graph, routes: Routes) -> Ending | None:
    """The last layer or block, the outermost of several, that does not see everything."""
    ends = [scope for scope in graph.scopes if scope.result in routes
            and all(None not in route.seen for route in routes[scope.result])]
    if not ends:
        return None
    last = max(ends, key=lambda scope: (scope.result.node, -len(scope.path)))
    return _ending(last.path, routes[last.result])


def _layer(graph: Graph, scope: Scope, routes: tuple[Route, ...]) -> LayerField:
    line = scope.span.line if scope.span else 0
    return LayerField(scope.path, scope.callee, line, graph.type(scope.result), joined(routes),
                      sum(route.count for route in routes))


def _ending(name: str, routes: tuple[Route, ...]) -> Ending:
    return Ending(name, joined(routes), routes[0].fields, routes[-1].fields,
                  sum(route.count for route in routes), len(routes))


def measurable(graph: Graph) -> list[str]:
    """The inputs that have axes to measure fields along."""
    return [name for name, value in graph.inputs.items()
            if name != "rng" and axes_of(graph.type(value))]
