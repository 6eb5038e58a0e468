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

    Each begins with the first column. Columns fold where not even two fit beside each other.
    """
    for index, part in enumerate(split(columns, console.width)):
        if index:
            console.print()
        console.print(_table(title if index == 0 else "", part, _width(part) > console.width))


def split(columns: Sequence[Column], width: int) -> list[list[Column]]:
    """The columns in groups that fit into `width`, each with the first column in front."""
    first, rest = columns[0], columns[1:]
    parts = [[first]]
    for column in rest:
        if len(parts[-1]) > 1 and _width([*parts[-1], column]) > width:
            parts.append([first])
        parts[-1].append(column)
    return parts


def _width(columns: Sequence[Column]) -> int:
    return sum(column.width + GAP for column in columns) - GAP


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


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], right: int) -> list[str]:
    """Lines of any width: rows below a head, the first `right` columns aligned to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return ["  " + "  ".join(
        cell.rjust(width) if index < right else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in (head, *rows)]
