"""Examples that are computed and lie in no file: tasks that ask one thing of a network."""

from __future__ import annotations

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.source import Arrays, Source
from lamina.runtime.data.stage import whole
from lamina.runtime.random import philox_uniform


def copy_task(lag: int = 30, symbols: int = 8, length: int = 1, examples: int = 10_000,
              seed: int = 0) -> Source:
    """Sequences whose first symbols must be said again `lag` steps after they were seen.

    `ids`, int32 [length + lag]: `length` symbols from 1 to `symbols`, blanks (0), at step `lag` the
    sign to speak (`symbols` + 1), after it blanks. `copy`, int32 [length]: the symbols from 0, one
    for each of the last steps. The same for the same seed. After Hochreiter and Schmidhuber (1997)
    and Arjovsky, Shah and Bengio (2016). Raises DataError E608.
    """
    check_copy_task(lag, symbols, length, examples, seed)
    uniform = philox_uniform(seed, 0, np.arange(examples * length)).reshape(examples, length)
    copy = (uniform * np.float32(symbols)).astype(np.int32)
    ids = np.zeros((examples, length + lag), np.int32)
    ids[:, :length] = copy + 1
    ids[:, lag] = symbols + 1
    return Arrays({"ids": ids, "copy": copy}, place="copy_task")


def check_copy_task(lag: int = 30, symbols: int = 8, length: int = 1, examples: int = 10_000,
                    seed: int = 0) -> None:
    """Raise DataError E608 for arguments that make no task."""
    whole("lag", lag, 1, 100_000)
    whole("symbols", symbols, 2, 10_000)
    whole("length", length, 1, 10_000)
    whole("examples", examples, 1, 1_000_000)
    whole("seed", seed, 0, 2**31 - 1)
    if lag < length:
        raise DataError("E608", f"`lag` is {lag}, less than the {length} symbols to copy",
                        "let it be at least `length`: a symbol is said when all have been seen")
