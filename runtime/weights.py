"""Weights from elsewhere: renaming by patterns, and loading into a model.

In a pattern `{s}` stands for a whole number, `{s+1}` for that number plus one (so that counting
from 1 there is counting from 0 here), and `*` for any text. The first rule that fits a name wins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lamina.runtime.checkpoint import CheckpointError
from lamina.runtime.errors import show

_HOLE = re.compile(r"\{([A-Za-z_]\w*)(?:\s*([+-])\s*(\d+))?\}|\*")
_LISTED = 4  # names in a message


@dataclass(frozen=True, slots=True)
class Rule:
    """`map source => target`, or `skip source` when `target` is None. `line` is its source line."""

    source: str
    target: str | None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Mapped:
    """Tensors under the model's names, and the model's names that got none."""

    tensors: dict[str, np.ndarray]
    missing: tuple[str, ...]


def map_weights(found: Mapping[str, np.ndarray], rules: Sequence[Rule],
                wanted: Mapping[str, np.ndarray], place: str) -> Mapped:
    """Rename the tensors of a file and check them against the model's initial values.

    A tensor that no rule fits keeps its name. Raises CheckpointError E703 for a name that the
    model does not have, a shape that differs, or two tensors for one name.
    """
    tensors: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    strangers = []
    for name, tensor in found.items():
        target = _target(name, rules)
        if target is None:
            continue
        if target not in wanted:
            strangers.append(name if target == name else f"{name} (as {target})")
            continue
        if target in origin:
            raise CheckpointError("E703", f"{show(place)}: both {show(origin[target])} and "
                                  f"{show(name)} map to {show(target)}",
                                  "make the patterns of `weights` more exact")
        if tensor.shape != wanted[target].shape:
            raise CheckpointError(
                "E703", f"{show(place)}: {show(name)} has shape {list(tensor.shape)}, "
                f"{show(target)} of the model {list(wanted[target].shape)}",
                f'leave it out with skip "{show(name)}", or change the model')
        tensors[target], origin[target] = tensor.astype(wanted[target].dtype), name
    if strangers:
        more = f" and {len(strangers) - _LISTED} more" if len(strangers) > _LISTED else ""
        raise CheckpointError(
            "E703", f"{show(place)} holds what the model does not have: "
            f"{', '.join(map(show, strangers[:_LISTED]))}{more}",
            "map them to the model's names, or leave them out with skip")
    return Mapped(tensors, tuple(key for key in wanted if key not in tensors))


def _target(name: str, rules: Sequence[Rule]) -> str | None:
    """The model's name for a tensor; None when it is skipped."""
    for rule in rules:
        values = match(rule.source, name)
        if values is not None:
            return None if rule.target is None else fill(rule.target, values)
    return name


def match(pattern: str, name: str) -> dict[str, str] | None:
    """What the holes of a pattern stand for in `name`, or None when it does not fit."""
    text, start, stars = "", 0, 0
    shifts: dict[str, int] = {}
    for hole in _HOLE.finditer(pattern):
        text += re.escape(pattern[start:hole.start()])
        start = hole.end()
        key = hole[1]
        if key is None:
            text += f"(?P<star{stars}>.*)"
            stars += 1
        elif key in shifts:
            text += rf"(?P={key})"
        else:
            shifts[key] = int(hole[3] or 0) * (-1 if hole[2] == "-" else 1)
            text += rf"(?P<{key}>\d+)"
    found = re.fullmatch(text + re.escape(pattern[start:]), name)
    if found is None:
        return None
    values = found.groupdict()
    for key, shift in shifts.items():
        number = int(values[key]) - shift
        if number < 0:
            return None
        values[key] = str(number)
    return values


def fill(pattern: str, values: Mapping[str, str]) -> str:
    """A pattern with its holes filled; stars are taken in order.

    Raises CheckpointError E703 for a hole that the other side does not have.
    """
    stars = iter([value for key, value in values.items() if key.startswith("star")])

    def one(hole: re.Match) -> str:
        if hole[1] is None:
            value = next(stars, None)
            if value is None:
                raise _no_hole("*", pattern)
            return value
        if hole[1] not in values:
            raise _no_hole(hole[0], pattern)
        shift = int(hole[3] or 0) * (-1 if hole[2] == "-" else 1)
        return str(int(values[hole[1]]) + shift)

    return _HOLE.sub(one, pattern)


def _no_hole(hole: str, pattern: str) -> CheckpointError:
    return CheckpointError("E703", f'`{hole}` in "{show(pattern)}" stands for nothing',
                           "use it in the pattern before `=>` too")
