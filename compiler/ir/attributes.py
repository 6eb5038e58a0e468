"""What an attribute may hold: its name says its kind, the same in every operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lamina.compiler.ir.op import OpError
from lamina.compiler.ir.types import DTYPES, Expression


def _whole(value: Any) -> bool:
    return type(value) is int


def _size(value: Any) -> bool:
    return type(value) is int or isinstance(value, Expression)


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _all(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and all(check(one) for one in value)


_sizes, _wholes = _all(_size), _all(_whole)

KINDS: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    ("a whole number", _whole, ("groups", "salt", "k", "start", "index", "parts",
                                "window", "states", "sequences")),
    ("a size", _size, ("depth", "rows", "length")),
    ("a number", _number, ("slope", "alpha", "beta", "gamma", "bias", "low", "high", "delta",
                          "smoothing", "p", "eps", "iou", "least")),
    ("true or false", lambda value: type(value) is bool, ("keepdims", "count_padding",
                                                          "backwards")),
    ("a list of sizes", _sizes, ("shape", "starts", "stops", "lo", "hi", "size")),
    ("a list of whole numbers", _wholes, ("perm", "steps", "interior", "axes")),
    ("an axis or a list of axes", lambda value: value is None or _whole(value) or _wholes(value),
     ("axis",)),
    ("a number or a size", lambda value: type(value) is bool or _number(value) or _size(value),
     ("value",)),
    (f"one of {', '.join(DTYPES)}", lambda value: value in DTYPES, ("dtype",)),
    ("'direct', 'winograd', 'winograd_2x2' or 'shifted'",
     lambda value: value in ("direct", "winograd", "winograd_2x2", "shifted"), ("algorithm",)),
    ("'none' or 'tanh'", lambda value: value in ("none", "tanh"), ("approximate",)),
)
_CHECKS = {name: (what, check) for what, check, names in KINDS for name in names}


def check_attribute(operator: str, name: str, value: Any) -> None:
    """Raise OpError E206 when the value is not of the kind that the attribute's name says."""
    what, check = _CHECKS.get(name, ("", None))
    if check is not None and not check(value):
        raise OpError("E206", f"`{operator}`: {name} is {value!r}, not {what}")
