"""Why a row of the profile runs below the rate of a large matrix product: rules over facts.

A rule looks at one step and finds a limit: what share of the product's rate it leaves, in words
with the number that was found. The limits are the reason of a step that reaches most of what they
leave. A row's reason is that of its steps that lose most time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from lamina.runtime.cpu.plan import Plan, nbytes
from lamina.runtime.program import Program

TARGET = 0.6  # share of the product's rate below which a row has to have a reason
LEAST = 0.005  # share of the run that a row takes which is told
REACHED = 0.6  # share of what limits leave, from which on they are the reason
OF_MEMORY = 0.5  # the same where memory is the limit
MOST = 0.9  # share of a row's lost time that is given reasons, where all is too much to tell
FURTHER = 0.25  # of what finishing a sum takes: for each number more than one read or written
MATTERS = 0.95  # what leaves more is no limit
COMBINING = "combining partial sums"
NONE = "no reason known"
OUTSIDE = re.compile(r"scratch|claim|fetch\d+")  # arguments that move nothing more

TILE = re.compile(r"\b(?:tile|part|lanes)_(\d+)x(\d+)_(\d+)\b")  # as `runtime/cpu/tiles` names them
ARGUMENT = re.compile(r"^    (\w+?)(?:_at)? = block\[(\d+)\]$", re.MULTILINE)
DENSE = ("matrix product", "convolution", "fractional convolution", "shifted convolution",
         "weight gradient")
OWN = re.compile(r"[xy]\d+")  # operands and results of what is fused behind a contraction
WEIGHTS, RESULTS = "weights", "results"
ROLES = {"w": WEIGHTS, "b": "its second operand", "a": "its first operand", "x": "its input",
         "dy": "gradients", "partial": "partial sums"}


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured in the same call.

    `flops` and `bytes` are the rates of a large product and a large copy, a second. `finish` is
    how many products of a sum finishing it is worth; `first` and `second` how many bringing a
    number of that operand to the tile is. `start` are seconds that the least step takes.
    """

    flops: float
    bytes: float
    threads: int = 1
    finish: float = 0.0
    first: float = 0.0
    second: float = 0.0
    start: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """What a step does in a run, all rounds of loops together.

    `least` are the seconds of its fastest run, which may be another than that of `seconds`;
    `moved` the bytes that it reads and writes at least, by what they are; `matrices` how many of
    the result's size its end reads and writes; `sizes` what its kernel is given, by name; `tile`
    (rows, vectors, floats in a vector).
    """

    kind: str
    group: str  # contractions, elementwise work ...
    seconds: float
    least: float
    macs: int = 0
    calls: int = 1
    moved: Mapping[str, int] = field(default_factory=dict)
    matrices: int = 1
    sizes: Mapping[str, int] = field(default_factory=dict)
    tile: tuple[int, ...] = ()
    single: bool = False  # on one thread

    @property
    def is_product(self) -> bool:
        """Whether it multiplies and adds."""
        return self.macs > 0


@dataclass(frozen=True, slots=True)
class Limit:
    """What share of the product's rate something leaves, and what that is.

    `fills` says that it leaves a part of each tile's products; other limits take time of their own.
    """

    left: float
    text: str
    fills: bool = False
    reached: float = REACHED


Rule = Callable[[Work, Machine], Limit | None]


# --- rules --------------------------------------------------------------------------------------


def memory(work: Work, machine: Machine) -> Limit | None:
    """The bytes that it must move, at the rate of a large copy."""
    moved = sum(work.moved.values())
    if not moved:
        return None
    what, most = max(work.moved.items(), key=lambda item: item[1])
    rate = moved / work.least
    return Limit(2 * work.macs / machine.flops / (moved / machine.bytes),
                 f"moves {moved / 1e6:,.1f} MB, {most / moved:.0%} of it {what}, at "
                 f"{rate / 1e9:,.1f} GB/s: {rate / machine.bytes:.0%} of a large copy's rate",
                 reached=OF_MEMORY)


def one_thread(work: Work, machine: Machine) -> Limit | None:
    """Small work stays on one of several threads."""
    if not work.single or machine.threads == 1:
        return None
    return Limit(1 / machine.threads, f"too little work to share: 1 of {machine.threads} threads",
                 fills=True)


def lanes(work: Work, machine: Machine) -> Limit | None:
    """Output channels that fill vectors in part; neighbours computed together multiply zeros."""
    whole = _whole_lanes(work)
    if not whole or work.kind.startswith("Winograd"):
        return None
    count = _columns(work) / whole
    if work.kind in ("convolution", "weight gradient"):
        done = prod(work.sizes[name] for name in ("images", "OH", "OW", "groups", "KH", "KW", "C"))
        count = work.macs / work.calls / (done * whole)
    return Limit(count, f"{count * whole:.0f} of {whole} lanes compute what counts", fills=True)


def _columns(work: Work) -> int:
    """What shares a vector: columns of its result, or a group's output channels; 0 for none."""
    if work.kind == "convolution along rows":
        return work.sizes["OW"]
    if work.kind == "shifted convolution":
        return work.sizes["KW"] * work.sizes["K"]
    return work.sizes.get("N", work.sizes.get("K", 0))


def _whole_lanes(work: Work) -> int:
    """The same with what fills its last tile up; 0 where that is not known."""
    width = work.tile[1] * work.tile[2] if work.tile else 1
    return -(-_columns(work) // width) * width if work.tile else 0


def tile_rows(work: Work, machine: Machine) -> Limit | None:
    """A weight gradient with fewer weights of a filter than whole tiles have rows."""
    if work.kind != "weight gradient" or not work.tile:
        return None
    rows = prod(work.sizes[name] for name in ("KH", "KW", "C"))
    whole = -(-rows // work.tile[0]) * work.tile[0]
    return Limit(rows / whole, f"{rows} of {whole} rows of its tiles count", fills=True)


def few_rows(work: Work, machine: Machine) -> Limit | None:
    """A product whose second operand is read for few rows."""
    if work.kind != "matrix product":
        return None
    rows = work.sizes["M"]
    return Limit(rows / (rows + machine.second),
                 f"each number of its second operand serves {_count(rows, 'row')}: bringing it "
                 f"takes as long as {machine.second:.0f}")


def few_columns(work: Work, machine: Machine) -> Limit | None:
    """A product or a convolution whose first operand is read for few columns or channels."""
    whole = _whole_lanes(work)
    if not whole or work.kind not in DENSE:
        return None
    return Limit(whole / (whole + machine.first),
                 f"each number of its first operand serves {whole} lanes: bringing it takes as "
                 f"long as {machine.first:.0f}")


def short_sums(work: Work, machine: Machine) -> Limit | None:
    """Sums of few products, each of which is finished: stored, and what is fused behind it."""
    depth = _depth(work)
    if not depth:
        return None
    finish = machine.finish * (1 + FURTHER * (work.matrices - 1))
    return Limit(depth / (depth + finish),
                 f"sums of {_count(depth, 'product')}: ending one, with "
                 f"{_count(work.matrices, 'number')} read or written, takes as long as "
                 f"{finish:.0f}")


def _depth(work: Work) -> int:
    """The products of one sum; 0 for other kinds of steps."""
    if work.kind == "matrix product":
        return work.sizes["K"]
    if work.kind == "shifted convolution":
        return work.sizes["KH"] * work.sizes["C"]
    if work.kind not in ("convolution", "fractional convolution", "convolution along rows"):
        return 0
    apart = prod(work.sizes[name] for name in ("stride_h", "stride_w")) \
        if work.kind.startswith("fractional") else 1
    return max(1, prod(work.sizes[name] for name in ("KH", "KW", "C")) // apart)


def small(work: Work, machine: Machine) -> Limit | None:
    """So little work that starting it counts, and waiting for the other threads at its end."""
    each = work.least / work.calls
    if not machine.start or each <= 0:
        return None
    return Limit(max(0.0, 1 - machine.start / each),
                 f"takes {each * 1e6:.1f} us{' a round' if work.calls > 1 else ''}, of which "
                 f"starting and waiting are {machine.start * 1e6:.1f}")


RULES: tuple[Rule, ...] = (memory, one_thread, lanes, tile_rows, few_rows, few_columns,
                           short_sums, small)


def depthwise(work: Work) -> str:
    """Each channel has a filter of its own: a number that is loaded serves few products."""
    sizes = work.sizes
    if "KH" not in sizes or "lanes" not in sizes:
        return ""
    return "no sum over channels, each number loaded serves " \
           f"{_count(sizes['KH'] * sizes['KW'], 'product')} at most"


# --- a step -------------------------------------------------------------------------------------


def reason_of_step(work: Work, machine: Machine) -> str:
    """Why a contraction runs below the target, in one sentence."""
    share = 2 * work.macs / work.least / machine.flops
    if share >= TARGET:
        return f"disturbed in this run: {share:.0%} of the product rate in its fastest"
    found = [limit for rule in RULES if (limit := rule(work, machine)) is not None
             and limit.left < MATTERS]
    found.sort(key=lambda limit: limit.left)
    for limit in found:
        if share >= limit.reached * limit.left:
            return limit.text
    if few := depthwise(work):
        return ", ".join([few, *(limit.text for limit in found[:1] if limit.fills)])
    apart = [limit for limit in found if limit.reached == REACHED]
    for number in range(2, len(apart) + 1):
        left = left_by(apart[:number])
        if share >= REACHED * left:
            texts = " and ".join(limit.text for limit in apart[:number])
            return f"{texts} (together they leave {left:.0%})"
    return NONE + (f" beyond this: {found[0].text}" if found else "")


def left_by(limits: Iterable[Limit]) -> float:
    """What limits leave together: idle parts of tiles multiply, other times add up.

    Memory is not among them: it is in what the others were measured with.
    """
    idle, more = 1.0, 0.0
    for limit in limits:
        if limit.fills:
            idle *= limit.left
        else:
            more += 1 / max(limit.left, 1e-9) - 1
    return idle / (1 + more * idle)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# --- a row --------------------------------------------------------------------------------------


def reason_of(works: Sequence[Work], machine: Machine) -> str:
    """Why steps together run below the target: what takes the time that they have too much.

    Empty where they do not, or multiply nothing.
    """
    seconds, macs = sum(work.seconds for work in works), sum(work.macs for work in works)
    surplus = seconds - _allowed(macs, machine)
    if not macs or surplus <= 0:
        return ""
    products = [work for work in works if work.is_product]
    slow = [(work.seconds - _allowed(work.macs, machine), work) for work in products]
    causes = [(lost, _named(work, products) + reason_of_step(work, machine))
              for lost, work in slow if lost > 0]
    for group in dict.fromkeys(work.group for work in works if not work.is_product):
        taken = sum(w.seconds for w in works if not w.is_product and w.group == group)
        causes.append((taken, f"{taken / seconds:.0%} of its time is {group}"))
    said, rest = [], (1 - MOST) * surplus
    for lost, text in sorted(causes, key=lambda cause: -cause[0]):
        if surplus > rest:
            said.append(text)
            surplus -= lost
    own = sum(work.seconds for work in products)
    if own <= _allowed(macs, machine):
        said.insert(0, f"its products alone run at {2 * macs / own / machine.flops:.0%}")
    return "; ".join(said)


def _allowed(macs: int, machine: Machine) -> float:
    """The seconds that so many multiply-accumulates may take."""
    return 2 * macs / (TARGET * machine.flops)


def _named(work: Work, products: Sequence[Work]) -> str:
    """Which of several products a sentence is about."""
    kinds = [product.kind for product in products]
    if len(kinds) == 1:
        return ""
    if kinds.count(work.kind) == 1 or "M" not in work.sizes:
        return f"{work.kind}: "
    return "{M} x {N} sums of {K}: ".format(**work.sizes)


# --- facts --------------------------------------------------------------------------------------


def work_of(program: Program, plan: Plan, index: int, kind: str, group: str, seconds: float,
            least: float, macs: int) -> Work:
    """The facts of a step from its Program and plan, its times and its multiply-accumulates."""
    if not macs or not seconds:
        return Work(kind, COMBINING if program.steps[index].helper == "combine" else group,
                    seconds, least)
    step = program.steps[index]
    kernel, names = program.kernels[step.kernel], argument_names(program, index)
    given = {names[slot]: value for slot, (what, _, value) in enumerate(plan.arguments[index])
             if what == "size" and slot in names}
    tiles = [tuple(map(int, found)) for found in TILE.findall(kernel.source)]
    if "lanes_" in kernel.source:
        given["lanes"] = 1
    used = list(_used(plan, index, names))
    sizes = {number: nbytes(program.buffers[number], plan.shapes[number]) for _, number, _ in used}
    moved: dict[str, int] = {}
    for name, number, writes in used:
        kept = program.buffers[number].kind in ("param", "const")
        role = WEIGHTS if kept and not writes else ROLES.get(name, RESULTS if writes else
                                                             "what is joined to its results")
        moved[role] = moved.get(role, 0) + sizes[number]
    ends = [sizes[number] for name, number, _ in used if OWN.fullmatch(name)]
    rounds = prod(count for loop, count in zip(program.loops, plan.rounds, strict=True)
                  if loop.first <= index <= loop.last)
    return Work(kind, group, seconds, least, macs, max(1, rounds), moved,
                max(1, sum(2 * size > max(ends) for size in ends)), given,
                max(tiles, default=()), plan.single[index])


def argument_names(program: Program, index: int) -> dict[int, str]:
    """The arguments of a step's kernel by number; behind them, those of what finishes its tiles."""
    step, found = program.steps[index], {}
    finish = [program.kernels[number] for what, number in step.args  # type: ignore[index]
              if what == "kernel"]
    for kernel in (program.kernels[step.kernel], *finish):
        begin = len(found)
        found |= {begin + int(slot): name for name, slot in ARGUMENT.findall(kernel.source)}
    return found


def _used(plan: Plan, index: int, names: Mapping[int, str]) -> Iterator[tuple[str, int, bool]]:
    """(name, buffer, whether it is written) of the distinct buffers that a step moves."""
    seen = set()
    for slot, (what, number, _) in enumerate(plan.arguments[index]):
        name = names.get(slot, "")
        writes = name == "partial" or name.startswith("y")
        if what == "buffer" and not OUTSIDE.fullmatch(name) and (number, writes) not in seen:
            seen.add((number, writes))
            yield name, number, writes
