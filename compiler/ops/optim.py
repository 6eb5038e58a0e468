"""Update rules of optimizers, with PyTorch's formulas, written over any math namespace.

`lr` and `step` (from 1) are f32 scalars given at run time; state starts at zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lamina.compiler.ir.op import REQUIRED

Update = tuple[Any, tuple[Any, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Optimizer:
    """One update rule.

    `update(m, p, g, states, lr, step, **attrs)` gives the new parameter and the new states, in the
    order of `slots(attrs)`. `needs` names the attribute without which no state is kept.
    """

    name: str
    state: tuple[str, ...]
    update: Callable[..., Update]
    attrs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    needs: str = ""
    doc: str = ""

    def slots(self, attrs: Mapping[str, Any]) -> tuple[str, ...]:
        """The state kept for each parameter under these attributes."""
        return () if self.needs and not attrs[self.needs] else self.state


def _sgd(m, p, g, states, lr, step, *, momentum, weight_decay, nesterov) -> Update:
    if weight_decay:
        g = g + p * weight_decay
    if not momentum:
        return p - lr * g, ()
    velocity = states[0] * momentum + g
    direction = g + velocity * momentum if nesterov else velocity
    return p - lr * direction, (velocity,)


def _rest(m, beta: float, step):
    """1 - beta ** step, by expm1: exact while it is small."""
    return -m.expm1(step * math.log(beta)) if beta else 1.0


def _adam(m, p, g, states, lr, step, *, betas, eps, weight_decay) -> Update:
    if weight_decay:
        g = g + p * weight_decay
    first, second = betas
    mean = states[0] * first + g * (1 - first)
    square = states[1] * second + g * g * (1 - second)
    spread = m.sqrt(square) / _root(m, _rest(m, second, step)) + eps
    return p - lr / _rest(m, first, step) * (mean / spread), (mean, square)


def _root(m, x):
    return m.sqrt(x) if not isinstance(x, float) else math.sqrt(x)


def _adamw(m, p, g, states, lr, step, *, betas, eps, weight_decay) -> Update:
    decayed = p * (1.0 - lr * weight_decay) if weight_decay else p
    return _adam(m, decayed, g, states, lr, step, betas=betas, eps=eps, weight_decay=0)


ADAM = {"lr": REQUIRED, "betas": (0.9, 0.999), "eps": 1e-8}

OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType({rule.name: rule for rule in (
    Optimizer("sgd", ("momentum",), _sgd, needs="momentum",
              attrs=MappingProxyType({"lr": REQUIRED, "momentum": 0.0, "weight_decay": 0.0,
                                      "nesterov": False}),
              doc="Stochastic gradient descent with momentum. Polyak (1964), Nesterov (1983), "
                  "Sutskever and others (2013)."),
    Optimizer("adam", ("mean", "square"), _adam,
              attrs=MappingProxyType({**ADAM, "weight_decay": 0.0}),
              doc="Running means of gradient and square. Kingma and Ba (2014)."),
    Optimizer("adamw", ("mean", "square"), _adamw,
              attrs=MappingProxyType({**ADAM, "weight_decay": 0.01}),
              doc="Adam with weight decay apart from the gradient. Loshchilov and Hutter (2017)."),
)})


def global_norm(m, grads: Sequence[Any]):
    """The root of the sum of all squares."""
    return m.sqrt(sum((m.sum(g * g) for g in grads[1:]), start=m.sum(grads[0] * grads[0])))


def clip_by_global_norm(m, grads: Sequence[Any], limit: float) -> list[Any]:
    """Gradients scaled down so that their joint norm is at most `limit`.

    As PyTorch's clip_grad_norm_. Pascanu, Mikolov and Bengio (2013).
    """
    if not grads:
        return []
    factor = m.minimum(limit / (global_norm(m, grads) + 1e-6), 1.0)
    return [g * factor for g in grads]
