"""Counter-based random numbers in NumPy: the same bits as `philox_uniform` in a kernel.

Philox 2x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
2011). The seed and the counter (a step or a layer) make a 64-bit key; the index counts elements.
"""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def _mix(z: int) -> int:
    """The finaliser of splitmix64."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = ((z ^ (z >> shift)) * factor) & _MASK
    return z ^ (z >> 31)


def philox_key(seed: int, counter: int) -> int:
    """64 bits that name the stream of (seed, counter), as an unsigned integer."""
    first = _mix((seed + _GOLDEN) & _MASK)
    return _mix((first + counter + _GOLDEN) & _MASK)


def philox_uniform(seed: int, counter: int, index: np.ndarray) -> np.ndarray:
    """The float32 numbers in [0, 1) at the given indices of the stream (seed, counter)."""
    key = philox_key(seed, counter)
    index = np.asarray(index).astype(np.uint64)
    left = index & _LOW
    right = (index >> _HALF) ^ np.uint64(key >> 32)
    for turn in range(10):
        round_key = np.uint64(((key & 0xFFFFFFFF) + turn * 0x9E3779B9) & 0xFFFFFFFF)
        product = left * np.uint64(0xD256D193)
        left = (product >> _HALF) ^ round_key ^ right
        right = product & _LOW
    return (left >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)
