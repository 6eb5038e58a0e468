"""Gradients of one operator, three ways: through a graph, over NumPy arrays, by differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.op import Op
from lamina.compiler.ir.types import TensorType
from lamina.compiler.ops import GraphMath, NumpyMath
from lamina.compiler.ops.define import DTYPE_NAMES
from lamina.compiler.reference import evaluate
from lamina.compiler.transform.autodiff import add_gradients

STEP = 1e-6
Arrays = Sequence[np.ndarray]


def doubled(arrays: Arrays) -> list[np.ndarray]:
    """The same values, floats in float64."""
    return [x.astype(np.float64) if x.dtype.kind == "f" else x for x in arrays]


def floats(arrays: Arrays) -> list[int]:
    """Which operands have a gradient."""
    return [index for index, x in enumerate(arrays) if x.dtype.kind == "f"]


def value(op: Op, arrays: Arrays, attrs: Mapping[str, Any]) -> np.ndarray:
    """The operator's meaning."""
    with np.errstate(all="ignore"):
        return np.asarray(op.numpy(*arrays, **attrs))


def differentiable(op: Op, arrays: Arrays, y: np.ndarray) -> bool:
    """Whether the result depends on a float operand by a rule or a body."""
    return bool(y.dtype.kind == "f" and floats(arrays) and (op.vjp or op.body))


def by_graph(op: Op, arrays: Arrays, attrs: Mapping[str, Any], ct: np.ndarray,
             derive: bool = False) -> list[np.ndarray]:
    """The result, then the gradient of each float operand, by differentiating a graph.

    `derive` leaves the operator's own gradient rule aside, so that it comes from the body.
    """
    builder = Builder()
    m = GraphMath(builder)
    if derive:
        op = dataclasses.replace(op, vjp=None)
    xs = [m.placeholder(index, type_of(x)) for index, x in enumerate(arrays)]
    y = m.apply(op, tuple(xs), attrs)
    weight = m.placeholder(len(xs), type_of(ct))
    outputs = [("y", y.value), ("loss", m.sum(y * weight).value)]
    wrt = {str(index): xs[index].value for index in floats(arrays)}
    graph = add_gradients(builder.finish(outputs), "loss", wrt)
    results = evaluate(graph, {f"x{i}": x for i, x in enumerate([*arrays, ct])}, {})
    return [results["y"], *(results[f"grad:{name}"] for name in wrt)]


def type_of(x: np.ndarray) -> TensorType:
    """The type of an array."""
    return TensorType(x.shape, DTYPE_NAMES[x.dtype.name])


def by_arrays(op: Op, arrays: Arrays, attrs: Mapping[str, Any], ct: np.ndarray) -> list[np.ndarray]:
    """The gradient of each float operand by the operator's own rule, over NumPy arrays."""
    with np.errstate(all="ignore"):
        y = np.asarray(op.numpy(*arrays, **attrs))
        grads = op.vjp(NumpyMath(), ct, y, *arrays, **attrs)
    return [np.zeros_like(arrays[i]) if grads[i] is None else _sum_to(grads[i], arrays[i].shape)
            for i in floats(arrays)]


def _sum_to(grad: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo broadcasting."""
    grad = np.asarray(grad)
    grad = grad.sum(tuple(range(grad.ndim - len(shape))))
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and grad.shape[i] != 1)
    return np.broadcast_to(grad.sum(axes, keepdims=True), shape)


def by_differences(op: Op, arrays: Arrays, attrs: Mapping[str, Any], ct: np.ndarray,
                   index: int, direction: np.ndarray) -> float:
    """How sum(ct * result) changes when operand `index` moves in `direction`."""
    ends = []
    for sign in (1, -1):
        moved = list(arrays)
        moved[index] = arrays[index] + sign * STEP * direction
        ends.append(float(np.sum(value(op, moved, attrs) * ct)))
    return (ends[0] - ends[1]) / (2 * STEP)
