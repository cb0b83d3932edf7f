"""Guesses at what comes next, without a second model: code repeats itself, so what followed the last words when they
stood in the prompt or the output before may follow them again (prompt lookup decoding,
https://github.com/apoorvumang/prompt-lookup-decoding).

A guess costs a little even when it is wrong, so guesses become rarer and shorter while they fail.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice

_LEAST_SHARED = 3  # tokens that have to be the same before a guess
_MUCH_SHARED = 12  # so many are no accident
_FIRST_LENGTH = 4
_MOST_DRAFTED = 24
_LONGEST_PAUSE = 64
_MOST_PLACES = 8  # that are compared, the latest
_TOKEN_BYTES = array("i").itemsize


class Lookup:
    """Remembers a history of tokens, and drafts what followed the last of them where they stood before.

    Args:
        tokens: the history so far.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._bytes = bytearray(array("i", tokens).tobytes())  # the same, to be searched
        self._length = _FIRST_LENGTH
        self._n_failures = self._pause = 0

    def add(self, token: int) -> None:
        """Appends a token to the history."""
        self._tokens.append(token)
        self._bytes += token.to_bytes(_TOKEN_BYTES, sys.byteorder)
        if self._pause:
            self._pause -= 1

    def draft(self, n_most: int) -> list[int]:
        """At most so many tokens that may come next; empty where nothing speaks for any."""
        if self._pause or len(self._tokens) <= _LEAST_SHARED:
            return []
        ends = list(islice(self._places(), _MOST_PLACES))
        if not ends:
            return []
        n_shared, end = max((self._n_shared(end), end) for end in ends)
        length = min(_MOST_DRAFTED if n_shared >= _MUCH_SHARED else self._length, n_most)
        return self._tokens[end : end + length]

    def _places(self) -> Iterator[int]:
        """Where the last few tokens stood before: the number of the token after them, latest first."""
        wanted = self._bytes[-_LEAST_SHARED * _TOKEN_BYTES :]
        before = len(self._bytes) - _TOKEN_BYTES
        while (at := self._bytes.rfind(wanted, 0, before)) >= 0:
            if at % _TOKEN_BYTES == 0:
                yield at // _TOKEN_BYTES + _LEAST_SHARED
            before = at + len(wanted) - 1

    def _n_shared(self, end: int) -> int:
        """How many tokens before `end` are those at the end of the history, up to as many as matter."""
        tokens, n, most = self._tokens, _LEAST_SHARED, min(end, _MUCH_SHARED)
        while n < most and tokens[end - 1 - n] == tokens[-1 - n]:
            n += 1
        return n

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
