"""Pooling over images [N, C, H, W] (layout "nchw") or [N, H, W, C] ("nhwc"), and over lines."""

from __future__ import annotations

import math

import numpy as np

from lamina.compiler.ir.op import REQUIRED, OpError
from lamina.compiler.ir.types import FLOATS, TensorType, shape_text
from lamina.compiler.ops.define import composite, primitive, same_dtype
from lamina.compiler.ops.ragged import window
from lamina.compiler.ops.window import (
    CHANNELS,
    SPATIAL,
    Pads,
    arranged,
    as_image,
    as_layout,
    bordered,
    channels_first,
    check_layout,
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


def _pool_window(name, kernel, stride, padding):
    """Kernel, stride (the kernel's where not given) and padding in full."""
    kernel = pair(name, "kernel", kernel)
    border = padding_pairs(padding, name)
    for size, sides in zip(kernel, border, strict=True):
        most = max((side for side in sides if isinstance(side, int)), default=0)
        if most >= size:
            raise OpError("E229", f"`{name}`: padding {most} is not smaller than the kernel "
                          f"{size}", f"padding is at most {size - 1}, or a window would hold "
                          "nothing but padding")
    return kernel, kernel if stride is None else pair(name, "stride", stride), border


def _infer_pool(name):
    def infer(x: TensorType, *, kernel, stride, padding, layout, **_) -> TensorType:
        check_layout(name, layout)
        same_dtype(name, (x,), FLOATS)
        check_rank(name, x, 4, "[N, C, H, W]" if layout == "nchw" else "[N, H, W, C]")
        kernel, stride, border = _pool_window(name, kernel, stride, padding)
        size = tuple(x.shape[axis] for axis in SPATIAL[layout])
        sizes = window_sizes(name, size, kernel, stride, border)
        return TensorType(arranged(x.shape[0], x.shape[CHANNELS[layout]], sizes, layout), x.dtype)

    return infer


def _numpy_max_pool(x, *, kernel, stride, padding, layout):
    x = channels_first(x, layout)
    kernel, stride, border = _pool_window("max_pool2d", kernel, stride, padding)
    counts = window_sizes("max_pool2d", x.shape[2:], kernel, stride, border)
    x = bordered(x, border, -np.inf)
    y = np.full((*x.shape[:2], *counts), -np.inf, x.dtype)
    for _, _, place in places(kernel):
        y = np.maximum(y, patch_at(x, place, counts, stride))
    return as_layout(y, layout)


def _numpy_max_pool_grad(x, ct, *, kernel, stride, padding, layout):
    x, ct = channels_first(x, layout), channels_first(ct, layout)
    kernel, stride, border = _pool_window("max_pool2d", kernel, stride, padding)
    counts = ct.shape[2:]
    inside = bordered(np.ones((1, 1, *x.shape[2:]), bool), border, False)
    wide = bordered(x, border, -np.inf)
    best = np.full(ct.shape, -np.inf, x.dtype)
    where = np.full(ct.shape, -1, np.int32)
    for number, (_, _, place) in enumerate(places(kernel)):
        here = patch_at(wide, place, counts, stride)
        better = (where < 0) | (here > best) | np.isnan(here)
        better &= patch_at(inside, place, counts, stride)
        best, where = np.where(better, here, best), np.where(better, number, where)
    dx = np.zeros_like(wide)
    for number, (_, _, place) in enumerate(places(kernel)):
        part = patch_at(dx, place, counts, stride)
        part += np.where(where == number, ct, 0)
    return as_layout(_cut(dx, border), layout)


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
          ragged=window(-math.inf), attrs=POOL, samples=POOLED, bad=BAD_POOL,
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
    counts = window_sizes("avg_pool2d", sizes, kernel, stride, border)
    if count_padding:
        return np.full(counts, kernel[0] * kernel[1], dtype)
    inside = np.pad(np.ones(sizes, dtype), border)
    return _sum_of_patches(inside, counts, kernel, stride)


def _sum_of_patches(x, counts, kernel, stride):
    total = np.zeros((*x.shape[:-2], *counts), x.dtype)
    for _, _, place in places(kernel):
        total += patch_at(x, place, counts, stride)
    return total


def _numpy_avg_pool(x, *, kernel, stride, padding, count_padding, layout):
    x = channels_first(x, layout)
    kernel, stride, border = _pool_window("avg_pool2d", kernel, stride, padding)
    over = _divisors(x.shape[2:], kernel, stride, border, count_padding, x.dtype)
    total = _sum_of_patches(bordered(x, border), over.shape, kernel, stride)
    return as_layout(total / over, layout)


def _numpy_avg_pool_grad(ct, *, size, kernel, stride, padding, count_padding, layout):
    ct = channels_first(ct, layout)
    kernel, stride, border = _pool_window("avg_pool2d", kernel, stride, padding)
    each = ct / _divisors(size, kernel, stride, border, count_padding, ct.dtype)
    dx = bordered(np.zeros((*ct.shape[:2], *size), ct.dtype), border)
    for _, _, place in places(kernel):
        part = patch_at(dx, place, ct.shape[2:], stride)
        part += each
    return as_layout(_cut(dx, border), layout)


def _infer_avg_pool_grad(ct: TensorType, *, size, layout, **attrs) -> TensorType:
    name = "avg_pool2d_grad"
    check_layout(name, layout)
    same_dtype(name, (ct,), FLOATS)
    check_rank(name, ct, 4, "the gradient of the result")
    shape = arranged(ct.shape[0], ct.shape[CHANNELS[layout]], size, layout)
    x = TensorType(shape, ct.dtype)
    _check_gradient(name, x, ct, {**attrs, "layout": layout}, 0)
    return x


def _avg_pool_vjp(m, ct, y, x, *, layout, **attrs):
    size = tuple(x.shape[axis] for axis in SPATIAL[layout])
    return (m.avg_pool2d_grad(ct, size=size, layout=layout, **attrs),)


AVERAGE = {**POOL, "count_padding": True}

primitive("avg_pool2d", "window", infer=_infer_pool("avg_pool2d"), numpy=_numpy_avg_pool,
          ragged=window(0.0), attrs=AVERAGE, bad=BAD_POOL, vjp=_avg_pool_vjp,
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
    check_line(name, x)
    kernel = single(name, "kernel", kernel)
    step = kernel if stride is None else single(name, "stride", stride)
    sides = line_padding(name, padding)
    _pool_window(name, (1, kernel), (1, step), ((0, 0), sides))
    window_size(name, x.shape[2], kernel, step, sides)
    y = operator(as_image(m, x), kernel=(1, kernel), stride=(1, step), padding=((0, 0), sides),
                 **more)
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
