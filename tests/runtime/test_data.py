"""Data: every file may be damaged, every order must repeat, every number is checked by hand."""

import gzip
import hashlib
import io
import json
import re
import struct
import sys
import threading
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lamina.runtime.data import (
    Batches,
    DataError,
    Input,
    Stage,
    check_stages,
    feed,
    open_data,
    prefetch,
)
from lamina.runtime.data import make_digits as digits
from lamina.runtime.data.dataset import Dataset, Step
from lamina.runtime.data.feeding import require_classes
from lamina.runtime.data.idx import read_idx, write_idx
from lamina.runtime.data.npz import read_npz
from lamina.runtime.data.sources import SOURCES, Arrays
from lamina.runtime.data.transforms import TRANSFORMS, Draw, shuffled_order

SHIPPED = Path(digits.__file__).parent / "mnist"


def stage(name, *args, **kwargs):
    return Stage(name, args, tuple(kwargs.items()), 3)


def pictures(count=6, channels=1, height=9, width=8):
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def transformed(images, *stages, seed=5, epoch=0, indices=None):
    made = tuple(Step(TRANSFORMS[s.name](*s.args, **dict(s.kwargs))) for s in stages)
    data = Dataset(Arrays({"image": images}), made, seed=seed)
    return data.fetch(np.arange(len(images)) if indices is None else indices, epoch)["image"]


def code_of(call, *args, **kwargs):
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    assert caught.value.message
    return caught.value.code


# --- shipped digits -------------------------------------------------------------------------------


def test_shipped_digits_are_what_their_readme_says():
    """The files are binary: only a checksum shows that nobody changed them unawares."""
    sums = dict(re.findall(r"`([\w-]+\.idx\.gz)` \| `([0-9a-f]{64})`",
                           (SHIPPED / "README.md").read_text()))
    assert len(sums) == 4
    for name, expected in sums.items():
        assert hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() == expected


@pytest.mark.parametrize(("part", "count", "least"), [("train", 8500, 734), ("test", 1500, 129)])
def test_shipped_digits_have_all_classes(part, count, least):
    """A quick start must work without a download, on balanced data."""
    data = open_data([stage("mnist", part)])
    batch = data.fetch(np.arange(len(data)))
    assert batch["image"].shape == (count, 1, 28, 28) and batch["image"].dtype == np.float32
    assert batch["image"].min() == 0 and batch["image"].max() == 1
    assert batch["label"].dtype == np.int32 and np.bincount(batch["label"]).min() == least
    assert set(batch["label"][:128]) == set(range(10))  # mixed, not sorted by class


def test_no_digit_is_in_both_parts():
    """Held-out figures mean nothing if the model has seen the pictures."""
    parts = [read_idx(SHIPPED / f"{part}-images.idx.gz") for part in ("train", "test")]
    train, test = ({image.tobytes() for image in part} for part in parts)
    assert len(train) == 8500 and len(test) == 1500 and not train & test


def test_conversion_of_the_package_is_exact_and_repeatable(tmp_path):
    """Whoever doubts the shipped files makes them again: three decimals name all 256 values."""
    source = tmp_path / "src" / "digits"
    source.mkdir(parents=True)
    rng = np.random.default_rng(1)
    made = [rng.integers(0, 256, (20 + d, 28, 28)).astype(np.uint8) for d in range(10)]
    made[0].reshape(-1)[:256] = np.arange(256)
    for digit, images in enumerate(made):
        values = [round(v / 255, 3) for v in images.reshape(-1).tolist()] + [0.5]  # a rest
        (source / f"{digit}.json").write_text(json.dumps({"data": values}))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        digits.make(tmp_path, tmp_path / folder)
    files = sorted((tmp_path / "one").iterdir())
    assert len(files) == 4
    assert all(f.read_bytes() == (tmp_path / "two" / f.name).read_bytes() for f in files)
    parts = [(read_idx(tmp_path / "one" / f"{p}-images.idx.gz"),
              read_idx(tmp_path / "one" / f"{p}-labels.idx.gz")) for p in ("train", "test")]
    found = sorted((int(y), x.tobytes()) for xs, ys in parts for x, y in zip(xs, ys, strict=True))
    assert found == sorted((d, x.tobytes()) for d, xs in enumerate(made) for x in xs)
    assert len(parts[1][1]) == round(0.15 * len(found))


# --- IDX ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_idx_truncated_or_changed_anywhere(tmp_path, packed):
    """A damaged file is a clear error; a changed data byte of a plain file can go unseen."""
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    data = write_idx(array)
    stored = gzip.compress(data, mtime=0) if packed else data
    path = tmp_path / "a.idx"
    path.write_bytes(stored)
    assert np.array_equal(read_idx(path), array)
    for end in range(len(stored)):
        path.write_bytes(stored[:end])
        assert code_of(read_idx, path) == "E603", end
    path.write_bytes(stored + b"x")
    assert code_of(read_idx, path) == "E603"
    for bit in range(8 * len(stored)):
        changed = bytearray(stored)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            read_idx(path)
        except DataError as error:
            assert error.code == "E603"  # noqa: PT017  anything else escapes and fails


@pytest.mark.parametrize("kind", [">i1", ">i2", ">i4", ">f4", ">f8"])
def test_idx_types(tmp_path, kind):
    """All types of the format, in the machine's byte order."""
    codes = {">i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}
    values = np.array([-3, 0, 100], kind)
    head = struct.pack(">HBBI", 0, codes[kind], 1, 3)
    (tmp_path / "a").write_bytes(head + values.tobytes())
    found = read_idx(tmp_path / "a")
    assert found.dtype.isnative and np.array_equal(found, values)


def test_idx_that_lies_about_its_size_allocates_nothing(tmp_path):
    """A header of 20 bytes can claim 2**64 bytes, and a gzip file can swell a thousandfold."""
    path = tmp_path / "a"
    for sizes in ((2**32 - 1,) * 2, (2**31,), (2**20, 2**10)):
        path.write_bytes(struct.pack(f">HBB{len(sizes)}I", 0, 8, len(sizes), *sizes) + b"abc")
        assert code_of(read_idx, path) == "E603"
        path.write_bytes(gzip.compress(path.read_bytes()))
        assert code_of(read_idx, path) == "E603"
    path.write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 5) + bytes(50_000_000)))
    assert code_of(read_idx, path) == "E603"
    path.write_bytes(write_idx(np.zeros(2000, np.uint8)))
    assert code_of(read_idx, path, limit=1999) == "E603"


def test_idx_missing_or_a_folder(tmp_path):
    """The two things that are most often wrong with a path."""
    assert code_of(read_idx, tmp_path / "none") == "E601"
    assert code_of(read_idx, tmp_path) == "E602"


def test_idx_pairs_must_agree(tmp_path):
    """Labels of other pictures would train silently to nonsense."""
    (tmp_path / "x").write_bytes(write_idx(pictures()[:, 0]))
    (tmp_path / "y").write_bytes(write_idx(np.arange(5, dtype=np.uint8)))
    (tmp_path / "z").write_bytes(write_idx(np.zeros((6, 1), np.uint8)))
    for images, labels in (("x", "y"), ("x", "z"), ("y", "y")):
        pair = [stage("idx", images, labels)]
        assert code_of(open_data, pair, tmp_path) == "E609"
    (tmp_path / "y").write_bytes(write_idx(np.arange(6, dtype=np.uint8)))
    assert len(open_data([stage("idx", images="x", labels="y")], tmp_path)) == 6
    (tmp_path / "e").write_bytes(write_idx(np.zeros((0, 9, 8), np.uint8)))
    (tmp_path / "f").write_bytes(write_idx(np.zeros(0, np.uint8)))
    assert code_of(open_data, [stage("idx", "e", "f")], tmp_path) == "E605"


def test_fashion_mnist_folder(tmp_path):
    """The four files as they are distributed, plain or packed."""
    assert code_of(open_data, [stage("fashion_mnist", "no")], tmp_path) == "E601"
    for part, count in (("train", 4), ("t10k", 2)):
        images = gzip.compress(write_idx(pictures(count)[:, 0]))
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(images)
        labels = write_idx(np.arange(count, dtype=np.uint8))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    for part, count in (("train", 4), ("test", 2)):
        data = open_data([stage("fashion_mnist", ".", part)], tmp_path)
        assert len(data) == count and data.classes[9] == "ankle boot"


# --- npz ------------------------------------------------------------------------------------------


def archive(path, packing=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", packing) as out:
        for name, data in members.items():
            out.writestr(f"{name}.npy", data)


def npy(array):
    out = io.BytesIO()
    np.lib.format.write_array(out, array)
    return out.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_truncated_or_changed_anywhere(tmp_path, save):
    """An archive is checked by its checksums; whatever zipfile raises becomes one clear error."""
    path = tmp_path / "a.npz"
    save(path, x=np.arange(12, dtype=np.int16).reshape(3, 4), y=np.array([1.5, 2], "f4"))
    stored = path.read_bytes()
    found = read_npz(path, {"image": "x", "label": "y"})
    assert np.array_equal(found["image"], np.arange(12).reshape(3, 4))
    for end in range(0, len(stored), 3):
        path.write_bytes(stored[:end])
        assert code_of(read_npz, path, {"a": "x"}) == "E603", end
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns about names that a flip makes equal
        for at in range(len(stored)):
            for flip in (0x01, 0x80, 0xFF):
                changed = bytearray(stored)
                changed[at] ^= flip
                path.write_bytes(changed)
                try:
                    values = read_npz(path, {"a": "x"})["a"]
                    assert np.array_equal(values, np.arange(12).reshape(3, 4))
                except DataError as error:
                    assert error.code in ("E601", "E603")  # noqa: PT017


def test_npz_refuses_objects_lies_and_bombs(tmp_path):
    """No pickle, no size that the file cannot hold, no packing that could hide one."""
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([{}, []], object))
    assert code_of(read_npz, path, {"a": "x"}) == "E603"
    sound = npy(np.zeros((2, 3), "f4"))
    for old, new in ((b"(2, 3)", b"(9, 3)"), (b"(2, 3)", b"(2,-3)"), (b"(2, 3)", b"a(2,3)"),
                     (b"<f4", b"<U9"), (b"False", b"[][0]"), (b"NUMPY\x01", b"NUMPY\x09")):
        archive(path, x=sound.replace(old, new))
        assert code_of(read_npz, path, {"a": "x"}) == "E603", new
    archive(path, zipfile.ZIP_LZMA, x=sound)
    assert code_of(read_npz, path, {"a": "x"}) == "E603"
    archive(path, x=npy(np.zeros(10_000_000, "u1")))
    assert code_of(read_npz, path, {"a": "x"}, limit=1_000_000) == "E603"
    assert code_of(read_npz, tmp_path / "none", {"a": "x"}) == "E601"


def test_npz_arrays_become_plain_numbers(tmp_path):
    """Programs take float32 and int32; pictures stay bytes until they are needed."""
    np.savez(
        tmp_path / "a.npz",
        pixels=pictures()[:, 0], colour=pictures(channels=3), real=np.asfortranarray(np.eye(6)),
        words=np.arange(6, dtype=np.int64), huge=np.full(6, 2**40), five=np.zeros(5), one=1.0,
    )
    names = {"image": "pixels", "colour": "colour", "real": "real", "label": "words"}
    data = open_data([stage("arrays", "a.npz", **names), stage("pad", 1)], tmp_path)
    batch = data.fetch(np.array([1, 4]))
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
        "image": ("float32", (2, 1, 11, 10)), "colour": ("float32", (2, 3, 9, 8)),
        "real": ("float32", (2, 6)), "label": ("int32", (2,)),
    }
    assert np.array_equal(batch["real"], np.eye(6)[[1, 4]])
    for names, code in (({"a": "huge"}, "E610"), ({"a": "five", "b": "real"}, "E609"),
                        ({"a": "one"}, "E609"), ({"a": "wrods"}, "E601"), ({}, "E608")):
        assert code_of(open_data, [stage("arrays", "a.npz", **names)], tmp_path) == code
    with pytest.raises(DataError) as caught:
        open_data([stage("arrays", "a.npz", x="wrods")], tmp_path)
    assert "words" in caught.value.help


# --- picture folders ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Two classes of three pictures of differing sizes."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is an optional extra")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = rng.integers(0, 256, (20 + i, 30 + label, 3), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_picture_folder(folder):
    """Classes in the order of their names; sizes differ until a crop makes them equal."""
    data = open_data([stage("images", ".", size=16), stage("center_crop", 16)], folder)
    assert data.classes == ("cat", "dog") and len(data) == 6
    batch = data.fetch(np.arange(6))
    assert batch["image"].shape == (6, 3, 16, 16)
    assert batch["label"].tolist() == [0, 0, 0, 1, 1, 1]
    again = open_data([stage("images", ".", size=16), stage("center_crop", 16)], folder)
    assert np.array_equal(again.fetch(np.array([5, 2]))["image"], batch["image"][[5, 2]])
    grey = open_data([stage("images", ".", size=[8, 12], channels=1)], folder)
    assert grey.fetch(np.arange(2))["image"].shape == (2, 1, 8, 12)


def test_pictures_of_different_sizes_need_a_crop(folder):
    """The message names two files and their sizes."""
    data = open_data([stage("images", ".")], folder)
    with pytest.raises(DataError, match=r"0\.png has 20 x 30 pixels, .*1\.png has 21 x 30") as e:
        data.fetch(np.arange(3))
    assert e.value.code == "E609" and "center_crop" in e.value.help
    small = open_data([stage("images", "."), stage("random_crop", 21)], folder)
    with pytest.raises(DataError, match=r"0\.png: `random_crop` wants 21 x 21") as e:
        small.fetch(np.arange(3))
    assert e.value.line == 3


def test_damaged_pictures_are_named_or_left_out(folder):
    """Truncated at many places and changed: named, or counted when skip_corrupt asks for it."""
    victim = folder / "dog" / "1.png"
    sound = victim.read_bytes()
    stages = [stage("images", ".", size=8), stage("center_crop", 8)]
    for end in range(0, len(sound) - 12, 97):  # the last chunk holds nothing
        victim.write_bytes(sound[:end])
        with pytest.raises(DataError, match=r"dog/1\.png") as caught:
            open_data(stages, folder).fetch(np.arange(6))
        assert caught.value.code == "E604"
    data = open_data([stage("images", ".", size=8, skip_corrupt=True), stages[1]], folder)
    assert len(data) == 5 and data.source.skipped == (str(victim),)
    assert data.fetch(np.arange(5))["label"].tolist() == [0, 0, 0, 1, 1]
    for name in ("cat", "dog"):
        for path in (folder / name).glob("*.png"):
            path.write_bytes(b"no")
    assert code_of(open_data, [stage("images", ".", skip_corrupt=True)], folder) == "E605"


def test_pictures_that_are_too_much(folder):
    """A picture of a few bytes can claim a gigapixel; 16 bits would be cut to white."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is an optional extra")
    path = folder / "cat" / "0.png"
    image.fromarray(np.full((9, 9), 60000, np.uint16)).save(path)
    assert code_of(open_data([stage("images", ".")], folder).fetch, np.array([0])) == "E604"
    image.new("1", (9000, 9000)).save(path)
    assert code_of(open_data([stage("images", ".")], folder).fetch, np.array([0])) == "E604"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert code_of(open_data([stage("images", ".")], folder).fetch, np.array([0])) == "E604"


def test_empty_folders_and_classes(folder):
    """An empty class is most often a wrong path."""
    (folder / "eel").mkdir()
    with pytest.raises(DataError, match="eel") as caught:
        open_data([stage("images", ".")], folder)
    assert caught.value.code == "E605"
    assert code_of(open_data, [stage("images", "eel")], folder) == "E605"
    assert code_of(open_data, [stage("images", "no")], folder) == "E601"
    assert code_of(open_data, [stage("images", "cat/0.png")], folder) == "E601"


def test_missing_pillow_names_the_extra(tmp_path, monkeypatch):
    """Pillow is optional: its absence must say what to install."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError) as caught:
        open_data([stage("images", ".")], tmp_path)
    assert caught.value.code == "E612" and "lamina[images]" in caught.value.help


# --- transforms -----------------------------------------------------------------------------------


def test_normalize_and_pad_by_formula():
    """(x / 255 - mean) / std, with zeros of the padding normalised like any black pixel."""
    images = pictures(channels=3)
    out = transformed(images, stage("pad", 2), stage("normalize", "imagenet"))
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2))) / 255
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert np.allclose(out, (padded - mean) / std, atol=2e-6)
    out = transformed(images, stage("normalize", mean=0.5, std=[0.1, 0.2, 0.4]))
    assert np.allclose(out[:, 2], (images[:, 2] / 255 - 0.5) / 0.4, atol=2e-6)
    assert np.allclose(transformed(images, stage("scale", 255)), images, rtol=1e-6)


def test_shift_moves_and_fills_with_zeros():
    """Each example is its own window of the padded picture, and all offsets occur."""
    images = pictures(400)
    out = transformed(images, stage("shift", 2))
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2))).astype(np.float32) / np.float32(255)
    seen = set()
    for i in range(400):
        hits = [(y, x) for y in range(5) for x in range(5)
                if np.allclose(out[i], padded[i, :, y : y + 9, x : x + 8], atol=1e-6)]
        assert len(hits) == 1
        seen.add(hits[0])
    assert len(seen) == 25


def test_crops_and_flips():
    """The middle, a random window, and about half of the pictures mirrored."""
    images = pictures(300)
    plain = transformed(images)
    assert np.array_equal(transformed(images, stage("center_crop", [5, 4])), plain[:, :, 2:7, 2:6])
    crops = transformed(images, stage("random_crop", 8))
    ends = [np.array_equal(crops[i], plain[i, :, 1:]) for i in range(300)]
    assert 100 < sum(ends) < 200
    assert all(end or np.array_equal(crops[i], plain[i, :, :8]) for i, end in enumerate(ends))
    assert transformed(images, stage("random_crop", 9, padding=1)).shape == (300, 1, 9, 9)
    flipped = transformed(images, stage("hflip"))
    same = [np.array_equal(flipped[i], plain[i]) for i in range(300)]
    assert 110 < sum(same) < 190
    assert np.array_equal(transformed(images, stage("hflip", 1)), plain[..., ::-1])


@pytest.mark.parametrize("size", [[9, 8], [20, 23], [3, 2], [1, 40]])
def test_resize_agrees_with_pillow(size):
    """Pillow's bilinear filter is the reference, up to its rounding between the two passes."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is an optional extra")
    images = pictures(4)
    out = transformed(images, stage("resize", size)) * 255
    for i in range(4):
        wanted = image.fromarray(images[i, 0]).resize((size[1], size[0]),
                                                      image.Resampling.BILINEAR)
        assert np.abs(out[i, 0] - np.asarray(wanted)).max() <= 1.001


RANDOM = (stage("pad", 2), stage("shift", 2), stage("random_crop", 9), stage("hflip"),
          stage("normalize", 0.2, 0.4))


def test_randomness_depends_on_example_epoch_and_seed_only():
    """Any batch, any order, any thread: the same bits; another epoch or seed: others."""
    images = pictures(40)
    whole = transformed(images, *RANDOM)
    for indices in ([3], [39, 0, 7], list(range(40))[::-1]):
        assert np.array_equal(transformed(images, *RANDOM, indices=np.array(indices)),
                              whole[indices])
    assert not np.array_equal(transformed(images, *RANDOM, epoch=1), whole)
    assert not np.array_equal(transformed(images, *RANDOM, seed=6), whole)
    twice = transformed(images, stage("shift", 3), stage("shift", 3), epoch=2)
    assert not np.array_equal(twice, transformed(images, stage("shift", 3), epoch=2))


def test_draws_are_even():
    """Whole numbers must be uniform and reach both ends."""
    draw = Draw(1, 2, 3, np.arange(60_000))
    counts = np.bincount(draw.whole(1, 6)[:, 0], minlength=6)
    assert len(counts) == 6 and abs(counts - 10_000).max() < 400  # four standard deviations


def test_order_is_a_permutation_that_is_pinned():
    """Every example once an epoch; the order is part of the promise of equal bits."""
    orders = [shuffled_order(1000, 7, epoch) for epoch in range(3)]
    assert all(np.array_equal(np.sort(order), np.arange(1000)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert shuffled_order(8, 1998, 0).tolist() == ORDER
    assert shuffled_order(0, 1, 0).size == 0


ORDER = [3, 6, 0, 4, 7, 1, 2, 5]


# --- batches --------------------------------------------------------------------------------------


def test_batches_are_the_same_from_any_position():
    """What a resumed run sees is what it would have seen."""
    data = open_data([stage("mnist", "test"), *RANDOM[:2], stage("shuffle")], seed=3)
    for size, drop, count in ((400, True, 3), (400, False, 4), (1500, True, 1), (9999, True, 1)):
        batches = Batches(data, size, drop)
        whole = list(batches.epoch(2))
        assert len(whole) == len(batches) == count
        for start in range(count + 1):
            with prefetch(batches.epoch(2, start), depth=1) as stream:
                rest = list(stream)
            assert [b.position for b in rest] == list(range(start, count))
            for one, two in zip(rest, whole[start:], strict=True):
                assert all(np.array_equal(one.arrays[k], two.arrays[k]) for k in one.arrays)
    assert sum(b.size for b in Batches(data, 400).epoch(0)) == 1500


def test_prefetch_raises_what_the_thread_raised_and_ends():
    """An error in a background thread must not hang the run, nor must leaving early."""
    def failing():
        yield from Batches(open_data([stage("mnist", "test")]), 100).epoch(0)
        raise DataError("E604", "broken")

    before = threading.active_count()
    with prefetch(failing()) as stream, pytest.raises(DataError, match="broken"):
        assert len([next(stream) for _ in range(15)]) == 15
        next(stream)
    with prefetch(failing(), depth=1) as stream:
        assert next(stream).position == 0
    assert threading.active_count() == before


def test_feeding_digits_is_fast():
    """A LeNet step takes a millisecond or two: 64 digits must be ready well before."""
    stages = [stage("mnist", "train"), stage("pad", 2), stage("shift", 2),
              stage("normalize", mean=0.1307, std=0.3081), stage("shuffle")]
    stream = Batches(open_data(stages), 64, drop_last=True).epoch(0)
    times = []
    for _ in range(132):
        start = time.perf_counter()
        next(stream)
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-3


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stages", "code", "text"), [
    ([], "E613", "empty"),
    ([stage("pad", 2)], "E613", "source comes before"),
    ([stage("mnsit", "train")], "E606", "did you mean `mnist`"),
    ([stage("mnist")], "E608", "mnist(part)"),
    ([stage("mnist", "tset")], "E608", "did you mean `test`?"),
    ([stage("mnist", 3)], "E608", '"train" or "test"'),
    ([stage("arrays", "x.npz")], "E608", 'needs at least one field, as in image="x"'),
    ([stage("arrays", "x.npz", image=3)], "E608", "`image` must be a text"),
    ([stage("images", "a", sise=3)], "E608", "size=..., channels=3, skip_corrupt=false)"),
    ([stage("mnist", "train"), stage("mnist", "test")], "E613", "comes first"),
    ([stage("mnist", "train"), stage("normalise", 0, 1)], "E607", "did you mean `normalize`"),
    ([stage("mnist", "train"), stage("flip")], "E607", "did you mean `hflip`"),
    ([stage("mnist", "train"), stage("shuffle", 3)], "E608", "shuffle()"),
    ([stage("mnist", "train"), stage("pad")], "E608", "pad(pixels)"),
    ([stage("mnist", "train"), stage("pad", -1)], "E608", "`pixels` must be a whole number"),
    ([stage("mnist", "train"), stage("pad", True)], "E608", "`pixels` must be a whole number"),
    ([stage("mnist", "train"), stage("pad", 1.5)], "E608", "`pixels` must be a whole number"),
    ([stage("mnist", "train"), stage("normalize", 0, 0)], "E608", "`std` must be a number"),
    ([stage("mnist", "train"), stage("normalize", "coco")], "E608", "`mean` must be a number"),
    ([stage("mnist", "train"), stage("normalize", [])], "E608", "`mean` must be a number"),
    ([stage("mnist", "train"), stage("hflip", float("nan"))], "E608", "from 0 to 1"),
    ([stage("mnist", "train"), stage("center_crop", [1, 2, 3])], "E608", "`size`"),
    ([stage("mnist", "train"), stage("pad", 2, pixels=2)], "E608", "multiple values"),
    ([stage("mnist", "train")] + [stage("pad", 1)] * 100, "E613", "at most 100"),
])
def test_wrong_pipelines(stages, code, text):
    """Every mistake has its code, its line and a way out, before any file is opened."""
    with pytest.raises(DataError) as caught:
        check_stages(stages)
    assert caught.value.code == code
    assert text in f"{caught.value.message} {caught.value.help}"
    assert caught.value.line == (3 if code != "E613" or "comes" in text else 0)


@pytest.mark.parametrize(("call", "code"), [
    (stage("mnist", "valid"), "E608"),
    (stage("mnist"), "E608"),
    (stage("images", "x\0y"), "E608"),
    (stage("images", ".", channels=4), "E608"),
    (stage("images", ".", size=0), "E608"),
    (stage("images", ".", skip_corrupt=1), "E608"),
    (stage("idx", "a", "b", _folder="/"), "E608"),
    (stage("idx", "a\nb" * 1000, "b"), "E602"),
    (stage("fashion_mnist", 3), "E608"),
])
def test_wrong_sources(call, code):
    """Arguments come from a file that anyone may have written."""
    pytest.importorskip("PIL.Image", reason="Pillow is an optional extra")
    with pytest.raises(DataError) as caught:
        open_data([call])
    assert caught.value.code == code and caught.value.line == 3
    assert "\n" not in caught.value.message and len(caught.value.message) < 600


def test_every_name_has_a_line_of_help():
    """The front end lists them."""
    for table in (SOURCES, TRANSFORMS):
        assert all(function.__doc__ for function in table.values())


LABEL = Input("label", "i32", ("B",), 10)


@pytest.mark.parametrize(("inputs", "code", "text"), [
    ([Input("image", "f32", ("B", 1, 32, 32)), LABEL], "E609", "takes 1 x 32 x 32; the data's"),
    ([Input("image", "f32", ("B", 3, "H", "H")), LABEL], "E609", "1 x 28 x 28"),
    ([Input("image", "f32", ("B", "D"))], "E609", "takes D"),
    ([Input("image", "i32", ("B", 1, 28, 28))], "E611", "whole numbers"),
    ([Input("image"), Input("label", "i32", ("B",), 9)], "E610", "`label` is 9; the model takes"),
    ([Input("image"), LABEL, Input("mask")], "E611", "`mask`"),
    ([Input("image", field="picture")], "E611", "the data has `image`, `label`"),
])
def test_data_that_does_not_fit_the_model(inputs, code, text):
    """A kernel trusts shapes and label values: they are checked before it sees them."""
    with pytest.raises(DataError) as caught:
        feed(open_data([stage("mnist", "test")]), inputs)
    assert caught.value.code == code
    assert text in f"{caught.value.message} {caught.value.help}"


@pytest.mark.parametrize(("shape", "wanted", "help"), [
    ((1, 28, 28), (1, 32, 32), "pad(2) or resize(32) in the data pipeline gives 32 x 32 pixels"),
    ((1, 28, 28), (1, 16, 20),
     "center_crop([16, 20]) or resize([16, 20]) in the data pipeline gives 16 x 20 pixels"),
    ((1, 8, 40), (1, 16, 16), "resize(16) in the data pipeline gives 16 x 16 pixels"),
    ((3, 8, 8), (1, 8, 8), "give the model's input `image` 3 channels"),
    ((3, 8, 6), (1, "H", "H"), "give the model's input `image` 3 channels; "
                               "resize(8) in the data pipeline gives 8 x 8 pixels"),
    ((64,), (1, 8, 8), ""),
])
def test_the_way_to_a_size_is_named(shape, wanted, help):
    """For other channels it once proposed a crop; the numbers were left to the reader."""
    data = Dataset(Arrays({"image": np.zeros((2, *shape), np.float32)}))
    with pytest.raises(DataError) as caught:
        feed(data, [Input("image", "f32", ("B", *wanted))])
    assert (caught.value.code, caught.value.help) == ("E609", help)
    ways = [] if "channel" in help else re.findall(r"(\w+)\((\[?[\d, ]+\]?)\)", help)
    for name, size in ways:  # each does what the help says
        made = Step(TRANSFORMS[name](json.loads(size)))
        feed(replace(data, transforms=(made,)), [Input("image", "f32", ("B", *wanted))])


def test_the_channels_of_picture_files_are_a_setting(folder):
    """No crop makes three channels one."""
    data = [stage("images", ".", size=[8, 8])]
    wanted = [Input("image", "f32", ("B", 1, 8, 8)), Input("label", "i32", ("B",))]
    with pytest.raises(DataError) as caught:
        feed(open_data(data, folder), wanted)
    assert caught.value.help == "write channels=1 in images(...)"
    feed(open_data([stage("images", ".", size=[8, 8], channels=1)], folder), wanted)


def test_other_classes_are_named(tmp_path):
    """A class folder missing on one side would shift all labels that follow, silently."""
    data = Dataset(Arrays({"image": pictures()}, ("cat", "eel")))
    require_classes(data, ())
    require_classes(data, ("cat", "eel"))
    with pytest.raises(DataError, match="missing: `dog`; new: `eel`") as caught:
        require_classes(data, ("cat", "dog"))
    assert caught.value.code == "E611"
    with pytest.raises(DataError, match="in another order"):
        require_classes(data, ("eel", "cat"))


def matched(fields, *inputs):
    rows = np.zeros((2, 1), np.float32)
    plan = feed(Dataset(Arrays(dict.fromkeys(fields, rows))), [Input(key) for key in inputs])
    return {one.key: one.field for one in plan}


def test_a_field_that_one_input_claims_feeds_no_other():
    """A misspelt field once gave q's data to p: it trained, silently, on nonsense."""
    assert matched(["q", "pp", "t"], "p", "q", "t") == {"p": "pp", "q": "q", "t": "t"}
    assert matched(["image", "label"], "label", "x") == {"label": "label", "x": "image"}
    for fields in (["q", "pp", "tt"], ["q", "t"], ["q", "pp", "t", "z"]):
        with pytest.raises(DataError, match="feeds the model's input `p`; the data has") as caught:
            matched(fields, "p", "q", "t")
        assert caught.value.code == "E611"
        assert (caught.value.help == "did you mean `pp`?") == ("pp" in fields)


@pytest.mark.parametrize("dtype", ["i32", "i64", "f64", "bool"])
def test_every_element_type_of_the_language_can_be_fed(dtype):
    """An input of i64 once ended in a traceback."""
    whole, real = (Dataset(Arrays({"x": np.zeros((2, 1), kind)})) for kind in ("i4", "f4"))
    (found,) = feed(whole, [Input("x", dtype)])
    assert np.dtype(found.kind).kind == dtype[0]
    if dtype != "f64":
        assert code_of(feed, real, [Input("x", dtype)]) == "E611"


def test_data_meets_inputs_by_name_or_by_place():
    """A model may call its picture `x`; what it calls `label` is the label wherever it stands."""
    data = open_data([stage("mnist", "test")])
    by_place = feed(data, [Input("x", "f32", ("B", 1, "S", "S")), Input("y", "i32", ("B",), 10)])
    assert [(one.field, one.key) for one in by_place] == [("image", "x"), ("label", "y")]
    by_name = feed(data, [LABEL, Input("pixels", field="image")])
    assert [(one.field, one.key) for one in by_name] == [("label", "label"), ("image", "pixels")]


# --- made examples ------------------------------------------------------------------------------


def test_the_copy_task_is_what_it_says():
    # Symbols, blanks, the sign to speak at `lag`, blanks; the same for the same seed alone.
    stage = Stage("copy_task", (), (("lag", 6), ("symbols", 3), ("length", 2), ("examples", 500)))
    found = open_data((stage,)).fetch(np.arange(500))
    ids, copy = found["ids"], found["copy"]
    assert (ids.dtype, ids.shape) == (np.int32, (500, 8))
    assert (copy.dtype, copy.shape) == (np.int32, (500, 2))
    assert np.array_equal(ids[:, :2], copy + 1)
    assert (ids[:, 2:6] == 0).all() and (ids[:, 6] == 4).all() and (ids[:, 7] == 0).all()
    shares = np.bincount(copy.ravel(), minlength=3) / copy.size
    assert len(shares) == 3 and np.abs(shares - 1 / 3).max() < 0.05
    again = open_data((stage,)).fetch(np.arange(500))["ids"]
    other = open_data((replace(stage, kwargs=(*stage.kwargs, ("seed", 1))),)).fetch(np.arange(500))
    assert np.array_equal(ids, again) and (other["ids"] != ids).any(1).mean() > 0.8


@pytest.mark.parametrize("given, said", [
    ({"lag": 2, "length": 3}, "`lag` is 2, less than the 3 symbols"),
    ({"symbols": 1}, "`symbols` must be a whole number from 2"),
    ({"examples": 0}, "`examples` must be a whole number from 1"),
    ({"lag": "far"}, "`lag` must be a whole number"),
])
def test_a_copy_task_that_makes_no_sense(given, said):
    # Said when the file is checked, before anything is made.
    with pytest.raises(DataError, match=said) as error:
        check_stages((Stage("copy_task", (), tuple(given.items()), 7),))
    assert (error.value.code, error.value.line) == ("E608", 7)
