"""A card's logits beside the reference's where activations and the KV cache are rounded.

A value that lies between two codes is rounded up by one backend and down by another whose sums differ in a last bit.
One code that differs moves all that follows, until two right results are a percent apart, which says nothing about
either. Here the reference takes every code that the card chose, after a look whether it is as near to the reference's
own value as the code of its own; what is left to differ is sums, and they may not by more than their order explains.

    card = ListeningBackend(backend.device)
    reference = FollowingBackend(card)

Each step runs on `card` first, then on `reference`; both have programs, pages and steps of the same kind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import Executable, HostKVStore, KVStore
from localcoder.backends.cuda.backend import CudaBackend
from localcoder.backends.cuda.device import Device, Launch
from localcoder.backends.cuda.plan import NONE
from localcoder.backends.program import Buffer, KVShape, Program, Step, WriteKV
from localcoder.backends.reference import ReferenceBackend, ReferenceExecutable
from localcoder.quants import QuantType, by_name
from localcoder.quants.activations import Q8_GROUP, dequantize_q8, quantize_q8
from localcoder.quants.spec import Bytes, Float32

Codes = NDArray[np.int8]


class _Listening(Device):
    """A device that runs its launches one by one and keeps the codes of every rounding, int8 [rows, width]."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.description = device.description
        self.heard: deque[Codes] = deque()

    @property
    def usable_bytes(self) -> int:
        return self._device.usable_bytes

    def allocate(self, n_bytes: int) -> int:
        return self._device.allocate(n_bytes)

    def release(self, address: int) -> None:
        self._device.release(address)

    def write(self, address: int, data: NDArray[Any]) -> None:
        self._device.write(address, data)

    def read(self, address: int, data: NDArray[Any]) -> None:
        self._device.read(address, data)

    def copy(self, source: int, target: int, n_bytes: int) -> None:
        self._device.copy(source, target, n_bytes)

    def prepare(self, weights: Iterable[QuantType]) -> None:
        self._device.prepare(weights)

    def launch(self, launch: Launch) -> None:
        self._device.launch(launch)
        if launch.kernel not in ("lc_quantize", "lc_rms_norm"):
            return
        *_, codes, _meta = launch.arguments
        width = launch.arguments[1 if launch.kernel == "lc_quantize" else 3]
        if codes != NONE:
            self.heard.append(np.empty((launch.grid[0], width), np.int8))
            self._device.read(codes, self.heard[-1])


class ListeningBackend(CudaBackend):
    """A card whose roundings are kept. One program at a time."""

    def __init__(self, device: Device) -> None:
        self._listening = _Listening(device)
        super().__init__(self._listening)
        self._store: KVStore | None = None

    def new_kv_store(self, shape: KVShape, n_pages: int) -> KVStore:
        self._store = super().new_kv_store(shape, n_pages)
        return self._store

    def next_codes(self) -> Codes:
        """What the earliest rounding not yet asked for chose."""
        return self._listening.heard.popleft()

    @property
    def n_unasked(self) -> int:
        """Roundings of the card that nobody has asked for."""
        return len(self._listening.heard)

    def page(self, page: int) -> Bytes:
        """The cache's page, as `KVStore.read_page` gives it."""
        assert self._store is not None
        return self._store.read_page(page)


@dataclass
class Choices:
    """How a card rounded, beside how the reference would have.

    Attributes:
        n: values rounded.
        n_moved: of them, those that the reference would have rounded otherwise.
        worst: how much nearer its own choice was at most, relative to the largest value of the group or head.
    """

    n: int = 0
    n_moved: int = 0
    worst: float = 0.0

    def note(self, x: Float32, own: Float32, taken: Float32) -> None:
        """Values x [..., width], as rounded here and on the card."""
        largest = np.abs(x).max(axis=-1, keepdims=True, initial=np.finfo(np.float32).tiny)
        excess = (np.abs(taken - x) - np.abs(own - x)) / largest
        self.n += x.size
        self.n_moved += int(np.count_nonzero(own != taken))
        self.worst = max(self.worst, float(np.nan_to_num(excess, nan=np.inf).max(initial=0)))


class FollowingBackend(ReferenceBackend):
    """The reference, rounding as `card` did; `activations` and `cache` tell how that was."""

    def __init__(self, card: ListeningBackend) -> None:
        super().__init__()
        self.card = card
        self.activations, self.cache = Choices(), Choices()

    def compile(self, program: Program, kv: KVStore, max_tokens: int) -> Executable:
        assert isinstance(kv, HostKVStore)
        return _FollowingExecutable(program, kv, self)


class _FollowingExecutable(ReferenceExecutable):
    def __init__(self, program: Program, kv: HostKVStore, backend: FollowingBackend) -> None:
        super().__init__(program, kv)
        self._backend = backend
        self._rounded: dict[int, Float32] = {}

    def run(self, step: Step) -> Float32:
        self._rounded.clear()
        return super().run(step)

    def round_activations(self, buffer: Buffer, x: Float32) -> Float32:
        if not len(x):
            return x
        if buffer.id not in self._rounded:
            scales, codes = quantize_q8(x)
            own, taken = (dequantize_q8(scales, choice) for choice in (codes, self._backend.card.next_codes()))
            groups = (*scales.shape, Q8_GROUP)
            self._backend.activations.note(*(values.reshape(groups) for values in (x, own, taken)))
            self._rounded[buffer.id] = taken
        return self._rounded[buffer.id]

    def round_for_cache(
        self, op: WriteKV, i: int, rows: Float32, pages: NDArray[np.int32], slots: NDArray[np.int32]
    ) -> Bytes:
        own = super().round_for_cache(op, i, rows, pages, slots)
        shape = self._kv.shape
        taken = np.empty_like(own)
        for page in np.unique(pages):
            data = self._backend.card.page(int(page)).reshape(shape.n_layer, 2, shape.n_head_kv, shape.page_size, -1)
            here = pages == page
            taken[here] = data[op.layer, i][:, slots[here]].swapaxes(0, 1)
        kv_type = by_name(shape.kv_type)
        self._backend.cache.note(rows, kv_type.dequantize(own), kv_type.dequantize(taken))
        return taken
