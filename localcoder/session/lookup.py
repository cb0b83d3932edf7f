"""Guesses at what comes next, without a second model: code repeats itself, so what followed the last words when they
stood in the prompt or the output before may follow them again (prompt lookup decoding,
https://github.com/apoorvumang/prompt-lookup-decoding).

A guess costs a little even when it is wrong, so guesses become rarer and shorter while they fail.
"""

from __future__ import annotations

from collections.abc import Iterable

_SIZES = (12, 6, 3)  # tokens that have to be the same, longest first
_FIRST_LENGTH = 4
_MOST_DRAFTED = 24
_LONGEST_PAUSE = 64


class Lookup:
    """Remembers where each run of tokens occurred last, and drafts what followed it there.

    Args:
        tokens: the history so far.

    Attributes:
        n_drafted, n_accepted: tokens that were guessed, and those of them that were right.
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # run of tokens -> offset behind its last occurrence but the newest
        self._newest: list[tuple[tuple[int, ...], int]] = []
        self._length = _FIRST_LENGTH
        self._n_failures = self._pause = 0
        self.n_drafted = self.n_accepted = 0
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Appends a token to the history."""
        self._ends.update(self._newest)  # a run is found from the next token on, so that it does not find itself
        self._tokens.append(token)
        n = len(self._tokens)
        self._newest = [(tuple(self._tokens[n - size :]), n) for size in _SIZES if n >= size]
        self._pause = max(self._pause - 1, 0)

    def draft(self, n_most: int) -> list[int]:
        """At most so many tokens that may come next; empty where nothing speaks for any."""
        if self._pause:
            return []
        for run, n in self._newest:
            end = self._ends.get(run)
            if end is not None:
                length = min(self._length if len(run) < _SIZES[0] else _MOST_DRAFTED, n_most, n - end)
                return self._tokens[end : end + length]
        return []

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """Tells how many tokens of the last draft were right."""
        self.n_drafted += n_drafted
        self.n_accepted += n_accepted
        if n_accepted == n_drafted:
            self._length = min(2 * self._length, _MOST_DRAFTED)
        else:
            self._length = max(n_accepted, 2)
        if n_accepted:
            self._n_failures = max(self._n_failures - 1, 0)
        else:
            self._n_failures += 1
            self._pause = min(1 << self._n_failures, _LONGEST_PAUSE)
