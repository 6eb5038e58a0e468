"""Whole models against PyTorch at equal weights: forward, loss and every parameter's gradient."""

import importlib.util

import numpy as np
import pytest

from lamina.tests.parity import twins

TORCH = importlib.util.find_spec("torch") is not None
# Forward within 1e-4 and gradients within 1e-3 of their largest entry, both float32.
FORWARD, GRADIENT = 1e-4, 1e-3


def recorded(name):
    with np.load(twins.FIXTURE) as file:
        return {key.partition(":")[2]: file[key] for key in file.files
                if key.startswith(f"{name}:")}


def close(ours, theirs, tolerance):
    return np.abs(ours - theirs).max() <= tolerance * max(np.abs(theirs).max(), 1e-6)


@pytest.mark.parametrize("target", ["cpu", "numpy"])
@pytest.mark.parametrize("name", ["lenet5", "resnet"])
def test_against_recorded_pytorch(name, target):
    # Runs everywhere: the figures were recorded from PyTorch by the command in twins.py.
    known = recorded(name)
    found = twins.digest(*twins.ours(name, target))
    assert set(found) == set(known)
    assert close(found["logits"], known["logits"], FORWARD)
    assert abs(found["loss"] - known["loss"]) <= FORWARD * known["loss"]
    for key in [key for key in known if key.endswith("/norm")]:
        path = key.removesuffix("/norm")
        assert abs(found[key] - known[key]) <= GRADIENT * known[key] + 1e-7, path
        scale = max(known[key], 1e-6)
        entries = np.abs(found[f"{path}/entries"] - known[f"{path}/entries"]).max()
        assert entries <= GRADIENT * scale, path


@pytest.mark.skipif(not TORCH, reason="PyTorch is not installed: the records above serve")
@pytest.mark.parametrize("name", ["lenet5", "resnet"])
def test_against_pytorch(name):
    # Live, every entry of every gradient; also that the records are what PyTorch gives.
    loss, logits, grads = twins.ours(name, "cpu")
    other_loss, other_logits, other_grads = twins.theirs(name)
    assert close(logits, other_logits, FORWARD)
    assert abs(loss - other_loss) <= FORWARD * other_loss
    assert set(grads) == set(other_grads)
    for key, grad in grads.items():
        # A gradient that cancels (a bias before batch-norm) has only rounding noise left.
        if np.abs(other_grads[key]).max() > 1e-6:
            assert close(grad, other_grads[key], GRADIENT), key
    known = recorded(name)
    for key, value in twins.digest(other_loss, other_logits, other_grads).items():
        assert np.allclose(value, known[key], rtol=1e-3, atol=1e-6), key


def test_training_curves_agree():
    # Ten steps of the real recipe's optimizer on the same batches give the same losses.
    torch = pytest.importorskip("torch", reason="curves are compared with PyTorch live")
    from lamina.api import load, make_runner
    from lamina.compiler.options import from_environment

    training = load("lenet5").recipe()
    runner = make_runner(training.step(0), from_environment())
    weights = training.initial()
    runner.set_params(weights)
    twin = {key: torch.tensor(value, requires_grad=True) for key, value in weights.items()}
    optimizer = torch.optim.SGD(list(twin.values()), lr=0.05, momentum=0.9, weight_decay=5e-4)
    rng = np.random.default_rng(1)
    for step in range(1, 11):
        x = rng.standard_normal((32, 1, 32, 32)).astype(np.float32)
        y = rng.integers(0, 10, 32).astype(np.int32)
        ours = runner.run({"image": x, "label": y, "lr": np.float32(0.05),
                           "step": np.float32(step)})["loss"]
        optimizer.zero_grad()
        logits = twins._lenet5(torch.nn.functional, twin, torch.tensor(x))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(y).long())
        loss.backward()
        optimizer.step()
        assert abs(float(ours) - float(loss.detach())) < 1e-4 * float(loss.detach())
    final = runner.get_params()
    for key, value in twin.items():
        assert np.abs(final[key] - value.detach().numpy()).max() < 1e-5
