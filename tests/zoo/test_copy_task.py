"""The copy task at a size of seconds: gates keep what a plain recurrent network loses."""

import re
from pathlib import Path

import pytest

import lamina
from lamina.commands.gradflow import findings, measure
from lamina.commands.training import run_training
from lamina.compiler.frontend.library import zoo_folder
from lamina.compiler.options import from_environment


@pytest.fixture(scope="module")
def shorter():
    """The zoo's file with 16 steps between a symbol and its answer, and few examples."""
    text = (zoo_folder() / "copy_task.lam").read_text(encoding="utf-8").replace("lag=30", "lag=16")
    text, count = re.subn(r"length=5\) -> shuffle", "length=5, examples=4000) -> shuffle", text)
    assert count == 3
    return lamina.loads(text.replace("examples=2000", "examples=500"))


@pytest.mark.parametrize("name, least, most", [("rnn", 0.15, 0.6), ("lstm", 0.8, 1.0),
                                               ("gru", 0.9, 1.0)])
def test_gates_remember(shorter, tmp_path: Path, name, least, most):
    # The zoo's claim: the same steps teach the LSTM and the GRU, and hardly the plain network.
    result = run_training(shorter.recipe(name, epochs="10"), from_environment(), tmp_path / "run",
                          False, lambda event: None)
    assert least <= result.valid["acc"] <= most


def test_why(shorter):
    # What the failure comes from: at the start the plain network's gradient is gone long before
    # the symbols, the LSTM's whose forget gates are open is not.
    said = {name: findings(measure(shorter.recipe(name), from_environment(), None, 1))
            for name in ("rnn", "lstm")}
    assert "vanishing" in said["rnn"][0]
    assert all("steady" in line for line in said["lstm"][:2])
