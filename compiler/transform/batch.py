"""Operators over all steps at once: what a step computes, with a leading axis for the steps.

A rule gets operands of which some are stacked [length, ...] and the others the same at every step,
and gives the stacked result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lamina.compiler.ir.graph import Node
from lamina.compiler.ir.types import Dim, product
from lamina.compiler.ops.define import GraphMath, Var, normalize_axes


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand outside of the loop; `stacked` with an entry for every step."""

    var: Var
    stacked: bool


Rule = Callable[[GraphMath, Node, Sequence[Operand], Dim], Var]


def batch(m: GraphMath, node: Node, operands: Sequence[Operand], length: Dim) -> Var:
    """The node's result for all steps, [length, ...]."""
    return rule_of(node)(m, node, operands, length)  # type: ignore[misc]


def can_batch(node: Node, stacked: Sequence[bool]) -> bool:
    """Whether there is a rule for a node of which these operands differ from step to step."""
    if node.op.name == "take":
        return not stacked[0]
    return rule_of(node) is not None


def rule_of(node: Node) -> Rule | None:
    """The rule of a node's operator."""
    return _elementwise if node.op.kind == "elementwise" else RULES.get(node.op.name)


def _elementwise(m: GraphMath, node: Node, operands: Sequence[Operand], length: Dim) -> Var:
    rank = node.type.rank
    return m.apply(node.op, tuple(_ranked(m, x, rank) for x in operands), node.attributes)


def _ranked(m: GraphMath, x: Operand, rank: int) -> Var:
    """A stacked operand with axes of size 1 before its own, up to `rank` of them."""
    shape = x.var.shape
    if not x.stacked or len(shape) == rank + 1:
        return x.var
    return m.reshape(x.var, shape=(shape[0], *(1,) * (rank + 1 - len(shape)), *shape[1:]))


def _first(x: Sequence[Operand]) -> Var:
    return x[0].var


def _reduce(m: GraphMath, node: Node, operands: Sequence[Operand], length: Dim) -> Var:
    axes = tuple(axis + 1 for axis in node.attributes["axes"])
    return m.apply(node.op, (_first(operands),), {**node.attributes, "axes": axes})


def _reshape(m: GraphMath, node: Node, operands: Sequence[Operand], length: Dim) -> Var:
    return m.reshape(_first(operands), shape=(length, *node.type.shape))


def _transpose(m: GraphMath, node: Node, operands: Sequence[Operand], length: Dim) -> Var:
    perm = (0, *(axis + 1 for axis in node.attributes["perm"]))
    return m.transpose(_first(operands), perm=perm)


def _broadcast(m: GraphMath, node: Node, operands: Sequence[Operand], length: Dim) -> Var:
    x = _ranked(m, operands[0], node.type.rank)
    return m.broadcast_to(x, shape=(length, *node.type.shape))


def _slice(m: GraphMath, node: Node, operands: Sequence[Operand], length: Dim) -> Var:
    a = node.attributes
    return m.slice(_first(operands), starts=(0, *a["starts"]), stops=(length, *a["stops"]),
                   steps=(1, *a["steps"]))


def _pad(m: GraphMath, node: Node, operands: Sequence[Operand], length: Dim) -> Var:
    a = node.attributes
    between = (0, *a["interior"]) if a["interior"] else a["interior"]
    return m.pad(_first(operands), lo=(0, *a["lo"]), hi=(0, *a["hi"]), interior=between,
                 value=a["value"])


def _reverse(m: GraphMath, node: Node, operands: Sequence[Operand], length: Dim) -> Var:
    axes = normalize_axes("reverse", node.attributes["axes"], node.type.rank)
    return m.reverse(_first(operands), axes=tuple(axis + 1 for axis in axes))


def _concat(m: GraphMath, node: Node, operands: Sequence[Operand], length: Dim) -> Var:
    (axis,) = normalize_axes("concat", node.attributes["axis"], node.type.rank)
    return m.concat(*(every_step(m, x, length) for x in operands), axis=axis + 1)


def every_step(m: GraphMath, x: Operand, length: Dim) -> Var:
    """The operand stacked, repeated if it is the same at every step."""
    return x.var if x.stacked else m.broadcast_to(x.var, shape=(length, *x.var.shape))


def _matmul(m: GraphMath, node: Node, operands: Sequence[Operand], length: Dim) -> Var:
    rank = node.type.rank
    a, b = operands
    return m.matmul(_matrix(m, a, rank), _matrix(m, b, rank))


def _matrix(m: GraphMath, x: Operand, rank: int) -> Var:
    """Stacked matrices, with the step before the axes that are broadcast."""
    return _ranked(m, x, rank) if x.stacked else x.var


def _take(m: GraphMath, node: Node, operands: Sequence[Operand], length: Dim) -> Var:
    return m.take(operands[0].var, operands[1].var)


RULES: dict[str, Rule] = {
    "reduce_sum": _reduce, "reduce_max": _reduce, "reduce_min": _reduce, "reshape": _reshape,
    "transpose": _transpose, "broadcast_to": _broadcast, "slice": _slice, "pad": _pad,
    "reverse": _reverse, "concat": _concat, "matmul": _matmul, "take": _take,
}


# --- sums over all steps ------------------------------------------------------------------------


def merged_product(m: GraphMath, a: Var, b: Var) -> Var:
    """The sum over all steps of a [length, M, K] @ b [length, K, N]: one product over both."""
    left = m.transpose(a, perm=(1, 0, 2))
    inner = product(left.shape[1:])
    return m.matmul(m.reshape(left, shape=(left.shape[0], inner)),
                    m.reshape(b, shape=(inner, b.shape[2])))
