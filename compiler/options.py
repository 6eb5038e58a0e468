"""Options of one process: the only reader of environment variables.

LAMINA_CACHE is the folder of compiled kernels, LAMINA_THREADS the number of threads, LAMINA_SKIP
names optional passes that the compiler leaves out, for example winograd, and NO_COLOR
(https://no-color.org) turns colours off. Numba's own variables for another processor are read where
the processor is looked at, in `lamina.runtime.cpu.host`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lamina.compiler.errors import CompileError, Diagnostic, Source, Span

TARGETS = ("cpu", "numpy")
MAX_THREADS = 1024
AUTO = "auto"

Every = int | str | None  # a number of layers, or AUTO: about the root of their number


@dataclass(frozen=True, slots=True)
class Measured:
    """What the algorithms of convolutions take on a machine, for passes to follow.

    `seconds` by contraction (see `winograd.contraction_key`) and algorithm, "winograd",
    "winograd_2x2" or "direct"; `sizes` are the numbers for which they were measured of the sizes
    that a graph leaves open, and `changing` says whether its weights change from run to run, as in
    training.
    """

    seconds: Mapping[str, Mapping[str, float]]
    sizes: Mapping[str, int]
    changing: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """How to compile and run. `threads` and `cache_folder` None: as the machine suggests.

    `skip` names passes that are left out (see `lamina show --help` for their names).
    `checkpoint_every`: of how many layers a training step keeps the last one's result for the
    gradient, and computes the others' again; None: it keeps all. `building` is called with how many
    kernels of how many are built, again and again while they are. `tune` asks the commands to
    measure algorithms, and `measured` is what they then follow.
    """

    target: str = "cpu"
    threads: int | None = None
    cache_folder: Path | None = None
    skip: frozenset[str] = frozenset()
    checkpoint_every: Every = None
    building: Callable[[int, int], None] | None = field(default=None, compare=False, repr=False)
    tune: bool = False
    measured: Measured | None = None


def check_every(every: Every) -> None:
    """Raise ValueError for what is no number of layers."""
    if every in (None, AUTO) or type(every) is int and every > 0:
        return
    raise ValueError(f"checkpoint_every is a whole number from 1, or {AUTO!r}, not {every!r}")


def wants_color(environment: Mapping[str, str] | None = None) -> bool:
    """Whether messages may be coloured."""
    return not (os.environ if environment is None else environment).get("NO_COLOR")


def from_environment(environment: Mapping[str, str] | None = None) -> Options:
    """The options that environment variables ask for. Raises CompileError for a bad one."""
    values = os.environ if environment is None else environment
    folder = values.get("LAMINA_CACHE")
    text = values.get("LAMINA_THREADS")
    if text and not (text.isascii() and text.isdigit() and len(text) < 9 and
                     0 < int(text) <= MAX_THREADS):
        source = Source("<environment>", f"LAMINA_THREADS={text}")
        message = f"LAMINA_THREADS must be a whole number from 1 to {MAX_THREADS}, not {text!r}"
        raise CompileError(Diagnostic("E416", message, Span(source, 0, len(source.text))))
    skip = frozenset((values.get("LAMINA_SKIP") or "").replace(",", " ").split())
    return Options(threads=int(text) if text else None,
                   cache_folder=Path(folder) if folder else None, skip=skip)
