"""Values: the shape rule is NumPy's, and PyTorch agrees, live or recorded."""

from __future__ import annotations

import numpy as np
import pytest

from lamina.compiler.ir.types import NUMPY_TYPES
from lamina.compiler.ops import OPS
from lamina.tests.ops import gradient, oracle, record
from lamina.tests.ops.samples import samples

SAMPLED = [op for op in OPS.values() if op.samples]
JUDGED = [op for op in SAMPLED if op.torch]

live = pytest.mark.skipif(oracle.torch is None, reason="PyTorch is not installed; the recorded "
                          "results are compared instead")


@pytest.mark.parametrize("op", SAMPLED, ids=str)
def test_shape_rule_is_numpys(op):
    for sample in samples(op):
        arrays, attrs = sample.arrays(), sample.attributes(op)
        given = [x.copy() for x in arrays]
        y = gradient.value(op, arrays, attrs)
        out = op.infer(*sample.types, **attrs)
        assert y.shape == out.shape, sample
        assert y.dtype == NUMPY_TYPES[out.dtype], sample
        assert all(np.array_equal(a, b) for a, b in zip(arrays, given, strict=True)), sample


@live
@pytest.mark.parametrize("op", JUDGED, ids=str)
def test_pytorch_agrees(op):
    """Values and gradients, in float64."""
    judged = [sample for sample in samples(op) if record.usable(sample)]
    assert len(judged) >= min(20, len(samples(op)) // 2)
    for sample in judged:
        for got, expected in zip(record.ours(op, sample), record.theirs(op, sample), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8, err_msg=str(sample))


@pytest.fixture(scope="module")
def recorded():
    with np.load(record.PATH, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("op", JUDGED, ids=str)
def test_recorded_results_agree(op, recorded):
    assert op.name in recorded, "run python -m lamina.tests.ops.record"
    got = record.flat(op, record.ours)
    np.testing.assert_allclose(got, recorded[op.name], rtol=1e-6, atol=1e-7)


@live
def test_record_is_current(recorded):
    """PyTorch still gives what was recorded, for every operator and no other."""
    assert set(recorded) == {op.name for op in JUDGED}
    for op in JUDGED:
        np.testing.assert_allclose(record.flat(op, record.theirs), recorded[op.name], rtol=1e-6,
                                   atol=1e-7, err_msg=op.name)
    assert record.PATH.stat().st_size < 1_000_000
