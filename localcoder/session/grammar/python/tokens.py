"""What each token of a vocabulary makes of a state of the lexer, worked out for all of them at once."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from localcoder.session.grammar.python.lexer import Event, Lexer, State, Step
from localcoder.tokenizer.tokenizer import Tokenizer

_MOST_SCANS = 256  # that are kept; each takes four bytes a token
_ERROR = 0  # the number of the state that every byte leads back to

Ints = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True)
class Scan:
    """The tokens after one state of the lexer, in groups that are alike to the parser.

    Attributes:
        group_of: for each token its group; 0: it is no Python here, or spells nothing.
        groups: for each group: the words that end in it, by the number of their sequence, and the words of which one
            has to come then (None: any may).
        sequences: the sequences: the number of the same without the last word, and that word. The first is empty.
    """

    group_of: Ints
    groups: Sequence[tuple[int, tuple[str, ...] | None]]
    sequences: Sequence[tuple[int, Event]]


class TokenLexer:
    """A lexer that takes tokens. Safe for several threads.

    Args:
        spelled: the bytes of each token.
    """

    def __init__(self, lexer: Lexer, spelled: Sequence[bytes]) -> None:
        self.lexer = lexer
        self._spelled = spelled
        self.n_vocab = len(spelled)
        lengths = np.array([len(b) for b in spelled])
        self._order = np.argsort(-lengths, kind="stable")  # the longest first: those with a byte at a place come first
        self._n_with = [int((lengths > i).sum()) for i in range(int(lengths.max(initial=0)))]
        self._bytes = np.zeros((len(spelled), len(self._n_with)), np.uint8)
        for row, token in enumerate(self._order):
            self._bytes[row, : lengths[token]] = np.frombuffer(spelled[token], np.uint8)
        self._states: list[State | None] = [None]
        self._numbers: dict[State, int] = {}
        self._events: list[Event] = []
        self._event_numbers: dict[Event, int] = {}
        self._next = np.zeros((1, 256), np.int32)
        self._ended = np.zeros((1, 256), np.int32)  # number of the word that ends before a byte, from 1 on
        self._is_ready = np.ones(1, np.bool_)
        self._steps: dict[tuple[State, int], Step] = {}
        self._lock = threading.RLock()
        self.scan = functools.lru_cache(_MOST_SCANS)(self._scan)

    def step(self, state: State, byte: int) -> Step:
        """As `Lexer.step`, but remembered."""
        found = self._steps.get((state, byte))
        if found is None:
            found = self._steps[state, byte] = self.lexer.step(state, byte)
        return found

    def _scan(self, state: State) -> Scan:
        """The tokens after a state; kept for later calls."""
        with self._lock:
            n = self._n_with[0] if self._n_with else 0
            at = np.full(n, self._number(state), np.int32)
            sequence = np.zeros(n, np.int32)
            sequences: list[tuple[int, Event]] = [(0, "")]
            for place, n_left in enumerate(self._n_with):
                self._prepare(np.unique(at[:n_left]))
                byte = self._bytes[:n_left, place]
                ended = self._ended[at[:n_left], byte]
                at[:n_left] = self._next[at[:n_left], byte]
                rows = np.flatnonzero(ended)
                if len(rows):
                    pairs = sequence[rows].astype(np.int64) * (len(self._events) + 1) + ended[rows]
                    found, which = np.unique(pairs, return_inverse=True)
                    before, event = np.divmod(found, len(self._events) + 1)
                    sequence[rows] = len(sequences) + which
                    sequences += [(int(b), self._events[e - 1]) for b, e in zip(before, event)]
            return self._grouped(at, sequence, sequences)

    def _grouped(self, at: Ints, sequence: Ints, sequences: list[tuple[int, Event]]) -> Scan:
        group_of = np.zeros(len(self._spelled), np.int32)
        groups: dict[tuple[int, tuple[str, ...] | None], int] = {(0, ()): 0}
        found, which = np.unique(sequence.astype(np.int64) * len(self._states) + at, return_inverse=True)
        numbers = np.zeros(len(found), np.int32)
        for i, pair in enumerate(found):
            words, number = divmod(int(pair), len(self._states))
            state = self._states[number]
            if state is not None:
                group = (words, self.lexer.pending(state))
                numbers[i] = groups.setdefault(group, len(groups))
        group_of[self._order[: len(at)]] = numbers[which]
        return Scan(group_of, list(groups), sequences)

    def _number(self, state: State) -> int:
        number = self._numbers.get(state)
        if number is None:
            number = self._numbers[state] = len(self._states)
            self._states.append(state)
            if number == len(self._next):
                self._next = np.concatenate([self._next, np.zeros_like(self._next)])
                self._ended = np.concatenate([self._ended, np.zeros_like(self._ended)])
                self._is_ready = np.concatenate([self._is_ready, np.zeros_like(self._is_ready)])
        return number

    def _prepare(self, numbers: Ints) -> None:
        """Fills in the rows of states."""
        for number in numbers[~self._is_ready[numbers]]:
            state = self._states[number]
            assert state is not None
            steps = [self.lexer.step(state, byte) for byte in range(256)]
            after = [_ERROR if to is None else self._number(to) for _, to in steps]
            ended = [0 if event is None or to is None else self._event_number(event) for event, to in steps]
            self._next[number], self._ended[number] = after, ended
            self._is_ready[number] = True

    def _event_number(self, event: Event) -> int:
        if event not in self._event_numbers:
            self._events.append(event)
            self._event_numbers[event] = len(self._events)
        return self._event_numbers[event]


_lexers: weakref.WeakKeyDictionary[Tokenizer, TokenLexer] = weakref.WeakKeyDictionary()


def token_lexer(tokenizer: Tokenizer, n_vocab: int, version: tuple[int, int]) -> TokenLexer:
    """The lexer for a vocabulary; made once.

    Args:
        n_vocab: rows of the model's output.
    """
    known = _lexers.get(tokenizer)
    if known is None or known.n_vocab != n_vocab or known.lexer.version != version:
        spelled = [tokenizer.token_bytes(i) if i < tokenizer.n_vocab else b"" for i in range(n_vocab)]
        known = _lexers[tokenizer] = TokenLexer(Lexer(version), spelled)
    return known
