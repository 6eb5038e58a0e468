"""At a kink rounding decides: PyTorch follows the side that our kernels took.

ReLU, clip and the maximum pool have a gradient that jumps. Of the millions of activations of a
large network a few lie within rounding of such a jump, and each that falls on the other side moves
some gradients by percents, though nothing is wrong. So a comparison of gradients fixes the sides:
ours. It loses nothing, because a side that differs from PyTorch's own is allowed only within
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from lamina.compiler.ir import Builder, Graph, Value
from lamina.compiler.ir.rewrite import copy_into

# How far from a jump, relative to the largest number of its tensor, the sides may differ: as far as
# forward values may.
NEAR = 1e-4
KINKED = ("relu", "clip", "max_pool2d")


def with_sides(graph: Graph) -> Graph:
    """The graph with one more output "side:NUMBER" for every jump, in order.

    It is the result of ReLU and clip, and the operand of a pool.
    """
    builder = Builder(graph.name)
    values = copy_into(builder, graph)
    outputs = [(name, values[value]) for name, value in graph.outputs]
    for node in graph.nodes:
        if node.op.name in KINKED:
            chosen = node.inputs[0] if node.op.name == "max_pool2d" else Value(node.id)
            outputs.append((f"side:{len(outputs)}", values[chosen]))
    return builder.finish(outputs, graph.scopes)


class Following(TorchFunctionMode):
    """While it is active PyTorch's ReLU, ReLU6 and maximum pools take the given sides, in order.

    `moved` of `count` are those that PyTorch would not have taken. Raises AssertionError if one of
    them is farther from its jump than rounding explains, or the operators are not the same.
    """

    def __init__(self, sides: Sequence[np.ndarray]):
        super().__init__()
        self.left, self.moved, self.count = list(sides), 0, 0

    def __exit__(self, kind, *rest):
        assert kind or not self.left, f"{len(self.left)} kinks of ours have no twin"
        return super().__exit__(kind, *rest)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        if name == "relu":
            return self._between(args[0], 0.0, np.inf)
        if name == "hardtanh":
            return self._between(args[0], kwargs["min_val"], kwargs["max_val"])
        if name == "max_pool2d":
            return self._pool(*args, **kwargs)
        return func(*args, **kwargs)

    def _next(self, x: torch.Tensor) -> torch.Tensor:
        side = torch.tensor(self.left.pop(0))
        assert side.shape == x.shape, (side.shape, x.shape)
        return side

    def _between(self, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        side = self._next(x)
        inside = (side > low) & (side < high)
        near = NEAR * x.detach().abs().max()
        for jump, ours, own in ((low, side > low, x > low), (high, side < high, x < high)):
            differ = ours != own
            self.moved += int(differ.sum())
            away = (x.detach() - jump).abs()[differ]
            assert (away <= near).all(), f"a side differs {away.max() / near * NEAR:.1e} away"
        self.count += x.numel()
        outside = torch.where(side > low, high if np.isfinite(high) else 0.0, low)
        return torch.where(inside, x, outside.to(x.dtype))

    def _pool(self, x: torch.Tensor, kernel, stride=None, padding=0, *_, **__) -> torch.Tensor:
        pool = torch.nn.functional.max_pool2d
        size = x.detach().abs().max()
        _, at = pool(self._next(x), kernel, stride, padding, return_indices=True)
        taken = x.flatten(2).gather(2, at.flatten(2)).view(at.shape)
        own = pool(x.detach(), kernel, stride, padding)
        self.moved, self.count = self.moved + int((taken != own).sum()), self.count + taken.numel()
        away = (own - taken.detach()).max() / size
        assert away <= NEAR, f"a maximum is {away:.1e} too small"
        return taken
