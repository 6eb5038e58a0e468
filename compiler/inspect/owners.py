"""Which layer a node belongs to, and which memory its result is.

A node belongs to the layer whose equations it is part of; what a block or the model applies itself
(`relu(main + skip)`) belongs to no layer.
"""

from __future__ import annotations

from collections.abc import Iterator

from lamina.compiler.ir.graph import Graph, Node, Value

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


def layers_of(graph: Graph) -> dict[int, str]:
    """The layer of every node that depends on an input, or belongs to a layer or follows one.

    An empty path is that of a node which a block applies itself.
    """
    leaves = {scope.path for scope in graph.scopes if scope.leaf}
    results = {scope.result.node: scope.path for scope in reversed(graph.scopes) if scope.leaf}
    live: set[int] = set()
    found: dict[int, str] = {}
    for node in graph.nodes:
        layer = next((p for p in prefixes(node.path) if p in leaves), results.get(node.id, ""))
        shown = layer and node.op.kind != "source"
        if not (shown or node.op.name == "input" or any(v.node in live for v in node.inputs)):
            continue
        live.add(node.id)
        found[node.id] = layer
    return found


def owners(graph: Graph) -> dict[int, str]:
    """The same, and a path of its own for every node that a block applies itself."""
    leaves = {scope.path for scope in graph.scopes if scope.leaf}
    taken: dict[str, int] = {}
    return {key: layer or _bare_path(graph.node(key), leaves, taken)
            for key, layer in layers_of(graph).items()}


def _bare_path(node: Node, leaves: set[str], taken: dict[str, int]) -> str:
    """A path for an operator that a block applies itself, free of those of layers."""
    if node.op.name == "input":
        return f"input {node.attributes['name']}"
    base = f"{node.path}.{node.op.name}" if node.path else node.op.name
    number = taken[base] = taken.get(base, -1) + 1
    path = f"{base}{number}" if number else base
    return path if path not in leaves else _bare_path(node, leaves, taken)
