"""A Program as plain data: what the compiler hands to the runtime, and how it is saved and loaded.

A Program is a table of steps over buffers. Sizes may depend on symbols (the batch, the image
size): they are `Size` expressions, evaluated when the Program is planned for concrete bindings,
so that a new batch size compiles nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

FORMAT = 4
THREADS = "$threads"  # symbol bound by the executor to the number of threads
FORWARD, BACKWARD, UPDATING = "forward", "backward", "update"  # parts of a training step
AGAIN = "again"  # the part of the forward pass that is computed again within the backward pass

# A Size is an int, a symbol's name, or a tuple (operator, operand, ...) with operators
# "+", "*" (any number of operands), "//", "%" (two), "max", "min" (two).
Size = int | str | tuple

ITEM_BYTES = {"f32": 4, "f64": 8, "i32": 4, "i64": 8, "bool": 1}


@dataclass(frozen=True, slots=True)
class Buffer:
    """A dense array in memory. `order` lists logical axes from outermost to innermost.

    kind: "input" (given at each run), "param" (kept between runs, may be updated in place),
    "const" (fixed when compiled, or written by the steps that run once), "temp" (lives in the arena
    from step `first` to `last`), "output" (handed back after a run). `key` is the input's,
    parameter's or output's name.
    `alias` names the buffer whose memory this one takes over, or -1. `data` holds a "const"'s
    bytes in physical order, as base64 text (a "param" may carry initial values likewise).
    """

    kind: str
    key: str
    dtype: str
    shape: tuple[Size, ...]
    order: tuple[int, ...] = ()
    first: int = 0
    last: int = 0
    alias: int = -1
    label: str = ""
    data: str = ""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel's source: a Python text that defines `kernel(args, tid, nthreads)`."""

    name: str
    source: str

    @property
    def title(self) -> str:
        """What it is: the docstring that the text begins with, or nothing."""
        opening, _, rest = self.source.partition('"""')
        return rest.partition('"""')[0] if not opening.strip() else ""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a kernel. `args` become the int64 block that the kernel reads, in order.

    Each argument is ("buffer", index) or ("kernel", index) for an address, ("place", (index,
    Size)) for one that lies Size bytes behind a buffer's start, or ("size", Size) for an integer.
    `work` estimates elementary operations; a step with little work runs on one thread. `macs`
    are the multiply-accumulates of one call where the step is a product, a convolution or its
    weight gradient: as many as its sums have terms, zeros of a border too, by any algorithm.
    `label` says for people which nodes it computes, as "layer.path: operators helper". `part` is
    FORWARD, or AGAIN, BACKWARD or UPDATING where only new parameters need what it computes. `why`
    says why a step is there that only moves elements in memory.
    """

    kernel: int
    args: tuple[tuple[str, int | str | tuple], ...]
    work: Size = 0
    label: str = ""
    line: int = 0
    macs: Size = 0
    part: str = FORWARD
    why: str = ""

    @property
    def layer(self) -> str:
        """The path of the layer that it computes, or an empty text."""
        return layer_of(self.label)

    @property
    def helper(self) -> str:
        """What it does for another step: "pack", "copy", "combine" ...; empty where it computes."""
        return self.label.removeprefix(f"{self.layer}: ").partition(" ")[2].strip()


@dataclass(frozen=True, slots=True)
class Loop:
    """Steps `first` to `last` that run `count` times, one round after the other.

    In round i the symbol `symbol` stands for i, or for count - 1 - i if `backwards`; the steps'
    arguments depend on it linearly. Loops lie within each other or apart.
    """

    first: int
    last: int
    symbol: str
    count: Size
    backwards: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """Everything that a runtime needs to run one compiled function.

    The first `once` steps depend on parameters alone, and what they write is kept: they run again
    only when parameters have been set.
    """

    target: str
    buffers: tuple[Buffer, ...]
    kernels: tuple[Kernel, ...]
    steps: tuple[Step, ...]
    symbols: tuple[str, ...] = ()
    meta: Mapping[str, object] = field(default_factory=dict)
    loops: tuple[Loop, ...] = ()
    once: int = 0


def layer_of(label: str) -> str:
    """The path of the layer that a step's or a buffer's label begins with, or an empty text."""
    path, colon, _ = label.partition(": ")
    return path if colon else ""


def evaluate(size: Size, bindings: Mapping[str, int]) -> int:
    """The integer that `size` stands for under `bindings` (symbol name to int).

    Raises KeyError with the symbol's name when it is not bound.
    """
    if isinstance(size, int):
        return size
    if isinstance(size, str):
        return bindings[size]
    operator, *operands = size
    values = [evaluate(operand, bindings) for operand in operands]
    if operator == "+":
        return sum(values)
    if operator == "*":
        product = 1
        for value in values:
            product *= value
        return product
    left, right = values
    if operator == "//":
        return left // right
    if operator == "%":
        return left % right
    return max(left, right) if operator == "max" else min(left, right)


def dumps(program: Program) -> str:
    """The Program as JSON text."""
    return json.dumps({"format": FORMAT, **dataclasses.asdict(program)}, separators=(",", ":"))


def loads(text: str) -> Program:
    """The Program that `dumps` wrote. Raises ValueError when the text is not one."""
    data = json.loads(text)
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise ValueError("not a Lamina program of this version")
    return Program(
        target=data["target"],
        buffers=tuple(
            Buffer(**{**row, "shape": _tuples(row["shape"]), "order": tuple(row["order"])})
            for row in data["buffers"]
        ),
        kernels=tuple(Kernel(**row) for row in data["kernels"]),
        steps=tuple(Step(**{**row, **{key: _tuples(row[key]) for key in ("args", "work", "macs")}})
                    for row in data["steps"]),
        symbols=tuple(data["symbols"]),
        meta=data["meta"],
        loops=tuple(Loop(**{**row, "count": _tuples(row["count"])}) for row in data["loops"]),
        once=data["once"],
    )


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
