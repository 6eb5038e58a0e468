"""torch.compile as two of the systems, in either layout."""

from __future__ import annotations

import torch._inductor.compile_fx  # noqa: F401  so that memory is counted from after all imports

from lamina.tests.bench.pytorch import make
from lamina.tests.bench.systems import Ready, Task


def first(task: Task) -> Ready:
    """As it comes."""
    return make(task, compiles=True)


def last(task: Task) -> Ready:
    """Weights and inputs with channels innermost."""
    return make(task, last=True, compiles=True)
