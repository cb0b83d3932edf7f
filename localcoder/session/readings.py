"""What a model makes of text, as numpy arrays."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from localcoder.errors import OptionError
from localcoder.quants.spec import Float32
from localcoder.session.opened import OpenedModel
from localcoder.session.sampler import Float64, logprobs

Pooling = Literal["mean", "last"]


class Readings(OpenedModel):
    """The part of `Coder` that reads, but does not write."""

    def logits(self, token_ids: Iterable[int]) -> Float32:
        """What the model expects after each token: float32 [n_tokens, n_vocab], not normalized.

        Raises:
            OptionError: no ids, or one outside the vocabulary.
            ContextLengthError: more ids than the context holds.

        Example:
            >>> from localcoder import Coder
            >>> with Coder() as coder:
            ...     ids = coder.tokenize("def f(x):")
            ...     coder.logits(ids).shape == (len(ids), coder.n_vocab)
            True
        """
        tokens = self._ids(token_ids)
        with self._pool.lend(tokens) as session:
            return np.concatenate(list(session.score(tokens)))

    def score(self, text: str, *, prompt: str = "") -> Float64:
        """The logarithm of the probability of each token of a text, given `prompt` and what of the text is before it:
        float64 [n_tokens]. Their sum is that of the text; exp(-mean) is its perplexity.

        Args:
            text: what is scored.
            prompt: what goes before it; tokenized by itself, with BOS as the file says.

        Raises:
            OptionError: no text, or nothing before it where the model has no BOS.
            ContextLengthError: prompt and text are longer than the context.

        Example:
            >>> from localcoder import Coder
            >>> with Coder() as coder:
            ...     right = coder.score("self, other):", prompt="class A:\\n    def __eq__(")
            ...     wrong = coder.score("import, pass:", prompt="class A:\\n    def __eq__(")
            >>> bool(right.sum() > wrong.sum())
            True
        """
        before = self._tokenizer.tokenize(prompt)
        scored = self._tokenizer.tokenize(text, bos=False)
        if not before or not scored:
            raise OptionError("there is no text to score" if before else "this model has no BOS: give a prompt")
        tokens = self._ids([*before, *scored])
        found: list[Float64] = []
        at = 0
        with self._pool.lend(tokens) as session:
            for rows in session.score(tokens):
                following = tokens[at + 1 : at + 1 + len(rows)]
                first = max(len(before) - 1 - at, 0)
                picked = np.arange(first, len(following))
                if len(picked):
                    found.append(logprobs(rows[picked])[np.arange(len(picked)), following[first:]])
                at += len(rows)
        return np.concatenate(found)

    def hidden_states(self, token_ids: Iterable[int], *, n_layer: int | None = None) -> Float32:
        """The model's state at each token: float32 [n_tokens, n_embd].

        Args:
            n_layer: after how many layers; 0: the embeddings. None: after all of them and the last norm, from which the
                logits come.

        Raises:
            OptionError: no ids, one outside the vocabulary, or more layers than there are.
            ContextLengthError: more ids than the context holds.

        Example:
            >>> from localcoder import Coder
            >>> with Coder() as coder:
            ...     states = coder.hidden_states(coder.tokenize("def f(x):"))
            ...     states.shape[1] == coder.n_embd
            True
        """
        tokens = self._ids(token_ids)
        with self._pool.passing() as session:
            return np.concatenate(list(session.hidden_states(tokens, n_layer)))

    def embed(self, text: str | Sequence[str], *, pooling: Pooling = "mean", normalize: bool = True) -> Float32:
        """A vector for a text, to compare it with others: float32 [n_embd]; for several texts [n_texts, n_embd].

        It is made of the last hidden states. The family was not trained for it: near texts have near vectors, but a
        model made for search does better.

        Args:
            pooling: "mean" of all tokens, or the "last" one, which has seen all others.
            normalize: whether to scale to length 1, so that the scalar product is the cosine.

        Raises:
            OptionError: an empty text, or no such pooling.
            ContextLengthError: a text is longer than the context.

        Example:
            >>> from localcoder import Coder
            >>> with Coder() as coder:
            ...     a, b, c = coder.embed(["def add(x, y):", "def add(a, b):", "import os, sys"])
            >>> bool(a @ b > a @ c)
            True
        """
        if pooling not in ("mean", "last"):
            raise OptionError(f'pooling is {pooling!r}; expected "mean" or "last"')
        if not isinstance(text, str):
            vectors = [self.embed(one, pooling=pooling, normalize=normalize) for one in text]
            return np.stack(vectors) if vectors else np.empty((0, self.n_embd), np.float32)
        states = self.hidden_states(self._tokenizer.tokenize(text))
        vector = states[-1] if pooling == "last" else states.mean(axis=0)
        return vector / np.linalg.norm(vector) if normalize else vector

    @property
    def n_embd(self) -> int:
        """Width of the hidden states."""
        return self._engine.hyperparameters.n_embd

    def _ids(self, token_ids: Iterable[int]) -> list[int]:
        self._require_open()
        return [operator.index(i) for i in token_ids]
