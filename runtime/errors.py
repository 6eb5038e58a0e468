"""The errors that end what a user asked for: a code, a sentence and a way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_SHOWN = 200  # characters of a name in a message


class Failure(Exception):
    """What went wrong and what to do about it.

    `code` is a diagnostic code ("E601"), `line` the 1-based line of the recipe that asked for it
    (0: none). The text of the exception is the message without code and help.
    """

    def __init__(self, code: str, message: str, help: str = "", line: int = 0):
        super().__init__(message)
        self.code, self.message, self.help, self.line = code, message, help, line


def show(value: object) -> str:
    """A name or path on one line: unprintable characters escaped, cut in the middle."""
    text = str(value)
    if len(text) > MAX_SHOWN:
        text = f"{text[: MAX_SHOWN // 2]}...{text[-MAX_SHOWN // 2 :]}"
    escaped = (c if c.isprintable() else c.encode("unicode_escape", "replace").decode()
               for c in text)
    return "".join(escaped)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """A sentence that suggests the nearest candidate, or lists them all."""
    names = sorted(candidates)
    close = difflib.get_close_matches(word[:64].lower(), names, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else f"there are: {', '.join(names)}"


def reason(error: OSError) -> str:
    """What the operating system says, in words."""
    return error.strerror or type(error).__name__
