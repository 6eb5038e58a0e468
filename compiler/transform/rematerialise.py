"""A training step keeps less where some elementwise work gives back what the gradient reads.

A batch normalisation's result is a few operations away from its centred operand, which the gradient
reads too: one of them is enough, the other is computed again just before it is read. As in
`recompute`, a node `again` keeps what is computed again apart from what was computed first.
"""

from __future__ import annotations

from lamina.compiler.ir.graph import Graph, Value
from lamina.compiler.transform.fuse import CHEAP, VIEWS
from lamina.compiler.transform.recompute import (
    compute_again,
    count_of,
    fed_by_inputs,
    forward_end,
    memory_of,
)

EASY = (*CHEAP, "div", "abs", "square", "relu")  # what is rather computed again than kept
MOVES = (*VIEWS, "pad")  # what only moves elements; most readers need no memory for a border
SOURCES = 2  # large values that something computed again may be made of
SMALL = 1024  # a value below this part of the largest is no matter: statistics, scores


def rematerialise(graph: Graph) -> Graph:
    """Compute again, where the gradient needs it, what cheap work makes of what is kept anyway.

    The same graph where there is nothing to do, or where `recompute` has been at work.
    """
    end = forward_end(graph)
    if end == len(graph.nodes) - 1 or any(node.op.name == "again" for node in graph.nodes):
        return graph
    choice = _Choice(graph, end)
    if not choice.chosen:
        return graph
    def root(value: Value) -> Value:
        return memory_of(graph, value, MOVES)

    return compute_again(graph, end, lambda value: value not in choice.large,
                         lambda value: root(value) in choice.kept,
                         lambda value: root(value) in choice.chosen)


class _Choice:
    """What the backward pass reads of the forward pass, and what of it is computed again.

    `chosen` are those values, `kept` the large ones that stay for the backward pass.
    """

    def __init__(self, graph: Graph, end: int):
        self.graph = graph
        inputs = set(graph.inputs.values())
        fed = fed_by_inputs(graph, end)
        counts = {Value(node.id, port): count_of(graph, Value(node.id, port))
                  for node in graph.nodes[:end + 1] if node.id in fed
                  for port in range(len(node.outs))}
        most = max(counts.values(), default=0)
        self.large = {value for value, count in counts.items()
                      if count * SMALL > most and value not in inputs}
        self.kept = {memory_of(graph, value, MOVES) for node in graph.nodes[end + 1:]
                     for value in node.inputs} & self.large
        self.chosen = self._choose()

    def _choose(self) -> frozenset[Value]:
        """Later values first: what they are made of is then kept for sure."""
        needed: set[Value] = set()
        chosen = set()
        for value in sorted(self.kept, key=lambda value: -value.node):
            sources = None if value in needed else self._sources(value)
            if sources is not None and len(sources) <= SOURCES:
                self.kept.discard(value)
                needed |= sources
                chosen.add(value)
        return frozenset(chosen)

    def _sources(self, value: Value) -> set[Value] | None:
        """The large kept values that cheap work makes `value` of; None where it takes more."""
        found: set[Value] = set()
        todo, seen = [value], {value}
        while todo:
            node = self.graph.node(todo.pop())
            if node.op.name not in EASY and node.op.name not in MOVES:
                return None
            for operand in node.inputs:
                source = memory_of(self.graph, operand, MOVES)
                if source in self.kept and source != value:
                    found.add(source)
                elif operand in self.large and operand not in seen:
                    todo.append(operand)
                    seen.add(operand)
        return found
