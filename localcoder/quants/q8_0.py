"""Q8_0: x = d·q, q signed 8 bits, one half-precision scale d for 32 values. 8.5 bits a weight."""

from __future__ import annotations

import numpy as np

from localcoder.quants.rounding import reciprocal_or_zero, round_half_away
from localcoder.quants.spec import Blocks, Float32, QuantType


def _dequantize(blocks: Blocks) -> Float32:
    return blocks["d"].astype(np.float32)[:, None] * blocks["qs"].astype(np.float32)


def _quantize(x: Float32) -> Blocks:
    d = np.abs(x).max(axis=1) / np.float32(127)
    blocks = np.empty(len(x), Q8_0.block)
    blocks["d"] = d
    blocks["qs"] = round_half_away(x * reciprocal_or_zero(d)[:, None])
    return blocks


Q8_0 = QuantType("q8_0", 8, 32, np.dtype([("d", "<f2"), ("qs", "i1", 32)]), "q8", _dequantize, _quantize)
