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
from lamina.compiler.ops.window import padding_pairs
from lamina.compiler.options import Measured, Options
from lamina.compiler.transform.fuse import Refusal, groups_of
from lamina.compiler.transform.pipeline import Stage, graph_before, optional, run_passes
from lamina.compiler.transform.pointwise import kernel_used, why_no_product
from lamina.compiler.transform.shifted import (
    shifting_gain,
    shifting_products,
    shifting_work,
    why_not_shifted,
)
from lamina.compiler.transform.winograd import (
    CONVOLUTIONS,
    VARIANTS,
    VECTOR,
    Variant,
    gain_of,
    tile_work,
    tiles_of,
    times_of,
    times_text,
    variant_of,
    why_direct,
    without_border,
)
from lamina.runtime.cpu.host import vector_width
from lamina.runtime.cpu.plan import make_plan, total_macs
from lamina.runtime.program import FORWARD, THREADS, Kernel, Program, Step, evaluate

PRODUCT, DIRECT, DEPTHWISE = "matrix product", "direct", "depthwise"
WINOGRAD, FRACTIONAL, SHIFTED, ROWS = "Winograd", "fractional", "shifted sums", "along rows"
ALGORITHMS = (  # by the beginning of a kernel's title
    ("Matrix product", PRODUCT), ("Direct convolution", DIRECT), ("Weight gradient", DIRECT),
    ("Winograd", WINOGRAD), ("Depthwise", DEPTHWISE),
    ("Fractionally strided", FRACTIONAL), ("Convolution by shifted sums", SHIFTED),
    ("Convolution along rows", ROWS))
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
    for index, (inside, node, group, behind) in zip(steps, nodes, strict=True):
        step, macs = program.steps[index], counts[index]
        algorithm = _algorithm(program, step)
        own = work = macs
        variant = _variant(inside, node)
        if variant is not None and macs:
            rounds = macs // evaluate(step.macs, plan.bindings)
            result, (outputs, channels, *_) = _image_and_weights(inside, node)
            tiles = rounds * _number(tiles_of(result, variant.tile), sizes)
            own = tiles * variant.products * _number(channels * outputs, sizes)
            work = tiles * tile_work(variant, _number(channels, sizes), _number(outputs, sizes))
        elif algorithm == SHIFTED and macs:
            images, rows, columns, _ = (_number(n, sizes) for n in node.type.shape)
            images *= macs // evaluate(step.macs, plan.bindings)
            weights = _image_and_weights(inside, node)[1]
            border = padding_pairs(node.attributes["padding"])
            own, work = (images * count(rows, columns, weights, border)  # type: ignore[arg-type]
                         for count in (shifting_products, shifting_work))
        was = were.get((node.op.name, *_place(node)), "a product as it stands")
        found.append(Choice(
            step.label, place_text(files, step.layer, step.line), step.part, algorithm,
            _tile(program.kernels[step.kernel]), macs, own, work,
            _reason(inside, node, algorithm, was, skip) + _times(inside, node, measured)
            + _parts(group, node),
            _apart(inside, behind)))
    return found


def _algorithm(program: Program, step: Step) -> str:
    """What a step's kernel is, if it is a contraction and helps no other step; else "" ."""
    title = program.kernels[step.kernel].title
    known = next((name for begin, name in ALGORITHMS if title.startswith(begin)), "")
    return "" if step.helper else known


def _tile(kernel: Kernel) -> tuple[int, ...]:
    found = [tuple(map(int, sizes)) for sizes in NAMED.findall(kernel.source)]
    return max(found, default=())  # a product of few rows has a lower one beside


def _number(size: Dim, sizes: Mapping[str, int]) -> int:
    found = substitute(size, sizes)
    assert isinstance(found, int)
    return found


# --- why ----------------------------------------------------------------------------------------


def _contractions(graph: Graph, fused: bool
                  ) -> Iterator[tuple[Graph, Node, tuple[Node, ...], tuple[Refusal, ...]]]:
    """The contractions of a graph before it is fused, in the order of their steps.

    With what one kernel computes with each, and what was kept out.
    """
    groups = groups_of(graph) if fused else [((node,), ()) for node in graph.nodes]
    for nodes, behind in groups:
        for node in nodes:
            if node.op is SCAN:
                assert node.body is not None
                yield from _contractions(node.body, fused)
            elif node.op.name in CONTRACTIONS:
                yield graph, node, nodes, behind


def _became_products(stages: list[Stage]) -> dict[tuple[str, str, int], str]:
    """Why the pass `pointwise` made products of convolutions, by operator, path and line."""
    before, found = graph_before(stages, "pointwise"), {}
    for inside, node, _, _ in _contractions(before, False) if before else ():
        if node.attributes.get("layout") != "nhwc":
            continue
        kernel, used = _image_and_weights(inside, node)[1][2:], kernel_used(inside, node)
        if not why_no_product((0, 0, *used), {**node.attributes, "padding": 0}):
            found["matmul", *_place(node)] = \
                "a convolution by 1x1 is a product over its pixels" if used == kernel else \
                f"one tap of its {kernel[0]}x{kernel[1]} meets pixels: a product over these"
    return found


def _place(node: Node) -> tuple[str, int]:
    return node.path, node.span.line if node.span else 0


def _image_and_weights(graph: Graph, node: Node) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
    """The shapes of a convolution's result and weights; for a weight gradient, of the like."""
    second = graph.type(node.inputs[1]).shape
    return (second, node.type.shape) if node.op.name.endswith("_grad") else \
        (node.type.shape, second)


def _variant(graph: Graph, node: Node) -> Variant | None:
    """The variant of Winograd's algorithm that runs a contraction, if one does."""
    if node.op.name not in CONVOLUTIONS:
        return None
    return variant_of(node.attributes["algorithm"], _image_and_weights(graph, node)[1][2])


def _reason(graph: Graph, node: Node, algorithm: str, product: str, skip: frozenset[str]) -> str:
    """Why a contraction runs this algorithm and no other; `product` is why it is one."""
    if node.op.name == "matmul":
        return product
    result, weights = _image_and_weights(graph, node)
    variant = _variant(graph, node)
    if variant is not None:
        gain = gain_of(variant, *result[1:3], weights[1], weights[0])  # type: ignore[arg-type]
        return f"{variant} with stride 1: {gain:.2f} times as fast as direct by its count"
    if algorithm == FRACTIONAL:
        rows, columns = node.attributes["stride"]
        return f"zeros between pixels are skipped: {rows}x{columns} kinds of results, each with " \
               "taps of its own"
    if algorithm == DEPTHWISE:
        return "each channel has a filter of its own: no sum over channels"
    if algorithm == SHIFTED:
        border = padding_pairs(node.attributes["padding"])
        gain = shifting_gain(result[1:3], weights, border)  # type: ignore[arg-type]
        return (f"{weights[3]} columns of the kernel by {weights[0]} outputs lie in vectors "
                f"together: {gain:.2f} times as fast as direct by its count")
    if algorithm == ROWS:
        return (f"pixels of a row are neighbours in memory, and vectors of them take less time "
                f"than such of {weights[0]} outputs by its count")
    if weights[2:] == (1, 1):
        other, name, why = "product", "pointwise", why_no_product(weights, node.attributes)
    else:
        other, name, why = "Winograd", "winograd", why_direct(result, weights, node.attributes)
    left_out = sorted(skip & {"layout", name})
    return f"no {other}: {why or _left_out(left_out)}{_few_outputs(graph, node, weights, skip)}"


def _few_outputs(graph: Graph, node: Node, weights: tuple[Dim, ...], skip: frozenset[str]) -> str:
    """Why a direct convolution of fewer outputs than a vector holds does not shift sums."""
    if node.op.name != "conv2d" or not isinstance(weights[0], int) or weights[0] >= VECTOR:
        return ""
    padding = padding_pairs(node.attributes["padding"])
    border = without_border(graph, node.inputs[0], padding)[1]
    why = why_not_shifted(node.type.shape, weights, node.attributes, border)
    left_out = sorted(skip & {"layout", "shifted"})
    return f"; no shifted sums: {why or _left_out(left_out)}"


def _times(graph: Graph, node: Node, measured: Measured | None) -> str:
    """What was measured of a convolution on this machine, to stand behind the reason."""
    if node.op.name not in CONVOLUTIONS:
        return ""
    times = times_of(measured, node.op.name.endswith("_grad"), *_image_and_weights(graph, node))
    return f"; {times_text(times)}" if times else ""


def _parts(group: tuple[Node, ...], node: Node) -> str:
    """Whether the parts of a product's result (the gates of a cell) are finished together."""
    width = next((one.type.shape[-1] for one in group if one.op.name == "slice"), None)
    return "" if width is None else \
        f"; its {node.type.shape[-1] // width} parts (gates) are finished together"


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
        "algorithm does in their place, where that differs: Winograd's for each pair of channels "
        "and tile of results, in whole tiles: " + ", ".join(
            f"{one.products} for {one.replaced} by {one}" for one in VARIANTS) +
        "; for shifted sums, none of a border of zeros. F(4x4, 3x3): tiles of 4x4 results of a "
        "kernel of 3x3.",
        f"ms: an estimate from work alone, 2 FLOPs for each multiply-accumulate at {rate:,.1f} "
        f"GFLOP/s ({source}); for Winograd with whole panels of channels and what its transforms "
        "are worth, for shifted sums with whole vectors and their additions. Memory, borders and "
        "cut tiles are not in it: `lamina profile` measures.",
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
