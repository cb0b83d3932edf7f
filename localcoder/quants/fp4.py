"""MXFP4 and NVFP4: 4-bit floats (E2M1: 0, 1/2, 1, 3/2, 2, 3, 4, 6, with sign) under a small floating-point scale.

- MXFP4 (OCP Microscaling Formats 1.0): 32 values share a power of two 2^(e - 127), e 8 bits. 4.25 bits a weight.
- NVFP4: four groups of 16 values, each with an unsigned E4M3 scale (0x7F stands for 0). 4.5 bits a weight. Read only.

The table holds the doubled values, so the scales are halved.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from localcoder.quants.bits import pack_bits, unpack_bits
from localcoder.quants.spec import Blocks, Bytes, Float32, QuantType

DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _half_power(e: Bytes) -> Float32:
    """2^(e - 128), also where that is subnormal."""
    wide: NDArray[np.uint32] = e.astype(np.uint32)
    bits = np.where(wide < 2, np.uint32(0x00200000) << wide, (np.maximum(wide, 1) - 1) << 23)
    return bits.astype(np.uint32).view(np.float32)


def _dequantize_mxfp4(blocks: Blocks) -> Float32:
    return _half_power(blocks["e"])[:, None] * DOUBLED[unpack_bits(blocks["qs"], 4, 16)]


def _quantize_mxfp4(x: Float32) -> Blocks:
    extreme = np.abs(x).max(axis=1)
    with np.errstate(divide="ignore"):
        exponent = np.where(extreme > 0, np.floor(np.log2(extreme)) - 2 + 127, 0)
    blocks = np.empty(len(x), MXFP4.block)
    blocks["e"] = np.maximum(exponent, 0)
    values = _half_power(blocks["e"])[:, None, None] * DOUBLED
    codes = np.abs(values - x[:, :, None]).argmin(axis=2).astype(np.uint8)
    blocks["qs"] = pack_bits(codes, 4, 16)
    return blocks


def _half_e4m3() -> Float32:
    """Half the value of every byte read as unsigned E4M3 with bias 7 (the top bit is ignored)."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa / 512, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    value[[0, 0x7F]] = 0
    return (value / 2).astype(np.float32)


_HALF_E4M3 = _half_e4m3()


def _dequantize_nvfp4(blocks: Blocks) -> Float32:
    scales = _HALF_E4M3[blocks["d"]]
    values = DOUBLED[unpack_bits(blocks["qs"], 4, 8)].reshape(-1, 4, 16)
    return (scales[:, :, None] * values).reshape(-1, 64)


MXFP4 = QuantType("mxfp4", 39, 32, np.dtype([("e", "u1"), ("qs", "u1", 16)]), "f32", _dequantize_mxfp4, _quantize_mxfp4)
NVFP4 = QuantType("nvfp4", 40, 64, np.dtype([("d", "u1", 4), ("qs", "u1", 32)]), "f32", _dequantize_nvfp4, None)
