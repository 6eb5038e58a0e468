"""The Builder: the only writer of graphs.

`emit` checks arity and attributes, infers the type, shares equal nodes, and folds scalar
constants, so every node that exists was checked when it was made. Nodes that no output needs are
dropped in `finish`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from lamina.compiler.errors import Span
from lamina.compiler.ir.attributes import check_attribute
from lamina.compiler.ir.graph import Graph, Node, Scope, Value
from lamina.compiler.ir.op import REQUIRED, Op, OpError
from lamina.compiler.ir.types import NUMPY_TYPES, TensorType


class Builder:
    """Builds one Graph. `name` is the graph's name."""

    def __init__(self, name: str = "graph"):
        self.name = name
        self._nodes: list[Node] = []
        self._known: dict[tuple, int] = {}
        self._place: tuple[Span | None, str] = (None, "")

    @contextmanager
    def at(self, span: Span | None, path: str):
        """Nodes made inside carry this place in the source and this instance path."""
        before, self._place = self._place, (span, path)
        try:
            yield self
        finally:
            self._place = before

    def emit(self, op: Op, inputs: Sequence[Value], attrs: Mapping[str, Any] | None = None,
             body: Graph | None = None) -> Value:
        """Add a node (or find an equal one) and return its first result.

        Raises OpError when the operator refuses its operands or attributes.
        """
        complete = _complete_attributes(op, attrs or {})
        low, high = op.arity
        if not low <= len(inputs) <= (high if high >= 0 else len(inputs)):
            raise OpError("E201", f"`{op.name}` takes {_count(low, high)}, {len(inputs)} given")
        frozen = tuple(sorted(complete.items()))
        key = _sharing_key(op, tuple(inputs), frozen, body)
        if op.pure and key in self._known:
            return Value(self._known[key])
        types = [self.type(value) for value in inputs]
        outs = op.infer(*types, **complete) if body is None else op.infer(body, *types, **complete)
        outs = outs if isinstance(outs, tuple) else (outs,)
        _check_sizes(op, outs)
        folded = self._fold(op, inputs, complete, outs)
        if folded is not None:
            self._known[key] = folded.node
            return folded
        return self._add(op, tuple(inputs), frozen, outs, body, key)

    def repeat(self, graph: Graph, node: Node, inputs: tuple[Value, ...]) -> Value:
        """Emit a node of `graph` upon new operands, at its own place in the source.

        Where those have the types of the old ones, what was checked and inferred for it holds.
        """
        constant = bool(inputs) and all(self.node(v).op.name == "const" for v in inputs)
        for value, old in zip(inputs, node.inputs, strict=True):
            now, before = self.type(value), graph.type(old)
            if constant or now is not before and now != before:
                with self.at(node.span, node.path):
                    return self.emit(node.op, inputs, node.attributes, node.body)
        key = _sharing_key(node.op, inputs, node.attrs, node.body)
        number = len(self._nodes)
        if node.op.pure and self._known.setdefault(key, number) != number:
            return Value(self._known[key])
        same = node.id == number and node.inputs == inputs
        self._nodes.append(node if same else Node(number, node.op, inputs, node.attrs, node.outs,
                                                  node.body, node.span, node.path))
        return Value(number)

    def _add(self, op: Op, inputs, frozen, outs, body, key) -> Value:
        span, path = self._place
        node = Node(len(self._nodes), op, inputs, frozen, outs, body, span, path)
        self._nodes.append(node)
        if op.pure:
            self._known[key] = node.id
        return Value(node.id)

    def _fold(self, op: Op, inputs, attrs, outs: tuple[TensorType, ...]) -> Value | None:
        """A scalar elementwise operator over constants is a constant."""
        if op.kind != "elementwise" or op.numpy is None or not inputs:
            return None
        nodes = [self._nodes[value.node] for value in inputs]
        if any(node.op.name != "const" for node in nodes):
            return None
        values = [node.attributes["value"] for node in nodes]
        if not all(isinstance(value, (int, float, bool)) for value in values):
            return None
        dtype = outs[0].dtype
        operands = [_in_dtype(v, n.type.dtype) for v, n in zip(values, nodes, strict=True)]
        with np.errstate(all="ignore"):
            result = op.numpy(*operands, **attrs)
        plain = result.item()
        frozen = (("dtype", dtype), ("value", plain))
        const = nodes[0].op
        key = _sharing_key(const, (), frozen, None)
        if key in self._known:
            return Value(self._known[key])
        return self._add(const, (), frozen, (TensorType((), dtype),), None, key)

    @property
    def count(self) -> int:
        """How many nodes have been made."""
        return len(self._nodes)

    def node(self, value: Value) -> Node:
        """The node behind a value."""
        return self._nodes[value.node]

    def type(self, value: Value) -> TensorType:
        """The type of a value."""
        return self._nodes[value.node].outs[value.port]

    def finish(self, outputs: Iterable[tuple[str, Value]], scopes: Sequence[Scope] = (),
               keep_sources: bool = True) -> Graph:
        """The graph of the nodes that `outputs` need, renumbered in order.

        Inputs and parameters are kept even when unused, so that the interface stays as declared.
        """
        outputs = tuple(outputs)
        live = self.live([value for _, value in outputs], keep_sources)
        if len(live) == len(self._nodes):
            return Graph(self.name, self._nodes, outputs, scopes)
        number = {old: new for new, old in enumerate(sorted(live))}
        nodes = [_renumber(self._nodes[old], number) for old in sorted(live)]
        kept = [Scope(s.path, s.callee, Value(number[s.result.node], s.result.port), s.span, s.leaf)
                for s in scopes if s.result.node in number]
        return Graph(self.name, nodes,
                     ((name, Value(number[v.node], v.port)) for name, v in outputs), kept)


    def live(self, outputs: Iterable[Value], keep_sources: bool = True) -> set[int]:
        """The nodes that outputs need, and with `keep_sources` all inputs and parameters."""
        live = {value.node for value in outputs}
        for node in reversed(self._nodes):
            if node.op.kind == "source" and node.op.name != "const" and keep_sources:
                live.add(node.id)
            if node.id in live:
                live.update(value.node for value in node.inputs)
        return live


def _sharing_key(op: Op, inputs: tuple, frozen: tuple, body: Graph | None) -> tuple:
    # repr keeps 0.0 and -0.0 apart and makes NaN equal to itself.
    attrs = repr(frozen) if op.name == "const" else frozen
    return (op.name, inputs, attrs, id(body) if body else 0)


def _renumber(node: Node, number: Mapping[int, int]) -> Node:
    inputs = tuple(Value(number[value.node], value.port) for value in node.inputs)
    return Node(number[node.id], node.op, inputs, node.attrs, node.outs, node.body, node.span,
                node.path)


def _complete_attributes(op: Op, given: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [name for name in given if name not in op.attrs]
    if unknown:
        known = ", ".join(op.attrs) or "none"
        raise OpError("E202", f"`{op.name}` has no attribute `{unknown[0]}`",
                      f"its attributes are: {known}")
    complete = {name: given.get(name, default) for name, default in op.attrs.items()}
    missing = [name for name, value in complete.items() if value is REQUIRED]
    if missing:
        raise OpError("E203", f"`{op.name}` needs a value for `{missing[0]}`")
    frozen = {name: _freeze(value) for name, value in complete.items()}
    for name, value in frozen.items():
        check_attribute(op.name, name, value)
    return frozen


def _check_sizes(op: Op, outs: tuple[TensorType, ...]) -> None:
    for type in outs:
        for size in type.shape:
            if isinstance(size, int) and size < 0:
                raise OpError("E207", f"`{op.name}` would give {type}: a size of {size}",
                              "sizes are 0 or more")


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, (list, tuple)) else value


def _count(low: int, high: int) -> str:
    if low == high:
        return f"{low} operand{'s' if low != 1 else ''}"
    return f"at least {low} operands" if high < 0 else f"{low} to {high} operands"


def _in_dtype(value: Any, dtype: str):
    return NUMPY_TYPES[dtype](value)
