"""Reductions over axes, and what is made of them: means, softmax, normalisation."""

from __future__ import annotations

import math

import numpy as np

from lamina.compiler.ir.op import REQUIRED
from lamina.compiler.ir.types import TensorType
from lamina.compiler.ops.define import (
    composite,
    normalize_axes,
    normalize_axis,
    primitive,
    same_dtype,
)
from lamina.compiler.ops.ragged import normalised, reduced

NUMBERS = ("f32", "f64", "i32", "i64")
OVER = ("x:[3,4]", "x:[3,4] | axis=1", "x:[2,3,5] | axis=(0, 2)",
        "x:[2,3,5] | axis=-1, keepdims=True", "x:[1,17] | axis=1")
WRONG_AXIS = {"E211": "x:[3] | axis=1"}


def _infer(name):
    def infer(x: TensorType, *, axes) -> TensorType:
        same_dtype(name, (x,), NUMBERS)
        kept = normalize_axes(name, axes, x.rank)
        return TensorType(tuple(1 if i in kept else n for i, n in enumerate(x.shape)), x.dtype)

    return infer


def _limits(x):
    """The smallest and the largest number of the type: the extrema of no elements at all."""
    if np.issubdtype(x.dtype, np.floating):
        return -np.inf, np.inf
    return np.iinfo(x.dtype).min, np.iinfo(x.dtype).max


def _extremum_vjp(m, ct, y, x, *, axes):
    """Equal extrema share the gradient, as in PyTorch's amax."""
    hit = m.cast(m.equal(x, y), dtype=m.dtype_of(x))
    return (ct * hit / m.reduce_sum(hit, axes=axes),)


# These keep reduced axes with size 1; `sum`, `max`, `min` below drop them on request.
primitive("reduce_sum", "reduce", infer=_infer("sum"), attrs={"axes": REQUIRED}, public=False,
          ragged=reduced(0.0),
          numpy=lambda x, *, axes: np.sum(x, axes, keepdims=True, dtype=x.dtype),
          vjp=lambda m, ct, y, x, *, axes: (m.broadcast_to(ct, shape=x.shape),),
          samples=("x:[3,4] | axes=(1,)", "x:[2,3,5] | axes=(0, 1)", "x:[0,3] | axes=(0,)"),
          torch="a.sum(axes, keepdim=True)", bad={"E211": "x:[3] | axes=(1,)"},
          doc="Sum over axes, kept with size 1.")
primitive("reduce_max", "reduce", infer=_infer("max"), attrs={"axes": REQUIRED}, public=False,
          ragged=reduced(-math.inf),
          numpy=lambda x, *, axes: np.max(x, axes, keepdims=True, initial=_limits(x)[0]),
          vjp=_extremum_vjp,
          samples=("x:[3,4] | axes=(1,)", "x:[2,3,5] | axes=(0, 1)"),
          torch="a.amax(axes, keepdim=True)", bad={"E211": "x:[3] | axes=(1,)"},
          doc="Largest over axes, kept with size 1; -inf over no elements, NaN if any is.")
primitive("reduce_min", "reduce", infer=_infer("min"), attrs={"axes": REQUIRED}, public=False,
          ragged=reduced(math.inf),
          numpy=lambda x, *, axes: np.min(x, axes, keepdims=True, initial=_limits(x)[1]),
          vjp=_extremum_vjp,
          samples=("x:[3,4] | axes=(1,)", "x:[2,3,5] | axes=(0, 1)"),
          torch="a.amin(axes, keepdim=True)", bad={"E211": "x:[3] | axes=(1,)"},
          doc="Smallest over axes, kept with size 1; inf over no elements, NaN if any is.")


def _drop(m, x, axes, keepdims):
    if keepdims:
        return x
    return m.reshape(x, shape=tuple(n for i, n in enumerate(x.shape) if i not in axes))


TORCH = "a.{0}(dim=tuple(range(a.ndim)) if axis is None else axis, keepdim=keepdims)"


@composite("sum", attrs={"axis": None, "keepdims": False}, samples=OVER, bad=WRONG_AXIS,
           torch=TORCH.format("sum"))
def sum_(m, x, *, axis, keepdims):
    """Sum over axes (all when not given)."""
    axes = normalize_axes("sum", axis, len(x.shape))
    return _drop(m, m.reduce_sum(x, axes=axes), axes, keepdims)


@composite("max", attrs={"axis": None, "keepdims": False}, samples=OVER, bad=WRONG_AXIS,
           torch=TORCH.format("amax"))
def max_(m, x, *, axis, keepdims):
    """Largest over axes (all when not given)."""
    axes = normalize_axes("max", axis, len(x.shape))
    return _drop(m, m.reduce_max(x, axes=axes), axes, keepdims)


@composite("min", attrs={"axis": None, "keepdims": False}, samples=OVER, bad=WRONG_AXIS,
           torch=TORCH.format("amin"))
def min_(m, x, *, axis, keepdims):
    """Smallest over axes (all when not given)."""
    axes = normalize_axes("min", axis, len(x.shape))
    return _drop(m, m.reduce_min(x, axes=axes), axes, keepdims)


@composite("mean", attrs={"axis": None, "keepdims": False}, samples=OVER, bad=WRONG_AXIS,
           torch=TORCH.format("mean"))
def mean(m, x, *, axis, keepdims):
    """Arithmetic mean over axes (all when not given)."""
    axes = normalize_axes("mean", axis, len(x.shape))
    return _drop(m, m.reduce_sum(x, axes=axes) / m.count(x, axes), axes, keepdims)


@composite("variance", attrs={"axis": None, "keepdims": False}, samples=OVER, bad=WRONG_AXIS,
           torch="a.var(dim=tuple(range(a.ndim)) if axis is None else axis, unbiased=False, "
                 "keepdim=keepdims)")
def variance(m, x, *, axis, keepdims):
    """Mean squared distance from the mean, over axes."""
    axes = normalize_axes("variance", axis, len(x.shape))
    d = x - m.mean(x, axis=axes, keepdims=True)
    return m.mean(d * d, axis=axes, keepdims=keepdims)


@composite("softmax", attrs={"axis": -1}, samples=("x:[3,4]", "x:[2,5,3] | axis=1"), bad=WRONG_AXIS,
           ragged=normalised,
           torch="torch.softmax(a, axis)",
           vjp=lambda m, ct, y, x, *, axis: (
               (ct - m.sum(ct * y, axis=axis, keepdims=True)) * y,))
def softmax(m, x, *, axis):
    """exp(x) scaled to sum 1 along an axis; shifted by the maximum against overflow."""
    e = m.exp(x - m.max(x, axis=axis, keepdims=True))
    return e / m.sum(e, axis=axis, keepdims=True)


@composite("log_softmax", attrs={"axis": -1}, samples=("x:[3,4]", "x:[2,5,3] | axis=1"),
           bad=WRONG_AXIS, ragged=normalised, torch="torch.log_softmax(a, axis)",
           vjp=lambda m, ct, y, x, *, axis: (
               ct - m.exp(y) * m.sum(ct, axis=axis, keepdims=True),))
def log_softmax(m, x, *, axis):
    """Logarithm of softmax, without forming it."""
    d = x - m.max(x, axis=axis, keepdims=True)
    return d - m.log(m.sum(m.exp(d), axis=axis, keepdims=True))


@composite("argmax", attrs={"axis": -1}, samples=("x:[3,4]", "x:[2,5,3] | axis=1"), bad=WRONG_AXIS,
           torch="a.argmax(axis).int()")
def argmax(m, x, *, axis):
    """Position of the largest element along an axis, the first among equals or of the NaNs; i32."""
    axis = normalize_axis("argmax", axis, len(x.shape))
    top = m.reduce_max(x, axes=(axis,))
    place = m.iota(shape=x.shape, axis=axis)
    hit = m.logical_or(m.equal(x, top), m.not_equal(x, x))
    first = m.reduce_min(m.select(hit, place, 2**31 - 1), axes=(axis,))
    return m.reshape(first, shape=(*x.shape[:axis], *x.shape[axis + 1:]))
