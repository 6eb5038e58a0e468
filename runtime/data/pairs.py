"""Pictures with a mask each: two folders whose files bear the same names. Needs Pillow."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.pictures import (
    Memory,
    decode,
    decode_classes,
    list_pictures,
    sound_examples,
)
from lamina.runtime.errors import show

MASK = "mask"  # the field that follows a picture where transforms move its pixels


@dataclass(frozen=True, slots=True)
class Pairs:
    """Picture files with their masks, read when asked for. `skipped` names damaged files.

    Masks are uint8 [1, H, W] (grey, 0 to 255), or with `count` class numbers int32 [H, W].
    """

    files: tuple[Path, ...]
    masks: tuple[Path, ...]
    size: int | tuple[int, int] | None = None
    channels: int = 3
    count: int | None = None
    skipped: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of what `read` gives."""
        return ("image", MASK)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """The picture file of an example."""
        return show(self.files[index])

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray | list[np.ndarray]]:
        """Pictures uint8 [C, H, W] and masks of their size, as lists: sizes may differ."""
        numbers = [int(index) for index in indices]
        return {"image": [self._picture(index) for index in numbers],
                MASK: [self._mask(index) for index in numbers]}

    def column(self, field: str) -> np.ndarray:
        """A pair has no number of its own. Raises DataError E611."""
        raise DataError("E611", f"`{show(field)}` holds pictures, not one whole number each")

    def lengths(self, field: str) -> np.ndarray | None:
        """Pairs are no texts."""
        return None

    def _picture(self, index: int) -> np.ndarray:
        path = self.files[index]
        return self.memory.get(path, lambda: decode(path, self.size, self.channels))

    def _mask(self, index: int) -> np.ndarray:
        path, count = self.masks[index], self.count
        return self.memory.get((path, MASK), lambda: decode(path, self.size, 1) if count is None
                               else decode_classes(path, self.size, count))


def open_pairs(images: Path, masks: Path, size: int | tuple[int, int] | None, channels: int,
               count: int | None, skip_corrupt: bool) -> Pairs:
    """The pictures of `images`, each with the mask in `masks` of the same name before its ending.

    Raises DataError: E601 no such folder, E605 no picture or one without a mask, E612 no Pillow.
    """
    files = list_pictures(images, "folder")
    found = {path.stem: path for path in list_pictures(masks, "folder")}
    lost = [path for path in files if path.stem not in found]
    if lost:
        raise DataError("E605", f"{show(lost[0])} has no mask in {show(masks)} ({len(lost):,} of "
                        f"{len(files):,} pictures have none)",
                        f"name it {show(lost[0].stem)}.png, or remove the picture")
    pairs = Pairs(tuple(files), tuple(found[path.stem] for path in files), size, channels, count)
    return _sound(images, pairs) if skip_corrupt else pairs


def _sound(folder: Path, pairs: Pairs) -> Pairs:
    """Without the pairs of which one file is damaged."""
    good, skipped = sound_examples(pairs, f"every pair in {show(folder)} is damaged")
    return replace(pairs, files=tuple(pairs.files[i] for i in good),
                   masks=tuple(pairs.masks[i] for i in good), skipped=skipped)
