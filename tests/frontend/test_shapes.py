"""Symbols, expressions in shapes, indices: what each text makes of a shape."""

import pytest

from lamina.tests.frontend.building import codes, made, model, types

IMAGE = "input x: f32[B, 3, H, W]"


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("[:, 0]", "[B, 5]"), ("[:, -1]", "[B, 5]"), ("[:, 1:3]", "[B, 2, 5]"),
        ("[:, -2:]", "[B, 2, 5]"), ("[:, :-1]", "[B, 8, 5]"), ("[:, ::2]", "[B, 5, 5]"),
        ("[:, 1::3]", "[B, 3, 5]"), ("[:, 2:100]", "[B, 7, 5]"), ("[:, -100:2]", "[B, 2, 5]"),
        ("[:, 5:2]", "[B, 0, 5]"), ("[..., 0]", "[B, 9]"), ("[0, ..., 0]", "[9]"),
        ("[:, new]", "[B, 1, 9, 5]"), ("[..., new]", "[B, 9, 5, 1]"), ("[new, 0]", "[1, 9, 5]"),
        ("[:, :, 1, new]", "[B, 9, 1]"), ("[...]", "[B, 9, 5]"), ("[:, :5 - 1]", "[B, 4, 5]"),
        ("[0:1]", "[1, 9, 5]"), (".T", "[B, 5, 9]"),
    ],
)  # fmt: skip
def test_indices(index, expected):
    """As in NumPy, for every form of index."""
    text = model(f"output y = x{index}", input="input x: f32[B, 9, 5]")
    assert types(text) == {"y": f"f32{expected}"}


@pytest.mark.parametrize(
    ("dim", "value"),
    [("ceil(8 / 3)", 3), ("floor(8 / 3)", 2), ("8 // 3", 2), ("2 ** 3 - 1", 7), ("8 % 5", 3),
     ("max(2, 3) * min(4, 5)", 12), ("len([1, 2])", 2), ("pair(3)[1]", 3),
     ("pair((4, 5))[1]", 5), ("round(2.6)", 3), ("int(3.7)", 3), ("abs(-4)", 4),
     ("sum([1, 2, 3])", 6), ("3 if 1 < 2 else 4", 3), ("3 if not true else 4", 4),
     ("3 if 2 in [1, 2] and 5 not in range(3) else 4", 3), ("range(2, 9, 3)[2]", 8),
     ("enumerate([5, 6])[1][1]", 6), ("zip([1, 2], [3, 4])[1][1]", 4)],
)  # fmt: skip
def test_compile_time_functions(dim, value):
    """Each function of sizes and settings, in the place where it is used most: a setting."""
    assert types(model(f"output y = x -> linear({dim})")) == {"y": f"f32[B, {value}]"}


def test_the_image_sizes_of_a_resnet_agree():
    """Five halvings by ceil, under the assertion that 32 divides, equal one division by 32."""
    body = """
  assert H % 32 == 0 and W % 32 == 0
  h: [B, 3, ceil(H / 2), ceil(W / 2)] = x -> maxpool(3, stride=2, padding=1)
  output y: [B, 3, H // 32, W // 32] = h -> repeat 4 { maxpool(3, stride=2, padding=1) }
"""
    assert types(model(body, input=IMAGE)) == {"y": "f32[B, 3, H // 32, W // 32]"}
    without = body.replace("assert H % 32 == 0 and W % 32 == 0", "")
    assert codes(model(without, input=IMAGE)) == ["E311"]


def test_symbols_are_solved_once_per_instance():
    """The same block twice, with other sizes."""
    block = "block A {\n input x: [B, 2 * K + 1]\n output y: [B, K] = x[:, :K]\n}"
    text = model("h = x -> A\n output y = h -> A", block, "input x: f32[B, 15]")
    assert types(text) == {"y": "f32[B, 3]"}


def test_a_symbol_is_solved_from_an_expression_with_symbols():
    """K = 3 H solves 2 * K = 6 * H."""
    block = "block A {\n input x: [B, 2 * K]\n output y: [B, K] = x[:, :K]\n}"
    text = model("h = x -> as [B, 6 * H]\n output y = h -> A", block, "input x: f32[B, 6, H]")
    assert types(text) == {"y": "f32[B, 3 * H]"}


def test_dots_stand_for_any_number_of_axes():
    """One `linear` for vectors and for sequences of vectors."""
    for shape in ("B, 8", "B, 3, 8", "B, 2, 3, 4, 8"):
        text = model("output y = x -> linear(5)", input=f"input x: f32[{shape}]")
        assert types(text) == {"y": f"f32[{shape[:-1]}5]"}


def test_sizes_can_be_given():
    """`sizes` fixes a symbol, so that conditions on it can be decided."""
    body = "output y = (x -> linear(4)) if B > 3 else x"
    assert codes(model(body)) == ["E403"]
    assert types(model(body), sizes={"B": 5}) == {"y": "f32[5, 4]"}
    assert types(model(body), sizes={"B": 2}) == {"y": "f32[2, 8]"}


def test_axes_by_symbol():
    """`axis=S` is the axis of that size wherever it is."""
    body = "output a = softmax(x, axis=S), b = sum(x, axis=S), c = x -> mean(axis=C)"
    assert types(model(body, input="input x: f32[B, S, C]")) == {
        "a": "f32[B, S, C]", "b": "f32[B, C]", "c": "f32[B, S]"}  # fmt: skip


def test_inputs_share_symbols():
    """One B for all inputs of a model."""
    text = model("input z: f32[B, 8]\n output y = x + z")
    assert types(text) == {"y": "f32[B, 8]"}
    assert list(made(text).graph.inputs) == ["x", "z"]


def test_assertions_that_sizes_decide_later_are_kept_silent():
    """An open size cannot be refused when compiled."""
    assert codes(model("assert B % 7 == 0, \"no\"\n output y = x")) == []
