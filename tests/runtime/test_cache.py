"""A wrong cache can never give a wrong result, and never raises."""

import os
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest

from lamina.runtime.cache import Cache, default_folder
from lamina.runtime.cpu import load
from lamina.runtime.cpu.executor import Executor
from lamina.runtime.program import Buffer, Kernel, Program, Step, dumps, loads

ADD = """
from lamina.runtime.cpu.simd import f32, f32ptr, i64ptr


def kernel(args, tid, nthreads):
    block = i64ptr(args)
    x, y, n = f32ptr(block[0]), f32ptr(block[1]), block[2]
    for i in range(tid * n // nthreads, (tid + 1) * n // nthreads):
        y[i] = x[i] + f32({constant})
"""


def program(constant=3):
    buffers = (Buffer("input", "x", "f32", ("n",)), Buffer("output", "y", "f32", ("n",)))
    return Program(
        "cpu",
        buffers,
        (Kernel("add", ADD.format(constant=constant)),),
        (Step(0, (("buffer", 0), ("buffer", 1), ("size", "n")), "n"),),
        ("n",),
    )


def result(folder, constant=3):
    x = np.arange(5, dtype=np.float32)
    return Executor(program(constant), 1, folder).run({"x": x})["y"] - x


def test_every_corruption_counts_as_absent(tmp_path):
    """Flip a byte every 64 bytes, truncate at every 64 bytes: the entry is refused."""
    cache = Cache.open(tmp_path / "c")
    body = bytes(range(256)) * 8
    cache.put("k", body)
    path = tmp_path / "c" / "k.obj"
    whole = path.read_bytes()
    assert cache.get("k") == body
    for at in [*range(0, len(whole), 64), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[at] ^= 0x40
        path.write_bytes(damaged)
        assert cache.get("k") is None
        path.write_bytes(whole[:at])
        assert cache.get("k") is None
    path.write_bytes(whole + b"x")
    assert cache.get("k") is None
    os.rename(path, tmp_path / "c" / "other.obj")
    path.write_bytes(whole)
    assert cache.get("other") is None  # an entry under another's name


def test_a_damaged_kernel_is_rebuilt(tmp_path, monkeypatch):
    """End to end: a flipped bit in the object code gives the right numbers."""
    folder = tmp_path / "c"
    assert (result(folder) == 3).all()
    path = folder / (load.kernel_key(program().kernels[0].source) + ".obj")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    monkeypatch.setattr(load, "_LINKED", {})
    assert (result(folder) == 3).all()
    assert path.read_bytes() != bytes(damaged)


def test_changed_constants_and_versions_change_the_key(monkeypatch):
    """Numba's own cache ignores constants; ours hashes the text, the libraries and the machine."""
    keys = {load.kernel_key(ADD.format(constant=c)) for c in (3, 4)}
    monkeypatch.setattr(load, "_toolchain", lambda: "another numba")
    keys.add(load.kernel_key(ADD.format(constant=3)))
    assert len(keys) == 3


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_is_refused(tmp_path, mode):
    """Code found there could be anyone's."""
    folder = tmp_path / "c"
    folder.mkdir()
    folder.chmod(mode)
    cache = Cache.open(folder)
    assert "others may write" in cache.warning and cache.folder != folder
    assert stat.S_IMODE(os.stat(cache.folder).st_mode) == 0o700


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    """The same for a folder that a different user made."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "another user" in Cache.open(tmp_path).warning


def test_a_folder_that_cannot_exist(tmp_path):
    """A file in the way: a private folder is used and the program still runs."""
    (tmp_path / "file").write_text("")
    cache = Cache.open(tmp_path / "file" / "c")
    assert "cannot be created" in cache.warning
    cache.put("k", b"1")
    assert cache.get("k") == b"1"


def test_a_read_only_cache_works(tmp_path, kernel_cache, monkeypatch):
    """What is there is used; what is missing is built elsewhere."""
    folder = tmp_path / "c"
    result(folder)
    monkeypatch.setattr(os, "access", lambda *_: False)  # a superuser may write anywhere
    monkeypatch.setattr(load, "_LINKED", {})
    before = sorted(os.listdir(folder))
    assert (result(folder) == 3).all() and (result(folder, 5) == 5).all()
    assert sorted(os.listdir(folder)) == before


def test_information_and_clearing(tmp_path):
    """`info` counts entries, `clear` leaves an empty folder and foreign files."""
    cache = Cache.open(tmp_path / "c")
    cache.put("a", b"12")
    cache.put_source("a", "text")
    (tmp_path / "c" / "mine.txt").write_text("")
    assert cache.info().entries == 1 and cache.info().bytes > 4
    assert cache.clear() == 2
    assert os.listdir(tmp_path / "c") == ["mine.txt"]


def test_default_folder():
    """XDG is respected, and ignored when relative, as its specification says."""
    assert str(default_folder({"XDG_CACHE_HOME": "/x", "HOME": "/h"})) == "/x/lamina"
    assert str(default_folder({"XDG_CACHE_HOME": "x", "HOME": "/h"})) == "/h/.cache/lamina"


SCRIPT = """
import sys
import numpy as np
from lamina.runtime.cpu.executor import Executor
from lamina.runtime.program import loads
executor = Executor(loads(open(sys.argv[1]).read()), 2, sys.argv[2])
x = np.arange(5, dtype=np.float32)
assert (executor.run({"x": x})["y"] == x + 3).all()
heavy = [m for m in ("numba", "lamina.compiler", "networkx", "lark") if m in sys.modules]
assert not heavy, heavy
"""


def start(tmp_path, folder):
    (tmp_path / "p.json").write_text(dumps(program()))
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, tmp_path / "p.json", folder],
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_race_and_a_warm_one_needs_no_numba(tmp_path):
    """Two cold processes at once, then one more; none imports Numba or the compiler itself."""
    for process in [start(tmp_path, tmp_path / "c") for _ in range(2)]:
        assert process.communicate()[1] == "" and process.returncode == 0
    warm = start(tmp_path, tmp_path / "c")
    assert warm.communicate()[1] == "" and warm.returncode == 0
    shutil.rmtree(tmp_path / "c")


def test_a_kernel_that_does_not_compile_says_so(tmp_path):
    """The compiler's words reach the caller; code that may raise is refused."""
    with pytest.raises(load.KernelError, match="nonsense"):
        load.load(["def kernel(args, tid, nthreads):\n    nonsense()\n"], Cache(tmp_path))
    raising = "def kernel(args, tid, nthreads):\n    if args == 5:\n        raise ValueError\n"
    with pytest.raises(load.KernelError, match="can raise|needs"):
        load.load([raising], Cache(tmp_path))


def test_program_json_round_trip():
    """A saved Program is the same Program, nested sizes included; other text is refused."""
    original = Program(
        "cpu",
        (Buffer("param", "w", "f32", (("*", "n", ("+", "m", 2)), 3), (1, 0), data="AAAA"),),
        (Kernel("k", "text"),),
        (Step(0, (("size", ("//", "n", 2)),), ("max", 1, "n")),),
        ("n", "m"),
        {"a": 1},
    )
    assert loads(dumps(original)) == original
    with pytest.raises(ValueError, match="not a Lamina program"):
        loads("[]")
