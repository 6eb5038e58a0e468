"""While kernels are compiled a terminal shows how far that is; nothing else ever sees it."""

import io
import os
import pty
import subprocess
import sys

import pytest

from lamina.commands import console
from lamina.runtime.cache import Cache
from lamina.runtime.cpu import load

MODEL = """model Line {
  input x: f32[B, 5]
  output y = x -> a: linear(7) -> tanh -> b: linear(3)
}
"""
KERNEL = "def kernel(args, tid, nthreads):\n    number = {}\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_callback_hears_from_the_first_kernel_to_the_last(tmp_path):
    """Counts never fall, end with all of them, and a warm start says nothing."""
    sources = [KERNEL.format(number) for number in range(9)]
    heard = []
    load.load(sources, Cache(tmp_path), lambda done, total: heard.append((done, total)))
    assert heard[0] == (0, 9) and heard[-1] == (9, 9) and heard == sorted(heard)
    assert len({done for done, _ in heard}) > 2  # while workers are at it
    heard.clear()
    load.load(sources, Cache(tmp_path), lambda done, total: heard.append((done, total)))
    assert heard == []


def test_the_callback_hears_the_end_of_a_failure_too(tmp_path):
    """The line is cleared before the error is printed."""
    heard = []
    with pytest.raises(load.KernelError, match="nonsense"):
        load.load(["def kernel(args, tid, nthreads):\n    nonsense(5)\n"], Cache(tmp_path),
                  lambda done, total: heard.append((done, total)))
    assert heard[0] == (0, 1) and heard[-1] == (1, 1)


def test_the_line_is_rewritten_and_cleared(monkeypatch):
    """In place, also where the new text is shorter; nothing is left."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    line = console.build_line()
    for done, total in ((0, 45), (12, 45), (45, 45), (45, 45)):
        line(done, total)
    text = "\rcompiling kernels 12/45"
    assert sys.stderr.getvalue() == \
        f"\rcompiling kernels 0/45{text}\r{' ' * (len(text) - 1)}\r"


def test_the_line_gives_way_to_a_progress_bar(monkeypatch):
    """What draws on the terminal replaces the stream, as a phase of a training compiles anew."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    line, first = console.build_line(), sys.stderr
    monkeypatch.setattr(sys, "stderr", Terminal())
    line(1, 2)
    assert first.getvalue() == sys.stderr.getvalue() == ""


def test_no_line_for_logs_and_json(monkeypatch):
    """A pipe or a file is no terminal; JSON is for programs."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert console.build_line() is None
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert console.build_line(as_json=True) is None


@pytest.mark.parametrize(("more", "shown"), [((), True), (("--json",), False)])
def test_a_command_shows_it_on_a_terminal(tmp_path, more, shown):
    """End to end: standard error is a terminal, the cache is empty, standard output a pipe."""
    (tmp_path / "line.lam").write_text(MODEL)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lamina.cli", "bench", "line.lam", "--steps", "1", *more]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs, text=True,
                          env={**os.environ, "LAMINA_CACHE": str(tmp_path / "cache")})
    os.write(theirs, b"end")
    text = ""
    while not text.endswith("end"):  # a terminal hands over what it has
        text += os.read(ours, 1 << 16).decode()
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0 and "compiling" not in done.stdout and "median_s" in done.stdout
    if shown:
        assert text.startswith("\rcompiling kernels 0/") and text.endswith(" \rend")
    else:
        assert text == "end"
