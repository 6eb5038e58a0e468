"""The evaluator: from syntax to compile-time values and graph nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lamina.compiler.frontend.base import describe_binding
from lamina.compiler.frontend.expressions import Expressions
from lamina.compiler.frontend.flows import Flows
from lamina.compiler.syntax import ast

__all__ = ["Evaluator", "describe_binding"]


class Evaluator(Expressions, Flows):
    """Evaluates expressions of one instance in one scope, for layers at one path. Final."""

    def eval(self, expr: Any) -> Any:
        """The value of an expression; BROKEN after an error was reported."""
        return _EVALUATE[type(expr)](self, expr)


_EVALUATE: dict[type, Callable[[Evaluator, Any], Any]] = {
    ast.Name: Evaluator._name, ast.Number: Evaluator._number, ast.String: Evaluator._number,
    ast.Bool: Evaluator._number, ast.ListLiteral: Evaluator._items, ast.Tuple: Evaluator._items,
    ast.Attribute: Evaluator._attribute, ast.Prev: Evaluator._prev,
    ast.Subscript: Evaluator._subscript, ast.Call: Evaluator._call, ast.Unary: Evaluator._unary,
    ast.Binary: Evaluator._binary, ast.Conditional: Evaluator._conditional,
    ast.Flow: Evaluator._flow,
}
