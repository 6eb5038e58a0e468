"""Convolutions by 1x1 are matrix products over the pixels, and so are the gradients of weights."""

from __future__ import annotations

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.rewrite import rewrite
from lamina.compiler.ir.types import product
from lamina.compiler.ops.define import GraphMath, Var
from lamina.compiler.ops.window import padding_pairs, pair


def pointwise(graph: Graph) -> Graph:
    """Replace convolutions of channels-last images that mix nothing but channels."""
    return rewrite(graph, _as_product)


def _as_product(builder: Builder, node: Node, inputs: tuple[Value, ...]
                ) -> tuple[Value, ...] | None:
    if node.op.name not in ("conv2d", "conv2d_weight_grad") or \
            node.attributes["layout"] != "nhwc" or node.attributes["groups"] != 1 or \
            any(amount for side in padding_pairs(node.attributes["padding"]) for amount in side):
        return None
    m = GraphMath(builder)
    x, other = (Var(m, value) for value in inputs)
    if node.op.name == "conv2d":
        if other.shape[2:] != (1, 1):
            return None
        weights = m.reshape(other, shape=other.shape[:2])
        return (m.matmul(_seen(m, x, node.type.shape, node), m.transpose(weights, perm=(1, 0))
                         ).value,)
    if node.type.shape[2:] != (1, 1):
        return None
    x = _seen(m, x, other.shape, node)
    pixels = product(x.shape[:3])
    gradient = m.reshape(other, shape=(pixels, other.shape[3]))
    found = m.matmul(m.transpose(gradient, perm=(1, 0)), m.reshape(x, shape=(pixels, x.shape[3])))
    return (m.reshape(found, shape=node.type.shape).value,)


def _seen(m: GraphMath, x: Var, result: tuple, node: Node) -> Var:
    """The pixels that a strided convolution looks at."""
    rows, columns = pair("conv2d", "stride", node.attributes["stride"])
    if (rows, columns) == (1, 1):
        return x
    stops = ((result[1] - 1) * rows + 1, (result[2] - 1) * columns + 1)
    return m.slice(x, starts=(0, 0, 0, 0), stops=(x.shape[0], *stops, x.shape[3]),
                   steps=(1, rows, columns, 1))
