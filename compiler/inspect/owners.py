"""Which layer a node belongs to, and which memory its result is.

A node belongs to the layer whose equations it is part of; what a block or the model applies itself
(`relu(main + skip)`) belongs to no layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ops.control import FREE
from lamina.compiler.ops.ragged import LENGTHS

# Another look at the same memory: nothing is computed.
SHARING = ("reshape", "flatten", "squeeze", "expand_dims", "transpose", "slice", "reverse",
           "broadcast_to", "part")


def storage(graph: Graph, value: Value) -> Value:
    """The value whose memory a value is a look at: another shape of it is no copy."""
    while _is_look(graph, graph.node(value)):
        value = graph.node(value).inputs[0]
    return value


def _is_look(graph: Graph, node: Node) -> bool:
    if node.op.name in SHARING:
        return True
    # A border of no width, or one operand joined to nothing.
    return node.op.kind == "view" and len(node.inputs) == 1 \
        and graph.type(node.inputs[0]) == node.type


def prefixes(path: str) -> Iterator[str]:
    """A path and the paths of the blocks around it, innermost first."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def origins(graph: Graph, path: str = "") -> dict[tuple[str, int], str]:
    """The name of the file that the operators of a path and a line are written in.

    `path` is that of operators without one: a loop's, for those in its body.
    """
    found: dict[tuple[str, int], str] = {}
    for node in graph.nodes:
        if node.body is not None:
            found |= origins(node.body, node.path or path)
        if node.span is not None:
            found[node.path or path, node.span.line] = Path(node.span.source.name).name
    return found


def place_text(files: Mapping[tuple[str, int], str], path: str, line: int) -> str:
    """Where something of a path is written, as file:line; `files` are `origins`."""
    if not line:
        return ""
    return f"{files[path, line]}:{line}" if (path, line) in files else f"line {line}"


def ends_of(graph: Graph) -> set[int]:
    """Nodes that are made of lengths (inputs such as S~) alone: where each example ends."""
    found: set[int] = set()
    for node in graph.nodes:
        if node.op.name == "input":
            given = str(node.attributes["name"]).endswith(LENGTHS)
        else:
            given = any(value.node in found for value in node.inputs) and all(
                value.node in found or graph.node(value).op.name in FREE for value in node.inputs)
        if given:
            found.add(node.id)
    return found


def _is_number(graph: Graph, node: Node) -> bool:
    """Whether a node is one number everywhere, as a state before the first step may be."""
    return node.op.name == "broadcast_to" and graph.node(node.inputs[0]).op.name == "const"


def layers_of(graph: Graph) -> dict[int, str]:
    """The layer of every node that depends on an input, or belongs to a layer or follows one.

    An empty path is that of a node which a block applies itself. What says where examples end
    belongs to nothing, nor does a number, which several layers may share.
    """
    ends = ends_of(graph)
    leaves = {scope.path for scope in graph.scopes if scope.leaf}
    results = {scope.result.node: scope.path for scope in reversed(graph.scopes) if scope.leaf}
    live: set[int] = set()
    found: dict[int, str] = {}
    for node in graph.nodes:
        if node.id in ends or _is_number(graph, node):
            continue
        layer = next((p for p in prefixes(node.path) if p in leaves), results.get(node.id, ""))
        shown = layer and node.op.kind != "source"
        if not (shown or node.op.name == "input" or any(v.node in live for v in node.inputs)):
            continue
        live.add(node.id)
        found[node.id] = layer
    return found


def owners(graph: Graph) -> dict[int, str]:
    """The same, and a path of its own for every node that a block applies itself.

    What is filled past the ends of examples is part of what it was.
    """
    leaves = {scope.path for scope in graph.scopes if scope.leaf}
    taken: dict[str, int] = {}
    ends, found = ends_of(graph), dict[int, str]()
    for key, layer in layers_of(graph).items():
        node = graph.node(key)
        filled = node.op.name == "select" and node.inputs[0].node in ends and \
            graph.node(node.inputs[2]).op.name in FREE
        same = found.get(node.inputs[1].node, "") if filled else ""
        found[key] = layer or same or _bare_path(node, leaves, taken)
    return found


def _bare_path(node: Node, leaves: set[str], taken: dict[str, int]) -> str:
    """A path for an operator that a block applies itself, free of those of layers."""
    if node.op.name == "input":
        return f"input {node.attributes['name']}"
    base = f"{node.path}.{node.op.name}" if node.path else node.op.name
    number = taken[base] = taken.get(base, -1) + 1
    path = f"{base}{number}" if number else base
    return path if path not in leaves else _bare_path(node, leaves, taken)
