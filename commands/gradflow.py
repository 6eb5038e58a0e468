"""`lamina gradflow`: how the loss's gradient flows back through time and through the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lamina.api import Training, make_runner
from lamina.commands.tables import Column, print_table
from lamina.commands.training import (
    initial_weights,
    read_state,
    read_weights,
    weights_file,
)
from lamina.compiler.frontend.build import build
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.types import FLOATS, TensorType, product, substitute, symbols_of
from lamina.compiler.options import Options
from lamina.compiler.reference import bind
from lamina.compiler.syntax import ast
from lamina.compiler.transform.probes import (
    ACTIVATION,
    ALL,
    GRADIENT,
    LAST,
    LOSS,
    SLOPE,
    WEIGHT,
    Probe,
    flow_graph,
)
from lamina.runtime.data import feed, open_data
from lamina.runtime.data.batches import Batches
from lamina.runtime.padding import LENGTHS
from lamina.runtime.session import Runner, give

GONE = 1e-3  # a gradient that has shrunk to this share, or grown to its inverse
WEAK = 1e-2  # over all steps together: below it a gradient vanishes, above its inverse it explodes
FEWEST = 5  # layers from which a trend is told
NAMED = 4  # layers that a sentence names


Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class StateFlow:
    """Norms of the loss's gradient by a state, from its value after the last step back in time.

    `last` is the part that passes through the last step alone, `all` the whole gradient.
    """

    scan: str
    cell: str
    state: str
    last: tuple[float, ...]
    all: tuple[float, ...]

    @property
    def name(self) -> str:
        """The scan's path and the state's name."""
        return f"{self.scan} {self.state}".strip()


@dataclass(frozen=True, slots=True)
class LayerFlow:
    """Root mean squares of a layer's result and of the loss's gradient by it, and its norm.

    `used`: whether the loss depends on it; `parameters`: how many it has.
    """

    path: str
    op: str
    activation: float
    gradient: float
    norm: float
    used: bool
    parameters: int


@dataclass(frozen=True, slots=True)
class ParameterFlow:
    """Root mean squares of a parameter and of the loss's gradient by it."""

    key: str
    value: float
    gradient: float


@dataclass(frozen=True, slots=True)
class Flow:
    """What was measured on `batches` batches of `batch` examples; figures are their means."""

    model: str
    recipe: str
    batches: int
    batch: int
    loss: float
    states: tuple[StateFlow, ...]
    layers: tuple[LayerFlow, ...]
    parameters: tuple[ParameterFlow, ...]


# --- measuring ----------------------------------------------------------------------------------


def measure(training: Training, options: Options, weights: Path | None, count: int) -> Flow:
    """The flow on the first `count` batches of a recipe's training data, dropout included.

    `weights` is a run's folder or a file; None: the initial weights. Raises CompileError and
    Failure (data, checkpoints).
    """
    params = initial_weights(training) if weights is None else \
        read_weights(training.initial(), weights)
    graph = training.forward.graph
    rows = [row for row in training.net.summary().layers if row.path and not row.only_bytes]
    results = {scope.path: scope.result for scope in reversed(graph.scopes)}
    layers = {row.path: results[row.path] for row in rows
              if row.path in results and graph.type(results[row.path]).dtype in FLOATS}
    flowing, probes = flow_graph(graph, layers)
    batches = _batches(training, flowing, weights, count)
    runner = make_runner(flowing, options)
    give(runner, runner.get_params(), params, "the weights")
    runs = [(_run(runner, flowing, inputs), inputs) for inputs in batches]
    types = {kind + name: graph.type(value) for name, value in layers.items()
             for kind in (ACTIVATION, GRADIENT)}
    types |= {kind + key: graph.type(value) for key, value in graph.params.items()
              for kind in (WEIGHT, SLOPE)}
    figures = {name: _over_batches(name, types.get(name), flowing, runs)
               for name, value in flowing.outputs if flowing.type(value).rank == 0}
    loss = graph.output(LOSS).node
    found = tuple(LayerFlow(
        row.path, row.op, figures[ACTIVATION + row.path], figures[GRADIENT + row.path],
        _over_batches(GRADIENT + row.path, None, flowing, runs),
        loss in graph.reachable(layers[row.path]), row.parameters)
        for row in rows if row.path in layers)
    parameters = tuple(ParameterFlow(key, figures[WEIGHT + key], figures[SLOPE + key])
                       for key in graph.params if WEIGHT + key in figures)
    names = _state_names(training)
    states = tuple(_state_flow(probe, runs, names) for probe in probes)
    return Flow(training.recipe.model.name, training.recipe.name, len(batches),
                training.recipe.batch, figures[LOSS], states, found, parameters)


def _over_batches(name: str, type: TensorType | None, graph: Graph,
                  runs: Sequence[tuple[Arrays, Arrays]]) -> float:
    """The mean of a figure; of a tensor's norm, with its type, the mean of root mean squares."""
    found = []
    for outputs, inputs in runs:
        count = 1 if type is None else substitute(product(type.shape), _sizes(graph, inputs))
        found.append(float(outputs[name]) / math.sqrt(max(1, int(count))))
    return sum(found) / len(found)


def _batches(training: Training, graph: Graph, weights: Path | None, count: int
             ) -> list[dict[str, np.ndarray]]:
    """The inputs of the first batches; texts are coded as for the run, random numbers drawn so."""
    job = training.job()
    state = read_state(weights_file(weights)) if weights else None
    data = open_data(job.train, Path(job.folder), job.seed, state.vocabularies if state else None)
    plan = feed(data, job.inputs)
    found = []
    for batch in islice(Batches(data, job.batch, drop_last=True).epoch(0), count):
        inputs = {one.key: one.take(batch.arrays) for one in plan}
        if "rng" in graph.inputs:
            inputs["rng"] = np.array([job.seed & 0x7FFFFFFF, batch.position + 1], np.int32)
        found.append(inputs)
    return found


def _sizes(graph: Graph, inputs: Arrays) -> dict[str, int]:
    return bind({name: graph.type(graph.inputs[name]) for name in inputs}, inputs)


def _run(runner: Runner, graph: Graph, inputs: Arrays) -> dict[str, np.ndarray]:
    """One batch, with zeros for the probes."""
    sizes = _sizes(graph, inputs)
    zeros = {name: np.zeros([substitute(size, sizes) for size in graph.type(value).shape],
                            np.float32)
             for name, value in graph.inputs.items() if name not in inputs}
    return runner.run({**inputs, **zeros})


def _state_flow(probe: Probe, runs: Sequence[tuple[Arrays, Arrays]],
                names: Mapping[str, tuple[str, ...]]) -> StateFlow:
    """Means over batches, outputs and inputs of each, as far back as each batch goes."""
    last, whole = (tuple(_mean([_back(probe, found[kind + probe.name], inputs)
                                for found, inputs in runs]).tolist()) for kind in (LAST, ALL))
    return StateFlow(probe.path, probe.cell, _state_name(probe, names), last, whole)


def _state_name(probe: Probe, names: Mapping[str, tuple[str, ...]]) -> str:
    """A state's name; of a cell within the cell after its path, as in `lstm.h`."""
    own = names.get(probe.cell, ())
    if len(own) == len(probe.makers):
        return own[probe.state]
    maker = probe.makers[probe.state]
    place, count = probe.makers[:probe.state].count(maker), probe.makers.count(maker)
    inner = {found for cell, found in names.items() if cell != probe.cell}
    fitting = [own] if not maker else [found for found in inner if len(found) == count]
    known = fitting[0] if len(fitting) == 1 and len(fitting[0]) == count else ()
    name = known[place] if known else f"state {place + 1}"
    return f"{maker}.{name}" if maker else name


def _back(probe: Probe, norms: np.ndarray, inputs: Arrays) -> np.ndarray:
    """Norms over the steps back in time; of [steps, examples] from each example's own last one.

    Where only some examples have so many steps, their mean square stands for that of all.
    """
    order = 1 if probe.backwards else -1
    if norms.ndim == 1:
        return norms[::order].astype(np.float64)
    name = next(one.name for one in symbols_of(probe.type.shape[0]) if one.ragged)
    rows = [norms[:substitute(probe.type.shape[0], {name: int(count)}), example][::order]
            for example, count in enumerate(inputs[name + LENGTHS])]
    return _mean([np.square(row, dtype=np.float64) for row in rows], len(rows)) ** 0.5


def _mean(rows: Sequence[np.ndarray], times: int = 1) -> np.ndarray:
    """The mean of rows of different lengths at every place, over those that have it."""
    longest = max(map(len, rows))
    total, count = np.zeros(longest), np.zeros(longest)
    for row in rows:
        total[:len(row)] += row
        count[:len(row)] += 1
    return total / count * times


def _state_names(training: Training) -> dict[str, tuple[str, ...]]:
    """The states of each cell of a name of its own, in order."""
    built: set[Any] = set()
    build(training.module, training.recipe.model, training.recipe.call, built=built)
    cells = [node for node in built if isinstance(node, ast.Cell)]
    names = [cell.name.id for cell in cells]
    return {cell.name.id: tuple(s.name.id for s in cell.body if isinstance(s, ast.State))
            for cell in cells if names.count(cell.name.id) == 1}


# --- what it means ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trend:
    """How norms change from one to the next: by `factor`, fitted to all that are not zero.

    `verdict`: vanishing, exploding or steady. `until`: after how many steps the norm is 1/1000 of
    the first (or 1000 times): `seen` in the norms, or by the factor; None where steady.
    """

    verdict: str
    factor: float
    until: int | None = None
    seen: bool = False


def trend(norms: Sequence[float]) -> Trend | None:
    """The trend of norms, the nearest to the loss first; None where fewer than two are not zero."""
    points = [(step, math.log(norm)) for step, norm in enumerate(norms)
              if norm > 0 and math.isfinite(norm)]
    if len(points) < 2:
        return None
    steps, logs = np.array(points).T
    slope = float(np.polyfit(steps, logs, 1)[0])
    factor = math.exp(slope)
    whole = math.exp(min(700.0, slope * (len(norms) - 1)))
    if WEAK <= whole <= 1 / WEAK:
        return Trend("steady", factor)
    far = [step for step, norm in enumerate(norms)
           if norm <= norms[0] * GONE or norm >= norms[0] / GONE]
    until = far[0] if far else math.ceil(abs(math.log(GONE) / slope))
    return Trend("vanishing" if slope < 0 else "exploding", factor, until, bool(far))


def findings(flow: Flow) -> list[str]:
    """What the figures say, a sentence each."""
    return [*(f"{state.name}: {_of_state(state)}" for state in flow.states), *_of_layers(flow)]


def _of_state(state: StateFlow) -> str:
    if not any(state.all):
        return "no gradient at any step"
    if not any(state.last):
        nearest = next(step for step, norm in enumerate(state.all) if norm)
        return f"none from its last step: the loss reads it {nearest} steps before"
    found = trend(state.last)
    if found is None:
        return "the gradient reaches the last step alone"
    return _told(found, "step", len(state.last))


def _told(found: Trend, one: str, count: int) -> str:
    """A trend in words."""
    text = f"{found.verdict}, a factor of {found.factor:.2f} a {one}"
    if found.until is None:
        return f"{text}, {found.factor ** (count - 1):.2g} over {count}"
    share = "1/1000" if found.verdict == "vanishing" else "1000 times as large"
    return f"{text}, {share} after {'' if found.seen else 'about '}{found.until} {one}s"


def _of_layers(flow: Flow) -> list[str]:
    lines = []
    dead = [row.path for row in flow.layers if row.used and row.gradient == 0]
    unused = [row.path for row in flow.layers if not row.used]
    if dead:
        lines.append(f"dead, no gradient at all: {_some(dead)}")
    if unused:
        lines.append(f"not used by the loss: {_some(unused)}")
    norms = [row.norm for row in reversed(flow.layers)
             if row.parameters and row.used and row.gradient]
    found = trend(norms) if len(norms) >= FEWEST else None
    if found is not None:
        lines.append(f"layers, from the last to the first: {_told(found, 'layer', len(norms))}")
    return lines


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


# --- output -------------------------------------------------------------------------------------


def print_flow(console: Console, flow: Flow) -> None:
    """The tables of states, layers and parameters, and what they say."""
    if flow.states:
        _print_states(console, flow.states)
        console.print()
    print_table(console, f"{flow.model}: root mean squares", [
        Column("layer", tuple(row.path for row in flow.layers), folds=True),
        Column("op", tuple(row.op for row in flow.layers)),
        Column("activation", tuple(_number(row.activation) for row in flow.layers), True),
        Column("gradient", tuple(_number(row.gradient) for row in flow.layers), True)])
    console.print()
    print_table(console, "", [
        Column("parameter", tuple(row.key for row in flow.parameters), folds=True),
        Column("value", tuple(_number(row.value) for row in flow.parameters), True),
        Column("gradient", tuple(_number(row.gradient) for row in flow.parameters), True)])
    console.print()
    for line in findings(flow):
        console.print(line, highlight=False, markup=False)
    batches = f"{flow.batches} batch{'' if flow.batches == 1 else 'es'} of {flow.batch}"
    console.print(f"loss {flow.loss:.4g} of {batches}", highlight=False, markup=False)


def _print_states(console: Console, states: Sequence[StateFlow]) -> None:
    """A row for each state, and one more where more than the last step sends a gradient."""
    longest = max(len(state.all) for state in states)
    shown = [0, *(2 ** n for n in range(longest.bit_length()) if 2 ** n < longest - 1)]
    shown += [longest - 1] * (longest > 1)
    rows = [(state.name, state.last) for state in states]
    for at, state in reversed(list(enumerate(states))):
        if not np.allclose(state.all, state.last, rtol=1e-3, atol=0):
            rows.insert(at + 1, (f"{state.name}, of all steps", state.all))
    columns = [Column("steps back", tuple(name for name, _ in rows), folds=True)]
    for step in shown:
        cells = (_number(norms[step]) if step < len(norms) else "" for _, norms in rows)
        columns.append(Column(str(step), tuple(cells), True))
    print_table(console, "norm of the loss's gradient by a state, through its last step", columns)


def _number(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def flow_json(flow: Flow) -> dict[str, Any]:
    """Everything as plain data, norms from the last step back in time."""
    return {
        "model": flow.model, "recipe": flow.recipe, "batches": flow.batches, "batch": flow.batch,
        "loss": flow.loss,
        "states": [{"scan": state.scan, "cell": state.cell, "state": state.state,
                    "last": list(state.last), "all": list(state.all),
                    **_trend_json(trend(state.last))} for state in flow.states],
        "layers": [{"path": row.path, "op": row.op, "activation": row.activation,
                    "gradient": row.gradient, "used": row.used} for row in flow.layers],
        "parameters": [{"key": row.key, "value": row.value, "gradient": row.gradient}
                       for row in flow.parameters],
        "findings": findings(flow)}


def _trend_json(found: Trend | None) -> dict[str, Any]:
    if found is None:
        return {"verdict": None, "factor": None, "until": None}
    return {"verdict": found.verdict, "factor": found.factor, "until": found.until}
