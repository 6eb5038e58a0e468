"""Receptive fields: which part of the input one unit of a layer sees, over all paths at once.

Over several paths the field reaches from the first position that any of them sees to the last;
`paths.py` tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamina.compiler.inspect.axes import FIRST, LINES, RULES, Axis, changes
from lamina.compiler.ir.graph import Graph, Node, Value

KNOWN = frozenset(RULES) - frozenset(LINES)  # operators that need not be taken apart


@dataclass(frozen=True, slots=True)
class Field:
    """The field over (height, width); `whole` when a unit sees the entire input."""

    height: Axis
    width: Axis
    whole: bool = False


START = Field(FIRST, FIRST)
WHOLE = Field(Axis(0, 0, 0.0), Axis(0, 0, 0.0), True)


def receptive_fields(graph: Graph) -> dict[Value, Field]:
    """The field of every value of an expanded graph that depends on a 4-axis input."""
    fields: dict[Value, Field] = {}
    for node in graph.nodes:
        value = Value(node.id)
        if node.op.name == "input" and node.type.rank == 4:
            fields[value] = START
            continue
        seen = [fields[v] for v in node.inputs if v in fields]
        if seen:
            fields[value] = _step(graph, node, seen)
    return fields


def _step(graph: Graph, node: Node, seen: list[Field]) -> Field:
    if node.op.name in KNOWN and not seen[0].whole:
        return _windowed(graph, node, seen[0])
    same = node.type.rank == 4 and node.op.kind == "elementwise"
    if not same and not _keeps_places(graph, node):
        return WHOLE
    joined = seen[0]
    for other in seen[1:]:
        joined = _join(joined, other)
    return joined


def _windowed(graph: Graph, node: Node, field: Field) -> Field:
    if node.type.rank != 4:
        return field
    change = changes(graph, node)
    height = change[2](field.height) if 2 in change else field.height
    width = change[3](field.width) if 3 in change else field.width
    return WHOLE if height is None or width is None else Field(height, width)


def _join(a: Field, b: Field) -> Field:
    if a.whole or b.whole:
        return WHOLE
    return Field(a.height.joined(b.height), a.width.joined(b.width))


def _keeps_places(graph: Graph, node: Node) -> bool:
    """Whether spatial positions stay where they are."""
    if node.type.rank != 4 or graph.type(node.inputs[0]).rank != 4:
        # A reshape is a change of view, no computation: the field stays.
        return node.op.kind == "view"
    if node.op.kind == "reduce":
        return not {2, 3} & set(node.attributes["axes"])
    if node.op.name == "transpose":
        return node.attributes["perm"] == (0, 1, 2, 3)
    return node.op.kind in ("elementwise", "view")
