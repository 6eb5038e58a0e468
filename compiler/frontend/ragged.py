"""The math namespace that knows how long each example is.

A symbol written `S~` is ragged: the graph has an input `S~`, i32 [B], the lengths. Every operator
that meets such a size goes by its rule (`lamina.compiler.ops.ragged`), so that nothing past an
example's end is seen. What the graph says is plain: comparisons with the lengths, and `select`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Value
from lamina.compiler.ir.op import Op, OpError
from lamina.compiler.ir.types import (
    Dim,
    Expression,
    Quotient,
    Symbol,
    TensorType,
    is_ragged,
    product,
    shape_text,
    symbols_of,
)
from lamina.compiler.ops.define import REGISTRY, GraphMath, Var, normalize_axes
from lamina.compiler.ops.ragged import LENGTHS, unruled


class RaggedMath(GraphMath):
    """Every operator over graph values of which some sizes differ from example to example."""

    def __init__(self, builder: Builder):
        super().__init__(builder)
        self.plain = GraphMath(builder)
        self._lengths: dict[str, Var] = {}  # by symbol: i32 [B]
        self._blank: dict[tuple[Value, int], float] = {}  # what lies past the ends of an axis
        self._changed = 0  # how often a rule has made something else than the operator

    def declare(self, type: TensorType) -> None:
        """Make the inputs with the lengths of a type's ragged sizes; the first axis is the batch.

        Raises OpError E418 where there is no such axis.
        """
        for symbol in sorted(symbols_of(type), key=lambda found: found.name):
            if not symbol.ragged or symbol.name in self._lengths:
                continue
            if is_ragged(type.shape[0]):
                raise OpError("E418", f"the first axis of {shape_text(type.shape)} counts the "
                              f"examples, and cannot be `{symbol.name}~` long in each",
                              f"write `[B, {symbol.name}~]`")
            attrs = {"name": symbol.name + LENGTHS, "shape": type.shape[:1], "dtype": "i32"}
            self._lengths[symbol.name] = self.lift(self.builder.emit(REGISTRY["input"], (), attrs))

    # --- operators ------------------------------------------------------------------------------

    def apply(self, op: Op, operands: tuple, attrs: Mapping[str, Any]) -> Var:
        """Emit `op`, or what stands for it where sizes are ragged."""
        if not self._lengths:
            return Var(self, self.plain.apply(op, operands, attrs).value)
        dtype = next((x.dtype for x in reversed(operands) if isinstance(x, Var)), "f32")
        values = tuple(self.lift(x, dtype) for x in operands)
        if not any(is_ragged(x.type) for x in values) and not is_ragged(attrs.get("shape", ())):
            return self.emit(op, values, attrs)
        if op.ragged is not None or op.kind not in ("elementwise", "composite"):
            return self._ruled(op, values, attrs)
        whole = self.emit(op, values, attrs)
        return whole if op.body is None else self._spelt_out(op, whole, values)

    def emit(self, op: Op, operands: tuple, attrs: Mapping[str, Any]) -> Var:
        """Emit `op` as it is."""
        found = Var(self, self.plain.apply(op, operands, attrs).value)
        for symbol in symbols_of(found.type):
            if symbol.ragged and self._loses_batch(symbol, found, operands):
                raise OpError("E418", f"`{op.name}` gives {shape_text(found.shape)}: without the "
                              f"axis of the examples `{symbol.name}~` means nothing",
                              "keep the first axis as it is", (0,))
        return found

    def _ruled(self, op: Op, operands: tuple[Var, ...], attrs: Mapping[str, Any]) -> Var:
        if op.ragged is None:
            if not operands:
                return self.emit(op, operands, attrs)
            raise unruled(op.name, next(x.shape for x in operands if is_ragged(x.type)))
        whole = self.emit(op, operands, attrs)  # refuses what is wrong in itself
        complete = self.builder.node(whole.value).attributes
        found = op.ragged(self, op, operands, complete)
        self._changed += found.value != whole.value
        return found

    def _spelt_out(self, op: Op, whole: Var, operands: tuple[Var, ...]) -> Var:
        """A composite as one node, or where its parts need the lengths, its parts."""
        assert op.body is not None
        before = self._changed
        found = self.lift(op.body(self, *operands, **self.builder.node(whole.value).attributes))
        return found if self._changed > before else whole

    def _loses_batch(self, symbol: Symbol, found: Var, operands: tuple[Var, ...]) -> bool:
        size = self._batch(symbol)
        return size not in found.shape and any(
            symbol in symbols_of(x.type) and size in x.shape for x in operands)

    def lift(self, operand: Any, dtype: str = "f32") -> Var:
        """A Var; a ragged size is no number. Raises OpError E418."""
        if isinstance(operand, Expression) and is_ragged(operand):
            raise OpError("E418", f"the size {operand} differs from example to example, and is no "
                          "number here", f"`lengths({_symbol(operand).name})` has each example's "
                          "own; `mean` divides by it")
        return Var(self, super().lift(operand, dtype).value)

    def count(self, x: Var, axes: tuple[int, ...]) -> Any:
        """How many elements that count lie along `axes`.

        Where that differs from example to example, a tensor that broadcasts with kept axes.
        """
        ragged = [axis for axis in axes if is_ragged(x.shape[axis])]
        others = product(x.shape[axis] for axis in axes if axis not in ragged)
        if not ragged:
            return others
        self._changed += 1
        places = {self.place(x.shape, axis) for axis in ragged}
        first, *more = (self._along(x, axis) for axis in ragged)
        total = functools.reduce(self.plain.mul, more, first)
        summed = tuple(place for place in places if place in axes)
        if summed:
            others = product(x.shape[a] for a in axes if a not in (*ragged, *summed))
            total = self.plain.reshape(self.plain.reduce_sum(total, axes=summed), shape=())
        # No element at all: 0 / 1, not 0 / 0.
        total = self.plain.maximum(total, 1.0)
        return self.lift((total if others == 1 else total * others).value)

    # --- what lies past the ends ----------------------------------------------------------------

    def fill(self, x: Var, axes: Iterable[int], value: float) -> Var:
        """`x` with `value` past every example's end along the ragged ones of `axes`."""
        for axis in normalize_axes("fill", tuple(axes), len(x.shape)):
            if is_ragged(x.shape[axis]) and self._blank.get((x.value, axis)) != value:
                kept = dict(self._blanks(x))
                x = self.lift(self.plain.select(
                    self.valid(x.shape, axis), x, _in_type(value, x.dtype)).value)
                kept[axis] = value
                self._blank |= {(x.value, one): held for one, held in kept.items()
                                if held == value}
        return x

    def _blanks(self, x: Var) -> list[tuple[int, float]]:
        return [(axis, self._blank[x.value, axis]) for axis in range(len(x.shape))
                if (x.value, axis) in self._blank]

    def valid(self, shape: tuple[Dim, ...], axis: int) -> Var:
        """Which positions along a ragged axis count: bool, broadcastable to `shape`."""
        return self._compare("less", shape, axis, shape[axis])

    def before_end(self, length: Dim) -> Var:
        """Which steps of a ragged number of steps count: bool [length, B]."""
        steps, batch = (length, 1), self._batch(_symbol(length))
        lengths = self.plain.reshape(self.length(length), shape=(1, batch))
        return self.plain.less(self.plain.iota(shape=steps, axis=0), lengths)

    def at(self, x: Var, axis: int, position: Dim) -> Var:
        """The entry at a position of each example's own, with the axis kept; 0 before its start."""
        hit = self._compare("equal", x.shape, axis, position)
        zero = _in_type(0.0, x.dtype)
        found = self.plain.reduce_sum(self.plain.select(hit, x, zero), axes=(axis,))
        return self.lift(found.value)

    def _compare(self, name: str, shape: tuple[Dim, ...], axis: int, size: Dim) -> Var:
        place = self.place(shape, axis)
        line = tuple(shape[axis] if one == axis else 1 for one in range(len(shape)))
        own = tuple(shape[place] if one == place else 1 for one in range(len(shape)))
        lengths = self.plain.reshape(self.length(size), shape=own)
        return getattr(self.plain, name)(self.plain.iota(shape=line, axis=axis), lengths)

    def _along(self, x: Var, axis: int) -> Var:
        """The lengths along a ragged axis as f32 of the rank of `x`."""
        place = self.place(x.shape, axis)
        own = tuple(x.shape[place] if one == place else 1 for one in range(len(x.shape)))
        lengths = self.plain.maximum(self.length(x.shape[axis]), 0)
        return self.plain.reshape(self.plain.cast(lengths, dtype="f32"), shape=own)

    # --- lengths --------------------------------------------------------------------------------

    def length(self, size: Dim) -> Var:
        """What a ragged size is for each example: i32 [B]."""
        total = None
        for monomial, factor in size.terms:  # type: ignore[union-attr]
            parts = [self._atom(atom) for atom, power in monomial for _ in range(power)]
            if factor != 1 or not parts:
                parts.append(self.plain.lift(factor, "i32"))
            term = functools.reduce(self.plain.mul, parts)
            total = term if total is None else total + term
        assert total is not None
        return total

    def _atom(self, atom: Any) -> Var:
        if isinstance(atom, Symbol) and atom.scale == 1:
            if not atom.ragged:
                return self.plain.lift(Expression(((((atom, 1),), 1),)), "i32")
            return Var(self.plain, self._lengths[atom.name].value)
        if isinstance(atom, Quotient) and isinstance(atom.denominator, int):
            whole = self.plain.cast(self.length(atom.numerator), dtype="f32")
            # Half a step up keeps the floor of a rounded quotient right.
            exact = (whole + 0.5) / float(atom.denominator)
            return self.plain.cast(self.plain.floor(exact), dtype="i32")
        raise OpError("E418", f"the size {Expression(((((atom, 1),), 1),))} cannot be told for "
                      "each example", "keep the axis's size, or divide it by a number")

    def _batch(self, symbol: Symbol) -> Dim:
        return self._lengths[symbol.name].shape[0]

    def place(self, shape: tuple[Dim, ...], axis: int) -> int:
        """The axis of the examples. Raises OpError E418 where there is none."""
        symbol = _symbol(shape[axis])
        size = self._batch(symbol)
        for place, one in enumerate(shape):
            if one == size and place != axis:
                return place
        raise OpError("E418", f"{shape_text(shape)} has no axis {size}: without the examples "
                      f"nothing says where `{symbol.name}~` ends",
                      f"repeat it for every example: `broadcast_to(shape=[{size}, ...])`", (0,))

    def has_batch(self, shape: tuple[Dim, ...], axis: int) -> bool:
        """Whether a shape with a ragged axis has an axis of the examples."""
        size = self._batch(_symbol(shape[axis]))
        return any(one == size for place, one in enumerate(shape) if place != axis)


def _symbol(size: Dim) -> Symbol:
    """The ragged symbol of a size."""
    return next(found for found in sorted(symbols_of(size), key=lambda one: one.name)
                if found.ragged)


def _in_type(value: float, dtype: str) -> Any:
    """A number in an element type; the infinities are its ends."""
    if dtype in ("f32", "f64"):
        return value
    if dtype == "bool":
        return value > 0
    ends = {"i32": 31, "i64": 63}[dtype]
    return max(-2**ends, min(2**ends - 1, value)) if abs(value) > 2**ends else int(value)
