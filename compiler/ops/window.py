"""Windows that slide over an image: sizes, padding, patches; shared by convolution and pooling.

The number of windows along an axis is (in - covered + padding on both sides) // stride + 1, where
a kernel of size k covers dilation * (k - 1) + 1. Images are [N, C, H, W] (layout "nchw") or
[N, H, W, C] ("nhwc"). Dumoulin and Visin, "A guide to convolution arithmetic" (2016).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lamina.compiler.ir.op import OpError
from lamina.compiler.ir.types import Dim, TensorType, shape_text

SPATIAL = {"nchw": (2, 3), "nhwc": (1, 2)}
CHANNELS = {"nchw": 1, "nhwc": 3}
Pads = tuple[tuple[Dim, Dim], tuple[Dim, Dim]]


def pair(name: str, attribute: str, value: Any, least: int = 1) -> tuple[int, int]:
    """An int or a pair, for (H, W). Raises OpError E228 for anything else, E224 below `least`."""
    both = value if isinstance(value, tuple) else (value, value)
    if len(both) != 2 or not all(type(one) is int for one in both):
        raise OpError("E228", f"`{name}`: {attribute} is {value}, not a whole number or a pair",
                      f"write {attribute}=1 or {attribute}=(1, 2), for height and width")
    check_least(name, attribute, both, least)
    return both


def check_least(name: str, attribute: str, values: tuple, least: int) -> None:
    """Raise OpError E224 for a value below `least`."""
    for value in values:
        if isinstance(value, int) and value < least:
            raise OpError("E224", f"`{name}`: {attribute} is {value}, less than {least}",
                          f"{attribute} must be {least} or more")


def _is_whole_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(type(n) is int for n in value)


def padding_pairs(padding: Any, name: str = "conv2d") -> Pads:
    """Padding as ((top, bottom), (left, right)) from an int, (vertical, horizontal) or that."""
    if isinstance(padding, tuple) and any(isinstance(one, tuple) for one in padding):
        if len(padding) != 2 or not all(_is_whole_pair(one) for one in padding):
            raise OpError("E228", f"`{name}`: padding is {padding}, not a whole number, a pair, "
                          "or a pair of pairs", "write padding=((top, bottom), (left, right))")
        check_least(name, "padding", (*padding[0], *padding[1]), 0)
        return padding
    vertical, horizontal = pair(name, "padding", padding, 0)
    return (vertical, vertical), (horizontal, horizontal)


def _room(size: Dim, kernel: int, pad: tuple[Dim, Dim], dilation: int) -> str:
    """The smallest changes that make one window fit."""
    there = size + pad[0] + pad[1]
    covered = dilation * (kernel - 1) + 1
    assert isinstance(there, int)
    largest = (there - 1) // dilation + 1
    smaller = f"a kernel of at most {largest}, " if largest > 0 else ""
    more = (covered - there + 1) // 2
    padding = f"padding={pad[0] + more}" if pad[0] == pad[1] else f"{2 * more} more of padding"
    return f"it fits with {smaller}{padding}, or an input of {size + covered - there} here"


def window_size(name: str, size: Dim, kernel: int, stride: int, pad: tuple[Dim, Dim],
                dilation: int = 1) -> Dim:
    """How many windows fit along an axis. Raises OpError E223 when none does."""
    covered = dilation * (kernel - 1) + 1
    free = size - covered + pad[0] + pad[1]
    if isinstance(free, int) and free < 0:
        spread = f" (with dilation {dilation} it covers {covered})" if dilation > 1 else ""
        twice = f"2 * {pad[0]}" if pad[0] == pad[1] else f"{pad[0]} + {pad[1]}"
        raise OpError("E223", f"`{name}`: a kernel of {kernel}{spread} is larger than the padded "
                      f"input: (in - kernel + 2 padding) / stride + 1 = "
                      f"({size} - {covered} + {twice}) / {stride} + 1 is less than 1",
                      _room(size, kernel, pad, dilation), (0,))
    return free // stride + 1


def window_sizes(name: str, size, kernel, stride, border: Pads, dilation=(1, 1)) -> tuple:
    """`window_size` for height and width."""
    return tuple(window_size(name, size[i], kernel[i], stride[i], border[i], dilation[i])
                 for i in range(2))


def check_layout(name: str, layout: str) -> None:
    """Raise OpError E228 for a layout that does not exist."""
    if layout not in SPATIAL:
        raise OpError("E228", f"`{name}`: layout is {layout!r}", 'it is "nchw" or "nhwc"')


def check_rank(name: str, type: TensorType, rank: int, axes: str, index: int = 0) -> None:
    """Raise OpError E225 unless operand `index` has `rank` axes; `axes` says which."""
    if type.rank != rank:
        raise OpError("E225", f"`{name}` takes {axes}, a tensor of rank {rank}, not "
                      f"{shape_text(type.shape)} of rank {type.rank}", "", (index,))


def arranged(batch: Dim, channels: Dim, sizes, layout: str) -> tuple[Dim, ...]:
    """The shape of a batch of images."""
    return (batch, channels, *sizes) if layout == "nchw" else (batch, *sizes, channels)


def channels_first(x, layout):
    """An image of either layout as [N, C, H, W]."""
    return x if layout == "nchw" else np.transpose(x, (0, 3, 1, 2))


def as_layout(y, layout):
    """An image [N, C, H, W] in the layout asked for."""
    return y if layout == "nchw" else np.ascontiguousarray(np.transpose(y, (0, 2, 3, 1)))


def bordered(x, border: Pads, value=0.0):
    """An image [N, C, H, W] with a border."""
    sides: Any = ((0, 0), (0, 0), *border)  # whole numbers when it comes to arrays
    return np.pad(x, sides, constant_values=x.dtype.type(value))


def patch_at(x, place, counts, strides):
    """The element at `place` of every window of `x` [..., H, W]."""
    rows, columns = (slice(first, first + (count - 1) * step + 1, step)
                     for first, count, step in zip(place, counts, strides, strict=True))
    return x[..., rows, columns]


def places(kernel, dilation=(1, 1)):
    """Window positions in row-major order, as (i, j, (row, column))."""
    return [(i, j, (i * dilation[0], j * dilation[1]))
            for i in range(kernel[0]) for j in range(kernel[1])]


def check_line(name: str, x, w=None) -> None:
    """Raise OpError unless the operands (values, not types) have three axes."""
    for value, axes in ((x, "[B, C, L]"), (w, "a weight [K, C/groups, k]")):
        if value is not None and len(value.shape) != 3:
            raise OpError("E225", f"`{name}` takes {axes}, a tensor of rank 3, not "
                          f"{shape_text(value.shape)} of rank {len(value.shape)}")


def single(name: str, attribute: str, value: Any, least: int = 1) -> int:
    """A whole number. Raises OpError E228 for anything else, E224 below `least`."""
    if type(value) is not int:
        raise OpError("E228", f"`{name}`: {attribute} is {value}, not a whole number")
    check_least(name, attribute, (value,), least)
    return value


def line_padding(name: str, padding: Any) -> tuple[int, int]:
    """Padding over one axis as (left, right) from an int or that."""
    if isinstance(padding, tuple):
        return pair(name, "padding", padding, 0)
    both = single(name, "padding", padding, 0)
    return both, both


def as_image(m, x):
    """[B, C, L] as [B, C, 1, L]."""
    return m.reshape(x, shape=(x.shape[0], x.shape[1], 1, x.shape[2]))
