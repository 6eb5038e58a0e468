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
        "lanes_4x2_4", "lanes_4x2_8", "lanes_8x1_16", "lanes_8x1_4", "lanes_8x1_8",
        "lanes_9x1_16", "lanes_9x1_4", "lanes_9x1_8",
        "move_1_16", "move_1_4", "move_1_8", "move_2_16", "move_2_4", "move_2_8",
        "part_14x2_16", "part_16x1_16", "part_6x2_4", "part_6x2_8", "part_8x1_4", "part_8x1_8",
        "tile_14x2_16", "tile_16x1_16", "tile_1x1_16", "tile_1x1_4", "tile_1x1_8", "tile_1x2_16",
        "tile_1x2_4", "tile_1x2_8", "tile_6x2_4", "tile_6x2_8", "tile_8x1_4", "tile_8x1_8",
        "turn_16", "turn_4", "turn_8",
    ),
    "winograd": (
        "place_2", "place_4", "place_6",
        "points_of_2_gradients_16", "points_of_2_gradients_4", "points_of_2_gradients_8",
        "points_of_3_weights_16", "points_of_3_weights_4", "points_of_3_weights_8",
        "points_of_4_gradients_16", "points_of_4_gradients_4", "points_of_4_gradients_8",
        "points_of_5_weights_16", "points_of_5_weights_4", "points_of_5_weights_8",
        "points_of_input_16", "points_of_input_4", "points_of_input_8", "points_to_2_results_16",
        "points_to_2_results_4", "points_to_2_results_8", "points_to_3_weights_16",
        "points_to_3_weights_4", "points_to_3_weights_8", "points_to_4_results_16",
        "points_to_4_results_4", "points_to_4_results_8", "points_to_5_weights_16",
        "points_to_5_weights_4", "points_to_5_weights_8",
    ),
}
# fmt: on
POINTERS = {"f32": "f32ptr", "f64": "f64ptr", "i32": "i32ptr", "i64": "i64ptr", "bool": "u8ptr"}
LINE = 64  # bytes of a cache line
ACCESS = ("matrix", "column", "row", "scalar")


@dataclass(frozen=True, slots=True)
class Operand:
    """An extra operand or a result of an epilogue.

    `access` says how it is indexed: "matrix" (row * columns + column, dense), "column", "row"
    or "scalar" (one element).
    """

    access: str
    dtype: str = "f32"

    def __post_init__(self):
        if self.access not in ACCESS or self.dtype not in POINTERS:
            raise ValueError(f"no operand is {self.access!r} of {self.dtype!r}")


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What happens to each result `acc` before it is stored.

    `text` holds Python assignments over `acc` (float32) and x0, x1 ... (the loads; a "bool" one
    is a Python boolean); `stores` pairs each result operand with the name of the value to write.
    Constants must be written as f32(...): a bare 1.0 would be a float64.
    """

    loads: tuple[Operand, ...] = ()
    text: tuple[str, ...] = ()
    stores: tuple[tuple[Operand, str], ...] = ((Operand("matrix"), "acc"),)


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


def narrow_lanes_tile(vector_width: int) -> Tile:
    """The tile of elementwise work on at most `vector_width` channels."""
    return Tile(8, 1, vector_width, "lanes")


def lanes_tile(vector_width: int) -> Tile:
    """The tile of elementwise products, for depthwise convolution."""
    return Tile(4, 2, vector_width, "lanes")


def taps_tile(vector_width: int) -> Tile:
    """The tile whose rows are taps of a filter, for the weights of depthwise convolutions."""
    return Tile(9, 1, vector_width, "lanes")


def operand_names(epilogue: Epilogue) -> tuple[str, ...]:
    """The epilogue's arguments: x0 ... of the loads, y0 ... of the stores."""
    loads = tuple(f"x{i}" for i in range(len(epilogue.loads)))
    return loads + tuple(f"y{i}" for i in range(len(epilogue.stores)))


def kernel_text(
    doc: str, arguments: Iterable[str], epilogue: Epilogue, body: str, fastmath: str = ""
) -> str:
    """A whole kernel file: imports of the names it uses, argument loads, then `body`.

    An argument called x (a buffer) arrives as the int64 `x_at`; the epilogue's buffers arrive as
    typed pointers p_x0 ...; sizes arrive under their own name. `body` is indented by 4.
    """
    typed = _typed(epilogue)
    lines = []
    for index, name in enumerate(arguments):
        if name in typed:
            lines.append(f"    {name}_at = block[{index}]")
            lines.append(f"    p_{name} = {POINTERS[typed[name]]}({name}_at)")
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


def _typed(epilogue: Epilogue) -> dict[str, str]:
    typed = {f"x{i}": operand.dtype for i, operand in enumerate(epilogue.loads)}
    typed.update({f"y{i}": operand.dtype for i, (operand, _) in enumerate(epilogue.stores)})
    return typed


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
    held = {f"x{i}": o for i, o in enumerate(epilogue.loads) if o.access != "scalar"}
    if _fused(epilogue):
        held.update({f"y{i}": o for i, (o, _) in enumerate(epilogue.stores)})
    return held


# What a contraction tells about the tile that is to be finished, in the order of its block.
TILE = ("out", "first_row", "first_column", "valid", "width", "columns", "limit", "operands")


FETCHED = 3  # operands of an epilogue that are fetched ahead, at most
# The arguments that every contraction begins with.
_GIVEN = ("finish", "claim", *(f"fetch{i}" for i in range(FETCHED)))


def contraction(doc: str, arguments: tuple[str, ...], epilogue: Epilogue, tile: Tile, body: str,
                scratch: int = 0) -> Template:
    """A Template that leaves its tiles to a kernel of the epilogue: `finish_start`, `finish_tile`.

    `arguments` are those that `body` reads; the epilogue's operands follow, for the finish alone.
    """
    own = (*_GIVEN, *arguments)
    source = kernel_text(doc, own, NOTHING, body)
    read = [f"x{i}" for i, operand in enumerate(epilogue.loads) if operand == Operand("matrix")]
    return Template(source, (*own, *operand_names(epilogue)), scratch,
                    finish_kernel(epilogue, tile), (*read, *["y0"] * FETCHED)[:FETCHED])


def finish_start(arguments: tuple[str, ...]) -> str:
    """Lines for the top of a contraction, after `columns` and `limit` are known."""
    first = len(_GIVEN) + len(arguments)
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
    lines, cells = [], tile.mr * tile.nr
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
    gather, scatter = [], []
    for name, operand in _held(epilogue).items():
        if name.startswith("x"):
            gather += _gather(name, operand, nr, row)
    for index, (operand, _) in enumerate(epilogue.stores):
        source = f"t_y{index}" if _fused(epilogue) else "result"
        address = f"t_y{index}_at" if _fused(epilogue) else "out"
        scatter += _scatter(f"y{index}", operand, nr, row, source, address)
    each_row = [
        "for m in range(valid):",
        "    row = first_row + m",
        "    at = row * columns + first_column",
    ]
    lines = ["result = f32ptr(out)"]
    if gather:
        lines += each_row + ["    " + line for line in gather]
    if _fused(epilogue):
        lines.append(f"for e in range({tile.mr * nr}):")
        lines.append("    acc = result[e]")
        for index, operand in enumerate(epilogue.loads):
            if operand.access != "scalar":
                test = " != 0" if operand.dtype == "bool" else ""
                lines.append(f"    x{index} = t_x{index}[e]{test}")
        lines += ["    " + line for line in epilogue.text]
        for index, (operand, name) in enumerate(epilogue.stores):
            lines.append(f"    t_y{index}[e] = {_CASTS[operand.dtype]}({name})")
    if scatter:
        lines += each_row + ["    " + line for line in scatter]
    return _indented(lines, indent)


_CASTS = {"bool": "u8", "f32": "f32", "f64": "f64", "i32": "i32", "i64": "i64"}


def _gather(name: str, operand: Operand, nr: int, row: str) -> list[str]:
    """Lines that bring row m of an operand into its array."""
    start = {"matrix": "at", "column": "first_column"}.get(operand.access)
    single = operand.dtype == "f32"
    if start is None:
        if single:
            return [f"fill_{row}(t_{name}_at + m * {4 * nr}, p_{name}[row])"]
        return [f"for j in range({nr}):", f"    t_{name}[m * {nr} + j] = p_{name}[row]"]
    if single:
        return [f"move_{row}(t_{name}_at + m * {4 * nr}, {name}_at + 4 * ({start}))"]
    return ["for j in range(width):", f"    t_{name}[m * {nr} + j] = p_{name}[{start} + j]"]


def _scatter(
    name: str, operand: Operand, nr: int, row: str, source: str, address: str
) -> list[str]:
    """Lines that write row m of a result."""
    slow = ["for j in range(width):", f"    p_{name}[at + j] = {source}[m * {nr} + j]"]
    if operand.dtype != "f32":
        return slow
    move = f"    move_{row}({name}_at + 4 * at, {address} + m * {4 * nr})"
    whole = f"if width == {nr} or at + {nr} <= limit:"
    return [whole, move, "else:", *("    " + line for line in slow)]
