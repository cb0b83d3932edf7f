"""A card emulated on the CPU (csrc/cuda/emulation.cpp): slow, and every kernel is the one that a real card runs.

For tests. The library is built with the CMake option LOCALCODER_CUDA_EMULATED; LOCALCODER_CUDA_EMULATED in the
environment names it. LOCALCODER_CUDA_EMULATED_MIB says how many cards there are and what memory each has: "64,64".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import InstructionSet
from localcoder.backends.cuda.backend import CudaBackend
from localcoder.backends.cuda.device import Device, Launch
from localcoder.errors import BackendError

VARIABLE = "LOCALCODER_CUDA_EMULATED"
MEMORY_VARIABLE = "LOCALCODER_CUDA_EMULATED_MIB"
_MUCH = 1 << 40

_DECLARATIONS = """
void *lc_emulated_alloc(uint64_t size);
void lc_emulated_free(void *p);
const char *lc_emulated_launch(const char *name, int32_t x, int32_t y, int32_t z, int32_t threads,
                               const uint64_t *arguments);
"""


@cache
def _load(path: Path) -> tuple[Any, Any]:
    from cffi import FFI  # type: ignore[import-untyped]

    ffi = FFI()
    ffi.cdef(_DECLARATIONS)
    return ffi, ffi.dlopen(str(path))


def availability() -> str | None:
    """Why there is no emulated card, or None if there is one."""
    path = os.environ.get(VARIABLE)
    if not path:
        return f"{VARIABLE} names no library (CMake option LOCALCODER_CUDA_EMULATED)"
    if not Path(path).is_file():
        return f"{VARIABLE} names {path}, which does not exist"
    return None


def instruction_sets() -> list[InstructionSet]:
    return []


class EmulatedDevice(Device):
    """Raises BackendError where a kernel does what it must not.

    Args:
        library: what the CMake option built.
        n_bytes: of memory.
    """

    description = "CUDA kernels emulated on the CPU (for testing)"

    def __init__(self, library: Path, n_bytes: int = _MUCH) -> None:
        self._ffi, self._lib = _load(library)
        self._left, self._sizes = n_bytes, dict[int, int]()

    @property
    def usable_bytes(self) -> int:
        return self._left

    def allocate(self, n_bytes: int) -> int:
        if n_bytes > self._left:
            raise MemoryError(f"the emulated card has {self._left} bytes left, not {n_bytes}")
        address = int(self._ffi.cast("uintptr_t", self._lib.lc_emulated_alloc(n_bytes)))
        if not address:
            raise MemoryError(f"no {n_bytes} bytes for the emulated card")
        self._sizes[address] = n_bytes
        self._left -= n_bytes
        return address

    def release(self, address: int) -> None:
        self._left += self._sizes.pop(address)
        self._lib.lc_emulated_free(self._ffi.cast("void *", address))

    def write(self, address: int, data: NDArray[Any]) -> None:
        self._ffi.memmove(self._ffi.cast("char *", address), data.reshape(-1).view(np.uint8).data, data.nbytes)

    def read(self, address: int, data: NDArray[Any]) -> None:
        self._ffi.memmove(data.reshape(-1).view(np.uint8).data, self._ffi.cast("char *", address), data.nbytes)

    def copy(self, source: int, target: int, n_bytes: int) -> None:
        self._ffi.memmove(self._ffi.cast("char *", target), self._ffi.cast("char *", source), n_bytes)

    def launch(self, launch: Launch) -> None:
        words = self._ffi.new("uint64_t[]", [argument & 0xFFFFFFFFFFFFFFFF for argument in launch.arguments])
        fault = self._lib.lc_emulated_launch(launch.kernel.encode(), *launch.grid, launch.threads, words)
        if fault != self._ffi.NULL:
            raise BackendError(f"CUDA kernel: {self._ffi.string(fault).decode()}")


class EmulatedCudaBackend(CudaBackend):
    name = "cuda-emulated"

    def __init__(self, threads: int = 1, n_bytes: int = _MUCH) -> None:
        del threads  # one
        super().__init__(EmulatedDevice(Path(os.environ[VARIABLE]), n_bytes))


def open_cards(index: int | None = None) -> list[Callable[[], CudaBackend]]:
    """Each opens a card."""
    del index
    text = os.environ.get(MEMORY_VARIABLE)
    sizes = [int(float(mib) * 2**20) for mib in text.split(",")] if text else [_MUCH]
    return [partial(EmulatedCudaBackend, 1, size) for size in sizes]
