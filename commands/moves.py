"""Where a run only moves elements in memory, how many bytes, and why: below `--stage fused`."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap

from lamina.commands.bench import example_sizes
from lamina.commands.tables import text_table
from lamina.compiler.inspect.owners import origins, place_text
from lamina.compiler.ir.graph import Graph
from lamina.compiler.lower.program import lower
from lamina.runtime.cpu.host import vector_width
from lamina.runtime.cpu.plan import Plan, make_plan, times_of
from lamina.runtime.program import FORWARD, ITEM_BYTES, THREADS, Program, Step, evaluate

WIDTH = 100  # of sentences
PACKS, WRITES = "pack", ("fill", "constant")  # helpers that move, or write what they do not read
MOVES = ("copy", PACKS, *WRITES)
PACKED = "products and convolutions read them in panels as wide as the register tile"


@dataclass(frozen=True, slots=True)
class Move:
    """Steps that move elements: the first one's layer with its operators, and its place.

    `bytes` are those read and written in a run by all `count` of them, all rounds of a loop
    together; with `once` they move only when parameters have been set.
    """

    of: str
    at: str
    part: str
    what: str
    why: str
    bytes: int
    once: bool
    count: int = 1


def moves_of(graph: Graph, batch: int) -> list[Move]:
    """What only moves elements in a run of a fused graph; weights that are packed in one line."""
    program = lower(graph, vector_width())
    plan = make_plan(program, {**example_sizes(graph, batch), THREADS: 1})
    files = origins(graph)
    found: list[Move] = []
    packs: dict[tuple[str, bool], list[int]] = {}
    for index, step in enumerate(program.steps):
        what, once = step.helper.rpartition(" ")[2], index < program.once
        if what not in MOVES:
            continue
        moved = _bytes(program, plan, index, what)
        if what == PACKS:
            packs.setdefault((step.part, once), []).append(moved)
        else:
            found.append(Move(step.label.removesuffix(what).strip(), place_text(
                files, step.layer, step.line), step.part, what, step.why, moved, once))
    found += [Move(f"weights, {len(moved)} times", "", part, PACKS, PACKED, sum(moved), once,
                   len(moved))
              for (part, once), moved in packs.items()]
    return found


def _bytes(program: Program, plan: Plan, index: int, what: str) -> int:
    step = program.steps[index]
    elements = evaluate(step.work, plan.bindings) * times_of(program, plan.rounds, index)
    return elements * _item(program, step) * (1 if what in WRITES else 2)


def _item(program: Program, step: Step) -> int:
    """The bytes of an element: a move changes no type."""
    number = next(value if kind == "buffer" else value[0] for kind, value in step.args
                  if kind in ("buffer", "place"))
    return ITEM_BYTES[program.buffers[number].dtype]  # type: ignore[index]


def moves_text(graph: Graph, batch: int) -> str:
    """The table of moves with its reasons below."""
    moves, sizes = moves_of(graph, batch), example_sizes(graph, batch)
    if not moves:
        return "nothing is only moved in memory"
    given = ", ".join(f"{name} = {size}" for name, size in sizes.items()) or "all sizes known"
    reasons = list(dict.fromkeys(one.why for one in moves))
    parts = any(one.part != FORWARD for one in moves)
    each = sum(one.bytes for one in moves if not one.once)
    once = sum(one.bytes for one in moves if one.once)
    rows = [(f"{one.bytes:,}", one.what + " once" * one.once, *([one.part] if parts else []),
             one.of, one.at, f"[{reasons.index(one.why) + 1}]") for one in moves]
    notes = [f"bytes: read and written. In all {each:,} in every run" + (
        f", and {once:,} once, when parameters have been set" if once else "") + ". fill and "
        "constant write only. Kernels that compute on elements in another order than they lie "
        "in are not counted here."]
    lines = [line for number, reason in enumerate(reasons, start=1)
             for line in wrap(f"[{number}] {reason}", WIDTH, subsequent_indent="    ")]
    return "\n".join([
        f"moves in memory that remain, for {given}",
        *text_table(("bytes", "move", *(["part"] if parts else []), "of", "at", "why"), rows, 1),
        "", *lines, *(line for note in notes for line in wrap(note, WIDTH))])
