"""Pools over windows and their gradients."""

from __future__ import annotations

from lamina.compiler.ir.graph import Node, Value
from lamina.compiler.ir.types import Dim, TensorType, product, to_size
from lamina.compiler.lower import views
from lamina.compiler.lower.core import Lowering
from lamina.compiler.lower.kernels import (
    Finish,
    Memory,
    Values,
    as_stream,
    epilogue_values,
    finish_of,
    publish,
    run,
    scratch_values,
)
from lamina.compiler.lower.templates import contract, means, window
from lamina.compiler.lower.templates.text import STORE, lanes_tile
from lamina.compiler.lower.views import View
from lamina.compiler.ops.conv import padding_pairs, pair


def _window_sizes(x: tuple[Dim, ...], y: tuple[Dim, ...], attrs) -> Values:
    kernel = pair("pool", "kernel", attrs["kernel"])
    stride = kernel if attrs["stride"] is None else pair("pool", "stride", attrs["stride"])
    (top, _), (left, _) = padding_pairs(attrs["padding"])
    return {"images": x[0], "H": x[1], "W": x[2], "OH": y[1], "OW": y[2], "C": x[3],
            "KH": kernel[0], "KW": kernel[1], "stride_h": stride[0], "stride_w": stride[1],
            "pad_h": top, "pad_w": left}


def _last(view: View, layout: str) -> View:
    return views.transpose(view, (0, 2, 3, 1)) if layout == "nchw" else view


def pool(low: Lowering, node: Node) -> None:
    """max_pool2d and its gradient."""
    attrs = node.attributes
    layout, gradient = attrs["layout"], node.op.name.endswith("_grad")
    operands = [low.dense_view(_last(low.view(value), layout)) for value in node.inputs]
    shape = node.type.shape
    if layout == "nchw":
        shape = tuple(shape[axis] for axis in (0, 2, 3, 1))
        result = low.fresh(TensorType(shape, node.type.dtype))
    else:
        result = low.result(Value(node.id))
    small = operands[-1].shape if gradient else shape
    large = shape if gradient else operands[0].shape
    sizes = _window_sizes(large, small, attrs)
    work = to_size(product(small)) if gradient else to_size(product(large))
    if node.op.name == "max_pool2d":
        index = low.indices.get(_pool_key(node))
        template = window.max_pool(STORE, _index_type(attrs) if index is not None else "")
        run(low, template, {"x": operands[0], "index": Memory(index or 0), "y0": result, **sizes},
             work)
    elif node.op.name == "max_pool2d_grad":
        index = low.indices.get(_pool_key(node))
        if index is None:
            index = _recompute_index(low, operands[0], small, attrs, sizes)
        template = window.max_pool_grad(STORE, _index_type(attrs))
        values = {"dy": operands[1], "index": Memory(index), "y0": result, **sizes}
        run(low, template, values, work)
    low.view_of[Value(node.id)] = views.transpose(result, (0, 3, 1, 2)) if layout == "nchw" \
        else result


def bare_mean_pool(low: Lowering, node: Node) -> None:
    """An average pool that the layout pass did not see is computed channels-last all the same."""
    if node.attributes["layout"] == "nhwc":
        finish = finish_of(low, node)
        mean_pool(low, finish)
        publish(low, node, finish)
        return
    kept = low.view(node.inputs[0])
    shape = tuple(node.type.shape[axis] for axis in (0, 2, 3, 1))
    anchor = Node(node.id, node.op, node.inputs, node.attrs, (TensorType(shape),), None,
                  node.span, node.path)
    result = low.fresh(TensorType(shape))
    low.view_of[node.inputs[0]] = views.transpose(kept, (0, 2, 3, 1))
    mean_pool(low, Finish(STORE, (), (result,), anchor, node.inputs, (result,)))
    low.view_of[node.inputs[0]] = kept
    low.view_of[Value(node.id)] = views.transpose(result, (0, 3, 1, 2))


def mean_pool(low: Lowering, finish: Finish) -> None:
    """avg_pool2d or its gradient, channels last."""
    anchor, attrs = finish.anchor, finish.anchor.attributes
    operand = low.dense(finish.operands[0])
    gradient = anchor.op.name == "avg_pool2d_grad"
    large, small = (anchor.type.shape, operand.shape) if gradient else \
        (operand.shape, anchor.type.shape)
    sizes = {**_window_sizes(large, small, attrs), **epilogue_values(finish)}
    work = to_size(product(large))
    kernel, stride = (sizes["KH"], sizes["KW"]), (sizes["stride_h"], sizes["stride_w"])
    inside = not any(amount for side in padding_pairs(attrs["padding"]) for amount in side)
    apart = all(s >= k for k, s in zip(kernel, stride, strict=True))
    channels, fits = large[3], inside and (apart or not gradient)
    if fits and isinstance(channels, int) and 0 < channels <= low.vector_width:
        _few_channels(low, finish, operand, sizes, gradient)
        return
    tile = lanes_tile(low.vector_width)
    if gradient and inside and apart:
        run(low, window.mean_pool_grad(finish.epilogue, tile), {"dy": operand, **sizes}, work)
    elif not gradient and inside:
        _, row, pixel, _ = operand.strides
        more = {"groups": 1, "K": channels, "x_image": operand.strides[0], "x_row": row,
                "x_pixel": pixel, "dilation_h": 1, "dilation_w": 1}
        run(low, contract.mean_pool(finish.epilogue, tile), {"x": operand, **sizes, **more}, work)
    else:
        make = window.avg_pool_grad if gradient else window.avg_pool
        template = make(finish.epilogue, attrs["count_padding"])
        run(low, template, {"dy" if gradient else "x": operand, **sizes}, work)


def _few_channels(low: Lowering, finish: Finish, operand: View, sizes: Values, gradient: bool
                  ) -> None:
    """A mean of windows, or its gradient, of no more channels than a vector holds."""
    channels = sizes["C"]
    assert isinstance(channels, int)
    make, name = (means.mean_pool_grad, "dy") if gradient else (means.mean_pool, "x")
    finish = as_stream(low, finish, channels)
    room = means.scratch_floats(sizes["W"], channels, low.vector_width)
    values = {name: operand, **sizes, **scratch_values(low, room), **epilogue_values(finish)}
    pixels = product((sizes["images"], sizes["H"], sizes["W"]))
    run(low, make(finish.epilogue, channels, low.vector_width), values,
        to_size(pixels * channels))


def _index_type(attrs) -> str:
    kernel = pair("pool", "kernel", attrs["kernel"])
    return "u8" if kernel[0] * kernel[1] <= 256 else "i32"


def _pool_key(node: Node) -> tuple:
    return node.inputs[0], node.attrs


def plan_indices(low: Lowering) -> None:
    """Where a pool's gradient is needed, its forward kernel stores the winners for it."""
    forward = {_pool_key(n): n for n in low.graph.nodes if n.op.name == "max_pool2d"}
    for node in low.graph.nodes:
        pool = forward.get(_pool_key(node)) if node.op.name == "max_pool2d_grad" else None
        if pool is not None and _pool_key(node) not in low.indices:
            dtype = "bool" if _index_type(node.attributes) == "u8" else "i32"
            shape = tuple(to_size(n) for n in pool.type.shape)
            low.indices[_pool_key(node)] = low.temp(shape, dtype, f"{pool.path}: winners")


def _recompute_index(low: Lowering, x: View, small, attrs, sizes) -> int:
    dtype = "bool" if _index_type(attrs) == "u8" else "i32"
    index = low.temp(tuple(to_size(n) for n in small), dtype, what="winners")
    scratch = low.fresh(TensorType(small), "scratch")
    values = {"x": x, "index": Memory(index), "y0": scratch, **sizes}
    run(low, window.max_pool(STORE, _index_type(attrs)), values, to_size(product(x.shape)),
         "winners")
    return index
