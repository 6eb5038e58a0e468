"""How the fields of data meet a program's inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lamina.runtime.data.dataset import Dataset, Input
from lamina.runtime.data.errors import DataError
from lamina.runtime.data.mixing import one_hot
from lamina.runtime.data.pairs import MASK, Pairs
from lamina.runtime.data.pictures import Pictures
from lamina.runtime.data.sequences import STEP
from lamina.runtime.data.source import Rows
from lamina.runtime.data.split import undivided
from lamina.runtime.data.vocabulary import Vocabulary
from lamina.runtime.errors import did_you_mean, show
from lamina.runtime.padding import LENGTHS, is_lengths, pad

_FIELDS = ("image", "label")
_DTYPES = {"f32": np.float32, "f64": np.float64, "i32": np.int32, "i64": np.int64,
           "bool": np.bool_}


@dataclass(frozen=True, slots=True)
class Feed:
    """How a field becomes an input: its NumPy type; `classes`: labels become shares of them.

    `ragged` are the axes of an example (from 0) along which examples differ: they are padded.
    """

    field: str
    key: str
    kind: type
    classes: int = 0
    ragged: tuple[int, ...] = ()

    def take(self, arrays: Mapping[str, Rows]) -> np.ndarray:
        """The input's array from a batch's fields."""
        value = arrays[self.field]
        value = pad(value, self.ragged, STEP) if self.ragged else np.asarray(value)
        if self.classes and value.dtype == np.int32:
            value = one_hot(value, self.classes)
        return value.astype(self.kind, copy=False)


@dataclass(frozen=True, slots=True)
class Lengths:
    """How the input that takes lengths, int32 [batch], is made: from axes of fields that agree."""

    key: str
    axes: tuple[tuple[str, int], ...]  # a field and the axis of an example

    @property
    def field(self) -> str:
        """The field that is measured."""
        return self.axes[0][0]

    def take(self, arrays: Mapping[str, Rows]) -> np.ndarray:
        """The lengths of a batch's examples. Raises DataError E609 where fields differ."""
        found = [np.array([row.shape[axis] for row in arrays[field]], np.int32)
                 for field, axis in self.axes]
        _require_equal(self, found, lambda row: f"example {row} of the batch")
        return found[0]


def feed(dataset: Dataset, inputs: Sequence[Input]) -> tuple[Feed | Lengths, ...]:
    """How each input is fed, after checking that the data fits.

    Class numbers feed an input of shares [B, classes] as well. Looks at one example and, where
    numbers are limited, at all labels. Raises DataError E609 (size), E610 (label out of range, or
    more tokens than the model knows), E611 (missing field or wrong type).
    """
    fed = [entry for entry in inputs if not is_lengths(entry.key)]
    ragged = {entry.key.removesuffix(LENGTHS) for entry in inputs if entry not in fed}
    names = match_fields(dataset.fields, fed)
    example = dataset.fetch(np.array([0]))
    symbols: dict[str, int] = {}
    plan: list[Feed | Lengths] = []
    for name, entry in zip(names, fed, strict=True):
        value = np.asarray(example[name])
        classes = _shared_among(entry, value)
        if entry.dtype[0] in "ib" and value.dtype != np.int32:
            raise _not_whole(dataset, name, entry)
        axes = tuple(axis for axis, size in enumerate(entry.shape[1:]) if size in ragged)
        shape = (*value.shape, classes) if classes else value.shape
        _check_shape(dataset, name, shape, entry, symbols, ragged)
        if not axes:
            _require_one_length(dataset, name, entry)
        if classes or entry.limit:
            _check_limit(dataset, name, classes or entry.limit)
        plan.append(Feed(name, entry.key, _DTYPES[entry.dtype], classes, axes))
    for entry in inputs:
        if entry not in fed:
            plan.append(_lengths(dataset, entry, dict(zip(names, fed, strict=True))))
    return tuple(plan)


def _lengths(dataset: Dataset, entry: Input, fed: Mapping[str, Input]) -> Lengths:
    """The fields that an input of lengths is made from, after comparing all examples."""
    size = entry.key.removesuffix(LENGTHS)
    axes = tuple((name, axis) for name, one in fed.items()
                 for axis, other in enumerate(one.shape[1:]) if other == size)
    found = Lengths(entry.key, axes)
    known = [dataset.source.lengths(name) for name, _ in axes]
    if all(one is not None for one in known):
        _require_equal(found, known, dataset.source.name)
    return found


def _require_equal(wanted: Lengths, found: Sequence, name: Callable[[int], str]) -> None:
    """Raise DataError E609 naming the first example whose fields differ in length."""
    for place, other in enumerate(found):
        wrong = np.flatnonzero(other != found[0])
        if wrong.size:
            row = int(wrong[0])
            one, two = wanted.axes[0][0], wanted.axes[place][0]
            raise DataError(
                "E609", f"{name(row)}: `{show(one)}` has {found[0][row]:,} and `{show(two)}` "
                f"{other[row]:,} tokens; in the model both have the size {wanted.key} "
                f"({wrong.size:,} of {len(other):,} examples differ)",
                "correct the data, or give the sizes different names in the model")


def _require_one_length(dataset: Dataset, name: str, entry: Input) -> None:
    """Raise DataError E609 where texts differ in length and the input takes one."""
    lengths = dataset.source.lengths(name)
    if lengths is not None and lengths.min() < lengths.max():
        size = next((one for one in entry.shape[1:] if isinstance(one, str)), "S")
        raise DataError("E609", f"the texts of `{show(name)}` have {lengths.min():,} to "
                        f"{lengths.max():,} tokens; the model's input `{show(entry.key)}` takes "
                        "one length", f"declare it with a ragged size: [B, {show(size)}~]")


def _shared_among(entry: Input, value: np.ndarray) -> int:
    """The classes of an input of shares that class numbers feed; 0 for any other."""
    fits = len(entry.shape) == value.ndim + 1 == 2 and isinstance(entry.shape[1], int)
    return int(entry.shape[1]) if fits and value.dtype == np.int32 and entry.dtype[0] == "f" else 0


def _not_whole(dataset: Dataset, name: str, entry: Input) -> DataError:
    mixed = dataset.mixing is not None
    return DataError("E611", f"the model's input `{show(entry.key)}` takes whole numbers; the "
                     f"data's field `{show(name)}` holds " + ("shares that `mixup` made" if mixed
                                                            else "real ones"),
                     f"declare it as shares: target {show(entry.key)}: f32[B, CLASSES]"
                     if mixed else "")


def require_classes(dataset: Dataset, classes: Sequence[str]) -> None:
    """E611 unless the data has the classes that the model is trained on (where both name them).

    A class folder that is missing on one side would shift the numbers of those that follow.
    """
    if not classes or not dataset.classes or tuple(classes) == dataset.classes:
        return
    lost = [show(name) for name in classes if name not in dataset.classes]
    new = [show(name) for name in dataset.classes if name not in classes]
    parts = [f"{word} {', '.join(f'`{name}`' for name in names[:4])}" for word, names in
             (("missing:", lost), ("new:", new)) if names]
    raise DataError("E611", "the data to evaluate on has other classes than the training data ("
                    + ("; ".join(parts) or "in another order") + ")",
                    "give both the same class folders")


def match_fields(fields: Sequence[str], inputs: Sequence[Input]) -> list[str]:
    """The field of each input: by name, else the one that is left where that is unambiguous."""
    wanted = [entry.field or (entry.key if entry.key in fields else "") for entry in inputs]
    left = [field for field in fields if field not in wanted]
    lost = [entry for entry, name in zip(inputs, wanted, strict=True) if not name]
    sure = len(left) == len(lost) == 1 or tuple(fields) == _FIELDS  # pictures go by place
    rest = iter(left if sure else ())
    found = [name or next(rest, "") for name in wanted]
    for entry, name in zip(inputs, found, strict=True):
        if name not in fields:
            raise _no_field(entry, fields, left)
    return found


def _no_field(entry: Input, fields: Sequence[str], left: Sequence[str]) -> DataError:
    close = did_you_mean(entry.field or entry.key, left)
    listed = ", ".join(f"`{show(field)}`" for field in fields)
    return DataError("E611", "no field of the data feeds the model's input "
                     f"`{show(entry.key)}`; the data has {listed}",
                     show(close) if close.startswith("did") else
                     "name a field of the data after each input and target of the recipe")


def _check_shape(dataset: Dataset, name: str, shape: tuple, entry: Input, symbols: dict[str, int],
                 ragged: set[str]) -> None:
    wanted = entry.shape[1:]
    expected = [size if isinstance(size, int) else actual if size in ragged
                else symbols.setdefault(size, actual)
                for size, actual in zip(wanted, shape[1:], strict=False)]
    if not entry.shape or (len(wanted) == len(shape) - 1 and expected == list(shape[1:])):
        return
    found = " x ".join(map(str, shape[1:])) or "a single number"
    asked = " x ".join(map(str, wanted)) or "a single number"
    help = ""
    if len(expected) == len(wanted) == len(shape) - 1 == 3:
        help = "; ".join([*_other_channels(dataset, name, entry, shape[1], expected[0]),
                          *_other_size(dataset, name, shape[2:], expected[1:])])
    pictures = " (channels, height, width)" * (len(wanted) == 3)
    raise DataError("E609", f"the model's input `{show(entry.key)}` takes {asked}; the data's "
                    f"field `{show(name)}` has {found}{pictures}", help)


def _other_channels(dataset: Dataset, name: str, entry: Input, found: int, wanted: int
                    ) -> list[str]:
    """What gives pictures the channels that the model takes."""
    if found == wanted:
        return []
    whole = undivided(dataset.source)
    if isinstance(whole, Pictures | Pairs) and name == dataset.fields[0] and wanted in (1, 3):
        source = "pairs" if isinstance(whole, Pairs) else "images"
        return [f"write channels={wanted} in {source}(...)"]
    return [f"give the model's input `{show(entry.key)}` {found} "
            f"channel{'s' * (found != 1)}"]


def _other_size(dataset: Dataset, name: str, found: Sequence[int], wanted: Sequence[int]
                ) -> list[str]:
    """The transforms that give pictures the height and width that the model takes."""
    if list(found) == list(wanted) or name not in (dataset.fields[0], MASK):
        return []
    height, width = wanted
    size = str(height) if height == width else f"[{height}, {width}]"
    ways = [f"resize({size})"]
    if height <= found[0] and width <= found[1]:
        ways.insert(0, f"center_crop({size})")
    border, rest = divmod(height - found[0], 2)
    if border > 0 and not rest and width - found[1] == 2 * border:
        ways.insert(0, f"pad({border})")
    return [f"{' or '.join(ways)} in the data pipeline gives {height} x {width} pixels"]


def _check_limit(dataset: Dataset, name: str, limit: int) -> None:
    whole = undivided(dataset.source)
    if name in dataset.vocabularies:
        _check_vocabulary(dataset.vocabularies[name], name, limit)
        return
    if isinstance(whole, Pairs):  # `classes` bounds what its files hold
        _check_count(whole.count or 0, limit)
        return
    values = dataset.source.column(name)
    wrong = np.flatnonzero(outside(values, limit).reshape(len(values), -1).any(axis=1))
    if wrong.size:
        first = int(wrong[0])
        value = values[first].reshape(-1)
        value = value[outside(value, limit)][0]
        raise DataError(
            "E610",
            f"{dataset.source.name(first)}: `{show(name)}` is {value}; the model takes 0 to "
            f"{limit - 1} ({wrong.size:,} of {len(values):,} examples are out of range)",
            f"give the model {int(values.max()) + 1} classes, or correct the data"
            if values.min() >= 0 else "correct the data: numbers start at 0",
        )


def _check_vocabulary(vocabulary: Vocabulary, name: str, limit: int) -> None:
    count = len(vocabulary)
    if count <= limit:
        return
    if vocabulary.closed:
        raise DataError("E610", f"`{show(name)}` has {count:,} labels, the model {limit:,}",
                        f"write {count} in the model")
    fewer = "" if vocabulary.merges else \
        f", or keep the most frequent in the data: size={limit}"
    raise DataError("E610", f"the vocabulary of `{show(name)}` has {count:,} entries, the model's "
                    f"table {limit:,}", f"write {count} in the model{fewer}")


def _check_count(count: int, limit: int) -> None:
    if count > limit:
        raise DataError("E610", f"the masks have {count} classes, the model {limit}",
                        f"give the model {count} classes, or write pairs(..., classes={limit})")


def outside(values: np.ndarray, limit: int) -> np.ndarray:
    """Where whole numbers are not in 0 to limit - 1."""
    return (values < 0) | (values >= limit)
