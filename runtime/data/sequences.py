"""What a pipeline does with whole texts: marks, leaving long ones out, batches of like length."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.source import Source
from lamina.runtime.data.split import Subset, without
from lamina.runtime.data.stage import bad, text, whole
from lamina.runtime.data.transforms import shuffled_order
from lamina.runtime.data.vocabulary import CLOSED, PICTURE
from lamina.runtime.errors import did_you_mean, show
from lamina.runtime.padding import rounded

MARKS = ("bos", "eos")
STEP = 8  # padded lengths are multiples of it, so that few different shapes occur
MOST = 1 << 30  # padded positions of a batch
_ORDERS = 1 << 30  # keeps draws for the order of batches apart from those for examples


def check_mark(field: str) -> str:
    """The field of `eos("tgt")` or `bos("tgt")`. Raises DataError E608."""
    return text("field", field)


def check_longest(length: int) -> int:
    """The argument of `longest(100)`. Raises DataError E608."""
    return whole("length", length, 1, MOST)


def check_bucket(tokens: int) -> int:
    """The argument of `bucket(tokens=8000)`. Raises DataError E608."""
    return whole("tokens", tokens, STEP, MOST)


def check_marked(name: str, field: str, codings: Mapping[str, object]) -> None:
    """Raise DataError E608 unless the field is a text that can have marks.

    `codings` are those of the pipeline's fields of texts.
    """
    if field not in codings:
        error = bad("field", f"a field of texts that `{name}` marks", field)
        error.help = did_you_mean(field, codings) if codings else "texts come from tsv(...)"
        raise error
    if codings[field] in (*CLOSED, PICTURE):
        raise DataError("E608", f"`{name}` cannot mark `{show(field)}`: the coding "
                        f'"{codings[field]}" has no such token')


def longest_of(source: Source) -> np.ndarray | None:
    """The length of the longest text of each example, int64 [N]; None where there are no texts."""
    found = [lengths for field in source.fields if (lengths := source.lengths(field)) is not None]
    return np.max(found, axis=0) if found else None


def leave_out(source: Source, most: int) -> tuple[Subset, str]:
    """The examples of which no text is longer than `most`, and what is left out in words.

    Raises DataError E605 where none is left, E609 where the source has no texts.
    """
    lengths = _lengths("longest", source)
    kept = lengths <= most
    lost = int((~kept).sum())
    if lost == len(lengths):
        raise DataError("E605", f"every example is longer than {most:,} tokens: "
                        f"the shortest has {lengths.min():,}", "write a larger number")
    told = f"left out: {lost:,} of {len(lengths):,} examples, longer than {most:,} tokens"
    return without(source, kept), told if lost else ""


def require_room(source: Source, tokens: int) -> None:
    """Raise DataError E609 unless every example fits into a batch of so many positions."""
    lengths = _lengths("bucket", source)
    most = rounded(lengths, STEP)
    if most.max() > tokens:
        index = int(most.argmax())
        raise DataError("E609", f"{source.name(index)} has {lengths[index]:,} tokens, more than a "
                        f"batch of bucket({tokens}) holds",
                        f"leave such examples out before it: longest({tokens // STEP * STEP})")


def cut_batches(source: Source, tokens: int, order: np.ndarray, seed: int, epoch: int,
                shuffled: bool) -> list[np.ndarray]:
    """Every example once, in batches of like length that take at most `tokens` positions.

    A batch takes its examples times the padded length of its longest text. `order` int64 [N]
    chooses among examples of like length; the number and sizes of batches do not depend on it.
    """
    most = rounded(_lengths("bucket", source), STEP)
    keys = [rounded(lengths, STEP)[order] for field in source.fields
            if (lengths := source.lengths(field)) is not None]
    order = order[np.lexsort([-key for key in (*keys, most[order])])]
    batches, start = [], 0
    while start < len(order):
        end = start + max(1, tokens // int(most[order[start]]))
        batches.append(order[start:end])
        start = end
    if not shuffled:
        return batches
    return [batches[i] for i in shuffled_order(len(batches), seed ^ _ORDERS, epoch)]


def _lengths(name: str, source: Source) -> np.ndarray:
    lengths = longest_of(source)
    if lengths is None:
        raise DataError("E609", f"`{name}` goes by the lengths of texts; this data has none",
                        "texts come from tsv(...) or conll(...)")
    return lengths
