"""Operators that carry a body graph."""

from __future__ import annotations

from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.op import OpError
from lamina.compiler.ir.types import TensorType
from lamina.compiler.ops.define import primitive


def _infer_fused(body: Graph, *types: TensorType, pattern: str) -> tuple[TensorType, ...]:
    declared = [body.type(body.inputs[f"x{index}"]) for index in range(len(types))]
    if list(types) != declared:
        raise OpError("E219", f"the fused group takes {declared}, given {list(types)}")
    return tuple(body.type(value) for _, value in body.outputs)


# pattern "loop": one nest of loops; "epilogue": a contraction whose results are finished in place.
primitive("fused", "control", infer=_infer_fused, arity=(0, -1), attrs={"pattern": "loop"},
          public=False, doc="Several operators computed by one kernel; the body says which.")
