"""From a module's model to a Graph: the entry of the front end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from lamina.compiler.errors import CompileError, Diagnostic, Sink, Source, Span
from lamina.compiler.frontend import shapes
from lamina.compiler.frontend.context import Context, Instance
from lamina.compiler.frontend.decoding import Decoder
from lamina.compiler.frontend.evaluate import Evaluator
from lamina.compiler.frontend.instantiate import build_model
from lamina.compiler.frontend.library import Module, did_you_mean
from lamina.compiler.frontend.values import (
    BROKEN,
    Binding,
    Definition,
    Result,
    Scope,
    Tensor,
    describe,
)
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.types import DTYPES, TensorType
from lamina.compiler.ops.define import REGISTRY
from lamina.compiler.syntax import ast
from lamina.compiler.syntax.parse import parse

LABELLED = ("cross_entropy", "accuracy", "top_k_accuracy")
LOSS, METRIC, UPDATE = "loss", "metric:", "update:"


@dataclass(frozen=True, slots=True)
class Objective:
    """What is computed beside a model's outputs: a loss, metrics, and the targets they need.

    A target without an annotation gets its type from how the loss uses it.
    """

    loss: Any = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    targets: Mapping[str, ast.Target | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Build:
    """A built model: its graph and the names of the model's own outputs.

    `chooses` says whether a scan chooses tokens.
    """

    graph: Graph
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    decoder: Decoder | None = None  # where it was built to choose its tokens: what runs before
    chooses: bool = False


def find_model(module: Module, name: str | None) -> Definition:
    """The model of this name, or the only one. Raises CompileError."""
    models = module.models
    if name is None:
        if not models:
            raise CompileError(Diagnostic("E415", "this file defines no model", _start(module),
                                          help="write `model Name { ... }`"))
        return next(iter(models.values()))
    if name not in models:
        raise CompileError(Diagnostic(
            "E415", f"no model is named `{name}`", _start(module),
            help=did_you_mean(name, models) or f"models here: {', '.join(models) or 'none'}"))
    return models[name]


def _start(module: Module) -> Span:
    return Span(module.file.source, 0, 0)


def settings_call(name: str, settings: Mapping[str, Any]) -> ast.Call | None:
    """Settings given from outside (a command line, Python) as the call they stand for."""
    if not settings:
        return None
    words = ", ".join(f"{key}={literal(value)}" for key, value in settings.items())
    file = parse(Source("<settings>", f"model Given = {name}({words})"))
    alias = file.declarations[0]
    assert isinstance(alias, ast.Alias)
    return alias.target


def literal(value: Any) -> str:
    """A Python or NumPy value in the language. Raises TypeError for what it cannot say."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # a NumPy scalar or array
        value = value.tolist()
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(literal(item) for item in value)}]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if not isinstance(value, (int, float)):
        raise TypeError(f"a setting is a number, a truth value, a text, None or a list of them, "
                        f"not {type(value).__name__}")
    if not isfinite(value):
        raise TypeError(f"a setting must be finite, not {value}")
    return repr(value)


def build(module: Module, definition: Definition, call: ast.Call | None = None, *,
          training: bool = False, sizes: Mapping[str, int] | None = None,
          objective: Objective | None = None, built: set[Any] | None = None,
          decoding: bool = False) -> Build:
    """Build a model into a Graph. Raises CompileError with every diagnostic found.

    `sizes` gives symbols a number, `training` chooses what dropout and batch-norm do. The nodes of
    the definitions that are instantiated are added to `built`, also where the build fails.
    `decoding` divides the scan that uses `choose`: the graph is what comes after its last step.
    """
    sink = Sink()
    for diagnostic in module.sink.diagnostics:
        sink.add(diagnostic)
    ctx = Context(definition.name, training, dict(sizes or {}), sink)
    ctx.decoding = decoding
    if built is not None:
        ctx.built = built
    bind_constants(ctx, module)
    result, instance = build_model(ctx, definition, call)
    outputs = dict(result.outputs) if isinstance(result, Result) else {}
    inputs = tuple(s.name.id for s in definition.node.body if isinstance(s, ast.Input))
    if objective is not None and result is not BROKEN:
        outputs |= _objective(ctx, module, instance, outputs, objective)
    sink.raise_if_any()
    m = ctx.m
    values = [(name, m.fill(ctx.var(tensor), range(len(tensor.shape)), 0.0).value)
              for name, tensor in outputs.items()]
    values += [(UPDATE + key, tensor.value) for key, tensor in ctx.updates.items()]
    live = ctx.builder.live([value for _, value in values])
    rows = [row if row.result.node in live else ctx.spare.get(number, row)
            for number, row in enumerate(ctx.rows)]
    graph = ctx.builder.finish(values, rows, keep_sources=ctx.decoder is None)
    own = tuple(result.outputs) if isinstance(result, Result) else ()
    return Build(graph, own, inputs, tuple(objective.targets) if objective else (),
                 ctx.decoder, ctx.choosing)


def bind_constants(ctx: Context, module: Module) -> None:
    """Evaluate the constants of a file, used or not."""
    body = ast.Block(ast.Name(module.file.source.name, module.file.span), (), (), module.file.span)
    instance = Instance(Definition("block", body, module.scope), module.scope, "", None)
    for const in module.constants:
        Evaluator(ctx, instance, module.scope).eval(const.name)


# --- losses and metrics -------------------------------------------------------------------------


def _objective(ctx: Context, module: Module, instance: Instance, outputs: Mapping[str, Any],
               objective: Objective) -> dict[str, Tensor]:
    scope = Scope(module.scope)
    for name, binding in instance.scope.names.items():
        if binding.kind in ("dim", "input"):
            scope.names[name] = binding
    for name, tensor in outputs.items():
        scope.names[name] = Binding(tensor, None, "output")
    ev = Evaluator(ctx, Instance(instance.definition, scope, "", None), scope)
    for name, target in objective.targets.items():
        _target(ev, name, target)
    expressions = {} if objective.loss is None else {LOSS: objective.loss}
    expressions |= {METRIC + name: expr for name, expr in objective.metrics.items()}
    found = {}
    for name, expr in expressions.items():
        _infer_targets(ev, expr)
        value = ev.eval(expr)
        if value is BROKEN:
            continue
        if not isinstance(value, Tensor) or value.shape != ():
            what = f"the metric `{name.removeprefix(METRIC)}`" if name != LOSS else "the loss"
            ev.error("E501", f"{what} must be a single number, this is {describe(value)}",
                     expr.span, help="take the `mean` or `sum` of it")
            continue
        found[name] = value
    return found


def _target(ev: Evaluator, name: str, target: ast.Target | None) -> None:
    if target is None:
        return
    if not isinstance(target.annotation, ast.TensorType):
        ev.error("E507", f"the target `{name}` needs a shape", target.span,
                 help=f"write `target {name}: i32[B]`")
        ev.scope.names[name] = Binding(BROKEN, target.name.span, "input")
        return
    known = ev.scope.names.get(name)
    if known is not None and known.kind in ("input", "output"):
        ev.error("E507", f"`{name}` is an {known.kind} of the model, and cannot be a target",
                 target.name.span, help="choose another name")
        return
    dtype = target.annotation.dtype or "f32"
    if dtype not in DTYPES:
        ev.unknown_dtype(target.annotation)
        ev.scope.names[name] = Binding(BROKEN, target.name.span, "input")
        return
    shape, origins = shapes.declared_shape(ev, target.annotation, {})
    value: Any = BROKEN
    if shape is not BROKEN:
        type = TensorType(shape, dtype)
        value = _declare(ev, name, type, origins)
        if not ev.ctx.declare_lengths(type, target.annotation.span, ev.instance):
            value = BROKEN
    ev.scope.names[name] = Binding(value, target.name.span, "input")


def _declare(ev: Evaluator, name: str, type: TensorType, origins=()) -> Tensor:
    attrs = {"name": name, "shape": type.shape, "dtype": type.dtype}
    value = ev.ctx.builder.emit(REGISTRY["input"], (), attrs)
    return Tensor(value, type, origins)


def _infer_targets(ev: Evaluator, expr: Any) -> None:
    """An unknown second operand of a known loss is an input of the type that the loss wants."""
    if not (isinstance(expr, ast.Call) and isinstance(expr.func, ast.Name) and len(expr.args) == 2
            and isinstance(expr.args[1], ast.Name) and ev.scope.find(expr.args[1].id) is None):
        return
    if ev.scope.find(expr.func.id) is None:  # a misspelt loss: what it takes stays silent
        ev.scope.names[expr.args[1].id] = Binding(BROKEN, expr.args[1].span, "input")
        return
    first = ev.eval(expr.args[0])
    if not isinstance(first, Tensor):
        return
    name = expr.args[1].id
    type = first.type
    if expr.func.id in LABELLED:
        axis = next((ev.eval(word.value) for word in expr.kwargs if word.name.id == "axis"), 1)
        if not isinstance(axis, int) or not -type.rank <= axis < type.rank:
            return  # the operator says what is wrong
        axis %= type.rank
        type = TensorType((*first.shape[:axis], *first.shape[axis + 1:]), "i32")
    ev.scope.names[name] = Binding(_declare(ev, name, type), expr.args[1].span, "input")
