"""The gradient of a convolution's weights: partial sums over pixels, then one combining kernel."""

from __future__ import annotations

from lamina.compiler.lower.templates.text import (
    NOTHING,
    SPLIT,
    TAP,
    Epilogue,
    Template,
    Tile,
    count_up,
    element,
    kernel_text,
    operand_names,
    row_loads,
)

PIXELS = 256  # pixels whose gradients are packed and summed at once, at most


def weight_partial_floats(tile: Tile) -> tuple[int, int]:
    """(mr, nr) to which the partial sums' rows KH*KW*C and columns K are rounded up.

    `partial` has chunks * groups * up(KH*KW*C, mr) * up(K, nr) floats, up(a, b) = ceil(a/b) * b.
    """
    return tile.mr, tile.nr


def conv2d_weight_grad(tile: Tile) -> Template:
    """Partial sums of the weight gradient, one for each chunk of images.

    partial[chunk][group][panel][(kh * KW + kw) * C + c][j], k = panel * nr + j, is the sum over
    the chunk's images, oh, ow of x[image, oh * stride_h + kh * dilation_h, ow * stride_w + kw *
    dilation_w, group * C + c] * dy[image, oh, ow, group * K + k]. x is zero padded NHWC as in
    `conv2d`; dy is dense NHWC. The sum runs in blocks of PIXELS pixels, which keeps its rounding
    error an order of magnitude below that of one long chain.
    Choose `chunks` (at most images) from sizes alone: it fixes the order of the sum.
    """
    mr, nr = tile.mr, tile.nr
    arguments = (
        "x",
        "dy",
        "partial",
        "images",
        "OH",
        "OW",
        "groups",
        "KH",
        "KW",
        "C",
        "K",
        "x_image",
        "x_row",
        "x_pixel",
        "stride_h",
        "stride_w",
        "dilation_h",
        "dilation_w",
        "chunks",
    )
    body = f"""
    depth = KH * KW * C
    tiles = (depth + {mr - 1}) // {mr}
    per_group = (K + {nr - 1}) // {nr}
    panels = groups * per_group
    units = chunks * tiles
{SPLIT.strip(chr(10))}
    packed_at = local_f32({PIXELS * nr})
    rows_at = local_i64({mr})
    rows = i64ptr(rows_at)
    # A block is images, or else rows of an image, or else a part of a row.
    wide = min(OW, i64({PIXELS}))
    high = max(i64(1), min(OH, {PIXELS} // max(i64(1), OW)))
    deep = max(i64(1), {PIXELS} // max(i64(1), OH * OW))
    u = u_lo
    while u < u_hi:
        chunk = u // tiles
        t0 = u % tiles
        t1 = min(tiles, t0 + u_hi - u)
        u += t1 - t0
        begin, end = chunk * images // chunks, (chunk + 1) * images // chunks
        image, oh, ow = begin, i64(0), i64(0)
        while True:  # one turn at least, so that a chunk without pixels leaves zeros
            n0, n1, n2 = min(deep, end - image), min(high, OH - oh), min(wide, OW - ow)
            q = (image * OH + oh) * OW + ow
            corner = x + 4 * (image * x_image + oh * stride_h * x_row + ow * stride_w * x_pixel)
            more = image > begin or oh > 0 or ow > 0
            for p in range(p_lo, p_hi):
                group = p // per_group
                column = p % per_group * {nr}
                target = partial + 4 * (chunk * panels + p) * tiles * {mr * nr}
                at = dy + 4 * ((q * groups + group) * K + column)
                for i in range(n0 * n1 * n2):  # past the last column lie sums that nobody reads
                    move_{tile.row}(packed_at + i * {4 * nr}, at + 4 * i * groups * K)
                c = t0 * {mr} % C
                kw = t0 * {mr} // C % KW
                kh = t0 * {mr} // (C * KW)
                left = depth - t0 * {mr}
                for t in range(t0, t1):
                    for m in range({mr}):
                        tap = kh * dilation_h * x_row + kw * dilation_w * x_pixel
                        rows[m] = corner + 4 * (group * C + tap + c)
                        left -= 1
                        if left > 0:
{count_up(TAP, "kh", 28)}
                    {tile.name}(rows_at, n0, n1, n2, x_image, stride_h * x_row, stride_w * x_pixel,
                        packed_at, n1 * n2 * {nr}, n2 * {nr}, i64({nr}),
                        target + t * {4 * mr * nr}, i64({nr}), more)
            ow += n2
            if ow >= OW:
                ow = i64(0)
                oh += n1
            if oh >= OH:
                oh = i64(0)
                image += deep
            if image >= end:
                break
"""
    source = kernel_text("Weight gradient, partial sums.", arguments, NOTHING, body)
    return Template(source, arguments)


def depthwise_weight_grad(tile: Tile) -> Template:
    """The same for K channels with a filter each, in a tile of lanes whose rows are taps.

    Chunks are runs of rows of images, at most images * OH. To `combine_weight_grad` it is a
    gradient of one group with C = 1.
    """
    mr, nr = tile.mr, tile.nr
    arguments = (
        *("x", "dy", "partial", "images", "OH", "OW", "KH", "KW", "K"),
        *("x_image", "x_row", "x_pixel", "stride_h", "stride_w", "dilation_h", "dilation_w"),
        "chunks",
    )
    body = f"""
    taps = KH * KW
    turns = (taps + {mr - 1}) // {mr}
    panels = (K + {nr - 1}) // {nr}
    units = chunks
{SPLIT.strip(chr(10))}
    rows_at = local_i64({mr})
    rows = i64ptr(rows_at)
    # A block is images, or else rows of an image, or else a part of a row.
    wide = min(OW, i64({PIXELS}))
    high = max(i64(1), min(OH, {PIXELS} // max(i64(1), OW)))
    deep = max(i64(1), {PIXELS} // max(i64(1), OH * OW))
    for chunk in range(u_lo, u_hi):
        begin, end = chunk * images * OH // chunks, (chunk + 1) * images * OH // chunks
        row, ow = begin, i64(0)
        while True:  # one turn at least, so that a chunk without pixels leaves zeros
            oh = row % max(i64(1), OH)
            n1, n2 = min(min(high, OH - oh), end - row), min(wide, OW - ow)
            n0 = min(deep, (end - row) // n1) if n1 == OH and OH > 0 else i64(1)
            corner = x + 4 * (row // max(i64(1), OH) * x_image + oh * stride_h * x_row
                              + ow * stride_w * x_pixel)
            more = row > begin or ow > 0
            for p in range(p_lo, p_hi):
                at = dy + 4 * ((row * OW + ow) * K + p * {nr})
                target = partial + 4 * (chunk * panels + p) * turns * {mr * nr}
                for turn in range(turns):
                    for m in range({mr}):
                        tap = min(turn * {mr} + m, taps - 1)
                        rows[m] = corner + 4 * (tap // KW * dilation_h * x_row
                                                + tap % KW * dilation_w * x_pixel + p * {nr})
                    {tile.name}(rows_at, n0, n1, n2, x_image, stride_h * x_row, stride_w * x_pixel,
                        at, OH * OW * K, OW * K, K, target + 4 * turn * {mr * nr}, i64({nr}), more)
            ow += n2
            if ow >= OW:
                ow = i64(0)
                row += n0 * n1
            if row >= end:
                break
"""
    source = kernel_text("Depthwise weight gradient, partial sums.", arguments, NOTHING, body)
    return Template(source, arguments)


def combine_weight_grad(epilogue: Epilogue, tile: Tile) -> Template:
    """Add up the chunks of `conv2d_weight_grad` in order; the epilogue then runs on each weight.

    acc is dW[group * K + k, c, kh, kw]; "matrix" operands lie at k * s_out + c * s_in + kh * s_h
    + kw * s_w (k over all groups), "row" ones at k; "column" has no meaning here. For contiguous
    OIHW: s_out = C * KH * KW, s_in = KH * KW, s_h = KW, s_w = 1.
    """
    if any(operand.access == "column" for operand in _operands(epilogue)):
        raise ValueError("weights have no columns")
    mr, nr = tile.mr, tile.nr
    arguments = (
        "partial",
        *operand_names(epilogue),
        *["groups", "KH", "KW", "C", "K", "chunks", "s_out", "s_in", "s_h", "s_w"],
    )
    body = f"""
    src = f32ptr(partial)
    depth = KH * KW * C
    per_group = (K + {nr - 1}) // {nr}
    panel_floats = (depth + {mr - 1}) // {mr} * {mr * nr}
    chunk_floats = groups * per_group * panel_floats
    runs = (C + 15) // 16
    total = groups * per_group * runs
    # 16 outputs by 16 inputs at a time: reads stay in the nearest cache, writes come in runs.
    for q in range(tid * total // nthreads, (tid + 1) * total // nthreads):
        c0 = q % runs * 16
        panel = q // runs
        column = panel % per_group * {nr}
        group = panel // per_group
        width = min(i64({nr}), K - column)
        for j in range(width):
            row = group * K + column + j
{row_loads(epilogue, 12)}
            for c in range(c0, min(C, c0 + 16)):
                for kh in range(KH):
                    for kw in range(KW):
                        start = panel * panel_floats + ((kh * KW + kw) * C + c) * {nr} + j
                        total_ = src[start]
                        for chunk in range(1, chunks):
                            total_ += src[start + chunk * chunk_floats]
                        at = row * s_out + c * s_in + kh * s_h + kw * s_w
{element(epilogue, "total_", "at", "0", 24)}
"""
    source = kernel_text("Weight gradient, combined.", arguments, epilogue, body)
    return Template(source, arguments)


def _operands(epilogue: Epilogue):
    return [*epilogue.loads, *(operand for operand, _ in epilogue.stores)]
