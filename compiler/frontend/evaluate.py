"""Expressions and flows: from syntax to compile-time values and graph nodes."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from lamina.compiler.errors import Label, Note, Span
from lamina.compiler.frontend import static
from lamina.compiler.frontend.context import MAX_ROUNDS, Context, Instance
from lamina.compiler.frontend.library import did_you_mean
from lamina.compiler.frontend.naming import callee_name, segments
from lamina.compiler.frontend.values import (
    BROKEN,
    Binding,
    Builtin,
    Constant,
    Definition,
    Layer,
    OpRef,
    Origin,
    Result,
    Scope,
    Tensor,
    describe,
    is_static,
    typed,
)
from lamina.compiler.ir.graph import Scope as Row
from lamina.compiler.ir.op import Op, OpError
from lamina.compiler.ir.types import DTYPES, Dim, Expression, ceil_div, shape_text
from lamina.compiler.ops.define import REGISTRY, normalize_axes
from lamina.compiler.ops.shape import split_bounds
from lamina.compiler.syntax import ast

OPERATORS = {"+": "add", "-": "sub", "*": "mul", "/": "div", "@": "matmul", "**": "pow",
             "<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal",
             "==": "equal", "!=": "not_equal"}
VERBS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}
USUAL_NAMES = {"float": "f32", "float32": "f32", "float64": "f64", "double": "f64", "int": "i32",
               "int32": "i32", "int64": "i64", "long": "i64"}
MAX_REPEATS = 10_000


class Evaluator:
    """Evaluates expressions of one instance in one scope, for layers at one path."""

    def __init__(self, ctx: Context, instance: Instance, scope: Scope, path: str | None = None,
                 names: dict[int, str] | None = None):
        self.ctx, self.instance, self.scope = ctx, instance, scope
        self.path = instance.path if path is None else path
        self.names = instance.segments if names is None else names

    @property
    def home(self) -> Scope:
        """The scope of the whole instance, where symbols are bound."""
        return self.instance.scope

    def inside(self, scope: Scope) -> Evaluator:
        """The same evaluator in another scope."""
        return Evaluator(self.ctx, self.instance, scope, self.path, self.names)

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

    # --- expressions ----------------------------------------------------------------------------

    def eval(self, expr: Any) -> Any:
        """The value of an expression; BROKEN after an error was reported."""
        return _EVALUATE[type(expr)](self, expr)

    def size(self, expr: Any) -> Any:
        """A whole number or a symbolic size."""
        value = self.eval(expr)
        if value is BROKEN:
            return BROKEN
        if isinstance(value, bool) or not isinstance(value, (int, Expression)):
            return self.error("E317", f"a size must be a whole number, not {describe(value)}",
                              expr.span)
        if isinstance(value, int) and value < 0:
            return self.error("E317", f"a size cannot be negative: `{expr.span.text}` = {value}",
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
                          help=_bound_below(self.instance.definition.node.body, expr) or
                          did_you_mean(expr.id, self.scope.visible()) or _symbol_help(expr.id))

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
            return self.error("E308", f"`{layer.path}` has not been used yet, so its parameters "
                              "do not exist", expr.span, help="use the layer before its weights")
        return self.error("E307", f"the layer has no parameter `{expr.name}`", expr.span,
                          help=did_you_mean(expr.name, known) or f"it has {', '.join(known)}")

    def _prev(self, expr: ast.Prev) -> Any:
        return self.error("E902", "`prev` (recurrent cells) is not supported yet", expr.span)

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
        names = [x.origins[axis].name if x.origins and x.origins[axis] else ""
                 for x, axis in ((left, clash[0]), (right, clash[1]))]
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

    def describe_name(self, name: str, called: Span | None) -> Origin | None:
        """Where a compile-time name's value comes from, seen from the outermost caller's side."""
        binding = self.scope.find(name)
        if binding is not None and binding.kind == "dim" and self.instance.definition.library:
            return binding.origin
        return describe_binding(self.scope, name)

    # --- calls ----------------------------------------------------------------------------------

    def _call(self, expr: ast.Call) -> Any:
        callee = self.eval(expr.func)
        if callee is BROKEN:
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
        if name == "choose":
            return self.error("E902", "`choose` (decoding) is not supported yet", expr.span)
        return self.error("E404", f"`{name}` works on compile-time values, not on "
                          f"{describe(args[0]) if args else 'nothing'}", expr.span)

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
        return self.error("E319", f"{shape} has {problem} of size `{word.value.span.text}` = "
                          f"{binding.value}", word.value.span, help="give the axis as a number")

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
        names = tuple(name for name in op.attrs if name not in ("layout", "salt"))
        attrs = self.attributes(op.name, call, operands, names, args[count:])
        if attrs is BROKEN:
            return BROKEN
        if "salt" in op.attrs and "salt" not in attrs:
            attrs["salt"] = zlib.crc32(path.encode()) & 0x7FFFFFFF
        spans = [arg.span for arg in call.args[:count]] if isinstance(call, ast.Call) else []
        if len(operands) < op.arity[0]:
            return self.error("E201", f"`{op.name}` takes {op.arity[0]} operands, "
                              f"{len(operands)} given", span)
        return self.ctx.apply(op, operands, attrs, span, self.instance,
                              spans if len(spans) == len(operands) else None)

    # --- flows ----------------------------------------------------------------------------------

    def _flow(self, flow: ast.Flow) -> Any:
        if flow.source is None:
            binding = self.scope.find("_")
            value = binding.value if binding else self._name(ast.Name("_", flow.span))
        else:
            value = self.eval(flow.source)
        return self.run_stages(flow.stages, value)

    def run_stages(self, stages: tuple[ast.Stage, ...], value: Any) -> Any:
        """Pipe a value through stages."""
        for stage in stages:
            if value is BROKEN:
                return BROKEN
            value = self.run_stage(stage, value)
        return value

    def _child(self, segment: str) -> str:
        return ".".join(part for part in (self.path, segment) if part)

    def run_stage(self, stage: ast.Stage, value: Any) -> Any:
        """Pipe a value through one stage."""
        body = stage.body
        path = self._child(self.names.get(id(stage), callee_name(body)))
        if isinstance(body, ast.As):
            result = self._reshape_as(body, value)
        elif isinstance(body, (ast.Repeat, ast.For)):
            result = self._repeat(body, value, path)
        elif isinstance(body, ast.Scan):
            return self.error("E902", "`scan` (recurrent cells) is not supported yet", body.span)
        elif self._claimed(stage, path):
            return BROKEN
        else:
            result = self._apply_stage(body, _piped(value), path)
        leaf = isinstance(body, (ast.As,))
        if not isinstance(body, (ast.Name, ast.Call, ast.Attribute)) and not leaf:
            self._row(path, type(body).__name__.lower(), result, body.span, False)
        return result

    def _claimed(self, stage: ast.Stage, path: str) -> bool:
        """Report two stages of one label: they would share their weights unsaid."""
        if stage.label is None:
            return False
        other = self.ctx.claim(path, stage)
        if other is None:
            return False
        self.error("E302", f"two layers are labelled `{stage.label.id}`", stage.label.span,
                   notes=[Note("the first is here", other.span)],
                   help="choose another label; to use the same weights twice write "
                   f"`shared {stage.label.id} = ...`")
        return True

    def _row(self, path: str, callee: str, result: Any, span: Span, leaf: bool) -> None:
        """Remember a layer for the layer table; inside the library nothing is listed."""
        if isinstance(result, Result):
            result = next(iter(result.outputs.values()), None)
        if isinstance(result, Tensor) and not self.instance.definition.library:
            self.ctx.rows.append(Row(path, callee, result.value, span, leaf))

    def _apply_stage(self, body: Any, piped: list[Any], path: str) -> Any:
        if _mentions_hole(body):
            scope = Scope(self.scope, {"_": Binding(piped[0] if len(piped) == 1 else tuple(piped),
                                                    body.span, "local")})
            return self.inside(scope).eval(body)
        call = body if isinstance(body, ast.Call) else None
        callee = self.eval(call.func if call else body)
        if callee is BROKEN:
            return BROKEN
        if isinstance(callee, OpRef):
            return self._stage_op(callee, body, call, piped, path)
        if isinstance(callee, Definition):
            return self._stage_definition(callee, body, call, piped, path)
        if isinstance(callee, Layer):
            if call is not None and (call.args or call.kwargs):
                return self.error("E405", f"`{call.func.span.text}` already has its settings",
                                  call.span, help="leave out the arguments")
            result = self.apply_layer(callee, piped, path, body.span)
            self._row(callee.path or path, callee_name(callee.call), result, body.span, True)
            return result
        if isinstance(callee, Builtin) and callee.name == "split" and call is not None:
            args = [self.eval(arg) for arg in call.args]
            return self._split(piped[0], args, call)
        head = call.func if call else body
        what = f"`{head.span.text}`" if len(head.span.text) < 40 else "this"
        known = self.scope.find(head.id) if isinstance(head, ast.Name) else None
        notes = [Note(f"{what} is defined here", known.span)] if known and known.span else []
        return self.error("E406", f"{what} is {describe(callee)}, not a layer", head.span,
                          notes=notes,
                          help="after `->` comes a layer; to combine values write "
                               "`(a, b) -> ...` or an expression")

    def _stage_op(self, callee: OpRef, body: Any, call: ast.Call | None, piped: list[Any],
                  path: str) -> Any:
        args = [self.eval(arg) for arg in call.args] if call else []
        if any(arg is BROKEN for arg in args):
            return BROKEN
        result = self.apply_op_stage(callee.op, piped, args, call, body.span, path)
        self._row(path, callee.op.name, result, body.span, True)
        return result

    def apply_op_stage(self, op: Op, piped: list[Any], args: list[Any], call: ast.Call | None,
                       span: Span, path: str) -> Any:
        """An operator as a stage: what is piped, then its arguments."""
        high = op.arity[1]
        if high >= 0 and len(piped) > high:
            return self.error("E401", f"`{op.name}` takes {_inputs(high)}, {len(piped)} piped",
                              span, help="feed fewer values, or join them with `concat` first")
        stripped = ast.Call(call.func, (), call.kwargs, call.span) if call else None
        if high < 0:
            names = tuple(name for name in op.attrs if name not in ("layout", "salt"))
            words = tuple(ast.Keyword(ast.Name(name, arg.span), arg, arg.span)
                          for name, arg in zip(names, call.args if call else (), strict=False))
            if call:
                stripped = ast.Call(call.func, (), (*words, *call.kwargs), call.span)
            return self.apply_op(op, list(piped), stripped, span, path)
        return self.apply_op(op, [*piped, *args], stripped, span, path)

    def _stage_definition(self, callee: Definition, body: Any, call: ast.Call | None,
                          piped: list[Any], path: str) -> Any:
        if callee.kind == "cell":
            return self.error("E902", f"`{callee.name}` is a cell; recurrent cells are not "
                              "supported yet", body.span)
        result = self.ctx.instantiate(self, callee, call, piped, path, body.span)
        self._row(path, callee.name, result, body.span, callee.library)
        return result

    def apply_layer(self, layer: Layer, piped: list[Any], path: str, span: Span) -> Any:
        """Apply a layer value; a shared one always lives at its own path."""
        path = layer.path if layer.shared else path
        if layer.call is None:
            return BROKEN
        origin = Evaluator(self.ctx, layer.instance, layer.scope, path, {})
        if isinstance(layer.call, ast.Flow):
            return self._apply_pipeline(origin, layer, piped, path)
        return origin._apply_stage(layer.call, piped, path)

    def _apply_pipeline(self, origin: Evaluator, layer: Layer, piped: list[Any], path: str) -> Any:
        flow = layer.call
        assert isinstance(flow, ast.Flow)
        single = flow.source is None and len(flow.stages) == 1 and flow.stages[0].label is None
        names = {id(flow.stages[0]): ""} if single else segments(flow)
        scope = Scope(layer.scope, {"_": Binding(_joined(piped), flow.span, "local")})
        return Evaluator(self.ctx, layer.instance, scope, path, names)._flow(flow)

    def _reshape_as(self, body: ast.As, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return self.error("E309", f"`as` reshapes a tensor, not {describe(value)}", body.span)
        shape = []
        for dim in body.dims:
            if isinstance(dim.value, ast.Dots):
                return self.error("E314", "`as` needs every axis named", dim.span)
            size = self.eval(dim.value)
            if size is BROKEN:
                return BROKEN
            if isinstance(size, bool) or not isinstance(size, (int, Expression)):
                return self.error("E317", f"a size must be a whole number, not {describe(size)}",
                                  dim.span)
            shape.append(size)
        return self.ctx.apply(REGISTRY["reshape"], [value], {"shape": tuple(shape)}, body.span,
                              self.instance)

    def _repeat(self, body: ast.Repeat | ast.For, value: Any, path: str) -> Any:
        rounds = self._rounds(body)
        if rounds is BROKEN:
            return BROKEN
        flow = body.body
        single = len(flow.stages) == 1 and flow.stages[0].label is None and \
            not isinstance(flow.source, ast.Flow)
        names = {id(flow.stages[0]): ""} if single else segments(flow)
        shared = isinstance(body, ast.Repeat) and body.shared
        for index, bound in enumerate(rounds):
            self.ctx.rounds += 1
            if self.ctx.rounds > MAX_ROUNDS:
                return self.error("E901", f"the repeats of the model have more than {MAX_ROUNDS:,} "
                                  "rounds together", body.span, help="make repeats smaller")
            scope = Scope(self.scope, {"_": Binding(value, flow.span, "local"), **bound})
            inner = path if shared else f"{path}.{index}"
            value = Evaluator(self.ctx, self.instance, scope, inner, names)._flow(flow)
            if value is BROKEN:
                return BROKEN
        return value

    def _rounds(self, body: ast.Repeat | ast.For) -> Any:
        """The bindings of each round."""
        if isinstance(body, ast.Repeat):
            count = self.size(body.count)
            if count is BROKEN:
                return BROKEN
            if not isinstance(count, int):
                return self.error("E403", f"how often to repeat is not known when compiled: "
                                  f"{count}", body.count.span)
            if count > MAX_REPEATS:
                return self.error("E901", f"{count:,} repeats are more than {MAX_REPEATS:,}",
                                  body.count.span)
            return [{}] * count
        items = self.eval(body.iterable)
        if items is BROKEN:
            return BROKEN
        if not isinstance(items, (tuple, list, range)):
            return self.error("E404", f"`for` needs a list, not {describe(items)}",
                              body.iterable.span)
        rounds = []
        for item in items:
            values = item if len(body.targets) > 1 else (item,)
            if not isinstance(values, (tuple, list)) or len(values) != len(body.targets):
                return self.error("E407", f"{len(body.targets)} names for {describe(item)}",
                                  body.targets[0].span.to(body.targets[-1].span))
            rounds.append({t.id: Binding(v, t.span, "local")
                           for t, v in zip(body.targets, values, strict=True)})
        return rounds


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


def _first_clash(left: Tensor, right: Tensor) -> tuple[int, int] | None:
    """The axes of both operands whose sizes do not broadcast, counted from the left."""
    for offset in range(1, min(len(left.shape), len(right.shape)) + 1):
        a, b = left.shape[-offset], right.shape[-offset]
        if a != b and a != 1 and b != 1:
            return len(left.shape) - offset, len(right.shape) - offset
    return None


def _is_quotient(expr: Any) -> bool:
    return isinstance(expr, ast.Binary) and expr.op == "/"


def _negated(condition: ast.Expr) -> str:
    """The opposite of a condition, in words."""
    opposite = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
    if isinstance(condition, ast.Binary) and condition.op in opposite:
        return f"{condition.left.span.text} {opposite[condition.op]} {condition.right.span.text}"
    return f"not ({condition.span.text})"


def _mentions_hole(node: Any) -> bool:
    todo = [node]
    while todo:
        one = todo.pop()
        if isinstance(one, tuple):
            todo += one
        elif isinstance(one, ast.Name):
            if one.id == "_":
                return True
        elif ast.is_node(one) and not isinstance(one, (ast.Repeat, ast.For)):
            todo += ast.parts(one)
    return False


def _piped(value: Any) -> list[Any]:
    if isinstance(value, Result):
        return list(value.outputs.values())
    return list(value) if isinstance(value, tuple) else [value]


def _joined(piped: list[Any]) -> Any:
    return piped[0] if len(piped) == 1 else tuple(piped)


def _inputs(count: int) -> str:
    return f"{count} input{'' if count == 1 else 's'}"


_EVALUATE: dict[type, Callable[[Evaluator, Any], Any]] = {
    ast.Name: Evaluator._name, ast.Number: Evaluator._number, ast.String: Evaluator._number,
    ast.Bool: Evaluator._number, ast.ListLiteral: Evaluator._items, ast.Tuple: Evaluator._items,
    ast.Attribute: Evaluator._attribute, ast.Prev: Evaluator._prev,
    ast.Subscript: Evaluator._subscript, ast.Call: Evaluator._call, ast.Unary: Evaluator._unary,
    ast.Binary: Evaluator._binary, ast.Conditional: Evaluator._conditional,
    ast.Flow: Evaluator._flow,
}
