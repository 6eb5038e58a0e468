"""Operand texts: the written samples of the operator records, and more shapes made from them.

A sample reads `x:[3,4] y:+[3] i:i32[5]<7 c:bool[2] | axis=1, k=3`: operands with element type
(f32 where not given) and shape, `+` for positive values, `<7` for integers from 0 to 6, then
attributes as Python literals. Values are seeded by the text alone.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lamina.compiler.ir.op import Op, OpError
from lamina.compiler.ir.types import NUMPY_TYPES, TensorType
from lamina.compiler.ops import OPS

COUNT = 36  # cases of an operator, at least
LARGEST = 4000  # elements of an operand of a generated case, at most
SIZES = (0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 11, 13, 15, 16, 17, 23, 31, 33, 64, 65)

_OPERAND = re.compile(r"(\w+):(\+?)(\w*)\[([\d,]*)\](?:<(\d+))?$")

# Attributes whose numbers are sizes: they change together with the operands' shapes.
SIZE_ATTRIBUTES = {"broadcast_to": "shape", "take_grad": "rows", "one_hot": "depth",
                   "uniform": "shape", "iota": "shape"}


@dataclass(frozen=True)
class Operand:
    """One operand of a sample."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "f32"
    positive: bool = False
    limit: int | None = None

    def __str__(self) -> str:
        dtype = "" if self.dtype == "f32" else self.dtype
        limit = "" if self.limit is None else f"<{self.limit}"
        return f"{self.name}:{'+' * self.positive}{dtype}[{','.join(map(str, self.shape))}]{limit}"

    @property
    def type(self) -> TensorType:
        return TensorType(self.shape, self.dtype)

    def values(self, rng: np.random.Generator) -> np.ndarray:
        """Random values: normal, integers, or true and false."""
        if self.dtype == "bool":
            return np.asarray(rng.random(self.shape) < 0.5)
        if self.dtype in ("i32", "i64"):
            low, high = (-9, 10) if self.limit is None else (0, self.limit)
            return np.asarray(rng.integers(low, max(high, low + 1), self.shape),
                              NUMPY_TYPES[self.dtype])
        values = rng.standard_normal(self.shape)
        values = np.abs(values) + 0.1 if self.positive else values
        return np.asarray(values, NUMPY_TYPES[self.dtype])


@dataclass(frozen=True)
class Sample:
    """A sample, read: `str` writes it."""

    operands: tuple[Operand, ...]
    given: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        operands = " ".join(map(str, self.operands))
        given = ", ".join(f"{name}={value!r}" for name, value in self.given)
        return f"{operands} | {given}" if given else operands

    @property
    def types(self) -> list[TensorType]:
        return [operand.type for operand in self.operands]

    def attributes(self, op: Op) -> dict[str, Any]:
        """All attributes of `op`, with the sample's own."""
        return {**op.attrs, **dict(self.given)}

    def arrays(self) -> list[np.ndarray]:
        """The operands' values, the same at every call."""
        seed = int.from_bytes(hashlib.sha256(str(self).encode()).digest()[:8], "little")
        rng = np.random.default_rng(seed)
        return [operand.values(rng) for operand in self.operands]


def parse(text: str) -> Sample:
    """Read a sample. Raises ValueError."""
    left, _, right = text.partition("|")
    operands = []
    for word in left.split():
        match = _OPERAND.match(word)
        if match is None:
            raise ValueError(f"not an operand: {word}")
        name, positive, dtype, shape, limit = match.groups()
        operands.append(Operand(name, tuple(int(n) for n in shape.split(",") if n), dtype or "f32",
                                bool(positive), int(limit) if limit else None))
    call = ast.parse(f"f({right})", mode="eval").body
    assert isinstance(call, ast.Call)
    given = tuple((word.arg or "", ast.literal_eval(word.value)) for word in call.keywords)
    return Sample(tuple(operands), given)


def written(op: Op) -> list[Sample]:
    """The samples of the record."""
    return [parse(text) for text in op.samples]


@functools.cache
def samples(op: Op) -> tuple[Sample, ...]:
    """The written samples and generated ones of other shapes, all accepted by the operator."""
    found = {str(sample): sample for sample in written(op)}
    if not found:
        return ()
    rng = random.Random(op.name)
    make = MAKERS.get(op.name, _resized)
    for _ in range(60 * COUNT):
        if len(found) >= COUNT:
            break
        sample = make(op, rng)
        if sample is not None and _accepted(op, sample):
            found.setdefault(str(sample), sample)
    return tuple(found.values())


def cases(op: Op) -> list[tuple[list[np.ndarray], dict[str, Any]]]:
    """Operands and attributes of every sample."""
    return [(sample.arrays(), sample.attributes(op)) for sample in samples(op)]


def _accepted(op: Op, sample: Sample) -> bool:
    if any(np.prod(operand.shape) > LARGEST for operand in sample.operands):
        return False
    if any(operand.limit == 0 and np.prod(operand.shape) for operand in sample.operands):
        return False  # no index is right for an empty table
    try:
        op.infer(*sample.types, **sample.attributes(op))
    except OpError:
        return False
    return True


def _resized(op: Op, rng: random.Random) -> Sample:
    """A written sample in which equal sizes became other, equal sizes; 0 and 1 mostly stay."""
    sample = rng.choice(written(op))
    sizes = {n for operand in sample.operands for n in operand.shape} | {
        operand.limit for operand in sample.operands if operand.limit is not None}
    change = {n: n if n < 2 and rng.random() < 0.8 else rng.choice(SIZES) for n in sorted(sizes)}
    operands = tuple(replace(operand, shape=tuple(change[n] for n in operand.shape),
                             limit=None if operand.limit is None else change[operand.limit])
                     for operand in sample.operands)
    linked = SIZE_ATTRIBUTES.get(op.name)
    given = tuple((name, _renamed(value, change, rng) if name == linked else value)
                  for name, value in sample.given)
    return Sample(operands, given)


def _renamed(value: Any, change: dict[int, int], rng: random.Random) -> Any:
    if isinstance(value, tuple):
        return tuple(_renamed(one, change, rng) for one in value)
    return change.setdefault(value, rng.choice(SIZES))


def _shape(rng: random.Random, least: int = 1, most: int = 4) -> tuple[int, ...]:
    return tuple(rng.choice(SIZES[:12]) for _ in range(rng.randint(least, most)))


def _make_reshape(op: Op, rng: random.Random) -> Sample:
    factors = [rng.choice((1, 2, 3, 5, 7)) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.1:
        factors[0] = 0
    return Sample((Operand("x", _grouped(factors, rng)),), (("shape", _grouped(factors, rng)),))


def _grouped(factors: list[int], rng: random.Random) -> tuple[int, ...]:
    shape = [1] * rng.randint(1, 4)
    for factor in factors:
        shape[rng.randrange(len(shape))] *= factor
    return tuple(shape)


def _make_transpose(op: Op, rng: random.Random) -> Sample:
    shape = _shape(rng)
    return Sample((Operand("x", shape),), (("perm", tuple(rng.sample(range(len(shape)),
                                                                     len(shape)))),))


def _make_slice(op: Op, rng: random.Random) -> Sample:
    shape = _shape(rng, most=3)
    starts = tuple(rng.randint(0, n) for n in shape)
    stops = tuple(rng.randint(a, n) for a, n in zip(starts, shape, strict=True))
    steps = tuple(rng.choice((1, 1, 2, 3)) for _ in shape)
    return Sample((Operand("x", shape),), (("starts", starts), ("stops", stops), ("steps", steps)))


def _make_pad(op: Op, rng: random.Random) -> Sample:
    shape = _shape(rng, most=3)
    lo, hi = (tuple(rng.randint(-2, 3) for _ in shape) for _ in range(2))
    given = [("lo", lo), ("hi", hi)]
    if rng.random() < 0.5:
        given.append(("interior", tuple(rng.randint(0, 2) for _ in shape)))
    if rng.random() < 0.3:
        given.append(("value", 0.5))
    return Sample((Operand("x", shape),), tuple(given))


def _make_concat(op: Op, rng: random.Random) -> Sample:
    shape, axis = _shape(rng, most=3), rng.randint(0, 2)
    axis = min(axis, len(shape) - 1)
    operands = tuple(
        Operand(name, (*shape[:axis], rng.choice(SIZES[:8]), *shape[axis + 1:]))
        for name in "xyz"[:rng.randint(2, 3)])
    return Sample(operands, (("axis", axis),))


def _make_part(op: Op, rng: random.Random) -> Sample:
    shape, parts = list(_shape(rng, most=3)), rng.randint(1, 4)
    axis = rng.randrange(len(shape))
    shape[axis] = parts * rng.randint(1, 5)
    return Sample((Operand("x", tuple(shape)),),
                  (("index", rng.randrange(parts)), ("parts", parts), ("axis", axis)))


def _pairs(rng: random.Random, choices: tuple[int, ...]) -> int | tuple[int, int]:
    return rng.choice(choices) if rng.random() < 0.5 else (rng.choice(choices), rng.choice(choices))


def _padding(rng: random.Random, most: int) -> Any:
    some = tuple(range(most + 1))
    if rng.random() < 0.3:
        return (_both(rng, some), _both(rng, some))
    return _pairs(rng, some)


def _both(rng: random.Random, choices: tuple[int, ...]) -> tuple[int, int]:
    return rng.choice(choices), rng.choice(choices)


def _make_conv2d(op: Op, rng: random.Random) -> Sample:
    groups = rng.choice((1, 1, 1, 2, 3))
    each, out = rng.choice((1, 2, 3, 5)), groups * rng.choice((1, 2, 3))
    kernel = _both(rng, (1, 1, 2, 3, 3, 5))
    batch = rng.choice((0, 1, 1, 2, 3))
    height, width = rng.choice((1, 3, 5, 6, 7, 11)), rng.choice((1, 2, 4, 5, 8, 13))
    layout = rng.choice(("nchw", "nchw", "nhwc"))
    image = ((batch, groups * each, height, width) if layout == "nchw" else
             (batch, height, width, groups * each))
    given = (("stride", _pairs(rng, (1, 1, 2, 3))), ("padding", _padding(rng, 3)),
             ("dilation", _pairs(rng, (1, 1, 1, 2))), ("groups", groups), ("layout", layout))
    return Sample((Operand("x", image), Operand("w", (out, each, *kernel))), given)


def _make_conv1d(op: Op, rng: random.Random) -> Sample:
    groups = rng.choice((1, 1, 2))
    each, out = rng.choice((1, 2, 3)), groups * rng.choice((1, 2, 3))
    x = Operand("x", (rng.choice((0, 1, 2)), groups * each, rng.choice(SIZES[1:])))
    given = (("stride", rng.choice((1, 1, 2, 3))), ("dilation", rng.choice((1, 1, 2))),
             ("padding", rng.choice((0, 1, 2, (2, 0), (0, 3)))), ("groups", groups))
    return Sample((x, Operand("w", (out, each, rng.choice((1, 2, 3, 5))))), given)


def _make_pool(op: Op, rng: random.Random) -> Sample:
    given = [("kernel", _pairs(rng, (1, 2, 3, 4))), ("padding", _padding(rng, 2)),
             ("layout", rng.choice(("nchw", "nchw", "nhwc")))]
    if rng.random() < 0.7:
        given.append(("stride", _pairs(rng, (1, 2, 3))))
    if "count_padding" in op.attrs:
        given.append(("count_padding", rng.random() < 0.5))
    shape = (rng.choice((0, 1, 2)), rng.choice((1, 2, 3, 7)), rng.choice((1, 3, 4, 7, 8)),
             rng.choice((2, 5, 6, 9)))
    return Sample((Operand("x", shape),), tuple(given))


def _make_pool1d(op: Op, rng: random.Random) -> Sample:
    kernel = rng.choice((1, 2, 3, 4))
    given = [("kernel", kernel), ("padding", rng.randint(0, kernel // 2))]
    if rng.random() < 0.7:
        given.append(("stride", rng.choice((1, 2, 3))))
    shape = (rng.choice((0, 1, 2)), rng.choice((1, 2, 5)), rng.choice(SIZES[1:]))
    return Sample((Operand("x", shape),), tuple(given))


def _gradient_of(forward: str, make: Callable) -> Callable:
    """Samples of a gradient record, from samples of the operator that it differentiates."""

    def make_gradient(op: Op, rng: random.Random) -> Sample | None:
        source = OPS[forward]
        sample = make(source, rng)
        if not _accepted(source, sample):
            return None
        shape = source.infer(*sample.types, **sample.attributes(source)).shape
        x, given = sample.operands[0], dict(sample.given)
        if forward == "conv2d":
            given["kernel"] = sample.operands[1].shape[2:]
        if forward == "avg_pool2d":
            axes = (2, 3) if given["layout"] == "nchw" else (1, 2)
            given["size"] = tuple(x.shape[axis] for axis in axes)
            return Sample((Operand("y", shape),), tuple(given.items()))
        return Sample((x, Operand("y", shape)), tuple(given.items()))

    return make_gradient


MAKERS: dict[str, Callable[[Op, random.Random], Sample | None]] = {
    "reshape": _make_reshape, "transpose": _make_transpose, "slice": _make_slice,
    "pad": _make_pad, "concat": _make_concat, "part": _make_part, "conv2d": _make_conv2d,
    "conv1d": _make_conv1d, "max_pool2d": _make_pool, "avg_pool2d": _make_pool,
    "max_pool1d": _make_pool1d, "avg_pool1d": _make_pool1d,
    "conv2d_weight_grad": _gradient_of("conv2d", _make_conv2d),
    "max_pool2d_grad": _gradient_of("max_pool2d", _make_pool),
    "avg_pool2d_grad": _gradient_of("avg_pool2d", _make_pool),
}
