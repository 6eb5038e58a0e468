"""Promises about whole runs: the same bits every time, and nothing lost by a kill."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

MODEL = """model Tiny {
  input image: f32[B, 1, 28, 28]
  output logits = image -> c: conv(4, kernel=5, stride=2) -> relu -> p: avgpool(2) -> flatten
    -> drop: dropout(0.2) -> head: linear(10)
}

recipe quick for Tiny {
  data train = mnist("train") -> shift(2) -> normalize(mean=0.1307, std=0.3081) -> shuffle
  data valid = mnist("test")  -> normalize(mean=0.1307, std=0.3081)
  target label: i32[B]
  loss       = cross_entropy(logits, label)
  metric acc = accuracy(logits, label)
  optimizer  = adam(lr=0.003)
  schedule   = cosine(warmup=5)
  batch      = 500
  epochs     = 2
  seed       = 7
}
"""
KILLS = 6


def command(folder, out, *more):
    return [sys.executable, "-m", "lamina.cli", "train", str(folder / "tiny.lam"), "--out",
            str(out), *map(str, more)]


def digest(out: Path) -> str:
    """One hash of all trained bits, optimizer state included."""
    tensors = load_file(out / "last.safetensors")
    parts = [(key, tensors[key].dtype.str, tensors[key].tobytes()) for key in sorted(tensors)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("promises")
    (folder / "tiny.lam").write_text(MODEL)
    return folder


@pytest.fixture(scope="module")
def reference(place):
    """The bits of an uninterrupted run on one thread."""
    subprocess.run(command(place, place / "whole", "--threads", 1), check=True,
                   capture_output=True)
    return digest(place / "whole")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_on_any_number_of_threads(place, reference, threads):
    # Sums are split by sizes, never by threads; dropout draws from counters.
    out = place / f"threads{threads}"
    subprocess.run(command(place, out, "--threads", threads), check=True, capture_output=True)
    assert digest(out) == reference


def test_same_bits_from_a_cold_cache(place, reference):
    # Kernels that are built now compute what the kept ones do.
    out = place / "cold"
    environment = {**os.environ, "LAMINA_CACHE": str(place / "cache")}
    subprocess.run(command(place, out), check=True, capture_output=True, env=environment)
    assert digest(out) == reference


def test_a_killed_run_resumes_to_the_same_bits(place, reference):
    # SIGKILL at random times, again and again: always a loadable checkpoint, the same end.
    out = place / "killed"
    rng = random.Random(11)
    for _ in range(KILLS):
        run = subprocess.Popen(command(place, out, "--resume"), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + rng.uniform(0.6, 1.6)
        while run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if run.poll() is not None:
            break
        run.send_signal(signal.SIGKILL)
        run.wait()
    subprocess.run(command(place, out, "--resume"), check=True, capture_output=True)
    assert digest(out) == reference
    epochs = [row["epoch"] for row in map(json.loads, (out / "log.jsonl").read_text().splitlines())
              if row.get("kind", row.get("event")) == "epoch" or "train" in row]
    assert epochs == [1, 2]


def test_an_interrupt_saves_and_exits_cleanly(place, reference):
    # Ctrl-C is a way to stop, not to lose work.
    out = place / "interrupted"
    run = subprocess.Popen(command(place, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (out / "last.safetensors").exists() and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    output, errors = run.communicate(timeout=60)
    assert b"Traceback" not in output + errors
    assert run.returncode in (0, 128 + signal.SIGINT)
    subprocess.run(command(place, out, "--resume"), check=True, capture_output=True)
    assert digest(out) == reference


def test_targets_draw_the_same_random_numbers():
    # Dropout zeroes the same places on every target.
    import lamina

    net = lamina.loads("model D {\n input x: f32[B, 50]\n output y = x -> dropout(0.4)\n}").D()
    x = np.ones((8, 50), np.float32)
    rng = np.array([3, 5], np.int32)
    ys = [net.compile(target, train=True)({}, x=x, rng=rng)["y"] for target in ("cpu", "numpy")]
    assert np.array_equal(ys[0] == 0, ys[1] == 0)
    assert 0.3 < (ys[0] == 0).mean() < 0.5
