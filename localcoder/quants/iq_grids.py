"""IQ1, IQ2 and IQ3: groups of 4 or 8 values are one entry of a fixed grid, with signs apart (IQ1: shifted by ±1/8).

Super-blocks of 256 values; they are read, not written. The grids belong to the formats and are taken from the `gguf`
package when the first tensor needs one.

| type    | x =                                | grid entries      | scales s      | bits a weight |
|---------|------------------------------------|-------------------|---------------|---------------|
| IQ1_S   | d·(2s + 1)·(g ± 1/8)               | 2048 x 8          | 8 x 3 bits    | 1.5625        |
| IQ1_M   | d·(2s + 1)·(g ± 1/8)               | 2048 x 8          | 16 x 3 bits   | 1.75          |
| IQ2_XXS | ±d·(s + 1/2)/4·g                   | 256 x 8           | 8 x 4 bits    | 2.0625        |
| IQ2_XS  | ±d·(s + 1/2)/4·g                   | 512 x 8           | 16 x 4 bits   | 2.3125        |
| IQ2_S   | ±d·(s + 1/2)/4·g                   | 1024 x 8          | 16 x 4 bits   | 2.5625        |
| IQ3_XXS | ±d·(s + 1/2)/2·g                   | 256 x 4           | 8 x 4 bits    | 3.0625        |
| IQ3_S   | ±d·(2s + 1)·g                      | 512 x 4           | 8 x 4 bits    | 3.4375        |
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.quants.bits import unpack_bits
from localcoder.quants.spec import Blocks, Bytes, Float32, QuantType

SUPER_BLOCK = 256
_SIGN_SHIFTS: NDArray[np.uint32] = np.arange(0, 28, 7, dtype=np.uint32)
_HALF, _QUARTER = np.float32(0.5), np.float32(0.25)
_DELTA = np.float32(0.125)


@cache
def _grid(name: str) -> Float32:
    """Grid of the format called `name` in the gguf package: float32 [n_entries, group]."""
    import gguf.quants

    format_class: Any = getattr(gguf.quants, name)
    format_class.init_grid()
    grid: Float32 = format_class.grid[0, 0]
    return grid


def grid_of(qtype: QuantType) -> NDArray[np.int8]:
    """The grid of one of these formats as whole numbers: int8 [n_entries, group], C-contiguous."""
    return np.ascontiguousarray(_grid(qtype.name.upper()).astype(np.int8))


def _signs(packed: Bytes) -> Float32:
    """One bit a value, 1 is negative: uint8 [n, n_bytes] -> ±1 float32 [n, 8 n_bytes]."""
    return 1 - 2 * unpack_bits(packed, 1, 1).astype(np.float32)


def _signs_of_seven(index: NDArray[Any]) -> Float32:
    """Seven sign bits a group of 8; the eighth makes the number of minus signs even: [n, k] -> ±1 float32 [n, 8 k]."""
    index = index.astype(np.uint8)
    parity = index ^ index >> 4
    parity ^= parity >> 2
    parity ^= parity >> 1
    return _signs(index | parity << 7)


def _scaled(scales: Float32, values: Float32) -> Float32:
    """Scales [n, k] times values [n, 256] in any shape, each scale over 256 / k values -> [n, 256]."""
    n, k = scales.shape
    return (scales[:, :, None] * values.reshape(n, k, SUPER_BLOCK // k)).reshape(n, SUPER_BLOCK)


def _d(blocks: Blocks) -> Float32:
    return blocks["d"].astype(np.float32)[:, None]


def _entries(name: str, index: NDArray[Any]) -> Float32:
    return _grid(name)[index].reshape(-1, SUPER_BLOCK)


def _dequantize_iq2_xxs(blocks: Blocks) -> Float32:
    words = np.ascontiguousarray(blocks["qs"]).view("<u4").reshape(-1, 8, 2)
    index = np.ascontiguousarray(words[:, :, 0]).view(np.uint8).reshape(-1, 32)
    signs = _signs_of_seven((words[:, :, 1, None] >> _SIGN_SHIFTS & 127).reshape(-1, 32))
    scales = _d(blocks) * (_HALF + (words[:, :, 1] >> 28).astype(np.float32)) * _QUARTER
    return _scaled(scales, _entries("IQ2_XXS", index)) * signs


def _dequantize_iq2_xs(blocks: Blocks) -> Float32:
    scales = _d(blocks) * (_HALF + unpack_bits(blocks["scales"], 4, 1).astype(np.float32)) * _QUARTER
    return _scaled(scales, _entries("IQ2_XS", blocks["qs"] & 511)) * _signs_of_seven(blocks["qs"] >> 9)


def _dequantize_iq2_s(blocks: Blocks) -> Float32:
    scales = _d(blocks) * (_HALF + unpack_bits(blocks["scales"], 4, 1).astype(np.float32)) * _QUARTER
    index = blocks["qs"] | unpack_bits(blocks["qh"], 2, 1).astype(np.uint16) << 8
    return _scaled(scales, _entries("IQ2_S", index)) * _signs(blocks["signs"])


def _dequantize_iq3_xxs(blocks: Blocks) -> Float32:
    words = blocks["scales_signs"]
    signs = _signs_of_seven((words[:, :, None] >> _SIGN_SHIFTS & 127).reshape(-1, 32))
    scales = _d(blocks) * (_HALF + (words >> 28).astype(np.float32)) * _HALF
    return _scaled(scales, _entries("IQ3_XXS", blocks["qs"])) * signs


def _dequantize_iq3_s(blocks: Blocks) -> Float32:
    scales = _d(blocks) * (1 + 2 * unpack_bits(blocks["scales"], 4, 1).astype(np.float32))
    index = blocks["qs"] | unpack_bits(blocks["qh"], 1, 1).astype(np.uint16) << 8
    return _scaled(scales, _entries("IQ3_S", index)) * _signs(blocks["signs"])


def _dequantize_iq1_s(blocks: Blocks) -> Float32:
    qh = blocks["qh"]
    scales = _d(blocks) * (2 * (qh >> 12 & 7) + 1).astype(np.float32)
    high = qh[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7
    values = _entries("IQ1_S", blocks["qs"] | high.reshape(-1, 32) << 8).reshape(-1, 8, 32)
    return _scaled(scales, values + np.where(qh & 0x8000, -_DELTA, _DELTA)[:, :, None])


def _dequantize_iq1_m(blocks: Blocks) -> Float32:
    packed = blocks["scales"]  # the top 4 bits of the four words are the half-precision d
    d_bits = np.bitwise_or.reduce((packed & 0xF000) >> np.array([12, 8, 4, 0], np.uint16), axis=1).astype("<u2")
    steps = (packed[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7).reshape(-1, 16)
    scales = d_bits.view("<f2").astype(np.float32)[:, None] * (2 * steps + 1).astype(np.float32)
    qh = unpack_bits(blocks["qh"], 4, 1).astype(np.uint16)
    values = _entries("IQ1_M", blocks["qs"] | (qh & 7) << 8).reshape(-1, 32, 8)
    return _scaled(scales, values + np.where(qh & 8, -_DELTA, _DELTA)[:, :, None])


def _read_only(name: str, gguf_id: int, fields: list[Any], dequantize: Any) -> QuantType:
    return QuantType(name, gguf_id, SUPER_BLOCK, np.dtype(fields), "f32", dequantize, None)


# `qs` of IQ2_XXS: four bytes of grid entries, then four bytes with 4 x 7 sign bits and a scale, eight times.
IQ2_XXS = _read_only("iq2_xxs", 16, [("d", "<f2"), ("qs", "<u2", 32)], _dequantize_iq2_xxs)
IQ2_XS = _read_only("iq2_xs", 17, [("d", "<f2"), ("qs", "<u2", 32), ("scales", "u1", 8)], _dequantize_iq2_xs)
IQ3_XXS = _read_only("iq3_xxs", 18, [("d", "<f2"), ("qs", "u1", 64), ("scales_signs", "<u4", 8)], _dequantize_iq3_xxs)
IQ1_S = _read_only("iq1_s", 19, [("d", "<f2"), ("qs", "u1", 32), ("qh", "<u2", 8)], _dequantize_iq1_s)
IQ3_S = _read_only(
    "iq3_s",
    21,
    [("d", "<f2"), ("qs", "u1", 64), ("qh", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)],
    _dequantize_iq3_s,
)
IQ2_S = _read_only(
    "iq2_s",
    22,
    [("d", "<f2"), ("qs", "u1", 32), ("signs", "u1", 32), ("qh", "u1", 8), ("scales", "u1", 8)],
    _dequantize_iq2_s,
)
IQ1_M = _read_only("iq1_m", 29, [("qs", "u1", 32), ("qh", "u1", 16), ("scales", "<u2", 4)], _dequantize_iq1_m)
