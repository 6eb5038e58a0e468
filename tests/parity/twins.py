"""PyTorch twins of our models, and what is compared: forward, loss and every gradient.

`python -m lamina.tests.parity.twins` writes tests/fixtures/twins.npz from PyTorch, for machines
without it: the loss, the first output, and of each gradient its norm and eight of its entries.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import lamina

FIXTURE = Path(__file__).parent.parent / "fixtures" / "twins.npz"
RESNET = Path(__file__).parent.parent / "syntax" / "examples" / "resnet.lam"
ENTRIES = 8
LOSS = "cross_entropy(logits, label)"


def cases():
    """name -> (our net, inputs)."""
    rng = np.random.default_rng(7)
    digits = rng.standard_normal((6, 1, 32, 32)).astype(np.float32)
    pictures = rng.standard_normal((3, 3, 64, 96)).astype(np.float32)
    resnet = lamina.load(RESNET).ResNet(depths=[2, 1, 1, 1], classes=7)
    return {
        "lenet5": (lamina.load("lenet5").LeNet5(), digits, rng.integers(0, 10, 6)),
        "resnet": (resnet, pictures, rng.integers(0, 7, 3)),
    }


def ours(name, target):
    """Loss, logits and gradients by key of our model."""
    net, images, labels = cases()[name]
    weights = net.init(seed=3)
    labels = labels.astype(np.int32)
    loss, grads = net.value_and_grad(LOSS, target=target)(weights, image=images, label=labels)
    logits = net.compile(target=target, train=True)(weights, image=images)["logits"]
    return float(loss), logits, grads


def theirs(name):
    """The same from PyTorch at the same weights."""
    import torch

    net, images, labels = cases()[name]
    weights = {key: torch.tensor(value) for key, value in net.init(seed=3).items()}
    for key in net.parameters:
        if "running" not in key:
            weights[key].requires_grad_(True)
    logits = _FORWARD[name](torch.nn.functional, weights, torch.tensor(images))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
    loss.backward()
    grads = {key: value.grad.numpy() for key, value in weights.items() if value.grad is not None}
    return float(loss.detach()), logits.detach().numpy(), grads


def _lenet5(f, w, x):
    def layer(name, function, x):
        return function(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = f.avg_pool2d(layer("c1", f.conv2d, x).tanh(), 2)
    x = f.avg_pool2d(layer("c3", f.conv2d, x).tanh(), 2).flatten(1)
    x = layer("f6", f.linear, layer("c5", f.linear, x).tanh()).tanh()
    return layer("head", f.linear, x)


def _resnet(f, w, x):
    def conv_bn(path, x, stride=1):
        kernel = w[f"{path}.conv.weight"].shape[-1]
        x = f.conv2d(x, w[f"{path}.conv.weight"], None, stride, kernel // 2)
        return f.batch_norm(x, None, None, w[f"{path}.bn.weight"], w[f"{path}.bn.bias"], True)

    def bottleneck(path, x, stride=1):
        y = conv_bn(f"{path}.c1", x).relu()
        y = conv_bn(f"{path}.c3", conv_bn(f"{path}.c2", y, stride).relu())
        skip = conv_bn(f"{path}.proj", x, stride) if f"{path}.proj.conv.weight" in w else x
        return (y + skip).relu()

    x = f.max_pool2d(conv_bn("stem", x, 2).relu(), 3, 2, 1)
    for stage in range(4):
        x = bottleneck(f"stages.{stage}.first", x, 1 if stage == 0 else 2)
        if f"stages.{stage}.rest.0.c1.conv.weight" in w:
            x = bottleneck(f"stages.{stage}.rest.0", x)
    return f.linear(x.mean((2, 3)), w["head.weight"], w["head.bias"])


_FORWARD = {"lenet5": _lenet5, "resnet": _resnet}


def digest(loss, logits, grads):
    """What is recorded of a run."""
    facts = {"loss": np.float64(loss), "logits": logits}
    for key, grad in grads.items():
        flat = grad.ravel()
        places = np.linspace(0, flat.size - 1, min(ENTRIES, flat.size)).astype(int)
        facts[f"{key}/norm"] = np.linalg.norm(flat.astype(np.float64))
        facts[f"{key}/entries"] = flat[places]
    return facts


def record():
    """Write the fixture."""
    facts = {f"{name}:{key}": value for name in cases()
             for key, value in digest(*theirs(name)).items()}
    np.savez_compressed(FIXTURE, **facts)


if __name__ == "__main__":
    record()
