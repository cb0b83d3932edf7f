"""Q4_0 and Q4_1: 32 values, unsigned 4-bit codes q; byte j of `qs` holds values j (low half) and j + 16 (high half).

- Q4_0: x = d·(q - 8). 4.5 bits a weight. Plain rounding maps the value of largest magnitude to code 0, so d takes its
  sign, negated.
- Q4_1: x = d·q + m. 5 bits a weight. Plain rounding spans the range from the smallest value m to the largest.
"""

from __future__ import annotations

import numpy as np

from localcoder.quants.bits import pack_bits, unpack_bits
from localcoder.quants.rounding import round_to_extreme, round_to_range
from localcoder.quants.spec import Blocks, Codes, Float32, QuantType


def _codes(blocks: Blocks) -> Float32:
    return unpack_bits(blocks["qs"], 4, 16).astype(np.float32)


def _dequantize_q4_0(blocks: Blocks) -> Float32:
    return blocks["d"].astype(np.float32)[:, None] * (_codes(blocks) - 8)


def _dequantize_q4_1(blocks: Blocks) -> Float32:
    d, m = (blocks[field].astype(np.float32)[:, None] for field in ("d", "m"))
    return d * _codes(blocks) + m


def pack_q4_0(d: Float32, codes: Codes) -> Blocks:
    """Scales [n] and unsigned codes [n, 32] -> Blocks [n]."""
    blocks = np.empty(len(d), Q4_0.block)
    blocks["d"] = d
    blocks["qs"] = pack_bits(codes, 4, 16)
    return blocks


def pack_q4_1(d: Float32, m: Float32, codes: Codes) -> Blocks:
    """Scales [n], minimums [n] and codes [n, 32] -> Blocks [n]."""
    blocks = np.empty(len(d), Q4_1.block)
    blocks["d"] = d
    blocks["m"] = m
    blocks["qs"] = pack_bits(codes, 4, 16)
    return blocks


def _quantize_q4_0(x: Float32) -> Blocks:
    return pack_q4_0(*round_to_extreme(x, 4))


def _quantize_q4_1(x: Float32) -> Blocks:
    return pack_q4_1(*round_to_range(x, 4))


Q4_0 = QuantType("q4_0", 2, 32, np.dtype([("d", "<f2"), ("qs", "u1", 16)]), "q8", _dequantize_q4_0, _quantize_q4_0)
Q4_1 = QuantType(
    "q4_1", 3, 32, np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)]), "q8", _dequantize_q4_1, _quantize_q4_1
)
