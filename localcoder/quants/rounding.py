"""Rounding rules shared by the plain quantizers."""

from __future__ import annotations

import numpy as np

from localcoder.quants.spec import Bytes, Float32


def round_half_away(x: Float32) -> Float32:
    """Nearest integer, halves away from zero (C's `roundf`), as float32."""
    magnitude = np.abs(x)
    whole = np.floor(magnitude)
    return np.copysign(whole + (magnitude - whole >= np.float32(0.5)), x).astype(np.float32)


def reciprocal_or_zero(d: Float32) -> Float32:
    """1/d, or 0 where d is zero or so small that 1/d has no finite value."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def round_to_extreme(x: Float32, n_bits: int) -> tuple[Float32, Bytes]:
    """x [n, k] = d·(q - 2^(n_bits-1)) -> (d [n], q [n, k]); the value of largest magnitude gets code 0."""
    zero = np.float32(1 << (n_bits - 1))
    d = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1) / -zero
    codes = np.trunc(x * reciprocal_or_zero(d) + (zero + np.float32(0.5)))
    return d[:, 0], np.clip(codes, 0, 2 * zero - 1).astype(np.uint8)


def round_to_range(x: Float32, n_bits: int) -> tuple[Float32, Float32, Bytes]:
    """x [n, k] = d·q + m -> (d [n], m [n], q [n, k]); the smallest value gets code 0, the largest the last code."""
    last = np.float32((1 << n_bits) - 1)
    m = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - m) / last
    codes = np.trunc((x - m) * reciprocal_or_zero(d) + np.float32(0.5))
    return d[:, 0], m[:, 0], np.clip(codes, 0, last).astype(np.uint8)
