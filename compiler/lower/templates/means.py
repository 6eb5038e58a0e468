"""Means over windows of images of few channels, and their gradient: whole rows in vectors."""

from __future__ import annotations

from lamina.compiler.ir.types import Dim
from lamina.compiler.lower.templates.stream import (
    stream_drain,
    stream_end,
    stream_floats,
    stream_start,
    stream_tile,
    streaming,
)
from lamina.compiler.lower.templates.text import Epilogue, Template

_SIZES = ("scratch", "room", "images", "H", "W", "OH", "OW", "C", "KH", "KW", "stride_h",
          "stride_w")


def pixel_width(channels: int) -> int:
    """The narrowest vector that holds a pixel's channels."""
    return next(width for width in (4, 8, 16) if width >= channels)


def scratch_floats(columns: Dim, channels: int, vector_width: int, span: int) -> Dim:
    """Floats of a thread's scratch, for an image (without pooling) of so many columns."""
    tile = stream_tile(vector_width)
    spare = 2 * tile.nr + channels
    return 2 * (columns * channels + spare) + tile.mr * span + stream_floats(tile)


def mean_pool(epilogue: Epilogue, channels: int, vector_width: int) -> Template:
    """The mean of each window that lies inside dense images [images, H, W, C]."""
    tile = stream_tile(vector_width)
    arguments = ("x", *_SIZES)
    body = f"""
    rows_all = images * OH
    row, end = tid * rows_all // nthreads, (tid + 1) * rows_all // nthreads
    share = f32(1) / f32(KH * KW)
    one_at, ones_at = local_f32(1), local_i64(1)
    one, ones = f32ptr(one_at), i64ptr(ones_at)
    one[0] = f32(1)
    ones[0] = one_at
    tall = scratch + tid * 4 * room  # sums over the rows of a window
    staged = tall + 4 * (W * C + {2 * tile.nr})
    start = row * OW * C
    used = ((OW - 1) * stride_w + KW) * C
{stream_start(arguments, tile)}
    for row in range(row, end):
        corner = x + 4 * (row // OH * H + row % OH * stride_h) * W * C
        for j in range(0, used, {tile.nr}):
            {tile.single}(ones_at, i64(1), i64(1), KH, i64(0), i64(0), i64(0),
                corner + 4 * j, i64(0), i64(0), W * C, tall + 4 * j, i64(0), False)
        for ow in range(OW):
            tile_1x1_{pixel_width(channels)}(ones_at, i64(1), i64(1), KW, i64(0), i64(0), i64(0),
                tall + 4 * ow * stride_w * C, i64(0), i64(0), C, staged + 4 * (have + ow * C),
                i64(0), False)
        waiting = f32ptr(staged + 4 * have)
        for e in range(OW * C):
            waiting[e] = waiting[e] * share
        have += OW * C
{stream_drain(tile, 8)}
{stream_end(tile, 4)}
"""
    return streaming("Mean of windows, few channels.", arguments, epilogue, tile, body)


def mean_pool_grad(epilogue: Epilogue, channels: int, vector_width: int) -> Template:
    """dx[images, H, W, C] from dense dy[images, OH, OW, C] where no two windows overlap.

    Windows lie inside the image; what none of them covers becomes 0.
    """
    tile = stream_tile(vector_width)
    arguments = ("dy", *_SIZES)
    body = f"""
    rows_all = images * H
    row, end = tid * rows_all // nthreads, (tid + 1) * rows_all // nthreads
    share = f32(1) / f32(KH * KW)
    scaled_at = local_f32(16)
    scaled = f32ptr(scaled_at)
    wide = scratch + tid * 4 * room  # a row of the result
    staged = wide + 4 * (W * C + {2 * tile.nr} + C)
    start = row * W * C
    held = i64(-2)
{stream_start(arguments, tile)}
    for row in range(row, end):
        h = row % H
        oh = h // max(i64(1), stride_h)
        from_ = i64(-1)  # rows of the same window are equal
        if h - oh * stride_h < KH and oh < OH:
            from_ = (row // H * OH + oh) * OW * C
        if from_ != held:
            for j in range(0, W * C, {tile.nr}):
                fill_{tile.row}(wide + 4 * j, f32(0))
            if from_ >= 0:
                src = f32ptr(dy + 4 * from_)
                for ow in range(OW):
                    for c in range({pixel_width(channels)}):
                        scaled[c] = src[ow * C + c] * share if c < C else f32(0)
                    for kw in range(KW):
                        move_1_{pixel_width(channels)}(wide + 4 * (ow * stride_w + kw) * C,
                            scaled_at)
            held = from_
        for j in range(0, W * C, {tile.nr}):
            move_{tile.row}(staged + 4 * (have + j), wide + 4 * j)
        have += W * C
{stream_drain(tile, 8)}
{stream_end(tile, 4)}
"""
    return streaming("Gradient of a mean of windows, few channels.", arguments, epilogue, tile,
                     body)
