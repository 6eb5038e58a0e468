"""Float values that emit LLVM instructions: the notation in which `simd` writes its functions.

`Real` wraps an LLVM value of type float or double; its operators emit one instruction each and
carry no fast-math flag, so that nothing is reassociated and a loop's vector body, its remainder
and every thread compute the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba.core import cgutils

from lamina.runtime.cpu.host import has_fma

F32, F64 = ir.FloatType(), ir.DoubleType()
I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
HAS_FMA = has_fma()


class Real:
    """A float, double or vector of them while instructions are emitted.

    Comparisons give LLVM i1 values; bits, functions and conversions are those of a single number.
    """

    __slots__ = ("b", "v")

    def __init__(self, builder: ir.IRBuilder, value: ir.Value):
        self.b, self.v = builder, value

    def const(self, number: float) -> Real:
        """`number` as a constant of this value's type."""
        kind = self.v.type
        vector = isinstance(kind, ir.VectorType)
        return Real(self.b, ir.Constant(kind, [number] * kind.count if vector else number))

    def _of(self, other: Real | float) -> ir.Value:
        return other.v if isinstance(other, Real) else self.const(other).v

    def __add__(self, other):
        return Real(self.b, self.b.fadd(self.v, self._of(other)))

    def __sub__(self, other):
        return Real(self.b, self.b.fsub(self.v, self._of(other)))

    def __rsub__(self, other):
        return Real(self.b, self.b.fsub(self._of(other), self.v))

    def __mul__(self, other):
        return Real(self.b, self.b.fmul(self.v, self._of(other)))

    def __truediv__(self, other):
        return Real(self.b, self.b.fdiv(self.v, self._of(other)))

    def __neg__(self):
        return Real(self.b, self.b.fneg(self.v))

    def test(self, relation: str, other: Real | float) -> ir.Value:
        """An ordered comparison (false with NaN), or "uno" for "either is NaN"."""
        if relation == "uno":
            return self.b.fcmp_unordered("uno", self.v, self._of(other))
        return self.b.fcmp_ordered(relation, self.v, self._of(other))

    def where(self, condition: ir.Value, other: Real | float) -> Real:
        """This value where `condition` holds, else `other`."""
        return Real(self.b, self.b.select(condition, self.v, self._of(other)))

    def bits(self) -> ir.Value:
        """The value's bits as an integer of its width."""
        return self.b.bitcast(self.v, I32 if self.v.type == F32 else I64)

    def from_bits(self, bits: ir.Value) -> Real:
        """The value of this type that has these bits."""
        return Real(self.b, self.b.bitcast(bits, self.v.type))

    def call(self, name: str) -> Real:
        """The LLVM intrinsic `llvm.<name>` of this value."""
        suffix = "f32" if self.v.type == F32 else "f64"
        kind = ir.FunctionType(self.v.type, [self.v.type])
        return Real(self.b, self.b.call(declare(self.b, kind, f"llvm.{name}.{suffix}"), [self.v]))

    def widen(self) -> Real:
        """This float as a double."""
        return Real(self.b, self.b.fpext(self.v, F64))

    def narrow(self) -> Real:
        """This double rounded to a float."""
        return Real(self.b, self.b.fptrunc(self.v, F32))


def declare(builder: ir.IRBuilder, kind: ir.FunctionType, name: str) -> ir.Function:
    """The function `name` of the module under construction, declared on first use."""
    return cgutils.get_or_insert_function(builder.module, kind, name)


def splat(value: ir.Value, vector: ir.VectorType, builder: ir.IRBuilder) -> ir.Value:
    """A vector whose elements are all `value`."""
    blank = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(blank, value, ir.Constant(I32, 0))
    mask = ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, blank, mask)


def prefetch(address: ir.Value, write: int, locality: int, builder: ir.IRBuilder) -> None:
    """Ask for the cache line at an int64 address; `locality` 3 is the nearest cache, 2 the next."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    call = declare(builder, kind, "llvm.prefetch.p0i8")
    hints = [ir.Constant(I32, n) for n in (write, locality, 1)]
    builder.call(call, [builder.inttoptr(address, byte), *hints])


def fused(a: ir.Value, b: ir.Value, c: ir.Value, builder: ir.IRBuilder) -> ir.Value:
    """a * b + c, in one rounding where the host can; scalars and vectors alike."""
    if not HAS_FMA:
        return builder.fadd(builder.fmul(a, b), c)
    kind = a.type
    if isinstance(kind, ir.VectorType):
        suffix = f"v{kind.count}{'f32' if kind.element == F32 else 'f64'}"
    else:
        suffix = "f32" if kind == F32 else "f64"
    call = declare(builder, ir.FunctionType(kind, [kind] * 3), f"llvm.fma.{suffix}")
    return builder.call(call, [a, b, c])


def fma(a: Real, b: Real | float, c: Real | float) -> Real:
    """a * b + c (see `fused`)."""
    return Real(a.b, fused(a.v, a._of(b), a._of(c), a.b))


def polynomial(x: Real, coefficients: tuple[float, ...]) -> Real:
    """c[0] + c[1] x + c[2] x^2 ... by Horner's rule."""
    value = x.const(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = fma(value, x, coefficient)
    return value


def nearest(x: Real) -> tuple[Real, ir.Value]:
    """`x` rounded to the nearest integer, as a float and as an integer of the same width.

    Adding 1.5 * 2^(mantissa bits) rounds and leaves the integer in the low bits. Any |x| below
    2^22 (float) or 2^51 (double); NaN gives NaN and an arbitrary integer.
    """
    magic = 12582912.0 if x.v.type == F32 else 6755399441055744.0
    shifted = x + magic
    integer = x.b.sub(shifted.bits(), x.const(magic).bits())
    return shifted - magic, integer


def power_of_two(x: Real, exponent: ir.Value) -> Real:
    """2^exponent as a value of x's type; the exponent must be that of a normal number."""
    width, bias = (23, 127) if x.v.type == F32 else (52, 1023)
    kind = exponent.type
    biased = x.b.add(exponent, ir.Constant(kind, bias))
    return x.from_bits(x.b.shl(biased, ir.Constant(kind, width)))


Emitter = Callable[[Real], Real]
