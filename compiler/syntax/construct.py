"""From the parser's reductions to records of the syntax tree: one method per grammar rule."""

import re
from dataclasses import dataclass, replace

from lamina.compiler.errors import Label, Sink, Source, Span
from lamina.compiler.syntax import ast

MAX_DIGITS = 400  # beyond this a number is a mistake, and int() of it is slow

_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t"}
_DEFINITIONS = {"model": ast.Model, "block": ast.Block, "cell": ast.Cell}
_DECLARED = {
    "input": ast.Input,
    "param": ast.Param,
    "buffer": ast.Buffer,
    "state": ast.State,
    "memory": ast.Memory,
}


@dataclass(frozen=True, slots=True)
class _Arguments:
    """The inside of a call, before it meets its function."""

    args: tuple
    kwargs: tuple
    span: Span


class Construct:
    """Callbacks of the parser; `children` are tokens (texts with offsets) and finished nodes.

    `source`, `offset` and `sink` are set before each run of the parser.
    """

    def __init__(self) -> None:
        self.source = Source("", "")
        self.offset = 0
        self.sink = Sink()

    # -------------------------------------------------------------- positions

    def _span(self, children) -> Span:
        first, last = children[0], children[-1]
        low = first.start_pos + self.offset if _is_token(first) else first.span.start
        high = last.end_pos + self.offset if _is_token(last) else last.span.end
        return Span(self.source, low, high)

    def _name(self, token) -> ast.Name:
        return ast.Name(str(token), self._span((token,)))

    def _unique(self, names: list[ast.Name], what: str) -> None:
        seen: dict[str, ast.Name] = {}
        for name in names:
            if name.id in seen:
                labels = (Label(seen[name.id].span, "first here"), Label(name.span, "and again"))
                message = f"{what} `{name.id}` is given twice"
                self.sink.error("E120", message, name.span, labels=labels)
            seen.setdefault(name.id, name)

    # ----------------------------------------------------------- declarations

    def start(self, children):
        """The declarations of a text."""
        return tuple(_nodes(children))

    def definition(self, children):
        """`model`, `block` or `cell` with a body."""
        kind, name, *rest = children
        params = rest[0] if isinstance(rest[0], tuple) else ()
        body = tuple(node for node in rest if not isinstance(node, (str, tuple)))
        return _DEFINITIONS[str(kind)](self._name(name), params, body, self._span(children))

    def alias(self, children):
        """`model A = B(...)`."""
        kind, name, _, target = children
        return ast.Alias(str(kind), self._name(name), target, self._span(children))

    def const(self, children):
        """`const NAME = value`."""
        note, value = _after(children, ":"), _after(children, "=")
        assert value is not None  # the grammar has it
        return ast.Const(self._name(children[1]), note, value, self._span(children))

    def import_(self, children):
        """`from "file" import names`."""
        file, *names = _nodes(children)
        self._unique([item.alias or item.name for item in names], "the name")
        return ast.Import(file, tuple(names), self._span(children))

    def import_name(self, children):
        """`A` or `A as B`."""
        alias = self._name(children[2]) if len(children) == 3 else None
        return ast.ImportName(self._name(children[0]), alias, self._span(children))

    def parameters(self, children):
        """`(a: int = 1, b)`."""
        params = tuple(_nodes(children))
        self._unique([param.name for param in params], "the parameter")
        return params

    def parameter(self, children):
        """`a: int = 1`."""
        return self._item(ast.Parameter, children)

    def reference(self, children):
        """A name with optional arguments, as a Call."""
        name = self._name(children[0])
        if len(children) == 1:
            return ast.Call(name, (), (), name.span)
        return ast.Call(name, children[1].args, children[1].kwargs, self._span(children))

    def _item(self, kind, children):
        """`NAME [: type] [= value]` as a record of that kind."""
        note, value = _after(children, ":"), _after(children, "=")
        name = next(child for child in children if _is_name(child))
        return kind(self._name(name), note, value, self._span(children))

    # ------------------------------------------------------------- statements

    def declare(self, children):
        """`input`, `param`, `buffer`, `state` or `memory`."""
        kind = str(children[0])
        node = self._item(_DECLARED[kind], children)
        if node.annotation is None and _looks_like_type(node.value):
            equals = next(child for child in children if child == "=")
            self.sink.error(
                "E107",
                f"the type of `{node.name.id}` follows a `:`",
                self._span((equals,)),
                help=f"write `{kind} {node.name.id}: {node.value.span.text}`",
            )
        return node

    def output(self, children):
        """`output a, b = value`."""
        return ast.Output(tuple(_nodes(children)), self._span(children))

    def output_item(self, children):
        """One name of an `output`."""
        return self._item(ast.OutputItem, children)

    def shared(self, children):
        """`shared name = pipeline`."""
        return ast.Shared(self._name(children[1]), children[3], self._span(children))

    def tie(self, children):
        """`tie a = b`."""
        return ast.Tie(children[1], children[3], self._span(children))

    def assert_(self, children):
        """`assert condition, "message"`."""
        message = children[3] if len(children) == 4 else None
        return ast.Assert(children[1], message, self._span(children))

    def assign(self, children):
        """`a, b = value`."""
        names = [child for child in children if _is_name(child)]
        targets = tuple(self._name(name) for name in names)
        self._unique(list(targets), "the name")
        return ast.Assign(targets, _after(children, ":"), children[-1], self._span(children))

    # ---------------------------------------------------------------- recipes

    def recipe(self, children):
        """`recipe name for Model { ... }`."""
        body = tuple(node for node in children[4:] if not isinstance(node, str))
        return ast.Recipe(self._name(children[1]), children[3], body, self._span(children))

    def data(self, children):
        """`data train = ...`."""
        return ast.Data(self._name(children[1]), children[3], self._span(children))

    def target(self, children):
        """`target label: type`."""
        return ast.Target(self._name(children[1]), children[3], self._span(children))

    def metric(self, children):
        """`metric acc = ...`."""
        return ast.Metric(self._name(children[1]), children[3], self._span(children))

    def setting(self, children):
        """`batch = 128`."""
        return ast.Setting(self._name(children[0]), children[2], self._span(children))

    def weights(self, children):
        """`weights "file" { ... }`."""
        file, *rules = _nodes(children)
        return ast.Weights(file, tuple(rules), self._span(children))

    def map_(self, children):
        """`map "a" => "b"`."""
        return ast.Map(children[1], children[3], self._span(children))

    def skip(self, children):
        """`skip "a"`."""
        return ast.Skip(children[1], self._span(children))

    def phase(self, children):
        """`phase name { ... }`."""
        body = tuple(_nodes(children))
        return ast.Phase(self._name(children[1]), body, self._span(children))

    def freeze(self, children):
        """`freeze` or `unfreeze`."""
        cut = next((i for i, child in enumerate(children) if child == "except"), len(children))
        kind = ast.Freeze if children[0] == "freeze" else ast.Unfreeze
        patterns, exceptions = _nodes(children[:cut]), _nodes(children[cut:])
        return kind(tuple(patterns), tuple(exceptions), self._span(children))

    # ------------------------------------------------------------------ flows

    def conditional(self, children):
        """`a if c else b`."""
        then, _, condition, _, otherwise = children
        return ast.Conditional(condition, then, otherwise, self._span(children))

    def flow(self, children):
        """`x -> stage -> stage`."""
        source, *stages = _nodes(children)
        return ast.Flow(source, tuple(stages), self._span(children))

    def stage(self, children):
        """`label: body`."""
        label = self._name(children[0]) if len(children) == 3 else None
        return ast.Stage(label, children[-1], self._span(children))

    stage_first = stage

    def pipeline(self, children):
        """The inside of `repeat { }`: a flow whose source is left out, or begins with `_`."""
        first, *rest = _nodes(children)
        span = self._span(children)
        if isinstance(first, ast.Stage):
            return ast.Flow(None, (first, *rest), span)
        source, stages = first, ()
        if isinstance(first, ast.Flow) and first.source is not None:
            source, stages = first.source, first.stages
        if _is_layer(source):
            return ast.Flow(None, (ast.Stage(None, source, source.span), *stages), span)
        return ast.Flow(source, stages, span)

    def as_(self, children):
        """`as [dims]`."""
        return ast.As(tuple(_nodes(children)), self._span(children))

    def repeat(self, children):
        """`repeat n shared { ... }`."""
        count, body = _nodes(children)
        shared = children[2] == "shared"
        return ast.Repeat(count, shared, body, self._span(children))

    def for_(self, children):
        """`for (i, n) in items { ... }`."""
        names = [child for child in children if _is_name(child)]
        iterable, body = _nodes(children)
        targets = tuple(self._name(name) for name in names)
        self._unique(list(targets), "the name")
        return ast.For(targets, iterable, body, self._span(children))

    def scan(self, children):
        """`scan Cell over T ...`."""
        bindings = tuple(node for node in children if isinstance(node, ast.Binding))
        return ast.Scan(
            cell=children[1],
            dim=self._name(children[3]),
            reverse=any(child == "reverse" for child in children[4:5]),
            bindings=bindings,
            until=_after(children, "until"),
            limit=_after(children, "limit"),
            span=self._span(children),
        )

    def binding(self, children):
        """`lstm.h = value`."""
        return ast.Binding(children[0], children[2], self._span(children))

    def path(self, children):
        """`stages.0.first`."""
        return ast.Path(tuple(str(part) for part in children[::2]), self._span(children))

    # ------------------------------------------------------------ expressions

    def binary(self, children):
        """`a + b`."""
        left, op, right = children
        return ast.Binary(str(op), left, right, self._span(children))

    def not_in(self, children):
        """`a not in b`."""
        return ast.Binary("not in", children[0], children[3], self._span(children))

    def unary(self, children):
        """`-a`, `not a`."""
        return ast.Unary(str(children[0]), children[1], self._span(children))

    def attribute(self, children):
        """`a.b`."""
        return ast.Attribute(children[0], str(children[2]), self._span(children))

    def subscript(self, children):
        """`a[0, :, new]`."""
        value, *indices = _nodes(children)
        return ast.Subscript(value, tuple(indices), self._span(children))

    def call(self, children):
        """`f(a, b=c)`."""
        func, found = children
        return ast.Call(func, found.args, found.kwargs, self._span(children))

    def arguments(self, children):
        """`(a, b=c)`."""
        nodes = _nodes(children)
        kwargs = [node for node in nodes if isinstance(node, ast.Keyword)]
        args = [node for node in nodes if not isinstance(node, ast.Keyword)]
        if args and kwargs and args[-1].span.start > kwargs[0].span.start:
            labels = (Label(args[-1].span, "positional"), Label(kwargs[0].span, "keyword"))
            message = "a positional argument follows a keyword argument"
            self.sink.error("E119", message, args[-1].span, labels=labels,
                            help="name it, or move it before the keyword arguments")  # fmt: skip
        self._unique([keyword.name for keyword in kwargs], "the argument")
        return _Arguments(tuple(args), tuple(kwargs), self._span(children))

    def keyword(self, children):
        """`name=value`."""
        return ast.Keyword(self._name(children[0]), children[2], self._span(children))

    def slice_(self, children):
        """`start:stop:step`."""
        parts: list = [None]
        for child in children:
            if isinstance(child, str):
                parts.append(None)
            else:
                parts[-1] = child
        start, stop, step = (*parts, None)[:3]
        return ast.Slice(start, stop, step, self._span(children))

    def new(self, children):
        """`new`."""
        return ast.NewAxis(self._span(children))

    def dots(self, children):
        """`...`."""
        return ast.Dots(self._span(children))

    def name(self, children):
        """A name, or `_`."""
        return self._name(children[0])

    def number(self, children):
        """An int or a float."""
        span = self._span(children)
        return ast.Number(self._value(str(children[0]), span), span)

    def _value(self, text: str, span: Span) -> int | float:
        if len(text) > MAX_DIGITS:
            self.sink.error("E112", f"a number of {len(text):,} characters", span)
            return 0
        try:
            value = int(text) if text.replace("_", "").isdigit() else float(text)
        except ValueError:
            help = "a `_` stands between two digits, and no number has two points"
            self.sink.error("E112", f"`{text}` is not a number", span, help=help)
            return 0
        if value == float("inf"):
            self.sink.error("E112", f"`{text}` is too large for a float", span)
        elif isinstance(value, int) and abs(value) >= 2**63:
            self.sink.error("E112", f"`{text}` does not fit in 64 bits", span)
        return value

    def string(self, children):
        """A text in double quotes."""
        inner = str(children[0])[1:-1]
        text = _ESCAPE.sub(lambda match: _ESCAPES.get(match[1], match[1]), inner)
        return ast.String(text, self._span(children))

    def boolean(self, children):
        """`true` or `false`."""
        return ast.Bool(children[0] == "true", self._span(children))

    def list_literal(self, children):
        """`[a, b]`."""
        return ast.ListLiteral(tuple(_nodes(children)), self._span(children))

    def tuple_literal(self, children):
        """`(a, b)`."""
        return ast.Tuple(tuple(_nodes(children)), self._span(children))

    def group(self, children):
        """`(a)` is `a`, with the parentheses in its span."""
        return replace(children[1], span=self._span(children))

    def prev(self, children):
        """`prev.h`."""
        return ast.Prev(str(children[2]), self._span(children))

    # ------------------------------------------------------------------ types

    def named_type(self, children):
        """`int`."""
        return ast.NamedType(str(children[0]), (), self._span(children))

    def tensor_type(self, children):
        """`f32[B, C]`, `[B, C]` and `list[int]`."""
        span, dims = self._span(children), tuple(_nodes(children))
        dtype = str(children[0]) if children[0] != "[" else None
        if dtype != "list":
            return ast.TensorType(dtype, dims, span)
        names = [dim.value for dim in dims if isinstance(dim.value, ast.Name)]
        if len(names) != 1 or len(dims) != 1:
            self.sink.error("E100", "`list` takes one type", span, help="write `list[int]`")
        return ast.NamedType("list", tuple(ast.NamedType(n.id, (), n.span) for n in names), span)

    def dim(self, children):
        """`S~`."""
        return ast.Dim(children[0], len(children) == 2, self._span(children))


def _is_token(child) -> bool:
    return isinstance(child, str)


def _is_name(child) -> bool:
    return isinstance(child, str) and child.type == "NAME"  # type: ignore[attr-defined]


def _nodes(children) -> list:
    return [child for child in children if not isinstance(child, str)]


def _after(children, mark: str):
    """The node that follows a token, or None."""
    for token, node in zip(children, children[1:], strict=False):
        if isinstance(token, str) and token == mark:
            return node
    return None


def _looks_like_type(value) -> bool:
    if isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name):
        return value.value.id in ("f32", "f64", "f16", "bf16", "i32", "i64", "i8", "u8", "bool")
    return isinstance(value, ast.ListLiteral)


def _is_layer(value) -> bool:
    """Whether the first expression of a pipeline is something to apply, not a value to pass on."""
    while isinstance(value, (ast.Attribute, ast.Subscript)):
        value = value.value
    return isinstance(value, ast.Call) or isinstance(value, ast.Name) and value.id != "_"
