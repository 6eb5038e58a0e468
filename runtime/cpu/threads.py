"""The table walker and the threads that run it.

A Table is rows of (kernel address, arguments address, flags). Every thread walks all of them in
compiled code, without the GIL: a row flagged SINGLE runs on thread 0 as `kernel(args, 0, 1)`,
any other on all threads as `kernel(args, tid, nthreads)`; after a row flagged BARRIER the threads
wait for each other. The walker is itself a kernel and is cached like one.

Threads are plain daemon threads parked on a lock; a child made by fork starts its own. Linux
likes to wake a thread on its waker's core, where the two would take turns at every barrier until
the scheduler notices (milliseconds): a woken thread therefore leaves a core that is taken.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading

import numpy as np

SINGLE, BARRIER = 1, 2
_SPINS = 1000  # looks, each with a pause, before a waiting thread yields: about 20 microseconds

WALKER = '''"""Walks a table of kernel calls: block = rows, count, counter address, spins."""

from lamina.runtime.cpu.simd import barrier, call_kernel, i64, i64ptr


def kernel(args, tid, nthreads):
    block = i64ptr(args)
    rows = i64ptr(block[0])
    goal = i64(0)
    for row in range(block[1]):
        flags = rows[3 * row + 2]
        if flags & 1 == 0:
            call_kernel(rows[3 * row], rows[3 * row + 1], tid, nthreads)
        elif tid == 0:
            call_kernel(rows[3 * row], rows[3 * row + 1], i64(0), i64(1))
        if flags & 2 != 0 and nthreads > 1:
            goal += nthreads
            barrier(block[2], goal, block[3])
'''

# The same, and thread 0 writes when each row ended: block[4] has a tick for the start and each row.
TIMER = (
    WALKER.replace("i64ptr\n", "i64ptr, ticks\n", 1)
    .replace("    goal =", "    ends = i64ptr(block[4])\n    ends[0] = ticks()\n    goal =")
    .rstrip("\n")
    + "\n        if tid == 0:\n            ends[row + 1] = ticks()\n"
)

_LIBC = ctypes.CDLL(None)


def _cores() -> set[int]:
    """The cores that this process may use; empty where threads cannot choose theirs."""
    if not sys.platform.startswith("linux"):
        return set()
    return os.sched_getaffinity(0)


def available_cores() -> int:
    """How many threads can run at once."""
    return len(_cores()) or os.cpu_count() or 1


_Entry = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class Table:
    """Rows to walk: `calls` are (kernel address, arguments address, single) in order."""

    def __init__(self, calls: list[tuple[int, int, bool]]):
        self.parallel = any(not single for _, _, single in calls)
        self.rows = np.zeros((max(1, len(calls)), 3), np.int64)
        self.counter = np.zeros(16, np.int64)
        self.ends = np.zeros(len(calls) + 1, np.int64)
        for index, (kernel, args, single) in enumerate(calls):
            following = calls[index + 1][2] if index + 1 < len(calls) else True
            # Two single rows run on one thread in order; the end of the table joins anyway.
            joins = index + 1 < len(calls) and not (single and following)
            self.rows[index] = kernel, args, SINGLE * single + BARRIER * joins
        self.block = np.array(
            [
                self.rows.ctypes.data,
                len(calls),
                self.counter.ctypes.data,
                _SPINS,
                self.ends.ctypes.data,
            ],
            np.int64,
        )


class Threads:
    """`count` threads, the caller's among them, that walk tables together."""

    def __init__(self, count: int, walker: int):
        self.count = count
        self._walk = _Entry(walker)
        self._busy = threading.Lock()
        self._pid = -1
        self._go: list[threading.Lock] = []
        self._done: list[threading.Lock] = []
        self._job = (0, 0)
        self._cores = _cores()
        self._taken: set[int] = set()

    def run(self, table: Table, timer: int = 0) -> None:
        """Walk the table, with `timer` (TIMER's address) timed; callers take turns."""
        address = table.block.ctypes.data
        count = self.count if table.parallel else 1
        if self._pid != os.getpid():  # the first run, or a child after fork
            self._start()
        with self._busy:
            if count == 1:
                (_Entry(timer) if timer else self._walk)(address, 0, 1)
                return
            table.counter[0] = 0
            table.block[3] = _SPINS if count <= (os.cpu_count() or 1) else 50
            self._job = (address, count)
            if self.count <= len(self._cores):
                self._taken = {_LIBC.sched_getcpu()}
            for lock in self._go:
                lock.release()
            try:
                (_Entry(timer) if timer else self._walk)(address, 0, count)
            finally:
                self._join()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._busy = threading.Lock()
        self._go = [threading.Lock() for _ in range(1, self.count)]
        self._done = [threading.Lock() for _ in range(1, self.count)]
        for index, (go, done) in enumerate(zip(self._go, self._done, strict=True)):
            go.acquire()
            done.acquire()
            thread = threading.Thread(
                target=self._serve, args=(index + 1, go, done), daemon=True, name="lamina"
            )
            thread.start()

    def _serve(self, tid: int, go: threading.Lock, done: threading.Lock) -> None:
        while True:
            go.acquire()
            address, count = self._job
            if count == 0:
                return
            if self._taken:
                self._settle()
            self._walk(address, tid, count)
            done.release()

    def _settle(self) -> None:
        """Move to a core of our own if another thread of this run is on the same one."""
        core = _LIBC.sched_getcpu()
        free = self._cores - self._taken
        if core in self._taken and free:
            core = min(free)
            self._taken.add(core)
            # Forbidding the other cores moves us at once; then the scheduler is free again.
            os.sched_setaffinity(0, {core})
            os.sched_setaffinity(0, self._cores)
        self._taken.add(core)

    def _join(self) -> None:
        """Wait for every thread, also when an interrupt arrives meanwhile."""
        interrupt: BaseException | None = None
        for lock in self._done:
            while True:
                try:
                    lock.acquire()
                    break
                except BaseException as error:  # the table must be finished before we leave
                    interrupt = error
        if interrupt is not None:
            raise interrupt

    def close(self) -> None:
        """End the threads; a later run starts new ones."""
        if self._pid != os.getpid():
            return
        with self._busy:
            self._job = (0, 0)
            for lock in self._go:
                lock.release()
            self._pid = -1
