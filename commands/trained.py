"""A trained model, opened to predict with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lamina.api import Decoding, Net, Runner, Training, make_runner
from lamina.commands.decoding import Wish, steps_of
from lamina.commands.examples import Pipeline, open_pipeline
from lamina.commands.predicted import Prediction
from lamina.commands.texts import Slots, slots_of
from lamina.commands.training import read_state, read_weights, weights_file
from lamina.compiler.options import Options
from lamina.runtime.data.errors import DataError
from lamina.runtime.errors import show

SEED = np.array([0, 1], np.int32)  # of a model that draws random numbers


@dataclass(frozen=True, slots=True)
class Model:
    """A model with its weights and the pipeline that its examples come through.

    `decoding` is that of a model that chooses its tokens; others have a `runner`. `target` is
    what the first output scores at every position, or empty; `alignment` is an output, with the
    size of the tokens that it looks at, and whether they come before those that look.
    """

    net: Net
    params: Mapping[str, np.ndarray]
    pipeline: Pipeline
    slots: Slots
    texts: bool
    runner: Runner | None
    decoding: Decoding | None
    output: str
    batched: bool
    scores: bool
    target: str
    normalised: bool
    alignment: tuple[str, str, bool] | None


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be predicted: files, texts, and how tokens are chosen.

    `wanted` is the ending of the file that the outputs are for, or empty.
    """

    files: Sequence[str] = ()
    texts: Sequence[str] = ()
    invert: bool = False
    wish: Wish = Wish()
    wanted: str = ""


def open_model(net: Net, training: Training | None, options: Options, weights: Path) -> Model:
    """A model to predict with; without a recipe (`training` is None) it takes arrays alone.

    Raises Failure for weights that do not fit, and for texts whose vocabulary is not known.
    """
    params = read_weights(net.init() if training is None else training.initial(), weights)
    pipeline = open_pipeline(net, training, read_state(weights_file(weights)))
    decoding = net.decoding(options) if net.chooses else None
    if decoding is not None:
        pipeline = _without_gold(pipeline, decoding)
    texts = decoding is not None or any(pipeline.vocabulary(entry.key) for entry in pipeline.inputs)
    output, kind = next(iter(net.outputs.items()))
    batches = {net.inputs[entry.key].shape[:1] for entry in pipeline.inputs}
    target = training.scores_positions if training is not None and texts else ""
    return Model(
        net, params, pipeline, slots_of(pipeline), texts,
        None if decoding is not None else _runner(net, params, options), decoding, output,
        kind.rank > 0 and kind.shape[:1] in batches,
        training is not None and training.scores_classes,
        target if pipeline.vocabulary(target) else "",
        net.graph.node(dict(net.graph.outputs)[output]).op.name == "softmax",
        None if decoding is None else _alignment(decoding))


def _runner(net: Net, params: Mapping[str, np.ndarray], options: Options) -> Runner:
    runner = make_runner(net.graph, options)
    runner.set_params({key: params[key] for key in net.graph.params})
    return runner


def _without_gold(pipeline: Pipeline, decoding: Decoding) -> Pipeline:
    """What is to be given where the model chooses: all inputs but the tokens themselves."""
    return replace(pipeline,
                   inputs=tuple(one for one in pipeline.inputs if one.key in decoding.inputs),
                   lengths=tuple(one for one in pipeline.lengths if one.key in decoding.inputs))


def _alignment(decoding: Decoding) -> tuple[str, str, bool] | None:
    """The first output with the axes of the chosen tokens and of an input's."""
    said = steps_of(decoding)
    for name, value in decoding.last.graph.outputs:
        shape = [str(size) for size in decoding.last.graph.type(value).shape]
        read = [size for size in shape[1:] if size not in said and size in decoding.inputs]
        if len(shape) == 3 and len(read) == 1 and set(said) & set(shape[1:]):
            return name, read[0], shape[1] == read[0]
    return None


def misfit(name: str, error: ValueError) -> DataError:
    """The error for sizes that do not go together."""
    return DataError("E609", f"{show(name)} does not fit the model: {show(error)}")


def require_finite(name: str, output: np.ndarray) -> None:
    """Raise DataError E611 for NaN or infinity in what a model gives."""
    if not np.isfinite(output).all():
        raise not_finite(name)


def not_finite(name: str) -> DataError:
    """The error for a model that gives no numbers."""
    place = f" for {show(name)}" if name else ""
    return DataError("E611", f"the model's output{place} is not finite",
                     "look for NaN or infinity in the file and in the weights")


def classified(model: Model, one: Prediction) -> Prediction:
    """With the classes' probabilities, where the output is class scores."""
    if not model.scores:
        return one
    assert one.output is not None
    shares = one.output.astype(np.float64)
    shares = shares if model.normalised else softmax(shares)
    label = class_name(model, int(shares.argmax()))
    return replace(one, shares=tuple(shares.tolist()), label=label)


def class_name(model: Model, number: int) -> str:
    """The name of a class, or its number where it has none."""
    classes = model.pipeline.classes
    return classes[number] if number < len(classes) else str(number)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of scores, along the last axis."""
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


