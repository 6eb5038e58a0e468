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
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import lamina
from lamina.api import make_runner, parse_expression
from lamina.compiler.frontend.build import Objective
from lamina.compiler.options import from_environment
from lamina.compiler.transform.autodiff import add_gradients
from lamina.compiler.transform.training import trainable
from lamina.tests.zoo.facts import facts_of_models, sizes_of

if TYPE_CHECKING:
    from lamina.tests.parity.branches import Following

FIXTURE = Path(__file__).parent.parent / "fixtures" / "twins.npz"
ENTRIES = 8
LOSS = "cross_entropy(logits, label)"
OF_TOKENS = "cross_entropy(logits, label, axis=-1)"  # classes last
AHEAD = "mse(ahead, label)"
# The input that the tokens of a decoder are compared with: it is told each before the next.
TOLD = {"captions": "caption", "language": "text", "seq2seq": "tgt"}
# Over all that has a gradient: the detector's own loss is tested position by position elsewhere.
DETECTOR_LOSS = "mean(square(logits)) + mean(sides) + mean(square(central))"
# Relative to the largest entry of the array; ours is float32.
FORWARD, GRADIENT = 1e-4, 1e-3
# A gradient below this share of the largest of its model is zero but for rounding: that of a bias
# before batch-norm.
NOTHING = 1e-6


@dataclass(frozen=True, slots=True)
class Case:
    """A model of the zoo, "file.Model", with settings and the shapes of its inputs, in order."""

    model: str
    shapes: tuple[tuple[int, ...], ...]
    settings: dict[str, Any] = field(default_factory=dict)
    # For the records: one for which no ReLU's argument is so near 0 that rounding decides its sign.
    seed: int = 0
    damped: bool = False  # see `inputs`

    @property
    def detects(self) -> bool:
        """Whether there are boxes beside the scores, and no label for a whole image."""
        return self.model.startswith("detector.")

    @property
    def told(self) -> str:
        """The input that is the label as well, or ""."""
        return TOLD.get(self.model.partition(".")[0], "")

    @property
    def loss(self) -> str:
        """What is differentiated."""
        if self.told:
            return OF_TOKENS.replace("label", self.told)
        if self.detects or self.result == "ahead":
            return DETECTOR_LOSS if self.detects else AHEAD
        return OF_TOKENS if self.classes_last else LOSS

    @property
    def result(self) -> str:
        """The output that is compared."""
        return "ahead" if "ahead" in self.net().outputs else "logits"

    @property
    def classes_last(self) -> bool:
        """Whether scores are those of tokens."""
        inputs = (one.dtype for one in self.net().fed)
        return len(self.net().outputs[self.result].shape) == 3 and "i32" in inputs

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
_SEQ2SEQ = {"src_vocab": 17, "tgt_vocab": 13, "hidden": 8}
# The smallest of each family in which every construct occurs. Of some dozen seeds each has the one
# whose activations stay farthest from 0.
SMALL = {case.model: case for case in (
    Case("lenet5.LeNet5", ((6, 1, 32, 32),)),
    Case("lenet5_1998.LeNet5of1998", ((6, 1, 32, 32),)),
    Case("alexnet.AlexNet", ((2, 3, 224, 224),), _ALEXNET, 16),
    Case("alexnet.AlexNet2012", ((2, 3, 227, 227),), _ALEXNET, 4),
    Case("vgg.VGG11", ((2, 3, 64, 64),), _VGG, 17),
    Case("vgg.VGG11BN", ((4, 3, 64, 64),), _VGG, 21),
    Case("resnet.ResNet18", ((3, 3, 64, 96),), {"classes": 7, "depths": [1, 2, 1, 1]}, 18),
    Case("resnet.ResNet50", ((3, 3, 64, 96),), {"classes": 7, "depths": [2, 1, 1, 1]}, 11),
    Case("resnet.ResNet50v1", ((3, 3, 64, 96),), {"classes": 7, "depths": [1, 2, 1, 1]}, 24),
    Case("cifar_resnet.SmallResNet", ((4, 3, 32, 32),), {"n": 2}, 1),
    Case("unet.UNet", ((2, 1, 188, 188),), {"width": 4, "size": 188}, 5),
    Case("unet.UNetBN", ((2, 1, 188, 188),), {"width": 4, "size": 188}, 4),
    Case("unet.UNetSame", ((2, 1, 64, 64),), {"width": 4, "size": 64}, 21),
    Case("detector.Detector", ((2, 3, 64, 48),), {"classes": 5, "width": 8}),
    Case("copy_task.CopyTask", ((3, 9),), {"length": 3}),
    Case("copy_task.CopyRNN", ((3, 9),), {"length": 3}),
    Case("copy_task.CopyGRU", ((3, 9),), {"length": 3}),
    Case("captions.Captioner", ((3, 3, 16, 24), (3, 5)),
         {"words": 30, "width": 3, "hidden": 10, "att": 6}),
    Case("clips.ClipReader", ((2, 4, 1, 40, 40),), {"size": 12, "hidden": 10}),
    Case("forecast.Forecaster", ((3, 14, 2),), {
        "weeks": 2, "period": 7, "recent": 5, "horizon": 4, "channels": 2, "hidden": 7}),
    Case("language.CharacterModel", ((3, 8),), {"tokens": 20, "size": 9, "hidden": 7}),
    Case("language.WordModel", ((3, 8),), {"tokens": 20, "size": 9, "hidden": 7}),
    Case("rows.RowReader", ((3, 1, 28, 28),), {"hidden": 12}),
    Case("seq2seq.Context", ((4, 7), (4, 6)), _SEQ2SEQ),
    Case("seq2seq.Additive", ((4, 7), (4, 6)), {**_SEQ2SEQ, "att": 5}),
    Case("seq2seq.Multiplicative", ((4, 7), (4, 6)), _SEQ2SEQ),
    Case("tagger.Tagger", ((4, 7), (4, 7)),
         {"words": 30, "endings": 20, "tags": 5, "size": 8, "hidden": 6}),
    Case("mobilenet.MobileNet", ((3, 3, 64, 96),), {"classes": 7, "width": 0.25}),
    Case("mobilenet.MobileNetV2", ((3, 3, 64, 96),), {"classes": 7, "width": 0.35}),
)}


def full_cases() -> dict[str, Case]:
    """Every model of the zoo at its own size; two examples, one of the large U-Nets."""
    cases = {}
    for file, name, facts in facts_of_models():
        shapes = tuple((1 if file == "unet" else 2, *sizes[1:]) for sizes in
                       sizes_of(facts).values())
        cases[f"{file}.{name}"] = Case(f"{file}.{name}", shapes, damped=True)
    return cases


@dataclass(frozen=True, slots=True)
class Given:
    """What a model is run with: weights, inputs by name (lengths as "S~") and a label."""

    weights: dict[str, np.ndarray]
    fed: dict[str, np.ndarray]
    label: np.ndarray | None

    @property
    def lengths(self) -> dict[str, np.ndarray]:
        """The lengths of the examples along each size that differs."""
        return {name: value for name, value in self.fed.items() if name.endswith("~")}

    @property
    def labelled(self) -> dict[str, np.ndarray]:
        """What a training step takes."""
        return {**self.fed, **({} if self.label is None else {"label": self.label})}


def inputs(case: Case) -> Given:
    """Weights, inputs and labels; examples end at different places, the first one at the end.

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
    fed, sizes = _drawn(case, rng)
    if case.told or case.detects:
        return Given(weights, fed, None)
    shape = [sizes.get(str(size).rstrip("~"), size) for size in net.outputs[case.result].shape]
    if case.result == "ahead":
        return Given(weights, fed, rng.standard_normal(shape).astype(np.float32))
    classes = shape.pop(-1 if case.classes_last else 1)
    return Given(weights, fed, rng.integers(0, classes, shape).astype(np.int32))


def _drawn(case: Case, rng: np.random.Generator
           ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The inputs of a case, also past the examples' ends, and the number of each open size."""
    net, fed, sizes = case.net(), {}, {}
    ends = {one.key for one in net.fed if one.key.endswith("~")}
    given = [one for one in net.fed if one.key not in ends]
    for one, shape in zip(given, case.shapes, strict=True):
        sizes |= {name: size for name, size in zip(one.shape, shape, strict=True)
                  if isinstance(name, str)}
        limit = one.limit or net.outputs[case.result].shape[-1]
        fed[one.key] = rng.integers(0, limit, shape).astype(np.int32) if one.dtype == "i32" else \
            rng.standard_normal(shape).astype(np.float32)
    for name in sorted(ends):
        room = sizes[name[:-1]]
        fed[name] = rng.integers(1, room + 1, sizes["B"]).astype(np.int32)
        fed[name][0] = room
    return fed, sizes


def past_end(case: Case, given: Given, steps: int) -> np.ndarray:
    """Which of the steps of a result are past their example's end: bool [B, steps], or [1, steps].

    None of a result that is no sequence of differing lengths.
    """
    ends = given.lengths.get(str(case.net().outputs[case.result].shape[1]), steps)
    return np.arange(steps) >= np.reshape(ends, (-1, 1))


def cut(case: Case, given: Given, result: np.ndarray) -> np.ndarray:
    """A result with 0 past each example's end."""
    past = past_end(case, given, result.shape[1])
    return np.where(past.reshape(*past.shape, *[1] * (result.ndim - 2)), 0, result)


def ours(case: Case, target: str, sides: bool = False) -> dict[str, np.ndarray]:
    """Every compared array of our model by name; if asked also "side:NUMBER" of its kinks."""
    given = inputs(case)
    graph = case.net(training=True).build(True, Objective(parse_expression(case.loss))).graph
    if sides:
        from lamina.tests.parity.branches import with_sides

        graph = with_sides(graph)
    wrt = {key: graph.params[key] for key in trainable(graph)}
    options = replace(from_environment(), target=target)
    runner = make_runner(add_gradients(graph, "loss", wrt), options)
    runner.set_params({key: given.weights[key] for key in graph.params})
    found = runner.run(given.labelled)
    after = runner.get_params()  # a run moves the running statistics
    found |= {f"update:{key}": after[key] for key in after if is_statistic(key)}
    evaluated = case.net().compile(target=target)(given.weights, **given.fed)[case.result]
    results = {"result": cut(case, given, found[case.result]),
               "evaluated": cut(case, given, evaluated)}
    # The detector's other outputs are in its loss, and what it keeps has no derivative.
    found = {name: value for name, value in found.items() if name == "loss" or ":" in name}
    return {**found, **results}


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

    given = inputs(case)
    twin, state = case.twin().double(), {k: torch.tensor(v) for k, v in given.weights.items()}
    loaded = twin.load_state_dict(state, strict=False)
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in loaded.missing_keys)
    feed = _arguments(given)
    with torch.no_grad():
        evaluated = twin.eval()(*feed)
    for module in twin.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with following or nullcontext():
        result = twin(*feed)
    loss = _loss(case, given, twin, result)
    loss.backward()
    found = {"loss": loss}
    found |= {f"grad:{key}": value.grad for key, value in twin.named_parameters()}
    found |= {f"update:{key}": value for key, value in twin.named_buffers()
              if is_statistic(key)}
    arrays = {name: value.detach().numpy() for name, value in found.items()}
    return {**arrays, "result": cut(case, given, result.detach().numpy()),
            "evaluated": cut(case, given, evaluated.numpy())}


def _arguments(given: Given) -> list[Any]:
    """What a twin is called with: inputs in order, and lengths by name where there are some."""
    import torch

    tensors = {name: torch.tensor(value) for name, value in given.fed.items()}
    values = [value.long() if value.dtype == torch.int32 else value.double()
              for name, value in tensors.items() if name not in given.lengths]
    lengths = {name: tensors[name] for name in given.lengths}
    return [*values, lengths] if lengths else values


def _loss(case: Case, given: Given, twin: Any, result: Any) -> Any:
    """The loss of PyTorch's result: of tokens, the mean over those that there are."""
    import torch

    if case.detects:
        return result.square().mean() + twin.sides.mean() + twin.central.square().mean()
    label = torch.tensor(given.fed[case.told] if case.told else given.label)
    if case.result == "ahead":
        return torch.nn.functional.mse_loss(result, label.double())
    if not case.classes_last:
        return torch.nn.functional.cross_entropy(result, label.long())
    unasked = torch.tensor(past_end(case, given, result.shape[1]))
    asked = label.long().masked_fill(unasked, -100)  # PyTorch's number for "no label"
    return torch.nn.functional.cross_entropy(result.movedim(-1, 1), asked)


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
    forward, _ = worst(wrong, "loss", "result", "evaluated")
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
