"""From the fused Graph to a Program: buffers, kernels and the table of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.types import Dim, TensorType, symbols_of, to_size
from lamina.compiler.lower import contractions, views
from lamina.compiler.lower.core import Handler, Lowering, Place
from lamina.compiler.lower.kernels import reads_its_own_element
from lamina.compiler.lower.moves import why_output
from lamina.compiler.lower.scans import lower_scan
from lamina.compiler.lower.views import View
from lamina.compiler.lower.windows import plan_indices
from lamina.compiler.ops.define import REGISTRY
from lamina.compiler.transform.fuse import memory_readers
from lamina.compiler.transform.training import DERIVED, OPTIMIZER, UPDATE
from lamina.runtime.program import (
    AGAIN,
    BACKWARD,
    FORWARD,
    UPDATING,
    Buffer,
    Loop,
    Program,
    Size,
    Step,
    layer_of,
)


def _input(low: Lowering, node: Node) -> None:
    attrs = node.attributes
    kind, key = ("input", attrs["name"]) if node.op.name == "input" else ("param", attrs["key"])
    shape = tuple(to_size(n) for n in node.type.shape)
    low.buffers.append(Buffer(kind, key, node.type.dtype, shape, label=key))
    low.view_of[Value(node.id)] = views.dense(len(low.buffers) - 1, node.type.shape,
                                              node.type.dtype)


def _again(low: Lowering, node: Node) -> None:
    low.view_of[Value(node.id)] = low.view(node.inputs[0])


def _transpose(low: Lowering, node: Node) -> None:
    view = low.view(node.inputs[0])
    low.view_of[Value(node.id)] = views.transpose(view, node.attributes["perm"])


def _slice(low: Lowering, node: Node) -> None:
    a = node.attributes
    low.view_of[Value(node.id)] = views.cut(low.view(node.inputs[0]), a["starts"], a["stops"],
                                            a["steps"], node.type.shape)


def _reverse(low: Lowering, node: Node) -> None:
    low.view_of[Value(node.id)] = views.reverse(low.view(node.inputs[0]), node.attributes["axes"])


def _broadcast(low: Lowering, node: Node) -> None:
    low.view_of[Value(node.id)] = views.broadcast(low.view(node.inputs[0]), node.type.shape)


def _reshape(low: Lowering, node: Node) -> None:
    source = low.view(node.inputs[0])
    view = views.reshape(source, node.type.shape)
    if view is None:
        view = views.reshape(low.copy(source), node.type.shape)
    assert view is not None
    low.view_of[Value(node.id)] = view


def _pad(low: Lowering, node: Node) -> None:
    """A filled result into whose inside the operand is copied."""
    a, source = node.attributes, low.view(node.inputs[0])
    target = low.result(Value(node.id))
    low.fill(target, a["value"])
    spread = a["interior"] or (0,) * len(a["lo"])
    # A negative border cuts the operand first; with gaps, by whole elements.
    starts = tuple(_cut_before(lo, gap) for lo, gap in zip(a["lo"], spread, strict=True))
    stops = tuple(n - _cut_after(hi, gap)
                  for n, hi, gap in zip(source.shape, a["hi"], spread, strict=True))
    shape = tuple(b - s for s, b in zip(starts, stops, strict=True))
    low.view_of[Value(node.id)] = target
    if any(isinstance(n, int) and n <= 0 for n in shape):
        return  # negative borders remove everything
    inner = views.cut(source, starts, stops, (1,) * len(shape), shape)
    begin = tuple(lo + s * (gap + 1)
                  for lo, s, gap in zip(a["lo"], starts, spread, strict=True))
    window = views.cut(target, begin, begin, tuple(gap + 1 for gap in spread), shape)
    low.copy(inner, window)


def _cut_before(lo: Dim, gap: int) -> Dim:
    """How many leading elements a negative border removes."""
    if not isinstance(lo, int):
        return 0
    return (-lo + gap) // (gap + 1) if lo < 0 else 0


def _cut_after(hi: Dim, gap: int) -> Dim:
    if not isinstance(hi, int):
        return 0
    return (-hi + gap) // (gap + 1) if hi < 0 else 0


def _concat(low: Lowering, node: Node) -> None:
    target = low.result(Value(node.id))
    for value, part in zip(node.inputs, _parts(low.graph, node, target), strict=True):
        if low.view(value) != part:
            low.copy(low.view(value), part)
    low.view_of[Value(node.id)] = target


def _parts(graph: Graph, node: Node, target: View) -> list[View]:
    """Where in the memory of a concat each operand belongs."""
    rank, axis = node.type.rank, node.attributes["axis"] % node.type.rank
    found, start = [], 0
    for value in node.inputs:
        begin = tuple(start if i == axis else 0 for i in range(rank))
        shape = graph.type(value).shape
        found.append(views.cut(target, begin, begin, (1,) * rank, shape))
        start = start + shape[axis]
    return found


def _aim_parts(low: Lowering) -> None:
    """Let loops write straight into the concat that alone reads their results."""
    given = {value for _, value in low.graph.outputs}
    for node in reversed(low.graph.nodes):  # a concat of concats first
        if node.op.name != "concat":
            continue
        alone = [value not in given and value not in low.targets and _writes_loop(low.graph, value)
                 and all(user is node for user in low.graph.users(value.node)
                         if value in user.inputs)
                 for value in node.inputs]
        if any(alone):
            low.place = replace(_place(node), part=low.place.part)
            target = low.targets[Value(node.id)] = low.result(Value(node.id))
            for value, part, fits in zip(node.inputs, _parts(low.graph, node, target), alone,
                                         strict=True):
                if fits:
                    low.targets[value] = part


def _writes_loop(graph: Graph, value: Value) -> bool:
    """Whether a value comes from one loop over its elements, or is a concat."""
    node = graph.node(value)
    if node.op.name == "fused" and node.attributes["pattern"] == "loop":
        assert node.body is not None
        return all(inner.op.kind != "reduce" for inner in node.body.nodes)
    return node.op.kind == "elementwise" or node.op.name == "concat"


def _fused(low: Lowering, node: Node) -> None:
    assert node.body is not None
    if node.attributes["pattern"] == "epilogue":
        contractions.HANDLERS["epilogue"](low, node)
        return
    operands = [low.view(value) for value in node.inputs]
    results = [low.result(Value(node.id, port)) for port in range(len(node.outs))]
    low.loop(node.body, operands, results, "")
    for port, view in enumerate(results):
        low.view_of[Value(node.id, port)] = view


def _alone(low: Lowering, node: Node) -> None:
    """An unfused elementwise operator or reduction is a group of one."""
    body = Builder("body")
    inputs = [body.emit(REGISTRY["input"], (), {"name": f"x{i}", "shape": low.graph.type(v).shape,
                                                "dtype": low.graph.type(v).dtype})
              for i, v in enumerate(node.inputs)]
    result = body.emit(node.op, inputs, node.attributes)
    target = low.result(Value(node.id))
    low.loop(body.finish([("y0", result)]), [low.view(v) for v in node.inputs], [target], "")
    low.view_of[Value(node.id)] = target


HANDLERS: dict[str, Handler] = {
    "input": _input, "param": _input, "const": lambda low, node: None, "again": _again,
    "transpose": _transpose,
    "slice": _slice, "reverse": _reverse, "broadcast_to": _broadcast, "reshape": _reshape,
    "pad": _pad, "concat": _concat, "fused": _fused,
    "scan": lambda low, node: lower_scan(low, node, _walk), **contractions.HANDLERS,
}


def lower(graph: Graph, vector_width: int = 8, meta: Mapping[str, object] | None = None) -> Program:
    """The CPU Program of a fused graph. Outputs named `update:KEY` replace parameter KEY."""
    low = Lowering(graph, vector_width)
    for node in graph.nodes:
        if node.op.name in ("input", "param"):
            _input(low, node)
    if not any(name.startswith(UPDATE) for name, _ in graph.outputs):
        low.fixed |= {low.view_of[value].buffer for value in graph.params.values()}
    _aim_outputs(low)
    _walk(low, _step_parts(graph))
    _finish_outputs(low)
    once = _put_first(low)
    buffers = _with_lifetimes(low.buffers, low.steps, low.loops)
    names = sorted({s for b in buffers for size in b.shape for s in _symbols(size)})
    return Program("cpu", buffers, tuple(low.sources), tuple(low.steps),
                   tuple(n for n in names if not n.startswith("$")),
                   {**(meta or {}), "divisors": _divisors(graph)}, tuple(low.loops), once)


def _put_first(low: Lowering) -> int:
    """Steps that depend on parameters alone go first, and what they hand on is kept."""
    once = len(low.once_steps)
    low.steps[:0] = low.once_steps
    low.loops[:] = [replace(loop, first=loop.first + once, last=loop.last + once)
                    for loop in low.loops]
    for number in low.fixed:
        if low.buffers[number].kind == "temp":
            low.buffers[number] = replace(low.buffers[number], kind="const")
    return once


def _step_parts(graph: Graph) -> dict[int, str]:
    """The part of a training step that each node belongs to.

    The nodes of the backward pass come after the last that another output needs.
    """
    needed = {value.node for name, value in graph.outputs if not name.startswith(DERIVED)}
    if not needed or len(needed) == len(graph.outputs):
        return {}
    last = max(needed)
    again = _computed_again(graph, last)
    return {node.id: UPDATING if _updates(node) else AGAIN if node.id in again else BACKWARD
            for node in graph.nodes if node.id > last}


def _computed_again(graph: Graph, last: int) -> set[int]:
    """The nodes of the backward pass that are made of kept values alone, and of no gradient."""
    fed: set[int] = set()  # what depends on inputs, and on more than what is found
    found: set[int] = set()
    for node in graph.nodes:
        operands = {value.node for value in node.inputs}
        if node.op.name == "again" or node.id > last and operands & found and not operands & fed:
            found.add(node.id)
        elif node.op.name == "input" or operands & (fed | found):
            fed.add(node.id)
    return found


def _updates(node: Node) -> bool:
    """Whether a node is the optimizer's: a layer of that name has a line."""
    return node.path == OPTIMIZER and node.span is None


def _walk(low: Lowering, parts: Mapping[int, str] | None = None) -> None:
    """The steps of all nodes, in order. `parts`: as `_step_parts` says, else those around them."""
    around = low.place  # of a scan, for its body
    plan_indices(low)
    _aim_parts(low)
    for node in low.graph.nodes:
        if node.op.name in ("input", "param"):
            continue
        part = around.part if parts is None else parts.get(node.id, FORWARD)
        low.place = replace(_place(node, layer_of(around.label)), part=part)
        low.node = node
        handler = HANDLERS.get(node.op.name)
        if handler is None and node.op.kind in ("elementwise", "reduce", "random"):
            handler = _alone
        if handler is None:
            raise NotImplementedError(f"no kernel for `{node.op.name}`")
        handler(low, node)


def _divisors(graph: Graph) -> dict[str, int]:
    """What must divide each symbol, for the executor to check."""
    symbols = {s for value in graph.inputs.values() for s in symbols_of(graph.type(value))}
    return {s.name: s.scale for s in sorted(symbols, key=lambda s: s.name) if s.scale > 1}


def _place(node: Node, path: str = "") -> Place:
    """Where a node comes from; `path` is that of one that has none."""
    path = node.path or path
    names = [n.op.name for n in (node.body.nodes if node.body else (node,))
             if n.op.kind != "source"]
    what = "+".join(names[:3]) + ("..." if len(names) > 3 else "")
    return Place(f"{path}: {what}" if path else what, node.span.line if node.span else 0)


def _aim_outputs(low: Lowering) -> None:
    """Let producers write straight into outputs and, where nobody reads it later, parameters."""
    for name, value in low.graph.outputs:
        node = low.graph.node(value)
        writes = node.op.name in ("fused", "pad", "concat") or \
            node.op.kind in ("elementwise", "reduce")
        if value in low.targets or not writes:
            continue
        if name.startswith(UPDATE):
            if _can_update_in_place(low, node, name.removeprefix(UPDATE)):
                low.targets[value] = low.view_of[low.graph.params[name.removeprefix(UPDATE)]]
            continue
        low.targets[value] = _output_buffer(low, name, low.graph.type(value))


def _output_buffer(low: Lowering, name: str, type: TensorType) -> View:
    shape = tuple(to_size(n) for n in type.shape)
    low.buffers.append(Buffer("output", name, type.dtype, shape, label=name))
    return views.dense(len(low.buffers) - 1, type.shape, type.dtype)


def _can_update_in_place(low: Lowering, node: Node, key: str) -> bool:
    """Whether `node` may overwrite parameter `key`: element by element, and the last to read it."""
    graph = low.graph
    if node.op.name != "fused" or node.body is None:
        return False
    if any(n.op.kind == "reduce" for n in node.body.nodes):
        return False
    param = graph.params[key]
    if node.attributes["pattern"] == "epilogue" and \
            not reads_its_own_element(low, node, param):
        return False
    readers, views_of_it = memory_readers(graph, param)
    if any(value in views_of_it for _, value in graph.outputs):
        return False  # the old value is still to be given out
    # Where the node reads it, it must read the very element that it writes.
    elsewhere = any(value in views_of_it for value in node.inputs if value != param)
    return not elsewhere and all(reader.id <= node.id for reader in readers)


def _finish_outputs(low: Lowering) -> None:
    """Copy what did not land where it belongs; parameters last, when nobody reads them."""
    updates = []
    for name, value in low.graph.outputs:
        source = low.view(value)
        replaces = name.startswith(UPDATE)
        low.place = Place(name, 0, UPDATING if replaces else FORWARD)
        if replaces:
            target = low.view_of[low.graph.params[name.removeprefix(UPDATE)]]
            if source == target:
                continue
            if low.buffers[source.buffer].kind == "param":  # it may be overwritten meanwhile
                source = low.copy(source, why="parameters change places")
            updates.append((source, target))
        elif low.buffers[source.buffer].key != name or source.offset != 0 or \
                not source.is_packed:
            low.copy(source, _output_buffer(low, name, low.graph.type(value)),
                     why_output(name, source, low.buffers[source.buffer]))
    for source, target in updates:
        low.copy(source, target, "a parameter takes its new value when nothing reads the old one")


def _with_lifetimes(buffers: list[Buffer], steps: list[Step], loops: list[Loop]
                    ) -> tuple[Buffer, ...]:
    """The first and last step of every buffer; one that outlives a round lives the whole loop."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, step in enumerate(steps):
        for kind, number in step.args:
            if kind in ("buffer", "place"):
                number = number if kind == "buffer" else number[0]
                first.setdefault(number, index)
                last[number] = index
    for loop in loops:  # inner ones come first
        for number in first:
            inside = first[number] <= loop.last and last[number] >= loop.first
            if inside and (first[number] < loop.first or last[number] > loop.last):
                first[number] = min(first[number], loop.first)
                last[number] = max(last[number], loop.last)
    return tuple(replace(b, first=first.get(i, 0), last=last.get(i, 0))
                 for i, b in enumerate(buffers))


def _symbols(size: Size) -> set[str]:
    if isinstance(size, str):
        return {size}
    if isinstance(size, tuple):
        return {name for part in size[1:] for name in _symbols(part)}
    return set()
