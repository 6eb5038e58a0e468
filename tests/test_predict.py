"""Prediction for every kind of model: what it prints, and a message for every bad file."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import lamina
from lamina.cli import main

LINE = """model Line {
  input x: f32[B, 3]
  output y = x -> fc: linear(2)
}

recipe fit for Line {
  data train = arrays("line.npz", x="x", y2="y")
  target y2: f32[B, 2]
  loss      = mse(y, y2)
  optimizer = sgd(lr=0.01)
  batch     = 4
  epochs    = 1
}
"""
TOKENS = """model Tokens {
  input tokens: i32[B, 5]
  output logits = tokens -> table: embed(7, 4) -> flatten -> fc: linear(3)
}

recipe fit for Tokens {
  data train = arrays("tokens.npz", tokens="x", label="y")
  target label: i32[B]
  loss      = cross_entropy(logits, label)
  optimizer = sgd(lr=0.01)
  batch     = 4
  epochs    = 1
}
"""
PAIR = """model Pair {
  input a: f32[B, 3]
  input b: f32[B, 2]
  output y = concat(a, b, axis=1) -> fc: linear(20)
}

recipe fit for Pair {
  data train = arrays("pair.npz", a="a", b="b", t="t")
  target t: f32[B, 20]
  loss      = mse(y, t)
  optimizer = sgd(lr=0.01)
  batch     = 4
  epochs    = 1
}
"""
PICTURES = """model Pictures {
  input image: f32[B, 1, 4, 4]
  output logits = image -> flatten -> fc: linear(2)
}

recipe fit for Pictures {
  data train = images("photos", size=[6, 6], channels=1) -> center_crop(4) -> normalize(0.5, 0.5)
  target label: i32[B]
  loss      = cross_entropy(logits, label)
  optimizer = sgd(lr=0.01)
  batch     = 4
  epochs    = 1
}
"""


def run(*args):
    """(exit code, output) of a command; an exception is a failure of the test."""
    found = CliRunner().invoke(main, [str(arg) for arg in args])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.output


def predict(name, *args):
    return run("predict", f"{name}.lam", *args, "--weights", f"{name}-run", "--target", "numpy")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with one short run of each model."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    real = {n: rng.normal(size=(8, n)).astype(np.float32) for n in (2, 3, 20)}
    np.savez(folder / "line.npz", x=real[3], y=real[2])
    np.savez(folder / "tokens.npz", x=rng.integers(0, 7, (8, 5)), y=rng.integers(0, 3, 8))
    np.savez(folder / "pair.npz", a=real[3], b=real[2], t=real[20])
    image = pytest.importorskip("PIL.Image", reason="needs lamina[images]")
    for label in ("cat", "dog"):
        (folder / "photos" / label).mkdir(parents=True)
        for index in range(3):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            image.fromarray(pixels).save(folder / "photos" / label / f"{index}.png")
    for name, text in (("line", LINE), ("tokens", TOKENS), ("pair", PAIR), ("pictures", PICTURES)):
        (folder / f"{name}.lam").write_text(text)
        code, said = run("train", folder / f"{name}.lam", "--out", folder / f"{name}-run",
                         "--target", "numpy")
        assert code == 0, said
    return folder


@pytest.fixture
def place(runs, monkeypatch):
    """The folder of the runs as the working folder."""
    monkeypatch.chdir(runs)
    return runs


def test_an_output_that_is_no_class_is_printed_itself(place, tmp_path):
    # A regression of one number was once answered with "0 (100.0%)".
    np.save(tmp_path / "x.npy", np.array([1, 2, 3], np.float32))
    code, text = predict("line", tmp_path / "x.npy")
    assert code == 0
    assert "%" not in text
    assert ": [2] [" in text
    code, text = predict("line", tmp_path / "x.npy", "--json", "--out", tmp_path / "y.npy")
    (found,) = json.loads(text)
    assert found["shape"] == [2]
    assert np.load(tmp_path / "y.npy").tolist() == [found["output"]]


@pytest.mark.parametrize("name", ["y.txt", "y", "."])
def test_outputs_are_saved_as_what_the_ending_says(place, tmp_path, name):
    # A .txt file held the bytes of an array; nothing is computed before that is said.
    np.save(tmp_path / "x.npy", np.array([1, 2, 3], np.float32))
    code, text = predict("line", tmp_path / "x.npy", "--out", name)
    assert code == 1
    assert "error[E416]" in text and "end it with one of: .npy, .png" in text
    assert "x.npy: " not in text and not Path("y.txt").exists()


def test_whole_numbers_are_not_taken_for_pixels(place, tmp_path):
    # Numbers 0 to 255 in a table are no pixels: training does not divide them by 255.
    for kind in (np.int64, np.uint8, np.float64):
        np.save(tmp_path / f"{kind.__name__}.npy", np.array([1, 2, 3], kind))
    files = [tmp_path / f"{kind}.npy" for kind in ("int64", "uint8", "float64")]
    _, text = predict("line", *files, "--json")
    outputs = [one["output"] for one in json.loads(text)]
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_tokens_of_any_integer_type(place, tmp_path, kind):
    # NumPy makes int64 unasked; an embedding takes int32 and must stay within its table.
    np.save(tmp_path / "x.npy", np.array([0, 6, 2, 3, 1], kind))
    code, text = predict("tokens", tmp_path / "x.npy", "--json")
    assert code == 0
    assert json.loads(text)[0]["label"] in ("0", "1", "2")


def test_a_bad_file_leaves_the_others(place, tmp_path):
    # One wrong file of a thousand must not cost the results of all.
    np.save(tmp_path / "good.npy", np.array([0, 6, 2, 3, 1]))
    np.save(tmp_path / "large.npy", np.array([0, 7, 2, 3, 1]))
    np.save(tmp_path / "real.npy", np.array([0.5, 1, 2, 3, 1]))
    (tmp_path / "noise.npy").write_bytes(b"noise")
    files = [tmp_path / f"{name}.npy" for name in ("large", "real", "none", "noise", "good")]
    code, text = predict("tokens", *files)
    assert code == 1
    for part in ("error[E610]", "holds 7", "takes 0 to 6", "error[E611]", "error[E601]",
                 "error[E602]", "good.npy: "):
        assert part in text
    code, text = predict("tokens", *files, "--json")
    assert [one.get("code", "") for one in json.loads(text)] == ["E610", "E611", "E601", "E602", ""]


def test_a_model_of_several_inputs(place, tmp_path):
    # Every input gets its file by name, in any order; one that lacks is named.
    np.save(tmp_path / "a.npy", np.zeros(3, np.float32))
    np.save(tmp_path / "b.npy", np.zeros(2, np.float32))
    first, second = f"a={tmp_path / 'a.npy'}", f"b={tmp_path / 'b.npy'}"
    code, text = predict("pair", second, first)
    assert code == 0
    assert all(part in text for part in ("[20]", "min ", "mean ", "max "))
    for given, says in (((first,), "no file is given for `b`"),
                        ((tmp_path / "a.npy",), "no file is given for `a`, `b`"),
                        ((first, second, first), "one file for each"),
                        ((first, second, "c=x.npy"), "the model has no input `c`"),
                        ((first, f"b={tmp_path / 'a.npy'}"), "E609")):
        code, text = predict("pair", *given)
        assert code == 1
        assert says in text


def test_predict_without_the_training_data(place, tmp_path):
    # A trained model is carried to where its data is not: the checkpoint knows the classes.
    np.save(tmp_path / "x.npy", np.ones(3, np.float32))
    picture = place / "photos" / "dog" / "0.png"
    kept = tmp_path / "dog.png"
    kept.write_bytes(picture.read_bytes())
    before = predict("line", tmp_path / "x.npy"), predict("pictures", kept, "--json")
    Path("line.npz").rename("away.npz")
    Path("photos").rename("away")
    try:
        after = predict("line", tmp_path / "x.npy"), predict("pictures", kept, "--json")
    finally:
        Path("away.npz").rename("line.npz")
        Path("away").rename("photos")
    assert before == after
    assert before[1][0] == 0
    assert json.loads(before[1][1])[0]["label"] in ("cat", "dog")


BARE = """
model Bare(size: int = 4) {
  input left: f32[B, 3]
  input right: i32[B, 2]
  output y = (left, right -> table: embed(5, size) -> flatten) -> concat(axis=1) -> fc: linear(2)
}

model Grey {
  input image: f32[B, 1, H, W]
  output y = image -> c: conv(4, kernel=3)
}
"""


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A file with a recipe for another model, and weights of two models without one."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="weights are safetensors files")
    monkeypatch.chdir(tmp_path)
    Path("bare.lam").write_text(LINE + BARE)
    file = lamina.load("bare.lam")
    safetensors.save_file(file.Bare(size=6).init(), "bare.safetensors")
    safetensors.save_file(file.Grey().init(), "grey.safetensors")
    np.save("left.npy", np.ones(3))
    np.save("right.npy", np.array([1, 4]))
    np.save("image.npy", np.ones((1, 8, 8), np.float32))
    return file


def test_a_model_without_a_recipe_takes_arrays(bare):
    # It was refused with advice to write a recipe for another model.
    words = ("--weights", "bare.safetensors", "-o", "size=6", "--target", "numpy")
    code, text = run("predict", "bare.lam#Bare", "left=left.npy", "right=right.npy", "--json",
                     *words)
    assert code == 0
    net = bare.Bare(size=6)
    expected = net.compile("numpy")(net.init(), left=np.ones((1, 3), np.float32),
                                    right=np.array([[1, 4]]))
    assert np.array_equal(np.float32(json.loads(text)[0]["output"]), expected["y"][0])
    np.save("right.npy", np.array([1, 5]))
    code, text = run("predict", "bare.lam#Bare", "left=left.npy", "right=right.npy", *words)
    assert code == 1 and "takes 0 to 4" in text
    assert "did you mean `Bare`?" in run("predict", "bare.lam#Bar", "left.npy", *words)[1]


def test_a_model_without_a_recipe_takes_no_picture(bare):
    # Nothing says how its pixels were normalised.
    code, text = run("predict", "bare.lam#Grey", "image.png", "--weights", "grey.safetensors")
    assert code == 1
    assert "error[E611]" in text and "numpy.save(file, array)" in text
    code, text = run("eval", "bare.lam#Grey", "--weights", "grey.safetensors")
    assert code == 1
    assert "the model `Grey` has no recipe" in text and "recipe first for Grey" in text


def test_maps_of_a_model_without_a_recipe(bare):
    # As `predict`, `filters` takes an array there.
    pytest.importorskip("matplotlib", reason="needs lamina[plots]")
    code, text = run("filters", "bare.lam#Grey", "--weights", "grey.safetensors", "-o", "c.png",
                     "--at", "c", "--input", "image.npy", "--target", "numpy")
    assert (code, text) == (0, "wrote c.png\n")


def test_filters_take_the_settings_of_the_recipe(tmp_path, monkeypatch):
    # The weights of the recipe's model, with its settings, did not fit the file's first model.
    pytest.importorskip("matplotlib", reason="needs lamina[plots]")
    safetensors = pytest.importorskip("safetensors.numpy", reason="weights are safetensors files")
    monkeypatch.chdir(tmp_path)
    net = lamina.load("cifar_resnet").recipe("fashion").net
    safetensors.save_file(net.init(), "w.safetensors")
    for file in ("cifar_resnet", "cifar_resnet#ResNet20", "cifar_resnet#fashion"):
        code, text = run("filters", file, "--weights", "w.safetensors", "-o", "f.png")
        assert (code, text) == (0, "wrote f.png: stem.conv.weight\n")
    code, text = run("filters", "cifar_resnet#SmallResNet", "--weights", "w.safetensors", "-o",
                     "f.png", "--set", "channels=1")
    assert (code, text) == (0, "wrote f.png: stem.conv.weight\n")


def test_softmax_in_the_model_is_not_taken_twice(place, tmp_path):
    # A model that ends in softmax gives probabilities: a second softmax would flatten them.
    text = TOKENS.replace("fc: linear(3)", "fc: linear(3) -> softmax")
    Path("shares.lam").write_text(text)
    assert run("train", "shares.lam", "--out", "shares-run", "--target", "numpy")[0] == 0
    np.save(tmp_path / "x.npy", np.array([0, 6, 2, 3, 1]))
    _, text = predict("shares", tmp_path / "x.npy", "--json", "--out", tmp_path / "y.npy")
    (found,) = json.loads(text)
    assert np.load(tmp_path / "y.npy")[0] == pytest.approx(found["probabilities"])


MASKS = """model Masks {
  input image: f32[B, 3, H, W]
  output logits = image -> head: conv(1, kernel=1)
}

recipe fit for Masks {
  data train = pairs("images", "masks")
  target mask: f32[B, 1, H, W]
  loss      = dice(logits, mask)
  optimizer = sgd(lr=0.1)
  batch     = 2
  epochs    = 1
}
"""


def test_a_mask_is_saved_as_a_picture(tmp_path, monkeypatch):
    """A mask as an array of numbers is nothing to look at."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is an optional extra")
    monkeypatch.chdir(tmp_path)
    Path("masks.lam").write_text(MASKS)
    for kind in ("images", "masks"):
        Path(kind).mkdir()
        for index in range(2):
            shade = 255 * index if kind == "masks" else 40
            image.new("L", (6, 5), shade).save(Path(kind) / f"{index}.png")
    done = CliRunner().invoke(main, ["train", "masks.lam", "--target", "numpy", "--out", "run"])
    assert done.exit_code == 0, done.output
    call = ["predict", "masks.lam", "images/0.png", "--weights", "run", "--target", "numpy"]
    assert CliRunner().invoke(main, [*call, "--out", "found.png"]).exit_code == 0
    assert CliRunner().invoke(main, [*call, "--out", "found.npy"]).exit_code == 0
    with image.open("found.png") as found:
        assert np.array_equal(np.asarray(found), np.load("found.npy")[0, 0] > 0)
    two = CliRunner().invoke(main, [*call, "images/1.png", "--out", "found.png"])
    assert two.exit_code == 1 and "a .png holds one mask" in two.output
