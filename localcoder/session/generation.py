"""A generation: tokens become pieces of text, stop strings end it, and its course is timed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from localcoder.session.constraint import Constraint, Edges, Surroundings
from localcoder.session.grammar.matcher import make_grammar
from localcoder.session.lookup import Lookup
from localcoder.session.options import GenerationOptions
from localcoder.session.sampler import Hook, Logprob, Sampler, logprobs
from localcoder.session.session import Session, StepCancelled
from localcoder.session.speculation import Drafting, DraftModel, Speculation
from localcoder.tokenizer.tokenizer import StreamDecoder, Tokenizer

_DRY_BREAKERS = b'\n:"*'  # a token with one of these bytes ends what DRY takes for a repetition
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Timings:
    """How long the parts took.

    Attributes:
        n_prefill: prompt tokens that were computed; the others were in the cache already.
        prefill_tps: those tokens per second.
        decode_tps: generated tokens per second after the first; 0 where there was one at most.
        first_token_s: seconds from the start to the first token.
        total_s: seconds from the start to the end.
    """

    n_prefill: int
    prefill_tps: float
    decode_tps: float
    first_token_s: float
    total_s: float


@dataclass(frozen=True)
class Completion:
    """What came of a generation.

    Attributes:
        finish_reason: "stop": the model ended its text, or a stop string came up; "length": max_tokens or the end of
            the context. None: it was interrupted or cancelled.
        n_prompt_tokens: with BOS.
        n_tokens: generated tokens; a token that only says "end of text" is not counted.
        seed: with it and the same options the text can be made again.
        logprobs: with the option of that name, one for each token, the token that says "end of text" included.
        context_is_full: whether it is the end of the context that ended the text.
        n_drafted, n_accepted: tokens that speculation guessed, and those of them that were right.
    """

    text: str
    finish_reason: FinishReason | None
    n_prompt_tokens: int
    n_tokens: int
    seed: int
    timings: Timings
    logprobs: tuple[Logprob, ...] | None = None
    context_is_full: bool = False
    n_drafted: int = 0
    n_accepted: int = 0

    @property
    def mean_logprob(self) -> float | None:
        """The mean of `logprobs`; None without that option, or where there is no token."""
        return sum(record.logprob for record in self.logprobs) / len(self.logprobs) if self.logprobs else None


class StopStrings:
    """Finds stop strings in text that comes in pieces; what may be the start of one is held back."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found = False

    def feed(self, piece: str) -> str:
        """The text that is certain now. Once a stop string is complete, `found` is set and nothing more comes."""
        if self.found:
            return ""
        if not self._stop:
            return piece
        text = self._held + piece
        found = [(at + len(s), at) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            self.found = True
            self._held = ""
            return text[: min(found)[1]]  # the one that is complete first, however the text was cut into pieces
        n_held = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def flush(self) -> str:
        """The end of the text: what was held back was no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a start of `stop`, shorter than it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class Transcript:
    """One text in the making: tokens become pieces, the end or a stop string ends it, and its course is timed.

    Args:
        constraint: what narrows the choice; the text ends where it is complete.

    Attributes:
        decoder: what makes text of the tokens.
        finish_reason: None until the text has ended.
    """

    def __init__(
        self, tokenizer: Tokenizer, options: GenerationOptions, sampler: Sampler, constraint: Constraint | None = None
    ) -> None:
        self._constraint = constraint
        self.decoder = StreamDecoder(tokenizer)
        self.finish_reason: FinishReason | None = None
        self._stop_ids = tokenizer.stop_ids
        self._stops = StopStrings(options.stop)
        self._has_logprobs = options.logprobs is not None
        self._sampler = sampler
        self._text: list[str] = []
        self._times: list[float] = []  # the start, then each token
        self._n_ends = 0

    def start(self) -> None:
        """Starts the clock."""
        self._times = [time.perf_counter()]

    def feed(self, token: int) -> str:
        """The text that is certain with this token; may end it all."""
        self._times.append(time.perf_counter())
        if token in self._stop_ids:
            self._n_ends += 1
            return self.end("stop")
        piece = self._stops.feed(self.decoder.feed([token]))
        if self._stops.found:
            self.finish_reason = "stop"
        self._text.append(piece)
        if self._constraint is not None and self._constraint.is_complete and not self._stops.found:
            piece += self.end("stop")
        return piece

    def end(self, reason: FinishReason) -> str:
        """Ends the text; returns what was held back."""
        piece = self._stops.feed(self.decoder.flush()) + self._stops.flush()
        self.finish_reason = "stop" if self._stops.found else reason
        self._text.append(piece)
        return piece

    def completion(self, n_prompt_tokens: int, n_prefill: int, speculation: Speculation | None = None) -> Completion:
        """The result so far."""
        n_sampled = max(len(self._times) - 1, 0)
        first = self._times[1] - self._times[0] if n_sampled else 0.0
        decode = self._times[-1] - self._times[1] if n_sampled > 1 else 0.0
        return Completion(
            text="".join(self._text),
            finish_reason=self.finish_reason,
            n_prompt_tokens=n_prompt_tokens,
            n_tokens=n_sampled - self._n_ends,
            seed=self._sampler.seed,
            logprobs=tuple(self._sampler.logprobs) if self._has_logprobs else None,
            n_drafted=speculation.n_drafted if speculation else 0,
            n_accepted=speculation.n_accepted if speculation else 0,
            timings=Timings(
                n_prefill=n_prefill,
                prefill_tps=n_prefill / first if first else 0.0,
                decode_tps=(n_sampled - 1) / decode if decode else 0.0,
                first_token_s=first,
                total_s=first + decode,
            ),
        )


def make_sampler(tokenizer: Tokenizer, n_vocab: int, options: GenerationOptions, hook: Hook | None = None) -> Sampler:
    """A sampler that never chooses what the vocabulary has no token for."""
    forbidden = np.flatnonzero(tokenizer.unsampleable(n_vocab)).tolist()
    breakers = tokenizer.ids_with(_DRY_BREAKERS) if options.dry_multiplier else ()
    return Sampler(options, forbidden, breakers=breakers, n_logprobs=options.logprobs, hook=hook)


@dataclass(frozen=True)
class Start:
    """How an answer begins whose first bytes are given.

    Attributes:
        prompt: token ids.
        first: ids of which the first token is one; empty: any.
        n_skipped: bytes of the first token that the text leaves out.
    """

    prompt: Sequence[int]
    first: Sequence[int] = ()
    n_skipped: int = 0

    def edges(self, tokenizer: Tokenizer, after: bytes) -> Edges | None:
        """What constrains an answer that begins so and ends with `after`."""
        return Edges(tokenizer, self.first, after, tokenizer.stop_ids) if self.first or after else None


def find_start(session: Session, tokenizer: Tokenizer, prompt: Sequence[int], begun: Sequence[int]) -> Start:
    """Decides whether an answer begins with `begun` as it is, or with one token that is longer."""
    if not begun:
        return Start(prompt)
    start = b"".join(map(tokenizer.token_bytes, begun))
    longer = [i for i in tokenizer.index.beginning_with(start) if len(tokenizer.token_bytes(i)) > len(start)]
    rows = logprobs(session.continue_with(prompt, begun))
    as_it_is = float(rows[np.arange(len(begun)), begun].sum())
    if not longer or np.logaddexp.reduce(rows[0, longer]) < as_it_is:
        return Start([*prompt, *begun])
    return Start(prompt, longer, len(start))


class Generation:
    """Iterate over it once for the pieces of text; `completion` then has the rest.

    Args:
        lend: gives a session for a `with` block, which lasts as long as the iteration.
        n_vocab: rows of the model's output.
        prompt: token ids, BOS included where the model wants it.
        begun: token ids with which the answer begins, though perhaps as the first part of one longer token; the text
            leaves them out.
        after: bytes that the text is made to end with, where the model ends it.
        draft: a smaller model that guesses, where the options say to speculate.
        n_head: how many tokens from the start are always kept, where the options say to go on in a full context.
        around: what the text stands in, as far as it has to fit; default: the prompt is before it.
        hook: as `Sampler` has it; it may also raise StepCancelled, which ends the text.

    `begun` and `after` are not for options that say what the text has to be.

    Raises:
        OptionError: the regular expression, schema or grammar among the options is wrong.
    """

    def __init__(
        self,
        lend: Callable[[Sequence[int]], AbstractContextManager[Session]],
        tokenizer: Tokenizer,
        n_vocab: int,
        prompt: Sequence[int],
        options: GenerationOptions,
        *,
        begun: Sequence[int] = (),
        after: bytes = b"",
        draft: DraftModel | None = None,
        n_head: int = 1,
        around: Surroundings | None = None,
        hook: Hook | None = None,
    ) -> None:
        self._lend = lend
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._options = options
        self._begun, self._after = begun, after
        self._n_kept = n_head if options.context_overflow == "shift" else None
        self._draft = draft if options.speculate else None
        self._sampler = make_sampler(tokenizer, n_vocab, options, hook)
        self._grammar = make_grammar(tokenizer, n_vocab, options, prompt, around)
        self._transcript = Transcript(tokenizer, options, self._sampler, self._grammar)
        self._speculation: Speculation | None = None
        self._n_prefill = 0
        self._is_full = False
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ends the iteration, whichever thread it is in, before the next step; what there is of the text stays."""
        self._cancelled.set()

    def __iter__(self) -> Generator[str, None, None]:
        try:
            with closing(self._tokens()) as tokens:
                for token in tokens:
                    piece = self._transcript.feed(token)
                    if self._is_unwanted(token):
                        self.cancel()
                    if piece:
                        yield piece
                    if self._transcript.finish_reason or self._cancelled.is_set():
                        return
            piece = self._transcript.end("length")
            if piece:
                yield piece
        except StepCancelled:
            pass

    def run(self) -> Completion:
        """Iterates to the end, and returns the completion."""
        for _ in self:
            pass
        return self.completion

    def _is_unwanted(self, token: int) -> bool:
        """Tells `on_token`; whether it wants no more."""
        on_token = self._options.on_token
        if on_token is None or token in self._tokenizer.stop_ids:
            return False
        return on_token(token, self._tokenizer.detokenize([token])) is False

    def _tokens(self) -> Generator[int, None, None]:
        stop_ids = self._tokenizer.stop_ids
        is_cancelled = self._cancelled.is_set
        with (
            self._lend(self._prompt) as session,
            session.cancelled_by(is_cancelled),
            self._drafting(is_cancelled) as drafting,
        ):
            n_before = session.n_evaluated
            self._transcript.start()
            start = find_start(session, self._tokenizer, self._prompt, self._begun)
            prompt = start.prompt
            self._transcript.decoder.skip(start.n_skipped)
            edges = start.edges(self._tokenizer, self._after)
            constraint = self._grammar if edges is None else edges
            self._speculation = Speculation(Lookup(prompt), drafting) if self._options.speculate else None
            for token in session.generate(
                prompt,
                self._sampler,
                max_tokens=self._options.max_tokens,
                stop_ids=stop_ids,
                constraint=constraint,
                speculation=self._speculation,
                n_kept=self._n_kept,
            ):
                self._n_prefill = self._n_prefill or session.n_evaluated - n_before
                yield token
            self._is_full = session.is_full and self._n_kept is None

    def _drafting(self, is_cancelled: Callable[[], bool]) -> AbstractContextManager[Drafting | None]:
        if self._draft is None:
            return nullcontext()
        return self._draft.drafting(self._prompt, self._sampler, is_cancelled)

    @property
    def completion(self) -> Completion:
        """The result so far; complete once the iteration has ended."""
        done = self._transcript.completion(len(self._prompt), self._n_prefill, self._speculation)
        return replace(done, context_is_full=self._is_full and done.finish_reason == "length")
