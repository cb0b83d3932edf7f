"""Q8_0: x = d·q, q signed 8 bits, one half-precision scale d for 32 values. 8.5 bits a weight."""

from __future__ import annotations

import numpy as np

from localcoder.quants.rounding import reciprocal_or_zero, round_half_away
from localcoder.quants.spec import Blocks, Codes, Float32, QuantType


def _dequantize(blocks: Blocks) -> Float32:
    return blocks["d"].astype(np.float32)[:, None] * blocks["qs"].astype(np.float32)


def pack_q8_0(d: Float32, codes: Codes) -> Blocks:
    """Scales [n] and signed codes [n, 32] -> Blocks [n]."""
    blocks = np.empty(len(d), Q8_0.block)
    blocks["d"] = d
    blocks["qs"] = codes
    return blocks


def _quantize(x: Float32) -> Blocks:
    d = np.abs(x).max(axis=1) / np.float32(127)
    return pack_q8_0(d, round_half_away(x * reciprocal_or_zero(d)[:, None]).astype(np.int8))


Q8_0 = QuantType("q8_0", 8, 32, np.dtype([("d", "<f2"), ("qs", "i1", 32)]), "q8", _dequantize, _quantize)
