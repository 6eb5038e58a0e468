"""Makes pictures with captions from the npm package `emoji-datasource-twitter` (art: CC-BY 4.0):

    python -m lamina.runtime.data.make_captions PACKAGE_FOLDER TARGET_FOLDER

TARGET gets `pictures`, each emoji of 64 x 64 pixels on white, and `captions.train.tsv` and
`captions.valid.tsv`: the name of a picture, a tab, the words of its short name. One emoji in twenty
is held out; skin tones are left out, as their names are the same.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from lamina.runtime.data.holdout import held_out, write_parts
from lamina.runtime.data.make_emoji import SIDE, Emoji, lay_over, read_picture

FILES = ("captions.train.tsv", "captions.valid.tsv")
FOLDER = "pictures"


def read_index(package: Path) -> list[Emoji]:
    """The emojis that have a picture here, by the names of their pictures."""
    entries = json.loads((package / "emoji.json").read_text(encoding="utf-8"))
    found = [Emoji(entry["image"], entry["short_name"], entry["category"]) for entry in entries
             if (package / "img" / "twitter" / "64" / entry["image"]).exists()]
    return sorted(found, key=lambda emoji: emoji.name)


def caption(emoji: Emoji) -> str:
    """The words of a short name, parted by blanks."""
    return " ".join(re.findall(r"[^\W_]+|[^\w-]", emoji.family)).lower()


def make(package: Path, target: Path) -> dict[str, int]:
    """Write pictures and both files; how many lines each has."""
    emojis = read_index(package)
    (target / FOLDER).mkdir(parents=True, exist_ok=True)
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    for emoji in emojis:
        picture = Image.fromarray(lay_over(white, read_picture(package, emoji)))
        picture.save(target / FOLDER / emoji.name)
    lines = ((emoji.family, f"{FOLDER}/{emoji.name}\t{caption(emoji)}") for emoji in emojis)
    return write_parts(target, FILES, lines, held_out(emoji.family for emoji in emojis))


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), Path(sys.argv[2])))
