"""Where the boxes of a block stand: in layers, each in an order with few crossings of edges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lamina.compiler.inspect.report import Edge, Structure
from lamina.runtime.errors import Failure

STEP = 72.0  # what the layout library puts between two layers
FEW = 40  # a model of so many boxes is shown with all blocks open
MANY = 12  # boxes that an unrolled loop shows at first
UNROLLED = ("for", "repeat", "")  # blocks that stand for a loop, not for a definition

Point = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things stand within their block: (row from the top, column), one wide for a box.

    A place for every box, and the bends of every edge; with those that run from or to the
    border of their block begins or ends where they cross it.
    """

    places: tuple[Point, ...]
    bends: tuple[tuple[Point, ...], ...]


def arrange(drawn: Structure) -> Layout:
    """Lay out every block by itself. Raises Failure E612 without the layout library."""
    places: list[Point] = [(0, 0.0)] * len(drawn.boxes)
    bends: list[tuple[Point, ...]] = [()] * len(drawn.edges)
    members: dict[int, list[int]] = {}
    edges: dict[int, list[int]] = {}
    for index, box in enumerate(drawn.boxes):
        members.setdefault(box.parent, []).append(index)
    for number, edge in enumerate(drawn.edges):
        edges.setdefault(edge.block, []).append(number)
    for block, inside in members.items():
        _arrange_block(drawn.edges, edges.get(block, []), inside, places, bends)
    return Layout(tuple(places), tuple(bends))


def _arrange_block(all_edges: Sequence[Edge], own: Sequence[int], inside: Sequence[int],
                   places: list[Point], bends: list[tuple[Point, ...]]) -> None:
    top, bottom = len(inside), len(inside) + 1  # the library's vertices: boxes, border
    number = {index: local for local, index in enumerate(inside)}
    ends = {edge: (number.get(all_edges[edge].start, top), number.get(all_edges[edge].end, bottom))
            for edge in own}
    found, routes = _layers(bottom + 1, sorted({(min(e), max(e)) if top not in e else e
                                                for e in ends.values()}))
    for index, local in number.items():
        places[index] = found[local]
    for edge, (start, end) in ends.items():
        back = top not in (start, end) and start > end  # a layer that is used again
        route = routes.get((end, start) if back else (start, end), ())
        route = route[::-1] if back else route
        bends[edge] = (*((found[top],) if start == top else ()), *route,
                       *((found[bottom],) if end == bottom else ()))


def opened(drawn: Structure) -> list[bool]:
    """Which blocks are open at first: in a large model the few that only hold other blocks."""
    boxes = drawn.boxes
    small = len(boxes) <= FEW
    held = Counter(box.parent for box in boxes)
    found: list[bool] = []
    for index, box in enumerate(boxes):
        top = box.parent == -1
        holds_blocks = box.op in UNROLLED and held[index] <= MANY
        found.append(box.kind == "block" and (top or found[box.parent])
                     and (top or small or holds_blocks))
    return found


def _layers(count: int, edges: Sequence[tuple[int, int]]
            ) -> tuple[dict[int, Point], dict[tuple[int, int], tuple[Point, ...]]]:
    """Places of the vertices 0 to count - 1, and the bends of edges that pass several rows."""
    found: dict[int, Point] = {}
    routes: dict[tuple[int, int], tuple[Point, ...]] = {}
    vertices = list(dict.fromkeys(vertex for edge in edges for vertex in edge))
    names = {vertex: index for index, vertex in enumerate(vertices)}
    left = 0.0
    for positions, width, height, pieces in library().from_edges(
            [(names[a], names[b]) for a, b in edges], vertex_spacing=int(STEP)):
        points = {key: (round((height - y) / STEP), round(left + x / STEP, 2))
                  for key, (x, y) in positions}
        found |= {vertices[key]: point for key, point in points.items() if key < len(vertices)}
        routes |= _routes(vertices, points, pieces or ())
        left += width / STEP + 1
    for vertex in range(count):
        if vertex not in found:
            found[vertex] = (0, left)
            left += vertex < count - 2  # the border takes no room
    return found, routes


def _routes(vertices: Sequence[int], points: Mapping[int, Point],
            pieces: Iterable[tuple[int, int]]) -> dict[tuple[int, int], tuple[Point, ...]]:
    """The bends of each edge, from the pieces that the library cuts edges into."""
    known = len(vertices)
    following = {a: b for a, b in pieces if a >= known}
    routes = {}
    for start, key in pieces:
        if start < known <= key:
            bends = []
            while key >= known:
                bends.append(points[key])
                key = following[key]
            routes[vertices[start], vertices[key]] = tuple(bends)
    return routes


def library() -> Any:
    """The layout library. Raises Failure E612 where it is not installed."""
    return optional("fast_sugiyama", "drawing a graph", "report")


def optional(module: str, purpose: str, extra: str) -> Any:
    """A module of an optional package. Raises Failure E612 that names the extra."""
    try:
        return import_module(module)
    except ImportError:
        raise Failure("E612", f"{purpose} needs the package {module.partition('.')[0]}",
                      f'install it with: pip install "lamina[{extra}]"') from None


def chosen(endings: Iterable[str], name: str) -> str:
    """The ending of a file's name. Raises Failure E416 for one that is not among `endings`."""
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    if ending not in endings:
        listed = ", ".join(f".{one}" for one in endings)
        raise Failure("E416", f"what kind of file `{name or '.'}` should be its ending says",
                      f"end it with one of: {listed}")
    return ending
