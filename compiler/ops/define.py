"""How an operator is written down: constructors for records, the registry, the math namespaces.

`GraphMath` and `NumpyMath` offer every operator under its name, over graph values and over NumPy
arrays; composite bodies and gradients are written once against that shared interface and run over
either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Value
from lamina.compiler.ir.op import Op, OpError
from lamina.compiler.ir.types import FLOATS, Dim, Expression, TensorType, product, shape_text

Rule = Callable[[Any, Op, tuple, Mapping[str, Any]], Any]  # see `lamina.compiler.ops.ragged`
REGISTRY: dict[str, Op] = {}
HIDDEN = ("layout", "salt", "algorithm")  # attributes that only the compiler gives
NO_ATTRS: Mapping[str, Any] = MappingProxyType({})


def register(op: Op) -> Op:
    """Put a record into the registry; two operators of one name are a mistake."""
    if op.name in REGISTRY:
        raise ValueError(f"operator {op.name} is defined twice")
    REGISTRY[op.name] = op
    return op


def elementwise(name: str, *, scalar: str, numpy: Callable, vjp: Callable | None = None,
                arity: int = 1, result: str | None = None, accepts: tuple[str, ...] = FLOATS,
                **more: Any) -> Op:
    """Define an elementwise operator with NumPy broadcasting.

    `result` fixes the element type of the result (comparisons give bool); `accepts` lists the
    element types of the operands.
    """

    def infer(*types: TensorType, **attrs: Any) -> TensorType:
        same_dtype(name, types, accepts)
        return TensorType(broadcast(name, types), result or types[-1].dtype)

    return register(Op(name, "elementwise", infer, numpy, (arity, arity), scalar=scalar, vjp=vjp,
                       **more))


def composite(name: str, *, attrs: Mapping[str, Any] = NO_ATTRS, arity: int | tuple[int, int] = 1,
              vjp: Callable | None = None, **more: Any) -> Callable[[Callable], Op]:
    """Decorator: define an operator by a body over other operators."""

    def wrap(body: Callable) -> Op:
        def infer(*types: TensorType, **attributes: Any) -> TensorType:
            scratch = Builder()
            m = GraphMath(scratch)
            operands = [m.placeholder(index, type) for index, type in enumerate(types)]
            return m.lift(body(m, *operands, **attributes)).type

        def evaluate(*arrays: Any, **attributes: Any) -> Any:
            return body(NumpyMath(), *arrays, **attributes)

        pair = (arity, arity) if isinstance(arity, int) else arity
        return register(Op(name, "composite", infer, evaluate, pair, attrs, vjp, body=body,
                           doc=(body.__doc__ or "").strip(), **more))

    return wrap


def primitive(name: str, kind: str, **more: Any) -> Op:
    """Define any other operator."""
    return register(Op(name, kind, **more))


def same_dtype(name: str, types: tuple[TensorType, ...], accepts: tuple[str, ...]) -> None:
    """Raise OpError unless all types have one element type, one of `accepts`."""
    for index, type in enumerate(types):
        if type.dtype not in accepts:
            raise OpError("E204", f"`{name}` does not take elements of type {type.dtype}",
                          f"it takes {' or '.join(accepts)}", (index,))
    dtypes = {type.dtype for type in types}
    if len(dtypes) > 1:
        listed = " and ".join(type.dtype for type in types)
        raise OpError("E205", f"`{name}` needs operands of one element type, not {listed}",
                      "convert one with `cast(dtype=...)`", tuple(range(len(types))))


def broadcast(name: str, types: tuple[TensorType, ...]) -> tuple[Dim, ...]:
    """The common shape by NumPy's broadcasting rules. Raises OpError E210."""
    rank = max((type.rank for type in types), default=0)
    shape: list[Dim] = [1] * rank
    for type in types:
        for offset, dim in enumerate(reversed(type.shape), start=1):
            axis = rank - offset
            if shape[axis] == 1:
                shape[axis] = dim
            elif dim not in (1, shape[axis]):
                shapes = " and ".join(shape_text(type.shape) for type in types)
                raise OpError("E210", f"cannot {_verb(name)} tensors of different shapes: {shapes}",
                              f"sizes must be equal or 1; here {shape[axis]} meets {dim}",
                              tuple(range(len(types))))
    return tuple(shape)


def _verb(name: str) -> str:
    verbs = {"add": "add", "sub": "subtract", "mul": "multiply", "div": "divide"}
    return verbs.get(name, f"apply `{name}` to")


def normalize_axes(name: str, axis: Any, rank: int) -> tuple[int, ...]:
    """Axes as sorted non-negative numbers; None means all. Raises OpError E211."""
    if axis is None:
        return tuple(range(rank))
    axes = axis if isinstance(axis, tuple) else (axis,)
    for one in axes:
        if not isinstance(one, int) or not -rank <= one < rank:
            known = f"axes run from {-rank} to {rank - 1}" if rank else "a scalar has no axes"
            raise OpError("E211", f"`{name}`: axis {one} does not exist in a tensor of rank {rank}",
                          known)
    found = sorted({one % rank for one in axes})
    if len(found) != len(axes):
        raise OpError("E211", f"`{name}`: axis given twice in {axis}")
    return tuple(found)


def normalize_axis(name: str, axis: Any, rank: int) -> int:
    """One axis as a non-negative number. Raises OpError E211."""
    if not isinstance(axis, int):
        raise OpError("E211", f"`{name}` takes one axis, not {axis}")
    return normalize_axes(name, axis, rank)[0]


class Var:
    """A graph value inside a body or gradient: operators and shape, nothing else."""

    __slots__ = ("m", "value")

    def __init__(self, m: GraphMath, value: Value):
        self.m, self.value = m, value

    @property
    def type(self) -> TensorType:
        """Type of the value."""
        return self.m.builder.type(self.value)

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Shape, possibly with symbolic sizes."""
        return self.type.shape

    @property
    def dtype(self) -> str:
        """Element type."""
        return self.type.dtype

    def __add__(self, other): return self.m.add(self, other)
    def __radd__(self, other): return self.m.add(other, self)
    def __sub__(self, other): return self.m.sub(self, other)
    def __rsub__(self, other): return self.m.sub(other, self)
    def __mul__(self, other): return self.m.mul(self, other)
    def __rmul__(self, other): return self.m.mul(other, self)
    def __truediv__(self, other): return self.m.div(self, other)
    def __rtruediv__(self, other): return self.m.div(other, self)
    def __matmul__(self, other): return self.m.matmul(self, other)
    def __neg__(self): return self.m.neg(self)
    def __lt__(self, other): return self.m.less(self, other)
    def __le__(self, other): return self.m.less_equal(self, other)
    def __gt__(self, other): return self.m.greater(self, other)
    def __ge__(self, other): return self.m.greater_equal(self, other)


class GraphMath:
    """Every operator as a function over graph values; Python numbers become constants."""

    def __init__(self, builder: Builder):
        self.builder = builder

    def __getattr__(self, name: str) -> Callable[..., Var]:
        op = REGISTRY.get(name)
        if op is None:
            raise AttributeError(f"no operator named {name}")

        def apply(*operands: Any, **attrs: Any) -> Var:
            return self.apply(op, operands, attrs)

        return apply

    def apply(self, op: Op, operands: tuple, attrs: Mapping[str, Any]) -> Var:
        """Emit `op`; numbers take the element type of the tensor operands."""
        dtype = next((x.dtype for x in reversed(operands) if isinstance(x, Var)), "f32")
        values = [self.lift(x, dtype).value for x in operands]
        return Var(self, self.builder.emit(op, values, attrs))

    def lift(self, operand: Any, dtype: str = "f32") -> Var:
        """A Var from a Var, a Value or a number (also a symbolic size)."""
        if isinstance(operand, Var):
            return operand
        if isinstance(operand, Value):
            return Var(self, operand)
        if not isinstance(operand, Expression):
            operand = NUMBER[dtype](operand)
        const = REGISTRY["const"]
        return Var(self, self.builder.emit(const, (), {"value": operand, "dtype": dtype}))

    def placeholder(self, index: int, type: TensorType) -> Var:
        """An input standing for an operand when only types matter."""
        attrs = {"name": f"x{index}", "shape": type.shape, "dtype": type.dtype}
        return Var(self, self.builder.emit(REGISTRY["input"], (), attrs))

    def count(self, x: Var, axes: tuple[int, ...]) -> Dim:
        """How many elements lie along `axes`."""
        return product(x.shape[axis] for axis in axes)

    def dtype_of(self, x: Var) -> str:
        """Element type of an operand."""
        return x.dtype


NUMBER = {"f32": float, "f64": float, "i32": int, "i64": int, "bool": bool}
DTYPE_NAMES = {"float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64", "bool": "bool"}


class NumpyMath:
    """Every operator as a function over NumPy arrays."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = REGISTRY.get(name)
        if op is None or op.numpy is None:
            raise AttributeError(f"no operator named {name}")
        function, defaults = op.numpy, op.attrs

        def apply(*operands: Any, **attrs: Any) -> Any:
            return function(*operands, **{**defaults, **attrs})

        return apply

    def count(self, x: Any, axes: tuple[int, ...]) -> int:
        """How many elements lie along `axes`."""
        return math.prod(x.shape[axis] for axis in axes)

    def dtype_of(self, x: Any) -> str:
        """Element type of an operand."""
        return DTYPE_NAMES[numpy.asarray(x).dtype.name]
