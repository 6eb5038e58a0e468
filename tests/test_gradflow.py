"""`lamina gradflow`: what it measures, what it says of it, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

import lamina
from lamina.commands.gradflow import trend
from lamina.tests.test_cli import SMALL, run

STEPS = 24
LINEAR = """cell Linear(factor: float) {
  input x: [B, D]
  state h: [B, D] = 0
  h = prev.h * factor + x
  output h
}

model M(factor: float = 1.0) {
  input x: f32[B, T, 3]
  y = x -> own: scan Linear(factor) over T
  output last = y[:, -1, :], all = y
}

recipe last for M {
  data train = arrays("data.npz", x="x", t="t")
  target t: f32[B, 3]
  loss      = mse(last, t)
  optimizer = sgd(lr=0.1)
  batch     = 8
}

recipe all for M {
  data train = arrays("data.npz", x="x", t="t")
  target t: f32[B, 3]
  loss      = mean(square(all - t[:, new, :]))
  optimizer = sgd(lr=0.1)
  batch     = 8
}
"""
LAYERS = """model M {
  input x: f32[B, 24, 3]
  output y = x -> flatten -> fc: linear(5) -> tanh -> head: linear(3)
}

recipe fit for M {
  data train = arrays("data.npz", x="x", t="t")
  target t: f32[B, 3]
  loss      = mse(y, t)
  optimizer = sgd(lr=0.1)
  batch     = 8
}
"""
TEXTS = LINEAR.partition("model")[0] + """model M {
  input ids: i32[B, S~]
  y = ids -> emb: embed(10, 3) -> own: scan Linear(0.5) over S
  output logits = y.final.h -> head: linear(2)
}

recipe texts for M {
  data train = tsv("texts.tsv", ids="words", label="class")
  target label: i32[B]
  loss      = cross_entropy(logits, label)
  optimizer = sgd(lr=0.1)
  batch     = 4
}
"""
DEEP = LAYERS.replace("model M", """block Layer() {
  input x: [B, D]
  y = x -> fc: linear(32) -> tanh
  output z = OUT
}

model M""").replace("fc: linear(5) -> tanh", "first: linear(32) -> deep: repeat 50 { Layer }")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a cell whose gradient is known, and data for it."""
    monkeypatch.chdir(tmp_path)
    Path("linear.lam").write_text(LINEAR)
    Path("small.lam").write_text(SMALL)
    Path("layers.lam").write_text(LAYERS)
    rng = np.random.default_rng(0)
    np.savez("data.npz", x=rng.standard_normal((32, STEPS, 3)).astype(np.float32),
             t=rng.standard_normal((32, 3)).astype(np.float32))
    return tmp_path


def flow(*args):
    code, text = run("gradflow", *args, "--json")
    assert code == 0, text
    return json.loads(text)


@pytest.mark.parametrize("target", ["numpy", "cpu"])
@pytest.mark.parametrize("factor, verdict, until", [
    (0.5, "vanishing", 10), (1.0, "steady", None), (1.6, "exploding", 15)])
def test_a_linear_cell_has_its_own_factor(factor, verdict, until, target, place, kernel_cache):
    # dL/dh_t is the factor to the power of the steps back: nothing is estimated here.
    found = flow("linear.lam#last", "--set", f"factor={factor}", "--target", target)
    (state,) = found["states"]
    assert (state["scan"], state["cell"], state["state"]) == ("own", "Linear", "h")
    assert state["factor"] == pytest.approx(factor, rel=1e-5)
    assert (state["verdict"], state["until"]) == (verdict, until)
    known = state["last"][0] * factor ** np.arange(STEPS)
    np.testing.assert_allclose(state["last"], known, rtol=1e-4)
    assert state["all"] == pytest.approx(state["last"])
    if until:
        assert f"own h: {verdict}, a factor of {factor:.2f} a step" in found["findings"][0]


def test_losses_at_every_step_do_not_hide_what_vanishes(place):
    # With a loss at each step every state gets a gradient from nearby: that says nothing about
    # memory, so the verdict is on what the last step sends back.
    found = flow("linear.lam#all", "--set", "factor=0.5", "--target", "numpy")["states"][0]
    assert found["verdict"] == "vanishing" and found["factor"] == pytest.approx(0.5, rel=1e-5)
    assert min(found["all"]) > 100 * found["last"][-1]
    text = run("gradflow", "linear.lam#all", "--set", "factor=0.5", "--target", "numpy")[1]
    assert "own h, of all steps" in text and "1/1000 after 10 steps" in text


def test_texts_of_different_lengths(place):
    # Steps back are counted from each text's own end, where the padding is of no account.
    Path("texts.lam").write_text(TEXTS)
    lines = [" ".join("ab"[n % 2] for n in range(length)) + f"\t{length % 2}\n"
             for length in (3, 20, 9, 14, 20, 5, 8, 11)]
    Path("texts.tsv").write_text("".join(lines))
    (state,) = flow("texts.lam", "--target", "numpy", "--batches", 2)["states"]
    assert len(state["last"]) == 20 and (state["verdict"], state["until"]) == ("vanishing", 10)
    assert state["factor"] == pytest.approx(0.5, rel=0.05)
    assert state["all"] == pytest.approx(state["last"])


def test_states_of_a_cell_within_a_cell(place):
    # Named as `with (lstm.h = ...)` names them.
    Path("inner.lam").write_text(LINEAR.partition("model")[0].replace("cell Linear", """cell Outer {
  input x: [B, D]
  state sum: [B, D] = 0
  sum = prev.sum + (x -> inner: LSTMCell(3))
  output sum
}

cell Linear""") + LINEAR[LINEAR.index("model"):].replace("Linear(factor)", "Outer"))
    states = flow("inner.lam", "--target", "numpy")["states"]
    assert [state["state"] for state in states] == ["sum", "inner.h", "inner.c"]
    assert states[0]["verdict"] == "steady"


def test_batches_are_averaged(place):
    # The figures are means over the batches asked for, at most those of an epoch.
    one, two, all = (flow("linear.lam", "--batches", n, "--target", "numpy") for n in (1, 2, 99))
    assert [found["batches"] for found in (one, two, all)] == [1, 2, 4]
    assert len({found["loss"] for found in (one, two, all)}) == 3


def test_layers_and_parameters_of_a_network(place):
    # Every figure against the same computed by hand.
    found = flow("layers.lam", "--target", "numpy")
    w = lamina.load("layers.lam").recipe().initial()
    with np.load("data.npz") as data:
        x, t = (data[name][:8].astype(np.float64) for name in "xt")
    x = x.reshape(8, -1)
    hidden = np.tanh(x @ w["fc.weight"].T + w["fc.bias"])
    y = hidden @ w["head.weight"].T + w["head.bias"]
    dy = 2 * (y - t) / y.size
    dz = dy @ w["head.weight"] * (1 - hidden ** 2)
    known = {"flatten": (x, dz @ w["fc.weight"]), "fc": (np.arctanh(hidden), dz),
             "tanh": (hidden, dy @ w["head.weight"]), "head": (y, dy)}
    for row in found["layers"]:
        sizes = [np.sqrt(np.mean(np.square(one))) for one in known.pop(row["path"])]
        assert [row["activation"], row["gradient"]] == pytest.approx(sizes, rel=1e-5)
    assert not known
    known = {"fc.weight": dz.T @ x, "fc.bias": dz.sum(0), "head.weight": dy.T @ hidden,
             "head.bias": dy.sum(0)}
    for row in found["parameters"]:
        sizes = [np.sqrt(np.mean(np.square(one))) for one in (w[row["key"]], known[row["key"]])]
        assert [row["value"], row["gradient"]] == pytest.approx(sizes, rel=1e-5)
    assert [row["key"] for row in found["parameters"]] == list(known)
    assert found["loss"] == pytest.approx(np.mean((y - t) ** 2), rel=1e-5)


def test_dead_layers_are_named(place):
    # Where a ReLU is zero everywhere nothing before it learns; what no loss reads is not dead.
    text = LAYERS.replace("tanh", "(_ * 0.0 - 1) -> relu").replace(
        "  output y", "  output aside = x -> flatten -> other: linear(2)\n  output y")
    Path("dead.lam").write_text(text)
    found = flow("dead.lam", "--target", "numpy")["findings"]
    assert found == ["dead, no gradient at all: flatten0, flatten1, fc",
                     "not used by the loss: other"]


def test_depth_has_a_trend_too(place):
    # Fifty layers of tanh lose more than a thousandth of the gradient; with shortcuts they do not.
    for skip, verdict in (("y", "vanishing"), ("x + y", "steady")):
        Path("deep.lam").write_text(DEEP.replace("OUT", skip))
        line = flow("deep.lam", "--target", "numpy")["findings"][-1]
        assert line.startswith(f"layers, from the last to the first: {verdict}, a factor of ")


def test_weights_of_a_run(place):
    # Trained weights give other figures than the initial ones.
    assert run("train", "small.lam", "--out", "run", "-o", "epochs=1")[0] == 0
    start, end = flow("small.lam"), flow("small.lam", "--weights", "run")
    assert end["loss"] < start["loss"] / 2


@pytest.mark.parametrize("args, code, said", [
    (("model.lam",), "E505", "this file has no recipe"),
    (("linear.lam#first",), "E505", "no recipe is named `first`"),
    (("linear.lam", "--weights", "nowhere"), "E701", "there is no nowhere"),
    (("lossless.lam",), "E504", "a recipe needs a loss"),
])
def test_refusals(args, code, said, place):
    Path("model.lam").write_text(LINEAR.partition("recipe")[0])
    Path("lossless.lam").write_text(LINEAR.replace("  loss      = mse(last, t)\n", ""))
    exit_code, text = run("gradflow", *args, "--target", "numpy")
    assert exit_code == 1
    assert f"error[{code}]" in text and said in text


def test_a_picture(place):
    # One panel for states, one for layers, one for parameters; any other ending is refused.
    code, text = run("gradflow", "linear.lam", "--target", "numpy", "-o", "flow.png")
    assert code == 0 and "wrote flow.png" in text
    assert Path("flow.png").read_bytes().startswith(b"\x89PNG")
    assert run("gradflow", "small.lam", "--target", "numpy", "-o", "flow.svg")[0] == 0
    code, text = run("gradflow", "linear.lam", "--target", "numpy", "-o", "flow.txt")
    assert code == 1 and "E416" in text


def test_trends():
    # The words rest on these: what is seen in the norms, what only the factor says.
    assert trend([1.0]) is None and trend([1.0, 0.0]) is None and trend([0.0, 0.0]) is None
    found = trend([0.7 ** n for n in range(15)])
    assert (found.verdict, found.until, found.seen) == ("vanishing", 20, False)
    assert trend([2.0 ** n for n in range(15)]).until == 10
    assert trend([1.0, 0.9, 1.1, 1.0]).verdict == "steady"
