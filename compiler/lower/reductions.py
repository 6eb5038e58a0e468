"""Reductions as kernel text: along rows, over axes outside the innermost one, over leading axes.

A sum along a row is kept in 16 lanes whatever the machine's vectors: zeros at its end change no bit
of it. Over leading axes there are partial sums, whose number is a function of sizes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lamina.compiler.ir.types import FLOATS, product, to_size
from lamina.compiler.lower.kernel_text import (
    Emitted,
    Text,
    decode,
    emit_keys,
    emit_named,
    emit_statement,
    emit_store,
    open_loop,
    open_parallel,
    steady_names,
)
from lamina.compiler.lower.loops import Access, LoopProgram, Reduction, Statement
from lamina.runtime.program import Size

CHUNK = 16384  # elements that one partial sum covers, at least
MAX_CHUNKS = 32
LANES = 256  # sums kept side by side where a row is short
ROW_LANES = 16  # sums along a row, by position modulo this
TILE = 64  # columns that are summed together where the innermost axis is kept
# 1e39 is infinity as a float32.
START = {"sum": "0", "max": "-1e39", "min": "1e39"}
START_INT = {"sum": "0", "max": "-2147483648", "min": "2147483647"}
COMBINE = {"sum": "plus({0}, {1})", "max": "maximum({0}, {1})", "min": "minimum({0}, {1})"}
IN_ORDER = {**COMBINE, "sum": "({0} + {1})"}


# --- reductions along rows ----------------------------------------------------------------------


def emit_rows(text: Text, loops: LoopProgram) -> None:
    """Rows along the reduced axes, each by one thread, in as many passes as it takes."""
    counters = [f"i{axis}" for axis in range(len(loops.extents))]
    stages = _stages(loops)
    last = max(stages.values())
    emit_keys(text, loops)
    open_parallel(text, loops, [a for a in range(len(counters)) if a not in loops.reduced])
    outer = text.depth
    for stage in range(last + 1):
        for s in loops.statements:
            if isinstance(s, Statement) and not s.full and stages[s.name] == stage:
                emit_statement(text, s, counters)
        _emit_stage(text, loops, stages, stage, counters)
        text.depth = outer
    for store in loops.stores:
        if not store.full:
            emit_store(text, store, counters)


def _stages(loops: LoopProgram) -> dict[str, int]:
    """How many passes over a row must be finished before a name is known."""
    stages: dict[str, int] = {}
    finished: dict[str, int] = {}
    for s in loops.statements:
        needs = (s.source,) if isinstance(s, Reduction) else s.needs
        stage = max((finished.get(n, stages.get(n, 0)) for n in needs), default=0)
        stages[s.name] = stage
        if isinstance(s, Reduction):
            finished[s.name] = stage + 1
    return stages


def _emit_stage(text: Text, loops: LoopProgram, stages, stage: int, counters) -> None:
    """One pass over the row: the reductions and stores that become possible at `stage`."""
    reductions = [r for r in loops.reductions if stages[r.name] == stage]
    stores = [s for s in loops.stores if s.full and stages.get(s.name, 0) == stage]
    if not reductions and not stores:
        return
    lanes = bool(loops.reduced) and any(r.how == "sum" and r.dtype in FLOATS for r in reductions)
    targets = {r.name: f"s_{r.name}[l]" if lanes and r.dtype in FLOATS else r.name
               for r in reductions}
    for r in reductions:
        text.add(f"{r.name} = {_start(r)}")
        if targets[r.name] != r.name:
            text.locals[f"s_{r.name}"] = (r.dtype, ROW_LANES)
            text.add(f"for l in range({ROW_LANES}):")
            text.add(f"    s_{r.name}[l] = {_start(r)}")
    needed = _closure(loops, [r.source for r in reductions] + [s.name for s in stores])
    row = text.depth
    for axis in loops.reduced[:-1]:
        open_loop(text, counters[axis], text.dim(loops.extents[axis]))
    depth = text.depth
    for _ in _row_loops(text, loops, counters, lanes):
        for s in loops.statements:
            if isinstance(s, Statement) and s.full and s.name in needed:
                emit_statement(text, s, counters)
        for r in reductions:
            combine = IN_ORDER if lanes else COMBINE
            text.add(f"{targets[r.name]} = {combine[r.how].format(targets[r.name], r.source)}")
        for store in stores:
            emit_store(text, store, counters)
        text.depth = depth
    text.depth = row
    for r in reductions:
        if targets[r.name] != r.name:
            _fold_lanes(text, r)


def _row_loops(text: Text, loops: LoopProgram, counters, lanes: bool) -> Iterator[None]:
    """Open the loop over a row; in `lanes` twice, over whole groups of lanes and over the rest."""
    if not loops.reduced:
        yield
        return
    counter, size = counters[loops.reduced[-1]], text.dim(loops.extents[loops.reduced[-1]])
    if not lanes:
        open_loop(text, counter, size)
        yield
        return
    text.add(f"whole = {size} // {ROW_LANES} * {ROW_LANES}")
    for begin, end in (("0", "whole"), ("whole", size)):
        count = ROW_LANES if begin == "0" else f"{size} - whole"
        if begin == "0":
            text.add(f"for j in range({begin}, {end}, {ROW_LANES}):")
            text.depth += 1
        text.add(f"for l in range({count}):")
        text.depth += 1
        text.add(f"{counter} = {'j' if begin == '0' else 'whole'} + l")
        yield


def _fold_lanes(text: Text, r: Reduction) -> None:
    """The lanes of a reduction in one, always in the same order."""
    lanes, count = f"s_{r.name}", ROW_LANES
    while count > 1:
        count //= 2
        value = IN_ORDER[r.how].format(f"{lanes}[l]", f"{lanes}[l + {count}]")
        text.add(f"for l in range({count}):")
        text.add(f"    {lanes}[l] = {value}")
    text.add(f"{r.name} = {lanes}[0]")


def _start(r: Reduction) -> str:
    table = START_INT if r.dtype in ("i32", "i64") else START
    return f"{r.dtype}({table[r.how]})"


def _closure(loops: LoopProgram, names: list[str]) -> set[str]:
    by_name = {s.name: s for s in loops.statements}
    found: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        s = by_name.get(name)
        if name in found or s is None:
            continue
        found.add(name)
        if isinstance(s, Statement) and s.full:
            stack.extend(s.needs)
    return found


# --- reductions that keep the innermost axis ----------------------------------------------------


def is_middle(loops: LoopProgram) -> bool:
    """Whether the innermost axis is kept, and one pass over the others gives every result."""
    if loops.kind != "row" or not loops.reduced or len(loops.extents) - 1 in loops.reduced:
        return False
    stages = _stages(loops)
    return not any(stages[r.name] for r in loops.reductions) and \
        not any(store.full and stages.get(store.name, 0) for store in loops.stores)


def emit_middle(text: Text, loops: LoopProgram) -> None:
    """Sums over axes outside the innermost one: tiles of columns, each summed in order."""
    counters = [f"i{axis}" for axis in range(len(loops.extents))]
    *outer, inner = [axis for axis in range(len(counters)) if axis not in loops.reduced]
    size = text.dim(loops.extents[inner])
    stages = _stages(loops)
    early = [s for s in loops.statements if isinstance(s, Statement) and not s.full
             and stages[s.name] == 0]
    needed = _closure(loops, [r.source for r in loops.reductions]
                      + [s.name for s in loops.stores if s.full])
    held = {s.name for s in early if s.kind == "compute" and s.dtype in FLOATS}
    emit_keys(text, loops)
    text.add(f"tiles = ({size} + {TILE - 1}) // {TILE}")
    sizes = [text.dim(loops.extents[axis]) for axis in outer]
    text.add(f"total = {' * '.join([*sizes, 'tiles'])}")
    text.add("for t in range(tid * total // nthreads, (tid + 1) * total // nthreads):")
    text.depth += 1
    counters_of_tile = [*outer, len(counters)]
    decode(text, "t", counters_of_tile, [*sizes, "tiles"])
    text.add(f"first = i{len(counters)} * {TILE}")
    text.add(f"width = min({TILE}, {size} - first)")
    top = text.depth

    def over_tile() -> None:
        text.add("for l in range(width):")
        text.depth += 1
        text.add(f"{counters[inner]} = first + l")

    over_tile()
    for r in loops.reductions:
        text.locals[f"s_{r.name}"] = (r.dtype, TILE)
        text.add(f"s_{r.name}[l] = {_start(r)}")
    for s in early:
        emit_statement(text, s, counters)
        if s.name in held:
            text.locals[f"s_{s.name}"] = (s.dtype, TILE)
            text.add(f"s_{s.name}[l] = {s.name}")
    text.depth = top
    for axis in loops.reduced:
        open_loop(text, counters[axis], text.dim(loops.extents[axis]))
    over_tile()
    for s in loops.statements:
        if s.name in held:
            text.add(f"{s.name} = s_{s.name}[l]")
        elif isinstance(s, Statement) and (s in early or s.full and s.name in needed):
            emit_statement(text, s, counters)
    for r in loops.reductions:
        text.add(f"s_{r.name}[l] = {IN_ORDER[r.how].format(f's_{r.name}[l]', r.source)}")
    for store in loops.stores:
        if store.full:
            emit_store(text, store, counters)
    text.depth = top
    over_tile()
    for s in loops.statements:
        if isinstance(s, Reduction):
            text.add(f"{s.name} = s_{s.name}[l]")
        elif not s.full:
            emit_statement(text, s, counters)
    for store in loops.stores:
        if not store.full:
            emit_store(text, store, counters)


# --- reductions over leading axes ---------------------------------------------------------------


def chunk_count(loops: LoopProgram) -> Size:
    """How many partial sums a column program keeps: a function of sizes alone."""
    rows = to_size(product(loops.extents[axis] for axis in loops.reduced))
    elements = to_size(product(loops.extents))
    wanted = ("min", MAX_CHUNKS, ("//", ("+", elements, CHUNK - 1), CHUNK))
    return ("max", 1, ("min", wanted, rows))


def partial_size(loops: LoopProgram) -> Size:
    """How many partial sums a chunk needs: short rows are summed several at a time."""
    width = kept_size(loops)
    if not _is_flat(loops):
        return width
    return ("*", width, ("max", 1, ("//", LANES, ("max", 1, width))))


def _is_flat(loops: LoopProgram) -> bool:
    """Whether rows follow each other without gaps, so that many short ones are one long one."""
    if len(loops.extents) != 2 or loops.reduced != (0,):
        return False
    accesses = [s.access for s in loops.statements if isinstance(s, Statement) and s.access
                and s.kind != "pointer"]
    accesses += [s.access for s in loops.stores if s.full]
    flat = (loops.extents[1], 1)
    return all(a.strides in (flat, (0, 0)) for a in accesses) and \
        not (isinstance(loops.extents[1], int) and loops.extents[1] >= LANES)


def kept_size(loops: LoopProgram) -> Size:
    """How many sums a column program makes."""
    kept = [n for axis, n in enumerate(loops.extents) if axis not in loops.reduced]
    return to_size(product(kept))


def emit_columns(text: Text, loops: LoopProgram, partials: tuple[int, ...]) -> None:
    """Partial sums over leading axes, for `partials`, and what is computed beside."""
    counters = [f"i{axis}" for axis in range(len(loops.extents))]
    kept = [axis for axis in range(len(counters)) if axis not in loops.reduced]
    rows = [text.dim(loops.extents[axis]) for axis in loops.reduced]
    sums = {r.name: text.pointer(buffer, r.dtype)
            for r, buffer in zip(loops.reductions, partials, strict=True)}
    if _is_flat(loops):
        _emit_flat_columns(text, loops, sums)
        return
    chunks, width = text.size(chunk_count(loops)), text.size(kept_size(loops))
    steady = steady_names(loops, range(len(counters)))
    emit_keys(text, loops)
    emit_named(text, loops, steady, counters)
    text.add(f"rows = {' * '.join(rows) or '1'}")
    text.add(f"for c in range(tid * {chunks} // nthreads, (tid + 1) * {chunks} // nthreads):")
    text.depth += 1
    _clear_sums(text, loops, sums, width, bool(kept))
    text.add(f"for t in range(c * rows // {chunks}, (c + 1) * rows // {chunks}):")
    text.depth += 1
    if loops.reduced:
        decode(text, "t", list(loops.reduced), rows)
    for axis in kept:
        open_loop(text, counters[axis], text.dim(loops.extents[axis]))
    place = "c" if not kept else f"c * {width} + {_flat(text, loops, kept)}"
    for s in loops.statements:
        if s.name not in steady:
            emit_statement(text, s, counters)
    for r in loops.reductions:
        target = f"{sums[r.name]}[{place}]" if kept else r.name
        text.add(f"{target} = {COMBINE[r.how].format(target, r.source)}")
    for store in (s for s in loops.stores if s.name not in sums):
        emit_store(text, store, counters)
    if not kept:
        text.depth = 2
        for r in loops.reductions:
            text.add(f"{sums[r.name]}[c] = {r.name}")


def _emit_flat_columns(text: Text, loops: LoopProgram, sums: dict[str, str]) -> None:
    """Short dense rows: as many at once as make a long loop, with a sum for each position."""
    counters = ["r", "i"]
    rows, width = (text.dim(extent) for extent in loops.extents)
    chunks, span = text.size(chunk_count(loops)), text.size(partial_size(loops))
    steady = steady_names(loops, range(2))
    emit_keys(text, loops)
    emit_named(text, loops, steady, counters)
    text.add(f"for c in range(tid * {chunks} // nthreads, (tid + 1) * {chunks} // nthreads):")
    text.depth += 1
    _clear_sums(text, loops, sums, span, True)
    text.add(f"step = max(i64(1), {span})")
    text.add(f"end = (c + 1) * {rows} // {chunks} * {width}")
    text.add(f"for start in range(c * {rows} // {chunks} * {width}, end, step):")
    text.add(f"    for j in range(min({span}, end - start)):")
    text.depth += 2
    text.add("i = start + j")
    flat = replace(loops, statements=tuple(_flattened(s) for s in loops.statements))
    for s in flat.statements:
        if s.name not in steady:
            emit_statement(text, s, counters)
    for r in loops.reductions:
        target = f"{sums[r.name]}[c * {span} + j]"
        text.add(f"{target} = {COMBINE[r.how].format(target, r.source)}")
    for store in (s for s in loops.stores if s.name not in sums):
        emit_store(text, replace(store, access=_flat_access(store.access)), counters)
    text.depth -= 2
    text.add(f"for j in range({width}, {span}):")
    for r in loops.reductions:
        target = f"{sums[r.name]}[c * {span} + j % {width}]"
        value = COMBINE[r.how].format(target, f"{sums[r.name]}[c * {span} + j]")
        text.add(f"    {target} = {value}")


def _flattened(s: Statement | Reduction) -> Statement | Reduction:
    if isinstance(s, Reduction) or s.access is None:
        return s
    return replace(s, access=_flat_access(s.access))


def _flat_access(access: Access) -> Access:
    return access if access.strides == (0, 0) else replace(access, strides=(0, 1))


def _clear_sums(text: Text, loops: LoopProgram, sums, width: str, kept: bool) -> None:
    if not kept:
        for r in loops.reductions:
            text.add(f"{r.name} = {_start(r)}")
        return
    text.add(f"for j in range({width}):")
    for r in loops.reductions:
        text.add(f"    {sums[r.name]}[c * {width} + j] = {_start(r)}")


def _flat(text: Text, loops: LoopProgram, axes: list[int]) -> str:
    """The row-major position over some axes."""
    place = f"i{axes[0]}"
    for axis in axes[1:]:
        place = f"({place}) * {text.dim(loops.extents[axis])} + i{axis}"
    return place


def emit_combine(r: Reduction, partial: int, result: Access, chunks: Size, span: Size,
                 width: Size) -> Emitted:
    """The kernel that adds a column program's sums in order: the first `width` of each `span`."""
    text = Text()
    source, target = text.pointer(partial, r.dtype), text.pointer(result.buffer, r.dtype)
    chunks_name, span_name, width_name = text.size(chunks), text.size(span), text.size(width)
    start = text.dim(result.offset)
    text.add(f"for j in range(tid * {width_name} // nthreads, "
             f"(tid + 1) * {width_name} // nthreads):")
    text.add(f"    total = {_start(r)}")
    text.add(f"    for c in range({chunks_name}):")
    value = f"{source}[c * {span_name} + j]"
    text.add(f"        total = {COMBINE[r.how].format('total', value)}")
    text.add(f"    {target}[{start} + j] = total")
    return text.finish(f"Combine partial results ({r.how}).", ("*", chunks, width))
