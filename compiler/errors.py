"""Sources, spans and diagnostics: the only place that formats a diagnostic."""

import difflib
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

# The single registry: code -> title. Every code has a section in grammar/errors.md.
# E1xx syntax · E2xx operator arguments · E3xx names, shapes, types · E4xx blocks and instances
# E5xx recipes · E6xx data and training files · E7xx weights · E9xx limits and unsupported
CODES: dict[str, str] = {
    "E100": "unexpected text",
    "E101": "stray character",
    "E102": "unterminated string",
    "E103": "unclosed bracket",
    "E104": "unmatched closing bracket",
    "E105": "unknown keyword",
    "E106": "missing `->`",
    "E107": "`:` or `=` missing or mixed up",
    "E108": "missing comma",
    "E109": "keyword used as a name",
    "E110": "`_` used as a name",
    "E111": "chained comparison",
    "E112": "malformed number",
    "E113": "value without a name",
    "E114": "name bound after an arrow",
    "E115": "unfinished expression",
    "E116": "statement of another language",
    "E117": "conditional without `else`",
    "E118": "unreadable file",
    "E119": "positional argument after a keyword argument",
    "E120": "name given twice",
    "E201": "wrong number of operands",
    "E202": "unknown operator setting",
    "E203": "missing operator setting",
    "E204": "wrong element type",
    "E205": "mixed element types",
    "E206": "operator setting of the wrong kind",
    "E207": "size below zero",
    "E210": "operands do not broadcast",
    "E211": "no such axis",
    "E212": "reshape changes the number of elements",
    "E213": "not a permutation of the axes",
    "E214": "index outside an axis",
    "E215": "impossible padding",
    "E216": "pieces of different shapes",
    "E217": "squeezed axis is not 1",
    "E218": "unequal parts",
    "E219": "fused group with other operands",
    "E220": "inner sizes of a product differ",
    "E221": "wrong number of channels",
    "E222": "groups do not divide the channels",
    "E223": "kernel larger than its input",
    "E224": "window setting too small",
    "E225": "wrong rank for the operator",
    "E226": "share outside 0 to 1",
    "E227": "predictions and labels do not fit",
    "E228": "window setting of the wrong form",
    "E229": "padding as large as the kernel",
    "E230": "unknown initialiser",
    "E231": "initialiser does not fit the shape",
    "E301": "unknown name",
    "E302": "name defined twice",
    "E303": "imported name does not exist",
    "E304": "imported file not found",
    "E305": "files import each other",
    "E306": "`_` where nothing is piped",
    "E307": "unknown member",
    "E308": "weights of a layer that was not used yet",
    "E309": "not a tensor",
    "E310": "wrong number of axes",
    "E311": "size differs from the annotation",
    "E312": "different shapes",
    "E313": "element type differs from the annotation",
    "E314": "missing or unsuitable shape",
    "E315": "symbol without a whole solution",
    "E316": "unknown element type",
    "E317": "not a whole size",
    "E318": "not known when compiled",
    "E319": "axis name that fits no single axis",
    "E320": "unsuitable initial value",
    "E321": "parameter of unknown size",
    "E322": "shared parameter with two shapes",
    "E401": "wrong number of inputs",
    "E402": "definition that contains itself",
    "E403": "condition not known when compiled",
    "E404": "impossible compile-time computation",
    "E405": "settings in the wrong place",
    "E406": "not a layer",
    "E407": "wrong number of names",
    "E408": "too many settings",
    "E409": "unknown setting",
    "E410": "missing setting",
    "E411": "setting of the wrong type",
    "E412": "no output",
    "E413": "assertion does not hold",
    "E414": "tie to an unknown parameter",
    "E415": "no such model",
    "E416": "bad option",
    "E417": "cell and scan",
    "E418": "size that differs from example to example",
    "E419": "choosing tokens",
    "E501": "loss or metric is not a number",
    "E502": "unknown recipe setting",
    "E503": "bad recipe value",
    "E504": "missing recipe part",
    "E505": "unknown recipe",
    "E506": "pattern that matches nothing",
    "E507": "target misused",
    "E601": "data not found",
    "E602": "unreadable data file",
    "E603": "damaged data file",
    "E604": "damaged picture",
    "E605": "no data",
    "E606": "unknown data source",
    "E607": "unknown transform",
    "E608": "bad argument of a data source, transform or schedule",
    "E609": "data of the wrong size",
    "E610": "label out of range",
    "E611": "data does not fit the model's inputs",
    "E612": "optional package missing",
    "E613": "data pipeline out of order",
    "E650": "loss or weights are not finite",
    "E651": "the folder already holds a run",
    "E652": "the folder is in use",
    "E653": "bad training setting",
    "E701": "no checkpoint or weights",
    "E702": "damaged checkpoint",
    "E703": "weights do not fit the model",
    "E704": "cannot write",
    "E705": "checkpoint of a newer version",
    "E706": "damaged weights file",
    "E707": "checkpoint of another recipe",
    "E900": "nested too deeply",
    "E901": "too large",
}

WIDTH = 100  # display columns of an excerpt before it is cut around its span
MAX_TEXT = 600  # characters of a message: a 10 kB name must not flood the terminal
LIMIT = 100  # diagnostics shown by one Sink


@dataclass(frozen=True, slots=True)
class Source:
    """A named text, with cheap lookup of lines by offset."""

    name: str
    text: str = field(repr=False)
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        starts, at = [0], self.text.find("\n")
        while at >= 0:
            starts.append(at + 1)
            at = self.text.find("\n", at + 1)
        object.__setattr__(self, "_starts", tuple(starts))

    def position(self, offset: int) -> tuple[int, int]:
        """1-based line and column (in characters) of `offset`."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def line_bounds(self, line: int) -> tuple[int, int]:
        """Offsets of the 1-based `line`, without its line ending."""
        start = self._starts[line - 1]
        last = line == len(self._starts)
        end = len(self.text) if last else self._starts[line] - 1
        if end > start and self.text[end - 1] == "\r":
            end -= 1
        return start, end


@dataclass(frozen=True, slots=True)
class Span:
    """The characters `start` to `end` (exclusive) of a source."""

    source: Source
    start: int
    end: int

    @property
    def line(self) -> int:
        """1-based line of the start."""
        return self.source.position(self.start)[0]

    @property
    def column(self) -> int:
        """1-based column of the start, in characters."""
        return self.source.position(self.start)[1]

    @property
    def text(self) -> str:
        """The text the span covers."""
        return self.source.text[self.start : self.end]

    def to(self, other: "Span") -> "Span":
        """The span from here to the end of `other`."""
        return Span(self.source, self.start, max(self.end, other.end))


@dataclass(frozen=True, slots=True)
class Label:
    """A remark printed beside an underlined span."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """A further fact; its span, if any, is shown as a line number."""

    text: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One error: a code, a message and where it is; `path` is the instance path."""

    code: str
    message: str
    span: Span
    labels: tuple[Label, ...] = ()
    notes: tuple[Note, ...] = ()
    help: str | None = None
    path: str = ""


class CompileError(Exception):
    """One or more diagnostics; its text is their rendering."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__(diagnostics)
        self.diagnostics: tuple[Diagnostic, ...] = diagnostics

    def __str__(self) -> str:
        return "\n\n".join(render(diagnostic) for diagnostic in self.diagnostics)


class Sink:
    """Collects the diagnostics of one run."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._seen: dict[Diagnostic, None] = {}

    def __bool__(self) -> bool:
        return bool(self._seen)

    def add(self, diagnostic: Diagnostic) -> None:
        """Keep a diagnostic; an exact duplicate is dropped."""
        self._seen.setdefault(diagnostic)

    def error(
        self,
        code: str,
        message: str,
        span: Span,
        *,
        labels: Iterable[Label] = (),
        notes: Iterable[Note] = (),
        help: str | None = None,
        path: str = "",
    ) -> None:
        """Add a diagnostic made of its parts."""
        self.add(Diagnostic(code, message, span, tuple(labels), tuple(notes), help, path))

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """All of them by file and position, cut at the limit with a note."""
        ordered = sorted(self._seen, key=lambda d: (d.span.source.name, d.span.start, d.span.end))
        shown, more = ordered[: self._limit], len(ordered) - self._limit
        if more > 0:
            note = Note(f"{more} more {'error is' if more == 1 else 'errors are'} not shown")
            shown[-1] = replace(shown[-1], notes=(*shown[-1].notes, note))
        return tuple(shown)

    def raise_if_any(self) -> None:
        """Raise what was collected as one CompileError."""
        if self._seen:
            raise CompileError(*self.diagnostics)


def suggest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `word` is most likely a misspelling of, or None."""
    if not 1 < len(word) < 64:
        return None
    names = sorted(set(candidates) - {word})
    for name in names:
        if name.lower() == word.lower():
            return name
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.65)
    return close[0] if close else None


def render(diagnostic: Diagnostic, color: bool = False) -> str:
    """The diagnostic as text, several lines without a final newline."""
    paint = _ansi if color else _plain
    groups = _by_source(diagnostic)
    gutter = max(len(str(line)) for _, lines in groups for line in lines)
    head = paint("error", f"error[{diagnostic.code}]: ") + paint("bold", clean(diagnostic.message))
    out = [head]
    for index, (source, lines) in enumerate(groups):
        out += _excerpt(diagnostic, index, source, lines, gutter, paint)
    remarks = _remarks(diagnostic, paint)
    if remarks:
        out.append(paint("gutter", " " * gutter + " |"))
    return "\n".join(out + remarks)


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """`text` on one line, unprintable characters escaped, cut in the middle at `limit`."""
    if len(text) > limit:
        text = f"{text[: limit // 2]}...{text[-limit // 2 :]}"
    return "".join(_shown(char)[0] for char in text)


_STYLES = {"error": "1;31", "bold": "1", "gutter": "1;34", "note": "1;36", "help": "1;32"}


def _ansi(style: str, text: str) -> str:
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def _plain(style: str, text: str) -> str:
    return text


def _by_source(diagnostic: Diagnostic) -> list[tuple[Source, dict[int, list[Label]]]]:
    """Labels by source and line; the primary span is first and always underlined."""
    labels = list(diagnostic.labels)
    if all((at.span.start, at.span.source) != _place(diagnostic) for at in labels):
        # Two labels on the primary's line already show what it spans: do not smear over them.
        inside = [at for at in labels if _within(at.span, diagnostic.span)]
        if not inside:
            labels.insert(0, Label(diagnostic.span, ""))
    groups: dict[str, tuple[Source, dict[int, list[Label]]]] = {}
    primary = diagnostic.span.source
    groups[primary.name] = (primary, {diagnostic.span.line: []})
    for label in labels:
        source = label.span.source
        _, lines = groups.setdefault(source.name, (source, {}))
        lines.setdefault(label.span.line, []).append(label)
    return list(groups.values())


def _place(diagnostic: Diagnostic) -> tuple[int, Source]:
    return diagnostic.span.start, diagnostic.span.source


def _within(inner: Span, outer: Span) -> bool:
    inside = outer.start <= inner.start and inner.end <= outer.end
    return inside and inner.source.name == outer.source.name and inner.line == outer.line


def _excerpt(
    diagnostic: Diagnostic,
    index: int,
    source: Source,
    lines: dict[int, list[Label]],
    gutter: int,
    paint,
) -> list[str]:
    """The location line and the underlined lines of one source."""
    span = diagnostic.span if index == 0 else min(lines.items())[1][0].span
    arrow = "-->" if index == 0 else ":::"
    place = f"{' ' * gutter}{arrow} {clean(source.name)}:{span.line}:{span.column}"
    if index == 0 and diagnostic.path:
        place = f"{place:<49} in {clean(diagnostic.path)}"
    if not source.text:
        return [place.replace(":1:1", "", 1)]  # a file that cannot be read has no lines
    bar = paint("gutter", " " * gutter + " |")
    out = [place, bar]
    previous = None
    for line in sorted(lines):
        if previous is not None and line > previous + 1:
            out.append(paint("gutter", "..."))
        code, marks = _underline(source, line, lines[line])
        out.append((paint("gutter", f"{line:>{gutter}} |") + " " + code).rstrip())
        if marks:
            out.append(bar + " " + paint("error", marks))
        previous = line
    return out


def _underline(source: Source, line: int, labels: list[Label]) -> tuple[str, str]:
    """The displayed line and the row of carets under it, with the labels' texts after it."""
    start, end = source.line_bounds(line)
    labels = sorted(labels, key=lambda label: label.span.start)
    focus = labels[0].span.start if labels else start
    first, last = _window(source.text, start, end, focus)
    text, columns = "... " if first > start else "", []
    width = len(text)
    for char in source.text[first:last]:
        columns.append(width)
        shown, columns_wide = _shown(char)
        text, width = text + shown, width + columns_wide
    columns.append(width)
    if last < end:
        text += " ..."
    marks = [" "] * width
    for label in labels:
        low = min(max(label.span.start, first), last)
        high = min(max(label.span.end, low), last)
        stop = max(columns[high - first], columns[low - first] + 1)
        marks.extend(" " * (stop - len(marks)))
        marks[columns[low - first] : stop] = "^" * (stop - columns[low - first])
    row = "".join(marks).rstrip()
    texts = "   ".join(clean(label.text) for label in labels if label.text)
    return text, f"{row}  {texts}" if texts else row


def _window(text: str, start: int, end: int, focus: int) -> tuple[int, int]:
    """The part of a long line to show: whole if it fits, else around `focus`."""
    if end - start <= WIDTH:
        return start, end
    first = max(start, min(focus - WIDTH // 3, end - WIDTH))
    return first, min(end, first + WIDTH)


def _shown(char: str) -> tuple[str, int]:
    """How a character is displayed, and in how many columns."""
    if " " <= char <= "~":
        return char, 1
    if char == "\t":
        return "    ", 4
    if unicodedata.category(char)[0] in "CZM":
        # Controls, direction overrides, odd blanks and combining marks would distort the line.
        escaped = f"\\u{{{ord(char):x}}}"
        return escaped, len(escaped)
    return char, 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _remarks(diagnostic: Diagnostic, paint) -> list[str]:
    """The note and help lines; places of notes are aligned."""
    notes = [(clean(note.text), note.span) for note in diagnostic.notes]
    column = max((len(text) for text, span in notes if span), default=0)
    out = []
    for text, span in notes:
        place = f"{text:<{column}}  ({_line_of(span, diagnostic.span)})" if span else text
        out.append(paint("note", "note: ") + place)
    if diagnostic.help:
        out.append(paint("help", "help: ") + clean(diagnostic.help))
    return out


def _line_of(span: Span, primary: Span) -> str:
    if span.source.name == primary.source.name:
        return f"line {span.line}"
    return f"{clean(span.source.name)}:{span.line}"
