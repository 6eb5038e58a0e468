"""Makes pictures with masks from the npm package `emoji-datasource-twitter` (art: CC-BY 4.0):

    python -m lamina.runtime.data.make_emoji PACKAGE_FOLDER TARGET_FOLDER

Each of the 64 x 64 emojis is laid over a background of its own; its opaque part is the mask. The
background is a smooth mix of random colours with patches cut from other emojis, so that colour
alone does not tell what is in front. TARGET gets `train/images`, `train/masks`, `valid/images` and
`valid/masks`. A tenth is held out, by the emoji: the skin tones of one are all on one side.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lamina.runtime.data.transforms import shuffled_order

SEED = 2015
SIDE = 64
HELD_OUT = 0.1
OPAQUE = 128  # of 255
PATCHES = 6


@dataclass(frozen=True, slots=True)
class Emoji:
    """A picture file of the package. `family` is shared by the skin tones of one emoji."""

    name: str
    family: str
    category: str


def read_index(package: Path) -> list[Emoji]:
    """The emojis that have a picture here, in the order of their names."""
    found = []
    for entry in json.loads((package / "emoji.json").read_text()):
        forms = [entry, *entry.get("skin_variations", {}).values()]
        found += [Emoji(form["image"], entry["short_name"], entry["category"]) for form in forms
                  if (package / "img" / "twitter" / "64" / form["image"]).exists()]
    return sorted(found, key=lambda emoji: emoji.name)


def read_picture(package: Path, emoji: Emoji) -> np.ndarray:
    """RGBA as uint8 [SIDE, SIDE, 4]."""
    with Image.open(package / "img" / "twitter" / "64" / emoji.name) as image:
        return np.asarray(image.convert("RGBA").resize((SIDE, SIDE)))


def held_out(emojis: list[Emoji]) -> set[str]:
    """The families that are kept for validation."""
    families = sorted({emoji.family for emoji in emojis})
    order = shuffled_order(len(families), SEED, 0)
    return {families[index] for index in order[: round(len(families) * HELD_OUT)]}


def background(rng: np.random.Generator, side: int, others: list[np.ndarray]) -> np.ndarray:
    """Random colours, smoothly mixed, with PATCHES squares cut from the insides of others."""
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    ground = np.array(coarse.resize((side, side), Image.Resampling.BICUBIC))
    for _ in range(PATCHES):
        size = int(rng.integers(8, 20))
        other = others[rng.integers(len(others))]
        top, left = rng.integers(16, 48 - size // 2, 2)
        y, x = rng.integers(0, side - size, 2)
        piece = other[top : top + size, left : left + size]
        opaque = piece[..., 3:] >= OPAQUE
        place = ground[y : y + size, x : x + size][: piece.shape[0], : piece.shape[1]]
        place[...] = np.where(opaque, piece[..., :3], place)
    return ground


def lay_over(ground: np.ndarray, emoji: np.ndarray) -> np.ndarray:
    """An RGBA emoji over a ground of its size, RGB uint8."""
    alpha = emoji[..., 3:].astype(np.float32) / 255
    return np.rint(emoji[..., :3] * alpha + ground * (1 - alpha)).astype(np.uint8)


def make(package: Path, target: Path) -> dict[str, int]:
    """Write pictures and masks; how many there are of each part."""
    emojis = read_index(package)
    held, counts = held_out(emojis), {"train": 0, "valid": 0}
    pictures = [read_picture(package, emoji) for emoji in emojis]
    for part in counts:
        for kind in ("images", "masks"):
            (target / part / kind).mkdir(parents=True, exist_ok=True)
    for index, (emoji, picture) in enumerate(zip(emojis, pictures, strict=True)):
        part = "valid" if emoji.family in held else "train"
        ground = background(np.random.default_rng((SEED, index)), SIDE, pictures)
        mask = np.where(picture[..., 3] >= OPAQUE, 255, 0).astype(np.uint8)
        for kind, array in (("images", lay_over(ground, picture)), ("masks", mask)):
            Image.fromarray(array).save(target / part / kind / emoji.name)
        counts[part] += 1
    return counts


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), Path(sys.argv[2])))
