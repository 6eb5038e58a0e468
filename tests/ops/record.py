"""PyTorch's results for the written samples, kept in a file for where PyTorch is not installed.

`python -m lamina.tests.ops.record` writes the file. For each operator it holds one float32 array:
the result and the gradient of every float operand, of every sample, one after the other.
"""

from __future__ import annotations

import functools
import pathlib
import sys

import numpy as np

from lamina.compiler.ir.op import Op
from lamina.compiler.ops import OPS
from lamina.tests.ops import gradient, oracle
from lamina.tests.ops.samples import Sample, written

PATH = pathlib.Path(__file__).parent.parent / "fixtures" / "ops.npz"


def cotangent(sample: Sample, y: np.ndarray) -> np.ndarray:
    """Random weights of the elements of the result."""
    rng = np.random.default_rng(len(str(sample)))
    return rng.standard_normal(y.shape).astype(y.dtype)


def usable(sample: Sample) -> bool:
    """PyTorch refuses many empty operands; what they give is tested by shape alone."""
    return all(np.prod(operand.shape) for operand in sample.operands)


@functools.cache
def ours(op: Op, sample: Sample) -> list[np.ndarray]:
    """The result and the gradients of float operands, in float64."""
    arrays, attrs = gradient.doubled(sample.arrays()), sample.attributes(op)
    y = gradient.value(op, arrays, attrs)
    if not gradient.differentiable(op, arrays, y):
        return [y]
    return gradient.by_graph(op, arrays, attrs, cotangent(sample, y))


def theirs(op: Op, sample: Sample) -> list[np.ndarray]:
    """The same from PyTorch."""
    arrays, attrs = gradient.doubled(sample.arrays()), sample.attributes(op)
    y = gradient.value(op, arrays, attrs)
    if not gradient.differentiable(op, arrays, y):
        return [oracle.values(op, arrays, attrs)[0]]
    result, *grads = oracle.values(op, arrays, attrs, cotangent(sample, y))
    return [result, *(np.zeros_like(arrays[i]) if grads[i] is None else grads[i]
                      for i in gradient.floats(arrays))]


def flat(op: Op, results) -> np.ndarray:
    """All results of all written samples in one float32 array."""
    parts = [np.ravel(x) for sample in written(op) if usable(sample) for x in results(op, sample)]
    return np.concatenate(parts).astype(np.float32)


def main() -> int:
    """Write the file."""
    PATH.parent.mkdir(exist_ok=True)
    found = {op.name: flat(op, theirs) for op in OPS.values() if op.torch and op.samples}
    np.savez_compressed(PATH, **found)
    print(f"{len(found)} operators, {PATH.stat().st_size} bytes: {PATH}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
