"""Vocabularies: which number stands for which token, and text to numbers and back."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.stage import bad, truth, whole
from lamina.runtime.errors import did_you_mean, show

UNKNOWN, BOS, EOS = 0, 1, 2  # 0 also fills what is padded
SPECIAL = ("<unk>", "<bos>", "<eos>")
PICTURE = "picture"  # no text: the name of a picture's file
CODINGS = ("chars", "words", "bpe", "labels", "class", "suffix 3", PICTURE)
CLOSED = ("labels", "class")  # no token is unknown: numbers start at 0, none is special
MOST = 1 << 20  # entries of a vocabulary
BYTES = 256  # entries that byte pairs begin with, besides the special ones
PAIRS = 8000  # entries with byte pairs where the recipe does not say

Item = str | list[str]  # a text, or its tokens
Encoder = Callable[[Item], list[int]]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a coding by number. `merges` are pairs of byte-pair coding, `lower` says that
    texts are made lower case first.
    """

    coding: str
    tokens: tuple[str, ...]
    lower: bool = False
    merges: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def closed(self) -> bool:
        """Whether a token outside is an error, and there are no special ones."""
        return self.coding in CLOSED

    def encoder(self) -> Encoder:
        """A function from a text (or its tokens) to numbers, for many texts.

        It raises DataError E610 for a token outside a closed vocabulary.
        """
        if self.coding == "bpe":
            pairs = _pairs(self)
            return lambda item: pairs.encode(_cased(_text(item), self.lower)).ids
        numbers = {token: number for number, token in enumerate(self.tokens)}
        find = partial(_known, numbers) if self.closed else partial(_or_unknown, numbers)
        return lambda item: find(tokens_of(self.coding, item, self.lower))

    def encode(self, text: Item) -> np.ndarray:
        """A text as int32 [length], without <bos> and <eos>; unknown tokens are 0."""
        return np.array(self.encoder()(text), np.int32)

    def decode(self, numbers: Sequence[int] | np.ndarray) -> str:
        """Numbers as text: <bos> is left out, and all from the first <eos> on.

        Raises DataError E610 for a number outside.
        """
        kept = []
        for number in map(int, numbers):
            if not 0 <= number < len(self):
                raise DataError("E610", f"there is no token {number}: the vocabulary has "
                                f"{len(self):,} entries")
            if number == EOS and not self.closed:
                break
            if number != BOS or self.closed:
                kept.append(number)
        return self.join(kept)

    def join(self, numbers: Sequence[int] | np.ndarray) -> str:
        """All numbers as text, special ones too; they are those of entries."""
        if self.coding == "bpe":
            return _pairs(self).decode(list(map(int, numbers)), skip_special_tokens=False)
        return ("" if self.coding == "chars" else " ").join(self.tokens[n] for n in numbers)


@dataclass(frozen=True, slots=True)
class Making:
    """How a field's vocabulary is made: at most `size` entries (0: all), of tokens that occur at
    least `least` times.
    """

    coding: str
    size: int = 0
    least: int = 1
    lower: bool = False

    def make(self, items: Iterable[Item]) -> Vocabulary:
        """The vocabulary of the training data's texts. Raises DataError E605, E612."""
        if self.coding == "bpe":
            return _trained(map(_text, items), self.size or PAIRS, self.least, self.lower)
        counts: Counter[str] = Counter()
        for item in items:
            counts.update(tokens_of(self.coding, item, self.lower))
        return self.ranked(counts)

    def ranked(self, counts: Mapping[str, int]) -> Vocabulary:
        """The vocabulary of counted tokens: the most frequent first, then by code point.

        Closed codings have their labels by code point.
        """
        if self.coding in CLOSED:
            return Vocabulary(self.coding, tuple(sorted(counts)))
        kept = [token for token, count in counts.items()
                if count >= self.least and token not in SPECIAL]
        kept.sort(key=lambda token: (-counts[token], token))
        room = (self.size or MOST) - len(SPECIAL)
        if len(kept) > room and not self.size:
            raise DataError("E605", f"there are {len(kept):,} different tokens; a vocabulary has "
                            f"at most {MOST:,} entries", "keep the most frequent: size=50000")
        return Vocabulary(self.coding, (*SPECIAL, *kept[:room]), self.lower)


def check_making(coding: str, size: object, least: object, lower: object) -> Making:
    """How a field's vocabulary is made; `size` 0 keeps all. Raises DataError E608."""
    few = len(SPECIAL) + (BYTES if coding == "bpe" else 1)
    most = size if size == 0 and not isinstance(size, bool) else whole("size", size, few, MOST)
    assert isinstance(most, int)
    small = truth("lower", lower) and coding not in CLOSED
    return Making(coding, most, whole("least", least, 1, 1 << 31), small)


def is_coding(coding: object) -> bool:
    """Whether there is such a coding."""
    if not isinstance(coding, str) or coding in CODINGS:
        return isinstance(coding, str)
    return re.fullmatch(r"suffix [1-9][0-9]?", coding) is not None


def check_coding(name: str, coding: object) -> str:
    """The coding of a field, or E608."""
    if is_coding(coding):
        return str(coding)
    error = bad(name, 'a coding, as "words"', coding)
    error.help = f"there are: {', '.join(CODINGS)}"
    raise error


def tokens_of(coding: str, item: Item, lower: bool = False) -> Sequence[str]:
    """The tokens of a text, or of tokens that a file already tells apart."""
    if coding == "class":
        return [_text(item)]
    if coding == "labels":
        return item.split() if isinstance(item, str) else item
    if coding == "chars":
        return _cased(_text(item), lower)
    words = _cased(item, lower).split() if isinstance(item, str) else \
        [_cased(word, lower) for word in item]
    if coding == "words":
        return words
    last = int(coding.split()[1])
    return [word[-last:] for word in words]


def as_plain(vocabularies: Mapping[str, Vocabulary]) -> list[dict]:
    """Vocabularies by field as what JSON can hold; fields that share one are told together."""
    found: dict[int, dict] = {}
    for field, one in vocabularies.items():
        plain = {"fields": [], "coding": one.coding, "tokens": list(one.tokens),
                 "lower": one.lower, "merges": [list(pair) for pair in one.merges]}
        found.setdefault(id(one), plain)["fields"].append(field)
    return list(found.values())


def from_plain(values: Iterable[Mapping]) -> dict[str, Vocabulary]:
    """What `as_plain` gave; ValueError, TypeError or KeyError for anything else."""
    found = {}
    for plain in values:
        tokens = tuple(map(str, plain["tokens"]))
        merges = tuple((str(one), str(other)) for one, other in plain["merges"])
        vocabulary = Vocabulary(str(plain["coding"]), tokens, bool(plain["lower"]), merges)
        special = tokens[: len(SPECIAL)] == SPECIAL
        known = is_coding(vocabulary.coding) and (special or vocabulary.closed)
        if not known or not tokens or len(set(tokens)) < len(tokens):
            raise ValueError("a vocabulary makes no sense")
        found |= dict.fromkeys(map(str, plain["fields"]), vocabulary)
    return found


def require_same_coding(makings: Mapping[str, Making], given: Mapping[str, Vocabulary]) -> None:
    """Raise DataError E611 where fields are not coded as by the vocabularies given (if any are)."""
    for field, making in makings.items() if given else ():
        one = given.get(field)
        if one is None:
            raise DataError("E611", f"the model was trained with no vocabulary of `{show(field)}`",
                            f"its fields of texts: {', '.join(f'`{show(key)}`' for key in given)}")
        if (one.coding, one.lower) != (making.coding, making.lower):
            raise DataError("E611", f"the vocabulary of `{show(field)}` that the model was trained "
                            f"with is of {_written(one)}; this data's coding is {_written(making)}",
                            "write the coding that it was trained with")


def _written(one: Vocabulary | Making) -> str:
    return f'"{one.coding}"' + ", lower=true" * one.lower


def _text(item: Item) -> str:
    return item if isinstance(item, str) else " ".join(item)


def _cased(text: str, lower: bool) -> str:
    return text.lower() if lower else text


def _or_unknown(numbers: Mapping[str, int], tokens: Sequence[str]) -> list[int]:
    return [numbers.get(token, UNKNOWN) for token in tokens]


def _known(numbers: Mapping[str, int], tokens: Sequence[str]) -> list[int]:
    try:
        return [numbers[token] for token in tokens]
    except KeyError as error:
        label = str(error.args[0])
        raise DataError("E610", f"the training data has no label `{show(label)}`",
                        did_you_mean(label, map(show, numbers)) if len(numbers) <= 50
                        else "correct it, or add examples of it to the training data") from None


# --- byte pairs ---------------------------------------------------------------------------------


def _library():
    try:
        import tokenizers
    except ImportError:
        raise DataError("E612", "byte pairs need the package tokenizers",
                        'install it with: pip install "lamina[text]"') from None
    return tokenizers


def _tokenizer(library, model):
    """A tokenizer of bytes, which loses no character."""
    made = library.Tokenizer(model)
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    return made


def _pairs(vocabulary: Vocabulary):
    library = _library()
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
    try:
        return _tokenizer(library, library.models.BPE(numbers, list(vocabulary.merges)))
    except Exception as error:  # the library raises nothing narrower for merges that do not fit
        raise DataError("E603", f"the vocabulary of byte pairs is damaged: {show(error)}",
                        "train again") from None


def _trained(texts: Iterator[str], size: int, least: int, lower: bool) -> Vocabulary:
    """Byte pairs merged by how often they occur (Sennrich, Haddow and Birch, 2016)."""
    library = _library()
    made = _tokenizer(library, library.models.BPE())
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, min_frequency=least, show_progress=False, special_tokens=list(SPECIAL),
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator((_cased(text, lower) for text in texts), trainer)
    model = json.loads(made.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return Vocabulary("bpe", tuple(tokens), lower, tuple(
        (pair[0], pair[1]) for pair in model["merges"]))
