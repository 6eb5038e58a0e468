"""Register tiles: the batch-reduce GEMM that everything contracting is made of, and row movers.

Numba intrinsics that emit LLVM vector code. For widths of 4, 8 and 16 floats there are

    tile_6x2_8(...) and its relatives           the tile, see `_tile`
    part_6x2_8(high, ...) and its relatives     the first `high` of its rows, see `_part`
    lanes_4x2_8(...) and its relatives          products of vectors, see `_tile`
    across_8(...)                               products of a row by 8 columns, see `_across`
    turn_8(to, step, from, stride)              transpose 8 x 8 floats, see `_turner`
    move_2_8(to, from), fill_2_8(to, value)     copy or fill 2 vectors of 8 floats
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lamina.runtime.cpu.emit import F32, I32, I64, fused, prefetch, splat

AHEAD = 128  # floats of a column that are fetched before they are needed


class _Loop:
    """A counted loop under construction whose named values become phis (via mem2reg)."""

    def __init__(self, builder: ir.IRBuilder, count: ir.Value, starts: list[ir.Value]):
        self.builder, self.count = builder, count
        self.slots = [cgutils.alloca_once(builder, start.type) for start in starts]
        for slot, start in zip(self.slots, starts, strict=True):
            builder.store(start, slot)

    def run(self, steps: list[ir.Value], body) -> None:
        """Emit `body(values)` count times; after each turn every value grows by its step."""
        b = self.builder
        with cgutils.for_range(b, self.count, intp=I64):
            values = [b.load(slot) for slot in self.slots]
            body(values)
            for slot, value, step in zip(self.slots, values, steps, strict=True):
                b.store(b.add(value, step), slot)


class _Tile:
    """A register tile under construction: mr rows of nv vectors of `width` running sums."""

    def __init__(self, builder: ir.IRBuilder, shape: tuple[int, int, int], lanes: bool,
                 rows: ir.Value, weights: ir.Value):
        self.b, self.lanes = builder, lanes
        self.mr, self.nv, self.width = shape
        self.vector = ir.VectorType(F32, self.width)
        table = builder.inttoptr(rows, I64.as_pointer())
        bases = [builder.load(builder.gep(table, [ir.Constant(I64, m)])) for m in range(self.mr)]
        self.bases = [builder.inttoptr(base, F32.as_pointer()) for base in bases]
        self.weights = builder.inttoptr(weights, F32.as_pointer())
        zero = ir.Constant(self.vector, [0.0] * self.width)
        self.cells = [[cgutils.alloca_once(builder, self.vector) for _ in range(self.nv)]
                      for _ in range(self.mr)]
        for cell in (cell for row in self.cells for cell in row):
            builder.store(zero, cell)

    def step(self, at_a: ir.Value, at_b: ir.Value) -> None:
        """Add the products of A's elements at `at_a` floats from each row and B's row at `at_b`."""
        b = self.b
        columns = [self._load(self.weights, at_b, v) for v in range(self.nv)]
        for base, row in zip(self.bases, self.cells, strict=True):
            if self.lanes:
                factors = [self._load(base, at_a, v) for v in range(self.nv)]
            else:
                factors = [splat(b.load(b.gep(base, [at_a])), self.vector, b)] * self.nv
            for factor, column, cell in zip(factors, columns, row, strict=True):
                b.store(fused(factor, column, b.load(cell), b), cell)

    def finish(self, result: ir.Value, stride: ir.Value, accumulate: ir.Value) -> None:
        """Write the sums to address `result`, or add them to what is there."""
        b = self.b
        out = b.inttoptr(result, F32.as_pointer())
        places = []
        for m, row in enumerate(self.cells):
            for v, cell in enumerate(row):
                offset = b.add(b.mul(stride, ir.Constant(I64, m)),
                               ir.Constant(I64, v * self.width))
                places.append((b.bitcast(b.gep(out, [offset]), self.vector.as_pointer()), cell))
        with b.if_then(accumulate):
            for place, cell in places:
                value = b.load(place)
                value.align = 4
                b.store(b.fadd(value, b.load(cell)), cell)
        for place, cell in places:
            b.store(b.load(cell), place).align = 4

    def _load(self, base: ir.Value, index: ir.Value, v: int) -> ir.Value:
        b = self.b
        at = b.gep(base, [b.add(index, ir.Constant(I64, v * self.width))])
        value = b.load(b.bitcast(at, self.vector.as_pointer()))
        value.align = 4
        return value


def _tile(mr: int, nv: int, width: int, lanes: bool):
    """The tile of mr rows by nv vectors of `width` floats, as an intrinsic.

    tile(rows, n0, n1, n2, a0, a1, a2, b, b0, b1, b2, c, stride, accumulate):
    C[m, :] (+)= sum over r0 < n0, r1 < n1, r2 < n2 of A_m[r0 a0 + r1 a1 + r2 a2] * B[r0 b0 +
    r1 b1 + r2 b2, :], where `rows` is the address of mr int64 addresses of A's rows, `b` that of
    B, `c` that of the result with `stride` floats between rows; strides count floats. With
    `lanes` A_m is read as nv vectors (elementwise product, for depthwise convolution), else as
    one float. The sum runs in the order of (r0, r1, r2), whatever the tile; it starts from zero
    and is added to C at its end, so that a long sum cut into calls is a sum of short ones.
    """

    def generate(context, b, signature, args):
        _reduce_over(b, (mr, nv, width), lanes, args)
        return context.get_dummy_value()

    @intrinsic
    def tile(_, rows, n0, n1, n2, a0, a1, a2, b, b0, b1, b2, c, stride, accumulate):
        return types.void(*[types.int64] * 13, types.boolean), generate

    return tile


def _reduce_over(b: ir.IRBuilder, shape: tuple[int, int, int], lanes: bool, args) -> None:
    """Emit the loops of a tile (see `_tile`) of mr rows by nv vectors of width."""
    rows, n0, n1, n2, a0, a1, a2, weights, b0, b1, b2, c, stride, accumulate = args
    tile = _Tile(b, shape, lanes, rows, weights)

    def middle(values):
        _Loop(b, n2, values).run([a2, b2], lambda inner: tile.step(*inner))

    def outer(values):
        _Loop(b, n1, values).run([a1, b1], middle)

    start = ir.Constant(I64, 0)
    _Loop(b, n0, [start, start]).run([a0, b0], outer)
    tile.finish(c, stride, accumulate)


def _part(heights: tuple[int, ...], nv: int, width: int):
    """part(high, rows, n0 ...): the tile of as many rows, or of the next greater of `heights`.

    So few rows need less than a whole tile's time. `heights` fall; every result has the same bits
    in all of them.
    """

    def generate(context, b, signature, args):
        high, *rest = args

        def choose(fit: tuple[int, ...]) -> None:
            if len(fit) == 1:
                _reduce_over(b, (fit[0], nv, width), False, rest)
                return
            above = b.icmp_signed(">", high, ir.Constant(I64, fit[1]))
            with b.if_else(above) as (this, lower):
                with this:
                    _reduce_over(b, (fit[0], nv, width), False, rest)
                with lower:
                    choose(fit[1:])

        choose(heights)
        return context.get_dummy_value()

    @intrinsic
    def part(_, high, rows, n0, n1, n2, a0, a1, a2, b, b0, b1, b2, c, stride, accumulate):
        return types.void(*[types.int64] * 14, types.boolean), generate

    return part


def _across(width: int):
    """across(a, b, step, columns, count, c, accumulate): one row by columns, all contiguous.

    c[j] (+)= sum over k < count of a[k] * b[j * step + k] for j < `width`; those from `columns`
    on are computed with the last column. `a`, `b` and `c` are addresses, `step` counts floats.
    Blocks of columns are transposed in registers, so that sums run in the same order as in `_tile`.
    """
    vector = ir.VectorType(F32, width)

    def generate(context, b, signature, args):
        a, weights, step, columns, count, c, accumulate = args
        a, weights = (b.inttoptr(at, F32.as_pointer()) for at in (a, weights))
        last = b.sub(columns, ir.Constant(I64, 1))
        numbers = [b.select(b.icmp_signed("<", last, ir.Constant(I64, j)), last,
                            ir.Constant(I64, j)) for j in range(width)]
        bases = [b.gep(weights, [b.mul(step, number)]) for number in numbers]
        cell = cgutils.alloca_once(b, vector)
        b.store(ir.Constant(vector, [0.0] * width), cell)

        def add(at, column):
            factor = splat(b.load(b.gep(a, [at])), vector, b)
            b.store(fused(factor, column, b.load(cell), b), cell)

        def block(values):
            rows = []
            for base in bases:
                place = b.gep(base, values)
                rows.append(b.load(b.bitcast(place, vector.as_pointer())))
                rows[-1].align = 4
                ahead = b.gep(place, [ir.Constant(I64, AHEAD)])
                prefetch(b.ptrtoint(ahead, I64), 0, 2, b)
            for k, column in enumerate(_turned(b, rows)):
                add(b.add(values[0], ir.Constant(I64, k)), column)

        def rest(values):
            column = ir.Constant(vector, ir.Undefined)
            for j, base in enumerate(bases):
                column = b.insert_element(column, b.load(b.gep(base, values)),
                                          ir.Constant(I32, j))
            add(values[0], column)

        whole = b.sdiv(count, ir.Constant(I64, width))
        _Loop(b, whole, [ir.Constant(I64, 0)]).run([ir.Constant(I64, width)], block)
        done = b.mul(whole, ir.Constant(I64, width))
        _Loop(b, b.sub(count, done), [done]).run([ir.Constant(I64, 1)], rest)
        place = b.inttoptr(c, vector.as_pointer())
        with b.if_then(accumulate):
            value = b.load(place)
            value.align = 4
            b.store(b.fadd(value, b.load(cell)), cell)
        b.store(b.load(cell), place).align = 4
        return context.get_dummy_value()

    @intrinsic
    def across(_, a, b, step, columns, count, c, accumulate):
        return types.void(*[types.int64] * 6, types.boolean), generate

    return across


def _turned(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """The columns of as many rows as they are wide.

    In each round rows that are 1, 2, 4 ... apart exchange halves of blocks of that size.
    """
    rows, width, apart = list(rows), len(rows), 1
    while apart < width:
        for r in (r for r in range(width) if not r & apart):
            low, high = ([lane if not lane & apart else lane - apart + width
                          for lane in range(width)],
                         [lane + apart if not lane & apart else lane + width
                          for lane in range(width)])
            pair = rows[r], rows[r + apart]
            for target, lanes in ((r, low), (r + apart, high)):
                mask = ir.Constant(ir.VectorType(I32, width), lanes)
                rows[target] = b.shuffle_vector(*pair, mask)
        apart *= 2
    return rows


# Rows x vectors for each width; 16-wide hosts have 32 registers, the others are taken to have 16.
tile_6x2_4, tile_8x1_4 = _tile(6, 2, 4, False), _tile(8, 1, 4, False)
tile_6x2_8, tile_8x1_8 = _tile(6, 2, 8, False), _tile(8, 1, 8, False)
tile_14x2_16, tile_16x1_16 = _tile(14, 2, 16, False), _tile(16, 1, 16, False)
tile_1x1_4, tile_1x1_8, tile_1x1_16 = (_tile(1, 1, width, False) for width in (4, 8, 16))
tile_1x2_4, tile_1x2_8, tile_1x2_16 = (_tile(1, 2, width, False) for width in (4, 8, 16))
part_6x2_4, part_8x1_4 = _part((6, 4), 2, 4), _part((8, 4), 1, 4)
part_6x2_8, part_8x1_8 = _part((6, 4), 2, 8), _part((8, 4), 1, 8)
part_14x2_16, part_16x1_16 = _part((14, 11, 8, 4), 2, 16), _part((16, 8, 4), 1, 16)
part_8x2_16 = _part((8, 6, 4), 2, 16)
across_4, across_8, across_16 = (_across(width) for width in (4, 8, 16))
lanes_4x2_4, lanes_4x2_8, lanes_4x2_16 = (_tile(4, 2, width, True) for width in (4, 8, 16))
lanes_9x1_4, lanes_9x1_8, lanes_9x1_16 = (_tile(9, 1, width, True) for width in (4, 8, 16))


def _mover(nv: int, width: int):
    """move(to, from): copy nv vectors of `width` floats between two int64 addresses."""
    vector = ir.VectorType(F32, width)

    @intrinsic
    def move(_, to, source):
        def generate(context, builder, signature, args):
            to, source = (builder.inttoptr(arg, vector.as_pointer()) for arg in args)
            places = [ir.Constant(I64, v) for v in range(nv)]
            values = [builder.load(builder.gep(source, [place])) for place in places]
            for place, value in zip(places, values, strict=True):
                value.align = 4
                builder.store(value, builder.gep(to, [place])).align = 4
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return move


def _turner(width: int):
    """turn(to, step, from, stride): a block of width x width floats, rows become columns.

    Row r lies at `from` + r * `stride` bytes, column c goes to `to` + c * `step`.
    """
    vector = ir.VectorType(F32, width)

    @intrinsic
    def turn(_, to, step, source, stride):
        def generate(context, builder, signature, args):
            to, step, source, stride = args

            def place(start, each, count):
                address = builder.add(start, builder.mul(each, ir.Constant(I64, count)))
                return builder.inttoptr(address, vector.as_pointer())

            rows = [builder.load(place(source, stride, r)) for r in range(width)]
            for row in rows:
                row.align = 4
            for c, row in enumerate(_turned(builder, rows)):
                builder.store(row, place(to, step, c)).align = 4
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    return turn


def _filler(nv: int, width: int):
    """fill(to, value): nv vectors of `width` floats, all equal to `value`."""
    vector = ir.VectorType(F32, width)

    @intrinsic
    def fill(_, to, value):
        def generate(context, builder, signature, args):
            to = builder.inttoptr(args[0], vector.as_pointer())
            all_ = splat(args[1], vector, builder)
            for v in range(nv):
                builder.store(all_, builder.gep(to, [ir.Constant(I64, v)])).align = 4
            return context.get_dummy_value()

        return types.void(types.int64, types.float32), generate

    return fill


move_1_4, move_2_4, fill_1_4, fill_2_4 = _mover(1, 4), _mover(2, 4), _filler(1, 4), _filler(2, 4)
move_1_8, move_2_8, fill_1_8, fill_2_8 = _mover(1, 8), _mover(2, 8), _filler(1, 8), _filler(2, 8)
turn_4, turn_8, turn_16 = _turner(4), _turner(8), _turner(16)
move_1_16, move_2_16 = _mover(1, 16), _mover(2, 16)
fill_1_16, fill_2_16 = _filler(1, 16), _filler(2, 16)
