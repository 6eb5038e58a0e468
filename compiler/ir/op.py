"""The operator record: everything the compiler knows about one operator, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

REQUIRED = object()  # an attribute without a default

# source: inputs, parameters, constants. elementwise: broadcasting, fusable by its scalar text.
# reduce: over axes, keeping them with size 1. view: moves or repeats elements. contract and
# window: computed by a kernel template. composite: a body over other operators. random:
# elementwise in a counter. gather: lookups and searches, by a template. control: carries a body
# graph.
KINDS = ("source", "elementwise", "reduce", "view", "contract", "window", "composite", "random",
         "gather", "control")


class OpError(Exception):
    """An operator refuses its operands or attributes; the caller adds the place.

    `code` is an error code, `message` one sentence with the numbers filled in, `help` the way out
    and `operands` the indices of the operands at fault.
    """

    def __init__(self, code: str, message: str, help: str = "", operands: tuple[int, ...] = ()):
        super().__init__(message)
        self.code, self.message, self.help, self.operands = code, message, help, operands


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One operator.

    `infer(*types, **attrs)` gives the result's TensorType (or raises OpError). `numpy(*arrays,
    **attrs)` is the meaning. `vjp(m, ct, y, *inputs, **attrs)` gives the gradient of each input
    from the gradient `ct` of the result `y`; None where there is none. Elementwise gradients need
    not undo broadcasting: differentiation does. `scalar` is the kernel text of an elementwise
    operator, with {0}, {1} for its operands and {t} for their type's name. `body(m, *inputs,
    **attrs)` defines a composite. `samples` and `bad` are operand texts from which tests are
    generated; `torch` is the second opinion: a Python expression over the operands a, b, c ...
    and the attributes.
    `macs(out, *types, **attrs)` counts multiply-accumulates. `ragged(m, op, operands, attrs)`
    says what it does along sizes that differ from example to example; without one, elementwise
    operators do it entry by entry, composites as their bodies do, and others refuse.
    """

    name: str
    kind: str
    infer: Callable[..., Any]
    numpy: Callable[..., Any] | None = None
    arity: tuple[int, int] = (1, 1)
    attrs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    vjp: Callable[..., Any] | None = None
    scalar: str = ""
    body: Callable[..., Any] | None = None
    template: str = ""
    samples: tuple[str, ...] = ()
    bad: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    torch: str = ""
    macs: Callable[..., Any] | None = None
    ragged: Callable[..., Any] | None = None
    pure: bool = True
    public: bool = True
    doc: str = ""

    def __repr__(self) -> str:
        return f"Op({self.name})"
