"""Examples that are computed and lie in no file: tasks that ask one thing of a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.idx import read_idx
from lamina.runtime.data.source import Arrays, Rows, Source
from lamina.runtime.data.stage import bad, whole
from lamina.runtime.random import philox_uniform

DIGITS = Path(__file__).parent / "mnist"
PARTS = ("train", "test")
WAYS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
FRAMES, SIDE = 10, 40  # of a film: its pictures, and their height and width in pixels


def copy_task(lag: int = 30, symbols: int = 8, length: int = 1, examples: int = 10_000,
              seed: int = 0) -> Source:
    """Sequences whose first symbols must be said again `lag` steps after they were seen.

    `ids`, int32 [length + lag]: `length` symbols from 1 to `symbols`, blanks (0), at step `lag` the
    sign to speak (`symbols` + 1), after it blanks. `copy`, int32 [length]: the symbols from 0, one
    for each of the last steps. The same for the same seed. After Hochreiter and Schmidhuber (1997)
    and Arjovsky, Shah and Bengio (2016). Raises DataError E608.
    """
    check_copy_task(lag, symbols, length, examples, seed)
    uniform = philox_uniform(seed, 0, np.arange(examples * length)).reshape(examples, length)
    copy = (uniform * np.float32(symbols)).astype(np.int32)
    ids = np.zeros((examples, length + lag), np.int32)
    ids[:, :length] = copy + 1
    ids[:, lag] = symbols + 1
    return Arrays({"ids": ids, "copy": copy}, place="copy_task")


def check_copy_task(lag: int = 30, symbols: int = 8, length: int = 1, examples: int = 10_000,
                    seed: int = 0) -> None:
    """Raise DataError E608 for arguments that make no task."""
    whole("lag", lag, 1, 100_000)
    whole("symbols", symbols, 2, 10_000)
    whole("length", length, 1, 10_000)
    whole("examples", examples, 1, 1_000_000)
    whole("seed", seed, 0, 2**31 - 1)
    if lag < length:
        raise DataError("E608", f"`lag` is {lag}, less than the {length} symbols to copy",
                        "let it be at least `length`: a symbol is said when all have been seen")


@dataclass(frozen=True, slots=True)
class Films:
    """Digits that move over a dark field; a film is made when it is read."""

    digits: np.ndarray
    count: int
    seed: int
    fields: tuple[str, ...] = ("clip", "label")
    classes: tuple[str, ...] = WAYS
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """Where an example lies."""
        return f"film {index} of moving_digits"

    def read(self, indices: np.ndarray) -> dict[str, Rows]:
        """clip, float32 [N, 10, 1, 40, 40], 0 to 1, and the way that it goes, int32 [N]."""
        draws = self._draws(indices)
        digit = (draws[:, 0] * np.float32(len(self.digits))).astype(np.int64)
        way = self._ways(draws)
        room = SIDE - self.digits.shape[-1]
        clips = np.zeros((len(indices), FRAMES, 1, SIDE, SIDE), np.float32)
        for clip, picture, angle, draw in zip(clips, self.digits[digit], way, draws, strict=True):
            speed = 0.6 + 0.7 * draw[2]
            step = speed * np.array([np.sin(angle * np.pi / 4), np.cos(angle * np.pi / 4)])
            whole_way = step * (FRAMES - 1)
            least, most = np.maximum(0, -whole_way), room - np.maximum(0, whole_way)
            start = least + draw[3:5] * (most - least)
            for frame, place in zip(clip[:, 0], start + step * np.arange(FRAMES)[:, None],
                                    strict=True):
                top, left = np.rint(place).astype(int)
                frame[top : top + len(picture), left : left + len(picture)] = picture
        return {"clip": clips, "label": way}

    def column(self, field: str) -> np.ndarray:
        """The ways of all films."""
        if field != "label":
            raise KeyError(field)
        return self._ways(self._draws(np.arange(self.count)))

    def lengths(self, field: str) -> np.ndarray | None:
        """Nothing: all films are of one length."""
        return None

    def _draws(self, indices: np.ndarray) -> np.ndarray:
        places = np.asarray(indices)[:, None] * 5 + np.arange(5)
        return philox_uniform(self.seed, 0, places.ravel()).reshape(-1, 5)

    def _ways(self, draws: np.ndarray) -> np.ndarray:
        return (draws[:, 1] * np.float32(len(WAYS))).astype(np.int32)


def moving_digits(part: str = "train", examples: int = 5_000, seed: int = 0) -> Source:
    """Short films of the shipped digits (part "train" or "test"), each going one of eight ways.

    No single picture tells the way. `clip`, float32 [10, 1, 40, 40], and `label`, the way. The same
    for the same seed. After Srivastava, Mansimov and Salakhutdinov (2015). Raises DataError E608.
    """
    check_moving_digits(part, examples, seed)
    digits = read_idx(DIGITS / f"{part}-images.idx.gz").astype(np.float32) / np.float32(255)
    return Films(digits, examples, seed)


def check_moving_digits(part: str = "train", examples: int = 5_000, seed: int = 0) -> None:
    """Raise DataError E608 for arguments that make no films."""
    if part not in PARTS:
        raise bad("part", '"train" or "test"', part)
    whole("examples", examples, 1, 1_000_000)
    whole("seed", seed, 0, 2**31 - 1)
