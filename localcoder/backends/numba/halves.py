"""IEEE half precision, which numba has no type for."""

from __future__ import annotations

from typing import Any

import numpy as np

from localcoder.backends.numba.jit import kernel
from localcoder.backends.numba.simd import CONVERTS_HALF, bits_of, float_of, widen_half


@kernel
def f16_bits_to_f32(half: Any) -> Any:
    """IEEE half bits (uint16) -> float32 by integer arithmetic, without branches."""
    h = np.uint32(half)
    magnitude = np.uint32((h & np.uint32(0x7FFF)) << np.uint32(13))
    scaled = float_of(magnitude) * np.float32(2.0**112)  # exact, subnormals included
    bits = bits_of(scaled)
    bits = np.uint32(magnitude | np.uint32(0x7F800000)) if (h & np.uint32(0x7C00)) == np.uint32(0x7C00) else bits
    return float_of(np.uint32(bits | np.uint32((h & np.uint32(0x8000)) << np.uint32(16))))


@kernel
def f32_to_f16(x: Any) -> Any:
    """float32 -> IEEE half bits (uint16), to nearest even; a NaN stays a (quiet) NaN."""
    bits = bits_of(x)
    sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    if magnitude > np.uint32(0x7F800000):
        half = np.uint32(np.uint32(0x7E00) | ((magnitude >> np.uint32(13)) & np.uint32(0x1FF)))
    elif magnitude >= np.uint32(0x477FF000):  # rounds to 65536 or more
        half = np.uint32(0x7C00)
    elif magnitude < np.uint32(0x38800000):  # subnormal: an ulp of 0.5 is the smallest half
        shifted = float_of(magnitude) + np.float32(0.5)
        half = np.uint32(bits_of(shifted) - np.uint32(0x3F000000))
    else:
        odd = np.uint32((magnitude >> np.uint32(13)) & np.uint32(1))
        half = np.uint32((magnitude - np.uint32(0x37FFF001) + odd) >> np.uint32(13))  # exponent - 112, + 0x0FFF
    return np.uint16(sign | half)


f16_to_f32 = widen_half if CONVERTS_HALF else f16_bits_to_f32
