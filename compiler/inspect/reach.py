"""Exactly which positions of an input each unit sees, unit by unit, along one axis.

The recursion of `axes.py` gives one size for all units of a layer; at borders, and between the
phases of an upsampling, units differ. Here every operator says which positions of its operand each
position of its result reads, and the first and the last input position follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.types import Dim, substitute
from lamina.compiler.ops.window import SPATIAL, padding_pairs, pair

NOWHERE = np.iinfo(np.int64).max  # the first position of a unit that sees none


@dataclass(frozen=True, slots=True)
class Reach:
    """The first and the last input position that each unit sees, int64 [units].

    The units lie along the value's axis `at`; with None there is one, for the whole value. A unit
    that sees nothing but padding has a first position after its last.
    """

    first: np.ndarray
    last: np.ndarray
    at: int | None

    def read(self, taps: np.ndarray, at: int | None) -> Reach:
        """What units see that read these units, int64 [units, taps]; -1 is none."""
        absent = taps < 0
        first = np.where(absent, NOWHERE, self.first[taps]).min(axis=1, initial=NOWHERE)
        last = np.where(absent, -1, self.last[taps]).max(axis=1, initial=-1)
        return Reach(first, last, at)

    def all(self) -> Reach:
        """What a unit sees that reads all of these."""
        return self.read(np.arange(len(self.first))[None], None)

    def joined(self, other: Reach) -> Reach | None:
        """What units see that read both; None where they lie along different axes."""
        if self.at is not None and other.at is not None and self.at != other.at:
            return None
        return Reach(np.minimum(self.first, other.first), np.maximum(self.last, other.last),
                     other.at if self.at is None else self.at)


def reach(graph: Graph, source: Value, axis: int, sizes: Mapping[str, int]
          ) -> dict[Value, Reach | None]:
    """What the units of every value see of an input along `axis`, of an expanded graph.

    `sizes` gives a number for every open size. None: the units do not lie along one axis.
    """
    positions = np.arange(_size(graph.type(source).shape[axis], sizes))
    found: dict[Value, Reach | None] = {source: Reach(positions, positions, axis)}
    for node in graph.nodes:
        seen = [(index, found[value]) for index, value in enumerate(node.inputs) if value in found]
        if seen:
            found[Value(node.id)] = _step(_Shapes(graph, node, sizes), seen)
    return found


def _size(size: Dim, sizes: Mapping[str, int]) -> int:
    number = substitute(size, sizes)
    assert isinstance(number, int), f"the size {size} is open"
    return number


@dataclass(frozen=True, slots=True)
class _Shapes:
    """A node with the shapes of its operands and result as numbers."""

    graph: Graph
    node: Node
    sizes: Mapping[str, int]

    def operand(self, index: int) -> tuple[int, ...]:
        return self.numbers(self.graph.type(self.node.inputs[index]).shape)

    @property
    def result(self) -> tuple[int, ...]:
        return self.numbers(self.node.type.shape)

    def numbers(self, dims: Sequence[Dim]) -> tuple[int, ...]:
        return tuple(_size(dim, self.sizes) for dim in dims)


def _step(shapes: _Shapes, seen: list[tuple[int, Reach | None]]) -> Reach | None:
    node = shapes.node
    if node.op.name == "concat":
        return _concatenated(shapes, dict(seen))
    rule = _RULES.get(node.op.name) or _KINDS.get(node.op.kind) or _everything
    joined: Reach | None = None
    for index, one in seen:
        passed = None if one is None else one if one.at is None else rule(shapes, index, one)
        joined = passed if joined is None or passed is None else joined.joined(passed)
        if joined is None:
            return None
    return joined


Rule = Callable[[_Shapes, int, Reach], Reach | None]


def _everything(shapes: _Shapes, index: int, seen: Reach) -> Reach:
    return seen.all()


def _aligned(shapes: _Shapes, index: int, seen: Reach) -> Reach:
    """The same place of a result of which an operand of size 1 is repeated."""
    assert seen.at is not None
    at = seen.at + len(shapes.result) - len(shapes.operand(index))
    count = shapes.result[at]
    same = np.arange(count) if count == len(seen.first) else np.zeros(count, np.int64)
    return seen.read(same[:, None], at)


def _reduced(shapes: _Shapes, index: int, seen: Reach) -> Reach:
    return seen.all() if seen.at in shapes.node.attributes["axes"] else seen


def _transposed(shapes: _Shapes, index: int, seen: Reach) -> Reach:
    return Reach(seen.first, seen.last, shapes.node.attributes["perm"].index(seen.at))


def _reshaped(shapes: _Shapes, index: int, seen: Reach) -> Reach | None:
    """An axis that stays; others are mixed with it, or it becomes several."""
    old, new = shapes.operand(index), shapes.result
    assert seen.at is not None
    before, size = int(np.prod(old[:seen.at])), old[seen.at]
    if size == 1:
        return seen.all()
    for at, other in enumerate(new):
        if other == size and int(np.prod(new[:at])) == before:
            return Reach(seen.first, seen.last, at)
    return None


def _multiplied(shapes: _Shapes, index: int, seen: Reach) -> Reach:
    summed = len(shapes.operand(index)) - (1 if index == 0 else 2)
    return seen.all() if seen.at == summed else _aligned(shapes, index, seen)


def _taken(shapes: _Shapes, index: int, seen: Reach) -> Reach:
    return seen if index == 1 else seen.all()


def _concatenated(shapes: _Shapes, seen: Mapping[int, Reach | None]) -> Reach | None:
    """Along its own axis one after the other; elsewhere joined."""
    rank = len(shapes.result)
    axis, joined = shapes.node.attributes["axis"] % rank, None
    if all(one is not None and one.at == axis for one in seen.values()):
        parts = [seen.get(i) or _nothing(shapes.operand(i)[axis], axis)
                 for i in range(len(shapes.node.inputs))]
        return Reach(np.concatenate([part.first for part in parts]),
                     np.concatenate([part.last for part in parts]), axis)
    for one in seen.values():
        if one is None or one.at == axis:
            return None
        joined = one if joined is None else joined.joined(one)
        if joined is None:
            return None
    return joined


def _nothing(count: int, at: int) -> Reach:
    return Reach(np.full(count, NOWHERE), np.full(count, -1), at)


# --- windows ------------------------------------------------------------------------------------

# For an axis of a result: int64 [units, taps], the positions of the operand that each unit reads.
Taps = Callable[[_Shapes, int, int, int], np.ndarray]


def _along(taps: Taps, spatial: Sequence[int] | None = None) -> Rule:
    """The rule of an operator that reads places of its first operand along `spatial` axes."""

    def rule(shapes: _Shapes, index: int, seen: Reach) -> Reach:
        assert seen.at is not None
        every = spatial if spatial is not None else range(len(shapes.result))
        axes = SPATIAL.get(shapes.node.attributes.get("layout"), every)
        if index > 0:  # weights made from the input
            return seen.all()
        if seen.at not in axes:
            return seen if seen.at == 0 else seen.all()  # the batch stays, channels are summed
        count = shapes.result[seen.at]
        places = taps(shapes, seen.at, list(axes).index(seen.at), count)
        inside = (places >= 0) & (places < len(seen.first))
        return seen.read(np.where(inside, places, -1), seen.at)

    return rule


def _grid(count: int, stride: int, offsets: np.ndarray) -> np.ndarray:
    return np.arange(count)[:, None] * stride + offsets


def _convolution(shapes: _Shapes, at: int, which: int, count: int) -> np.ndarray:
    attrs = shapes.node.attributes
    kernel = shapes.operand(1)[2 + which]
    dilation = pair("", "dilation", attrs["dilation"])[which]
    before = padding_pairs(attrs["padding"])[which][0]
    return _grid(count, pair("", "stride", attrs["stride"])[which],
                 np.arange(kernel) * dilation - before)


def _pool(shapes: _Shapes, at: int, which: int, count: int) -> np.ndarray:
    attrs = shapes.node.attributes
    kernel = pair("", "kernel", attrs["kernel"])
    stride = kernel if attrs["stride"] is None else pair("", "stride", attrs["stride"])
    before = padding_pairs(attrs["padding"])[which][0]
    return _grid(count, stride[which], np.arange(kernel[which]) - before)


def _conv_transpose(shapes: _Shapes, at: int, which: int, count: int) -> np.ndarray:
    attrs = shapes.node.attributes
    kernel, stride = shapes.operand(1)[2 + which], pair("", "stride", attrs["stride"])[which]
    dilation = pair("", "dilation", attrs["dilation"])[which]
    before = padding_pairs(attrs["padding"])[which][0]
    places = _grid(count, 1, before - np.arange(kernel) * dilation)
    return np.where(places % stride == 0, places // stride, -1)


def _upsample(shapes: _Shapes, at: int, which: int, count: int) -> np.ndarray:
    attrs = shapes.node.attributes
    scale, size = pair("", "scale", attrs["scale"])[which], shapes.operand(0)[at]
    units = np.arange(count)
    if attrs["mode"] == "nearest":
        return units[:, None] // scale
    # Twice the centre in units of 1 / scale, so that whole numbers tell what is read.
    low, part = np.divmod(2 * units + 1 - scale, 2 * scale)
    high = np.where(part == 0, low, low + 1)
    return np.clip(np.stack([low, high], axis=1), 0, size - 1)


def _adaptive(shapes: _Shapes, at: int, which: int, count: int) -> np.ndarray:
    size, units = shapes.operand(0)[at], np.arange(count)
    low, high = units * size // count, -(-(units + 1) * size // count)
    places = low[:, None] + np.arange((high - low).max(initial=1))
    return np.where(places < high[:, None], places, -1)


def _slice(shapes: _Shapes, at: int, which: int, count: int) -> np.ndarray:
    attrs = shapes.node.attributes
    (start,) = shapes.numbers(attrs["starts"][at:at + 1])
    return _grid(count, attrs["steps"][at], np.array([start]))


def _pad(shapes: _Shapes, at: int, which: int, count: int) -> np.ndarray:
    attrs = shapes.node.attributes
    (low,) = shapes.numbers(attrs["lo"][at:at + 1])
    step = (attrs["interior"] or (0,) * len(attrs["lo"]))[at] + 1
    places = _grid(count, 1, np.array([-low]))
    return np.where(places % step == 0, places // step, -1)


def _reverse(shapes: _Shapes, at: int, which: int, count: int) -> np.ndarray:
    turned = at in {axis % len(shapes.result) for axis in shapes.node.attributes["axes"]}
    return (np.arange(count)[::-1] if turned else np.arange(count))[:, None]


IMAGE = (2, 3)
_RULES: dict[str, Rule] = {
    "conv2d": _along(_convolution), "max_pool2d": _along(_pool), "avg_pool2d": _along(_pool),
    "conv_transpose2d": _along(_conv_transpose, IMAGE), "upsample2d": _along(_upsample, IMAGE),
    "adaptive_avg_pool2d": _along(_adaptive, IMAGE), "slice": _along(_slice), "pad": _along(_pad),
    "reverse": _along(_reverse), "transpose": _transposed, "reshape": _reshaped,
    "broadcast_to": _aligned, "matmul": _multiplied, "take": _taken,
}
_KINDS: dict[str, Rule] = {"elementwise": _aligned, "random": _aligned, "reduce": _reduced}
