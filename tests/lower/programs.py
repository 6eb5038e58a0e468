"""Builds, compiles and runs small graphs, and compares them with the reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lamina.compiler.ir import Builder
from lamina.compiler.ir.graph import Graph
from lamina.compiler.lower.program import lower
from lamina.compiler.ops import GraphMath
from lamina.compiler.transform.pipeline import run_passes
from lamina.runtime.cpu.executor import Executor

Arrays = Mapping[str, np.ndarray]
KINDS = {"float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64", "bool": "bool"}


def graph_of_cases(op, cases) -> tuple[Graph, dict[str, np.ndarray]]:
    """One graph that applies `op` to every case, and its inputs."""
    builder = Builder(op.name)
    math = GraphMath(builder)
    arrays, outputs = {}, []
    for number, (operands, attrs) in enumerate(cases):
        values = []
        for index, array in enumerate(operands):
            name = f"x{number}_{index}"
            arrays[name] = array
            values.append(math.input(name=name, shape=array.shape, dtype=KINDS[str(array.dtype)]))
        result = math.apply(op, tuple(values), attrs)
        outputs.append((f"y{number}", result.value))
    graph = builder.finish(outputs)
    return graph, {name: arrays[name] for name in graph.inputs}


def run_program(graph: Graph, inputs: Arrays, params: Arrays, cache: Path, threads: int = 2,
                skip: frozenset[str] = frozenset(), check: bool = True):
    """(outputs, parameters afterwards) of the compiled graph, with memory checking."""
    final = run_passes(graph, skip=skip, check=True)[-1].graph
    executor = Executor(lower(final), threads, cache, check_memory=check)
    try:
        executor.set_params(params)
        return executor.run(inputs), executor.get_params()
    finally:
        executor.close()


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    """Equal where not finite; else within `tolerance` of the largest finite entry, and of 1e-30."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, what
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected, err_msg=what)
        return
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=what)
    size = np.abs(expected[finite]).max(initial=0.0)
    wrong = np.abs(actual[finite].astype(np.float64) - expected[finite])
    assert wrong.max(initial=0.0) <= tolerance * max(size, 1e-30), \
        f"{what}: off by {wrong.max()} of {size}"
