"""Prediction: files in, a trained model's classes or outputs out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lamina.api import Net, Runner, Training, make_runner
from lamina.commands.layered import chosen
from lamina.commands.training import read_state, read_weights, weights_file
from lamina.compiler.ir.types import NUMPY_TYPES
from lamina.compiler.options import Options
from lamina.runtime.checkpoint import State, write_durable
from lamina.runtime.data.dataset import Dataset, Input, closed_data, marks_of, open_data
from lamina.runtime.data.errors import DataError
from lamina.runtime.data.feeding import Lengths, match_fields, outside
from lamina.runtime.data.lines import read_lines
from lamina.runtime.data.pairs import Pairs
from lamina.runtime.data.pictures import Pictures, decode, encode_boxes, encode_mask
from lamina.runtime.data.sources import Arrays, Source
from lamina.runtime.data.split import undivided
from lamina.runtime.data.stage import Stage
from lamina.runtime.data.vocabulary import BOS, EOS, Vocabulary
from lamina.runtime.detection import OUTPUTS
from lamina.runtime.errors import Failure, did_you_mean, reason, show
from lamina.runtime.job import Job
from lamina.runtime.padding import LENGTHS, is_lengths
from lamina.runtime.train import trained_vocabularies

SURE = 0.3  # the least score of an object that is listed; JSON has all of them
ENDINGS = ("npy", "png")  # of what outputs are saved as
FEW = 16  # numbers of an output that are shown one by one
_RESIZING = ("pad", "resize", "center_crop", "random_crop")
_ABSENT = ("E601", "E602", "E605", "E612")  # data that is not there to be read


@dataclass(frozen=True, slots=True)
class Detection:
    """An object that a detector found: `box` is left, top, right, bottom in the input's pixels."""

    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says to one example: its first output without the batch, or a failure.

    `shares` are the classes' probabilities, `label` the name of the likeliest; empty for a model
    whose output is not class scores. `objects` are a detector's, the surest first; None for others.
    """

    name: str
    output: np.ndarray | None = None
    shares: tuple[float, ...] = ()
    label: str = ""
    failure: Failure | None = None
    objects: tuple[Detection, ...] | None = None
    picture: np.ndarray | None = None  # what a detector saw, float32 [C, H, W]


@dataclass(frozen=True, slots=True)
class _Model:
    """A model with its weights and the pipeline that its examples come through.

    `lengths` are inputs that take the lengths of the others; `vocabularies` are those of its texts.
    """

    runner: Runner
    data: Dataset
    inputs: tuple[Input, ...]
    lengths: tuple[Input, ...]
    vocabularies: Mapping[str, Vocabulary]
    marks: Mapping[str, tuple[bool, bool]]
    fields: Mapping[str, str]
    output: str
    batched: bool
    scores: bool
    normalised: bool
    detects: bool
    classes: tuple[str, ...]
    needs_seed: bool
    resizes: bool
    pictures: bool  # whether a recipe says how a picture becomes an input


def run_prediction(net: Net, training: Training | None, options: Options, weights: Path,
                   arguments: Sequence[str], invert: bool = False) -> Iterator[Prediction]:
    """A prediction for each file, or for the one example that NAME=FILE arguments make.

    A model without a recipe (`training` is None) takes arrays alone, as they are. A bad file is a
    Prediction with a failure. Raises Failure for what ails all of them.
    """
    model = _open(net, training, options, weights)
    for files in group_files(arguments, [entry.key for entry in model.inputs]):
        name = " ".join(arguments) if len(files) > 1 else str(*files.values())
        try:
            yield _predict(model, name, files, invert)
        except Failure as error:
            yield Prediction(name, failure=error)


def read_example(net: Net, training: Training | None, options: Options, weights: Path,
                 argument: str) -> dict[str, np.ndarray]:
    """A file as a batch of one, as the model takes it, by input."""
    model = _open(net, training, options, weights)
    files, = group_files([argument], [entry.key for entry in model.inputs])
    return {entry.key: _example(model, entry, files[entry.key], False) for entry in model.inputs}


def group_files(arguments: Sequence[str], inputs: Sequence[str]) -> list[dict[str, Path]]:
    """The files of each example by input. Raises DataError E611 for inputs without a file."""
    named = [_named(argument, inputs) for argument in arguments]
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


def _named(argument: str, inputs: Sequence[str]) -> tuple[str, Path]:
    name, mark, path = argument.partition("=")
    if mark and name in inputs:
        return name, Path(path)
    if mark and name.isidentifier() and not Path(argument).exists():
        raise DataError("E611", f"the model has no input `{show(name)}`",
                        did_you_mean(name, inputs))
    return "", Path(argument)


def require_ending(path: Path) -> None:
    """Failure E416 for a file that predictions are not saved as."""
    chosen(ENDINGS, path.name)


def save_outputs(path: Path, found: Sequence[Prediction]) -> None:
    """Write the outputs as one .npy array, a row per example, or one .png picture.

    That is a mask, or what a detector saw with the sure objects drawn over it.

    Raises Failure (E416, E609, E612, E704).
    """
    outputs = [one.output for one in found if one.output is not None]
    if not outputs:
        return
    if chosen(ENDINGS, path.name) == "png":
        one = found[0]
        drawn = one.picture is not None and len(found) == 1
        write_durable(path, _drawn(one) if drawn else encode_mask(_only_mask(outputs)))
        return
    shapes = sorted({output.shape for output in outputs})
    if len(shapes) > 1:
        raise DataError("E609", f"outputs of shapes {list(shapes[0])} and {list(shapes[1])} make "
                        "no array", "predict files of different sizes one by one")
    file = io.BytesIO()
    np.save(file, np.stack(outputs), allow_pickle=False)
    write_durable(path, file.getvalue())


def _drawn(one: Prediction) -> bytes:
    assert one.picture is not None
    sure = [found for found in one.objects or () if found.score >= SURE]
    names = sorted({found.label for found in sure})
    return encode_boxes(one.picture, [found.box for found in sure],
                        [f"{found.label} {found.score:.0%}" for found in sure],
                        [names.index(found.label) + 2 for found in sure])


def _only_mask(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The class of each pixel, uint8 [H, W], of scores [classes, H, W]. Raises DataError E609.

    One score a pixel, as a sigmoid takes it, gives 0 or 1.
    """
    scores = outputs[0]
    if len(outputs) > 1 or scores.ndim != 3:
        what = f"{len(outputs)} outputs" if len(outputs) > 1 else \
            f"an output of shape {list(scores.shape)}"
        raise DataError("E609", "a .png holds one mask [classes, H, W] or one picture with its "
                        f"objects, not {what}",
                        "give one picture, or save arrays with --out FILE.npy")
    found = scores[0] > 0 if len(scores) == 1 else scores.argmax(axis=0)
    return found.astype(np.uint8)


def describe(one: Prediction) -> str:
    """A prediction as a line (or more, for an output of few rows)."""
    if one.shares:
        return f"{one.name}: {one.label} ({max(one.shares):.1%})"
    if one.objects is not None:
        return "\n".join(_object_lines(one.name, one.objects))
    assert one.output is not None
    value = one.output
    kind = f"{one.name}: {list(value.shape)} " if value.ndim else f"{one.name}: "
    if value.size <= FEW:
        return kind + np.array2string(value, precision=6, separator=", ", max_line_width=1000
                                      ).replace("\n", "")
    return f"{kind}min {value.min():.6g}  mean {value.mean():.6g}  max {value.max():.6g}"


def _object_lines(name: str, objects: Sequence[Detection]) -> list[str]:
    sure = [found for found in objects if found.score >= SURE]
    rest = len(objects) - len(sure)
    head = f"{name}: {len(sure)} object{'' if len(sure) == 1 else 's'}"
    head += f" ({rest} more below {SURE:.0%})" if rest else ""
    return [head, *(f"  {found.label} ({found.score:.1%}) at "
                    + ", ".join(f"{side:.1f}" for side in found.box) for found in sure)]


def as_json(one: Prediction) -> dict[str, Any]:
    """A prediction as plain data."""
    if one.failure is not None:
        return {"input": one.name, "code": one.failure.code, "error": one.failure.message,
                "help": one.failure.help}
    if one.shares:
        return {"input": one.name, "label": one.label, "probability": max(one.shares),
                "probabilities": list(one.shares)}
    if one.objects is not None:
        return {"input": one.name, "objects": [
            {"label": o.label, "score": o.score, "box": list(o.box)} for o in one.objects]}
    assert one.output is not None
    return {"input": one.name, "shape": list(one.output.shape), "output": one.output.tolist()}


# --- the model ----------------------------------------------------------------------------------


def _open(net: Net, training: Training | None, options: Options, weights: Path) -> _Model:
    params = read_weights(net.init() if training is None else training.initial(), weights)
    state, graph = read_state(weights_file(weights)), net.graph
    job = None if training is None else training.job()
    stages = () if job is None else job.valid or job.train
    data = _no_data(net.fed) if job is None else _data(job, stages, state)
    every = net.fed if job is None else job.inputs
    fed = [entry for entry in every if not is_lengths(entry.key)]
    inputs = tuple(entry for entry in fed if entry.key in graph.inputs)
    lengths = tuple(entry for entry in every if entry not in fed and entry.key in graph.inputs)
    runner = make_runner(graph, options)
    runner.set_params({key: params[key] for key in graph.params})
    output, kind = next(iter(net.outputs.items()))
    batches = {net.inputs[entry.key].shape[:1] for entry in inputs}
    fields = zip(fed, match_fields(data.fields, fed), strict=True)
    known = state.vocabularies if state and state.vocabularies else data.vocabularies
    return _Model(runner, data, inputs, lengths, known, marks_of(stages),
                  {entry.key: name for entry, name in fields},
                  output, kind.rank > 0 and kind.shape[:1] in batches,
                  training is not None and training.scores_classes,
                  graph.node(dict(graph.outputs)[output]).op.name == "softmax",
                  net.detects, state.classes if state and state.classes else data.classes,
                  "rng" in graph.inputs,
                  any(stage.name in _RESIZING for stage in stages), training is not None)


def _no_data(inputs: Sequence[Input]) -> Dataset:
    """What stands for the data of a model without a recipe: no example, and no transform."""
    return Dataset(Arrays({entry.key: np.zeros(0, np.float32) for entry in inputs}))


def _data(job: Job, stages: Sequence[Stage], state: State | None) -> Dataset:
    """The recipe's data; its transforms alone where it is gone and a checkpoint knows the rest."""
    try:
        known = state.vocabularies if state is not None else trained_vocabularies(job)
        return open_data(stages, Path(job.folder), vocabularies=known)
    except DataError as error:
        if state is None or error.code not in _ABSENT:
            raise
    return closed_data(stages)


def _predict(model: _Model, name: str, files: Mapping[str, Path], invert: bool) -> Prediction:
    inputs = {entry.key: _example(model, entry, files[entry.key], invert)
              for entry in model.inputs}
    inputs |= _lengths(model, inputs)
    if model.needs_seed:
        inputs["rng"] = np.array([0, 1], np.int32)
    try:
        outputs = model.runner.run(inputs)
    except ValueError as error:  # sizes that do not go together
        raise DataError("E609", f"{show(name)} does not fit the model: {show(error)}") from None
    output = outputs[model.output]
    output = output[0] if model.batched else output
    if not np.isfinite(output).all():
        raise DataError("E611", f"the model's output for {show(name)} is not finite",
                        "look for NaN or infinity in the file and in the weights")
    if model.detects:
        return Prediction(name, output, objects=_objects(model, outputs), picture=_seen(inputs))
    if not model.scores:
        return Prediction(name, output)
    shares = output.astype(np.float64)
    shares = shares if model.normalised else _softmax(shares)
    return Prediction(name, output, tuple(shares.tolist()), _label(model, int(shares.argmax())))


def _label(model: _Model, number: int) -> str:
    """The name of a class, or its number where it has none."""
    return model.classes[number] if number < len(model.classes) else str(number)


def _objects(model: _Model, outputs: Mapping[str, np.ndarray]) -> tuple[Detection, ...]:
    """What a detector kept of one example: boxes whose score is not 0, the surest first."""
    boxes, scores, labels = (outputs[name][0] for name in OUTPUTS)
    order = np.argsort(-scores, kind="stable")
    return tuple(Detection(_label(model, int(labels[i])), float(scores[i]),
                           tuple(boxes[i].tolist())) for i in order if scores[i] > 0)


def _seen(inputs: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The picture among the inputs, [C, H, W] of one or three channels."""
    return next((value[0] for value in inputs.values()
                 if value.ndim == 4 and value.shape[1] in (1, 3)), None)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


# --- examples -----------------------------------------------------------------------------------


def _example(model: _Model, entry: Input, path: Path, invert: bool) -> np.ndarray:
    """A file as a batch of one; the data's first field goes through its transforms."""
    data, field = model.data, model.fields[entry.key]
    coded = field in model.vocabularies
    like = data.source.read(np.array([0]))[field][0] if len(data) and not coded else None
    array = _read(model, path, entry, like)
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
    _require_shape(value.shape[1:], entry, path)
    return value.astype(NUMPY_TYPES[entry.dtype])


def _lengths(model: _Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs of lengths, int32 [1] each; inputs of one size that differ do not fit."""
    found = {}
    for entry in model.lengths:
        size = entry.key.removesuffix(LENGTHS)
        axes = tuple((one.key, axis) for one in model.inputs
                     for axis, other in enumerate(one.shape[1:]) if other == size)
        found[entry.key] = Lengths(entry.key, axes).take(inputs)
    return found


def _files(source: Source) -> Pictures | Pairs | None:
    """The picture files that a source reads, if it reads such."""
    whole = undivided(source)
    return whole if isinstance(whole, Pictures | Pairs) else None


def _require_shape(shape: tuple[int, ...], entry: Input, path: Path) -> None:
    wanted = entry.shape[1:]
    fits = len(wanted) == len(shape) and all(
        size == actual for size, actual in zip(wanted, shape, strict=True) if isinstance(size, int))
    if not fits:
        raise DataError("E609", f"{show(path)} becomes {list(shape)}; the model's input "
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
        return _whole(array, entry, path)
    if array.dtype.kind not in "ui" or not array.size:
        return array.astype(np.float32)
    stored = array.dtype == np.uint8 and array.ndim in (2, 3) and source != np.int32
    if (stored or source == np.uint8) and 0 <= array.min() <= array.max() <= 255:
        return array.astype(np.uint8)
    return array.astype(np.float32)


def _whole(array: np.ndarray, entry: Input, path: Path) -> np.ndarray:
    if array.dtype.kind not in "ui":
        raise DataError("E611", f"the model's input `{show(entry.key)}` takes whole numbers; "
                        f"{show(path)} holds real ones", "write it as an integer array")
    wrong = outside(array, entry.limit or 2**31)
    if wrong.any() and (entry.limit or array.max() >= 2**31 or array.min() < -(2**31)):
        most = f"0 to {entry.limit - 1}" if entry.limit else "numbers of 32 bits"
        raise DataError("E610", f"{show(path)} holds {array[wrong].flat[0]}; the model's input "
                        f"`{show(entry.key)}` takes {most}")
    return array.astype(np.int32)


def _read(model: _Model, path: Path, entry: Input, like: np.ndarray | None) -> np.ndarray:
    if path.suffix == ".npy":
        return _load(path)
    field = model.fields[entry.key]
    if field in model.vocabularies:
        before, after = model.marks.get(field, (False, False))
        numbers = model.vocabularies[field].encode("\n".join(read_lines(path)))
        return np.concatenate([[BOS] * before, numbers, [EOS] * after]).astype(np.int32)
    if not model.pictures:
        raise DataError("E611", f"{show(path)} is no .npy file, and without a recipe nothing says "
                        "how it becomes an array", "give an array as the model takes it, saved "
                        "with numpy.save(file, array), or add a recipe for the model")
    files = _files(model.data.source)
    if files is not None:
        return decode(path, files.size, files.channels)
    shape = entry.shape[1:] if like is None else like.shape
    if len(shape) not in (2, 3) or entry.dtype[0] != "f":
        raise DataError("E611", f"{show(path)} is no .npy file, and the model's input "
                        f"`{show(entry.key)}` is no picture",
                        "save it with numpy.save(file, array)")
    if like is None and model.resizes:
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
