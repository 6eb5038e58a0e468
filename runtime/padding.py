"""Examples of different lengths as one array: zeros past each example's end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LENGTHS = "~"  # the input S~ holds the lengths of the size S


def rounded(size: Any, step: int) -> Any:
    """A size, or many, as the next multiple of `step`, at least one."""
    return np.maximum(-(-size // step), 1) * step


def is_lengths(key: str) -> bool:
    """Whether an input holds the lengths of a size."""
    return key.endswith(LENGTHS)


def pad(examples: Sequence[np.ndarray] | np.ndarray, axes: Sequence[int] = (), step: int = 1
        ) -> np.ndarray:
    """Examples of one rank in one array, each as large as the largest, with zeros past the ends.

    Along `axes` of an example (from 0) sizes are multiples of `step`, at least one of them.
    """
    shape = np.max([one.shape for one in examples], axis=0, initial=0).astype(int)
    for axis in axes:
        shape[axis] = rounded(shape[axis], step)
    out = np.zeros((len(examples), *shape), examples[0].dtype)
    for row, one in zip(out, examples, strict=True):
        row[tuple(slice(size) for size in one.shape)] = one
    return out


def pad_inputs(shapes: Mapping[str, Sequence[int | str]], given: Mapping[str, Any]
               ) -> dict[str, np.ndarray]:
    """Inputs as arrays, with the lengths that their examples have.

    `shapes` are those of all inputs, sizes by name. A list of arrays of different lengths is
    padded; an array without lengths counts as a whole. Raises ValueError where the lengths of one
    size differ between inputs, or are longer than the array.
    """
    ragged = {key.removesuffix(LENGTHS) for key in shapes if is_lengths(key)}
    out: dict[str, np.ndarray] = {}
    found: dict[str, tuple[str, np.ndarray]] = {
        name: (name + LENGTHS, np.asarray(given[name + LENGTHS])) for name in ragged
        if name + LENGTHS in given}
    for key, value in given.items():
        shape = shapes.get(key, ())
        places = {size: axis for axis, size in enumerate(shape) if size in ragged}
        if not places:
            out[key] = np.asarray(value)
            continue
        apart = isinstance(value, (list, tuple)) and bool(value)
        examples = [np.asarray(one) for one in value] if apart else []
        if apart and any(one.ndim != len(shape) - 1 for one in examples):
            raise ValueError(f"every example of input {key!r} has {len(shape) - 1} axes, not "
                             f"{[one.ndim for one in examples]}")
        out[key] = pad(examples) if apart else np.asarray(value)
        if out[key].ndim != len(shape):
            continue  # the program says what is wrong
        for size, axis in places.items():
            full = [one.shape[axis - 1] for one in examples] if apart else \
                [out[key].shape[axis]] * len(out[key])
            lengths = np.array(full, np.int32)
            known = found.setdefault(str(size), (key, lengths))
            _require_equal(str(size), key, lengths, *known, apart)
            _require_within(str(size), key, out[key].shape[axis], known[1])
    return out | {name + LENGTHS: lengths.astype(np.int32) for name, (_, lengths) in found.items()}


def _require_equal(size: str, key: str, lengths: np.ndarray, other: str, known: np.ndarray,
                   apart: bool) -> None:
    if not apart and other != key:  # a padded array: the lengths come from elsewhere
        return
    if lengths.shape == known.shape and (lengths == known).all():
        return
    raise ValueError(f"inputs {other!r} and {key!r} share the size {size}~, but their lengths "
                     f"differ: {known.tolist()[:8]} and {lengths.tolist()[:8]}")


def _require_within(size: str, key: str, most: int, lengths: np.ndarray) -> None:
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise ValueError(f"the lengths {size}~ are whole numbers, one for each example")
    if lengths.size and (lengths.min() < 0 or lengths.max() > most):
        wrong = lengths.min() if lengths.min() < 0 else lengths.max()
        raise ValueError(f"input {key!r} holds {most} positions; a length of {wrong} is outside "
                         f"0 to {most}")
