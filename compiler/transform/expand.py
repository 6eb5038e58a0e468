"""Composites in terms of the operators that their bodies are written with."""

from __future__ import annotations

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.rewrite import rewrite
from lamina.compiler.ops.define import GraphMath, Var


def expand(builder: Builder, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """Emit a composite's body in place of its node."""
    m = GraphMath(builder)
    assert node.op.body is not None
    result = m.lift(node.op.body(m, *(Var(m, value) for value in inputs), **node.attributes))
    return (result.value,)


def expand_all(graph: Graph) -> Graph:
    """The graph with no composite left."""
    def rule(builder: Builder, node: Node, inputs: tuple[Value, ...]):
        return expand(builder, node, inputs) if node.op.body else None

    while (expanded := rewrite(graph, rule)) is not graph:
        graph = expanded
    return graph
