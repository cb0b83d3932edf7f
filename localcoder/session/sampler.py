"""From logits to a token: pure functions over candidates, and the chain that an option set asks for.

Each filter takes candidates in any order and returns those it keeps. Nothing sorts the whole vocabulary, which alone
would cost 1.5 ms for the family's 32,256 words.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from localcoder.errors import NumericsError
from localcoder.quants.spec import Float32
from localcoder.session.constraint import Constraint
from localcoder.session.options import SamplingOptions

Ids = NDArray[np.intp]
Float64 = NDArray[np.float64]
_HEAD = 256  # a nucleus is nearly always smaller than this
_BISECTIONS = 10
_DRAW_BLOCK = 256


class Candidates(NamedTuple):
    """Tokens that may be chosen: ids [n] and logits float32 [n]; -inf is a token that is forbidden."""

    ids: Ids
    logits: Float32


def keep_top_k(c: Candidates, k: int) -> Candidates:
    """The k highest logits; of equal ones the earlier. k = 0 keeps all."""
    return c if k == 0 or k >= len(c.ids) else _highest(c, k)


def _highest(c: Candidates, k: int) -> Candidates:
    """The k >= 1 highest logits, highest first."""
    n = len(c.ids)
    few = np.arange(n)
    if k < n:
        # The k-th highest maximum of any disjoint groups is a lower bound of the k-th highest value.
        n_rows = max(1, n // max(8 * k, 512))
        maxima = c.logits[: n // n_rows * n_rows].reshape(n_rows, -1).max(axis=0)
        few = np.flatnonzero(c.logits >= np.partition(maxima, -k)[-k])
    best = few[np.argsort(-c.logits[few], kind="stable")[:k]]
    return Candidates(c.ids[best], c.logits[best])


def keep_top_p(c: Candidates, p: float) -> Candidates:
    """The fewest likeliest tokens whose probabilities sum to at least p; always at least one. p = 1 keeps all."""
    if p >= 1:
        return c
    weights = c.logits - c.logits.max()
    np.exp(weights, out=weights)
    wanted = p * float(weights.sum())
    head = _highest(c, _HEAD)
    sums = np.cumsum(np.exp(head.logits - head.logits[0]), dtype=np.float64)
    if sums[-1] >= wanted:
        n_kept = int(np.searchsorted(sums, wanted)) + 1
        return Candidates(head.ids[:n_kept], head.logits[:n_kept])
    kept = _flat_nucleus(c.logits, weights, wanted)
    return Candidates(c.ids[kept], c.logits[kept])


def _flat_nucleus(logits: Float32, weights: Float32, wanted: float) -> Ids:
    """Which of many tokens are the fewest whose weights, exp(logit - highest), sum to `wanted`; in no order."""
    # Bracket the weight down to which the sum reaches it, then sort what lies in the bracket.
    above, below = 2.0, 0.0
    parts = np.empty_like(weights)
    for _ in range(_BISECTIONS):
        middle = (above + below) / 2
        if float(np.multiply(weights, weights >= np.float32(middle), out=parts).sum()) < wanted:
            above = middle
        else:
            below = middle
    certain = weights >= np.float32(above)
    missing = wanted - float(np.multiply(weights, certain, out=parts).sum())
    edge = np.flatnonzero((weights >= np.float32(below)) & ~certain)
    edge = edge[np.argsort(-logits[edge], kind="stable")]
    n_edge = int(np.searchsorted(np.cumsum(weights[edge], dtype=np.float64), missing)) + 1
    return np.concatenate([np.flatnonzero(certain), edge[:n_edge]])


def keep_min_p(c: Candidates, p: float) -> Candidates:
    """Tokens at least p times as likely as the likeliest. p = 0 keeps all."""
    if p == 0:
        return c
    kept = np.flatnonzero(c.logits >= c.logits.max() + np.float32(np.log(p)))
    return Candidates(c.ids[kept], c.logits[kept])


def penalize_repeats(logits: Float32, recent: Sequence[int], penalty: float) -> Float32:
    """A copy of logits [n_vocab] in which tokens of `recent` are weaker: positive ones divided, negative multiplied.

    The rule is CTRL's (https://arxiv.org/abs/1909.05858, 4.1), made safe for negative logits as other runtimes do.
    """
    seen = np.unique(np.asarray(recent, np.intp))
    weakened = logits.copy()
    values = logits[seen]
    weakened[seen] = np.where(values > 0, values / np.float32(penalty), values * np.float32(penalty))
    return weakened


def logprobs(logits: Float32) -> Float64:
    """Logarithms of the probabilities at temperature 1: float64 of the shape of `logits` [..., n_vocab]."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def draw(c: Candidates, temperature: float, u: float) -> int:
    """The id in which the distribution softmax(logits / temperature) reaches u, 0 <= u < 1."""
    top = c.logits.max()
    weights = np.exp((c.logits - top) / np.float32(temperature))
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), _DRAW_BLOCK), dtype=np.float64)
    ends = np.cumsum(blocks)
    target = u * ends[-1]
    block = min(int(np.searchsorted(ends, target, side="right")), len(ends) - 1)
    within = weights[block * _DRAW_BLOCK : (block + 1) * _DRAW_BLOCK]
    start = ends[block - 1] if block else 0.0
    reached = np.searchsorted(np.cumsum(within, dtype=np.float64), target - start, side="right")
    last = int(np.flatnonzero(within)[-1])  # rounding must not lead to a token of probability 0
    return int(c.ids[block * _DRAW_BLOCK + min(int(reached), last)])


class Sampler:
    """Chooses tokens for one generation. The same seed and logits give the same tokens.

    Args:
        options: the chain and its parameters.
        forbidden: ids that are never chosen (the vocabulary's padding rows).

    Attributes:
        seed: the seed in use; with options.seed = None a fresh one.
    """

    def __init__(self, options: SamplingOptions, forbidden: Collection[int] = ()) -> None:
        self._options = options
        self._forbidden = np.array(sorted(forbidden), np.intp)
        self._all_ids: Ids = np.empty(0, np.intp)
        self.seed = secrets.randbits(32) if options.seed is None else int(options.seed)
        self._random = np.random.default_rng(self.seed)

    def sample(self, logits: Float32, history: Sequence[int], constraint: Constraint | None = None) -> int:
        """The next token after `history` (prompt and what was generated), from logits float32 [n_vocab], among those
        that `constraint` leaves.

        Raises:
            NumericsError: a logit is NaN or infinite.
        """
        if not np.isfinite(logits).all():
            raise NumericsError("the model computed logits that are not finite: its file is damaged, or a kernel wrong")
        o = self._options
        if o.repeat_penalty != 1 and o.repeat_last_n and history:
            logits = penalize_repeats(logits, history[-o.repeat_last_n :], o.repeat_penalty)
        if len(self._forbidden):
            logits = logits.copy()
            logits[self._forbidden] = -np.inf
        if constraint is not None:
            logits = constraint.restrict(logits)
        if o.temperature == 0:
            return int(logits.argmax())
        if len(self._all_ids) != len(logits):
            self._all_ids = np.arange(len(logits))
        candidates = keep_top_k(Candidates(self._all_ids, logits), o.top_k)
        candidates = keep_min_p(keep_top_p(candidates, o.top_p), o.min_p)
        return draw(candidates, o.temperature, self._random.random())
