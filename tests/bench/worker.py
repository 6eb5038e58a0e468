"""One system in a process of its own: builds it, proves its result, and times a round when asked.

Started by rounds.py with a Task and the number of a connection, over which go the stages of the
start, the facts, and then a round for each "round".
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from lamina.tests.bench import machine
from lamina.tests.bench.systems import STEPS, Ready, Task

WARM = 3  # calls before the first round, the checked ones included
LONG = 1.0  # seconds of a call that needs no other before it in every round
_DEATH_SIGNAL = 1  # prctl's number


def main(given: str, maker: str, number: int) -> None:
    """Build, prove, and answer until the connection closes."""
    if sys.platform == "linux":  # a stopped process would outlive a parent that is killed
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    link = Connection(number)
    fields = json.loads(given)
    task = Task(**{**fields, "folder": Path(fields["folder"])})
    try:
        ready, facts = start(task, maker, link)
        link.send(("ready", facts))
        serve(ready, task, link)
    except EOFError:
        pass
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        link.send(("failed", f"{type(error).__name__}: {reason[0][:200]}"))
        raise


def start(task: Task, maker: str, link: Connection) -> tuple[Ready, dict[str, Any]]:
    """The built system, and its facts: results, seconds of each stage, memory."""
    link.send(("stage", "the imports"))
    module, _, name = maker.partition(":")
    make: Callable[[Task], Ready] = getattr(importlib.import_module(module), name)
    base, begun = memory("VmRSS"), time.perf_counter()
    link.send(("stage", "the build"))
    ready = make(task)
    built = time.perf_counter()
    link.send(("stage", "the first call"))
    found = [ready.value(ready.call())]
    first = time.perf_counter()
    link.send(("first", None))
    count = 1 + STEPS if task.mode == "train" else 1
    while len(found) < count:
        found.append(ready.value(ready.call()))
    for _ in range(WARM - count):
        ready.call()
    second = time.perf_counter()
    ready.call()
    facts = {"result": np.asarray(found if task.mode == "train" else found[0], np.float64),
             "build_s": built - begun, "first_s": first - built,
             "second_s": time.perf_counter() - second, "base_bytes": base,
             "peak_bytes": memory("VmHWM"), "system": ready.facts}
    return ready, facts


def serve(ready: Ready, task: Task, link: Connection) -> None:
    """A round for each "round"; at "end", what can be told only then."""
    gc.collect()
    forget_peak()
    while True:
        if link.recv() == "end":
            last = ready.value(ready.call())
            link.send(("end", {"finite": bool(np.isfinite(last).all()),
                               "running_bytes": memory("VmHWM")}))
            return
        link.send(("round", timed(ready.call, task.seconds)))


def timed(call: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Seconds of a call, median and least, over at least `seconds` of work and one call.

    `cores` is how many this process kept busy, `others` how many the rest of the machine did.
    """
    begun, used, all_used = time.perf_counter(), time.process_time(), machine.busy()
    call()  # the caches hold what another process left there
    begin, taken = time.perf_counter(), []
    if begin - begun > LONG:
        begin, taken = begun, [begin - begun]
    end = begin + seconds
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    wall, used = time.perf_counter() - begun, time.process_time() - used
    others = (machine.busy() - all_used - used) / wall
    return {"median": statistics.median(taken), "least": min(taken), "calls": len(taken),
            "cores": used / wall, "others": others}


def memory(field: str) -> int:
    """Bytes of this process by a field of /proc: VmRSS now, VmHWM at most; elsewhere at most."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak() -> None:
    """Let VmHWM begin anew, where that can be asked for."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
