"""The memory of a run in words: what sets the peak, what is kept for the backward pass, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

from lamina.commands.bench import example_sizes
from lamina.commands.tables import text_table
from lamina.compiler.inspect.cost import result_bytes
from lamina.compiler.inspect.owners import origins, place_text
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.types import substitute
from lamina.compiler.lower.core import PARTIAL
from lamina.compiler.lower.program import lower
from lamina.compiler.transform.pipeline import run_passes
from lamina.compiler.transform.recompute import computed_again, is_layer
from lamina.compiler.transform.training import STATE
from lamina.runtime.cpu.host import vector_width
from lamina.runtime.cpu.plan import GUARD, Plan, aligned, make_plan, nbytes
from lamina.runtime.program import AGAIN, BACKWARD, FORWARD, THREADS, UPDATING, Program, layer_of

BAR = 40  # characters of the lifetime chart
WIDTH = 100  # of sentences
MOST = 8  # buffers that set the peak, and layers that keep something
SMALL = 100  # a buffer below this part of the peak is not worth a line
WORTH = 1000  # what it is made of is told down to this part of it
HELPERS = {PARTIAL: PARTIAL, "scratch": "scratch", "packed weights": "packed weights",
           "packed operand": "packed operand", "transformed weights": "packed weights",
           "copy": "copy", "padded copy": "padded copy", "winners": "places of the largest"}
# By the parts that write first and read last.
_KEPT_FOR = {(FORWARD, AGAIN): "gradient", (FORWARD, BACKWARD): "gradient",
             (FORWARD, UPDATING): "gradient", (BACKWARD, UPDATING): "update"}
RESULTS = {FORWARD: "activation", AGAIN: "activation, computed again", BACKWARD: "gradient",
           UPDATING: "new value"}


@dataclass(frozen=True, slots=True)
class Held:
    """A place in the arena: what lies there, and from which step to which.

    `of` is the layer with its operators, `purpose` what the bytes are (activation, gradient, packed
    weights ...), `kept_for` whether they are left to the backward pass ("gradient") or to the
    optimizer ("update"). `at` is the place in the source of the step that writes them first.
    """

    of: str
    layer: str
    purpose: str
    kept_for: str
    bytes: int
    offset: int
    first: int
    last: int
    at: str

    @property
    def why(self) -> str:
        """What it is and why it is there for long."""
        return f"{self.purpose}, kept for the {self.kept_for}" if self.kept_for else self.purpose


@dataclass(frozen=True, slots=True)
class Memory:
    """The arena of a run: its buffers in the order of their places, and what is live when.

    `live` are the bytes of all buffers at each step, `peak` the most of them, first at the step
    `at`. `padded` is the most at one step with the
    guard behind every buffer, `backward` the step where the backward pass begins (-1: none).
    """

    arena: int
    held: tuple[Held, ...]
    live: tuple[int, ...]
    peak: int
    at: int
    padded: int
    backward: int

    @property
    def kept(self) -> list[Held]:
        """What the forward pass keeps for the backward pass."""
        return [one for one in self.held if one.first < self.backward and one.kept_for]


def plan_memory(program: Program, plan: Plan, files: Mapping[tuple[str, int], str]) -> Memory:
    """What lies in the arena of a planned program; `files` are its graph's `origins`."""
    steps = program.steps
    begin = next((index for index, step in enumerate(steps) if step.part != FORWARD), -1)
    held = []
    for root, offset in plan.offsets.items():
        first, last = plan.lives[root]
        label = program.buffers[root].label
        part, end = (steps[first].part, steps[last].part) if steps else (FORWARD, FORWARD)
        at = place_text(files, steps[first].layer, steps[first].line) if steps else ""
        of, purpose = _meaning(label, part)
        held.append(Held(of, layer_of(label), purpose, _KEPT_FOR.get((part, end), ""),
                         plan.sizes[root], offset, first, last, at))
    held.sort(key=lambda one: (one.first, one.offset))
    live = live_bytes(plan, len(steps))
    peak = max(live, default=0)
    padded = live_bytes(plan, len(steps), lambda size: aligned(size + GUARD))
    return Memory(plan.arena_bytes, tuple(held), tuple(live), peak, live.index(peak) if live else 0,
                  max(padded, default=0), begin)


def live_bytes(plan: Plan, steps: int, taken: Callable[[int], int] = int) -> list[int]:
    """The bytes of temporary values that are live at each step; one of n bytes takes `taken(n)`."""
    changes = [0] * (steps + 1)
    for root in plan.offsets:
        first, last = plan.lives[root]
        changes[min(first, steps)] += taken(plan.sizes[root])
        changes[min(last + 1, steps)] -= taken(plan.sizes[root])
    found, total = [], 0
    for change in changes[:steps]:
        total += change
        found.append(total)
    return found


def _meaning(label: str, part: str) -> tuple[str, str]:
    """The layer with its operators and what a buffer is for them.

    `label` is the buffer's, `part` that of a training step which writes it.
    """
    of, _, helper = label.rpartition(", ")
    if helper in HELPERS:
        return of, HELPERS[helper]
    layer = layer_of(label)
    operators = label.removeprefix(f"{layer}: ")
    if operators in HELPERS:
        return layer, HELPERS[operators]
    if operators == "pad":
        return label, "padded copy"
    return label, "weight gradient" if "weight_grad" in operators else RESULTS[part]


# --- text ---------------------------------------------------------------------------------------


def show_memory(forward: Graph, whole: Graph, batch: int, everything: bool = False,
                skip: frozenset[str] = frozenset()) -> str:
    """The memory plan of `whole`, a model's graph `forward` itself or its training step.

    `everything`: small buffers and all layers have lines too. `skip` are passes to leave out.
    """
    final = run_passes(whole, skip=skip)[-1].graph
    program = lower(final, vector_width())
    sizes = example_sizes(whole, batch)
    plan = make_plan(program, {**sizes, THREADS: 1})
    asked = substitute(sum(result_bytes(forward).values(), start=0),
                       {**example_sizes(forward, batch), **sizes})
    again = [node.path or node.op.name for node in computed_again(whole) if is_layer(node)]
    return memory_text(program, plan, sizes, origins(final),
                       asked if isinstance(asked, int) else 0, everything, again)


def memory_text(program: Program, plan: Plan, sizes: Mapping[str, int],
                files: Mapping[tuple[str, int], str], results: int, everything: bool = False,
                again: Sequence[str] = ()) -> str:
    """The arena in words and as a chart of lifetimes.

    `files` are the graph's `origins`, `results` the bytes that `lamina shapes` counts, `again` the
    layers that are computed again for the gradient.
    """
    found = plan_memory(program, plan, files)
    given = ", ".join(f"{name} = {size}" for name, size in sizes.items()) or "all sizes known"
    lines = [f"arena {_amount(found.arena)} for {given}, {len(program.steps)} steps, one thread"]
    lines += _around(program, plan)
    if found.held:
        lines += ["", *_peak(program, found, files), *_kept(found, everything),
                  *_again(again, everything), "",
                  *_compared(found, results), "", *_chart(program, found, everything)]
    return "\n".join(lines)


def _around(program: Program, plan: Plan) -> list[str]:
    """What lies outside the arena."""
    totals: dict[str, int] = {}
    for index, buffer in enumerate(program.buffers):
        if buffer.kind in ("input", "output", "param", "const") and buffer.alias < 0:
            kind = "optimizer state" if buffer.key.startswith(STATE) else f"{buffer.kind}s"
            kind = {"params": "parameters", "consts": "constants"}.get(kind, kind)
            totals[kind] = totals.get(kind, 0) + nbytes(buffer, plan.shapes[index])
    told = ", ".join(f"{kind} {_amount(size)}" for kind, size in totals.items() if size)
    return [f"beside it: {told}"] if told else []


def _peak(program: Program, found: Memory, files: Mapping[tuple[str, int], str]) -> list[str]:
    """The step at which most is live, the largest buffers there, and what the arena adds."""
    step = program.steps[found.at]
    where = place_text(files, step.layer, step.line)
    place = (step.label or "a step without a name") + (f" ({where})" if where else "")
    part = "" if found.backward < 0 else f", {step.part}"
    live = sorted((one for one in found.held if one.first <= found.at <= one.last),
                  key=lambda one: (-one.bytes, one.first))
    totals: dict[str, int] = {}
    for one in live:
        totals[one.why] = totals.get(one.why, 0) + one.bytes
    shares = "; ".join(f"{_percent(size, found.peak)} {why}" for why, size in
                       sorted(totals.items(), key=lambda pair: -pair[1])
                       if size * WORTH >= found.peak)
    lines = [f"peak: {_amount(found.peak)} live at step {found.at}{part}: {place}",
             *wrap(f"it is {shares}", WIDTH),
             *text_table(("bytes", "of peak", "steps", "what", "of", "at"),
                     [(f"{one.bytes:,}", _percent(one.bytes, found.peak), _steps(one), one.why,
                       one.of, one.at) for one in live[:MOST]], right=2)]
    rest = live[MOST:]
    if rest:
        lines.append(f"  and {_buffers(len(rest), 'smaller ')}: {_amount(_sum(rest))}")
    gaps = found.arena - found.padded
    return [*lines, *wrap(
        f"the arena is {_amount(found.arena - found.peak)} larger than the peak: "
        f"{found.padded - found.peak:,} bytes of guards behind buffers, where vector loads may "
        f"read, and {gaps:,} ({_percent(gaps, found.arena)}) in gaps between buffers "
        "(fragmentation)", WIDTH)]


def _kept(found: Memory, everything: bool) -> list[str]:
    """What the forward pass keeps, by layer; nothing for inference."""
    if found.backward < 0:
        return []
    layers: dict[str, list[Held]] = {}
    for one in found.kept:
        layers.setdefault(one.layer, []).append(one)
    total = _sum(found.kept)
    largest = sorted(layers.items(), key=lambda pair: -_sum(pair[1]))
    shown = largest if everything else largest[:MOST]
    lines = ["", f"kept for the backward pass, which begins at step {found.backward}: "
             f"{_amount(total)} ({_percent(total, found.peak)} of the peak)",
             *text_table(("bytes", "of kept", "until", "what", "of"),
                     [(f"{_sum(group):,}", _percent(_sum(group), total),
                       str(max(one.last for one in group)), _kinds(group), layer or "no layer")
                      for layer, group in shown], right=3)]
    rest = [one for _, group in largest[len(shown):] for one in group]
    if rest:
        lines.append(f"  and {_amount(_sum(rest))} of {len(largest) - len(shown)} more (--all "
                     "lists them)")
    return lines


def _again(layers: Sequence[str], everything: bool) -> list[str]:
    """What is not kept but computed again, in the order of the backward pass."""
    if not layers:
        return []
    shown = layers if everything else layers[:MOST]
    rest = len(layers) - len(shown)
    more = f" and {rest} more (--all lists them)" if rest else ""
    count = f"{len(layers)} layer{'' if len(layers) == 1 else 's'}"
    return ["", *wrap(f"computed again for the backward pass: {count} (convolutions, matrix "
                      f"products and scans) with what follows them: {', '.join(shown)}{more}",
                      WIDTH)]


def _compared(found: Memory, results: int) -> list[str]:
    """How the plan goes with the estimate from shapes alone."""
    text = "`lamina report` charts the same plan."
    if results:
        text += (f" `lamina shapes --columns bytes` counts {_amount(results)} at these sizes, from "
                 "shapes alone: the result of every layer, whether it is stored or not, without "
                 "gradients, what loops keep of every step, and what kernels need besides. Here "
                 "fused operators store their last result only, and memory is used again when "
                 "nobody reads it any more.")
    return wrap(text, WIDTH)


def _chart(program: Program, found: Memory, everything: bool) -> list[str]:
    """A line for each buffer that is worth one."""
    shown = [one for one in found.held if everything or one.bytes * SMALL >= found.peak]
    steps = max(1, len(program.steps))
    rows = []
    for one in shown:
        left = one.first * BAR // steps
        right = max(left + 1, (one.last + 1) * BAR // steps)
        bar = "." * left + "#" * (right - left) + "." * (BAR - right)
        rows.append((f"{one.offset:,}", f"{one.bytes:,}", _steps(one), bar, one.why, one.of))
    lines = text_table(("offset", "bytes", "steps", "lifetime", "what", "of"), rows, right=2)
    small = [one for one in found.held if not (everything or one.bytes * SMALL >= found.peak)]
    if small:
        lines.append(f"  and {_buffers(len(small))} below {_percent(1, SMALL)} of the peak: "
                     f"{_amount(_sum(small))} if all lived at once (--all shows them)")
    return lines


def _kinds(group: Iterable[Held]) -> str:
    """What some buffers are, the largest first."""
    totals: dict[str, int] = {}
    for one in group:
        totals[one.purpose] = totals.get(one.purpose, 0) + one.bytes
    return ", ".join(sorted(totals, key=lambda kind: -totals[kind]))


def _sum(group: Iterable[Held]) -> int:
    return sum(one.bytes for one in group)


def _steps(one: Held) -> str:
    return f"{one.first}-{one.last}"


def _buffers(count: int, which: str = "") -> str:
    return f"{count} {which}buffer{'' if count == 1 else 's'}"


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _amount(size: int) -> str:
    """Bytes, and from a mebibyte on what they are in those."""
    return f"{size:,} bytes" + (f" ({size / (1 << 20):,.1f} MiB)" if size >= 1 << 20 else "")
