"""Why elements are copied from one place in memory to another, in words."""

from __future__ import annotations

from collections.abc import Iterable

from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.types import Dim, substitute, symbols_of
from lamina.compiler.lower.views import View
from lamina.compiler.transform.layout import TO_FIRST, TO_LAST
from lamina.runtime.program import Buffer

LARGE = 64  # what stands for a size that is not known
LISTED = 2  # layers that a reason names
CHANNELS = {TO_LAST: "channels last", TO_FIRST: "channels first"}
WANTED = {
    "conv2d": "a convolution reads channels last",
    "fractional_conv2d": "a convolution reads channels last",
    "conv2d_weight_grad": "a weight gradient reads channels last",
    "matmul": "a product reads rows at even distances",
    "take": "a lookup reads a table without gaps", "take_grad": "a lookup's gradient is read "
    "without gaps", "non_max_suppression": "boxes and scores are read without gaps",
    "max_pool2d": "a pool reads channels last", "max_pool2d_grad": "a pool's gradient is read "
    "channels last", "avg_pool2d": "a pool reads channels last", "avg_pool2d_grad": "a pool's "
    "gradient is read channels last"}


def why_copied(graph: Graph, node: Node | None, source: View, buffer: Buffer,
               operand: Value | None) -> str:
    """Why `node` needs elements elsewhere than at `source`, which lies in `buffer`.

    `operand` is the node's operand that they are, if it is known.
    """
    if node is None:
        return ""
    ops = [one.op.name for one in (node.body.nodes if node.body else (node,))]
    name = next((op for op in ops if op in WANTED), node.op.name)
    if name == "concat" and operand is not None:
        return _why_joined(graph, operand)
    if name == "pad":
        return "it goes inside the border that is written around it"
    held = how_held(source, buffer, _input_of(graph, operand))
    if name == "reshape":
        wanted = (f"the reshape from {_shape(source.shape)} to {_shape(node.type.shape)} takes "
                  f"elements in the order of the axes{_readers(graph, node)}")
    else:
        wanted = WANTED.get(name, f"`{name}` reads memory without gaps")
    return f"{wanted}, but {held}"


def why_output(name: str, source: View, buffer: Buffer) -> str:
    """Why an output's value is copied into the memory that is handed back."""
    if source.is_packed:
        return f"output `{name}` is handed back in memory of its own, and {_subject(buffer)} " \
            "lies in other memory"
    return f"output `{name}` is given in the order of its axes, but {how_held(source, buffer)}"


def why_filled(node: Node | None) -> str:
    """Why memory is set to one number."""
    if node is None or node.op.name != "pad":
        return "the border of a convolution"
    spread = any(node.attributes["interior"])
    return "zeros between elements, for a stride taken the other way round" if spread else \
        f"a border of {node.attributes['value']:g}, which the kernel reads like the image"


def how_held(source: View, buffer: Buffer, given: str = "") -> str:
    """In what order, or with what gaps, elements lie in memory; `given`: the input they are."""
    subject = _subject(buffer)
    if subject == "it" and given:
        subject = f"it, made of input `{given}`,"
    strides = [_number(stride) for stride in source.strides]
    sizes = [_number(size) for size in source.shape]
    axes = [axis for axis, size in enumerate(sizes) if size != 1]
    repeated = [axis for axis in axes if strides[axis] == 0]
    if repeated:
        return f"{subject} is repeated along axis {', '.join(map(str, repeated))}"
    if any(strides[axis] < 0 for axis in axes):
        return f"{subject} runs backwards"
    order = tuple(sorted(range(len(sizes)), key=lambda axis: -strides[axis]))
    if [axis for axis in order if axis in axes] == axes:
        return f"{subject} is a part of a larger tensor, with gaps"
    return f"{subject} lies {CHANNELS.get(order, f'with its axes in the order {order}')}"


def _subject(buffer: Buffer) -> str:
    names = {"input": "input", "param": "parameter"}
    return f"{names[buffer.kind]} `{buffer.key}`" if buffer.kind in names else "it"


def _why_joined(graph: Graph, operand: Value) -> str:
    """Why an operand of a concat was not written where it belongs in the first place."""
    readers, made = graph.users(operand.node), graph.node(operand)
    if made.op.kind == "source":
        return f"it is joined to others, and {made.op.name} has memory of its own"
    if len(readers) > 1:
        return "it is joined to others, and read apart from them too"
    if made.op.kind == "view":
        return "it is joined to others, and a part or another shape of what lies elsewhere"
    name = next((one.op.name for one in (made.body.nodes if made.body else ())
                 if one.op.kind not in ("source", "elementwise")), made.op.name)
    return f"it is joined to others, and `{name}` writes memory of its own"


def _input_of(graph: Graph, operand: Value | None) -> str:
    """The name of the input that a value is, but for its border and shape; "" if it is none."""
    if operand is None:
        return ""
    node = graph.node(operand)
    while node.op.kind == "view" and len(node.inputs) == 1:
        node = graph.node(node.inputs[0])
    return node.attributes["name"] if node.op.name == "input" else ""


def _readers(graph: Graph, node: Node) -> str:
    """The layers that read a value, as ", for a and b"."""
    paths = list(dict.fromkeys(_paths(graph, node)))
    named = paths[:LISTED] + ["others"] * (len(paths) > LISTED)
    return f", for {' and '.join(named)}" if named else ""


def _paths(graph: Graph, node: Node) -> Iterable[str]:
    for user in graph.users(node):
        if user.op.kind == "view":
            yield from _paths(graph, user)
        elif user.path:
            yield user.path


def _shape(shape: tuple[Dim, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _number(size: Dim) -> int:
    found = substitute(size, {one.name: LARGE * one.scale for one in symbols_of(size)})
    return found if isinstance(found, int) else LARGE
