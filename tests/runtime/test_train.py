"""Training: the same bits however often it is stopped, and nothing lost when it cannot go on."""

import errno
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lamina.runtime import checkpoint
from lamina.runtime import train as training
from lamina.runtime.checkpoint import BEST, LAST, CheckpointError, load, load_last
from lamina.runtime.data import Batch, DataError, Input, Stage, open_data
from lamina.runtime.logs import read_log
from lamina.runtime.schedule import make_schedule
from lamina.runtime.train import (
    EpochDone,
    Finished,
    Job,
    Keep,
    Phase,
    Saved,
    Saving,
    Started,
    StepDone,
    TrainError,
    Warned,
    _locked,
    check_job,
    evaluate,
    train,
)

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("toy", HERE / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


def run(out, job=None, runner=None, **options):
    """Train the toy; `events` of the run come with the result."""
    events = []
    report = options.pop("report", lambda event: None)

    def both(event):
        events.append(event)
        report(event)

    shared = runner or toy.Toy()
    result = train(job or toy.job(), lambda phase: shared, lambda: toy.Toy(trains=False),
                   toy.initial(), out, report=both, **options)
    return result, events


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run: its folder, result and events."""
    out = tmp_path_factory.mktemp("whole")
    return out, *run(out)


def records(out):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read_log(out)]


def require_equal(out, result, whole):
    """Last and best checkpoints, final parameters and the log are those of the whole run."""
    assert toy.digest(result.params) == toy.digest(whole[1].params)
    assert result.state == whole[1].state
    for name in (LAST, BEST):
        one, two = load(out / name), load(whole[0] / name)
        assert one.state == two.state and toy.digest(one.params) == toy.digest(two.params)
    assert records(out) == records(whole[0])


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_learns_and_reports(whole):
    """Events carry what a progress bar needs; the best checkpoint is the best epoch's."""
    out, result, events = whole
    started, steps, epochs = of(Started, events)[0], of(StepDone, events), of(EpochDone, events)
    assert isinstance(started, Started) and isinstance(events[-1], Finished)
    assert (started.steps, started.steps_per_epoch, started.examples, started.step) == (
        92, 46, 1500, 0)
    assert [e.step for e in steps] == list(range(1, 93))
    assert [e.position for e in steps] == [*range(1, 47)] * 2
    assert all(e.per_second > 0 and e.eta >= 0 and math.isfinite(e.loss) for e in steps)
    assert steps[-1].eta == 0 and set(steps[0].metrics) == {"acc"}
    assert [e.phase for e in epochs] == ["p0", "p1"] and epochs[1].valid["acc"] > 0.4
    assert epochs[0].train == {"loss": steps[45].loss, **steps[45].metrics}
    assert result.kept == out / BEST and result.exit_code == 0 and result.valid == epochs[1].valid
    assert result.state.best == max(e.valid["acc"] for e in epochs)
    whys = [e.why for e in of(Saved, events)]
    assert whys == ["start"] + sum([["best"] * e.best + ["epoch"] for e in epochs], [])
    assert [r["step"] for r in records(out)] == [46, 50, 92]


def test_what_a_step_is_given(tmp_path):
    """rng counts all steps; "step" and the schedule start again with each phase's optimizer."""
    runner = toy.Toy()
    run(tmp_path, runner=runner)
    rng, step, lr = zip(*runner.seen, strict=True)
    assert rng == tuple(range(1, 93)) and step == tuple(range(1, 47)) * 2
    assert lr[:46] == lr[46:] and lr[4] == np.float32(0.1) and lr[0] == np.float32(0.02)
    assert runner.params["optimizer/steps"] == 46  # reset by the second phase


def test_phases_may_have_runners_of_their_own(tmp_path):
    """Weights pass from phase to phase through different programs, with equal results."""
    runners = [toy.Toy(), toy.Toy()]
    result = train(toy.job(), runners.__getitem__, lambda: toy.Toy(False), toy.initial(),
                   tmp_path / "a")
    assert toy.digest(result.params) == toy.digest(run(tmp_path / "b")[0].params)
    assert len(runners[0].seen) == len(runners[1].seen) == 46


def test_weights_that_a_program_leaves_out_are_kept(tmp_path):
    """A frozen part need not be in the training program, yet belongs into the checkpoint."""
    frozen = {"frozen.weight": np.arange(3, dtype=np.float32)}
    train(toy.job((1,)), lambda phase: toy.Toy(), None, toy.initial() | frozen, tmp_path)
    assert np.array_equal(load_last(tmp_path).params["frozen.weight"], [0, 1, 2])


def test_without_held_out_data_best_goes_by_training_figures(tmp_path):
    """A recipe without `valid` must still train."""
    result, events = run(tmp_path, toy.job(valid=(), keep=Keep("best", "loss")))
    best = min(of(EpochDone, events), key=lambda e: e.train["loss"])
    assert result.state.best == best.train["loss"] and result.valid == {}
    result, _ = run(tmp_path / "last", toy.job(keep=Keep()))
    assert result.kept.name == LAST and not (tmp_path / "last" / BEST).exists()


def test_evaluation_weighs_every_example_the_same():
    """The last batch is short: a mean of means would be wrong."""
    class Mean:
        def set_params(self, values):
            pass

        def get_params(self):
            return {}

        def run(self, inputs):
            return {"loss": inputs["image"].mean(dtype=np.float64),
                    "metric:zero": (inputs["label"] == 0).mean(), "logits": inputs["label"]}

    data = open_data(toy.job().valid).fetch(np.arange(1500))
    for batch in (7, 400, 1500, 2000):
        found = evaluate(toy.job(batch=batch), Mean(), {})
        assert found["loss"] == pytest.approx(data["image"].mean(dtype=np.float64), rel=1e-6)
        assert found["zero"] == pytest.approx((data["label"] == 0).mean(), rel=1e-12)
        assert set(found) == {"loss", "zero"}


# --- resuming -------------------------------------------------------------------------------------


class Stop(Exception):
    """Raised by a test's report to end a run at a chosen place."""


@pytest.mark.parametrize("stops", [[1], [3, 4], [46], [47], [45, 46, 47, 91], [92]])
def test_resuming_gives_the_same_bits(tmp_path, whole, stops):
    """Stopped right after a step, around ends of epochs and phases, once and repeatedly."""
    for stop in stops:
        def report(event, stop=stop):
            if isinstance(event, StepDone) and event.step == stop:
                raise Stop
        with pytest.raises(Stop):
            run(tmp_path, resume=True, report=report, saving=Saving(0, steps=2))
    result, events = run(tmp_path, resume=True)
    assert 0 < of(Started, events)[0].step <= stops[-1] or stops == [1]
    require_equal(tmp_path, result, whole)


def test_every_kind_of_event_is_a_safe_place_to_stop(tmp_path, whole):
    """Between evaluation, best, last and the log there are windows: all are tried."""
    total = sum(not isinstance(e, StepDone) for e in whole[2])
    for stop in range(total):
        left = [stop]

        def report(event, left=left):
            if not isinstance(event, StepDone):
                left[0] -= 1
                if left[0] < 0:
                    raise Stop
        with pytest.raises(Stop):
            run(tmp_path / str(stop), report=report, saving=Saving(0, steps=23))
        result, _ = run(tmp_path / str(stop), resume=True)
        require_equal(tmp_path / str(stop), result, whole)


def test_a_finished_run_resumes_to_nothing(tmp_path, whole):
    """Resuming twice must not train on."""
    run(tmp_path)
    result, events = run(tmp_path, resume=True)
    assert not of(StepDone, events) and not of(Saved, events)
    require_equal(tmp_path, result, whole)


def test_killed_at_random_times():
    """The promise of the run: SIGKILL at any time, and the final bits are the same.

    The long form: python tests/runtime/kill_soak.py --kills 1000
    """
    done = subprocess.run(
        [sys.executable, HERE / "kill_soak.py", "--kills", "25", "--budget", "20", "--seed", "3"],
        capture_output=True, text=True, timeout=120, check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["kills"] >= 10 and counts["finished"] >= 1 and counts["wrong"] == 0


def test_a_damaged_last_checkpoint_costs_steps_not_bits(tmp_path, whole):
    """The one before it is used, with a warning."""
    with pytest.raises(Stop):
        run(tmp_path, saving=Saving(0, steps=5), report=stop_at(23))
    (tmp_path / LAST).write_bytes(b"rubbish")
    result, events = run(tmp_path, resume=True)
    assert "damaged" in of(Warned, events)[0].message and of(Started, events)[0].step == 15
    require_equal(tmp_path, result, whole)


def stop_at(step):
    def report(event):
        if isinstance(event, StepDone) and event.step == step:
            raise Stop
    return report


def test_the_message_lists_what_changed(tmp_path):
    """One wants to know which of a dozen settings it is."""
    run(tmp_path, toy.job((1,), facts=(("batch", "32"), ("epochs", "1"))))
    changed = (("batch", "64"), ("epochs", "1"), ("schedule", "cosine()"))
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path, toy.job((1,), facts=changed), resume=True)
    assert "batch was 32, is 64; schedule was not given, is cosine()" in caught.value.message


def test_a_run_can_be_prolonged(tmp_path):
    """More epochs for a run that is done is the commonest wish of all."""
    run(tmp_path, toy.job((1,), facts=(("epochs", "1"),)))
    job = toy.job((2,), facts=(("epochs", "2"),))
    result, told = run(tmp_path, job, resume=True)
    assert result.state.epoch == 2
    assert any(isinstance(event, Warned) and "epochs 1 became 2" in event.message for event in told)
    with pytest.raises(CheckpointError, match="epochs was 2, is 1"):
        run(tmp_path, toy.job((1,), facts=(("epochs", "1"),)), resume=True)


def test_a_damaged_checkpoint_never_takes_the_place_of_a_sound_one(tmp_path):
    """Damaged a second time, a run would otherwise have nothing left to go on from."""
    run(tmp_path, toy.job((1,)))
    for _ in range(2):
        (tmp_path / checkpoint.LAST).write_bytes(b"no checkpoint")
        run(tmp_path, toy.job((1,)), resume=True)
        checkpoint.load(tmp_path / checkpoint.PREVIOUS)


def test_a_refused_run_leaves_no_folder(tmp_path):
    """Empty folders pile up and look like runs."""
    with pytest.raises(DataError):
        run(tmp_path / "new", toy.job((1,), train=(Stage("mnist", ("train",)),)))
    assert not (tmp_path / "new").exists()


def test_a_changed_recipe_or_model_does_not_resume(tmp_path):
    """Going on with other text would be neither the old run nor the new one."""
    run(tmp_path, toy.job((1,)))
    for change in ({"facts": (("model", "toy-2"),)}, {"seed": 8}):
        with pytest.raises(CheckpointError) as caught:
            run(tmp_path, toy.job((1,), **change), resume=True)
        assert caught.value.code == "E707"
    half = (Stage("mnist", ("train",)), *toy.job().train[1:])
    with pytest.raises(CheckpointError, match="1,500 examples when .* 8,500 now") as caught:
        run(tmp_path, toy.job((1,), train=half), resume=True)
    assert caught.value.code == "E707" and load_last(tmp_path).state.classes == tuple("0123456789")
    with pytest.raises(CheckpointError, match="optimizer/steps.*missing") as caught:
        state, held = load_last(tmp_path).state, load_last(tmp_path).params
        del held["optimizer/steps"]
        checkpoint.save_last(tmp_path, state, held)
        run(tmp_path, toy.job((1,)), resume=True)
    assert caught.value.code == "E703"


def test_initial_weights_must_fit(tmp_path):
    """The message names the weight."""
    with pytest.raises(CheckpointError, match="`bias` is missing") as caught:
        train(toy.job(), lambda phase: toy.Toy(), None, {"weight": toy.initial()["weight"]},
              tmp_path)
    assert caught.value.code == "E703"
    with pytest.raises(DataError, match="other classes"):
        evaluate(toy.job(), toy.Toy(False), toy.initial(), classes=("a", "b"))
    with pytest.raises(CheckpointError, match="`bias` is float32\\[3\\]"):
        evaluate(toy.job(), toy.Toy(False), {**toy.initial(), "bias": np.zeros(3, np.float32)})


# --- things that go wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_returns(tmp_path, whole, name):
    """Ctrl-C and a scheduler's notice: the step is finished, saved, and nothing is lost."""
    def report(event):
        if isinstance(event, StepDone) and event.step == 31:
            signal.raise_signal(signal.Signals[name])

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    result, events = run(tmp_path, report=report)
    assert result.interrupted == name and result.state.step == 31
    assert result.exit_code == 128 + signal.Signals[name]
    assert of(Saved, events)[-1].why == "interrupt" and events[-1].interrupted == name
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    again, events = run(tmp_path, resume=True)
    assert of(Started, events)[0].step == 31
    require_equal(tmp_path, again, whole)


def test_a_second_interrupt_acts_at_once(tmp_path):
    """Whoever presses Ctrl-C twice wants out."""
    def report(event):
        if isinstance(event, StepDone):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, report=report)
    assert load_last(tmp_path).state.step == 0


def test_a_signal_during_evaluation_evaluates_again(tmp_path, whole):
    """The epoch's training is saved as done, its evaluation as due."""
    class Impatient(toy.Toy):
        def run(self, inputs):
            signal.raise_signal(signal.SIGTERM)
            return super().run(inputs)

    result = train(toy.job(), lambda phase: toy.Toy(), lambda: Impatient(False), toy.initial(),
                   tmp_path)
    assert (result.state.step, result.state.epoch, result.state.position) == (46, 0, 46)
    again, _ = run(tmp_path, resume=True)
    require_equal(tmp_path, again, whole)


def test_training_in_another_thread_leaves_signals_alone(tmp_path):
    """Only the main thread may set handlers: a notebook's worker must train too."""
    found = []
    thread = threading.Thread(target=lambda: found.append(run(tmp_path, toy.job((1,)))[0]))
    thread.start()
    thread.join()
    assert found[0].state.step == 46


def test_nan_stops_and_keeps_what_was_saved(tmp_path, whole):
    """The message says where, at which learning rate, what is left, and what to try."""
    with pytest.raises(TrainError) as caught:
        run(tmp_path, runner=toy.Toy(nan_at=50), saving=Saving(0, steps=48))
    error = caught.value
    assert error.code == "E650" and "clip" in error.help
    for part in ("loss is nan", "step 50", "epoch 2", "learning rate 0.08", LAST, "step 48"):
        assert part in error.message
    result, events = run(tmp_path, resume=True)
    assert of(Started, events)[0].step == 48
    require_equal(tmp_path, result, whole)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (-np.inf, "an infinity")])
def test_data_that_is_nan_is_named(tmp_path, value, word):
    """No learning rate helps against a gap in the data: the message says where it is."""
    x, y = np.zeros((90, 1, 7, 7), np.float32), np.zeros(90, np.int32)
    x[70, 0, 2, 3] = value
    np.savez(tmp_path / "gap.npz", x=x, y=y)
    data = (Stage("arrays", ("gap.npz",), (("image", "x"), ("label", "y"))), Stage("shuffle"))
    job = toy.job(train=data, valid=(), keep=Keep(), folder=str(tmp_path))
    said = f"`image` holds {word} in example 70 of .*gap.npz: the loss is nan at step"
    with pytest.raises(TrainError, match=said) as caught, np.errstate(all="ignore"):
        train(job, lambda phase: toy.Toy(), None, toy.initial(), tmp_path / "run")
    assert caught.value.code == "E650"
    assert "example" in caught.value.help and "learning rate" not in caught.value.help


def test_weights_that_are_nan_are_never_saved(tmp_path):
    """The loss is computed before the update: it can be finite when the weights are not."""
    class Poisoned(toy.Toy):
        def run(self, inputs):
            out = super().run(inputs)
            if inputs["rng"][1] == 20:
                self.params["bias"][3] = np.inf
            return out

    with pytest.raises(TrainError, match="`bias` holds a NaN or an infinity at step 20") as caught:
        run(tmp_path, runner=Poisoned(), saving=Saving(0, steps=10))
    assert caught.value.code == "E650" and load_last(tmp_path).state.step == 10


@pytest.mark.parametrize("at", range(1, 40, 3))
def test_a_disk_that_fills_up_stops_the_run_and_keeps_the_checkpoint(
    tmp_path, whole, monkeypatch, at
):
    """Any write of checkpoint or log may be the one that fails; then the run goes on later."""
    class Full:
        left = at

        def __getattr__(self, name):
            return getattr(os, name)

        def write(self, *args):
            self.left -= 1
            if self.left <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return os.write(*args)

    full = Full()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "os", full)
        patch.setattr("lamina.runtime.logs.os", full)
        with pytest.raises(CheckpointError, match="No space left") as caught:
            run(tmp_path, saving=Saving(0, steps=7, log_steps=5))
    assert caught.value.code == "E704" and not list(tmp_path.glob("*.part"))
    assert at <= 2 or load_last(tmp_path).state.step >= 0
    result, _ = run(tmp_path, resume=True, saving=Saving(log_steps=50))
    assert toy.digest(result.params) == toy.digest(whole[1].params)
    assert result.state == whole[1].state


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    """Hours of work must not vanish because a command was repeated."""
    run(tmp_path, toy.job((1,)))
    with pytest.raises(TrainError) as caught:
        run(tmp_path, toy.job((1,)))
    assert caught.value.code == "E651" and "resume" in caught.value.help
    result, events = run(tmp_path, toy.job((1,)), overwrite=True)
    assert of(Started, events)[0].step == 0 and len(records(tmp_path)) == 1


def test_two_runs_in_one_folder_are_refused(tmp_path):
    """They would overwrite each other's checkpoints."""
    def report(event):
        if isinstance(event, StepDone) and event.step == 1:
            with pytest.raises(TrainError) as caught:
                run(tmp_path, resume=True)
            assert caught.value.code == "E652"
    assert run(tmp_path, toy.job((1,)), report=report)[0].state.step == 46


def test_a_refused_run_leaves_the_other_its_folder(tmp_path):
    """It once removed the folder of a run that had not yet written to it."""
    out = tmp_path / "out"
    with _locked(out):
        assert [path.name for path in out.iterdir()] == [".lock"]
        with pytest.raises(TrainError), _locked(out):
            pass
        assert (out / ".lock").exists()
    assert not out.exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    """Found before training, not at the first checkpoint."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path / "file" / "out")
    assert caught.value.code == "E704"


@pytest.mark.parametrize(("change", "code", "text"), [
    ({"phases": ()}, "E653", "no phase"),
    ({"phases": (Phase("a", 0, 0.1),)}, "E653", "`epochs`"),
    ({"phases": (Phase("a", 1, float("nan")),)}, "E653", "learning rate"),
    ({"batch": 0}, "E653", "`batch`"),
    ({"keep": Keep("best", "ac")}, "E653", "did you mean `acc`"),
    ({"keep": Keep("bset")}, "E653", "`keep`"),
    ({"phases": (Phase("a", 1, 0.1, Stage("cosin")),)}, "E608", "did you mean `cosine`"),
    ({"phases": (Phase("a", 1, 0.1, Stage("cosine", (), (("warm", 3),))),)}, "E608",
     "cosine(warmup=0, final=0.0)"),
    ({"phases": (Phase("a", 1, 0.1, Stage("step")),)}, "E608", "either `every` or `at`"),
    ({"valid": (Stage("mnsit"),)}, "E606", "mnist"),
    ({"train": ()}, "E613", "empty"),
])
def test_settings_that_cannot_work(change, code, text):
    """Found by the compiler's front end before anything is opened."""
    with pytest.raises((TrainError, DataError)) as caught:
        check_job(toy.job(**change))
    assert caught.value.code == code
    assert text in f"{caught.value.message} {caught.value.help}"


# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "values"), [
    (None, {0: 2, 99: 2}),
    (Stage("constant", (), (("warmup", 4),)), {0: 0.5, 3: 2, 4: 2, 99: 2}),
    (Stage("cosine"), {0: 2, 25: 1 + math.cos(math.pi / 4), 50: 1, 100: 0, 200: 0}),
    (Stage("cosine", (20,)), {0: 0.1, 19: 2, 20: 2, 60: 1, 100: 0}),
    (Stage("cosine", (), (("final", 0.5),)), {0: 2, 50: 1.5, 100: 1}),
    (Stage("cosine", (500,)), {0: 2 / 500, 99: 100 / 250}),
    (Stage("linear", (20,)), {19: 2, 20: 2, 60: 1, 100: 0}),
    (Stage("linear", (), (("final", 0.1),)), {0: 2, 50: 1.1, 100: 0.2}),
    (Stage("step", (3,)), {0: 2, 29: 2, 30: 0.2, 60: 0.02}),
    (Stage("step", (), (("at", [2, 5]), ("factor", 0.5), ("warmup", 2))),
     {0: 1, 1: 2, 19: 2, 20: 1, 50: 0.5, 99: 0.5}),
])
def test_schedules(stage, values):
    """By hand: 100 steps of 10 an epoch, base learning rate 2."""
    schedule = make_schedule(stage, 2.0, 100, 10)
    for step, expected in values.items():
        assert schedule(step) == pytest.approx(expected, abs=1e-12)


# --- speed ----------------------------------------------------------------------------------------


def test_little_time_is_spent_outside_the_step(tmp_path, monkeypatch):
    """A LeNet step takes a millisecond: the loop around it may take a tenth of that, not more."""
    batch = Batch(0, 0, np.arange(64), {"image": np.zeros((64, 1, 7, 7), np.float32),
                             "label": np.zeros(64, np.int32)})
    gaps = []

    class Idle(toy.Toy):
        last = 0.0

        def run(self, inputs):
            now = time.perf_counter()
            gaps.append(now - self.last)
            self.last = time.perf_counter()
            return {"loss": np.float32(1), "metric:acc": np.float32(1)}

    @contextmanager
    def ready(batches):
        yield iter([batch] * 500)

    monkeypatch.setattr(training, "prefetch", ready)
    run(tmp_path, toy.job((1,), valid=()), Idle())
    assert np.median(gaps[1:]) < 1e-4


def test_jobs_are_plain_and_frozen():
    """They cross from the compiler to the runtime: data only, comparable, printable."""
    job = toy.job()
    assert job == toy.job() and hash(job) == hash(toy.job()) and isinstance(job, Job)
    assert replace(job, batch=5).batch == 5 and Input("x") == Input("x", "f32", (), 0, "")
