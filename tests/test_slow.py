"""Why a row of `lamina profile` is slow: each rule on made-up facts, and the facts of a Program."""

from dataclasses import replace

import pytest

from lamina.api import compile_graph
from lamina.commands import slow
from lamina.commands.bench import example_sizes
from lamina.commands.profiling import kind_of
from lamina.commands.selection import select_training
from lamina.commands.slow import Limit, Machine, Work, reason_of, reason_of_step
from lamina.runtime.cpu.plan import make_plan, total_macs

# 10^11 products of 2 operations in 2 seconds; 10 GB/s.
MACHINE = Machine(flops=1e11, bytes=1e10, threads=2, finish=16, first=16, second=32, start=2e-6)
PRODUCT = Work("matrix product", "contractions", 0.1, 0.1, 10**9, moved={"weights": 10**6},
               sizes={"M": 4096, "N": 1024, "K": 1024}, tile=(14, 2, 16))
CONVOLUTION = replace(PRODUCT, kind="convolution", macs=100 * 100 * 24 * 9 * 512, sizes={
    "images": 1, "OH": 100, "OW": 100, "groups": 1, "KH": 3, "KW": 3, "C": 512, "K": 24})


def sized(**sizes):
    """The product with other sizes."""
    return replace(PRODUCT, sizes={**PRODUCT.sizes, **sizes})


@pytest.mark.parametrize("work, rule, left, text", [
    (replace(PRODUCT, moved={"weights": 9 * 10**8, "results": 10**8}), slow.memory, 0.2,
     "moves 1,000.0 MB, 90% of it weights, at 10.0 GB/s: 100% of a large copy's rate"),
    (replace(PRODUCT, single=True), slow.one_thread, 0.5, "1 of 2 threads"),
    (sized(N=24), slow.lanes, 0.75, "24 of 32 lanes"),
    (CONVOLUTION, slow.lanes, 0.75, "24 of 32 lanes"),
    (sized(M=8), slow.few_rows, 0.2, "serves 8 rows: bringing it takes as long as 32"),
    (sized(N=24), slow.few_columns, 32 / 48, "serves 32 lanes"),
    (sized(K=16), slow.short_sums, 0.5, "sums of 16 products"),
    (replace(sized(K=16), matrices=3), slow.short_sums, 0.4, "3 numbers read or written"),
    (replace(PRODUCT, least=4e-4, calls=100), slow.small, 0.5, "takes 4.0 us a round"),
    (replace(CONVOLUTION, kind="weight gradient", tile=(14, 2, 16), sizes={
        **CONVOLUTION.sizes, "C": 1}), slow.tile_rows, 9 / 14, "9 of 14 rows")])
def test_a_rule_says_what_its_limit_leaves(work, rule, left, text):
    # Worked out by hand: a wrong share would make a limit the reason of what it does not slow down.
    found = rule(work, MACHINE)
    assert found.left == pytest.approx(left)
    assert text in found.text


def test_neighbours_computed_together_multiply_zeros():
    # Two pixels of 6 channels as one of 12 with a kernel 6 wide, of which each uses 5: 10 of 16.
    work = Work("convolution", "contractions", 1, 1, 28 * 28 * 6 * 25, tile=(16, 1, 16), sizes={
        "images": 1, "OH": 28, "OW": 14, "groups": 1, "KH": 5, "KW": 6, "C": 1, "K": 12})
    found = slow.lanes(work, MACHINE)
    assert found.left == pytest.approx(10 / 16) and found.text.startswith("10 of 16 lanes")


@pytest.mark.parametrize("rule, work", [
    (slow.memory, replace(PRODUCT, moved={})),
    (slow.one_thread, PRODUCT),
    (slow.lanes, replace(PRODUCT, tile=())),
    (slow.few_rows, CONVOLUTION),
    (slow.tile_rows, CONVOLUTION),
    (slow.short_sums, replace(CONVOLUTION, kind="depthwise convolution"))])
def test_a_rule_is_silent_where_it_does_not_apply(rule, work):
    # Facts that are not known are no limit.
    assert rule(work, MACHINE) is None


def test_a_limit_is_the_reason_only_of_what_reaches_most_of_it():
    # Short sums leave half the rate: 40 % of the rate is explained by them, 10 % is not.
    for seconds, known in ((0.05, True), (0.2, False)):
        work = replace(sized(K=16), seconds=seconds, least=seconds)
        text = reason_of_step(work, MACHINE)
        assert "sums of 16 products" in text
        assert text.startswith(slow.NONE) != known


def test_several_limits_together_are_a_reason():
    # Neither few rows (half) nor empty lanes (3 of 4) alone explain 25 %; both together do.
    work = replace(sized(M=32, N=24), seconds=0.08, least=0.08)
    text = reason_of_step(work, MACHINE)
    assert "32 rows" in text and "serves 32 lanes" in text and "together they leave" in text


def test_idle_lanes_multiply_and_other_times_add_up():
    # Half the lanes at half the rows leave a quarter; twice as much time for two reasons, a third.
    half = Limit(0.5, "", fills=True)
    assert slow.left_by([half, half]) == pytest.approx(1 / 4)
    assert slow.left_by([Limit(0.5, ""), Limit(0.5, "")]) == pytest.approx(1 / 3)


def test_what_nothing_explains_is_said():
    # A large product far below the rate: the sentence must not invent anything.
    assert reason_of_step(PRODUCT, MACHINE) == slow.NONE
    assert reason_of([PRODUCT], MACHINE) == slow.NONE


def test_a_step_that_was_fast_in_another_run_was_disturbed():
    # The profile is of one run, in which others may have had the processor.
    assert "disturbed" in reason_of_step(replace(PRODUCT, least=0.021), MACHINE)


def test_a_depthwise_convolution_says_what_it_is():
    # Its tiles multiply lanes by lanes: there is no sum that would use a loaded number again.
    work = replace(CONVOLUTION, kind="depthwise convolution", sizes={
        **CONVOLUTION.sizes, "C": 96, "K": 96, "lanes": 1})
    assert "each number loaded serves 9 products" in reason_of_step(work, MACHINE)
    weights = replace(work, kind="depthwise weight gradient", tile=(9, 1, 16))
    assert reason_of_step(weights, MACHINE) == reason_of_step(work, MACHINE)


def test_a_row_whose_products_are_fast_names_the_other_work():
    # A padded copy around a fast convolution: the products are not to blame.
    fast = replace(PRODUCT, seconds=0.025, least=0.025)
    other = Work("copy", "copies and packing", 0.075, 0.075)
    assert reason_of([fast, other], MACHINE) == \
        "its products alone run at 80%; 75% of its time is copies and packing"


def test_a_row_names_the_products_that_lose_its_time():
    # Two gradients, one of them fast: the sentence is about the other, and says which.
    fast = replace(PRODUCT, seconds=0.02, least=0.02)
    slow_one = replace(PRODUCT, kind="weight gradient", seconds=0.2, least=0.2, sizes={}, tile=())
    assert reason_of([fast, slow_one], MACHINE) == f"weight gradient: {slow.NONE}"


@pytest.mark.parametrize("works", [
    [replace(PRODUCT, seconds=0.03, least=0.03)],
    [Work("elementwise", "elementwise work", 1.0, 1.0)]])
def test_a_fast_row_and_a_row_without_products_have_no_reason(works):
    # Only what multiplies can be compared with a product.
    assert reason_of(works, MACHINE) == ""


def test_facts_are_those_of_the_program():
    # The rules stand on what the kernels are given: sizes and bytes are compared with the model's.
    _, graph = select_training("lenet5", "", {}, {})
    program = compile_graph(graph)
    plan = make_plan(program, {**example_sizes(graph, 8), "$threads": 2})
    macs = total_macs(program, plan)
    works = {}
    for index, step in enumerate(program.steps):
        works.setdefault((step.layer, step.part, bool(macs[index])), slow.work_of(
            program, plan, index, kind_of(program, step), "", 1.0, 1.0, macs[index]))
    forward = works["f6", "forward", True]
    assert {name: forward.sizes[name] for name in "MNK"} == {"M": 8, "N": 84, "K": 120}
    assert forward.moved["weights"] == 4 * (84 * 120 + 84)  # the bias too
    assert forward.moved["its first operand"] == 4 * 8 * 120
    assert forward.moved["results"] == 4 * 8 * 84
    assert sum(forward.moved.values()) == 4 * (84 * 121 + 8 * (120 + 84))
    assert forward.matrices == 1 and forward.single and forward.calls == 1
    update = works["f6", "backward", True]
    assert update.macs == 8 * 84 * 120
    images = works["c3", "forward", True]
    assert images.sizes["C"] == 6 and images.sizes["OH"] == 10 and images.tile
    assert works["s2", "forward", False].macs == 0


def test_every_argument_of_a_product_has_its_name():
    # A kernel text that is written otherwise would make the facts wrong without an error.
    program = compile_graph(select_training("mobilenet", "", {}, {})[1])
    for index, step in enumerate(program.steps):
        if step.macs:
            names = slow.argument_names(program, index)
            assert sorted(names) == list(range(len(step.args)))
            assert "y0" in names.values() or "partial" in names.values()
