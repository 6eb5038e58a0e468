"""Convolutions of few outputs: products of each pixel for all its neighbours, added where due."""

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
from lamina.compiler.lower.templates.text import Epilogue, Template, Tile

PIXELS = 64  # of the image, whose products wait in the nearest cache to be added
LINES = 16  # of results, at most, that are summed together


def scratch_floats(columns: Dim, results: Dim, outputs: int, taps: int, tile: Tile,
                   vector_width: int) -> Dim:
    """Floats of a thread's scratch, for images and results of so many columns."""
    # Lines together are as long as one, or as a block of pixels.
    lines = (columns + PIXELS + LINES * (taps - 1)) * outputs + (LINES + 1) * tile.nr
    waiting = stream_floats(results * outputs, vector_width)
    return whole_lines((PIXELS + tile.mr) * tile.nr + lines + waiting)


def conv2d(epilogue: Epilogue, tile: Tile, vector_width: int) -> Template:
    """A convolution with stride 1 of NHWC images, with a border of zeros, into dense NHWC.

    A row of results sums over KH rows of the image: each pixel there, by the weights of all KW
    columns and K outputs at once, gives KW * K products' sums; those are K floats apart from its
    neighbours' and are added up. What the border would give is left out. The element (image, h, w,
    channel) of x lies at image * x_image + h * x_row + w * x_pixel + channel floats. Weights:
    [KH][C][KW, the last first][K], rows filled with zeros to whole panels of the tile.
    Vasudevan, Anderson and Gregg (2017) do so for both axes of the kernel.
    """
    mr, nr = tile.mr, tile.nr
    arguments = (
        *("x", "w", "scratch", "room", "images", "H", "W", "OH", "OW", "KH", "KW", "C", "K"),
        *("x_image", "x_row", "x_pixel", "top", "left"),
    )
    body = f"""
    rows_all = images * OH
    row, end = tid * rows_all // nthreads, (tid + 1) * rows_all // nthreads
    panels = (KW * K + {nr - 1}) // {nr}
    wide = panels * {nr}
    line = (W + KW - 1) * K + {nr}
    most = max(i64(1), min(i64({LINES}), {PIXELS} // max(i64(1), W)))
    apart = ({nr - 1} + K) // K  # pixels whose sums do not meet
    table_at = local_i64({PIXELS + mr})
    table = i64ptr(table_at)
    one_at = local_f32(1)
    one = f32ptr(one_at)
    one[0] = f32(1)
    ones_at = local_i64(1)
    ones = i64ptr(ones_at)
    ones[0] = one_at
    sums = scratch + tid * 4 * room
    staged = sums + {4 * (PIXELS + mr) * nr}
    lines = staged + 4 * ({stream_floats("OW * K", vector_width)})
    start = row * OW * K
{stream_start(arguments)}
    while row < end:
        oh = row % OH
        kh = max(i64(0), top - oh)
        taps = max(i64(0), min(KH, H + top - oh) - kh)
        number = i64(0)
        while number < most and row + number < end:  # rows that the same taps meet
            oh = (row + number) % OH
            from_ = max(i64(0), top - oh)
            if from_ != kh or max(i64(0), min(KH, H + top - oh) - from_) != taps:
                break
            number += 1
        for i in range(0, number * line, {nr}):
            fill_{tile.row}(lines + 4 * i, f32(0))
        n1, n2, a2, b2 = taps, C, i64(1), wide
        if C == 1:
            n1, n2, a2, b2 = i64(1), taps, x_row, C * wide
        for w0 in range(0, W, {PIXELS}):
            across = min(i64({PIXELS}), W - w0)
            pixels = number * across
            for i in range(number):
                oh = (row + i) % OH
                at = x + 4 * ((row + i) // OH * x_image + (oh - top + kh) * x_row + w0 * x_pixel)
                for column in range(across):
                    table[i * across + column] = at + 4 * column * x_pixel
            for m in range({mr}):
                table[pixels + m] = table[pixels - 1]
            for p in range(panels):
                for q in range(0, pixels, {mr}):
                    {tile.part}(pixels - q, table_at + 8 * q, i64(1), n1, n2, i64(0), x_row, a2,
                        w + 4 * (kh * C * wide + p * {nr}), i64(0), C * wide, b2,
                        sums + {4 * nr} * q, i64({nr}), False)
                to = lines + 4 * (w0 * K + p * {nr})
                for r in range(min(apart, across)):
                    for i in range(number):
                        column = r
                        while column < across:
                            {tile.single}(ones_at, i64(1), i64(1), i64(1), i64(0), i64(0), i64(0),
                                sums + {4 * nr} * (i * across + column), i64(0), i64(0), i64(0),
                                to + 4 * (i * line + column * K), i64(0), True)
                            column += apart
        for i in range(number):
            from_ = lines + 4 * (i * line + (KW - 1 - left) * K)
            for j in range(0, OW * K, {vector_width}):
                move_1_{vector_width}(staged + 4 * (have + j), from_ + 4 * j)
            have += OW * K
{stream_drain("K", vector_width, 12)}
        row += number
{stream_end("K", 4)}
"""
    return streaming("Convolution by shifted sums.", arguments, epilogue, body)
