"""What the verbs zoo, doctor and cache tell."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from lamina.api import Net, version
from lamina.compiler.frontend.library import load_path, zoo_folder, zoo_models
from lamina.compiler.inspect.cost import count_text, summarize
from lamina.compiler.inspect.receptive_field import last_local
from lamina.compiler.options import Options
from lamina.runtime.cache import Cache, default_folder
from lamina.runtime.cpu.host import vector_width

LIBRARIES = ("numpy", "numba", "llvmlite", "networkx", "lark", "safetensors", "pillow")


def zoo_rows() -> list[dict[str, Any]]:
    """Every model of the zoo with its exact figures."""
    rows = []
    for name in zoo_models():
        module = load_path(zoo_folder() / f"{name}.lam")
        for definition in module.models.values():
            summary = summarize(Net(module, definition).graph)
            local = last_local([row.fields for row in summary.layers])
            last = local.axes[-1] if local else None
            macs = summary.macs if isinstance(summary.macs, int) else count_text(summary.macs)
            rows.append({"file": name, "model": definition.name,
                         "parameters": summary.parameters, "macs": macs,
                         "receptive_field": last.size if last else None,
                         "stride": last.stride if last else None,
                         "recipes": [r for r, recipe in module.recipes.items()
                                     if recipe.model.func.id == definition.name]})  # type: ignore[union-attr]
    return rows


def open_cache(options: Options) -> Cache:
    """The kernel cache that these options choose."""
    return Cache.open(options.cache_folder or default_folder(os.environ))


def cache_facts(options: Options) -> dict[str, Any]:
    """Where the cache is, how many files and bytes it holds, and what is wrong with it."""
    cache = open_cache(options)
    facts = cache.info()
    shown = facts if isinstance(facts, dict) else {
        name: getattr(facts, name) for name in facts.__slots__}
    warning = {"warning": cache.warning} if cache.warning else {}
    return {**{key: str(value) if isinstance(value, Path) else value
               for key, value in shown.items()}, **warning}


def diagnosis(options: Options) -> dict[str, Any]:
    """Versions, processor, threads and cache."""
    return {
        "lamina": version(), "python": platform.python_version(), "system": platform.platform(),
        **{name: _version(name) for name in LIBRARIES},
        "processor": processor_name(),
        "vector width": f"{vector_width()} floats",
        "threads": options.threads or len(os.sched_getaffinity(0)),
        **{f"cache {key}": value for key, value in cache_facts(options).items()},
    }


def processor_name() -> str:
    """The processor's model where the system tells it, else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines()
             if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
