"""`--tune`: what was measured decides, once and for all runs that ask for it, and never breaks."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

import lamina
from lamina import api
from lamina.cli import main
from lamina.commands import tuning
from lamina.commands.selection import select_training
from lamina.compiler.options import Measured, Options
from lamina.compiler.transform.winograd import (
    DIRECT,
    SMALL,
    VARIANTS,
    WINOGRAD,
    contraction_key,
)
from lamina.runtime.cache import TABLE, Cache
from lamina.runtime.tuned import add_times, read_times

NET = """model Net {
  input image: f32[B, 16, 6, 6]
  output y = image -> a: conv(16, kernel=3, padding=1) -> relu -> b: conv(64, kernel=3, padding=1)
    -> relu -> c: conv(64, kernel=3, padding=1) -> relu -> d: conv(8, kernel=3, stride=2)
}
"""
A, B, C = (f"convolution 2x6x6 {channels} by 3" for channels in
           ("16 to 16", "16 to 64", "64 to 64"))
SIZES = {"B": 2}
ALL = (WINOGRAD, SMALL, DIRECT)


@pytest.fixture
def graph():
    return lamina.loads(NET).Net().graph


@pytest.fixture
def options(tmp_path):
    """Options to tune with, and a cache of their own."""
    return Options(threads=1, cache_folder=tmp_path / "cache", tune=True)


@pytest.fixture
def counted(monkeypatch):
    """The contractions that are measured; the direct algorithm always wins."""
    asked = []

    def seconds_of(name, shapes, algorithm, changing, options):
        asked.append((name, algorithm))
        return 0.001 if algorithm == DIRECT else 0.002

    monkeypatch.setattr(tuning, "seconds_of", seconds_of)
    return asked


def ran(program):
    """The algorithm of each layer, by its path."""
    titles = {step.layer: program.kernels[step.kernel].title for step in program.steps if step.macs}
    return {layer: next((one.name for one in VARIANTS if str(one) in title), DIRECT)
            for layer, title in titles.items()}


def fake(**winners):
    return Measured({name: {one: 1.0 if one == winner else 2.0 for one in ALL}
                     for name, winner in winners.items()}, SIZES)


def test_the_choice_follows_the_table(graph):
    # Against the estimate both ways; what is not in the table, or cannot be, stays as it was.
    plain = ran(api.compile_graph(graph))
    assert list(plain.values()) == [DIRECT, SMALL, SMALL, DIRECT]
    program = api.compile_graph(graph, measured=fake(**{A: SMALL, B: WINOGRAD, C: DIRECT}))
    assert list(ran(program).values()) == [SMALL, WINOGRAD, DIRECT, DIRECT]
    assert tuple(program.meta["tuned"]) == (3, 3)
    same = api.compile_graph(graph, measured=fake(**{A: DIRECT, C: SMALL}))
    assert ran(same) == plain and tuple(same.meta["tuned"]) == (2, 0)
    other = replace(fake(**{A: WINOGRAD}), sizes={"B": 3})  # measured for another batch
    assert ran(api.compile_graph(graph, measured=other)) == plain


def test_numbers_agree_with_and_without(graph, options):
    # Other algorithms round otherwise, and that is all.
    rng = np.random.default_rng(3)
    image = rng.standard_normal((2, 16, 6, 6)).astype(np.float32)
    found = []
    for measured in (None, fake(**{A: SMALL, B: WINOGRAD, C: DIRECT})):
        runner = api.make_runner(graph, replace(options, measured=measured))
        runner.set_params(lamina.loads(NET).Net().init(seed=1))
        found.append(runner.run({"image": image})["y"])
    assert not np.array_equal(*found)
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def test_everything_is_measured_once(graph, options, counted):
    # A remembered table means no measuring, with or without the Program that it led to.
    first = tuning.tuned(graph, SIZES, options)
    assert counted == [(name, way) for name in (A, B, C) for way in ALL]
    assert set(first.measured.seconds) == {A, B, C}
    again = tuning.tuned(graph, SIZES, options)
    assert again == first and len(counted) == 9
    runner = api.make_runner(graph, first)
    assert {*ran(runner.program).values()} == {DIRECT}
    assert tuning.note(runner) == \
        "3 kinds of convolution as measured on this machine, 2 of them not as estimated"
    assert tuning.tuned(graph, SIZES, options) == first and len(counted) == 9
    tuning.tuned(graph, {"B": 4}, options)
    assert len(counted) == 18 and counted[9][0] == A.replace("2x", "4x", 1)
    tuning.tuned(graph, SIZES, replace(options, threads=2))
    assert len(counted) == 27  # what is faster depends on their number


def test_nothing_is_read_or_measured_unasked(graph, options, counted):
    # Else a run's bits would depend on what another command left in a folder.
    tuning.tuned(graph, SIZES, options)
    del counted[:]
    for one in (replace(options, tune=False), replace(options, target="numpy"),
                replace(options, skip=frozenset({"winograd"}))):
        assert tuning.tuned(graph, SIZES, one) is one
    assert not counted
    tuning.tuned(graph, {"B": 5}, replace(options, skip=frozenset({"pointwise", "fuse"})))
    assert len(counted) == 9
    left_out = replace(options, skip=frozenset({"winograd"}), measured=fake(**{C: WINOGRAD}))
    assert tuning.note(api.make_runner(graph, left_out)) == ""
    plain = api.make_runner(graph, replace(options, tune=False))
    assert ran(plain.program) == ran(api.compile_graph(graph)) and tuning.note(plain) == ""


def test_sizes_that_are_not_known_have_no_key():
    # Nothing can be measured for them.
    net = lamina.loads(NET.replace(", 6, 6", ", H, W")).Net().graph
    assert tuning.convolutions(net, Measured({}, SIZES), frozenset()) == {}
    assert set(tuning.convolutions(net, Measured({}, {**SIZES, "H": 6, "W": 6}),
                                   frozenset())) == {A, B, C}


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"format": 1}', b'{"format": 1, "seconds": 3}',
    b'{"format": 2, "seconds": {"a": {"winograd": 1.0, "direct": 1.0}}}'])
def test_odd_tables_are_ignored(tmp_path, body):
    # Sound entries of the folder that hold no table, or one of another format.
    cache = Cache(tmp_path)
    cache.put("t", body, TABLE)
    assert read_times(cache, "t") == {}
    good = {"a": {WINOGRAD: 0.25, DIRECT: 0.5}}
    assert add_times(cache, "t", good) == good == read_times(cache, "t")


def test_odd_rows_are_ignored(tmp_path):
    # Not a number, not positive, too few or too many: as if it had not been measured.
    good = {"older": {WINOGRAD: 0.25, DIRECT: 0.5}, "good": dict.fromkeys(ALL, 0.25)}
    odd = [{}, [], None, {WINOGRAD: 1.0}, {WINOGRAD: 1.0, DIRECT: -1.0},
           {WINOGRAD: 1.0, DIRECT: float("nan")}, {WINOGRAD: float("inf"), DIRECT: 1.0},
           {WINOGRAD: "1", DIRECT: 1.0}, {WINOGRAD: 1.0, DIRECT: 1.0, "fft": 1.0},
           {WINOGRAD: 1.0, SMALL: 1.0}, {WINOGRAD: 1.0, DIRECT: 1.0, SMALL: 0.0}]
    rows = good | {f"odd{number}": row for number, row in enumerate(odd)}
    cache = Cache(tmp_path)
    cache.put("t", json.dumps({"format": 1, "seconds": rows}).encode(), TABLE)
    assert read_times(cache, "t") == good


def test_a_damaged_table_is_measured_anew(graph, options, counted):
    # As everything in that folder.
    tuning.tuned(graph, SIZES, options)
    (path,) = options.cache_folder.glob(f"*{TABLE}")
    data = bytearray(path.read_bytes())
    data[-5] ^= 8
    path.write_bytes(data)
    tuning.tuned(graph, SIZES, options)
    assert len(counted) == 18


def test_what_an_older_table_lacks_is_measured(graph, options, counted):
    # Two algorithms were known once: their times stay, and the third joins them.
    older = {A: {WINOGRAD: 0.5, DIRECT: 0.25}, B: {WINOGRAD: 0.125, DIRECT: 0.25}}
    add_times(*tuning._table(options), older)
    found = tuning.tuned(graph, SIZES, options).measured.seconds
    assert counted == [(A, SMALL), (B, SMALL), *((C, way) for way in ALL)]
    assert found[A] == {**older[A], SMALL: 0.002} and found[B] == {**older[B], SMALL: 0.002}
    assert tuning.tuned(graph, SIZES, options).measured.seconds == found and len(counted) == 5


@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("taps", [3, 5])
def test_what_is_measured_is_the_algorithm_alone(options, gradient, changing, taps):
    # By its own kernel, at these sizes; weights are packed in each run only where they change.
    shapes = (gradient, (2, 9, 10, 32), (32, 16, taps, taps))
    name = contraction_key(*shapes, Measured({}, {}, changing))
    graph = tuning.convolution(shapes, changing)
    algorithms = tuning.algorithms_of(shapes)
    assert algorithms == (list(ALL) if taps == 3 else [WINOGRAD, DIRECT])
    for algorithm in algorithms:
        times = {one: float(one != algorithm) + 1 for one in algorithms}
        program = api.compile_graph(graph, measured=Measured({name: times}, {}, changing))
        (step,) = [step for step in program.steps if step.macs]
        assert list(ran(program).values()) == [algorithm]
        assert program.kernels[step.kernel].title.startswith("Winograd") == (algorithm != DIRECT)
        packs = [index for index, one in enumerate(program.steps)
                 if one.helper in ("pack", "weights")]
        assert len(packs) == (not gradient)
        assert all((index >= program.once) == changing for index in packs)
    assert 0 < tuning.seconds_of(name, shapes, algorithms[-2], changing, options) < 1


def test_training_has_keys_of_its_own(tmp_path):
    # There weights change at every step, and gradients are contractions too.
    (tmp_path / "net.lam").write_text(NET.replace("-> d:", "-> flatten -> d:").replace(
        "conv(8, kernel=3, stride=2)", "linear(3)"))
    step = select_training(str(tmp_path / "net.lam"), "", {}, {})[1]
    changing = any(name.startswith("update:") for name, _ in step.outputs)
    found = tuning.convolutions(step, Measured({}, SIZES, changing), frozenset())
    assert f"{C}, new weights" in found and "weight gradient 2x6x6 64 to 64 by 3" in found
    assert C not in found


def test_commands_tune_and_tell(tmp_path, monkeypatch):
    # bench says it; show tells the times beside the estimate; without --tune nothing changes.
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "net.lam").write_text(NET)
    monkeypatch.chdir(tmp_path)

    def run(*args):
        found = CliRunner().invoke(main, [*args, "--threads", "1"] if args[0] != "show" else args)
        assert found.exit_code == 0, found.output
        return found.output

    monkeypatch.setenv("LAMINA_THREADS", "1")
    show = ("show", "net.lam", "--stage", "kernels", "--why", "--batch", "2", "--rate", "50")
    bench = ("bench", "net.lam", "--batch", "2", "--steps", "2", "--json")
    assert "measured: " not in run(*show)
    assert json.loads(run(*bench))["tuned"] is None
    assert json.loads(run(*bench, "--tune"))["tuned"].startswith("3 kinds of convolution as measur")
    assert run(*show).count("; measured: winograd ") == 3
    assert json.loads(run(*bench))["tuned"] is None
    text = run("profile", "net.lam", "--batch", "2", "--rounds", "2", "--tune")
    assert "note: 3 kinds of convolution as measured on this machine" in text
