"""Every kernel template against a float64 NumPy reference, over awkward sizes.

Each case runs on 1, 2 and 3 threads with memory checks and must give the same bits.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from harness import run  # noqa: E402

from lamina.compiler.lower.templates import contract, text, weight_grad, window  # noqa: E402
from lamina.compiler.lower.templates.text import STORE, Epilogue, Operand  # noqa: E402
from lamina.runtime.cpu import host  # noqa: E402

WIDTH = host.vector_width()
WIDE, NARROW = text.wide_tile(WIDTH), text.narrow_tile(WIDTH)
TILES = [WIDE, NARROW, text.wide_tile(4)]


def up(a, b):
    return -(-a // b) * b


def noise(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def same_on_threads(calls, inputs, outputs, cache):
    """The outputs, after asserting that 1, 2 and 3 threads give the same bits."""
    results = [run(calls, inputs, outputs, cache, threads) for threads in (1, 2, 3)]
    for other in results[1:]:
        for name in outputs:
            assert other[name].tobytes() == results[0][name].tobytes(), name
    return results[0]


def close(actual, expected, depth=1):
    """Within a float32 sum's rounding error of `depth` terms."""
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max(initial=0) <= 4e-7 * scale * max(4, np.sqrt(depth))


def packing(tile, k, n, s_k, s_n):
    return contract.pack(tile), {
        "source": "b",
        "packed": "packed",
        "groups": 1,
        "columns": n,
        "n0": 1,
        "n1": 1,
        "n2": k,
        "s_group": 0,
        "s_column": s_n,
        "s0": 0,
        "s1": 0,
        "s2": s_k,
    }


SIZES = [
    (0, 3, 4),
    (3, 0, 4),
    (3, 4, 0),
    (1, 1, 1),
    (6, 16, 5),
    (7, 17, 3),
    (5, 15, 64),
    (145, 33, 31),
    (64, 10, 84),
    (13, 70, 321),
    (151, 270, 700),
    (1, 100, 37),
]


def product(tile, a, b, cache):
    """A @ B with B packed, on one, two and three threads."""
    (m, k), n = a.shape, b.shape[1]
    calls = [
        packing(tile, k, n, n, 1),
        (
            contract.gemm(STORE, tile),
            {
                "a": "a",
                "b": "packed",
                "y0": "c",
                "batch": 1,
                "M": m,
                "N": n,
                "K": k,
                "a_batch": 0,
                "a_row": k,
                "a_k": 1,
                "b_batch": 0,
                "b_panel": k * tile.nr,
                "b_k": tile.nr,
                "b_column": 1,
            },
        ),
    ]
    outputs = {"c": ("f32", (m, n)), "packed": ("f32", (up(n, tile.nr) * k,))}
    return same_on_threads(calls, {"a": a, "b": b}, outputs, cache)["c"]


@pytest.mark.parametrize("tile", TILES, ids=lambda t: t.name)
@pytest.mark.parametrize("m,n,k", SIZES)
def test_gemm_packed(m, n, k, tile, kernel_cache):
    """Edge tiles, several K blocks, empty sizes."""
    rng = np.random.default_rng(m * 7 + n)
    a, b = noise(rng, m, k), noise(rng, k, n)
    close(product(tile, a, b, kernel_cache), a.astype(float) @ b.astype(float), k)


@pytest.mark.parametrize("tile", [make(width) for width in sorted({4, 8, WIDTH})
                                  for make in (text.wide_tile, text.narrow_tile)],
                         ids=lambda t: t.name)
def test_a_row_has_the_same_bits_however_many_there_are(tile, kernel_cache):
    """Tiles are as high as the rows need: a batch of one is no other model than a batch of 32."""
    rng = np.random.default_rng(1)
    a, b = noise(rng, 33, 150), noise(rng, 150, tile.nr + 3)
    whole = product(tile, a, b, kernel_cache)
    for m in range(1, 33):
        assert product(tile, a[:m], b, kernel_cache).tobytes() == whole[:m].tobytes(), m


@pytest.mark.parametrize("tile", [make(width) for width in sorted({4, 8, WIDTH})
                                  for make in (text.wide_tile, text.narrow_tile)],
                         ids=lambda t: t.name)
@pytest.mark.parametrize("n,k", [(1, 1), (5, 15), (16, 16), (33, 300), (70, 257), (3, 0)])
def test_few_rows_have_the_same_bits_wherever_b_lies(n, k, tile, kernel_cache):
    """Up to three rows read B where it lies, by rows or by columns: no other sum than packed."""
    rng = np.random.default_rng(n)
    a, b = noise(rng, 4, k), noise(rng, k, n)
    for m in range(1, 5):
        expected = product(tile, a[:m], b, kernel_cache)
        for stored, row, column in ((b, n, 1), (np.ascontiguousarray(b.T), 1, k)):
            calls = [(contract.gemm(STORE, tile),
                      {"a": "a", "b": "b", "y0": "c", "batch": 1, "M": m, "N": n, "K": k,
                       "a_batch": 0, "a_row": k, "a_k": 1, "b_batch": 0,
                       "b_panel": tile.nr * column, "b_k": row, "b_column": column})]
            out = same_on_threads(calls, {"a": a[:m], "b": stored}, {"c": ("f32", (m, n))},
                                  kernel_cache)
            assert out["c"].tobytes() == expected.tobytes(), (m, row)


@pytest.mark.parametrize("m,n,k", [(7, 17, 3), (20, 90, 33), (151, 270, 330), (1, 5, 1)])
def test_gemm_transposed_batched_row_major(m, n, k, kernel_cache):
    """A given transposed (packed by columns inside), B unpacked, a batch of products."""
    rng = np.random.default_rng(n)
    a, b = noise(rng, 3, k, m), noise(rng, 3, k, n)
    calls = [
        (
            contract.gemm(STORE, WIDE),
            {
                "a": "a",
                "b": "b",
                "y0": "c",
                "batch": 3,
                "M": m,
                "N": n,
                "K": k,
                "a_batch": k * m,
                "a_row": 1,
                "a_k": m,
                "b_batch": k * n,
                "b_panel": WIDE.nr,
                "b_k": n,
                "b_column": 1,
            },
        )
    ]
    out = same_on_threads(calls, {"a": a, "b": b}, {"c": ("f32", (3, m, n))}, kernel_cache)
    close(out["c"], a.astype(float).transpose(0, 2, 1) @ b.astype(float), k)


@pytest.mark.parametrize("m,n,k", [(3, 33, 20), (40, 70, 300), (1, 96, 37)])
@pytest.mark.parametrize("layout", ["rows", "columns", "neither"])
def test_gemm_gathers_what_lies_apart(m, n, k, layout, kernel_cache):
    """B by rows that are far apart, by columns (blocks are transposed), and with gaps in both."""
    rng = np.random.default_rng(m)
    a = noise(rng, m, k)
    whole = noise(rng, k, 400) if layout == "rows" else noise(rng, n, k) \
        if layout == "columns" else noise(rng, n, 2 * k)
    row, column = {"rows": (400, 1), "columns": (1, k), "neither": (2, 2 * k)}[layout]
    calls = [(contract.gemm(STORE, WIDE),
              {"a": "a", "b": "b", "y0": "c", "batch": 1, "M": m, "N": n, "K": k, "a_batch": 0,
               "a_row": k, "a_k": 1, "b_batch": 0, "b_panel": WIDE.nr * column, "b_k": row,
               "b_column": column})]
    b = {"rows": whole[:, :n], "columns": whole.T, "neither": whole[:, ::2].T}[layout]
    out = same_on_threads(calls, {"a": a, "b": whole}, {"c": ("f32", (m, n))}, kernel_cache)
    close(out["c"], a.astype(float) @ b.astype(float), k)


def test_epilogue_operands(kernel_cache):
    """Every access kind, a boolean mask in and out, two results, a library function."""
    rng = np.random.default_rng(1)
    m, n, k = 20, 19, 30
    epilogue = Epilogue(
        loads=(
            Operand("column"),
            Operand("row"),
            Operand("scalar"),
            Operand("matrix"),
            Operand("matrix", "bool"),
        ),
        text=(
            "v0 = tanh(acc * f32(0.1) + x0) * x1 + x2 * x3",
            "v1 = select(x4, v0, f32(-1))",
            "v2 = v0 > f32(0)",
        ),
        stores=((Operand("matrix"), "v1"), (Operand("matrix", "bool"), "v2")),
    )
    arrays = {
        "a": noise(rng, m, k),
        "b": noise(rng, k, n),
        "bias": noise(rng, n),
        "row": noise(rng, m),
        "s": noise(rng, 1),
        "res": noise(rng, m, n),
        "mask": rng.random((m, n)) < 0.5,
    }
    calls = [
        (
            contract.gemm(epilogue, WIDE),
            {
                "a": "a",
                "b": "b",
                "x0": "bias",
                "x1": "row",
                "x2": "s",
                "x3": "res",
                "x4": "mask",
                "y0": "c",
                "y1": "pos",
                "batch": 1,
                "M": m,
                "N": n,
                "K": k,
                "a_batch": 0,
                "a_row": k,
                "a_k": 1,
                "b_batch": 0,
                "b_panel": WIDE.nr,
                "b_k": n,
                "b_column": 1,
            },
        )
    ]
    out = same_on_threads(
        calls, arrays, {"c": ("f32", (m, n)), "pos": ("bool", (m, n))}, kernel_cache
    )
    f = {name: value.astype(float) for name, value in arrays.items()}
    v0 = np.tanh(f["a"] @ f["b"] * 0.1 + f["bias"]) * f["row"][:, None] + f["s"] * f["res"]
    close(out["c"], np.where(arrays["mask"], v0, -1.0), k)
    assert (out["pos"] == (v0 > 0)).mean() > 0.99


# images, C, H, W, K, KH, KW, stride, pad, dilation, groups
CONVS = [
    (0, 2, 4, 4, 3, 3, 3, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1),
    (2, 5, 9, 8, 7, 3, 3, 1, 1, 1, 1),
    (3, 16, 14, 14, 33, 3, 3, 2, 1, 1, 1),
    (2, 4, 11, 13, 6, 3, 2, 2, 2, 2, 3),
    (1, 3, 12, 300, 20, 5, 5, 1, 0, 1, 1),
    (5, 17, 7, 7, 16, 1, 1, 1, 0, 1, 1),
    (1, 3, 23, 29, 9, 7, 7, 2, 3, 1, 1),
]


def gradient_of_conv(x, w, dy, stride, dilation, groups):
    """y, dx and dw of a convolution of an already padded NHWC x, in float64, tap by tap."""
    kn, c, kh, kw = w.shape
    k = kn // groups
    n, oh, ow, _ = dy.shape
    y, dx, dw = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(w.shape)
    for g in range(groups):
        ks, cs = slice(g * k, g * k + k), slice(g * c, g * c + c)
        for i in range(kh):
            for j in range(kw):
                hs = slice(i * dilation, i * dilation + (oh - 1) * stride + 1, stride)
                ws = slice(j * dilation, j * dilation + (ow - 1) * stride + 1, stride)
                part = x[:, hs, ws, cs].astype(float)
                y[..., ks] += part @ w[ks, :, i, j].T.astype(float)
                dw[ks, :, i, j] = np.einsum("nhwk,nhwc->kc", dy[..., ks].astype(float), part)
                dx[:, hs, ws, cs] += dy[..., ks].astype(float) @ w[ks, :, i, j].astype(float)
    return y, dx, dw


def conv_sizes(n, oh, ow, groups, kh, kw, c, k, hp, wp, channels, stride, dilation):
    return {
        "images": n,
        "OH": oh,
        "OW": ow,
        "groups": groups,
        "KH": kh,
        "KW": kw,
        "C": c,
        "K": k,
        "x_image": hp * wp * channels,
        "x_row": wp * channels,
        "x_pixel": channels,
        "stride_h": stride,
        "stride_w": stride,
        "dilation_h": dilation,
        "dilation_w": dilation,
    }


@pytest.mark.parametrize("tile", TILES, ids=lambda t: t.name)
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_convolution_and_gradients(case, tile, kernel_cache):
    """Padding, forward, data gradient (forward of rotated weights), weight gradient."""
    n, c, h, w, k, kh, kw, stride, padding, dilation, groups = case
    rng = np.random.default_rng(h)
    hp, wp, cg, kg = h + 2 * padding, w + 2 * padding, c * groups, k * groups
    oh, ow = (
        (hp - dilation * (kh - 1) - 1) // stride + 1,
        (wp - dilation * (kw - 1) - 1) // stride + 1,
    )
    x, weights, dy = noise(rng, n, h, w, cg), noise(rng, kg, c, kh, kw), noise(rng, n, oh, ow, kg)
    forward = conv_sizes(n, oh, ow, groups, kh, kw, c, k, hp, wp, cg, stride, dilation)
    # The gradient is spread by the stride and padded by the filter's reach, then convolved.
    gh, gw = hp + dilation * (kh - 1), wp + dilation * (kw - 1)
    backward = conv_sizes(n, hp, wp, groups, kh, kw, k, c, gh, gw, kg, 1, dilation)
    chunks = 2
    calls = [
        (
            window.pad(),
            {
                "x": "x",
                "y0": "xp",
                "images": n,
                "H": h,
                "W": w,
                "C": cg,
                "top": padding,
                "left": padding,
                "HP": hp,
                "WP": wp,
                "spread_h": 1,
                "spread_w": 1,
            },
        ),
        (
            contract.pack(tile),
            {
                "source": "w",
                "packed": "wp",
                "groups": groups,
                "columns": k,
                "n0": kh,
                "n1": kw,
                "n2": c,
                "s_group": k * c * kh * kw,
                "s_column": c * kh * kw,
                "s0": kw,
                "s1": 1,
                "s2": kh * kw,
            },
        ),
        (contract.conv2d(STORE, tile), dict(x="xp", w="wp", y0="y", **forward)),
        (
            window.pad(),
            {
                "x": "dy",
                "y0": "gp",
                "images": n,
                "H": oh,
                "W": ow,
                "C": kg,
                "top": dilation * (kh - 1),
                "left": dilation * (kw - 1),
                "HP": gh,
                "WP": gw,
                "spread_h": stride,
                "spread_w": stride,
            },
        ),
        (
            contract.pack(tile),
            {
                "source": ("w", 4 * (kh * kw - 1)),
                "packed": "wr",
                "groups": groups,
                "columns": c,
                "n0": kh,
                "n1": kw,
                "n2": k,
                "s_group": k * c * kh * kw,
                "s_column": kh * kw,
                "s0": -kw,
                "s1": -1,
                "s2": c * kh * kw,
            },
        ),
        (contract.conv2d(STORE, tile), dict(x="gp", w="wr", y0="dx", **backward)),
        (
            weight_grad.conv2d_weight_grad(tile),
            dict(x="xp", dy="dy", partial="part", chunks=chunks, **forward),
        ),
        (
            weight_grad.combine_weight_grad(STORE, tile),
            {
                "partial": "part",
                "y0": "dw",
                "groups": groups,
                "KH": kh,
                "KW": kw,
                "C": c,
                "K": k,
                "chunks": chunks,
                "s_out": c * kh * kw,
                "s_in": kh * kw,
                "s_h": kw,
                "s_w": 1,
            },
        ),
    ]
    depth = kh * kw
    outputs = {
        "xp": ("f32", (n, hp, wp, cg)),
        "wp": ("f32", (groups * up(k, tile.nr) * depth * c,)),
        "y": ("f32", (n, oh, ow, kg)),
        "gp": ("f32", (n, gh, gw, kg)),
        "wr": ("f32", (groups * up(c, tile.nr) * depth * k,)),
        "dx": ("f32", (n, hp, wp, cg)),
        "part": ("f32", (chunks * groups * up(depth * c, tile.mr) * up(k, tile.nr),)),
        "dw": ("f32", weights.shape),
    }
    out = same_on_threads(calls, {"x": x, "w": weights, "dy": dy}, outputs, kernel_cache)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    assert (out["xp"] == padded).all()
    y, dx, dw = gradient_of_conv(padded, weights, dy, stride, dilation, groups)
    close(out["y"], y, depth * c)
    close(out["dx"], dx, depth * k)
    close(out["dw"], dw, n * oh * ow)


@pytest.mark.parametrize(
    "n,h,w,c,k,stride,dilation",
    [(2, 9, 8, 5, 3, 1, 1), (1, 12, 15, 16, 3, 2, 1), (2, 13, 11, 37, 5, 1, 2)],
)
def test_depthwise(n, h, w, c, k, stride, dilation, kernel_cache):
    """Channels below, at and above the tile's columns."""
    rng = np.random.default_rng(c)
    oh, ow = (h - dilation * (k - 1) - 1) // stride + 1, (w - dilation * (k - 1) - 1) // stride + 1
    x, weights = noise(rng, n, h, w, c), noise(rng, k, k, c)
    sizes = conv_sizes(n, oh, ow, 1, k, k, c, c, h, w, c, stride, dilation)
    out = same_on_threads(
        [(contract.depthwise(STORE, WIDTH), dict(x="x", w="w", y0="y", **sizes))],
        {"x": x, "w": weights},
        {"y": ("f32", (n, oh, ow, c))},
        kernel_cache,
    )
    grouped = np.ascontiguousarray(weights.transpose(2, 0, 1)[:, None])
    dy = np.zeros((n, oh, ow, c), np.float32)
    close(out["y"], gradient_of_conv(x, grouped, dy, stride, dilation, c)[0], k * k)


# n, h, w, c, kh, kw, stride, pad
POOLS = [
    (2, 8, 8, 6, 2, 2, 2, 0),
    (1, 7, 9, 70, 3, 2, 2, 1),
    (2, 5, 5, 1, 3, 3, 1, 1),
    (1, 4, 6, 64, 4, 6, 1, 0),
    (0, 4, 4, 3, 2, 2, 2, 0),
]


def pooled(x, dy, kh, kw, stride, padding, maximum, count_padding):
    """y and dx of pooling, window by window."""
    n, h, w, c = x.shape
    _, oh, ow, _ = dy.shape
    y, dx = np.zeros(dy.shape), np.zeros(x.shape)
    for i in range(oh):
        for j in range(ow):
            hs = slice(max(0, i * stride - padding), min(h, i * stride - padding + kh))
            ws = slice(max(0, j * stride - padding), min(w, j * stride - padding + kw))
            part = x[:, hs, ws].astype(float)
            if maximum:
                flat = part.reshape(n, part.shape[1] * part.shape[2], c)
                y[:, i, j] = flat.max(1)
                first = flat.argmax(1)[:, None] == np.arange(flat.shape[1])[None, :, None]
                dx[:, hs, ws] += (first * dy[:, i, j][:, None]).reshape(part.shape)
            else:
                count = kh * kw if count_padding else part.shape[1] * part.shape[2]
                y[:, i, j] = part.sum((1, 2)) / count
                dx[:, hs, ws] += dy[:, i, j][:, None, None] / count
    return y, dx


@pytest.mark.parametrize("kind", ["max-u8", "max-i32", "average", "average-inside"])
@pytest.mark.parametrize("case", POOLS, ids=str)
def test_pooling(case, kind, kernel_cache):
    """Overlapping windows, padding, ties (small integers), and both ways to count."""
    n, h, w, c, kh, kw, stride, padding = case
    rng = np.random.default_rng(c)
    oh, ow = (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1
    x = rng.integers(-3, 3, (n, h, w, c)).astype(np.float32)
    dy = noise(rng, n, oh, ow, c)
    sizes = {
        "images": n,
        "H": h,
        "W": w,
        "OH": oh,
        "OW": ow,
        "C": c,
        "KH": kh,
        "KW": kw,
        "stride_h": stride,
        "stride_w": stride,
        "pad_h": padding,
        "pad_w": padding,
    }
    outputs = {"y": ("f32", dy.shape), "dx": ("f32", x.shape)}
    inside = kind != "average-inside"
    if kind.startswith("max"):
        index = kind[4:]
        outputs["index"] = ("bool" if index == "u8" else "i32", dy.shape)
        calls = [
            (window.max_pool(STORE, index), dict(x="x", index="index", y0="y", **sizes)),
            (window.max_pool_grad(STORE, index), dict(dy="dy", index="index", y0="dx", **sizes)),
        ]
    else:
        calls = [
            (window.avg_pool(STORE, inside), dict(x="x", y0="y", **sizes)),
            (window.avg_pool_grad(STORE, inside), dict(dy="dy", y0="dx", **sizes)),
        ]
    out = same_on_threads(calls, {"x": x, "dy": dy}, outputs, kernel_cache)
    y, dx = pooled(x, dy, kh, kw, stride, padding, kind.startswith("max"), inside)
    close(out["y"], y)
    close(out["dx"], dx, kh * kw)


def test_max_pool_special_values(kernel_cache):
    """NaN wins over everything; a window of -inf stays -inf and keeps an index inside."""
    x = np.full((1, 2, 6, 1), -np.inf, np.float32)
    x[0, 0, 2], x[0, 1, 3], x[0, 1, 4] = np.nan, 5, np.inf
    sizes = {
        "images": 1,
        "H": 2,
        "W": 6,
        "OH": 1,
        "OW": 3,
        "C": 1,
        "KH": 2,
        "KW": 2,
        "stride_h": 2,
        "stride_w": 2,
        "pad_h": 0,
        "pad_w": 0,
    }
    out = run(
        [(window.max_pool(STORE, "u8"), dict(x="x", index="i", y0="y", **sizes))],
        {"x": x},
        {"y": ("f32", (1, 1, 3, 1)), "i": ("bool", (1, 1, 3, 1))},
        kernel_cache,
    )
    np.testing.assert_array_equal(out["y"].ravel(), [-np.inf, np.nan, np.inf])
    assert out["i"].view(np.uint8).ravel().tolist() == [0, 0, 2]


def test_names_match_the_runtime():
    """The compiler lists what kernel texts may import without importing Numba; it must be right."""
    for module, names in text.NAMES.items():
        offered = importlib.import_module(f"lamina.runtime.cpu.{module}")
        assert [name for name in names if not hasattr(offered, name)] == []
    for width in (4, 8, 16):
        for tile in (text.wide_tile(width), text.narrow_tile(width)):
            assert {tile.name, tile.part} <= {*text.NAMES["tiles"]}
        assert text.lanes_tile(width).name in text.NAMES["tiles"]


def test_bad_epilogues_are_refused():
    """A mistake in the lowering should stop there, not in generated code."""
    with pytest.raises(ValueError, match="no operand"):
        Operand("diagonal")
    with pytest.raises(ValueError, match="columns"):
        weight_grad.combine_weight_grad(Epilogue(loads=(Operand("column"),)), WIDE)
    with pytest.raises(ValueError, match="one float32 result"):
        window.pad(Epilogue(stores=()))


POOLS = [  # images, height, width, channels, kernel, stride
    (2, 6, 8, 1, (2, 2), (2, 2)),
    (1, 7, 5, 6, (2, 2), (2, 2)),
    (3, 9, 9, 8, (3, 2), (3, 4)),
    (2, 5, 5, 17, (1, 3), (2, 3)),
    (1, 3, 3, 33, (3, 3), (3, 3)),
    (0, 4, 4, 6, (2, 2), (2, 2)),
]


@pytest.mark.parametrize("case", POOLS, ids=str)
def test_mean_pools_in_tiles(case, kernel_cache):
    """Windows inside the image: rows stored whole, pixels that no window covers, few channels."""
    images, high, wide, channels, kernel, stride = case
    oh, ow = ((n - k) // s + 1 for n, k, s in zip((high, wide), kernel, stride, strict=True))
    rng = np.random.default_rng(0)
    x, dy = noise(rng, images, high, wide, channels), noise(rng, images, oh, ow, channels)
    mean, spread = np.zeros(dy.shape), np.zeros(x.shape)
    for i in range(oh):
        for j in range(ow):
            rows = slice(i * stride[0], i * stride[0] + kernel[0])
            columns = slice(j * stride[1], j * stride[1] + kernel[1])
            mean[:, i, j] = x[:, rows, columns].mean((1, 2), dtype=np.float64)
            spread[:, rows, columns] += dy[:, i, j][:, None, None] / (kernel[0] * kernel[1])
    sizes = {"images": images, "H": high, "W": wide, "OH": oh, "OW": ow, "C": channels,
             "KH": kernel[0], "KW": kernel[1], "stride_h": stride[0], "stride_w": stride[1]}
    tile = text.lanes_tile(WIDTH)
    forward = {"x": "x", "y0": "y", "groups": 1, "K": channels, "dilation_h": 1, "dilation_w": 1,
               "x_image": high * wide * channels, "x_row": wide * channels, "x_pixel": channels}
    calls = [(contract.mean_pool(STORE, tile), {**sizes, **forward}),
             (window.mean_pool_grad(STORE, tile),
              {**sizes, "dy": "dy", "y0": "dx", "pad_h": 0, "pad_w": 0})]
    outputs = {"y": ("f32", dy.shape), "dx": ("f32", x.shape)}
    got = same_on_threads(calls, {"x": x, "dy": dy}, outputs, kernel_cache)
    close(got["y"], mean)
    close(got["dx"], spread)
