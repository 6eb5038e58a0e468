"""Losses and metrics: each gives one f32 scalar, the mean over all positions."""

from __future__ import annotations

from lamina.compiler.ir.op import OpError
from lamina.compiler.ir.types import shape_text
from lamina.compiler.ops.define import composite, normalize_axis

LABELS = ("i32", "i64")
ERRORS = ("cross_entropy", "mse", "l1", "huber", "binary_cross_entropy", "focal", "dice")


def _check_labels(m, name: str, logits, label, axis: int) -> int:
    """The axis of the classes, counted from 0, when the label's shape is that of the rest.

    A label of the logits' own shape and type gives each class its share.
    """
    axis = normalize_axis(name, axis, len(logits.shape))
    if _is_shares(m, logits, label):
        return axis
    if m.dtype_of(label) not in LABELS:
        raise OpError("E204", f"`{name}`: labels of type {m.dtype_of(label)}",
                      "labels are class numbers: i32 or i64", (1,))
    expected = (*logits.shape[:axis], *logits.shape[axis + 1:])
    if tuple(label.shape) != expected:
        raise OpError("E227", f"`{name}`: logits {shape_text(logits.shape)} with classes along "
                      f"axis {axis} need labels {shape_text(expected)}, not "
                      f"{shape_text(label.shape)}",
                      _other_axis(logits, label) or "one label for each position", (0, 1))
    return axis


def _other_axis(logits, label) -> str:
    """The way out when the labels fit logits with their classes along the last axis."""
    if len(logits.shape) > 2 and tuple(label.shape) == tuple(logits.shape[:-1]):
        return "with classes along the last axis write axis=-1"
    return ""


def _check_same(name: str, x, y) -> None:
    if tuple(x.shape) != tuple(y.shape):
        raise OpError("E227", f"`{name}` needs two tensors of one shape, not "
                      f"{shape_text(x.shape)} and {shape_text(y.shape)}",
                      "reshape one; nothing is broadcast here", (0, 1))


def _is_shares(m, logits, label) -> bool:
    return m.dtype_of(label) == m.dtype_of(logits) and tuple(label.shape) == tuple(logits.shape)


def _is_label(m, logits, label, axis: int):
    """bool of the logits' shape: true at the label's class."""
    place = m.iota(shape=logits.shape, axis=axis, dtype=m.dtype_of(label))
    return m.equal(m.expand_dims(label, axis=axis), place)


@composite("cross_entropy", attrs={"smoothing": 0.0, "axis": 1}, arity=2,
           samples=("x:[4,5] y:i32[4]<5", "x:[2,5,3] y:i64[2,3]<5 | smoothing=0.1",
                    "x:[3,2,7] y:i32[3,2]<7 | axis=-1", "x:[6,1] y:i32[6]<1",
                    "x:[5] y:i32[]<5 | axis=0", "x:[4,5] y:+[4,5]",
                    "x:[2,3,4] y:+[2,3,4] | axis=-1, smoothing=0.2"),
           bad={"E227": "x:[4,5] y:i32[5]", "E204": "x:[4,5] y:[4]", "E211": "x:[4] y:i32[4]",
                "E226": "x:[4,5] y:i32[4] | smoothing=1.5"},
           torch="oracle.cross_entropy(a, b, axis, smoothing)")
def cross_entropy(m, logits, label, *, smoothing, axis):
    """Mean of -log softmax(logits)[label]; `smoothing` spreads that share over all classes.

    A label of the logits' shape gives each class its share, in place of a class number. Label
    smoothing: Szegedy and others (2016).
    """
    axis = _check_labels(m, "cross_entropy", logits, label, axis)
    if not 0 <= smoothing < 1:
        raise OpError("E226", f"`cross_entropy`: smoothing is {smoothing}, outside the range from "
                      "0 to 1", "it is the share of the label spread evenly: 0 <= smoothing < 1")
    logp = m.log_softmax(logits, axis=axis)
    shares = _is_shares(m, logits, label)
    gold = label * logp if shares else m.select(_is_label(m, logits, label, axis), logp, 0.0)
    if smoothing:
        gold = gold * (1 - smoothing) + logp * smoothing / m.count(logits, (axis,))
    rest = tuple(one for one in range(len(logits.shape)) if one != axis)
    return -(m.sum(gold) / m.count(logits, rest))


PAIR = ("x:[3,4] y:[3,4]", "x:[17] y:[17]", "x:[] y:[]")
WRONG = {"E227": "x:[3,1] y:[3]", "E205": "x:[3] y:f64[3]"}


@composite("mse", arity=2, samples=PAIR, bad=WRONG, torch="torch.nn.functional.mse_loss(a, b)")
def mse(m, x, y):
    """Mean squared difference."""
    _check_same("mse", x, y)
    d = x - y
    return m.mean(d * d)


@composite("l1", arity=2, samples=PAIR, bad=WRONG, torch="torch.nn.functional.l1_loss(a, b)")
def l1(m, x, y):
    """Mean absolute difference."""
    _check_same("l1", x, y)
    return m.mean(m.abs(x - y))


@composite("huber", attrs={"delta": 1.0}, arity=2, samples=(*PAIR, "x:[9] y:[9] | delta=0.3"),
           bad=WRONG, torch="torch.nn.functional.huber_loss(a, b, delta=delta)")
def huber(m, x, y, *, delta):
    """Half the squared difference up to `delta`, linear beyond. Huber (1964)."""
    _check_same("huber", x, y)
    d = m.abs(x - y)
    return m.mean(m.select(m.less_equal(d, delta), d * d * 0.5, (d - delta / 2) * delta))


def _binary_vjp(m, ct, loss, x, y):
    # Derived from the body, the gradient at exactly 0 would lose its half.
    each = ct / m.count(x, tuple(range(len(x.shape))))
    return (m.sigmoid(x) - y) * each, -x * each


@composite("binary_cross_entropy", arity=2, samples=PAIR, bad=WRONG, vjp=_binary_vjp,
           torch="torch.nn.functional.binary_cross_entropy_with_logits(a, b)")
def binary_cross_entropy(m, x, y):
    """Mean of -y log sigmoid(x) - (1 - y) log(1 - sigmoid(x)), without overflow; x are logits."""
    _check_same("binary_cross_entropy", x, y)
    return m.mean(m.relu(x) - x * y + m.log1p(m.exp(-m.abs(x))))


@composite("focal", attrs={"alpha": 0.25, "gamma": 2.0}, arity=2,
           samples=("x:[3,4] y:+[3,4]", "x:[17] y:+[17] | gamma=0.0, alpha=0.5"), bad=WRONG,
           torch="oracle.focal(a, b, alpha, gamma)")
def focal(m, x, y, *, alpha, gamma):
    """Mean binary cross-entropy of logits x, each weighted by how wrong it is.

    With p the probability given to the truth: -a (1 - p) ** gamma log p, a = alpha where y is 1
    and 1 - alpha where it is 0. Lin, Goyal, Girshick, He and Dollar (2017).
    """
    _check_same("focal", x, y)
    p = m.sigmoid(x)
    wrong = p * (1.0 - y) + (1.0 - p) * y
    loss = m.relu(x) - x * y + m.log1p(m.exp(-m.abs(x)))
    weight = y * (2 * alpha - 1) + (1 - alpha)
    return m.mean(weight * m.pow(wrong, gamma) * loss)


@composite("dice", attrs={"eps": 1.0}, arity=2,
           samples=("x:[2,1,3,4] y:+[2,1,3,4]", "x:[3,7] y:+[3,7] | eps=0.1"), bad={
               "E227": "x:[3,1] y:[3]", "E205": "x:[3,2] y:f64[3,2]", "E225": "x:[3] y:[3]"},
           torch="oracle.dice(a, b, eps)")
def dice(m, x, y, *, eps):
    """1 - 2 |A B| / (|A| + |B|) of the mask sigmoid(x) and the truth y, the mean over examples.

    `eps` is added above and below. Milletari, Navab and Ahmadi (2016).
    """
    _check_same("dice", x, y)
    both, one, other = _overlap(m, "dice", m.sigmoid(x), y)
    return m.mean(1.0 - (both * 2.0 + eps) / (one + other + eps))


@composite("iou", attrs={"eps": 1e-6}, arity=2,
           samples=("x:[2,1,3,4] y:+[2,1,3,4]", "x:[3,7] y:+[3,7] | eps=0.1"), bad={
               "E227": "x:[3,1] y:[3]", "E205": "x:[3,2] y:f64[3,2]", "E225": "x:[3] y:[3]"},
           torch="oracle.iou(a, b, eps)")
def iou(m, x, y, *, eps):
    """Intersection over union of the masks x > 0 and y > 1/2, the mean over examples; a metric."""
    _check_same("iou", x, y)
    found = m.cast(m.greater(x, 0.0), dtype=m.dtype_of(x))
    truth = m.cast(m.greater(y, 0.5), dtype=m.dtype_of(y))
    both, one, other = _overlap(m, "iou", found, truth)
    return m.mean((both + eps) / (one + other - both + eps))


def _overlap(m, name: str, x, y):
    """Per example, the sums of x y, of x and of y."""
    if len(x.shape) < 2:
        raise OpError("E225", f"`{name}` takes [N, ...], not {shape_text(x.shape)}", "", (0, 1))
    axes = tuple(range(1, len(x.shape)))
    return m.sum(x * y, axis=axes), m.sum(x, axis=axes), m.sum(y, axis=axes)


@composite("accuracy", attrs={"axis": 1}, arity=2,
           samples=("x:[4,5] y:i32[4]<5", "x:[2,5,3] y:i64[2,3]<5",
                    "x:[2,3,5] y:i32[2,3]<5 | axis=-1", "x:[4,5] y:[4,5]"),
           bad={"E227": "x:[4,5] y:i32[5]", "E204": "x:[4,5] y:[4]"},
           torch="(a.argmax(axis) == (b.argmax(axis) if b.is_floating_point() else b))"
                 ".float().mean()")
def accuracy(m, logits, label, *, axis):
    """The share of positions whose largest logit is the label's; no gradient.

    Where the label gives shares, the class of the largest counts.
    """
    axis = _check_labels(m, "accuracy", logits, label, axis)
    if _is_shares(m, logits, label):
        label = m.argmax(label, axis=axis)
    best = m.cast(m.argmax(logits, axis=axis), dtype=m.dtype_of(label))
    return m.mean(m.cast(m.equal(best, label), dtype="f32"))


@composite("top_k_accuracy", attrs={"k": 5, "axis": 1}, arity=2,
           samples=("x:[4,7] y:i32[4]<7", "x:[2,7,3] y:i64[2,3]<7 | k=2"),
           bad={"E227": "x:[4,5] y:i32[5]", "E204": "x:[4,5] y:[4]"},
           torch="(a.topk(min(k, a.shape[axis]), axis).indices == b.unsqueeze(axis)).any(axis)"
                 ".float().mean()")
def top_k_accuracy(m, logits, label, *, k, axis):
    """The share of positions whose label is among the k largest logits; no gradient."""
    axis = _check_labels(m, "top_k_accuracy", logits, label, axis)
    if _is_shares(m, logits, label):
        label = m.argmax(label, axis=axis)
    hit = _is_label(m, logits, label, axis)
    mine = m.sum(m.select(hit, logits, 0.0), axis=axis, keepdims=True)
    above = m.logical_not(m.less_equal(logits, mine))  # NaN counts as above
    place = m.sum(m.cast(above, dtype="i32"), axis=axis)
    return m.mean(m.cast(m.less(place, k), dtype="f32"))
