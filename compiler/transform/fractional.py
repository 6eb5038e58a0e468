"""Convolutions of an image with zeros between its pixels: the zeros are skipped.

They arise as the gradient of a strided convolution by its input, and as a transposed convolution.
"""

from __future__ import annotations

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.rewrite import rewrite
from lamina.compiler.ops.conv import MOST_PHASES
from lamina.compiler.ops.define import GraphMath, Var
from lamina.compiler.ops.window import padding_pairs, pair


def fractional(graph: Graph) -> Graph:
    """Replace convolutions of channels-last images that read zeros between pixels."""
    return rewrite(graph, _without_zeros)


def _without_zeros(builder: Builder, node: Node, inputs: tuple[Value, ...]
                   ) -> tuple[Value, ...] | None:
    if node.op.name != "conv2d" or not _plain(node):
        return None
    spread = builder.node(inputs[0])
    if spread.op.name != "pad" or spread.attributes["value"] != 0:
        return None
    lo, hi, gaps = (spread.attributes[name] for name in ("lo", "hi", "interior"))
    if not any(gaps) or any(side[axis] for side in (lo, hi, gaps) for axis in (0, 3)):
        return None
    stride = (gaps[1] + 1, gaps[2] + 1)
    if stride[0] * stride[1] > MOST_PHASES or not all(type(amount) is int for amount in lo[1:3]):
        return None
    # What is left of the border: whole strides, of which the result begins `shift` later. Without
    # any pixel there is one gap less, so that the border must do alone.
    before = tuple(-(-lo[axis] // step) for axis, step in zip((1, 2), stride, strict=True))
    after = tuple(-(-hi[axis] // step) for axis, step in zip((1, 2), stride, strict=True))
    shift = tuple(step * border - lo[axis]
                  for axis, step, border in zip((1, 2), stride, before, strict=True))
    m = GraphMath(builder)
    x = Var(m, spread.inputs[0])
    if any(type(amount) is not int or amount for amount in (*before, *after)):
        x = m.pad(x, lo=(0, *before, 0), hi=(0, *after, 0))
    return (m.fractional_conv2d(x, Var(m, inputs[1]), stride=stride, shift=shift,
                                size=node.type.shape[1:3], groups=node.attributes["groups"]
                                ).value,)


def _plain(node: Node) -> bool:
    """Whether a convolution is channels-last, with stride 1, no border and no dilation."""
    attrs = node.attributes
    return attrs["layout"] == "nhwc" and attrs["algorithm"] == "direct" and \
        pair("conv2d", "stride", attrs["stride"]) == (1, 1) and \
        pair("conv2d", "dilation", attrs["dilation"]) == (1, 1) and \
        not any(amount for side in padding_pairs(attrs["padding"]) for amount in side)
