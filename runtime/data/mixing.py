"""Mixup: each example blended with another one, labels too.

Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: beyond empirical risk minimization" (2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.source import Rows
from lamina.runtime.data.stage import real, whole
from lamina.runtime.data.transforms import Draw
from lamina.runtime.errors import show

_POINTS = 4097  # of the table of the distribution's inverse


@dataclass(frozen=True, slots=True)
class Mixup:
    """How examples are mixed: shares by Beta(alpha, alpha), labels among `classes` (0: as named).

    `line` is that of the recipe.
    """

    alpha: float
    classes: int = 0
    line: int = 0

    def draw(self, numbers: Draw, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Each example's partner int64 [N] among `length`, and its share, float32, up to 1/2."""
        uniform = numbers.uniform(2).astype(np.float64)
        partner = (uniform[:, 0] * length).astype(np.int64)
        return partner, smaller_share(self.alpha, uniform[:, 1]).astype(np.float32)


def check_mixup(alpha: float = 0.2, classes: int = 0) -> Mixup:
    """`mixup(0.2, classes=10)`; the data's own names count its classes. Raises DataError E608."""
    return Mixup(real("alpha", alpha, 0.01, 100), whole("classes", classes, 0, 1 << 20))


def smaller_share(alpha: float, uniform: np.ndarray) -> np.ndarray:
    """The smaller of x and 1 - x for x by Beta(alpha, alpha), from numbers in [0, 1).

    With s = x ** alpha the density on [0, 1/2] is (1 - s ** (1 / alpha)) ** (alpha - 1): it has
    no pole, so the trapezoid rule gives the distribution, whose table is inverted.
    """
    s = np.linspace(0.0, 0.5**alpha, _POINTS)
    density = (1 - s ** (1 / alpha)) ** (alpha - 1)
    total = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.interp(uniform, total / total[-1], s) ** (1 / alpha)


def mix(one: Mapping[str, Rows], other: Mapping[str, Rows], share: np.ndarray, classes: int
        ) -> dict[str, Rows]:
    """Every field of `one` with `share` [N] of that of `other`; labels as shares of `classes`."""
    return {key: _blend(_shares(key, value, classes), _shares(key, other[key], classes), share)
            for key, value in one.items()}


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """float32 [..., classes]: 1 at each label, which is below `classes`."""
    return (labels[..., None] == np.arange(classes, dtype=labels.dtype)).astype(np.float32)


def _blend(one: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    part = share.reshape(-1, *[1] * (one.ndim - 1))
    return one * (1 - part) + other * part


def _shares(key: str, value: Rows, classes: int) -> np.ndarray:
    if isinstance(value, list):
        raise DataError("E609", f"`mixup` cannot mix the texts of `{show(key)}`",
                        "it mixes pictures and one label each")
    if value.dtype != np.int32:
        return value
    if value.ndim != 1:
        raise DataError("E609", f"`mixup` cannot mix `{show(key)}`: whole numbers "
                        f"{list(value.shape[1:])}", "it mixes pictures and one label each")
    if not classes:
        raise DataError("E608", "`mixup` must know the number of classes: the data does not "
                        "name them", "write mixup(0.2, classes=10)")
    if value.size and not 0 <= value.min() <= value.max() < classes:
        raise DataError("E610", f"`{show(key)}` holds {value.min()} to {value.max()}; `mixup` "
                        f"has {classes} classes, from 0", "give it the number of classes")
    return one_hot(value, classes)
