"""Gradients by what happens inside of a network: by layers' results and by the states of scans.

A probe is an input of zeros that is added to a value: it changes no number, and the loss's gradient
with respect to it is that with respect to the value. A scan gets a probe for every state and step.
It is run twice, so that two gradients are told apart: what the last step alone sends back in time,
and what the other steps add by what they hand out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.rewrite import copy_into, rewrite
from lamina.compiler.ir.types import FLOATS, Dim, TensorType, is_ragged
from lamina.compiler.ops.control import SCAN
from lamina.compiler.ops.define import GraphMath, Var
from lamina.compiler.transform.autodiff import add_gradients

LOSS = "loss"
ACTIVATION, GRADIENT = "activation:", "gradient:"  # outputs: norms of a layer
WEIGHT, SLOPE = "weight:", "slope:"  # outputs: norms of a parameter and its gradient
ALL, LAST = "all:", "last:"  # inputs: probes of zeros; outputs: norms for every step
LEAST = 1e-37  # float32 ends there


@dataclass(frozen=True, slots=True)
class Probe:
    """A state of a scan; `name` ends its inputs and outputs.

    `makers` are the paths within the scan of what makes each of its states. `type` is that of the
    states after all steps, [steps, ...]; `backwards`: the last step is 0. `examples` is the axis
    along which steps differ in number, 0 where they do not.
    """

    name: str
    path: str
    cell: str
    state: int
    makers: tuple[str, ...]
    backwards: bool
    type: TensorType
    examples: int


def flow_graph(graph: Graph, layers: Mapping[str, Value]) -> tuple[Graph, tuple[Probe, ...]]:
    """What flows through a graph with an output "loss", and the states that are measured.

    `layers` names values of the graph. Outputs: the loss; `activation:NAME` and `gradient:NAME` of
    every layer, `weight:KEY` and `slope:KEY` of every trained parameter: their norms; `all:PROBE`
    and `last:PROBE`, [steps]: the norms of the loss's gradient by a state after every step, in all
    and through the last step alone; [steps, examples] where their number differs by example. Inputs
    of these last two names take zeros.
    """
    named = {ACTIVATION + name: value for name, value in layers.items()}
    ready, probes = add_probes(Graph(graph.name, graph.nodes, (*graph.outputs, *named.items())))
    keys = [key for key, value in ready.params.items()
            if ready.node(value).attributes["trainable"]]
    wrt = {name: ready.output(name) for name in named} | {key: ready.params[key] for key in keys}
    for probe in probes:
        wrt |= {kind + probe.name: ready.inputs[kind + probe.name] for kind in (ALL, LAST)}
    derived = add_gradients(ready, LOSS, wrt)
    builder = Builder(graph.name)
    values = copy_into(builder, derived)
    m = GraphMath(builder)
    found = {name: Var(m, values[value]) for name, value in derived.outputs}
    weights = {key: Var(m, values[derived.params[key]]) for key in keys}
    outputs = {LOSS: found[LOSS]}
    for name in layers:
        outputs[ACTIVATION + name] = norm(m, found[ACTIVATION + name])
        outputs[GRADIENT + name] = norm(m, found[f"grad:{ACTIVATION}{name}"])
    for key in keys:
        outputs[WEIGHT + key] = norm(m, weights[key])
        outputs[SLOPE + key] = norm(m, found[f"grad:{key}"])
    for probe in probes:
        others, last = (found[f"grad:{kind}{probe.name}"] for kind in (ALL, LAST))
        kept = (0, probe.examples) if probe.examples else (0,)
        outputs[ALL + probe.name] = norm(m, others + last, kept)
        outputs[LAST + probe.name] = norm(m, last, kept)
    return builder.finish((name, var.value) for name, var in outputs.items()), probes


def norm(m: GraphMath, x: Var, kept: tuple[int, ...] = ()) -> Var:
    """The Euclidean norm over all axes but some, also of what is too small to be squared."""
    axes = tuple(axis for axis in range(len(x.shape)) if axis not in kept)
    largest = m.maximum(m.max(m.abs(x), axis=axes, keepdims=True), LEAST)
    y = x / largest
    shape = tuple(x.shape[axis] for axis in kept)
    return m.reshape(largest, shape=shape) * m.sqrt(m.sum(y * y, axis=axes))


# --- probes in scans ----------------------------------------------------------------------------


def add_probes(graph: Graph) -> tuple[Graph, tuple[Probe, ...]]:
    """The graph with two probes, inputs `all:PROBE` and `last:PROBE`, for every state of a scan.

    The sum of the gradients by both is that by the state; the second is the part that passes
    through the last step. Scans within the bodies of scans stay as they are.
    """
    probes: list[Probe] = []

    def rule(builder: Builder, node: Node, inputs: tuple[Value, ...]):
        if node.op is not SCAN or node.attributes["length"] == 0:
            return None
        own = _probes_of(graph, node, len(probes))
        probes.extend(own)
        return _run_twice(GraphMath(builder), node, inputs, own) if own else None

    return rewrite(graph, rule), tuple(probes)


def _probes_of(graph: Graph, node: Node, count: int) -> list[Probe]:
    """One for each state that can have a gradient."""
    assert node.body is not None
    attrs, found = node.attributes, []
    ragged = is_ragged(attrs["length"])
    makers = _makers(node)
    for state in range(attrs["states"]):
        type = node.outs[state]
        if type.dtype in FLOATS:
            stacked = TensorType((attrs["length"], *type.shape), type.dtype)
            found.append(Probe(str(count + len(found)), node.path, node.body.name, state,
                               makers, attrs["backwards"], stacked,
                               _examples(stacked, graph.type(_within(node))) if ragged else 0))
    return found


def _makers(node: Node) -> tuple[str, ...]:
    """The path within the scan of what makes each state: that of a cell which the cell uses."""
    assert node.body is not None
    outs = [value for _, value in node.body.outputs[:node.attributes["states"]]]
    within = _within_step(node.body, node.attributes)
    nodes = [node.body.node(_new_state(node.body, value, within)) for value in outs]
    return tuple(one.path.removeprefix(node.path).removeprefix(".") for one in nodes)


def _within_step(body: Graph, attrs: Mapping) -> Value | None:
    """Whether the step is before each example's end, where their steps differ in number."""
    last = attrs["states"] + attrs["sequences"] - 1
    return body.inputs[f"x{last}"] if is_ragged(attrs["length"]) else None


def _within(node: Node) -> Value:
    """Whether a step is before an example's end, bool [steps, examples]: the last sequence."""
    return node.inputs[node.attributes["states"] + node.attributes["sequences"] - 1]


def _examples(type: TensorType, within: TensorType) -> int:
    """The axis of the examples in what has one entry a step; 0 where it has none."""
    return next((axis for axis, size in enumerate(type.shape)
                 if axis and size == within.shape[1]), 0)


def _run_twice(m: GraphMath, node: Node, inputs: tuple[Value, ...], probes: list[Probe]
               ) -> tuple[Value, ...]:
    """The scan's results: those of the last step from one run of it, all others from another."""
    assert node.body is not None
    attrs = node.attributes
    before = attrs["states"] + attrs["sequences"]
    body = probed_body(node.body, attrs, [probe.state for probe in probes])
    attrs = {**attrs, "sequences": attrs["sequences"] + len(probes)}
    runs = []
    for kind in (ALL, LAST):
        zeros = [m.input(name=kind + probe.name, shape=probe.type.shape, dtype=probe.type.dtype)
                 for probe in probes]
        operands = [*inputs[:before], *(x.value for x in zeros), *inputs[before:]]
        scan = m.builder.emit(SCAN, operands, attrs, body)
        runs.append([Var(m, Value(scan.node, port)) for port in range(len(node.outs))])
    within = Var(m, inputs[before - 1]) if is_ragged(attrs["length"]) else None
    others, last = runs
    handed = [_joined(m, other, own, attrs["length"], attrs["backwards"], within)
              for other, own in zip(others[attrs["states"]:], last[attrs["states"]:], strict=True)]
    return tuple(x.value for x in (*last[:attrs["states"]], *handed))


def _joined(m: GraphMath, others: Var, last: Var, length: Dim, backwards: bool,
            within: Var | None) -> Var:
    """The last step's entry of `last`, with all other steps' of `others`.

    `within` says which steps an example has; forwards the last one is its own.
    """
    if backwards:
        return m.concat(_steps(m, last, 0, 1), _steps(m, others, 1, length), axis=0)
    axis = _examples(last.type, within.type) if within is not None else 0
    if within is None or not axis:
        return m.concat(_steps(m, others, 0, length - 1), _steps(m, last, length - 1, length),
                        axis=0)
    count = m.sum(m.cast(within, dtype="f32"), axis=0, keepdims=True)
    ends = m.equal(m.cast(m.iota(shape=(length, 1), axis=0), dtype="f32"), count - 1.0)
    own = tuple(size if place in (0, axis) else 1 for place, size in enumerate(last.shape))
    return m.select(m.reshape(ends, shape=own), last, others)


def _steps(m: GraphMath, x: Var, start: Dim, stop: Dim) -> Var:
    rest = x.shape[1:]
    return m.slice(x, starts=(start, *(0 for _ in rest)), stops=(stop, *rest),
                   steps=(1,) * len(x.shape))


def probed_body(body: Graph, attrs: Mapping, states: list[int]) -> Graph:
    """The body with a further sequence for each of these states, added to it after the step.

    Whatever reads the new state, in this step or the next, reads it with the probe.
    """
    before = attrs["states"] + attrs["sequences"]
    builder = Builder(body.name)
    m = GraphMath(builder)
    outs = [value for _, value in body.outputs]
    inputs = [body.inputs[f"x{index}"] for index in range(len(body.inputs))]
    values = {value: m.placeholder(index, body.type(value)).value
              for index, value in enumerate(inputs[:before])}
    probes = {state: m.placeholder(before + number, body.type(outs[state]))
              for number, state in enumerate(states)}
    within = _within_step(body, attrs)
    news = {state: _new_state(body, outs[state], within) for state in states}
    values |= {value: m.placeholder(before + len(states) + index, body.type(value)).value
               for index, value in enumerate(inputs[before:])}
    given = set(values)
    for node in body.nodes:
        if node.op.name == "input":
            continue
        with builder.at(node.span, node.path):
            first = builder.emit(node.op, [values[value] for value in node.inputs],
                                 node.attributes, node.body)
            for port in range(len(node.outs)):
                old, new = Value(node.id, port), Var(m, Value(first.node, port))
                for state, probe in probes.items():
                    new = new + probe if news[state] == old else new
                values[old] = new.value
    results = [values[value] for value in outs]
    for state, probe in probes.items():
        if news[state] in given:  # the step hands on what came in
            results[state] = (Var(m, results[state]) + probe).value
    return builder.finish([(f"y{index}", value) for index, value in enumerate(results)])


def _new_state(body: Graph, after: Value, within: Value | None) -> Value:
    """What a step makes of a state, which it becomes only before each example's end."""
    node = body.node(after)
    if within is None or node.op.name != "select":
        return after
    condition = node.inputs[0]
    return node.inputs[1] if within in (condition, *body.node(condition).inputs) else after
