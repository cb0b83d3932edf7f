/* Products of a vector's rows with few tokens, straight from the blocks. Codes of several tokens' rows are transposed, those
 * of one token's by halves. Included by block_kernels.h. */
#ifndef LC_MATVEC_ACROSS_H
#define LC_MATVEC_ACROSS_H

INLINE void start_total(sink *to, int t) {
    if (t < to->n_tokens) to->total[t] = f_set(0);
}
INLINE void store_total(const sink *to, float *c, int ldc, int n_rows, int t) {
    if (t < to->n_tokens) f_store_first(c + t * ldc, n_rows, to->total[t]);
}

/* across_NAME: at most VEC_ROWS rows; n_tokens, a constant, at most LC_MAX_FEW_TOKENS. */
#define DEFINE_ACROSS(name, id, elems, sub, minimums, of_bits)                                                        \
    INLINE void across_##name(const uint8_t *rows, size_t row_bytes, int n_rows, const lc_q8_block *x, int n_tokens,  \
                              int n, const uint8_t *ahead, float *c, int ldc) {                                       \
        enum { BYTES = sizeof(lc_block_##name), SUBS = elems / sub };                                                 \
        float scales[SUBS * VEC_ROWS], mins[minimums ? SUBS * VEC_ROWS : 1];                                          \
        lc_rows row;                                                                                                  \
        row_pointers(rows, row_bytes, 0, n_rows, row);                                                                \
        sink to;                                                                                                      \
        to.scales = scales;                                                                                           \
        to.mins = mins;                                                                                               \
        to.stride = VEC_ROWS;                                                                                         \
        to.bits = of_bits;                                                                                            \
        to.has_min = minimums;                                                                                        \
        to.x = x;                                                                                                     \
        to.n_tokens = n_tokens;                                                                                       \
        to.row = row;                                                                                                 \
        to.next_bytes = BYTES;                                                                                        \
        FOR_8(start_total, &to);                                                                                      \
        for (int b = 0; b < n / elems; b++, ahead += VEC_ROWS * BYTES) {                                              \
            to.first = b * SUBS;                                                                                      \
            ask_ahead(&to, ahead, BYTES, elems);                                                                      \
            to.next = (size_t)(b + 1) * BYTES;                                                                        \
            scales_##name(row, (size_t)b * BYTES, &to);                                                               \
            block_##name(row, (size_t)b * BYTES, &to, n_tokens > 1 ? FOR_TOKENS(sub) : sub);                          \
        }                                                                                                             \
        FOR_8(store_total, &to, c, ldc, n_rows);                                                                      \
    }
EACH_FORMAT(DEFINE_ACROSS)

#undef DEFINE_ACROSS
#endif
