/* One query with the cache's rows as they lie. Included by the file of an instruction set, which has before: KEYS_ALONG and
 * VALUES_ALONG, for how many keys its registers hold sums, and how many values of a result (a multiple of 32); values_at, the
 * VEC_ROWS values of a row from number e on; and store_scores, which adds up the 16 lanes of each key's sum. */
#ifndef LC_ATTEND_ALONG_H
#define LC_ATTEND_ALONG_H

/* Bytes of 32 values. */
INLINE size_t block_bytes(int type) {
    return type == LC_TYPE_F16 ? 64 : type == LC_TYPE_Q8_0 ? sizeof(lc_block_q8_0) : sizeof(lc_block_q4_0);
}

/* What block e / 32 of a row is multiplied by. */
INLINE fvec scale_at(int type, const uint8_t *row, int e) {
    if (type == LC_TYPE_F16) return f_set(0); /* has none */
    uint16_t d;
    memcpy(&d, row + (size_t)(e / 32) * block_bytes(type), 2);
    return f_set(_cvtsh_ss(d));
}

INLINE void floats_of(int type, const uint8_t *blocks, int n, float *x) {
    for (int e = 0; e < n; e += 32) {
        const fvec scale = scale_at(type, blocks, e);
        for (int i = e; i < e + 32; i += VEC_ROWS) f_store(x + i, values_at(type, blocks, i, scale));
    }
}

/* One query and n_k keys, at most KEYS_ALONG. */
INLINE void scores_along(int type, const float *q, const uint8_t *rows, size_t row_bytes, int n_k, int d, float scale,
                         const uint8_t *ahead, float *scores) {
    const size_t asked = (size_t)n_k * block_bytes(type); /* evenly: requests in a burst get lost */
    lc_key_sum sum[KEYS_ALONG];
    for (int j = 0; j < KEYS_ALONG; j++)
        for (int p = 0; p < KEY_PARTS; p++) sum[j][p] = f_set(0);
    for (int e = 0; e < d; e += 32, ahead += asked) {
        _Pragma("GCC unroll 16") for (int j = 0; j < n_k; j++) {
            const uint8_t *row = rows + (size_t)j * row_bytes;
            const fvec s = scale_at(type, row, e);
            for (int i = 0; i < 32 / VEC_ROWS; i++) {
                const int at = e + i * VEC_ROWS, p = i % KEY_PARTS;
                sum[j][p] = f_fma(f_load(q + at), values_at(type, row, at, s), sum[j][p]);
            }
        }
        lc_fetch_for_one(ahead, asked);
    }
    store_scores(sum, n_k, scale, scores);
}

/* n_e values of the result stay in registers while the values pass by. */
INLINE void mix_along(int type, const float *weights, float keep, const uint8_t *rows, size_t row_bytes, int n_k,
                      const uint8_t *ahead, float *out, int e0, int n_e) {
    fvec sum[VALUES_ALONG / VEC_ROWS];
    for (int e = 0; e < n_e; e += VEC_ROWS) sum[e / VEC_ROWS] = f_mul(f_load(out + e0 + e), f_set(keep));
    for (int j = 0; j < n_k; j++) {
        const uint8_t *row = rows + (size_t)j * row_bytes;
        if (e0 == 0) lc_fetch_for_one(ahead + (size_t)j * row_bytes, row_bytes);
        const fvec weight = f_set(weights[j]);
        for (int e = 0; e < n_e; e += 32) {
            const fvec s = scale_at(type, row, e0 + e);
            for (int i = e; i < e + 32; i += VEC_ROWS)
                sum[i / VEC_ROWS] = f_fma(weight, values_at(type, row, e0 + i, s), sum[i / VEC_ROWS]);
        }
    }
    for (int e = 0; e < n_e; e += VEC_ROWS) f_store(out + e0 + e, sum[e / VEC_ROWS]);
}

#define DEFINE_ALONG_CACHE(name, type)                                                                               \
    static void floats_of_##name(const uint8_t *blocks, int n, float *x) { floats_of(type, blocks, n, x); }          \
    static void scores_along_##name(const float *q, const uint8_t *rows, size_t row_bytes, int n_k, int d,           \
                                    float scale, const uint8_t *ahead, float *scores) {                              \
        int j = 0;                                                                                                   \
        for (; j + KEYS_ALONG <= n_k; j += KEYS_ALONG)                                                               \
            scores_along(type, q, rows + (size_t)j * row_bytes, row_bytes, KEYS_ALONG, d, scale,                     \
                         ahead + (size_t)j * row_bytes, scores + j);                                                 \
        for (; j < n_k; j++)                                                                                         \
            scores_along(type, q, rows + (size_t)j * row_bytes, row_bytes, 1, d, scale,                              \
                         ahead + (size_t)j * row_bytes, scores + j);                                                 \
    }                                                                                                                \
    static void mix_along_##name(const float *weights, float keep, const uint8_t *rows, size_t row_bytes, int n_k,   \
                                 int d, const uint8_t *ahead, float *out) {                                          \
        int e = 0;                                                                                                   \
        for (; e + VALUES_ALONG <= d; e += VALUES_ALONG)                                                             \
            mix_along(type, weights, keep, rows, row_bytes, n_k, ahead, out, e, VALUES_ALONG);                       \
        for (; e < d; e += 32) mix_along(type, weights, keep, rows, row_bytes, n_k, ahead, out, e, 32);              \
    }
DEFINE_ALONG_CACHE(f16, LC_TYPE_F16)
DEFINE_ALONG_CACHE(q8_0, LC_TYPE_Q8_0)
DEFINE_ALONG_CACHE(q4_0, LC_TYPE_Q4_0)
#undef DEFINE_ALONG_CACHE

#define USE_CACHE_TYPE(name, NAME)                             \
    table->to_float[LC_TYPE_##NAME] = floats_of_##name;        \
    table->scores_along[LC_TYPE_##NAME] = scores_along_##name; \
    table->mix_along[LC_TYPE_##NAME] = mix_along_##name;
#define USE_ATTENTION                     \
    table->attend_scores = attend_scores; \
    table->exp_sum = exp_sum;             \
    table->attend_mix = attend_mix;       \
    USE_CACHE_TYPE(f16, F16)              \
    USE_CACHE_TYPE(q8_0, Q8_0)            \
    USE_CACHE_TYPE(q4_0, Q4_0)

#endif
