"""The Graph: an immutable dataflow graph of typed nodes, kept in a networkx MultiDiGraph.

Each networkx node carries exactly one frozen `Node` record under the key "node"; edges are keyed
by operand index and carry the producer's port. This is the only file that imports networkx.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lamina.compiler.errors import Span
from lamina.compiler.ir.op import Op
from lamina.compiler.ir.types import TensorType

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, slots=True, order=True)
class Value:
    """One result of a node."""

    node: int
    port: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """One application of an operator. `body` is set for fused groups and scans."""

    id: int
    op: Op
    inputs: tuple[Value, ...]
    attrs: tuple[tuple[str, Any], ...]
    outs: tuple[TensorType, ...]
    body: Graph | None = None
    span: Span | None = field(default=None, compare=False)
    path: str = ""

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes by name."""
        return dict(self.attrs)

    @property
    def type(self) -> TensorType:
        """The type of the first result."""
        return self.outs[0]


@dataclass(frozen=True, slots=True)
class Scope:
    """One layer or block instance of the model: what people see as a row of the layer table."""

    path: str
    callee: str
    result: Value
    span: Span | None = field(default=None, compare=False)
    leaf: bool = True


class Graph:
    """Immutable. Nodes are in emission order, which is topological."""

    def __init__(self, name: str, nodes: Sequence[Node], outputs: Iterable[tuple[str, Value]],
                 scopes: Sequence[Scope] = ()):
        self.name = name
        self.outputs: tuple[tuple[str, Value], ...] = tuple(outputs)
        self.scopes = tuple(scopes)
        self.nodes: tuple[Node, ...] = tuple(nodes)
        self._by_id = {node.id: node for node in self.nodes}

    @cached_property
    def _net(self) -> networkx.MultiDiGraph:
        # Imported on first use: a file is checked without it, and it takes 0.15 s to import.
        import networkx

        net = networkx.MultiDiGraph()
        for node in self.nodes:
            net.add_node(node.id, node=node)
            for index, value in enumerate(node.inputs):
                net.add_edge(value.node, node.id, key=index, port=value.port)
        return networkx.freeze(net)

    @cached_property
    def _readers(self) -> dict[int, Collection[int]]:
        return dict(self._net.adjacency())

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name}: {self.type(value)}" for name, value in self.outputs)
        return f"<Graph {self.name} of {len(self.nodes)} nodes; outputs: {outputs}>"

    def node(self, value: Value | int) -> Node:
        """The node of a value or id."""
        return self._by_id[value.node if isinstance(value, Value) else value]

    def type(self, value: Value) -> TensorType:
        """The type of a value."""
        return self.node(value).outs[value.port]

    def users(self, node: Node | int) -> tuple[Node, ...]:
        """The nodes that read any result of `node`, each once, in order."""
        key = node if isinstance(node, int) else node.id
        return tuple(self.node(other) for other in sorted(self._net.successors(key)))

    @cached_property
    def inputs(self) -> dict[str, Value]:
        """Inputs by name, in order."""
        return {node.attributes["name"]: Value(node.id) for node in self.nodes
                if node.op.name == "input"}

    @cached_property
    def params(self) -> dict[str, Value]:
        """Parameters and running statistics by path, in order of first use."""
        return {node.attributes["key"]: Value(node.id) for node in self.nodes
                if node.op.name == "param"}

    def output(self, name: str) -> Value:
        """The value of a named output. Raises KeyError."""
        return dict(self.outputs)[name]

    def reachable(self, value: Value) -> set[int]:
        """Ids of all nodes that depend on `value`'s node."""
        found: set[int] = set()
        open = [value.node]
        while open:  # networkx's own search is ten times as slow, and passes ask often
            for reader in self._readers[open.pop()]:
                if reader not in found:
                    found.add(reader)
                    open.append(reader)
        return found

    def __eq__(self, other: object) -> bool:
        return (isinstance(other, Graph) and self.name == other.name
                and self.nodes == other.nodes and self.outputs == other.outputs)

    __hash__ = object.__hash__
