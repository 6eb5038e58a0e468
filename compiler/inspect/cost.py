"""Parameters and multiply-accumulates, per layer and in total."""

from __future__ import annotations

from dataclasses import dataclass

from lamina.compiler.errors import Span
from lamina.compiler.inspect.receptive_field import KNOWN, Field, receptive_fields
from lamina.compiler.ir.graph import Graph, Node
from lamina.compiler.ir.rewrite import rewrite
from lamina.compiler.ir.types import Dim, TensorType, divide_exactly, product
from lamina.compiler.transform.autodiff import expand


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of the layer table. `macs` are per example; 1 MAC is 2 FLOPs.

    A parameter that several layers share counts at the first of them.
    """

    path: str
    op: str
    out: TensorType
    parameters: int
    macs: Dim
    field: Field | None
    line: int
    span: Span | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The layer table with its totals; `unused` are parameters that no output needs."""

    model: str
    layers: tuple[LayerRow, ...]
    parameters: int
    buffers: int
    macs: Dim
    unused: tuple[str, ...] = ()


def summarize(graph: Graph) -> Summary:
    """The layer table of a built model, and exact totals.

    Listed are the leaf layers, and the blocks with parameters or products of their own.
    """
    whole = expanded(graph)
    fields = receptive_fields(whole)
    macs = _macs_by_path(whole)
    keys = {key: graph.node(value) for key, value in graph.params.items()}
    taken: set[str] = set()
    counted: set[str] = set()
    rows = []
    results = {scope.path: scope.result for scope in whole.scopes}
    seen: set[str] = set()
    for scope in graph.scopes:
        if scope.path in seen:
            continue
        own = [key for key in keys if _inside(key, scope.path) and key not in taken]
        inside = [path for path in macs if _inside(path, scope.path) and path not in counted]
        if not (scope.leaf or own or inside):
            continue
        seen.add(scope.path)
        taken.update(own)
        counted.update(inside)
        rows.append(LayerRow(
            scope.path, scope.callee, graph.type(scope.result),
            sum(_size(keys[key]) for key in own if _trains(keys[key])),
            sum((macs[path] for path in inside), start=0), fields.get(results[scope.path]),
            scope.span.line if scope.span else 0, scope.span))
    trained = [node for node in keys.values() if _trains(node)]
    unused = tuple(key for key, node in keys.items() if _trains(node) and not graph.users(node))
    return Summary(graph.name, tuple(rows), sum(map(_size, trained)),
                   sum(_size(node) for node in keys.values() if not _trains(node)),
                   sum(macs.values(), start=0), unused)


def expanded(graph: Graph) -> Graph:
    """The graph with composites replaced, save those whose products or fields have a rule."""
    def rule(builder, node, inputs):
        whole = node.op.body is None or node.op.macs is not None or node.op.name in KNOWN
        return None if whole else expand(builder, node, inputs)

    while (next_graph := rewrite(graph, rule)) is not graph:
        graph = next_graph
    return graph


def _inside(path: str, layer: str) -> bool:
    return path == layer or path.startswith(layer + ".")


def _trains(node: Node) -> bool:
    return node.attributes["trainable"]


def _size(node: Node) -> int:
    count = product(node.type.shape)
    assert isinstance(count, int)
    return count


def _macs_by_path(graph: Graph) -> dict[str, Dim]:
    """Multiply-accumulates per example by instance path."""
    batch = batch_size(graph)
    found: dict[str, Dim] = {}
    for node in graph.nodes:
        if node.op.macs is None:
            continue
        total = node.op.macs(node.type, *(graph.type(v) for v in node.inputs), **node.attributes)
        each = divide_exactly(total, batch)
        found[node.path] = found.get(node.path, 0) + (total if each is None else each)
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
