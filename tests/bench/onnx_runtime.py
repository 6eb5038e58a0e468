"""ONNX Runtime as one of the systems; PyTorch writes its file in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime

from lamina.tests.bench import models
from lamina.tests.bench.systems import Ready, Task


def make(task: Task) -> Ready:
    """A session of the exported module."""
    start = time.perf_counter()
    file = task.folder / f"model-{task.batch}.onnx"
    written = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps({**asdict(task), "folder": str(task.folder)}),
         str(file)], capture_output=True, text=True)
    if written.returncode:
        reason = written.stderr.strip().splitlines() or ["no reason given"]
        raise RuntimeError(f"the export failed: {reason[-1]}")
    exported = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = task.threads, 1
    session = onnxruntime.InferenceSession(str(file), options,
                                           providers=["CPUExecutionProvider"])
    loaded = time.perf_counter()
    inputs, _ = models.load_inputs(task.folder, task.batch)
    fed = {name: value.astype(np.int64) if value.dtype == np.int32 else value
           for name, value in inputs.items()}
    (result,) = [one.name for one in session.get_outputs()]
    return Ready(lambda: session.run([result], fed), lambda found: found[0],
                 {"threads": options.intra_op_num_threads, "export_s": exported - start,
                  "compile_s": loaded - exported})


def export(task: Task, file: Path) -> None:
    """Write the evaluation of the PyTorch module for inputs of these sizes."""
    import torch

    from lamina.tests.bench.pytorch import load_module, load_tensors

    net = load_module(models.find(task.model, task.whole), task).eval()
    names = list(models.load_inputs(task.folder, task.batch)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, tuple(load_tensors(task)[0]), str(file), dynamo=True,
                          input_names=names, verbose=False)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    export(Task(**{**given, "folder": Path(given["folder"])}), Path(sys.argv[2]))
