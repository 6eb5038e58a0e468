"""What the machine is: the names that key compiled code and the width of its vectors.

Numba's own variables stand before what the machine says, as they do for what Numba compiles:
NUMBA_CPU_NAME names a processor as LLVM does (x86-64-v3), NUMBA_CPU_FEATURES lists its features
(+avx2,+fma) in place of those that are found. The machine must have what they name.
"""

from __future__ import annotations

import functools
import os

import llvmlite.binding as llvm

# How hard LLVM tries, as Numba's NUMBA_OPT: 3 takes a quarter longer and makes no faster kernels.
EFFORT = "2"


@functools.cache
def features() -> str:
    """The processor's name and features as LLVM writes them; equal text may share code."""
    name = os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name()
    return f"{llvm.get_process_triple()} {name} {_flags()}"


@functools.cache
def vector_width() -> int:
    """Floats in a vector register: 16 with AVX-512, 8 with AVX2, else 4 (SSE, NEON)."""
    if _has("avx512f") and _has("avx512vl"):
        return 16
    return 8 if _has("avx2") and _has("fma") else 4


@functools.cache
def has_fma() -> bool:
    """Whether a product and a sum may be one instruction, with one rounding."""
    return _has("fma") or "x86" not in llvm.get_process_triple()


def _flags() -> str:
    """Features with their signs: +avx2,-avx512f."""
    named = os.environ.get("NUMBA_CPU_FEATURES")
    if named is None and os.environ.get("NUMBA_CPU_NAME", "").lower() == "generic":
        return ""  # as Numba has it
    return llvm.get_host_cpu_features().flatten() if named is None else named


def _has(feature: str) -> bool:
    return f"+{feature}" in _flags().replace(" ", "").split(",")
