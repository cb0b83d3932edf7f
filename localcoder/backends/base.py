"""What a backend is: it owns a KV store, compiles a recorded program, and replays it.

`y = W x`: W is (n_out, n_in), rows contiguous, everywhere. Backends know tensors, blocks and pages; they know nothing
of text or files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from localcoder.backends.highest import Candidates, Wanted, wanted_of
from localcoder.backends.program import KVShape, Program, Step
from localcoder.quants.search import is_searched, quantize_best
from localcoder.quants.spec import Bytes, Float32, QuantType


class KVStore(ABC):
    """Memory for `n_pages` pages of keys and values of every layer, on the backend's device.

    Pages are not touched before they are written, so an unused page costs address space only.
    """

    shape: KVShape
    n_pages: int

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all pages."""

    @abstractmethod
    def copy_page(self, source: int, target: int) -> None:
        """Copies a whole page, keys and values of all layers."""

    @abstractmethod
    def read_page(self, page: int) -> Bytes:
        """All bytes of a page, layer by layer, keys before values (for saving a session)."""

    @abstractmethod
    def write_page(self, page: int, data: Bytes) -> None:
        """Puts back what `read_page` returned."""


class Executable(ABC):
    """A program compiled for a backend, with its work buffers. Not safe for two threads at once: its owner locks."""

    @abstractmethod
    def run(self, step: Step) -> Float32:
        """Replays the program; returns its result, the caller's to keep: logits float32 [n_outputs, n_vocab]."""

    def run_highest(self, step: Step, wanted: Wanted) -> list[Candidates]:
        """As `run`, but of each row only what is wanted: on a card, all that is copied."""
        return [wanted_of(row, wanted) for row in self.run(step)]

    @abstractmethod
    def close(self) -> None:
        """Frees the work buffers; running afterwards is an error."""


class Backend(ABC):
    """One way to compute.

    Attributes:
        name: as in LOCALCODER_BACKEND.
        description: one line for people: device, instruction set, threads.
        prefill_peak: the kind of multiply-adds that many tokens meet quantized weights with: "int8" or "bf16".
    """

    name: str
    description: str
    prefill_peak: str = "int8"

    @abstractmethod
    def new_kv_store(self, shape: KVShape, n_pages: int) -> KVStore: ...

    @abstractmethod
    def compile(self, program: Program, kv: KVStore, max_tokens: int) -> Executable:
        """Prepares `program` for steps of at most `max_tokens` tokens over `kv`."""

    @abstractmethod
    def quantize(self, qtype: QuantType, x: Float32) -> Bytes:
        """float32 [n_rows, n] -> uint8 [n_rows, row_bytes], on all threads; equal to `qtype.quantize`."""

    def quantize_best(self, qtype: QuantType, x: Float32, weights: Float32 | None = None) -> Bytes:
        """float32 [n_rows, n] -> uint8 [n_rows, row_bytes], searched; equal to `quants.search.quantize_best`."""
        if qtype.quantize_blocks is not None and not is_searched(qtype):
            return self.quantize(qtype, x)
        return quantize_best(qtype, x, weights)

    def requantize(self, qtype: QuantType, source: QuantType, data: Bytes, weights: Float32 | None = None) -> Bytes:
        """`quantize_best` of values that lie in another format: uint8 [n_rows, source.row_bytes(n)]."""
        return self.quantize_best(qtype, source.dequantize(data), weights)

    def place(self, program: Program, n_pages: int, max_tokens: int) -> Backend:
        """Who computes a model of this program, with a cache of so many pages and steps of so many tokens.

        That is this backend, or one that shares the layers out among several devices; who is asked closes them.

        Raises:
            BackendError: there is no room for it.
        """
        del program, n_pages, max_tokens
        return self

    def close(self) -> None:  # noqa: B027  (nothing to stop, by default)
        """Stops the backend's threads."""


@dataclass(frozen=True)
class InstructionSet:
    """An instruction set (or a card) that a backend knows: `reason` says why it is not usable here, None where it is;
    `in_use`, whether the backend takes it when it is opened now; `detail`, what it is."""

    name: str
    usable: bool
    reason: str | None = None
    in_use: bool = False
    detail: str = ""


class HostKVStore(KVStore):
    """Pages in ordinary memory.

    `k` and `v` are uint8 [n_layer, n_pages, n_head_kv, page_size, row_bytes]; row_bytes holds head_dim values in
    `kv_type`.
    """

    def __init__(self, shape: KVShape, n_pages: int, row_bytes: int) -> None:
        self.shape = shape
        self.n_pages = n_pages
        dims = (shape.n_layer, n_pages, shape.n_head_kv, shape.page_size, row_bytes)
        self.k = np.zeros(dims, np.uint8)
        self.v = np.zeros(dims, np.uint8)

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def copy_page(self, source: int, target: int) -> None:
        self.k[:, target] = self.k[:, source]
        self.v[:, target] = self.v[:, source]

    def read_page(self, page: int) -> Bytes:
        return np.stack([self.k[:, page], self.v[:, page]], axis=1).reshape(-1)

    def write_page(self, page: int, data: Bytes) -> None:
        pair = data.reshape(self.k.shape[0], 2, *self.k.shape[2:])
        self.k[:, page] = pair[:, 0]
        self.v[:, page] = pair[:, 1]
