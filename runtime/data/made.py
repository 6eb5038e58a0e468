"""Examples that are computed and lie in no file: tasks that ask one thing of a network."""

from __future__ import annotations

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.stage import whole
from lamina.runtime.random import philox_uniform

BLANK = 0


def copy_examples(lag: int, symbols: int, length: int, examples: int, seed: int
                  ) -> dict[str, np.ndarray]:
    """Sequences whose first symbols must be said again `lag` steps after they were seen.

    `ids`, int32 [examples, length + lag]: `length` symbols from 1 to `symbols`, blanks (0), and at
    step `lag` the sign to speak (`symbols` + 1), after it blanks. `copy`, int32 [examples, length]:
    the symbols from 0, which belong to the last `length` steps. The same for the same seed. After
    Hochreiter and Schmidhuber (1997) and Arjovsky, Shah and Bengio (2016). Raises DataError E608.
    """
    whole("lag", lag, 1, 100_000)
    whole("symbols", symbols, 2, 10_000)
    whole("length", length, 1, 10_000)
    whole("examples", examples, 1, 1_000_000)
    whole("seed", seed, 0, 2**31 - 1)
    if lag < length:
        raise DataError("E608", f"`lag` is {lag}, less than the {length} symbols to copy",
                        "let it be at least `length`: a symbol is said when all have been seen")
    uniform = philox_uniform(seed, 0, np.arange(examples * length)).reshape(examples, length)
    copy = (uniform * np.float32(symbols)).astype(np.int32)
    ids = np.full((examples, length + lag), BLANK, np.int32)
    ids[:, :length] = copy + 1
    ids[:, lag] = symbols + 1
    return {"ids": ids, "copy": copy}
