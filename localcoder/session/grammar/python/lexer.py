"""The words of a Python file, byte by byte: an automaton without look-ahead.

A state is a tuple whose first item says what is being read; the last item, `inside`, says in which f-strings. A step
takes one byte. Where that byte cannot belong to the word before it, the word is reported, and the byte begins the next.

After https://docs.python.org/3/reference/lexical_analysis.html. What code hardly ever has is refused: `and` and
`else` right behind a number, a line that begins with a backslash, quotes and backslashes in format specifiers. What is
in `\\N{…}` need not be the name of a character.
"""

from __future__ import annotations

import functools
import keyword
import string
from dataclasses import dataclass
from typing import Any

from localcoder.session.grammar.python.numbers import WHOLE, next_in_number

State = tuple[Any, ...]
Event = str | tuple[str, int, int]
Step = tuple["Event | None", "State | None"]  # what ended before the byte, and what is read now; None: not Python

START: State = ("line", 0, 0)
SOFT_KEYWORDS = ("match", "case", "type")
# fmt: off
OPERATORS = frozenset((
    "(", ")", "[", "]", "{", "}", ",", ";", ":", ".", "..", "...", "=", ":=", "->", "==", "!=", "<", ">", "<=", ">=",
    "+", "-", "*", "**", "/", "//", "%", "@", "&", "|", "^", "~", "<<", ">>",
    "+=", "-=", "*=", "**=", "/=", "//=", "%=", "@=", "&=", "|=", "^=", "<<=", ">>=",
))
# fmt: on
_OPERATOR_STARTS = {text[:n] for text in OPERATORS for n in range(1, len(text) + 1)}
_WORDS = {*keyword.kwlist, *SOFT_KEYWORDS}
_LETTERS = frozenset(string.ascii_letters + "_")
_NAME = _LETTERS | frozenset(string.digits)
_HEX = frozenset(string.hexdigits)
_ESCAPES = {"x": "x2", "u": "u4", "U": "U", "N": "N"}  # those with something to follow, and what they begin with
_KEYWORDS_AFTER_NUMBERS = "fino"  # the letters with which for, if, in, is, not and or begin
_NO_NAMES_FROM = 0x40000  # but for selectors of variants, which no name needs


@dataclass(frozen=True)
class _Kind:
    """What a string literal is.

    Attributes:
        name: "STRING", "BYTES" or "FSTRING_START".
    """

    name: str
    is_raw: bool


def _kinds(version: tuple[int, int]) -> dict[str, _Kind]:
    """The kinds of string literals, by prefix in lower case."""
    formatted = "ft" if version >= (3, 14) else "f"
    found = {"": _Kind("STRING", False), "u": _Kind("STRING", False), "b": _Kind("BYTES", False)}
    found.update({"r": _Kind("STRING", True), "br": _Kind("BYTES", True), "rb": _Kind("BYTES", True)})
    for letter in formatted:
        found[letter] = _Kind("FSTRING_START", False)
        found[letter + "r"] = found["r" + letter] = _Kind("FSTRING_START", True)
    return found


class Lexer:
    """The automaton.

    Args:
        version: of the language.
    """

    def __init__(self, version: tuple[int, int]) -> None:
        self.version = version
        self._kinds = _kinds(version)
        self._is_nesting = version >= (3, 12)  # f-strings: quotes, comments and backslashes in their fields
        self._name_starts = {word[:n] for word in _WORDS for n in range(1, len(word) + 1)}

    # --- what a state means -------------------------------------------------------------------------------------------

    def ended(self, state: State) -> Event | None:
        """The word that is whole in this state; None where none is."""
        match state:
            case "name", text, _:
                return text if text in _WORDS else "NAME"
            case "number", at, _:
                return "NUMBER" if at in WHOLE else None
            case "op", text, _:
                return text if text in OPERATORS else None
            case "word", event, _:
                return event
            case "quotes", kind, _, 2, _:
                return "BYTES" if kind.name == "BYTES" else "STRING"
            case "line", column, least, *_:
                return "LINE", column, least
        return None

    def may_end(self, state: State) -> bool:
        """Whether a file may end in this state, as far as words go."""
        return state[0] in ("code", "comment", "line", "line comment") or self.ended(state) is not None

    def pending(self, state: State) -> tuple[str, ...] | None:
        """Words of which one has to come if the text goes on from here; None: there is always something that may."""
        match state:
            case ("name", None, _) | ("utf8", *_):
                return ("NAME",)
            case "name", text, _:
                words = sorted(word for word in _WORDS if word.startswith(text))
                strings = {kind.name for prefix, kind in self._kinds.items() if prefix.startswith(text.lower())}
                return ("NAME", *words, *sorted(strings))
            case "number", _, _:
                return ("NUMBER",)
            case "op", text, _:
                words = sorted(word for word in OPERATORS if word.startswith(text))
                return (*words, "NUMBER") if text == "." else tuple(words)
            case "word", event, _:
                return (event,)
            case ("quotes" | "string", kind, *_):
                return (kind.name,)  # where an f-string may begin, a string may
            case "bang", _:
                return "!=", "CONVERSION"
            case ("line" | "line comment", *_) | ("comment", ()):
                return ("LINE",)
        return None

    # --- steps --------------------------------------------------------------------------------------------------------

    def step(self, state: State, byte: int) -> Step:
        """What one more byte makes of a state."""
        c = chr(byte)
        if byte == 0:
            return None, None
        kind, inside = state[0], state[-1]
        match kind:
            case "code":
                return None, self._begin(c, inside)
            case "name":
                return self._after_name(state, c)
            case "utf8":
                return None, _continued(state, byte)
            case "number":
                at = next_in_number(state[1], c)
                if at is not None:
                    return None, ("number", at, inside)
                if (c in _NAME and c not in _KEYWORDS_AFTER_NUMBERS) or byte >= 0x80:
                    return None, None
                return self._end(state, c)
            case "op":
                return self._after_operator(state, c)
            case "quotes":
                return self._after_quotes(state, c)
            case "string":
                return None, self._in_string(state, c)
            case "literal":
                return self._in_literal(state, c)
            case "comment":
                return None, self._begin(c, inside) if c in "\r\n" else state
            case "backslash":
                return None, {"\n": ("joined", inside), "\r": ("joined cr", inside)}.get(c)
            case "joined" | "joined cr":
                if c in " \t\f" or (c == "\n" and kind == "joined cr"):
                    return None, ("code" if c != "\n" else "joined", inside)
                return None, self._begin(c, inside)
            case "bang":
                if c == "=":
                    return None, ("op", "!=", inside)
                return None, ("word", "CONVERSION", inside) if c in "rsa" else None
            case "line comment":
                return None, START if c in "\r\n" else state
            case "line":
                return self._in_indentation(state, c)
            case "word" if state[1] in ("STRING", "BYTES", "FSTRING_END") and self._would_end_outer(c, inside):
                return None, None
        return self._end(state, c)

    def _end(self, state: State, c: str) -> Step:
        """The word ends before `c`, if it is whole."""
        event = self.ended(state)
        return (None, None) if event is None else (event, self._begin(c, state[-1]))

    def _begin(self, c: str, inside: State) -> State | None:
        """The state after a character before which no word is open."""
        if inside and inside[-1][0] != "field":
            return self._begin_literal(c, inside)
        if c in " \t\f":
            return "code", inside
        if c in "\r\n":
            return START if not inside else ("code", inside) if self._may_break(inside) else None
        if c in "#\\" and (self._is_nesting or not inside):
            return "comment" if c == "#" else "backslash", inside
        if c in "'\"":
            return self._open_string("", c, inside)
        if c in string.digits:
            return "number", "0" if c == "0" else "int", inside
        if c in _LETTERS:
            return "name", self._known(c), inside
        if ord(c) >= 0x80:
            return _continued(("utf8", b"", True, inside), ord(c))
        if inside and (found := self._in_field(c, inside)):
            return found
        return ("op", c, _nested(c, inside)) if c in _OPERATOR_STARTS else None

    def _in_field(self, c: str, inside: State) -> State | None:
        """What is special in a field of an f-string, outside of brackets."""
        if inside[-1][1]:
            return None
        found: dict[str, State] = {
            "!": ("bang", inside),
            ":": ("word", "SPEC", (*inside, ("spec",))),
            "}": ("word", "FIELD_END", inside[:-1]),
        }
        return found.get(c)

    def _in_indentation(self, state: State, c: str) -> Step:
        _, column, least = state
        if c in "\r\n\f":
            return None, START
        if c == " ":
            return None, ("line", column + 1, least + 1)
        if c == "\t":
            return None, ("line", column // 8 * 8 + 8, least + 1)
        if c == "#":
            return None, ("line comment", ())
        if c == "\\":
            return None, None
        return ("LINE", column, least), self._begin(c, ())

    def _known(self, text: str) -> str | None:
        """`text`, if it may become a word of its own or the prefix of a string."""
        is_prefix = any(prefix.startswith(text.lower()) for prefix in self._kinds)
        return text if text in self._name_starts or is_prefix else None

    def _after_name(self, state: State, c: str) -> Step:
        _, text, inside = state
        if c in _NAME:
            return None, ("name", self._known(text + c) if text else None, inside)
        if ord(c) >= 0x80:
            return None, _continued(("utf8", b"", False, inside), ord(c))
        if c in "'\"" and text and text.lower() in self._kinds:
            return None, self._open_string(text.lower(), c, inside)
        return self._end(state, c)

    def _after_operator(self, state: State, c: str) -> Step:
        _, text, inside = state
        if text + c in _OPERATOR_STARTS:
            return None, ("op", text + c, inside)
        if text == "." and c in string.digits:
            return None, ("number", "frac", inside)
        return self._end(state, c)

    # --- strings ------------------------------------------------------------------------------------------------------

    def _open_string(self, prefix: str, quote: str, inside: State) -> State | None:
        if not self._is_nesting and any(level[0] == "text" and level[1] == quote for level in inside):
            return None
        return "quotes", self._kinds[prefix], quote, 1, inside

    def _after_quotes(self, state: State, c: str) -> Step:
        """After the first or second quote of a string: it may be empty, or have three of them."""
        _, kind, quote, n, inside = state
        if n == 1 and c == quote:
            return None, ("quotes", kind, quote, 2, inside)
        if n == 2 and self._would_end_outer(c, inside):
            return None, None
        if n == 2 and c != quote:
            return self._end(state, c)
        whole = quote if n == 1 else 3 * quote
        if kind.name == "FSTRING_START":
            within = (*inside, ("text", whole, kind.is_raw))
            if n == 1:
                return "FSTRING_START", self._begin_literal(c, within)
            return None, ("word", "FSTRING_START", within)
        begun: State = ("string", kind, whole, "", inside)
        return None, begun if n == 2 else self._in_string(begun, c)

    def _would_end_outer(self, c: str, inside: State) -> bool:
        """Whether a quote right behind a string could be seen as part of three that end the f-string around it."""
        return not self._is_nesting and any(level[0] == "text" and level[1][0] == c for level in inside)

    def _in_string(self, state: State, c: str) -> State | None:
        """`seen`: what of an escape, or of the quotes at the end, was read."""
        _, kind, quote, seen, inside = state
        if (kind.name == "BYTES" and ord(c) >= 0x80) or not self._may_hold(c, inside):
            return None
        after = _in_text(seen, c, quote, kind.is_raw, is_text=kind.name != "BYTES")
        if after == "end":
            return "word", kind.name, inside
        return None if after is None else ("string", kind, quote, after, inside)

    def _may_hold(self, c: str, inside: State) -> bool:
        """Whether strings and f-strings within f-strings may have this character."""
        if not inside or self._is_nesting:
            return True
        if c == "\\":
            return False
        outer = [level[1] for level in inside if level[0] == "text"]
        return c not in outer and (c not in "\r\n" or self._may_break(inside))

    def _may_break(self, inside: State) -> bool:
        """Whether a field may have a line break."""
        return self._is_nesting or all(level[0] != "text" or len(level[1]) == 3 for level in inside)

    def _begin_literal(self, c: str, inside: State) -> State | None:
        return self._in_literal(("literal", "", inside), c)[1]

    def _in_literal(self, state: State, c: str) -> Step:
        """The text of an f-string, or of a format specifier, between its fields."""
        _, seen, inside = state
        if inside[-1][0] == "spec":
            return self._in_spec(c, inside)
        _, quote, is_raw = inside[-1]
        if seen == "{" and c != "{":
            return "FIELD_START", self._begin(c, (*inside, ("field", 0)))
        if seen == "}" and c != "}":
            return None, None
        if seen in ("{", "}"):
            return None, ("literal", "", inside)
        if not self._may_hold(c, inside[:-1]):
            return None, None
        if c in "{}" and seen[:1] not in _ESCAPES:
            return None, ("literal", c, inside)
        after = _in_text(seen, c, quote, is_raw)
        if after == "end":
            return None, ("word", "FSTRING_END", inside[:-1])
        return None, None if after is None else ("literal", after, inside)

    def _in_spec(self, c: str, inside: State) -> Step:
        if c == "}":
            return None, ("word", "FIELD_END", inside[:-2])
        if c == "{":
            n_specs = sum(level[0] == "spec" for level in inside)
            return None, ("word", "FIELD_START", (*inside, ("field", 0))) if n_specs < 2 else None
        if c in "'\"\\\r\n":
            return None, None
        return None, ("literal", "", inside)


def _in_text(seen: str, c: str, quote: str, is_raw: bool, is_text: bool = True) -> str | None:
    """What was seen of an escape, or of the closing quotes, after `c`; "end" after the last quote; None: an error."""
    if seen == "\\":
        if c == "\r":
            return c
        return "" if is_raw or not (is_text or c == "x") else _ESCAPES.get(c, "")
    if seen == "N":
        return "N{" if c == "{" else None
    if seen in ("N{", "N{…"):
        is_name = c in _NAME or c in " -"
        return "N{…" if is_name else "" if c == "}" and seen == "N{…" else None
    if seen[:1] == "U":  # eight digits, at most 0010ffff
        may_come = "0" if len(seen) < 3 else "01" if len(seen) == 3 else "0" if seen == "U001" else _HEX
        return None if c not in may_come else "x4" if len(seen) == 4 else seen + c
    if seen[:1] in ("x", "u"):
        n_left = int(seen[1]) - 1
        return None if c not in _HEX else f"x{n_left}" if n_left else ""
    if c == quote[0]:
        n = len(seen) + 1 if seen[:1] == c else 1
        return "end" if n == len(quote) else c * n
    if c in "\r\n" and len(quote) == 1:
        return "" if seen == "\r" and c == "\n" else None
    return "\\" if c == "\\" else ""


def _nested(c: str, inside: State) -> State:
    """`inside`, once a bracket in a field has come."""
    if not inside or c not in "()[]{}":
        return inside
    return (*inside[:-1], ("field", inside[-1][1] + (1 if c in "([{" else -1)))


def _continued(state: State, byte: int) -> State | None:
    """One byte more of a character of a name that is no ASCII."""
    _, before, is_first, inside = state
    spelled = before + bytes([byte])
    try:
        char = spelled.decode()
    except UnicodeDecodeError as error:
        is_viable = error.reason == "unexpected end of data" and _may_become_name(spelled, is_first)
        return ("utf8", spelled, is_first, inside) if is_viable else None
    return ("name", None, inside) if _is_in_name(char, is_first) else None


def _is_in_name(char: str, is_first: bool) -> bool:
    return (char if is_first else "a" + char).isidentifier()


@functools.cache
def _may_become_name(start: bytes, is_first: bool) -> bool:
    """Whether a character that a name may have, or begin with, is spelled with these bytes at its start."""
    n_left = (2 if start[0] < 0xE0 else 3 if start[0] < 0xF0 else 4) - len(start)
    highest = b"\x9f" if start == b"\xed" else b"\x8f" if start == b"\xf4" else b"\xbf"  # of the next byte
    last = ord((start + highest + (n_left - 1) * b"\xbf").decode())
    return last < _NO_NAMES_FROM and any(
        _is_in_name(chr(i), is_first) for i in range(last & -(1 << 6 * n_left), last + 1)
    )
