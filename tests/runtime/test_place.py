"""The memory planner: never an overlap, and close to the optimum on cases small enough to solve."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.runtime.place import ALIGNMENT, Interval, place


@st.composite
def intervals(draw, most=12):
    rows = draw(
        st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), max_size=most)
    )
    return [Interval(size * 64, min(a, b), max(a, b)) for size, a, b in rows]


def together(a, b):
    return a.first <= b.last and b.first <= a.last


@given(intervals())
def test_no_overlap(items):
    """Two buffers alive at the same step share no byte; offsets are aligned; total is enough."""
    offsets, total = place(items)
    for i, j in itertools.combinations(range(len(items)), 2):
        if together(items[i], items[j]):
            apart = (
                offsets[i] + items[i].size <= offsets[j] or offsets[j] + items[j].size <= offsets[i]
            )
            assert apart
    assert all(o % ALIGNMENT == 0 for o in offsets)
    assert total == max(
        (o + -(-v.size // 64) * 64 for o, v in zip(offsets, items, strict=True)), default=0
    )


def first_fit(items, order):
    """Lowest free place for each buffer in the given order: some order is optimal."""
    placed, top = [], 0
    for i in order:
        at = 0
        for start, end, j in sorted(placed):
            if together(items[i], items[j]) and start < at + items[i].size and at < end:
                at = end
        placed.append((at, at + items[i].size, i))
        top = max(top, at + items[i].size)
    return top


@settings(max_examples=40)
@given(intervals(most=5))
def test_near_the_optimum(items):
    """At most a third above the best of all orders, and never below the live bytes."""
    best = min(first_fit(items, order) for order in itertools.permutations(range(len(items))))
    live = max((sum(v.size for v in items if v.first <= t <= v.last) for t in range(7)), default=0)
    total = place(items)[1]
    assert live <= total
    assert total <= 1.34 * best
