"""Random numbers: the kernel's bits, no dependence on order, the right statistics."""

from __future__ import annotations

import numpy as np
import pytest

from lamina.compiler.ops import OPS
from lamina.compiler.ops.random import WEYL
from lamina.runtime.random import philox_uniform

UNIFORM = OPS["uniform"].numpy


def draw(seed, step, shape, salt=0):
    return UNIFORM(np.array([seed, step], np.int32), shape=shape, salt=salt)


@pytest.mark.parametrize(("seed", "step", "salt"), [
    (0, 0, 0), (1998, 7, 0), (-1, 3, 12), (2**31 - 1, 2**31 - 1, 2**20)])
def test_same_bits_as_the_runtime(seed, step, salt):
    salted = (seed ^ salt * WEYL) & 0xFFFFFFFF
    expected = philox_uniform(salted, step, np.arange(1001))
    np.testing.assert_array_equal(draw(seed, step, (7, 11, 13), salt).ravel(), expected)


def test_bits_are_fixed():
    """These numbers may never change: resumed runs rely on them."""
    bits = (draw(1998, 1, (4,), 2) * 2**24).astype(np.int64)
    assert bits.tolist() == [13340542, 1764464, 9734813, 8353121]


def test_a_part_has_the_bits_of_the_whole():
    np.testing.assert_array_equal(draw(5, 6, (100,)), draw(5, 6, (10, 10)).ravel())
    np.testing.assert_array_equal(draw(5, 6, (30,)), draw(5, 6, (100,))[:30])


def test_every_input_matters():
    base = draw(1, 1, (64,), 1)
    for other in (draw(2, 1, (64,), 1), draw(1, 2, (64,), 1), draw(1, 1, (64,), 2)):
        assert np.mean(base == other) < 0.05


def test_statistics():
    x = draw(3, 4, (1_000_000,)).astype(np.float64)
    assert 0 <= x.min() < 1e-5
    assert 1 - 1e-5 < x.max() < 1
    assert abs(x.mean() - 0.5) < 1.5e-3
    assert abs(x.var() - 1 / 12) < 1e-3
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 4e-3
    counts = np.histogram(x, 256, (0, 1))[0]
    chi = np.sum((counts - x.size / 256) ** 2) / (x.size / 256)
    assert 170 < chi < 350  # 255 degrees of freedom


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share(p):
    x = np.full((300, 400), 3, np.float32)
    y = OPS["dropout"].numpy(x, np.array([1, 2], np.int32), p=p, salt=0)
    assert abs(np.mean(y == 0) - p) < 0.01
    np.testing.assert_allclose(y[y != 0], 3 / (1 - p), rtol=1e-6)


def test_dropout_of_nothing_is_the_identity():
    x = np.arange(12, dtype=np.float32)
    y = OPS["dropout"].numpy(x, np.array([1, 2], np.int32), p=0.0, salt=0)
    np.testing.assert_array_equal(x, y)


def test_channel_dropout_takes_whole_channels():
    # A pixel's neighbours tell what it was, so zeroing pixels alone would drop little.
    x = np.full((40, 50, 3, 2), 3, np.float32)
    y = OPS["channel_dropout"].numpy(x, np.array([1, 2], np.int32), p=0.3, salt=0)
    dropped = (y == 0).all((2, 3))
    assert (dropped == (y == 0).any((2, 3))).all()
    assert abs(dropped.mean() - 0.3) < 0.03
    np.testing.assert_allclose(y[~dropped], 3 / 0.7, rtol=1e-6)
