"""Strided convolutions' gradients and transposed convolutions: their zeros are skipped, not wrong.

The pass, its kernels and the reference are compared on sizes that strides do not divide.
"""

import numpy as np
import pytest

import lamina
from lamina.commands.choices import FRACTIONAL, choices_of
from lamina.compiler.transform.pipeline import run_passes

# kernel, stride, padding, channels, outputs, groups, rows, columns
STRIDED = [
    ("3", "2", "1", 16, 32, 1, 9, 12), ("3", "2", "1", 6, 40, 1, 8, 7),
    ("7", "2", "3", 3, 8, 1, 13, 11), ("1", "2", "1", 4, 5, 1, 5, 5),
    ("5", "(3, 2)", "0", 17, 33, 1, 14, 12), ("(2, 3)", "(2, 4)", "1", 4, 4, 1, 5, 9),
    ("3", "2", "1", 12, 12, 12, 9, 8), ("3", "2", "1", 12, 24, 4, 9, 8),
    ("2", "3", "0", 4, 5, 1, 11, 8),
]


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def strided(kernel, stride, padding, channels, outputs, groups, rows, columns):
    """A network of one strided convolution behind a parameter of the image's size."""
    return lamina.loads(f"""model Strided {{
  input x: f32[B, {channels}, {rows}, {columns}]
  param scale: [{channels}, {rows}, {columns}] = ones()
  y = conv({outputs}, {kernel}, stride={stride}, padding={padding}, groups={groups})(x * scale)
  output z = y
}}""").Strided()


def operators(graph):
    """The names of all operators of the last stage, those of fused nodes included."""
    nodes = run_passes(graph)[-1].graph.nodes
    inner = [node for outer in nodes if outer.body for node in outer.body.nodes]
    return [node.op.name for node in (*nodes, *inner)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", STRIDED, ids=lambda case: "-".join(map(str, case)))
def test_gradient_of_a_strided_convolution(case, threads):
    """Each place within a stride has its own taps: wrong ones, or a wrong order, show here."""
    net, weights = strided(*case), strided(*case).init(seed=0)
    x = noise(1, 5, case[3], *case[6:])
    results = []
    for target in ("cpu", "numpy"):
        gradient = net.value_and_grad("mean(z ** 2)", target=target, threads=threads)
        results.append(gradient(weights, x=x)[1]["scale"])
    assert ("fractional_conv2d" in operators(gradient.graph)) == (case[0] != "1")
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-5 * abs(results[1]).max())


@pytest.mark.parametrize("attrs", [
    "stride=2", "stride=(3, 2), padding=1", "stride=2, padding=1, output_padding=1",
    "stride=2, dilation=2", "stride=9"])
def test_transposed_convolution(attrs):
    """The layer of up-sampling networks, also where the kernel is shorter than the stride."""
    net = lamina.loads(f"""model Up {{
  input x: f32[B, 8, H, 5]
  param w: [8, 20, 3, 3] = normal(std=1.0)
  output y = relu(conv_transpose2d(x, w, {attrs}))
}}""").Up()
    weights, x = net.init(seed=0), noise(2, 2, 8, 4, 5)
    found, expected = (net.compile(target=target)(weights, x=x)["y"] for target in ("cpu", "numpy"))
    skipped = "fractional_conv2d" in operators(net.graph)
    assert skipped == (attrs not in ("stride=2, dilation=2", "stride=9"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


def test_zeros_are_not_counted_as_work():
    """`lamina profile` would show a rate that no machine has."""
    gradient = strided("3", "2", "1", 16, 32, 1, 8, 8).value_and_grad("mean(z ** 2)")
    (choice,) = [one for one in choices_of(gradient.graph, 3) if one.algorithm == FRACTIONAL]
    assert choice.macs == 3 * 8 * 8 * 16 * 32 * 9 // 4
    assert "2x2 kinds" in choice.why
