"""Receptive fields path by path: counts, routes, misaligned branches, and what units really see."""

import re

import numpy as np
import pytest

import lamina
from lamina.commands.selection import select_net
from lamina.compiler.frontend.library import zoo_folder
from lamina.compiler.inspect.axes import Axis
from lamina.compiler.inspect.cost import expanded
from lamina.compiler.inspect.paths import joined, report, trace
from lamina.compiler.inspect.receptive_field import receptive_fields
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.types import NUMPY_TYPES
from lamina.compiler.reference import evaluate
from lamina.tests.inspect.test_receptive_field import BLOCK, BODIES, UPSAMPLED, net
from lamina.tests.zoo.facts import ending_of, facts_of_models, sizes_of, texts_of

ZOO = facts_of_models()
PICTURES = [case for case in ZOO if "image" in sizes_of(case[2])]


def line(body, shape="B, 4, L"):
    """The report of a model of this body over an input x of this shape."""
    text = f"model M {{\n  input x: f32[{shape}]\n  output y = {body}\n}}\n"
    return report(lamina.loads(text).M().graph, "x")


def sizes(fields):
    return [None if axis is None else axis.size for axis in fields]


# --- against the other computation, and against figures everybody knows -------------------------


@pytest.mark.parametrize("body", [*BODIES.values(), *(f"output y = x -> {one}" for one in
                                                      UPSAMPLED.values())])
def test_routes_join_to_the_field_of_the_layer_table(body):
    # Two walks over the graph, one with all paths at once; that one is measured with NaNs.
    model = net("  " + body, before=BLOCK)
    graph = expanded(model.graph)
    (field,) = receptive_fields(graph)[graph.output("y")]
    routes = trace(model.graph, model.graph.inputs["x"])
    assert joined(routes[model.graph.output("y")]) == field.axes


@pytest.mark.parametrize(("file", "model", "facts"), ZOO, ids=lambda x: str(x)[:20])
def test_the_zoo_has_the_published_fields(file, model, facts):
    # The last layer before everything is seen, over the largest path.
    sizes = texts_of(facts)
    found = report(select_net(file, model, {}, sizes).graph, next(iter(sizes)))
    end = found.outputs[0] if found.local is None else found.local
    assert {(axis.size, axis.stride) for axis in end.fields if axis} == ending_of(facts)
    assert found.misaligned == ()


def test_start_and_padding_are_those_of_the_article():
    # Araujo, Norris and Sim (2019): a stack of windows has padding sum(p_l * stride before l),
    # and its first field begins as far before the image.
    found = line("x -> conv(1, kernel=7, stride=2, padding=3) -> conv(1, kernel=3, padding=1)",
                 "B, 1, 64, 64").outputs[0]
    assert found.fields[0] == Axis(11, 2, 0.0)
    assert found.fields[0].padding == 3 + 1 * 2


# --- against what units really see --------------------------------------------------------------

THIN = {"lenet5": (96, 32), "resnet": (1600, 32), "cifar_resnet": (640, 4), "alexnet": (448, 96),
        "vgg": (352, 32), "unet": (572, 188), "mobilenet": (1088, 32), "lenet5_1998": (96, 32),
        "detector": (320, 32), "rows": (28, 28), "captions": (320, 32)}
NARROW = {
    "resnet.lam": [(r"ConvBN\(64, kernel=7", "ConvBN(2, kernel=7"), (r"64 \* 2 \*\* i", "2")],
    "cifar_resnet.lam": [(r"\[16, 32, 64\]", "[2, 4, 8]"), (r"ConvBN\(16\)", "ConvBN(2)")],
    "alexnet.lam": [(r"conv\(\d+", "conv(2"), (r"hidden: int = 4096", "hidden: int = 4")],
    "vgg.lam": [(r"width: int = 64", "width: int = 1"),
                (r"hidden: int = 4096", "hidden: int = 4")],
    "captions.lam": [(r"width: int = 24", "width: int = 2"),
                     (r"hidden: int = 192", "hidden: int = 4")],
    "mobilenet.lam": [(r"width: float = 1.0", "width: float = 0.04")],
    "detector.lam": [(r"width: int = 32", "width: int = 2"), (r"\(H \+ W\)", "900")],
    "unet.lam": [(r"width: int = 64", "width: int = 1")],
}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """The zoo with few channels and high, thin images: fields depend on neither."""
    folder = tmp_path_factory.mktemp("narrow")
    for path in (zoo_folder() / f"{name}.lam" for name in THIN):
        text = path.read_text()
        for pattern, new in NARROW.get(path.name, []):
            text, count = re.subn(pattern, new, text)
            assert count, (path.name, pattern)
        height, width = THIN[path.stem]
        text, count = re.subn(r"(input image: f32\[B, \w+, )\w+, \w+\]",
                              rf"\g<1>{height}, {width}]", text)
        assert count
        text = re.sub(r"features: .* =", "features =", text)
        (folder / path.name).write_text(re.sub(r"(?m)^ +assert H % .*\n", "", text))
    return folder


def rows_of(graph, value, image):
    """Which rows of the result at `value` are NaN, for images [N, H] of rows to spoil."""
    type = graph.type(graph.inputs["image"])
    x = np.ones((len(image), *type.shape[1:]), np.float32)
    x[np.broadcast_to(image[:, None, :, None], x.shape)] = np.nan
    values = {key: np.full(graph.type(param).shape, 0.02, np.float32)
              for key, param in graph.params.items()}
    end = Graph(graph.name, graph.nodes[:value.node + 1], [("y", value)])
    values = {key: values[key] for key in end.params}
    types = {name: end.type(one) for name, one in end.inputs.items() if name != "image"}
    others = {name: np.ones((len(x), *[1] * (type.rank - 1)), NUMPY_TYPES[type.dtype])
              for name, type in types.items()}
    y = evaluate(end, {"image": x, **others}, values)["y"]
    return np.isnan(y).any((1, 3))


@pytest.mark.parametrize(("file", "model", "facts"), PICTURES, ids=lambda x: str(x)[:20])
def test_zoo_units_see_what_is_claimed(narrow, file, model, facts):
    # A NaN in a row reaches the units that read it: the claim, row by row, for the middle units.
    graph = lamina.load(narrow / f"{file}.lam").model(model).graph
    found = report(graph, "image")
    end = found.outputs[0] if found.local is None else found.local
    value = dict(graph.outputs).get(end.name) or _last_map(graph, end.name)
    axis, (rows, units) = end.fields[0], (graph.type(graph.inputs["image"]).shape[2],
                                          graph.type(value).shape[2])
    assert (axis.size, axis.stride) == (facts["field"], facts["stride"])
    middle = round((rows / 2 - axis.start) / axis.stride)
    assert 0 < middle < units
    spans = _spans(graph, value, middle, axis, rows, 16 if file == "unet" else 1)
    seen = [high - low + 1 for low, high in spans]
    away = [(low + high) / 2 - axis.start - (middle + i) * axis.stride
            for i, (low, high) in enumerate(spans)]
    # U-Net's sixteen phases see 188 or 204 rows; the recursion gives their mean, 200.
    assert set(seen) == ({188, 204} if file == "unet" else {facts["field"]})
    assert (np.mean(seen), np.mean(away)) == (facts["field"], 0)


def _last_map(graph, path):
    """The value of the layer `path`, or where that is flat, of the last map before it."""
    value = next(scope.result for scope in graph.scopes if scope.path == path)
    while graph.type(value).rank != 4 or graph.node(value).op.name == "transpose":
        value = graph.node(value).inputs[0]
    return value


def _spans(graph, value, first, axis, rows, units):
    """First and last row that each of some units sees: rows are spoilt from the edges inwards."""
    spans = []
    near = axis.size // 2 + 2 * axis.stride + 16
    centre = int(axis.start + first * axis.stride)
    edges = np.arange(max(0, centre - near), max(0, centre - near) + 40 * (units > 1) + 1)
    if units == 1:  # three images tell: the two ends, and everything outside of them
        low, high = (axis.start + first * axis.stride + sign * (axis.size - 1) / 2
                     for sign in (-1, 1))
        place = np.arange(rows)
        image = np.stack([place == low, place == high, (place < low) | (place > high)])
        assert list(rows_of(graph, value, image)[:, first]) == [True, True, False]
        return [(low, high)]
    place = np.arange(rows)
    above = rows_of(graph, value, place[None] <= edges[:, None])
    edges_below = np.arange(centre + near - 40, centre + near + 17)
    below = rows_of(graph, value, place[None] >= edges_below[:, None])
    for unit in range(first, first + units):
        low = edges[np.argmax(above[:, unit])]
        high = edges_below[len(edges_below) - 1 - np.argmax(below[::-1, unit])]
        assert above[:, unit].any() and not above[0, unit]
        assert below[:, unit].any() and not below[-1, unit]
        spans.append((low, high))
    return spans


# --- paths --------------------------------------------------------------------------------------


def test_paths_are_counted_and_not_walked():
    # 50 blocks with a shortcut: 2^50 paths, of which a few hundred fields differ.
    found = report(lamina.load("resnet").model("ResNet152").graph, "image")
    assert found.local.paths == found.outputs[0].paths == 2 ** 50
    assert found.local.distinct == 181
    assert (sizes(found.local.smallest), sizes(found.local.largest)) == ([11, 11], [1451, 1451])


def test_a_route_lists_the_layers_that_enlarged_the_field():
    # What the largest path went through, and what each layer added.
    graph = net("  output y = x -> b: Residual(2)", before=BLOCK).graph
    routes = trace(graph, graph.inputs["x"])[graph.output("y")]
    assert [(route.count, sizes(route.fields)) for route in routes] == [(1, [1, 1]), (1, [5, 5])]
    assert [(step.path, sizes(step.fields)) for step in routes[-1].steps] == [
        ("b.conv0", [3, 3]), ("b.conv1", [5, 5])]
    assert routes[0].steps == ()


@pytest.mark.parametrize(("body", "count"), [
    ("x -> gelu -> gelu", 1), ("x -> silu", 1), ("x + x", 1),
    ("x + (x -> conv(1, kernel=3, padding=1))", 2),
    ("(x -> conv(1, kernel=1)) + (x -> conv(1, kernel=1))", 2)])
def test_an_operator_that_reads_its_operand_twice_is_one_path(body, count):
    # gelu(x) is x times a function of x: no reader of a network calls that two branches.
    found = line(body, "B, 1, 16, 16").outputs[0]
    assert found.paths == count


# --- axes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "shape", "expected"), [
    ("x -> conv1(8, kernel=3, dilation=2) -> conv1(8, kernel=5, stride=2)", "B, 4, L", [9]),
    ("op.max_pool1d(x, kernel=3) -> conv1(2, kernel=3)", "B, 4, L", [9]),
    ("x -> layernorm -> linear(32) -> gelu -> linear(16)", "B, S, 16", [1]),
    ("softmax(x, axis=-1)", "B, 3, H, W", [1, None]),
    ("x - mean(x, axis=2, keepdims=true)", "B, 3, H, W", [None, 1]),
    ("op.transpose(x, perm=[0, 1, 3, 2]) -> conv(2, kernel=[3, 5])", "B, 3, H, W", [5, 3]),
    ("op.reverse(x, axes=[3])", "B, 3, H, W", [1, None]),
    ("(x, x -> conv(3, kernel=3, padding=1)) -> concat(axis=2)", "B, 3, H, W", [None, 3]),
    ("x -> conv(2, kernel=4, stride=4) -> flatten -> linear(2)", "B, 3, 16, 16", [None, None]),
    ("x -> conv(2, kernel=4, stride=4) -> flatten -> relu", "B, 3, 16, 16", [4, 4]),
    ("op.reshape(x -> conv(2, kernel=4, stride=4), shape=[-1, 2, 16]) -> conv1(1, kernel=1)",
     "B, 3, 16, 16", [None, None]),
    ("x @ x.T", "B, 3, H, W", [1, None]),
], ids=str)
def test_axes_are_followed(body, shape, expected):
    # A field belongs to an axis of the input, wherever operators move that axis.
    assert sizes(line(body, shape).outputs[0].fields) == expected


# --- branches that do not fit -------------------------------------------------------------------


def test_a_valid_branch_beside_an_uncropped_one_is_misaligned():
    # Sizes agree, places do not: two pixels lost at the top against four at the bottom.
    found = line("(x -> a: conv(2, kernel=5)) + (x[:, :, 0:28, 0:24] -> b: conv(2, kernel=1))",
                 "B, 1, 32, 28").misaligned
    assert [(one.op, one.axis, one.line, one.strides, one.offset) for one in found] == [
        ("add", "height", 3, (1.0,), 2.0), ("add", "width", 3, (1.0,), 2.0)]


def test_branches_of_other_strides_are_misaligned():
    # A stride of two beside the upper left quarter of the image.
    found = line("(x -> conv(1, kernel=1, stride=2), x[:, :, 0:8, 0:8]) -> join: concat(axis=1)",
                 "B, 1, 16, 16").misaligned
    assert [(one.path, one.axis, one.strides) for one in found] == [
        ("join", "height", (1.0, 2.0)), ("join", "width", (1.0, 2.0))]


def test_a_misalignment_is_told_where_it_begins():
    # A residual block after it adds what is misaligned already: that is no news.
    body = ("(x -> a: conv(1, kernel=5)) + (x[:, :, 0:28, 0:28] -> b: conv(1, kernel=1))"
            " -> c: conv(1, kernel=3, padding=1)")
    text = (f"model M {{\n  input x: f32[B, 1, 32, 32]\n  h = {body}\n"
            "  output y = h + (h -> d: conv(1, kernel=3, padding=1))\n}\n")
    found = report(lamina.loads(text).M().graph, "x").misaligned
    assert {one.line for one in found} == {3}


def test_a_centred_crop_is_aligned():
    # U-Net's shortcuts: cut to the middle, all five paths have one centre.
    graph = lamina.load("unet").model("UNet").graph
    routes = trace(graph, graph.inputs["image"])[graph.output("logits")]
    assert {route.fields[0].start for route in routes} == {92.0}
    assert [route.fields[0].size for route in routes] == [9, 26, 60, 128, 200]
