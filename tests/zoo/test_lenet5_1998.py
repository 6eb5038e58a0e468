"""LeNet-5 of 1998 as the paper counts it."""

import numpy as np

import lamina

NET = lamina.load("lenet5_1998").LeNet5of1998()
ROWS = {row.path: row for row in NET.summary().layers}
TABLE_1 = ["X...XXX..XXXX.XX", "XX...XXX..XXXX.X", "XXX...XXX..X.XXX",
           ".XXX..XXXX..X.XX", "..XXX..XXXX.XX.X", "...XXX..XXXX.XXX"]


def units(row):
    return int(np.prod(row.out.shape[1:]))


def connections(path):
    """Inputs of the units of a layer, the bias counted."""
    row = ROWS[path]
    if row.op == "subsample":
        return units(row) * (2 * 2 + 1)
    if row.op == "rbf":
        return units(row) * 84
    return row.macs + units(row)


def test_counts_of_every_layer():
    # Section II.B gives both figures of every layer; together 60,000 and 340,908.
    convs = ("c3.three", "c3.four", "c3.apart", "c3.all")
    layers = {"c1": ("c1",), "s2": ("s2",), "c3": convs, "s4": ("s4",), "c5": ("c5",),
              "f6": ("f6",), "head": ("head",)}
    found = {name: (sum(ROWS[path].parameters for path in paths), sum(map(connections, paths)))
             for name, paths in layers.items()}
    assert found == {
        "c1": (156, 122_304), "s2": (12, 5_880), "c3": (1_516, 151_600), "s4": (32, 2_000),
        "c5": (48_120, 48_120), "f6": (10_164, 10_164), "head": (0, 840)}
    assert sum(trained for trained, _ in found.values()) == 60_000
    assert sum(count for _, count in found.values()) == 340_908


def test_third_layer_is_connected_as_table_1_says():
    # Which maps of the second layer each map of the third depends on, found by moving them.
    weights = NET.init(seed=1)
    block = lamina.loads("""from "lenet5_1998.lam" import Table1
        model M { input x: f32[B, 6, 14, 14]
                  output y = x -> c3: Table1 }""").M()
    run = block.compile(target="numpy")
    x = np.random.default_rng(0).standard_normal((7, 6, 14, 14)).astype(np.float32)
    x[1:] = x[0]
    for channel in range(6):
        x[channel + 1, channel] += 1
    y = run({key: weights[key] for key in block.parameters}, x=x)["y"]
    changed = np.abs(y[1:] - y[0]).max(axis=(2, 3)) > 0
    assert ["".join(".X"[int(one)] for one in row) for row in changed] == TABLE_1


def test_output_is_the_distance_to_the_picture():
    # The right picture has the distance 0; every two pictures differ in at least 5 pixels.
    centre = NET.init()["head.centre"].transpose(1, 0, 2).reshape(10, 84)
    assert set(np.unique(centre)) == {-1, 1}
    block = lamina.loads("""from "lenet5_1998.lam" import rbf
        model M { input x: f32[B, 84]
                  output y = x -> head: rbf }""").M()
    y = block.compile(target="numpy")(block.init(), x=centre)["y"]
    assert (np.diag(y) == 0).all()
    assert (y + 20 * np.eye(10)).min() >= 4 * 5


def test_squashing_keeps_one():
    # Appendix A: the amplitude is chosen so that 1 stays 1.
    block = lamina.loads("""from "lenet5_1998.lam" import squash
        model M { input x: f32[B]
                  output y = x -> squash }""").M()
    y = block.compile(target="numpy")({}, x=np.array([-1, 0, 1], np.float32))["y"]
    assert np.abs(y - [-1, 0, 1]).max() < 1e-4
