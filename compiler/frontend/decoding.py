"""Decoding: a scan that chooses its tokens, divided into parts that a loop outside runs.

Where the gold tokens are not known, a step cannot be part of one graph: the policy (greedy,
sampling, beam) chooses between what gives the logits and what needs the token. So a model with
`choose` becomes four graphs: what comes before the first step, the step up to its logits, the rest
of the step that reads the chosen token (where there is any), and what comes after the last step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamina.compiler.frontend.steps import Choice, Step, dependents, leaves
from lamina.compiler.frontend.values import Tensor
from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Value
from lamina.compiler.ir.types import Dim, TensorType
from lamina.compiler.ops.control import make_body
from lamina.compiler.ops.define import REGISTRY
from lamina.compiler.ops.ragged import LENGTHS

CHOSEN = "chosen"  # in place of a graph's output: the chosen token
DECODED, FINAL = "decoded:", "final:"  # inputs of what comes after the last step


@dataclass(frozen=True)
class Ending:
    """When a decoding scan ends: for each example by a condition, in any case by a limit."""

    condition: Tensor | None
    limit: int


@dataclass(frozen=True)
class Decoder:
    """The parts of a decoding scan.

    `first` computes s0, s1 ... (states before the first step) and f0, f1 ... (what every step
    reads) from the model's inputs. `step` takes x0, x1 ...: the states, then what every step
    reads; its y0 are the logits [B, tokens]. `rest` takes the chosen tokens as x0 and outputs of
    the step, those named in `read`, as x1 .... `states`, `outputs` and `stop` name where values
    come from: CHOSEN, or an output of `step` (y...) or `rest` (z...). `axes` is where an output
    has its steps, `repeated` the axis of the examples of every f (-1: none). `source` is the input
    that holds the gold tokens, `length` the size of its steps and `batch` that of the examples,
    where it is open.
    """

    first: Graph
    step: Graph
    rest: Graph | None
    read: tuple[str, ...]
    states: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    axes: tuple[int, ...]
    stop: str
    repeated: tuple[int, ...]
    limit: int
    source: str
    length: str
    batch: str


def divide(ev: Any, step: Step, sequences: Sequence[tuple[Tensor, Tensor]], after: list[Tensor],
           outputs: Mapping[str, Tensor], ending: Ending, length: Dim, place: int) -> Any:
    """Divide a scan: ctx.decoder takes the parts; gives what stands for its results afterwards.

    `sequences` are what the scan runs over, each with what a step sees of it.
    """
    ctx, choice = ev.ctx, step.choices[0]
    builder, gold = ctx.builder, choice.gold.value
    results = [*after, *outputs.values(), *([ending.condition] if ending.condition else ())]
    values = [tensor.value for tensor in results]
    late = dependents(builder, [gold])
    rest = list(dict.fromkeys(v for v in values if v.node in late and v != gold))
    known = _weights_only(builder)
    read = leaves(builder, rest, late - {gold.node}, known)
    now = list(dict.fromkeys([choice.logits.value, *(v for v in values if v.node not in late),
                              *(v for v in read if v != gold)]))
    entries = [state.entry.value for state in step.states]
    changing = dependents(builder, entries) - {value.node for value in entries}
    fixed = [v for v in leaves(builder, now, changing, known) if v not in entries]
    name = {v: f"y{i}" for i, v in enumerate(now)} | {v: f"z{i}" for i, v in enumerate(rest)}
    name[gold] = CHOSEN
    (batch,) = choice.gold.shape
    states = [state.name for state in step.states]
    source = next(builder.node(whole.value) for whole, seen in sequences if seen.value == gold)
    ctx.decoder = Decoder(
        builder.finish([*((f"s{i}", state.initial.value) for i, state in enumerate(step.states)),
                        *((f"f{i}", value) for i, value in enumerate(fixed))], keep_sources=False),
        make_body(builder, "step", [*entries, *fixed], now),
        make_body(builder, "rest", [gold, *(v for v in read if v != gold)], rest) if rest else None,
        tuple(name[v] for v in read if v != gold),
        tuple(zip(states, (name[tensor.value] for tensor in after), strict=True)),
        tuple((key, name[tensor.value]) for key, tensor in outputs.items()),
        tuple(min(place, len(tensor.shape)) for tensor in outputs.values()),
        name[ending.condition.value] if ending.condition else "",
        tuple(_axis(builder.type(value), batch) for value in fixed),
        ending.limit, source.attributes.get("name", ""), str(length).removesuffix(LENGTHS),
        "" if isinstance(batch, int) else str(batch))
    handed = {}
    for key, tensor in outputs.items():
        axis, shape = min(place, len(tensor.shape)), tensor.shape
        type = TensorType((*shape[:axis], length, *shape[axis:]), tensor.type.dtype)
        handed[key] = _stand_in(ctx, DECODED + key, type)
    finals = {state.name: _stand_in(ctx, FINAL + state.name, state.initial.type)
              for state in step.states}
    return handed, finals


def can_choose(ev: Any, step: Step, seen: list[Value]) -> bool:
    """Whether a scan that sees `seen` at a step can choose its tokens; False after reporting."""
    problem = _problem(ev, step, seen)
    if problem is not None:
        ev.error("E419", problem[0], step.choices[0].span, help=problem[1])
    ev.ctx.choosing = True
    return problem is None


def _problem(ev: Any, step: Step, seen: list[Value]) -> tuple[str, str] | None:
    """Why a scan cannot be decoded, and the way out."""
    choice, builder = step.choices[0], ev.ctx.builder
    if ev.ctx.choosing:
        return "a second scan chooses tokens, too", "one scan of a model may use `choose`"
    if len(step.choices) > 1:
        return "a cell chooses one token in a step", "use `choose` once"
    if choice.gold.value not in seen:
        return ("the gold token is not what the scan runs over",
                "give `choose` the input of the cell itself")
    if choice.logits.value.node in dependents(builder, [choice.gold.value]):
        return ("the logits depend on the gold token, which is what they should tell",
                "let them depend on the token before: `prev.tok`")
    others = [value for value in seen if value != choice.gold.value]
    if choice.logits.value.node in dependents(builder, others):
        return ("the scan runs over more than the gold tokens, whose length is not known",
                "give the cell a `memory` in place of a second sequence")
    return None


def choose(ev: Any, args: list[Any], span: Any) -> Any:
    """`choose(logits, gold)` in a cell: the gold token, which a policy's stands in for."""
    step = ev.ctx.step
    if step is None:
        return ev.error("E419", "`choose` belongs into a cell that `scan` runs", span,
                        help="it takes the next token of a sequence, step by step")
    if len(args) != 2 or not all(isinstance(arg, Tensor) for arg in args):
        return ev.error("E419", "`choose` takes logits and the gold token", span,
                        help="write `choose(logits, gold)`")
    logits, gold = args
    fits = len(gold.shape) == 1 and logits.shape[:-1] == gold.shape and len(logits.shape) == 2
    if not fits or gold.type.dtype != "i32" or logits.type.dtype not in ("f32", "f64"):
        return ev.error("E419", "`choose` takes logits f32[B, tokens] and the gold token i32[B], "
                        f"not {logits.type} and {gold.type}", span)
    step.choices.append(Choice(logits, gold, span))
    return gold


def _stand_in(ctx: Any, name: str, type: TensorType) -> Tensor:
    attrs = {"name": name, "shape": type.shape, "dtype": type.dtype}
    return Tensor(ctx.builder.emit(REGISTRY["input"], (), attrs), type)


def _weights_only(builder: Builder) -> set[int]:
    """Nodes that depend on parameters and constants alone: every part makes them for itself."""
    open = [Value(key) for key in range(builder.count)
            if builder.node(Value(key)).op.name in ("input", "entry")]
    return set(range(builder.count)) - dependents(builder, open)


def _axis(type: TensorType, size: Dim) -> int:
    return next((axis for axis, one in enumerate(type.shape) if one == size), -1)

