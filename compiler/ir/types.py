"""Tensor types and symbolic dimensions.

A `Dim` is an int or an `Expression`: a polynomial with integer coefficients over atoms, kept in
one normal form so that equality of expressions is equality of values wherever the rules reach.
An atom is a `Symbol` (batch, time, image size) or a floor quotient or remainder that could not be
simplified. Divisions by constants pull out what divides: (2*H + 3) // 2 is H + 1, and nested
floors merge, so ceil(ceil(H / 2) / 2) equals ceil(H / 4).
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy

DTYPES = ("f32", "f64", "i32", "i64", "bool")
FLOATS = ("f32", "f64")
NUMPY_TYPES = {"f32": numpy.float32, "f64": numpy.float64, "i32": numpy.int32,
               "i64": numpy.int64, "bool": numpy.bool_}


@dataclass(frozen=True, slots=True)
class Symbol:
    """An unknown size, e.g. the batch B. `ragged`: differs per example (written S~).

    `scale` is for sizes known to be divisible: Symbol("H", scale=32) stands for H / 32.
    """

    name: str
    ragged: bool = False
    scale: int = 1


@dataclass(frozen=True, slots=True)
class Quotient:
    """floor(numerator / denominator), not simplifiable."""

    numerator: Dim
    denominator: Dim


@dataclass(frozen=True, slots=True)
class Remainder:
    """numerator mod denominator, not simplifiable."""

    numerator: Dim
    denominator: Dim


Atom = Symbol | Quotient | Remainder
Monomial = tuple[tuple[Atom, int], ...]  # atoms with their powers, sorted by text


@dataclass(frozen=True, slots=True)
class Expression:
    """A polynomial over atoms: monomials with non-zero coefficients, sorted by text."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Dim) -> Dim:
        """Sum."""
        total = dict(_terms(self))
        for monomial, factor in _terms(other):
            total[monomial] = total.get(monomial, 0) + factor
        return _normal(total)

    def __mul__(self, other: Dim) -> Dim:
        """Product."""
        total: dict[Monomial, int] = {}
        for left, a in _terms(self):
            for right, b in _terms(other):
                monomial = _merge(left, right)
                total[monomial] = total.get(monomial, 0) + a * b
        return _normal(total)

    __radd__, __rmul__ = __add__, __mul__

    def __sub__(self, other: Dim) -> Dim:
        """Difference."""
        return self + -1 * other

    def __rsub__(self, other: Dim) -> Dim:
        """Difference, reversed."""
        return -1 * self + other

    def __neg__(self) -> Dim:
        """Negation."""
        return -1 * self

    def __floordiv__(self, other: Dim) -> Dim:
        """Floor quotient."""
        return _floor_divide(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        """Floor quotient, reversed."""
        return _floor_divide(other, self)

    def __mod__(self, other: Dim) -> Dim:
        """Remainder with the sign of the divisor."""
        return _remainder(self, other)

    def __rmod__(self, other: Dim) -> Dim:
        """Remainder, reversed."""
        return _remainder(other, self)

    def __pow__(self, power: int) -> Dim:
        """Non-negative integer power."""
        return functools.reduce(lambda a, b: a * b, [self] * power, 1)

    def __str__(self) -> str:
        """Readable text that `parse_dim` reads back."""
        return _text(self)

    __repr__ = __str__


Dim = int | Expression


def symbol(name: str, ragged: bool = False, multiple_of: int = 1) -> Dim:
    """A symbolic size; `multiple_of` states a number that is known to divide it."""
    return _normal({((Symbol(name, ragged, multiple_of), 1),): multiple_of})


def ceil_div(numerator: Dim, denominator: Dim) -> Dim:
    """The quotient rounded up."""
    return (numerator + denominator - 1) // denominator


def product(dims: Iterable[Dim]) -> Dim:
    """The product of sizes; 1 for none."""
    return functools.reduce(lambda a, b: a * b, dims, 1)


def divide_exactly(numerator: Dim, denominator: Dim) -> Dim | None:
    """The quotient where it is provably exact, else None."""
    if isinstance(denominator, int) and denominator == 0:
        return None
    quotient = numerator // denominator
    return quotient if quotient * denominator == numerator else None


def symbols_of(value: object) -> set[Symbol]:
    """All symbols in a Dim, a TensorType or a tuple of them."""
    if isinstance(value, TensorType):
        return symbols_of(value.shape)
    if isinstance(value, tuple):
        return {found for item in value for found in symbols_of(item)}
    if not isinstance(value, Expression):
        return set()
    found = set()
    for monomial, _ in value.terms:
        for atom, _ in monomial:
            found |= {atom} if isinstance(atom, Symbol) else (
                symbols_of(atom.numerator) | symbols_of(atom.denominator))
    return found


def is_ragged(value: object) -> bool:
    """Whether a size (or any size of a type) differs per example."""
    return any(found.ragged for found in symbols_of(value))


def substitute(dim: Dim, bindings: Mapping[str, Dim]) -> Dim:
    """Replace symbols by sizes, by name; unnamed symbols stay."""
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for monomial, factor in dim.terms:
        term: Dim = factor
        for atom, power in monomial:
            for _ in range(power):
                term = term * _substitute_atom(atom, bindings)
        total = total + term
    return total


def _substitute_atom(atom: Atom, bindings: Mapping[str, Dim]) -> Dim:
    if isinstance(atom, Symbol):
        if atom.name in bindings:
            return bindings[atom.name] // atom.scale
        return _normal({((atom, 1),): 1})
    top, bottom = substitute(atom.numerator, bindings), substitute(atom.denominator, bindings)
    return top // bottom if isinstance(atom, Quotient) else top % bottom


def to_size(dim: Dim):
    """The Dim as a runtime `Size`: an int, a name, or a nested tuple."""
    if isinstance(dim, int):
        return dim
    parts = []
    for monomial, factor in dim.terms:
        if len(monomial) == 1 and monomial[0][1] == 1 and isinstance(monomial[0][0], Symbol) \
                and factor % monomial[0][0].scale == 0:  # 32 * (H / 32) is H itself
            atom = monomial[0][0]
            times = factor // atom.scale
            parts.append(atom.name if times == 1 else ("*", times, atom.name))
            continue
        factors: list = [_atom_size(atom) for atom, power in monomial for _ in range(power)]
        if factor != 1 or not factors:
            factors.insert(0, factor)
        parts.append(factors[0] if len(factors) == 1 else ("*", *factors))
    return parts[0] if len(parts) == 1 else ("+", *parts)


def _atom_size(atom: Atom):
    if isinstance(atom, Symbol):
        return atom.name if atom.scale == 1 else ("//", atom.name, atom.scale)
    operator = "//" if isinstance(atom, Quotient) else "%"
    return (operator, to_size(atom.numerator), to_size(atom.denominator))


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(dim, Expression):
        return dim.terms
    return (((), int(dim)),) if dim else ()


def _merge(left: Monomial, right: Monomial) -> Monomial:
    if not left or not right:
        return left or right
    powers = dict(left)
    for atom, power in right:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: _atom_text(item[0])))


def _normal(terms: dict[Monomial, int]) -> Dim:
    kept = [(monomial, factor) for monomial, factor in terms.items() if factor]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    # Products before sums before constants; alphabetical within, for stable text.
    kept.sort(key=lambda item: (-sum(power for _, power in item[0]), _monomial_text(item[0])))
    return Expression(tuple(kept))


def _floor_divide(numerator: Dim, denominator: Dim) -> Dim:
    if denominator == 1 or numerator == 0:
        return numerator
    if denominator == 0:
        raise ZeroDivisionError("division of a size by zero")
    if numerator == denominator:
        return 1
    if isinstance(numerator, int) and isinstance(denominator, int):
        return numerator // denominator
    if not isinstance(denominator, int):
        return _divide_by_expression(numerator, denominator)
    if denominator < 0:
        return _floor_divide(-1 * numerator, -denominator)
    outside: Dim = 0
    inside: dict[Monomial, int] = {}
    for monomial, factor in _terms(numerator):
        whole, rest = divmod(factor, denominator)
        if whole:
            outside = outside + _normal({monomial: whole})
        if rest:
            inside[monomial] = rest
    rest_dim = _normal(inside)
    if isinstance(rest_dim, int):
        return outside  # 0 <= rest < denominator
    shared = math.gcd(denominator, *(f for monomial, f in rest_dim.terms if monomial))
    if shared > 1:  # floor((g*a + c) / (g*b)) = floor((a + floor(c/g)) / b)
        reduced = _normal({m: f // shared for m, f in rest_dim.terms})
        return outside + _floor_divide(reduced, denominator // shared)
    return outside + _nested(rest_dim, denominator)


def _nested(numerator: Expression, denominator: int) -> Dim:
    """floor((floor(a / m) + c) / n) = floor((a + c*m) / (m*n))."""
    variable = [(monomial, factor) for monomial, factor in numerator.terms if monomial]
    constant = sum(factor for monomial, factor in numerator.terms if not monomial)
    if len(variable) == 1 and variable[0][1] == 1 and len(variable[0][0]) == 1:
        atom, power = variable[0][0][0]
        if isinstance(atom, Quotient) and power == 1 and isinstance(atom.denominator, int):
            top = atom.numerator + constant * atom.denominator
            return _floor_divide(top, atom.denominator * denominator)
    return Expression(((((Quotient(numerator, denominator), 1),), 1),))


def _divide_by_expression(numerator: Dim, denominator: Expression) -> Dim:
    if len(denominator.terms) == 1 and isinstance(numerator, Expression):
        monomial, factor = denominator.terms[0]
        wanted = dict(monomial)
        total: dict[Monomial, int] = {}
        for top, top_factor in numerator.terms:
            powers = dict(top)
            if top_factor % factor or any(powers.get(a, 0) < p for a, p in wanted.items()):
                break
            left = {a: p - wanted.get(a, 0) for a, p in powers.items()}
            total[tuple((a, p) for a, p in left.items() if p)] = top_factor // factor
        else:
            return _normal(total)
    return Expression(((((Quotient(numerator, denominator), 1),), 1),))


def _remainder(numerator: Dim, denominator: Dim) -> Dim:
    if isinstance(numerator, int) and isinstance(denominator, int):
        return numerator % denominator
    if divide_exactly(numerator, denominator) is not None:
        return 0
    if isinstance(denominator, int):
        numerator = _normal({m: f % denominator for m, f in _terms(numerator)})
        if isinstance(numerator, int):
            return numerator % denominator
    return Expression(((((Remainder(numerator, denominator), 1),), 1),))


def _atom_text(atom: Atom) -> str:
    if isinstance(atom, Symbol):
        name = atom.name + ("~" if atom.ragged else "")
        return name if atom.scale == 1 else f"({name} // {atom.scale})"
    operator = "//" if isinstance(atom, Quotient) else "%"
    return f"({_wrapped(atom.numerator)} {operator} {_wrapped(atom.denominator)})"


def _wrapped(dim: Dim) -> str:
    text = str(dim)
    return f"({text})" if " " in text and not _enclosed(text) else text


def _enclosed(text: str) -> bool:
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and index < len(text) - 1:
            return False
    return text.startswith("(")


def _monomial_text(monomial: Monomial) -> str:
    return " * ".join(_atom_text(atom) for atom, power in monomial for _ in range(power))


def _term_text(monomial: Monomial, factor: int) -> str:
    if len(monomial) == 1 and monomial[0][1] == 1 and isinstance(monomial[0][0], Symbol):
        atom = monomial[0][0]
        if atom.scale > 1:  # 16 * (H / 32) reads H // 2, and 32 * (H / 32) reads H
            shared = math.gcd(atom.scale, factor)
            name = atom.name + ("~" if atom.ragged else "")
            over, times = atom.scale // shared, factor // shared
            text = name if over == 1 else f"{name} // {over}"
            if times == 1:
                return text
            return f"{times} * ({text})" if over > 1 else f"{times} * {text}"
    if not monomial:
        return str(factor)
    text = _monomial_text(monomial)
    if factor == 1:
        return text
    return f"-{text}" if factor == -1 else f"{factor} * {text}"


def _text(dim: Expression) -> str:
    if len(dim.terms) == 1:
        text = _term_text(*dim.terms[0])
        return text[1:-1] if _enclosed(text) else text
    parts = [_term_text(*dim.terms[0])]
    for monomial, factor in dim.terms[1:]:
        sign = " - " if factor < 0 else " + "
        parts.append(sign + _term_text(monomial, abs(factor)))
    return "".join(parts)


def parse_dim(text: str, known: Mapping[str, Dim] | None = None) -> Dim:
    """Read a size as printed; `known` gives symbols that carry divisibility."""
    marked = re.sub(r"([A-Za-z_]\w*)~", r"\1__ragged", text)
    return _evaluate(ast.parse(marked, mode="eval").body, known or {})


_OPERATORS: dict[type, Callable[[Dim, Dim], Dim]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}


def _evaluate(node: ast.expr, known: Mapping[str, Dim]) -> Dim:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        ragged = node.id.endswith("__ragged")
        name = node.id.removesuffix("__ragged")
        return known[name] if name in known else symbol(name, ragged)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand, known)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _evaluate(node.left, known), _evaluate(node.right, known)
        return _OPERATORS[type(node.op)](left, right)
    raise ValueError(f"not a size: {ast.unparse(node)}")


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape and element type of a tensor."""

    shape: tuple[Dim, ...]
    dtype: str = "f32"

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __str__(self) -> str:
        """As written in the language: f32[B, 3, H, W]."""
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def shape_text(shape: Iterable[Dim]) -> str:
    """A shape as people write it: [B, 3, H, W]."""
    return f"[{', '.join(map(str, shape))}]"
