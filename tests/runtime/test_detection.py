"""Average precision: against COCO's own evaluator, and cases that one can do in the head."""

import numpy as np
import pytest

from lamina.runtime.detection import MOST, Findings, overlaps

BOX = np.array([10, 10, 30, 30], np.float32)


def found(*pictures):
    """The averages of (boxes, scores, labels, true boxes, kinds) pictures."""
    findings = Findings()
    for boxes, scores, labels, truth, kinds in pictures:
        findings.add(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32),
                     np.array(labels, np.int32), np.array(truth, np.float32).reshape(-1, 4),
                     np.array(kinds, np.int32))
    return findings.averages()


def pictures(seed):
    """Forty pictures of up to five objects: near boxes, wrong kinds, boxes of nothing."""
    rng = np.random.default_rng(seed)
    for _ in range(40):
        count = rng.integers(0, 6)
        corner = rng.uniform(0, 60, (count, 2))
        truth = np.concatenate([corner, corner + rng.uniform(5, 40, (count, 2))], 1)
        kinds = rng.integers(0, 4, count)
        pick = rng.integers(0, max(count, 1), count * 2) if count else np.zeros(0, int)
        near = truth[pick] + rng.normal(0, 3, (len(pick), 4))
        guess = np.where(rng.random(len(pick)) < 0.8, kinds[pick], rng.integers(0, 5, len(pick)))
        other = rng.uniform(0, 60, (3, 2))
        boxes = np.concatenate([near, np.concatenate([other, other + 20], 1)])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = np.concatenate([guess, rng.integers(0, 4, 3)])
        yield boxes, rng.random(len(boxes)), labels, truth, kinds


# What pycocotools 2.0 says of the same pictures (COCOeval, "bbox": stats[1] and stats[0]).
@pytest.mark.parametrize("seed, half, mean", [
    (0, 0.2991764, 0.0952714), (1, 0.3404861, 0.1178937),
    (2, 0.3103171, 0.1091846), (3, 0.2895157, 0.1081823),
])
def test_against_coco(seed, half, mean):
    figures = found(*pictures(seed))
    assert figures["AP50"] == pytest.approx(half, abs=1e-6)
    assert figures["AP"] == pytest.approx(mean, abs=1e-6)


def test_one_object():
    """Found exactly, found half, not found, found twice, found as something else."""
    assert found(([BOX], [0.9], [2], [BOX], [2])) == {"AP50": 1.0, "AP": 1.0}
    half = BOX.copy()
    half[2] = 24  # 14 of 20 pixels wide: right at 0.5 to 0.7, five of ten thresholds
    assert found(([half], [0.9], [2], [BOX], [2])) == {"AP50": 1.0, "AP": 0.5}
    assert found(([], [], [], [BOX], [2])) == {"AP50": 0.0, "AP": 0.0}
    assert found(([BOX], [0.9], [1], [BOX], [2])) == {"AP50": 0.0, "AP": 0.0}
    assert found(([BOX, BOX], [0.9, 0.8], [2, 2], [BOX], [2]))["AP"] == 1.0  # after all recall
    assert found(([BOX + 50, BOX], [0.9, 0.8], [2, 2], [BOX], [2]))["AP"] == 0.5


def test_what_is_no_box():
    """A score of 0 is a box that was not kept, a kind of -1 fills the row up."""
    assert found(([BOX + 50, BOX], [0, 0.1], [2, 2], [BOX, BOX * 0], [2, -1]))["AP"] == 1.0
    assert found(([BOX], [0.9], [2], [BOX * 0], [-1])) == {}
    many = np.linspace(0.5, 1, MOST + 1)
    boxes = np.tile(BOX + 50, (MOST + 1, 1))
    boxes[0] = BOX  # the least sure of too many
    assert found((boxes, many, [2] * (MOST + 1), [BOX], [2]))["AP"] == 0.0


def test_overlaps():
    """Intersection over union, also of boxes of nothing."""
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 5, 5]], np.float32)
    assert overlaps(boxes, boxes) == pytest.approx(
        np.array([[1, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 0]]))
