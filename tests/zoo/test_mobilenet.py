"""MobileNet's figures by the formulas of its papers, for several width multipliers."""

import pytest

import lamina
from lamina.commands.selection import select_net

# Output channels and stride; expansion, output channels, blocks and stride: the papers' tables.
V1 = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
      (1024, 2), (1024, 1)]
V2 = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
      (6, 320, 1, 1)]


def conv(c, out, kernel, positions, groups=1):
    """Parameters, batch-norm's two a channel among them, and multiply-accumulates."""
    weights = out * (c // groups) * kernel**2
    return weights + 2 * out, weights * positions


def rounded(channels):
    """The nearest multiple of 8 that takes no more than a tenth away."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near if near >= 0.9 * channels else near + 8


def v1(width):
    size, c = 112, int(32 * width)
    layers = [conv(3, c, 3, size**2)]
    for channels, stride in V1:
        size, out = size // stride, int(channels * width)
        layers += [conv(c, c, 3, size**2, c), conv(c, out, 1, size**2)]
        c = out
    return layers, c


def v2(width):
    size, c = 112, rounded(32 * width)
    layers = [conv(3, c, 3, size**2)]
    for expand, channels, depth, first in V2:
        for stride in [first] + [1] * (depth - 1):
            wide, out = c * expand, rounded(channels * width)
            layers += [conv(c, wide, 1, size**2)] if expand > 1 else []
            size //= stride
            layers += [conv(wide, wide, 3, size**2, wide), conv(wide, out, 1, size**2)]
            c = out
    return [*layers, conv(c, last := int(1280 * max(1, width)), 1, size**2)], last


@pytest.mark.parametrize("width", [0.25, 0.35, 0.5, 0.75, 1.0, 1.4])
@pytest.mark.parametrize(("model", "formula"), [("MobileNet", v1), ("MobileNetV2", v2)])
def test_figures_by_formula(model, formula, width):
    # The tool counts what the graph holds; here the papers' tables are added up by hand.
    layers, channels = formula(width)
    net = select_net("mobilenet", model, {"width": str(width)}, {"image": "1x3x224x224"})
    summary = net.summary()
    assert summary.parameters == sum(p for p, _ in layers) + channels * 1000 + 1000
    assert summary.macs == sum(m for _, m in layers) + channels * 1000


def test_known_widths():
    # Figures that others publish for the thinned models.
    file = lamina.load("mobilenet")
    counts = [file.MobileNet(width=w).summary().parameters for w in (0.25, 0.5, 0.75)]
    assert counts == [470_072, 1_331_592, 2_585_560]
