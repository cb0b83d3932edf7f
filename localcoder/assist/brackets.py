"""Brackets of source text, told apart from those in strings and comments, without knowing the language's grammar."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

_CLOSER_OF = {"(": ")", "[": "]", "{": "}"}
_HASH_COMMENTS = re.compile(
    r"\.(?:py[ix]?|(?:ba|z)?sh|rb|p[lm]|r|jl|ya?ml|toml|ini|cfg|mk|cmake|tcl|nim|exs?|tf)?", re.IGNORECASE
)
_DASH_COMMENTS = re.compile(r"\.(?:sql|lua|hs|elm|ad[abs]|vhdl?)", re.IGNORECASE)

# A string that the text ends within is one, too: what would close it may be still to come.
_STRINGS = r"""(?P<string>"(?:\\.|[^"\\\n])*(?:"|\Z)|'(?:\\.|[^'\\\n])*(?:'|\Z))"""
_BRACKETS = r"(?P<bracket>[()\[\]{}])"
_TRIPLE = r'(?P<long>"{3}(?:\\.|[^\\])*?(?:"{3}|\Z)|\'{3}(?:\\.|[^\\])*?(?:\'{3}|\Z))'
_BLOCK = r"(?P<long>/\*.*?(?:\*/|\Z)|`(?:\\.|[^`\\])*(?:`|\Z))"
_PATTERNS = {
    "#": re.compile(rf"{_TRIPLE}|{_STRINGS}|#[^\n]*|{_BRACKETS}", re.S),
    "--": re.compile(rf"(?P<long>/\*.*?(?:\*/|\Z))|{_STRINGS}|--[^\n]*|{_BRACKETS}", re.S),
    "//": re.compile(rf"{_BLOCK}|{_STRINGS}|//[^\n]*|{_BRACKETS}", re.S),
}


def line_comment_of(path: str | None) -> str:
    """What begins a comment up to the end of the line in files of this name: "#", "--" or "//". None: as Python."""
    if path is None:
        return "#"
    suffix = PurePath(path).suffix or "."
    if _HASH_COMMENTS.fullmatch(suffix):
        return "#"
    return "--" if _DASH_COMMENTS.fullmatch(suffix) else "//"


@dataclass(frozen=True)
class Brackets:
    """What is left of a text's brackets once pairs are taken out, as (character, offset).

    Attributes:
        opened: opening ones that nothing closes.
        closed: closing ones that nothing opened.
        literal: whether the text ends within a string or comment that goes on in the next line.
    """

    opened: tuple[tuple[str, int], ...]
    closed: tuple[tuple[str, int], ...]
    literal: bool


def find_brackets(text: str, comment: str, start: int = 0) -> Brackets:
    """Pairs the brackets of `text`.

    Args:
        comment: as `line_comment_of` gives it.
        start: only what lies from here on is reported; a closing bracket there that an opening one before `start`
            belongs to counts as closed.
    """
    stack: list[tuple[str, int]] = []
    closed: list[tuple[str, int]] = []
    literal = False
    for match in _PATTERNS[comment].finditer(text):
        found = match["bracket"]
        if match["long"] is not None:
            literal = match.end() == len(text) and not _is_ended(match["long"])
        if found is None:
            continue
        if found in _CLOSER_OF:
            stack.append((found, match.start()))
        elif stack and _CLOSER_OF[stack[-1][0]] == found:
            _, at = stack.pop()
            if at < start <= match.start():
                closed.append((found, match.start()))
        elif match.start() >= start:
            closed.append((found, match.start()))
    return Brackets(tuple((c, at) for c, at in stack if at >= start), tuple(closed), literal)


def _is_ended(literal: str) -> bool:
    for mark in ('"""', "'''", "`"):
        if literal.startswith(mark):
            return len(literal) >= 2 * len(mark) and literal.endswith(mark)
    return len(literal) >= 4 and literal.endswith("*/")


def closers_of(brackets: Brackets) -> str:
    """What would close everything that is open, innermost first."""
    return "".join(_CLOSER_OF[c] for c, _ in reversed(brackets.opened))
