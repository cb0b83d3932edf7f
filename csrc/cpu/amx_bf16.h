/* Many tokens as products of bf16: weights with their scales become bf16, once for all tokens, and nothing is left to do but
 * products. Included by kernels_amx.c. */
#ifndef LC_AMX_BF16_H
#define LC_AMX_BF16_H

#include <math.h>

#include "math_avx512.h"

#define HAS_BF16
#include "block_formats.h"

enum { SIDE = LC_BF16_SIDE, TILE_BYTES = 64 /* of a row of any tile */, TILE_VALUES = SIDE * 32, PAIR_VALUES = LC_BF16_PAIR_VALUES };

/* --- weights ------------------------------------------------------------------------------------------------------ */

/* Byte i of every dword, put where in a float of 256 the ones stand: 256 more than the code. That times scale, plus offset. */
INLINE __m512 value_of(vec codes, int i, __m512 scale, __m512 offset) {
    const int from = 8 * i, to = 15;
    const vec moved = to > from ? v_sll32(codes, to - from) : v_srl32(codes, from - to);
    const vec bits = _mm512_ternarylogic_epi32(moved, v_set32(0xFF << to), v_set32(0x43800000), 0xEA); /* a & b | c */
    return _mm512_fmadd_ps(_mm512_castsi512_ps(bits), scale, offset);
}
/* Two neighbours in each row side by side. */
INLINE vec bf16_pairs(__m512 even, __m512 odd) {
    const vec side_by_side = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                              20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(side_by_side, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}
INLINE void put_bf16_dwords(uint16_t *out, vec codes, __m512 scale, __m512 offset) {
    const __m512 a = value_of(codes, 0, scale, offset), b = value_of(codes, 1, scale, offset);
    const __m512 c = value_of(codes, 2, scale, offset), d = value_of(codes, 3, scale, offset);
    v_store(out, bf16_pairs(a, b));
    v_store(out + 2 * SIDE, bf16_pairs(c, d));
}
/* 256 times the scale, and the bias or the minimum. Only with a minimum that is rounded: ties of the weights may then go either
 * way. */
INLINE __m512 offset_of(__m512 scale, const float *min, int has_min) {
    return has_min ? f_fma(scale, f_set(-256), negative(f_load(min))) : f_mul(scale, f_set(-256 - LC_CODE_BIAS));
}
INLINE void put_bf16(sink *to, int first, quad q) {
    const int s = first / to->shared * to->stride;
    const __m512 scale = f_load(to->scales + s), offset = offset_of(scale, to->mins + s, to->has_min);
    uint16_t *out = to->bf16 + first / 32 * PAIR_VALUES + first % 32 * SIDE;
    put_bf16_dwords(out, q.k0, scale, offset);
    put_bf16_dwords(out + 4 * SIDE, q.k1, scale, offset);
    put_bf16_dwords(out + 8 * SIDE, q.k2, scale, offset);
    put_bf16_dwords(out + 12 * SIDE, q.k3, scale, offset);
}

#define DEFINE_ROWS(name, id, elems, sub, min, bits)                                                                  \
    static void rows_##name(const uint8_t *rows, size_t row_bytes, int n_rows, int n, uint16_t *out) {                \
        enum { SUBS = elems / sub };                                                                                  \
        float scales[SUBS * SIDE], mins[SUBS * SIDE];                                                                 \
        lc_rows row;                                                                                                  \
        row_pointers(rows, row_bytes, 0, n_rows, row);                                                                \
        for (int b = 0; b < n / elems; b++) {                                                                         \
            sink to = {.scales = scales, .mins = mins, .stride = SIDE, .bf16 = out + elems / 32 * b * PAIR_VALUES, .shared = sub, \
                       .has_min = min};                                                                               \
            scales_##name(row, (size_t)b * sizeof(lc_block_##name), &to);                                             \
            block_##name(row, (size_t)b * sizeof(lc_block_##name), &to, IN_BF16);                                     \
        }                                                                                                             \
    }
EACH_FORMAT(DEFINE_ROWS)

/* The same from a panel. */
static void panel_bf16(const lc_panel *panel, int n, int sub, bool has_min, uint16_t *out) {
    for (int k = 0; k < n; k += 4) {
        const int s = k / sub * SIDE;
        const __m512 scale = f_load(panel->scales + s), offset = offset_of(scale, panel->mins + s, has_min);
        put_bf16_dwords(out + k / 32 * PAIR_VALUES + k % 32 * SIDE, v_load(panel->codes + k * SIDE), scale, offset);
    }
}

/* --- activations -------------------------------------------------------------------------------------------------- */

static void round_bf16(const float *x, int n, uint16_t *row) {
    for (int k = 0; k < n; k += 32, row += PAIR_VALUES)
        v_store(row, (__m512i)_mm512_cvtne2ps_pbh(f_load(x + k + 16), f_load(x + k)));
}

/* --- products ----------------------------------------------------------------------------------------------------- */

/* Tiles: 0 to 3 sums, of block i with panel j in i + 2 j; 4 and 5 tokens, 6 and 7 weights. */
static void tile_bf16(const uint16_t *w, const uint16_t *x, int n, bool goes_on, float *c) {
    shape_tiles(SIDE, TILE_BYTES);
    if (goes_on) {
        LC_TILE_LOAD(0, c, TILE_BYTES);
        LC_TILE_LOAD(1, c + LC_BF16_SUMS, TILE_BYTES);
        LC_TILE_LOAD(2, c + 2 * LC_BF16_SUMS, TILE_BYTES);
        LC_TILE_LOAD(3, c + 3 * LC_BF16_SUMS, TILE_BYTES);
    } else {
        LC_TILE_ZERO(0);
        LC_TILE_ZERO(1);
        LC_TILE_ZERO(2);
        LC_TILE_ZERO(3);
    }
    for (int k = 0; k < n; k += 32, w += PAIR_VALUES, x += PAIR_VALUES) {
        LC_TILE_LOAD(6, w, TILE_BYTES);
        LC_TILE_LOAD(7, w + TILE_VALUES, TILE_BYTES);
        LC_TILE_LOAD(4, x, TILE_BYTES);
        LC_TILE_LOAD(5, x + TILE_VALUES, TILE_BYTES);
        LC_TILE_DOT_BF16(0, 4, 6);
        LC_TILE_DOT_BF16(2, 4, 7);
        LC_TILE_DOT_BF16(1, 5, 6);
        LC_TILE_DOT_BF16(3, 5, 7);
    }
    LC_TILE_STORE(0, c, TILE_BYTES);
    LC_TILE_STORE(1, c + LC_BF16_SUMS, TILE_BYTES);
    LC_TILE_STORE(2, c + 2 * LC_BF16_SUMS, TILE_BYTES);
    LC_TILE_STORE(3, c + 3 * LC_BF16_SUMS, TILE_BYTES);
}

static void end_bf16(const float *c, const float *c2, const float *residual, int n_rows, float *out) {
    for (int r = 0; r < n_rows; r += SIDE, c += 2 * LC_BF16_SUMS) {
        const __mmask16 m = first(n_rows - r);
        __m512 y = f_load(c);
        if (c2 != NULL) y = f_mul(silu16(y), f_load(c2 + 2 * r * SIDE));
        if (residual != NULL) y = _mm512_add_ps(_mm512_maskz_loadu_ps(m, residual + r), y);
        _mm512_mask_storeu_ps(out + r, m, y);
    }
}

static void end_pair_bf16(const float *c, const float *c2, int n_rows, uint16_t *to) {
    enum { NEXT = 2 * LC_BF16_SUMS };
    for (int r = 0; r < n_rows; r += 32, c += 2 * NEXT, c2 += 2 * NEXT, to += PAIR_VALUES) {
        const __m512 a = f_mul(silu16(f_load(c)), f_load(c2)), b = f_mul(silu16(f_load(c + NEXT)), f_load(c2 + NEXT));
        v_store(to, (vec)_mm512_cvtne2ps_pbh(b, a));
    }
}

/* --- attention ---------------------------------------------------------------------------------------------------- */

/* Transposes 16 x 16 dwords. */
INLINE void transpose(vec *v) {
    vec a[SIDE], b[SIDE];
    for (int i = 0; i < SIDE; i += 2) {
        a[i] = v_unpacklo32(v[i], v[i + 1]);
        a[i + 1] = v_unpackhi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < SIDE; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = v_unpacklo64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = v_unpackhi64(a[i + j], a[i + j + 2]);
        }
    for (int j = 0; j < 4; j++) { /* b[4 i + j]: dwords j, j + 4, j + 8 and j + 12 of rows 4 i to 4 i + 3 */
        const vec x = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88), y = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xDD);
        const vec z = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88), w = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xDD);
        v[j] = _mm512_shuffle_i32x4(x, z, 0x88);
        v[8 + j] = _mm512_shuffle_i32x4(x, z, 0xDD);
        v[4 + j] = _mm512_shuffle_i32x4(y, w, 0x88);
        v[12 + j] = _mm512_shuffle_i32x4(y, w, 0xDD);
    }
}

static void columns_bf16(const float *x, int d, uint16_t *panel) {
    for (int k = 0; k < d; k += 32, panel += PAIR_VALUES) {
        vec pairs[SIDE];
        for (int r = 0; r < SIDE; r++)
            pairs[r] = (vec)_mm512_cvtne2ps_pbh(f_load(x + r * d + k + 16), f_load(x + r * d + k));
        transpose(pairs);
        for (int i = 0; i < SIDE; i++) v_store(panel + 32 * i, pairs[i]);
    }
}

static void values_bf16(const float *x, int ldx, uint16_t *panels) {
    for (int r = 0; r < 32; r += 2, x += 2 * ldx, panels += 32) {
        v_store(panels, bf16_pairs(f_load(x), f_load(x + ldx)));
        v_store(panels + TILE_VALUES, bf16_pairs(f_load(x + 16), f_load(x + ldx + 16)));
    }
}

/* Scores of key r of pair i with 16 queries, tile j of theirs. */
INLINE const float *scores_at(const float *scores, int i, int j, int r) {
    return scores + i * LC_BF16_PAIR_SUMS + j * 2 * LC_BF16_SUMS + r * SIDE;
}

static void softmax_bf16(const float *scores, int n_keys, int key0, float scale, lc_bf16_softmax *state, uint16_t *weights) {
    const __m512 by = f_set(scale), none = f_set(-INFINITY);
    const int n_pairs = (n_keys + 31) / 32;
    state->shrinks = false;
    for (int j = 0; j < 2; j++) {
        const vec last = v_sub32(v_load(state->last + j * SIDE), v_set32(key0));
        const vec seen = _mm512_min_epi32(last, v_set32(n_keys - 1)); /* the last of these keys that is seen */
        const __m512 before = f_load(state->max + j * SIDE);
        __m512 max = before;
        for (int i = 0; i < n_pairs; i++)
            for (int r = 0; r < 32; r++) {
                const __mmask16 sees = _mm512_cmpge_epi32_mask(seen, v_set32(32 * i + r));
                const __m512 score = f_mul(f_load(scores_at(scores, i, j, r)), by);
                max = _mm512_mask_max_ps(max, sees, score, max); /* a NaN is not taken */
            }
        /* Where nothing has been seen, sums are 0, and 0 is as good as any. */
        const __m512 top = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(max, none, _CMP_EQ_OQ), max, f_set(0));
        const __m512 keep = exp16(f_sub(before, top));
        __m512 sum = f_mul(f_load(state->sum + j * SIDE), keep);
        for (int i = 0; i < n_pairs; i++) {
            vec pairs[SIDE];
            for (int r = 0; r < 32; r += 2) {
                const vec at = v_set32(32 * i + r);
                const __m512 a = _mm512_maskz_mov_ps(_mm512_cmpge_epi32_mask(seen, at),
                                                     exp16(f_sub(f_mul(f_load(scores_at(scores, i, j, r)), by), top)));
                const __m512 b = _mm512_maskz_mov_ps(_mm512_cmpgt_epi32_mask(seen, at),
                                                     exp16(f_sub(f_mul(f_load(scores_at(scores, i, j, r + 1)), by), top)));
                sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
                pairs[r / 2] = bf16_pairs(a, b);
            }
            transpose(pairs);
            for (int t = 0; t < SIDE; t++) v_store(weights + i * PAIR_VALUES + j * TILE_VALUES + 32 * t, pairs[t]);
        }
        f_store(state->max + j * SIDE, max);
        f_store(state->sum + j * SIDE, sum);
        f_store(state->keep + j * SIDE, keep);
        if (_mm512_cmp_ps_mask(keep, f_set(1), _CMP_NEQ_UQ)) state->shrinks = true;
    }
}

static void shrink_bf16(const lc_bf16_softmax *state, float *c) {
    if (!state->shrinks) return;
    for (int e = 0; e < 2; e++)
        for (int t = 0; t < 2 * SIDE; t++, c += SIDE) f_store(c, f_mul(f_load(c), f_set(state->keep[t])));
}

DEFINE_TILE_PEAK(peak_bf16, LC_TILE_DOT_BF16, 32)

static void use_bf16(lc_kernels *table) {
#define USE_ROWS(name, id, elems, sub, min, bits) table->rows_bf16[LC_TYPE_##id] = rows_##name;
    EACH_FORMAT(USE_ROWS)
    table->panel_bf16 = panel_bf16;
    table->round_bf16 = round_bf16;
    table->tile_bf16 = tile_bf16;
    table->end_bf16 = end_bf16;
    table->end_pair_bf16 = end_pair_bf16;
    table->columns_bf16 = columns_bf16;
    table->softmax_bf16 = softmax_bf16;
    table->values_bf16 = values_bf16;
    table->shrink_bf16 = shrink_bf16;
    table->peak[LC_PEAK_BF16] = peak_bf16;
}

#endif
