"""From what a user names on the command line to a model, a recipe or a graph."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lamina.api import Net, load
from lamina.commands.bench import plain_training_step
from lamina.compiler.errors import CompileError, Diagnostic, Note, Source, Span
from lamina.compiler.frontend.build import find_model
from lamina.compiler.frontend.library import Module
from lamina.compiler.frontend.recipe import check_override, find_recipe, override
from lamina.compiler.frontend.shapes import divisors
from lamina.compiler.frontend.values import Definition
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.types import Dim, Expression, substitute, symbols_of
from lamina.compiler.syntax import ast


def select_net(file: str, name: str, settings: Mapping[str, str], sizes: Mapping[str, str]) -> Net:
    """A model of a file by its name, or by a recipe's; with settings and input sizes as text."""
    module = load(file).module
    call = None
    if name and name not in module.models and name in module.recipes:
        recipe = find_recipe(module, name)
        assert isinstance(recipe.model.func, ast.Name)
        call, definition = recipe.model, find_model(module, recipe.model.func.id)
    else:
        definition = find_model(module, name or None)
    net = Net(module, definition, _with_settings(module, definition, call, settings))
    if sizes:
        net.sizes.update(_solve(net, sizes))
        net = Net(module, definition, net.call, net.sizes)
    return net


def _with_settings(module: Module, definition: Definition, call: ast.Call | None,
                   settings: Mapping[str, str]) -> ast.Call | None:
    if not settings:
        return call
    words = []
    for key, text in settings.items():
        given = override(key, text)
        check_override(module, definition, given)
        words.append(ast.Keyword(given.name, given.value, given.span))
    kept = tuple(word for word in call.kwargs if word.name.id not in settings) if call else ()
    span = words[0].span
    args = call.args if call else ()
    return ast.Call(ast.Name(definition.name, span), args, (*kept, *words), span)


def select_step(file: str, name: str, settings: Mapping[str, str], sizes: Mapping[str, str]
                ) -> Graph:
    """The training step of a recipe, or of a model without one (cross-entropy and SGD)."""
    loaded = load(file)
    module = loaded.module
    if _has_recipe(module, name):
        training = loaded.recipe(name or None, **settings)
        if sizes:
            training.net.sizes.update(_solve(training.net, sizes))
        return training.step(0)
    return plain_training_step(select_net(file, name, settings, sizes))


def _has_recipe(module: Module, name: str) -> bool:
    if not name:
        return bool(module.recipes)
    return name in module.recipes or any(
        isinstance(r.model.func, ast.Name) and r.model.func.id == name
        for r in module.recipes.values())


def _solve(net: Net, sizes: Mapping[str, str]) -> dict[str, int]:
    """Symbols from sizes such as image=1x3x224x224. Raises CompileError."""
    solved: dict[str, int] = {}
    for name, text in sizes.items():
        numbers = _numbers(name, text)
        if name not in net.inputs:
            raise _error(f"{name}={text}", f"the model has no input `{name}`; its inputs: "
                         f"{', '.join(net.inputs)}")
        shape = net.inputs[name].shape
        if len(shape) != len(numbers):
            raise _error(f"{name}={text}", f"`{name}` is {net.inputs[name]}: {len(shape)} sizes, "
                         f"not {len(numbers)}")
        for size, number in zip(shape, numbers, strict=True):
            if isinstance(size, Expression) and len(symbols_of(size)) == 1:
                solved.setdefault(next(iter(symbols_of(size))).name, number)
            if substitute(size, solved) != number:
                raise _error(f"{name}={text}", f"`{name}` is {net.inputs[name]}: {size} is not "
                             f"{number}", _broken(net.definition, size, number))
    return solved


def _numbers(name: str, text: str) -> list[int]:
    """Sizes such as 1x3x224x224. Raises CompileError for anything else, also for 0."""
    if not re.fullmatch(r"-?\d{1,15}(x-?\d{1,15})*", text):
        raise _error(f"{name}={text}", f"sizes are written 1x3x224x224, not {text[:40]}")
    numbers = [int(part) for part in text.split("x")]
    for number in numbers:
        if number < 1:
            raise _error(f"{name}={text}", f"a size of `{name}` is {number}; sizes are 1 or more")
    return numbers


def _broken(definition: Definition, size: Dim, number: int) -> list[Note]:
    """The assertions that do not hold when a symbol has this number."""
    notes = []
    for statement in definition.node.body:
        if not isinstance(statement, ast.Assert):
            continue
        if number % divisors((statement,)).get(str(size), 1):
            why = f': "{statement.message.value}"' if statement.message else ""
            notes.append(Note(f"`{statement.condition.span.text}` does not hold{why}",
                              statement.condition.span))
    return notes


def _error(written: str, message: str, notes: Sequence[Note] = ()) -> CompileError:
    source = Source("<--input>", written)
    return CompileError(Diagnostic("E416", message, Span(source, 0, len(written)),
                                   notes=tuple(notes)))
