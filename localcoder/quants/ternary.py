"""TQ1_0 and TQ2_0: super-blocks of 256 values out of {-d, 0, d}.

- TQ1_0 packs five base-3 digits a byte (four in `qh`), as the fraction digits/243 rounded up to 8 bits, so that
  multiplying by 3 moves the next digit into the carry. 1.6875 bits a weight.
- TQ2_0 spends 2 bits on a digit. 2.0625 bits a weight.
"""

from __future__ import annotations

import numpy as np

from localcoder.quants.bits import pack_bits, unpack_bits
from localcoder.quants.rounding import reciprocal_or_zero, round_half_away
from localcoder.quants.spec import Blocks, Bytes, Float32, QuantType

_PIECES = ((0, 32, 5), (32, 48, 5), (48, 52, 4))  # bytes from, to, digits in each; `qs` and `qh` of TQ1_0 as one


def _round(x: Float32) -> tuple[Float32, Bytes]:
    """x [n, 256] -> (d [n], digits 0, 1, 2 [n, 256])."""
    d = np.abs(x).max(axis=1)
    return d, (round_half_away(x * reciprocal_or_zero(d)[:, None]) + 1).astype(np.uint8)


def _dequantize_tq1_0(blocks: Blocks) -> Float32:
    packed = np.concatenate([blocks["qs"], blocks["qh"]], axis=1)
    digits = []
    for first, last, n_digits in _PIECES:
        powers = 3 ** np.arange(n_digits, dtype=np.uint8)
        shifted = (packed[:, None, first:last] * powers[:, None]).astype(np.uint16)  # modulo 256
        digits.append((shifted * 3 >> 8).reshape(len(blocks), (last - first) * n_digits))
    return blocks["d"].astype(np.float32)[:, None] * (np.concatenate(digits, axis=1).astype(np.float32) - 1)


def _quantize_tq1_0(x: Float32) -> Blocks:
    d, digits = _round(x)
    packed = []
    start = 0
    for first, last, n_digits in _PIECES:
        piece = digits[:, start : start + (last - first) * n_digits].reshape(len(x), n_digits, last - first)
        powers = np.array([81, 27, 9, 3, 1], np.uint16)[:n_digits]
        packed.append(((piece * powers[:, None]).sum(axis=1) * 256 + 242) // 243)
        start += piece[0].size if len(piece) else 0
    blocks = np.empty(len(x), TQ1_0.block)
    blocks["d"] = d
    blocks["qs"] = np.concatenate(packed[:2], axis=1)
    blocks["qh"] = packed[2]
    return blocks


def _dequantize_tq2_0(blocks: Blocks) -> Float32:
    digits = unpack_bits(blocks["qs"], 2, 32).astype(np.float32)
    return blocks["d"].astype(np.float32)[:, None] * (digits - 1)


def _quantize_tq2_0(x: Float32) -> Blocks:
    d, digits = _round(x)
    blocks = np.empty(len(x), TQ2_0.block)
    blocks["d"] = d
    blocks["qs"] = pack_bits(digits, 2, 32)
    return blocks


_TQ1_0 = np.dtype([("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2")])

TQ1_0 = QuantType("tq1_0", 34, 256, _TQ1_0, "f32", _dequantize_tq1_0, _quantize_tq1_0)
TQ2_0 = QuantType(
    "tq2_0", 35, 256, np.dtype([("qs", "u1", 64), ("d", "<f2")]), "f32", _dequantize_tq2_0, _quantize_tq2_0
)
