"""Recipes carried out: training and evaluation with a target's runners."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lamina.api import Runner, Training, make_runner
from lamina.commands.bench import example_sizes
from lamina.commands.decoding import Wish, require_choice, token_errors
from lamina.commands.tuning import say, tuned
from lamina.compiler.ir.graph import Graph
from lamina.compiler.options import Options
from lamina.compiler.syntax import ast
from lamina.runtime.checkpoint import (
    BEST,
    LAST,
    CheckpointError,
    State,
    load,
    load_weights,
    require_fit,
)
from lamina.runtime.data.errors import DataError
from lamina.runtime.errors import Failure, show
from lamina.runtime.events import Callback, Warned
from lamina.runtime.train import Result, evaluate, train, trained_vocabularies
from lamina.runtime.weights import Rule, map_weights


def run_training(training: Training, options: Options, folder: Path, resume: bool,
                 report: Callback) -> Result:
    """Train a recipe. Raises Failure (data, checkpoints, training) and CompileError."""
    job = training.job()
    for phase in range(len(job.phases)):
        training.frozen(phase)  # a pattern that matches nothing is said before any work

    def runner(graph: Graph) -> Runner:
        made = make_runner(graph, tuned(graph, example_sizes(graph, job.batch), options))
        say(made, options)
        return made

    evaluator = (lambda: runner(training.evaluation.graph)) if job.valid else None
    every = options.checkpoint_every
    return train(job, lambda phase: runner(training.step(phase, every)), evaluator,
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


def run_evaluation(training: Training, options: Options, weights: Path,
                   report: Callback = lambda event: None, asked: Wish | None = None
                   ) -> dict[str, float]:
    """Averages of loss and metrics over the recipe's held-out data.

    With `asked`, a model that chooses its tokens is decoded too: "token errors" and "exact".
    Raises Failure.
    """
    if asked is not None:
        require_choice(training.net.chooses, asked)
    job, params = training.job(), read_weights(training.initial(), weights)
    if not job.valid:
        raise DataError("E605", f"recipe `{show(job.recipe)}` has no held-out data",
                        "add a line to it: data valid = ...", training.recipe.span.line)
    state = read_state(weights_file(weights))
    known = (state.vocabularies if state else {}) or trained_vocabularies(job)
    figures = evaluate(job, make_runner(training.evaluation.graph, options), params,
                       vocabularies=known, report=report)
    if asked is None or not training.net.chooses:
        return figures
    return figures | token_errors(training, options, params, known, asked)


def weights_file(path: Path) -> Path:
    """The file of weights: of a run's folder the best, else the last."""
    if not path.is_dir():
        return path
    return path / BEST if (path / BEST).exists() else path / LAST


def read_state(path: Path) -> State | None:
    """The state of a run's checkpoint; None for plain weights."""
    try:
        return load(path).state
    except CheckpointError:
        return None


def read_weights(initial: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Weights that fit `initial`, from a run's folder (the best, else the last) or a file.

    Raises CheckpointError E701 and those of `load_weights` and `require_fit`.
    """
    path = weights_file(path)
    if not path.exists():
        raise CheckpointError("E701", f"there is no {show(path)}", "give the folder of a run, "
                              "such as runs/NAME, or a safetensors file")
    params = {key: value for key, value in load_weights(path).items()
              if not key.startswith("optimizer/")}
    require_fit(params, initial, str(path))
    return params
