"""Parameters and buffers of an instance, and how they start."""

from __future__ import annotations

from math import isfinite
from typing import Any

from lamina.compiler.errors import Span
from lamina.compiler.frontend.context import Context, Instance
from lamina.compiler.frontend.evaluate import Evaluator
from lamina.compiler.frontend.library import did_you_mean
from lamina.compiler.frontend.values import (
    BROKEN,
    Binding,
    Initial,
    describe,
)
from lamina.compiler.ir.op import OpError
from lamina.compiler.ir.types import Expression, symbols_of
from lamina.compiler.ops.initial import INITIALIZERS, check_initializer, check_shape
from lamina.compiler.syntax import ast


class Body:
    """One run of a definition's statements."""

    def __init__(self, ctx: Context, instance: Instance, piped: list[Any], span: Span):
        self.ctx, self.instance, self.span = ctx, instance, span
        self.ev = Evaluator(ctx, instance, instance.scope)
        self.piped = list(piped)
        self.inputs = [s for s in instance.definition.node.body if isinstance(s, ast.Input)]
        self.outputs: dict[str, Any] = {}
        self.buffers: dict[str, tuple[str, Any]] = {}
        self.broken = False  # whether a value could not be made
        self.failed = False  # whether an assertion does not hold: what follows means nothing


def declare_parameter(body: Body, statement: ast.Param | ast.Buffer) -> None:
    """Make a parameter or buffer and bind its name; None where its initial value is none."""
    name = statement.name
    initial = _initial(body, statement.value)
    if initial is None:
        body.instance.scope.names[name.id] = Binding(None, name.span, "param")
        return
    tensor: Any = BROKEN
    if initial is not BROKEN:
        tensor = _make_param(body, statement, initial)
    trainable = isinstance(statement, ast.Param)
    if not trainable:
        body.buffers[name.id] = (parameter_key(body, name.id), tensor)
    # A parameter may take the name of the setting that switches it.
    body.instance.scope.names[name.id] = Binding(tensor, name.span, "param")


def parameter_key(body: Body, name: str) -> str:
    """The checkpoint key of a parameter of this instance."""
    path = body.instance.path
    return f"{path}.{name}" if path else name


def _initial(body: Body, expr: Any) -> Any:
    """The initialiser that an expression stands for; None for no parameter."""
    if expr is None:
        return Initial("zeros")
    if isinstance(expr, ast.Conditional):
        condition = body.ev.truth(expr.condition)
        if condition is BROKEN:
            return BROKEN
        return _initial(body, expr.then if condition else expr.otherwise)
    if isinstance(expr, ast.Call) and isinstance(expr.func, ast.Name):
        return _initializer_call(body, expr, expr.func)
    value = body.ev.eval(expr)
    if value is None or value is BROKEN or isinstance(value, Initial):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Initial("constant", (float(value),))
    return body.ev.error("E320", f"a parameter starts from a number or an initialiser, not "
                         f"{describe(value)}", expr.span,
                         help=f"initialisers: {', '.join(INITIALIZERS)}")


def _initializer_call(body: Body, expr: ast.Call, name: ast.Name) -> Any:
    if name.id not in INITIALIZERS:
        return body.ev.error("E320", f"no initialiser is named `{name.id}`", name.span,
                             help=did_you_mean(name.id, INITIALIZERS) or
                             f"initialisers: {', '.join(INITIALIZERS)}")
    args = [body.ev.eval(arg) for arg in expr.args]
    defaults = _defaults(name.id)
    args += list(defaults.values())[len(args):]
    for word in expr.kwargs:
        if word.name.id not in defaults:
            return body.ev.error("E320", f"`{name.id}` has no setting `{word.name.id}`",
                                 word.name.span, help=did_you_mean(word.name.id, defaults) or
                                 f"its settings: {', '.join(defaults) or 'none'}")
        args[list(defaults).index(word.name.id)] = body.ev.eval(word.value)
    if any(arg is BROKEN for arg in args):
        return BROKEN
    try:
        check_initializer(name.id, args)
    except OpError as error:
        return body.ev.error("E320", error.message, expr.span, help=error.help)
    sizes = [arg for arg in args if isinstance(arg, Expression)]
    if sizes:
        return body.ev.error("E321", f"the initial value depends on `{sizes[0]}`, which is not "
                             "known when compiled", expr.span, help=_numbers_for(sizes))
    if name.id == "bitmap":
        return Initial(name.id, (tuple(args[0]),))
    wrong = next((arg for arg in args if arg is not None and not _finite(arg)), None)
    if wrong is not None:
        return body.ev.error("E320", f"`{name.id}` takes numbers, not {describe(wrong)}", expr.span)
    return Initial(name.id, tuple(args))


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _defaults(name: str) -> dict[str, Any]:
    """An initialiser's settings and their defaults."""
    function = INITIALIZERS[name]
    code, values = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[2:code.co_argcount]
    padded = (None,) * (len(names) - len(values)) + tuple(values)
    return dict(zip(names, padded, strict=True))


def _make_param(body: Body, statement: ast.Param | ast.Buffer, initial: Initial) -> Any:
    annotation = statement.annotation
    if not isinstance(annotation, ast.TensorType):
        return body.ev.error("E314", f"`{statement.name.id}` needs a shape", statement.span,
                             help=f"write `param {statement.name.id}: [in, out] = glorot()`")
    sizes = []
    for dim in annotation.dims:
        if isinstance(dim.value, ast.Dots):
            return body.ev.error("E314", "a parameter cannot have `...` axes", dim.span)
        sizes.append(body.ev.size(dim.value))
    if any(size is BROKEN for size in sizes):
        return BROKEN
    unknown = [size for size in sizes if isinstance(size, Expression)]
    if unknown:
        key = parameter_key(body, statement.name.id)
        return body.ev.error("E321", f"the shape of parameter `{key}` depends on "
                             f"`{unknown[0]}`, which is not known when compiled", annotation.span,
                             help=_numbers_for(unknown) + _pooled_instead(body))
    try:
        check_shape(initial.name, initial.args, tuple(sizes))
    except OpError as error:
        place = statement.value or statement
        return body.ev.error(error.code, f"`{initial.name}`: {error.message}", place.span,
                             help=error.help)
    return body.ctx.parameter(parameter_key(body, statement.name.id), tuple(sizes),
                              annotation.dtype or "f32", initial,
                              isinstance(statement, ast.Param), statement.span, body.instance)


def _numbers_for(sizes: list[Expression]) -> str:
    """What to write for the sizes that the model's input leaves open."""
    names = sorted({found.name for size in sizes for found in symbols_of(size)})
    many = "numbers" if len(names) > 1 else "a number"
    return f"write {many} for {' and '.join(names)} in the model's `input` line"


def _pooled_instead(body: Body) -> str:
    """The other way out for a linear layer over flattened images: one number a channel."""
    if not (body.instance.definition.library and body.instance.definition.name == "linear"):
        return ""
    tensor = body.instance.scope.names["x"].value
    node = body.ctx.builder.node(tensor.value)
    if node.op.name not in ("flatten", "reshape"):
        return ""
    image = body.ctx.builder.type(node.inputs[0]).shape
    if len(image) != 4 or not isinstance(image[1], int):
        return ""
    return (", or put `global_avgpool` before `linear` in place of flattening: it takes images of "
            "any size")
