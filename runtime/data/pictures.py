"""Folders of pictures: one sub-folder per class. Needs the extra `lamina[images]` (Pillow)."""

from __future__ import annotations

import colorsys
import io
import math
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.idx import missing
from lamina.runtime.errors import reason, show

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM", "TIFF")  # none that runs a program
MAX_PIXELS = 64_000_000
KEEP_BYTES = 1 << 30  # decoded pictures kept in memory
_LEGIBLE = 384  # the least width or height of a picture with names drawn over it


@dataclass(slots=True)
class Memory:
    """Decoded pictures kept up to a budget of bytes; safe for threads."""

    budget: int = KEEP_BYTES
    held: dict[Hashable, np.ndarray] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, key: Hashable, picture: np.ndarray) -> None:
        """Keep a picture if the budget allows."""
        with self.lock:
            if key not in self.held and picture.nbytes <= self.budget:
                self.held[key] = picture
                self.budget -= picture.nbytes

    def get(self, key: Hashable, decoded: Callable[[], np.ndarray]) -> np.ndarray:
        """The picture kept under a key, such as its file, decoded where it is not held."""
        picture = self.held.get(key)
        if picture is None:
            picture = decoded()
            self.keep(key, picture)
        return picture


@dataclass(frozen=True, slots=True)
class Pictures:
    """Picture files with their classes, read when asked for. `skipped` names damaged files."""

    files: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    size: int | tuple[int, int] | None
    channels: int = 3
    skipped: tuple[str, ...] = ()
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of what `read` gives."""
        return ("image", "label")

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """The file of an example."""
        return show(self.files[index])

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray | list[np.ndarray]]:
        """Pictures [C, H, W] as uint8 (a list: sizes may differ) and labels int32 [N]."""
        return {"image": [self._picture(int(i)) for i in indices], "label": self.labels[indices]}

    def column(self, field: str) -> np.ndarray:
        """The labels of all pictures, int32 [length]; pictures themselves are no column."""
        if field != "label":
            raise DataError("E611", "pictures cannot feed an input of whole numbers")
        return self.labels

    def lengths(self, field: str) -> np.ndarray | None:
        """Pictures are no texts."""
        return None

    def _picture(self, index: int) -> np.ndarray:
        path = self.files[index]
        return self.memory.get(path, lambda: decode(path, self.size, self.channels))


def open_pictures(
    folder: Path, size: int | tuple[int, int] | None, channels: int, skip_corrupt: bool
) -> Pictures:
    """The pictures below `folder`, classes and files in the order of their names.

    `skip_corrupt` decodes every picture now and leaves damaged ones out. Raises DataError: E601 no
    such folder, E602 unreadable, E605 no class, an empty class or nothing left, E612 no Pillow.
    """
    _pillow()
    classes = _classes(folder)
    found = [(path, label) for label, name in enumerate(classes)
             for path in list_pictures(folder / name)]
    pictures = Pictures(
        tuple(path for path, _ in found),
        np.array([label for _, label in found], np.int32), classes, size, channels,
    )
    return _sound(folder, pictures) if skip_corrupt else pictures


def decode(path: Path, size: int | tuple[int, int] | None, channels: int) -> np.ndarray:
    """A picture as uint8 [C, H, W], C = 3 (RGB) or 1 (grey).

    `size`: a number resizes the shorter side to it, a pair (height, width) resizes to exactly
    that. Raises DataError E602 (unreadable), E604 (damaged, too large, 16 bits per channel).
    """

    def convert(image, filters) -> np.ndarray:
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")
        return np.asarray(_resized(image.convert("RGB" if channels == 3 else "L"), size,
                                   filters.BILINEAR))

    array = _opened(path, convert)
    planes = array[None] if channels == 1 else array.transpose(2, 0, 1)
    return np.ascontiguousarray(planes)


def decode_classes(path: Path, size: int | tuple[int, int] | None, count: int) -> np.ndarray:
    """A mask as class numbers int32 [H, W]: its palette's indices, or its grey values.

    Raises DataError as `decode`, and E610 for a number that is not below `count`.
    """

    def convert(image, filters) -> np.ndarray:
        if image.mode not in ("P", "L", "1"):
            raise ValueError(f"a mask of classes has one number for each pixel, not {image.mode}")
        if image.mode == "1":
            return np.asarray(_resized(image, size, filters.NEAREST)).astype(np.int32)
        return np.asarray(_resized(image, size, filters.NEAREST), np.int32)

    found = _opened(path, convert)
    if found.max(initial=0) >= count:
        raise DataError("E610", f"{show(path)} holds class {found.max()}; `classes={count}` "
                        f"has 0 to {count - 1}", "give more classes, or correct the mask")
    return found


def encode_mask(classes: np.ndarray) -> bytes:
    """A PNG with class numbers uint8 [H, W] as indices of a palette of distinct colours.

    0 is black, 1 white. Raises DataError E612.
    """
    image = _pillow().fromarray(classes)
    image.putpalette([value for index in range(256) for value in _colour(index)])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def encode_boxes(picture: np.ndarray, boxes: Sequence[Sequence[float]], names: Sequence[str],
                 colours: Sequence[int]) -> bytes:
    """A PNG of a picture [C, H, W], its numbers stretched to 0..255, with named boxes over it.

    A box is left, top, right, bottom in pixels. Small pictures are enlarged. Raises DataError E612.
    """
    low, high = float(picture.min()), float(picture.max())
    pixels = np.rint((picture - low) * (255 / ((high - low) or 1.0))).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0)
    factor = max(1, math.ceil(_LEGIBLE / max(pixels.shape[:2])))
    image = _pillow().fromarray(pixels.repeat(factor, axis=0).repeat(factor, axis=1))

    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    for box, name, colour in zip(boxes, names, colours, strict=True):
        left, top, right, bottom = (factor * side for side in box)
        draw.rectangle((left, top, max(right, left), max(bottom, top)), None, _colour(colour), 2)
        width = draw.textlength(name)
        at = min(max(0.0, left), image.width - width - 3), max(0.0, top - 13)
        draw.rectangle((*at, at[0] + width + 3, at[1] + 12), _colour(colour))
        draw.text((at[0] + 2, at[1]), name, (0, 0, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _colour(index: int) -> tuple[int, int, int]:
    """A colour for a class; those of neighbouring numbers are far apart in hue."""
    if index < 2:
        return (255 * index,) * 3
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.65, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _opened(path: Path, convert: Callable) -> np.ndarray:
    """What `convert` makes of an open picture. Raises DataError E602, E604."""
    image_module = _pillow()
    try:
        with open(path, "rb") as file, image_module.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            if image.mode[0] in "IF":
                raise ValueError("more than 8 bits per channel are not supported")
            return convert(image, image_module.Resampling)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise DataError("E602", f"cannot read {show(path)}: {reason(error)}") from None
    except Exception as error:  # Pillow's decoders raise whatever comes to hand
        raise DataError(
            "E604",
            f"{show(path)} is not a sound picture ({_why(error)})",
            "remove or replace the file; with `skip_corrupt=true` such files are left out",
        ) from None


def _resized(image, size: int | tuple[int, int] | None, filter: int):
    if size is None:
        return image
    return image.resize(_target(size, image.width, image.height), filter)


def _why(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":  # its text shows a Python object
        return "no known picture format"
    return show(error) or type(error).__name__


def _target(size: int | tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """Width and height after resizing."""
    if isinstance(size, tuple):
        return size[1], size[0]
    short = min(width, height)
    wide, high = round(width * size / short), round(height * size / short)
    if wide * high > MAX_PIXELS:
        raise ValueError(f"resized to {wide} x {high} pixels it is too large")
    return wide, high


def _sound(folder: Path, pictures: Pictures) -> Pictures:
    """Without the damaged pictures."""
    good, skipped = sound_examples(pictures, f"every picture in {show(folder)} is damaged")
    return replace(pictures, files=tuple(pictures.files[i] for i in good),
                   labels=pictures.labels[good], skipped=skipped)


class Readable(Protocol):
    """Examples in files that may be damaged."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The file of an example."""
        ...

    def read(self, indices: np.ndarray) -> Any:
        """Examples by field. Raises DataError E604 for a damaged file."""
        ...


def sound_examples(source: Readable, none: str) -> tuple[list[int], tuple[str, ...]]:
    """The examples that can be read, and the names of the others; reads all of them.

    Raises DataError E605 with the message `none` where no example is sound.
    """
    good, skipped = [], []
    for index in range(len(source)):
        try:
            source.read(np.array([index]))
            good.append(index)
        except DataError as error:
            if error.code != "E604":
                raise
            skipped.append(source.name(index))
    if not good:
        raise DataError("E605", none)
    return good, tuple(skipped)


def _classes(folder: Path) -> tuple[str, ...]:
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        raise missing(folder, "folder") from None
    except OSError as error:
        raise DataError("E602", f"cannot read {show(folder)}: {reason(error)}") from None
    if not names:
        raise DataError(
            "E605", f"{show(folder)} has no sub-folder",
            "put the pictures of each class into a sub-folder that bears the class's name",
        )
    return tuple(sorted(names))


def list_pictures(folder: Path, what: str = "class folder") -> list[Path]:
    """The picture files of a folder by name. Raises DataError E601, E602, E605 (none), E612."""
    _pillow()
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        raise missing(folder, "folder") from None
    except OSError as error:
        raise DataError("E602", f"cannot read {show(folder)}: {reason(error)}") from None
    files = [folder / n for n in names if n.lower().endswith(ENDINGS) and not n.startswith(".")]
    if not files:
        out = "; remove the folder if there is no such class" * (what == "class folder")
        raise DataError("E605", f"the {what} {show(folder)} holds no picture",
                        f"pictures end in {', '.join(ENDINGS)}{out}")
    return files


def _pillow():
    try:
        from PIL import Image
    except ImportError:
        raise DataError(
            "E612", "reading pictures needs Pillow", 'install it with: pip install "lamina[images]"'
        ) from None
    return Image
