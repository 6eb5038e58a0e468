"""Every vector width is right on any machine: kernels built for a lesser one give our gradients.

Numba's variables for another processor choose it, in a process of its own: what they reach is the
width that the compiler lowers for, the workers that build kernels, and the names of cache entries.
"""

import json
import os
import subprocess
import sys

import llvmlite.binding as llvm
import pytest

from lamina.runtime.cpu import host
from lamina.runtime.cpu.load import kernel_key

AVX2 = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
SSE = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"}
PLAIN = "def kernel(args, tid, nthreads):\n    pass\n"

# What runs on the other processor; it prints facts and, for each model, the largest differences.
SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
import lamina
from lamina.runtime.cache import Cache
from lamina.runtime.cpu import build, host, load

MODELS = {"convolutions": ('''model Net {
  input image: f32[B, 5, 8, 8]
  features = image -> point: conv(32, kernel=1) -> wide: conv(32, kernel=3, padding=1) -> batchnorm
    -> relu -> each: conv(32, kernel=5, padding=2, groups=32)
    -> down: conv(19, kernel=3, stride=2, padding=1) -> relu -> maxpool(2)
    -> small: conv(40, kernel=3, padding=1) -> relu -> flatten
  output logits = features -> head: linear(3)
}''', (3, 5, 8, 8)), "lstm": ('''model Net {
  input image: f32[B, T, 5]
  y = image -> layer: lstm(21)
  output logits = y.final.h -> head: linear(3)
}''', (3, 4, 5))}

found = {"width": host.vector_width(), "fma": host.has_fma(), "key": load.kernel_key(sys.argv[2])}
products = []
for name, (text, shape) in MODELS.items():
    net = lamina.loads(text).Net()
    weights = net.init(seed=1)
    inputs = {"image": np.random.default_rng(0).standard_normal(shape).astype(np.float32),
              "label": np.arange(shape[0], dtype=np.int32) % 3}
    grads = {target: net.value_and_grad("cross_entropy(logits, label)", target=target)
             for target in ("cpu", "numpy")}
    (loss, ours), (other, theirs) = (grads[target](weights, **inputs) for target in grads)
    program = grads["cpu"].runner.program
    products += [one.source for one in program.kernels if one.title == "Matrix product."]
    found[name] = {"kernels": sorted({one.title for one in program.kernels if one.title}),
                   "loss": [float(loss), float(other)], "missing": sorted(set(theirs) ^ set(ours)),
                   "wrong": [key for key in ours
                             if not np.allclose(ours[key], theirs[key], atol=1e-5)]}

# The worker's object code is what this process, which has the same variables, compiles.
cache, key = Cache(Path(sys.argv[1])), load.kernel_key(products[0])
made = build.compile_kernel(key, products[0], str(cache.source_path(key)))
found["same code"] = cache.get(key) == made
text = build.assembly(products[0])
found["registers"] = [name for name in ("xmm", "ymm", "zmm") if name in text]
found["fused"] = "vfmadd" in text
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def on(kernel_cache):
    """What the script says on a processor; each processor's answer is asked for once."""
    known = {}

    def ask(processor):
        name = processor["NUMBA_CPU_NAME"]
        if name not in known:
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT, str(kernel_cache), PLAIN], capture_output=True,
                text=True, env={**os.environ, **processor, "NUMBA_OPT": host.EFFORT,
                                        "LAMINA_CACHE": str(kernel_cache)})
            assert done.returncode == 0, done.stderr[-3000:]
            known[name] = json.loads(done.stdout)
        return known[name]

    return ask


def require(*features):
    """Skip the test where the machine cannot run such code."""
    if not llvm.get_process_triple().startswith("x86_64"):
        pytest.skip("the other processors of this test are x86-64's")
    missing = [name for name in features if not llvm.get_host_cpu_features().get(name)]
    if missing:
        pytest.skip(f"the processor has no {' and no '.join(missing)}")


def check(found):
    """The loss and every gradient are the NumPy target's, as on the machine's own width."""
    for name in ("convolutions", "lstm"):
        loss, other = found[name]["loss"]
        assert loss == pytest.approx(other, rel=1e-5), name
        assert (found[name]["missing"], found[name]["wrong"]) == ([], []), name
    kernels = " ".join(found["convolutions"]["kernels"])
    for title in ("Winograd: convolution, F(4x4, 3x3)", "Winograd: convolution, F(2x2, 3x3)",
                  "Winograd: weight gradient, combined, F(4x4, 3x3)",
                  "Winograd: weight gradient, combined, F(2x2, 3x3)",
                  "Direct convolution", "Weight gradient, partial sums", "Matrix product",
                  "Depthwise convolution", "Depthwise weight gradient, partial sums"):
        assert title in kernels
    assert found["same code"]


def test_eight_floats_with_avx2(on):
    # The commonest desktop processors; a machine with AVX-512 would never build these kernels.
    require("avx2", "fma")
    found = on(AVX2)
    assert (found["width"], found["fma"], found["fused"]) == (8, True, True)
    assert found["registers"] == ["xmm", "ymm"]
    check(found)


def test_four_floats_with_sse(on):
    # Nor these, which have neither wide vectors nor a fused multiply-add.
    require()
    found = on(SSE)
    assert (found["width"], found["fma"], found["fused"]) == (4, False, False)
    assert found["registers"] == ["xmm"]
    check(found)


def test_object_code_is_kept_apart(on):
    # One cache serves all of them: code for another processor could stop the process.
    require("avx2", "fma")
    keys = {on(AVX2)["key"], on(SSE)["key"], kernel_key(PLAIN)}
    assert len(keys) == 3


@pytest.mark.parametrize("features,width,fma", [
    ("+avx512f,+avx512vl,+avx2,+fma", 16, True), ("+avx512f,+avx2,+fma", 8, True),
    ("-avx512f,-avx512vl,+avx2, +fma", 8, True), ("+avx2,-fma", 4, False), ("", 4, False)])
def test_the_width_follows_the_features(features, width, fma, monkeypatch):
    # Half of AVX-512, or AVX2 without fused multiply-adds, is not what the wide kernels need.
    require()
    monkeypatch.setenv("NUMBA_CPU_FEATURES", features)
    assert (host.vector_width.__wrapped__(), host.has_fma.__wrapped__()) == (width, fma)
    assert host.features.__wrapped__().endswith(f" {features}")


def test_numba_is_given_the_same_processor(monkeypatch):
    # A name without features keeps the machine's, except that of a processor without any.
    monkeypatch.delenv("NUMBA_CPU_FEATURES", raising=False)
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert host.features.__wrapped__() == f"{llvm.get_process_triple()} generic "
    monkeypatch.setenv("NUMBA_CPU_NAME", "x86-64-v2")
    flags = llvm.get_host_cpu_features().flatten()
    assert host.features.__wrapped__() == f"{llvm.get_process_triple()} x86-64-v2 {flags}"
