"""`lamina draw`: a model as a static picture, or as the text that Graphviz reads."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.commands.layered import Layout, arrange, chosen, optional
from lamina.compiler.inspect.report import BORDER, ROOT, Box, Structure, structure
from lamina.compiler.ir.graph import Graph
from lamina.runtime.checkpoint import write_durable

ENDINGS = ("svg", "png", "dot")
COLOURS = {"convolution": "#3b78d8", "linear": "#7a52c7", "normalisation": "#8a97a8",
           "activation": "#e08a1e", "arithmetic": "#94694c", "pooling": "#1f9d76",
           "reduction": "#16707e", "resampling": "#6a9a1f", "embedding": "#b5478d",
           "selection": "#d6456b", "recurrent": "#b03a48", "random": "#a3873a",
           "shape": "#62b0c4", "input": "#2c3e50", "output": "#2c3e50", "block": "#b8c2cf"}
WIDTH, HEIGHT, GAP, ROW, HEAD, PAD, LANE = 172.0, 44.0, 24.0, 36.0, 30.0, 16.0, 14.0
EVEN = 8.0  # what an edge may turn and still count as straight
POINTS = 0.75  # points for each unit of the drawing
MOST_INCHES = 200.0  # the side of a picture; longer ones are drawn smaller
TITLE, ABOUT = 11.0, 9.5  # heights of letters, in units of the drawing
LINE, SWATCH = 18.0, 11.0  # of the legend
BESIDE = 12.0  # room left and right of a text in its box


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
    kinds = _kinds(drawn, _shown(drawn, level, ROOT, depth))
    legend = " &nbsp; ".join(f'<font color="{COLOURS[kind]}">■</font> {name}'
                             for kind, name in kinds.items())
    lines.append(f"  labelloc=b; fontname=Helvetica; label=<{legend}>;")
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
            text = _quoted(f"{box.name}{_often(box)}\n{box.op}")
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


def _often(box: Box) -> str:
    """How often a layer runs with the same weights, where it is not once."""
    return f" ×{box.times}" if box.times > 1 else ""


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


def _shown(drawn: Structure, level: list[int], block: int, depth: int) -> Iterator[int]:
    """The boxes that are seen where blocks are open down to `depth`."""
    for index in drawn.inside(block):
        yield index
        if drawn.boxes[index].kind == "block" and level[index] <= depth:
            yield from _shown(drawn, level, index, depth)


def _kinds(drawn: Structure, shown: Iterable[int]) -> dict[str, str]:
    """The kinds of the boxes that are seen, with what the legend calls each."""
    found = {drawn.boxes[index].kind for index in shown} - {"output"}
    return {kind: "input, output" if kind == "input" else kind for kind in COLOURS if kind in found}


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
    legend, below = _arranged(_kinds(drawn, _seen(placed)), placed.width)
    wide, high = placed.width + 2 * margin, placed.height + below + 2 * margin
    scale = min(POINTS / 72, MOST_INCHES / max(wide, high))
    figure = figures.Figure(figsize=(wide * scale, high * scale), facecolor="white")
    canvas = backend.FigureCanvasAgg if ending == "png" else backend.FigureCanvasSVG
    canvas(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-margin, placed.width + margin)
    axes.set_ylim(placed.height + below + margin, -margin)
    axes.set_axis_off()
    _fill(axes, drawn, placed, ROOT, 0.0, 0.0, scale * 72)
    _legend(axes, legend, placed.height + below, scale * 72)
    file = io.BytesIO()
    figure.savefig(file, format=ending, dpi=110 if max(wide, high) * scale > 60 else 160)
    return file.getvalue() if ending == "png" else _with_titles(file.getvalue(), drawn)


def _seen(placed: _Placed) -> Iterator[int]:
    """The boxes inside an open block, and inside those that are open within it."""
    for index, (_, _, size) in placed.inner.items():
        yield index
        yield from _seen(size)


def _with_titles(picture: bytes, drawn: Structure) -> bytes:
    """An SVG whose boxes say their full names and what they are under the pointer."""
    def titled(found: re.Match[str]) -> str:
        box = drawn.boxes[int(found[1])]
        words = [box.path or box.name, f"{box.op} {list(box.shape)}".replace("'", "")]
        words += [f"{box.parameters:,} parameters"] if box.parameters else []
        return f"{found[0]}<title>{html.escape(chr(10).join(words))}</title>"

    return re.sub(r'<g id="(?:box|name|about)-(\d+)">', titled, picture.decode()).encode()


def _arranged(kinds: Mapping[str, str], width: float
              ) -> tuple[list[tuple[str, str, float, float]], float]:
    """The entries of the legend, each with its left edge and its height above the lowest line,
    in as many lines as they need; and the height of all lines."""
    lines: list[list[tuple[str, str, float]]] = [[]]
    left = 0.0
    for kind, name in kinds.items():
        needed = SWATCH + 6 + _length(name, ABOUT) + 16
        if lines[-1] and left + needed - 16 > width:
            lines.append([])
            left = 0.0
        lines[-1].append((kind, name, left))
        left += needed
    found = [(kind, name, x, (len(lines) - 1 - number) * LINE)
             for number, line in enumerate(lines) for kind, name, x in line]
    return found, len(lines) * LINE + PAD


def _legend(axes: Any, entries: Iterable[tuple[str, str, float, float]], bottom: float,
            scale: float) -> None:
    """Draw what the colours stand for."""
    patches = optional("matplotlib.patches", "drawing a picture", "plots")
    for kind, name, left, above in entries:
        axes.add_patch(patches.Rectangle((left, bottom - above - SWATCH), SWATCH, SWATCH,
                                         color=COLOURS[kind], linewidth=0))
        axes.text(left + SWATCH + 6, bottom - above - 1.5, name, fontsize=ABOUT * scale,
                  color="#5d6b7c", parse_math=False)


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
            edgecolor=COLOURS[box.kind], linewidth=1.1, zorder=2, gid=f"box-{index}"))
        _text(axes, index, box, left + x, top + y, size, is_open, scale)
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


def _text(axes: Any, index: int, box: Box, x: float, y: float, size: _Placed, is_open: bool,
          scale: float) -> None:
    words = {"color": "#1b2430", "zorder": 5, "parse_math": False}
    room, often = size.width - 2 * BESIDE, _often(box)
    if is_open:
        left = room - GAP / 2 - _length(box.name + often, TITLE)
        about = _shortened(box.op, max(left, 0.4 * room))
        name = _shortened(box.name, room - GAP / 2 - _length(about, ABOUT) - _length(often, TITLE),
                          TITLE)
        axes.text(x + BESIDE, y + 20, name + often, fontsize=TITLE * scale, weight="bold",
                  gid=f"name-{index}", **words)
        axes.text(x + size.width - BESIDE, y + 20, about, fontsize=ABOUT * scale, ha="right",
                  gid=f"about-{index}", **words)
        return
    middle = x + size.width / 2
    name = _shortened(box.name, room - _length(often, TITLE), TITLE) + often
    axes.text(middle, y + 19, name, fontsize=TITLE * scale, ha="center", weight="bold",
              gid=f"name-{index}", **words)
    about = box.op if box.kind not in ("input", "output") else box.kind
    count = f" · {box.parameters:,}" if box.parameters else ""
    axes.text(middle, y + 35, _shortened(about, room - _length(count, ABOUT)) + count,
              fontsize=ABOUT * scale, ha="center", gid=f"about-{index}", **words)


def _length(text: str, height: float) -> float:
    """The length of a text in units of the drawing; titles are bold."""
    fonts = optional("matplotlib.font_manager", "drawing a picture", "plots")
    paths = optional("matplotlib.textpath", "drawing a picture", "plots")
    font = fonts.FontProperties(size=height, weight="bold" if height == TITLE else "normal")
    return paths.text_to_path.get_text_width_height_descent(text, font, False)[0] if text else 0.0


def _shortened(text: str, room: float, height: float = ABOUT) -> str:
    """The text, or as much of its beginning as there is room for."""
    if _length(text, height) <= room:
        return text
    fits, over = 0, len(text)
    while over - fits > 1:
        middle = (fits + over) // 2
        if _length(text[:middle] + "…", height) <= room:
            fits = middle
        else:
            over = middle
    return text[:fits].rstrip() + "…"


def _edge(axes: Any, start: int, end: int, bends: tuple[tuple[float, float, float], ...],
          placed: _Placed, left: float, top: float) -> None:
    patches = optional("matplotlib.patches", "drawing a picture", "plots")
    paths = optional("matplotlib.path", "drawing a picture", "plots")
    back = BORDER not in (start, end) and placed.inner[end][1] < placed.inner[start][1]
    points = (_back if back else _down)(start, end, bends, placed)
    moved = [(left + x, top + y) for x, y in points]
    beside = back and not bends
    curve, codes = [moved[0]], [paths.Path.MOVETO]
    for (x, y), (to_x, to_y) in zip(moved, moved[1:], strict=False):
        half, out = (y + to_y) / 2, max(x, to_x) + 20
        curve += [(out, y), (out, to_y)] if beside else [(x, half), (to_x, half)]
        curve.append((to_x, to_y))
        codes += [paths.Path.CURVE4] * 3
    axes.add_patch(patches.PathPatch(paths.Path(curve, codes), facecolor="none",
                                     edgecolor="#7d8b9b", linewidth=1.1, zorder=3))
    if end != BORDER:
        along, down = (1, 0) if beside else (0, 1 if back else -1)  # where it comes from
        x, y = moved[-1]
        tail_x, tail_y = x + 7 * along, y + 7 * down
        axes.add_patch(patches.Polygon(
            [(x, y), (tail_x - 3.5 * down, tail_y - 3.5 * along),
             (tail_x + 3.5 * down, tail_y + 3.5 * along)], color="#7d8b9b", zorder=4))


def _down(start: int, end: int, bends: Iterable[tuple[float, float, float]], placed: _Placed
          ) -> list[tuple[float, float]]:
    """The way of an edge from the bottom of a box to the top of another."""
    points = [point for x, above, below in bends for point in ((x, above), (x, below))]
    if start != BORDER:
        x, y, size = placed.inner[start]
        points.insert(0, (x + size.width / 2, y + size.height))
    if end != BORDER:
        x, y, size = placed.inner[end]
        points.append((x + size.width / 2, y))
    return points


def _back(start: int, end: int, bends: Sequence[tuple[float, float, float]], placed: _Placed
          ) -> list[tuple[float, float]]:
    """The way back to a layer that is used again: up through the bends, else beside the two."""
    (x, y, size), (to_x, to_y, other) = placed.inner[start], placed.inner[end]
    if not bends:
        return [(x + size.width, y + size.height / 2),
                (to_x + other.width, to_y + other.height / 2)]
    first, last = bends[0][0], bends[-1][0]
    x += size.width * (0.25 if first < x + size.width / 2 else 0.75)
    to_x += other.width * (0.25 if last < to_x + other.width / 2 else 0.75)
    through = [point for bend, above, below in bends for point in ((bend, below), (bend, above))]
    return [(x, y), *through, (to_x, to_y + other.height)]
