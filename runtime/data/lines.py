"""Text files as lines: UTF-8, with or without a byte order mark, any line end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.idx import LIMIT, missing
from lamina.runtime.errors import reason, show

_MARK = "\ufeff"
_WIDE = (b"\xff\xfe", b"\xfe\xff")  # how UTF-16 and UTF-32 files begin


def read_lines(path: Path, limit: int = LIMIT) -> list[str]:
    """The lines of a file without their ends.

    Raises DataError: E601 no such file, E602 unreadable, E603 not UTF-8 or with a NUL, naming the
    line, or larger than `limit` bytes.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise line_error(path, 0, f"it has {size:,} bytes; at most {limit:,} are read")
        data = path.read_bytes()
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else show(error)
        raise DataError("E602", f"cannot read {show(path)}: {why}") from None
    text = _decoded(path, data).removeprefix(_MARK)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]  # what follows the last line's end is no line


def full_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, each with its number from 1."""
    for number, line in enumerate(read_lines(path), 1):
        if line and not line.isspace():
            yield number, line


def line_error(path: Path, number: int, why: str, help: str = "") -> DataError:
    """The error for a line of a file (0: the whole file)."""
    place = f"line {number:,} of {show(path)}" if number else show(path)
    return DataError("E603", f"{place}: {why}", help or "correct the file")


def _decoded(path: Path, data: bytes) -> str:
    if data.startswith(_WIDE):
        raise line_error(path, 0, "it is not UTF-8 but UTF-16 or UTF-32",
                         f"convert it: iconv -f utf-16 -t utf-8 {show(path)}")
    nul = data.find(b"\0")
    if nul >= 0:
        raise line_error(path, data.count(b"\n", 0, nul) + 1, "it holds a NUL byte: no text file")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise line_error(path, line, f"the byte 0x{data[error.start]:02x} is not UTF-8",
                         f"convert it: iconv -f latin1 -t utf-8 {show(path)}") from None
