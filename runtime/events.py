"""What a training run reports while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lamina.runtime.job import Job


@dataclass(frozen=True, slots=True)
class Checked:
    """Data and folder are in order; runners are made next, which may take a while."""

    job: Job


@dataclass(frozen=True, slots=True)
class Started:
    """A run starts or goes on from `step`."""

    job: Job
    steps: int
    steps_per_epoch: int
    epochs: int
    examples: int
    held_out: int
    step: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step; `loss` and `metrics` are averages over the epoch so far, `eta` is in seconds."""

    phase: str
    epoch: int
    step: int
    position: int
    loss: float
    metrics: dict[str, float]
    lr: float
    per_second: float
    eta: float


@dataclass(frozen=True, slots=True)
class EpochDone:
    """An epoch (from 1) with averages on the training data and the held-out data."""

    phase: str
    epoch: int
    step: int
    train: dict[str, float]
    valid: dict[str, float]
    best: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint was written; `why`: "start", "time", "steps", "epoch", "best", "interrupt"."""

    path: Path
    step: int
    why: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that a user should know, in a sentence."""

    message: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over; `interrupted` names the signal that ended it, or is empty."""

    step: int
    epoch: int
    seconds: float
    best: float | None
    best_epoch: int
    interrupted: str


Event = Checked | Started | StepDone | EpochDone | Saved | Warned | Finished
Callback = Callable[[Event], None]
