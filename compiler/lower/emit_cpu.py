"""Loop programs as Numba text for the CPU.

The text names no size, except strides of 0 and 1, so that equal computations on other shapes are
the same kernel. Work is split so that every element is computed by the same instructions whatever
the number of threads: whole rows, or whole blocks of 1024 elements.
"""

from __future__ import annotations

from lamina.compiler.ir.types import Dim, product, to_size
from lamina.compiler.lower.kernel_text import (
    Emitted,
    Text,
    emit_keys,
    emit_named,
    emit_statement,
    emit_store,
    open_loop,
    open_parallel,
    steady_names,
)
from lamina.compiler.lower.loops import LoopProgram, Statement
from lamina.compiler.lower.reductions import emit_columns, emit_middle, emit_rows, is_middle

BLOCK = 1024


def emit_loops(loops: LoopProgram, partials: tuple[int, ...] = ()) -> Emitted:
    """The kernel of a loop program; `partials` are the buffers of a column program's sums."""
    text = Text()
    if loops.kind == "point":
        _emit_point(text, loops)
    elif is_middle(loops):
        emit_middle(text, loops)
    elif loops.kind == "row":
        emit_rows(text, loops)
    else:
        emit_columns(text, loops, partials)
    computed = sum(s.kind == "compute" for s in loops.statements if isinstance(s, Statement))
    work = to_size(product(loops.extents) * (1 + computed + len(loops.reductions)))
    return text.finish(_title(loops), work)


def _title(loops: LoopProgram) -> str:
    what = "Over inner axes" if is_middle(loops) else {
        "point": "Elementwise", "row": "Along rows", "column": "Over leading axes"}[loops.kind]
    return f"{what}: {len(loops.extents)} loops, {len(loops.stores)} results."


# --- elementwise --------------------------------------------------------------------------------


def _emit_point(text: Text, loops: LoopProgram) -> None:
    count = len(loops.extents)
    counters = [f"i{axis}" for axis in range(count)]
    emit_keys(text, loops)
    shared = _parallel_loops(count) if count > 1 else 0
    steady = steady_names(loops, range(shared, count))
    if count == 0:
        text.add("if tid == 0:")
        text.depth += 1
    elif count > 1:
        open_parallel(text, loops, list(range(shared)))
    emit_named(text, loops, steady, counters)
    if count == 1:
        _open_blocks(text, loops.extents[0])
    for axis in range(shared, count if count > 1 else 0):
        open_loop(text, counters[axis], text.dim(loops.extents[axis]))
    for statement in loops.statements:
        if statement.name not in steady:
            emit_statement(text, statement, counters)
    for store in loops.stores:
        emit_store(text, store, counters)


def _parallel_loops(count: int) -> int:
    return max(1, count - 1 if count <= 3 else count - 2)


def _open_blocks(text: Text, extent: Dim) -> None:
    size = text.dim(extent)
    text.add(f"blocks = ({size} + {BLOCK - 1}) // {BLOCK}")
    text.add(f"start = tid * blocks // nthreads * {BLOCK}")
    text.add(f"stop = min((tid + 1) * blocks // nthreads * {BLOCK}, {size})")
    text.add("for i0 in range(start, stop):")
    text.depth += 1
