/* Products of rows of a float type with tokens, in blocks of sums that stay in registers. Included by the file of an
 * instruction set, which has before: load_fn, what reads some values of a row as float32; DOT_ROWS and DOT_TOKENS, how
 * large a block may be, and DOT_ROWS_ALONE, of how many rows for one token; and dot_block, which computes one. */
#ifndef LC_DOT_ROWS_H
#define LC_DOT_ROWS_H

#define DOT_CASE(n_tokens)                                                                                       \
    case n_tokens: dot_block(rows, row_bytes, x, ldx, n, ahead, y, ldy, n_rows, n_tokens, load, size); return;

/* A block of n_rows, a constant, and at most DOT_TOKENS. `ahead`: what to ask for meanwhile, or NULL. */
INLINE void dot_tokens(const uint8_t *rows, size_t row_bytes, int n_rows, const float *x, size_t ldx, int n_tokens,
                       int n, const uint8_t *ahead, float *y, size_t ldy, load_fn load, size_t size) {
    switch (n_tokens) {
        DOT_CASE(1)
        DOT_CASE(2)
        DOT_CASE(3)
    default: dot_block(rows, row_bytes, x, ldx, n, ahead, y, ldy, n_rows, DOT_TOKENS, load, size);
    }
}
#undef DOT_CASE

/* The rows are read from memory with the first tokens, and are in cache with the others. */
INLINE void dot_all_tokens(const uint8_t *rows, size_t row_bytes, int n_rows, const float *x, size_t ldx, int n_tokens,
                           int n, const uint8_t *ahead, float *y, size_t ldy, load_fn load, size_t size) {
    for (int t = 0; t < n_tokens; t += DOT_TOKENS, ahead = NULL) {
        const int left = n_tokens - t;
        dot_tokens(rows, row_bytes, n_rows, x + (size_t)t * ldx, ldx, left < DOT_TOKENS ? left : DOT_TOKENS, n, ahead,
                   y + (size_t)t * ldy, ldy, load, size);
    }
}

/* `at_once` rows at a time. */
INLINE void dot_groups(const uint8_t *rows, size_t row_bytes, int n_rows, const float *x, size_t ldx, int n_tokens, int n,
                       const uint8_t *ahead, float *y, size_t ldy, load_fn load, size_t size, int at_once) {
    int r = 0;
    for (; r + at_once <= n_rows; r += at_once, rows += (size_t)at_once * row_bytes, y += at_once)
        dot_all_tokens(rows, row_bytes, at_once, x, ldx, n_tokens, n,
                       r + at_once < n_rows ? rows + (size_t)at_once * row_bytes : ahead, y, ldy, load, size);
    for (; r < n_rows; r++, rows += row_bytes, y++)
        dot_all_tokens(rows, row_bytes, 1, x, ldx, n_tokens, n, ahead, y, ldy, load, size);
}

/* Memory is read fastest in few streams, so one token meets fewer rows at a time. */
INLINE void dot_rows(const uint8_t *rows, size_t row_bytes, int n_rows, const float *x, size_t ldx, int n_tokens, int n,
                     const uint8_t *ahead, float *y, size_t ldy, load_fn load, size_t size) {
    if (n_tokens == 1)
        dot_groups(rows, row_bytes, n_rows, x, ldx, 1, n, ahead, y, ldy, load, size, DOT_ROWS_ALONE);
    else
        dot_groups(rows, row_bytes, n_rows, x, ldx, n_tokens, n, ahead, y, ldy, load, size, DOT_ROWS);
}

#define DEFINE_DOT(name, load, size)                                                                              \
    static void name(const uint8_t *rows, size_t row_bytes, int n_rows, const float *x, size_t ldx, int n_tokens, \
                     int n, const uint8_t *ahead, float *y, size_t ldy) {                                         \
        dot_rows(rows, row_bytes, n_rows, x, ldx, n_tokens, n, ahead, y, ldy, load, size);                        \
    }
DEFINE_DOT(dot_f32, load_f32, 4)
DEFINE_DOT(dot_f16, load_f16, 2)
DEFINE_DOT(dot_bf16, load_bf16, 2)
#undef DEFINE_DOT

#endif
