"""Texts: files that anybody may have written, numbers that must mean the same in every run."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.runtime.checkpoint import CheckpointError, State, encode, load
from lamina.runtime.data import Batches, DataError, Input, Stage, check_stages, feed, open_data
from lamina.runtime.data.lines import read_lines
from lamina.runtime.data.sequences import STEP
from lamina.runtime.data.vocabulary import SPECIAL, Making, Vocabulary, as_plain, from_plain
from lamina.runtime.job import Job, Keep, Phase, Saving
from lamina.runtime.padding import pad
from lamina.runtime.train import evaluate, train

PAIRS = "hola\thello there\nadios\tgood bye\nsi\tyes\nno\tno\ngracias amigo\tthank you\n"
SENTENCES = "the DET\ndog NOUN\nbarks VERB\n\n\nit\tPRON\nrains\tVERB\n"


def stage(name, *args, **kwargs):
    return Stage(name, args, tuple(kwargs.items()), 3)


@pytest.fixture
def write(tmp_path):
    def put(name, content):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return tmp_path / name
    return put


def open_at(path, *stages, seed=0, vocabularies=None):
    return open_data(stages, path, seed, vocabularies)


def rows(data, field):
    return [row.tolist() for row in data.fetch(np.arange(len(data)))[field]]


def error_of(call, *args, **kwargs):
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    return caught.value


# --- lines --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks_change_nothing(write, tmp_path, ends, mark):
    """The same file saved on another system must give the same examples."""
    write("a.tsv", mark + PAIRS.replace("\n", ends).encode())
    data = open_at(tmp_path, stage("tsv", "a.tsv", src="chars", tgt="words"))
    vocabulary = data.vocabularies["src"]
    assert [vocabulary.decode(row) for row in rows(data, "src")][:2] == ["hola", "adios"]
    assert "\ufeff" not in vocabulary.tokens and "\r" not in vocabulary.tokens


@pytest.mark.parametrize(("content", "line", "word"), [
    (b"a\tb\nc\xe9\td\n", 2, "0xe9"),
    (b"a\tb\n\n\xff\xff\n", 3, "0xff"),
    (b"a\tb\n" + "\u00e9\tx\n".encode("latin1") + "\u00e9\n".encode(), 2, "0xe9"),
    (b"a\tb\nc\0\td\n", 2, "NUL"),
    (b"a\tb\r\nc\r\n", 2, "1 column;"),
    (b"a\tb\nc\t \n", 2, "nothing in column 1"),
    ("a\tb\n".encode("utf-16"), 0, "UTF-16"),
], ids=["latin1", "binary", "mixed", "nul", "column", "empty", "utf-16"])
def test_bad_lines_are_named(write, tmp_path, content, line, word):
    """Whoever has a million lines must be told which one to look at."""
    write("a.tsv", content)
    error = error_of(open_at, tmp_path, stage("tsv", "a.tsv", src="chars", tgt="words"))
    assert error.code == "E603" and word in error.message and error.help
    assert (f"line {line} of" in error.message) == bool(line)


@pytest.mark.parametrize("content", ["", "\n", "\ufeff", " \n\t\n\r\n"])
@pytest.mark.parametrize("source", ["tsv", "conll"])
def test_files_of_nothing(write, tmp_path, source, content):
    """An empty file is a broken download, not a data set of zero examples."""
    write("a", content)
    assert error_of(open_at, tmp_path, stage(source, "a", src="words")).code == "E605"


def test_missing_file_folder_and_size(write, tmp_path):
    """What is most often wrong with a path; a file larger than memory is not read."""
    assert error_of(open_at, tmp_path, stage("tsv", "no", src="words")).code == "E601"
    assert error_of(open_at, tmp_path, stage("tsv", ".", src="words")).code == "E602"
    assert error_of(open_at, tmp_path, stage("text", "no")).code == "E601"
    assert error_of(read_lines, write("a", "abc"), 2).code == "E603"


@pytest.mark.parametrize("source", ["tsv", "conll"])
def test_a_long_line_takes_linear_time(write, tmp_path, source):
    """A line of 1 MB must not take minutes, whatever it holds."""
    write("a", "x" * 1_000_000 + "\n" + "y " * 500_000 + "\n" + "z\t" * 500_000 + "\n")
    started = time.perf_counter()
    data = open_at(tmp_path, stage(source, "a", src="words"))
    assert len(data) in (1, 3) and time.perf_counter() - started < 5


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60) | st.lists(st.sampled_from(
    [b"a", b"1", b"-2.5", b" ", b"\t", b"\n", b"\r\n", b",", b'"', b"\xc3\xa9", b"\xff", b"\0",
     b"1e99", b"\xef\xbb\xbf", b"\xe2\x80\xa8"]), max_size=30).map(b"".join),
    st.sampled_from([stage("tsv", "f", a="words", b="class"), stage("tsv", "f", a="chars"),
                     stage("conll", "f", a="words", b="labels"), stage("text", "f", window=2),
                     stage("text", "f", coding="words", window=1), stage("series", "f", 2)]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, source):
    """Nothing but examples or a DataError comes of a file, whatever it holds."""
    folder = tmp_path_factory.getbasetemp()
    (folder / "f").write_bytes(content)
    try:
        data = open_at(folder, source)
    except DataError as error:
        assert error.code in ("E603", "E605") and error.message  # noqa: PT017
    else:
        found = data.fetch(np.arange(len(data)))
        assert all(len(value) == len(data) for value in found.values())


# --- sources ------------------------------------------------------------------------------------


def test_tsv_columns_in_any_order(write, tmp_path):
    """A field takes the column that it is given, and says in which line an example lies."""
    write("a.tsv", PAIRS)
    data = open_at(tmp_path, stage("tsv", "a.tsv", en="words", es="chars", columns=[1, 0]))
    assert data.fields == ("en", "es") and len(data) == 5
    assert data.vocabularies["es"].decode(rows(data, "es")[2]) == "si"
    assert data.source.name(2) == f"line 3 of {tmp_path / 'a.tsv'}"
    for columns in ([0], [0, -1], [0, 1, 2], "01", [0, True]):
        wrong = stage("tsv", "a.tsv", en="words", es="chars", columns=columns)
        assert error_of(check_stages, [wrong]).code == "E608"


def test_conll_sentences(write, tmp_path):
    """Columns by blanks or tabs; several empty lines end one sentence; the last needs none."""
    write("a", SENTENCES.rstrip("\n"))
    data = open_at(tmp_path, stage("conll", "a", words="words", ends="suffix 2", tags="labels",
                                   columns=[0, 0, 1]))
    assert [len(row) for row in rows(data, "words")] == [3, 2]
    assert data.classes == data.vocabularies["tags"].tokens == ("DET", "NOUN", "PRON", "VERB")
    assert rows(data, "tags") == [[0, 1, 3], [2, 3]]
    assert data.vocabularies["ends"].decode(rows(data, "ends")[0]) == "he og ks"
    assert data.source.name(1).startswith("line 6 of")
    assert error_of(check_stages, [stage("conll", "a", words="chars")]).code == "E608"


def test_classes_are_one_number(write, tmp_path):
    """A text with one label, as in classification; a split keeps the share of each."""
    write("a.tsv", "".join(f"{'good' if i % 4 else 'bad'}\ttext {i}\n" for i in range(40)))
    make = stage("tsv", "a.tsv", label="class", text="words")
    data = open_at(tmp_path, make)
    assert data.classes == ("bad", "good")
    assert data.fetch(np.arange(4))["label"].tolist() == [0, 1, 1, 1]
    held = open_at(tmp_path, make, stage("split", "valid", share=0.2))
    assert np.bincount(held.fetch(np.arange(len(held)))["label"]).tolist() == [2, 6]


def test_pictures_with_texts(write, tmp_path):
    """A column may name pictures, which are transformed as pictures are; texts stay beside them."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is an optional extra")
    for i, side in enumerate((8, 10, 12)):
        image.fromarray(np.full((side, side, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
    write("a.tsv", "a dog\t0.png\na black dog\t1.png\na cat\t2.png\n")
    make = stage("tsv", "a.tsv", words="words", image="picture", pixels=[6, 8], columns=[0, 1])
    assert error_of(open_at, tmp_path, make, stage("longest", 1)).code == "E605"
    data = open_at(tmp_path, make, stage("eos", "words"), stage("longest", 3), stage("pad", 1))
    found = data.fetch(np.array([1, 0]))
    assert data.fields == ("image", "words") and len(data) == 2
    assert found["image"].shape == (2, 3, 8, 10) and not found["image"][:, :, 0].any()
    assert found["image"][0, 0, 4, 4] == np.float32(100) * np.float32(1 / 255)
    assert [row[-1] for row in found["words"]] == [2, 2] and set(data.vocabularies) == {"words"}
    plan = feed(data, [Input("image", "f32", ("B", 3, 8, 10)), Input("words", "i32", ("B", "T")),
                       Input("T~", "i32", ("B",))])
    assert plan[1].take(found).shape == (2, STEP)
    for wrong in ({"pixels": 0}, {"channels": 2}):
        bad = stage("tsv", "a.tsv", image="picture", **wrong)
        assert error_of(check_stages, [bad]).code == "E608"
    assert error_of(check_stages, [make, stage("eos", "image")]).code == "E608"
    (tmp_path / "1.png").unlink()
    lost = error_of(open_at, tmp_path, make)
    assert lost.code == "E601" and "line 2 of" in lost.message


def test_windows_of_a_text(write, tmp_path):
    """`next` is the text one token on, through the end of a window."""
    write("b.txt", "abcabc")
    write("a.txt", "xyz\n")
    write("c.md", "not this")
    data = open_at(tmp_path, stage("text", ".", window=3))
    decode = data.vocabularies["text"].decode
    assert [decode(row) for row in rows(data, "text")] == ["xyz", "\nab", "cab"]
    assert [decode(row) for row in rows(data, "next")] == ["yz\n", "abc", "abc"]
    words = open_at(tmp_path, stage("text", "c.md", coding="words", window=1))
    assert rows(words, "text") == [[3]] and rows(words, "next") == [[4]]
    assert error_of(open_at, tmp_path, stage("text", "b.txt", window=6)).code == "E605"
    assert error_of(open_at, tmp_path, stage("text", ".", pattern="*.no")).code == "E605"
    for pattern in ("../*.txt", "/*", ""):
        assert error_of(check_stages, [stage("text", ".", pattern=pattern)]).code == "E608"
    assert error_of(check_stages, [stage("text", "a", coding="labels")]).code == "E608"


def test_series(write, tmp_path):
    """What is to be foretold follows its window, and no value is on both sides of a split."""
    write("a.csv", "time;a;b\n" + "".join(f"t{i};{i};{-i}\n" for i in range(40)))
    make = stage("series", "a.csv", window=4, horizon=2, columns=["b", "a"])
    data = open_at(tmp_path, make)
    found = data.fetch(np.array([3]))
    assert len(data) == 35 and found["past"].dtype == np.float32
    assert found["past"][0].tolist() == [[-i, i] for i in range(3, 7)]
    assert found["future"][0].tolist() == [[-7, 7], [-8, 8]]
    parts = [open_at(tmp_path, make, stage("split", part, share=0.2)) for part in
             ("train", "valid")]
    seen = [{v for field in ("past", "future") for v in
             part.fetch(np.arange(len(part)))[field][..., 1].ravel()} for part in parts]
    assert not seen[0] & seen[1] and max(seen[0]) < min(seen[1]) and 39 in seen[1]
    short = stage("split", "train", share=0.9)
    assert error_of(open_at, tmp_path, make, short).code == "E605"


@pytest.mark.parametrize(("content", "code"), [
    ("a,b\n1,2\n1,x\n", "E603"), ("a,b\n1,2\n1\n", "E603"), ("a,b\n1,2\n1,nan\n", "E603"),
    ("a,b\n1,2\n3,1e40\n", "E603"), ("a,c\n1,2\n", "E601"), ("a,b\n1,2\n", "E605"), ("", "E605"),
    ('a,b\n1,2\n"' + "1" * 200_000 + '",3\n', "E603"),
], ids=["word", "short", "nan", "large", "column", "rows", "empty", "huge"])
def test_bad_series(write, tmp_path, content, code):
    """A gap in a series is told, not learned."""
    write("a.csv", content)
    make = stage("series", "a.csv", window=1, columns=["a", "b"])
    error = error_of(open_at, tmp_path, make)
    assert error.code == code and (code != "E603" or "line 3" in error.message)


def test_series_without_a_head(write, tmp_path):
    """Numbers of columns do without names."""
    write("a.csv", "1,2\n3,4\n5,6\n")
    data = open_at(tmp_path, stage("series", "a.csv", window=2, columns=[1]))
    assert rows(data, "past") == [[[2], [4]]] and rows(data, "future") == [[[6]]]


# --- vocabularies -------------------------------------------------------------------------------


def test_numbers_go_by_frequency_then_code_point():
    """The rule is written down: another machine must number tokens alike."""
    made = Making("words").make(["b a c b", "a b \u00e9 z <unk> <eos>"])
    assert made.tokens == (*SPECIAL, "b", "a", "c", "z", "\u00e9")
    assert made.encode("a <unk> <eos> new b").tolist() == [4, 0, 2, 0, 3]
    assert Making("words", size=5).make(["b a c b a"]).tokens == (*SPECIAL, "a", "b")
    assert Making("words", least=2).make(["b a c b"]).tokens == (*SPECIAL, "b")
    assert Making("chars", lower=True).make(["aAB"]).tokens == (*SPECIAL, "a", "b")
    assert Making("chars", lower=True).make(["ab"]).encode("BA").tolist() == [4, 3]


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(blacklist_categories=("Cs",)), min_size=1))
def test_text_comes_back_from_its_numbers(text):
    """Characters and byte pairs lose nothing; words lose what stands between them."""
    assert Making("chars").make([text]).decode(Making("chars").make([text]).encode(text)) == text
    words = Making("words").make([text])
    assert words.decode(words.encode(text)).split() == [
        word for word in text.split() if word not in SPECIAL]


def test_decoding_stops_at_the_end():
    """What a model wrote after <eos> is nothing."""
    made = Making("chars").make(["abc"])
    assert made.decode([1, 3, 0, 4, 2, 5]) == "a<unk>b"
    assert error_of(made.decode, [6]).code == "E610"
    assert error_of(made.decode, [-1]).code == "E610"
    assert Making("labels").make(["N V D"]).decode([0, 1, 2, 2]) == "D N V V"


def test_byte_pairs():
    """No text is unknown to bytes, and the same data gives the same pairs."""
    pytest.importorskip("tokenizers", reason="an optional extra")
    texts = ["hello world, hello there", "the world \u00f1and\u00fa"] * 3
    made = Making("bpe", 300).make(texts)
    assert made == Making("bpe", 300).make(texts) and made.tokens[:3] == SPECIAL
    assert made.merges
    for text in (*texts, "never seen: \u4f60 <eos> \n\t x"):
        assert made.decode(made.encode(text)) == text
    assert len(made.encode("hello")) < 5
    assert from_plain(as_plain({"a": made}))["a"] == made
    broken = Vocabulary("bpe", (*SPECIAL, "a"), merges=(("x", "y"),))
    assert error_of(broken.encode, "a").code == "E603"


def test_fields_with_one_vocabulary(write, tmp_path):
    """An embedding that source and target share needs one number for one word."""
    write("a.tsv", "a b\tb c\tb\n")
    make = stage("tsv", "a.tsv", src="words", tgt="words", tag="labels", joint=True)
    data = open_at(tmp_path, make)
    known = data.vocabularies
    assert known["src"] is known["tgt"] and known["src"].tokens[3:] == ("b", "a", "c")
    assert known["tag"].tokens == ("b",) and len(as_plain(known)) == 2
    assert rows(data, "src") == [[4, 3]] and rows(data, "tgt") == [[3, 5]]
    apart = open_at(tmp_path, stage("tsv", "a.tsv", src="words", tgt="words"))
    assert apart.vocabularies["tgt"].tokens[3:] == ("b", "c")
    assert error_of(check_stages, [stage("tsv", "a", src="words", joint=1)]).code == "E608"


def test_byte_pairs_without_the_package(write, tmp_path, monkeypatch):
    """The message names the extra."""
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    write("a.tsv", PAIRS)
    error = error_of(open_at, tmp_path, stage("tsv", "a.tsv", src="bpe"))
    assert error.code == "E612" and "lamina[text]" in error.help


@pytest.mark.parametrize("coding", ["char", "suffix", "suffix 0", "suffix -1", "suffix 1e9", 3])
def test_unknown_codings(coding):
    """A misspelt coding is told before any file is read."""
    error = error_of(check_stages, [stage("tsv", "a", src=coding)])
    assert error.code == "E608" and error.line == 3 and "chars" in error.help


@pytest.mark.parametrize("options", [
    {"size": 3}, {"size": [5]}, {"size": True}, {"least": 0}, {"least": [1, 2, 3]}, {"lower": 1},
    {"columns": [0, "a"]}, {"tgt": "bpe", "size": [50, 258]}])
def test_bad_options(options):
    """As all arguments: E608 without opening the file."""
    assert error_of(check_stages, [stage("tsv", "a", **{"src": "words", "tgt": "words",
                                                          **options})]).code == "E608"


def test_labels_outside_are_an_error_that_names_the_line(write, tmp_path):
    """A tag that was never trained cannot be scored."""
    write("a", SENTENCES)
    write("b", "the DET\nNew NOUN\nodd ADJ\n")
    train_data = open_at(tmp_path, stage("conll", "a", words="words", tags="labels"))
    error = error_of(open_at, tmp_path, stage("conll", "b", words="words", tags="labels"),
                     vocabularies=train_data.vocabularies)
    assert error.code == "E610" and "line 1 of" in error.message and "`ADJ`" in error.message


def test_held_out_data_takes_the_training_vocabulary(write, tmp_path):
    """Other numbers than in training would mean other words."""
    write("a", SENTENCES)
    write("b", "dog NOUN\nNew NOUN\nthe DET\n")
    first = open_at(tmp_path, stage("conll", "a", words="words", tags="labels"))
    held = open_at(tmp_path, stage("conll", "b", words="words", tags="labels"),
                   vocabularies=first.vocabularies)
    words = first.vocabularies["words"]
    assert rows(held, "words") == [[words.tokens.index("dog"), 0, words.tokens.index("the")]]
    assert held.unknown == {"words": 1} and held.classes == first.classes


@pytest.mark.parametrize("changed", [{"words": "suffix 2"}, {"words": "words", "lower": True},
                                     {"other": "words"}])
def test_another_coding_than_that_of_the_checkpoint(write, tmp_path, changed):
    """Numbers of one coding read by another are nonsense that would train silently."""
    write("a", SENTENCES)
    known = open_at(tmp_path, stage("conll", "a", words="words")).vocabularies
    error = error_of(open_at, tmp_path, stage("conll", "a", **changed), vocabularies=known)
    assert error.code == "E611" and "trained with" in error.message and error.line == 3


def test_vocabulary_of_a_split_is_that_of_the_training_part(write, tmp_path):
    """Held-out words must not be known: figures would be too good."""
    write("a.tsv", "".join(f"word{i}\n" for i in range(20)))
    make = stage("tsv", "a.tsv", src="words")
    first = open_at(tmp_path, make, stage("split", "train", share=0.2))
    held = open_at(tmp_path, make, stage("split", "valid", share=0.2),
                   vocabularies=first.vocabularies)
    assert len(first.vocabularies["src"]) == 16 + 3
    assert held.unknown == {"src": 4}
    write("t.txt", "abcdefghij" * 2 + "k" * 20)
    part = open_at(tmp_path, stage("text", "t.txt", window=4), stage("split", "train", share=0.5))
    seen = {t for field in ("text", "next") for row in rows(part, field) for t in row}
    assert seen == set(range(3, len(part.vocabularies["text"])))


def test_vocabularies_travel_with_the_checkpoint(tmp_path):
    """What reads a checkpoint back knows each token, and a damaged list is no vocabulary."""
    one = Making("words").make(["a b \u4f60"])
    other = Making("class").make(["x", "y"])
    state = State("m", "r", (), 1, vocabularies={"src": one, "tgt": one, "label": other})
    path = tmp_path / "a.safetensors"
    path.write_bytes(encode(state, {"w": np.zeros(2, np.float32)}))
    found = load(path).state
    assert found == state and found.vocabularies["src"] is found.vocabularies["tgt"]
    plain = as_plain(state.vocabularies)
    for change in ({"tokens": []}, {"tokens": ["a", "b"]}, {"coding": "runes"}, {"merges": ["a"]},
                   {"tokens": [*SPECIAL, "a", "a"]}):
        with pytest.raises((ValueError, TypeError, KeyError)):
            from_plain([{**plain[0], **change}])


# --- marks, long texts, buckets -----------------------------------------------------------------


def test_marks(write, tmp_path):
    """A decoder is begun by <bos> and ended by <eos>."""
    write("a.tsv", PAIRS)
    make = stage("tsv", "a.tsv", src="chars", tgt="words", kind="class", columns=[0, 1, 0])
    data = open_at(tmp_path, make, stage("eos", "tgt"), stage("bos", "tgt"), stage("eos", "src"))
    assert all(row[0] == 1 and row[-1] == 2 and len(row) > 2 for row in rows(data, "tgt"))
    assert all(row[-1] == 2 and 1 not in row for row in rows(data, "src"))
    for wrong in (stage("eos", "kind"), stage("bos", "tgd"), stage("eos", 3)):
        assert error_of(check_stages, [make, wrong]).code == "E608"
    assert "tgt" in error_of(check_stages, [make, stage("bos", "tgd")]).help
    assert error_of(check_stages, [stage("mnist", "train"), stage("eos", "image")]).code == "E608"


def test_long_examples_are_left_out_and_told(write, tmp_path):
    """One text of a thousand words would pad its whole batch."""
    write("a.tsv", PAIRS)
    make = stage("tsv", "a.tsv", src="chars", tgt="words")
    data = open_at(tmp_path, make, stage("longest", 5))
    assert [len(row) for row in rows(data, "src")] == [4, 5, 2, 2]
    # Unknown tokens are counted over what is left, not over as many tokens as there are examples.
    assert data.source.column("src").tolist() == np.concatenate(rows(data, "src")).tolist()
    assert data.notes == ("left out: 1 of 5 examples, longer than 5 tokens",)
    assert data.source.name(3) == f"line 4 of {tmp_path / 'a.tsv'}"
    assert not open_at(tmp_path, make, stage("longest", 50)).notes
    assert error_of(open_at, tmp_path, make, stage("longest", 1)).code == "E605"
    assert error_of(open_at, tmp_path, stage("mnist", "test"), stage("longest", 1)).code == "E609"


def bucketed(folder, tokens=64, seed=3, shuffle=True):
    rng = np.random.default_rng(5)
    lines = ["x" * n + "\t" + "y " * m for n, m in rng.integers(1, 40, (57, 2))]
    (folder / "b.tsv").write_text("\n".join(lines))
    stages = [stage("tsv", "b.tsv", src="chars", tgt="words"), stage("bucket", tokens=tokens)]
    return Batches(open_data(stages + [stage("shuffle")] * shuffle, folder, seed), 4)


@pytest.mark.parametrize("shuffle", [True, False])
def test_buckets_take_every_example_once_and_no_more_than_fits(tmp_path, shuffle):
    """Few padded positions, none lost, and as many batches in every epoch."""
    batches = bucketed(tmp_path, 160, shuffle=shuffle)
    seen = []
    for epoch in range(3):
        found = list(batches.epoch(epoch))
        assert len(found) == len(batches)
        assert sorted(i for batch in found for i in batch.indices) == list(range(57))
        for batch in found:
            longest = max(len(row) for rows in batch.arrays.values() for row in rows)
            assert batch.size * -(-longest // STEP) * STEP <= 160
        seen.append([batch.indices.tolist() for batch in found])
    assert (seen[0] != seen[1]) == shuffle
    again = bucketed(tmp_path, 160, shuffle=shuffle)
    rest = [batch.indices.tolist() for batch in again.epoch(1, start=5)]
    assert rest == seen[1][5:]


def test_buckets_waste_little(tmp_path):
    """That is what they are for: the padded positions of batches as they come are far more."""
    def share(batches):
        used = padded = 0
        for batch in batches.epoch(0):
            for found in batch.arrays.values():
                used += sum(map(len, found))
                padded += pad(found, (0,), STEP).size
        return used / padded
    assert share(bucketed(tmp_path, 160)) > share(
        Batches(open_at(tmp_path, stage("tsv", "b.tsv", src="chars", tgt="words")), 4)) + 0.1


def test_an_example_larger_than_a_bucket(tmp_path):
    """It would never fit: the way out is named."""
    error = error_of(bucketed, tmp_path, 32)
    assert error.code == "E609" and "longest(32)" in error.help and error.line == 3


# --- feeding ------------------------------------------------------------------------------------

RAGGED = (Input("words", "i32", ("B", "S"), 20), Input("tags", "i32", ("B", "S"), 4),
          Input("S~", "i32", ("B",)))


def test_ragged_inputs_are_padded_and_measured(write, tmp_path):
    """The program gets arrays of one size and how much of them is meant."""
    write("a", SENTENCES)
    data = open_at(tmp_path, stage("conll", "a", words="words", tags="labels"))
    plan = feed(data, RAGGED)
    arrays = data.fetch(np.array([1, 0]))
    taken = {one.key: one.take(arrays) for one in plan}
    assert taken["S~"].tolist() == [2, 3] and taken["S~"].dtype == np.int32
    assert taken["words"].shape == (2, STEP) and not taken["words"][0, 2:].any()
    assert taken["tags"].tolist() == [[2, 3] + [0] * 6, [0, 1, 3] + [0] * 5]
    lists = {"words": [np.arange(9), np.arange(3)], "tags": [np.arange(9), np.arange(2)]}
    assert plan[0].take(lists).shape == (2, 16)
    error = error_of(plan[2].take, lists)
    assert error.code == "E609" and "example 1" in error.message


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=6))
def test_padding_along_two_axes(sizes):
    """Any axis of an example may be ragged."""
    given_rows = [np.ones((n, 3, m), np.float32) for n, m in sizes]
    out = pad(given_rows, (0, 2), STEP)
    assert out.shape[2] == 3 and out.shape[1] % STEP == out.shape[3] % STEP == 0
    assert out.shape[1] - max(n for n, _ in sizes) < STEP or out.shape[1] == STEP
    for row, full in zip(given_rows, out, strict=True):
        assert full.sum() == row.size
        assert (full[: row.shape[0], :, : row.shape[2]] == 1).all()


def test_lengths_that_differ_within_an_example(write, tmp_path):
    """Two texts of one size must agree, example by example; the first that does not is named."""
    write("a.tsv", "a b\ta b\na\tb\na b c\tb a\n")
    data = open_at(tmp_path, stage("tsv", "a.tsv", words="words", tags="labels"))
    error = error_of(feed, data, RAGGED)
    assert error.code == "E609" and f"line 3 of {tmp_path / 'a.tsv'}" in error.message
    assert "3 and" in error.message and "1 of 3" in error.message
    other = (RAGGED[0], Input("tags", "i32", ("B", "T")), *(
        Input(key, "i32", ("B",)) for key in ("S~", "T~")))
    assert [one.key for one in feed(data, other)] == ["words", "tags", "S~", "T~"]


def test_ragged_data_needs_a_ragged_input(write, tmp_path):
    """A model with one length for all cannot take texts of many."""
    write("a.tsv", PAIRS)
    data = open_at(tmp_path, stage("tsv", "a.tsv", src="chars"))
    error = error_of(feed, data, [Input("src", "i32", ("B", "S"))])
    assert error.code == "E609" and "[B, S~]" in error.help
    write("b.tsv", "abc\ndef\n")
    even = open_at(tmp_path, stage("tsv", "b.tsv", src="chars"))
    plan, = feed(even, [Input("src", "i32", ("B", "S"))])
    assert plan.take(even.fetch(np.arange(2))).shape == (2, 3)
    for wanted, key in ((("B", 4), "E609"), (("B", "S", 2), "E609")):
        assert error_of(feed, even, [Input("src", "i32", wanted)]).code == key


def test_a_table_smaller_than_the_vocabulary(write, tmp_path):
    """An index outside a table reads other memory: the message says which number to write."""
    write("a", SENTENCES)
    data = open_at(tmp_path, stage("conll", "a", words="words", tags="labels"))
    small = error_of(feed, data, (Input("words", "i32", ("B", "S"), 7), *RAGGED[1:]))
    assert small.code == "E610" and "write 8 in the model" in small.help and "size=7" in small.help
    few = error_of(feed, data, (RAGGED[0], Input("tags", "i32", ("B", "S"), 3), RAGGED[2]))
    assert few.code == "E610" and "write 4" in few.help and "size" not in few.help


def test_pictures_and_mixup_are_not_for_texts(write, tmp_path):
    """A transform of pictures says so."""
    write("a.tsv", PAIRS)
    make = stage("tsv", "a.tsv", src="chars", tgt="words")
    for other in (stage("hflip"), stage("mixup", 0.2)):
        data = open_at(tmp_path, make, other)
        assert error_of(data.fetch, np.arange(3)).code == "E609"


# --- training -----------------------------------------------------------------------------------


class Counting:
    """A step in NumPy on padded texts: a number for each token, drawn towards its share."""

    def __init__(self):
        self.params = {"table": np.zeros(40, np.float32)}
        self.seen = []

    def set_params(self, values):
        self.params["table"][...] = values["table"]

    def get_params(self):
        return {"table": self.params["table"].copy()}

    def run(self, inputs):
        src, lengths = inputs["src"], inputs["S~"]
        valid = np.arange(src.shape[1]) < lengths[:, None]
        self.seen.append((src.shape, int(lengths.sum())))
        loss = self.params["table"][src[valid]].astype(np.float64).mean()
        if "lr" in inputs:
            counts = np.bincount(src[valid], minlength=40)
            self.params["table"] += (inputs["lr"] * counts / valid.sum()).astype(np.float32)
        return {"loss": np.float32(loss)}


def text_job(folder, **changes):
    rng = np.random.default_rng(2)
    texts = ["".join(rng.choice(list("abcdefg"), n)) for n in rng.integers(1, 30, 40)]
    (folder / "t.tsv").write_text("\n".join(texts))
    (folder / "v.tsv").write_text("abc\ngfedcba\nxyz\n")
    fields = {
        "model": "toy", "recipe": "texts", "batch": 4, "folder": str(folder), "seed": 3,
        "train": (stage("tsv", "t.tsv", src="chars"), stage("bucket", tokens=64),
                  stage("shuffle")),
        "valid": (stage("tsv", "v.tsv", src="chars"),),
        "inputs": (Input("src", "i32", ("B", "S"), 40), Input("S~", "i32", ("B",))),
        "phases": (Phase("p", 3, 0.1, Stage("cosine")),), "keep": Keep("last"), "weigh": "S~",
    }
    return Job(**{**fields, **changes})


def run(job, out, resume=False, stop=0, said=None):
    """A run that raises after `stop` steps, as if it were killed."""
    runner = Counting()
    step = runner.run

    def counted(inputs):
        if stop and len(runner.seen) >= stop:
            raise KeyboardInterrupt
        return step(inputs)

    runner.run = counted
    report = (lambda event: said.append(event)) if said is not None else (lambda event: None)
    return train(job, lambda phase: runner, Counting, {"table": np.zeros(40, np.float32)}, out,
                 resume, report, Saving(steps=1)), runner


def test_figures_are_averages_over_tokens(tmp_path):
    """A batch of long texts weighs more: each token the same, however batches are cut."""
    job = text_job(tmp_path)
    result, runner = run(job, tmp_path / "run")
    assert len({shape for shape, _ in runner.seen}) < 12
    weights = {"table": result.params["table"]}
    by_tokens = evaluate(job, Counting(), weights, vocabularies=result.state.vocabularies)
    assert by_tokens["loss"] == pytest.approx(result.valid["loss"], rel=1e-6)
    for batch in (1, 3):
        other = text_job(tmp_path, batch=batch)
        again = evaluate(other, Counting(), weights, vocabularies=result.state.vocabularies)
        assert again["loss"] == pytest.approx(by_tokens["loss"], rel=1e-5)
    assert evaluate(text_job(tmp_path, weigh="", batch=1), Counting(), weights)["loss"] != \
        pytest.approx(by_tokens["loss"], rel=1e-3)


def test_a_killed_run_goes_on_with_the_same_batches(tmp_path):
    """Buckets are drawn anew in each epoch: a resumed run must meet the rest of the same ones."""
    job = text_job(tmp_path)
    whole, _ = run(job, tmp_path / "whole")
    for stop in range(1, whole.state.step, 5):
        out = tmp_path / f"run{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(job, out, stop=stop)
        result, _ = run(job, out, resume=True)
        assert result.params["table"].tobytes() == whole.params["table"].tobytes()
        assert result.state == whole.state


def test_the_checkpoint_holds_the_vocabulary_that_held_out_data_takes(tmp_path):
    """Known tokens keep their numbers; unknown ones are counted and told, once."""
    said = []
    job = text_job(tmp_path)
    result, _ = run(job, tmp_path / "run", said=said)
    told = [event.message for event in said if "vocabulary" in getattr(event, "message", "")]
    assert told == ["3 tokens (23.08%) of `src` in the held-out data are not in the vocabulary: "
                    "<unk>"]
    found = load(result.kept).state.vocabularies["src"]
    assert found.tokens[:3] == SPECIAL and set(found.tokens[3:]) == set("abcdefg")
    plain = evaluate(job, Counting(), {"table": result.params["table"]})  # made again from the data
    assert plain == evaluate(job, Counting(), {"table": result.params["table"]},
                             vocabularies={"src": found})
    (tmp_path / "t.tsv").write_text("abc\n" * 40)  # of the same number of examples
    kept, _ = run(text_job(tmp_path, phases=(Phase("p", 3, 0.1, Stage("cosine")),)),
                  tmp_path / "run", resume=True)
    assert kept.state.vocabularies["src"] == found


def test_a_checkpoint_of_another_coding(tmp_path):
    """The texts of one coding are not gone on with by another."""
    run(text_job(tmp_path), tmp_path / "run")
    other = text_job(tmp_path, train=(stage("tsv", "t.tsv", src="words"),))
    with pytest.raises((DataError, CheckpointError)) as caught:
        run(other, tmp_path / "run", resume=True)
    assert caught.value.code == "E611" and '"chars"' in caught.value.message


def test_long_examples_of_a_run_are_told(tmp_path):
    """Nobody should wonder where examples went."""
    said = []
    job = text_job(tmp_path, train=(stage("tsv", "t.tsv", src="chars"), stage("longest", 9)))
    run(job, tmp_path / "run", said=said)
    assert sum("left out" in getattr(event, "message", "") for event in said) == 1
    assert Path(tmp_path / "run").exists()
