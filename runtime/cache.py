"""A folder of content-named entries: kernel sources, their object code, Programs, times.

Names are hashes of everything that the code depends on (`cpu.load.kernel_key`), and each entry
carries a checksum: a damaged, truncated or unreadable entry counts as absent, so that it is
rebuilt; nothing here raises because of what a file holds. Entries are written to a temporary
file, synced and renamed, so that readers and racing writers see whole entries only.

A folder that belongs to someone else, or that others may write, is refused: `Cache.open` then
uses a private temporary folder, and `Cache.warning` says why.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"lamina-entry-1\n"
SUFFIX, PROGRAM, TABLE = ".obj", ".program", ".times"


def default_folder(environment: Mapping[str, str]) -> Path:
    """Where compiled kernels are kept: $XDG_CACHE_HOME/lamina, or ~/.cache/lamina."""
    base = environment.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG rule: relative values are invalid and ignored
        base = os.path.join(environment.get("HOME") or os.path.expanduser("~"), ".cache")
    return Path(base) / "lamina"


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cache folder holds."""

    folder: Path
    entries: int
    bytes: int


class Cache:
    """One cache folder, taken as it is; `Cache.open` checks and creates it first."""

    def __init__(self, folder: Path, warning: str = "", writable: bool = True):
        self.folder, self.warning, self.writable = Path(folder), warning, writable

    @staticmethod
    def open(folder: Path) -> Cache:
        """The cache at `folder` (created 0700), or a private temporary one with a warning."""
        folder = Path(folder)
        reason = _prepare(folder)
        if reason:
            return Cache(_private_folder(), f"kernel cache {folder} not used: {reason}")
        return Cache(folder, writable=os.access(folder, os.W_OK | os.X_OK))

    def scratch(self) -> Cache:
        """A cache that can be written: this one, or a private temporary one when read-only."""
        return self if self.writable else Cache(_private_folder())

    def source_path(self, key: str) -> Path:
        """The readable source of entry `key`."""
        return self.folder / f"{key}.py"

    def get(self, key: str, suffix: str = SUFFIX) -> bytes | None:
        """The entry's bytes, or None when it is absent or not exactly what was written."""
        try:
            data = (self.folder / (key + suffix)).read_bytes()
        except OSError:
            return None
        head = len(MAGIC) + 32
        body = data[head:]
        if data[:head] != MAGIC + _checksum(key, body):
            return None
        return body

    def holds(self, key: str, suffix: str = SUFFIX) -> bool:
        """Whether there is a file for the entry, sound or not."""
        return (self.folder / (key + suffix)).exists()

    def put(self, key: str, body: bytes, suffix: str = SUFFIX) -> None:
        """Write an entry; a folder that cannot take it (full, read-only) is left as it was."""
        self._write(self.folder / (key + suffix), MAGIC + _checksum(key, body) + body)

    def drop_oldest(self, suffix: str, kept: int) -> None:
        """Remove entries of a kind but for the `kept` that were written last."""
        written = []
        for entry in _scan(self.folder):
            if entry.name.endswith(suffix):
                with contextlib.suppress(OSError):
                    written.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.path))
        for _, path in sorted(written)[:-kept]:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def put_source(self, key: str, source: str) -> None:
        """Keep a kernel's source for people to read; nothing reads it back."""
        path = self.source_path(key)
        if not path.exists():
            self._write(path, source.encode())

    def info(self) -> CacheInfo:
        """The number of compiled kernels, and the bytes of all files."""
        files = [entry for entry in _scan(self.folder) if entry.is_file(follow_symlinks=False)]
        sizes = 0
        for entry in files:
            with contextlib.suppress(OSError):
                sizes += entry.stat(follow_symlinks=False).st_size
        return CacheInfo(self.folder, sum(e.name.endswith(SUFFIX) for e in files), sizes)

    def clear(self) -> int:
        """Remove every file that this class writes; the number removed."""
        removed = 0
        for entry in _scan(self.folder):
            if entry.name.endswith((SUFFIX, PROGRAM, TABLE, ".py", ".part")):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
                    removed += 1
        return removed

    def _write(self, path: Path, data: bytes) -> None:
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(suffix=".part", dir=self.folder)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)


def _checksum(key: str, body: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + body).digest()


def _scan(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _prepare(folder: Path) -> str:
    """Create the folder if need be; why it must not be used, or an empty text."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = os.stat(folder)
    except OSError as error:
        return f"it cannot be created or read ({error.strerror})"
    if state.st_uid != os.geteuid():
        return "it belongs to another user"
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others may write to it; make it private with: chmod 700"
    return ""


def _private_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="lamina-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
