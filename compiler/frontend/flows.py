"""Flows: values piped through stages, layers applied, repeats unrolled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lamina.compiler.errors import Note, Span
from lamina.compiler.frontend.calls import Calls
from lamina.compiler.frontend.context import MAX_ROUNDS
from lamina.compiler.frontend.naming import callee_name, segments
from lamina.compiler.frontend.values import (
    BROKEN,
    Binding,
    Builtin,
    Definition,
    Layer,
    OpRef,
    Result,
    Scanned,
    Scans,
    Scope,
    Tensor,
    describe,
)
from lamina.compiler.ir.graph import Scope as Row
from lamina.compiler.ir.op import Op
from lamina.compiler.ir.types import Expression
from lamina.compiler.ops.define import HIDDEN, REGISTRY
from lamina.compiler.syntax import ast

MAX_REPEATS = 10_000


class Flows(Calls):
    """The part of the evaluator for flows, on top of calls. Abstract."""

    def _flow(self, flow: ast.Flow) -> Any:
        if flow.source is None:
            binding = self.scope.find("_")
            value = binding.value if binding else self.eval(ast.Name("_", flow.span))
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

    def run_stage(self, stage: ast.Stage, value: Any) -> Any:
        """Pipe a value through one stage."""
        body = stage.body
        path = self._child(self.names.get(id(stage), callee_name(body)))
        if isinstance(body, ast.As):
            result = self._reshape_as(body, value)
        elif isinstance(body, (ast.Repeat, ast.For)):
            result = self._repeat(body, value, path)
        elif isinstance(body, ast.Scan):
            if self._claimed(stage, path):
                return BROKEN
            path = self._scan_path(body, path)
            result = self.ctx.scan(self, body, _piped(value), path)
        elif self._claimed(stage, path):
            return BROKEN
        else:
            result = self._apply_stage(body, _piped(value), path)
        if not isinstance(body, (ast.Name, ast.Call, ast.Attribute, ast.As)):
            self._row(path, type(body).__name__.lower(), result, body.span,
                      isinstance(body, ast.Scan))
        return result

    def _scan_path(self, body: ast.Scan, path: str) -> str:
        """Where the parameters of a scan's cell live: a shared cell has a path of its own."""
        binding = self.scope.find(body.cell.func.id) if isinstance(body.cell.func, ast.Name) \
            else None
        layer = binding.value if binding is not None else None
        return layer.path if isinstance(layer, Layer) and layer.shared else path

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
        final = result.final if isinstance(result, Scanned | Scans) else None
        result = _first(result)
        if isinstance(result, Tensor) and not self.instance.definition.library:
            self.ctx.rows.append(Row(path, callee, result.value, span, leaf))
            last = _first(final)
            if isinstance(last, Tensor):  # of a scan perhaps nothing else is read
                self.ctx.spare[len(self.ctx.rows) - 1] = replace(self.ctx.rows[-1],
                                                                 result=last.value)

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
            names = tuple(name for name in op.attrs if name not in HIDDEN)
            words = tuple(ast.Keyword(ast.Name(name, arg.span), arg, arg.span)
                          for name, arg in zip(names, call.args if call else (), strict=False))
            if call:
                stripped = ast.Call(call.func, (), (*words, *call.kwargs), call.span)
            return self.apply_op(op, list(piped), stripped, span, path)
        return self.apply_op(op, [*piped, *args], stripped, span, path)

    def _stage_definition(self, callee: Definition, body: Any, call: ast.Call | None,
                          piped: list[Any], path: str) -> Any:
        if callee.kind == "cell" and self.ctx.step is None:
            return self.error("E417", f"`{callee.name}` is a cell: it runs over a sequence",
                              body.span,
                              help=f"write `x -> scan {body.span.text} over T`, T an axis of x")
        result = self.ctx.instantiate(self, callee, call, piped, path, body.span)
        self._row(path, callee.name, result, body.span, callee.library)
        return result

    def apply_layer(self, layer: Layer, piped: list[Any], path: str, span: Span) -> Any:
        """Apply a layer value; a shared one always lives at its own path."""
        path = layer.path if layer.shared else path
        if layer.call is None:
            return BROKEN
        origin = self.made(self.ctx, layer.instance, layer.scope, path, {})
        if isinstance(layer.call, ast.Flow):
            return self._apply_pipeline(origin, layer, piped, path)
        return origin._apply_stage(layer.call, piped, path)

    def _apply_pipeline(self, origin: Flows, layer: Layer, piped: list[Any], path: str) -> Any:
        flow = layer.call
        assert isinstance(flow, ast.Flow)
        single = flow.source is None and len(flow.stages) == 1 and flow.stages[0].label is None
        names = {id(flow.stages[0]): ""} if single else segments(flow)
        scope = Scope(layer.scope, {"_": Binding(_joined(piped), flow.span, "local")})
        return self.made(self.ctx, layer.instance, scope, path, names)._flow(flow)

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
            value = self.made(self.ctx, self.instance, scope, inner, names)._flow(flow)
            if value is BROKEN:
                return BROKEN
        return value

    def _rounds(self, body: ast.Repeat | ast.For) -> Any:
        """The bindings of each round."""
        if isinstance(body, ast.Repeat):
            count = self.size(body.count, "a count")
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
                spans = [target.span for target in body.targets]
                return self.error("E407", f"{len(spans)} names for {describe(item)}",
                                  spans[0].to(spans[-1]))
            rounds.append({t.id: Binding(v, t.span, "local")
                           for t, v in zip(body.targets, values, strict=True)})
        return rounds


def _first(value: Any) -> Any:
    """A tensor, or the first of several outputs."""
    while isinstance(value, Result):
        value = next(iter(value.outputs.values()), None)
    return value


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
