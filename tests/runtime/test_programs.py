"""A kept Program is the Program that the compiler would make; anything odd is made again."""

import os
import subprocess
import sys
from dataclasses import replace

import lamina
from lamina import api
from lamina.compiler.options import Options
from lamina.runtime.cache import PROGRAM, Cache
from lamina.runtime.program import Kernel, Program
from lamina.runtime.programs import program_key, remembered

NET = """model Net {
  input image: f32[B, 16, 12, 12]
  output y = image -> a: conv(16, kernel=3, padding=1) -> relu -> b: conv(8, kernel=1)
}
"""
PLAIN = Program("cpu", (), (Kernel("k", "text"),), (), ("B",), {"divisors": {"B": 2}})


def never():
    raise AssertionError("it was made again")


def test_it_is_made_once(tmp_path):
    """What comes back is equal, also in another process, which has another Cache."""
    assert remembered(Cache(tmp_path), "k", lambda: PLAIN) is PLAIN
    assert remembered(Cache(tmp_path), "k", never) == PLAIN


def test_odd_entries_count_as_absent(tmp_path):
    """Damaged files, and sound ones that hold no Program of this format."""
    cache = Cache(tmp_path)
    remembered(cache, "k", lambda: PLAIN)
    path = tmp_path / f"k{PROGRAM}"
    whole = path.read_bytes()
    for at in (0, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1:])
        assert remembered(cache, "k", lambda: PLAIN) is PLAIN
        assert path.read_bytes() == whole
    for body in (b"", b"x", b"\x78\x9c\x03\x00\x00\x00\x00\x01"):
        cache.put("k", body, PROGRAM)
        assert remembered(cache, "k", lambda: PLAIN) is PLAIN


def test_keys_tell_parts_apart():
    """Where one part ends is part of the name."""
    keys = {program_key(parts) for parts in (["ab", "c"], ["a", "bc"], ["abc"], ["ab", "c", ""])}
    assert len(keys) == 4


def test_the_oldest_are_dropped(tmp_path):
    """The folder does not grow without end; kernels stay."""
    cache = Cache(tmp_path)
    for number in range(5):
        cache.put(f"p{number}", b"1", PROGRAM)
        os.utime(tmp_path / f"p{number}{PROGRAM}", (number, number))
    cache.put("kernel", b"2")
    cache.drop_oldest(PROGRAM, 2)
    assert sorted(os.listdir(tmp_path)) == ["kernel.obj", f"p3{PROGRAM}", f"p4{PROGRAM}"]
    assert cache.info().entries == 1
    assert cache.clear() == 3 and os.listdir(tmp_path) == []


def test_what_a_program_depends_on_is_in_its_name(tmp_path, monkeypatch):
    """Settings, passes that are left out and the compiler's own text ask for another Program."""
    made = []
    real = api.compile_graph

    def compile_graph(graph, skip, measured):
        made.append(skip)
        return real(graph, skip, measured)

    monkeypatch.setattr(api, "compile_graph", compile_graph)
    options = Options(threads=1, cache_folder=tmp_path)
    graph = lamina.loads(NET).Net().graph
    first = api.make_runner(graph, options)
    again = api.make_runner(lamina.loads(NET).Net().graph, options)
    assert len(made) == 1 and first.program == again.program
    direct = api.make_runner(graph, replace(options, skip=frozenset({"fuse"})))
    assert len(made) == 2 and direct.program != first.program
    api.make_runner(lamina.loads(NET.replace("[B,", "[2,")).Net().graph, options)
    assert len(made) == 3
    monkeypatch.setattr(api, "compiler_text", lambda: "another text")
    api.make_runner(graph, options)
    assert len(made) == 4


WARM = """
import sys
import lamina
from lamina import api
from lamina.runtime.cpu import load
from lamina.commands.selection import select_training
from lamina.compiler.options import from_environment
warm = sys.argv[1] == "warm"
if warm:  # then neither passes nor lowering nor a compilation may run
    api.compile_graph = load._build = None
net, graph = select_training("lenet5", "", {}, {})
runner = api.make_runner(graph, from_environment())
heavy = [name for name in ("numba", "networkx") if name in sys.modules]
assert not (warm and heavy), heavy
print(len(runner.program.steps))
"""


def test_a_warm_start_compiles_nothing(tmp_path):
    """A training step from the cache: no pass, no Numba, no worker; the graph's text is its key."""
    found = []
    for state in ("cold", "warm"):
        done = subprocess.run([sys.executable, "-c", WARM, state], capture_output=True, text=True,
                              env={**os.environ, "LAMINA_CACHE": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert found[0] == found[1]
