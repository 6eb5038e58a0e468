"""Sizes: arithmetic in normal form is integer arithmetic, and the text reads back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.compiler.ir.types import (
    Expression,
    ceil_div,
    divide_exactly,
    parse_dim,
    substitute,
    symbol,
    symbols_of,
    to_size,
)

B, H, W = symbol("B"), symbol("H"), symbol("W")
S = symbol("S", ragged=True)
R = symbol("R", multiple_of=32)
NAMES = {"B": B, "H": H, "W": W, "S": S, "R": R}

# A formula is a name, a number, or (operator, left, right).
positive = st.sampled_from(("W", ("+", "H", 1), ("*", 2, "W"), ("*", "W", "W")))
leaves = st.sampled_from(sorted(NAMES)) | st.integers(-40, 40)
formulas = st.recursive(leaves, lambda inner: st.one_of(
    st.tuples(st.sampled_from("+-*"), inner, inner),
    st.tuples(st.sampled_from(("//", "%")), inner, st.integers(1, 12) | positive)), max_leaves=8)
bindings = st.fixed_dictionaries({
    "B": st.integers(0, 60), "H": st.integers(0, 60), "W": st.integers(1, 60),
    "S": st.integers(0, 60), "R": st.integers(0, 4).map(lambda n: 32 * n)})

OPERATORS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
             "//": lambda a, b: a // b, "%": lambda a, b: a % b}


def compute(formula, known):
    """The formula over sizes or over ints."""
    if isinstance(formula, str):
        return known[formula]
    if isinstance(formula, int):
        return formula
    operator, left, right = formula
    return OPERATORS[operator](compute(left, known), compute(right, known))


def size_value(size, known):
    """A runtime size, computed."""
    if isinstance(size, int):
        return size
    if isinstance(size, str):
        return known[size]
    operator, first, *rest = size
    total = size_value(first, known)
    for one in rest:
        total = OPERATORS[operator](total, size_value(one, known))
    return total


@settings(max_examples=400, deadline=None)
@given(formulas, bindings)
def test_normal_form_is_integer_arithmetic(formula, known):
    dim, expected = compute(formula, NAMES), compute(formula, known)
    assert substitute(dim, known) == expected
    assert size_value(to_size(dim), known) == expected


@settings(max_examples=300, deadline=None)
@given(formulas)
def test_text_reads_back(formula):
    dim = compute(formula, NAMES)
    assert parse_dim(str(dim), NAMES) == dim


@settings(max_examples=200, deadline=None)
@given(formulas, formulas, bindings)
def test_equal_normal_forms_are_equal_numbers(left, right, known):
    a, b = compute(left, NAMES), compute(right, NAMES)
    assert a - a == 0
    assert a + b == b + a
    assert (a + b) - b == a
    assert a * b == b * a
    if a == b:
        assert compute(left, known) == compute(right, known)


@settings(max_examples=200, deadline=None)
@given(formulas, st.integers(1, 12), bindings)
def test_partial_substitution(formula, number, known):
    dim = compute(formula, NAMES)
    some = substitute(dim, {"H": number, "R": known["R"]})
    assert {s.name for s in symbols_of(some)} <= {"B", "W", "S"}
    assert substitute(some, known) == substitute(dim, {**known, "H": number})


@settings(max_examples=200, deadline=None)
@given(formulas, formulas, bindings)
def test_exact_quotients_are_exact(numerator, denominator, known):
    top, bottom = compute(numerator, NAMES), compute(denominator, NAMES)
    quotient = divide_exactly(top, bottom)
    below = substitute(bottom, known)
    if quotient is not None and below != 0:
        assert substitute(quotient, known) * below == substitute(top, known)


@pytest.mark.parametrize(("left", "right"), [
    (ceil_div(ceil_div(H, 2), 2), ceil_div(H, 4)),
    (((H // 2) // 3) // 5, H // 30),
    ((2 * H + 3) // 2, H + 1),
    ((6 * H + 4 * W) // 2, 3 * H + 2 * W),
    ((H * W) // H, W),
    (R // 32 * 32, R),
    (R // 8 * 8, R),
    ((R // 2 + 1) // 2, R // 4),
    (R % 16, 0),
    ((H + 2 - 3) // 1 + 1, H),
    ((4 * H + 6) % 4, 2),
    (2 * (B * H) - B * H * 2, 0),
])
def test_simplifications(left, right):
    assert left == right


def test_unknown_divisibility_stays():
    assert isinstance(H % 2, Expression)
    assert H // 2 * 2 != H
    assert divide_exactly(H, 2) is None
    assert divide_exactly(R, 64) is None
    assert divide_exactly(B * 12, 4) == 3 * B
    assert divide_exactly(H, 0) is None


@pytest.mark.parametrize(("dim", "text"), [
    (2 * H + 1, "2 * H + 1"), (B * S, "B * S~"), (R // 2, "R // 2"), (R // 32 + 1, "R // 32 + 1"),
    (ceil_div(H, 4), "(H + 3) // 4"), (H - 2 * W - 3, "H - 2 * W - 3"), (-H, "-H"),
    (3 * (H // 2), "3 * (H // 2)"), (H * H, "H * H"),
])
def test_text(dim, text):
    assert str(dim) == text
