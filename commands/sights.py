"""What the report's page draws over the inputs: the positions that each unit of a layer sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lamina.commands.fields import axes_text
from lamina.compiler.inspect.cost import expanded
from lamina.compiler.inspect.reach import Reach, reach
from lamina.compiler.inspect.receptive_field import Field, receptive_fields
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.types import substitute


@dataclass(slots=True)
class Sights:
    """Pictures among the inputs, what every layer sees of them by path, and rows of positions.

    `spans` holds [firsts, lasts] over the units of an axis; layers refer to them by number.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    layers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    spans: list[list[list[int]]] = field(default_factory=list)


def sights(graph: Graph, sizes: Mapping[str, int]) -> Sights:
    """What layers and blocks see. `sizes` gives a number for every open size."""
    whole = expanded(graph)
    found, known = Sights(), receptive_fields(whole)
    numbers: dict[tuple, int] = {}
    paths = {scope.path: scope.result for scope in reversed(whole.scopes)}
    for name, source in whole.inputs.items():
        shape = [substitute(size, sizes) for size in whole.type(source).shape]
        if len(shape) != 4:
            continue
        image = len(found.images)
        found.images.append({"name": name, "height": shape[2], "width": shape[3]})
        ways = [reach(whole, source, axis, sizes) for axis in (2, 3)]
        for path, value in paths.items():
            for one in known.get(value, ()):
                if one.input == name:
                    entry = _sight(image, one, [way.get(value) for way in ways], numbers,
                                   found.spans)
                    found.layers.setdefault(path, []).append(entry)
    return found


def _sight(image: int, seen: Field, ways: list[Reach | None], numbers: dict[tuple, int],
           spans: list[list[list[int]]]) -> dict[str, Any]:
    """A layer over a picture: its field in words, and where units lie in rows, their spans."""
    entry: dict[str, Any] = {
        "image": image, "whole": seen.whole, "rows": None, "columns": None,
        "size": axes_text(seen.axes, "size").replace("x", "×"),
        "stride": axes_text(seen.axes, "stride").replace("x", "×")}
    placed = [way for way in ways if way is not None and way.at is not None]
    if len(placed) == 2 and placed[0].at != placed[1].at:
        for name, way in zip(("rows", "columns"), placed, strict=True):
            pair = (tuple(way.first.clip(max=1 << 30).tolist()), tuple(way.last.tolist()))
            if pair not in numbers:
                numbers[pair] = len(spans)
                spans.append([list(one) for one in pair])
            entry[name] = numbers[pair]
    return entry
