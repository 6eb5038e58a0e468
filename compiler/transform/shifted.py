"""Convolutions whose outputs fill vectors badly may be computed as sums that are shifted and added.

A direct convolution computes a vector of outputs at a time; where a pixel has few, those of its
neighbours with them, which together look at more of the image than each of them needs. Instead all
columns of the kernel and all outputs can lie side by side: each pixel of the image is multiplied by
them at once, and the sums are added where they belong. The additions have their price, but vectors
are fuller, and what a border of zeros would give is not computed.

The rule counts multiply-adds of whole vectors in both algorithms, and for an addition so many more.
"""

from __future__ import annotations

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.rewrite import rewrite
from lamina.compiler.ir.types import Dim
from lamina.compiler.ops.define import GraphMath, Var
from lamina.compiler.ops.window import padding_pairs
from lamina.compiler.transform.winograd import DIRECT, PANEL, VECTOR, why_apart, without_border

SHIFTED = "shifted"
ADDING = 4  # multiply-adds that it is worth to add a sum to its place
GAIN = 1.1  # how many times as fast it must be by this count
LARGE = 1024  # rows or columns that stand for a number that is not known

Sides = tuple[tuple[int, int], tuple[int, int]]  # of a border: (top, bottom), (left, right)


def shifted(graph: Graph) -> Graph:
    """Choose between both ways for every direct convolution."""
    return rewrite(graph, _choose)


def _choose(builder: Builder, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
    attrs = node.attributes
    if node.op.name != "conv2d" or attrs["algorithm"] != DIRECT or attrs["layout"] != "nhwc":
        return None
    x, padding = without_border(builder, inputs[0], padding_pairs(attrs["padding"]))
    if why_not_shifted(node.type.shape, builder.type(inputs[1]).shape, attrs, padding):
        return None
    m, chosen = GraphMath(builder), {**attrs, "algorithm": SHIFTED, "padding": padding}
    return (m.apply(node.op, (Var(m, x), Var(m, inputs[1])), chosen).value,)


def why_not_shifted(result: tuple[Dim, ...], weights: tuple[Dim, ...], attrs, padding: Sides
                    ) -> str:
    """Why a convolution (NHWC `result`, weights [K, C, KH, KW]) is direct, or "" if it is not."""
    outputs, channels, rows, columns = weights
    if apart := why_apart(attrs):
        return apart
    if not all(isinstance(size, int) and size > 0 for size in weights):
        return "the number of its channels is not known when it is compiled"
    assert isinstance(rows, int) and isinstance(columns, int)
    if any(amount >= taps for side, taps in zip(padding, (rows, columns), strict=True)
           for amount in side):
        return "its border is wider than its kernel reaches"
    gain = shifting_gain(result[1:3], weights, padding)  # type: ignore[arg-type]
    return "" if gain >= GAIN else f"additions and whole vectors leave a gain of {gain:.2f}"


def shifting_gain(result: tuple[Dim, Dim], weights: tuple[int, ...], padding: Sides) -> float:
    """Multiply-adds of a direct convolution over those of shifted sums with their additions.

    `result` has so many rows and columns; sizes that are not known count as large.
    """
    rows, columns = (size if isinstance(size, int) else LARGE for size in result)
    outputs, channels, taps, across = weights
    direct = rows * columns * channels * taps * _direct_lanes(columns, outputs, across)
    return direct / max(1, shifting_work(rows, columns, weights, padding))


def shifting_work(rows: int, columns: int, weights: tuple[int, ...], padding: Sides) -> int:
    """What an image's shifted sums take, in multiply-adds: whole vectors, and their additions."""
    outputs, channels, _, across = weights
    met, pixels = _met(rows, weights, padding), _pixels(columns, weights, padding)
    return (met * channels + rows * ADDING) * pixels * _whole(across * outputs)


def shifting_products(rows: int, columns: int, weights: tuple[int, ...], padding: Sides) -> int:
    """The multiply-adds of an image of so many rows and columns of results: none with a border."""
    outputs, channels, _, across = weights
    return _met(rows, weights, padding) * _pixels(columns, weights, padding) * \
        channels * across * outputs


def _met(rows: int, weights: tuple[int, ...], padding: Sides) -> int:
    """How often a row of results and a row of the kernel meet a row of the image."""
    (top, bottom), taps = padding[0], weights[2]
    high = rows + taps - 1 - top - bottom
    return sum(0 <= row + tap - top < high for row in range(rows) for tap in range(taps))


def _pixels(columns: int, weights: tuple[int, ...], padding: Sides) -> int:
    """The columns of the image."""
    return columns + weights[3] - 1 - sum(padding[1])


def _direct_lanes(columns: int, outputs: int, across: int) -> float:
    """Multiply-adds of whole vectors for a pixel, a channel and a row of the kernel."""
    fitting = [n for n in range(1, VECTOR // outputs + 1) if columns % n == 0]
    return min((_whole(n * outputs) * (across + n - 1) / n for n in fitting),
               default=_whole(outputs) * across)


def _whole(outputs: int) -> int:
    """Lanes of the vectors that hold so many numbers."""
    return VECTOR if outputs <= VECTOR else -(-outputs // PANEL) * PANEL
