"""Calls of kernel templates: their arguments, their epilogues, and how much work they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.types import Dim, to_size
from lamina.compiler.lower.core import Lowering
from lamina.compiler.lower.loops import literal
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
from lamina.runtime.program import ITEM_BYTES, THREADS, Size


@dataclass(frozen=True, slots=True)
class Finish:
    """How a contraction's result is finished: the template's epilogue and its memory."""

    epilogue: Epilogue
    loads: tuple[View, ...]
    stores: tuple[View, ...]
    anchor: Node
    operands: tuple[Value, ...]


def finish_of(low: Lowering, node: Node) -> Finish:
    """The contraction inside a fused node (or the bare node), and what follows it."""
    if node.body is None:
        return Finish(STORE, (), (low.result(Value(node.id)),), node, node.inputs)
    body = node.body
    anchor = next(n for n in body.nodes if n.op.name in ANCHORS)
    outer = {value: node.inputs[int(name[1:])] for name, value in body.inputs.items()}
    names = {Value(anchor.id): "acc"}
    loads: list[Operand] = []
    memory: list[View] = []
    text: list[str] = []
    for inner in body.nodes:
        value = Value(inner.id)
        if inner.op.name == "input" and _read_after(body, inner, anchor):
            access = epilogue_access(inner.type.shape, anchor.type.shape)
            assert access is not None
            names[value] = f"x{len(loads)}"
            loads.append(Operand(access, inner.type.dtype))
            memory.append(low.dense(outer[value]))
        elif inner.op.name == "const":
            names[value] = literal(inner.attributes["value"], inner.attributes["dtype"])
        elif inner.op.kind == "elementwise":
            names[value] = f"v{inner.id}"
            operands = [names[v] for v in inner.inputs]
            kind = body.type(inner.inputs[0]).dtype
            line = inner.op.scalar.format(*operands, t=kind, **inner.attributes)
            text.append(f"v{inner.id} = {line}")
    stores = tuple((Operand("matrix", body.type(v).dtype), names[v]) for _, v in body.outputs)
    results = tuple(low.result(Value(node.id, port)) for port in range(len(node.outs)))
    epilogue = Epilogue(tuple(loads), tuple(text), stores)
    return Finish(epilogue, tuple(memory), results, anchor,
                  tuple(outer[value] for value in anchor.inputs))


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


def effort(macs: Dim) -> Size:
    """Multiply-accumulates as elementary operations: a tile does 16 at a time."""
    return ("//", to_size(macs), 16)


def epilogue_values(finish: Finish) -> Values:
    """The memory of an epilogue's operands and results, by argument."""
    loads = {f"x{i}": view for i, view in enumerate(finish.loads)}
    return {**loads, **{f"y{i}": view for i, view in enumerate(finish.stores)}}


def repeat_columns(low: Lowering, finish: Finish, times: int, why: str) -> Finish:
    """The same with each vector of the columns' numbers so many times behind itself."""
    loads = tuple(
        low.copy(replace(view, shape=(times, view.shape[-1]), strides=(0, 1)), why=why)
        if operand.access == "column" else view
        for operand, view in zip(finish.epilogue.loads, finish.loads, strict=True))
    return replace(finish, loads=loads)


def publish(low: Lowering, node: Node, finish: Finish) -> None:
    """Say where the results of a finished contraction lie."""
    for port, view in enumerate(finish.stores):
        low.view_of[Value(node.id, port)] = view


def tile_for(low: Lowering, columns: Dim) -> Tile:
    """The register tile for a result of so many columns."""
    narrow = isinstance(columns, int) and columns <= low.vector_width
    return narrow_tile(low.vector_width) if narrow else wide_tile(low.vector_width)


def panels(columns: Dim, tile: Tile) -> Dim:
    """How many panels of a tile's width hold the columns."""
    return (columns + tile.nr - 1) // tile.nr
