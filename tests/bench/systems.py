"""The systems that are compared, and what their processes are told and give back."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 3  # of training, after the first, whose losses are compared


@dataclass(frozen=True, slots=True)
class System:
    """One system: `maker` is "module:function", a function of a Task that gives a Ready."""

    name: str
    label: str
    maker: str
    needs: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("train", "infer")

    @property
    def missing(self) -> str:
        """Which of the packages that it needs are not installed."""
        return ", ".join(one for one in self.needs if importlib.util.find_spec(one) is None)


@dataclass(frozen=True, slots=True)
class Task:
    """What a process does: a model in a mode, its files in `folder`, `seconds` of work a round."""

    model: str
    mode: str
    batch: int  # of the inputs
    whole: int  # the model's own, that of the files
    threads: int
    seconds: float
    folder: Path


@dataclass(frozen=True, slots=True)
class Ready:
    """A system that is built: `call` is timed, `value` makes an array of what it returns.

    That is the result of an inference, the loss of a training step. `facts` are told once.
    """

    call: Callable[[], Any]
    value: Callable[[Any], np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)


_HERE = "lamina.tests.bench."
ONNX = ("torch", "onnx", "onnxscript", "onnxruntime")
SYSTEMS = {system.name: system for system in (
    System("ours", "Lamina", _HERE + "ours:make"),
    System("eager", "PyTorch", _HERE + "pytorch:eager", ("torch",)),
    System("channels-last", "PyTorch, channels last", _HERE + "pytorch:channels_last",
           ("torch",)),
    System("compile", "torch.compile", _HERE + "compiled:first", ("torch",)),
    System("compile-channels-last", "torch.compile, channels last", _HERE + "compiled:last",
           ("torch",)),
    System("onnx", "ONNX Runtime", _HERE + "onnx_runtime:make", ONNX, ("infer",)),
    System("numpy", "NumPy", _HERE + "products:make", modes=("infer",)),
)}
# torch.compile in the second layout takes as long again, so it is asked for by name.
USUAL = tuple(name for name in SYSTEMS if name != "compile-channels-last")
