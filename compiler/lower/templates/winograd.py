"""Convolutions by 3x3 and 5x5 with stride 1 as matrix products, see `runtime.cpu.winograd`.

There is one for each point of a variant: 16 for F(2x2, 3x3), 36 for F(4x4, 3x3) and F(2x2, 5x5).
Tiles of results go through in blocks small enough that their transforms stay in the cache; nothing
but the transformed weights is stored whole. The zeros around an image are not read.
"""

from __future__ import annotations

from lamina.compiler.lower.templates.text import (
    LINE,
    NOTHING,
    SPLIT,
    Epilogue,
    Template,
    Tile,
    claim_tile,
    contraction,
    finish_start,
    finish_tile,
    kernel_text,
)
from lamina.compiler.transform.winograd import Variant

# Tiles times points of a block at most: its planes should stay in the second-level cache.
BLOCK = 32 * 36
# And for weight gradients, whose sums are read and written for every block.
SUMMED = 64 * 36
ROW = 12  # neighbouring results of a row that are finished together
KC = 128  # longest stretch of channels that is summed at once: a longer one doubles the error
APART = 16  # floats between tiles and between planes, so that they share no cache sets
_IMAGE = ("images", "OH", "OW", "H", "W", "C", "K", "top", "left", "x_image", "x_row", "x_pixel")


def weight_floats(channels, outputs, tile: Tile, variant: Variant):
    """How many floats the transformed weights take."""
    return variant.products * channels * ((outputs + tile.nr - 1) // tile.nr) * tile.nr


def block_floats(channels, tile: Tile, variant: Variant, block: int):
    """Scratch of a thread: a block's transformed inputs, its products, results and zeros."""
    rows, rest = _block(tile, variant, block)
    return rows * _row(channels, tile) + rest


def block_tiles(tile: Tile, variant: Variant) -> int:
    """How many tiles of results a block has: a multiple of the rows that are multiplied at once."""
    return BLOCK // variant.products // tile.mr * tile.mr


def summed_tiles(variant: Variant) -> int:
    """How many tiles of results a block of the weight gradient has."""
    return SUMMED // variant.products


def sum_floats(channels, outputs, tile: Tile, variant: Variant):
    """How many floats a chunk's partial sums of the weight gradient take."""
    up = (channels + tile.mr - 1) // tile.mr * tile.mr
    return variant.products * up * ((outputs + tile.nr - 1) // tile.nr) * tile.nr


def _block(tile: Tile, variant: Variant, block: int) -> tuple[int, int]:
    """How many rows of `_row` floats a thread's scratch has, and how many floats beside."""
    planes = variant.products
    return planes * block + 1, planes * (APART + _span(tile, block)) + (4 * ROW + 1) * tile.nr


def _span(tile: Tile, block: int) -> int:
    """Floats from one point's products to the next point's."""
    return block * tile.nr + APART


def _row(channels, tile: Tile):
    """Floats from a tile's channels to the next tile's."""
    return (channels + tile.width - 1) // tile.width * tile.width + APART


def weights(tile: Tile, variant: Variant) -> Template:
    """Transform weights into panels: packed[panel][point][c][j], k = panel * nr + j.

    The element (k, c, kh, kw) of the source lies at k * s_out + c * s_in + kh * s_h + kw * s_w
    floats, strides possibly negative.
    """
    arguments = ("source", "packed", "C", "K", "s_out", "s_in", "s_h", "s_w")
    nr, width, taps, across = tile.nr, tile.width, variant.taps, variant.across
    body = f"""
    panels = (K + {nr - 1}) // {nr}
    src = f32ptr(source)
    taps_at = local_f32({taps * taps * nr})
    taps = f32ptr(taps_at)
    for e in range({taps * taps * nr}):
        taps[e] = f32(0)
    total = panels * C
    for q in range(tid * total // nthreads, (tid + 1) * total // nthreads):
        panel = q // C
        c = q % C
        for j in range(min(i64({nr}), K - panel * {nr})):
            at = (panel * {nr} + j) * s_out + c * s_in
            for kh in range({taps}):
                for kw in range({taps}):
                    taps[({taps} * kh + kw) * {nr} + j] = src[at + kh * s_h + kw * s_w]
        if K - panel * {nr} < {nr}:
            for e in range({taps * taps}):
                for j in range(K - panel * {nr}, {nr}):
                    taps[e * {nr} + j] = f32(0)
        to = packed + 4 * (panel * {variant.products} * C + c) * {nr}
        plane = 4 * C * {nr}
        for v in range({tile.nv}):
            points_{across}_of_{taps}_weights_{width}(taps_at + {4 * width} * v, i64({4 * nr}),
                                        to + {4 * width} * v, {across} * plane, plane)
"""
    text = kernel_text(f"Winograd: weights, {variant}.", arguments, NOTHING, body)
    return Template(text, arguments)


def _input_text(tile: Tile, variant: Variant, more: str = "") -> str:
    """Transform the inputs of `count` tiles from number `first` on into planes at `planes`."""
    width, size, across = tile.width, variant.tile, variant.across
    return f"""
        for t in range(count):
            q = first + t
            image = q // (down * beside)
            i = q // beside % down
            j = q % beside
            y, e = {size} * i - top, {size} * j - left
            at = x + 4 * (image * x_image + y * x_row + e * x_pixel)
{more}            place_{across}(pixels_at, at, 4 * x_row, 4 * x_pixel, y, e, H, W, zeros)
            for c in range(0, C, {width}):
                points_{across}_of_input_{width}(
                    pixels_at, 4 * c, planes + 4 * (t * row_floats + c), plane)
"""


def _start(tile: Tile, variant: Variant, block: int) -> str:
    """What both kernels know before their blocks of so many tiles."""
    nr, width, size, points = tile.nr, tile.width, variant.tile, variant.products
    block_rows, rest = _block(tile, variant, block)
    return f"""
    down, beside = (OH + {size - 1}) // {size}, (OW + {size - 1}) // {size}
    panels = (K + {nr - 1}) // {nr}
    row_floats = (C + {width - 1}) // {width} * {width} + {APART}
    plane = 4 * ({block} * row_floats + {APART})
    planes = scratch + 4 * tid * ({block_rows} * row_floats + {rest})
    products = planes + {points} * plane
    staged = products + {4 * points * _span(tile, block)}
    zeros = staged + {16 * ROW * nr}
    for c in range(0, row_floats + {nr}, {width}):
        fill_1_{width}(zeros + 4 * c, f32(0))
    pixels_at = local_i64({points})
    rows_at = local_i64({tile.mr})
    rows = i64ptr(rows_at)
"""


def conv2d(epilogue: Epilogue, tile: Tile, variant: Variant) -> Template:
    """The convolution of an NHWC image with weights of `weights(tile, variant)` into dense NHWC.

    `top` and `left` are the zeros before rows and columns; whatever lies outside H x W is zero.
    """
    mr, nr, width, block = tile.mr, tile.nr, tile.width, block_tiles(tile, variant)
    size, points = variant.tile, variant.products
    finished = Tile(ROW, tile.nv, width)
    arguments = ("x", "w", "scratch", *_IMAGE)
    keep = f"""            inputs[t] = at + 4 * (x_row + x_pixel)
            results[t] = (image * OH + {size} * i) * OW + {size} * j
"""
    body = f"""{_start(tile, variant, block)}
    inputs_at, results_at = local_i64({block}), local_i64({block})
    inputs, results = i64ptr(inputs_at), i64ptr(results_at)
    columns = K
    limit = i64(0)
    tiles = images * down * beside
    units = (tiles + {block - 1}) // {block}
    size = (tiles + units - 1) // max(i64(1), units)
{SPLIT.strip(chr(10))}
{finish_start(arguments)}
    for u in range(u_lo, u_hi):
        first = u * size
        count = min(size, tiles - first)
        ways = (count + {mr - 1}) // {mr}
        high = (count + ways - 1) // max(i64(1), ways)
{_input_text(tile, variant, keep)}
        ahead = {size} * (count // beside) * x_row
        lines = {size} * count
        for p in range(p_lo, p_hi):
            first_column = p * {nr}
            for point in range({points}):
                b_at = w + 4 * (p * {points} + point) * C * {nr}
                for line in range(point * lines // {points}, (point + 1) * lines // {points}):
                    t, y = line // {size}, line % {size}
                    first_row = results[t] + y * OW
{claim_tile(Tile(size, tile.nv, width), 20)}
                    if p == p_hi - 1:
                        from_ = inputs[t] + 4 * (y * x_row + ahead)
                        for e in range({size}):
                            for c in range(0, C, {LINE // 4}):
                                fetch_line(from_ + 4 * (e * x_pixel + c))
                for way in range(ways):
                    t = way * high
                    valid = min(high, count - t)
                    to = products + 4 * (point * {_span(tile, block)} + t * {nr})
                    for k in range(0, C, {KC}):
                        for m in range({mr}):
                            r = (t + min(i64(m), valid - 1)) * row_floats
                            rows[m] = planes + point * plane + 4 * (r + k)
                        {tile.part}(high, rows_at, i64(1), i64(1), min(i64({KC}), C - k), i64(0),
                            i64(0), i64(1), b_at + 4 * k * {nr}, i64(0), i64(0), i64({nr}), to,
                            i64({nr}), k > 0)
            width = min(i64({nr}), K - p * {nr})
            t = i64(0)
            while t < count:
                q = first + t
                image = q // (down * beside)
                i = q // beside % down
                j = q % beside
                across = min(min(i64({ROW // size}), beside - j), count - t)
                for s in range(across):
                    for v in range({tile.nv}):
                        points_{variant.across}_to_{size}_results_{width}(
                            products + 4 * ((t + s) * {nr} + v * {width}),
                            i64({4 * _span(tile, block)}),
                            staged + 4 * (s * {size * nr} + v * {width}), i64({4 * ROW * nr}),
                            i64({4 * nr}))
                valid = min({size} * across, OW - {size} * j)
                for y in range(min(i64({size}), OH - {size} * i)):
                    out = staged + y * {4 * ROW * nr}
                    first_row = (image * OH + {size} * i + y) * OW + {size} * j
{finish_tile(20)}
                t += across
"""
    return contraction(f"Winograd: convolution, {variant}.", arguments, epilogue, finished, body)


def weight_grad(tile: Tile, variant: Variant) -> Template:
    """Partial sums of the weight gradient at the points, one for each chunk of tiles.

    partial[chunk][panel][c // mr][point][c % mr][j], with `sum_floats` floats for each chunk. dy is
    dense NHWC.
    """
    mr, nr, width, block = tile.mr, tile.nr, tile.width, summed_tiles(variant)
    size, points = variant.tile, variant.products
    arguments = ("x", "dy", "partial", "scratch", "chunks", *_IMAGE)
    body = f"""{_start(tile, variant, block)}
    units = chunks
    up = (C + {mr - 1}) // {mr} * {mr}
    tiles = images * down * beside
{SPLIT.strip(chr(10))}
    for u in range(u_lo, u_hi):
        begin, end = u * tiles // chunks, (u + 1) * tiles // chunks
        # One turn at least, so that a chunk without tiles leaves zeros.
        for first in range(begin, max(end, begin + 1), {block}):
            count = min(i64({block}), end - first)
{_indented(_input_text(tile, variant), 4)}
            for p in range(p_lo, p_hi):
                for t in range(count):
                    q = first + t
                    image = q // (down * beside)
                    i = q // beside % down
                    j = q % beside
                    y, e = {size} * i, {size} * j
                    place_{size}(pixels_at, dy + 4 * (((image * OH + y) * OW + e) * K + p * {nr}),
                                 4 * OW * K, 4 * K, y, e, OH, OW, zeros)
                    for v in range({tile.nv}):
                        points_{variant.across}_of_{size}_gradients_{width}(
                            pixels_at, i64({4 * width}) * v,
                            products + 4 * (t * {nr} + v * {width}), i64({4 * _span(tile, block)}))
                for point in range({points}):
                    b_at = products + point * {4 * _span(tile, block)}
                    sums = partial + 4 * ((u * panels + p) * {points} * up + point * {mr}) * {nr}
                    for c in range(0, C, {mr}):
                        for m in range({mr}):
                            rows[m] = planes + point * plane + 4 * (c + m)
                        {tile.part}(min(i64({mr}), C - c), rows_at, i64(1), i64(1), count, i64(0),
                            i64(0), row_floats, b_at, i64(0), i64(0), i64({nr}),
                            sums + {4 * points * nr} * c, i64({nr}), first > begin)
"""
    title = f"Winograd: weight gradient, partial sums, {variant}."
    text = kernel_text(title, arguments, NOTHING, body)
    return Template(text, arguments)


def combine_weight_grad(tile: Tile, variant: Variant) -> Template:
    """Add up the chunks of `weight_grad` in order and transform them into [K, C, taps, taps]."""
    mr, nr, width, taps, points = tile.mr, tile.nr, tile.width, variant.taps, variant.products
    arguments = ("partial", "y0", "chunks", "C", "K")
    body = f"""
    src, dst = f32ptr(partial), f32ptr(y0)
    panels = (K + {nr - 1}) // {nr}
    up = (C + {mr - 1}) // {mr} * {mr}
    points_at, taps_at = local_f32({points * nr}), local_f32({taps * taps * nr})
    points, taps = f32ptr(points_at), f32ptr(taps_at)
    total = panels * C
    for q in range(tid * total // nthreads, (tid + 1) * total // nthreads):
        panel = q // C
        c = q % C
        for chunk in range(chunks):
            for point in range({points}):
                block = ((chunk * panels + panel) * up + c // {mr} * {mr}) * {points}
                at = (block + point * {mr} + c % {mr}) * {nr}
                for j in range({nr}):
                    before = points[point * {nr} + j] if chunk > 0 else f32(0)
                    points[point * {nr} + j] = before + src[at + j]
        for v in range({tile.nv}):
            points_{variant.across}_to_{taps}_weights_{width}(
                points_at + {4 * width} * v, i64({4 * nr}), taps_at + {4 * width} * v,
                i64({4 * taps * nr}), i64({4 * nr}))
        for j in range(min(i64({nr}), K - panel * {nr})):
            at = ((panel * {nr} + j) * C + c) * {taps * taps}
            for e in range({taps * taps}):
                dst[at + e] = taps[e * {nr} + j]
"""
    title = f"Winograd: weight gradient, combined, {variant}."
    text = kernel_text(title, arguments, NOTHING, body)
    return Template(text, arguments)


def _indented(text: str, more: int) -> str:
    return "\n".join(" " * more + line if line else line for line in text.split("\n"))
