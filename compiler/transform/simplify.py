"""Algebraic simplification: one rule a function, tried on every node until none applies.

A rule gets the builder, the node and its new operands; it returns the replacing value, or None.
"""

from __future__ import annotations

from collections.abc import Callable

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.rewrite import rewrite
from lamina.compiler.ir.types import Dim
from lamina.compiler.ops.define import GraphMath, Var

TERMS = 64  # of a sum that is looked at for parts of one value

Rule = Callable[[GraphMath, Node, tuple[Var, ...]], Var | None]


def simplify(graph: Graph) -> Graph:
    """Apply all rules until nothing changes."""
    while (simpler := rewrite(graph, _apply_rules)) is not graph:
        graph = simpler
    return graph


def _apply_rules(builder: Builder, node: Node, inputs: tuple[Value, ...]):
    m = GraphMath(builder)
    operands = tuple(Var(m, value) for value in inputs)
    for rule in RULES.get(node.op.name, ()):
        found = rule(m, node, operands)
        if found is not None and found.type == node.type:
            return (found.value,)
    return None


def _constant(x: Var) -> float | None:
    """The number that `x` is everywhere, looking through broadcasts and reshapes."""
    node = x.m.builder.node(x.value)
    while node.op.name in ("broadcast_to", "reshape"):
        node = x.m.builder.node(node.inputs[0])
    value = node.attributes["value"] if node.op.name == "const" else None
    return value if isinstance(value, (int, float, bool)) else None


def _producer(x: Var, name: str) -> Node | None:
    node = x.m.builder.node(x.value)
    return node if node.op.name == name else None


def _operand(x: Var, node: Node, index: int = 0) -> Var:
    return Var(x.m, node.inputs[index])


def _fit(x: Var, node: Node) -> Var | None:
    """`x`, repeated to the shape of `node` where it is smaller; None if the types differ."""
    if x.dtype != node.type.dtype:
        return None
    if x.shape == node.type.shape:
        return x
    return x.m.broadcast_to(x, shape=node.type.shape)


def add_zero(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """x + 0 = 0 + x = x."""
    if _constant(xs[1]) == 0:
        return _fit(xs[0], node)
    return _fit(xs[1], node) if _constant(xs[0]) == 0 else None


def add_parts(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """A sum of values between borders of zeros that fill an axis is their concatenation.

    So comes the gradient of what was split back together.
    """
    terms = _terms(m, node, xs)
    padded = [(x, pad) for x in terms if (pad := _producer(x, "pad"))
              and pad.attributes["value"] == 0 and not any(pad.attributes["interior"])]
    for axis in range(node.type.rank):
        parts: list[tuple[Var, Var]] = []
        place: Dim = 0
        while place != node.type.shape[axis]:
            following = [(x, _operand(x, pad)) for x, pad in padded
                         if _only_along(pad, axis) and pad.attributes["lo"][axis] == place]
            if not following or following[0][1].shape[axis] == 0:
                break
            parts.append(following[0])
            place = place + following[0][1].shape[axis]
        if len(parts) > 1 and place == node.type.shape[axis]:
            whole = m.concat(*(part for _, part in parts), axis=axis)
            used = [x.value for x, _ in parts]
            for x in terms:
                if x.value in used:
                    used.remove(x.value)
                else:
                    whole = whole + x
            return whole
    return None


def _terms(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> list[Var]:
    """What a tree of additions of one shape adds up."""
    found: list[Var] = []
    open = list(reversed(xs))
    while open and len(found) + len(open) <= TERMS:
        x = open.pop()
        inner = _producer(x, "add")
        if inner is not None and inner.type == node.type:
            open += [_operand(x, inner, 1), _operand(x, inner, 0)]
        elif x.type == node.type:
            found.append(x)
        else:
            return []
    return [] if open else found


def _only_along(pad: Node, axis: int) -> bool:
    return all(low == high == 0 for other, (low, high) in
               enumerate(zip(pad.attributes["lo"], pad.attributes["hi"], strict=True))
               if other != axis)


def subtract_zero(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """x - 0 = x."""
    return _fit(xs[0], node) if _constant(xs[1]) == 0 else None


def multiply_one(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """x * 1 = 1 * x = x."""
    if _constant(xs[1]) == 1:
        return _fit(xs[0], node)
    return _fit(xs[1], node) if _constant(xs[0]) == 1 else None


def divide_one(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """x / 1 = x."""
    return _fit(xs[0], node) if _constant(xs[1]) == 1 else None


def negate_twice(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """-(-x) = x."""
    inner = _producer(xs[0], "neg")
    return _operand(xs[0], inner) if inner else None


def drop_broadcast_operand(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """Elementwise operators broadcast by themselves: feed them the small operand."""
    for index, x in enumerate(xs):
        inner = _producer(x, "broadcast_to")
        if inner is None:
            continue
        smaller = (*xs[:index], _operand(x, inner), *xs[index + 1:])
        if _broadcast_shape(smaller) == node.type.shape:
            return m.apply(node.op, smaller, node.attributes)
    return None


def _broadcast_shape(xs: tuple[Var, ...]):
    rank = max(len(x.shape) for x in xs)
    shape: list[Dim] = [1] * rank
    for x in xs:
        for offset, dim in enumerate(reversed(x.shape), start=1):
            shape[rank - offset] = dim if shape[rank - offset] == 1 else shape[rank - offset]
    return tuple(shape)


def same_shape(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """A reshape, broadcast, cut or border that changes nothing."""
    return xs[0] if xs[0].type == node.type else None


def pad_nothing(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """A border of no width."""
    attrs = node.attributes
    amounts = (*attrs["lo"], *attrs["hi"], *attrs["interior"])
    return None if any(amount != 0 for amount in amounts) else xs[0]


def identity_transpose(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """Axes left in place."""
    perm = node.attributes["perm"]
    return xs[0] if perm == tuple(range(len(perm))) else None


def transpose_twice(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """Two transposes are one."""
    inner = _producer(xs[0], "transpose")
    if inner is None:
        return None
    first = inner.attributes["perm"]
    return m.transpose(_operand(xs[0], inner),
                       perm=tuple(first[axis] for axis in node.attributes["perm"]))


def transpose_of_product(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """(A B)^T = B^T A^T: a product is laid out as it is wanted, operands are read either way."""
    inner = _producer(xs[0], "matmul")
    if inner is None or node.type.rank != 2:
        return None
    a, b = (m.transpose(_operand(xs[0], inner, index), perm=(1, 0)) for index in (0, 1))
    return m.matmul(b, a)


def transpose_of_ones(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """Moving only axes of size 1 is a reshape."""
    moved = [axis for axis in node.attributes["perm"] if xs[0].shape[axis] != 1]
    return m.reshape(xs[0], shape=node.type.shape) if moved == sorted(moved) else None


def reshape_twice(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """Two reshapes are one."""
    inner = _producer(xs[0], "reshape")
    return m.reshape(_operand(xs[0], inner), shape=node.type.shape) if inner else None


def broadcast_twice(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """Two broadcasts are one."""
    inner = _producer(xs[0], "broadcast_to")
    return m.broadcast_to(_operand(xs[0], inner), shape=node.type.shape) if inner else None


def before_rows_are_taken_apart(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """Elementwise work on a product of all rows that became more axes comes before they do.

    There it can follow the product in the same kernel. Other operands are the same in all rows.
    """
    shape, found = node.type.shape, []
    if len(shape) < 3:
        return None
    for x in xs:
        inner = _producer(x, "reshape")
        rows = _operand(x, inner) if inner is not None else None
        if rows is not None and x.shape == shape and len(rows.shape) == 2 and \
                rows.shape[1] == shape[-1] and _made_by_rows(rows):
            found.append(rows)
        elif x.shape == ():
            found.append(x)
        elif x.shape[-1] == shape[-1] and all(size == 1 for size in x.shape[:-1]):
            found.append(m.reshape(x, shape=x.shape[-1:]) if len(x.shape) > 1 else x)
        else:
            return None
    matrices = [x for x in found if len(x.shape) == 2]
    if not matrices or any(x.shape != matrices[0].shape for x in matrices):
        return None
    return m.reshape(m.apply(node.op, tuple(found), node.attributes), shape=shape)


def _made_by_rows(x: Var) -> bool:
    """Whether a matrix is a product, or elementwise work on one."""
    node = x.m.builder.node(x.value)
    while node.op.kind == "elementwise":
        node = next((x.m.builder.node(value) for value in node.inputs
                     if x.m.builder.type(value).shape == node.type.shape), None)
        if node is None:
            return False
    return node.op.name == "matmul"


def reshape_of_broadcast_scalar(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """A reshaped or transposed constant is that constant."""
    inner = _producer(xs[0], "broadcast_to")
    if inner is None or m.builder.type(inner.inputs[0]).shape != ():
        return None
    return m.broadcast_to(_operand(xs[0], inner), shape=node.type.shape)


def sum_of_nothing(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """A reduction over axes of size 1."""
    return xs[0] if all(xs[0].shape[axis] == 1 for axis in node.attributes["axes"]) else None


def sum_of_reshape(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """Reductions ignore axes of size 1: drop them from the list, for one form."""
    axes = tuple(a for a in node.attributes["axes"] if xs[0].shape[a] != 1)
    if axes == node.attributes["axes"] or not axes:
        return None
    return m.apply(node.op, xs, {"axes": axes})


def same_dtype(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """A conversion to the type that the operand has."""
    return xs[0] if xs[0].dtype == node.type.dtype else None


def select_same(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """A choice between equal values."""
    return _fit(xs[1], node) if xs[1].value == xs[2].value else None


def mask_of_winners(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """What of the gradient of a max pool lies where its operand is above a number.

    It lies where the window's largest element came from: that decides, and the operand, which is
    larger than the result, need not be kept for it.
    """
    above, pool = _producer(xs[0], "greater"), _producer(xs[1], "max_pool2d_grad")
    if above is None or pool is None or _constant(xs[2]) != 0 or \
            above.inputs[0] != pool.inputs[0]:
        return None
    operand, gradient = (_operand(xs[1], pool, index) for index in (0, 1))
    bound = _constant(_operand(xs[0], above, 1))
    if bound is None:
        return None
    largest = m.max_pool2d(operand, **pool.attributes)
    return m.max_pool2d_grad(operand, m.select(m.greater(largest, bound), gradient, 0.0),
                             **pool.attributes)


def reverse_nothing(m: GraphMath, node: Node, xs: tuple[Var, ...]) -> Var | None:
    """Reversal of axes of size 1."""
    return xs[0] if all(xs[0].shape[axis] == 1 for axis in node.attributes["axes"]) else None


ELEMENTWISE = ("add", "sub", "mul", "div", "pow", "maximum", "minimum", "select", "neg", "exp",
               "log", "sqrt", "rsqrt", "tanh", "sigmoid", "less", "less_equal", "greater",
               "greater_equal", "equal", "not_equal")
RULES: dict[str, tuple[Rule, ...]] = {
    "add": (add_zero, add_parts), "sub": (subtract_zero,), "mul": (multiply_one,),
    "div": (divide_one,), "neg": (negate_twice,), "select": (select_same, mask_of_winners),
    "cast": (same_dtype,),
    "reshape": (same_shape, reshape_twice, reshape_of_broadcast_scalar),
    "broadcast_to": (same_shape, broadcast_twice),
    "transpose": (identity_transpose, transpose_twice, transpose_of_ones, transpose_of_product,
                  reshape_of_broadcast_scalar),
    "reduce_sum": (sum_of_nothing, sum_of_reshape),
    "reduce_max": (sum_of_nothing, sum_of_reshape),
    "reduce_min": (sum_of_nothing, sum_of_reshape),
    "pad": (pad_nothing,), "slice": (same_shape,), "reverse": (reverse_nothing,),
}
for _name in ELEMENTWISE:
    RULES[_name] = (*RULES.get(_name, ()), drop_broadcast_operand, before_rows_are_taken_apart)
