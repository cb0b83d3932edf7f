"""The K family: super-blocks of 256 values cut into sub-blocks of 16 or 32, whose small integer scales (and minimums)
are multiples of the super-block's half-precision `d` (and `dmin`).

| type | x =                    | codes q     | sub-blocks | their scales s, minimums m | bits a weight |
|------|------------------------|-------------|------------|----------------------------|---------------|
| Q2_K | d·s·q - dmin·m         | 0 ... 3     | 16 x 16    | 4 bits each                | 2.625         |
| Q3_K | d·(s - 32)·(q - 4)     | 0 ... 7     | 16 x 16    | 6 bits                     | 3.4375        |
| Q4_K | d·s·q - dmin·m         | 0 ... 15    | 8 x 32     | 6 bits each                | 4.5           |
| Q5_K | d·s·q - dmin·m         | 0 ... 31    | 8 x 32     | 6 bits each                | 5.5           |
| Q6_K | d·s·(q - 32)           | 0 ... 63    | 16 x 16    | 8 bits, signed             | 6.5625        |

The low bits of the codes are in `qs` (Q6_K: `ql`), the high ones in `qh` (Q3_K: `hmask`).
"""

from __future__ import annotations

import numpy as np

from localcoder.quants.bits import pack_bits, unpack_bits
from localcoder.quants.spec import Blocks, Codes, Float32, QuantType

SUPER_BLOCK = 256


def _scaled(d: Float32, scales: Codes) -> Float32:
    """Half-precision d [n] times integer scales [n, k] -> float32 [n, k, 1]."""
    return (d.astype(np.float32)[:, None] * scales.astype(np.float32))[:, :, None]


def _times(scales: Float32, codes: Codes) -> Float32:
    """Sub-block scales [n, k, 1] times codes [n, 256] -> [n, k, 256 / k]."""
    return scales * codes.astype(np.float32).reshape(*scales.shape[:2], SUPER_BLOCK // scales.shape[1])


# Q2_K: byte j of `scales` holds scale j in its low half and minimum j in its high half.


def unpack_q2_k(blocks: Blocks) -> tuple[Codes, Codes, Codes]:
    """Blocks [n] -> (scales [n, 16], mins [n, 16], codes [n, 256])."""
    return blocks["scales"] & 15, blocks["scales"] >> 4, unpack_bits(blocks["qs"], 2, 32)


def pack_q2_k(d: Float32, dmin: Float32, scales: Codes, mins: Codes, codes: Codes) -> Blocks:
    """d, dmin [n], scales, mins [n, 16], codes [n, 256] -> Blocks [n]."""
    blocks = np.empty(len(d), Q2_K.block)
    blocks["d"] = d
    blocks["dmin"] = dmin
    blocks["scales"] = scales | mins << 4
    blocks["qs"] = pack_bits(codes, 2, 32)
    return blocks


def _dequantize_q2_k(blocks: Blocks) -> Float32:
    scales, mins, codes = unpack_q2_k(blocks)
    x = _times(_scaled(blocks["d"], scales), codes) - _scaled(blocks["dmin"], mins)
    return x.reshape(-1, SUPER_BLOCK)


# Q3_K: of the 12 bytes of `scales` the first 8 hold the low 4 bits, the last 4 the high 2 bits. A set bit of `hmask` is
# the code's bit 2.


def unpack_q3_k(blocks: Blocks) -> tuple[Codes, Codes]:
    """Blocks [n] -> (scales [n, 16], biased by 32; codes [n, 256], biased by 4)."""
    packed = blocks["scales"]
    scales = unpack_bits(packed[:, :8], 4, 8) | unpack_bits(packed[:, 8:], 2, 4) << 4
    return scales, unpack_bits(blocks["qs"], 2, 32) | unpack_bits(blocks["hmask"], 1, 32) << 2


def pack_q3_k(d: Float32, scales: Codes, codes: Codes) -> Blocks:
    """d [n], scales [n, 16] biased by 32, codes [n, 256] biased by 4 -> Blocks [n]."""
    blocks = np.empty(len(d), Q3_K.block)
    blocks["d"] = d
    blocks["scales"] = np.concatenate([pack_bits(scales, 4, 8), pack_bits(scales >> 4, 2, 4)], axis=1)
    blocks["qs"] = pack_bits(codes, 2, 32)
    blocks["hmask"] = pack_bits(codes >> 2, 1, 32)
    return blocks


def _dequantize_q3_k(blocks: Blocks) -> Float32:
    scales, codes = unpack_q3_k(blocks)
    x = _times(_scaled(blocks["d"], scales.astype(np.float32) - 32), codes.astype(np.float32) - 4)
    return x.reshape(-1, SUPER_BLOCK)


# Q4_K, Q5_K: of the 12 bytes of `scales` the first 4 hold scales 0-3 in their low 6 bits, the next 4 the minimums 0-3;
# the last 4 hold the low halves of scales 4-7 (low) and minimums 4-7 (high), whose top 2 bits are the top bits of the
# first 8 bytes.


def unpack_scales_mins(packed: Codes) -> tuple[Codes, Codes]:
    """uint8 [n, 12] -> (scales [n, 8], mins [n, 8]), 6 bits each."""
    first_scales, first_mins, low = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first_scales & 63, low & 15 | first_scales >> 6 << 4], axis=1)
    mins = np.concatenate([first_mins & 63, low >> 4 | first_mins >> 6 << 4], axis=1)
    return scales, mins


def pack_scales_mins(scales: Codes, mins: Codes) -> Codes:
    """The inverse of `unpack_scales_mins`."""
    first_scales = scales[:, :4] | scales[:, 4:] >> 4 << 6
    first_mins = mins[:, :4] | mins[:, 4:] >> 4 << 6
    return np.concatenate([first_scales, first_mins, scales[:, 4:] & 15 | mins[:, 4:] << 4], axis=1)


def pack_q4_k(d: Float32, dmin: Float32, scales: Codes, mins: Codes, codes: Codes) -> Blocks:
    """d, dmin [n], scales, mins [n, 8], codes [n, 256] -> Blocks [n]."""
    blocks = np.empty(len(d), Q4_K.block)
    blocks["d"] = d
    blocks["dmin"] = dmin
    blocks["scales"] = pack_scales_mins(scales, mins)
    blocks["qs"] = pack_bits(codes, 4, 32)
    return blocks


def pack_q5_k(d: Float32, dmin: Float32, scales: Codes, mins: Codes, codes: Codes) -> Blocks:
    """d, dmin [n], scales, mins [n, 8], codes [n, 256] -> Blocks [n]."""
    blocks = np.empty(len(d), Q5_K.block)
    blocks["d"] = d
    blocks["dmin"] = dmin
    blocks["scales"] = pack_scales_mins(scales, mins)
    blocks["qs"] = pack_bits(codes, 4, 32)
    blocks["qh"] = pack_bits(codes >> 4, 1, 32)
    return blocks


def _affine(blocks: Blocks, codes: Codes) -> Float32:
    scales, mins = unpack_scales_mins(blocks["scales"])
    x = _times(_scaled(blocks["d"], scales), codes) - _scaled(blocks["dmin"], mins)
    return x.reshape(-1, SUPER_BLOCK)


def _dequantize_q4_k(blocks: Blocks) -> Float32:
    return _affine(blocks, unpack_bits(blocks["qs"], 4, 32))


def _dequantize_q5_k(blocks: Blocks) -> Float32:
    return _affine(blocks, unpack_bits(blocks["qs"], 4, 32) | unpack_bits(blocks["qh"], 1, 32) << 4)


def pack_q6_k(d: Float32, scales: Codes, codes: Codes) -> Blocks:
    """d [n], scales int8 [n, 16], codes [n, 256] biased by 32 -> Blocks [n]."""
    blocks = np.empty(len(d), Q6_K.block)
    blocks["d"] = d
    blocks["scales"] = scales
    blocks["ql"] = pack_bits(codes, 4, 64)
    blocks["qh"] = pack_bits(codes >> 4, 2, 32)
    return blocks


def _dequantize_q6_k(blocks: Blocks) -> Float32:
    codes = (unpack_bits(blocks["ql"], 4, 64) | unpack_bits(blocks["qh"], 2, 32) << 4).astype(np.float32) - 32
    return _times(_scaled(blocks["d"], blocks["scales"]), codes).reshape(-1, SUPER_BLOCK)


_Q2_K = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
_Q3_K = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
_Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
_Q5_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])
_Q6_K = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])

Q2_K = QuantType("q2_k", 10, SUPER_BLOCK, _Q2_K, "q8", _dequantize_q2_k, None)
Q3_K = QuantType("q3_k", 11, SUPER_BLOCK, _Q3_K, "q8", _dequantize_q3_k, None)
Q4_K = QuantType("q4_k", 12, SUPER_BLOCK, _Q4_K, "q8", _dequantize_q4_k, None)
Q5_K = QuantType("q5_k", 13, SUPER_BLOCK, _Q5_K, "q8", _dequantize_q5_k, None)
Q6_K = QuantType("q6_k", 14, SUPER_BLOCK, _Q6_K, "q8", _dequantize_q6_k, None)
