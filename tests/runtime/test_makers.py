"""What makes data from packages: tried on invented ones, as what is fetched is not shipped."""

import json
import struct
import zlib

import numpy as np
import pytest

from lamina.runtime.data import Stage, open_data
from lamina.runtime.data import make_pedestrians as pedestrians
from lamina.runtime.data import make_phonemes as phonemes
from lamina.runtime.data import make_tags as tags
from lamina.runtime.data import make_verses as verses
from lamina.runtime.data.holdout import held_out


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def twice(make, package, folder):
    """What both runs wrote, which must be the same."""
    counts = [make(package, folder / name) for name in ("one", "two")]
    files = sorted(path.name for path in (folder / "one").iterdir())
    for name in files:
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes()
    assert counts[0] == counts[1] and sorted(counts[0]) == files
    return folder / "one", counts[0]


def test_what_is_held_out_is_the_same_every_time():
    """A figure on held-out data can only be compared if the data is the same."""
    names = [f"n{i}" for i in range(100)]
    assert held_out(names) == held_out(reversed(names)) and len(held_out(names)) == 5
    assert held_out(names, 0.5) > held_out(names)


def test_phonemes(tmp_path):
    """A word's variants are on one side; no digit, no name of a sign is left."""
    data = tmp_path / "package" / "data"
    data.mkdir(parents=True)
    words = [f"W{'ABCDEFGHIJ'[i // 10]}{'ABCDEFGHIJ'[i % 10]}'S" for i in range(100)]
    text = "".join(f"{word}  W AH{i % 3} Z\n{word}(1)  V ER1 Z\n{word}(2)  W AH0 Z\n"
                   for i, word in enumerate(words))
    (data / "dict.txt").write_text(text + "A42128  EY1\n{BRACE  B R EY1 S\n\nnot a line\n")
    made, counts = twice(phonemes.make, tmp_path / "package", tmp_path)
    assert counts == {"words.train.tsv": 190, "words.valid.tsv": 10}
    parts = [{line.split("\t")[0] for line in lines(made / name)} for name in phonemes.FILES]
    assert not parts[0] & parts[1] and parts[0] | parts[1] == {word.lower() for word in words}
    assert lines(made / phonemes.FILES[0])[0] in ("waa's\tW AH Z", "wab's\tW AH Z")
    read = open_data([Stage("tsv", (phonemes.FILES[0],), (("src", "chars"), ("tgt", "words")))],
                     made)
    assert set(read.vocabularies["tgt"].tokens[3:]) == {"W", "V", "AH", "ER", "Z"}


def test_pedestrians(tmp_path):
    """Hours stay in order, and one without a count is like that of the week before."""
    source = tmp_path / "package" / pedestrians.SOURCE
    source.parent.mkdir(parents=True)
    counts = [str(float(hour)) for hour in range(400)]
    counts[3] = counts[170] = counts[338] = ""
    hours = [("2021-12-31", "9.0"), *(("2022-01-01", count) for count in counts)]
    source.write_text("date,hour,45 Queen Street,elsewhere\n"
                      + "".join(f"{day},x,{count},7\n" for day, count in hours))
    made, sizes = twice(pedestrians.make, tmp_path / "package", tmp_path)
    assert sizes == {pedestrians.FILE: 400}
    people = [int(line) for line in lines(made / pedestrians.FILE)[1:]]
    assert (people[3], people[170], people[338]) == (0, 2, 2)
    assert [people[i] for i in (0, 4, 399)] == [0, 4, 399]
    stage = Stage("series", (pedestrians.FILE,), (("window", 48), ("horizon", 24)))
    assert len(open_data([stage], made)) == 400 - 48 - 24 + 1


def test_tags(tmp_path):
    """The table is checked by hand: marks, possessives, negations, joined and foreign words."""
    wanted = {"nn": "NOUN", "np-tl": "NOUN", "nn$-tl-hl": "NOUN", "md*": "VERB", "pps+bez": "PRON",
              "*": "ADV", "--": ".", ".-hl": ".", "''": ".", "fw-nn": "X", "nil": "X", "": "X",
              "pp$$": "PRON", "wp$": "PRON", "cd-tl": "NUM", "to+vb": "PRT", "JJ": "ADJ",
              "(-hl": ".", "cs": "ADP", "dt+bez": "DET", "uh": "X"}
    assert {tag: tags.universal(tag) for tag in wanted} == wanted
    package = tmp_path / "package"
    package.mkdir()
    (package / "README").write_text("no/nn file/nn")
    (package / "ca01").write_text("\n\n\tThe/at dog/nn barks/vbz ./.\n\n" * 30)
    (package / "cb02").write_bytes(b"1/2/cd caf\xe9/nn\n" * 10)
    made, counts = twice(tags.make, package, tmp_path)
    assert counts == {"train.conll": 38, "valid.conll": 2}
    text = (made / "train.conll").read_text(encoding="utf-8")
    assert "barks\tVERB\n.\t.\n\n" in text and "1/2\tNUM\ncaf\u00e9\tNOUN\n\n" in text
    fields = (("words", "words"), ("tags", "labels"))
    data = open_data([Stage("conll", ("train.conll",), fields)], made)
    assert len(data) == 38 and data.classes == (".", "DET", "NOUN", "NUM", "VERB")


def write_module(folder, chapters):
    """A zText module whose New Testament is empty."""
    folder.mkdir(parents=True)
    entries = ["", "<title>A book</title>"]
    for name, texts in chapters.items():
        entries += [f'<div/><chapter n="1" osisID="{name}" sID="{name}"/>', *texts]
    packed, places, text = [entry.encode() for entry in entries], [], b""
    for entry in packed:
        places.append(struct.pack("<IIH", 0, len(text), len(entry)))
        text += entry
    block = zlib.compress(text)
    (folder / "ot.bzz").write_bytes(block)
    (folder / "ot.bzs").write_bytes(struct.pack("<III", 0, len(block), len(text)))
    (folder / "ot.bzv").write_bytes(b"".join(places))
    for ending in ("bzz", "bzs", "bzv"):
        (folder / f"nt.{ending}").write_bytes(b"")


def test_verses(tmp_path):
    """Verses meet by chapter and number; notes, headings and what follows a chapter are no text."""
    base = tmp_path / "sword" / "modules" / "texts" / "ztext"
    names = [f"Gen.{i}" for i in range(40)]
    english = ['<w lemma="x">In</w> the <note>a note</note>beginning, God\u2019s day.',
               'It is &amp; was.<chapter eID="x"/>Another book', "", "too short"]
    spanish = ["EN el principio, el día.", "Es y era.", "sola", "una frase que es más larga " * 5]
    write_module(base / verses.ENGLISH, dict.fromkeys((*names, "Tob.1"), english))
    write_module(base / verses.SPANISH, dict.fromkeys(names, spanish))
    made, counts = twice(verses.make, tmp_path / "sword", tmp_path)
    assert counts == {"verses.train.tsv": 76, "verses.valid.tsv": 4}
    assert set(lines(made / "verses.valid.tsv")) == {
        "In the beginning , God\u2019s day .\tEN el principio , el día .",
        "It is & was .\tEs y era ."}
    data = open_data([Stage("tsv", ("verses.train.tsv",), (("en", "words"), ("es", "words")))],
                     made)
    assert len(data.fetch(np.arange(3))["en"][0]) == 7


def test_captions(tmp_path):
    """Pictures on white with the words of their short names; tones of one emoji are one."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is an optional extra")
    captions = pytest.importorskip("lamina.runtime.data.make_captions")
    folder = tmp_path / "package" / "img" / "twitter" / "64"
    folder.mkdir(parents=True)
    index = [{"image": f"{i:02}.png", "short_name": f"red_car-{i}", "category": "x",
              "skin_variations": {"dark": {"image": f"{i:02}.png"}}} for i in range(40)]
    index.append({"image": "lost.png", "short_name": "lost", "category": "x"})
    for entry in index[:-1]:
        pixels = np.zeros((64, 64, 4), np.uint8)
        pixels[:, 32:] = (200, 0, 0, 255)
        image.fromarray(pixels).save(folder / entry["image"])
    (tmp_path / "package" / "emoji.json").write_text(json.dumps(index))
    counts = captions.make(tmp_path / "package", tmp_path / "out")
    assert counts == {"captions.train.tsv": 38, "captions.valid.tsv": 2}
    assert captions.caption(captions.Emoji("a", "+1", "x")) == "+ 1"
    fields = (("image", "picture"), ("name", "words"))
    data = open_data([Stage("tsv", (captions.FILES[0],), fields)], tmp_path / "out")
    found = data.fetch(np.array([3]))
    assert found["image"].shape == (1, 3, 64, 64)
    assert (found["image"][0, :, :, :32] == 1).all() and found["image"][0, 1, :, 32:].max() == 0
    assert data.vocabularies["name"].decode(found["name"][0]).startswith("red car ")
