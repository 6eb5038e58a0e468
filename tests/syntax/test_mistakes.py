"""Seeded mistakes: the whole text of their diagnostics is pinned in mistakes.md."""

import re
from pathlib import Path

import pytest

from lamina.compiler.errors import CompileError, Source
from lamina.compiler.syntax.parse import parse

PAGE = Path(__file__).parent / "mistakes.md"
CASE = re.compile(r"## ([^\n]+)\n\n```lam\n(.*?)\n```\n\n```text\n(.*?)```", re.DOTALL)


def cases() -> list[tuple[str, str, str]]:
    """Name, text and expected rendering of each case."""
    return CASE.findall(PAGE.read_text(encoding="utf-8"))


def rendering(text: str) -> str:
    try:
        parse(Source("test.lam", text.replace("<NUL>", "\0") + "\n"))
    except CompileError as error:
        return f"{error}\n"
    return "no error\n"


@pytest.mark.parametrize(("name", "text", "expected"), cases(), ids=[case[0] for case in cases()])
def test_mistake(name, text, expected):
    assert rendering(text) == expected


def test_enough_cases_and_codes():
    found = {code for *_, text in cases() for code in re.findall(r"error\[(E\d+)\]", text)}
    assert len(cases()) >= 40
    assert len(found) >= 18


def update() -> None:
    """Write the present texts into the page."""
    page = PAGE.read_text(encoding="utf-8")
    for name, text, _ in cases():
        block = f"## {name}\n\n```lam\n{text}\n```\n\n```text\n{rendering(text)}```"
        page = CASE.sub(lambda m, n=name, b=block: b if m[1] == n else m[0], page)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    update()
