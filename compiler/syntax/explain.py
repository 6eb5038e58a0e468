"""Why a declaration does not parse: from the place where the parser stopped to a diagnostic.

The rules are tried in order; each looks at the words around the place and at what the parser
would have accepted, and answers with a diagnostic or None.
"""

from dataclasses import dataclass

from lamina.compiler.errors import Diagnostic, Label, Note, Source, Span
from lamina.compiler.syntax.scan import (
    CONTINUES,
    DECLARATIONS,
    KEYWORDS,
    PAIRS,
    Chunk,
    Lexeme,
    closest_keyword,
    word_set,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Where the parser stopped, whether at the end of a line, and the terminals it accepts."""

    offset: int
    line_end: bool
    expected: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Place:
    """The words around a failure."""

    source: Source
    words: tuple[Lexeme, ...]  # those of the declaration
    index: int  # of the word in question
    first: int  # index of the first word of its statement
    opened: Lexeme | None  # the innermost open bracket
    call: bool  # whether that bracket is a call's
    failure: Failure

    @property
    def word(self) -> Lexeme | None:
        """The word that was not expected; None at the end of a line."""
        ended = self.failure.line_end or self.index >= len(self.words)
        return None if ended else self.words[self.index]

    @property
    def last(self) -> Lexeme | None:
        """The word before it."""
        return self.words[self.index - 1] if self.index else None

    @property
    def following(self) -> str:
        """The text of the word after it."""
        at = self.index + 1
        return self.words[at].text if at < len(self.words) else ""

    @property
    def statement(self) -> tuple[Lexeme, ...]:
        """The words of the statement, up to the failure."""
        return self.words[self.first : self.index]

    @property
    def span(self) -> Span:
        """The span of the unexpected word; at the end of a line, of the word before."""
        word = self.word or self.last or self.words[-1]
        return self.at(word)

    def at(self, word: Lexeme) -> Span:
        """The span of a word."""
        return Span(self.source, word.start, word.end)


def explain(source: Source, chunk: Chunk, failure: Failure) -> Diagnostic:
    """The diagnostic for a chunk that does not parse."""
    place = _locate(source, chunk, failure)
    for rule in _RULES:
        found = rule(place)
        if found is not None:
            return found
    return _unexpected(place)


def _locate(source: Source, chunk: Chunk, failure: Failure) -> _Place:
    words, count = chunk.lexemes, len(chunk.lexemes)
    index = next((i for i, word in enumerate(words) if word.end > failure.offset), count)
    stack: list[tuple[Lexeme, bool, int]] = []
    first = 0
    for i, word in enumerate(words[:index]):
        last = words[i - 1] if i else None
        inside = bool(stack) and stack[-1][0].text != "{"
        goes_on = word.text == "->" or last is not None and last.text in CONTINUES - {"{"}
        if not inside and (word.fresh and not goes_on or last and last.text in "{;"):
            first = i
        if word.text in PAIRS and word.kind == "op":
            call = word.text == "(" and last is not None and _ends_value(last)
            stack.append((word, call, first))
        elif word.kind == "op" and word.text in ")]}" and stack:
            first = stack.pop()[2]
    inside = bool(stack) and stack[-1][0].text != "{"
    if index < count and not inside and not failure.line_end:
        word, last = words[index], words[index - 1] if index else None
        goes_on = last is not None and last.text in CONTINUES - {"{"}
        if word.fresh and not goes_on or last and last.text in "{;":
            first = index
    opened, call, _ = stack[-1] if stack else (None, False, 0)
    return _Place(source, words, index, first, opened, call, failure)


def _ends_value(word: Lexeme) -> bool:
    if word.kind == "name":
        return word.text not in KEYWORDS or word.text in ("true", "false", "new", "_")
    return word.kind in ("number", "string") or word.text in (")", "]")


def _starts_value(word: Lexeme | None) -> bool:
    if word is None:
        return False
    if word.kind == "name":
        return word.text not in KEYWORDS or word.text in ("true", "false", "prev", "_")
    return word.kind in ("number", "string")


# ------------------------------------------------------------------------ rules

_FOREIGN = {
    "def": "write `block Name(...) { ... }`",
    "fn": "write `block Name(...) { ... }`",
    "function": "write `block Name(...) { ... }`",
    "func": "write `block Name(...) { ... }`",
    "class": "write `model Name(...) { ... }` or `block Name(...) { ... }`",
    "struct": "write `block Name(...) { ... }`",
    "return": "write `output name` or `output name = value`",
    "let": "a name is bound by `=` alone",
    "var": "a name is bound by `=` alone",
    "val": "a name is bound by `=` alone",
    "while": "write `scan Cell over T until condition limit n`",
    "import": 'write `from "file.lam" import Name`',
    "include": 'write `from "file.lam" import Name`',
    "if": "a choice is an expression: `a if condition else b`",
    "elif": "a choice is an expression: `a if condition else b`",
    "else": "a choice is an expression: `a if condition else b`",
    "for": "repetition is a stage of a flow: `x -> for i in items { Layer(i) }`",
    "repeat": "repetition is a stage of a flow: `x -> repeat 3 { Layer }`",
    "scan": "a scan is a stage of a flow: `x -> scan Cell(size) over T`",
}
_STATEMENTS = ("input", "output", "param", "buffer", "state", "memory", "shared", "tie", "assert")
_SETTINGS = ("data", "target", "metric", "weights", "phase", "freeze", "unfreeze")
_RULES_OF_WEIGHTS = ("map", "skip")


def _declaration(place: _Place) -> Diagnostic | None:
    """A word at the top level that starts no declaration."""
    word = place.words[0] if place.index <= 1 else place.word
    if word is None or place.opened is not None or place.index > 1 and not word.fresh:
        return None
    if word.text in DECLARATIONS or word.kind != "name":
        return None
    at = place.at(word)
    if word.text in _FOREIGN:
        return _foreign(word, at)
    if word.text in _STATEMENTS:
        help = "`model`, `block` and `cell` hold such statements"
        message = f"`{word.text}` stands outside of a model, block or cell"
        return Diagnostic("E100", message, at, help=help)
    return _unknown_keyword(word, at, DECLARATIONS, "declaration")


def _unknown_keyword(word: Lexeme, at: Span, words: tuple[str, ...], what: str) -> Diagnostic:
    meant = closest_keyword(word.text, words)
    help = f"did you mean `{meant}`?" if meant else None
    notes = () if meant else (Note(f"a {what} starts with {_either(words)}"),)
    return Diagnostic("E105", f"`{word.text}` starts no {what}", at, notes=notes, help=help)


def _foreign(word: Lexeme, at: Span) -> Diagnostic:
    message = f"there is no `{word.text}` statement"
    return Diagnostic("E116", message, at, help=_FOREIGN[word.text])


def _statement_keyword(place: _Place) -> Diagnostic | None:
    """`ouput y`: a misspelt or foreign word where a statement starts."""
    if place.opened is None or place.opened.text != "{":
        return None
    word = place.words[place.first]
    near = place.index - place.first
    if word.kind != "name" or near > 1:
        return None
    if word.text in _FOREIGN and (near == 0 or word.text not in KEYWORDS):
        follows_value = near == 0 or place.word and place.word.kind in ("name", "string", "number")
        return _foreign(word, place.at(word)) if follows_value else None
    if near == 0 or place.word is None or place.word.kind not in ("name", "string"):
        return None
    recipe = place.words[0].text == "recipe"
    words = (*_SETTINGS, *_RULES_OF_WEIGHTS) if recipe else _STATEMENTS
    at = place.at(word)
    other = _STATEMENTS if recipe else (*_SETTINGS, *_RULES_OF_WEIGHTS)
    if word.text in other:
        home = "a model, block or cell" if recipe else "a recipe"
        return Diagnostic("E100", f"`{word.text}` belongs in {home}", at)
    if word.text in KEYWORDS:
        return None
    return _unknown_keyword(word, at, words, "statement")


def _misspelt(place: _Place) -> Diagnostic | None:
    """A word that is nearly a keyword that could stand here."""
    word = place.word
    if word is None or word.kind != "name" or word.text in KEYWORDS:
        return None
    words = tuple(t.lower() for t in place.failure.expected if t.isalpha() and t in _WORDS)
    meant = closest_keyword(word.text, words)
    if meant is None:
        return None
    message = f"`{word.text}` cannot stand here"
    return Diagnostic("E105", message, place.span, help=f"did you mean `{meant}`?")


_WORDS = word_set(
    "IMPORT AS REPEAT FOR SCAN IF ELSE OR AND NOT IN OVER REVERSE WITH UNTIL LIMIT SHARED EXCEPT"
)


def _hole(place: _Place) -> Diagnostic | None:
    word = place.word
    if word is None or word.text != "_" or "NAME" not in place.failure.expected:
        return None
    help = "give it a name; a name that is never used costs nothing"
    return Diagnostic("E110", "`_` is the piped value, not a name", place.span, help=help)


def _reserved(place: _Place) -> Diagnostic | None:
    """A keyword where a name is bound or used."""
    word = place.word
    if word is None or word.text not in KEYWORDS or word.text == "_":
        return None
    starts = place.index == place.first
    binds = place.following in ("=", ":", ",") or place.last and place.last.kind == "name"
    if "NAME" not in place.failure.expected or word.fresh and not binds:
        return None
    if starts and not binds:
        return None
    message = f"`{word.text}` is a keyword and cannot be a name"
    return Diagnostic("E109", message, place.span, help=f"write `{word.text}_` or another name")


def _keyword_target(place: _Place) -> Diagnostic | None:
    """`state = x`: the keyword was read as the start of its statement."""
    last, word = place.last, place.word
    if last is None or word is None or last.text not in KEYWORDS:
        return None
    if place.index - place.first != 1 or word.text not in ("=", ":", ","):
        return None
    message = f"`{last.text}` is a keyword and cannot be a name"
    help = f"write `{last.text}_` or another name"
    return Diagnostic("E109", message, place.at(last), help=help)


def _unfinished(place: _Place) -> Diagnostic | None:
    """An operator or arrow with nothing to its right."""
    last, word = place.last, place.word
    if last is None or last.kind == "string" or last.text not in CONTINUES - set("([{"):
        return None
    if last.text == "," and not (word and (word.fresh or word.text == "}")):
        return None
    if place.opened and place.opened.text != "{" and last.text == ",":
        return None
    if _starts_value(word) and last.text != ",":
        return None
    if word is not None and word.text in ("(", "[", "{"):
        return None
    if word is not None and word.kind == "name" and not (word.fresh or word.text in _INFIX):
        return None
    message = f"a {_wanted(place, last)} is missing after `{last.text}`"
    return Diagnostic("E115", message, place.at(last))


def _wanted(place: _Place, last: Lexeme) -> str:
    if last.text in (".", ","):
        return "name" if "NAME" in place.failure.expected or last.text == "." else "string"
    if last.text == ":" and "NUMBER" not in place.failure.expected:
        return "type"
    return "stage" if last.text in ("->", ":") else "value"


def _nothing_before(place: _Place) -> Diagnostic | None:
    """`( * 2`, `= -> f`: an operator with nothing to its left."""
    word = place.word
    if word is None or word.text not in _BINARY or "NUMBER" not in place.failure.expected:
        return None
    return Diagnostic("E115", f"a value is missing before `{word.text}`", place.span)


_BINARY = word_set("-> => * / // % ** @ == != < <= > >= ~ . and or in")


_INFIX = ("if", "else", "and", "or", "in", "as")


def _empty_body(place: _Place) -> Diagnostic | None:
    last, word = place.last, place.word
    if last is None or word is None or (last.text, word.text) != ("{", "}"):
        return None
    span = place.at(last).to(place.at(word))
    return Diagnostic("E115", "the braces hold no stage", span, help="write `{ Layer(size) }`")


def _bound_after_arrow(place: _Place) -> Diagnostic | None:
    word, last = place.word, place.last
    if word is None or word.text != "=" or last is None:
        return None
    if all(other.text != "->" for other in place.statement):
        return None
    name = last.text if last.kind == "name" else "name"
    help = f"write `{name} = ...` at the start of the statement"
    labels = (Label(place.span, "a name is bound on the left of `=` only"),)
    message = "a name is bound after an arrow"
    return Diagnostic("E114", message, place.span, labels, help=help)


def _comparison_wanted(place: _Place) -> Diagnostic | None:
    word = place.word
    if word is None or word.text != "=" or not place.statement:
        return None
    conditions = ("assert", "if", "until")
    if all(other.text not in conditions for other in place.statement):
        return None
    return Diagnostic("E107", "`=` does not compare", place.span, help="write `==`")


def _colon_or_equals(place: _Place) -> Diagnostic | None:
    """`conv(6, kernel: 5)`, `batch: 128`, `target label = i32[B]`."""
    word, last = place.word, place.last
    if word is None or last is None or last.kind != "name":
        return None
    name = last.text
    if word.text == ":" and place.opened and place.opened.text == "(" and place.call:
        message = "an argument is given with `=`"
        return Diagnostic("E107", message, place.span, help=f"write `{name}=`")
    if word.text == ":" and "EQUAL" in place.failure.expected:
        message = f"the value of `{name}` follows an `=`"
        return Diagnostic("E107", message, place.span, help=f"write `{name} =`")
    if word.text == "=" and "COLON" in place.failure.expected:
        message = f"the type of `{name}` follows a `:`"
        return Diagnostic("E107", message, place.span, help=f"write `{name}:`")
    return None


def _missing_mark(place: _Place) -> Diagnostic | None:
    """`output y relu(x)`, `input image f32[B]`, `image: f32[B]`."""
    word, last, expected = place.word, place.last, place.failure.expected
    if last is None or not expected & {"EQUAL", "COLON"} or place.opened and place.call:
        return None
    if any(other.text in ("=", "->") for other in place.statement):
        return None
    if word is None:
        texts = [other.text for other in place.statement]
        if texts[1:2] != [":"] or "EQUAL" not in expected:
            return None
        message = f"`{texts[0]}` has a type but no value"
        help = f"write `= value` after it, or `input {texts[0]}: ...` for an input"
        return Diagnostic("E107", message, place.at(place.words[place.first]), help=help)
    if not (_starts_value(word) or word.text in ("[", "(", "-")):
        return None
    listed = "COMMA" in expected and place.following not in ("(", "->", ".", "[")
    if listed and word.kind == "name":
        return None  # `output a b`: a comma
    typed = word.text == "[" or place.following == "["
    mark = ":" if "COLON" in expected and (typed or "EQUAL" not in expected) else "="
    message = f"`{mark}` is missing before `{_short(word)}`"
    return Diagnostic("E107", message, place.span)


def _chained(place: _Place) -> Diagnostic | None:
    comparisons = ("==", "!=", "<", "<=", ">", ">=")
    word = place.word
    if word is None or word.text not in comparisons:
        return None
    earlier = [other for other in place.statement if other.text in comparisons]
    if not earlier or place.last is not None and place.last.text in CONTINUES:
        return None
    labels = (Label(place.at(earlier[-1]), ""), Label(place.span, "comparisons do not chain"))
    message = "two comparisons in a row"
    return Diagnostic("E111", message, place.span, labels, help="write `a < b and b < c`")


def _no_else(place: _Place) -> Diagnostic | None:
    if "ELSE" not in place.failure.expected or place.last is None or not _ends_value(place.last):
        return None
    opening = [other for other in place.statement if other.text == "if"]
    closing = [other for other in place.statement if other.text == "else"]
    if len(opening) <= len(closing) or place.word is not None and _starts_value(place.word):
        return None
    message = "the conditional has no `else`"
    return Diagnostic("E117", message, place.at(opening[-1]), help="write `a if condition else b`")


def _missing_comma(place: _Place) -> Diagnostic | None:
    word, last = place.word, place.last
    if last is None or word is None or not (_ends_value(last) or last.text == "~"):
        return None
    if not _starts_value(word) or "COMMA" not in place.failure.expected:
        return None
    first = place.words[place.first].text
    bound = any(other.text in ("=", "->") for other in place.statement)
    listed = not bound and (first == "output" or "EQUAL" in place.failure.expected)
    listed = listed or first == "assert" and word.kind == "string"
    if (place.opened is None or place.opened.text == "{") and not listed:
        return None
    if place.opened and place.opened.text == "(" and not place.call and place.following == "(":
        return None  # a parenthesised flow: an arrow is missing
    gap = Span(place.source, last.start, word.end)
    message = f"a comma is missing between `{_short(last)}` and `{_short(word)}`"
    return Diagnostic("E108", message, gap, help="write `,` between them")


def _missing_arrow(place: _Place) -> Diagnostic | None:
    word, last = place.word, place.last
    if last is None or word is None or not _ends_value(last):
        return None
    stage = word.text in ("as", "repeat", "scan", "for") or _starts_value(word)
    if not stage or word.kind in ("number", "string") or word.fresh:
        return None
    if "ARROW" not in place.failure.expected:
        return None
    message = f"`->` is missing before `{_short(word)}`"
    return Diagnostic("E106", message, place.span, help=f"write `-> {_short(word)}`")


def _nameless(place: _Place) -> Diagnostic | None:
    """`x -> conv(3)` as a statement."""
    if place.opened is None or place.opened.text != "{":
        return None
    words = place.statement
    if len(words) > 1 or words and not _ends_value(words[0]):
        return None
    word = words[0] if words else place.word
    if word is None or not (_starts_value(word) or word.text in ("(", "[", "-", "prev")):
        return None
    if words and place.word is not None and place.word.text not in _AFTER_VALUE:
        return None
    help = "write `name = ...`, or `output name = ...`"
    return Diagnostic("E113", "the value is not given a name", place.at(word), help=help)


_AFTER_VALUE = word_set("-> ( [ . + - * / // % ** @ == != < <= > >= } ;")


def _fat_arrow(place: _Place) -> Diagnostic | None:
    word = place.word
    if word is None or (word.text, "ARROW" in place.failure.expected) != ("=>", True):
        return None
    message = "data flows through `->`; `=>` maps weights"
    return Diagnostic("E106", message, place.span, help="write `->`")


_RULES = (
    _declaration, _statement_keyword, _keyword_target, _empty_body, _hole, _reserved, _misspelt,
    _unfinished, _nothing_before, _bound_after_arrow, _comparison_wanted, _colon_or_equals,
    _missing_mark, _chained, _no_else, _fat_arrow, _missing_comma, _nameless, _missing_arrow,
)  # fmt: skip


def _unexpected(place: _Place) -> Diagnostic:
    word = place.word
    names = _expected_names(place)
    if word is None:
        at_end = place.index >= len(place.words)
        message = f"the {'declaration' if at_end else 'line'} ends too early"
    elif len(names) == 1 and names[0].startswith("`"):
        return Diagnostic("E100", f"{names[0]} is missing before `{_short(word)}`", place.span)
    elif _operator_missing(place):
        before = place.words[place.index - 1]
        message = f"an operator is missing between `{_short(before)}` and `{_short(word)}`"
        called = before.kind == "name" and word.kind == "number"
        help = f"write `{_short(before)}({_short(word)})`" if called else None
        return Diagnostic("E100", message, place.at(before).to(place.span), help=help)
    else:
        message = f"unexpected `{_short(word)}`"
    help = None if word is None else _bracketed(place, word)
    notes = (Note("expected " + _either(names, quote="")),) if names and not help else ()
    return Diagnostic("E100", message, place.span, notes=notes, help=help)


_OPERATORS = word_set("+ - * / // % ** @ == != < <= > >= and or in")


def _bracketed(place: _Place, word: Lexeme) -> str | None:
    """The edit for `x -> f + z`, where an operator follows a flow."""
    start = _flow_start(place) if word.text in _OPERATORS else None
    if start is None:
        return None
    flow = place.source.text[start : place.words[place.index - 1].end]
    rest = place.source.text[word.start : _operand_end(place)]
    short = len(flow) + len(rest) < 80 and "\n" not in flow + rest
    shown = f"({flow}) {rest}" if short else f"(... -> ...) {word.text} ..."
    return f"put the flow in brackets: {shown}"


def _flow_start(place: _Place) -> int | None:
    """Where the flow before the failure starts; None where no arrow is before it."""
    depth, arrow, start = 0, False, place.words[place.index - 1].start
    for word in reversed(place.words[place.first : place.index]):
        if word.kind == "op" and word.text in ")]}":
            depth += 1
        elif word.kind == "op" and word.text in PAIRS:
            depth -= 1
        if depth < 0 or depth == 0 and word.text in ("=", ",", "if", "else", "assert"):
            break
        arrow |= depth == 0 and word.text == "->"
        start = word.start
    return start if arrow else None


def _operand_end(place: _Place) -> int:
    """Where what follows an operator ends: at the line's end or at a bracket's."""
    depth, end = 0, place.words[place.index].end
    for word in place.words[place.index + 1 :]:
        if word.kind == "op" and word.text in PAIRS:
            depth += 1
        elif word.kind == "op" and word.text in ")]}":
            depth -= 1
        if depth < 0 or depth == 0 and (word.fresh or word.text in ",;"):
            break
        end = word.end
    return end


def _operator_missing(place: _Place) -> bool:
    word, last = place.word, place.last
    if word is None or last is None or word.fresh or "string" in (word.kind, last.kind):
        return False
    return _ends_value(last) and _starts_value(word)


def _expected_names(place: _Place) -> tuple[str, ...]:
    """What could stand here, in words.

    The parser's own answer is wider than the truth: it has closers of other contexts.
    """
    opened = place.opened.text if place.opened else ""
    wrong = {closer for opener, closer in PAIRS.items() if opener != opened}
    wrong |= {",", ":"} if opened == "{" and "ARROW" in place.failure.expected else set()
    names = {_TERMINALS.get(t, "") for t in place.failure.expected}
    names = {name for name in names if name and name.strip("`") not in wrong}
    if {"a name", "a number", "a string"} <= names:
        names = names - {"a name", "a number", "a string", "`(`", "`[`"} | {"a value"}
    return tuple(sorted(names))


def _short(word: Lexeme) -> str:
    return word.text if len(word.text) <= 40 else word.text[:37] + "..."


def _either(words: tuple[str, ...], quote: str = "`") -> str:
    shown = [f"{quote}{word}{quote}" for word in words]
    if len(shown) > 8:
        shown = [*shown[:7], "others"]
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " or " + shown[-1]


_TERMINALS = {
    "NAME": "a name", "NUMBER": "a number", "STRING": "a string", "ARROW": "`->`",
    "EQUAL": "`=`", "COLON": "`:`", "COMMA": "`,`", "LPAR": "`(`",
    "RPAR": "`)`", "LSQB": "`[`", "RSQB": "`]`", "LBRACE": "`{`", "RBRACE": "`}`",
    "OVER": "`over`", "ELSE": "`else`", "IN": "`in`", "FOR": "`for`", "IMPORT": "`import`",
    "MEMBER": "a name", "TIMES": "an operator", "COMPARE": "an operator",
    "FATARROW": "`=>`", "UNTIL": "`until`", "WITH": "`with`", "LIMIT": "`limit`",
    "REVERSE": "`reverse`",
}  # fmt: skip
