"""The detector: its loss against a plain reading of the paper, what it keeps, what predict says."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import lamina
from lamina.api import make_runner
from lamina.cli import main
from lamina.compiler.ops import OPS
from lamina.compiler.options import from_environment
from lamina.runtime.data import make_emoji, make_scenes
from lamina.runtime.data.pictures import encode_boxes

CLASSES, STRIDE, SIDE = 3, 8, 32
TRUTH = np.array([[[2, 3, 19, 24], [10, 9, 15, 14], [0, 0, 0, 0]],
                  [[16, 4, 31, 30], [0, 0, 0, 0], [0, 0, 0, 0]]], np.float32)
KINDS = np.array([[2, 0, -1], [1, -1, -1]], np.int32)


def places():
    """The centres of the map's positions, row by row: [N, 2]."""
    axis = (np.arange(SIDE // STRIDE) + 0.5) * STRIDE
    return np.array([(x, y) for y in axis for x in axis])


def assigned(image):
    """position -> the smallest box whose middle is within 1.5 strides and that holds it."""
    found = {}
    for index, (x, y) in enumerate(places()):
        best = None
        for number, (left, top, right, bottom) in enumerate(TRUTH[image]):
            holds = left < x < right and top < y < bottom
            near = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2)) < 1.5 * STRIDE
            area = (right - left) * (bottom - top)
            if holds and near and (best is None or area < best[0]):
                best = (area, number)
        if best:
            found[index] = best[1]
    return found


def expected(logits, sides, central):
    """Loss and overlap, position by position, as FCOS words them."""
    count = sum(len(assigned(image)) for image in range(2))
    named = centred = around = overlap = 0.0
    for image in range(2):
        mine = assigned(image)
        for index, (x, y) in enumerate(places()):
            for kind in range(CLASSES):
                truth = index in mine and KINDS[image, mine[index]] == kind
                p = 1 / (1 + np.exp(-logits[image, index, kind]))
                named -= 0.25 * (1 - p) ** 2 * np.log(p) if truth else \
                    -0.75 * p**2 * -np.log(1 - p)
            if index not in mine:
                continue
            left, top, right, bottom = TRUTH[image, mine[index]]
            gold = np.array([x - left, y - top, right - x, bottom - y])
            pairs = gold.reshape(2, 2)
            middling = np.sqrt((pairs.min(axis=0) / pairs.max(axis=0)).prod())
            z = central[image, index]
            centred += np.log1p(np.exp(z)) - z * middling
            both = np.minimum(sides[image, index], gold).reshape(2, 2).sum(axis=0).prod()
            areas = [side.reshape(2, 2).sum(axis=0).prod() for side in (sides[image, index], gold)]
            around += 1 - both / (sum(areas) - both)
            overlap += both / (sum(areas) - both)
    return (named + centred + around) / count, overlap / count


def detector():
    return lamina.load("detector").Detector(classes=CLASSES, width=4, depth=1)


@pytest.mark.parametrize("target", ["numpy", "cpu"])
def test_loss_is_that_of_the_paper(target):
    """Written with whole tensors in the language, read here position by position."""
    training = lamina.load("detector").recipe(classes="3", width="4", depth="1")
    rng, weights = np.random.default_rng(0), training.net.init(seed=1)
    image = rng.standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    outputs = training.net.compile(target=target)(weights, image=image)
    loss, overlap = expected(*(outputs[name].astype(np.float64)
                               for name in ("logits", "sides", "central")))
    assert len(assigned(0)) >= 3 and len(assigned(1)) >= 3  # the truth is worth comparing
    runner = make_runner(training.evaluation.graph, replace(from_environment(), target=target))
    runner.set_params(weights)
    found = runner.run({"image": image, "truth": TRUTH, "kinds": KINDS})
    assert abs(float(found["loss"]) - loss) < 1e-4 * loss
    assert abs(float(found["metric:iou"]) - overlap) < 1e-4 * overlap


def test_kept_boxes_are_the_best_of_their_class():
    """Scores of dropped boxes are 0; overlapping boxes of two classes are both kept."""
    net = detector()
    image = np.random.default_rng(3).standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)
    weights = net.init(seed=2)
    weights["side_head.bias"][:] = 2  # 17 pixels to each side, positions are 8 apart
    weights["class_head.bias"] = np.array([6, 5, 4], np.float32)  # everything is an object
    out = {name: value[0] for name, value in net.compile(target="numpy")(weights, image=image
                                                                         ).items()}
    sure = np.sqrt(1 / (1 + np.exp(-out["logits"].max(axis=1))) / (1 + np.exp(-out["central"])))
    apart = out["boxes"] + out["labels"][:, None] * 1000.0
    kept = OPS["non_max_suppression"].numpy(apart[None].astype(np.float32),
                                            sure[None].astype(np.float32), iou=0.6, least=0.05)[0]
    assert 0 < kept.sum() < len(kept)
    assert np.allclose(out["scores"], sure * kept, atol=1e-6)
    assert np.array_equal(out["labels"], out["logits"].argmax(axis=1))
    centres = (out["boxes"][:, :2] + out["sides"][:, :2])
    assert np.allclose(centres, places(), atol=1e-4)


def test_predict_lists_objects(tmp_path, monkeypatch):
    """Boxes, scores and labels by these names are objects; the unsure are only counted."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is an optional extra")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Path("scenes").mkdir()
    for part in ("train", "valid"):
        np.savez(f"scenes/{part}.npz", boxes=TRUTH, labels=KINDS,
                 image=rng.integers(0, 256, (2, 3, SIDE, SIDE), dtype=np.uint8))
    image.new("RGB", (SIDE, SIDE), "red").save("red.png")
    small = ["-o", f"classes={CLASSES}", "-o", "width=4", "-o", "depth=1", "--target", "numpy"]
    done = CliRunner().invoke(main, ["train", "detector", *small, "-o", "epochs=1", "-o", "batch=2",
                                     "--out", "run"])
    assert done.exit_code == 0, done.output
    assert "AP50 " in done.output
    done = CliRunner().invoke(main, ["eval", "detector", "--weights", "run", *small, "--json"])
    assert {"loss", "iou", "AP50", "AP"} <= set(json.loads(done.output))
    call = ["predict", "detector", "red.png", "--weights", "run", *small]
    said = CliRunner().invoke(main, call).output
    assert said.startswith("red.png: 0 objects (") and "more below 30%" in said
    (found,) = json.loads(CliRunner().invoke(main, [*call, "--json"]).output)
    assert CliRunner().invoke(main, [*call, "--out", "found.png"]).exit_code == 0
    with image.open("found.png") as drawn:
        assert drawn.size[0] == drawn.size[1] >= 384  # enlarged, for the names
    two = CliRunner().invoke(main, [*call, "red.png", "--out", "found.png"])
    assert two.exit_code == 1 and "give one picture" in two.output
    assert len(found["objects"]) == int(said.split("(")[1].split()[0])
    scores = [one["score"] for one in found["objects"]]
    assert scores == sorted(scores, reverse=True) and len(found["objects"][0]["box"]) == 4


def test_boxes_are_drawn_where_they_are():
    """In the colour of their class, over what the model saw."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is an optional extra")
    picture = np.zeros((3, 192, 192), np.float32)
    picture[:, 0, 0] = 1  # else all numbers are equal
    drawn = image.open(io.BytesIO(encode_boxes(picture, [(40, 60, 80, 120)], ["cat 90%"], [2])))
    pixels = np.asarray(drawn).astype(int)
    assert pixels.shape == (384, 384, 3)
    coloured = pixels.sum(axis=2) > 100
    coloured[:2, :2] = coloured[107:121] = False  # the bright corner, and the name above the box
    rows, columns = np.nonzero(coloured)
    assert (columns.min(), columns.max(), rows.max()) == (80, 160, 240)
    assert not coloured[130:230, 90:150].any(), "what is inside stays to be seen"


def test_scenes_have_their_objects_where_the_boxes_say(tmp_path):
    """A maker whose boxes were off by some pixels would teach the detector to be."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is an optional extra")
    folder = tmp_path / "img" / "twitter" / "64"
    folder.mkdir(parents=True)
    names = [*make_scenes.CLASSES, "other"]
    for name in names:
        pixels = np.zeros((64, 64, 4), np.uint8)
        pixels[8:56, 16:48] = 255 if name != "other" else (9, 9, 9, 255)
        image.fromarray(pixels).save(folder / f"{name}.png")
    index = [{"image": f"{name}.png", "short_name": name, "category": "x"} for name in names]
    (tmp_path / "emoji.json").write_text(json.dumps(index))
    assert [emoji.family for emoji in make_emoji.read_index(tmp_path)] == sorted(names)
    make_scenes.make(tmp_path, tmp_path / "out", {"train": 5})
    with np.load(tmp_path / "out" / "train.npz") as file:
        scenes = dict(file)
    assert scenes["image"].shape == (5, 3, 96, 96) and scenes["image"].dtype == np.uint8
    for picture, boxes, labels in zip(scenes["image"], scenes["boxes"], scenes["labels"],
                                      strict=True):
        assert (labels >= 0).any()
        for left, top, right, bottom in boxes[labels >= 0].astype(int):
            inner = picture[:, top + 2 : bottom - 2, left + 2 : right - 2]
            assert (inner == 255).mean() > 0.7  # another object may lie over a part
