"""A size that is only a symbol when compiled gives the same numbers once it is known."""

from __future__ import annotations

import numpy as np
import pytest

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.op import OpError
from lamina.compiler.ir.types import TensorType, symbol
from lamina.compiler.ops import OPS, GraphMath
from lamina.compiler.reference import evaluate
from lamina.compiler.transform.autodiff import add_gradients
from lamina.tests.ops import gradient, record
from lamina.tests.ops.samples import parse

B = symbol("B")


def _with_symbol(shapes, first):
    """Types in which the size `first` became B wherever it leads."""
    return [TensorType((B, *shape[1:]) if shape[:1] == (first,) else shape, dtype)
            for shape, dtype in shapes]


def _problem(op):
    sample = parse(op.samples[0])
    arrays, attrs = gradient.doubled(sample.arrays()), sample.attributes(op)
    types = [gradient.type_of(x) for x in arrays]
    first = types[0].shape[0] if types and types[0].shape else None
    symbolic = _with_symbol([(type.shape, type.dtype) for type in types], first)
    try:  # reshape, slice and others fix the size by an attribute
        op.infer(*symbolic, **attrs)
    except OpError:
        return None
    return sample, arrays, attrs, symbolic


SYMBOLIC = [op for op in OPS.values() if op.samples and _problem(op)]


def test_most_operators_take_symbols():
    assert len(SYMBOLIC) >= 70, [op.name for op in OPS.values() if op not in SYMBOLIC]


@pytest.mark.parametrize("op", SYMBOLIC, ids=str)
def test_symbolic_size(op):
    sample, arrays, attrs, types = _problem(op)
    y = gradient.value(op, arrays, attrs)
    builder = Builder()
    m = GraphMath(builder)
    xs = [m.placeholder(index, type) for index, type in enumerate(types)]
    result = m.apply(op, tuple(xs), attrs)
    outputs, inputs = [("y", result.value)], dict(enumerate(arrays))
    if gradient.differentiable(op, arrays, y):
        weight = m.placeholder(len(xs), result.type)
        inputs[len(xs)] = record.cotangent(sample, y)
        outputs.append(("loss", m.sum(result * weight).value))
    graph = builder.finish(outputs)
    wrt = {str(i): graph.inputs[f"x{i}"] for i in gradient.floats(arrays)}
    if len(outputs) == 2:
        graph = add_gradients(graph, "loss", wrt)
    found = evaluate(graph, {f"x{i}": x for i, x in inputs.items()}, {})
    expected = record.ours(op, sample)
    names = ["y", *(f"grad:{name}" for name in wrt)][:len(expected)]
    for name, wanted in zip(names, expected, strict=True):
        np.testing.assert_allclose(found[name], wanted, rtol=1e-9, atol=1e-12, err_msg=name)
