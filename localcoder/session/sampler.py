"""From logits to a token: pure functions over candidates, and the chain that an option set asks for.

Each filter takes candidates in any order and returns those it keeps. Nothing sorts the whole vocabulary, which alone
would cost 1.5 ms for the family's 32,256 words.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.highest import MAX_HIGHEST, Candidates, Row, Wanted, highest
from localcoder.errors import NumericsError, OptionError
from localcoder.quants.spec import Float32
from localcoder.session.constraint import Constraint
from localcoder.session.options import SamplingOptions

Ids = NDArray[np.intp]
Float64 = NDArray[np.float64]
_HEAD = 256  # a nucleus is nearly always smaller than this
_BINS = 1024
_BINNED_LOGITS = 32.0  # what is further below the highest has no weight to speak of
_DRAW_BLOCK = 256
_DRY_WINDOW = 4096  # tokens in which repetitions are looked for
_DRY_LONGEST = 64  # a longer repetition weakens no more


class Guess(NamedTuple):
    """A token that may come next, and the distribution (softmax of the logits) that it was drawn from."""

    token: int
    drawn_from: Candidates


class Draft(NamedTuple):
    """Tokens that may come next.

    Attributes:
        drawn_from: what each was drawn from; empty where nothing was drawn.
    """

    tokens: list[int]
    drawn_from: Sequence[Candidates] = ()

    def guess(self, i: int) -> Guess | None:
        """The i-th token, if it was drawn."""
        return Guess(self.tokens[i], self.drawn_from[i]) if i < len(self.drawn_from) else None


NO_DRAFT = Draft([])


def keep_top_k(c: Candidates, k: int) -> Candidates:
    """The k highest logits; of equal ones the earlier. k = 0 keeps all."""
    return c if k == 0 or k >= len(c.ids) else _highest(c, k)


def _highest(c: Candidates, k: int) -> Candidates:
    """The k >= 1 highest logits, highest first."""
    best = highest(c.logits, k)
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
    # By logit into bins, likeliest first; only the bin in which the sum is reached need be sorted.
    scale = (_BINS - 1) / _BINNED_LOGITS
    bins = np.minimum((logits.max() - logits) * np.float32(scale), _BINS - 1).astype(np.intp)
    sums = np.cumsum(np.bincount(bins, weights, _BINS))
    last = min(int(np.searchsorted(sums, wanted)), _BINS - 1)
    missing = wanted - (float(sums[last - 1]) if last else 0.0)
    edge = np.flatnonzero(bins == last)
    edge = edge[np.argsort(-logits[edge], kind="stable")]
    n_edge = int(np.searchsorted(np.cumsum(weights[edge], dtype=np.float64), missing)) + 1
    return np.concatenate([np.flatnonzero(bins < last), edge[:n_edge]])


def keep_min_p(c: Candidates, p: float) -> Candidates:
    """Tokens at least p times as likely as the likeliest. p = 0 keeps all."""
    if p == 0:
        return c
    kept = np.flatnonzero(c.logits >= c.logits.max() + np.float32(np.log(p)))
    return Candidates(c.ids[kept], c.logits[kept])


def keep_typical(c: Candidates, p: float) -> Candidates:
    """The fewest tokens that reach probability p, those closest to the expected surprise first; p = 1 keeps all.

    Locally typical sampling, https://arxiv.org/abs/2202.00666.
    """
    if p >= 1:
        return c
    possible = np.flatnonzero(np.isfinite(c.logits))
    logs = logprobs(c.logits[possible])
    probabilities = np.exp(logs)
    distance = np.abs(-logs + (probabilities * logs).sum())
    order = np.argsort(distance, kind="stable")
    n_kept = min(int(np.searchsorted(np.cumsum(probabilities[order]), p)) + 1, len(order))
    kept = possible[order[:n_kept]]
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


def penalize_counts(logits: Float32, recent: Sequence[int], frequency: float, presence: float) -> Float32:
    """A copy of logits [n_vocab] less `frequency` for each time a token is in `recent`, and `presence` if it is."""
    seen, counts = np.unique(np.asarray(recent, np.intp), return_counts=True)
    weakened = logits.copy()
    weakened[seen] -= (frequency * counts + presence).astype(np.float32)
    return weakened


def penalize_repetitions(
    logits: Float32, history: Sequence[int], multiplier: float, base: float, allowed: int, breakers: Collection[int]
) -> Float32:
    """A copy of logits [n_vocab] in which tokens that would go on with a repetition are weaker ("DRY").

    If the last n >= `allowed` tokens stood in the history before, followed by token t, t loses
    multiplier * base ** (n - allowed), for the longest such n (https://github.com/oobabooga/text-generation-webui/pull/5677).

    Args:
        breakers: tokens that no repetition reaches across.
    """
    tokens = np.asarray(history[-_DRY_WINDOW:], np.int64)
    if len(tokens) < 2 or tokens[-1] in breakers:
        return logits
    weakened = logits.copy()
    longest: dict[int, int] = {}
    for end in np.flatnonzero(tokens[:-1] == tokens[-1]).tolist():
        n = 1
        while n <= end and tokens[end - n] == tokens[-1 - n] and tokens[-1 - n] not in breakers and n < _DRY_LONGEST:
            n += 1
        following = int(tokens[end + 1])
        longest[following] = max(longest.get(following, 0), n)
    for token, n in longest.items():
        if n >= allowed and token not in breakers:
            weakened[token] -= np.float32(multiplier * base ** (n - allowed))
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


def draw_guessed(c: Candidates, guess: Guess, random: np.random.Generator) -> int:
    """An id with the probabilities softmax(logits) of `c`, and as often as can be that of the guess.

    The guess x, drawn from q, is accepted with probability min(1, p(x) / q(x)); otherwise the id is drawn from
    max(p - q, 0) (speculative sampling, Leviathan, Kalman and Matias 2023, https://arxiv.org/abs/2211.17192).
    """
    p, q = _softmax(c.logits), _softmax(guess.drawn_from.logits)
    p_guess = float(p[c.ids == guess.token].sum())
    q_guess = float(q[guess.drawn_from.ids == guess.token].sum())
    if random.random() * q_guess < p_guess:
        return guess.token
    of_guess = np.zeros(1 + max(int(c.ids.max()), int(guess.drawn_from.ids.max())))
    of_guess[guess.drawn_from.ids] = q
    left = np.maximum(p - of_guess[c.ids], 0)
    if not left.any():  # p and q differ by rounding alone
        left = p
    with np.errstate(divide="ignore"):
        return draw(Candidates(c.ids, np.log(left).astype(np.float32)), 1.0, random.random())


def _softmax(logits: Float32) -> Float64:
    return np.exp(logprobs(logits))


class Logprob(NamedTuple):
    """A chosen token, with the logarithms of the model's own probabilities, before penalties and filters.

    Attributes:
        top: the likeliest tokens, likeliest first, with theirs.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def logprob_of(logits: Float32, token: int, n: int) -> Logprob:
    """What is known of a token from logits [n_vocab], with the `n` likeliest."""
    logs = logprobs(logits)
    best = keep_top_k(Candidates(np.arange(len(logits)), logits), n).ids.tolist() if n else []
    return Logprob(token, float(logs[token]), tuple((i, float(logs[i])) for i in best))


Hook: TypeAlias = Callable[[Float32, Sequence[int]], Float32]


class Sampler:
    """Chooses tokens for one generation. The same seed and logits give the same tokens.

    Args:
        options: the chain and its parameters.
        forbidden: ids that are never chosen (the vocabulary's padding rows).
        breakers: ids that no repetition reaches across, for DRY.
        n_logprobs: how many of the likeliest tokens to record for each that is chosen; None: nothing is recorded.
        hook: gets the logits float32 [n_vocab] and the tokens before each choice, and returns other logits, before
            anything else happens to them.

    Attributes:
        seed: the seed in use; with options.seed = None a fresh one.
        logprobs: what was recorded, one for each choice.
    """

    def __init__(
        self,
        options: SamplingOptions,
        forbidden: Collection[int] = (),
        *,
        breakers: Collection[int] = (),
        n_logprobs: int | None = None,
        hook: Hook | None = None,
    ) -> None:
        self._options = options
        self._hook = hook
        self._forbidden = np.array(sorted(forbidden), np.intp)
        self._forbidden_ids = frozenset(self._forbidden.tolist())
        self._breakers = frozenset(breakers)
        self._n_logprobs = n_logprobs
        self._all_ids: Ids = np.empty(0, np.intp)
        self._mu = 2 * options.mirostat_tau
        self._n_sampled = 0
        self.seed = secrets.randbits(32) if options.seed is None else int(options.seed)
        self._random = np.random.default_rng(self.seed)
        self.logprobs: list[Logprob] = []

    def wanted(self, n_vocab: int) -> Wanted | None:
        """What of a row of logits decides a choice without a constraint; None: all of it."""
        o = self._options
        changed = o.logit_bias or o.frequency_penalty or o.presence_penalty or o.repeat_penalty != 1 or o.dry_multiplier
        if changed or self._n_logprobs is not None or self._hook is not None:
            return None
        if o.temperature == 0:
            k = 1
        elif o.samplers[:1] == ("top_k",) and not o.mirostat_tau:
            k = o.top_k
        else:
            return None
        n_forbidden = len(self._forbidden)
        below = np.flatnonzero(self._forbidden != np.arange(n_vocab - n_forbidden, n_vocab))
        n_below = int(below[-1]) + 1 if len(below) else 0  # others are the last ids, as the padding is
        n_ids = n_vocab - n_forbidden + n_below
        k_of_all = k + n_below  # forbidden ones may be among the highest
        return Wanted(k_of_all, n_ids) if k and k_of_all <= min(n_ids, MAX_HIGHEST) else None

    def sample(
        self,
        row: Row,
        history: Sequence[int],
        constraint: Constraint | None = None,
        guess: Guess | None = None,
    ) -> int:
        """The next token after `history` (prompt and what was generated), from logits float32 [n_vocab], among those
        that `constraint` leaves. With a guess it is that one as often as can be, and equally distributed.

        Args:
            row: where there is no constraint, what is `wanted` of the logits does as well.

        Raises:
            NumericsError: a logit is NaN or infinite.
            OptionError: logit_bias has an id outside the vocabulary.
        """
        if isinstance(row, Candidates):
            assert constraint is None
            token = self._choose(self._allowed_of(row), guess)
        else:
            weakened = self._allowed(row, history)
            if constraint is not None:
                weakened = constraint.restrict(weakened)
            token = self._choose(self._all(weakened), guess)
            if self._n_logprobs is not None:
                self.logprobs.append(logprob_of(row, token, self._n_logprobs))
        self._n_sampled += 1
        return token

    def guess(self, row: Row, history: Sequence[int]) -> Guess:
        """As `sample`, from what another model computed, for `sample` to judge; nothing is recorded.

        Raises:
            As `sample`.
        """
        few = self._allowed_of(row) if isinstance(row, Candidates) else self._all(self._allowed(row, history))
        candidates = self._candidates(few)
        if self._options.temperature == 0:
            return Guess(int(candidates.ids[candidates.logits.argmax()]), candidates)
        return Guess(draw(candidates, 1.0, self._random.random()), candidates)

    def _allowed(self, logits: Float32, history: Sequence[int]) -> Float32:
        """The logits with bias and penalties, -inf where nothing may be chosen."""
        _check_finite(logits)
        if self._hook is not None:
            logits = self._hook(logits, history)
        weakened = self._weakened(logits, history)
        if len(self._forbidden):
            weakened = weakened.copy()
            weakened[self._forbidden] = -np.inf
        return weakened

    def _allowed_of(self, wanted: Candidates) -> Candidates:
        """Those of the highest logits that are not forbidden."""
        if not math.isfinite(wanted.logits[0]):  # such a one comes first
            raise _not_finite()
        ids = wanted.ids.tolist()
        if self._forbidden_ids.isdisjoint(ids):
            return wanted
        kept = [token not in self._forbidden_ids for token in ids]
        return Candidates(wanted.ids[kept], wanted.logits[kept])

    def _all(self, logits: Float32) -> Candidates:
        if len(self._all_ids) != len(logits):
            self._all_ids = np.arange(len(logits))
        return Candidates(self._all_ids, logits)

    def _weakened(self, logits: Float32, history: Sequence[int]) -> Float32:
        """The logits with bias and penalties."""
        o = self._options
        if o.logit_bias:
            if max(o.logit_bias) >= len(logits):
                raise OptionError(f"logit_bias has token {max(o.logit_bias)}; the model has {len(logits)}")
            logits = logits.copy()
            logits[list(o.logit_bias)] += np.array(list(o.logit_bias.values()), np.float32)
        n_recent = o.repeat_last_n if o.penalize_prompt else min(o.repeat_last_n, self._n_sampled)
        recent = history[-n_recent:] if n_recent else ()
        if o.repeat_penalty != 1 and recent:
            logits = penalize_repeats(logits, recent, o.repeat_penalty)
        if (o.frequency_penalty or o.presence_penalty) and recent:
            logits = penalize_counts(logits, recent, o.frequency_penalty, o.presence_penalty)
        if o.dry_multiplier:
            base, allowed = o.dry_base, o.dry_allowed_length
            logits = penalize_repetitions(logits, history, o.dry_multiplier, base, allowed, self._breakers)
        return logits

    def _choose(self, candidates: Candidates, guess: Guess | None) -> int:
        o = self._options
        if o.temperature == 0:
            return int(candidates.ids[candidates.logits.argmax()])
        candidates = self._candidates(candidates)
        if guess is None:
            token = draw(candidates, 1.0, self._random.random())
        else:
            token = draw_guessed(candidates, guess, self._random)
        if o.mirostat_tau:
            observed = -float(logprobs(candidates.logits)[np.flatnonzero(candidates.ids == token)[0]]) / np.log(2)
            self._mu -= o.mirostat_eta * (observed - o.mirostat_tau)
        return token

    def _candidates(self, candidates: Candidates) -> Candidates:
        """What the filters leave, at its temperature."""
        o = self._options
        if o.temperature == 0:
            return candidates
        if o.mirostat_tau:
            return self._unsurprising(_warm(candidates, o.temperature))
        for name in o.samplers:
            candidates = _FILTERS[name](candidates, getattr(o, name))
        return candidates

    def _unsurprising(self, c: Candidates) -> Candidates:
        """Mirostat 2 (https://arxiv.org/abs/2007.14966): drops what is more surprising than a bound that it learns."""
        surprise = -logprobs(c.logits) / np.log(2)
        kept = np.flatnonzero(surprise <= max(self._mu, float(surprise.min())))
        return Candidates(c.ids[kept], c.logits[kept])


def _check_finite(logits: Float32) -> None:
    if not (math.isfinite(logits.min()) and math.isfinite(logits.max())):
        raise _not_finite()


def _not_finite() -> NumericsError:
    return NumericsError("the model computed logits that are not finite: its file is damaged, or a kernel wrong")


def _warm(c: Candidates, temperature: float) -> Candidates:
    return Candidates(c.ids, c.logits / np.float32(temperature))


_FILTERS: dict[str, Callable[[Candidates, Any], Candidates]] = {
    "top_k": keep_top_k,
    "typical_p": keep_typical,
    "top_p": keep_top_p,
    "min_p": keep_min_p,
    "temperature": _warm,
}
