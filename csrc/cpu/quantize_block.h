/* Searching one block (or sub-block) a lane; localcoder/quants/search_block.py, operation by operation.
 *
 * x and w are arrays of k vectors, one element of every lane's block each; w is NULL where all weights are one. */
#ifndef LC_QUANTIZE_BLOCK_H
#define LC_QUANTIZE_BLOCK_H

#include <stddef.h>

#include "quantize_lanes.h"
#include "quantize_tables.h"

/* The level nearest to each t; halfway between uneven levels takes the lower one. */
LC_INLINE lc_vf lc_nearest(lc_levels levels, lc_vf t) {
    if (!levels.is_table) return lc_clamp(lc_rint(t), (float)levels.first, (float)levels.last);
    lc_vf q = lc_splat(LC_KVALUES[0]);
    for (int i = 0; i < 15; i++) /* small integers: exact in any order */
        q += lc_where_less(lc_splat((LC_KVALUES[i] + LC_KVALUES[i + 1]) / 2), t,
                           lc_splat(LC_KVALUES[i + 1] - LC_KVALUES[i]), lc_splat(0));
    return q;
}

/* Levels -> codes counted from 0. */
LC_INLINE lc_vu lc_codes(lc_levels levels, lc_vf q) {
    if (!levels.is_table) return (lc_vu)__builtin_convertvector(q - (float)levels.first, lc_vi);
    lc_vu codes = {0};
    for (int i = 1; i < 16; i++) codes -= (lc_vu)(q >= lc_splat(LC_KVALUES[i])); /* true is -1 */
    return codes;
}

/* The (first) value of largest magnitude. */
LC_INLINE lc_vf lc_extreme(const lc_vf *x, int k) {
    lc_vf largest = x[0];
    for (int j = 1; j < k; j++) largest = lc_where_less(lc_abs(largest), lc_abs(x[j]), x[j], largest);
    return largest;
}

LC_INLINE lc_vf lc_times(const lc_vf *w, int j, lc_vf a) {
    if (w != NULL) a *= w[j];
    return a;
}

/* Σw(x - dq)², with the best codes for step d. */
LC_INLINE lc_vf lc_squared_error(const lc_vf *x, const lc_vf *w, int k, lc_levels levels, lc_vf d) {
    const lc_vf inverse = lc_reciprocal_or_zero(d);
    lc_vf error = {0};
    for (int j = 0; j < k; j++) {
        const lc_vf rest = x[j] - d * lc_nearest(levels, x[j] * inverse);
        error += lc_times(w, j, rest) * rest;
    }
    return error;
}

typedef struct lc_best_step {
    lc_vf error, step;
} lc_best_step;

LC_INLINE void lc_consider_step(lc_best_step *best, const lc_vf *x, const lc_vf *w, int k, lc_levels levels,
                                lc_vf step, lc_vf inverse) {
    lc_vf rq = {0}, qq = {0}, rr = {0};
    for (int j = 0; j < k; j++) {
        const lc_vf t = x[j] * inverse, q = lc_nearest(levels, t), r = t - q, wq = lc_times(w, j, q);
        rq += wq * r;
        qq += wq * q;
        rr += lc_times(w, j, r) * r;
    }
    const lc_vf change = lc_ratio_or_zero(rq, qq), error = (rr - change * rq) * (step * step);
    best->step = lc_where_less(error, best->error, step * (1.0f + change), best->step);
    best->error = lc_where_less(error, best->error, error, best->error);
}

/* The step (not yet rounded to half precision) of least squared error. */
LC_INLINE lc_vf lc_best_scale(const lc_vf *x, const lc_vf *w, int k, const lc_scale_search *search) {
    const lc_vf largest = lc_extreme(x, k), inverse_largest = lc_reciprocal_or_zero(largest);
    const int weighted = w != NULL;
    lc_best_step best = {lc_splat(__builtin_inff()), lc_splat(0)};
    for (int i = 0; i < search->n_anchors[weighted]; i++) {
        const float anchor = search->anchors[weighted][i];
        lc_consider_step(&best, x, w, k, search->levels, largest / anchor, anchor * inverse_largest);
    }
    lc_consider_step(&best, x, w, k, search->levels, best.step, lc_reciprocal_or_zero(best.step));
    return best.step;
}

/* The half-precision number `offset` places after that of d in the order of their bits (away from zero), or d's where
 * that is not a finite number. d itself may be smaller than all of them. */
LC_INLINE lc_vf lc_half_beside(lc_vf d, int offset) {
    const lc_vf half = lc_to_half(d);
    if (offset == 0) return half;
    const lc_vf magnitude = lc_abs(half), coarse = lc_splat(0x1p-14f);
    const lc_vf normal = (lc_vf)((lc_vu)magnitude + (uint32_t)(offset * 0x2000));
    const lc_vf moved = lc_where_less(coarse, magnitude, normal, magnitude + (float)offset * 0x1p-24f);
    const lc_vf step = (lc_vf)((lc_vu)moved | ((lc_vu)half & 0x80000000u));
    const lc_vf is_number = lc_where_less(moved, lc_splat(0), lc_splat(0), lc_splat(1)) * /* below zero: a NaN's bits */
                            lc_where_less(lc_splat(65504.0f), moved, lc_splat(0), lc_splat(1)) *
                            lc_where_less(lc_splat(0), lc_abs(d), lc_splat(1), lc_splat(0));
    return lc_where_less(lc_splat(0), is_number, step, half);
}

/* The best half-precision step at or beside d. */
LC_INLINE lc_vf lc_best_half(const lc_vf *x, const lc_vf *w, int k, lc_levels levels, lc_vf d) {
    lc_best_step best = {lc_splat(__builtin_inff()), lc_to_half(d)};
    for (int i = 0; i < LC_N_HALF_STEPS; i++) {
        const lc_vf step = lc_half_beside(d, LC_HALF_STEPS[i]), error = lc_squared_error(x, w, k, levels, step);
        best.step = lc_where_less(error, best.error, step, best.step);
        best.error = lc_where_less(error, best.error, error, best.error);
    }
    return best.step;
}

typedef struct lc_scale_offset {
    lc_vf d, o;
} lc_scale_offset;

typedef struct lc_best_offset {
    lc_vf error;
    lc_scale_offset at;
} lc_best_offset;

LC_INLINE void lc_consider_offset(lc_best_offset *best, const lc_vf *x, const lc_vf *w, int k, int last,
                                  bool is_signed, lc_vf sum_w, lc_vf d, lc_vf inverse, lc_vf o) {
    lc_vf sr = {0}, sq = {0}, srr = {0}, srq = {0}, sqq = {0};
    for (int j = 0; j < k; j++) {
        const lc_vf t = (x[j] + o) * inverse, q = lc_clamp(lc_rint(t), 0, (float)last), r = t - q;
        const lc_vf wr = lc_times(w, j, r), wq = lc_times(w, j, q);
        sr += wr;
        sq += wq;
        srr += wr * r;
        srq += wr * q;
        sqq += wq * q;
    }
    const lc_vf mean_q = lc_ratio_or_zero(sq, sum_w), mean_r = lc_ratio_or_zero(sr, sum_w);
    const lc_vf covariance = srq - mean_q * sr;
    lc_vf stretch = lc_ratio_or_zero(covariance, sqq - mean_q * sq);
    const lc_vf shift = mean_r - stretch * mean_q;
    lc_vf error = srr - mean_r * sr - stretch * covariance, new_o = o - shift * d;
    if (!is_signed) { /* where the offset would be negative: offset 0 and the best scale for that */
        const lc_vf zero = lc_splat(0), offset = o * inverse, rq = srq - offset * sq;
        const lc_vf stretch_alone = lc_ratio_or_zero(rq, sqq);
        const lc_vf error_alone = srr - offset * (sr + sr - offset * sum_w) - stretch_alone * rq;
        stretch = lc_where_less(new_o, zero, stretch_alone, stretch);
        error = lc_where_less(new_o, zero, error_alone, error);
        new_o = lc_where_less(new_o, zero, zero, new_o);
    }
    error *= d * d;
    best->at.d = lc_where_less(error, best->error, d * (1.0f + stretch), best->at.d);
    best->at.o = lc_where_less(error, best->error, new_o, best->at.o);
    best->error = lc_where_less(error, best->error, error, best->error);
}

/* x ≈ d·q - o with q in 0 ... last and least squared error; unless is_signed, o is not negative. */
LC_INLINE lc_scale_offset lc_best_scale_offset(const lc_vf *x, const lc_vf *w, int k, const lc_offset_search *search,
                                               bool is_signed) {
    const lc_vf zero = lc_splat(0);
    lc_vf lowest = x[0], highest = x[0], sum_w = w == NULL ? lc_splat((float)k) : w[0];
    for (int j = 1; j < k; j++) {
        lowest = lc_min(x[j], lowest);
        highest = lc_max(x[j], highest);
        if (w != NULL) sum_w += w[j];
    }
    if (!is_signed) lowest = lc_min(zero, lowest);
    const lc_vf span = highest - lowest, inverse_span = lc_reciprocal_or_zero(span);
    lc_best_offset best = {lc_splat(__builtin_inff()), {zero, -lowest}};
    const int n_margins = search->n_margins[w != NULL];
    for (int i = 0; i < n_margins; i++) {
        for (int j = 0; j < n_margins; j++) {
            const float below = (float)search->margins[i];
            const float steps = (float)(search->last + search->margins[i] + search->margins[j]);
            const lc_vf d = span / steps, o = -(lowest + below * d);
            lc_consider_offset(&best, x, w, k, search->last, is_signed, sum_w, d, steps * inverse_span,
                               is_signed ? o : lc_max(zero, o));
        }
    }
    lc_consider_offset(&best, x, w, k, search->last, is_signed, sum_w, best.at.d, lc_reciprocal_or_zero(best.at.d),
                       best.at.o);
    return best.at;
}

#endif
