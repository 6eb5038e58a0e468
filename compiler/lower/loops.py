"""The small loop program: what a fused group computes, as loops over strided memory.

A LoopProgram has loop extents (outermost first), accesses with one stride per loop, scalar
statements in order, and reductions. It says nothing about a target: `emit_cpu` prints it as one.
Neighbouring loops that every access runs through evenly are merged into one.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.types import Dim, Expression, product
from lamina.compiler.lower.views import View, broadcast, row_major
from lamina.compiler.transform.fuse import classify


@dataclass(frozen=True, slots=True)
class Access:
    """One tensor read or written: its buffer, and strides per loop in elements."""

    buffer: int
    dtype: str
    strides: tuple[Dim, ...]
    offset: Dim = 0


@dataclass(frozen=True, slots=True)
class Statement:
    """`name = text`; the text uses other names. `full`: differs along reduced loops."""

    name: str
    kind: str  # "load", "pointer", "position", "draw", "size", "compute"
    text: str
    dtype: str
    full: bool
    needs: tuple[str, ...] = ()
    access: Access | None = None
    size: Dim = 0


@dataclass(frozen=True, slots=True)
class Reduction:
    """`name` becomes the "sum", "max" or "min" of `source` over the reduced loops."""

    name: str
    how: str
    source: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Store:
    """Write `name`; `full`: once per innermost iteration, else once per row."""

    access: Access
    name: str
    full: bool


@dataclass(frozen=True, slots=True)
class LoopProgram:
    """Loops and what happens in them. `reduced` are the numbers of the loops summed over."""

    kind: str  # "point", "row", "column"
    extents: tuple[Dim, ...]
    reduced: tuple[int, ...]
    statements: tuple[Statement | Reduction, ...]
    stores: tuple[Store, ...]

    @property
    def reductions(self) -> tuple[Reduction, ...]:
        """The reductions in order."""
        return tuple(s for s in self.statements if isinstance(s, Reduction))


def build_loops(body: Graph, operands: list[View], results: list[View]) -> LoopProgram:
    """The loops of a fused group's body over its operands' and results' memory."""
    return _Maker(body, operands, results).make()


class _Maker:
    def __init__(self, body: Graph, operands: list[View], results: list[View]):
        self.body, self.operands, self.results = body, operands, results
        # What seeds a random draw is read as a whole, not along the loops.
        self.keys = {node.inputs[0].node for node in body.nodes if node.op.name == "uniform"}
        self.space, self.axes = _space(body, self.keys)
        self.kind = classify(self.space, self.axes) if self.axes else "point"
        self.names: dict[Value, str] = {}
        self.statements: list[Statement | Reduction] = []
        self.stores: list[Store] = []

    def make(self) -> LoopProgram:
        for node in self.body.nodes:
            self._node(node)
        for (_, value), view in zip(self.body.outputs, self.results, strict=True):
            self.stores.append(Store(self._access(view), self.names[value],
                                     self._full(self.body.type(value).shape)))
        return _collapse(LoopProgram(self.kind, self.space, self.axes, tuple(self.statements),
                                     tuple(self.stores)))

    def _access(self, view: View) -> Access:
        lead = len(self.space) - len(view.shape)
        padded = (1,) * lead + view.shape
        wide = broadcast(view, tuple(1 if n == 1 else s
                                     for n, s in zip(padded, self.space, strict=True)))
        strides = tuple(0 if n == 1 else s for n, s in zip(wide.shape, wide.strides, strict=True))
        return Access(view.buffer, view.dtype, strides, view.offset)

    def _full(self, shape: tuple[Dim, ...]) -> bool:
        """Whether a value of this shape differs along the reduced axes."""
        lead = len(self.space) - len(shape)
        return not self.axes or any(
            axis >= lead and shape[axis - lead] != 1 for axis in self.axes)

    def _node(self, node: Node) -> None:
        name = f"v{node.id}"
        self.names[Value(node.id)] = name
        dtype, full = node.type.dtype, self._full(node.type.shape)
        operands = tuple(self.names[value] for value in node.inputs)
        if node.op.name == "input":
            view = self.operands[int(node.attributes["name"][1:])]
            if node.id in self.keys:
                access = Access(view.buffer, dtype, (0,) * len(self.space), view.offset)
                self.statements.append(Statement(name, "pointer", "", dtype, False, (), access))
            else:
                access = self._access(view)
                self.statements.append(Statement(name, "load", "", dtype, full, (), access))
        elif node.op.name == "const":
            self._constant(name, node)
        elif node.op.name == "broadcast_to":
            self.names[Value(node.id)] = operands[0]
        elif node.op.name in ("iota", "uniform"):
            self._position(name, node, operands)
        elif node.op.kind == "reduce":
            how = node.op.name.removeprefix("reduce_")
            self.statements.append(Reduction(name, how, operands[0], dtype))
        else:
            text = node.op.scalar.format(*operands, t=self.body.type(node.inputs[0]).dtype,
                                         **node.attributes)
            if dtype in ("i32", "i64"):
                text = f"{dtype}({text})"  # Numba widens integer arithmetic
            self.statements.append(Statement(name, "compute", text, dtype, full, operands))

    def _constant(self, name: str, node: Node) -> None:
        value, dtype = node.attributes["value"], node.attributes["dtype"]
        if isinstance(value, Expression):
            self.statements.append(Statement(name, "size", "", dtype, False, size=value))
        else:
            self.names[Value(node.id)] = literal(value, dtype)

    def _position(self, name: str, node: Node, operands: tuple[str, ...]) -> None:
        shape, dtype = node.type.shape, node.type.dtype
        if node.op.name == "iota":
            axis = node.attributes["axis"] % len(shape)
            strides = tuple(int(index == axis) for index in range(len(shape)))
            kind, text = "position", f"{dtype}({{0}})"
        else:
            strides = row_major(shape)
            kind, text = "draw", str(node.attributes["salt"] & 0xFFFFFFFF)
        strides = (0,) * (len(self.space) - len(shape)) + strides
        wide = tuple(0 if n == 1 else s for n, s in zip(self.space, strides, strict=True))
        self.statements.append(Statement(name, kind, text, dtype, self._full(shape), operands,
                                         Access(-1, "i64", wide)))


def literal(value: float, dtype: str) -> str:
    """A typed constant in kernel text."""
    if dtype == "bool":
        return repr(bool(value))
    if dtype in ("i32", "i64"):
        return f"{dtype}({int(value)})"
    if value != value:
        return f"({dtype}(1e999) * {dtype}(0))"
    if value in (float("inf"), float("-inf")):
        return f"{dtype}({'-' if value < 0 else ''}1e999)"
    return f"{dtype}({float(value)!r})"


def _space(body: Graph, keys: set[int]) -> tuple[tuple[Dim, ...], tuple[int, ...]]:
    """The shape that the loops cover, and the axes that are reduced."""
    for node in body.nodes:
        if node.op.kind == "reduce":
            return body.type(node.inputs[0]).shape, node.attributes["axes"]
    nodes = [node for node in body.nodes if node.id not in keys]
    rank = max(node.type.rank for node in nodes)
    space: list[Dim] = [1] * rank
    for node in nodes:
        for offset, size in enumerate(reversed(node.type.shape), start=1):
            if size != 1:
                space[rank - offset] = size
    return tuple(space), ()


def _collapse(loops: LoopProgram) -> LoopProgram:
    """Drop loops of one iteration and merge neighbours."""
    accesses = [s.access for s in loops.statements if isinstance(s, Statement) and s.access]
    accesses += [store.access for store in loops.stores]
    groups: list[list[int]] = []
    for axis, size in enumerate(loops.extents):
        if size == 1:
            continue
        if groups and _mergeable(loops, accesses, groups[-1][-1], axis):
            groups[-1].append(axis)
        else:
            groups.append([axis])

    def move(access: Access) -> Access:
        return Access(access.buffer, access.dtype,
                      tuple(access.strides[group[-1]] for group in groups), access.offset)

    extents = tuple(product(loops.extents[axis] for axis in group) for group in groups)
    reduced = tuple(i for i, group in enumerate(groups) if group[0] in loops.reduced)
    statements = tuple(
        Statement(s.name, s.kind, s.text, s.dtype, s.full, s.needs, move(s.access), s.size)
        if isinstance(s, Statement) and s.access else s for s in loops.statements)
    stores = tuple(Store(move(s.access), s.name, s.full) for s in loops.stores)
    return LoopProgram(loops.kind, extents, reduced, statements, stores)


def _mergeable(loops: LoopProgram, accesses: list[Access], outer: int, inner: int) -> bool:
    if (outer in loops.reduced) != (inner in loops.reduced):
        return False
    size = loops.extents[inner]
    return all(access.strides[outer] == access.strides[inner] * size for access in accesses)
