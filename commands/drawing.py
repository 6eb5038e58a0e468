"""`lamina draw`: a model as a static picture, or as the text that Graphviz reads."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.commands.layered import Layout, Point, arrange, chosen, optional
from lamina.compiler.inspect.report import BORDER, ROOT, Box, Structure, structure
from lamina.compiler.ir.graph import Graph
from lamina.runtime.checkpoint import write_durable

ENDINGS = ("svg", "png", "dot")
COLOURS = {"convolution": "#3b78d8", "linear": "#7a52c7", "normalisation": "#8a97a8",
           "activation": "#e08a1e", "pooling": "#1f9d76", "embedding": "#b5478d",
           "recurrent": "#b03a48", "random": "#a3873a", "shape": "#62b0c4", "input": "#2c3e50",
           "output": "#2c3e50", "block": "#b8c2cf"}
WIDTH, HEIGHT, GAP, ROW, HEAD, PAD, LANE = 172.0, 44.0, 24.0, 36.0, 30.0, 16.0, 14.0
EVEN = 8.0  # what an edge may turn and still count as straight
POINTS = 0.75  # points for each unit of the drawing
MOST_INCHES = 200.0  # the side of a picture; longer ones are drawn smaller


def draw_model(graph: Graph, sizes: Mapping[str, int], depth: int, path: Path) -> None:
    """Write a picture with blocks open down to `depth`; the file's ending says which kind.

    Raises Failure E416 for an unknown ending, E612 for a missing package, E704 for a bad path.
    """
    ending = chosen(ENDINGS, path.name)
    drawn = structure(graph, sizes)
    if ending == "dot":
        write_durable(path, dot_text(drawn, depth).encode())
        return
    write_durable(path, _picture(drawn, _measure(_Picture(drawn, arrange(drawn), depth), ROOT, 0),
                                 ending))


# --- Graphviz -----------------------------------------------------------------------------------


def dot_text(drawn: Structure, depth: int) -> str:
    """The model in Graphviz's language, open blocks as clusters, sizes on the edges."""
    level = _levels(drawn)
    lines = ["digraph {", "  rankdir=TB; node [shape=box, style=rounded, fontname=Helvetica];",
             *_dot_block(drawn, level, ROOT, depth, 1)]
    seen = set()
    for start, end in _dot_edges(drawn, level, depth):
        if (start, end) not in seen:
            seen.add((start, end))
            lines.append(f"  n{start} -> n{end} [label={_quoted(_sizes(drawn.boxes[start]))}];")
    return "\n".join([*lines, "}", ""])


def _dot_block(drawn: Structure, level: list[int], block: int, depth: int, indent: int
               ) -> list[str]:
    pad, lines = "  " * indent, []
    for index in drawn.inside(block):
        box = drawn.boxes[index]
        if box.kind == "block" and level[index] <= depth:
            lines += [f"{pad}subgraph cluster_{index} {{",
                      f"{pad}  label={_quoted(f'{box.name}: {box.op}')};",
                      *_dot_block(drawn, level, index, depth, indent + 1), f"{pad}}}"]
        else:
            text = _quoted(f"{box.name}\n{box.op}")
            lines.append(f'{pad}n{index} [label={text}, color="{COLOURS[box.kind]}"];')
    return lines


def _dot_edges(drawn: Structure, level: list[int], depth: int):
    """Edges between boxes that are shown, through the borders of open blocks."""
    into: dict[int, list[int]] = {}
    out: dict[int, list[int]] = {}
    for edge in drawn.edges:
        if edge.start == BORDER:
            into.setdefault(edge.block, []).append(edge.end)
        if edge.end == BORDER:
            out.setdefault(edge.block, []).append(edge.start)

    def ends(index: int, through: dict[int, list[int]]) -> list[int]:
        if drawn.boxes[index].kind != "block" or level[index] > depth:
            return [index]
        return [end for inner in through.get(index, ()) for end in ends(inner, through)]

    for edge in drawn.edges:
        shown = edge.block == ROOT or level[edge.block] <= depth
        if shown and BORDER not in (edge.start, edge.end):
            for start in ends(edge.start, out):
                for end in ends(edge.end, into):
                    yield start, end


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _levels(drawn: Structure) -> list[int]:
    """How many blocks are around each box, itself counted where it is a block."""
    found: list[int] = []
    for box in drawn.boxes:
        around = found[box.parent] if box.parent >= 0 else 0
        found.append(around + (box.kind == "block" and box.parent >= 0))
    return found


def _sizes(box: Box) -> str:
    return "×".join(str(size) for size in box.shape if isinstance(size, int))


# --- a picture ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Picture:
    drawn: Structure
    layout: Layout
    depth: int


@dataclass(frozen=True, slots=True)
class _Placed:
    """A box with its size; an open block with places and bends within it."""

    width: float
    height: float
    inner: Mapping[int, tuple[float, float, _Placed]]
    bends: Mapping[int, tuple[tuple[float, float, float], ...]]


@dataclass(slots=True)
class _Item:
    """A box or a bend of an edge on its row; `x` is its centre."""

    column: float
    width: float
    height: float
    box: int = -1
    bend: tuple[int, int] = (-1, -1)
    x: float = 0.0


def _measure(picture: _Picture, index: int, level: int) -> _Placed:
    """The size of a box, and of an open block where everything within stands."""
    drawn, layout = picture.drawn, picture.layout
    if drawn.boxes[index].kind != "block" or level > picture.depth:
        return _Placed(WIDTH, HEIGHT, {}, {})
    inside = {child: _measure(picture, child, level + 1) for child in drawn.inside(index)}
    rows: dict[int, list[_Item]] = {}
    for child, placed in inside.items():
        row, column = layout.places[child]
        rows.setdefault(row, []).append(_Item(column, placed.width, placed.height, child))
    own = [number for number, edge in enumerate(drawn.edges) if edge.block == index]
    for number in own:
        for place, (row, column) in enumerate(layout.bends[number]):
            rows.setdefault(row, []).append(_Item(column, LANE, 0.0, bend=(number, place)))
    width = _spread(rows)
    return _stack(rows, inside, own, width, 0.0 if index == ROOT else HEAD)


def _spread(rows: Mapping[int, list[_Item]]) -> float:
    """Give every item its place from left to right; gives the width that they take."""
    for items in rows.values():
        items.sort(key=lambda item: item.column)
        right = float("-inf")
        for item in items:
            item.x = max(item.column * (WIDTH + GAP), right + item.width / 2)
            right = item.x + item.width / 2 + (GAP if item.box >= 0 else 2)
        shift = sum(item.x - item.column * (WIDTH + GAP) for item in items) / len(items)
        for item in items:
            item.x -= shift
    every = [item for items in rows.values() for item in items]
    least = min((item.x - item.width / 2 for item in every), default=0.0)
    most = max((item.x + item.width / 2 for item in every), default=0.0)
    width = max(WIDTH, most - least + 2 * PAD)
    for item in every:
        item.x += (width - most + least) / 2 - least
    return width


def _stack(rows: Mapping[int, list[_Item]], inside: Mapping[int, _Placed], own: list[int],
           width: float, top: float) -> _Placed:
    inner: dict[int, tuple[float, float, _Placed]] = {}
    bends: dict[int, dict[int, tuple[float, float, float]]] = {number: {} for number in own}
    y, high = top, 0.0
    for number, items in sorted(rows.items()):
        high = max(item.height for item in items)
        y += PAD if number == 0 and high else 0
        for item in items:
            if item.box >= 0:
                left, above = item.x - item.width / 2, y + (high - item.height) / 2
                inner[item.box] = (left, above, inside[item.box])
            else:
                bends[item.bend[0]][item.bend[1]] = (item.x, y, y + high)
        y += high + ROW
    height = y - ROW + (PAD if high else 0)
    return _Placed(width, height, inner, {number: tuple(found[k] for k in sorted(found))
                                          for number, found in bends.items()})


def _picture(drawn: Structure, placed: _Placed, ending: str) -> bytes:
    """The bytes of a drawing."""
    backend = optional("matplotlib.backends.backend_agg" if ending == "png" else
                       "matplotlib.backends.backend_svg", "drawing a picture", "plots")
    figures = optional("matplotlib.figure", "drawing a picture", "plots")
    margin = 12.0
    wide, high = placed.width + 2 * margin, placed.height + 2 * margin
    scale = min(POINTS / 72, MOST_INCHES / max(wide, high))
    figure = figures.Figure(figsize=(wide * scale, high * scale), facecolor="white")
    canvas = backend.FigureCanvasAgg if ending == "png" else backend.FigureCanvasSVG
    canvas(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-margin, placed.width + margin)
    axes.set_ylim(placed.height + margin, -margin)
    axes.set_axis_off()
    _fill(axes, drawn, placed, ROOT, 0.0, 0.0, scale * 72)
    file = io.BytesIO()
    figure.savefig(file, format=ending, dpi=110 if max(wide, high) * scale > 60 else 160)
    return file.getvalue()


def _fill(axes: Any, drawn: Structure, placed: _Placed, block: int, left: float, top: float,
          scale: float) -> None:
    """Draw what is inside an open block."""
    patches = optional("matplotlib.patches", "drawing a picture", "plots")
    for number, bends in placed.bends.items():
        edge = drawn.edges[number]
        _edge(axes, edge.start, edge.end, bends, placed, left, top)
    for index, (x, y, size) in placed.inner.items():
        box = drawn.boxes[index]
        is_open = bool(size.inner)
        axes.add_patch(patches.FancyBboxPatch(
            (left + x, top + y), size.width, size.height, boxstyle="round,pad=0,rounding_size=7",
            facecolor="#f1f4f8" if box.kind == "block" else "white",
            edgecolor=COLOURS[box.kind], linewidth=1.1, zorder=2))
        _text(axes, box, left + x, top + y, size, is_open, scale)
        turns = [_turn(drawn, placed, number) for number in placed.bends
                 if drawn.edges[number].start == index]
        if turns:
            along, down, align = _label(min(turns) < -EVEN, max(turns) > EVEN)
            axes.text(left + x + size.width / 2 + along, top + y + size.height + down, _sizes(box),
                      fontsize=9 * scale, color="#5d6b7c", zorder=5, ha=align, parse_math=False)
        if is_open:
            _fill(axes, drawn, size, index, left + x, top + y, scale)


def _turn(drawn: Structure, placed: _Placed, number: int) -> float:
    """How far to the right an edge turns at first, left below zero."""
    edge, bends = drawn.edges[number], placed.bends[number]
    x, _, size = placed.inner[edge.start]
    if bends:
        return bends[0][0] - x - size.width / 2
    to, _, other = placed.inner[edge.end]
    return to + other.width / 2 - x - size.width / 2


def _label(left: bool, right: bool) -> tuple[float, float, str]:
    """Where a size stands below a box so that edges leave it room, and how it is aligned."""
    if left and right:
        return 0.0, 29.0, "center"
    return (-6.0, 15.0, "right") if right else (6.0, 15.0, "left")


def _text(axes: Any, box: Box, x: float, y: float, size: _Placed, is_open: bool, scale: float
          ) -> None:
    words = {"color": "#1b2430", "zorder": 5, "parse_math": False}
    if is_open:
        axes.text(x + 12, y + 20, f"{box.name}  {box.op}"[:40], fontsize=11 * scale, **words)
        return
    middle = x + size.width / 2
    axes.text(middle, y + 19, box.name[:24], fontsize=11 * scale, ha="center", weight="bold",
              **words)
    about = box.op if box.kind not in ("input", "output") else box.kind
    if box.parameters:
        about += f" · {box.parameters:,}"
    axes.text(middle, y + 35, about[:30], fontsize=9.5 * scale, ha="center", **words)


def _edge(axes: Any, start: int, end: int, bends: tuple[tuple[float, float, float], ...],
          placed: _Placed, left: float, top: float) -> None:
    patches = optional("matplotlib.patches", "drawing a picture", "plots")
    paths = optional("matplotlib.path", "drawing a picture", "plots")
    points: list[Point | tuple[float, float]] = [
        point for x, above, below in bends for point in ((x, above), (x, below))]
    if start != BORDER:
        x, y, size = placed.inner[start]
        points.insert(0, (x + size.width / 2, y + size.height))
    if end != BORDER:
        x, y, size = placed.inner[end]
        points.append((x + size.width / 2, y))
    moved = [(left + x, top + y) for x, y in points]
    curve, codes = [moved[0]], [paths.Path.MOVETO]
    for (x, y), (to_x, to_y) in zip(moved, moved[1:], strict=False):
        half = (y + to_y) / 2
        curve += [(x, half), (to_x, half), (to_x, to_y)]
        codes += [paths.Path.CURVE4] * 3
    axes.add_patch(patches.PathPatch(paths.Path(curve, codes), facecolor="none",
                                     edgecolor="#7d8b9b", linewidth=1.1, zorder=3))
    if end != BORDER:
        x, y = moved[-1]
        axes.add_patch(patches.Polygon([(x, y), (x - 3.5, y - 7), (x + 3.5, y - 7)],
                                       color="#7d8b9b", zorder=4))
