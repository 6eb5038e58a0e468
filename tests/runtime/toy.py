"""A training step in NumPy, small enough to be killed thousands of times.

Softmax regression with momentum; gradients are sums along fixed axes, no BLAS, so that the same
inputs always give the same bits.
"""

import hashlib

import numpy as np

from lamina.runtime.data import Input, Stage
from lamina.runtime.train import Job, Keep, Phase

WEIGHTS = ("weight", "bias")


def job(epochs=(1, 1), batch=32, **changes) -> Job:
    """Two phases over the held-out digits shrunk to 7 x 7, with everything random that there is."""
    data = (Stage("mnist", ("test",)), Stage("resize", (7,)), Stage("shift", (1,)))
    fields = {
        "model": "toy",
        "recipe": "digits",
        "train": (*data, Stage("normalize", (0.13, 0.3)), Stage("shuffle")),
        "valid": (*data[:2], Stage("normalize", (0.13, 0.3))),
        "inputs": (Input("image", "f32", ("B", 1, 7, 7)), Input("label", "i32", ("B",), 10)),
        "batch": batch,
        "phases": tuple(
            Phase(f"p{i}", n, 0.1, Stage("cosine", (), (("warmup", 5),)), rng=True)
            for i, n in enumerate(epochs)
        ),
        "seed": 7,
        "metrics": ("acc",),
        "keep": Keep("best", "acc", True),
        "facts": (("model", "toy-1"), ("epochs", "3")),
    }
    return Job(**{**fields, **changes})


def initial() -> dict[str, np.ndarray]:
    """The weights before training."""
    return {"weight": np.zeros((49, 10), np.float32), "bias": np.zeros(10, np.float32)}


class Toy:
    """Runs training steps when `trains`, else evaluations. `nan_at`: that step's loss is NaN."""

    def __init__(self, trains=True, nan_at=0):
        self.params = initial()
        if trains:
            self.params |= {f"optimizer/{k}": np.zeros_like(v) for k, v in initial().items()}
            self.params["optimizer/steps"] = np.zeros((), np.float32)
        self.trains, self.nan_at = trains, nan_at
        self.seen: list[tuple[int, int, float]] = []

    def set_params(self, values):
        for key, value in values.items():
            self.params[key][...] = value

    def get_params(self):
        return {key: value.copy() for key, value in self.params.items()}

    def run(self, inputs):
        x, label = inputs["image"].reshape(len(inputs["label"]), -1), inputs["label"]
        logits = (x[:, :, None] * self.params["weight"]).sum(axis=1) + self.params["bias"]
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probability = shifted / shifted.sum(axis=1, keepdims=True)
        rows = np.arange(len(label))
        loss = -np.log(probability[rows, label] + np.float32(1e-9)).mean()
        if self.trains:
            self._update(x, label, probability, inputs)
            if self.nan_at == inputs["rng"][1]:
                loss = np.float32("nan")
        hit = (logits.argmax(axis=1) == label).mean(dtype=np.float32)
        return {"loss": np.asarray(loss), "metric:acc": np.asarray(hit)}

    def _update(self, x, label, probability, inputs):
        self.seen.append((int(inputs["rng"][1]), int(inputs["step"]), float(inputs["lr"])))
        error = probability.copy()
        error[np.arange(len(label)), label] -= 1
        error /= np.float32(len(label))
        noise = np.float32(1 + 1e-3 * (int(inputs["rng"][1]) % 7))
        for key, slope in (
            ("weight", (x[:, :, None] * error[:, None]).sum(axis=0) * noise),
            ("bias", error.sum(axis=0)),
        ):
            momentum = self.params[f"optimizer/{key}"]
            momentum *= np.float32(0.9)
            momentum += slope
            self.params[key] -= inputs["lr"] * momentum
        self.params["optimizer/steps"] += 1


def digest(params) -> str:
    """sha256 of all parameters."""
    total = hashlib.sha256()
    for key in sorted(params):
        total.update(key.encode() + params[key].tobytes())
    return total.hexdigest()
