"""Kernel texts under construction: arguments, loops and statements of loop programs."""

from __future__ import annotations

from dataclasses import dataclass, field

from lamina.compiler.ir.types import Dim, to_size
from lamina.compiler.lower.loops import Access, LoopProgram, Reduction, Statement
from lamina.compiler.lower.templates.text import imports
from lamina.compiler.ops.random import LOW, WEYL
from lamina.runtime.program import Size

SCOPES = 32  # memories that a kernel text can number


@dataclass(frozen=True, slots=True)
class Emitted:
    """A kernel's text and the arguments of its block, in order."""

    source: str
    args: tuple[tuple[str, Size], ...]
    work: Size


@dataclass(slots=True)
class Text:
    """Lines under construction, and the argument block behind them."""

    pointers: dict[tuple[int, str], str] = field(default_factory=dict)
    sizes: dict[Size, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    locals: dict[str, tuple[str, int]] = field(default_factory=dict)  # name: type and count
    depth: int = 1

    def add(self, line: str) -> None:
        """Append a line."""
        self.lines.append("    " * self.depth + line)

    def pointer(self, buffer: int, dtype: str) -> str:
        """The name of the pointer to a buffer."""
        key = (buffer, dtype)
        return self.pointers.setdefault(key, f"p{len(self.pointers)}")

    def size(self, size: Size) -> str:
        """The name of a size among the arguments; 0 and 1 are themselves."""
        if size in (0, 1) and isinstance(size, int):
            return str(size)
        return self.sizes.setdefault(size, f"n{len(self.sizes)}")

    def dim(self, dim: Dim) -> str:
        """The same of a Dim."""
        return self.size(to_size(dim))

    def index(self, access: Access, counters: list[str]) -> str:
        """Where an access lies, in elements, at these counters."""
        terms = [] if access.offset == 0 else [self.dim(access.offset)]
        for stride, counter in zip(access.strides, counters, strict=True):
            if stride == 1:
                terms.append(counter)
            elif stride != 0:
                terms.append(f"{counter} * {self.dim(stride)}")
        return " + ".join(terms) or "0"

    def element(self, access: Access, counters: list[str]) -> str:
        """The element of an access at these counters."""
        return f"{self.pointer(access.buffer, access.dtype)}[{self.index(access, counters)}]"

    def finish(self, title: str, work: Size) -> Emitted:
        """The whole text with its arguments."""
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
        source = (f'"""{title}"""\n\n{imports(text)}\n\n\n'
                  f"def kernel(args, tid, nthreads):\n{text}\n")
        return Emitted(source, tuple(args), work)


def steady_names(loops: LoopProgram, inner: range) -> set[str]:
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


def emit_named(text: Text, loops: LoopProgram, names: set[str], counters) -> None:
    """Lines for the statements of these names."""
    for statement in loops.statements:
        if statement.name in names:
            emit_statement(text, statement, counters)


def open_loop(text: Text, counter: str, size: str) -> None:
    """A loop from 0 to a size."""
    text.add(f"for {counter} in range({size}):")
    text.depth += 1


def open_parallel(text: Text, loops: LoopProgram, axes: list[int]) -> None:
    """One loop over several axes at once, shared among the threads."""
    if not axes:
        text.add("if tid == 0:")
        text.depth += 1
        return
    sizes = [text.dim(loops.extents[axis]) for axis in axes]
    text.add(f"total = {' * '.join(sizes)}")
    text.add("for t in range(tid * total // nthreads, (tid + 1) * total // nthreads):")
    text.depth += 1
    decode(text, "t", axes, sizes)


def decode(text: Text, flat: str, axes: list[int], sizes: list[str]) -> None:
    """The counters of several axes from one flat counter."""
    rest = flat
    for axis, size in list(zip(axes, sizes, strict=True))[:0:-1]:
        text.add(f"q{axis} = {rest} // {size}")
        text.add(f"i{axis} = {rest} - q{axis} * {size}")
        rest = f"q{axis}"
    text.add(f"i{axes[0]} = {rest}")


# --- statements ---------------------------------------------------------------------------------


def emit_statement(text: Text, s: Statement | Reduction, counters: list[str]) -> None:
    """The line of a statement; none for a reduction or what is read as a whole."""
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


def emit_keys(text: Text, loops: LoopProgram) -> None:
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


def emit_store(text: Text, store, counters: list[str]) -> None:
    """The line that writes a result."""
    value = f"u8({store.name})" if store.access.dtype == "bool" else store.name
    text.add(f"{text.element(store.access, counters)} = {value}")
