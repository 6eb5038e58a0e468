"""`--tune`: measures the algorithms of convolutions once, at the sizes that run, and keeps it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lamina.api import Runner, compiler_text, make_runner, program_name
from lamina.commands.console import BuildLine
from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.types import substitute
from lamina.compiler.ops.define import REGISTRY, GraphMath
from lamina.compiler.options import Measured, Options
from lamina.compiler.transform.pipeline import graph_before, optional, run_passes
from lamina.compiler.transform.training import UPDATE
from lamina.compiler.transform.winograd import (
    DIRECT,
    TUNED,
    choices,
    contraction_key,
    variants_of,
)
from lamina.runtime.cache import PROGRAM, Cache, default_folder
from lamina.runtime.cpu.executor import Executor
from lamina.runtime.cpu.threads import available_cores
from lamina.runtime.tuned import add_times, read_times, table_key

ENOUGH = 0.3  # seconds of work for each algorithm of a contraction
LEAST, MOST = 3, 30  # runs that are timed, of which the fastest counts
RESULT = "y"

Shapes = tuple[bool, tuple[int, ...], tuple[int, ...]]  # of weights?, NHWC result, weights


def remembered(graph: Graph, sizes: Mapping[str, int], options: Options) -> Measured:
    """What was measured on this machine with this many threads; nothing is measured."""
    cache, key = _table(options)
    changing = any(name.startswith(UPDATE) for name, _ in graph.outputs)
    return Measured(read_times(cache, key), sizes, changing)


def tuned(graph: Graph, sizes: Mapping[str, int], options: Options) -> Options:
    """The options with the times of all convolutions of a graph, measured where they are not known.

    `sizes` are numbers for the sizes that it leaves open. Without `options.tune`, and where
    nothing is chosen, the options as they are.
    """
    if not options.tune or options.target != "cpu" or options.skip & {"winograd", "layout"}:
        return options
    known = remembered(graph, sizes, options)
    found = replace(options, measured=known)
    cache, key = _table(options)
    if cache.holds(program_name(graph, found), PROGRAM):  # made when all had been measured
        return found
    wanted = {name: (shapes, missing)
              for name, shapes in convolutions(graph, known, options.skip).items()
              if (missing := [algorithm for algorithm in algorithms_of(shapes)
                              if algorithm not in known.seconds.get(name, ())])}
    line = options.building if isinstance(options.building, BuildLine) else None
    seconds = known.seconds
    for number, (name, (shapes, missing)) in enumerate(wanted.items()):
        times = dict(seconds.get(name, {}))
        for algorithm in missing:
            if line is not None:
                line.show(f"measuring convolutions {number}/{len(wanted)}")
            times[algorithm] = seconds_of(name, shapes, algorithm, known.changing, options)
        seconds = add_times(cache, key, {name: times})
    if line is not None:
        line.show("")
    return replace(options, measured=replace(known, seconds=seconds))


def note(runner: Runner) -> str:
    """How many convolutions run as measured, and how many of them not as estimated."""
    meta = runner.program.meta if isinstance(runner, Executor) else {}
    if TUNED not in meta:
        return ""
    kinds, other = meta[TUNED]  # type: ignore[misc]
    return (f"{kinds} kind{'' if kinds == 1 else 's'} of convolution as measured on this machine, "
            f"{other} of them not as estimated")


def convolutions(graph: Graph, measured: Measured, skip: frozenset[str]) -> dict[str, Shapes]:
    """The convolutions between whose algorithms there is a choice, with their sizes, by key."""
    found: dict[str, Shapes] = {}
    before = graph_before(run_passes(graph, "winograd", optional(skip)), "winograd")
    for gradient, result, weights in choices(before) if before else ():
        key = contraction_key(gradient, result, weights, measured)
        if key:
            found[key] = (gradient, *(tuple(substitute(size, measured.sizes) for size in shape)
                                      for shape in (result, weights)))  # type: ignore[assignment]
    return found


# --- measuring ----------------------------------------------------------------------------------


def algorithms_of(shapes: Shapes) -> list[str]:
    """The names of those that can run a convolution."""
    return [*(one.name for one in variants_of(shapes[2][2])), DIRECT]


def seconds_of(name: str, shapes: Shapes, algorithm: str, changing: bool, options: Options
               ) -> float:
    """The least seconds of a convolution alone, its border and its packed weights included.

    Weights that do not change are packed once, which takes no time of a run.
    """
    times = {one: 1.0 if one == algorithm else 2.0 for one in algorithms_of(shapes)}
    forced = replace(options, measured=Measured({name: times}, {}, changing))
    graph = convolution(shapes, changing)
    runner = make_runner(graph, forced)
    assert isinstance(runner, Executor)
    rng = np.random.default_rng(0)
    arrays = {key: rng.standard_normal(graph.type(value).shape, np.float32)
              for key, value in {**graph.inputs, **graph.params}.items()}
    runner.set_params({key: arrays[key] for key in graph.params})
    inputs = {key: arrays[key] for key in graph.inputs}
    once = float(runner.measure(inputs).whole.min())
    rounds = min(MOST, max(LEAST, int(ENOUGH / once)))
    steps = runner.measure(inputs, rounds).steps
    runner.close()
    own = [not step.label.startswith(f"{RESULT} ") for step in runner.program.steps]
    return float(steps[:, own].sum(axis=1).min())


def convolution(shapes: Shapes, changing: bool) -> Graph:
    """A graph of one convolution with a border of half its kernel, or of its weights' gradient."""
    gradient, result, (outputs, channels, taps, _) = shapes
    images, rows, columns, _ = result
    builder = Builder("measured")
    m = GraphMath(builder)
    border = taps // 2
    x = m.input(name="x", shape=(images, rows, columns, channels))
    attrs = {"padding": ((border, taps - 1 - border),) * 2, "layout": "nhwc"}
    if gradient:
        dy = m.input(name="dy", shape=(images, rows, columns, outputs))
        y = m.apply(REGISTRY["conv2d_weight_grad"], (x, dy), {**attrs, "kernel": (taps, taps)})
    else:
        shape = (outputs, channels, taps, taps)
        w = m.input(name="w", shape=shape) if changing else m.param(key="w", shape=shape)
        y = m.apply(REGISTRY["conv2d"], (x, w), attrs)
    return builder.finish([(RESULT, y.value)])


def _table(options: Options) -> tuple[Cache, str]:
    cache = Cache.open(options.cache_folder or default_folder(os.environ))
    return cache, table_key(options.threads or available_cores(), compiler_text())


def say(runner: Runner, options: Options) -> None:
    """What `note` gives, on standard error."""
    text = note(runner)
    if isinstance(options.building, BuildLine):
        options.building.show("")
    if text:
        sys.stderr.write(f"note: {text}\n")
