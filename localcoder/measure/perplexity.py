"""Perplexity, by the definition of llama.cpp's llama-perplexity.

The text is cut into chunks of n_ctx tokens; each begins with BOS in place of its first token where the vocabulary wants
one, and is scored over its second half, where every prediction has at least half a context behind it.
"""

from __future__ import annotations

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


def chunk_losses(
    engine: Engine, tokens: Sequence[int], n_ctx: int, bos_id: int | None
) -> Iterator[NDArray[np.float64]]:
    """Yields each chunk's negative log-likelihoods, float64 [n_ctx - 1 - n_ctx // 2].

    Args:
        tokens: the whole text.
        bos_id: what each chunk's first token is replaced with; None: nothing.

    Raises:
        OptionError: n_ctx is too small, or the text shorter than one chunk.
        NumericsError: logits are not finite.
    """
    if n_ctx < MIN_CTX:
        raise OptionError(f"n_ctx is {n_ctx}; expected at least {MIN_CTX}")
    if len(tokens) < n_ctx:
        raise OptionError(
            f"the text has {len(tokens)} tokens; one chunk takes {n_ctx}: use a longer text or less n_ctx"
        )
    return _chunk_losses(engine, np.asarray(tokens, np.int32), n_ctx, bos_id)


def _chunk_losses(
    engine: Engine, tokens: NDArray[np.int32], n_ctx: int, bos_id: int | None
) -> Iterator[NDArray[np.float64]]:
    for at in range(0, len(tokens) - n_ctx + 1, n_ctx):
        chunk = tokens[at : at + n_ctx].copy()
        if bos_id is not None:
            chunk[0] = bos_id
        yield _losses(engine, chunk, first=n_ctx // 2)


def _losses(engine: Engine, chunk: NDArray[np.int32], first: int) -> NDArray[np.float64]:
    """Negative log-likelihoods of chunk[first + 1 :], each predicted by the position before it."""
    losses = []
    sequence = engine.new_sequence()
    try:
        for at in range(0, len(chunk) - 1, _STEP):  # the last token predicts nothing that is known
            inputs = chunk[at : min(at + _STEP, len(chunk) - 1)]
            n_logits = min(len(inputs), max(0, at + len(inputs) - first))
            logits = engine.evaluate([Chunk(sequence, inputs, n_logits)])
            targets = chunk[at + len(inputs) + 1 - n_logits : at + len(inputs) + 1]
            losses.append(negative_log_likelihoods(logits, targets))
    finally:
        sequence.close()
    return np.concatenate(losses)


def negative_log_likelihoods(logits: Float32, targets: NDArray[np.int32]) -> NDArray[np.float64]:
    """-log softmax(logits)[target] of each row: logits float32 [n, n_vocab], targets [n] -> float64 [n]."""
    losses = np.empty(len(targets))
    for at in range(0, len(targets), _ROWS):
        rows = logits[at : at + _ROWS].astype(np.float64)
        top = rows.max(axis=1)
        picked = rows[np.arange(len(rows)), targets[at : at + _ROWS]]
        losses[at : at + _ROWS] = np.log(np.exp(rows - top[:, None]).sum(axis=1)) + top - picked
    if not np.isfinite(losses).all():
        raise NumericsError("the model computed logits that are not finite: its file is damaged, or a kernel wrong")
    return losses


def summarize(losses: Sequence[NDArray[np.float64]]) -> Perplexity:
    """The perplexity over the chunks so far (at least one)."""
    all_losses = np.concatenate(losses)
    mean = float(all_losses.mean())
    perplexity = math.exp(mean)
    deviation = float(all_losses.std()) / math.sqrt(max(len(all_losses) - 1, 1))
    return Perplexity(perplexity, perplexity * deviation, len(all_losses), len(losses))
