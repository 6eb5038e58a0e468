"""Prediction: a user's files and texts in, what a trained model says to them out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from lamina.api import Net, Training
from lamina.commands.decoding import require_choice
from lamina.commands.examples import group_files, lengths_of, open_pipeline, read_input
from lamina.commands.predicted import Detection, Prediction
from lamina.commands.sayings import predict_texts
from lamina.commands.trained import (
    SEED,
    Model,
    Request,
    class_name,
    classified,
    misfit,
    require_finite,
)
from lamina.commands.training import read_state, weights_file
from lamina.runtime.data.errors import DataError
from lamina.runtime.detection import OUTPUTS
from lamina.runtime.errors import Failure, show


def predict(model: Model, request: Request) -> Iterator[Prediction]:
    """A prediction for each example, in order.

    A bad example is a Prediction with a failure. Raises Failure for what ails all of them.
    """
    require_choice(model.decoding is not None, request.wish)
    if model.texts:
        return predict_texts(model, request)
    if request.texts:
        raise DataError("E611", "--text: the model takes no texts", "give it files")
    return _predict_files(model, request)


def read_example(net: Net, training: Training | None, weights: Path, argument: str
                 ) -> dict[str, np.ndarray]:
    """A file as a batch of one, as the model takes it, by input."""
    pipeline = open_pipeline(net, training, read_state(weights_file(weights)))
    files, = group_files([argument], [entry.key for entry in pipeline.inputs])
    return {entry.key: read_input(pipeline, entry, files[entry.key], False)
            for entry in pipeline.inputs}


# --- one by one ---------------------------------------------------------------------------------


def _predict_files(model: Model, request: Request) -> Iterator[Prediction]:
    inputs = [entry.key for entry in model.pipeline.inputs]
    if not request.files:
        raise DataError("E611", f"no file is given for `{'`, `'.join(map(show, inputs))}`",
                        "name it after the model")
    for files in group_files(request.files, inputs):
        name = " ".join(request.files) if len(files) > 1 else str(*files.values())
        try:
            yield _predict_file(model, name, files, request.invert)
        except Failure as error:
            yield Prediction(name, failure=error)


def _predict_file(model: Model, name: str, files: Mapping[str, Path], invert: bool) -> Prediction:
    inputs = {entry.key: read_input(model.pipeline, entry, files[entry.key], invert)
              for entry in model.pipeline.inputs}
    inputs |= lengths_of(model.pipeline, inputs)
    outputs = _run(model, name, inputs)
    output = outputs[model.output]
    output = output[0] if model.batched else output
    require_finite(name, output)
    if model.net.detects:
        return Prediction(name, output, objects=_objects(model, outputs), picture=_seen(inputs))
    return classified(model, Prediction(name, output))


def _run(model: Model, name: str, inputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    assert model.runner is not None
    if "rng" in model.net.inputs:
        inputs["rng"] = SEED
    try:
        return model.runner.run(inputs)
    except ValueError as error:  # sizes that do not go together
        raise misfit(name, error) from None


def _objects(model: Model, outputs: Mapping[str, np.ndarray]) -> tuple[Detection, ...]:
    """What a detector kept of one example: boxes whose score is not 0, the surest first."""
    boxes, scores, labels = (outputs[name][0] for name in OUTPUTS)
    order = np.argsort(-scores, kind="stable")
    return tuple(Detection(class_name(model, int(labels[i])), float(scores[i]),
                           tuple(boxes[i].tolist())) for i in order if scores[i] > 0)


def _seen(inputs: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The picture among the inputs, [C, H, W] of one or three channels."""
    return next((value[0] for value in inputs.values()
                 if value.ndim == 4 and value.shape[1] in (1, 3)), None)


