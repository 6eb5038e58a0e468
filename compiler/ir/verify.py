"""Rules that every Graph keeps, one function a rule; each returns what is wrong, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.op import OpError


def producers_come_first(graph: Graph) -> Iterator[str]:
    """Every operand is a result of an earlier node."""
    seen = set()
    for node in graph.nodes:
        for value in node.inputs:
            if value.node not in seen:
                yield f"%{node.id} {node.op.name} reads %{value.node}, which does not come before"
        seen.add(node.id)


def operands_exist(graph: Graph) -> Iterator[str]:
    """Every operand names an existing port."""
    nodes = {node.id: node for node in graph.nodes}
    for node in graph.nodes:
        for value in node.inputs:
            if value.node in nodes and value.port >= len(nodes[value.node].outs):
                yield f"%{node.id} {node.op.name} reads port {value.port} of %{value.node}"


def types_are_inferred(graph: Graph) -> Iterator[str]:
    """The recorded types are what the operator's shape rule gives."""
    for node in graph.nodes:
        try:
            types = [graph.type(value) for value in node.inputs]
        except (KeyError, IndexError):
            continue  # reported by the rules above
        try:
            extra = () if node.body is None else (node.body,)
            outs = node.op.infer(*extra, *types, **node.attributes)
        except OpError as error:
            yield f"%{node.id} {node.op.name}: {error.message}"
            continue
        outs = outs if isinstance(outs, tuple) else (outs,)
        if outs != node.outs:
            yield f"%{node.id} {node.op.name} has type {node.outs}, its rule gives {outs}"


def attributes_are_complete(graph: Graph) -> Iterator[str]:
    """Nodes carry exactly the attributes that their operator declares."""
    for node in graph.nodes:
        if set(node.attributes) != set(node.op.attrs):
            yield f"%{node.id} {node.op.name} has attributes {sorted(node.attributes)}"


def outputs_exist(graph: Graph) -> Iterator[str]:
    """Outputs are results of nodes, under different names."""
    nodes = {node.id: node for node in graph.nodes}
    for name, value in graph.outputs:
        if value.node not in nodes or value.port >= len(nodes[value.node].outs):
            yield f"output {name} is %{value.node}.{value.port}, which does not exist"
    names = [name for name, _ in graph.outputs]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"output {name} is given twice"


def sources_are_unique(graph: Graph) -> Iterator[str]:
    """No two inputs share a name, no two parameters a key."""
    seen = set()
    for node in graph.nodes:
        if node.op.name in ("input", "param"):
            name = (node.op.name, node.attributes.get("name", node.attributes.get("key")))
            if name in seen:
                yield f"{name[0]} {name[1]} is declared twice"
            seen.add(name)


def bodies_are_valid(graph: Graph) -> Iterator[str]:
    """Bodies keep the same rules and take as many inputs as their node has operands."""
    for node in graph.nodes:
        if node.body is None:
            continue
        for problem in problems(node.body):
            yield f"in the body of %{node.id}: {problem}"
        if len(node.body.inputs) != len(node.inputs):
            yield f"%{node.id} has {len(node.inputs)} operands, its body {len(node.body.inputs)}"


RULES: tuple[Callable[[Graph], Iterator[str]], ...] = (
    producers_come_first, operands_exist, types_are_inferred, attributes_are_complete,
    outputs_exist, sources_are_unique, bodies_are_valid,
)


def problems(graph: Graph) -> list[str]:
    """All broken rules; empty for a valid graph."""
    return [problem for rule in RULES for problem in rule(graph)]


def verify(graph: Graph, after: str = "") -> Graph:
    """Return the graph, or raise AssertionError naming the pass `after` which it was broken."""
    found = problems(graph)
    if found:
        raise AssertionError(f"invalid graph after {after or 'building'}: " + "; ".join(found[:5]))
    return graph
