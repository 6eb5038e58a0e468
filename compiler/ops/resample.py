"""Images made larger or smaller: transposed convolution, upsampling, adaptive pooling."""

from __future__ import annotations

from lamina.compiler.ir.op import REQUIRED, OpError
from lamina.compiler.ir.types import Dim, TensorType, product, shape_text
from lamina.compiler.ops.conv import turned
from lamina.compiler.ops.define import composite
from lamina.compiler.ops.window import padding_pairs, pair, single

MANY = 64  # pieces of which an axis is put together, at most


def _check_image(name: str, x) -> None:
    if len(x.shape) != 4:
        raise OpError("E225", f"`{name}` takes [N, C, H, W], not {shape_text(x.shape)}", "", (0,))


def _transposed_macs(out: TensorType, x: TensorType, w: TensorType, **_) -> Dim:
    return product(x.shape) * product(w.shape[1:])


@composite("conv_transpose2d",
           attrs={"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1},
           arity=2, macs=_transposed_macs,
           samples=("x:[2,3,4,5] w:[3,4,2,2] | stride=2", "x:[1,3,5,4] w:[3,2,3,3] | padding=1",
                    "x:[2,4,3,3] w:[4,3,3,2] | stride=(2, 3), groups=2, output_padding=1",
                    "x:[1,2,4,4] w:[2,2,3,3] | stride=2, padding=1, output_padding=1, dilation=2",
                    "x:[1,2,1,1] w:[2,5,4,4]"),
           bad={"E221": "x:[1,3,4,4] w:[2,4,2,2]", "E222": "x:[1,3,4,4] w:[3,4,2,2] | groups=2",
                "E224": "x:[1,3,4,4] w:[3,4,2,2] | stride=0", "E225": "x:[3,4,4] w:[3,4,2,2]",
                "E215": "x:[1,3,4,4] w:[3,4,2,2] | output_padding=1"},
           torch="torch.nn.functional.conv_transpose2d(a, b, None, stride, padding, "
                 "output_padding, groups, dilation)")
def conv_transpose2d(m, x, w, *, stride, padding, output_padding, dilation, groups):
    """Transposed convolution of [N, C, H, W] with weights [C, K / groups, KH, KW].

    The gradient of a convolution by its input, as a layer: each axis becomes (in - 1) stride -
    2 padding + dilation (kernel - 1) + output_padding + 1. Zeiler and others (2010).
    """
    name = "conv_transpose2d"
    _check_image(name, x)
    if len(w.shape) != 4:
        raise OpError("E225", f"`{name}` takes weights [C, K / groups, KH, KW], not "
                      f"{shape_text(w.shape)}", "", (1,))
    strides, dilations = pair(name, "stride", stride), pair(name, "dilation", dilation)
    borders, extra = padding_pairs(padding), pair(name, "output_padding", output_padding, 0)
    single(name, "groups", groups)
    if w.shape[0] != x.shape[1]:
        raise OpError("E221", f"`{name}`: the image has {x.shape[1]} channels, the weights "
                      f"{w.shape[0]}", "weights are [C, K / groups, KH, KW]", (0, 1))
    if w.shape[0] % groups:
        raise OpError("E222", f"`{name}`: {groups} groups do not divide {w.shape[0]} channels")
    if any(e >= max(s, d) and e for e, s, d in zip(extra, strides, dilations, strict=True)):
        raise OpError("E215", f"`{name}`: output_padding is {output_padding}, the stride {stride}",
                      "output_padding is smaller than the stride or the dilation")
    reach = [d * (k - 1) for d, k in zip(dilations, w.shape[2:], strict=True)]
    lo = [r - before for r, (before, _) in zip(reach, borders, strict=True)]
    hi = [r - after + e for r, (_, after), e in zip(reach, borders, extra, strict=True)]
    spread = m.pad(x, lo=(0, 0, *lo), hi=(0, 0, *hi),
                   interior=(0, 0, *(s - 1 for s in strides)))
    return m.conv2d(spread, turned(m, w, groups), dilation=dilations, groups=groups)


@composite("upsample2d", attrs={"scale": 2, "mode": "nearest"},
           samples=("x:[2,3,4,5]", "x:[1,2,3,3] | scale=(1, 3)", "x:[1,2,4,3] | mode='bilinear'",
                    "x:[2,1,3,5] | scale=(3, 2), mode='bilinear'",
                    "x:[1,1,1,1] | scale=4, mode='bilinear'"),
           bad={"E225": "x:[3,4,4]", "E224": "x:[1,3,4,4] | scale=0",
                "E228": "x:[1,3,4,4] | mode='cubic'"},
           torch="torch.nn.functional.interpolate(a, scale_factor=scale, mode=mode)")
def upsample2d(m, x, *, scale, mode):
    """Every pixel of [N, C, H, W] becomes `scale` x `scale` pixels.

    "nearest" repeats it; "bilinear" interpolates between the centres of neighbours, the border
    repeated (PyTorch's align_corners=False).
    """
    _check_image("upsample2d", x)
    if mode not in ("nearest", "bilinear"):
        raise OpError("E228", f"`upsample2d`: no mode is called {mode!r}",
                      'modes: "nearest", "bilinear"')
    for axis, factor in zip((2, 3), pair("upsample2d", "scale", scale), strict=True):
        if factor > MANY:
            raise OpError("E224", f"`upsample2d`: scale is {factor}", f"it is at most {MANY}")
        if factor > 1:
            x = (_repeat if mode == "nearest" else _interpolate)(m, x, axis, factor)
    return x


def _repeat(m, x, axis: int, factor: int):
    shape = tuple(x.shape)
    wide = (*shape[:axis + 1], factor, *shape[axis + 1:])
    repeated = m.broadcast_to(m.expand_dims(x, axis=axis + 1), shape=wide)
    return m.reshape(repeated, shape=(*shape[:axis], shape[axis] * factor, *shape[axis + 1:]))


def _interpolate(m, x, axis: int, factor: int):
    shape, n = tuple(x.shape), x.shape[axis]

    def part(start, stop):
        starts = tuple(start if i == axis else 0 for i in range(4))
        stops = tuple(stop if i == axis else size for i, size in enumerate(shape))
        return m.slice(x, starts=starts, stops=stops, steps=(1,) * 4)

    before = m.concat(part(0, 1), part(0, n - 1), axis=axis)
    after = m.concat(part(1, n), part(n - 1, n), axis=axis)
    phases = []
    for phase in range(factor):
        away = (phase + 0.5) / factor - 0.5  # of the new centre from the old, in old pixels
        other = before if away < 0 else after
        phases.append(x if away == 0 else x * (1 - abs(away)) + other * abs(away))
    stacked = m.concat(*(m.expand_dims(one, axis=axis + 1) for one in phases), axis=axis + 1)
    return m.reshape(stacked, shape=(*shape[:axis], n * factor, *shape[axis + 1:]))


@composite("adaptive_avg_pool2d", attrs={"windows": REQUIRED},
           samples=("x:[2,3,6,8] | windows=(3, 2)", "x:[1,2,7,5] | windows=3",
                    "x:[2,2,3,4] | windows=1", "x:[1,1,2,3] | windows=(5, 4)"),
           bad={"E225": "x:[3,4,4] | windows=2", "E224": "x:[1,3,4,4] | windows=0"},
           torch="torch.nn.functional.adaptive_avg_pool2d(a, windows)")
def adaptive_avg_pool2d(m, x, *, windows):
    """The means of `windows` windows that cover [N, C, H, W] as evenly as whole pixels allow.

    Window i of an axis of n pixels runs from floor(i n / windows) to ceil((i + 1) n / windows).
    Where their number divides n, windows are equal and n may be open.
    """
    _check_image("adaptive_avg_pool2d", x)
    for axis, count in zip((2, 3), pair("adaptive_avg_pool2d", "windows", windows), strict=True):
        x = _adapt(m, x, axis, count)
    return x


def _adapt(m, x, axis: int, count: int):
    shape, n = tuple(x.shape), x.shape[axis]
    if n == count:
        return x
    each = n // count
    if each * count == n:
        split = m.reshape(x, shape=(*shape[:axis], count, each, *shape[axis + 1:]))
        return m.mean(split, axis=axis + 1)
    if count > MANY:
        raise OpError("E224", f"`adaptive_avg_pool2d`: {count} uneven windows over {n} pixels",
                      f"uneven windows are at most {MANY}; any number that divides {n} will do")
    if not isinstance(n, int):
        raise OpError("E224", f"`adaptive_avg_pool2d`: {count} windows do not divide {n}, which is "
                      "not known when compiled", "give the size a number in the model's input")
    means = []
    for index in range(count):
        starts = tuple(index * n // count if i == axis else 0 for i in range(4))
        stops = tuple(-(-(index + 1) * n // count) if i == axis else size
                      for i, size in enumerate(shape))
        window = m.slice(x, starts=starts, stops=stops, steps=(1,) * 4)
        means.append(m.mean(window, axis=axis, keepdims=True))
    return m.concat(*means, axis=axis)
