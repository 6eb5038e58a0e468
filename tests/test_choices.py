"""`lamina show --stage kernels --why`: the algorithms are those that run, the reasons true."""

import re
from itertools import combinations

import pytest
from click.testing import CliRunner

import lamina
from lamina.api import compile_graph
from lamina.cli import main
from lamina.commands.bench import example_sizes
from lamina.commands.choices import (
    DEPTHWISE,
    DIRECT,
    PRODUCT,
    SHIFTED,
    WINOGRAD,
    Choice,
    choices_of,
    choices_text,
)
from lamina.commands.selection import select_training
from lamina.compiler.transform.pipeline import PASSES
from lamina.compiler.transform.winograd import VARIANTS, gain_of
from lamina.runtime.cpu.plan import make_plan, total_macs
from lamina.runtime.program import BACKWARD, THREADS

SMALL = """model Small {
  input image: f32[B, 24, 12, 10]
  y = image -> point: conv(32, kernel=1) -> relu -> wide: conv(40, kernel=3, padding=1) -> relu
    -> down: conv(32, kernel=3, stride=2, padding=1) -> batchnorm -> relu
    -> each: conv(32, kernel=3, padding=1, groups=32) -> relu
    -> tight: conv(32, kernel=3, padding=1) -> relu -> flatten
  output logits = y -> head: linear(10)
}
"""
FOUR, TWO, _ = VARIANTS
OPTIONAL = [one.name for one in PASSES if one.optional]


def run(*args):
    """(exit code, output) of a command; an exception is a failure of the test."""
    found = CliRunner().invoke(main, [str(arg) for arg in args])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.output


@pytest.fixture(scope="module")
def net():
    """A 1x1, two 3x3, a strided 3x3 and a depthwise convolution, and a linear layer."""
    return lamina.loads(SMALL).Small()


@pytest.fixture(scope="module")
def gradients(net):
    """The graph of its loss with all gradients."""
    return net.value_and_grad("cross_entropy(logits, label)", target="numpy").graph


def by_layer(choices):
    return {one.label.partition(":")[0]: one for one in choices}


def test_each_layer_has_its_algorithm_and_reason(net):
    # One layer for each answer.
    found = by_layer(choices_of(net.graph, 3))
    assert {layer: one.algorithm for layer, one in found.items()} == {
        "point": PRODUCT, "wide": WINOGRAD, "down": DIRECT, "each": DEPTHWISE,
        "tight": WINOGRAD, "head": PRODUCT}
    assert found["point"].why == "a convolution by 1x1 is a product over its pixels"
    gain = gain_of(FOUR, 12, 10, 32, 40)
    assert found["wide"].why == \
        f"F(4x4, 3x3) with stride 1: {gain:.2f} times as fast as direct by its count"
    gain = gain_of(TWO, 6, 5, 32, 32)
    assert found["tight"].why == \
        f"F(2x2, 3x3) with stride 1: {gain:.2f} times as fast as direct by its count"
    assert found["down"].why == "no Winograd: its stride is not 1"
    assert found["each"].why.startswith("each channel has a filter of its own")
    assert found["head"].why == "a product as it stands"


def test_work_is_counted_as_the_algorithm_does_it(net):
    # By hand: 12 x 10 results are 3 x 3 tiles of 4 x 4, the last of them cut, and 6 x 5 as many of
    # 2 x 2; 40 outputs are 2 panels of 32.
    found = by_layer(choices_of(net.graph, 3))
    wide = found["wide"]
    assert wide.macs == 3 * 12 * 10 * 40 * 32 * 9
    assert wide.own == 3 * 3 * 3 * 36 * 32 * 40
    assert wide.work == 3 * 3 * 3 * (36 * 32 * 64 + FOUR.transform * (32 + 64))
    tight = found["tight"]
    assert tight.macs == 3 * 6 * 5 * 32 * 32 * 9
    assert tight.own == 3 * 3 * 3 * 16 * 32 * 32
    assert tight.work == 3 * 3 * 3 * (16 * 32 * 32 + TWO.transform * (32 + 32))
    assert found["each"].macs == 3 * 6 * 5 * 32 * 9 and found["head"].macs == 3 * 960 * 10
    assert all(one.own == one.work == one.macs for one in found.values()
               if one not in (wide, tight))


def test_tiles_are_those_of_the_kernels(net):
    # Ten columns of a product fit into a vector where it is that wide; a depthwise tile is low.
    found = by_layer(choices_of(net.graph, 1))
    width = found["wide"].tile[2]
    high = 14 if width == 16 else 6
    assert found["wide"].tile == found["down"].tile == (high, 2, width)
    assert found["each"].tile == (4, 2, width)
    assert found["head"].tile[1] == (1 if width >= 10 else 2)
    assert found["head"].tile[0] > 1  # not the one that few rows have


def test_what_is_left_out_is_the_reason(net):
    # Without a pass the next best kernel runs, and the variable is to blame.
    found = by_layer(choices_of(net.graph, 3, frozenset({"winograd"})))
    assert found["wide"].algorithm == SHIFTED
    found = by_layer(choices_of(net.graph, 3, frozenset({"winograd", "shifted"})))
    assert (found["wide"].algorithm, found["wide"].own) == (DIRECT, found["wide"].macs)
    assert found["wide"].why == "no Winograd: LAMINA_SKIP leaves out winograd"
    assert found["down"].why == "no Winograd: its stride is not 1"
    found = by_layer(choices_of(net.graph, 3, frozenset({"pointwise"})))
    assert (found["point"].algorithm, found["point"].why) == \
        (DIRECT, "no product: LAMINA_SKIP leaves out pointwise")


@pytest.mark.parametrize("skip", [frozenset(names) for count in (0, 1, 2, len(OPTIONAL))
                                  for names in combinations(OPTIONAL, count)], ids=sorted)
def test_figures_are_those_of_the_program_whatever_is_left_out(gradients, skip):
    # Every step that multiplies has a line, its MACs in it, and a reason that names something.
    program = compile_graph(gradients, skip)
    plan = make_plan(program, {**example_sizes(gradients, 2), THREADS: 1})
    counts = [(step.label, step.part, macs) for step, macs in
              zip(program.steps, total_macs(program, plan), strict=True) if macs]
    found = choices_of(gradients, 2, skip)
    assert [(one.label, one.part, one.macs) for one in found] == counts
    for one in found:
        assert one.tile and re.search(r"\w$", one.why), one
        assert one.label.rpartition(" ")[2].startswith("matmul") == (one.algorithm == PRODUCT)
        assert one.own == one.macs or one.algorithm in (WINOGRAD, SHIFTED)
        assert one.algorithm != WINOGRAD or one.own != one.macs


@pytest.mark.parametrize("name", ["seq2seq", "mobilenet"])
def test_reasons_belong_to_their_steps(name):
    # Loops and long backward passes: fusion puts steps in another order than the graph's.
    choices = choices_of(select_training(name, "", {}, {})[1], 2)
    for one in choices:
        operators = one.label.rpartition(": ")[2]
        assert ("conv2d" in operators.partition("+")[0]) == (one.algorithm != PRODUCT), one
        if one.apart:
            assert "weight_grad" not in operators
    assert any(one.part == BACKWARD for one in choices)
    if name == "mobilenet":
        were = [one.why for one in choices if one.algorithm == PRODUCT]
        assert were.count("a product as it stands") == 3  # the last layer, and its two gradients
        assert {one.why for one in choices if "weight_grad" in one.label} == \
            {"no Winograd: its stride is not 1",
             "each channel has a filter of its own: no sum over channels"}


def test_what_is_not_fused_behind_a_convolution_is_told(net, gradients):
    # In training the statistics of a batch-norm read all of it before anything else can.
    assert not any(one.apart for one in choices_of(net.graph, 2))
    (down,) = [one for one in choices_of(gradients, 2)
               if one.label.startswith("down: conv2d") and one.part != BACKWARD]
    assert ("reduce_sum", "only elementwise work on the whole result follows a contraction") \
        in down.apart


def test_a_kernel_of_which_one_tap_meets_pixels_is_a_product():
    # On one pixel a border of zeros meets all other taps; they are not even counted.
    net = lamina.loads("""model Dot {
  input image: f32[B, 32, 1, 1]
  output y = image -> dot: conv(16, kernel=3, padding=1)
}
""").Dot()
    (one,) = choices_of(net.graph, 3)
    assert (one.algorithm, one.macs) == (PRODUCT, 3 * 32 * 16)
    assert one.why == "one tap of its 3x3 meets pixels: a product over these"
    (one,) = choices_of(net.graph, 3, frozenset({"pointwise", "shifted"}))
    assert (one.algorithm, one.macs) == (DIRECT, 3 * 32 * 16 * 9)


def test_text_of_a_table_made_by_hand():
    # Milliseconds are twice the work over the rate; reasons are listed once, below.
    one = Choice("a: conv2d", "net.lam:3", "forward", WINOGRAD, (14, 2, 16), 9_000_000, 2_500_000,
                 5_000_000, "because", (("reduce_sum", "it waits"), ("mul", "it is far")))
    other = Choice("b: matmul", "net.lam:4", BACKWARD, PRODUCT, (16, 1, 16), 1_000_000, 1_000_000,
                   1_000_000, "as it is", (("sub", "it waits"),))
    lines = choices_text([one, other], {"B": 4}, 100, False, frozenset({"fuse"})).splitlines()
    assert lines[0].startswith("contractions for B = 4, vectors of ")
    assert lines[1] == "LAMINA_SKIP leaves out fuse"
    cells = [re.split(r"  +", line.strip()) for line in lines[2:6]]
    assert cells[0] == ["MACs", "multiplies", "ms", "tile", "algorithm", "part", "step", "at",
                        "why", "not fused behind it"]
    assert cells[1] == ["9,000,000", "2,500,000", "0.100", "14 x 2*16", WINOGRAD, "forward",
                        "a: conv2d", "net.lam:3", "because", "reduce_sum [1], mul [2]"]
    assert cells[2] == ["1,000,000", "0.020", "16 x 1*16", PRODUCT, "backward", "b: matmul",
                        "net.lam:4", "as it is", "sub [1]"]
    assert cells[3] == ["10,000,000", "3,500,000", "0.120", "total"]
    assert lines[7:9] == ["[1] it waits", "[2] it is far"]
    assert "at 100.0 GFLOP/s (as --rate says)" in " ".join(lines)


def test_the_command_prints_it(tmp_path, monkeypatch):
    # Told rates need no measurement; what is left out is named for every stage.
    path = tmp_path / "small.lam"
    path.write_text(SMALL)
    asked = ("show", path, "--stage", "kernels", "--why", "--rate", 50)
    code, text = run(*asked, "--batch", 3)
    assert code == 0 and text.startswith("contractions for B = 3,") and WINOGRAD in text
    assert "F(4x4, 3x3) with stride 1" in text
    assert f"{3 * 12 * 10 * 40 * 32 * 9:,}" in text and "LAMINA_SKIP" not in text
    assert "backward" in run("show", "lenet5", *asked[2:], "--train")[1]
    marks = {"kernels": "Winograd: convolution", "fused": "'winograd'", "layout": ""}
    plain = {stage: run("show", path, "--stage", stage)[1] for stage in (*marks, "memory")}
    monkeypatch.setenv("LAMINA_SKIP", "winograd,shifted")
    code, text = run(*asked)
    assert code == 0 and "no Winograd: LAMINA_SKIP leaves out winograd" in text
    assert "F(4x4, 3x3) with" not in text and "F(2x2, 3x3) with" not in text
    note = "note: LAMINA_SKIP leaves out shifted and winograd\n"
    for stage, before in plain.items():
        code, text = run("show", path, "--stage", stage)
        assert code == 0 and note in text and note not in before
        mark = marks.get(stage, "")
        assert mark in before and not (mark and mark in text)
        assert (text.replace(note, "") == before) == (stage == "layout")
    code, text = run("show", path, "--stage", "winograd")
    assert code == 2 and "leaves out the pass winograd" in text
    monkeypatch.setenv("LAMINA_SKIP", "winnograd")
    code, text = run("show", path, "--stage", "graph")
    assert code == 1 and "'winnograd'" in text


def test_the_rate_is_measured_where_it_is_not_told(tmp_path):
    # And the text says with what.
    path = tmp_path / "small.lam"
    path.write_text(SMALL)
    code, text = run("show", path, "--stage", "kernels", "--why")
    found = re.search(r"at ([\d.,]+) GFLOP/s \(measured now with a product of 1024 x 1024",
                      " ".join(text.split()))
    assert code == 0 and found and float(found[1].replace(",", "")) > 0


@pytest.mark.parametrize("hidden,why", [
    (32, ""), (40, "parts of 40 columns do not fill tiles of 32")])
def test_gates_are_finished_with_their_product_or_have_a_reason(hidden, why):
    # A cell whose gates cannot be finished with their product says so beside it.
    net = lamina.loads("model Cells { input x: f32[B, T, 9]\n"
                       f"output y = x -> lstm({hidden}) }}").Cells()
    (gates,) = [one for one in choices_of(net.graph, 2) if one.label.count("+") > 1]
    assert gates.why == "a product as it stands" + \
        ("" if why else "; its 4 parts (gates) are finished together")
    assert gates.apart == ((("slice", why),) if why else ())


def test_gates_with_much_to_keep_have_a_loop_of_their_own():
    # What the backward pass reads of an LSTM's step is more than the end of a product writes well.
    net = lamina.loads("model Cells { input x: f32[B, 4, 9]\n"
                       "output logits = x -> lstm(32) -> flatten -> linear(3) }").Cells()
    graph = net.value_and_grad("cross_entropy(logits, label)", target="numpy").graph
    reasons = [reason for one in choices_of(graph, 2) for name, reason in one.apart
               if name == "slice"]
    assert reasons == ["7 results are kept, which a loop of their own writes faster"]
