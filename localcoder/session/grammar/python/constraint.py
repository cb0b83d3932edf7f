"""The constraint that a text is Python so far."""

from __future__ import annotations

import re
import sys

import numpy as np

from localcoder.errors import OptionError
from localcoder.quants.spec import Float32
from localcoder.session.constraint import Surroundings
from localcoder.session.grammar.python.lexer import START, Event, State
from localcoder.session.grammar.python.parser import Parse
from localcoder.session.grammar.python.table import EMPTY, load_table
from localcoder.session.grammar.python.tokens import Scan, TokenLexer, token_lexer
from localcoder.tokenizer.tokenizer import Tokenizer

_NEWEST = (3, 14)
_MOST_AFTER = 256  # bytes of what follows that are looked at
_FIRST_LINE = re.compile(rb"\s*[^\r\n]*(?:\r?\n)?")
_FIRST_WORD = re.compile(rb"[ \t\f]*[^ \t\f\r\n]")  # before the line ends
_LINE_BREAK = re.compile(rb"[\r\n]")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class PythonSyntax:
    """A constraint: what was written so far, after what is before it, is how some Python file begins. The end comes
    where such a file may end, or, where something follows, where the next of its lines that is not empty may follow.

    Args:
        around: what the text stands in.
        version: of the language; default: of the Python that runs this.

    Raises:
        OptionError: no file begins like what is before; says where.
    """

    def __init__(
        self, tokenizer: Tokenizer, n_vocab: int, around: Surroundings, version: tuple[int, int] | None = None
    ) -> None:
        version = version or min((sys.version_info[0], sys.version_info[1]), _NEWEST)
        self._tokens: TokenLexer = token_lexer(tokenizer, n_vocab, version)
        self._tokenizer = tokenizer
        self._stop_ids = np.array(sorted(tokenizer.stop_ids), np.intp)
        self._state: State = START
        self._parse = Parse(load_table(version), (EMPTY,))
        self._fed: dict[Event, Parse | None] = {}  # what becomes of it
        self._after = None if around.after is None else _FIRST_LINE.match(around.after[:_MOST_AFTER])
        before = around.before.removeprefix(_BYTE_ORDER_MARK)
        n = self._read(before)
        self._is_in_given_comment = self._is_in_comment
        if n < len(before):
            raise OptionError(f"syntax: the text is no beginning of a Python file: {_place(before, n)}")

    is_complete = False

    def copy(self) -> PythonSyntax:
        """One for another text that begins where this one is."""
        other = object.__new__(PythonSyntax)
        other.__dict__.update(self.__dict__)
        return other

    def restrict(self, logits: Float32) -> Float32:
        scan = self._tokens.scan(self._state)
        allowed = self._are_allowed(scan)[scan.group_of[: len(logits)]]
        allowed[self._stop_ids] = self._may_end()
        restricted = np.where(allowed, logits, np.float32(-np.inf))
        if not np.isfinite(restricted).any():
            raise OptionError("syntax: no token of the vocabulary, or none that may be sampled, can come next")
        return restricted

    def accept(self, token: int) -> None:
        if token not in self._tokenizer.stop_ids:
            spelled = self._tokenizer.token_bytes(token)
            if self._read(spelled) < len(spelled):
                raise OptionError(f"syntax: {spelled!r} cannot come next")
            self._is_in_given_comment &= not _LINE_BREAK.search(spelled)

    @property
    def _is_in_comment(self) -> bool:
        return self._state[0] in ("comment", "line comment")

    def _read(self, text: bytes) -> int:
        """Goes on with `text`, up to the first word that cannot come; returns the number of bytes before it."""
        start = 0
        for n, byte in enumerate(text):
            ended, state = self._tokens.step(self._state, byte)
            parse = self._parse if ended is None else self._feed(ended)
            if parse is None:
                return n if isinstance(ended, tuple) else start
            if ended is not None or self._state[0] in ("code", "joined"):
                start = n
            if state is None:
                return n
            self._state = state
            if parse is not self._parse:
                self._parse, self._fed = parse, {}
        pending = self._tokens.lexer.pending(self._state)
        return len(text) if pending is None or any(map(self._parse.may_come, pending)) else start

    def _feed(self, event: Event) -> Parse | None:
        if event not in self._fed:
            self._fed[event] = self._parse.feed(event)
        return self._fed[event]

    def _are_allowed(self, scan: Scan) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which of the groups of tokens may come."""
        after: list[Parse | None] = [self._parse]
        for before, event in scan.sequences[1:]:
            parse = after[before]
            after.append(None if parse is None else parse.feed(event) if before else self._feed(event))
        may_come: dict[tuple[int, str], bool] = {}

        def is_viable(sequence: int, word: str) -> bool:
            found = may_come.get((sequence, word))
            if found is None:
                parse = after[sequence]
                found = may_come[sequence, word] = parse is not None and parse.may_come(word)
            return found

        allowed = np.zeros(len(scan.groups), np.bool_)
        for number, (sequence, pending) in enumerate(scan.groups[1:], 1):
            if after[sequence] is not None:
                allowed[number] = pending is None or any(is_viable(sequence, word) for word in pending)
        return allowed

    def _may_end(self) -> bool:
        if self._after is not None:
            # What stands in the line after the hole is code, which a comment of the hole must not take in.
            if self._is_in_comment and not self._is_in_given_comment and _FIRST_WORD.match(self._after[0]):
                return False
            return self.copy()._read(self._after[0]) == len(self._after[0])
        lexer = self._tokens.lexer
        if not lexer.may_end(self._state):
            return False
        ended = lexer.ended(self._state)
        parse = self._parse if ended is None or isinstance(ended, tuple) else self._feed(ended)
        return parse is not None and parse.may_end


def _place(text: bytes, at: int) -> str:
    before = text[:at].decode(errors="replace")
    return f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"
