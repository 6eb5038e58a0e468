"""Plans, memory, threads: what the executor promises."""

import base64
import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from lamina.runtime.cpu import executor as executor_module
from lamina.runtime.cpu import load, threads
from lamina.runtime.cpu.executor import Executor, MemoryDamage
from lamina.runtime.program import Buffer, Kernel, Program, Step

HEAD = """
from lamina.runtime.cpu.simd import f32, f32ptr, i64ptr


def kernel(args, tid, nthreads):
    block = i64ptr(args)
    x, y, n = f32ptr(block[0]), f32ptr(block[1]), block[2]
    for i in range(tid * n // nthreads, (tid + 1) * n // nthreads):
"""
MIRROR = HEAD + "        y[i] = x[n - 1 - i] + f32(1)\n"
GROW = HEAD + "        y[i] = y[i] + x[i]\n"
OVERRUN = HEAD + "        y[i + 1] = x[i]\n"


def args(*buffers, size="n"):
    return (*(("buffer", b) for b in buffers), ("size", size))


def chain(length, work=1 << 30):
    """`length` steps, each of which reads what the other threads wrote in the one before."""
    last = length - 1
    buffers = (
        Buffer("input", "x", "f32", ("n",)),
        Buffer("temp", "", "f32", ("n",), first=0, last=last),
        Buffer("temp", "", "f32", ("n",), first=0, last=last),
        Buffer("output", "y", "f32", ("n",)),
    )
    steps = []
    for i in range(length):
        source = 0 if i == 0 else 1 + (i - 1) % 2
        target = 3 if i == last else 1 + i % 2
        steps.append(Step(0, args(source, target), work if i % 5 else 0))
    return Program("cpu", buffers, (Kernel("mirror", MIRROR),), tuple(steps), ("n",))


def mirrored(x, length):
    return (x[::-1] if length % 2 else x) + np.float32(length)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_thread_stress(threads, kernel_cache):
    """Hundreds of dependent steps, more threads than cores: a missing barrier gives wrong sums."""
    executor = Executor(chain(301), threads, kernel_cache)
    for n in (1, 2, 63, 1000):
        x = np.arange(n, dtype=np.float32)
        for _ in range(3):
            np.testing.assert_array_equal(executor.run({"x": x})["y"], mirrored(x, 301))
    executor.close()
    np.testing.assert_array_equal(executor.run({"x": x})["y"], mirrored(x, 301))


class LateLock:
    """A lock with which other threads than the first go on late, as on a busy machine."""

    def __init__(self):
        self.lock = threading.Lock()

    def acquire(self):
        self.lock.acquire()
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.02)

    def release(self):
        self.lock.release()

    def __enter__(self):
        self.lock.acquire()

    def __exit__(self, *exception):
        self.lock.release()


def test_a_closed_thread_takes_no_part_in_a_later_run(kernel_cache, monkeypatch):
    """One that had not yet seen the end joined the next run: wrong sums, a few in a thousand."""
    late = SimpleNamespace(Lock=LateLock, Thread=threading.Thread)
    monkeypatch.setattr(threads, "threading", late)
    executor = Executor(chain(31), 3, kernel_cache)
    x = np.arange(1000, dtype=np.float32)
    for _ in range(5):
        np.testing.assert_array_equal(executor.run({"x": x})["y"], mirrored(x, 31))
        executor.close()


@pytest.mark.parametrize("looks", [0, 1, 40, 25_000])
def test_a_walk_given_out_while_a_thread_parks(looks, kernel_cache, monkeypatch):
    """It looks for it, is about to park, or is parked: missed in any of these, the run hangs."""
    monkeypatch.setattr(threads, "_LOOKS", looks)
    monkeypatch.setattr(threads, "_FEW", looks)
    executor = Executor(chain(5), 2, kernel_cache)
    x = np.arange(64, dtype=np.float32)
    for round in range(400):
        np.testing.assert_array_equal(executor.run({"x": x})["y"], mirrored(x, 5))
        time.sleep((round % 7) * 1e-5)
    executor.close()


def test_waiting_threads_soon_sleep(kernel_cache):
    """A program that does something else after a run has the cores to itself."""
    executor = Executor(chain(5), 2, kernel_cache)
    executor.run({"x": np.arange(64, dtype=np.float32)})
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


def test_several_callers(kernel_cache):
    """Runs of one executor from several Python threads take turns."""
    executor = Executor(chain(21), 2, kernel_cache)
    wrong = []

    def call(seed):
        x = np.random.default_rng(seed).integers(0, 9, 50 + seed).astype(np.float32)
        for _ in range(50):
            if not (executor.run({"x": x})["y"] == mirrored(x, 21)).all():
                wrong.append(seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_fork(kernel_cache):
    """A child made by fork has no threads of its parent's: it starts its own."""
    executor = Executor(chain(31), 2, kernel_cache)
    x = np.arange(100, dtype=np.float32)
    executor.run({"x": x})
    child = os.fork()
    if child == 0:
        right = (executor.run({"x": x})["y"] == mirrored(x, 31)).all()
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(executor.run({"x": x})["y"], mirrored(x, 31))


def test_another_size_compiles_nothing(kernel_cache, monkeypatch):
    """A new batch size makes a plan only; returning to an old one, after the arena grew, works."""
    executor = Executor(chain(5), 2, kernel_cache)
    monkeypatch.setattr(load, "_build", None)
    monkeypatch.setattr(executor_module, "load", None)
    for n in (10, 100_000, 10, 7):
        x = np.arange(n, dtype=np.float32)
        np.testing.assert_array_equal(executor.run({"x": x})["y"], mirrored(x, 5))


@pytest.mark.parametrize(("most", "room"), [(3, 1 << 30), (100, 3 * 8 * 4096)])
def test_plans_of_many_sizes_are_bounded(kernel_cache, monkeypatch, most, room):
    """Texts come in many shapes: what is kept of them grows neither in number nor in bytes."""
    monkeypatch.setattr(executor_module, "PLANS_KEPT", most)
    monkeypatch.setattr(executor_module, "PLANS_BYTES", room)
    executor = Executor(chain(3), 2, kernel_cache)
    for n in (*range(1000, 1020), 30_000, 1000, 1019):
        x = np.arange(n, dtype=np.float32)
        np.testing.assert_array_equal(executor.run({"x": x})["y"], mirrored(x, 3))
        held = executor._plans.values()
        assert 1 <= len(held) <= most
        assert len(held) == 1 or sum(ready.bytes for ready in held) <= room
    assert len(executor._plans) > 1


def accumulate(order=()):
    buffers = (
        Buffer("input", "x", "f32", (2, 3), order),
        Buffer("param", "w", "f32", (2, 3), order),
        Buffer("output", "y", "f32", (2, 3), order, alias=1),
    )
    return Program("cpu", buffers, (Kernel("grow", GROW),), (Step(0, args(0, 2, size=6)),))


@pytest.mark.parametrize("order", [(), (1, 0)])
def test_parameters_and_physical_order(order, kernel_cache):
    """An in-place update through an alias; logical order at the border, whatever the physical."""
    executor = Executor(accumulate(order), 1, kernel_cache)
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    executor.set_params({"w": w})
    out = executor.run({"x": np.asfortranarray(10 * w)})["y"]
    np.testing.assert_array_equal(out, 11 * w)
    kept = executor.get_params()["w"]
    np.testing.assert_array_equal(kept, 11 * w)
    kept[:] = 0
    assert executor.get_params()["w"][1, 2] == 55
    memory = executor._kept[1][:24].view(np.float32)
    np.testing.assert_array_equal(memory, (11 * w).transpose(order or (0, 1)).ravel())


def test_constants(kernel_cache):
    """A constant's bytes travel in the Program."""
    data = base64.b64encode(np.arange(6, dtype=np.float32).tobytes()).decode()
    buffers = (Buffer("const", "c", "f32", (6,), data=data), Buffer("output", "y", "f32", (6,)))
    program = Program("cpu", buffers, (Kernel("mirror", MIRROR),), (Step(0, args(0, 1, size=6)),))
    assert Executor(program, 1, kernel_cache).run({})["y"].tolist() == [6, 5, 4, 3, 2, 1]


def test_wrong_inputs_are_refused(kernel_cache):
    """Messages name the tensor, what it must be and what it is; nothing has run."""
    executor = Executor(accumulate(), 1, kernel_cache)
    x = np.ones((2, 3), np.float32)
    with pytest.raises(KeyError, match="missing: \\['x'\\], unknown: \\['z'\\]"):
        executor.run({"z": x})
    with pytest.raises(ValueError, match=r"input 'x' must have shape \(2, 3\), not \(3, 2\)"):
        executor.run({"x": x.T.copy()})
    with pytest.raises(ValueError, match="must be float32, not float64"):
        executor.run({"x": x.astype(float)})
    with pytest.raises(KeyError, match="no parameter"):
        executor.set_params({"w": x, "v": x})
    with pytest.raises(ValueError, match="param 'w'"):
        executor.set_params({"w": x[:1]})
    with pytest.raises(ValueError, match="at least 1"):
        Executor(accumulate(), 0, kernel_cache)
    assert (executor.get_params()["w"] == 0).all()


def test_symbols_must_agree(kernel_cache):
    """One symbol in two inputs has one value; other expressions are checked against it."""
    buffers = (
        Buffer("input", "a", "f32", ("n",)),
        Buffer("input", "b", "f32", (("*", "n", 2),)),
        Buffer("output", "y", "f32", ("n",)),
    )
    program = Program("cpu", buffers, (Kernel("m", MIRROR),), (Step(0, args(0, 2)),), ("n",))
    executor = Executor(program, 1, kernel_cache)
    a, b = np.ones(3, np.float32), np.ones(6, np.float32)
    assert executor.run({"a": a, "b": b})["y"].tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match=r"'b' must have shape \(6,\), not \(3,\)"):
        executor.run({"a": a, "b": a})


def test_out_of_memory_changes_nothing(kernel_cache):
    """The message says how many bytes; parameters stay; the next smaller run works."""
    buffers = (
        Buffer("input", "x", "f32", ("n",)),
        Buffer("param", "w", "f32", ("n",), alias=-1),
        Buffer("temp", "", "f32", (("*", "n", 1 << 50),)),
        Buffer("output", "y", "f32", ("n",)),
    )
    program = Program(
        "cpu",
        (buffers[0], buffers[2], buffers[3]),
        (Kernel("m", MIRROR),),
        (Step(0, args(0, 2)),),
        ("n",),
    )
    executor = Executor(program, 1, kernel_cache)
    with pytest.raises(MemoryError, match=r"this run.* takes 4,503,[\d,]+ bytes; this machine has"):
        executor.run({"x": np.ones(1, np.float32)})
    assert executor.run({"x": np.ones(0, np.float32)})["y"].shape == (0,)


def test_checked_runs_find_overruns(kernel_cache):
    """The canary behind a buffer names the step that wrote it."""
    buffers = (
        Buffer("input", "x", "f32", ("n",)),
        Buffer("output", "y", "f32", ("n",), label="sum"),
    )
    program = Program("cpu", buffers, (Kernel("o", OVERRUN),), (Step(0, args(0, 1), label="bad"),))
    executor = Executor(program, 1, kernel_cache, check_memory=True)
    with pytest.raises(MemoryDamage, match=r"step 0 \(bad\) wrote past buffer 1 \(sum\)"):
        executor.run({"x": np.ones(16, np.float32)})


def test_checked_runs_show_reads_of_dead_memory(kernel_cache):
    """A temporary that nobody wrote reads as NaN, not as the last run's values."""
    buffers = (Buffer("temp", "", "f32", (8,)), Buffer("output", "y", "f32", (8,)))
    program = Program("cpu", buffers, (Kernel("m", MIRROR),), (Step(0, args(0, 1, size=8)),))
    out = Executor(program, 1, kernel_cache, check_memory=True).run({})["y"]
    assert np.isnan(out).all()


def test_plan_shares_memory_of_dead_buffers(kernel_cache):
    """Two temporaries that are never alive together lie in the same place."""
    buffers = (
        Buffer("temp", "", "f32", ("n",), first=0, last=1),
        Buffer("temp", "", "f32", ("n",), first=2, last=3),
    )
    executor = Executor(Program("cpu", buffers, (), ()), 1, kernel_cache)
    plan = executor.plan({"n": 1000})
    assert plan.offsets == {0: 0, 1: 0} and 4000 <= plan.arena_bytes <= 4400
    assert executor.run({}, {"n": 5}) == {}


def test_profile_names_every_step(kernel_cache):
    """One line per step, with a time."""
    rows = Executor(chain(3), 1, kernel_cache).profile({"x": np.ones(4, np.float32)})
    assert [label for label, _ in rows] == ["mirror"] * 3 and all(s > 0 for _, s in rows)
