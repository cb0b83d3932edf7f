"""IQ4_NL and IQ4_XS: 4-bit codes into a fixed table of 16 unevenly spaced values, denser around zero.

- IQ4_NL: 32 values, x = d·KVALUES[q]. 4.5 bits a weight.
- IQ4_XS: super-blocks of 8 x 32 values, x = d·(s - 32)·KVALUES[q], s 6 bits: the low 4 in `scales_l`, two a byte, the
  high 2 in `scales_h`. 4.25 bits a weight.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from localcoder.quants.bits import pack_bits, unpack_bits
from localcoder.quants.spec import Blocks, Codes, Float32, QuantType

KVALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)

_HIGH_SHIFTS: NDArray[np.uint16] = np.arange(0, 16, 2, dtype=np.uint16)


def pack_iq4_nl(d: Float32, codes: Codes) -> Blocks:
    """d [n], codes [n, 32] -> Blocks [n]."""
    blocks = np.empty(len(d), IQ4_NL.block)
    blocks["d"] = d
    blocks["qs"] = pack_bits(codes, 4, 16)
    return blocks


def pack_iq4_xs(d: Float32, scales: Codes, codes: Codes) -> Blocks:
    """d [n], scales [n, 8] biased by 32, codes [n, 256] -> Blocks [n]."""
    blocks = np.empty(len(d), IQ4_XS.block)
    blocks["d"] = d
    blocks["scales_l"] = pack_bits(scales, 4, 1)
    blocks["scales_h"] = np.bitwise_or.reduce((scales >> 4).astype(np.uint16) << _HIGH_SHIFTS, axis=1)
    blocks["qs"] = pack_bits(codes, 4, 16)
    return blocks


def _dequantize_iq4_nl(blocks: Blocks) -> Float32:
    return blocks["d"].astype(np.float32)[:, None] * KVALUES[unpack_bits(blocks["qs"], 4, 16)]


def _dequantize_iq4_xs(blocks: Blocks) -> Float32:
    high = (blocks["scales_h"][:, None] >> _HIGH_SHIFTS & 3).astype(np.uint8)
    scales = (unpack_bits(blocks["scales_l"], 4, 1) | high << 4).astype(np.float32) - 32
    d = blocks["d"].astype(np.float32)[:, None] * scales
    values = KVALUES[unpack_bits(blocks["qs"], 4, 16)]
    return (d[:, :, None] * values.reshape(-1, 8, 32)).reshape(-1, 256)


_IQ4_XS = np.dtype([("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)])

IQ4_NL = QuantType("iq4_nl", 20, 32, np.dtype([("d", "<f2"), ("qs", "u1", 16)]), "q8", _dequantize_iq4_nl, None)
IQ4_XS = QuantType("iq4_xs", 23, 256, _IQ4_XS, "q8", _dequantize_iq4_xs, None)
