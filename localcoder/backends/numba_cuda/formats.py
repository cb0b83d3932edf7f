"""How a card reads one value of a block: value i of the block at byte b.

A matrix is there twice over the same memory, as bytes (w) and as halves (h). Layouts are those of `quants`. What has no
reader here lies on the card as halves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda

from localcoder.quants import QuantType, by_name

device = cuda.jit(device=True)
Read = Any  # a device function (w, h, b, i) -> float32


def _at(name: str) -> tuple[int, ...]:
    """Where each field of a block begins."""
    fields = by_name(name).block.fields
    assert fields is not None
    return tuple(fields[field][1] for field in by_name(name).block.names or ())


@device
def read_half(w, h, b, i):  # type: ignore[no-untyped-def]
    return np.float32(h[b // 2 + i])


@device
def read_float(w, h, b, i):  # type: ignore[no-untyped-def]
    """Here `h` is the memory as float32."""
    return h[b // 4 + i]


@device
def _signed(byte):  # type: ignore[no-untyped-def]
    return (int(byte) ^ 128) - 128


@device
def _nibble(w, at, i):  # type: ignore[no-untyped-def]
    """Code i of 32 in 16 bytes: the low halves, then the high ones."""
    return (int(w[at + i % 16]) >> (i // 16 * 4)) & 15


@device
def _bit(w, at, i):  # type: ignore[no-untyped-def]
    return (int(w[at + i // 8]) >> (i % 8)) & 1


@device
def _pair(w, at, i):  # type: ignore[no-untyped-def]
    """Code i of 256 in 64 bytes, 2 bits each: four codes of a byte are 32 apart."""
    return (int(w[at + i // 128 * 32 + i % 32]) >> (i % 128 // 32 * 2)) & 3


def _block_of_32(name: str, bias: int, has_min: bool, has_high: bool) -> Read:
    d, *rest = _at(name)
    m, qh, qs = rest[0], rest[-2 if has_high else 0], rest[-1]

    @device
    def read(w, h, b, i):  # type: ignore[no-untyped-def]
        code = _nibble(w, b + qs, i) - bias
        if has_high:
            code += _bit(w, b + qh, i) << 4
        value = np.float32(h[(b + d) // 2]) * np.float32(code)
        if has_min:
            value += np.float32(h[(b + m) // 2])
        return value

    return read


def _q8_0() -> Read:
    d, qs = _at("q8_0")

    @device
    def read(w, h, b, i):  # type: ignore[no-untyped-def]
        return np.float32(h[(b + d) // 2]) * np.float32(_signed(w[b + qs + i]))

    return read


def _q2_k() -> Read:
    scales, qs, d, dmin = _at("q2_k")

    @device
    def read(w, h, b, i):  # type: ignore[no-untyped-def]
        both = int(w[b + scales + i // 16])
        value = np.float32(h[(b + d) // 2]) * np.float32((both & 15) * _pair(w, b + qs, i))
        return value - np.float32(h[(b + dmin) // 2]) * np.float32(both >> 4)

    return read


def _q3_k() -> Read:
    hmask, qs, scales, d = _at("q3_k")

    @device
    def read(w, h, b, i):  # type: ignore[no-untyped-def]
        j = i // 16
        low = (int(w[b + scales + j % 8]) >> (j // 8 * 4)) & 15
        scale = (low | ((int(w[b + scales + 8 + j % 4]) >> (j // 4 * 2)) & 3) << 4) - 32
        high = (int(w[b + hmask + i % 32]) >> (i // 32)) & 1
        return np.float32(h[(b + d) // 2]) * np.float32(scale * (_pair(w, b + qs, i) - 4 + 4 * high))

    return read


def _q4_k_or_q5_k(name: str) -> Read:
    has_high = name == "q5_k"
    d, dmin, scales, *rest = _at(name)
    qh, qs = rest[0], rest[-1]

    @device
    def read(w, h, b, i):  # type: ignore[no-untyped-def]
        j, at = i // 32, b + scales
        if j < 4:
            scale, least = int(w[at + j]) & 63, int(w[at + 4 + j]) & 63
        else:
            scale = (int(w[at + 4 + j]) & 15) | (int(w[at + j - 4]) >> 6 << 4)
            least = (int(w[at + 4 + j]) >> 4) | (int(w[at + j]) >> 6 << 4)
        code = (int(w[b + qs + j // 2 * 32 + i % 32]) >> (j % 2 * 4)) & 15
        if has_high:
            code += ((int(w[b + qh + i % 32]) >> j) & 1) << 4
        return np.float32(h[(b + d) // 2]) * np.float32(scale * code) - np.float32(h[(b + dmin) // 2]) * np.float32(
            least
        )

    return read


def _q6_k() -> Read:
    ql, qh, scales, d = _at("q6_k")

    @device
    def read(w, h, b, i):  # type: ignore[no-untyped-def]
        quarter = i % 128 // 32
        low = (int(w[b + ql + i // 128 * 64 + quarter % 2 * 32 + i % 32]) >> (quarter // 2 * 4)) & 15
        code = (low | _pair(w, b + qh, i) << 4) - 32
        return np.float32(h[(b + d) // 2]) * np.float32(_signed(w[b + scales + i // 16]) * code)

    return read


_READERS: dict[str, Callable[[], Read]] = {
    "f32": lambda: read_float,
    "f16": lambda: read_half,
    "q4_0": lambda: _block_of_32("q4_0", 8, False, False),
    "q4_1": lambda: _block_of_32("q4_1", 0, True, False),
    "q5_0": lambda: _block_of_32("q5_0", 16, False, True),
    "q5_1": lambda: _block_of_32("q5_1", 0, True, True),
    "q8_0": _q8_0,
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": lambda: _q4_k_or_q5_k("q4_k"),
    "q5_k": lambda: _q4_k_or_q5_k("q5_k"),
    "q6_k": _q6_k,
}
READERS = frozenset(_READERS)


def reader_of(qtype: QuantType) -> Read:
    """The device function for a format of READERS."""
    return _READERS[qtype.name]()
