"""Models that choose their tokens, decoded: what the command line asks for, and how far off it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamina.api import Decoding, Training
from lamina.compiler.ir.types import TensorType
from lamina.compiler.options import Options
from lamina.runtime.data.dataset import Dataset, open_data
from lamina.runtime.data.feeding import Feed, Lengths, feed
from lamina.runtime.data.vocabulary import BOS, EOS, UNKNOWN, Vocabulary
from lamina.runtime.decoding import Policy
from lamina.runtime.edit import nearest
from lamina.runtime.errors import Failure
from lamina.runtime.padding import LENGTHS, is_lengths

BATCH = 64  # examples that are decoded together
BEGINNINGS = 1024  # of a batch's examples together
POSITIONS = 1 << 16  # of a batch at most, where it is of several examples
FETCHED = 256  # held-out examples that are looked at together


@dataclass(frozen=True, slots=True)
class Wish:
    """How tokens are to be chosen: `limit` steps (0: the model's own), from the `prompts` on.

    `named` are the options that a user gave, for messages.
    """

    policy: Policy = Policy()
    limit: int = 0
    prompts: tuple[str, ...] = ()
    named: tuple[str, ...] = ()


_GREEDY = Wish()


def wish(beam: int | None = None, penalty: float | None = None, sample: bool = False,
         temperature: float | None = None, top_k: int | None = None, top_p: float | None = None,
         seed: int | None = None, limit: int | None = None, prompts: Sequence[str] = ()) -> Wish:
    """What options of the command line ask for. Raises Failure E416 for ones that do not fit."""
    given = {"--beam": beam, "--penalty": penalty, "--sample": sample or None,
             "--temperature": temperature, "--top-k": top_k, "--top-p": top_p, "--seed": seed,
             "--limit": limit, "--prompt": prompts or None}
    named = tuple(name for name, value in given.items() if value is not None)
    if beam is not None and sample:
        raise Failure("E416", "--beam and --sample are two ways to choose tokens", "give one")
    for option, needed in (("--penalty", "--beam"), ("--temperature", "--sample"),
                           ("--top-k", "--sample"), ("--top-p", "--sample"),
                           ("--seed", "--sample")):
        if option in named and needed not in named:
            raise Failure("E416", f"{option} belongs to {needed}",
                          f"add {needed}" + " 5" * (needed == "--beam"))
    settings: dict[str, Any] = {"width": beam, "penalty": penalty, "temperature": temperature,
                                "top_k": top_k, "top_p": top_p, "seed": seed}
    kind = "sample" if sample else "greedy" if beam is None else "beam"
    try:
        policy = Policy(kind, **{key: one for key, one in settings.items() if one is not None})
    except ValueError as error:  # a number that is none, which no range of the options refuses
        raise Failure("E416", str(error), "give another number") from None
    return Wish(policy, limit or 0, tuple(prompts), named)


def require_choice(chooses: bool, asked: Wish) -> None:
    """Raise Failure E416 for options of decoding with a model that chooses no tokens."""
    if asked.named and not chooses:
        raise Failure("E416", f"{', '.join(asked.named)}: the model chooses no tokens",
                      "leave it out; a model whose scan uses `choose` takes it")


# --- batches ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spoken:
    """The tokens that were chosen for an example, int32 [steps], and their log-probability.

    `outputs` are the model's, without the batch and without what is past the example's end.
    """

    numbers: np.ndarray
    score: float
    outputs: Mapping[str, np.ndarray]


def batch_size(policy: Policy) -> int:
    """How many examples are decoded together: fewer where a wide beam keeps much of each."""
    return min(BATCH, max(1, BEGINNINGS // policy.width)) if policy.kind == "beam" else BATCH


def cut(sizes: Sequence[tuple], examples: Sequence[Any], most: int = BATCH) -> list[list[Any]]:
    """Examples in batches of equal `sizes` but the first, a length that is padded.

    A batch has at most `most` examples.
    """
    batches: list[list[Any]] = []
    kinds: dict[object, int] = {}
    longest: list[int] = []
    for (length, *kind), example in zip(sizes, examples, strict=True):
        place = kinds.get(tuple(kind), -1)
        full = place < 0 or len(batches[place]) == most or \
            (len(batches[place]) + 1) * max(longest[place], length) > POSITIONS
        if full:
            place = kinds[tuple(kind)] = len(batches)
            batches.append([])
            longest.append(0)
        batches[place].append(example)
        longest[place] = max(longest[place], length)
    return batches


def speak(decoding: Decoding, params: Mapping[str, np.ndarray], asked: Wish,
          inputs: Mapping[str, Any], prompts: Sequence[Sequence[int]] = (),
          numbers: Sequence[int] = ()) -> list[Spoken]:
    """A batch decoded; `numbers` are those of its examples, by which sampling draws.

    `inputs` are as `Decoding` takes them. Raises ValueError for sizes that do not go together.
    """
    found = decoding(params, asked.policy, asked.limit, prompts, numbers, **inputs)
    shapes = {name: _sizes(decoding.last.graph.type(value))
              for name, value in decoding.last.graph.outputs}
    lengths: dict[str, Any] = dict.fromkeys(steps_of(decoding), found["lengths"])
    lengths |= {name: value for name, value in inputs.items() if is_lengths(name)}
    for name, type in decoding.inputs.items():
        for axis, size in enumerate(_sizes(type)):
            if isinstance(inputs.get(name), list) and is_lengths(size):
                lengths[size] = [one.shape[axis - 1] for one in inputs[name]]
    spoken = []
    for row, count in enumerate(found["lengths"].tolist()):
        outputs = {name: trimmed(found[name][row], shape[1:], row, lengths)
                   for name, shape in shapes.items() if shape}
        spoken.append(Spoken(found["chosen"][row, :count], float(found["score"][row]), outputs))
    return spoken


def steps_of(decoding: Decoding) -> tuple[str, str]:
    """The size of the steps, as a type has it where it is ragged and where it is not."""
    return decoding.decoder.length + LENGTHS, decoding.decoder.length


def _sizes(type: TensorType) -> tuple[str, ...]:
    return tuple(map(str, type.shape))


def trimmed(value: np.ndarray, shape: Sequence[str], row: int, lengths: Mapping[str, Any]
            ) -> np.ndarray:
    """An example's part of an output, without what is past its own end."""
    return value[tuple(slice(int(lengths[size][row])) if size in lengths else slice(None)
                       for size in shape)]


def said_by(vocabulary: Vocabulary | None, numbers: np.ndarray) -> tuple[str, tuple[str, ...]]:
    """Chosen tokens as text, and one by one without <bos> and <eos>; numbers where no vocabulary
    tells more.
    """
    if vocabulary is None:
        tokens = tuple(map(str, numbers.tolist()))
        return " ".join(tokens), tokens
    known = np.where(numbers < len(vocabulary), numbers, UNKNOWN)
    kept = spoken_tokens(known.tolist(), vocabulary)
    return vocabulary.decode(kept), tuple(vocabulary.tokens[number] for number in kept)


def spoken_tokens(numbers: Sequence[int], vocabulary: Vocabulary | None) -> list[int]:
    """Tokens up to the first <eos>, without <bos>; all where there is no vocabulary."""
    numbers = list(numbers)
    if vocabulary is None or vocabulary.closed:
        return numbers
    end = numbers.index(EOS) if EOS in numbers else len(numbers)
    return [number for number in numbers[:end] if number != BOS]


# --- held-out data ------------------------------------------------------------------------------


def token_errors(training: Training, options: Options, params: Mapping[str, np.ndarray],
                 vocabularies: Mapping[str, Vocabulary], asked: Wish = _GREEDY
                 ) -> dict[str, float]:
    """How far what the model chooses for the held-out data is from its references.

    "token errors" is the edit distance over the length of the references, summed over all sources,
    "exact" the share of sources that are said as a reference is. Each different source counts once,
    against the nearest of its references. Nothing for a model with no source; Failure E416 where
    a user asks for more.
    """
    decoding = training.net.decoding(options)
    if not decoding.inputs or not decoding.decoder.source:
        if asked.named:
            raise Failure("E416", f"{', '.join(asked.named)}: nothing tells what the model should "
                          "say, so no token errors are counted", "leave it out")
        return {}
    job, source = training.job(), decoding.decoder.source
    data = open_data(job.valid, Path(job.folder), job.seed, vocabularies)
    every = feed(data, job.inputs)
    gold = next(one.field for one in every if one.key == source)
    plan = [one for one in every if one.key in decoding.inputs]
    vocabulary = data.vocabularies.get(gold)
    groups = _groups(data, plan, gold, vocabulary)
    groups.sort(key=lambda group: group.size)
    wrong, length, exact = 0, 0, 0
    most = batch_size(asked.policy)
    for start in range(0, len(groups), most):
        batch = groups[start : start + most]
        rows = data.fetch(np.array([group.first for group in batch]))
        inputs = {one.key: one.take(rows) for one in plan}
        for group, spoken in zip(batch, speak(decoding, params, asked, inputs),
                                 strict=True):
            said = spoken_tokens(spoken.numbers.tolist(), vocabulary)
            distance, size = nearest(said, group.references)
            wrong, length, exact = wrong + distance, length + size, exact + (distance == 0)
    return {"token errors": wrong / max(length, 1), "exact": exact / len(groups)}


@dataclass(slots=True)
class _Group:
    """A source: its first example, its size in numbers, and the references of all its examples."""

    first: int
    size: int
    references: list[list[int]]


def _groups(data: Dataset, plan: Sequence[Feed | Lengths], gold: str,
            vocabulary: Vocabulary | None) -> list[_Group]:
    """The different sources of a dataset."""
    found: dict[bytes, _Group] = {}
    fields = [one.field for one in plan if isinstance(one, Feed)]
    for start in range(0, len(data), FETCHED):
        indices = np.arange(start, min(start + FETCHED, len(data)))
        rows = data.fetch(indices)
        for place, index in enumerate(indices.tolist()):
            parts = [np.asarray(rows[field][place]) for field in fields]
            digest = hashlib.sha256()
            for part in parts:
                digest.update(repr(part.shape).encode() + part.tobytes())
            group = found.setdefault(digest.digest(),
                                     _Group(index, sum(part.size for part in parts), []))
            group.references.append(spoken_tokens(rows[gold][place].tolist(), vocabulary))
    return list(found.values())
