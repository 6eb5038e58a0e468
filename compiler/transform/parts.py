"""Products whose result is read in equal parts, as the gates of a cell are.

Their parts are computed side by side, so that elementwise work on them follows in the same kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.types import Dim
from lamina.compiler.transform.winograd import PANEL

MAX_PARTS = 8  # that are computed side by side
MAX_STORED = 3  # results of the work on parts that are written to memory
FULL = 0.75  # of a panel's columns must be filled, as each part has panels of its own


def why_whole(graph: Graph, result: Value, product: Node) -> str:
    """Why the end of a product does not hand out `result` in parts, or "" if it does.

    `product` is what computes it, elementwise work aside.
    """
    cuts = [user for user in graph.users(result.node) if user.op.name == "slice"]
    if not cuts:
        return "nothing reads its result in parts"
    columns, width = graph.type(result).shape[-1], cuts[0].type.shape[-1]
    if product.op.name != "matmul" or graph.type(product.inputs[1]).rank != 2:
        return "it is no product with one matrix"
    if not isinstance(columns, int) or not isinstance(width, int) or columns % width:
        return "its parts are not equal"
    if len(cuts) < len(graph.users(result.node)) or \
            any(value == result for _, value in graph.outputs):
        return "its result is read as a whole too"
    if any(cut.type.shape[-1] != width or not _is_part(graph, cut) for cut in cuts):
        return "its parts are not equal"
    if columns // width > MAX_PARTS:
        return f"it has more than {MAX_PARTS} parts"
    if width < FULL * (-(-width // PANEL) * PANEL):
        return f"parts of {width} columns do not fill tiles of {PANEL}"
    readers = [graph.users(cut.id) for cut in cuts]
    if not all(readers) or any(
            user.op.kind != "elementwise" or user.type.shape != cut.type.shape
            for cut, users in zip(cuts, readers, strict=True) for user in users):
        return "more than elementwise work reads its parts"
    stored = len(_stored(graph, cuts))
    return f"{stored} results are kept, which a loop of their own writes faster" \
        if stored > MAX_STORED else ""


def _stored(graph: Graph, cuts: Sequence[Node]) -> set[int]:
    """What elementwise work on the parts of a result leaves for other work to read."""
    given = {value.node for _, value in graph.outputs}
    inside, stored = {cut.id for cut in cuts}, set()
    todo = list(inside)
    for id in todo:
        users = graph.users(id)
        near = [user.id for user in users
                if user.op.kind == "elementwise" and user.type.shape == cuts[0].type.shape]
        if id in given or len(near) < len(users):
            stored.add(id)
        todo += [user for user in near if user not in inside]
        inside.update(near)
    return stored


def part_width(body: Graph, anchor: Node) -> Dim:
    """The columns of a part of a contraction's result; all of them where it is not read in parts.

    `body` is that of the fused group.
    """
    cut = next((node for node in body.nodes if node.op.name == "slice"), anchor)
    return cut.type.shape[-1]


def _is_part(graph: Graph, cut: Node) -> bool:
    """Whether a slice takes all rows, and columns from a multiple of their number on."""
    attrs, shape = cut.attributes, graph.type(cut.inputs[0]).shape
    whole = attrs["starts"][:-1] == (0,) * (len(shape) - 1) and \
        cut.type.shape[:-1] == shape[:-1] and all(step == 1 for step in attrs["steps"])
    start = attrs["starts"][-1]
    return whole and isinstance(start, int) and start % cut.type.shape[-1] == 0
