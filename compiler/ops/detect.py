"""Boxes of a detector: those that say again what a better one says are dropped."""

from __future__ import annotations

import numpy as np

from lamina.compiler.ir.op import OpError
from lamina.compiler.ir.types import TensorType, shape_text
from lamina.compiler.ops.define import primitive, same_dtype

F32 = ("f32",)


def _infer(boxes: TensorType, scores: TensorType, *, iou, least) -> TensorType:
    same_dtype("non_max_suppression", (boxes, scores), F32)
    if boxes.rank != 3 or boxes.shape != (*scores.shape, 4):
        raise OpError("E227", "`non_max_suppression` takes boxes [B, N, 4] and scores [B, N], not "
                      f"{shape_text(boxes.shape)} and {shape_text(scores.shape)}",
                      "a box is left, top, right, bottom; each has one score", (0, 1))
    if not 0 <= iou <= 1:
        raise OpError("E226", f"`non_max_suppression`: iou is {iou}, outside the range from 0 to 1",
                      "it is the largest overlap of two boxes that are both kept")
    return TensorType(scores.shape, "bool")


def _suppress(boxes, scores, *, iou, least):
    kept = np.zeros(scores.shape, bool)
    for image in range(len(scores)):
        left, top, right, bottom = np.moveaxis(boxes[image], -1, 0)
        area = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
        waiting = scores[image] >= least
        while waiting.any():
            rest = np.flatnonzero(waiting)
            best = rest[scores[image][rest].argmax()]
            kept[image, best], waiting[best] = True, False
            wide = np.minimum(right, right[best]) - np.maximum(left, left[best])
            high = np.minimum(bottom, bottom[best]) - np.maximum(top, top[best])
            both = np.maximum(wide, 0) * np.maximum(high, 0)
            waiting &= ~(both > (area + area[best] - both) * np.float32(iou))
    return kept


primitive("non_max_suppression", "gather", infer=_infer, numpy=_suppress, arity=(2, 2),
          attrs={"iou": 0.5, "least": 0.0}, torch="oracle.non_max_suppression(a, b, iou, least)",
          samples=("x:[2,5,4] y:+[2,5]", "x:[1,9,4] y:[1,9] | iou=0.1", "x:[3,1,4] y:[3,1]",
                   "x:[2,17,4] y:[2,17] | iou=0.0, least=-1.0", "x:[1,0,4] y:[1,0]"),
          bad={"E227": "x:[2,5,3] y:[2,5]", "E204": "x:f64[2,5,4] y:f64[2,5]",
               "E226": "x:[2,5,4] y:[2,5] | iou=1.5"},
          doc="bool [B, N]: which boxes [B, N, 4] (left, top, right, bottom) are kept. The best "
              "score [B, N] of at least `least` is kept and drops the boxes that share more than "
              "`iou` of their union with it; then the best of the rest, the first among equals. "
              "No gradient.")
