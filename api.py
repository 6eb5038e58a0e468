"""The Python interface: load a file, build a model, compile it, differentiate it, train it.

    file = lamina.load("zoo/lenet5.lam")
    net = file.LeNet5(classes=10)
    weights = net.init(seed=0)
    run = net.compile(target="cpu")
    logits = run(weights, image=x)["logits"]
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lamina.compiler.errors import Sink, Source
from lamina.compiler.frontend import recipe as recipes
from lamina.compiler.frontend.build import (
    LABELLED,
    Build,
    Objective,
    build,
    find_model,
    settings_call,
)
from lamina.compiler.frontend.decoding import CHOSEN, DECODED, FINAL
from lamina.compiler.frontend.library import (
    Module,
    find_file,
    load_path,
    load_text,
    zoo_folder,
)
from lamina.compiler.frontend.values import Definition
from lamina.compiler.inspect.cost import Summary, summarize
from lamina.compiler.ir.graph import Graph, Node
from lamina.compiler.ir.text import format_graph
from lamina.compiler.ir.types import NUMPY_TYPES, TensorType, to_size
from lamina.compiler.lower.program import lower
from lamina.compiler.ops.initial import initialize
from lamina.compiler.ops.losses import ERRORS
from lamina.compiler.options import (
    TARGETS,
    Every,
    Measured,
    Options,
    check_every,
    from_environment,
)
from lamina.compiler.reference import Interpreter, bind
from lamina.compiler.syntax import ast
from lamina.compiler.transform.autodiff import add_gradients
from lamina.compiler.transform.pipeline import Stage, graph_before, optional, run_passes
from lamina.compiler.transform.recompute import recompute
from lamina.compiler.transform.training import Rule, trainable, training_step
from lamina.compiler.transform.winograd import TUNED, followed
from lamina.runtime import program as program_format
from lamina.runtime.cache import Cache, default_folder
from lamina.runtime.cpu.executor import Executor
from lamina.runtime.cpu.host import vector_width
from lamina.runtime.data.dataset import Input
from lamina.runtime.data.stage import Stage as DataStage
from lamina.runtime.decoding import Parts, Policy, decode
from lamina.runtime.detection import OUTPUTS
from lamina.runtime.job import Job, Keep
from lamina.runtime.job import Phase as JobPhase
from lamina.runtime.padding import LENGTHS, pad_inputs
from lamina.runtime.program import Program
from lamina.runtime.programs import program_key, remembered

Runner = Executor | Interpreter


def load(path: str | Path) -> File:
    """The models of a file, given by path or by its name in the zoo. Raises CompileError."""
    return File(load_path(find_file(str(path))))


def loads(text: str) -> File:
    """The models of a source text. Raises CompileError; TypeError for what is no text."""
    if not isinstance(text, str):
        raise TypeError(f"a model is a text, not {type(text).__name__}")
    return File(load_text(text))


def version() -> str:
    """The version of this package."""
    try:
        return metadata.version("lamina")
    except metadata.PackageNotFoundError:
        return "0.0"


def compile_graph(graph: Graph, skip: frozenset[str] = frozenset(),
                  measured: Measured | None = None) -> Program:
    """The CPU Program of a graph."""
    stages = run_passes(graph, skip=skip, measured=measured)
    before = graph_before(stages, "winograd")
    meta = {TUNED: followed(before, measured)} if measured and before else {}
    return lower(stages[-1].graph, vector_width(), meta)


def make_runner(graph: Graph, options: Options) -> Runner:
    """What runs a graph: the CPU executor, or the NumPy interpreter."""
    if options.target == "numpy":
        return Interpreter(graph)
    if options.target != "cpu":
        raise ValueError(f"no target is named {options.target!r}; targets: {', '.join(TARGETS)}")
    kept = Cache.open(options.cache_folder or default_folder(os.environ))
    program = remembered(kept, program_name(graph, options), lambda: compile_graph(
        graph, optional(options.skip), options.measured))
    return Executor(program, options.threads, kept, building=options.building)


def program_name(graph: Graph, options: Options) -> str:
    """The name under which the Program of a graph is kept: everything that it depends on."""
    measured = json.dumps(asdict(options.measured), sort_keys=True) if options.measured else ""
    return program_key((compiler_text(), format_graph(graph, lines=True), str(vector_width()),
                        " ".join(sorted(optional(options.skip))), measured))


@cache
def compiler_text() -> str:
    """What a Program depends on besides its graph: the text of the compiler."""
    files = [*(Path(__file__).parent / "compiler").rglob("*.py"), Path(program_format.__file__)]
    return "\0".join([version(), *(path.read_text("utf-8") for path in sorted(files))])


class File:
    """A loaded file: its models are attributes that are called with their settings."""

    def __init__(self, module: Module):
        self.module = module

    def __repr__(self) -> str:
        recipes = f"; recipes: {', '.join(self.recipes)}" if self.recipes else ""
        return f"<File with models: {', '.join(self.models)}{recipes}>"

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models in order."""
        return tuple(self.module.models)

    @property
    def recipes(self) -> tuple[str, ...]:
        """Names of the recipes in order."""
        return tuple(self.module.recipes)

    def model(self, name: str | None = None, /, **settings: Any) -> Net:
        """A model by name (the first without), with settings. Raises CompileError."""
        definition = find_model(self.module, name)
        return Net(self.module, definition, settings_call(definition.name, settings))

    def recipe(self, name: str | None = None, /, **overrides: str) -> Training:
        """A recipe by name, with overrides as text: `recipe("digits", lr="0.1")`."""
        found = recipes.find_recipe(self.module, name)
        return Training(self.module, recipes.read_recipe(self.module, found, overrides))

    def __getattr__(self, name: str) -> Callable[..., Net]:
        if name.startswith("_") or name not in self.module.models:
            listed = ", ".join(self.models) or "none"
            raise AttributeError(f"no model is named {name}; models here: {listed}")

        def make(**settings: Any) -> Net:
            return self.model(name, **settings)

        make.__name__ = make.__qualname__ = name
        return make

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.models]


class Net:
    """A model with its settings. Nothing is computed before `compile`."""

    def __init__(self, module: Module, definition: Definition, call: ast.Call | None = None,
                 sizes: Mapping[str, int] | None = None):
        self.module, self.definition, self.call = module, definition, call
        self.sizes = dict(sizes or {})

    def __repr__(self) -> str:
        return f"<{self.graph.name}: {_signature(self.inputs)} -> {_signature(self.outputs)}>"

    def build(self, training: bool = False, objective: Objective | None = None) -> Build:
        """The model as a graph, with a loss and metrics if asked for. Raises CompileError."""
        return build(self.module, self.definition, self.call, training=training, sizes=self.sizes,
                     objective=objective)

    @cached_property
    def _build(self) -> Build:
        return self.build()

    @property
    def graph(self) -> Graph:
        """The checked graph before any pass, as used for evaluation."""
        return self._build.graph

    @property
    def inputs(self) -> dict[str, TensorType]:
        """Inputs by name."""
        return {name: self.graph.type(value) for name, value in self.graph.inputs.items()}

    @property
    def fed(self) -> tuple[Input, ...]:
        """The inputs as the runtime feeds them: those that a user gives."""
        return tuple(_input(self.graph, name) for name in self.inputs if name != "rng")

    @property
    def outputs(self) -> dict[str, TensorType]:
        """Outputs by name."""
        return {name: self.graph.type(value) for name, value in self.graph.outputs}

    @property
    def parameters(self) -> dict[str, TensorType]:
        """Parameters and running statistics by path."""
        return {key: self.graph.type(value) for key, value in self.graph.params.items()}

    @property
    def detects(self) -> bool:
        """Whether there are outputs boxes [B, N, 4], scores [B, N] and labels [B, N]."""
        if not set(OUTPUTS) <= set(self.outputs):
            return False
        boxes, scores, labels = (self.outputs[name].shape for name in OUTPUTS)
        return scores == labels and boxes == (*scores, 4)

    def summary(self) -> Summary:
        """The layer table with exact parameters, multiply-accumulates and receptive fields."""
        return summarize(self.graph)

    def init(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Initial values by path: parameters and running statistics, float32.

        A parameter's values depend on the seed and its path alone. Raises ValueError for a seed
        that is not a whole number from 0.
        """
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"a seed is a whole number from 0, not {seed!r}")
        return initial_values(self.graph, seed)

    def stages(self, train: bool = False) -> list[Stage]:
        """The graph after every pass; for `train`, of forward and backward."""
        return run_passes(self.build(train).graph)

    def compile(self, target: str = "cpu", train: bool = False, threads: int | None = None) -> Run:
        """A function of weights and inputs: `run(weights, image=x)` gives the outputs by name.

        `train` chooses what dropout and batch-norm compute. Raises ValueError for a bad target.
        """
        return Run(self.build(train).graph, _options(target, threads))

    @property
    def chooses(self) -> bool:
        """Whether a scan of the model chooses tokens, so that it can be decoded."""
        return self._build.chooses

    @cached_property
    def _decoding(self) -> Build:
        return build(self.module, self.definition, self.call, sizes=self.sizes, decoding=True)

    def decoder(self, target: str = "cpu", threads: int | None = None) -> Decoding:
        """A function of weights and inputs that chooses the tokens itself, step by step.

        `decode(weights, src=[[4, 8, 2]], policy=Policy("beam"))`. Raises ValueError for a model
        without `choose`.
        """
        return self.decoding(_options(target, threads))

    def decoding(self, options: Options) -> Decoding:
        """The same with all options."""
        if not self.chooses:
            raise ValueError(f"{self.definition.name} has no scan that uses `choose`")
        return Decoding(self._decoding, options)

    def value_and_grad(self, loss: str, target: str = "cpu", threads: int | None = None,
                       train: bool = True, checkpoint_every: Every = None) -> Gradient:
        """A function that gives the loss and its gradient by every trained parameter.

        `loss` is an expression over outputs and targets: "cross_entropy(logits, label)". It is
        called with weights, inputs and targets: `grad(weights, image=x, label=y)`.
        `checkpoint_every` N keeps the result of every N-th layer and computes the rest again:
        less memory for up to a forward pass more work. Raises ValueError for a bad number.
        """
        check_every(checkpoint_every)
        made = self.build(train, Objective(parse_expression(loss)))
        wrt = {key: made.graph.params[key] for key in trainable(made.graph)}
        graph = recompute(add_gradients(made.graph, "loss", wrt), checkpoint_every)
        limits = index_limits(made.graph)  # differentiation takes the losses apart
        return Gradient(graph, tuple(wrt), limits, _options(target, threads))


def parse_expression(text: str) -> Any:
    """The syntax tree of an expression. Raises CompileError."""
    return recipes.parse_within(text, Source("<expression>", text))


def initial_values(graph: Graph, seed: int) -> dict[str, np.ndarray]:
    """The initial value of every parameter of a graph, by key."""
    values = {}
    for key, value in graph.params.items():
        node = graph.node(value)
        name, *args = node.attributes["init"]
        values[key] = initialize(name, args, node.type.shape, seed, key)
    return values


def _options(target: str, threads: int | None) -> Options:
    options = from_environment()
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    return replace(options, target=target, threads=threads or options.threads)


class Run:
    """A compiled graph: called with weights by path and inputs by name."""

    def __init__(self, graph: Graph, options: Options):
        self.graph = graph
        self.runner = make_runner(graph, options)
        self.limits = index_limits(graph)
        self.shapes = {name: _sizes(graph.type(value)) for name, value in graph.inputs.items()}

    def __call__(self, weights: Mapping[str, np.ndarray], **inputs: Any) -> dict[str, np.ndarray]:
        """Outputs by name. Raises ValueError or KeyError for what does not fit.

        An input with a size `S~` may be a list of arrays of different lengths; a padded array
        takes its lengths as the input "S~", and without counts as a whole.
        """
        self.take(weights)
        return self.run(inputs)

    def take(self, weights: Mapping[str, np.ndarray]) -> None:
        """Use these weights from now on. Raises KeyError and ValueError for what does not fit."""
        _require_weights(self.graph, weights)
        self.runner.set_params({key: weights[key] for key in self.graph.params})

    def run(self, inputs: Mapping[str, Any], bindings: Mapping[str, int] | None = None
            ) -> dict[str, np.ndarray]:
        """Outputs by name with the weights taken last; `bindings` are sizes that no input tells."""
        typed = pad_inputs(self.shapes, inputs)
        _require_inputs(self.graph, typed)
        typed = {name: _as_index(name, value, self.graph, self.limits.get(name, 0))
                 for name, value in typed.items()}
        outputs = self.runner.run(typed, bindings)
        return {name: value for name, value in outputs.items() if not name.startswith("update:")}


def _require_weights(graph: Graph, weights: Mapping[str, np.ndarray]) -> None:
    missing = [key for key in graph.params if key not in weights]
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise KeyError(f"weights are missing: {', '.join(missing[:4])}{more}")


def _require_inputs(graph: Graph, inputs: Mapping[str, np.ndarray]) -> None:
    """KeyError for a missing or unknown input, ValueError for the wrong kind of number."""
    for name in inputs:
        if name not in graph.inputs:
            raise KeyError(f"no input is named {name!r}; inputs: {', '.join(graph.inputs)}")
    for name, value in graph.inputs.items():
        type = graph.type(value)
        if name not in inputs:
            how = ": random numbers need a seed, rng=np.array([seed, step], np.int32)" \
                if name == "rng" else ""
            raise KeyError(f"input {name!r}, {type}, is missing{how}")
        kind = "f" if type.dtype.startswith("f") else "biu"
        if inputs[name].dtype.kind not in kind:
            wanted = "float32" if kind == "f" else "int32"
            raise ValueError(f"input {name!r} must be {wanted}, not {inputs[name].dtype}; "
                             f"convert it: np.asarray({name}, np.{wanted})")


def _as_index(name: str, value: np.ndarray, graph: Graph, limit: int) -> np.ndarray:
    """Whole numbers in the input's own type. Raises ValueError for one outside the table."""
    dtype = graph.type(graph.inputs[name]).dtype
    if dtype not in ("i32", "i64") or name == "rng" or not value.size:
        return value
    least, most = value.min(), value.max()
    high = limit - 1 if limit else np.iinfo(NUMPY_TYPES[dtype]).max
    low = 0 if limit else np.iinfo(NUMPY_TYPES[dtype]).min
    if least < low or most > high:
        wrong = least if least < low else most
        raise ValueError(f"input {name!r} holds {wrong}; its values run from {low} to {high}")
    return value.astype(NUMPY_TYPES[dtype], copy=False)


class Gradient(Run):
    """A compiled loss with gradients."""

    def __init__(self, graph: Graph, keys: tuple[str, ...], limits: Mapping[str, int],
                 options: Options):
        super().__init__(graph, options)
        self.keys, self.limits = keys, limits

    def __call__(self, weights: Mapping[str, np.ndarray], **inputs: Any):  # type: ignore[override]
        """(loss, gradients by path)."""
        outputs = super().__call__(weights, **inputs)
        return outputs["loss"], {key: outputs[f"grad:{key}"] for key in self.keys}


class Decoding:
    """A compiled decoding scan: what comes before it, its step, and what comes after."""

    def __init__(self, made: Build, options: Options):
        decoder = made.decoder
        assert decoder is not None
        self.decoder = decoder
        self.first, self.step, self.last = (
            Run(graph, options) for graph in (decoder.first, decoder.step, made.graph))
        self.rest = Run(decoder.rest, options) if decoder.rest is not None else None

    @property
    def inputs(self) -> dict[str, TensorType]:
        """What is to be given, by name: without the tokens that are chosen."""
        runs = (self.first, self.last)
        found = {name: run.graph.type(value) for run in runs
                 for name, value in run.graph.inputs.items()}
        own = (DECODED, FINAL)
        return {name: type for name, type in found.items()
                if not name.startswith(own) and name != self.decoder.length + LENGTHS}

    def __call__(self, weights: Mapping[str, np.ndarray], policy: Policy = Policy(),  # noqa: B008
                 limit: int = 0, prompt: Sequence[Sequence[int]] = (),
                 numbers: Sequence[int] = (), **inputs: Any) -> dict[str, np.ndarray]:
        """Outputs by name, "chosen" (tokens [B, steps]), "lengths" (steps of each example) and
        "score" (log-probability).

        `limit` is a number of steps in place of the scan's own, `prompt` the tokens that each
        example begins with, `numbers` (0, 1 ... without) those of the examples, by which sampling
        draws. Raises ValueError or KeyError for what does not fit.
        """
        for run in (self.first, self.step, self.rest, self.last):
            if run is not None:
                run.take(weights)
        parts, known = self.decoder, self.inputs
        for name in inputs:
            if name not in known:
                raise KeyError(f"no input is named {name!r}; inputs: {', '.join(known) or 'none'}")
        padded = pad_inputs({name: _sizes(type) for name, type in known.items()}, inputs)
        count = next((len(value) for name, value in padded.items() if name != "rng"),
                     len(prompt) or 1)
        first = self.first.run({name: padded[name] for name in self.first.graph.inputs
                                if name in padded}, {parts.batch: count} if parts.batch else None)
        # The sizes of the inputs, which those of what a step reads do not all tell.
        sizes = bind({name: known[name] for name in padded}, padded)
        sizes = {name: size for name, size in sizes.items() if name != parts.batch}
        step = partial(self.step.run, bindings=sizes)
        rest = partial(self.rest.run, bindings=sizes) if self.rest else None
        found = decode(Parts(step, rest, parts.read, parts.states, parts.outputs, parts.axes,
                             parts.stop, parts.repeated, parts.limit),
                       first, count, policy, limit, prompt, numbers)
        given = {DECODED + key: value for key, value in found.outputs.items()}
        given |= {FINAL + key: value for key, value in found.finals.items()}
        given |= {parts.length + LENGTHS: found.lengths, **padded}
        given = {name: value for name, value in given.items() if name in self.last.graph.inputs}
        outputs = self.last.run(given, sizes)
        return {**outputs, CHOSEN: found.tokens, "lengths": found.lengths, "score": found.scores}


# --- recipes ------------------------------------------------------------------------------------


class Training:
    """A recipe made ready: its model, graphs and the job for the runtime."""

    def __init__(self, module: Module, recipe: recipes.Recipe):
        self.module, self.recipe = module, recipe
        self.net = Net(module, recipe.model, recipe.call)

    @cached_property
    def forward(self) -> Build:
        """The training graph: model, loss and metrics, before differentiation."""
        return self.net.build(True, self.recipe.objective)

    @cached_property
    def evaluation(self) -> Build:
        """The evaluation graph: model, loss and metrics with dropout off."""
        return self.net.build(False, self.recipe.objective)

    def step(self, phase: int, checkpoint_every: Every = None) -> Graph:
        """The training step of a phase; `checkpoint_every` as in `value_and_grad`."""
        chosen = self.recipe.phases[phase]
        settings = {name: value for name, value in chosen.optimizer.kwargs if name != "lr"}
        rule = Rule(chosen.optimizer.name, settings, self.recipe.clip)
        step = training_step(self.forward.graph, rule, self.frozen(phase))
        return recompute(step, checkpoint_every)

    def frozen(self, phase: int) -> set[str]:
        """The keys that a phase does not train. Raises CompileError for a pattern of nothing."""
        rules = [rule for one in self.recipe.phases[:phase + 1] for rule in one.rules]
        sink = Sink()
        found = recipes.frozen_keys(rules, trainable(self.forward.graph), sink)
        sink.raise_if_any()
        return found

    def initial(self) -> dict[str, np.ndarray]:
        """Initial parameters and running statistics."""
        return initial_values(self.evaluation.graph, self.recipe.seed)

    def facts(self) -> dict[str, str]:
        """Everything that the trained bits depend on, besides the data's files, by name."""
        recipe = self.recipe
        text = format_graph(self.forward.graph)
        facts = {"model": hashlib.sha256(text.encode()).hexdigest(), "seed": str(recipe.seed),
                 "batch": str(recipe.batch), "clip": str(recipe.clip)}
        for index, phase in enumerate(recipe.phases):
            name = f"{phase.name}." if len(recipe.phases) > 1 else ""
            frozen = ", ".join(sorted(self.frozen(index)))
            facts |= {f"{name}epochs": str(phase.epochs), f"{name}frozen": frozen,
                      f"{name}optimizer": _written(phase.optimizer)}
            if phase.schedule is not None:
                facts[f"{name}schedule"] = _written(phase.schedule)
        for name, calls in recipe.data.items():
            facts[f"data {name}"] = " -> ".join(map(_written, calls))
        return facts

    @property
    def scores_classes(self) -> bool:
        """Whether the model's first output is compared with labels: class scores [B, classes]."""
        graph, names = self.evaluation.graph, self.evaluation.outputs
        value = dict(graph.outputs).get(names[0]) if names else None
        if value is None or graph.type(value).rank != 2:
            return False
        return any(node.op.name in LABELLED and node.inputs[0] == value
                   and node.attributes["axis"] in (1, -1) for node in graph.users(value.node))

    @property
    def scores_positions(self) -> str:
        """The target whose classes the first output [B, S, classes] scores at every position."""
        graph, made = self.evaluation.graph, self.evaluation
        value = dict(graph.outputs).get(made.outputs[0]) if made.outputs else None
        if value is None or graph.type(value).rank != 3:
            return ""
        *places, classes = graph.type(value).shape
        for name in graph.inputs:
            if name not in made.inputs and _classes(graph, name) == classes \
                    and graph.type(graph.inputs[name]).shape == tuple(places):
                return name
        return ""

    def job(self) -> Job:
        """The recipe as plain data for the runtime."""
        recipe, graph = self.recipe, self.forward.graph
        rng = "rng" in graph.inputs
        phases = tuple(JobPhase(p.name, p.epochs, float(p.optimizer.settings.get("lr", 0.0)),
                                _data_stage(p.schedule) if p.schedule else None, rng)
                       for p in recipe.phases)
        smaller = recipe.keep in ("loss", *self.errors)
        keep = Keep("best", recipe.keep, not smaller) if recipe.keep else Keep()
        return Job(
            model=recipe.model.name, recipe=recipe.name, train=_pipeline(recipe, "train"),
            inputs=tuple(self._inputs()), batch=recipe.batch, phases=phases,
            valid=_pipeline(recipe, "valid"), seed=recipe.seed,
            metrics=tuple(recipe.objective.metrics), keep=keep, facts=tuple(self.facts().items()),
            folder=str(_data_folder(self.module)), version=version(), truth=self._truth(),
            weigh=self._weigh())

    @property
    def errors(self) -> tuple[str, ...]:
        """The metrics that are errors: no shares, and the smaller the better."""
        return tuple(name for name, expression in self.recipe.objective.metrics.items()
                     if set(_names(expression)) & set(ERRORS))

    def _weigh(self) -> str:
        """The input of lengths along the ragged size of what the loss compares, if it does that.

        Figures are means over its tokens.
        """
        graph = self.forward.graph
        values = {**graph.inputs, **dict(graph.outputs)}
        named = [values[name] for name in _names(self.recipe.objective.loss) if name in values]
        sizes = [f"{size}{LENGTHS}" for value in named for size in _sizes(graph.type(value))]
        return next((size for size in sizes if size in graph.inputs), "")

    def _truth(self) -> tuple[str, str] | None:
        """The targets that hold a detector's true boxes [B, M, 4] and their kinds [B, M]."""
        if not self.net.detects:
            return None
        graph = self.forward.graph
        types = {name: graph.type(graph.inputs[name]) for name in self.forward.targets}
        pairs = [(boxes, kinds) for boxes, one in types.items() for kinds, other in types.items()
                 if one.shape == (*other.shape, 4) and other.rank == 2 and other.dtype == "i32"]
        return pairs[0] if len(pairs) == 1 else None

    def _inputs(self) -> list[Input]:
        graph = self.forward.graph
        names = [*self.forward.inputs, *self.forward.targets]
        names += [name for name in graph.inputs if name not in (*names, "rng")]
        return [_input(graph, name) for name in names]


def _names(expression: Any) -> list[str]:
    """The names in an expression, in order."""
    if isinstance(expression, ast.Name):
        return [expression.id]
    parts = expression if isinstance(expression, tuple) else \
        ast.parts(expression) if ast.is_node(expression) else ()
    return [name for part in parts for name in _names(part)]


def _data_folder(module: Module) -> Path:
    """Where relative paths of a recipe start: its file's folder.

    A recipe that ships with Lamina reads the user's data, from the current folder.
    """
    return Path() if module.folder in (None, zoo_folder()) else module.folder


def _written(call: recipes.Call) -> str:
    """A call as one would write it."""
    words = [repr(arg) for arg in call.args]
    words += [f"{name}={value!r}" for name, value in call.settings.items()]
    return f"{call.name}({', '.join(words)})"


def _input(graph: Graph, name: str) -> Input:
    type = graph.type(graph.inputs[name])
    shape = _sizes(type)
    limit = _classes(graph, name) if type.dtype in ("i32", "i64") else 0
    return Input(name, type.dtype, shape, limit)


def _sizes(type: TensorType) -> tuple[int | str, ...]:
    """A shape as plain data: numbers and names."""
    return tuple(size if isinstance(size, (int, str)) else str(size)
                 for size in map(to_size, type.shape))


def index_limits(graph: Graph) -> dict[str, int]:
    """How many values each integer input may take, where the graph says."""
    return {name: limit for name in graph.inputs if (limit := _classes(graph, name))}


def _signature(types: Mapping[str, TensorType]) -> str:
    return ", ".join(f"{name}: {type}" for name, type in types.items())


def _classes(graph: Graph, name: str) -> int:
    """How many values an integer input may take: the classes of the logits it is compared with."""
    for node in graph.users(graph.inputs[name].node):
        if node.op.name in LABELLED:
            logits = graph.type(node.inputs[0])
            size = logits.shape[node.attributes["axis"] % logits.rank]
            return size if isinstance(size, int) else 0
        if node.op.name == "take" and graph.node(node.inputs[1]).id == graph.inputs[name].node:
            size = graph.type(node.inputs[0]).shape[0]
            return size if isinstance(size, int) else 0
        if node.op.name == "expand_dims" and (count := _compared(graph, node)):
            return count
    return 0


def _compared(graph: Graph, label: Node) -> int:
    """The classes with whose numbers a label is compared, where sizes are ragged; 0 for none."""
    for node in graph.users(label):
        others = [graph.node(one) for one in node.inputs if node.op.name == "equal"]
        for other in others:
            size = other.type.shape[other.attributes["axis"]] if other.op.name == "iota" else 0
            if isinstance(size, int) and size:
                return size
    return 0


def _pipeline(recipe: recipes.Recipe, name: str) -> tuple[DataStage, ...]:
    return tuple(_data_stage(call) for call in recipe.data.get(name, ()))


def _data_stage(call: recipes.Call) -> DataStage:
    return DataStage(call.name, call.args, call.kwargs, call.line)
