"""Runs a Program on the CPU.

    executor = Executor(program, threads=2)
    executor.set_params({"w": array})
    outputs = executor.run({"x": array})          # symbols are bound from the inputs' shapes
    executor.get_params()

A new set of bindings (another batch size) makes a new plan and compiles nothing. Arrays cross the
border in logical axis order; a buffer's physical `order` is respected by the copies in and out.
"""

from __future__ import annotations

import base64
import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lamina.runtime.cache import Cache, default_folder
from lamina.runtime.cpu.load import Building, load
from lamina.runtime.cpu.plan import DTYPES, GUARD, Plan, aligned, make_plan, nbytes
from lamina.runtime.cpu.threads import (
    SHARE,
    TIMER,
    WALKER,
    Call,
    Rounds,
    Table,
    Threads,
    available_cores,
)
from lamina.runtime.memory import require_memory
from lamina.runtime.program import THREADS, Program, evaluate

PLANS_KEPT = 64  # texts come in some dozens of shapes
PLANS_BYTES = 1 << 28  # of inputs and outputs of kept plans, the present one aside
LARGE = 1 << 28  # bytes of a run for which the machine's memory is asked first
_CANARY = 0xC5
_SIGNALLING_NAN = np.uint32(0x7FA00000)


class MemoryDamage(RuntimeError):
    """A kernel wrote where it must not (found by `check_memory`)."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of several runs: `steps` [runs, steps] and `whole` [runs].

    A step's time is that of all rounds of a loop, waiting for other threads included; a whole run
    copies inputs and outputs too.
    """

    steps: np.ndarray
    whole: np.ndarray


@dataclass(slots=True)
class _Ready:
    """A plan with memory: addresses, argument blocks and the table to walk."""

    plan: Plan
    owned: dict[int, np.ndarray]  # bytes of input and output roots
    blocks: list[np.ndarray] = field(default_factory=list)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)  # views in logical order
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    table: Table | None = None
    once: Table | None = None  # of the steps that run when parameters have been set
    arena: int = -1  # identity of the arena that the blocks point into

    @property
    def bytes(self) -> int:
        """The memory that is held for this plan alone."""
        return sum(memory.nbytes for memory in self.owned.values())


class Executor:
    """A Program with its parameters, threads and memory.

    `cache`: where compiled kernels are kept, or its folder (None: the user's cache folder).
    `check_memory`: fill memory with signalling NaNs before its first use and put canaries
    between buffers; raises MemoryDamage naming the step (slow, for tests).
    `building` is called with how many kernels of how many are built, where some are not kept.
    `warning` holds what a user should be told (a refused cache folder), or an empty text.
    """

    def __init__(
        self,
        program: Program,
        threads: int | None = None,
        cache: Cache | Path | str | None = None,
        check_memory: bool = False,
        building: Building | None = None,
    ):
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        self.program = program
        self.check_memory = check_memory
        if not isinstance(cache, Cache):
            cache = Cache.open(default_folder(os.environ) if cache is None else Path(cache))
        self._cache = cache
        self.warning = cache.warning
        count = threads or available_cores()
        walker, share, *self._kernels = load(
            [WALKER, SHARE, *(kernel.source for kernel in program.kernels)], cache, building
        )
        self._threads = Threads(count, walker, share)
        self._lock = threading.Lock()
        self._names = {kind: self._find(kind) for kind in ("input", "output", "param")}
        self._recent: tuple[tuple, _Ready] | None = None
        self._plans: OrderedDict[tuple, _Ready] = OrderedDict()
        self._arena: np.ndarray = np.empty(0, np.uint8)
        self._kept = self._make_kept()
        self._prepared = False  # whether what depends on parameters alone is up to date

    @property
    def threads(self) -> int:
        """The number of threads, the caller's included."""
        return self._threads.count

    # --- parameters ---------------------------------------------------------------------------

    def set_params(self, values: Mapping[str, np.ndarray]) -> None:
        """Copy values into the parameters of these names; the others keep theirs.

        Raises KeyError for an unknown name, ValueError for a shape or dtype that does not fit;
        then no parameter has changed.
        """
        targets = self._named("param")
        for key, value in values.items():
            if key not in targets:
                raise KeyError(f"no parameter is named {key!r}")
            self._require(key, np.asarray(value), targets[key], self._kept_shape(targets[key]))
        self._prepared = False
        for key, value in values.items():
            self._param_view(targets[key])[...] = value

    def get_params(self) -> dict[str, np.ndarray]:
        """Copies of all parameters, by name."""
        return {
            key: np.array(self._param_view(index), order="C")
            for key, index in self._named("param").items()
        }

    # --- running ------------------------------------------------------------------------------

    def run(
        self, inputs: Mapping[str, np.ndarray], bindings: Mapping[str, int] | None = None
    ) -> dict[str, np.ndarray]:
        """One run: inputs by name to outputs by name (fresh arrays).

        `bindings` gives symbols that no input's shape binds. Raises KeyError for a missing or
        unknown input, ValueError for one that does not fit, MemoryError (with the bytes needed)
        before anything has changed.
        """
        with self._lock:
            ready = self._prepare(inputs, bindings or {})
            if self.check_memory:
                self._run_checked(ready)
            else:
                self._threads.run(ready.table)
            return self._outputs(ready)

    def plan(self, bindings: Mapping[str, int]) -> Plan:
        """The plan (sizes and places of buffers) under these bindings; allocates nothing."""
        return make_plan(self.program, {**bindings, THREADS: self.threads})

    def profile(
        self,
        inputs: Mapping[str, np.ndarray],
        rounds: int = 1,
        bindings: Mapping[str, int] | None = None,
    ) -> list[tuple[str, float]]:
        """(label, least seconds over `rounds` whole runs) of each step, waiting included."""
        least = self.measure(inputs, rounds, bindings).steps.min(axis=0).tolist()
        return [(step.label or self.program.kernels[step.kernel].name, seconds)
                for step, seconds in zip(self.program.steps, least, strict=True)]

    def measure(
        self,
        inputs: Mapping[str, np.ndarray],
        rounds: int = 1,
        bindings: Mapping[str, int] | None = None,
    ) -> Times:
        """The times of `rounds` runs, of 2 at least; steps that run once take none."""
        (timer,) = load([TIMER], self._cache)
        ticks: list[np.ndarray] = []  # of the steps of each run
        whole: list[float] = []
        ends: list[tuple[float, int]] = []  # of the runs, in seconds and in ticks
        with self._lock:
            for _ in range(max(2, rounds)):  # two runs tell how long a tick is
                start = time.perf_counter()
                ready = self._prepare(inputs, bindings or {})
                assert ready.table is not None
                times = ready.table.times
                times[:] = 0
                self._threads.run(ready.table, timer)
                ends.append((time.perf_counter(), int(times[-1])))
                self._outputs(ready)
                whole.append(time.perf_counter() - start)
                ticks.append(np.concatenate([np.zeros(self.program.once, np.int64),
                                             times[ready.table.row_of]]))
        (first, first_ticks), (last, last_ticks) = ends[0], ends[-1]
        steps = np.array(ticks) * ((last - first) / max(1, last_ticks - first_ticks))
        # How long a tick is, is known to some thousandths: no run is shorter than its steps.
        return Times(steps, np.maximum(whole, steps.sum(axis=1)))

    def close(self) -> None:
        """End the threads; a later run starts them again."""
        self._threads.close()

    def _prepare(self, inputs: Mapping[str, np.ndarray], bindings: Mapping[str, int]) -> _Ready:
        arrays = {key: np.asarray(value) for key, value in inputs.items()}
        # Inputs of the shapes and types of the last run need no new look at the declarations.
        seen = (
            tuple((key, a.shape, a.dtype) for key, a in arrays.items()),
            tuple(bindings.items()),
        )
        if self._recent is None or self._recent[0] != seen:
            self._recent = (seen, self._ready(self._bind(arrays, bindings)))
        ready = self._recent[1]
        for key, view in ready.inputs.items():
            view[...] = arrays[key]
        if not self._prepared and ready.once is not None:
            self._threads.run(ready.once)
        self._prepared = True
        return ready

    def _bind(self, arrays: Mapping[str, np.ndarray], given: Mapping[str, int]) -> dict[str, int]:
        """Symbols from the inputs' shapes; checks every input against its declaration."""
        named = self._named("input")
        unknown, missing = set(arrays) - set(named), set(named) - set(arrays)
        if unknown or missing:
            raise KeyError(f"inputs missing: {sorted(missing)}, unknown: {sorted(unknown)}")
        bound = {**given, THREADS: self.threads}
        for key, index in named.items():
            shape = self.program.buffers[index].shape
            if len(shape) == arrays[key].ndim:
                for size, actual in zip(shape, arrays[key].shape, strict=True):
                    if isinstance(size, str):
                        bound.setdefault(size, actual)
        for name, divisor in self.program.meta.get("divisors", {}).items():  # type: ignore[union-attr]
            if bound.get(name, 0) % divisor:
                raise ValueError(f"{name} is {bound[name]}, but must be a multiple of {divisor}")
        for key, index in named.items():
            shape = tuple(_show(s, bound) for s in self.program.buffers[index].shape)
            self._require(key, arrays[key], index, shape)
        return bound

    def _require(self, key: str, array: np.ndarray, index: int, shape: tuple) -> None:
        buffer = self.program.buffers[index]
        if array.shape != shape:
            raise ValueError(f"{buffer.kind} {key!r} must have shape {shape}, not {array.shape}")
        if array.dtype != DTYPES[buffer.dtype]:
            raise ValueError(
                f"{buffer.kind} {key!r} must be {DTYPES[buffer.dtype]}, not {array.dtype}"
            )

    def _outputs(self, ready: _Ready) -> dict[str, np.ndarray]:
        return {key: np.array(view, order="C") for key, view in ready.outputs.items()}

    # --- memory -------------------------------------------------------------------------------

    def _named(self, kind: str) -> dict[str, int]:
        return self._names[kind]

    def _find(self, kind: str) -> dict[str, int]:
        return {b.key: i for i, b in enumerate(self.program.buffers) if b.kind == kind}

    def _kept_shape(self, index: int) -> tuple[int, ...]:
        return tuple(
            evaluate(s, {THREADS: self.threads}) for s in self.program.buffers[index].shape
        )

    def _make_kept(self) -> dict[int, np.ndarray]:
        """Memory of parameters and constants, which plans share."""
        kept = {}
        for index, buffer in enumerate(self.program.buffers):
            if buffer.kind in ("param", "const") and buffer.alias < 0:
                memory = _allocate(nbytes(buffer, self._kept_shape(index)), "its parameters")
                if buffer.data:
                    data = np.frombuffer(base64.b64decode(buffer.data), np.uint8)
                    memory[: data.size] = data
                kept[index] = memory
        return kept

    def _ready(self, bound: Mapping[str, int]) -> _Ready:
        key = tuple(sorted(bound.items()))
        ready = self._plans.get(key)
        if ready is None:
            ready = self._allocate_plan(make_plan(self.program, bound))
            self._plans[key] = ready
            self._forget()
        self._plans.move_to_end(key)
        if ready.arena != self._arena.ctypes.data:  # it has grown since this plan was last used
            self._address(ready)
        return ready

    def _forget(self) -> None:
        """Drop the plans that were not used for longest, as far as they are too many or too large.

        The one made last stays.
        """
        held = sum(ready.bytes for ready in self._plans.values())
        while len(self._plans) > 1 and (len(self._plans) > PLANS_KEPT or held > PLANS_BYTES):
            held -= self._plans.popitem(last=False)[1].bytes

    def _allocate_plan(self, plan: Plan) -> _Ready:
        buffers = self.program.buffers
        own = [
            i
            for i, root in enumerate(plan.roots)
            if root == i and buffers[i].kind in ("input", "output")
        ]
        needed = plan.arena_bytes + sum(aligned(plan.sizes[i] + GUARD) for i in own)
        what = f"this run (its arena, inputs and outputs take {needed:,} bytes)"
        if needed > LARGE:  # smaller ones are not worth asking
            require_memory(needed - self._arena.size, "this run's arena, with inputs and outputs,")
        owned = {i: _allocate(plan.sizes[i], what) for i in own}
        if plan.arena_bytes > self._arena.size:
            self._arena = _allocate(plan.arena_bytes, what)
        return _Ready(plan, owned)

    def _memory(self, ready: _Ready, root: int) -> np.ndarray:
        """The bytes of a root buffer, its guard included."""
        if root in self._kept:
            return self._kept[root]
        if root in ready.owned:
            return ready.owned[root]
        start = ready.plan.offsets[root]
        return self._arena[start : start + aligned(ready.plan.sizes[root] + GUARD)]

    def _address(self, ready: _Ready) -> None:
        """Write every step's argument block and the table for the arena as it lies now."""
        starts = [self._memory(ready, root).ctypes.data for root in ready.plan.roots]
        places = {"buffer": starts, "kernel": self._kernels}
        ready.blocks = [
            np.array([places[kind][number] + more if kind in places else more
                      for kind, number, more in arguments] or [0], np.int64)
            for arguments in ready.plan.arguments
        ]
        once = self.program.once
        ready.once = self._table_of(ready, 0, once - 1) if once else None
        ready.table = self._table_of(ready, once, len(self.program.steps) - 1)
        for views, kind in ((ready.inputs, "input"), (ready.outputs, "output")):
            for key, index in self._named(kind).items():
                views[key] = self._view(ready, index)
        ready.arena = self._arena.ctypes.data

    def _table_of(self, ready: _Ready, first: int, last: int) -> Table:
        """The table of some steps, with the loops that lie within them."""
        program, plan = self.program, ready.plan
        within = [k for k, loop in enumerate(program.loops)
                  if first <= loop.first and loop.last <= last]
        calls = [
            Call(self._kernels[program.steps[i].kernel], ready.blocks[i], plan.single[i],
                 tuple((slot, within.index(k), change) for slot, k, change in plan.advances[i]))
            for i in range(first, last + 1)
        ]
        loops = [Rounds(program.loops[k].first - first, program.loops[k].last - first,
                        plan.rounds[k]) for k in within]
        return Table(calls, loops, self.threads)

    def _view(self, ready: _Ready, index: int) -> np.ndarray:
        """A buffer as an array in logical axis order."""
        memory = self._memory(ready, ready.plan.roots[index])
        return self._logical(memory, index, ready.plan.shapes[index])

    def _param_view(self, index: int) -> np.ndarray:
        return self._logical(self._kept[index], index, self._kept_shape(index))

    def _logical(self, memory: np.ndarray, index: int, shape: tuple[int, ...]) -> np.ndarray:
        buffer = self.program.buffers[index]
        order = buffer.order or tuple(range(len(shape)))
        data = memory[: nbytes(buffer, shape)].view(DTYPES[buffer.dtype])
        return data.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))

    # --- checked runs -------------------------------------------------------------------------

    def _run_checked(self, ready: _Ready) -> None:
        """Step by step; poison a buffer before its first step, check guards after each."""
        buffers, plan = self.program.buffers, ready.plan
        kept = [i for i in (*self._kept, *ready.owned) if i in plan.roots]
        for root in kept:
            self._guard(ready, root)[:] = _CANARY
            if buffers[root].kind == "output":
                _poison(self._memory(ready, root)[: plan.sizes[root]])
        for first, last in self._apart():
            alive = [r for r in plan.offsets
                     if plan.lives[r][0] <= last and plan.lives[r][1] >= first]
            for root in alive:
                if plan.lives[root][0] >= first:
                    _poison(self._memory(ready, root)[: plan.sizes[root]])
                    self._guard(ready, root)[:] = _CANARY
            self._threads.run(self._table_of(ready, first, last))
            for root in (*alive, *kept):
                if first == last and not (self._guard(ready, root) == _CANARY).all():
                    raise MemoryDamage(
                        f"step {first} ({self.program.steps[first].label}) wrote past buffer "
                        f"{root} ({buffers[root].label or buffers[root].key})"
                    )

    def _apart(self) -> list[tuple[int, int]]:
        """Steps one by one, those of a loop together: first and last."""
        found: list[tuple[int, int]] = []
        outer = {loop.first: loop.last for loop in
                 sorted(self.program.loops, key=lambda loop: loop.last - loop.first)}
        index = 0
        while index < len(self.program.steps):
            found.append((index, outer.get(index, index)))
            index = found[-1][1] + 1
        return found

    def _guard(self, ready: _Ready, root: int) -> np.ndarray:
        return self._memory(ready, root)[ready.plan.sizes[root] :]


def _show(size, bound: Mapping[str, int]):
    """A declared size as a number where its symbols are bound, else as it is written."""
    try:
        return evaluate(size, bound)
    except KeyError:
        return str(size)


def _poison(data: np.ndarray) -> None:
    whole = data[: data.size // 4 * 4].view(np.uint32)
    whole[:] = _SIGNALLING_NAN
    data[whole.size * 4 :] = 0xFA


def _allocate(size: int, what: str) -> np.ndarray:
    """Zeroed bytes, page-aligned and with a guard behind; MemoryError says what for."""
    total = aligned(size + GUARD)
    try:
        memory = mmap.mmap(-1, total)
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError(f"cannot get {total:,} bytes of memory for {what}") from error
    if total >= 1 << 22:
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)
