"""Handlers for what kernel templates compute: products and lookups; the others have own files."""

from __future__ import annotations

from dataclasses import replace

from lamina.compiler.ir.graph import Node, Value
from lamina.compiler.ir.types import Dim, TensorType, product, to_size
from lamina.compiler.lower import views
from lamina.compiler.lower.convolutions import (
    bare_conv2d,
    conv2d,
    fractional_conv2d,
    weight_gradient,
)
from lamina.compiler.lower.core import Handler, Lowering
from lamina.compiler.lower.kernels import (
    Finish,
    Values,
    epilogue_values,
    finish_of,
    panels,
    publish,
    run,
    tile_for,
)
from lamina.compiler.lower.templates import contract, detect, gather
from lamina.compiler.lower.templates.text import Tile
from lamina.compiler.lower.views import View
from lamina.compiler.lower.windows import bare_mean_pool, mean_pool, pool
from lamina.runtime.program import Size

LEAST_ROWS = 4  # of a product, in the time that it takes


def _contraction(low: Lowering, node: Node) -> None:
    finish = finish_of(low, node)
    {"matmul": _matmul, "conv2d": conv2d, "fractional_conv2d": fractional_conv2d,
     "avg_pool2d": mean_pool, "avg_pool2d_grad": mean_pool}[finish.anchor.op.name](low, finish)
    publish(low, node, finish)


# --- matrix products ----------------------------------------------------------------------------


def _matmul(low: Lowering, finish: Finish) -> None:
    out = finish.anchor.type.shape
    a, b = (low.view(value) for value in finish.operands)
    if len(b.shape) == 2 and len(a.shape) > 2:  # one product of all rows
        rows = product(a.shape[:-1])
        flat = views.reshape(a, (rows, a.shape[-1]))
        a = views.reshape(low.copy(a), (rows, a.shape[-1])) if flat is None else flat
        out = (rows, out[-1])
    a, b = _batched(low, a, out), _batched(low, b, out)
    batch, rows, columns, depth = product(out[:-2]), out[-2], out[-1], a.shape[-1]
    parts = finish.epilogue.parts  # of a result of 2 axes
    width = columns if parts == 1 else columns // parts  # type: ignore[operator]
    tile = tile_for(low, width)
    where: Values = {"b": b, "b_batch": b.strides[0], "b_panel": b.strides[2] * tile.nr,
                     "b_k": b.strides[1], "b_column": b.strides[2], "b_part": width * b.strides[2]}
    if low.lies_still(b):  # what every round of a loop reads is packed once, before it
        groups = (batch, b.strides[0]) if parts == 1 else (parts, width * b.strides[2])
        packed, one = _pack_columns(low, b, *groups, depth, width, tile)
        where = {"b": packed, "b_batch": one if parts == 1 else 0, "b_panel": depth * tile.nr,
                 "b_k": tile.nr, "b_column": 1, "b_part": one}
    values = {"a": a, **where, "batch": batch, "M": rows, "N": width, "K": depth,
              "a_batch": a.strides[0], "a_row": a.strides[1], "a_k": a.strides[2],
              **epilogue_values(finish)}
    # Few rows take as long as some more: what takes the time then is to read B.
    least: Size = ("max", to_size(rows), LEAST_ROWS)
    run(low, contract.gemm(finish.epilogue, tile), values,
        ("//", ("*", least, to_size(batch * columns * depth)), 16),
        macs=to_size(batch * rows * columns * depth))


def _pack_columns(low: Lowering, b: View, count: Dim, apart: Dim, depth: Dim, columns: Dim,
                  tile: Tile) -> tuple[View, Dim]:
    """So many matrices in panels, and the distance between them (0 where all are the same one).

    They lie so far `apart` in B: batches, or the columns of parts.
    """
    groups = 1 if apart == 0 else count
    floats = panels(columns, tile) * depth * tile.nr
    packed = low.fresh(TensorType((groups * floats,)), "packed operand")
    values = {"source": b, "packed": packed, "groups": groups,
              "columns": columns, "n0": 1, "n1": 1, "n2": depth, "s_group": apart,
              "s_column": b.strides[2], "s0": 0, "s1": 0, "s2": b.strides[1]}
    with low.once(b, packed):
        run(low, contract.pack(tile), values, to_size(groups * floats), "pack")
    return packed, 0 if groups == 1 else floats


def _batched(low: Lowering, view: View, out: tuple[Dim, ...]) -> View:
    """A [batch, rows, columns] view of a matrix operand; copied where batches lie unevenly."""
    wide = views.broadcast(view, (*out[:-2], *view.shape[-2:]))
    if all(stride == 0 or n == 1 for n, stride in
           zip(wide.shape[:-2], wide.strides[:-2], strict=True)):
        flat: View | None = replace(wide, shape=(1, *wide.shape[-2:]),
                                    strides=(0, *wide.strides[-2:]))
    else:
        flat = views.reshape(wide, (product(out[:-2]), *wide.shape[-2:]))
    if flat is None:
        flat = views.reshape(low.copy(wide), (product(out[:-2]), *wide.shape[-2:]))
        assert flat is not None
    return flat


# --- lookups ------------------------------------------------------------------------------------


def _take(low: Lowering, node: Node) -> None:
    table, index = low.dense(node.inputs[0]), low.dense(node.inputs[1])
    result = low.result(Value(node.id))
    values = {"table": table, "where": index, "result": result, "count": product(index.shape),
              "rows": table.shape[0], "width": product(table.shape[1:])}
    run(low, gather.take(table.dtype, index.dtype), values, to_size(product(node.type.shape)))
    low.view_of[Value(node.id)] = result


def _take_grad(low: Lowering, node: Node) -> None:
    ct, index = low.dense(node.inputs[0]), low.dense(node.inputs[1])
    result = low.result(Value(node.id))
    values = {"gradient": ct, "where": index, "result": result, "count": product(index.shape),
              "rows": node.type.shape[0], "width": product(node.type.shape[1:])}
    run(low, gather.take_grad(index.dtype), values, to_size(product(node.type.shape)))
    low.view_of[Value(node.id)] = result


def _suppress(low: Lowering, node: Node) -> None:
    boxes, scores = low.dense(node.inputs[0]), low.dense(node.inputs[1])
    result, limits = low.result(Value(node.id)), {}
    for name in ("iou", "least"):  # numbers reach a kernel in memory: one text for all of them
        limits[name] = low.fresh(TensorType(()))
        low.fill(limits[name], node.attributes[name])
    images, count = scores.shape
    values = {"boxes": boxes, "scores": scores, **limits, "kept": result, "images": images,
              "count": count}
    run(low, detect.suppress(), values, to_size(product((images, count, count))))
    low.view_of[Value(node.id)] = result


HANDLERS: dict[str, Handler] = {
    "matmul": _contraction, "conv2d": bare_conv2d, "fractional_conv2d": _contraction,
    "conv2d_weight_grad": weight_gradient,
    "max_pool2d": pool, "max_pool2d_grad": pool,
    "avg_pool2d": bare_mean_pool, "avg_pool2d_grad": bare_mean_pool,
    "take": _take, "take_grad": _take_grad, "epilogue": _contraction,
    "non_max_suppression": _suppress,
}
