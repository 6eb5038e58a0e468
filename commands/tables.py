"""Tables that fit a terminal: no number is ever cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

GAP = 2  # columns between two columns of a table
LEAST = 12  # the width down to which paths and shapes are folded


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its head, its cells as plain text, and whether they may take several lines."""

    name: str
    cells: tuple[str, ...]
    right: bool = False
    folds: bool = False

    @property
    def width(self) -> int:
        """The widest cell."""
        return max(len(self.name), *(len(cell) for cell in self.cells), 0)

    @property
    def least(self) -> int:
        """The width below which numbers would break."""
        return min(self.width, max(LEAST, len(self.name))) if self.folds else self.width


def print_table(console: Console, title: str, columns: Sequence[Column]) -> None:
    """A table; where the terminal is too narrow, several below each other.

    Each begins with the first column. Columns that may fold do so before a table is split.
    """
    parts = split(columns, console.width)
    for index, part in enumerate(parts):
        if index:
            console.print()
        fold = sum(column.width + GAP for column in part) - GAP > console.width
        console.print(_table(title if index == 0 else "", part, fold))


def split(columns: Sequence[Column], width: int) -> list[list[Column]]:
    """The columns in groups that fit into `width`, each with the first column in front."""
    first, rest = columns[0], list(columns[1:])
    if sum(column.least + GAP for column in columns) - GAP <= width:
        return [[first, *rest]]
    parts: list[list[Column]] = []
    while rest:
        part, used = [first], first.least
        while rest and (len(part) == 1 or used + GAP + rest[0].least <= width):
            used += GAP + rest[0].least
            part.append(rest.pop(0))
        parts.append(part)
    return parts


def _table(title: str, columns: Sequence[Column], fold: bool) -> Table:
    table = Table(title=escape(title) or None, title_justify="left", box=None, pad_edge=False,
                  padding=(0, GAP, 0, 0))
    for column in columns:
        folds = fold and column.folds
        table.add_column(escape(column.name), justify="right" if column.right else "left",
                         no_wrap=not folds, overflow="fold",
                         min_width=column.least if folds else None)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(escape, row))
    return table
