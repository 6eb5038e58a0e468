"""What the makers of data hold out, and how they write lines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lamina.runtime.data.transforms import shuffled_order

SHARE = 0.05
SEED = 2026


def held_out(groups: Iterable[str], share: float = SHARE) -> set[str]:
    """A share of the different groups (words, chapters), the same ones every time."""
    names = sorted(set(groups))
    order = shuffled_order(len(names), SEED, 0)
    return {names[i] for i in order[: round(len(names) * share)]}


def write_parts(target: Path, names: tuple[str, str], lines: Iterable[tuple[str, str]],
                held: set[str]) -> dict[str, int]:
    """Write (group, text) lines to the files of training and of what is held out; their counts."""
    target.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[str]] = {name: [] for name in names}
    for group, text in lines:
        parts[names[group in held]].append(text)
    for name, texts in parts.items():
        (target / name).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8",
                                   newline="\n")
    return {name: len(texts) for name, texts in parts.items()}
