"""Where temporary buffers go in one arena: greedy, largest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    placed: list[int] = []
    total = 0
    for i in order:
        this = intervals[i]
        size = -(-this.size // ALIGNMENT) * ALIGNMENT
        busy = sorted(
            (offsets[j], offsets[j] + intervals[j].size)
            for j in placed
            if intervals[j].first <= this.last and this.first <= intervals[j].last
        )
        at = _lowest_gap(busy, size)
        offsets[i] = at
        placed.append(i)
        total = max(total, at + size)
    return offsets, total


def _lowest_gap(busy: list[tuple[int, int]], size: int) -> int:
    at = 0
    for start, end in busy:
        if start - at >= size:
            return at
        at = max(at, -(-end // ALIGNMENT) * ALIGNMENT)
    return at
