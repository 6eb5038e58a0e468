"""The formatter: idempotent, keeps the tree and the comments, fits the width."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.compiler.errors import CompileError, Source
from lamina.compiler.syntax import ast
from lamina.compiler.syntax.fmt import WIDTH, format_source
from lamina.compiler.syntax.parse import parse

EXAMPLES = sorted((Path(__file__).parent / "examples").glob("*.lam"))
TEXTS = [path.read_text(encoding="utf-8") for path in EXAMPLES]


def fmt(text: str) -> str:
    return format_source(Source("test.lam", text))


def check(text: str) -> str:
    done = fmt(text)
    before, after = parse(Source("a", text)), parse(Source("b", done))
    assert ast.same(before, after)
    comments = [comment.text.rstrip() for comment in before.comments]
    assert comments == [comment.text for comment in after.comments]
    assert fmt(done) == done
    return done


@pytest.mark.parametrize("text", TEXTS, ids=[path.stem for path in EXAMPLES])
def test_examples(text):
    for line in check(text).splitlines():
        assert len(line.split("  #")[0]) <= WIDTH


CASES = {
    "spacing": (
        "model  M(a:int=1,b : list[int]= [1,2]){\ny=f( x ,k = -1 )[ : ,new,1 : 2]**2-3\n}",
        "model M(a: int = 1, b: list[int] = [1, 2]) {\n"
        "  y = f(x, k=-1)[:, new, 1:2] ** 2 - 3\n}\n",
    ),
    "alignment": (
        "recipe r for M{\nloss=a\nmetric acc=b\nbatch=1\n\nseed=2\n}",
        "recipe r for M {\n  loss       = a\n  metric acc = b\n  batch      = 1\n\n  seed = 2\n}\n",
    ),
    "comments": (
        "#a\nmodel M {   # b\n\n\n  y = x# c\n   # d\n -> f #  e\n# g\n}\n#h",
        "#a\nmodel M {  # b\n  y = x  # c\n    # d\n    -> f  #  e\n  # g\n}\n\n#h\n",
    ),
    "arrows": (
        "model M { y = x" + "".join(f"-> label{i}: layer(64, kernel=3)" for i in range(4)) + "}",
        "model M {\n  y = x\n"
        + "".join(f"    -> label{i}: layer(64, kernel=3)\n" for i in range(4))
        + "}\n",
    ),
    "brackets": (
        "model M {\n  y = f(" + ", ".join(f"argument{i}={i}" for i in range(9)) + ")\n}",
        "model M {\n  y = f(\n"
        + ",\n".join(f"    argument{i}={i}" for i in range(9))
        + "\n  )\n}\n",
    ),
    "bindings": (
        "model M {\n y = x -> scan C(1) over T with(a=b,c.d=e,\n) until (q) limit 3\n}",
        "model M {\n  y = x -> scan C(1) over T with (a = b, c.d = e,\n  ) until (q) limit 3\n}\n",
    ),
    "semicolons": (
        "model M {a=1;b=2;\nc=3;}",
        "model M { a = 1; b = 2\n  c = 3 }\n",
    ),
    "words before brackets": (
        "model M {\n  y = x -> for(i,j)in(a)  {(_,m)->f}->as[B]-> prev.h(1)\n}",
        "model M {\n  y = x -> for (i, j) in (a) { (_, m) -> f } -> as [B] -> prev.h(1)\n}\n",
    ),
    "empty": ("", ""),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_cases(text, expected):
    assert check(text) == expected


def test_refuses_what_does_not_parse():
    with pytest.raises(CompileError):
        fmt("model M {")


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(TEXTS))
def test_layout_does_not_matter_to_the_tree(random, text):
    """Comments, breaks and blanks thrown in at places where the language allows them."""
    pieces = []
    for line in text.splitlines():
        if random.random() < 0.2:
            line = line.replace("(", random.choice(["( ", "(\n", "(  # note\n"]))
            line = line.replace(" -> ", random.choice(["->", "\n# why\n  -> ", "  ->  "]))
        pieces.append(line + random.choice(["", "", "  ", "\n", "\n\n\n", "\n# more"]))
    try:
        parse(Source("a", "\n".join(pieces)))
    except CompileError:
        return  # a `(` or an arrow inside a comment or string was hit
    check("\n".join(pieces))
