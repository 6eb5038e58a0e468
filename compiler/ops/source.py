"""Sources of values: inputs, parameters and constants."""

from __future__ import annotations

from lamina.compiler.ir.op import REQUIRED
from lamina.compiler.ir.types import TensorType
from lamina.compiler.ops.define import primitive


def _declared(*, shape, dtype, **_) -> TensorType:
    return TensorType(tuple(shape), dtype)


primitive("input", "source", infer=_declared, arity=(0, 0), public=False,
          attrs={"name": REQUIRED, "shape": REQUIRED, "dtype": "f32"},
          doc="A tensor given at each run.")

primitive("param", "source", infer=_declared, arity=(0, 0), public=False,
          attrs={"key": REQUIRED, "shape": REQUIRED, "dtype": "f32", "init": ("zeros",),
                 "trainable": True},
          doc="A tensor kept between runs: a weight (trainable) or a running statistic. "
              "`key` is its checkpoint key, `init` the initialiser's name and arguments.")

primitive("const", "source", infer=lambda *, value, dtype: TensorType((), dtype), arity=(0, 0),
          attrs={"value": REQUIRED, "dtype": "f32"}, public=False,
          doc="A scalar known when compiled, or a size known when planned.")
