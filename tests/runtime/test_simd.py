"""The float32 functions that kernels use: ULP bounds, special values, NaN, random bits."""

import math

import numpy as np
import pytest

from lamina.runtime import random
from lamina.runtime.cpu.executor import Executor
from lamina.runtime.program import Buffer, Kernel, Program, Step

UNARY = """
from lamina.runtime.cpu.simd import {name}, f32ptr, i64ptr


def kernel(args, tid, nthreads):
    block = i64ptr(args)
    x, y, n = f32ptr(block[0]), f32ptr(block[1]), block[2]
    for i in range(tid * n // nthreads, (tid + 1) * n // nthreads):
        y[i] = {name}(x[i])
"""
BINARY = """
from lamina.runtime.cpu.simd import {name}, f32ptr, i64ptr


def kernel(args, tid, nthreads):
    block = i64ptr(args)
    x, z, y, n = f32ptr(block[0]), f32ptr(block[1]), f32ptr(block[2]), block[3]
    for i in range(tid * n // nthreads, (tid + 1) * n // nthreads):
        y[i] = {name}(x[i], z[i])
"""
BOUNDS = {
    "exp": 1.1,
    "log": 1,
    "tanh": 3,
    "sigmoid": 3,
    "erf": 2,
    "log1p": 2,
    "expm1": 2,
    "sin": 2,
    "cos": 2,
    "sqrt": 0.5,
    "rsqrt": 1.5,
    "floor": 0,
}
EXACT = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf, otypes="d"),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "log1p": np.log1p,
    "expm1": np.expm1,
    "sin": np.sin,
    "cos": np.cos,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "floor": np.floor,
}


@pytest.fixture(scope="module")
def evaluate(kernel_cache):
    """evaluate(name, x) or evaluate(name, x, z): the kernel function over float32 arrays."""
    names = [*BOUNDS, "pow", "maximum", "minimum"]
    made = {}
    for count, text in ((1, UNARY), (2, BINARY)):
        chosen = names[:-3] if count == 1 else names[-3:]
        buffers = [Buffer("input", f"x{i}", "f32", ("n",)) for i in range(count)]
        buffers += [Buffer("output", name, "f32", ("n",)) for name in chosen]
        kernels = [Kernel(name, text.format(name=name)) for name in chosen]
        shared = tuple(("buffer", i) for i in range(count))
        for i, name in enumerate(chosen):
            step = Step(0, (*shared, ("buffer", count), ("size", "n")), "n")
            made[name] = Executor(
                Program("cpu", (*buffers[:count], buffers[count + i]), (kernels[i],), (step,)),
                2,
                kernel_cache,
            )
    return lambda name, *x: made[name].run({f"x{i}": v for i, v in enumerate(x)})[name]


def spread(step):
    """Every `step`-th of all 2^32 float32 bit patterns: all exponents, signs, NaNs, subnormals."""
    return np.arange(0, 1 << 32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)


def ulps(actual, exact):
    """Distance in units in the last place of the exact value, rounded results allowed for."""
    with np.errstate(all="ignore"):
        rounded = exact.astype(np.float32)
    finite = np.isfinite(rounded)
    same = (actual == rounded) | (np.isnan(actual) & np.isnan(rounded))
    assert same[~finite].all()
    # Where the exact value is within rounding of overflow, infinity is one step away.
    near = np.abs(rounded[finite])
    unit = np.maximum(np.spacing(near).astype(float), 2.0**-149)
    with np.errstate(all="ignore"):
        error = np.abs(actual[finite].astype(float) - exact[finite]) / unit
    error[same[finite] & (unit == 2.0**-149)] = 0
    return float(error.max(initial=0))


@pytest.mark.parametrize("name", BOUNDS)
def test_ulp_bound_over_the_whole_range(name, evaluate):
    """The bounds stated in `simd`, over 2 million patterns spread over all float32, and near 0."""
    x = np.concatenate(
        [spread(3001), np.random.default_rng(0).normal(0, 3, 1 << 19).astype(np.float32)]
    )
    if name in ("sin", "cos"):
        x = x[~(np.abs(x) > 1e13) | np.isinf(x)]
    if name == "erf":
        x = x[::4]
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(float))
    assert ulps(evaluate(name, x), exact) <= BOUNDS[name] + 0.01


def test_power(evaluate):
    """pow over many pairs, and C's table of special cases through NumPy's."""
    rng = np.random.default_rng(1)
    x = np.exp(rng.normal(0, 8, 1 << 18)).astype(np.float32)
    y = rng.normal(0, 6, x.size).astype(np.float32)
    with np.errstate(all="ignore"):
        assert ulps(evaluate("pow", x, y), x.astype(float) ** y.astype(float)) <= 1.01
    edge = np.array(
        [
            0.0,
            -0.0,
            1,
            -1,
            2,
            -2,
            3,
            -3,
            0.5,
            -0.5,
            2.5,
            -2.5,
            np.inf,
            -np.inf,
            np.nan,
            1e-40,
            -1e-40,
            3e38,
            -3e38,
        ],
        np.float32,
    )
    a, b = (v.ravel().copy() for v in np.meshgrid(edge, edge))
    with np.errstate(all="ignore"):
        assert ulps(evaluate("pow", a, b), a.astype(float) ** b.astype(float)) <= 1.01


@pytest.mark.parametrize("name", BOUNDS)
def test_special_values(name, evaluate):
    """Signed zeros, infinities, NaN and subnormals: NumPy's answer, the sign of zero included."""
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1, -1] * 3, np.float32)
    with np.errstate(all="ignore"):
        expected = EXACT[name](x.astype(float)).astype(np.float32)
    actual = evaluate(name, x)
    np.testing.assert_allclose(actual, expected, rtol=4e-7, atol=0)
    zero = expected == 0
    assert (np.signbit(actual) == np.signbit(expected))[zero].all()


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_extremes_propagate_nan(name, evaluate):
    """As np.maximum: NaN in either operand is the result."""
    edge = np.array([0, 1, -1, np.inf, -np.inf, np.nan], np.float32)
    a, b = (v.ravel().copy() for v in np.meshgrid(edge, edge))
    np.testing.assert_array_equal(evaluate(name, a, b), getattr(np, name)(a, b))


PHILOX = """
from lamina.runtime.cpu.simd import f32ptr, i64, i64ptr, philox_key, philox_uniform


def kernel(args, tid, nthreads):
    block = i64ptr(args)
    y, n, seed, counter, start = f32ptr(block[0]), block[1], block[2], block[3], block[4]
    key = philox_key(seed, counter)
    for i in range(tid * n // nthreads, (tid + 1) * n // nthreads):
        y[i] = philox_uniform(key, start + i)
"""


@pytest.mark.parametrize("seed,counter,start", [(0, 0, 0), (12345, 7, 1 << 33), (-1, 1 << 40, 5)])
def test_random_bits_equal_numpy(seed, counter, start, kernel_cache):
    """One definition of randomness on every target: exact equality, also past 32 bits."""
    program = Program(
        "cpu",
        (Buffer("output", "y", "f32", (4099,)),),
        (Kernel("r", PHILOX),),
        (Step(0, (("buffer", 0), *(("size", v) for v in (4099, seed, counter, start))), 1 << 30),),
    )
    actual = Executor(program, 2, kernel_cache).run({})["y"]
    expected = random.philox_uniform(seed, counter, start + np.arange(4099))
    assert actual.tobytes() == expected.tobytes()


def test_random_numbers_look_uniform():
    """A wrong constant or rotation would show in the moments or in neighbouring streams."""
    u = random.philox_uniform(1, 2, np.arange(1 << 18)).astype(float)
    v = random.philox_uniform(1, 3, np.arange(1 << 18)).astype(float)
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.003 and abs(u.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(u, v)[0, 1]) < 0.01 and abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.01
    counts = np.histogram(u, 64, (0, 1))[0]
    assert ((counts - u.size / 64) ** 2 / (u.size / 64)).sum() < 120
