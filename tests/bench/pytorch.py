"""PyTorch as some of the systems: either layout, and what compiled.py shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from safetensors.numpy import load_file
from torch import nn

from lamina.tests.bench import models
from lamina.tests.bench.systems import Ready, Task


def eager(task: Task) -> Ready:
    """As it comes."""
    return make(task)


def channels_last(task: Task) -> Ready:
    """Weights and inputs with channels innermost."""
    return make(task, last=True)


def make(task: Task, last: bool = False, compiles: bool = False) -> Ready:
    """A module with the weights of the task, checked to be what it is called."""
    torch.set_num_threads(task.threads)
    torch.set_num_interop_threads(1)
    model = models.find(task.model, task.whole)
    net = load_module(model, task).train(task.mode == "train")
    inputs, label = load_tensors(task)
    if last:
        net = net.to(memory_format=torch.channels_last)
        inputs = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    seen = layouts(net, inputs)
    if seen not in (set(), {"channels last" if last else "channels first"}):
        raise RuntimeError(f"the layout is {' and '.join(sorted(seen))}")
    wrap = torch.compile if compiles else lambda function: function
    facts = {"threads": torch.get_num_threads(), "layout": ", ".join(sorted(seen)),
             "compiles": compiles}
    if task.mode == "infer":
        return Ready(_inference(net, wrap(net), inputs), lambda y: y.numpy(), facts)
    assert label is not None
    loss_of = wrap(objective(net, model.classes_last))
    return Ready(_step(net, loss_of, inputs, label, model.rate),
                 lambda loss: torch.tensor(loss).numpy(), facts)


def load_module(model: models.Model, task: Task) -> nn.Module:
    """The module with the weights of the task; dropout drops nothing."""
    net = model.module()
    weights = {key: torch.from_numpy(value)
               for key, value in model.state(load_file(task.folder / models.WEIGHTS)).items()}
    loaded = net.load_state_dict(weights, strict=False)
    missing = [key for key in loaded.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or loaded.unexpected_keys:
        raise RuntimeError(f"weights differ: {missing[:3]} {loaded.unexpected_keys[:3]}")
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


def load_tensors(task: Task) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """The inputs in order and the label; whole numbers are PyTorch's long ones."""
    inputs, label = models.load_inputs(task.folder, task.batch)
    tensors = [torch.from_numpy(value) for value in inputs.values()]
    tensors = [one.long() if one.dtype == torch.int32 else one for one in tensors]
    return tensors, None if label is None else torch.from_numpy(label).long()


def layouts(net: nn.Module, inputs: list[torch.Tensor]) -> set[str]:
    """The layouts of what convolutions take and give, where the two differ; weights included."""
    found: set[str] = set()

    def look(module: nn.Module, given: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
        for one in (*given, y, module.weight):
            first = one.is_contiguous()
            last = one.is_contiguous(memory_format=torch.channels_last)
            if first != last:
                found.add("channels first" if first else "channels last")
            elif not first:
                found.add("neither")

    hooks = [module.register_forward_hook(look) for module in net.modules()
             if isinstance(module, nn.Conv2d)]
    state = {key: value.clone() for key, value in net.named_buffers()}
    with torch.no_grad():
        net(*inputs)
        for key, value in net.named_buffers():
            value.copy_(state[key])  # running statistics are moved in training
    for hook in hooks:
        hook.remove()
    return found


def objective(net: nn.Module, classes_last: bool) -> Callable[..., torch.Tensor]:
    """The loss of a module: the mean cross-entropy."""
    def loss(label: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        scores = net(*inputs)
        if classes_last:
            scores, label = scores.flatten(0, -2), label.flatten()
        return nn.functional.cross_entropy(scores, label)

    return loss


def _inference(net: nn.Module, run: Callable[..., Any], inputs: list[torch.Tensor]
               ) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with torch.inference_mode():
            return run(*inputs)

    assert not any(module.training for module in net.modules())
    with torch.inference_mode():
        assert net(*inputs).is_inference()
    return call


def _step(net: nn.Module, loss: Callable[..., torch.Tensor], inputs: list[torch.Tensor],
          label: torch.Tensor, rate: float) -> Callable[[], float]:
    # `fused` is the fastest of PyTorch's ways to the same update.
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=models.MOMENTUM, fused=True)

    def call() -> float:
        optimizer.zero_grad()
        found = loss(label, *inputs)
        found.backward()
        optimizer.step()
        return found.item()

    assert all(module.training for module in net.modules())
    return call
