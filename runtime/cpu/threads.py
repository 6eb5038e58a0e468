"""The table walker and the threads that run it.

A Table is rows of (kernel address, arguments address, flags, stride). Every thread walks all of
them in compiled code, without the GIL: a row flagged SINGLE runs on thread 0 as
`kernel(args, 0, 1)`, any other on all threads as `kernel(args, tid, nthreads)`; after a row flagged
BARRIER the threads wait for each other. The walker is itself a kernel and is cached like one.

A row flagged BEGIN opens a loop, one flagged END sends the walk back to the row after BEGIN until
the loop has run as often as it should. What changes from round to round are numbers in a thread's
own memory, among them the arguments of kernels in the loop: BEGIN copies some of them to others,
END adds to some.

Threads are plain daemon threads; a child made by fork starts its own. After a run they look for
the next one for a while, in compiled code (waking a thread takes as long as a small network's run),
and then park on a lock. Linux likes to wake a thread on its waker's core, where the two would take
turns at every barrier until the scheduler notices (milliseconds): a woken thread therefore leaves a
core that is taken.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SINGLE, BARRIER, BEGIN, END = 1, 2, 4, 8
_SPINS = 1000  # looks, each with a pause, before a waiting thread yields: about 20 microseconds
_LOOKS = 25_000  # for the next run, before a thread parks: about half a millisecond
_FEW = 50  # of both, where there are fewer cores than threads

# block: rows, count, counter address, spins, address of times, then for loops the address and the
# length of the threads' memory. A loop's row: rounds, address of its list, flags, row to go to.
# A list: place of the counter of rounds, number of pairs, pairs of places or of place and number.
WALKER = '''"""Walks a table of kernel calls."""

from lamina.runtime.cpu.simd import barrier, call_kernel, i64, i64ptr


def kernel(args, tid, nthreads):
    block = i64ptr(args)
    rows = i64ptr(block[0])
    goal = i64(0)
    row = i64(0)
    mine = block[5] + 8 * tid * block[6]
    while row < block[1]:
        flags = rows[4 * row + 2]
        if flags & 12 == 0:
            block_of_row = rows[4 * row + 1] + tid * rows[4 * row + 3]
            if flags & 1 == 0:
                call_kernel(rows[4 * row], block_of_row, tid, nthreads)
            elif tid == 0:
                call_kernel(rows[4 * row], block_of_row, i64(0), i64(1))
            if flags & 2 != 0 and nthreads > 1:
                goal += nthreads
                barrier(block[2], goal, block[3])
            row += 1
        else:
            own, pairs = i64ptr(mine), i64ptr(rows[4 * row + 1])
            if flags & 4 != 0:
                own[pairs[0]] = 0
                for pair in range(pairs[1]):
                    own[pairs[2 + 2 * pair]] = own[pairs[3 + 2 * pair]]
                row = row + 1 if rows[4 * row] > 0 else rows[4 * row + 3]
            else:
                own[pairs[0]] += 1
                for pair in range(pairs[1]):
                    own[pairs[2 + 2 * pair]] += pairs[3 + 2 * pair]
                row = rows[4 * row + 3] if own[pairs[0]] < rows[4 * row] else row + 1
'''

# The same, and thread 0 adds up how long each row took: times has a place for each row, and the
# last for when the walk ended.
TIMER = (
    WALKER.replace("i64ptr\n", "i64ptr, ticks\n", 1)
    .replace("    goal =", "    times = i64ptr(block[4])\n    last = ticks()\n    goal =", 1)
    .replace("        flags =", "        before = row\n        flags =", 1)
    .rstrip("\n")
    + """
        if tid == 0:
            now = ticks()
            times[before] += now - last
            times[block[1]] = now
            last = now
"""
)

# Numbers in the post that threads share, each group in cache lines of its own.
NUMBER, DONE, TABLE, WALK, COUNT, GOAL, LOOKS, SEEN = 0, 8, 16, 17, 18, 19, 20, 24

SHARE = f'''"""Gives a walk out from thread 0, while the others wait for one."""

from lamina.runtime.cpu.simd import barrier, call_kernel, i64, i64ptr, watch


def kernel(args, tid, nthreads):
    post = i64ptr(args)
    seen = {SEEN} + 8 * tid
    if tid == 0:
        goal = post[{GOAL}]
        barrier(args, i64(0), i64(0))  # one more walk
        if post[{COUNT}] == 0:
            return
        call_kernel(post[{WALK}], post[{TABLE}], tid, post[{COUNT}])
        barrier(args + {8 * DONE}, goal, i64({_SPINS}))
        return
    while True:
        number = watch(args, post[seen], post[{LOOKS}])
        if number == post[seen]:
            return
        post[seen] = number
        if post[{COUNT}] == 0:
            return
        goal = post[{GOAL}]
        call_kernel(post[{WALK}], post[{TABLE}], tid, post[{COUNT}])
        barrier(args + {8 * DONE}, goal, i64({_SPINS}))
'''

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


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel's address, its arguments, and whether it runs on one thread.

    `advances`: (argument, number of a loop, change per round) of arguments that follow loops.
    """

    kernel: int
    arguments: np.ndarray
    single: bool
    advances: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Rounds:
    """A loop over the calls `first` to `last`, `count` times."""

    first: int
    last: int
    count: int


class Table:
    """Rows to walk: calls in order, with loops over some of them, for so many threads.

    `row_of` says in which row each call is.
    """

    def __init__(self, calls: Sequence[Call], loops: Sequence[Rounds] = (), threads: int = 1):
        self.parallel = any(not call.single for call in calls)
        self.kept: list[np.ndarray] = [call.arguments for call in calls]  # rows point into them
        self.row_of: list[int] = []
        self._memory: list[int] = []  # of one thread, as it starts
        self._copies: list[list[tuple[int, int]]] = [[] for _ in loops]
        self._adds: list[list[tuple[int, int]]] = [[] for _ in loops]
        places = self._place(calls, loops)
        own = np.tile(np.array([*self._memory, *[0] * len(loops)] or [0], np.int64), (threads, 1))
        self.own = own
        rows = self._rows(calls, loops, places)
        self.rows = np.array(rows or [(0, 0, 0, 0)], np.int64)
        self.counter = np.zeros(16, np.int64)
        self.times = np.zeros(len(rows) + 1, np.int64)
        self.block = np.array([self.rows.ctypes.data, len(rows), self.counter.ctypes.data, _SPINS,
                               self.times.ctypes.data, own.ctypes.data, own.shape[1]], np.int64)

    def _place(self, calls: Sequence[Call], loops: Sequence[Rounds]) -> dict[int, int]:
        """Where the arguments of calls in loops lie in a thread's memory; what loops change."""
        places = {}
        for index, call in enumerate(calls):
            around = [k for k, loop in enumerate(loops) if loop.first <= index <= loop.last]
            if not around:
                continue
            places[index] = start = len(self._memory)
            self._memory += call.arguments.tolist()
            outer_first = sorted(around, key=lambda k: loops[k].first - loops[k].last)
            changes = {(slot, k): change for slot, k, change in call.advances}
            for slot in sorted({slot for slot, _, _ in call.advances}):
                following = [k for k in outer_first if (slot, k) in changes]
                self._chain(start + slot, [(k, changes[slot, k]) for k in following])
        return places

    def _chain(self, place: int, changes: list[tuple[int, int]]) -> None:
        """A number for each loop that an argument follows, outermost first; the last is itself."""
        source = len(self._memory)
        self._memory.append(self._memory[place])
        for position, (loop, change) in enumerate(changes):
            target = place if position == len(changes) - 1 else len(self._memory)
            if target == len(self._memory):
                self._memory.append(0)
            self._copies[loop].append((target, source))
            self._adds[loop].append((target, change))
            source = target

    def _rows(self, calls: Sequence[Call], loops: Sequence[Rounds], places: dict[int, int]
              ) -> list[tuple[int, int, int, int]]:
        rows: list[tuple[int, int, int, int]] = []
        begun: dict[int, int] = {}
        order = sorted(range(len(loops)), key=lambda k: loops[k].first - loops[k].last)
        width = self.own.shape[1] * 8
        for index, call in enumerate(calls):
            for k in order:
                if loops[k].first == index:
                    begun[k] = len(rows)
                    rows.append((loops[k].count, self._list(k, self._copies[k]), BEGIN, 0))
            joins = _joins(calls, loops, index)
            self.row_of.append(len(rows))
            address, stride = call.arguments.ctypes.data, 0
            if index in places:
                address, stride = self.own.ctypes.data + 8 * places[index], width
            rows.append((call.kernel, address, SINGLE * call.single + BARRIER * joins, stride))
            for k in reversed(order):
                if loops[k].last == index:
                    rows.append((loops[k].count, self._list(k, self._adds[k]), END, begun[k] + 1))
                    rows[begun[k]] = (*rows[begun[k]][:3], len(rows))
        return rows

    def _list(self, loop: int, pairs: list[tuple[int, int]]) -> int:
        flat = [len(self._memory) + loop, len(pairs), *(n for pair in pairs for n in pair)]
        self.kept.append(np.array(flat, np.int64))
        return self.kept[-1].ctypes.data


def _joins(calls: Sequence[Call], loops: Sequence[Rounds], index: int) -> bool:
    """Whether the threads wait for each other after a call: unless one thread goes on anyway."""
    following = [index + 1, *(loop.first for loop in loops if loop.last == index)]
    # What comes after the end of the table waits by itself.
    nexts = [calls[i].single for i in following if i < len(calls)]
    return bool(nexts) and not (calls[index].single and all(nexts))


class Threads:
    """`count` threads, the caller's among them, that walk tables together.

    `walker` and `share` are the addresses of WALKER and SHARE.
    """

    def __init__(self, count: int, walker: int, share: int):
        self.count = count
        self._walker = walker
        self._walk, self._share = _Entry(walker), _Entry(share)
        self._busy = threading.Lock()
        self._pid = -1
        self._cores = _cores()
        self._taken: set[int] = set()
        self._begin()

    def run(self, table: Table, timer: int = 0) -> None:
        """Walk the table, with `timer` (TIMER's address) timed; callers take turns."""
        address = table.block.ctypes.data
        if self._pid != os.getpid():  # the first run, or a child after fork
            self._start()
        with self._busy:
            if self.count == 1 or not table.parallel:
                (_Entry(timer) if timer else self._walk)(address, 0, 1)
                return
            enough = self.count <= (os.cpu_count() or 1)
            table.counter[0] = 0
            table.block[3] = _SPINS if enough else _FEW
            self._give_out(address, timer or self._walker, self.count,
                           _LOOKS if enough else _FEW)

    def _begin(self) -> None:
        """The post, before any walk."""
        self._post = np.zeros(SEEN + 8 * self.count, np.int64)
        self._number = 0  # of walks given out
        self._turn = threading.Lock()  # held while a thread decides whether to park
        self._parked: list[threading.Lock] = []
        self._threads: list[threading.Thread] = []

    def _start(self) -> None:
        self._pid = os.getpid()
        self._busy = threading.Lock()
        self._begin()
        for tid in range(1, self.count):
            thread = threading.Thread(target=self._serve, args=(tid, self._post), daemon=True,
                                      name="lamina")
            self._threads.append(thread)
            thread.start()

    def _give_out(self, address: int, walker: int, count: int, looks: int) -> None:
        """One walk for all threads, which ends when all have done it; with `count` 0 their end."""
        post = self._post
        post[TABLE], post[WALK], post[COUNT], post[LOOKS] = address, walker, count, looks
        post[GOAL] += count
        if self.count <= len(self._cores):
            self._taken = {_LIBC.sched_getcpu()}
        with self._turn:
            self._number += 1
            parked, self._parked = self._parked, []
        for lock in parked:
            lock.release()
        self._share(post.ctypes.data, 0, self.count)

    def _serve(self, tid: int, post: np.ndarray) -> None:
        parking = threading.Lock()
        parking.acquire()
        while True:
            self._share(post.ctypes.data, tid, self.count)
            seen = post[SEEN + 8 * tid]
            if seen and post[COUNT] == 0:
                return
            with self._turn:
                if self._number != seen:  # another walk has been given out meanwhile
                    continue
                self._parked.append(parking)
            parking.acquire()
            if self._taken:
                self._settle()

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

    def close(self) -> None:
        """End the threads; a later run starts new ones."""
        if self._pid != os.getpid():
            return
        with self._busy:
            self._pid = -1
            if self.count > 1:
                self._give_out(0, self._walker, 0, 0)
            for thread in self._threads:
                thread.join()
