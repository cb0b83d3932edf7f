"""What the CUDA backend needs of a card: memory, kernels by name, and steps recorded once and replayed.

The rest of the backend is the same whether a real card (`driver.py`) or the emulation (`emulated.py`) is behind this.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.quants import QuantType


@dataclass(frozen=True)
class Launch:
    """One kernel on one grid of blocks of `threads` threads.

    `arguments` are the kernel's parameters in order, each a pointer or a 64-bit integer. `weight` is the format that
    the kernel is compiled for (csrc/cuda/linear.cu), None for those that touch no weights.
    """

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    arguments: tuple[int, ...]
    weight: QuantType | None = None


class Memory:
    """Bytes on a device, given back by `free` or when nobody has this object any more."""

    def __init__(self, device: Device, n_bytes: int) -> None:
        self._device = device
        self.n_bytes = n_bytes
        self.address = device.allocate(n_bytes)
        self._release = weakref.finalize(self, device.release, self.address)
        self._release.atexit = False  # the process takes it all back

    def write(self, data: NDArray[Any], offset: int = 0) -> None:
        assert offset + data.nbytes <= self.n_bytes
        self._device.write(self.address + offset, np.ascontiguousarray(data))

    def read(self, data: NDArray[Any], offset: int = 0) -> None:
        """Fills `data`, which is C-contiguous."""
        assert offset + data.nbytes <= self.n_bytes
        self._device.read(self.address + offset, data)

    def free(self) -> None:
        self._release()
        self.address = 0


class Room:
    """Memory that grows when more is asked for than ever before."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: Memory | None = None

    @property
    def in_use(self) -> Memory:
        """What was reserved."""
        assert self._memory is not None
        return self._memory

    @staticmethod
    def grown(n_bytes: int) -> int:
        """What is taken where `n_bytes` are asked for."""
        return -(-max(n_bytes, 1) * 5 // 4)

    def has(self, n_bytes: int) -> bool:
        return self._memory is not None and self._memory.n_bytes >= n_bytes

    def reserve(self, n_bytes: int) -> None:
        """Makes room for `n_bytes`; what was there is lost if it is not there yet."""
        if not self.has(n_bytes):
            self.free()
            self._memory = Memory(self._device, self.grown(n_bytes))

    def free(self) -> None:
        if self._memory is not None:
            self._memory.free()
            self._memory = None


class Device(ABC):
    """One card. Calls come from one thread at a time; work is done in the order of the calls.

    Attributes:
        description: one line for people.
    """

    description: str

    @property
    @abstractmethod
    def usable_bytes(self) -> int:
        """Free memory, less what the display and the compiled kernels may come to need."""

    @abstractmethod
    def allocate(self, n_bytes: int) -> int:
        """Address of `n_bytes` bytes, aligned to 256; MemoryError if there are not that many."""

    @abstractmethod
    def release(self, address: int) -> None: ...

    @abstractmethod
    def write(self, address: int, data: NDArray[Any]) -> None: ...

    @abstractmethod
    def read(self, address: int, data: NDArray[Any]) -> None:
        """Waits for all work before it."""

    @abstractmethod
    def copy(self, source: int, target: int, n_bytes: int) -> None:
        """From one place on the device to another; the two do not overlap."""

    def prepare(self, weights: Iterable[QuantType]) -> None:  # noqa: B027  (all are there, by default)
        """Compiles all kernels for these formats, so that a failure shows before the first step."""

    @abstractmethod
    def launch(self, launch: Launch) -> None: ...

    def record(self, launches: Sequence[Launch]) -> object:
        """Prepares launches to be run together by `replay`, in their order; by default one by one."""
        return tuple(launches)

    def replay(self, recorded: object) -> None:
        assert isinstance(recorded, tuple)
        for launch in recorded:
            self.launch(launch)

    def close(self) -> None:  # noqa: B027  (nothing to give back, by default)
        """Gives back what is not memory."""
