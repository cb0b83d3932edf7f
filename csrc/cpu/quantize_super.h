/* Searching one super-block a lane; localcoder/quants/search_super.py, operation by operation.
 *
 * x and w are arrays of 256 vectors; w is NULL where all weights are one. */
#ifndef LC_QUANTIZE_SUPER_H
#define LC_QUANTIZE_SUPER_H

#include "quantize_block.h"

enum { LC_SUPER_BLOCK = 256, LC_MAX_SUB = 16 };

LC_INLINE const lc_vf *lc_sub_block(const lc_vf *x, int k, int sub) { return x == NULL ? NULL : x + sub * k; }

typedef struct lc_signed_fit {
    lc_vf error, d;
    lc_vf scales[LC_MAX_SUB];
} lc_signed_fit;

/* Takes step d over where the total error falls: every sub-block has the best of the integers around[sub] + offset. */
LC_INLINE void lc_consider_signed(lc_signed_fit *best, const lc_vf *x, const lc_vf *w, const lc_signed_super *spec,
                                  lc_vf d, const lc_vf *around, const int *offsets, int n_offsets) {
    const int k = LC_SUPER_BLOCK / spec->n_sub;
    lc_vf scales[LC_MAX_SUB], whole = {0};
    for (int sub = 0; sub < spec->n_sub; sub++) {
        lc_vf error = lc_splat(__builtin_inff());
        scales[sub] = lc_splat(0);
        for (int i = 0; i < n_offsets; i++) {
            const lc_vf trial = lc_nearest(spec->scales, around[sub] + (float)offsets[i]);
            const lc_vf trial_error =
                lc_squared_error(lc_sub_block(x, k, sub), lc_sub_block(w, k, sub), k, spec->block->levels, d * trial);
            scales[sub] = lc_where_less(trial_error, error, trial, scales[sub]);
            error = lc_where_less(trial_error, error, trial_error, error);
        }
        whole += error;
    }
    for (int sub = 0; sub < spec->n_sub; sub++)
        best->scales[sub] = lc_where_less(whole, best->error, scales[sub], best->scales[sub]);
    best->d = lc_where_less(whole, best->error, d, best->d);
    best->error = lc_where_less(whole, best->error, whole, best->error);
}

/* Least squares for d with codes and integer scales fixed, in half precision. */
LC_INLINE lc_vf lc_refined_d(const lc_signed_fit *fit, const lc_vf *x, const lc_vf *w, const lc_signed_super *spec) {
    const int k = LC_SUPER_BLOCK / spec->n_sub;
    lc_vf rp = {0}, pp = {0};
    for (int sub = 0; sub < spec->n_sub; sub++) {
        const lc_vf inverse = lc_reciprocal_or_zero(fit->d * fit->scales[sub]);
        lc_vf sub_rp = {0}, sub_pp = {0};
        for (int j = sub * k; j < (sub + 1) * k; j++) {
            const lc_vf p = fit->scales[sub] * lc_nearest(spec->block->levels, x[j] * inverse);
            const lc_vf wp = lc_times(w, j, p);
            sub_rp += wp * (x[j] - fit->d * p);
            sub_pp += wp * p;
        }
        rp += sub_rp;
        pp += sub_pp;
    }
    return lc_to_half(fit->d + lc_ratio_or_zero(rp, pp));
}

/* Half-precision d and integer scales. */
LC_INLINE void lc_fit_signed(lc_signed_fit *best, const lc_vf *x, const lc_vf *w, const lc_signed_super *spec) {
    static const int ABOVE[] = {0, 1}, BESIDE[] = {0, -1, 1};
    const int k = LC_SUPER_BLOCK / spec->n_sub;
    lc_vf own[LC_MAX_SUB], around[LC_MAX_SUB];
    best->error = lc_splat(__builtin_inff());
    best->d = lc_splat(0);
    for (int sub = 0; sub < spec->n_sub; sub++) {
        own[sub] = lc_best_scale(lc_sub_block(x, k, sub), lc_sub_block(w, k, sub), k, spec->block);
        best->scales[sub] = lc_splat(0);
    }
    const lc_vf largest = lc_extreme(own, spec->n_sub);
    for (int i = 0; i < spec->n_anchors; i++) {
        const lc_vf d = lc_to_half(largest / spec->anchors[i]), inverse = lc_reciprocal_or_zero(d);
        for (int sub = 0; sub < spec->n_sub; sub++) around[sub] = lc_floor(own[sub] * inverse);
        lc_consider_signed(best, x, w, spec, d, around, ABOVE, 2);
    }
    for (int round = 0; round < LC_SIGNED_ROUNDS; round++) {
        for (int sub = 0; sub < spec->n_sub; sub++) around[sub] = best->scales[sub];
        lc_consider_signed(best, x, w, spec, lc_refined_d(best, x, w, spec), around, BESIDE, 3);
    }
}

typedef struct lc_scale_min_fit {
    lc_vf error, d, dmin;
    lc_vf scales[LC_MAX_SUB], mins[LC_MAX_SUB];
} lc_scale_min_fit;

/* Codes of the value x for a sub-block's step and offset. */
LC_INLINE lc_vf lc_code(lc_vf x, lc_vf inverse_step, lc_vf offset, int last) {
    return lc_clamp(lc_rint((x + offset) * inverse_step), 0, (float)last);
}

/* Of the integers beside fit's scales and mins, those of least error for its d and dmin; and that error. */
LC_INLINE void lc_choose_integers(lc_scale_min_fit *fit, const lc_vf *x, const lc_vf *w,
                                  const lc_scale_min_super *spec, const int (*offsets)[2], int n_offsets) {
    const int k = LC_SUPER_BLOCK / spec->n_sub;
    const float last = (float)spec->last_scale;
    fit->error = lc_splat(0);
    for (int sub = 0; sub < spec->n_sub; sub++) {
        const lc_vf scale = fit->scales[sub], min = fit->mins[sub];
        lc_vf error = lc_splat(__builtin_inff());
        for (int i = 0; i < n_offsets; i++) {
            const lc_vf s = lc_clamp(scale + (float)offsets[i][0], 0, last);
            const lc_vf m = lc_clamp(min + (float)offsets[i][1], 0, last);
            const lc_vf step = fit->d * s, offset = fit->dmin * m, inverse = lc_reciprocal_or_zero(step);
            lc_vf trial = {0};
            for (int j = sub * k; j < (sub + 1) * k; j++) {
                const lc_vf rest = x[j] - (step * lc_code(x[j], inverse, offset, spec->block.last) - offset);
                trial += lc_times(w, j, rest) * rest;
            }
            fit->scales[sub] = lc_where_less(trial, error, s, fit->scales[sub]);
            fit->mins[sub] = lc_where_less(trial, error, m, fit->mins[sub]);
            error = lc_where_less(trial, error, trial, error);
        }
        fit->error += error;
    }
}

/* Takes `trial` over where its total error is smaller. */
LC_INLINE void lc_keep_better(lc_scale_min_fit *best, const lc_scale_min_fit *trial, int n_sub) {
    const lc_vf before = best->error;
    for (int sub = 0; sub < n_sub; sub++) {
        best->scales[sub] = lc_where_less(trial->error, before, trial->scales[sub], best->scales[sub]);
        best->mins[sub] = lc_where_less(trial->error, before, trial->mins[sub], best->mins[sub]);
    }
    best->d = lc_where_less(trial->error, before, trial->d, best->d);
    best->dmin = lc_where_less(trial->error, before, trial->dmin, best->dmin);
    best->error = lc_where_less(trial->error, before, trial->error, before);
}

/* Half-precision d and dmin for the present integers, from the 2 x 2 system in what they leave over. */
LC_INLINE void lc_solve_scale_min(lc_scale_min_fit *trial, const lc_scale_min_fit *fit, const lc_vf *x,
                                  const lc_vf *w, const lc_scale_min_super *spec) {
    const int k = LC_SUPER_BLOCK / spec->n_sub;
    lc_vf pp = {0}, pm = {0}, mm = {0}, rp = {0}, rm = {0};
    for (int sub = 0; sub < spec->n_sub; sub++) {
        const lc_vf m = fit->mins[sub], step = fit->d * fit->scales[sub], offset = fit->dmin * m;
        const lc_vf inverse = lc_reciprocal_or_zero(step);
        lc_vf sub_pp = {0}, sub_pm = {0}, sub_mm = {0}, sub_rp = {0}, sub_rm = {0};
        for (int j = sub * k; j < (sub + 1) * k; j++) {
            const lc_vf q = lc_code(x[j], inverse, offset, spec->block.last);
            const lc_vf rest = x[j] - (step * q - offset), p = q * fit->scales[sub];
            const lc_vf wp = lc_times(w, j, p), wm = lc_times(w, j, m);
            sub_pp += wp * p;
            sub_pm += wp * m;
            sub_mm += wm * m;
            sub_rp += wp * rest;
            sub_rm += wm * rest;
        }
        pp += sub_pp;
        pm += sub_pm;
        mm += sub_mm;
        rp += sub_rp;
        rm += sub_rm;
    }
    const lc_vf zero = lc_splat(0), determinant = pp * mm - pm * pm, least = LC_LEAST_DETERMINANT * (pp * mm);
    const lc_vf safe = lc_where_less(least, determinant, determinant, lc_splat(1));
    const lc_vf change_d =
        lc_where_less(least, determinant, (rp * mm - rm * pm) / safe, lc_ratio_or_zero(rp, pp));
    const lc_vf change_dmin = lc_where_less(least, determinant, (rp * pm - rm * pp) / safe, zero);
    trial->d = lc_to_half(fit->d + change_d);
    trial->dmin = lc_to_half(lc_max(zero, fit->dmin + change_dmin));
}

/* Half-precision d and dmin, integer scales and mins. */
LC_INLINE void lc_fit_scale_min(lc_scale_min_fit *best, const lc_vf *x, const lc_vf *w,
                                const lc_scale_min_super *spec) {
    static const int ABOVE[][2] = {{0, 0}, {0, 1}, {1, 0}, {1, 1}};
    static const int SCALE_BESIDE[][2] = {{0, 0}, {-1, 0}, {1, 0}}, MIN_BESIDE[][2] = {{0, 0}, {0, -1}, {0, 1}};
    const int k = LC_SUPER_BLOCK / spec->n_sub;
    lc_vf own_d[LC_MAX_SUB], own_o[LC_MAX_SUB], largest_d = lc_splat(0), largest_o = lc_splat(0);
    lc_scale_min_fit trial;
    best->error = lc_splat(__builtin_inff());
    best->d = best->dmin = lc_splat(0);
    for (int sub = 0; sub < spec->n_sub; sub++) {
        const lc_scale_offset own =
            lc_best_scale_offset(lc_sub_block(x, k, sub), lc_sub_block(w, k, sub), k, &spec->block, false);
        own_d[sub] = own.d;
        own_o[sub] = own.o;
        largest_d = sub == 0 ? own.d : lc_max(own.d, largest_d);
        largest_o = sub == 0 ? own.o : lc_max(own.o, largest_o);
        best->scales[sub] = best->mins[sub] = lc_splat(0);
    }
    for (int i = 0; i < LC_N_SCALE_ANCHORS; i++) {
        for (int j = 0; j < LC_N_MIN_ANCHORS; j++) {
            trial.d = lc_to_half(largest_d / (float)(LC_SCALE_ANCHORS[i] * spec->last_scale));
            trial.dmin = lc_to_half(largest_o / (float)(LC_MIN_ANCHORS[j] * spec->last_scale));
            const lc_vf inverse_d = lc_reciprocal_or_zero(trial.d), inverse_dmin = lc_reciprocal_or_zero(trial.dmin);
            for (int sub = 0; sub < spec->n_sub; sub++) {
                trial.scales[sub] = lc_floor(own_d[sub] * inverse_d);
                trial.mins[sub] = lc_floor(own_o[sub] * inverse_dmin);
            }
            lc_choose_integers(&trial, x, w, spec, ABOVE, 4);
            lc_keep_better(best, &trial, spec->n_sub);
        }
    }
    for (int round = 0; round < LC_SCALE_MIN_ROUNDS; round++) {
        trial = *best;
        lc_solve_scale_min(&trial, best, x, w, spec);
        lc_choose_integers(&trial, x, w, spec, SCALE_BESIDE, 3);
        lc_choose_integers(&trial, x, w, spec, MIN_BESIDE, 3);
        lc_keep_better(best, &trial, spec->n_sub);
    }
}

#endif
