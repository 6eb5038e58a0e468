"""What a source of examples is, and the one whose examples lie in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Rows = np.ndarray | list[np.ndarray]  # a field of some examples; a list where sizes differ


class Source(Protocol):
    """Examples by index. Pictures are uint8 or float32 [N, C, H, W], labels int32 [N]."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of what `read` gives, in order."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, or nothing."""
        ...

    @property
    def skipped(self) -> tuple[str, ...]:
        """Damaged files that were left out."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where an example lies, for messages."""
        ...

    def read(self, indices: np.ndarray) -> dict[str, Rows]:
        """Examples by field; a list where sizes differ."""
        ...

    def column(self, field: str) -> np.ndarray:
        """A field of whole numbers for all examples."""
        ...

    def lengths(self, field: str) -> np.ndarray | None:
        """How long each example is, int64 [N], for texts; None for all else."""
        ...


@dataclass(frozen=True, slots=True)
class Arrays:
    """Examples that lie in memory: one array per field, of equal length.

    `overlap`: examples are windows of a series, which share values with so many that follow.
    """

    arrays: Mapping[str, np.ndarray]
    classes: tuple[str, ...] = ()
    place: str = ""
    skipped: tuple[str, ...] = ()
    overlap: int = 0

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the arrays."""
        return tuple(self.arrays)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def name(self, index: int) -> str:
        """Where an example lies."""
        return f"example {index} of {self.place}"

    def read(self, indices: np.ndarray) -> dict[str, Rows]:
        """Copies of the rows."""
        return {key: array[indices] for key, array in self.arrays.items()}

    def column(self, field: str) -> np.ndarray:
        """The whole array of a field."""
        return self.arrays[field]

    def lengths(self, field: str) -> np.ndarray | None:
        """Arrays have one shape for all examples."""
        return None
