"""The whole front end over the blocks of a Markdown page."""

from __future__ import annotations

import contextlib
import re
import tempfile
from pathlib import Path

from lamina.compiler.errors import CompileError, Diagnostic
from lamina.compiler.frontend.build import Build, Objective, build
from lamina.compiler.frontend.library import Module, load_text
from lamina.compiler.syntax import ast

MAIN = "model.lam"
FILE = re.compile(r"^# file: (\S+)\n", re.MULTILINE)


def files(text: str) -> dict[str, str]:
    """The files of a block: `# file: name` starts one, the last is the one to compile."""
    head, *rest = FILE.split(text)
    named = dict(zip(rest[::2], rest[1::2], strict=True))
    return named or {MAIN: head}


def compile_text(text: str) -> list[Build]:
    """Every model and recipe of a block, built. Raises CompileError with each mistake once."""
    sources = files(text)
    name = list(sources)[-1]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for other, content in sources.items():
            Path(other).write_text(content, encoding="utf-8")
        return compile_module(load_text(sources[name], name, Path()))


def compile_module(module: Module) -> list[Build]:
    """Every model and recipe of a module, built. A mistake that several meet is given once."""
    found: dict[tuple, Diagnostic] = {_key(one): one for one in module.sink.diagnostics}
    builds = []
    for definition, call, objective in _targets(module):
        try:
            builds.append(build(module, definition, call, objective=objective))
        except CompileError as error:
            for one in error.diagnostics:
                found.setdefault(_key(one), one)
    if found:
        raise CompileError(*sorted(found.values(), key=_place))
    return builds


def _targets(module: Module):
    """What a file asks to be built: its models without missing settings, then its recipes."""
    used = {recipe.model.func.id for recipe in module.recipes.values()}
    for name, definition in module.models.items():
        if name not in used:
            yield definition, None, None
    for recipe in module.recipes.values():
        definition = module.models[recipe.model.func.id]
        yield definition, recipe.model, objective_of(recipe)


def objective_of(recipe: ast.Recipe) -> Objective:
    """The loss, metrics and targets that a recipe states."""
    body = recipe.body
    loss = next((s.value for s in body if isinstance(s, ast.Setting) and s.name.id == "loss"), None)
    return Objective(loss, {s.name.id: s.value for s in body if isinstance(s, ast.Metric)},
                     {s.name.id: s for s in body if isinstance(s, ast.Target)})


def diagnostics(text: str) -> tuple[Diagnostic, ...]:
    """What is wrong with a block: nothing, when it builds."""
    try:
        compile_text(text)
    except CompileError as error:
        return error.diagnostics
    return ()


def _key(one: Diagnostic) -> tuple:
    return one.code, one.span.source.name, one.span.start, one.span.end


def _place(one: Diagnostic) -> tuple:
    return one.span.source.name, one.span.start, one.span.end
