"""Receptive fields: which part of an input one unit of a layer sees, over all paths at once.

Over several paths the field reaches from the first position that any of them sees to the last;
`paths.py` tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamina.compiler.inspect.axes import LINES, RULES, Axis
from lamina.compiler.inspect.paths import AXES, Fields, Seen, joined_places, measurable
from lamina.compiler.ir.graph import Graph, Value

KNOWN = frozenset(RULES) - frozenset(LINES)  # operators that need not be taken apart


@dataclass(frozen=True, slots=True)
class Field:
    """What a unit sees of the input `input`: along each axis an Axis, or None for all of it."""

    input: str
    seen: Seen

    @property
    def axes(self) -> Fields:
        """The field along each axis of the input but batch and channels."""
        return tuple(None if place is None else place.axis for place in self.seen)

    @property
    def whole(self) -> bool:
        """Whether a unit sees the entire input."""
        return not any(self.seen)

    @property
    def local(self) -> bool:
        """Whether a unit sees less than all along every axis."""
        return None not in self.seen

    @property
    def named(self) -> dict[str, Axis | None]:
        """The axes by name: height and width of a picture."""
        return dict(zip(AXES[len(self.axes) + (2 if len(self.axes) > 1 else 1)], self.axes,
                        strict=True))


def receptive_fields(graph: Graph) -> dict[Value, tuple[Field, ...]]:
    """The fields of every value over each input that it depends on and that has axes to measure.

    A vector or sequence of which every layer sees all, as in a dense network, is left out.
    """
    found: dict[Value, tuple[Field, ...]] = {}
    ends = {scope.result for scope in graph.scopes}
    for name in measurable(graph):
        source = graph.inputs[name]
        seen = joined_places(graph, source)
        if graph.type(source).rank < 4 and not any(any(seen[end]) for end in ends if end in seen):
            continue
        for value, places in seen.items():
            found[value] = (*found.get(value, ()), Field(name, places))
    return found


def last_local(fields: list[tuple[Field, ...]]) -> Field | None:
    """The field of the last layer that does not see all of its input."""
    return next((field for layer in reversed(fields) for field in layer if field.local), None)
