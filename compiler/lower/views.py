"""Where a value lies: a strided window on a buffer. Transposes and cuts move nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lamina.compiler.ir.types import Dim, Expression, product


@dataclass(frozen=True, slots=True)
class View:
    """A tensor of `shape` whose element (i, j, ...) lies at offset + i * strides[0] + ...

    Offset and strides count elements of buffer number `buffer`.
    """

    buffer: int
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    offset: Dim = 0
    dtype: str = "f32"

    @property
    def is_packed(self) -> bool:
        """Whether elements lie in row-major order without gaps."""
        wanted = row_major(self.shape)
        return all(n == 1 or a == b
                   for n, a, b in zip(self.shape, self.strides, wanted, strict=True))


def row_major(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Strides of a dense tensor."""
    strides: list[Dim] = []
    step: Dim = 1
    for size in reversed(shape):
        strides.append(step)
        step = step * size
    return tuple(reversed(strides))


def dense(buffer: int, shape: tuple[Dim, ...], dtype: str) -> View:
    """A whole buffer in row-major order."""
    return View(buffer, shape, row_major(shape), 0, dtype)


def transpose(view: View, perm: tuple[int, ...]) -> View:
    """The same elements with axes in another order."""
    return replace(view, shape=tuple(view.shape[a] for a in perm),
                   strides=tuple(view.strides[a] for a in perm))


def cut(view: View, starts, stops, steps, shape: tuple[Dim, ...]) -> View:
    """A regular part; `shape` is the result's."""
    offset = view.offset
    for start, stride in zip(starts, view.strides, strict=True):
        offset = offset + start * stride
    strides = tuple(stride * step for stride, step in zip(view.strides, steps, strict=True))
    return replace(view, shape=shape, strides=strides, offset=offset)


def reverse(view: View, axes: tuple[int, ...]) -> View:
    """Axes run backwards."""
    offset, strides = view.offset, list(view.strides)
    for axis in axes:
        axis %= len(strides)
        offset = offset + (view.shape[axis] - 1) * strides[axis]
        strides[axis] = -1 * strides[axis]
    return replace(view, strides=tuple(strides), offset=offset)


def broadcast(view: View, shape: tuple[Dim, ...]) -> View:
    """Repetition by strides of 0."""
    lead = len(shape) - len(view.shape)
    strides = [0] * lead + [0 if n == 1 and shape[lead + axis] != 1 else stride
                            for axis, (n, stride) in enumerate(zip(view.shape, view.strides,
                                                                   strict=True))]
    return replace(view, shape=shape, strides=tuple(strides))


def reshape(view: View, shape: tuple[Dim, ...]) -> View | None:
    """The same elements under another shape where no copy is needed, else None."""
    if view.is_packed:
        return replace(view, shape=shape, strides=row_major(shape))
    old = [(n, s) for n, s in zip(view.shape, view.strides, strict=True) if n != 1]
    strides: list[Dim] = []
    position = 0
    wanted = list(shape)
    while wanted:
        if wanted[0] == 1:
            strides.append(0)
            wanted.pop(0)
            continue
        block = _match(old[position:], wanted)
        if block is None:
            return None
        taken, given = block
        if not _contiguous(old[position:position + taken]):
            return None
        step = old[position + taken - 1][1]
        strides += [inner * step for inner in row_major(tuple(wanted[:given]))]
        position += taken
        wanted = wanted[given:]
    return replace(view, shape=shape, strides=tuple(strides)) if position == len(old) else None


def _match(old: list[tuple[Dim, Dim]], wanted: list[Dim]) -> tuple[int, int] | None:
    """The smallest equal products of leading sizes: how many old and new axes."""
    for given in range(1, len(wanted) + 1):
        target = product(wanted[:given])
        for taken in range(1, len(old) + 1):
            total = product(n for n, _ in old[:taken])
            if total == target:
                return taken, given
            if isinstance(total, int) and isinstance(target, int) and total > target:
                break
    return None


def _contiguous(axes: list[tuple[Dim, Dim]]) -> bool:
    return all(outer[1] == inner[1] * inner[0]
               for outer, inner in zip(axes, axes[1:], strict=False))


def is_known(dim: Dim) -> bool:
    """Whether a size is a number already when compiled."""
    return not isinstance(dim, Expression)
