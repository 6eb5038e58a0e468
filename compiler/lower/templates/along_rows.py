"""Convolutions of few outputs over images whose pixels are neighbours: vectors lie along rows."""

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
from lamina.compiler.lower.templates.text import Epilogue, Template, Tile, count_up

MOST_OUTPUTS = 16  # that are transposed at once
HEIGHTS = {4: (6, 4), 8: (6, 4), 16: (8, 6, 4)}  # of the parts of a tile, by vector width


def rows_tile(vector_width: int) -> Tile:
    """The tile of some outputs by two vectors of pixels."""
    return Tile(HEIGHTS[vector_width][0], 2, vector_width)


def whole_rows(outputs: int, vector_width: int) -> int:
    """The outputs with those that are computed beside them, to fill parts of tiles."""
    most, *_ = heights = HEIGHTS[vector_width]
    rest = outputs % most
    return outputs - rest + (min(h for h in heights if h >= rest) if rest else 0)


def turned_width(outputs: int) -> int:
    """The side of the blocks in which planes of so many outputs are transposed."""
    return next(width for width in (4, 8, 16) if width >= outputs)


def scratch_floats(columns: Dim, outputs: int, vector_width: int) -> Dim:
    """Floats of a thread's scratch, for results of so many columns."""
    tile = rows_tile(vector_width)
    planes = (outputs + max(tile.mr, turned_width(outputs))) * (columns + tile.nr)
    waiting = stream_floats((columns + turned_width(outputs)) * outputs, vector_width)
    return whole_lines(planes + waiting)


def conv2d(epilogue: Epilogue, outputs: int, vector_width: int) -> Template:
    """A convolution, with stride 1 along rows, of images [N, C, H, W] without a border.

    The element (image, channel, h, w) of x lies at image * x_image + channel * x_channel + h *
    x_row + w floats, of the weights (k, channel, kh, kw) at k * w_out + channel * w_in + kh * w_h
    + kw * w_w. A row of all `outputs` is computed plane by plane, then transposed into dense NHWC.
    At most a tile's width of floats past the last pixel are read and not used.
    """
    tile = rows_tile(vector_width)
    side = turned_width(outputs)
    arguments = (
        *("x", "w", "scratch", "room", "images", "OH", "OW", "KH", "KW", "C", "K"),
        *("x_image", "x_channel", "x_row", "stride_h", "dilation_h", "dilation_w"),
        *("w_out", "w_in", "w_h", "w_w"),
    )
    body = f"""
    rows_all = images * OH
    row, end = tid * rows_all // nthreads, (tid + 1) * rows_all // nthreads
    wide = (OW + {tile.nr - 1}) // {tile.nr} * {tile.nr}
    planes = scratch + tid * 4 * room
    staged = planes + 4 * (K + {max(tile.mr, side)}) * wide
    rows_at = local_i64({MOST_OUTPUTS + tile.mr})
    rows = i64ptr(rows_at)
    for k in range({MOST_OUTPUTS + tile.mr}):
        rows[k] = w + 4 * min(i64(k), K - 1) * w_out
    start = row * OW * K
    image, oh = row // max(i64(1), OH), row % max(i64(1), OH)
{stream_start(arguments)}
    for row in range(row, end):
        corner = x + 4 * (image * x_image + oh * stride_h * x_row)
        for j in range(0, OW, {tile.nr}):
            for k in range(0, K, {tile.mr}):
                {tile.part}(K - k, rows_at + 8 * k, KH, C, KW, w_h, w_in, w_w, corner + 4 * j,
                    dilation_h * x_row, x_channel, dilation_w, planes + 4 * (k * wide + j), wide,
                    False)
        for j in range(0, OW, {side}):
            turn_{side}(staged + 4 * (have + j * K), 4 * K, planes + 4 * j, 4 * wide)
        have += OW * K
{stream_drain("K", vector_width, 8)}
{count_up([("oh", "OH")], "image", 8)}
{stream_end("K", 4)}
"""
    return streaming("Convolution along rows.", arguments, epilogue, body)
