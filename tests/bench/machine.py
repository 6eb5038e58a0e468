"""What a measurement was made on: processor, memory, versions, and how busy the machine was."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from lamina.api import version

PACKAGES = ("numpy", "numba", "torch", "onnxruntime", "onnx", "onnxscript")
VECTORS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")


def facts() -> dict[str, Any]:
    """Processor, cores, memory, versions and load."""
    lines = _lines("/proc/cpuinfo")
    named = dict(part.partition(":")[::2] for part in lines)
    fields = {key.strip(): value.strip() for key, value in named.items()}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    memory = [line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "vectors": [name for name in VECTORS if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": int(memory[0]) / (1 << 20) if memory else None,
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), "lamina": version(),
                     **{name: _version(name) for name in PACKAGES}},
        "load": os.getloadavg()[0],
    }


def busy() -> float:
    """Processor seconds that the machine has spent so far, those that its host took included.

    Not a number where it cannot be known.
    """
    fields = (_lines("/proc/stat") or ["cpu nan"])[0].split()[1:9]
    idle = fields[3:5]
    return (sum(map(float, fields)) - sum(map(float, idle))) / os.sysconf("SC_CLK_TCK")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
