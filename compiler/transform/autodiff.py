"""Reverse-mode differentiation: gradients as more nodes of the same graph.

Walks the nodes backwards from a scalar loss, asks each operator's `vjp` for the gradients of its
operands, and sums where a value was used more than once. Composites without a `vjp` are expanded
first, so their gradient is derived from their body. Only values that lead to what is asked for
are touched: a frozen parameter costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.rewrite import copy_into, rewrite
from lamina.compiler.ir.types import FLOATS
from lamina.compiler.ops.control import SCAN
from lamina.compiler.ops.define import GraphMath, Var
from lamina.compiler.transform.expand import expand
from lamina.compiler.transform.scans import gradient, keep_residuals, leave_loops


def expand_underived(graph: Graph) -> Graph:
    """Expand every composite that has no gradient rule of its own, until none is left."""

    def rule(builder, node, inputs):
        return expand(builder, node, inputs) if node.op.body and node.op.vjp is None else None

    while any(node.op.body and node.op.vjp is None for node in graph.nodes):
        graph = rewrite(graph, rule)
    return graph


def add_gradients(graph: Graph, loss: str, wrt: Mapping[str, Value]) -> Graph:
    """The graph with one more output `grad:NAME` for each entry of `wrt`.

    `loss` names a scalar output; `wrt` gives names to values of `graph`, usually its parameters.
    A value that the loss does not depend on gets a gradient of zeros.
    """
    names = {f"wrt:{name}": value for name, value in wrt.items()}
    named = Graph(graph.name, graph.nodes, (*graph.outputs, *names.items()), graph.scopes)
    ready = keep_residuals(leave_loops(expand_underived(named)), propagate)
    builder = Builder(graph.name)
    values = copy_into(builder, ready)
    found = gradients(builder, ready, values, ready.output(loss),
                      [ready.output(name) for name in names])
    outputs = [(name, values[value]) for name, value in ready.outputs if name not in names]
    outputs += [(f"grad:{name}", found[index]) for index, name in enumerate(wrt)]
    return builder.finish(outputs)


def gradients(builder: Builder, graph: Graph, values: Mapping[Value, Value], loss: Value,
              wrt: Sequence[Value]) -> list[Value]:
    """Emit the gradients of `loss` with respect to values of `graph`, already in `builder`."""
    one = GraphMath(builder).lift(1.0, graph.type(loss).dtype)
    return propagate(builder, graph, values, {loss: one}, wrt)


def propagate(builder: Builder, graph: Graph, values: Mapping[Value, Value],
              seeds: Mapping[Value, Var], wrt: Sequence[Value]) -> list[Value]:
    """Emit the gradients of values of `graph`, already in `builder`, from those of others."""
    needed = {value.node for value in wrt}
    for node in graph.nodes:  # and all that depends on those
        if any(value.node in needed for value in node.inputs):
            needed.add(node.id)
    m = GraphMath(builder)
    cotangents = dict(seeds)
    for node in reversed(graph.nodes):
        cts = [cotangents.get(Value(node.id, port)) for port in range(len(node.outs))]
        if node.id not in needed or not node.inputs or all(ct is None for ct in cts):
            continue
        with builder.at(node.span, node.path):
            _propagate(m, graph, node, cts, values, needed, cotangents)
    return [_result(m, graph, values, value, cotangents.get(value)).value for value in wrt]


def _propagate(m: GraphMath, graph: Graph, node: Node, cts: list[Var | None], values, needed,
               cotangents) -> None:
    operands = [Var(m, values[value]) for value in node.inputs]
    wanted = [value.node in needed and graph.type(value).dtype in FLOATS for value in node.inputs]
    if not any(wanted):
        return
    cts = [ct if ct is None else _broadcast(m, ct, type.shape)
           for ct, type in zip(cts, node.outs, strict=True)]
    results = [Var(m, values[Value(node.id, port)]) for port in range(len(node.outs))]
    if node.op is SCAN:
        grads = gradient(m, node, operands, results, cts, wanted, propagate)
    elif node.op.vjp is None:
        raise NotImplementedError(f"`{node.op.name}` has no gradient")
    else:
        grads = node.op.vjp(m, cts[0], results[0], *operands, **node.attributes)
    for value, operand, want, grad in zip(node.inputs, operands, wanted, grads, strict=True):
        if not want or grad is None:
            continue
        grad = sum_to(m, m.lift(grad), operand.shape)
        before = cotangents.get(value)
        cotangents[value] = grad if before is None else before + grad


def _result(m: GraphMath, graph: Graph, values, value: Value, grad: Var | None) -> Var:
    shape, dtype = graph.type(value).shape, graph.type(value).dtype
    zero = m.lift(0.0, dtype)
    return _broadcast(m, zero if grad is None else grad, shape)


def _broadcast(m: GraphMath, x: Var, shape) -> Var:
    return x if x.shape == tuple(shape) else m.broadcast_to(x, shape=tuple(shape))


def sum_to(m: GraphMath, x: Var, shape) -> Var:
    """Undo broadcasting: sum `x` over the axes along which `shape` was repeated."""
    if x.shape == tuple(shape):
        return x
    lead = len(x.shape) - len(shape)
    if lead < 0:  # a gradient smaller than its operand stands for equal entries
        return m.broadcast_to(x, shape=tuple(shape))
    axes = tuple(range(lead)) + tuple(
        lead + i for i, n in enumerate(shape) if n == 1 and x.shape[lead + i] != 1)
    total = m.reduce_sum(x, axes=axes) if axes else x
    return _broadcast(m, total if total.shape == tuple(shape) else _reshaped(m, total, shape, lead),
                      shape)


def _reshaped(m: GraphMath, x: Var, shape, lead: int) -> Var:
    return m.reshape(x, shape=x.shape[lead:]) if lead else x
