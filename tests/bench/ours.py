"""Lamina as one of the systems."""

from __future__ import annotations

import time

import numpy as np
from safetensors.numpy import load_file

from lamina.api import make_runner
from lamina.compiler.options import Options
from lamina.compiler.reference import bind
from lamina.compiler.transform.training import state_keys
from lamina.runtime.cpu.executor import Executor
from lamina.tests.bench import models
from lamina.tests.bench.systems import Ready, Task


def make(task: Task) -> Ready:
    """A compiled graph with the weights of the task."""
    model = models.find(task.model, task.whole)
    graph = model.graph(task.mode)
    start = time.perf_counter()
    runner = make_runner(graph, Options(threads=task.threads))
    compiled = time.perf_counter() - start
    assert isinstance(runner, Executor)
    if runner.warning:  # then the cache is not the one whose times are told
        raise RuntimeError(runner.warning)
    weights = load_file(task.folder / models.WEIGHTS)
    runner.set_params({key: weights[key] for key in graph.params if key in weights})
    del weights  # before the optimizer's state takes as much again
    runner.set_params({key: np.zeros(graph.type(graph.params[key]).shape, np.float32)
                       for key in state_keys(graph)})
    inputs, label = models.load_inputs(task.folder, task.batch)
    if task.mode == "train":
        assert label is not None
        inputs |= {models.LABEL: label, "lr": np.float32(model.rate), "step": np.float32(1)}
    types = {name: graph.type(value) for name, value in graph.inputs.items()}
    arena = runner.plan(bind(types, inputs)).arena_bytes
    name = "loss" if task.mode == "train" else graph.outputs[0][0]
    return Ready(lambda: runner.run(inputs), lambda outputs: outputs[name],
                 {"threads": runner.threads, "compile_s": compiled, "arena_bytes": arena})
