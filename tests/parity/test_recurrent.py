"""The library's recurrent layers against PyTorch's at equal weights."""

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import lamina
from lamina.commands.training import initial_weights
from lamina.compiler.errors import CompileError

torch = pytest.importorskip("torch", reason="PyTorch is what they are compared with")
TOUR = Path(__file__).parents[2] / "grammar" / "tour.md"
KINDS = {
    "rnn": ("rnn(5, layers=2)", lambda: torch.nn.RNN(4, 5, 2, batch_first=True)),
    "relu": ("rnn(5, relu=true)", lambda: torch.nn.RNN(4, 5, nonlinearity="relu",
                                                       batch_first=True)),
    "lstm": ("lstm(5, layers=2, bidirectional=true)",
             lambda: torch.nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)),
    "proj": ("lstm(5, layers=2, bidirectional=true, proj=3)",
             lambda: torch.nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True, proj_size=3)),
    "gru": ("gru(5, layers=2, bidirectional=true)",
            lambda: torch.nn.GRU(4, 5, 2, batch_first=True, bidirectional=True)),
}


def theirs(key):
    """PyTorch's name of a parameter of ours, layers.0.forward.weight_ih."""
    _, layer, way, name = key.rsplit(".", 3)
    return f"{name}_l{layer}" + ("_reverse" if way == "backward" else "")


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("target", ["numpy", "cpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_those_of_pytorch(kind, target):
    # Outputs and every gradient; the order of the gates shows in both.
    call, make = KINDS[kind]
    text = f"model M {{\n  input x: f32[B, 6, 4]\n  output y = x -> r: {call}\n}}\n"
    net, twin = lamina.loads(text).M(), make()
    weights = net.init(1)
    state = {theirs(key): torch.tensor(value) for key, value in weights.items()}
    assert not any(twin.load_state_dict(state))
    x = np.random.default_rng(0).standard_normal((3, 6, 4)).astype(np.float32)
    y, _ = twin(torch.tensor(x))
    loss = (y * y * torch.arange(6.0)[:, None]).sum()
    loss.backward()
    found, grads = net.value_and_grad(
        "sum(y * y * iota(shape=[6, 1], axis=0, dtype=\"f32\"))", target=target)(weights, x=x)
    assert float(found) == pytest.approx(float(loss.detach()), rel=1e-5)
    for key, grad in grads.items():
        known = getattr(twin, theirs(key)).grad.numpy()
        assert np.abs(grad - known).max() <= 1e-4 * np.abs(known).max(), key


@pytest.mark.parametrize("target", ["numpy", "cpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_packed_sequences(kind, target):
    # Sentences of different lengths: outputs, final states and every gradient of PyTorch's packed
    # sequences, where the way back begins at each one's own end.
    call, make = KINDS[kind]
    text = f"model M {{\n  input x: f32[B, S~, 4]\n  output y = x -> r: {call}\n}}\n"
    net, twin = lamina.loads(text).M(), make()
    weights = net.init(1)
    assert not any(twin.load_state_dict({theirs(k): torch.tensor(v) for k, v in weights.items()}))
    lengths, rng = (3, 7, 1, 4), np.random.default_rng(0)
    x = [rng.standard_normal((n, 4)).astype(np.float32) for n in lengths]
    packed = torch.nn.utils.rnn.pack_sequence([torch.tensor(one) for one in x], False)
    y, sizes = torch.nn.utils.rnn.pad_packed_sequence(twin(packed)[0], batch_first=True)
    assert tuple(sizes) == lengths
    loss = (y * y * torch.arange(7.0)[:, None]).sum()
    loss.backward()
    assert np.abs(net.compile(target)(weights, x=x)["y"] - y.detach().numpy()).max() < 1e-6
    found, grads = net.value_and_grad(
        "sum(y * y * iota(shape=(S, 1), axis=0, dtype=\"f32\"))", target=target)(weights, x=x)
    assert float(found) == pytest.approx(float(loss.detach()), rel=1e-5)
    for key, grad in grads.items():
        known = getattr(twin, theirs(key)).grad.numpy()
        assert np.abs(grad - known).max() <= 1e-4 * np.abs(known).max(), key


def test_the_reset_gate_of_the_paper():
    # Cho and others let it act on the state before the product; a reader may want either.
    text = ("model M {\n  input x: f32[B, T, 4]\n"
            "  output y = x -> r: gru(3, reset_after=false)\n}\n")
    net = lamina.loads(text).M()
    w = {key.rpartition(".")[2]: value for key, value in net.init(0).items()}
    x = np.random.default_rng(0).standard_normal((2, 4, 4)).astype(np.float32)
    found, h = net.compile("numpy")(net.init(0), x=x)["y"], np.zeros((2, 3), np.float32)
    for step in range(4):
        a = np.split(x[:, step] @ w["weight_ih"].T + w["bias_ih"], 3, axis=1)
        b = np.split(w["weight_hh"], 3), np.split(w["bias_hh"], 3)
        r, z = (1 / (1 + np.exp(-(a[k] + h @ b[0][k].T + b[1][k]))) for k in range(2))
        n = np.tanh(a[2] + (r * h) @ b[0][2].T + b[1][2])
        h = (1 - z) * n + z * h
        assert np.abs(found[:, step] - h).max() < 1e-5


@pytest.mark.parametrize("target", ["numpy", "cpu"])
def test_peepholes_are_those_of_the_paper(target):
    # Gers, Schraudolph and Schmidhuber (2002), read as a loop: the gates of input and forgetting
    # see the cell before the step, that of the output the new one.
    text = ("model M {\n  input x: f32[B, 6, 4]\n"
            "  output y = x -> r: lstm(5, forget=1.0, peepholes=true, proj=3)\n}\n")
    net = lamina.loads(text).M()
    weights = net.init(1)
    w = {key.rpartition(".")[2]: torch.tensor(value, requires_grad=True)
         for key, value in weights.items()}
    x = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    h, c, loss = torch.zeros(2, 3), torch.zeros(2, 5), 0.0
    for step in range(6):
        z = torch.tensor(x[:, step]) @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T
        i, f, g, o = (z + w["bias_hh"]).chunk(4, 1)
        i = torch.sigmoid(i + w["weight_ci"] * c)
        f = torch.sigmoid(f + 1 + w["weight_cf"] * c)
        c = f * c + i * torch.tanh(g)
        h = torch.sigmoid(o + w["weight_co"] * c) * torch.tanh(c) @ w["weight_hr"].T
        loss = loss + (step + 1) * (h * h).sum()
    loss.backward()
    found, grads = net.value_and_grad(
        "sum(y * y * (1.0 + iota(shape=[6, 1], axis=0, dtype=\"f32\")))", target=target)(
        weights, x=x)
    assert float(found) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert len(grads) == len(w) == 8
    for key, grad in grads.items():
        known = w[key.rpartition(".")[2]].grad.numpy()
        assert np.abs(grad - known).max() <= 1e-4 * np.abs(known).max(), key


@pytest.mark.parametrize("call", ["lstm(5, proj=5)", "lstm(5, proj=-1)"])
def test_a_projection_is_smaller(call):
    # PyTorch refuses the same; a projection of no unit would be none without a word.
    with pytest.raises(CompileError, match="proj is 0"):
        lamina.loads(f"model M {{\n  input x: f32[B, T, 4]\n  output y = x -> {call}\n}}\n"
                     ).M().build()


@pytest.mark.parametrize("make", ["LSTM", "GRU"])
def test_a_state_dict_comes_in_by_two_lines(make, tmp_path):
    # What PyTorch saved of a bidirectional stack, with the tour's lines; the outputs are the same.
    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = torch.nn.Embedding(11, 6)
            self.lstm = getattr(torch.nn, make)(6, 5, 2, batch_first=True, bidirectional=True)
            self.fc = torch.nn.Linear(10, 3)

        def forward(self, ids):
            return self.fc(self.lstm(self.emb(ids))[0].max(1).values)

    torch.manual_seed(0)
    theirs = Theirs()
    save_file({key: value.numpy() for key, value in theirs.state_dict().items()},
              tmp_path / "pytorch.safetensors")
    lines = re.search(r'    map "lstm.*\n    map "lstm.*\n', TOUR.read_text(encoding="utf-8"))[0]
    layer = f"{make.lower()}(5, layers=2, bidirectional=true)"
    (tmp_path / "m.lam").write_text(f"""model M {{
  input ids: i32[B, T]
  y = ids -> emb: embed(11, 6) -> rnn: {layer}
  output logits = max(y, axis=T) -> head: linear(3)
}}

recipe r for M {{
  data train = arrays("none.npz", ids="ids", label="label")
  target label: i32[B]
  loss      = cross_entropy(logits, label)
  optimizer = adam(lr=1e-3)
  weights "pytorch.safetensors" {{
{lines}    map "fc.*" => "head.*"
  }}
}}
""")
    training = lamina.load(tmp_path / "m.lam").recipe()
    warnings = []
    weights = initial_weights(training, warnings.append)
    ids = np.random.default_rng(0).integers(0, 11, (4, 7)).astype(np.int32)
    found = training.net.compile("numpy")(weights, ids=ids)["logits"]
    np.testing.assert_allclose(found, theirs(torch.tensor(ids)).detach().numpy(), atol=1e-5)
    assert warnings == []


def test_dropout_between_layers_alone():
    # As in PyTorch: not before the first layer, and none outside of training.
    text = ("model M {\n  input x: f32[B, T, 4]\n"
            "  output y = x -> r: lstm(3, layers=2, dropout=0.5)\n}\n")
    net = lamina.loads(text).M()
    x = np.ones((2, 3, 4), np.float32)
    weights, rng = net.init(0), np.array([1, 2], np.int32)
    plain = net.compile("numpy")(weights, x=x)["y"]
    again = net.compile("numpy", train=True)(weights, x=x, rng=rng)["y"]
    assert not np.allclose(plain, again)
    single = lamina.loads(text.replace("layers=2", "layers=1")).M()
    assert "rng" not in single.build(True).graph.inputs
