"""Convolutions by 1x1 are matrix products over the pixels, and so are the gradients of weights.

Taps that meet nothing but a border of zeros are left out first: on an image of 1x1 a kernel of 3x3
is its middle.
"""

from __future__ import annotations

from dataclasses import replace

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.rewrite import rewrite
from lamina.compiler.ir.types import Dim, product
from lamina.compiler.ops.define import GraphMath, Var
from lamina.compiler.ops.window import Pads, padding_pairs, pair
from lamina.compiler.transform.winograd import without_border

CONVOLUTIONS = ("conv2d", "conv2d_weight_grad")
Taps = tuple[tuple[int, int], tuple[int, int]]  # of rows and of columns: the first, behind the last


def pointwise(graph: Graph) -> Graph:
    """Replace convolutions of channels-last images that mix nothing but channels."""
    return rewrite(rewrite(graph, _without_idle_taps), _as_product)


def kernel_used(graph: Graph, node: Node) -> tuple[int, int]:
    """Rows and columns of the taps that meet pixels, of a convolution or its weights' gradient."""
    (top, bottom), (left, right) = _shrunk(graph, node)[2]
    return bottom - top, right - left


def _shrunk(graph: Graph | Builder, node: Node) -> tuple[Value, Pads, Taps]:
    """A convolution's image without its border, that of the taps that meet pixels, and those."""
    attrs, name = node.attributes, node.op.name
    x, border = without_border(graph, node.inputs[0], padding_pairs(attrs["padding"]))
    other = graph.type(node.inputs[1]).shape
    result, kernel = (other, attrs["kernel"]) if name.endswith("_grad") else \
        (node.type.shape, other[2:])
    steps, spread = pair(name, "stride", attrs["stride"]), pair(name, "dilation", attrs["dilation"])
    taps, left = [], []
    for axis in (0, 1):
        size, count, length = graph.type(x).shape[axis + 1], result[axis + 1], kernel[axis]
        (before, after), far = border[axis], spread[axis]
        first, end = _met(size, count, length, before, steps[axis], far)
        rest = before - first * far, after - (length - end) * far
        if min(rest) < 0:
            first, end, rest = 0, length, border[axis]
        taps.append((first, end))
        left.append(rest)
    return x, (left[0], left[1]), (taps[0], taps[1])


def _met(size: Dim, count: Dim, length: int, before: int, step: int, far: int) -> tuple[int, int]:
    """The first of `length` taps, `far` apart, that meets one of `size` pixels, and the end."""
    if not isinstance(size, int) or not isinstance(count, int):
        return 0, length
    met = [tap for tap in range(length) if any(
        0 <= number * step + tap * far - before < size for number in range(count))]
    return (met[0], met[-1] + 1) if met else (0, length)


def _without_idle_taps(builder: Builder, node: Node, inputs: tuple[Value, ...]
                       ) -> tuple[Value, ...] | None:
    """The convolution by the taps that meet pixels; the gradients of all others are zero."""
    if node.op.name not in CONVOLUTIONS or node.attributes["layout"] != "nhwc":
        return None
    x, border, taps = _shrunk(builder, replace(node, inputs=inputs))
    weights = node.type.shape if node.op.name.endswith("_grad") else builder.type(inputs[1]).shape
    starts, stops = (0, 0, *(first for first, _ in taps)), (*weights[:2], *(end for _, end in taps))
    if stops == weights and not any(starts):
        return None
    m = GraphMath(builder)
    image, other = Var(m, x), Var(m, inputs[1])
    lo, hi = ((0, *(side[end] for side in border), 0) for end in (0, 1))
    if any((*lo, *hi)):
        image = m.pad(image, lo=lo, hi=hi, interior=(0, 0, 0, 0), value=0.0)
    attrs = {**node.attributes, "padding": 0}
    if node.op.name == "conv2d":
        kept = m.slice(other, starts=starts, stops=stops, steps=(1, 1, 1, 1))
        return (m.apply(node.op, (image, kept), attrs).value,)
    attrs["kernel"] = tuple(end - first for first, end in taps)
    found = m.apply(node.op, (image, other), attrs)
    behind = tuple(size - stop for size, stop in zip(weights, stops, strict=True))
    return (m.pad(found, lo=starts, hi=behind, interior=(0, 0, 0, 0), value=0.0).value,)


def _as_product(builder: Builder, node: Node, inputs: tuple[Value, ...]
                ) -> tuple[Value, ...] | None:
    if node.op.name not in CONVOLUTIONS or node.attributes["layout"] != "nhwc":
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
