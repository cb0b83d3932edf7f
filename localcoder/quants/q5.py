"""Q5_0 and Q5_1: as Q4_0 and Q4_1 with a fifth bit of code i in bit i of the 32-bit little-endian `qh`.

- Q5_0: x = d·(q - 16). 5.5 bits a weight.
- Q5_1: x = d·q + m. 6 bits a weight.
"""

from __future__ import annotations

import numpy as np

from localcoder.quants.bits import pack_bits, unpack_bits
from localcoder.quants.rounding import round_to_extreme, round_to_range
from localcoder.quants.spec import Blocks, Codes, Float32, QuantType


def _codes(blocks: Blocks) -> Float32:
    return (unpack_bits(blocks["qs"], 4, 16) | unpack_bits(blocks["qh"], 1, 1) << 4).astype(np.float32)


def _dequantize_q5_0(blocks: Blocks) -> Float32:
    return blocks["d"].astype(np.float32)[:, None] * (_codes(blocks) - 16)


def _dequantize_q5_1(blocks: Blocks) -> Float32:
    d, m = (blocks[field].astype(np.float32)[:, None] for field in ("d", "m"))
    return d * _codes(blocks) + m


def pack_q5_0(d: Float32, codes: Codes) -> Blocks:
    """Scales [n] and unsigned codes [n, 32] -> Blocks [n]."""
    blocks = np.empty(len(d), Q5_0.block)
    blocks["d"] = d
    blocks["qh"] = pack_bits(codes >> 4, 1, 1)
    blocks["qs"] = pack_bits(codes, 4, 16)
    return blocks


def pack_q5_1(d: Float32, m: Float32, codes: Codes) -> Blocks:
    """Scales [n], minimums [n] and codes [n, 32] -> Blocks [n]."""
    blocks = np.empty(len(d), Q5_1.block)
    blocks["d"] = d
    blocks["m"] = m
    blocks["qh"] = pack_bits(codes >> 4, 1, 1)
    blocks["qs"] = pack_bits(codes, 4, 16)
    return blocks


def _quantize_q5_0(x: Float32) -> Blocks:
    return pack_q5_0(*round_to_extreme(x, 5))


def _quantize_q5_1(x: Float32) -> Blocks:
    return pack_q5_1(*round_to_range(x, 5))


Q5_0 = QuantType(
    "q5_0", 6, 32, np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]), "q8", _dequantize_q5_0, _quantize_q5_0
)
Q5_1 = QuantType(
    "q5_1",
    7,
    32,
    np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]),
    "q8",
    _dequantize_q5_1,
    _quantize_q5_1,
)
