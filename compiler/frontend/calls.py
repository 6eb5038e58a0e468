"""Calls of compile-time functions and operators."""

from __future__ import annotations

import zlib
from typing import Any, TypeGuard

from lamina.compiler.errors import Note, Span
from lamina.compiler.frontend import static
from lamina.compiler.frontend.base import Base
from lamina.compiler.frontend.decoding import choose
from lamina.compiler.frontend.library import did_you_mean
from lamina.compiler.frontend.naming import callee_name
from lamina.compiler.frontend.values import (
    BROKEN,
    Builtin,
    Definition,
    Layer,
    OpRef,
    Tensor,
    describe,
    is_static,
)
from lamina.compiler.ir.op import Op, OpError
from lamina.compiler.ir.types import Expression, is_ragged, shape_text
from lamina.compiler.ops.define import HIDDEN, REGISTRY, normalize_axes
from lamina.compiler.ops.shape import split_bounds
from lamina.compiler.syntax import ast


class Calls(Base):
    """The part of the evaluator for calls. Abstract."""

    def _call(self, expr: ast.Call) -> Any:
        callee = self.eval(expr.func)
        if callee is BROKEN:
            for arg in (*expr.args, *(word.value for word in expr.kwargs)):
                self.eval(arg)  # its own mistakes are told in the same run
            return BROKEN
        if isinstance(callee, Definition):
            return Layer(expr, self.scope, self.instance)
        if isinstance(callee, Layer):
            piped = [self.eval(arg) for arg in expr.args]
            path = self._child(callee_name(expr))
            other = None if callee.shared else self.ctx.claim(path, expr)
            if other is not None:
                return self.error("E302", f"`{callee_name(expr)}` is called twice here, as one "
                                  "layer", expr.span, notes=[Note("the first is here", other.span)],
                                  help=f"label the uses, as in `x -> a: {callee_name(expr)}`")
            return BROKEN if BROKEN in piped else self.apply_layer(callee, piped, path, expr.span)
        if isinstance(callee, Tensor):
            return self.error("E406", f"`{expr.func.span.text}` is a tensor, not a layer or a "
                              "function", expr.func.span)
        if not isinstance(callee, (OpRef, Builtin)):
            return self.error("E406", f"{describe(callee)} cannot be called", expr.func.span)
        name = callee.op.name if isinstance(callee, OpRef) else callee.name
        if name in ("ceil", "floor") and len(expr.args) == 1 and _is_quotient(expr.args[0]):
            return self._rounded(name, expr.args[0])
        args = [self.eval(arg) for arg in expr.args]
        if any(arg is BROKEN for arg in args):
            return BROKEN
        if name in static.FUNCTIONS and all(is_static(arg) for arg in args) and not expr.kwargs:
            try:
                return static.call(name, args)
            except static.StaticError as error:
                return self.error(error.code, error.message, expr.span, help=error.help)
        if isinstance(callee, Builtin):
            return self._builtin(callee.name, args, expr)
        return self.apply_op(callee.op, args, expr, expr.span, self.path)

    def _rounded(self, name: str, quotient: ast.Binary) -> Any:
        """ceil(a / b) or floor(a / b), exact also for sizes."""
        a, b = self.eval(quotient.left), self.eval(quotient.right)
        if a is BROKEN or b is BROKEN:
            return BROKEN
        for value, side in ((a, quotient.left), (b, quotient.right)):
            if isinstance(value, bool) or not isinstance(value, (int, float, Expression)):
                return self.error("E404", f"`/` cannot be applied to {describe(value)}", side.span)
        try:
            if name == "ceil":
                return static.ceil_of_quotient(a, b)
            return static.binary("//", a, b)
        except static.StaticError as error:
            return self.error(error.code, error.message, quotient.span, help=error.help)

    def _builtin(self, name: str, args: list[Any], expr: ast.Call) -> Any:
        if name == "split" and args and isinstance(args[0], Tensor):
            return self._split(args[0], args[1:], expr)
        if name == "lengths":
            return self._lengths(args, expr)
        if name == "choose":
            return choose(self, args, expr.span)
        return self.error("E404", f"`{name}` works on compile-time values, not on "
                          f"{describe(args[0]) if args else 'nothing'}", expr.span)

    def _lengths(self, args: list[Any], expr: ast.Call) -> Any:
        """`lengths(S)`: what a size is for each example, i32 [B]."""
        (size, *more) = args or (None,)
        if more or expr.kwargs or not isinstance(size, Expression) or not is_ragged(size):
            return self.error("E418", "`lengths` takes a size that differs from example to "
                              f"example, not {describe(size)}", expr.span,
                              help="declare it with `~`, as in `input x: [B, S~]`")
        try:
            with self.ctx.at(expr.span, self.instance):
                return self.ctx.tensor(self.ctx.m.length(size).value)
        except OpError as error:
            return self.error(error.code, error.message, expr.span, help=error.help)

    def _split(self, x: Tensor, args: list[Any], expr: ast.Call) -> Any:
        attrs = self.attributes("split", expr, [x], ("parts", "axis"), args)
        if attrs is BROKEN:
            return BROKEN
        parts, axis = attrs.get("parts"), attrs.get("axis", 0)
        if not isinstance(parts, int) or parts < 1:
            return self.error("E203", "`split` needs a number of parts", expr.span,
                              help="write `split(x, 4, axis=-1)`")
        try:
            (axis,) = normalize_axes("split", axis, len(x.shape))
            split_bounds("split", x.shape[axis], parts)
        except OpError as error:
            return self.error(error.code, error.message, expr.span, help=error.help)
        return tuple(self.ctx.apply(REGISTRY["part"], [x], {"index": i, "parts": parts,
                                                            "axis": axis}, expr.span,
                                    self.instance) for i in range(parts))

    def attributes(self, what: str, call: Any, operands: list[Any], names: tuple[str, ...],
                   extra: list[Any]) -> Any:
        """Attributes by name from the remaining positional values and the keywords."""
        listed = ", ".join(names)
        if len(extra) > len(names):
            takes = f"takes {len(names)} settings ({listed})" if names else "takes no settings"
            return self.error("E201", f"`{what}` {takes}, {len(extra)} given", call.span)
        attrs: dict[str, Any] = dict(zip(names, extra, strict=False))
        for word in call.kwargs if isinstance(call, ast.Call) else ():
            if word.name.id not in names:
                return self.error("E202", f"`{what}` has no setting `{word.name.id}`",
                                  word.name.span, help=did_you_mean(word.name.id, names) or
                                  f"its settings: {listed or 'none'}")
            value = self._axis(word, operands) if word.name.id == "axis" else self.eval(word.value)
            if value is BROKEN:
                return BROKEN
            if not is_static(value):
                return self.error("E318", f"`{word.name.id}` must be known when compiled, not "
                                  f"{describe(value)}", word.value.span)
            if word.name.id in attrs:
                return self.error("E120", f"`{word.name.id}` is given twice", word.span)
            attrs[word.name.id] = tuple(value) if isinstance(value, list) else value
        return attrs

    def _axis(self, word: ast.Keyword, operands: list[Any]) -> Any:
        """`axis=S` names the axis whose size is the symbol S."""
        binding = self.scope.find(word.value.id) if isinstance(word.value, ast.Name) else None
        if binding is None or binding.kind != "dim":
            return self.eval(word.value)
        x = next((x for x in operands if isinstance(x, Tensor)), None)
        found = [axis for axis, dim in enumerate(x.shape) if dim == binding.value] if x else []
        if len(found) == 1:
            return found[0]
        shape = shape_text(x.shape) if x else "nothing"
        problem = "no axis" if not found else f"{len(found)} axes"
        written = word.value.span.text
        value = "" if str(binding.value) == written else f" = {binding.value}"
        return self.error("E319", f"{shape} has {problem} of size `{written}`{value}",
                          word.value.span, help="give the axis as a number")

    def apply_op(self, op: Op, args: list[Any], call: Any, span: Span, path: str) -> Any:
        """An operator on values: first its operands, then its attributes in order."""
        high = op.arity[1]
        if high < 0:
            count = sum(isinstance(arg, (Tensor, tuple)) for arg in args)
            operands = [x for arg in args[:count]
                        for x in (arg if isinstance(arg, tuple) else (arg,))]
        else:
            count = min(high, len(args))
            operands = args[:count]
        for operand in operands:
            if not isinstance(operand, (Tensor, int, float, Expression)):
                return self.error("E309", f"`{op.name}` works on tensors, not on "
                                  f"{describe(operand)}", span)
        names = tuple(name for name in op.attrs if name not in HIDDEN)
        attrs = self.attributes(op.name, call, operands, names, args[count:])
        if attrs is BROKEN:
            return BROKEN
        if "salt" in op.attrs and "salt" not in attrs:
            attrs["salt"] = zlib.crc32(path.encode()) & 0x7FFFFFFF
        spans = [arg.span for arg in call.args[:count]] if isinstance(call, ast.Call) else []
        if len(operands) < op.arity[0]:
            least = op.arity[0]
            return self.error("E201", f"`{op.name}` takes {least} "
                              f"operand{'' if least == 1 else 's'}, "
                              f"{len(operands)} given", span)
        return self.ctx.apply(op, operands, attrs, span, self.instance,
                              spans if len(spans) == len(operands) else None)


def _is_quotient(expr: Any) -> TypeGuard[ast.Binary]:
    return isinstance(expr, ast.Binary) and expr.op == "/"
