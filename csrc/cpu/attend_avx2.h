/* Attention for AVX2: blocks of queries and keys that have been made float32, and one query with the cache's rows as they
 * lie. Included by kernels_avx2.c. */
#ifndef LC_ATTEND_AVX2_H
#define LC_ATTEND_AVX2_H

/* The sums of four vectors, each added up as sum_f32 does it. */
INLINE __m128 sums_of_4(__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256 x = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    const __m256 y = _mm256_add_ps(_mm256_permute2f128_ps(c, d, 0x20), _mm256_permute2f128_ps(c, d, 0x31));
    const __m256d xd = _mm256_castps_pd(x), yd = _mm256_castps_pd(y);
    const __m256 z = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(xd, yd)),
                                   _mm256_castpd_ps(_mm256_unpackhi_pd(xd, yd)));
    const __m256 s = _mm256_add_ps(_mm256_shuffle_ps(z, z, 0x88), _mm256_shuffle_ps(z, z, 0xDD)); /* a c a c, b d b d */
    return _mm_unpacklo_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

enum { KEYS_ALONG = 4, VALUES_ALONG = 64, KEY_PARTS = 2 };
typedef fvec lc_key_sum[KEY_PARTS]; /* lanes 0 to 7, and 8 to 15 */

INLINE void store_scores(const lc_key_sum *sum, int n_k, float scale, float *scores) {
    __m256 s[KEYS_ALONG];
    for (int j = 0; j < KEYS_ALONG; j++) s[j] = _mm256_add_ps(sum[j][0], sum[j][1]);
    float all[KEYS_ALONG];
    _mm_storeu_ps(all, _mm_mul_ps(sums_of_4(s[0], s[1], s[2], s[3]), _mm_set1_ps(scale)));
    memcpy(scores, all, (size_t)n_k * sizeof *scores);
}

enum { SCORE_QUERIES = 3 };

/* One part of the lanes; sums in all would not fit in the registers. */
INLINE void part_dots(const float *q, const float *k, int d, int n_q, int n_k, int part, lc_key_sum sum[SCORE_QUERIES][KEYS_ALONG]) {
    for (int i = 0; i < n_q; i++)
        for (int j = 0; j < KEYS_ALONG; j++) sum[i][j][part] = _mm256_setzero_ps();
    for (int e = VEC_ROWS * part; e < d; e += VEC_ROWS * KEY_PARTS) {
        __m256 v[SCORE_QUERIES];
        for (int i = 0; i < n_q; i++) v[i] = _mm256_loadu_ps(q + i * d + e);
        for (int j = 0; j < n_k; j++) {
            const __m256 key = _mm256_loadu_ps(k + j * d + e);
            for (int i = 0; i < n_q; i++) sum[i][j][part] = _mm256_fmadd_ps(v[i], key, sum[i][j][part]);
        }
    }
}

INLINE void scores_block(const float *q, const float *k, int d, float scale, float *scores, int lds, int n_q, int n_k) {
    lc_key_sum sum[SCORE_QUERIES][KEYS_ALONG];
    part_dots(q, k, d, n_q, n_k, 0, sum);
    part_dots(q, k, d, n_q, n_k, 1, sum);
    for (int i = 0; i < n_q; i++) store_scores(sum[i], n_k, scale, scores + i * lds);
}

INLINE void scores_rows(const float *q, const float *k, int n_k, int d, float scale, float *scores, int lds, int n_q) {
    int j = 0;
    for (; j + KEYS_ALONG <= n_k; j += KEYS_ALONG) scores_block(q, k + j * d, d, scale, scores + j, lds, n_q, KEYS_ALONG);
    for (; j < n_k; j++) scores_block(q, k + j * d, d, scale, scores + j, lds, n_q, 1);
}

static void attend_scores(const float *q, int n_q, const float *k, int n_k, int d, float scale, float *scores,
                          int lds) {
    for (; n_q >= SCORE_QUERIES; n_q -= SCORE_QUERIES, q += SCORE_QUERIES * d, scores += SCORE_QUERIES * lds)
        scores_rows(q, k, n_k, d, scale, scores, lds, SCORE_QUERIES);
    if (n_q == 2) scores_rows(q, k, n_k, d, scale, scores, lds, 2);
    if (n_q == 1) scores_rows(q, k, n_k, d, scale, scores, lds, 1);
}

static float exp_sum(float *scores, int n, float max) {
    const __m256 top = _mm256_set1_ps(max);
    __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int i = 0; i < n; i += 16)
        for (int half = 0; half < 2; half++) {
            const __m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + i + 8 * half), top));
            _mm256_storeu_ps(scores + i + 8 * half, e);
            sum[half] = _mm256_add_ps(sum[half], e);
        }
    return sum_f32(_mm256_add_ps(sum[0], sum[1]));
}

INLINE void mix_block(const float *weights, int ldw, const float *keep, const float *v, int n_k, int d, float *out,
                      int n_q, int n_e) {
    __m256 sum[4][2];
    for (int i = 0; i < n_q; i++)
        for (int e = 0; e < n_e; e++)
            sum[i][e] = _mm256_mul_ps(_mm256_loadu_ps(out + i * d + 8 * e), _mm256_set1_ps(keep[i]));
    for (int j = 0; j < n_k; j++) {
        __m256 value[2];
        for (int e = 0; e < n_e; e++) value[e] = _mm256_loadu_ps(v + j * d + 8 * e);
        for (int i = 0; i < n_q; i++) {
            const __m256 weight = _mm256_set1_ps(weights[i * ldw + j]);
            for (int e = 0; e < n_e; e++) sum[i][e] = _mm256_fmadd_ps(weight, value[e], sum[i][e]);
        }
    }
    for (int i = 0; i < n_q; i++)
        for (int e = 0; e < n_e; e++) _mm256_storeu_ps(out + i * d + 8 * e, sum[i][e]);
}

static void attend_mix(const float *weights, int ldw, const float *keep, int n_q, const float *v, int n_k, int d,
                       float *out) {
    int i = 0;
    for (; i + 4 <= n_q; i += 4)
        for (int e = 0; e < d; e += 16)
            mix_block(weights + i * ldw, ldw, keep + i, v + e, n_k, d, out + i * d + e, 4, 2);
    for (; i < n_q; i++)
        for (int e = 0; e < d; e += 16)
            mix_block(weights + i * ldw, ldw, keep + i, v + e, n_k, d, out + i * d + e, 1, 2);
}

/* --- the cache's rows as they lie ------------------------------------------------------------------------------- */

/* Values e to e + 7 of a row; e a multiple of 8. */
INLINE __m256 values_at(int type, const uint8_t *row, int e, __m256 scale) {
    if (type == LC_TYPE_F16) return load_f16(row + 2 * e);
    if (type == LC_TYPE_Q8_0) {
        const lc_block_q8_0 *b = (const lc_block_q8_0 *)(const void *)row + e / 32;
        const __m256i codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(b->qs + e % 32)));
        return _mm256_mul_ps(scale, _mm256_cvtepi32_ps(codes));
    }
    const lc_block_q4_0 *b = (const lc_block_q4_0 *)(const void *)row + e / 32;
    const __m256i pairs = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(b->qs + e % 16)));
    const __m256i codes = e % 32 < 16 ? v_and(pairs, v_set32(15)) : v_srl32(pairs, 4);
    return _mm256_mul_ps(scale, _mm256_cvtepi32_ps(v_sub32(codes, v_set32(8))));
}

#include "attend_along.h"

#endif
