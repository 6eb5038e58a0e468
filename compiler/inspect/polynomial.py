"""Counts as functions of the open sizes, written as a reader would write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lamina.compiler.inspect.cost import (
    PerLayer,
    backward_macs,
    expanded,
    macs_by_path,
    summarize,
)
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.types import (
    Atom,
    Dim,
    Expression,
    Monomial,
    Remainder,
    Symbol,
    product,
    symbols_of,
)


@dataclass(frozen=True, slots=True)
class FormulaRow:
    """One layer, whose result has `shape`, or the total: counts for the whole batch."""

    path: str
    parameters: int
    macs: Dim
    backward: Dim
    bytes: Dim
    shape: tuple[Dim, ...] = ()


@dataclass(frozen=True, slots=True)
class Formulas:
    """The counts of a model as functions of `sizes`, its open sizes in order."""

    model: str
    sizes: tuple[str, ...]
    layers: tuple[FormulaRow, ...]
    total: FormulaRow


def formulas(graph: Graph) -> Formulas:
    """Parameters, multiply-accumulates and bytes of every layer and in total, whole batch."""
    whole = expanded(graph)
    summary = summarize(graph, whole)
    forward, backward = macs_by_path(whole), backward_macs(whole)
    macs, back = PerLayer(forward, 1), PerLayer(backward, 1)
    rows = [FormulaRow(row.path, row.parameters, macs.take(row.path), back.take(row.path),
                       row.bytes, row.out.shape)
            for row in summary.layers]
    total = FormulaRow("total", summary.parameters, sum(forward.values(), start=0),
                       sum(backward.values(), start=0), summary.bytes)
    return Formulas(graph.name, open_sizes(graph), tuple(rows), total)


def open_sizes(graph: Graph) -> tuple[str, ...]:
    """The names of sizes that the inputs leave open, in the order of the inputs' axes."""
    names: dict[str, None] = {}
    for value in graph.inputs.values():
        for size in graph.type(value).shape:
            names.update(dict.fromkeys(sorted(found.name for found in symbols_of(size))))
    return tuple(names)


def formula_text(count: Dim, order: Sequence[str] = ()) -> str:
    """A count as a formula: 9408*B*ceil(H/2)*ceil(W/2). Symbols come in the order given.

    Divisions are exact where the model states that a size is divisible; elsewhere they are inside
    ceil() or floor(). Python reads the text.
    """
    if isinstance(count, int):
        return str(count)
    text = ""
    for monomial, factor in sorted(count.terms, key=lambda term: _degree(term[0])):
        term = _term(monomial, abs(factor), order)
        sign = "-" if factor < 0 else "+"
        text = f"{text} {sign} {term}" if text else ("-" if factor < 0 else "") + term
    return text


def product_text(count: Dim, shape: Sequence[Dim], order: Sequence[str] = ()) -> str:
    """A count of so many for each element of `shape`, as a product where that is shorter."""
    sizes = [size for size in shape if not isinstance(size, int)]
    total = product(sizes)
    if isinstance(count, int) or isinstance(total, int) or len(total.terms) == 1:
        return formula_text(count, order)
    each = count.terms[0][1] // total.terms[0][1]
    if each * total != count:
        return formula_text(count, order)
    return "*".join([str(each), *(_wrapped(size, order, "+-") for size in sizes)])


def _degree(monomial: Monomial) -> int:
    return -sum(power for _, power in monomial)


def _term(monomial: Monomial, factor: int, order: Sequence[str]) -> str:
    parts = []
    for atom, power in sorted(monomial, key=lambda item: _rank(item[0], order)):
        over = 1
        if isinstance(atom, Symbol):  # a divisible size: what the factor holds cancels
            for _ in range(power):
                shared = math.gcd(atom.scale, factor)
                factor //= shared
                over *= atom.scale // shared
        parts.append(_power(_atom(atom, order), power) + (f"/{over}" if over > 1 else ""))
    if factor != 1 or not parts:
        parts.insert(0, str(factor))
    return "*".join(parts)


def _power(text: str, power: int) -> str:
    return text if power == 1 else f"{text}**{power}"


def _rank(atom: Atom, order: Sequence[str]) -> tuple:
    names = sorted(found.name for found in symbols_of(Expression(((((atom, 1),), 1),))))
    first = min((order.index(name) for name in names if name in order), default=len(order))
    return first, not isinstance(atom, Symbol), names


def _atom(atom: Atom, order: Sequence[str]) -> str:
    if isinstance(atom, Symbol):
        return atom.name
    top, bottom = atom.numerator, atom.denominator
    if isinstance(atom, Remainder):
        return f"({_wrapped(top, order)} % {_wrapped(bottom, order)})"
    if isinstance(bottom, int) and _constant(top) == bottom - 1:
        return f"ceil({_wrapped(top - (bottom - 1), order)}/{bottom})"
    return f"floor({_wrapped(top, order)}/{_wrapped(bottom, order)})"


def _constant(dim: Dim) -> int:
    if isinstance(dim, int):
        return dim
    return sum(factor for monomial, factor in dim.terms if not monomial)


def _wrapped(dim: Dim, order: Sequence[str], signs: str = "+-*/") -> str:
    text = formula_text(dim, order)
    return f"({text})" if any(sign in text for sign in signs) else text

