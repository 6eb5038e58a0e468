"""A Program planned for concrete sizes: where every buffer lies and what each step is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lamina.runtime.place import ALIGNMENT, Interval, place
from lamina.runtime.program import ITEM_BYTES, Buffer, Program, evaluate

GUARD = 256  # bytes kept after every buffer, so that vector loads may run past its end
SMALL_WORK = 20_000  # elementary operations below which a step stays on one thread
SMALL_RUN = 300_000  # the same for a whole run: waking another thread takes some 30 microseconds

DTYPES = {
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
}


# What a step is given: ("size", -, value), or ("buffer" or "kernel", number, bytes behind it).
Argument = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes and offsets under fixed bindings; offsets are within the kind's own memory.

    `roots[i]` is the buffer whose memory buffer i uses (itself, unless it is an alias).
    `offsets` has an entry for each root of kind "temp"; other roots have memory of their own.
    """

    bindings: Mapping[str, int]
    shapes: tuple[tuple[int, ...], ...]
    roots: tuple[int, ...]
    sizes: tuple[int, ...]  # bytes that a root needs, guard not included; 0 for an alias
    lives: tuple[tuple[int, int], ...]
    offsets: Mapping[int, int]
    arena_bytes: int
    arguments: tuple[tuple[Argument, ...], ...]  # of each step
    single: tuple[bool, ...]
    advances: tuple[tuple[tuple[int, int, int], ...], ...]  # per step: argument, loop, change
    rounds: tuple[int, ...]  # of each loop


def make_plan(program: Program, bindings: Mapping[str, int]) -> Plan:
    """Evaluate every size under `bindings` and place the temporary buffers."""
    buffers = program.buffers
    shapes = tuple(tuple(evaluate(size, bindings) for size in buffer.shape) for buffer in buffers)
    roots = _roots(buffers)
    sizes, lives = [0] * len(buffers), [(buffer.first, buffer.last) for buffer in buffers]
    for index, buffer in enumerate(buffers):
        root = roots[index]
        sizes[root] = max(sizes[root], nbytes(buffer, shapes[index]))
        first, last = lives[root]
        lives[root] = (min(first, buffer.first), max(last, buffer.last))
    temps = [i for i, buffer in enumerate(buffers) if roots[i] == i and buffer.kind == "temp"]
    offsets, total = place([Interval(sizes[i] + GUARD, *lives[i]) for i in temps])
    rounds = tuple(evaluate(loop.count, bindings) for loop in program.loops)
    starts = {loop.symbol: max(0, count - 1) if loop.backwards else 0
              for loop, count in zip(program.loops, rounds, strict=True)}
    begin = {**bindings, **starts}
    arguments = tuple(
        tuple(_argument(kind, value, begin) for kind, value in step.args)
        for step in program.steps
    )
    advances = tuple(_advances(program, index, begin) for index in range(len(program.steps)))
    work = [evaluate(step.work, begin) for step in program.steps]
    whole = sum(amount * times_of(program, rounds, index) for index, amount in enumerate(work))
    small = SMALL_WORK if whole >= SMALL_RUN else SMALL_RUN
    single = tuple(amount < small for amount in work)
    return Plan(
        dict(bindings),
        shapes,
        roots,
        tuple(sizes),
        tuple(lives),
        dict(zip(temps, offsets, strict=True)),
        total,
        arguments,
        single,
        advances,
        rounds,
    )


def _advances(program: Program, index: int, begin: Mapping[str, int]
              ) -> tuple[tuple[int, int, int], ...]:
    """How a step's arguments change from round to round of the loops around it."""
    found = []
    around = [k for k, loop in enumerate(program.loops) if loop.first <= index <= loop.last]
    for slot, (kind, size) in enumerate(program.steps[index].args if around else ()):
        if kind not in ("size", "place"):
            continue
        for k in around:
            loop = program.loops[k]
            step = -1 if loop.backwards else 1
            moved = {**begin, loop.symbol: begin[loop.symbol] + step}
            change = _argument(kind, size, moved)[2] - _argument(kind, size, begin)[2]
            if change:
                found.append((slot, k, change))
    return tuple(found)


def times_of(program: Program, rounds: Sequence[int], index: int) -> int:
    """How often a step runs."""
    times = 1
    for loop, count in zip(program.loops, rounds, strict=True):
        times *= count if loop.first <= index <= loop.last else 1
    return times


def total_macs(program: Program, plan: Plan) -> tuple[int, ...]:
    """The multiply-accumulates of each step in a whole run, all rounds of loops together."""
    return tuple(evaluate(step.macs, plan.bindings) * times_of(program, plan.rounds, index)
                 for index, step in enumerate(program.steps))


def nbytes(buffer: Buffer, shape: Sequence[int]) -> int:
    """The bytes of the buffer's data under a concrete shape."""
    count = ITEM_BYTES[buffer.dtype]
    for size in shape:
        count *= size
    return count


def aligned(size: int) -> int:
    """`size` rounded up to the alignment of buffers."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _argument(kind: str, value, bindings: Mapping[str, int]) -> Argument:
    if kind == "size":
        return kind, -1, evaluate(value, bindings)
    if kind == "place":
        return "buffer", value[0], evaluate(value[1], bindings)
    return kind, value, 0


def _roots(buffers: Sequence[Buffer]) -> tuple[int, ...]:
    """The buffer at the end of each chain of aliases; a kept buffer ahead of a temporary one."""
    roots = list(range(len(buffers)))
    for index in range(len(buffers)):
        root = index
        while buffers[root].alias >= 0:
            root = buffers[root].alias
        roots[index] = root
    # A group in which some member is kept (an output written in place) lives in that member.
    for index, buffer in enumerate(buffers):
        root = roots[index]
        if buffer.kind != "temp" and buffers[root].kind == "temp":
            roots = [index if r == root else r for r in roots]
    return tuple(roots)
