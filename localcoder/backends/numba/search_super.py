"""Searching the integer scales of super-blocks: `quants.search_super`, operation by operation.

A super-block is a view of [n_sub, k] values; scales and minimums are float32 [n_sub] while they are searched for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from localcoder.backends.numba.jit import kernel
from localcoder.backends.numba.rows import reciprocal_or_zero
from localcoder.backends.numba.search_block import (
    F32Row,
    best_scale,
    best_scale_offset,
    clipped,
    code_of,
    extreme,
    nearest,
    ratio_or_zero,
    squared_error,
    to_half,
)
from localcoder.quants.search_super import LEAST_DETERMINANT

_MAGIC = np.float32(12582912.0)  # 1.5 · 2^23: adding it rounds to an integer, halves to even
_ZERO, _INFINITY = np.float32(0), np.float32(np.inf)
_ABOVE, _BESIDE = np.array([0, 1], np.float32), np.array([0, -1, 1], np.float32)
_BOTH_ABOVE = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
_SCALE_BESIDE = np.array([[0, 0], [-1, 0], [1, 0]], np.float32)
_MIN_BESIDE = np.array([[0, 0], [0, -1], [0, 1]], np.float32)


@kernel
def _choose_scales(
    x: Any, w: Any, d: Any, around: F32Row, offsets: F32Row, scale_range: F32Row, levels: F32Row, table: F32Row | None,
    scales: F32Row,
) -> Any:  # fmt: skip
    """Fills in the best of the integers beside `around`; returns the total error."""
    whole = _ZERO
    for sub in range(len(x)):
        error = _INFINITY
        scales[sub] = _ZERO
        for offset in offsets:
            trial = clipped(around[sub] + offset, scale_range[0], scale_range[1])
            trial_error = squared_error(x[sub], w[sub], d * trial, levels[0], levels[1], table)
            if trial_error < error:
                error, scales[sub] = trial_error, trial
        whole += error
    return whole


@kernel
def _refined_d(x: Any, w: Any, d: Any, scales: F32Row, levels: F32Row, table: F32Row | None) -> Any:
    """Least squares for d with codes and integer scales fixed, in half precision."""
    rp, pp = _ZERO, _ZERO
    for sub in range(len(x)):
        inverse = reciprocal_or_zero(d * scales[sub])
        sub_rp, sub_pp = _ZERO, _ZERO
        for j in range(x.shape[1]):
            p = scales[sub] * nearest(x[sub, j] * inverse, levels[0], levels[1], table)
            wp = w[sub, j] * p
            sub_rp += wp * (x[sub, j] - d * p)
            sub_pp += wp * p
        rp += sub_rp
        pp += sub_pp
    return to_half(d + ratio_or_zero(rp, pp))


@kernel
def signed_supers(
    x: Any, w: Any, anchors: F32Row, levels: F32Row, table: F32Row | None, scale_range: F32Row, scale_anchors: F32Row,
    n_rounds: int, d: F32Row, scales: Any, codes: Any,
) -> None:  # fmt: skip
    """Super-blocks x [n, n_sub, k], their weights in turn w [m, n_sub, k] -> d [n], scales [n, n_sub], codes [n, 256].

    Codes are counted from 0; scales are not.
    """
    n_sub = x.shape[1]
    own, around, trial = np.empty(n_sub, np.float32), np.empty(n_sub, np.float32), np.empty(n_sub, np.float32)
    best = np.empty(n_sub, np.float32)
    for i in range(len(x)):
        values, weights = x[i], w[i % len(w)]
        for sub in range(n_sub):
            own[sub] = best_scale(values[sub], weights[sub], anchors, levels[0], levels[1], table)
        largest = extreme(own)
        best_error, best_d = _INFINITY, _ZERO
        best[:] = _ZERO
        for anchor in scale_anchors:
            new_d = to_half(largest / anchor)
            inverse = reciprocal_or_zero(new_d)
            for sub in range(n_sub):
                around[sub] = np.floor(own[sub] * inverse)
            error = _choose_scales(values, weights, new_d, around, _ABOVE, scale_range, levels, table, trial)
            if error < best_error:
                best_error, best_d = error, new_d
                best[:] = trial
        for _ in range(n_rounds):
            new_d = _refined_d(values, weights, best_d, best, levels, table)
            error = _choose_scales(values, weights, new_d, best, _BESIDE, scale_range, levels, table, trial)
            if error < best_error:
                best_error, best_d = error, new_d
                best[:] = trial
        d[i] = best_d
        for sub in range(n_sub):
            scales[i, sub] = best[sub]
            inverse = reciprocal_or_zero(best_d * best[sub])
            for j in range(x.shape[2]):
                q = nearest(values[sub, j] * inverse, levels[0], levels[1], table)
                codes[i, sub * x.shape[2] + j] = code_of(q, levels[0], table)


@kernel
def _code(x: Any, offset: Any, inverse: Any, last: Any) -> Any:
    t = (x + offset) * inverse
    return clipped((t + _MAGIC) - _MAGIC, _ZERO, last)


@kernel
def _choose_integers(
    x: Any, w: Any, d: Any, dmin: Any, scales: F32Row, mins: F32Row, offsets: Any, last: Any, last_scale: Any
) -> Any:
    """Replaces scales and mins by the best of the integers beside them; returns the total error."""
    whole = _ZERO
    for sub in range(len(x)):
        scale, minimum, error = scales[sub], mins[sub], _INFINITY
        for i in range(len(offsets)):
            s = clipped(scale + offsets[i, 0], _ZERO, last_scale)
            m = clipped(minimum + offsets[i, 1], _ZERO, last_scale)
            step, offset = d * s, dmin * m
            inverse = reciprocal_or_zero(step)
            trial = _ZERO
            for j in range(x.shape[1]):
                rest = x[sub, j] - (step * _code(x[sub, j], offset, inverse, last) - offset)
                trial += w[sub, j] * rest * rest
            if trial < error:
                error, scales[sub], mins[sub] = trial, s, m
        whole += error
    return whole


@kernel
def _least_squares(x: Any, w: Any, d: Any, dmin: Any, scales: F32Row, mins: F32Row, last: Any) -> tuple[Any, Any]:
    """Half-precision d and dmin for the present integers, from the 2 x 2 system in what they leave over."""
    pp, pm, mm, rp, rm = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for sub in range(len(x)):
        m, step, offset = mins[sub], d * scales[sub], dmin * mins[sub]
        inverse = reciprocal_or_zero(step)
        sub_pp, sub_pm, sub_mm, sub_rp, sub_rm = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
        for j in range(x.shape[1]):
            q = _code(x[sub, j], offset, inverse, last)
            rest = x[sub, j] - (step * q - offset)
            p = q * scales[sub]
            wp, wm = w[sub, j] * p, w[sub, j] * m
            sub_pp += wp * p
            sub_pm += wp * m
            sub_mm += wm * m
            sub_rp += wp * rest
            sub_rm += wm * rest
        pp, pm, mm, rp, rm = pp + sub_pp, pm + sub_pm, mm + sub_mm, rp + sub_rp, rm + sub_rm
    determinant = pp * mm - pm * pm
    if determinant > LEAST_DETERMINANT * (pp * mm):
        change_d, change_dmin = (rp * mm - rm * pm) / determinant, (rp * pm - rm * pp) / determinant
    else:
        change_d, change_dmin = ratio_or_zero(rp, pp), _ZERO
    new_dmin = dmin + change_dmin
    return to_half(d + change_d), to_half(_ZERO if new_dmin < _ZERO else new_dmin)


@kernel
def scale_min_supers(
    x: Any, w: Any, margins: Any, last: Any, last_scale: Any, scale_anchors: Any, min_anchors: Any, n_rounds: int,
    d: F32Row, dmin: F32Row, scales: Any, mins: Any, codes: Any,
) -> None:  # fmt: skip
    """Super-blocks x [n, n_sub, k], their weights in turn -> d, dmin [n], scales, mins [n, n_sub], codes [n, 256]."""
    n_sub = x.shape[1]
    own_d, own_o = np.empty(n_sub, np.float32), np.empty(n_sub, np.float32)
    s, m = np.empty(n_sub, np.float32), np.empty(n_sub, np.float32)
    best_s, best_m = np.empty(n_sub, np.float32), np.empty(n_sub, np.float32)
    for i in range(len(x)):
        values, weights = x[i], w[i % len(w)]
        largest_d, largest_o = -_INFINITY, -_INFINITY
        for sub in range(n_sub):
            own_d[sub], own_o[sub] = best_scale_offset(values[sub], weights[sub], margins, last, False)
            largest_d = own_d[sub] if own_d[sub] > largest_d else largest_d
            largest_o = own_o[sub] if own_o[sub] > largest_o else largest_o
        best_error, best_d, best_dmin = _INFINITY, _ZERO, _ZERO
        best_s[:] = _ZERO
        best_m[:] = _ZERO
        for scale_anchor in scale_anchors:
            new_d = to_half(largest_d / scale_anchor)
            inverse_d = reciprocal_or_zero(new_d)
            for min_anchor in min_anchors:
                new_dmin = to_half(largest_o / min_anchor)
                inverse_dmin = reciprocal_or_zero(new_dmin)
                for sub in range(n_sub):
                    s[sub] = np.floor(own_d[sub] * inverse_d)
                    m[sub] = np.floor(own_o[sub] * inverse_dmin)
                error = _choose_integers(values, weights, new_d, new_dmin, s, m, _BOTH_ABOVE, last, last_scale)
                if error < best_error:
                    best_error, best_d, best_dmin = error, new_d, new_dmin
                    best_s[:] = s
                    best_m[:] = m
        for _ in range(n_rounds):
            new_d, new_dmin = _least_squares(values, weights, best_d, best_dmin, best_s, best_m, last)
            s[:] = best_s
            m[:] = best_m
            _choose_integers(values, weights, new_d, new_dmin, s, m, _SCALE_BESIDE, last, last_scale)
            error = _choose_integers(values, weights, new_d, new_dmin, s, m, _MIN_BESIDE, last, last_scale)
            if error < best_error:
                best_error, best_d, best_dmin = error, new_d, new_dmin
                best_s[:] = s
                best_m[:] = m
        d[i], dmin[i] = best_d, best_dmin
        for sub in range(n_sub):
            scales[i, sub], mins[i, sub] = np.uint8(np.int32(best_s[sub])), np.uint8(np.int32(best_m[sub]))
            offset, inverse = best_dmin * best_m[sub], reciprocal_or_zero(best_d * best_s[sub])
            for j in range(x.shape[2]):
                code = _code(values[sub, j], offset, inverse, last)
                codes[i, sub * x.shape[2] + j] = np.uint8(np.int32(code))
