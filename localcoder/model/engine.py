"""A model ready to run: weights, recorded program, KV pages, one backend. Immutable but for the pages' contents.

The engine knows token ids and positions; it knows no text and keeps no conversation: that is a session's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import Backend, Executable
from localcoder.backends.highest import Candidates, Wanted
from localcoder.backends.program import KVShape, Step
from localcoder.errors import ContextLengthError, ModelError, OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.hyperparameters import read_hyperparameters
from localcoder.model.kv_cache import PagedKV, SequencePages
from localcoder.model.kv_shift import cut_positions
from localcoder.model.llama import bind_weights, record, record_states
from localcoder.quants import by_name
from localcoder.quants.spec import Bytes, Float32
from localcoder.tokenizer.vocabulary import looks_padding

Result = TypeVar("Result")

_int32 = partial(np.array, dtype=np.int32)

PAGE_SIZE = 64
MAX_CTX = 1 << 20
N_UBATCH = 512  # most tokens computed in one step


class Chunk(NamedTuple):
    """New tokens of one sequence, and how many of their rows' logits are wanted, counted from the end."""

    sequence: SequencePages
    tokens: NDArray[np.int32]
    n_logits: int = 1


class Engine:
    """Runs steps over a loaded file. Safe for several threads: steps take turns.

    Args:
        file: an open GGUF file; stays open as long as the engine.
        backend: where to compute; it may share the layers out among several.
        n_ctx: positions a sequence can hold; default: what the model was trained for.
        n_sequences: how many full-length sequences fit in the KV cache.
        n_ubatch: most tokens computed in one step; longer inputs are cut.
        kv_type: format of the KV cache.

    Attributes:
        notes: one line for each thing that a user should know about how the file was read.
    """

    def __init__(
        self,
        file: GGUFFile,
        backend: Backend,
        *,
        n_ctx: int | None = None,
        n_sequences: int = 1,
        n_ubatch: int = N_UBATCH,
        kv_type: str = "f16",
    ) -> None:
        self.file = file
        self.hyperparameters = hp = read_hyperparameters(file)
        self.n_vocab = hp.n_vocab
        self.n_ctx = hp.n_ctx_train if n_ctx is None else n_ctx
        if not 1 <= self.n_ctx <= MAX_CTX:
            raise OptionError(f"n_ctx is {self.n_ctx}; expected 1 to {MAX_CTX}")
        self.notes = list(hp.notes)
        if self.n_ctx > hp.n_ctx_train:
            self.notes.append(f"n_ctx {self.n_ctx} is beyond the {hp.n_ctx_train} positions the model was trained for")
        if n_ubatch < 1 or n_sequences < 1:
            raise OptionError(f"n_ubatch ({n_ubatch}) and n_sequences ({n_sequences}) must be at least 1")
        self.kv_type = kv_type
        block = by_name(kv_type).block_elems
        if hp.head_dim % block:
            raise OptionError(f"a KV cache in {kv_type} needs heads of a multiple of {block} values, not {hp.head_dim}")
        self.n_ubatch = min(n_ubatch, self.n_ctx * n_sequences)
        self._weights = bind_weights(file, hp)
        self._program = record(hp, self._weights, n_ctx=self.n_ctx, page_size=PAGE_SIZE, kv_type=kv_type)
        n_pages = n_sequences * -(-self.n_ctx // PAGE_SIZE)
        self.backend = backend = backend.place(self._program, n_pages, self.n_ubatch)
        try:
            self._store = backend.new_kv_store(self._program.kv, n_pages)
        except MemoryError:
            raise OptionError(
                f"no memory for a KV cache of {n_sequences} x {self.n_ctx} positions; choose a smaller n_ctx"
            ) from None
        self._executable = backend.compile(self._program, self._store, self.n_ubatch)
        self._for_states: tuple[int | None, Executable] | None = None  # compiled when first asked for
        self._lock = threading.Lock()
        self._closed = False
        self._kv = PagedKV(self._store)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the whole KV cache (pages never used stay untouched)."""
        return self._store.nbytes

    @property
    def kv_shape(self) -> KVShape:
        """Layout of the KV cache."""
        return self._store.shape

    @property
    def page_bytes(self) -> int:
        """Bytes of one page of the KV cache, keys and values of all layers."""
        return self._store.nbytes // self._store.n_pages

    def n_pages(self, n_tokens: int) -> int:
        """Pages that so many positions take."""
        return -(-n_tokens // PAGE_SIZE)

    def new_sequence(self) -> SequencePages:
        return SequencePages(self._kv)

    def read_pages(self, sequence: SequencePages) -> Iterator[Bytes]:
        """The bytes of a sequence's pages, uint8 [page_bytes] each, in the order of positions."""
        for page in sequence.pages:
            with self._lock:
                yield self._store.read_page(page).reshape(-1).view(np.uint8)

    def write_pages(self, sequence: SequencePages, n_tokens: int, pages: Sequence[Bytes]) -> None:
        """Makes what `read_pages` gave the past of an empty sequence.

        Raises:
            ContextLengthError: more tokens than n_ctx, or no page is free.
        """
        if n_tokens > self.n_ctx:
            raise ContextLengthError(f"{n_tokens} tokens do not fit in a context of {self.n_ctx}")
        with self._lock:
            sequence.reserve(n_tokens)
            for page, data in zip(sequence.pages, pages, strict=True):
                self._store.write_page(page, data)
            sequence.n_past = n_tokens

    def cut(self, sequence: SequencePages, start: int, stop: int) -> None:
        """Forgets positions start .. stop - 1 of a sequence; what follows moves up, as `kv_shift` describes.

        Raises:
            ContextLengthError: no page is free for a copy of one that is shared. Nothing has changed then.
            OptionError: the engine is closed.
        """
        assert 0 <= start <= stop <= sequence.n_past
        with self._lock:
            self._require_open()
            cut_positions(sequence, self._store, self._program.rope, start, stop, self.backend.quantize)

    def evaluate(self, chunks: Sequence[Chunk]) -> Float32:
        """Appends the chunks' tokens to their sequences; returns the wanted logits, float32 [sum of n_logits, n_vocab].

        Chunks of any number of sequences are computed together, cut into steps of `n_ubatch` tokens. Each sequence may
        occur once.

        Raises:
            ContextLengthError: a sequence would outgrow n_ctx, or no page is free. Nothing has been appended then.
            OptionError: a token id outside the vocabulary, or the engine is closed.
        """
        return _joined(self._run(chunks, lambda step: self._executable.run(step)), self.n_vocab)

    def evaluate_highest(self, chunks: Sequence[Chunk], wanted: Wanted) -> list[Candidates]:
        """As `evaluate`, but of each row of logits only what is wanted.

        Raises:
            As `evaluate`.
        """
        pieces = self._run(chunks, lambda step: self._executable.run_highest(step, wanted))
        return pieces[0] if len(pieces) == 1 else [row for piece in pieces for row in piece]

    def hidden_states(self, sequence: SequencePages, tokens: NDArray[np.int32], n_layer: int | None = None) -> Float32:
        """Appends tokens to a sequence; returns the states after `n_layer` layers, float32 [n_tokens, n_embd].

        Args:
            n_layer: 0: the embeddings; None: after all layers and the last norm, from which the logits come.

        Raises:
            As `evaluate`; OptionError also for a number of layers that the model does not have.
        """
        if n_layer is not None and not 0 <= n_layer <= self.hyperparameters.n_layer:
            raise OptionError(f"n_layer is {n_layer}; expected 0 to {self.hyperparameters.n_layer}, or None")
        chunks = [Chunk(sequence, tokens, len(tokens))]
        pieces = self._run(chunks, lambda step: self._compiled_for_states(n_layer).run(step))
        return _joined(pieces, self.hyperparameters.n_embd)

    def _compiled_for_states(self, n_layer: int | None) -> Executable:
        if self._for_states is None or self._for_states[0] != n_layer:
            if self._for_states is not None:
                self._for_states[1].close()
                self._for_states = None
            program = record_states(self.hyperparameters, self._weights, self._program, n_layer)
            self._for_states = n_layer, self.backend.compile(program, self._store, self.n_ubatch)
        return self._for_states[1]

    def _run(self, chunks: Sequence[Chunk], compute: Callable[[Step], Result]) -> list[Result]:
        """What `compute` returns of each step."""
        for chunk in chunks:
            n_total = chunk.sequence.n_past + len(chunk.tokens)
            if n_total > self.n_ctx:
                raise ContextLengthError(f"{n_total} tokens do not fit in a context of {self.n_ctx}")
            ids = chunk.tokens.tolist()  # faster than two calls of numpy, for one token
            if ids and not 0 <= min(ids) <= max(ids) < self.n_vocab:
                raise OptionError(f"token ids must be 0 to {self.n_vocab - 1}")
            if not 0 <= chunk.n_logits <= len(chunk.tokens):
                raise OptionError(f"{chunk.n_logits} rows of logits wanted of {len(chunk.tokens)} tokens")
        with self._lock:
            self._require_open()
            for chunk in chunks:
                chunk.sequence.reserve(len(chunk.tokens))
            pieces = [compute(step) for step in self._steps(chunks)]
            for chunk in chunks:
                chunk.sequence.n_past += len(chunk.tokens)
        return pieces

    def _steps(self, chunks: Sequence[Chunk]) -> list[Step]:
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        outputs: list[int] = []
        for i, chunk in enumerate(chunks):
            n, n_past = len(chunk.tokens), chunk.sequence.n_past
            tokens += chunk.tokens.tolist()
            positions += range(n_past, n_past + n)
            sequences += [i] * n
            outputs += range(len(tokens) - chunk.n_logits, len(tokens))
        pages = [chunk.sequence.pages for chunk in chunks]
        n_entries = max(map(len, pages), default=0)
        page_table = _int32([[*row, *[0] * (n_entries - len(row))] for row in pages])
        n = self.n_ubatch
        return [
            Step(
                _int32(tokens[at : at + n]),
                _int32(positions[at : at + n]),
                _int32(sequences[at : at + n]),
                page_table,
                _int32([row - at for row in outputs if at <= row < at + n]),
            )
            for at in range(0, len(tokens), n)
        ]

    def _require_open(self) -> None:
        if self._closed:
            raise OptionError("the model has been closed")

    def close(self) -> None:
        """Frees the work buffers and the KV cache once the step in progress is done; `evaluate` is an error then."""
        with self._lock:
            self._closed = True
            self._executable.close()
            if self._for_states is not None:
                self._for_states[1].close()


def _joined(pieces: list[Float32], width: int) -> Float32:
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else np.empty((0, width), np.float32)


def check_same_vocabulary(base: Engine, other: Engine) -> None:
    """ModelError unless the two models' outputs stand for the same tokens."""
    rows = base.n_vocab, other.n_vocab
    if rows[0] != rows[1]:
        found = f"has {rows[1]} rows of vocabulary, {base.file.path} has {rows[0]}"
        raise ModelError(other.file.path, f"{found}; two models of one vocabulary are needed")
    lists = (engine.file.get_strings("tokenizer.ggml.tokens") for engine in (base, other))
    for i, (token, its) in enumerate(zip(*lists)):
        if token != its and not (looks_padding(token) and looks_padding(its)):
            raise ModelError(other.file.path, f"token {i} is {its!r}, in {base.file.path} it is {token!r}")
