"""Gradients: by the rule, by the body, by finite differences; over graphs and over arrays."""

from __future__ import annotations

import numpy as np
import pytest

from lamina.compiler.ops import OPS
from lamina.tests.ops import gradient, record
from lamina.tests.ops.samples import parse, samples

DIRECTIONS = 2


def _problems(op):
    """Operands in float64, attributes and the weights of the result, for every sample."""
    for sample in samples(op):
        arrays, attrs = gradient.doubled(sample.arrays()), sample.attributes(op)
        y = gradient.value(op, arrays, attrs)
        # The mean of nothing is NaN and the maximum -inf: there is nothing to differentiate.
        if gradient.differentiable(op, arrays, y) and np.isfinite(y).all():
            yield sample, arrays, attrs, record.cotangent(sample, y)


def _has_gradient(op):
    sample = parse(op.samples[0])
    arrays = gradient.doubled(sample.arrays())
    return gradient.differentiable(op, arrays,
                                   gradient.value(op, arrays, sample.attributes(op)))


SMOOTH = [op for op in OPS.values() if op.samples and _has_gradient(op)]


@pytest.mark.parametrize("op", SMOOTH, ids=str)
def test_gradient_is_the_finite_difference(op):
    rng = np.random.default_rng(1)
    for sample, arrays, attrs, ct in _problems(op):
        _, *grads = record.ours(op, sample)
        for index, grad in zip(gradient.floats(arrays), grads, strict=True):
            assert grad.shape == arrays[index].shape, sample
            for direction in _directions(rng, grad):
                slope = gradient.by_differences(op, arrays, attrs, ct, index, direction)
                np.testing.assert_allclose(np.sum(grad * direction), slope, rtol=1e-3, atol=1e-5,
                                           err_msg=f"{op.name} {sample} operand {index}")


def _directions(rng, like):
    """Single elements first (they find misplaced ones), then all elements at random."""
    if like.size:
        one = np.zeros(like.shape)
        one.flat[rng.integers(like.size)] = 1
        yield one
    for _ in range(DIRECTIONS):
        yield rng.choice((-1.0, 1.0), like.shape)


@pytest.mark.parametrize("op", [op for op in SMOOTH if op.vjp], ids=str)
def test_rule_over_arrays_is_rule_over_graphs(op):
    for sample, arrays, attrs, ct in _problems(op):
        _, *grads = record.ours(op, sample)
        for got, expected in zip(gradient.by_arrays(op, arrays, attrs, ct), grads, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12, err_msg=str(sample))


@pytest.mark.parametrize("op", [op for op in SMOOTH if op.vjp and op.body], ids=str)
def test_rule_is_the_derivative_of_the_body(op):
    for sample, arrays, attrs, ct in _problems(op):
        _, *written = record.ours(op, sample)
        _, *derived = gradient.by_graph(op, arrays, attrs, ct, derive=True)
        for got, expected in zip(written, derived, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-10, err_msg=str(sample))


@pytest.mark.parametrize("op", [op for op in SMOOTH if op.body], ids=str)
def test_body_over_graphs_is_body_over_arrays(op):
    for sample, arrays, attrs, ct in _problems(op):
        y, *_ = gradient.by_graph(op, arrays, attrs, ct, derive=True)
        np.testing.assert_allclose(y, gradient.value(op, arrays, attrs), rtol=1e-12, atol=1e-12,
                                   err_msg=str(sample))


@pytest.mark.parametrize(("name", "arrays", "expected"), [
    ("maximum", ([1.0, 2.0, 0.0], [1.0, 0.0, 2.0]), ([0.5, 1, 0], [0.5, 0, 1])),
    ("minimum", ([1.0, 2.0, 0.0], [1.0, 0.0, 2.0]), ([0.5, 0, 1], [0.5, 1, 0])),
    ("relu", ([-1.0, 0.0, 2.0],), ([0, 0, 1],)),
    ("abs", ([-1.0, 0.0, 2.0],), ([-1, 0, 1],)),
    ("softplus", ([0.0],), ([0.5],)),
    ("max", ([1.0, 1.0, 0.0],), ([0.5, 0.5, 0],)),
    ("binary_cross_entropy", ([0.0, 0.0], [1.0, 0.0]), ([-0.25, 0.25], [0.0, 0.0])),
])
def test_gradient_at_corners(name, arrays, expected):
    """Where no derivative exists, or where the body's formula would lose it."""
    op, arrays = OPS[name], [np.array(x) for x in arrays]
    ct = np.ones(gradient.value(op, arrays, op.attrs).shape)
    _, *grads = gradient.by_graph(op, arrays, op.attrs, ct)
    for got, wanted in zip(grads, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-15)
