"""Padding and pooling over dense NHWC tensors. Rows are pixels (image, h, w), columns channels."""

from __future__ import annotations

from lamina.compiler.lower.templates.text import (
    POINTERS,
    SPLIT,
    STORE,
    Epilogue,
    Template,
    Tile,
    contraction,
    element,
    finish_start,
    finish_tile,
    kernel_text,
    operand_names,
    row_loads,
)

CHANNELS = 64  # channels handled at once, in accumulators on the stack
_INDEX = {"u8": "u8", "i32": "i32"}


def pad(epilogue: Epilogue = STORE) -> Template:
    """Copy x[images, H, W, C] into a zeroed y0[images, HP, WP, C].

    Pixel (h, w) goes to (top + h * spread_h, left + w * spread_w); what falls outside is
    dropped, so that negative margins crop. spread > 1 spaces a gradient out for the data gradient
    of a strided convolution. The epilogue runs on what is copied (row, column of x); its one
    store is the padded tensor.
    """
    if len(epilogue.stores) != 1 or epilogue.stores[0][0].dtype != "f32":
        raise ValueError("pad has one float32 result")
    arguments = (
        "x",
        *operand_names(epilogue),
        *["images", "H", "W", "C", "top", "left", "HP", "WP", "spread_h", "spread_w"],
    )
    inner = Epilogue(epilogue.loads, epilogue.text, ())
    body = f"""
    src = f32ptr(x)
    lines = images * HP
    for line in range(tid * lines // nthreads, (tid + 1) * lines // nthreads):
        image = line // HP
        h = line % HP - top
        inside = h >= 0 and h % spread_h == 0 and h // spread_h < H
        start = line * WP * C
        if not inside or spread_w != 1:
            for i in range(WP * C):
                p_y0[start + i] = f32(0)
        if inside:
            h //= spread_h
            first = max(i64(0), (spread_w - 1 - left) // spread_w)
            last = max(first, min(W, (WP - left + spread_w - 1) // spread_w))
            if spread_w == 1:
                for i in range(min(WP, left + first) * C):
                    p_y0[start + i] = f32(0)
                for i in range(max(i64(0), left + last) * C, WP * C):
                    p_y0[start + i] = f32(0)
            for w in range(first, last):
                row = (image * H + h) * W + w
                to = start + (left + w * spread_w) * C
                from_ = row * C
{row_loads(inner, 16)}
                for c in range(C):
{element(inner, "src[from_ + c]", "from_ + c", "c", 20)}
                    p_y0[to + c] = f32({epilogue.stores[0][1]})
"""
    return Template(kernel_text("Zero padding.", arguments, epilogue, body), arguments)


_SIZES = ["images", "H", "W", "OH", "OW", "C", "KH", "KW", "stride_h", "stride_w", "pad_h", "pad_w"]

_WINDOW = """
    pixels = images * OH * OW
    for row in range(tid * pixels // nthreads, (tid + 1) * pixels // nthreads):
        image = row // (OH * OW)
        h0 = row // OW % OH * stride_h - pad_h
        w0 = row % OW * stride_w - pad_w
        h_lo, h_hi = max(i64(0), -h0), min(KH, H - h0)
        w_lo, w_hi = max(i64(0), -w0), min(KW, W - w0)
        corner = ((image * H + h0) * W + w0) * C
"""

# The windows that cover pixel (h, w): oh_lo <= oh < oh_hi, ow_lo <= ow < ow_hi.
_COVER = """
    pixels = images * H * W
    for row in range(tid * pixels // nthreads, (tid + 1) * pixels // nthreads):
        image = row // (H * W)
        h = row // W % H + pad_h
        w = row % W + pad_w
        oh_lo = max(i64(0), (h - KH + stride_h) // stride_h)
        ow_lo = max(i64(0), (w - KW + stride_w) // stride_w)
        oh_hi, ow_hi = min(OH, h // stride_h + 1), min(OW, w // stride_w + 1)
"""


def max_pool(epilogue: Epilogue = STORE, index: str = "") -> Template:
    """The largest element of each window; padding counts as -inf, NaN wins.

    With `index` ("u8" or "i32") the argument "index" receives each window's winner, the first in
    row-major order, as kh * KW + kw, for the gradient ("u8" for at most 256 taps).
    """
    store_index = (
        f"""
                for c in range(width):
                    chosen[row * C + c0 + c] = {_INDEX[index]}(where[c])"""
        if index
        else ""
    )
    arguments = ("x", *(("index",) if index else ()), *operand_names(epilogue), *_SIZES)
    body = f"""
    src = f32ptr(x)
    best = f32ptr(local_f32({CHANNELS}))
    where = i32ptr(local_f32({CHANNELS}))
    {"chosen = " + _pointer(index) + "(index)" if index else ""}
{_WINDOW.strip(chr(10))}
        for c0 in range(0, C, {CHANNELS}):
            width = min(i64({CHANNELS}), C - c0)
            first = i32(h_lo * KW + w_lo)
            for c in range(width):
                best[c] = f32(-1e39)
                where[c] = first
            for kh in range(h_lo, h_hi):
                for kw in range(w_lo, w_hi):
                    start = corner + (kh * W + kw) * C + c0
                    tap = i32(kh * KW + kw)
                    for c in range(width):
                        value = src[start + c]
                        wins = (value > best[c]) | (value != value)
                        best[c] = select(wins, value, best[c])
                        where[c] = select(wins, tap, where[c])
            if width > 0:
{row_loads(epilogue, 16)}
                for c in range(width):
{element(epilogue, "best[c]", "row * C + c0 + c", "c0 + c", 20)}{store_index}
"""
    return Template(kernel_text("Max pooling.", arguments, epilogue, body), arguments)


def max_pool_grad(epilogue: Epilogue = STORE, index: str = "u8") -> Template:
    """dx[images, H, W, C] from dy[images, OH, OW, C] and the index that `max_pool` stored."""
    arguments = ("dy", "index", *operand_names(epilogue), *_SIZES)
    body = f"""
    src = f32ptr(dy)
    chosen = {_pointer(index)}(index)
    sums = f32ptr(local_f32({CHANNELS}))
{_COVER.strip(chr(10))}
        for c0 in range(0, C, {CHANNELS}):
            width = min(i64({CHANNELS}), C - c0)
            for c in range(width):
                sums[c] = f32(0)
            for oh in range(oh_lo, oh_hi):
                for ow in range(ow_lo, ow_hi):
                    start = ((image * OH + oh) * OW + ow) * C + c0
                    tap = {_INDEX[index]}((h - oh * stride_h) * KW + w - ow * stride_w)
                    for c in range(width):
                        hit = chosen[start + c] == tap
                        sums[c] += select(hit, src[start + c], f32(0))
{row_loads(epilogue, 12)}
            for c in range(width):
{element(epilogue, "sums[c]", "row * C + c0 + c", "c0 + c", 16)}
"""
    return Template(kernel_text("Gradient of max pooling.", arguments, epilogue, body), arguments)


def avg_pool(epilogue: Epilogue = STORE, count_padding: bool = True) -> Template:
    """The mean of each window; the divisor counts padding or only real elements."""
    arguments = ("x", *operand_names(epilogue), *_SIZES)
    count = "KH * KW" if count_padding else "max(i64(1), (h_hi - h_lo) * (w_hi - w_lo))"
    body = f"""
    src = f32ptr(x)
    sums = f32ptr(local_f32({CHANNELS}))
{_WINDOW.strip(chr(10))}
        count = f32({count})
        for c0 in range(0, C, {CHANNELS}):
            width = min(i64({CHANNELS}), C - c0)
            for c in range(width):
                sums[c] = f32(0)
            for kh in range(h_lo, h_hi):
                for kw in range(w_lo, w_hi):
                    start = corner + (kh * W + kw) * C + c0
                    for c in range(width):
                        sums[c] += src[start + c]
{row_loads(epilogue, 12)}
            for c in range(width):
{element(epilogue, "sums[c] / count", "row * C + c0 + c", "c0 + c", 16)}
"""
    return Template(kernel_text("Average pooling.", arguments, epilogue, body), arguments)


def avg_pool_grad(epilogue: Epilogue = STORE, count_padding: bool = True) -> Template:
    """dx[images, H, W, C] from dy[images, OH, OW, C]."""
    arguments = ("dy", *operand_names(epilogue), *_SIZES)
    if count_padding:
        count = "count = f32(KH * KW)"
    else:
        count = """top, left = oh * stride_h - pad_h, ow * stride_w - pad_w
                    tall = min(top + KH, H) - max(top, i64(0))
                    count = f32(tall * (min(left + KW, W) - max(left, i64(0))))"""
    body = f"""
    src = f32ptr(dy)
    sums = f32ptr(local_f32({CHANNELS}))
{_COVER.strip(chr(10))}
        for c0 in range(0, C, {CHANNELS}):
            width = min(i64({CHANNELS}), C - c0)
            for c in range(width):
                sums[c] = f32(0)
            for oh in range(oh_lo, oh_hi):
                for ow in range(ow_lo, ow_hi):
                    start = ((image * OH + oh) * OW + ow) * C + c0
                    {count}
                    for c in range(width):
                        sums[c] += src[start + c] / count
{row_loads(epilogue, 12)}
            for c in range(width):
{element(epilogue, "sums[c]", "row * C + c0 + c", "c0 + c", 16)}
"""
    doc = "Gradient of average pooling."
    return Template(kernel_text(doc, arguments, epilogue, body), arguments)


def mean_pool_grad(epilogue: Epilogue, tile: Tile) -> Template:
    """dx[images, H, W, C] from dy[images, OH, OW, C] where no two windows overlap.

    Windows lie inside the image; what none of them covers becomes 0. `tile` is one of lanes.
    """
    mr, nr = tile.mr, tile.nr
    arguments = ("dy", *_SIZES)
    body = f"""
    rows_all = images * H * W
    units = (rows_all + {mr - 1}) // {mr}
    panels = (C + {nr - 1}) // {nr}
    columns = C
{SPLIT.strip(chr(10))}
    share = f32(1) / f32(KH * KW)
    zeros = local_f32({nr})
    fill_{tile.row}(zeros, f32(0))
    table_at = local_i64({mr})
    table = i64ptr(table_at)
    out = local_f32({mr * nr})
    left = rows_all - u_lo * {mr}
    limit = min(rows_all, u_hi * {mr}) * columns if panels == 1 else i64(0)
{finish_start(arguments)}
    sums = f32ptr(out)
    w = u_lo * {mr} % max(i64(1), W)
    h = u_lo * {mr} // max(i64(1), W) % max(i64(1), H)
    image = u_lo * {mr} // max(i64(1), W * H)
    ow, kw = w // max(i64(1), stride_w), w % max(i64(1), stride_w)
    oh, kh = h // max(i64(1), stride_h), h % max(i64(1), stride_h)
    for t in range(u_lo, u_hi):
        for m in range({mr}):
            covered = kh < KH and kw < KW and oh < OH and ow < OW
            table[m] = dy + 4 * ((image * OH + oh) * OW + ow) * C if covered else i64(0)
            left -= 1
            if left > 0:  # counting up costs a tenth of dividing
                w += 1
                kw += 1
                if kw == stride_w:
                    kw = i64(0)
                    ow += 1
                if w == W:
                    w, kw, ow = i64(0), i64(0), i64(0)
                    h += 1
                    kh += 1
                    if kh == stride_h:
                        kh = i64(0)
                        oh += 1
                    if h == H:
                        h, kh, oh = i64(0), i64(0), i64(0)
                        image += 1
        first_row = t * {mr}
        valid = min(i64({mr}), rows_all - first_row)
        for p in range(p_lo, p_hi):
            first_column = p * {nr}
            width = min(i64({nr}), C - first_column)
            for m in range({mr}):
                at = table[m] + 4 * first_column if table[m] != 0 else zeros
                move_{tile.row}(out + m * {4 * nr}, at)
            for e in range({mr * nr}):
                sums[e] = sums[e] * share
{finish_tile(12)}
"""
    return contraction("Gradient of a mean of windows.", arguments, epilogue, tile, body)


def _pointer(index: str) -> str:
    return "u8ptr" if index == "u8" else POINTERS[index]
