"""Values at the edges: NaN, infinity, ties, empty tensors, indices outside."""

from __future__ import annotations

import numpy as np
import pytest

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.types import TensorType, symbol
from lamina.compiler.ops import OPS, GraphMath, NumpyMath
from lamina.compiler.ops.window import padding_pairs
from lamina.compiler.transform.autodiff import add_gradients
from lamina.tests.ops import gradient
from lamina.tests.ops.oracle import torch

nan, inf = np.nan, np.inf
m = NumpyMath()


def image(rows):
    return np.array(rows, np.float32)[None, None]


def test_max_pool_passes_nan_on_and_padding_never_wins():
    x = image([[-5, nan, 1], [-7, -6, 2], [-3, -4, -inf]])
    np.testing.assert_array_equal(m.max_pool2d(x, kernel=2, stride=1),
                                  image([[nan, nan], [-3, 2]]))
    np.testing.assert_array_equal(m.max_pool2d(x[:, :, :, :1], kernel=3, padding=1, stride=2),
                                  image([[-5], [-3]]))


def test_max_pool_gradient_takes_the_first_of_equals():
    x = np.ones((1, 1, 3, 3), np.float32)
    ct = image([[1, 2], [3, 4]])
    np.testing.assert_array_equal(m.max_pool2d_grad(x, ct, kernel=2, stride=1),
                                  image([[1, 2, 0], [3, 4, 0], [0, 0, 0]]))


@pytest.mark.parametrize("rows", [
    [[1, 1, 0], [1, 1, 1], [0, 1, 1]], [[-inf] * 3] * 3,
    [[nan, 1, 2], [nan, nan, 0], [1, 0, nan]],
    [[inf, inf, 0], [0, -inf, -inf], [-inf, -inf, -inf]],
])
@pytest.mark.parametrize("window", [
    {"kernel": 2}, {"kernel": 2, "stride": 1}, {"kernel": 3, "stride": 1, "padding": 1},
    {"kernel": 2, "padding": 1},
])
@pytest.mark.skipif(torch is None, reason="PyTorch is not installed: nothing to compare with")
def test_max_pool_gradient_is_pytorchs_at_ties(rows, window):
    x = image(rows)
    theirs = torch.from_numpy(x.copy()).requires_grad_()
    y = torch.nn.functional.max_pool2d(theirs, window["kernel"], window.get("stride"),
                                       window.get("padding", 0))
    ct = np.arange(1, y.numel() + 1, dtype=np.float32).reshape(y.shape)
    y.backward(torch.from_numpy(ct))
    np.testing.assert_array_equal(m.max_pool2d(x, **window), y.detach().numpy())
    np.testing.assert_array_equal(m.max_pool2d_grad(x, ct, **window), theirs.grad.numpy())


def test_argmax_is_numpys():
    x = np.array([[1, 3, 3], [nan, 5, nan], [2, nan, 9], [-inf] * 3], np.float32)
    np.testing.assert_array_equal(m.argmax(x, axis=1), np.argmax(x, 1))
    np.testing.assert_array_equal(m.argmax(x, axis=0), np.argmax(x, 0))


def test_extrema_of_nothing():
    x = np.zeros((0, 3), np.float32)
    np.testing.assert_array_equal(m.max(x, axis=0), [-inf] * 3)
    np.testing.assert_array_equal(m.min(x, axis=0), [inf] * 3)
    assert m.softmax(np.zeros((2, 0), np.float32)).shape == (2, 0)


@pytest.mark.parametrize("index", [-1, 5, 2**31 - 1])
def test_index_outside_the_table(index):
    table = np.zeros((5, 2), np.float32)
    with pytest.raises(ValueError, match=f"index {index} is outside a table of 5 rows"):
        m.take(table, np.array([0, index], np.int32))


def test_take_gradient_adds_repeated_rows():
    ct = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    rows = m.take_grad(ct, np.array([2, 0, 2]), rows=4)
    np.testing.assert_array_equal(rows, [[3, 4], [0, 0], [6, 8], [0, 0]])


@pytest.mark.parametrize("scale", [0.0, 1e2, 1e4, 1e30])
def test_losses_of_extreme_logits_are_finite(scale):
    logits = np.array([[1, -1, 0], [-1, 0, 1]], np.float32) * np.float32(scale)
    label = np.array([0, 0], np.int32)
    for smoothing in (0.0, 0.1):
        assert np.isfinite(m.cross_entropy(logits, label, smoothing=smoothing))
    target = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
    assert np.isfinite(m.binary_cross_entropy(logits, target))
    arrays = [logits.astype(np.float64), label]
    _, grad = gradient.by_graph(OPS["cross_entropy"], arrays, OPS["cross_entropy"].attrs,
                                np.float64(1))
    assert np.isfinite(grad).all()


def test_masked_class_costs_nothing():
    """A logit of -inf is a class ruled out: the loss of the others stays finite."""
    logits = np.array([[0, 0, -inf]], np.float32)
    np.testing.assert_allclose(m.cross_entropy(logits, np.array([1], np.int32)), np.log(2), 1e-6)


def test_nan_logits_are_wrong_answers():
    logits = np.full((2, 3), nan, np.float32)
    label = np.array([1, 2], np.int32)
    assert m.accuracy(logits, label) == 0
    assert m.top_k_accuracy(logits, label, k=2) == 0
    assert np.isnan(m.cross_entropy(logits, label))


@pytest.mark.parametrize(("padding", "pairs"), [
    (1, ((1, 1), (1, 1))), ((1, 2), ((1, 1), (2, 2))), (((0, 1), (2, 3)), ((0, 1), (2, 3)))])
def test_padding_in_full(padding, pairs):
    assert padding_pairs(padding) == pairs


def test_convolution_by_hand():
    x = image([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    w = image([[1, 0], [0, -1]])
    np.testing.assert_array_equal(m.conv2d(x, w), image([[-4, -4], [-4, -4]]))
    np.testing.assert_array_equal(m.conv2d(x, w, stride=2, padding=((1, 0), (0, 1))),
                                  image([[-2, 0], [-4, 6]]))


def test_layouts_agree():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 7, 5)), rng.standard_normal((6, 2, 3, 2))
    window = {"stride": 2, "padding": ((1, 0), (2, 1)), "groups": 2}
    last = m.conv2d(x.transpose(0, 2, 3, 1), w, layout="nhwc", **window)
    np.testing.assert_allclose(last.transpose(0, 3, 1, 2), m.conv2d(x, w, **window))


def test_symbolic_gradient_sizes():
    """The data gradient comes out at the input's size where that is a symbol."""
    batch, height, width = symbol("B"), symbol("H"), symbol("W")
    windows = ((1, 1, 1, 3), (2, 3, 1, 7), (3, 0, 2, 2), (2, 2, 1, 1))
    for stride, padding, dilation, kernel in windows:
        math = GraphMath(Builder())
        x = math.placeholder(0, TensorType((batch, 3, height, width)))
        w = math.placeholder(1, TensorType((4, 3, kernel, kernel)))
        y = math.conv2d(x, w, stride=stride, padding=padding, dilation=dilation)
        y = math.avg_pool2d(math.max_pool2d(y, kernel=3, stride=2, padding=1), kernel=2)
        graph = math.builder.finish([("loss", math.sum(y).value)])
        graph = add_gradients(graph, "loss", {"x": graph.inputs["x0"], "w": graph.inputs["x1"]})
        assert graph.type(graph.output("grad:x")).shape == x.shape
        assert graph.type(graph.output("grad:w")).shape == w.shape
