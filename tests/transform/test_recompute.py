"""Recomputation: the same numbers from less memory, whatever the passes behind it do."""

import numpy as np
import pytest

import lamina
from lamina.api import compile_graph, make_runner
from lamina.compiler.ir.graph import Value
from lamina.compiler.ops.random import stream_key
from lamina.compiler.options import Options
from lamina.compiler.reference import evaluate
from lamina.compiler.transform.pipeline import PASSES, run_passes
from lamina.compiler.transform.recompute import (
    computed_again,
    find_cuts,
    is_layer,
    recompute,
)
from lamina.runtime.cpu.plan import make_plan, total_macs
from lamina.runtime.program import AGAIN, BACKWARD, FORWARD, THREADS, UPDATING
from lamina.tests.transform.networks import lenet_step, values_for

NETS = """
block Res(width: int) {
  input x: [B, C, H, W]
  main = x -> c1: conv(width, kernel=3, padding=1, bias=false) -> n1: batchnorm -> relu
    -> c2: conv(width, kernel=3, padding=1, bias=false) -> n2: batchnorm
  output y = relu(main + x)
}

model Plain(depth: int = 8, width: int = 16) {
  input x: f32[B, 24]
  output y = x -> body: repeat depth { l: linear(width) -> tanh } -> head: linear(3)
}

model Deep(depth: int = 64, width: int = 16) {
  input x: f32[B, 3, 16, 16]
  output y = x -> body: repeat depth { c: conv(width, kernel=3, padding=1) -> relu }
    -> global_avgpool -> head: linear(3)
}

model Pools {
  input x: f32[B, 3, 16, 16]
  output y = x -> a: conv(8, kernel=3, padding=1) -> relu -> b: conv(8, kernel=3, padding=1) -> relu
    -> p: maxpool(2) -> c: conv(16, kernel=3, padding=1) -> relu -> d: conv(16, kernel=3, padding=1)
    -> relu -> q: maxpool(2) -> flatten -> head: linear(3)
}

model Residual {
  input x: f32[B, 3, 8, 8]
  output y = x -> stem: conv(16, kernel=3, padding=1, bias=false) -> n: batchnorm -> relu
    -> body: repeat 4 { Res(16) } -> global_avgpool -> head: linear(3)
}

model Dropped {
  input x: f32[B, 24]
  output y = x -> body: repeat 4 { l: linear(32) -> relu -> d: dropout(0.4) } -> head: linear(3)
}

cell LSTM(hidden: int) {
  input x: [B, D]
  state h: [B, hidden] = 0
  state c: [B, hidden] = 0
  i = sigmoid((x -> xi: linear(hidden)) + (prev.h -> hi: linear(hidden)))
  f = sigmoid((x -> xf: linear(hidden)) + (prev.h -> hf: linear(hidden)))
  g = tanh((x -> xg: linear(hidden)) + (prev.h -> hg: linear(hidden)))
  c = f * prev.c + i * g
  h = i * tanh(c)
  output h
}

model Recurrent {
  input x: f32[B, T, 6]
  a = x -> one: scan LSTM(8) over T
  b = a -> two: scan LSTM(8) over T
  output y = b.final.h -> head: linear(3)
}

model Several {
  input x: f32[B, 24]
  param tied: [24, 24] = normal(0.2)
  a = tanh(x @ tied)
  b = tanh(a @ tied) -> l: linear(24) -> tanh
  output y = tanh(b @ tied) -> near: linear(3)
  output z = a -> far: linear(3)
}
"""
LABELLED = "cross_entropy(y, label)"
SEVERAL = "cross_entropy(y, label) + 0.3 * cross_entropy(z, label) + 0.01 * mean(y * y)"
RECIPE = """
recipe r for {model} {{
  data train = mnist("train")
  target label: i32[B]
  loss      = {loss}
  optimizer = {optimizer}
  batch     = 4
  epochs    = 1
}}
"""
SIZES = {"B": 5, "T": 7}


def step_of(model, every=None, loss=LABELLED, optimizer="sgd(lr=0.05, momentum=0.9)"):
    """The training step of a model, and its initial parameters."""
    recipe = RECIPE.format(model=model, loss=loss, optimizer=optimizer)
    training = lamina.loads(NETS + recipe).recipe("r")
    return training.step(0, every), training.initial()


def feed(graph, number):
    """The inputs of a step."""
    rng = np.random.default_rng(number)
    given = {"lr": np.float32(0.05), "step": np.float32(number),
             "rng": np.array([3, number], np.int32),
             "label": rng.integers(0, 3, SIZES["B"]).astype(np.int32)}
    for name, value in graph.inputs.items():
        shape = [SIZES.get(str(size), size) for size in graph.type(value).shape]
        given.setdefault(name, rng.standard_normal(shape).astype(np.float32))
    return {name: given[name] for name in graph.inputs}


def train(graph, initial, cache, steps=3, target="cpu"):
    """(losses, parameters and running statistics with optimizer state) after some steps."""
    runner = make_runner(graph, Options(target=target, cache_folder=cache))
    zero = {key: np.zeros(graph.type(value).shape, np.float32)
            for key, value in graph.params.items()}
    runner.set_params({**zero, **{key: initial[key] for key in zero if key in initial}})
    losses = [runner.run(feed(graph, number))["loss"] for number in range(1, steps + 1)]
    params = runner.get_params()
    runner.close()
    return np.array(losses), params


def repeats(graph):
    """The paths of the layers that are computed again."""
    return [node.path for node in computed_again(graph) if is_layer(node)]


def planned(graph, sizes=None, skip=frozenset()):
    """The program of a step and its plan."""
    program = compile_graph(graph, skip)
    return program, make_plan(program, {**SIZES, **(sizes or {}), THREADS: 1})


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "every", "loss"), [
    ("Plain", 1, LABELLED), ("Plain", 3, LABELLED), ("Plain", "auto", LABELLED),
    ("Pools", 1, LABELLED), ("Pools", 2, LABELLED), ("Residual", 2, LABELLED),
    ("Residual", 4, LABELLED), ("Dropped", 2, LABELLED), ("Recurrent", 1, LABELLED),
    ("Recurrent", 2, LABELLED), ("Several", 2, SEVERAL)])
def test_training_gives_the_same_bits(model, every, loss, kernel_cache):
    """Less memory must not be another training.

    Batch-norm's running statistics would move twice, dropout draw twice, a scan start elsewhere; a
    shared parameter has readers in several segments, a sum of losses several ends.
    """
    plain, initial = step_of(model, None, loss)
    again, _ = step_of(model, every, loss)
    assert len(again.nodes) > len(plain.nodes)
    losses, params = train(plain, initial, kernel_cache)
    found, after = train(again, initial, kernel_cache)
    assert np.array_equal(found, losses) and np.all(np.isfinite(losses))
    assert list(after) == list(params)
    for key in params:
        assert after[key].tobytes() == params[key].tobytes(), key


def test_other_kernels_round_otherwise_and_no_more(kernel_cache):
    """Segments of one layer put batch-norm's difference and its sums into one kernel.

    Its sums then run in another order: 1e-6 of the largest entry, seen 2e-7. What the forward pass
    makes has the same bits: the loss, and running statistics, which move once.
    """
    plain, initial = step_of("Residual")
    again, _ = step_of("Residual", 1)
    losses, params = train(plain, initial, kernel_cache, 1)
    found, after = train(again, initial, kernel_cache, 1)
    assert np.array_equal(found, losses)
    for key in params:
        size = np.abs(params[key]).max(initial=1e-30)
        assert np.abs(after[key] - params[key]).max(initial=0.0) <= 1e-6 * size, key
        if "running" in key:
            assert after[key].tobytes() == params[key].tobytes(), key
            assert np.abs(after[key] - initial[key]).max() > 1e-4, key


def test_the_reference_agrees():
    """Another target, in float64, where no kernel can hide a wrong graph."""
    plain = lenet_step()
    inputs, params = values_for(plain, 3)
    expected = evaluate(plain, inputs, params)
    for every in (1, 2, "auto"):
        again = recompute(plain, every)
        assert computed_again(again)
        found = evaluate(again, inputs, params)
        assert list(found) == list(expected)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{every} {name}")


def test_gradients_from_python_are_the_same():
    """`value_and_grad` takes the same option."""
    net = lamina.loads(NETS).Plain()
    weights = net.init(1)
    given = {"x": np.random.default_rng(0).standard_normal((5, 24), np.float32),
             "label": np.array([0, 1, 2, 1, 0], np.int32)}
    value, grads = net.value_and_grad(LABELLED)(weights, **given)
    less = net.value_and_grad(LABELLED, checkpoint_every=3)
    assert computed_again(less.graph)
    found, others = less(weights, **given)
    assert found == value
    assert all(np.array_equal(others[key], grads[key]) for key in grads)


def test_dropout_is_drawn_again_not_kept():
    """The mask comes from the counter a second time: keeping it would cost a tensor a layer."""
    graph, _ = step_of("Dropped", 2)
    drawn = [node for node in graph.nodes if node.op.name == "dropout" or node.op.name == "uniform"]
    salts = [node.attributes["salt"] for node in drawn]
    assert len(set(salts)) == 4 and len(salts) > 4
    keys = {stream_key(3, 1, salt) for salt in salts}
    assert len(keys) == 4
    assert sum(graph.node(value).op.name == "again" for node in drawn for value in node.inputs)


# --- graphs and programs --------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["Plain", "Pools", "Residual", "Recurrent"])
def test_no_pass_merges_the_copies(model):
    """Sharing of equal nodes would find every copy equal to what it repeats.

    Nor do they vanish where some pass is left out.
    """
    plain, _ = step_of(model)
    again, _ = step_of(model, 2)
    more = len(repeats(again))
    assert more
    stages = run_passes(again, check=True)
    for stage, other in zip(stages[:-1], run_passes(plain)[:-1], strict=True):
        count = sum(map(is_layer, stage.graph.nodes)), sum(map(is_layer, other.graph.nodes))
        assert count[0] - count[1] >= more, stage.name
    for skip in [frozenset({one.name}) for one in PASSES if one.optional]:
        macs = [sum(total_macs(*planned(graph, skip=skip))) for graph in (plain, again)]
        assert macs[0] < macs[1], skip


@pytest.mark.parametrize("model", ["Plain", "Deep", "Residual"])
def test_layers_are_computed_again_just_before_they_are_read(model):
    """A copy that is made early is kept as long as what it was to replace.

    The copies of a segment begin when the gradient of the segment behind it is done.
    """
    program, _ = planned(step_of(model, 4)[0])
    parts = [step.part for step in program.steps]
    runs = [part for part, before in zip(parts, ["", *parts], strict=False)
            if part in (AGAIN, BACKWARD) and part != before]
    assert runs.count(AGAIN) >= len(find_cuts(step_of(model)[0], 4).after)
    assert parts.index(AGAIN) > parts.index(BACKWARD)
    assert program.steps[parts.index(AGAIN)].layer != program.steps[0].layer
    last = len(parts) - 1 - parts[::-1].index(AGAIN)
    assert BACKWARD in parts[last:]


@pytest.mark.parametrize("optimizer", ["sgd(lr=0.05)", "adam(lr=0.01)", "adamw(lr=0.01)"])
def test_updates_come_as_soon_as_they_can(optimizer):
    """What waits for its update keeps the activation that its gradient is made of.

    Adam's scalars, which come of the step's number, must not hold all of them back.
    """
    program, _ = planned(step_of("Plain", 2, optimizer=optimizer)[0])
    layers = [step.layer for step in program.steps]
    parts = [step.part for step in program.steps]
    last = {layer: index for index, (layer, part) in enumerate(zip(layers, parts, strict=True))
            if part == BACKWARD}
    assert last["body.7.l"] < layers.index("body.0.l", parts.index(BACKWARD))
    assert FORWARD not in parts[parts.index(BACKWARD):]
    assert UPDATING not in parts[:parts.index(BACKWARD)]


def test_a_deep_chain_takes_the_root_of_its_memory():
    """64 layers: 8 are kept and 8 at a time are computed again, where 64 were kept.

    That is 1/4, and a little for gradients. The price is less than one more forward pass, which is
    a third of a step.
    """
    sizes = {"B": 64}  # scratch, which is the same for any batch, must not count
    plain, full = planned(step_of("Deep")[0], sizes)
    arenas = {}
    for every in (2, 4, "auto", 32):
        program, plan = planned(step_of("Deep", every)[0], sizes)
        arenas[every] = plan.arena_bytes / full.arena_bytes
        more = sum(total_macs(program, plan)) / sum(total_macs(plain, full))
        assert 1 < more < 1 + 1 / 3, every
    assert arenas["auto"] < 0.27 and arenas["auto"] < 1.1 * min(arenas.values())
    assert max(arenas.values()) < 0.6 and arenas[4] < arenas[2]


def test_a_residual_network_is_cut_between_its_blocks():
    """Inside of a block two tensors cross, between blocks one."""
    graph, _ = step_of("Residual")
    cuts = find_cuts(graph, 2)
    large = [graph.node(value) for value in cuts.kept if graph.type(value).rank == 4
             and graph.type(value).shape[2] == 8]
    found = sorted((node.op.name, node.path) for node in large)
    assert found == [("conv2d", "stem"), ("input", ""), ("relu", "body.0"), ("relu", "body.1"),
                     ("relu", "body.2")]
    assert len(cuts.after) == 5  # what is pooled of the last block is small


def test_a_plain_network_is_cut_behind_its_pools():
    """Behind a pool a quarter of the bytes crosses."""
    graph, _ = step_of("Pools")
    cuts = find_cuts(graph, 2)
    kept = {graph.node(value).path for value in cuts.kept if graph.type(value).rank == 4}
    assert {"p", "q"} <= kept and not kept & {"a", "b", "c", "d"}
    assert repeats(step_of("Pools", 2)[0]) == ["c", "d", "a", "b"]


def test_a_cut_behind_batch_norm_spares_the_convolution():
    """Kept as the convolution leaves it, it is normalised again without a second convolution.

    The last one is computed again, as only what is pooled of it is kept.
    """
    net = lamina.loads(NETS.replace("main + x", "main")).Residual()
    graph = net.value_and_grad(LABELLED, checkpoint_every=1).graph
    assert repeats(graph) == ["body.3.c2"]
    again = {(node.path, node.op.name) for node in computed_again(graph)}
    assert {("body.1", "relu"), ("body.1.n2", "mul")} <= again


def test_nothing_is_computed_twice_in_vain():
    """No layer is repeated more than once, the last segment and statistics not at all."""
    for model in ("Plain", "Deep", "Residual"):
        found = repeats(step_of(model, 3)[0])
        assert len(found) == len(set(found)) and "head" not in found
    graph, _ = step_of("Residual", 2)
    assert not [node for node in computed_again(graph) if node.op.kind == "reduce"]
    made = sum(node.op.kind == "reduce" for node in step_of("Residual")[0].nodes)
    assert sum(node.op.kind == "reduce" for node in graph.nodes) == made


def test_one_segment_or_no_gradient_changes_nothing():
    """There is nothing to compute again: the very same graph."""
    graph, _ = step_of("Plain")
    assert recompute(graph, None) is graph
    assert recompute(graph, 9) is graph and recompute(graph, 10**6) is graph
    assert recompute(graph, 8) is not graph
    forward = lamina.loads(NETS).Plain().graph
    assert recompute(forward, 1) is forward
    again = recompute(graph, 2)
    assert recompute(again, 2) is again


def test_what_depends_on_parameters_alone_stays():
    """It does not grow with the batch, and its copies would be packed a second time."""
    graph, _ = step_of("Plain", 2)
    for node in computed_again(graph):
        todo, seen = [node.id], set()
        while todo:
            key = todo.pop()
            if key not in seen:
                seen.add(key)
                todo += [value.node for value in graph.node(Value(key)).inputs]
        assert any(graph.node(Value(key)).op.name == "input" for key in seen)


@pytest.mark.parametrize("every", [0, -1, True, 1.5, "root", "2", (2,)])
def test_bad_numbers_are_refused(every):
    """A zero that counted as off, or a text as a number, would be found out late."""
    graph, _ = step_of("Plain")
    with pytest.raises(ValueError, match="checkpoint_every is a whole number from 1, or 'auto'"):
        recompute(graph, every)
    with pytest.raises(ValueError, match="not "):
        lamina.loads(NETS).Plain().value_and_grad(LABELLED, checkpoint_every=every)


def test_steps_say_that_they_compute_again():
    """`lamina profile` shows them as a part of their own; a plain step has none."""
    parts = {step.part for step in planned(step_of("Deep", 8)[0])[0].steps}
    assert {FORWARD, AGAIN, BACKWARD} <= parts
    program, _ = planned(step_of("Deep")[0])
    assert AGAIN not in {step.part for step in program.steps}
