"""A source with its transforms: the examples that batches are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.mixing import Mixup, check_mixup, mix
from lamina.runtime.data.pairs import MASK
from lamina.runtime.data.sequences import (
    MARKS,
    check_bucket,
    check_longest,
    check_mark,
    check_marked,
    leave_out,
    require_room,
)
from lamina.runtime.data.source import Rows, Source
from lamina.runtime.data.sources import SOURCES, check_source, closed_source, source_fields
from lamina.runtime.data.split import check_split, chosen_of, split_source, undivided
from lamina.runtime.data.stage import Stage, call, check_call
from lamina.runtime.data.texts import CHECKS, Texts, field_codings
from lamina.runtime.data.transforms import (
    TRANSFORMS,
    Draw,
    Moving,
    Transform,
    as_float,
    shuffled_order,
)
from lamina.runtime.data.vocabulary import UNKNOWN, Vocabulary, require_same_coding
from lamina.runtime.data.windows import NEXT, LongText
from lamina.runtime.errors import did_you_mean, show

MAX_STAGES = 100
TRUTH = "truth"  # the field of boxes, which follow where transforms move pixels
_CHECKS = {"shuffle": lambda: None, "split": check_split, "mixup": check_mixup, "bos": check_mark,
           "eos": check_mark, "longest": check_longest, "bucket": check_bucket}
_OTHERS = tuple(_CHECKS)  # neither a source nor a transform of one picture


@dataclass(frozen=True, slots=True)
class Input:
    """A program's data input and the field that feeds it.

    `shape` has the batch first; a name stands for any size (the same one wherever it occurs). Where
    there is an input "S~" [batch], sizes named "S" differ from example to example: it takes them.
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
    pixels) follow where pixels move, by the same draws. `tokens`: the positions of a batch of texts
    of like length (0: batches as they come). `vocabularies` are those of the fields that are texts,
    `unknown` counts each one's tokens that are not in it; `notes` are what a user should be told.
    """

    source: Source
    transforms: tuple[Step, ...] = ()
    shuffled: bool = False
    seed: int = 0
    mixing: Mixup | None = None
    tokens: int = 0
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    unknown: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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

    def fetch(self, indices: np.ndarray, epoch: int = 0) -> dict[str, Rows]:
        """Examples by field, float32 or int32 with the batch first; a list of texts that differ in
        length.

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

    def _transformed(self, indices: np.ndarray, epoch: int) -> dict[str, Rows]:
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
            if isinstance(values, np.ndarray):
                out[name] = np.ascontiguousarray(values[:, 0] if flat and name == MASK else values)
            elif values[0].ndim > 1:
                raise self._ragged(values, indices)
            else:
                out[name] = values
        return {key: [_number(row) for row in value] if isinstance(value, list) else _number(value)
                for key, value in out.items()}

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


def open_data(stages: Sequence[Stage], folder: Path = Path(), seed: int = 0,
              vocabularies: Mapping[str, Vocabulary] | None = None) -> Dataset:
    """The dataset that a pipeline describes; relative paths start at `folder`.

    Texts are coded by `vocabularies` (those that the model was trained with), or by their own.
    Raises DataError (E601 to E613) naming the file or the call.
    """
    closed, given = closed_data(stages, seed), vocabularies or {}
    first = stages[0]
    source: Source = call(first, SOURCES[first.name], folder=Path(folder), vocabularies=given)
    for stage in _named(stages, "split"):
        source = split_source(source, *call(stage, check_split))
    found: Mapping[str, Vocabulary] = {}
    raw = undivided(source)
    if isinstance(raw, Texts | LongText):
        _at_line(first, partial(require_same_coding, raw.makings, given))
        source, found = raw.coded(chosen_of(source), given, marks_of(stages))
    notes = []
    for stage in _named(stages, "longest"):
        source, told = _at_line(stage, partial(leave_out, source, call(stage, check_longest)))
        notes += [told] * bool(told)
    for stage in _named(stages, "bucket"):
        _at_line(stage, partial(require_room, source, closed.tokens))
    unknown = {key: int((source.column(key) == UNKNOWN).sum()) for key, one in found.items()
               if not one.closed and not (isinstance(raw, LongText) and key == NEXT)}
    return replace(closed, source=source, vocabularies=found, unknown=unknown, notes=tuple(notes))


def _named(stages: Sequence[Stage], *names: str) -> list[Stage]:
    """The transforms of these names."""
    return [stage for stage in stages[1:] if stage.name in names]


def marks_of(stages: Sequence[Stage]) -> dict[str, tuple[bool, bool]]:
    """Which fields get <bos> and <eos>."""
    marked = [(stage.name, call(stage, check_mark)) for stage in _named(stages, *MARKS)]
    return {key: (("bos", key) in marked, ("eos", key) in marked) for _, key in marked}


def closed_data(stages: Sequence[Stage], seed: int = 0) -> Dataset:
    """A pipeline's fields and transforms with no example: its source is not opened."""
    fields = check_stages(stages)
    rest = [stage for stage in stages[1:] if stage.name not in _OTHERS]
    transforms = tuple(Step(call(stage, TRANSFORMS[stage.name]), stage.line) for stage in rest)
    shuffled = any(stage.name == "shuffle" for stage in stages)
    arguments = check_call(stages[0], SOURCES[stages[0].name], folder=Path()).arguments
    source = closed_source(stages[0].name, arguments, fields)
    mixing = [replace(call(stage, check_mixup), line=stage.line)
              for stage in _named(stages, "mixup")]
    tokens = [call(stage, check_bucket) for stage in _named(stages, "bucket")]
    return Dataset(source, transforms, shuffled, seed, mixing[-1] if mixing else None,
                   tokens[-1] if tokens else 0)


def check_stages(stages: Sequence[Stage]) -> tuple[str, ...]:
    """The fields of a pipeline, without opening a file; raises DataError for a wrong call."""
    if not stages:
        raise DataError("E613", "the data pipeline is empty", "start it with a source, as "
                        + did_you_mean("", SOURCES).removeprefix("there are: "))
    if len(stages) > MAX_STAGES:
        raise DataError("E613", f"a data pipeline has at most {MAX_STAGES} calls")
    first, *rest = stages
    check_stage(first)
    for stage in rest:
        check_stage(stage, first)
    return source_fields(first.name, check_call(first, SOURCES[first.name]).arguments)


def check_stage(stage: Stage, source: Stage | None = None) -> None:
    """Raise DataError for a wrong call: the first of a pipeline is a source, no other is.

    `source` is the pipeline's source, for all calls but the first.
    """
    if source is not None:
        _check_transform(stage, source)
        return
    if stage.name not in SOURCES:
        _not_a_source(stage)
    bound = check_call(stage, SOURCES[stage.name], folder=Path())
    _at_line(stage, lambda: check_source(stage.name, bound.arguments))


def _at_line(stage: Stage, action: Callable[[], Any]) -> Any:
    """What an action gives; its DataError names the stage's line."""
    try:
        return action()
    except DataError as error:
        error.line = error.line or stage.line
        raise


def _check_transform(stage: Stage, source: Stage) -> None:
    if stage.name in MARKS:
        codings = field_codings(source.kwargs) if source.name in CHECKS else {}
        _at_line(stage, partial(check_marked, stage.name, call(stage, check_mark), codings))
    elif stage.name in _CHECKS:
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


def _even(values: np.ndarray | list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """One array where all examples have the same shape."""
    if isinstance(values, list) and len({value.shape for value in values}) == 1:
        return np.stack(values)
    return values


def _number(value: np.ndarray) -> np.ndarray:
    return value if value.dtype in (np.int32, np.float32) else as_float(value)
