"""Composites become the operators that kernels exist for."""

from __future__ import annotations

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.rewrite import rewrite
from lamina.compiler.ir.types import product
from lamina.compiler.ops.conv import padding_pairs
from lamina.compiler.ops.define import GraphMath, Var
from lamina.compiler.transform.expand import expand_all


def decompose(graph: Graph) -> Graph:
    """Expand all composites, make padding explicit, flatten the batch of plain matrix products."""
    return rewrite(expand_all(graph), _lower_contraction)


def _lower_contraction(builder: Builder, node: Node, inputs) -> tuple[Value, ...] | None:
    m = GraphMath(builder)
    operands = [Var(m, value) for value in inputs]
    if node.op.name in ("conv2d", "conv2d_weight_grad"):
        return _explicit_padding(m, node, operands)
    if node.op.name == "matmul":
        return _flat_matmul(m, *operands)
    return None


def _explicit_padding(m: GraphMath, node: Node, operands: list[Var]) -> tuple[Value, ...] | None:
    attrs = node.attributes
    pairs = padding_pairs(attrs["padding"])
    if not any(amount for pair in pairs for amount in pair):
        return None
    (top, bottom), (left, right) = pairs
    lo, hi = (0, 0, top, left), (0, 0, bottom, right)
    if attrs["layout"] == "nhwc":
        lo, hi = (0, top, left, 0), (0, bottom, right, 0)
    operands[0] = m.pad(operands[0], lo=lo, hi=hi)
    return (m.apply(node.op, tuple(operands), {**attrs, "padding": 0}).value,)


def _flat_matmul(m: GraphMath, a: Var, b: Var) -> tuple[Value, ...] | None:
    """[..., M, K] @ [K, N] is one product of [... * M, K]."""
    if len(b.shape) != 2 or len(a.shape) <= 2:
        return None
    rows = product(a.shape[:-1])
    flat = m.matmul(m.reshape(a, shape=(rows, a.shape[-1])), b)
    return (m.reshape(flat, shape=(*a.shape[:-1], b.shape[-1])).value,)
