"""Convolution and pooling, over [N, C, H, W] (layout "nchw") or [N, H, W, C] ("nhwc").

The result size along an axis is (in - covered + padding on both sides) // stride + 1, where a
kernel of size k covers dilation * (k - 1) + 1. As in all of the field this is correlation: the
kernel is not flipped. Arithmetic: Dumoulin and Visin, "A guide to convolution arithmetic" (2016).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lamina.compiler.ir.op import REQUIRED, OpError
from lamina.compiler.ir.types import (
    FLOATS,
    Dim,
    TensorType,
    divide_exactly,
    product,
    shape_text,
)
from lamina.compiler.ops.define import composite, primitive, same_dtype

SPATIAL = {"nchw": (2, 3), "nhwc": (1, 2)}
CHANNELS = {"nchw": 1, "nhwc": 3}
Pads = tuple[tuple[Dim, Dim], tuple[Dim, Dim]]


def pair(name: str, attribute: str, value: Any, least: int = 1) -> tuple[int, int]:
    """An int or a pair, for (H, W). Raises OpError E228 for anything else, E224 below `least`."""
    both = value if isinstance(value, tuple) else (value, value)
    if len(both) != 2 or not all(type(one) is int for one in both):
        raise OpError("E228", f"`{name}`: {attribute} is {value}, not a whole number or a pair",
                      f"write {attribute}=1 or {attribute}=(1, 2), for height and width")
    _at_least(name, attribute, both, least)
    return both


def _at_least(name: str, attribute: str, values: tuple, least: int) -> None:
    for value in values:
        if isinstance(value, int) and value < least:
            raise OpError("E224", f"`{name}`: {attribute} is {value}, less than {least}",
                          f"{attribute} must be {least} or more")


def padding_pairs(padding: Any, name: str = "conv2d") -> Pads:
    """Padding as ((top, bottom), (left, right)) from an int, (vertical, horizontal) or that."""
    if isinstance(padding, tuple) and any(isinstance(one, tuple) for one in padding):
        if len(padding) != 2 or any(not isinstance(one, tuple) or len(one) != 2 for one in padding):
            raise OpError("E228", f"`{name}`: padding is {padding}, not a whole number, a pair, "
                          "or a pair of pairs", "write padding=((top, bottom), (left, right))")
        _at_least(name, "padding", (*padding[0], *padding[1]), 0)
        return padding
    vertical, horizontal = pair(name, "padding", padding, 0)
    return (vertical, vertical), (horizontal, horizontal)


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
                      "use a smaller kernel, more padding, or a larger input", (0,))
    return free // stride + 1


def _window_sizes(name: str, size, kernel, stride, border: Pads, dilation=(1, 1)) -> tuple:
    """`window_size` for height and width."""
    return tuple(window_size(name, size[i], kernel[i], stride[i], border[i], dilation[i])
                 for i in range(2))


def _layout(name: str, layout: str) -> None:
    if layout not in SPATIAL:
        raise OpError("E228", f"`{name}`: layout is {layout!r}", 'it is "nchw" or "nhwc"')


def _rank(name: str, type: TensorType, rank: int, axes: str, index: int = 0) -> None:
    if type.rank != rank:
        raise OpError("E225", f"`{name}` takes {axes}, a tensor of rank {rank}, not "
                      f"{shape_text(type.shape)} of rank {type.rank}", "", (index,))


def _check_groups(name: str, channels: Dim, w: TensorType, groups: int) -> None:
    """Raise OpError unless weights [K, C/groups, ...] fit `channels` in `groups` groups."""
    _at_least(name, "groups", (groups,), 1)
    for what, count in (("input", channels), ("output", w.shape[0])):
        if divide_exactly(count, groups) is None:
            raise OpError("E222", f"`{name}`: {groups} groups do not divide the {count} {what} "
                          "channels", "groups must divide input and output channels")
    if divide_exactly(channels, groups) != w.shape[1]:
        each = f" ({w.shape[1]} in each of {groups} groups)" if groups > 1 else ""
        raise OpError("E221", f"`{name}`: the input has {channels} channels, the weight "
                      f"{shape_text(w.shape)} expects {w.shape[1] * groups}{each}",
                      "the weight is [out channels, in channels / groups, kernel ...]", (0, 1))


def _infer_conv2d(x: TensorType, w: TensorType, *, stride, padding, dilation, groups,
                  layout) -> TensorType:
    name = "conv2d"
    _layout(name, layout)
    same_dtype(name, (x, w), FLOATS)
    _rank(name, x, 4, "[N, C, H, W]" if layout == "nchw" else "[N, H, W, C]")
    _rank(name, w, 4, "a weight [K, C/groups, KH, KW]", 1)
    _check_groups(name, x.shape[CHANNELS[layout]], w, groups)
    _at_least(name, "kernel", w.shape[2:], 1)
    strides, dilations = pair(name, "stride", stride), pair(name, "dilation", dilation)
    border = padding_pairs(padding, name)
    size = tuple(x.shape[axis] for axis in SPATIAL[layout])
    sizes = _window_sizes(name, size, w.shape[2:], strides, border, dilations)
    return TensorType(_arranged(x.shape[0], w.shape[0], sizes, layout), x.dtype)


def _arranged(batch: Dim, channels: Dim, sizes, layout: str) -> tuple[Dim, ...]:
    return (batch, channels, *sizes) if layout == "nchw" else (batch, *sizes, channels)


def _first(x, layout):
    """Channels first."""
    return x if layout == "nchw" else np.transpose(x, (0, 3, 1, 2))


def _back(y, layout):
    return y if layout == "nchw" else np.ascontiguousarray(np.transpose(y, (0, 2, 3, 1)))


def _bordered(x, border: Pads, value=0.0):
    return np.pad(x, ((0, 0), (0, 0), *border), constant_values=x.dtype.type(value))


def _patch(x, place, counts, strides):
    """The element at `place` of every window of `x` [..., H, W]."""
    rows, columns = (slice(first, first + (count - 1) * step + 1, step)
                     for first, count, step in zip(place, counts, strides, strict=True))
    return x[..., rows, columns]


def _places(kernel, dilation=(1, 1)):
    """Window positions in row-major order, as (i, j, (row, column))."""
    return [(i, j, (i * dilation[0], j * dilation[1]))
            for i in range(kernel[0]) for j in range(kernel[1])]


def _numpy_conv2d(x, w, *, stride, padding, dilation, groups, layout):
    x = _first(x, layout)
    border, strides = padding_pairs(padding), pair("conv2d", "stride", stride)
    dilations = pair("conv2d", "dilation", dilation)
    counts = _window_sizes("conv2d", x.shape[2:], w.shape[2:], strides, border, dilations)
    x = _bordered(x, border)
    batch, out = x.shape[0], w.shape[0]
    w = w.reshape(groups, out // groups, *w.shape[1:])
    y = np.zeros((batch, groups, out // groups, counts[0] * counts[1]), x.dtype)
    for i, j, place in _places(w.shape[3:], dilations):
        patch = _patch(x, place, counts, strides)
        y += w[..., i, j] @ patch.reshape(batch, groups, w.shape[2], counts[0] * counts[1])
    return _back(y.reshape(batch, out, *counts), layout)


def _pad_spatial(m, x, axes, lo, hi, interior):
    if not any(type(one) is not int or one for one in (*lo, *hi, *interior)):
        return x

    def spread(amounts):
        return tuple(amounts[axes.index(axis)] if axis in axes else 0 for axis in range(4))

    return m.pad(x, lo=spread(lo), hi=spread(hi), interior=spread(interior))


def _turned(m, w, groups):
    """Weights of the data gradient: input and output channels exchanged, the kernel rotated."""
    out, each, *kernel = w.shape
    if groups == 1:
        w = m.transpose(w, perm=(1, 0, 2, 3))
    else:
        w = m.reshape(w, shape=(groups, out // groups, each, *kernel))
        w = m.transpose(w, perm=(0, 2, 1, 3, 4))
        w = m.reshape(w, shape=(groups * each, out // groups, *kernel))
    return w if tuple(kernel) == (1, 1) else m.reverse(w, axes=(2, 3))


def _conv2d_vjp(m, ct, y, x, w, *, stride, padding, dilation, groups, layout):
    axes, kernel = SPATIAL[layout], tuple(w.shape[2:])
    strides, dilations = pair("conv2d", "stride", stride), pair("conv2d", "dilation", dilation)
    border = padding_pairs(padding)
    lo, hi = [], []
    for axis, k, s, d, (before, _) in zip(axes, kernel, strides, dilations, border, strict=True):
        lo.append(d * (k - 1) - before)
        # The gradient must come out at exactly the size of x, also where the stride left a rest.
        hi.append(x.shape[axis] + before - 1 - (ct.shape[axis] - 1) * s)
    spread = _pad_spatial(m, ct, axes, lo, hi, tuple(s - 1 for s in strides))
    dx = m.conv2d(spread, _turned(m, w, groups), dilation=dilations, groups=groups, layout=layout)
    dw = m.conv2d_weight_grad(x, ct, kernel=kernel, stride=strides, padding=border,
                              dilation=dilations, groups=groups, layout=layout)
    return dx, dw


def _conv2d_macs(out: TensorType, x: TensorType, w: TensorType, **_) -> Dim:
    return product(out.shape) * product(w.shape[1:])


primitive("conv2d", "contract", infer=_infer_conv2d, numpy=_numpy_conv2d, arity=(2, 2),
          attrs={"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "layout": "nchw"},
          vjp=_conv2d_vjp, macs=_conv2d_macs,
          torch="oracle.conv2d(a, b, stride, padding, dilation, groups, layout)",
          samples=("x:[2,3,7,6] w:[4,3,3,3]", "x:[2,3,7,6] w:[4,3,3,3] | padding=1",
                   "x:[1,3,8,7] w:[5,3,3,2] | stride=2, padding=(1, 0)",
                   "x:[2,4,9,9] w:[6,2,3,3] | stride=(2, 3), groups=2, dilation=2, padding=2",
                   "x:[2,6,5,5] w:[6,1,3,3] | groups=6, padding=1",
                   "x:[2,3,5,5] w:[6,1,2,2] | groups=3, stride=2",
                   "x:[1,2,4,4] w:[3,2,4,4]", "x:[1,2,5,4] w:[3,2,1,1] | stride=2",
                   "x:[1,2,4,5] w:[2,2,3,3] | padding=((0, 2), (1, 0))",
                   "x:[1,1,3,3] w:[1,1,1,1] | padding=2, stride=2",
                   "x:[2,7,6,3] w:[4,3,3,3] | layout='nhwc', padding=1, stride=2"),
          bad={"E221": "x:[1,3,8,8] w:[4,2,3,3]", "E222": "x:[1,3,8,8] w:[4,1,3,3] | groups=2",
               "E223": "x:[1,3,4,4] w:[4,3,3,3] | dilation=2",
               "E224": "x:[1,3,4,4] w:[4,3,3,3] | stride=0", "E225": "x:[3,4,4] w:[4,3,3,3]",
               "E228": "x:[1,3,4,4] w:[4,3,3,3] | padding='same'",
               "E204": "x:i32[1,3,4,4] w:i32[4,3,3,3]"},
          doc="Convolution with weights [K, C/groups, KH, KW]. `stride`, `padding` and `dilation` "
              "are a number or a pair (height, width); padding may be ((top, bottom), (left, "
              "right)). LeCun and others (1989); groups: Krizhevsky and others (2012).")


def _infer_weight_grad(x: TensorType, ct: TensorType, *, kernel, stride, padding, dilation, groups,
                       layout) -> TensorType:
    name = "conv2d_weight_grad"
    _layout(name, layout)
    same_dtype(name, (x, ct), FLOATS)
    _rank(name, x, 4, "[N, C, H, W]")
    _rank(name, ct, 4, "the gradient of the result", 1)
    channels = CHANNELS[layout]
    each = divide_exactly(x.shape[channels], groups)
    if each is None:
        raise OpError("E222", f"`{name}`: {groups} groups do not divide {x.shape[channels]}")
    w = TensorType((ct.shape[channels], each, *kernel), x.dtype)
    out = _infer_conv2d(x, w, stride=stride, padding=padding, dilation=dilation, groups=groups,
                        layout=layout)
    if out.shape != ct.shape:
        raise OpError("E221", f"`{name}`: the gradient has shape {shape_text(ct.shape)}, the "
                      f"result {shape_text(out.shape)}", "", (1,))
    return w


def _numpy_weight_grad(x, ct, *, kernel, stride, padding, dilation, groups, layout):
    x, ct = _bordered(_first(x, layout), padding_pairs(padding)), _first(ct, layout)
    batch, out, *counts = ct.shape
    each, pixels = x.shape[1] // groups, counts[0] * counts[1]
    dilations, strides = pair("conv2d", "dilation", dilation), pair("conv2d", "stride", stride)
    left = ct.reshape(batch, groups, out // groups, pixels).transpose(1, 2, 0, 3)
    left = left.reshape(groups, out // groups, batch * pixels)
    dw = np.zeros((groups, out // groups, each, *kernel), x.dtype)
    for i, j, place in _places(kernel, dilations):
        patch = _patch(x, place, counts, strides)
        patch = patch.reshape(batch, groups, each, pixels).transpose(1, 0, 3, 2)
        dw[..., i, j] = left @ patch.reshape(groups, batch * pixels, each)
    return dw.reshape(out, each, *kernel)


primitive("conv2d_weight_grad", "contract", infer=_infer_weight_grad, numpy=_numpy_weight_grad,
          arity=(2, 2), public=False,
          attrs={"kernel": REQUIRED, "stride": 1, "padding": 0, "dilation": 1, "groups": 1,
                 "layout": "nchw"},
          macs=lambda out, x, ct, *, layout, **_: (
              product(ct.shape) * product(out.shape[1:])),
          torch="oracle.conv2d_weight_grad(a, b, kernel, stride, padding, dilation, groups, "
                "layout)",
          samples=("x:[2,3,7,6] y:[2,4,5,4] | kernel=(3, 3)",
                   "x:[1,3,8,7] y:[1,5,4,3] | kernel=(3, 2), stride=2, padding=((1, 1), (0, 0))",
                   "x:[2,4,9,9] y:[2,6,5,3] | kernel=(3, 3), stride=(2, 3), groups=2, "
                   "dilation=(2, 2), padding=((2, 2), (2, 2))",
                   "x:[2,6,5,5] y:[2,6,5,5] | kernel=(3, 3), groups=6, padding=((1, 1), (1, 1))",
                   "x:[1,7,6,3] y:[1,4,6,4] | kernel=(4, 1), layout='nhwc'"),
          bad={"E221": "x:[2,3,7,6] y:[2,4,5,5] | kernel=(3, 3)",
               "E222": "x:[2,3,7,6] y:[2,4,5,4] | kernel=(3, 3), groups=2",
               "E225": "x:[3,7,6] y:[2,4,5,4] | kernel=(3, 3)"},
          doc="Gradient of conv2d by its weights: [K, C/groups, KH, KW] from the input and the "
              "gradient of the result.")


@composite("conv1d", attrs={"stride": 1, "padding": 0, "dilation": 1, "groups": 1}, arity=2,
           samples=("x:[2,3,9] w:[4,3,3]", "x:[2,4,9] w:[4,2,3] | stride=2, padding=1, groups=2",
                    "x:[1,2,7] w:[3,2,2] | dilation=3, padding=(2, 0)", "x:[1,2,5] w:[3,2,5]"),
           torch="oracle.conv1d(a, b, stride, padding, dilation, groups)",
           bad={"E221": "x:[2,3,9] w:[4,2,3]", "E222": "x:[2,3,9] w:[4,1,3] | groups=2",
                "E223": "x:[2,3,4] w:[4,3,5]", "E224": "x:[2,3,9] w:[4,3,3] | stride=0",
                "E225": "x:[2,3,9,9] w:[4,3,3]", "E228": "x:[2,3,9] w:[4,3,3] | stride=(1, 2)"})
def conv1d(m, x, w, *, stride, padding, dilation, groups):
    """Convolution over [B, C, L] with weights [K, C/groups, k]; padding may be (left, right)."""
    _check_ranks("conv1d", x, w)
    _check_groups("conv1d", x.shape[1], w, groups)
    step, gap = _single("conv1d", "stride", stride), _single("conv1d", "dilation", dilation)
    sides = _sides("conv1d", padding)
    window_size("conv1d", x.shape[2], w.shape[2], step, sides, gap)
    y = m.conv2d(_flat(m, x), _flat(m, w), stride=(1, step), padding=((0, 0), sides),
                 dilation=(1, gap), groups=groups)
    return m.reshape(y, shape=(y.shape[0], y.shape[1], y.shape[3]))


def _check_ranks(name: str, x, w=None) -> None:
    """Raise OpError unless the operands (values, not types) have three axes."""
    for value, axes in ((x, "[B, C, L]"), (w, "a weight [K, C/groups, k]")):
        if value is not None and len(value.shape) != 3:
            raise OpError("E225", f"`{name}` takes {axes}, a tensor of rank 3, not "
                          f"{shape_text(value.shape)} of rank {len(value.shape)}")


def _single(name: str, attribute: str, value: Any, least: int = 1) -> int:
    if type(value) is not int:
        raise OpError("E228", f"`{name}`: {attribute} is {value}, not a whole number")
    _at_least(name, attribute, (value,), least)
    return value


def _sides(name: str, padding: Any) -> tuple[int, int]:
    if isinstance(padding, tuple):
        return pair(name, "padding", padding, 0)
    both = _single(name, "padding", padding, 0)
    return both, both


def _flat(m, x):
    """[B, C, L] as [B, C, 1, L]."""
    return m.reshape(x, shape=(x.shape[0], x.shape[1], 1, x.shape[2]))


def _pool_window(name, kernel, stride, padding):
    """Kernel, stride (the kernel's where not given) and padding in full."""
    kernel = pair(name, "kernel", kernel)
    border = padding_pairs(padding, name)
    for size, sides in zip(kernel, border, strict=True):
        if max(sides) >= size:
            raise OpError("E229", f"`{name}`: padding {max(sides)} is not smaller than the kernel "
                          f"{size}", "a window would hold nothing but padding")
    return kernel, kernel if stride is None else pair(name, "stride", stride), border


def _infer_pool(name):
    def infer(x: TensorType, *, kernel, stride, padding, layout, **_) -> TensorType:
        _layout(name, layout)
        same_dtype(name, (x,), FLOATS)
        _rank(name, x, 4, "[N, C, H, W]" if layout == "nchw" else "[N, H, W, C]")
        kernel, stride, border = _pool_window(name, kernel, stride, padding)
        size = tuple(x.shape[axis] for axis in SPATIAL[layout])
        sizes = _window_sizes(name, size, kernel, stride, border)
        return TensorType(_arranged(x.shape[0], x.shape[CHANNELS[layout]], sizes, layout), x.dtype)

    return infer


def _numpy_max_pool(x, *, kernel, stride, padding, layout):
    x = _first(x, layout)
    kernel, stride, border = _pool_window("max_pool2d", kernel, stride, padding)
    counts = _window_sizes("max_pool2d", x.shape[2:], kernel, stride, border)
    x = _bordered(x, border, -np.inf)
    y = np.full((*x.shape[:2], *counts), -np.inf, x.dtype)
    for _, _, place in _places(kernel):
        y = np.maximum(y, _patch(x, place, counts, stride))
    return _back(y, layout)


def _numpy_max_pool_grad(x, ct, *, kernel, stride, padding, layout):
    x, ct = _first(x, layout), _first(ct, layout)
    kernel, stride, border = _pool_window("max_pool2d", kernel, stride, padding)
    counts = ct.shape[2:]
    inside = _bordered(np.ones((1, 1, *x.shape[2:]), bool), border, False)
    wide = _bordered(x, border, -np.inf)
    best = np.full(ct.shape, -np.inf, x.dtype)
    where = np.full(ct.shape, -1, np.int32)
    for number, (_, _, place) in enumerate(_places(kernel)):
        here = _patch(wide, place, counts, stride)
        better = (where < 0) | (here > best) | np.isnan(here)
        better &= _patch(inside, place, counts, stride)
        best, where = np.where(better, here, best), np.where(better, number, where)
    dx = np.zeros_like(wide)
    for number, (_, _, place) in enumerate(_places(kernel)):
        part = _patch(dx, place, counts, stride)
        part += np.where(where == number, ct, 0)
    return _back(_cut(dx, border), layout)


def _cut(x, border: Pads):
    (top, bottom), (left, right) = border
    return x[:, :, top:x.shape[2] - bottom, left:x.shape[3] - right]


def _infer_max_pool_grad(x: TensorType, ct: TensorType, **attrs) -> TensorType:
    same_dtype("max_pool2d_grad", (x, ct), FLOATS)
    _check_gradient("max_pool2d_grad", x, ct, attrs, 1)
    return x


def _check_gradient(name: str, x: TensorType, ct: TensorType, attrs, index: int) -> None:
    out = _infer_pool(name)(x, **attrs)
    if out.shape != ct.shape:
        raise OpError("E221", f"`{name}`: the gradient has shape {shape_text(ct.shape)}, the "
                      f"result {shape_text(out.shape)}", "", (index,))


POOL = {"kernel": REQUIRED, "stride": None, "padding": 0, "layout": "nchw"}
BAD_POOL = {"E223": "x:[1,3,4,4] | kernel=5", "E224": "x:[1,3,4,4] | kernel=0",
            "E225": "x:[3,4,4] | kernel=2", "E228": "x:[1,3,4,4] | kernel=(2, 2, 2)",
            "E229": "x:[1,3,4,4] | kernel=2, padding=2", "E204": "x:i32[1,3,4,4] | kernel=2"}
POOLED = ("x:[2,3,6,8] | kernel=2", "x:[1,2,7,5] | kernel=3, stride=2, padding=1",
          "x:[1,2,7,6] | kernel=(3, 2), stride=(1, 3)", "x:[2,1,4,5] | kernel=(4, 5)",
          "x:[1,2,5,6] | kernel=3, stride=2, padding=((0, 1), (2, 0))",
          "x:[1,2,6,6] | kernel=1, stride=2", "x:[2,6,5,3] | kernel=2, layout='nhwc'")

primitive("max_pool2d", "window", infer=_infer_pool("max_pool2d"), numpy=_numpy_max_pool,
          attrs=POOL, samples=POOLED, bad=BAD_POOL,
          torch="oracle.max_pool2d(a, kernel, stride, padding, layout)",
          vjp=lambda m, ct, y, x, **attrs: (m.max_pool2d_grad(x, ct, **attrs),),
          doc="The largest of each window; NaN if any is. Padding never wins. `stride` is the "
              "kernel's size where not given.")

primitive("max_pool2d_grad", "window", infer=_infer_max_pool_grad, numpy=_numpy_max_pool_grad,
          arity=(2, 2), attrs=POOL, public=False,
          torch="oracle.gradient(lambda x: oracle.max_pool2d(x, kernel, stride, padding, layout), "
                "a, b)",
          samples=("x:[2,3,6,8] y:[2,3,3,4] | kernel=2",
                   "x:[1,2,7,5] y:[1,2,4,3] | kernel=3, stride=2, padding=1",
                   "x:[1,2,5,6] y:[1,2,2,3] | kernel=3, stride=2, padding=((0, 1), (2, 0))",
                   "x:[2,6,5,3] y:[2,3,2,3] | kernel=2, layout='nhwc'"),
          bad={"E221": "x:[2,3,6,8] y:[2,3,3,3] | kernel=2"},
          doc="Gradient of max_pool2d: goes to the first maximum in row-major order. A NaN counts "
              "as a maximum, the last one of a window taking the gradient, as in PyTorch.")


def _divisors(sizes, kernel, stride, border, count_padding, dtype):
    """How many elements each window averages, [OH, OW]."""
    counts = _window_sizes("avg_pool2d", sizes, kernel, stride, border)
    if count_padding:
        return np.full(counts, kernel[0] * kernel[1], dtype)
    inside = np.pad(np.ones(sizes, dtype), border)
    return _sum_of_patches(inside, counts, kernel, stride)


def _sum_of_patches(x, counts, kernel, stride):
    total = np.zeros((*x.shape[:-2], *counts), x.dtype)
    for _, _, place in _places(kernel):
        total += _patch(x, place, counts, stride)
    return total


def _numpy_avg_pool(x, *, kernel, stride, padding, count_padding, layout):
    x = _first(x, layout)
    kernel, stride, border = _pool_window("avg_pool2d", kernel, stride, padding)
    over = _divisors(x.shape[2:], kernel, stride, border, count_padding, x.dtype)
    total = _sum_of_patches(_bordered(x, border), over.shape, kernel, stride)
    return _back(total / over, layout)


def _numpy_avg_pool_grad(ct, *, size, kernel, stride, padding, count_padding, layout):
    ct = _first(ct, layout)
    kernel, stride, border = _pool_window("avg_pool2d", kernel, stride, padding)
    each = ct / _divisors(size, kernel, stride, border, count_padding, ct.dtype)
    dx = _bordered(np.zeros((*ct.shape[:2], *size), ct.dtype), border)
    for _, _, place in _places(kernel):
        part = _patch(dx, place, ct.shape[2:], stride)
        part += each
    return _back(_cut(dx, border), layout)


def _infer_avg_pool_grad(ct: TensorType, *, size, layout, **attrs) -> TensorType:
    name = "avg_pool2d_grad"
    _layout(name, layout)
    same_dtype(name, (ct,), FLOATS)
    _rank(name, ct, 4, "the gradient of the result")
    shape = _arranged(ct.shape[0], ct.shape[CHANNELS[layout]], size, layout)
    x = TensorType(shape, ct.dtype)
    _check_gradient(name, x, ct, {**attrs, "layout": layout}, 0)
    return x


def _avg_pool_vjp(m, ct, y, x, *, layout, **attrs):
    size = tuple(x.shape[axis] for axis in SPATIAL[layout])
    return (m.avg_pool2d_grad(ct, size=size, layout=layout, **attrs),)


AVERAGE = {**POOL, "count_padding": True}

primitive("avg_pool2d", "window", infer=_infer_pool("avg_pool2d"), numpy=_numpy_avg_pool,
          attrs=AVERAGE, bad=BAD_POOL, vjp=_avg_pool_vjp,
          samples=(*POOLED, "x:[1,2,5,6] | kernel=3, stride=2, padding=1, count_padding=False"),
          torch="oracle.avg_pool2d(a, kernel, stride, padding, count_padding, layout)",
          doc="The mean of each window; `count_padding` says whether padding counts as zeros.")

primitive("avg_pool2d_grad", "window", infer=_infer_avg_pool_grad, numpy=_numpy_avg_pool_grad,
          attrs={"size": REQUIRED, **AVERAGE}, public=False,
          torch="oracle.gradient(lambda x: oracle.avg_pool2d(x, kernel, stride, padding, "
                "count_padding, layout), oracle.image(a, size, layout), a)",
          samples=("y:[2,3,3,4] | size=(6, 8), kernel=2",
                   "y:[1,2,4,3] | size=(7, 5), kernel=3, stride=2, padding=1",
                   "y:[1,2,4,3] | size=(7, 5), kernel=3, stride=2, padding=1, count_padding=False",
                   "y:[2,3,2,3] | size=(6, 5), kernel=2, layout='nhwc'"),
          bad={"E221": "y:[2,3,3,3] | size=(6, 8), kernel=2",
               "E225": "y:[3] | size=(2, 2), kernel=2"},
          doc="Gradient of avg_pool2d for an input of height and width `size`.")


def _pool1d(m, name, operator, x, kernel, stride, padding, **more):
    _check_ranks(name, x)
    kernel = _single(name, "kernel", kernel)
    step = kernel if stride is None else _single(name, "stride", stride)
    sides = _sides(name, padding)
    _pool_window(name, (1, kernel), (1, step), ((0, 0), sides))
    window_size(name, x.shape[2], kernel, step, sides)
    y = operator(_flat(m, x), kernel=(1, kernel), stride=(1, step), padding=((0, 0), sides), **more)
    return m.reshape(y, shape=(y.shape[0], y.shape[1], y.shape[3]))


LINE = {"kernel": REQUIRED, "stride": None, "padding": 0}
BAD_LINE = {"E223": "x:[1,3,4] | kernel=5", "E224": "x:[1,3,4] | kernel=0",
            "E225": "x:[3,4] | kernel=2", "E228": "x:[1,3,4] | kernel=(2, 2)",
            "E229": "x:[1,3,4] | kernel=2, padding=2"}
LINES = ("x:[2,3,8] | kernel=2", "x:[1,2,7] | kernel=3, stride=2, padding=1",
         "x:[2,1,5] | kernel=5")


@composite("max_pool1d", attrs=LINE, samples=LINES, bad=BAD_LINE,
           torch="torch.nn.functional.max_pool1d(a, kernel, stride, padding)")
def max_pool1d(m, x, *, kernel, stride, padding):
    """The largest of each window over [B, C, L]; padding may be (left, right)."""
    return _pool1d(m, "max_pool1d", m.max_pool2d, x, kernel, stride, padding)


@composite("avg_pool1d", attrs={**LINE, "count_padding": True}, bad=BAD_LINE,
           samples=(*LINES, "x:[1,2,7] | kernel=3, stride=2, padding=1, count_padding=False"),
           torch="torch.nn.functional.avg_pool1d(a, kernel, stride, padding, False, count_padding)")
def avg_pool1d(m, x, *, kernel, stride, padding, count_padding):
    """The mean of each window over [B, C, L]; padding may be (left, right)."""
    return _pool1d(m, "avg_pool1d", m.avg_pool2d, x, kernel, stride, padding,
                   count_padding=count_padding)


def _check_image(name: str, x) -> None:
    if len(x.shape) != 4:
        raise OpError("E225", f"`{name}` takes [B, C, H, W], not {shape_text(x.shape)} of rank "
                      f"{len(x.shape)}")


@composite("global_avg_pool", samples=("x:[2,3,4,5]", "x:[1,7,1,1]"), bad={"E225": "x:[2,3,4]"},
           torch="a.mean((2, 3))")
def global_avg_pool(m, x):
    """The mean of each channel: [B, C, H, W] to [B, C]. Lin, Chen and Yan (2013)."""
    _check_image("global_avg_pool", x)
    return m.mean(x, axis=(2, 3))


@composite("global_max_pool", samples=("x:[2,3,4,5]", "x:[1,7,1,1]"), bad={"E225": "x:[2,3,4]"},
           torch="a.amax((2, 3))")
def global_max_pool(m, x):
    """The largest of each channel: [B, C, H, W] to [B, C]."""
    _check_image("global_max_pool", x)
    return m.max(x, axis=(2, 3))
