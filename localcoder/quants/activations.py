"""How activations are rounded before they meet a block of integers.

`q8`: groups of 32 values share one float32 scale d = max|x| / 127; q = x · (127 · (1 / max|x|)), rounded to nearest
even, or 0 where that factor is not finite. Group scales are kept in single precision because outlier channels make the
scale itself matter. Every backend uses this definition; csrc/cpu/kernel_table.h says what they do with the codes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from localcoder.quants.spec import Float32

Q8_GROUP = 32


def quantize_q8(x: Float32) -> tuple[Float32, NDArray[np.int8]]:
    """float32 [..., n] -> (scales float32 [..., n/32], codes int8 [..., n]). n must be a multiple of 32."""
    groups = np.ascontiguousarray(x, np.float32).reshape(*x.shape[:-1], x.shape[-1] // Q8_GROUP, Q8_GROUP)
    extreme = np.abs(groups).max(axis=-1)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(127) * (np.float32(1) / extreme)
    inverse = np.where(np.isfinite(inverse), inverse, np.float32(0))
    codes = np.rint(groups * inverse[..., None]).astype(np.int8).reshape(x.shape)
    return extreme / np.float32(127), codes


def dequantize_q8(scales: Float32, codes: NDArray[np.int8]) -> Float32:
    """What `quantize_q8` gave, as float32 [..., n]."""
    groups = codes.reshape(*scales.shape, Q8_GROUP)
    return np.multiply(scales[..., None], groups, dtype=np.float32).reshape(codes.shape)
