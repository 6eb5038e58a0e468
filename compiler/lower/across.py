"""Convolutions of few outputs whose vectors lie along the rows of an image."""

from __future__ import annotations

import os

from lamina.compiler.ir.types import product, to_size
from lamina.compiler.lower.core import Lowering
from lamina.compiler.lower.kernels import Finish, Memory, epilogue_values, multiply
from lamina.compiler.lower.shifted import as_stream
from lamina.compiler.lower.templates import across
from lamina.compiler.lower.views import View
from lamina.compiler.ops.conv import pair
from lamina.runtime.program import THREADS


def along_rows(low: Lowering, finish: Finish, x: View, w: View) -> bool:
    """Append a convolution along rows, where the image lies so that it can run and pays."""
    attrs = finish.anchor.attributes
    (stride, step), dilation = (pair("conv2d", name, attrs[name])
                                for name in ("stride", "dilation"))
    outputs, channels, taps, columns = w.shape
    if os.environ.get("NOACROSS") or attrs["algorithm"] != "direct" or step != 1 or attrs["groups"] != 1 or not isinstance(outputs, int) or \
            not 0 < outputs <= across.MOST_OUTPUTS:
        return False
    pixel = 1 if x.shape[3] == 1 and x.strides[2] == x.strides[2] else x.strides[2]
    if x.strides[2] != 1:
        return False
    batch, rows, wide, _ = finish.anchor.type.shape
    finish = as_stream(low, finish, outputs)
    room = across.scratch_floats(wide, outputs, low.vector_width)
    scratch = low.temp((THREADS, to_size(room)), what="scratch")
    values = {"x": x, "w": w, "scratch": Memory(scratch), "room": room, "images": batch,
              "OH": rows, "OW": wide, "KH": taps, "KW": columns, "C": channels, "K": outputs,
              "x_image": x.strides[0], "x_row": x.strides[1], "x_channel": x.strides[3],
              "stride_h": stride, "dilation_h": dilation[0], "dilation_w": dilation[1],
              "w_out": w.strides[0], "w_in": w.strides[1], "w_h": w.strides[2],
              "w_w": w.strides[3], **epilogue_values(finish)}
    multiply(low, across.conv2d(finish.epilogue, outputs, low.vector_width), values,
             product(finish.anchor.type.shape) * product(w.shape[1:]))
    return True
