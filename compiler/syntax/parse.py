"""From text to syntax tree; the only file that imports lark.

Each top-level declaration is parsed by itself, so that an error in one does not hide the next.
The LALR tables are kept as JSON beside the grammar, because building them takes 0.2 s:
`python -m lamina.compiler.syntax.parse` writes them anew after the grammar has changed.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from threading import Lock
from typing import cast

import lark
from lark import Lark, Token
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken
from lark.grammar import Rule
from lark.lexer import ContextualLexer, TerminalDef

from lamina.compiler.errors import CompileError, Diagnostic, Sink, Source, Span
from lamina.compiler.syntax import ast
from lamina.compiler.syntax.construct import Construct
from lamina.compiler.syntax.explain import Failure, explain
from lamina.compiler.syntax.scan import (
    CONTINUES,
    MAX_CHARACTERS,
    Chunk,
    Lexeme,
    scan,
    split,
    word_set,
)

GRAMMAR = Path(__file__).resolve().parents[2] / "grammar" / "lamina.lark"
TABLES = GRAMMAR.with_suffix(".json")
# Terminals that are names or numbers where the grammar does not expect them.
CONTEXTUAL = word_set("MEMBER OVER REVERSE WITH UNTIL LIMIT DATA TARGET METRIC WEIGHTS MAP SKIP "
                      "PHASE FREEZE EXCEPT")
MAX_DEPTH = 200  # levels of the tree: what walks it later may recurse


def parse(source: Source) -> ast.File:
    """The tree of a source; raises CompileError with every error of the file."""
    sink = Sink()
    lexemes = scan(source, sink)
    declarations: list[ast.Declaration] = []
    failed = False
    for chunk in split(source, lexemes):
        if failed and not chunk.declares:
            continue  # the rest of a declaration whose head was wrong
        found = () if chunk.problems else _parser().parse(source, chunk, sink)
        for problem in chunk.problems:
            sink.add(problem)
        declarations += found
        failed = not found
    sink.raise_if_any()
    whole = Span(source, 0, len(source.text))
    return ast.File(source, tuple(declarations), _comments(source, lexemes), whole)


def read_source(path: str | Path) -> Source:
    """The source in a file; raises CompileError (E118, E901) when it cannot be read."""
    name = str(path)
    try:
        with open(path, "rb") as file:
            data = file.read(4 * MAX_CHARACTERS + 1)
        return Source(name, data.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        text = data.decode("utf-8", errors="replace")
        at = text.find("\ufffd")
        message = f"line {line} is not UTF-8 text (byte {error.start})"
        place = Span(Source(name, text), at, at + 1)
        raise CompileError(Diagnostic("E118", message, place)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        message = f"cannot read the file: {reason}"
        place = Span(Source(name, ""), 0, 0)
        raise CompileError(Diagnostic("E118", message, place)) from None


def write_tables() -> None:
    """Build the parser's tables from the grammar and write them beside it."""
    TABLES.write_text(dump_tables() + "\n", encoding="utf-8")


def dump_tables() -> str:
    """The parser's tables, built from the grammar, as JSON."""
    data, memo = _build(Construct()).memo_serialize([TerminalDef, Rule])
    # These are given anew when the tables are loaded.
    data["options"] |= {"postlex": None, "transformer": None, "_plugins": {}}
    content = {"made_from": _fingerprint(), "data": data, "memo": memo}
    return json.dumps(content, default=sorted, separators=(",", ":"), sort_keys=True)


class _Newlines:
    """Drops the newlines that end nothing: inside ( ) and [ ], and where a line must go on."""

    always_accept = ("_NL",)

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        """Filter the lexer's tokens, without looking ahead."""
        brackets, last = [], "{"
        for token in stream:
            if token.type == "_NL":
                inside = bool(brackets) and brackets[-1] != "{"
                if (inside or last in CONTINUES) and not token.startswith(";"):
                    continue
                last = "{"
            else:
                last = "->" if token.type == "ARROW" else str(token)
                if token.type in ("LPAR", "LSQB", "LBRACE"):
                    brackets.append(last)
                elif token.type in ("RPAR", "RSQB", "RBRACE") and brackets:
                    brackets.pop()
            yield token


class _FewLexers(ContextualLexer):
    """The contextual lexer with one lexer for all states that tell the same words apart.

    Lark makes a lexer for every set of terminals that a state accepts: 131 here, each of which
    compiles an expression of its own. A word that a state does not accept is an error either way.
    """

    def __init__(self, conf, states, always_accept=()):
        everywhere = {one.name for one in conf.terminals} - CONTEXTUAL
        wide = {state: accepted if "MEMBER" in accepted else
                everywhere | CONTEXTUAL.intersection(accepted)
                for state, accepted in states.items()}
        super().__init__(conf, wide, always_accept)


PLUGINS = {"ContextualLexer": _FewLexers}


class _Parser:
    """Lark's LALR parser with the construction of the tree embedded; one run at a time."""

    def __init__(self) -> None:
        self._construct = Construct()
        self._lark = _load(self._construct) or _build(self._construct)
        self._lock = Lock()

    def parse(self, source: Source, chunk: Chunk, sink: Sink) -> tuple[ast.Declaration, ...]:
        """The declarations of one chunk; none if it has an error, which goes to the sink."""
        first, last = chunk.lexemes[0], chunk.lexemes[-1]
        with self._lock:
            make = self._construct
            make.source, make.offset, make.sink = source, first.start, sink
            try:
                text = source.text[first.start : last.end]
                found = cast(tuple[ast.Declaration, ...], self._lark.parse(text))
            except UnexpectedInput as error:
                sink.add(explain(source, chunk, _failure(error, first.start, last.end)))
                return ()
            finally:
                make.source, make.sink = Source("", ""), Sink()
        deep = _too_deep(found)
        if deep is None:
            return found
        message = f"expressions are nested more than {MAX_DEPTH} deep"
        sink.error("E900", message, deep, help="give names to parts of it")
        return ()


def _failure(error: UnexpectedInput, offset: int, end: int) -> Failure:
    if isinstance(error, UnexpectedToken):
        expected = frozenset(error.expected)
        if error.token.type == "$END":
            return Failure(end, True, expected)
        start = offset + (error.token.start_pos or 0)
        if error.token.type == "ARROW":
            start += len(error.token) - 2  # the token has the blanks before the arrow in it
        return Failure(start, error.token.type == "_NL", expected)
    allowed = error.allowed if isinstance(error, UnexpectedCharacters) else ()
    return Failure(offset + (error.pos_in_stream or 0), False, frozenset(allowed or ()))


@cache
def _parser() -> _Parser:
    return _Parser()


def _build(construct: Construct) -> Lark:
    return Lark(
        GRAMMAR.read_text(encoding="utf-8"),
        parser="lalr",
        lexer="contextual",
        keep_all_tokens=True,
        maybe_placeholders=False,
        postlex=_Newlines(),
        transformer=construct,
        _plugins=PLUGINS,
    )


def _load(construct: Construct) -> Lark | None:
    """The parser from its stored tables, or None where they are not those of the grammar."""
    if not TABLES.is_file():
        return None
    content = json.loads(TABLES.read_text(encoding="utf-8"))
    if content["made_from"] != _fingerprint():
        return None
    data, memo = _int_keys(content["data"]), _int_keys(content["memo"])
    return Lark._load_from_dict(data, memo, transformer=construct, postlex=_Newlines(),
                                _plugins=PLUGINS)


def _fingerprint() -> str:
    """What the tables depend on: the version of Lark and the text of the grammar."""
    return f"lark {lark.__version__}, {hashlib.sha256(GRAMMAR.read_bytes()).hexdigest()}"


def _int_keys(value):
    """JSON turns the integer keys of tables into text; turn them back."""
    if isinstance(value, dict):
        return {int(k) if k.isdigit() else k: _int_keys(v) for k, v in value.items()}
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return [_int_keys(item) for item in value]
    return value


def _comments(source: Source, lexemes: list[Lexeme]) -> tuple[ast.Comment, ...]:
    return tuple(
        ast.Comment(lexeme.text, Span(source, lexeme.start, lexeme.end))
        for lexeme in lexemes
        if lexeme.kind == "comment"
    )


def _too_deep(nodes: tuple) -> Span | None:
    """The span of a node more than MAX_DEPTH levels down, or None. Does not recurse."""
    level, depth = list(nodes), 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            return level[0].span
        below: list = []
        for node in level:
            for part in ast.parts(node):
                if isinstance(part, tuple):
                    below += [item for item in part if ast.is_node(item)]
                elif ast.is_node(part):
                    below.append(part)
        level = below
    return None


if __name__ == "__main__":
    write_tables()
