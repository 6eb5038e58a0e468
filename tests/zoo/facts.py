"""What zoo/expected.toml says of every model, for the tests that measure it."""

import tomllib
from typing import Any

from lamina.compiler.frontend.library import zoo_folder

EXPECTED = tomllib.loads((zoo_folder() / "expected.toml").read_text())


def facts_of_models() -> list[tuple[str, str, dict[str, Any]]]:
    """File, model and figures."""
    return [(file, model, facts) for file, models in EXPECTED.items()
            for model, facts in models.items()]


def sizes_of(facts: dict[str, Any], batch: int = 1) -> dict[str, tuple[int, ...]]:
    """The shape of each input that the figures are for, with another batch size if asked."""
    pairs = (pair.partition("=") for pair in facts["input"].split())
    return {name: (batch, *map(int, size.split("x")[1:])) for name, _, size in pairs}


def texts_of(facts: dict[str, Any], batch: int = 1) -> dict[str, str]:
    """The same as the command line takes them: image=1x3x224x224."""
    return {name: "x".join(map(str, size)) for name, size in sizes_of(facts, batch).items()}


def ending_of(facts: dict[str, Any]) -> set[tuple[int, int]]:
    """Field and stride along each axis before all is seen; nothing where every layer sees all."""
    if "field" not in facts:
        return set()
    both = facts["field"], facts["stride"]
    return set(zip(*([one] if isinstance(one, int) else one for one in both), strict=True))
