"""Expressions: names, arithmetic, subscripts, choices, and the messages about their shapes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lamina.compiler.errors import Label, Note, Span
from lamina.compiler.frontend import static
from lamina.compiler.frontend.base import Base
from lamina.compiler.frontend.library import did_you_mean
from lamina.compiler.frontend.values import (
    BROKEN,
    Binding,
    Constant,
    Definition,
    Layer,
    OpRef,
    Result,
    Scanned,
    Scans,
    Tensor,
    describe,
    is_static,
    typed,
)
from lamina.compiler.ir.types import Dim, Expression, ceil_div, shape_text
from lamina.compiler.ops.define import REGISTRY
from lamina.compiler.syntax import ast

OPERATORS = {"+": "add", "-": "sub", "*": "mul", "/": "div", "@": "matmul", "**": "pow",
             "<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal",
             "==": "equal", "!=": "not_equal"}
OTHER_LANGUAGES = {"True": "true", "False": "false", "None": "none"}
VERBS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}


class Expressions(Base):
    """The part of the evaluator for expressions. Abstract."""

    def _name(self, expr: ast.Name) -> Any:
        binding = self.scope.find(expr.id)
        if binding is not None:
            if isinstance(binding.value, Constant):
                return self._constant(binding, binding.value, expr)
            return binding.value
        if expr.id == "training":
            return self.ctx.training
        if expr.id == "rng":
            return self.ctx.rng(expr.span, self.instance)
        if expr.id == "_":
            return self.error("E306", "`_` stands for the piped value, and nothing is piped here",
                              expr.span, help="use it inside a stage, after `->`")
        return self.error("E301", f"`{expr.id}` is not defined here", expr.span,
                          help=name_help(self.instance.definition.node.body, expr,
                                         self.scope.visible()))

    def _constant(self, binding: Binding, constant: Constant, expr: ast.Name) -> Any:
        """The value of a constant, kept for its next use."""
        node, before = constant.node, self.ctx.evaluating
        if node.name.id in self.ctx.circular:
            return BROKEN
        if node.name.id in before:
            self.ctx.circular |= set(before)
            chain = " -> ".join((*before, node.name.id))
            return self.error("E402", f"the constant `{node.name.id}` needs itself: {chain}",
                              expr.span, help="give one of them a number")
        self.ctx.evaluating = (*before, node.name.id)
        value = self.inside(constant.scope).eval(node.value)
        self.ctx.evaluating = before
        if value is BROKEN:
            return BROKEN
        if not is_static(value):
            return self.error("E318", "a constant must be known when compiled, not "
                              f"{describe(value)}", node.value.span)
        if typed(value, node.annotation) is BROKEN:
            return self.error("E411", f"`{node.name.id}` must be of type "
                              f"`{node.annotation.span.text}`, not {describe(value)}",  # type: ignore[union-attr]
                              node.value.span)
        binding.value = value
        return value

    def _number(self, expr: ast.Number | ast.String | ast.Bool) -> Any:
        return expr.value

    def _items(self, expr: ast.ListLiteral | ast.Tuple) -> Any:
        values = tuple(self.eval(item) for item in expr.items)
        return BROKEN if any(value is BROKEN for value in values) else values

    def _attribute(self, expr: ast.Attribute) -> Any:
        if isinstance(expr.value, ast.Name) and expr.value.id == "op" and \
                self.scope.find("op") is None:
            if expr.name in REGISTRY:
                return OpRef(REGISTRY[expr.name])
            return self.error("E301", f"no operator is named `{expr.name}`", expr.span,
                              help=did_you_mean(expr.name, REGISTRY))
        value = self.eval(expr.value)
        if value is BROKEN:
            return BROKEN
        if isinstance(value, Scanned | Scans) and expr.name == "final":
            return value.final
        if isinstance(value, Tensor) and expr.name == "T":
            return self._transposed(value, expr.span)
        if isinstance(value, Result):
            if expr.name in value.outputs:
                return value.outputs[expr.name]
            return self.error("E307", f"there is no output `{expr.name}`", expr.span,
                              help=did_you_mean(expr.name, value.outputs) or
                              f"outputs: {', '.join(value.outputs)}")
        if isinstance(value, Layer) and value.shared:
            return self._layer_parameter(value, expr)
        return self.error("E307", f"{describe(value)} has no `{expr.name}`", expr.span,
                          help="a tensor has `.T`; an annotation such as `x: [B, D]` names its "
                          "sizes" if isinstance(value, Tensor) else None)

    def _transposed(self, x: Tensor, span: Span) -> Any:
        rank = len(x.shape)
        if rank < 2:
            return self.error("E310", f"`.T` needs at least 2 axes, not {shape_text(x.shape)}",
                              span)
        perm = (*range(rank - 2), rank - 1, rank - 2)
        return self.ctx.apply(REGISTRY["transpose"], [x], {"perm": perm}, span, self.instance)

    def _layer_parameter(self, layer: Layer, expr: ast.Attribute) -> Any:
        key = f"{layer.path}.{expr.name}"
        if key in self.ctx.params:
            return self.ctx.params[key]
        known = [k.removeprefix(f"{layer.path}.") for k in self.ctx.params
                 if k.startswith(f"{layer.path}.")]
        if not known:
            if self.ctx.sink:
                return BROKEN  # what would use the layer may have failed
            return self.error("E308", f"`{layer.path}` has not been used yet, so its parameters "
                              "do not exist", expr.span, help="use the layer before its weights")
        return self.error("E307", f"the layer has no parameter `{expr.name}`", expr.span,
                          help=did_you_mean(expr.name, known) or f"it has {', '.join(known)}")

    def _prev(self, expr: ast.Prev) -> Any:
        known = self.instance.before
        if expr.name in known:
            return known[expr.name]
        states = ", ".join(f"`{name}`" for name in known)
        return self.error("E417", f"no state here is named `{expr.name}`", expr.span,
                          help=did_you_mean(expr.name, known) or
                          (f"states: {states}" if states else "declare it: `state "
                           f"{expr.name}: [B, size] = 0`"))

    def _subscript(self, expr: ast.Subscript) -> Any:
        value = self.eval(expr.value)
        if value is BROKEN:
            return BROKEN
        if isinstance(value, Tensor):
            return self._cut(value, expr)
        if not isinstance(value, (tuple, list, str, range)):
            return self.error("E307", f"{describe(value)} cannot be indexed", expr.span)
        first, *more = expr.indices or (None,)
        if more or first is None or isinstance(first, (ast.Slice, ast.NewAxis, ast.Dots)):
            return self.error("E404", "a list takes one index", expr.span)
        index = self.size(first)
        if index is BROKEN:
            return BROKEN
        if not isinstance(index, int) or index >= len(value):
            return self.error("E404", f"index {index} is outside a list of {len(value)}", expr.span)
        return value[index]

    def _cut(self, x: Tensor, expr: ast.Subscript) -> Any:
        """`x[1:3, new, ...]`: parts, new axes, and axes dropped by an index."""
        indices = list(expr.indices)
        used = sum(not isinstance(i, (ast.NewAxis, ast.Dots)) for i in indices)
        rank = len(x.shape)
        if used > rank:
            return self.error("E310", f"{used} indices for {shape_text(x.shape)}", expr.span)
        everything = [ast.Slice(None, None, None, expr.span)] * (rank - used)
        dots = next((i for i, one in enumerate(indices) if isinstance(one, ast.Dots)), None)
        if dots is None:
            indices += everything
        else:
            indices[dots:dots + 1] = everything
        starts, stops, steps, shape = [], [], [], []
        axis = 0
        for index in indices:
            if isinstance(index, ast.NewAxis):
                shape.append(1)
                continue
            bounds = self._bounds(index, x.shape[axis])
            if bounds is BROKEN:
                return BROKEN
            start, stop, step, kept = bounds
            starts.append(start)
            stops.append(stop)
            steps.append(step)
            shape += [ceil_div(stop - start, step)] if kept else []
            axis += 1
        cut = self.ctx.apply(REGISTRY["slice"], [x], {"starts": tuple(starts), "stops":
                             tuple(stops), "steps": tuple(steps)}, expr.span, self.instance)
        return self.ctx.apply(REGISTRY["reshape"], [cut], {"shape": tuple(shape)}, expr.span,
                              self.instance)

    def _bounds(self, index: Any, size: Dim) -> Any:
        """(start, stop, step, whether the axis stays) of one index."""
        kept = isinstance(index, ast.Slice)
        parts = [(index.start, 0), (index.stop, size), (index.step, 1)] if kept else [(index, 0)]
        numbers = [default if part is None else self.eval(part) for part, default in parts]
        for one in numbers:
            if one is BROKEN:
                return BROKEN
            if isinstance(one, bool) or not isinstance(one, (int, Expression)):
                return self.error("E317", f"an index must be a whole number, not {describe(one)}",
                                  index.span)
        if not kept:
            start = _from_the_end(numbers[0], size)
            inside = start >= 0 if isinstance(start, int) else True
            if not inside or isinstance(start, int) and isinstance(size, int) and start >= size:
                return self.error("E214", f"index {numbers[0]} is outside an axis of {size}",
                                  index.span, help="axes are counted from 0, or from the end "
                                  "with negative numbers")
            return start, start + 1, 1, False
        start, stop = (_clamped(_from_the_end(one, size), size) for one in numbers[:2])
        if not isinstance(numbers[2], int) or numbers[2] < 1:
            return self.error("E214", f"the step of a slice must be 1 or more, not {numbers[2]}",
                              index.span, help="`flip(x, axes=(1,))` turns an axis round")
        if isinstance(start, int) and isinstance(stop, int):
            stop = max(start, stop)
        return start, stop, numbers[2], True

    def _unary(self, expr: ast.Unary) -> Any:
        if expr.op == "not":
            value = self.truth(expr.operand)
            return value if value is BROKEN else not value
        value = self.eval(expr.operand)
        if value is BROKEN or expr.op == "+":
            return value
        if isinstance(value, Tensor):
            return self.ctx.apply(REGISTRY["neg"], [value], {}, expr.span, self.instance)
        if isinstance(value, bool) or not isinstance(value, (int, float, Expression)):
            return self.error("E404", f"`-` cannot be applied to {describe(value)}", expr.span)
        return -value

    def _binary(self, expr: ast.Binary) -> Any:
        if expr.op in ("and", "or"):
            left = self.truth(expr.left)
            if left is BROKEN or left == (expr.op == "or"):
                return left
            return self.truth(expr.right)
        left, right = self.eval(expr.left), self.eval(expr.right)
        if left is BROKEN or right is BROKEN:
            return BROKEN
        if expr.op in ("==", "!=") and (left is None or right is None):
            return (left is right) == (expr.op == "==")
        if isinstance(left, Tensor) or isinstance(right, Tensor):
            return self._tensor_binary(expr, left, right)
        if not (is_static(left) and is_static(right)):
            wrong, side = (left, expr.left) if not is_static(left) else (right, expr.right)
            return self.error("E309", f"`{expr.op}` cannot be applied to {describe(wrong)}",
                              side.span, help="feed a layer with `->`"
                              if isinstance(wrong, (Layer, OpRef, Definition)) else None)
        try:
            return static.binary(expr.op, left, right)
        except static.StaticError as error:
            return self.error(error.code, error.message, expr.span, help=error.help)

    def _tensor_binary(self, expr: ast.Binary, left: Any, right: Any) -> Any:
        for value, side in ((left, expr.left), (right, expr.right)):
            number = isinstance(value, (int, float, Expression)) and not isinstance(value, bool)
            if not isinstance(value, Tensor) and not number:
                return self.error("E309", f"`{expr.op}` cannot be applied to {describe(value)}",
                                  side.span, help="feed a layer with `->`"
                                  if isinstance(value, (Layer, OpRef, Definition)) else None)
        name = OPERATORS.get(expr.op)
        if name is None:
            return self.error("E309", f"`{expr.op}` is not defined for tensors", expr.span,
                              help="`and`, `in`, `//` and `%` work on compile-time values")
        op = REGISTRY[name]
        if isinstance(left, Tensor) and isinstance(right, Tensor) and op.kind == "elementwise":
            clash = _first_clash(left, right)
            if clash is not None:
                return self._different_shapes(expr, left, right, clash)
        return self.ctx.apply(op, [left, right], {}, expr.span, self.instance,
                              [expr.left.span, expr.right.span])

    def _different_shapes(self, expr: ast.Binary, left: Tensor, right: Tensor,
                          clash: tuple[int, int]) -> Any:
        """The message for operands whose shapes do not broadcast: E312."""
        sides = ((expr.left, left, clash[0]), (expr.right, right, clash[1]))
        names = [side.span.text if isinstance(side, ast.Name) else what
                 for (side, _, _), what in zip(sides, ("the left side", "the right side"),
                                               strict=True)]
        labels = [Label(side.span, f"{name}: {shape_text(x.shape)}"
                        if isinstance(side, ast.Name) else shape_text(x.shape))
                  for (side, x, _), name in zip(sides, names, strict=True)]
        notes = []
        for (side, x, axis), name in zip(sides, names, strict=True):
            origin = x.origins[axis] if x.origins else None
            shown = f"`{name}`" if isinstance(side, ast.Name) else name
            if origin is not None:
                where = f", called at line {origin.called.line}" if origin.called else ""
                notes.append(Note(f"dim {axis} of {shown} is {origin.text}{where}", origin.span))
            else:
                notes.append(Note(f"dim {axis} of {shown} is {x.shape[axis]}"))
        verb = VERBS.get(expr.op, "compare")
        return self.error("E312", f"cannot {verb} tensors of different shapes", expr.span,
                          labels=labels, notes=notes, help=self._mend(expr, left, right, clash))

    def _mend(self, expr: ast.Binary, left: Tensor, right: Tensor,
              clash: tuple[int, int]) -> str | None:
        """The edit to suggest when a conditional passes a value on unchanged."""
        origins = [x.origins[axis] if x.origins else None
                   for x, axis in ((left, clash[0]), (right, clash[1]))]
        names = [origin.name if origin else "" for origin in origins]
        for side in (expr.right, expr.left):
            binding = self.scope.find(side.id) if isinstance(side, ast.Name) else None
            choice = binding.expression if binding else None
            if not isinstance(choice, ast.Conditional) or not all(names):
                continue
            if isinstance(choice.otherwise, ast.Name) and self.truth(choice.condition) is False:
                own, other = (names[1], names[0]) if side is expr.right else names
                return (f"`{side.span.text}` takes `{choice.otherwise.id}` unchanged when "
                        f"{_negated(choice.condition)}; add `or {own} != {other}` to the "
                        f"condition on line {choice.condition.span.line}")
        return None

    def _conditional(self, expr: ast.Conditional) -> Any:
        condition = self.truth(expr.condition)
        if condition is BROKEN:
            return BROKEN
        return self.eval(expr.then if condition else expr.otherwise)


def name_help(body: tuple[ast.Statement, ...], expr: ast.Name, visible: Iterable[str]
              ) -> str | None:
    """What to suggest for a name that is not bound, in a body where others are visible."""
    usual = OTHER_LANGUAGES.get(expr.id)
    if usual:
        return f"did you mean `{usual}`?"
    return _bound_below(body, expr) or did_you_mean(expr.id, visible) or _symbol_help(expr.id)


def _bound_below(body: tuple[ast.Statement, ...], expr: ast.Name) -> str | None:
    for statement in body:
        for name in statement.targets if isinstance(statement, ast.Assign) else ():
            if name.id == expr.id and name.span.start > expr.span.start:
                return f"`{expr.id}` is bound below, on line {name.span.line}: move this line down"
    return None


def _symbol_help(name: str) -> str | None:
    if not name[:1].isupper() or len(name) > 40:
        return None
    return f"a symbol gets its meaning from a shape, as in `input x: [B, {name}]`"


def _from_the_end(index: Any, size: Dim) -> Any:
    """An index counted from 0."""
    return index + size if isinstance(index, int) and index < 0 else index


def _clamped(bound: Any, size: Dim) -> Any:
    """A bound of a slice, moved to the nearest end of the axis where that is known."""
    if isinstance(bound, int):
        bound = max(bound, 0)
        return min(bound, size) if isinstance(size, int) else bound
    return bound


def _first_clash(left: Tensor, right: Tensor) -> tuple[int, int] | None:
    """The axes of both operands whose sizes do not broadcast, counted from the left."""
    for offset in range(1, min(len(left.shape), len(right.shape)) + 1):
        a, b = left.shape[-offset], right.shape[-offset]
        if a != b and a != 1 and b != 1:
            return len(left.shape) - offset, len(right.shape) - offset
    return None


def _negated(condition: ast.Expr) -> str:
    """The opposite of a condition, in words."""
    opposite = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
    if isinstance(condition, ast.Binary) and condition.op in opposite:
        return f"{condition.left.span.text} {opposite[condition.op]} {condition.right.span.text}"
    return f"not ({condition.span.text})"
