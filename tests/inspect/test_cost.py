"""Costs per layer: backward passes, memory, and formulas in the open sizes."""

import math
from fractions import Fraction
from operator import eq, ge

import pytest

import lamina
from lamina.commands.bench import example_sizes
from lamina.commands.selection import select_net
from lamina.compiler.inspect.cost import macs_by_path, summarize
from lamina.compiler.inspect.polynomial import formula_text, formulas, product_text
from lamina.compiler.inspect.report import structure
from lamina.compiler.ir.types import parse_dim, substitute, symbol
from lamina.compiler.transform.autodiff import add_gradients, expand_underived
from lamina.compiler.transform.training import trainable
from lamina.tests.zoo.facts import facts_of_models, sizes_of, texts_of


def model(body, shape="4, 3, 8, 8"):
    return lamina.loads(f"model M {{\n  input x: f32[{shape}]\n  output y = {body}\n}}\n").M()


def value(text, sizes):
    """A formula with numbers for its symbols; fractions keep divisions exact."""
    names = {name: Fraction(size) for name, size in sizes.items()}
    return eval(str(text), {"ceil": math.ceil, "floor": math.floor, **names})


# --- backward -----------------------------------------------------------------------------------


def test_a_layer_costs_twice_its_forward_pass_and_the_first_one_once():
    # The image needs no gradient.
    rows = {row.path: row for row in lamina.load("lenet5").LeNet5().summary().layers}
    assert (rows["c1"].macs, rows["c1"].backward) == (117_600, 117_600)
    assert (rows["c3"].macs, rows["c3"].backward) == (240_000, 480_000)
    assert rows["tanh0"].backward == 0


@pytest.mark.parametrize("body", [
    "x -> conv(4, kernel=3, padding=1) -> relu -> conv(6, kernel=1) "
    "-> conv(6, kernel=5, padding=2)",
    "x -> conv(6, kernel=1) -> conv(6, kernel=3, padding=1, groups=3) -> batchnorm",
    "x -> flatten -> linear(10) -> tanh -> linear(3)",
    "(x -> a: conv(4, kernel=1)) * (x -> b: conv(4, kernel=3, padding=1))",
    "(x -> linear(5)) @ (x -> linear(5)).T",
])
def test_backward_is_what_the_differentiated_graph_multiplies(body):
    # Where no zeros are put between or around gradients, the graph's own products are the count.
    net = model(body)
    whole = expand_underived(lamina.loads(
        f"model M {{\n  input x: f32[4, 3, 8, 8]\n  output y = sum({body})\n}}\n").M().graph)
    graph = add_gradients(whole, "y", {key: whole.params[key] for key in trainable(whole)})
    both, forward = sum(macs_by_path(graph).values()), sum(macs_by_path(whole).values())
    assert 4 * net.summary().backward == both - forward


def test_backward_agrees_with_pytorch():
    # PyTorch counts a strided, unpadded or transposed convolution's gradients the same way.
    torch = pytest.importorskip("torch", reason="PyTorch is a test-only extra")
    from torch.utils.flop_counter import FlopCounterMode

    net = model("x -> conv(6, kernel=5, stride=2) -> conv_transpose(4, kernel=2, stride=2) "
                "-> conv(2, kernel=3)", "2, 3, 32, 32")
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 5, 2), torch.nn.ConvTranspose2d(6, 4, 2, 2),
                                 torch.nn.Conv2d(4, 2, 3))
    with FlopCounterMode(display=False) as counter:
        layers(torch.zeros(2, 3, 32, 32)).sum().backward()
    summary = net.summary()
    assert 2 * 2 * (summary.macs + summary.backward) == counter.get_total_flops()


# --- memory -------------------------------------------------------------------------------------


def test_bytes_count_memory_once():
    # flatten is another shape of what s4 made, dropout does nothing outside training.
    net = model("x -> conv(2, kernel=3) -> dropout(0.5) -> flatten -> linear(5)", "4, 3, 8, 8")
    assert [row.bytes for row in net.summary().layers] == [4 * 2 * 36 * 4, 0, 0, 4 * 5 * 4]
    assert net.summary().bytes == 4 * 2 * 36 * 4 + 4 * 5 * 4


def test_inputs_of_a_layer():
    # What it reads, not its parameters.
    net = model("(x -> a: conv(4, kernel=3), x[:, :, 1:7, 1:7]) -> concat(axis=1) -> flatten",
                "B, 3, 8, 8")
    shapes = {row.path: [str(type) for type in row.inputs] for row in net.summary().layers}
    assert shapes == {"a": ["f32[B, 3, 8, 8]"], "flatten": ["f32[B, 7, 6, 6]"],
                      "concat": ["f32[B, 4, 6, 6]", "f32[B, 3, 6, 6]"]}


# --- formulas -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "name", "facts"), facts_of_models(), ids=lambda x: str(x)[:20])
def test_formulas_give_the_numbers_of_the_table(file, name, facts):
    # The formula of every layer and of the total, with numbers put in, is the numeric count.
    open_model = select_net(file, name, {}, {})
    batch = {str(size).rstrip("~"): number for one, shape in sizes_of(facts, batch=3).items()
             for size, number in zip(open_model.inputs[one].shape, shape, strict=True)}
    found = formulas(open_model.graph)
    exact = summarize(select_net(file, name, {}, texts_of(facts, batch=3)).graph)
    # Where examples may end at different places there are masks too; with numbers all end alike.
    as_many = ge if any(name.endswith("~") for name in open_model.inputs) else eq
    rows = {row.path: row for row in found.layers}
    assert as_many(set(rows), {layer.path for layer in exact.layers})
    for layer in exact.layers:
        row = rows[layer.path]
        assert value(product_text(row.macs, row.shape, found.sizes), batch) == 3 * layer.macs
        assert as_many(value(product_text(row.bytes, row.shape, found.sizes), batch), layer.bytes)
    assert value(formula_text(found.total.macs, found.sizes), batch) == 3 * facts["macs"]
    assert value(formula_text(found.total.backward, found.sizes), batch) == 3 * exact.backward
    assert as_many(value(formula_text(found.total.bytes, found.sizes), batch), exact.bytes)


@pytest.mark.parametrize("height", [17, 18, 19, 20, 31, 64])
def test_formulas_hold_for_sizes_that_do_not_divide(height):
    # Rounding is part of the formula.
    body = ("x -> conv(8, kernel=7, stride=2, padding=3) -> maxpool(3, stride=2, padding=1) "
            "-> conv(4, kernel=3, stride=2) -> avgpool(2, stride=1)")
    found = formulas(model(body, "B, 3, H, W").graph)
    sizes = {"B": 2, "H": height, "W": 33}
    exact = summarize(model(body, f"2, 3, {height}, 33").graph)
    for row, layer in zip(found.layers, exact.layers, strict=True):
        assert value(product_text(row.macs, row.shape, found.sizes), sizes) == 2 * layer.macs
        assert value(product_text(row.bytes, row.shape, found.sizes), sizes) == layer.bytes
    assert value(formula_text(found.total.macs, found.sizes), sizes) == 2 * exact.macs


@pytest.mark.parametrize(("dim", "text"), [
    ("9408 * B * ((H + 1) // 2) * ((W + 1) // 2)", "9408*B*ceil(H/2)*ceil(W/2)"),
    ("W * H * B + 3 * B", "B*H*W + 3*B"), ("H * H * 2", "2*H**2"), ("H // 3 - 1", "floor(H/3) - 1"),
    ("(H + 3) // 4", "ceil(H/4)"), ("(H + 1) // 4", "floor((H + 1)/4)"), ("7", "7"),
    ("5 - H", "-H + 5"), ("H % 3", "(H % 3)"),
])
def test_formulas_are_readable(dim, text):
    # Symbols in the order of the input, rounding by name.
    assert formula_text(parse_dim(dim), ("B", "H", "W")) == text


def test_known_divisors_cancel():
    # Where the model asserts that 32 divides H, H / 32 is exact.
    height = symbol("H", multiple_of=32)
    assert formula_text(2048 * (height // 32)) == "64*H"
    assert formula_text(3 * (height // 32)) == "3*H/32"
    assert formula_text((height // 32) * (height // 32) * 64) == "H**2/16"


def test_a_layers_formula_is_a_product():
    # Valid convolutions lose a border: (H - 2) * (W - 2) says more than four terms.
    row = formulas(model("x -> conv(8, kernel=3)", "B, 3, H, W").graph).layers[0]
    assert product_text(row.macs, row.shape, ("B", "H", "W")) == "216*B*(H - 2)*(W - 2)"


ATTENTION = """model Attention {
  input x: f32[B, S, 16]
  q = x -> wq: linear(16)
  k = x -> wk: linear(16)
  share = softmax((q @ k.T) / 4, axis=-1)
  output y = share @ (x -> wv: linear(16))
}
"""


def test_what_a_model_computes_itself_counts_too():
    # The products of queries and keys are no layer: a table without them hides nine tenths of the
    # work and all memory that grows with the square of the length.
    net = lamina.loads(ATTENTION).Attention()
    net.sizes["S"] = 224
    summary = net.summary()
    own = summary.layers[-1]
    assert (own.path, own.name, own.leaf) == ("", "Attention", False)
    assert own.macs == 2 * 224 * 224 * 16
    # Three matrices [S, S] (product, quotient, softmax) and the result [S, 16]; k.T is a look.
    assert own.bytes == 4 * symbol("B") * (3 * 224 * 224 + 224 * 16)
    assert sum(row.bytes for row in summary.layers) == summary.bytes
    assert sum(row.macs for row in summary.layers) == summary.macs


def test_blocks_hold_what_they_join():
    # relu(main + skip): two results of the block's size that no layer of it owns.
    rows = {row.path: row for row in lamina.load("cifar_resnet").ResNet20().summary().layers}
    block, conv = rows["stages.0.first"], rows["stages.0.first.c1.conv"]
    assert block.bytes == 2 * conv.bytes and block.only_bytes and not conv.only_bytes


def test_a_shared_layer_holds_a_result_for_every_use():
    # Four rounds with the same weights have four results for the gradient.
    body = "x -> layers: repeat 4 shared { l: linear(16) -> tanh }"
    net = model(body, "2, 16")
    rows = {row.path: row for row in net.summary().layers}
    assert rows["layers.l"].bytes == rows["layers.tanh"].bytes == 4 * (2 * 16 * 4)
    assert rows["layers.l"].parameters == 16 * 16 + 16 and rows["layers.l"].macs == 4 * 256


def test_report_and_table_agree():
    # Two verbs with two totals would both be doubted.
    for name in ("lenet5", "resnet", "unet", "detector", "mobilenet"):
        net = lamina.load(name).model()
        sizes = {**example_sizes(net.graph, 1)}
        whole, summary = structure(net.graph, sizes).boxes[0], net.summary()
        assert whole.parameters == summary.parameters
        for figure in ("bytes", "macs", "backward"):
            assert getattr(whole, figure) == substitute(getattr(summary, figure), sizes), figure
