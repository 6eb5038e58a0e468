"""Convolutions, direct or by other algorithms, and the gradients of their weights."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.types import Dim, TensorType, product, to_size
from lamina.compiler.lower import views
from lamina.compiler.lower.along_rows import conv2d_along_rows, runs_along_rows
from lamina.compiler.lower.core import PARTIAL, Lowering
from lamina.compiler.lower.kernels import (
    Count,
    Finish,
    Memory,
    Values,
    effort,
    epilogue_values,
    finish_of,
    multiply,
    panels,
    publish,
    repeat_columns,
    run,
    tile_for,
)
from lamina.compiler.lower.shifted import shifted_conv2d
from lamina.compiler.lower.templates import contract, fractional, weight_grad, winograd
from lamina.compiler.lower.templates.text import STORE, Template, Tile, taps_tile
from lamina.compiler.lower.views import View
from lamina.compiler.ops.conv import padding_pairs, pair
from lamina.compiler.ops.define import REGISTRY
from lamina.compiler.transform.shifted import SHIFTED
from lamina.compiler.transform.winograd import DIRECT, Variant, tiles_of, variant_of
from lamina.runtime.program import THREADS, Size

WEIGHT_CHUNKS = 8  # partial sums of a weight gradient whose tiles alone are too few to share
SIDES = "neighbouring pixels are computed together, for each of which the weights stand once"
WINOGRAD_SUMS = 1 << 21  # floats of them at most, where there are more than one
WINOGRAD_TILES = 32  # of each at least: fewer take no longer than adding up what they give


def conv2d(low: Lowering, finish: Finish) -> None:
    """A convolution of a channels-last image without a border, or of any by Winograd."""
    attrs = finish.anchor.attributes
    given, w = low.view(finish.operands[0]), low.view(finish.operands[1])
    variant = variant_of(attrs["algorithm"], w.shape[2])
    if variant is not None:
        _winograd(low, finish, _channels_inner(low, given), w, variant)
        return
    if attrs["algorithm"] == SHIFTED:
        shifted_conv2d(low, finish, _channels_inner(low, given), w)
        return
    stride, dilation = pair("conv2d", "stride", attrs["stride"]), \
        pair("conv2d", "dilation", attrs["dilation"])
    sizes = {"stride_h": stride[0], "stride_w": stride[1], "dilation_h": dilation[0],
             "dilation_w": dilation[1]}
    macs = product(finish.anchor.type.shape) * product(w.shape[1:])
    plain = all(load.access != "row" for load in finish.epilogue.loads)
    together = _together(low, finish.anchor.type.shape[2], w.shape, attrs) if plain else 1
    if runs_along_rows(low, finish, given, w, together):
        conv2d_along_rows(low, finish, given, w, {"stride_h": stride[0], "dilation_h": dilation[0],
                                                  "dilation_w": dilation[1]})
        return
    x = _channels_inner(low, given)
    if together > 1:
        _side_by_side(low, finish, x, w, sizes, macs, together)
        return
    _convolve(low, finish, x, w, sizes, macs, contract)


def _together(low: Lowering, columns: Dim, weights: tuple[Dim, ...], attrs) -> int:
    """How many neighbouring pixels of few channels are best computed as one of more channels.

    n pixels of K channels fill n K lanes of a vector, and look at n - 1 strides more of the image.
    """
    k, _, _, kw = weights
    (_, stride), (_, dilation) = (pair("conv2d", name, attrs[name])
                                  for name in ("stride", "dilation"))
    if dilation > 1 or attrs["groups"] > 1 or not all(
            isinstance(size, int) and size > 0 for size in (columns, k, kw)):
        return 1
    fitting = [n for n in range(1, low.vector_width // k + 1) if columns % n == 0]  # type: ignore
    return max(fitting, key=lambda n: n / (kw + (n - 1) * stride), default=1)  # type: ignore


def _side_by_side(low: Lowering, finish: Finish, x: View, w: View, sizes: Values, macs: Dim,
                  together: int) -> None:
    """A convolution that computes so many neighbouring pixels as one of more channels."""
    (k, c, kh, kw), step = w.shape, sizes["stride_w"]
    assert isinstance(kw, int) and isinstance(step, int)
    wide = kw + (together - 1) * step
    filters = low.fresh(TensorType((together * k, c, kh, wide)), "weights side by side")
    with low.once(w, filters):
        low.fill(filters, 0.0, SIDES)
        for n in range(together):
            low.copy(w, _side(filters, w.shape, n, step), SIDES)
    _convolve(low, repeat_columns(low, finish, together, SIDES), x, filters,
              {**sizes, "stride_w": together * step}, macs, contract, together)


def _side(filters: View, shape: tuple[Dim, ...], number: int, step: int) -> View:
    """The weights of pixel `number` of those that are computed together."""
    begin = (number * shape[0], 0, 0, number * step)
    return views.cut(filters, begin, begin, (1, 1, 1, 1), shape)


def fractional_conv2d(low: Lowering, finish: Finish) -> None:
    """A convolution of an image with zeros between its pixels."""
    attrs = finish.anchor.attributes
    x, w = _channels_inner(low, low.view(finish.operands[0])), low.view(finish.operands[1])
    stride, shift = attrs["stride"], attrs["shift"]
    sizes = {"stride_h": stride[0], "stride_w": stride[1], "shift_h": shift[0],
             "shift_w": shift[1]}
    macs = finish.anchor.op.macs(finish.anchor.type, x, w, **attrs)
    _convolve(low, finish, x, w, sizes, macs, fractional)


def _convolve(low: Lowering, finish: Finish, x: View, w: View, sizes: Values, macs: Dim,
              templates: ModuleType, together: int = 1) -> None:
    """Weights as the kernel wants them, and the kernel: `conv2d` or `depthwise` of `templates`.

    `w` has the weights of as many pixels as are computed `together`.
    """
    batch, oh, ow, _ = finish.anchor.type.shape
    groups, (k, c, kh, kw) = finish.anchor.attributes["groups"], w.shape
    values = {"x": x, "images": batch, "OH": oh, "OW": ow // together, "KH": kh, "KW": kw,
              "x_image": x.strides[0], "x_row": x.strides[1], "x_pixel": x.strides[2], **sizes,
              **epilogue_values(finish)}
    if _is_depthwise(groups, k, c):
        dense = low.dense_view(views.transpose(w, (2, 3, 1, 0)))
        template = templates.depthwise(finish.epilogue, low.vector_width)
        multiply(low, template, {**values, "w": dense, "groups": 1, "C": k, "K": k}, macs)
        return
    each = k // groups
    tile = tile_for(low, each)
    packed = _pack_filters(low, w, groups, tile)
    multiply(low, templates.conv2d(finish.epilogue, tile),
             {**values, "w": packed, "groups": groups, "C": c, "K": each}, macs)


def _is_depthwise(groups: int, outputs: Dim, channels: Dim) -> bool:
    """Whether each channel has one filter, of a single channel."""
    return groups == outputs and channels == 1 and groups > 1


def _pack_filters(low: Lowering, w: View, groups: int, tile: Tile) -> View:
    k, c, kh, kw = w.shape
    each = k // groups
    floats = groups * panels(each, tile) * product((c, kh, kw)) * tile.nr
    packed = low.fresh(TensorType((floats,)), "packed weights")
    s_out, s_in, s_h, s_w = w.strides
    values = {"source": w, "packed": packed, "groups": groups,
              "columns": each, "n0": kh, "n1": kw, "n2": c, "s_group": each * s_out,
              "s_column": s_out, "s0": s_h, "s1": s_w, "s2": s_in}
    with low.once(w, packed):
        run(low, contract.pack(tile), values, to_size(floats), "pack")
    return packed


def _winograd(low: Lowering, finish: Finish, x: View, w: View, variant: Variant) -> None:
    """A convolution by a variant of Winograd's algorithm."""
    outputs, channels, _, _ = w.shape
    tile = tile_for(low, outputs)
    packed = low.fresh(TensorType((winograd.weight_floats(channels, outputs, tile, variant),)),
                       "transformed weights")
    s_out, s_in, s_h, s_w = w.strides
    values = {"source": w, "packed": packed, "C": channels, "K": outputs, "s_out": s_out,
              "s_in": s_in, "s_h": s_h, "s_w": s_w}
    with low.once(w, packed):
        run(low, winograd.weights(tile, variant), values, to_size(product(packed.shape)), "weights")
    result = finish.anchor.type.shape
    scratch = winograd.block_floats(channels, tile, variant, winograd.block_tiles(tile, variant))
    values = {"x": x, "w": packed,
              **_winograd_sizes(x, result, outputs, finish.anchor.attributes),
              **_scratch(low, scratch), **epilogue_values(finish)}
    _run_winograd(low, winograd.conv2d(finish.epilogue, tile, variant), values, result, w.shape,
                  variant)


def _winograd_sizes(x: View, result: tuple[Dim, ...], outputs: Dim, attrs) -> Values:
    (top, _), (left, _) = padding_pairs(attrs["padding"])
    return {"images": x.shape[0], "OH": result[1], "OW": result[2], "H": x.shape[1],
            "W": x.shape[2], "C": x.shape[3], "K": outputs, "top": top, "left": left,
            "x_image": x.strides[0], "x_row": x.strides[1], "x_pixel": x.strides[2]}


def _scratch(low: Lowering, floats: Dim) -> Values:
    return {"scratch": Memory(low.temp((THREADS, to_size(floats)), what="scratch"))}


def _run_winograd(low: Lowering, template: Template, values: Values, result: tuple[Dim, ...],
                  weights: tuple[Dim, ...], variant: Variant) -> None:
    """Append a step: the multiply-accumulates of its sums, and the products in their place."""
    products = tiles_of(result, variant.tile) * variant.products * product(weights[:2])
    run(low, template, values, effort(products),
        macs=to_size(product(result[:3]) * product(weights)))


def _winograd_weight_gradient(low: Lowering, node: Node, x: View, dy: View, variant: Variant
                              ) -> None:
    """The gradient of a convolution's weights by a variant of Winograd's algorithm."""
    outputs, channels, _, _ = node.type.shape
    tile = tile_for(low, outputs)
    floats = winograd.sum_floats(channels, outputs, tile, variant)
    most = min(WEIGHT_CHUNKS, WINOGRAD_SUMS // floats)
    tiles = to_size(tiles_of(dy.shape, variant.tile))
    chunks: Size = 1 if most <= 1 else ("max", 1, ("min", most, ("//", tiles, WINOGRAD_TILES)))
    partial = Memory(low.temp((chunks, floats), what=PARTIAL))
    scratch = winograd.block_floats(channels, tile, variant, winograd.summed_tiles(variant))
    values = {"x": x, "dy": dy, "partial": partial, "chunks": Count(chunks),
              **_winograd_sizes(x, dy.shape, outputs, node.attributes), **_scratch(low, scratch)}
    _run_winograd(low, winograd.weight_grad(tile, variant), values, dy.shape, node.type.shape,
                  variant)
    result = low.result(Value(node.id))
    run(low, winograd.combine_weight_grad(tile, variant),
        {"partial": partial, "y0": result, "chunks": Count(chunks), "C": channels, "K": outputs},
        ("*", chunks, floats), "combine")
    low.view_of[Value(node.id)] = result


def _channels_inner(low: Lowering, x: View) -> View:
    """An image whose channels are neighbours."""
    if x.strides[3] != 1 and x.shape[3] != 1:
        return low.copy(x)
    if x.shape[3] == 1:
        x = replace(x, strides=(*x.strides[:3], 1))
    return x


def weight_gradient(low: Lowering, node: Node) -> None:
    """The gradient of a convolution's weights: partial sums, then their combination."""
    attrs = node.attributes
    x, dy = low.view(node.inputs[0]), low.view(node.inputs[1])
    if attrs["layout"] == "nchw":
        x, dy = views.transpose(x, (0, 2, 3, 1)), views.transpose(dy, (0, 2, 3, 1))
    x, dy = _channels_inner(low, x), low.dense_view(dy)
    variant = variant_of(attrs["algorithm"], node.type.shape[2])
    if variant is not None:
        _winograd_weight_gradient(low, node, x, dy, variant)
        return
    x = _padded(low, x, attrs["padding"])
    batch, oh, ow, _ = dy.shape
    groups, result = attrs["groups"], low.result(Value(node.id))
    stride, dilation = pair("conv2d", "stride", attrs["stride"]), \
        pair("conv2d", "dilation", attrs["dilation"])
    together, target, step = _together(low, ow, node.type.shape, attrs), result, stride[1]
    if together > 1:
        k, c, kh, kw = node.type.shape
        target = low.fresh(TensorType((together * k, c, kh, kw + (together - 1) * step)),
                           "weights side by side")
        stride, ow = (stride[0], together * step), ow // together
    k, c, kh, kw = target.shape
    depthwise = _is_depthwise(groups, k, c)
    tile = taps_tile(low.vector_width) if depthwise else tile_for(low, k // groups)
    template = weight_grad.depthwise_weight_grad if depthwise else weight_grad.conv2d_weight_grad
    groups = 1 if depthwise else groups
    each = k // groups
    mr, nr = weight_grad.weight_partial_floats(tile)
    depth = kh * kw * c
    units = -(-depth // mr) * groups * -(-each // nr)
    shared_by: Dim = batch * oh if depthwise else batch
    chunks: Size = 1 if units >= 16 and not depthwise else \
        ("max", 1, ("min", WEIGHT_CHUNKS, to_size(shared_by)))
    rows = -(-depth // mr) * mr * -(-each // nr) * nr * groups
    partial = low.temp((chunks, rows), what=PARTIAL)
    shared = {"partial": Memory(partial), "groups": groups, "KH": kh, "KW": kw, "C": c, "K": each,
              "chunks": Count(chunks)}
    values = {"x": x, "dy": dy, "images": batch, "OH": oh, "OW": ow, "x_image": x.strides[0],
              "x_row": x.strides[1], "x_pixel": x.strides[2], "stride_h": stride[0],
              "stride_w": stride[1], "dilation_h": dilation[0], "dilation_w": dilation[1],
              **shared}
    multiply(low, template(tile), values, product(dy.shape) * product(node.type.shape[1:]))
    combined = {**shared, "y0": target, "s_out": c * kh * kw, "s_in": kh * kw, "s_h": kw, "s_w": 1}
    run(low, weight_grad.combine_weight_grad(STORE, tile), combined, ("*", chunks, rows), "combine")
    if together > 1:
        parts = [_side(target, node.type.shape, n, step) for n in range(together)]
        low.loop(_sum_of(together, result), parts, [result], "sides")
    low.view_of[Value(node.id)] = result


def _sum_of(count: int, result: View) -> Graph:
    """The body of a loop that adds so many operands."""
    body = Builder("body")
    first, *others = [body.emit(REGISTRY["input"], (), {
        "name": f"x{n}", "shape": result.shape, "dtype": result.dtype}) for n in range(count)]
    for other in others:
        first = body.emit(REGISTRY["add"], (first, other))
    return body.finish([("y0", first)])


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


def bare_conv2d(low: Lowering, node: Node) -> None:
    """A convolution that the layout pass did not see: computed channels-last all the same."""
    attrs = node.attributes
    if attrs["algorithm"] != DIRECT or attrs["layout"] == "nhwc" and not any(
            amount for side in padding_pairs(attrs["padding"]) for amount in side):
        finish = finish_of(low, node)
        conv2d(low, finish)
        publish(low, node, finish)
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
    conv2d(low, Finish(STORE, (), (result,), anchor, node.inputs, (result,)))
    low.view_of[node.inputs[0]] = kept
    low.view_of[Value(node.id)] = views.transpose(result, (0, 3, 1, 2)) \
        if attrs["layout"] == "nchw" else result
