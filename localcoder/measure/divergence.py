"""How far a model's predictions are from a base model's: KL divergence, perplexity, agreement on the likeliest token.

Both see the chunks of `perplexity.py` and are compared where it scores. Positions of one chunk resemble each other, so
the standard errors take chunks, not positions, as what is drawn at random.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localcoder.measure.perplexity import ScoredPiece, log_softmax

QUANTILE = 0.99
_N_RESAMPLES = 200  # for the standard error of the quantile


@dataclass(frozen=True)
class Divergence:
    """A model against its base. Each `…_se` is the standard error of the figure before it; None with one chunk only.

    Attributes:
        perplexity, base_perplexity: of the two, over the same positions.
        perplexity_ratio: of the first to the second.
        kl_divergence: mean over positions of sum over tokens of p log(p/q), in nats; p is the base's.
        kl_p99: what 99% of the positions stay below.
        top1_agreement: how often both have the same likeliest token, 0 to 1.
    """

    perplexity: float
    perplexity_se: float | None
    base_perplexity: float
    perplexity_ratio: float
    perplexity_ratio_se: float | None
    kl_divergence: float
    kl_divergence_se: float | None
    kl_p99: float
    kl_p99_se: float | None
    top1_agreement: float
    top1_agreement_se: float | None
    n_tokens: int
    n_chunks: int


class DivergenceSamples:
    """Collects what two models say of the same positions."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, NDArray[np.float64]]] = []  # number of the chunk, [4, n] as in `_compare`

    def add(self, base: ScoredPiece, other: ScoredPiece) -> None:
        """Counts positions that both models have scored.

        Raises:
            NumericsError: logits are not finite.
        """
        assert (base.chunk, base.logits.shape) == (other.chunk, other.logits.shape)
        self._pieces.append((base.chunk, _compare(base, other)))

    @property
    def mean_kl(self) -> float:
        """The mean KL divergence so far."""
        return _mean([values[2] for _, values in self._pieces])

    def summarize(self) -> Divergence:
        """The figures over all positions so far (at least one)."""
        by_chunk = [
            np.concatenate([values for _, values in pieces], axis=1)
            for _, pieces in itertools.groupby(self._pieces, lambda piece: piece[0])
        ]
        loss, base_loss, kl, agrees = ([chunk[i] for chunk in by_chunk] for i in range(4))
        mean_loss, mean_base_loss = _mean(loss), _mean(base_loss)
        perplexity, ratio = math.exp(mean_loss), math.exp(mean_loss - mean_base_loss)
        return Divergence(
            perplexity=perplexity,
            perplexity_se=_scaled(perplexity, clustered_se(loss)),
            base_perplexity=math.exp(mean_base_loss),
            perplexity_ratio=ratio,
            perplexity_ratio_se=_scaled(ratio, clustered_se([a - b for a, b in zip(loss, base_loss)])),
            kl_divergence=_mean(kl),
            kl_divergence_se=clustered_se(kl),
            kl_p99=float(np.quantile(np.concatenate(kl), QUANTILE)),
            kl_p99_se=_quantile_se(kl),
            top1_agreement=_mean(agrees),
            top1_agreement_se=clustered_se(agrees),
            n_tokens=sum(map(len, kl)),
            n_chunks=len(kl),
        )


def _compare(base: ScoredPiece, other: ScoredPiece) -> NDArray[np.float64]:
    """float64 [4, n]: the model's loss, the base's loss, KL divergence, 1 where the likeliest token is the same."""
    values = np.empty((4, len(base.logits)))
    for (at, p), (_, q) in zip(log_softmax(base.logits), log_softmax(other.logits)):
        rows = np.arange(len(p))
        targets = base.targets[at : at + len(p)]
        columns = values[:, at : at + len(p)]
        columns[0], columns[1] = -q[rows, targets], -p[rows, targets]
        columns[3] = p.argmax(axis=1) == q.argmax(axis=1)
        q -= p
        # Rounding can leave a sum that should be 0 a hair below it.
        columns[2] = np.maximum(-np.einsum("ij,ij->i", np.exp(p), q), 0)
    return values


def _mean(by_chunk: Sequence[NDArray[np.float64]]) -> float:
    return float(np.concatenate(by_chunk).mean())


def clustered_se(by_chunk: Sequence[NDArray[np.float64]]) -> float | None:
    """Standard error of the mean over all values, where only chunks are independent; None for one chunk."""
    n = len(by_chunk)
    if n < 2:
        return None
    mean = _mean(by_chunk)
    sums = np.array([(values - mean).sum() for values in by_chunk])
    return math.sqrt(n / (n - 1) * float((sums * sums).sum())) / sum(map(len, by_chunk))


def _quantile_se(by_chunk: Sequence[NDArray[np.float64]]) -> float | None:
    """Standard error of the quantile, from chunks drawn with replacement."""
    n = len(by_chunk)
    if n < 2:
        return None
    random = np.random.default_rng(0)
    draws = random.integers(0, n, (_N_RESAMPLES, n))
    quantiles = [np.quantile(np.concatenate([by_chunk[i] for i in draw]), QUANTILE) for draw in draws]
    return float(np.std(quantiles, ddof=1))


def _scaled(factor: float, error: float | None) -> float | None:
    return None if error is None else factor * error


def compare_pieces(
    base: Iterator[ScoredPiece], others: Sequence[Iterator[ScoredPiece]]
) -> Iterator[list[DivergenceSamples]]:
    """Takes models' pieces side by side; yields the samples of each model so far after every chunk."""
    samples = [DivergenceSamples() for _ in others]
    for _, of_chunk in itertools.groupby(zip(base, *others), lambda pieces: pieces[0].chunk):
        for piece, *of_others in of_chunk:
            for sample, other in zip(samples, of_others):
                sample.add(piece, other)
        yield samples
