"""Rounding rules shared by the plain quantizers."""

from __future__ import annotations

import numpy as np

from localcoder.quants.spec import Float32


def round_half_away(x: Float32) -> Float32:
    """Nearest integer, halves away from zero (C's `roundf`), as float32."""
    magnitude = np.abs(x)
    whole = np.floor(magnitude)
    return np.copysign(whole + (magnitude - whole >= np.float32(0.5)), x).astype(np.float32)


def reciprocal_or_zero(d: Float32) -> Float32:
    """1/d where d is not zero, else 0."""
    with np.errstate(divide="ignore"):
        return np.where(d == 0, np.float32(0), np.float32(1) / d).astype(np.float32)
