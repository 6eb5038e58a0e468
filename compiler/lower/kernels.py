"""Calls of kernel templates: their arguments, their epilogues, and how much work they are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.types import Dim, product, to_size
from lamina.compiler.lower import views
from lamina.compiler.lower.core import Lowering
from lamina.compiler.lower.loops import literal
from lamina.compiler.lower.templates.stream import column_floats
from lamina.compiler.lower.templates.text import (
    STORE,
    Epilogue,
    Operand,
    Template,
    Tile,
    narrow_tile,
    wide_tile,
)
from lamina.compiler.lower.views import View
from lamina.compiler.transform.fuse import ANCHORS, epilogue_access
from lamina.compiler.transform.parts import part_width
from lamina.runtime.program import ITEM_BYTES, THREADS, Size

STREAM = "results of all channels are finished in one run, for which its numbers stand again"


@dataclass(frozen=True, slots=True)
class Finish:
    """How a contraction's result is finished: the template's epilogue and its memory.

    `results` are whole, of `stores` a wide one has several parts.
    """

    epilogue: Epilogue
    loads: tuple[View, ...]
    stores: tuple[View, ...]
    anchor: Node
    operands: tuple[Value, ...]
    results: tuple[View, ...]


def finish_of(low: Lowering, node: Node) -> Finish:
    """The contraction inside a fused node (or the bare node), and what follows it."""
    if node.body is None:
        result = low.result(Value(node.id))
        return Finish(STORE, (), (result,), node, node.inputs, (result,))
    body = node.body
    anchor = next(n for n in body.nodes if n.op.name in ANCHORS)
    outer = {value: node.inputs[int(name[1:])] for name, value in body.inputs.items()}
    writer = _FinishWriter(low, body, anchor, outer)
    for inner in body.nodes:
        writer.add(inner)
    results = tuple(low.result(Value(node.id, port)) for port in range(len(node.outs)))
    stores = []
    for (_, value), result in zip(body.outputs, results, strict=True):
        parts = writer.parts_of(result, body.type(value).shape)
        stores += [(writer.operand("matrix", part), part, name)
                   for part, name in zip(parts, writer.names[value], strict=True)]
    epilogue = Epilogue(tuple(operand for operand, _ in writer.loads), tuple(writer.text),
                        tuple((operand, name) for operand, _, name in stores), writer.count)
    return Finish(epilogue, tuple(view for _, view in writer.loads),
                  tuple(view for _, view, _ in stores), anchor,
                  tuple(outer[value] for value in anchor.inputs), results)


@dataclass
class _FinishWriter:
    """Writes what follows a contraction.

    `names` has one name for a value, or one for each part where it is as wide as a result that
    is read in parts.
    """

    low: Lowering
    body: Graph
    anchor: Node
    outer: dict[Value, Value]
    names: dict[Value, list[str]] = field(default_factory=dict)
    loads: list[tuple[Operand, View]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.width: Dim = part_width(self.body, self.anchor)
        columns = self.anchor.type.shape[-1]
        self.count: int = 1 if self.width == columns else columns // self.width  # type: ignore
        self.names[Value(self.anchor.id)] = ["acc"] if self.count == 1 else \
            [f"acc{part}" for part in range(self.count)]

    def add(self, node: Node) -> None:
        """The text of a node of the body."""
        value = Value(node.id)
        if node.op.name == "input" and _read_after(self.body, node, self.anchor):
            shape = node.type.shape
            access = epilogue_access(shape, self.anchor.type.shape) or \
                epilogue_access(shape, (*self.anchor.type.shape[:-1], self.width))
            assert access is not None
            parts = self.parts_of(self.low.view(self.outer[value]), shape)
            first = len(self.loads)
            self.names[value] = [f"x{first + part}" for part in range(len(parts))]
            self.loads += [(self.operand(access, part), part) for part in map(self._laid, parts)]
        elif node.op.name == "const":
            self.names[value] = [literal(node.attributes["value"], node.attributes["dtype"])]
        elif node.op.name == "slice":
            part = node.attributes["starts"][-1] // self.width
            self.names[value] = [self.names[node.inputs[0]][part]]
        elif node.op.kind == "elementwise":
            operands = [self.names[v] for v in node.inputs]
            kind = self.body.type(node.inputs[0]).dtype
            names = [f"v{node.id}"]
            if max(map(len, operands)) > 1:
                names = [f"v{node.id}_{part}" for part in range(self.count)]
            for part, name in enumerate(names):
                own = [one[part if len(one) > 1 else 0] for one in operands]
                line = node.op.scalar.format(*own, t=kind, **node.attributes)
                self.text.append(f"{name} = {line}")
            self.names[value] = names

    def parts_of(self, view: View, shape: tuple[Dim, ...]) -> list[View]:
        """The memory of a value's parts: of itself where it is not as wide as the result."""
        if self.count == 1 or not shape or shape[-1] != self.anchor.type.shape[-1]:
            return [view]
        return [views.cut(view, (0,) * (len(shape) - 1) + (part * self.width,),
                          (*shape[:-1], (part + 1) * self.width), (1,) * len(shape),
                          (*shape[:-1], self.width)) for part in range(self.count)]

    def _laid(self, view: View) -> View:
        """The view, copied where a kernel cannot read it as it lies: products alone space rows."""
        spaced = self.anchor.op.name == "matmul" and row_space(view) is not None
        return view if view.is_packed or spaced else self.low.copy(view)

    def operand(self, access: str, view: View) -> Operand:
        """How a kernel reads or writes this memory."""
        return Operand(access, view.dtype, access == "matrix" and not view.is_packed)


def row_space(view: View) -> Dim | None:
    """How far apart the rows of a matrix lie, all axes but the last being its rows.

    None where they are not at even distances, or their elements have gaps.
    """
    if len(view.shape) < 2 or view.strides[-1] != 1:
        return None
    flat = views.reshape(view, (product(view.shape[:-1]), view.shape[-1]))
    return None if flat is None else flat.strides[0]


def _read_after(body: Graph, node: Node, anchor: Node) -> bool:
    return any(user.id != anchor.id for user in body.users(node.id))


def reads_its_own_element(low: Lowering, node: Node, value: Value) -> bool:
    """Whether the end of a contraction reads of `value` the elements that it writes, and no other.

    Then the result may take the place of `value`. A result as narrow as a register tile is written
    in whole rows of the tile, which would reach into the next row before it was read.
    """
    assert node.body is not None
    body, columns = node.body, node.type.shape[-1]
    anchor = next(n for n in body.nodes if n.op.name in ANCHORS)
    if not isinstance(columns, int) or columns <= tile_for(low, columns).nr:
        return False
    return all(body.type(inner).shape == anchor.type.shape and inner not in anchor.inputs
               for name, inner in body.inputs.items() if node.inputs[int(name[1:])] == value)


@dataclass(frozen=True, slots=True)
class Memory:
    """A buffer by number, as an argument."""

    buffer: int


@dataclass(frozen=True, slots=True)
class Count:
    """A Size that is not a Dim (it holds a minimum), as an argument."""

    size: Size


Values = dict[str, "View | Memory | Count | Dim"]


def multiply(low: Lowering, template: Template, values: Values, macs: Dim) -> None:
    """Append the step of a template that stands for so many multiply-accumulates."""
    run(low, template, values, effort(macs), macs=to_size(macs))


def run(low: Lowering, template: Template, values: Values, work: Size, what: str = "",
         macs: Size = 0) -> None:
    """Append a template's step; `values` gives each argument its memory or size."""
    if template.scratch:
        scratch = low.temp((THREADS, template.scratch), what="scratch")
        values = {**values, "scratch": Memory(scratch)}
    given = {"claim": "y0", **{f"fetch{i}": name for i, name in enumerate(template.fetch)}}
    spaces = {name: f"space_{name}" for name in template.fetch}
    given |= {f"apart{i}": spaces[name] if spaces[name] in values else "N"
              for i, name in enumerate(template.fetch)}
    args: list[tuple[str, Size]] = []
    for name in template.arguments:
        if name == "finish":
            args.append(("kernel", low.kernel(template.finish)))
            continue
        value = values[given.get(name, name)]
        if isinstance(value, View):
            args.append(_address(value))
        elif isinstance(value, Memory):
            args.append(("buffer", value.buffer))
        else:
            args.append(("size", value.size if isinstance(value, Count) else to_size(value)))
    low.call(template.source, args, work, what, macs)


def _address(view: View) -> tuple[str, Size]:
    """Where a view begins, as an argument."""
    if view.offset == 0:
        return "buffer", view.buffer
    return "place", (view.buffer, to_size(view.offset * ITEM_BYTES[view.dtype]))


def scratch_values(low: Lowering, room: Dim) -> Values:
    """The arguments for scratch memory of `room` floats for each thread."""
    return {"scratch": Memory(low.temp((THREADS, to_size(room)), what="scratch")), "room": room}


def effort(macs: Dim) -> Size:
    """Multiply-accumulates as elementary operations: a tile does 16 at a time."""
    return ("//", to_size(macs), 16)


def epilogue_values(finish: Finish) -> Values:
    """The memory of an epilogue's operands and results, by argument."""
    operands = {**{f"x{i}": view for i, view in enumerate(finish.loads)},
                **{f"y{i}": view for i, view in enumerate(finish.stores)}}
    spaces = {f"space_{name}": row_space(view) for name, view in operands.items()
              if not view.is_packed}
    return {**operands, **{name: space for name, space in spaces.items() if space is not None}}


def repeat_columns(low: Lowering, finish: Finish, times: int, why: str) -> Finish:
    """The same with each vector of the columns' numbers so many times behind itself."""
    loads = tuple(
        low.copy(replace(view, shape=(times, view.shape[-1]), strides=(0, 1)), why=why)
        if operand.access == "column" else view
        for operand, view in zip(finish.epilogue.loads, finish.loads, strict=True))
    return replace(finish, loads=loads)


def as_stream(low: Lowering, finish: Finish, channels: int) -> Finish:
    """How a stream of results of so many channels is finished."""
    return repeat_columns(low, finish, -(-column_floats(channels) // channels), STREAM)


def publish(low: Lowering, node: Node, finish: Finish) -> None:
    """Say where the results of a finished contraction lie."""
    for port, view in enumerate(finish.results):
        low.view_of[Value(node.id, port)] = view


def tile_for(low: Lowering, columns: Dim) -> Tile:
    """The register tile for a result of so many columns."""
    narrow = isinstance(columns, int) and columns <= low.vector_width
    return narrow_tile(low.vector_width) if narrow else wide_tile(low.vector_width)


def panels(columns: Dim, tile: Tile) -> Dim:
    """How many panels of a tile's width hold the columns."""
    return (columns + tile.nr - 1) // tile.nr
