"""Matrix products and convolutions, all over the batch-reduce tile (see KERNELS in the docs).

Packed weights are panels of `nr` columns: [group][panel][n0][n1][n2][nr], zero padded.
"""

from __future__ import annotations

from collections.abc import Callable

from lamina.compiler.lower.templates.text import (
    BLOCK_TILES,
    LINE,
    NOTHING,
    PIXEL,
    SPLIT,
    Epilogue,
    Template,
    Tile,
    claim_parts,
    claim_tile,
    contraction,
    count_up,
    finish_start,
    finish_tile,
    kernel_text,
    lanes_tile,
    pixel_tiles,
)

TILES_PER_BLOCK = 24  # tiles of a convolution that read one panel of weights
# A block of A and the sums that wait should fit the second-level cache.
KC = 256  # longest stretch of the sum that is done at once: a panel of B fills half of 32 KB
UNPACKED = 256  # rows of B farther apart are gathered, to spare the TLB
PACKED_K = 1024  # longest part of A's rows that is packed once for all panels
FEW = 3  # rows of A that are multiplied with each column of B where that lies
PANELS_PER_BLOCK = 16  # panels whose partial sums wait in scratch while the sum goes on


def pack(tile: Tile) -> Template:
    """Gather a weight operand into zero-padded panels.

    packed[g][panel][i0][i1][i2][j] = source[g * s_group + (panel * nr + j) * s_column + i0 * s0
    + i1 * s1 + i2 * s2], strides in floats, possibly negative.
    `packed` has groups * ceil(columns / nr) * n0 * n1 * n2 * nr floats.
    """
    arguments = (
        "source",
        "packed",
        "groups",
        "columns",
        "n0",
        "n1",
        "n2",
        "s_group",
        "s_column",
        "s0",
        "s1",
        "s2",
    )
    nr = tile.nr
    body = f"""
    panels = (columns + {nr - 1}) // {nr}
    src = f32ptr(source)
    dst = f32ptr(packed)
    total = groups * panels * n0 * n1
    for q in range(tid * total // nthreads, (tid + 1) * total // nthreads):
        i1 = q % n1
        i0 = q // n1 % n0
        panel = q // (n1 * n0) % panels
        group = q // (n1 * n0 * panels)
        start = group * s_group + panel * {nr} * s_column + i0 * s0 + i1 * s1
        width = min(i64({nr}), columns - panel * {nr})
        out = q * n2 * {nr}
        if width == {nr} and s_column == 1:
            for i2 in range(n2):
                move_{tile.row}(packed + 4 * (out + i2 * {nr}), source + 4 * (start + i2 * s2))
        else:
            for i2 in range(n2):
                for j in range(width):
                    dst[out + i2 * {nr} + j] = src[start + i2 * s2 + j * s_column]
                for j in range(width, {nr}):
                    dst[out + i2 * {nr} + j] = f32(0)
"""
    source = kernel_text("Packs weights into panels.", arguments, NOTHING, body)
    return Template(source, arguments)


def gemm(epilogue: Epilogue, tile: Tile) -> Template:
    """C[batch][M][N] = A @ B, C dense, then the epilogue (row = batch * M + m, column = n).

    A[b, m, k] is at a + b * a_batch + m * a_row + k * a_k, and column j of B's panel p at
    b + b * b_batch + p * b_panel + k * b_k + j * b_column, in floats. Packed B: b_column = 1,
    b_k = nr, b_panel = K * nr, b_batch = ceil(N / nr) * K * nr or 0. Any other B: b_panel =
    nr * b_column; where its rows lie far apart, panels are gathered as they are needed (at most
    nr - 1 floats past B's end are read and not used).
    With several parts the product has so many times N columns, those of a part b_part floats
    behind those of the part before: panel p is then panel p // parts of part p % parts.
    """
    mr, nr, parts = tile.mr, tile.nr, epilogue.parts
    arguments = (
        *("a", "b", "scratch"),
        *["batch", "M", "N", "K", "a_batch", "a_row", "a_k"],
        *["b_batch", "b_panel", "b_k", "b_column"],
        *(["b_part"] if parts > 1 else []),
    )
    wide = -(-mr // tile.width)  # vectors that hold a column of A's tile
    a_floats = BLOCK_TILES * mr * PACKED_K + 2 * tile.width  # the last column moves too much
    c_floats = BLOCK_TILES * PANELS_PER_BLOCK * mr * nr
    b_floats = KC * nr
    width = tile.width
    # The tile's text occurs twice: with strides known when compiled its loop is a fifth shorter.
    inner = f"{tile.part}(high, rows_at, i64(1), i64(1), length, i64(0), i64(0)"
    several, apart = parts > 1, BLOCK_TILES * mr * nr  # floats from a panel's sums to the next's
    panel = f"p // {parts}" if several else "p"
    part = f" + p % {parts} * {4 * apart}" if several else ""
    waits = f"(p - p % {parts} - p0) * {4 * apart}" if several else \
        f"((p - p0) * {BLOCK_TILES} + t) * {4 * mr * nr}"
    split = SPLIT.strip("\n")
    if several:
        split += f"\n    p_lo, p_hi = p_lo * {parts}, p_hi * {parts}"
    at_once = PANELS_PER_BLOCK // parts * parts

    def place(p: str) -> str:
        """Where a panel of B lies."""
        return f"({p} % {parts} * b_part + {p} // {parts} * b_panel)" if several else \
            f"{p} * b_panel"

    def at_last_part(lines: Callable[[int], str], indent: int) -> str:
        """Lines for a tile's end: it has one when the sums of all its parts are there."""
        if not several:
            return lines(indent)
        when = " " * indent + f"if p % {parts} == {parts - 1}:\n"
        return when + lines(indent + 4)

    body = f"""
    tiles = (M + {mr - 1}) // {mr}
    high = (M + tiles - 1) // max(i64(1), tiles)  # rows of a tile: 32 are 11, 11 and 10
    panels = (N + {nr - 1}) // {nr}
    units = batch * tiles
    columns = N
{split}
    blocks = max(i64(1), (K + {KC - 1}) // {KC})
    depth = min(K, i64({KC}))  # not evenly: zeros at the end of a sum change no bit
    room = {PACKED_K} // max(i64(1), depth)
    packed_a = scratch + tid * {(a_floats + c_floats + b_floats) * 4}
    sums = packed_a + {a_floats * 4}
    gathered = sums + {c_floats * 4}
    into = f32ptr(gathered)
    far = f32ptr(b)
    gather = b_column != 1 or (b_k != {nr} and b_k > {UNPACKED})
    stride = i64({nr}) if gather else b_k
    dst = f32ptr(packed_a)
    src = f32ptr(a)
    rows_at = local_i64({mr})
    rows = i64ptr(rows_at)
    # Copying A's block pays when many panels read it and its rows lie far apart.
    packing = stride == {nr} and p_hi - p_lo >= 8 and (a_k != 1 or K > {KC // 2})
    limit = i64(0)
    if panels == 1 and u_hi > u_lo:
        limit = (u_hi // tiles * M + min(M, u_hi % tiles * high)) * N
{finish_start(arguments, parts)}
    u = u_lo
    if M <= {FEW} and a_k == 1 and (b_k == 1 or b_column == 1):
        # So few rows make it a matter of reading B as it lies, whose columns may be runs of floats.
        for item in range(u_lo, u_hi):
            out = sums
            first_row = item * M
            valid = M
            for p in range(p_lo, p_hi):
                width = min(i64({nr}), N - {panel} * {nr})
                first_column = {panel} * {nr}
                panel = b + 4 * (item * b_batch + {place("p")})
                for k in range(0, max(i64(1), K), {KC}):
                    length = min(i64({KC}), K - k)
                    for m in range(M):
                        rows[0] = a + 4 * (item * a_batch + m * a_row + k)
                        to = sums + {4 * nr} * m{part}
                        if b_column == 1:
                            {tile.single}(rows_at, i64(1), i64(1), length, i64(0), i64(0), i64(1),
                                panel + 4 * k * b_k, i64(0), i64(0), b_k, to, i64({nr}), k > 0)
                        else:
                            for j in range(0, width, {tile.width}):
                                across_{tile.width}(rows[0], panel + 4 * (j * b_column + k),
                                    b_column, width - j, length, to + 4 * j, k > 0)
{at_last_part(finish_tile, 16)}
        u = u_hi
    while u < u_hi:
        item = u // tiles
        t0 = u % tiles
        count = min(min(i64({BLOCK_TILES}), tiles - t0), u_hi - u)
        u += count
        for p0 in range(p_lo, p_hi, {at_once}):
            p1 = min(p_hi, p0 + {at_once})
            for step in range(blocks):
                k0 = step * depth
                length = min(depth, K - k0)
                slot = step % max(i64(1), room) * {BLOCK_TILES}
                if packing and (p0 == p_lo or blocks > room):
                    for t in range(count):
                        to = (slot + t) * depth * {mr}
                        from_ = item * a_batch + k0 * a_k
                        if a_k == 1:
                            for m in range({mr}):
                                r = from_ + min((t0 + t) * high + m, M - 1) * a_row
                                for k in range(length):
                                    dst[to + k * {mr} + m] = src[r + k]
                        elif a_row == 1:  # rows that are none are not looked at
                            from_ += (t0 + t) * high
                            for k in range(length):
                                move_{wide}_{tile.width}(packed_a + 4 * (to + k * {mr}),
                                    a + 4 * (from_ + k * a_k))
                        else:
                            for k in range(length):
                                for m in range({mr}):
                                    r = min((t0 + t) * high + m, M - 1)
                                    dst[to + k * {mr} + m] = src[from_ + k * a_k + r * a_row]
                for p in range(p0, p1):
                    b_at = b + 4 * (item * b_batch + {place("p")} + k0 * b_k)
                    next_b = b + 4 * (item * b_batch + {place("(p + 1)")} + k0 * b_k)
                    if p + 1 == p1:
                        next_b = b + 4 * (item * b_batch + {place("p0")} + (k0 + depth) * b_k)
                    lines = (length * {nr * 4 // LINE} + count - 1) // count
                    width = min(i64({nr}), N - {panel} * {nr})
                    if gather:
                        from_ = item * b_batch + {place("p")} + k0 * b_k
                        done = i64(0)
                        if b_column == 1:
                            done = length
                            for k in range(length):
                                move_{tile.row}(gathered + 4 * k * {nr}, b + 4 * (from_ + k * b_k))
                        elif b_k == 1 and width == {nr}:
                            done = length // {width} * {width}
                            for k in range(0, done, {width}):
                                for v in range({tile.nv}):
                                    turn_{width}(gathered + 4 * (k * {nr} + v * {width}),
                                        i64({4 * nr}), b + 4 * (from_ + k + v * {width} * b_column),
                                        4 * b_column)
                        for k in range(done, length):
                            for j in range({nr}):
                                at = from_ + k * b_k + min(i64(j), width - 1) * b_column
                                into[k * {nr} + j] = far[at]
                        b_at = gathered
                        lines = i64(0)
                    first_column = {panel} * {nr}
                    for t in range(count):
                        first = (t0 + t) * high
                        first_row = item * M + first
                        valid = min(high, M - first)
                        out = sums{f" + t * {4 * mr * nr}" if several else ""}
                        if blocks > 1:
                            out += {waits}
                        sum_at = out{part}
                        if step == blocks - 1:
{claim_parts(tile, 28, parts) if several else claim_tile(tile, 28)}
                        if packing:
                            for line in range(t * lines, (t + 1) * lines):
                                fetch_line(next_b + {LINE} * line)
                            for m in range({mr}):
                                rows[m] = packed_a + 4 * ((slot + t) * depth * {mr} + m)
                            {inner}, i64({mr}), b_at,
                                    i64(0), i64(0), i64({nr}), sum_at, i64({nr}), step > 0)
                        else:
                            for m in range({mr}):
                                r = first + min(i64(m), valid - 1)
                                rows[m] = a + 4 * (item * a_batch + r * a_row + k0 * a_k)
                            {inner}, a_k, b_at,
                                    i64(0), i64(0), stride, sum_at, i64({nr}), step > 0)
                        if step == blocks - 1:
{at_last_part(finish_tile, 28)}
"""
    return contraction("Matrix product.", arguments, epilogue, tile, body,
                       a_floats + c_floats + b_floats)


def conv2d(epilogue: Epilogue, tile: Tile) -> Template:
    """Direct convolution of a zero-padded NHWC input with packed weights into dense NHWC.

    The element (image, h, w, channel) of x lies at image * x_image + h * x_row + w * x_pixel +
    channel floats. C and K count channels per group; rows of the result are (image, oh, ow),
    columns are group * K + k. Weights: pack(columns=K, n0=KH, n1=KW, n2=C).
    """
    weights = f"""
    n0, n1, n2 = KH, KW, C
    a1, b0, b1, b2 = dilation_w * x_pixel, KW * C * {tile.nr}, C * {tile.nr}, i64({tile.nr})
    panel_floats = KH * KW * C * {tile.nr}
    channel_step = i64(0)
    if dilation_w == 1 and x_pixel == C:
        n1, n2 = i64(1), KW * C  # neighbouring pixels are one run of floats"""
    return _convolution("Direct convolution.", epilogue, tile, weights)


def depthwise(epilogue: Epilogue, vector_width: int) -> Template:
    """Convolution of each channel with its own filter; arguments as conv2d, with groups = 1.

    C = K = the number of channels; the weights are dense [KH][KW][C], unpacked.
    """
    tile = lanes_tile(vector_width)
    weights = f"""
    n0, n1, n2 = KH, KW, i64(1)
    a1, b0, b1, b2 = dilation_w * x_pixel, KW * C, C, i64(0)
    panel_floats = i64({tile.nr})
    channel_step = i64({tile.nr})"""
    return _convolution("Depthwise convolution.", epilogue, tile, weights)


def mean_pool(epilogue: Epilogue, tile: Tile) -> Template:
    """The mean of each window that lies inside the image, of every channel.

    Arguments as conv2d without weights, with groups = 1 and C = K = the number of channels;
    `tile` is one of lanes.
    """
    weights = f"""
    n0, n1, n2 = KH, KW, i64(1)
    a1, b0, b1, b2 = dilation_w * x_pixel, i64(0), i64(0), i64(0)
    panel_floats = i64(0)
    channel_step = i64({tile.nr})
    share = f32(1) / f32(KH * KW)
    w = local_f32({tile.nr})
    fill_{tile.row}(w, f32(1))"""
    after = f"""
                sums = f32ptr(out)
                for e in range({tile.mr * tile.nr}):
                    sums[e] = sums[e] * share"""
    return _convolution("Mean of windows.", epilogue, tile, weights, after)


def _convolution(doc: str, epilogue: Epilogue, tile: Tile, weights: str,
                 after: str = "") -> Template:
    """A contraction over windows; `weights` is the text that names the strides of both sides.

    `after` is text at a tile's end, before it is finished.
    """
    mr, nr = tile.mr, tile.nr
    arguments = (
        *(("x",) if "w = local" in weights else ("x", "w")),
        *["images", "OH", "OW", "groups", "KH", "KW", "C", "K", "x_image", "x_row", "x_pixel"],
        *["stride_h", "stride_w", "dilation_h", "dilation_w"],
    )
    body = f"""{pixel_tiles(tile)}{weights}
    a0 = dilation_h * x_row
    table_at = local_i64({TILES_PER_BLOCK * mr})
    table = i64ptr(table_at)
    rows_at = local_i64({mr})
    rows = i64ptr(rows_at)
    out = local_f32({mr * nr})
    left = rows_all - u_lo * {mr}
    limit = min(rows_all, u_hi * {mr}) * columns if panels == 1 else i64(0)
{finish_start(arguments)}
    ow = u_lo * {mr} % max(i64(1), OW)
    oh = u_lo * {mr} // max(i64(1), OW) % max(i64(1), OH)
    image = u_lo * {mr} // max(i64(1), OW * OH)
    for t0 in range(u_lo, u_hi, {TILES_PER_BLOCK}):
        count = min(i64({TILES_PER_BLOCK}), u_hi - t0)
        for r in range(count * {mr}):
            table[r] = x + 4 * (
                image * x_image + oh * stride_h * x_row + ow * stride_w * x_pixel
            )
            left -= 1
            if left > 0:  # counting up costs a tenth of dividing
{count_up(PIXEL, "image", 16)}
        for p in range(p_lo, p_hi):
            group = p // per_group
            q = p % per_group
            width = min(i64({nr}), K - q * {nr})
            first_column = group * K + q * {nr}
            shift = 4 * (group * C + q * channel_step)
            b_at = w + 4 * p * panel_floats
            for t in range(count):
                first_row = (t0 + t) * {mr}
{claim_tile(tile, 16)}
                for m in range({mr}):
                    rows[m] = table[t * {mr} + m] + shift
                {tile.name}(rows_at, n0, n1, n2, a0, a1, i64(1),
                            b_at, b0, b1, b2, out, i64({nr}), False)
                valid = min(i64({mr}), rows_all - first_row){after}
{finish_tile(16)}
"""
    return contraction(doc, arguments, epilogue, tile, body)
