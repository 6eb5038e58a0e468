"""Ours beside PyTorch and NumPy: `python -m lamina.tests.bench.side_by_side [CASE...]`.

Each system runs in its own process at the same threads; rounds are interleaved, and the figure is
the ratio of medians (theirs / ours), with the least times beside. Cases: lenet (a training step of
LeNet-5 at batch 64), lenet1 (its inference at batch 1), gemm (a 1024^3 matrix product against
NumPy), conv (8x64x56x56, 3x3, 64 outputs, forward, against PyTorch's better layout), lstm and gru
(a training step of a language model of two layers of 256, batch 32, 64 steps), cell (the same of an
LSTM written by the user, against the same loop in PyTorch).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

CASES = {"lenet": ("ours", "torch"), "lenet1": ("ours", "torch"), "gemm": ("ours", "numpy"),
         "conv": ("ours", "torch", "torch-channels-last"), "lstm": ("ours", "torch"),
         "gru": ("ours", "torch"), "cell": ("ours", "torch")}
THREADS = int(os.environ.get("LAMINA_THREADS", "2"))
ROUNDS = 15
SECONDS = 0.3  # of work a round


def main(names: list[str]) -> None:
    """Run the cases and print a line for each, then all of it as JSON."""
    found = {}
    for name in names or CASES:
        found[name] = compare(name, CASES[name])
        ours = found[name]["ours"]
        best = min((s for s in found[name] if s != "ours"),
                   key=lambda system: found[name][system]["median"])
        theirs = found[name][best]
        print(f"{name:8} ours {ours['median'] * 1e3:8.3f} ms (least {ours['min'] * 1e3:.3f})  "
              f"{best} {theirs['median'] * 1e3:8.3f} ms (least {theirs['min'] * 1e3:.3f})  "
              f"ratio {theirs['median'] / ours['median']:.2f} "
              f"(of least times {theirs['min'] / ours['min']:.2f})", flush=True)
    print(json.dumps(found))


def compare(name: str, systems: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Median and least seconds of each system over interleaved rounds."""
    # Old machines' workarounds would slow NumPy's matrix product.
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    workers = {system: subprocess.Popen(
        [sys.executable, __file__, "--worker", name, system], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env={**clean, "OMP_NUM_THREADS": str(THREADS),
                                                "OPENBLAS_NUM_THREADS": str(THREADS)})
        for system in systems}
    times: dict[str, list[float]] = {system: [] for system in systems}
    for worker in workers.values():
        assert worker.stdout is not None and worker.stdout.readline().strip() == "ready"
    for _ in range(ROUNDS):
        for system, worker in workers.items():
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
            times[system].append(float(worker.stdout.readline()))
    for worker in workers.values():
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    return {system: {"median": statistics.median(t), "min": min(t)} for system, t in times.items()}


def work(name: str, system: str) -> None:
    """A worker: after each line on standard input, the median seconds of one call."""
    call = _MAKERS[name, system.partition("-")[0]](system)
    for _ in range(3):
        call()
    print("ready", flush=True)
    for _ in sys.stdin:
        taken = []
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        print(statistics.median(taken), flush=True)


def _ours(graph, inputs, params=None) -> Callable[[], object]:
    from lamina.api import initial_values, make_runner
    from lamina.compiler.options import Options

    runner = make_runner(graph, Options(threads=THREADS))
    runner.set_params(params or initial_values(graph, 0))
    return lambda: runner.run(inputs)


def _lenet_ours(_: str) -> Callable[[], object]:
    from lamina.api import load

    rng = np.random.default_rng(0)
    step = load("lenet5").recipe().step(0)
    return _ours(step, {"image": rng.standard_normal((64, 1, 32, 32)).astype(np.float32),
                        "label": rng.integers(0, 10, 64).astype(np.int32),
                        "lr": np.float32(0.01), "step": np.float32(1)})


def _lenet1_ours(_: str) -> Callable[[], object]:
    from lamina.api import load

    image = np.random.default_rng(0).standard_normal((1, 1, 32, 32)).astype(np.float32)
    return _ours(load("lenet5").LeNet5().graph, {"image": image})


def _torch_lenet():
    import torch
    from torch import nn

    torch.set_num_threads(THREADS)
    return torch, nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84),
        nn.Tanh(), nn.Linear(84, 10))


def _lenet_torch(_: str) -> Callable[[], object]:
    torch, net = _torch_lenet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    x, y = torch.randn(64, 1, 32, 32), torch.randint(0, 10, (64,))

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _lenet1_torch(_: str) -> Callable[[], object]:
    torch, net = _torch_lenet()
    net.eval()
    x = torch.randn(1, 1, 32, 32)

    def infer():
        with torch.inference_mode():
            return net(x)

    return infer


def _gemm_ours(_: str) -> Callable[[], object]:
    from lamina.compiler.ir.builder import Builder
    from lamina.compiler.ops import GraphMath

    builder = Builder("gemm")
    m = GraphMath(builder)
    # Operands are parameters and the result is one number, so that no copy in or out is timed.
    a, b = (m.param(key=key, shape=(1024, 1024), trainable=False) for key in "ab")
    c = m.matmul(a, b)
    graph = builder.finish([("corner", m.slice(
        c, starts=(0, 0), stops=(1, 1), steps=(1, 1)).value)])
    rng = np.random.default_rng(0)
    return _ours(graph, {}, {key: rng.standard_normal((1024, 1024)).astype(np.float32)
                             for key in "ab"})


def _gemm_numpy(_: str) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((1024, 1024)).astype(np.float32) for _ in "ab")
    out = np.empty_like(a)
    return lambda: np.matmul(a, b, out=out)


def _conv_ours(_: str) -> Callable[[], object]:
    from lamina.compiler.ir.builder import Builder
    from lamina.compiler.ops import GraphMath

    builder = Builder("conv")
    m = GraphMath(builder)
    # As inside a network: channels innermost, and nothing copied in or out.
    x = m.param(key="x", shape=(8, 56, 56, 64), trainable=False)
    w = m.param(key="w", shape=(64, 64, 3, 3))
    y = m.conv2d(x, w, padding=1, layout="nhwc")
    graph = builder.finish([("y", m.slice(y, starts=(0, 0, 0, 0), stops=(1, 1, 1, 1),
                                          steps=(1, 1, 1, 1)).value)])
    rng = np.random.default_rng(0)
    return _ours(graph, {}, {
        "x": rng.standard_normal((8, 56, 56, 64)).astype(np.float32),
        "w": rng.standard_normal((64, 64, 3, 3)).astype(np.float32)})


def _conv_torch(system: str) -> Callable[[], object]:
    import torch

    torch.set_num_threads(THREADS)
    x, w = torch.randn(8, 64, 56, 56), torch.randn(64, 64, 3, 3)
    if system.endswith("channels-last"):
        x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))

    def forward():
        with torch.inference_mode():
            return torch.nn.functional.conv2d(x, w, padding=1)

    return forward


# --- recurrent networks -------------------------------------------------------------------------

WORDS, WIDTH, SENTENCES, STEPS = 100, 256, 32, 64


def _words() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ids, label = rng.integers(0, WORDS, (2, SENTENCES, STEPS)).astype(np.int32)
    return ids, label


def _recurrent_ours(layers: str) -> Callable[[str], Callable[[], object]]:
    def make(_: str) -> Callable[[], object]:
        from lamina.api import loads, parse_expression
        from lamina.compiler.frontend.build import Objective
        from lamina.compiler.transform.training import Rule, training_step
        from lamina.tests.frontend.test_cells import LSTM

        net = loads(f"{LSTM}\nmodel LM {{\n  input ids: i32[B, T]\n  output logits = ids -> "
                    f"embed({WORDS}, {WIDTH}) -> {layers} -> linear({WORDS})\n}}\n").LM()
        loss = parse_expression("cross_entropy(logits, label, axis=-1)")
        step = training_step(net.build(True, Objective(loss)).graph, Rule("sgd"))
        ids, label = _words()
        return _ours(step, {"ids": ids, "label": label, "lr": np.float32(0.01),
                            "step": np.float32(1)})

    return make


def _recurrent_torch(kind: str) -> Callable[[str], Callable[[], object]]:
    def make(_: str) -> Callable[[], object]:
        import torch
        from torch import nn

        class Cell(nn.Module):
            def __init__(self):
                super().__init__()
                self.both = nn.Linear(2 * WIDTH, 4 * WIDTH)

            def forward(self, x):
                h = c = x.new_zeros(x.shape[0], WIDTH)
                found = []
                for step in range(x.shape[1]):
                    gates = self.both(torch.cat([x[:, step], h], -1))
                    i, f, g, o = gates.chunk(4, -1)
                    c = (f + 1).sigmoid() * c + i.sigmoid() * g.tanh()
                    h = o.sigmoid() * c.tanh()
                    found.append(h)
                return torch.stack(found, 1), None

        torch.set_num_threads(THREADS)
        body = nn.ModuleList([Cell(), Cell()] if kind == "cell" else
                             [getattr(nn, kind)(WIDTH, WIDTH, 2, batch_first=True)])
        table, head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        net = nn.ModuleList([table, body, head])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        ids, label = (torch.tensor(one).long() for one in _words())

        def step():
            optimizer.zero_grad()
            x = table(ids)
            for layer in body:
                x, _ = layer(x)
            loss = nn.functional.cross_entropy(head(x).flatten(0, 1), label.flatten())
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    return make


_MAKERS: dict[tuple[str, str], Callable[[str], Callable[[], object]]] = {
    ("lenet", "ours"): _lenet_ours, ("lenet", "torch"): _lenet_torch,
    ("lenet1", "ours"): _lenet1_ours, ("lenet1", "torch"): _lenet1_torch,
    ("gemm", "ours"): _gemm_ours, ("gemm", "numpy"): _gemm_numpy,
    ("conv", "ours"): _conv_ours, ("conv", "torch"): _conv_torch,
    ("lstm", "ours"): _recurrent_ours(f"lstm({WIDTH}, layers=2)"),
    ("lstm", "torch"): _recurrent_torch("LSTM"),
    ("gru", "ours"): _recurrent_ours(f"gru({WIDTH}, layers=2)"),
    ("gru", "torch"): _recurrent_torch("GRU"),
    ("cell", "ours"): _recurrent_ours(" -> ".join([f"scan LSTM({WIDTH}) over T"] * 2)),
    ("cell", "torch"): _recurrent_torch("cell"),
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        main(sys.argv[1:])
