"""`--checkpoint-every` as a user meets it: what the verbs say of it, and what they refuse."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from lamina.cli import main

DEEP = """model Deep(depth: int = 12) {
  input image: f32[B, 1, 28, 28]
  output logits = image -> s: avgpool(2) -> flatten
    -> body: repeat depth { l: linear(196) -> relu -> d: dropout(0.1) } -> head: linear(10)
}

recipe quick for Deep {
  data train = mnist("test") -> normalize(mean=0.1307, std=0.3081) -> shuffle
  target label: i32[B]
  loss       = cross_entropy(logits, label)
  optimizer  = adam(lr=0.001)
  batch      = 500
  epochs     = 1
}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with a deep model in it."""
    monkeypatch.chdir(tmp_path)
    Path("deep.lam").write_text(DEEP)
    return tmp_path


def run(*args):
    """(exit code, output) of a command; an exception is a failure of the test."""
    found = CliRunner().invoke(main, [str(arg) for arg in args])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert "Traceback" not in found.output
    return found.exit_code, found.output


def test_a_run_that_keeps_less_trains_the_same(place):
    # The same bits at the end of an epoch with dropout and Adam; the run says what it does.
    note = "note: --checkpoint-every auto: what is not kept is computed again"
    code, text = run("train", "deep.lam", "--out", "less", "--checkpoint-every", "auto")
    assert code == 0 and note in text
    code, text = run("train", "deep.lam", "--out", "all", "--json")
    assert code == 0 and json.loads(text)["checkpoint_every"] is None
    less, whole = (load_file(f"{name}/last.safetensors") for name in ("less", "all"))
    assert set(less) == set(whole)
    assert all(less[key].tobytes() == whole[key].tobytes() for key in whole)
    code, text = run("train", "deep.lam", "--out", "third", "--checkpoint-every", 3, "--json")
    assert code == 0 and json.loads(text)["checkpoint_every"] == 3


def test_the_memory_plan_says_what_is_computed_again(place):
    # The lower peak, and the price that is paid for it.
    ask = ("show", "deep.lam", "--stage", "memory", "--train", "--batch", 500)
    plain, less, every = (run(*ask, *more)[1] for more in (
        (), ("--checkpoint-every", 4), ("--checkpoint-every", 4, "--all")))
    before, after = (int(re.search(r"peak: ([\d,]+) bytes", text)[1].replace(",", ""))
                     for text in (plain, less))
    assert after < 0.75 * before
    # Without it there is only what dropout makes by cheap work of what is kept anyway.
    assert 0 < plain.count("computed again") < less.count("computed again")
    text = " ".join(less.split())
    assert "activation, computed again" in text
    assert ("computed again for the backward pass: 9 layers (convolutions, matrix products and "
            "scans) with what follows them: body.8.l, body.9.l,") in text
    assert "and 1 more (--all lists them)" in text
    assert "body.3.l" in " ".join(every.split()) and "more (--all" not in every


def test_bench_and_profile_name_it(place):
    # A time that is measured with it is not to be taken for one without.
    code, text = run("bench", "deep.lam", "--mode", "train", "--batch", 4, "--steps", 1,
                     "--checkpoint-every", 4, "--json")
    assert code == 0 and json.loads(text)["checkpoint_every"] == 4
    ask = ("profile", "deep.lam", "--train", "--batch", 4, "--rounds", 2, "--checkpoint-every", 4)
    code, text = run(*ask)
    assert code == 0
    assert "--checkpoint-every 4: the part again computes what is not kept" in text
    code, text = run(*ask, "--json")
    found = json.loads(text)
    assert found["checkpoint_every"] == 4
    parts = {row["layer"]: row["macs"] for row in found["layers"] if row["part"] == "again"}
    assert parts["body.4.l"] == 4 * 196 * 196


@pytest.mark.parametrize("text", ["0", "-2", "2.5", "root", "", "٣", "1" * 30])
def test_bad_numbers_are_refused(text):
    # With the numbers that there are.
    code, found = run("show", "lenet5", "--train", f"--checkpoint-every={text}")
    assert code == 2
    assert f"{text!r} is neither a whole number from 1 nor auto" in " ".join(found.split())


@pytest.mark.parametrize("args, option", [
    (("show", "lenet5", "--stage", "memory"), "--train"),
    (("profile", "lenet5"), "--train"), (("bench", "lenet5"), "--mode train")])
def test_inference_keeps_nothing(args, option):
    # What would have no effect is said, with the way out.
    code, found = run(*args, "--checkpoint-every", 2)
    assert code == 2
    assert (f"--checkpoint-every is for training steps, as only gradients need what is kept: add "
            f"{option}, or leave it out") in " ".join(found.split())


def test_out_of_memory_names_it():
    # Who has no room for a training step learns of the way out, and only who trains.
    asked = ("profile", "lenet5", "--batch", 10**9)
    way = "or keep less for the gradient: --checkpoint-every auto"
    for more, said in (((), False), (("--train",), True),
                       (("--train", "--checkpoint-every", 2), False)):
        code, found = run(*asked, *more)
        assert code == 1 and "use a smaller batch: --batch 16" in found
        assert (way in found) == said
