"""Several texts that continue one prompt, written at the same time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace

from localcoder.errors import OptionError
from localcoder.session.constraint import Constraint, Surroundings
from localcoder.session.generation import Completion, Start, Transcript, find_start, make_sampler
from localcoder.session.grammar.matcher import make_grammar
from localcoder.session.options import GenerationOptions
from localcoder.session.session import Session, StepCancelled
from localcoder.tokenizer.tokenizer import Tokenizer

_N_SEEDS = 1 << 64


class Several:
    """Iterate over it once for pairs (number of the text, its next piece); `completions` then has the rest.

    The prompt is computed once; then each step computes a token of every text that has not ended. The seed of each text
    is one more than that of the one before: alone, each would come out the same.

    Args:
        lend: gives a session for a `with` block, which lasts as long as the iteration.
        n_vocab: rows of the model's output.
        prompt: token ids, BOS included where the model wants it.
        n: how many completions are wanted.
        best_of: how many texts to write, of which the `n` with the highest mean log-probability of their tokens are the
            completions, best first; None: `n`, in the order of their seeds.
        begun, after, around: as for `Generation`.

    Raises:
        OptionError: `n` or `best_of` is no number from 1 or `n` on, or there is no randomness that would make the texts
            differ. The regular expression, schema or grammar among the options is wrong.
    """

    def __init__(
        self,
        lend: Callable[[Sequence[int]], AbstractContextManager[Session]],
        tokenizer: Tokenizer,
        n_vocab: int,
        prompt: Sequence[int],
        options: GenerationOptions,
        n: int,
        best_of: int | None = None,
        *,
        begun: Sequence[int] = (),
        after: bytes = b"",
        around: Surroundings | None = None,
    ) -> None:
        n_texts = n if best_of is None else best_of
        for name, value, least in (("n", n, 1), ("best_of", n_texts, n)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise OptionError(f"{name} is {value!r}; expected a whole number from {least} on")
        if n_texts > 1 and options.temperature == 0:
            raise OptionError(f"{n_texts} texts at temperature 0 would all be the same; give a temperature")
        if options.on_token is not None:
            raise OptionError("on_token is for one text at a time")
        if options.context_overflow != "stop":
            raise OptionError(f"context_overflow {options.context_overflow!r} is for one text at a time")
        if best_of is not None:
            options = replace(options, logprobs=options.logprobs or 0)
        self._n = n
        self._is_ranked = best_of is not None
        self._lend = lend
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._begun, self._after = begun, after
        self._ended: set[int] = set()
        self._options = options
        first = make_sampler(tokenizer, n_vocab, options)
        seeds = ((first.seed + i) % _N_SEEDS for i in range(1, n_texts))
        others = (make_sampler(tokenizer, n_vocab, replace(options, seed=seed)) for seed in seeds)
        self._samplers = [first, *others]
        grammar = make_grammar(tokenizer, n_vocab, options, prompt, around)
        self._grammars = [grammar.copy() for _ in self._samplers] if grammar else []
        self._transcripts = [
            Transcript(tokenizer, options, *of_text)
            for of_text in itertools.zip_longest(self._samplers, self._grammars)
        ]
        self._n_prefill = 0
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ends the iteration, whichever thread it is in, before the next step; what there is of the texts stays."""
        self._cancelled.set()

    def end(self, number: int) -> None:
        """Ends one of the texts, of which what there is is enough."""
        self._ended.add(number)
        if self._transcripts[number].finish_reason is None:
            self._transcripts[number].end("stop")

    def __iter__(self) -> Generator[tuple[int, str], None, None]:
        try:
            with closing(self._tokens()) as tokens:
                for number, token in tokens:
                    piece = self._transcripts[number].feed(token)
                    if piece:
                        yield number, piece
                    if self._cancelled.is_set():
                        return
            for number, transcript in enumerate(self._transcripts):
                piece = transcript.end("length") if transcript.finish_reason is None else ""
                if piece:
                    yield number, piece
        except StepCancelled:
            pass

    def _tokens(self) -> Generator[tuple[int, int], None, None]:
        with self._lend(self._prompt) as session, session.cancelled_by(self._cancelled.is_set):
            n_before = session.n_evaluated
            for transcript in self._transcripts:
                transcript.start()
            start = find_start(session, self._tokenizer, self._prompt, self._begun)
            for transcript in self._transcripts:
                transcript.decoder.skip(start.n_skipped)
            for number, token in session.generate_together(
                start.prompt,
                self._samplers,
                self._ended,
                max_tokens=self._options.max_tokens,
                stop_ids=self._tokenizer.stop_ids,
                constraints=self._constraints(start),
            ):
                self._n_prefill = self._n_prefill or session.n_evaluated - n_before
                yield number, token
                if self._transcripts[number].finish_reason:
                    self._ended.add(number)

    def _constraints(self, start: Start) -> Sequence[Constraint | None]:
        edges = [start.edges(self._tokenizer, self._after) for _ in self._samplers]
        return self._grammars if edges[0] is None else edges

    @property
    def completions(self) -> list[Completion]:
        """The results so far; complete once the iteration has ended."""
        return [done for _, done in self.numbered]

    @property
    def numbered(self) -> list[tuple[int, Completion]]:
        """The completions with the numbers of their texts."""
        prompt = len(self._prompt), self._n_prefill
        found = [(number, transcript.completion(*prompt)) for number, transcript in enumerate(self._transcripts)]
        if self._is_ranked:
            found.sort(key=lambda pair: pair[1].mean_logprob or 0.0, reverse=True)
        return found[: self._n]

    def run(self) -> list[Completion]:
        """Iterates to the end, and returns the completions."""
        for _ in self:
            pass
        return self.completions
