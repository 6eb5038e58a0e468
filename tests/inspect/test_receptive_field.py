"""Receptive fields against what each unit really sees, and against figures everybody knows."""

from pathlib import Path

import numpy as np
import pytest

import lamina
from lamina.compiler.inspect.axes import Axis
from lamina.compiler.inspect.cost import expanded
from lamina.compiler.inspect.receptive_field import last_local, receptive_fields
from lamina.compiler.reference import evaluate

HEIGHT, WIDTH = 23, 21


def net(body, height=HEIGHT, width=WIDTH, before=""):
    """A model of this body on one-channel pictures."""
    text = f"{before}\nmodel M {{\n  input x: f32[B, 1, {height}, {width}]\n{body}\n}}\n"
    return lamina.loads(text).M()


def field(model):
    """What is claimed for a unit of the output."""
    graph = expanded(model.graph)
    (found,) = receptive_fields(graph)[graph.output("y")]
    return found


def seen(model):
    """Which input positions each output unit depends on: bool [input rows, columns, rows, columns].

    A NaN at one position spreads exactly to the units that read it, when no weight is zero.
    """
    (name, type), = model.inputs.items()
    height, width = type.shape[2:]
    count = height * width
    x = np.ones((count, 1, height, width), np.float32)
    x.reshape(count, count)[np.arange(count), np.arange(count)] = np.nan
    params = {key: np.full(type.shape, 0.5, np.float32) for key, type in model.parameters.items()}
    out = evaluate(model.graph, {name: x}, params)["y"]
    touched = np.isnan(out).any(1)
    return touched.reshape(height, width, *touched.shape[1:])


def claimed(axis, index, length):
    """First and last input position of unit `index`, inside the picture."""
    centre, half = axis.start + index * axis.stride, (axis.size - 1) / 2
    assert (centre - half) % 1 == 0
    return max(0, int(centre - half)), min(length - 1, int(centre + half))


BLOCK = """block Residual(width: int, stride: int = 1) {
  input x: [B, C, H, W]
  main = x -> conv(width, kernel=3, stride=stride, padding=1) -> relu
    -> conv(width, kernel=3, padding=1)
  skip = x -> conv(width, kernel=1, stride=stride)
  output y = relu(main + skip)
}
"""

BODIES = {
    "one": "output y = x -> conv(2, kernel=3)",
    "even kernel": "output y = x -> conv(2, kernel=4)",
    "padded": "output y = x -> conv(2, kernel=5, padding=2)",
    "more padding than reach": "output y = x -> conv(2, kernel=3, padding=2)",
    "strided": "output y = x -> conv(2, kernel=3, stride=2, padding=1) -> conv(2, kernel=3)",
    "dilated": "output y = x -> conv(2, kernel=3, dilation=3) -> conv(1, kernel=2)",
    "dilated, strided": "output y = x -> conv(2, kernel=3, dilation=2, stride=3) "
                        "-> conv(1, kernel=3)",
    "asymmetric": "output y = x -> conv(2, kernel=[3, 5], stride=[2, 1]) "
                  "-> conv(1, kernel=[1, 3])",
    "pooled": "output y = x -> conv(2, kernel=3) -> maxpool(2) -> conv(2, kernel=3) "
              "-> avgpool(3, stride=2)",
    "pool with padding": "output y = x -> maxpool(3, stride=2, padding=1) -> avgpool(2, stride=1)",
    "grouped": "output y = x -> conv(4, kernel=3) -> conv(4, kernel=5, groups=4)",
    "normalised": "output y = x -> conv(2, kernel=3) -> batchnorm -> relu -> dropout(0.5)",
    "residual": "output y = x -> conv(2, kernel=3, padding=1) -> Residual(2) -> Residual(2)",
    "residual, strided": "output y = x -> Residual(2) -> Residual(2, stride=2) -> Residual(2)",
    "identity skip": "h = x -> conv(2, kernel=3, padding=1)\n"
                     "  output y = h + (h -> conv(2, kernel=7, padding=3))",
    "branches": "a = x -> conv(2, kernel=1)\n  b = x -> conv(2, kernel=5, padding=2)\n"
                "  c = x -> maxpool(3, stride=1, padding=1)\n"
                "  output y = (a, b, c) -> concat(axis=1)",
    "uneven branches": "a = x -> conv(1, kernel=3, padding=1)\n"
                       "  b = x -> conv(1, kernel=[1, 5], padding=[0, 2])\n"
                       "  output y = a * b",
    "cut": "output y = x[:, :, 3:, 2:19] -> conv(2, kernel=3)",
    "every second": "output y = x[:, :, 1::2, ::3] -> conv(2, kernel=3)",
    "cropped skip": "a = x -> conv(1, kernel=3) -> conv(1, kernel=3)\n"
                    "  output y = ((x, a) -> crop) + a",
    "pixelwise": "output y = gelu(x) * 2 + 1",
}


@pytest.mark.parametrize("name", BODIES)
def test_fields_are_what_units_see(name):
    # The claim is arithmetic along the graph; the measure asks the numbers themselves.
    model = net("  " + BODIES[name], before=BLOCK)
    claim, touched = field(model), seen(model)
    assert not claim.whole
    for row in range(touched.shape[2]):
        for column in range(touched.shape[3]):
            places = np.argwhere(touched[:, :, row, column])
            low, high = places.min(0), places.max(0)
            assert (low[0], high[0]) == claimed(claim.axes[0], row, HEIGHT), (row, column)
            assert (low[1], high[1]) == claimed(claim.axes[1], column, WIDTH), (row, column)


UPSAMPLED = {
    "transposed": "conv_transpose(1, kernel=2, stride=2)",
    "transposed, wide": "conv_transpose(1, kernel=5, stride=2, padding=1)",
    "transposed, dilated": "conv_transpose(1, kernel=3, stride=2, dilation=3)",
    "nearest": "upsample(3)",
    "bilinear": 'upsample(2, mode="bilinear")',
    "down and up": "conv(1, kernel=3, stride=2) -> conv_transpose(1, kernel=2, stride=2) "
                   "-> conv(1, kernel=3)",
    "adaptive": "adaptive_avgpool(4)",
}


@pytest.mark.parametrize("name", UPSAMPLED)
def test_fields_after_upsampling(name):
    # Units then differ by their phase: the field is the largest, its centre that of the mean.
    model = net(f"  output y = x -> {UPSAMPLED[name]}")
    claim, touched = field(model), seen(model)
    for axis, other, length in ((0, 1, HEIGHT), (1, 0, WIDTH)):
        along = touched.any((other, other + 2))
        spans = [np.argwhere(along[:, unit]).ravel() for unit in range(along.shape[1])]
        inner = [(unit, span.min(), span.max()) for unit, span in enumerate(spans)
                 if span.size and span.min() > 0 and span.max() < length - 1]
        found = claim.axes[axis]
        assert max(high - low + 1 for _, low, high in inner) == found.size
        away = [(low + high) / 2 - found.start - unit * found.stride for unit, low, high in inner]
        assert abs(np.mean(away)) < 0.5 and np.ptp(away) <= found.size


@pytest.mark.parametrize("body", [
    "output y = x -> flatten -> linear(3)",
    "output y = x -> conv(2, kernel=3) -> global_avgpool",
    "output y = x -> conv(2, kernel=3) -> global_maxpool -> linear(2)",
    "output y = x - mean(x, axis=[2, 3], keepdims=true)",
])
def test_layers_that_see_everything(body):
    # No number would be true here.
    assert field(net("  " + body)).whole


def test_layers_that_see_a_whole_row():
    # All columns of a row, and no other row.
    found = field(net("  output y = softmax(x -> conv(1, kernel=3), axis=-1)"))
    assert found.axes == (Axis(3, 1, 1.0), None) and not found.whole and not found.local


TWO = """model Two {
  input left: f32[B, 1, 64, 64]
  input right: f32[B, 1, 16, 16]
  a = left -> l: conv(2, kernel=5) -> down: maxpool(4)
  b = right -> r: conv(2, kernel=2)
  output y = a + b -> c: conv(1, kernel=3)
}
"""


def test_every_input_has_fields_of_its_own():
    # Positions of two pictures are no common measure: joined they would be true of neither.
    layers = {row.path: row.fields for row in lamina.loads(TWO).Two().summary().layers}
    assert {one.input: one.axes[0].size for one in layers["c"]} == {"left": 16, "right": 4}
    assert [one.input for one in layers["r"]] == ["right"]
    assert {one.input: one.axes[0].stride for one in layers["c"]} == {"left": 4, "right": 1}


def test_a_line_has_fields_too():
    # An input without an image's axes is measured along its length.
    body = "x -> a: conv1(4, kernel=5) -> b: conv1(4, kernel=3, stride=2)"
    net = lamina.loads(f"model M {{\n  input x: f32[B, 2, L]\n  output y = {body}\n}}\n").M()
    assert [row.fields[0].axes for row in net.summary().layers] == [
        (Axis(5, 1, 2.0),), (Axis(7, 2, 3.0),)]


@pytest.mark.parametrize("order", ["B, T, 3, 32, 32", "B, 3, T, 32, 32"])
def test_a_film_has_time_and_the_axes_of_its_pictures(order):
    # Channels may come before or after time; what convolutions mix as a whole are the channels.
    swapped = "" if order.startswith("B, T") else "-> transpose(perm=[0, 2, 1, 3, 4]) "
    net = lamina.loads(f"""model M {{
  input x: f32[{order}]
  pictures = x {swapped}-> reshape(shape=(B * T, 3, 32, 32)) -> a: conv(4, kernel=5)
  output y = reshape(pictures, shape=(B, T, 4, 28, 28)) -> b: relu
}}
""").M()
    fields = {row.path: row.fields[0].named for row in net.summary().layers}
    assert fields["a"] == {"time": Axis(1, 1, 0.0), "height": Axis(5, 1, 2.0),
                           "width": Axis(5, 1, 2.0)}


@pytest.mark.parametrize(("body", "size", "stride"), [
    ("x -> conv(1, kernel=5) -> conv(1, kernel=5)", 9, 1),
    ("x -> conv(1, kernel=3) -> conv(1, kernel=3)", 5, 1),
    ("x -> conv(1, kernel=3) -> conv(1, kernel=3) -> conv(1, kernel=3)", 7, 1),
    ("x -> repeat 3 { conv(1, kernel=3, dilation=2) }", 13, 1),
    # VGG-16 before its dense layers: 212 positions, 32 apart.
    ("x -> for n in [2, 2, 3, 3, 3] { repeat n { conv(1, kernel=3, padding=1) -> relu } "
     "-> maxpool(2) }", 212, 32),
    # AlexNet's features see 195 positions, 32 apart.
    ("x -> conv(1, kernel=11, stride=4, padding=2) -> maxpool(3, stride=2) -> conv(1, kernel=5, "
     "padding=2) -> maxpool(3, stride=2) -> repeat 3 { conv(1, kernel=3, padding=1) } "
     "-> maxpool(3, stride=2)", 195, 32),
])
def test_known_figures(body, size, stride):
    # Figures of the textbooks and of Araujo, Norris and Sim (2019).
    found = field(net(f"  output y = {body}", 224, 224)).axes[0]
    assert (found.size, found.stride) == (size, stride)


RESNET = Path(__file__).parents[1] / "syntax" / "examples" / "resnet.lam"


def test_resnet_50_sees_427():
    # The stride is in the 3x3 convolution here (the 1x1 of the first paper would make it 483).
    model = lamina.load(RESNET).ResNet(depths=[3, 4, 6, 3])
    found = last_local([row.fields for row in model.summary().layers])
    assert {(axis.size, axis.stride) for axis in found.axes} == {(427, 32)}


def test_fields_need_no_sizes():
    # A field does not depend on the picture, so an open size has the same.
    body = "output y = x -> conv(2, kernel=3, stride=2, padding=1) -> conv(2, kernel=3)"
    fixed = field(net("  " + body))
    loose = field(lamina.loads(f"model M {{\n  input x: f32[B, 1, H, W]\n  {body}\n}}\n").M())
    assert fixed == loose
