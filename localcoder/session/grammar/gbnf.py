"""GBNF, the grammars of llama.cpp, in the notation of llguidance.

GBNF knows characters only, while llguidance has a lexer that takes the longest word it can. So each character becomes
a word of its own here, which leaves the lexer nothing to choose.
"""

from __future__ import annotations

import re
from typing import NoReturn

from localcoder.errors import OptionError

_MOST_DEPTH = 64  # of brackets
_MOST_TIMES = 100_000
_ROOT = "root"
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_GAP = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_GAP_WITH_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_TIMES = re.compile(r"\{[ \t]*(\d+)[ \t]*(?:(,)[ \t]*(\d*)[ \t]*)?\}")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_N_DIGITS = {"x": 2, "u": 4, "U": 8}


def lark_of_gbnf(text: str) -> str:
    """The same grammar for llguidance.

    Source of the notation: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md. Its tokens (`<…>`) are
    refused: they would let text spell special tokens.

    Raises:
        OptionError: it is none; names the line and column.
    """
    return _Reader(text).read()


class _Reader:
    """Reads a grammar once, from its start."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._numbers: dict[str, int] = {}  # of rules, by name
        self._uses: dict[str, int] = {}  # where each rule is first used

    def read(self) -> str:
        rules: dict[str, str] = {}
        self._skip(_GAP_WITH_LINES)
        while self._at < len(self._text):
            start = self._at
            name = self._name()
            if name in rules:
                self._fail(f"the rule {name} is there already", start)
            self._skip(_GAP)
            if not self._text.startswith("::=", self._at):
                self._fail(f"'::=' expected after {name}")
            self._at += 3
            self._skip(_GAP_WITH_LINES)
            rules[name] = self._alternatives()
            if self._peek() not in ("", "\r", "\n"):
                self._fail("the rule should end here, or go on with characters, classes, names or brackets")
            self._skip(_GAP_WITH_LINES)
        for name, at in self._uses.items():
            if name not in rules:
                self._fail(f"there is no rule {name}", at)
        if _ROOT not in rules:
            self._fail(f"there is no rule {_ROOT}, with which a text begins")
        lines = [f"{self._reference(name)}: {body}" for name, body in rules.items()]
        return "\n".join([f"start: {self._reference(_ROOT)}", *lines, ""])

    def _alternatives(self) -> str:
        found = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            self._skip(_GAP_WITH_LINES)
            found.append(self._sequence())
        return " | ".join(found)

    def _sequence(self) -> str:
        items: list[str] = []
        while True:
            item = self._item()
            if item is None:
                return " ".join(items) or '""'
            self._skip_in_rule()
            while times := self._times():
                item = f"({item}){times}"
                self._skip_in_rule()
            items.append(item)

    def _item(self) -> str | None:
        """A string, class, name or bracket with what is in it; None where none of them begins."""
        start, char = self._at, self._peek()
        if char == '"':
            self._at += 1
            codes = []
            while self._peek() != '"':
                codes.append(self._character(start, '"'))
            self._at += 1
            return f"({' '.join(f'/{_shown(code)}/' for code in codes)})" if codes else '""'
        if char == "[":
            return self._class()
        if char == ".":
            self._at += 1
            return "/(?s:.)/"
        if char == "(":
            return self._bracket()
        if char == "<" or self._text.startswith("!<", self._at):
            self._fail("tokens are no part of a text here; write characters")
        if _NAME.match(self._text, self._at):
            name = self._name()
            self._uses.setdefault(name, start)
            return self._reference(name)
        return None

    def _class(self) -> str:
        start = self._at
        self._at += 1
        is_negated = self._peek() == "^"
        self._at += is_negated
        parts = []
        while self._peek() != "]":
            at = self._at
            low = high = self._character(start, "]")
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._character(start, "]")
            if high < low:
                self._fail("the range has its ends the wrong way round", at)
            parts.append(_shown(low) if low == high else f"{_shown(low)}-{_shown(high)}")
        self._at += 1
        if not parts:
            self._fail("the class is empty", start)
        return f"/[{'^' if is_negated else ''}{''.join(parts)}]/"

    def _bracket(self) -> str:
        start = self._at
        if self._depth == _MOST_DEPTH:
            self._fail(f"more than {_MOST_DEPTH} brackets within each other")
        self._depth += 1
        self._at += 1
        self._skip(_GAP_WITH_LINES)
        inner = self._alternatives()
        if self._peek() != ")":
            self._fail("the bracket is not closed", start)
        self._at += 1
        self._depth -= 1
        return f"({inner})"

    def _times(self) -> str:
        """`*`, `+`, `?` or a count in braces; "" where none comes."""
        if self._peek() in ("*", "+", "?"):
            self._at += 1
            return self._text[self._at - 1]
        if self._peek() != "{":
            return ""
        match = _TIMES.match(self._text, self._at)
        if match is None:
            self._fail("a count such as {2}, {2,} or {2,5} expected")
        least = int(match[1][:9])
        most = None if match[2] and not match[3] else int((match[3] if match[2] else match[1])[:9])
        if max(least, most or 0) > _MOST_TIMES or (most is not None and most < least):
            self._fail(f"the count is more than {_MOST_TIMES}, or has its ends the wrong way round")
        self._at = match.end()
        return f"{{{least},{'' if most is None else most}}}"

    def _character(self, start: int, end: str) -> int:
        """The code of the next character of a string or class, which began at `start` and goes on to `end`."""
        at, char = self._at, self._peek()
        if char == "":
            self._fail(f"{end} is missing for what begins", start)
        self._at += 1
        if char != "\\":
            return self._checked(ord(char), at)
        kind = self._peek()
        self._at += 1
        if kind in _ESCAPES and kind:
            return ord(_ESCAPES[kind])
        n_digits = _N_DIGITS.get(kind, 0)
        digits = self._text[self._at : self._at + n_digits]
        if not n_digits or not re.fullmatch(rf"[0-9A-Fa-f]{{{n_digits}}}", digits):
            self._fail("no such escape", at)
        self._at += n_digits
        return self._checked(int(digits, 16), at)

    def _checked(self, code: int, at: int) -> int:
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            self._fail("no character has this code", at)
        return code

    def _name(self) -> str:
        match = _NAME.match(self._text, self._at)
        if match is None:
            self._fail("the name of a rule expected")
        self._at = match.end()
        return match[0]

    def _reference(self, name: str) -> str:
        return f"rule_{self._numbers.setdefault(name, len(self._numbers))}"

    def _skip(self, gap: re.Pattern[str]) -> None:
        match = gap.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _skip_in_rule(self) -> None:
        """Between the parts of a rule; only in brackets they may stand on several lines."""
        self._skip(_GAP_WITH_LINES if self._depth else _GAP)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _fail(self, what: str, at: int | None = None) -> NoReturn:
        place = self._at if at is None else at
        line = self._text.count("\n", 0, place) + 1
        column = place - self._text.rfind("\n", 0, place)
        raise OptionError(f"grammar: line {line}, column {column}: {what}")


def _shown(code: int) -> str:
    return f"\\x{{{code:X}}}"
