"""Systems that fail in every way that a real one may, for the tests of the harness."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import Any

import numpy as np

from lamina.tests.bench import ours
from lamina.tests.bench.systems import Ready, Task

CALLS_BEFORE_ROUNDS = 4


def differs(task: Task) -> Ready:
    """One entry of the result is a little off."""
    ready = ours.make(task)

    def value(found: Any) -> np.ndarray:
        array = ready.value(found).copy()
        array.flat[np.abs(array).argmax()] *= 1.001
        return array

    return replace(ready, value=value)


def sleeps(task: Task) -> Ready:
    """The build never ends."""
    time.sleep(3600)
    raise AssertionError


def raises(task: Task) -> Ready:
    """The build fails with a reason."""
    raise RuntimeError("no compiler is installed\nand more lines")


def crashes(task: Task) -> Ready:
    """The process is gone during the build."""
    print("out of luck", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def crashes_later(task: Task) -> Ready:
    """The process is gone in the first round."""
    ready, count = ours.make(task), [0]

    def call() -> Any:
        count[0] += 1
        if count[0] > CALLS_BEFORE_ROUNDS:
            os._exit(7)
        return ready.call()

    return replace(ready, call=call)
