"""Convolutions by 3x3 or 5x5 with stride 1 get Winograd's algorithm where it is the faster one.

The rule counts multiply-adds. A tile of 4x4 results of one pair of channels takes 36 in place of
144, one of 2x2 results 16 in place of 36, with a kernel of 5x5 one of 2x2 results 36 in place of
100. But whole tiles cover the image, and transforms cost what some further products would: so many
additions for each input channel and each output channel of a tile, shared by all channels on the
other side. The number of images is not counted: it is rarely known. With few images and many
channels bringing the weights takes the time, and small tiles, which need fewer, may be faster.

Where the algorithms have been measured at the very sizes, the fastest one is taken instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.rewrite import rewrite
from lamina.compiler.ir.types import Dim, substitute
from lamina.compiler.ops.control import SCAN
from lamina.compiler.ops.define import GraphMath, Var
from lamina.compiler.ops.window import Pads, padding_pairs, pair
from lamina.compiler.options import Measured

VECTOR = 16  # output channels that are computed together, where there are no more
PANEL = 32  # and where there are more
GAIN = 1.1  # how many times as fast it must be by this count
LEAST_CHANNELS = VECTOR  # of either side
CONVOLUTIONS = ("conv2d", "conv2d_weight_grad")
WINOGRAD, SMALL, DIRECT = "winograd", "winograd_2x2", "direct"
PLAIN = {"stride": 1, "dilation": 1, "groups": 1}  # what Winograd's algorithm can run
TUNED = "tuned"  # what a Program says of `followed`


@dataclass(frozen=True, slots=True)
class Variant:
    """F(tile x tile, taps x taps): of the rows and columns of a tile of results and of a kernel.

    `name` is what the attribute `algorithm` calls it; `transform` counts the products that a tile's
    transforms are worth, for each channel of either side.
    """

    name: str
    tile: int
    taps: int
    transform: int

    @property
    def across(self) -> int:
        """Rows and columns of a tile of inputs, and of points."""
        return self.tile + self.taps - 1

    @property
    def products(self) -> int:
        """How many a tile takes for a pair of channels."""
        return self.across * self.across

    @property
    def replaced(self) -> int:
        """How many it takes without Winograd."""
        return (self.tile * self.taps) ** 2

    def __str__(self) -> str:
        return f"F({self.tile}x{self.tile}, {self.taps}x{self.taps})"


VARIANTS = (Variant(WINOGRAD, 4, 3, 400), Variant(SMALL, 2, 3, 150), Variant(WINOGRAD, 2, 5, 400))


def variants_of(taps: Dim) -> tuple[Variant, ...]:
    """Those for a kernel of so many rows and columns."""
    return tuple(one for one in VARIANTS if one.taps == taps)


def variant_of(algorithm: str, taps: Dim) -> Variant | None:
    """The one that an attribute names, or None for the direct algorithm."""
    return next((one for one in variants_of(taps) if one.name == algorithm), None)


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
    variant = chosen(result.shape, weights.shape, attrs, times)
    if variant is None:
        return None
    m = GraphMath(builder)
    x, padding = without_border(builder, inputs[0], padding_pairs(attrs["padding"]))
    changed = {**attrs, "algorithm": variant.name, "padding": padding}
    return (m.apply(node.op, (Var(m, x), Var(m, inputs[1])), changed).value,)


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
    """The seconds of the algorithms by name, if they were measured."""
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
            estimate = chosen(result, weights, PLAIN)
            other[key] = estimate != chosen(result, weights, PLAIN, times)
    return len(other), sum(other.values())


def times_text(times: Mapping[str, float]) -> str:
    """Measured times in words."""
    listed = (f"{name} {times[name] * 1e3:,.3g} ms" for name in (WINOGRAD, SMALL, DIRECT)
              if name in times)
    return f"measured: {', '.join(listed)}"


def chosen(result: tuple[Dim, ...], weights: tuple[Dim, ...], attrs,
           times: Mapping[str, float] | None = None) -> Variant | None:
    """What runs a convolution (NHWC `result`, weights [K, C, KH, KW]), or None: the direct one.

    `times` were measured: then they decide, where Winograd's algorithm can run at all.
    """
    if why_unfit(weights, attrs):
        return None
    if times is not None:
        return variant_of(min(times, key=lambda name: times[name]), weights[2])
    best, gain = _best(result, weights)
    return best if gain >= GAIN else None


def why_direct(result: tuple[Dim, ...], weights: tuple[Dim, ...], attrs,
               times: Mapping[str, float] | None = None) -> str:
    """Why a convolution is direct, or "" if it is not; arguments as for `chosen`."""
    unfit = why_unfit(weights, attrs)
    if unfit or chosen(result, weights, attrs, times):
        return unfit
    if times is not None:
        return times_text(times)
    return f"whole tiles and transforms leave a gain of {_best(result, weights)[1]:.2f}"


def _best(result: tuple[Dim, ...], weights: tuple[Dim, ...]) -> tuple[Variant, float]:
    """The variant of the greatest gain, and that gain."""
    outputs, channels, taps, _ = weights
    gains = [(one, gain_of(one, *result[1:3], channels, outputs))  # type: ignore[arg-type]
             for one in variants_of(taps)]
    return max(gains, key=lambda pair: pair[1])


def why_unfit(weights: tuple[Dim, ...], attrs) -> str:
    """Why Winograd's algorithm cannot run a convolution, or "" if it can."""
    outputs, channels, *kernel = weights
    if kernel[0] != kernel[1] or not variants_of(kernel[0]):
        return f"its kernel is {kernel[0]}x{kernel[1]}, not 3x3 or 5x5"
    if apart := why_apart(attrs):
        return apart
    if not isinstance(outputs, int) or not isinstance(channels, int):
        return "the number of its channels is not known when it is compiled"
    if min(outputs, channels) < LEAST_CHANNELS:
        return f"fewer than {LEAST_CHANNELS} channels do not fill a vector"
    return ""


def why_apart(attrs) -> str:
    """Why neighbouring results do not sum over neighbouring pixels of all channels, or ""."""
    if pair("conv2d", "stride", attrs["stride"]) != (1, 1):
        return "its stride is not 1"
    if pair("conv2d", "dilation", attrs["dilation"]) != (1, 1):
        return "it is dilated"
    return "" if attrs["groups"] == 1 else "its channels are in groups"


def gain_of(variant: Variant, rows: Dim, columns: Dim, channels: int, outputs: int) -> float:
    """Direct multiply-adds over Winograd's with its transforms; sizes not known count as large."""
    used, tile = 1.0, variant.tile
    for size in (rows, columns):
        used *= size / (-(-size // tile) * tile) if isinstance(size, int) else 1.0
    direct = variant.replaced * channels * _whole(outputs) * used
    return direct / tile_work(variant, channels, outputs)


def tile_work(variant: Variant, channels: int, outputs: int) -> int:
    """What a tile takes, in multiply-adds: those of whole panels, and its transforms."""
    outputs = _whole(outputs)
    return variant.products * channels * outputs + variant.transform * (channels + outputs)


def _whole(outputs: int) -> int:
    """The output channels with what fills the last of them up: it takes as long."""
    return VECTOR if outputs <= VECTOR else -(-outputs // PANEL) * PANEL


def tiles_of(result: tuple[Dim, ...], tile: int) -> Dim:
    """How many tiles of so many rows and columns cover images [N, H, W, K], cut ones included."""
    images, rows, columns = result[:3]
    return images * ((rows + tile - 1) // tile) * ((columns + tile - 1) // tile)


def without_border(graph: Graph | Builder, x: Value, padding: Pads) -> tuple[Value, Pads]:
    """What a border of zeros was put around, and the padding that stands for it."""
    node = graph.node(x)
    if node.op.name != "pad" or node.attributes["value"] != 0:
        return x, padding
    lo, hi, interior = (node.attributes[name] for name in ("lo", "hi", "interior"))
    whole = all(type(amount) is int and amount >= 0 for amount in (*lo, *hi))
    if not whole or any(interior) or lo[0] or hi[0] or lo[3] or hi[3]:
        return x, padding
    rows, columns = ((before + lo[axis], after + hi[axis])
                     for axis, (before, after) in zip((1, 2), padding, strict=True))
    return node.inputs[0], (rows, columns)
