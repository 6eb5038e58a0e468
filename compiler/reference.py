"""The NumPy interpreter: target "numpy", and the oracle for every other way of computing.

Walks the graph and applies each operator's `numpy` meaning. Element types follow the arrays, so
float64 arrays give a float64 evaluation of the same graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.types import (
    NUMPY_TYPES,
    Expression,
    Symbol,
    TensorType,
    substitute,
    symbols_of,
)


def bind(types: Mapping[str, TensorType], arrays: Mapping[str, np.ndarray],
         given: Mapping[str, int] | None = None) -> dict[str, int]:
    """Solve the symbols of the types from the arrays' shapes; those `given` are known already.

    Raises ValueError when a name is missing, a shape does not fit, or two arrays disagree.
    """
    bindings = dict(given or {})
    for name, type in types.items():
        if name not in arrays:
            raise ValueError(f"input `{name}`: {type} is missing")
        shape = np.shape(arrays[name])
        if len(shape) != type.rank:
            raise ValueError(f"input `{name}` has shape {shape}, expected {type}")
        for dim, size in zip(type.shape, shape, strict=True):
            _bind_dim(name, type, dim, size, shape, bindings)
    for name, type in types.items():
        expected = tuple(substitute(dim, bindings) for dim in type.shape)
        if expected != np.shape(arrays[name]):
            raise ValueError(f"input `{name}` has shape {np.shape(arrays[name])}, expected {type}"
                             f" = {expected}")
    return bindings


def _bind_dim(name, type, dim, size, shape, bindings) -> None:
    if not isinstance(dim, Expression) or len(dim.terms) != 1:
        return
    monomial, factor = dim.terms[0]
    if len(monomial) == 1 and isinstance(monomial[0][0], Symbol) and monomial[0][1] == 1:
        atom = monomial[0][0]
        if size * atom.scale % factor or size * atom.scale // factor % atom.scale:
            raise ValueError(f"input `{name}` has shape {shape}; {atom.name} in {type} must be a "
                             f"multiple of {atom.scale}")
        bindings.setdefault(atom.name, size * atom.scale // factor)


def evaluate(graph: Graph, inputs: Mapping[str, Any], params: Mapping[str, Any],
             bindings: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Compute all outputs of `graph`.

    `inputs` by name, `params` by checkpoint key. `bindings` gives sizes of symbols that no input
    determines. Raises ValueError when an input or parameter is missing or of a wrong shape.
    """
    values = run(graph, inputs, params, bindings)
    return {name: values[value] for name, value in graph.outputs}


def run(graph: Graph, inputs: Mapping[str, Any], params: Mapping[str, Any],
        bindings: Mapping[str, int] | None = None) -> dict[Value, np.ndarray]:
    """Compute every value of `graph`."""
    types = {name: graph.type(value) for name, value in graph.inputs.items()}
    sizes = bind(types, {k: np.asarray(v) for k, v in inputs.items()}, bindings)
    values: dict[Value, np.ndarray] = {}
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            results = _apply(node, values, inputs, params, sizes)
            for port, result in enumerate(results):
                values[Value(node.id, port)] = result
    return values


def _apply(node: Node, values, inputs, params, sizes) -> tuple[np.ndarray, ...]:
    attrs = {name: bound(value, sizes) for name, value in node.attrs}
    if node.op.name == "input":
        return (np.asarray(inputs[attrs["name"]]),)
    if node.op.name == "param":
        return (_param(node, attrs, params, sizes),)
    if node.op.name == "const":
        return (NUMPY_TYPES[attrs["dtype"]](attrs["value"]),)
    operands = [values[value] for value in node.inputs]
    if node.op.name == "scan":
        return _apply_scan(node, operands, sizes, **attrs)
    if node.body is not None:
        return _apply_body(node, operands, sizes)
    assert node.op.numpy is not None
    return (np.asarray(node.op.numpy(*operands, **attrs)),)


def _param(node: Node, attrs, params, sizes) -> np.ndarray:
    key = attrs["key"]
    if key not in params:
        raise ValueError(f"parameter `{key}`: {node.type} is missing")
    array = np.asarray(params[key])
    if array.shape != tuple(bound(node.type.shape, sizes)):
        raise ValueError(f"parameter `{key}` has shape {array.shape}, expected {node.type}")
    return array


def _apply_body(node: Node, operands, sizes) -> tuple[np.ndarray, ...]:
    """A fused group computes what its body says; inputs are named x0, x1 ... in order."""
    assert node.body is not None
    inner = evaluate(node.body, {f"x{i}": x for i, x in enumerate(operands)}, {}, sizes)
    return tuple(inner[name] for name, _ in node.body.outputs)


def _apply_scan(node: Node, operands, sizes, *, states: int, sequences: int, length: int,
                backwards: bool) -> tuple[np.ndarray, ...]:
    """The body step by step."""
    assert node.body is not None
    current, after = operands[:states], operands[states + sequences:]
    types = node.outs[states:]
    rows = [np.zeros(bound(type.shape, sizes), NUMPY_TYPES[type.dtype]) for type in types]
    steps = range(length)
    for step in reversed(steps) if backwards else steps:
        entries = [x[step] for x in operands[states:states + sequences]]
        inner = dict(enumerate([*current, *entries, *after]))
        found = evaluate(node.body, {f"x{i}": x for i, x in inner.items()}, {}, sizes)
        results = [found[name] for name, _ in node.body.outputs]
        current = results[:states]
        for index, result in enumerate(results[states:]):
            if rows[index].dtype != result.dtype:  # arrays of float64 are computed as such
                rows[index] = rows[index].astype(result.dtype)
            rows[index][step] = result
    return (*current, *rows)


def bound(value: Any, sizes: Mapping[str, int]) -> Any:
    """Replace symbolic sizes in an attribute by ints. Raises ValueError for an unbound symbol."""
    if isinstance(value, tuple):
        return tuple(bound(item, sizes) for item in value)
    if not isinstance(value, Expression):
        return value
    result = substitute(value, sizes)
    if isinstance(result, Expression):
        missing = sorted(symbol.name for symbol in symbols_of(result))
        raise ValueError(f"the size of {', '.join(missing)} is not known")
    return result


class Interpreter:
    """Target "numpy": runs a graph with the interface of the CPU executor.

    Outputs named `update:KEY` replace parameter KEY after a run.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self._params = {key: np.zeros(_known_shape(graph.type(value)),
                                      NUMPY_TYPES[graph.type(value).dtype])
                        for key, value in graph.params.items()}

    def set_params(self, values: Mapping[str, np.ndarray]) -> None:
        """Copy values into the parameters of these keys. Raises KeyError and ValueError."""
        for key, value in values.items():
            if key not in self._params:
                raise KeyError(f"no parameter is named {key!r}")
            if self._params[key].shape != np.shape(value):
                raise ValueError(f"parameter {key!r} must have shape {self._params[key].shape}, "
                                 f"not {np.shape(value)}")
        for key, value in values.items():
            self._params[key] = np.array(value, self._params[key].dtype)

    def get_params(self) -> dict[str, np.ndarray]:
        """Copies of all parameters."""
        return {key: value.copy() for key, value in self._params.items()}

    def run(self, inputs: Mapping[str, Any], bindings: Mapping[str, int] | None = None
            ) -> dict[str, np.ndarray]:
        """Compute all outputs and apply updates. Raises ValueError for unfitting inputs."""
        outputs = evaluate(self.graph, inputs, self._params, bindings)
        for name in [name for name in outputs if name.startswith("update:")]:
            self._params[name.removeprefix("update:")] = outputs.pop(name)
        return outputs

    def close(self) -> None:
        """Nothing to end."""


def _known_shape(type: TensorType) -> tuple[int, ...]:
    return tuple(bound(type.shape, {}))
