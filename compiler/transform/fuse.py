"""Fusion: neighbouring operators become groups that one kernel computes.

Every operator starts as a group of its own; a consumer's group joins its producer's where both can
run in one nest of loops (or at the end of one contraction) and no third group lies between them.
Each refusal is recorded with its reason.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from dataclasses import dataclass, field

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.types import Dim, Expression
from lamina.compiler.ops.control import FREE
from lamina.compiler.ops.define import REGISTRY
from lamina.compiler.transform.parts import why_whole
from lamina.compiler.transform.training import UPDATE

# Elementwise work may follow these.
ANCHORS = ("matmul", "conv2d", "fractional_conv2d", "avg_pool2d", "avg_pool2d_grad")
CHEAP = ("add", "sub", "mul", "neg", "maximum", "minimum", "select", "less", "less_equal",
         "greater", "greater_equal", "equal", "not_equal", "cast")  # rather repeated than stored
VIEWS = ("reshape", "transpose", "slice", "reverse", "broadcast_to", "again")  # may move nothing
MAX_NODES = 48
MAX_OPERANDS = 20


@dataclass(slots=True)
class Group:
    """Nodes that one kernel will compute. `space` is the shape that its loops cover.

    `kind`: "point" (no reduction), "row" (reductions inside the loops, usable by the same group),
    "column" (reductions over leading axes, only handed out), "epilogue" (after a contraction),
    "single" (anything else). `part` is the shape of the equal parts that a contraction's result is
    read in, as the gates of a cell are.
    """

    kind: str
    space: tuple[Dim, ...]
    axes: tuple[int, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    mask: int = 0
    before: int = 0  # all groups that must run earlier, as bits of node ids
    part: tuple[Dim, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why two groups stayed apart: ids of a producer and a consumer, and the reason."""

    producer: int
    consumer: int
    reason: str


def fuse(graph: Graph) -> Graph:
    """Group operators into `fused` nodes."""
    return partition(graph)[0]


def partition(graph: Graph) -> tuple[Graph, list[Refusal]]:
    """The fused graph, and what was refused on the way."""
    planner = _planned(graph)
    return _emit(graph, planner), planner.refusals


def groups_of(graph: Graph) -> list[tuple[tuple[Node, ...], tuple[Refusal, ...]]]:
    """The groups in the order of the fused graph's nodes, and what was kept out behind each."""
    planner = _planned(graph)
    behind: dict[int, list[Refusal]] = {}
    for refusal in planner.refusals:
        group = planner.group_of[refusal.producer]
        if planner.group_of[refusal.consumer] is not group:
            behind.setdefault(id(group), []).append(refusal)
    return [(tuple(group.nodes), tuple(behind.get(id(group), ())))
            for group in _in_order(graph, planner)]


def _planned(graph: Graph) -> _Planner:
    planner = _Planner(graph)
    for node in graph.nodes:
        planner.place(node)
    return planner


def classify(shape: tuple[Dim, ...], axes: tuple[int, ...]) -> str:
    """How a reduction over `axes` of a row-major `shape` runs: by "row" or by "column"."""
    real = [axis for axis, size in enumerate(shape) if size != 1]
    reduced = [axis for axis in real if axis in axes]
    return "column" if reduced == real[:len(reduced)] else "row"


def row_shape(group: Group) -> tuple[Dim, ...]:
    """The shape of a reduction's result in the group."""
    return tuple(1 if axis in group.axes else n for axis, n in enumerate(group.space))


class _Planner:
    def __init__(self, graph: Graph):
        self.graph = graph
        self.group_of: dict[int, Group] = {}
        self.groups: list[Group] = []  # by their last nodes
        self.refusals: list[Refusal] = []
        self.later: dict[int, set[int]] = {}  # what depends on a node, as far as asked
        self.summed: dict[int, bool] = {}  # see `_only_summed`

    def place(self, node: Node) -> None:
        """Start a group for `node` and try to join its producers'."""
        if node.op.name in FREE:
            return
        group = self._start(node)
        if node.op.name == "slice":
            self._join_part(node, group)
        if group.kind in ("single", "epilogue"):
            return
        source = self._recomputable(node)
        if source is not None:
            self.refusals.append(Refusal(source, node.id, "its consumer computes it from what is "
                                         "stored anyway"))
        producers = sorted({value.node for value in node.inputs} - {source}, reverse=True)
        # A contraction comes first: finishing its tile while hot saves a whole pass.
        producers.sort(key=lambda id: self._kind(id) != "epilogue")
        for id in producers:
            other = self.group_of.get(id)
            mine = self.group_of[node.id]
            if other is None or other is mine or other.kind == "single":
                continue
            if other.kind == "epilogue" and self._only_summed(node):
                reason = "sums over leading axes, which alone read it, compute it themselves"
            else:
                reason = self._join(other, mine)
            if reason:
                self.refusals.append(Refusal(id, node.id, reason))
        if node.op.kind == "reduce":
            self._join_sums(node)

    def _join_sums(self, node: Node) -> None:
        """Sums over leading axes that read the same tensor read it together."""
        for value in self._operands(self.group_of[node.id]):
            for user in self.graph.users(value.node):
                other, mine = self.group_of.get(user.id), self.group_of[node.id]
                if other is not None and other is not mine and value in user.inputs and \
                        other.kind == mine.kind == "column" and other.space == mine.space:
                    self._join(other, mine)

    def _only_summed(self, node: Node) -> bool:
        """Whether all that reads cheap work on an element are sums over leading axes."""
        if node.id not in self.summed:
            users = self.graph.users(node)
            outputs = {value.node for _, value in self.graph.outputs}
            self.summed[node.id] = node.op.name in CHEAP and bool(users) and \
                node.id not in outputs and all(
                    _shape_of_work(self.graph, user)[0] == "column" or self._only_summed(user)
                    for user in users)
        return self.summed[node.id]

    def _recomputable(self, node: Node) -> int | None:
        """The node behind cheap work on one stored result whose reader runs much later, or None.

        The gradient of tanh reads 1 - y y: stored with y it would be a second tensor to write
        and to read again, while its reader has y at hand for nothing.
        """
        source = self._only_source(node)
        if source is None or source not in self.group_of:
            return None
        # No sum joins the end of a contraction.
        joins = ("elementwise",) if self._kind(source) == "epilogue" else ("elementwise", "reduce")
        stored = [user for user in self.graph.users(source)
                  if user.op.kind not in joins or "reduce" not in joins and self._only_summed(user)]
        late = {id for user in stored for id in (user.id, *self._after(user.id))}
        return source if stored and self._read_late(node, source, late) else None

    def _only_source(self, node: Node) -> int | None:
        """The one node that cheap elementwise work starts from, through more of its kind."""
        if node.op.name not in CHEAP:
            return None
        found: set[int] = set()
        for value in node.inputs:
            inner = self.graph.node(value)
            if inner.op.name in FREE or self.graph.type(value).shape != node.type.shape:
                continue  # a smaller operand costs nothing to read again
            deeper = self.group_of.get(inner.id)
            chained = deeper is not None and len(deeper.nodes) == 1 and self._only_source(inner)
            found.add(chained if chained and self._recomputable(inner) is not None else inner.id)
        return found.pop() if len(found) == 1 else None

    def _read_late(self, node: Node, source: int, late: set[int]) -> bool:
        """Whether all readers also wait for something that comes after `source` is stored."""
        users = self.graph.users(node)
        outputs = {value.node for _, value in self.graph.outputs}
        return bool(users) and node.id not in outputs and all(
            user.op.kind == "elementwise" and
            (any(value.node in late for value in user.inputs)
             or (self._cheap_step(user) and self._read_late(user, source, late)))
            for user in users)

    def _cheap_step(self, node: Node) -> bool:
        operands = {v.node for v in node.inputs if self.graph.node(v).op.name not in FREE}
        return node.op.name in CHEAP and len(operands) == 1

    def _after(self, id: int) -> set[int]:
        if id not in self.later:
            self.later[id] = self.graph.reachable(Value(id))
        return self.later[id]

    def _kind(self, id: int) -> str:
        group = self.group_of.get(id)
        return group.kind if group else ""

    def _start(self, node: Node) -> Group:
        group = Group(*_shape_of_work(self.graph, node), nodes=[node], mask=1 << node.id)
        for value in node.inputs:
            producer = self.group_of.get(value.node)
            if producer is not None:
                group.before |= producer.before | producer.mask
        self.group_of[node.id] = group
        self.groups.append(group)
        return group

    def _join(self, producer: Group, consumer: Group) -> str:
        """Join the last group with an earlier one; the reason if they must stay apart."""
        merged = self._compatible(producer, consumer)
        if isinstance(merged, str):
            return merged
        if self._between(producer, consumer):
            return "another group lies between them"
        kind, space, axes = merged
        nodes = sorted(producer.nodes + consumer.nodes, key=lambda n: n.id)
        group = Group(kind, space, axes, nodes, producer.mask | consumer.mask,
                      (producer.before | consumer.before) & ~(producer.mask | consumer.mask),
                      producer.part or consumer.part or _part_of(consumer))
        if len(self._operands(group)) > MAX_OPERANDS or len(group.nodes) > MAX_NODES:
            return "the group would grow too large"
        assert self.groups[-1] is consumer
        del self.groups[-1]
        del self.groups[bisect_left(self.groups, _last(producer), key=_last)]
        for node in group.nodes:
            self.group_of[node.id] = group
        for other in reversed(self.groups):
            if _last(other) < group.nodes[0].id:  # nor do those before it come after the group
                break
            if other.before & group.mask:
                other.before |= group.before | group.mask
        self.groups.append(group)
        return ""

    def _join_part(self, node: Node, group: Group) -> None:
        """A cut of one of the equal parts in which a product's result is read joins its end.

        Then the parts are computed side by side, and elementwise work on them can follow.
        """
        source = node.inputs[0]
        product = self.group_of.get(source.node)
        if product is None or product.kind != "epilogue":
            return
        anchor = next(one for one in product.nodes if one.op.name in ANCHORS)
        reason = why_whole(self.graph, source, anchor) or self._join(product, group)
        if reason:
            self.refusals.append(Refusal(source.node, node.id, reason))

    def _between(self, producer: Group, consumer: Group) -> bool:
        """Whether a path leads from one group to the other through a third."""
        for group, other in ((consumer, producer), (producer, consumer)):
            for value in self._operands(group):
                third = self.group_of.get(value.node)
                if third is not None and third is not other and third.before & other.mask:
                    return True
        return False

    def _operands(self, group: Group) -> list[Value]:
        inside = {node.id for node in group.nodes}
        found = {value: None for node in group.nodes for value in node.inputs
                 if value.node not in inside and self.graph.node(value).op.name not in FREE}
        return list(found)

    def _compatible(self, p: Group, c: Group) -> str | tuple[str, tuple[Dim, ...], tuple[int, ...]]:
        """The joint kind, space and axes, or the reason why there is none."""
        if p.kind == "epilogue" or c.kind == "epilogue":
            return self._compatible_epilogue(p, c)
        if p.space == c.space:
            return self._same_space(p, c)
        if p.kind == "row" and c.kind == "point" and c.space == row_shape(p):
            return "row", p.space, p.axes
        if c.kind == "row" and p.kind == "point" and p.space == row_shape(c):
            return "row", c.space, c.axes
        return "their loops cover different shapes"

    def _same_space(self, p: Group, c: Group):
        if p.axes and c.axes and p.axes != c.axes:
            return "they reduce over different axes"
        axes, kind = p.axes or c.axes, p.kind if p.axes else c.kind
        if kind == "column":
            handed = {value for node in c.nodes for value in node.inputs}
            for node in p.nodes:
                if node.op.kind == "reduce" and Value(node.id) in handed:
                    return "the reduction must finish before it is used"
            if any(self.graph.node(v).type.shape != p.space
                   for v in _internal(p, c) if not _is_reduce(self.graph, v)):
                return "their loops cover different shapes"
        return kind, p.space, axes

    def _compatible_epilogue(self, p: Group, c: Group):
        if c.kind == "single":  # one of its parts
            return "epilogue", p.space, ()
        if p.kind == c.kind:
            return "both end a contraction of their own"
        anchored, point = (p, c) if p.kind == "epilogue" else (c, p)
        if anchored is c and {v for n in c.nodes if n.op.name in ANCHORS for v in n.inputs} & \
                {Value(n.id) for n in p.nodes}:
            return "a contraction reads finished operands"
        spaces = (anchored.space, anchored.part or anchored.space)
        if point.kind != "point" or point.space not in spaces:
            return "only elementwise work on the whole result follows a contraction"
        inside = {node.id for node in (*p.nodes, *c.nodes)}
        for node in point.nodes:
            if node.op.kind != "elementwise":
                return "only elementwise work follows a contraction"
            for value in node.inputs:
                shape = self.graph.type(value).shape
                if value.node not in inside and epilogue_access(shape, point.space) is None:
                    return f"an operand of shape {shape} does not follow the result's rows"
                if self.graph.node(value).op.name == "iota":
                    return "positions are not known after a contraction"
                if isinstance(self.graph.node(value).attributes.get("value"), Expression):
                    return "a size that inputs bind is not known after a contraction"
        return "epilogue", anchored.space, ()


def _part_of(group: Group) -> tuple[Dim, ...]:
    """The shape of what a group of one slice cuts."""
    only = group.nodes[0]
    return only.type.shape if group.kind == "single" and only.op.name == "slice" else ()


def _last(group: Group) -> int:
    return group.nodes[-1].id


def epilogue_access(shape: tuple[Dim, ...], space: tuple[Dim, ...]) -> str | None:
    """How a tile of a contraction's result reads an operand: the access of a template."""
    padded = (1,) * (len(space) - len(shape)) + shape
    if all(size == 1 for size in padded):
        return "scalar"
    if padded == space:
        return "matrix"
    if all(size == 1 for size in padded[:-1]) and padded[-1] == space[-1]:
        return "column"
    return None


def _internal(p: Group, c: Group) -> list[Value]:
    produced = {node.id for node in p.nodes}
    return [value for node in c.nodes for value in node.inputs if value.node in produced]


def _is_reduce(graph: Graph, value: Value) -> bool:
    return graph.node(value).op.kind == "reduce"


def _shape_of_work(graph: Graph, node: Node) -> tuple[str, tuple[Dim, ...], tuple[int, ...]]:
    if node.op.kind == "elementwise" or node.op.name == "uniform":
        return "point", node.type.shape, ()
    if node.op.kind == "reduce":
        shape, axes = graph.type(node.inputs[0]).shape, node.attributes["axes"]
        return classify(shape, axes), shape, axes
    if node.op.name in ANCHORS and node.attributes.get("layout") != "nchw":
        return "epilogue", node.type.shape, ()
    return "single", node.type.shape, ()


def _emit(graph: Graph, planner: _Planner) -> Graph:
    builder = Builder(graph.name)
    values: dict[Value, Value] = {}
    wanted = {value for _, value in graph.outputs}
    readers: dict[Value, set[int]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            readers.setdefault(value, set()).add(node.id)
    for group in _in_order(graph, planner):
        inside = {node.id for node in group.nodes}
        outer = {value for value in map(Value, inside)
                 if value in wanted or readers.get(value, inside) - inside}
        _emit_group(builder, graph, group, values, outer)
    for _, value in graph.outputs:
        if value not in values:
            values[value] = _emit_free(builder, graph.node(value))
    return builder.finish((name, values[value]) for name, value in graph.outputs)


def _in_order(graph: Graph, planner: _Planner) -> list[Group]:
    """Groups, producers first, otherwise by their first node.

    What replaces a parameter comes as soon as its last reader has run: the gradient's memory is
    free again at once.
    """
    late = _last_readers(graph, planner)
    order = _ordered(planner, late)
    # Two updates that each read what the other replaces would wait for each other.
    return order if len(order) == len(planner.groups) else _ordered(planner, {})


def _last_readers(graph: Graph, planner: _Planner) -> dict[int, set[int]]:
    """For each group that replaces parameters, the groups that read their old values."""
    found: dict[int, set[int]] = {}
    for name, value in graph.outputs:
        group = planner.group_of.get(value.node)
        if name.startswith(UPDATE) and group is not None:
            old = graph.params[name.removeprefix(UPDATE)]
            nodes, _ = memory_readers(graph, old)
            readers = {id(one) for one in (planner.group_of.get(node.id) for node in nodes)
                       if one is not None and one is not group and not one.before & group.mask}
            found.setdefault(id(group), set()).update(readers)
    return found


def memory_readers(graph: Graph, value: Value) -> tuple[list[Node], set[Value]]:
    """All nodes that read the memory of `value`, also through views of it, and those views."""
    found, seen = [], {value}
    for user in graph.users(value.node):
        found.append(user)
        if user.op.name in VIEWS:
            further, more = memory_readers(graph, Value(user.id))
            found += further
            seen |= more
    return found, seen


def _ordered(planner: _Planner, late: dict[int, set[int]]) -> list[Group]:
    """Groups by their first node, after all that they need; those in `late` as soon as they can."""
    waiting: dict[int, set[int]] = {}
    ready: list[tuple[tuple[bool, int], int]] = []
    readers: dict[int, list[int]] = {}
    by_id = {id(group): group for group in planner.groups}
    first = {key: (key not in late, group.nodes[0].id) for key, group in by_id.items()}
    for key in late:  # its inputs, parameters and scalars (of a rate) do not keep it waiting
        todo = [by_id[key]]
        for group in todo:
            for value in (value for node in group.nodes for value in node.inputs):
                source = planner.group_of.get(value.node)
                if source is not None and source.nodes[0].op.kind == "source":
                    first[id(source)] = (False, value.node)
                elif source is not None and source.space == () and source is not group:
                    place = (True, by_id[key].nodes[0].id)
                    todo += [source] * (place < first[id(source)])
                    first[id(source)] = min(place, first[id(source)])
    for key, group in by_id.items():
        needs = {id(planner.group_of[v.node]) for n in group.nodes for v in n.inputs
                 if v.node in planner.group_of} - {key} | late.get(key, set())
        waiting[key] = needs
        for need in needs:
            readers.setdefault(need, []).append(key)
        if not needs:
            heapq.heappush(ready, (first[key], key))
    order = []
    while ready:
        _, key = heapq.heappop(ready)
        order.append(by_id[key])
        for reader in readers.get(key, ()):
            waiting[reader].discard(key)
            if not waiting[reader]:
                heapq.heappush(ready, (first[reader], reader))
    return order


def _emit_free(builder: Builder, node: Node) -> Value:
    return builder.emit(node.op, (), node.attributes)


def _emit_group(builder: Builder, graph: Graph, group: Group, values, outer) -> None:
    first = group.nodes[0]
    anchor = next((n for n in group.nodes if n.op.name in ANCHORS), first)
    loops = group.kind in ("point", "row", "column")
    with builder.at(anchor.span, anchor.path):
        if not loops and len(group.nodes) == 1:
            inputs = [_available(builder, graph, values, value) for value in first.inputs]
            result = builder.emit(first.op, inputs, first.attributes, first.body)
            for port in range(len(first.outs)):
                values[Value(first.id, port)] = Value(result.node, port)
            return
        body, operands, results = _make_body(graph, group, outer)
        inputs = [_available(builder, graph, values, value) for value in operands]
        pattern = "loop" if loops else "epilogue"
        fused = builder.emit(REGISTRY["fused"], inputs, {"pattern": pattern}, body)
        for port, value in enumerate(results):
            values[value] = Value(fused.node, port)


def _available(builder: Builder, graph: Graph, values, value: Value) -> Value:
    if value not in values:
        values[value] = _emit_free(builder, graph.node(value))
    return values[value]


def _make_body(graph: Graph, group: Group, outer: set[Value]):
    """The group as a graph of its own: inputs x0, x1 ..., outputs y0, y1 ..."""
    body = Builder("body")
    inner: dict[Value, Value] = {}
    operands: list[Value] = []
    for node in group.nodes:
        for value in node.inputs:
            if value not in inner:
                inner[value] = _body_input(body, graph, value, operands)
        with body.at(node.span, node.path):
            result = body.emit(node.op, [inner[v] for v in node.inputs], node.attributes)
        inner[Value(node.id)] = result
    results = [Value(node.id) for node in group.nodes if Value(node.id) in outer]
    if not results:
        results = [Value(group.nodes[-1].id)]
    graph_body = body.finish([(f"y{i}", inner[value]) for i, value in enumerate(results)])
    return graph_body, operands, results


def _body_input(body: Builder, graph: Graph, value: Value, operands: list[Value]) -> Value:
    node = graph.node(value)
    if node.op.name in FREE:
        return body.emit(node.op, (), node.attributes)
    type = graph.type(value)
    operands.append(value)
    return body.emit(REGISTRY["input"], (), {"name": f"x{len(operands) - 1}", "shape": type.shape,
                                             "dtype": type.dtype})
