"""The zoo against PyTorch at equal weights: a training step, whole, and evaluation."""

import functools
import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from lamina.api import load, make_runner
from lamina.compiler.options import from_environment
from lamina.tests.parity import twins

TORCH = importlib.util.find_spec("torch") is not None
live = pytest.mark.skipif(not TORCH, reason="PyTorch is not installed: the records serve")
# The interpreter is slow: one model of each kind of arithmetic.
SLOW = ("lenet5.LeNet5", "lenet5_1998.LeNet5of1998", "vgg.VGG11BN", "resnet.ResNet50",
        "cifar_resnet.SmallResNet")


@functools.cache
def ours(model):
    return twins.ours(twins.SMALL[model], "cpu")


def check_digest(found, known, tolerance_of=twins.tolerance):
    """Norms and entries agree, each relative to the array's norm."""
    names = str(known["names"]).split("\n")
    assert str(found["names"]).split("\n") == names
    gradients = max(norm for name, norm in zip(names, known["norms"], strict=True)
                    if name.startswith("grad:"))
    for i, name in enumerate(names):
        # A gradient that cancels has only rounding left: see twins.NOTHING.
        scale = max(known["norms"][i], twins.NOTHING * gradients * name.startswith("grad:"))
        if known["norms"][i] < scale:
            scale = gradients
        allowed = tolerance_of(name) * scale
        assert abs(found["norms"][i] - known["norms"][i]) <= allowed, name
        assert np.abs(found["entries"][i] - known["entries"][i]).max() <= allowed, name


@pytest.mark.parametrize("model", twins.SMALL)
def test_against_recorded_pytorch(model):
    # Runs everywhere: the figures were recorded from PyTorch by the command in twins.py.
    check_digest(twins.digest(ours(model)), twins.recorded(model))


@pytest.mark.parametrize("model", SLOW)
def test_interpreter_against_recorded_pytorch(model):
    # The interpreter is the oracle of the kernels; here it has an oracle of its own.
    check_digest(twins.digest(twins.ours(twins.SMALL[model], "numpy")), twins.recorded(model))


@live
@pytest.mark.parametrize("model", twins.SMALL)
def test_the_records_are_pytorch(model):
    known = twins.digest(twins.theirs(twins.SMALL[model]))
    check_digest(known, twins.recorded(model), lambda name: 1e-5)


@live
@pytest.mark.parametrize("model", twins.SMALL)
def test_against_pytorch(model):
    # Live, every entry of every array, at a seed that nobody searched for: kinks may be near, so
    # PyTorch follows our sides of them, which `Following` refuses where they are not near.
    from lamina.tests.parity.branches import Following

    case = replace(twins.SMALL[model], seed=100)
    found = twins.ours(case, "cpu", sides=True)
    known = twins.theirs(case, Following(twins.take_sides(found)))
    wrong = {name: error for name, error in twins.errors(found, known).items()
             if not error <= twins.tolerance(name)}
    assert wrong == {}


@live
@pytest.mark.parametrize("x, side", [(0.5, 0.0), (-0.5, 0.5)])
def test_a_wrong_side_far_from_its_jump_is_refused(x, side):
    # Else a ReLU that always passed, or never, would be followed and found right.
    import torch

    from lamina.tests.parity.branches import Following

    with pytest.raises(AssertionError), Following([np.array([1.0, side], np.float32)]):
        torch.nn.functional.relu(torch.tensor([1.0, x]))


@live
def test_a_wrong_maximum_is_refused():
    # The operand of our pool says which entry it took: one far below the maximum is a fault.
    import torch

    from lamina.tests.parity.branches import Following

    x = np.arange(16.0, dtype=np.float32).reshape(1, 1, 4, 4)
    with pytest.raises(AssertionError), Following([x[:, :, ::-1].copy()]):
        torch.nn.functional.max_pool2d(torch.tensor(x), 2)


@live
def test_every_model_has_a_twin():
    # A model enters the zoo with its twin, of which the parameters are ours by name and shape.
    from lamina.tests.parity import networks

    assert set(networks.TWINS) == set(twins.full_cases())
    families = {model.partition(".")[0] for model in networks.TWINS}
    assert {model.partition(".")[0] for model in twins.SMALL} == families


@live
@pytest.mark.parametrize("model", twins.full_cases())
def test_parameters_of_every_model(model):
    # At full size, without computing anything: the twin is built without memory.
    import torch

    from lamina.tests.parity import networks

    case = twins.full_cases()[model]
    with torch.device("meta"):
        twin = networks.TWINS[model]()
    shapes = {key: tuple(value.shape) for key, value in twin.state_dict().items()
              if not key.endswith("num_batches_tracked")}
    assert {key: type.shape for key, type in case.net().parameters.items()} == shapes


@live
def test_an_error_is_seen():
    # A comparison that nothing fails compares nothing: one entry of one array is moved.
    known = twins.theirs(twins.SMALL["lenet5.LeNet5"])
    for name in known:
        moved = {key: np.array(value) for key, value in known.items()}
        moved[name].reshape(-1)[-1] += 0.01 * np.abs(known[name]).max()
        wrong = [key for key, error in twins.errors(moved, known).items()
                 if error > twins.tolerance(key)]
        assert wrong == [name]


@live
@pytest.mark.parametrize("model", ["tagger.Tagger", "seq2seq.Multiplicative"])
def test_ends_of_examples_are_compared(model, monkeypatch):
    # With all examples as long as their room, numbers past the ends would count, and differ.
    case = twins.SMALL[model]
    found, given = twins.ours(case, "cpu"), twins.inputs(case)
    full = {name: np.full_like(value, value[0]) for name, value in given.lengths.items()}
    monkeypatch.setattr(twins, "inputs", lambda _: replace(given, fed=given.fed | full))
    wrong = twins.errors(found, twins.theirs(case))
    assert min(wrong[name] for name in ("loss", "result", "evaluated")) > twins.FORWARD


def test_training_curves_agree():
    # Ten steps of the real recipe's optimizer on the same batches give the same losses.
    torch = pytest.importorskip("torch", reason="curves are compared with PyTorch live")
    from lamina.tests.parity import networks

    training = load("lenet5").recipe()
    runner = make_runner(training.step(0), from_environment())
    weights = training.initial()
    runner.set_params(weights)
    twin = networks.TWINS["lenet5.LeNet5"]()
    twin.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    rng = np.random.default_rng(1)
    for step in range(1, 11):
        x = rng.standard_normal((32, 1, 32, 32)).astype(np.float32)
        y = rng.integers(0, 10, 32).astype(np.int32)
        ours = runner.run({"image": x, "label": y, "lr": np.float32(0.05),
                           "step": np.float32(step)})["loss"]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(torch.tensor(x)), torch.tensor(y).long())
        loss.backward()
        optimizer.step()
        assert abs(float(ours) - float(loss.detach())) < 1e-4 * float(loss.detach())
    final = runner.get_params()
    for key, value in twin.named_parameters():
        assert np.abs(final[key] - value.detach().numpy()).max() < 1e-5
