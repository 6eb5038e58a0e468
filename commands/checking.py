"""What the verbs check and explain tell."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources
from typing import Any

from lamina.compiler.errors import CompileError, Diagnostic, Sink, Span
from lamina.compiler.frontend.build import build
from lamina.compiler.frontend.library import Module, find_file, load_path
from lamina.compiler.frontend.recipe import Call, frozen_keys, read_recipe
from lamina.compiler.transform.training import trainable
from lamina.runtime.data.dataset import check_stages
from lamina.runtime.data.stage import Stage
from lamina.runtime.errors import Failure
from lamina.runtime.schedule import check_schedule


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
    """Everything about a recipe that can be told without its files."""
    read = read_recipe(module, recipe)
    graph = build(module, read.model, read.call, training=True, objective=read.objective).graph
    sink = Sink()
    frozen_keys([rule for phase in read.phases for rule in phase.rules], trainable(graph), sink)
    sink.raise_if_any()
    for calls in read.data.values():
        stages = [_stage(call) for call in calls]
        for count, call in enumerate(calls, 1):
            _located(call.span, lambda given=stages[:count]: check_stages(given))
    for phase in read.phases:
        if phase.schedule is not None:
            schedule = _stage(phase.schedule)
            _located(phase.schedule.span, lambda given=schedule: check_schedule(given))


def _located(span: Span, check: Callable[[], object]) -> None:
    """Turn a Failure into a diagnostic at its place."""
    try:
        check()
    except Failure as error:
        raise CompileError(Diagnostic(error.code, error.message, span,
                                      help=error.help or None)) from None


def _stage(call: Call) -> Stage:
    return Stage(call.name, call.args, call.kwargs, call.line)


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
