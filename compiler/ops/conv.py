"""Convolution over images [N, C, H, W] (layout "nchw") or [N, H, W, C] ("nhwc").

As in all of the field this is correlation: the kernel is not flipped.
"""

from __future__ import annotations

import math

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
from lamina.compiler.ops.ragged import window
from lamina.compiler.ops.window import (
    CHANNELS,
    SPATIAL,
    arranged,
    as_image,
    as_layout,
    bordered,
    channels_first,
    check_layout,
    check_least,
    check_line,
    check_rank,
    line_padding,
    padding_pairs,
    pair,
    patch_at,
    places,
    single,
    window_size,
    window_sizes,
)

MOST_GROUPS = 65_536  # that a message tries
MOST_PHASES = 64  # of a fractional stride, rows times columns


def _fitting_groups(channels: Dim, out: Dim, groups: int) -> str:
    """The numbers of groups nearest to `groups` that divide input and output channels."""
    rule = "groups must divide input and output channels"
    if not isinstance(channels, int) or not isinstance(out, int):
        return rule
    both = math.gcd(channels, out)
    fitting = [n for n in range(1, min(both, MOST_GROUPS) + 1) if both % n == 0]
    below = max(n for n in fitting if n <= groups)
    above = [n for n in fitting if n > groups][:1]
    return f"{rule}: groups={' or '.join(map(str, [below, *above]))} divides {channels} and {out}"


def _check_groups(name: str, channels: Dim, w: TensorType, groups: int) -> None:
    """Raise OpError unless weights [K, C/groups, ...] fit `channels` in `groups` groups."""
    single(name, "groups", groups)
    for what, count in (("input", channels), ("output", w.shape[0])):
        if divide_exactly(count, groups) is None:
            raise OpError("E222", f"`{name}`: {groups} groups do not divide the {count} {what} "
                          "channels", _fitting_groups(channels, w.shape[0], groups))
    if divide_exactly(channels, groups) != w.shape[1]:
        each = f" ({w.shape[1]} in each of {groups} groups)" if groups > 1 else ""
        raise OpError("E221", f"`{name}`: the input has {channels} channels, the weight "
                      f"{shape_text(w.shape)} expects {w.shape[1] * groups}{each}",
                      "the weight is [out channels, in channels / groups, kernel ...]", (0, 1))


def _infer_conv2d(x: TensorType, w: TensorType, *, stride, padding, dilation, groups,
                  layout, algorithm) -> TensorType:
    name = "conv2d"
    check_layout(name, layout)
    same_dtype(name, (x, w), FLOATS)
    check_rank(name, x, 4, "[N, C, H, W]" if layout == "nchw" else "[N, H, W, C]")
    check_rank(name, w, 4, "a weight [K, C/groups, KH, KW]", 1)
    _check_groups(name, x.shape[CHANNELS[layout]], w, groups)
    check_least(name, "kernel", w.shape[2:], 1)
    strides, dilations = pair(name, "stride", stride), pair(name, "dilation", dilation)
    border = padding_pairs(padding, name)
    size = tuple(x.shape[axis] for axis in SPATIAL[layout])
    sizes = window_sizes(name, size, w.shape[2:], strides, border, dilations)
    return TensorType(arranged(x.shape[0], w.shape[0], sizes, layout), x.dtype)


def _numpy_conv2d(x, w, *, stride, padding, dilation, groups, layout, algorithm):
    x = channels_first(x, layout)
    border, strides = padding_pairs(padding), pair("conv2d", "stride", stride)
    dilations = pair("conv2d", "dilation", dilation)
    counts = window_sizes("conv2d", x.shape[2:], w.shape[2:], strides, border, dilations)
    x = bordered(x, border)
    batch, out = x.shape[0], w.shape[0]
    w = w.reshape(groups, out // groups, *w.shape[1:])
    y = np.zeros((batch, groups, out // groups, counts[0] * counts[1]), x.dtype)
    for i, j, place in places(w.shape[3:], dilations):
        patch = patch_at(x, place, counts, strides)
        y += w[..., i, j] @ patch.reshape(batch, groups, w.shape[2], counts[0] * counts[1])
    return as_layout(y.reshape(batch, out, *counts), layout)


def _pad_spatial(m, x, axes, lo, hi, interior):
    if not any(type(one) is not int or one for one in (*lo, *hi, *interior)):
        return x

    def spread(amounts):
        return tuple(amounts[axes.index(axis)] if axis in axes else 0 for axis in range(4))

    return m.pad(x, lo=spread(lo), hi=spread(hi), interior=spread(interior))


def turned(m, w, groups):
    """Weights of the data gradient: input and output channels exchanged, the kernel rotated."""
    out, each, *kernel = w.shape
    if groups == 1:
        w = m.transpose(w, perm=(1, 0, 2, 3))
    else:
        w = m.reshape(w, shape=(groups, out // groups, each, *kernel))
        w = m.transpose(w, perm=(0, 2, 1, 3, 4))
        w = m.reshape(w, shape=(groups * each, out // groups, *kernel))
    return w if tuple(kernel) == (1, 1) else m.reverse(w, axes=(2, 3))


def _conv2d_vjp(m, ct, y, x, w, *, stride, padding, dilation, groups, layout, algorithm):
    axes, kernel = SPATIAL[layout], tuple(w.shape[2:])
    strides, dilations = pair("conv2d", "stride", stride), pair("conv2d", "dilation", dilation)
    border = padding_pairs(padding)
    lo, hi = [], []
    for axis, k, s, d, (before, _) in zip(axes, kernel, strides, dilations, border, strict=True):
        lo.append(d * (k - 1) - before)
        # The gradient must come out at exactly the size of x, also where the stride left a rest.
        hi.append(x.shape[axis] + before - 1 - (ct.shape[axis] - 1) * s)
    gaps = tuple(s - 1 for s in strides)
    if kernel == (1, 1):  # zeros between pixels stay zeros
        dx = m.conv2d(ct, turned(m, w, groups), groups=groups, layout=layout)
        dx = _pad_spatial(m, dx, axes, lo, hi, gaps)
    else:
        spread = _pad_spatial(m, ct, axes, lo, hi, gaps)
        dx = m.conv2d(spread, turned(m, w, groups), dilation=dilations, groups=groups,
                      layout=layout)
    dw = m.conv2d_weight_grad(x, ct, kernel=kernel, stride=strides, padding=border,
                              dilation=dilations, groups=groups, layout=layout)
    return dx, dw


def _conv2d_macs(out: TensorType, x: TensorType, w: TensorType, **_) -> Dim:
    return product(out.shape) * product(w.shape[1:])


primitive("conv2d", "contract", infer=_infer_conv2d, numpy=_numpy_conv2d, arity=(2, 2),
          ragged=window(0.0),
          attrs={"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "layout": "nchw",
                 "algorithm": "direct"},
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
                       layout, algorithm) -> TensorType:
    name = "conv2d_weight_grad"
    check_layout(name, layout)
    same_dtype(name, (x, ct), FLOATS)
    check_rank(name, x, 4, "[N, C, H, W]")
    check_rank(name, ct, 4, "the gradient of the result", 1)
    channels = CHANNELS[layout]
    single(name, "groups", groups)
    kernel = pair(name, "kernel", kernel)
    each = divide_exactly(x.shape[channels], groups)
    if each is None:
        raise OpError("E222", f"`{name}`: {groups} groups do not divide {x.shape[channels]}")
    w = TensorType((ct.shape[channels], each, *kernel), x.dtype)
    out = _infer_conv2d(x, w, stride=stride, padding=padding, dilation=dilation, groups=groups,
                        layout=layout, algorithm=algorithm)
    if out.shape != ct.shape:
        raise OpError("E221", f"`{name}`: the gradient has shape {shape_text(ct.shape)}, the "
                      f"result {shape_text(out.shape)}", "", (1,))
    return w


def _numpy_weight_grad(x, ct, *, kernel, stride, padding, dilation, groups, layout, algorithm):
    x, ct = bordered(channels_first(x, layout), padding_pairs(padding)), channels_first(ct, layout)
    batch, out, *counts = ct.shape
    each, pixels = x.shape[1] // groups, counts[0] * counts[1]
    dilations, strides = pair("conv2d", "dilation", dilation), pair("conv2d", "stride", stride)
    left = ct.reshape(batch, groups, out // groups, pixels).transpose(1, 2, 0, 3)
    left = left.reshape(groups, out // groups, batch * pixels)
    dw = np.zeros((groups, out // groups, each, *kernel), x.dtype)
    for i, j, place in places(kernel, dilations):
        patch = patch_at(x, place, counts, strides)
        patch = patch.reshape(batch, groups, each, pixels).transpose(1, 0, 3, 2)
        dw[..., i, j] = left @ patch.reshape(groups, batch * pixels, each)
    return dw.reshape(out, each, *kernel)


primitive("conv2d_weight_grad", "contract", infer=_infer_weight_grad, numpy=_numpy_weight_grad,
          arity=(2, 2), public=False,
          attrs={"kernel": REQUIRED, "stride": 1, "padding": 0, "dilation": 1, "groups": 1,
                 "layout": "nchw", "algorithm": "direct"},
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


def _infer_fractional(x: TensorType, w: TensorType, *, stride, shift, size, groups) -> TensorType:
    name = "fractional_conv2d"
    same_dtype(name, (x, w), FLOATS)
    check_rank(name, x, 4, "[N, H, W, C]")
    check_rank(name, w, 4, "a weight [K, C/groups, KH, KW]", 1)
    _check_groups(name, x.shape[3], w, groups)
    steps, begin = pair(name, "stride", stride), pair(name, "shift", shift, 0)
    if not isinstance(size, tuple) or len(size) != 2:
        raise OpError("E228", f"`{name}`: size is {size}, not a pair", "it is (height, width)")
    for have, reach, step, first, out in zip(x.shape[1:3], w.shape[2:], steps, begin, size,
                                             strict=True):
        needed = first + out + reach - 1
        if isinstance(have, int) and isinstance(needed, int) and needed > have * step:
            raise OpError("E223", f"`{name}` needs {needed} pixels, the image has {have} with "
                          f"{step - 1} zeros behind each")
    return TensorType((x.shape[0], *size, w.shape[0]), x.dtype)


def _numpy_fractional(x, w, *, stride, shift, size, groups):
    (rows, columns), (top, left) = stride, shift
    spread = np.zeros((x.shape[0], x.shape[1] * rows, x.shape[2] * columns, x.shape[3]), x.dtype)
    spread[:, ::rows, ::columns] = x
    bottom, right = (first + out + reach - 1
                     for first, out, reach in zip(shift, size, w.shape[2:], strict=True))
    return _numpy_conv2d(spread[:, top:bottom, left:right], w, stride=1, padding=0, dilation=1,
                         groups=groups, layout="nhwc", algorithm="direct")


primitive("fractional_conv2d", "contract", infer=_infer_fractional, numpy=_numpy_fractional,
          arity=(2, 2), public=False,
          attrs={"stride": REQUIRED, "shift": REQUIRED, "size": REQUIRED, "groups": 1},
          macs=lambda out, x, w, *, stride, **_: (
              product(out.shape) * product(w.shape[1:]) // product(stride)),
          torch="oracle.fractional_conv2d(a, b, stride, shift, size, groups)",
          samples=("x:[2,4,5,3] w:[4,3,3,3] | stride=(2, 2), shift=(0, 1), size=(6, 7)",
                   "x:[1,3,4,4] w:[6,2,2,3] | stride=(3, 1), shift=(2, 0), size=(5, 2), groups=2",
                   "x:[2,3,3,5] w:[5,1,3,3] | stride=(2, 2), shift=(1, 0), size=(3, 4), groups=5",
                   "x:[1,2,2,2] w:[3,2,1,1] | stride=(2, 3), shift=(0, 1), size=(4, 5)"),
          bad={"E223": "x:[1,2,2,2] w:[3,2,1,1] | stride=(2, 2), shift=(0, 0), size=(5, 4)",
               "E225": "x:[2,2,2] w:[3,2,1,1] | stride=(2, 2), shift=(0, 0), size=(3, 3)",
               "E222": "x:[1,2,2,3] w:[3,2,1,1] | stride=(2, 2), shift=(0, 0), size=(3, 3), "
                       "groups=2"},
          doc="Convolution, stride 1 and channels-last, of an image with stride - 1 zeros behind "
              "each pixel: y[i, j] = sum over kh, kw of spread[i + kh + shift, j + kw + shift] "
              "w[kh, kw]. Dumoulin and Visin (2016), chapter 4.")


@composite("conv1d", attrs={"stride": 1, "padding": 0, "dilation": 1, "groups": 1}, arity=2,
           samples=("x:[2,3,9] w:[4,3,3]", "x:[2,4,9] w:[4,2,3] | stride=2, padding=1, groups=2",
                    "x:[1,2,7] w:[3,2,2] | dilation=3, padding=(2, 0)", "x:[1,2,5] w:[3,2,5]"),
           torch="oracle.conv1d(a, b, stride, padding, dilation, groups)",
           bad={"E221": "x:[2,3,9] w:[4,2,3]", "E222": "x:[2,3,9] w:[4,1,3] | groups=2",
                "E223": "x:[2,3,4] w:[4,3,5]", "E224": "x:[2,3,9] w:[4,3,3] | stride=0",
                "E225": "x:[2,3,9,9] w:[4,3,3]", "E228": "x:[2,3,9] w:[4,3,3] | stride=(1, 2)"})
def conv1d(m, x, w, *, stride, padding, dilation, groups):
    """Convolution over [B, C, L] with weights [K, C/groups, k]; padding may be (left, right)."""
    check_line("conv1d", x, w)
    _check_groups("conv1d", x.shape[1], w, groups)
    step, gap = single("conv1d", "stride", stride), single("conv1d", "dilation", dilation)
    sides = line_padding("conv1d", padding)
    window_size("conv1d", x.shape[2], w.shape[2], step, sides, gap)
    y = m.conv2d(as_image(m, x), as_image(m, w), stride=(1, step), padding=((0, 0), sides),
                 dilation=(1, gap), groups=groups)
    return m.reshape(y, shape=(y.shape[0], y.shape[1], y.shape[3]))
