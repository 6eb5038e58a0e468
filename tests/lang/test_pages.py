"""The pages beside this file: their blocks build, or give exactly the errors that they show.

A `lam` block is compiled. `# error[E301]: text` at the end of a line is an error of that line, with
its whole message; a block without such comments builds. A `text` block right after it is the whole
rendering. After a wanted change: `python -m lamina.tests.lang.test_pages` writes the comments and
renderings anew; read the difference.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lamina.compiler.errors import Diagnostic, render
from lamina.tests.lang.front import MAIN, diagnostics, files

HERE = Path(__file__).parent
PAGES = sorted(HERE.glob("*.md"))
BLOCK = re.compile(r"```lam\n(.*?)```(\n\n```text\n(.*?)```)?", re.DOTALL)
COMMENT = re.compile(r" *# error\[E\d+\]: .*$", re.MULTILINE)


def blocks(page: Path) -> list[re.Match]:
    return list(BLOCK.finditer(page.read_text(encoding="utf-8")))


def cases() -> list:
    return [pytest.param(match, id=f"{page.stem}-{index}")
            for page in PAGES for index, match in enumerate(blocks(page))]


def annotated(plain: str, found: tuple[Diagnostic, ...]) -> str:
    """The block with each error written on its line."""
    lines = plain.split("\n")
    for one in found:
        lines[_line(plain, one) - 1] += f"  # error[{one.code}]: {one.message}"
    return "\n".join(lines)


def _line(plain: str, one: Diagnostic) -> int:
    """The line of an error, counted from the start of the block."""
    name = one.span.source.name
    assert name in files(plain), f"{name} is not part of the block: {one.message}"
    if name == MAIN and not re.search(r"^# file:", plain, re.MULTILINE):
        return one.span.line
    header = plain[: plain.index(f"# file: {name}\n")].count("\n") + 1
    return header + one.span.line


def rewritten(match: re.Match) -> str:
    """A block as it should be: with the errors and the rendering of today."""
    plain = COMMENT.sub("", match[1])
    found = diagnostics(plain)
    text = f"```lam\n{annotated(plain, found)}```"
    if match[2]:
        text += "\n\n```text\n" + "\n\n".join(map(render, found)) + "\n```"
    return text


@pytest.mark.parametrize("match", cases())
def test_block(match):
    """The words of an error are what a user has to go on; none changes unseen."""
    assert match[0] == rewritten(match)


def test_enough_mistakes():
    """The pages stay broad: many distinct mistakes, many of the codes, some rendered in full."""
    found = [match for page in PAGES for match in blocks(page)]
    messages = {text for match in found for text in COMMENT.findall(match[1])}
    codes = {code for match in found for code in re.findall(r"# error\[(E\d+)\]", match[1])}
    assert len(messages) >= 60
    assert len([code for code in codes if code[1] in "34"]) >= 35
    assert sum(bool(match[2]) for match in found) >= 15


def update() -> None:
    """Write the present errors into the pages."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(BLOCK.sub(rewritten, text), encoding="utf-8")


if __name__ == "__main__":
    update()
