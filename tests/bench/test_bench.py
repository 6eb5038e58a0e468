"""The benchmark itself: what it says of systems that are right, wrong, late and gone."""

import importlib.util
import json

import numpy as np
import pytest

from lamina.tests.bench import models, report, rounds, worker
from lamina.tests.bench.__main__ import main
from lamina.tests.bench.systems import SYSTEMS, System

TORCH = importlib.util.find_spec("torch") is not None
QUICK = rounds.Settings(rounds=2, threads=1, seconds=0.02, cold=False)
ABSENT = System("absent", "Absent", "nowhere:make", ("no_such_package",))


def faulty(name):
    return System(name, name.capitalize(), f"lamina.tests.bench.faulty:{name}")


def measured(model, systems, mode, settings=QUICK):
    return {cell["system"]: cell for cell in rounds.measure(model, systems, (mode,), settings)}


@pytest.fixture(scope="module")
def lenet():
    """LeNet's inference by us and by systems that fail, which must not stop ours."""
    names = ("crashes", "differs", "crashes_later", "raises")
    return measured(models.find("lenet5.LeNet5", 1),
                    [SYSTEMS["ours"], ABSENT, *map(faulty, names)], "infer")


def hollow(value, path=""):
    """The paths of fields that are empty."""
    if isinstance(value, dict):
        return [found for key, one in value.items() for found in hollow(one, f"{path}.{key}")]
    return [path] if value is None else []


def test_a_good_cell_is_filled(lenet):
    """A figure without its spread, memory or start is half a figure."""
    cell = lenet["ours"]
    assert cell["status"] == "ok" and cell["why"] == ""
    # Nothing changes in inference, and ours is neither exported nor compared with itself.
    assert set(hollow(cell)) <= {".change_error", ".start.export_s", ".others"}
    seconds = cell["seconds"]
    assert seconds["least"] <= seconds["quarter"] <= seconds["median"] <= seconds["three_quarters"]
    assert seconds["rounds"] == QUICK.rounds and seconds["calls"] >= QUICK.rounds
    assert 0 < cell["cores"] <= QUICK.threads + rounds.SPARE
    assert cell["threads"] == QUICK.threads
    assert cell["memory"]["arena_mb"] > 0 and cell["memory"]["running_mb"] > 0
    assert cell["start"]["start_s"] > cell["start"]["compile_s"] > 0


def test_a_wrong_result_is_called_wrong_and_not_timed(lenet):
    """Otherwise a system that computes something else could win."""
    cell = lenet["differs"]
    assert cell["status"] == "wrong" and cell["seconds"] is None
    assert cell["error"] == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("system, status, why", [
    ("absent", "left out", "not installed: no_such_package"),
    ("raises", "failed", "RuntimeError: no compiler is installed"),
    ("crashes", "failed", "ended by SIGKILL in the build: out of luck"),
    ("crashes_later", "failed", "ended with status 7 in the rounds"),
])
def test_what_fails_says_why_and_stops_nobody(lenet, system, status, why):
    """One missing package or crash must not cost the run of an hour."""
    assert (lenet[system]["status"], lenet[system]["why"]) == (status, why)
    assert lenet["ours"]["seconds"]["rounds"] == QUICK.rounds


def test_without_ours_nothing_is_the_best():
    """What was compared with nothing may compute anything."""
    found = measured(models.find("gemm"), [faulty("raises"), SYSTEMS["numpy"]], "infer")
    cell = found["numpy"]
    assert (cell["status"], cell["why"]) == ("not compared", "Lamina has no result")
    assert cell["seconds"]["median"] > 0 and report.best_of(list(found.values())) is None


def test_the_limit_ends_a_system_that_sleeps():
    """A compilation may take hours; what comes after it still runs."""
    short = rounds.Settings(rounds=1, threads=1, seconds=0.02, limit=3.0, cold=False)
    found = measured(models.find("gemm"), [faulty("sleeps"), ABSENT], "infer", short)
    assert found["sleeps"]["status"] == "too long"
    assert found["sleeps"]["why"].startswith("more than 3 s, in the ")
    assert found["absent"]["status"] == "left out"


def test_a_start_without_kernels_compiles_them():
    """The cold figure is one of an empty cache, whatever the user's holds."""
    cold = rounds.Settings(rounds=1, threads=1, seconds=0.02)
    start = measured(models.find("gemm"), [SYSTEMS["ours"]], "infer", cold)["ours"]["start"]
    assert start["cold_compile_s"] > 2 * start["compile_s"]
    assert start["cold_s"] > start["cold_compile_s"]


@pytest.mark.skipif(not TORCH, reason="PyTorch is what is compared")
def test_training_steps_agree_with_pytorch():
    """Equal weights, gradients and updates: else the two would time different work."""
    found = measured(models.find("lenet5.LeNet5", 8), [SYSTEMS["ours"], SYSTEMS["eager"]], "train")
    cell = found["eager"]
    assert cell["status"] == "ok", cell["why"]
    assert cell["error"] <= rounds.RESULT and cell["change_error"] <= rounds.CHANGE
    assert cell["threads"] == QUICK.threads and cell["layout"] == "channels first"
    assert report.ratio(cell, found["ours"]) > 0


@pytest.mark.skipif(not TORCH, reason="the layouts are PyTorch's")
@pytest.mark.parametrize("inputs, weights, seen", [
    (True, True, {"channels last"}), (False, False, {"channels first"}),
    (True, False, {"channels first", "channels last"}),
])
def test_the_layout_is_seen(inputs, weights, seen):
    """A conversion that was forgotten would time the other layout."""
    import torch

    from lamina.tests.bench.pytorch import layouts

    kinds = {True: torch.channels_last, False: torch.contiguous_format}
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3))
    x = torch.zeros(2, 3, 9, 9).contiguous(memory_format=kinds[inputs])
    assert layouts(net.to(memory_format=kinds[weights]), [x]) == seen


def test_more_cores_than_threads_is_wrong():
    """A system that ignores its number of threads is not comparable."""
    taken = [{"cores": 1.9, "others": 0.0}]
    assert rounds.verdict(taken, {"finite": True}, 1)["status"] == "wrong"
    assert "status" not in rounds.verdict(taken, {"finite": True}, 2)
    assert rounds.verdict(taken, {"finite": False}, 2)["status"] == "wrong"


@pytest.mark.parametrize("found, mode", [
    ([1.0, np.nan], "infer"), ([[1.0, 2.0]], "infer"), ([1.0, 2.001], "infer"),
    ([2.0, 1.0, 0.1], "train"), ([2.001, 1.001, 0.001], "train"),
])
def test_differences_that_are_wrong(found, mode):
    """Of training, a right first loss is not enough: what steps change must be right as well."""
    known = np.array([1.0, 2.0] if mode == "infer" else [2.0, 1.0, 0.0])
    assert rounds.differences(np.array(found), known, mode)["status"] == "wrong"
    assert "status" not in rounds.differences(known, known, mode)


def test_a_round_takes_at_least_one_call():
    """A call longer than a round is timed once, and a short one as often as there is time."""
    assert worker.timed(lambda: None, 0.0)["calls"] == 1
    assert worker.timed(lambda: None, 0.01)["calls"] > 10


def cells_of(**milliseconds):
    """Cells of one work by the time of each system; a negative one is wrong."""
    return [{"model": "m", "mode": "infer", "batch": 1, "title": "m inference, batch 1",
             "system": name, "label": name, "status": "ok" if ms > 0 else "wrong",
             "why": "" if ms > 0 else "differs by 1.0e-02", "error": 0.0, "change_error": None,
             "start": {}, "memory": {"arena_mb": None}, "others": 0.0,
             "seconds": {"median": ms / 1e3, "least": 0, "quarter": 0, "three_quarters": 0}}
            for name, ms in milliseconds.items()]


def test_the_best_of_theirs_is_the_fastest_that_is_right():
    """The ratio must be against the strongest rival, and a wrong one is none."""
    group = cells_of(ours=2.0, slow=9.0, fast=3.0, cheats=-1.0)
    assert report.best_of(group)["system"] == "fast"
    row = "| m inference, batch 1 | 2.00 ms | fast, 3.00 ms | 1.50 |"
    assert row in report.short_table([group])
    assert "no figure" in report.short_table([cells_of(ours=-1.0, fast=3.0)])


def test_the_tables_come_from_the_file(lenet, tmp_path, capsys):
    """What was measured once can be shown again, every cell and every reason."""
    found = {"machine": {"processor": "a processor", "cores": 2, "vectors": [], "load": 0.0,
                         "versions": {"torch": None, "numpy": "2"}},
             "settings": {"threads": 1, "rounds": 2}, "product_gflops": {"before": {"Lamina": 9.0}},
             "tolerances": {"result": 1e-4, "change": 2e-2}, "cells": list(lenet.values())}
    (tmp_path / "found.json").write_text(json.dumps(found))
    assert main(["--from", str(tmp_path / "found.json"), "--markdown",
                 str(tmp_path / "found.md")]) == 0
    text = (tmp_path / "found.md").read_text()
    assert main(["--from", str(tmp_path / "found.json")]) == 0
    assert capsys.readouterr().out == text
    for cell in lenet.values():
        assert f"| {cell['title']} | {cell['label']} |" in text
        assert cell["why"] in text
    assert report.milliseconds(lenet["ours"]["seconds"]["median"]) in text


def test_a_busy_machine_is_told():
    """Times beside other work are not worth quoting, and PyTorch's suffer most."""
    cells = cells_of(ours=1.0)
    found = {"machine": {"processor": "a", "cores": 2, "vectors": [], "load": 0.0, "versions": {}},
             "settings": {"threads": 1, "rounds": 2}, "product_gflops": {}, "cells": cells}
    assert "NOT TO BE QUOTED" not in report.conditions(found)
    cells[0]["others"] = 1.3
    assert "NOT TO BE QUOTED: other processes kept up to 1.3 cores busy" in \
        report.conditions(found)


@pytest.mark.parametrize("arguments, said", [
    (["nothing.Such"], "no model is named 'nothing.Such'; --list prints the names"),
    (["--systems", "ours,theirs"], "'theirs' is none of ours, eager"),
    (["--rounds", "0"], "'0' is no whole number from 1"),
])
def test_a_wrong_command_says_so(arguments, said, capsys):
    """Before an hour is spent on something else."""
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in capsys.readouterr().err


def test_every_known_model_has_a_size_and_a_usual_one_is_known():
    """The one table serves every name that --list prints."""
    for name in models.known():
        model = models.find(name)
        assert model.batch >= 1 and model.shape
        assert all(model.title(mode, model.batch) for mode in model.modes)
    assert set(models.USUAL) <= set(models.known())
