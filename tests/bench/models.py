"""What is measured: models of the zoo by "file.Model", recurrent networks, and single operators.

SIZES is the one table of batches, shapes and learning rates. A model gives its weights and inputs,
its graph here and its module in PyTorch, so that every system computes the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file

from lamina.api import Net, loads, parse_expression
from lamina.compiler.frontend.build import Objective
from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ops import GraphMath
from lamina.compiler.transform.training import Rule, training_step
from lamina.tests.frontend.test_cells import LSTM
from lamina.tests.parity import twins
from lamina.tests.zoo.facts import facts_of_models

if TYPE_CHECKING:
    from torch import nn

MODES = ("train", "infer")
MOMENTUM = 0.9  # of SGD, in every system
LABEL = "label"
WEIGHTS, INPUTS = "weights.safetensors", "inputs.safetensors"

# The batch of a training step, the shape of one example, and the learning rate; the first pattern
# that fits counts. Some steps at that rate change the loss by far more than rounding does, and not
# so far that rounding grows: deep networks without residuals double it at every larger step.
SIZES: dict[str, tuple[int, tuple[int, ...], float]] = {
    "lenet5*.*": (64, (1, 32, 32), 1e-2),
    "cifar_resnet.*": (64, (3, 32, 32), 1e-2),
    "alexnet.AlexNet2012": (32, (3, 227, 227), 1e-5),
    "alexnet.*": (32, (3, 224, 224), 1e-5),
    "vgg.*": (8, (3, 224, 224), 1e-5),
    "resnet.*": (16, (3, 224, 224), 1e-3),
    "mobilenet.*": (16, (3, 224, 224), 1e-4),
    "unet.UNetSame": (4, (1, 256, 256), 1e-3),
    "lstm": (32, (64,), 1e-1),
    "gru": (32, (64,), 1e-1),
    "cell": (32, (64,), 1e-1),
    "conv": (8, (64, 56, 56), 0.0),
    "gemm": (1, (1024, 1024), 0.0),
}
# What is measured when no model is named.
USUAL = ("lenet5.LeNet5", "cifar_resnet.ResNet20", "alexnet.AlexNet", "vgg.VGG16",
         "resnet.ResNet18", "resnet.ResNet34", "resnet.ResNet50", "mobilenet.MobileNet",
         "mobilenet.MobileNetV2", "lstm", "gru", "cell", "conv", "gemm")


@dataclass(frozen=True, slots=True)
class Data:
    """Weights by our paths, inputs by name, and a label unless there is nothing to train."""

    weights: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    label: np.ndarray | None = None

    def save(self, folder: Path) -> None:
        """Write both files of a folder, from which every system reads."""
        save_file({key: np.ascontiguousarray(value) for key, value in self.weights.items()},
                  folder / WEIGHTS)
        labels = {} if self.label is None else {LABEL: self.label}
        save_file({**self.inputs, **labels}, folder / INPUTS)


def load_inputs(folder: Path, batch: int) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The first `batch` examples of the inputs, and their labels."""
    arrays = {name: np.ascontiguousarray(value[:batch])
              for name, value in load_file(folder / INPUTS).items()}
    label = arrays.pop(LABEL, None)
    return arrays, label


@dataclass(frozen=True, slots=True)
class Model(ABC):
    """A model at the batch of its training step, for examples of a shape; `rate` is SGD's."""

    name: str
    batch: int
    shape: tuple[int, ...]
    rate: float

    @property
    def modes(self) -> tuple[str, ...]:
        """What can be measured of it."""
        return MODES

    @property
    def systems(self) -> tuple[str, ...]:
        """Names of the systems that can run it."""
        return ("ours", "eager", "channels-last", "compile", "compile-channels-last", "onnx")

    @property
    def classes_last(self) -> bool:
        """Whether scores are those of tokens."""
        return False

    def batches(self, mode: str) -> tuple[int, ...]:
        """The batches to measure in a mode."""
        return (self.batch,) if mode == "train" else tuple(dict.fromkeys((1, self.batch)))

    def title(self, mode: str, batch: int) -> str:
        """The work in words."""
        what = "training step" if mode == "train" else "inference"
        return f"{self.name} {what}, batch {batch}"

    @abstractmethod
    def data(self) -> Data:
        """What every system computes with, the same at every call."""

    @abstractmethod
    def graph(self, mode: str) -> Graph:
        """Our graph of a mode."""

    @abstractmethod
    def module(self) -> nn.Module:
        """The same in PyTorch, called with the inputs in order."""

    def state(self, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Weights by PyTorch's names."""
        return weights


@dataclass(frozen=True, slots=True)
class ZooModel(Model):
    """A model of the zoo; dropout drops nothing."""

    @property
    def case(self) -> twins.Case:
        """The model as the comparison with its twin knows it."""
        return twins.Case(self.name, ((self.batch, *self.shape),), damped=True)

    def data(self) -> Data:
        """Weights that keep the variance of what passes, random inputs and labels."""
        given = twins.inputs(self.case)
        return Data(given.weights, given.fed, given.label)

    def graph(self, mode: str) -> Graph:
        """Evaluation, or a training step."""
        case = self.case
        return trained(case.net(True), case.loss) if mode == "train" else case.net().graph

    def module(self) -> nn.Module:
        """The twin."""
        return self.case.twin()


WORDS, WIDTH, LAYERS = 100, 256, 2


@dataclass(frozen=True, slots=True)
class Recurrent(Model):
    """A language model of two layers of 256: "lstm", "gru", or an LSTM "cell" of one's own."""

    @property
    def systems(self) -> tuple[str, ...]:
        """No channels, hence no layouts."""
        return ("ours", "eager", "compile", "onnx")

    @property
    def classes_last(self) -> bool:
        """A score for each word at each step."""
        return True

    @property
    def net(self) -> Net:
        """Embedding, layers and a linear layer."""
        layers = " -> ".join([f"scan LSTM({WIDTH}) over T"] * LAYERS) if self.name == "cell" else \
            f"{self.name}({WIDTH}, layers={LAYERS})"
        return loads(f"{LSTM}\nmodel LM {{\n  input ids: i32[B, T]\n  output logits = ids -> "
                     f"embed({WORDS}, {WIDTH}) -> {layers} -> linear({WORDS})\n}}\n").LM()

    def data(self) -> Data:
        """Words at random."""
        size = (2, self.batch, *self.shape)
        ids, label = np.random.default_rng(0).integers(0, WORDS, size).astype(np.int32)
        return Data(self.net.init(0), {"ids": ids}, label)

    def graph(self, mode: str) -> Graph:
        """Scores of every step, or a training step."""
        return trained(self.net, twins.OF_TOKENS) if mode == "train" else self.net.graph

    def module(self) -> nn.Module:
        """PyTorch's own layers, or a loop."""
        from lamina.tests.bench.modules import Language

        return Language(self.name, WORDS, WIDTH, LAYERS)

    def state(self, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """embed.weight is table.weight, lstm.layers.1.forward.bias_hh is body.bias_hh_l1."""
        found = {}
        for key, value in weights.items():
            first, _, name = key.partition(".")
            if first.startswith("scan"):
                path = f"body.{first[4:]}.both.{'weight' if name == 'W' else 'bias'}"
                value = value.T
            elif first == self.name:
                path = f"body.{name.rpartition('.')[2]}_l{name.split('.')[1]}"
            else:
                path = f"{'table' if first == 'embed' else 'head'}.{name}"
            found[path] = value
        return found


@dataclass(frozen=True, slots=True)
class Operator(Model):
    """One operator; operands lie in place, and of the result a sample is copied out."""

    @property
    def modes(self) -> tuple[str, ...]:
        """Forward alone."""
        return ("infer",)

    @property
    def systems(self) -> tuple[str, ...]:
        """Those that need no file between."""
        other = "numpy" if self.name == "gemm" else "channels-last"
        return ("ours", "eager", other)

    def batches(self, mode: str) -> tuple[int, ...]:
        """That of the operands."""
        return (self.batch,)

    def title(self, mode: str, batch: int) -> str:
        """The sizes."""
        size = "x".join(map(str, (batch, *self.shape)))
        return f"matrix product {self.shape[0]}^3" if self.name == "gemm" else \
            f"convolution {size}, 3x3, {self.shape[0]} out"

    @property
    def operands(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name; channels of `x` are innermost, as inside a network of ours."""
        if self.name == "gemm":
            return {"a": self.shape, "b": self.shape}
        channels, *size = self.shape
        return {"x": (self.batch, *size, channels), "w": (channels, channels, 3, 3)}

    def data(self) -> Data:
        """Random operands."""
        rng = np.random.default_rng(0)
        return Data({key: rng.standard_normal(shape).astype(np.float32)
                     for key, shape in self.operands.items()}, {})

    def graph(self, mode: str) -> Graph:
        """The operator with its operands as parameters, so that no copy of them is timed."""
        builder = Builder(self.name)
        m = GraphMath(builder)
        a, b = (m.param(key=key, shape=shape, trainable=False)
                for key, shape in self.operands.items())
        y = m.matmul(a, b) if self.name == "gemm" else \
            m.conv2d(a, b, padding=1, layout="nhwc")
        sample = m.slice(y, starts=(0,) * len(y.shape), stops=y.shape, steps=steps_of(y.shape))
        return builder.finish([("result", sample.value)])

    def module(self) -> nn.Module:
        """The same operator."""
        from lamina.tests.bench.modules import Convolution, Product

        return (Product if self.name == "gemm" else Convolution)(self.operands)

    def state(self, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Channels second."""
        return {key: np.moveaxis(value, -1, 1) if key == "x" else value
                for key, value in weights.items()}


def steps_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The steps at which a result is sampled: some dozen entries along the longest axes."""
    return tuple(max(1, size // 16 + 1) for size in shape)


def trained(net: Net, loss: str) -> Graph:
    """A training step: forward, loss, backward and SGD with momentum."""
    made = net.build(True, Objective(parse_expression(loss)))
    return training_step(made.graph, Rule("sgd", {"momentum": MOMENTUM}))


def known() -> list[str]:
    """The names of all models that can be measured."""
    zoo = [f"{file}.{name}" for file, name, _ in facts_of_models()]
    return [*(name for name in zoo if any(fnmatchcase(name, one) for one in SIZES)),
            *(name for name in SIZES if "." not in name)]


def find(name: str, batch: int | None = None) -> Model:
    """A model by name, at its usual batch or another. Raises KeyError for an unknown one."""
    if name not in known():
        raise KeyError(f"no model is named {name!r}; models: {', '.join(known())}")
    usual, *rest = next(row for pattern, row in SIZES.items() if fnmatchcase(name, pattern))
    kind = ZooModel if "." in name else Operator if name in ("gemm", "conv") else Recurrent
    return kind(name, usual if name == "gemm" else batch or usual, *rest)
