"""The pages of docs/ teach by what they print, so each block is run and compared.

`python -m lamina.tests.test_docs` writes what is printed today into the pages.
"""

import contextlib
import doctest
import io
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import lamina
from lamina.cli import main

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def said(command):
    """What a command prints, without the spaces at the ends of lines."""
    assert command.startswith("lamina ")
    done = CliRunner().invoke(main, command.split()[1:])
    assert done.exit_code == 0, done.output
    return "\n".join(line.rstrip() for line in done.output.splitlines()).strip("\n") + "\n"


def run_console(text):
    """The block with every command followed by its output."""
    commands = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    return "".join(f"$ {command}\n{said(command)}" for command in commands)


def run_python(text, names):
    """The block with what its examples print; they share `names`."""
    out = []
    for example in doctest.DocTestParser().get_examples(text):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(example.source, "page", "single"), names)
        first, *rest = example.source.splitlines()
        out += [f">>> {first}", *(f"... {line}" for line in rest)]
        out += printed.getvalue().splitlines()
    return "\n".join(out) + "\n"


def run_page(text):
    """The page with the output of today in every block."""
    names = {"lamina": lamina, "np": np}

    def run(match):
        kind, body = match.groups()
        if kind == "lam":
            Path(re.match(r"# file: (\S+)\n", body)[1]).write_text(body)
        elif kind == "console":
            body = run_console(body)
        elif kind == "python":
            body = run_python(body, names)
        return f"```{kind}\n{body}```"

    return BLOCK.sub(run, text)


@contextlib.contextmanager
def working_in(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_prints_what_it_says(page, tmp_path):
    """A figure that is no longer true is worse than none."""
    text = page.read_text(encoding="utf-8")
    with working_in(tmp_path):
        found = run_page(text)
    assert BLOCK.findall(text)
    assert found == text


def test_the_harness_sees_a_wrong_figure(tmp_path):
    """A check that cannot fail is no check."""
    page = "```python\n>>> 1 + 1\n3\n```\n"
    with working_in(tmp_path):
        assert run_page(page) == "```python\n>>> 1 + 1\n2\n```\n"


if __name__ == "__main__":
    for page in PAGES:
        with tempfile.TemporaryDirectory() as folder, working_in(folder):
            page.write_text(run_page(page.read_text(encoding="utf-8")), encoding="utf-8")
