"""Windows of what follows one another: of a long text, or of series of numbers."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.idx import missing
from lamina.runtime.data.lines import full_lines, line_error, read_lines
from lamina.runtime.data.source import Arrays, Rows
from lamina.runtime.data.split import Subset
from lamina.runtime.data.stage import bad, text, whole
from lamina.runtime.data.vocabulary import (
    UNKNOWN,
    Making,
    Vocabulary,
    check_coding,
    check_making,
    tokens_of,
)
from lamina.runtime.errors import did_you_mean, show

NEXT = "next"  # the field that is the text shifted by one
CODINGS = ("chars", "words", "bpe")
_DIVIDERS = (",", ";", "\t")


@dataclass(frozen=True, slots=True)
class LongText:
    """One text as numbers of its `symbols`, int32 [length], to be cut into windows.

    They become those of a vocabulary when it is known which windows are trained on.
    """

    symbols: tuple[str, ...]
    numbers: np.ndarray
    window: int
    making: Making
    place: str
    vocabulary: Vocabulary | None = None  # of byte pairs, which make the symbols
    classes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """A window, and the same one symbol further on."""
        return ("text", NEXT)

    def __len__(self) -> int:
        return max(0, len(self.numbers) - 1) // self.window

    @property
    def makings(self) -> dict[str, Making]:
        """How the vocabulary of both fields is made."""
        return dict.fromkeys(self.fields, self.making)

    def name(self, index: int) -> str:
        """The number of a window."""
        return f"window {index} of {self.place}"

    def read(self, indices: np.ndarray) -> dict[str, Rows]:
        """A text has no numbers before it is coded. Raises DataError E611."""
        raise DataError("E611", f"the text of {self.place} is not coded yet")

    def column(self, field: str) -> np.ndarray:
        """As `read`. Raises DataError E611."""
        return np.asarray(self.read(np.arange(len(self)))[field])

    def lengths(self, field: str) -> np.ndarray | None:
        """All windows have one length."""
        return None

    def coded(self, chosen: np.ndarray, given: Mapping[str, Vocabulary],
              marks: Mapping[str, tuple[bool, bool]]) -> tuple[Subset, dict[str, Vocabulary]]:
        """The `chosen` windows as numbers, by the `given` vocabulary or by their own.

        Windows take no `marks`. Raises DataError E608 for one.
        """
        if any(any(mark) for mark in marks.values()):
            raise DataError("E608", "windows of a text have no begin and no end to mark",
                            "leave bos and eos out")
        vocabulary = self.vocabulary or given.get("text") or self._vocabulary(chosen)
        numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
        table = np.array([numbers.get(symbol, UNKNOWN) for symbol in self.symbols], np.int32)
        windows = self._windows(table[self.numbers])
        source = Arrays({"text": windows[:, :-1], NEXT: windows[:, 1:]}, (), self.place)
        return Subset(source, chosen), dict.fromkeys(self.fields, vocabulary)

    def _windows(self, numbers: np.ndarray) -> np.ndarray:
        """Views of every window and the symbol after it, [N, window + 1]."""
        return sliding_window_view(numbers, self.window + 1)[:: self.window]

    def _vocabulary(self, chosen: np.ndarray) -> Vocabulary:
        seen = self._windows(self.numbers)[chosen].reshape(-1)
        counts = np.bincount(seen, minlength=len(self.symbols)).tolist()
        found = {symbol: count for symbol, count in zip(self.symbols, counts, strict=True)
                 if count}
        return self.making.ranked(found)


def long_text(file: str, coding: str = "chars", window: int = 64, pattern: str = "*.txt",
              size: int | None = None, least: int = 1, lower: bool = False,
              _folder: Path = Path(), _vocabularies: Mapping[str, Vocabulary] | None = None
              ) -> LongText:
    """One long text, a file or those of a folder that match `pattern`, cut into windows.

    Fields `text` and `next`, int32 [window]: `next` is `text` one token further on. A split takes
    windows; byte pairs are those of the whole text, as they say where windows begin.
    """
    making, length = check_text(coding, window, pattern, size, least, lower)
    path = _folder / text("file", file)
    whole_text = "\n".join(line for one in _files(path, pattern) for line in read_lines(one))
    vocabulary = None
    if coding == "bpe":
        lines = whole_text.splitlines(keepends=True)
        vocabulary = (_vocabularies or {}).get("text") or making.make(lines)
        encode = vocabulary.encoder()
        symbols = vocabulary.tokens
        numbers = np.array([number for line in lines for number in encode(line)], np.int32)
    else:
        symbols, numbers = _symbols(tokens_of(coding, whole_text, making.lower))
    found = LongText(symbols, numbers, length, making, show(path), vocabulary)
    if len(found) < 1:
        raise DataError("E605", f"{show(path)} has {len(numbers):,} tokens; a window of {length:,} "
                        f"needs {length + 1:,}", "give a longer text, or a shorter window")
    return found


def check_text(coding: object = "chars", window: object = 64, pattern: object = "*.txt",
               size: object = None, least: object = 1, lower: object = False
               ) -> tuple[Making, int]:
    """How the vocabulary is made, and the length of a window. Raises DataError E608."""
    chosen = check_coding("coding", coding)
    if chosen not in CODINGS:
        raise bad("coding", ", ".join(f'"{one}"' for one in CODINGS[:-1]) + f' or "{CODINGS[-1]}"',
                  coding)
    if ".." in Path(text("pattern", pattern)).parts or Path(str(pattern)).is_absolute():
        raise bad("pattern", 'a pattern of names within the folder, as "*.txt"', pattern)
    making = check_making(chosen, 0 if size is None else size, least, lower)
    return making, whole("window", window, 1, 1 << 20)


def series(file: str, window: int, horizon: int = 1, columns: list | None = None,
           _folder: Path = Path()) -> Arrays:
    """Windows of a table of numbers, a row each moment: `series("data.csv", 48, columns=["a"])`.

    Fields `past` f32 [window, columns] and `future` f32 [horizon, columns], which follows.
    """
    before, after, chosen = check_series(window, horizon, columns)
    path = _folder / text("file", file)
    values = _table(path, chosen)
    length = before + after
    if len(values) < length:
        raise DataError("E605", f"{show(path)} has {len(values):,} rows; a window of {before:,} "
                        f"and what follows need {length:,}", "give a longer series")
    windows = sliding_window_view(values, length, axis=0).swapaxes(1, 2)
    fields = {"past": windows[:, :before], "future": windows[:, before:]}
    return Arrays(fields, (), show(path), overlap=length - 1)


def check_series(window: object, horizon: object = 1, columns: object = None
                 ) -> tuple[int, int, tuple[str | int, ...] | None]:
    """The arguments of `series`, checked. Raises DataError E608."""
    sizes = whole("window", window, 1), whole("horizon", horizon, 1)
    if columns is None:
        return *sizes, None
    if not isinstance(columns, list | tuple) or not columns:
        raise bad("columns", 'a list of names or numbers, as ["load", "heat"]', columns)
    return *sizes, tuple(one if isinstance(one, str) else whole("columns", one, 0, 100_000)
                         for one in columns)


def _files(path: Path, pattern: str) -> Sequence[Path]:
    """The file, or those of a folder by name. Raises DataError E601, E605."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise missing(path, "file or folder")
    files = sorted(one for one in path.glob(pattern) if one.is_file())
    if not files:
        raise DataError("E605", f"{show(path)} holds no file {show(pattern)}",
                        'give the pattern of the names: pattern="*.txt"')
    return files


def _symbols(tokens: str | Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The different tokens, and which of them stands at each place."""
    if not isinstance(tokens, str):
        numbers: dict[str, int] = {}
        places = [numbers.setdefault(token, len(numbers)) for token in tokens]
        return tuple(numbers), np.array(places, np.int32)
    codes = np.frombuffer(tokens.encode("utf-32-le"), np.uint32)
    seen = np.flatnonzero(np.bincount(codes)) if len(codes) else codes
    table = np.zeros(int(seen[-1]) + 1 if len(seen) else 0, np.int32)
    table[seen] = np.arange(len(seen))
    return tuple(map(chr, seen)), table[codes]


def _table(path: Path, chosen: Sequence[str | int] | None) -> np.ndarray:
    """The chosen columns of a file of numbers, float32 [rows, columns]."""
    lines = list(full_lines(path))
    if not lines:
        raise DataError("E605", f"{show(path)} holds no row")
    divider = next((one for one in _DIVIDERS if one in lines[0][1]), ",")
    rows = [(number, _split(path, number, line, divider)) for number, line in lines]
    head = rows[0][1]
    places = _places(path, chosen, head)
    if any(_value(head[place]) is None for place in places):
        rows = rows[1:]
    return np.array([_numbers(path, *row, places) for row in rows], np.float32
                    ).reshape(-1, len(places))


def _split(path: Path, number: int, line: str, divider: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=divider), [])
    except csv.Error as error:
        raise line_error(path, number, f"it is no row of a table ({show(error)})") from None


def _places(path: Path, chosen: Sequence[str | int] | None, head: Sequence[str]) -> list[int]:
    """Where the chosen columns stand; all of them where none is named."""
    names = [cell.strip() for cell in head]
    places = []
    for one in range(len(head)) if chosen is None else chosen:
        if isinstance(one, str) and one not in names:
            raise DataError("E601", f"{show(path)} has no column `{show(one)}`",
                            did_you_mean(one, map(show, names)))
        places.append(names.index(one) if isinstance(one, str) else one)
    if max(places) >= len(head):
        raise line_error(path, 1, f"it has {len(head)} columns; column {max(places)} is asked for")
    return places


def _numbers(path: Path, number: int, cells: Sequence[str], places: Sequence[int]) -> list[float]:
    if len(cells) <= max(places):
        raise line_error(path, number, f"it has {len(cells)} column{'s' * (len(cells) != 1)}; "
                         f"column {max(places)} is asked for, counted from 0")
    found = []
    for place in places:
        value = _value(cells[place])
        if value is None:
            raise line_error(path, number, f"`{show(cells[place])}` in column {place} is no number",
                             "fill gaps before training")
        found.append(value)
    return found


def _value(cell: str) -> float | None:
    """A number that float32 can hold; None for anything else."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if abs(value) <= float(np.finfo(np.float32).max) else None
