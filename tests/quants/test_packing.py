"""Packing is the inverse of unpacking, and puts fields where `dequantize` (checked against gguf) finds them."""

from __future__ import annotations

import numpy as np
import pytest

from localcoder.quants import iq4, k_quants, q4, q5
from localcoder.quants.bits import pack_bits, unpack_bits

N = 50


@pytest.mark.parametrize(("n_bits", "run"), [(1, 1), (1, 32), (2, 1), (2, 4), (2, 32), (4, 1), (4, 16), (4, 64)])
def test_bits(n_bits, run):
    data = np.random.default_rng(1).integers(0, 256, (N, 128), np.uint8)
    codes = unpack_bits(data, n_bits, run)
    assert codes.shape == (N, 128 * 8 // n_bits)
    assert codes.max() == (1 << n_bits) - 1
    np.testing.assert_array_equal(pack_bits(codes, n_bits, run), data)
    np.testing.assert_array_equal(pack_bits(codes | np.uint8(0xFF << n_bits & 0xFF), n_bits, run), data)


def integers(shape, last, dtype=np.uint8, first=0):
    return np.random.default_rng(2).integers(first, last + 1, shape, dtype)


D = np.linspace(-1, 1, N).astype(np.float16).astype(np.float32)
M = np.linspace(3, -2, N).astype(np.float16).astype(np.float32)


def column(scales, k):
    return np.repeat(scales.astype(np.float32), k, axis=1)


def cases():
    four, five = integers((N, 32), 15), integers((N, 32), 31)
    d, m = D[:, None], M[:, None]
    yield "q4_0", q4.Q4_0, q4.pack_q4_0(D, four), d * (four - np.float32(8))
    yield "q4_1", q4.Q4_1, q4.pack_q4_1(D, M, four), d * four + m
    yield "q5_0", q5.Q5_0, q5.pack_q5_0(D, five), d * (five - np.float32(16))
    yield "q5_1", q5.Q5_1, q5.pack_q5_1(D, M, five), d * five + m
    yield "iq4_nl", iq4.IQ4_NL, iq4.pack_iq4_nl(D, four), d * iq4.KVALUES[four]
    s, m16, q = integers((N, 16), 15), integers((N, 16), 15)[:, ::-1], integers((N, 256), 3)
    yield "q2_k", k_quants.Q2_K, k_quants.pack_q2_k(D, M, s, m16, q), d * column(s, 16) * q - m * column(m16, 16)
    s, q = integers((N, 16), 63), integers((N, 256), 7)
    expected = d * (column(s, 16) - 32) * (q - np.float32(4))
    yield "q3_k", k_quants.Q3_K, k_quants.pack_q3_k(D, s, q), expected
    s, m8 = integers((N, 8), 63), integers((N, 8), 63)[:, ::-1]
    for name, qtype, pack, last in (
        ("q4_k", k_quants.Q4_K, k_quants.pack_q4_k, 15),
        ("q5_k", k_quants.Q5_K, k_quants.pack_q5_k, 31),
    ):
        q = integers((N, 256), last)
        yield name, qtype, pack(D, M, s, m8, q), d * column(s, 32) * q - m * column(m8, 32)
    s, q = integers((N, 16), 127, np.int8, -128), integers((N, 256), 63)
    yield "q6_k", k_quants.Q6_K, k_quants.pack_q6_k(D, s, q), d * column(s, 16) * (q - np.float32(32))
    s, q = integers((N, 8), 63), integers((N, 256), 15)
    yield "iq4_xs", iq4.IQ4_XS, iq4.pack_iq4_xs(D, s, q), d * (column(s, 32) - 32) * iq4.KVALUES[q]


@pytest.mark.parametrize(("qtype", "blocks", "expected"), [pytest.param(*case[1:], id=case[0]) for case in cases()])
def test_packed_fields_come_back(qtype, blocks, expected):
    np.testing.assert_array_equal(qtype.dequantize_blocks(blocks), expected)
