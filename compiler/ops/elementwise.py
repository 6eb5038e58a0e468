"""Elementwise operators, with NumPy broadcasting; each carries its kernel text and gradient."""

from __future__ import annotations

import math

import numpy as np

from lamina.compiler.ir.op import REQUIRED
from lamina.compiler.ir.types import DTYPES, NUMPY_TYPES, TensorType
from lamina.compiler.ops.define import (
    broadcast,
    composite,
    elementwise,
    primitive,
    same_dtype,
)

NUMBERS = ("f32", "f64", "i32", "i64")
PAIR = ("x:[3,4] y:[3,4]", "x:[2,1,5] y:[3,1]", "x:[7] y:[]", "x:[0,3] y:[3]")
ONE = ("x:[3,4]", "x:[17]", "x:[]", "x:[0,3]")
MISMATCH = {"E210": "x:[3,4] y:[3,5]", "E205": "x:[3] y:f64[3]"}

elementwise("add", arity=2, scalar="({0} + {1})", numpy=np.add, accepts=NUMBERS,
            vjp=lambda m, ct, z, x, y: (ct, ct), torch="a + b", samples=PAIR, bad=MISMATCH,
            doc="Sum.")
elementwise("sub", arity=2, scalar="({0} - {1})", numpy=np.subtract, accepts=NUMBERS,
            vjp=lambda m, ct, z, x, y: (ct, -ct), torch="a - b", samples=PAIR, bad=MISMATCH,
            doc="Difference.")
elementwise("mul", arity=2, scalar="({0} * {1})", numpy=np.multiply, accepts=NUMBERS,
            vjp=lambda m, ct, z, x, y: (ct * y, ct * x), torch="a * b", samples=PAIR, bad=MISMATCH,
            doc="Product.")
elementwise("div", arity=2, scalar="({0} / {1})", numpy=np.divide,
            vjp=lambda m, ct, z, x, y: (ct / y, -(ct * z) / y), torch="a / b",
            samples=("x:[3,4] y:+[3,4]", "x:[2,1,5] y:+[3,1]"), bad=MISMATCH, doc="Quotient.")
elementwise("pow", arity=2, scalar="pow({0}, {1})", numpy=np.power,
            vjp=lambda m, ct, z, x, y: (ct * y * m.pow(x, y - 1.0), ct * z * m.log(x)),
            torch="a ** b", samples=("x:+[3,4] y:[3,4]", "x:+[5] y:[]"), bad=MISMATCH,
            doc="Power.")
elementwise("maximum", arity=2, scalar="maximum({0}, {1})", numpy=np.maximum, accepts=NUMBERS,
            vjp=lambda m, ct, z, x, y: _share(m, ct, z, x, y), torch="torch.maximum(a, b)",
            samples=PAIR, bad=MISMATCH, doc="The larger; NaN if either is.")
elementwise("minimum", arity=2, scalar="minimum({0}, {1})", numpy=np.minimum, accepts=NUMBERS,
            vjp=lambda m, ct, z, x, y: _share(m, ct, z, x, y), torch="torch.minimum(a, b)",
            samples=PAIR, bad=MISMATCH, doc="The smaller; NaN if either is.")


def _share(m, ct, z, x, y):
    """Equal operands share the gradient, as in PyTorch."""
    each = m.select(m.equal(x, y), ct * 0.5, ct)
    return (m.select(m.equal(x, z), each, 0.0), m.select(m.equal(y, z), each, 0.0))


for _name, _text, _function in (
    ("less", "<", np.less), ("less_equal", "<=", np.less_equal), ("greater", ">", np.greater),
    ("greater_equal", ">=", np.greater_equal), ("equal", "==", np.equal),
    ("not_equal", "!=", np.not_equal),
):
    elementwise(_name, arity=2, scalar=f"({{0}} {_text} {{1}})", numpy=_function, result="bool",
                accepts=NUMBERS, torch=f"a {_text} b", samples=PAIR, bad=MISMATCH,
                doc=f"Whether x {_text} y.")

elementwise("logical_and", arity=2, scalar="({0} & {1})", numpy=np.logical_and, accepts=("bool",),
            torch="torch.logical_and(a, b)", samples=("x:bool[3,4] y:bool[4]",),
            bad={"E204": "x:[3] y:[3]"}, doc="Both.")
elementwise("logical_or", arity=2, scalar="({0} | {1})", numpy=np.logical_or, accepts=("bool",),
            torch="torch.logical_or(a, b)", samples=("x:bool[3,4] y:bool[4]",),
            bad={"E204": "x:[3] y:[3]"}, doc="Either.")
elementwise("logical_not", scalar="(not {0})", numpy=np.logical_not, accepts=("bool",),
            torch="torch.logical_not(a)", samples=("x:bool[3,4]",), bad={"E204": "x:[3]"},
            doc="Negation.")


def _infer_select(condition: TensorType, x: TensorType, y: TensorType) -> TensorType:
    same_dtype("select", (condition,), ("bool",))
    same_dtype("select", (x, y), DTYPES)
    return TensorType(broadcast("select", (condition, x, y)), x.dtype)


primitive("select", "elementwise", infer=_infer_select, arity=(3, 3),
          scalar="select({0}, {1}, {2})", numpy=np.where,
          vjp=lambda m, ct, z, c, x, y: (None, m.select(c, ct, 0.0), m.select(c, 0.0, ct)),
          torch="torch.where(a, b, c)",
          samples=("c:bool[3,4] x:[3,4] y:[4]", "c:bool[5] x:[] y:[5]"),
          bad={"E210": "c:bool[3] x:[4] y:[4]", "E205": "c:bool[3] x:[3] y:i32[3]"},
          doc="x where the condition holds, else y.")


def _unary(name, scalar, function, vjp, torch, doc, samples=ONE, **more):
    elementwise(name, scalar=scalar, numpy=function, vjp=vjp, torch=torch, samples=samples,
                bad={"E204": "x:i32[3]", **more.pop("bad", {})}, doc=doc, **more)


POSITIVE = ("x:+[3,4]", "x:+[17]", "x:+[]")


def _sigmoid(x):
    # exp of minus the magnitude never overflows.
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(np.asarray(x).dtype)


def _erf(x):
    x = np.asarray(x)
    values = np.array([math.erf(v) for v in x.ravel().tolist()], dtype=np.float64)
    return values.reshape(x.shape).astype(x.dtype)


elementwise("neg", scalar="(-{0})", numpy=np.negative, vjp=lambda m, ct, y, x: (-ct,),
            accepts=NUMBERS, torch="-a", samples=ONE, bad={"E204": "x:bool[3]"}, doc="Negation.")
elementwise("abs", scalar="abs({0})", numpy=np.abs, vjp=lambda m, ct, y, x: (ct * m.sign(x),),
            accepts=NUMBERS, torch="torch.abs(a)", samples=ONE, bad={"E204": "x:bool[3]"},
            doc="Magnitude.")
_unary("sign", "select({0} > {t}(0), {t}(1), select({0} < {t}(0), {t}(-1), {0}))", np.sign,
       lambda m, ct, y, x: (None,), "torch.sign(a)", "-1, 0 or 1; NaN stays.")
_unary("floor", "floor({0})", np.floor, lambda m, ct, y, x: (None,), "torch.floor(a)",
       "The largest whole number not above x.")
_unary("exp", "exp({0})", np.exp, lambda m, ct, y, x: (ct * y,), "torch.exp(a)", "e to the x.")
_unary("expm1", "expm1({0})", np.expm1, lambda m, ct, y, x: (ct * (y + 1.0),), "torch.expm1(a)",
       "exp(x) - 1, exact near 0.")
_unary("log", "log({0})", np.log, lambda m, ct, y, x: (ct / x,), "torch.log(a)",
       "Natural logarithm.", POSITIVE)
_unary("log1p", "log1p({0})", np.log1p, lambda m, ct, y, x: (ct / (x + 1.0),), "torch.log1p(a)",
       "log(1 + x), exact near 0.", POSITIVE)
_unary("sqrt", "sqrt({0})", np.sqrt, lambda m, ct, y, x: (ct * 0.5 / y,), "torch.sqrt(a)",
       "Square root.", POSITIVE)
_unary("rsqrt", "rsqrt({0})", lambda x: 1 / np.sqrt(x), lambda m, ct, y, x: (ct * -0.5 * y / x,),
       "torch.rsqrt(a)", "1 / sqrt(x).", POSITIVE)
_unary("sin", "sin({0})", np.sin, lambda m, ct, y, x: (ct * m.cos(x),), "torch.sin(a)", "Sine.")
_unary("cos", "cos({0})", np.cos, lambda m, ct, y, x: (-ct * m.sin(x),), "torch.cos(a)", "Cosine.")
_unary("tanh", "tanh({0})", np.tanh, lambda m, ct, y, x: (ct * (1.0 - y * y),), "torch.tanh(a)",
       "Hyperbolic tangent.")
_unary("sigmoid", "sigmoid({0})", _sigmoid, lambda m, ct, y, x: (ct * y * (1.0 - y),),
       "torch.sigmoid(a)", "1 / (1 + exp(-x)).")
_unary("erf", "erf({0})", _erf,
       lambda m, ct, y, x: (ct * m.exp(-x * x) * (2 / math.sqrt(math.pi)),), "torch.erf(a)",
       "Gauss error function.")
_unary("relu", "maximum({0}, {t}(0))", lambda x: np.maximum(x, 0),
       lambda m, ct, y, x: (m.select(m.greater(y, 0.0), ct, 0.0),), "torch.relu(a)",
       "max(x, 0); the gradient at 0 is 0. Nair and Hinton (2010).")


primitive("cast", "elementwise", infer=lambda x, *, dtype: TensorType(x.shape, dtype),
          attrs={"dtype": REQUIRED}, scalar="{dtype}({0})",
          numpy=lambda x, *, dtype: np.asarray(x).astype(NUMPY_TYPES[dtype]),
          vjp=lambda m, ct, y, x, *, dtype: (
              m.cast(ct, dtype=m.dtype_of(x)) if m.dtype_of(x) in ("f32", "f64") else None,),
          samples=("x:i32[3,4] | dtype='f32'", "x:bool[5] | dtype='f32'", "x:[7] | dtype='i32'",
                   "x:[3,4] | dtype='f64'"),
          torch="a.to(oracle.dtype(dtype))", doc="Convert elements.")


@composite("square", torch="torch.square(a)", samples=ONE)
def square(m, x):
    """The square of x."""
    return x * x


@composite("gelu", attrs={"approximate": "none"}, samples=(*ONE, "x:[5] | approximate='tanh'"),
           torch="torch.nn.functional.gelu(a, approximate=approximate)")
def gelu(m, x, *, approximate):
    """x times the normal distribution function. Hendrycks and Gimpel (2016)."""
    if approximate == "tanh":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
        return x * 0.5 * (m.tanh(inner) + 1.0)
    return x * 0.5 * (m.erf(x * math.sqrt(0.5)) + 1.0)


@composite("silu", torch="torch.nn.functional.silu(a)", samples=ONE)
def silu(m, x):
    """x * sigmoid(x). Elfwing, Uchibe and Doya (2017)."""
    return x * m.sigmoid(x)


# Derived from the body, the gradient at exactly 0 would lose its half.
@composite("softplus", torch="torch.nn.functional.softplus(a)", samples=ONE,
           vjp=lambda m, ct, y, x: (ct * m.sigmoid(x),))
def softplus(m, x):
    """log(1 + exp(x)), without overflow. Dugas and others (2001)."""
    return m.relu(x) + m.log1p(m.exp(-m.abs(x)))


@composite("leaky_relu", attrs={"slope": 0.01}, samples=(*ONE, "x:[9] | slope=0.2"),
           torch="torch.nn.functional.leaky_relu(a, slope)")
def leaky_relu(m, x, *, slope):
    """x above 0, slope * x below. Maas, Hannun and Ng (2013)."""
    return m.select(m.greater(x, 0.0), x, x * slope)


@composite("elu", attrs={"alpha": 1.0}, samples=ONE, torch="torch.nn.functional.elu(a, alpha)")
def elu(m, x, *, alpha):
    """x above 0, alpha * (exp(x) - 1) below. Clevert, Unterthiner and Hochreiter (2015)."""
    below = m.expm1(m.minimum(x, 0.0)) * alpha
    return m.select(m.greater(x, 0.0), x, below)


@composite("clip", attrs={"low": REQUIRED, "high": REQUIRED},
           samples=("x:[3,4] | low=-0.5, high=0.5",), torch="torch.clamp(a, low, high)")
def clip(m, x, *, low, high):
    """x limited to the range from low to high."""
    return m.minimum(m.maximum(x, low), high)
