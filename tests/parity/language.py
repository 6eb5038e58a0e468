"""The character model beside PyTorch: `python -m lamina.tests.parity.language [STEPS] [FOLDER]`.

Both start from the same weights and see the batches of the recipe `language#python`, whose data
lie below FOLDER (the current one if not given), at the same learning rates, for STEPS steps (400).
Prints bits per character on held-out text, and how long a step took.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lamina.api import Training, load, make_runner
from lamina.compiler.options import from_environment
from lamina.runtime.data.batches import Batches
from lamina.runtime.data.dataset import open_data
from lamina.runtime.data.feeding import feed
from lamina.runtime.schedule import make_schedule

BOS = 1
PARTS = {"emb.weight": "emb.weight", "low.weight_ih": "rnn.weight_ih_l0",
         "low.weight_hh": "rnn.weight_hh_l0", "low.bias_ih": "rnn.bias_ih_l0",
         "low.bias_hh": "rnn.bias_hh_l0", "high.weight_ih": "rnn.weight_ih_l1",
         "high.weight_hh": "rnn.weight_hh_l1", "high.bias_ih": "rnn.bias_ih_l1",
         "high.bias_hh": "rnn.bias_hh_l1", "out.weight": "out.weight", "out.bias": "out.bias"}
HELD_OUT = 30  # batches


class Twin(nn.Module):
    """The same network: every character sees those before it, the first one the sign BOS."""

    def __init__(self, tokens: int, size: int, hidden: int):
        super().__init__()
        self.emb = nn.Embedding(tokens, size)
        self.rnn = nn.LSTM(size, hidden, 2, batch_first=True)
        self.out = nn.Linear(hidden, tokens)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Logits [B, T, tokens] of text [B, T]."""
        before = torch.cat([torch.full_like(text[:, :1], BOS), text[:, :-1]], 1)
        return self.out(self.rnn(self.emb(before))[0])


def batches(training: Training, folder: Path, part: str):
    """Batches of the recipe's data as the model's inputs, epoch after epoch."""
    job = training.job()
    train = open_data(job.train, folder, job.seed)
    data = train if part == "train" else open_data(job.valid, folder, job.seed, train.vocabularies)
    plan, cut = feed(data, job.inputs), Batches(data, job.batch, True)
    epoch = 0
    while True:
        for batch in cut.epoch(epoch):
            yield {one.key: one.take(batch.arrays) for one in plan}
        epoch += 1


def main(steps: int, folder: Path) -> None:
    """Train both, print what they reach."""
    training = load("language").recipe("python")
    weights = training.initial()
    runner = make_runner(training.step(0), from_environment())
    runner.set_params({key: weights[key] for key in runner.get_params() if key in weights})
    shapes = {name: weights[f"writer.{name}"].shape for name in PARTS}
    twin = Twin(*shapes["emb.weight"], shapes["low.weight_hh"][1])
    twin.load_state_dict({theirs: torch.tensor(weights[f"writer.{ours}"])
                          for ours, theirs in PARTS.items()})
    torch.set_num_threads(from_environment().threads or os.cpu_count() or 1)
    phase = training.job().phases[0]
    schedule = make_schedule(phase.schedule, phase.lr, steps, steps)
    optimizer = torch.optim.Adam(twin.parameters(), lr=phase.lr)
    seconds = [0.0, 0.0]
    for step, inputs in zip(range(steps), batches(training, folder, "train"), strict=False):
        lr = schedule(step)
        start = time.perf_counter()
        runner.run({**inputs, "lr": np.float32(lr), "step": np.float32(step + 1)})
        middle = time.perf_counter()
        optimizer.param_groups[0]["lr"] = lr
        text = torch.tensor(inputs["text"]).long()
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(text).flatten(0, 1), text.flatten()).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), training.recipe.clip)
        optimizer.step()
        seconds[0] += middle - start
        seconds[1] += time.perf_counter() - middle
    trained = runner.get_params()
    check = make_runner(training.evaluation.graph, from_environment())
    check.set_params({key: trained[key] for key in check.get_params()})
    ours, theirs = [], []
    for _, inputs in zip(range(HELD_OUT), batches(training, folder, "valid"), strict=False):
        ours.append(float(check.run(inputs)["loss"]) / math.log(2))
        text = torch.tensor(inputs["text"]).long()
        with torch.no_grad():
            loss = nn.functional.cross_entropy(twin(text).flatten(0, 1), text.flatten())
        theirs.append(float(loss) / math.log(2))
    a, b = np.mean(ours), np.mean(theirs)
    print(f"after {steps} steps, bits per held-out character: ours {a:.4f}, PyTorch {b:.4f} "
          f"({a / b - 1:+.2%}); seconds a step: {seconds[0] / steps:.3f} and "
          f"{seconds[1] / steps:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400,
         Path(sys.argv[2]) if len(sys.argv) > 2 else Path())
