"""The tour teaches by its blocks, so each of them must build."""

import re
from pathlib import Path

import pytest

from lamina.compiler.ops.optim import OPTIMIZERS
from lamina.runtime.data.sources import SOURCES
from lamina.runtime.data.transforms import TRANSFORMS
from lamina.runtime.schedule import SCHEDULES
from lamina.tests.lang.front import compile_text

TOUR = Path(__file__).parents[2] / "grammar" / "tour.md"
BLOCKS = re.findall(r"```lam\n(.*?)```", TOUR.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("text", BLOCKS, ids=range(len(BLOCKS)))
def test_block_builds(text):
    """A reader copies these."""
    assert compile_text(text)


def test_library_is_listed():
    """The tour names every layer of the library."""
    names = set()
    for path in (TOUR.parents[1] / "zoo" / "std").glob("*.lam"):
        names |= set(re.findall(r"^block (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert names <= set(re.findall(r"`(\w+)`", TOUR.read_text(encoding="utf-8")))


def test_what_recipes_may_name_is_listed():
    """Sources, transforms, optimizers and schedules are nowhere else for a user to find."""
    text = re.sub(r"```.*?```", "", TOUR.read_text(encoding="utf-8"), flags=re.DOTALL)
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
    for names in (SOURCES, TRANSFORMS, OPTIMIZERS, SCHEDULES):
        assert set(names) <= words, set(names) - words
