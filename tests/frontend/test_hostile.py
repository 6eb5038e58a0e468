"""Odd names and broken texts: an error with a place, or a graph; nothing else, and quickly."""

import builtins
import keyword
import random
import time
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamina.compiler.errors import CompileError, Sink, Source
from lamina.compiler.frontend.build import build
from lamina.compiler.frontend.library import load_text, zoo_folder
from lamina.compiler.ir.text import format_graph
from lamina.compiler.syntax.parse import parse
from lamina.compiler.syntax.scan import scan
from lamina.tests.frontend.building import made, model, paths

RESERVED = {"model", "block", "cell", "input", "param", "buffer", "state", "memory", "const",
            "from", "import", "recipe", "output", "shared", "tie", "assert", "as", "repeat", "for",
            "scan", "if", "else", "and", "or", "not", "in", "new", "prev", "true", "false",
            "_"}  # fmt: skip
ODD = sorted({*keyword.kwlist, *keyword.softkwlist, *dir(builtins), "__import__", "__class__", "v0",
              "self", "exec", "_x", "__", "relu_", "T", "data", "target", "recipes", "phase",
              "over", "a" * 10_000, "A" * 300} - RESERVED)  # fmt: skip
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in (
    *sorted((Path(__file__).parents[1] / "syntax" / "examples").glob("*.lam")),
    zoo_folder() / "lenet5.lam")}  # the larger models of the zoo take seconds each
SECONDS = 2  # of processor time for one model; what is above hangs in practice


def plain_graph(name: str) -> str:
    """The graph of a model whose every name is `name`, with the name taken out again."""
    text = (f"block {name}_b({name}_n: int = 4) {{\n input {name}_x: [B, D]\n"
            f" output y = {name}_x -> {name}_l: linear({name}_n)\n}}\n")  # fmt: skip
    body = f"  {name}_h = x -> {name}_s: {name}_b\n  output y = {name}_h -> relu"
    return format_graph(made(model(body, text)).graph).replace(f"{name}_", "NAME_")


@pytest.mark.parametrize("name", ODD, ids=lambda name: name[:20])
def test_odd_names_change_nothing_but_names(name):
    """Names reach paths and reports only; the graph is otherwise the same text."""
    assert plain_graph(name) == plain_graph("plain")


@pytest.mark.parametrize("name", ["class", "lambda", "None", "__import__", "B1", "a" * 10_000])
def test_odd_names_everywhere(name):
    """As a bare name: value, label, setting, block, symbol."""
    text = model(f"  {name} = x -> {name}: linear(4)\n  output o = {name} -> relu")
    assert paths(text) == [f"{name}.weight", f"{name}.bias"]
    block = f"block {name}({name}: int = 3) {{\n input x: [B, D]\n" \
            f" output y = x -> linear({name})\n}}"
    assert paths(model(f"output y = x -> {name}", block)) == [
        f"{name}.linear.weight", f"{name}.linear.bias"]  # fmt: skip


def test_nothing_is_executed():
    """The functions of the host language are not there."""
    for name in ("__import__", "eval", "open", "exec", "getattr"):
        with pytest.raises(CompileError):
            made(model(f'output y = x -> linear({name}("os"))'))


def outcome(text: str) -> str:
    """Parse and build everything; checks what every answer must satisfy."""
    found: list = []
    module = timed(found, lambda: load_text(text, "fuzz.lam"))
    for definition in module.models.values() if module else ():
        found += module.sink.diagnostics
        timed(found, partial(build, module, definition, training=True))
    for one in found:
        source = one.span.source
        assert 0 <= one.span.start <= one.span.end <= len(source.text)
        assert source.name in ("fuzz.lam", "<settings>"), source.name
        str(CompileError(one))
    return f"{len(found)} errors"


def timed(found: list, job):
    """The job's result; its errors are added to `found`. It ends within the time."""
    began = time.process_time()
    try:
        return job()
    except CompileError as error:
        found += error.diagnostics
        return None
    finally:
        assert time.process_time() - began < SECONDS


def words(text: str) -> list[str]:
    """The text cut into tokens and what is between them; joining gives the text again."""
    parts, at = [], 0
    for lexeme in scan(Source("seed", text), Sink()):
        parts += [text[at:lexeme.start], text[lexeme.start:lexeme.end]]
        at = lexeme.end
    return [part for part in (*parts, text[at:]) if part]


NUMBERS = ["0", "1", "2", "3", "5", "7", "16", "33", "1.5", "0.0", "1e300", "-1", "999999999999"]
PIECES = ["->", "(", ")", "[", "]", "{", "}", "=", ":", ",", "new", "...", "_", "x", "B", "C",
          "repeat", "if", "else", "true", "none", '"t"', "shared", "output", "relu", "linear(3)",
          "@", "prev.h", ".T", "~", "as [B, 3]", "split(x, 2)", "range(3)", "//", "%"]  # fmt: skip


def edited(parts: list[str], rng: random.Random) -> str:
    """Some tokens deleted, doubled, swapped, renamed or changed."""
    parts = list(parts)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        at = rng.randrange(len(parts))
        kind = rng.randrange(7)
        if kind == 0:
            parts[at] = ""
        elif kind == 1:
            parts[at] += " " + parts[at]
        elif kind == 2:
            other = rng.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 3:
            parts[at] = rng.choice(parts)
        elif kind == 4:
            parts[at] = " " + rng.choice(PIECES) + " "
        elif kind == 5:
            places = [i for i, part in enumerate(parts) if part[:1].isdigit()]
            parts[rng.choice(places or [at])] = rng.choice(NUMBERS)
        else:
            places = [i for i, part in enumerate(parts) if part[:1].isalpha()]
            parts[rng.choice(places)] += rng.choice(["s", "_", "2", "X"])
    return "".join(parts)


def fill(text: str) -> str:
    """What the examples leave open or what is not executed, so that their bodies are built."""
    return text.replace("vocab: int", "vocab: int = 50").replace("S~", "S").replace("T~", "T")


SEEDS = {name: words(fill(text)) for name, text in TEXTS.items()}


@pytest.mark.parametrize("name", SEEDS)
def test_words_join_to_the_text(name):
    """The editor of the fuzz test loses nothing."""
    parse(Source(name, "".join(SEEDS[name])))


@settings(max_examples=150, deadline=None, derandomize=True,
          suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(SEEDS)), st.integers(0, 2**32))
def test_edited_texts(name, seed):
    """Any edit of a good file gives located errors or a graph, in time."""
    outcome(edited(SEEDS[name], random.Random(seed)))


@pytest.mark.parametrize(
    "body",
    [
        "output y = x -> repeat 9999 { repeat 9999 { (_) } }",
        "output y = x -> for i in range(99999) { for j in range(99999) { (_) } }",
        "a = 2 ** 4000\n" + "\n".join(f"a{i} = {'a' if i == 0 else f'a{i - 1}'} * "
                                       f"{'a' if i == 0 else f'a{i - 1}'}" for i in range(40))
        + "\noutput y = x",
        "a = [1, 2]\n" + "\n".join(f"a{i} = {'a' if i == 0 else f'a{i - 1}'} + "
                                    f"{'a' if i == 0 else f'a{i - 1}'}" for i in range(60))
        + "\noutput y = x",
        "a = (B + 1) ** 4000\noutput y = x",
        "a = B + 1\n" + "\n".join(f"a{i} = {'a' if i == 0 else f'a{i - 1}'} * "
                                   f"({'a' if i == 0 else f'a{i - 1}'} + B // {i + 2})"
                                   for i in range(40)) + "\noutput y = x",
        "a = B // 3\n" + "\n".join(f"a{i} = ({'a' if i == 0 else f'a{i - 1}'} + 1) // 7 + "
                                   f"{'a' if i == 0 else f'a{i - 1}'} % 5" for i in range(40))
        + "\noutput y = x",
        "output y = x -> linear(999999999999999) -> linear(99999999999999999999999)",
        "a = (-8) ** 0.5\noutput y = x",
        "a = 1e308 * 10\nb = int(a)\noutput y = x -> linear(b)",
        "a = min([])\nb = max(1, \"a\")\nc = sum([\"a\"])\nd = round(\"a\")\noutput y = x",
    ],
    ids=range(11),
)  # fmt: skip
def test_texts_that_grow_without_end(body):
    """Each was a way to fill the memory or the day with a short file."""
    outcome(model(body))
