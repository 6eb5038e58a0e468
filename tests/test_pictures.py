"""Pictures of graphs, runs and weights: what is written, and a message for what cannot be."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import lamina
from lamina.cli import main
from lamina.commands.drawing import ABOUT, _length, _shortened
from lamina.commands.plots import short_names, with_output

safetensors = pytest.importorskip("safetensors.numpy", reason="weights are safetensors files")
RECORDS = [{"kind": "step", "step": 1, "epoch": 0, "lr": 0.1, "loss": 2.5},
           {"kind": "epoch", "step": 2, "epoch": 1, "train": {"loss": 2.0, "acc": 0.3},
            "valid": {"loss": 1.5, "acc": 0.5}}]
STARTS = {"svg": b"<?xml", "png": b"\x89PNG", "dot": b"digraph"}


def run(*args):
    """(exit code, output) of a command; an exception is a failure of the test."""
    found = CliRunner().invoke(main, [str(arg) for arg in args])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.output


@pytest.mark.parametrize("ending", STARTS)
def test_a_graph_is_drawn(ending, tmp_path):
    # The three kinds of file that the verb promises.
    path = tmp_path / f"net.{ending}"
    code, text = run("draw", "unet", "-o", path)
    assert (code, text) == (0, f"wrote {path}\n")
    assert path.read_bytes().startswith(STARTS[ending])


def test_dot_has_blocks_as_clusters_and_sizes_on_edges(tmp_path):
    # What Graphviz gets to see of a block that is open, and of one that is not.
    path = tmp_path / "net.dot"
    run("draw", "unet", "-o", path, "--depth", 1)
    assert 'label="down1: Double";' in path.read_text()
    assert '[label="64×568×568"];' in path.read_text()
    run("draw", "unet", "-o", path, "--depth", 0)
    assert "cluster" not in path.read_text()


LONG = """block ABlockWithALongNameThatFitsNowhere {
  input x: [B, C, H, W]
  output y = x -> a_layer_with_quite_a_long_name: conv(320, kernel=3, padding=1) -> relu
}
model Long {
  input image: f32[B, 3, 16, 16]
  output y = image -> an_instance_with_a_long_name: ABlockWithALongNameThatFitsNowhere
}
"""


def test_names_too_long_for_their_box_end_in_an_ellipsis(tmp_path):
    # Titles were cut by the edge of the picture, names without a sign; the whole is in the tooltip.
    model, path = tmp_path / "long.lam", tmp_path / "net.svg"
    model.write_text(LONG)
    run("draw", model, "-o", path)
    text = path.read_text()
    names = [line.strip() for line in text.splitlines() if "<!--" in line]
    assert any(name.startswith("<!-- an_instance") and name.endswith("… -->") for name in names)
    assert any(name.startswith("<!-- ABlockWith") and name.endswith("… -->") for name in names)
    assert ("<title>an_instance_with_a_long_name.a_layer_with_quite_a_long_name\n"
            "conv [B, 320, 16, 16]\n8,960 parameters</title>") in text


@pytest.mark.parametrize("text, room, expected", [
    ("conv", 100.0, "conv"), ("", 0.0, ""), ("conv", 0.0, "…")])
def test_a_text_is_shortened_to_its_room(text, room, expected):
    # What fits stays; without any room the sign alone remains.
    assert _shortened(text, room) == expected
    assert _length(_shortened("a" * 90, 80.0), ABOUT) <= 80.0


def test_pictures_have_a_legend_of_the_kinds_that_occur(tmp_path):
    # The colours meant nothing to who did not know the page.
    path = tmp_path / "net.svg"
    run("draw", "lenet5", "-o", path)
    for kind in ("convolution", "linear", "input, output"):
        assert f"<!-- {kind} -->" in path.read_text()
    assert "<!-- embedding -->" not in path.read_text()
    dot = tmp_path / "net.dot"
    run("draw", "lenet5", "-o", dot)
    assert '<font color="#3b78d8">■</font> convolution' in dot.read_text()


@pytest.mark.parametrize("verb", ["draw", "plot"])
def test_an_unknown_ending_is_refused(verb, tmp_path):
    # The ending is how one says what one wants.
    (tmp_path / "log.jsonl").write_text(json.dumps(RECORDS[0]) + "\n")
    code, text = run(verb, "lenet5" if verb == "draw" else tmp_path, "-o", tmp_path / "net.gif")
    listed = ".svg, .png, .dot" if verb == "draw" else ".png, .svg"
    assert code == 1
    assert f"end it with one of: {listed}" in text


@pytest.mark.parametrize("name", ["r.pdf", "kernel=3", "report"])
def test_a_report_that_is_no_page_is_refused(name, tmp_path):
    # A page named .pdf opens nowhere; `-o kernel=3` was meant as `--set kernel=3`.
    code, text = run("report", "lenet5", "-o", tmp_path / name)
    assert code == 1
    assert "end it with one of: .html, .htm" in text
    assert not (tmp_path / name).exists()


@pytest.fixture
def logged(tmp_path):
    """The folder of a run with a log of two records and a torn line."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS) + '{"kind')
    return folder


def test_runs_are_plotted(logged, tmp_path):
    # One run, then two overlaid, with a panel for each figure.
    path = tmp_path / "run.svg"
    assert run("plot", logged, "-o", path) == (0, f"wrote {path}\n")
    assert run("plot", logged, logged, "-o", tmp_path / "run.png")[0] == 0
    text = path.read_text()
    assert all(f"<!-- {name} -->" in text for name in ("loss", "acc", "lr"))


def test_runs_of_the_same_last_name_are_told_apart(logged, tmp_path, monkeypatch):
    # Their entries in the legend were the same.
    for name in ("one", "two"):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "log.jsonl").write_text(json.dumps(RECORDS[0]) + "\n")
    path = tmp_path / "run.svg"
    assert run("plot", tmp_path / "one" / "run", tmp_path / "two" / "run", "-o", path)[0] == 0
    assert "<!-- one/run step -->" in path.read_text()
    assert "<!-- two/run step -->" in path.read_text()
    monkeypatch.chdir(tmp_path)
    given = [Path("one/run"), Path("two/run"), Path("run"), Path("."), Path("run"), Path("/")]
    assert short_names(given) == ["one/run", "two/run", str(Path(tmp_path.name, "run")),
                                  tmp_path.name, str(Path(tmp_path.name, "run")), "/"]


@pytest.mark.parametrize("content, message", [
    (None, "holds no log.jsonl"), ("", "holds no whole record"),
    ("\0\1{", "holds no whole record")])
def test_a_run_without_records_is_refused(content, message, tmp_path):
    # A folder that is no run, and a log that was cut.
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    code, text = run("plot", tmp_path, "-o", tmp_path / "a.png")
    assert code == 1
    assert message in text
    assert not (tmp_path / "a.png").exists()


def test_a_missing_folder_is_refused(tmp_path):
    # A mistyped name.
    code, text = run("plot", tmp_path / "gone", "-o", tmp_path / "a.png")
    assert code == 1
    assert "there is no folder" in text


@pytest.fixture
def weights(tmp_path):
    """LeNet-5's initial weights as a file."""
    path = tmp_path / "w.safetensors"
    safetensors.save_file(lamina.load("lenet5").LeNet5().init(), str(path))
    return path


def test_filters_and_maps_are_drawn(weights, tmp_path):
    # The first layer's filters, and what a layer makes of a picture.
    out = tmp_path / "f.png"
    assert run("filters", "lenet5", "--weights", weights, "-o", out) == (
        0, f"wrote {out}: c1.weight\n")
    assert out.read_bytes().startswith(STARTS["png"])
    digit = tmp_path / "digit.npy"
    np.save(digit, np.zeros((1, 28, 28), np.uint8))
    maps = tmp_path / "m.png"
    code, text = run("filters", "lenet5", "--weights", weights, "-o", maps, "--at", "c3",
                     "--input", digit, "--target", "numpy")
    assert (code, text) == (0, f"wrote {maps}\n")


@pytest.mark.parametrize("at, code, message", [
    ("c9", 2, "no layer has the path `c9`"), ("f6", 1, "no maps over an image")])
def test_a_layer_without_maps_is_refused(at, code, message, weights, tmp_path):
    # A mistyped layer, and one whose output has no height and width.
    digit = tmp_path / "digit.npy"
    np.save(digit, np.zeros((1, 28, 28), np.uint8))
    found, text = run("filters", "lenet5", "--weights", weights, "-o", tmp_path / "m.png",
                      "--at", at, "--input", digit, "--target", "numpy")
    assert found == code
    assert message in text


@pytest.mark.parametrize("words, extra", [
    (("report", "lenet5", "-o", "net.html"), "report"),
    (("draw", "lenet5", "-o", "net.svg"), "report")])
def test_a_missing_library_names_its_extra(words, extra, tmp_path, monkeypatch):
    # The core does without; who asks for a picture is told what to install.
    monkeypatch.setitem(sys.modules, "fast_sugiyama", None)
    code, text = run(*words[:-1], tmp_path / words[-1])
    assert code == 1
    assert f'pip install "lamina[{extra}]"' in text


def test_the_value_of_a_layer_is_what_the_model_computes():
    # A feature map is the real one: the model goes on from it to the same logits.
    net = lamina.load("lenet5").LeNet5()
    image = np.random.default_rng(0).standard_normal((1, 1, 32, 32)).astype(np.float32)
    last = with_output(net.graph, "head")
    found = lamina.api.Run(last, lamina.api._options("numpy", None))(net.init(), image=image)
    assert np.array_equal(found["head"], net.compile("numpy")(net.init(), image=image)["logits"])
