"""Winograd's transforms: F(4x4, 3x3), F(2x2, 5x5) and F(2x2, 3x3).

Lavin and Gray (2016), after Toom, Cook and Winograd: a tile of 4x4 results of a kernel of 3x3 needs
36 products in place of 144, one of 2x2 of a kernel of 5x5 36 in place of 100, and one of 2x2 of a
kernel of 3x3 16 in place of 36. With d a tile of inputs (6x6, or 4x4 of the last), g the weights
and e the gradient of a tile of results,

    result = A^T [(G g G^T) * (B^T d B)] A,
    gradient of the weights = G^T [sum over tiles of (A e A^T) * (B^T d B)] G.

The six points are 0, +-5/8, +-3/2 and infinity: their powers are exact in binary, and rounding
errors are half of those of the textbook's 0, +-1, +-2. The four points of F(2x2, 3x3) are 0, +-1
and infinity, which take no products but halves. Each transform handles a vector of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lamina.runtime.cpu.emit import F32, I64, Real, fma

_A, _B = 0.625, 1.5
_A2, _B2 = _A * _A, _B * _B
_SUM, _PRODUCT = _A2 + _B2, _A2 * _B2
# What the rows of G are divided by: the products of the differences of the points.
_ZERO, _NEAR, _FAR = 1 / _PRODUCT, 1 / (2 * _A2 * (_A2 - _B2)), 1 / (2 * _B2 * (_B2 - _A2))

Line = Callable[[list[Real]], list[Real]]


def _input(d: list[Real]) -> list[Real]:
    """B^T: six inputs to six points."""
    even_a, odd_a = fma(d[2], -_B2, d[4]), fma(d[1], -_B2, d[3])
    even_b, odd_b = fma(d[2], -_A2, d[4]), fma(d[1], -_A2, d[3])
    return [fma(d[0], _PRODUCT, fma(d[2], -_SUM, d[4])),
            fma(odd_a, _A, even_a), fma(odd_a, -_A, even_a),
            fma(odd_b, _B, even_b), fma(odd_b, -_B, even_b),
            fma(d[1], _PRODUCT, fma(d[3], -_SUM, d[5]))]


def _weights(g: list[Real]) -> list[Real]:
    """G: three or five weights to six points."""
    even_a, even_b = fma(g[2], _A2, g[0]), fma(g[2], _B2, g[0])
    odd_a, odd_b = g[1] * _A, g[1] * _B
    if len(g) == 5:
        even_a, even_b = fma(g[4], _A2 * _A2, even_a), fma(g[4], _B2 * _B2, even_b)
        odd_a, odd_b = fma(g[3], _A2 * _A, odd_a), fma(g[3], _B2 * _B, odd_b)
    return [g[0] * _ZERO, (even_a + odd_a) * _NEAR, (even_a - odd_a) * _NEAR,
            (even_b + odd_b) * _FAR, (even_b - odd_b) * _FAR, g[-1]]


def _four_results(m: list[Real]) -> list[Real]:
    """A^T: six points to four results."""
    sum_a, sum_b, way_a, way_b = m[1] + m[2], m[3] + m[4], m[1] - m[2], m[3] - m[4]
    return [m[0] + sum_a + sum_b, fma(way_b, _B, way_a * _A), fma(sum_b, _B2, sum_a * _A2),
            fma(way_b, _B * _B2, fma(way_a, _A * _A2, m[5]))]


def _two_results(m: list[Real]) -> list[Real]:
    """A^T: six points to two results."""
    return [m[0] + (m[1] + m[2]) + (m[3] + m[4]),
            fma(m[3] - m[4], _B, fma(m[1] - m[2], _A, m[5]))]


def _gradient(e: list[Real]) -> list[Real]:
    """A: the gradients of four or two results to six points."""
    odd_a, odd_b = e[1] * _A, e[1] * _B
    even_a, even_b = e[0], e[0]
    if len(e) == 4:
        even_a, odd_a = fma(e[2], _A2, e[0]), fma(e[3], _A * _A2, odd_a)
        even_b, odd_b = fma(e[2], _B2, e[0]), fma(e[3], _B * _B2, odd_b)
    return [e[0], even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, e[-1]]


def _three_weights(p: list[Real]) -> list[Real]:
    """G^T: six points to the gradients of three weights."""
    sum_a, sum_b = (p[1] + p[2]) * _NEAR, (p[3] + p[4]) * _FAR
    way_a, way_b = (p[1] - p[2]) * (_NEAR * _A), (p[3] - p[4]) * (_FAR * _B)
    return [fma(p[0], _ZERO, sum_a + sum_b), way_a + way_b,
            fma(sum_a, _A2, fma(sum_b, _B2, p[5]))]


def _five_weights(p: list[Real]) -> list[Real]:
    """G^T: six points to the gradients of five weights."""
    sum_a, sum_b = (p[1] + p[2]) * _NEAR, (p[3] + p[4]) * _FAR
    way_a, way_b = (p[1] - p[2]) * (_NEAR * _A), (p[3] - p[4]) * (_FAR * _B)
    return [fma(p[0], _ZERO, sum_a + sum_b), way_a + way_b, fma(sum_a, _A2, sum_b * _B2),
            fma(way_a, _A2, way_b * _B2),
            fma(sum_a, _A2 * _A2, fma(sum_b, _B2 * _B2, p[5]))]


def _input_to_four(d: list[Real]) -> list[Real]:
    """B^T: four inputs to four points."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[3] - d[1]]


def _weights_to_four(g: list[Real]) -> list[Real]:
    """G: three weights to four points."""
    even, odd = (g[0] + g[2]) * 0.5, g[1] * 0.5
    return [g[0], even + odd, even - odd, g[2]]


def _results_of_four(m: list[Real]) -> list[Real]:
    """A^T: four points to two results."""
    return [m[0] + (m[1] + m[2]), m[3] + (m[1] - m[2])]


def _gradient_to_four(e: list[Real]) -> list[Real]:
    """A: the gradients of two results to four points."""
    return [e[0], e[0] + e[1], e[0] - e[1], e[1]]


def _weights_of_four(p: list[Real]) -> list[Real]:
    """G^T: four points to the gradients of three weights."""
    even = (p[1] + p[2]) * 0.5
    return [p[0] + even, (p[1] - p[2]) * 0.5, p[3] + even]


def _both_ways(line: Line, size: int, value: Callable[[int], Real]) -> Iterator[list[Real]]:
    """The rows of a square of size x size values, its columns transformed and then its rows.

    Values are asked for when they are needed and rows given as soon as they are known: the more of
    them wait, the fewer registers are left.
    """
    columns = [line([value(y * size + x) for y in range(size)]) for x in range(size)]
    for y in range(len(columns[0])):
        yield line([column[y] for column in columns])


class _Vectors:
    """Loads and stores of vectors at addresses under construction."""

    def __init__(self, builder: ir.IRBuilder, width: int):
        self.b, self.kind = builder, ir.VectorType(F32, width)

    def load(self, address: ir.Value) -> Real:
        value = self.b.load(self.b.inttoptr(address, self.kind.as_pointer()))
        value.align = 4
        return Real(self.b, value)

    def store(self, value: Real, address: ir.Value) -> None:
        self.b.store(value.v, self.b.inttoptr(address, self.kind.as_pointer())).align = 4

    def behind(self, address: ir.Value, step: ir.Value, count: int) -> ir.Value:
        """`count` steps behind an address."""
        return self.b.add(address, self.b.mul(step, ir.Constant(I64, count)))


def _places(size: int):
    """place(pixels, at, row, column, y, x, high, wide, zeros): where a square of pixels lies.

    Writes size x size addresses to `pixels`: `at` is that of the first pixel, with `row` and
    `column` bytes to the next ones. It is row `y`, column `x` of an image of high x wide; pixels
    outside lie at `zeros`. No branches and no loops: LLVM would scatter the addresses of a loop.
    """

    @intrinsic
    def place(_, pixels, at, row, column, y, x, high, wide, zeros):
        def generate(context, builder, signature, args):
            pixels, at, row, column, y, x, high, wide, zeros = args
            table = builder.inttoptr(pixels, I64.as_pointer())

            def ahead(start, limit):
                places = [builder.add(start, ir.Constant(I64, i)) for i in range(size)]
                return [builder.icmp_unsigned("<", place, limit) for place in places]

            rows, columns = ahead(y, high), ahead(x, wide)
            for i in range(size * size):
                line = builder.add(at, builder.mul(row, ir.Constant(I64, i // size)))
                pixel = builder.add(line, builder.mul(column, ir.Constant(I64, i % size)))
                inside = builder.and_(rows[i // size], columns[i % size])
                builder.store(builder.select(inside, pixel, zeros),
                              builder.gep(table, [ir.Constant(I64, i)]))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return place


def _from_pixels(line: Line, size: int, width: int):
    """transform(pixels, at, out, step): from size x size pixels to points.

    `pixels` is the address of the addresses of the pixels; the vector lies `at` bytes behind each.
    Point i goes to `out` + i * `step` bytes.
    """

    @intrinsic
    def transform(_, pixels, at, out, step):
        def generate(context, builder, signature, args):
            pixels, at, out, step = args
            vectors = _Vectors(builder, width)
            table = builder.inttoptr(pixels, I64.as_pointer())

            def pixel(i: int) -> Real:
                place = builder.load(builder.gep(table, [ir.Constant(I64, i)]))
                return vectors.load(builder.add(place, at))

            for y, row in enumerate(_both_ways(line, size, pixel)):
                for x, value in enumerate(row):
                    vectors.store(value, vectors.behind(out, step, len(row) * y + x))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    return transform


def _between(line: Line, size: int, results: int, width: int):
    """transform(source, step, out, row, column): from size x size vectors to results x results.

    Vector i lies at `source` + i * `step` bytes; (y, x) goes to `out` + y * `row` + x * `column`.
    """

    @intrinsic
    def transform(_, source, step, out, row, column):
        def generate(context, builder, signature, args):
            source, step, out, row, column = args
            vectors = _Vectors(builder, width)
            rows = _both_ways(line, size, lambda i: vectors.load(vectors.behind(source, step, i)))
            for y, values in enumerate(rows):
                for x, value in enumerate(values):
                    vectors.store(value, vectors.behind(vectors.behind(out, row, y), column, x))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return transform


place_2, place_4, place_6 = _places(2), _places(4), _places(6)
_WIDTHS = (4, 8, 16)
points_6_of_input_4, points_6_of_input_8, points_6_of_input_16 = (
    _from_pixels(_input, 6, width) for width in _WIDTHS)
points_4_of_input_4, points_4_of_input_8, points_4_of_input_16 = (
    _from_pixels(_input_to_four, 4, width) for width in _WIDTHS)
points_6_of_4_gradients_4, points_6_of_4_gradients_8, points_6_of_4_gradients_16 = (
    _from_pixels(_gradient, 4, width) for width in _WIDTHS)
points_6_of_2_gradients_4, points_6_of_2_gradients_8, points_6_of_2_gradients_16 = (
    _from_pixels(_gradient, 2, width) for width in _WIDTHS)
points_4_of_2_gradients_4, points_4_of_2_gradients_8, points_4_of_2_gradients_16 = (
    _from_pixels(_gradient_to_four, 2, width) for width in _WIDTHS)
points_6_of_3_weights_4, points_6_of_3_weights_8, points_6_of_3_weights_16 = (
    _between(_weights, 3, 6, width) for width in _WIDTHS)
points_6_of_5_weights_4, points_6_of_5_weights_8, points_6_of_5_weights_16 = (
    _between(_weights, 5, 6, width) for width in _WIDTHS)
points_4_of_3_weights_4, points_4_of_3_weights_8, points_4_of_3_weights_16 = (
    _between(_weights_to_four, 3, 4, width) for width in _WIDTHS)
points_6_to_4_results_4, points_6_to_4_results_8, points_6_to_4_results_16 = (
    _between(_four_results, 6, 4, width) for width in _WIDTHS)
points_6_to_2_results_4, points_6_to_2_results_8, points_6_to_2_results_16 = (
    _between(_two_results, 6, 2, width) for width in _WIDTHS)
points_4_to_2_results_4, points_4_to_2_results_8, points_4_to_2_results_16 = (
    _between(_results_of_four, 4, 2, width) for width in _WIDTHS)
points_6_to_3_weights_4, points_6_to_3_weights_8, points_6_to_3_weights_16 = (
    _between(_three_weights, 6, 3, width) for width in _WIDTHS)
points_6_to_5_weights_4, points_6_to_5_weights_8, points_6_to_5_weights_16 = (
    _between(_five_weights, 6, 5, width) for width in _WIDTHS)
points_4_to_3_weights_4, points_4_to_3_weights_8, points_4_to_3_weights_16 = (
    _between(_weights_of_four, 4, 3, width) for width in _WIDTHS)
