"""RMS norm, SiLU, sums, rows picked out; and the exponential that loops can be vectorized over."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.numba.codes import F32Row
from localcoder.backends.numba.jit import kernel
from localcoder.backends.numba.linear import Cells
from localcoder.backends.numba.simd import bits_of, fetch_add, float_of, fused, sum_of_squares

_CHUNK = 4096  # values
_MAGIC = np.float32(12582912.0)  # 1.5 · 2^23: adding it rounds to an integer, which then stands in the low bits
_MAGIC_BITS = np.uint32(0x4B400000)
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_LEAST, _MOST = np.float32(-87), np.float32(88)
_P7, _P6, _P5, _P4, _P3 = (np.float32(1) / np.float32(n) for n in (5040, 720, 120, 24, 6))
_P2, _ONE = np.float32(0.5), np.float32(1)


@kernel
def exp(x: Any) -> Any:
    """e^x in float32 to about an ulp; 0 below -87, e^88 above 88, NaN for NaN. No branches, no calls.

    The steps are those of lc_exp in csrc/cpu/fused.h, so the bits are too.
    """
    clamped = _LEAST if x < _LEAST else x
    clamped = _MOST if clamped > _MOST else clamped
    shifted = clamped * _LOG2_E + _MAGIC
    k = shifted - _MAGIC
    r = fused(-k, _LN2_LOW, fused(-k, _LN2_HIGH, clamped))
    p = fused(fused(fused(_P7, r, _P6), r, _P5), r, _P4)
    p = fused(fused(fused(fused(p, r, _P3), r, _P2), r, _ONE), r, _ONE)
    power = np.uint32((bits_of(shifted) - _MAGIC_BITS + np.uint32(127)) << np.uint32(23))  # 2^k
    return np.float32(0) if x < _LEAST else p * float_of(power)


@kernel
def rms_norm(x: F32Row, weight: F32Row, eps: float, n: int, width: int, out: F32Row, cells: Cells, cell: int) -> None:
    """out = x / sqrt(mean(x²) + eps) · weight; the mean in float64."""
    t = fetch_add(cells, cell, 1)
    while t < n:
        row, result = x[t * width : (t + 1) * width], out[t * width : (t + 1) * width]
        inverse = np.float32(1.0 / np.sqrt(sum_of_squares(x, t * width, width) / width + eps))
        for i in range(width):
            result[i] = row[i] * inverse * weight[i]
        t = fetch_add(cells, cell, 1)


@kernel
def silu_mul(gate: F32Row, up: F32Row, n: int, out: F32Row, cells: Cells, cell: int) -> None:
    """out = gate · sigmoid(gate) · up, n values."""
    first = fetch_add(cells, cell, _CHUNK)
    while first < n:
        last = min(first + _CHUNK, n)
        g, u, result = gate[first:last], up[first:last], out[first:last]
        for i in range(last - first):
            result[i] = g[i] / (np.float32(1) + exp(-g[i])) * u[i]
        first = fetch_add(cells, cell, _CHUNK)


@kernel
def add(a: F32Row, b: F32Row, n: int, out: F32Row, cells: Cells, cell: int) -> None:
    first = fetch_add(cells, cell, _CHUNK)
    while first < n:
        last = min(first + _CHUNK, n)
        left, right, result = a[first:last], b[first:last], out[first:last]
        for i in range(last - first):
            result[i] = left[i] + right[i]
        first = fetch_add(cells, cell, _CHUNK)


@kernel
def select_rows(x: F32Row, rows: NDArray[np.int32], width: int, out: F32Row, cells: Cells, cell: int) -> None:
    """out [len(rows), width] = the named rows of x."""
    i = fetch_add(cells, cell, 1)
    while i < len(rows):
        source, result = x[rows[i] * width : (rows[i] + 1) * width], out[i * width : (i + 1) * width]
        for j in range(width):
            result[j] = source[j]
        i = fetch_add(cells, cell, 1)
