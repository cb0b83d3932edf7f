"""Stand-ins that make loops testable in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from localcoder.backends.base import HostKVStore
from localcoder.backends.cuda.compile import Module
from localcoder.backends.highest import Candidates, Wanted, wanted_of
from localcoder.backends.program import KVShape
from localcoder.errors import ContextLengthError
from localcoder.model.engine import Chunk
from localcoder.model.kv_cache import PagedKV, SequencePages


class CountingEngine:
    """Counts upwards: after token t it expects `following[t]`, or else t + 1. Remembers every chunk it was given."""

    def __init__(
        self,
        n_vocab: int = 100,
        n_ctx: int = 64,
        n_ubatch: int = 8,
        n_pages: int | None = None,
        following: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        self.n_vocab, self.n_ctx, self.n_ubatch = n_vocab, n_ctx, n_ubatch
        self.following = following
        page_size = 8
        shape = KVShape(n_layer=1, n_head_kv=1, head_dim=2, page_size=page_size)
        self._kv = PagedKV(HostKVStore(shape, n_pages or -(-n_ctx // page_size), 4))
        self.evaluated: list[list[int]] = []
        self.interrupt_at: int | None = None  # the step that Ctrl-C hits

    def new_sequence(self) -> SequencePages:
        return SequencePages(self._kv)

    def evaluate(self, chunks: Sequence[Chunk]) -> np.ndarray:
        (chunk,) = chunks
        if self.interrupt_at == len(self.evaluated):
            self.interrupt_at = None
            raise KeyboardInterrupt
        if chunk.sequence.n_past + len(chunk.tokens) > self.n_ctx:
            raise ContextLengthError("does not fit")
        chunk.sequence.reserve(len(chunk.tokens))
        chunk.sequence.n_past += len(chunk.tokens)
        self.evaluated.append(chunk.tokens.tolist())
        wanted = chunk.tokens[len(chunk.tokens) - chunk.n_logits :]
        logits = np.zeros((len(wanted), self.n_vocab), np.float32)
        for row, token in zip(logits, wanted.tolist()):
            row[self.following.get(token, (token + 1) % self.n_vocab)] = 5.0
        return logits

    def evaluate_highest(self, chunks: Sequence[Chunk], wanted: Wanted) -> list[Candidates]:
        return [wanted_of(row, wanted) for row in self.evaluate(chunks)]

    @property
    def n_evaluated(self) -> int:
        return sum(map(len, self.evaluated))

    @property
    def n_free_pages(self) -> int:
        return self._kv.n_free_pages


class FakeCompiler:
    """In place of NVRTC: notes what is to be compiled."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, module: Module, architecture: str) -> bytes:
        self.calls.append(f"{module.name} {architecture}")
        return b"code of " + module.name.encode()
