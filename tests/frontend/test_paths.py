"""Paths of parameters are checkpoint keys: a change of rule would orphan every saved file."""

import pytest

from lamina.tests.frontend.building import codes, made, model, paths

RESNET = """
block ConvBN(out: int) {
  input x: [B, C, H, W]
  output y = x -> conv(out, kernel=3, padding=1, bias=false) -> bn: batchnorm
}

block Basic(out: int) {
  input x: [B, C, H, W]
  output y = x + (x -> c1: ConvBN(out) -> relu -> c2: ConvBN(out))
}

model M(depths: list[int] = [2, 3]) {
  input x: f32[B, 4, 8, 8]
  output y = x -> stages: for d in depths { (_ -> first: Basic(4) -> rest: repeat d { Basic(4) }) }
}
"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("output y = x -> head: linear(2, bias=false)", ["head.weight"]),
        ("output y = x -> linear(2, bias=false)", ["linear.weight"]),
        ("output y = x -> linear(8, bias=false) -> linear(2, bias=false)",
         ["linear0.weight", "linear1.weight"]),
        ("h = x -> linear(8, bias=false)\n output y = h -> linear(2, bias=false)",
         ["linear0.weight", "linear1.weight"]),
        ("output y = x -> a: linear(8, bias=false) -> linear(2, bias=false)",
         ["a.weight", "linear.weight"]),
        ("output y = x -> repeat 2 { linear(8, bias=false) }",
         ["repeat.0.weight", "repeat.1.weight"]),
        ("output y = x -> r: repeat 2 { f: linear(8, bias=false) }",
         ["r.0.f.weight", "r.1.f.weight"]),
        ("output y = x -> r: repeat 2 { linear(8, bias=false) -> linear(8, bias=false) }",
         ["r.0.linear0.weight", "r.0.linear1.weight", "r.1.linear0.weight", "r.1.linear1.weight"]),
        ("output y = x -> r: repeat 2 { linear(8, bias=false) -> relu }",
         ["r.0.linear.weight", "r.1.linear.weight"]),
        ("output y = x -> r: repeat 3 shared { f: linear(8, bias=false) }", ["r.f.weight"]),
        ("output y = x -> repeat 0 { linear(8) }", []),
        ("shared f = linear(8, bias=false)\n output y = x -> f -> relu -> f", ["f.weight"]),
        ("shared f = linear(8, bias=false) -> relu -> linear(8, bias=false)\n"
         " output y = x -> f -> f",
         ["f.linear0.weight", "f.linear1.weight"]),
        ("param w: [8] = 1\n output y = x * w", ["w"]),
        ("tie b.weight = a.weight\n"
         " output y = x -> a: linear(8, bias=false) -> b: linear(8, bias=false)", ["a.weight"]),
    ],
)  # fmt: skip
def test_rules(body, expected):
    """One row per naming rule of the language."""
    assert paths(model(body)) == expected


def test_a_new_layer_renames_no_labelled_one():
    """The reason for labels: models grow, checkpoints stay."""
    before = paths(model("output y = x -> a: linear(8) -> b: linear(8)"))
    after = paths(model("output y = x -> a: linear(8) -> linear(8) -> linear(8) -> b: linear(8)"))
    assert set(before) <= set(after)


def test_nested_repeats():
    """The deep path of the language page: repeats in loops, blocks in repeats."""
    found = paths(RESNET)
    assert found[0] == "stages.0.first.c1.conv.weight"
    assert "stages.0.rest.1.c2.conv.weight" in found
    assert "stages.1.rest.2.c2.bn.running_var" in found
    assert len(found) == len(set(found)) == 7 * 2 * 5


def test_a_shared_layer_keeps_its_path_when_passed_on():
    """`layer` arguments: weights live where `shared` stands, in whatever block they are used."""
    block = """
block Twice(f: layer) {
  input x: [B, D]
  output y = x -> f -> tanh -> f
}
"""
    assert paths(model("shared g = linear(8)\n output y = x -> Twice(g) -> g", block)) == [
        "g.weight", "g.bias"]  # fmt: skip
    # A layer that is not shared has weights at each place where it is used.
    assert paths(model("output y = x -> t: Twice(linear(8, bias=false))", block)) == [
        "t.f0.weight", "t.f1.weight"]  # fmt: skip


def test_two_instances_with_one_label_are_refused_or_apart():
    """Two stages with one path would share weights silently."""
    assert codes(model("output y = x -> a: linear(8) -> a: linear(8)")) == ["E302"]
    branches = "output y = (x -> a: linear(8)) if %s else (x -> a: linear(4))"
    assert codes(model(branches % "true")) == codes(model(branches % "false")) == []
    block = "block P(f: layer) {\n input x: [B, D]\n output y = %s\n}"
    assert codes(model("output y = x -> P(linear(8))", block % "f(x) + f(x)")) == ["E302"]
    assert codes(model("output y = x -> P(linear(8))", block % "f(x) + x")) == []


def test_label_that_clashes_with_a_numbered_name():
    """`linear0` as a label beside two unlabelled ones must not share a weight by accident."""
    body = "output y = x -> linear(8) -> linear(8) -> linear0: linear(8)"
    assert len(set(paths(model(body)))) == 6


def test_parameter_and_layer_of_one_name():
    """They are two things: the parameter is `a`, the layer's are below it."""
    text = model("param a: [8, 8] = glorot()\n output y = x @ a -> a: linear(3)")
    assert paths(text) == ["a", "a.weight", "a.bias"]


def test_nodes_carry_the_path_of_their_instance():
    """Reports by layer rest on it."""
    graph = made(RESNET).graph
    assert {node.path for node in graph.nodes if node.op.name == "conv2d"} >= {
        "stages.0.first.c1.conv", "stages.1.rest.2.c2.conv"}  # fmt: skip
