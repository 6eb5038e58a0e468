"""Texts and series from the command line: trained, gone on with, evaluated and predicted."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from lamina.cli import main
from lamina.runtime.checkpoint import load

LETTERS = """model Letters(chars: int = 40) {
  input text: i32[B, T]
  output logits: [B, T, chars] = text -> embed(chars, 8) -> lstm(16) -> head: linear(chars)
}

recipe fit for Letters {
  data train = text("book.txt", window=16) -> split("train", share=0.2) -> shuffle
  data valid = text("book.txt", window=16) -> split("valid", share=0.2)
  target next: i32[B, T]
  loss       = cross_entropy(logits, next, axis=-1)
  metric acc = accuracy(logits, next, axis=-1)
  optimizer  = adam(lr=0.02)
  batch      = 8
  epochs     = 6
}
"""
LOAD = """model Load {
  input past: f32[B, T, 2]
  x = past -> gru(8)
  output y: [B, 3, 2] = x[:, -1, :] -> head: linear(6) -> as [B, 3, 2]
}

recipe fit for Load {
  data train = series("load.csv", window=12, horizon=3) -> split("train", share=0.2) -> shuffle
  data valid = series("load.csv", window=12, horizon=3) -> split("valid", share=0.2)
  target future: f32[B, 3, 2]
  loss      = mse(y, future)
  optimizer = adam(lr=0.02)
  epochs    = 4
}
"""


TAGGER = """model Tagger(vocab: int = 30, tags: int = 4) {
  input words: i32[B, S~]
  output logits = words -> embed(vocab, 8) -> gru(8, bidirectional=true) -> head: linear(tags)
}

recipe fit for Tagger {
  data train = conll("train.conll", words="words", tag="labels") -> longest(30)
    -> bucket(tokens=128) -> shuffle
  data valid = conll("valid.conll", words="words", tag="labels")
  target tag: i32[B, S~]
  loss       = cross_entropy(logits, tag, axis=-1)
  metric acc = accuracy(logits, tag, axis=-1)
  optimizer  = adam(lr=0.05)
  epochs     = 4
  batch      = 6
}
"""
WORDS = {"the": "DET", "a": "DET", "dog": "NOUN", "cat": "NOUN", "bird": "NOUN", "sees": "VERB",
         "hears": "VERB", "old": "ADJ", "small": "ADJ"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letters.lam").write_text(LETTERS)
    (tmp_path / "load.lam").write_text(LOAD)
    (tmp_path / "tagger.lam").write_text(TAGGER)
    (tmp_path / "train.conll").write_text(sentences(40, 1) + "the DET\n" * 50)
    (tmp_path / "valid.conll").write_text(sentences(10, 2) + "new ADJ\n")
    (tmp_path / "book.txt").write_text("the quick brown fox jumps over the lazy dog; " * 40)
    times = np.arange(200)
    rows = zip(np.sin(times / 5), np.cos(times / 7), strict=True)
    (tmp_path / "load.csv").write_text("a,b\n" + "".join(f"{a:.4f},{b:.4f}\n" for a, b in rows))
    return tmp_path


def sentences(count, seed):
    rng = np.random.default_rng(seed)
    rows = [rng.choice(list(WORDS), rng.integers(1, 12)) for _ in range(count)]
    return "".join("".join(f"{word} {WORDS[word]}\n" for word in row) + "\n" for row in rows)


def lamina(*arguments, code=0):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == code, done.output
    return done.output


def test_a_character_model(folder):
    """Letters are learned, a run goes on, and what was trained needs the book no more."""
    lamina("train", "letters.lam", "--out", "run")
    state = load(folder / "run" / "last.safetensors").state
    assert state.vocabularies["text"].tokens[3] == " " and len(state.vocabularies["text"]) < 40
    lamina("train", "letters.lam", "--out", "run", "--resume", "-o", "epochs=8")
    weights = ("--weights", "run", "-o", "epochs=8")
    figures = json.loads(lamina("eval", "letters.lam", *weights, "--json"))
    assert figures["acc"] > 0.4
    (folder / "say.txt").write_text("the qu\n")
    told = json.loads(lamina("predict", "letters.lam", *weights, "say.txt", "--json"))
    (folder / "book.txt").unlink()
    again = json.loads(lamina("predict", "letters.lam", *weights, "say.txt", "--json"))
    assert told == again and told[0]["shape"] == [6, 40]
    letter = state.vocabularies["text"].tokens[int(np.argmax(told[0]["output"][-1]))]
    assert letter == "i"


def test_a_table_that_is_too_small(folder):
    """The message says what to write."""
    said = lamina("train", "letters.lam", "-o", "chars=20", code=1)
    assert "E610" in said and "write 31 in the model" in said and "size=20" in said


def test_series_are_foretold(folder):
    """Windows of numbers train a recurrent model; held out is the end."""
    lamina("train", "load.lam", "--out", "run")
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    losses = [entry["valid"]["loss"] for entry in log if "valid" in entry]
    assert len(losses) == 4 and losses[-1] < losses[0] / 2


def test_sentences_of_any_length(folder):
    """A tagger over `S~`: learned in buckets; figures do not depend on how batches are cut."""
    said = lamina("train", "tagger.lam", "--out", "run")
    assert "left out: 1 of 41 examples" in said and "of `words` in the held-out data" in said
    figures = [json.loads(lamina("eval", "tagger.lam", "--weights", "run", "--json", "-o",
                                 f"batch={batch}")) for batch in (1, 4, 11)]
    for found in figures:
        assert found["acc"] == pytest.approx(figures[0]["acc"], rel=1e-6) and found["acc"] > 0.9
        assert found["loss"] == pytest.approx(figures[0]["loss"], rel=1e-5)
    assert "of `words` in the held-out data" in lamina("eval", "tagger.lam", "--weights", "run")
    (folder / "say.txt").write_text("a small dog")
    told = json.loads(lamina("predict", "tagger.lam", "--weights", "run", "say.txt", "--json"))
    tags = load(folder / "run" / "last.safetensors").state.vocabularies["tag"]
    assert tags.decode(np.argmax(told[0]["output"], axis=-1)) == "DET ADJ NOUN"
    few = lamina("train", "tagger.lam", "-o", "tags=3", "--out", "other", code=1)
    assert "E610" in few and "write 4 in the model" in few


def test_a_run_of_texts_goes_on_to_the_same_bits(folder):
    """Batches of like length, weighed by their tokens, stopped after any epoch."""
    text = TAGGER.replace("epochs     = 4", "phase a { epochs = 2 }\n  phase b { epochs = 2 }")
    (folder / "tagger.lam").write_text(text)
    lamina("train", "tagger.lam", "--out", "whole")
    whole = load(folder / "whole" / "last.safetensors")
    lamina("train", "tagger.lam", "--out", "parts", "-o", "b.epochs=1")
    lamina("train", "tagger.lam", "--out", "parts", "-o", "b.epochs=2", "--resume")
    parts = load(folder / "parts" / "last.safetensors")
    for key, value in whole.params.items():
        assert value.tobytes() == parts.params[key].tobytes(), key
