"""Learning rates as functions of the step within a phase, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.stage import Stage, bad, call, real, whole
from lamina.runtime.errors import did_you_mean, show

Schedule = Callable[[int], float]  # step in the phase, from 0 -> learning rate


def make_schedule(stage: Stage | None, lr: float, steps: int, steps_per_epoch: int) -> Schedule:
    """The schedule of a phase of `steps` steps whose base learning rate is `lr`.

    Raises DataError E608 for an unknown schedule or a wrong argument.
    """
    if stage is None:
        return lambda step: lr
    if stage.name not in SCHEDULES:
        raise DataError("E608", f"there is no schedule `{show(stage.name)}`",
                        did_you_mean(stage.name, SCHEDULES), stage.line)
    share = call(stage, SCHEDULES[stage.name], steps=steps, epoch=steps_per_epoch)
    return lambda step: lr * share(step)


def check_schedule(stage: Stage) -> None:
    """Raise DataError E608 if the schedule's name or arguments are wrong."""
    make_schedule(stage, 1.0, 1, 1)


def constant(warmup: int = 0) -> Schedule:
    """1, after a linear warm-up of `warmup` steps."""
    return _warmed(whole("warmup", warmup), lambda step: 1.0)


def cosine(warmup: int = 0, final: float = 0.0, _steps: int = 1) -> Schedule:
    """Warm up, then half a cosine down to `final` (Loshchilov and Hutter, "SGDR", 2017)."""
    start, end = whole("warmup", warmup), real("final", final, 0, 1)
    span = max(1, _steps - start)

    def share(step: int) -> float:
        part = min(1.0, (step - start) / span)
        return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * part))

    return _warmed(start, share)


def linear(warmup: int = 0, final: float = 0.0, _steps: int = 1) -> Schedule:
    """Warm up, then a straight line down to `final`."""
    start, end = whole("warmup", warmup), real("final", final, 0, 1)
    span = max(1, _steps - start)
    return _warmed(start, lambda step: 1 - (1 - end) * min(1.0, (step - start) / span))


def step(
    every: int | None = None,
    at: Sequence[int] | None = None,
    factor: float = 0.1,
    warmup: int = 0,
    _epoch: int = 1,
) -> Schedule:
    """Times `factor` after `every` so many epochs, or after each of the epochs listed in `at`."""
    if (every is None) == (at is None):
        raise bad("step", "given either `every` or `at`", "both or none")
    by, start = real("factor", factor, 0, 1), whole("warmup", warmup)
    if every is not None:
        period = whole("every", every, 1) * _epoch
        return _warmed(start, lambda step: by ** (step // period))
    if not isinstance(at, list | tuple):
        raise bad("at", "a list of epochs", at)
    ends = [whole("at", epoch, 1) * _epoch for epoch in at]
    return _warmed(start, lambda step: by ** sum(step >= end for end in ends))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "step": step,
}


def _warmed(warmup: int, share: Schedule) -> Schedule:
    """Rise in a straight line over the first `warmup` steps to what `share` gives after them."""
    if warmup == 0:
        return share
    return lambda step: (step + 1) / warmup if step < warmup else share(step)
