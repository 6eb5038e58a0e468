"""A model as boxes within boxes with edges between them: what a report shows and a picture draws.

A box is a layer, an operator that a block applies itself, an input, an output, or a block that
holds other boxes. Every block is drawn by itself: its edges run between its own boxes, and from
or to its border (`BORDER`) where values come in and go out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lamina.compiler.errors import Span
from lamina.compiler.inspect.cost import (
    Product,
    batch_size,
    expanded,
    per_example,
    products,
    result_bytes,
    summarize,
)
from lamina.compiler.inspect.owners import owners as owners_of
from lamina.compiler.inspect.owners import prefixes
from lamina.compiler.ir.graph import Graph, Node, Scope, Value
from lamina.compiler.ir.types import Dim, product, substitute

BORDER = -1  # the end of an edge that runs to the border of its block
ROOT = 0  # the box of the whole model

# A layer is what its operators are: the first kind here that one of them has.
_KINDS = (("control", "recurrent"), ("contract", "linear"), ("window", "pooling"),
          ("gather", "embedding"), ("random", "random"))
_SPECIAL = {"non_max_suppression": "selection", "upsample2d": "resampling", "dropout": "random",
            "channel_dropout": "random"}  # operators that say by themselves what a layer is
_ACTIVATIONS = {"relu", "sigmoid", "tanh", "erf", "gelu", "silu", "softplus", "leaky_relu", "elu",
                "clip", "softmax", "log_softmax"}
_REDUCTIONS = {"argmax", "sum", "max", "min", "mean", "variance", "reduce_sum", "reduce_max",
               "reduce_min"}
_SHAPES = {"flatten", "squeeze", "expand_dims", "part"}


@dataclass(frozen=True, slots=True)
class Box:
    """One box. Counts and bytes are of one example, over everything inside a block.

    `kind` is convolution, linear, normalisation, activation, arithmetic, pooling, reduction,
    resampling, embedding, selection, recurrent, random, shape, input, output or block.
    `backward` are the multiply-accumulates of the gradients. `parent` is the index of the block
    that holds it (the model's own: -1). `times` is how often it runs with the same weights.
    """

    path: str
    name: str
    op: str
    kind: str
    parent: int
    shape: tuple[int | str, ...] = ()
    parameters: int = 0
    macs: int = 0
    backward: int = 0
    bytes: int = 0
    line: int = 0
    source: str = ""
    times: int = 1


@dataclass(frozen=True, slots=True)
class Edge:
    """Values that flow within `block` from one of its boxes to another, or from or to BORDER."""

    block: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Structure:
    """All boxes, the model's own first and a block always before what it holds; and all edges."""

    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]

    def inside(self, block: int) -> list[int]:
        """The boxes that a block holds directly, in order of computation."""
        return [index for index, box in enumerate(self.boxes) if box.parent == block]


def structure(graph: Graph, sizes: Mapping[str, int]) -> Structure:
    """The boxes and edges of a built model. `sizes` gives a number for every open size."""
    owners = owners_of(graph)
    members: dict[str, list[Node]] = {}
    for key, path in owners.items():
        members.setdefault(path, []).append(graph.node(key))
    boxes = [Box("", graph.name, graph.name, "block", -1)]
    numbers = {"": ROOT}
    scopes = {scope.path: scope for scope in reversed(graph.scopes)}
    for path, nodes in members.items():
        _add_blocks(path, boxes, numbers, scopes)
        numbers[path] = len(boxes)
        boxes.append(_box(graph, path, nodes, numbers, scopes, sizes))
    for name, value in graph.outputs:
        shape = _shape(graph.type(value).shape, sizes)
        numbers[f"output {name}"] = len(boxes)
        boxes.append(Box(name, name, "output", "output", ROOT, shape))
    counted = _with_times(graph, _counted(graph, boxes, owners, sizes))
    return Structure(tuple(counted), tuple(_edges(graph, counted, owners, numbers)))


# --- boxes --------------------------------------------------------------------------------------


def _add_blocks(path: str, boxes: list[Box], numbers: dict[str, int],
                scopes: Mapping[str, Scope]) -> None:
    for block in reversed(list(prefixes(path.rpartition(".")[0]))):
        if block in numbers:
            continue
        numbers[block] = len(boxes)
        above, _, name = block.rpartition(".")
        scope = scopes.get(block)
        line, source = _origin(scope.span if scope else None)
        boxes.append(Box(block, name, scope.callee if scope else "", "block", numbers[above],
                         line=line, source=source))


def _box(graph: Graph, path: str, nodes: list[Node], numbers: Mapping[str, int],
         scopes: Mapping[str, Scope], sizes: Mapping[str, int]) -> Box:
    scope = scopes.get(path)
    result = graph.node(scope.result) if scope else nodes[-1]
    if result.op.name == "input":
        name = result.attributes["name"]
        box = Box(name, name, "input", "input", ROOT)
    else:
        above, _, name = path.rpartition(".")
        box = Box(path, name, scope.callee if scope else result.op.name,
                  _kind(graph, path, nodes), numbers[above])
    line, source = _origin((scope.span if scope else None) or result.span)
    return replace(box, shape=_shape(result.type.shape, sizes), line=line, source=source)


def _with_times(graph: Graph, boxes: list[Box]) -> list[Box]:
    """The boxes with how often each runs: a shared layer has one box for all of its results."""
    results: dict[str, set[Value]] = {}
    for scope in graph.scopes:
        results.setdefault(scope.path, set()).add(scope.result)
    return [replace(box, times=len(results[box.path])) if box.path in results else box
            for box in boxes]


def _origin(span: Span | None) -> tuple[int, str]:
    """The line and the file's name without its folder: a page may be shown to anyone."""
    return (span.line, Path(span.source.name).name) if span else (0, "")


def _kind(graph: Graph, path: str, nodes: list[Node]) -> str:
    names = {node.op.name for node in nodes}
    if any(name.startswith("conv") for name in names):
        return "convolution"
    special = sorted(_SPECIAL[name] for name in names & _SPECIAL.keys())
    if special:
        return special[0]
    kinds = {node.op.kind for node in nodes if node.op.name != "iota"}
    for op_kind, kind in _KINDS:
        if op_kind in kinds:
            return kind
    if any("norm" in name for name in names) or any(
            graph.node(value).op.name == "param" for node in nodes for value in node.inputs):
        return "normalisation"
    if "pool" in path or any("pool" in name for name in names):
        return "pooling"
    return _plain_kind(names, kinds)


def _plain_kind(names: set[str], kinds: set[str]) -> str:
    """The kind of a layer without weights, by the operators that it applies."""
    if kinds <= {"view"} or names <= _SHAPES:
        return "shape"
    if names & _ACTIVATIONS:
        return "activation"
    return "reduction" if names & _REDUCTIONS else "arithmetic"


def _shape(shape: tuple[Dim, ...], sizes: Mapping[str, int]) -> tuple[int | str, ...]:
    """A shape with its numbers; the batch, which may be any, keeps its name."""
    first = [str(size) for size in shape[:1] if not isinstance(size, int)]
    numbers = [substitute(size, sizes) for size in shape[len(first):]]
    return (*first, *(size if isinstance(size, int) else str(size) for size in numbers))


def _number(value: Dim, sizes: Mapping[str, int]) -> int:
    number = substitute(value, sizes)
    return number if isinstance(number, int) else 0


# --- counts -------------------------------------------------------------------------------------


def _counted(graph: Graph, boxes: list[Box], owners: Mapping[int, str],
             sizes: Mapping[str, int]) -> list[Box]:
    """The boxes with parameters and multiply-accumulates; blocks with their sums."""
    whole = expanded(graph)
    work = _sums(_work(whole, sizes))
    direct = _direct(graph, owners, sizes)
    held_bytes = result_bytes(graph, owners)
    rows = {row.path: row for row in summarize(graph, whole).layers}
    stored = _sums({key: (_number(product(graph.type(value).shape), sizes), 0)
                    for key, value in graph.params.items()
                    if graph.node(value).attributes["trainable"]})
    found = []
    for box in boxes:
        if box.kind in ("input", "output"):
            found.append(box)
            continue
        held = stored.get(box.path, (0, 0))[0]
        forward, backward = work.get(box.path, (0, 0))
        if box.kind != "block" and box.path in rows:  # shared parts count at the first layer
            held, forward = rows[box.path].parameters, _number(rows[box.path].macs, sizes)
            backward = backward if forward else 0
        elif box.kind != "block":
            held, (forward, backward) = 0, direct.get(box.path, (0, 0))
        found.append(replace(box, parameters=held, macs=forward, backward=backward,
                             bytes=_number(held_bytes.get(box.path, 0), sizes)))
    return _with_bytes(found)


def _sums(pairs: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The sums over everything inside a path, for every path and for the whole model ("")."""
    found: dict[str, tuple[int, int]] = {}
    for path, (first, second) in pairs.items():
        for block in (*prefixes(path), ""):
            before = found.get(block, (0, 0))
            found[block] = (before[0] + first, before[1] + second)
    return found


def _with_bytes(boxes: list[Box]) -> list[Box]:
    """Blocks with the bytes of everything inside, and the shape of what they compute last."""
    totals = [0 if box.kind == "block" else box.bytes for box in boxes]
    shapes = [box.shape for box in boxes]
    for index in range(len(boxes) - 1, 0, -1):
        box = boxes[index]
        if box.kind not in ("input", "output"):
            totals[box.parent] += totals[index]
            shapes[box.parent] = shapes[box.parent] or shapes[index]
    return [replace(box, bytes=total, shape=shape)
            for box, total, shape in zip(boxes, totals, shapes, strict=True)]


def _work(graph: Graph, sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Multiply-accumulates per example, forward and backward, by instance path."""
    found: dict[str, tuple[int, int]] = {}
    for one in products(graph):
        forward = _each(graph, one, sizes)
        before = found.get(one.node.path, (0, 0))
        found[one.node.path] = (before[0] + forward, before[1] + forward * one.wanted)
    return found


def _direct(graph: Graph, owners: Mapping[int, str], sizes: Mapping[str, int]
            ) -> dict[str, tuple[int, int]]:
    """The same of operators that blocks apply themselves, by the path of their box."""
    found: dict[str, tuple[int, int]] = {}
    own = {id(node) for node in graph.nodes}
    for one in products(graph):
        if id(one.node) in own and one.node.id in owners:
            forward = _each(graph, one, sizes)
            found[owners[one.node.id]] = (forward, forward * one.wanted)
    return found


def _each(graph: Graph, one: Product, sizes: Mapping[str, int]) -> int:
    return _number(per_example(one.macs, batch_size(graph)), sizes)


# --- edges --------------------------------------------------------------------------------------


def _edges(graph: Graph, boxes: list[Box], owners: Mapping[int, str],
           numbers: Mapping[str, int]) -> list[Edge]:
    found: dict[Edge, None] = {}
    for node in graph.nodes:
        if node.id not in owners:
            continue
        end = numbers[owners[node.id]]
        for value in node.inputs:
            if value.node in owners:
                found |= dict.fromkeys(_path_between(boxes, numbers[owners[value.node]], end))
    for name, value in graph.outputs:
        if value.node in owners:
            start = numbers[owners[value.node]]
            found |= dict.fromkeys(_path_between(boxes, start, numbers[f"output {name}"]))
    return list(found)


def _path_between(boxes: list[Box], start: int, end: int) -> Iterator[Edge]:
    """From a box out of the blocks around it, over to the other's, and in to it."""
    if start == end:
        return
    out, into = _chain(boxes, start), _chain(boxes, end)
    while out[-2:-1] == into[-2:-1] and len(out) > 1 and len(into) > 1:
        out.pop()
        into.pop()
    # A block that works itself, as a scan does, may be an end: then there is nothing to go over.
    across = len(out) > 1 and len(into) > 1
    for box, block in zip(out[:-1 - across], out[1:len(out) - across], strict=True):
        yield Edge(block, box, BORDER)
    if across:
        yield Edge(out[-1], out[-2], into[-2])
    for box, block in zip(into[:-1 - across], into[1:len(into) - across], strict=True):
        yield Edge(block, BORDER, box)


def _chain(boxes: list[Box], index: int) -> list[int]:
    """A box and the blocks around it, innermost first; ends with the model."""
    chain = [index]
    while chain[-1] != ROOT:
        chain.append(boxes[chain[-1]].parent)
    return chain
