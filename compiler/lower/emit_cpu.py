"""Loop programs as Numba text for the CPU.

The text names no size, except strides of 0 and 1, so that equal computations on other shapes are
the same kernel. Work is split so that every element is computed by the same instructions whatever
the number of threads: whole rows, or whole blocks of 1024 elements. A sum along a row is kept in
16 lanes whatever the machine's vectors: zeros at its end change no bit of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from lamina.compiler.ir.types import FLOATS, Dim, product, to_size
from lamina.compiler.lower.loops import Access, LoopProgram, Reduction, Statement
from lamina.compiler.lower.templates.text import simd_import
from lamina.compiler.ops.random import LOW, WEYL
from lamina.runtime.program import Size

BLOCK = 1024
CHUNK = 16384  # elements that one partial sum covers, at least
MAX_CHUNKS = 32
LANES = 256  # sums kept side by side where a row is short
ROW_LANES = 16  # sums along a row, by position modulo this
TILE = 64  # columns that are summed together where the innermost axis is kept
SCOPES = 32  # memories that a kernel text can number
# 1e39 is infinity as a float32.
START = {"sum": "0", "max": "-1e39", "min": "1e39"}
START_INT = {"sum": "0", "max": "-2147483648", "min": "2147483647"}
COMBINE = {"sum": "plus({0}, {1})", "max": "maximum({0}, {1})", "min": "minimum({0}, {1})"}
IN_ORDER = {**COMBINE, "sum": "({0} + {1})"}


@dataclass(frozen=True, slots=True)
class Emitted:
    """A kernel's text and the arguments of its block, in order."""

    source: str
    args: tuple[tuple[str, Size], ...]
    work: Size


@dataclass(slots=True)
class _Text:
    """Lines under construction, and the argument block behind them."""

    pointers: dict[tuple[int, str], str] = field(default_factory=dict)
    sizes: dict[Size, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    locals: dict[str, tuple[str, int]] = field(default_factory=dict)  # name: type and count
    depth: int = 1

    def add(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    def pointer(self, buffer: int, dtype: str) -> str:
        key = (buffer, dtype)
        return self.pointers.setdefault(key, f"p{len(self.pointers)}")

    def size(self, size: Size) -> str:
        if size in (0, 1) and isinstance(size, int):
            return str(size)
        return self.sizes.setdefault(size, f"n{len(self.sizes)}")

    def dim(self, dim: Dim) -> str:
        return self.size(to_size(dim))

    def index(self, access: Access, counters: list[str]) -> str:
        terms = [] if access.offset == 0 else [self.dim(access.offset)]
        for stride, counter in zip(access.strides, counters, strict=True):
            if stride == 1:
                terms.append(counter)
            elif stride != 0:
                terms.append(f"{counter} * {self.dim(stride)}")
        return " + ".join(terms) or "0"

    def element(self, access: Access, counters: list[str]) -> str:
        return f"{self.pointer(access.buffer, access.dtype)}[{self.index(access, counters)}]"

    def finish(self, title: str, work: Size) -> Emitted:
        head = ["    a = i64ptr(args)"]
        args: list[tuple[str, Size]] = []
        memories: dict[int, int] = {}  # buffers never overlap each other
        for (buffer, dtype), name in self.pointers.items():
            kind = "u8" if dtype == "bool" else dtype
            number = memories.setdefault(buffer, len(memories))
            head.append(f"    {name} = {kind}mem(a[{len(args)}], {number})"
                        if number < SCOPES else f"    {name} = {kind}ptr(a[{len(args)}])")
            args.append(("buffer", buffer))
        for number, (name, (dtype, count)) in enumerate(self.locals.items(), len(memories)):
            head.append(f"    {name} = {dtype}mem(local_{dtype}({count}), {number})"
                        if number < SCOPES else f"    {name} = {dtype}ptr(local_{dtype}({count}))")
        for size, name in self.sizes.items():
            head.append(f"    {name} = a[{len(args)}]")
            args.append(("size", size))
        text = "\n".join(head + self.lines)
        source = (f'"""{title}"""\n\n{simd_import(text)}\n\n\n'
                  f"def kernel(args, tid, nthreads):\n{text}\n")
        return Emitted(source, tuple(args), work)


def emit_loops(loops: LoopProgram, partials: tuple[int, ...] = ()) -> Emitted:
    """The kernel of a loop program; `partials` are the buffers of a column program's sums."""
    text = _Text()
    if loops.kind == "point":
        _emit_point(text, loops)
    elif _is_middle(loops):
        _emit_middle(text, loops)
    elif loops.kind == "row":
        _emit_rows(text, loops)
    else:
        _emit_columns(text, loops, partials)
    computed = sum(s.kind == "compute" for s in loops.statements if isinstance(s, Statement))
    work = to_size(product(loops.extents) * (1 + computed + len(loops.reductions)))
    return text.finish(_title(loops), work)


def _title(loops: LoopProgram) -> str:
    what = "Over inner axes" if _is_middle(loops) else {
        "point": "Elementwise", "row": "Along rows", "column": "Over leading axes"}[loops.kind]
    return f"{what}: {len(loops.extents)} loops, {len(loops.stores)} results."


# --- elementwise --------------------------------------------------------------------------------


def _emit_point(text: _Text, loops: LoopProgram) -> None:
    count = len(loops.extents)
    counters = [f"i{axis}" for axis in range(count)]
    _emit_keys(text, loops)
    shared = _parallel_loops(count) if count > 1 else 0
    steady = _steady_names(loops, range(shared, count))
    if count == 0:
        text.add("if tid == 0:")
        text.depth += 1
    elif count > 1:
        _open_parallel(text, loops, list(range(shared)))
    _emit_named(text, loops, steady, counters)
    if count == 1:
        _open_blocks(text, loops.extents[0])
    for axis in range(shared, count if count > 1 else 0):
        _open_loop(text, counters[axis], text.dim(loops.extents[axis]))
    for statement in loops.statements:
        if statement.name not in steady:
            _emit_statement(text, statement, counters)
    for store in loops.stores:
        _emit_store(text, store, counters)


def _steady_names(loops: LoopProgram, inner: range) -> set[str]:
    """Statements whose value is the same at every iteration of the `inner` loops."""
    names: set[str] = set()
    for s in loops.statements:
        if isinstance(s, Reduction):
            continue
        steady = s.access is None or all(s.access.strides[axis] == 0 for axis in inner)
        if s.kind in ("load", "size", "pointer", "compute") and steady and \
                all(need in names for need in s.needs):
            names.add(s.name)
    return names


def _emit_named(text: _Text, loops: LoopProgram, names: set[str], counters) -> None:
    for statement in loops.statements:
        if statement.name in names:
            _emit_statement(text, statement, counters)


def _parallel_loops(count: int) -> int:
    return max(1, count - 1 if count <= 3 else count - 2)


def _open_blocks(text: _Text, extent: Dim) -> None:
    size = text.dim(extent)
    text.add(f"blocks = ({size} + {BLOCK - 1}) // {BLOCK}")
    text.add(f"start = tid * blocks // nthreads * {BLOCK}")
    text.add(f"stop = min((tid + 1) * blocks // nthreads * {BLOCK}, {size})")
    text.add("for i0 in range(start, stop):")
    text.depth += 1


def _open_loop(text: _Text, counter: str, size: str) -> None:
    text.add(f"for {counter} in range({size}):")
    text.depth += 1


def _open_parallel(text: _Text, loops: LoopProgram, axes: list[int]) -> None:
    """One loop over several axes at once, shared among the threads."""
    if not axes:
        text.add("if tid == 0:")
        text.depth += 1
        return
    sizes = [text.dim(loops.extents[axis]) for axis in axes]
    text.add(f"total = {' * '.join(sizes)}")
    text.add("for t in range(tid * total // nthreads, (tid + 1) * total // nthreads):")
    text.depth += 1
    _decode(text, "t", axes, sizes)


def _decode(text: _Text, flat: str, axes: list[int], sizes: list[str]) -> None:
    """The counters of several axes from one flat counter."""
    rest = flat
    for axis, size in list(zip(axes, sizes, strict=True))[:0:-1]:
        text.add(f"q{axis} = {rest} // {size}")
        text.add(f"i{axis} = {rest} - q{axis} * {size}")
        rest = f"q{axis}"
    text.add(f"i{axes[0]} = {rest}")


# --- statements ---------------------------------------------------------------------------------


def _emit_statement(text: _Text, s: Statement | Reduction, counters: list[str]) -> None:
    if isinstance(s, Reduction) or s.kind == "pointer":
        return
    if s.kind == "load":
        assert s.access is not None
        element = text.element(s.access, counters)
        text.add(f"{s.name} = {element}{' != 0' if s.dtype == 'bool' else ''}")
    elif s.kind == "size":
        text.add(f"{s.name} = {s.dtype}({text.dim(s.size)})")
    elif s.kind == "position":
        assert s.access is not None
        text.add(f"{s.name} = {s.text.format(text.index(s.access, counters))}")
    elif s.kind == "draw":
        assert s.access is not None
        place = text.index(s.access, counters)
        text.add(f"{s.name} = philox_uniform(key_{s.name}, {place})")
    else:
        text.add(f"{s.name} = {s.text}")


def _emit_keys(text: _Text, loops: LoopProgram) -> None:
    """Random streams are named once, outside the loops."""
    pointers = {s.name: s.access for s in loops.statements
                if isinstance(s, Statement) and s.kind == "pointer" and s.access}
    for s in loops.statements:
        if isinstance(s, Statement) and s.kind == "draw":
            access = pointers[s.needs[0]]
            pointer, start = text.pointer(access.buffer, "i32"), text.dim(access.offset)
            salt = int(s.text) * WEYL & LOW
            text.add(f"key_{s.name} = philox_key((i64({pointer}[{start}]) ^ {salt}) & {LOW}, "
                     f"i64({pointer}[{start} + 1]) & {LOW})")


def _emit_store(text: _Text, store, counters: list[str]) -> None:
    value = f"u8({store.name})" if store.access.dtype == "bool" else store.name
    text.add(f"{text.element(store.access, counters)} = {value}")


# --- reductions along rows ----------------------------------------------------------------------


def _emit_rows(text: _Text, loops: LoopProgram) -> None:
    counters = [f"i{axis}" for axis in range(len(loops.extents))]
    stages = _stages(loops)
    last = max(stages.values())
    _emit_keys(text, loops)
    _open_parallel(text, loops, [a for a in range(len(counters)) if a not in loops.reduced])
    outer = text.depth
    for stage in range(last + 1):
        for s in loops.statements:
            if isinstance(s, Statement) and not s.full and stages[s.name] == stage:
                _emit_statement(text, s, counters)
        _emit_stage(text, loops, stages, stage, counters)
        text.depth = outer
    for store in loops.stores:
        if not store.full:
            _emit_store(text, store, counters)


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


def _emit_stage(text: _Text, loops: LoopProgram, stages, stage: int, counters) -> None:
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
        _open_loop(text, counters[axis], text.dim(loops.extents[axis]))
    depth = text.depth
    for _ in _row_loops(text, loops, counters, lanes):
        for s in loops.statements:
            if isinstance(s, Statement) and s.full and s.name in needed:
                _emit_statement(text, s, counters)
        for r in reductions:
            combine = IN_ORDER if lanes else COMBINE
            text.add(f"{targets[r.name]} = {combine[r.how].format(targets[r.name], r.source)}")
        for store in stores:
            _emit_store(text, store, counters)
        text.depth = depth
    text.depth = row
    for r in reductions:
        if targets[r.name] != r.name:
            _fold_lanes(text, r)


def _row_loops(text: _Text, loops: LoopProgram, counters, lanes: bool) -> Iterator[None]:
    """Open the loop over a row; in `lanes` twice, over whole groups of lanes and over the rest."""
    if not loops.reduced:
        yield
        return
    counter, size = counters[loops.reduced[-1]], text.dim(loops.extents[loops.reduced[-1]])
    if not lanes:
        _open_loop(text, counter, size)
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


def _fold_lanes(text: _Text, r: Reduction) -> None:
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


def _is_middle(loops: LoopProgram) -> bool:
    """Whether the innermost axis is kept, and one pass over the others gives every result."""
    if loops.kind != "row" or not loops.reduced or len(loops.extents) - 1 in loops.reduced:
        return False
    stages = _stages(loops)
    return not any(stages[r.name] for r in loops.reductions) and \
        not any(store.full and stages.get(store.name, 0) for store in loops.stores)


def _emit_middle(text: _Text, loops: LoopProgram) -> None:
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
    _emit_keys(text, loops)
    text.add(f"tiles = ({size} + {TILE - 1}) // {TILE}")
    sizes = [text.dim(loops.extents[axis]) for axis in outer]
    text.add(f"total = {' * '.join([*sizes, 'tiles'])}")
    text.add("for t in range(tid * total // nthreads, (tid + 1) * total // nthreads):")
    text.depth += 1
    counters_of_tile = [*outer, len(counters)]
    _decode(text, "t", counters_of_tile, [*sizes, "tiles"])
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
        _emit_statement(text, s, counters)
        if s.name in held:
            text.locals[f"s_{s.name}"] = (s.dtype, TILE)
            text.add(f"s_{s.name}[l] = {s.name}")
    text.depth = top
    for axis in loops.reduced:
        _open_loop(text, counters[axis], text.dim(loops.extents[axis]))
    over_tile()
    for s in loops.statements:
        if s.name in held:
            text.add(f"{s.name} = s_{s.name}[l]")
        elif isinstance(s, Statement) and (s in early or s.full and s.name in needed):
            _emit_statement(text, s, counters)
    for r in loops.reductions:
        text.add(f"s_{r.name}[l] = {IN_ORDER[r.how].format(f's_{r.name}[l]', r.source)}")
    for store in loops.stores:
        if store.full:
            _emit_store(text, store, counters)
    text.depth = top
    over_tile()
    for s in loops.statements:
        if isinstance(s, Reduction):
            text.add(f"{s.name} = s_{s.name}[l]")
        elif not s.full:
            _emit_statement(text, s, counters)
    for store in loops.stores:
        if not store.full:
            _emit_store(text, store, counters)


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


def _emit_columns(text: _Text, loops: LoopProgram, partials: tuple[int, ...]) -> None:
    counters = [f"i{axis}" for axis in range(len(loops.extents))]
    kept = [axis for axis in range(len(counters)) if axis not in loops.reduced]
    rows = [text.dim(loops.extents[axis]) for axis in loops.reduced]
    sums = {r.name: text.pointer(buffer, r.dtype)
            for r, buffer in zip(loops.reductions, partials, strict=True)}
    if _is_flat(loops):
        _emit_flat_columns(text, loops, sums)
        return
    chunks, width = text.size(chunk_count(loops)), text.size(kept_size(loops))
    steady = _steady_names(loops, range(len(counters)))
    _emit_keys(text, loops)
    _emit_named(text, loops, steady, counters)
    text.add(f"rows = {' * '.join(rows) or '1'}")
    text.add(f"for c in range(tid * {chunks} // nthreads, (tid + 1) * {chunks} // nthreads):")
    text.depth += 1
    _clear_sums(text, loops, sums, width, bool(kept))
    text.add(f"for t in range(c * rows // {chunks}, (c + 1) * rows // {chunks}):")
    text.depth += 1
    if loops.reduced:
        _decode(text, "t", list(loops.reduced), rows)
    for axis in kept:
        _open_loop(text, counters[axis], text.dim(loops.extents[axis]))
    place = "c" if not kept else f"c * {width} + {_flat(text, loops, kept)}"
    for s in loops.statements:
        if s.name not in steady:
            _emit_statement(text, s, counters)
    for r in loops.reductions:
        target = f"{sums[r.name]}[{place}]" if kept else r.name
        text.add(f"{target} = {COMBINE[r.how].format(target, r.source)}")
    for store in (s for s in loops.stores if s.name not in sums):
        _emit_store(text, store, counters)
    if not kept:
        text.depth = 2
        for r in loops.reductions:
            text.add(f"{sums[r.name]}[c] = {r.name}")


def _emit_flat_columns(text: _Text, loops: LoopProgram, sums: dict[str, str]) -> None:
    """Short dense rows: as many at once as make a long loop, with a sum for each position."""
    counters = ["r", "i"]
    rows, width = (text.dim(extent) for extent in loops.extents)
    chunks, span = text.size(chunk_count(loops)), text.size(partial_size(loops))
    steady = _steady_names(loops, range(2))
    _emit_keys(text, loops)
    _emit_named(text, loops, steady, counters)
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
            _emit_statement(text, s, counters)
    for r in loops.reductions:
        target = f"{sums[r.name]}[c * {span} + j]"
        text.add(f"{target} = {COMBINE[r.how].format(target, r.source)}")
    for store in (s for s in loops.stores if s.name not in sums):
        _emit_store(text, replace(store, access=_flat_access(store.access)), counters)
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


def _clear_sums(text: _Text, loops: LoopProgram, sums, width: str, kept: bool) -> None:
    if not kept:
        for r in loops.reductions:
            text.add(f"{r.name} = {_start(r)}")
        return
    text.add(f"for j in range({width}):")
    for r in loops.reductions:
        text.add(f"    {sums[r.name]}[c * {width} + j] = {_start(r)}")


def _flat(text: _Text, loops: LoopProgram, axes: list[int]) -> str:
    """The row-major position over some axes."""
    place = f"i{axes[0]}"
    for axis in axes[1:]:
        place = f"({place}) * {text.dim(loops.extents[axis])} + i{axis}"
    return place


def emit_combine(r: Reduction, partial: int, result: Access, chunks: Size, span: Size,
                 width: Size) -> Emitted:
    """The kernel that adds a column program's sums in order: the first `width` of each `span`."""
    text = _Text()
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
