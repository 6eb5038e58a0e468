"""Where the time of a run goes: by layer, by kernel, step by step, beside the machine's rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from rich.console import Console

from lamina.api import Net, initial_values, make_runner
from lamina.commands.bench import (
    choose_batch,
    copy_rate,
    example_inputs,
    example_sizes,
    gemm_rate,
    product_rate,
    require_room,
    sizes_text,
)
from lamina.commands.slow import LEAST, TARGET, Machine, Work, reason_of, work_of
from lamina.commands.tables import Column, print_table
from lamina.commands.tuning import say, tuned
from lamina.compiler.inspect.cost import summarize
from lamina.compiler.inspect.owners import origins, place_text
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.types import substitute
from lamina.compiler.options import Every, Options
from lamina.runtime.cpu.executor import Executor
from lamina.runtime.cpu.plan import total_macs
from lamina.runtime.errors import Failure
from lamina.runtime.program import FORWARD, UPDATING, Program, Step

ORDERS = ("time", "order")
OPTIMIZER = "optimizer"  # the row of what replaces parameters
BETWEEN = "between steps"  # the row of what no step takes
LEAST_ROUNDS, MOST_ROUNDS, ENOUGH = 3, 100, 3.0  # runs that are timed, for about 3 seconds
GEMM_ROUNDS = 20
FEW = 16  # rows, columns, or terms of a sum, of products that show what so few of them cost
SHORT_SUMS, FEW_COLUMNS, FEW_ROWS = (16384, 1024, FEW), (16384, FEW, 1024), (FEW, 4096, 4096)
MOST_START = 20e-6  # seconds of a step that are taken for its start, at most
WORTH_SAYING = 1.01  # how many times the model's count kernels multiply before it is told

# What a kernel is, by the beginning of its title; and what of a run that belongs to.
KINDS = (
    ("Matrix product", "matrix product"), ("Direct convolution", "convolution"),
    ("Convolution along rows", "convolution along rows"),
    ("Convolution by shifted sums", "shifted convolution"),
    ("Winograd: convolution", "Winograd convolution"),
    ("Winograd: weight gradient", "Winograd weight gradient"),
    ("Winograd: weights", "packing"), ("Depthwise convolution", "depthwise convolution"),
    ("Fractionally strided", "fractional convolution"),
    ("Weight gradient", "weight gradient"),
    ("Depthwise weight gradient", "depthwise weight gradient"), ("Packs", "packing"),
    ("Elementwise", "elementwise"), ("Along rows", "reduction"),
    ("Over inner axes", "reduction"), ("Over leading axes", "reduction"),
    ("Combine partial results", "reduction"), ("Mean of windows", "pooling"),
    ("Max pooling", "pooling"), ("Average pooling", "pooling"),
    ("Gradient of a mean of windows", "pooling"), ("Gradient of max pooling", "pooling"),
    ("Gradient of average pooling", "pooling"), ("Rows of a table", "lookup"),
    ("Gradient of a lookup", "lookup"), ("Non-maximum suppression", "selection"),
    ("Zero padding", "copy"))
HELPERS = {"copy": "copy", "fill": "fill", "constant": "fill"}
GROUPS = {
    "contractions": ("matrix product", "convolution", "Winograd convolution",
                     "depthwise convolution", "fractional convolution", "shifted convolution",
                     "convolution along rows", "weight gradient", "depthwise weight gradient",
                     "Winograd weight gradient"),
    "elementwise work": ("elementwise",),
    "reductions, pooling, lookups": ("reduction", "pooling", "lookup", "selection", "other"),
    "copies and packing": ("copy", "fill", "packing")}


@dataclass(frozen=True, slots=True)
class Row:
    """What some steps take together. `macs` are all that kernels do, `steps` how many there are.

    `part` and `kind` are empty where the steps differ in it, `at` is the place in the source of
    the first step that has one, `works` the facts of all.
    """

    name: str
    part: str
    kind: str
    seconds: float
    macs: int
    steps: int = 1
    at: str = ""
    works: tuple[Work, ...] = ()

    @property
    def gflops(self) -> float | None:
        """10^9 floating-point operations a second; None where nothing is multiplied and added."""
        return 2 * self.macs / self.seconds / 1e9 if self.macs and self.seconds else None


@dataclass(frozen=True, slots=True)
class Profile:
    """The times of the fastest of `rounds` runs: seconds of each step in order, and of the whole.

    `asked` are the multiply-accumulates of the model by its layers' formulas; `machine` is what the
    machine can do, measured in the same call.
    """

    model: str
    mode: str
    batch: int
    input: str
    threads: int
    rounds: int
    steps: tuple[Row, ...]
    layers: tuple[str, ...]  # of each step
    whole: float
    asked: int
    machine: Machine
    checkpoint_every: Every = None

    @property
    def gemm(self) -> float:
        """The machine's rate of a large matrix product in GFLOP/s."""
        return self.machine.flops / 1e9

    @property
    def between(self) -> float:
        """Seconds that no step takes."""
        return self.whole - sum(row.seconds for row in self.steps)

    @property
    def total(self) -> Row:
        """The whole run as a row."""
        return Row("total", "", "", self.whole, sum(row.macs for row in self.steps),
                   len(self.steps))


def measure(net: Net, graph: Graph | None, batch: int | None, rounds: int | None,
            options: Options) -> Profile:
    """Run a model, or the training step `graph`, `rounds` times and time its steps.

    `batch` None: that of the given sizes, or 64; `rounds` None: for about three seconds. Raises
    CompileError E416 for two batches, Failure E416 for a target without steps, MemoryError where
    the run does not fit.
    """
    if options.target != "cpu":
        raise Failure("E416", f"the target {options.target} has no steps to time",
                      "leave --target out: the steps are those of the target cpu")
    forward = net.graph
    batch = choose_batch(forward, batch)
    whole = forward if graph is None else graph
    options = tuned(whole, example_sizes(whole, batch), options)
    runner = make_runner(whole, options)
    say(runner, options)
    assert isinstance(runner, Executor)
    program = runner.program
    runner.set_params(initial_values(whole, 0))
    require_room(runner, whole, batch)
    inputs = example_inputs(whole, batch)
    runner.run(inputs)
    if rounds is None:
        once = float(runner.measure(inputs).whole.min())
        rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(ENOUGH / once)))
    times = runner.measure(inputs, rounds)
    best = int(times.whole.argmin())
    plan = runner.plan(example_sizes(whole, batch))
    threads = runner.threads
    runner.close()
    del runner  # its memory is wanted for the copy
    files = origins(whole)
    measured = zip(program.steps, times.steps[best].tolist(), times.steps.min(axis=0).tolist(),
                   total_macs(program, plan), strict=True)
    rows = []
    for index, (step, seconds, least, macs) in enumerate(measured):
        kind = kind_of(program, step)
        work = work_of(program, plan, index, kind, _group_of(kind), seconds, least, macs)
        rows.append(Row(step.label, step.part, kind, seconds, macs,
                        at=place_text(files, step.layer, step.line), works=(work,)))
    own = net.definition.name if graph is None else f"{net.definition.name}, loss"
    layers = [step.layer or (OPTIMIZER if step.part == UPDATING else own) for step in program.steps]
    return Profile(
        net.definition.name, "infer" if graph is None else "train", batch,
        sizes_text(forward, batch), threads, len(times.whole), tuple(rows), tuple(layers),
        float(times.whole[best]), _asked(forward, whole, batch),
        _machine(options, threads, rows), options.checkpoint_every)


def _machine(options: Options, threads: int, rows: Sequence[Row]) -> Machine:
    """What the machine does now: a large product, ones that lack something, a large copy."""
    large = gemm_rate(options, rounds=GEMM_ROUNDS)
    finish, first, second = (
        max(0.0, FEW * (large / product_rate(options, sizes, GEMM_ROUNDS) - 1))
        for sizes in (SHORT_SUMS, FEW_COLUMNS, FEW_ROWS))
    least = min((work.least for row in rows for work in row.works if work.least), default=0.0)
    return Machine(large * 1e9, copy_rate(options) * 1e9, threads, finish, first, second,
                   min(least, MOST_START))


def _group_of(kind: str) -> str:
    return next(name for name, kinds in GROUPS.items() if kind in kinds)


def _asked(forward: Graph, whole: Graph, batch: int) -> int:
    """The multiply-accumulates of a batch that the layers' formulas give."""
    found = summarize(forward)
    each = found.macs if whole is forward else found.macs + found.backward
    count = substitute(each, {**example_sizes(forward, batch), **example_sizes(whole, batch)})
    assert isinstance(count, int)
    return count * batch


def kind_of(program: Program, step: Step) -> str:
    """What the kernel of a step is; "other" for one that is not known."""
    title = program.kernels[step.kernel].title
    kind = next((kind for begin, kind in KINDS if title.startswith(begin)), "other")
    return HELPERS.get(step.helper, kind) if kind == "elementwise" else kind


# --- rows ---------------------------------------------------------------------------------------


def rows_by(profile: Profile, by: str, order: str = "time") -> list[Row]:
    """The steps in rows, by "layer" (forward and backward apart), by "kernel" or each "step".

    `order` is "time", the longest first, or "order", that in which they begin to run.
    """
    steps = zip(profile.steps, profile.layers, strict=True)
    if by == "step":
        rows = list(profile.steps)
    elif by == "kernel":
        rows = _joined([(row.kind, "", row.kind, row) for row in profile.steps])
    else:
        rows = _joined([(layer, row.part, "", row) for row, layer in steps])
    return sorted(rows, key=lambda row: -row.seconds) if order == "time" else rows


def _joined(named: Sequence[tuple[str, str, str, Row]]) -> list[Row]:
    """A row for each name, part and kind, with the sums of its steps."""
    members: dict[tuple[str, str, str], list[Row]] = {}
    for name, part, kind, row in named:
        members.setdefault((name, part, kind), []).append(row)
    return [Row(*key, sum(row.seconds for row in rows), sum(row.macs for row in rows), len(rows),
                next((row.at for row in rows if row.at), ""),
                tuple(work for row in rows for work in row.works))
            for key, rows in members.items()]


def groups_of(profile: Profile) -> dict[str, float]:
    """Seconds of contractions, elementwise work and so on; together they are the whole."""
    found = {name: sum(row.seconds for row in profile.steps if row.kind in kinds)
             for name, kinds in GROUPS.items()}
    return {**found, BETWEEN: profile.between}


# --- output -------------------------------------------------------------------------------------


def print_profile(console: Console, profile: Profile, by: str, order: str,
                  most: int | None = None) -> None:
    """The table of rows with their total, what kind of work it is, and how it was measured.

    `most` is how many rows are shown; one more has the sum of the others.
    """
    rows = rows_by(profile, by, order)
    if most is not None and len(rows) > most:
        rows = _shortened(rows, most)
    reasons = [] if by == "kernel" else list(_reasons(profile, rows))
    rows += [Row(BETWEEN, "", "", profile.between, 0, 0), profile.total]
    for_training = profile.mode == "train"
    columns = [Column(by, tuple(row.name for row in rows), folds=True)]
    if for_training and by != "kernel":
        columns.append(Column("part", tuple(row.part for row in rows)))
    if by == "step":
        columns.append(Column("kernel", tuple(row.kind for row in rows)))
        columns.append(Column("at", tuple(row.at for row in rows)))
    else:
        columns.append(Column("steps", tuple(str(row.steps or "") for row in rows), True))
    columns += [
        Column("ms", tuple(f"{row.seconds * 1e3:,.3f}" for row in rows), True),
        Column("% time", tuple(_percent(row.seconds, profile.whole) for row in rows), True),
        Column("MACs", tuple(f"{row.macs:,}" if row.macs else "" for row in rows), True),
        Column("GFLOP/s", tuple(_rate(row.gflops) for row in rows), True),
        Column("% product", tuple(_percent(row.gflops, profile.gemm) for row in rows), True)]
    what = "training step" if for_training else "inference"
    print_table(console, f"{profile.model}, {what}: {profile.input}", columns)
    console.print()
    for line in _notes(profile):
        console.print(line, highlight=False, markup=False)
    if reasons:
        console.print(f"\nbelow {TARGET:.0%} of the product rate, of rows that take {LEAST:.1%} of "
                      "the run or more, and why:", highlight=False, markup=False)
    for line in reasons:
        for part in wrap(line, console.width, subsequent_indent="    "):
            console.print(part, highlight=False, markup=False)


def _reasons(profile: Profile, rows: Sequence[Row]) -> Iterator[str]:
    """A line for each row that multiplies slowly and takes some time."""
    for row in rows:
        reason = reason_of(row.works, profile.machine)
        if reason and row.seconds >= LEAST * profile.whole:
            part = f", {row.part}" if profile.mode == "train" else ""
            yield f"{row.name}{part}, {_percent(row.gflops, profile.gemm)}: {reason}"


def _shortened(rows: list[Row], most: int) -> list[Row]:
    """The rows that take longest, in their order, and one with the sum of the others."""
    shown = set(sorted(range(len(rows)), key=lambda index: -rows[index].seconds)[:most])
    kept = [row for index, row in enumerate(rows) if index in shown]
    rest = [row for index, row in enumerate(rows) if index not in shown]
    return [*kept, Row(f"{len(rest)} others", "", "", sum(row.seconds for row in rest),
                       sum(row.macs for row in rest), sum(row.steps for row in rest))]


def _notes(profile: Profile) -> list[str]:
    shares = ", ".join(f"{name} {_percent(seconds, profile.whole)}"
                       for name, seconds in groups_of(profile).items())
    lines = [shares,
             f"times of the fastest of {profile.rounds} runs on {profile.threads} "
             f"thread{'' if profile.threads == 1 else 's'}; 1 MAC = 2 FLOPs; a large matrix "
             f"product runs at {profile.gemm:.1f} GFLOP/s on this machine now (100 % product)",
             f"{BETWEEN}: the whole run less its steps: inputs and outputs are copied, threads "
             "woken and awaited, the machine disturbed by others"]
    macs = profile.total.macs
    if profile.checkpoint_every is not None:
        lines.append(f"--checkpoint-every {profile.checkpoint_every}: the part again computes "
                     "what is not kept, which the MACs of `lamina shapes` leave out")
    if profile.asked and macs > WORTH_SAYING * profile.asked:
        lines.append(f"kernels do {macs / profile.asked:.2f} times the {profile.asked:,} MACs of "
                     "`lamina shapes`: they multiply the zeros of borders, too")
    return lines


def _percent(part: float | None, whole: float) -> str:
    return "" if part is None or not whole else f"{part / whole:.1%}"


def _rate(gflops: float | None) -> str:
    return "" if gflops is None else f"{gflops:.1f}"


def profile_json(profile: Profile, order: str) -> dict[str, Any]:
    """Everything as plain data: seconds, GFLOP/s, shares from 0 to 1."""
    return {
        "model": profile.model, "target": "cpu", "mode": profile.mode, "batch": profile.batch,
        "input": profile.input, "threads": profile.threads, "rounds": profile.rounds,
        "seconds": profile.whole, "between_s": profile.between, "macs": profile.total.macs,
        "checkpoint_every": profile.checkpoint_every,
        "model_macs": profile.asked, "gflops": profile.total.gflops,
        "gemm_gflops": profile.gemm, "copy_gb_s": profile.machine.bytes / 1e9,
        "groups": groups_of(profile),
        "layers": [_row_json(row, profile, "layer") for row in rows_by(profile, "layer", order)],
        "kernels": [_row_json(row, profile, "kernel")
                    for row in rows_by(profile, "kernel", order)],
        "steps": [_row_json(row, profile, "label") for row in rows_by(profile, "step", order)]}


def _row_json(row: Row, profile: Profile, name: str) -> dict[str, Any]:
    facts: dict[str, Any] = {name: row.name}
    if name != "kernel":
        facts["part"] = row.part or FORWARD
    if name == "label":
        facts |= {"kernel": row.kind, "at": row.at}
    else:
        facts["steps"] = row.steps
    rate = row.gflops
    if name != "kernel":
        facts["reason"] = reason_of(row.works, profile.machine) or None
    return {**facts, "seconds": row.seconds, "share": row.seconds / profile.whole,
            "macs": row.macs, "gflops": rate,
            "of_gemm": None if rate is None else rate / profile.gemm}
