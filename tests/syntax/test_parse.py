"""The parser: examples, shapes of the tree, precedence, limits, stored tables, fuzzing."""

import json
import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.compiler.errors import CODES, CompileError, Sink, Source
from lamina.compiler.syntax import ast
from lamina.compiler.syntax.parse import TABLES, dump_tables, parse, read_source
from lamina.compiler.syntax.scan import scan

EXAMPLES = sorted((Path(__file__).parent / "examples").glob("*.lam"))
TEXTS = [path.read_text(encoding="utf-8") for path in EXAMPLES]
WORDS = sorted({word for text in TEXTS for word in re.findall(r"\w+|\s+|[^\w\s]+", text)})


def tree(text: str) -> ast.File:
    return parse(Source("test.lam", text))


def value(text: str) -> ast.Expr:
    """The tree of one expression."""
    (model,) = tree(f"model M {{\n  y = {text}\n}}\n").declarations
    assert isinstance(model, ast.Model)
    (assign,) = model.body
    assert isinstance(assign, ast.Assign)
    return assign.value


def codes(text: str) -> list[str]:
    with pytest.raises(CompileError) as caught:
        tree(text)
    return [diagnostic.code for diagnostic in caught.value.diagnostics]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_parses(path):
    file = parse(read_source(path))
    assert len(file.declarations) >= 2
    for declaration in file.declarations:
        assert 0 <= declaration.span.start < declaration.span.end <= len(file.source.text)


def test_lenet_in_detail():
    file = tree(TEXTS[[path.stem for path in EXAMPLES].index("lenet")])
    model, recipe = file.declarations
    assert isinstance(model, ast.Model)
    assert isinstance(recipe, ast.Recipe)
    assert [type(statement).__name__ for statement in model.body] == [
        "Input", "Assign", "Assign", "Output",
    ]  # fmt: skip
    features = model.body[1]
    assert isinstance(features, ast.Assign)
    assert isinstance(features.value, ast.Flow)
    labels = [stage.label.id for stage in features.value.stages if stage.label]
    assert labels == ["c1", "s2", "c3", "s4"]
    assert [comment.text for comment in file.comments][1] == "# [B, 6, 28, 28]"
    assert recipe.model.func.id == "LeNet5"
    assert [type(statement).__name__ for statement in recipe.body] == [
        "Data", "Data", "Target", "Setting", "Metric", *["Setting"] * 6,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("a + b * c", "a + (b * c)"),
        ("a @ b + c", "(a @ b) + c"),
        ("a - b - c", "(a - b) - c"),
        ("a ** b ** c", "a ** (b ** c)"),
        ("-a ** b", "-(a ** b)"),
        ("a ** -b", "a ** (-b)"),
        ("not a == b", "not (a == b)"),
        ("a or b and c", "a or (b and c)"),
        ("a + b -> f", "(a + b) -> f"),
        ("a -> f if c else b -> g", "(a -> f) if c else (b -> g)"),
        ("a if c else b if d else e", "a if c else (b if d else e)"),
        ("a.b(c)[d].e", "((a.b)(c))[d].e"),
        ("a\n    -> f  # why\n    # more\n    -> g", "a -> f -> g"),
        ("(a +\n b)", "a + b"),
        ("a +\n b", "a + b"),
        ("f(a,\n  k=b,\n)", "f(a, k=b)"),
        ("1 if a not in [2] else 3", "1 if (a not in [2]) else 3"),
    ],
)
def test_precedence_and_line_breaks(text, meaning):
    assert ast.same(value(text), value(meaning))


@pytest.mark.parametrize(("left", "right"), [("a", "b"), ("1", "1.0"), ("f()", "f"), ("(a,)", "a")])
def test_same_tells_apart(left, right):
    assert not ast.same(value(left), value(right))


def test_stages():
    scanned = "c: scan LSTM(4) over T reverse with (a.0.h = z) until q limit 9"
    flow = value(f"x -> as [B, S~, ...] -> {scanned}")
    assert isinstance(flow, ast.Flow)
    shape, stage = flow.stages
    assert isinstance(shape.body, ast.As)
    assert [dim.ragged for dim in shape.body.dims] == [False, True, False]
    scan_ = stage.body
    assert isinstance(scan_, ast.Scan)
    assert (stage.label.id, scan_.cell.func.id, scan_.dim.id, scan_.reverse) == (
        "c", "LSTM", "T", True,
    )  # fmt: skip
    assert scan_.bindings[0].path.parts == ("a", "0", "h")
    assert (scan_.until.id, scan_.limit.value) == ("q", 9)


@pytest.mark.parametrize(
    ("body", "has_source", "stages"),
    [
        ("relu", False, 1),
        ("Layer(4) -> relu", False, 2),
        ("a: Layer(4)", False, 1),
        ("zoo.Layer(4)", False, 1),
        ("repeat 2 { relu } -> tanh", False, 2),
        ("(_, mem) -> Layer(4)", True, 1),
        ("_ + (_ -> ln)", True, 0),
        ("_ -> ln", True, 1),
        ("_.T -> ln", True, 1),
        ("\n  relu\n  # last\n", False, 1),
    ],
)
def test_body_of_repeat(body, has_source, stages):
    flow = value(f"x -> repeat n - 1 shared {{ {body} }}")
    assert isinstance(flow, ast.Flow)
    repeat = flow.stages[0].body
    assert isinstance(repeat, ast.Repeat)
    assert repeat.shared
    assert (repeat.body.source is not None, len(repeat.body.stages)) == (has_source, stages)


def test_words_of_recipes_and_scans_are_names_elsewhere():
    words = "data target metric weights map skip phase freeze except over reverse with until limit"
    body = "\n".join(f"  {word} = {word}(x.{word}, {word}={word})" for word in words.split())
    assert len(tree(f"model M {{\n{body}\n}}").declarations[0].body) == len(words.split())


def test_semicolons_separate_statements():
    assert ast.same(tree("model M { a = 1; b = 2 }"), tree("model M {\n  a = 1;\n  b = 2\n}"))


def test_strings_and_numbers():
    assert value(r'"a\"b\\c\n"').value == 'a"b\\c\n'
    assert [value(text).value for text in ("1_000", "5e-4", "0.1307")] == [1000, 5e-4, 0.1307]


def test_every_error_of_a_file_is_reported():
    text = "model A {\n  y = x f(3)\n}\nblok B {\n}\nmodel C {\n  y = f(3 4)\n\nmodel D { z = 1 }\n"
    assert codes(text) == ["E106", "E105", "E103"]


def test_spans_are_exact():
    call = value("f(1) + (g(a, b))")
    assert isinstance(call, ast.Binary)
    assert (call.left.span.text, call.right.span.text) == ("f(1)", "(g(a, b))")
    assert call.span.text == "f(1) + (g(a, b))"


MODEL = "model A {\n  y = %s\n}\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (MODEL % ("(" * 100_000), "E900"),
        (MODEL % ("(" * 201 + "x" + ")" * 201), "E900"),
        (MODEL % ("x -> repeat 2 {" * 100_000), "E900"),
        (MODEL % ("not " * 50_000 + "x"), "E900"),
        (MODEL % ("x ** " * 20_000 + "x"), "E900"),
        (MODEL % ("x" + ".a" * 20_000), "E900"),
        (MODEL % ("[" + "1, " * 340_000 + "]"), "E901"),
        ("x" * 9_000_000, "E901"),
        (MODEL % ("é" * 1_000_000), "E901"),
        (MODEL % ("1" * 1_000_000), "E112"),
        (MODEL % "1e999", "E112"),
        (MODEL % ('"' + "\\" * 1_000_000), "E102"),
        ("\0", "E101"),
    ],
    ids=lambda value: value if len(value) < 9 else "",
)
def test_limits_are_polite_and_quick(text, code):
    start = time.perf_counter()
    assert codes(text)[0] == code
    assert time.perf_counter() - start < 5  # it takes well under 1 s on an idle machine


@pytest.mark.parametrize(
    "text",
    [
        MODEL % ("(" * 190 + "x" + ")" * 190),
        MODEL % ("x" * 1_000_000),
        "#" + "# " * 500_000,
        MODEL % ("x" + "\n" * 1_000_000 + "# a # b #\n" * 1000),
        "",
        "\n# only a comment",
    ],
    ids=["deep", "long name", "long comment", "blank lines", "empty", "comment"],
)
def test_large_but_fine(text):
    tree(text)


def test_read_source(tmp_path):
    good = tmp_path / "good.lam"
    good.write_bytes(b"\xef\xbb\xbfconst A = 1\r\nconst B = 2\r\n")
    assert read_source(good).text == "const A = 1\nconst B = 2\n"
    bad = tmp_path / "bad.lam"
    bad.write_bytes(b"const A = 1\nconst \xff = 2\n")
    for path in (bad, tmp_path, tmp_path / "missing.lam", "a\0b"):
        with pytest.raises(CompileError) as caught:
            read_source(path)
        assert [diagnostic.code for diagnostic in caught.value.diagnostics] == ["E118"]
        assert str(caught.value)


def test_stored_tables_are_those_of_the_grammar():
    """If this fails: python -m lamina.compiler.syntax.parse."""
    stored, built = json.loads(TABLES.read_text()), json.loads(dump_tables())
    assert stored["made_from"] == built["made_from"]


def mutate(seed: int) -> str:
    """An example, or a piece of one, with a few random edits."""
    rng = random.Random(seed)
    text = rng.choice(TEXTS)
    if rng.random() < 0.6:
        at = rng.randrange(len(text))
        text = text[at : at + 600]
    for _ in range(rng.randrange(1, 4)):
        at, kind = rng.randrange(len(text) + 1), rng.randrange(4)
        if kind == 0:
            text = text[:at] + text[at + rng.randrange(1, 10) :]
        elif kind == 1:
            text = text[:at] + rng.choice(WORDS) + text[at:]
        elif kind == 2:
            char = chr(rng.choice([rng.randrange(128), rng.randrange(0x3000)]))
            text = text[:at] + char + text[at + 1 :]
        else:
            other = rng.randrange(len(text) + 1)
            text = text[:at] + text[other : other + rng.randrange(30)] + text[at:]
    return text


def check_total(text: str) -> None:
    """Only located diagnostics with known codes may come out."""
    try:
        tree(text)
    except CompileError as error:
        assert str(error)
        for diagnostic in error.diagnostics:
            assert diagnostic.code in CODES
            for span in (diagnostic.span, *(label.span for label in diagnostic.labels)):
                assert 0 <= span.start <= span.end <= len(text)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_examples(seed):
    check_total(mutate(seed))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.one_of(st.sampled_from("(){}[]=->:,.~\n \"#_a1"), st.characters())))
def test_any_text(text):
    check_total(text)
    lexemes = scan(Source("t", text), Sink())
    gaps = text
    for lexeme in reversed(lexemes):
        gaps = gaps[: lexeme.start] + gaps[lexeme.end :]
    assert not gaps.strip(" \t\r")
