"""Convolutions of an image with zeros between its pixels, which are not multiplied."""

from __future__ import annotations

from lamina.compiler.lower.templates.text import (
    Epilogue,
    Template,
    Tile,
    contraction,
    finish_start,
    finish_tile,
    lanes_tile,
    pixel_tiles,
)
from lamina.compiler.ops.conv import MOST_PHASES

TILES_PER_BLOCK = 24  # tiles of results that are put in order together


def conv2d(epilogue: Epilogue, tile: Tile) -> Template:
    """Fractionally strided convolution of NHWC images with packed weights into dense NHWC.

    The element (image, h, w, channel) of x lies at image * x_image + h * x_row + w * x_pixel +
    channel floats. C and K count channels per group. Weights: pack(columns=K, n0=KH, n1=KW, n2=C).
    """
    weights = f"""
    b_h, b_w, b_c, depth = KW * C * {tile.nr}, C * {tile.nr}, i64({tile.nr}), C
    panel_floats = KH * KW * C * {tile.nr}
    channel_step = i64(0)"""
    return _template("Fractionally strided convolution.", epilogue, tile, weights,
                     f"{tile.part}(high, rows_at")


def depthwise(epilogue: Epilogue, vector_width: int) -> Template:
    """The same with one filter for each channel; arguments as conv2d, with groups = 1.

    C = K = the number of channels; the weights are dense [KH][KW][C], unpacked.
    """
    tile = lanes_tile(vector_width)
    weights = f"""
    b_h, b_w, b_c, depth = KW * C, C, i64(0), i64(1)
    panel_floats = i64({tile.nr})
    channel_step = i64({tile.nr})"""
    return _template("Fractionally strided depthwise convolution.", epilogue, tile, weights,
                     f"{tile.name}(rows_at")


def _template(doc: str, epilogue: Epilogue, tile: Tile, weights: str, multiply: str) -> Template:
    """`weights` is the text that names the strides of the weights, `multiply` begins the tile.

    Results whose place within a stride is the same have the same taps, and are multiplied together;
    then the rows of a block are in order again.
    """
    mr, nr = tile.mr, tile.nr
    arguments = ("x", "w", "images", "OH", "OW", "groups", "KH", "KW", "C", "K", "x_image", "x_row",
                 "x_pixel", "stride_h", "stride_w", "shift_h", "shift_w")
    rows = TILES_PER_BLOCK * mr
    body = f"""{pixel_tiles(tile)}{weights}
    phases = stride_h * stride_w
    places_at, phase_at, order_at = local_i64({rows}), local_i64({rows}), local_i64({rows})
    places, phase, order = i64ptr(places_at), i64ptr(phase_at), i64ptr(order_at)
    starts_at, rows_at = local_i64({MOST_PHASES + 1}), local_i64({mr})
    starts, rows = i64ptr(starts_at), i64ptr(rows_at)
    sums, staged = local_f32({mr * nr}), local_f32({rows * nr})
    limit = min(rows_all, u_hi * {mr}) * columns if panels == 1 else i64(0)
{finish_start(arguments)}
    ow = u_lo * {mr} % max(i64(1), OW)
    oh = u_lo * {mr} // max(i64(1), OW) % max(i64(1), OH)
    image = u_lo * {mr} // max(i64(1), OW * OH)
    for t0 in range(u_lo, u_hi, {TILES_PER_BLOCK}):
        count = min(i64({TILES_PER_BLOCK}), u_hi - t0)
        number = min(count * {mr}, rows_all - t0 * {mr})
        # Where each result's first pixel lies, and which taps of the kernel meet pixels.
        r = i64(0)
        while r < number:
            down, right = oh + shift_h + stride_h - 1, ow + shift_w + stride_w - 1
            line = x + 4 * (image * x_image + down // stride_h * x_row)
            tap = (stride_h - 1 - down % stride_h) * stride_w
            column = right // stride_w
            kw = stride_w - 1 - right % stride_w
            stop = min(number, r + OW - ow)
            ow += stop - r
            while r < stop:
                places[r] = line + 4 * column * x_pixel
                phase[r] = tap + kw
                r += 1
                kw -= 1
                if kw < 0:
                    kw = stride_w - 1
                    column += 1
            if ow == OW:
                ow = i64(0)
                oh += 1
                if oh == OH:
                    oh = i64(0)
                    image += 1
        found = i64(0)
        for f in range(phases):
            starts[f] = found
            for r in range(number):
                if phase[r] == f:
                    order[found] = r
                    found += 1
        starts[phases] = found
        for p in range(p_lo, p_hi):
            group = p // per_group
            q = p % per_group
            width = min(i64({nr}), K - q * {nr})
            first_column = group * K + q * {nr}
            shift = 4 * (group * C + q * channel_step)
            for f in range(phases):
                kh, kw = f // stride_w, f % stride_w
                n0, n1 = (KH - kh + stride_h - 1) // stride_h, (KW - kw + stride_w - 1) // stride_w
                b_at = w + 4 * (p * panel_floats + kh * b_h + kw * b_w)
                for first in range(starts[f], starts[f + 1], {mr}):
                    high = min(i64({mr}), starts[f + 1] - first)
                    for m in range({mr}):
                        rows[m] = places[order[first + min(i64(m), high - 1)]] + shift
                    {multiply}, n0, n1, depth, x_row, x_pixel, i64(1),
                        b_at, stride_h * b_h, stride_w * b_w, b_c, sums, i64({nr}), False)
                    for m in range(high):
                        move_{tile.row}(staged + {4 * nr} * order[first + m], sums + {4 * nr} * m)
            for t in range(count):
                first_row = (t0 + t) * {mr}
                out = staged + {4 * mr * nr} * t
                valid = min(i64({mr}), rows_all - first_row)
{finish_tile(16)}
"""
    return contraction(doc, arguments, epilogue, tile, body)
