"""Draft models. localcoder looks repetitions up in prompt and output without being told to."""

from __future__ import annotations


class LlamaPromptLookupDecoding:
    """What the `draft_model` of a `Llama` may be. It changes nothing: how much is guessed follows from how often the
    guesses were right."""

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        self.max_ngram_size = max_ngram_size
        self.num_pred_tokens = num_pred_tokens
