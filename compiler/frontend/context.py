"""The state of one build, and the diagnostics that it makes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lamina.compiler.errors import Diagnostic, Label, Note, Sink, Span
from lamina.compiler.frontend.ragged import RaggedMath
from lamina.compiler.frontend.values import (
    BROKEN,
    Definition,
    Initial,
    Origin,
    Scope,
    Tensor,
)
from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Scope as Row
from lamina.compiler.ir.graph import Value
from lamina.compiler.ir.op import Op, OpError
from lamina.compiler.ir.types import TensorType, shape_text
from lamina.compiler.ops.define import REGISTRY, Var

MAX_NODES = 50_000
MAX_ROUNDS = 20_000  # rounds of all repeats of a model together
MAX_DEPTH = 60  # blocks inside blocks


@dataclass(eq=False, slots=True)
class Instance:
    """One instance of a definition: its scope, path and place."""

    definition: Definition
    scope: Scope
    path: str
    parent: Instance | None
    called: Span | None = None
    segments: dict[int, str] = field(default_factory=dict)  # stage -> its path segment
    ties: dict[str, str] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)  # states before the step, in a cell

    @property
    def depth(self) -> int:
        """How many instances enclose this one."""
        return 0 if self.parent is None else self.parent.depth + 1


class Context:
    """Everything that one build of a model shares."""

    def __init__(self, name: str, training: bool, sizes: dict[str, int], sink: Sink):
        self.name, self.training, self.sizes, self.sink = name, training, sizes, sink
        self.builder = Builder(name)
        self.m = RaggedMath(self.builder)
        self.rows: list[Row] = []
        self.spare: dict[int, Row] = {}  # by number, for a row whose result nobody reads
        self.params: dict[str, Tensor] = {}
        self.updates: dict[str, Tensor] = {}
        self.ties: dict[str, tuple[str, Span]] = {}  # parameter path -> the path it shares
        self.rounds = 0
        self.claims: dict[str, Any] = {}  # path -> the stage or call whose layer lives there
        self.requested: set[str] = set()  # the paths that layers asked for
        self.place: Span | None = None  # the user's line while inside the layer library
        self.reported: set[tuple[str, int, int, str]] = set()
        self.evaluating: tuple[str, ...] = ()  # constants on the way to the one being evaluated
        self.circular: set[str] = set()  # constants already reported to need themselves
        self.built: set[Any] = set()  # the nodes of the definitions that were instantiated
        self.segments: dict[int, dict[int, str]] = {}  # of a definition's node, by its id
        self.step: Any = None  # that of the scan which is being built
        self.decoding = False  # whether scans choose their tokens
        self.choosing = False  # whether there is one that does
        self.decoder: Any = None  # the parts of the scan that does
        self.instantiate: Callable[..., Any] = _not_ready
        self.scan: Callable[..., Any] = _not_ready

    # --- diagnostics ----------------------------------------------------------------------------

    def error(self, code: str, message: str, span: Span, instance: Instance | None = None, *,
              labels: Iterable[Label] = (), notes: Iterable[Note] = (),
              help: str | None = None) -> Any:
        """Report an error once per place, whatever the number of instances; gives BROKEN."""
        notes = list(notes)
        if instance is not None and instance.definition.library and self.place is not None:
            # The user's line is at fault, not the library's.
            labels, span = (), self.place
        key = (span.source.name, span.start, span.end, code)
        if key not in self.reported:
            self.reported.add(key)
            path = self.where(instance)
            self.sink.add(Diagnostic(code, message, span, tuple(labels), tuple(notes),
                                     help or None, path))
        return BROKEN

    def where(self, instance: Instance | None) -> str:
        """The instance path for people: Model.stages.0.first."""
        if instance is None or not instance.path:
            return self.name if instance is not None else ""
        return f"{self.name}.{instance.path}"

    def claim(self, path: str, node: Any) -> Any:
        """The other stage or call that has this path already, or None when it is free."""
        holder = self.claims.setdefault(path, node)
        return None if holder is node else holder

    # --- nodes ----------------------------------------------------------------------------------

    @contextmanager
    def at(self, span: Span, instance: Instance):
        """Nodes made inside carry this line (the user's, inside the library) and path."""
        place = self.place if instance.definition.library and self.place else span
        with self.builder.at(place, instance.path):
            yield

    def tensor(self, value: Value, origins: tuple[Origin | None, ...] = ()) -> Tensor:
        """A Tensor for a graph value."""
        return Tensor(value, self.builder.type(value), origins)

    def var(self, tensor: Tensor) -> Var:
        """The tensor as an operand of the math namespace."""
        return Var(self.m, tensor.value)

    def apply(self, op: Op, operands: list[Any], attrs: dict[str, Any], span: Span,
              instance: Instance, spans: Sequence[Span | None] | None = None) -> Any:
        """Apply an operator; its refusal becomes a diagnostic at `span`."""
        if any(operand is BROKEN for operand in operands) or BROKEN in attrs.values():
            return BROKEN
        lifted = [self.var(x) if isinstance(x, Tensor) else x for x in operands]
        if self.builder.count > MAX_NODES:
            return self.error("E901", f"the model has more than {MAX_NODES:,} operators", span,
                              instance, help="make repeats smaller")
        try:
            with self.at(span, instance):
                value = self.m.apply(op, tuple(lifted), attrs).value
        except OpError as error:
            return self.refused(error, op, operands, span, instance, spans or [])
        return self.tensor(value, inherit(self.builder.type(value),
                                          [x for x in operands if isinstance(x, Tensor)]))

    def refused(self, error: OpError, op: Op, operands: list[Any], span: Span,
                instance: Instance, spans: Sequence[Span | None]) -> Any:
        """The diagnostic of an operator's refusal."""
        about_type = error.code in ("E204", "E205")
        labels = [Label(place, str(x.type) if about_type else shape_text(x.shape))
                  for x, place in zip(operands, spans, strict=False)
                  if isinstance(x, Tensor) and place is not None]
        notes = [] if labels else [
            Note(f"operand {index} of `{op.name}` is {x.type}")
            for index, x in enumerate(operands) if isinstance(x, Tensor)]
        message = error.message
        if op.kind == "composite":  # its parts are not what the user wrote
            message = re.sub(r"^`\w+`", f"`{op.name}`", message)
        if instance.definition.library:
            message = re.sub(r"^`\w+`", f"`{instance.definition.name}`", message)
        return self.error(error.code, message, span, instance, labels=labels, notes=notes,
                          help=error.help)

    def declare_lengths(self, type: TensorType, span: Span, instance: Instance) -> bool:
        """Make the inputs with the lengths of an input's ragged sizes; False after reporting."""
        try:
            with self.at(span, instance):
                self.m.declare(type)
        except OpError as error:
            self.error(error.code, error.message, span, instance, help=error.help)
            return False
        return True

    def rng(self, span: Span, instance: Instance) -> Tensor:
        """The (seed, step) input that random operators draw from."""
        attrs = {"name": "rng", "shape": (2,), "dtype": "i32"}
        return self.tensor(self.builder.emit(REGISTRY["input"], (), attrs))

    def parameter(self, key: str, shape: tuple[int, ...], dtype: str, initial: Initial,
                  trainable: bool, span: Span, instance: Instance) -> Any:
        """The parameter of this path: new, or the one made before (shared and tied ones)."""
        self.requested.add(key)
        key = self.tied(key)
        type = TensorType(shape, dtype)
        known = self.params.get(key)
        if known is not None:
            if known.type != type:
                return self.error("E322", f"`{key}` is shared, but its shapes differ: "
                                  f"{known.type} and {type}", span, instance)
            return known
        attrs = {"key": key, "shape": shape, "dtype": dtype,
                 "init": (initial.name, *initial.args), "trainable": trainable}
        with self.at(span, instance):
            value = self.builder.emit(REGISTRY["param"], (), attrs)
        self.params[key] = Tensor(value, type)
        return self.params[key]

    def tied(self, key: str) -> str:
        """The path that holds the parameter of this path, through all ties."""
        while key in self.ties:
            key = self.ties[key][0]
        return key

    def quiet_truth(self, evaluator: Any, condition: Any) -> Any:
        """A condition's truth, or BROKEN where it is not known before the sizes are."""
        sink, reported = self.sink, self.reported
        self.sink, self.reported = Sink(), set()
        try:
            value = evaluator.truth(condition)
            others = [d for d in self.sink.diagnostics if d.code != "E403"]
        finally:
            self.sink, self.reported = sink, reported
        for diagnostic in others:
            self.sink.add(diagnostic)
        return value


def _not_ready(*_: Any) -> Any:
    raise RuntimeError("the front end is not assembled")


def inherit(type: TensorType, operands: list[Tensor]) -> tuple[Origin | None, ...]:
    """Axes of a result that keep the size of an operand's axis keep its origin."""
    found: list[Origin | None] = [None] * type.rank
    for tensor in operands:
        lead = type.rank - len(tensor.shape)
        for axis, origin in enumerate(tensor.origins):
            target = axis + lead if lead >= 0 else axis
            if origin and target < type.rank and tensor.shape[axis] == type.shape[target] and \
                    tensor.shape[axis] != 1 and found[target] is None:
                found[target] = origin
    return tuple(found)
