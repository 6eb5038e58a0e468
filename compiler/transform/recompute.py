"""Recomputation: a training step that keeps less of its forward pass and computes the rest again.

Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear memory cost" (2016). The forward
pass is cut into segments. What crosses a cut is kept; what lies between two cuts is computed again
just before its first reader in the backward pass, from what was kept. A node `again` stands between
the two: it hands its operand on, and nothing behind it is shared with what the forward pass made.

Layers are convolutions, matrix products and scans, in order. A segment has at most N of them and,
but for the last one, at least half as many: within these bounds its end is where the fewest bytes
cross, so a residual network is cut between its blocks and a plain one behind its pools. The last
segment is kept whole, as its gradient comes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.types import product, substitute, symbols_of
from lamina.compiler.ops.control import SCAN
from lamina.compiler.ops.define import REGISTRY
from lamina.compiler.options import AUTO, Every, check_every
from lamina.compiler.transform.fuse import VIEWS
from lamina.compiler.transform.training import DERIVED

SMALL = 64  # a value below this part of the largest of its segment is kept: statistics, scores
TYPICAL = 224  # what a size that is not known counts as


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where the forward pass is cut, and what the backward pass may read of it.

    `after` are the nodes that end a segment, `kept` the values that stay in memory, `forward` the
    last node of the forward pass. `fed` are the nodes that depend on inputs: what depends on
    parameters alone is never computed again.
    """

    after: tuple[int, ...]
    kept: frozenset[Value]
    forward: int
    fed: frozenset[int]

    def stays(self, value: Value) -> bool:
        """Whether the backward pass reads the forward pass's own value."""
        return value.node not in self.fed or value.node > self.after[-1]


def recompute(graph: Graph, every: Every) -> Graph:
    """A training step that keeps the result of every `every`-th layer and computes the rest again.

    The same graph where there is nothing to do. Raises ValueError for a bad number.
    """
    check_every(every)
    cuts = find_cuts(graph, every)
    if not cuts.after or any(node.op.name == "again" for node in graph.nodes):
        return graph
    return compute_again(graph, cuts.forward, cuts.stays, cuts.kept.__contains__)


def compute_again(graph: Graph, end: int, stays: Callable[[Value], bool],
                  keeps: Callable[[Value], bool],
                  asks: Callable[[Value], bool] | None = None) -> Graph:
    """The graph whose nodes behind `end` read copies of what they ask for of those up to it.

    A copy is made just before its first reader, of the copies of its operands: of one that `stays`
    itself, of one that it `keeps` behind an `again`. Where `asks` is given, readers get copies of
    what it names and the values themselves of all others.
    """
    builder = Builder(graph.name)
    values: dict[Value, Value] = {}
    copies: dict[Value, Value] = {}
    held = copies if asks is None else {}  # the kept values, as those that are copied read them
    for node in graph.nodes:
        if node.id > end:
            todo = [value for value in node.inputs if asks is None or asks(value)]
            needed: set[int] = set()
            while todo:
                value = todo.pop()
                if value in copies or value.node in needed or value.node > end or stays(value):
                    continue
                if keeps(value):
                    held[value] = builder.emit(REGISTRY["again"], [values[value]])
                else:
                    needed.add(value.node)
                    todo += graph.node(value).inputs
            for number in sorted(needed):
                inner = graph.node(number)
                inputs = [copies.get(v, held.get(v, values[v])) for v in inner.inputs]
                _copy(builder, graph, inner, inputs, copies)
        inputs = [copies.get(value, values[value]) if node.id > end else values[value]
                  for value in node.inputs]
        _copy(builder, graph, node, inputs, values)
    return builder.finish((name, values[value]) for name, value in graph.outputs)


def _copy(builder: Builder, graph: Graph, node: Node, inputs: list[Value],
          values: dict[Value, Value]) -> None:
    """Emit a node anew; `values` get its results, where they have none yet."""
    first = builder.repeat(graph, node, tuple(inputs))
    for port in range(len(node.outs)):
        values.setdefault(Value(node.id, port), Value(first.node, port))


def computed_again(graph: Graph) -> list[Node]:
    """The nodes that compute again what others of the graph have made, behind an `again`."""
    source: dict[Value, Value] = {}
    known: dict[tuple, int] = {}
    found = []
    for node in graph.nodes:
        inputs = tuple(source.get(value, value) for value in node.inputs)
        if node.op.name == "again":
            source[Value(node.id)] = inputs[0]
            continue
        key = (node.op.name, inputs, node.attrs, id(node.body))
        first = known.setdefault(key, node.id)
        if first != node.id and node.inputs:
            found.append(node)
            source |= {Value(node.id, port): Value(first, port) for port in range(len(node.outs))}
    return found


# --- where to cut -------------------------------------------------------------------------------


def find_cuts(graph: Graph, every: Every) -> Cuts:
    """The cuts of a training step; none without gradients, or where one segment holds all."""
    end = forward_end(graph)
    fed = fed_by_inputs(graph, end)
    layers = [node.id for node in graph.nodes if node.id in fed and is_layer(node)]
    size = _segment(every, len(layers))
    if not size or size >= len(layers) or end == len(graph.nodes) - 1:
        return Cuts((), frozenset(), end, fed)
    return _Cutter(graph, end, fed, layers).cut(size)


def is_layer(node: Node) -> bool:
    """Whether a node counts as a layer."""
    return node.op.kind == "contract" or node.op is SCAN


def _segment(every: Every, layers: int) -> int:
    """Layers of a segment; 0 where nothing is to be computed again."""
    return max(1, round(math.sqrt(layers))) if every == AUTO else int(every or 0)


def forward_end(graph: Graph) -> int:
    """The last node of the forward pass of a training step, or of any graph; -1 if it has none."""
    return max((value.node for name, value in graph.outputs if not name.startswith(DERIVED)),
               default=-1)


def fed_by_inputs(graph: Graph, end: int) -> frozenset[int]:
    """The nodes up to `end` that depend on inputs."""
    found: set[int] = set()
    for node in graph.nodes[:end + 1]:
        if node.op.name == "input" or any(value.node in found for value in node.inputs):
            found.add(node.id)
    return frozenset(found)


class _Cutter:
    """Looks for cuts: what crosses each place of the forward pass, and what the gradient reads."""

    def __init__(self, graph: Graph, end: int, fed: frozenset[int], layers: list[int]):
        self.graph, self.end, self.fed, self.layers = graph, end, fed, layers
        self.read = {value for node in graph.nodes[end + 1:] for value in node.inputs}
        self.crossing = self._crossing()

    def cut(self, size: int) -> Cuts:
        """Segments of at most `size` layers."""
        after: list[int] = []
        start = 0
        while len(self.layers) - start > size:
            places = [(self._rank(gap, place), gap, place)
                      for gap in range(start + (size + 1) // 2, start + size + 1)
                      for place in range(self.layers[gap - 1], self.layers[gap])]
            _, start, place = min(places)
            after.append(place)
        kept = {value for place in after for value in self.crossing[place]}
        inputs = set(self.graph.inputs.values())
        return Cuts(tuple(after), frozenset(kept | inputs | self._small(after)), self.end, self.fed)

    def _rank(self, gap: int, place: int) -> tuple[int, int, bool, int]:
        """Few bytes come first, then many layers, and a place that spares the last layer."""
        crossing = self.crossing[place]
        return (sum(count_of(self.graph, value) for value in crossing), -gap,
                self._repeats(self.layers[gap - 1], place), -place)

    def _crossing(self) -> list[frozenset[Value]]:
        """For each node what is made up to it and read behind it; inputs are there anyway."""
        inputs = set(self.graph.inputs.values())
        last: dict[Value, int] = {}
        for node in self.graph.nodes[:self.end + 1]:
            for operand in node.inputs:
                value = memory_of(self.graph, operand)
                if value.node in self.fed and value not in inputs:
                    last[value] = node.id
        ends: dict[int, list[Value]] = {}
        begins: dict[int, list[Value]] = {}
        for value, reader in last.items():
            ends.setdefault(reader, []).append(value)
            begins.setdefault(value.node, []).append(value)
        live: set[Value] = set()
        found = []
        for number in range(self.end + 1):
            live.update(begins.get(number, ()))
            live.difference_update(ends.get(number, ()))
            found.append(frozenset(live))
        return found

    def _repeats(self, layer: int, place: int) -> bool:
        """Whether a cut after `place` lets the gradient ask for the layer before it again."""
        behind = {layer}
        for node in self.graph.nodes[layer:place + 1]:
            values = {Value(node.id, port) for port in range(len(node.outs))}
            if values & self.crossing[place]:
                behind.discard(node.id)
            elif node.id == layer or any(value.node in behind for value in node.inputs):
                if values & self.read:
                    return True
                behind.add(node.id)
        return False

    def _small(self, after: list[int]) -> set[Value]:
        """Values that are worth keeping, as they are small beside others of their segment."""
        found: set[Value] = set()
        begin = 0
        for place in after:
            nodes = [node for node in self.graph.nodes[begin:place + 1] if node.id in self.fed]
            values = [Value(node.id, port) for node in nodes for port in range(len(node.outs))
                      if node.op.name not in VIEWS]
            counts = {value: count_of(self.graph, value) for value in values}
            most = max(counts.values(), default=0)
            found |= {value for value, count in counts.items() if count * SMALL <= most}
            begin = place + 1
        return found


def count_of(graph: Graph, value: Value) -> int:
    """The elements of a value, with typical sizes where they are not known."""
    shape = graph.type(value).shape
    sizes = {one.name: -(-TYPICAL // one.scale) * one.scale for one in symbols_of(shape)}
    count = substitute(product(shape), sizes)
    assert isinstance(count, int)
    return count


def memory_of(graph: Graph, value: Value, views: tuple[str, ...] = VIEWS) -> Value:
    """The value that a view looks at."""
    while (node := graph.node(value)).op.name in views:
        value = node.inputs[0]
    return value
