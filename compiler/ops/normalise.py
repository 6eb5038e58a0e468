"""Normalisation over parts of a tensor."""

from __future__ import annotations

from lamina.compiler.ir.op import REQUIRED, OpError
from lamina.compiler.ir.types import divide_exactly, product, shape_text
from lamina.compiler.ops.define import composite
from lamina.compiler.ops.window import single

WIDEST = 65  # channels that local response normalisation may sum over


@composite("layer_norm", attrs={"axis": -1, "eps": 1e-5}, arity=3,
           samples=("x:[3,6] g:[6] b:[6]",), bad={"E210": "x:[3,6] g:[5] b:[6]"},
           torch="torch.nn.functional.layer_norm(a, a.shape[-1:], b, c, eps)")
def layer_norm(m, x, g, b, *, axis, eps):
    """Normalise over `axis`, then scale and shift. Ba, Kiros and Hinton (2016)."""
    d = x - m.mean(x, axis=axis, keepdims=True)
    v = m.mean(d * d, axis=axis, keepdims=True)
    return d * m.rsqrt(v + eps) * g + b


def _check_channels(name: str, x) -> None:
    if len(x.shape) < 2:
        raise OpError("E225", f"`{name}` takes [N, C, ...], not {shape_text(x.shape)}", "", (0,))


@composite("group_norm", attrs={"groups": REQUIRED, "eps": 1e-5}, arity=3,
           samples=("x:[2,6,3,2] g:[6] b:[6] | groups=3", "x:[3,4] g:[4] b:[4] | groups=1",
                    "x:[2,5,7] g:[5] b:[5] | groups=5, eps=0.01"),
           bad={"E222": "x:[2,6,3] g:[6] b:[6] | groups=4", "E225": "x:[6] g:[6] b:[6] | groups=2",
                "E210": "x:[2,6,3] g:[5] b:[6] | groups=2",
                "E224": "x:[2,6,3] g:[6] b:[6] | groups=0"},
           torch="torch.nn.functional.group_norm(a, groups, b, c, eps)")
def group_norm(m, x, g, b, *, groups, eps):
    """Normalise each group of channels of each example, then scale and shift each channel.

    x is [N, C, ...]; g and b are [C]. Wu and He (2018).
    """
    _check_channels("group_norm", x)
    single("group_norm", "groups", groups)
    batch, channels, *rest = x.shape
    each = divide_exactly(channels, groups)
    if each is None:
        raise OpError("E222", f"`group_norm`: {groups} groups do not divide {channels} channels",
                      "choose a number of groups that divides the channels", (0,))
    flat = m.reshape(x, shape=(batch, groups, each * product(rest)))
    d = flat - m.mean(flat, axis=2, keepdims=True)
    v = m.mean(d * d, axis=2, keepdims=True)
    y = m.reshape(d * m.rsqrt(v + eps), shape=tuple(x.shape))
    over = (1,) * len(rest)
    scale, shift = (m.reshape(one, shape=(*one.shape, *over)) for one in (g, b))
    return y * scale + shift


@composite("local_response_norm",
           attrs={"window": 5, "alpha": 1e-4, "beta": 0.75, "bias": 2.0},
           samples=("x:[2,7,3,2]", "x:[1,3,2] | window=3, alpha=0.5, bias=1.0",
                    "x:[2,4,3] | window=2", "x:[1,2,3,3] | window=9, beta=0.5"),
           bad={"E225": "x:[5]", "E224": "x:[2,4] | window=0"},
           torch="torch.nn.functional.local_response_norm(a, window, alpha, beta, bias)")
def local_response_norm(m, x, *, window, alpha, beta, bias):
    """x / (bias + alpha / window * s) ** beta, s the sum of squares over `window` channels around.

    x is [N, C, ...]. Krizhevsky, Sutskever and Hinton (2012), section 3.3; alpha is divided by
    the window, as in Caffe and PyTorch.
    """
    _check_channels("local_response_norm", x)
    if not 1 <= window <= WIDEST:
        raise OpError("E224", f"`local_response_norm`: window is {window}",
                      f"it counts the channels summed over: a number from 1 to {WIDEST}")
    none, count = (0,) * (len(x.shape) - 2), x.shape[1]
    squares = m.pad(x * x, lo=(0, window // 2, *none), hi=(0, (window - 1) // 2, *none))
    total = None
    for start in range(window):
        part = m.slice(squares, starts=(0, start, *none),
                       stops=(x.shape[0], start + count, *x.shape[2:]),
                       steps=(1,) * len(x.shape))
        total = part if total is None else total + part
    return x * m.pow(total * (alpha / window) + bias, -beta)
