"""The formats that are not quantized: one value a block.

- F32: IEEE single.
- F16: IEEE half, rounded to nearest even.
- BF16: the upper half of a single, rounded to nearest even; a NaN stays a (quiet) NaN.
"""

from __future__ import annotations

import numpy as np

from localcoder.quants.spec import Blocks, Float32, QuantType


def _f32_from(blocks: Blocks) -> Float32:
    return blocks["x"].astype(np.float32)[:, None]


def _f32_to(x: Float32) -> Blocks:
    return x.astype("<f4").view(F32.block).reshape(-1)


def _f16_to(x: Float32) -> Blocks:
    return x.astype("<f2").view(F16.block).reshape(-1)


def _bf16_from(blocks: Blocks) -> Float32:
    return (blocks["x"].astype(np.uint32) << 16).view(np.float32)[:, None]


def _bf16_to(x: Float32) -> Blocks:
    bits = np.ascontiguousarray(x, "<f4").view(np.uint32)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where(is_nan, quiet, rounded).astype("<u2").view(BF16.block).reshape(-1)


F32 = QuantType("f32", 0, 1, np.dtype([("x", "<f4")]), "f32", _f32_from, _f32_to)
F16 = QuantType("f16", 1, 1, np.dtype([("x", "<f2")]), "f32", _f32_from, _f16_to)
BF16 = QuantType("bf16", 30, 1, np.dtype([("x", "<u2")]), "f32", _bf16_from, _bf16_to)
