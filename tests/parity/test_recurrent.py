"""The library's recurrent layers against PyTorch's at equal weights."""

import numpy as np
import pytest

import lamina

torch = pytest.importorskip("torch", reason="PyTorch is what they are compared with")
KINDS = {
    "rnn": ("rnn(5, layers=2)", lambda: torch.nn.RNN(4, 5, 2, batch_first=True)),
    "relu": ("rnn(5, relu=true)", lambda: torch.nn.RNN(4, 5, nonlinearity="relu",
                                                       batch_first=True)),
    "lstm": ("lstm(5, layers=2, bidirectional=true)",
             lambda: torch.nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)),
    "gru": ("gru(5, layers=2, bidirectional=true)",
            lambda: torch.nn.GRU(4, 5, 2, batch_first=True, bidirectional=True)),
}


def theirs(key):
    """PyTorch's name of a parameter of ours, layers.0.forward.weight_ih."""
    _, layer, way, name = key.rsplit(".", 3)
    return f"{name}_l{layer}" + ("_reverse" if way == "backward" else "")


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


def test_dropout_between_layers_alone():
    # As in PyTorch: not before the first layer, and none outside of training.
    text = ("model M {\n  input x: f32[B, T, 4]\n"
            "  output y = x -> r: lstm(3, layers=2, p=0.5)\n}\n")
    net = lamina.loads(text).M()
    x = np.ones((2, 3, 4), np.float32)
    weights, rng = net.init(0), np.array([1, 2], np.int32)
    plain = net.compile("numpy")(weights, x=x)["y"]
    again = net.compile("numpy", train=True)(weights, x=x, rng=rng)["y"]
    assert not np.allclose(plain, again)
    single = lamina.loads(text.replace("layers=2", "layers=1")).M()
    assert "rng" not in single.build(True).graph.inputs
