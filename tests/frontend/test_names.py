"""The names of definitions that no build reaches: what `check` tells, and what it leaves."""

import re
from pathlib import Path

import pytest

from lamina.commands.checking import check_file
from lamina.compiler.frontend.library import load_path, load_text, standard_module
from lamina.compiler.frontend.names import check_names
from lamina.tests.lang.front import diagnostics, files

ROOT = Path(__file__).parents[2]
UNUSED = """block Unused(width: int) {{
  input x: [B, C]
  {}
}}
"""


def names(source):
    """(code, message, help, text of the place) of each diagnostic."""
    found = check_names(load_text(source, "test.lam"))
    return [(d.code, d.message, d.help, d.span.text) for d in found]


@pytest.mark.parametrize(("line", "code", "message", "help", "place"), [
    ("output y = x -> gibberish(width)", "E301", "`gibberish` is not defined here", None,
     "gibberish"),
    ("output y = x -> liner(width)", "E301", "`liner` is not defined here",
     "did you mean `linear`?", "liner"),
    ("output y = x -> linear(width, foo=3)", "E409", "`linear` has no setting `foo`",
     "its settings: out, bias", "foo"),
    ("output y = softmax(x, axs=1)", "E202", "`softmax` has no setting `axs`",
     "did you mean `axis`?", "axs"),
    ("output y = x + z", "E301", "`z` is not defined here", None, "z"),
    ("output y = x -> linear(widht)", "E301", "`widht` is not defined here",
     "did you mean `width`?", "widht"),
    ("output y: [B, wdth] = x", "E301", "`wdth` is not defined here",
     "a symbol starts with a capital letter: `Wdth`", "wdth"),
    ("param w: [C, D] = glorot()\n  output y = x @ w", "E301", "`D` is not defined here",
     "a symbol gets its meaning from a shape, as in `input x: [B, D]`", "D"),
    ("param w: [C] = gloro()\n  output y = x * w", "E320", "no initialiser is named `gloro`",
     "did you mean `glorot`?", "gloro"),
    ("y = z\n  z = x\n  output y", "E301", "`z` is not defined here",
     "`z` is bound below, on line 4: move this line down", "z"),
    ("output y = op.ad(x, x)", "E301", "no operator is named `ad`", "did you mean `pad`?",
     "op.ad"),
    ("output y = x -> repeat n { relu }", "E301", "`n` is not defined here", None, "n"),
])
def test_unused_definitions_are_checked(line, code, message, help, place):
    # A block that nothing uses yet is still being written: its mistakes count.
    assert names(UNUSED.format(line)) == [(code, message, help, place)]


@pytest.mark.parametrize("line", [
    "y = x -> linear(n) if width > n else x\n  output y",
    "output y = x -> for (i, n) in enumerate([1, 2]) { linear(n * i) }",
    "shared f = linear(late)\n  late = 3\n  output y = x -> f",
    "f = linear(late)\n  late = 3\n  output y = x -> f",
    "h: [B, D] = x -> linear(width)\n  param w: [D] = 0\n  output y = h * w",
    "output y = x -> r: repeat 2 { (_, x) -> concat(axis=-1) -> linear(C) }",
    "a, b = split(x, 2, axis=C)\n  output y = a + b if training else a",
    "param w: [C] = uniform(-1, 1) if width > 3 else none\n  output y = x",
])
def test_what_may_be_right_is_left(line):
    # Nothing is told that a build would not tell too.
    assert names("const n = 3\n" + UNUSED.format(line)) == []


def test_the_branch_that_is_not_chosen_counts_in_unused_definitions_alone(tmp_path):
    # A built model leaves the other branch out, as its page says.
    path = tmp_path / "m.lam"
    body = "{ input x: f32[B, 8]; output y = (x -> liner(8)) if wide else (x -> linear(4)) }\n"
    path.write_text(f"model M(wide: bool = false) {body}")
    assert check_file(str(path)) == []
    path.write_text(f"block Unused(wide: bool = false) {body}")
    assert [d.span.text for d in check_file(str(path))] == ["liner"]


def test_check_tells_names_of_models_that_need_settings(tmp_path):
    # No default: the model is not built, its names are read all the same.
    path = tmp_path / "m.lam"
    path.write_text("model M(classes: int) {\n  input x: f32[B, 8]\n"
                    "  h = x -> scan Cel(3) over T\n  output y = h -> liner(classes)\n}\n")
    found = [(d.code, d.span.text, d.path) for d in check_file(str(path))]
    assert found == [("E301", "Cel", "M"), ("E301", "T", "M"), ("E301", "liner", "M")]


@pytest.mark.parametrize("path", sorted((ROOT / "zoo").rglob("*.lam")), ids=lambda p: p.stem)
def test_the_zoo_has_no_false_errors(path):
    # The pass knows no shapes, so it must stay silent wherever a build succeeds.
    module = standard_module(path) if path.parent.name == "std" else load_path(path)
    assert check_names(module) == ()


@pytest.mark.parametrize("page", [*sorted((ROOT / "tests" / "lang").glob("*.md")),
                                  ROOT / "grammar" / "tour.md"], ids=lambda p: p.stem)
def test_the_pages_have_no_false_errors(page):
    # Every error of the pass is at a place where the build has one.
    for block in re.findall(r"```lam\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        if len(files(block)) > 1 or "# error[E1" in block:
            continue
        known = {(d.span.start, d.span.end) for d in diagnostics(block)}
        module = load_text(next(iter(files(block).values())), "model.lam")
        found = check_names(module, module.file.declarations)
        assert [d for d in found
                if (d.span.start, d.span.end) not in known] == []
