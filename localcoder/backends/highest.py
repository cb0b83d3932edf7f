"""The highest logits of a row: all that most samplers look at, and so all that need leave a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from localcoder.quants.spec import Float32

MAX_HIGHEST = 512  # as in csrc/cuda/highest.cu and csrc/localcoder.h


class Candidates(NamedTuple):
    """Tokens that may be chosen: ids [n] and logits float32 [n]; -inf is a token that is forbidden."""

    ids: NDArray[np.intp]
    logits: Float32


Row = Float32 | Candidates  # all logits of a row, [n_vocab], or the highest
Rows = Float32 | Sequence[Row]


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a row of logits: the `k` highest of the ids below `n_ids`.

    1 <= k <= MAX_HIGHEST, k <= n_ids.
    """

    k: int
    n_ids: int


def highest(logits: Float32, k: int) -> NDArray[np.intp]:
    """Where the k >= 1 highest of logits [n] are, highest first; of equal ones the earlier."""
    n = len(logits)
    if k == 1:
        return np.array([logits.argmax()])
    few = np.arange(n)
    if k < n:
        # The k-th highest maximum of any disjoint groups is a lower bound of the k-th highest value.
        n_rows = max(1, n // max(8 * k, 512))
        maxima = logits[: n // n_rows * n_rows].reshape(n_rows, -1).max(axis=0)
        few = np.flatnonzero(logits >= np.partition(maxima, -k)[-k])
    return few[np.argsort(-logits[few], kind="stable")[:k]]


def wanted_of(logits: Float32, wanted: Wanted) -> Candidates:
    """What is wanted of a row, highest first. A logit that is not finite, whatever its id, comes before all others."""
    finite = np.isfinite(logits)
    if finite.all():
        ids = highest(logits[: wanted.n_ids], wanted.k)
    else:
        ranked = np.where(finite, logits, np.float32(np.inf))
        ranked[wanted.n_ids :][finite[wanted.n_ids :]] = -np.inf
        ids = highest(ranked, wanted.k)
    return Candidates(ids, logits[ids])
