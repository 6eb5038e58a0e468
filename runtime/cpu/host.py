"""What the machine is: the names that key compiled code and the width of its vectors."""

from __future__ import annotations

import functools

import llvmlite.binding as llvm


@functools.cache
def features() -> str:
    """The processor's name and features as LLVM writes them; equal text may share code."""
    flags = llvm.get_host_cpu_features().flatten()
    return f"{llvm.get_process_triple()} {llvm.get_host_cpu_name()} {flags}"


@functools.cache
def vector_width() -> int:
    """Floats in a vector register: 16 with AVX-512, 8 with AVX2, else 4 (SSE, NEON)."""
    flags = llvm.get_host_cpu_features()
    if flags.get("avx512f") and flags.get("avx512vl"):
        return 16
    return 8 if flags.get("avx2") and flags.get("fma") else 4
