"""Searching one block (or sub-block): its scale, or its scale and offset.

Every candidate is a step d: values in code units are t = x/d, their codes q = round(t), what is left r = t - q. With
the codes held fixed, least squares gives a better step in closed form,

    d' = d·(1 + Σwrq/Σwq²),    Σw(x - d'q)² = d²·(Σwr² - (Σwrq)²/Σwq²),

and no cancellation spoils it, since r is small. The best d' of all candidates is refined once more.

Arrays are [..., k, n]: k elements of a block, n blocks side by side; block properties are [..., n].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localcoder.quants.iq4 import KVALUES, pack_iq4_nl
from localcoder.quants.q4 import pack_q4_0, pack_q4_1
from localcoder.quants.q5 import pack_q5_0, pack_q5_1
from localcoder.quants.q8_0 import pack_q8_0
from localcoder.quants.rounding import reciprocal_or_zero
from localcoder.quants.spec import Blocks, Codes, Float32

_KMIDDLES = (KVALUES[1:] + KVALUES[:-1]) / 2
LARGEST_HALF = np.float32(65504)


@dataclass(frozen=True)
class Levels:
    """The integers first ... last that codes stand for."""

    first: int
    last: int

    def nearest(self, t: Float32) -> Float32:
        """The level nearest to each t."""
        return np.clip(np.rint(t), np.float32(self.first), np.float32(self.last))

    def codes(self, values: Float32) -> Codes:
        """Levels -> codes counted from 0."""
        return (values - np.float32(self.first)).astype(np.uint8)


class TableLevels:
    """The uneven levels of IQ4."""

    def nearest(self, t: Float32) -> Float32:
        """The level nearest to each t; halfway takes the lower one."""
        return KVALUES[np.searchsorted(_KMIDDLES, t)]

    def codes(self, values: Float32) -> Codes:
        """Levels -> codes counted from 0."""
        return np.searchsorted(KVALUES, values).astype(np.uint8)


@dataclass(frozen=True)
class ScaleSearch:
    """How the scale of a symmetric block is searched.

    Attributes:
        levels: what codes stand for.
        anchors: levels (fractions allowed, either sign) that the value of largest magnitude is put on, one candidate
            scale each.
        weighted_anchors: the same where elements have weights: the value of largest magnitude may matter little, and
            is put far beyond the last level then.
        half_steps: how many representable half-precision numbers away from the best scale to try, in this order.
    """

    levels: Levels | TableLevels
    anchors: tuple[float, ...]
    weighted_anchors: tuple[float, ...]
    half_steps: tuple[int, ...] = (0,)


def spread(first: float, last: float, step: float) -> tuple[float, ...]:
    return tuple(round(first + i * step, 3) for i in range(round((last - first) / step) + 1))


def growing(first: float, factor: float, count: int) -> tuple[float, ...]:
    """first, first·factor, ... and the same negated."""
    positive = tuple(round(first * factor**i, 2) for i in range(count))
    return positive + tuple(-anchor for anchor in positive)


SIGNED_BLOCKS = {
    "q4_0": ScaleSearch(Levels(-8, 7), spread(-8.6, -6.5, 0.3) + spread(6.6, 8.1, 0.5), growing(6, 1.08, 13)),
    "q5_0": ScaleSearch(Levels(-16, 15), spread(-16.5, -13.5, 0.5) + spread(13, 15.5, 0.5), growing(12, 1.05, 19)),
    "q8_0": ScaleSearch(Levels(-127, 127), spread(114, 127, 1), growing(112, 1.01, 40)[:40], (0, -1, 1)),
    "iq4_nl": ScaleSearch(TableLevels(), spread(-140, -105, 7) + spread(90, 122, 8), growing(90, 1.06, 15)),
}
PACK_SIGNED = {"q4_0": pack_q4_0, "q5_0": pack_q5_0, "q8_0": pack_q8_0, "iq4_nl": pack_iq4_nl}

SCALE_MIN_LAST = {"q4_1": 15, "q5_1": 31}
PACK_SCALE_MIN = {"q4_1": pack_q4_1, "q5_1": pack_q5_1}


def total(x: Float32) -> Float32:
    """Sum over the elements, in their order: [..., k, n] -> [..., n]."""
    result: Float32 = x[..., 0, :].copy()
    for i in range(1, x.shape[-2]):
        result += x[..., i, :]
    return result


def ratio_or_zero(a: Float32, b: Float32) -> Float32:
    """a/b where b is positive, else 0."""
    return np.where(b > 0, a / np.where(b > 0, b, np.float32(1)), np.float32(0))


def to_half(x: Float32) -> Float32:
    """The nearest finite half-precision value, as float32; zero is never negative."""
    return np.clip(x, -LARGEST_HALF, LARGEST_HALF).astype(np.float16).astype(np.float32) + np.float32(0)


def extreme(x: Float32) -> Float32:
    """The (first) value of largest magnitude: [..., k, n] -> [..., n]."""
    where = np.abs(x).argmax(axis=-2)[..., None, :]
    return np.take_along_axis(x, where, axis=-2)[..., 0, :]


def squared_error(x: Float32, w: Float32, d: Float32, levels: Levels | TableLevels) -> Float32:
    """Σw(x - dq)² of each block, with the best codes for its step d."""
    q = levels.nearest(x * reciprocal_or_zero(d)[..., None, :])
    rest = x - d[..., None, :] * q
    return total(w * rest * rest)


def best_scale(x: Float32, w: Float32, search: ScaleSearch, is_weighted: bool) -> Float32:
    """The step (not yet rounded to half precision) of least squared error: [..., k, n] -> [..., n]."""
    largest = extreme(x)
    inverse_largest = reciprocal_or_zero(largest)
    best_error = np.full_like(largest, np.inf)
    best = np.zeros_like(largest)

    def consider(step: Float32, inverse: Float32) -> None:
        nonlocal best, best_error
        t = x * inverse[..., None, :]
        q = search.levels.nearest(t)
        r = t - q
        wq = w * q
        rq, qq = total(wq * r), total(wq * q)
        change = ratio_or_zero(rq, qq)
        error = (total(w * r * r) - change * rq) * (step * step)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = np.where(better, step * (np.float32(1) + change), best)

    for anchor in search.weighted_anchors if is_weighted else search.anchors:
        consider(largest / np.float32(anchor), np.float32(anchor) * inverse_largest)
    consider(best, reciprocal_or_zero(best))
    return best


def _best_half(x: Float32, w: Float32, d: Float32, search: ScaleSearch) -> Float32:
    """The best half-precision step at or beside d."""
    best = to_half(d)
    if search.half_steps == (0,):
        return best
    bits = best.astype(np.float16).view(np.int16)
    best_error = np.full_like(d, np.inf)
    for offset in search.half_steps:
        shifted: NDArray[np.float16] = (bits + np.int16(offset)).view(np.float16)
        step = np.where(np.isfinite(shifted) & (d != 0), shifted, to_half(d)).astype(np.float32)
        error = squared_error(x, w, step, search.levels)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = np.where(better, step, best)
    return best


def search_signed_block(name: str, x: Float32, w: Float32, is_weighted: bool) -> Blocks:
    """Blocks of Q4_0, Q5_0, Q8_0 and IQ4_NL from x, w [32, n]."""
    search = SIGNED_BLOCKS[name]
    d = _best_half(x, w, best_scale(x, w, search, is_weighted), search)
    q = search.levels.nearest(x * reciprocal_or_zero(d))
    codes = q.astype(np.int8) if name == "q8_0" else search.levels.codes(q)
    return PACK_SIGNED[name](d, codes.T)


# How far beyond (or short of) the outermost codes the smallest and the largest value are put, in code units.
# By the bits of a code; the larger ones serve elements with weights, whose outermost values may matter little.
MARGINS = {2: (-0.6, -0.2, 0.2, 0.6), 4: (-0.9, -0.3, 0.3, 0.9), 5: (-0.9, -0.3, 0.3, 0.9)}
WEIGHTED_MARGINS = {2: (1.0, 1.4), 4: (1.8, 3.0), 5: (2.0, 4.0)}


def best_scale_offset(x: Float32, w: Float32, last: int, is_weighted: bool, *, signed: bool) -> tuple[Float32, Float32]:
    """(d, o) of x ≈ d·q - o with q in 0 ... last and least squared error; unless `signed`, o is not negative.

    For fixed codes, d and o follow from the 2 x 2 least-squares system in the remainder r = (x + o)/d - q.
    """
    lowest = x.min(axis=-2)
    if not signed:
        lowest = np.minimum(lowest, np.float32(0))
    span = x.max(axis=-2) - lowest
    inverse_span = reciprocal_or_zero(span)
    sum_w = total(np.broadcast_to(w, x.shape))
    best_error = np.full_like(lowest, np.inf)
    best_d, best_o = np.zeros_like(lowest), -lowest

    def consider(d: Float32, inverse: Float32, o: Float32) -> None:
        nonlocal best_error, best_d, best_o
        t = (x + o[..., None, :]) * inverse[..., None, :]
        q = np.clip(np.rint(t), np.float32(0), np.float32(last))
        r = t - q
        wr, wq = w * r, w * q
        sr, sq, srr, srq, sqq = total(wr), total(wq), total(wr * r), total(wr * q), total(wq * q)
        mean_q, mean_r = ratio_or_zero(sq, sum_w), ratio_or_zero(sr, sum_w)
        covariance = srq - mean_q * sr
        stretch = ratio_or_zero(covariance, sqq - mean_q * sq)
        shift = mean_r - stretch * mean_q
        error = srr - mean_r * sr - stretch * covariance
        new_o = o - shift * d
        if not signed:  # where the offset would be negative: offset 0 and the best scale for that
            offset = o * inverse
            rq = srq - offset * sq
            stretch_alone = ratio_or_zero(rq, sqq)
            error_alone = srr - offset * (sr + sr - offset * sum_w) - stretch_alone * rq
            negative = new_o < 0
            stretch = np.where(negative, stretch_alone, stretch)
            error = np.where(negative, error_alone, error)
            new_o = np.where(negative, np.float32(0), new_o)
        error = error * (d * d)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_d = np.where(better, d * (np.float32(1) + stretch), best_d)
        best_o = np.where(better, new_o, best_o)

    bits = last.bit_length()
    margins = MARGINS[bits] + (WEIGHTED_MARGINS[bits] if is_weighted else ())
    for below in margins:
        for above in margins:
            steps = np.float32(last + below + above)
            d = span / steps
            o = -(lowest + np.float32(below) * d)
            consider(d, steps * inverse_span, o if signed else np.maximum(o, np.float32(0)))
    consider(best_d, reciprocal_or_zero(best_d), best_o)
    return best_d, best_o


def search_scale_min_block(name: str, x: Float32, w: Float32, is_weighted: bool) -> Blocks:
    """Blocks of Q4_1 and Q5_1 from x, w [32, n]."""
    last = SCALE_MIN_LAST[name]
    d, o = best_scale_offset(x, w, last, is_weighted, signed=True)
    d, m = to_half(d), to_half(-o)
    q = np.clip(np.rint((x - m) * reciprocal_or_zero(d)), np.float32(0), np.float32(last))
    return PACK_SCALE_MIN[name](d, m, q.T.astype(np.uint8))
