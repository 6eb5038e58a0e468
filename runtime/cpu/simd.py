"""What kernel texts may use: pointers, vectorisable mathematics, random bits, hints, barriers.

Everything here is a Numba intrinsic that emits LLVM instructions into the kernel. The float32
functions are branch-free, so that loops over them vectorise; they propagate NaN and infinities
as NumPy does and keep these bounds against the exact value (float32, measured by the tests):

    exp 1.1  log 1  tanh 3  sigmoid 3  erf 2  log1p 2  expm1 2  sin, cos 2  pow 1 ULP

(`sin` and `cos` up to |x| = 1e13; beyond that only the range [-1, 1] is kept.) Given float64
the same names call the C library.

Kernel texts import names from here, from `tiles` and from `winograd`, and nothing else:

    f32, f64, i32, i64, u8                      number types, for constants and casts
    f32ptr(address) ... u8ptr(address)          typed pointers, indexed by integers
    f32mem(address, n) ... u8mem(address, n)    the same; memory of another number n < 32 lies apart
    local_f32(n), _f64, _i32, _i64               address of n items on the stack, n a literal
    select(c, a, b), maximum, minimum           no branch; NaN as in NumPy
    plus(a, b)                                  a sum whose order is free, for reductions
    exp, log, tanh, sigmoid, erf, sqrt, rsqrt, pow, sin, cos, log1p, expm1, floor
    philox_key(seed, counter), philox_uniform(key, index)   float32 in [0, 1)
    fetch_line(address), claim_line(address)    a cache line that will be read or written soon
    split(units, panels, tid, nthreads)         a thread's part of the work
    call_kernel(function, args, tid, nthreads)  call the kernel at an address
    barrier, watch, ticks                       for the table walker alone
"""

from __future__ import annotations

import operator

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model

from lamina.runtime.cpu.emit import (
    F32,
    F64,
    I32,
    I64,
    Emitter,
    Real,
    declare,
    fma,
    nearest,
    polynomial,
    power_of_two,
    prefetch,
)

SCOPES = 32  # how many memories a kernel can tell apart

f32, f64, i32, i64, u8 = np.float32, np.float64, np.int32, np.int64, np.uint8

# --- pointers --------------------------------------------------------------------------------


def _pointer(item: types.Type, storage: ir.Type):
    """A typed pointer from an int64 address."""

    @intrinsic
    def pointer(_, address):
        def generate(context, builder, signature, args):
            return builder.inttoptr(args[0], storage.as_pointer())

        return types.CPointer(item)(types.int64), generate

    return pointer


f32ptr = _pointer(types.float32, F32)
f64ptr = _pointer(types.float64, F64)
i32ptr = _pointer(types.int32, I32)
i64ptr = _pointer(types.int64, I64)
u8ptr = _pointer(types.uint8, ir.IntType(8))


class Memory(types.CPointer):
    """A typed pointer into memory number `scope`, which overlaps no memory of another number."""

    def __init__(self, item: types.Type, scope: int):
        super().__init__(item)
        self.scope = scope
        self.name = f"{item}*{scope}"

    @property
    def key(self):
        """What tells two such types apart."""
        return self.dtype, self.scope


register_model(Memory)(models.PointerModel)


def _memory(item: types.Type, storage: ir.Type):
    """A typed pointer from an int64 address and the literal number of its memory.

    Without it LLVM compares the bounds of every two pointers before it enters a vector loop, and
    beyond a few pointers gives up.
    """

    @intrinsic(prefer_literal=True)
    def memory(_, address, scope):
        if not isinstance(scope, types.IntegerLiteral) or not 0 <= scope.literal_value < SCOPES:
            return None

        def generate(context, builder, signature, args):
            return builder.inttoptr(args[0], storage.as_pointer())

        return Memory(item, scope.literal_value)(types.int64, scope), generate

    return memory


f32mem = _memory(types.float32, F32)
f64mem = _memory(types.float64, F64)
i32mem = _memory(types.int32, I32)
i64mem = _memory(types.int64, I64)
u8mem = _memory(types.uint8, ir.IntType(8))


def _mark(access: ir.Instruction, builder: ir.IRBuilder, scope: int) -> None:
    """Say that a load or store touches memory `scope` and no other."""
    module = builder.module
    domain = module.add_metadata(["lamina"])
    scopes = [module.add_metadata([f"lamina {n}", domain]) for n in range(SCOPES)]
    access.set_metadata("alias.scope", module.add_metadata([scopes[scope]]))
    access.set_metadata("noalias", module.add_metadata(scopes[:scope] + scopes[scope + 1 :]))


@lower_builtin(operator.getitem, Memory, types.Integer)
def _load_memory(context, builder, signature, args):
    value = builder.load(builder.gep(args[0], [args[1]]))
    _mark(value, builder, signature.args[0].scope)
    return value


@lower_builtin(operator.setitem, Memory, types.Integer, types.Any)
def _store_memory(context, builder, signature, args):
    memory, _, kind = signature.args
    value = context.cast(builder, args[2], kind, memory.dtype)
    _mark(builder.store(value, builder.gep(args[0], [args[1]])), builder, memory.scope)
    return context.get_dummy_value()


def _local(storage: ir.Type):
    """The address of `count` items on the stack, not set; `count` must be a literal integer."""

    @intrinsic(prefer_literal=True)
    def local(_, count):
        if not isinstance(count, types.IntegerLiteral):
            return None
        amount = count.literal_value

        def generate(context, builder, signature, args):
            # Numba's alloca_once would fill it with zeros, item by item.
            with builder.goto_entry_block():
                array = builder.alloca(ir.ArrayType(storage, amount))
            array.align = 64
            return builder.ptrtoint(array, I64)

        return types.int64(count), generate

    return local


local_f32 = _local(F32)
local_f64 = _local(F64)
local_i32 = _local(I32)
local_i64 = _local(I64)

# --- choice ----------------------------------------------------------------------------------


def _common(a: types.Type, b: types.Type) -> types.Type:
    """The type in which two operands meet; float32 wins over integers, as kernels expect."""
    if a == b:
        return a
    if types.float64 in (a, b):
        return types.float64
    if types.float32 in (a, b):
        return types.float32
    return types.int64


def _plain(kind: types.Type) -> types.Type:
    return types.unliteral(kind)


@intrinsic
def select(_, condition, a, b):
    """`a` where `condition` holds, else `b`; both are evaluated."""
    kind = _common(_plain(a), _plain(b))

    def generate(context, builder, signature, args):
        return builder.select(args[0], args[1], args[2])

    return kind(types.boolean, kind, kind), generate


def _extreme(relation: str):
    """maximum (relation ">") or minimum ("<"): a NaN operand is the result."""

    @intrinsic
    def extreme(_, a, b):
        kind = _common(_plain(a), _plain(b))

        def generate(context, builder, signature, args):
            left, right = args
            if not isinstance(kind, types.Float):
                return builder.select(builder.icmp_signed(relation, left, right), left, right)
            wins = builder.or_(
                builder.fcmp_ordered(relation, left, right),
                builder.fcmp_unordered("uno", left, left),
            )
            return builder.select(wins, left, right)

        return kind(kind, kind), generate

    return extreme


maximum = _extreme(">")
minimum = _extreme("<")


@intrinsic
def plus(_, a, b):
    """a + b where the order of a long sum does not matter: loops over it become vectors.

    Only this addition may be reordered. FASTMATH with "reassoc" would reach into `exp` and the
    others, whose range reduction it destroys.
    """
    kind = _common(_plain(a), _plain(b))

    def generate(context, builder, signature, args):
        if isinstance(kind, types.Float):
            return builder.fadd(*args, flags=("reassoc", "nsz", "contract"))
        return builder.add(*args)

    return kind(kind, kind), generate


# --- mathematics -----------------------------------------------------------------------------

_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440054690583e-4
# Minimax fits over the reduced ranges: (e^r - 1 - r) / r^2, (log(1+f) - f + f^2/2) / f^3,
# erf(a)/a - 1 in a^2, (log(erfc(t)) + t) / t, and the tails of sine and cosine in r^2.
_EXP = (0.5, 0.16666516661643982, 0.04166620224714279, 0.008369089104235172, 0.001395083381794393)
_LOG = (
    0.3333331048488617,
    -0.24999986588954926,
    0.20002226531505585,
    -0.16669249534606934,
    0.14218653738498688,
    -0.12384364008903503,
    0.11873022466897964,
    -0.11789736896753311,
    0.06915182620286942,
)
_ERF = (
    0.12837915122509003,
    -0.37612494826316833,
    0.11281802505254745,
    -0.026765568181872368,
    0.0049909804947674274,
    -0.0005976894171908498,
)
_ERFC = (
    -0.1286521553993225,
    -0.6351358890533447,
    -0.10626314580440521,
    0.023785345256328583,
    -0.0036537630949169397,
    0.00032565256697125733,
    -1.1522283784870524e-05,
)
_SIN = (-0.16666653752326965, 0.008332140743732452, -0.00019512085418682545)
_COS = (0.04166664555668831, -0.0013887317618355155, 2.443260200379882e-05)


def _clamp(x: Real, low: float, high: float) -> Real:
    """`x` within [low, high]; NaN stays."""
    x = x.const(low).where(x.test("<", low), x)
    return x.const(high).where(x.test(">", high), x)


def _reduce(x: Real) -> tuple[Real, ir.Value, Real]:
    """x = n log 2 + r: gives r, n as an integer, and e^r - 1."""
    n, integer = nearest(x * _LOG2E)
    r = fma(-n, _LN2_LOW, fma(-n, _LN2_HIGH, x))
    return r, integer, fma(r * r, polynomial(r, _EXP), r)


def _exp(x: Real) -> Real:
    b = x.b
    _, n, tail = _reduce(_clamp(x, -105.0, 89.0))
    # Two factors, since 2^n alone leaves the normal range where the result is subnormal or inf.
    half = b.ashr(n, ir.Constant(I32, 1))
    return (tail + 1.0) * power_of_two(x, half) * power_of_two(x, b.sub(n, half))


def _expm1(x: Real) -> Real:
    _, n, tail = _reduce(_clamp(x, -18.0, 89.0))
    scale = power_of_two(x, x.b.sub(n, ir.Constant(I32, 1)))
    value = fma(scale, tail, scale - 0.5) * 2.0
    # e^x - 1 rounds to x below 2^-24, where halving a subnormal above would lose its last bit.
    return x.where(x.call("fabs").test("<", 5.9604645e-8), value)


def _log(x: Real) -> Real:
    b = x.b
    tiny = x.test("<", 1.17549435e-38)
    scaled = (x * 8388608.0).where(tiny, x)
    bits = scaled.bits()
    # Subtracting the bits of sqrt(1/2) splits off the exponent that leaves m in [0.707, 1.414).
    shifted = b.sub(bits, ir.Constant(I32, 0x3F3504F3))
    exponent = b.ashr(shifted, ir.Constant(I32, 23))
    m = x.from_bits(b.sub(bits, b.shl(exponent, ir.Constant(I32, 23))))
    e = Real(b, b.sitofp(exponent, F32)) - x.const(23.0).where(tiny, 0.0)
    f = m - 1.0
    square = f * f
    tail = fma(e, _LN2_LOW, square * f * polynomial(f, _LOG))
    value = fma(e, _LN2_HIGH, f + fma(square, -0.5, tail))
    value = x.where(x.test("==", float("inf")), value)
    value = x.const(float("-inf")).where(x.test("==", 0.0), value)
    value = x.const(float("nan")).where(x.test("<", 0.0), value)
    return x.where(x.test("uno", x), value)


def _log1p(x: Real) -> Real:
    u = x + 1.0
    value = _log(u) + (x - (u - 1.0)) / u  # what rounding 1 + x lost, to first order
    keep = x.b.or_(x.test("==", 0.0), x.test("==", float("inf")))
    value = x.const(float("-inf")).where(x.test("==", -1.0), value)
    return x.where(keep, value)


def _signed(magnitude: Real, sign: Real) -> Real:
    """|magnitude| with the sign of `sign`."""
    b = sign.b
    one = b.and_(sign.bits(), ir.Constant(I32, 0x80000000))
    return magnitude.from_bits(b.or_(b.and_(magnitude.bits(), ir.Constant(I32, 0x7FFFFFFF)), one))


def _tanh(x: Real) -> Real:
    e = _expm1(_clamp(x.call("fabs"), 0.0, 10.0) * 2.0)
    return x.where(x.test("uno", x), _signed(e / (e + 2.0), x))


def _sigmoid(x: Real) -> Real:
    e = _exp(-x.call("fabs"))
    return e.where(x.test("<", 0.0), 1.0) / (e + 1.0)


def _erf(x: Real) -> Real:
    t = _clamp(x.call("fabs"), 0.0, 4.0)
    near = fma(polynomial(x * x, _ERF), x, x)
    power = fma(polynomial(t, _ERFC), t, -t)
    far = _signed(1.0 - _exp(power), x)
    value = near.where(t.test("<", 0.92), far)
    return x.where(x.test("uno", x), value)


def _quadrant(x: Real) -> tuple[Real, Real, ir.Value]:
    """sin r, cos r and n of x = n pi/2 + r; the reduction runs in float64."""
    wide = x.widen()
    n, integer = nearest(wide * 0.6366197723675814)
    r = fma(-n, 6.123233995736766e-17, fma(-n, 1.5707963267948966, wide))
    r = _clamp(r, -0.8, 0.8).narrow()
    z = r * r
    sine = fma(z * r, polynomial(z, _SIN), r)
    cosine = fma(z * z, polynomial(z, _COS), fma(z, -0.5, z.const(1.0)))
    return sine, cosine, x.b.trunc(integer, I32)


def _turn(sine: Real, cosine: Real, n: ir.Value) -> Real:
    """sin(n pi/2 + r)."""
    b = sine.b
    odd = b.icmp_signed("!=", b.and_(n, ir.Constant(I32, 1)), ir.Constant(I32, 0))
    value = cosine.where(odd, sine)
    sign = b.shl(b.and_(n, ir.Constant(I32, 2)), ir.Constant(I32, 30))
    return value.from_bits(b.xor(value.bits(), sign))


def _sin(x: Real) -> Real:
    sine, cosine, n = _quadrant(x)
    value = x.where(x.test("==", 0.0), _turn(sine, cosine, n))
    return x.const(float("nan")).where(x.call("fabs").test("==", float("inf")), value)


def _cos(x: Real) -> Real:
    sine, cosine, n = _quadrant(x)
    value = _turn(sine, cosine, x.b.add(n, ir.Constant(I32, 1)))
    return x.const(float("nan")).where(x.call("fabs").test("==", float("inf")), value)


def _sqrt(x: Real) -> Real:
    return x.call("sqrt")


def _rsqrt(x: Real) -> Real:
    return x.const(1.0) / x.call("sqrt")


def _floor(x: Real) -> Real:
    return x.call("floor")


def _library(name: str) -> Emitter:
    """The C library's function of a double."""

    def emit(x: Real) -> Real:
        call = declare(x.b, ir.FunctionType(F64, [F64]), name)
        return Real(x.b, x.b.call(call, [x.v]))

    return emit


def _sigmoid64(x: Real) -> Real:
    e = _library("exp")(-x.call("fabs"))
    return e.where(x.test("<", 0.0), 1.0) / (e + 1.0)


def _function(single: Emitter, double: Emitter):
    """A function of one number: `single` for float32 (and integers), `double` for float64."""

    @intrinsic
    def function(_, x):
        kind = types.float64 if _plain(x) == types.float64 else types.float32
        emit = double if kind == types.float64 else single

        def generate(context, builder, signature, args):
            return emit(Real(builder, args[0])).v

        return kind(kind), generate

    return function


exp = _function(_exp, _library("exp"))
log = _function(_log, _library("log"))
tanh = _function(_tanh, _library("tanh"))
sigmoid = _function(_sigmoid, _sigmoid64)
erf = _function(_erf, _library("erf"))
sin = _function(_sin, _library("sin"))
cos = _function(_cos, _library("cos"))
log1p = _function(_log1p, _library("log1p"))
expm1 = _function(_expm1, _library("expm1"))
sqrt = _function(_sqrt, _sqrt)
rsqrt = _function(_rsqrt, _rsqrt)
floor = _function(_floor, _floor)


def _log2_wide(x: Real) -> Real:
    """log2 of a positive double, relative error about 1e-11: enough for a float32 power."""
    b = x.b
    shifted = b.sub(x.bits(), ir.Constant(I64, 0x3FE6A09E667F3BCD))
    exponent = b.ashr(shifted, ir.Constant(I64, 52))
    m = x.from_bits(b.sub(x.bits(), b.shl(exponent, ir.Constant(I64, 52))))
    s = (m - 1.0) / (m + 1.0)
    series = polynomial(s * s, tuple(2 * _LOG2E / k for k in (1, 3, 5, 7, 9, 11, 13)))
    return fma(s, series, Real(b, b.sitofp(b.trunc(exponent, I32), F64)))


def _exp2_wide(x: Real) -> Real:
    """2^x of a double in [-1000, 1000], relative error about 1e-11."""
    n, integer = nearest(x)
    r = (x - n) * 0.6931471805599453
    terms, factor = [1.0], 1.0
    for k in range(1, 10):
        factor /= k
        terms.append(factor)
    return polynomial(r, tuple(terms)) * power_of_two(x, integer)


def _pow(x: Real, y: Real) -> Real:
    """x^y over float32, computed in float64; special cases as in C."""
    b = x.b
    inf = float("inf")
    size = x.call("fabs").widen()
    safe = _clamp(size, 1e-300, 1e300)
    exponent = _log2_wide(safe) * y.widen()
    # The logarithm of 0 and inf must carry an infinity for the product to be right.
    edge = size.const(-inf).where(size.test("==", 0.0), inf)
    at_edge = b.or_(size.test("==", 0.0), size.test("==", inf))
    exponent = (edge * y.widen()).where(at_edge, exponent)
    value = _exp2_wide(_clamp(exponent, -300.0, 300.0)).narrow()
    whole = y.call("floor").test("==", y)
    half = y * 0.5
    odd = b.and_(whole, b.not_(half.call("floor").test("==", half)))
    negative = b.icmp_signed("<", x.bits(), ir.Constant(I32, 0))
    value = (-value).where(b.and_(negative, odd), value)
    invalid = b.and_(x.test("<", 0.0), b.not_(whole))
    invalid = b.and_(invalid, x.call("fabs").test("<", inf))
    value = x.const(float("nan")).where(invalid, value)
    unit = b.and_(x.test("==", -1.0), y.call("fabs").test("==", inf))
    unit = b.or_(unit, b.or_(x.test("==", 1.0), y.test("==", 0.0)))
    value = (x + y).where(b.fcmp_unordered("uno", x.v, y.v), value)
    return x.const(1.0).where(unit, value)


@intrinsic
def pow(_, x, y):
    """x^y; float32 unless an operand is float64."""
    wide = types.float64 in (_plain(x), _plain(y))
    kind = types.float64 if wide else types.float32

    def generate(context, builder, signature, args):
        if wide:
            return builder.call(declare(builder, ir.FunctionType(F64, [F64, F64]), "pow"), args)
        return _pow(Real(builder, args[0]), Real(builder, args[1])).v

    return kind(kind, kind), generate


# --- random bits: Philox 2x32-10 (Salmon, Moraes, Dror, Shaw 2011); twin: runtime/random.py ----


def _mix64(b: ir.IRBuilder, z: ir.Value) -> ir.Value:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = b.mul(b.xor(z, b.lshr(z, ir.Constant(I64, shift))), ir.Constant(I64, factor))
    return b.xor(z, b.lshr(z, ir.Constant(I64, 31)))


@intrinsic
def philox_key(_, seed, counter):
    """64 bits that name the stream of (seed, counter); compute it once, outside the loop."""

    def generate(context, builder, signature, args):
        golden = ir.Constant(I64, 0x9E3779B97F4A7C15)
        first = _mix64(builder, builder.add(args[0], golden))
        return _mix64(builder, builder.add(builder.add(first, args[1]), golden))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def philox_uniform(_, key, index):
    """The float32 in [0, 1) at `index` of the stream `key`: 24 bits of Philox 2x32-10."""

    def generate(context, builder, signature, args):
        b = builder
        key, index = args
        low, thirty_two = ir.Constant(I64, 0xFFFFFFFF), ir.Constant(I64, 32)
        left = b.and_(index, low)
        right = b.xor(b.lshr(index, thirty_two), b.lshr(key, thirty_two))
        k = b.and_(key, low)
        for turn in range(10):
            round_key = b.and_(b.add(k, ir.Constant(I64, turn * 0x9E3779B9)), low)
            product = b.mul(left, ir.Constant(I64, 0xD256D193))
            left = b.xor(b.xor(b.lshr(product, thirty_two), round_key), right)
            right = b.and_(product, low)
        bits = b.trunc(b.lshr(left, ir.Constant(I64, 8)), I32)
        return b.fmul(b.sitofp(bits, F32), ir.Constant(F32, 2.0**-24))

    return types.float32(types.int64, types.int64), generate


# --- the division of work -----------------------------------------------------------------------


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True)
def split(units, panels, tid, nthreads):
    """This thread's part (first and last unit, first and last panel) of units x panels pieces.

    Threads form the grid of ways * across whose largest share is smallest, rows first.
    """
    ways, least = 1, units * panels + 1
    for candidate in range(1, nthreads + 1):
        if nthreads % candidate == 0:
            beside = nthreads // candidate
            share = ((units + candidate - 1) // candidate) * ((panels + beside - 1) // beside)
            if share <= least:
                least, ways = share, candidate
    across = nthreads // ways
    row, column = tid // across, tid % across
    return (
        row * units // ways,
        (row + 1) * units // ways,
        column * panels // across,
        (column + 1) * panels // across,
    )


# --- the table walker's needs ----------------------------------------------------------------


@intrinsic
def watch(_, counter, seen, looks):
    """The int64 at `counter` as soon as it is not `seen`, or after so many looks whatever it is."""

    def generate(context, builder, signature, args):
        b = builder
        counter, seen, looks = args
        pointer = b.inttoptr(counter, I64.as_pointer())
        left, value = cgutils.alloca_once(b, I64), cgutils.alloca_once(b, I64)
        b.store(looks, left)
        look, wait, done = (b.append_basic_block(name) for name in ("look", "wait", "done"))
        b.branch(look)
        b.position_at_end(look)
        b.store(b.load_atomic(pointer, "acquire", 8), value)
        remaining = b.load(left)
        going = b.and_(b.icmp_signed("==", b.load(value), seen),
                       b.icmp_signed(">", remaining, ir.Constant(I64, 0)))
        b.cbranch(going, wait, done)
        b.position_at_end(wait)
        b.store(b.sub(remaining, ir.Constant(I64, 1)), left)
        _pause(b)
        b.branch(look)
        b.position_at_end(done)
        return b.load(value)

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic
def call_kernel(_, function, args, tid, nthreads):
    """Call the kernel at address `function`."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic
def ticks(_):
    """The processor's counter of time, in units of its own."""

    def generate(context, builder, signature, args):
        call = declare(builder, ir.FunctionType(I64, []), "llvm.readcyclecounter")
        return builder.call(call, [])

    return types.int64(), generate


def _prefetch(doc: str, write: int, locality: int):
    """An intrinsic that asks for the cache line at an int64 address, which may be anywhere."""

    @intrinsic
    def fetch(_, address):
        def generate(context, builder, signature, args):
            prefetch(args[0], write, locality, builder)
            return context.get_dummy_value()

        return types.void(types.int64), generate

    fetch.__doc__ = doc
    return fetch


fetch_line = _prefetch("Bring what will be read into the second-level cache.", 0, 2)
claim_line = _prefetch("Bring what will be written into the nearest cache.", 1, 3)


def _pause(builder: ir.IRBuilder) -> None:
    """Tell the core that this is a spin loop, where there is an instruction for it."""
    if llvm.get_process_triple().startswith("x86_64"):
        call = declare(builder, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause")
        builder.call(call, [])


@intrinsic
def barrier(_, counter, goal, spins):
    """Add one to the int64 at `counter`, then wait until it reaches `goal`.

    Waits by spinning `spins` times, then by yielding the processor between looks.
    """

    def generate(context, builder, signature, args):
        b = builder
        counter, goal, spins = args
        pointer = b.inttoptr(counter, I64.as_pointer())
        b.atomic_rmw("add", pointer, ir.Constant(I64, 1), "seq_cst")
        left = cgutils.alloca_once(b, I64)
        b.store(spins, left)
        look, wait, done = (b.append_basic_block(name) for name in ("look", "wait", "done"))
        b.branch(look)
        b.position_at_end(look)
        seen = b.load_atomic(pointer, "acquire", 8)
        b.cbranch(b.icmp_signed("<", seen, goal), wait, done)
        b.position_at_end(wait)
        remaining = b.load(left)
        with b.if_else(b.icmp_signed(">", remaining, ir.Constant(I64, 0))) as (spin, rest):
            with spin:
                b.store(b.sub(remaining, ir.Constant(I64, 1)), left)
                _pause(b)
            with rest:
                b.call(declare(b, ir.FunctionType(I32, []), "sched_yield"), [])
        b.branch(look)
        b.position_at_end(done)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate
