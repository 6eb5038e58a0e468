"""Where temporary buffers go in one arena: greedy, largest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Interval:
    """A buffer of `size` bytes that is needed from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int


def place(intervals: Sequence[Interval]) -> tuple[list[int], int]:
    """Byte offsets, 64-aligned, at which no two buffers alive together overlap; and the total.

    Largest first, each at the lowest offset that is free over its whole life (Pisarchyk and Lee,
    "Efficient memory management for deep neural net inference", 2020).
    """
    order = sorted(range(len(intervals)), key=lambda i: (-intervals[i].size, i))
    offsets = [0] * len(intervals)
    # Of those placed: first and last step, start and end. A large network has thousands.
    first, last, start, end = np.empty((4, len(intervals)), np.int64)
    for count, i in enumerate(order):
        this = intervals[i]
        size = -(-this.size // ALIGNMENT) * ALIGNMENT
        busy = (first[:count] <= this.last) & (last[:count] >= this.first)
        at = _lowest_gap(start[:count][busy], end[:count][busy], size)
        offsets[i] = at
        first[count], last[count], start[count], end[count] = this.first, this.last, at, at + size
    return offsets, int(end.max(initial=0))


def _lowest_gap(starts: np.ndarray, ends: np.ndarray, size: int) -> int:
    """Where `size` bytes are free between or behind what begins and ends so."""
    order = starts.argsort()
    free = np.concatenate(([0], np.maximum.accumulate(ends[order])))
    fits = np.flatnonzero(starts[order] - free[:-1] >= size)
    return int(free[fits[0] if fits.size else -1])
