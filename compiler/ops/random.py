"""Random numbers as a function of seed, step and position: no state, the same on every target.

Philox 2x32-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(2011). `rng` holds (seed, step); `salt` tells the uses of one step apart.
"""

from __future__ import annotations

import numpy as np

from lamina.compiler.ir.op import REQUIRED, OpError
from lamina.compiler.ir.types import TensorType, shape_text
from lamina.compiler.ops.define import composite, primitive, same_dtype
from lamina.compiler.ops.ragged import drawn

LOW = 0xFFFFFFFF
WEYL = 0x9E3779B9
FACTOR = 0xD256D193
GOLDEN = 0x9E3779B97F4A7C15


def _infer_uniform(rng: TensorType, *, shape, salt) -> TensorType:
    same_dtype("uniform", (rng,), ("i32",))
    if rng.shape != (2,):
        raise OpError("E225", "`uniform` takes (seed, step) as i32[2], not "
                      f"{shape_text(rng.shape)}", "", (0,))
    return TensorType(tuple(shape), "f32")


def _mix(z: int) -> int:
    """The finaliser of splitmix64: Steele, Lea and Flood (2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> shift)) * factor % 2**64
    return z ^ (z >> 31)


def stream_key(seed: int, step: int, salt: int) -> int:
    """64 bits that name the stream of a use; seed and step count as unsigned 32-bit numbers."""
    salted = (seed ^ salt * WEYL) & LOW
    first = _mix((salted + GOLDEN) % 2**64)
    return _mix((first + (step & LOW) + GOLDEN) % 2**64)


def _numpy_uniform(rng, *, shape, salt):
    key = stream_key(int(rng[0]), int(rng[1]), salt)
    position = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint64)
    left = position & np.uint64(LOW)
    right = (position >> np.uint64(32)) ^ np.uint64(key >> 32)
    for turn in range(10):
        product = left * np.uint64(FACTOR)
        left = (product >> np.uint64(32)) ^ np.uint64((key + turn * WEYL) & LOW) ^ right
        right = product & np.uint64(LOW)
    return ((left >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)).reshape(shape)


primitive("uniform", "random", infer=_infer_uniform, numpy=_numpy_uniform, ragged=drawn,
          attrs={"shape": REQUIRED, "salt": 0},
          samples=("r:i32[2] | shape=(3, 4)", "r:i32[2] | shape=(17,), salt=5",
                   "r:i32[2] | shape=()", "r:i32[2] | shape=(0, 3)"),
          bad={"E204": "r:[2] | shape=(3,)", "E225": "r:i32[3] | shape=(3,)"},
          doc="Uniform f32 numbers in [0, 1), 24 bits each, from (seed, step), `salt` and the "
              "row-major position.")


def _check_share(name: str, p: float) -> None:
    if not 0 <= p < 1:
        raise OpError("E226", f"`{name}`: the probability is {p}, outside the range from 0 to 1",
                      "p is the share that is dropped: 0 <= p < 1")


@composite("dropout", attrs={"p": REQUIRED, "salt": 0}, arity=2,
           samples=("x:[3,4] r:i32[2] | p=0.5", "x:[17] r:i32[2] | p=0.1, salt=3",
                    "x:[5] r:i32[2] | p=0.0"),
           bad={"E226": "x:[3] r:i32[2] | p=1.0", "E204": "x:[3] r:[2] | p=0.5"})
def dropout(m, x, rng, *, p, salt):
    """Zero with probability p, else x / (1 - p). Srivastava and others (2014)."""
    _check_share("dropout", p)
    keep = m.greater_equal(m.uniform(rng, shape=x.shape, salt=salt), p)
    return m.select(keep, x / (1 - p), 0.0)


@composite("channel_dropout", attrs={"p": REQUIRED, "salt": 0}, arity=2,
           samples=("x:[2,3,4,2] r:i32[2] | p=0.5", "x:[3,5] r:i32[2] | p=0.1, salt=3"),
           bad={"E226": "x:[3,4] r:i32[2] | p=1.0", "E204": "x:[3,4] r:[2] | p=0.5",
                "E225": "x:[3] r:i32[2] | p=0.5"})
def channel_dropout(m, x, rng, *, p, salt):
    """Whole channels of [N, C, ...] are zeroed with probability p, the others scaled by 1/(1 - p).

    Tompson, Goroshin, Jain, LeCun and Bregler (2015).
    """
    _check_share("channel_dropout", p)
    if len(x.shape) < 2:
        raise OpError("E225", f"`channel_dropout` takes [N, C, ...], not {shape_text(x.shape)}",
                      "", (0,))
    shape = (*x.shape[:2], *(1,) * (len(x.shape) - 2))
    keep = m.greater_equal(m.uniform(rng, shape=shape, salt=salt), p)
    return m.select(keep, x / (1 - p), 0.0)
