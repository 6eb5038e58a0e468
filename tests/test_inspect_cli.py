"""What `lamina shapes` with columns and formulas, and `lamina rf`, print and refuse."""

import json
import time

import pytest
from rich.console import Console

from lamina.commands import views
from lamina.tests.test_cli import run

HUGE = "image=1x3x40000x40000"


@pytest.fixture
def wide(monkeypatch):
    """A setter of the terminal's width."""
    return lambda columns: monkeypatch.setattr(
        views, "terminal", lambda: Console(width=columns, highlight=False))


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("args", [
    ("shapes", "resnet#ResNet18", "--input", "image=1x3x224x224", "--columns", "all"),
    ("shapes", "resnet#ResNet18", "--formula"), ("rf", "unet"), ("rf", "resnet", "--at", "stages")])
def test_no_number_is_cut(args, columns, wide):
    # A table that is too wide goes on below.
    wide(columns)
    code, text = run(*args)
    assert code == 0
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= columns


def test_columns_are_chosen_in_order(wide):
    # What was asked for, with totals.
    wide(80)
    lines = run("shapes", "lenet5", "--columns", "share,backward,params,out")[1].splitlines()
    assert lines[1].split() == ["layer", "%", "params", "%", "MACs", "backward", "parameters",
                                "output"]
    assert lines[2].split()[:5] == ["c1", "0.3%", "28.2%", "117,600", "156"]
    assert lines[14].split() == ["total", "100.0%", "100.0%", "715,440", "61,706"]


def test_all_columns_go_with_others(wide):
    # `all` was no column once it stood beside another.
    wide(200)
    found = [run("shapes", "lenet5", "--columns", text) for text in ("line,all", "all,op", "all")]
    assert [code for code, _ in found] == [0, 0, 0]
    assert found[1] == found[2]
    assert found[0][1].splitlines()[1].split()[:3] == ["layer", "line", "op"]


@pytest.mark.parametrize("args", [("--formula", "--columns", "op"), ("--formula", "--why", "c1"),
                                  ("--columns", "op", "--why", "c1")])
def test_only_one_table_is_asked_for(args):
    # `--formula` left `--columns` out without a word.
    code, text = run("shapes", "lenet5", *args)
    assert code == 2
    assert "different tables: give one" in text


@pytest.mark.parametrize(("args", "message"), [
    (("shapes", "lenet5", "--columns", "mac"), "no column is named `mac`; did you mean `macs`?"),
    (("shapes", "lenet5", "--columns", ","), "no column is named"),
    (("rf", "lenet5", "--at", "flaten"), "no layer has the path `flaten`; did you mean `flatten`?"),
    (("rf", "lenet5", "--input", "imag"), "no input is named `imag`; did you mean `image`?"),
])
def test_a_wrong_name_is_a_usage_error(args, message):
    # Exit code 2, with what was meant.
    code, text = run(*args)
    assert code == 2
    assert message in text


@pytest.mark.parametrize(("size", "message"), [
    ("1x3x0x224", "a size of `image` is 0; sizes are 1 or more"),
    ("1x3x-224x224", "a size of `image` is -224; sizes are 1 or more"),
    ("1x3x" + "9" * 5000 + "x224", "sizes are written 1x3x224x224"),
    ("1x3xHx224", "sizes are written 1x3x224x224"),
])
@pytest.mark.parametrize("verb", ["shapes", "rf"])
def test_impossible_sizes_are_refused(verb, size, message):
    # A mistake in a number is no division by zero later.
    code, text = run(verb, "resnet", "--input", f"image={size}")
    assert code == 1
    assert message in text


@pytest.mark.parametrize("args", [("shapes",), ("shapes", "--columns", "all"), ("rf",),
                                  ("shapes", "--formula")], ids=str)
def test_an_image_of_a_gigapixel_is_a_number(args):
    # Nothing is allocated: 1.6 * 10^9 positions are counted like any other.
    start = time.perf_counter()
    assert run(args[0], "resnet#ResNet18", *args[1:], "--input", HUGE)[0] == 0
    assert time.perf_counter() - start < 20


def test_the_formula_of_an_open_model():
    # Texts that Python reads; nothing open but the batch in LeNet-5.
    data = json.loads(run("shapes", "resnet#ResNet18", "--formula", "--json")[1])
    assert (data["sizes"], data["macs"]) == (["B", "H", "W"], "36144*B*H*W + 512000*B")
    assert data["layers"][0] == {"path": "stem.conv", "parameters": 9408, "macs": "2352*B*H*W",
                                 "backward_macs": "2352*B*H*W", "bytes": "64*B*H*W"}
    assert "macs = 416520*B" in run("shapes", "lenet5", "--formula")[1]


def test_rf_as_json():
    # Its keys are an interface.
    data = json.loads(run("rf", "lenet5", "--json")[1])
    (found,) = data["inputs"]
    assert set(found) == {"input", "axes", "layers", "outputs", "local", "misaligned"}
    field = {"size": 14, "stride": 2, "start": 6.5, "padding": 0.0}
    assert found["layers"][3] == {"path": "c3", "op": "conv", "line": 8, "paths": 1,
                                  "fields": {"height": field, "width": field}}
    assert found["outputs"][0]["fields"] == {"height": None, "width": None}
    assert (found["local"]["name"], found["local"]["paths"]) == ("flatten", 1)


def test_rf_of_a_layer_lists_its_routes():
    # U-Net's first way up: through the shortcut, and through the bottom.
    data = json.loads(run("rf", "unet", "--at", "up4.double.c2", "--json")[1])
    routes = data["inputs"][0]["routes"]
    assert [route["fields"]["height"]["size"] for route in routes] == [100, 172]
    assert [step["path"] for step in routes[0]["steps"]][-3:] == [
        "up4.crop", "up4.double.c1", "up4.double.c2"]


def test_rf_of_an_output():
    # It was refused: an output's name is no layer's path.
    (found,) = json.loads(run("rf", "unet", "--at", "logits", "--json")[1])["inputs"]
    (layer,) = json.loads(run("rf", "unet", "--at", "head", "--json")[1])["inputs"]
    assert found == layer
    assert "did you mean `logits`?" in run("rf", "unet", "--at", "logit")[1]


def test_rf_reports_branches_that_do_not_fit(tmp_path):
    # The layer, its line, and by how much.
    file = tmp_path / "m.lam"
    file.write_text("model M {\n  input x: f32[B, 1, 32, 32]\n  a = x -> c: conv(2, kernel=5)\n"
                    "  b = x[:, :, 0:28, 0:28] -> d: conv(2, kernel=1)\n"
                    "  output y = (a, b) -> concat(axis=1)\n}\n")
    code, text = run("rf", file)
    assert code == 0
    assert f"misaligned: concat in `concat` ({file}:5) joins branches whose centres lie 2 " \
        "positions of the input apart in height and width" in text.replace("\n", " ")
