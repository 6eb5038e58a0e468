"""Parameters and multiply-accumulates, per layer and in total."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from lamina.compiler.errors import Span
from lamina.compiler.inspect.owners import layers_of, storage
from lamina.compiler.inspect.receptive_field import KNOWN, Field, receptive_fields
from lamina.compiler.ir.graph import Graph, Node, Scope, Value
from lamina.compiler.ir.rewrite import rewrite
from lamina.compiler.ir.types import (
    FLOATS,
    NUMPY_TYPES,
    Dim,
    TensorType,
    divide_exactly,
    product,
)
from lamina.compiler.ops.control import SCAN
from lamina.compiler.transform.expand import expand


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of the layer table, or a block with what it computes besides its layers.

    The model's own row has an empty path. `macs` are per example; 1 MAC is 2 FLOPs. A parameter
    that several layers share counts at the first of them. `backward` are the multiply-accumulates
    of the gradients, `bytes` what the results occupy for the whole batch: nothing where one is
    the memory of an earlier result. `fields` are those over every input that it depends on.
    """

    path: str
    op: str
    inputs: tuple[TensorType, ...]
    out: TensorType
    parameters: int
    macs: Dim
    backward: Dim
    bytes: Dim
    fields: tuple[Field, ...]
    line: int
    span: Span | None
    leaf: bool = True

    @property
    def name(self) -> str:
        """The path; of the model's own row the model's name."""
        return self.path or self.op

    @property
    def only_bytes(self) -> bool:
        """Whether it is a block that only joins what its layers give."""
        return not self.leaf and not self.parameters and self.macs == 0


@dataclass(frozen=True, slots=True)
class Summary:
    """The layer table with its totals; `unused` are parameters that no output needs."""

    model: str
    layers: tuple[LayerRow, ...]
    parameters: int
    buffers: int
    macs: Dim
    backward: Dim
    bytes: Dim
    batch: Dim
    unused: tuple[str, ...] = ()


def summarize(graph: Graph, whole: Graph | None = None) -> Summary:
    """The layer table of a built model, and exact totals. `whole`: the graph `expanded`, if known.

    Listed are the leaf layers, and the blocks with parameters, products or results of their own.
    """
    whole = whole or expanded(graph)
    batch = batch_size(graph)
    forward, backward = macs_by_path(whole), backward_macs(whole)
    keys = {key: graph.node(value) for key, value in graph.params.items()}
    rows = _rows(graph, whole, PerLayer(forward, batch), PerLayer(backward, batch))
    trained = [node for node in keys.values() if _trains(node)]
    unused = tuple(key for key, node in keys.items() if _trains(node) and not graph.users(node))
    return Summary(graph.name, tuple(rows), sum(map(_size, trained)),
                   sum(_size(node) for node in keys.values() if not _trains(node)),
                   per_example(_total(forward.values()), batch),
                   per_example(_total(backward.values()), batch),
                   _total(row.bytes for row in rows), batch, unused)


def _rows(graph: Graph, whole: Graph, macs: PerLayer, back: PerLayer) -> list[LayerRow]:
    fields = receptive_fields(whole)
    results = {scope.path: scope.result for scope in whole.scopes}
    held = result_bytes(graph)
    keys = {key: graph.node(value) for key, value in graph.params.items()}
    taken: set[str] = set()
    before: set[Value] = set()
    rows: dict[str, LayerRow] = {}
    for scope in graph.scopes:
        if scope.path in rows:
            continue
        own = [key for key in keys if _inside(key, scope.path) and key not in taken]
        if not (scope.leaf or own or macs.holds(scope.path) or held.get(scope.path, 0) != 0):
            continue
        taken.update(own)
        rows[scope.path] = LayerRow(
            scope.path, scope.callee, _inputs(graph, scope, before), graph.type(scope.result),
            sum(_size(keys[key]) for key in own if _trains(keys[key])), macs.take(scope.path),
            back.take(scope.path), held.get(scope.path, 0), fields.get(results[scope.path], ()),
            scope.span.line if scope.span else 0, scope.span, scope.leaf)
        before.add(scope.result)
    own = [key for key in keys if key not in taken]
    if macs.holds("") or held.get("", 0) != 0 or own:
        _, result = graph.outputs[0]
        inputs = tuple(graph.type(value) for value in graph.inputs.values())
        rows[""] = LayerRow("", graph.name, inputs, graph.type(result),
                            sum(_size(keys[key]) for key in own if _trains(keys[key])),
                            macs.take(""), back.take(""), held.get("", 0), (), 0, None, False)
    return list(rows.values())


def result_bytes(graph: Graph, own: Mapping[int, str] | None = None) -> dict[str, Dim]:
    """What results occupy for the whole batch, by layer, or by block for what it applies itself.

    Each result counts once, at what computes it first; inside a layer only its own counts.
    `own` gives nodes that a block applies itself other paths.
    """
    taken = {*graph.inputs.values(), *graph.params.values()}
    found: dict[str, Dim] = {}

    def count(path: str, value: Value) -> None:
        place = storage(graph, value)
        if place not in taken:
            taken.add(place)
            found[path] = found.get(path, 0) + type_bytes(graph.type(place))

    for scope in graph.scopes:
        if scope.leaf:
            count(scope.path, scope.result)
    for key, layer in layers_of(graph).items():
        node = graph.node(key)
        if not layer:
            for port in range(len(node.outs)):
                count(own[key] if own else node.path, Value(key, port))
    return found


class PerLayer:
    """Counts by path, each taken by the first layer that it lies in."""

    def __init__(self, counts: dict[str, Dim], batch: Dim):
        self.left, self.batch = dict(counts), batch

    def holds(self, layer: str) -> bool:
        """Whether anything inside `layer` is not taken yet."""
        return any(_inside(path, layer) for path in self.left)

    def take(self, layer: str) -> Dim:
        """What is inside `layer` and not taken before, per example."""
        inside = [path for path in self.left if _inside(path, layer)]
        return per_example(_total(self.left.pop(path) for path in inside), self.batch)


def per_example(total: Dim, batch: Dim) -> Dim:
    """A count divided by the batch, where it is a multiple of it."""
    each = divide_exactly(total, batch)
    return total if each is None else each


def _total(counts: Iterable[Dim]) -> Dim:
    return sum(counts, start=0)


def type_bytes(type: TensorType) -> Dim:
    """How many bytes a tensor occupies."""
    return product(type.shape) * NUMPY_TYPES[type.dtype]().itemsize


def _inputs(graph: Graph, scope: Scope, before: Collection[Value]) -> tuple[TensorType, ...]:
    """What a layer reads from outside: neither its parameters nor constants.

    `before` are the results of the layers before it: one of them is a layer that does nothing.
    """
    if scope.result in before or not graph.node(scope.result).inputs:
        return (graph.type(scope.result),)
    outside: dict[Value, None] = {}
    todo, seen = [scope.result], set()
    while todo:
        value = todo.pop()
        if value in seen:
            continue
        seen.add(value)
        node = graph.node(value)
        if value == scope.result or node.inputs and _inside(node.path, scope.path):
            todo += reversed(node.inputs)
        elif node.op.name not in ("param", "const"):
            outside[value] = None
    return tuple(graph.type(value) for value in outside)


def expanded(graph: Graph) -> Graph:
    """The graph with composites replaced, save those whose products or fields have a rule."""
    def rule(builder, node, inputs):
        whole = node.op.body is None or node.op.macs is not None or node.op.name in KNOWN
        return None if whole else expand(builder, node, inputs)

    while (next_graph := rewrite(graph, rule)) is not graph:
        graph = next_graph
    return graph


def _inside(path: str, layer: str) -> bool:
    return not layer or path == layer or path.startswith(layer + ".")


def _trains(node: Node) -> bool:
    return node.attributes["trainable"]


def _size(node: Node) -> int:
    count = product(node.type.shape)
    assert isinstance(count, int)
    return count


@dataclass(frozen=True, slots=True)
class Product:
    """A node that multiplies: its multiply-accumulates in all, and how many operands it has that
    need a gradient."""

    node: Node
    macs: Dim
    wanted: int


def products(graph: Graph, wanted: Collection[int] = (), times: Dim = 1) -> Iterator[Product]:
    """Every product of an expanded graph, those of scans with all their steps.

    `wanted` are nodes whose gradient is needed besides those that depend on trained parameters.
    """
    needed = set(wanted)
    for node in graph.nodes:
        if node.op.name == "param" and _trains(node):
            needed.add(node.id)
        operands = [value.node in needed for value in node.inputs]
        if node.op is SCAN:
            body, inner = _step_of(node, operands)
            yield from products(body, inner, times * node.attributes["length"])
            if inner:
                needed.add(node.id)
            continue
        derived = any(operands) and node.type.dtype in FLOATS
        if derived:
            needed.add(node.id)
        if node.op.macs is not None:
            types = [graph.type(value) for value in node.inputs]
            count = node.op.macs(node.type, *types, **node.attributes)
            yield Product(node, count * times, sum(operands) if derived else 0)


def _step_of(node: Node, operands: list[bool]) -> tuple[Graph, set[int]]:
    """A scan's expanded body, and those of its inputs that need a gradient, states after all."""
    assert node.body is not None
    body, states = expanded(node.body), node.attributes["states"]
    inputs = [body.inputs[f"x{index}"].node for index in range(len(operands))]
    wanted = {key for key, want in zip(inputs, operands, strict=True) if want}
    while True:
        reached = set(wanted)
        for one in body.nodes:
            if any(value.node in reached for value in one.inputs):
                reached.add(one.id)
        carried = {inputs[k] for k, (_, value) in enumerate(body.outputs[:states])
                   if value.node in reached}
        if carried <= wanted:
            return body, wanted
        wanted |= carried


def macs_by_path(graph: Graph) -> dict[str, Dim]:
    """Multiply-accumulates of the whole batch by instance path, of an expanded graph."""
    found: dict[str, Dim] = {}
    for one in products(graph):
        found[one.node.path] = found.get(one.node.path, 0) + one.macs
    return found


def backward_macs(graph: Graph) -> dict[str, Dim]:
    """Multiply-accumulates of the gradients by all trained parameters, by instance path.

    A product of two operands takes part in the gradient of each: the gradient by an operand costs
    what the forward pass costs. It is needed where a trained parameter leads to the operand, so a
    layer costs twice its forward pass (by data and by weights), the first one once.
    """
    found: dict[str, Dim] = {}
    for one in products(graph):
        if one.wanted:
            found[one.node.path] = found.get(one.node.path, 0) + one.macs * one.wanted
    return found


def batch_size(graph: Graph) -> Dim:
    """The leading size of the model's first input: the number of examples."""
    for value in graph.inputs.values():
        shape = graph.type(value).shape
        if shape:
            return shape[0]
    return 1


def count_text(value: Dim) -> str:
    """A count with thousands separators; a formula as it is."""
    return f"{value:,}" if isinstance(value, int) else str(value)
