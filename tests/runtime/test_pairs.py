"""Pictures with masks, parts of a data set, colours and mixtures: what a label must follow."""

import io
import json

import numpy as np
import pytest

from lamina.runtime.data import DataError, Input, Stage, feed, make_emoji, open_data
from lamina.runtime.data.dataset import Dataset, Step
from lamina.runtime.data.mixing import smaller_share
from lamina.runtime.data.pictures import encode_mask
from lamina.runtime.data.sources import Arrays
from lamina.runtime.data.split import split_source
from lamina.runtime.data.transforms import LUMA, TRANSFORMS

Image = pytest.importorskip("PIL.Image", reason="Pillow is an optional extra")


def stage(name, *args, **kwargs):
    return Stage(name, args, tuple(kwargs.items()), 3)


def everything(data, epoch=0):
    return data.fetch(np.arange(len(data)), epoch)


@pytest.fixture
def folder(tmp_path):
    """Twelve grey pictures that are their own masks: wherever one moves, the other must be."""
    rng = np.random.default_rng(0)
    for kind in ("pictures", "masks", "classes"):
        (tmp_path / kind).mkdir()
    for i in range(12):
        pixels = rng.integers(0, 256, (20, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i:02}.png")
        Image.fromarray(pixels).save(tmp_path / "masks" / f"{i:02}.png")
        Image.fromarray(pixels // 64).save(tmp_path / "classes" / f"{i:02}.png")
    return tmp_path


MOVES = (stage("pad", 2), stage("shift", 3), stage("hflip"), stage("random_crop", [18, 14]))


def test_a_mask_moves_with_its_picture(folder):
    """A mask that missed one flip would teach nonsense, and no error would ever tell."""
    data = open_data([stage("pairs", "pictures", "masks", channels=1), *MOVES], folder)
    found = everything(data)
    assert found["image"].shape == found["mask"].shape == (12, 1, 18, 14)
    assert np.array_equal(found["image"], found["mask"])
    assert not np.array_equal(everything(data, epoch=1)["mask"], found["mask"])
    resized = open_data([stage("pairs", "pictures", "masks", channels=1), stage("resize", 9)],
                        folder)
    assert np.array_equal(everything(resized)["image"], everything(resized)["mask"])


def test_colours_change_pictures_alone(folder):
    """Normalising or jittering a mask would change its truth."""
    colours = (stage("jitter", 0.5, 0.5), stage("normalize", 0.5, 0.2))
    plain = open_data([stage("pairs", "pictures", "masks", channels=1)], folder)
    data = open_data([stage("pairs", "pictures", "masks", channels=1), *colours], folder)
    assert np.array_equal(everything(data)["mask"], everything(plain)["mask"])
    assert not np.array_equal(everything(data)["image"], everything(plain)["image"])


def test_masks_of_classes_are_numbers_that_nothing_blends(folder):
    """Between class 1 and class 3 there is no class 2: sizes change by the nearest pixel."""
    stages = [stage("pairs", "pictures", "classes", channels=1, classes=4), *MOVES]
    found = everything(open_data(stages, folder))
    assert found["mask"].dtype == np.int32 and found["mask"].shape == (12, 18, 14)
    pixels = np.rint(found["image"][:, 0] * 255).astype(int)
    assert np.array_equal(found["mask"], pixels // 64)
    larger = everything(open_data([stages[0], stage("resize", [40, 32])], folder))["mask"]
    small = everything(open_data(stages[:1], folder))["mask"]
    assert np.array_equal(larger, small.repeat(2, axis=1).repeat(2, axis=2))


def test_masks_of_classes_keep_to_their_number(folder):
    """A class outside the model's would be read outside an array."""
    stages = [stage("pairs", "pictures", "masks", classes=4)]
    with pytest.raises(DataError, match=r"masks/00\.png holds class \d+; `classes=4`") as caught:
        everything(open_data(stages, folder))
    assert caught.value.code == "E610"
    data = open_data([stage("pairs", "pictures", "classes", channels=1, classes=4)], folder)
    image, mask = Input("image"), Input("mask", "i32", ("B", 20, 16), 3)
    with pytest.raises(DataError, match="the masks have 4 classes, the model 3") as caught:
        feed(data, [image, mask])
    assert caught.value.code == "E610"


def test_pairs_that_are_none(folder):
    """Each mistake names the file that it is about."""
    (folder / "masks" / "03.png").rename(folder / "masks" / "3.png")
    with pytest.raises(DataError, match=r"pictures/03\.png has no mask in") as caught:
        open_data([stage("pairs", "pictures", "masks")], folder)
    assert caught.value.code == "E605" and "03.png" in caught.value.help
    Image.new("L", (15, 20)).save(folder / "masks" / "03.png")
    data = open_data([stage("pairs", "pictures", "masks"), stage("hflip")], folder)
    with pytest.raises(DataError, match=r"03\.png: the picture has 20 x 16 pixels, its mask 20 x"):
        everything(data)
    with pytest.raises(DataError) as caught:
        open_data([stage("pairs", "nowhere", "masks")], folder)
    assert caught.value.code == "E601"


def test_damaged_pairs_are_left_out_on_request_alone(folder):
    """A damaged mask takes its picture with it."""
    path = folder / "masks" / "05.png"
    path.write_bytes(path.read_bytes()[:60])
    stages = [stage("pairs", "pictures", "masks")]
    with pytest.raises(DataError, match=r"masks/05\.png is not a sound picture"):
        everything(open_data(stages, folder))
    data = open_data([stage("pairs", "pictures", "masks", skip_corrupt=True)], folder)
    assert len(data) == 11 and data.source.skipped == (str(folder / "pictures" / "05.png"),)


def test_split_keeps_the_share_of_every_class():
    """Held-out figures of a class that is not held out are no figures."""
    labels = np.repeat(np.arange(4, dtype=np.int32), [100, 50, 10, 2])
    source = Arrays({"image": np.arange(162, dtype=np.float32)[:, None], "label": labels})
    train, valid = (split_source(source, part, 0.2, 7) for part in ("train", "valid"))
    assert np.bincount(valid.column("label")).tolist() == [20, 10, 2, 1]
    assert np.bincount(train.column("label")).tolist() == [80, 40, 8, 1]
    both = np.concatenate([train.chosen, valid.chosen])
    assert np.array_equal(np.sort(both), np.arange(162))
    assert np.array_equal(split_source(source, "valid", 0.2, 7).chosen, valid.chosen)
    assert not np.array_equal(split_source(source, "valid", 0.2, 8).chosen, valid.chosen)
    assert valid.name(0) == source.name(int(valid.chosen[0]))


def test_split_in_a_pipeline(folder):
    """It counts examples wherever the pipeline has it, and lonely classes are named."""
    source = stage("pairs", "pictures", "masks", channels=1)
    parts = [open_data([source, stage("split", part, 0.25)], folder) for part in ("train", "valid")]
    assert [len(part) for part in parts] == [9, 3]
    assert set(parts[0].source.chosen) | set(parts[1].source.chosen) == set(range(12))
    lonely = Arrays({"x": np.zeros((3, 1)), "label": np.array([0, 0, 1], np.int32)}, ("a", "b"))
    with pytest.raises(DataError, match="class `b` has one example") as caught:
        split_source(lonely, "train", 0.5, 0)
    assert caught.value.code == "E605"
    for wrong in ({"part": "test"}, {"part": "train", "share": 1.0}, {"part": "train", "seed": -1}):
        with pytest.raises(DataError) as caught:
            open_data([source, stage("split", **wrong)], folder)
        assert caught.value.code == "E608" and caught.value.line == 3


def jittered(images, *amounts, indices=None):
    data = Dataset(Arrays({"image": images}), (Step(TRANSFORMS["jitter"](*amounts)),), seed=5)
    return data.fetch(np.arange(len(images)) if indices is None else indices)["image"]


def test_jitter_by_formula():
    """One amount at a time, so that each factor can be recovered and compared."""
    rng = np.random.default_rng(1)
    images = rng.integers(60, 160, (50, 3, 6, 5), dtype=np.uint8)
    plain = images / 255
    factor = (jittered(images, 0.3) / plain).reshape(50, -1)
    assert np.ptp(factor, axis=1).max() < 1e-5
    assert 0.7 <= factor.min() < 0.75 and 1.25 < factor.max() <= 1.3
    grey = np.einsum("nchw,c->nhw", plain, LUMA)[:, None]
    mean = grey.mean(axis=(1, 2, 3), keepdims=True)
    away = np.abs(plain - mean) > 0.02
    for amounts, middle in (((0, 0.3), mean), ((0, 0, 0.3), grey)):
        clear = away & (np.abs(plain - middle) > 0.02)
        ratio = np.where(clear, (jittered(images, *amounts) - middle) / (plain - middle), np.nan)
        ratio = ratio.reshape(50, -1)
        assert (np.nanmax(ratio, axis=1) - np.nanmin(ratio, axis=1)).max() < 1e-3
        assert 0.7 <= np.nanmin(ratio) < 0.75 and 1.25 < np.nanmax(ratio) <= 1.3001
    assert np.array_equal(jittered(images), images * np.float32(1 / 255))


def test_jitter_is_of_the_example_and_stays_a_picture():
    """The same bits in any batch; extreme factors are clipped; normalised pixels are refused."""
    images = np.random.default_rng(2).integers(0, 256, (9, 3, 7, 7), dtype=np.uint8)
    whole = jittered(images, 1, 1, 1)
    assert whole.min() >= 0 and whole.max() <= 1
    assert np.array_equal(jittered(images, 1, 1, 1, indices=np.array([7, 3])), whole[[7, 3]])
    with pytest.raises(DataError, match="pixels from 0 to 1; these are -1") as caught:
        jittered(np.full((1, 3, 4, 4), -1, np.float32), 0.1)
    assert caught.value.code == "E609" and "normalize" in caught.value.help


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_follow_beta(alpha):
    """The table against NumPy's own Beta numbers: equal quantiles."""
    known = np.random.default_rng(3).beta(alpha, alpha, 400_000)
    known = np.minimum(known, 1 - known)
    at = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    assert np.allclose(smaller_share(alpha, at), np.quantile(known, at), atol=2e-3)
    assert 0 <= smaller_share(alpha, np.zeros(1))[0] < smaller_share(alpha, np.ones(1))[0] <= 0.5001


def mixed(count=40, **kwargs):
    images = np.eye(count, dtype=np.float32)
    labels = (np.arange(count) % 4).astype(np.int32)
    source = Arrays({"image": images, "label": labels})
    data = open_data([stage("mnist", "test"), stage("mixup", 1.0, **kwargs)], seed=9)
    return Dataset(source, mixing=data.mixing, seed=9)


def test_mixup_blends_pictures_and_labels_alike():
    """The rows of the identity show who was mixed with whom, and by how much."""
    data = mixed(classes=4)
    found = everything(data)
    assert np.allclose(found["image"].sum(axis=1), 1, atol=1e-6)
    assert (np.diag(found["image"]) >= 0.5).all()
    labels = found["image"] @ np.eye(4, dtype=np.float32)[np.arange(40) % 4]
    assert found["label"].dtype == np.float32 and np.allclose(found["label"], labels, atol=1e-6)
    assert 25 < (np.diag(found["image"]) < 0.99).sum() <= 40
    assert np.array_equal(data.fetch(np.array([8, 3]))["image"], found["image"][[8, 3]])
    assert not np.array_equal(everything(data, epoch=1)["image"], found["image"])


def test_mixup_must_know_the_classes_and_the_target_must_take_shares():
    """Both mistakes end in a message with the way out."""
    with pytest.raises(DataError, match="must know the number of classes") as caught:
        everything(mixed())
    assert caught.value.code == "E608" and caught.value.line == 3
    with pytest.raises(DataError, match="holds 0 to 3; `mixup` has 3 classes"):
        everything(mixed(classes=3))
    image = Input("image")
    with pytest.raises(DataError, match="holds shares that `mixup` made") as caught:
        feed(mixed(classes=4), [image, Input("label", "i32", ("B",), 4)])
    assert "target label: f32[B, CLASSES]" in caught.value.help
    feed(mixed(classes=4), [image, Input("label", "f32", ("B", 4))])


def test_class_numbers_feed_a_target_of_shares():
    """Training with mixup has shares; the held-out labels of the same target are numbers."""
    data = open_data([stage("mnist", "test")])
    plan = feed(data, [Input("image"), Input("label", "f32", ("B", 10))])
    arrays = data.fetch(np.arange(5))
    assert np.array_equal(plan[1].take(arrays), np.eye(10, dtype=np.float32)[arrays["label"]])
    with pytest.raises(DataError, match="`label` is 9; the model takes 0 to 8"):
        feed(data, [Input("image"), Input("label", "f32", ("B", 9))])


def test_encoded_mask_comes_back():
    """The file's palette indices are the classes; their colours differ."""
    classes = np.arange(64, dtype=np.uint8).reshape(8, 8)
    with Image.open(io.BytesIO(encode_mask(classes))) as image:
        assert np.array_equal(np.asarray(image), classes)
        assert len({image.convert("RGB").getpixel((x, y)) for x in range(8) for y in range(8)}) \
            == 64


def test_emoji_maker(tmp_path):
    """Skin tones of one emoji on both sides would make held-out figures a lie."""
    folder = tmp_path / "package" / "img" / "twitter" / "64"
    folder.mkdir(parents=True)
    rng, index = np.random.default_rng(0), []
    for number in range(30):
        forms = {tone: {"image": f"{number}-{tone}.png"} for tone in ("light", "dark")}
        index.append({"image": f"{number}.png", "short_name": f"e{number}", "category": "x",
                      "skin_variations": forms})
        for name in (f"{number}.png", *(form["image"] for form in forms.values())):
            pixels = rng.integers(0, 256, (64, 64, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
    (tmp_path / "package" / "emoji.json").write_text(json.dumps(index))
    counts = make_emoji.make(tmp_path / "package", tmp_path / "out")
    assert counts == {"train": 81, "valid": 9}
    parts = {part: {path.stem.split("-")[0] for path in (tmp_path / "out" / part).rglob("*.png")}
             for part in counts}
    assert len(parts["valid"]) == 3 and not parts["valid"] & parts["train"]
    data = open_data([stage("pairs", "out/valid/images", "out/valid/masks")], tmp_path)
    assert set(np.unique(everything(data)["mask"])) == {0.0, 1.0}


# --- boxes --------------------------------------------------------------------------------------


@pytest.fixture
def boxed(tmp_path):
    """Pictures of one white rectangle each, the box around it, and a row that holds no box."""
    rng = np.random.default_rng(0)
    images, boxes = np.zeros((40, 1, 24, 20), np.uint8), np.zeros((40, 2, 4), np.float32)
    for i in range(40):
        top, left = rng.integers(0, 17), rng.integers(0, 13)
        bottom, right = top + rng.integers(2, 8), left + rng.integers(2, 8)
        images[i, 0, top:bottom, left:right] = 255
        boxes[i, 0] = left, top, right, bottom
    np.savez(tmp_path / "boxed.npz", x=images, b=boxes, k=np.zeros((40, 2), np.int32))
    return tmp_path


def around(pictures):
    """The box of what is not black in each picture [1, H, W]."""
    found = []
    for picture in pictures:
        rows, columns = np.nonzero(picture[0] > 0)
        found.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                     if len(rows) else [0] * 4)
    return np.array(found, np.float32)


@pytest.mark.parametrize("moves", [
    [stage("pad", 3)], [stage("shift", 6)], [stage("random_crop", [14, 12], padding=2)],
    [stage("center_crop", [14, 12])], [stage("hflip")],
    [stage("hflip"), stage("shift", 5), stage("normalize"), stage("random_crop", 16)]])
def test_boxes_follow_their_picture(boxed, moves):
    """A box that missed one flip would teach nonsense, and no error would ever tell."""
    source = stage("arrays", "boxed.npz", image="x", truth="b", kinds="k")
    found = everything(open_data([source, *moves], boxed, seed=3))
    expected = around(found["image"])
    assert np.array_equal(found["truth"][:, 0], expected)
    assert not found["truth"][:, 1].any(), "no box stays no box"
    assert len(np.unique(expected, axis=0)) > 20
    unmoved = everything(open_data([source, stage("normalize")], boxed))
    assert np.array_equal(unmoved["truth"][:, 0], around(unmoved["image"]))


def test_boxes_follow_a_new_size(boxed):
    """Twice and half as large; a mirrored one too, after it."""
    source = stage("arrays", "boxed.npz", image="x", truth="b")
    plain = everything(open_data([source], boxed))["truth"]
    larger = everything(open_data([source, stage("resize", [48, 10])], boxed))["truth"]
    assert np.array_equal(larger, plain * np.array([0.5, 2, 0.5, 2], np.float32))
    both = [source, stage("resize", [48, 10]), stage("hflip", 1.0)]
    mirrored = everything(open_data(both, boxed))["truth"][:, 0]
    assert np.array_equal(mirrored[:, 0], 10 - larger[:, 0, 2])
    assert np.array_equal(mirrored[:, 2], 10 - larger[:, 0, 0])


def test_names_of_classes(boxed):
    """They come with the source, so that predictions can say them."""
    call = stage("arrays", "boxed.npz", image="x", label="k", names=["cat", "dog"])
    assert open_data([call], boxed).classes == ("cat", "dog")
    for wrong in (["cat", "cat"], [], "cat", [1, 2], [""]):
        with pytest.raises(DataError, match="`names` must be a list of different names"):
            open_data([stage("arrays", "boxed.npz", image="x", names=wrong)], boxed)
