"""Lowering's state: buffers, steps and where each value lies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.types import TensorType, symbols_of, to_size
from lamina.compiler.lower import views
from lamina.compiler.lower.emit_cpu import emit_loops
from lamina.compiler.lower.kernel_text import Emitted
from lamina.compiler.lower.loops import LoopProgram, build_loops
from lamina.compiler.lower.moves import why_copied, why_filled
from lamina.compiler.lower.reductions import (
    chunk_count,
    emit_combine,
    kept_size,
    partial_size,
)
from lamina.compiler.lower.views import View
from lamina.compiler.ops.define import REGISTRY
from lamina.runtime.program import FORWARD, Buffer, Kernel, Loop, Size, Step

PARTIAL = "partial sums"  # what a buffer of them is called


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step comes from, for people; `part` of a training step as in Step."""

    label: str
    line: int
    part: str = FORWARD


class Lowering:
    """Collects buffers and steps while walking a graph."""

    def __init__(self, graph: Graph, vector_width: int):
        self.graph, self.vector_width = graph, vector_width
        self.buffers: list[Buffer] = []
        self.steps: list[Step] = []
        self.kernels: dict[str, int] = {}
        self.sources: list[Kernel] = []
        self.view_of: dict[Value, View] = {}
        self.place = Place("", 0)
        self.node: Node | None = None  # what is being lowered
        self.targets: dict[Value, View] = {}  # where a value must be written
        self.indices: dict[tuple, int] = {}  # buffers of the winners of max pools
        self.loops: list[Loop] = []
        self.ahead: list[Step] | None = None  # in a loop: steps that can run once, before it
        self.steady: set[int] = set()  # buffers that no round of the loop changes
        self.copies: dict[View, View] = {}  # of inputs
        self.once_steps: list[Step] = []  # what depends on parameters alone
        self.fixed: set[int] = set()  # buffers that only setting parameters changes

    def within(self, body: Graph, steady: Iterable[View]) -> Lowering:
        """The lowering of a loop's body, which adds to the same buffers and steps.

        `steady` lies still while the loop runs.
        """
        inner = Lowering(body, self.vector_width)
        for name in ("buffers", "steps", "kernels", "sources", "place", "loops", "once_steps",
                     "fixed"):
            setattr(inner, name, getattr(self, name))
        inner.ahead, inner.steady = [], self.steady | {view.buffer for view in steady}
        return inner

    def lies_still(self, view: View) -> bool:
        """Whether this is the body of a loop no round of which changes or moves `view`."""
        moving = any(found.name.startswith("$") for found in symbols_of(view.offset))
        return self.ahead is not None and view.buffer in self.steady and not moving

    @contextmanager
    def once(self, source: View, target: View) -> Iterator[None]:
        """Steps made inside write `target` from `source` alone: where that lies still, once.

        What depends on parameters alone runs once for many runs, what no round of a loop changes
        once for the loop.
        """
        fixed = source.buffer in self.fixed
        ahead = self.once_steps if fixed else self.ahead if self.lies_still(source) else None
        if ahead is None:
            yield
            return
        if fixed:
            self.fixed.add(target.buffer)
        steps, self.steps = self.steps, ahead
        try:
            yield
        finally:
            self.steps = steps
        self.steady.add(target.buffer)

    # --- buffers and steps ----------------------------------------------------------------------

    def temp(self, shape: tuple[Size, ...], dtype: str = "f32", label: str = "", what: str = ""
             ) -> int:
        """A new buffer in the arena; its number. `what` says which helper of a step it is."""
        words = [label or self.place.label, what]
        self.buffers.append(Buffer("temp", "", dtype, shape, label=", ".join(filter(None, words))))
        return len(self.buffers) - 1

    def result(self, value: Value) -> View:
        """The dense memory that `value` is to be written to."""
        if value in self.targets:
            return self.targets[value]
        type = self.graph.type(value)
        return self.fresh(type)

    def fresh(self, type: TensorType, what: str = "") -> View:
        """New dense memory for a tensor."""
        buffer = self.temp(tuple(to_size(n) for n in type.shape), type.dtype, what=what)
        return views.dense(buffer, type.shape, type.dtype)

    def step(self, emitted: Emitted, what: str = "", why: str = "") -> None:
        """Append a call of an emitted kernel."""
        self.call(emitted.source, emitted.args, emitted.work, what, why=why)

    def call(self, source: str, args, work: Size, what: str = "", macs: Size = 0, why: str = ""
             ) -> None:
        """Append a call of a kernel text."""
        label = f"{self.place.label} {what}".strip()
        self.steps.append(Step(self.kernel(source), tuple(args), work, label, self.place.line,
                               macs, self.place.part, why))

    def kernel(self, source: str) -> int:
        """The number of a kernel text; equal texts are one kernel."""
        if source not in self.kernels:
            name = "k" + hashlib.sha256(source.encode()).hexdigest()[:16]
            self.kernels[source] = len(self.sources)
            self.sources.append(Kernel(name, source))
        return self.kernels[source]

    # --- views ----------------------------------------------------------------------------------

    def view(self, value: Value) -> View:
        """Where a value lies; a constant is written to memory on first use."""
        if value not in self.view_of:
            self.view_of[value] = self.constant(value)
        return self.view_of[value]

    def dense(self, value: Value) -> View:
        """Where a value lies in row-major order without gaps; copied if needed."""
        return self.dense_view(self.view(value))

    def dense_view(self, view: View) -> View:
        """The view itself where it has no gaps, else a dense copy."""
        return view if view.is_packed else self.copy(view)

    def copy(self, source: View, target: View | None = None, why: str = "") -> View:
        """Copy elements to new dense memory, or to `target`; `why` without what the node tells.

        An input, which nothing changes, is copied once for all that want it so.
        """
        if target is None and source in self.copies:
            return self.copies[source]
        if target is None:
            target = self.fresh(TensorType(source.shape, source.dtype), "copy")
            if self.buffers[source.buffer].kind == "input" and self.ahead is None:
                self.copies[source] = target
            with self.once(source, target):
                return self.copy(source, target, why)
        body = Builder("body")
        x = body.emit(REGISTRY["input"], (), {"name": "x0", "shape": source.shape,
                                              "dtype": source.dtype})
        self.loop(body.finish([("y0", x)]), [source], [target], "copy",
                  why or self._why_copied(source))
        return target

    def _why_copied(self, source: View) -> str:
        inputs = self.node.inputs if self.node else ()
        operand = next((value for value in inputs if value in self.view_of and
                        self.view_of[value].buffer == source.buffer), None)
        return why_copied(self.graph, self.node, source, self.buffers[source.buffer], operand)

    def fill(self, target: View, value: float, why: str = "") -> None:
        """Set all elements of a dense target; `why` without what the node tells."""
        body = Builder("body")
        const = body.emit(REGISTRY["const"], (), {"value": value, "dtype": target.dtype})
        filled = body.emit(REGISTRY["broadcast_to"], (const,), {"shape": target.shape})
        self.loop(body.finish([("y0", filled)]), [], [target], "fill", why or why_filled(self.node))

    def constant(self, value: Value) -> View:
        """Write a constant that some operator needs in memory."""
        node = self.graph.node(value)
        target = self.result(value)
        body = Builder("body")
        result = body.emit(node.op, (), node.attributes)
        self.loop(body.finish([("y0", result)]), [], [target], "constant",
                  "an operator reads this constant from memory")
        return target

    # --- loops ----------------------------------------------------------------------------------

    def loop(self, body: Graph, operands: list[View], results: list[View], what: str,
             why: str = "") -> None:
        """Append the kernels of a loop body."""
        loops = build_loops(body, operands, results)
        if loops.kind != "column":
            self.step(emit_loops(loops), what, why)
            return
        self.columns(loops, what)

    def columns(self, loops: LoopProgram, what: str) -> None:
        """A reduction over leading axes: partial sums, then their combination."""
        chunks, span, width = chunk_count(loops), partial_size(loops), kept_size(loops)
        partials = tuple(self.temp((chunks, span), r.dtype, what=PARTIAL) for r in loops.reductions)
        self.step(emit_loops(loops, partials), what)
        for r, partial in zip(loops.reductions, partials, strict=True):
            for store in loops.stores:
                if store.name == r.name:
                    self.step(emit_combine(r, partial, store.access, chunks, span, width),
                              f"{what} combine".strip())


Handler = Callable[[Lowering, Node], None]
