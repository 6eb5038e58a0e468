"""The printed form of a Graph, and its parser: `parse(print(graph))` is the identical graph.

One node a line, `%id = op(%a, %b) {attr=value} : type  @path`. Bodies follow in braces, indented.
Sizes inside attributes print as `Dim("H // 2")`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lamina.compiler.ir.graph import Graph, Node, Value
from lamina.compiler.ir.op import Op
from lamina.compiler.ir.types import Dim, Expression, TensorType, parse_dim, symbol, symbols_of

INDENT = "  "


def format_graph(graph: Graph, lines: bool = False, depth: int = 0) -> str:
    """The graph as text; `lines` appends source lines as comments."""
    pad = INDENT * depth
    rows = [f"{pad}graph {graph.name} {{"]
    rows += [f"{pad}{INDENT}where {text}" for text in _facts(graph)] if depth == 0 else []
    for node in graph.nodes:
        rows += _format_node(node, lines, depth + 1)
    for name, value in graph.outputs:
        rows.append(f"{pad}{INDENT}output {name} = {_value(value)}")
    rows.append(pad + "}")
    return "\n".join(rows) + ("\n" if depth == 0 else "")


def _facts(graph: Graph) -> list[str]:
    """Symbols that carry more than a name, said once."""
    found = {s for node in graph.nodes for s in symbols_of(node.outs)}
    named = sorted(found, key=lambda s: s.name)
    return [f"{s.name} % {s.scale} == 0" for s in named if s.scale > 1]


def _format_node(node: Node, lines: bool, depth: int) -> list[str]:
    pad = INDENT * depth
    ids = f"%{node.id}"
    operands = ", ".join(_value(value) for value in node.inputs)
    attrs = ", ".join(f"{name}={_literal(value)}" for name, value in node.attrs)
    types = ", ".join(map(str, node.outs))
    text = f"{pad}{ids} = {node.op.name}({operands})"
    if attrs:
        text += f" {{{attrs}}}"
    text += f" : {types}"
    if node.path:
        text += f"  @{node.path}"
    if lines and node.span is not None:
        text += f"  # {node.span.source.name}:{node.span.line}"
    if node.body is None:
        return [text]
    return [text + " with", *format_graph(node.body, lines, depth + 1).split("\n")]


def _value(value: Value) -> str:
    return f"%{value.node}" if value.port == 0 else f"%{value.node}.{value.port}"


def _literal(value: Any) -> str:
    if isinstance(value, Expression):
        return f'Dim("{value}")'
    if isinstance(value, tuple):
        inner = ", ".join(_literal(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, float) and value != value:
        return "nan"
    return repr(value)


_NODE = re.compile(r"%(\d+) = (\w+)\(([^)]*)\)(?: (\{.*\}))? : (.*?)(?:  @(\S*))?( with)?$")
_OUTPUT = re.compile(r"output (\S+) = %(\d+)(?:\.(\d+))?$")


def parse_graph(text: str, ops: Mapping[str, Op]) -> Graph:
    """The Graph that `format_graph` printed. Raises ValueError with the line at fault."""
    rows = iter(enumerate(text.splitlines(), start=1))
    return _parse_block(rows, ops, {})


def _parse_block(rows: Iterator[tuple[int, str]], ops: Mapping[str, Op],
                 known: dict[str, Dim]) -> Graph:
    name, nodes, outputs = "", [], []
    for number, row in rows:
        line = re.sub(r"  # [^ ]+:\d+( with)?$", r"\1", row.strip())
        if not line or line.startswith("#"):
            continue
        if line == "}":
            return Graph(name, nodes, outputs)
        if line.startswith("graph "):
            name = line.removeprefix("graph ").removesuffix(" {")
        elif line.startswith("where "):
            left, multiple = line.removeprefix("where ").removesuffix(" == 0").split(" % ")
            known[left] = symbol(left, multiple_of=int(multiple))
        elif match := _OUTPUT.match(line):
            outputs.append((match[1], Value(int(match[2]), int(match[3] or 0))))
        elif match := _NODE.match(line):
            body = _parse_block(rows, ops, known) if match[7] else None
            nodes.append(_parse_node(match, ops, known, body))
        else:
            raise ValueError(f"line {number}: not a node of a graph: {line}")
    raise ValueError("the graph's closing brace is missing")


def _parse_node(match: re.Match, ops: Mapping[str, Op], known, body: Graph | None) -> Node:
    inputs = []
    for text in filter(None, match[3].split(", ")):
        node, _, port = text.removeprefix("%").partition(".")
        inputs.append(Value(int(node), int(port or 0)))
    attrs = _parse_attrs(match[4] or "{}", known)
    outs = tuple(_parse_type(text, known) for text in re.findall(r"\w+\[[^\]]*\]", match[5]))
    return Node(int(match[1]), ops[match[2]], tuple(inputs), attrs, outs, body, None,
                match[6] or "")


def _parse_type(text: str, known) -> TensorType:
    dtype, _, rest = text.partition("[")
    dims = [part for part in rest.removesuffix("]").split(", ") if part]
    return TensorType(tuple(parse_dim(part, known) for part in dims), dtype)


def _parse_attrs(text: str, known) -> tuple[tuple[str, Any], ...]:
    call = ast.parse(f"f({text[1:-1]})", mode="eval").body
    assert isinstance(call, ast.Call)
    return tuple((word.arg or "", _parse_literal(word.value, known)) for word in call.keywords)


def _parse_literal(node: ast.expr, known) -> Any:
    if isinstance(node, ast.Tuple):
        return tuple(_parse_literal(item, known) for item in node.elts)
    if isinstance(node, ast.Call):
        argument = node.args[0]
        assert isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        return parse_dim(argument.value, known)
    if isinstance(node, ast.Name):
        return float(node.id)  # inf, nan
    if isinstance(node, ast.UnaryOp):
        return -_parse_literal(node.operand, known)
    return ast.literal_eval(node)
