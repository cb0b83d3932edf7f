"""The numba backend: the recorded program replayed by kernels that LLVM compiles for this very CPU at first use.

    jit       the one place with compiler options; where compiled kernels are kept; showing that they are being compiled
    emit      pieces of LLVM IR: vectors, fused multiply-add
    simd      sums in lanes, raw memory, atomics
    tiles     dot products of floats and of integer codes
    halves    half precision
    codes     a row of an integer format as int16 codes and scales
    rows      a row of any known format to floats, and back
    linear    y = W x, for one token and for many
    attention rotary positions, the KV cache, attention over its pages
    replay    the op table and the function that every thread runs over it
    team      the threads
    backend   programs become op tables

Importing this package does not import numba.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from localcoder.backends.base import InstructionSet

if TYPE_CHECKING:
    from localcoder.backends.numba.backend import NumbaBackend

__all__ = ["NumbaBackend", "availability", "instruction_sets"]


def availability() -> str | None:
    """Why this backend cannot run here, or None."""
    return None if importlib.util.find_spec("numba") else "the package numba is not installed"


def instruction_sets() -> list[InstructionSet]:
    """Empty: LLVM compiles for the CPU at hand, whatever that has."""
    return []


def __getattr__(name: str) -> Any:
    if name == "NumbaBackend":
        from localcoder.backends.numba.backend import NumbaBackend

        return NumbaBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
