"""Texts by example: tab-separated columns, and sentences of one token a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.lines import full_lines, line_error, read_lines
from lamina.runtime.data.pictures import Pictures
from lamina.runtime.data.source import Rows
from lamina.runtime.data.stage import Stage, bad, check_channels, decoded_size, text, truth, whole
from lamina.runtime.data.vocabulary import (
    BOS,
    EOS,
    PICTURE,
    Item,
    Making,
    Vocabulary,
    check_coding,
    check_making,
    is_coding,
)
from lamina.runtime.errors import show

_COLUMNS = 1000  # of a file at most
_WITHIN = ("words", "labels")  # codings that make one number of one token of a file


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of different lengths: row i is `values[starts[i] : starts[i + 1]]`."""

    values: np.ndarray
    starts: np.ndarray  # int64 [rows + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The length of each row, int64 [rows]."""
        return np.diff(self.starts)

    def __getitem__(self, indices: np.ndarray) -> list[np.ndarray]:
        """Copies of some rows."""
        return [self.values[self.starts[i] : self.starts[i + 1]].copy() for i in indices]


Column = Ragged | np.ndarray | Pictures


@dataclass(frozen=True, slots=True)
class Coded:
    """Texts as numbers: a `Ragged` field is a list of int32 [length], an array int32 [N].

    `lines` are where examples start in the file `place`. `Pictures` are read when asked for.
    """

    columns: Mapping[str, Column]
    lines: np.ndarray
    classes: tuple[str, ...]
    place: str
    skipped: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields in the recipe's order."""
        return tuple(self.columns)

    def __len__(self) -> int:
        return len(self.lines)

    def name(self, index: int) -> str:
        """The line of an example."""
        return f"line {self.lines[index]} of {self.place}"

    def read(self, indices: np.ndarray) -> dict[str, Rows]:
        """Examples by field."""
        return {key: column.read(indices)["image"] if isinstance(column, Pictures)
                else column[indices] for key, column in self.columns.items()}

    def column(self, field: str) -> np.ndarray:
        """All numbers of a field. Raises DataError E611 for pictures."""
        column = self.columns[field]
        if isinstance(column, Pictures):
            return column.column(field)
        return column.values if isinstance(column, Ragged) else column

    def lengths(self, field: str) -> np.ndarray | None:
        """How many tokens each example has, int64 [N]; None for a field of one number each."""
        column = self.columns[field]
        return column.lengths if isinstance(column, Ragged) else None


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts as they were read: for each field a text, or the tokens of a sentence.

    They become a `Coded` source when it is known which of them are trained on. `pictures` are the
    fields that name pictures; `joint` fields share a vocabulary where they are coded alike.
    """

    items: Mapping[str, Sequence[Item]]
    makings: Mapping[str, Making]  # of all fields but pictures
    lines: Sequence[int]
    place: str
    pictures: Mapping[str, Pictures] = field(default_factory=dict)
    joint: bool = False
    classes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """Pictures, then the other fields in the recipe's order."""
        return (*self.pictures, *self.items)

    def __len__(self) -> int:
        return len(self.lines)

    def name(self, index: int) -> str:
        """The line of an example."""
        return f"line {self.lines[index]} of {self.place}"

    def read(self, indices: np.ndarray) -> dict[str, Rows]:
        """Texts have no numbers before they are coded. Raises DataError E611."""
        raise DataError("E611", f"the texts of {self.place} are not coded yet")

    def column(self, field: str) -> np.ndarray:
        """Which class each example has, by the classes' order; zeros where there are none."""
        if field in self.pictures or self.makings[field].coding != "class":
            return np.zeros(len(self), np.int32)
        return np.unique(np.array(self.items[field], object).astype(str),
                         return_inverse=True)[1].astype(np.int32)

    def lengths(self, field: str) -> np.ndarray | None:
        """Not known before the texts are coded."""
        return None

    def coded(self, chosen: np.ndarray, given: Mapping[str, Vocabulary],
              marks: Mapping[str, tuple[bool, bool]]) -> tuple[Coded, dict[str, Vocabulary]]:
        """The `chosen` texts as numbers, by the `given` vocabularies or by their own.

        `marks` say which fields get <bos> and <eos>. Raises DataError E610 naming the line of a
        label that is not known.
        """
        kept = [int(i) for i in chosen]
        columns: dict[str, Column] = {
            key: replace(pictures, files=tuple(pictures.files[i] for i in kept),
                         labels=pictures.labels[kept])
            for key, pictures in self.pictures.items()}
        found = {key: given[key] for key in self.items} if given else self._vocabularies(kept)
        for key, vocabulary in found.items():
            rows = self._encoded(key, vocabulary, kept, marks.get(key, (False, False)))
            columns[key] = rows if vocabulary.coding != "class" else rows.values
        classes = next((one.tokens for one in found.values() if one.closed), ())
        lines = np.array(self.lines, np.int64)[chosen]
        return Coded(columns, lines, classes, self.place), found

    def _vocabularies(self, kept: Sequence[int]) -> dict[str, Vocabulary]:
        """The fields' own vocabularies; where they are joint, one of all that are made alike."""
        groups: dict[object, list[str]] = {}
        for key in self.items:
            groups.setdefault(self.makings[key] if self.joint else key, []).append(key)
        found: dict[str, Vocabulary] = {}
        for keys in groups.values():
            items = (self.items[key][i] for key in keys for i in kept)
            found |= dict.fromkeys(keys, self.makings[keys[0]].make(items))
        return {key: found[key] for key in self.items}

    def _encoded(self, field: str, vocabulary: Vocabulary, kept: Sequence[int],
                 marks: tuple[bool, bool]) -> Ragged:
        encode, items = vocabulary.encoder(), self.items[field]
        before, after = [BOS] * marks[0], [EOS] * marks[1]
        rows = []
        for i in kept:
            try:
                rows.append(np.array([*before, *encode(items[i]), *after], np.int32))
            except DataError as error:
                raise DataError(error.code, f"{self.name(i)}, field `{show(field)}`: "
                                f"{error.message}", error.help) from None
        starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return Ragged(np.concatenate(rows) if rows else np.zeros(0, np.int32), starts)


# --- sources ------------------------------------------------------------------------------------


def tsv(file: str, columns: list[int] | None = None, size: int | list[int] | None = None,
        least: int | list[int] = 1, lower: bool = False, pixels: int | list[int] | None = None,
        channels: int = 3, joint: bool = False, _folder: Path = Path(), **fields: str
        ) -> Texts:
    """A file of tab-separated columns: `tsv("words.tsv", src="chars", tgt="words")`.

    Each field is a column, in the order of `columns` (by default the first ones), and its text
    the coding. `size` and `least` bound the vocabularies, of all fields or of each. The coding
    "picture" is the name of a file beside this one, uint8 [C, H, W] of the size `pixels`. With
    `joint`, fields that are coded alike share one vocabulary.
    """
    makings, numbers = check_tsv(fields, columns, size, least, lower, pixels, channels, joint)
    path = _folder / text("file", file)
    items: dict[str, list[Item]] = {key: [] for key in makings}
    lines = []
    for number, line in full_lines(path):
        cells = line.split("\t")
        for key, column in zip(items, numbers, strict=True):
            items[key].append(_cell(path, number, cells, column, key))
        lines.append(number)
    named = [key for key in makings if makings[key].coding == PICTURE]
    exact = decoded_size("pixels", pixels)
    pictures = {key: _pictures(path, lines, items.pop(key), exact, channels) for key in named}
    return replace(_found(path, items, makings, lines), pictures=pictures, joint=joint)


def _pictures(path: Path, lines: Sequence[int], names: Sequence[Item],
              size: int | tuple[int, int] | None, channels: int) -> Pictures:
    """The pictures that a column names. Raises DataError E601 naming the line of a missing one."""
    files = tuple(path.parent / str(name) for name in names)
    for line, file in zip(lines, files, strict=True):
        if not file.is_file():
            raise DataError("E601", f"line {line:,} of {show(path)}: there is no {show(file)}",
                            "names of pictures start at the folder of the table")
    return Pictures(files, np.zeros(len(files), np.int32), (), size, channels)


def conll(file: str, columns: list[int] | None = None, size: int | list[int] | None = None,
          least: int | list[int] = 1, lower: bool = False, _folder: Path = Path(),
          **fields: str) -> Texts:
    """A file of one token a line, `conll("brown.txt", words="words", tags="labels")`.

    Columns are told apart by tabs, or by blanks where a line has no tab; a line without any token
    ends a sentence.
    """
    makings, numbers = check_conll(fields, columns, size, least, lower)
    path = _folder / text("file", file)
    items: dict[str, list[Item]] = {key: [] for key in makings}
    lines: list[int] = []
    within = False
    for number, line in enumerate(read_lines(path), 1):
        blank = not line or line.isspace()
        if not blank:
            if not within:
                lines.append(number)
                for rows in items.values():
                    rows.append([])
            cells = line.split("\t") if "\t" in line else line.split()
            for key, column in zip(items, numbers, strict=True):
                sentence = items[key][-1]
                assert isinstance(sentence, list)
                sentence.append(_cell(path, number, cells, column, key))
        within = not blank
    return _found(path, items, makings, lines)


def check_tsv(fields: Mapping[str, object], columns: object = None, size: object = None,
              least: object = 1, lower: object = False, pixels: object = None,
              channels: object = 3, joint: object = False
              ) -> tuple[dict[str, Making], tuple[int, ...]]:
    """The makings of the fields and their columns. Raises DataError E608."""
    truth("joint", joint)
    decoded_size("pixels", pixels)
    check_channels(channels)
    if not fields:
        raise DataError("E608", 'a text needs at least one field, as in words="words"')
    codings = [check_coding(key, value) for key, value in fields.items()]
    sizes = _each("size", 0 if size is None else size, len(fields))
    leasts = _each("least", least, len(fields))
    makings = {key: check_making(coding, most, few, lower)
               for key, coding, most, few in zip(fields, codings, sizes, leasts, strict=True)}
    if columns is None:
        return makings, tuple(range(len(fields)))
    if not isinstance(columns, list | tuple) or len(columns) != len(fields):
        raise bad("columns", f"a list of a column for each of the {len(fields)} fields", columns)
    return makings, tuple(whole("columns", column, 0, _COLUMNS) for column in columns)


def check_conll(fields: Mapping[str, object], columns: object = None, size: object = None,
                least: object = 1, lower: object = False
                ) -> tuple[dict[str, Making], tuple[int, ...]]:
    """As `check_tsv`; a coding must make one number of each token. Raises DataError E608."""
    found = check_tsv(fields, columns, size, least, lower)
    for key, making in found[0].items():
        if making.coding not in _WITHIN and not making.coding.startswith("suffix "):
            raise bad(key, 'the coding of a token: "words", "labels" or "suffix 3"', making.coding)
    return found


CHECKS: dict[str, Callable] = {"tsv": check_tsv, "conll": check_conll}


def columns_of(stage: Stage) -> dict[str, int]:
    """The column of each field that a source of texts reads; nothing for other sources."""
    if stage.name not in CHECKS:
        return {}
    settings = dict(stage.kwargs)
    names = field_codings(stage.kwargs)
    columns = settings.get("columns")
    return dict(zip(names, columns if isinstance(columns, list | tuple) else range(len(names)),
                    strict=True))


def field_codings(settings: Iterable[tuple[str, object]]) -> dict[str, str]:
    """The codings of the fields among the settings of a call of a source."""
    return {key: str(value) for key, value in settings if key != "file" and is_coding(value)}


def _each(name: str, value: object, count: int) -> Sequence[object]:
    """A value for each field, from one for all or a list."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise bad(name, f"a number, or a list of one for each of the {count} fields", value)
    return value


def _cell(path: Path, number: int, cells: Sequence[str], column: int, field: str) -> str:
    if column >= len(cells):
        raise line_error(path, number, f"it has {len(cells)} column{'s' * (len(cells) != 1)}; "
                         f"`{show(field)}` is column {column}, counted from 0",
                         "correct the line, or name the columns: columns=[0, 1]")
    cell = cells[column].strip()
    if not cell:
        raise line_error(path, number, f"it has nothing in column {column}, `{show(field)}`",
                         "correct the line, or leave it out")
    return cell


def _found(path: Path, items: dict[str, list[Item]], makings: dict[str, Making],
           lines: list[int]) -> Texts:
    if not lines:
        raise DataError("E605", f"{show(path)} holds no example")
    kept = {key: makings[key] for key in items}
    return Texts(items, kept, lines, show(path))
