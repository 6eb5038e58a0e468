"""The whole front end over the blocks of a Markdown page."""

from __future__ import annotations

import contextlib
import re
import tempfile
from functools import partial
from pathlib import Path

from lamina.compiler.errors import CompileError, Diagnostic, Sink
from lamina.compiler.frontend.build import Build, build
from lamina.compiler.frontend.library import Module, load_text
from lamina.compiler.frontend.recipe import frozen_keys, read_recipe
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
    found: list[Diagnostic] = list(module.sink.diagnostics)
    builds = []
    for job in _jobs(module):
        try:
            builds.append(job())
        except CompileError as error:
            known = {_key(one) for one in found}
            found += [one for one in error.diagnostics if _key(one) not in known]
    if found:
        raise CompileError(*sorted(found, key=_place))
    return builds


def _jobs(module: Module):
    """What a file asks to be built: models that have no recipe of their own, then its recipes."""
    used = {recipe.model.func.id for recipe in module.recipes.values()}
    for name, definition in module.models.items():
        if name not in used:
            yield partial(build, module, definition)
    for recipe in module.recipes.values():
        yield partial(_build_recipe, module, recipe)


def _build_recipe(module: Module, node: ast.Recipe) -> Build:
    recipe = read_recipe(module, node)
    built = build(module, recipe.model, recipe.call, training=True, objective=recipe.objective)
    sink = Sink()
    for phase in recipe.phases:
        frozen_keys(phase.rules, built.graph.params, sink)
    sink.raise_if_any()
    return built


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
