"""Rows looked up by index, and their gradient."""

from __future__ import annotations

import numpy as np

from lamina.compiler.ir.op import REQUIRED, OpError
from lamina.compiler.ir.types import FLOATS, TensorType, shape_text
from lamina.compiler.ops.define import composite, primitive, same_dtype
from lamina.compiler.ops.ragged import looked_up

INDEX = ("i32", "i64")


def _infer_take(table: TensorType, index: TensorType) -> TensorType:
    same_dtype("take", (index,), INDEX)
    if table.rank == 0:
        raise OpError("E225", "`take` needs a table with at least one axis, not a scalar", "", (0,))
    return TensorType((*index.shape, *table.shape[1:]), table.dtype)


def _checked(name: str, index, rows: int):
    """The index, when all of it lies within `rows`. Raises ValueError."""
    index = np.asarray(index)
    wrong = (index < 0) | (index >= rows)
    if wrong.any():
        raise ValueError(f"{name}: index {index[wrong].flat[0]} is outside a table of {rows} rows "
                         f"(0 to {rows - 1})")
    return index


primitive("take", "gather", infer=_infer_take, arity=(2, 2), ragged=looked_up, torch="a[b.long()]",
          numpy=lambda table, index: table[_checked("take", index, len(table))],
          vjp=lambda m, ct, y, table, index: (
              m.take_grad(ct, index, rows=table.shape[0]), None),
          samples=("t:[5,3] i:i32[4]<5", "t:[5,3] i:i64[2,3]<5", "t:[7] i:i32[5]<7",
                   "t:[5,2,3] i:i32[]<5", "t:[5,3] i:i32[0]<5"),
          bad={"E204": "t:[5,3] i:[4]", "E225": "t:[] i:i32[4]"},
          doc="Rows of a table by an index of any shape, from 0. On target numpy an index outside "
              "the table is a ValueError.")


def _infer_take_grad(ct: TensorType, index: TensorType, *, rows) -> TensorType:
    same_dtype("take_grad", (index,), INDEX)
    same_dtype("take_grad", (ct,), FLOATS)
    if ct.shape[:index.rank] != index.shape:
        raise OpError("E210", f"`take_grad`: a gradient {shape_text(ct.shape)} does not start with "
                      f"the index's shape {shape_text(index.shape)}", "", (0, 1))
    return TensorType((rows, *ct.shape[index.rank:]), ct.dtype)


def _numpy_take_grad(ct, index, *, rows):
    index = _checked("take_grad", index, rows)
    table = np.zeros((rows, *ct.shape[index.ndim:]), ct.dtype)
    np.add.at(table, index, ct)
    return table


primitive("take_grad", "gather", infer=_infer_take_grad, numpy=_numpy_take_grad, arity=(2, 2),
          attrs={"rows": REQUIRED}, public=False,
          vjp=lambda m, ct, y, g, index, *, rows: (m.take(ct, index), None),
          samples=("y:[4,3] i:i32[4]<5 | rows=5", "y:[2,3,2] i:i64[2,3]<5 | rows=5",
                   "y:[6] i:i32[6]<2 | rows=2", "y:[3] i:i32[]<5 | rows=5"),
          torch="torch.zeros(rows, *a.shape[b.ndim:], dtype=a.dtype).index_put("
                "(b.long(),), a, accumulate=True)",
          bad={"E210": "y:[3,3] i:i32[4] | rows=5", "E204": "y:[4] i:[4] | rows=5"},
          doc="Gradient of take: rows of the gradient summed into a table of `rows` rows.")


@composite("one_hot", attrs={"depth": REQUIRED}, torch="oracle.one_hot(a, depth)",
           samples=("i:i32[4]<5 | depth=5", "i:i64[2,3]<7 | depth=7", "i:i32[]<3 | depth=3"),
           bad={"E204": "x:[4] | depth=5"})
def one_hot(m, index, *, depth):
    """f32 vectors of size `depth`: 1 at the index, 0 elsewhere (all 0 for an index outside)."""
    dtype = m.dtype_of(index)
    if dtype not in INDEX:
        raise OpError("E204", f"`one_hot` does not take elements of type {dtype}",
                      f"it takes {' or '.join(INDEX)}", (0,))
    shape = (*index.shape, depth)
    place = m.iota(shape=shape, axis=len(shape) - 1, dtype=dtype)
    return m.cast(m.equal(m.reshape(index, shape=(*index.shape, 1)), place), dtype="f32")
