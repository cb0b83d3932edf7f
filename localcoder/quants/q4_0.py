"""Q4_0: x = d·(q - 8), q unsigned 4 bits, one half-precision scale d for 32 values. 4.5 bits a weight.

Byte j of `qs` holds value j in its low half and value j + 16 in its high half. The value of largest magnitude maps to
code 0, so d takes its sign, negated.
"""

from __future__ import annotations

import numpy as np

from localcoder.quants.rounding import reciprocal_or_zero
from localcoder.quants.spec import Blocks, Float32, QuantType


def _dequantize(blocks: Blocks) -> Float32:
    qs = blocks["qs"]
    codes = np.concatenate([qs & 15, qs >> 4], axis=1).astype(np.float32)
    return blocks["d"].astype(np.float32)[:, None] * (codes - 8)


def _quantize(x: Float32) -> Blocks:
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    d = extreme / np.float32(-8)
    codes = np.clip(np.trunc(x * reciprocal_or_zero(d) + np.float32(8.5)), 0, 15).astype(np.uint8)
    blocks = np.empty(len(x), Q4_0.block)
    blocks["d"] = d[:, 0]
    blocks["qs"] = codes[:, :16] | codes[:, 16:] << 4
    return blocks


Q4_0 = QuantType("q4_0", 2, 32, np.dtype([("d", "<f2"), ("qs", "u1", 16)]), "q8", _dequantize, _quantize)
