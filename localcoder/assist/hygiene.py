"""What makes a raw completion fit into the hole: where it ends, what it repeats of the suffix, its brackets.

Every rule can be switched off by itself, so that what it is worth can be measured (`tools/measure_infill.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from localcoder.assist.brackets import closers_of, find_brackets, line_comment_of
from localcoder.assist.lines import indentation, is_blank, is_definition
from localcoder.errors import OptionError

Scope = Literal["line", "block", "function"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_SCANNED = 200_000  # characters on each side of the hole whose brackets are counted
_MIN_WORD = 3  # shorter repetitions within a line may be meant


@dataclass(frozen=True)
class Rules:
    """Which rules are applied to an infill.

    Attributes:
        heal_prefix: the model rewrites the last token before the hole, which may be half of a longer one.
        heal_suffix: if the hole splits a word, the model writes the word's end, too.
        overlap: what the completion repeats of the suffix is removed.
        brackets: the completion closes what it opens and nothing that the suffix closes.
        blank: white space alone is no completion.
    """

    heal_prefix: bool = True
    heal_suffix: bool = True
    overlap: bool = True
    brackets: bool = True
    blank: bool = True


ALL_RULES = Rules()
NO_RULES = Rules(heal_prefix=False, heal_suffix=False, overlap=False, brackets=False, blank=False)


class Hygiene:
    """Decides about one completion as it grows.

    Args:
        prefix, suffix: all the text around the hole, with "\\n" line ends.
        scope: how much is wanted: the line, the lines of the same block, or the enclosing function; None: what comes.
        path: the file's name, which tells what a comment looks like.

    Raises:
        OptionError: no such scope.
    """

    def __init__(
        self, prefix: str, suffix: str, *, scope: Scope | None = None, path: str | None = None, rules: Rules = ALL_RULES
    ) -> None:
        if scope is not None and scope not in SCOPES:
            raise OptionError(f"scope is {scope!r}; expected one of {', '.join(SCOPES)}")
        self._scope, self._rules = scope, rules
        self._suffix = suffix
        self._comment = line_comment_of(path)
        line_start = prefix.rfind("\n") + 1
        self._head = prefix[line_start:]  # the hole's line up to the hole
        before = find_brackets(prefix[-_SCANNED:], self._comment)
        after = find_brackets(suffix[:_SCANNED], self._comment)
        self._in_literal = before.literal
        n_owed = len(before.opened) - len(after.closed)
        self._may_close, self._may_open = max(n_owed, 0), max(-n_owed, 0)
        self._rest_of_line, _, later = suffix.partition("\n")
        self._next_line = next((line for line in later.split("\n") if not is_blank(line)), "")
        self._floor = self._find_floor(prefix[:line_start].split("\n"))

    def _find_floor(self, lines_above: list[str]) -> int | None:
        """Indentation down to which lines belong to the scope "function"; None: that of the first line written."""
        depth = indentation(self._head) if not is_blank(self._head) or self._head else 1 << 30
        for line in reversed(lines_above):
            if is_blank(line):
                continue
            if indentation(line) < depth:
                if is_definition(line):
                    return indentation(line) + 1
                depth = indentation(line)
        return None

    def is_done(self, text: str) -> bool:
        """Whether nothing that would come after `text` could be part of the completion."""
        return self._end(text) < len(text)

    def finish(self, text: str) -> str:
        """The completion made of all that the model wrote."""
        end = self._end(text)
        text = self._join(text[:end]) if end < len(text) else text
        if self._rules.brackets and not self._in_literal:
            text = self._close(text)
        if self._rules.overlap:
            text = self._without_overlap(text)
        return "" if self._rules.blank and is_blank(text) else text

    def _end(self, text: str) -> int:
        """Where the completion ends within `text`; its length if it has not ended."""
        ends = [len(text)]
        if self._rules.brackets and not self._in_literal:
            outer = find_brackets(self._head + text, self._comment, len(self._head)).closed
            if len(outer) > self._may_close:
                ends.append(outer[self._may_close][1] - len(self._head))
        if self._scope is not None:
            ends.append(self._scope_end(text))
        if self._rules.overlap:
            ends.append(self._repetition(text))
        return min(ends)

    def _is_open(self, text: str) -> bool:
        if self._in_literal:
            return False
        found = find_brackets(self._head + text, self._comment, len(self._head))
        return bool(found.opened) or found.literal

    def _line_starts(self, text: str) -> list[int]:
        """Offsets of the lines after the first that have begun to say something."""
        starts = [i + 1 for i, c in enumerate(text) if c == "\n"]
        return [at for at in starts if text[at:].split("\n", 1)[0].strip()]

    def _scope_end(self, text: str) -> int:
        if self._scope == "line":
            at = text.find("\n", len(text) - len(text.lstrip()))
            while at >= 0 and self._is_open(text[:at]):
                at = text.find("\n", at + 1)
            return at if at >= 0 else len(text)
        lines = [(at, text[at:].split("\n", 1)[0]) for at in self._line_starts(text)]
        own_line = self._head + text.split("\n", 1)[0]
        if not is_blank(own_line) and (is_blank(self._head) or text[:1] not in ("", "\n")):
            lines.insert(0, (0, own_line))
        if not lines:
            return len(text)
        floor = indentation(lines[0][1])
        if self._scope == "function":
            while len(lines) > 1 and lines[0][1].lstrip().startswith("@"):
                lines.pop(0)
            starts_own = self._floor is None or is_definition(lines[0][1])
            floor = indentation(lines[0][1]) + 1 if starts_own or self._floor is None else self._floor
        for at, line in lines[1:]:
            if indentation(line) < floor and not self._is_open(text[:at]):
                return at - 1
        return len(text)

    def _repetition(self, text: str) -> int:
        """Where the text begins to repeat the next line of the suffix."""
        if len(self._next_line.strip()) < _MIN_WORD or not is_blank(self._rest_of_line):
            return len(text)
        at = 0
        for line in text.split("\n")[:-1]:
            if at and line == self._next_line and not self._is_open(text[:at]):
                return at - 1
            at += len(line) + 1
        return len(text)

    def _join(self, text: str) -> str:
        """Text that was ended before a line break, with the break where the suffix needs one."""
        text = text.rstrip()
        inserts_line = is_blank(self._head) and not is_blank(self._rest_of_line)
        if text and inserts_line and not is_blank(text):
            return text + "\n" + self._head
        return text

    def _close(self, text: str) -> str:
        """Goes back to the last line at which nothing was open, or closes what is."""
        left = find_brackets(self._head + text, self._comment, len(self._head))
        if len(left.opened) <= self._may_open or left.literal:
            return text
        at = text.rfind("\n")
        while at > 0:
            opened = find_brackets(self._head + text[:at], self._comment, len(self._head)).opened
            if len(opened) <= self._may_open and not is_blank(text[:at]):
                return text[:at]
            at = text.rfind("\n", 0, at)
        n_missing = len(left.opened) - self._may_open
        return text.rstrip() + closers_of(left)[:n_missing]

    def _without_overlap(self, text: str) -> str:
        rest = self._suffix.lstrip("\n") if text.endswith("\n") else self._suffix
        longest = min(len(text), len(rest))
        for n in range(longest, 0, -1):
            if text.endswith(rest[:n]) and self._is_repeated(text, rest[:n], rest[n:]):
                return text[: len(text) - n]
        return text

    def _is_repeated(self, text: str, shared: str, rest: str) -> bool:
        """Whether `shared`, an end of the text and a start of the suffix, is there twice by mistake."""
        if is_blank(shared):
            return shared == text or "\n" in shared
        found = find_brackets(shared, self._comment)
        if found.opened or found.closed:
            return self._imbalance(text[: len(text) - len(shared)]) < self._imbalance(text)
        cuts_word = bool(rest) and _is_word(shared[-1]) and _is_word(rest[0])
        return sum(map(_is_word, shared)) >= _MIN_WORD and not cuts_word

    def _imbalance(self, text: str) -> int:
        found = find_brackets(self._head + text, self._comment, len(self._head))
        return abs(len(found.closed) - self._may_close) + abs(len(found.opened) - self._may_open)


def _is_word(c: str) -> bool:
    return c.isalnum() or c == "_"
