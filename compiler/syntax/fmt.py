"""The formatter: spacing, indentation and long lines; words and comments stay as they are.

It works on lexemes, so whatever it prints parses to the same tree. Line breaks before `->` and
inside brackets are the writer's; further ones are added where a line is longer than WIDTH.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from lamina.compiler.errors import Sink, Source
from lamina.compiler.syntax.parse import parse
from lamina.compiler.syntax.scan import CONTINUES, KEYWORDS, PAIRS, Lexeme, scan, word_set

WIDTH = 100
INDENT = 2

_CLOSERS = frozenset(PAIRS.values())
_TIGHT_BEFORE = word_set(", ; . ~ ) ] :")


@dataclass(slots=True)
class _Item:
    """A word or comment, and how many newlines the writer put before it."""

    lexeme: Lexeme
    newlines: int
    text: str
    breaks: bool = False  # starts a line
    gap: bool = False  # a space before it, if it does not start a line
    sign: bool = False  # a unary `-` or `+`

    @property
    def comment(self) -> bool:
        return self.lexeme.kind == "comment"


@dataclass(slots=True)
class _Line:
    """A line of output: its items, and whether it begins a statement."""

    indent: int
    items: list[_Item]
    fresh: bool
    depth: int  # open brackets at its start
    pads: dict[int, int] = field(default_factory=dict)  # spaces added before an item

    @property
    def code(self) -> str:
        """The text without a trailing comment."""
        return " " * self.indent + self.before(len(self.items))

    @property
    def text(self) -> str:
        """The whole line."""
        at = len(self.items) - 1
        if not at or not self.items[at].comment:
            return self.code
        return f"{self.code}  {' ' * self.pads.get(at, 0)}{self.items[at].text}"

    def before(self, index: int) -> str:
        """The code left of an item."""
        out = []
        for i, item in enumerate(self.items[:index]):
            if item.comment and i:
                break
            out.append(" " * (self.pads.get(i, 0) + (i > 0 and item.gap)) + item.text)
        return "".join(out)


def format_source(source: Source) -> str:
    """The canonical text of a source; raises CompileError if it does not parse."""
    parse(source)
    items = _items(source)
    if not items:
        return ""
    _space(items)
    lines = _lay_out(items)
    while _break_long(lines):
        lines = _lay_out(items)
    for find, spread in ((_equals, 8), (_fat_arrow, 40), (_brace, 12), (_trailing, 40)):
        _align(lines, find, spread)
    return _print(lines)


def _items(source: Source) -> list[_Item]:
    """Words and comments with the newlines before them; needless `;` and breaks are dropped."""
    items: list[_Item] = []
    newlines = 0
    lexemes = scan(source, Sink())
    for i, lexeme in enumerate(lexemes):
        if lexeme.kind == "newline":
            newlines += len(lexeme.text)
            continue
        if lexeme.text == ";" and _needless(lexemes, i, newlines, items):
            continue
        text = lexeme.text.rstrip() if lexeme.kind == "comment" else lexeme.text
        items.append(_Item(lexeme, newlines, text))
        newlines = 0
    for previous, item in zip([None, *items], items, strict=False):
        after_comment = previous is not None and previous.comment
        item.breaks = previous is None or after_comment or item.newlines > 0
        if item.text == "," and not after_comment:
            item.breaks = False
    return items


def _needless(lexemes: list[Lexeme], index: int, newlines: int, items: list[_Item]) -> bool:
    following = lexemes[index + 1] if index + 1 < len(lexemes) else None
    ends = following is None or following.kind in ("newline", "comment") or following.text == "}"
    return ends or newlines > 0 or not items or items[-1].text == ";"


# ---------------------------------------------------------------------- spacing


def _space(items: list[_Item]) -> None:
    """Decide where a space goes between neighbours."""
    stack: list[str] = ["{"]  # open brackets; `(=` where `=` has spaces around it
    colons = [False]  # per bracket: a `:` since the last comma, so the next `=` has spaces
    previous: _Item | None = None
    for item in items:
        if item.comment:
            continue
        text, op = item.text, item.lexeme.kind == "op"
        if previous is not None:
            keyword = stack[-1] == "(" and not colons[-1]
            item.gap = _gap(previous, item, stack[-1], keyword)
        item.sign = op and text in ("-", "+") and not (previous and _is_value(previous))
        if op and text in PAIRS:
            bindings = previous is not None and previous.text == "with"
            stack.append("(=" if text == "(" and bindings else text)
            colons.append(False)
        elif op and text in _CLOSERS:
            stack.pop()
            colons.pop()
        elif op and text in (",", ":"):
            colons[-1] = text == ":"
        previous = item


def _gap(left: _Item, right: _Item, top: str, keyword: bool) -> bool:
    """Whether a space goes between two words; `top` is the innermost open bracket."""
    a, b = left.text, right.text
    left_op, right_op = left.lexeme.kind == "op", right.lexeme.kind == "op"
    if left_op and (a in ("(", "[", ".") or a == ":" and top == "[" or left.sign):
        return False
    if right_op and b == "}":
        return not (left_op and a == "{")
    if right_op and b in _TIGHT_BEFORE:
        return b == ":" and left_op and a == ","
    if keyword and (left_op and a == "=" or right_op and b == "="):
        return False
    return not (right_op and b in ("(", "[")) or _opens_apart(left, right)


def _opens_apart(left: _Item, right: _Item) -> bool:
    """`f(x)` and `x[0]` are tight, `-> (a, b)`, `as [B]` and `with (` are not."""
    if left.lexeme.kind == "op":
        return left.text not in (")", "]")
    if left.text in ("until", "limit", "over", "reverse"):
        return left.lexeme.end < right.lexeme.start  # a keyword or a name: the writer knows
    return left.text == "with" or left.text in KEYWORDS - {"_", "true", "false"}


def _is_value(item: _Item) -> bool:
    if item.lexeme.kind == "name":
        return item.text not in KEYWORDS or item.text in ("true", "false", "_", "new")
    return item.lexeme.kind in ("number", "string") or item.text in (")", "]", "~", "...")


# ----------------------------------------------------------------------- layout


def _lay_out(items: list[_Item]) -> list[_Line]:
    """Cut the items into lines and indent them."""
    lines: list[_Line] = []
    stack: list[tuple[str, int]] = []  # bracket and the indentation of its line
    last: _Item | None = None
    for index, item in enumerate(items):
        if item.breaks:
            lines.append(_start_line(items, index, stack, last))
        lines[-1].items.append(item)
        if item.comment:
            continue
        if item.lexeme.kind == "op" and item.text in PAIRS:
            stack.append((item.text, lines[-1].indent))
        elif item.lexeme.kind == "op" and item.text in _CLOSERS:
            stack.pop()
        last = item
    return lines


def _start_line(items: list[_Item], index: int, stack: list, last: _Item | None) -> _Line:
    code = next((item for item in items[index:] if not item.comment), None)
    closes = code is not None and code.lexeme.kind == "op" and code.text in _CLOSERS
    if closes and not items[index].comment:
        return _Line(stack[-1][1], [], False, len(stack))
    base = stack[-1][1] + INDENT if stack else 0
    goes_on = not closes and code is not None and _goes_on(code, stack, last)
    return _Line(base + INDENT if goes_on else base, [], not goes_on, len(stack))


def _goes_on(code: _Item, stack: list, last: _Item | None) -> bool:
    """Whether a line continues the statement, or the element, of the one before."""
    if last is None or last.lexeme.kind == "op" and last.text in PAIRS:
        return False
    if stack and stack[-1][0] != "{":
        return last.text != ","
    return code.text == "->" or last.lexeme.kind != "string" and last.text in CONTINUES


def _break_long(lines: list[_Line]) -> bool:
    """Add breaks to the lines that are too long; whether any could be added."""
    broken = False
    for line in lines:
        if len(line.code) > WIDTH:
            broken = _break(line.items) or broken
    return broken


def _break(items: list[_Item]) -> bool:
    """Break a line before its outermost arrows, or inside its longest outermost bracket."""
    arrows, brackets = _candidates(items)
    outer, inner = min(arrows, default=len(items)), min(brackets, default=len(items))
    chosen = arrows[outer] if arrows and outer <= inner else brackets.get(inner, (0, []))[1]
    for item in chosen:
        item.breaks = True
    return bool(chosen)


def _candidates(
    items: list[_Item],
) -> tuple[dict[int, list[_Item]], dict[int, tuple[int, list[_Item]]]]:
    """By depth: arrows that do not start the line; length and points of the longest bracket."""
    arrows: dict[int, list[_Item]] = {}
    brackets: dict[int, tuple[int, list[_Item]]] = {}
    stack: list[tuple[int, list[_Item]]] = []  # index of an open bracket, points inside it
    for i, item in enumerate(items):
        op = item.lexeme.kind == "op"
        if stack and not (op and item.text in _CLOSERS):
            opener, points = stack[-1]
            after_comma = items[i - 1].text == "," and items[opener].text != "{"
            if opener == i - 1 or after_comma:
                points.append(item)
        if op and item.text == "->" and i:
            arrows.setdefault(len(stack), []).append(item)
        elif op and item.text in PAIRS:
            stack.append((i, []))
        elif op and item.text in _CLOSERS and stack:
            start, points = stack.pop()
            if points and i - start > brackets.get(len(stack), (0, []))[0]:
                brackets[len(stack)] = (i - start, [*points, item])
    return arrows, brackets


# ------------------------------------------------------------- alignment, output


_NAMED = ("data", "metric", "shared", "const", "model", "block", "cell")


def _equals(line: _Line) -> int | None:
    """Index of the `=` of `name = value` or `data name = value`."""
    texts = [item.text for item in line.items[:3]]
    if line.fresh and "=" in texts[1:2] and line.items[0].lexeme.kind == "name":
        return 1
    return 2 if line.fresh and texts[2:] == ["="] and texts[0] in _NAMED else None


def _fat_arrow(line: _Line) -> int | None:
    """Index of the `=>` of a weight rule."""
    return next((i for i, item in enumerate(line.items) if item.text == "=>"), None)


def _brace(line: _Line) -> int | None:
    """Index of the `{` of a phase on one line."""
    phase = line.fresh and line.items[0].text == "phase" and line.items[-1].text == "}"
    return 2 if phase and len(line.items) > 3 else None


def _trailing(line: _Line) -> int | None:
    """Index of the comment at the end of a line."""
    last = len(line.items) - 1
    return last if last and line.items[last].comment else None


def _align(lines: list[_Line], find: Callable[[_Line], int | None], spread: int) -> None:
    """Align what `find` finds in neighbouring lines, if their lengths are much alike."""
    group: list[tuple[_Line, int]] = []
    for line in lines:
        index = find(line)
        if group and (index is None or _apart(group[-1][0], line)):
            _align_group(group, spread)
            group = []
        if index is not None:
            group.append((line, index))
    _align_group(group, spread)


def _apart(above: _Line, line: _Line) -> bool:
    return above.indent != line.indent or _blank(above, line)


def _align_group(group: list[tuple[_Line, int]], spread: int) -> None:
    columns = [line.indent + len(line.before(index)) for line, index in group]
    if len(group) < 2 or max(columns) - min(columns) > spread:
        return
    pads = [max(columns) - column for column in columns]
    if all(len(line.code) + pad <= WIDTH for (line, _), pad in zip(group, pads, strict=True)):
        for (line, index), pad in zip(group, pads, strict=True):
            line.pads[index] = pad


def _print(lines: list[_Line]) -> str:
    """The text, with at most one blank line in a row and one after each top-level body."""
    out: list[str] = []
    above: _Line | None = None
    for line in lines:
        if above is not None and _blank(above, line):
            out.append("")
        out.append(line.text)
        above = line
    return "\n".join(out) + "\n"


def _blank(above: _Line, line: _Line) -> bool:
    code = [item for item in above.items if not item.comment]
    if line.depth == 0 and line.fresh and code and code[-1].text == "}":
        return True
    opened = bool(code) and code[-1].lexeme.kind == "op" and code[-1].text in PAIRS
    closes = line.items[0].lexeme.kind == "op" and line.items[0].text in _CLOSERS
    return line.items[0].newlines > 1 and not opened and not closes
