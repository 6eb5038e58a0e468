"""What all parts of the evaluator share."""

from __future__ import annotations

from typing import Any

from lamina.compiler.errors import Span
from lamina.compiler.frontend.context import Context, Instance
from lamina.compiler.frontend.library import did_you_mean
from lamina.compiler.frontend.values import (
    BROKEN,
    Layer,
    Origin,
    Result,
    Scope,
    Tensor,
    describe,
    is_static,
)
from lamina.compiler.ir.types import DTYPES, Expression
from lamina.compiler.syntax import ast

USUAL_NAMES = {"float": "f32", "float32": "f32", "float64": "f64", "double": "f64", "int": "i32",
               "int32": "i32", "int64": "i64", "long": "i64"}


class Base:
    """What all parts of the evaluator share: its place, and how it reports. Abstract."""

    def __init__(self, ctx: Context, instance: Instance, scope: Scope, path: str | None = None,
                 names: dict[int, str] | None = None):
        self.ctx, self.instance, self.scope = ctx, instance, scope
        self.path = instance.path if path is None else path
        self.names = instance.segments if names is None else names

    @property
    def home(self) -> Scope:
        """The scope of the whole instance, where symbols are bound."""
        return self.instance.scope

    def inside(self, scope: Scope) -> Any:
        """The same evaluator in another scope."""
        return self.made(self.ctx, self.instance, scope, self.path, self.names)

    def error(self, code: str, message: str, span: Span, *, labels=(), notes=(), help=None) -> Any:
        """Report an error of this instance; gives BROKEN."""
        return self.ctx.error(code, message, span, self.instance, labels=labels, notes=notes,
                              help=help)

    def unknown_dtype(self, annotation: ast.TensorType) -> Any:
        """Report an element type that does not exist."""
        name = annotation.dtype or ""
        usual = USUAL_NAMES.get(name)
        return self.error("E316", f"no element type is named `{name}`",
                          annotation.span, help=f"did you mean `{usual}`?" if usual else
                          did_you_mean(name, DTYPES) or f"element types: {', '.join(DTYPES)}")

    def made(self, ctx: Context, instance: Instance, scope: Scope, path: str,
             names: dict[int, str]) -> Any:
        """An evaluator for another place."""
        return type(self)(ctx, instance, scope, path, names)

    def eval(self, expr: Any) -> Any:
        """The value of an expression; BROKEN after an error was reported."""
        raise NotImplementedError

    def size(self, expr: Any, what: str = "a size") -> Any:
        """A whole number or a symbolic size; `what` names it in messages."""
        value = self.eval(expr)
        if value is BROKEN:
            return BROKEN
        if isinstance(value, bool) or not isinstance(value, (int, Expression)):
            return self.error("E317", f"{what} must be a whole number, not {describe(value)}",
                              expr.span)
        if isinstance(value, int) and value < 0:
            return self.error("E317", f"{what} cannot be negative: `{expr.span.text}` = {value}",
                              expr.span)
        return value

    def truth(self, expr: Any) -> Any:
        """A condition known when compiled: True, False or BROKEN."""
        value = self.eval(expr)
        if isinstance(value, (Tensor, Result)):
            return self.error("E318", "a condition must be known when compiled, this one depends "
                              f"on {describe(value)}", expr.span,
                              help="use `select(condition, a, b)` to choose per element")
        return value if value is BROKEN else bool(value)

    def describe_name(self, name: str, called: Span | None) -> Origin | None:
        """Where a compile-time name's value comes from, seen from the outermost caller's side."""
        binding = self.scope.find(name)
        if binding is not None and binding.kind == "dim" and self.instance.definition.library:
            return binding.origin
        return describe_binding(self.scope, name)

    def _child(self, segment: str) -> str:
        return ".".join(part for part in (self.path, segment) if part)

    def apply_layer(self, layer: Layer, piped: list[Any], path: str, span: Span) -> Any:
        """Apply a layer value; a shared one always lives at its own path."""
        raise NotImplementedError


def describe_binding(scope: Scope, name: str) -> Origin | None:
    """Where a name's value comes from: "`out` = width * expand = 256"."""
    binding = scope.find(name)
    if binding is None or binding.value is BROKEN or not is_static(binding.value):
        return None
    if binding.kind == "argument" and binding.expression is not None and \
            binding.scope is not None:
        # What the caller wrote says more than the parameter's name.
        if isinstance(binding.expression, ast.Name):
            found = describe_binding(binding.scope, binding.expression.id)
            if found is not None:
                return found
        text = binding.expression.span.text
        shown = f"`{text}`" + ("" if text == str(binding.value) else f" = {binding.value}")
        return Origin(shown, binding.expression.span, None, text)
    if binding.kind == "dim":
        symbolic = str(binding.value) == name
        text = f"`{name}`" + ("" if symbolic else f" = {binding.value}")
        text += f", from {binding.source}" if binding.source else ""
        return Origin(text, binding.span, binding.called, name)
    text = binding.expression.span.text if binding.expression is not None else ""
    steps = f" = {text}" if text and text != str(binding.value) else ""
    return Origin(f"`{name}`{steps} = {binding.value}", binding.span, None, name)
