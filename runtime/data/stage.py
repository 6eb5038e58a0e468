"""One call in a data pipeline as plain data, and the checking of its arguments."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lamina.runtime.data.errors import DataError
from lamina.runtime.errors import show


@dataclass(frozen=True, slots=True)
class Stage:
    """A call: `pad(2)` is Stage("pad", (2,)). `line` is its 1-based line in the recipe, or 0.

    Arguments are numbers, truth values, strings and lists (or tuples) of them.
    """

    name: str
    args: tuple = ()
    kwargs: tuple[tuple[str, object], ...] = ()
    line: int = 0


def call(stage: Stage, function: Callable, **context: object):
    """`function` with the stage's arguments and the `context`; E608 if they do not fit.

    Parameters of `function` that start with an underscore take the context and are no arguments.
    """
    bound = check_call(stage, function, **context)
    try:
        return function(*bound.args, **bound.kwargs)
    except DataError as error:
        error.line = error.line or stage.line
        raise


def check_call(stage: Stage, function: Callable, **context: object) -> inspect.BoundArguments:
    """The arguments as `function` takes them, without calling it; E608 if they do not fit."""
    signature = inspect.signature(function)
    given = {f"_{key}": value for key, value in context.items()}
    hidden = {key: value for key, value in given.items() if key in signature.parameters}
    try:
        named = dict(stage.kwargs)
        if any(key.startswith("_") for key in named):
            raise TypeError("arguments do not start with an underscore")
        return signature.bind(*stage.args, **named, **hidden)
    except TypeError as error:
        usage = _usage(stage.name, signature)
        message = f"`{show(stage.name)}`: {show(error)}"
        raise DataError("E608", message, f"it is written {usage}", stage.line) from None


def _usage(name: str, signature: inspect.Signature) -> str:
    shown = [
        _usage_of(key, parameter)
        for key, parameter in signature.parameters.items()
        if not key.startswith("_")
    ]
    return f"{name}({', '.join(shown)})"


def _usage_of(key: str, parameter: inspect.Parameter) -> str:
    default = parameter.default
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return 'FIELD="ARRAY"'
    if default is inspect.Parameter.empty:
        return key
    if default is None:
        return f"{key}=..."
    return f"{key}={json.dumps(default)}"  # true, numbers and texts as the language writes them


def bad(name: str, what: str, value: object) -> DataError:
    """The error for an argument `name` that should be `what`."""
    return DataError("E608", f"`{name}` must be {what}, not {show(repr(value))}")


def whole(name: str, value: object, least: int = 0, most: int = 1 << 20) -> int:
    """`value` as an int from `least` to `most`, or E608."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise bad(name, f"a whole number from {least} to {most}", value)
    return value


def real(name: str, value: object, least: float = -1e30, most: float = 1e30) -> float:
    """`value` as a finite float from `least` to `most`, or E608."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise bad(name, f"a number from {least:g} to {most:g}", value)
    return float(value)


def text(name: str, value: object) -> str:
    """`value` as a string without NUL, or E608."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise bad(name, "a text in quotes", value)
    return value


def truth(name: str, value: object) -> bool:
    """`value` as a truth value, or E608."""
    if not isinstance(value, bool):
        raise bad(name, "true or false", value)
    return value


def height_width(name: str, value: object) -> tuple[int, int]:
    """A picture's size from one number (a square) or a list [height, width]."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        return whole(name, value[0], 1, 16384), whole(name, value[1], 1, 16384)
    side = whole(name, value, 1, 16384)
    return side, side


def decoded_size(name: str, size: object) -> int | tuple[int, int] | None:
    """How large pictures are made: None as they are, a number the shorter side, or both sides."""
    if size is None:
        return None
    return whole(name, size, 1, 16384) if isinstance(size, int) else height_width(name, size)


def check_channels(channels: object) -> None:
    """E608 unless pictures have 1 or 3 channels."""
    if channels not in (1, 3) or isinstance(channels, bool):
        raise bad("channels", "1 (grey) or 3 (RGB)", channels)
