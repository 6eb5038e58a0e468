"""The language page's seq2seq model as it stands, with a recipe: it trains, then writes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lamina.cli import main

EXAMPLE = Path(__file__).parent / "syntax" / "examples" / "seq2seq.lam"
RECIPE = """
recipe turn for Seq2Seq(src_vocab=8, tgt_vocab=8, hidden=24, att=12) {
  data train = tsv("words.tsv", src="chars", tgt="chars") -> eos("tgt") -> shuffle
    -> bucket(tokens=120)
  data valid = tsv("words.tsv", src="chars", tgt="chars") -> eos("tgt")
  loss       = cross_entropy(logits, tgt, axis=-1)
  metric acc = accuracy(logits, tgt, axis=-1)
  optimizer  = adam(lr=1e-2)
  epochs     = 60
  clip       = 1.0
}
"""
WORDS = ("ab", "ba", "cab", "abc", "bca", "dabc", "ddab", "cdab", "abcd", "acdba", "d", "bcdd")


@pytest.mark.parametrize("target", ["cpu"])
def test_it_trains_and_writes(target, tmp_path, monkeypatch):
    # Each word is to be said backwards; a dozen words are learnt by heart in seconds.
    monkeypatch.chdir(tmp_path)
    Path("words.tsv").write_text("".join(f"{word}\t{word[::-1]}\n" for word in WORDS))
    Path("turn.lam").write_text(EXAMPLE.read_text("utf-8") + RECIPE)

    def run(*arguments):
        done = CliRunner().invoke(main, [*arguments, "--target", target])
        assert done.exit_code == 0, done.output
        return done.output

    run("train", "turn.lam", "--out", "run")
    texts = [part for word in WORDS for part in ("--text", f"src={word}")]
    for policy in ((), ("--beam", "3")):
        found = run("predict", "turn.lam", "--weights", "run", *texts, "--json", *policy)
        said = [one["text"] for one in json.loads(found)]
        assert sum(a == word[::-1] for a, word in zip(said, WORDS, strict=True)) >= 10, said
    assert "token errors" in run("eval", "turn.lam", "--weights", "run")
