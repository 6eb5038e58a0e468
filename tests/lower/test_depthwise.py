"""Weight gradients of depthwise convolutions: channels in the lanes, taps as rows of the tile."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_templates import close, conv_sizes, gradient_of_conv, noise, same_on_threads, up

from lamina.api import make_runner
from lamina.compiler.ir.builder import Builder
from lamina.compiler.lower.program import lower
from lamina.compiler.lower.templates import text, weight_grad
from lamina.compiler.lower.templates.text import STORE
from lamina.compiler.ops.define import REGISTRY, GraphMath
from lamina.compiler.options import Options
from lamina.runtime.cpu import host

WIDTH = host.vector_width()

# images, OH, OW, channels, KH, KW, stride, dilation, chunks
CASES = [
    (2, 7, 6, 5, 3, 3, 1, 1, 3),  # fewer channels than lanes
    (3, 5, 5, WIDTH, 3, 3, 2, 1, 8),  # whole panels
    (2, 6, 5, 2 * WIDTH + 1, 5, 5, 1, 1, 2),  # taps beyond one tile, in part of the last
    (1, 4, 4, 3, 2, 4, 1, 2, 1),  # fewer taps than a tile; dilation
    (9, 9, 9, 3, 3, 3, 1, 1, 2),  # blocks of several images, cut where a chunk begins
    (2, 3, 300, 2, 1, 3, 1, 1, 2),  # a row longer than a block
    (3, 40, 20, 2, 3, 1, 2, 1, 7),  # blocks of rows that do not divide an image
    (0, 4, 4, 3, 3, 3, 1, 1, 1),  # no images
    (2, 0, 4, 3, 3, 3, 1, 1, 1),  # no rows
    (2, 4, 0, 3, 3, 3, 1, 1, 2),  # no columns
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sums_over_pixels(case, kernel_cache):
    """Every way in which pixels make up blocks and chunks, and taps fill tiles."""
    n, oh, ow, channels, kh, kw, stride, dilation, chunks = case
    rng = np.random.default_rng(channels)
    high, wide = ((max(1, size) - 1) * stride + dilation * (taps - 1) + 1
                  for size, taps in ((oh, kh), (ow, kw)))
    x, dy = noise(rng, n, high, wide, channels), noise(rng, n, oh, ow, channels)
    tile = text.taps_tile(WIDTH)
    sizes = conv_sizes(n, oh, ow, 1, kh, kw, 1, channels, high, wide, channels, stride, dilation)
    outputs = {"part": ("f32", (chunks * up(kh * kw, tile.mr) * up(channels, tile.nr),)),
               "dw": ("f32", (channels, 1, kh, kw))}
    calls = [
        (weight_grad.depthwise_weight_grad(tile),
         {**sizes, "x": "x", "dy": "dy", "partial": "part", "chunks": chunks}),
        (weight_grad.combine_weight_grad(STORE, tile),
         {**sizes, "partial": "part", "y0": "dw", "chunks": chunks, "s_out": kh * kw,
          "s_in": kh * kw, "s_h": kw, "s_w": 1})]
    out = same_on_threads(calls, {"x": x, "dy": dy}, outputs, kernel_cache)
    weights = np.zeros((channels, 1, kh, kw), np.float32)
    expected = gradient_of_conv(x, weights, dy, stride, dilation, channels)[2] if dy.size else \
        weights
    close(out["dw"], expected, n * oh * ow)


def _graph(outputs, channels, groups, layout):
    """The gradient of a strided convolution's weights, with a border."""
    builder = Builder("gradient")
    m = GraphMath(builder)
    shapes = {"nhwc": ((3, 9, 8, channels), (3, 5, 4, outputs)),
              "nchw": ((3, channels, 9, 8), (3, outputs, 5, 4))}[layout]
    x, dy = (m.input(name=name, shape=shape)
             for name, shape in zip(("x", "dy"), shapes, strict=True))
    dw = m.apply(REGISTRY["conv2d_weight_grad"], (x, dy), {
        "kernel": (3, 3), "stride": 2, "padding": 1, "groups": groups, "layout": layout})
    return builder.finish([("dw", dw.value)])


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("outputs,channels,groups,title", [
    (20, 20, 20, "Depthwise weight gradient"), (2, 2, 2, "Depthwise weight gradient"),
    (40, 20, 20, "Weight gradient"), (20, 20, 10, "Weight gradient"), (1, 1, 1, "Weight gradient")])
def test_only_one_filter_for_each_channel_is_taken(outputs, channels, groups, title, layout,
                                                   kernel_cache):
    # Several filters of a channel, or channels of a filter, keep the way of all convolutions.
    graph = _graph(outputs, channels, groups, layout)
    titles = [kernel.title for kernel in lower(graph, WIDTH).kernels]
    assert any(found.startswith(f"{title}, partial") for found in titles)
    rng = np.random.default_rng(0)
    arrays = {name: noise(rng, *graph.type(value).shape) for name, value in graph.inputs.items()}
    ours, theirs = (make_runner(graph, Options(target=target, cache_folder=str(kernel_cache)))
                    .run(arrays)["dw"] for target in ("cpu", "numpy"))
    close(ours, theirs, 3 * 5 * 4)
