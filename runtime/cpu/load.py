"""Kernel sources to callable addresses, compiling only what the cache lacks.

`load(sources, cache)` needs llvmlite alone. What is missing is built by worker processes
(`lamina.runtime.cpu.build`), one for every few kernels and at most one per core.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from lamina.runtime.cache import Cache
from lamina.runtime.cpu import host
from lamina.runtime.errors import Failure, show

Building = Callable[[int, int], None]  # called with how many kernels of how many are built

LOOK_EVERY = 0.1  # seconds between two looks at what workers have built
KERNELS_PER_WORKER = 4  # a worker takes 0.7 s to start, a kernel 0.1 to 0.3 s to compile


class KernelError(RuntimeError):
    """A kernel that cannot be built; the message holds the compiler's words."""


@functools.cache
def _toolchain() -> str:
    """Everything apart from its source that a kernel's object code depends on."""
    files = ("simd.py", "tiles.py", "winograd.py", "emit.py", "host.py", "build.py")
    texts = [(Path(__file__).parent / name).read_text() for name in files]
    versions = [f"{name} {_version(name)}" for name in ("numba", "lamina")]
    python = f"python {sys.version_info[0]}.{sys.version_info[1]}"
    return "\0".join([*texts, *versions, llvmlite.__version__, python, host.features()])


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def kernel_key(source: str) -> str:
    """The cache entry's name for a kernel source on this machine with these libraries."""
    return hashlib.sha256(f"{_toolchain()}\0{source}".encode()).hexdigest()[:32]


def load(sources: Sequence[str], cache: Cache, building: Building | None = None) -> list[int]:
    """The addresses of the kernels, in order; `building` hears how far those not kept are.

    Raises KernelError when one does not build, Failure E704 when the cache takes no more.
    """
    keys = [kernel_key(source) for source in sources]
    missing = {key: source for key, source in zip(keys, sources, strict=True) if key not in _LINKED}
    found = {key: cache.get(key) for key in missing}
    cold = {key: missing[key] for key, body in found.items() if body is None}
    if cold:
        found.update(_build(cold, cache, building))
    for key, body in found.items():
        _LINKED[key] = _link(body)
    return [_LINKED[key][0] for key in keys]


# Linked kernels live as long as the process: (address, the engine that owns the code).
_LINKED: dict[str, tuple[int, object]] = {}


def _link(body: bytes) -> tuple[int, object]:
    name, _, code = body.partition(b"\0")
    _initialize()
    # One engine per kernel: object files of separate processes may share internal names. It
    # owns, and in the end frees, its target machine.
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine.get_function_address(name.decode()), engine


@functools.cache
def _initialize() -> None:
    """Prepare LLVM, once per process."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    # Numba's C wrapper mentions these on an error path that `build` has proved dead.
    for name in ("numba_gil_ensure", "numba_gil_release"):
        stand_in = ctypes.cast(ctypes.pythonapi.PyGILState_Check, ctypes.c_void_p).value
        llvm.add_symbol(name, stand_in)


def _build(cold: dict[str, str], cache: Cache, building: Building | None) -> dict[str, bytes]:
    """Compile in worker processes; the new entries' bytes by key."""
    target = cache.scratch()
    for key, source in cold.items():
        target.put_source(key, source)
    workers = [_start(share, target.folder) for share in _shares(cold)]
    if building is None:
        words = _run(workers)
    else:
        try:
            words = _run(workers, lambda: building(sum(map(target.holds, cold)), len(cold)))
        finally:
            building(len(cold), len(cold))
    found = {key: target.get(key) for key in cold}
    if any(body is None for body in found.values()):
        if any(words):
            raise KernelError("\n".join(w for w in words if w))
        raise Failure("E704", f"cannot keep compiled kernels in {show(target.folder)}",
                      "make room there, or set LAMINA_CACHE to another folder")
    return found


def _run(workers: list[tuple[subprocess.Popen, str]], look: Callable[[], None] | None = None
         ) -> list[str]:
    """What the workers say on standard error, after all of them have worked side by side.

    `look` is called again and again until they end.
    """
    try:
        for process, request in workers:
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # it ended early
                pipe.write(request)
            process.stdin = None
        return [_wait(process, look) for process, _ in workers]
    except BaseException:  # an interrupt: the workers are in a group of their own
        for process, _ in workers:
            process.kill()
        raise


def _wait(process: subprocess.Popen, look: Callable[[], None] | None) -> str:
    while look is not None:
        look()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=LOOK_EVERY)[1]
    return process.communicate()[1]


def _shares(cold: dict[str, str]) -> list[list[tuple[str, str]]]:
    """The work of each process: longest sources first, each to the least loaded."""
    count = max(1, min(os.cpu_count() or 1, len(cold) // KERNELS_PER_WORKER))
    shares: list[list[tuple[str, str]]] = [[] for _ in range(count)]
    loads = [0] * count
    for key, source in sorted(cold.items(), key=lambda item: -len(item[1])):
        least = loads.index(min(loads))
        shares[least].append((key, source))
        loads[least] += len(source) + 1000
    return shares


def _start(share: list[tuple[str, str]], folder: Path):
    command = [sys.executable, "-m", "lamina.runtime.cpu.build", str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, process_group=0, env={**os.environ, "NUMBA_OPT": host.EFFORT},
    )
    return process, json.dumps(share)
