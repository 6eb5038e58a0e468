"""The syntax tree: one frozen record per construct, each with its span.

Sequences are tuples. `_` is `Name("_")`. A node equals itself alone; equality ignoring spans is
`same`.
"""

from dataclasses import dataclass, fields
from functools import cache
from typing import TypeVar, dataclass_transform

from lamina.compiler.errors import Source, Span

_Kind = TypeVar("_Kind", bound=type)


@dataclass_transform(frozen_default=True, eq_default=False)
def node(kind: _Kind) -> _Kind:
    """A frozen record, without the comparison that would take half of this module's import."""
    return dataclass(frozen=True, slots=True, eq=False)(kind)


# ---------------------------------------------------------------- expressions


@node
class Name:
    """A bare identifier; also the node of every bound name. `_` is the piped value."""

    id: str
    span: Span


@node
class Number:
    """`3` (int) or `5e-4` (float)."""

    value: int | float
    span: Span


@node
class String:
    """`"text"`, escapes resolved."""

    value: str
    span: Span


@node
class Bool:
    """`true` or `false`."""

    value: bool
    span: Span


@node
class ListLiteral:
    """`[3, 4, 6, 3]`."""

    items: "tuple[Expr, ...]"
    span: Span


@node
class Tuple:
    """`(a, b)`: several values, fed together."""

    items: "tuple[Expr, ...]"
    span: Span


@node
class Attribute:
    """`value.name`; a name may be a number: `stages.0`."""

    value: "Expr"
    name: str
    span: Span


@node
class Prev:
    """`prev.h`: last step's value of a state."""

    name: str
    span: Span


@node
class Slice:
    """`start:stop:step` inside a subscript."""

    start: "Expr | None"
    stop: "Expr | None"
    step: "Expr | None"
    span: Span


@node
class NewAxis:
    """`new` inside a subscript: an axis of size 1."""

    span: Span


@node
class Dots:
    """`...` inside a subscript or a shape: any number of axes."""

    span: Span


@node
class Subscript:
    """`value[indices]`."""

    value: "Expr"
    indices: "tuple[Expr | Slice | NewAxis | Dots, ...]"
    span: Span


@node
class Keyword:
    """`name=value` in a call."""

    name: Name
    value: "Expr"
    span: Span


@node
class Call:
    """`func(args, kwargs)`; `args` come before `kwargs`."""

    func: "Expr"
    args: "tuple[Expr, ...]"
    kwargs: tuple[Keyword, ...]
    span: Span


@node
class Unary:
    """`-x`, `+x` or `not x`."""

    op: str
    operand: "Expr"
    span: Span


@node
class Binary:
    """`left op right`: arithmetic, `@`, comparisons, `and`, `or`, `in`, `not in`."""

    op: str
    left: "Expr"
    right: "Expr"
    span: Span


@node
class Conditional:
    """`then if condition else otherwise`; the condition is compile-time."""

    condition: "Expr"
    then: "Expr"
    otherwise: "Expr"
    span: Span


# ---------------------------------------------------------------------- flows


@node
class Stage:
    """One step of a flow, `label: body`."""

    label: Name | None
    body: "Expr | As | Repeat | For | Scan"
    span: Span


@node
class Flow:
    """`source -> stage -> stage`; without a source it is a pipeline applied to `_`."""

    source: "Expr | None"
    stages: tuple[Stage, ...]
    span: Span


@node
class As:
    """`as [B, 1, att]`: reshape to the named dims."""

    dims: "tuple[Dim, ...]"
    span: Span


@node
class Repeat:
    """`repeat count [shared] { body }`."""

    count: "Expr"
    shared: bool
    body: Flow
    span: Span


@node
class For:
    """`for targets in iterable { body }`."""

    targets: tuple[Name, ...]
    iterable: "Expr"
    body: Flow
    span: Span


@node
class Binding:
    """`lstm.h = value` in the `with (...)` of a scan."""

    path: "Path"
    value: "Expr"
    span: Span


@node
class Scan:
    """`scan cell over dim [reverse] [with (...)] [until condition [limit n]]`."""

    cell: Call
    dim: Name
    reverse: bool
    bindings: tuple[Binding, ...]
    until: "Expr | None"
    limit: "Expr | None"
    span: Span


@node
class Path:
    """`stages.0.first.weight`: a dotted path."""

    parts: tuple[str, ...]
    span: Span


Expr = (
    Name | Number | String | Bool | ListLiteral | Tuple | Attribute | Prev | Subscript
    | Call | Unary | Binary | Conditional | Flow
)  # fmt: skip

# ---------------------------------------------------------------------- types


@node
class Dim:
    """One axis of a shape; `S~` is ragged."""

    value: Expr | Dots
    ragged: bool
    span: Span


@node
class TensorType:
    """`f32[B, 3, H, W]`; without a dtype it is the default one."""

    dtype: str | None
    dims: tuple[Dim, ...]
    span: Span


@node
class NamedType:
    """`int`, `layer` or `list[int]`."""

    name: str
    args: "tuple[NamedType, ...]"
    span: Span


Type = TensorType | NamedType

# ----------------------------------------------------------------- statements


@node
class Input:
    """`input name: type`, optionally with a default."""

    name: Name
    annotation: Type | None
    value: Expr | None
    span: Span


@node
class Param:
    """`param name: type = initial`: a trained tensor."""

    name: Name
    annotation: Type | None
    value: Expr | None
    span: Span


@node
class Buffer:
    """`buffer name: type = initial`: a stored tensor that is not trained."""

    name: Name
    annotation: Type | None
    value: Expr | None
    span: Span


@node
class State:
    """`state name: type = initial`: a value carried from step to step."""

    name: Name
    annotation: Type | None
    value: Expr | None
    span: Span


@node
class Memory:
    """`memory name: type`: an input of a cell that every step sees."""

    name: Name
    annotation: Type | None
    value: Expr | None
    span: Span


@node
class OutputItem:
    """`name: type = value`; without a value it is an already bound name."""

    name: Name
    annotation: Type | None
    value: Expr | None
    span: Span


@node
class Output:
    """`output item, item`."""

    items: tuple[OutputItem, ...]
    span: Span


@node
class Shared:
    """`shared name = pipeline`: a layer whose every use has the same weights."""

    name: Name
    value: Flow
    span: Span


@node
class Tie:
    """`tie left = right`: one tensor under two paths."""

    left: Path
    right: Path
    span: Span


@node
class Assert:
    """`assert condition, "message"`."""

    condition: Expr
    message: String | None
    span: Span


@node
class Assign:
    """`a, b = value` or `name: type = value`."""

    targets: tuple[Name, ...]
    annotation: Type | None
    value: Expr
    span: Span


Statement = (
    Input | Output | Param | Buffer | State | Memory | Shared | Tie | Assert | Assign
)  # fmt: skip

# ---------------------------------------------------------- recipe statements


@node
class Data:
    """`data train = source(...) -> stage`."""

    name: Name
    value: Expr
    span: Span


@node
class Target:
    """`target label: i32[B]`."""

    name: Name
    annotation: Type
    span: Span


@node
class Metric:
    """`metric acc = accuracy(logits, label)`."""

    name: Name
    value: Expr
    span: Span


@node
class Setting:
    """`batch = 128`."""

    name: Name
    value: Expr
    span: Span


@node
class Map:
    """`map "file pattern" => "model pattern"`."""

    source: String
    target: String
    span: Span


@node
class Skip:
    """`skip "pattern"`."""

    pattern: String
    span: Span


@node
class Weights:
    """`weights "file" { map and skip rules }`."""

    file: String
    rules: tuple[Map | Skip, ...]
    span: Span


@node
class Freeze:
    """`freeze "pattern" except "pattern"`."""

    patterns: tuple[String, ...]
    exceptions: tuple[String, ...]
    span: Span


@node
class Unfreeze:
    """`unfreeze "pattern" except "pattern"`."""

    patterns: tuple[String, ...]
    exceptions: tuple[String, ...]
    span: Span


@node
class Phase:
    """`phase name { ... }`: a stretch of training with its own settings."""

    name: Name
    body: tuple[Freeze | Unfreeze | Setting, ...]
    span: Span


RecipeStatement = Data | Target | Metric | Setting | Weights | Freeze | Unfreeze | Phase

# --------------------------------------------------------------- declarations


@node
class Parameter:
    """`name: type = default`: a hyper-parameter."""

    name: Name
    annotation: Type | None
    default: Expr | None
    span: Span


@node
class Model:
    """`model Name(params) { body }`."""

    name: Name
    params: tuple[Parameter, ...]
    body: tuple[Statement, ...]
    span: Span


@node
class Block:
    """`block Name(params) { body }`."""

    name: Name
    params: tuple[Parameter, ...]
    body: tuple[Statement, ...]
    span: Span


@node
class Cell:
    """`cell Name(params) { body }`."""

    name: Name
    params: tuple[Parameter, ...]
    body: tuple[Statement, ...]
    span: Span


@node
class Alias:
    """`model Name = Other(settings)`: a variant; `kind` is model, block or cell."""

    kind: str
    name: Name
    target: Call
    span: Span


@node
class Const:
    """`const NAME = value`."""

    name: Name
    annotation: Type | None
    value: Expr
    span: Span


@node
class ImportName:
    """`name` or `name as alias`."""

    name: Name
    alias: Name | None
    span: Span


@node
class Import:
    """`from "file.lam" import A, B as C`."""

    file: String
    names: tuple[ImportName, ...]
    span: Span


@node
class Recipe:
    """`recipe name for Model(settings) { body }`."""

    name: Name
    model: Call
    body: tuple[RecipeStatement, ...]
    span: Span


Declaration = Model | Block | Cell | Alias | Const | Import | Recipe


@node
class Comment:
    """`# text`, the `#` included."""

    text: str
    span: Span


@node
class File:
    """A parsed file."""

    source: Source
    declarations: tuple[Declaration, ...]
    comments: tuple[Comment, ...]
    span: Span


# -------------------------------------------------------------------- helpers


def parts(node: object) -> list[object]:
    """The fields of a node that carry meaning, in order: no span, no source text, no comments."""
    if isinstance(node, File):
        return [node.declarations]
    return [getattr(node, name) for name in _fields(type(node)) if name != "span"]


@cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def is_node(value: object) -> bool:
    """Whether a value is a node of the tree (not a tuple, a text or a number)."""
    return type(value).__module__ == __name__


def same(left: object, right: object) -> bool:
    """Whether two trees are equal, spans and comments aside. Does not recurse."""
    todo = [(left, right)]
    while todo:
        a, b = todo.pop()
        if type(a) is not type(b):
            return False
        if is_node(a):
            a, b = tuple(parts(a)), tuple(parts(b))
        if isinstance(a, tuple) and isinstance(b, tuple):
            if len(a) != len(b):
                return False
            todo.extend(zip(a, b, strict=True))
        elif repr(a) != repr(b):  # repr tells 1 from 1.0 and equates nan with nan
            return False
    return True
