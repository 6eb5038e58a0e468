"""Matrix products."""

from __future__ import annotations

import numpy as np

from lamina.compiler.ir.op import OpError
from lamina.compiler.ir.types import FLOATS, Dim, TensorType, product, shape_text
from lamina.compiler.ops.define import broadcast, primitive, same_dtype
from lamina.compiler.ops.ragged import contracted


def _infer_matmul(x: TensorType, y: TensorType) -> TensorType:
    same_dtype("matmul", (x, y), FLOATS)
    for index, type in enumerate((x, y)):
        if type.rank < 2:
            raise OpError("E225", f"`matmul` takes matrices, not {shape_text(type.shape)} of rank "
                          f"{type.rank}", "add an axis of size 1 with `expand_dims`", (index,))
    if x.shape[-1] != y.shape[-2]:
        raise OpError("E220", f"cannot multiply {shape_text(x.shape)} by {shape_text(y.shape)}: "
                      f"the inner sizes {x.shape[-1]} and {y.shape[-2]} differ",
                      "the last axis of the left and the last but one of the right must be equal",
                      (0, 1))
    batch = broadcast("matmul", (TensorType(x.shape[:-2]), TensorType(y.shape[:-2])))
    return TensorType((*batch, x.shape[-2], y.shape[-1]), x.dtype)


def _swap(m, x):
    """The last two axes exchanged."""
    rank = len(x.shape)
    return m.transpose(x, perm=(*range(rank - 2), rank - 1, rank - 2))


def _rows(m, x):
    """All axes but the last joined into one."""
    return m.reshape(x, shape=(product(x.shape[:-1]), x.shape[-1]))


def _matmul_vjp(m, ct, z, x, y):
    if len(y.shape) == 2 and len(x.shape) > 2:
        # One matrix for the whole batch: contract over batch and rows at once.
        return m.matmul(ct, _swap(m, y)), m.matmul(_swap(m, _rows(m, x)), _rows(m, ct))
    return m.matmul(ct, _swap(m, y)), m.matmul(_swap(m, x), ct)


def _matmul_macs(out: TensorType, x: TensorType, y: TensorType) -> Dim:
    return product(out.shape) * x.shape[-1]


primitive("matmul", "contract", infer=_infer_matmul, numpy=np.matmul, arity=(2, 2),
          ragged=contracted, vjp=_matmul_vjp, macs=_matmul_macs, torch="a @ b",
          samples=("x:[3,4] y:[4,5]", "x:[2,3,4] y:[4,5]", "x:[2,3,4] y:[2,4,5]",
                   "x:[2,1,3,4] y:[5,4,2]", "x:[4,3] y:[7,3,2]", "x:[1,129] y:[129,1]",
                   "x:[3,0] y:[0,2]"),
          bad={"E220": "x:[3,4] y:[5,4]", "E225": "x:[4] y:[4,5]", "E205": "x:[2,2] y:f64[2,2]",
               "E204": "x:i32[2,2] y:i32[2,2]", "E210": "x:[2,3,4] y:[3,4,5]"},
          doc="Matrix product over the last two axes; leading axes broadcast as in NumPy. "
              "Operands have at least two axes.")
