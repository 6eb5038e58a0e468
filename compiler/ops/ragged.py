"""What operators do with sizes that differ from example to example (`S~`).

A tensor has S entries for every example, of which the first ones count: as many as the example is
long. A rule `rule(m, op, operands, attrs)` gives a result whose entries that count depend on
entries that count, and on nothing else. Its operands are graph values, `m` is the math namespace
that knows the lengths: `m.fill(x, axes, value)` puts a value where nothing counts, `m.emit` is
the operator as it is. An operator without a rule refuses ragged operands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.compiler.ir.op import Op, OpError
from lamina.compiler.ir.types import is_ragged, product, shape_text
from lamina.compiler.ops.define import Rule

LENGTHS = "~"  # the input with the lengths of S is named S~
LEAST = -3.0e38  # a finite number below all scores: exp(LEAST - LEAST) is no NaN


def each(m: Any, op: Op, operands: tuple, attrs: Mapping[str, Any]) -> Any:
    """Every entry of the result depends on the entries of its own place."""
    return m.emit(op, operands, attrs)


def reduced(value: float) -> Rule:
    """Over `axes`: past the ends lies `value`, which changes nothing.

    One kind of axis after the other, so that no sum is taken in another order where an example
    is padded: sizes that all examples share, then the ragged ones, then the examples.
    """

    def rule(m: Any, op: Op, operands: tuple, attrs: Mapping[str, Any]) -> Any:
        x, axes = operands[0], attrs["axes"]
        ragged = tuple(axis for axis in axes if is_ragged(x.shape[axis]))
        examples = tuple({m.place(x.shape, axis) for axis in ragged} & set(axes))
        rest = tuple(axis for axis in axes if axis not in (*ragged, *examples))
        x = m.fill(x, ragged, value)
        for part in (rest, ragged, examples):
            x = m.emit(op, (x,), {"axes": part}) if part else x
        return x

    return rule


def window(value: float) -> Rule:
    """A window that slides over all axes but the first two meets `value` past the ends."""

    def rule(m: Any, op: Op, operands: tuple, attrs: Mapping[str, Any]) -> Any:
        x, *rest = operands
        if attrs.get("count_padding") is False and attrs["padding"] not in (0, (0, 0)):
            raise unruled(op.name, x.shape, "`count_padding=true` counts past the ends, too")
        return m.emit(op, (m.fill(x, range(2, len(x.shape)), value), *rest), attrs)

    return rule


def normalised(m: Any, op: Op, operands: tuple, attrs: Mapping[str, Any]) -> Any:
    """Along `axis`, entries past the end get no share; they are 0 in the result."""
    (x,), axis = operands, attrs["axis"]
    return m.fill(m.emit(op, (m.fill(x, (axis,), LEAST),), attrs), (axis,), 0.0)


def contracted(m: Any, op: Op, operands: tuple, attrs: Mapping[str, Any]) -> Any:
    """A sum of products along the inner size: what lies past the ends is 0 in both."""
    x, y = operands
    inner = (len(x.shape) - 1, len(y.shape) - 2)
    if is_ragged(x.shape[-1]):
        known = [m.has_batch(one.shape, axis) for one, axis in zip(operands, inner, strict=True)]
        if not any(known):
            raise unruled(op.name, x.shape, "one operand needs the examples' axis")
        x = m.fill(x, inner[:1], 0.0) if known[0] else x
        y = m.fill(y, inner[1:], 0.0) if known[1] else y
    return m.emit(op, (x, y), attrs)


def looked_up(m: Any, op: Op, operands: tuple, attrs: Mapping[str, Any]) -> Any:
    """Rows of a table that has the same rows for all examples."""
    table = operands[0]
    if is_ragged(table.type):
        raise unruled(op.name, table.shape, "a table has the same rows for all examples")
    return m.emit(op, operands, attrs)


def kept(m: Any, op: Op, operands: tuple, attrs: Mapping[str, Any]) -> Any:
    """Another shape in which ragged sizes stay sizes of their own, with the same before them."""
    x, result = operands[0], m.emit(op, operands, attrs)
    after = [(size, product(result.shape[:axis])) for axis, size in enumerate(result.shape)]
    for axis, size in enumerate(x.shape):
        if is_ragged(size) and (size, product(x.shape[:axis])) not in after:
            raise unruled(op.name, x.shape, f"keep {size} as an axis of its own")
    return result


def bordered(m: Any, op: Op, operands: tuple, attrs: Mapping[str, Any]) -> Any:
    """A border begins at each example's own end."""
    (x,) = operands
    changed = [axis for axis in range(len(x.shape))
               if attrs["lo"][axis] != 0 or attrs["hi"][axis] != 0
               or (attrs["interior"] and attrs["interior"][axis])]
    return m.emit(op, (m.fill(x, changed, attrs["value"]),), attrs)


def joined(m: Any, op: Op, operands: tuple, attrs: Mapping[str, Any]) -> Any:
    """Tensors side by side, along an axis that has the same size for all examples."""
    for x in operands:
        if len(operands) > 1 and is_ragged(x.shape[attrs["axis"]]):
            raise unruled(op.name, x.shape, "join along an axis of one size for all examples")
    return m.emit(op, operands, attrs)


def turned(m: Any, op: Op, operands: tuple, attrs: Mapping[str, Any]) -> Any:
    """Axes of one size for all examples may be turned round."""
    x = operands[0]
    if any(is_ragged(x.shape[axis]) for axis in attrs["axes"]):
        raise unruled(op.name, x.shape, "`scan ... reverse` starts at each example's own end")
    return m.emit(op, operands, attrs)


def cut(m: Any, op: Op, operands: tuple, attrs: Mapping[str, Any]) -> Any:
    """Bounds from the end count from each example's own end; before an example's start is 0."""
    (x,) = operands
    bounds = {name: list(attrs[name]) for name in ("starts", "stops", "steps")}
    for axis, size in enumerate(x.shape):
        start, stop = bounds["starts"][axis], bounds["stops"][axis]
        if not is_ragged(size) or (start == 0 and stop == size):
            continue
        if is_ragged(start):
            if stop - start != 1:
                raise unruled(op.name, x.shape, "take one position from the end, as in `x[:, -1]`")
            x = m.at(x, axis, start)
            bounds["starts"][axis], bounds["stops"][axis] = 0, 1
        elif not is_ragged(stop):
            x = m.fill(x, (axis,), 0.0)
    return m.emit(op, (x,), {name: tuple(value) for name, value in bounds.items()})


def drawn(m: Any, op: Op, operands: tuple, attrs: Mapping[str, Any]) -> Any:
    """Random numbers by position: ragged sizes come first, so that padding moves no position."""
    shape = attrs["shape"]
    order = sorted(range(len(shape)), key=lambda axis: not is_ragged(shape[axis]))
    drawn = m.emit(op, operands, {**attrs, "shape": tuple(shape[axis] for axis in order)})
    return m.transpose(drawn, perm=tuple(order.index(axis) for axis in range(len(shape))))


def unruled(name: str, shape: tuple, help: str = "") -> OpError:
    """The refusal of a ragged operand: E418."""
    sizes = ", ".join(dict.fromkeys(str(size) for size in shape if is_ragged(size)))
    return OpError("E418", f"`{name}` cannot work along {sizes}, which differs from example to "
                   f"example: {shape_text(shape)}", help, (0,))
