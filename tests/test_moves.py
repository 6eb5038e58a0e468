"""`lamina show --stage fused` tells all that is only moved in memory, with the true reason."""

import re

import pytest
from click.testing import CliRunner

import lamina
from lamina.api import compile_graph
from lamina.cli import main
from lamina.commands.moves import MOVES, PACKS, moves_of, moves_text
from lamina.commands.selection import select_net, select_training
from lamina.compiler.transform.pipeline import run_passes

PICTURES = """model Pictures {
  input image: f32[B, 3, 8, 8]
  y = image -> a: conv(16, kernel=3) -> relu -> b: conv(16, kernel=2, stride=2, padding=1)
  output features = y
  output logits = y -> flatten -> head: linear(10)
}
"""
TURNED = """model Turned {
  input x: f32[B, 6, 4]
  output y = x -> up: linear(5) -> transpose(perm=(0, 2, 1))
}
"""
JOINED = """model Joined {
  input x: f32[B, 6]
  a = tanh(x)
  b = a -> one: linear(5)
  output y = (a, x, b, exp(x)) -> concat(axis=1)
}
"""


def moved(text, batch=2):
    """The moves of a model's evaluation."""
    graph = run_passes(lamina.loads(text).model().graph)[-1].graph
    return moves_of(graph, batch)


def test_each_move_has_its_place_and_reason():
    # One of each that a picture network needs, with its bytes counted by hand.
    found = {(one.of, one.what): one for one in moved(PICTURES)}
    assert set(found) == {("a: conv2d+add+relu", "copy"), ("b: pad", "fill"),
                          ("b: pad", "copy"), ("reshape", "copy"), ("features", "copy"),
                          ("weights, 2 times", PACKS)}
    image = found["a: conv2d+add+relu", "copy"]
    assert image.why == "a convolution reads channels last, but input `image` lies channels first"
    assert (image.bytes, image.at) == (2 * 4 * 2 * 3 * 8 * 8, "<text>:3")
    border = found["b: pad", "fill"]
    assert border.why == "a border of 0, which the kernel reads like the image"
    assert border.bytes == 4 * 2 * 16 * 8 * 8  # written only
    flat = found["reshape", "copy"]
    assert flat.why == ("the reshape from [B, 16, 4, 4] to [B, 256] takes elements in the order "
                        "of the axes, for head, but it lies channels last")
    assert (flat.bytes, flat.once) == (2 * 4 * 2 * 16 * 4 * 4, False)
    assert found["features", "copy"].why == \
        "output `features` is given in the order of its axes, but it lies channels last"
    assert found["weights, 2 times", PACKS].once


def test_a_transpose_of_the_user_is_the_reason():
    # No layer asks for channels last here: the axes are named.
    (one,) = [one for one in moved(TURNED) if one.what == "copy"]
    assert one.why == ("output `y` is given in the order of its axes, but it lies with its axes "
                       "in the order (0, 2, 1)")


def test_what_is_joined_is_copied_where_it_is_read_apart():
    # The elementwise operand is written in place, and so has no line.
    found = [one.why for one in moved(JOINED) if one.what == "copy"]
    assert found == ["it is joined to others, and read apart from them too",
                     "it is joined to others, and input has memory of its own",
                     "it is joined to others, and `matmul` writes memory of its own"]


def test_nothing_moves_where_nothing_must():
    # And then the text says so.
    graph = run_passes(lamina.loads(
        "model M {\n  input x: f32[B, 6]\n  output y = tanh(x) * 2\n}").M().graph)[-1].graph
    assert moves_text(graph, 1) == "nothing is only moved in memory"


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["lenet5", "seq2seq", "unet", "resnet#ResNet50", "detector"])
def test_every_move_of_a_model_is_told(name, train):
    # No step that only moves is without a reason, and none that computes has one.
    name, _, choice = name.partition("#")
    graph = select_training(name, choice, {}, {})[1] if train else \
        select_net(name, choice, {}, {}).graph
    program = compile_graph(graph)
    steps = [step for step in program.steps if step.helper.rpartition(" ")[2] in MOVES]
    for step in program.steps:
        what = step.helper.rpartition(" ")[2]
        assert bool(step.why) == (what in MOVES and what != PACKS), step.label
    found = moves_of(run_passes(graph)[-1].graph, 2)
    assert sum(one.count for one in found) == len(steps)
    assert all(one.bytes > 0 for one in found)


def test_the_command_prints_them_below_the_graph():
    # The last stage only, with the sizes that were asked for; totals are of a run.
    def run(*args):
        return CliRunner().invoke(main, ["show", "lenet5", *args]).output

    text = run("--stage", "fused", "--batch", "3")
    graph, _, table = text.partition("moves in memory that remain, for B = 3\n")
    assert graph.startswith("graph LeNet5 {") and graph.rstrip().endswith("}")
    assert re.search(rf"^ +{2 * 4 * 3 * 400:,}  copy  +reshape +lenet5.lam:10 +\[2\]$", table, re.M)
    assert f"In all {2 * 4 * 3 * 400:,} in every run, and " in table
    assert "moves in memory" not in run("--stage", "layout")
    assert "backward" in run("--stage", "fused", "--train").partition("moves in memory")[2]


def test_an_image_with_a_border_is_moved_once():
    # Into the border and channels last at once, for the convolution and for its weights' gradient.
    text = """model Stem {
  input image: f32[B, 3, 9, 9]
  output logits = image -> a: conv(8, kernel=3, stride=2, padding=1) -> flatten -> b: linear(2)
}
"""
    graph = lamina.loads(text).Stem().value_and_grad(
        "cross_entropy(logits, label)", target="numpy").graph
    found = moves_of(run_passes(graph)[-1].graph, 2)
    assert [one.what for one in found if one.of == "a: pad"] == ["fill", "copy"]
    assert not any("`image`" in one.why for one in found)
