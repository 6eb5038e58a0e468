"""Recipes: everything about training, as plain data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from lamina.compiler.errors import CompileError, Diagnostic, Sink, Source, Span
from lamina.compiler.frontend.build import Objective, bind_constants, literal
from lamina.compiler.frontend.context import Context, Instance
from lamina.compiler.frontend.evaluate import Evaluator
from lamina.compiler.frontend.library import CONSTANTS, Module, did_you_mean
from lamina.compiler.frontend.values import BROKEN, Definition, describe, is_static
from lamina.compiler.ops.optim import OPTIMIZERS
from lamina.compiler.syntax import ast
from lamina.compiler.syntax.parse import parse

SCHEDULES = ("constant", "cosine", "linear", "step")
SETTINGS = ("loss", "optimizer", "schedule", "batch", "epochs", "seed", "keep", "clip")
PHASE_SETTINGS = ("optimizer", "schedule", "epochs")
RULE_SETTINGS = frozenset(name for rule in OPTIMIZERS.values() for name in rule.attrs)
NUMBERS = {"batch": ("a whole number", "32"), "epochs": ("a whole number", "10"),
           "seed": ("a whole number", "1"), "clip": ("a number", "1.0")}
COMMAND_LINE = "the command line"


@dataclass(frozen=True, slots=True)
class Call:
    """A call written in a recipe, evaluated: `sgd(lr=0.05)`, `pad(2)`."""

    name: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    span: Span

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments by name."""
        return dict(self.kwargs)

    @property
    def line(self) -> int:
        """The line of the file that it stands in; 0 if it comes from the command line."""
        return 0 if self.span.source.name == COMMAND_LINE else self.span.line


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training. `rules` freeze and unfreeze, in order, on top of earlier phases."""

    name: str
    epochs: int
    optimizer: Call
    schedule: Call | None
    rules: tuple[ast.Freeze | ast.Unfreeze, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """A checked recipe. `data` holds pipelines by name, `keep` the metric to keep the best of."""

    name: str
    model: Definition
    call: ast.Call
    objective: Objective
    data: Mapping[str, tuple[Call, ...]]
    phases: tuple[Phase, ...]
    batch: int
    seed: int
    keep: str
    clip: float
    weights: tuple[ast.Weights, ...]
    span: Span


def find_recipe(module: Module, name: str | None) -> ast.Recipe:
    """The recipe of this name, of this model, or the only one. Raises CompileError."""
    if name is None and module.recipes:
        return next(iter(module.recipes.values()))
    if name in module.recipes:
        return module.recipes[name]
    for recipe in module.recipes.values():
        if isinstance(recipe.model.func, ast.Name) and recipe.model.func.id == name:
            return recipe
    model = name if name in module.models else None
    message = f"the model `{model}` has no recipe" if model else \
        f"no recipe is named `{name}`" if name else "this file has no recipe"
    help = _first_recipe(module, model) if model or not module.recipes else \
        did_you_mean(name or "", module.recipes) or f"recipes here: {', '.join(module.recipes)}"
    raise CompileError(Diagnostic("E505", message, Span(module.file.source, 0, 0), help=help))


def _first_recipe(module: Module, model: str | None) -> str:
    """How to write a recipe for a model; without one for the file's first."""
    model = model or next(iter(module.models), "Model")
    return (f'add one below the model: `recipe first for {model} {{ data train = mnist("train") '
            "-> shuffle; target label: i32[B]; loss = cross_entropy(OUTPUT, label); "
            "optimizer = sgd(lr=0.1) }` (lamina explain E505)")


def read_recipe(module: Module, recipe: ast.Recipe, overrides: Mapping[str, str] | None = None
                ) -> Recipe:
    """Check a recipe and evaluate it. Raises CompileError with every diagnostic found.

    `overrides` maps a setting, an optimizer's setting or a model's setting to new text.
    """
    found, problems = examine_recipe(module, recipe, overrides)
    if problems:
        raise CompileError(*problems)
    return found


def examine_recipe(module: Module, recipe: ast.Recipe, overrides: Mapping[str, str] | None = None
                   ) -> tuple[Recipe, tuple[Diagnostic, ...]]:
    """A recipe as far as it can be read, and what is wrong with it.

    A call that cannot be evaluated has the name "". Raises CompileError without a known model.
    """
    reader = _Reader(module, recipe)
    return reader.read(dict(overrides or {})), reader.sink.diagnostics


class _Reader:
    """Reads one recipe."""

    def __init__(self, module: Module, recipe: ast.Recipe):
        self.module, self.recipe = module, recipe
        self.sink = Sink()
        for diagnostic in module.sink.diagnostics:
            self.sink.add(diagnostic)
        self.ctx = Context(recipe.name.id, True, {}, self.sink)
        bind_constants(self.ctx, module)
        dummy = ast.Block(recipe.name, (), (), recipe.span)
        instance = Instance(Definition("block", dummy, module.scope), module.scope, "", None)
        self.ev = Evaluator(self.ctx, instance, module.scope)
        self.settings: dict[str, ast.Setting] = {}

    def read(self, overrides: dict[str, str]) -> Recipe:
        model, call = self._model()
        for item in self.recipe.body:
            if isinstance(item, ast.Setting):
                self._keep_setting(item)
        self._apply_settings(overrides)
        phases = self._phase_overrides(overrides)
        optimizer = self._optimizer(self.settings.get("optimizer"), None)
        call, optimizer = self._apply_others(overrides, model, call, optimizer)
        return Recipe(
            self.recipe.name.id, model, call, self._objective(), self._data(),
            self._phases(optimizer, phases), self._whole("batch", 32, 1),
            self._whole("seed", 0, 0), self._keep(), self._number("clip", 0.0), tuple(
                item for item in self.recipe.body if isinstance(item, ast.Weights)),
            self.recipe.name.span)

    def error(self, code: str, message: str, span: Span, help: str | None = None) -> Any:
        self.sink.error(code, message, span, help=help)
        return BROKEN

    # --- parts ----------------------------------------------------------------------------------

    def _model(self) -> tuple[Definition, ast.Call]:
        name = self.recipe.model.func
        assert isinstance(name, ast.Name)
        binding = self.module.scope.find(name.id)
        value = binding.value if binding else None
        if not isinstance(value, Definition) or value.kind != "model":
            self.error("E415", f"no model is named `{name.id}`", name.span,
                       did_you_mean(name.id, self.module.models) or
                       f"models here: {', '.join(self.module.models) or 'none'}")
            self.sink.raise_if_any()
        assert isinstance(value, Definition)
        return value, self.recipe.model

    def _keep_setting(self, item: ast.Setting) -> None:
        name = item.name.id
        if name not in SETTINGS:
            self.error("E502", f"a recipe has no setting `{name}`", item.name.span,
                       did_you_mean(name, SETTINGS) or f"settings: {', '.join(SETTINGS)}")
        elif name in self.settings:
            self.error("E120", f"`{name}` is given twice", item.name.span)
        else:
            self.settings[name] = item

    def _apply_settings(self, overrides: dict[str, str]) -> None:
        """Settings of the recipe itself that the command line replaces."""
        phases = [item for item in self.recipe.body if isinstance(item, ast.Phase)]
        for name in [name for name in overrides if name in SETTINGS]:
            self.settings[name] = given = override(name, overrides.pop(name))
            if name in NUMBERS:
                self._require_number(given, *NUMBERS[name])
            if phases and all(_own(phase, name) for phase in phases):
                self.error("E502", f"every phase has its own `{name}`", given.name.span,
                           f"name the phase: -o {phases[0].name.id}.{name}=...")

    def _phase_overrides(self, overrides: dict[str, str]) -> dict[str, dict[str, str]]:
        """Overrides such as `head.lr=1e-3` by phase."""
        names = [item.name.id for item in self.recipe.body if isinstance(item, ast.Phase)]
        found: dict[str, dict[str, str]] = {}
        for key in [key for key in overrides if key.partition(".")[0] in names]:
            phase, _, name = key.partition(".")
            found.setdefault(phase, {})[name] = overrides.pop(key)
        return found

    def _apply_others(self, overrides: dict[str, str], model: Definition, call: ast.Call,
                      optimizer: Call | None) -> tuple[ast.Call, Call | None]:
        """Overrides of the optimizer's or the model's settings."""
        rule = OPTIMIZERS.get(optimizer.name) if optimizer else None
        params = [parameter.name.id for parameter in model.node.params]
        for name, text in overrides.items():
            given = override(name, text)
            if rule is not None and optimizer is not None and name in rule.attrs:
                optimizer = self._with_setting(optimizer, given)
            elif name in params:
                check_override(self.module, model, given)
                word = ast.Keyword(given.name, given.value, given.span)
                kept = tuple(w for w in call.kwargs if w.name.id != name)
                call = replace(call, kwargs=(*kept, word))
            else:
                self._unknown_override(given, [*SETTINGS, *(rule.attrs if rule else ()), *params])
        return call, optimizer

    def _require_number(self, given: ast.Setting, what: str, example: str) -> None:
        """Raise CompileError for a word in place of a number that no constant explains."""
        problem = no_number(given, self.module, what, example)
        if problem is not None:
            raise CompileError(problem)

    def _unknown_override(self, given: ast.Setting, known: list[str]) -> None:
        name = given.name.id
        phases = [item.name.id for item in self.recipe.body if isinstance(item, ast.Phase)]
        help = did_you_mean(name, known) or f"settings: {', '.join(known)}"
        if phases and name in RULE_SETTINGS:
            help = f"name the phase: -o {phases[0]}.{name}=..."
        self.error("E502", f"there is no setting `{name}` to override", given.name.span, help)

    def _with_setting(self, optimizer: Call, given: ast.Setting) -> Call:
        """An optimizer with one setting replaced."""
        if given.name.id != "betas":
            self._require_number(given, "a number", "0.01")
        value = self._static(given.value, "E503")
        if value is BROKEN:
            return optimizer
        self._check_setting(optimizer.name, given.name.id, value, given.value.span)
        return replace(optimizer, kwargs=tuple({**optimizer.settings,
                                                given.name.id: value}.items()))

    def _objective(self) -> Objective:
        loss = self.settings.get("loss")
        if loss is None:
            self.error("E504", "a recipe needs a loss", self.recipe.name.span,
                       "write `loss = cross_entropy(logits, label)`")
        metrics = {item.name.id: item.value for item in self.recipe.body
                   if isinstance(item, ast.Metric)}
        targets = {item.name.id: item for item in self.recipe.body if isinstance(item, ast.Target)}
        return Objective(loss.value if loss else None, metrics, targets)

    def _data(self) -> dict[str, tuple[Call, ...]]:
        found = {}
        for item in self.recipe.body:
            if not isinstance(item, ast.Data):
                continue
            if item.name.id not in ("train", "valid"):
                self.error("E502", f"data is `train` or `valid`, not `{item.name.id}`",
                           item.name.span, did_you_mean(item.name.id, ("train", "valid")))
            flow = item.value
            parts = [flow] if not isinstance(flow, ast.Flow) else \
                [flow.source, *(stage.body for stage in flow.stages)]
            calls = [self._call(part) for part in parts]
            found[item.name.id] = tuple(call or Call("", (), (), item.span) for call in calls)
        if "train" not in found:
            self.error("E504", "a recipe needs data to train on", self.recipe.name.span,
                       'write `data train = mnist("train") -> shuffle`')
        return found

    def _phases(self, optimizer: Call | None, overrides: Mapping[str, Mapping[str, str]]
                ) -> tuple[Phase, ...]:
        schedule = self._schedule(self.settings.get("schedule"))
        written = [item for item in self.recipe.body if isinstance(item, ast.Phase)]
        rules = tuple(item for item in self.recipe.body
                      if isinstance(item, (ast.Freeze, ast.Unfreeze)))
        if not written:
            if optimizer is None:
                if "optimizer" not in self.settings:
                    self.error("E504", "a recipe needs an optimizer", self.recipe.name.span,
                               "write `optimizer = sgd(lr=0.1)`")
                optimizer = Call("sgd", (), (("lr", 0.0),), self.recipe.name.span)
            return (Phase("train", self._whole("epochs", 1, 1), optimizer, schedule, rules),)
        return tuple(self._phase(item, optimizer, schedule, rules if index == 0 else (),
                                 overrides.get(item.name.id, {}))
                     for index, item in enumerate(written))

    def _phase(self, item: ast.Phase, optimizer: Call | None, schedule: Call | None,
               rules: tuple, overrides: Mapping[str, str]) -> Phase:
        own, more = self._phase_settings(item)
        own |= {name: override(name, text) for name, text in overrides.items()
                if name in PHASE_SETTINGS}
        chosen = self._optimizer(own.get("optimizer"), optimizer)
        if chosen is None:
            if "optimizer" not in own and "optimizer" not in self.settings:
                self.error("E504", f"phase `{item.name.id}` needs an optimizer", item.name.span,
                           "write `optimizer = sgd(lr=0.1)`")
            chosen = Call("sgd", (), (("lr", 0.0),), item.span)
        known = OPTIMIZERS[chosen.name].attrs if chosen.name in OPTIMIZERS else ()
        for name in [name for name in overrides if name not in PHASE_SETTINGS]:
            given = override(name, overrides[name])
            if name in known:
                chosen = self._with_setting(chosen, given)
            else:
                self._unknown_override(given, [*PHASE_SETTINGS, *known])
        epochs = self._whole_of(own.get("epochs"), self._whole("epochs", 1, 1), 1)
        return Phase(item.name.id, epochs, chosen, self._schedule(own["schedule"])
                     if "schedule" in own else schedule, (*rules, *more))

    def _phase_settings(self, item: ast.Phase) -> tuple[dict[str, ast.Setting], tuple]:
        """A phase's own settings by name, and its rules to freeze and unfreeze."""
        own: dict[str, ast.Setting] = {}
        rules: tuple = ()
        for part in item.body:
            if isinstance(part, ast.Setting):
                if part.name.id not in PHASE_SETTINGS:
                    self.error("E502", f"a phase has no setting `{part.name.id}`", part.name.span,
                               did_you_mean(part.name.id, PHASE_SETTINGS) or
                               f"settings: {', '.join(PHASE_SETTINGS)}")
                own[part.name.id] = part
            else:
                rules = (*rules, part)
        return own, rules

    def _optimizer(self, item: ast.Setting | None, default: Call | None) -> Call | None:
        if item is None:
            return default
        call = self._evaluated(item.value)
        if call is None:
            return default
        rule = OPTIMIZERS.get(call.name)
        if rule is None:
            self.error("E503", f"no optimizer is named `{call.name}`", call.span,
                       did_you_mean(call.name, OPTIMIZERS) or
                       f"optimizers: {', '.join(OPTIMIZERS)}")
            return default
        words = dict(zip(rule.attrs, call.args, strict=False)) | call.settings
        places = _places(item.value, tuple(rule.attrs))
        for name, value in words.items():
            if value is not BROKEN:
                self._check_setting(call.name, name, value, places[name])
        if "lr" not in words:
            self.error("E503", f"`{call.name}` needs a learning rate", call.span,
                       f"write `{call.name}(lr=0.01)`")
        if any(value is BROKEN for value in words.values()):
            return default
        return replace(call, args=(), kwargs=tuple(words.items()))

    def _check_setting(self, optimizer: str, name: str, value: Any, span: Span) -> None:
        known = OPTIMIZERS[optimizer].attrs
        if name not in known:
            self.error("E503", f"`{optimizer}` has no setting `{name}`", span,
                       did_you_mean(name, known) or f"settings: {', '.join(known)}")
        elif name == "betas":
            if not (isinstance(value, (list, tuple)) and len(value) == 2 and
                    all(_is_number(beta) and 0 <= beta < 1 for beta in value)):
                self.error("E503", "`betas` must be two numbers from 0 to below 1, not "
                           f"{describe(value)}", span)
        elif not isinstance(value, (int, float)):
            self.error("E503", f"`{name}` must be a number, not {describe(value)}", span)
        elif not 0 <= value < math.inf:
            self.error("E503", f"`{name}` must be at least 0 and finite, not "
                       f"{describe(value)}", span)

    def _schedule(self, item: ast.Setting | None) -> Call | None:
        if item is None:
            return None
        call = self._call(item.value)
        if call is not None and call.name not in SCHEDULES:
            self.error("E503", f"no schedule is named `{call.name}`", call.span,
                       did_you_mean(call.name, SCHEDULES) or
                       f"schedules: {', '.join(SCHEDULES)}")
        return call

    def _keep(self) -> str:
        item = self.settings.get("keep")
        if item is None:
            return ""
        call = item.value
        metrics = [m.name.id for m in self.recipe.body if isinstance(m, ast.Metric)]
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and \
                call.func.id == "best" and len(call.args) == 1 and \
                isinstance(call.args[0], ast.Name):
            name = call.args[0].id
            if name in (*metrics, "loss"):
                return name
            self.error("E503", f"`keep` names no metric: `{name}`", call.args[0].span,
                       did_you_mean(name, (*metrics, "loss")) or
                       f"metrics: {', '.join(metrics) or 'none'}")
        elif not (isinstance(call, ast.Name) and call.id == "last"):
            self.error("E503", "`keep` is `best(METRIC)` or `last`", call.span)
        return ""

    # --- values ---------------------------------------------------------------------------------

    def _whole(self, name: str, default: int, least: int) -> int:
        return self._whole_of(self.settings.get(name), default, least)

    def _whole_of(self, item: ast.Setting | None, default: int, least: int) -> int:
        if item is None:
            return default
        value = self._static(item.value, "E503")
        if value is BROKEN:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.error("E503", f"`{item.name.id}` must be a whole number of at least {least}, "
                       f"not {describe(value)}", item.value.span)
            return default
        return value

    def _number(self, name: str, default: float) -> float:
        item = self.settings.get(name)
        value = default if item is None else self._static(item.value, "E503")
        if value is BROKEN:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            assert item is not None
            self.error("E503", f"`{name}` must be a number of at least 0, not {describe(value)}",
                       item.value.span)
            return default
        return float(value)

    def _static(self, expr: Any, code: str) -> Any:
        value = self.ev.eval(expr)
        if value is not BROKEN and not is_static(value):
            return self.error(code, f"this must be a number, a text or a list, not "
                              f"{describe(value)}", expr.span)
        return value

    def _call(self, expr: Any) -> Call | None:
        """A call whose arguments are all known."""
        call = self._evaluated(expr)
        if call is None or any(v is BROKEN for v in (*call.args, *call.settings.values())):
            return None
        return call

    def _evaluated(self, expr: Any) -> Call | None:
        """A call by its name; a bare name is a call without arguments."""
        if isinstance(expr, ast.Name):
            return Call(expr.id, (), (), expr.span)
        if not (isinstance(expr, ast.Call) and isinstance(expr.func, ast.Name)):
            self.error("E503", "a call such as `name(1, key=2)` is expected here", expr.span)
            return None
        args = tuple(self._static(arg, "E503") for arg in expr.args)
        words = tuple((w.name.id, self._static(w.value, "E503")) for w in expr.kwargs)
        return Call(expr.func.id, args, words, expr.span)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _places(expr: Any, names: tuple[str, ...]) -> dict[str, Span]:
    """Where each setting of an optimizer's call stands."""
    if not isinstance(expr, ast.Call):
        return {}
    places = {name: arg.span for name, arg in zip(names, expr.args, strict=False)}
    return places | {word.name.id: word.span for word in expr.kwargs}


def _own(phase: ast.Phase, name: str) -> bool:
    """Whether a phase gives a setting itself."""
    return any(isinstance(part, ast.Setting) and part.name.id == name for part in phase.body)


def override(name: str, text: str) -> ast.Setting:
    """An override as the setting that it replaces; its name's span is the key."""
    value = parse_value(name, text)
    key = Span(value.span.source, 0, len(name))
    return ast.Setting(ast.Name(name, key), value, value.span)


def no_number(given: ast.Setting, module: Module, what: str, example: str) -> Diagnostic | None:
    """What is wrong with an override that is a word, where a number is wanted.

    Operators and functions are no near names of it: only a constant of the file can be meant.
    """
    word = given.value.operand if isinstance(given.value, ast.Unary) else given.value
    if not isinstance(word, ast.Name) or word.id in module.scope.names or word.id in CONSTANTS:
        return None
    name = given.name.id
    return Diagnostic("E503", f"{name} must be {what}, as in {name}={example}", word.span)


def check_override(module: Module, model: Definition, given: ast.Setting) -> None:
    """Raise CompileError for a word where a model's setting is a number."""
    for parameter in model.node.params:
        kind = parameter.annotation
        if parameter.name.id == given.name.id and isinstance(kind, ast.NamedType) and \
                kind.name in ("int", "float"):
            what, example = ("a whole number", "10") if kind.name == "int" else ("a number", "0.1")
            problem = no_number(given, module, what, example)
            if problem is not None:
                raise CompileError(problem)


def parse_value(name: str, text: str) -> Any:
    """The expression of an override given as text. Raises CompileError.

    A word that is no expression (a path, say) is a text: `folder=data/train`.
    """
    written = text
    if re.fullmatch(r"(?:[A-Za-z_/~]|\.\.?/)[\w./~-]*", text) and re.search(r"[./~-]", text):
        written = literal(text)
    return parse_within(written, Source(COMMAND_LINE, f"{name}={text}"), len(name) + 1)


def parse_within(text: str, shown: Source, at: int = 0) -> Any:
    """The expression `text`, its spans from offset `at` of `shown`. Raises CompileError."""
    head = "const given = "
    shift = at - len(head)
    try:
        file = parse(Source("<given>", head + text))
    except CompileError as error:
        raise CompileError(*(_moved(d, shown, shift) for d in error.diagnostics)) from None
    declaration = file.declarations[0]
    if len(file.declarations) != 1 or not isinstance(declaration, ast.Const):
        raise CompileError(Diagnostic("E503", f"`{text}` is not one value",
                                      Span(shown, at, len(shown.text))))
    return _moved(declaration.value, shown, shift)


def _moved(node: Any, source: Source, shift: int) -> Any:
    """A node or diagnostic whose spans lie in `source`, `shift` characters further on."""
    if isinstance(node, Span):
        last = len(source.text)
        return Span(source, *(min(max(0, at + shift), last) for at in (node.start, node.end)))
    if isinstance(node, tuple):
        return tuple(_moved(item, source, shift) for item in node)
    if not is_dataclass(node) or isinstance(node, type):
        return node
    return replace(node, **{f.name: _moved(getattr(node, f.name), source, shift)
                            for f in fields(node) if f.init})


def frozen_keys(rules: Iterable[ast.Freeze | ast.Unfreeze], keys: Iterable[str],
                sink: Sink | None = None) -> set[str]:
    """Which parameter keys are frozen after all rules. A pattern that matches none is E506."""
    keys = list(keys)
    frozen: set[str] = set()
    for rule in rules:
        chosen = set()
        for pattern in rule.patterns:
            matched = {key for key in keys if matches(pattern.value, key)}
            if not matched and sink is not None:
                sink.error("E506", f'no parameter matches "{pattern.value}"', pattern.span,
                           help="`*` stands for one part of a path, `**` for any number")
            chosen |= matched
        for pattern in rule.exceptions:
            chosen -= {key for key in keys if matches(pattern.value, key)}
        frozen = frozen | chosen if isinstance(rule, ast.Freeze) else frozen - chosen
    return frozen


def matches(pattern: str, key: str) -> bool:
    """Whether a path pattern fits a key: `*` is within one part, `**` any number of parts."""
    parts = re.split(r"(\*\*|\*)", pattern)
    written = "".join({"**": ".*", "*": "[^.]*"}.get(part, re.escape(part)) for part in parts)
    return re.fullmatch(written, key) is not None
