"""Lamina: a graph compiler for neural networks. Text in, a trained network out."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lamina.api import File, Net, load, loads, version
    from lamina.compiler.errors import CompileError

__all__ = ["CompileError", "File", "Net", "load", "loads", "version"]


def __dir__() -> list[str]:
    return list(__all__)


def __getattr__(name: str):
    """The public names, imported when first used: a kernel builder needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module 'lamina' has no attribute {name!r}")
    home = "lamina.compiler.errors" if name == "CompileError" else "lamina.api"
    return getattr(import_module(home), name)
