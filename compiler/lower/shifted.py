"""Convolutions by sums that are shifted and added."""

from __future__ import annotations

from lamina.compiler.ir.types import TensorType, product
from lamina.compiler.lower import views
from lamina.compiler.lower.core import Lowering
from lamina.compiler.lower.kernels import (
    Finish,
    as_stream,
    epilogue_values,
    multiply,
    panels,
    scratch_values,
    tile_for,
)
from lamina.compiler.lower.templates import shifted
from lamina.compiler.lower.templates.text import Tile
from lamina.compiler.lower.views import View
from lamina.compiler.ops.conv import padding_pairs

WEIGHTS = "all columns of the kernel lie in one vector, the last first"


def shifted_conv2d(low: Lowering, finish: Finish, x: View, w: View) -> None:
    """A convolution with stride 1 of an image of which the border is left out."""
    outputs, channels, taps, across = w.shape
    assert isinstance(outputs, int) and isinstance(across, int)
    batch, rows, columns, _ = finish.anchor.type.shape
    (top, _), (left, _) = padding_pairs(finish.anchor.attributes["padding"])
    tile = tile_for(low, across * outputs)
    finish = as_stream(low, finish, outputs)
    room = shifted.scratch_floats(x.shape[2], columns, outputs, across, tile, low.vector_width)
    values = {**scratch_values(low, room), "x": x, "w": _weights(low, w, tile),
              "images": batch, "H": x.shape[1], "W": x.shape[2], "OH": rows, "OW": columns,
              "KH": taps, "KW": across, "C": channels, "K": outputs, "x_image": x.strides[0],
              "x_row": x.strides[1], "x_pixel": x.strides[2], "top": top, "left": left,
              **epilogue_values(finish)}
    multiply(low, shifted.conv2d(finish.epilogue, tile, low.vector_width), values,
             product(finish.anchor.type.shape) * product(w.shape[1:]))


def _weights(low: Lowering, w: View, tile: Tile) -> View:
    """Weights [KH][C][KW, the last first][K], in rows that are filled with zeros."""
    outputs, channels, taps, across = w.shape
    wide = panels(across * outputs, tile) * tile.nr
    filled = low.fresh(TensorType((taps, channels, wide)), "packed weights")
    turned = views.reverse(views.transpose(w, (2, 1, 3, 0)), (2,))
    target = View(filled.buffer, turned.shape, (channels * wide, wide, outputs, 1))
    with low.once(w, filled):
        low.fill(filled, 0.0, WEIGHTS)
        low.copy(turned, target, WEIGHTS)
    return filled
