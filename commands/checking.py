"""What the verbs check and explain tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from lamina.compiler.errors import CompileError, Diagnostic, Sink, Span
from lamina.compiler.frontend.build import build
from lamina.compiler.frontend.library import Module, did_you_mean, find_file, load_path
from lamina.compiler.frontend.names import check_names
from lamina.compiler.frontend.recipe import (
    SCHEDULES,
    Call,
    Recipe,
    examine_recipe,
    frozen_keys,
)
from lamina.compiler.syntax import ast
from lamina.compiler.transform.training import trainable
from lamina.runtime.data.dataset import check_stage
from lamina.runtime.data.stage import Stage
from lamina.runtime.errors import Failure
from lamina.runtime.schedule import check_schedule


def check_file(name: str, choice: str = "") -> list[Diagnostic]:
    """Every diagnostic of a file: of its models with their defaults, and of its recipes.

    With a `choice`, those of the model or recipe of that name alone.
    """
    try:
        module = load_path(find_file(name))
        if choice:
            require_choice(module, choice)
    except CompileError as error:
        return list(error.diagnostics)
    found = _Found()
    found.add(module.sink.diagnostics)
    for definition in _chosen(module.models, choice):
        if all(p.default is not None or any(p.name.id == w.name.id for w in definition.settings)
               for p in definition.node.params):
            found.attempt(lambda d=definition: build(module, d, built=found.built))
    for recipe in _chosen(module.recipes, choice):
        _check_recipe(module, recipe, found)
    bodies = {definition.node.name.id for definition in _chosen(module.models, choice)}
    found.add_elsewhere(one for one in check_names(module, found.built)
                        if not choice or one.path in bodies)
    return list(found.sink.diagnostics)


def _chosen(named: Mapping[str, Any], choice: str) -> list[Any]:
    return [value for name, value in named.items() if choice in ("", name)]


def require_choice(module: Module, choice: str) -> None:
    """Raise CompileError (E415) when a file has no model and no recipe of this name."""
    known = [*module.models, *module.recipes]
    if choice not in known:
        raise CompileError(Diagnostic(
            "E415", f"no model and no recipe is named `{choice}`",
            Span(module.file.source, 0, 0),
            help=did_you_mean(choice, known) or f"there are: {', '.join(known) or 'none'}"))


class _Found:
    """What a file's checks report. One place gives one message, however many models it breaks."""

    def __init__(self) -> None:
        self.sink = Sink()
        self.seen: set[tuple] = set()
        self.built: set[Any] = set()  # the nodes of definitions that were instantiated

    def add(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Keep diagnostics of places that have none of their code yet."""
        for one in diagnostics:
            key = (one.code, one.span.source.name, one.span.start, one.span.end)
            if key not in self.seen:
                self.seen.add(key)
                self.sink.add(one)

    def add_elsewhere(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Keep diagnostics of places that nothing was said about."""
        places = {key[1:] for key in self.seen}
        self.add(one for one in diagnostics
                 if (one.span.source.name, one.span.start, one.span.end) not in places)

    def attempt(self, action: Callable[[], Any]) -> Any:
        """The result of an action, or None after keeping what it reports."""
        try:
            return action()
        except CompileError as error:
            self.add(error.diagnostics)
            return None


def _check_recipe(module: Module, node: ast.Recipe, found: _Found) -> None:
    """Everything about a recipe that can be told without its files."""
    examined = found.attempt(lambda: examine_recipe(module, node))
    if examined is None:
        return  # its model is not known
    recipe, problems = examined
    found.add(problems)
    for calls in recipe.data.values():
        found.add(_pipeline_problems(calls))
    for phase in recipe.phases:
        schedule = phase.schedule
        if schedule is not None and schedule.name in SCHEDULES:
            found.attempt(lambda s=schedule: _located(s.span, lambda: check_schedule(_stage(s))))
    _check_graph(module, recipe, found)


def _pipeline_problems(calls: Sequence[Call]) -> list[Diagnostic]:
    """What is wrong with each call of a data pipeline; a wrong order is told once."""
    problems: dict[str, Diagnostic] = {}
    for index, call in enumerate(calls):
        if not call.name:
            continue
        source = _stage(calls[0]) if index else None
        try:
            _located(call.span, lambda c=call, s=source: check_stage(_stage(c), s))
        except CompileError as error:
            (one,) = error.diagnostics
            problems.setdefault("order" if one.code == "E613" else str(index), one)
    return list(problems.values())


def _check_graph(module: Module, recipe: Recipe, found: _Found) -> None:
    """The model with its loss and metrics; patterns need the model alone."""
    built = found.attempt(lambda: build(module, recipe.model, recipe.call, training=True,
                                        objective=recipe.objective, built=found.built))
    if built is None:
        built = found.attempt(lambda: build(module, recipe.model, recipe.call, training=True))
    if built is not None:
        sink = Sink()
        rules = [rule for phase in recipe.phases for rule in phase.rules]
        frozen_keys(rules, trainable(built.graph), sink)
        found.add(sink.diagnostics)


def _located(span: Span, check: Callable[[], object]) -> None:
    """Turn a Failure into a diagnostic at its place."""
    try:
        check()
    except Failure as error:
        raise CompileError(Diagnostic(error.code, error.message, span,
                                      help=error.help or None)) from None


def _stage(call: Call) -> Stage:
    return Stage(call.name, call.args, call.kwargs, call.line)


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
