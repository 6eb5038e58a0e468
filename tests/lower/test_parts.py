"""Products whose result is read in equal parts, as the gates of a cell are: finished together."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from harness import run  # noqa: E402

import lamina  # noqa: E402
from lamina.compiler.ir import Builder  # noqa: E402
from lamina.compiler.ir.types import symbol  # noqa: E402
from lamina.compiler.lower.program import lower  # noqa: E402
from lamina.compiler.lower.templates import contract, text  # noqa: E402
from lamina.compiler.lower.templates.text import Epilogue, Operand  # noqa: E402
from lamina.compiler.ops import GraphMath  # noqa: E402
from lamina.compiler.reference import evaluate  # noqa: E402
from lamina.compiler.transform.fuse import partition  # noqa: E402
from lamina.compiler.transform.parts import MAX_PARTS  # noqa: E402
from lamina.compiler.transform.pipeline import run_passes  # noqa: E402
from lamina.runtime.cpu import host  # noqa: E402
from lamina.runtime.cpu.executor import Executor  # noqa: E402
from lamina.tests.lower.programs import assert_close  # noqa: E402

WIDTHS = sorted({4, 8, host.vector_width()})


# --- the kernel ---------------------------------------------------------------------------------


def gated(tile, a, b, x, bias, parts, packed, threads, cache):
    """tanh(A @ B's first part + x's first part) * second part ... + bias, and the last part."""
    (m, k), columns = a.shape, b.shape[1] // parts
    names = [f"acc{part} + x{part}" for part in range(parts)]
    value = f"tanh({names[0]}) * " + " * ".join(f"({name})" for name in names[1:])
    epilogue = Epilogue(
        (*[Operand("matrix", spaced=True)] * parts, Operand("column")),
        (f"v0 = {value} + x{parts}", f"v1 = acc{parts - 1}"),
        ((Operand("matrix"), "v0"), (Operand("matrix", spaced=True), "v1")), parts)
    panels = -(-columns // tile.nr)
    where = {"b_panel": tile.nr, "b_k": parts * columns, "b_column": 1, "b_part": columns}
    calls = []
    if packed:
        calls.append((contract.pack(tile), {
            "source": "b", "packed": "packed", "groups": parts, "columns": columns, "n0": 1,
            "n1": 1, "n2": k, "s_group": columns, "s_column": 1, "s0": 0, "s1": 0,
            "s2": parts * columns}))
        where = {"b_panel": k * tile.nr, "b_k": tile.nr, "b_column": 1,
                 "b_part": panels * k * tile.nr}
    wide = {f"x{part}": ("x", 4 * part * columns) for part in range(parts)}
    calls.append((contract.gemm(epilogue, tile), {
        "a": "a", "b": "packed" if packed else "b", **wide, f"x{parts}": "bias", "y0": "y",
        "y1": ("z", 4 * columns), **{f"space_x{part}": parts * columns for part in range(parts)},
        "space_y1": 2 * columns, "batch": 1, "M": m, "N": columns, "K": k, "a_batch": 0,
        "a_row": k, "a_k": 1, "b_batch": 0, **where}))
    outputs = {"y": ("f32", (m, columns)), "z": ("f32", (m, 2 * columns))}
    if packed:
        outputs["packed"] = ("f32", (parts * panels * k * tile.nr,))
    return run(calls, {"a": a, "b": b, "x": x, "bias": bias}, outputs, cache, threads)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("parts", [2, 3, 4, MAX_PARTS])
@pytest.mark.parametrize("tile", [make(width) for width in WIDTHS
                                  for make in (text.wide_tile, text.narrow_tile)],
                         ids=lambda tile: tile.name)
def test_parts_of_a_product_end_together(tile, parts, packed, kernel_cache):
    """Few rows and whole tiles, cut panels, sums in several stretches; operands in wider rows.

    The result's neighbours in wider rows stay as they were, and threads change no bit.
    """
    rng = np.random.default_rng(parts)
    for m, columns, k in ((1, tile.nr, 5), (3, tile.nr + 5, 300), (33, 2 * tile.nr - 1, 20),
                          (17, 3 * tile.nr, 700), (0, 4, 3), (4, 3, 1)):
        a, b, x = (rng.standard_normal(shape).astype(np.float32) / 4
                   for shape in ((m, k), (k, parts * columns), (m, parts * columns)))
        bias = rng.standard_normal(columns).astype(np.float32)
        found = [gated(tile, a, b, x, bias, parts, packed, threads, kernel_cache)
                 for threads in (1, 2, 3)]
        whole = a.astype(float) @ b.astype(float)
        cut = np.split(whole + x, parts, axis=1)
        expected = np.tanh(cut[0]) * np.prod(cut[1:], axis=0) + bias
        assert_close(found[0]["y"], expected.astype(np.float32), 2e-5, "y")
        last = np.split(whole, parts, axis=1)[-1].astype(np.float32)
        assert_close(found[0]["z"][:, columns:], last, 2e-5, "z")
        assert np.isnan(found[0]["z"][:, :columns]).all()
        for other in found[1:]:
            assert other["y"].tobytes() == found[0]["y"].tobytes()
            assert other["z"][:, columns:].tobytes() == found[0]["z"][:, columns:].tobytes()


# --- programs -----------------------------------------------------------------------------------


def swish(columns, parts=2, more=lambda m, cuts: None):
    """x @ w + b, whose first part is a gate of the second; `more` adds outputs."""
    m = GraphMath(Builder("gate"))
    x, w, b = m.input(name="x", shape=(symbol("B"), 9)), \
        m.input(name="w", shape=(9, parts * columns)), m.input(name="b", shape=(parts * columns,))
    whole = x @ w + b
    cuts = [m.slice(whole, starts=(0, part * columns), steps=(1, 1),
                    stops=(symbol("B"), (part + 1) * columns)) for part in range(parts)]
    y = m.sigmoid(cuts[0]) * cuts[1]
    found = {"y": y, **(more(m, cuts) or {})}
    return m.builder.finish([(name, value.value) for name, value in found.items()])


def kinds(graph):
    """The names of the nodes that are no input after fusion."""
    return [node.op.name for node in run_passes(graph)[-1].graph.nodes
            if node.op.kind != "source"]


def reasons(graph):
    """Why fusion kept cuts apart."""
    graph = run_passes(graph, stop_after="winograd")[-1].graph
    return {refusal.reason for refusal in partition(graph)[1]
            if graph.node(refusal.consumer).op.name == "slice"}


def run_graph(graph, width, batch, cache, threads=2, skip=frozenset()):
    """The outputs of the Program for vectors of a width, and the reference's."""
    rng = np.random.default_rng(batch)
    given = {name: rng.standard_normal([batch if not isinstance(size, int) else size for size in
                                        graph.type(value).shape]).astype(np.float32) / 3
             for name, value in graph.inputs.items()}
    executor = Executor(lower(run_passes(graph, skip=skip, check=True)[-1].graph, width), threads,
                        cache, check_memory=True)
    try:
        return executor.run(given), evaluate(graph, given, {})
    finally:
        executor.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("columns", [24, 32, 50, 96])
def test_a_gate_outside_a_loop(columns, width, kernel_cache):
    """A gated linear layer is one kernel too; the whole result and a part can be kept."""
    def keep(m, cuts):
        return {"part": cuts[1], "twice": m.tanh(cuts[1])}

    for more in (lambda m, cuts: None, keep):
        graph = swish(columns, more=more)
        assert kinds(graph) == ["fused"]
        for batch in (1, 2, 16, 35):
            found, expected = run_graph(graph, width, batch, kernel_cache)
            for name, value in expected.items():
                assert_close(found[name], value, 2e-6, name)


CELLS = {
    "lstm": "output y = x -> lstm(32)",
    "gru": "output y = x -> gru(48)",
    "gru_before": "output y = x -> gru(32, reset_after=false)",
    "both_ways": "output y = x -> lstm(32, bidirectional=true)",
    "deep": "output y = x -> lstm(32, layers=2, proj=8)",
    "peepholes": "output y = x -> lstm(24, peepholes=true)",
}


@pytest.mark.parametrize("cell", CELLS)
def test_cells_are_those_of_the_reference(cell, kernel_cache):
    """Batch 1 and more, every vector width: states, gates and what comes in lie where they lie."""
    graph = lamina.loads(f"model M {{ input x: f32[B, 5, 7]\n{CELLS[cell]} }}").M().graph
    params = {key: np.random.default_rng(index).standard_normal(graph.type(value).shape)
              .astype(np.float32) / 3 for index, (key, value) in enumerate(graph.params.items())}
    fused = run_passes(graph, check=True)[-1].graph
    for width in WIDTHS:
        program = lower(fused, width)
        inside = [step.label for loop in program.loops
                  for step in program.steps[loop.first:loop.last + 1]]
        assert not [label for label in inside if label.endswith(("copy", "pack"))], inside
        executor = Executor(program, 2, kernel_cache, check_memory=True)
        executor.set_params(params)
        for batch in (1, 6):
            x = np.random.default_rng(batch).standard_normal((batch, 5, 7)).astype(np.float32)
            found = executor.run({"x": x})["y"]
            assert_close(found, evaluate(graph, {"x": x}, params)["y"], 5e-6, f"{width} {batch}")
        executor.close()


def test_a_step_of_a_cell_is_one_kernel():
    """One product and one wait for the other threads a step, where there were two of each."""
    for cell in ("lstm(32)", "gru(32)"):
        graph = lamina.loads(f"model M {{ input x: f32[B, 5, 7]\noutput y = x -> {cell} }}"
                             ).M().graph
        program = lower(run_passes(graph)[-1].graph)
        assert [loop.last - loop.first for loop in program.loops] == [0], cell


# --- why not ------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph,reason", [
    (swish(40), "parts of 40 columns do not fill tiles of 32"),
    (swish(32, MAX_PARTS + 1), f"it has more than {MAX_PARTS} parts"),
    (swish(32, more=lambda m, cuts: {"sum": m.reduce_sum(cuts[0], axes=(1,))}),
     "more than elementwise work reads its parts"),
    (swish(32, more=lambda m, cuts: {f"e{i}": m.exp(cuts[1] * float(i)) for i in range(3)}),
     "4 results are kept, which a loop of their own writes faster"),
])
def test_every_product_that_stays_whole_has_a_reason(graph, reason):
    """`show --stage kernels --why` says it; numbers are right either way."""
    assert reasons(graph) == {reason}
    found, expected = run_graph(graph, host.vector_width(), 3, None)
    for name, value in expected.items():
        assert_close(found[name], value, 2e-6, name)


def test_unequal_parts_stay_whole():
    """Parts of other widths, or such as do not begin at a multiple of theirs."""
    for starts, stops in (((0, 32), (32, 96)), ((0, 16), (32, 48))):
        m = GraphMath(Builder("cut"))
        x, w = m.input(name="x", shape=(4, 9)), m.input(name="w", shape=(9, 96))
        whole = x @ w
        cuts = [m.slice(whole, starts=(0, start), stops=(4, stop), steps=(1, 1))
                for start, stop in zip(starts, stops, strict=True)]
        graph = m.builder.finish([(f"y{i}", m.tanh(cut).value) for i, cut in enumerate(cuts)])
        assert reasons(graph) == {"its parts are not equal"}
