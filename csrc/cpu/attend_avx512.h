/* Attention for AVX-512: blocks of queries and keys that have been made float32, and one query with the cache's rows as
 * they lie. Included by kernels_avx512.c. */
#ifndef LC_ATTEND_AVX512_H
#define LC_ATTEND_AVX512_H

/* The sums of 16 vectors, s[4 i + j] in lane 4 i + j, each added up as _mm512_reduce_add_ps does it. */
INLINE __m512 halves_joined(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
}
INLINE __m512 quarters_joined(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 x = halves_joined(a, b), y = halves_joined(c, d);
    return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xDD));
}
INLINE __m512 pairs_joined(__m512 a, __m512 b) {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}
INLINE __m512 sums_of_16(const __m512 *s) {
    const __m512 a = quarters_joined(s[0], s[4], s[8], s[12]), b = quarters_joined(s[1], s[5], s[9], s[13]);
    const __m512 c = quarters_joined(s[2], s[6], s[10], s[14]), d = quarters_joined(s[3], s[7], s[11], s[15]);
    const __m512 x = pairs_joined(a, b), y = pairs_joined(c, d);
    return _mm512_add_ps(_mm512_shuffle_ps(x, y, 0x88), _mm512_shuffle_ps(x, y, 0xDD));
}

/* Four queries and four keys, or one and sixteen. */
INLINE void scores_of_16(const float *q, const float *k, int d, float scale, float *scores, int lds, int n_q) {
    const int n_k = 16 / n_q;
    __m512 sum[16];
    for (int i = 0; i < 16; i++) sum[i] = _mm512_setzero_ps();
    for (int e = 0; e < d; e += 16) {
        __m512 v[4];
        for (int i = 0; i < n_q; i++) v[i] = _mm512_loadu_ps(q + i * d + e);
        for (int j = 0; j < n_k; j++) {
            const __m512 key = _mm512_loadu_ps(k + j * d + e);
            for (int i = 0; i < n_q; i++) sum[i * n_k + j] = _mm512_fmadd_ps(v[i], key, sum[i * n_k + j]);
        }
    }
    const __m512 all = _mm512_mul_ps(sums_of_16(sum), _mm512_set1_ps(scale));
    if (n_q == 1) {
        _mm512_storeu_ps(scores, all);
        return;
    }
    _mm_storeu_ps(scores, _mm512_castps512_ps128(all));
    _mm_storeu_ps(scores + lds, _mm512_extractf32x4_ps(all, 1));
    _mm_storeu_ps(scores + 2 * lds, _mm512_extractf32x4_ps(all, 2));
    _mm_storeu_ps(scores + 3 * lds, _mm512_extractf32x4_ps(all, 3));
}

INLINE void score(const float *q, const float *k, int d, float scale, float *out) {
    __m512 sum = _mm512_setzero_ps();
    for (int e = 0; e < d; e += 16) sum = _mm512_fmadd_ps(_mm512_loadu_ps(q + e), _mm512_loadu_ps(k + e), sum);
    *out = _mm512_reduce_add_ps(sum) * scale;
}

static void attend_scores(const float *q, int n_q, const float *k, int n_k, int d, float scale, float *scores,
                          int lds) {
    int i = 0;
    for (; i + 4 <= n_q; i += 4, q += 4 * d, scores += 4 * lds) {
        int j = 0;
        for (; j + 4 <= n_k; j += 4) scores_of_16(q, k + j * d, d, scale, scores + j, lds, 4);
        for (; j < n_k; j++)
            for (int h = 0; h < 4; h++) score(q + h * d, k + j * d, d, scale, scores + h * lds + j);
    }
    for (; i < n_q; i++, q += d, scores += lds) {
        int j = 0;
        for (; j + 16 <= n_k; j += 16) scores_of_16(q, k + j * d, d, scale, scores + j, lds, 1);
        for (; j < n_k; j++) score(q, k + j * d, d, scale, scores + j);
    }
}

static float exp_sum(float *scores, int n, float max) {
    const __m512 top = _mm512_set1_ps(max);
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < n; i += 16) {
        const __m512 e = exp16(_mm512_sub_ps(_mm512_loadu_ps(scores + i), top));
        _mm512_storeu_ps(scores + i, e);
        sum = _mm512_add_ps(sum, e);
    }
    return _mm512_reduce_add_ps(sum);
}

/* n_q x 16 n_e values (at most 16 vectors) of the result stay in registers while the keys pass by. */
INLINE void mix_block(const float *weights, int ldw, const float *keep, const float *v, int n_k, int d, float *out,
                      int n_q, int n_e) {
    __m512 sum[4][8];
    for (int i = 0; i < n_q; i++)
        for (int e = 0; e < n_e; e++)
            sum[i][e] = _mm512_mul_ps(_mm512_loadu_ps(out + i * d + 16 * e), _mm512_set1_ps(keep[i]));
    for (int j = 0; j < n_k; j++) {
        __m512 value[8];
        for (int e = 0; e < n_e; e++) value[e] = _mm512_loadu_ps(v + j * d + 16 * e);
        for (int i = 0; i < n_q; i++) {
            const __m512 weight = _mm512_set1_ps(weights[i * ldw + j]);
            for (int e = 0; e < n_e; e++) sum[i][e] = _mm512_fmadd_ps(weight, value[e], sum[i][e]);
        }
    }
    for (int i = 0; i < n_q; i++)
        for (int e = 0; e < n_e; e++) _mm512_storeu_ps(out + i * d + 16 * e, sum[i][e]);
}

INLINE void mix_rows(const float *weights, int ldw, const float *keep, const float *v, int n_k, int d, float *out,
                     int n_q) {
    int e = 0;
    for (; n_q == 1 && e + 128 <= d; e += 128) mix_block(weights, ldw, keep, v + e, n_k, d, out + e, n_q, 8);
    for (; e + 64 <= d; e += 64) mix_block(weights, ldw, keep, v + e, n_k, d, out + e, n_q, 4);
    for (; e < d; e += 16) mix_block(weights, ldw, keep, v + e, n_k, d, out + e, n_q, 1);
}

static void attend_mix(const float *weights, int ldw, const float *keep, int n_q, const float *v, int n_k, int d,
                       float *out) {
    int i = 0;
    for (; i + 4 <= n_q; i += 4) mix_rows(weights + i * ldw, ldw, keep + i, v, n_k, d, out + i * d, 4);
    for (; i < n_q; i++) mix_rows(weights + i * ldw, ldw, keep + i, v, n_k, d, out + i * d, 1);
}

/* --- the cache's rows as they lie ------------------------------------------------------------------------------- */

/* Values e to e + 15 of a row; e a multiple of 16. */
INLINE __m512 values_at(int type, const uint8_t *row, int e, __m512 scale) {
    if (type == LC_TYPE_F16) return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(row + 2 * e)));
    if (type == LC_TYPE_Q8_0) {
        const lc_block_q8_0 *b = (const lc_block_q8_0 *)(const void *)row + e / 32;
        const __m512i codes = _mm512_cvtepi8_epi32(load_16((const uint8_t *)b->qs + e % 32));
        return _mm512_mul_ps(scale, _mm512_cvtepi32_ps(codes));
    }
    const lc_block_q4_0 *b = (const lc_block_q4_0 *)(const void *)row + e / 32;
    const __m512i pairs = _mm512_cvtepu8_epi32(load_16(b->qs));
    const __m512i codes = e % 32 < 16 ? v_and(pairs, v_set32(15)) : v_srl32(pairs, 4);
    return _mm512_mul_ps(scale, _mm512_cvtepi32_ps(v_sub32(codes, v_set32(8))));
}

enum { KEYS_ALONG = 16, VALUES_ALONG = 128, KEY_PARTS = 1 };
typedef fvec lc_key_sum[KEY_PARTS];

INLINE void store_scores(const lc_key_sum *sum, int n_k, float scale, float *scores) {
    _mm512_mask_storeu_ps(scores, first(n_k), _mm512_mul_ps(sums_of_16(sum[0]), _mm512_set1_ps(scale)));
}

#include "attend_along.h"

#endif
