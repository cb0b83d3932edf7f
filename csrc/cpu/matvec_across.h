/* Products of a tile's rows with one token, their codes transposed. Included by block_kernels.h. */
#ifndef LC_MATVEC_ACROSS_H
#define LC_MATVEC_ACROSS_H

enum { FEW_TOKENS = 1 };

INLINE void start_sum(sink *to, const int32_t *bias, int has_min, int n_subs, int s) {
    if (s < n_subs) to->sum[s] = v_set32(has_min ? 0 : bias[s]);
}

#define DEFINE_MATVEC(name, elems, sub_elems, has_min)                                                        \
    static void matvec_##name(const uint8_t *rows, size_t row_bytes, int n_rows, const lc_q8_block *x,        \
                              int n_tokens, int n, const uint8_t *ahead, float *c, int ldc) {                 \
        (void)n_tokens, (void)ldc;                                                                            \
        enum { BYTES = sizeof(lc_block_##name), SUBS = elems / sub_elems };                                   \
        lc_rows row;                                                                                          \
        row_pointers(rows, row_bytes, n_rows, row);                                                           \
        const int32_t *bias = sub_elems == 32 ? x->bias32 : x->bias16;                                        \
        float scales[SUBS * TILE_ROWS], mins[has_min ? SUBS * TILE_ROWS : 1];                                 \
        fvec total = f_set(0);                                                                                \
        for (int b = 0; b < n / elems; b++) {                                                                 \
            lc_fetch_rows(ahead, row_bytes, TILE_ROWS, (size_t)b * BYTES, (size_t)(b + 1) * BYTES);           \
            sink to;                                                                                          \
            to.scales = scales;                                                                               \
            to.mins = mins;                                                                                   \
            to.a = x->codes + b * elems;                                                                      \
            to.is_unsigned = has_min;                                                                         \
            FOR_16(start_sum, &to, bias + b * SUBS, has_min, SUBS);                                           \
            scales_##name(row, (size_t)b * BYTES, &to);                                                       \
            block_##name(row, (size_t)b * BYTES, &to, sub_elems);                                             \
            FOR_16(end_sum, &to, sub_elems, x, b *SUBS, has_min, SUBS, &total);                               \
        }                                                                                                     \
        f_store_first(c, n_rows, total);                                                                      \
    }
DEFINE_MATVEC(q4_0, 32, 32, 0)
DEFINE_MATVEC(q4_1, 32, 32, 1)
DEFINE_MATVEC(q5_0, 32, 32, 0)
DEFINE_MATVEC(q5_1, 32, 32, 1)
DEFINE_MATVEC(q8_0, 32, 32, 0)
DEFINE_MATVEC(iq4_nl, 32, 32, 0)
DEFINE_MATVEC(q2_k, 256, 16, 1)
DEFINE_MATVEC(q3_k, 256, 16, 0)
DEFINE_MATVEC(q4_k, 256, 32, 1)
DEFINE_MATVEC(q5_k, 256, 32, 1)
DEFINE_MATVEC(q6_k, 256, 16, 0)
DEFINE_MATVEC(iq4_xs, 256, 32, 0)

#undef DEFINE_MATVEC
#endif
