"""Channels innermost: convolutions and pools compute on [N, H, W, C].

Each such operator is wrapped in transposes, and elementwise operators, reductions, borders and
joins move below the transposes of their operands, so that neighbours cancel and only the graph's
edges reorder anything.
"""

from __future__ import annotations

from collections.abc import Callable

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.rewrite import rewrite
from lamina.compiler.ops.define import GraphMath, Var, normalize_axes
from lamina.compiler.transform.simplify import simplify

TO_LAST = (0, 2, 3, 1)
TO_FIRST = (0, 3, 1, 2)


def channels_last(graph: Graph) -> Graph:
    """Rewrite all convolutions and pools to channels-last and cancel the transposes between."""
    return simplify(rewrite(simplify(rewrite(graph, _convert)), _sink_transposes))


def _last(m: GraphMath, x: Var) -> Var:
    return m.transpose(x, perm=TO_LAST)


def _first(m: GraphMath, x: Var) -> Var:
    return m.transpose(x, perm=TO_FIRST)


def _convert(builder: Builder, node: Node, inputs) -> tuple[Value, ...] | None:
    if node.attributes.get("layout") != "nchw":
        return None
    m = GraphMath(builder)
    xs = [Var(m, value) for value in inputs]
    attrs = {**node.attributes, "layout": "nhwc"}
    if node.op.name == "conv2d":
        return (_first(m, m.apply(node.op, (_last(m, xs[0]), xs[1]), attrs)).value,)
    result = m.apply(node.op, tuple(_last(m, x) for x in xs), attrs)
    return ((result if node.op.name == "conv2d_weight_grad" else _first(m, result)).value,)


def _sink_transposes(builder: Builder, node: Node, inputs) -> tuple[Value, ...] | None:
    m = GraphMath(builder)
    xs = [Var(m, value) for value in inputs]
    below = [_below(builder, value) for value in inputs]
    if node.op.name == "transpose" and node.attributes["perm"] == TO_LAST:
        return (below[0],) if below[0] is not None else _bordered_input(m, builder.node(inputs[0]))
    if node.type.rank != 4 or not any(value is not None for value in below):
        return None
    mover = ELEMENTWISE if node.op.kind == "elementwise" else MOVERS.get(node.op.name)
    return mover(m, node, xs, below) if mover else None


def _bordered_input(m: GraphMath, pad: Node) -> tuple[Value, ...] | None:
    """An input with a border, channels last: it takes its order as it is copied into the border."""
    if pad.op.name != "pad" or m.builder.node(pad.inputs[0]).op.name != "input":
        return None
    attrs = _permuted(pad, ("lo", "hi", "interior"))
    return (m.apply(pad.op, (_last(m, Var(m, pad.inputs[0])),), attrs).value,)


def _below(builder: Builder, value: Value) -> Value | None:
    """What `value` is the channels-first transpose of."""
    node = builder.node(value)
    if node.op.name == "transpose" and node.attributes["perm"] == TO_FIRST:
        return node.inputs[0]
    return None


def _lasts(m: GraphMath, xs: list[Var], below: list[Value | None]) -> tuple[Var, ...]:
    return tuple(_as_last(m, x, known) for x, known in zip(xs, below, strict=True))


def _as_last(m: GraphMath, x: Var, known: Value | None) -> Var:
    if known is not None:
        return Var(m, known)
    if x.shape == ():
        return x
    if len(x.shape) < 4:
        x = m.reshape(x, shape=(1,) * (4 - len(x.shape)) + x.shape)
    return _last(m, x)


def _elementwise(m: GraphMath, node: Node, xs, below) -> tuple[Value, ...]:
    return (_first(m, m.apply(node.op, _lasts(m, xs, below), node.attributes)).value,)


def _reduce(m: GraphMath, node: Node, xs, below) -> tuple[Value, ...]:
    axes = tuple(sorted(TO_LAST.index(axis) for axis in node.attributes["axes"]))
    return (_first(m, m.apply(node.op, (Var(m, below[0]),), {"axes": axes})).value,)


def _permuted(node: Node, names: tuple[str, ...]) -> dict:
    """Per-axis attributes in the new order of axes; empty ones stay."""
    moved = {name: node.attributes[name] for name in names}
    return {**node.attributes,
            **{name: tuple(v[axis] for axis in TO_LAST) if v else v for name, v in moved.items()}}


def _pad(m: GraphMath, node: Node, xs, below) -> tuple[Value, ...]:
    attrs = _permuted(node, ("lo", "hi", "interior"))
    return (_first(m, m.apply(node.op, (Var(m, below[0]),), attrs)).value,)


def _slice(m: GraphMath, node: Node, xs, below) -> tuple[Value, ...]:
    attrs = _permuted(node, ("starts", "stops", "steps"))
    return (_first(m, m.apply(node.op, (Var(m, below[0]),), attrs)).value,)


def _broadcast(m: GraphMath, node: Node, xs, below) -> tuple[Value, ...]:
    attrs = _permuted(node, ("shape",))
    return (_first(m, m.apply(node.op, (Var(m, below[0]),), attrs)).value,)


def _concat(m: GraphMath, node: Node, xs, below) -> tuple[Value, ...]:
    (axis,) = normalize_axes("concat", node.attributes["axis"], 4)
    attrs = {"axis": TO_LAST.index(axis)}
    return (_first(m, m.apply(node.op, _lasts(m, xs, below), attrs)).value,)


def _reverse(m: GraphMath, node: Node, xs, below) -> tuple[Value, ...]:
    axes = normalize_axes("reverse", node.attributes["axes"], 4)
    attrs = {"axes": tuple(sorted(TO_LAST.index(axis) for axis in axes))}
    return (_first(m, m.apply(node.op, (Var(m, below[0]),), attrs)).value,)


Mover = Callable[[GraphMath, Node, list[Var], list[Value | None]], tuple[Value, ...]]
ELEMENTWISE: Mover = _elementwise
MOVERS: dict[str, Mover] = {
    "reduce_sum": _reduce, "reduce_max": _reduce, "reduce_min": _reduce, "pad": _pad,
    "slice": _slice, "broadcast_to": _broadcast, "concat": _concat, "reverse": _reverse,
}
