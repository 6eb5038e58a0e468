"""Cells run by `scan`: the step is built once, around entries, and cut out as a body.

A step's nodes are emitted like any others, with an `entry` in place of every state and of what a
step sees of a sequence. What depends on an entry is the body; all else that it reads (parameters,
memories) is the same at every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.compiler.errors import Note, Span
from lamina.compiler.frontend import shapes
from lamina.compiler.frontend.context import Context
from lamina.compiler.frontend.decoding import Ending, can_choose, divide
from lamina.compiler.frontend.parameters import Body, parameter_key
from lamina.compiler.frontend.steps import State, Step, dependents, entry, leaves
from lamina.compiler.frontend.values import (
    BROKEN,
    Binding,
    Layer,
    Result,
    Scanned,
    Scans,
    Scope,
    Tensor,
    describe,
)
from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Value
from lamina.compiler.ir.types import (
    DTYPES,
    Dim,
    Expression,
    TensorType,
    is_ragged,
    shape_text,
)
from lamina.compiler.ops.control import SCAN, make_body
from lamina.compiler.syntax import ast


def declare_state(body: Body, statement: ast.State) -> None:
    """A state: its value before the first step, and `prev.NAME`."""
    step, name = body.ctx.step, statement.name
    if step is None:
        return _outside(body, statement, "state")
    key = step.relative(parameter_key(body, name.id))
    given = step.given.get(key)
    if given is not None:
        step.used.add(key)
    initial = _given(body, statement, given) if given else _initial(body, statement)
    before: Any = BROKEN
    if initial is not BROKEN:
        with body.ctx.at(statement.span, body.instance):
            before = entry(body.ctx, initial.type, initial.origins)
        step.states.append(State(key, initial, before, body, statement))
    else:
        body.failed = True
    body.instance.before[name.id] = before
    return None


def declare_memory(body: Body, statement: ast.Memory) -> None:
    """A memory: a value from outside that every step sees."""
    step, name = body.ctx.step, statement.name
    if step is None:
        return _outside(body, statement, "memory")
    key = step.relative(parameter_key(body, name.id))
    given = step.given.get(key)
    if given is None:
        body.failed = True
        body.ctx.error("E417", f"the memory `{key}` has no value", body.span, body.instance.parent,
                       notes=[Note("declared here", statement.span)],
                       help=f"give it one: `scan ... with ({key} = value)`")
        return None
    step.used.add(key)
    value = _given(body, statement, given)
    if value is BROKEN:
        body.failed = True
    body.instance.scope.names[name.id] = Binding(value, name.span, "input")
    return None


def _outside(body: Body, statement: Any, what: str) -> None:
    body.failed = True
    body.ev.error("E417", f"a {what} belongs to a cell that `scan` runs", statement.span,
                  help="run the cell: `x -> scan Name(...) over T`")


def _given(body: Body, statement: ast.State | ast.Memory, given: tuple[Tensor, Span]) -> Any:
    """A value after `with`, checked against the annotation."""
    tensor, span = given
    if not isinstance(statement.annotation, ast.TensorType):
        return tensor
    return shapes.match(body.ev, statement.annotation, tensor, f"`{statement.name.id}`", span,
                        called=span)


def _initial(body: Body, statement: ast.State) -> Any:
    """The declared value before the first step, a number or a tensor, in the declared shape."""
    name, annotation = statement.name, statement.annotation
    if not isinstance(annotation, ast.TensorType):
        return body.ev.error("E314", f"the state `{name.id}` needs a shape", statement.span,
                             help=f"write `state {name.id}: [B, size] = 0`")
    if statement.value is None:
        return body.ev.error("E417", f"the state `{name.id}` has no value before the first step",
                             statement.span, help=f"write `state {name.id}: "
                             f"{annotation.span.text} = 0`, or give it with `with`")
    dtype = annotation.dtype or "f32"
    if dtype not in DTYPES:
        return body.ev.unknown_dtype(annotation)
    value = body.ev.eval(statement.value)
    sizes = tuple(body.ev.size(dim.value) for dim in annotation.dims)
    if value is BROKEN or any(size is BROKEN for size in sizes):
        return BROKEN
    if isinstance(value, Tensor):
        return shapes.match(body.ev, annotation, value, f"`{name.id}`", statement.value.span)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return body.ev.error("E309", f"the state `{name.id}` starts from a number or a tensor, not "
                             f"{describe(value)}", statement.value.span)
    if dtype in ("i32", "i64") and not isinstance(value, int):
        return body.ev.error("E313", f"the state `{name.id}` holds whole numbers, and starts from "
                             f"{value}", statement.value.span, help="start it from a whole number")
    m = body.ctx.m
    with body.ctx.at(statement.span, body.instance):
        start = m.broadcast_to(m.lift(value, dtype), shape=sizes).value
    return body.ctx.tensor(start)


# --- the scan -----------------------------------------------------------------------------------


def axis_of(tensor: Tensor, length: Dim) -> int | None:
    """The axis that a scan runs over: of several of this size the second, else the first."""
    found = [axis for axis, size in enumerate(tensor.shape) if size == length]
    return (1 if 1 in found else found[0]) if found else None


def run_scan(ev: Any, body: ast.Scan, piped: list[Any], path: str) -> Any:
    """The result of `scan Cell(...) over T`: what all steps hand out, and the final states."""
    home, cell, call = _cell_of(ev, body)
    length = ev.eval(body.dim)
    if cell is BROKEN or length is BROKEN:
        return BROKEN
    if getattr(cell, "kind", "") != "cell":
        return ev.error("E417", f"`scan` runs a cell; `{body.cell.func.span.text}` is "
                        f"{describe(cell)}", body.cell.span,
                        help="declare it with `cell` in place of `block`")
    if isinstance(length, bool) or not isinstance(length, (int, Expression)):
        return ev.error("E317", f"`over` takes a size, not {describe(length)}", body.dim.span)
    sequences = _sequences(ev, body, piped, length)
    given = _bindings(ev, body)
    if sequences is BROKEN or given is BROKEN:
        return BROKEN
    ctx = ev.ctx
    outer, ctx.step = ctx.step, Step(path, given)
    try:
        return _built(ev, body, (home, cell, call), sequences, length, ctx.step)
    finally:
        ctx.step = outer


def _cell_of(ev: Any, body: ast.Scan) -> tuple[Any, Any, ast.Call | None]:
    """The cell that a scan runs, its settings, and where these are evaluated.

    A name may stand for a cell with its settings, as `shared step = Cell(8)` does.
    """
    found = ev.eval(body.cell.func)
    if not isinstance(found, Layer):
        return ev, found, body.cell
    given = found.call
    if isinstance(given, ast.Flow) and given.source is None and len(given.stages) == 1:
        given = given.stages[0].body
    if not isinstance(given, ast.Call | ast.Name):
        return ev, found, body.cell
    if body.cell.args or body.cell.kwargs:
        name = body.cell.func.span.text
        ev.error("E405", f"`{name}` already has its settings", body.cell.span,
                 help="leave out the arguments")
        return ev, BROKEN, None
    home = ev.made(ev.ctx, found.instance, found.scope, found.path, {})
    call = given if isinstance(given, ast.Call) else None
    return home, home.eval(call.func if call else given), call


def _sequences(ev: Any, body: ast.Scan, piped: list[Any], length: Dim) -> Any:
    """Each piped tensor with the axis that the scan runs over."""
    found = []
    for value in piped:
        if not isinstance(value, Tensor):
            return ev.error("E309", f"`scan` runs over tensors, not {describe(value)}", body.span)
        axis = axis_of(value, length)
        if axis is None:
            return ev.error("E417", f"no axis of {shape_text(value.shape)} is `{body.dim.id}`"
                            + (f" = {length}" if str(length) != body.dim.id else ""),
                            body.dim.span, help="name the axis in an annotation, as in "
                            "`x: [B, T, D]`, and run over `T`")
        found.append((value, axis))
    return found


def _bindings(ev: Any, body: ast.Scan) -> Any:
    given: dict[str, tuple[Tensor, Span]] = {}
    for one in body.bindings:
        value = ev.eval(one.value)
        if value is BROKEN:
            return BROKEN
        if not isinstance(value, Tensor):
            return ev.error("E309", f"`{'.'.join(one.path.parts)}` takes a tensor, not "
                            f"{describe(value)}", one.value.span)
        given[".".join(one.path.parts)] = (value, one.value.span)
    return given


def _built(ev: Any, body: ast.Scan, ran: tuple[Any, Any, ast.Call | None],
           sequences: list[tuple[Tensor, int]], length: Dim, step: Step) -> Any:
    ctx, (home, cell, call) = ev.ctx, ran
    m, stacked, entries = ctx.m, [], []
    with ctx.builder.at(body.span, step.path):
        for tensor, axis in sequences:
            others = [a for a in range(len(tensor.shape)) if a != axis]
            stacked.append(m.transpose(ctx.var(tensor), perm=(axis, *others)).value)
            origins = tuple(tensor.origins[a] for a in others) if tensor.origins else ()
            shape = tuple(tensor.shape[a] for a in others)
            entries.append(entry(ctx, TensorType(shape, tensor.type.dtype), origins))
    result = ctx.instantiate(home, cell, call, list(entries), step.path, body.cell.span)
    if result is BROKEN or not _complete(ev, body, step):
        return BROKEN
    outputs = dict(result.outputs) if isinstance(result, Result) else {"": result}
    after = [_after(state) for state in step.states]
    ending = _ending(ev, body, cell, outputs, after, step)
    if ending is BROKEN or any(value is BROKEN for value in (*after, *outputs.values())):
        return BROKEN
    place = sequences[0][1] if sequences else 0
    if step.choices and not can_choose(ev, step, [one.value for one in entries]):
        return BROKEN
    if ctx.decoding and step.choices:
        with ctx.builder.at(body.span, step.path):
            found = divide(ev, step, list(zip([x for x, _ in sequences], entries, strict=True)),
                           after, outputs, ending, length, place)
        return found if found is BROKEN else _result(result, *found)
    if is_ragged(length):
        # Whether the step is before each example's end comes with the sequences.
        within = m.before_end(length)
        stacked.append(within.value)
        entries.append(entry(ctx, TensorType(within.shape[1:], within.dtype)))
        after = [_held(ev, state, value, entries[-1])
                 for state, value in zip(step.states, after, strict=True)]
        if any(value is BROKEN for value in after):
            return BROKEN
    marks = [state.entry.value for state in step.states] + [one.value for one in entries]
    results = [one.value for one in (*after, *outputs.values())]
    graph, captured = cut_out(ctx.builder, cell.name, marks, results)
    operands = [*(state.initial.value for state in step.states), *stacked, *captured]
    attrs = {"states": len(step.states), "sequences": len(stacked), "length": length,
             "backwards": body.reverse}
    with ctx.builder.at(body.span, step.path):
        node = ctx.builder.emit(SCAN, operands, attrs, graph)
        finals = {state.name: ctx.tensor(Value(node.node, k), state.initial.origins)
                  for k, state in enumerate(step.states)}
        handed = {name: _handed(ctx, Value(node.node, k), place)
                  for k, name in enumerate(outputs, start=len(step.states))}
    return _result(result, handed, finals)


def _result(result: Any, handed: dict[str, Tensor], finals: Mapping[str, Tensor]) -> Any:
    """What all steps hand out, with the states after the last one."""
    final = Result(_nested(finals))
    if isinstance(result, Result):
        return Scans(handed, final)
    only = handed[""]
    return Scanned(only.value, only.type, only.origins, final)


def _ending(ev: Any, body: ast.Scan, cell: Any, outputs: Mapping[str, Any], after: list[Any],
            step: Step) -> Any:
    """`until condition limit n`: the condition is over the cell's outputs and states."""
    limit = 256 if body.limit is None else ev.size(body.limit, "a limit")
    if limit is BROKEN:
        return BROKEN
    if not isinstance(limit, int) or limit < 1:
        return ev.error("E417", f"a limit is a number of steps, 1 or more, not {limit}",
                        body.limit.span, help="write `limit 100`")
    if body.until is None:
        return Ending(None, limit)
    scope = Scope(ev.scope)
    states = {state.name: value for state, value in zip(step.states, after, strict=True)}
    single = [item.name.id for statement in cell.node.body if isinstance(statement, ast.Output)
              for item in statement.items]
    named = {name or single[0]: value for name, value in outputs.items()}
    for name, value in {**states, **named}.items():
        scope.names[name] = Binding(value, None, "output")
    with ev.ctx.builder.at(body.until.span, step.path):
        condition = ev.inside(scope).eval(body.until)
    if condition is BROKEN:
        return BROKEN
    if not isinstance(condition, Tensor) or condition.type.dtype != "bool" or \
            len(condition.shape) != 1:
        return ev.error("E417", "`until` takes a condition for each example, a tensor bool[B], "
                        f"not {describe(condition)}", body.until.span,
                        help="compare what the cell gives, as in `until tok == EOS`")
    return Ending(condition, limit)


def _step_type(type: TensorType) -> TensorType:
    """What a step sees of a sequence."""
    return TensorType(type.shape[1:], type.dtype)


def _held(ev: Any, state: State, after: Any, within: Tensor) -> Any:
    """The state after a step; past an example's end it stays as it was."""
    if after is BROKEN:
        return BROKEN
    (size,) = within.shape
    places = [axis for axis, one in enumerate(after.shape) if one == size]
    if not places:
        return ev.error("E418", f"the state `{state.name}` is {shape_text(after.shape)}: without "
                        f"an axis {size} it cannot end where each example ends",
                        state.statement.span, help=f"give it the axis of the examples: `[{size}, "
                        "...]`")
    m = ev.ctx.m
    own = tuple(size if axis == places[0] else 1 for axis in range(len(after.shape)))
    counts = m.reshape(ev.ctx.var(within), shape=own)
    return ev.ctx.tensor(m.select(counts, ev.ctx.var(after), ev.ctx.var(state.entry)).value,
                         after.origins)


def _handed(ctx: Context, value: Value, axis: int) -> Tensor:
    """What all steps hand out, with the steps along the axis of what they read."""
    rank = ctx.builder.type(value).rank
    place = min(axis, rank - 1)
    perm = (*range(1, place + 1), 0, *range(place + 1, rank))
    return ctx.tensor(ctx.m.transpose(ctx.m.lift(value), perm=perm).value)


def _nested(finals: Mapping[str, Tensor]) -> dict[str, Any]:
    """States by name, those of cells within the cell as results of their own."""
    found: dict[str, Any] = {}
    for path, tensor in finals.items():
        name, _, rest = path.partition(".")
        if rest:
            inner = {k.partition(".")[2]: v for k, v in finals.items()
                     if k.startswith(f"{name}.")}
            found[name] = Result(_nested(inner))
        else:
            found[name] = tensor
    return found


def _complete(ev: Any, body: ast.Scan, step: Step) -> bool:
    """Whether every value after `with` is used."""
    for one in body.bindings:
        name = ".".join(one.path.parts)
        if name not in step.used:
            known = ", ".join(f"`{state.name}`" for state in step.states) or "none"
            ev.error("E417", f"the cell has no state and no memory `{name}`", one.path.span,
                     help=f"its states: {known}")
            return False
    return True


def _after(state: State) -> Any:
    """A state's value after the step."""
    name, body = state.statement.name, state.body
    binding = body.instance.scope.names.get(name.id)
    if binding is None:
        return body.ev.error("E417", f"the state `{name.id}` gets no new value", name.span,
                             help=f"write `{name.id} = ...` in the cell")
    value = binding.value
    if value is BROKEN:
        return BROKEN
    if not isinstance(value, Tensor) or value.type != state.initial.type:
        got = str(value.type) if isinstance(value, Tensor) else describe(value)
        return body.ev.error("E311", f"the state `{name.id}` is {state.initial.type} before a step "
                             f"and {got} after it", binding.span or name.span,
                             notes=[Note("declared here", state.statement.span)])
    return value


def cut_out(builder: Builder, name: str, entries: list[Value], results: list[Value]
            ) -> tuple[Graph, list[Value]]:
    """The body that computes `results` from `entries`, and what else it reads, in order.

    Its inputs are x0, x1 ...: the entries, then what it reads.
    """
    order = leaves(builder, results, dependents(builder, entries))
    return make_body(builder, name, [*entries, *order], results), order
