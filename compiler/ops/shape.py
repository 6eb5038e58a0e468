"""Operators that move, repeat, cut or join elements."""

from __future__ import annotations

import numpy as np

from lamina.compiler.ir.op import REQUIRED, OpError
from lamina.compiler.ir.types import (
    DTYPES,
    NUMPY_TYPES,
    Dim,
    TensorType,
    ceil_div,
    divide_exactly,
    product,
    shape_text,
)
from lamina.compiler.ops.define import (
    composite,
    normalize_axes,
    normalize_axis,
    primitive,
    same_dtype,
)
from lamina.compiler.ops.ragged import bordered, cut, each, joined, kept, turned


def _infer_reshape(x: TensorType, *, shape: tuple[Dim, ...]) -> TensorType:
    unknown = [axis for axis, dim in enumerate(shape) if dim == -1]
    if len(unknown) > 1:
        raise OpError("E212", f"`reshape` to {shape_text(shape)}: only one size may be -1")
    total = product(x.shape)
    if unknown:
        rest = product(dim for dim in shape if dim != -1)
        missing = divide_exactly(total, rest)
        if missing is None:
            raise OpError("E212", f"cannot reshape {shape_text(x.shape)} to {shape_text(shape)}: "
                          f"{total} elements are not a multiple of {rest}")
        shape = tuple(missing if dim == -1 else dim for dim in shape)
    if product(shape) != total:
        raise OpError("E212", f"cannot reshape {shape_text(x.shape)} to {shape_text(shape)}: "
                      f"{total} elements into {product(shape)}",
                      "the number of elements must stay the same")
    return TensorType(tuple(shape), x.dtype)


primitive("reshape", "view", infer=_infer_reshape, attrs={"shape": REQUIRED}, ragged=kept,
          numpy=lambda x, *, shape: np.reshape(x, shape),
          vjp=lambda m, ct, y, x, *, shape: (m.reshape(ct, shape=x.shape),),
          torch="a.reshape(shape)",
          samples=("x:[2,6] | shape=(3, 4)", "x:[2,3,5] | shape=(2, -1)", "x:[1] | shape=()"),
          bad={"E212": "x:[2,3] | shape=(4, 2)"},
          doc="The same elements in row-major order under another shape.")


def _infer_transpose(x: TensorType, *, perm: tuple[int, ...]) -> TensorType:
    if sorted(perm) != list(range(x.rank)):
        raise OpError("E213", f"`transpose`: {perm} is not a permutation of the {x.rank} axes")
    return TensorType(tuple(x.shape[axis] for axis in perm), x.dtype)


def inverse(perm: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes `perm`."""
    return tuple(perm.index(axis) for axis in range(len(perm)))


primitive("transpose", "view", infer=_infer_transpose, attrs={"perm": REQUIRED}, ragged=each,
          numpy=lambda x, *, perm: np.transpose(x, perm),
          vjp=lambda m, ct, y, x, *, perm: (m.transpose(ct, perm=inverse(perm)),),
          torch="a.permute(perm)",
          samples=("x:[2,3] | perm=(1, 0)", "x:[2,3,4] | perm=(2, 0, 1)"),
          bad={"E213": "x:[2,3] | perm=(0, 0)"}, doc="Axes in another order.")


def _infer_broadcast_to(x: TensorType, *, shape: tuple[Dim, ...]) -> TensorType:
    lead = len(shape) - x.rank
    if lead < 0 or any(a not in (1, b) for a, b in zip(x.shape, shape[lead:], strict=True)):
        raise OpError("E210", f"cannot broadcast {shape_text(x.shape)} to {shape_text(shape)}",
                      "sizes must be equal or 1")
    return TensorType(tuple(shape), x.dtype)


primitive("broadcast_to", "view", infer=_infer_broadcast_to, attrs={"shape": REQUIRED},
          ragged=each,
          numpy=lambda x, *, shape: np.broadcast_to(x, shape),
          vjp=lambda m, ct, y, x, *, shape: (ct,),  # differentiation undoes broadcasting
          torch="a.broadcast_to(shape)",
          samples=("x:[3,1] | shape=(2, 3, 4)", "x:[] | shape=(2,)"),
          bad={"E210": "x:[3] | shape=(2, 4)"}, doc="Repeat along axes of size 1 and new axes.")


def _slices(rank: int, starts, stops, steps) -> tuple[slice, ...]:
    return tuple(slice(a, b, c) for a, b, c in zip(starts, stops, steps, strict=True))


def _infer_slice(x: TensorType, *, starts, stops, steps) -> TensorType:
    if not len(starts) == len(stops) == len(steps) == x.rank:
        raise OpError("E214", f"`slice` needs one start, stop and step for each of {x.rank} axes")
    shape = []
    for axis, (start, stop, step) in enumerate(zip(starts, stops, steps, strict=True)):
        size = x.shape[axis]
        outside = isinstance(size, int) and isinstance(stop, int) and stop > size
        if outside or step < 1 or (isinstance(start, int) and start < 0):
            raise OpError("E214", f"`slice` {start}:{stop}:{step} lies outside axis {axis} "
                          f"of {shape_text(x.shape)}")
        length = ceil_div(stop - start, step)
        shape.append(max(0, length) if isinstance(length, int) else length)
    return TensorType(tuple(shape), x.dtype)


def _slice_vjp(m, ct, y, x, *, starts, stops, steps):
    lo, hi, interior = [], [], []
    for size, out, start, step in zip(x.shape, ct.shape, starts, steps, strict=True):
        lo.append(start)
        interior.append(step - 1)
        covered = 0 if out == 0 else (out - 1) * step + 1
        hi.append(size - start - covered)
    return (m.pad(ct, lo=tuple(lo), hi=tuple(hi), interior=tuple(interior)),)


primitive("slice", "view", infer=_infer_slice, ragged=cut,
          attrs={"starts": REQUIRED, "stops": REQUIRED, "steps": REQUIRED},
          numpy=lambda x, *, starts, stops, steps: x[_slices(x.ndim, starts, stops, steps)],
          vjp=_slice_vjp,
          samples=("x:[7,5] | starts=(1, 0), stops=(6, 5), steps=(2, 1)",),
          torch="a[tuple(slice(i, j, k) for i, j, k in zip(starts, stops, steps))]",
          bad={"E214": "x:[3] | starts=(0,), stops=(4,), steps=(1,)"},
          doc="A regular part along every axis.")

def _infer_reverse(x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
    normalize_axes("reverse", axes, x.rank)
    return x


primitive("reverse", "view", infer=_infer_reverse, attrs={"axes": REQUIRED}, ragged=turned,
          numpy=lambda x, *, axes: np.flip(x, axes),
          vjp=lambda m, ct, y, x, *, axes: (m.reverse(ct, axes=axes),), torch="a.flip(axes)",
          samples=("x:[3,4] | axes=(0, 1)", "x:[5] | axes=(0,)"),
          bad={"E211": "x:[3] | axes=(1,)"}, doc="Elements in opposite order along the axes.")


def _infer_pad(x: TensorType, *, lo, hi, interior, value) -> TensorType:
    between = interior or (0,) * x.rank
    if not len(lo) == len(hi) == len(between) == x.rank:
        raise OpError("E215", f"`pad` needs one amount per axis of {shape_text(x.shape)}")
    shape = []
    for size, low, high, inner in zip(x.shape, lo, hi, between, strict=True):
        inside = size if inner == 0 else 0 if size == 0 else (size - 1) * (inner + 1) + 1
        out = inside + low + high
        if isinstance(out, int) and out < 0:
            raise OpError("E215", f"`pad` by ({low}, {high}) leaves a negative size from {size}")
        shape.append(out)
    return TensorType(tuple(shape), x.dtype)


def _numpy_pad(x, *, lo, hi, interior, value):
    between = interior or (0,) * x.ndim
    spread = tuple(n if i == 0 else max(0, (n - 1) * (i + 1) + 1)
                   for n, i in zip(x.shape, between, strict=True))
    if spread != x.shape:
        wide = np.full(spread, value, x.dtype)
        wide[tuple(slice(None, None, i + 1) for i in between)] = x
        x = wide
    x = np.pad(x, [(max(0, a), max(0, b)) for a, b in zip(lo, hi, strict=True)],
               constant_values=np.asarray(value, x.dtype))
    cut = tuple(slice(max(0, -a), n - max(0, -b)) for a, b, n in zip(lo, hi, x.shape, strict=True))
    return x[cut]


def _pad_vjp(m, ct, y, x, *, lo, hi, interior, value):
    between = interior or (0,) * len(lo)
    # Undo the border (a negative border was a cut, which a border restores), then the gaps.
    back = m.pad(ct, lo=tuple(-a for a in lo), hi=tuple(-b for b in hi))
    if not any(between):
        return (back,)
    zero = (0,) * len(lo)
    return (m.slice(back, starts=zero, stops=back.shape, steps=tuple(i + 1 for i in between)),)


primitive("pad", "view", infer=_infer_pad, numpy=_numpy_pad, vjp=_pad_vjp, ragged=bordered,
          attrs={"lo": REQUIRED, "hi": REQUIRED, "interior": (), "value": 0.0},
          samples=("x:[2,3] | lo=(1, 0), hi=(0, 2)",
                   "x:[2,3] | lo=(0, 1), hi=(1, 1), interior=(1, 2)",
                   "x:[5] | lo=(-1,), hi=(2,)"),
          torch="oracle.pad(a, lo, hi, interior, value)",
          bad={"E215": "x:[3] | lo=(-2,), hi=(-2,)"},
          doc="A border (negative: a cut) and gaps between elements, filled with `value`.")


def _infer_concat(*types: TensorType, axis: int) -> TensorType:
    same_dtype("concat", types, DTYPES)
    axis = normalize_axis("concat", axis, types[0].rank)
    first = types[0].shape
    for index, type in enumerate(types[1:], start=1):
        if type.rank != len(first) or any(
                i != axis and a != b
                for i, (a, b) in enumerate(zip(first, type.shape, strict=True))):
            raise OpError("E216", f"cannot concatenate {shape_text(first)} and "
                          f"{shape_text(type.shape)} along axis {axis}",
                          _unequal(first, type.shape, axis), (0, index))
    total = sum((type.shape[axis] for type in types[1:]), start=first[axis])
    return TensorType((*first[:axis], total, *first[axis + 1:]), types[0].dtype)


def _unequal(first: tuple[Dim, ...], other: tuple[Dim, ...], axis: int) -> str:
    """Which sizes differ, and the way out for maps of which one is a little larger."""
    rule = "all other sizes must be equal"
    if len(first) != len(other):
        return f"{rule}; these have {len(first)} and {len(other)} axes"
    apart = [i for i, (a, b) in enumerate(zip(first, other, strict=True)) if i != axis and a != b]
    text = f"{rule}; " + ", ".join(f"axis {i} has {first[i]} and {other[i]}" for i in apart)
    if len(first) == 4 and axis == 1 and set(apart) <= {2, 3}:
        text += ": `(larger, smaller) -> crop` cuts the larger map, or choose an input whose " \
                "sizes every pool and stride on the way divides"
    return text


def _concat_vjp(m, ct, y, *xs, axis):
    rank = len(ct.shape)
    axis %= rank
    start, parts = 0, []
    for x in xs:
        stop = start + x.shape[axis]
        starts = tuple(start if i == axis else 0 for i in range(rank))
        stops = tuple(stop if i == axis else n for i, n in enumerate(ct.shape))
        parts.append(m.slice(ct, starts=starts, stops=stops, steps=(1,) * rank))
        start = stop
    return tuple(parts)


primitive("concat", "view", infer=_infer_concat, arity=(1, -1), attrs={"axis": 0},
          ragged=joined,
          numpy=lambda *xs, axis: np.concatenate(xs, axis), vjp=_concat_vjp,
          samples=("x:[2,3] y:[4,3]", "x:[2,3] y:[2,1] z:[2,2] | axis=-1"),
          torch="torch.cat([a, b] if n == 2 else [a, b, c], axis)",
          bad={"E216": "x:[2,3] y:[2,4]", "E211": "x:[2] y:[2] | axis=1"},
          doc="Join along an axis.")


primitive("again", "view", infer=lambda x: x, public=False, ragged=each,
          numpy=lambda x: x, vjp=lambda m, ct, y, x: (ct,),
          samples=("x:[3,4]", "x:i32[17]", "x:[]", "x:[0,3]"),
          doc="The operand itself. What is made of it is never shared with what is made of the "
              "operand: it is computed again.")


primitive("iota", "random", infer=lambda *, shape, axis, dtype: TensorType(tuple(shape), dtype),
          arity=(0, 0), attrs={"shape": REQUIRED, "axis": 0, "dtype": "i32"},
          samples=("| shape=(3, 4)", "| shape=(3, 4), axis=1", "| shape=(5,), dtype='i64'"),
          torch="oracle.iota(shape, axis, dtype)",
          numpy=lambda *, shape, axis, dtype: np.broadcast_to(
              np.arange(shape[axis], dtype=NUMPY_TYPES[dtype]).reshape(
                  [-1 if i == axis else 1 for i in range(len(shape))]), shape),
          doc="Each element is its own position along `axis`.")


@composite("flatten", attrs={"start": 1}, torch="a.flatten(start) if a.ndim > start else a",
           samples=("x:[2,3,4]", "x:[2,3,4,5] | start=2", "x:[3]"))
def flatten(m, x, *, start):
    """Join all axes from `start` on into one."""
    if len(x.shape) <= start:
        return m.reshape(x, shape=x.shape)
    return m.reshape(x, shape=(*x.shape[:start], product(x.shape[start:])))


@composite("squeeze", attrs={"axis": REQUIRED}, torch="a.squeeze(axis)",
           samples=("x:[2,1,3] | axis=1", "x:[2,1] | axis=-1"), bad={"E217": "x:[2,3] | axis=1"})
def squeeze(m, x, *, axis):
    """Remove axes of size 1."""
    axes = normalize_axes("squeeze", axis, len(x.shape))
    for one in axes:
        if x.shape[one] != 1:
            raise OpError("E217", f"`squeeze`: axis {one} of {shape_text(x.shape)} has size "
                          f"{x.shape[one]}, not 1")
    return m.reshape(x, shape=tuple(n for i, n in enumerate(x.shape) if i not in axes))


@composite("expand_dims", attrs={"axis": REQUIRED}, torch="a.unsqueeze(axis)",
           samples=("x:[2,3] | axis=1", "x:[2] | axis=-1"), bad={"E211": "x:[2] | axis=3"})
def expand_dims(m, x, *, axis):
    """Insert an axis of size 1."""
    axis = normalize_axis("expand_dims", axis, len(x.shape) + 1)
    return m.reshape(x, shape=(*x.shape[:axis], 1, *x.shape[axis:]))


def split_bounds(name: str, size: Dim, parts: int) -> Dim:
    """The size of each of `parts` equal parts. Raises OpError E218."""
    each = divide_exactly(size, parts)
    if each is None or parts < 1:
        raise OpError("E218", f"`{name}`: an axis of size {size} does not divide into {parts} "
                      "equal parts", "give a number of parts that divides the size")
    return each


@composite("part", attrs={"index": REQUIRED, "parts": REQUIRED, "axis": 0},
           samples=("x:[6,2] | index=1, parts=3",), bad={"E218": "x:[5] | index=0, parts=2"},
           torch="torch.chunk(a, parts, axis)[index]")
def part(m, x, *, index, parts, axis):
    """One of `parts` equal parts along an axis."""
    axis = normalize_axis("split", axis, len(x.shape))
    each = split_bounds("split", x.shape[axis], parts)
    if not 0 <= index < parts:
        raise OpError("E218", f"`split`: there is no part {index} of {parts}",
                      f"parts are counted from 0 to {parts - 1}")
    rank = len(x.shape)
    starts = tuple(each * index if i == axis else 0 for i in range(rank))
    stops = tuple(each * (index + 1) if i == axis else n for i, n in enumerate(x.shape))
    return m.slice(x, starts=starts, stops=stops, steps=(1,) * rank)
