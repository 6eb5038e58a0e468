"""`lamina profile`: its times add up, and its counts are the model's own."""

import json

import pytest
from click.testing import CliRunner

import lamina
from lamina.api import compile_graph
from lamina.cli import main
from lamina.commands.profiling import GROUPS, KINDS, kind_of
from lamina.commands.selection import select_training

BATCH = 8


def run(*args):
    """(exit code, output) of a command; an exception is a failure of the test."""
    found = CliRunner().invoke(main, [str(arg) for arg in args])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert "Traceback" not in found.output
    return found.exit_code, found.output


@pytest.fixture(scope="module")
def inference():
    """The measured inference of LeNet-5."""
    code, text = run("profile", "lenet5", "--batch", BATCH, "--rounds", 3, "--json")
    assert code == 0, text
    return json.loads(text)


@pytest.fixture(scope="module")
def training():
    """Its measured training step."""
    code, text = run("profile", "lenet5", "--train", "--batch", BATCH, "--rounds", 3, "--json",
                     "--sort", "order")
    assert code == 0, text
    return json.loads(text)


@pytest.fixture(params=["inference", "training"])
def found(request):
    """Both, one after the other."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("rows", ["layers", "kernels", "steps"])
def test_rows_add_up_to_the_whole(found, rows):
    # A part that no row has would be blamed on nothing.
    seconds = sum(row["seconds"] for row in found[rows])
    assert seconds + found["between_s"] == pytest.approx(found["seconds"])
    assert sum(row["share"] for row in found[rows]) <= 1.000001
    assert sum(row["macs"] for row in found[rows]) == found["macs"]
    assert found["between_s"] >= 0 and all(row["seconds"] >= 0 for row in found[rows])
    if rows != "steps":
        assert sum(row["steps"] for row in found[rows]) == len(found["steps"])


def test_groups_are_the_whole_too(found):
    # Contractions, elementwise work, copies and so on: every step is of one of them.
    assert sum(found["groups"].values()) == pytest.approx(found["seconds"])
    assert set(found["groups"]) == {*GROUPS, "between steps"}


@pytest.mark.parametrize("rows", ["layers", "kernels", "steps"])
def test_rates_are_two_operations_for_each_multiply_accumulate(found, rows):
    # And their share is of the rate that the same call has measured.
    rated = [row for row in found[rows] if row["gflops"] is not None]
    assert rated
    for row in rated:
        assert row["gflops"] == pytest.approx(2 * row["macs"] / row["seconds"] / 1e9)
        assert row["of_gemm"] == pytest.approx(row["gflops"] / found["gemm_gflops"])
    assert found["gflops"] == pytest.approx(2 * found["macs"] / found["seconds"] / 1e9)
    assert all(row["macs"] == 0 for row in found[rows] if row["gflops"] is None)


def test_forward_counts_are_those_of_the_layer_table(inference, training):
    # `lamina shapes` counts from formulas, the profile what kernels do: forward they are equal.
    table = {row.path: row.macs * BATCH for row in lamina.load("lenet5").LeNet5().summary().layers
             if row.macs}
    for measured in (inference, training):
        forward = {row["layer"]: row["macs"] for row in measured["layers"]
                   if row["part"] == "forward" and row["macs"]}
        assert forward == table
    assert inference["macs"] == inference["model_macs"] == sum(table.values())


def test_a_training_step_costs_about_three_forward_passes(inference, training):
    # Each product has a gradient by its data and one by its weights; the first by weights alone.
    backward = {row["layer"]: row["macs"] for row in training["layers"]
                if row["part"] == "backward" and row["macs"]}
    forward = {row["layer"]: row["macs"] for row in inference["layers"] if row["macs"]}
    assert backward["c1"] == forward["c1"]
    assert all(backward[name] == 2 * forward[name] for name in ("c5", "f6", "head"))
    # A convolution without padding has a larger input than result, and a border of zeros.
    assert 2 * forward["c3"] < backward["c3"] < 3 * forward["c3"]
    assert training["model_macs"] == 3 * inference["macs"] - forward["c1"]
    assert 3 < training["macs"] / inference["macs"] < 4


def test_parts_and_order_are_those_of_the_run(training):
    # --sort order: forward, then backward from the last layer to the first, then the optimizer.
    rows = [(row["part"], row["layer"]) for row in training["layers"]]
    layers = ["c1", "c3", "c5", "f6", "head"]
    for part, expected in (("forward", layers), ("backward", layers[::-1])):
        assert [layer for one, layer in rows if one == part and layer in layers] == expected
    assert ("update", "optimizer") in rows


def test_the_longest_come_first(inference):
    # What to look at is at the top.
    for rows in ("layers", "kernels", "steps"):
        seconds = [row["seconds"] for row in inference[rows]]
        assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize("by", ["layer", "kernel", "step"])
def test_the_table_ends_with_the_total(by):
    # With --top the others are one row, so that the table still adds up.
    code, text = run("profile", "lenet5", "--batch", BATCH, "--rounds", 2, "--by", by, "--top", 2)
    assert code == 0
    lines = [line.split() for line in text.splitlines()]
    at = next(i for i, words in enumerate(lines) if words[:1] == ["total"])
    assert lines[0][:2] == ["LeNet5,", "inference:"] and lines[1][0] == by
    assert lines[at - 1][:2] == ["between", "steps"] and lines[at - 2][1] == "others"
    assert at == 6
    assert f"{BATCH * 416520:,}" in text
    assert "fastest of 2 runs" in text and "copies and packing" in text


def test_products_with_zeros_are_told():
    # A gradient has a border of zeros around it: a rate that counts them is no gain.
    text = run("profile", "lenet5", "--train", "--batch", BATCH, "--rounds", 2)[1]
    assert "times the 9,055,680 MACs of `lamina shapes`" in text
    assert "of `lamina shapes`" not in run("profile", "lenet5", "--batch", 2, "--rounds", 2)[1]


def test_slow_rows_have_a_reason_in_text_and_json(tmp_path):
    # One row of 3 columns: no machine multiplies it at a large product's rate.
    path = tmp_path / "thin.lam"
    path.write_text("model Thin {\n  input x: f32[B, 4096]\n"
                    "  output y = x -> thin: linear(3)\n}\n")
    args = ("profile", path, "--batch", 1, "--rounds", 2)
    (layer,) = (row for row in json.loads(run(*args, "--json")[1])["layers"] if row["macs"])
    assert layer["of_gemm"] < 0.6 and layer["reason"]
    for by in ("layer", "step"):
        text = run(*args, "--by", by)[1]
        _, part = text.split("below 60% of the product rate")
        name = part.splitlines()[1]
        assert name.startswith("thin, " if by == "layer" else "thin: matmul")
        assert "%: " in name
    assert "below 60%" not in run(*args, "--by", "kernel")[1]


def test_rows_at_the_rate_and_rows_without_products_have_no_reason(found):
    # A reason beside a fast row would be believed.
    for row in (*found["layers"], *found["steps"]):
        slow = row["of_gemm"] is not None and row["of_gemm"] < 0.6
        assert bool(row["reason"]) == slow
    assert all("reason" not in row for row in found["kernels"])


def test_steps_say_where_they_are_written(training, tmp_path):
    # A line alone would be read as one of the model's own file, also where a library's is meant.
    places = {row["at"] for row in training["steps"] if row["label"].startswith("c3: ")}
    assert places == {"lenet5.lam:8"}
    path = tmp_path / "two.lam"
    path.write_text("model Two {\n  input x: f32[B, 5, 8]\n"
                    "  output y = x -> lstm(16) -> linear(2)\n}\n")
    text = run("profile", path, "--batch", 2, "--rounds", 2, "--by", "step", "--json")[1]
    loops = [row["at"] for row in json.loads(text)["steps"] if "sigmoid" in row["label"]]
    assert loops == ["two.lam:3"]


def test_all_rounds_of_a_loop_count(tmp_path):
    # A recurrent layer runs its steps as often as the sequence is long.
    path = tmp_path / "last.lam"
    path.write_text("model Last {\n  input x: f32[B, T, 8]\n"
                    "  output y = x -> lstm(16) -> head: linear(2)\n}\n")
    figures = [json.loads(run("profile", path, "--input", f"x=2x{length}x8", "--rounds", 2,
                              "--json")[1]) for length in (5, 10)]
    for length, one in zip((5, 10), figures, strict=True):
        assert one["macs"] == one["model_macs"] == 2 * length * (4 * 16 * (8 + 16) + 16 * 2)


def test_what_is_counted_is_the_model_that_trains():
    # A file's first recipe may train another model than its first, or other sizes of it.
    net, step = select_training("seq2seq", "", {}, {})
    assert net.definition.name == lamina.load("seq2seq").recipe().recipe.model.name
    assert set(net.inputs) <= set(step.inputs)
    plain, step = select_training("resnet", "ResNet18", {}, {})
    assert plain.definition.name == "ResNet18" and "label" in step.inputs


@pytest.mark.parametrize("name", ["seq2seq", "mobilenet", "detector"])
def test_every_kernel_is_known(name):
    # A kernel of a new kind must get a name, or "other" grows.
    program = compile_graph(select_training(name, "", {}, {})[1])
    kinds = {kind_of(program, step) for step in program.steps}
    assert "other" not in kinds and len(kinds) > 5
    grouped = [kind for group in GROUPS.values() for kind in group]
    assert len(grouped) == len(set(grouped)) and {kind for _, kind in KINDS} <= set(grouped)


@pytest.mark.parametrize("args, message", [
    (["--target", "numpy"], "error[E416]: the target numpy has no steps to time"),
    (["--batch", 10**9], "use a smaller batch: --batch 16"),
    (["--batch", 3, "--input", "image=2x1x32x32"], "the model's batch is 2, not 3"),
    (["-o", "size=3"], "`LeNet5` has no setting `size`"),
    (["--input", "picture=2x1x32x32"], "the model has no input `picture`")])
def test_errors_say_what_to_do(args, message):
    # As in `lamina bench`: refused before anything is measured.
    code, text = run("profile", "lenet5", *args)
    assert code == 1
    assert message in text
