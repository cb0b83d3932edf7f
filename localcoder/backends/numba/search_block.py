"""Searching the scale of one block (or sub-block): `quants.search_block`, operation by operation.

A block is a view of k values, its weights another. `first` and `last` (or `levels`, both) bound the integers that codes
stand for; `table` has the uneven ones of IQ4 instead, and is None elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from localcoder.backends.numba.halves import f16_to_f32, f32_to_f16
from localcoder.backends.numba.jit import kernel
from localcoder.backends.numba.rows import reciprocal_or_zero
from localcoder.quants.search_block import LARGEST_HALF

F32Row = NDArray[np.float32]

_MAGIC = np.float32(12582912.0)  # 1.5 · 2^23: adding it rounds to an integer, halves to even
_ZERO, _ONE, _INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)


@kernel
def clipped(q: Any, first: Any, last: Any) -> Any:
    """q within first ... last; NaN stays NaN."""
    q = first if q < first else q
    return last if q > last else q


@kernel
def nearest(t: Any, first: Any, last: Any, table: F32Row | None) -> Any:
    """The level nearest to t."""
    if table is not None:
        q = table[0]
        for i in range(len(table) - 1):
            q = table[i + 1] if t > (table[i] + table[i + 1]) / np.float32(2) else q
        return q
    return clipped((t + _MAGIC) - _MAGIC, first, last)


@kernel
def code_of(q: Any, first: Any, table: F32Row | None) -> Any:
    """A level's code, counted from 0."""
    if table is not None:
        code = 0
        for i in range(1, len(table)):
            code += 1 if q >= table[i] else 0
        return np.uint8(code)
    return np.uint8(np.int32(q - first))


@kernel
def to_half(x: Any) -> Any:
    """The nearest finite half-precision value; zero is never negative."""
    return np.float32(f16_to_f32(f32_to_f16(clipped(x, -LARGEST_HALF, LARGEST_HALF)))) + _ZERO


@kernel
def ratio_or_zero(a: Any, b: Any) -> Any:
    return a / b if b > _ZERO else _ZERO


@kernel
def extreme(x: F32Row) -> Any:
    """The (first) value of largest magnitude."""
    largest = x[0]
    for j in range(1, len(x)):
        largest = x[j] if np.abs(x[j]) > np.abs(largest) else largest
    return largest


@kernel
def squared_error(x: F32Row, w: F32Row, d: Any, first: Any, last: Any, table: F32Row | None) -> Any:
    """Σw(x - dq)², with the best codes for step d."""
    inverse = reciprocal_or_zero(d)
    error = _ZERO
    for j in range(len(x)):
        rest = x[j] - d * nearest(x[j] * inverse, first, last, table)
        error += w[j] * rest * rest
    return error


@kernel
def _improved(x: F32Row, w: F32Row, step: Any, inverse: Any, first: Any, last: Any, table: F32Row | None) -> Any:
    """(squared error, best step for the codes that `step` gives)."""
    rq, qq, rr = _ZERO, _ZERO, _ZERO
    for j in range(len(x)):
        t = x[j] * inverse
        q = nearest(t, first, last, table)
        r = t - q
        wq = w[j] * q
        rq += wq * r
        qq += wq * q
        rr += w[j] * r * r
    change = ratio_or_zero(rq, qq)
    return (rr - change * rq) * (step * step), step * (_ONE + change)


@kernel
def best_scale(x: F32Row, w: F32Row, anchors: F32Row, first: Any, last: Any, table: F32Row | None) -> Any:
    """The step (not yet rounded to half precision) of least squared error."""
    largest = extreme(x)
    inverse_largest = reciprocal_or_zero(largest)
    best_error, best = _INFINITY, _ZERO
    for anchor in anchors:
        error, step = _improved(x, w, largest / anchor, anchor * inverse_largest, first, last, table)
        if error < best_error:
            best_error, best = error, step
    error, step = _improved(x, w, best, reciprocal_or_zero(best), first, last, table)
    return step if error < best_error else best


@kernel
def _half_beside(d: Any, offset: int) -> Any:
    """The half-precision number `offset` places after d's, or d's where that is not finite."""
    half = f32_to_f16(to_half(d))
    shifted = np.uint16((np.int32(half) + np.int32(offset)) & 0xFFFF)
    if d != _ZERO and (shifted & 0x7C00) != 0x7C00:
        half = shifted
    return np.float32(f16_to_f32(half))


@kernel
def best_half(x: F32Row, w: F32Row, d: Any, offsets: Any, first: Any, last: Any, table: F32Row | None) -> Any:
    """The best half-precision step at or beside d."""
    best = to_half(d)
    if len(offsets) == 1:
        return best
    best_error = _INFINITY
    for offset in offsets:
        step = _half_beside(d, offset)
        error = squared_error(x, w, step, first, last, table)
        if error < best_error:
            best_error, best = error, step
    return best


@kernel
def _improved_offset(
    x: F32Row, w: F32Row, sum_w: Any, d: Any, inverse: Any, o: Any, last: Any, is_signed: bool
) -> tuple[Any, Any, Any]:
    """(squared error, best d, best o for the codes that d and o give)."""
    sr, sq, srr, srq, sqq = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for j in range(len(x)):
        t = (x[j] + o) * inverse
        q = clipped((t + _MAGIC) - _MAGIC, _ZERO, last)
        r = t - q
        wr, wq = w[j] * r, w[j] * q
        sr += wr
        sq += wq
        srr += wr * r
        srq += wr * q
        sqq += wq * q
    mean_q, mean_r = ratio_or_zero(sq, sum_w), ratio_or_zero(sr, sum_w)
    covariance = srq - mean_q * sr
    stretch = ratio_or_zero(covariance, sqq - mean_q * sq)
    shift = mean_r - stretch * mean_q
    error = srr - mean_r * sr - stretch * covariance
    new_o = o - shift * d
    if not is_signed and new_o < _ZERO:  # offset 0 and the best scale for that
        offset = o * inverse
        rq = srq - offset * sq
        stretch = ratio_or_zero(rq, sqq)
        error = srr - offset * (sr + sr - offset * sum_w) - stretch * rq
        new_o = _ZERO
    return error * (d * d), d * (_ONE + stretch), new_o


@kernel
def best_scale_offset(x: F32Row, w: F32Row, margins: Any, last: Any, is_signed: bool) -> tuple[Any, Any]:
    """(d, o) of x ≈ d·q - o with q in 0 ... last and least squared error; unless is_signed, o is not negative."""
    lowest, highest, sum_w = x[0], x[0], w[0]
    for j in range(1, len(x)):
        lowest = x[j] if x[j] < lowest else lowest
        highest = x[j] if x[j] > highest else highest
        sum_w += w[j]
    if not is_signed and lowest > _ZERO:
        lowest = _ZERO
    span = highest - lowest
    inverse_span = reciprocal_or_zero(span)
    best_error, best_d, best_o = _INFINITY, _ZERO, -lowest
    for below in margins:
        for above in margins:
            steps = np.float32(np.float64(last) + below + above)
            d = span / steps
            o = -(lowest + np.float32(below) * d)
            if not is_signed and o < _ZERO:
                o = _ZERO
            error, new_d, new_o = _improved_offset(x, w, sum_w, d, steps * inverse_span, o, last, is_signed)
            if error < best_error:
                best_error, best_d, best_o = error, new_d, new_o
    inverse = reciprocal_or_zero(best_d)
    error, new_d, new_o = _improved_offset(x, w, sum_w, best_d, inverse, best_o, last, is_signed)
    if error < best_error:
        best_d, best_o = new_d, new_o
    return best_d, best_o


@kernel
def signed_blocks(
    x: Any, w: Any, anchors: F32Row, offsets: Any, levels: F32Row, table: F32Row | None, d: F32Row, codes: Any
) -> None:
    """Blocks x [n, 32], their weights in turn w [m, 32] -> scales d [n], codes [n, 32] counted from 0."""
    first, last = levels[0], levels[1]
    for i in range(len(x)):
        values, weights = x[i], w[i % len(w)]
        own = best_scale(values, weights, anchors, first, last, table)
        d[i] = best_half(values, weights, own, offsets, first, last, table)
        inverse = reciprocal_or_zero(d[i])
        for j in range(len(values)):
            codes[i, j] = code_of(nearest(values[j] * inverse, first, last, table), first, table)


@kernel
def scale_min_blocks(x: Any, w: Any, margins: Any, last: Any, d: F32Row, m: F32Row, codes: Any) -> None:
    """The same for scales d [n] and minimums m [n]."""
    for i in range(len(x)):
        own_d, own_o = best_scale_offset(x[i], w[i % len(w)], margins, last, True)
        d[i], m[i] = to_half(own_d), to_half(-own_o)
        inverse = reciprocal_or_zero(d[i])
        for j in range(x.shape[1]):
            t = (x[i, j] - m[i]) * inverse
            codes[i, j] = np.uint8(np.int32(clipped((t + _MAGIC) - _MAGIC, _ZERO, last)))
