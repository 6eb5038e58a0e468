"""Update rules: PyTorch's numbers over several steps, over arrays and through a graph."""

from __future__ import annotations

import numpy as np
import pytest

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.types import TensorType
from lamina.compiler.ops import GraphMath, NumpyMath
from lamina.compiler.ops.optim import OPTIMIZERS, clip_by_global_norm, global_norm
from lamina.compiler.reference import evaluate
from lamina.tests.ops.oracle import torch

STEPS = 6
SETTINGS = [
    ("sgd", "SGD", {}), ("sgd", "SGD", {"momentum": 0.9}),
    ("sgd", "SGD", {"momentum": 0.9, "weight_decay": 0.01}),
    ("sgd", "SGD", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    ("adam", "Adam", {}), ("adam", "Adam", {"weight_decay": 0.1, "eps": 1e-3}),
    ("adam", "Adam", {"betas": (0.5, 0.9)}), ("adam", "Adam", {"betas": (0.0, 0.99)}),
    ("adamw", "AdamW", {}), ("adamw", "AdamW", {"weight_decay": 0.2, "betas": (0.8, 0.99)}),
]
RATES = [0.1, 0.05, 0.2, 0.01, 0.3, 0.1]


def _attributes(rule, given):
    return {name: given.get(name, default) for name, default in rule.attrs.items() if name != "lr"}


def _problem(dtype):
    rng = np.random.default_rng(0)
    return (rng.standard_normal((5, 3)).astype(dtype),
            rng.standard_normal((STEPS, 5, 3)).astype(dtype))


def _run(update, rule, given, dtype):
    """Every parameter value along the way."""
    attrs = _attributes(rule, given)
    p, grads = _problem(dtype)
    states = tuple(np.zeros_like(p) for _ in rule.slots(attrs))
    seen = []
    for step, (g, rate) in enumerate(zip(grads, RATES, strict=True), start=1):
        p, states = update(p, g, states, dtype(rate), dtype(step), attrs)
        assert len(states) == len(rule.slots(attrs))
        assert p.dtype == dtype
        seen.append(p)
    return seen


def over_arrays(rule):
    return lambda p, g, states, lr, step, attrs: rule.update(
        NumpyMath(), p, g, states, lr, step, **attrs)


def through_a_graph(rule):
    def update(p, g, states, lr, step, attrs):
        builder = Builder()
        m = GraphMath(builder)
        arrays = [p, g, lr, step, *states]
        xs = [m.placeholder(i, TensorType(np.shape(x), "f32")) for i, x in enumerate(arrays)]
        new, after = rule.update(m, xs[0], xs[1], tuple(xs[4:]), xs[2], xs[3], **attrs)
        outputs = [("p", new.value), *((f"s{i}", x.value) for i, x in enumerate(after))]
        results = evaluate(builder.finish(outputs), {f"x{i}": x for i, x in enumerate(arrays)}, {})
        return results["p"], tuple(results[f"s{i}"] for i in range(len(after)))

    return update


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed: nothing to compare with")
@pytest.mark.parametrize(("name", "theirs", "given"), SETTINGS)
def test_pytorch_agrees(name, theirs, given):
    rule = OPTIMIZERS[name]
    start, grads = _problem(np.float64)
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = getattr(torch.optim, theirs)([p], lr=1.0, **given)
    for g, rate, ours in zip(grads, RATES, _run(over_arrays(rule), rule, given, np.float64),
                             strict=True):
        optimizer.param_groups[0]["lr"] = rate
        p.grad = torch.from_numpy(g)
        optimizer.step()
        np.testing.assert_allclose(ours, p.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "_", "given"), SETTINGS)
def test_graph_and_arrays_agree(name, _, given):
    rule = OPTIMIZERS[name]
    ours = _run(through_a_graph(rule), rule, given, np.float32)
    exact = _run(over_arrays(rule), rule, given, np.float64)
    for got, expected in zip(ours, exact, strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)


def test_bias_correction_is_exact_in_float32():
    """1 - 0.999 ** step by subtraction would lose three digits at the first step."""
    rule = OPTIMIZERS["adam"]
    p, g = np.zeros(1, np.float32), np.full(1, 1e-3, np.float32)
    new, _ = rule.update(NumpyMath(), p, g, (p, p), np.float32(1), np.float32(1),
                         betas=(0.9, 0.999), eps=0.0, weight_decay=0)
    np.testing.assert_allclose(new, -1, rtol=3e-7)


def test_records_are_complete():
    for name, rule in OPTIMIZERS.items():
        assert rule.name == name
        assert rule.doc
        assert "lr" in rule.attrs
        assert not rule.needs or rule.needs in rule.attrs


def test_plain_descent_keeps_no_state():
    attrs = _attributes(OPTIMIZERS["sgd"], {})
    assert OPTIMIZERS["sgd"].slots(attrs) == ()
    assert OPTIMIZERS["sgd"].slots({**attrs, "momentum": 0.9}) == ("momentum",)


@pytest.mark.parametrize("limit", [0.1, 100.0])
def test_clipping(limit):
    rng = np.random.default_rng(1)
    grads = [rng.standard_normal(shape) for shape in ((3, 4), (5,), ())]
    clipped = clip_by_global_norm(NumpyMath(), grads, limit)
    norm = np.sqrt(sum(np.sum(g * g) for g in grads))
    np.testing.assert_allclose(global_norm(NumpyMath(), grads), norm)
    for got, g in zip(clipped, grads, strict=True):
        np.testing.assert_allclose(got, g * min(1, limit / (norm + 1e-6)))
    assert clip_by_global_norm(NumpyMath(), [], limit) == []


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed: nothing to compare with")
def test_clipping_is_pytorchs():
    grads = [np.array([3.0, 4.0]), np.array([[12.0]])]
    ps = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads]
    for p, g in zip(ps, grads, strict=True):
        p.grad = torch.from_numpy(g.copy())
    torch.nn.utils.clip_grad_norm_(ps, 2.0)
    for got, p in zip(clip_by_global_norm(NumpyMath(), grads, 2.0), ps, strict=True):
        np.testing.assert_allclose(got, p.grad.numpy())
