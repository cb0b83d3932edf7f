"""A session: one timeline of tokens over an engine, and what of it is computed already.

Callers hand in the FULL list of tokens each time; the session keeps what it shares with the last one. It knows token
ids only, no text.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from localcoder.backends.highest import Row, Rows, Wanted
from localcoder.errors import ContextLengthError, OptionError
from localcoder.model.engine import Chunk, Engine
from localcoder.quants.spec import Bytes, Float32
from localcoder.session.sampler import NO_DRAFT, Draft

if TYPE_CHECKING:
    from localcoder.session.constraint import Constraint
    from localcoder.session.sampler import Guess
    from localcoder.session.speculation import Speculation

Result = TypeVar("Result")


class StepCancelled(Exception):
    """What `Session.cancelled_by` asks said so before a step."""


class Chooser(Protocol):
    """What chooses tokens: a `Sampler`, as a rule."""

    def wanted(self, n_vocab: int) -> Wanted | None:
        """As `Sampler.wanted`."""
        ...

    def sample(
        self,
        row: Row,
        history: Sequence[int],
        constraint: Constraint | None = None,
        guess: Guess | None = None,
    ) -> int:
        """As `Sampler.sample`."""
        ...


class Session:
    """One timeline. Not for two threads at once, but any number of sessions may share an engine.

    Whatever interrupts it (Ctrl-C, an error, a generator that is closed), the session stays usable: what was computed
    completely is kept, the rest is forgotten.

    Args:
        make_room: called when the cache has no free page left; frees some and returns whether it could.

    Attributes:
        sequence: where its keys and values are.
        n_evaluated: tokens computed over the session's life; what is re-used is not counted again.
    """

    def __init__(self, engine: Engine, make_room: Callable[[], bool] = lambda: False) -> None:
        self._engine = engine
        self._make_room = make_room
        self.sequence = engine.new_sequence()
        self._tokens: list[int] = []
        self._logits: Float32 | None = None  # after the last token, if that is known
        self._is_cancelled: Callable[[], bool] = lambda: False
        self._n_exact = sys.maxsize  # tokens from the start that never moved
        self.n_evaluated = 0

    @property
    def tokens(self) -> list[int]:
        """A copy of the tokens whose keys and values are in the cache."""
        return self._tokens[: self.sequence.n_past]

    @contextmanager
    def cancelled_by(self, is_cancelled: Callable[[], bool]) -> Iterator[None]:
        """In the block, every step first asks `is_cancelled`, and raises StepCancelled if so."""
        self._is_cancelled = is_cancelled
        try:
            yield
        finally:
            self._is_cancelled = lambda: False

    def n_shared(self, tokens: Sequence[int]) -> int:
        """How many leading tokens are in the cache already."""
        pairs = zip(tokens, self.tokens)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def sync(self, tokens: Sequence[int]) -> Float32:
        """Makes `tokens` the timeline, computing only what follows the shared prefix.

        Returns:
            The logits after the last token, float32 [n_vocab].

        Raises:
            OptionError: no tokens at all, or an id outside the vocabulary.
            ContextLengthError: more tokens than the context holds; the timeline is unchanged then.
        """
        self._check(tokens)
        n_kept = self.n_shared(tokens)
        if n_kept == len(tokens) == self.sequence.n_past and self._logits is not None:
            return self._logits
        self._trim(min(n_kept, len(tokens) - 1))
        return self._evaluate(tokens[self.sequence.n_past :])[0]

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Chooser,
        *,
        max_tokens: int | None = None,
        stop_ids: Collection[int] = (),
        constraint: Constraint | None = None,
        speculation: Speculation | None = None,
        n_kept: int | None = None,
    ) -> Iterator[int]:
        """Yields tokens that continue `prompt`, until one of `stop_ids` (which is yielded, too), `max_tokens`, or a
        full context. A token is computed only when the next one is asked for.

        Args:
            constraint: narrows each choice. The caller ends the iteration where it is complete.
            speculation: guesses several tokens, which are then computed in one step. Those that come are as without it,
                as each is sampled from the model's logits, and one that was guessed wrongly is forgotten: the same
                ones, or where guesses were drawn at random, equally distributed.
            n_kept: what to do when the context is full. None: end. A number: keep so many tokens from the start, forget
                the older half of what follows them, and go on. What comes then is near to what the model would write
                after that text, though not the same (`kv_shift`): call `forget_moved` before any other text.

        Raises:
            As `sync` and `Sampler.sample`.
        """
        rows: Rows = self.sync(prompt)[None]
        wanted = sampler.wanted(self._engine.n_vocab) if constraint is None else None
        history = list(prompt)
        n_left = sys.maxsize if max_tokens is None else max_tokens
        n_cut = 0  # tokens of the history that the timeline has no longer
        draft = NO_DRAFT  # rows[i] are the logits after draft.tokens[:i]
        n_right = 0
        while True:
            token = sampler.sample(rows[n_right], history, constraint, draft.guess(n_right))
            history.append(token)
            if constraint is not None:
                constraint.accept(token)
            if speculation is not None:
                speculation.add(token)
            yield token
            n_left -= 1
            is_right = draft.tokens[n_right : n_right + 1] == [token]
            n_right += is_right
            is_done = token in stop_ids or n_left <= 0
            if speculation is not None and draft.tokens and (is_done or not is_right):
                speculation.learn(len(draft.tokens), n_right)
            if is_done:
                return
            if is_right:
                continue
            self._trim(len(history) - 1 - n_cut)
            if self.is_full:
                n_cut += 0 if n_kept is None else self._forget_half(n_kept, speculation)
                if self.is_full:
                    return
            draft, n_right = NO_DRAFT, 0
            if speculation is not None:
                n_room = self._engine.n_ctx - self.sequence.n_past
                draft = speculation.draft(partial(self._tokens_and, token), min(n_left, n_room) - 1)
            draft, rows = self._evaluate_draft(token, draft, wanted)

    @property
    def is_full(self) -> bool:
        """Whether the timeline is as long as the context."""
        return self.sequence.n_past >= self._engine.n_ctx

    def cut(self, start: int, stop: int) -> None:
        """Forgets tokens start .. stop - 1, as far as they are there; what follows moves up, as `kv_shift` describes.

        Raises:
            As `Engine.cut`.
        """
        n_past = self.sequence.n_past
        if stop >= n_past:
            self._trim(min(start, n_past))
        elif start < stop:
            self._trim(n_past)
            self._n_exact = min(self._n_exact, start)
            self._with_room(partial(self._engine.cut, self.sequence, start, stop))
            del self._tokens[start:stop]

    def forget_moved(self) -> None:
        """Leaves in the timeline only what is as if it had been computed afresh."""
        if self._n_exact < self.sequence.n_past:
            self._trim(self._n_exact)
        self._n_exact = sys.maxsize

    def _tokens_and(self, token: int) -> list[int]:
        return [*self._tokens, token]

    def _forget_half(self, n_kept: int, speculation: Speculation | None) -> int:
        """Forgets the older half of what follows the first `n_kept` tokens; returns how many that are."""
        n = max((self.sequence.n_past - n_kept) // 2, 0)
        if n:
            self.cut(n_kept, n_kept + n)
            if speculation is not None:
                speculation.cut(n_kept, n_kept + n)
        return n

    def _evaluate_draft(self, token: int, draft: Draft, wanted: Wanted | None) -> tuple[Draft, Rows]:
        """Appends a token and guesses at what follows; without them where other sessions hold the pages they take.

        Returns:
            The guesses that were computed, and the logits after the token and each of them, as far as wanted.
        """
        try:
            return draft, self._decode([token, *draft.tokens], wanted)
        except ContextLengthError:
            if not draft.tokens:
                raise
            return NO_DRAFT, self._decode([token], wanted)

    def generate_together(
        self,
        prompt: Sequence[int],
        samplers: Sequence[Chooser],
        ended: Collection[int],
        *,
        max_tokens: int | None = None,
        stop_ids: Collection[int] = (),
        constraints: Sequence[Constraint | None] = (),
    ) -> Iterator[tuple[int, int]]:
        """As `generate`, one continuation for each sampler; each step computes a token of every one that goes on.

        They share the prompt's pages; afterwards the timeline is the prompt.

        Args:
            ended: numbers of the continuations that the caller wants no more of; it may add to them at any time.
            constraints: one for each continuation; empty: none.

        Yields:
            The number of a continuation, and its next token.

        Raises:
            As `generate`; ContextLengthError also where the cache has no room for all of them.
        """
        rows: Rows = [self.sync(prompt)] * len(samplers)
        branches = [self.sequence.fork() for _ in samplers]
        histories = [list(prompt) for _ in samplers]
        running = [number for number in range(len(samplers)) if number not in ended]
        wanted = None if constraints else common_wanted(samplers, self._engine.n_vocab)
        n_left = self._engine.n_ctx - len(prompt) + 1
        if max_tokens is not None:
            n_left = min(n_left, max_tokens)
        try:
            while running:
                for number, row in zip(running, rows):
                    constraint = constraints[number] if constraints else None
                    token = samplers[number].sample(row, histories[number], constraint)
                    histories[number].append(token)
                    if constraint is not None:
                        constraint.accept(token)
                    yield number, token
                n_left -= 1
                running = [i for i in running if i not in ended and histories[i][-1] not in stop_ids]
                if not running or n_left <= 0:
                    return
                chunks = [Chunk(branches[i], _ids(histories[i][-1:])) for i in running]
                rows = self._rows(chunks, wanted)
                self.n_evaluated += len(running)
        finally:
            for branch in branches:
                branch.close()

    def continue_with(self, prompt: Sequence[int], tokens: Sequence[int]) -> Float32:
        """Makes `prompt` and then `tokens` (at least one each) the timeline.

        Returns:
            The logits after the prompt and after each of the tokens, float32 [1 + n_tokens, n_vocab].

        Raises:
            As `sync`.
        """
        self._check([*prompt, *tokens])
        after_prompt = self.sync(prompt)
        return np.concatenate([after_prompt[None], self._evaluate(tokens, len(tokens))])

    def score(self, tokens: Sequence[int]) -> Iterator[Float32]:
        """Computes `tokens` afresh; yields the logits after each of them, float32 [some, n_vocab] at a time.

        Raises:
            As `sync`.
        """
        self._check(tokens)
        self._trim(0)
        for piece in self._pieces(tokens):
            self._tokens += piece
            yield self._step([Chunk(self.sequence, _ids(piece), len(piece))])

    def hidden_states(self, tokens: Sequence[int], n_layer: int | None = None) -> Iterator[Float32]:
        """Computes `tokens` afresh; yields what `Engine.hidden_states` has for them, float32 [some, n_embd] at a time.

        Nothing of it stays in the cache: the layers above would be missing.

        Raises:
            As `sync`.
        """
        self._check(tokens)
        self._trim(0)
        try:
            for piece in self._pieces(tokens):
                yield self._with_room(partial(self._engine.hidden_states, self.sequence, _ids(piece), n_layer))
        finally:
            self._trim(0)

    def _pieces(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """The tokens, as many at a time as one step takes."""
        step = self._engine.n_ubatch
        return (tokens[at : at + step] for at in range(0, len(tokens), step))

    def restore(self, tokens: list[int], pages: Sequence[Bytes]) -> None:
        """Makes `tokens` the timeline, with pages that `Engine.read_pages` gave for them.

        Raises:
            ContextLengthError: they do not fit.
        """
        self._trim(0)
        try:
            self._engine.write_pages(self.sequence, len(tokens), pages)
        except BaseException:
            self.sequence.close()
            raise
        self._tokens = tokens

    def close(self) -> None:
        """Gives the cache's pages back."""
        self._trim(0)
        self.sequence.close()

    def _check(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise OptionError("no tokens at all; give at least one")
        if len(tokens) > self._engine.n_ctx:
            raise ContextLengthError(
                f"{len(tokens)} tokens do not fit in a context of {self._engine.n_ctx}: "
                "shorten the prompt or raise n_ctx"
            )

    def _trim(self, n_past: int) -> None:
        self._logits = None
        self.sequence.trim(n_past)
        del self._tokens[n_past:]

    def _evaluate(self, tokens: Sequence[int], n_logits: int = 1) -> Float32:
        """Appends tokens (at least one) step by step, so that an interruption keeps the steps that are done.

        Returns:
            The logits after each of the last `n_logits` tokens.
        """
        self._logits = None
        pieces = []
        step = self._engine.n_ubatch
        for at in range(0, len(tokens), step):
            piece = tokens[at : at + step]
            del self._tokens[self.sequence.n_past :]
            self._tokens += piece  # first: if the step is interrupted, n_past says that they do not count
            wanted = min(max(at + len(piece) - (len(tokens) - n_logits), 0), len(piece))
            pieces.append(self._step([Chunk(self.sequence, _ids(piece), wanted)]))
            self.n_evaluated += len(piece)
        logits = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        self._logits = logits[-1]
        return logits

    def _decode(self, tokens: Sequence[int], wanted: Wanted | None) -> Rows:
        """Appends tokens that fit in one step; returns what is wanted of the logits after each of them."""
        if wanted is None or len(tokens) > self._engine.n_ubatch:
            return self._evaluate(tokens, len(tokens))
        self._logits = None
        del self._tokens[self.sequence.n_past :]
        self._tokens += tokens  # first, as in _evaluate
        rows = self._rows([Chunk(self.sequence, _ids(tokens), len(tokens))], wanted)
        self.n_evaluated += len(tokens)
        return rows

    def _rows(self, chunks: Sequence[Chunk], wanted: Wanted | None) -> Rows:
        if wanted is None:
            return self._step(chunks)
        return self._with_room(partial(self._engine.evaluate_highest, chunks, wanted))

    def _step(self, chunks: Sequence[Chunk]) -> Float32:
        return self._with_room(partial(self._engine.evaluate, chunks))

    def _with_room(self, compute: Callable[[], Result]) -> Result:
        """The result of a step, for which others give up their pages if it needs them."""
        while True:
            if self._is_cancelled():
                raise StepCancelled
            try:
                return compute()
            except ContextLengthError:
                if not self._make_room():
                    raise


def common_wanted(choosers: Sequence[Chooser], n_vocab: int) -> Wanted | None:
    """What all of them want of a row; None: all of it."""
    wanted = {chooser.wanted(n_vocab) for chooser in choosers}
    return wanted.pop() if len(wanted) == 1 else None


def _ids(tokens: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    try:
        return np.array(tokens, np.int32)
    except OverflowError:
        raise OptionError(f"token id {max(tokens, key=abs)} is outside the vocabulary") from None
