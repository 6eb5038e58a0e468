"""Parameters, optimizer state and steps: what lives while a model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from lamina.runtime.checkpoint import require_fit

OPTIMIZER = "optimizer/"  # keys of optimizer state start with it


class Runner(Protocol):
    """What runs a program: `lamina.runtime.cpu.executor.Executor`, or the NumPy interpreter."""

    def set_params(self, values: Mapping[str, np.ndarray]) -> None:
        """Copy values into the parameters of these names."""
        ...

    def get_params(self) -> dict[str, np.ndarray]:
        """Copies of all parameters: weights, running statistics and optimizer state."""
        ...

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One run: inputs by name to outputs by name."""
        ...


class Session:
    """All parameters of a model and the runner that trains them at present.

    Weights that the runner does not know (parts of the model that its program leaves out) are kept
    here. Raises CheckpointError E703 where a runner's parameters and these do not fit.
    """

    def __init__(self, params: Mapping[str, np.ndarray], place: str = "the initial weights"):
        """`params`: weights, and optimizer state where it does not start at zero."""
        self._initial = {k: v for k, v in params.items() if k.startswith(OPTIMIZER)}
        self._weights = {k: v for k, v in params.items() if not k.startswith(OPTIMIZER)}
        self._place = place
        self._runner: Runner | None = None

    def enter(self, runner: Runner) -> None:
        """Train with `runner` from now on: weights as they are, its optimizer state afresh."""
        self._weights = self.weights()
        own = runner.get_params()
        zeros = {k: np.zeros_like(v) for k, v in own.items() if k.startswith(OPTIMIZER)}
        self._set(runner, own, {**zeros, **self._initial, **self._weights})

    def restore(self, runner: Runner, params: Mapping[str, np.ndarray], place: str) -> None:
        """Train with `runner` from the parameters of a checkpoint, which must fit exactly."""
        own = runner.get_params()
        require_fit(params, {**self._weights, **own}, place)
        self._weights = {k: v for k, v in params.items() if not k.startswith(OPTIMIZER)}
        self._set(runner, own, params)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One training step of the present runner."""
        if self._runner is None:
            raise RuntimeError("enter or restore a runner first")
        return self._runner.run(inputs)

    def weights(self) -> dict[str, np.ndarray]:
        """Weights and running statistics by key."""
        return {k: v for k, v in self.params().items() if not k.startswith(OPTIMIZER)}

    def params(self) -> dict[str, np.ndarray]:
        """Everything by key, the present runner's optimizer state included."""
        own = self._runner.get_params() if self._runner else {}
        return {**self._weights, **own}

    def _set(
        self, runner: Runner, own: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
    ) -> None:
        give(runner, own, values, self._place)
        self._runner = runner


def give(
    runner: Runner,
    own: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    place: str,
) -> None:
    """Copy from `values` (of `place`) all parameters of the runner, whose `own` show the shapes.

    Raises CheckpointError E703 where one is missing or differs in shape or type.
    """
    known = {key: values[key] for key in own if key in values}
    require_fit(known, own, place)
    runner.set_params(known)
