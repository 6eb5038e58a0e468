"""Batches of a dataset, prepared ahead by a background thread, in an order that never varies."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from lamina.runtime.data.dataset import Dataset
from lamina.runtime.data.sequences import cut_batches
from lamina.runtime.data.source import Rows
from lamina.runtime.errors import show

DEPTH = 4  # batches prepared ahead


@dataclass(frozen=True, slots=True)
class Batch:
    """`arrays` by field, a list where lengths differ.

    `position` counts batches in the epoch from 0; `indices` are the examples', int64 [size].
    """

    epoch: int
    position: int
    indices: np.ndarray
    arrays: dict[str, Rows]

    @property
    def size(self) -> int:
        """How many examples."""
        return len(self.indices)


@dataclass(frozen=True, slots=True)
class Batches:
    """A dataset cut into batches of `size` examples.

    `drop_last` leaves out the last short batch (training does; another order leaves out others in
    each epoch), unless it is the only one. Where the data says `bucket`, batches are of like length
    instead, of as many examples as fit, and none is left out.
    """

    dataset: Dataset
    size: int
    drop_last: bool = False

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        if self.dataset.tokens:
            return len(self._cut(0))
        whole, rest = divmod(len(self.dataset), self.size)
        return whole if whole and (self.drop_last or not rest) else whole + 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from position `start`: the same however they are reached."""
        for position, indices in enumerate(self._cut(epoch)[start:], start):
            yield Batch(epoch, position, indices, self.dataset.fetch(indices, epoch))

    def _cut(self, epoch: int) -> list[np.ndarray]:
        """The examples of each batch."""
        data, order = self.dataset, self.dataset.order(epoch)
        if data.tokens:
            return cut_batches(data.source, data.tokens, order, data.seed, epoch, data.shuffled)
        starts = range(0, len(self) * self.size, self.size)
        return [order[start : start + self.size] for start in starts]

    def broken(self, batch: Batch, fields: Iterable[str]) -> str:
        """The first NaN or infinity in a batch's fields, in words; empty where all is finite."""
        for name in fields:
            for index, row in zip(batch.indices, batch.arrays[name], strict=True):
                if not np.isfinite(row).all():
                    word = "NaN" if np.isnan(row).any() else "an infinity"
                    place = self.dataset.source.name(int(index))
                    return f"the data's field `{show(name)}` holds {word} in {place}"
        return ""


@contextmanager
def prefetch(batches: Iterator[Batch], depth: int = DEPTH) -> Iterator[Iterator[Batch]]:
    """The same batches, prepared by a thread that is at most `depth` ahead.

    What the thread raises is raised where the batch would have come; leaving the block ends it.
    """
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(batches, ready, stop), daemon=True)
    thread.start()
    try:
        yield _drain(ready)
    finally:
        stop.set()
        while thread.is_alive():
            try:
                ready.get(timeout=0.01)  # makes room, so that a waiting thread sees `stop`
            except queue.Empty:
                continue
        thread.join()


def _fill(batches: Iterator[Batch], ready: queue.Queue, stop: threading.Event) -> None:
    try:
        for batch in batches:
            if stop.is_set():
                return
            ready.put(batch)
        ready.put(None)
    except BaseException as error:  # the consumer raises it
        ready.put(error)


def _drain(ready: queue.Queue) -> Iterator[Batch]:
    while (item := ready.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item
