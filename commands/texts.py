"""Texts that a user gives, lines of files or of the command line, as examples of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lamina.commands.examples import (
    Pipeline,
    lengths_of,
    mark,
    named_file,
    read_input,
    require_shape,
    whole_numbers,
)
from lamina.runtime.data.dataset import Input
from lamina.runtime.data.errors import DataError
from lamina.runtime.data.lines import full_lines, read_lines
from lamina.runtime.data.vocabulary import UNKNOWN, Vocabulary, tokens_of
from lamina.runtime.errors import Failure, show

MOST_TOKENS = 1 << 16  # of a text

Slots = Mapping[str, tuple[Input, ...]]


@dataclass(frozen=True, slots=True)
class Given:
    """A text, or a file that is none, with its name and where it stands; or why there is none."""

    name: str
    value: str | Path = ""
    place: str = ""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """What is given for the inputs of one example, by slot."""

    name: str
    given: Mapping[str, Given]


@dataclass(frozen=True, slots=True)
class Read:
    """An example as arrays by input, without the batch; `unknown` are tokens by input that are in
    no vocabulary.
    """

    name: str
    inputs: Mapping[str, np.ndarray]
    unknown: Mapping[str, Sequence[str]]


def slots_of(pipeline: Pipeline) -> dict[str, tuple[Input, ...]]:
    """The inputs that are given together, by the first one's name.

    Fields of one column of the data are one text: a word and its ending.
    """
    found: dict[object, list[Input]] = {}
    for entry in pipeline.inputs:
        column = pipeline.columns.get(pipeline.fields[entry.key], entry.key)
        found.setdefault(column, []).append(entry)
    return {entries[0].key: tuple(entries) for entries in found.values()}


def gather(pipeline: Pipeline, slots: Slots, files: Sequence[str], texts: Sequence[str]
           ) -> list[Example]:
    """The examples that files and texts make. Raises DataError E611 for an input without any.

    A model of several slots takes NAME=FILE and NAME=TEXT, as many for each slot.
    """
    names = {entry.key: slot for slot, entries in slots.items() for entry in entries}
    given: dict[str, list[Given]] = {slot: [] for slot in slots}
    for argument in files:
        name, path = named_file(argument, list(names))
        slot = _slot(name, names, slots, argument)
        given[slot] += _in_file(pipeline, slots[slot][0], path)
    for argument in texts:
        name, mark, text = argument.partition("=")
        known = mark and name in names
        slot = _slot(name if known else "", names, slots, argument)
        text = text if known else argument
        given[slot].append(_text(pipeline, slots[slot][0], text))
    _require_as_many(given)
    return [Example(" / ".join(one.name for one in row), dict(zip(slots, row, strict=True)))
            for row in zip(*given.values(), strict=True)]


def _slot(name: str, names: Mapping[str, str], slots: Slots, argument: str) -> str:
    if name:
        return names[name]
    if len(slots) > 1:
        listed = " ".join(f"{show(slot)}=..." for slot in slots)
        raise DataError("E611", f"the model takes {len(slots)} inputs; which of them is "
                        f"`{show(argument)}`?", f"name the input of each file and text: {listed}")
    return next(iter(slots))


def _require_as_many(given: Mapping[str, Sequence[Given]]) -> None:
    counts = {slot: len(values) for slot, values in given.items()}
    if len(set(counts.values())) > 1 or not any(counts.values()):
        told = ", ".join(f"{count} for `{show(slot)}`" for slot, count in counts.items())
        several = len(counts) > 1
        raise DataError("E611", "the inputs make no examples: there are " + told if several else
                        f"nothing is given for the model's input `{show(next(iter(counts)))}`",
                        "give each input as many: " + " ".join(
                            f"--text {show(slot)}=TEXT" for slot in counts) if several else
                        "give a file, or --text TEXT")


def _text(pipeline: Pipeline, entry: Input, text: str) -> Given:
    if pipeline.vocabulary(entry.key) is None:
        raise DataError("E611", f"the model's input `{show(entry.key)}` is no text",
                        f"give a file: {show(entry.key)}=FILE")
    return Given(text, text, f'"{show(text)}"')


def _in_file(pipeline: Pipeline, entry: Input, path: Path) -> Iterator[Given]:
    """The lines of a file of texts, or the file where it holds one example."""
    field = pipeline.fields[entry.key]
    if path.suffix == ".npy" or field not in pipeline.vocabularies:
        yield Given(str(path), path)
        return
    try:
        if not pipeline.columns:
            yield Given(str(path), "\n".join(read_lines(path)), show(path))
            return
        lines = list(full_lines(path))
    except Failure as error:
        yield Given(str(path), failure=error)
        return
    if not lines:
        yield Given(str(path), failure=DataError("E605", f"{show(path)} holds no text",
                                                 "a line of it is an example"))
    for number, line in lines:
        text = _cell(line, pipeline.columns[field])
        yield Given(text, text, f"line {number:,} of {show(path)}")


def _cell(line: str, column: int) -> str:
    """The column of a line where it has tabs and such a column, else the line."""
    cells = line.split("\t")
    return (cells[column] if len(cells) > 1 and column < len(cells) else line).strip()


def read(pipeline: Pipeline, slots: Slots, example: Example, invert: bool) -> Read:
    """An example as arrays. Raises Failure for what is no example of the model."""
    inputs: dict[str, np.ndarray] = {}
    unknown: dict[str, Sequence[str]] = {}
    for slot, entries in slots.items():
        given = example.given[slot]
        if given.failure is not None:
            raise given.failure
        for entry in entries:
            if isinstance(given.value, Path):
                inputs[entry.key] = read_input(pipeline, entry, given.value, invert)[0]
            else:
                inputs[entry.key], strange = _encoded(pipeline, entry, given)
                unknown |= {entry.key: strange} if strange else {}
    lengths_of(pipeline, {key: value[None] for key, value in inputs.items()})
    return Read(example.name, inputs, unknown)


def _encoded(pipeline: Pipeline, entry: Input, given: Given) -> tuple[np.ndarray, list[str]]:
    """A text as numbers, and its unknown tokens. Raises DataError E605, E609, E610."""
    field, text = pipeline.fields[entry.key], str(given.value)
    require_utf8(text)
    vocabulary = pipeline.vocabularies[field]
    try:
        numbers = vocabulary.encode(text)
    except DataError as error:
        raise DataError(error.code, f"{given.place}: {error.message}", error.help) from None
    if not len(numbers):
        raise DataError("E605", f"{given.place} has no token", "give a text that is not empty")
    if len(numbers) > MOST_TOKENS:
        raise DataError("E609", f"{given.place} has {len(numbers):,} tokens; at most "
                        f"{MOST_TOKENS:,} are taken", "give it in parts")
    array = mark(pipeline, field, numbers)
    array = array[0] if vocabulary.coding == "class" else array
    require_shape(array.shape, entry, given.place)
    return whole_numbers(array, entry, given.place), unknown_tokens(vocabulary, text, numbers)


def unknown_tokens(vocabulary: Vocabulary, text: str, numbers: np.ndarray) -> list[str]:
    """The tokens of a text that the vocabulary does not have."""
    if vocabulary.closed or vocabulary.coding == "bpe" or not (numbers == UNKNOWN).any():
        return []
    tokens = tokens_of(vocabulary.coding, text, vocabulary.lower)
    return [token for token, number in zip(tokens, numbers, strict=True) if number == UNKNOWN]


def require_utf8(text: str) -> None:
    """Raise DataError E603 for a text of the command line with bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("E603", f'"{show(text)}" is not UTF-8', "write it in UTF-8") from None
