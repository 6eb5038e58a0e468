"""Recipes carried out: training, evaluation and prediction with a target's runners."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lamina.api import Training, make_runner
from lamina.compiler.options import Options
from lamina.compiler.syntax import ast
from lamina.runtime.checkpoint import BEST, LAST, CheckpointError, load_weights, require_fit
from lamina.runtime.data.dataset import Dataset, open_data
from lamina.runtime.data.errors import DataError
from lamina.runtime.data.pictures import decode
from lamina.runtime.data.sources import Arrays
from lamina.runtime.errors import Failure, reason, show
from lamina.runtime.events import Callback, Warned
from lamina.runtime.train import Result, evaluate, train
from lamina.runtime.weights import Rule, map_weights


def run_training(training: Training, options: Options, folder: Path, resume: bool,
                 report: Callback) -> Result:
    """Train a recipe. Raises Failure (data, checkpoints, training) and CompileError."""
    job = training.job()
    for phase in range(len(job.phases)):
        training.frozen(phase)  # a pattern that matches nothing is said before any work
    evaluator = (lambda: make_runner(training.evaluation.graph, options)) if job.valid else None
    return train(job, lambda phase: make_runner(training.step(phase), options), evaluator,
                 initial_weights(training, report), folder, resume, report)


def initial_weights(training: Training, report: Callback = lambda event: None
                    ) -> dict[str, np.ndarray]:
    """Initial parameters, with those that the recipe's `weights` bring from files."""
    initial = training.initial()
    for statement in training.recipe.weights:
        path = Path(statement.file.value)
        base = training.module.folder
        if base is not None and not path.is_absolute() and (base / path).exists():
            path = base / path
        rules = [Rule(rule.source.value, rule.target.value, rule.span.line)
                 if isinstance(rule, ast.Map) else Rule(rule.pattern.value, None, rule.span.line)
                 for rule in statement.rules]
        try:
            mapped = map_weights(load_weights(path), rules, initial, str(path))
        except Failure as error:
            error.line = error.line or statement.span.line
            raise
        initial |= mapped.tensors
        if mapped.missing:
            listed = ", ".join(mapped.missing[:4]) + (", ..." if len(mapped.missing) > 4 else "")
            report(Warned(f"{path} brings {len(mapped.tensors)} tensors; "
                          f"{len(mapped.missing)} start afresh: {listed}"))
    return initial


def run_evaluation(training: Training, options: Options, weights: Path) -> dict[str, float]:
    """Averages of loss and metrics over the recipe's held-out data."""
    job, params = training.job(), read_weights(training, weights)
    if not job.valid:
        raise DataError("E605", f"recipe `{show(job.recipe)}` has no held-out data",
                        "add a line to it: data valid = ...", training.recipe.span.line)
    return evaluate(job, make_runner(training.evaluation.graph, options), params)


def read_weights(training: Training, path: Path) -> dict[str, np.ndarray]:
    """Weights from a run's folder (the best, else the last) or a safetensors file."""
    if path.is_dir():
        path = path / BEST if (path / BEST).exists() else path / LAST
    if not path.exists():
        raise CheckpointError("E701", f"there is no {show(path)}", "give the folder of a run, "
                              "such as runs/NAME, or a safetensors file")
    params = {key: value for key, value in load_weights(path).items()
              if not key.startswith("optimizer/")}
    require_fit(params, training.initial(), str(path))
    return params


def run_prediction(training: Training, options: Options, weights: Path, files: list[Path],
                   invert: bool) -> list[dict[str, Any]]:
    """The likeliest class of each file with its probability."""
    params = read_weights(training, weights)
    job = training.job()
    data = open_data(job.valid or job.train, Path(job.folder))
    runner = make_runner(training.net.graph, options)
    runner.set_params({key: params[key] for key in training.net.graph.params})
    output = next(iter(training.net.outputs))
    found = []
    for path in files:
        inputs = {job.inputs[0].key: _example(data, path, invert)}
        logits = runner.run(inputs)[output][0].astype(np.float64)
        if not np.isfinite(logits).all():
            raise DataError("E611", f"the model's output for {show(path)} is not finite",
                            "look for NaN or infinity in the file and in the weights")
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = int(shares.argmax())
        label = data.classes[best] if data.classes else str(best)
        found.append({"input": str(path), "label": label, "probability": float(shares[best]),
                      "probabilities": shares.tolist()})
    return found


def _example(data: Dataset, path: Path, invert: bool) -> np.ndarray:
    """A file as a batch of one, through the transforms of the held-out data."""
    field = data.fields[0]
    shape = data.source.read(np.array([0]))[field][0].shape
    array = _read(path, shape)
    if shape[0] == 1 and array.shape == shape[1:]:
        array = array[None]  # one channel may go without saying
    if array.shape != shape:
        raise DataError("E609", f"{show(path)} has shape {list(array.shape)}, the data "
                        f"{list(shape)}", "resize the picture, or give an array of that shape")
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
    if invert:
        array = (255 if array.dtype == np.uint8 else 1) - array
    source = Arrays({field: array[None]}, data.classes, str(path))
    return replace(data, source=source).fetch(np.array([0]))[field]


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if path.suffix != ".npy":
        channels = shape[0] if len(shape) == 3 else 1
        return decode(path, (shape[-2], shape[-1]), channels)
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError("E601", f"there is no file {show(path)}") from None
    except OSError as error:
        raise DataError("E602", f"cannot read {show(path)}: {reason(error)}") from None
    except (ValueError, EOFError):
        array = None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "uif":
        raise DataError("E602", f"{show(path)} is not an array of numbers",
                        "write it with numpy.save(file, array)")
    if array.dtype.kind in "ui" and array.size and array.min() >= 0 and array.max() < 256:
        return array.astype(np.uint8)
    return array
