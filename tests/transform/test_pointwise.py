"""Taps that meet zeros alone are left out, none else, and nothing else changes."""

import numpy as np
import pytest

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.types import symbol
from lamina.compiler.ir.verify import verify
from lamina.compiler.ops import GraphMath
from lamina.compiler.reference import evaluate
from lamina.compiler.transform.layout import channels_last
from lamina.compiler.transform.pointwise import kernel_used, pointwise
from lamina.tests.lower.programs import assert_close, run_program

# Rows and columns of an image, those of a kernel, and attributes.
CASES = [
    ((1, 1), (3, 3), {"padding": 1}), ((1, 1), (5, 3), {"padding": (2, 1)}),
    ((2, 1), (3, 3), {"padding": 1}), ((2, 2), (3, 3), {"padding": 1}),
    ((2, 2), (3, 3), {"padding": 1, "stride": 2}), ((2, 2), (5, 5), {"padding": 2}),
    ((3, 2), (7, 7), {"padding": 3}), ((3, 3), (7, 7), {"padding": 3, "stride": 2}),
    ((2, 3), (3, 3), {"padding": 2, "dilation": 2}),
    ((3, 3), (3, 3), {"padding": 3, "dilation": 3}),
    ((1, 1), (3, 3), {"padding": ((1, 2), (2, 1)), "stride": 2}), ((1, 4), (1, 1), {"padding": 1}),
    ((1, 1), (3, 3), {"padding": 1, "groups": 4}), ((2, 2), (5, 5), {"padding": 2, "groups": 2}),
    ((1, 2), (2, 2), {"padding": 2}),
]


def graph_of(size, kernel, attrs):
    """A convolution and the gradients of both operands."""
    m = GraphMath(Builder("conv"))
    x = m.input(name="x", shape=(2, 4, *size))
    w = m.input(name="w", shape=(4, 4 // attrs.get("groups", 1), *kernel))
    y = m.conv2d(x, w, **attrs)
    dy = m.input(name="dy", shape=y.shape)
    node = m.builder.node(y.value)
    dx, dw = node.op.vjp(m, dy, y, x, w, **node.attributes)
    return m.builder.finish([("y", y.value), ("dx", dx.value), ("dw", dw.value)])


@pytest.mark.parametrize("size,kernel,attrs", CASES, ids=str)
def test_idle_taps_are_left_out_and_no_others(size, kernel, attrs, kernel_cache):
    """With ones everywhere the gradient of a weight is the number of pixels that its tap meets."""
    graph = graph_of(size, kernel, attrs)
    inputs = {name: np.ones(graph.type(value).shape) for name, value in graph.inputs.items()}
    met = evaluate(graph, inputs, {})["dw"][0, 0] > 0
    rows, columns = met.any(axis=1).nonzero()[0], met.any(axis=0).nonzero()[0]
    before = channels_last(graph)
    nodes = [node for node in before.nodes if node.op.name == "conv2d_weight_grad"]
    assert [kernel_used(before, node) for node in nodes] == \
        [(int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1)]
    after = verify(pointwise(before), "pointwise")
    rng = np.random.default_rng(1)
    inputs = {name: rng.standard_normal(one.shape) for name, one in inputs.items()}
    expected, found = evaluate(graph, inputs, {}), evaluate(after, inputs, {})
    for name, value in expected.items():
        assert_close(np.asarray(found[name]), np.asarray(value), 1e-12, name)
    single = {name: one.astype(np.float32) for name, one in inputs.items()}
    ran = run_program(graph, single, {}, kernel_cache)[0]
    for name, value in expected.items():
        assert_close(ran[name], np.asarray(value, np.float32), 1e-5, f"compiled {name}")


def test_sizes_that_are_not_known_keep_all_taps():
    """An image of unknown size may be large; an axis that is known is small all the same."""
    m = GraphMath(Builder("conv"))
    x = m.input(name="x", shape=(2, symbol("H"), 1, 4))
    padded = m.pad(x, lo=(0, 1, 1, 0), hi=(0, 1, 1, 0), interior=(0, 0, 0, 0), value=0.0)
    y = m.conv2d(padded, m.input(name="w", shape=(4, 4, 3, 3)), layout="nhwc")
    graph = m.builder.finish([("y", y.value)])
    assert kernel_used(graph, graph.node(y.value)) == (3, 1)
    verify(pointwise(graph), "pointwise")


def test_a_border_that_is_not_zero_is_met():
    """Ones around an image count as its pixels."""
    m = GraphMath(Builder("conv"))
    x = m.input(name="x", shape=(2, 1, 1, 4))
    padded = m.pad(x, lo=(0, 1, 1, 0), hi=(0, 1, 1, 0), interior=(0, 0, 0, 0), value=1.0)
    y = m.conv2d(padded, m.input(name="w", shape=(4, 4, 3, 3)), layout="nhwc")
    graph = m.builder.finish([("y", y.value)])
    assert kernel_used(graph, graph.node(y.value)) == (3, 3) and pointwise(graph) is graph
