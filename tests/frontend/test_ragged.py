"""Sizes that differ from example to example: nothing past an example's end is ever seen."""

import numpy as np
import pytest

import lamina
from lamina.compiler.errors import CompileError
from lamina.tests.frontend.test_cells import LSTM

# Expressions over x f32[B, S~, 7], k i32[B, S~] (0 to 6) and scores s [B, S~, 3].
FRAME = """model M {{
  input x: f32[B, S~, 7]
  input k: i32[B, S~]
  param w: [7, 3] = glorot()
  s = x @ w
  output y = {0}
}}
"""
PER_EXAMPLE = {
    "sum": "sum(x, axis=S)", "sum of scores": "sum(s[:, :, 0], axis=S)",
    "mean": "mean(x, axis=S)", "mean of all but the batch": "mean(x, axis=(1, 2))",
    "max": "max(x, axis=S)", "min": "min(x, axis=S)", "variance": "variance(x, axis=S)",
    "argmax": "argmax(x, axis=S)", "softmax": "softmax(x, axis=S)",
    "log_softmax": "log_softmax(s, axis=S)", "softmax of features": "softmax(x, axis=-1)",
    "layer norm": "x -> layernorm",
    "attention": "softmax(s @ (s -> transpose(perm=(0, 2, 1))), axis=2) @ x",
    "last": "x[:, -1]", "first": "x[:, 0]",
    "without the first": "x[:, 1:]", "without the last": "x[:, :-1]", "every other": "x[:, ::2]",
    "differences": "x[:, 1:] - x[:, :-1]",
    "border": "op.pad(x, lo=(0, 1, 0), hi=(0, 2, 0), value=2.0)",
    "convolution": "transpose(x, perm=(0, 2, 1)) -> conv1(4, kernel=3, padding=1)",
    "heads": "reshape(s, shape=(B, S, 3, 1)) + 1", "table": "k -> embed(7, 4)",
    "one hot": "one_hot(k, depth=9)", "joined features": "(x, s) -> concat(axis=-1)",
    "parts": "split(x, 7, axis=-1)[1]", "select": "select(x > 0, x, 0)",
    "rnn": "x -> rnn(4)", "lstm": "x -> lstm(4, layers=2, bidirectional=true)",
    "gru": "x -> gru(4, bidirectional=true)",
}
WINDOWS = {  # need three positions
    "stride": "transpose(x, perm=(0, 2, 1)) -> conv1(4, kernel=3, stride=2)",
    "largest of windows": "transpose(x, perm=(0, 2, 1)) -> max_pool1d(2, padding=1)",
    "mean of windows": "transpose(x, perm=(0, 2, 1)) -> avg_pool1d(3)",
    "last but two": "x[:, -3]", "without two": "x[:, 2:]",
}
OVER_ALL = {
    "mean": "mean(x)", "sum": "sum(x)", "max": "max(x)", "variance": "variance(x)",
    "cross_entropy": "cross_entropy(x, k, axis=-1)",
    "smoothed": "cross_entropy(x, k, axis=-1, smoothing=0.1)", "mse": "mse(x, x * 0.5)",
    "accuracy": "accuracy(x, k, axis=-1)", "top 2": "top_k_accuracy(x, k, k=2, axis=-1)",
    "binary": "binary_cross_entropy(x, sigmoid(x))",
}
LENGTHS = (5, 3, 9, 4, 33)


def examples(lengths, seed=0):
    """x and k of examples of these lengths."""
    rng = np.random.default_rng(seed)
    return ([rng.standard_normal((n, 7)).astype(np.float32) for n in lengths],
            [rng.integers(0, 7, n).astype(np.int32) for n in lengths])


def padded(rows, more):
    """The examples with room for `more` than the longest, filled with numbers that may occur."""
    rng = np.random.default_rng(9)
    shape = (len(rows), max(len(row) for row in rows) + more, *rows[0].shape[1:])
    wide = rng.integers(0, 7, shape) if rows[0].dtype == np.int32 else rng.normal(3, 3, shape)
    out = wide.astype(rows[0].dtype)
    for place, row in zip(out, rows, strict=True):
        place[:len(row)] = row
    return out


def lengths_of(rows):
    return {"S~": np.array([len(row) for row in rows])}


def within(array, shape):
    return array[tuple(slice(size) for size in shape)]


@pytest.mark.parametrize("target", ["numpy", "cpu"])
@pytest.mark.parametrize("case", [*PER_EXAMPLE, *WINDOWS])
def test_an_example_is_what_it_is_alone(case, target):
    # The meaning of `~`: as if each example were computed by itself, in a model without `~`.
    text = FRAME.format({**PER_EXAMPLE, **WINDOWS}[case])
    net, plain = lamina.loads(text).M(), lamina.loads(text.replace("~", "")).M()
    weights, alone = net.init(1), plain.compile("numpy")
    x, k = examples((*LENGTHS, 1) if case in PER_EXAMPLE else LENGTHS)
    found = net.compile(target)(weights, x=x, k=k)["y"]
    for index, (a, b) in enumerate(zip(x, k, strict=True)):
        row = found[index, ...]  # an array also where there is one number for each example
        want = alone(weights, x=a[None], k=b[None])["y"][0]
        near = 1e-5 * max(1, np.abs(want).max(initial=0))
        assert np.abs(within(row, want.shape) - want).max(initial=0) <= near
        beyond = row.copy()
        beyond[tuple(slice(size) for size in want.shape)] = 0
        assert not beyond.any(), "an output is 0 past an example's end"


@pytest.mark.parametrize("case", OVER_ALL)
def test_losses_count_what_is_there(case):
    # Means over a batch weigh every position the same, as if all examples were one long one.
    text = FRAME.format(OVER_ALL[case])
    net, plain = lamina.loads(text).M(), lamina.loads(text.replace("~", "")).M()
    x, k = examples(LENGTHS)
    found = net.compile("cpu")(net.init(1), x=x, k=k)["y"]
    want = plain.compile("numpy")(net.init(1), x=np.concatenate(x)[None],
                                  k=np.concatenate(k)[None])["y"]
    assert found == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", [*PER_EXAMPLE, *WINDOWS, *OVER_ALL])
def test_padding_changes_no_bit(case, threads):
    net = lamina.loads(FRAME.format({**OVER_ALL, **PER_EXAMPLE, **WINDOWS}[case])).M()
    run, weights = net.compile("cpu", threads=threads), net.init(1)
    x, k = examples((*LENGTHS, 300), seed=2)
    plain = run(weights, x=x, k=k)["y"]
    for more in (1, 7, 45, 600):
        found = run(weights, x=padded(x, more), k=padded(k, more), **lengths_of(x))["y"]
        np.testing.assert_array_equal(within(found, plain.shape), plain)


def test_dropout_is_the_same_however_much_is_padded():
    # Random numbers go by position: padding must not move them.
    net = lamina.loads(FRAME.format("x -> dropout(0.5)")).M()
    run, rng = net.compile("cpu", train=True), np.array([1, 2], np.int32)
    x, k = examples(LENGTHS)
    plain = run(net.init(0), x=x, k=k, rng=rng)["y"]
    found = run(net.init(0), x=padded(x, 20), k=padded(k, 20), rng=rng, **lengths_of(x))["y"]
    np.testing.assert_array_equal(within(found, plain.shape), plain)
    assert (plain == 0).mean() > 0.5


GRADIENTS = {
    "scan": ("", "h = x -> r: lstm(4, bidirectional=true)"),
    "shared cell": ("", "shared f = lstm(4)\n  h = (x -> f) + (x * 0.5 -> f)"),
    "own cell": (LSTM, "h = (x -> f: scan LSTM(4) over S reverse)"),
    "final state": (LSTM, "f = x -> f: scan LSTM(4) over S\n"
                          "  h = (f.final.h)[:, new, :] * x[:, :, :1]"),
    "attention": ("", "q = x -> q: linear(4)\n"
                  "  h = softmax(q @ (q -> transpose(perm=(0, 2, 1))), axis=2) @ q"),
    "memory": ("""cell Reader(size: int) {
  input x: [B, D]
  memory text: [B, S~, E]
  state h: [B, size] = 0
  share = softmax(sum((text -> key: linear(size)) * prev.h[:, new, :], axis=-1), axis=S)
  h = tanh((x, sum(share[:, :, new] * text, axis=S)) -> concat(axis=-1) -> mix: linear(size))
  output h
}
""", "h = x -> read: scan Reader(4) over S with (text = x)"),
    "convolution": ("", "h = transpose(x, perm=(0, 2, 1)) -> c: conv1(4, kernel=3, padding=1) "
                        "-> transpose(perm=(0, 2, 1))"),
    "max": ("", "h = max(x -> q: linear(4), axis=S)[:, new, :] + x[:, :, :1]"),
    "mean": ("", "h = mean(x -> q: linear(4), axis=S)[:, new, :] * x[:, :, :1]"),
}


@pytest.mark.parametrize("target", ["numpy", "cpu"])
@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_are_the_sum_of_those_of_each_example_alone(case, target):
    # Combinations with ~: scans both ways, sharing, final states, attention over a memory.
    above, body = GRADIENTS[case]
    text = above + ("model M {\n  input x: f32[B, S~, 7]\n  " + body + "\n  output h\n}\n")
    net, plain = lamina.loads(text).model("M"), lamina.loads(text.replace("~", "")).model("M")
    x, _ = examples((5, 1, 9, 0, 3), seed=3)
    loss, weights = "sum(h * h * h)", net.init(2)
    value, grads = net.value_and_grad(loss, target=target)(weights, x=x)
    alone = plain.value_and_grad(loss, target="numpy")
    parts = [alone(weights, x=one[None]) for one in x if len(one)]
    assert value == pytest.approx(sum(float(part[0]) for part in parts), rel=1e-4)
    for key, grad in grads.items():
        want = sum(part[1][key] for part in parts)
        assert np.abs(grad - want).max() <= 2e-5 * max(1, np.abs(want).max()), key


@pytest.mark.parametrize("lengths", [(0, 0), (0, 4), (1, 1), (6, 6), (5000, 2)])
def test_all_lengths(lengths):
    # None at all, of one position, of one length, and very long beside very short ones.
    net = lamina.loads(FRAME.format("mean(x -> gru(3), axis=S)")).M()
    x, k = examples(lengths)
    weights = net.init(0)
    results = [net.compile(target)(weights, x=x, k=k)["y"] for target in ("numpy", "cpu")]
    for row, one, other in zip(lengths, *results, strict=True):
        assert np.abs(one - other).max() < 1e-5
        assert one.any() == (row > 0), "the mean of nothing is 0"


def test_lengths_of_an_example():
    net = lamina.loads(FRAME.format("sum(x, axis=S) / cast(lengths(S), dtype=\"f32\")[:, new]")).M()
    x, k = examples(LENGTHS)
    found = net.compile()(net.init(0), x=x, k=k)["y"]
    np.testing.assert_allclose(found, [row.mean(0) for row in x], atol=1e-5)


def test_an_array_without_lengths_counts_as_a_whole():
    net = lamina.loads(FRAME.format("mean(x, axis=S)")).M()
    x = np.ones((2, 6, 7), np.float32)
    assert (net.compile()(net.init(0), x=x, k=np.ones((2, 6), int))["y"] == 1).all()


@pytest.mark.parametrize("given, message", [
    ({"S~": np.array([3, 8])}, "input 'x' holds 6 positions; a length of 8 is outside 0 to 6"),
    ({"S~": np.array([3, -1])}, "a length of -1 is outside 0 to 6"),
    ({"S~": np.array([3.0, 1.0])}, "the lengths S~ are whole numbers"),
    ({"x": [np.ones((2, 7), np.float32)] * 2, "k": [np.ones(3, int)] * 2},
     "share the size S~, but their lengths differ: [2, 2] and [3, 3]"),
    ({"x": [np.ones(7, np.float32)] * 2}, "every example of input 'x' has 2 axes"),
])
def test_lengths_that_cannot_be(given, message):
    net = lamina.loads(FRAME.format("mean(x, axis=S)")).M()
    plain = {"x": np.ones((2, 6, 7), np.float32), "k": np.ones((2, 6), int)}
    with pytest.raises(ValueError) as error:
        net.compile("numpy")(net.init(0), **{**plain, **given})
    assert message in str(error.value)


@pytest.mark.parametrize("expression, message", [
    ("op.reverse(x, axes=(1,))", "`reverse` cannot work along S~"),
    ("(x, x) -> concat(axis=1)", "`concat` cannot work along S~"),
    ("x -> flatten", "`flatten` cannot work along S~"),
    ("reshape(x, shape=(B * S, 7))", "without the axis of the examples"),
    ("sum(x, axis=0)", "without the axis of the examples `S~` means nothing"),
    ("x[0]", "without the axis of the examples `S~` means nothing"),
    ("x[:, -3:]", "take one position from the end"),
    ("take(x, k)", "a table has the same rows for all examples"),
    ("x * S", "the size S~ differs from example to example, and is no number"),
    ("sum(iota(shape=(S, 7), axis=0, dtype=\"f32\"), axis=0)", "[S~, 7] has no axis B"),
    ("lengths(B)", "`lengths` takes a size that differs from example to example"),
])
def test_what_has_no_rule_is_refused(expression, message):
    # Better no result than one that depends on padding.
    with pytest.raises(CompileError) as error:
        lamina.loads(FRAME.format(expression)).M().init(0)
    assert error.value.diagnostics[0].code == "E418"
    assert message in error.value.diagnostics[0].message + error.value.diagnostics[0].help


@pytest.mark.parametrize("declared, message", [
    ("input x: f32[S~, B, 7]", "the first axis of [S~, B, 7] counts the examples"),
    ("input a: f32[B, S]\n  input x: f32[B, S~, 7]", "`S~` differs from example to example"),
])
def test_declarations_that_cannot_be(declared, message):
    with pytest.raises(CompileError) as error:
        lamina.loads(f"model M {{\n  {declared}\n  output y = x * 2\n}}\n").M().init(0)
    assert message in error.value.diagnostics[0].message


def test_a_state_needs_the_axis_of_the_examples():
    text = """cell Count() {
  input x: [B, D]
  state n: [1] = 0
  n = prev.n + 1
  output y = x * n
}
model M {
  input x: f32[B, S~, 7]
  output y = x -> scan Count() over S
}
"""
    with pytest.raises(CompileError) as error:
        lamina.loads(text).M().init(0)
    assert error.value.diagnostics[0].code == "E418"
    assert "the state `n` is [1]" in error.value.diagnostics[0].message
