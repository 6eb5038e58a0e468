"""What the verbs check and explain tell."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

from lamina.compiler.errors import CompileError, Diagnostic, Sink
from lamina.compiler.frontend.build import build
from lamina.compiler.frontend.library import Module, find_file, load_path
from lamina.compiler.frontend.recipe import read_recipe


def check_file(name: str) -> list[Diagnostic]:
    """Every diagnostic of a file: of its models with their defaults, and of its recipes."""
    sink = Sink()
    try:
        module = load_path(find_file(name))
    except CompileError as error:
        return list(error.diagnostics)
    for diagnostic in module.sink.diagnostics:
        sink.add(diagnostic)
    seen: set[tuple] = set()
    for definition in module.models.values():
        if all(p.default is not None or any(p.name.id == w.name.id for w in definition.settings)
               for p in definition.node.params):
            _collect(sink, seen, lambda d=definition: build(module, d))
    for recipe in module.recipes.values():
        _collect(sink, seen, lambda r=recipe: _check_recipe(module, r))
    return list(sink.diagnostics)


def _check_recipe(module: Module, recipe: Any) -> None:
    read = read_recipe(module, recipe)
    build(module, read.model, read.call, training=True, objective=read.objective)


def _collect(sink: Sink, seen: set[tuple], action: Any) -> None:
    """One place gives one message, however many models it breaks."""
    try:
        action()
    except CompileError as error:
        for d in error.diagnostics:
            key = (d.code, d.span.source.name, d.span.start, d.span.end)
            if key not in seen:
                seen.add(key)
                sink.add(d)


def diagnostic_json(diagnostic: Diagnostic) -> dict[str, Any]:
    """A diagnostic as plain data."""
    span = diagnostic.span
    return {"code": diagnostic.code, "message": diagnostic.message, "file": span.source.name,
            "line": span.line, "column": span.column, "path": diagnostic.path,
            "notes": [note.text for note in diagnostic.notes], "help": diagnostic.help}


def explanation(code: str) -> str | None:
    """The section of an error code in grammar/errors.md, or None."""
    text = (resources.files("lamina.grammar") / "errors.md").read_text("utf-8")
    found = re.search(rf"^## {re.escape(code)} .*?(?=^## |\Z)", text, re.M | re.S)
    return found[0].rstrip() if found else None
