"""Examples of a user's: files as a model's recipe reads its data, each a batch of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lamina.api import Net, Training
from lamina.compiler.ir.types import NUMPY_TYPES
from lamina.runtime.checkpoint import State
from lamina.runtime.data.dataset import Dataset, Input, closed_data, marks_of, open_data
from lamina.runtime.data.errors import DataError
from lamina.runtime.data.feeding import Lengths, match_fields, outside
from lamina.runtime.data.lines import read_lines
from lamina.runtime.data.pairs import Pairs
from lamina.runtime.data.pictures import Pictures, decode
from lamina.runtime.data.sources import Arrays, Source, holds_texts
from lamina.runtime.data.split import undivided
from lamina.runtime.data.stage import Stage
from lamina.runtime.data.texts import columns_of, field_codings
from lamina.runtime.data.vocabulary import BOS, EOS, PICTURE, Vocabulary
from lamina.runtime.errors import did_you_mean, reason, show
from lamina.runtime.job import Job
from lamina.runtime.padding import LENGTHS, is_lengths
from lamina.runtime.train import trained_vocabularies

_RESIZING = ("pad", "resize", "center_crop", "random_crop")
_ABSENT = ("E601", "E602", "E605", "E612")  # data that is not there to be read


@dataclass(frozen=True, slots=True)
class Pipeline:
    """How files become a model's inputs: the recipe's data with its transforms.

    `lengths` are inputs that take the lengths of the others; `fields` are those of the data by
    input or target, `vocabularies` those of its texts by field, `marks` which of them get <bos> and
    <eos>, `columns` where they stand in a line (empty where a file is one text).
    """

    data: Dataset
    inputs: tuple[Input, ...]
    lengths: tuple[Input, ...]
    fields: Mapping[str, str]
    vocabularies: Mapping[str, Vocabulary]
    marks: Mapping[str, tuple[bool, bool]]
    columns: Mapping[str, int]
    classes: tuple[str, ...]
    resizes: bool
    pictures: bool  # whether a recipe says how a picture becomes an input

    def vocabulary(self, key: str) -> Vocabulary | None:
        """The vocabulary of an input or target; None for what is no text."""
        return self.vocabularies.get(self.fields.get(key, ""))


def open_pipeline(net: Net, training: Training | None, state: State | None) -> Pipeline:
    """What reads a model's examples; without a recipe (`training` is None) it takes arrays.

    Raises DataError, E611 for a checkpoint without the vocabularies of the recipe's texts.
    """
    job = None if training is None else training.job()
    stages = () if job is None else job.valid or job.train
    data = _no_data(net.fed) if job is None else _data(job, stages, state)
    every = net.fed if job is None else job.inputs
    fed = [entry for entry in every if not is_lengths(entry.key)]
    known = state.vocabularies if state and state.vocabularies else data.vocabularies
    return Pipeline(
        data, tuple(entry for entry in fed if entry.key in net.inputs),
        tuple(entry for entry in every if entry not in fed and entry.key in net.inputs),
        dict(zip((entry.key for entry in fed), match_fields(data.fields, fed), strict=True)),
        known, marks_of(stages), columns_of(stages[0]) if stages else {},
        state.classes if state and state.classes else data.classes,
        any(stage.name in _RESIZING for stage in stages), training is not None)


def _no_data(inputs: Sequence[Input]) -> Dataset:
    """What stands for the data of a model without a recipe: no example, and no transform."""
    return Dataset(Arrays({entry.key: np.zeros(0, np.float32) for entry in inputs}))


def _data(job: Job, stages: Sequence[Stage], state: State | None) -> Dataset:
    """The recipe's data; its transforms alone where it is gone and a checkpoint knows the rest."""
    if state is not None:
        _require_vocabularies(stages, state.vocabularies)
    try:
        known = state.vocabularies if state is not None else trained_vocabularies(job)
        return open_data(stages, Path(job.folder), vocabularies=known)
    except DataError as error:
        if error.code not in _ABSENT:
            raise
        if state is None:
            error.help += "; " * bool(error.help) + "the training data tells the vocabularies, " \
                "or the checkpoint of a run: --weights runs/NAME" if holds_texts(stages) else ""
            raise
    return closed_data(stages)


def _require_vocabularies(stages: Sequence[Stage], known: Mapping[str, Vocabulary]) -> None:
    codings = field_codings(stages[0].kwargs) if columns_of(stages[0]) else {}
    fields = [key for key, coding in codings.items() if coding != PICTURE]
    fields = fields or ["text"] * holds_texts(stages)
    for name in fields:
        if name not in known:
            raise DataError("E611", f"the checkpoint holds no vocabulary of `{show(name)}`: it was "
                            "not trained on these texts", "give the recipe that it was trained by")



def group_files(arguments: Sequence[str], inputs: Sequence[str]) -> list[dict[str, Path]]:
    """The files of each example by input. Raises DataError E611 for inputs without a file."""
    named = [named_file(argument, inputs) for argument in arguments]
    if len(inputs) == 1:
        return [{inputs[0]: path} for _, path in named]
    files = {name: path for name, path in named if name}
    missing = ", ".join(f"`{show(name)}`" for name in inputs if name not in files)
    if missing:
        raise DataError("E611", f"the model takes {len(inputs)} inputs; no file is given for "
                        f"{missing}", "give each input its file: "
                        + " ".join(f"{show(name)}=FILE" for name in inputs))
    if len(files) < len(named):
        raise DataError("E611", "a model of several inputs takes one file for each: "
                        + " ".join(f"{show(name)}=FILE" for name in inputs))
    return [files]


def named_file(argument: str, inputs: Sequence[str]) -> tuple[str, Path]:
    """NAME=FILE, or "" and FILE. Raises DataError E611 for a name that no input has."""
    name, mark, path = argument.partition("=")
    if mark and name in inputs:
        return name, Path(path)
    if mark and name.isidentifier() and not Path(argument).exists():
        raise DataError("E611", f"the model has no input `{show(name)}`",
                        did_you_mean(name, inputs))
    return "", Path(argument)


def read_input(pipeline: Pipeline, entry: Input, path: Path, invert: bool) -> np.ndarray:
    """A file as a batch of one; the data's first field goes through its transforms."""
    data, field = pipeline.data, pipeline.fields[entry.key]
    coded = field in pipeline.vocabularies
    like = data.source.read(np.array([0]))[field][0] if len(data) and not coded else None
    array = _read(pipeline, path, entry, like)
    shape = entry.shape[1:] if like is None else like.shape
    if len(shape) == array.ndim + 1 and shape[0] == 1:
        array = array[None]  # one channel may go without saying
    if like is not None and array.shape != shape and _files(data.source) is None:
        raise DataError("E609", f"{show(path)} has shape {list(array.shape)}, the data "
                        f"{list(shape)}", "resize the picture, or give an array of that shape")
    array = _typed(array, entry, path, _stored_type(data, field, like))
    if invert and array.dtype.kind != "i":
        array = (255 if array.dtype == np.uint8 else 1) - array
    transforms = data.transforms if field == data.fields[0] else ()
    source = Arrays({field: array[None]}, (), show(path))
    only = replace(data, source=source, transforms=transforms).fetch(np.array([0]))
    value = np.asarray(only[field])
    require_shape(value.shape[1:], entry, path)
    return value.astype(NUMPY_TYPES[entry.dtype])


def mark(pipeline: Pipeline, field: str, numbers: np.ndarray) -> np.ndarray:
    """The tokens of a text, int32 [length], with <bos> and <eos> where the recipe's data has them.
    """
    before, after = pipeline.marks.get(field, (False, False))
    return np.concatenate([[BOS] * before, numbers, [EOS] * after]).astype(np.int32)


def lengths_of(pipeline: Pipeline, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs of lengths, int32 [1] each; inputs of one size that differ do not fit."""
    found = {}
    for entry in pipeline.lengths:
        size = entry.key.removesuffix(LENGTHS)
        axes = tuple((one.key, axis) for one in pipeline.inputs
                     for axis, other in enumerate(one.shape[1:]) if other == size)
        found[entry.key] = Lengths(entry.key, axes).take(inputs)
    return found


def _files(source: Source) -> Pictures | Pairs | None:
    """The picture files that a source reads, if it reads such."""
    whole = undivided(source)
    return whole if isinstance(whole, Pictures | Pairs) else None


def require_shape(shape: tuple[int, ...], entry: Input, place: Path | str) -> None:
    """Raise DataError E609 unless an input takes an example of this shape."""
    wanted = entry.shape[1:]
    fits = len(wanted) == len(shape) and all(
        size == actual for size, actual in zip(wanted, shape, strict=True) if isinstance(size, int))
    if not fits:
        raise DataError("E609", f"{show(place)} becomes {list(shape)}; the model's input "
                        f"`{show(entry.key)}` takes [{', '.join(map(str, wanted))}]",
                        "give a picture or an array of the size that the data has")


def _stored_type(data: Dataset, field: str, like: np.ndarray | None) -> np.dtype:
    """The element type of a field in the data's source; uint8 are pixels."""
    if like is not None:
        return like.dtype
    source = data.source
    return source.arrays[field].dtype if isinstance(source, Arrays) else np.dtype(np.uint8)


def _typed(array: np.ndarray, entry: Input, path: Path, source: np.dtype) -> np.ndarray:
    """Whole numbers as int32, pixels as uint8, others as float32: as the data's source has them."""
    if entry.dtype in ("i32", "i64"):
        return whole_numbers(array, entry, path)
    if array.dtype.kind not in "ui" or not array.size:
        return array.astype(np.float32)
    stored = array.dtype == np.uint8 and array.ndim in (2, 3) and source != np.int32
    if (stored or source == np.uint8) and 0 <= array.min() <= array.max() <= 255:
        return array.astype(np.uint8)
    return array.astype(np.float32)


def whole_numbers(array: np.ndarray, entry: Input, path: Path | str) -> np.ndarray:
    """An array as int32. Raises DataError E611 for real numbers, E610 for one outside the table."""
    if array.dtype.kind not in "ui":
        raise DataError("E611", f"the model's input `{show(entry.key)}` takes whole numbers; "
                        f"{show(path)} holds real ones", "write it as an integer array")
    wrong = outside(array, entry.limit or 2**31)
    if wrong.any() and (entry.limit or array.max() >= 2**31 or array.min() < -(2**31)):
        most = f"0 to {entry.limit - 1}" if entry.limit else "numbers of 32 bits"
        raise DataError("E610", f"{show(path)} holds {array[wrong].flat[0]}; the model's input "
                        f"`{show(entry.key)}` takes {most}")
    return array.astype(np.int32)


def _read(pipeline: Pipeline, path: Path, entry: Input, like: np.ndarray | None) -> np.ndarray:
    if path.suffix == ".npy":
        return _load(path)
    field = pipeline.fields[entry.key]
    if field in pipeline.vocabularies:
        return mark(pipeline, field, pipeline.vocabularies[field].encode(
            "\n".join(read_lines(path))))
    if not pipeline.pictures:
        raise DataError("E611", f"{show(path)} is no .npy file, and without a recipe nothing says "
                        "how it becomes an array", "give an array as the model takes it, saved "
                        "with numpy.save(file, array), or add a recipe for the model")
    files = _files(pipeline.data.source)
    if files is not None:
        return decode(path, files.size, files.channels)
    shape = entry.shape[1:] if like is None else like.shape
    if len(shape) not in (2, 3) or entry.dtype[0] != "f":
        raise DataError("E611", f"{show(path)} is no .npy file, and the model's input "
                        f"`{show(entry.key)}` is no picture",
                        "save it with numpy.save(file, array)")
    if like is None and pipeline.resizes:
        raise DataError("E611", f"what size {show(path)} should have before the recipe's "
                        "transforms only its data tells, and that is not here",
                        "give a .npy array of the size that the data had")
    height, width = shape[-2:]
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return decode(path, size, 3 if len(shape) == 3 and shape[0] == 3 else 1)


def _load(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError("E601", f"there is no file {show(path)}") from None
    except OSError as error:
        raise DataError("E602", f"cannot read {show(path)}: {reason(error)}") from None
    except (ValueError, EOFError, MemoryError):  # a header may claim any size
        array = None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "uifb":
        raise DataError("E602", f"{show(path)} is not an array of numbers",
                        "write it with numpy.save(file, array)")
    return array
