"""Graphs that several tests share: LeNet-5's training step and random well-typed graphs."""

from __future__ import annotations

import random

import numpy as np

from lamina.compiler.ir import Builder, symbol
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ops import GraphMath
from lamina.compiler.transform.training import Rule, training_step


def lenet(prefix: str = "") -> Graph:
    """LeNet-5 with tanh and average pools, its loss and logits; `prefix` starts every name."""
    m = GraphMath(Builder("lenet"))
    batch = symbol("B")
    h = m.input(name=prefix + "image", shape=(batch, 1, 32, 32))
    label = m.input(name=prefix + "label", shape=(batch,), dtype="i32")

    def param(key, *shape):
        return m.param(key=prefix + key, shape=shape)

    for key, inputs, outputs in (("c1", 1, 6), ("c3", 6, 16)):
        h = m.conv2d(h, param(f"{key}.weight", outputs, inputs, 5, 5))
        h = m.tanh(h + m.reshape(param(f"{key}.bias", outputs), shape=(outputs, 1, 1)))
        h = m.avg_pool2d(h, kernel=2)
    h = m.flatten(h)
    for key, inputs, outputs in (("c5", 400, 120), ("f6", 120, 84), ("head", 84, 10)):
        weight = m.transpose(param(f"{key}.weight", outputs, inputs), perm=(1, 0))
        h = m.matmul(h, weight) + param(f"{key}.bias", outputs)
        h = h if key == "head" else m.tanh(h)
    return m.builder.finish([("logits", h.value), ("loss", m.cross_entropy(h, label).value)])


def lenet_step() -> Graph:
    """One step of gradient descent with momentum and weight decay."""
    return training_step(lenet(), Rule("sgd", {"momentum": 0.9, "weight_decay": 5e-4}))


def perceptron_step() -> Graph:
    """A training step small enough to compile in a test."""
    m = GraphMath(Builder("perceptron"))
    x = m.input(name="x", shape=(symbol("B"), 8))
    y = m.tanh(m.matmul(x, m.param(key="w", shape=(8, 5))) + m.param(key="b", shape=(5,)))
    return training_step(m.builder.finish([("loss", m.mean(y * y).value)]),
                         Rule("sgd", {"momentum": 0.9}))


def values_for(graph: Graph, batch: int, seed: int = 0):
    """(inputs, params) with random values; labels below 10, rates of 0.05, a step of 1."""
    rng = np.random.default_rng(seed)
    inputs, params = {}, {}
    for name, value in graph.inputs.items():
        type = graph.type(value)
        shape = tuple(n if isinstance(n, int) else batch for n in type.shape)
        if type.dtype == "i32":
            inputs[name] = rng.integers(0, 10, shape).astype(np.int32)
        elif shape == ():
            inputs[name] = np.float32(1.0 if name == "step" else 0.05)
        else:
            inputs[name] = rng.standard_normal(shape).astype(np.float32)
    for key, value in graph.params.items():
        state = key.startswith("optimizer/")
        drawn = rng.standard_normal(graph.type(value).shape) * (0 if state else 0.1)
        params[key] = drawn.astype(np.float32)
    return inputs, params


UNARY = ("tanh", "sigmoid", "neg", "exp", "sin", "abs", "relu", "gelu", "softmax", "square")
BINARY = ("add", "sub", "mul", "maximum", "minimum")


def random_graph(seed: int, steps: int = 14) -> Graph:
    """A well-typed graph of images, matrices and vectors; some outputs are also operands."""
    rng = random.Random(seed)
    m = GraphMath(Builder(f"random{seed}"))
    channels = rng.choice((1, 2, 6, 9))
    batch = symbol("B") if rng.random() < 0.5 else 3
    pool = [m.input(name="image", shape=(batch, channels, 6, 8)),
            m.input(name="matrix", shape=(batch, 7)), m.param(key="bias", shape=(7,)),
            m.param(key="scale", shape=(channels, 1, 1)), m.input(name="lr", shape=())]
    for index in range(steps):
        pool.append(_grow(m, rng, pool, index))
    ends = [pool[-1], *rng.sample(pool[5:], 2)]
    return m.builder.finish([(f"y{i}", x.value) for i, x in enumerate(ends)])


def _grow(m: GraphMath, rng: random.Random, pool, index: int):
    x = rng.choice(pool[-6:] if rng.random() < 0.7 else pool)
    kind = rng.choice(("unary", "unary", "binary", "binary", "reduce", "image", "matrix", "move",
                       "move", "affine"))
    if kind == "unary" and x.shape:
        name = rng.choice([n for n in UNARY if hasattr(m, n)])
        return m.tanh(x) if name in ("exp", "square") else getattr(m, name)(x)
    if kind == "binary":
        same = [y for y in pool if y.shape == x.shape or y.shape == ()]
        return getattr(m, rng.choice(BINARY))(x, rng.choice(same))
    if kind == "reduce" and x.shape:
        axes = sorted(rng.sample(range(len(x.shape)), rng.randint(1, len(x.shape))))
        total = rng.choice((m.reduce_sum, m.reduce_max))(x, axes=tuple(axes))
        return x - total * 0.01 if rng.random() < 0.6 else m.tanh(total)
    if kind == "image" and len(x.shape) == 4 and x.shape[2] >= 4 and x.shape[3] >= 4:
        return _image(m, rng, x, index)
    if kind == "matrix" and len(x.shape) == 2 and isinstance(x.shape[1], int):
        weight = m.param(key=f"w{index}", shape=(x.shape[1], 7))
        return m.matmul(x, weight) + pool[2]
    if kind == "move" and len(x.shape) >= 2:
        return _move(m, rng, x)
    return x * 0.5 + 1.0


def _image(m: GraphMath, rng: random.Random, x, index: int):
    channels = x.shape[1]
    choice = rng.randrange(3)
    if choice == 0 and isinstance(channels, int):
        outputs = rng.choice((3, 6, 17))
        weight = m.param(key=f"k{index}", shape=(outputs, channels, 3, 3))
        return m.conv2d(x, weight, padding=1)
    if choice == 1:
        return m.avg_pool2d(x, kernel=2, stride=rng.choice((1, 2)))
    return m.max_pool2d(x, kernel=3, stride=1, padding=1)


def _move(m: GraphMath, rng: random.Random, x):
    rank = len(x.shape)
    choice = rng.randrange(4)
    if choice == 0:
        return m.reverse(x, axes=(rank - 1,))
    if choice == 1:
        return m.pad(x, lo=(0,) * (rank - 1) + (1,), hi=(0,) * (rank - 1) + (2,))
    if choice == 2:
        perm = tuple(reversed(range(rank)))
        return m.transpose(m.neg(m.transpose(x, perm=perm)), perm=perm)
    return m.concat(x, m.tanh(x), axis=rank - 1)
