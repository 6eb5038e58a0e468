"""What every single unit sees, against NaNs that spread to the units that read them."""

import numpy as np
import pytest

from lamina.compiler.inspect.cost import expanded
from lamina.compiler.inspect.reach import reach
from lamina.tests.inspect.test_receptive_field import (
    BLOCK,
    BODIES,
    HEIGHT,
    UPSAMPLED,
    WIDTH,
    net,
    seen,
)

MORE = {
    "joined along the width": "a = x -> conv(1, kernel=3, padding=1)\n"
                              "  output y = (x, a) -> concat(axis=3) -> conv(1, kernel=3)",
    "turned": "output y = (x -> conv(1, kernel=[3, 1]))[:, :, ::-1, :] -> conv(1, kernel=[1, 3])"
              " if false else x -> conv(1, kernel=[3, 1]) -> reverse(axes=[2])",
    "sum of a row": "output y = x + sum(x, axis=3, keepdims=true)",
    "softmax over a column": "output y = softmax(x -> conv(1, kernel=3), axis=2)",
    "twice up": "output y = x -> conv(1, kernel=3, stride=2) -> upsample(2) -> conv(1, kernel=3) "
                "-> upsample(2, mode=\"bilinear\") -> conv(1, kernel=3, padding=1)",
    "more padding than reach": "output y = x -> conv(1, kernel=3, padding=4)",
}


@pytest.mark.parametrize("name", [*BODIES, *UPSAMPLED, *MORE])
def test_reach_is_what_each_unit_sees(name):
    # A page that draws a rectangle for a unit must not be off by one, at borders either.
    body = {**BODIES, **MORE}.get(name) or f"output y = x -> {UPSAMPLED[name]}"
    model = net("  " + body, before=BLOCK)
    graph, touched = expanded(model.graph), seen(model)
    for axis, other, length in ((2, 1, HEIGHT), (3, 0, WIDTH)):
        found = reach(graph, graph.inputs["x"], axis, {"B": 1})[graph.output("y")]
        along = touched.any((other, other + 2))  # [positions, units]
        spans = [np.flatnonzero(along[:, unit]) for unit in range(along.shape[1])]
        if found.at is None:
            assert len(found.first) == 1
            found = type(found)(*(np.repeat(one, len(spans)) for one in (found.first, found.last)),
                                axis)
        assert found.at == axis and len(found.first) == len(spans) and length == along.shape[0]
        for unit, span in enumerate(spans):
            if span.size:
                assert (found.first[unit], found.last[unit]) == (span[0], span[-1]), unit
            else:
                assert found.first[unit] > found.last[unit], unit


@pytest.mark.parametrize("body", ["flatten", "flatten(start=2)",
                                  "transpose(perm=[0, 1, 3, 2]) -> reshape(shape=[B, 1, 21, 23])"])
def test_units_that_lie_along_no_axis(body):
    # Where rows and columns are mixed, a unit has no row: better no claim than a wrong one.
    graph = expanded(net(f"  output y = x -> {body}").graph)
    found = reach(graph, graph.inputs["x"], 2, {"B": 1})[graph.output("y")]
    assert found is None or found.at == 3 and found.first.tolist() == list(range(HEIGHT))
