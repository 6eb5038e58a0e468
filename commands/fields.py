"""Receptive fields on a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from rich.console import Console

from lamina.commands.tables import Column, print_table
from lamina.compiler.inspect.axes import Axis
from lamina.compiler.inspect.paths import (
    AXES,
    Ending,
    Fields,
    InputReport,
    Misaligned,
    Route,
    joined,
    report,
    trace,
)
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.types import TensorType, shape_text

FEW = 6  # routes that are shown with all their layers
MEASURES = ("size", "stride", "start", "padding")
EXPLAINED = ("size, stride and padding in positions of the input; start: the centre of the first "
             "unit's field, from 0, the centre of the first position; padding: how far that field "
             "begins before the input; paths: ways from the input to the layer")
UPSAMPLED = ("after upsampling, neighbouring units differ by their phase: size and start are those "
             "of the recursion, and a single unit may see some positions more or fewer")


@dataclass(frozen=True, slots=True)
class LayerRoutes:
    """Every route from an input to one layer, or to one output."""

    path: str
    op: str
    out: TensorType
    input: str
    axes: tuple[str, ...]
    routes: tuple[Route, ...]


def show(console: Console, graph: Graph, names: Sequence[str], path: str | None) -> None:
    """Print the fields over these inputs; of one layer path by path where `path` is given."""
    for index, name in enumerate(names):
        if index:
            console.print()
        if path is None:
            print_report(console, graph.name, report(graph, name))
            continue
        found = routes_to(graph, path, name)
        if found is None:
            console.print(f"`{path}` does not depend on `{name}`", highlight=False, markup=False)
        else:
            print_routes(console, graph.name, found)


def as_json(graph: Graph, names: Sequence[str], path: str | None) -> dict[str, Any]:
    """What `show` prints, as plain data."""
    if path is None:
        return {"model": graph.name,
                "inputs": [report_json(report(graph, name)) for name in names]}
    found = [routes_to(graph, path, name) for name in names]
    return {"model": graph.name, "layer": path,
            "inputs": [routes_json(one) for one in found if one is not None]}


def routes_to(graph: Graph, path: str, name: str) -> LayerRoutes | None:
    """The routes from an input to a layer, or to the output of that name; None without any.

    `path` is one of `places`.
    """
    outputs = dict(graph.outputs)
    scope = next((scope for scope in graph.scopes if scope.path == path), None)
    op, result = ("output", outputs[path]) if scope is None else (scope.callee, scope.result)
    source = graph.inputs[name]
    routes = trace(graph, source).get(result)
    if routes is None:
        return None
    axes = AXES[graph.type(source).rank]
    return LayerRoutes(path, op, graph.type(result), name, axes, routes)


def places(graph: Graph) -> list[str]:
    """What routes may lead to: the layers' paths, then the outputs' names."""
    return list(dict.fromkeys([*(scope.path for scope in graph.scopes),
                               *(name for name, _ in graph.outputs)]))


# --- text ---------------------------------------------------------------------------------------


def print_report(console: Console, model: str, found: InputReport) -> None:
    """A row per layer, the outputs, and where branches do not fit."""
    layers = found.layers
    columns = [Column("layer", tuple(row.path for row in layers), folds=True),
               Column("output", tuple(shape_text(row.out.shape) for row in layers), folds=True),
               *_measures([row.fields for row in layers]),
               Column("paths", tuple(_many(row.paths) for row in layers), True),
               Column("line", tuple(str(row.line or "") for row in layers), True)]
    print_table(console, f"{model} over {found.input} ({' x '.join(found.axes)})", columns)
    console.print()
    _print_endings(console, found)
    _print_misaligned(console, found)
    _explain(console, [row.fields for row in found.layers])


def _print_endings(console: Console, found: InputReport) -> None:
    rows: list[tuple[str, str, Fields]] = []
    for ending in found.outputs:
        rows += _ending_rows(f"{found.input} -> {ending.name}", ending)
    local = found.local
    if local is not None:
        rows += _ending_rows(f"{found.input} -> {local.name}", local)
    columns = [Column("from -> to", tuple(name for name, _, _ in rows), folds=True),
               Column("over", tuple(over for _, over, _ in rows), folds=True),
               *_measures([fields for _, _, fields in rows])]
    print_table(console, "", columns)
    if local is not None:
        console.print(f"`{local.name}` is the last layer whose units do not see all of "
                      f"`{found.input}`", highlight=False, markup=False)


def _ending_rows(name: str, ending: Ending) -> list[tuple[str, str, Fields]]:
    over = "1 path" if ending.paths == 1 else f"all {_many(ending.paths)} paths"
    if ending.distinct == 1:
        return [(name, over, ending.fields)]
    return [(name, over, ending.fields),
            ("", f"smallest of {ending.distinct} fields", ending.smallest),
            ("", "largest", ending.largest)]


def _print_misaligned(console: Console, found: InputReport) -> None:
    for text in misaligned_texts(found.misaligned):
        console.print(f"misaligned: {text}", highlight=False, markup=False)
    if not found.misaligned and any(row.paths > 1 for row in found.layers):
        console.print("branches that meet are aligned", highlight=False, markup=False)


def _explain(console: Console, rows: Sequence[Fields]) -> None:
    """What the columns mean; with upsampling, that units differ."""
    console.print(EXPLAINED, highlight=False, markup=False)
    strides = [axis.stride for fields in rows for axis in fields if axis is not None]
    if any(later < earlier for earlier, later in pairwise(strides)):
        console.print(UPSAMPLED, highlight=False, markup=False)


def misaligned_texts(found: Sequence[Misaligned]) -> list[str]:
    """A sentence for each layer, with the axes that it holds for."""
    axes: dict[tuple[str, str, str], list[str]] = {}
    for one in found:
        place = f"{one.file}:{one.line}" if one.line else ""
        axes.setdefault((f"{one.op} in `{one.path}` ({place})" if one.path else
                         f"{one.op} ({place})", place, _apart(one)), []).append(one.axis)
    return [f"{what} {how} in {' and '.join(names)}" for (what, _, how), names in axes.items()]


def _apart(one: Misaligned) -> str:
    if len(one.strides) > 1:
        strides = " and ".join(_text(stride) for stride in one.strides)
        return f"joins branches with strides {strides}"
    unit = "position" if one.offset == 1 else "positions"
    return f"joins branches whose centres lie {_text(one.offset)} {unit} of the input apart"


def print_routes(console: Console, model: str, found: LayerRoutes) -> None:
    """The fields of all routes to a layer, and the layers that enlarged them."""
    shown = _chosen(found.routes)
    title = f"{model}: {found.path} {shape_text(found.out.shape)} over {found.input} " \
            f"({' x '.join(found.axes)})"
    total = sum(route.count for route in found.routes)
    names = (*(str(index + 1) for index, _ in shown), "all")
    counts = (*(_many(route.count) + "+" * route.merged for _, route in shown), _many(total))
    print_table(console, title, [
        Column("route", names), Column("paths", counts, True),
        *_measures([*(route.fields for _, route in shown), joined(found.routes)])])
    hidden = len(found.routes) - len(shown)
    if hidden:
        console.print(f"{hidden} more routes lie between the smallest and the largest",
                      highlight=False)
    for index, route in shown if not hidden else (shown[0], shown[-1]):
        console.print()
        _print_steps(console, index, route)
    _explain(console, [step.fields for step in shown[-1][1].steps])


def _chosen(routes: Sequence[Route]) -> list[tuple[int, Route]]:
    numbered = list(enumerate(routes))
    if len(numbered) <= 2 * FEW:
        return numbered
    return [*numbered[:FEW], *numbered[-FEW:]]


def _print_steps(console: Console, index: int, route: Route) -> None:
    steps = route.steps
    title = f"route {index + 1}" + (f", one of its {_many(route.count)} paths"
                                    if route.count > 1 else "")
    if not steps:
        console.print(f"{title}: no layer changes the field", highlight=False)
        return
    print_table(console, title, [
        Column("layer", tuple(step.path for step in steps), folds=True),
        Column("operator", tuple(step.op for step in steps)),
        *_measures([step.fields for step in steps]),
        Column("line", tuple(str(step.line or "") for step in steps), True)])


def _measures(rows: Sequence[Fields]) -> list[Column]:
    return [Column(name, tuple(axes_text(fields, name) for fields in rows), True)
            for name in MEASURES]


def axes_text(fields: Fields, name: str) -> str:
    """One number where all axes agree, else one for each: 3x5."""
    if all(axis is None for axis in fields):
        return "all" if name == "size" else ""
    texts = ["all" if axis is None else _text(getattr(axis, name)) for axis in fields]
    if None not in fields and len(set(fields)) == 1:
        return texts[0]
    if name != "size":
        texts = ["-" if text == "all" else text for text in texts]
    return (", " if any(text.startswith("-") for text in texts) else "x").join(texts)


def _text(number: float | Fraction) -> str:
    if isinstance(number, Fraction):
        return str(number)
    return f"{number:g}" if number != int(number) else str(int(number))


def _many(count: int) -> str:
    """A number of paths: exact up to a million, a power of ten above."""
    return f"{count:,}" if count < 10**6 else f"{count:.1e}".replace("e+", "e")


# --- JSON ---------------------------------------------------------------------------------------


def report_json(found: InputReport) -> dict[str, Any]:
    """The fields over one input as plain data; null where a unit sees everything."""
    return {"input": found.input, "axes": list(found.axes),
            "layers": [{"path": row.path, "op": row.op, "line": row.line,
                        "fields": _fields_json(row.fields, found.axes), "paths": row.paths}
                       for row in found.layers],
            "outputs": [_ending_json(ending, found.axes) for ending in found.outputs],
            "local": None if found.local is None else _ending_json(found.local, found.axes),
            "misaligned": [{"path": one.path, "op": one.op, "axis": one.axis, "file": one.file,
                            "line": one.line, "strides": list(one.strides),
                            "offset": one.offset} for one in found.misaligned]}


def _ending_json(ending: Ending, axes: Sequence[str]) -> dict[str, Any]:
    return {"name": ending.name, "paths": ending.paths, "distinct": ending.distinct,
            "fields": _fields_json(ending.fields, axes),
            "smallest": _fields_json(ending.smallest, axes),
            "largest": _fields_json(ending.largest, axes)}


def routes_json(found: LayerRoutes) -> dict[str, Any]:
    """The routes to a layer as plain data."""
    return {"input": found.input, "axes": list(found.axes),
            "fields": _fields_json(joined(found.routes), found.axes),
            "routes": [_route_json(route, found.axes) for route in found.routes]}


def _route_json(route: Route, axes: Sequence[str]) -> dict[str, Any]:
    return {"paths": route.count, "merged": route.merged,
            "fields": _fields_json(route.fields, axes),
            "steps": [{"path": step.path, "op": step.op, "line": step.line,
                       "fields": _fields_json(step.fields, axes)} for step in route.steps]}


def _fields_json(fields: Fields, axes: Sequence[str]) -> dict[str, Any]:
    return {name: None if axis is None else _axis_json(axis)
            for name, axis in zip(axes, fields, strict=True)}


def _axis_json(axis: Axis) -> dict[str, Any]:
    stride = axis.stride if isinstance(axis.stride, int) else float(axis.stride)
    return {"size": axis.size, "stride": stride, "start": axis.start, "padding": axis.padding}
