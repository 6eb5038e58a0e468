"""Arithmetic at compile time: numbers, sizes, lists and the functions over them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from lamina.compiler.ir.types import Expression, Symbol, ceil_div

MAX_ITEMS = 100_000
MAX_POWER = 4096
MAX_SYMBOL_POWER = 8
MAX_BITS = 8192
MAX_TERMS = 200


class StaticError(Exception):
    """A compile-time operation that cannot be done; the message says why."""

    def __init__(self, code: str, message: str, help: str = ""):
        super().__init__(message)
        self.code, self.message, self.help = code, message, help


def _divide(a: Any, b: Any) -> Any:
    if b == 0:
        raise StaticError("E404", "division by zero")
    if isinstance(a, Expression) or isinstance(b, Expression):
        raise StaticError("E404", f"`{a} / {b}` is not a whole number of elements",
                          "use `//`, or `ceil(a / b)`")
    return a / b


def _floor_divide(a: Any, b: Any) -> Any:
    if b == 0:
        raise StaticError("E404", "division by zero")
    return a // b


def _remainder(a: Any, b: Any) -> Any:
    if b == 0:
        raise StaticError("E404", "division by zero")
    return a % b


def _power(a: Any, b: Any) -> Any:
    if isinstance(b, Expression) or abs(b) > MAX_POWER or (isinstance(a, int) and abs(a) > 2**64):
        raise StaticError("E404", f"`{a} ** {b}` is too large")
    if isinstance(a, Expression) and (not isinstance(b, int) or not 0 <= b <= MAX_SYMBOL_POWER):
        raise StaticError("E404", f"`{a} ** {b}` is no size", "the power of a size is a small "
                          "whole number")
    if b < 0 and a == 0:
        raise StaticError("E404", "division by zero")
    return a ** b


ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": _divide, "//": _floor_divide,
    "%": _remainder, "**": _power,
}
ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}


def binary(op: str, a: Any, b: Any) -> Any:
    """`a op b` for compile-time values. Raises StaticError."""
    if op in ("==", "!="):
        return _equal(a, b) == (op == "==")
    if op in ("in", "not in"):
        if not isinstance(b, (tuple, list, range, str)):
            raise StaticError("E404", f"`{op}` needs a list on its right")
        return (a in b) == (op == "in")
    if op in ORDER:
        return _ordered(op, a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and op == "+":
        if len(a) + len(b) > MAX_ITEMS:
            raise StaticError("E901", f"a list of {len(a) + len(b):,} items is too long",
                              f"at most {MAX_ITEMS:,}")
        return (*a, *b)
    for value in (a, b):
        number = isinstance(value, (int, float, Expression)) and not isinstance(value, bool)
        if not number:
            raise StaticError("E404", f"`{op}` cannot be applied to {_kind(a)} and {_kind(b)}")
    if op not in ARITHMETIC:
        raise StaticError("E404", f"`{op}` is between tensors, not between numbers",
                          "use `*`" if op == "@" else "")
    if isinstance(a, float) and isinstance(b, Expression) or \
            isinstance(b, float) and isinstance(a, Expression):
        raise StaticError("E404", f"`{a} {op} {b}` mixes a fraction with a size that is not known")
    try:
        result = ARITHMETIC[op](a, b)
    except OverflowError:
        raise StaticError("E404", f"the result of `{op}` is too large") from None
    return _bounded(op, result)


def _bounded(op: str, result: Any) -> Any:
    """The result, unless a chain of such results could grow without end."""
    if isinstance(result, complex):
        raise StaticError("E404", f"the result of `{op}` is not a real number")
    if isinstance(result, int) and result.bit_length() > MAX_BITS:
        raise StaticError("E404", f"the result of `{op}` is too large")
    if isinstance(result, Expression) and _terms(result) > MAX_TERMS:
        raise StaticError("E901", f"the size has more than {MAX_TERMS} terms",
                          "give parts of it a symbol of their own")
    return result


def _terms(size: Any) -> int:
    """How many terms a size has, with those inside its quotients and remainders."""
    if not isinstance(size, Expression):
        return 0
    count = len(size.terms)
    for monomial, _ in size.terms:
        for atom, _ in monomial:
            if not isinstance(atom, Symbol):
                count += _terms(atom.numerator) + _terms(atom.denominator)
    return count


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Expression) or isinstance(b, Expression):
        if a is None or b is None:
            return False
        difference = a - b
        if isinstance(difference, int):
            return difference == 0
        raise StaticError("E403", f"whether `{a}` equals `{b}` is not known when compiled",
                          "give the size a number with --input, or a parameter")
    return a == b


def _ordered(op: str, a: Any, b: Any) -> bool:
    if isinstance(a, Expression) or isinstance(b, Expression):
        difference = a - b
        if not isinstance(difference, int):
            raise StaticError("E403", f"whether `{a} {op} {b}` is not known when compiled",
                              "give the size a number with --input, or a parameter")
        return ORDER[op](difference, 0)
    try:
        return ORDER[op](a, b)
    except TypeError:
        raise StaticError("E404", f"`{op}` cannot compare {_kind(a)} and {_kind(b)}") from None


def _kind(value: Any) -> str:
    names = {bool: "a truth value", int: "a number", float: "a number", str: "a text",
             tuple: "a list", list: "a list", type(None): "none"}
    return names.get(type(value), "a size")


def ceil_of_quotient(a: Any, b: Any) -> Any:
    """ceil(a / b), exact for whole numbers and sizes."""
    if b == 0:
        raise StaticError("E404", "division by zero")
    if isinstance(a, float) or isinstance(b, float):
        return math.ceil(a / b)
    return _bounded("/", ceil_div(a, b))


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise StaticError("E404", f"a whole number is needed here, not {_kind(value)}")
    return value


def _range(*bounds: Any) -> tuple[int, ...]:
    made = range(*map(_whole, bounds))
    if len(made) > MAX_ITEMS:
        raise StaticError("E901", f"a range of {len(made):,} items is too long",
                          f"at most {MAX_ITEMS:,}")
    return tuple(made)


def _pair(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        return (value, value)
    if len(value) != 2:
        raise StaticError("E404", f"a number or a pair is needed here, not {len(value)} numbers",
                          "give height and width: `(3, 5)`")
    return tuple(value)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "range": _range,
    "enumerate": lambda items: tuple(enumerate(items)),
    "zip": lambda *lists: tuple(zip(*lists, strict=False)),
    "len": len,
    "pair": _pair,
    "list": tuple,
    "int": int,
    "float": float,
    "round": round,
    "ceil": lambda x: x if isinstance(x, (int, Expression)) else math.ceil(x),
    "floor": lambda x: x if isinstance(x, (int, Expression)) else math.floor(x),
    "min": lambda *items: min(*items),
    "max": lambda *items: max(*items),
    "sum": lambda items: sum(items),
    "abs": abs,
    "sqrt": math.sqrt,
    "log": math.log,
    "exp": math.exp,
}


def call(name: str, args: list[Any]) -> Any:
    """A compile-time function. Raises StaticError."""
    try:
        return FUNCTIONS[name](*args)
    except StaticError:
        raise
    except TypeError:
        given = ", ".join(map(_kind, args)) or "nothing"
        raise StaticError("E404", f"`{name}` cannot be computed from {given}") from None
    except (ValueError, OverflowError):
        given = ", ".join(map(str, args))[:60]
        raise StaticError("E404", f"`{name}({given})` has no value") from None
