"""Handlers for what kernel templates compute: products, convolutions, pools, lookups."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.types import Dim, TensorType, product, to_size
from lamina.compiler.lower import views
from lamina.compiler.lower.core import PARTIAL, Handler, Lowering
from lamina.compiler.lower.loops import literal
from lamina.compiler.lower.templates import (
    contract,
    detect,
    gather,
    weight_grad,
    window,
    winograd,
)
from lamina.compiler.lower.templates.text import (
    STORE,
    Epilogue,
    Operand,
    Template,
    Tile,
    lanes_tile,
    narrow_lanes_tile,
    narrow_tile,
    wide_tile,
)
from lamina.compiler.lower.views import View
from lamina.compiler.ops.conv import padding_pairs, pair
from lamina.compiler.transform.fuse import ANCHORS, epilogue_access
from lamina.compiler.transform.winograd import PRODUCTS, tiles_of
from lamina.runtime.program import ITEM_BYTES, THREADS, Size

WEIGHT_CHUNKS = 8  # partial sums of a weight gradient whose tiles alone are too few to share
WINOGRAD_SUMS = 1 << 21  # floats of them at most, where there are more than one


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
    if not isinstance(columns, int) or columns <= _tile(low, columns).nr:
        return False
    return all(body.type(inner).shape == anchor.type.shape and inner not in anchor.inputs
               for name, inner in body.inputs.items() if node.inputs[int(name[1:])] == value)


@dataclass(frozen=True, slots=True)
class _Memory:
    """A buffer by number, as an argument."""

    buffer: int


@dataclass(frozen=True, slots=True)
class _Count:
    """A Size that is not a Dim (it holds a minimum), as an argument."""

    size: Size


Values = dict[str, "View | _Memory | _Count | Dim"]


def _multiply(low: Lowering, template: Template, values: Values, macs: Dim) -> None:
    """Append the step of a template that stands for so many multiply-accumulates."""
    _run(low, template, values, _effort(macs), macs=to_size(macs))


def _run(low: Lowering, template: Template, values: Values, work: Size, what: str = "",
         macs: Size = 0) -> None:
    """Append a template's step; `values` gives each argument its memory or size."""
    if template.scratch:
        scratch = low.temp((THREADS, template.scratch), what="scratch")
        values = {**values, "scratch": _Memory(scratch)}
    given = {"claim": "y0", **{f"fetch{i}": name for i, name in enumerate(template.fetch)}}
    args: list[tuple[str, Size]] = []
    for name in template.arguments:
        if name == "finish":
            args.append(("kernel", low.kernel(template.finish)))
            continue
        value = values[given.get(name, name)]
        if isinstance(value, View):
            args.append(_address(value))
        elif isinstance(value, _Memory):
            args.append(("buffer", value.buffer))
        else:
            args.append(("size", value.size if isinstance(value, _Count) else to_size(value)))
    low.call(template.source, args, work, what, macs)


def _address(view: View) -> tuple[str, Size]:
    """Where a view begins, as an argument."""
    if view.offset == 0:
        return "buffer", view.buffer
    return "place", (view.buffer, to_size(view.offset * ITEM_BYTES[view.dtype]))


def _effort(macs: Dim) -> Size:
    """Multiply-accumulates as elementary operations: a tile does 16 at a time."""
    return ("//", to_size(macs), 16)


def _epilogue_values(finish: Finish) -> Values:
    loads = {f"x{i}": view for i, view in enumerate(finish.loads)}
    return {**loads, **{f"y{i}": view for i, view in enumerate(finish.stores)}}


def _publish(low: Lowering, node: Node, finish: Finish) -> None:
    for port, view in enumerate(finish.stores):
        low.view_of[Value(node.id, port)] = view


def _tile(low: Lowering, columns: Dim) -> Tile:
    narrow = isinstance(columns, int) and columns <= low.vector_width
    return narrow_tile(low.vector_width) if narrow else wide_tile(low.vector_width)


def _panels(columns: Dim, tile: Tile) -> Dim:
    return (columns + tile.nr - 1) // tile.nr


def _contraction(low: Lowering, node: Node) -> None:
    finish = finish_of(low, node)
    {"matmul": _matmul, "conv2d": _conv2d, "avg_pool2d": _mean_pool,
     "avg_pool2d_grad": _mean_pool}[finish.anchor.op.name](low, finish)
    _publish(low, node, finish)


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
    tile = _tile(low, columns)
    where: Values = {"b": b, "b_batch": b.strides[0], "b_panel": b.strides[2] * tile.nr,
                     "b_k": b.strides[1], "b_column": b.strides[2]}
    if low.lies_still(b):  # what every round of a loop reads is packed once, before it
        packed, one = _pack_columns(low, b, batch, depth, columns, tile)
        where = {"b": packed, "b_batch": one, "b_panel": depth * tile.nr, "b_k": tile.nr,
                 "b_column": 1}
    values = {"a": a, **where, "batch": batch, "M": rows, "N": columns, "K": depth,
              "a_batch": a.strides[0], "a_row": a.strides[1], "a_k": a.strides[2],
              **_epilogue_values(finish)}
    _multiply(low, contract.gemm(finish.epilogue, tile), values, batch * rows * columns * depth)


def _pack_columns(low: Lowering, b: View, batch: Dim, depth: Dim, columns: Dim,
                  tile: Tile) -> tuple[View, Dim]:
    """B in panels, and the distance between batches (0 where all share one)."""
    groups = 1 if b.strides[0] == 0 else batch
    floats = _panels(columns, tile) * depth * tile.nr
    packed = low.fresh(TensorType((groups * floats,)), "packed operand")
    values = {"source": b, "packed": packed, "groups": groups,
              "columns": columns, "n0": 1, "n1": 1, "n2": depth, "s_group": b.strides[0],
              "s_column": b.strides[2], "s0": 0, "s1": 0, "s2": b.strides[1]}
    with low.once(b, packed):
        _run(low, contract.pack(tile), values, to_size(groups * floats), "pack")
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


# --- convolutions -------------------------------------------------------------------------------


def _conv2d(low: Lowering, finish: Finish) -> None:
    attrs = finish.anchor.attributes
    x = _channels_inner(low, low.view(finish.operands[0]))
    w = low.view(finish.operands[1])
    if attrs["algorithm"] == "winograd":
        _winograd(low, finish, x, w)
        return
    batch, oh, ow, out = finish.anchor.type.shape
    groups, (k, c, kh, kw) = attrs["groups"], w.shape
    stride, dilation = pair("conv2d", "stride", attrs["stride"]), \
        pair("conv2d", "dilation", attrs["dilation"])
    values = {"x": x, "images": batch, "OH": oh, "OW": ow, "KH": kh, "KW": kw,
              "x_image": x.strides[0], "x_row": x.strides[1], "x_pixel": x.strides[2],
              "stride_h": stride[0], "stride_w": stride[1], "dilation_h": dilation[0],
              "dilation_w": dilation[1], **_epilogue_values(finish)}
    macs = batch * oh * ow * out * product((c, kh, kw))
    if groups == k and c == 1 and groups > 1:
        dense = low.dense_view(views.transpose(w, (2, 3, 1, 0)))
        template = contract.depthwise(finish.epilogue, low.vector_width)
        _multiply(low, template, {**values, "w": dense, "groups": 1, "C": k, "K": k}, macs)
        return
    each = k // groups
    tile = _tile(low, each)
    packed = _pack_filters(low, w, groups, tile)
    _multiply(low, contract.conv2d(finish.epilogue, tile),
              {**values, "w": packed, "groups": groups, "C": c, "K": each}, macs)


def _pack_filters(low: Lowering, w: View, groups: int, tile: Tile) -> View:
    k, c, kh, kw = w.shape
    each = k // groups
    floats = groups * _panels(each, tile) * product((c, kh, kw)) * tile.nr
    packed = low.fresh(TensorType((floats,)), "packed weights")
    s_out, s_in, s_h, s_w = w.strides
    values = {"source": w, "packed": packed, "groups": groups,
              "columns": each, "n0": kh, "n1": kw, "n2": c, "s_group": each * s_out,
              "s_column": s_out, "s0": s_h, "s1": s_w, "s2": s_in}
    with low.once(w, packed):
        _run(low, contract.pack(tile), values, to_size(floats), "pack")
    return packed


def _winograd(low: Lowering, finish: Finish, x: View, w: View) -> None:
    """A convolution by F(4x4, 3x3) or F(2x2, 5x5)."""
    outputs, channels, taps, _ = w.shape
    assert isinstance(taps, int)
    tile = wide_tile(low.vector_width)
    packed = low.fresh(TensorType((winograd.weight_floats(channels, outputs, tile),)),
                       "transformed weights")
    s_out, s_in, s_h, s_w = w.strides
    values = {"source": w, "packed": packed, "C": channels, "K": outputs, "s_out": s_out,
              "s_in": s_in, "s_h": s_h, "s_w": s_w}
    with low.once(w, packed):
        _run(low, winograd.weights(tile, taps), values, to_size(product(packed.shape)), "weights")
    batch, rows, columns, _ = finish.anchor.type.shape
    values = {"x": x, "w": packed, **_winograd_sizes(x, finish.anchor.type.shape, outputs,
                                                     finish.anchor.attributes),
              **_scratch(low, winograd.block_floats(channels, tile)), **_epilogue_values(finish)}
    _run(low, winograd.conv2d(finish.epilogue, tile, taps), values,
         *_winograd_effort(batch, rows, columns, channels * outputs, taps))


def _winograd_sizes(x: View, result: tuple[Dim, ...], outputs: Dim, attrs) -> Values:
    (top, _), (left, _) = padding_pairs(attrs["padding"])
    return {"images": x.shape[0], "OH": result[1], "OW": result[2], "H": x.shape[1],
            "W": x.shape[2], "C": x.shape[3], "K": outputs, "top": top, "left": left,
            "x_image": x.strides[0], "x_row": x.strides[1], "x_pixel": x.strides[2]}


def _scratch(low: Lowering, floats: Dim) -> Values:
    return {"scratch": _Memory(low.temp((THREADS, to_size(floats)), what="scratch"))}


def _winograd_effort(batch: Dim, rows: Dim, columns: Dim, pairs: Dim, taps: int
                     ) -> tuple[Size, str, Size]:
    """Work, no word, and the multiply-accumulates of the sums as they are defined."""
    products = tiles_of((batch, rows, columns), taps) * PRODUCTS * pairs
    return _effort(products), "", to_size(batch * rows * columns * pairs * taps * taps)


def _winograd_weight_gradient(low: Lowering, node: Node, x: View, dy: View) -> None:
    """The gradient of a convolution's weights by F(4x4, 3x3) or F(2x2, 5x5)."""
    outputs, channels, taps, _ = node.type.shape
    assert isinstance(taps, int)
    tile = wide_tile(low.vector_width)
    floats = winograd.sum_floats(channels, outputs, tile)
    chunks: Size = max(1, min(WEIGHT_CHUNKS, WINOGRAD_SUMS // floats))
    partial = _Memory(low.temp((chunks, floats), what=PARTIAL))
    batch, rows, columns, _ = dy.shape
    values = {"x": x, "dy": dy, "partial": partial, "chunks": chunks,
              **_winograd_sizes(x, dy.shape, outputs, node.attributes),
              **_scratch(low, winograd.block_floats(channels, tile))}
    _run(low, winograd.weight_grad(tile, taps), values,
         *_winograd_effort(batch, rows, columns, channels * outputs, taps))
    result = low.result(Value(node.id))
    _run(low, winograd.combine_weight_grad(tile, taps),
         {"partial": partial, "y0": result, "chunks": chunks, "C": channels, "K": outputs},
         chunks * floats, "combine")
    low.view_of[Value(node.id)] = result


def _channels_inner(low: Lowering, x: View) -> View:
    """An image whose channels are neighbours."""
    if x.strides[3] != 1 and x.shape[3] != 1:
        return low.copy(x)
    if x.shape[3] == 1:
        x = replace(x, strides=(*x.strides[:3], 1))
    return x


def _weight_gradient(low: Lowering, node: Node) -> None:
    attrs = node.attributes
    x, dy = low.view(node.inputs[0]), low.view(node.inputs[1])
    if attrs["layout"] == "nchw":
        x, dy = views.transpose(x, (0, 2, 3, 1)), views.transpose(dy, (0, 2, 3, 1))
    x, dy = _channels_inner(low, x), low.dense_view(dy)
    if attrs["algorithm"] == "winograd":
        _winograd_weight_gradient(low, node, x, dy)
        return
    x = _padded(low, x, attrs["padding"])
    batch, oh, ow, _ = dy.shape
    k, c, kh, kw = node.type.shape
    groups = attrs["groups"]
    each = k // groups
    tile = _tile(low, each)
    mr, nr = weight_grad.weight_partial_floats(tile)
    depth = kh * kw * c
    units = -(-depth // mr) * groups * -(-each // nr)
    chunks: Size = 1 if units >= 16 else ("max", 1, ("min", WEIGHT_CHUNKS, to_size(batch)))
    rows = -(-depth // mr) * mr * -(-each // nr) * nr * groups
    partial = low.temp((chunks, rows), what=PARTIAL)
    stride, dilation = pair("conv2d", "stride", attrs["stride"]), \
        pair("conv2d", "dilation", attrs["dilation"])
    shared = {"partial": _Memory(partial), "groups": groups, "KH": kh, "KW": kw, "C": c, "K": each,
              "chunks": _Count(chunks)}
    values = {"x": x, "dy": dy, "images": batch, "OH": oh, "OW": ow, "x_image": x.strides[0],
              "x_row": x.strides[1], "x_pixel": x.strides[2], "stride_h": stride[0],
              "stride_w": stride[1], "dilation_h": dilation[0], "dilation_w": dilation[1],
              **shared}
    _multiply(low, weight_grad.conv2d_weight_grad(tile), values, batch * oh * ow * k * depth)
    result = low.result(Value(node.id))
    combined = {**shared, "y0": result, "s_out": c * kh * kw, "s_in": kh * kw, "s_h": kw, "s_w": 1}
    _run(low, weight_grad.combine_weight_grad(STORE, tile), combined,
             ("*", chunks, rows), "combine")
    low.view_of[Value(node.id)] = result


def _padded(low: Lowering, x: View, padding) -> View:
    """An image with a border of zeros, for contractions that still carry padding."""
    (top, bottom), (left, right) = padding_pairs(padding)
    if not any((top, bottom, left, right)):
        return x
    n, h, w, c = x.shape
    target = low.fresh(TensorType((n, h + top + bottom, w + left + right, c), x.dtype),
                       "padded copy")
    low.fill(target, 0.0)
    begin = (0, top, left, 0)
    low.copy(x, views.cut(target, begin, begin, (1, 1, 1, 1), x.shape))
    return target


def _bare_conv2d(low: Lowering, node: Node) -> None:
    """A convolution that the layout pass did not see: computed channels-last all the same."""
    attrs = node.attributes
    if attrs["algorithm"] == "winograd" or attrs["layout"] == "nhwc" and not any(
            amount for side in padding_pairs(attrs["padding"]) for amount in side):
        _contraction(low, node)
        return
    x = low.view(node.inputs[0])
    n, k, oh, ow = node.type.shape
    if attrs["layout"] == "nchw":
        x = views.transpose(x, (0, 2, 3, 1))
    else:
        n, oh, ow, k = node.type.shape
    x = _padded(low, _channels_inner(low, x), attrs["padding"])
    result = low.fresh(TensorType((n, oh, ow, k), x.dtype))
    fixed = tuple(sorted({**attrs, "layout": "nhwc", "padding": 0}.items()))
    anchor = Node(node.id, node.op, node.inputs, fixed, (TensorType((n, oh, ow, k)),), None,
                  node.span, node.path)
    low.view_of[node.inputs[0]], kept = x, low.view_of[node.inputs[0]]
    _conv2d(low, Finish(STORE, (), (result,), anchor, node.inputs))
    low.view_of[node.inputs[0]] = kept
    low.view_of[Value(node.id)] = views.transpose(result, (0, 3, 1, 2)) \
        if attrs["layout"] == "nchw" else result


# --- windows ------------------------------------------------------------------------------------


def _window_sizes(x: tuple[Dim, ...], y: tuple[Dim, ...], attrs) -> Values:
    kernel = pair("pool", "kernel", attrs["kernel"])
    stride = kernel if attrs["stride"] is None else pair("pool", "stride", attrs["stride"])
    (top, _), (left, _) = padding_pairs(attrs["padding"])
    return {"images": x[0], "H": x[1], "W": x[2], "OH": y[1], "OW": y[2], "C": x[3],
            "KH": kernel[0], "KW": kernel[1], "stride_h": stride[0], "stride_w": stride[1],
            "pad_h": top, "pad_w": left}


def _last(view: View, layout: str) -> View:
    return views.transpose(view, (0, 2, 3, 1)) if layout == "nchw" else view


def _pool(low: Lowering, node: Node) -> None:
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
        _run(low, template, {"x": operands[0], "index": _Memory(index or 0), "y0": result, **sizes},
             work)
    elif node.op.name == "max_pool2d_grad":
        index = low.indices.get(_pool_key(node))
        if index is None:
            index = _recompute_index(low, operands[0], small, attrs, sizes)
        template = window.max_pool_grad(STORE, _index_type(attrs))
        values = {"dy": operands[1], "index": _Memory(index), "y0": result, **sizes}
        _run(low, template, values, work)
    low.view_of[Value(node.id)] = views.transpose(result, (0, 3, 1, 2)) if layout == "nchw" \
        else result


def _bare_mean_pool(low: Lowering, node: Node) -> None:
    """An average pool that the layout pass did not see is computed channels-last all the same."""
    if node.attributes["layout"] == "nhwc":
        _contraction(low, node)
        return
    kept = low.view(node.inputs[0])
    shape = tuple(node.type.shape[axis] for axis in (0, 2, 3, 1))
    anchor = Node(node.id, node.op, node.inputs, node.attrs, (TensorType(shape),), None,
                  node.span, node.path)
    result = low.fresh(TensorType(shape))
    low.view_of[node.inputs[0]] = views.transpose(kept, (0, 2, 3, 1))
    _mean_pool(low, Finish(STORE, (), (result,), anchor, node.inputs))
    low.view_of[node.inputs[0]] = kept
    low.view_of[Value(node.id)] = views.transpose(result, (0, 3, 1, 2))


def _mean_pool(low: Lowering, finish: Finish) -> None:
    """avg_pool2d or its gradient, channels last."""
    anchor, attrs = finish.anchor, finish.anchor.attributes
    operand = low.dense(finish.operands[0])
    gradient = anchor.op.name == "avg_pool2d_grad"
    large, small = (anchor.type.shape, operand.shape) if gradient else \
        (operand.shape, anchor.type.shape)
    sizes = {**_window_sizes(large, small, attrs), **_epilogue_values(finish)}
    work = to_size(product(large))
    kernel, stride = (sizes["KH"], sizes["KW"]), (sizes["stride_h"], sizes["stride_w"])
    inside = not any(amount for side in padding_pairs(attrs["padding"]) for amount in side)
    apart = all(s >= k for k, s in zip(kernel, stride, strict=True))
    channels = large[3]
    few = isinstance(channels, int) and channels <= low.vector_width
    tile = (narrow_lanes_tile if few else lanes_tile)(low.vector_width)
    if gradient and inside and apart:
        _run(low, window.mean_pool_grad(finish.epilogue, tile), {"dy": operand, **sizes}, work)
    elif not gradient and inside:
        _, row, pixel, _ = operand.strides
        more = {"groups": 1, "K": channels, "x_image": operand.strides[0], "x_row": row,
                "x_pixel": pixel, "dilation_h": 1, "dilation_w": 1}
        _run(low, contract.mean_pool(finish.epilogue, tile), {"x": operand, **sizes, **more}, work)
    else:
        make = window.avg_pool_grad if gradient else window.avg_pool
        template = make(finish.epilogue, attrs["count_padding"])
        _run(low, template, {"dy" if gradient else "x": operand, **sizes}, work)


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
    values = {"x": x, "index": _Memory(index), "y0": scratch, **sizes}
    _run(low, window.max_pool(STORE, _index_type(attrs)), values, to_size(product(x.shape)),
         "winners")
    return index


# --- lookups ------------------------------------------------------------------------------------


def _take(low: Lowering, node: Node) -> None:
    table, index = low.dense(node.inputs[0]), low.dense(node.inputs[1])
    result = low.result(Value(node.id))
    values = {"table": table, "where": index, "result": result, "count": product(index.shape),
              "rows": table.shape[0], "width": product(table.shape[1:])}
    _run(low, gather.take(table.dtype, index.dtype), values, to_size(product(node.type.shape)))
    low.view_of[Value(node.id)] = result


def _take_grad(low: Lowering, node: Node) -> None:
    ct, index = low.dense(node.inputs[0]), low.dense(node.inputs[1])
    result = low.result(Value(node.id))
    values = {"gradient": ct, "where": index, "result": result, "count": product(index.shape),
              "rows": node.type.shape[0], "width": product(node.type.shape[1:])}
    _run(low, gather.take_grad(index.dtype), values, to_size(product(node.type.shape)))
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
    _run(low, detect.suppress(), values, to_size(product((images, count, count))))
    low.view_of[Value(node.id)] = result


HANDLERS: dict[str, Handler] = {
    "matmul": _contraction, "conv2d": _bare_conv2d, "conv2d_weight_grad": _weight_gradient,
    "max_pool2d": _pool, "max_pool2d_grad": _pool,
    "avg_pool2d": _bare_mean_pool, "avg_pool2d_grad": _bare_mean_pool,
    "take": _take, "take_grad": _take_grad, "epilogue": _contraction,
    "non_max_suppression": _suppress,
}
