"""Winograd's kernels: right on awkward sizes, the same bits on any threads, errors within bounds.

The bounds are those that Lamina's documents state: errors relative to the standard deviation of the
result, which a convolution's own rounding would exceed only with a mistake in a transform.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from harness import run  # noqa: E402

from lamina.compiler.ir.builder import Builder  # noqa: E402
from lamina.compiler.ir.types import symbol  # noqa: E402
from lamina.compiler.lower.program import lower  # noqa: E402
from lamina.compiler.lower.templates import text, winograd  # noqa: E402
from lamina.compiler.lower.templates.text import STORE  # noqa: E402
from lamina.compiler.ops import GraphMath  # noqa: E402
from lamina.compiler.transform.pipeline import run_passes  # noqa: E402
from lamina.compiler.transform.winograd import (  # noqa: E402
    DIRECT,
    SMALL,
    VARIANTS,
    WINOGRAD,
    chosen,
    gain_of,
    variant_of,
    why_direct,
)
from lamina.runtime.cpu import host  # noqa: E402

WIDTH = host.vector_width()
FOUR, TWO, OF_FIVE = VARIANTS
PLAIN = {"stride": 1, "dilation": 1, "groups": 1}
# Images, rows, columns, channels, outputs, zeros at the top and the left, at the bottom and right.
CASES = [
    (1, 1, 1, 16, 16, 1, 1, 1, 1), (2, 5, 9, 17, 33, 0, 0, 0, 0), (1, 4, 4, 20, 70, 1, 1, 1, 1),
    (3, 7, 6, 16, 64, 2, 0, 0, 2), (2, 13, 30, 40, 24, 1, 1, 1, 1), (1, 3, 3, 600, 16, 0, 2, 2, 0),
    (0, 8, 8, 16, 16, 1, 1, 1, 1),
]


def noise(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def exact(x, w, dy, top, left):
    """The convolution and the gradient of its weights in float64, tap by tap."""
    (n, rows, columns, _), taps = dy.shape, w.shape[2]
    padded = np.zeros((n, rows + taps - 1, columns + taps - 1, x.shape[3]))
    padded[:, top:top + x.shape[1], left:left + x.shape[2]] = x
    y, dw = np.zeros((n, rows, columns, w.shape[0])), np.zeros(w.shape)
    for i in range(taps):
        for j in range(taps):
            part = padded[:, i:i + rows, j:j + columns]
            y += part @ w[:, :, i, j].T.astype(float)
            dw[:, :, i, j] = np.einsum("nhwk,nhwc->kc", dy.astype(float), part)
    return y, dw


def computed(variant, x, w, dy, top, left, width, threads, cache, chunks=2):
    """What the kernels of one vector width give, with memory checked."""
    tile = text.narrow_tile(width) if w.shape[0] <= width else text.wide_tile(width)
    (k, c, taps, _), (n, rows, columns, _) = w.shape, dy.shape
    image = {"images": n, "OH": rows, "OW": columns, "H": x.shape[1], "W": x.shape[2], "C": c,
             "K": k, "top": top, "left": left, "x_image": x[0].size if n else 0,
             "x_row": x.shape[2] * c, "x_pixel": c}
    calls = [
        (winograd.weights(tile, variant), {
            "source": "w", "packed": "u", "C": c, "K": k, "s_out": c * taps * taps,
            "s_in": taps * taps, "s_h": taps, "s_w": 1}),
        (winograd.conv2d(STORE, tile, variant),
         {"x": "x", "w": "u", "y0": "y", "scratch": "block", **image}),
        (winograd.weight_grad(tile, variant), {"x": "x", "dy": "dy", "partial": "sums",
                                               "scratch": "block", "chunks": chunks, **image}),
        (winograd.combine_weight_grad(tile, variant), {"partial": "sums", "y0": "dw",
                                                       "chunks": chunks, "C": c, "K": k}),
    ]
    block = winograd.block_floats(c, tile, variant, winograd.summed_tiles(variant))
    outputs = {"y": ("f32", dy.shape), "dw": ("f32", w.shape),
               "u": ("f32", (winograd.weight_floats(c, k, tile, variant),)),
               "sums": ("f32", (chunks * winograd.sum_floats(c, k, tile, variant),)),
               "block": ("f32", (threads * block,))}
    found = run(calls, {"x": x, "w": w, "dy": dy}, outputs, cache, threads)
    return found["y"], found["dw"]


@pytest.mark.parametrize("width", sorted({4, WIDTH}))
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_awkward_sizes(case, variant, width, kernel_cache):
    """Cut tiles, cut panels, uneven borders, sums longer than a block, no image at all."""
    n, rows, columns, c, k, top, left, bottom, right = case
    rng, taps = np.random.default_rng(rows * c), variant.taps
    rows, columns = rows + taps - 3, columns + taps - 3
    x, w = noise(rng, n, rows, columns, c), noise(rng, k, c, taps, taps)
    dy = noise(rng, n, rows + top + bottom - taps + 1, columns + left + right - taps + 1, k)
    results = [computed(variant, x, w, dy, top, left, width, threads, kernel_cache)
               for threads in (1, 2, 3)]
    for other in results[1:]:
        assert [a.tobytes() for a in other] == [a.tobytes() for a in results[0]]
    for found, expected in zip(results[0], exact(x, w, dy, top, left), strict=True):
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        assert np.abs(found - expected).max(initial=0) <= 1e-5 * scale


@pytest.mark.parametrize("variant,channels,typical,worst", [
    (FOUR, 64, 1e-6, 8e-6), (FOUR, 512, 1.3e-6, 1.2e-5),
    (OF_FIVE, 64, 1e-6, 8e-6), (OF_FIVE, 512, 1.3e-6, 1.2e-5),
    (TWO, 64, 3.5e-7, 2.7e-6), (TWO, 512, 4.5e-7, 4e-6)], ids=str)
def test_errors_are_within_the_stated_bounds(variant, channels, typical, worst, kernel_cache):
    """Relative to the deviation of the result: root mean square, and largest."""
    rng, taps = np.random.default_rng(channels), variant.taps
    x, w = noise(rng, 2, 14, 14, channels), noise(rng, 32, channels, taps, taps)
    dy, border = noise(rng, 2, 14, 14, 32), taps // 2
    found = computed(variant, x, w, dy, border, border, WIDTH, 2, kernel_cache)
    for value, expected in zip(found, exact(x, w, dy, border, border), strict=True):
        errors = (value - expected) / expected.std()
        assert np.sqrt(np.mean(errors ** 2)) <= typical and np.abs(errors).max() <= worst


@pytest.mark.parametrize("variant", [FOUR, TWO], ids=str)
def test_what_is_not_a_number_stays_in_its_tiles(variant, kernel_cache):
    """A NaN in one pixel reaches the results of the tiles that read it, and no other image."""
    rng = np.random.default_rng(3)
    x, w, dy = noise(rng, 2, 12, 12, 16), noise(rng, 16, 16, 3, 3), noise(rng, 2, 12, 12, 16)
    x[0, 5, 5, 3] = np.nan
    y, dw = computed(variant, x, w, dy, 1, 1, WIDTH, 2, kernel_cache)
    assert np.isnan(y[0, 4:7, 4:7]).all() and not np.isnan(y[1]).any()
    assert not np.isnan(y[0, 8:, 8:]).any() and np.isnan(dw[:, 3]).all()
    assert not np.isnan(dw[:, :3]).any()


def graph_of(shape, kernel=(3, 3), **attrs):
    """A channels-last convolution with an epilogue, and the gradient of its weights."""
    m = GraphMath(Builder("conv"))
    x = m.input(name="x", shape=shape)
    w = m.input(name="w", shape=(32, shape[3] // attrs.get("groups", 1), *kernel))
    y = m.conv2d(x, w, layout="nhwc", **attrs)
    dy = m.input(name="dy", shape=y.shape)
    dw = m.conv2d_weight_grad(x, dy, kernel=kernel, layout="nhwc", **attrs)
    return m.builder.finish([("y", m.relu(y).value), ("dw", dw.value)])


def algorithms(graph, skip=()):
    """The algorithms that the pass chose."""
    final = run_passes(graph, skip=frozenset(skip))[-1].graph
    nodes = [n for outer in final.nodes for n in (outer.body.nodes if outer.body else (outer,))]
    return {n.attributes["algorithm"] for n in nodes if "algorithm" in n.attributes}


def test_the_pass_can_be_left_out():
    """The switch: without the pass every convolution is direct, and nothing else differs."""
    graph = graph_of((2, 14, 14, 32), padding=1)
    assert algorithms(graph) == {"winograd"} and algorithms(graph, ("winograd",)) == {"direct"}
    steps = [step.label for step in lower(run_passes(graph)[-1].graph).steps]
    assert not [label for label in steps if "pad" in label], steps  # it puts no border in memory


@pytest.mark.parametrize("attrs,reason", [
    ({"stride": 2}, "its stride is not 1"), ({"dilation": 2}, "it is dilated"),
    ({"groups": 2}, "its channels are in groups"), ({"kernel": (3, 1)}, "its kernel is 3x1")])
def test_other_convolutions_are_direct(attrs, reason):
    """What the transforms are not made for keeps its kernel, with a reason that can be shown."""
    graph = graph_of((2, 14, 14, 32), **attrs)
    assert algorithms(graph) == {"direct"}
    node = next(n for n in graph.nodes if n.op.name == "conv2d")
    assert reason in why_direct(node.type.shape, graph.type(node.inputs[1]).shape, node.attributes)


def test_the_choice_counts_whole_tiles_and_transforms():
    """By hand: 36 products and the transforms in place of 144, of which some lie outside."""
    for variant, most in ((FOUR, 4), (TWO, 2.25), (OF_FIVE, 100 / 36)):
        assert gain_of(variant, 8, 8, 10_000, 10_000) == pytest.approx(most, rel=0.02)
    whole = gain_of(OF_FIVE, 8, 8, 64, 64)
    assert gain_of(OF_FIVE, 7, 8, 64, 64) == pytest.approx(whole * 7 / 8)
    by_hand = 144 * 16 * 16 / (36 * 16 * 16 + FOUR.transform * (16 + 16))
    assert gain_of(FOUR, 8, 8, 16, 16) == pytest.approx(by_hand)
    # 33 outputs take two panels.
    by_hand = 36 * 64 * 64 / (16 * 64 * 64 + TWO.transform * (64 + 64))
    assert gain_of(TWO, 8, 8, 64, 33) == pytest.approx(by_hand)
    whole = gain_of(FOUR, 8, 8, 64, 64)
    assert gain_of(FOUR, 5, 8, 64, 64) == pytest.approx(whole * 5 / 8)
    assert "gain" in why_direct((1, 1, 1, 64), (64, 64, 3, 3), PLAIN)
    assert "vector" in why_direct((1, 8, 8, 64), (64, 3, 3, 3), PLAIN)


@pytest.mark.parametrize("size,variant", [
    (1, None), (2, TWO), (3, FOUR), (4, FOUR), (5, TWO), (6, TWO), (7, FOUR), (8, FOUR),
    (9, FOUR), (14, FOUR), (224, FOUR)])
def test_small_tiles_run_small_maps(size, variant):
    """Where tiles of 4x4 are half empty, and where both count the same products."""
    assert chosen((2, size, size, 32), (32, 128, 3, 3), PLAIN) is variant
    found = algorithms(graph_of((2, size, size, 128), padding=1))
    assert found == ({variant.name} if variant else set())  # one pixel takes a product instead


def test_a_row_and_a_column_count_apart():
    """Two rows fit small tiles, however long they are; a size that is not known counts as long."""
    assert chosen((2, 2, 14, 64), (64, 64, 3, 3), PLAIN) is TWO
    assert chosen((2, symbol("H"), 2, 64), (64, 64, 3, 3), PLAIN) is TWO
    assert chosen((2, symbol("H"), 14, 64), (64, 64, 3, 3), PLAIN) is FOUR


def test_measured_times_choose_among_three():
    """The least of what was measured; a table from before the third one decides between two."""
    image, weights = (2, 8, 8, 64), (64, 64, 3, 3)
    for name in (WINOGRAD, SMALL, DIRECT):
        times = {one: float(one != name) + 1 for one in (WINOGRAD, SMALL, DIRECT)}
        assert chosen(image, weights, PLAIN, times) is variant_of(name, 3)
        assert bool(why_direct(image, weights, PLAIN, times)) == (name == DIRECT)
    assert chosen(image, weights, PLAIN, {WINOGRAD: 1.0, DIRECT: 2.0}) is FOUR
    assert why_direct(image, weights, PLAIN, {WINOGRAD: 2e-3, DIRECT: 1e-3}) == \
        "measured: winograd 2 ms, direct 1 ms"
