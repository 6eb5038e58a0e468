"""Times of algorithms, measured once on a machine and kept in the cache folder.

A table is one entry of JSON, named by what kernels depend on and by the number of threads: another
processor, version or number of threads has another. What is odd in it counts as not measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from lamina.runtime.cache import TABLE, Cache
from lamina.runtime.cpu.load import kernel_key

Times = dict[str, dict[str, float]]  # seconds of each algorithm, by contraction
FORMAT = 1
ALGORITHMS = {"winograd", "winograd_2x2", "direct"}
LEAST = {"winograd", "direct"}  # without which a convolution counts as not measured


def table_key(threads: int, compiler: str) -> str:
    """The entry's name for so many threads and this text of the compiler."""
    return kernel_key(f"times\0{threads}\0{compiler}")


def read_times(cache: Cache, key: str) -> Times:
    """What was measured; nothing where there is no table, or an odd one."""
    body = cache.get(key, TABLE)
    try:
        found = json.loads(body) if body is not None else {}
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return {}
    rows = found.get("seconds")
    return {name: times for name, times in rows.items() if _sound(times)} \
        if isinstance(rows, dict) else {}


def add_times(cache: Cache, key: str, more: Mapping[str, Mapping[str, float]]) -> Times:
    """Add to a table; gives all of it."""
    times = {**read_times(cache, key), **{name: dict(row) for name, row in more.items()}}
    text = json.dumps({"format": FORMAT, "seconds": times}, sort_keys=True)
    cache.put(key, text.encode(), TABLE)
    return times


def _sound(times: Any) -> bool:
    return isinstance(times, dict) and LEAST <= set(times) <= ALGORITHMS and all(
        isinstance(value, float) and math.isfinite(value) and value > 0
        for value in times.values())
