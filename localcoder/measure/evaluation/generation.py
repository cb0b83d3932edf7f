"""Many texts at once: every step computes the next token of several of them, and a new prompt where one has ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from localcoder.backends.highest import Row
from localcoder.coder import Coder
from localcoder.measure.evaluation.protocol import Request
from localcoder.model.engine import Chunk
from localcoder.model.kv_cache import SequencePages
from localcoder.session.generation import StopStrings
from localcoder.session.options import SamplingOptions
from localcoder.session.sampler import Sampler
from localcoder.session.session import common_wanted
from localcoder.tokenizer.tokenizer import StreamDecoder


@dataclass(frozen=True)
class Written:
    """A text, and the number of its request."""

    number: int
    text: str
    n_tokens: int


@dataclass
class _Slot:
    """A text in the making. `pending`: tokens that are not in the cache yet."""

    number: int
    request: Request
    sequence: SequencePages
    pending: Sequence[int]
    sampler: Sampler
    decoder: StreamDecoder
    stops: StopStrings
    history: list[int]
    text: list[str] = field(default_factory=list)
    n_tokens: int = 0


class BatchGenerator:
    """Writes the texts that are asked for, `n_parallel` at a time, each as it would be alone.

    The prompt of a new text is computed from where it parts from a prompt that is in the cache.

    Args:
        coder: opened with n_sequences = n_parallel + 1: the last prompt that has ended stays in the cache, too.
    """

    def __init__(self, coder: Coder, n_parallel: int) -> None:
        self._coder = coder
        self._n_parallel = n_parallel
        self._forbidden = np.flatnonzero(coder.tokenizer.unsampleable(coder.n_vocab)).tolist()
        self._slots: list[_Slot] = []
        self._ended: _Slot | None = None
        self.n_prefilled = 0

    def generate(self, requests: Iterable[tuple[Request, SamplingOptions]]) -> Iterator[Written]:
        """Yields the texts in the order in which they are finished."""
        waiting = deque(enumerate(requests))
        try:
            while waiting or self._slots:
                if waiting and len(self._slots) < self._n_parallel:  # one in a step: the next shares its prompt
                    number, (request, options) = waiting.popleft()
                    self._slots.append(self._begin(number, request, options))
                yield from self._step()
        finally:
            for slot in self._slots:
                slot.sequence.close()
            self._slots.clear()
            self._keep(None)

    def _begin(self, number: int, request: Request, options: SamplingOptions) -> _Slot:
        sequence, n_shared = self._fork(request.prompt)
        tokenizer = self._coder.tokenizer
        self.n_prefilled += len(request.prompt) - n_shared
        return _Slot(
            number,
            request,
            sequence,
            request.prompt[n_shared:],
            Sampler(options, self._forbidden),
            StreamDecoder(tokenizer),
            StopStrings(request.stops),
            list(request.prompt),
        )

    def _fork(self, prompt: Sequence[int]) -> tuple[SequencePages, int]:
        """A sequence that begins with what another one has of the prompt, and how many tokens that is."""
        others = [*self._slots, self._ended] if self._ended else self._slots
        shared = [min(_n_shared(slot.history, prompt), slot.sequence.n_past, len(prompt) - 1) for slot in others]
        best = max(range(len(others)), key=shared.__getitem__, default=None)
        if best is None or shared[best] == 0:
            return self._coder.engine.new_sequence(), 0
        sequence = others[best].sequence.fork()
        sequence.trim(shared[best])
        return sequence, shared[best]

    def _step(self) -> Iterator[Written]:
        """Computes one step of all slots; yields those that it finishes."""
        chunks = [Chunk(slot.sequence, np.array(slot.pending, np.int32)) for slot in self._slots]
        engine = self._coder.engine
        wanted = common_wanted([slot.sampler for slot in self._slots], engine.n_vocab)
        rows = engine.evaluate(chunks) if wanted is None else engine.evaluate_highest(chunks, wanted)
        for slot, row in list(zip(self._slots, rows)):
            if self._advance(slot, row):
                self._slots.remove(slot)
                self._keep(slot)
                yield Written(slot.number, "".join(slot.text), slot.n_tokens)

    def _advance(self, slot: _Slot, row: Row) -> bool:
        """Takes a slot's next token; returns whether its text has ended."""
        token = slot.sampler.sample(row, slot.history)
        if token in self._coder.tokenizer.stop_ids:
            slot.text.append(slot.stops.feed(slot.decoder.flush()) + slot.stops.flush())
            return True
        slot.n_tokens += 1
        slot.history.append(token)
        slot.pending = [token]
        slot.text.append(slot.stops.feed(slot.decoder.feed([token])))
        if slot.stops.found:
            return True
        if slot.n_tokens >= slot.request.max_tokens or len(slot.history) > self._coder.n_ctx:
            slot.text.append(slot.stops.feed(slot.decoder.flush()) + slot.stops.flush())
            return True
        return False

    def _keep(self, slot: _Slot | None) -> None:
        if self._ended is not None:
            self._ended.sequence.close()
        self._ended = slot


def _n_shared(a: Sequence[int], b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    differing = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(differing[0]) if len(differing) else n
