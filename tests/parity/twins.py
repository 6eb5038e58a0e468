"""Our models beside their PyTorch twins: what is compared, at equal weights.

Compared are, of a training step, the loss, the outputs, every gradient and the running statistics
after it, and the outputs of evaluation.

`python -m lamina.tests.parity.twins` records PyTorch's results in tests/fixtures/twins.npz, for
machines without it: of each array its norm and eight of its entries.
`python -m lamina.tests.parity.twins --full [MODEL ...]` compares the whole zoo at full size; there,
and in the suite where PyTorch is installed, the sides of kinks are ours: see branches.py.
"""

from __future__ import annotations

import argparse
import sys
import time
import tomllib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import lamina
from lamina.api import make_runner, parse_expression
from lamina.compiler.frontend.build import Objective
from lamina.compiler.frontend.library import zoo_folder
from lamina.compiler.options import from_environment
from lamina.compiler.transform.autodiff import add_gradients
from lamina.compiler.transform.training import trainable

if TYPE_CHECKING:
    from lamina.tests.parity.branches import Following

FIXTURE = Path(__file__).parent.parent / "fixtures" / "twins.npz"
ENTRIES = 8
LOSS = "cross_entropy(logits, label)"
OF_TOKENS = "cross_entropy(logits, label, axis=-1)"  # classes last
# Over all that has a gradient: the detector's own loss is tested position by position elsewhere.
DETECTOR_LOSS = "mean(square(logits)) + mean(sides) + mean(square(central))"
# Relative to the largest entry of the array; ours is float32.
FORWARD, GRADIENT = 1e-4, 1e-3
# A gradient below this share of the largest of its model is zero but for rounding: that of a bias
# before batch-norm.
NOTHING = 1e-6


@dataclass(frozen=True, slots=True)
class Case:
    """A model of the zoo, "file.Model", with settings and the shape of its images or tokens."""

    model: str
    shape: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    # For the records: one for which no ReLU's argument is so near 0 that rounding decides its sign.
    seed: int = 0
    damped: bool = False  # see `inputs`

    @property
    def detects(self) -> bool:
        """Whether there are boxes beside the scores, and no label for a whole image."""
        return self.model.startswith("detector.")

    @property
    def given(self):
        """The model's input."""
        (one,) = self.net().fed
        return one

    @property
    def reads(self) -> bool:
        """Whether it takes tokens."""
        return self.given.dtype == "i32"

    @property
    def loss(self) -> str:
        """What is differentiated."""
        return DETECTOR_LOSS if self.detects else OF_TOKENS if self.reads else LOSS

    def net(self, training: bool = False):
        """Our model; in training without dropout, whose random numbers are our own."""
        file, _, name = self.model.partition(".")
        make = getattr(lamina.load(file), name)
        drops = "p" in {one.name.id for one in make().definition.node.params}
        return make(**self.settings, **({"p": 0.0} if training and drops else {}))

    def twin(self):
        """The same from PyTorch."""
        from lamina.tests.parity import networks

        return networks.TWINS[self.model](**self.settings)


_ALEXNET = {"classes": 7, "hidden": 48}
_VGG = {"classes": 7, "size": 64, "width": 8, "hidden": 48}
# The smallest of each family in which every construct occurs. Of some dozen seeds each has the one
# whose activations stay farthest from 0.
SMALL = {case.model: case for case in (
    Case("lenet5.LeNet5", (6, 1, 32, 32)),
    Case("lenet5_1998.LeNet5of1998", (6, 1, 32, 32)),
    Case("alexnet.AlexNet", (2, 3, 224, 224), _ALEXNET, 16),
    Case("alexnet.AlexNet2012", (2, 3, 227, 227), _ALEXNET, 4),
    Case("vgg.VGG11", (2, 3, 64, 64), _VGG, 17),
    Case("vgg.VGG11BN", (4, 3, 64, 64), _VGG, 21),
    Case("resnet.ResNet18", (3, 3, 64, 96), {"classes": 7, "depths": [1, 2, 1, 1]}, 18),
    Case("resnet.ResNet50", (3, 3, 64, 96), {"classes": 7, "depths": [2, 1, 1, 1]}, 11),
    Case("resnet.ResNet50v1", (3, 3, 64, 96), {"classes": 7, "depths": [1, 2, 1, 1]}, 22),
    Case("cifar_resnet.SmallResNet", (4, 3, 32, 32), {"n": 2}, 1),
    Case("unet.UNet", (2, 1, 188, 188), {"width": 4, "size": 188}, 5),
    Case("unet.UNetBN", (2, 1, 188, 188), {"width": 4, "size": 188}, 4),
    Case("unet.UNetSame", (2, 1, 64, 64), {"width": 4, "size": 64}, 21),
    Case("detector.Detector", (2, 3, 64, 48), {"classes": 5, "width": 8}),
    Case("copy_task.CopyTask", (3, 9), {"length": 3}),
    Case("copy_task.CopyRNN", (3, 9), {"length": 3}),
    Case("copy_task.CopyGRU", (3, 9), {"length": 3}),
    Case("mobilenet.MobileNet", (3, 3, 64, 96), {"classes": 7, "width": 0.25}),
    Case("mobilenet.MobileNetV2", (3, 3, 64, 96), {"classes": 7, "width": 0.35}),
)}


def full_cases() -> dict[str, Case]:
    """Every model of the zoo at its own size; two examples, one of the large U-Nets."""
    expected = tomllib.loads((zoo_folder() / "expected.toml").read_text())
    cases = {}
    for file, models in expected.items():
        for name, facts in models.items():
            _, *rest = map(int, facts["input"].partition("=")[2].split("x"))
            cases[f"{file}.{name}"] = Case(f"{file}.{name}", (1 if file == "unet" else 2, *rest),
                                           damped=True)
    return cases


def inputs(case: Case) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Weights, images (or tokens) and labels.

    Weights have the variance that ReLU keeps (He and others, 2015), so that deep layers count too;
    what starts constant is spread, so that a swap shows. `damped` takes a tenth of the last factors
    of every residual branch: a block then adds less than it passes on, as at the usual start
    (Goyal and others, 2017: zero), and rounding does not grow through fifty blocks. In PyTorch's
    float32 it grows to 3e-4 otherwise.
    """
    net, rng = case.net(), np.random.default_rng(case.seed)
    weights = net.init(seed=3)
    for key, value in weights.items():
        if value.ndim > 1 and not key.endswith("centre"):
            weights[key] = value * np.float32(6**0.5)
        if (value == value.flat[0]).all():
            weights[key] = value + rng.uniform(-0.2, 0.2, value.shape).astype(np.float32)
        if case.damped and ends_branch(key, weights):
            weights[key] = weights[key] / 10
    out = net.outputs["logits"].shape
    if case.reads:
        tokens = rng.integers(0, case.given.limit, case.shape).astype(np.int32)
        return weights, tokens, rng.integers(0, out[-1], (case.shape[0], *out[1:-1]), np.int32)
    images = rng.standard_normal(case.shape).astype(np.float32)
    if case.detects:
        return weights, images, np.zeros(0, np.int32)
    labels = rng.integers(0, out[1], (case.shape[0], *out[2:])).astype(np.int32)
    return weights, images, labels


def ours(case: Case, target: str, sides: bool = False) -> dict[str, np.ndarray]:
    """Every compared array of our model by name; if asked also "side:NUMBER" of its kinks."""
    weights, images, labels = inputs(case)
    graph = case.net(training=True).build(True, Objective(parse_expression(case.loss))).graph
    if sides:
        from lamina.tests.parity.branches import with_sides

        graph = with_sides(graph)
    wrt = {key: graph.params[key] for key in trainable(graph)}
    options = replace(from_environment(), target=target)
    runner = make_runner(add_gradients(graph, "loss", wrt), options)
    runner.set_params({key: weights[key] for key in graph.params})
    labelled = {} if case.detects else {"label": labels}
    found = runner.run({case.given.key: images, **labelled})
    after = runner.get_params()  # a run moves the running statistics
    found |= {f"update:{key}": after[key] for key in after if is_statistic(key)}
    evaluated = case.net().compile(target=target)(weights, **{case.given.key: images})["logits"]
    # The detector's other outputs are in its loss, and what it keeps has no derivative.
    found = {name: value for name, value in found.items()
             if name in ("loss", "logits") or ":" in name}
    return {**found, "evaluated": evaluated}


def ends_branch(key: str, weights: Mapping[str, np.ndarray]) -> bool:
    """Whether a parameter scales what a residual block of ours adds: that of its last layer."""
    block = key.partition(".bn.weight")[0].rpartition(".")[0]
    last = "c3" if f"{block}.c3.bn.weight" in weights else "c2"
    return key == f"{block}.{last}.bn.weight"


def take_sides(found: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The sides of kinks, in order, taken out of what `ours` found."""
    names = [name for name in found if name.startswith("side:")]
    return [found.pop(name) for name in sorted(names, key=lambda name: int(name[5:]))]


def is_statistic(key: str) -> bool:
    """Whether a parameter is a running statistic of batch-norm."""
    return key.rpartition(".")[2].startswith("running_")


def theirs(case: Case, following: Following | None = None) -> dict[str, np.ndarray]:
    """The same from PyTorch, in float64 so that all the rounding seen is ours.

    Its training step may follow the sides of kinks that ours took.
    """
    import torch

    weights, images, labels = inputs(case)
    twin, x = case.twin().double(), torch.tensor(images)
    x = x if case.reads else x.double()
    loaded = twin.load_state_dict({k: torch.tensor(v) for k, v in weights.items()}, strict=False)
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in loaded.missing_keys)
    with torch.no_grad():
        evaluated = twin.eval()(x)
    for module in twin.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with following or nullcontext():
        logits = twin(x)
    if case.detects:
        loss = logits.square().mean() + twin.sides.mean() + twin.central.square().mean()
    else:
        scores = logits.movedim(-1, 1) if case.reads else logits
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor(labels).long())
    loss.backward()
    found = {"loss": loss, "logits": logits, "evaluated": evaluated}
    found |= {f"grad:{key}": value.grad for key, value in twin.named_parameters()}
    found |= {f"update:{key}": value for key, value in twin.named_buffers()
              if is_statistic(key)}
    return {name: value.detach().numpy() for name, value in found.items()}


def errors(found: dict[str, np.ndarray], known: dict[str, np.ndarray]) -> dict[str, float]:
    """The error of every array, relative to its largest entry."""
    assert set(found) == set(known), set(found) ^ set(known)
    gradients = [np.abs(known[name]).max() for name in known if name.startswith("grad:")]
    least = {"grad:": NOTHING * max(gradients)}
    result = {}
    for name, value in known.items():
        size = np.abs(value).max()
        floor = least.get(name[:5], 0.0)
        # What should be nothing may be as large as the rounding of what it cancels from.
        scale = size if size > floor else floor / NOTHING
        result[name] = float(np.abs(found[name].astype(np.float64) - value).max() / scale)
    return result


def tolerance(name: str) -> float:
    """How large the error of an array may be."""
    return GRADIENT if name.startswith("grad:") else FORWARD


# --- the records --------------------------------------------------------------------------------


def digest(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is recorded: names, norms and a few entries of each array."""
    names = sorted(arrays)
    flat = [arrays[name].ravel().astype(np.float64) for name in names]
    entries = [one[np.linspace(0, one.size - 1, ENTRIES).astype(int)] for one in flat]
    return {"names": np.array("\n".join(names)),
            "norms": np.array([np.linalg.norm(one) for one in flat], np.float32),
            "entries": np.array(entries, np.float32)}


def recorded(model: str) -> dict[str, np.ndarray]:
    """The digest of PyTorch's results in the fixture."""
    with np.load(FIXTURE) as file:
        return {key: file[f"{model}:{key}"] for key in ("names", "norms", "entries")}


def record() -> None:
    """Write the fixture."""
    facts = {f"{model}:{key}": value for model, case in SMALL.items()
             for key, value in digest(theirs(case)).items()}
    np.savez_compressed(FIXTURE, **facts)


# --- the whole zoo ------------------------------------------------------------------------------


def worst(found: dict[str, float], *starts: str) -> tuple[float, str]:
    """The largest error of the arrays whose names start so, and the name of its array."""
    return max(((error, name.partition(":")[2]) for name, error in found.items()
                if name.startswith(starts)), default=(0.0, ""))


def compare(case: Case) -> bool:
    """Print one line of the table; whether all is within its tolerance."""
    from lamina.tests.parity.branches import Following

    start = time.perf_counter()
    found = ours(case, "cpu", sides=True)
    sides = take_sides(found)
    following = Following(sides)
    try:
        known = theirs(case, following)
    except AssertionError as error:
        print(f"{case.model:26} NO  {error}", flush=True)
        return False
    wrong = errors(found, known)
    forward, _ = worst(wrong, "loss", "logits", "evaluated")
    (gradient, path), (statistic, _) = worst(wrong, "grad:"), worst(wrong, "update:")
    good = max(forward, statistic) <= FORWARD and gradient <= GRADIENT
    print(f"{case.model:26} {forward:9.1e} {statistic:10.1e} {gradient:9.1e} {following.moved:6,d} "
          f"of {following.count:13,d}  {'ok' if good else 'NO':3} "
          f"{time.perf_counter() - start:5.0f} s  {path}", flush=True)
    return good


def main(arguments: list[str]) -> int:
    """Record, or compare at full size; 1 if a model differs."""
    parser = argparse.ArgumentParser(description="The zoo against its PyTorch twins.")
    parser.add_argument("--full", nargs="*", metavar="MODEL",
                        help="compare at full size: all, or those whose name holds a MODEL")
    wanted = parser.parse_args(arguments).full
    if wanted is None:
        record()
        return 0
    cases = [case for name, case in full_cases().items()
             if not wanted or any(one.lower() in name.lower() for one in wanted)]
    if not cases:
        parser.error(f"no model of the zoo is named {', '.join(wanted)}")
    print(f"{'model':26} {'forward':>9} {'statistic':>10} {'gradient':>9} "
          f"{'kinks decided by us':>23}  ok     time  parameter of the worst gradient")
    good = [compare(case) for case in cases]  # all of them, also after a failure
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
