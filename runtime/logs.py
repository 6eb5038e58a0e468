"""`log.jsonl`: one JSON object per line, of kind "step" or "epoch".

Lines are appended whole. Opening a log for a resumed run drops a torn last line and everything
that the run will do again, so that no record is there twice.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from lamina.runtime.checkpoint import CheckpointError, write_durable
from lamina.runtime.errors import reason, show

NAME = "log.jsonl"


class Log:
    """An open log. Records have "kind", "step" and "epoch" (epochs done).

    Raises CheckpointError E704 when the file cannot be written.
    """

    def __init__(self, folder: Path, step: int = 0, epoch: int = 0):
        """Keep what a run that stands at `step`, with `epoch` epochs done, has already done."""
        self.path = folder / NAME
        kept = _kept(self.path, step, epoch)
        write_durable(self.path, kept)
        self._handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def append(self, kind: str, step: int, epoch: int, figures: Mapping[str, object]) -> None:
        """Add a record; figures that are not finite become null."""
        record = {"kind": kind, "step": step, "epoch": epoch, **figures}
        line = json.dumps(_plain(record), separators=(",", ":"), allow_nan=False) + "\n"
        try:
            data = line.encode()
            while data:
                data = data[os.write(self._handle, data) :]
        except OSError as error:
            raise self._failed(error) from error

    def sync(self) -> None:
        """Wait until the records are on the disk."""
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the file; the log is of no use after."""
        os.close(self._handle)

    def _failed(self, error: OSError) -> CheckpointError:
        return CheckpointError("E704", f"cannot write {show(self.path)}: {reason(error)}",
                               "make room; what was saved before is still there")


def read_log(folder: Path) -> list[dict]:
    """The records of a run; a torn line is left out."""
    try:
        data = (folder / NAME).read_bytes()
    except FileNotFoundError:
        return []
    return [record for record, _ in _records(data)]


def _kept(path: Path, step: int, epoch: int) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise CheckpointError("E704", f"cannot read {show(path)}: {reason(error)}") from None
    return b"".join(line for record, line in _records(data) if _done(record, step, epoch))


def _records(data: bytes) -> list[tuple[dict, bytes]]:
    found = []
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            found.append((record, line))
    return found


def _done(record: dict, step: int, epoch: int) -> bool:
    if record.get("kind") == "epoch":
        number, limit = record.get("epoch"), epoch
    else:
        number, limit = record.get("step"), step
    return isinstance(number, int) and number <= limit


def _plain(value):
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
