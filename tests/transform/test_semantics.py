"""Passes change how a graph computes, never what: judged by the reference, in float64.

A composite that is expanded has its constants rounded to float32 (6e-8), which chains of it carry
on: 2e-7 of the largest entry.
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from lamina.compiler.ir.text import format_graph, parse_graph
from lamina.compiler.ops import OPS
from lamina.compiler.reference import evaluate
from lamina.compiler.transform.pipeline import PASSES, run_passes
from lamina.compiler.transform.simplify import simplify
from lamina.tests.lower.programs import assert_close, run_program
from lamina.tests.transform.networks import lenet_step, random_graph, values_for

OPTIONAL = [one.name for one in PASSES if one.optional]
# None, one, two, all but one and all: passes that need each other come in pairs.
SKIPS = [frozenset(c) for n in (0, 1, 2, len(OPTIONAL) - 1, len(OPTIONAL))
         for c in combinations(OPTIONAL, n)]


def double(arrays):
    """The same values as float64."""
    return {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in arrays.items()}


def agree(graph, inputs, params, expected, what):
    got = evaluate(graph, double(inputs), double(params))
    assert list(got) == list(expected)
    for name in expected:
        assert_close(np.asarray(got[name]), np.asarray(expected[name]), 2e-7, f"{what} {name}")


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_mean_the_same_after_every_pass_and_skip(seed):
    """A rule that is wrong for some operand order, size or neighbour shows in some graph."""
    graph = random_graph(seed)
    inputs, params = values_for(graph, 3, seed)
    expected = evaluate(graph, double(inputs), double(params))
    for stage in run_passes(graph, check=True):  # every prefix
        agree(stage.graph, inputs, params, expected, stage.name)
    for skip in SKIPS:
        final = run_passes(graph, skip=skip, check=True)[-1].graph
        agree(final, inputs, params, expected, f"without {sorted(skip)}")


def test_lenet_step_means_the_same_after_every_pass():
    """The same for a real training step, with gradients and updates."""
    graph = lenet_step()
    inputs, params = values_for(graph, 2)
    expected = evaluate(graph, double(inputs), double(params))
    for stage in run_passes(graph, check=True):
        agree(stage.graph, inputs, params, expected, stage.name)


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_compile_to_the_same(seed, kernel_cache):
    """Lowering meets views, broadcasts and fused chains that no single operator makes.

    Float32 against float64 through some 14 operators: 1e-4 of the largest entry.
    """
    graph = random_graph(seed)
    inputs, params = values_for(graph, 3, seed)
    expected = evaluate(graph, double(inputs), double(params))
    for skip in (frozenset(), frozenset({"fuse"}), frozenset({"layout"})):
        got, _ = run_program(graph, inputs, params, kernel_cache, skip=skip)
        for name, value in expected.items():
            assert_close(got[name], np.asarray(value, np.float32), 1e-4, f"{sorted(skip)} {name}")


@pytest.mark.parametrize("stage", run_passes(lenet_step()), ids=lambda s: s.name)
def test_printed_stages_read_back(stage):
    """What `show` prints is the whole graph: parsing gives the identical one."""
    text = format_graph(stage.graph)
    again = parse_graph(text, OPS)
    assert again == stage.graph
    assert format_graph(again) == text


def test_masks_move_before_max_pools_for_any_numbers(kernel_cache):
    """Ties, windows without a positive element, elements that win twice, and NaN."""
    case = Path(__file__).parents[1] / "passes" / "simplify" / "mask_of_winners.ir"
    graph = parse_graph(case.read_text().partition("---\n")[0], OPS)
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 3, (6, 4, 8, 8)).astype(np.float32)
    x[0, 0, :, :3], x[1, 1, 4, 4], x[2, 2, 0, 0] = -1, np.nan, np.inf
    inputs = {"x": x, "dy": rng.standard_normal((6, 4, 3, 3)).astype(np.float32)}
    simple = simplify(graph)
    assert len(simple.nodes) > len(graph.nodes)
    expected, found = evaluate(graph, inputs, {}), evaluate(simple, inputs, {})
    compiled, _ = run_program(graph, inputs, {}, kernel_cache)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
        np.testing.assert_allclose(compiled[name], expected[name], rtol=1e-6)
