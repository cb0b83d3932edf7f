/* Products of a tile's rows with one token, their codes transposed. Included by block_kernels.h. */
#ifndef LC_MATVEC_ACROSS_H
#define LC_MATVEC_ACROSS_H

enum { FEW_TOKENS = 1 };

INLINE void start_sum(sink *to, const int32_t *bias, int bits, int has_min, int n_subs, int s) {
    if (s < n_subs) to->sum[s] = less_bias_of(bias + s, bits, has_min);
}

#define DEFINE_MATVEC(name, id, elems, sub_elems, has_min, code_bits)                                           \
    static void matvec_##name(const uint8_t *rows, size_t row_bytes, int n_rows, const lc_q8_block *x,          \
                              int n_tokens, int n, const uint8_t *ahead, float *c, int ldc) {                   \
        (void)n_tokens, (void)ldc;                                                                              \
        enum { BYTES = sizeof(lc_block_##name), SUBS = elems / sub_elems };                                     \
        const int32_t *bias = sub_elems == 32 ? x->bias32 : x->bias16;                                          \
        float scales[SUBS * VEC_ROWS], mins[has_min ? SUBS * VEC_ROWS : 1];                                     \
        for (int r = 0; r < n_rows; r += VEC_ROWS) {                                                            \
            lc_rows row;                                                                                        \
            row_pointers(rows, row_bytes, r, n_rows, row);                                                      \
            const uint8_t *next = ahead + (size_t)r * row_bytes;                                                \
            fvec total = f_set(0);                                                                              \
            for (int b = 0; b < n / elems; b++, next += VEC_ROWS * BYTES) {                                     \
                sink to;                                                                                        \
                to.scales = scales;                                                                             \
                to.mins = mins;                                                                                 \
                to.stride = VEC_ROWS;                                                                           \
                to.a = x->codes + b * elems;                                                                    \
                to.bits = code_bits;                                                                            \
                ask_ahead(&to, next, BYTES, elems);                                                             \
                FOR_16(start_sum, &to, bias + b * SUBS, code_bits, has_min, SUBS);                              \
                scales_##name(row, (size_t)b * BYTES, &to);                                                     \
                block_##name(row, (size_t)b * BYTES, &to, sub_elems);                                           \
                FOR_16(end_sum, &to, sub_elems, x, b *SUBS, has_min, SUBS, &total);                             \
            }                                                                                                   \
            f_store_first(c + r, n_rows - r < VEC_ROWS ? n_rows - r : VEC_ROWS, total);                         \
        }                                                                                                       \
    }
EACH_FORMAT(DEFINE_MATVEC)

#undef DEFINE_MATVEC
#endif
