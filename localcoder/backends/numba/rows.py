"""One row of a block format to float32, and back.

A format is known here by its GGUF id. The codes of formats whose dot products are computed in integers are in
`codes.py`; what neither file knows runs through the format's plain numpy definition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.numba.codes import (
    Q4_0_BYTES,
    Q4_0_D,
    Q4_0_ID,
    Q4_0_QS,
    Q8_0_BYTES,
    Q8_0_D,
    Q8_0_ID,
    Q8_0_QS,
    unpack_codes,
)
from localcoder.backends.numba.emit import GROUP
from localcoder.backends.numba.halves import f16_to_f32, f32_to_f16
from localcoder.backends.numba.jit import kernel
from localcoder.backends.numba.simd import bits_of, float_of, load_f32, load_u16, store_f32, store_u16
from localcoder.quants import by_name

F32_ID, F16_ID, BF16_ID = (by_name(name).gguf_id for name in ("f32", "f16", "bf16"))
FLOAT_ROWS = frozenset({F32_ID, F16_ID, BF16_ID})
KV_ROWS = ENCODED_ROWS = FLOAT_ROWS | {Q4_0_ID, Q8_0_ID}

F32Row = NDArray[np.float32]
Codes = NDArray[np.int16]
Bytes = NDArray[np.uint8]

_MAGIC = np.float32(12582912.0)  # 1.5 · 2^23: adding it rounds to an integer, which then stands in the low bits


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
    values = x[x0 : x0 + n]
    most = np.uint32(0)
    for i in range(n):
        bits = np.uint32(bits_of(values[i]) & np.uint32(0x7FFFFFFF))
        most = bits if bits > most else most
    return float_of(most)


@kernel
def reciprocal_or_zero(d: Any) -> Any:
    """1/d, or 0 where that is not finite (`quants.rounding`)."""
    return _finite_or_zero(np.float32(1) / d)


@kernel
def q8_inverse(extreme: Any) -> Any:
    """What activations are multiplied by before rounding (`quants.activations`)."""
    return _finite_or_zero(np.float32(127) * (np.float32(1) / extreme))


@kernel
def _finite_or_zero(x: Any) -> Any:
    return x if np.abs(x) <= np.float32(3.4028235e38) else np.float32(0)


@kernel
def round_codes(x: F32Row, x0: int, n: int, inverse: Any, codes: Codes, codes0: int) -> None:
    """codes = x · inverse to nearest even, for |x · inverse| < 2^15."""
    values, result = x[x0 : x0 + n], codes[codes0 : codes0 + n]
    for i in range(n):
        result[i] = np.int16(bits_of(values[i] * inverse + _MAGIC) & np.uint32(0xFFFF))


@kernel
def decode_floats(kind: int, data: Bytes, at: int, n: int, out: F32Row, out0: int) -> None:
    """A row of n values in a format of FLOAT_ROWS -> float32."""
    row = out[out0 : out0 + n]  # loops from 0 over a view become vectors; offsets might wrap around
    if kind == F16_ID:
        for i in range(n):
            row[i] = f16_to_f32(load_u16(data, at + 2 * i))
    elif kind == BF16_ID:
        for i in range(n):
            row[i] = bf16_to_f32(load_u16(data, at + 2 * i))
    else:
        for i in range(n):
            row[i] = load_f32(data, at + 4 * i)


@kernel
def decode_row(kind: int, data: Bytes, at: int, n: int, out: F32Row, out0: int) -> None:
    """A row of n values in a format of KV_ROWS -> float32."""
    if kind in (F32_ID, F16_ID, BF16_ID):
        decode_floats(kind, data, at, n, out, out0)
    else:
        row = out[out0 : out0 + n]
        codes, scales = np.empty(n, np.int16), np.empty(n // GROUP, np.float32)
        unpack_codes(kind, data, at, n, codes, 0, scales, 0, 1, scales)
        for g in range(n // GROUP):
            d = scales[g]
            for i in range(GROUP):
                row[g * GROUP + i] = d * np.float32(codes[g * GROUP + i])


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
