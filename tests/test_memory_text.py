"""`lamina show --stage memory`: what it says of the arena is true, and is said in words."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import lamina
from lamina.cli import main
from lamina.commands.bench import example_sizes
from lamina.commands.memory import live_bytes, memory_text, plan_memory, show_memory
from lamina.commands.report import report_data
from lamina.commands.selection import select_training
from lamina.compiler.inspect.cost import result_bytes, summarize
from lamina.compiler.ir.types import substitute
from lamina.compiler.lower.program import lower
from lamina.compiler.transform.pipeline import run_passes
from lamina.runtime.cpu.plan import GUARD, aligned, make_plan
from lamina.runtime.program import BACKWARD, THREADS, UPDATING, Buffer, Program, Step

# A convolution with its packed weights, the loss, and its weights' gradient, until the update.
STEPS = (Step(0, (), label="c1: conv2d+relu pack", line=3),
         Step(0, (), label="c1: conv2d+relu", line=3),
         Step(0, (), label="reduce_sum", line=9),
         Step(0, (), label="c1: conv2d_weight_grad", line=3, part=BACKWARD),
         Step(0, (), label="c1: conv2d_weight_grad combine", line=3, part=BACKWARD),
         Step(0, (), label="optimizer: mul+sub", part=UPDATING))
BUFFERS = (Buffer("input", "image", "f32", ("B", 512)),
           Buffer("param", "c1.weight", "f32", (1000,)),
           Buffer("param", "optimizer/c1.weight.m", "f32", (1000,)),
           Buffer("temp", "", "f32", (1024,), first=0, last=1,
                  label="c1: conv2d+relu, packed weights"),
           Buffer("temp", "", "f32", ("B", 8192), first=1, last=3, label="c1: conv2d+relu"),
           Buffer("temp", "", "f32", (1,), first=2, last=2, label="reduce_sum"),
           Buffer("temp", "", "f32", (2048,), first=3, last=4,
                  label="c1: conv2d_weight_grad, partial sums"),
           Buffer("temp", "", "f32", (1000,), first=4, last=5, label="c1: conv2d_weight_grad"))
PROGRAM = Program("cpu", BUFFERS, (), STEPS)
SAID = Path(__file__).parent / "fixtures" / "memory.txt"


def run(*args):
    """(exit code, output) of a command; an exception is a failure of the test."""
    found = CliRunner().invoke(main, [str(arg) for arg in args])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.output


def training(name, batch, skip=frozenset()):
    """The program of a training step with its plan; `skip` names passes that are left out."""
    step = select_training(name, "", {}, {})[1]
    program = lower(run_passes(step, skip=skip)[-1].graph, 8)
    return program, make_plan(program, {**example_sizes(step, batch), THREADS: 1})


@pytest.fixture(scope="module")
def lenet():
    """LeNet-5's training step of 16 images."""
    return training("lenet5", 16)


def test_a_plan_is_told_in_words(request):
    # Golden text of a plan made by hand: nothing in it depends on kernels or machines.
    plan = make_plan(PROGRAM, {"B": 4, THREADS: 1})
    text = memory_text(PROGRAM, plan, {"B": 4}, {("c1", 3): "net.lam"}, 131_076) + "\n"
    if request.config.getoption("--update"):
        SAID.write_text(text)
    assert text == SAID.read_text()


def test_all_has_a_line_for_every_buffer():
    # What was summed up is there for who asks.
    plan = make_plan(PROGRAM, {"B": 4, THREADS: 1})
    text = memory_text(PROGRAM, plan, {"B": 4}, {}, 0, True)
    chart = text[text.index("lifetime"):].splitlines()[1:]
    assert len(chart) == 5 and "activation" in chart[2] and "reduce_sum" in chart[2]
    assert "--all" not in text


def test_figures_are_those_of_the_plan(lenet):
    # The peak by looking at every step, and what the arena has above it.
    program, plan = lenet
    found = plan_memory(program, plan, {})
    live = [sum(plan.sizes[r] for r in plan.offsets if plan.lives[r][0] <= s <= plan.lives[r][1])
            for s in range(len(program.steps))]
    assert list(found.live) == live
    assert (found.peak, found.at) == (max(live), live.index(max(live)))
    padded = [sum(aligned(plan.sizes[r] + GUARD) for r in plan.offsets
                  if plan.lives[r][0] <= s <= plan.lives[r][1]) for s in range(len(program.steps))]
    assert found.peak < found.padded == max(padded) <= found.arena == plan.arena_bytes
    assert len(found.held) == len(plan.offsets)


def test_what_is_kept_is_what_the_backward_pass_reads(lenet):
    # LeNet-5 keeps the results of its layers, each once, and no packed weights or scratch.
    program, plan = lenet
    found = plan_memory(program, plan, {})
    assert program.steps[found.backward].part == BACKWARD
    kept = {}
    for one in found.kept:
        assert one.first < found.backward <= one.last
        kept[one.layer] = kept.get(one.layer, 0) + one.bytes
    each = {"c1": 6 * 28 * 28, "s2": 6 * 14 * 14, "c3": 16 * 10 * 10, "c5": 120, "f6": 84}
    assert {layer: 4 * 16 * floats for layer, floats in each.items()} == \
        {layer: kept[layer] for layer in each}
    assert {one.purpose for one in found.kept} <= {"activation", "copy"}


def test_purposes_are_told_apart(lenet):
    # Which of the bytes are worth what they buy is the question. Shifted sums need no border.
    found = plan_memory(*lenet, {})
    known = {one.purpose for one in found.held}
    assert known - {"packed operand"} == {
        "activation", "gradient", "weight gradient", "packed weights", "scratch", "partial sums",
        "copy"}
    direct = plan_memory(*training("lenet5", 16, frozenset({"shifted"})), {})
    assert {one.purpose for one in direct.held} - known == {"padded copy"}
    waiting = {one.layer for one in found.held if one.kept_for == "update"}
    assert {"c1", "c3"} <= waiting <= {"c1", "c3", "c5", "f6", "head"}


def test_pooling_keeps_where_the_largest_were(tmp_path):
    # A byte for each window, in place of the values that it was chosen from.
    path = tmp_path / "pool.lam"
    path.write_text("model Pool {\n  input x: f32[B, 3, 8, 8]\n  output y = x -> conv(4, kernel=3)"
                    " -> p: maxpool(2) -> flatten -> linear(5)\n}\n")
    (one,) = [one for one in plan_memory(*training(str(path), 2), {}).held
              if one.purpose == "places of the largest"]
    assert (one.layer, one.of, one.kept_for, one.bytes) == ("p", "p", "gradient", 2 * 4 * 3 * 3)


@pytest.mark.parametrize("name", ["lenet5", "seq2seq"])
def test_the_estimate_beside_it_is_that_of_the_layer_table(name):
    # Two figures of memory that contradict each other are worse than one.
    net, step = select_training(name, "", {}, {})
    sizes = {**example_sizes(net.graph, 2), **example_sizes(step, 2)}
    table = substitute(summarize(net.graph).bytes, sizes)
    assert substitute(sum(result_bytes(net.graph).values(), start=0), sizes) == table
    if name == "lenet5":
        text = " ".join(show_memory(net.graph, step, 2).split())
        assert f"`lamina shapes --columns bytes` counts {table:,} bytes" in text


@pytest.mark.parametrize("skip", [frozenset(), frozenset({"fuse"})], ids=sorted)
def test_the_report_charts_the_same_plan(skip):
    # As the text says, also where passes are left out.
    net = lamina.load("lenet5").LeNet5()
    chart = report_data(net, None, (4, 4), "lenet5", {}, skip)["memory"][0]
    text = show_memory(net.graph, net.graph, 4, skip=skip)
    assert f"peak: {chart['peak']:,} bytes" in text and f"arena {chart['arena']:,} bytes" in text
    assert f"live at step {chart['at']}: {chart['steps'][chart['at']]} (lenet5.lam:" in text


def test_a_long_program_takes_no_longer_than_its_length():
    # Steps times buffers would be 4 * 10^9 here.
    count = 64_000

    @dataclass
    class Plan:
        offsets: dict
        lives: tuple
        sizes: tuple
        arena_bytes: int

    lives = tuple((index, min(count - 1, index + 10)) for index in range(count))
    plan = Plan({index: 64 * index for index in range(count)}, lives, (64,) * count, 64 * count)
    buffers = (replace(BUFFERS[4], shape=(16,)),) * count
    program = Program("cpu", buffers, (), (STEPS[1],) * (count - 1) + (STEPS[3],))
    found = plan_memory(program, plan, {})
    assert (found.peak, found.at, found.backward) == (11 * 64, 10, count - 1)
    assert len(found.kept) == 10
    assert live_bytes(plan, count)[:3] == [64, 128, 192]
    text = memory_text(program, plan, {}, {}, 0)
    assert text.count("activation") > count and "peak: 704 bytes live at step 10" in text


def test_the_command_says_it():
    # Inference keeps nothing; a training step of the recipe does.
    code, text = run("show", "lenet5", "--stage", "memory", "--batch", 4)
    assert code == 0 and text.startswith("arena ") and "for B = 4," in text.splitlines()[0]
    assert "backward" not in text
    code, text = run("show", "lenet5", "--stage", "memory", "--train", "--all")
    assert code == 0 and "kept for the backward pass, which begins at step" in text
    assert "optimizer state" in text and "fragmentation" in text and "--all" not in text


def test_a_model_that_computes_nothing_has_no_peak(tmp_path):
    # An arena of nothing is no reason to fail.
    path = tmp_path / "same.lam"
    path.write_text("model Same {\n  input x: f32[2, 3]\n  output y = x\n}\n")
    code, text = run("show", path, "--stage", "memory")
    assert code == 0
    assert text.startswith("arena 0 bytes for all sizes known")
