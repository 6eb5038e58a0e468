"""Kills training runs at random times, resumes them, and compares the final bits.

    python tests/runtime/kill_soak.py --seed 1 --kills 1000 --budget 600

Prints one JSON line: kills, resumes that found a checkpoint, finished runs, wrong results. The
exit status is 1 if any finished run differs from the uninterrupted one, in weights, optimizer
state or log, or if a checkpoint could not be loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import toy  # noqa: E402

from lamina.runtime.checkpoint import BEST, CheckpointError, load, load_last  # noqa: E402
from lamina.runtime.logs import read_log  # noqa: E402
from lamina.runtime.train import Saving, train  # noqa: E402

SAVING = Saving(seconds=0, steps=3, log_steps=5)


def run(out: Path) -> None:
    """One process's work: train, going on from whatever is there."""
    train(toy.job((2, 1)), lambda phase: toy.Toy(), lambda: toy.Toy(trains=False),
          toy.initial(), out,
          resume=True, saving=SAVING)


def fingerprint(out: Path) -> list:
    """Everything that must be equal: last and best parameters and states, and the log."""
    found = [load_last(out), load(out / BEST)]
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in read_log(out)]
    return [[toy.digest(f.params), repr(f.state)] for f in found] + [records]


def attempt(out: Path, delay: float) -> bool:
    """Train in a child for `delay` seconds at most; whether it was killed."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            run(out)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(3)
    gate = os.pidfd_open(child)
    try:
        ended, _, _ = select.select([gate], [], [], delay)
        if not ended:
            signal.pidfd_send_signal(gate, signal.SIGKILL)
    finally:
        os.close(gate)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a resumed run failed")
    return os.WIFSIGNALED(status)


def loadable(out: Path) -> bool:
    """Whether there is a checkpoint; a damaged one escapes as an error."""
    try:
        load_last(out)
        return True
    except CheckpointError as error:
        if error.code != "E701":
            raise
        return False


def soak(seed: int, kills: int, budget: float) -> dict[str, int]:
    """Kill until `kills` or `budget` seconds are spent, then let the last run finish."""
    dice, home = random.Random(seed), Path(tempfile.mkdtemp(prefix="kill-soak-"))
    begun = time.perf_counter()
    attempt(home / "whole", 600)
    whole, expected = time.perf_counter() - begun, fingerprint(home / "whole")
    counts = {"kills": 0, "loadable": 0, "finished": 0, "wrong": 0}
    deadline = time.perf_counter() + budget
    while counts["kills"] < kills and time.perf_counter() < deadline:
        out = home / str(counts["finished"])
        share = 0.4 if dice.random() < 0.8 else 1.2
        killed = attempt(out, dice.random() * whole * share)
        counts["kills"] += killed
        counts["loadable"] += killed and loadable(out)
        if not killed or counts["kills"] == kills:
            attempt(out, 600)
            counts["finished"] += 1
            counts["wrong"] += fingerprint(out) != expected
    shutil.rmtree(home)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--budget", type=float, default=600.0, help="seconds")
    options = parser.parse_args()
    result = soak(options.seed, options.kills, options.budget)
    print(json.dumps(result))
    sys.exit(result["wrong"] > 0)
