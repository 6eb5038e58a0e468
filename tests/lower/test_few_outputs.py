"""Few channels: shifted sums, vectors along rows and pools in streams, against the reference.

Each case runs with memory checks, must give the same bits on 1, 2 and 3 threads, and does so at all
widths of vectors that this machine has. An epilogue reads numbers of each channel, of each element
and of all, and writes two results of different types.
"""

import numpy as np
import pytest

from lamina.commands.choices import ROWS, SHIFTED, choices_of
from lamina.compiler.ir.builder import Builder
from lamina.compiler.lower import along_rows
from lamina.compiler.lower.program import lower
from lamina.compiler.ops import GraphMath
from lamina.compiler.reference import evaluate
from lamina.compiler.transform import shifted
from lamina.compiler.transform.pipeline import run_passes
from lamina.compiler.transform.shifted import (
    ADDING,
    shifting_gain,
    shifting_products,
    shifting_work,
    why_not_shifted,
)
from lamina.runtime.cpu import host
from lamina.runtime.cpu.executor import Executor
from lamina.tests.lower.programs import assert_close

WIDTHS = sorted({4, min(8, host.vector_width()), host.vector_width()})
# Images, channels, rows, columns, outputs, kernel, border: top, bottom, left, right.
SHIFTED_CASES = [
    (3, 16, 10, 10, 6, (5, 5), (4, 4, 4, 4)), (2, 1, 9, 7, 3, (3, 3), (0, 0, 0, 0)),
    (1, 5, 4, 70, 10, (3, 3), (1, 1, 1, 1)), (2, 2, 3, 150, 1, (1, 7), (0, 0, 6, 2)),
    (9, 3, 2, 2, 20, (2, 3), (1, 0, 0, 2)), (1, 7, 30, 3, 33, (4, 2), (3, 1, 1, 0)),
    (40, 4, 1, 1, 5, (3, 3), (2, 2, 2, 2)), (0, 4, 6, 6, 5, (3, 3), (1, 1, 1, 1)),
]
# Images, channels, rows, columns, outputs, kernel, stride of rows, dilation.
ROWS_CASES = [
    (3, 1, 32, 32, 6, (5, 5), 1, (1, 1)), (2, 3, 9, 40, 16, (3, 2), 2, (1, 1)),
    (1, 2, 8, 75, 9, (2, 3), 1, (2, 3)), (5, 1, 3, 3, 1, (3, 3), 1, (1, 1)),
    (2, 4, 6, 5, 13, (1, 5), 3, (1, 1)), (0, 1, 8, 8, 4, (3, 3), 1, (1, 1)),
]
POOLS = [  # images, rows, columns, channels, kernel, stride
    (2, 6, 8, 1, (2, 2), (2, 2)), (1, 7, 5, 3, (2, 2), (2, 2)), (3, 9, 9, 4, (3, 2), (3, 4)),
    (64, 4, 4, 3, (2, 2), (2, 2)), (2, 30, 31, 2, (3, 3), (4, 3)), (0, 4, 4, 3, (2, 2), (2, 2)),
]


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def finished(m, y):
    """What follows: a bias of each channel, a factor of each element and of all, and a mask."""
    bias, other = m.input(name="bias", shape=y.shape[3:]), m.input(name="other", shape=y.shape)
    scale = m.input(name="scale", shape=())
    z = m.tanh((y + bias) * scale) * other
    return m.builder.finish([("z", z.value), ("mask", m.greater(z, bias).value)])


def check(graph, title, cache, width):
    """Compare a graph's results with the reference; a kernel of this title must be in it."""
    inputs = {name: noise(seed, *graph.type(value).shape)
              for seed, (name, value) in enumerate(graph.inputs.items())}
    program = lower(run_passes(graph, check=True)[-1].graph, width)
    assert any(kernel.title.startswith(title) for kernel in program.kernels)
    results = []
    for threads in (1, 2, 3):
        executor = Executor(program, threads, cache, check_memory=True)
        results.append(executor.run(inputs))
        executor.close()
    for other in results[1:]:
        assert {name: one.tobytes() for name, one in other.items()} == \
            {name: one.tobytes() for name, one in results[0].items()}
    expected = evaluate(graph, inputs, {})
    assert_close(results[0]["z"], expected["z"], 1e-5, title)
    # Where both sides are equal but for rounding, either answer is right.
    clear = np.abs(expected["z"] - inputs["bias"]) > 1e-4
    assert (results[0]["mask"] == expected["mask"])[clear].all()


def convolution(case):
    """A channels-last convolution behind a border of zeros, and an epilogue."""
    n, c, high, wide, k, kernel, (top, bottom, left, right) = case
    m = GraphMath(Builder("shifted"))
    x, w = m.input(name="x", shape=(n, high, wide, c)), m.input(name="w", shape=(k, c, *kernel))
    return finished(m, m.conv2d(x, w, layout="nhwc", padding=((top, bottom), (left, right))))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", SHIFTED_CASES, ids=str)
def test_shifted_sums(case, width, kernel_cache, monkeypatch):
    """Borders on some sides, several panels, rows longer than a block, and many in one."""
    monkeypatch.setattr(shifted, "GAIN", 0)
    check(convolution(case), "Convolution by shifted sums", kernel_cache, width)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", ROWS_CASES, ids=str)
def test_vectors_along_rows(case, width, kernel_cache, monkeypatch):
    """Channels first, cut vectors of pixels, outputs that fill no tile, strides and dilations."""
    monkeypatch.setattr(along_rows, "GAIN", 0)
    monkeypatch.setattr(shifted, "GAIN", 99)
    n, c, high, wide, k, kernel, stride, dilation = case
    m = GraphMath(Builder("rows"))
    x, w = m.input(name="x", shape=(n, c, high, wide)), m.input(name="w", shape=(k, c, *kernel))
    y = m.conv2d(x, w, stride=(stride, 1), dilation=dilation)
    graph = finished(m, m.transpose(y, perm=(0, 2, 3, 1)))
    check(graph, "Convolution along rows", kernel_cache, width)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", POOLS, ids=str)
def test_mean_pools_of_few_channels(case, width, kernel_cache):
    """Rows that end within a vector, pixels that no window covers, overlapping windows."""
    images, high, wide, channels, kernel, stride = case
    attrs = {"kernel": kernel, "stride": stride, "layout": "nhwc"}
    m = GraphMath(Builder("pool"))
    x = m.input(name="x", shape=(images, high, wide, channels))
    check(finished(m, m.avg_pool2d(x, **attrs)), "Mean of windows, few channels", kernel_cache,
          width)
    overlapping = {**attrs, "stride": (1, 1)}
    m = GraphMath(Builder("pool"))
    x = m.input(name="x", shape=(images, high, wide, channels))
    check(finished(m, m.avg_pool2d(x, **overlapping)), "Mean of windows, few channels",
          kernel_cache, width)
    rows, columns = ((n - k) // s + 1 for n, k, s in zip((high, wide), kernel, stride, strict=True))
    m = GraphMath(Builder("gradient"))
    dy = m.input(name="dy", shape=(images, rows, columns, channels))
    check(finished(m, m.avg_pool2d_grad(dy, size=(high, wide), **attrs)),
          "Gradient of a mean of windows, few channels", kernel_cache, width)


@pytest.mark.parametrize("attrs,padding,reason", [
    ({"stride": 2}, 0, "its stride is not 1"), ({"dilation": 2}, 0, "it is dilated"),
    ({"groups": 2}, 0, "its channels are in groups"), ({}, 5, "wider than its kernel reaches"),
    ({}, 0, "gain of")])
def test_other_convolutions_do_not_shift(attrs, padding, reason):
    """What the kernel is not made for, or would do more slowly, has a reason to show."""
    plain = {"stride": 1, "dilation": 1, "groups": 1, **attrs}
    why = why_not_shifted((2, 10, 10, 16), (16, 6, 5, 5), plain, ((padding, padding),) * 2)
    assert reason in why


def test_the_choice_counts_vectors_and_additions():
    """By hand: 10 x 10 pixels meet 5 rows and 30 lanes; directly, two of 14 x 14 fill 12 of 16."""
    weights, border = (6, 16, 5, 5), ((4, 4), (4, 4))
    assert shifting_products(14, 14, weights, border) == 10 * 10 * 16 * 5 * 30
    work = 10 * 10 * 16 * 5 * 32 + 14 * 10 * 32 * ADDING
    assert shifting_work(14, 14, weights, border) == work
    direct = 14 * 14 * 16 * 5 * 6 * 16 / 2
    assert shifting_gain((14, 14), weights, border) == pytest.approx(direct / work)


def test_what_is_shown_is_what_runs():
    """The reasons name the algorithms; products with a border are not among those of the sums."""
    m = GraphMath(Builder("two"))
    x, w = m.input(name="x", shape=(2, 1, 32, 32)), m.input(name="w", shape=(6, 1, 5, 5))
    dy, v = m.input(name="dy", shape=(2, 10, 10, 16)), m.input(name="v", shape=(6, 16, 5, 5))
    outputs = [("y", m.conv2d(x, w).value), ("dx", m.conv2d(dy, v, layout="nhwc", padding=4).value)]
    rows, sums = choices_of(m.builder.finish(outputs), 2)
    assert (rows.algorithm, rows.own) == (ROWS, rows.macs)
    assert "vectors of them take less time than such of 6 outputs" in rows.why
    assert (sums.algorithm, sums.own) == (SHIFTED, 2 * 10 * 10 * 16 * 5 * 30)
    assert "5 columns of the kernel by 6 outputs" in sums.why and sums.macs > sums.own


def test_shifting_can_be_left_out():
    """Without the pass the border is in memory again and the convolution direct."""
    graph = convolution(SHIFTED_CASES[0])
    (with_it,), (without,) = choices_of(graph, 1), choices_of(graph, 1, frozenset({"shifted"}))
    assert with_it.algorithm == SHIFTED and without.algorithm == "direct"
    assert without.why.endswith("no shifted sums: LAMINA_SKIP leaves out shifted")
