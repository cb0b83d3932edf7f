"""Which tokens begin with given bytes."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localcoder.tokenizer.tokenizer import Tokenizer


class TokenIndex:
    """The tokens of a vocabulary that stand for text, sorted by their bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pairs = sorted((data, i) for i in range(tokenizer.n_vocab) if (data := tokenizer.token_bytes(i)))
        self._bytes = [data for data, _ in pairs]
        self._ids = [i for _, i in pairs]

    def beginning_with(self, start: bytes) -> list[int]:
        """Ids of tokens whose bytes begin with `start`, that token itself included."""
        low = bisect_left(self._bytes, start)
        return self._ids[low : self._end(start, low)]

    def is_extended(self, start: bytes) -> bool:
        """Whether a token begins with `start` and is longer."""
        low = bisect_left(self._bytes, start)
        while low < len(self._bytes) and self._bytes[low] == start:
            low += 1
        return low < len(self._bytes) and self._bytes[low].startswith(start)

    def _end(self, start: bytes, low: int) -> int:
        bare = start.rstrip(b"\xff")
        if not bare:
            return len(self._bytes)
        return bisect_left(self._bytes, bare[:-1] + bytes([bare[-1] + 1]), low)
