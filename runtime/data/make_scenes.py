"""Makes pictures of several emojis with a box around each, from the npm package
`emoji-datasource-twitter` (art: CC-BY 4.0):

    python -m lamina.runtime.data.make_scenes PACKAGE_FOLDER TARGET_FOLDER

TARGET gets train.npz (4,000 scenes) and valid.npz (500): `image` uint8 [N, 3, 96, 96], `boxes`
float32 [N, 4, 4] (left, top, right, bottom in pixels, around what is opaque) and `labels` int32
[N, 4], -1 where there is no box. One to four objects of the ten CLASSES, of 20 to 48 pixels,
mirrored or not, overlap little; the background is that of make_emoji.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from lamina.runtime.data.make_emoji import OPAQUE, background, lay_over, read_index, read_picture

SEED = 2019
SIDE = 96
MOST = 4
COUNTS = {"train": 4000, "valid": 500}
SIZES = (20, 48)
OVERLAP = 0.15  # of the smaller box, at most
TRIES = 20
CLASSES = ("cat", "dog", "car", "airplane", "pizza", "soccer", "guitar", "house", "evergreen_tree",
           "key")


def read_objects(package: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The pictures of the classes, and those of all other emojis, RGBA [64, 64, 4]."""
    emojis = read_index(package)
    mine = {emoji.family: read_picture(package, emoji) for emoji in emojis
            if emoji.family in CLASSES}
    others = [read_picture(package, emoji) for emoji in emojis if emoji.family not in CLASSES]
    return [mine[name] for name in CLASSES], others


def scene(rng: np.random.Generator, objects: list[np.ndarray], others: list[np.ndarray]
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture [3, SIDE, SIDE], its boxes [MOST, 4] and their classes [MOST]."""
    picture = background(rng, SIDE, others)
    boxes, labels = np.zeros((MOST, 4), np.float32), np.full(MOST, -1, np.int32)
    count = 0
    wanted = int(rng.integers(1, MOST + 1))
    for _ in range(TRIES):
        if count == wanted:
            break
        label, size = int(rng.integers(len(objects))), int(rng.integers(SIZES[0], SIZES[1] + 1))
        emoji = _sized(objects[label], size, bool(rng.integers(2)))
        top, left = (int(place) for place in rng.integers(0, SIDE - size + 1, 2))
        box = _opaque(emoji) + np.array([left, top, left, top], np.float32)
        if any(_share(box, other) > OVERLAP for other in boxes[:count]):
            continue
        window = picture[top : top + size, left : left + size]
        window[...] = lay_over(window, emoji)
        boxes[count], labels[count] = box, label
        count += 1
    return picture.transpose(2, 0, 1), boxes, labels


def make(package: Path, target: Path, counts: dict[str, int] = COUNTS) -> None:
    """Write the scenes of each part."""
    objects, others = read_objects(package)
    target.mkdir(parents=True, exist_ok=True)
    for place, (part, count) in enumerate(counts.items()):
        scenes = [scene(np.random.default_rng((SEED, place, index)), objects, others)
                  for index in range(count)]
        images, boxes, labels = (np.stack(column) for column in zip(*scenes, strict=True))
        np.savez(target / f"{part}.npz", image=images, boxes=boxes, labels=labels)


def _sized(emoji: np.ndarray, size: int, mirrored: bool) -> np.ndarray:
    image = Image.fromarray(emoji[:, ::-1] if mirrored else emoji)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _opaque(emoji: np.ndarray) -> np.ndarray:
    """The box around what is opaque: left, top, right, bottom."""
    rows, columns = np.nonzero(emoji[..., 3] >= OPAQUE)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)


def _share(box: np.ndarray, other: np.ndarray) -> float:
    """How much of the smaller of two boxes lies in both."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    both = float(np.maximum(sides, 0).prod())
    return both / min(float((one[2:] - one[:2]).prod()) for one in (box, other))


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
