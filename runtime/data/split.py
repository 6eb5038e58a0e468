"""A part of a source's examples: the same share of every class, chosen by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.source import Arrays, Source
from lamina.runtime.data.stage import bad, real, whole
from lamina.runtime.data.transforms import shuffled_order

PARTS = ("train", "valid")


@dataclass(frozen=True, slots=True)
class Subset:
    """Some examples of a source, in its order."""

    source: Source
    chosen: np.ndarray

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the source."""
        return self.source.fields

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the source."""
        return self.source.classes

    @property
    def skipped(self) -> tuple[str, ...]:
        """Damaged files that the source left out."""
        return self.source.skipped

    def __len__(self) -> int:
        return len(self.chosen)

    def name(self, index: int) -> str:
        """Where an example lies."""
        return self.source.name(int(self.chosen[index]))

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray | list[np.ndarray]]:
        """Examples by field."""
        return self.source.read(self.chosen[indices])

    def column(self, field: str) -> np.ndarray:
        """A field of whole numbers for all chosen examples; of texts every number."""
        column, lengths = self.source.column(field), self.source.lengths(field)
        if lengths is None:
            return column[self.chosen]
        return column[np.repeat(np.isin(np.arange(len(lengths)), self.chosen), lengths)]

    def lengths(self, field: str) -> np.ndarray | None:
        """How long each chosen example is."""
        lengths = self.source.lengths(field)
        return None if lengths is None else lengths[self.chosen]


def check_split(part: str, share: float = 0.1, seed: int = 0) -> tuple[str, float, int]:
    """The arguments of `split("train", share=0.1)`, checked. Raises DataError E608."""
    if part not in PARTS:
        raise bad("part", '"train" or "valid"', part)
    held = real("share", share, 0, 1)
    if not 0 < held < 1:
        raise bad("share", "a number between 0 and 1", share)
    return part, held, whole("seed", seed, 0, (1 << 31) - 1)


def split_source(source: Source, part: str, share: float, seed: int) -> Subset:
    """`share` of the source's examples for "valid", the others for "train".

    Each class (field `label`, whole numbers) gives its share, rounded so that at least one
    example stays on each side. Of a series the end is held out, and no value is on both sides.
    Raises DataError E605 for a class of one example, or a series too short.
    """
    if isinstance(source, Arrays) and source.overlap:
        return Subset(source, _stretch(source, part, share))
    labels = _labels(source)
    held = [_held(source, np.flatnonzero(labels == label), label, share, seed)
            for label in np.unique(labels)]
    valid = np.zeros(len(source), bool)
    valid[np.concatenate(held)] = True
    return without(source, valid if part == "valid" else ~valid)


def _stretch(source: Arrays, part: str, share: float) -> np.ndarray:
    """The windows before or after the place where a series is cut."""
    count = len(source)
    first = count - max(1, round(count * share))
    if first - source.overlap < 1:
        raise DataError("E605", f"{source.place} is too short for a split: its {count:,} windows "
                        f"overlap with {source.overlap:,} others each",
                        "give a longer series, or shorter windows")
    return np.arange(first, count) if part == "valid" else np.arange(first - source.overlap)


def undivided(source: Source) -> Source:
    """The source that a part was taken of; any other source itself."""
    return source.source if isinstance(source, Subset) else source


def chosen_of(source: Source) -> np.ndarray:
    """The numbers of a part's examples in the undivided source."""
    return source.chosen if isinstance(source, Subset) else np.arange(len(source))


def without(source: Source, kept: np.ndarray) -> Subset:
    """The examples of a source (or of its part) where `kept`, bool [N]."""
    return Subset(undivided(source), chosen_of(source)[kept])


def _labels(source: Source) -> np.ndarray:
    """The class of each example; one class where the source has no labels."""
    if "label" not in source.fields:
        return np.zeros(len(source), np.int32)
    labels = source.column("label")
    sorts = labels.ndim == 1 and labels.dtype.kind in "iu"
    return labels if sorts else np.zeros(len(source), np.int32)


def _held(source: Source, members: np.ndarray, label: int, share: float, seed: int) -> np.ndarray:
    if len(members) < 2:
        what = _class_name(source.classes, int(label))
        raise DataError("E605", f"{what} has one example: it cannot be on both sides of a split",
                        "add examples of it, or leave the class out")
    count = min(max(round(len(members) * share), 1), len(members) - 1)
    return members[shuffled_order(len(members), seed, int(label))[:count]]


def _class_name(classes: Sequence[str], label: int) -> str:
    return f"class `{classes[label]}`" if label < len(classes) else f"class {label}"
