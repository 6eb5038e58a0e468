"""One planted fault per rule of the verifier: a rule that never fires protects nothing."""

from dataclasses import replace

import pytest

from lamina.compiler.ir import Builder
from lamina.compiler.ir import verify as verifying
from lamina.compiler.ir.graph import Graph, Value
from lamina.compiler.ir.types import TensorType
from lamina.compiler.ops import GraphMath
from lamina.compiler.transform.pipeline import run_passes


def sound() -> Graph:
    """x -> tanh -> mul, with a parameter; nodes 0 x, 1 p, 2 tanh, 3 mul."""
    m = GraphMath(Builder("sound"))
    x, p = m.input(name="x", shape=(2, 3)), m.param(key="p", shape=(2, 3))
    return m.builder.finish([("y", (m.tanh(x) * p).value)])


def changed(graph: Graph, name: str, **fields) -> Graph:
    """The graph with fields of its first node of that operator replaced."""
    first = next(node.id for node in graph.nodes if node.op.name == name)
    nodes = [replace(n, **fields) if n.id == first else n for n in graph.nodes]
    return Graph(graph.name, nodes, graph.outputs)


def twice(graph: Graph) -> Graph:
    node = next(n for n in graph.nodes if n.op.name == "input")
    return Graph(graph.name, [*graph.nodes, replace(node, id=99)], graph.outputs)


def broken_body() -> Graph:
    graph = run_passes(sound(), check=True)[-1].graph
    fused = next(n for n in graph.nodes if n.body is not None)
    return changed(graph, "fused", body=changed(fused.body, "tanh", outs=(TensorType((9,)),)))


FAULTS = {
    "producers_come_first": lambda: Graph("g", sound().nodes[::-1], sound().outputs),
    "operands_exist": lambda: changed(sound(), "tanh", inputs=(Value(0, 7),)),
    "types_are_inferred": lambda: changed(sound(), "tanh", outs=(TensorType((3, 2)),)),
    "attributes_are_complete": lambda: changed(sound(), "tanh", attrs=(("colour", 3),)),
    "outputs_exist": lambda: Graph("g", sound().nodes, [("y", Value(50))]),
    "sources_are_unique": lambda: twice(sound()),
    "bodies_are_valid": broken_body,
}


def test_every_rule_has_a_fault():
    """A new rule needs a graph that it refuses."""
    assert list(FAULTS) == [rule.__name__ for rule in verifying.RULES]


@pytest.mark.parametrize("rule", FAULTS)
def test_the_rule_reports_its_fault(rule):
    """And the sound graph passes all rules."""
    assert verifying.problems(sound()) == []
    assert list(getattr(verifying, rule)(FAULTS[rule]()))
    with pytest.raises(AssertionError, match="invalid graph after planting"):
        verifying.verify(FAULTS[rule](), "planting")


def test_an_output_name_given_twice_is_reported():
    """The second half of the rule on outputs."""
    graph = sound()
    value = graph.output("y")
    assert "given twice" in " ".join(
        verifying.problems(Graph("g", graph.nodes, [("y", value), ("y", value)])))
