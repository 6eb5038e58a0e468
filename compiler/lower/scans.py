"""A scan becomes a loop of steps: each round reads and writes its own entry of stacked memory.

A state lies in memory of length + 1 entries: a step reads one and writes the next, so nothing is
copied from round to round, and what all steps gave is there as it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.types import Dim, TensorType, symbol, to_size
from lamina.compiler.lower.core import Lowering
from lamina.compiler.lower.views import View
from lamina.runtime.program import Loop

Walk = Callable[[Lowering], None]


def lower_scan(low: Lowering, node: Node, walk: Walk) -> None:
    """Lower a scan; `walk` lowers the nodes of its body."""
    assert node.body is not None
    body, attrs = node.body, node.attributes
    count, backwards, states = attrs["length"], attrs["backwards"], attrs["states"]
    name = f"$round{len(low.loops)}_{len(low.steps)}"
    now = symbol(name)
    before, after = (now + 1, now) if backwards else (now, now + 1)
    kept = [low.fresh(TensorType((count + 1, *type.shape), type.dtype))
            for type in node.outs[:states]]
    for k, memory in enumerate(kept):
        low.copy(low.view(node.inputs[k]), entry(memory, count if backwards else 0),
                 "a state's first value goes before those of all steps")
    after_sequences = node.inputs[states + attrs["sequences"]:]
    inner = low.within(body, [low.view(value) for value in after_sequences])
    for k, value in enumerate(node.inputs):
        known = body.inputs[f"x{k}"]
        if k < states:
            inner.view_of[known] = entry(kept[k], before)
        elif k < states + attrs["sequences"]:
            inner.view_of[known] = entry(low.view(value), now)
        else:
            inner.view_of[known] = low.view(value)
    results = [value for _, value in body.outputs]
    written = [(value, entry(memory, after))
               for value, memory in zip(results, kept, strict=False)]
    handed: list[View | None] = []
    for port, value in enumerate(results[states:], start=states):
        shared = _among_states(body, results[:states], value, kept, count, backwards)
        handed.append(shared)
        if shared is None:
            handed[-1] = low.fresh(node.outs[port])
            written.append((value, entry(handed[-1], now)))
    _aim(inner, written)
    first, inner_loops = len(low.steps), len(low.loops)
    walk(inner)
    for value, place in written:
        source = inner.view(value)
        if source != place:
            low.copy(source, place, "what a step gives goes among those of all steps")
    _put_ahead(low, inner, first, inner_loops)
    first += len(inner.ahead or ())
    if len(low.steps) > first:
        low.loops.append(Loop(first, len(low.steps) - 1, name, to_size(count), backwards))
    for k, memory in enumerate(kept):
        low.view_of[Value(node.id, k)] = entry(memory, 0 if backwards else count)
    for port, view in enumerate(handed, start=states):
        assert view is not None
        low.view_of[Value(node.id, port)] = view


def entry(view: View, index: Dim) -> View:
    """One entry of stacked memory."""
    return replace(view, shape=view.shape[1:], strides=view.strides[1:],
                   offset=view.offset + index * view.strides[0])


def _put_ahead(low: Lowering, inner: Lowering, first: int, inner_loops: int) -> None:
    """Steps that need to run only once go before the loop that begins at step `first`."""
    ahead = inner.ahead or []
    low.steps[first:first] = ahead
    low.loops[inner_loops:] = [replace(loop, first=loop.first + len(ahead),
                                       last=loop.last + len(ahead))
                               for loop in low.loops[inner_loops:]]


def _among_states(body: Graph, new: list[Value], value: Value, kept: list[View], count: Dim,
                  backwards: bool) -> View | None:
    """Where all steps' values lie already: those of a state before or after each step."""
    for k, memory in enumerate(kept):
        before, after = (1, 0) if backwards else (0, 1)
        start = before if value == body.inputs[f"x{k}"] else after if value == new[k] else None
        if start is not None:
            return replace(memory, shape=(count, *memory.shape[1:]),
                           offset=memory.offset + start * memory.strides[0])
    return None


def _aim(inner: Lowering, written: list[tuple[Value, View]]) -> None:
    """Let loops write straight into their entries."""
    for value, place in written:
        node = inner.graph.node(value)
        writes = node.op.name in ("fused", "matmul", "concat") or node.op.kind == "elementwise"
        if writes and value not in inner.targets:
            inner.targets[value] = place
