"""The command line as a user meets it: what it prints, its exit codes, and no traceback."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from lamina.cli import main
from lamina.commands import views
from lamina.runtime.data.sources import mnist

SMALL = """model Small(hidden: int = 16) {
  input image: f32[B, 1, 28, 28]
  output logits = image -> flatten -> fc: linear(hidden) -> relu -> head: linear(10)
}

recipe quick for Small {
  data train = mnist("train") -> normalize(mean=0.1307, std=0.3081) -> shuffle
  data valid = mnist("test")  -> normalize(mean=0.1307, std=0.3081)
  target label: i32[B]
  loss       = cross_entropy(logits, label)
  metric acc = accuracy(logits, label)
  optimizer  = sgd(lr=0.1, momentum=0.9)
  batch      = 250
  epochs     = 3
  keep       = best(acc)
}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with one small model in it."""
    monkeypatch.chdir(tmp_path)
    Path("small.lam").write_text(SMALL)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the small model."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.lam").write_text(SMALL)
    found = CliRunner().invoke(main, ["train", str(folder / "small.lam"), "--out",
                                      str(folder / "run")], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return folder


def run(*args):
    """(exit code, output) of a command; an exception is a failure of the test."""
    found = CliRunner().invoke(main, [str(arg) for arg in args])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert "Traceback" not in found.output
    return found.exit_code, found.output


def test_every_verb_has_help():
    # `--help` is where a new user starts.
    for verb in main.commands:
        code, text = run(verb, "--help")
        assert code == 0
        assert "Usage:" in text


def test_check_reports_all_errors_of_all_files(place):
    # One run tells everything, with the codes to look up.
    Path("one.lam").write_text(SMALL.replace("linear(hidden)", "liner(hidden)"))
    Path("two.lam").write_text(SMALL.replace("best(acc)", "best(ac)"))
    code, text = run("check", "small.lam", "one.lam", "two.lam")
    assert code == 1
    assert "error[E301]: `liner` is not defined here" in text
    assert "did you mean `linear`?" in text
    assert "error[E503]: `keep` names no metric: `ac`" in text
    assert run("check", "small.lam") == (0, "1 file without errors\n")


def test_check_picks_a_model_or_a_recipe(place):
    # A name after `#` that the file does not have is an error; a known one is checked alone.
    Path("two.lam").write_text(SMALL + """model Bad {
  input x: f32[B, 8]
  output y = x -> liner(3)
}
""")
    code, text = run("check", "two.lam#Nope")
    assert code == 1
    assert "error[E415]: no model and no recipe is named `Nope`" in text
    assert "there are: Small, Bad, quick" in text
    assert "did you mean `quick`?" in run("check", "two.lam#quik")[1]
    assert run("check", "two.lam#Small")[0] == run("check", "two.lam#quick")[0] == 0
    assert run("check", "two.lam#Bad")[0] == 1
    Path("three.lam").write_text("model Open(n: int) {\n  input x: f32[B, 8]\n"
                                 "  output y = x -> liner(n)\n}\n")
    assert "`liner` is not defined here" in run("check", "three.lam#Open")[1]


def test_check_as_json(place):
    # For editors: place and message as data.
    Path("one.lam").write_text(SMALL.replace("linear(hidden)", "liner(hidden)"))
    code, text = run("check", "one.lam", "--json")
    (found,) = json.loads(text)
    assert code == 1
    assert (found["code"], found["line"], found["path"]) == ("E301", 3, "Small")


def test_shapes_json_has_the_documented_keys():
    # Programs read this: its keys are an interface.
    code, text = run("shapes", "lenet5", "--json")
    data = json.loads(text)
    assert code == 0
    assert set(data) == {"model", "layers", "parameters", "buffers", "macs", "flops", "bytes",
                         "backward_macs", "backward_flops", "batch"}
    assert (data["parameters"], data["macs"]) == (61706, 416520)
    first = data["layers"][0]
    assert first == {"path": "c1", "op": "conv", "in": [["B", 1, 32, 32]],
                     "out": ["B", 6, 28, 28], "parameters": 156, "macs": 117600,
                     "flops": 235200, "backward_macs": 117600, "backward_flops": 235200,
                     "bytes": "18816 * B", "line": 6,
                     "share": {"parameters": 156 / 61706, "macs": 117600 / 416520},
                     "receptive_field": {"size": 5, "stride": 1, "start": 2.0}}


def test_shapes_with_open_sizes(place):
    # A model that leaves its image size open shows formulas, or numbers where they are given.
    Path("open.lam").write_text("""model Open {
  input image: f32[B, 3, H, W]
  output y = image -> c: conv(8, kernel=3, stride=2, padding=1) -> global_avgpool -> f: linear(4)
}
""")
    code, text = run("shapes", "open.lam", "--json")
    data = json.loads(text)
    assert code == 0
    assert data["layers"][0]["out"] == ["B", 8, "(H + 1) // 2", "(W + 1) // 2"]
    assert isinstance(data["macs"], str)
    code, text = run("shapes", "open.lam", "--input", "image=1x3x32x48", "--json")
    assert json.loads(text)["macs"] == 16 * 24 * 8 * 27 + 32


def test_sizes_that_break_an_assertion_tell_it(place):
    # The symbol is a multiple of 4 because of a line of the file: that line is named.
    Path("halved.lam").write_text("""model Halved {
  input x: f32[B, 3, H, W]
  assert H % 4 == 0, "halved twice"
  output y = x -> maxpool(2) -> maxpool(2)
}
""")
    code, text = run("shapes", "halved.lam", "--input", "x=1x3x30x32")
    assert code == 1
    assert "error[E416]: `x` is f32[B, 3, H, W]: H is not 30" in text
    assert 'note: `H % 4 == 0` does not hold: "halved twice"  (halved.lam:3)' in text
    assert "help: 28 or 32 fit\n" in text
    assert "help: 4 fits\n" in run("shapes", "halved.lam", "--input", "x=1x3x3x32")[1]
    assert run("shapes", "halved.lam", "--input", "x=1x3x28x32")[0] == 0


SIZED = """model Sized(size: int = 16, channels: int = 1) {
  input x: f32[B, channels, size, size]
  input y: f32[B, H, H, 3]
  assert size % 4 == 0, "size is a multiple of 4"
  output a = x -> maxpool(2) -> maxpool(2)
  output b = y
}
"""


@pytest.mark.parametrize("sizes, says", [
    ("x=1x1x20x20", "`size` sets it: add {} size=20"),
    ("x=1x3x20x20", "`channels` and `size` set them: add {} channels=3 {} size=20"),
    ("x=1x1x18x18", "`size` sets it, but size=18 does not fit (size is a multiple of 4); "
                    "{} size=16 or {} size=20 fits, without --input"),
    ("x=1x1x20x24", "it takes --input x=1x1x16x16"),
    ("y=1x5x5x4", "it takes --input y=1x5x5x3"),
    ("y=1x5x6x3", "`H` is 5 already"),
])
@pytest.mark.parametrize("verb, option", [(("shapes",), "-o"), (("draw", "-o", "a.dot"), "--set")])
def test_sizes_that_do_not_fit_tell_a_way_out(place, sizes, says, verb, option):
    # There was no help, though the size is a setting of the model; the help is tried here too.
    Path("sized.lam").write_text(SIZED)
    code, text = run(*verb, "sized.lam", "--input", sizes)
    assert code == 1
    assert f"help: {says.replace('{}', option)}" in text
    assert "no input `z`" in run(*verb, "sized.lam", "--input", sizes, "--input", "z=1")[1]
    given = [word for words in re.findall(rf"{option} \w+=\d+", text)[:2] for word in words.split()]
    if given:
        shown = () if "without" in says else ("--input", sizes)
        assert run(*verb, "sized.lam", *shown, *given)[0] == 0


def test_overrides_point_at_what_is_wrong():
    # The key where there is no such setting, the value where it is no number.
    code, text = run("shapes", "lenet5", "-o", "foo=3")
    assert code == 1
    assert "1 | foo=3\n  | ^^^\n" in text
    assert "classes must be a whole number, as in classes=10" in \
        run("shapes", "lenet5", "-o", "classes=abc")[1]


def test_why_fills_in_the_formula():
    # The formula of the textbooks, with this layer's numbers.
    code, text = run("shapes", "lenet5", "--why", "c3")
    assert code == 0
    assert "(in - kernel + 2 padding) / stride + 1" in text
    assert "height: (14 - 5 + 2 * 0) / 1 + 1 = 10" in text


@pytest.mark.parametrize(("layer", "formula", "numbers"), [
    ("conv_transpose(4, kernel=3, stride=2, padding=1, output_padding=1)",
     "(in - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1",
     "height: (7 - 1) * 2 - 2 * 1 + 1 * (3 - 1) + 1 + 1 = 14"),
    ("upsample(3)", "in * scale", "width: (W - 1) * 3 = 3 * W - 3"),
])
def test_why_of_layers_that_enlarge(place, layer, formula, numbers):
    # They had no formula: only the shapes of their operands.
    Path("up.lam").write_text("model Up {\n  input x: f32[B, 3, 8, W]\n"
                              f"  output y = x -> conv(3, kernel=2) -> up: {layer}\n}}\n")
    code, text = run("shapes", "up.lam", "--why", "up")
    assert code == 0
    assert formula in text and numbers in text


def test_an_unknown_path_of_a_large_model_lists_some():
    # Of more than thirty paths none was named.
    code, text = run("shapes", "resnet", "--why", "zzz")
    assert code == 2
    assert "there are 220, such as: stem.conv, stem.bn," in " ".join(text.split())


@pytest.mark.parametrize(("args", "says"), [
    (("shapes", "nowhere.lam"), "E118"),
    (("shapes", "lenet5#Nobody"), "no model is named `Nobody`"),
    (("train", "lenet5#nobody"), "no recipe is named `nobody`"),
    (("train", "lenet5", "-o", "epoch=3"), "did you mean `epochs`?"),
    (("train", "lenet5", "-o", "batch=0"), "at least 1"),
    (("train", "lenet5", "-o", "name=x"), "E502"),  # the name of an argument of `File.recipe`
    (("train", "lenet5", "-o", "lr=[1,"), "`[` is never closed"),
    (("train", "lenet5", "-o", "lr"), "is not KEY=VALUE"),
    (("shapes", "lenet5", "--input", "image=1x3x32x32"), "1 is not 3"),
    (("shapes", "lenet5", "--input", "picture=1"), "no input `picture`"),
    (("shapes", "lenet5", "--why", "c9"), "no layer has the path `c9`"),
    (("show", "lenet5", "--stage", "fuzed"), "did you mean `fused`?"),
    (("explain", "E999"), "no error has the code E999"),
    (("eval", "lenet5", "--weights", "nowhere"), "E701"),
    (("frobnicate",), "No such command"),
])
def test_mistakes_get_a_message(place, args, says):
    # Every mistake: a message that names it, a non-zero exit code, no traceback.
    code, text = run(*args)
    assert code != 0
    assert says in text


def test_train_reaches_the_digits_and_keeps_two_checkpoints(trained):
    # The whole way: text to a trained network, on real data.
    run_folder = trained / "run"
    assert {"best.safetensors", "last.safetensors", "log.jsonl"} <= \
        {path.name for path in run_folder.iterdir()}
    code, text = run("eval", trained / "small.lam", "--weights", run_folder, "--json")
    assert code == 0
    assert json.loads(text)["acc"] > 0.9


def test_targets_agree_on_trained_weights(trained):
    # The reference and the kernels evaluate the same weights alike.
    figures = [json.loads(run("eval", trained / "small.lam", "--weights", trained / "run",
                              "--target", target, "--json")[1]) for target in ("cpu", "numpy")]
    assert figures[0]["acc"] == figures[1]["acc"]
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=1e-5)


def test_predict_labels_a_picture(trained, tmp_path):
    # A file in, a label and its probability out.
    digit = mnist("test").read(np.array([0]))
    np.save(tmp_path / "digit.npy", digit["image"][0])
    code, text = run("predict", trained / "small.lam", tmp_path / "digit.npy", "--weights",
                     trained / "run", "--json")
    (found,) = json.loads(text)
    assert code == 0
    assert found["label"] == str(digit["label"][0])
    assert 0.5 < found["probability"] <= 1
    assert sum(found["probabilities"]) == pytest.approx(1)


def test_best_on_training_data_is_not_called_held_out(place):
    # A figure on data that the model has seen must not pass for one on data that it has not.
    lines = [line for line in SMALL.splitlines() if "data valid" not in line]
    Path("seen.lam").write_text("\n".join(lines).replace('"train"', '"test"') + "\n")
    code, text = run("train", "seen.lam", "--out", "run", "-o", "epochs=1")
    assert code == 0
    assert "best training acc" in text
    assert "held-out" not in text


def test_check_tells_what_is_wrong_with_a_source(place):
    # The arguments of a source are wrong before any file is opened.
    Path("one.lam").write_text(SMALL.replace('mnist("test")', 'mnist("tset")'))
    Path("two.lam").write_text(SMALL.replace('mnist("train")', 'arrays("x.npz")'))
    code, text = run("check", "one.lam", "two.lam")
    assert code == 1
    assert "did you mean `test`?" in text
    assert 'error[E608]: `arrays` needs at least one field, as in image="x"' in text


def test_a_second_run_does_not_overwrite_the_first(trained):
    # Nothing that was trained is lost by repeating a command.
    code, text = run("train", trained / "small.lam", "--out", trained / "run")
    assert code == 1
    assert "already holds a run" in text


def test_resume_of_a_finished_run_changes_nothing(trained, tmp_path):
    # Going on where nothing is left is no error.
    shutil.copytree(trained / "run", tmp_path / "run")
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    code, _ = run("train", trained / "small.lam", "--out", tmp_path / "run", "--resume")
    assert code == 0
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def test_weights_of_another_model_are_refused(trained, place):
    # Loading by name must never fit by accident.
    Path("wide.lam").write_text(SMALL.replace("hidden: int = 16", "hidden: int = 32"))
    code, text = run("eval", "wide.lam", "--weights", trained / "run")
    assert code == 1
    assert "E703" in text
    assert "fc.weight" in text


def test_labels_beyond_the_classes_are_refused(place):
    # A label that no output stands for would silently train nonsense.
    Path("seven.lam").write_text(SMALL.replace("linear(10)", "linear(7)"))
    code, text = run("train", "seven.lam", "--out", "run")
    assert code == 1
    assert "E610" in text


def test_a_loss_that_explodes_stops_the_run(place):
    # NaN is reported where it first appears; what was saved stays.
    code, text = run("train", "small.lam", "-o", "lr=1e12", "--out", "run")
    assert code == 1
    assert "E650" in text
    assert "lower the learning rate" in text
    assert Path("run/last.safetensors").exists()


@pytest.mark.parametrize("stage", ["ast", "graph", "backward", "fused", "memory", "kernels",
                                   "layout"])
def test_every_stage_can_be_shown(stage):
    # What the compiler does is text that a user can read.
    code, text = run("show", "lenet5", "--stage", stage)
    assert code == 0
    marks = {"ast": "Model", "graph": "conv2d", "backward": "update:c1.weight",
             "fused": "graph body {", "memory": "arena", "kernels": "def kernel(",
             "layout": "layout='nhwc'"}
    assert marks[stage] in text


def test_stages_carry_source_lines():
    # A node leads back to the line that asked for it.
    assert "lenet5.lam:6" in run("show", "lenet5", "--stage", "graph")[1]


def test_fmt_is_stable_and_checks(place):
    # Formatting is idempotent, and `--check` tells without changing.
    Path("ugly.lam").write_text(SMALL.replace("  output", "        output"))
    assert run("fmt", "--check", "ugly.lam")[0] == 1
    assert run("fmt", "ugly.lam")[0] == 0
    assert run("fmt", "--check", "ugly.lam")[0] == 0


def test_explain_shows_the_page():
    # Each code leads to a page with a wrong and a right example.
    code, text = run("explain", "E312")
    assert code == 0
    assert text.startswith("## E312")


def test_zoo_lists_exact_figures():
    # The zoo's figures are data.
    rows = json.loads(run("zoo", "--json")[1])
    lenet = next(row for row in rows if row["model"] == "LeNet5")
    assert (lenet["parameters"], lenet["macs"], lenet["receptive_field"]) == (61706, 416520, 16)


def test_doctor_and_cache_report(tmp_path, monkeypatch):
    # What to send with a bug report.
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))
    facts = json.loads(run("doctor", "--json")[1])
    assert facts["numba"] != "not installed"
    assert str(tmp_path) in facts["cache folder"]
    assert run("cache", "clear")[1] == "removed 0 files\n"


def test_bench_has_the_documented_keys():
    # Benchmarks of other projects read this.
    code, text = run("bench", "lenet5", "--mode", "train", "--batch", "4", "--steps", "2",
                     "--json")
    assert code == 0
    assert set(json.loads(text)) == {
        "model", "target", "mode", "batch", "input", "threads", "median_s", "min_s", "compile_s",
        "start_s", "peak_rss_mb", "arena_mb", "gflops", "gemm_gflops", "left_out",
        "checkpoint_every", "tuned"}


def test_a_bad_environment_is_a_message(monkeypatch):
    # A typo in a variable is told, not ignored.
    monkeypatch.setenv("LAMINA_THREADS", "many")
    code, text = run("bench", "lenet5", "--steps", "1")
    assert code == 1
    assert "LAMINA_THREADS" in text
    monkeypatch.delenv("LAMINA_THREADS")
    monkeypatch.setenv("LAMINA_SKIP", "winnograd")
    code, text = run("bench", "lenet5", "--steps", "1")
    assert code == 1 and "'winnograd'" in text and "pointwise, winograd" in text


def test_weights_of_a_recipe_are_loaded_by_pattern(trained, place):
    # Fine-tuning: known weights under other names, a new head, lower layers frozen.
    text = SMALL.replace("fc: linear", "body: linear").replace("head: linear(10)",
                                                               "top: linear(10)")
    rules = (f'  weights "{trained / "run" / "best.safetensors"}" {{\n'
             '    map "fc.*" => "body.*"\n    skip "head.*"\n  }\n'
             '  phase only { freeze "**" except "top.**"; epochs = 1 }\n')
    Path("tuned.lam").write_text(text.replace("  batch      =", rules + "  batch      ="))
    code, output = run("train", "tuned.lam", "--out", "tuned")
    assert code == 0, output
    assert "2 tensors; 2 start afresh: top.weight, top.bias" in output
    from safetensors.numpy import load_file

    before = load_file(trained / "run" / "best.safetensors")
    after = load_file("tuned/last.safetensors")
    assert np.array_equal(before["fc.weight"], after["body.weight"])
    assert not any(key.startswith("optimizer/body") for key in after)


@pytest.mark.parametrize("columns", [50, 60, 80, 100])
def test_no_number_is_cut_in_a_narrow_terminal(columns, monkeypatch):
    # Half a number is a wrong number; half a path names another layer.
    monkeypatch.setattr(views, "terminal", lambda: Console(width=columns, highlight=False))
    code, text = run("shapes", "resnet#ResNet18", "--input", "image=1x3x224x224")
    assert code == 0
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= columns
    assert "2,359,296" in text and "11,689,512 parameters" in text.replace("\n", " ")


def test_parameters_that_nothing_needs_are_named(place):
    # The total counts them, no row of the table does.
    Path("idle.lam").write_text("model M {\n  input x: f32[B, 8]\n  h = x -> linear(8)\n"
                                "  unused = h -> idle: linear(3)\n  output y = h\n}\n")
    code, text = run("shapes", "idle.lam")
    assert code == 0
    assert "no output needs idle.weight, idle.bias" in text
