"""Means over windows of images of few channels, and their gradient: whole rows in vectors."""

from __future__ import annotations

from lamina.compiler.ir.types import Dim
from lamina.compiler.lower.templates.stream import (
    stream_drain,
    stream_end,
    stream_floats,
    stream_start,
    streaming,
    whole_lines,
)
from lamina.compiler.lower.templates.text import Epilogue, Template, count_up

_SIZES = ("scratch", "room", "images", "H", "W", "OH", "OW", "C", "KH", "KW", "stride_h",
          "stride_w")


def pixel_width(channels: int) -> int:
    """The narrowest vector that holds a pixel's channels."""
    return next(width for width in (4, 8, 16) if width >= channels)


def scratch_floats(columns: Dim, channels: int, vector_width: int) -> Dim:
    """Floats of a thread's scratch, for an image (without pooling) of so many columns."""
    row = columns * channels
    waiting = stream_floats(row + channels, vector_width)
    return whole_lines(waiting + row + 2 * vector_width)


def mean_pool(epilogue: Epilogue, channels: int, vector_width: int) -> Template:
    """The mean of each window that lies inside dense images [images, H, W, C]."""
    arguments = ("x", *_SIZES)
    pixel = f"1_{pixel_width(channels)}"
    body = f"""
    rows_all = images * OH
    row, end = tid * rows_all // nthreads, (tid + 1) * rows_all // nthreads
    one_at, ones_at = local_f32(1), local_i64(1)
    one, ones = f32ptr(one_at), i64ptr(ones_at)
    one[0] = f32(1)
    ones[0] = one_at
    staged = scratch + tid * 4 * room
    tall = staged + 4 * ({stream_floats("(W + 1) * C", vector_width)})  # of a window's rows
    start = row * OW * C
    used = ((OW - 1) * stride_w + KW) * C
    image, oh = row // max(i64(1), OH), row % max(i64(1), OH)
{stream_start(arguments, "f32(1) / f32(KH * KW)")}
    for row in range(row, end):
        corner = x + 4 * (image * H + oh * stride_h) * W * C
        for j in range(0, used, {vector_width}):
            tile_1x1_{vector_width}(ones_at, i64(1), i64(1), KH, i64(0), i64(0), i64(0),
                corner + 4 * j, i64(0), i64(0), W * C, tall + 4 * j, i64(0), False)
        for ow in range(OW):
            tile_1x{pixel}(ones_at, i64(1), i64(1), KW, i64(0), i64(0), i64(0),
                tall + 4 * ow * stride_w * C, i64(0), i64(0), C, staged + 4 * (have + ow * C),
                i64(0), False)
        have += OW * C
{stream_drain("C", vector_width, 8)}
{count_up([("oh", "OH")], "image", 8)}
{stream_end("C", 4)}
"""
    return streaming("Mean of windows, few channels.", arguments, epilogue, body,
                     scaled=True)


def mean_pool_grad(epilogue: Epilogue, channels: int, vector_width: int) -> Template:
    """dx[images, H, W, C] from dense dy[images, OH, OW, C] where no two windows overlap.

    Windows lie inside the image; what none of them covers becomes 0.
    """
    arguments = ("dy", *_SIZES)
    pixel = f"1_{pixel_width(channels)}"
    body = f"""
    rows_all = images * H
    row, end = tid * rows_all // nthreads, (tid + 1) * rows_all // nthreads
    staged = scratch + tid * 4 * room
    start = row * W * C
    even = KW == stride_w and OW * KW == W
    image, h = row // max(i64(1), H), row % max(i64(1), H)
    oh, kh = h // max(i64(1), stride_h), h % max(i64(1), stride_h)
{stream_start(arguments, "f32(1) / f32(KH * KW)")}
    for row in range(row, end):
        covered = kh < KH and oh < OH
        if not (covered and even):
            for j in range(0, W * C, {vector_width}):
                fill_1_{vector_width}(staged + 4 * (have + j), f32(0))
        if covered:
            source = dy + 4 * (image * OH + oh) * OW * C
            for ow in range(OW):
                to = staged + 4 * (have + ow * stride_w * C)
                for kw in range(KW):
                    move_{pixel}(to, source + 4 * ow * C)
                    to += 4 * C
                if not even:  # what was moved beside the last channel
                    fill_{pixel}(to, f32(0))
        have += W * C
{stream_drain("C", vector_width, 8)}
        h += 1
        kh += 1
        if kh == stride_h:
            kh = i64(0)
            oh += 1
        if h == H:
            h, kh, oh = i64(0), i64(0), i64(0)
            image += 1
{stream_end("C", 4)}
"""
    doc = "Gradient of a mean of windows, few channels."
    return streaming(doc, arguments, epilogue, body, scaled=True)
