"""Stages of the compilation as text, for `lamina show`."""

from __future__ import annotations

from typing import Any

from lamina.commands.moves import moves_text
from lamina.compiler.frontend.library import find_file, read_model
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.text import format_graph
from lamina.compiler.lower.program import lower
from lamina.compiler.syntax import ast
from lamina.compiler.syntax.parse import parse
from lamina.compiler.transform.fuse import partition
from lamina.compiler.transform.pipeline import PASSES, run_passes
from lamina.runtime.cpu.host import vector_width
from lamina.runtime.program import Program


def pass_names() -> tuple[str, ...]:
    """The names of the passes in order."""
    return tuple(one.name for one in PASSES)


def pass_of(stage: str) -> str:
    """The pass after which a stage is shown, or the stage itself."""
    return "fuse" if stage == "fused" else stage


def show(graph: Graph, stage: str, why: bool = False, skip: frozenset[str] = frozenset(),
         batch: int = 1) -> str:
    """A stage of a graph's compilation without the passes `skip`, the memory plan aside.

    After the last pass comes what a run of `batch` examples only moves in memory.
    """
    if stage in ("graph", "backward"):
        return format_graph(graph, lines=True)
    if stage == "kernels":
        return kernels_text(lower(run_passes(graph, skip=skip)[-1].graph, vector_width()))
    name = pass_of(stage)
    stages = run_passes(graph, stop_after=name, skip=skip)
    if why and name == "fuse":
        return _refusals(stages[-2].graph)
    text = format_graph(stages[-1].graph, lines=True)
    return f"{text}\n{moves_text(stages[-1].graph, batch)}" if name == PASSES[-1].name else text


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
