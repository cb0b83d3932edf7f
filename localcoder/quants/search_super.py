"""Searching a super-block: integer sub-block scales (and minimums) under a half-precision d (and dmin).

1. Every sub-block is searched by itself (search_block.py).
2. For a few values of d (and dmin) that put the largest sub-block scale near the end of its integer range, every
   sub-block takes the better of the two integers around its own scale, judged by its squared error with the codes
   rounded anew. The value of least total error wins.
3. Rounds of refinement: least squares for d (and dmin) with everything else fixed, then every sub-block tries its
   neighbouring integers again. A round counts only if the total error falls.

All errors are those of the values as they will be read back: half-precision d, integer scales.

Arrays are [sub-blocks, elements of one, super-blocks] for values, [sub-blocks, super-blocks] for scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from localcoder.quants.iq4 import pack_iq4_xs
from localcoder.quants.k_quants import pack_q2_k, pack_q3_k, pack_q4_k, pack_q5_k, pack_q6_k
from localcoder.quants.rounding import reciprocal_or_zero
from localcoder.quants.search_block import (
    SIGNED_BLOCKS,
    Levels,
    ScaleSearch,
    best_scale,
    best_scale_offset,
    extreme,
    growing,
    ratio_or_zero,
    spread,
    squared_error,
    to_half,
    total,
)
from localcoder.quants.spec import Blocks, Codes, Float32


def _all(x: Float32) -> Float32:
    """Sum over a whole super-block: [sub-blocks, k, n] -> [n]."""
    return total(total(x))


def _sub_blocks(x: Float32, n_sub: int) -> Float32:
    """[256, n] -> [n_sub, 256 / n_sub, n]."""
    return x.reshape(n_sub, x.shape[0] // n_sub, x.shape[1])


def _flat(codes: Codes) -> Codes:
    """[n_sub, k, n] -> [n, 256]."""
    return codes.reshape(-1, codes.shape[-1]).T


@dataclass(frozen=True)
class SignedSuper:
    """x = d·s·q with signed integers s and levels q.

    Attributes:
        n_sub: sub-blocks.
        block: search of a sub-block's own scale.
        scales: range of s.
        anchors: values of s that the largest sub-block scale is put on, one candidate d each.
    """

    n_sub: int
    block: ScaleSearch
    scales: Levels
    anchors: tuple[int, ...]


_SIX_BITS = Levels(-32, 31)
_NEAR_32 = (-32, 31, -30, 29, -28)
SIGNED = {
    "q3_k": SignedSuper(
        16,
        ScaleSearch(Levels(-4, 3), spread(-4.6, -2.2, 0.3) + spread(2, 3.8, 0.3), growing(2, 1.13, 12)),
        _SIX_BITS,
        _NEAR_32,
    ),
    "q6_k": SignedSuper(
        16,
        ScaleSearch(Levels(-32, 31), spread(-32.7, -25, 0.7) + spread(25, 31.3, 0.7), growing(24, 1.025, 28)),
        Levels(-128, 127),
        (-128, 127, -124, -120, 120, -112),
    ),
    "iq4_xs": SignedSuper(8, SIGNED_BLOCKS["iq4_nl"], _SIX_BITS, _NEAR_32),
}
PACK_SIGNED = {"q3_k": pack_q3_k, "q6_k": pack_q6_k, "iq4_xs": pack_iq4_xs}
SIGNED_ROUNDS = 1


def search_signed_super(name: str, x: Float32, w: Float32, is_weighted: bool) -> Blocks:
    """Blocks of Q3_K, Q6_K and IQ4_XS from x, w [256, n]."""
    spec = SIGNED[name]
    x, w = _sub_blocks(x, spec.n_sub), _sub_blocks(w, spec.n_sub)
    d, scales = _fit_signed(x, w, spec, is_weighted)
    q = spec.block.levels.nearest(x * reciprocal_or_zero(d * scales)[:, None])
    codes = _flat(spec.block.levels.codes(q))
    return PACK_SIGNED[name](d, stored_scales(name, scales.T), codes)


def stored_scales(name: str, scales: Float32) -> Codes:
    """Signed integer scales [n, n_sub] as the format stores them."""
    return scales.astype(np.int8) if name == "q6_k" else SIGNED[name].scales.codes(scales)


def _fit_signed(x: Float32, w: Float32, spec: SignedSuper, is_weighted: bool) -> tuple[Float32, Float32]:
    """Half-precision d [n] and integer scales [n_sub, n]."""
    own = best_scale(x, w, spec.block, is_weighted)
    largest = extreme(own)
    best_error = np.full_like(largest, np.inf)
    best_d, best_scales = np.zeros_like(largest), np.zeros_like(own)

    def consider(d: Float32, around: Float32, offsets: tuple[int, ...]) -> None:
        nonlocal best_error, best_d, best_scales
        error = np.full_like(own, np.inf)
        scales = np.zeros_like(own)
        for offset in offsets:
            trial = spec.scales.nearest(around + np.float32(offset))
            trial_error = squared_error(x, w, d * trial, spec.block.levels)
            better = trial_error < error
            error, scales = np.where(better, trial_error, error), np.where(better, trial, scales)
        whole = total(error)
        better = whole < best_error
        best_error, best_d = np.where(better, whole, best_error), np.where(better, d, best_d)
        best_scales = np.where(better, scales, best_scales)

    for anchor in spec.anchors:
        d = to_half(largest / np.float32(anchor))
        consider(d, np.floor(own * reciprocal_or_zero(d)), (0, 1))
    for _ in range(SIGNED_ROUNDS):
        step = (best_d * best_scales)[:, None]
        p = best_scales[:, None] * spec.block.levels.nearest(x * reciprocal_or_zero(step))
        wp = w * p
        change = ratio_or_zero(_all(wp * (x - best_d * p)), _all(wp * p))
        consider(to_half(best_d + change), best_scales, (0, -1, 1))
    return best_d, best_scales


@dataclass(frozen=True)
class ScaleMinSuper:
    """x = d·s·q - dmin·m with unsigned integers s, m and codes q.

    Attributes:
        n_sub: sub-blocks.
        last: largest code.
        last_scale: largest s and m.
    """

    n_sub: int
    last: int
    last_scale: int


SCALE_MIN = {"q2_k": ScaleMinSuper(16, 3, 15), "q4_k": ScaleMinSuper(8, 15, 63), "q5_k": ScaleMinSuper(8, 31, 63)}
PACK_SCALE_MIN = {"q2_k": pack_q2_k, "q4_k": pack_q4_k, "q5_k": pack_q5_k}
# Fractions of the largest integer that the largest scale and the largest minimum of a super-block are put on.
SCALE_ANCHORS = (1.0, 0.97, 0.92, 0.87)
MIN_ANCHORS = (1.0, 0.94)
SCALE_MIN_ROUNDS = 2
LEAST_DETERMINANT = np.float32(1e-4)  # relative; below it d and dmin cannot be told apart


def search_scale_min_super(name: str, x: Float32, w: Float32, is_weighted: bool) -> Blocks:
    """Blocks of Q2_K, Q4_K and Q5_K from x, w [256, n]."""
    spec = SCALE_MIN[name]
    x, w = _sub_blocks(x, spec.n_sub), _sub_blocks(w, spec.n_sub)
    fit = _ScaleMinFit(x, w, spec, is_weighted)
    q = fit.codes(fit.d * fit.scales, fit.dmin * fit.mins)
    scales, mins = fit.scales.T.astype(np.uint8), fit.mins.T.astype(np.uint8)
    return PACK_SCALE_MIN[name](fit.d, fit.dmin, scales, mins, _flat(q.astype(np.uint8)))


class _ScaleMinFit:
    """The search for d, dmin [n] (half precision) and integers scales, mins [n_sub, n]."""

    def __init__(self, x: Float32, w: Float32, spec: ScaleMinSuper, is_weighted: bool) -> None:
        self._x, self._w, self._spec = x, w, spec
        own_d, own_o = best_scale_offset(x, w, spec.last, is_weighted, signed=False)
        largest_d, largest_o = own_d.max(axis=0), own_o.max(axis=0)
        self._error = np.full_like(largest_d, np.inf)
        self.d, self.dmin = np.zeros_like(largest_d), np.zeros_like(largest_d)
        self.scales, self.mins = np.zeros_like(own_d), np.zeros_like(own_d)
        for scale_anchor in SCALE_ANCHORS:
            d = to_half(largest_d / np.float32(scale_anchor * spec.last_scale))
            scales = np.floor(own_d * reciprocal_or_zero(d))
            for min_anchor in MIN_ANCHORS:
                dmin = to_half(largest_o / np.float32(min_anchor * spec.last_scale))
                mins = np.floor(own_o * reciprocal_or_zero(dmin))
                self._keep(d, dmin, *self._best_of(d, dmin, scales, mins, ((0, 0), (0, 1), (1, 0), (1, 1))))
        for _ in range(SCALE_MIN_ROUNDS):
            d, dmin = self._least_squares()
            _, scales, mins = self._best_of(d, dmin, self.scales, self.mins, ((0, 0), (-1, 0), (1, 0)))
            self._keep(d, dmin, *self._best_of(d, dmin, scales, mins, ((0, 0), (0, -1), (0, 1))))

    def codes(self, step: Float32, offset: Float32) -> Float32:
        """Codes for sub-block steps and offsets [n_sub, n]."""
        t = (self._x + offset[:, None]) * reciprocal_or_zero(step)[:, None]
        return np.clip(np.rint(t), np.float32(0), np.float32(self._spec.last))

    def _best_of(
        self, d: Float32, dmin: Float32, scales: Float32, mins: Float32, offsets: tuple[tuple[int, int], ...]
    ) -> tuple[Float32, Float32, Float32]:
        """Of the integers beside (scales, mins), those of least error: (error, scales, mins)."""
        best = (np.full_like(scales, np.inf), scales, mins)
        for scale_offset, min_offset in offsets:
            s = np.clip(scales + np.float32(scale_offset), np.float32(0), np.float32(self._spec.last_scale))
            m = np.clip(mins + np.float32(min_offset), np.float32(0), np.float32(self._spec.last_scale))
            step, offset = d * s, dmin * m
            rest = self._x - (step[:, None] * self.codes(step, offset) - offset[:, None])
            trial = (total(self._w * rest * rest), s, m)
            better = trial[0] < best[0]
            best = (np.where(better, trial[0], best[0]), np.where(better, s, best[1]), np.where(better, m, best[2]))
        return best

    def _keep(self, d: Float32, dmin: Float32, error: Float32, scales: Float32, mins: Float32) -> None:
        """Takes over the super-blocks whose total error is smaller now."""
        whole = total(error)
        better = whole < self._error
        self._error = np.where(better, whole, self._error)
        self.d, self.dmin = np.where(better, d, self.d), np.where(better, dmin, self.dmin)
        self.scales, self.mins = np.where(better, scales, self.scales), np.where(better, mins, self.mins)

    def _least_squares(self) -> tuple[Float32, Float32]:
        """Half-precision d and dmin for the present integers, from the 2 x 2 system in what they leave over."""
        step, offset = self.d * self.scales, self.dmin * self.mins
        q = self.codes(step, offset)
        rest = self._x - (step[:, None] * q - offset[:, None])
        p, m = q * self.scales[:, None], np.broadcast_to(self.mins[:, None], q.shape)
        wp, wm = self._w * p, self._w * m
        pp, pm, mm, rp, rm = _all(wp * p), _all(wp * m), _all(wm * m), _all(wp * rest), _all(wm * rest)
        determinant = pp * mm - pm * pm
        solvable = determinant > LEAST_DETERMINANT * (pp * mm)
        safe = np.where(solvable, determinant, np.float32(1))
        change_d = np.where(solvable, (rp * mm - rm * pm) / safe, ratio_or_zero(rp, pp))
        change_dmin = np.where(solvable, (rp * pm - rm * pp) / safe, np.float32(0))
        return to_half(self.d + change_d), to_half(np.maximum(self.dmin + change_dmin, np.float32(0)))
