"""Stages of the compilation as text, for `lamina show`."""

from __future__ import annotations

from typing import Any

from lamina.commands.bench import example_sizes
from lamina.compiler.frontend.library import find_file, read_model
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.text import format_graph
from lamina.compiler.lower.program import lower
from lamina.compiler.syntax import ast
from lamina.compiler.syntax.parse import parse
from lamina.compiler.transform.fuse import partition
from lamina.compiler.transform.pipeline import PASSES, run_passes
from lamina.runtime.cpu.host import vector_width
from lamina.runtime.cpu.plan import make_plan
from lamina.runtime.program import THREADS, Program

BAR = 40  # characters of the lifetime chart


def pass_names() -> tuple[str, ...]:
    """The names of the passes in order."""
    return tuple(one.name for one in PASSES)


def show(graph: Graph, stage: str, batch: int = 1, why: bool = False) -> str:
    """A stage of a graph's compilation."""
    if stage in ("graph", "backward"):
        return format_graph(graph, lines=True)
    if stage in ("memory", "kernels"):
        program = lower(run_passes(graph)[-1].graph, vector_width())
        if stage == "kernels":
            return kernels_text(program)
        return memory_text(program, example_sizes(graph, batch))
    name = "fuse" if stage == "fused" else stage
    stages = run_passes(graph, stop_after=name)
    if why and name == "fuse":
        return _refusals(stages[-2].graph)
    return format_graph(stages[-1].graph, lines=True)


def _refusals(graph: Graph) -> str:
    lines = []
    for refusal in partition(graph)[1]:
        producer, consumer = graph.node(refusal.producer), graph.node(refusal.consumer)
        lines.append(f"%{producer.id} {producer.op.name} and %{consumer.id} {consumer.op.name}: "
                     f"{refusal.reason}")
    return "\n".join(lines) or "everything that could be fused was"


def show_ast(file: str) -> str:
    """The syntax tree of a file, one construct a line with its source line."""
    tree = parse(read_model(find_file(file)))
    return "\n".join(_tree(tree, 0))


def _tree(node: Any, depth: int) -> list[str]:
    pad = "  " * depth
    if isinstance(node, tuple):
        return [line for item in node for line in _tree(item, depth)]
    if not ast.is_node(node):
        return []
    words = [repr(part) for part in ast.parts(node)
             if isinstance(part, (str, int, float, bool))]
    lines = [f"{pad}{type(node).__name__} {' '.join(words)}".rstrip() + f"  # {node.span.line}"]
    for part in ast.parts(node):
        lines += _tree(part, depth + 1)
    return lines


def kernels_text(program: Program) -> str:
    """Every kernel's source with the steps that run it."""
    parts = []
    for index, kernel in enumerate(program.kernels):
        users = [f"{step.label} (line {step.line})" if step.line else step.label
                 for step in program.steps if step.kernel == index]
        parts.append(f"# {kernel.name}: {'; '.join(users)}\n{kernel.source}")
    return "\n".join(parts)


def memory_text(program: Program, sizes: dict[str, int]) -> str:
    """The arena: each buffer's place, size and lifetime, and what sets the peak."""
    plan = make_plan(program, {**sizes, THREADS: 1})
    given = ", ".join(f"{name} = {size}" for name, size in sizes.items()) or "all sizes known"
    steps = max(1, len(program.steps))
    rows = sorted(plan.offsets, key=lambda root: (plan.lives[root][0], plan.offsets[root]))
    lines = [f"arena {plan.arena_bytes:,} bytes for {given}, {len(program.steps)} steps",
             f"{'offset':>12} {'bytes':>12}  first-last  lifetime"]
    for root in rows:
        first, last = plan.lives[root]
        left, right = first * BAR // steps, max(first * BAR // steps + 1, (last + 1) * BAR // steps)
        bar = "." * left + "#" * (right - left) + "." * (BAR - right)
        label = program.buffers[root].label
        place = f"{plan.offsets[root]:>12,} {plan.sizes[root]:>12,}  {first:>5}-{last:<5}"
        lines.append(f"{place} {bar}  {label}")
    peak, step = max(((sum(plan.sizes[r] for r in rows
                           if plan.lives[r][0] <= s <= plan.lives[r][1]), s)
                      for s in range(steps)), default=(0, 0))
    lines.append(f"peak {peak:,} bytes live at step {step}: {program.steps[step].label}")
    return "\n".join(lines)
