"""How long a model takes: one compiled program, timed step by step in this process."""

from __future__ import annotations

import resource
import time
from typing import Any

import numpy as np

from lamina.api import Net, Runner, initial_values, make_runner, parse_expression
from lamina.commands.tuning import note, tuned
from lamina.compiler.errors import CompileError, Diagnostic, Source, Span
from lamina.compiler.frontend.build import Objective
from lamina.compiler.inspect.cost import batch_size, summarize
from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.types import product, substitute, symbols_of
from lamina.compiler.ops.define import GraphMath
from lamina.compiler.options import Every, Options
from lamina.compiler.transform.recompute import recompute
from lamina.compiler.transform.training import Rule, training_step
from lamina.runtime.cpu.executor import Executor
from lamina.runtime.memory import require_memory

BATCH = 64
GEMM_SIZE = 1024
COPY_SIZE = 1 << 24  # floats: far more than caches hold
MEGA = 1 << 20


def bench(net: Net, graph: Graph | None, mode: str, batch: int | None, steps: int,
          options: Options) -> dict[str, Any]:
    """Times of `steps` runs, and what the machine can do. Raises CompileError for two batches.

    `batch` None: that of the given sizes, or 64. `graph` is the training step for mode "train".
    Times are in seconds, memory in MiB, rates in 10^9 floating-point operations a second (2 for
    each multiply-accumulate; a training step counts 3 times a forward pass).
    """
    forward = net.graph
    batch = choose_batch(forward, batch)
    program = graph if mode == "train" and graph is not None else forward
    options = tuned(program, example_sizes(program, batch), options)
    start = time.perf_counter()
    runner = make_runner(program, options)
    runner.set_params(initial_values(program, 0))
    compiled = time.perf_counter() - start
    require_room(runner, program, batch)
    inputs = example_inputs(program, batch)
    runner.run(inputs)
    started = time.perf_counter() - start
    times = [_timed(runner, inputs) for _ in range(steps)]
    median, least = float(np.median(times)), float(np.min(times))
    macs = summarize(forward).macs
    flops = 2 * substitute(macs, example_sizes(forward, batch)) * batch
    flops *= 3 if mode == "train" else 1
    return {
        "model": net.definition.name, "target": options.target, "mode": mode, "batch": batch,
        "input": sizes_text(forward, batch), "threads": getattr(runner, "threads", 1),
        "left_out": " ".join(sorted(options.skip)) or None,
        "checkpoint_every": options.checkpoint_every,
        "tuned": note(runner) or None,
        "median_s": median, "min_s": least, "compile_s": compiled, "start_s": started,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGA,
        "arena_mb": _arena(runner, program, batch), "gflops": float(flops) / median / 1e9,
        "gemm_gflops": gemm_rate(options) if options.target == "cpu" else None,
    }


def choose_batch(graph: Graph, asked: int | None) -> int:
    """The number of examples of a run, which --input may have fixed: then E416 for another."""
    fixed = batch_size(graph)
    if not isinstance(fixed, int):
        return asked or BATCH
    if asked not in (None, fixed):
        text = f"--batch {asked}"
        raise CompileError(Diagnostic("E416", f"the model's batch is {fixed}, not {asked}",
                                      Span(Source("the command line", text), 0, len(text)),
                                      help="leave --batch out"))
    return fixed


def plain_training_step(net: Net, checkpoint_every: Every = None) -> Graph:
    """A training step for a model without a recipe: cross-entropy of its first output, SGD."""
    from_output = next(iter(net.outputs))
    loss = parse_expression(f"cross_entropy({from_output}, label)")
    step = training_step(net.build(True, Objective(loss)).graph, Rule("sgd", {"momentum": 0.9}))
    return recompute(step, checkpoint_every)


def require_room(runner: Runner, graph: Graph, batch: int) -> None:
    """MemoryError before inputs are made that no run could take."""
    sizes = example_sizes(graph, batch)
    types = [graph.type(value) for value in graph.inputs.values()]
    needed = 4 * sum(int(substitute(product(type.shape), sizes)) for type in types)  # type: ignore
    if isinstance(runner, Executor):
        needed += runner.plan(sizes).arena_bytes
    require_memory(needed, "the run's arena with its inputs")


def _timed(runner: Runner, inputs: dict[str, np.ndarray]) -> float:
    start = time.perf_counter()
    runner.run(inputs)
    return time.perf_counter() - start


def example_sizes(graph: Graph, batch: int) -> dict[str, int]:
    """A number for every symbol of the inputs: the batch, and 224 for anything else."""
    sizes: dict[str, int] = {}
    for value in graph.inputs.values():
        shape = graph.type(value).shape
        for axis, size in enumerate(shape):
            for symbol in symbols_of(size):
                sizes.setdefault(symbol.name, batch if axis == 0 else 224)
    return sizes


def sizes_text(graph: Graph, batch: int) -> str:
    """The sizes that were run, as --input takes them: image=64x1x32x32."""
    sizes = example_sizes(graph, batch)
    return " ".join(
        f"{name}={'x'.join(str(substitute(size, sizes)) for size in graph.type(value).shape)}"
        for name, value in graph.inputs.items())


def example_inputs(graph: Graph, batch: int) -> dict[str, np.ndarray]:
    """Random numbers for every input of a graph."""
    rng = np.random.default_rng(0)
    sizes = example_sizes(graph, batch)
    inputs: dict[str, np.ndarray] = {}
    for name, value in graph.inputs.items():
        type = graph.type(value)
        shape = tuple(substitute(size, sizes) for size in type.shape)
        if name in ("lr", "step"):
            inputs[name] = np.array(1e-3 if name == "lr" else 1, np.float32)
        elif type.dtype == "f32":
            inputs[name] = rng.standard_normal(shape, np.float32)  # type: ignore[call-overload]
        else:
            inputs[name] = rng.integers(0, 2, shape).astype(np.int32)  # type: ignore[arg-type]
    return inputs


def _arena(runner: Runner, graph: Graph, batch: int) -> float | None:
    if not isinstance(runner, Executor):
        return None
    return runner.plan(example_sizes(graph, batch)).arena_bytes / MEGA


def gemm_rate(options: Options, size: int = GEMM_SIZE, rounds: int = 5) -> float:
    """The machine's rate of a large matrix product through the same building block, in GFLOP/s."""
    return product_rate(options, (size, size, size), rounds)


def product_rate(options: Options, sizes: tuple[int, int, int], rounds: int = 5) -> float:
    """The rate of a product of so many rows and columns, of sums of so many terms, in GFLOP/s."""
    builder = Builder("gemm")
    m = GraphMath(builder)
    rows, columns, depth = sizes
    product = m.matmul(m.input(name="a", shape=(rows, depth)),
                       m.input(name="b", shape=(depth, columns)))
    seconds = _least(builder.finish([("c", product.value)]), options, rounds)
    return 2 * rows * columns * depth / seconds / 1e9


def copy_rate(options: Options, size: int = COPY_SIZE, rounds: int = 5) -> float:
    """The machine's rate of a plain copy of `size` floats, read and written, in GB/s."""
    builder = Builder("copy")
    m = GraphMath(builder)
    # A sum with nothing: a result that is its input would have no step.
    copied = m.input(name="a", shape=(size,)) + 0.0
    return 8 * size / _least(builder.finish([("c", copied.value)]), options, rounds) / 1e9


def _least(graph: Graph, options: Options, rounds: int) -> float:
    """The seconds of the steps of a graph over random numbers, each in its fastest run."""
    runner = make_runner(graph, options)
    inputs = example_inputs(graph, BATCH)
    runner.run(inputs)
    if isinstance(runner, Executor):
        best = sum(seconds for _, seconds in runner.profile(inputs, rounds))
    else:
        best = min(_timed(runner, inputs) for _ in range(rounds))
    runner.close()
    return best
