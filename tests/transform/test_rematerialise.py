"""What cheap work gives back is not kept: the same numbers from less memory."""

import numpy as np
import pytest

from lamina.api import make_runner
from lamina.compiler.options import Options
from lamina.compiler.transform.pipeline import run_passes
from lamina.compiler.transform.recompute import computed_again
from lamina.tests.transform.test_recompute import feed, planned, step_of

PASS = "rematerialise"


def again(model):
    """(operator, path) of what the pass computes again in a model's training step."""
    graph = run_passes(step_of(model)[0], stop_after=PASS)[-1].graph
    return [(node.op.name, node.path) for node in computed_again(graph)]


def trained(model, cache, skip):
    """Losses of three steps, and the parameters after them."""
    graph, initial = step_of(model)
    runner = make_runner(graph, Options(cache_folder=cache, skip=skip))
    zero = {key: np.zeros(graph.type(value).shape, np.float32)
            for key, value in graph.params.items()}
    runner.set_params({**zero, **{key: initial[key] for key in zero if key in initial}})
    losses = [runner.run(feed(graph, number))["loss"] for number in (1, 2, 3)]
    params = runner.get_params()
    runner.close()
    return np.array(losses), params


@pytest.mark.parametrize("model", ["Residual", "Dropped"])
def test_training_stays_the_same(model, kernel_cache):
    """What is computed again has the same bits, but its readers may be other kernels.

    Their sums then run in another order: after three steps 1e-5 of the largest entry, seen 9e-7.
    """
    assert again(model)
    losses, params = trained(model, kernel_cache, frozenset({PASS}))
    found, after = trained(model, kernel_cache, frozenset())
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    for key in params:
        size = np.abs(params[key]).max(initial=1e-30)
        assert np.abs(after[key] - params[key]).max(initial=0.0) <= 1e-5 * size, key


def test_a_residual_network_keeps_one_value_for_each_normalisation():
    """And every second sum: the others come of it and of a centred value that is kept anyway."""
    found = again("Residual")
    relus = [path for name, path in found if name == "relu"]
    assert relus.count("body.3") == 2 and relus.count("body.2") == 1  # both, and the inner one
    assert relus.count("body.1") == 2 and relus.count("body.0") == 1
    assert ("pad", "body.0.c2") in found  # a border around it is no reason to keep it
    assert not {name for name, _ in found} & {"conv2d", "reduce_sum", "rsqrt", "sqrt"}
    step, _ = step_of("Residual")
    less, more = (planned(step, {"B": 64}, skip)[1].arena_bytes
                  for skip in (frozenset(), frozenset({PASS})))
    assert less < 0.8 * more


@pytest.mark.parametrize("model", ["Plain", "Pools", "Deep", "Recurrent"])
def test_nothing_is_computed_again_without_gain(model):
    """Functions that take long, and what no kept value gives back: a convolution with its relu."""
    assert again(model) == []
