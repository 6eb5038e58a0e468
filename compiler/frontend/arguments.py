"""Hyper-parameters: the settings of a call bound to the names of a definition."""

from __future__ import annotations

from typing import Any

from lamina.compiler.errors import Note, Span
from lamina.compiler.frontend.context import Instance
from lamina.compiler.frontend.evaluate import Evaluator
from lamina.compiler.frontend.library import unknown_setting
from lamina.compiler.frontend.values import (
    BROKEN,
    Binding,
    Definition,
    describe,
    typed,
)
from lamina.compiler.syntax import ast


def bind_arguments(caller: Evaluator, instance: Instance, call: ast.Call | None,
                   span: Span) -> bool:
    """Bind the definition's hyper-parameters; False after reporting."""
    definition = instance.definition
    params = definition.node.params
    given: dict[str, tuple[Any, Evaluator]] = {}
    inner = Evaluator(caller.ctx, instance, instance.scope)
    home = Evaluator(caller.ctx, instance, definition.scope)
    for word in definition.settings:
        given[word.name.id] = (word.value, home)
    if call is not None and not _collect(caller, definition, call, given):
        return False
    missing = [p for p in params if p.default is None and p.name.id not in given]
    if missing:
        _report_missing(caller, definition, missing, span)
        return False
    fine = True
    for parameter in params:
        fine &= _bind(caller, inner, parameter, given, span)
    return fine


def _report_missing(caller: Evaluator, definition: Definition, missing: list[ast.Parameter],
                    span: Span) -> None:
    listed = ", ".join(f"`{parameter.name.id}`" for parameter in missing)
    words = ", ".join(f"{parameter.name.id}=..." for parameter in missing)
    caller.error("E410", f"`{definition.name}` needs a value for {listed}", span,
                 notes=[Note(f"`{parameter.span.text}` is declared here", parameter.span)
                        for parameter in missing],
                 help=f"write `{definition.name}({words})`")


def _collect(caller: Evaluator, definition: Definition, call: ast.Call,
             given: dict[str, tuple[Any, Evaluator]]) -> bool:
    params = definition.node.params
    names = [parameter.name.id for parameter in params]
    if len(call.args) > len(params):
        listed = ", ".join(names) or "none"
        caller.error("E408", f"`{definition.name}` takes {len(params)} settings ({listed}), "
                     f"{len(call.args)} given", call.args[len(params)].span,
                     notes=[Note("defined here", definition.node.name.span)],
                     help="values are fed with `->`, settings stand in `( )`")
        return False
    for name, value in zip(names, call.args, strict=False):
        given[name] = (value, caller)
    positional = set(names[:len(call.args)])
    for word in call.kwargs:
        if word.name.id not in names:
            one = unknown_setting(definition, word)
            caller.error(one.code, one.message, one.span, notes=one.notes, help=one.help)
            return False
        if word.name.id in positional:
            caller.error("E120", f"`{word.name.id}` is given twice", word.span)
            return False
        given[word.name.id] = (word.value, caller)
    return True


def _bind(caller: Evaluator, inner: Evaluator, parameter: ast.Parameter,
          given: dict[str, tuple[Any, Evaluator]], span: Span) -> bool:
    name = parameter.name.id
    if name in given:
        expression, evaluator = given[name]
        value, kind = evaluator.eval(expression), "argument"
        called = expression.span
    else:
        assert parameter.default is not None
        expression, evaluator = parameter.default, inner
        value, kind, called = inner.eval(expression), "local", parameter.span
    if value is BROKEN:
        inner.scope.names[name] = Binding(BROKEN, parameter.name.span, "argument")
        return False
    checked = typed(value, parameter.annotation)
    if checked is BROKEN:
        evaluator.error("E411", f"`{name}` must be of type "
                        f"`{parameter.annotation.span.text}`, not "  # type: ignore[union-attr]
                        f"{describe(value)}", called,
                        notes=[Note("declared here", parameter.span)])
        return False
    inner.scope.names[name] = Binding(checked, parameter.name.span, kind, expression,
                                      evaluator.scope, span)
    return True
