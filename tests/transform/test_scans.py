"""Scans: loops as small as they can be, derived gradients, and the same numbers on every target."""

import numpy as np
import pytest

from lamina.api import compile_graph
from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Value
from lamina.compiler.ir.op import OpError
from lamina.compiler.ir.text import format_graph, parse_graph
from lamina.compiler.ir.types import TensorType
from lamina.compiler.ir.verify import verify
from lamina.compiler.ops import OPS, GraphMath
from lamina.compiler.ops.define import Var
from lamina.compiler.reference import evaluate
from lamina.compiler.transform.autodiff import add_gradients
from lamina.compiler.transform.scans import leave_loops
from lamina.runtime.cpu.executor import Executor
from lamina.runtime.program import dumps, loads

T, B, D, H = 5, 3, 4, 2
TABLE = 6


class Net:
    """A graph under construction around one scan."""

    def __init__(self, **inputs):
        self.builder = Builder("M")
        self.m = GraphMath(self.builder)
        self.inputs = {name: self.m.input(name=name, shape=shape,
                                          dtype="i32" if name == "ids" else "f32")
                       for name, shape in inputs.items()}

    def scan(self, body, states, sequences, after=(), backwards=False, length=T):
        """The results of a scan over inputs of these names."""
        names = [*states, *sequences, *after]
        attrs = {"states": len(states), "sequences": len(sequences), "length": length,
                 "backwards": backwards}
        given = [self.inputs[name] if isinstance(name, str) else name for name in names]
        node = self.builder.emit(OPS["scan"], [x.value for x in given], attrs, body)
        count = len(self.builder.node(node).outs)
        return [Var(self.m, Value(node.node, port)) for port in range(count)]

    def finish(self, loss, **outputs):
        return verify(self.builder.finish([("loss", loss.value), *(
            (name, value.value) for name, value in outputs.items())]))


def body(make, *types):
    """A step: `make(m, *inputs)` gives its results."""
    builder = Builder("step")
    m = GraphMath(builder)
    found = make(m, *(m.placeholder(i, type if isinstance(type, TensorType) else TensorType(type))
                      for i, type in enumerate(types)))
    return builder.finish([(f"y{i}", value.value) for i, value in enumerate(found)])


def lstm_step(m, h, c, x, w, bias):
    z = m.concat(x, h, axis=-1) @ w + bias
    i, f, g, o = (m.slice(z, starts=(0, k * H), stops=(B, (k + 1) * H), steps=(1, 1))
                  for k in range(4))
    c = m.sigmoid(f + 1.0) * c + m.sigmoid(i) * m.tanh(g)
    h = m.sigmoid(o) * m.tanh(c)
    return h, c, h, h * 2.0


def lstm(backwards=False):
    """A recurrent net with two states, weights, and work on its outputs that need not wait."""
    net = Net(h=(B, H), c=(B, H), x=(T, B, D), w=(D + H, 4 * H), bias=(4 * H,), v=(T, B, H))
    step = body(lstm_step, (B, H), (B, H), (B, D), (D + H, 4 * H), (4 * H,))
    h, c, all_h, twice = net.scan(step, "hc", "x", ("w", "bias"), backwards)
    m = net.m
    loss = m.sum(all_h * net.inputs["v"]) + m.sum(c * h) + m.sum(twice * twice)
    return net.finish(loss, last=h, all=all_h, twice=twice)


def fibonacci(backwards=False):
    """States alone: no sequence, no weights; each reads the other."""
    net = Net(a=(B,), b=(B,))
    step = body(lambda m, a, b: (b, a + b * 0.5, a), (B,), (B,))
    a, b, before = net.scan(step, "ab", "", backwards=backwards)
    return net.finish(net.m.sum(a * b) + net.m.sum(before * before), a=a, b=b, before=before)


def mapped(backwards=False):
    """No state at all: nothing is left of the loop."""
    net = Net(x=(T, B, D), w=(D, H))
    step = body(lambda m, x, w: (m.tanh(x @ w), x), (B, D), (D, H))
    y, same = net.scan(step, "", "x", "w", backwards)
    return net.finish(net.m.sum(y * y) + net.m.sum(same), y=y)


def embedded(backwards=False):
    """A table looked up by a sequence and by a state that is no float; attention over memory."""
    net = Net(h=(B, D), ids=(B,), x=(T, B, D), table=(TABLE, D), memory=(B, T, D))

    def step(m, h, ids, x, table, memory):
        x = m.take(table, ids) + x
        score = m.sum(memory * m.reshape(h, shape=(B, 1, D)), axis=-1)
        share = m.softmax(score, axis=-1)
        seen = m.sum(memory * m.reshape(share, shape=(B, T, 1)), axis=1)
        h = m.tanh(x + seen + h * 0.5)
        following = m.cast(m.less(m.sum(h, axis=-1), 0.1), dtype="i32")
        return h, following, h, share

    made = body(step, (B, D), TensorType((B,), "i32"), (B, D), (TABLE, D), (B, T, D))
    h, ids, all_h, share = net.scan(made, ("h", "ids"), "x", ("table", "memory"), backwards)
    return net.finish(net.m.sum(all_h * all_h) + net.m.sum(h) + net.m.sum(share * share),
                      h=h, ids=ids)


def nested(backwards=False):
    """A scan at every step of another one."""
    def outer(m, h, x):
        inner = body(lambda n, s, e: (n.tanh(s + e), s * e), (D,), (D,))
        node = m.builder.emit(OPS["scan"], [h.value, x.value], {
            "states": 1, "sequences": 1, "length": B, "backwards": True}, inner)
        last, each = (Var(m, Value(node.node, port)) for port in range(2))
        return last * 0.5 + m.sum(x), m.sum(each, axis=0)

    net = Net(h=(D,), x=(T, B, D))
    h, each = net.scan(body(outer, (D,), (B, D)), "h", "x", backwards=backwards)
    return net.finish(net.m.sum(h * h) + net.m.sum(each * each), h=h, each=each)


def layered(backwards=False):
    """States that do not all need each other: a token of the step before, two layers, a sum."""
    net = Net(token=(B, D), low=(B, H), high=(B, H), total=(B, H), x=(T, B, D), v=(D, H), w=(H, H))

    def step(m, token, low, high, total, x, v, w):
        low = m.tanh(token @ v + low @ w)
        high = m.tanh(low * 0.5 + high @ w)
        return x, low, high, total + high, m.sigmoid(high), low

    types = [(B, D), (B, H), (B, H), (B, H), (B, D), (D, H), (H, H)]
    token, low, high, total, share, lows = net.scan(
        body(step, *types), ("token", "low", "high", "total"), "x", ("v", "w"), backwards)
    m = net.m
    loss = m.sum(token * token) + m.sum(low * high) + m.sum(total) + m.sum(share * lows)
    return net.finish(loss, token=token, low=low, high=high, total=total, share=share)


NETS = {make.__name__: make for make in (lstm, fibonacci, mapped, embedded, nested, layered)}


def arrays(graph, dtype=np.float64):
    rng = np.random.default_rng(1)
    found = {}
    for name, value in graph.inputs.items():
        type = graph.type(value)
        found[name] = rng.integers(0, TABLE, type.shape).astype(np.int32) \
            if type.dtype == "i32" else rng.standard_normal(type.shape).astype(dtype) * 0.5
    return found


def differentiated(graph):
    floats = {name: value for name, value in graph.inputs.items()
              if graph.type(value).dtype == "f32"}
    return verify(add_gradients(graph, "loss", floats))


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_gradients_are_those_of_differences(name, backwards):
    # Through states, sequences, weights, tables and initial states; the rule is derived, so
    # nothing but the numbers can vouch for it.
    graph = NETS[name](backwards)
    given, rng = arrays(graph), np.random.default_rng(2)
    found = evaluate(differentiated(graph), given, {})
    assert found["loss"] == pytest.approx(evaluate(graph, given, {})["loss"], rel=1e-12)
    for key, value in given.items():
        if value.dtype == np.int32:
            continue
        way, step = rng.standard_normal(value.shape), 1e-6
        ends = [evaluate(graph, {**given, key: value + sign * step * way}, {})["loss"]
                for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert (found[f"grad:{key}"] * way).sum() == pytest.approx(slope, rel=1e-6, abs=1e-8), key


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_kernels_give_the_same(name, backwards, threads, kernel_cache):
    # A loop of steps over stacked memory against the interpreter, in poisoned memory.
    graph = differentiated(NETS[name](backwards))
    given = arrays(graph, np.float32)
    program = loads(dumps(compile_graph(graph)))
    assert program.loops or name == "mapped"
    for checked in (True, False):
        executor = Executor(program, threads, kernel_cache, check_memory=checked)
        found = executor.run(given)
        again = executor.run(given)
        for key, value in evaluate(graph, given, {}).items():
            assert np.abs(found[key] - value).max() <= 2e-5 * max(1, np.abs(value).max()), key
            assert np.array_equal(found[key], again[key]), key
        executor.close()


def test_weights_are_packed_once():
    # They lie still while the loop runs: packing them at every step took a third of the time.
    program = compile_graph(differentiated(lstm()))
    for loop in program.loops:
        inside = [program.steps[i].label for i in range(loop.first, loop.last + 1)]
        assert not [label for label in inside if label.endswith("pack")], inside
    assert any(step.label.endswith("pack") for step in program.steps)


def test_a_loop_of_no_step():
    # An empty sequence leaves the state as it was.
    net = Net(h=(B, D), x=(0, B, D))
    h, each = net.scan(body(lambda m, h, x: (h + x, h), (B, D), (B, D)), "h", "x", length=0)
    graph = net.finish(net.m.sum(h), h=h, each=each)
    given = arrays(graph, np.float32)
    found = Executor(compile_graph(graph), 1).run(given)
    assert np.array_equal(found["h"], given["h"]) and found["each"].shape == (0, B, D)


def scans(graph):
    return [node for node in graph.nodes if node.op.name == "scan"]


def test_what_need_not_wait_leaves_the_loop():
    # Only the states' product is in the loop. That of what comes in, its gradient, and those of
    # the weight's two parts are one product each over all steps.
    graph = differentiated(lstm())
    for node, shape in zip(scans(graph), [(B, 4 * H), (B, H)], strict=True):
        assert [one.type.shape for one in node.body.nodes if one.op.name == "matmul"] == [shape]
    outside = [node.type.shape for node in graph.nodes if node.op.name == "matmul"]
    assert sorted(outside) == sorted([(T, B, 4 * H), (T, B, D), (D, 4 * H), (H, 4 * H)])
    assert not scans(leave_loops(mapped()))
    assert leave_loops(leave_loops(lstm())) == leave_loops(lstm())


@pytest.mark.parametrize("backwards", [False, True])
def test_layers_in_one_cell_have_loops_of_their_own(backwards):
    # What a loop needs of another is known for all steps: the token of the step before needs no
    # loop, and the first product is one over all steps.
    graph = leave_loops(layered(backwards))
    assert [node.attributes["states"] for node in scans(graph)] == [1, 1, 1]
    outside = [node.type.shape for node in graph.nodes if node.op.name == "matmul"]
    assert outside == [(T, B, H)]


def test_loops_copy_nothing():
    # Steps read and write their entries of stacked memory where they lie, and the gates' gradients
    # are parts of one matrix.
    program = compile_graph(differentiated(lstm()))
    inside = [step.label for loop in program.loops
              for step in program.steps[loop.first:loop.last + 1]]
    assert len(program.loops) == 2 and len(inside) <= 6, inside
    assert not [label for label in inside if label.endswith(("copy", "fill", "pack"))], inside


def test_a_scan_is_printed_and_read():
    # Golden files and `show` rest on it.
    graph = differentiated(lstm())
    assert parse_graph(format_graph(graph), OPS) == graph


def test_a_step_that_does_not_fit_is_refused():
    # Every scan that exists was checked when it was made.
    net = Net(h=(B, D), x=(T, B, D))
    step = body(lambda m, h, x: (h + x,), (B, D), (B, D))
    with pytest.raises(OpError, match="takes 7 steps"):
        net.scan(step, "h", "x", length=7)
    with pytest.raises(OpError, match="a step takes"):
        net.scan(step, "x", "x")
    grows = body(lambda m, h, x: (m.concat(h, x, axis=0),), (B, D), (B, D))
    with pytest.raises(OpError, match="after a step"):
        net.scan(grows, "h", "x")
