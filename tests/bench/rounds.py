"""Processes side by side: starts each system, compares its result, and times rounds in turn.

While one process starts or is timed, the others are stopped (SIGSTOP), so that no thread of theirs
spins beside it.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np

from lamina.runtime.cache import default_folder
from lamina.tests.bench.models import Model
from lamina.tests.bench.systems import System, Task

# Of results, relative to the largest entry; of what a few steps change the loss by, relative.
RESULT, CHANGE = 1e-4, 1e-2
SPARE = 0.15  # cores that a process may seem to use beyond its threads: clocks are coarse
# What would change the threads, the kernels or the caches of a system.
CLEANED = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "DNNL_", "ONEDNN_", "ATEN_", "TORCH",
           "ORT_", "LAMINA_", "NPY_")
MEGA = 1 << 20
Cell = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure. `limit` is in seconds, for the start and the rounds of one cell.

    `cold`: ours also starts without compiled kernels; otherwise those in `cache` serve.
    """

    rounds: int = 7
    threads: int = 2
    seconds: float = 0.5
    limit: float = 300.0
    cold: bool = True
    cache: Path = default_folder(os.environ).parent


class Late(Exception):
    """The limit is reached; says in what."""


class Broken(Exception):
    """The process failed or ended; says why."""


class Process:
    """A worker, with the time that it has used of its limit."""

    def __init__(self, task: Task, system: System, settings: Settings, cache: Path, log: Path):
        self.limit = self.left = settings.limit
        self.stage, self.log = "the start", log
        self.begun = time.perf_counter()
        self.start_s = 0.0  # from the start of the process to the first result
        self.link, other = Pipe()
        given = json.dumps({**asdict(task), "folder": str(task.folder)})
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lamina.tests.bench.worker", given, system.maker,
                 str(other.fileno())], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                pass_fds=[other.fileno()], start_new_session=True,
                env=environment(task.threads, cache, log.with_suffix(".inductor")))
        other.close()

    def wait(self, wanted: str) -> Any:
        """What comes with the message `wanted`. Raises Late and Broken."""
        start = time.perf_counter()
        try:
            while True:
                if not self.link.poll(max(0.0, self.left - (time.perf_counter() - start))):
                    raise Late(f"more than {self.limit:g} s, in {self.stage}")
                kind, value = self.link.recv()
                if kind == "stage":
                    self.stage = value
                elif kind == "first":
                    self.start_s, self.stage = time.perf_counter() - self.begun, "the warm-up"
                elif kind == "failed":
                    raise Broken(value)
                elif kind == wanted:
                    return value
        except (EOFError, ConnectionError):
            raise Broken(self._why_ended()) from None
        finally:
            self.left -= time.perf_counter() - start

    def ask(self, question: str) -> Any:
        """Let the process go on, answer, and stop again."""
        self._signal(signal.SIGCONT)
        self.stage = "the rounds"
        try:
            self.link.send(question)
        except OSError:
            raise Broken(self._why_ended()) from None
        answer = self.wait(question)
        self.stop()
        return answer

    def stop(self) -> None:
        """Take all its threads off the cores."""
        self._signal(signal.SIGSTOP)

    def end(self) -> None:
        """End it, and what it started."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        self.link.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _why_ended(self) -> str:
        code = self.process.wait()
        lines = self.log.read_text(errors="replace").strip().splitlines()
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{how} in {self.stage}" + (f": {lines[-1][:200]}" if lines else "")


def environment(threads: int, cache: Path, compiled: Path) -> dict[str, str]:
    """The environment of a worker: its threads, its own caches, and no settings of the user's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(CLEANED)}
    count = str(threads)
    return {**kept, "OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count,
            "MKL_NUM_THREADS": count, "XDG_CACHE_HOME": str(cache),
            "TORCHINDUCTOR_CACHE_DIR": str(compiled)}


def measure(model: Model, systems: Sequence[System], modes: Sequence[str], settings: Settings,
            done: Callable[[list[Cell]], None] = lambda cells: None) -> list[Cell]:
    """The cells of a model; `done` is told those of each mode and batch when they are there."""
    found: list[Cell] = []
    with tempfile.TemporaryDirectory(prefix="lamina-bench-") as name:
        folder = Path(name)
        model.data().save(folder)
        for mode in [one for one in model.modes if one in modes]:
            cache = folder / f"cache-{mode}" if settings.cold else settings.cache
            chosen = [system for system in systems if mode in system.modes]
            if not chosen:
                continue
            cold: dict[str, Any] | None = None
            for batch in model.batches(mode):
                task = Task(model.name, mode, batch, model.batch, settings.threads,
                            settings.seconds, folder)
                if settings.cold and cold is None:
                    cold = start_cold(task, chosen, settings, cache)
                cells = Comparison(model, task, settings, cache).run(chosen, dict(cold or {}))
                found += cells
                done(cells)
    return found


def start_cold(task: Task, systems: Sequence[System], settings: Settings, cache: Path) -> Cell:
    """Seconds of ours from nothing to its first result, with the compiler's part of them."""
    ours = [system for system in systems if system.name == "ours" and not system.missing]
    if not ours:
        return {}
    process = Process(task, ours[0], settings, cache, task.folder / "cold.log")
    try:
        facts = process.wait("ready")
    except (Late, Broken) as error:
        return {"cold_why": f"without kernels: {error}"}
    finally:
        process.end()
    return {"cold_s": process.start_s, "cold_compile_s": facts["system"].get("compile_s")}


class Comparison:
    """All systems of one model, mode and batch."""

    def __init__(self, model: Model, task: Task, settings: Settings, cache: Path):
        self.model, self.task, self.settings, self.cache = model, task, settings, cache
        self.known: np.ndarray | None = None
        self.cells: dict[str, Cell] = {}
        self.live: dict[str, Process] = {}

    def run(self, systems: Sequence[System], cold: Cell) -> list[Cell]:
        """A cell for each system. `cold`: how ours started from nothing."""
        try:
            for system in systems:
                self._start(system)
            if "ours" in self.cells:
                self.cells["ours"]["why"] = cold.pop("cold_why", self.cells["ours"]["why"])
                self.cells["ours"]["start"] |= cold
            rounds = self._rounds()
            for name in list(self.live):
                self._finish(name, rounds[name])
        finally:
            for process in self.live.values():
                process.end()
        return list(self.cells.values())

    def _start(self, system: System) -> None:
        task = self.task
        cell = self.cells[system.name] = {
            "model": self.model.name, "mode": task.mode, "batch": task.batch,
            "title": self.model.title(task.mode, task.batch), "system": system.name,
            "label": system.label, "status": "ok", "why": "", "error": None, "change_error": None,
            "seconds": None, "start": {}, "memory": {}, "threads": None, "cores": None,
            "others": None, "layout": ""}
        if system.missing:
            cell |= {"status": "left out", "why": f"not installed: {system.missing}"}
            return
        place = task.folder / f"{task.mode}-{task.batch}-{system.name}.log"
        process = Process(task, system, self.settings, self.cache, place)
        self.live[system.name] = process
        try:
            facts = process.wait("ready")
        except (Late, Broken) as error:
            self._drop(system.name, error)
            return
        process.stop()
        self._take(cell, facts, process.start_s)
        if cell["status"] == "wrong":
            self.live.pop(system.name).end()

    def _take(self, cell: Cell, facts: dict[str, Any], start_s: float) -> None:
        """Facts of a start into a cell, with what its result differs by."""
        own = facts["system"]
        compiled = own.get("compile_s")
        if own.get("compiles"):
            compiled = max(0.0, facts["first_s"] - facts["second_s"])
        exported = own.get("export_s")  # done once, by another system
        cell["start"] = {"start_s": start_s - (exported or 0.0), "build_s": facts["build_s"],
                         "first_s": facts["first_s"], "compile_s": compiled,
                         "export_s": exported}
        arena = own.get("arena_bytes")
        cell["memory"] = {"peak_mb": (facts["peak_bytes"] - facts["base_bytes"]) / MEGA,
                          "base_mb": facts["base_bytes"] / MEGA,
                          "arena_mb": None if arena is None else arena / MEGA}
        cell |= {"threads": own.get("threads"), "layout": own.get("layout", "")}
        if cell["system"] == "ours":
            self.known = facts["result"]
        if self.known is None:
            cell |= {"status": "not compared", "why": "Lamina has no result"}
        else:
            cell |= differences(facts["result"], self.known, self.task.mode)

    def _rounds(self) -> dict[str, list[dict[str, Any]]]:
        """What each system says of its rounds; each round begins with another system."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in self.live}
        for count in range(self.settings.rounds):
            names = list(self.live)
            first = count % max(1, len(names))
            for name in names[first:] + names[:first]:
                try:
                    found[name].append(self.live[name].ask("round"))
                except (Late, Broken) as error:
                    self._drop(name, error)
        return found

    def _finish(self, name: str, rounds: list[dict[str, Any]]) -> None:
        cell = self.cells[name]
        try:
            last = self.live[name].ask("end")
        except (Late, Broken) as error:
            self._drop(name, error)
            return
        cell["memory"]["running_mb"] = last["running_bytes"] / MEGA - cell["memory"]["base_mb"]
        cell |= {"seconds": summary(rounds), **verdict(rounds, last, self.settings.threads)}

    def _drop(self, name: str, error: Exception) -> None:
        self.live.pop(name).end()
        status = "too long" if isinstance(error, Late) else "failed"
        self.cells[name] |= {"status": status, "why": str(error)}


def differences(found: np.ndarray, known: np.ndarray, mode: str) -> Cell:
    """The fields of a cell that say how far a result is from ours."""
    if found.shape != known.shape:
        return {"status": "wrong", "why": f"the shape {found.shape} is not {known.shape}"}
    if not (np.isfinite(found).all() and np.isfinite(known).all()):
        return {"status": "wrong", "why": "results are not finite"}
    if mode == "infer":
        errors = {"error": float(np.abs(found - known).max() / np.abs(known).max())}
    else:  # the losses of some steps: the first is a forward pass, the others tell of gradients
        change, right = found[1:] - found[0], known[1:] - known[0]
        errors = {"error": float(abs(found[0] / known[0] - 1)),
                  "change_error": float(np.abs(change - right).max() / np.abs(right).max())}
    if errors["error"] <= RESULT and errors.get("change_error", 0.0) <= CHANGE:
        return errors
    more = f", {errors['change_error']:.1e} in what steps change" if mode == "train" else ""
    return {**errors, "status": "wrong", "why": f"differs by {errors['error']:.1e}{more}"}


def verdict(rounds: list[dict[str, Any]], last: dict[str, Any], threads: int) -> Cell:
    """The fields of a cell that say whether its rounds were what they should be."""
    others = statistics.median(one["others"] for one in rounds)
    found: Cell = {"cores": max(one["cores"] for one in rounds),
                   "others": max(0.0, others) if np.isfinite(others) else None}
    if found["cores"] > threads + SPARE:
        found |= {"status": "wrong",
                  "why": f"{found['cores']:.2f} cores were busy with {threads} threads"}
    if not last["finite"]:
        found |= {"status": "wrong", "why": "no finite results after the rounds"}
    return found


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Median, quartiles and least seconds of a call, over the medians of rounds."""
    medians = [one["median"] for one in rounds]
    low, middle, high = statistics.quantiles(medians, n=4, method="inclusive") \
        if len(medians) > 1 else medians * 3
    return {"median": middle, "least": min(one["least"] for one in rounds), "quarter": low,
            "three_quarters": high, "rounds": len(rounds),
            "calls": sum(one["calls"] for one in rounds), "of_rounds": medians}
