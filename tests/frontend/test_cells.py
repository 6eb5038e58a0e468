"""Cells that users write and `scan` runs: what they compute, and what is said of mistakes."""

import numpy as np
import pytest

import lamina
from lamina.compiler.errors import CompileError

LSTM = """cell LSTM(hidden: int) {
  input x: [B, D]
  state h: [B, hidden] = 0
  state c: [B, hidden] = 0
  param W: [D + hidden, 4 * hidden] = glorot()
  param b: [4 * hidden]             = 0

  z = (x, prev.h) -> concat(axis=-1)
  i, f, g, o = split(z @ W + b, 4, axis=-1)
  c = sigmoid(f + 1) * prev.c + sigmoid(i) * tanh(g)
  h = sigmoid(o) * tanh(c)
  output h
}
"""


def run(text, target="numpy", **inputs):
    """The outputs of the only model of a text, and its weights."""
    file = lamina.loads(text)
    net = file.model(file.models[-1])
    weights = net.init(0)
    return net.compile(target)(weights, **inputs), weights


def rows(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x, w, b, h, c):
    """The equations, step by step: all h, last h and last c."""
    found = []
    for step in range(x.shape[1]):
        i, f, g, o = np.split(np.concatenate([x[:, step], h], 1) @ w + b, 4, axis=1)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        found.append(h)
    return np.stack(found, 1), h, c


@pytest.mark.parametrize("target", ["numpy", "cpu"])
def test_a_cell_computes_its_equations(target):
    # LANGUAGE.md's LSTM, both ways over the sequence, with its final states.
    text = LSTM + """model M {
      input x: f32[B, T, 4]
      fwd = x -> f: scan LSTM(3) over T
      bwd = x -> b: scan LSTM(3) over T reverse
      both: [B, T, 6] = (fwd, bwd) -> concat(axis=-1)
      output both, h = fwd.final.h, c = bwd.final.c
    }"""
    x = rows(2, 5, 4)
    found, weights = run(text, target, x=x)
    zero = np.zeros((2, 3), np.float32)
    forward, h, _ = lstm(x, weights["f.W"], weights["f.b"], zero, zero)
    backward, _, c = lstm(x[:, ::-1], weights["b.W"], weights["b.b"], zero, zero)
    for name, known in {"both": np.concatenate([forward, backward[:, ::-1]], 2), "h": h,
                        "c": c}.items():
        assert np.abs(found[name] - known).max() < 1e-5, name


def test_states_can_start_from_values():
    # `with` gives them, also those of a cell within the cell; the others keep their own.
    text = LSTM + """cell Pair(hidden: int) {
      input x: [B, D]
      state count: i32[B] = 3
      h = x -> inner: LSTM(hidden)
      count = prev.count + 1
      output h, seen = prev.count
    }
    model M {
      input x: f32[B, T, 4]
      input start: f32[B, 3]
      y = x -> run: scan Pair(3) over T with (inner.h = start)
      output h = y.h, seen = y.seen, last = y.final.inner.c, count = y.final.count
    }"""
    x, start = rows(2, 5, 4), rows(2, 3)
    found, weights = run(text, x=x, start=start)
    known, _, c = lstm(x, weights["run.inner.W"], weights["run.inner.b"], start,
                       np.zeros((2, 3), np.float32))
    assert np.abs(found["h"] - known).max() < 1e-5 and np.abs(found["last"] - c).max() < 1e-5
    assert found["seen"].tolist() == [[3, 4, 5, 6, 7]] * 2 and found["count"].tolist() == [8, 8]


def test_a_memory_is_seen_at_every_step():
    # Attention over an encoder's outputs; the keys do not depend on the step and are made once.
    text = """cell Reader(size: int) {
      input x: [B, D]
      memory enc: [B, S, E]
      state h: [B, size] = 0
      keys  = enc -> key: linear(size, bias=false)
      share = softmax(sum(keys * prev.h[:, new, :], axis=-1), axis=-1)
      seen  = sum(share[:, :, new] * enc, axis=1)
      h = tanh((x -> inp: linear(size)) + (seen -> mem: linear(size)))
      output h, share
    }
    model M {
      input enc: f32[B, S, 5]
      input x: f32[B, T, 4]
      y = x -> dec: scan Reader(3) over T with (enc = enc)
      output h = y.h, share = y.share
    }"""
    enc, x = rows(2, 6, 5), rows(2, 4, 4)
    found, w = run(text, enc=enc, x=x)
    h = np.zeros((2, 3), np.float32)
    keys = enc @ w["dec.key.weight"].T
    for step in range(4):
        score = (keys * h[:, None]).sum(-1)
        share = np.exp(score - score.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        seen = (share[:, :, None] * enc).sum(1)
        h = np.tanh(x[:, step] @ w["dec.inp.weight"].T + w["dec.inp.bias"]
                    + seen @ w["dec.mem.weight"].T + w["dec.mem.bias"])
        assert np.abs(found["h"][:, step] - h).max() < 1e-5
        assert np.abs(found["share"][:, step] - share).max() < 1e-5


def test_a_shared_layer_within_a_cell_has_one_set_of_weights():
    # The step's layer is made once, outside, and read at every step and after them.
    text = """cell Step(size: int, inner: layer) {
      input x: [B, D]
      state h: [B, size] = 0
      h = tanh(inner(x + prev.h)) if false else tanh(x + prev.h -> inner)
      output h
    }
    model M {
      input x: f32[B, T, 4]
      shared mix = linear(4)
      h = x -> r: scan Step(4, mix) over T
      output y = h -> mix
    }"""
    x = rows(2, 3, 4)
    found, w = run(text, x=x)
    assert sorted(w) == ["mix.bias", "mix.weight"]
    h = np.zeros((2, 4), np.float32)
    for step in range(3):
        h = np.tanh((x[:, step] + h) @ w["mix.weight"].T + w["mix.bias"])
        known = h @ w["mix.weight"].T + w["mix.bias"]
        assert np.abs(found["y"][:, step] - known).max() < 1e-5


@pytest.mark.parametrize("target", ["numpy", "cpu"])
def test_gradients_reach_every_parameter(target):
    # Through time, a stack of cells, a table and both ways; against differences.
    text = LSTM + """model M {
      input ids: i32[B, T]
      x = ids -> emb: embed(7, 4)
      h = x -> l1: scan LSTM(3) over T -> l2: scan LSTM(3) over T reverse
      output logits = h[:, 0] -> head: linear(2)
    }"""
    net = lamina.loads(text).M()
    weights = net.init(0)
    ids = np.random.default_rng(0).integers(0, 7, (3, 5)).astype(np.int32)
    label = np.array([0, 1, 1], np.int32)
    step = net.value_and_grad("cross_entropy(logits, label)", target=target)
    loss, grads = step(weights, ids=ids, label=label)
    assert set(grads) == set(weights)
    rng = np.random.default_rng(1)
    for key, grad in grads.items():
        way, size = rng.standard_normal(grad.shape).astype(np.float32), 1e-2
        ends = [step({**weights, key: weights[key] + sign * size * way}, ids=ids, label=label)[0]
                for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * size)
        assert (grad * way).sum() == pytest.approx(slope, rel=2e-2, abs=1e-4), key


def test_against_pytorch():
    # nn.LSTM at equal weights: outputs and gradients; PyTorch's gates are i, f, g, o as well.
    torch = pytest.importorskip("torch", reason="PyTorch is the second opinion")
    text = LSTM.replace("sigmoid(f + 1)", "sigmoid(f)") + """model M {
      input x: f32[B, T, 4]
      y = x -> r: scan LSTM(3) over T
      output y, h = y.final.h
    }"""
    net, x = lamina.loads(text).M(), rows(2, 6, 4)
    weights = net.init(0)
    loss, grads = net.value_and_grad("mean(y * y) + sum(h)", target="cpu")(weights, x=x)
    twin = torch.nn.LSTM(4, 3, batch_first=True)
    with torch.no_grad():
        twin.weight_ih_l0.copy_(torch.tensor(weights["r.W"][:4].T))
        twin.weight_hh_l0.copy_(torch.tensor(weights["r.W"][4:].T))
        twin.bias_ih_l0.copy_(torch.tensor(weights["r.b"]))
        twin.bias_hh_l0.zero_()
    y, (h, _) = twin(torch.tensor(x))
    known = (y * y).mean() + h.sum()
    known.backward()
    assert float(loss) == pytest.approx(float(known.detach()), rel=1e-5)
    both = np.concatenate([twin.weight_ih_l0.grad.numpy(), twin.weight_hh_l0.grad.numpy()], 1)
    assert np.abs(grads["r.W"] - both.T).max() < 1e-5
    assert np.abs(grads["r.b"] - twin.bias_ih_l0.grad.numpy()).max() < 1e-5


def test_labels_of_every_step():
    # The target's type follows the axis of the classes: [B, T] for logits [B, T, K].
    text = LSTM + """model M {
      input x: f32[B, T, 4]
      output logits = x -> r: scan LSTM(3) over T
    }"""
    step = lamina.loads(text).M().value_and_grad("cross_entropy(logits, label, axis=-1)")
    assert str(step.graph.type(step.graph.inputs["label"])) == "i32[B, T]"


def test_a_scan_of_which_only_the_last_state_is_read():
    # It is a layer with a row of its own all the same.
    text = LSTM + """model M {
      input x: f32[B, T, 4]
      y = x -> r: scan LSTM(3) over T
      output h = y.final.h
    }"""
    (row,) = lamina.loads(text).M().summary().layers
    assert (row.path, row.op, row.parameters) == ("r", "scan", 96)


def test_costs_count_every_step():
    # Parameters once, products as often as there are steps.
    text = LSTM + "model M {\n  input x: f32[2, 9, 4]\n  output y = x -> r: scan LSTM(3) over T\n}"
    net = lamina.loads(text.replace("2, 9, 4", "B, T, 4")).M()
    net.sizes["T"] = 9
    (row,) = net.summary().layers
    assert (row.parameters, row.macs) == (7 * 12 + 12, 9 * 7 * 12)
    # By the weights at every step, and by what they multiply: x and h are one operand.
    assert row.backward == 2 * row.macs


CELL = """cell Step(size: int) {
  input x: [B, D]
  state h: [B, size] = 0
  h = tanh((x -> linear(size)) + prev.h)
  output h
}
"""


@pytest.mark.parametrize("cell, line, message, help", [
    (CELL, "x -> Step(3)", "`Step` is a cell: it runs over a sequence",
     "write `x -> scan Step(3) over T`"),
    (CELL, "x -> scan Step(3) over K", "no axis of [B, T, 4] is `K` = 5", "run over `T`"),
    (CELL, "x -> scan linear(3) over T", "`scan` runs a cell; `linear` is",
     "declare it with `cell`"),
    (CELL, "x -> scan Step(3) over T with (c = x)", "the cell has no state and no memory `c`",
     "its states: `h`"),
    (CELL.replace("prev.h", "prev.hh"), "x -> scan Step(3) over T", "no state here is named `hh`",
     "did you mean `h`?"),
    (CELL.replace("  h = tanh", "  g = tanh").replace("output h", "output g"),
     "x -> scan Step(3) over T", "the state `h` gets no new value", "write `h = ...`"),
    (CELL.replace("[B, size] = 0", "[B, size]"), "x -> scan Step(3) over T",
     "the state `h` has no value before the first step", "= 0`, or give it with `with`"),
    (CELL.replace("linear(size)) + prev.h", "linear(1)) + prev.h[:, :1]"),
     "x -> scan Step(3) over T", "the state `h` is f32[B, 3] before a step and f32[B, 1] after it",
     ""),
    (CELL.replace("= tanh((x", "= tanh((x[:, :, new, new] -> batchnorm -> flatten"),
     "x -> scan Step(3) over T", "a cell cannot have running statistics", "use layernorm"),
    (CELL.replace("state h: [B, size] = 0", "memory h: [B, 3]\n  state s: [B] = 0\n  s = prev.s")
     .replace("  h = tanh((x -> linear(size)) + prev.h)\n", ""), "x -> scan Step(3) over T",
     "the memory `h` has no value", "with (h = value)"),
])
def test_mistakes(cell, line, message, help):
    # Each names what is wrong and the way out.
    text = f"{cell}const K = 5\nmodel M {{\n  input x: f32[B, T, 4]\n  output y = {line}\n}}\n"
    with pytest.raises(CompileError) as caught:
        lamina.loads(text).M().graph  # noqa: B018
    first = caught.value.diagnostics[0]
    assert message in first.message and help in (first.help or ""), (first.message, first.help)


SHARED = LSTM + """block Reader(step: layer) {
  input x: [B, T, D]
  output y = x -> scan step over T
}

model M {
  input x: f32[B, T, 4]
  input y: f32[B, U, 4]
  shared step = LSTM(3)
  a = x -> one: scan step over T
  b = y -> two: scan step over U reverse
  output a, b, c = x -> own: Reader(LSTM(2))
}
"""


@pytest.mark.parametrize("target", ["numpy", "cpu"])
def test_a_shared_cell_runs_over_several_sequences(target):
    # One set of weights for both scans, under the name of the shared layer; a block may be given
    # the cell that it runs, with weights of its own.
    x, y = rows(2, 5, 4), rows(2, 3, 4)
    found, weights = run(SHARED, target, x=x, y=y)
    assert set(weights) == {"step.W", "step.b", "own.scan.W", "own.scan.b"}
    w, b, zero = weights["step.W"], weights["step.b"], np.zeros((2, 3), np.float32)
    assert np.abs(found["a"] - lstm(x, w, b, zero, zero)[0]).max() < 1e-5
    assert np.abs(found["b"][:, ::-1] - lstm(y[:, ::-1], w, b, zero, zero)[0]).max() < 1e-5
    assert found["c"].shape == (2, 5, 2)


def test_a_shared_cell_has_its_settings():
    with pytest.raises(CompileError) as error:
        lamina.loads(SHARED.replace("scan step over U", "scan step(4) over U")).M().init(0)
    assert error.value.diagnostics[0].code == "E405"
