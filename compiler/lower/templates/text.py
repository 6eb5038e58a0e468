"""Kernel texts: the pieces that templates share.

A template is a pure function from an Epilogue to a Template: the Python text of a kernel (see
`runtime.cpu.build`) and the order of its arguments. All sizes are arguments. What a graph fuses to
the end of a contraction is a small kernel of its own that finishes one tile; the contraction calls
it by address, so that its own text, which takes a second to compile, is the same for every graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# What modules of `lamina.runtime.cpu` offer to kernel texts (a test compares the two).
# fmt: off
NAMES = {
    "simd": (
        "barrier", "call_kernel", "claim_line", "cos", "erf", "exp", "expm1", "f32", "f32mem",
        "f32ptr", "f64", "f64mem", "f64ptr", "fetch_line", "floor", "i32", "i32mem", "i32ptr",
        "i64", "i64mem", "i64ptr", "local_f32", "local_i64", "log", "log1p", "maximum", "minimum",
        "philox_key", "philox_uniform", "plus", "pow", "rsqrt", "select", "sigmoid", "sin", "split",
        "sqrt", "tanh", "ticks", "u8", "u8mem", "u8ptr",
    ),
    "tiles": (
        "across_16", "across_4", "across_8",
        "fill_1_16", "fill_1_4", "fill_1_8", "fill_2_16", "fill_2_4", "fill_2_8", "lanes_4x2_16",
        "lanes_4x2_4", "lanes_4x2_8", "lanes_9x1_16", "lanes_9x1_4", "lanes_9x1_8",
        "move_1_16", "move_1_4", "move_1_8", "move_2_16", "move_2_4", "move_2_8",
        "part_14x2_16", "part_16x1_16", "part_6x2_4", "part_6x2_8", "part_8x1_4", "part_8x1_8",
        "part_8x2_16",
        "tile_14x2_16", "tile_16x1_16", "tile_1x1_16", "tile_1x1_4", "tile_1x1_8", "tile_1x2_16",
        "tile_1x2_4", "tile_1x2_8", "tile_6x2_4", "tile_6x2_8", "tile_8x1_4", "tile_8x1_8",
        "turn_16", "turn_4", "turn_8",
    ),
    "winograd": (
        "place_2", "place_4", "place_6", "points_4_of_2_gradients_16", "points_4_of_2_gradients_4",
        "points_4_of_2_gradients_8", "points_4_of_3_weights_16", "points_4_of_3_weights_4",
        "points_4_of_3_weights_8", "points_4_of_input_16", "points_4_of_input_4",
        "points_4_of_input_8", "points_4_to_2_results_16", "points_4_to_2_results_4",
        "points_4_to_2_results_8", "points_4_to_3_weights_16", "points_4_to_3_weights_4",
        "points_4_to_3_weights_8", "points_6_of_2_gradients_16", "points_6_of_2_gradients_4",
        "points_6_of_2_gradients_8", "points_6_of_3_weights_16", "points_6_of_3_weights_4",
        "points_6_of_3_weights_8", "points_6_of_4_gradients_16", "points_6_of_4_gradients_4",
        "points_6_of_4_gradients_8", "points_6_of_5_weights_16", "points_6_of_5_weights_4",
        "points_6_of_5_weights_8", "points_6_of_input_16", "points_6_of_input_4",
        "points_6_of_input_8", "points_6_to_2_results_16", "points_6_to_2_results_4",
        "points_6_to_2_results_8", "points_6_to_3_weights_16", "points_6_to_3_weights_4",
        "points_6_to_3_weights_8", "points_6_to_4_results_16", "points_6_to_4_results_4",
        "points_6_to_4_results_8", "points_6_to_5_weights_16", "points_6_to_5_weights_4",
        "points_6_to_5_weights_8",
    ),
}
# fmt: on
POINTERS = {"f32": "f32ptr", "f64": "f64ptr", "i32": "i32ptr", "i64": "i64ptr", "bool": "u8ptr"}
LINE = 64  # bytes of a cache line
BLOCK_TILES = 16  # tiles of rows that read one panel of B; so far apart lie the parts of a row
ACCESS = ("matrix", "column", "row", "scalar")
# Rows of several parts that are finished together: their operands stay in the nearest cache, and
# few rows do not take as long as a whole tile.
ROWS_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Operand:
    """An extra operand or a result of an epilogue.

    `access` says how it is indexed: "matrix" (row * columns + column, dense), "column", "row"
    or "scalar" (one element). The rows of a `spaced` matrix lie as far apart as an argument says.
    """

    access: str
    dtype: str = "f32"
    spaced: bool = False

    def __post_init__(self):
        if self.access not in ACCESS or self.dtype not in POINTERS or \
                self.spaced and self.access != "matrix":
            raise ValueError(f"no operand is {self.access!r} of {self.dtype!r}")


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What happens to each result `acc` before it is stored.

    `text` holds Python assignments over `acc` (float32) and x0, x1 ... (the loads; a "bool" one
    is a Python boolean); `stores` pairs each result operand with the name of the value to write.
    Constants must be written as f32(...): a bare 1.0 would be a float64.
    With several `parts` the result's columns are so many groups of `columns` each, and the text is
    over acc0, acc1 ...: the results of one row in the same column of each.
    """

    loads: tuple[Operand, ...] = ()
    text: tuple[str, ...] = ()
    stores: tuple[tuple[Operand, str], ...] = ((Operand("matrix"), "acc"),)
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Template:
    """A kernel's source, the names of its int64 arguments in order, and its scratch memory.

    Those of the epilogue are x0, x1 ... (loads) and y0, y1 ... (stores). `scratch` counts the
    floats per thread that the argument "scratch" must point to: a temporary buffer of shape
    ("$threads", scratch). `finish` is the source of the kernel whose address the argument
    "finish" is; the argument "claim" is then the buffer y0, and "fetch0" and on are those that
    `fetch` names, matrices that the epilogue reads, or y0 too.
    """

    source: str
    arguments: tuple[str, ...]
    scratch: int = 0
    finish: str = ""
    fetch: tuple[str, ...] = ()


STORE = Epilogue()
NOTHING = Epilogue(stores=())


@dataclass(frozen=True, slots=True)
class Tile:
    """A register tile of `mr` rows by `nv` vectors of `width` floats."""

    mr: int
    nv: int
    width: int
    kind: str = "tile"

    @property
    def nr(self) -> int:
        """Columns of the tile."""
        return self.nv * self.width

    @property
    def name(self) -> str:
        """The intrinsic's name in `tiles`."""
        return f"{self.kind}_{self.mr}x{self.nv}_{self.width}"

    @property
    def part(self) -> str:
        """The name of the intrinsic that computes its first rows only."""
        return f"part_{self.mr}x{self.nv}_{self.width}"

    @property
    def single(self) -> str:
        """The name of the intrinsic that computes one row."""
        return f"tile_1x{self.nv}_{self.width}"

    @property
    def row(self) -> str:
        """How `tiles` names what handles one row of the tile: move_<row>, fill_<row>."""
        return f"{self.nv}_{self.width}"


def wide_tile(vector_width: int) -> Tile:
    """The usual tile for vectors of 4, 8 or 16 floats."""
    return Tile(14 if vector_width == 16 else 6, 2, vector_width)


def narrow_tile(vector_width: int) -> Tile:
    """The tile for at most `vector_width` columns."""
    return Tile(16 if vector_width == 16 else 8, 1, vector_width)


def lanes_tile(vector_width: int) -> Tile:
    """The tile of elementwise products, for depthwise convolution."""
    return Tile(4, 2, vector_width, "lanes")


def taps_tile(vector_width: int) -> Tile:
    """The tile whose rows are taps of a filter, for the weights of depthwise convolutions."""
    return Tile(9, 1, vector_width, "lanes")


def operand_names(epilogue: Epilogue) -> tuple[str, ...]:
    """The epilogue's arguments: x0 ... of the loads, y0 ... of the stores, then their spaces.

    `space_x0` are the floats from one row of x0 to the next.
    """
    operands = _operands(epilogue)
    return (*operands, *(f"space_{name}" for name, one in operands.items() if one.spaced))


def _operands(epilogue: Epilogue) -> dict[str, Operand]:
    """Loads, then results, by name."""
    return {**{f"x{i}": operand for i, operand in enumerate(epilogue.loads)},
            **{f"y{i}": operand for i, (operand, _) in enumerate(epilogue.stores)}}


def kernel_text(
    doc: str, arguments: Iterable[str], epilogue: Epilogue, body: str, fastmath: str = ""
) -> str:
    """A whole kernel file: imports of the names it uses, argument loads, then `body`.

    An argument called x (a buffer) arrives as the int64 `x_at`; the epilogue's buffers arrive as
    typed pointers p_x0 ...; sizes arrive under their own name. `body` is indented by 4.
    """
    operands = _operands(epilogue)
    lines = []
    for index, name in enumerate(arguments):
        if name in operands:
            lines.append(f"    {name}_at = block[{index}]")
            lines.append(f"    p_{name} = {POINTERS[operands[name].dtype]}({name}_at)")
        else:
            lines.append(f"    {name} = block[{index}]")
    for index, operand in enumerate(epilogue.loads):
        if operand.access == "scalar":
            lines.append(f"    x{index} = {_load(operand, index, '0')}")
    text = "\n".join(["    block = i64ptr(args)", *lines, body.strip("\n"), ""])
    head = f'"""{doc}"""\n\n{imports(text)}\n\n'
    return f"{head}{fastmath}\ndef kernel(args, tid, nthreads):\n{text}"


def imports(text: str) -> str:
    """The import lines for the names that a kernel's text uses."""
    words = set(re.findall(r"[A-Za-z_]\w*", text))
    used = {module: [name for name in names if name in words] for module, names in NAMES.items()}
    return "\n".join(f"from lamina.runtime.cpu.{module} import {', '.join(names)}"
                     for module, names in used.items() if names)


def _load(operand: Operand, index: int, at: str) -> str:
    item = f"p_x{index}[{at}]"
    return f"{item} != 0" if operand.dtype == "bool" else item


def element(epilogue: Epilogue, value: str, at: str, column: str, indent: int) -> str:
    """The lines for one element: `value` is acc, `at` its dense index, `column` its column."""
    lines = [f"acc = {value}"]
    places = {"matrix": at, "column": column}
    for index, operand in enumerate(epilogue.loads):
        if operand.access in places:
            lines.append(f"x{index} = {_load(operand, index, places[operand.access])}")
    lines += epilogue.text
    for index, (operand, name) in enumerate(epilogue.stores):
        place = {**places, "row": "row", "scalar": "0"}[operand.access]
        lines.append(f"p_y{index}[{place}] = {_CASTS[operand.dtype]}({name})")
    return _indented(lines, indent)


def row_loads(epilogue: Epilogue, indent: int) -> str:
    """The lines that load "row" operands at index `row`."""
    lines = [
        f"x{i} = {_load(operand, i, 'row')}"
        for i, operand in enumerate(epilogue.loads)
        if operand.access == "row"
    ]
    return _indented(lines or ["pass"], indent)


def _indented(lines: Iterable[str], indent: int) -> str:
    return "\n".join(" " * indent + line for line in lines)


def count_up(counters: Iterable[tuple[str, str]], last: str, indent: int) -> str:
    """Lines that step nested counters, innermost first, each up to its limit; `last` has none."""
    lines, depth = [], 0
    for name, limit in counters:
        inner = " " * depth
        lines += [f"{inner}{name} += 1", f"{inner}if {name} == {limit}:",
                  f"{inner}    {name} = i64(0)"]
        depth += 4
    return _indented([*lines, " " * depth + f"{last} += 1"], indent)


PIXEL = (("ow", "OW"), ("oh", "OH"))  # with "image": the pixels of a result in order
TAP = (("c", "C"), ("kw", "KW"))  # with "kh": the taps of a window in order


# The pieces of this thread are u_lo..u_hi and p_lo..p_hi, out of `units` x `panels`.
SPLIT = """
    u_lo, u_hi, p_lo, p_hi = split(units, panels, tid, nthreads)
"""


def pixel_tiles(tile: Tile) -> str:
    """The top of a kernel over pixels: how many tiles its result has, and this thread's of them."""
    return f"""
    rows_all = images * OH * OW
    tiles = (rows_all + {tile.mr - 1}) // {tile.mr}
    per_group = (K + {tile.nr - 1}) // {tile.nr}
    panels = groups * per_group
    units = tiles
    columns = groups * K
{SPLIT.strip(chr(10))}"""


def _fused(epilogue: Epilogue) -> bool:
    """Whether anything is computed, or the tile is only copied."""
    plain = all(name == "acc" and o.dtype == "f32" for o, name in epilogue.stores)
    return bool(epilogue.text) or not plain


def _held(epilogue: Epilogue) -> dict[str, Operand]:
    """Operands that are staged in an array of the tile's size, by name."""
    return {name: operand for name, operand in _operands(epilogue).items()
            if (operand.access != "scalar" if name.startswith("x") else _fused(epilogue))}


# What a contraction tells about the tile that is to be finished, in the order of its block.
TILE = ("out", "first_row", "first_column", "valid", "width", "columns", "limit", "operands")


FETCHED = 3  # operands of an epilogue that are fetched ahead, at most
FETCHED_OF_PARTS = 12  # and where it reads several parts, of which each has operands of its own


def _given(parts: int) -> tuple[str, ...]:
    """The arguments that every contraction begins with.

    Behind an operand that is fetched ahead for several parts stands how far apart its rows are.
    """
    if parts == 1:
        return ("finish", "claim", *(f"fetch{i}" for i in range(FETCHED)))
    return ("finish", "claim", *(f"{name}{i}" for i in range(FETCHED_OF_PARTS)
                                 for name in ("fetch", "apart")))


def contraction(doc: str, arguments: tuple[str, ...], epilogue: Epilogue, tile: Tile, body: str,
                scratch: int = 0) -> Template:
    """A Template that leaves its tiles to a kernel of the epilogue: `finish_start`, `finish_tile`.

    `arguments` are those that `body` reads; the epilogue's operands follow, for the finish alone.
    """
    own = (*_given(epilogue.parts), *arguments)
    source = kernel_text(doc, own, NOTHING, body)
    return Template(source, (*own, *operand_names(epilogue)), scratch,
                    finish_kernel(epilogue, tile), _fetched(epilogue))


def _fetched(epilogue: Epilogue) -> tuple[str, ...]:
    """The operands to fetch ahead, then y0 for the arguments that are left.

    Of several parts, results too: each is written to memory of its own.
    """
    matrices = [name for name, operand in _operands(epilogue).items()
                if operand.access == "matrix" and operand.dtype == "f32"]
    if epilogue.parts > 1:
        count, found = FETCHED_OF_PARTS, [name for name in matrices if name != "y0"]
    else:
        count, found = FETCHED, [name for name in matrices if name.startswith("x")
                                 and not _operands(epilogue)[name].spaced]
    return (*found, *["y0"] * count)[:count]


def finish_start(arguments: tuple[str, ...], parts: int = 1) -> str:
    """Lines for the top of a contraction, after `columns` and `limit` are known."""
    first = len(_given(parts)) + len(arguments)
    return _indented([
        f"told_at = local_i64({len(TILE)})", "told = i64ptr(told_at)", "told[5] = columns",
        "told[6] = limit", f"told[7] = args + {8 * first}",
    ], 4)


def finish_tile(indent: int) -> str:
    """Lines that finish the tile at address `out`; the names of TILE must be known."""
    names = TILE[:TILE.index("columns")]
    told = [f"told[{index}] = {name}" for index, name in enumerate(names)]
    return _indented([*told, "call_kernel(finish, told_at, tid, nthreads)"], indent)


def claim_tile(tile: Tile, indent: int) -> str:
    """Ask for the lines that a tile's results will be written to, before it is computed.

    And for those of the matrices that its epilogue will read, at `fetch0` and on: as many as there
    are, then `claim` again.
    """
    lines = [f"for m in range({tile.mr}):",
             "    line = 4 * ((first_row + m) * columns + first_column)",
             "    claim_line(claim + line)"]
    for i in range(FETCHED):
        inner = " " * 4 * (i + 1)
        lines += [f"{inner}if fetch{i} != claim:", f"{inner}    fetch_line(fetch{i} + line)"]
        if tile.nr * 4 > LINE:
            lines.append(f"{inner}    fetch_line(fetch{i} + line + {LINE})")
    return _indented(lines, indent)


def claim_parts(tile: Tile, indent: int, parts: int) -> str:
    """The same where several parts of a tile are computed one after the other, number `p % parts`.

    Each asks for some of the matrices that the epilogue will read or write: all at once they would
    wait for each other.
    """
    lines = []
    for part in range(parts):
        lines.append(f"if p % {parts} == {part}:")
        if part == 0:
            lines += [f"    for m in range({tile.mr}):",
                      "        claim_line(claim + 4 * ((first_row + m) * columns + first_column))"]
        for i in range(part, FETCHED_OF_PARTS, parts):
            lines += [f"    if fetch{i} != claim:", f"        for m in range({tile.mr}):",
                      f"            line = 4 * ((first_row + m) * apart{i} + first_column)",
                      *(f"            fetch_line(fetch{i} + line + {start})"
                        for start in range(0, tile.nr * 4, LINE))]
    return _indented(lines, indent)


def finish_kernel(epilogue: Epilogue, tile: Tile) -> str:
    """The kernel that runs the epilogue over one tile and stores it."""
    operands = operand_names(epilogue)
    lines = ["tile = i64ptr(args)"]
    lines += [f"{name} = tile[{index}]" for index, name in enumerate(TILE)]
    head = _indented(lines, 4)
    text = kernel_text(f"Finishes a tile of {tile.mr} x {tile.nr}.", operands, epilogue,
                       tile_locals(epilogue, tile) + "\n" + tile_epilogue(epilogue, tile, 4))
    return text.replace("    block = i64ptr(args)", f"{head}\n    block = i64ptr(operands)")


def tile_locals(epilogue: Epilogue, tile: Tile) -> str:
    """The stack arrays that `tile_epilogue` uses, for the top of the kernel."""
    if any(operand.access != "matrix" for operand, _ in epilogue.stores):
        raise ValueError("a tile's results are matrices")
    lines, cells = [], _rows_at_once(epilogue, tile) * tile.nr
    for name, operand in _held(epilogue).items():
        kind = "local_i64" if operand.dtype in ("f64", "i64") else "local_f32"
        lines.append(f"t_{name}_at = {kind}({cells})")
        lines.append(f"t_{name} = {POINTERS[operand.dtype]}(t_{name}_at)")
    return _indented(lines, 4)


def tile_epilogue(epilogue: Epilogue, tile: Tile, indent: int) -> str:
    """Run the epilogue over the tile at address `out`, of which `valid` x `width` elements count.

    Uses first_row, first_column (of the whole result), `columns` (its row length) and `limit`.
    Rows narrower than the tile are read whole (a guard lies behind every buffer) and, where the
    tile holds all columns, written whole up to element `limit`, the end of this thread's share:
    the next row overwrites what was too much. Operands are first gathered into arrays shaped as
    the tile, so that the arithmetic is one loop of known length over whole tiles: it vectorises,
    which a loop over 16 columns does not (it is unrolled before the vectoriser sees it), and its
    text occurs once.
    """
    nr, row = tile.nr, tile.row
    once: list[str] = []
    gather, scatter = [], []
    for name, operand in _held(epilogue).items():
        if _is_once(name, operand, epilogue):
            once += [f"for m in range({ROWS_AT_ONCE}):",
                     *("    " + line for line in _gather(name, operand, nr, row))]
        elif name.startswith("x"):
            gather += _gather(name, operand, nr, row)
    for index, (operand, _) in enumerate(epilogue.stores):
        source = f"t_y{index}" if _fused(epilogue) else "result"
        address = f"t_y{index}_at" if _fused(epilogue) else "out"
        scatter += _scatter(f"y{index}", operand, nr, row, source, address)
    rows, begin = ("valid", "first_row") if epilogue.parts == 1 else ("rows", "first_row + first")
    each_row = [
        f"for m in range({rows}):",
        f"    row = {begin} + m",
        "    at = row * columns + first_column",
    ]
    lines = []
    if gather:
        lines += each_row + ["    " + line for line in gather]
    if _fused(epilogue):
        lines += _each_element(epilogue, tile)
    if scatter:
        lines += each_row + ["    " + line for line in scatter]
    if epilogue.parts > 1:
        lines = [*once, f"for first in range(0, valid, {ROWS_AT_ONCE}):",
                 f"    rows = min(i64({ROWS_AT_ONCE}), valid - first)",
                 *("    " + line for line in lines)]
    return _indented(["result = f32ptr(out)", *lines], indent)


def _each_element(epilogue: Epilogue, tile: Tile) -> list[str]:
    """The loop of the arithmetic, over all elements that are finished together."""
    lines = [f"for e in range({_rows_at_once(epilogue, tile) * tile.nr}):"]
    if epilogue.parts == 1:
        lines.append("    acc = result[e]")
    else:
        lines += [f"    acc{part} = result[{part * BLOCK_TILES * tile.mr * tile.nr} + "
                  f"first * {tile.nr} + e]" for part in range(epilogue.parts)]
    for index, operand in enumerate(epilogue.loads):
        if operand.access != "scalar":
            test = " != 0" if operand.dtype == "bool" else ""
            lines.append(f"    x{index} = t_x{index}[e]{test}")
    lines += ["    " + line for line in epilogue.text]
    return lines + [f"    t_y{index}[e] = {_CASTS[operand.dtype]}({name})"
                    for index, (operand, name) in enumerate(epilogue.stores)]


def _rows_at_once(epilogue: Epilogue, tile: Tile) -> int:
    """How many rows of a tile are finished together."""
    return tile.mr if epilogue.parts == 1 else ROWS_AT_ONCE


_CASTS = {"bool": "u8", "f32": "f32", "f64": "f64", "i32": "i32", "i64": "i64"}


def _is_once(name: str, operand: Operand, epilogue: Epilogue) -> bool:
    """Whether an operand is the same for all rows that go together, and brought once."""
    return epilogue.parts > 1 and name.startswith("x") and operand.access == "column"


def _gather(name: str, operand: Operand, nr: int, row: str) -> list[str]:
    """Lines that bring row m of an operand into its array."""
    single = operand.dtype == "f32"
    if operand.access == "row":
        if single:
            return [f"fill_{row}(t_{name}_at + m * {4 * nr}, p_{name}[row])"]
        return [f"for j in range({nr}):", f"    t_{name}[m * {nr} + j] = p_{name}[row]"]
    start = "first_column" if operand.access == "column" else _row_start(name, operand)
    if single:
        return [f"move_{row}(t_{name}_at + m * {4 * nr}, {name}_at + 4 * ({start}))"]
    return ["for j in range(width):", f"    t_{name}[m * {nr} + j] = p_{name}[{start} + j]"]


def _scatter(
    name: str, operand: Operand, nr: int, row: str, source: str, address: str
) -> list[str]:
    """Lines that write row m of a result."""
    start = _row_start(name, operand)
    slow = ["for j in range(width):", f"    p_{name}[{start} + j] = {source}[m * {nr} + j]"]
    if operand.dtype != "f32":
        return slow
    move = f"    move_{row}({name}_at + 4 * {start}, {address} + m * {4 * nr})"
    whole = f"if width == {nr}:" if operand.spaced else f"if width == {nr} or at + {nr} <= limit:"
    return [whole, move, "else:", *("    " + line for line in slow)]


def _row_start(name: str, operand: Operand) -> str:
    """Where row `row` of a matrix has the tile's first column."""
    return f"(row * space_{name} + first_column)" if operand.spaced else "at"
