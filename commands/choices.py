"""Which algorithm each contraction runs, on which register tile, what it takes, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from textwrap import wrap

from lamina.commands.bench import GEMM_SIZE, example_sizes, gemm_rate
from lamina.commands.profiling import GEMM_ROUNDS
from lamina.commands.tables import text_table
from lamina.commands.tuning import remembered
from lamina.compiler.inspect.owners import origins, place_text
from lamina.compiler.ir.graph import Graph, Node
from lamina.compiler.ir.types import Dim, substitute
from lamina.compiler.lower.program import lower
from lamina.compiler.ops.control import SCAN
from lamina.compiler.options import Measured, Options
from lamina.compiler.transform.fuse import Refusal, groups_of
from lamina.compiler.transform.pipeline import Stage, graph_before, optional, run_passes
from lamina.compiler.transform.pointwise import why_no_product
from lamina.compiler.transform.winograd import (
    CONVOLUTIONS,
    PRODUCTS,
    TILES,
    gain_of,
    tile_work,
    tiles_of,
    times_of,
    times_text,
    why_direct,
)
from lamina.runtime.cpu.host import vector_width
from lamina.runtime.cpu.plan import make_plan, total_macs
from lamina.runtime.program import FORWARD, THREADS, Kernel, Program, Step, evaluate

PRODUCT, DIRECT, DEPTHWISE = "matrix product", "direct", "depthwise"
WINOGRAD, FRACTIONAL = "Winograd", "fractional"
ALGORITHMS = (  # by the beginning of a kernel's title
    ("Matrix product", PRODUCT), ("Direct convolution", DIRECT), ("Weight gradient", DIRECT),
    ("Winograd", WINOGRAD), ("Depthwise", DEPTHWISE),
    ("Fractionally strided", FRACTIONAL))
WIDTH = 100  # of sentences
CONTRACTIONS = ("matmul", "conv2d", "fractional_conv2d", "conv2d_weight_grad")
NAMED = re.compile(r"\b(?:tile|part|lanes)_(\d+)x(\d+)_(\d+)\(")  # as `tiles` names them


@dataclass(frozen=True, slots=True)
class Choice:
    """A contraction: `label` and `at` of its step, what runs it, and why.

    `macs` are its multiply-accumulates as it is defined, in all rounds of a loop; `own` what the
    algorithm multiplies; `work` the same with what its transforms are worth. `tile` is (rows,
    vectors, floats in a vector). `apart` are operators that read the result in a kernel of their
    own, with the reason.
    """

    label: str
    at: str
    part: str
    algorithm: str
    tile: tuple[int, ...]
    macs: int
    own: int
    work: int
    why: str
    apart: tuple[tuple[str, str], ...] = ()


def choices_of(graph: Graph, batch: int, skip: frozenset[str] = frozenset(),
               measured: Measured | None = None) -> list[Choice]:
    """Every contraction of a graph's Program in the order in which they run.

    `measured` are times to tell beside the reasons; the Program is the one without them.
    """
    stages = run_passes(graph, skip=skip)
    fused = stages[-1].name == "fuse"
    program = lower(stages[-1].graph, vector_width())
    sizes = example_sizes(graph, batch)
    plan = make_plan(program, {**sizes, THREADS: 1})
    counts = total_macs(program, plan)
    files = origins(stages[-1].graph)
    steps = [index for index, step in enumerate(program.steps) if _algorithm(program, step)]
    were = _became_products(stages)
    found = []
    nodes = _contractions(stages[-2 if fused else -1].graph, fused)
    for index, (inside, node, behind) in zip(steps, nodes, strict=True):
        step, macs = program.steps[index], counts[index]
        algorithm = _algorithm(program, step)
        own = work = macs
        if algorithm == WINOGRAD and macs:
            rounds = macs // evaluate(step.macs, plan.bindings)
            result, (outputs, channels, taps, _) = _image_and_weights(inside, node)
            tiles = rounds * _number(tiles_of(result, taps), sizes)  # type: ignore[arg-type]
            own = tiles * PRODUCTS * _number(channels * outputs, sizes)
            work = tiles * tile_work(_number(channels, sizes), _number(outputs, sizes))
        was = (node.op.name, *_place(node)) in were
        found.append(Choice(
            step.label, place_text(files, step.layer, step.line), step.part, algorithm,
            _tile(program.kernels[step.kernel]), macs, own, work,
            _reason(inside, node, algorithm, was, skip) + _times(inside, node, measured),
            _apart(inside, behind)))
    return found


def _algorithm(program: Program, step: Step) -> str:
    """What a step's kernel is, if it is a contraction and helps no other step; else "" ."""
    title = program.kernels[step.kernel].title
    known = next((name for begin, name in ALGORITHMS if title.startswith(begin)), "")
    return "" if step.helper else known


def _tile(kernel: Kernel) -> tuple[int, ...]:
    found = NAMED.search(kernel.source)
    return tuple(map(int, found.groups())) if found else ()


def _number(size: Dim, sizes: Mapping[str, int]) -> int:
    found = substitute(size, sizes)
    assert isinstance(found, int)
    return found


# --- why ----------------------------------------------------------------------------------------


def _contractions(graph: Graph, fused: bool
                  ) -> Iterator[tuple[Graph, Node, tuple[Refusal, ...]]]:
    """The contractions of a graph before it is fused, in the order of their steps."""
    groups = groups_of(graph) if fused else [((node,), ()) for node in graph.nodes]
    for nodes, behind in groups:
        for node in nodes:
            if node.op is SCAN:
                assert node.body is not None
                yield from _contractions(node.body, fused)
            elif node.op.name in CONTRACTIONS:
                yield graph, node, behind


def _became_products(stages: list[Stage]) -> set[tuple[str, str, int]]:
    """Operator, path and line of the products that the pass `pointwise` made of convolutions."""
    before = graph_before(stages, "pointwise")
    if before is None:
        return set()
    return {("matmul", *_place(node)) for inside, node, _ in _contractions(before, False)
            if node.attributes.get("layout") == "nhwc" and
            not why_no_product(_image_and_weights(inside, node)[1], node.attributes)}


def _place(node: Node) -> tuple[str, int]:
    return node.path, node.span.line if node.span else 0


def _image_and_weights(graph: Graph, node: Node) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
    """The shapes of a convolution's result and weights; for a weight gradient, of the like."""
    second = graph.type(node.inputs[1]).shape
    return (second, node.type.shape) if node.op.name.endswith("_grad") else \
        (node.type.shape, second)


def _reason(graph: Graph, node: Node, algorithm: str, was_convolution: bool,
            skip: frozenset[str]) -> str:
    """Why a contraction runs this algorithm and no other."""
    if node.op.name == "matmul":
        return "a convolution by 1x1 is a product over its pixels" if was_convolution else \
            "a product as it stands"
    result, weights = _image_and_weights(graph, node)
    if algorithm == WINOGRAD:
        gain = gain_of(result[1], result[2], weights[1], weights[0], weights[2])  # type: ignore
        tile, taps = TILES[weights[2]], weights[2]  # type: ignore[index]
        return (f"F({tile}x{tile}, {taps}x{taps}) with stride 1: {gain:.2f} times as fast as "
                "direct by its count")
    if algorithm == FRACTIONAL:
        rows, columns = node.attributes["stride"]
        return f"zeros between pixels are skipped: {rows}x{columns} kinds of results, each with " \
               "taps of its own"
    if algorithm == DEPTHWISE:
        return "each channel has a filter of its own: no sum over channels"
    if weights[2:] == (1, 1):
        other, name, why = "product", "pointwise", why_no_product(weights, node.attributes)
    else:
        other, name, why = "Winograd", "winograd", why_direct(result, weights, node.attributes)
    left_out = sorted(skip & {"layout", name})
    return f"no {other}: {why or _left_out(left_out)}"


def _times(graph: Graph, node: Node, measured: Measured | None) -> str:
    """What was measured of a convolution on this machine, to stand behind the reason."""
    if node.op.name not in CONVOLUTIONS:
        return ""
    times = times_of(measured, node.op.name.endswith("_grad"), *_image_and_weights(graph, node))
    return f"; {times_text(times)}" if times else ""


def _left_out(names: list[str]) -> str:
    return f"LAMINA_SKIP leaves out {' and '.join(names)}"


def _apart(graph: Graph, behind: tuple[Refusal, ...]) -> tuple[tuple[str, str], ...]:
    """Operators that were not fused behind a contraction, each once for a reason."""
    return tuple(dict.fromkeys((graph.node(refusal.consumer).op.name, refusal.reason)
                               for refusal in behind))


# --- text ---------------------------------------------------------------------------------------


def show_choices(graph: Graph, batch: int, rate: float | None, options: Options) -> str:
    """The table of contractions with its total; `rate` in GFLOP/s, None: measured now."""
    skip = optional(options.skip)
    sizes = example_sizes(graph, batch)
    choices = choices_of(graph, batch, skip, remembered(graph, sizes, options))
    measured = rate is None
    rate = gemm_rate(options, rounds=GEMM_ROUNDS) if rate is None else rate
    return choices_text(choices, sizes, rate, measured, skip)


def choices_text(choices: list[Choice], sizes: Mapping[str, int], rate: float, measured: bool,
                 skip: frozenset[str] = frozenset()) -> str:
    """The table, and what its figures are."""
    given = ", ".join(f"{name} = {size}" for name, size in sizes.items()) or "all sizes known"
    parts = any(one.part != FORWARD for one in choices)
    reasons = list(dict.fromkeys(reason for one in choices for _, reason in one.apart))
    total = Choice("total", "", "", "", (), *(
        sum(getattr(one, name) for one in choices) for name in ("macs", "own", "work")), "")
    head = ("MACs", "multiplies", "ms", "tile", "algorithm", *(["part"] if parts else []), "step",
            "at", "why", "not fused behind it")
    source = f"measured now with a product of {GEMM_SIZE} x {GEMM_SIZE} matrices" \
        if measured else "as --rate says"
    notes = [
        "MACs: multiply-accumulates of the sums as they are defined. multiplies: what the "
        f"algorithm does in their place, where that differs: Winograd's {PRODUCTS} for each pair "
        "of channels and tile of results, in whole tiles: " + ", ".join(
            f"{tile} x {tile} results of {taps} x {taps} weights, for {(tile * taps) ** 2}"
            for taps, tile in TILES.items()) + ".",
        f"ms: an estimate from work alone, 2 FLOPs for each multiply-accumulate at {rate:,.1f} "
        f"GFLOP/s ({source}); for Winograd with whole panels of channels and what its transforms "
        "are worth. Memory, borders and cut tiles are not in it: `lamina profile` measures.",
        "tile: rows x vectors*floats of running sums in registers."]
    return "\n".join([
        f"contractions for {given}, vectors of {vector_width()} floats",
        *([_left_out(sorted(skip))] if skip else []),
        *text_table(head, [_cells(one, rate, parts, reasons) for one in (*choices, total)], 3), "",
        *(f"[{number}] {reason}" for number, reason in enumerate(reasons, start=1)),
        *(line for note in notes for line in wrap(note, WIDTH))])


def _cells(one: Choice, rate: float, parts: bool, reasons: list[str]) -> tuple[str, ...]:
    tile = "{} x {}*{}".format(*one.tile) if one.tile else ""
    apart = ", ".join(f"{name} [{reasons.index(reason) + 1}]" for name, reason in one.apart)
    return (f"{one.macs:,}", f"{one.own:,}" if one.own != one.macs else "",
            f"{2 * one.work / rate / 1e6:,.3f}", tile, one.algorithm,
            *([one.part] if parts else []), one.label, one.at, one.why, apart)
