"""Initial values of parameters.

Every parameter draws from its own generator, keyed by the seed and its path, so its numbers do not
depend on which others exist. Weights are [out, in, kernel ...] (as in PyTorch): fan_in is the size
of all axes but the first, fan_out the size of all but the second. An explicit `fan_in` serves
biases and other arrangements.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from lamina.compiler.ir.op import OpError

Shape = tuple[int, ...]


def _fans(shape: Shape) -> tuple[int, int]:
    if len(shape) < 2:
        raise OpError("E231", f"a parameter of rank {len(shape)} has no fan-in",
                      "give `fan_in`, or use `zeros` or `normal`")
    inner = math.prod(shape[2:])
    return shape[1] * inner, shape[0] * inner


def _fan_in(shape: Shape, given: int | None) -> int:
    return _fans(shape)[0] if given is None else given


def _symmetric(rng, shape: Shape, bound: float) -> np.ndarray:
    return rng.uniform(-bound, bound, shape)


def _scale(variance: float, fan: float) -> float:
    return math.sqrt(variance / max(fan, 1))


def zeros(rng, shape):
    """All 0."""
    return np.zeros(shape)


def ones(rng, shape):
    """All 1."""
    return np.ones(shape)


def constant(rng, shape, value):
    """All `value`."""
    return np.full(shape, float(value))


def normal(rng, shape, std=1.0):
    """Normal with mean 0."""
    return rng.standard_normal(shape) * std


def uniform(rng, shape, low=-1.0, high=1.0):
    """Uniform from low to high."""
    return rng.uniform(low, high, shape)


def glorot(rng, shape, gain=1.0):
    """Uniform with variance 2 gain^2 / (fan_in + fan_out). Glorot and Bengio (2010)."""
    return _symmetric(rng, shape, gain * _scale(6, sum(_fans(shape))))


def glorot_normal(rng, shape, gain=1.0):
    """Normal with variance 2 gain^2 / (fan_in + fan_out). Glorot and Bengio (2010)."""
    return rng.standard_normal(shape) * (gain * _scale(2, sum(_fans(shape))))


def he(rng, shape, fan_in=None):
    """Normal with variance 2 / fan_in, for ReLU. He and others (2015)."""
    return rng.standard_normal(shape) * _scale(2, _fan_in(shape, fan_in))


def he_uniform(rng, shape, fan_in=None):
    """Uniform with variance 2 / fan_in, for ReLU. He and others (2015)."""
    return _symmetric(rng, shape, _scale(6, _fan_in(shape, fan_in)))


def fan_in_uniform(rng, shape, fan_in=None):
    """Uniform within 1 / sqrt(fan_in): PyTorch's default for linear and convolution."""
    return _symmetric(rng, shape, _scale(1, _fan_in(shape, fan_in)))


def orthogonal(rng, shape, gain=1.0):
    """Rows (or columns, whichever are fewer) of length `gain`, at right angles.

    Saxe, McClelland and Ganguli (2013).
    """
    if len(shape) < 2:
        raise OpError("E231", f"a parameter of rank {len(shape)} cannot be orthogonal",
                      "use `normal`")
    rows, columns = shape[0], math.prod(shape[1:])
    flat = rng.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(flat)
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)  # makes the choice of q unique
    return (gain * (q if rows >= columns else q.T)).reshape(shape)


def bitmap(rng, shape, rows):
    """A picture in text, row by row: 1 for `#`, -1 for `.`; blanks do not count."""
    pixels = "".join("".join(rows).split())
    if set(pixels) - set("#."):
        raise OpError("E231", "a bitmap is drawn with `#` and `.` alone")
    if len(pixels) != math.prod(shape):
        raise OpError("E231", f"a bitmap of {len(pixels)} pixels cannot fill {list(shape)}",
                      f"draw {math.prod(shape)} pixels")
    return np.where(np.array(list(pixels)) == "#", 1.0, -1.0).reshape(shape)


INITIALIZERS: Mapping[str, Callable[..., np.ndarray]] = MappingProxyType({
    function.__name__: function for function in (
        zeros, ones, constant, normal, uniform, glorot, glorot_normal, he, he_uniform,
        fan_in_uniform, orthogonal, bitmap)})
SHAPED = ("glorot", "glorot_normal", "he", "he_uniform", "fan_in_uniform", "orthogonal")


def check_initializer(name: str, args: Sequence[Any]) -> None:
    """Raise OpError E230 unless the initialiser exists and takes these arguments."""
    if name not in INITIALIZERS:
        raise OpError("E230", f"no initialiser is named `{name}`",
                      f"there are: {', '.join(INITIALIZERS)}")
    parameters = list(inspect.signature(INITIALIZERS[name]).parameters.values())[2:]
    needed = sum(one.default is one.empty for one in parameters)
    if not needed <= len(args) <= len(parameters):
        names = ", ".join(one.name for one in parameters) or "nothing"
        raise OpError("E230", f"`{name}` takes {names}; {len(args)} values given")
    if name == "bitmap" and not _is_text(args[0]):
        raise OpError("E230", "`bitmap` takes a list of texts, the rows of the picture",
                      'for example `bitmap([".#.", "###"])`')


def _is_text(rows: object) -> bool:
    return isinstance(rows, (list, tuple)) and all(isinstance(row, str) for row in rows)


def check_shape(name: str, args: Sequence[Any], shape: Shape) -> None:
    """Raise OpError E231 when the initialiser cannot serve a parameter of this shape."""
    if name == "bitmap":
        bitmap(None, shape, *args)
    elif len(shape) < 2 and name in SHAPED:
        INITIALIZERS[name](np.random.default_rng(0), (1,) * len(shape), *args)


def initialize(name: str, args: Sequence[Any], shape: Shape, seed: int,
               path: str) -> np.ndarray:
    """The float32 initial value of the parameter at `path`; `args` in the initialiser's order.

    Raises OpError for an unknown initialiser (E230) or a shape it cannot serve (E231).
    """
    check_initializer(name, args)
    digest = hashlib.sha256(path.encode()).digest()
    key = np.array([seed % 2**64, int.from_bytes(digest[:8], "little")], np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    return np.ascontiguousarray(INITIALIZERS[name](rng, tuple(shape), *args), np.float32)
