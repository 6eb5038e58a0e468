"""Convolutions by 3x3 or 5x5 with stride 1 get Winograd's algorithm where it is the faster one.

The rule counts multiply-adds. A tile of 4x4 results of one pair of channels takes 36 in place of
144, with a kernel of 5x5 one of 2x2 results 36 in place of 100. But whole tiles cover the image,
and transforms cost what some further products would: so many additions for each input channel and
each output channel of a tile, shared by all channels on the other side.

Where both algorithms have been measured at the very sizes, the faster one is taken instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.rewrite import rewrite
from lamina.compiler.ir.types import Dim, substitute
from lamina.compiler.ops.control import SCAN
from lamina.compiler.ops.define import GraphMath, Var
from lamina.compiler.ops.window import padding_pairs, pair
from lamina.compiler.options import Measured

TILES = {3: 4, 5: 2}  # rows and columns of a tile of results, by those of the kernel
PRODUCTS = 36  # of a tile and a pair of channels
VECTOR = 16  # output channels that are computed together, where there are no more
PANEL = 32  # and where there are more
TRANSFORM = 400  # products that a tile's transforms are worth, for each channel of either side
GAIN = 1.1  # how many times as fast it must be by this count
LEAST_CHANNELS = VECTOR  # of either side
CONVOLUTIONS = ("conv2d", "conv2d_weight_grad")
WINOGRAD, DIRECT = "winograd", "direct"
PLAIN = {"stride": 1, "dilation": 1, "groups": 1}  # what Winograd's algorithm can run
TUNED = "tuned"  # what a Program says of `followed`


def winograd(graph: Graph, measured: Measured | None = None) -> Graph:
    """Choose the algorithm of every convolution and of every gradient of its weights."""
    return rewrite(graph, partial(_choose, measured))


def _choose(measured: Measured | None, builder: Builder, node: Node, inputs: tuple[Value, ...]
            ) -> tuple[Value, ...] | None:
    if node.op.name not in CONVOLUTIONS:
        return None
    attrs, types = node.attributes, [builder.type(value) for value in inputs]
    if attrs["algorithm"] != DIRECT or attrs["layout"] != "nhwc":
        return None
    gradient = node.op.name.endswith("_grad")
    result, weights = (types[1], node.type) if gradient else (node.type, types[1])
    times = times_of(measured, gradient, result.shape, weights.shape)
    if why_direct(result.shape, weights.shape, attrs, times):
        return None
    m = GraphMath(builder)
    x, padding = without_border(m, Var(m, inputs[0]), padding_pairs(attrs["padding"]))
    chosen = {**attrs, "algorithm": WINOGRAD, "padding": padding}
    return (m.apply(node.op, (x, Var(m, inputs[1])), chosen).value,)


def contraction_key(gradient: bool, result: tuple[Dim, ...], weights: tuple[Dim, ...],
                    measured: Measured) -> str:
    """The name under which the times of a convolution are kept; "" where a size is not known.

    `gradient`: of its weights; `result` is [N, H, W, K] and `weights` [K, C, KH, KW].
    """
    numbers = [substitute(size, measured.sizes) for size in (*result[:3], *weights[:3])]
    if not all(isinstance(number, int) for number in numbers):
        return ""
    images, rows, columns, outputs, channels, taps = numbers
    what = "weight gradient" if gradient else "convolution"
    new = "" if gradient or not measured.changing else ", new weights"
    return f"{what} {images}x{rows}x{columns} {channels} to {outputs} by {taps}{new}"


def times_of(measured: Measured | None, gradient: bool, result: tuple[Dim, ...],
             weights: tuple[Dim, ...]) -> Mapping[str, float] | None:
    """The seconds of both algorithms, if they were measured."""
    if measured is None:
        return None
    return measured.seconds.get(contraction_key(gradient, result, weights, measured))


def choices(graph: Graph) -> Iterator[tuple[bool, tuple[Dim, ...], tuple[Dim, ...]]]:
    """The convolutions that Winograd's algorithm can run: of weights?, result, weights."""
    for node in graph.nodes:
        if node.op is SCAN:
            assert node.body is not None
            yield from choices(node.body)
        if node.op.name in CONVOLUTIONS and node.attributes["layout"] == "nhwc":
            gradient = node.op.name.endswith("_grad")
            second = graph.type(node.inputs[1]).shape
            result, weights = (second, node.type.shape) if gradient else (node.type.shape, second)
            if not why_unfit(weights, node.attributes):
                yield gradient, result, weights


def followed(graph: Graph, measured: Measured) -> tuple[int, int]:
    """How many kinds of convolution have been measured, and for how many that decides otherwise.

    `graph` is what the choice is made for.
    """
    other: dict[str, bool] = {}
    for gradient, result, weights in choices(graph):
        key = contraction_key(gradient, result, weights, measured)
        times = measured.seconds.get(key)
        if times is not None:
            estimate = why_direct(result, weights, PLAIN)
            other[key] = bool(estimate) != bool(why_direct(result, weights, PLAIN, times))
    return len(other), sum(other.values())


def times_text(times: Mapping[str, float]) -> str:
    """Measured times in words."""
    listed = (f"{name} {times[name] * 1e3:,.3g} ms" for name in (WINOGRAD, DIRECT))
    return f"measured: {', '.join(listed)}"


def why_direct(result: tuple[Dim, ...], weights: tuple[Dim, ...], attrs,
               times: Mapping[str, float] | None = None) -> str:
    """Why a convolution (NHWC `result`, weights [K, C, KH, KW]) is direct, or "" if it is not.

    `times` were measured: then they decide, where Winograd's algorithm can run at all.
    """
    unfit = why_unfit(weights, attrs)
    if unfit:
        return unfit
    if times is not None:
        return "" if times[WINOGRAD] < times[DIRECT] else times_text(times)
    outputs, channels, taps, _ = weights
    rows, columns = result[1:3]
    gain = gain_of(rows, columns, channels, outputs, taps)  # type: ignore[arg-type]
    return "" if gain >= GAIN else f"whole tiles and transforms leave a gain of {gain:.2f}"


def why_unfit(weights: tuple[Dim, ...], attrs) -> str:
    """Why Winograd's algorithm cannot run a convolution, or "" if it can."""
    outputs, channels, *kernel = weights
    if kernel[0] != kernel[1] or kernel[0] not in TILES:
        return f"its kernel is {kernel[0]}x{kernel[1]}, not 3x3 or 5x5"
    if pair("conv2d", "stride", attrs["stride"]) != (1, 1):
        return "its stride is not 1"
    if pair("conv2d", "dilation", attrs["dilation"]) != (1, 1):
        return "it is dilated"
    if attrs["groups"] != 1:
        return "its channels are in groups"
    if not isinstance(outputs, int) or not isinstance(channels, int):
        return "the number of its channels is not known when it is compiled"
    if min(outputs, channels) < LEAST_CHANNELS:
        return f"fewer than {LEAST_CHANNELS} channels do not fill a vector"
    return ""


def gain_of(rows: Dim, columns: Dim, channels: int, outputs: int, taps: int = 3) -> float:
    """Direct multiply-adds over Winograd's with its transforms; sizes not known count as large."""
    used, tile = 1.0, TILES[taps]
    for size in (rows, columns):
        used *= size / (-(-size // tile) * tile) if isinstance(size, int) else 1.0
    direct = taps * taps * tile * tile * channels * _whole(outputs) * used
    return direct / tile_work(channels, outputs)


def tile_work(channels: int, outputs: int) -> int:
    """What a tile takes, in multiply-adds: those of whole panels, and its transforms."""
    outputs = _whole(outputs)
    return PRODUCTS * channels * outputs + TRANSFORM * (channels + outputs)


def _whole(outputs: int) -> int:
    """The output channels with what fills the last of them up: it takes as long."""
    return VECTOR if outputs <= VECTOR else -(-outputs // PANEL) * PANEL


def tiles_of(result: tuple[Dim, ...], taps: int) -> Dim:
    """How many tiles cover images [N, H, W, K], those that are cut included."""
    (images, rows, columns), tile = result[:3], TILES[taps]
    return images * ((rows + tile - 1) // tile) * ((columns + tile - 1) // tile)


def without_border(m: GraphMath, x: Var, padding) -> tuple[Var, tuple]:
    """What a border of zeros was put around, and the padding that stands for it."""
    node = m.builder.node(x.value)
    whole = whole_border(node, padding)
    return (x, padding) if whole is None else (Var(m, node.inputs[0]), whole)


def whole_border(node: Node, padding) -> tuple | None:
    """The padding that stands for the border that a node puts around an image too, if it does."""
    if node.op.name != "pad" or node.attributes["value"] != 0:
        return None
    lo, hi, interior = (node.attributes[name] for name in ("lo", "hi", "interior"))
    whole = all(type(amount) is int and amount >= 0 for amount in (*lo, *hi))
    if not whole or any(interior) or lo[0] or hi[0] or lo[3] or hi[3]:
        return None
    rows, columns = ((before + lo[axis], after + hi[axis])
                     for axis, (before, after) in zip((1, 2), padding, strict=True))
    return rows, columns
