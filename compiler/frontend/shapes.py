"""Annotations: what they say about a tensor, and the symbols that they solve."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from lamina.compiler.errors import Note, Span
from lamina.compiler.frontend.values import BROKEN, Binding, Origin, Scope, Tensor
from lamina.compiler.ir.types import (
    DTYPES,
    Dim,
    Expression,
    divide_exactly,
    is_ragged,
    shape_text,
    substitute,
    symbol,
)
from lamina.compiler.syntax import ast

UNSOLVED = "?unsolved"


def is_symbol_name(name: str) -> bool:
    """Whether an unbound name in a shape is a symbol to solve."""
    return name[:1].isupper()


def divisors(body: tuple[ast.Statement, ...]) -> dict[str, int]:
    """What `assert H % 32 == 0` states about symbols: name to the number that divides it."""
    found: dict[str, int] = {}
    conditions = [s.condition for s in body if isinstance(s, ast.Assert)]
    while conditions:
        test = conditions.pop()
        if isinstance(test, ast.Binary) and test.op == "and":
            conditions += [test.left, test.right]
        elif (isinstance(test, ast.Binary) and test.op == "==" and _is_zero(test.right)
              and isinstance(test.left, ast.Binary) and test.left.op == "%"
              and isinstance(test.left.left, ast.Name)
              and isinstance(test.left.right, ast.Number)
              and isinstance(test.left.right.value, int) and test.left.right.value > 0):
            name = test.left.left.id
            found[name] = math.lcm(found.get(name, 1), test.left.right.value)
    return found


def _is_zero(expr: ast.Expr) -> bool:
    return isinstance(expr, ast.Number) and expr.value == 0


def declared_shape(ev: Any, annotation: ast.TensorType, multiples: dict[str, int]
                   ) -> tuple[Any, tuple[Origin | None, ...]]:
    """The shape of a model's input: numbers, sizes, and fresh symbols; or BROKEN."""
    shape: list[Dim] = []
    origins: list[Origin | None] = []
    for dim in annotation.dims:
        if _lower_symbol(ev, dim):
            return BROKEN, ()
        if isinstance(dim.value, ast.Dots):
            return ev.error("E314", "an input of a model cannot have `...` axes", dim.span,
                            help="name every axis"), ()
        if isinstance(dim.value, ast.Name) and ev.scope.find(dim.value.id) is None \
                and is_symbol_name(dim.value.id):
            name = dim.value.id
            size: Dim = ev.ctx.sizes[name] if name in ev.ctx.sizes else \
                symbol(name, dim.ragged, 1 if dim.ragged else multiples.get(name, 1))
            ev.scope.names[name] = Binding(size, dim.span, "dim")
        value = ev.size(dim.value)
        if value is BROKEN or _lately_ragged(ev, dim, value):
            return BROKEN, ()
        shape.append(value)
        origins.append(Origin(f"`{dim.span.text}`" + _equals(dim.span.text, value), dim.span))
    return tuple(shape), tuple(origins)


def _lately_ragged(ev: Any, dim: ast.Dim, size: Dim) -> bool:
    """Report `S~` where S has one size for all examples."""
    if not dim.ragged or is_ragged(size) or dim.value.span.text in ev.ctx.sizes:
        return False
    known = ev.scope.find(dim.value.id) if isinstance(dim.value, ast.Name) else None
    notes = [Note("here without `~`", known.span)] if known is not None and known.span else ()
    ev.error("E418", f"`{dim.span.text}` differs from example to example, `{size}` does not",
             dim.span, notes=notes, help=f"write `{dim.span.text}` where it first occurs")
    return True


def _lower_symbol(ev: Any, dim: ast.Dim) -> bool:
    """Report an unknown name in a shape that would be a symbol with a capital letter."""
    if not isinstance(dim.value, ast.Name):
        return False
    name = dim.value.id
    if ev.scope.find(name) is not None or is_symbol_name(name):
        return False
    ev.error("E301", f"`{name}` is not defined here", dim.span,
             help=f"a symbol starts with a capital letter: `{name[:20].capitalize()}`")
    return True


def _equals(text: str, value: Any) -> str:
    return "" if text == str(value) else f" = {value}"


def silence(ev: Any, annotation: ast.TensorType) -> None:
    """Bind the symbols of a shape that could not be made, so that their uses stay silent."""
    for dim in annotation.dims:
        for name in _unbound(dim.value, ev.scope):
            ev.home.names[name] = Binding(BROKEN, dim.span, "dim")


def match(ev: Any, annotation: ast.TensorType, tensor: Tensor, what: str, span: Span,
          called: Span | None = None) -> Any:
    """Check `tensor` against an annotation and bind the symbols that it solves.

    Gives the tensor with the origins of its sizes, or BROKEN after reporting. `what` names the
    tensor in messages, `span` is where it was made, `called` the call for an instance's input.
    """
    if annotation.dtype is not None and annotation.dtype != tensor.type.dtype:
        if annotation.dtype not in DTYPES:
            return ev.unknown_dtype(annotation)
        return ev.error("E313", f"{what} has elements of type {tensor.type.dtype}, "
                        f"its annotation says {annotation.dtype}", annotation.span,
                        help=f"convert it with `-> cast(dtype=\"{annotation.dtype}\")`")
    pairs = _align(ev, annotation, tensor, what, span)
    if pairs is None:
        return BROKEN
    origins = list(tensor.origins or (None,) * len(tensor.shape))
    wrong = False
    for axis, dim in pairs:
        actual = tensor.shape[axis]
        bound = Binding(actual, dim.span, "dim", called=called, source=what if called else "",
                        origin=origins[axis])
        expected = _solve(ev, dim, bound)
        if expected is BROKEN:
            return BROKEN
        if expected != actual:
            _mismatch(ev, annotation, tensor, what, span, axis, dim, expected)
            wrong = True
        if not (called and ev.instance.definition.library):
            origins[axis] = _origin(ev, dim, actual, called)
    return BROKEN if wrong else replace(tensor, origins=tuple(origins))


def _align(ev: Any, annotation: ast.TensorType, tensor: Tensor, what: str, span: Span):
    """(axis, dim) pairs, `...` standing for any number of axes; None after reporting."""
    dims, rank = annotation.dims, len(tensor.shape)
    dots = [i for i, dim in enumerate(dims) if isinstance(dim.value, ast.Dots)]
    if len(dots) > 1:
        ev.error("E314", "only one `...` may stand in a shape", dims[dots[1]].span)
        return None
    fits = len(dims) - 1 <= rank if dots else len(dims) == rank
    if not fits:
        least = "at least " if dots else ""
        ev.error("E310", f"{what} has shape {shape_text(tensor.shape)} of rank {rank}; "
                 f"{annotation.span.text} needs {least}{len(dims) - len(dots)} axes", span,
                 notes=[Note("the annotation", annotation.span)])
        return None
    if not dots:
        return list(enumerate(dims))
    before, after = dims[:dots[0]], dims[dots[0] + 1:]
    return [*enumerate(before), *enumerate(after, start=rank - len(after))]


def _solve(ev: Any, dim: ast.Dim, bound: Binding) -> Any:
    """The size that an annotation's dim stands for; an unbound symbol is bound."""
    actual = bound.value
    unbound = _unbound(dim.value, ev.scope)
    if not unbound:
        return ev.size(dim.value)
    name = unbound[0]
    if _lower_symbol(ev, dim):
        return BROKEN
    if len(set(unbound)) > 1 or not is_symbol_name(name):
        return ev.eval(dim.value)  # reports the unknown name
    if isinstance(dim.value, ast.Name):
        ev.home.names[name] = bound
        return actual
    solution = _solve_linear(ev, dim.value, name, actual)
    if solution is None:
        return ev.error("E315", f"`{dim.span.text}` = {actual} has no whole solution for `{name}`",
                        dim.span, notes=[Note("called here", bound.called)] if bound.called else
                        (), help="annotate the symbol alone on another axis, or change the size")
    ev.home.names[name] = replace(bound, value=solution, origin=None)
    return actual


def _solve_linear(ev: Any, expr: Any, name: str, actual: Dim) -> Dim | None:
    probe = Scope(ev.scope, {name: Binding(symbol(UNSOLVED), None, "dim")})
    value = ev.inside(probe).size(expr)
    if not isinstance(value, Expression):
        return None
    at_zero, at_one = (substitute(value, {UNSOLVED: n}) for n in (0, 1))
    solution = divide_exactly(actual - at_zero, at_one - at_zero)
    if solution is None or substitute(value, {UNSOLVED: solution}) != actual:
        return None
    return solution


def _unbound(expr: Any, scope: Scope) -> list[str]:
    names = []
    todo = [expr]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Name):
            names += [node.id] if scope.find(node.id) is None else []
        elif isinstance(node, ast.Call):
            todo += node.args
        elif ast.is_node(node):
            todo += [part for part in ast.parts(node) if ast.is_node(part)]
    return names


def _origin(ev: Any, dim: ast.Dim, actual: Dim, called: Span | None) -> Origin | None:
    if isinstance(dim.value, ast.Name):
        found = ev.describe_name(dim.value.id, called)
        if found is not None or ev.instance.definition.library:
            return found
    if isinstance(dim.value, ast.Number):
        return None
    return Origin(f"`{dim.span.text}` = {actual}", dim.span, called)


def _mismatch(ev: Any, annotation: ast.TensorType, tensor: Tensor, what: str, span: Span,
              axis: int, dim: ast.Dim, expected: Dim) -> None:
    notes = [Note(f"the annotation says `{dim.span.text}` = {expected}"
                  if dim.span.text != str(expected) else f"the annotation says {expected}",
                  dim.span)]
    known = isinstance(dim.value, ast.Name) and ev.describe_name(dim.value.id, None)
    if known and known.span is not None and known.span != dim.span:
        notes.append(Note(known.text, known.span))
    origin = tensor.origins[axis] if tensor.origins else None
    if origin is not None:
        notes.append(Note(f"dim {axis} of {what} is {origin.text}", origin.span))
    ev.error("E311", f"dim {axis} of {what} is {tensor.shape[axis]}, not {expected}: "
             f"its shape is {shape_text(tensor.shape)}", span, notes=notes)
