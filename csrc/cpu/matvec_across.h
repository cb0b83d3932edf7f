/* Products of a tile's rows with one token, their codes transposed by halves. Included by block_kernels.h. */
#ifndef LC_MATVEC_ACROSS_H
#define LC_MATVEC_ACROSS_H

enum { FEW_TOKENS = 1 };

#define DEFINE_MATVEC(name, id, elems, sub, minimums, of_bits)                                                  \
    static void matvec_##name(const uint8_t *rows, size_t row_bytes, int n_rows, const lc_q8_block *x,          \
                              int n_tokens, int n, const uint8_t *ahead, float *c, int ldc) {                   \
        (void)n_tokens, (void)ldc;                                                                              \
        enum { BYTES = sizeof(lc_block_##name), SUBS = elems / sub };                                           \
        float scales[SUBS * VEC_ROWS], mins[minimums ? SUBS * VEC_ROWS : 1];                                    \
        for (int r = 0; r < n_rows; r += VEC_ROWS) {                                                            \
            lc_rows row;                                                                                        \
            row_pointers(rows, row_bytes, r, n_rows, row);                                                      \
            const uint8_t *next = r + VEC_ROWS < n_rows ? rows + (size_t)(r + VEC_ROWS) * row_bytes : ahead;    \
            sink to;                                                                                            \
            to.scales = scales;                                                                                 \
            to.mins = mins;                                                                                     \
            to.stride = VEC_ROWS;                                                                               \
            to.bits = of_bits;                                                                                  \
            to.has_min = minimums;                                                                              \
            to.x = x;                                                                                           \
            to.total = f_set(0);                                                                                \
            for (int b = 0; b < n / elems; b++, next += VEC_ROWS * BYTES) {                                     \
                to.first = b * SUBS;                                                                            \
                ask_ahead(&to, next, BYTES, elems);                                                             \
                scales_##name(row, (size_t)b * BYTES, &to);                                                     \
                block_##name(row, (size_t)b * BYTES, &to, sub);                                                 \
            }                                                                                                   \
            f_store_first(c + r, n_rows - r < VEC_ROWS ? n_rows - r : VEC_ROWS, to.total);                      \
        }                                                                                                       \
    }
EACH_FORMAT(DEFINE_MATVEC)

#undef DEFINE_MATVEC
#endif
