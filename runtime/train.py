"""Training: phases, epochs, evaluation, checkpoints, and going on after an interruption.

A job is plain data that the compiler hands over. A run is a pure function of the job and the
initial parameters: killed and resumed at any point it ends with the same bits.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np

from lamina.runtime.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    Checkpoint,
    CheckpointError,
    State,
    all_finite,
    load_last,
    save_best,
    save_last,
    set_aside,
)
from lamina.runtime.data.batches import Batch, Batches, prefetch
from lamina.runtime.data.dataset import Dataset, Input, open_data
from lamina.runtime.data.feeding import feed, require_classes
from lamina.runtime.data.sources import holds_texts
from lamina.runtime.data.stage import Stage
from lamina.runtime.data.vocabulary import Vocabulary
from lamina.runtime.detection import Findings
from lamina.runtime.errors import reason, show
from lamina.runtime.events import (
    Callback,
    Checked,
    EpochDone,
    Event,
    Finished,
    Saved,
    Started,
    StepDone,
    Warned,
)
from lamina.runtime.job import CODES, Job, Keep, Phase, Saving, TrainError, check_job
from lamina.runtime.logs import Log
from lamina.runtime.schedule import Schedule, make_schedule
from lamina.runtime.session import Runner, Session, give

__all__ = [
    "CODES",
    "Callback",
    "Checked",
    "EpochDone",
    "Event",
    "Finished",
    "Input",
    "Job",
    "Keep",
    "Phase",
    "Result",
    "Runner",
    "Saved",
    "Saving",
    "Stage",
    "Started",
    "StepDone",
    "TrainError",
    "Warned",
    "check_job",
    "evaluate",
    "train",
]
METRIC = "metric:"  # outputs that start with it are metrics
_SMOOTHING = 0.95


@dataclass(frozen=True, slots=True)
class Result:
    """Where a run ended: its state, the averages of its last epoch, the checkpoint to use."""

    state: State
    params: dict[str, np.ndarray]
    train: dict[str, float]
    valid: dict[str, float]
    kept: Path
    interrupted: str

    @property
    def exit_code(self) -> int:
        """For the shell: 0, or 128 + the number of the signal that interrupted the run."""
        return 128 + signal.Signals[self.interrupted] if self.interrupted else 0


def train(
    job: Job,
    step_runner: Callable[[int], Runner],
    eval_runner: Callable[[], Runner] | None,
    initial_params: Mapping[str, np.ndarray],
    out: Path,
    resume: bool = False,
    report: Callback = lambda event: None,
    saving: Saving = Saving(),  # noqa: B008  frozen
    overwrite: bool = False,
) -> Result:
    """Run a job to its end, or until SIGINT or SIGTERM, which save and return.

    `step_runner` makes the training runner of a phase by its index, `eval_runner` the one for
    held-out data; both are called when data and folder are known to be in order, and until they
    are made a signal acts as usual: there is nothing to save yet. `out` takes checkpoints and
    the log. `resume` goes on from the last checkpoint there, if there is one; without it a folder
    that holds a run is refused unless `overwrite`.

    Raises TrainError (E650 to E653), DataError, CheckpointError; what was saved is kept.
    """
    check_job(job)
    with _locked(out):
        run = _Run(job, step_runner, initial_params, out, report, saving)
        run.prepare(eval_runner, resume, overwrite)
        with _signals() as run.caught:
            run.begin()
            try:
                return run.go()
            finally:
                run.log.close()


def evaluate(
    job: Job,
    eval_runner: Runner,
    params: Mapping[str, np.ndarray] | None = None,
    stages: Sequence[Stage] = (),
    classes: Sequence[str] = (),
    vocabularies: Mapping[str, Vocabulary] | None = None,
    report: Callback = lambda event: None,
) -> dict[str, float]:
    """Averages over the held-out data (or `stages`), each example (or token) weighing the same.

    `params` are copied into the runner first; `classes` and `vocabularies` are those that the model
    was trained with (`State`); without them the training data tells the vocabularies. Raises
    DataError, CheckpointError E703.
    """
    if params is not None:
        give(eval_runner, eval_runner.get_params(), params, "the weights")
    known = vocabularies or trained_vocabularies(job)
    data = open_data(stages or job.valid, Path(job.folder), job.seed, known)
    for note in data.notes:
        report(Warned(note))
    _tell_unknown(data, report)
    plan = feed(data, job.inputs)
    require_classes(data, classes)
    return _averages(job, eval_runner, Batches(data, job.batch), plan, {}) or {}


def trained_vocabularies(job: Job) -> Mapping[str, Vocabulary]:
    """The vocabularies of a job's training data, which is opened where it holds texts."""
    if not holds_texts(job.train):
        return {}
    return open_data(job.train, Path(job.folder), job.seed).vocabularies


def _tell_unknown(data: Dataset, report: Callback) -> None:
    """Report how many tokens of held-out data are in no vocabulary."""
    for name, count in data.unknown.items():
        if count:
            share = count / data.source.column(name).size
            report(Warned(f"{count:,} tokens ({share:.2%}) of `{show(name)}` in the held-out data "
                          "are not in the vocabulary: <unk>"))


@dataclass(slots=True)
class _Progress:
    """The counters of `State` while they move."""

    step: int = 0
    phase: int = 0
    phase_step: int = 0
    epoch: int = 0
    position: int = 0
    examples: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    best_epoch: int = 0

    def add(self, figures: Mapping[str, float], count: int) -> None:
        """Count a step on `count` examples (or tokens)."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * count
        self.examples += count
        self.step += 1
        self.phase_step += 1
        self.position += 1

    def averages(self) -> dict[str, float]:
        """The figures of the epoch so far."""
        return {name: total / self.examples for name, total in self.sums.items()}

    def end_epoch(self) -> None:
        """Count an epoch."""
        self.epoch, self.position, self.examples, self.sums = self.epoch + 1, 0, 0, {}


class _Run:
    """One run of a job; `prepare`, `begin`, then `go`."""

    log: Log
    batches: Batches
    valid: Batches | None

    def __init__(self, job, step_runner, initial, out, report, saving):
        self.job, self.out, self.report, self.saving = job, out, report, saving
        self.caught: dict[str, str] = {}
        self.step_runner: Callable[[int], Runner] = step_runner
        self.eval_runner: Runner | None = None
        self.eval_params: dict[str, np.ndarray] = {}
        self.session = Session(initial)
        self.ends = np.cumsum([phase.epochs for phase in job.phases]).tolist()
        self.at = _Progress()
        self.schedule: Schedule = lambda step: 0.0
        self.figures: tuple[dict[str, float], dict[str, float]] = ({}, {})
        self.begun = self.ticked = self.saved_at = time.perf_counter()
        self.tick = 0.0  # smoothed seconds per step
        self.saved_step = -1

    def prepare(self, eval_runner: Callable[[], Runner] | None, resume: bool,
                overwrite: bool) -> None:
        """Take up the last checkpoint, or the initial weights; open the data; make the runners."""
        held = any((self.out / name).exists() for name in (LAST, PREVIOUS))
        if held and not resume and not overwrite:
            raise TrainError("E651", f"{show(self.out)} already holds a run",
                             "resume it, or choose another folder")
        found = self._last() if held and resume else None
        self._open_data(found.state.vocabularies if found else {})
        if found is not None:
            self._require_length(found)
        if resume and not held:
            self.report(Warned(f"{show(self.out)} holds no run to go on with: starting afresh"))
        self.report(Checked(self.job))
        if eval_runner is not None:
            self.eval_runner = eval_runner()
            self.eval_params = self.eval_runner.get_params()
        if found is not None:
            self._restore(found)
        else:
            self._enter_phase(0)

    def begin(self) -> None:
        """Open the log; write the first checkpoint of a new run."""
        going_on = self.saved_step >= 0
        if not going_on:
            _remove_checkpoints(self.out)
        self.log = Log(self.out, self.at.step, self.at.epoch)
        held_out = len(self.valid.dataset) if self.valid else 0
        self.report(Started(self.job, self.steps, len(self.batches), self.ends[-1],
                            len(self.data), held_out, self.at.step))
        if not going_on:
            self._save("start")

    def go(self) -> Result:
        """Train to the end or to a signal."""
        self.ticked = time.perf_counter()
        while self.at.epoch < self.ends[-1] and not self.caught:
            phase = sum(end <= self.at.epoch for end in self.ends)
            if phase != self.at.phase:
                self._enter_phase(phase)
            self._epoch()
        return self._finish()

    def _open_data(self, vocabularies: Mapping[str, Vocabulary]) -> None:
        """Open training and held-out data, which is coded as the training data is."""
        job = self.job
        self.batches = self._open(job.train, vocabularies, drop_last=True)
        self.data = self.batches.dataset
        self.plan = feed(self.data, job.inputs)
        self.steps = self.ends[-1] * len(self.batches)
        self.valid, self.valid_plan = None, ()
        if job.valid:
            self.valid = self._open(job.valid, self.data.vocabularies, drop_last=False)
            self.valid_plan = feed(self.valid.dataset, job.inputs)
            require_classes(self.valid.dataset, self.data.classes)
            _tell_unknown(self.valid.dataset, self.report)

    # --- steps ----------------------------------------------------------------------------------

    def _epoch(self) -> None:
        """The rest of the present epoch, its evaluation and its checkpoint; stops at a signal."""
        started = time.perf_counter()
        with prefetch(self.batches.epoch(self.at.epoch, self.at.position)) as stream:
            for batch in stream:
                self._step(batch)
                if self.caught:
                    return
                self._save_if_due()
        valid = self._evaluate()
        if valid is not None:
            self._end_epoch(valid, time.perf_counter() - started)

    def _step(self, batch: Batch) -> None:
        at, phase = self.at, self.job.phases[self.at.phase]
        lr = self.schedule(at.phase_step)
        inputs = {one.key: one.take(batch.arrays) for one in self.plan}
        inputs["lr"] = np.array(lr, np.float32)
        inputs["step"] = np.array(at.phase_step + 1, np.float32)
        if phase.rng:
            inputs["rng"] = np.array([self.job.seed & 0x7FFFFFFF, at.step + 1], np.int32)
        figures = _figures(self.session.run(inputs))
        if not math.isfinite(figures["loss"]):
            what = f"the loss is {figures['loss']}"
            raise self._not_finite(what, at.step + 1, lr,
                                   self.batches.broken(batch, [one.field for one in self.plan]))
        at.add(figures, _weight(self.job, inputs, batch))
        every = self.saving.log_steps
        if every and at.step % every == 0:
            self.log.append("step", at.step, at.epoch, {"lr": lr, **figures})
        self._report_step(phase, lr, batch.size)

    def _report_step(self, phase: Phase, lr: float, size: int) -> None:
        now = time.perf_counter()
        passed, self.ticked = now - self.ticked, now
        self.tick = _SMOOTHING * self.tick + (1 - _SMOOTHING) * passed if self.tick else passed
        averages = self.at.averages()
        loss = averages.pop("loss")
        self.report(StepDone(
            phase.name, self.at.epoch + 1, self.at.step, self.at.position, loss, averages, lr,
            size / self.tick, self.tick * (self.steps - self.at.step),
        ))

    def _evaluate(self) -> dict[str, float] | None:
        """Averages on the held-out data; None when a signal came in between."""
        if self.valid is None or self.eval_runner is None:
            return {}
        give(self.eval_runner, self.eval_params, self.session.weights(), "the trained model")
        found = _averages(self.job, self.eval_runner, self.valid, self.valid_plan, self.caught)
        self.ticked = time.perf_counter()
        return found

    def _end_epoch(self, valid: dict[str, float], seconds: float) -> None:
        at, averages = self.at, self.at.averages()
        phase, lr = self.job.phases[at.phase], self.schedule(at.phase_step - 1)
        at.end_epoch()
        best = self._is_best(valid or averages)
        self.figures = (averages, valid)
        self.log.append("epoch", at.step, at.epoch, {
            "phase": phase.name, "lr": lr, "train": averages, "valid": valid, "best": best,
            "seconds": round(seconds, 3),
        })
        self.log.sync()
        if best:
            self._save("best")
        self._save("epoch")
        self.report(EpochDone(phase.name, at.epoch, at.step, averages, valid, best, seconds))

    def _is_best(self, figures: Mapping[str, float]) -> bool:
        keep, at = self.job.keep, self.at
        value = figures.get(keep.metric, math.nan)
        if keep.mode != "best" or math.isnan(value):
            return False
        better = at.best is None or (value > at.best if keep.larger else value < at.best)
        if better:
            at.best, at.best_epoch = value, at.epoch
        return better

    def _finish(self) -> Result:
        if self.caught and self.saved_step != self.at.step:
            self._save("interrupt")
        self.log.sync()
        at, interrupted = self.at, self.caught.get("signal", "")
        seconds = time.perf_counter() - self.begun
        self.report(Finished(at.step, at.epoch, seconds, at.best, at.best_epoch, interrupted))
        kept = BEST if self.job.keep.mode == "best" and at.best is not None else LAST
        return Result(self._state(), self.session.params(), *self.figures, self.out / kept,
                      interrupted)

    # --- state ----------------------------------------------------------------------------------

    def _open(self, stages: tuple[Stage, ...], vocabularies: Mapping[str, Vocabulary],
              drop_last: bool) -> Batches:
        data = open_data(stages, Path(self.job.folder), self.job.seed, vocabularies)
        for note in data.notes:
            self.report(Warned(note))
        for name in data.source.skipped[:10]:
            self.report(Warned(f"left out: {name} is not a sound picture"))
        if len(data.source.skipped) > 10:
            self.report(Warned(f"left out: {len(data.source.skipped)} damaged pictures in all"))
        return Batches(data, self.job.batch, drop_last)

    def _enter_phase(self, index: int) -> None:
        self.session.enter(self.step_runner(index))
        self.at.phase, self.at.phase_step = index, 0
        self._set_schedule()

    def _set_schedule(self) -> None:
        phase, count = self.job.phases[self.at.phase], len(self.batches)
        self.schedule = make_schedule(phase.schedule, phase.lr, phase.epochs * count, count)

    def _last(self) -> Checkpoint:
        """The last checkpoint, which must be of this job."""
        found = load_last(self.out)
        state = found.state
        if found.warning:
            self.report(Warned(found.warning))
            set_aside(self.out)
        changed = _changes({**dict(state.facts), "seed": str(state.seed)},
                           {**dict(self.job.facts), "seed": str(self.job.seed)})
        longer = self._prolonged(changed, state)
        if changed and not longer:
            raise CheckpointError(
                "E707", f"{show(found.path)} was written for {show(state.recipe)} of "
                f"{show(state.model)} with other settings: {_listed(changed)}",
                "go on with the same text and settings, or start afresh in another folder",
            )
        if longer:
            self.report(Warned(f"{longer}; the schedule is that of the longer run"))
        return found

    def _require_length(self, found: Checkpoint) -> None:
        """Raise CheckpointError E707 where the data has another number of examples than it had."""
        state = found.state
        if state.length != len(self.data):
            raise CheckpointError(
                "E707", f"the training data has changed: {state.length:,} examples when "
                f"{show(found.path)} was written, {len(self.data):,} now",
                "go on with the same data, or start afresh in another folder",
            )

    def _prolonged(self, changed: Mapping[str, tuple[str, str]], state: State) -> str:
        """What to tell when only the last phase has been given more epochs, else nothing."""
        phases = self.job.phases
        name = f"{phases[-1].name}.epochs" if len(phases) > 1 else "epochs"
        if set(changed) != {name} or state.phase != len(phases) - 1:
            return ""
        before, now = changed[name]
        return f"epochs {before} became {now}" if int(now) > int(before or 0) else ""

    def _restore(self, found: Checkpoint) -> None:
        state = found.state
        names = _Progress.__slots__
        self.at = _Progress(**{name: getattr(state, name) for name in names if name != "sums"},
                            sums=dict(state.sums))
        self.session.restore(self.step_runner(state.phase), found.params, str(found.path))
        self._set_schedule()
        self.saved_step = state.step

    def _state(self) -> State:
        job, at = self.job, self.at
        return State(
            job.model, job.recipe, job.facts, job.seed, at.step, at.phase, at.phase_step,
            at.epoch, at.position, at.examples, tuple(at.sums.items()), at.best, at.best_epoch,
            job.version, len(self.data), self.data.classes, self.data.vocabularies,
        )

    def _save_if_due(self) -> None:
        saving = self.saving
        if saving.steps and self.at.step % saving.steps == 0:
            self._save("steps")
        elif saving.seconds and self.ticked - self.saved_at >= saving.seconds:
            self._save("time")

    def _save(self, why: str) -> None:
        params = self.session.params()
        broken = all_finite(params)
        if broken:
            raise self._not_finite(f"`{show(broken)}` holds a NaN or an infinity", self.at.step,
                                   self.schedule(max(0, self.at.phase_step - 1)))
        self.log.sync()
        path = (save_best if why == "best" else save_last)(self.out, self._state(), params)
        if why != "best":
            self.saved_step = self.at.step
        self.saved_at = self.ticked = time.perf_counter()
        self.report(Saved(path, self.at.step, why))

    def _not_finite(self, what: str, step: int, lr: float, data: str = "") -> TrainError:
        good = f"the last good checkpoint is {show(self.out / LAST)} (step {self.saved_step})"
        if self.saved_step < 0:
            good = "nothing was saved yet"
        cause = f"{data}: " if data else ""
        return TrainError(
            "E650",
            f"{cause}{what} at step {step}, epoch {self.at.epoch + 1}, learning rate {lr:.3g}; "
            f"{good}",
            "correct that example, or leave it out; a transform that divides by 0 can be the cause"
            if data else "lower the learning rate, lengthen the warm-up or clip the gradients",
        )


def _figures(outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Loss and metrics by name."""
    found = {"loss": float(outputs["loss"])}
    for key, value in outputs.items():
        if key.startswith(METRIC):
            found[key[len(METRIC):]] = float(value)
    return found


def _weight(job: Job, inputs: Mapping[str, np.ndarray], batch: Batch) -> int:
    """What a batch's figures weigh: its examples, or their tokens."""
    return int(inputs[job.weigh].sum()) if job.weigh else batch.size


def _averages(
    job: Job, runner: Runner, batches: Batches, plan: tuple, caught: Mapping[str, str]
) -> dict[str, float] | None:
    """Averages over all examples or tokens, and what is none; None when a signal came between."""
    total, found = _Progress(), Findings()
    with prefetch(batches.epoch(0)) as stream:
        for batch in stream:
            inputs = {one.key: one.take(batch.arrays) for one in plan}
            outputs = runner.run(inputs)
            total.add(_figures(outputs), _weight(job, inputs, batch))
            if job.truth:
                found.add_batch(outputs, *(inputs[key] for key in job.truth))
            if caught:
                return None
    return total.averages() | found.averages()


def _remove_checkpoints(out: Path) -> None:
    for name in (BEST, LAST, PREVIOUS):
        try:
            (out / name).unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError("E704", f"cannot remove {show(out / name)}: {reason(error)}",
                                  "choose another folder") from None


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise CheckpointError("E704", f"cannot write {show(out)}: {reason(error)}",
                              "choose another folder") from None
    mine = False
    try:
        _lock(handle, out)
        mine = True
        yield
    finally:
        os.close(handle)
        if mine:  # else it is the folder of the one who trains there
            _remove_if_empty(out)


def _remove_if_empty(out: Path) -> None:
    """A run that was refused leaves no folder behind."""
    with contextlib.suppress(OSError):
        if [path.name for path in out.iterdir()] == [".lock"]:
            (out / ".lock").unlink()
            out.rmdir()


def _lock(handle: int, out: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TrainError("E652", f"another process is training in {show(out)}",
                         "wait for it, or choose another folder") from None
    except OSError:
        return  # a file system without locks: go on without


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Settings that differ: what they were and what they are, "" for nothing."""
    names = [*before, *(name for name in now if name not in before)]
    return {name: (before.get(name, ""), now.get(name, "")) for name in names
            if before.get(name, "") != now.get(name, "")}


def _listed(changed: Mapping[str, tuple[str, str]]) -> str:
    if "model" in changed:
        return "the model's text has changed"
    return "; ".join(f"{show(name)} was {show(old) or 'not given'}, is {show(new) or 'not given'}"
                     for name, (old, new) in changed.items())


@contextmanager
def _signals() -> Iterator[dict[str, str]]:
    """A dict that gets "signal" when SIGINT or SIGTERM comes; a second one acts as usual."""
    caught: dict[str, str] = {}
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {}

    def handle(number: int, frame: FrameType | None) -> None:
        caught["signal"] = signal.Signals(number).name
        signal.signal(number, before[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.getsignal(number)
    for number in before:
        signal.signal(number, handle)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
