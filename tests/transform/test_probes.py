"""Probes: the gradient by every state of a scan, against loops that PyTorch differentiates."""

import numpy as np
import pytest

import lamina
from lamina.api import compile_graph, parse_expression
from lamina.compiler.frontend.build import Objective
from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.verify import verify
from lamina.compiler.ops import GraphMath
from lamina.compiler.reference import evaluate
from lamina.compiler.transform.probes import add_probes, flow_graph, norm
from lamina.runtime.cpu.executor import Executor
from lamina.tests.transform.test_scans import NETS, B, H, Net, T, arrays, body, lstm

torch = pytest.importorskip("torch", reason="PyTorch differentiates the loops")


def zeros(graph, dtype=np.float64):
    """Zeros for the probes."""
    return {name: np.zeros(graph.type(value).shape, dtype)
            for name, value in graph.inputs.items() if ":" in name}


def measured(graph, given):
    """The outputs in float64, with those of probes back in time: all and last by their number."""
    flowing, probes = flow_graph(graph, {})
    found = evaluate(verify(flowing), {**given, **zeros(flowing)}, {})
    return {kind: [found[f"{kind}:{one.name}"] for one in probes] for kind in ("all", "last")}


def unrolled(step, states, order, loss):
    """Norms of the gradients by every state after every step: [states][steps], steps as stored."""
    kept = [[None] * len(order) for _ in states]
    handed = [None] * len(order)
    for t in order:
        states, handed[t] = step(states, t)
        for k, state in enumerate(states):
            state.retain_grad()
            kept[k][t] = state
    loss(states, handed).backward()
    return [[0.0 if s.grad is None else float(s.grad.norm()) for s in row] for row in kept]


@pytest.mark.parametrize("backwards", [False, True])
def test_gradients_by_states_are_those_of_a_loop(backwards):
    # An LSTM whose loss reads every step, both final states and a second output: nothing in the
    # gradient of a state may be missing, or counted twice.
    graph = lstm(backwards)
    given = arrays(graph)
    h, c, x, w, bias, v = (torch.tensor(given[k], requires_grad=k in "hc")
                           for k in ("h", "c", "x", "w", "bias", "v"))
    order = list(range(T))[::-1 if backwards else 1]

    def step(states, t):
        i, f, g, o = (torch.cat([x[t], states[0]], -1) @ w + bias).chunk(4, -1)
        cell = torch.sigmoid(f + 1) * states[1] + torch.sigmoid(i) * torch.tanh(g)
        return [torch.sigmoid(o) * torch.tanh(cell), cell], None

    def through(steps):
        """The loss with the outputs of some steps cut off from it."""
        hidden = [h.clone(), c.clone()]
        seen = []

        def kept(states, t):
            states, _ = step(states, t)
            seen.append((t, states[0]))
            return states, None

        def loss(states, _):
            outs = sum((y * v[t]).sum() + (4 * y * y).sum() for t, y in seen if t in steps)
            return outs + (states[1] * states[0]).sum()

        return unrolled(kept, hidden, order, loss)

    found = measured(graph, given)
    np.testing.assert_allclose(found["all"], through(order), rtol=1e-9)
    np.testing.assert_allclose(found["last"], through(order[-1:]), rtol=1e-9)


def test_a_state_that_is_handed_on():
    # b becomes a without being computed: a probe belongs to the new a, not to every use of b.
    graph = NETS["fibonacci"]()
    given = arrays(graph)
    a, b = (torch.tensor(given[k], requires_grad=True) for k in "ab")
    known = unrolled(lambda s, t: ([s[1].clone(), s[0] + s[1] * 0.5], s[0]), [a.clone(), b.clone()],
                     range(T), lambda s, ys: (s[0] * s[1]).sum() + sum((y * y).sum() for y in ys))
    np.testing.assert_allclose(measured(graph, given)["all"], known, rtol=1e-9)


def test_one_value_for_two_states():
    # Both states are the same number after a step: each has the gradient of that number.
    net = Net(a=(B,), b=(B,), x=(T, B))

    def twice(m, a, b, x):
        new = m.tanh(a + b * 0.5 + x)
        return new, new

    a, b = net.scan(body(twice, (B,), (B,), (B,)), "ab", "x")
    graph = net.finish(net.m.sum(a * 3.0 + b))
    given = arrays(graph)
    x = torch.tensor(given["x"])

    def step(states, t):
        new = torch.tanh(states[0] + states[1] * 0.5 + x[t])
        return [new, new], None

    start = [torch.tensor(given[k], requires_grad=True) for k in "ab"]
    known = unrolled(step, start, range(T), lambda s, _: (s[0] * 3 + s[1]).sum())
    np.testing.assert_allclose(measured(graph, given)["all"], known, rtol=1e-9)


def test_examples_of_different_lengths_are_as_alone():
    # The last step is each example's own: of a batch every one has the gradients that it has when
    # it is alone, forwards and backwards, and nothing past its end.
    net = lamina.loads("""model M {
  input x: f32[B, S~, 3]
  output y = x -> mem: lstm(4, bidirectional=true)
}
""").M()
    graph = net.build(True, Objective(parse_expression("sum(y * y)"))).graph
    flowing, probes = flow_graph(graph, {})
    weights = {key: value.astype(np.float64) for key, value in net.init(0).items()}
    x, lengths = np.random.default_rng(0).standard_normal((3, 5, 3)), [5, 2, 1]

    def run(x, lengths):
        given = {"x": x, "S~": np.array(lengths, np.int32)}
        for one in probes:
            for kind in ("all", "last"):
                given[f"{kind}:{one.name}"] = np.zeros((x.shape[1], len(x), 4))
        return evaluate(flowing, given, weights)

    found = run(x, lengths)
    assert len(probes) == 4
    for example, length in enumerate(lengths):
        alone = run(x[example:example + 1, :length], [length])
        for one in probes:
            for name in (f"all:{one.name}", f"last:{one.name}"):
                np.testing.assert_allclose(found[name][:length, example], alone[name][:, 0],
                                           rtol=1e-9, err_msg=name)
                assert alone[name].all()


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_probes_change_no_number(name, backwards):
    # They are zeros; and a measured network that computed something else would mislead.
    graph = NETS[name](backwards)
    given = arrays(graph)
    probed, _ = add_probes(graph)
    found = evaluate(verify(probed), {**given, **zeros(probed)}, {})
    for key, value in evaluate(graph, given, {}).items():
        np.testing.assert_array_equal(found[key], value, key)


@pytest.mark.parametrize("name", ["lstm", "embedded", "nested"])
def test_kernels_measure_the_same(name, kernel_cache):
    graph = NETS[name]()
    given = arrays(graph, np.float32)
    flowing, _ = flow_graph(graph, {})
    given |= zeros(flowing, np.float32)
    found = Executor(compile_graph(flowing), 2, kernel_cache).run(given)
    for key, value in evaluate(flowing, given, {}).items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, err_msg=key)


def test_a_network_without_scans_stays():
    # Most networks: no probe, no copy.
    net = Net(x=(B, H))
    graph = net.finish(net.m.sum(net.inputs["x"]))
    assert add_probes(graph) == (graph, ())


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30, 0.0])
def test_norms_of_what_cannot_be_squared(size):
    # A vanished gradient of 1e-30 is the point of the measure; its square is no float32.
    m = GraphMath(Builder())
    x = m.input(name="x", shape=(2, 3, 4))
    graph = m.builder.finish([("all", norm(m, x).value), ("each", norm(m, x, (0,)).value)])
    given = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    found = evaluate(graph, {"x": given * np.float32(size)}, {})
    known = np.linalg.norm(given.astype(np.float64).reshape(2, -1), axis=1) * size
    np.testing.assert_allclose(found["each"], known, rtol=1e-5)
    np.testing.assert_allclose(found["all"], np.linalg.norm(known), rtol=1e-5)
