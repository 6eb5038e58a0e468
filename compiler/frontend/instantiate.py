"""Instances: a definition with its arguments and piped values becomes nodes of the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lamina.compiler.errors import Note, Span
from lamina.compiler.frontend import shapes
from lamina.compiler.frontend.arguments import bind_arguments
from lamina.compiler.frontend.cells import declare_memory, declare_state, run_scan
from lamina.compiler.frontend.context import MAX_DEPTH, Context, Instance
from lamina.compiler.frontend.evaluate import Evaluator
from lamina.compiler.frontend.library import did_you_mean
from lamina.compiler.frontend.naming import segments
from lamina.compiler.frontend.parameters import Body, declare_parameter, parameter_key
from lamina.compiler.frontend.values import (
    BROKEN,
    Binding,
    Definition,
    Layer,
    OpRef,
    Result,
    Scope,
    Tensor,
    describe,
    describe_static,
    is_static,
)
from lamina.compiler.ir.types import DTYPES, TensorType
from lamina.compiler.ops.define import REGISTRY
from lamina.compiler.syntax import ast


def instantiate(caller: Evaluator, definition: Definition, call: ast.Call | None,
                piped: list[Any], path: str, span: Span) -> Any:
    """One instance at `path`, fed with `piped`: its output, a Result, or BROKEN."""
    ctx = caller.ctx
    outer = caller.instance
    if _recursive(definition, outer) or outer.depth >= MAX_DEPTH:
        chain = _chain(definition, outer)
        return caller.error("E402", f"`{definition.name}` contains itself: {chain}", span,
                            help="a model has a fixed depth: use `repeat`")
    instance = Instance(definition, Scope(definition.scope), path, outer, span,
                        _segments(ctx, definition))
    place = ctx.place
    if definition.library and not outer.definition.library:
        ctx.place = span
    try:
        if not bind_arguments(caller, instance, call, span):
            return BROKEN
        return _run_body(ctx, instance, piped, span)
    finally:
        ctx.place = place


def _segments(ctx: Context, definition: Definition) -> dict[int, str]:
    node = definition.node
    if id(node) not in ctx.segments:
        ctx.segments[id(node)] = segments(node.body)
    return ctx.segments[id(node)]


def _recursive(definition: Definition, instance: Instance | None) -> bool:
    while instance is not None:
        if instance.definition.node is definition.node:
            return True
        instance = instance.parent
    return False


def _chain(definition: Definition, instance: Instance | None) -> str:
    names = [definition.name]
    while instance is not None:
        names.append(instance.definition.name)
        if instance.definition.node is definition.node:
            break
        instance = instance.parent
    return " -> ".join(reversed(names))


# --- bodies -------------------------------------------------------------------------------------


def _run_body(ctx: Context, instance: Instance, piped: list[Any], span: Span) -> Any:
    body = Body(ctx, instance, piped, span)
    ctx.built.add(instance.definition.node)
    if instance.parent is not None and not _right_count(body):
        return BROKEN
    # Ties come first: they say where a parameter lives before it is made.
    ordered = sorted(instance.definition.node.body, key=lambda s: not isinstance(s, ast.Tie))
    for statement in ordered:
        _STATEMENTS[type(statement)](body, statement)
        if body.failed:
            return BROKEN
    if not body.outputs:
        if not body.broken:
            body.ev.error("E412", f"`{instance.definition.name}` has no output",
                          instance.definition.node.name.span,
                          help="write `output y = ...`")
        return BROKEN
    values = list(body.outputs.values())
    if any(value is BROKEN for value in values):
        return BROKEN
    return values[0] if len(values) == 1 and instance.parent is not None else Result(body.outputs)


def _right_count(body: Body) -> bool:
    given, needed = len(body.piped), len(body.inputs)
    optional = sum(s.value is not None for s in body.inputs)
    if needed - optional <= given <= needed:
        return True
    name = body.instance.definition.name
    listed = ", ".join(s.name.id for s in body.inputs)
    caller = body.instance.parent
    body.ctx.error("E401", f"`{name}` takes {needed} input{'' if needed == 1 else 's'} ({listed}), "
                   f"{given} piped", body.span, caller,
                   notes=[Note("defined here", body.instance.definition.node.name.span)],
                   help=f"write `({listed}) -> {name}`" if needed > 1 else
                   f"join the values first, as in `-> concat(axis=1) -> {name}`")
    return False


def _input(body: Body, statement: ast.Input) -> None:
    name = statement.name
    if body.instance.parent is None:
        value = _model_input(body, statement)
    elif body.piped:
        value = body.piped.pop(0)
        if not isinstance(value, Tensor):
            value = body.ctx.error("E309", f"`{body.instance.definition.name}` takes tensors, not "
                                   f"{describe(value)}", body.span, body.instance.parent)
        elif isinstance(statement.annotation, ast.TensorType):
            definition = body.instance.definition
            what = f"the input of `{definition.name}`" if definition.library else f"`{name.id}`"
            value = shapes.match(body.ev, statement.annotation, value, what, body.span,
                                 called=body.span)
    else:
        value = body.ev.eval(statement.value)
    if value is BROKEN and body.instance.parent is not None:
        body.failed = True  # its symbols are not known: what follows means nothing
    elif value is BROKEN and isinstance(statement.annotation, ast.TensorType):
        shapes.silence(body.ev, statement.annotation)
    _assign_name(body, name, value, "input")


def _model_input(body: Body, statement: ast.Input) -> Any:
    annotation = statement.annotation
    if not isinstance(annotation, ast.TensorType):
        return body.ev.error("E314", f"the input `{statement.name.id}` of a model needs a shape",
                             statement.span, help="write `input image: f32[B, 3, 224, 224]`")
    dtype = annotation.dtype or "f32"
    if dtype not in DTYPES:
        return body.ev.unknown_dtype(annotation)
    multiples = shapes.divisors(body.instance.definition.node.body)
    shape, origins = shapes.declared_shape(body.ev, annotation, multiples)
    if shape is BROKEN:
        return BROKEN
    with body.ctx.at(statement.span, body.instance):
        value = body.ctx.builder.emit(REGISTRY["input"], (), {"name": statement.name.id,
                                                              "shape": shape, "dtype": dtype})
    type = TensorType(shape, dtype)
    if not body.ctx.declare_lengths(type, annotation.span, body.instance):
        return BROKEN
    return Tensor(value, type, origins)


def _shared(body: Body, statement: ast.Shared) -> None:
    name = statement.name
    path = parameter_key(body, name.id)
    layer = Layer(statement.value, Scope(body.instance.scope), body.instance, path, True,
                  statement.span)
    _assign_name(body, name, layer, "local")


def _tie(body: Body, statement: ast.Tie) -> None:
    left, right = (parameter_key(body, ".".join(side.parts))
                   for side in (statement.left, statement.right))
    known = body.ctx.ties.get(left)
    if known is not None:
        body.ev.error("E302", f"`{left}` is tied twice", statement.left.span,
                      notes=[Note("first tied here", known[1])])
    elif body.ctx.tied(right) == left:
        body.ev.error("E414", f"`tie`: `{left}` and `{right}` are tied in a circle",
                      statement.span, help="leave this tie out")
    else:
        body.ctx.ties[left] = (right, statement.span)


def _assert(body: Body, statement: ast.Assert) -> None:
    value = body.ev.ctx.quiet_truth(body.ev, statement.condition)
    if value is not False:
        return
    text = statement.message.value if statement.message else "the assertion does not hold"
    notes = _facts(body.ev, statement.condition)
    body.failed = True
    body.ctx.error("E413", text, statement.condition.span, body.instance, notes=notes)


def _facts(ev: Evaluator, expr: Any) -> list[Note]:
    """What the names in a condition stand for."""
    found, todo, seen = [], [expr], set()
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Name) and node.id not in seen:
            seen.add(node.id)
            found += _fact(ev.scope, node.id)
        elif ast.is_node(node):
            todo += ast.parts(node)
        elif isinstance(node, tuple):
            todo += node
    return sorted(found, key=lambda note: note.text)


def _fact(scope: Scope, name: str) -> list[Note]:
    binding = scope.find(name)
    if binding is None or binding.span is None or not is_static(binding.value):
        return []
    given = binding.kind == "argument" and binding.expression is not None
    text = binding.expression.span.text if given and binding.expression else ""
    value = describe_static(binding.value)
    steps = f" = {text}" if text and text != value else ""
    if value == name:
        return []
    return [Note(f"`{name}`{steps} = {value}",
                 binding.expression.span if given and binding.expression else binding.span)]


def _assign(body: Body, statement: ast.Assign) -> None:
    value = body.ev.eval(statement.value)
    name, *others = statement.targets
    if others:
        _unpack(body, statement, value)
        return
    if isinstance(statement.annotation, ast.TensorType):
        value = _annotated(body, statement.annotation, value, f"`{name.id}`", statement.value.span)
    if name.id in body.buffers:
        _update(body, name, value)
        return
    _assign_name(body, name, value, "local", statement.value)


def _annotated(body: Body, annotation: ast.Type | None, value: Any, what: str, span: Span) -> Any:
    if value is BROKEN or not isinstance(annotation, ast.TensorType):
        return value
    if not isinstance(value, Tensor):
        return body.ev.error("E309", f"{what} is {describe(value)}, its annotation says a tensor",
                             span)
    return shapes.match(body.ev, annotation, value, what, span)


def _unpack(body: Body, statement: ast.Assign, value: Any) -> None:
    values = list(value.outputs.values()) if isinstance(value, Result) else value
    count = len(statement.targets)
    if value is not BROKEN and (not isinstance(values, (tuple, list)) or len(values) != count):
        got = f"{len(values)} values" if isinstance(values, (tuple, list)) else describe(value)
        value = body.ev.error("E407", f"{count} names on the left, {got} on the right",
                              statement.targets[0].span.to(statement.targets[-1].span))
    for index, name in enumerate(statement.targets):
        _assign_name(body, name, BROKEN if value is BROKEN else values[index], "local")


def _update(body: Body, name: ast.Name, value: Any) -> None:
    """An assignment to a buffer is its new value, kept after a training step."""
    key, old = body.buffers[name.id]
    if body.ctx.step is not None:
        value = body.ctx.error("E417", "a cell cannot have running statistics, as batchnorm has",
                               name.span, body.instance,
                               help="use layernorm or groupnorm in a cell")
    elif isinstance(value, Tensor) and isinstance(old, Tensor):
        if value.type != old.type:
            body.ev.error("E311", f"`{name.id}` is {old.type}, its new value {value.type}",
                          name.span)
        elif body.ctx.training:
            body.ctx.updates[key] = value
    body.instance.scope.names[name.id] = Binding(value, name.span, "local")


def _assign_name(body: Body, name: ast.Name, value: Any, kind: str,
                 expression: ast.Expr | None = None) -> None:
    """Bind a name once; a second binding is an error."""
    known = body.instance.scope.names.get(name.id)
    if known is not None and known.kind != "dim" and known.span is not None:
        body.ev.error("E302", f"`{name.id}` is already defined", name.span,
                      notes=[Note("first defined here", known.span)],
                      help="choose another name: names are bound once")
        return
    if value is BROKEN:
        body.broken = True
    body.instance.scope.names[name.id] = Binding(value, name.span, kind, expression,
                                                 body.instance.scope)


def _output(body: Body, statement: ast.Output) -> None:
    for item in statement.items:
        value = body.ev.eval(item.value if item.value is not None else item.name)
        value = _annotated(body, item.annotation, value, f"`{item.name.id}`",
                           (item.value or item.name).span)
        if value is not BROKEN and not isinstance(value, Tensor):
            value = body.ev.error("E309", f"the output `{item.name.id}` is {describe(value)}, "
                                  "not a tensor", (item.value or item.name).span,
                                  help=_output_help(value))
        if value is BROKEN:
            body.broken = True
        if item.name.id in body.outputs:
            body.ev.error("E302", f"the output `{item.name.id}` is given twice", item.name.span)
        body.outputs[item.name.id] = value
        if item.value is not None:
            _assign_name(body, item.name, value, "output", item.value)


def _output_help(value: Any) -> str | None:
    if isinstance(value, (Layer, Definition, OpRef)):
        return "feed a layer with `->`, as in `x -> linear(10)`"
    if isinstance(value, Result):
        names = list(value.outputs)
        return f"name them, as in `{', '.join(names)} = ...`, or take one with `.{names[0]}`"
    return None


_STATEMENTS: dict[type, Callable[[Body, Any], None]] = {
    ast.Input: _input, ast.Param: declare_parameter, ast.Buffer: declare_parameter,
    ast.State: declare_state, ast.Memory: declare_memory, ast.Shared: _shared, ast.Tie: _tie,
    ast.Assert: _assert, ast.Assign: _assign, ast.Output: _output,
}


def build_model(ctx: Context, definition: Definition,
                call: ast.Call | None) -> tuple[Any, Instance]:
    """The model itself: its outputs as a Result (or BROKEN), and its instance."""
    ctx.instantiate, ctx.scan = instantiate, run_scan
    span = definition.node.name.span if call is None else call.span
    instance = Instance(definition, Scope(definition.scope), "", None, span,
                        _segments(ctx, definition))
    outside = Evaluator(ctx, instance, definition.scope)
    if not bind_arguments(outside, instance, call, span):
        return BROKEN, instance
    result = _run_body(ctx, instance, [], span)
    if result is not BROKEN:
        _check_ties(ctx, instance)
    return result, instance


def _check_ties(ctx: Context, instance: Instance) -> None:
    """Both sides of a tie must be parameters that layers asked for."""
    for left, (right, place) in ctx.ties.items():
        for key in (left, right):
            if key not in ctx.requested:
                known = ctx.requested - {left, right}
                ctx.error("E414", f"`tie`: no parameter is named `{key}`", place, instance,
                          help=did_you_mean(key, known) or
                          f"parameters: {', '.join(sorted(known)[:8])}")
