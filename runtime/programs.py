"""Finished Programs, kept in the cache folder beside their kernels.

A Program's name is a hash of everything that it is made of, which the compiler tells; as with
kernels, an entry that is not exactly what was written counts as absent, so that it is made again.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable

from lamina.runtime.cache import PROGRAM, Cache
from lamina.runtime.program import Program, dumps, loads

KEPT = 256  # Programs at most: those made last


def program_key(parts: Iterable[str]) -> str:
    """The entry's name for a Program made of `parts`."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()[:32]


def remembered(cache: Cache, key: str, make: Callable[[], Program]) -> Program:
    """The Program kept as `key`, or the one that `make` gives, which is kept."""
    program = _read(cache.get(key, PROGRAM))
    if program is None:
        program = make()
        cache.put(key, zlib.compress(dumps(program).encode(), 1), PROGRAM)
        cache.drop_oldest(PROGRAM, KEPT)
    return program


def _read(body: bytes | None) -> Program | None:
    try:
        return loads(zlib.decompress(body).decode()) if body is not None else None
    except (zlib.error, ValueError, KeyError, TypeError):  # of another format
        return None
