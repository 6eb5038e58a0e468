"""Diagnostics: rendering, collecting, and the error pages."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.compiler.errors import (
    CODES,
    CompileError,
    Diagnostic,
    Label,
    Note,
    Sink,
    Source,
    Span,
    render,
    suggest,
)
from lamina.compiler.syntax.parse import parse
from lamina.tests.lang.front import compile_text

PAGES = Path(__file__).parents[1] / "grammar" / "errors.md"
REGISTRY = Path(__file__).parents[1] / "compiler" / "errors.py"

# How the blocks of the error pages are checked: the first prefix that fits a code names the
# function that must raise it: the parser, else the whole front end.
CHECKERS: dict[str, Callable[[Source], object]] = {
    "E1": parse,
    "": lambda source: compile_text(source.text),
}
# Codes that no model text can give; their sections say how they arise.
WITHOUT_BLOCKS = ("E118", "E219", "E230", "E416", "E505", "E6", "E7", "E900", "E901")


def sections() -> dict[str, str]:
    """Text of each section of the error pages, by `E101 title`."""
    _, *parts = re.split(r"^## ", PAGES.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {part.split("\n", 1)[0]: part for part in parts}


def blocks(kind: str) -> list[tuple[str, str]]:
    """Code of the section and text of each block of that kind."""
    pattern = re.compile(rf"```{kind}\n(.*?)```", re.DOTALL)
    found = ((title[:4], pattern.findall(page)) for title, page in sections().items())
    return [(code, text) for code, texts in found for text in texts]


def checker(code: str) -> Callable[[Source], object]:
    return next(check for prefix, check in CHECKERS.items() if code.startswith(prefix))


def test_every_code_has_its_section_and_every_section_its_code():
    assert set(sections()) == {f"{code} {title}" for code, title in CODES.items()}


def test_sections_are_in_order():
    assert list(sections()) == sorted(sections())


def test_every_code_has_a_wrong_and_a_right_block():
    """A page without an example does not help; the exceptions are listed above."""
    bare = {code for code in CODES if not code.startswith(WITHOUT_BLOCKS)}
    assert {code for code, _ in blocks("lam-bad")} == bare
    assert {code for code, _ in blocks("lam")} == bare


def test_registered_codes_are_those_in_the_source():
    """A code that is raised has a title and a page, and no page is left of a code that is gone."""
    used = set()
    for folder in ("compiler", "runtime"):
        for path in (PAGES.parents[1] / folder).rglob("*.py"):
            if path != REGISTRY:
                used |= set(re.findall(r'"(E[1-9][0-9]{2})"', path.read_text(encoding="utf-8")))
    assert used == set(CODES)


@pytest.mark.parametrize(("code", "text"), blocks("lam-bad"))
def test_bad_block_gives_its_code(code, text):
    check = checker(code)
    with pytest.raises(CompileError) as caught:
        check(Source("page.lam", text))
    assert [diagnostic.code for diagnostic in caught.value.diagnostics] == [code]


@pytest.mark.parametrize(("code", "text"), blocks("lam"))
def test_good_block_compiles(code, text):
    check = checker(code)
    check(Source("page.lam", text))


def span(source: Source, word: str, last: bool = False) -> Span:
    start = source.text.rindex(word) if last else source.text.index(word)
    return Span(source, start, start + len(word))


RESNET = Source("zoo/resnet.lam", "#\n" * 19 + "  output y = relu(main + skip)\n")


def test_render_in_full():
    main, skip = span(RESNET, "main"), span(RESNET, "skip")
    diagnostic = Diagnostic(
        "E312",
        "cannot add tensors of different shapes",
        main.to(skip),
        (Label(main, "main: [B, 256, H, W]"), Label(skip, "skip: [B, 64, H, W]")),
        (Note("dim 1 of `main` is `out`", Span(RESNET, 2, 3)), Note("a fact")),
        "add `or C != out`",
        "ResNet50.stages.0.first",
    )
    assert render(diagnostic) == (
        "error[E312]: cannot add tensors of different shapes\n"
        "  --> zoo/resnet.lam:20:19                        in ResNet50.stages.0.first\n"
        "   |\n"
        "20 |   output y = relu(main + skip)\n"
        "   |                   ^^^^   ^^^^  main: [B, 256, H, W]   skip: [B, 64, H, W]\n"
        "   |\n"
        "note: dim 1 of `main` is `out`  (line 2)\n"
        "note: a fact\n"
        "help: add `or C != out`"
    )
    assert re.sub(r"\x1b\[[0-9;]*m", "", render(diagnostic, color=True)) == render(diagnostic)


def test_labels_on_other_lines_and_in_other_files():
    here = Source("a.lam", "one\ntwo\nthree\nfour\n")
    there = Source("b.lam", "const X = 1\n")
    labels = (Label(span(here, "one"), "first"), Label(span(there, "X"), "defined here"))
    diagnostic = Diagnostic("E100", "text", span(here, "four"), labels)
    assert render(diagnostic) == (
        "error[E100]: text\n"
        " --> a.lam:4:1\n"
        "  |\n"
        "1 | one\n"
        "  | ^^^  first\n"
        "...\n"
        "4 | four\n"
        "  | ^^^^\n"
        " ::: b.lam:1:7\n"
        "  |\n"
        "1 | const X = 1\n"
        "  |       ^  defined here"
    )


@pytest.mark.parametrize(
    ("text", "word", "excerpt", "marks"),
    [
        ("\tx = y", "y", "    x = y", "        ^"),
        ("a = \u4f60\u597d + b", "b", "a = \u4f60\u597d + b", "           ^"),
        ("a\u202e\x00 b", "b", "a\\u{202e}\\u{0} b", "               ^"),
        ("ab\n", "\n", "ab", "  ^"),
    ],
    ids=["tab", "wide", "control", "end of line"],
)
def test_odd_characters(text, word, excerpt, marks):
    source = Source("t", text)
    lines = render(Diagnostic("E100", "m", span(source, word))).split("\n")
    assert lines[3] == f"1 | {excerpt}".rstrip()
    assert lines[4] == f"  | {marks}"


@pytest.mark.parametrize("at", [0, 500_000, 999_990])
def test_a_very_long_line_is_cut_around_the_span(at):
    source = Source("t", "x" * 1_000_000)
    text = render(Diagnostic("E100", "m", Span(source, at, at + 10)))
    assert max(len(line) for line in text.split("\n")) < 120
    assert text.count("^") == 10


def test_a_message_stays_on_one_line_and_short():
    source = Source("t\n\x1b[31m", "x")
    text = render(Diagnostic("E100", "a" * 10_000 + "\n\x1b", Span(source, 0, 1), path="\n"))
    assert len(text) < 1000
    assert "\x1b" not in text
    assert text.count("\n") == 4


def test_a_span_over_several_lines():
    source = Source("t", "ab\ncd\nef")
    span_ = Span(source, 1, 7)
    assert (span_.line, span_.column, span_.text) == (1, 2, "b\ncd\ne")
    assert render(Diagnostic("E100", "m", span_)).endswith("1 | ab\n  |  ^")


def test_source_positions():
    source = Source("t", "ab\n\ncd")
    places = [source.position(offset) for offset in range(len(source.text) + 1)]
    assert places == [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (3, 2), (3, 3)]


def test_sink_sorts_drops_duplicates_and_caps():
    source = Source("t", "x" * 50)
    sink = Sink(limit=10)
    sink.raise_if_any()
    for start in [*range(30, -1, -1), 5, 5]:
        sink.error("E100", "m", Span(source, start, start + 1))
    with pytest.raises(CompileError) as caught:
        sink.raise_if_any()
    found = caught.value.diagnostics
    assert [diagnostic.span.start for diagnostic in found] == list(range(10))
    assert found[-1].notes == (Note("21 more errors are not shown"),)
    assert str(caught.value).count("error[E100]") == 10


def test_suggest():
    assert suggest("ouput", ["input", "output"]) == "output"
    assert suggest("Relu", ["relu", "gelu"]) == "relu"
    assert suggest("xyz", ["input", "output"]) is None
    assert suggest("x" * 10_000, ["input"]) is None


def test_a_file_without_text_has_no_excerpt():
    # A missing file has no line to show: the place is its name.
    shown = render(Diagnostic("E118", "cannot read the file", Span(Source("m.lam", ""), 0, 0)))
    assert shown == "error[E118]: cannot read the file\n --> m.lam"
