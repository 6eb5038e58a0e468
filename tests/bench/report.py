"""The tables of a measurement: lines while it runs, and Markdown from its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Cell = dict[str, Any]
OURS = "ours"
QUIET = 0.1  # cores that others may keep busy in a round
COLUMNS = ("ms", "middle half", "least", "ratio", "error", "MiB", "start s", "compile s")
WIDTHS = (10, 20, 10, 9, 17, 8, 14, 14)


def grouped(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells of the same model, mode and batch together, in order."""
    groups: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell["model"], cell["mode"], cell["batch"]), []).append(cell)
    return list(groups.values())


def ours_of(group: Sequence[Cell]) -> Cell | None:
    """Our cell of a group, if it is good."""
    return next((one for one in group if one["system"] == OURS and good(one)), None)


def good(cell: Cell) -> bool:
    """Whether there is a figure to compare."""
    return cell["status"] == "ok" and cell["seconds"] is not None


def best_of(group: Sequence[Cell]) -> Cell | None:
    """The fastest of the others whose results are right."""
    others = [one for one in group if one["system"] != OURS and good(one)]
    return min(others, key=lambda one: one["seconds"]["median"], default=None)


def ratio(cell: Cell, ours: Cell | None) -> float | None:
    """Their median over ours: above 1 we are faster."""
    if ours is None or cell is ours or not good(cell):
        return None
    return cell["seconds"]["median"] / ours["seconds"]["median"]


def disturbed(cell: Cell) -> bool:
    """Whether other processes took part in half of its rounds."""
    return (cell["others"] or 0.0) > QUIET


# --- while it runs ------------------------------------------------------------------------------


def lines_of(group: Sequence[Cell]) -> str:
    """A table of one group for a terminal."""
    ours, best = ours_of(group), best_of(group)
    head = f"{group[0]['title']}\n  {'':30}" + "".join(
        f"{name:>{width}}" for name, width in zip(COLUMNS, WIDTHS, strict=True))
    rows = [head]
    for cell in group:
        mark = "  best" if cell is best else ""
        row = f"  {cell['label']:30}"
        if cell["seconds"] is None:
            rows.append(f"{row}{cell['status']}: {cell['why']}")
            continue
        row += "".join(f"{text:>{width}}" for text, width in
                       zip(figures(cell, ours), WIDTHS, strict=True))
        row += mark + (f"  {cell['status']}: {cell['why']}" if cell["why"] else "")
        rows.append(row + (f"  others kept {cell['others']:.1f} cores busy" if disturbed(cell)
                           else ""))
    return "\n".join(rows) + "\n"


def figures(cell: Cell, ours: Cell | None) -> list[str]:
    """The columns of a cell."""
    seconds, start = cell["seconds"], cell["start"]
    error = "" if cell["system"] == OURS else number(cell["error"], ".0e")
    if error and cell["change_error"] is not None:
        error += f", {cell['change_error']:.0e}"
    return [milliseconds(seconds["median"]),
            f"{milliseconds(seconds['quarter'])}-{milliseconds(seconds['three_quarters'])}",
            milliseconds(seconds["least"]), number(ratio(cell, ours), ".2f"), error,
            number(cell["memory"].get("running_mb"), ".0f"), pair(start, "cold_s", "start_s"),
            pair(start, "cold_compile_s", "compile_s")]


def pair(start: Cell, cold: str, warm: str) -> str:
    """Seconds, those from an empty cache before if they are known."""
    return " / ".join(filter(None, (number(start.get(name), ".1f") for name in (cold, warm))))


def milliseconds(seconds: float) -> str:
    """Three digits of a time in milliseconds."""
    value = seconds * 1e3
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else \
        f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def number(value: float | None, form: str) -> str:
    """A number, or nothing for None."""
    return "" if value is None else format(value, form)


# --- Markdown -----------------------------------------------------------------------------------


def markdown(found: dict[str, Any]) -> str:
    """The report of a measurement, from what its JSON holds."""
    groups = grouped(found["cells"])
    parts = [conditions(found), short_table(groups), notes(found), full_table(groups)]
    troubles = [f"* {cell['title']}, {cell['label']}: {cell['status']}: {cell['why']}."
                for cell in found["cells"] if cell["why"]]
    if troubles:
        parts.append("\n".join(troubles))
    return "\n\n".join(parts) + "\n"


def conditions(found: dict[str, Any]) -> str:
    """On what, with which versions and how it was measured."""
    machine, settings = found["machine"], found["settings"]
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items() if value)
    rates = "; ".join(
        f"{when} {', '.join(f'{name} {rate:.0f}' for name, rate in each.items())}"
        for when, each in found["product_gflops"].items())
    vectors = ", ".join(machine["vectors"])
    noisy = [cell["others"] for cell in found["cells"] if disturbed(cell)]
    warning = f" NOT TO BE QUOTED: other processes kept up to {max(noisy):.1f} cores busy in " \
              f"{len(noisy)} of {len(found['cells'])} cells." if noisy else ""
    return (f"{settings['threads']} threads of {machine['processor']} ({machine['cores']} cores, "
            f"{vectors}), load {machine['load']:.1f} before; {versions}. Each system in its own "
            f"process, {settings['rounds']} rounds in turn, medians. Matrix products 1024^3 of "
            f"the same run, in GFLOP/s: {rates or 'not measured'}.{warning}")


def short_table(groups: Sequence[Sequence[Cell]]) -> str:
    """One line for each work: ours, the best of theirs, and their ratio."""
    rows = ["| work | Lamina | best of theirs | ratio |", "|---|---|---|---|"]
    for group in groups:
        ours, best = ours_of(group), best_of(group)
        mine = f"{milliseconds(ours['seconds']['median'])} ms" if ours else "no figure"
        theirs = f"{best['label']}, {milliseconds(best['seconds']['median'])} ms" if best else \
            "no figure"
        told = number(ratio(best, ours), ".2f") if best else ""
        rows.append(f"| {group[0]['title']} | {mine} | {theirs} | {told} |")
    return "\n".join(rows)


def notes(found: dict[str, Any]) -> str:
    """What the columns of the full table are."""
    limits = found["tolerances"]
    return (f"Ratios are theirs over ours. Times are milliseconds of a call: the median of the "
            f"rounds, the middle half of them, and the least call. The error is the largest "
            f"difference from our result, relative to its largest entry (above "
            f"{limits['result']:.0e}: wrong); of training, that of the first loss, and of what "
            f"three steps change it by (above {limits['change']:.0e}: wrong). Memory is resident, "
            f"above that after the imports, at most in the rounds, in MiB; of ours the planned "
            f"arena is beside. Starts are seconds from the start of the process to the first "
            f"result, and the compiler's part of them: ours without compiled kernels / with them; "
            f"ONNX Runtime's without the export.")


def full_table(groups: Sequence[Sequence[Cell]]) -> str:
    """One line for each cell."""
    rows = ["| work | system | median | middle half | least | ratio | error | memory | start | "
            "compile |", "|" + "---|" * 10]
    for group in groups:
        ours = ours_of(group)
        for cell in group:
            named = [cell["title"], cell["label"]]
            if cell["seconds"] is None:
                rows.append("| " + " | ".join([*named, cell["status"], *[""] * 7]) + " |")
                continue
            texts = figures(cell, ours)
            arena = cell["memory"]["arena_mb"]
            texts[5] += f" (arena {arena:.0f})" if arena is not None else ""
            if cell["status"] != "ok":
                texts[3] = cell["status"]
            rows.append("| " + " | ".join([*named, *texts]) + " |")
    return "\n".join(rows)
