"""A source with its transforms, and how its fields meet a program's inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.mixing import Mixup, check_mixup, mix, one_hot
from lamina.runtime.data.pairs import MASK, Pairs
from lamina.runtime.data.pictures import Pictures
from lamina.runtime.data.sources import SOURCES, Source, check_source, closed_source
from lamina.runtime.data.split import check_split, split_source, undivided
from lamina.runtime.data.stage import Stage, call, check_call
from lamina.runtime.data.transforms import (
    TRANSFORMS,
    Draw,
    Moving,
    Transform,
    as_float,
    shuffled_order,
)
from lamina.runtime.errors import did_you_mean, show

MAX_STAGES = 100
TRUTH = "truth"  # the field of boxes, which follow where transforms move pixels
_FIELDS = ("image", "label")
_CHECKS = {"shuffle": lambda: None, "split": check_split, "mixup": check_mixup}
_OTHERS = tuple(_CHECKS)  # neither a source nor a transform of one picture
_DTYPES = {"f32": np.float32, "f64": np.float64, "i32": np.int32, "i64": np.int64,
           "bool": np.bool_}


@dataclass(frozen=True, slots=True)
class Input:
    """A program's data input and the field that feeds it.

    `shape` has the batch first; a name stands for any size (the same one wherever it occurs).
    `limit`: values must lie in 0 to limit - 1 (labels, token numbers); 0 means not checked.
    `field`: the data's field; when empty, the one of the input's name, else one that no other
    input claims by its name.
    """

    key: str
    dtype: str = "f32"
    shape: tuple[int | str, ...] = ()
    limit: int = 0
    field: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A transform at its line of the recipe."""

    apply: Transform
    line: int = 0


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples after their transforms, which work on the first field.

    Other fields named `mask` (pictures) or `truth` (boxes [M, 4]: left, top, right, bottom in
    pixels) follow where pixels move, by the same draws.
    """

    source: Source
    transforms: tuple[Step, ...] = ()
    shuffled: bool = False
    seed: int = 0
    mixing: Mixup | None = None

    def __len__(self) -> int:
        return len(self.source)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of what `fetch` gives, in order."""
        return self.source.fields

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, or nothing."""
        return self.source.classes

    def order(self, epoch: int) -> np.ndarray:
        """The examples' indices in the order of this epoch, int64 [length]."""
        if self.shuffled:
            return shuffled_order(len(self), self.seed, epoch)
        return np.arange(len(self))

    def fetch(self, indices: np.ndarray, epoch: int = 0) -> dict[str, np.ndarray]:
        """Examples by field, float32 or int32 with the batch first.

        A pure function of (seed, epoch, indices). Raises DataError E604 and E609 naming the file.
        """
        found = self._transformed(indices, epoch)
        if self.mixing is None:
            return found
        draw = Draw(self.seed, epoch, len(self.transforms), indices)
        partners, share = self.mixing.draw(draw, len(self))
        classes = self.mixing.classes or len(self.classes)
        try:
            return mix(found, self._transformed(partners, epoch), share, classes)
        except DataError as error:
            error.line = error.line or self.mixing.line
            raise

    def _transformed(self, indices: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        fields = self.source.read(indices)
        first = self.fields[0]
        moved = {first: _even(fields[first])}
        flat = MASK in fields and first != MASK and fields[MASK][0].ndim == 2
        if MASK in fields and first != MASK:
            moved[MASK] = _even([value[None] for value in fields[MASK]] if flat else fields[MASK])
            if any(isinstance(step.apply, Moving) for step in self.transforms):
                self._require_alike(moved, indices)
        boxes = self._boxes(fields)
        for place, step in enumerate(self.transforms):
            draw = Draw(self.seed, epoch, place, indices)
            before, moves = moved[first], isinstance(step.apply, Moving)
            for name in moved if moves else (first,):
                moved[name] = self._apply(step, moved[name], draw)
            if moves and boxes is not None:
                boxes = _followed(step.apply, boxes, before, draw)
        out = dict(fields) if boxes is None else {**fields, TRUTH: boxes}
        for name, values in moved.items():
            if not isinstance(values, np.ndarray):
                raise self._ragged(values, indices)
            out[name] = np.ascontiguousarray(values[:, 0] if flat and name == MASK else values)
        return {key: _number(value) for key, value in out.items()}

    def _boxes(self, fields: Mapping[str, Any]) -> np.ndarray | None:
        """The field of boxes, if there is one."""
        boxes = fields.get(TRUTH) if self.fields[0] != TRUTH else None
        found = isinstance(boxes, np.ndarray) and boxes.dtype == np.float32 and boxes.ndim == 3
        return boxes if found and boxes.shape[2] == 4 else None

    def _require_alike(self, moved: dict, indices: np.ndarray) -> None:
        """E609 unless each mask has its picture's height and width: both move alike."""
        picture, mask = moved[self.fields[0]], moved[MASK]
        for index, one, other in zip(indices, picture, mask, strict=True):
            if one.shape[-2:] != other.shape[-2:]:
                sizes = [" x ".join(map(str, value.shape[-2:])) for value in (one, other)]
                raise DataError("E609", f"{self.source.name(int(index))}: the picture has "
                                f"{sizes[0]} pixels, its mask {sizes[1]}",
                                "a mask has the size of its picture")

    def _apply(self, step: Step, values, draw: Draw):
        at = None
        try:
            if isinstance(values, np.ndarray):
                return step.apply(values, draw)
            parts = []
            for at, value in enumerate(values):
                parts.append(step.apply(value[None], draw.only(at))[0])
            return _even(parts)
        except DataError as error:
            error.line = error.line or step.line
            if at is None:
                raise
            name = self.source.name(int(draw.indices[at]))
            raise DataError(error.code, f"{name}: {error.message}", error.help,
                            error.line) from None

    def _ragged(self, values: list[np.ndarray], indices: np.ndarray) -> DataError:
        other = next(i for i, v in enumerate(values) if v.shape != values[0].shape)
        one, two = (
            f"{self.source.name(int(indices[i]))} has {values[i].shape[-2]} x {values[i].shape[-1]}"
            for i in (0, other)
        )
        return DataError("E609", f"pictures of a batch differ in size: {one} pixels, {two}",
                         "add center_crop(size), random_crop(size) or resize(size)")


def _followed(moving: Transform, boxes: np.ndarray, pictures, draw: Draw) -> np.ndarray:
    """The boxes [N, M, 4] of the pictures, an array or a list, where `moving` takes them."""
    assert isinstance(moving, Moving)
    if isinstance(pictures, np.ndarray):
        return moving.frame(pictures.shape[2:], draw).place(boxes)
    return np.concatenate([moving.frame(picture.shape[1:], draw.only(i)).place(boxes[i : i + 1])
                           for i, picture in enumerate(pictures)])


def open_data(stages: Sequence[Stage], folder: Path = Path(), seed: int = 0) -> Dataset:
    """The dataset that a pipeline describes; relative paths start at `folder`.

    Raises DataError (E601 to E613) naming the file or the call.
    """
    closed = closed_data(stages, seed)
    source = call(stages[0], SOURCES[stages[0].name], folder=Path(folder))
    for stage in stages[1:]:
        if stage.name == "split":
            chosen = call(stage, check_split)
            source = split_source(source, *chosen)
    return replace(closed, source=source)


def closed_data(stages: Sequence[Stage], seed: int = 0) -> Dataset:
    """A pipeline's fields and transforms with no example: its source is not opened."""
    fields = check_stages(stages)
    rest = [stage for stage in stages[1:] if stage.name not in _OTHERS]
    transforms = tuple(Step(call(stage, TRANSFORMS[stage.name]), stage.line) for stage in rest)
    shuffled = any(stage.name == "shuffle" for stage in stages)
    arguments = check_call(stages[0], SOURCES[stages[0].name], folder=Path()).arguments
    source = closed_source(stages[0].name, arguments, fields)
    mixing = [replace(call(stage, check_mixup), line=stage.line)
              for stage in stages if stage.name == "mixup"]
    return Dataset(source, transforms, shuffled, seed, mixing[-1] if mixing else None)


def check_stages(stages: Sequence[Stage]) -> tuple[str, ...]:
    """The fields of a pipeline, without opening a file; raises DataError for a wrong call."""
    if not stages:
        raise DataError("E613", "the data pipeline is empty", "start it with a source, as "
                        + did_you_mean("", SOURCES).removeprefix("there are: "))
    if len(stages) > MAX_STAGES:
        raise DataError("E613", f"a data pipeline has at most {MAX_STAGES} calls")
    for index, stage in enumerate(stages):
        check_stage(stage, index == 0)
    first = stages[0]
    if first.name == "arrays":
        return tuple(key for key, _ in first.kwargs if key not in ("file", "names"))
    return ("image", MASK) if first.name == "pairs" else _FIELDS


def check_stage(stage: Stage, first: bool) -> None:
    """Raise DataError for a wrong call: the first of a pipeline is a source, no other is."""
    if not first:
        _check_transform(stage)
        return
    if stage.name not in SOURCES:
        _not_a_source(stage)
    bound = check_call(stage, SOURCES[stage.name], folder=Path())
    _at_line(stage, lambda: check_source(stage.name, bound.arguments))


def _at_line(stage: Stage, check: Callable[[], None]) -> None:
    try:
        check()
    except DataError as error:
        error.line = error.line or stage.line
        raise


def _check_transform(stage: Stage) -> None:
    if stage.name in _CHECKS:
        call(stage, _CHECKS[stage.name])
    elif stage.name in TRANSFORMS:
        call(stage, TRANSFORMS[stage.name])
    elif stage.name in SOURCES:
        raise DataError("E613", f"`{stage.name}` is a source: it comes first", "", stage.line)
    else:
        raise DataError("E607", f"there is no transform `{show(stage.name)}`",
                        did_you_mean(stage.name, [*TRANSFORMS, *_OTHERS]), stage.line)


def _not_a_source(stage: Stage) -> None:
    if stage.name in TRANSFORMS or stage.name in _OTHERS:
        raise DataError("E613", f"`{stage.name}` is a transform: a source comes before it",
                        did_you_mean("", SOURCES), stage.line)
    raise DataError("E606", f"there is no data source `{show(stage.name)}`",
                    did_you_mean(stage.name, SOURCES), stage.line)


@dataclass(frozen=True, slots=True)
class Feed:
    """How a field becomes an input: its NumPy type; `classes`: labels become shares of them."""

    field: str
    key: str
    kind: type
    classes: int = 0

    def take(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The input's array from a batch's fields."""
        value = arrays[self.field]
        if self.classes and value.dtype == np.int32:
            value = one_hot(value, self.classes)
        return value.astype(self.kind, copy=False)


def feed(dataset: Dataset, inputs: Sequence[Input]) -> tuple[Feed, ...]:
    """How each input is fed, after checking that the data fits.

    Class numbers feed an input of shares [B, classes] as well. Looks at one example and, where
    numbers are limited, at all labels. Raises DataError E609 (size), E610 (label out of range),
    E611 (missing field or wrong type).
    """
    names = match_fields(dataset.fields, inputs)
    example = dataset.fetch(np.array([0]))
    symbols: dict[str, int] = {}
    plan = []
    for name, entry in zip(names, inputs, strict=True):
        value, classes = example[name], _shared_among(entry, example[name])
        if entry.dtype[0] in "ib" and value.dtype != np.int32:
            raise _not_whole(dataset, name, entry)
        shape = (*value.shape, classes) if classes else value.shape
        _check_shape(dataset, name, shape, entry, symbols)
        if classes or entry.limit:
            _check_limit(dataset, name, classes or entry.limit)
        plan.append(Feed(name, entry.key, _DTYPES[entry.dtype], classes))
    return tuple(plan)


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


def _check_shape(dataset: Dataset, name: str, shape: tuple, entry: Input, symbols: dict[str, int]
                 ) -> None:
    wanted = entry.shape[1:]
    expected = [size if isinstance(size, int) else symbols.setdefault(size, actual)
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


def _check_count(count: int, limit: int) -> None:
    if count > limit:
        raise DataError("E610", f"the masks have {count} classes, the model {limit}",
                        f"give the model {count} classes, or write pairs(..., classes={limit})")


def outside(values: np.ndarray, limit: int) -> np.ndarray:
    """Where whole numbers are not in 0 to limit - 1."""
    return (values < 0) | (values >= limit)


def _even(values: np.ndarray | list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """One array where all examples have the same shape."""
    if isinstance(values, list) and len({value.shape for value in values}) == 1:
        return np.stack(values)
    return values


def _number(value: np.ndarray) -> np.ndarray:
    return value if value.dtype in (np.int32, np.float32) else as_float(value)
