"""A generation: tokens become pieces of text, stop strings end it, and its course is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from localcoder.session.constraint import Edges
from localcoder.session.lookup import Lookup
from localcoder.session.options import GenerationOptions
from localcoder.session.sampler import Logprob, Sampler, logprobs
from localcoder.session.session import Session
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
            the context. None: it was interrupted.
        n_prompt_tokens: with BOS.
        n_tokens: generated tokens; a token that only says "end of text" is not counted.
        seed: with it and the same options the text can be made again.
        logprobs: with the option of that name, one for each token, the token that says "end of text" included.
        n_drafted, n_accepted: tokens that speculation guessed, and those of them that were right.
    """

    text: str
    finish_reason: FinishReason | None
    n_prompt_tokens: int
    n_tokens: int
    seed: int
    timings: Timings
    logprobs: tuple[Logprob, ...] | None = None
    n_drafted: int = 0
    n_accepted: int = 0


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


class Generation:
    """Iterate over it once for the pieces of text; `completion` then has the rest.

    Args:
        lend: gives a session for a `with` block, which lasts as long as the iteration.
        n_vocab: rows of the model's output.
        prompt: token ids, BOS included where the model wants it.
        begun: token ids with which the answer begins, though perhaps as the first part of one longer token; the text
            leaves them out.
        after: bytes that the text is made to end with, where the model ends it.
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
    ) -> None:
        self._lend = lend
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._options = options
        self._begun, self._after = begun, after
        forbidden = np.flatnonzero(tokenizer.unsampleable(n_vocab)).tolist()
        breakers = tokenizer.ids_with(_DRY_BREAKERS) if options.dry_multiplier else ()
        self._sampler = Sampler(options, forbidden, breakers=breakers, n_logprobs=options.logprobs)
        self._lookup: Lookup | None = None
        self._finish_reason: FinishReason | None = None
        self._text: list[str] = []
        self._times: list[float] = []  # the start, then each token
        self._n_ends = 0
        self._n_prefill = 0

    def __iter__(self) -> Generator[str, None, None]:
        decoder = StreamDecoder(self._tokenizer)
        stops = StopStrings(self._options.stop)
        for token in self._timed_tokens(decoder):
            piece = stops.feed(decoder.feed([token]))
            if piece:
                self._text.append(piece)
                yield piece
            if stops.found:
                break
        else:
            self._finish_reason = "stop" if self._n_ends else "length"
            piece = stops.feed(decoder.flush()) + stops.flush()
            if piece:
                self._text.append(piece)
                yield piece
        if stops.found:
            self._finish_reason = "stop"

    def _timed_tokens(self, decoder: StreamDecoder) -> Iterator[int]:
        stop_ids = self._tokenizer.stop_ids
        with self._lend(self._prompt) as session:
            n_before = session.n_evaluated
            self._times = [time.perf_counter()]
            prompt, longer = self._open(session, decoder)
            edges = Edges(self._tokenizer, longer, self._after, stop_ids) if longer or self._after else None
            self._lookup = Lookup(prompt) if self._options.speculate else None
            for token in session.generate(
                prompt,
                self._sampler,
                max_tokens=self._options.max_tokens,
                stop_ids=stop_ids,
                constraint=edges,
                lookup=self._lookup,
            ):
                self._times.append(time.perf_counter())
                if len(self._times) == 2:
                    self._n_prefill = session.n_evaluated - n_before
                if token in stop_ids:
                    self._n_ends += 1
                else:
                    yield token

    def _open(self, session: Session, decoder: StreamDecoder) -> tuple[Sequence[int], Sequence[int]]:
        """Decides whether the answer begins with `begun` as it is, or with one token that is longer.

        Returns:
            The prompt, and the ids of the longer tokens if it is one of them.
        """
        if not self._begun:
            return self._prompt, ()
        start = b"".join(map(self._tokenizer.token_bytes, self._begun))
        longer = [
            i for i in self._tokenizer.index.beginning_with(start) if len(self._tokenizer.token_bytes(i)) > len(start)
        ]
        rows = logprobs(session.continue_with(self._prompt, self._begun))
        as_it_is = float(rows[np.arange(len(self._begun)), self._begun].sum())
        if not longer or np.logaddexp.reduce(rows[0, longer]) < as_it_is:
            return [*self._prompt, *self._begun], ()
        decoder.skip(len(start))
        return self._prompt, longer

    @property
    def completion(self) -> Completion:
        """The result so far; complete once the iteration has ended."""
        n_sampled = max(len(self._times) - 1, 0)
        first = self._times[1] - self._times[0] if n_sampled else 0.0
        decode = self._times[-1] - self._times[1] if n_sampled > 1 else 0.0
        return Completion(
            text="".join(self._text),
            finish_reason=self._finish_reason,
            n_prompt_tokens=len(self._prompt),
            n_tokens=n_sampled - self._n_ends,
            seed=self._sampler.seed,
            logprobs=None if self._options.logprobs is None else tuple(self._sampler.logprobs),
            n_drafted=self._lookup.n_drafted if self._lookup else 0,
            n_accepted=self._lookup.n_accepted if self._lookup else 0,
            timings=Timings(
                n_prefill=self._n_prefill,
                prefill_tps=self._n_prefill / first if first else 0.0,
                decode_tps=(n_sampled - 1) / decode if decode else 0.0,
                first_token_s=first,
                total_s=first + decode,
            ),
        )
