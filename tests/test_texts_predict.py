"""Texts in, texts out: `lamina predict` and `eval` for models that say tokens."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lamina.cli import main
from lamina.commands.decoding import batch_size, cut
from lamina.runtime.checkpoint import load, save_last
from lamina.runtime.decoding import Policy
from lamina.runtime.edit import edit_distance

NUMBERS = dict(zip("12345", ("one", "two", "three", "four", "five"), strict=True))
DIGITS = """from "seq2seq.lam" import Context, Multiplicative

recipe fit for Multiplicative(src_vocab=9, tgt_vocab=9, hidden=24) {
  data train = tsv("train.tsv", src="chars", tgt="words") -> eos("tgt") -> shuffle
  data valid = tsv("valid.tsv", src="chars", tgt="words") -> eos("tgt")
  loss       = cross_entropy(logits, tgt, axis=-1)
  metric acc = accuracy(logits, tgt, axis=-1)
  optimizer  = adam(lr=1e-2)
  schedule   = cosine()
  batch      = 16
  epochs     = 10
}

recipe blind for Context(src_vocab=9, tgt_vocab=9, hidden=4) {
  data train = tsv("train.tsv", src="chars", tgt="words") -> eos("tgt")
  loss       = cross_entropy(logits, tgt, axis=-1)
  optimizer  = adam(lr=1e-2)
  epochs     = 1
}
"""
NAMES = """cell Next(tokens: int) {
  input gold: i32[B]
  state tok: i32[B] = 1
  h      = prev.tok -> emb: embed(tokens, 16) -> step: LSTMCell(24)
  logits = h -> out: linear(tokens)
  tok    = choose(logits, gold)
  output logits
}

model Names(chars: int = 30) {
  input name: i32[B, T~]
  said = name -> say: scan Next(chars) over T until tok == 2 limit 12
  output logits = said
}

recipe fit for Names {
  data train = tsv("names.tsv", name="chars") -> eos("name") -> shuffle
  data valid = tsv("names.tsv", name="chars") -> eos("name")
  loss       = cross_entropy(logits, name, axis=-1)
  optimizer  = adam(lr=0.02)
  epochs     = 10
  batch      = 4
}
"""
TAGS = """model Tags(words: int = 12, endings: int = 14, tags: int = 4, kinds: int = 2) {
  input word: i32[B, S~]
  input ending: i32[B, S~]
  x = (word -> words: embed(words, 8), ending -> endings: embed(endings, 4)) -> concat(axis=-1)
  output logits = x -> head: linear(tags)
}

model Kinds(words: int = 12, kinds: int = 2) {
  input text: i32[B, S~]
  output logits = mean(text -> emb: embed(words, 8), axis=S) -> head: linear(kinds)
}

recipe tags for Tags {
  data train = conll("train.conll", word="words", ending="suffix 1", tag="labels",
                     columns=[0, 0, 1])
  target tag: i32[B, S~]
  loss      = cross_entropy(logits, tag, axis=-1)
  optimizer = adam(lr=0.1)
  epochs    = 10
  batch     = 4
}

recipe kinds for Kinds {
  data train = tsv("kinds.tsv", text="words", kind="class")
  target kind: i32[B]
  loss      = cross_entropy(logits, kind)
  optimizer = adam(lr=0.1)
  epochs    = 20
  batch     = 4
}
"""
WORDS = {"the": "DET", "a": "DET", "dog": "NOUN", "cat": "NOUN", "sees": "VERB", "old": "ADJ"}


def said(digits):
    return " ".join(NUMBERS[digit] for digit in digits)


def run(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


def told(*arguments, code=0):
    """What JSON says."""
    return json.loads(run(*arguments, "--json", code=code))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a short run of each model."""
    folder = tmp_path_factory.mktemp("texts")
    rows = ["".join(row) for n in (1, 2, 3, 4) for row in itertools.product("12345", repeat=n)]
    np.random.default_rng(1).shuffle(rows)
    (folder / "digits.lam").write_text(DIGITS)
    (folder / "train.tsv").write_text("".join(f"{row}\t{said(row)}\n" for row in rows[:500]))
    (folder / "valid.tsv").write_text("".join(f"{row}\t{said(row)}\n" for row in rows[500:600]))
    (folder / "names.lam").write_text(NAMES)
    (folder / "names.tsv").write_text("anna\nbella\nclara\ndiana\nemma\nflora\n")
    (folder / "tags.lam").write_text(TAGS)
    rng = np.random.default_rng(2)
    sentences = [rng.choice(list(WORDS), rng.integers(1, 6)) for _ in range(20)]
    (folder / "train.conll").write_text("\n".join(
        "".join(f"{word}\t{WORDS[word]}\n" for word in one) for one in sentences))
    (folder / "kinds.tsv").write_text("the dog sees\tanimal\nthe cat\tanimal\na house\tthing\n"
                                      "the old house\tthing\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for recipe in ("digits.lam#fit", "digits.lam#blind", "names.lam", "tags.lam#tags",
                       "tags.lam#kinds"):
            run("train", recipe, "--out", recipe.replace(".lam#", "-").replace(".lam", "-run"))
    return folder


@pytest.fixture
def place(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


SPELL = ("predict", "digits.lam#fit", "--weights", "digits-fit")
TAG = ("predict", "tags.lam#tags", "--weights", "tags-tags")
NAME = ("predict", "names.lam", "--weights", "names-run")


def test_a_text_is_answered_by_a_text(place):
    # The first thing that one tries; `src=` names the input, an `=` of the text itself does not.
    assert run(*SPELL, "--text", "135", "--text", "src=2143") == \
        "135: one three five\n2143: two one four three\n"
    (one,) = told(*SPELL, "--text", "135")
    assert list(one) == ["input", "text", "tokens", "score"] and -1 < one["score"] < 0
    assert one["tokens"] == ["one", "three", "five"]
    (other,) = told(*SPELL, "--text", "a=1")
    assert other["input"] == "a=1" and other["unknown"] == {"src": ["a", "="]}


def test_a_line_is_an_example(place, tmp_path):
    # As in the data's own source: empty lines are none, of columns the input's is taken.
    (tmp_path / "say.txt").write_text("135\n\n  42 \r\n2143\tnot to be read\n")
    out = tmp_path / "said.txt"
    printed = run(*SPELL, tmp_path / "say.txt", "--text", "5", "--out", out)
    assert [line.split(":")[0] for line in printed.splitlines()] == ["135", "42", "2143", "5"]
    assert out.read_text().splitlines() == [line.split(": ")[1] for line in printed.splitlines()]
    assert out.read_text().startswith("one three five\nfour two\n")


@pytest.mark.parametrize("options", [(), ("--beam", 3), ("--sample", "--seed", 5)])
def test_batches_change_nothing(place, options):
    # 150 lines are decoded 64 at a time; each is said as alone, and samples are drawn by place.
    lines = [line.split("\t")[0] for line in Path("train.tsv").read_text().splitlines()[:150]]
    (place / "many.txt").write_text("\n".join(lines))
    many = told(*SPELL, "many.txt", *options)
    assert [one["input"] for one in many] == lines
    some = [0, 63] if options and options[0] == "--sample" else [0, 63, 64, 149]
    for row in some:
        alone = told(*SPELL, *itertools.chain(*(("--text", line) for line in lines[:row + 1])),
                     *options)[-1]
        assert alone["tokens"] == many[row]["tokens"]
        assert alone["score"] == pytest.approx(many[row]["score"], abs=1e-4)
    if options and options[0] == "--sample":
        again = told(*SPELL, *("--text", "1234") * 130, *options, "--temperature", 3)
        scores = [one["score"] for one in again]
        assert scores[:64] != scores[64:128]


def test_the_options_are_the_policy(place):
    # Each reaches the decoder under its own name: the numbers are those of a call in Python.
    import lamina

    state = load(place / "digits-fit" / "last.safetensors")
    net = lamina.load("digits.lam").recipe("fit").net
    src = [state.state.vocabularies["src"].encode("3141")]
    tokens = state.state.vocabularies["tgt"].tokens
    for options, policy, limit in (
            ((), Policy(), 0), (("--limit", 2), Policy(), 2),
            (("--beam", 4, "--penalty", 2), Policy("beam", width=4, penalty=2), 0),
            (("--sample", "--temperature", 4, "--top-k", 6, "--top-p", 0.9, "--seed", 8),
             Policy("sample", 4, 6, 0.9, 8), 5)):
        found = net.decoder()(state.params, policy, limit, src=src)
        more = ("--limit", limit) if limit and "--limit" not in options else ()
        (one,) = told(*SPELL, "--text", "3141", *options, *more)
        chosen = [tokens[n] for n in found["chosen"][0, :found["lengths"][0]]]
        assert one["tokens"] == list(itertools.takewhile(lambda token: token != "<eos>", chosen))
        assert one["score"] == pytest.approx(float(found["score"][0]), abs=1e-5)


@pytest.mark.parametrize("options, says", [
    (("--beam", 3, "--sample"), "two ways to choose"), (("--top-k", 3), "--top-k belongs to"),
    (("--penalty", 1), "add --beam 5"), (("--beam", 3, "--seed", 1), "--seed belongs to --sample"),
    (("--sample", "--temperature", "nan"), "above 0, not nan"),
    (("--beam", 2, "--penalty", "nan"), "a penalty is a number"),
    (("--prompt", "seven"), "no token `seven`"),
    (("--prompt", "one two", "--limit", 1), "has 2 tokens; the limit of steps is 1"),
    (("--prompt", "one", "--prompt", "two"), "2 prompts for 1 examples")])
def test_options_that_do_not_go_together(place, options, says):
    # Silently one of them would win.
    assert says in (text := run(*SPELL, "--text", "1", *options, code=1)) and "E416" in text


def test_a_model_without_choice_takes_no_policy(place):
    for option in (("--beam", 3), ("--sample",), ("--limit", 3), ("--prompt", "a")):
        text = run(*TAG, "--text", "the dog", *option, code=1)
        assert f"error[E416]: {option[0]}: the model chooses no tokens" in text
    text = run("eval", "tags.lam#tags", "--weights", "tags-tags", "--beam", 2, code=1)
    assert "error[E416]: --beam: the model chooses no tokens" in text


def test_a_prompt_goes_first(place):
    # For all examples, or one for each.
    assert run(*SPELL, "--text", "135", "--text", "24", "--prompt", "five").count(": five") == 2
    first, second = told(*SPELL, "--text", "1", "--text", "2", "--prompt", "two two", "--prompt",
                         "four")
    assert first["tokens"][:2] == ["two", "two"] and second["tokens"][0] == "four"


def test_a_language_model_needs_no_input(place):
    # It has none but the tokens that it says: one text, or one for each prompt.
    assert len(told(*NAME)) == 1
    first, second = told(*NAME, "--prompt", "be", "--prompt", "cl", "--beam", 3)
    assert first["text"].startswith("be") and second["text"].startswith("cl")
    assert run(*NAME, "--prompt", "an", "--limit", 2) == "an\n"
    assert "--prompt TEXT" in run(*NAME, "names.tsv", code=1)
    figures = json.loads(run("eval", "names.lam", "--weights", "names-run", "--json"))
    assert list(figures) == ["loss"]
    assert "E416" in run("eval", "names.lam", "--weights", "names-run", "--beam", 2, code=1)


def test_every_position_has_its_label(place):
    # Both inputs are read from one column: one text feeds them.
    assert run(*TAG, "--text", "the old dog sees") == "the old dog sees: DET ADJ NOUN VERB\n"
    (one,) = told(*TAG, "--text", "a cat")
    assert one["tokens"] == ["DET", "NOUN"] and one["shape"] == [2, 4]
    assert len(one["probabilities"]) == 2 and all(0.5 < share < 1 for share in one["probabilities"])
    text = run(*TAG, "--text", "the whale sings", "--text", "a whale")
    assert "warning: 3 tokens of `word` not in the vocabulary, read as <unk>: `whale`, `sings`" \
        in text
    together = told(*TAG, "--text", "the", "--text", "a dog sees the old cat")
    assert together[0]["output"] == told(*TAG, "--text", "the")[0]["output"]


def test_a_text_has_a_class(place):
    # Labels as for pictures, for every line.
    (place / "what.txt").write_text("the cat\na house\n")
    kinds = ("predict", "tags.lam#kinds", "--weights", "tags-kinds", "what.txt")
    first, second = run(*kinds, "--out", "kinds.txt").splitlines()
    assert first.startswith("the cat: animal (") and second.startswith("a house: thing (")
    assert Path("kinds.txt").read_text() == "animal\nthing\n"
    assert sum(told(*kinds)[0]["probabilities"]) == pytest.approx(1)


def test_an_alignment_is_drawn(place, tmp_path):
    # Source tokens along the top: the picture is wide for a long source and a short answer.
    image = pytest.importorskip("PIL.Image", reason="needs lamina[images]")
    pytest.importorskip("matplotlib", reason="needs lamina[plots]")
    out = tmp_path / "alignment.png"
    run(*SPELL, "--text", "1" * 30, "--limit", 3, "--out", out)
    with image.open(out) as drawn:
        assert drawn.width > 3 * drawn.height
    two = run(*SPELL, "--text", "1", "--text", "2", "--out", out, code=1)
    assert "error[E609]: a picture shows one alignment, not 2" in two
    blind = ("predict", "digits.lam#blind", "--weights", "digits-blind", "--text", "1")
    assert "an alignment [B, T~, S~] has" in run(*blind, "--out", out, code=1)
    assert "E609" in run(*TAG, "--text", "the", "--out", out, code=1)


def test_what_is_no_text(place, tmp_path):
    # A message for each that names the place; the others are predicted all the same.
    files = {"empty.txt": b"", "blank.txt": b"\n  \n", "latin.txt": b"1\n\xe9t\xe9\n",
             "nul.txt": b"1\0", "long.txt": b"1" * (1 << 20), "wide.txt": "1".encode("utf-16")}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    files["none.txt"] = b""
    found = told(*SPELL, *(tmp_path / name for name in files), "--text", "", "--text", "12", code=1)
    assert [one.get("code", "") for one in found] == \
        ["E605", "E605", "E603", "E603", "E609", "E603", "E601", "E605", ""]
    says = ("holds no text", "holds no text", "line 2 of", "NUL byte",
            "1,048,576 tokens; at most 65,536", "UTF-16", "no file", '"" has no token')
    assert all(part in one["error"] for part, one in zip(says, found[:-1], strict=True))
    out = tmp_path / "out.txt"
    run(*SPELL, tmp_path / "none.txt", "--text", "12", "--out", out, code=1)
    assert out.read_text() == "\none two\n"
    assert "give a file, or --text TEXT" in run(*SPELL, code=1)
    assert "E603" in run(*SPELL, "--text", "\udce9", code=1)


def test_a_checkpoint_without_the_vocabulary(place, tmp_path, monkeypatch):
    # Plain weights do not hold it, and one made from other texts would give other numbers.
    safetensors = pytest.importorskip("safetensors.numpy", reason="weights are safetensors files")
    state = load(place / "digits-fit" / "last.safetensors")
    safetensors.save_file({key: value for key, value in state.params.items()
                           if not key.startswith("optimizer/")}, tmp_path / "plain.safetensors")
    plain = ("predict", "digits.lam#fit", "--weights", tmp_path / "plain.safetensors", "--text")
    assert run(*plain, "135") == "135: one three five\n"
    (tmp_path / "digits.lam").write_text(DIGITS)
    monkeypatch.chdir(tmp_path)
    text = run(*plain, "135", code=1)
    assert "E601" in text and "train.tsv" in text and "the checkpoint of a run" in text
    assert run("predict", "digits.lam#fit", "--weights", place / "digits-fit", "--text", "135") == \
        "135: one three five\n"
    save_last(tmp_path, replace(state.state, vocabularies={}), state.params)
    text = run("predict", "digits.lam#fit", "--weights", tmp_path, "--text", "135", code=1)
    assert "error[E611]" in text and "no vocabulary of `src`" in text


def test_token_errors_are_counted(place, monkeypatch):
    # Against what predict says, by hand: each source once, its nearest reference.
    rows = [line.split("\t") for line in Path("valid.tsv").read_text().splitlines()[:70]]
    rows += [["135", "five five"], ["135", "one three"], ["22", "two"], ["135", "one one three"]]
    Path("other.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    Path("other.lam").write_text(DIGITS.replace("valid.tsv", "other.tsv"))
    sources = list(dict.fromkeys(row[0] for row in rows))
    for options in ((), ("--beam", 2)):
        texts = itertools.chain(*(("--text", source) for source in sources))
        wrong = length = exact = 0
        for one in told(*SPELL, *texts, *options):
            pairs = [(edit_distance(one["tokens"], row[1].split()), place, len(row[1].split()))
                     for place, row in enumerate(rows) if row[0] == one["input"]]
            distance, _, size = min(pairs)
            wrong, length, exact = wrong + distance, length + size, exact + (distance == 0)
        figures = json.loads(run("eval", "other.lam#fit", "--weights", "digits-fit", "--json",
                                 *options))
        assert figures["token errors"] == pytest.approx(wrong / length) and wrong
        assert figures["exact"] == pytest.approx(exact / len(sources))
    quick = json.loads(run("eval", "other.lam#fit", "--weights", "digits-fit", "--json",
                           "--no-decode"))
    assert list(quick) == ["loss", "acc"]
    assert "token errors" not in Path("digits-fit/log.jsonl").read_text()
    assert "do not go together" in run("eval", "other.lam#fit", "--weights", "digits-fit",
                                       "--no-decode", "--beam", 2, code=2)


CAPTIONS = """cell Next(tokens: int) {
  input gold: i32[B]
  memory seen: [B, 8]
  state tok: i32[B] = 1
  h      = (prev.tok -> emb: embed(tokens, 8), seen) -> concat(axis=-1) -> step: GRUCell(16)
  logits = h -> out: linear(tokens)
  tok    = choose(logits, gold)
  output logits
}

model Captions(tokens: int = 8) {
  input image: f32[B, 3, 4, 4]
  input caption: i32[B, T~]
  seen   = image -> flatten -> look: linear(8)
  output logits = caption -> say: scan Next(tokens) over T with (
    seen = seen,
  ) until tok == 2 limit 4
}

recipe fit for Captions {
  data train = tsv("captions.tsv", image="picture", caption="words", pixels=[4, 4])
    -> eos("caption")
  data valid = tsv("captions.tsv", image="picture", caption="words", pixels=[4, 4])
    -> eos("caption")
  loss      = cross_entropy(logits, caption, axis=-1)
  optimizer = adam(lr=0.05)
  epochs    = 60
  batch     = 4
}
"""


def test_pictures_are_answered_by_texts(tmp_path, monkeypatch):
    # What is read need be no text: files, in batches, and no --text for them.
    image = pytest.importorskip("PIL.Image", reason="needs lamina[images]")
    monkeypatch.chdir(tmp_path)
    Path("captions.lam").write_text(CAPTIONS)
    captions = {"red": "a red one", "blue": "a blue one", "white": "snow"}
    for name in captions:
        image.new("RGB", (4, 4), name).save(f"{name}.png")
    Path("captions.tsv").write_text(
        "".join(f"{name}.png\t{text}\n" for name, text in captions.items()))
    run("train", "captions.lam", "--out", "run")
    found = run("predict", "captions.lam", "--weights", "run", "white.png", "red.png", "no.png",
                code=1)
    assert "white.png: snow\nred.png: a red one\n" in found and "E602" in found
    text = run("predict", "captions.lam", "--weights", "run", "--text", "white", code=1)
    assert "the model's input `image` is no text" in text
    figures = json.loads(run("eval", "captions.lam", "--weights", "run", "--json"))
    assert figures["token errors"] == 0 and figures["exact"] == 1


TWO = """model Two(words: int = 8) {
  input one: i32[B, S~]
  input other: i32[B, T~]
  a = one -> first: embed(words, 4) -> mean(axis=S)
  b = other -> second: embed(words, 4) -> mean(axis=T)
  output logits = (a, b) -> concat(axis=-1) -> head: linear(2)
}

recipe fit for Two {
  data train = tsv("two.tsv", one="words", other="words", same="class")
  target same: i32[B]
  loss      = cross_entropy(logits, same)
  optimizer = adam(lr=0.1)
  epochs    = 1
}
"""


def test_two_texts_make_an_example(tmp_path, monkeypatch):
    # Each by its name, from a file or the command line, as many of one as of the other.
    monkeypatch.chdir(tmp_path)
    Path("two.lam").write_text(TWO)
    Path("two.tsv").write_text("a b\tb\tno\nb\tb\tyes\n")
    Path("ones.txt").write_text("a\nb\n")
    run("train", "two.lam", "--out", "run")
    two = ("predict", "two.lam", "--weights", "run")
    found = told(*two, "one=ones.txt", "--text", "other=b", "--text", "other=a b")
    assert [one["input"] for one in found] == ["a / b", "b / a b"]
    single = told(*two, "--text", "one=b", "--text", "other=a b")
    assert single[0]["probabilities"] == pytest.approx(found[1]["probabilities"])
    for given, says in ((("--text", "a"), "which of them is `a`?"),
                        (("one=ones.txt",), "2 for `one`, 0 for `other`"),
                        (("three=ones.txt",), "the model has no input `three`")):
        assert says in (text := run(*two, *given, code=1)) and "E611" in text


def test_batches_are_cut_by_size():
    # At most 64, of equal shapes, and not more padded positions than there is room for.
    assert [len(batch) for batch in cut([(3,)] * 150, range(150))] == [64, 64, 22]
    assert cut([(3, 5), (3, 6), (9, 5)], "abc") == [["a", "c"], ["b"]]
    assert cut([(40_000,), (1,), (40_000,)], "abc") == [["a"], ["b"], ["c"]]
    assert batch_size(Policy("beam", width=500)) == 2 and batch_size(Policy(width=500)) == 64
