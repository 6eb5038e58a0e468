"""Numbers: what built graphs compute, by the reference interpreter, against NumPy."""

import numpy as np
import pytest

from lamina.tests.frontend.building import compute, made, model, weights

X = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)


def test_residual():
    """y = x + F(x)."""
    built = made(model("output y = x + (x -> up: linear(16) -> tanh -> down: linear(8))"))
    p = weights(built)
    hidden = np.tanh(X @ p["up.weight"].T + p["up.bias"])
    expected = X + hidden @ p["down.weight"].T + p["down.bias"]
    np.testing.assert_allclose(compute(built, p, x=X)["y"], expected, rtol=1e-5)


def test_shared_weights_used_twice():
    """One matrix, applied twice, and used as a matrix again."""
    built = made(model("shared f = linear(8, bias=false)\n output y = (x -> f -> f) @ f.weight.T"))
    w = weights(built)["f.weight"]
    expected = X @ w.T @ w.T @ w.T
    np.testing.assert_allclose(compute(built, {"f.weight": w}, x=X)["y"], expected, rtol=1e-4)


def test_repeat_shared_and_apart():
    """Three rounds with one matrix, or with three."""
    one = made(model("output y = x -> r: repeat 3 shared { linear(8, bias=false) }"))
    many = made(model("output y = x -> r: repeat 3 { linear(8, bias=false) }"))
    (w,) = weights(one).values()
    expected = X @ w.T @ w.T @ w.T
    same = dict.fromkeys(many.graph.params, w)
    for built, p in ((one, weights(one)), (many, same)):
        np.testing.assert_allclose(compute(built, p, x=X)["y"], expected, rtol=1e-4)


def test_pipes_expressions_and_cuts():
    """Precedence, `_`, several piped values, slices and split."""
    body = """
  a, b = split(x, 2, axis=-1)
  c = (a, b) -> concat(axis=0)
  d = 2 * a - b ** 2 / 4 + -b
  e = x -> relu(_ - 1) * 2 if true else x
  output y = c, z = d, v = x[1:, ::-1 * -1][:, -3], w = (a, b) -> _[0] + _[1]
"""
    body = body.replace("e = x -> relu(_ - 1) * 2 if true else x\n", "")
    body = body.replace(", w = (a, b) -> _[0] + _[1]", ", w = (a, b) -> add")
    found = compute(made(model(body)), {}, x=X)
    a, b = X[:, :4], X[:, 4:]
    np.testing.assert_allclose(found["y"], np.concatenate([a, b]))
    np.testing.assert_allclose(found["z"], 2 * a - b**2 / 4 - b, rtol=1e-5)
    np.testing.assert_allclose(found["v"], X[1:, -3])
    np.testing.assert_allclose(found["w"], a + b)


@pytest.mark.parametrize("momentum", [0.1, 0.25])
def test_batchnorm(momentum):
    """Training uses the batch and updates the running values; evaluation uses these."""
    image = np.random.default_rng(2).normal(size=(4, 3, 5, 5)).astype(np.float32)
    text = model(f"output y = x -> bn: batchnorm(momentum={momentum})",
                 input="input x: f32[B, 3, H, W]")
    built = made(text, training=True)
    p = weights(built)
    found = compute(built, p, x=image)
    mean, var = image.mean((0, 2, 3)), image.var((0, 2, 3))
    column = (slice(None), None, None)
    normal = (image - mean[column]) / np.sqrt(var[column] + 1e-5)
    expected = normal * p["bn.weight"][column] + p["bn.bias"][column]
    np.testing.assert_allclose(found["y"], expected, rtol=1e-4, atol=1e-5)
    running = (1 - momentum) * p["bn.running_mean"] + momentum * mean
    np.testing.assert_allclose(found["update:bn.running_mean"], running, rtol=1e-4, atol=1e-5)
    unbiased = var * 100 / 99
    running = (1 - momentum) * p["bn.running_var"] + momentum * unbiased
    np.testing.assert_allclose(found["update:bn.running_var"], running, rtol=1e-4)
    calm = made(text)
    assert [name for name, _ in calm.graph.outputs] == ["y"]
    normal = (image - p["bn.running_mean"][column]) / np.sqrt(p["bn.running_var"][column] + 1e-5)
    expected = normal * p["bn.weight"][column] + p["bn.bias"][column]
    np.testing.assert_allclose(compute(calm, p, x=image)["y"], expected, rtol=1e-4, atol=1e-5)


def test_normalisation_of_vectors():
    """Batch-norm of [B, C], as after a linear layer."""
    built = made(model("output y = x -> batchnorm1"), training=True)
    p = weights(built)
    found = compute(built, p, x=X)["y"]
    expected = (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5)
    expected = expected * p["batchnorm1.weight"] + p["batchnorm1.bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# Names, shapes and order of parameters as in PyTorch, so that its checkpoints load unchanged.
TORCH = {
    "linear(5)": ("B, 8", {"weight": (5, 8), "bias": (5,)}),
    "embed(9, 5)": ("B", {"weight": (9, 5)}),
    "conv(6, kernel=(3, 5), groups=2)": ("B, 4, 9, 9", {"weight": (6, 2, 3, 5), "bias": (6,)}),
    "conv1(6, kernel=3)": ("B, 4, 9", {"weight": (6, 4, 3), "bias": (6,)}),
    "batchnorm": ("B, 4, 9, 9", {"weight": (4,), "bias": (4,), "running_mean": (4,),
                                 "running_var": (4,)}),
    "layernorm": ("B, 4, 8", {"weight": (8,), "bias": (8,)}),
}  # fmt: skip


@pytest.mark.parametrize("layer", TORCH)
def test_parameters_are_those_of_pytorch(layer):
    """Written out, so that the promise holds without PyTorch installed."""
    shape, expected = TORCH[layer]
    dtype = "i32" if layer.startswith("embed") else "f32"
    graph = made(model(f"output y = x -> l: {layer}", input=f"input x: {dtype}[{shape}]")).graph
    assert {k: graph.type(v).shape for k, v in graph.params.items()} == {
        f"l.{name}": sizes for name, sizes in expected.items()}
