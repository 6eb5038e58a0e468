"""Where examples come from: the calls that may start a data pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.idx import missing, read_idx
from lamina.runtime.data.made import (
    check_copy_task,
    check_moving_digits,
    copy_task,
    moving_digits,
)
from lamina.runtime.data.npz import read_npz
from lamina.runtime.data.pairs import Pairs, open_pairs
from lamina.runtime.data.pictures import Pictures, open_pictures
from lamina.runtime.data.source import Arrays, Source
from lamina.runtime.data.stage import (
    Stage,
    bad,
    check_channels,
    decoded_size,
    text,
    truth,
    whole,
)
from lamina.runtime.data.texts import CHECKS, conll, tsv
from lamina.runtime.data.vocabulary import PICTURE
from lamina.runtime.data.windows import NEXT, check_series, check_text, long_text, series
from lamina.runtime.errors import did_you_mean, show

DIGITS = tuple("0123456789")
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
           "ankle boot")
_PARTS = ("train", "test")
_TEXTS = ("file", "folder", "images", "labels", "masks")  # arguments that are names of files
_MNIST = Path(__file__).parent / "mnist"


def mnist(part: str) -> Source:
    """The shipped digits, part "train" (8,500) or "test" (1,500): image [1, 28, 28], label."""
    _check_part(part)
    return _labelled(_MNIST / f"{part}-images.idx.gz", _MNIST / f"{part}-labels.idx.gz", DIGITS)


def fashion_mnist(folder: str, part: str = "train", _folder: Path = Path()) -> Source:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017) from the folder that holds its four files."""
    _check_part(part)
    base, prefix = _folder / text("folder", folder), "train" if part == "train" else "t10k"
    if not base.is_dir():
        raise missing(base, "folder")
    images, labels = (
        _either(base / f"{prefix}-{rest}-ubyte") for rest in ("images-idx3", "labels-idx1")
    )
    return _labelled(images, labels, FASHION)


def idx(images: str, labels: str, _folder: Path = Path()) -> Source:
    """Pictures and labels from two IDX files (plain or gzip'd)."""
    return _labelled(_folder / text("images", images), _folder / text("labels", labels), ())


def arrays(file: str, names: list[str] | None = None, _folder: Path = Path(),
           **fields: str) -> Source:
    """Arrays of an .npz file: `arrays("digits.npz", image="x", label="y")`.

    uint8 arrays [N, H, W] or [N, C, H, W] are pictures; other whole numbers become int32 and
    real ones float32. `names` are those of the classes, from 0.
    """
    _check_fields(fields)
    path = _folder / text("file", file)
    read = read_npz(path, {key: text(key, value) for key, value in fields.items()})
    found = {key: _plain(path, key, array) for key, array in read.items()}
    return _in_memory(found, _class_names(names), path)


def images(
    folder: str,
    size: int | list[int] | None = None,
    channels: int = 3,
    skip_corrupt: bool = False,
    _folder: Path = Path(),
) -> Source:
    """Pictures in one sub-folder per class. Needs `lamina[images]`.

    `size`: a number resizes the shorter side to it, a list [height, width] to exactly that.
    """
    exact = decoded_size("size", size)
    check_channels(channels)
    skip = truth("skip_corrupt", skip_corrupt)
    return open_pictures(_folder / text("folder", folder), exact, channels, skip)


def pairs(
    images: str,
    masks: str,
    size: int | list[int] | None = None,
    channels: int = 3,
    classes: int | None = None,
    skip_corrupt: bool = False,
    _folder: Path = Path(),
) -> Source:
    """Pictures of one folder with the masks of another, paired by name. Needs `lamina[images]`.

    A mask is grey, 0 to 1 [1, H, W]; with `classes`, a class number for each pixel [H, W].
    """
    exact = decoded_size("size", size)
    check_channels(channels)
    skip = truth("skip_corrupt", skip_corrupt)
    return open_pairs(_folder / text("images", images), _folder / text("masks", masks), exact,
                      channels, _class_count(classes), skip)


def _class_names(names: object) -> tuple[str, ...]:
    if names is None:
        return ()
    rows = names if isinstance(names, list | tuple) else [None]
    if not rows or not all(isinstance(row, str) and row for row in rows) \
            or len(set(rows)) < len(rows):
        raise bad("names", 'a list of different names, as ["cat", "dog"]', names)
    return tuple(rows)


def _class_count(classes: object) -> int | None:
    return None if classes is None else whole("classes", classes, 2, 256)


SOURCES: dict[str, Callable[..., Source]] = {
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "idx": idx,
    "arrays": arrays,
    "images": images,
    "pairs": pairs,
    "copy_task": copy_task,
    "moving_digits": moving_digits,
    "tsv": tsv,
    "conll": conll,
    "text": long_text,
    "series": series,
}
_FIELDS = {"pairs": ("image", "mask"), "copy_task": ("ids", "copy"),
           "moving_digits": ("clip", "label"), "text": ("text", NEXT),
           "series": ("past", "future")}
# Of other arguments than files.
_MAKINGS = {**CHECKS, "text": check_text, "series": check_series, "copy_task": check_copy_task,
            "moving_digits": check_moving_digits}


def source_fields(name: str, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of what a source gives, by its call's arguments."""
    return tuple(arguments.get("fields", _FIELDS.get(name, ("image", "label"))))


def holds_texts(stages: Sequence[Stage]) -> bool:
    """Whether a pipeline's source is coded by vocabularies."""
    return bool(stages) and stages[0].name in (*CHECKS, "text")


def closed_source(name: str, arguments: Mapping[str, Any], fields: Sequence[str]) -> Source:
    """A source of no example that has the fields and element types, and decodes as the open one."""
    if name == "images":
        size, channels = decoded_size("size", arguments.get("size")), arguments.get("channels", 3)
        return Pictures((), np.zeros(0, np.int32), (), size, channels)
    if name == "pairs":
        size, channels = decoded_size("size", arguments.get("size")), arguments.get("channels", 3)
        return Pairs((), (), size, channels, arguments.get("classes"))
    if name in _MAKINGS:
        codings = arguments.get("fields", {})
        kinds = {key: np.float32 if name == "series" else
                 np.uint8 if codings.get(key) == PICTURE else np.int32 for key in fields}
        return Arrays({key: np.zeros(0, kind) for key, kind in kinds.items()})
    kinds = (np.float32,) * len(fields) if name == "arrays" else (np.uint8, np.int32)
    empty = {key: np.zeros(0, kind) for key, kind in zip(fields, kinds, strict=True)}
    return Arrays(empty, _class_names(arguments.get("names")))


def check_source(name: str, arguments: Mapping[str, Any]) -> None:
    """What can be told about a source's arguments without a file. Raises DataError E608."""
    if name in _MAKINGS:
        rest = {key: value for key, value in arguments.items() if key not in ("file", "_folder")}
        if "file" in arguments:
            text("file", arguments["file"])
        _MAKINGS[name](**rest)
        return
    for key, value in arguments.items():
        if key == "part":
            _check_part(value)
        elif key == "size":
            decoded_size("size", value)
        elif key == "channels":
            check_channels(value)
        elif key == "classes":
            _class_count(value)
        elif key == "names":
            _class_names(value)
        elif key in _TEXTS:
            text(key, value)
    if name == "arrays":
        _check_fields(arguments.get("fields", {}))


def _check_part(part: object) -> None:
    if part not in _PARTS:
        error = bad("part", '"train" or "test"', part)
        close = did_you_mean(part, _PARTS) if isinstance(part, str) else ""
        error.help = close if close.startswith("did") else ""
        raise error


def _check_fields(fields: Mapping[str, object]) -> None:
    if not fields:
        raise DataError("E608", '`arrays` needs at least one field, as in image="x"')
    for key, value in fields.items():
        text(key, value)


def _either(path: Path) -> Path:
    """The gzip'd file where it is there, else the plain one."""
    packed = path.with_name(path.name + ".gz")
    return packed if packed.exists() else path


def _labelled(images_path: Path, labels_path: Path, classes: tuple[str, ...]) -> Source:
    pixels, labels = read_idx(images_path), read_idx(labels_path)
    if pixels.ndim not in (3, 4):
        raise _wrong(images_path, f"pictures are [N, H, W], this is {list(pixels.shape)}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise _wrong(labels_path, f"labels are whole numbers [N], this is {list(labels.shape)}")
    if len(pixels) != len(labels):
        raise _wrong(labels_path, f"{len(labels)} labels for {len(pixels)} pictures")
    fields = {"image": _plain(images_path, "image", pixels),
              "label": labels.astype(np.int32)}
    return _in_memory(fields, classes, images_path)


def _wrong(path: Path, why: str) -> DataError:
    return DataError("E609", f"{show(path)}: {why}")


def _in_memory(fields: dict[str, np.ndarray], classes: tuple[str, ...], path: Path) -> Source:
    lengths = {key: len(array) for key, array in fields.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"`{key}` {length}" for key, length in lengths.items())
        raise _wrong(path, f"its arrays differ in length: {listed}")
    if not next(iter(lengths.values())):
        raise DataError("E605", f"{show(path)} holds no example")
    return Arrays(fields, classes, show(path))


def _plain(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    """As pictures [N, C, H, W], int32 or float32."""
    if array.ndim == 0:
        raise _wrong(path, f"`{key}` is a single number, not an array of examples")
    if array.dtype == np.uint8 and array.ndim in (3, 4):
        return array[:, None] if array.ndim == 3 else array
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.size and not -(2**31) <= int(array.min()) <= int(array.max()) < 2**31:
        raise DataError("E610", f"{show(path)}: `{key}` has numbers that do not fit 32 bits")
    return array.astype(np.int32)
