"""Runs one template on NumPy arrays: buffers by argument name in, buffers by name out."""

import numpy as np

from lamina.runtime.cpu.executor import Executor
from lamina.runtime.program import Buffer, Kernel, Program, Step

NAMES = {
    np.dtype(np.float32): "f32",
    np.dtype(np.int32): "i32",
    np.dtype(np.int64): "i64",
    np.dtype(np.bool_): "bool",
    np.dtype(np.uint8): "bool",
    np.dtype(np.float64): "f64",
}


def run(calls, inputs, outputs, cache_folder, threads=1, check=True):
    """Run (template, {argument: buffer name, (buffer name, bytes behind its start), or int}).

    `inputs`: name to array; `outputs`: name to (dtype, shape), all returned. The name "scratch"
    stands for the template's scratch memory.
    """
    buffers, index = [], {}
    for name, array in inputs.items():
        index[name] = len(buffers)
        buffers.append(Buffer("input", name, NAMES[array.dtype], array.shape))
    for name, (dtype, shape) in outputs.items():
        index[name] = len(buffers)
        buffers.append(Buffer("output", name, dtype, tuple(shape)))
    kernels, steps = [], []
    for number, (template, values) in enumerate(calls):
        if template.scratch:
            values = {**values, "scratch": f"scratch{number}"}
            index[f"scratch{number}"] = len(buffers)
            buffers.append(
                Buffer("temp", "", "f32", ("$threads", template.scratch), first=number, last=number)
            )
        kernels.append(Kernel(f"k{number}", template.source))
        kernel = len(kernels) - 1
        if template.finish:
            values = {**values, "claim": values["y0"],
                      **{f"fetch{i}": values[name] for i, name in enumerate(template.fetch)}}
            values |= {f"apart{i}": values.get(f"space_{name}", values["N"])
                       for i, name in enumerate(template.fetch) if "apart0" in template.arguments}
            kernels.append(Kernel(f"f{number}", template.finish))
        args = tuple(
            ("kernel", len(kernels) - 1) if a == "finish" else
            ("buffer", index[values[a]]) if isinstance(values[a], str) else
            ("place", (index[values[a][0]], values[a][1])) if isinstance(values[a], tuple) else
            ("size", int(values[a]))
            for a in template.arguments
        )
        steps.append(Step(kernel, args, 1 << 40))
    program = Program("cpu", tuple(buffers), tuple(kernels), tuple(steps))
    executor = Executor(program, threads, cache_folder, check_memory=check)
    try:
        return executor.run(inputs)
    finally:
        executor.close()
