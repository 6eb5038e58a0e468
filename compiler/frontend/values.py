"""What names stand for while a model is being built, and the scopes that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lamina.compiler.errors import Span
from lamina.compiler.ir.graph import Value
from lamina.compiler.ir.op import Op
from lamina.compiler.ir.types import Dim, Expression, TensorType
from lamina.compiler.syntax import ast


class Broken:
    """Stands for a value that could not be made; whatever uses it stays silent."""

    def __repr__(self) -> str:
        return "Broken"


BROKEN = Broken()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a size came from, in words: "`out` = width * expand = 256"."""

    text: str
    span: Span | None = None
    called: Span | None = None
    name: str = ""  # the name to use for it in a suggestion


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value of the graph. `origins` tells for each axis where its size came from."""

    value: Value
    type: TensorType
    origins: tuple[Origin | None, ...] = ()

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Shape, possibly symbolic."""
        return self.type.shape


@dataclass(frozen=True, slots=True)
class Result:
    """The outputs of an instance with several outputs, by name."""

    outputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scanned(Tensor):
    """What all steps of a scan hand out; `final` are its states after the last step."""

    final: Result = field(default_factory=lambda: Result({}))


@dataclass(frozen=True, slots=True)
class Scans(Result):
    """The same of a cell with several outputs."""

    final: Result = field(default_factory=lambda: Result({}))


@dataclass(frozen=True, slots=True)
class Initial:
    """An initialiser's call: its name and arguments."""

    name: str
    args: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Definition:
    """A model, block or cell with the scope that its names are looked up in.

    `settings` are the arguments that variants on the way have fixed.
    """

    kind: str
    node: ast.Model | ast.Block | ast.Cell
    scope: Scope
    settings: tuple[ast.Keyword, ...] = ()
    name: str = ""
    library: bool = False


@dataclass(frozen=True, slots=True)
class OpRef:
    """A primitive operator used as a layer or a function."""

    op: Op


@dataclass(frozen=True, slots=True)
class Builtin:
    """A compile-time function such as `range` or `enumerate`."""

    name: str


@dataclass(eq=False, slots=True)
class Layer:
    """A layer with its hyper-parameters, not yet applied.

    A `shared` layer keeps its path, its span and, after its first use, its parameters.
    """

    call: ast.Expr | ast.Flow
    scope: Scope
    instance: Any
    path: str = ""
    shared: bool = False
    span: Span | None = None


@dataclass(slots=True)
class Binding:
    """A name's meaning: its value, where it was bound, and the expression that gave it."""

    value: Any
    span: Span | None
    kind: str  # "local", "input", "param", "argument", "dim", "global", "output"
    expression: ast.Expr | None = None
    scope: Scope | None = None  # where `expression` was evaluated
    called: Span | None = None  # for an argument or dim: the call
    source: str = ""  # for a dim: the tensor that it was read off
    origin: Origin | None = None  # for a dim of a library layer: where the caller has it from


@dataclass(slots=True)
class Scope:
    """Names and their bindings, inside an enclosing scope."""

    parent: Scope | None = None
    names: dict[str, Binding] = field(default_factory=dict)

    def find(self, name: str) -> Binding | None:
        """The binding of a name here or outside."""
        if name in self.names:
            return self.names[name]
        return self.parent.find(name) if self.parent is not None else None

    def visible(self) -> Iterator[str]:
        """All names that can be used here."""
        yield from self.names
        if self.parent is not None:
            yield from self.parent.visible()


@dataclass(frozen=True, slots=True)
class Constant:
    """A `const` of a file: evaluated in its file's scope when first used."""

    node: ast.Const
    scope: Scope


NUMERIC: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}


def typed(value: Any, annotation: ast.Type | None) -> Any:
    """The value, when it is of the annotated type."""
    if not isinstance(annotation, ast.NamedType):
        return value
    if annotation.name == "list":
        if not isinstance(value, (tuple, list, range)):
            return BROKEN
        items = tuple(typed(item, annotation.args[0]) if annotation.args else item
                      for item in value)
        return BROKEN if any(item is BROKEN for item in items) else items
    if annotation.name == "layer":
        return value if isinstance(value, (Layer, Definition, OpRef)) else BROKEN
    wanted = NUMERIC.get(annotation.name)
    if wanted is None or value is None:
        return value
    if isinstance(value, Expression):
        return value if annotation.name in ("int", "float") else BROKEN
    if isinstance(value, bool) and annotation.name != "bool":
        return BROKEN
    if annotation.name in ("int", "float") and isinstance(value, tuple):
        # A pair where a number is expected: kernel=(3, 5).
        return value if all(typed(item, annotation) is not BROKEN for item in value) else BROKEN
    return value if isinstance(value, wanted) else BROKEN


def is_static(value: Any) -> bool:
    """Whether a value is known when compiled (a symbolic size counts)."""
    if isinstance(value, (tuple, list)):
        return all(is_static(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, Expression, range))


def describe_static(value: Any) -> str:
    """A compile-time value as the language writes it, cut where it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, (tuple, list, range)):
        items = [describe_static(item) for item in value[:9]]
        return f"[{', '.join(items)}{', ...' if len(value) > 9 else ''}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def describe(value: Any) -> str:
    """A value in words, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor {value.type}"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, Expression):
        return f"the size {value}"
    if isinstance(value, str):
        return f"the text {describe_static(value)}"
    if isinstance(value, (tuple, list)):
        return f"a list of {len(value)}"
    if isinstance(value, (Layer, Definition, OpRef)):
        return "a layer"
    if isinstance(value, Result):
        return f"a result with outputs {', '.join(value.outputs)}"
    return "nothing (none)" if value is None else "a function"
