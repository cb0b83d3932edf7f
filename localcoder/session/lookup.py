"""Guesses at what comes next, without a second model: code repeats itself, so what followed the last words when they
stood in the prompt or the output before may follow them again (prompt lookup decoding,
https://github.com/apoorvumang/prompt-lookup-decoding).

A guess costs a little even when it is wrong, so guesses become rarer and shorter while they fail.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LEAST_SHARED = 3  # tokens that have to be the same before a guess
_MUCH_SHARED = 12  # so many are no accident
_FIRST_LENGTH = 4
_MOST_DRAFTED = 24
_LONGEST_PAUSE = 64
_MOST_PLACES = 8  # that are compared, the latest


class Lookup:
    """Remembers a history of tokens, and drafts what followed the last of them where they stood before.

    Args:
        tokens: the history so far.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._n = len(tokens)
        self._tokens = np.empty(max(2 * self._n, 64), np.int32)
        self._tokens[: self._n] = tokens
        self._length = _FIRST_LENGTH
        self._n_failures = self._pause = 0

    def add(self, token: int) -> None:
        """Appends a token to the history."""
        if self._n == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
        self._tokens[self._n] = token
        self._n += 1
        self._pause = max(self._pause - 1, 0)

    def draft(self, n_most: int) -> list[int]:
        """At most so many tokens that may come next; empty where nothing speaks for any."""
        if self._pause or self._n <= _LEAST_SHARED:
            return []
        n = self._n
        tokens = self._tokens[:n]
        ends = (tokens[_LEAST_SHARED - 1 : n - 1] == tokens[n - 1]).nonzero()[0] + _LEAST_SHARED
        for i in range(2, _LEAST_SHARED + 1):
            ends = ends[tokens[ends - i] == tokens[n - i]] if len(ends) else ends
        ends = ends[-_MOST_PLACES:].tolist()
        if not ends:
            return []
        n_shared, end = max((self._n_shared(end), end) for end in ends)
        length = min(_MOST_DRAFTED if n_shared >= _MUCH_SHARED else self._length, n_most)
        return tokens[end : end + length].tolist()

    def _n_shared(self, end: int) -> int:
        """How many tokens before `end` are those at the end of the history, up to as many as matter."""
        n = min(end, _MUCH_SHARED)
        differs = np.flatnonzero(self._tokens[end - n : end] != self._tokens[self._n - n : self._n])
        return n - 1 - int(differs[-1]) if len(differs) else n

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """Tells how many tokens of the last draft were right."""
        if n_accepted == n_drafted:
            self._length = min(2 * self._length, _MOST_DRAFTED)
        else:
            self._length = max(n_accepted, 2)
        if n_accepted:
            self._n_failures = max(self._n_failures - 1, 0)
        else:
            self._n_failures += 1
            self._pause = min(1 << self._n_failures, _LONGEST_PAUSE)
