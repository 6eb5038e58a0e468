"""A training step as one graph: forward, loss, backward and the optimizer's update."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Value
from lamina.compiler.ir.rewrite import copy_into
from lamina.compiler.ops.define import GraphMath, Var
from lamina.compiler.ops.optim import OPTIMIZERS, clip_by_global_norm
from lamina.compiler.transform.autodiff import add_gradients

STATE = "optimizer/"  # keys of optimizer state begin so
UPDATE = "update:"
DERIVED = (UPDATE, "grad:")  # outputs of the backward pass begin so
OPTIMIZER = "optimizer"  # the path of the nodes that replace parameters


@dataclass(frozen=True, slots=True)
class Rule:
    """An optimizer and its settings; `clip` limits the joint norm of all gradients (0: no)."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    clip: float = 0.0


def trainable(graph: Graph) -> list[str]:
    """The keys of parameters that are trained, in order."""
    return [key for key, value in graph.params.items()
            if graph.node(value).attributes["trainable"]]


def state_keys(graph: Graph) -> list[str]:
    """The keys of optimizer state in a training step."""
    return [key for key in graph.params if key.startswith(STATE)]


def training_step(graph: Graph, rule: Rule, frozen: Collection[str] = ()) -> Graph:
    """Add gradients and updates to a graph with an output "loss".

    New scalar inputs: lr and step (from 1). Outputs: "loss", metrics, and an `update:KEY` for
    every parameter that is not `frozen`, its optimizer state, and running statistics.
    """
    keys = [key for key in trainable(graph) if key not in frozen]
    with_gradients = add_gradients(graph, "loss", {key: graph.params[key] for key in keys})
    builder = Builder(graph.name)
    values = copy_into(builder, with_gradients)
    m = GraphMath(builder)
    outputs = [(name, values[value]) for name, value in with_gradients.outputs
               if not name.startswith("grad:")
               and (name == "loss" or name.startswith(("metric:", UPDATE)))]
    with builder.at(None, OPTIMIZER):
        outputs += _updates(m, with_gradients, values, keys, rule)
    return builder.finish(outputs)


def _updates(m: GraphMath, graph: Graph, values: Mapping[Value, Value], keys: list[str],
             rule: Rule) -> list[tuple[str, Value]]:
    optimizer = OPTIMIZERS[rule.name]
    settings = {name: rule.settings.get(name, default)
                for name, default in optimizer.attrs.items() if name != "lr"}
    lr = m.input(name="lr", shape=())
    step = m.input(name="step", shape=())
    grads = [Var(m, values[graph.output(f"grad:{key}")]) for key in keys]
    if rule.clip:
        grads = clip_by_global_norm(m, grads, rule.clip)
    outputs = []
    for key, grad in zip(keys, grads, strict=True):
        param = Var(m, values[graph.params[key]])
        names = [f"{STATE}{key}.{slot}" for slot in optimizer.slots(settings)]
        states = tuple(m.param(key=name, shape=param.shape, trainable=False) for name in names)
        new, new_states = optimizer.update(m, param, grad, states, lr, step, **settings)
        outputs.append((UPDATE + key, new.value))
        outputs += [(UPDATE + name, state.value)
                    for name, state in zip(names, new_states, strict=True)]
    return outputs
