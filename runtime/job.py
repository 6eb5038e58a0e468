"""What to train, as plain data that the compiler hands over."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lamina.runtime.data.dataset import Input, check_stages
from lamina.runtime.data.stage import Stage
from lamina.runtime.errors import Failure, did_you_mean, show
from lamina.runtime.schedule import check_schedule

CODES: dict[str, str] = {
    "E650": "loss or weights are not finite",
    "E651": "the folder already holds a run",
    "E652": "the folder is in use",
    "E653": "bad training setting",
}


class TrainError(Failure):
    """Training that cannot start or go on (codes E650 to E653)."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Some epochs with one optimizer. `lr` is the base learning rate, which `schedule` scales.

    `rng`: the phase's program takes the input "rng". A phase starts with fresh optimizer state.
    """

    name: str
    epochs: int
    lr: float
    schedule: Stage | None = None
    rng: bool = False


@dataclass(frozen=True, slots=True)
class Keep:
    """Which parameters to keep: mode "last", or "best" by `metric` ("loss" or a metric's name)."""

    mode: str = "last"
    metric: str = "loss"
    larger: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A recipe as plain data.

    `facts` are settings and hashes by name: a run only goes on with the same ones, save that its
    last phase may be given more epochs.
    `folder`: where relative paths of data start. Without `valid` there is no evaluation, and
    "best" goes by the training averages.
    `truth`: the inputs that hold a detector's true boxes and their kinds: its held-out figures
    then have its average precision.
    `weigh`: the input of lengths whose sum weighs a batch in averages (figures are means over
    tokens); empty where each example weighs the same.
    """

    model: str
    recipe: str
    train: tuple[Stage, ...]
    inputs: tuple[Input, ...]
    batch: int
    phases: tuple[Phase, ...]
    valid: tuple[Stage, ...] = ()
    seed: int = 0
    metrics: tuple[str, ...] = ()
    keep: Keep = Keep()
    facts: tuple[tuple[str, str], ...] = ()
    folder: str = ""
    version: str = ""
    truth: tuple[str, str] | None = None
    weigh: str = ""


@dataclass(frozen=True, slots=True)
class Saving:
    """When to save besides the end of each epoch, and how often to log; 0 means never."""

    seconds: float = 300.0
    steps: int = 0
    log_steps: int = 50


def check_job(job: Job) -> None:
    """Raise DataError or TrainError E653 for settings that cannot work; opens no file."""
    check_stages(job.train)
    if job.valid:
        check_stages(job.valid)
    for phase in job.phases:
        if phase.schedule is not None:
            check_schedule(phase.schedule)
        if phase.epochs < 1:
            raise TrainError("E653", f"`epochs` must be at least 1, not {phase.epochs}")
        if not (math.isfinite(phase.lr) and phase.lr >= 0):
            raise TrainError("E653", f"the learning rate must be a number >= 0, not {phase.lr}")
    if not job.phases:
        raise TrainError("E653", "the recipe has no phase")
    if job.batch < 1:
        raise TrainError("E653", f"`batch` must be at least 1, not {job.batch}")
    if job.keep.mode not in ("best", "last"):
        raise TrainError("E653", f"`keep` is best(METRIC) or last, not {show(job.keep.mode)}")
    if job.keep.mode == "best" and job.keep.metric not in ("loss", *job.metrics):
        raise TrainError("E653", f"`keep` names the metric `{show(job.keep.metric)}`, which the "
                         "recipe does not have", did_you_mean(job.keep.metric,
                                                              ("loss", *job.metrics)))
