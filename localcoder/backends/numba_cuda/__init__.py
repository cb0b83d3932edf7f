"""Cards where NVRTC cannot be had: the recorded program on plain kernels that numba compiles.

    formats   one value of a block, for each format
    kernels   everything else that runs on the card
    backend   programs become launches

Nothing here is tuned: a row of a matrix is read by one warp, a value at a time. NUMBA_ENABLE_CUDASIM=1 runs the kernels
in numba's simulator. Importing this package does not import numba.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

from localcoder.backends.base import InstructionSet

if TYPE_CHECKING:
    from localcoder.backends.numba_cuda.backend import NumbaCudaBackend

__all__ = ["NumbaCudaBackend", "availability", "instruction_sets"]


def is_simulated() -> bool:
    """Whether numba runs kernels on the CPU, as its variable NUMBA_ENABLE_CUDASIM says."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"


def availability() -> str | None:
    """Why this backend cannot run here, or None."""
    if is_simulated():
        return None
    if importlib.util.find_spec("numba_cuda") is None:
        return "the package numba-cuda is not installed (extra `numba-cuda`)"
    from localcoder.backends.cuda.cards import survey_cards

    reason = survey_cards().reason
    if reason is not None:
        return reason
    try:
        from numba import cuda

        return None if cuda.is_available() else "numba finds no card or no compiler for it"
    except Exception as e:  # the versions of numba, numba-cuda and the driver do not fit
        return f"numba cannot use the card: {' '.join(str(e).split())[:200]}"


def instruction_sets() -> list[InstructionSet]:
    return []


def __getattr__(name: str) -> Any:
    if name == "NumbaCudaBackend":
        from localcoder.backends.numba_cuda.backend import NumbaCudaBackend

        return NumbaCudaBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
