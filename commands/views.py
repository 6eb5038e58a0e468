"""Tables and progress on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lamina.commands.console import BuildLine
from lamina.commands.fields import axes_text
from lamina.compiler.inspect.cost import LayerRow, Summary, count_text
from lamina.compiler.inspect.receptive_field import Field
from lamina.runtime.events import (
    Checked,
    EpochDone,
    Event,
    Finished,
    Saved,
    Started,
    StepDone,
    Warned,
)

SHARES = ("token errors",)  # figures that are shares even above 1
REFRESH = 0.1  # seconds between redraws of the progress bar


# --- the layer table ----------------------------------------------------------------------------


def print_summary(summary: Summary) -> None:
    """The layer table with its totals."""
    console = terminal()
    for hidden in HIDDEN:
        fits = _table_width(summary, hidden) <= console.width
        if fits:
            break
    console.print(_layer_table(summary, hidden, fold=not fits))
    buffers = f" and {summary.buffers:,} running statistics" if summary.buffers else ""
    if summary.unused:
        more = f" and {len(summary.unused) - 3} more" if len(summary.unused) > 3 else ""
        console.print(f"no output needs {escape(', '.join(summary.unused[:3]))}{more}")
    console.print(f"{summary.parameters:,} parameters{buffers}, "
                  f"{escape(count_text(summary.macs))} multiply-accumulates per example "
                  "(1 MAC = 2 FLOPs)", highlight=False)


# What a narrow terminal does without, step by step; then paths and shapes take several lines.
HIDDEN = ((), ("op",), ("op", "line"), ("op", "line", "field"), ("op", "line", "field", "MACs"))
COLUMNS = {"layer": "left", "op": "left", "output": "left", "parameters": "right",
           "MACs": "right", "field": "right", "line": "right"}


def _table_width(summary: Summary, hidden: tuple[str, ...]) -> int:
    """The columns of a terminal that a table takes when no line is folded."""
    rows = [tuple(COLUMNS), *map(_cells, _listed(summary))]
    widths = [max(len(cell) for cell in column) + 2
              for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True)
              if name not in hidden]
    return sum(widths) - 2


def _layer_table(summary: Summary, hidden: tuple[str, ...], fold: bool) -> Table:
    """The layer table without some columns; `fold`: paths and shapes may take several lines."""
    table = Table(title=escape(summary.model), title_justify="left", box=None, pad_edge=False)
    for name, justify in COLUMNS.items():
        if name not in hidden:
            folds = fold and name in ("layer", "output")
            table.add_column(name, justify=justify, no_wrap=not folds,  # type: ignore[arg-type]
                             overflow="fold", min_width=12 if folds else None)
    for row in _listed(summary):
        cells = dict(zip(COLUMNS, _cells(row), strict=True))
        table.add_row(*(text for name, text in cells.items() if name not in hidden))
    return table


def _listed(summary: Summary) -> list[LayerRow]:
    """The rows of a table without bytes."""
    return [row for row in summary.layers if not row.only_bytes]


def _cells(row: LayerRow) -> tuple[str, ...]:
    shape = ", ".join(str(size) for size in row.out.shape)
    return (escape(row.name), escape(row.op), escape(f"[{shape}]"),
            f"{row.parameters:,}" if row.parameters else "",
            count_text(row.macs) if row.macs != 0 else "", field_text(row.fields),
            str(row.line or ""))


def field_text(fields: Sequence[Field]) -> str:
    """A receptive field as "size / stride", or as "all"; one for each input where they differ."""
    texts = {field.input: _one_field(field) for field in fields}
    if len(set(texts.values())) < 2:
        return next(iter(texts.values()), "")
    return ", ".join(f"{name} {text}" for name, text in texts.items())


def _one_field(field: Field) -> str:
    if field.whole:
        return "all"
    return f"{axes_text(field.axes, 'size')} / {axes_text(field.axes, 'stride')}"


def terminal() -> Console:
    """Standard output, as wide as it is; a pipe or file gets whole lines."""
    width = None if sys.stdout.isatty() else 200
    return Console(width=width, highlight=False)


# --- training -----------------------------------------------------------------------------------


def print_warning(event: Event) -> None:
    """Say a warning on standard output; other events say nothing."""
    if isinstance(event, Warned):
        terminal().print(f"warning: {escape(event.message)}")


class Silent:
    """Shows nothing, for JSON."""

    def __call__(self, event: Event) -> None:
        """Ignore an event."""

    def close(self) -> None:
        """Nothing to give back."""


class TrainingView:
    """Draws a progress bar on a terminal, a line per epoch elsewhere."""

    def __init__(self, summary: Summary, errors: Sequence[str] = (), line: BuildLine | None = None):
        """`errors` are the metrics that are no shares, `line` tells that kernels are compiled."""
        self.summary, self.errors, self.line = summary, errors, line
        self.console = terminal()
        self.live = self.console.is_terminal
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"), BarColumn(bar_width=12),
            TextColumn("{task.completed}/{task.total}"), TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True), console=self.console, transient=True,
            refresh_per_second=1 / REFRESH)
        self.task: Any = None

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if self.line is not None:
            self.line.show("")
        if isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, EpochDone):
            self._epoch(event)
        elif isinstance(event, Checked):
            self._checked()
        elif isinstance(event, Started):
            self._started(event)
        elif isinstance(event, Warned):
            self.console.print(f"warning: {escape(event.message)}")
        elif isinstance(event, Finished):
            self._finished(event)
        elif isinstance(event, Saved) and event.why == "interrupt":
            self.console.print(f"saved {escape(str(event.path))}")

    def _checked(self) -> None:
        print_summary(self.summary)
        if self.line is not None:
            self.line.show("compiling")

    def _started(self, event: Started) -> None:
        going = f", going on at step {event.step:,}" if event.step else ""
        self.console.print(f"{event.examples:,} examples, {event.held_out:,} held out, "
                           f"{_several(event.epochs, 'epoch')} of "
                           f"{_several(event.steps_per_epoch, 'step')}{going}")
        if self.live:
            self.progress.start()
            self.task = self.progress.add_task("", total=event.steps, completed=event.step,
                                               epoch="", figures="")

    def _step(self, event: StepDone) -> None:
        if not self.live:
            return
        figures = [f"loss {event.loss:.4f}", *(_figure(name, value, self.errors)
                                               for name, value in event.metrics.items()
                                               if name != "loss"),
                   f"{event.per_second:,.0f}/s"]
        self.progress.update(self.task, completed=event.step, epoch=event.epoch,
                             figures="  ".join(filter(None, figures)))

    def _epoch(self, event: EpochDone) -> None:
        shown = event.valid or {k: v for k, v in event.train.items() if k != "loss"}
        text = "  ".join(_figure(name, value, self.errors) for name, value in shown.items())
        what = "held-out " if event.valid else ""
        best = "  best" if event.best else ""
        self.console.print(f"epoch {event.epoch:3d}  train loss {event.train['loss']:.4f}  "
                           f"{what}{text}  {event.seconds:.1f} s{best}")

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        if self.line is not None:
            self.line.show("")
        if self.progress.live.is_started:
            self.progress.stop()

    def _finished(self, event: Finished) -> None:
        if self.progress.live.is_started:
            self.progress.stop()
        if event.interrupted:
            self.console.print(f"interrupted by {event.interrupted} at step {event.step:,}; "
                               "go on with --resume")


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _figure(name: str, value: float, errors: Sequence[str]) -> str:
    plain = name in ("loss", *errors) or (value > 1 and name not in SHARES)
    return f"{name} {value:.4f}" if plain else f"{name} {value:.2%}"


def print_figures(figures: dict[str, float], errors: Sequence[str] = ()) -> None:
    """Averages over held-out data; `errors` are those that are no shares."""
    for name, value in figures.items():
        terminal().print(_figure(name, value, errors))


def print_result(keep: str, held_out: bool, result: Any, errors: Sequence[str] = ()) -> None:
    """Where a run ended: the figure it was kept for, and its checkpoints."""
    state = result.state
    if state.best is not None:
        what = "held-out" if held_out else "training"
        terminal().print(f"best {what} {escape(_figure(keep, state.best, errors))} "
                         f"in epoch {state.best_epoch}")
    terminal().print(f"checkpoint {escape(str(result.kept))}")


def print_zoo(rows: list[dict[str, Any]]) -> None:
    """The models of the zoo."""
    table = Table(box=None, pad_edge=False)
    for name, justify in (("file", "left"), ("model", "left"), ("parameters", "right"),
                          ("MACs", "right"), ("field / stride", "right"), ("recipes", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        macs = f"{row['macs']:,}" if isinstance(row["macs"], int) else row["macs"]
        field = f"{row['receptive_field']} / {row['stride']}" if row["receptive_field"] else ""
        table.add_row(row["file"], row["model"], f"{row['parameters']:,}", macs, field,
                      ", ".join(row["recipes"]))
    terminal().print(table)
