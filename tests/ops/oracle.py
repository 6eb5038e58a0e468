"""The second opinion: what PyTorch makes of an operator's `torch` text.

The text is a Python expression over the operands a, b, c ..., their number n, the attributes, the
module `torch`, and, as `oracle`, the functions below where PyTorch says it in more than one call.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lamina.compiler.ir.op import Op
from lamina.compiler.ops.window import padding_pairs

try:
    import torch
except ImportError:  # recorded results serve then
    torch = None


def values(op: Op, arrays: Sequence[np.ndarray], attrs: Mapping[str, Any],
           ct: np.ndarray | None = None) -> list[np.ndarray | None]:
    """PyTorch's result, and with `ct` the gradient of every operand (None where there is none)."""
    # A copy: broadcast or reversed NumPy arrays have strides that tensors do not.
    operands = [torch.from_numpy(np.array(x)) for x in arrays]
    if ct is not None:
        for operand in operands:
            operand.requires_grad_(operand.is_floating_point())
    names = dict(zip("abcdefgh", operands, strict=False))
    scope = {**attrs, **names, "n": len(operands), "torch": torch, "oracle": sys.modules[__name__]}
    result = eval(op.torch, scope)
    if ct is None or not result.requires_grad:
        return [_array(result), *(None for _ in operands if ct is not None)]
    wanted = [operand for operand in operands if operand.requires_grad]
    found = torch.autograd.grad(result, wanted, torch.from_numpy(np.array(ct)), allow_unused=True)
    grads = iter(found)
    return [_array(result), *(
        _array(next(grads)) if operand.requires_grad else None for operand in operands)]


def _array(tensor) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().numpy()


def image(a, size, layout):
    """Zeros of the shape that an image of height and width `size` has beside `a`."""
    shape = (a.shape[0], a.shape[1], *size) if layout == "nchw" else (
        a.shape[0], *size, a.shape[3])
    return torch.zeros(shape, dtype=a.dtype)


def _border(a, padding, value=0.0):
    (top, bottom), (left, right) = padding_pairs(padding)
    return torch.nn.functional.pad(a, (left, right, top, bottom), value=value)


def _first(a, layout):
    return a if layout == "nchw" else a.permute(0, 3, 1, 2)


def _back(y, layout):
    return y if layout == "nchw" else y.permute(0, 2, 3, 1)


def conv2d(a, w, stride, padding, dilation, groups, layout):
    """Convolution with padding on each side."""
    a = _border(_first(a, layout), padding)
    return _back(torch.nn.functional.conv2d(a, w, None, stride, 0, dilation, groups), layout)


def conv2d_weight_grad(a, ct, kernel, stride, padding, dilation, groups, layout):
    """The gradient of `conv2d` by its weights."""
    channel = 1 if layout == "nchw" else 3
    w = torch.zeros(ct.shape[channel], a.shape[channel] // groups, *kernel, dtype=a.dtype)
    return gradient(lambda w: conv2d(a, w, stride, padding, dilation, groups, layout), w, ct)


def fractional_conv2d(a, w, stride, shift, size, groups):
    """Convolution of an image with stride - 1 zeros behind each pixel, of which some are left."""
    first = _first(a, "nhwc")
    spread = torch.zeros(*first.shape[:2], *(n * s for n, s in zip(first.shape[2:], stride,
                                                                   strict=True)),
                         dtype=a.dtype)
    spread[:, :, ::stride[0], ::stride[1]] = first
    (top, left), (rows, columns) = shift, size
    part = spread[:, :, top:top + rows + w.shape[2] - 1, left:left + columns + w.shape[3] - 1]
    return _back(torch.nn.functional.conv2d(part, w, None, groups=groups), "nhwc")


def conv1d(a, w, stride, padding, dilation, groups):
    """Convolution over one axis with padding on each side."""
    sides = padding if isinstance(padding, tuple) else (padding, padding)
    a = torch.nn.functional.pad(a, sides)
    return torch.nn.functional.conv1d(a, w, None, stride, 0, dilation, groups)


def max_pool2d(a, kernel, stride, padding, layout):
    """Max pooling with padding on each side."""
    a = _border(_first(a, layout), padding, -float("inf"))
    return _back(torch.nn.functional.max_pool2d(a, kernel, stride), layout)


def avg_pool2d(a, kernel, stride, padding, count_padding, layout):
    """Average pooling with padding on each side; the divisor counts what it is told to."""
    real = torch.ones_like(_first(a, layout))
    a = _border(_first(a, layout), padding)
    mean = torch.nn.functional.avg_pool2d(a, kernel, stride)
    if not count_padding:
        mean = mean / torch.nn.functional.avg_pool2d(_border(real, padding), kernel, stride)
    return _back(mean, layout)


def gradient(function, a, ct):
    """The gradient of `function` at `a` for the gradient `ct` of its result."""
    a = a.detach().requires_grad_()
    return torch.autograd.grad(function(a), a, ct)[0]


def dtype(name):
    """PyTorch's name of an element type."""
    return {"f32": torch.float32, "f64": torch.float64, "i32": torch.int32, "i64": torch.int64,
            "bool": torch.bool}[name]


def iota(shape, axis, dtype_name):
    """Positions along an axis."""
    place = torch.arange(shape[axis], dtype=dtype(dtype_name))
    return place.reshape([-1 if i == axis else 1 for i in range(len(shape))]).expand(shape)


def pad(a, lo, hi, interior, value):
    """Gaps by assignment, then a border or a cut."""
    steps = [gap + 1 for gap in interior or (0,) * a.ndim]
    shape = [n and (n - 1) * step + 1 for n, step in zip(a.shape, steps, strict=True)]
    wide = torch.full(shape, value, dtype=a.dtype)
    wide[tuple(slice(None, None, step) for step in steps)] = a
    sides = [side for pair in zip(lo, hi, strict=True) for side in pair]
    return torch.nn.functional.pad(wide, _last_axis_first(sides), value=value)


def _last_axis_first(sides):
    pairs = list(zip(sides[::2], sides[1::2], strict=True))
    return [side for pair in reversed(pairs) for side in pair]


def one_hot(index, depth):
    """PyTorch's one_hot takes i64 and gives i64."""
    return torch.nn.functional.one_hot(index.long(), depth).float()


def focal(x, y, alpha, gamma):
    """As the paper writes it, with soft truths in between."""
    p = torch.sigmoid(x)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none")
    away = 1 - (p * y + (1 - p) * (1 - y))
    return ((alpha * y + (1 - alpha) * (1 - y)) * away**gamma * loss).mean()


def _overlap(x, y):
    return (x * y).flatten(1).sum(1), x.flatten(1).sum(1), y.flatten(1).sum(1)


def dice(x, y, eps):
    """The loss of soft masks."""
    both, one, other = _overlap(torch.sigmoid(x), y)
    return (1 - (2 * both + eps) / (one + other + eps)).mean()


def iou(x, y, eps):
    """The figure of hard masks."""
    both, one, other = _overlap((x > 0).to(x.dtype), (y > 0.5).to(y.dtype))
    return ((both + eps) / (one + other - both + eps)).mean()


def cross_entropy(logits, label, axis, smoothing):
    """Class numbers, or shares of the logits' shape; PyTorch wants the classes second."""

    def seconded(x):
        return x.movedim(axis, 1 if x.ndim > 1 else 0)

    gold = seconded(label) if label.is_floating_point() else label.long()
    return torch.nn.functional.cross_entropy(seconded(logits), gold, label_smoothing=smoothing)


def non_max_suppression(boxes, scores, iou, least):
    """From the best score down, each box that overlaps no kept one too much."""
    kept = torch.zeros(scores.shape, dtype=torch.bool)
    areas = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    orders = scores.argsort(dim=-1, descending=True, stable=True)
    for image, (own, order) in enumerate(zip(boxes, orders, strict=True)):
        for index in order.tolist():
            chosen = kept[image]
            low = torch.maximum(own[chosen, :2], own[index, :2])
            high = torch.minimum(own[chosen, 2:], own[index, 2:])
            both = (high - low).clamp(min=0).prod(-1)
            union = areas[image][chosen] + areas[image][index] - both
            kept[image, index] = scores[image, index] >= least and not (both > iou * union).any()
    return kept
