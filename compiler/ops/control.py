"""Operators that carry a body graph."""

from __future__ import annotations

from collections.abc import Sequence

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Value
from lamina.compiler.ir.op import REQUIRED, OpError
from lamina.compiler.ir.types import Dim, TensorType
from lamina.compiler.ops.define import GraphMath, primitive

FREE = ("const", "iota")  # cheap enough to repeat inside every body that reads them


def _infer_fused(body: Graph, *types: TensorType, pattern: str) -> tuple[TensorType, ...]:
    declared = [body.type(body.inputs[f"x{index}"]) for index in range(len(types))]
    if list(types) != declared:
        raise OpError("E219", f"the fused group takes {declared}, given {list(types)}")
    return tuple(body.type(value) for _, value in body.outputs)


# pattern "loop": one nest of loops; "epilogue": a contraction whose results are finished in place.
primitive("fused", "control", infer=_infer_fused, arity=(0, -1), attrs={"pattern": "loop"},
          public=False, doc="Several operators computed by one kernel; the body says which.")


def _infer_scan(body: Graph, *types: TensorType, states: int, sequences: int, length: Dim,
                backwards: bool) -> tuple[TensorType, ...]:
    given = []
    for index, type in enumerate(types):
        if states <= index < states + sequences:
            if not type.rank or type.shape[0] != length:
                raise OpError("E219", f"the scan takes {length} steps, given {type}")
            type = TensorType(type.shape[1:], type.dtype)
        given.append(type)
    declared = [body.type(body.inputs[f"x{index}"]) for index in range(len(types))]
    if given != declared:
        raise OpError("E219", f"a step takes {declared}, given {given}")
    results = [body.type(value) for _, value in body.outputs]
    if results[:states] != given[:states]:
        raise OpError("E219", f"the states are {given[:states]}, after a step {results[:states]}")
    return (*results[:states],
            *(TensorType((length, *type.shape), type.dtype) for type in results[states:]))


# Operands: the states before the first step, sequences [length, ...] of which a step sees one
# entry, and what every step sees. The body takes them as x0, x1 ... and gives the states after the
# step and what it hands out. Results: the states after the last step, and what all steps handed
# out, [length, ...]. `backwards` takes the last entry first.
SCAN = primitive("scan", "control", infer=_infer_scan, arity=(0, -1), public=False,
          attrs={"states": REQUIRED, "sequences": REQUIRED, "length": REQUIRED,
                 "backwards": False},
          doc="A cell run over a sequence, step by step; the body is one step.")


# In place of what changes from step to step while a step is being built; never part of a graph.
primitive("entry", "control", infer=lambda *, name, shape, dtype: TensorType(tuple(shape), dtype),
          arity=(0, 0), attrs={"name": REQUIRED, "shape": REQUIRED, "dtype": "f32"}, public=False,
          doc="What a step sees of a state or a sequence.")


def make_body(source: Graph | Builder, name: str, inputs: Sequence[Value],
              results: Sequence[Value]) -> Graph:
    """The body that computes `results` of `source`, as y0, y1 ..., from `inputs`, x0, x1 ...

    Everything between them goes into the body.
    """
    builder = Builder(name)
    m, values = GraphMath(builder), {}
    for index, value in enumerate(inputs):
        values[value] = m.placeholder(index, source.type(value)).value
    todo, needed = list(results), set()
    while todo:
        value = todo.pop()
        if value not in values and value.node not in needed:
            needed.add(value.node)
            todo += source.node(value).inputs
    for key in sorted(needed):
        node = source.node(Value(key))
        with builder.at(node.span, node.path):
            first = builder.emit(node.op, [values[v] for v in node.inputs], node.attributes,
                                 node.body)
        for port in range(len(node.outs)):
            values.setdefault(Value(key, port), Value(first.node, port))
    return builder.finish([(f"y{i}", values[value]) for i, value in enumerate(results)])
