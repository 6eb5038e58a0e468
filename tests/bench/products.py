"""NumPy's matrix product, beside which the machine's rate is known."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import load_file

from lamina.tests.bench import models
from lamina.tests.bench.systems import Ready, Task


def make(task: Task) -> Ready:
    """The product of two matrices into memory that is there."""
    a, b = load_file(task.folder / models.WEIGHTS).values()
    out = np.empty_like(a)
    steps = tuple(slice(None, None, step) for step in models.steps_of(a.shape))
    return Ready(lambda: np.matmul(a, b, out=out), lambda y: y[steps].copy())
