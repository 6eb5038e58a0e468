"""Weights under other names: patterns, what is left out, and what does not fit."""

import numpy as np
import pytest

from lamina.runtime.checkpoint import CheckpointError
from lamina.runtime.weights import Rule, fill, map_weights, match

# The rules of the language page: a common ResNet checkpoint into the example's names.
RESNET = (
    Rule("conv1.*", "stem.conv.*"),
    Rule("layer{s+1}.0.conv{i}.*", "stages.{s}.first.c{i}.conv.*"),
    Rule("layer{s+1}.{j+1}.conv{i}.*", "stages.{s}.rest.{j}.c{i}.conv.*"),
    Rule("fc.*", None),
)


@pytest.mark.parametrize(("name", "target"), [
    ("conv1.weight", "stem.conv.weight"),
    ("layer1.0.conv2.weight", "stages.0.first.c2.conv.weight"),
    ("layer3.4.conv1.weight", "stages.2.rest.3.c1.conv.weight"),
])
def test_patterns_of_the_language_page(name, target):
    # Numbers shift by one between a file that counts from 1 and a path that counts from 0.
    wanted = {target: np.zeros((2, 3), np.float32)}
    mapped = map_weights({name: np.ones((2, 3))}, RESNET, wanted, "file")
    assert list(mapped.tensors) == [target]
    assert mapped.tensors[target].dtype == np.float32
    assert mapped.missing == ()


def test_a_skipped_tensor_leaves_the_initial_value():
    # The head of another task stays out, and the model is told what got nothing.
    wanted = {"head.weight": np.zeros(3, np.float32)}
    mapped = map_weights({"fc.weight": np.ones(5)}, RESNET, wanted, "file")
    assert mapped.tensors == {}
    assert mapped.missing == ("head.weight",)


def test_strangers_are_named():
    # A tensor that lands nowhere is a mistake in the rules, said before training starts.
    with pytest.raises(CheckpointError, match="bn9.weight") as caught:
        map_weights({"bn9.weight": np.ones(3)}, RESNET, {}, "file")
    assert caught.value.code == "E703"


def test_shapes_must_agree():
    # Both shapes and the way out are in the message.
    wanted = {"stem.conv.weight": np.zeros((64, 3, 7, 7), np.float32)}
    with pytest.raises(CheckpointError, match=r"\[64, 1, 7, 7\].*\[64, 3, 7, 7\]"):
        map_weights({"conv1.weight": np.ones((64, 1, 7, 7))}, RESNET, wanted, "file")


def test_two_tensors_for_one_name_are_refused():
    # Which one would win must not depend on the file's order.
    wanted = {"a": np.zeros(1, np.float32)}
    rules = (Rule("x{i}", "a"),)
    with pytest.raises(CheckpointError, match="both x1 and x2 map to a"):
        map_weights({"x1": np.ones(1), "x2": np.ones(1)}, rules, wanted, "file")


def test_a_hole_must_stand_for_something():
    # A letter that occurs on one side only cannot be filled.
    values = match("layer{s}.*", "layer2.w")
    assert values is not None
    with pytest.raises(CheckpointError, match="stands for nothing"):
        fill("stages.{t}.*", values)


@pytest.mark.parametrize("name", ["layer1.0.conv.weight", "layerx.0.conv1.weight", "fcc.w"])
def test_what_does_not_fit_is_not_matched(name):
    # A pattern is the whole name, and numbers are numbers.
    assert all(match(rule.source, name) is None for rule in RESNET)


def test_a_shift_below_zero_does_not_fit():
    # layer0 has no place among paths that start at stages.0 for layer1.
    assert match("layer{s+1}.*", "layer0.w") is None
