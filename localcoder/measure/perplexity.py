"""Perplexity, by the definition of llama.cpp's llama-perplexity.

The text is cut into chunks of n_ctx tokens; each begins with BOS in place of its first token where the vocabulary wants
one, and is scored over its second half, where every prediction has at least half a context behind it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localcoder.errors import NumericsError, OptionError
from localcoder.model.engine import Chunk, Engine
from localcoder.quants.spec import Float32

MIN_CTX = 4
_STEP = 256  # tokens evaluated at a time: their logits are the largest array in use
_ROWS = 32  # of logits turned into float64 at a time


@dataclass(frozen=True)
class Perplexity:
    """What came out.

    Attributes:
        perplexity: exp of the mean negative log-likelihood a token, in nats.
        standard_error: of the perplexity, from the spread of the tokens' likelihoods.
        n_tokens: tokens scored.
    """

    perplexity: float
    standard_error: float
    n_tokens: int
    n_chunks: int


@dataclass(frozen=True, eq=False)
class ScoredPiece:
    """Consecutive scored positions of one chunk.

    Attributes:
        chunk: number of the chunk.
        logits: float32 [n, n_vocab].
        targets: int32 [n], the tokens that follow.
    """

    chunk: int
    logits: Float32
    targets: NDArray[np.int32]


def n_scored(n_ctx: int) -> int:
    """How many positions of a chunk are scored."""
    return n_ctx - 1 - n_ctx // 2


def scored_slices(n_ctx: int) -> Iterator[tuple[slice, slice]]:
    """How a chunk is evaluated: (input positions, those of them that are scored), piece by piece.

    The last token is no input: it predicts nothing that is known.
    """
    first = n_ctx // 2
    for at in range(0, n_ctx - 1, _STEP):
        end = min(at + _STEP, n_ctx - 1)
        yield slice(at, end), slice(min(max(at, first), end), end)


def scored_pieces(engine: Engine, chunks: NDArray[np.int32]) -> Iterator[ScoredPiece]:
    """Runs a model over chunks; yields the logits of what is scored.

    Args:
        chunks: int32 [n_chunks, n_ctx], as `cut_chunks` makes them.

    Raises:
        OptionError: n_ctx is too small.
    """
    if chunks.shape[1] < MIN_CTX:
        raise OptionError(f"n_ctx is {chunks.shape[1]}; expected at least {MIN_CTX}")
    return _scored_pieces(engine, chunks)


def _scored_pieces(engine: Engine, chunks: NDArray[np.int32]) -> Iterator[ScoredPiece]:
    for number, chunk in enumerate(chunks):
        sequence = engine.new_sequence()
        try:
            for inputs, scored in scored_slices(len(chunk)):
                logits = engine.evaluate([Chunk(sequence, chunk[inputs], scored.stop - scored.start)])
                if len(logits):
                    yield ScoredPiece(number, logits, chunk[scored.start + 1 : scored.stop + 1])
        finally:
            sequence.close()


def chunk_losses(pieces: Iterator[ScoredPiece]) -> Iterator[NDArray[np.float64]]:
    """Yields each chunk's negative log-likelihoods, float64 [n_scored].

    Raises:
        NumericsError: logits are not finite.
    """
    for _, of_chunk in itertools.groupby(pieces, lambda piece: piece.chunk):
        yield np.concatenate([negative_log_likelihoods(piece.logits, piece.targets) for piece in of_chunk])


def negative_log_likelihoods(logits: Float32, targets: NDArray[np.int32]) -> NDArray[np.float64]:
    """-log softmax(logits)[target] of each row: logits float32 [n, n_vocab], targets [n] -> float64 [n].

    Raises:
        NumericsError: a result is not finite.
    """
    losses = [-rows[np.arange(len(rows)), targets[at : at + _ROWS]] for at, rows in log_softmax(logits)]
    return np.concatenate(losses)


def log_softmax(logits: Float32) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yields (number of the first row, log-probabilities float64 [some rows, n_vocab]) for all rows in turn.

    Raises:
        NumericsError: logits are not finite.
    """
    for at in range(0, len(logits), _ROWS):
        rows = logits[at : at + _ROWS].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        if not np.isfinite(rows).all():
            raise NumericsError("the model computed logits that are not finite: its file is damaged, or a kernel wrong")
        yield at, rows


def summarize(losses: Sequence[NDArray[np.float64]]) -> Perplexity:
    """The perplexity over the chunks so far (at least one)."""
    all_losses = np.concatenate(losses)
    mean = float(all_losses.mean())
    perplexity = math.exp(mean)
    deviation = float(all_losses.std()) / math.sqrt(max(len(all_losses) - 1, 1))
    return Perplexity(perplexity, perplexity * deviation, len(all_losses), len(losses))
