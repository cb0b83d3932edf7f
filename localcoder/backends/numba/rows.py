"""One row of a block format: to floats, to integer codes, and back.

A format is known here by its GGUF id; what this file does not know runs through the format's plain numpy definition.
`FLOAT_ROWS` are widened to float32 before a dot product; `CODE_ROWS` stay integers: for every GROUP of values one
float32 scale and int16 codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.numba.jit import kernel
from localcoder.backends.numba.simd import GROUP, bits_of, float_of, load_f32, load_u16, store_f32, store_u16
from localcoder.quants import by_name
from localcoder.quants.activations import Q8_GROUP

F32_ID, F16_ID, BF16_ID, Q4_0_ID, Q8_0_ID = (by_name(n).gguf_id for n in ("f32", "f16", "bf16", "q4_0", "q8_0"))
FLOAT_ROWS = frozenset({F32_ID, F16_ID, BF16_ID})
CODE_ROWS = frozenset({Q4_0_ID, Q8_0_ID})
KV_ROWS = ENCODED_ROWS = FLOAT_ROWS | CODE_ROWS

assert Q8_GROUP == GROUP
Q4_0_BYTES, Q8_0_BYTES = by_name("q4_0").block_bytes, by_name("q8_0").block_bytes
Q4_0_D, Q4_0_QS = (by_name("q4_0").block.fields[f][1] for f in ("d", "qs"))  # type: ignore[index]
Q8_0_D, Q8_0_QS = (by_name("q8_0").block.fields[f][1] for f in ("d", "qs"))  # type: ignore[index]

F32Row = NDArray[np.float32]
Codes = NDArray[np.int16]
Bytes = NDArray[np.uint8]

_MAGIC = np.float32(12582912.0)  # 1.5 · 2^23: adding it rounds to an integer, which then stands in the low bits


@kernel
def f16_to_f32(half: Any) -> Any:
    """IEEE half bits (uint16) -> float32. Without branches, so that loops over it become vectors."""
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


@kernel
def bf16_to_f32(bits: Any) -> Any:
    return float_of(np.uint32(np.uint32(bits) << np.uint32(16)))


@kernel
def f32_to_bf16(x: Any) -> Any:
    """float32 -> bf16 bits (uint16), to nearest even; a NaN stays a (quiet) NaN."""
    bits = bits_of(x)
    upper = np.uint32(bits >> np.uint32(16))
    if np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        return np.uint16(upper | np.uint32(0x40))
    carry = np.uint32((bits & np.uint32(0xFFFF)) + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
    return np.uint16(upper + carry)


@kernel
def largest_magnitude(x: F32Row, x0: int, n: int) -> Any:
    """max |x| of n values; NaN if there is one (as bits, NaN is above everything)."""
    most = np.uint32(0)
    for i in range(n):
        bits = np.uint32(bits_of(x[x0 + i]) & np.uint32(0x7FFFFFFF))
        most = bits if bits > most else most
    return float_of(most)


@kernel
def reciprocal_or_zero(d: Any) -> Any:
    """1/d, or 0 where that is not finite (`quants.rounding`)."""
    inverse = np.float32(1) / d
    return inverse if np.abs(inverse) <= np.float32(3.4028235e38) else np.float32(0)


@kernel
def round_codes(x: F32Row, x0: int, n: int, inverse: Any, codes: Codes, codes0: int, step: int) -> None:
    """codes = x · inverse to nearest even, for |x · inverse| < 2^15; written pair by pair, `step` apart."""
    for pair in range(n // 2):
        for i in range(2):
            shifted = x[x0 + 2 * pair + i] * inverse + _MAGIC
            codes[codes0 + pair * step + i] = np.int16(bits_of(shifted) & np.uint32(0xFFFF))


@kernel
def unpack_codes(
    kind: int, data: Bytes, at: int, n: int, codes: Codes, codes0: int, scales: F32Row, scales0: int
) -> None:
    """A row of n values in a format of CODE_ROWS -> int16 codes [n] and scales [n / GROUP]."""
    n_groups = n // GROUP
    if kind == Q8_0_ID:
        for g in range(n_groups):
            block = at + g * Q8_0_BYTES
            scales[scales0 + g] = f16_to_f32(load_u16(data, block + Q8_0_D))
            for i in range(GROUP):
                codes[codes0 + g * GROUP + i] = np.int16(np.int8(data[block + Q8_0_QS + i]))
    elif kind == Q4_0_ID:
        for g in range(n_groups):
            block = at + g * Q4_0_BYTES
            scales[scales0 + g] = f16_to_f32(load_u16(data, block + Q4_0_D))
            for i in range(16):
                byte = np.int16(data[block + Q4_0_QS + i])
                codes[codes0 + g * GROUP + i] = np.int16((byte & np.int16(15)) - np.int16(8))
                codes[codes0 + g * GROUP + 16 + i] = np.int16((byte >> np.int16(4)) - np.int16(8))


@kernel
def decode_row(kind: int, data: Bytes, at: int, n: int, out: F32Row, out0: int) -> None:
    """A row of n values in a format of FLOAT_ROWS or KV_ROWS -> float32."""
    if kind == F16_ID:
        for i in range(n):
            out[out0 + i] = f16_to_f32(load_u16(data, at + 2 * i))
    elif kind == BF16_ID:
        for i in range(n):
            out[out0 + i] = bf16_to_f32(load_u16(data, at + 2 * i))
    elif kind == F32_ID:
        for i in range(n):
            out[out0 + i] = load_f32(data, at + 4 * i)
    elif kind == Q8_0_ID:
        for g in range(n // GROUP):
            block = at + g * Q8_0_BYTES
            d = f16_to_f32(load_u16(data, block + Q8_0_D))
            for i in range(GROUP):
                out[out0 + g * GROUP + i] = d * np.float32(np.int8(data[block + Q8_0_QS + i]))
    elif kind == Q4_0_ID:
        for g in range(n // GROUP):
            block = at + g * Q4_0_BYTES
            d = f16_to_f32(load_u16(data, block + Q4_0_D))
            for i in range(16):
                byte = np.int32(data[block + Q4_0_QS + i])
                out[out0 + g * GROUP + i] = d * np.float32((byte & 15) - 8)
                out[out0 + g * GROUP + 16 + i] = d * np.float32((byte >> 4) - 8)


@kernel
def encode_row(kind: int, x: F32Row, x0: int, n: int, data: Bytes, at: int) -> None:
    """n float32 -> a row in a format of ENCODED_ROWS, bit for bit what the format's plain rounding gives."""
    if kind == F16_ID:
        for i in range(n):
            store_u16(data, at + 2 * i, f32_to_f16(x[x0 + i]))
    elif kind == BF16_ID:
        for i in range(n):
            store_u16(data, at + 2 * i, f32_to_bf16(x[x0 + i]))
    elif kind == F32_ID:
        for i in range(n):
            store_f32(data, at + 4 * i, x[x0 + i])
    elif kind == Q8_0_ID:
        for g in range(n // GROUP):
            _encode_q8_0(x, x0 + g * GROUP, data, at + g * Q8_0_BYTES)
    elif kind == Q4_0_ID:
        for g in range(n // GROUP):
            _encode_q4_0(x, x0 + g * GROUP, data, at + g * Q4_0_BYTES)


@kernel
def _encode_q8_0(x: F32Row, x0: int, data: Bytes, block: int) -> None:
    d = largest_magnitude(x, x0, GROUP) / np.float32(127)
    inverse = reciprocal_or_zero(d)
    store_u16(data, block + Q8_0_D, f32_to_f16(d))
    for i in range(GROUP):
        scaled = x[x0 + i] * inverse
        magnitude = np.abs(scaled)
        whole = np.floor(magnitude)
        rounded = whole + np.float32(1) if magnitude - whole >= np.float32(0.5) else whole
        code = np.int32(rounded) if rounded <= np.float32(127) else np.int32(127)
        data[block + Q8_0_QS + i] = np.uint8((-code if scaled < np.float32(0) else code) & 255)


@kernel
def _encode_q4_0(x: F32Row, x0: int, data: Bytes, block: int) -> None:
    extreme = x[x0]
    for i in range(1, GROUP):
        extreme = x[x0 + i] if np.abs(x[x0 + i]) > np.abs(extreme) else extreme
    d = extreme / np.float32(-8)
    inverse = reciprocal_or_zero(d)
    store_u16(data, block + Q4_0_D, f32_to_f16(d))
    for i in range(16):
        low = _q4_code(x[x0 + i] * inverse)
        high = _q4_code(x[x0 + 16 + i] * inverse)
        data[block + Q4_0_QS + i] = np.uint8(low | (high << 4))


@kernel
def _q4_code(scaled: Any) -> Any:
    shifted = scaled + np.float32(8.5)
    clipped = min(max(shifted, np.float32(0)), np.float32(15))
    return np.int32(clipped)
