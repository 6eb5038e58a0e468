"""Non-maximum suppression: each thread searches pictures of its own."""

from __future__ import annotations

from lamina.compiler.lower.templates.text import NOTHING, Template, kernel_text


def suppress() -> Template:
    """kept[b, i] of boxes[b, i, 4] and scores[b, i].

    While it runs, `kept` holds 0 (dropped), 1 (kept) and 2 (not decided). `iou` and `least` lie
    in memory, one float each.
    """
    arguments = ("boxes", "scores", "iou", "least", "kept", "images", "count")
    body = """
    box = f32ptr(boxes)
    score = f32ptr(scores)
    state = u8ptr(kept)
    share = f32ptr(iou)[0]
    lowest = f32ptr(least)[0]
    for image in range(tid * images // nthreads, (tid + 1) * images // nthreads):
        at = image * count
        for i in range(at, at + count):
            state[i] = 2 if score[i] >= lowest else 0
        while True:
            best = i64(-1)
            for i in range(at, at + count):
                if state[i] == 2 and (best < 0 or score[i] > score[best]):
                    best = i
            if best < 0:
                break
            state[best] = 1
            left, top = box[4 * best], box[4 * best + 1]
            right, bottom = box[4 * best + 2], box[4 * best + 3]
            area = max(right - left, f32(0)) * max(bottom - top, f32(0))
            for i in range(at, at + count):
                if state[i] == 2:
                    x0, y0, x1, y1 = box[4 * i], box[4 * i + 1], box[4 * i + 2], box[4 * i + 3]
                    wide = max(min(x1, right) - max(x0, left), f32(0))
                    high = max(min(y1, bottom) - max(y0, top), f32(0))
                    other = max(x1 - x0, f32(0)) * max(y1 - y0, f32(0))
                    both = wide * high
                    if both > (other + area - both) * share:
                        state[i] = 0
"""
    return Template(kernel_text("Non-maximum suppression.", arguments, NOTHING, body), arguments)
