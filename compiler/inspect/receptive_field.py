"""Receptive fields: which part of the input one unit of a layer sees.

For each spatial axis: `size` input positions, `stride` positions between neighbouring units, and
`start`, the centre of the first unit's field (0 is the centre of the first input position). Over
several paths the largest field counts. Araujo, Norris and Sim, "Computing receptive fields of
convolutional neural networks" (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.types import Dim
from lamina.compiler.ops.conv import padding_pairs, pair


@dataclass(frozen=True, slots=True)
class Axis:
    """The field along one axis. After upsampling units lie closer than positions: stride 1/2."""

    size: int
    stride: int | Fraction
    start: float

    def window(self, kernel: int, stride: int, before: Dim, dilation: int = 1) -> Axis:
        """The field after a window of `kernel` positions with `before` positions of padding."""
        reach = dilation * (kernel - 1)
        padding = before if isinstance(before, int) else 0
        return Axis(math.ceil(self.size + reach * self.stride), _whole(self.stride * stride),
                    float(self.start + (reach / 2 - padding) * self.stride))

    def spread(self, factor: int, seen: int, shift: float) -> Axis:
        """The field where each position becomes `factor` units, each of which sees `seen` of them.

        `shift` is where the first unit's centre lies, in new units from the first position's.
        """
        return Axis(math.ceil(self.size + (seen - 1) * self.stride),
                    _whole(Fraction(self.stride) / factor),
                    float(self.start + shift * self.stride / factor))

    def cut(self, start: Dim, step: int) -> Axis:
        """The field after positions before `start` are cut off and every `step`th is kept."""
        first = start if isinstance(start, int) else 0
        return Axis(self.size, _whole(self.stride * step), float(self.start + first * self.stride))

    def joined(self, other: Axis) -> Axis:
        """The field of a unit that sees both: from the first to the last position of either."""
        low = min(self.start - (self.size - 1) / 2, other.start - (other.size - 1) / 2)
        high = max(self.start + (self.size - 1) / 2, other.start + (other.size - 1) / 2)
        return Axis(int(high - low) + 1, max(self.stride, other.stride), (low + high) / 2)


def _whole(stride: int | Fraction) -> int | Fraction:
    """A stride as an integer where it is one."""
    return int(stride) if stride == int(stride) else stride


@dataclass(frozen=True, slots=True)
class Field:
    """The field over (height, width); `whole` when a unit sees the entire input."""

    height: Axis
    width: Axis
    whole: bool = False


START = Field(Axis(1, 1, 0.0), Axis(1, 1, 0.0))
WHOLE = Field(Axis(0, 0, 0.0), Axis(0, 0, 0.0), True)


def receptive_fields(graph: Graph) -> dict[Value, Field]:
    """The field of every value of an expanded graph that depends on a 4-axis input."""
    fields: dict[Value, Field] = {}
    for node in graph.nodes:
        value = Value(node.id)
        if node.op.name == "input" and node.type.rank == 4:
            fields[value] = START
            continue
        seen = [fields[v] for v in node.inputs if v in fields]
        if seen:
            fields[value] = _step(graph, node, seen)
    return fields


def _step(graph: Graph, node: Node, seen: list[Field]) -> Field:
    rule = _RULES.get(node.op.name)
    if rule is not None and not seen[0].whole:
        return rule(node, graph, seen[0])
    same = node.type.rank == 4 and node.op.kind == "elementwise"
    if not same and not _keeps_places(graph, node):
        return WHOLE
    joined = seen[0]
    for other in seen[1:]:
        joined = _join(joined, other)
    return joined


def _join(a: Field, b: Field) -> Field:
    if a.whole or b.whole:
        return WHOLE
    return Field(a.height.joined(b.height), a.width.joined(b.width))


def _keeps_places(graph: Graph, node: Node) -> bool:
    """Whether spatial positions stay where they are."""
    if node.type.rank != 4 or graph.type(node.inputs[0]).rank != 4:
        # A reshape is a change of view, no computation: the field stays.
        return node.op.kind == "view"
    if node.op.kind == "reduce":
        return not {2, 3} & set(node.attributes["axes"])
    if node.op.name == "transpose":
        return node.attributes["perm"] == (0, 1, 2, 3)
    return node.op.kind in ("elementwise", "view")


def _convolution(node: Node, graph: Graph, field: Field) -> Field:
    attrs = node.attributes
    kernel = graph.type(node.inputs[1]).shape[2:]
    strides, dilations = pair("", "stride", attrs["stride"]), pair("", "", attrs["dilation"])
    return _windows(field, kernel, strides, attrs["padding"], dilations)


def _pool(node: Node, graph: Graph, field: Field) -> Field:
    attrs = node.attributes
    kernel = pair("", "kernel", attrs["kernel"])
    strides = kernel if attrs["stride"] is None else pair("", "stride", attrs["stride"])
    return _windows(field, kernel, strides, attrs["padding"], (1, 1))


def _windows(field: Field, kernel, strides, padding, dilations) -> Field:
    (top, _), (left, _) = padding_pairs(padding)
    return Field(field.height.window(kernel[0], strides[0], top, dilations[0]),
                 field.width.window(kernel[1], strides[1], left, dilations[1]))


def _pad(node: Node, graph: Graph, field: Field) -> Field:
    lo = node.attributes["lo"]
    return Field(field.height.window(1, 1, lo[2]), field.width.window(1, 1, lo[3]))


def _slice(node: Node, graph: Graph, field: Field) -> Field:
    if node.type.rank != 4:
        return field
    starts, steps = node.attributes["starts"], node.attributes["steps"]
    return Field(field.height.cut(starts[2], steps[2]), field.width.cut(starts[3], steps[3]))


def _conv_transpose(node: Node, graph: Graph, field: Field) -> Field:
    attrs = node.attributes
    kernel = graph.type(node.inputs[1]).shape[2:]
    strides, dilations = pair("", "stride", attrs["stride"]), pair("", "", attrs["dilation"])
    borders = padding_pairs(attrs["padding"])
    axes = []
    for axis, k, s, d, (before, _) in zip((field.height, field.width), kernel, strides, dilations,
                                          borders, strict=True):
        assert isinstance(k, int) and isinstance(before, int)
        seen = max(len({t for t in range(k) if (t * d) % s == phase}) for phase in range(s))
        far = 1 + (seen - 1) * d // math.gcd(s, d)  # from the first input seen to the last
        axes.append(axis.spread(s, far, before - d * (k - 1) / 2))
    return Field(*axes)


def _upsample(node: Node, graph: Graph, field: Field) -> Field:
    factors = pair("", "scale", node.attributes["scale"])
    seen = 1 if node.attributes["mode"] == "nearest" else 2
    axes = (axis.spread(s, seen if s > 1 else 1, -(s - 1) / 2)
            for axis, s in zip((field.height, field.width), factors, strict=True))
    return Field(*axes)


def _adaptive(node: Node, graph: Graph, field: Field) -> Field:
    counts = pair("", "windows", node.attributes["windows"])
    sizes = graph.type(node.inputs[0]).shape[2:]
    if counts == (1, 1):
        return WHOLE
    axes = []
    for axis, count, n in zip((field.height, field.width), counts, sizes, strict=True):
        if not isinstance(n, int):
            return WHOLE
        widest = max(-(-(i + 1) * n // count) - i * n // count for i in range(count))
        axes.append(Axis(math.ceil(axis.size + (widest - 1) * axis.stride),
                         _whole(axis.stride * Fraction(n, count)),
                         float(axis.start + (n / count - 1) / 2 * axis.stride)))
    return Field(*axes)


_RULES: dict[str, Callable[[Node, Graph, Field], Field]] = {
    "conv2d": _convolution, "max_pool2d": _pool, "avg_pool2d": _pool, "pad": _pad,
    "slice": _slice, "conv_transpose2d": _conv_transpose, "upsample2d": _upsample,
    "adaptive_avg_pool2d": _adaptive,
}
KNOWN = frozenset(_RULES)  # operators that need not be taken apart
