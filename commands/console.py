"""JSON, errors and facts on the standard streams; imported by every verb, so it stays light."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from typing import Any

from lamina.compiler.errors import CompileError, render
from lamina.runtime.errors import Failure


def print_json(value: Any) -> None:
    """One JSON document on standard output; numbers that JSON lacks become null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_errors(error: CompileError, color: bool) -> None:
    """All diagnostics on standard error, and how many there are."""
    color = color and sys.stderr.isatty()
    for diagnostic in error.diagnostics:
        sys.stderr.write(render(diagnostic, color) + "\n\n")
    count = len(error.diagnostics)
    codes = ", ".join(sorted({diagnostic.code for diagnostic in error.diagnostics}))
    sys.stderr.write(f"{count} error{'' if count == 1 else 's'} "
                     f"(lamina explain {codes.split(', ')[0]} tells more)\n")


def print_failure(error: Failure, file: str = "") -> None:
    """A failure at run time on standard error: code, message, place and way out."""
    place = f" (line {error.line} of {file})" if error.line and file else ""
    sys.stderr.write(f"error[{error.code}]: {error.message}{place}\n")
    if error.help:
        sys.stderr.write(f"help: {error.help}\n")


def print_error(message: str, help: str = "") -> None:
    """An error without a code on standard error."""
    sys.stderr.write(f"error: {message}\n" + (f"help: {help}\n" if help else ""))


class BuildLine:
    """How far the compilation of kernels is: one line on standard error, rewritten in place.

    It stays silent while something else draws on the terminal (then `sys.stderr` is no more what
    it was), and leaves nothing behind.
    """

    def __init__(self):
        self.stream, self.text = sys.stderr, ""

    def __call__(self, done: int, total: int) -> None:
        """Show how many kernels of how many are built; nothing when all are."""
        self.show("" if done >= total else f"compiling kernels {done}/{total}")

    def show(self, text: str) -> None:
        """Write `text` in place of what the line says, which nothing clears."""
        if sys.stderr is self.stream and text != self.text:
            with contextlib.suppress(OSError):
                self.stream.write(f"\r{text.ljust(len(self.text))}" + "\r" * (not text))
                self.stream.flush()
            self.text = text


def build_line(as_json: bool = False) -> BuildLine | None:
    """The line, where standard error is a terminal and no JSON is asked for."""
    return BuildLine() if sys.stderr.isatty() and not as_json else None


def drop_output() -> None:
    """Where standard output takes no more, what is still in its buffer goes nowhere."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_pairs(facts: dict[str, Any]) -> None:
    """Facts one a line."""
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        sys.stdout.write(f"{name:<{width}}  {shown}\n")
