"""Rows of integer formats as int16 codes, so that few kernels multiply them all.

Every 32 values, or 16 for SUB_16 formats, have one float32 scale d. Formats with minimums also have one float32 offset
for each: x = d·code + offset. Both are exact: products of a half and a small integer.

Block layouts are those of `quants`; fields are found through `QuantType.block`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.numba.emit import GROUP
from localcoder.backends.numba.halves import f16_to_f32
from localcoder.backends.numba.jit import kernel
from localcoder.backends.numba.simd import load_u16, prefetch, split_fives, split_nibbles, spread_bits, widen_signed
from localcoder.quants import by_name
from localcoder.quants.activations import Q8_GROUP

assert Q8_GROUP == GROUP
SUM_GROUP = 16  # activations whose codes are summed, to meet the weights' offsets
_AHEAD = 2048  # bytes between what is unpacked and what is asked from memory: a row's end hides the next from the CPU


def _layout(name: str) -> tuple[int, ...]:
    """GGUF id, bytes of a block, and the offset of each field."""
    qtype = by_name(name)
    fields = qtype.block.fields
    assert fields is not None
    return qtype.gguf_id, qtype.block_bytes, *(fields[field][1] for field in qtype.block.names or ())


Q4_0_ID, Q4_0_BYTES, Q4_0_D, Q4_0_QS = _layout("q4_0")
Q4_1_ID, Q4_1_BYTES, Q4_1_D, Q4_1_M, Q4_1_QS = _layout("q4_1")
Q5_0_ID, Q5_0_BYTES, Q5_0_D, Q5_0_QH, Q5_0_QS = _layout("q5_0")
Q5_1_ID, Q5_1_BYTES, Q5_1_D, Q5_1_M, Q5_1_QH, Q5_1_QS = _layout("q5_1")
Q8_0_ID, Q8_0_BYTES, Q8_0_D, Q8_0_QS = _layout("q8_0")
Q2_K_ID, Q2_K_BYTES, Q2_K_SCALES, Q2_K_QS, Q2_K_D, Q2_K_DMIN = _layout("q2_k")
Q3_K_ID, Q3_K_BYTES, Q3_K_HMASK, Q3_K_QS, Q3_K_SCALES, Q3_K_D = _layout("q3_k")
Q4_K_ID, Q4_K_BYTES, Q4_K_D, Q4_K_DMIN, Q4_K_SCALES, Q4_K_QS = _layout("q4_k")
Q5_K_ID, Q5_K_BYTES, Q5_K_D, Q5_K_DMIN, Q5_K_SCALES, Q5_K_QH, Q5_K_QS = _layout("q5_k")
Q6_K_ID, Q6_K_BYTES, Q6_K_QL, Q6_K_QH, Q6_K_SCALES, Q6_K_D = _layout("q6_k")

WITH_MINS = frozenset({Q4_1_ID, Q5_1_ID, Q2_K_ID, Q4_K_ID, Q5_K_ID})
SUB_16 = frozenset({Q2_K_ID, Q3_K_ID, Q6_K_ID})
CODE_ROWS = WITH_MINS | SUB_16 | {Q4_0_ID, Q5_0_ID, Q8_0_ID}

F32Row = NDArray[np.float32]
Codes = NDArray[np.int16]
Bytes = NDArray[np.uint8]


@kernel
def unpack_codes(
    kind: int,
    data: Bytes,
    at: int,
    n: int,
    codes: Codes,
    to: int,
    scales: F32Row,
    scales0: int,
    step: int,
    mins: F32Row,
) -> None:
    """n values of a format of CODE_ROWS at data[at:] -> codes [n]; scales from scales0 on, `step` apart.

    The offsets of formats in WITH_MINS go to the same places of `mins`, which others leave alone.
    """
    if kind == Q8_0_ID:
        for g in range(n // GROUP):
            block = at + g * Q8_0_BYTES
            prefetch(data, block + _AHEAD)
            scales[scales0 + g * step] = f16_to_f32(load_u16(data, block + Q8_0_D))
            widen_signed(data, block + Q8_0_QS, codes, to + g * GROUP)
    elif kind == Q4_0_ID:
        for g in range(n // GROUP):
            block = at + g * Q4_0_BYTES
            prefetch(data, block + _AHEAD)
            scales[scales0 + g * step] = f16_to_f32(load_u16(data, block + Q4_0_D))
            split_nibbles(data, block + Q4_0_QS, 8, codes, to + g * GROUP, to + g * GROUP + 16)
    elif kind == Q4_1_ID:
        for g in range(n // GROUP):
            block = at + g * Q4_1_BYTES
            prefetch(data, block + _AHEAD)
            scales[scales0 + g * step] = f16_to_f32(load_u16(data, block + Q4_1_D))
            mins[scales0 + g * step] = f16_to_f32(load_u16(data, block + Q4_1_M))
            split_nibbles(data, block + Q4_1_QS, 0, codes, to + g * GROUP, to + g * GROUP + 16)
    elif kind == Q5_0_ID:
        for g in range(n // GROUP):
            block = at + g * Q5_0_BYTES
            prefetch(data, block + _AHEAD)
            scales[scales0 + g * step] = f16_to_f32(load_u16(data, block + Q5_0_D))
            split_nibbles(data, block + Q5_0_QS, 16, codes, to + g * GROUP, to + g * GROUP + 16)
            _add_fifth_bits(data, block + Q5_0_QH, codes, to + g * GROUP)
    elif kind == Q5_1_ID:
        for g in range(n // GROUP):
            block = at + g * Q5_1_BYTES
            prefetch(data, block + _AHEAD)
            scales[scales0 + g * step] = f16_to_f32(load_u16(data, block + Q5_1_D))
            mins[scales0 + g * step] = f16_to_f32(load_u16(data, block + Q5_1_M))
            split_nibbles(data, block + Q5_1_QS, 0, codes, to + g * GROUP, to + g * GROUP + 16)
            _add_fifth_bits(data, block + Q5_1_QH, codes, to + g * GROUP)
    else:
        _unpack_super_blocks(kind, data, at, n, codes, to, scales, scales0, step, mins)


@kernel
def _unpack_super_blocks(
    kind: int,
    data: Bytes,
    at: int,
    n: int,
    codes: Codes,
    to: int,
    scales: F32Row,
    scales0: int,
    step: int,
    mins: F32Row,
) -> None:
    n_subs = 8 if kind in (Q4_K_ID, Q5_K_ID) else 16
    for s in range(n // 256):
        here, first = to + 256 * s, scales0 + n_subs * s * step
        if kind == Q4_K_ID:
            block = at + s * Q4_K_BYTES
            _prefetch_lines(data, block + _AHEAD, Q4_K_BYTES)
            d, dmin = f16_to_f32(load_u16(data, block + Q4_K_D)), f16_to_f32(load_u16(data, block + Q4_K_DMIN))
            for j in range(8):
                scale, m = _scale_and_min(data, block + Q4_K_SCALES, j)
                scales[first + j * step] = d * np.float32(scale)
                mins[first + j * step] = -(dmin * np.float32(m))
            for i in range(8):
                to_low = here + i // 2 * 64 + i % 2 * 16
                split_nibbles(data, block + Q4_K_QS + 16 * i, 0, codes, to_low, to_low + 32)
        elif kind == Q5_K_ID:
            block = at + s * Q5_K_BYTES
            _prefetch_lines(data, block + _AHEAD, Q5_K_BYTES)
            d, dmin = f16_to_f32(load_u16(data, block + Q5_K_D)), f16_to_f32(load_u16(data, block + Q5_K_DMIN))
            for j in range(8):
                scale, m = _scale_and_min(data, block + Q5_K_SCALES, j)
                scales[first + j * step] = d * np.float32(scale)
                mins[first + j * step] = -(dmin * np.float32(m))
            for i in range(8):
                to_low = here + i // 2 * 64 + i % 2 * 16
                qs, qh = block + Q5_K_QS + 16 * i, block + Q5_K_QH + i % 2 * 16
                split_fives(data, qs, qh, i // 2 * 2, codes, to_low, to_low + 32)
        elif kind == Q6_K_ID:
            block = at + s * Q6_K_BYTES
            _prefetch_lines(data, block + _AHEAD, Q6_K_BYTES)
            d = f16_to_f32(load_u16(data, block + Q6_K_D))
            for j in range(16):
                half, quarter, i = j // 8, j // 2 % 4, j % 2
                ql = block + Q6_K_QL + 64 * half + quarter % 2 * 32 + 16 * i
                qh = block + Q6_K_QH + 32 * half + 16 * i
                scales[first + j * step] = d * np.float32(np.int8(data[block + Q6_K_SCALES + j]))
                spread_bits(data, ql, quarter // 2 * 4, 15, qh, 2 * quarter - 4, 48, 32, codes, here + 16 * j)
        elif kind == Q3_K_ID:
            block = at + s * Q3_K_BYTES
            _prefetch_lines(data, block + _AHEAD, Q3_K_BYTES)
            d = f16_to_f32(load_u16(data, block + Q3_K_D))
            for j in range(16):
                half, quarter, i = j // 8, j // 2 % 4, j % 2
                packed = block + Q3_K_SCALES
                scale = (data[packed + j % 8] >> (j // 8 * 4) & 15) + (
                    (data[packed + 8 + j % 4] >> (j // 4 * 2) & 3) << 4
                )
                scales[first + j * step] = d * np.float32(np.int64(scale) - 32)
                qs, hmask = block + Q3_K_QS + 32 * half + 16 * i, block + Q3_K_HMASK + 16 * i
                bit = 4 * half + quarter
                spread_bits(data, qs, 2 * quarter, 3, hmask, bit - 2, 4, 4, codes, here + 16 * j)
        else:
            block = at + s * Q2_K_BYTES
            _prefetch_lines(data, block + _AHEAD, Q2_K_BYTES)
            d, dmin = f16_to_f32(load_u16(data, block + Q2_K_D)), f16_to_f32(load_u16(data, block + Q2_K_DMIN))
            for j in range(16):
                half, quarter, i = j // 8, j // 2 % 4, j % 2
                both = np.int64(data[block + Q2_K_SCALES + j])
                scales[first + j * step] = d * np.float32(both & 15)
                mins[first + j * step] = -(dmin * np.float32(both >> 4))
                qs = block + Q2_K_QS + 32 * half + 16 * i
                spread_bits(data, qs, 2 * quarter, 3, qs, 0, 0, 0, codes, here + 16 * j)


@kernel
def _prefetch_lines(data: Bytes, at: int, n_bytes: int) -> None:
    for line in range(0, n_bytes, 64):
        prefetch(data, at + line)


@kernel
def _add_fifth_bits(data: Bytes, at: int, codes: Codes, to: int) -> None:
    """Adds 16 to the codes whose bit is set in the 32 bits at data[at:]."""
    bits = np.uint32(load_u16(data, at)) | np.uint32(np.uint32(load_u16(data, at + 2)) << np.uint32(16))
    row = codes[to : to + GROUP]
    for i in range(GROUP):
        row[i] += np.int16((np.uint32(bits >> np.uint32(i)) & np.uint32(1)) << np.uint32(4))


@kernel
def _scale_and_min(data: Bytes, at: int, j: int) -> Any:
    """Scale and minimum j of Q4_K's and Q5_K's 12 bytes, 6 bits each (`quants.k_quants`)."""
    if j < 4:
        return np.int64(data[at + j] & 63), np.int64(data[at + 4 + j] & 63)
    low, scale_top, min_top = np.int64(data[at + 4 + j]), np.int64(data[at + j - 4]), np.int64(data[at + j])
    return (low & 15) | (scale_top >> 6 << 4), (low >> 4) | (min_top >> 6 << 4)
