"""Every record is complete, and every bad sample gets its code."""

from __future__ import annotations

import re

import pytest

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.op import KINDS, OpError
from lamina.compiler.ir.types import TensorType, symbol
from lamina.compiler.ops import OPS, GraphMath
from lamina.tests.ops.samples import COUNT, parse, samples

# Operators without samples, and why.
NO_SAMPLES = {
    "input": "a source: its value is given", "param": "a source: its value is given",
    "const": "a source: its value is an attribute", "fused": "carries a body made by fusion",
    "entry": "stands for a step's operand while a cell is built; never computed",
    "scan": "carries a body made by the language",
}
# Operators without PyTorch's opinion, and why.
NO_TORCH = {
    **NO_SAMPLES, "uniform": "the bits are our own: test_random",
    "dropout": "the bits are our own: test_random",
    "channel_dropout": "the bits are our own: test_random",
    "again": "hands its operand on",
}
FEW = {"iota": 30, "uniform": 30}  # operators with fewer free sizes

BAD = [(op, code, text) for op in OPS.values() for code, text in op.bad.items()]


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_record_is_complete(op):
    assert op.kind in KINDS
    assert op.doc, "says what it computes"
    assert op.samples or op.name in NO_SAMPLES
    assert op.torch or op.name in NO_TORCH
    assert (op.body is not None) == (op.kind == "composite")
    assert op.scalar or op.kind != "elementwise"
    assert op.macs or op.kind != "contract"
    assert all(parse(text) for text in op.samples)


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.samples], ids=str)
def test_enough_samples(op):
    shapes = {str(sample) for sample in samples(op)}
    assert len(shapes) >= FEW.get(op.name, COUNT)


def _emit(op, sample):
    builder = Builder()
    m = GraphMath(builder)
    operands = [m.placeholder(index, type).value for index, type in enumerate(sample.types)]
    return builder.emit(op, operands, dict(sample.given))


@pytest.mark.parametrize(("op", "code", "text"), BAD, ids=[f"{op.name}-{c}" for op, c, _ in BAD])
def test_bad_sample_gives_its_code(op, code, text):
    with pytest.raises(OpError) as caught:
        _emit(op, parse(text))
    assert caught.value.code == code
    message = caught.value.message
    assert len(message) > 20
    assert not message.endswith(".")
    assert "\n" not in message
    assert all(0 <= index < len(parse(text).operands) for index in caught.value.operands)


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.samples], ids=str)
def test_wrong_attributes_and_counts_are_refused(op):
    sample = parse(op.samples[0])
    builder = Builder()
    m = GraphMath(builder)
    operands = [m.placeholder(index, type).value for index, type in enumerate(sample.types)]
    with pytest.raises(OpError) as caught:
        builder.emit(op, operands, {**dict(sample.given), "nonsense": 1})
    assert caught.value.code == "E202"
    if op.arity[1] >= 0:
        with pytest.raises(OpError) as caught:
            builder.emit(op, [*operands, m.lift(1.0).value], dict(sample.given))
        assert caught.value.code == "E201"


NONSENSE = (None, "x", 1.5, True, -1, 0, 7, (), (1,), (-1,), ("a",), ((1,),), (None, None), (1, 2),
            (0, 0), (1.5, 2), 10**12, (10**9, 10**9), float("nan"), float("inf"), "f32")


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.samples and op.attrs], ids=str)
def test_nonsense_attributes_are_refused(op):
    """Whatever a model file says, an operator answers with a type or an OpError."""
    sample = parse(op.samples[0])
    for name in op.attrs:
        for value in NONSENSE:
            try:
                builder = Builder()
                m = GraphMath(builder)
                operands = [m.placeholder(i, type).value for i, type in enumerate(sample.types)]
                found = builder.emit(op, operands, {**dict(sample.given), name: value})
            except OpError as error:
                assert len(error.message) > 20
            else:
                assert all(size >= 0 for size in builder.type(found).shape), (name, value)


@pytest.mark.parametrize(("name", "attrs", "text"), [
    ("softmax", {"axis": "x"}, "E206 `softmax`: axis is 'x', not an axis or a list of axes"),
    ("argmax", {"axis": None}, "E211 `argmax` takes one axis, not None"),
    ("cast", {"dtype": "f16"}, "E206 `cast`: dtype is 'f16', not one of f32, f64, i32, i64, bool"),
    ("broadcast_to", {"shape": (2, -1)},
     "E207 `broadcast_to` would give f32[2, -1]: a size of -1"),
    ("part", {"index": 2, "parts": 2}, "E218 `split`: there is no part 2 of 2"),
])
def test_attribute_messages(name, attrs, text):
    builder = Builder()
    x = GraphMath(builder).placeholder(0, TensorType((2, 1)))
    with pytest.raises(OpError) as caught:
        builder.emit(OPS[name], [x.value], attrs)
    assert f"{caught.value.code} {caught.value.message}" == text


def _refusal(name, *shapes, **attrs):
    types = [TensorType(shape) for shape in shapes]
    with pytest.raises(OpError) as caught:
        OPS[name].infer(*types, **{**OPS[name].attrs, **attrs})
    return f"{caught.value.code} {caught.value.message}"


B, H = symbol("B"), symbol("H")


@pytest.mark.parametrize(("got", "text"), [
    (_refusal("matmul", (B, 784), (512, 10)),
     "E220 cannot multiply [B, 784] by [512, 10]: the inner sizes 784 and 512 differ"),
    (_refusal("conv2d", (B, 3, H, H), (64, 4, 3, 3)),
     "E221 `conv2d`: the input has 3 channels, the weight [64, 4, 3, 3] expects 4"),
    (_refusal("conv2d", (B, 8, H, H), (64, 1, 3, 3), groups=4),
     "E221 `conv2d`: the input has 8 channels, the weight [64, 1, 3, 3] expects 4 "
     "(1 in each of 4 groups)"),
    (_refusal("conv2d", (B, 6, H, H), (64, 3, 3, 3), groups=4),
     "E222 `conv2d`: 4 groups do not divide the 6 input channels"),
    (_refusal("conv2d", (B, 4, 8, 2), (64, 4, 3, 3)),
     "E223 `conv2d`: a kernel of 3 is larger than the padded input: "
     "(in - kernel + 2 padding) / stride + 1 = (2 - 3 + 2 * 0) / 1 + 1 is less than 1"),
    (_refusal("conv2d", (B, 4, 5, 9), (64, 4, 3, 3), dilation=3, padding=((0, 1), (0, 0))),
     "E223 `conv2d`: a kernel of 3 (with dilation 3 it covers 7) is larger than the padded input: "
     "(in - kernel + 2 padding) / stride + 1 = (5 - 7 + 0 + 1) / 1 + 1 is less than 1"),
    (_refusal("max_pool2d", (B, 4, 5, 9), kernel=2, stride=0),
     "E224 `max_pool2d`: stride is 0, less than 1"),
    (_refusal("cross_entropy", (B, 10), (B,)), "E204 `cross_entropy`: labels of type f32"),
])
def test_messages(got, text):
    assert got == text


def test_codes_are_in_the_operators_range():
    assert all(re.fullmatch(r"E2\d\d", code) for op in OPS.values() for code in op.bad)


def test_symbolic_sizes():
    conv = OPS["conv2d"]
    out = conv.infer(TensorType((B, 3, H, H)), TensorType((8, 3, 3, 3)),
                     **{**conv.attrs, "stride": 2, "padding": 1})
    assert str(out) == "f32[B, 8, (H + 1) // 2, (H + 1) // 2]"
    twice = conv.infer(TensorType((B, 3, out.shape[2], 7)), TensorType((8, 3, 3, 3)),
                       **{**conv.attrs, "stride": 2, "padding": 1})
    assert twice.shape[2] == (H - 1) // 4 + 1
