"""The pipeline: one list of passes and one loop that runs, checks, dumps, skips and times them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lamina.compiler.errors import CompileError, Diagnostic, Source, Span
from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.rewrite import rewrite
from lamina.compiler.ir.verify import verify
from lamina.compiler.ops.control import SCAN
from lamina.compiler.options import Measured
from lamina.compiler.transform.decompose import decompose
from lamina.compiler.transform.fractional import fractional
from lamina.compiler.transform.fuse import fuse
from lamina.compiler.transform.layout import channels_last
from lamina.compiler.transform.pointwise import pointwise
from lamina.compiler.transform.rematerialise import rematerialise
from lamina.compiler.transform.scans import has_scans, leave_loops
from lamina.compiler.transform.shifted import shifted
from lamina.compiler.transform.simplify import simplify
from lamina.compiler.transform.winograd import winograd


@dataclass(frozen=True, slots=True)
class Pass:
    """A function from Graph to Graph; `optional` ones may be skipped and numbers stay right."""

    name: str
    run: Callable[[Graph], Graph]
    optional: bool = True


def in_scans(run: Callable[[Graph], Graph]) -> Callable[[Graph], Graph]:
    """The pass, applied to the bodies of scans first."""

    def rule(builder: Builder, node: Node, inputs: tuple[Value, ...]):
        if node.op is not SCAN:
            return None
        assert node.body is not None
        body = whole(node.body)
        if body is node.body:
            return None
        first = builder.emit(SCAN, inputs, node.attributes, body)
        return tuple(Value(first.node, port) for port in range(len(node.outs)))

    def whole(graph: Graph) -> Graph:
        return run(rewrite(graph, rule) if has_scans(graph) else graph)

    return whole


PASSES: tuple[Pass, ...] = (
    Pass("simplify", in_scans(simplify)),
    Pass("scans", leave_loops),
    Pass("decompose", in_scans(decompose), optional=False),
    Pass("simplify-again", in_scans(simplify)),
    Pass("rematerialise", rematerialise),
    Pass("layout", in_scans(channels_last)),
    Pass("fractional", in_scans(fractional)),
    Pass("pointwise", in_scans(pointwise)),
    Pass("winograd", in_scans(winograd)),
    Pass("shifted", in_scans(shifted)),
    Pass("fuse", in_scans(fuse)),
)


def optional(skip: frozenset[str]) -> frozenset[str]:
    """The names of passes to leave out. Raises CompileError for one that is no optional pass."""
    known = [one.name for one in PASSES if one.optional]
    for name in sorted(skip - {*known}):
        source = Source("<environment>", f"LAMINA_SKIP={' '.join(sorted(skip))}")
        raise CompileError(Diagnostic(
            "E416", f"LAMINA_SKIP: no pass that can be left out is named {name!r}",
            Span(source, 0, len(source.text)), help=f"these can: {', '.join(known)}"))
    return skip


@dataclass(frozen=True, slots=True)
class Stage:
    """The graph after one pass, and how long the pass took in seconds."""

    name: str
    graph: Graph
    seconds: float


def graph_before(stages: list[Stage], name: str) -> Graph | None:
    """What a pass was given, or None where it did not run."""
    names = [stage.name for stage in stages]
    return stages[names.index(name) - 1].graph if name in names else None


def run_passes(graph: Graph, stop_after: str = "", skip: frozenset[str] = frozenset(),
               check: bool = False, measured: Measured | None = None) -> list[Stage]:
    """All stages from the given graph on; the last is what is lowered.

    `stop_after` ends after that pass, `skip` leaves out optional passes, `check` verifies the
    graph after each, `measured` are times that decide between algorithms. Raises ValueError for
    names that are no pass.
    """
    known = {p.name for p in PASSES}
    for name in {stop_after, *skip} - {""}:
        if name not in known:
            passes = ", ".join(one.name for one in PASSES)
            raise ValueError(f"no pass is named {name}; passes: {passes}")
    stages = [Stage("graph", graph, 0.0)]
    for one in PASSES:
        if one.name in skip and one.optional:
            continue
        start = time.perf_counter()
        run = one.run if measured is None or one.name != "winograd" else \
            in_scans(partial(winograd, measured=measured))
        graph = run(graph)
        stages.append(Stage(one.name, graph, time.perf_counter() - start))
        if check:
            verify(graph, one.name)
        if one.name == stop_after:
            break
    return stages
