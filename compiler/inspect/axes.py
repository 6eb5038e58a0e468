"""The field along one axis, and how each windowed operator changes it.

`size` input positions, `stride` positions between neighbouring units, and `start`, the centre of
the first unit's field (0 is the centre of the first input position). Araujo, Norris and Sim,
"Computing receptive fields of convolutional neural networks" (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from lamina.compiler.ir.graph import Graph, Node
from lamina.compiler.ir.types import Dim
from lamina.compiler.ops.window import SPATIAL, line_padding, padding_pairs, pair


@dataclass(frozen=True, slots=True)
class Axis:
    """The field along one axis. After upsampling units lie closer than positions: stride 1/2."""

    size: int
    stride: int | Fraction
    start: float

    @property
    def padding(self) -> float:
        """How many positions the first unit's field begins before the input (negative: after)."""
        return (self.size - 1) / 2 - self.start

    def window(self, kernel: int, stride: int, before: Dim, dilation: int = 1) -> Axis:
        """The field after a window of `kernel` positions with `before` positions of padding."""
        reach = dilation * (kernel - 1)
        padding = before if isinstance(before, int) else 0
        return Axis(math.ceil(self.size + reach * self.stride), _whole(self.stride * stride),
                    float(self.start + (reach / 2 - padding) * self.stride))

    def spread(self, factor: int, seen: int, shift: float) -> Axis:
        """The field where each position becomes `factor` units, each of which sees `seen` of them.

        `shift` is where the first unit's centre lies, in new units from the first position's.
        """
        return Axis(math.ceil(self.size + (seen - 1) * self.stride),
                    _whole(Fraction(self.stride) / factor),
                    float(self.start + shift * self.stride / factor))

    def cut(self, start: Dim, step: int) -> Axis:
        """The field after positions before `start` are cut off and every `step`th is kept."""
        first = start if isinstance(start, int) else 0
        return Axis(self.size, _whole(self.stride * step), float(self.start + first * self.stride))

    def joined(self, other: Axis) -> Axis:
        """The field of a unit that sees both: from the first to the last position of either."""
        low = min(self.start - (self.size - 1) / 2, other.start - (other.size - 1) / 2)
        high = max(self.start + (self.size - 1) / 2, other.start + (other.size - 1) / 2)
        return Axis(int(high - low) + 1, max(self.stride, other.stride), (low + high) / 2)


FIRST = Axis(1, 1, 0.0)  # of the input itself
Change = Callable[[Axis], Axis | None]  # None: a unit sees the whole axis


def _whole(stride: int | Fraction) -> int | Fraction:
    """A stride as an integer where it is one."""
    return int(stride) if stride == int(stride) else stride


def changes(graph: Graph, node: Node) -> dict[int, Change]:
    """How a windowed operator changes the field, by the axis of its first operand."""
    return RULES[node.op.name](graph, node, node.attributes)


def _window(kernel: int, stride: int, before: Dim, dilation: int = 1) -> Change:
    return lambda axis: axis.window(kernel, stride, before, dilation)


def _cut(start: Dim, step: int) -> Change:
    return lambda axis: axis.cut(start, step)


def _spread(factor: int, seen: int, shift: float) -> Change:
    return lambda axis: axis.spread(factor, seen, shift)


def _whole_axis(axis: Axis) -> None:
    return None


def _image_windows(attrs: Mapping, kernel, stride, dilation=1) -> dict[int, Change]:
    strides, dilations = pair("", "stride", stride), pair("", "dilation", dilation)
    borders = padding_pairs(attrs["padding"])
    return {axis: _window(kernel[i], strides[i], borders[i][0], dilations[i])
            for i, axis in enumerate(SPATIAL[attrs["layout"]])}


def _convolution(graph: Graph, node: Node, attrs: Mapping) -> dict[int, Change]:
    kernel = graph.type(node.inputs[1]).shape[2:]
    channels = 1 if attrs["layout"] == "nchw" else 3
    windows = _image_windows(attrs, kernel, attrs["stride"], attrs["dilation"])
    return {channels: _whole_axis, **windows}


def _pool(graph: Graph, node: Node, attrs: Mapping) -> dict[int, Change]:
    kernel = pair("", "kernel", attrs["kernel"])
    return _image_windows(attrs, kernel, kernel if attrs["stride"] is None else attrs["stride"])


def _line_convolution(graph: Graph, node: Node, attrs: Mapping) -> dict[int, Change]:
    kernel = graph.type(node.inputs[1]).shape[2]
    before, _ = line_padding("", attrs["padding"])
    assert isinstance(kernel, int)
    return {1: _whole_axis, 2: _window(kernel, attrs["stride"], before, attrs["dilation"])}


def _line_pool(graph: Graph, node: Node, attrs: Mapping) -> dict[int, Change]:
    kernel, stride = attrs["kernel"], attrs["stride"]
    before, _ = line_padding("", attrs["padding"])
    return {2: _window(kernel, kernel if stride is None else stride, before)}


def _pad(graph: Graph, node: Node, attrs: Mapping) -> dict[int, Change]:
    between = attrs["interior"] or (0,) * node.type.rank
    return {axis: _whole_axis if inner else _window(1, 1, low)
            for axis, (low, inner) in enumerate(zip(attrs["lo"], between, strict=True))}


def _slice(graph: Graph, node: Node, attrs: Mapping) -> dict[int, Change]:
    return {axis: _cut(start, step)
            for axis, (start, step) in enumerate(zip(attrs["starts"], attrs["steps"],
                                                     strict=True))}


def _conv_transpose(graph: Graph, node: Node, attrs: Mapping) -> dict[int, Change]:
    kernel = graph.type(node.inputs[1]).shape[2:]
    strides, dilations = pair("", "stride", attrs["stride"]), pair("", "", attrs["dilation"])
    found: dict[int, Change] = {1: _whole_axis}
    for axis, k, s, d, (before, _) in zip((2, 3), kernel, strides, dilations,
                                          padding_pairs(attrs["padding"]), strict=True):
        assert isinstance(k, int) and isinstance(before, int)
        seen = max(len({t for t in range(k) if (t * d) % s == phase}) for phase in range(s))
        far = 1 + (seen - 1) * d // math.gcd(s, d)  # from the first input seen to the last
        found[axis] = _spread(s, far, before - d * (k - 1) / 2)
    return found


def _upsample(graph: Graph, node: Node, attrs: Mapping) -> dict[int, Change]:
    seen = 1 if attrs["mode"] == "nearest" else 2
    return {axis: _spread(s, seen if s > 1 else 1, -(s - 1) / 2)
            for axis, s in zip((2, 3), pair("", "scale", attrs["scale"]), strict=True)}


def _adaptive(graph: Graph, node: Node, attrs: Mapping) -> dict[int, Change]:
    counts = pair("", "windows", attrs["windows"])
    sizes = graph.type(node.inputs[0]).shape[2:]
    return {axis: _even_windows(count, size)
            for axis, count, size in zip((2, 3), counts, sizes, strict=True)}


def _even_windows(count: int, size: Dim) -> Change:
    if count == 1 or not isinstance(size, int):
        return _whole_axis
    widest = max(-(-(i + 1) * size // count) - i * size // count for i in range(count))
    return lambda axis: Axis(math.ceil(axis.size + (widest - 1) * axis.stride),
                             _whole(axis.stride * Fraction(size, count)),
                             float(axis.start + (size / count - 1) / 2 * axis.stride))


LINES = {"conv1d": _line_convolution, "max_pool1d": _line_pool, "avg_pool1d": _line_pool}
RULES = {"conv2d": _convolution, "max_pool2d": _pool, "avg_pool2d": _pool, "pad": _pad,
         "slice": _slice, "conv_transpose2d": _conv_transpose, "upsample2d": _upsample,
         "adaptive_avg_pool2d": _adaptive, **LINES}
