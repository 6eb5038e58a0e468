"""Transforms of pictures: pure functions of a batch [N, C, H, W] and of random draws.

A draw depends on (seed, epoch, place in the pipeline, example) and on nothing else, so that
threads, batches and a resumed run change no bit. Pixels stay uint8 (0 to 255) as long as no
transform needs real numbers; they are then taken as 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.stage import bad, height_width, real, whole
from lamina.runtime.random import philox_uniform

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of RGB in 0 to 1
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_STREAM = 0x6C616D696E61  # keeps these numbers apart from those of dropout with the same seed
_DRAWS = 8  # numbers that one transform may draw for one example
_PLACES = 4096  # transforms in one pipeline


@dataclass(frozen=True, slots=True)
class Draw:
    """Random numbers of some examples at one place of a pipeline."""

    seed: int
    epoch: int
    place: int
    indices: np.ndarray

    @property
    def count(self) -> int:
        """How many examples."""
        return len(self.indices)

    def uniform(self, count: int) -> np.ndarray:
        """Numbers in [0, 1) as float32 [N, count], count <= 8."""
        at = self.indices.astype(np.int64)[:, None] * _DRAWS + np.arange(count)
        return philox_uniform(self.seed ^ _STREAM, self.epoch * _PLACES + self.place, at)

    def whole(self, count: int, ends: int | np.ndarray) -> np.ndarray:
        """Whole numbers in [0, ends) as int64 [N, count]."""
        return (self.uniform(count).astype(np.float64) * ends).astype(np.int64)

    def only(self, i: int) -> Draw:
        """The draws of the i-th example alone."""
        return replace(self, indices=self.indices[i : i + 1])


Transform = Callable[[np.ndarray, Draw], np.ndarray]
Size = tuple[int, ...]  # height and width


@dataclass(frozen=True, slots=True)
class Frame:
    """Where pixels of pictures go: x becomes `scale` x + `offset`, float32 [N, 2] by (y, x).

    `size` is that of the pictures then.
    """

    scale: np.ndarray
    offset: np.ndarray
    size: Size

    def place(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [N, M, 4] (left, top, right, bottom), what is outside cut off.

        A box of which nothing is left has no area: four zeros.
        """
        scale, offset = self.scale[:, None, ::-1], self.offset[:, None, ::-1]
        corners = [boxes[..., :2] * scale + offset, boxes[..., 2:] * scale + offset]
        most = np.array(self.size[::-1], np.float32)
        low, high = (np.clip(order(*corners), 0, most) for order in (np.minimum, np.maximum))
        seen = (low < high).all(axis=-1, keepdims=True)
        return np.where(seen, np.concatenate([low, high], axis=-1), 0).astype(np.float32)


def _frame(size: Size, offset: np.ndarray, scale: np.ndarray | tuple = (1, 1)) -> Frame:
    offset = np.asarray(offset, np.float32)
    return Frame(np.broadcast_to(np.float32(scale), offset.shape), offset, tuple(size))


@dataclass(frozen=True, slots=True)
class Moving:
    """A transform that moves pixels: masks go through it as well, and boxes by its `frame`."""

    apply: Transform
    frame: Callable[[Size, Draw], Frame]  # of pictures of this size

    def __call__(self, images: np.ndarray, draw: Draw) -> np.ndarray:
        """The pictures moved."""
        return self.apply(images, draw)


def shuffled_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(length), a function of (length, seed, epoch)."""
    index = np.arange(length)
    high, low = (philox_uniform(seed ^ _STREAM, -1 - epoch, index + k * length) for k in (0, 1))
    return np.argsort(high.astype(np.float64) + low.astype(np.float64) * 2.0**-24, kind="stable")


def as_float(images: np.ndarray) -> np.ndarray:
    """float32; uint8 is scaled from 0..255 to 0..1."""
    if images.dtype == np.uint8:
        return np.multiply(images, np.float32(1 / 255), dtype=np.float32)
    return images.astype(np.float32, copy=False)


def pad(pixels: int) -> Moving:
    """Add `pixels` zeros on each side."""
    n = whole("pixels", pixels, 0, 4096)
    return Moving(lambda images, draw: _padded("pad", images, n),
                  lambda size, draw: _frame(_wider(size, n), np.full((draw.count, 2), n)))


def shift(pixels: int) -> Moving:
    """Move the picture by up to `pixels` in both directions, at random; zeros come in."""
    n = whole("pixels", pixels, 0, 4096)

    def corners(draw: Draw) -> np.ndarray:
        return draw.whole(2, 2 * n + 1)

    return Moving(
        lambda images, draw: _windows(_padded("shift", images, n), corners(draw),
                                      images.shape[2:]),
        lambda size, draw: _frame(size, n - corners(draw)))


def random_crop(size: int | list[int], padding: int = 0) -> Moving:
    """A window of `size` at a random place, after adding `padding` zeros on each side."""
    target, n = height_width("size", size), whole("padding", padding, 0, 4096)

    def corners(size: Size, draw: Draw) -> np.ndarray:
        room = _room("random_crop", _wider(size, n), target)
        return draw.whole(2, np.array(room) + 1)

    return Moving(
        lambda images, draw: _windows(_padded("random_crop", images, n),
                                      corners(images.shape[2:], draw), target),
        lambda size, draw: _frame(target, n - corners(size, draw)))


def center_crop(size: int | list[int]) -> Moving:
    """The window of `size` in the middle."""
    target = height_width("size", size)

    def corner(size: Size) -> list[int]:
        return [room // 2 for room in _room("center_crop", size, target)]

    def apply(images: np.ndarray, draw: Draw) -> np.ndarray:
        _require_pictures("center_crop", images)
        top, left = corner(images.shape[2:])
        return images[:, :, top : top + target[0], left : left + target[1]]

    return Moving(apply, lambda size, draw: _frame(
        target, np.tile(-np.array(corner(size)), (draw.count, 1))))


def hflip(probability: float = 0.5) -> Moving:
    """Mirror left and right, with this probability."""
    share = real("probability", probability, 0, 1)

    def mirrored(draw: Draw) -> np.ndarray:
        return draw.uniform(1)[:, 0] < share

    def apply(images: np.ndarray, draw: Draw) -> np.ndarray:
        _require_pictures("hflip", images)
        chosen = mirrored(draw)
        out = images.copy()
        out[chosen] = images[chosen][..., ::-1]
        return out

    def frame(size: Size, draw: Draw) -> Frame:
        chosen = mirrored(draw)[:, None]
        return _frame(size, np.where(chosen, [0, size[1]], 0), np.where(chosen, [1, -1], 1))

    return Moving(apply, frame)


def scale(factor: float) -> Transform:
    """Multiply by `factor` (pixels as 0 to 1)."""
    by = np.float32(real("factor", factor))
    return lambda images, draw: as_float(images) * by


def normalize(mean: float | list[float] | str = 0.0, std: float | list[float] = 1.0) -> Transform:
    """(x - mean) / std, per channel where lists are given; "imagenet" names its own numbers."""
    if mean == "imagenet":
        mean, std = (list(row) for row in IMAGENET)
    means, stds = _numbers("mean", mean), _numbers("std", std, least=1e-12)

    def apply(images: np.ndarray, draw: Draw) -> np.ndarray:
        channels = images.shape[1] if images.ndim > 1 else 1
        for name, values in (("mean", means), ("std", stds)):
            if len(values) not in (1, channels):
                raise DataError(
                    "E608", f"`normalize` has {len(values)} numbers in `{name}`; "
                    f"the pictures have {channels} channels",
                )
        unit = 255.0 if images.dtype == np.uint8 else 1.0
        shape = (-1, *[1] * (images.ndim - 2))
        factor = (1 / (unit * stds)).astype(np.float32).reshape(shape)
        offset = (means / stds).astype(np.float32).reshape(shape)
        out = np.multiply(images, factor, dtype=np.float32)
        out -= offset
        return out

    return apply


def resize(size: int | list[int]) -> Moving:
    """Resize to `size` with a triangle filter, widened when shrinking so that nothing aliases.

    Masks of classes take the nearest pixel.
    """
    target = height_width("size", size)

    def apply(images: np.ndarray, draw: Draw) -> np.ndarray:
        _require_pictures("resize", images)
        if images.dtype == np.int32:  # classes: between two of them there is nothing
            return images[:, :, _nearest(images.shape[2], target[0])[:, None],
                          _nearest(images.shape[3], target[1])]
        out = images.astype(np.float32)
        out = _resampled(out, target[0]).swapaxes(2, 3)
        out = np.ascontiguousarray(_resampled(out, target[1]).swapaxes(2, 3))
        if images.dtype != np.uint8:
            return out
        return np.clip(np.rint(out), 0, 255).astype(np.uint8)

    return Moving(apply, lambda size, draw: _frame(
        target, np.zeros((draw.count, 2)), np.array(target) / size))


def jitter(brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0) -> Transform:
    """Change the colours at random, as a camera or a lamp would; pixels stay within 0 to 1.

    Each amount a draws a factor from 1 - a to 1 + a: `brightness` multiplies the pixels,
    `contrast` their distance from the picture's mean grey, `saturation` that from each pixel's
    grey (0.299 R + 0.587 G + 0.114 B, ITU-R BT.601), in this order.
    """
    amounts = [real(name, value, 0, 1) for name, value in (
        ("brightness", brightness), ("contrast", contrast), ("saturation", saturation))]

    def apply(images: np.ndarray, draw: Draw) -> np.ndarray:
        _require_pictures("jitter", images)
        spread = (2 * draw.uniform(3) - 1) * np.array(amounts, np.float32)
        factors = (1 + spread)[:, :, None, None, None]
        pixels = as_float(images)
        if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 1:
            raise DataError("E609", "`jitter` works on pixels from 0 to 1; these are "
                            f"{pixels.min():.3g} to {pixels.max():.3g}",
                            "put it before `normalize`")
        out = pixels * factors[:, 0]
        mean = _grey(out).mean(axis=(1, 2, 3), keepdims=True)
        out = np.clip(mean + (out - mean) * factors[:, 1], 0, 1)
        grey = _grey(out)
        return np.clip(grey + (out - grey) * factors[:, 2], 0, 1)

    return apply


def _grey(images: np.ndarray) -> np.ndarray:
    """Luma [N, 1, H, W] of RGB pictures; the mean of the channels of others."""
    if images.shape[1] != 3:
        return images.mean(axis=1, keepdims=True)
    return np.einsum("nchw,c->nhw", images, LUMA)[:, None]


TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "pad": pad,
    "shift": shift,
    "random_crop": random_crop,
    "center_crop": center_crop,
    "hflip": hflip,
    "scale": scale,
    "normalize": normalize,
    "resize": resize,
    "jitter": jitter,
}


def _numbers(name: str, value: object, least: float = -1e30) -> np.ndarray:
    rows = value if isinstance(value, list | tuple) else [value]
    if not rows:
        raise bad(name, "a number or a list of numbers", value)
    return np.array([real(name, row, least) for row in rows], np.float64)


def _require_pictures(name: str, images: np.ndarray) -> None:
    if images.ndim != 4:
        raise DataError(
            "E609", f"`{name}` works on pictures [C, H, W]; these examples have shape "
            f"{list(images.shape[1:])}",
        )


def _padded(name: str, images: np.ndarray, n: int) -> np.ndarray:
    _require_pictures(name, images)
    if n == 0:
        return images
    count, channels, height, width = images.shape
    out = np.zeros((count, channels, height + 2 * n, width + 2 * n), images.dtype)
    out[:, :, n:-n, n:-n] = images
    return out


def _wider(size: Size, n: int) -> Size:
    return size[0] + 2 * n, size[1] + 2 * n


def _room(name: str, size: Size, target: tuple[int, int]) -> tuple[int, int]:
    """How far a window of size `target` can move down and right; E609 if it does not fit."""
    room = size[0] - target[0], size[1] - target[1]
    if min(room) < 0:
        raise DataError(
            "E609",
            f"`{name}` wants {target[0]} x {target[1]} pixels of a picture that has "
            f"{size[0]} x {size[1]}",
            "resize to a larger size first, or crop less",
        )
    return room


def _windows(images: np.ndarray, corners: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """From each picture the window of `size` whose upper left corner is given [N, 2]."""
    views = np.lib.stride_tricks.sliding_window_view(images, tuple(size), axis=(2, 3))
    return views[np.arange(len(images)), :, corners[:, 0], corners[:, 1]]


def _nearest(length: int, size: int) -> np.ndarray:
    """The pixel of an axis of `length` that is nearest to each of `size`."""
    return ((np.arange(size) + 0.5) * length / size).astype(np.int64)


def _resampled(images: np.ndarray, size: int) -> np.ndarray:
    """Axis 2 resampled to `size`, tap by tap: the same bits however many threads there are."""
    length = images.shape[2]
    ratio = length / size
    reach = max(ratio, 1.0)
    centers = (np.arange(size) + 0.5) * ratio - 0.5
    first = np.ceil(centers - reach).astype(np.int64)
    taps = math.floor(2 * reach) + 1
    at = first[:, None] + np.arange(taps)
    weights = np.maximum(0.0, 1.0 - np.abs(at - centers[:, None]) / reach)
    weights[(at < 0) | (at >= length)] = 0.0
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    at = np.clip(at, 0, length - 1)
    out = images[:, :, at[:, 0]] * weights[:, 0, None]
    for tap in range(1, taps):
        out += images[:, :, at[:, tap]] * weights[:, tap, None]
    return out
