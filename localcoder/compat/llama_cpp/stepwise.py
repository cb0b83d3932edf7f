"""A text in steps: evaluate tokens, sample one, go on; and what of it can be kept."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.coder import Coder
from localcoder.compat.llama_cpp.arguments import generation_options
from localcoder.compat.llama_cpp.llama_grammar import LlamaGrammar
from localcoder.compat.llama_cpp.processors import Hooks
from localcoder.errors import OptionError
from localcoder.quants.spec import Float32
from localcoder.session.generation import make_sampler
from localcoder.session.grammar.matcher import make_grammar
from localcoder.session.options import GenerationOptions
from localcoder.session.saved import save_session
from localcoder.session.session import StepCancelled
from localcoder.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class LlamaState:
    """What `Llama.save_state` keeps; it can be pickled, and is for the same model file only.

    Attributes:
        input_ids: the tokens, int32 [n_tokens].
        scores: the logits after the first few of them, as far as `Llama.scores` was asked for, float32 [some, n_vocab].
        llama_state: their keys and values, as `Coder.save_session` writes them.
        seed: what later draws begin with.
    """

    input_ids: NDArray[np.int32]
    scores: Float32
    n_tokens: int
    llama_state: bytes
    llama_state_size: int
    seed: int


class Stepwise:
    """The part of `Llama` that keeps one text between calls. Completions do not touch that text."""

    _coder: Coder
    _tokenizer: Tokenizer
    _random: random.Random
    _last_n: int
    _keeps_rows: bool  # logits_all

    def __init__(self) -> None:
        self._past: list[int] = []
        self._row: Float32 | None = None  # after the last token, if that is known
        self._rows = np.empty((0, self._coder.n_vocab), np.float32)  # after the first so many tokens

    @property
    def n_tokens(self) -> int:
        """How many tokens the text has; may be set to fewer, which forgets the last ones."""
        return len(self._past)

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        if not 0 <= n <= len(self._past):
            raise OptionError(f"n_tokens is {n}; the text has {len(self._past)}")
        self._past, self._row, self._rows = self._past[:n], None, self._rows[:n]

    @property
    def input_ids(self) -> NDArray[np.int32]:
        """The tokens, int32 [n_tokens]."""
        return np.array(self._past, np.int32)

    @property
    def scores(self) -> Float32:
        """The logits after each of them, float32 [n_tokens, n_vocab], computed when they are asked for.

        Raises:
            OptionError: the model was opened without `logits_all`.
        """
        if not self._keeps_rows:
            raise OptionError("scores are kept only with logits_all=True")
        known, new = self._past[: len(self._rows)], self._past[len(self._rows) :]
        if new:
            with self._coder.sessions.lend(self._past) as session:
                rows = [session.continue_with(known, new)[1:]] if known else list(session.score(new))
            self._rows = np.concatenate([self._rows, *rows])
        return self._rows

    def reset(self) -> None:
        """Forgets the text."""
        self.n_tokens = 0

    def eval(self, tokens: Sequence[int]) -> None:
        """Appends tokens to the text.

        Raises:
            OptionError: an id outside the vocabulary.
            ContextLengthError: the text has no room for them.
        """
        past = [*self._past, *map(int, tokens)]
        if not past:
            return
        with self._coder.sessions.lend(past) as session:
            self._row = session.sync(past)
        self._past = past

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,
        logits_processor: Any = None,
        grammar: LlamaGrammar | None = None,
        idx: int | None = None,
    ) -> int:
        """A token that could follow the text, which stays as it is. Each call is a new beginning for what looks back at
        earlier ones, such as penalties.

        Args:
            idx: after which of its tokens, which takes `logits_all`; default: the last.

        Raises:
            OptionError: there is no text, an argument out of its range, or not supported.
        """
        if not self._past:
            raise OptionError("there is nothing to sample from; give tokens to eval first")
        if idx is not None and not 0 <= idx < self.n_tokens:
            raise OptionError(f"idx is {idx}; expected one of the {self.n_tokens} tokens that were evaluated")
        a = dict(locals())
        options = self._step_options(a, n_prompt=0)
        history = self._past[: self.n_tokens if idx is None else idx + 1]
        sampler = make_sampler(self._tokenizer, self._coder.n_vocab, options, Hooks(logits_processor) or None)
        return sampler.sample(
            self._last_row() if idx is None else self.scores[idx],
            history,
            make_grammar(self._tokenizer, self._coder.n_vocab, options),
        )

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        grammar: LlamaGrammar | None = None,
    ) -> Generator[int, None, None]:
        """Yields tokens that continue `tokens`, past the end of the text, until the context is full, the text all that
        a grammar describes, or a criterion is met.

        Args:
            reset: whether the text begins with `tokens`; else they are appended to what `eval` has made.
            penalize_nl: changes nothing, as with llama-cpp-python.
        """
        a = dict(locals())
        prompt = [*([] if reset else self._past), *map(int, tokens)]
        options = self._step_options(a, len(prompt))
        n_vocab = self._coder.n_vocab
        sampler = make_sampler(self._tokenizer, n_vocab, options, Hooks(logits_processor, stopping_criteria) or None)
        constraint = make_grammar(self._tokenizer, n_vocab, options)
        if reset:
            self.reset()
        self._append(prompt[self.n_tokens :])
        try:
            with self._coder.sessions.lend(prompt) as session:
                for token in session.generate(prompt, sampler, constraint=constraint):
                    yield token
                    self._append([token])
                    if constraint is not None and (constraint.is_complete or token in self._tokenizer.stop_ids):
                        return
        except StepCancelled:
            return

    def save_state(self) -> LlamaState:
        """The text of `eval` or `generate`, with its keys and values; without one, what the last call computed.

        Raises:
            OptionError: nothing was computed yet.
        """
        newest = self._coder.sessions.newest()
        past = self._past or (newest.tokens if newest is not None else [])
        if not past:
            raise OptionError("there is no state to save: nothing was computed yet")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "state")
            with self._coder.sessions.lend(past) as session:
                session.sync(past)
                save_session(path, self._coder.engine, session)
            state = path.read_bytes()
        seed = self._random.randrange(1 << 31)
        self._random.seed(seed)
        return LlamaState(np.array(past, np.int32), self._rows, len(past), state, len(state), seed)

    def load_state(self, state: LlamaState) -> None:
        """Makes what `save_state` has kept the text again.

        Raises:
            FileError: a damaged state, or that of another model.
            ContextLengthError: it is longer than the context.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "state")
            path.write_bytes(state.llama_state)
            self._coder.load_session(path)
        self._past = state.input_ids.tolist()
        self._row, self._rows = None, state.scores
        self._random.seed(state.seed)

    def _options(self, a: Mapping[str, Any], *, n_prompt: int, max_tokens: int | None) -> dict[str, Any]:
        n_left = self._coder.n_ctx - n_prompt
        if n_left <= 0:
            raise OptionError(f"Requested tokens ({n_prompt}) exceed context window of {self._coder.n_ctx}")
        wanted = n_left if max_tokens is None or max_tokens <= 0 else min(max_tokens, n_left)
        seed = a.get("seed")
        drawn = self._random.randrange(1 << 32) if seed is None else seed % (1 << 32)
        return generation_options(a, max_tokens=wanted, seed=drawn, last_n=self._last_n)

    def _step_options(self, a: Mapping[str, Any], n_prompt: int) -> GenerationOptions:
        """Those of a method that ends no text and has no such arguments."""
        a = {**a, "temperature": a["temp"], "stop": None, "logprobs": None, "logit_bias": None}
        return GenerationOptions(**self._options(a, n_prompt=n_prompt, max_tokens=None))

    def _last_row(self) -> Float32:
        if self._row is None:
            with self._coder.sessions.lend(self._past) as session:
                self._row = session.sync(self._past)
        return self._row

    def _append(self, tokens: Sequence[int]) -> None:
        self._past = [*self._past, *tokens]
        self._row = None
