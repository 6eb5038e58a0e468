"""Average precision of a detector over whole data, as COCO defines it (Lin and others, 2014).

Of a class, all boxes of all pictures are taken from the surest down. One is right if it overlaps a
true box of its class and picture that no surer one has taken. Average precision is the mean, over
101 recalls from 0 to 1, of the best precision at that recall or a higher one; its mean over the
classes that occur is the figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the overlap: intersection over union
OUTPUTS = ("boxes", "scores", "labels")  # of a detector: [B, N, 4], [B, N] and [B, N]
MOST = 100  # boxes of a picture, the surest
_RECALLS = np.linspace(0, 1, 101)


@dataclass(slots=True)
class Findings:
    """What was found in pictures and what is there, class by class."""

    scores: dict[int, list[float]] = field(default_factory=dict)
    right: dict[int, list[np.ndarray]] = field(default_factory=dict)  # bool [10], by threshold
    true: dict[int, int] = field(default_factory=dict)

    def add_batch(self, outputs: Mapping[str, np.ndarray], truth: np.ndarray, kinds: np.ndarray
                  ) -> None:
        """Count the pictures of a batch: a model's outputs "boxes", "scores" and "labels"."""
        for row in zip(*(outputs[name] for name in OUTPUTS), truth, kinds, strict=True):
            self.add(*row)

    def add(self, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, truth: np.ndarray,
            kinds: np.ndarray) -> None:
        """Count a picture: found boxes [N, 4] with scores and labels [N], true ones [M, 4] and [M].

        A box is left, top, right, bottom. A score of 0 is no box, nor is a kind below 0.
        """
        order = [i for i in np.argsort(-scores, kind="stable")[:MOST] if scores[i] > 0]
        for kind in {*labels[order].tolist(), *kinds[kinds >= 0].tolist()}:
            mine = [i for i in order if labels[i] == kind]
            wanted = truth[kinds == kind]
            self.true[kind] = self.true.get(kind, 0) + len(wanted)
            self.scores.setdefault(kind, []).extend(scores[mine].tolist())
            self.right.setdefault(kind, []).extend(_right(overlaps(boxes[mine], wanted)))

    def averages(self) -> dict[str, float]:
        """"AP50" at an overlap of half, and "AP", the mean over overlaps of 0.5 to 0.95."""
        kinds = [kind for kind, count in self.true.items() if count]
        if not kinds:
            return {}
        found = np.mean([self._precision(kind) for kind in kinds], axis=0)
        return {"AP50": float(found[0]), "AP": float(found.mean())}

    def _precision(self, kind: int) -> np.ndarray:
        """Average precision of a class at each threshold."""
        if not self.scores[kind]:
            return np.zeros(len(THRESHOLDS))
        order = np.argsort(-np.array(self.scores[kind]), kind="stable")
        right = np.array(self.right[kind])[order].cumsum(axis=0)
        recall = right / self.true[kind]
        precision = right / np.arange(1, len(right) + 1)[:, None]
        best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        return np.array([_at_recalls(recall[:, i], best[:, i]) for i in range(len(THRESHOLDS))])


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair, [N, M]; 0 where both are empty."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    both = np.maximum(high - low, 0).prod(axis=2, dtype=np.float64)
    areas = [np.maximum(one[:, 2:] - one[:, :2], 0).prod(axis=1, dtype=np.float64)
             for one in (boxes, others)]
    union = areas[0][:, None] + areas[1][None] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def _right(shares: np.ndarray) -> list[np.ndarray]:
    """Whether each box, the surest first, finds a free true one, at each threshold."""
    free = np.ones((len(THRESHOLDS), shares.shape[1]), bool)
    rows = []
    for row in shares:
        open_to = np.where(free & (row >= THRESHOLDS[:, None]), row, -1.0)
        found = open_to.max(axis=1, initial=-1.0) >= 0
        for level in np.flatnonzero(found):
            free[level, open_to[level].argmax()] = False
        rows.append(found)
    return rows


def _at_recalls(recall: np.ndarray, best: np.ndarray) -> float:
    place = np.searchsorted(recall, _RECALLS, side="left")
    return float(np.append(best, 0.0)[place].mean())
