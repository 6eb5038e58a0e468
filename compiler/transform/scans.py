"""Scans: what need not wait for the states leaves the loop, and how a scan is differentiated.

A node of the body that depends on no state is computed for all steps at once before the loop, one
that no later step depends on after it; states that do not need each other have loops of their own,
one after the other (`leave_loops`). The gradient of a scan is derived: the body's
own gradient, step by step from the last one (`gradient`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.rewrite import copy_into, rewrite
from lamina.compiler.ir.types import FLOATS, Dim
from lamina.compiler.ops.control import FREE, SCAN, make_body
from lamina.compiler.ops.define import GraphMath, Var
from lamina.compiler.transform.batch import (
    Operand,
    batch,
    can_batch,
    every_step,
    merged_product,
)
from lamina.compiler.transform.expand import expand_all


def has_scans(graph: Graph) -> bool:
    """Whether there is anything to do here: most networks have no scan."""
    return any(node.op is SCAN for node in graph.nodes)


def leave_loops(graph: Graph) -> Graph:
    """Every scan of the graph with as small a loop as there can be; scans within bodies too."""

    def rule(builder: Builder, node: Node, inputs: tuple[Value, ...]):
        if node.op is not SCAN:
            return None
        assert node.body is not None
        body = split_products(leave_loops(expand_all(node.body)), node.attributes["states"])
        m = GraphMath(builder)
        found = emit_scan(m, body, [Var(m, value) for value in inputs], node.attributes)
        return tuple(var.value for var in found)

    return rewrite(graph, rule) if has_scans(graph) else graph


def split_products(body: Graph, states: int) -> Graph:
    """[a, b] @ W becomes a @ W's upper rows + b @ W's lower rows where one of them can wait less.

    A cell's products with what comes in need no state, so they can be made for all steps at once.
    """
    waits = {body.inputs[f"x{k}"].node for k in range(states)}
    for node in body.nodes:
        if any(value.node in waits for value in node.inputs):
            waits.add(node.id)

    def rule(builder: Builder, node: Node, inputs: tuple[Value, ...]):
        joined = body.node(node.inputs[0]) if node.op.name == "matmul" else None
        if joined is None or joined.op.name != "concat" or node.inputs[1].node in waits \
                or body.type(node.inputs[1]).rank != 2:
            return None
        rank = joined.type.rank
        late = [value.node in waits for value in joined.inputs]
        if joined.attributes["axis"] % rank != rank - 1 or all(late) or not any(late):
            return None
        m, weight = GraphMath(builder), Var(GraphMath(builder), inputs[1])
        parts = builder.node(inputs[0]).inputs
        start: Dim = 0
        total: Var | None = None
        for value in parts:
            part = Var(m, value)
            rows = m.slice(weight, starts=(start, 0),
                           stops=(start + part.shape[-1], weight.shape[1]), steps=(1, 1))
            start = start + part.shape[-1]
            total = part @ rows if total is None else total + part @ rows
        assert total is not None
        return (total.value,)

    return rewrite(body, rule)


def emit_scan(m: GraphMath, body: Graph, operands: Sequence[Var], attrs: Mapping,
              summed: frozenset[int] = frozenset()) -> list[Var]:
    """A scan with the smallest loop: its final states, then what the steps hand out.

    The outputs numbered in `summed` (from the first after the states) come as their sum over all
    steps in place of [length, ...].
    """
    return _Division(m, body, operands, attrs, summed).emit()


@dataclass
class _Division:
    """How a body is divided: a loop for every group of states that need each other, and the rest.

    The groups come in the order in which they read each other. What a group's loop needs of the
    groups before it is known for all steps when it runs, as are sequences.
    """

    m: GraphMath
    body: Graph
    operands: Sequence[Var]
    attrs: Mapping
    summed: frozenset[int]
    outside: dict[Value, Operand] = field(default_factory=dict)
    finals: dict[int, Var] = field(default_factory=dict)
    home: dict[int, int] = field(default_factory=dict)  # node -> the group whose loop computes it

    def __post_init__(self):
        self.states: int = self.attrs["states"]
        self.sequences: int = self.attrs["sequences"]
        self.length: Dim = self.attrs["length"]
        self.inputs = [self.body.inputs[f"x{i}"] for i in range(len(self.operands))]
        self.results = [value for _, value in self.body.outputs]
        for i, value in enumerate(self.inputs[self.states:], start=self.states):
            stacked = i < self.states + self.sequences
            self.outside[value] = Operand(self.operands[i], stacked)
        self.groups = _groups(self.body, self.inputs[:self.states], self.results) or [()]
        self.varies = self._varies()
        self.free = self._only_summed()
        self.level = self._levels()
        for k, group in enumerate(self.groups):
            self._take(k, [self.results[state].node for state in group])
        for node in self.body.nodes:
            if node.id not in self.home and self._waits(node):
                self._take(self.level[node.id], [node.id])
        self._take_cheap_work()

    # --- which nodes go where -------------------------------------------------------------------

    def _varies(self) -> set[int]:
        """Nodes that differ from step to step."""
        found = {value.node for value in self.inputs[:self.states + self.sequences]}
        for node in self.body.nodes:
            if any(value.node in found for value in node.inputs):
                found.add(node.id)
        return found

    def _waits(self, node: Node) -> bool:
        """Whether a node must be computed step by step, whatever it depends on."""
        stacked = [value.node in self.varies for value in node.inputs]
        return node.id not in self.free and any(stacked) and (
            len(node.outs) > 1 or not can_batch(node, stacked))

    def _levels(self) -> dict[int, int]:
        """For every node the last group that it waits for; -1: none."""
        level: dict[int, int] = {}
        for k, group in enumerate(self.groups):
            level |= {self.inputs[state].node: k for state in group}
        for node in self.body.nodes:
            least = 0 if node.op.name != "input" and self._waits(node) else -1
            found = max((level[value.node] for value in node.inputs), default=-1)
            level.setdefault(node.id, max(found, least))
        return level

    def _take(self, k: int, nodes: list[int]) -> None:
        """Put nodes into the loop of a group, with what they need that waits for it."""
        todo = list(nodes)
        while todo:
            node = self.body.node(todo.pop())
            if node.id in self.home or self.level[node.id] < k or node.op.name == "input":
                continue
            self.home[node.id] = k
            todo += [value.node for value in node.inputs]

    def _take_cheap_work(self) -> None:
        """Cheap work on what is stored anyway, for one loop alone: it needs no memory there."""
        handed = {value.node for value in self.results}
        for node in reversed(self.body.nodes):
            if node.id in self.home or node.id in handed or node.op.kind != "elementwise":
                continue
            homes = {self.home.get(user.id) for user in self.body.users(node)}
            if len(homes) == 1 and None not in homes and \
                    sum(value.node in self.varies for value in node.inputs) == 1:
                self.home[node.id] = homes.pop()

    def _only_summed(self) -> set[int]:
        """Gradients of tables of which only the sum over all steps is asked for."""
        wanted = {self.results[self.states + i] for i in self.summed}
        found: set[int] = set()
        for node in reversed(self.body.nodes):
            value = Value(node.id)
            if value not in wanted or any(result == value for i, result in enumerate(self.results)
                                          if i - self.states not in self.summed):
                continue
            users = self.body.users(node)
            if any(Value(user.id) not in wanted or user.op.name != "add" for user in users):
                continue
            if node.op.name == "take_grad":
                found.add(node.id)
            elif node.op.name == "add":
                wanted |= {v for v in node.inputs if self.body.type(v) == node.type}
        return found

    # --- emission -------------------------------------------------------------------------------

    def emit(self) -> list[Var]:
        """Everything, in order."""
        for k, group in enumerate(self.groups):
            inside = [node for node in self.body.nodes if self.home.get(node.id) == k]
            if inside or len(group) > 1:
                self._emit_loop(k, group, inside)
            elif group:
                self._know(*group)
        handed = []
        for i, value in enumerate(self.results[self.states:]):
            handed.append(self.sum(value) if i in self.summed else
                          every_step(self.m, self.at_all(value), self.length))
        return [*(self.finals[state] for state in range(self.states)), *handed]

    def _emit_loop(self, k: int, group: Sequence[int], inside: Sequence[Node]) -> None:
        """The scan of a group; what others read of it becomes known outside."""
        carried = [self.inputs[state] for state in group]
        after = [self.results[state] for state in group]
        handed = self._crossing(k, carried)
        read = dict.fromkeys([*(v for node in inside for v in node.inputs), *after])
        outer = [v for v in read if self.home.get(v.node) != k and v not in carried
                 and self.body.node(v).op.name not in FREE]
        sequences = [v for v in outer if self.at_all(v).stacked]
        outer = [*sequences, *(v for v in outer if v not in sequences)]
        given = [*(self.operands[state] for state in group), *(self.at_all(v).var for v in outer)]
        body = make_body(self.body, self.body.name, [*carried, *outer], [*after, *handed])
        attrs = {**self.attrs, "states": len(group), "sequences": len(sequences)}
        scan = self.m.builder.emit(SCAN, [x.value for x in given], attrs, body)
        for port, value in enumerate(handed, start=len(group)):
            self.outside[value] = Operand(Var(self.m, Value(scan.node, port)), True)
        for port, state in enumerate(group):
            self.finals[state] = Var(self.m, Value(scan.node, port))

    def _know(self, state: int) -> None:
        """A state without a loop: it never changes, or before a step is what the last one had."""
        m, first = self.m, self.operands[state]
        if self.results[state] == self.inputs[state]:
            self.outside[self.inputs[state]] = Operand(first, False)
            self.finals[state] = first
            return
        after = every_step(m, self.at_all(self.results[state]), self.length)
        first = m.reshape(first, shape=(1, *first.shape))
        late = self.attrs["backwards"]
        line = m.concat(*((after, first) if late else (first, after)), axis=0)

        def part(start: Dim, stop: Dim) -> Var:
            rest = after.shape[1:]
            return m.slice(line, starts=(start, *(0 for _ in rest)), stops=(stop, *rest),
                           steps=(1,) * len(line.shape))

        before = part(1, self.length + 1) if late else part(0, self.length)
        end = part(0, 1) if late else part(self.length, self.length + 1)
        self.outside[self.inputs[state]] = Operand(before, True)
        self.finals[state] = m.reshape(end, shape=after.shape[1:])

    def _crossing(self, k: int, carried: Sequence[Value]) -> list[Value]:
        """Values of a group's loop, and its states before a step, that are read elsewhere."""
        read = [value for i, value in enumerate(self.results) if i not in self.groups[k]]
        read += [value for node in self.body.nodes if self.home.get(node.id) != k
                 for value in node.inputs]
        return [value for value in dict.fromkeys(read)
                if self.home.get(value.node) == k or value in carried]

    def at_all(self, value: Value) -> Operand:
        """A value of the body outside of the loop, for all steps."""
        if value not in self.outside:
            node = self.body.node(value)
            operands = [self.at_all(v) for v in node.inputs]
            with self.m.builder.at(node.span, node.path):
                if any(x.stacked for x in operands):
                    var = batch(self.m, node, operands, self.length)
                    self.outside[value] = Operand(var, True)
                else:
                    first = self.m.builder.emit(node.op, [x.var.value for x in operands],
                                                node.attributes, node.body)
                    self.outside[value] = Operand(Var(self.m, first), False)
        return self.outside[value]

    # --- sums -----------------------------------------------------------------------------------

    def sum(self, value: Value) -> Var:
        """A value's sum over all steps, without making what is summed where that is possible."""
        m, node = self.m, self.body.node(value)
        rule = _SUMS.get(node.op.name)
        apart = self.level[value.node] >= 0 and value.node not in self.home
        if rule is not None and apart and value not in self.outside:
            found = rule(self, node)
            if found is not None:
                return found
        x = self.at_all(value)
        if not x.stacked:
            return x.var * m.cast(m.lift(self.length, "f32"), dtype=x.var.dtype)
        return m.reshape(m.reduce_sum(x.var, axes=(0,)), shape=self.body.type(value).shape)


def _sum_add(division: _Division, node: Node) -> Var | None:
    if any(division.body.type(value) != node.type for value in node.inputs):
        return None
    left, right = (division.sum(value) for value in node.inputs)
    return left + right


def _sum_matmul(division: _Division, node: Node) -> Var | None:
    operands = [division.at_all(value) for value in node.inputs]
    if not all(x.stacked and len(x.var.shape) == 3 for x in operands):
        return None
    return merged_product(division.m, *(x.var for x in operands))


def _sum_take_grad(division: _Division, node: Node) -> Var | None:
    m = division.m
    ct, index = (every_step(m, division.at_all(value), division.length) for value in node.inputs)
    return m.take_grad(ct, index, rows=node.attributes["rows"])


def _sum_reduced(division: _Division, node: Node) -> Var | None:
    x = division.at_all(node.inputs[0])
    if not x.stacked:
        return None
    axes = (0, *(axis + 1 for axis in node.attributes["axes"]))
    m = division.m
    return m.reshape(m.reduce_sum(x.var, axes=axes), shape=node.type.shape)


def _sum_moved(division: _Division, node: Node) -> Var | None:
    """What only moves elements, or puts zeros between, after the sum."""
    if node.op.name == "pad" and node.attributes["value"] != 0:
        return None
    inner = division.sum(node.inputs[0])
    return division.m.apply(node.op, (inner,), node.attributes)


_SUMS = {"add": _sum_add, "matmul": _sum_matmul, "take_grad": _sum_take_grad,
         "reduce_sum": _sum_reduced, "transpose": _sum_moved, "reshape": _sum_moved,
         "pad": _sum_moved}


def _groups(body: Graph, entries: Sequence[Value], results: Sequence[Value]
            ) -> list[tuple[int, ...]]:
    """States that need each other, in the order in which the groups read each other."""
    reads = [_states_read(body, entries, results[state]) for state in range(len(entries))]
    reach = [set(found) for found in reads]
    for middle in range(len(entries)):
        for state in range(len(entries)):
            if middle in reach[state]:
                reach[state] |= reach[middle]
    groups: list[tuple[int, ...]] = []
    for state in sorted(range(len(entries)), key=lambda one: (len(reach[one]), one)):
        if not any(state in group for group in groups):
            groups.append((state, *(other for other in range(len(entries)) if other != state
                                    and other in reach[state] and state in reach[other])))
    return [tuple(sorted(group)) for group in groups]


def _states_read(body: Graph, entries: Sequence[Value], result: Value) -> set[int]:
    """The states that a state's next value is made of."""
    todo, seen = [result.node], set()
    while todo:
        key = todo.pop()
        if key not in seen:
            seen.add(key)
            todo += [value.node for value in body.node(key).inputs]
    return {state for state, entry in enumerate(entries) if entry.node in seen}


# --- gradients ----------------------------------------------------------------------------------

# Emits the gradients of values of a graph that was copied into a builder, from those of others.
Differentiate = Callable[[Builder, Graph, Mapping[Value, Value], Mapping[Value, Var],
                          Sequence[Value]], list[Value]]


def keep_residuals(graph: Graph, differentiate: Differentiate) -> Graph:
    """Every scan hands out, as further results, what its gradient reads of each step."""

    def rule(builder: Builder, node: Node, inputs: tuple[Value, ...]):
        if node.op is not SCAN:
            return None
        assert node.body is not None
        body = keep_residuals(node.body, differentiate)
        every = [True] * len(node.outs)
        backward = _Backward(body, node.attributes, every, [True] * len(inputs), differentiate)
        outs = [value for _, value in body.outputs]
        kept = [value for value in backward.residuals if value not in outs[backward.states:]]
        inner = Builder(body.name)
        values = copy_into(inner, body)
        named = [(f"y{i}", values[value]) for i, value in enumerate([*outs, *kept])]
        scan = builder.emit(SCAN, inputs, node.attributes, inner.finish(named))
        return tuple(Value(scan.node, port) for port in range(len(node.outs)))

    return rewrite(graph, rule) if has_scans(graph) else graph


def gradient(m: GraphMath, node: Node, operands: Sequence[Var], results: Sequence[Var],
             cts: Sequence[Var | None], wanted: Sequence[bool], differentiate: Differentiate
             ) -> list[Var | None]:
    """The gradients of a scan's operands from those of its results, by a scan the other way."""
    assert node.body is not None
    attrs = node.attributes
    given = [ct is not None for ct in cts]
    backward = _Backward(node.body, attrs, given, wanted, differentiate)
    outs = [value for _, value in node.body.outputs]
    states: list[Var] = []
    for k in backward.carried:
        ct, type = cts[k], results[k].type
        states.append(m.broadcast_to(m.lift(0.0, type.dtype), shape=type.shape) if ct is None
                      else ct)
    sequences = [ct for ct in cts[backward.states:] if ct is not None]
    for value in backward.stacked:
        sequences.append(operands[backward.operands[value]] if value in backward.operands
                         else results[outs.index(value, backward.states)])
    after = [operands[backward.operands[value]] for value in backward.constant]
    body = backward.body()
    summed = frozenset(i for i, index in enumerate(backward.others)
                       if index >= backward.states + attrs["sequences"])
    found = emit_scan(m, body, [*states, *sequences, *after],
                      {"states": len(states), "sequences": len(sequences),
                       "length": attrs["length"], "backwards": not attrs["backwards"]}, summed)
    grads: list[Var | None] = [None] * len(operands)
    for index, grad in zip([*backward.carried, *backward.others], found, strict=True):
        grads[index] = grad
    return grads


class _Backward:
    """The gradient of one step: a body of its own, and what it reads of the step forward."""

    def __init__(self, body: Graph, attrs: Mapping, given: Sequence[bool], wanted: Sequence[bool],
                 differentiate: Differentiate):
        self.forward, self.states = body, attrs["states"]
        inputs = [body.inputs[f"x{i}"] for i in range(len(body.inputs))]
        outs = [value for _, value in body.outputs]
        floats = [body.type(value).dtype in FLOATS for value in inputs]
        self.carried = [k for k in range(self.states) if floats[k]]
        self.others = [i for i in range(self.states, len(inputs)) if floats[i] and wanted[i]]
        self.operands = {inputs[i]: i for i in range(self.states, len(inputs))}
        self.joint = Builder(body.name)
        self.values = copy_into(self.joint, body)
        m = GraphMath(self.joint)
        self.first = self.joint.count
        self.seeds: list[Value] = []
        cotangents: dict[Value, Var] = {}
        for k, value in enumerate(outs):
            type = body.type(value)
            if type.dtype not in FLOATS or k >= self.states and not given[k]:
                continue
            ct = m.input(name=f"c{k}", shape=type.shape, dtype=type.dtype)
            self.seeds.append(ct.value)
            cotangents[value] = cotangents[value] + ct if value in cotangents else ct
        wrt = [inputs[i] for i in (*self.carried, *self.others)]
        self.grads = differentiate(self.joint, body, self.values, cotangents, wrt)
        leaves = self._leaves()
        after = self.states + attrs["sequences"]
        self.constant = [v for v in leaves if self.operands.get(v, 0) >= after]
        self.stacked = [v for v in leaves if v not in self.constant]

    @property
    def residuals(self) -> list[Value]:
        """The values of the forward step that are read and are no operand."""
        return [value for value in self.stacked if value not in self.operands]

    def _leaves(self) -> list[Value]:
        """The values of the forward body that the gradient reads, in order."""
        back = {new: old for old, new in reversed(self.values.items())}
        found: set[Value] = set()
        for value in self._read():
            if value in back and self.joint.node(value).op.name not in FREE:
                found.add(back[value])
        return sorted(found)

    def _read(self) -> list[Value]:
        """Everything that the gradients are made of, down to what the forward step has."""
        todo, seen = list(self.grads), set()
        while todo:
            value = todo.pop()
            if value in seen:
                continue
            seen.add(value)
            if value.node >= self.first:
                todo += self.joint.node(value).inputs
        return sorted(seen)

    def body(self) -> Graph:
        """One step of the gradient: cotangents, what it reads, then gradients as outputs."""
        order = [*self.seeds, *(self.values[v] for v in (*self.stacked, *self.constant))]
        return make_body(self.joint, self.forward.name, order, self.grads)
