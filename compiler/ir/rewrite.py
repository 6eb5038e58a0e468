"""Re-emission: how a pass makes a new graph from an old one through a Builder."""

from __future__ import annotations

from collections.abc import Callable

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Scope, Value

# Given the builder, a node and its new operands: the new results, or None to copy the node.
Rewrite = Callable[[Builder, Node, tuple[Value, ...]], tuple[Value, ...] | None]


def rewrite(graph: Graph, rule: Rewrite) -> Graph:
    """Re-emit `graph`, replacing nodes where `rule` says so.

    Returns the same object when the result equals the input.
    """
    builder = Builder(graph.name)
    values = copy_into(builder, graph, rule)
    outputs = [(name, values[value]) for name, value in graph.outputs]
    scopes = [Scope(s.path, s.callee, values[s.result], s.span, s.leaf) for s in graph.scopes]
    result = builder.finish(outputs, scopes)
    return graph if result == graph else result


def copy_into(builder: Builder, graph: Graph, rule: Rewrite | None = None) -> dict[Value, Value]:
    """Emit all nodes of `graph` into `builder`; gives old value -> new value."""
    values: dict[Value, Value] = {}
    for node in graph.nodes:
        inputs = tuple(values[value] for value in node.inputs)
        results = None
        if rule is not None:
            with builder.at(node.span, node.path):
                results = rule(builder, node, inputs)
        if results is None:
            first = builder.repeat(graph, node, inputs)
            results = (first,) if len(node.outs) == 1 else \
                tuple(Value(first.node, port) for port in range(len(node.outs)))
        for port, value in enumerate(results):
            values[Value(node.id, port)] = value
    return values
