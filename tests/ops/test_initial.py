"""Initial values: their variance, their bounds, and that each depends on its path alone."""

from __future__ import annotations

import numpy as np
import pytest

from lamina.compiler.ir.op import OpError
from lamina.compiler.ops.initial import INITIALIZERS, check_initializer, initialize

SHAPE = (64, 32, 3, 3)
# Those that draw nothing at random, with arguments that serve.
FIXED = {"zeros": (), "ones": (), "constant": (0.5,), "bitmap": (("#." * (32 * 32 * 9),),)}
FAN_IN, FAN_OUT = 32 * 9, 64 * 9


def draw(name, *args, shape=SHAPE, seed=1, path="net.weight"):
    return initialize(name, args, shape, seed, path)


@pytest.mark.parametrize(("name", "args", "std", "bound"), [
    ("normal", (0.02,), 0.02, None),
    ("uniform", (-0.1, 0.3), 0.4 / np.sqrt(12), 0.3),
    ("glorot", (), np.sqrt(2 / (FAN_IN + FAN_OUT)), np.sqrt(6 / (FAN_IN + FAN_OUT))),
    ("glorot", (2.0,), 2 * np.sqrt(2 / (FAN_IN + FAN_OUT)), None),
    ("glorot_normal", (), np.sqrt(2 / (FAN_IN + FAN_OUT)), None),
    ("he", (), np.sqrt(2 / FAN_IN), None),
    ("he_uniform", (), np.sqrt(2 / FAN_IN), np.sqrt(6 / FAN_IN)),
    ("fan_in_uniform", (), 1 / np.sqrt(3 * FAN_IN), 1 / np.sqrt(FAN_IN)),
    ("fan_in_uniform", (400,), 1 / np.sqrt(1200), 1 / 20),
])
def test_spread(name, args, std, bound):
    values = draw(name, *args)
    assert values.dtype == np.float32
    assert values.shape == SHAPE
    assert abs(values.std() / std - 1) < 0.02
    if bound is not None:
        assert 0.99 * bound < np.abs(values).max() <= bound * (1 + 1e-6)


def test_constants():
    assert not draw("zeros").any()
    assert (draw("ones") == 1).all()
    assert (draw("constant", -2.5, shape=(3,)) == -2.5).all()


def test_bitmap():
    # Row by row, 1 where there is a mark and -1 where there is none; blanks are for the eye.
    assert draw("bitmap", ("#. .", "..#"), shape=(2, 3)).tolist() == [[1, -1, -1], [-1, -1, 1]]


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (4, 2, 3, 3), (6, 6), (3, 0)])
def test_orthogonal(shape):
    flat = draw("orthogonal", 2.0, shape=shape).reshape(shape[0], -1).astype(np.float64)
    small = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
    np.testing.assert_allclose(small, 4 * np.eye(len(small)), atol=1e-5)


@pytest.mark.parametrize("name", INITIALIZERS)
def test_same_seed_and_path_same_numbers(name):
    args = FIXED.get(name, ())
    first = draw(name, *args)
    draw("normal", path="other")
    np.testing.assert_array_equal(first, draw(name, *args))
    if name not in FIXED:
        assert (first != draw(name, *args, path="net.bias")).mean() > 0.99
        assert (first != draw(name, *args, seed=2)).mean() > 0.99


def test_numbers_are_fixed():
    """Recorded once: a run must start the same after an update."""
    values = draw("uniform", 0.0, 1.0, shape=(3,), seed=1998, path="features.c1.weight")
    np.testing.assert_allclose(values, [0.14855361, 0.91592562, 0.50251085], rtol=1e-6)


@pytest.mark.parametrize("name", INITIALIZERS)
def test_every_shape_is_served(name):
    for shape in ((0, 3), (3, 0), (1, 1), (2, 3, 5)):
        args = (("#" * int(np.prod(shape)),),) if name == "bitmap" else FIXED.get(name, ())
        assert draw(name, *args, shape=shape).shape == shape


@pytest.mark.parametrize(("code", "name", "args", "shape"), [
    ("E230", "xavier", (), (3, 3)), ("E230", "zeros", (1,), (3, 3)),
    ("E230", "constant", (), (3, 3)), ("E231", "glorot", (), (3,)), ("E231", "he", (), ()),
    ("E231", "orthogonal", (), (3,)), ("E230", "bitmap", (), (1,)), ("E230", "bitmap", (1,), (1,)),
    ("E230", "bitmap", ((1,),), (1,)), ("E231", "bitmap", (("#x",),), (2,)),
    ("E231", "bitmap", (("#.", "#"),), (2, 2)),
])
def test_refusals(code, name, args, shape):
    with pytest.raises(OpError) as caught:
        draw(name, *args, shape=shape)
    assert caught.value.code == code


def test_check_without_drawing():
    check_initializer("normal", (0.02,))
    with pytest.raises(OpError, match="no initialiser is named `norml`"):
        check_initializer("norml", ())


def test_documented():
    assert all(function.__doc__ for function in INITIALIZERS.values())
