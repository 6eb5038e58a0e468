"""The layer table by chosen columns, the formulas of a model, and both as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from rich.console import Console

from lamina.commands.fields import axes_text
from lamina.commands.tables import Column, print_table
from lamina.compiler.inspect.cost import LayerRow, Summary, count_text, per_example
from lamina.compiler.inspect.polynomial import (
    FormulaRow,
    Formulas,
    formula_text,
    product_text,
)
from lamina.compiler.inspect.receptive_field import Field
from lamina.compiler.ir.types import Dim, TensorType, shape_text

# --- columns ------------------------------------------------------------------------------------

Cell = Callable[[LayerRow, Summary], str]


def print_columns(console: Console, summary: Summary, names: Sequence[str]) -> None:
    """The layer table with these columns, a row of totals, and the units."""
    rows = [row for row in summary.layers if "bytes" in names or not row.only_bytes]
    columns = [Column("layer", (*(row.name for row in rows), "total"), folds=True)]
    for name in names:
        for head, cell, total, right in _COLUMNS[name]:
            cells = (*(cell(row, summary) for row in rows), total(summary))
            columns.append(Column(head, cells, right, folds=not right and name != "op"))
    print_table(console, summary.model, columns)
    for line in _units(summary, names):
        console.print(line, highlight=False, markup=False)


def _units(summary: Summary, names: Sequence[str]) -> list[str]:
    lines = []
    if {"macs", "flops", "backward"} & set(names):
        lines.append("MACs and FLOPs per example, 1 MAC = 2 FLOPs")
    if "backward" in names:
        lines.append("backward: MACs of the gradients by data and by weights")
    if "bytes" in names:
        batch = f"for a batch of {summary.batch}" if isinstance(summary.batch, int) \
            else "per example"
        lines.append(f"bytes of each result, {batch}: of a layer its own, of a block those of the "
                     "operators that it applies itself; shared memory counts once")
    return lines


def _bytes(count: Dim, summary: Summary) -> Dim:
    return count if isinstance(summary.batch, int) else per_example(count, summary.batch)


def _number(count: Dim) -> str:
    if isinstance(count, int):
        return f"{count:,}" if count else ""
    return formula_text(count)


def _percent(part: Dim, whole: Dim) -> str:
    share = share_of(part, whole)
    return f"{share:.1%}" if share else ""


def share_of(part: Dim, whole: Dim) -> float | None:
    """A part of the total from 0 to 1; None where open sizes decide."""
    if not isinstance(part, int) or not isinstance(whole, int) or not whole:
        return None
    return part / whole


def _shapes(types: Sequence[TensorType]) -> str:
    return ", ".join(shape_text(type.shape) for type in types)


def _axis_text(fields: Sequence[Field], name: str) -> str:
    texts = {field.input: axes_text(field.axes, name) for field in fields}
    if len(set(texts.values())) < 2:
        return next(iter(texts.values()), "")
    return ", ".join(f"{key} {text}" for key, text in texts.items() if text)


def _none(summary: Summary) -> str:
    return ""


def _all(part: Dim) -> str:
    return "100.0%" if isinstance(part, int) and part else ""


# By the name on the command line: head, cell of a layer, cell of the total, aligned to the right.
_COLUMNS: dict[str, tuple[tuple[str, Cell, Callable[[Summary], str], bool], ...]] = {
    "op": (("op", lambda row, _: row.op, _none, False),),
    "in": (("input", lambda row, _: _shapes(row.inputs), _none, False),),
    "out": (("output", lambda row, _: shape_text(row.out.shape), _none, False),),
    "params": (("parameters", lambda row, _: _number(row.parameters),
                lambda whole: count_text(whole.parameters), True),),
    "macs": (("MACs", lambda row, _: _number(row.macs), lambda whole: _number(whole.macs), True),),
    "flops": (("FLOPs", lambda row, _: _number(2 * row.macs),
               lambda whole: _number(2 * whole.macs), True),),
    "backward": (("backward", lambda row, _: _number(row.backward),
                  lambda whole: _number(whole.backward), True),),
    "bytes": (("bytes", lambda row, whole: _number(_bytes(row.bytes, whole)),
               lambda whole: _number(_bytes(whole.bytes, whole)), True),),
    "share": (("% params", lambda row, whole: _percent(row.parameters, whole.parameters),
               lambda whole: _all(whole.parameters), True),
              ("% MACs", lambda row, whole: _percent(row.macs, whole.macs),
               lambda whole: _all(whole.macs), True)),
    "field": (("field", lambda row, _: _axis_text(row.fields, "size"), _none, True),),
    "stride": (("stride", lambda row, _: _axis_text(row.fields, "stride"), _none, True),),
    "line": (("line", lambda row, _: str(row.line or ""), _none, True),),
}
COLUMNS = tuple(_COLUMNS)


# --- JSON ---------------------------------------------------------------------------------------


def summary_json(summary: Summary) -> dict[str, Any]:
    """The layer table as plain data: every column, counts per example, bytes of the batch."""
    return {"model": summary.model,
            "layers": [_row_json(row, summary) for row in summary.layers],
            "parameters": summary.parameters, "buffers": summary.buffers,
            "macs": plain(summary.macs), "flops": plain(2 * summary.macs),
            "backward_macs": plain(summary.backward), "backward_flops": plain(2 * summary.backward),
            "bytes": plain(summary.bytes), "batch": plain(summary.batch)}


def _row_json(row: LayerRow, summary: Summary) -> dict[str, Any]:
    return {"path": row.path, "op": row.op, "in": [_shape_json(type) for type in row.inputs],
            "out": _shape_json(row.out), "parameters": row.parameters, "macs": plain(row.macs),
            "flops": plain(2 * row.macs), "backward_macs": plain(row.backward),
            "backward_flops": plain(2 * row.backward), "bytes": plain(row.bytes),
            "share": {"parameters": share_of(row.parameters, summary.parameters),
                      "macs": share_of(row.macs, summary.macs)},
            "receptive_field": _fields_json(row.fields), "line": row.line}


def _shape_json(type: TensorType) -> list[int | str]:
    return [plain(size) for size in type.shape]


def plain(value: Dim) -> int | str:
    """A size or a count as JSON has it: a formula is a text."""
    return value if isinstance(value, int) else str(value)


def _fields_json(fields: Sequence[Field]) -> dict[str, Any] | None:
    """One field where the layer sees one input, else one by input; None: it sees everything."""
    if len(fields) > 1:
        return {field.input: _field_json(field) for field in fields}
    return _field_json(fields[0]) if fields else None


def _field_json(field: Field) -> dict[str, Any] | None:
    """Numbers, or a list where the axes differ, with null for an axis of which all is seen."""
    if field.whole:
        return None
    rows = {name: [None if axis is None else _stride(getattr(axis, name)) for axis in field.axes]
            for name in ("size", "stride", "start")}
    return {name: row[0] if row.count(row[0]) == len(row) else row for name, row in rows.items()}


def _stride(number: Any) -> int | float:
    return float(number) if isinstance(number, Fraction) else number


# --- formulas -----------------------------------------------------------------------------------


def print_formulas(console: Console, found: Formulas) -> None:
    """What every layer costs as functions of the open sizes, and the totals."""
    rows = [row for row in found.layers if row.parameters or row.macs != 0]
    columns = [Column("layer", tuple(row.path or found.model for row in rows), folds=True),
               Column("parameters", tuple(_number(row.parameters) for row in rows), True),
               *(Column(name, tuple(_layer_formula(row, key, found) for row in rows), folds=True)
                 for name, key in (("MACs", "macs"), ("bytes", "bytes")))]
    print_table(console, found.model, columns)
    console.print()
    total = formulas_json(found)
    for name in ("parameters", "macs", "backward_macs", "bytes"):
        console.print(f"{name} = {total[name]}", highlight=False, markup=False)
    console.print("counts of the whole batch, 1 MAC = 2 FLOPs; bytes of every result, also of the "
                  "layers not listed", highlight=False, markup=False)


def _layer_formula(row: FormulaRow, key: str, found: Formulas) -> str:
    count = getattr(row, key)
    return "" if count == 0 else product_text(count, row.shape, found.sizes)


def formulas_json(found: Formulas) -> dict[str, Any]:
    """Formulas as texts that Python's arithmetic reads, with ceil and floor from `math`."""
    return {"model": found.model, "sizes": list(found.sizes), **_formula_json(found.total, found),
            "layers": [{"path": row.path, **_formula_json(row, found)} for row in found.layers]}


def _formula_json(row: FormulaRow, found: Formulas) -> dict[str, Any]:
    return {"parameters": row.parameters,
            "macs": product_text(row.macs, row.shape, found.sizes),
            "backward_macs": product_text(row.backward, row.shape, found.sizes),
            "bytes": product_text(row.bytes, row.shape, found.sizes)}
