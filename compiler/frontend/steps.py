"""The step of a scan while it is being built: its states, and what stands for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from lamina.compiler.errors import Span
from lamina.compiler.frontend.context import Context
from lamina.compiler.frontend.values import Tensor
from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Value
from lamina.compiler.ir.types import TensorType
from lamina.compiler.ops.control import FREE
from lamina.compiler.ops.define import REGISTRY
from lamina.compiler.syntax import ast


@dataclass
class State:
    """A state of the cell that is being built: before the first step, before and after a step."""

    name: str
    initial: Tensor
    entry: Tensor
    body: Any  # of the cell that declares it
    statement: ast.State


@dataclass(frozen=True)
class Choice:
    """`choose(logits, gold)` at `span`: the gold token, or where it is not known the policy's."""

    logits: Tensor
    gold: Tensor
    span: Span


@dataclass
class Step:
    """The step of a scan that is being built at `path`; `given` are the values after `with`."""

    path: str
    given: Mapping[str, tuple[Tensor, Span]]
    used: set[str] = field(default_factory=set)
    states: list[State] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)

    def relative(self, path: str) -> str:
        """A path below the scan's."""
        return path.removeprefix(self.path).removeprefix(".")


def entry(ctx: Context, type: TensorType, origins: tuple = ()) -> Tensor:
    """What a step sees of something that changes from step to step."""
    attrs = {"name": f"entry{ctx.builder.count}", "shape": type.shape, "dtype": type.dtype}
    return Tensor(ctx.builder.emit(REGISTRY["entry"], (), attrs), type, origins)


def dependents(builder: Builder, values: Iterable[Value]) -> set[int]:
    """The nodes that depend on any of the values, themselves included."""
    found = {value.node for value in values}
    for key in range(min(found, default=builder.count), builder.count):
        if any(value.node in found for value in builder.node(Value(key)).inputs):
            found.add(key)
    return found


def leaves(builder: Builder, results: Iterable[Value], inside: Set[int],
           weights: Set[int] = frozenset()) -> list[Value]:
    """What a body reads that computes `results` by the nodes `inside`, in order.

    Nodes of `weights` and what is cheap enough are made within it, whatever they are made of.
    """
    found: set[Value] = set()
    todo, seen = list(results), set()
    while todo:
        value = todo.pop()
        if value in seen:
            continue
        seen.add(value)
        node = builder.node(value)
        if value.node in inside:
            todo += node.inputs
        elif value.node not in weights and node.op.name not in FREE:
            found.add(value)
    return sorted(found)
