"""How far a sequence of tokens is from those that it should be."""

from __future__ import annotations

from collections.abc import Sequence


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """The fewest tokens to insert, delete or replace that make one the other.

    Levenshtein (1966), row by row: `row[j]` is the distance of what was read of `one` to the
    first j tokens of `other`.
    """
    row = list(range(len(other) + 1))
    for count, token in enumerate(one, 1):
        before, row = row, [count]
        for place, wanted in enumerate(other):
            row.append(min(before[place] + (token != wanted), before[place + 1] + 1, row[-1] + 1))
    return row[-1]


def nearest(said: Sequence[int], references: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The distance to the nearest reference, and that one's length; the first of equally near ones.
    """
    return min(((edit_distance(said, one), len(one)) for one in references),
               key=lambda found: found[0])
