"""What a whole Program promises: the same bits, updates that see old values, names kept out."""

import numpy as np
import pytest

import lamina
from lamina.commands.bench import plain_training_step
from lamina.compiler.ir import Builder
from lamina.compiler.ir.types import symbol
from lamina.compiler.lower.program import lower
from lamina.compiler.ops import GraphMath
from lamina.compiler.reference import evaluate
from lamina.compiler.transform.fuse import partition
from lamina.compiler.transform.pipeline import run_passes
from lamina.runtime.cpu import executor as executing
from lamina.runtime.cpu.executor import Executor
from lamina.tests.lower.programs import assert_close, run_program
from lamina.tests.transform.networks import lenet, lenet_step, perceptron_step, values_for


def program_of(graph):
    return lower(run_passes(graph, check=True)[-1].graph)


def steps_taken(program, threads, folder, inputs, params, count=3):
    """The bytes of outputs and parameters after some steps."""
    executor = Executor(program, threads, folder)
    executor.set_params(params)
    outputs = [executor.run(inputs) for _ in range(count)]
    executor.close()
    last = executor.get_params()
    return [o[k].tobytes() for o in outputs for k in o] + [last[k].tobytes() for k in last]


def test_lenet_step_is_right_and_stays_in_its_memory(kernel_cache):
    """The loss and every updated parameter, against float64; float32 sums over 50176 pixels."""
    graph = lenet_step()
    inputs, params = values_for(graph, 5)
    wide = {k: v.astype(np.float64) for k, v in params.items()}
    expected = evaluate(graph, inputs, wide)
    outputs, after = run_program(graph, inputs, params, kernel_cache)
    assert_close(outputs["loss"], np.float32(expected["loss"]), 1e-6, "loss")
    for key in params:
        assert_close(after[key], expected[f"update:{key}"].astype(np.float32), 2e-5, key)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_lenet_step_gives_the_same_bits_on_any_number_of_threads(batch, kernel_cache):
    """Work is split by sizes alone; a split by threads would round differently."""
    graph = lenet_step()
    inputs, params = values_for(graph, batch)
    program = program_of(graph)
    first, *others = (steps_taken(program, n, kernel_cache, inputs, params) for n in (1, 2, 3))
    assert all(other == first for other in others)


def test_cold_and_warm_cache_give_the_same_bits(tmp_path):
    """Compiled just now or loaded from a file: the same code."""
    graph = perceptron_step()
    inputs, params = values_for(graph, 6)
    program = program_of(graph)
    cold = steps_taken(program, 2, tmp_path, inputs, params)
    executing.load.__globals__["_LINKED"].clear()  # as in a new process
    assert steps_taken(program, 2, tmp_path, inputs, params) == cold


def test_another_batch_size_compiles_nothing(kernel_cache, monkeypatch):
    """Kernels take sizes as arguments."""
    graph = lenet_step()
    inputs, params = values_for(graph, 2)
    executor = Executor(program_of(graph), 2, kernel_cache, check_memory=True)
    monkeypatch.setattr(executing, "load", None)
    for batch in (2, 7):
        inputs, params = values_for(graph, batch)
        executor.set_params(params)
        got = executor.run(inputs)["loss"]
        assert_close(got, np.float32(evaluate(graph, inputs, params)["loss"]), 2e-6, str(batch))
    executor.close()


HOSTILE = ("for", "def kernel", "'''", '"""', "a\nimport os", "\u202egnp", "x" * 5000, "p0", "args")


@pytest.mark.parametrize("name", HOSTILE)
def test_names_do_not_reach_kernels(name):
    """A model file can name things as it likes: kernels are byte for byte the same."""
    plain, hostile = (program_of(lenet(prefix)) for prefix in ("", name))
    assert [k.source for k in hostile.kernels] == [k.source for k in plain.kernels]
    assert [k.name for k in hostile.kernels] == [k.name for k in plain.kernels]


# --- updates in place ---------------------------------------------------------------------------


def updating(make):
    """A graph over x[3, 3] and parameters a and b [3, 3]; `make` gives its outputs."""
    m = GraphMath(Builder("updating"))
    x = m.input(name="x", shape=(3, 3))
    a, b = m.param(key="a", shape=(3, 3)), m.param(key="b", shape=(3, 3))
    return m.builder.finish([(name, value.value) for name, value in make(m, x, a, b)])


UPDATES = {
    "read by a product": lambda m, x, a, b: [
        ("update:a", a * 0.5), ("y", m.matmul(x, a))],
    "read through a view": lambda m, x, a, b: [
        ("update:a", a - 1.0), ("y", m.matmul(x, m.transpose(a, perm=(1, 0))))],
    "reads its own transpose": lambda m, x, a, b: [
        ("update:a", a + m.transpose(a, perm=(1, 0)) * x)],
    "reads its own rows": lambda m, x, a, b: [
        ("update:a", a + m.slice(a, starts=(0, 0), stops=(1, 3), steps=(1, 1)))],
    "two that read each other": lambda m, x, a, b: [
        ("update:a", a + b * x), ("update:b", a * 2.0 - b)],
    "exchange": lambda m, x, a, b: [("update:a", b), ("update:b", a)],
    "copied and changed": lambda m, x, a, b: [("update:a", b), ("update:b", b * 3.0 + x)],
    "transposed exchange": lambda m, x, a, b: [
        ("update:a", m.transpose(b, perm=(1, 0))), ("update:b", m.transpose(a, perm=(1, 0)))],
    "given out as it was": lambda m, x, a, b: [("update:a", a * x), ("y", a)],
    "its view given out": lambda m, x, a, b: [
        ("update:a", a * x), ("y", m.transpose(a, perm=(1, 0)))],
    "after a sum of itself": lambda m, x, a, b: [
        ("update:a", a * 0.9), ("y", m.reduce_sum(a, axes=(0, 1)))],
    "the same new value twice": lambda m, x, a, b: [
        ("update:a", a * x), ("update:b", a * x), ("y", a * x)],
}


@pytest.mark.parametrize("case", UPDATES)
def test_updates_see_old_values(case, kernel_cache):
    """A parameter may be overwritten only by its last reader."""
    graph = updating(UPDATES[case])
    inputs, params = values_for(graph, 1)
    expected = evaluate(graph, inputs, params)
    outputs, after = run_program(graph, inputs, params, kernel_cache)
    for name, value in expected.items():
        key = name.removeprefix("update:")
        got = after[key] if name.startswith("update:") else outputs[name]
        assert_close(got, value, 2e-6, name)


def test_optimizer_updates_are_in_place():
    """What is legal is done: no step of the program copies a parameter."""
    program = program_of(lenet_step())
    assert not [step.label for step in program.steps if step.label.startswith("update:")]


def test_parts_are_written_where_the_whole_lies(kernel_cache):
    """What only a concatenation reads needs no memory and no copy of its own."""
    m = GraphMath(Builder("parts"))
    x, y = (m.input(name=name, shape=(5, 3)) for name in "xy")
    once, twice = m.tanh(x), m.exp(x * y)
    whole = m.concat(m.concat(once, twice, axis=1), m.sigmoid(y), twice, x, axis=1)
    total = m.reduce_sum(whole, axes=(0,))
    graph = m.builder.finish([("whole", whole.value), ("sum", total.value)])
    labels = [step.label for step in program_of(graph).steps]
    copies = [label for label in labels if "copy" in label]
    assert len(copies) == 3, labels  # `x`, and `twice`, which two concatenations read
    inputs, _ = values_for(graph, 5)
    found, _ = run_program(graph, inputs, {}, kernel_cache)
    for name, expected in evaluate(graph, inputs, {}).items():
        assert_close(found[name], expected, 1e-5, name)


# --- fusion says why not ------------------------------------------------------------------------


def test_every_refusal_carries_its_reason():
    """`--why NODE` answers from these."""
    stages = run_passes(lenet_step())
    graph, refusals = partition(stages[-2].graph)
    assert graph == stages[-1].graph
    assert refusals and all(len(r.reason) > 10 and r.producer != r.consumer for r in refusals)
    reasons = {r.reason for r in refusals}
    assert "its consumer computes it from what is stored anyway" in reasons


def test_a_size_that_inputs_bind_does_not_end_a_product(kernel_cache):
    """It is an argument of a loop, but no number in the text that finishes a product."""
    m = GraphMath(Builder("size"))
    x, w = m.input(name="x", shape=(symbol("B"), 3, 4)), m.input(name="w", shape=(4, 5))
    y = (x @ w) * m.lift(symbol("B") * 3, "f32") + 1.0
    graph = m.builder.finish([("y", y.value)])
    inputs = {"x": np.ones((2, 3, 4), np.float32), "w": np.full((4, 5), 0.5, np.float32)}
    found, _ = run_program(graph, inputs, {}, kernel_cache)
    assert_close(found["y"], np.full((2, 3, 5), 13, np.float32), 1e-6, "y")


def test_slope_of_tanh_is_not_stored():
    """1 - y y is computed again from y: a convolution's kernel writes one tensor, not two."""
    final = run_passes(lenet_step())[-1].graph
    forward = [n for n in final.nodes if n.body and n.attributes["pattern"] == "epilogue"
               and any(inner.op.name == "tanh" for inner in n.body.nodes)]
    assert len(forward) == 4 and all(len(node.outs) == 1 for node in forward)


# --- not a number, infinity ---------------------------------------------------------------------

EDGES = np.array([0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 1.0, -1.0, 3.4028235e38, -3.4028235e38,
                  np.inf, -np.inf, np.nan], np.float32)
ONE = ("neg", "abs", "exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "erf", "relu", "floor",
       "log1p", "expm1", "sin", "cos", "sign")  # of zero, sign gives either zero
TWO = ("add", "sub", "mul", "div", "maximum", "minimum", "less", "less_equal", "equal",
       "not_equal", "greater", "greater_equal", "pow")


def test_elementwise_kernels_treat_edges_as_numpy_does(kernel_cache):
    """Vector code that clamps or selects easily loses a NaN, an infinity or a sign.

    Results below the smallest normal number may be off by one step of it.
    """
    m = GraphMath(Builder("edges"))
    x, y = m.input(name="x", shape=(144,)), m.input(name="y", shape=(144,))
    outputs = [(name, getattr(m, name)(x).value) for name in ONE if hasattr(m, name)]
    outputs += [(name, getattr(m, name)(x, y).value) for name in TWO]
    graph = m.builder.finish(outputs)
    left, right = (part.reshape(-1) for part in np.meshgrid(EDGES, EDGES))
    inputs = {"x": left, "y": right}
    expected = evaluate(graph, inputs, {})
    got, _ = run_program(graph, inputs, {}, kernel_cache, skip=frozenset({"simplify"}))
    for name, value in expected.items():
        if value.dtype == np.bool_:
            np.testing.assert_array_equal(got[name], value, err_msg=name)
            continue
        np.testing.assert_array_equal(np.isnan(got[name]), np.isnan(value), err_msg=name)
        with np.errstate(invalid="ignore"):
            near = np.isclose(got[name], value, rtol=6e-7, atol=3e-45, equal_nan=True)
        if name in ("sin", "cos"):  # beyond 1e13 they promise the range alone
            near |= (np.abs(left) > 1e13) & (np.abs(got[name]) <= 1)
        assert near.all(), (name, left[~near], right[~near], got[name][~near], value[~near])
        zero = (value == 0) & (name != "sign")
        np.testing.assert_array_equal(np.signbit(got[name][zero]), np.signbit(value[zero]),
                                      err_msg=f"{name}: the sign of zero")


def test_a_parameter_changes_when_its_last_reader_has_run():
    """So gradients die at once: with all updates at the end every gradient would be alive there."""
    graph = run_passes(lenet_step())[-1].graph
    program = lower(graph)
    written = {program.buffers[number].key: index for index, step in enumerate(program.steps)
               for kind, number in step.args
               if kind == "buffer" and program.buffers[number].kind == "param"}
    weights = [key for key in graph.params if key.endswith("weight") and "/" not in key]
    assert len(weights) == 5  # in the order of the layers: the last layer's changes first
    order = [written[key] for key in weights]
    assert order == sorted(order, reverse=True)


def test_an_image_is_turned_to_channels_last_once():
    """The first convolution and the gradient of its weights read the same copy."""
    net = lamina.loads("model M {\n  input image: f32[B, 3, 8, 8]\n  output logits = image -> "
                       "conv(8, 3) -> flatten -> linear(2)\n}\n").M()
    program = program_of(plain_training_step(net))
    readers = [step.label for step in program.steps for kind, number in step.args
               if kind == "buffer" and program.buffers[number].key == "image"]
    assert readers == ["conv: conv2d+add copy"]


# --- what runs once -----------------------------------------------------------------------------


def convolved():
    """A direct and a Winograd convolution, whose weights are prepared, and a product."""
    m = GraphMath(Builder("net"))
    x = m.input(name="x", shape=(symbol("B"), 3, 9, 9))
    weights = {key: m.param(key=key, shape=shape) for key, shape in
               {"a": (32, 3, 3, 3), "b": (32, 32, 3, 3), "c": (9 * 9 * 32, 5)}.items()}
    y = m.relu(m.conv2d(x, weights["a"], padding=1))
    y = m.conv2d(y, weights["b"], padding=1)
    flat = m.reshape(y, shape=(symbol("B"), 9 * 9 * 32))
    return m.builder.finish([("y", m.matmul(flat, weights["c"]).value)])


def test_prepared_weights_follow_their_parameters(kernel_cache):
    """They are prepared when parameters are set, once for all batch sizes, and never used stale."""
    graph = convolved()
    program = program_of(graph)
    assert [step.helper for step in program.steps[:program.once]] == ["pack", "weights"]
    executor = Executor(program, 2, kernel_cache)
    rng = np.random.default_rng(0)
    for scale in (0.1, 0.2):
        params = {key: (scale * rng.standard_normal(graph.type(value).shape)).astype(np.float32)
                  for key, value in graph.params.items()}
        executor.set_params(params)
        for batch in (2, 1, 2):
            inputs = {"x": rng.standard_normal((batch, 3, 9, 9)).astype(np.float32)}
            expected = evaluate(graph, inputs, params)["y"]
            assert_close(executor.run(inputs)["y"], expected, 1e-5, f"{scale}, batch {batch}")
    executor.close()


def test_a_training_step_prepares_nothing_once():
    """There parameters change in every run."""
    assert program_of(lenet_step()).once == 0
