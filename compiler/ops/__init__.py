"""Every operator, once: `OPS` maps names to records."""

from collections.abc import Mapping
from types import MappingProxyType

from lamina.compiler.ir.op import Op
from lamina.compiler.ops import (  # noqa: F401  (they register)
    contract,
    control,
    conv,
    detect,
    elementwise,
    gather,
    losses,
    normalise,
    pool,
    random,
    reduce,
    resample,
    shape,
    source,
)
from lamina.compiler.ops.define import REGISTRY, GraphMath, NumpyMath, Var

OPS: Mapping[str, Op] = MappingProxyType(REGISTRY)

__all__ = ["OPS", "GraphMath", "NumpyMath", "Var"]
