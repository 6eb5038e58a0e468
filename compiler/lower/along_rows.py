"""Convolutions of few outputs whose vectors lie along the rows of an image.

A vector of a direct convolution holds the outputs of a pixel, or of neighbours. Where the pixels of
a row are neighbours in memory (an image of one channel, or one that lies channels first), a vector
can hold pixels instead, for one output after the other. Both are counted in multiply-adds of a lane
for a pixel; beside them, measured, a lane of a direct tile and an output along rows take so many.
"""

from __future__ import annotations

from collections.abc import Mapping

from lamina.compiler.ir.types import Dim, product
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
from lamina.compiler.lower.templates import along_rows
from lamina.compiler.lower.views import View
from lamina.compiler.ops.conv import pair

LANE = 40
OUTPUT = 24
GAIN = 1.1  # how many times as fast as direct it must be by this count


def runs_along_rows(low: Lowering, finish: Finish, x: View, w: View, together: int) -> bool:
    """Whether a convolution runs along rows: it can, and a direct one takes longer.

    The direct one computes so many pixels together.
    """
    attrs, columns, outputs = finish.anchor.attributes, finish.anchor.type.shape[2], w.shape[0]
    _, step = pair("conv2d", "stride", attrs["stride"])
    if x.strides[2] != 1 or step != 1 or attrs["groups"] != 1 or \
            any(load.access == "row" for load in finish.epilogue.loads):
        return False
    if not all(isinstance(size, int) and size > 0 for size in w.shape) or \
            outputs > along_rows.MOST_OUTPUTS:  # type: ignore[operator]
        return False
    return _gain(low, columns, w.shape, together) >= GAIN  # type: ignore[arg-type]


def _gain(low: Lowering, columns: Dim, weights: tuple[int, ...], together: int) -> float:
    """Multiply-adds of a direct convolution over those along rows."""
    outputs, channels, taps, across = weights
    tile = tile_for(low, together * outputs)
    lanes = panels(together * outputs, tile) * tile.nr / together
    direct = lanes * (channels * taps * (across + together - 1) + LANE)
    tile = along_rows.rows_tile(low.vector_width)
    filled = panels(columns, tile) * tile.nr / columns if isinstance(columns, int) else 1
    rows = along_rows.whole_rows(outputs, low.vector_width)
    return direct / (filled * rows * channels * taps * across + outputs * OUTPUT)


def conv2d_along_rows(low: Lowering, finish: Finish, x: View, w: View, sizes: Mapping[str, int]
                      ) -> None:
    """A convolution along rows; `sizes` are strides and dilations."""
    outputs, channels, taps, across = w.shape
    assert isinstance(outputs, int)
    batch, rows, columns, _ = finish.anchor.type.shape
    finish = as_stream(low, finish, outputs)
    room = along_rows.scratch_floats(columns, outputs, low.vector_width)
    values = {"x": x, "w": w, **scratch_values(low, room), "images": batch,
              "OH": rows, "OW": columns, "KH": taps, "KW": across, "C": channels, "K": outputs,
              "x_image": x.strides[0], "x_row": x.strides[1], "x_channel": x.strides[3],
              "w_out": w.strides[0], "w_in": w.strides[1], "w_h": w.strides[2],
              "w_w": w.strides[3], **sizes, **epilogue_values(finish)}
    multiply(low, along_rows.conv2d(finish.epilogue, outputs, low.vector_width), values,
             product(finish.anchor.type.shape) * product(w.shape[1:]))
