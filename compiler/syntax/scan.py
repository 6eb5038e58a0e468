"""Lexemes of a source with its brackets checked: what the parser, its messages and fmt share."""

import re
from dataclasses import dataclass

from lamina.compiler.errors import Diagnostic, Label, Note, Sink, Source, Span, suggest

MAX_CHARACTERS = 8_000_000
MAX_LEXEMES = 60_000  # about one second of parsing
MAX_BRACKETS = 200


def word_set(text: str) -> frozenset[str]:
    """The blank-separated words of a text."""
    return frozenset(text.split())


DECLARATIONS = ("model", "block", "cell", "recipe", "const", "from")
KEYWORDS = word_set(
    "model block cell input param buffer state memory const from import recipe output shared tie "
    "assert as repeat for scan if else or and not in new prev true false _"
)
# After these a line goes on: they cannot end a statement.
CONTINUES = word_set("{ ( [ , = : -> => + - * / // % ** @ == != < <= > >= . if else or and not in")
PAIRS = {"(": ")", "[": "]", "{": "}"}

_LEXEME = re.compile(
    r"""(?P<space>[ \t\r]+) | (?P<newline>\n+) | (?P<comment>\#[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*+") | (?P<open_string>"[^\n]*)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
      | (?P<op>->|=>|==|!=|<=|>=|//|\*\*|\.\.\.|[-+*/%@<>=(){}\[\],:;.~])
      | (?P<stray>&&|\|\||.)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Lexeme:
    """One word of the text; `fresh` says that it is the first of its line."""

    kind: str
    text: str
    start: int
    end: int
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """The lexemes of one top-level declaration, and what is wrong with its words or brackets."""

    lexemes: tuple[Lexeme, ...]
    problems: tuple[Diagnostic, ...]

    @property
    def declares(self) -> bool:
        """Whether it starts as a declaration does, give or take a misspelling."""
        first = self.lexemes[0].text
        return first in DECLARATIONS or suggest(first, DECLARATIONS) is not None


def scan(source: Source, sink: Sink) -> list[Lexeme]:
    """All lexemes but blanks, in order: words, operators, comments and newlines."""
    text = source.text
    if len(text) > MAX_CHARACTERS:
        start = Span(source, 0, 1)
        sink.error("E901", f"the file is larger than {MAX_CHARACTERS:,} characters", start)
        return []
    lexemes, fresh = [], True
    for match in _LEXEME.finditer(text):
        kind = match.lastgroup
        if kind == "space":
            continue
        lexemes.append(Lexeme(str(kind), match.group(), match.start(), match.end(), fresh))
        fresh = kind == "newline"
        if len(lexemes) > MAX_LEXEMES:
            _report_too_many(source, lexemes, sink)
            return []
    return lexemes


def _report_too_many(source: Source, lexemes: list[Lexeme], sink: Sink) -> None:
    """Say that the file is too large; or, where that is why, that its brackets run away."""
    depth = 0
    for lexeme in lexemes:
        if lexeme.kind == "op":
            depth += (lexeme.text in PAIRS) - (lexeme.text in PAIRS.values())
        if depth > MAX_BRACKETS:
            at = Span(source, lexeme.start, lexeme.end)
            sink.error("E900", f"brackets are nested more than {MAX_BRACKETS} deep", at)
            return
    at = Span(source, lexemes[-1].start, lexemes[-1].end)
    sink.error("E901", f"the file has more than {MAX_LEXEMES:,} words", at)


def split(source: Source, lexemes: list[Lexeme]) -> list[Chunk]:
    """Check brackets and characters, and cut the text into top-level declarations.

    An error in one declaration does not hide those of the next: a line that starts with a
    declaration's keyword ends whatever was open.
    """
    splitter = _Splitter(source)
    for lexeme in lexemes:
        if lexeme.kind not in ("comment", "newline"):
            splitter.add(lexeme)
    splitter.unclosed(None)
    splitter.cut()
    return splitter.chunks


class _Splitter:
    """The bracket stack, and the lexemes of the declaration being read."""

    def __init__(self, source: Source) -> None:
        self.source, self.sink = source, Sink()
        self.chunks: list[Chunk] = []
        self.current: list[Lexeme] = []
        self.stack: list[Lexeme] = []
        self.suspect: Lexeme | None = None  # a `{` whose `}` stands at another indentation
        self.too_deep = False

    def add(self, lexeme: Lexeme) -> None:
        """Take the next word."""
        last = self.current[-1] if self.current else None
        continues = last is not None and last.text in CONTINUES
        if lexeme.fresh and lexeme.kind == "name":
            if lexeme.text in DECLARATIONS and (not last or last.text != "."):
                self.unclosed(lexeme)
                self.cut()
            elif not self.stack and not continues:
                self.cut()
        self.current.append(lexeme)
        if lexeme.kind in ("stray", "open_string"):
            _report_character(self.source, lexeme, self.sink)
            while lexeme.kind == "open_string" and self.stack and self.stack[-1].text != "{":
                self.stack.pop()  # the string took its closing bracket with it
        if last is not None and last.end == lexeme.start and "number" in (lexeme.kind, last.kind):
            self._check_number(last, lexeme)
        if lexeme.kind == "op" and lexeme.text in PAIRS:
            self._open(lexeme)
        elif lexeme.kind == "op" and lexeme.text in ")]}":
            self._close(lexeme)

    def cut(self) -> None:
        """End the declaration."""
        if self.current:
            self.chunks.append(Chunk(tuple(self.current), self.sink.diagnostics))
        self.current, self.sink = [], Sink()
        self.stack, self.suspect, self.too_deep = [], None, False

    def _open(self, lexeme: Lexeme) -> None:
        self.stack.append(lexeme)
        if len(self.stack) > MAX_BRACKETS and not self.too_deep:
            self.too_deep = True
            message = f"brackets are nested more than {MAX_BRACKETS} deep"
            self.sink.error("E900", message, self._span(lexeme))

    def _close(self, lexeme: Lexeme) -> None:
        if self.too_deep:
            return  # one message is enough; what follows cannot be judged
        at = self._span(lexeme)
        if not self.stack or lexeme.text != "}" and self.stack[-1].text == "{":
            help = f"remove it, or open a `{_opener(lexeme.text)}` before it"
            self.sink.error("E104", f"`{lexeme.text}` closes nothing", at, help=help)
            return
        opener = self.stack.pop()
        if PAIRS[opener.text] == lexeme.text:
            if lexeme.fresh and self._indent(opener) != self._indent(lexeme):
                self.suspect = self.suspect or opener
            return
        closer = PAIRS[opener.text]
        if any(PAIRS[other.text] == lexeme.text for other in self.stack):
            self._report_open(opener, Label(at, f"`{closer}` expected before this `{lexeme.text}`"))
            while PAIRS[self.stack.pop().text] != lexeme.text:
                pass
            return
        labels = (Label(self._span(opener), ""), Label(at, f"expected `{closer}`"))
        message = f"`{lexeme.text}` does not close `{opener.text}`"
        self.sink.error("E104", message, at, labels=labels, help=f"write `{closer}` here")

    def unclosed(self, before: Lexeme | None) -> None:
        """Report the bracket that is still open where a declaration, or the file, ends."""
        if not self.stack or self.too_deep:
            return
        opener = self.suspect or self.stack[-1]
        labels = () if before is None else (Label(self._span(before), "the next one starts here"),)
        self._report_open(opener, *labels)

    def _report_open(self, opener: Lexeme, *labels: Label) -> None:
        at = self._span(opener)
        self.sink.error(
            "E103",
            f"`{opener.text}` is never closed",
            at,
            labels=(Label(at, f"needs a `{PAIRS[opener.text]}`"), *labels),
        )

    def _check_number(self, last: Lexeme, lexeme: Lexeme) -> None:
        """`3x`, `3.` and `.5`: two lexemes that touch but are meant as one."""
        before = self.current[-3] if len(self.current) > 2 else None
        joined = Span(self.source, last.start, lexeme.end)
        if last.kind == "number" and lexeme.kind == "name":
            if before is not None and before.text == ".":
                return  # a path: stages.0.first
            message = f"`{joined.text}` is neither a number nor a name"
            self.sink.error("E112", message, joined, help="a name starts with a letter")
        elif lexeme.text == "." and last.kind == "number" and self._bare_point(lexeme, before):
            help = f"write `{last.text}.0`"
            self.sink.error("E112", f"`{joined.text}` lacks a digit after the point", joined,
                            help=help)  # fmt: skip
        elif last.text == "." and (before is None or before.end != last.start):
            message = f"`{joined.text}` lacks a digit before the point"
            self.sink.error("E112", message, joined, help=f"write `0{joined.text}`")

    def _bare_point(self, point: Lexeme, before: Lexeme | None) -> bool:
        follower = self.source.text[point.end : point.end + 1]
        path = before is not None and before.text == "."
        return not path and not (follower.isalpha() or follower == "_")

    def _indent(self, lexeme: Lexeme) -> int:
        start, _ = self.source.line_bounds(self._span(lexeme).line)
        line = self.source.text[start : lexeme.end]
        return len(line) - len(line.lstrip())

    def _span(self, lexeme: Lexeme) -> Span:
        return Span(self.source, lexeme.start, lexeme.end)


def _opener(closer: str) -> str:
    return {close: open for open, close in PAIRS.items()}[closer]


_LOOKALIKES = {
    "→": "->", "⟶": "->", "➔": "->", "⇒": "=>", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"',
    "‘": '"', "’": '"', "'": '"', "`": '"', "−": "-", "–": "-", "—": "-", "×": "*", "·": "*",
    "÷": "/", "≤": "<=", "≥": ">=", "≠": "!=", "（": "(", "）": ")", "［": "[", "］": "]",
    "｛": "{", "｝": "}", "，": ",", "：": ":", "；": ";", "＝": "=", "…": "...", "\u00a0": " ",
    "\u3000": " ", "&": "and", "&&": "and", "|": "or", "||": "or", "!": "not", "^": "**", "～": "~",
}  # fmt: skip


def _report_character(source: Source, lexeme: Lexeme, sink: Sink) -> None:
    at = Span(source, lexeme.start, lexeme.end)
    if lexeme.kind == "open_string":
        sink.error("E102", "the string is not closed on its line", at, help='end it with `"`')
        return
    char = lexeme.text
    meant = _LOOKALIKES.get(char)
    if char == "\0":
        sink.error("E101", "a NUL byte: this is not a text file", at)
    elif char in ("\u00a0", "\u3000"):
        sink.error("E101", "a blank that is not an ordinary space", at, help="write a space")
    elif meant:
        sink.error("E101", f"`{char}` is not part of the language", at, help=f"write `{meant}`")
    elif char.isalnum():
        notes = (Note("names are made of the letters a-z and A-Z, digits and `_`"),)
        sink.error("E101", f"`{char}` cannot be part of a name", at, notes=notes)
    else:
        sink.error("E101", f"`{char}` is not part of the language", at)


def closest_keyword(word: str, words: tuple[str, ...]) -> str | None:
    """The keyword among `words` that `word` is probably meant to be."""
    return suggest(word, words) if len(word) > 2 else None
