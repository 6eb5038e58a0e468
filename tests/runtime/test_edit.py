"""The edit distance, against its definition read literally."""

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from lamina.runtime.edit import edit_distance, nearest

TOKENS = st.lists(st.integers(0, 3), max_size=7).map(tuple)


@cache
def plain(one, other):
    """By the first tokens: both kept, or one of three edits."""
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return plain(one[1:], other[1:])
    return 1 + min(plain(one[1:], other), plain(one, other[1:]), plain(one[1:], other[1:]))


@given(TOKENS, TOKENS)
def test_it_is_the_fewest_edits(one, other):
    assert edit_distance(one, other) == plain(one, other)


def test_known_distances():
    # Those of the textbooks: a wrong weight of one of the three edits shows in one of them.
    for one, other, distance in (("kitten", "sitting", 3), ("sunday", "saturday", 3),
                                 ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0)):
        assert edit_distance(one, other) == distance


def test_the_nearest_reference_counts():
    # Its own length goes with it, not that of the longest; of equally near ones the first.
    assert nearest("abcd", ["xxxxxxx", "abc", "abcde"]) == (1, 3)
    assert nearest("", ["ab"]) == (2, 2)
