"""Convolutions by 1x1 are matrix products over the pixels, and so are the gradients of weights."""

from __future__ import annotations

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.rewrite import rewrite
from lamina.compiler.ir.types import Dim, product
from lamina.compiler.ops.define import GraphMath, Var
from lamina.compiler.ops.window import padding_pairs, pair


def pointwise(graph: Graph) -> Graph:
    """Replace convolutions of channels-last images that mix nothing but channels."""
    return rewrite(graph, _as_product)


def _as_product(builder: Builder, node: Node, inputs: tuple[Value, ...]
                ) -> tuple[Value, ...] | None:
    if node.op.name not in ("conv2d", "conv2d_weight_grad") or node.attributes["layout"] != "nhwc":
        return None
    m = GraphMath(builder)
    x, other = (Var(m, value) for value in inputs)
    filters = other.shape if node.op.name == "conv2d" else node.type.shape
    if why_no_product(filters, node.attributes):
        return None
    if node.op.name == "conv2d":
        weights = m.reshape(other, shape=other.shape[:2])
        return (m.matmul(_seen(m, x, node.type.shape, node), m.transpose(weights, perm=(1, 0))
                         ).value,)
    x = _seen(m, x, other.shape, node)
    pixels = product(x.shape[:3])
    gradient = m.reshape(other, shape=(pixels, other.shape[3]))
    found = m.matmul(m.transpose(gradient, perm=(1, 0)), m.reshape(x, shape=(pixels, x.shape[3])))
    return (m.reshape(found, shape=node.type.shape).value,)


def why_no_product(weights: tuple[Dim, ...], attrs) -> str:
    """Why a convolution (weights [K, C, KH, KW]) is no matrix product, or "" if it is one."""
    rows, columns = weights[2:]
    if (rows, columns) != (1, 1):
        return f"its kernel is {rows}x{columns}, not 1x1"
    if attrs["groups"] != 1:
        return "its channels are in groups"
    if any(amount for side in padding_pairs(attrs["padding"]) for amount in side):
        return "a border of zeros is around its image"
    return ""


def _seen(m: GraphMath, x: Var, result: tuple, node: Node) -> Var:
    """The pixels that a strided convolution looks at."""
    rows, columns = pair("conv2d", "stride", node.attributes["stride"])
    if (rows, columns) == (1, 1):
        return x
    stops = ((result[1] - 1) * rows + 1, (result[2] - 1) * columns + 1)
    return m.slice(x, starts=(0, 0, 0, 0), stops=(x.shape[0], *stops, x.shape[3]),
                   steps=(1, rows, columns, 1))
