"""From what a user names on the command line to a model, a recipe or a graph."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from lamina.api import Net, Training, load
from lamina.commands.bench import plain_training_step
from lamina.commands.checking import require_choice
from lamina.compiler.errors import CompileError, Diagnostic, Note, Source, Span
from lamina.compiler.frontend.build import find_model
from lamina.compiler.frontend.library import Module
from lamina.compiler.frontend.recipe import check_override, find_recipe, override
from lamina.compiler.frontend.shapes import divisors
from lamina.compiler.frontend.values import Definition
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.types import Dim, Expression, substitute, symbols_of
from lamina.compiler.options import Every
from lamina.compiler.syntax import ast

NEAR = 33  # how far from what was asked for another size is looked for
Chosen = Callable[[Mapping[str, str]], Net]  # a model with more settings


def select_net(file: str, name: str, settings: Mapping[str, str], sizes: Mapping[str, str],
               option: str = "-o") -> Net:
    """A model of a file by its name, or by a recipe's; with settings and input sizes as text.

    `option` is how the command takes settings, for messages.
    """
    module = load(file).module
    call = None
    if name and name not in module.models and name in module.recipes:
        recipe = find_recipe(module, name)
        assert isinstance(recipe.model.func, ast.Name)
        call, definition = recipe.model, find_model(module, recipe.model.func.id)
    else:
        definition = find_model(module, name or None)

    def chosen(more: Mapping[str, str]) -> Net:
        return Net(module, definition,
                   _with_settings(module, definition, call, {**settings, **more}))

    return _sized(chosen, sizes, option)


def _sized(chosen: Chosen, sizes: Mapping[str, str], option: str) -> Net:
    """The net with these sizes of its inputs. Raises CompileError E416 with a way out."""
    net = chosen({})
    if not sizes:
        return net
    try:
        solved = _solve(net, sizes)
    except _Misfit as misfit:
        raise _error(misfit.written, misfit.message, misfit.notes,
                     misfit.help or _by_settings(chosen, net, sizes, option)) from None
    return Net(net.module, net.definition, net.call, solved)


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


def select_trained(file: str, name: str, settings: Mapping[str, str]
                   ) -> tuple[Net, Training | None]:
    """A recipe's model as the recipe makes it, and the recipe; a model without one by itself.

    Raises CompileError.
    """
    loaded = load(file)
    if name:
        require_choice(loaded.module, name)
    if _has_recipe(loaded.module, name):
        training = loaded.recipe(name or None, **settings)
        return training.net, training
    return select_net(file, name, settings, {}), None


def select_step(file: str, name: str, settings: Mapping[str, str], sizes: Mapping[str, str]
                ) -> Graph:
    """The training step of a recipe, or of a model without one (cross-entropy and SGD)."""
    return select_training(file, name, settings, sizes)[1]


def select_training(file: str, name: str, settings: Mapping[str, str], sizes: Mapping[str, str],
                    checkpoint_every: Every = None) -> tuple[Net, Graph]:
    """The same with the model that it trains; it keeps every N-th layer's result if so asked."""
    loaded = load(file)
    module = loaded.module
    if _has_recipe(module, name):
        training = loaded.recipe(name or None, **settings)
        if sizes:
            training.net = _sized(
                lambda more: loaded.recipe(name or None, **{**settings, **more}).net, sizes, "-o")
        return training.net, training.step(0, checkpoint_every)
    net = select_net(file, name, settings, sizes)
    return net, plain_training_step(net, checkpoint_every)


def _has_recipe(module: Module, name: str) -> bool:
    if not name:
        return bool(module.recipes)
    return name in module.recipes or any(
        isinstance(r.model.func, ast.Name) and r.model.func.id == name
        for r in module.recipes.values())


class _Misfit(Exception):
    """Sizes that an input does not take."""

    def __init__(self, written: str, message: str, notes: Sequence[Note], help: str):
        super().__init__(message)
        self.written, self.message, self.notes, self.help = written, message, notes, help


def _solve(net: Net, sizes: Mapping[str, str]) -> dict[str, int]:
    """Symbols from sizes such as image=1x3x224x224. Raises CompileError, or _Misfit."""
    solved: dict[str, int] = {}
    given = {name: _checked(net, name, text) for name, text in sizes.items()}
    for name, numbers in given.items():
        for size, number in zip(net.inputs[name].shape, numbers, strict=True):
            known = dict(solved)
            if isinstance(size, Expression) and len(symbols_of(size)) == 1:
                solved.setdefault(next(iter(symbols_of(size))).name, number)
            if substitute(size, solved) != number:
                raise _Misfit(f"{name}={sizes[name]}", f"`{name}` is {net.inputs[name]}: {size} "
                              f"is not {number}", _broken(net.definition, size, number),
                              _fitting(size, number, known))
    return solved


def _checked(net: Net, name: str, text: str) -> list[int]:
    """As many numbers as the input has sizes. Raises CompileError."""
    numbers = _numbers(name, text)
    if name not in net.inputs:
        raise _error(f"{name}={text}", f"the model has no input `{name}`; its inputs: "
                     f"{', '.join(net.inputs)}")
    rank = net.inputs[name].rank
    if rank != len(numbers):
        raise _error(f"{name}={text}", f"`{name}` is {net.inputs[name]}: {rank} sizes, "
                     f"not {len(numbers)}")
    return numbers


def _fitting(size: Dim, number: int, known: Mapping[str, int]) -> str:
    """The numbers nearest to `number` that an open size takes; nothing for a fixed one."""
    if not isinstance(size, Expression):
        return ""
    if str(size) in known:
        return f"`{size}` is {known[str(size)]} already, and one size wherever it stands"
    step = math.lcm(*(found.scale for found in symbols_of(size)))
    below = number - number % step
    near = [str(one) for one in (below, below + step) if one > 0 and one != number
            and substitute(size, {str(size): one}) == one]
    return f"{' or '.join(near)} fit{'s' * (len(near) == 1)}" if near else ""


def _by_settings(chosen: Chosen, net: Net, sizes: Mapping[str, str], option: str) -> str:
    """The settings that give a model's fixed sizes other numbers, tried out."""
    wanted = _settings_for(net, sizes)
    if wanted is None:
        return "it takes " + " ".join(f"--input {name}={_taken(net, name, text)}"
                                      for name, text in sizes.items())
    if not wanted:
        return ""
    names = " and ".join(f"`{name}`" for name in wanted)
    head = f"{names} sets it" if len(wanted) == 1 else f"{names} set them"
    try:
        _solve(chosen(wanted), sizes)
    except _Misfit:
        return head
    except CompileError as error:
        why = error.diagnostics[0]
        near = _near(chosen, wanted) if why.code == "E413" and len(wanted) == 1 else []
        words = " or ".join(f"{option} {next(iter(wanted))}={number}" for number in near)
        instead = f"; {words} fits, without --input" if near else ""
        return f"{head}, but {_written(wanted)} does not fit ({why.message}){instead}"
    return f"{head}: add {' '.join(f'{option} {name}={text}' for name, text in wanted.items())}"


def _settings_for(net: Net, sizes: Mapping[str, str]) -> dict[str, str] | None:
    """The settings that stand for all sizes that differ; None where another thing does."""
    wanted: dict[str, str] = {}
    for name, text in sizes.items():
        annotation = next(s.annotation for s in net.definition.node.body
                          if isinstance(s, ast.Input) and s.name.id == name)
        assert isinstance(annotation, ast.TensorType)
        for dim, size, number in zip(annotation.dims, net.inputs[name].shape, text.split("x"),
                                     strict=True):
            if not isinstance(size, int) or size == int(number):
                continue
            setting = dim.value.id if isinstance(dim.value, ast.Name) else ""
            if setting not in {one.name.id for one in net.definition.node.params} or \
                    wanted.setdefault(setting, number) != number:
                return None
    return wanted


def _taken(net: Net, name: str, text: str) -> str:
    """The sizes as given, with the numbers of those that are fixed."""
    return "x".join(str(size) if isinstance(size, int) else number for size, number in
                    zip(net.inputs[name].shape, text.split("x"), strict=True))


def _near(chosen: Chosen, wanted: Mapping[str, str]) -> list[int]:
    """The nearest numbers below and above that a setting takes, if they are near."""
    (name, text), = wanted.items()
    number = int(text)
    ways = range(number - 1, number - NEAR, -1), range(number + 1, number + NEAR)
    found = (next((one for one in way if one > 0 and _builds(chosen, {name: str(one)})), 0)
             for way in ways)
    return [one for one in found if one]


def _builds(chosen: Chosen, settings: Mapping[str, str]) -> bool:
    try:
        return bool(chosen(settings).inputs)
    except CompileError:
        return False


def _written(settings: Mapping[str, str]) -> str:
    return " ".join(f"{name}={text}" for name, text in settings.items())


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


def _error(written: str, message: str, notes: Sequence[Note] = (), help: str = ""
           ) -> CompileError:
    source = Source("<--input>", written)
    return CompileError(Diagnostic("E416", message, Span(source, 0, len(written)),
                                   notes=tuple(notes), help=help or None))
