"""Results that come as one run of floats, whatever their columns, are finished in whole tiles.

Results of few channels fill a vector only where neighbouring pixels lie in it together. A kernel
appends them to what waits at `staged`, in the order in which they lie in memory; as soon as a tile
of them is there, it is finished. To the epilogue the result is a matrix of `span` columns, which
the kernel gets as an argument (see `kernels.as_stream`).

Texts here use `start` (where in the result the thread's first number lies, in floats), `staged` (an
address) and `have` (how many floats wait there).
"""

from __future__ import annotations

from lamina.compiler.lower.templates.text import (
    Epilogue,
    Template,
    Tile,
    contraction,
    finish_start,
    finish_tile,
    narrow_lanes_tile,
)


def stream_tile(vector_width: int) -> Tile:
    """The tile in which a stream is finished."""
    return narrow_lanes_tile(vector_width)


def stream_floats(tile: Tile) -> int:
    """Floats that may wait at `staged` beside those appended last, for a span of one vector."""
    return 2 * tile.mr * tile.nr


def streaming(doc: str, arguments: tuple[str, ...], epilogue: Epilogue, tile: Tile, body: str
              ) -> Template:
    """A Template whose body appends to a stream; `arguments` are those that `body` reads."""
    return contraction(doc, (*arguments, "span"), epilogue, tile, body)


def stream_start(arguments: tuple[str, ...], tile: Tile) -> str:
    """Lines for the top of the kernel, after `start` and `staged` are known."""
    return f"""
    columns, limit = span, i64(0)
    group = {tile.mr} * span
    gathered = local_f32({tile.mr * tile.nr})
    have = i64(0)
{finish_start((*arguments, "span"))}"""


def stream_drain(tile: Tile, indent: int) -> str:
    """Lines that finish what waits, as far as it fills tiles; the rest moves to the front."""
    mr, nr, row = tile.mr, tile.nr, tile.row
    lines = f"""
done = i64(0)
while have - done >= group:
    for j in range(0, span, {nr}):
        first_row, first_column = (start + done) // span, (start + done) % span + j
        valid, width = i64({mr}), i64({nr})
        out = staged + 4 * done
        if span > {nr}:
            out = gathered
            for m in range({mr}):
                move_{row}(out + {4 * nr} * m, staged + 4 * (done + m * span + j))
{finish_tile(8)}
    done += group
if done > 0:
    have -= done
    start += done
    for i in range(0, have, {nr}):
        move_{row}(staged + 4 * i, staged + 4 * (done + i))"""
    return _indented(lines, indent)


def stream_end(tile: Tile, indent: int) -> str:
    """Lines that finish what is left at the end of a thread's share, a vector at a time."""
    nr = tile.nr
    lines = f"""
for j in range(0, have, {nr}):
    first_row, first_column = (start + j) // span, (start + j) % span
    valid, width = i64(1), min(i64({nr}), have - j)
    out = staged + 4 * j
{finish_tile(4)}"""
    return _indented(lines, indent)


def _indented(text: str, indent: int) -> str:
    return "\n".join(" " * indent + line for line in text.strip("\n").splitlines())
