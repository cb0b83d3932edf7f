"""Constraints: which tokens may come next, beyond what the sampler likes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from localcoder.quants.spec import Float32
from localcoder.tokenizer.tokenizer import Tokenizer


class Constraint(Protocol):
    """Narrows each choice of one generation; not for two at once."""

    def restrict(self, logits: Float32) -> Float32:
        """The logits [n_vocab] with -inf for what may not come; a copy where anything changes."""
        ...

    def accept(self, token: int) -> None:
        """Tells what was chosen."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether the text is all there and nothing more may come."""
        ...


@dataclass(frozen=True)
class Surroundings:
    """What a text stands in.

    Attributes:
        before: what is in front of it.
        after: what follows where it ends; None: nothing ever will.
    """

    before: bytes = b""
    after: bytes | None = None


class Edges:
    """What the first token may be, and with what the text ends.

    Args:
        first: ids of which the first token is one; empty: any.
        after: bytes that the text has at its end when one of `stop_ids` comes.
    """

    def __init__(self, tokenizer: Tokenizer, first: Sequence[int], after: bytes, stop_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._first = np.array(first, np.intp)
        self._after = after
        self._tail = b""
        self._stop_ids = np.array(sorted(stop_ids), np.intp)

    is_complete = False

    def restrict(self, logits: Float32) -> Float32:
        if len(self._first):
            restricted = np.full_like(logits, -np.inf)
            restricted[self._first] = logits[self._first]
            return restricted
        if self._tail == self._after:
            return logits
        restricted = logits.copy()
        restricted[self._stop_ids] = -np.inf
        return restricted

    def accept(self, token: int) -> None:
        self._first = self._first[:0]
        if self._after:
            self._tail = (self._tail + self._tokenizer.token_bytes(token))[-len(self._after) :]
