"""Kernel source to object code: the one place that runs Numba.

`python -m lamina.runtime.cpu.build FOLDER` reads a JSON list of [key, source] from its standard
input and leaves one cache entry for each in FOLDER; `lamina.runtime.cpu.load` starts it, so that
a process that runs Programs never imports Numba itself.

A source defines `kernel(args, tid, nthreads)`. It may also define FASTMATH, a set out of
{"contract", "reassoc", "nsz"}; without it a kernel gets {"contract"}. ("reassoc" lets sums run in
vectors; it also lets the compiler simplify (a + b) - a.)
"""

from __future__ import annotations

import gc
import json
import re
import sys
from pathlib import Path

import numba
from numba import types
from numba.core import codegen

from lamina.runtime.cache import Cache

ALLOWED_FLAGS = {"contract", "reassoc", "nsz"}
# What object code may ask of the process that loads it; anything else would abort it.
_ONE_NUMBER = ("exp", "log", "sin", "cos", "tanh", "erf", "log1p", "expm1", "floor", "ceil")
LIBRARY = {
    *_ONE_NUMBER,
    *(name + "f" for name in _ONE_NUMBER),
    *("pow", "powf", "fmod", "fmodf", "fma", "fmaf"),
    *("memcpy", "memset", "memmove", "sched_yield"),
}
# What the error path of Numba's C wrapper mentions; `load` offers stand-ins.
NEVER_CALLED = {
    *("numba_gil_ensure", "numba_gil_release", "PyUnicode_FromString", "PyErr_WriteUnraisable"),
    *("Py_DecRef", "PyErr_Clear", "PyErr_SetString", "PyErr_SetNone"),
}
SIGNATURE = types.void(types.int64, types.int64, types.int64)


class BuildError(RuntimeError):
    """A kernel's source that does not compile, or not to self-contained code."""


def symbol(key: str) -> str:
    """The name under which the object code of entry `key` exports its kernel."""
    return f"lamina_{key}"


def compile_kernel(key: str, source: str, path: str) -> bytes:
    """The object code of `source`; `path` is where people can read it (for tracebacks)."""
    library, native = _compile(key, source, path)
    _require_self_contained(library, key)
    _, kind, data = library.serialize_using_object_code()[:3]
    if kind != "object":
        raise BuildError(f"kernel {key}: numba gave {kind!r} in place of object code")
    return native.encode() + b"\0" + data[0]


def assembly(source: str) -> str:
    """The assembly text of a kernel, for people and tests."""
    return _compile("shown", source, "<kernel>")[0].get_asm_str()


def _compile(key: str, source: str, path: str):
    namespace = {"__name__": symbol(key), "__file__": path}
    try:
        exec(compile(source, path, "exec"), namespace)
        function = namespace["kernel"]
        function.__qualname__ = symbol(key)
        flags = set(namespace.get("FASTMATH", {"contract"}))
        if not flags <= ALLOWED_FLAGS:
            raise BuildError(f"kernel {key}: fast-math flags {sorted(flags - ALLOWED_FLAGS)}")
        _optimise_once()
        options = {"error_model": "numpy", "fastmath": flags}
        compiled = numba.cfunc(SIGNATURE, **options)(function)
    except BuildError:
        raise
    except Exception as error:
        raise BuildError(f"kernel {key} does not compile: {error}\n{source}") from error
    return compiled._library, compiled.native_name


def _optimise_once() -> None:
    """Keep Numba from optimising every function on its own before it does so in the whole.

    The first round exists for reference counts, which no kernel has; it takes a fifth of the time.
    """
    codegen.CPUCodeLibrary._optimize_functions = _only_lay_out


def _only_lay_out(library, module) -> None:
    module.data_layout = library._codegen._data_layout


def _require_self_contained(library, key: str) -> None:
    """Refuse code that may raise, or that asks for more than the loading process offers."""
    for function in library._final_module.functions:
        name = function.name
        if function.is_declaration:
            if not name.startswith("llvm.") and name not in LIBRARY | NEVER_CALLED:
                raise BuildError(f"kernel {key} needs {name}, which no warm process has")
            continue
        # Numba functions return a status; the wrapper's error path is dead when it is always 0.
        ours = symbol(key) in name and not name.startswith("cfunc.")
        if ours and set(re.findall(r"^ *ret i32 (.*)$", str(function), re.M)) - {"0"}:
            raise BuildError(f"kernel {key} can raise an exception, which no kernel may")


def main(folder: str) -> int:
    """Build every kernel asked for on standard input; 1 and a message when one fails."""
    gc.disable()  # a worker lives for seconds, and searching for garbage takes an eighth of them
    cache = Cache(Path(folder))
    for key, source in json.load(sys.stdin):
        try:
            cache.put(key, compile_kernel(key, source, str(cache.source_path(key))))
        except BuildError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
