"""Decoding: tokens chosen step by step, greedily, by sampling, or by beam search.

A policy sees the logits of a step and chooses; what a step computes is a program. Beam search
keeps the best `width` beginnings of every example. Their scores are sums of log-probabilities over
((5 + length) / 6) ** penalty, the length penalty of Wu and others (2016).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

CHOSEN = "chosen"
Part = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


@dataclass(frozen=True, slots=True)
class Policy:
    """How tokens are chosen: "greedy", "sample" or "beam".

    Sampling divides the logits by `temperature`, then keeps the `top_k` most likely tokens (0:
    all), then the fewest that together have the probability `top_p`; `seed` fixes what is drawn.
    Beam search keeps `width` beginnings and prefers long ones the more, the larger `penalty`.
    """

    kind: str = "greedy"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    width: int = 5
    penalty: float = 0.6

    def __post_init__(self):
        """Raises ValueError for what cannot be."""
        _require(self.kind in ("greedy", "sample", "beam"),
                 f"a policy is greedy, sample or beam, not {self.kind!r}")
        _require(self.temperature > 0, f"a temperature is above 0, not {self.temperature}")
        _require(self.top_k >= 0, f"top_k is a number of tokens, not {self.top_k}")
        _require(0 < self.top_p <= 1, f"top_p is a share above 0, at most 1, not {self.top_p}")
        _require(np.isfinite(self.penalty), f"a penalty is a number, not {self.penalty}")
        _require(self.width >= 1, f"a beam is at least 1 wide, not {self.width}")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a decoding loop runs; see `lamina.compiler.frontend.decoding.Decoder` for the names."""

    step: Part
    rest: Part | None
    read: tuple[str, ...]
    states: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    axes: tuple[int, ...]
    stop: str
    repeated: tuple[int, ...]
    limit: int


@dataclass(slots=True)
class Decoded:
    """Per example: the outputs of its steps, its length in steps, its states, log-probability.

    `outputs` have the steps along the axes that the parts name, zeros past the end.
    """

    outputs: dict[str, np.ndarray]
    finals: dict[str, np.ndarray]
    tokens: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray


def decode(parts: Parts, first: Mapping[str, np.ndarray], examples: int,
           policy: Policy = Policy(), limit: int = 0,  # noqa: B008
           prompt: Sequence[Sequence[int]] = (), number: int = 0) -> Decoded:
    """Run the steps until every example has ended, or `limit` steps (the cell's own if 0).

    `first` are the states before the first step, s0, s1 ..., and what every step reads, f0, f1
    ...; `prompt` holds tokens of each example that are taken as they are before the policy chooses,
    and `number` is that of the first example, by which sampling draws. Raises ValueError for tokens
    that the model does not have.
    """
    width = policy.width if policy.kind == "beam" else 1
    return _Loop(parts, first, examples, policy, width, limit or parts.limit, prompt, number
                 ).run()


@dataclass(slots=True)
class _History:
    """What every step gave for each beginning, and the beginning before that it continues."""

    tokens: list[np.ndarray] = field(default_factory=list)
    parents: list[np.ndarray] = field(default_factory=list)
    outputs: list[dict[str, np.ndarray]] = field(default_factory=list)

    def path(self, row: int, length: int) -> list[int]:
        """The rows that a beginning went through, from its first step."""
        rows = []
        for step in range(len(self.tokens) - 1, -1, -1):
            if step < length:
                rows.append(row)
            row = int(self.parents[step][row])
        return rows[::-1]


class _Loop:
    def __init__(self, parts: Parts, first: Mapping[str, np.ndarray], examples: int,
                 policy: Policy, width: int, limit: int, prompt: Sequence[Sequence[int]],
                 number: int):
        self.parts, self.policy, self.width, self.limit = parts, policy, width, limit
        self.examples = examples
        self.states = [np.repeat(first[f"s{i}"], width, 0) for i in range(len(parts.states))]
        self.fixed = {f"x{len(self.states) + i}": self._repeated(first[f"f{i}"], axis)
                      for i, axis in enumerate(parts.repeated)}
        rows = self.examples * width
        self.prompt = [list(one) for one in prompt] or [[]] * self.examples
        _require(len(self.prompt) == self.examples, f"{len(self.prompt)} prompts for "
                 f"{self.examples} examples")
        self.generators = [np.random.default_rng((policy.seed, number + i))
                           for i in range(self.examples)]
        # All beginnings of an example are the same at first: one of them counts.
        self.scores = np.where(np.arange(rows) % width == 0, 0.0, -np.inf)
        self.lengths, self.ended = np.zeros(rows, np.int64), np.zeros(rows, bool)
        self.history = _History()

    def _repeated(self, value: np.ndarray, axis: int) -> np.ndarray:
        return value if axis < 0 or self.width == 1 else np.repeat(value, self.width, axis)

    def run(self) -> Decoded:
        """All steps, then the best beginning of every example."""
        for step in range(self.limit):
            self._step(step)
            if self.ended.all():
                break
        return self._best()

    def _step(self, step: int) -> None:
        parts = self.parts
        given = {f"x{i}": value for i, value in enumerate(self.states)}
        found = dict(parts.step({**given, **self.fixed}))
        logits = found["y0"]
        parents, tokens, scores = self._choose(logits, step)
        live = ~self.ended[parents]
        self.scores, self.lengths = scores, self.lengths[parents] + live
        self.ended = self.ended[parents]
        values = {name: value[parents] for name, value in found.items()}
        values[CHOSEN] = tokens.astype(np.int32)
        if parts.rest is not None:
            read = {f"x{i + 1}": values[name] for i, name in enumerate(parts.read)}
            rest = parts.rest({"x0": values[CHOSEN], **read})
            values |= {f"z{name[1:]}": value for name, value in rest.items()}
        if parts.stop:
            waiting = np.repeat([step < len(one) for one in self.prompt], self.width)
            self.ended = self.ended | (values[parts.stop].astype(bool) & ~waiting)
        self.states = [np.where(_column(live, values[name]), values[name], before[parents])
                       for (_, name), before in zip(parts.states, self.states, strict=True)]
        self.history.tokens.append(values[CHOSEN])
        self.history.parents.append(parents)
        self.history.outputs.append({key: values[name] for key, name in parts.outputs})

    # --- choices --------------------------------------------------------------------------------

    def _choose(self, logits: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For every row: the row that it continues, its token and its new score."""
        logp = _log_softmax(logits.astype(np.float64))
        rows = np.arange(len(logp))
        if self.policy.kind == "beam":
            parents, tokens = self._beams(logp)
        elif self.policy.kind == "sample":
            parents, tokens = rows, self._drawn(logits.astype(np.float64))
        else:
            parents, tokens = rows, logp.argmax(1)
        for example, forced in enumerate(self.prompt):
            if step < len(forced):
                _require(0 <= forced[step] < logp.shape[1], f"token {forced[step]} of the prompt "
                         f"is outside 0 to {logp.shape[1] - 1}")
                mine = slice(example * self.width, (example + 1) * self.width)
                parents[mine], tokens[mine] = rows[mine], forced[step]
        gained = np.where(self.ended[parents], 0.0, logp[parents, tokens])
        return parents, tokens, self.scores[parents] + gained

    def _drawn(self, logits: np.ndarray) -> np.ndarray:
        policy = self.policy
        tokens = np.zeros(len(logits), np.int64)
        for row, values in enumerate(logits / policy.temperature):
            order = np.argsort(-values, kind="stable")
            share = np.exp(_log_softmax(values[None, order])[0])
            kept = len(order) if policy.top_k == 0 else min(policy.top_k, len(order))
            share = share[:kept] / share[:kept].sum()
            kept = int(np.searchsorted(share.cumsum(), policy.top_p * (1 - 1e-12))) + 1
            share = share[:kept] / share[:kept].sum()
            place = np.searchsorted(share.cumsum(), self.generators[row].random())
            tokens[row] = order[min(int(place), len(share) - 1)]
        return tokens

    def _beams(self, logp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The best continuations of each example; an ended beginning continues as itself."""
        width, count = self.width, logp.shape[1]
        parents = np.zeros(len(logp), np.int64)
        tokens = np.zeros(len(logp), np.int64)
        for first in range(0, len(logp), width):
            mine = slice(first, first + width)
            ended, length = self.ended[mine], self.lengths[mine]
            grown = np.where(ended[:, None], -np.inf, self.scores[mine, None] + logp[mine])
            ranked = grown / self._divisor(length + 1)[:, None]
            ranked[ended, 0] = (self.scores[mine] / self._divisor(length))[ended]
            order = np.argsort(-ranked.reshape(-1), kind="stable")[:width]
            parents[mine], tokens[mine] = first + order // count, order % count
            stay = self.ended[parents[mine]]
            tokens[mine][stay] = self.history.tokens[-1][parents[mine]][stay] if stay.any() else 0
        return parents, tokens

    def _divisor(self, length: np.ndarray) -> np.ndarray:
        return ((5.0 + length) / 6.0) ** self.policy.penalty

    # --- results --------------------------------------------------------------------------------

    def _best(self) -> Decoded:
        width, history = self.width, self.history
        ranked = (self.scores / self._divisor(self.lengths)).reshape(-1, width)
        best = np.arange(self.examples) * width + ranked.argmax(1)
        lengths = self.lengths[best].astype(np.int32)
        paths = [history.path(int(row), int(n)) for row, n in zip(best, lengths, strict=True)]
        outputs = {}
        for (key, _), axis in zip(self.parts.outputs, self.parts.axes, strict=True):
            outputs[key] = self._stacked([one[key] for one in history.outputs], paths, axis)
        tokens = self._stacked(history.tokens, paths, 1)
        finals = {name: value[best] for (name, _), value in
                  zip(self.parts.states, self.states, strict=True)}
        return Decoded(outputs, finals, tokens, lengths, self.scores[best])

    def _stacked(self, steps: list[np.ndarray], paths: list[list[int]], axis: int) -> np.ndarray:
        """The steps of every example's path one after another; the examples come first."""
        most = max((len(path) for path in paths), default=0)
        out = np.zeros((len(paths), most, *steps[0].shape[1:]), steps[0].dtype)
        for example, path in enumerate(paths):
            for step, row in enumerate(path):
                out[example, step] = steps[step][row]
        return np.ascontiguousarray(np.moveaxis(out, 1, axis))


def _column(rows: np.ndarray, like: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, *(1,) * (like.ndim - 1))


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
