/* Products of rows of a float type with tokens, in blocks of sums that stay in registers. Included by the file of an
 * instruction set, which has before: load_f32, load_f16 and load_bf16, which read VEC_ROWS values of a row as float32;
 * f_total, which adds up the lanes of a register; DOT_ROWS and DOT_TOKENS, how large a block may be, DOT_ROWS_ALONE, of how
 * many rows for one token, and DOT_PACKS, whether many tokens are packed first: rows that lie a power of two apart drive
 * each other out of the cache where those of a block are more than it has ways. */
#ifndef LC_DOT_ROWS_H
#define LC_DOT_ROWS_H

typedef fvec (*load_fn)(const uint8_t *);

enum {
    DOT_FEW = 12, /* tokens that do not repay packing */
    DOT_NEAR_BYTES = 3 << 16, /* of tokens that stay in the second-level cache while rows pass by */
    DOT_STEP = VEC_ROWS,
    DOT_SUMS = LC_DOT_STRETCH * DOT_TOKENS * DOT_STEP
};
_Static_assert(DOT_SUMS + DOT_TOKENS * LC_DOT_SPAN <= LC_DOT_SCRATCH, "dot products get less memory than they need");

typedef struct dots {
    const uint8_t *rows;
    size_t row_bytes, size; /* of a value */
    const float *x;
    size_t ldx;
    int n;
    float *y;
    size_t ldy;
} dots;

/* From row r and token t on. */
INLINE dots dots_from(const dots *d, int r, int t) {
    dots part = *d;
    part.rows += (size_t)r * d->row_bytes;
    part.x += (size_t)t * d->ldx;
    part.y += (size_t)t * d->ldy + (size_t)r;
    return part;
}

/* Values [from, to) of some sums. */
typedef struct span {
    int from, to;
    const float *x;         /* activations from there on: tokens stand x_token apart, and a token's next DOT_STEP values x_step */
    size_t x_token, x_step;
    const uint8_t *ahead;   /* what to ask for meanwhile, or NULL: ahead_step bytes with every DOT_STEP values */
    size_t ahead_step;
    float *waiting;         /* sums that do not end here */
} span;

INLINE void dot_block(const dots *d, int n_rows, int n_tokens, span s, load_fn load) {
    fvec sum[DOT_ROWS][DOT_TOKENS];
    for (int r = 0; r < n_rows; r++)
        for (int t = 0; t < n_tokens; t++)
            sum[r][t] = s.from == 0 ? f_set(0) : f_load(s.waiting + (r * n_tokens + t) * DOT_STEP);
    const uint8_t *w = d->rows + (size_t)s.from * d->size;
    int left = s.to - s.from;
    for (; left >= DOT_STEP; left -= DOT_STEP, w += DOT_STEP * d->size, s.x += s.x_step) {
        if (s.ahead != NULL) {
            if (n_tokens == 1) lc_fetch_for_one(s.ahead, s.ahead_step);
            else lc_fetch(s.ahead, s.ahead_step);
            s.ahead += s.ahead_step;
        }
        fvec v[DOT_TOKENS];
        for (int t = 0; t < n_tokens; t++) v[t] = f_load(s.x + (size_t)t * s.x_token);
        for (int r = 0; r < n_rows; r++) {
            const fvec values = load(w + (size_t)r * d->row_bytes);
            for (int t = 0; t < n_tokens; t++) sum[r][t] = f_fma(values, v[t], sum[r][t]);
        }
    }
    for (int r = 0; r < n_rows && left > 0; r++) /* the last few, copied beside zeros */
        for (int t = 0; t < n_tokens; t++) {
            uint8_t w_tail[DOT_STEP * sizeof(float)] = {0};
            float x_tail[DOT_STEP] = {0};
            memcpy(w_tail, w + (size_t)r * d->row_bytes, (size_t)left * d->size);
            memcpy(x_tail, s.x + (size_t)t * s.x_token, (size_t)left * sizeof *x_tail);
            sum[r][t] = f_fma(load(w_tail), f_load(x_tail), sum[r][t]);
        }
    for (int r = 0; r < n_rows; r++)
        for (int t = 0; t < n_tokens; t++)
            if (s.to == d->n) d->y[(size_t)t * d->ldy + (size_t)r] = f_total(sum[r][t]);
            else f_store(s.waiting + (r * n_tokens + t) * DOT_STEP, sum[r][t]);
}

#define DOT_CASE(n_tokens) \
    case n_tokens: dot_block(d, n_rows, n_tokens, s, load); return;

/* n_rows, a constant, and at most DOT_TOKENS tokens. */
INLINE void dot_tokens(const dots *d, int n_rows, int n_tokens, span s, load_fn load) {
    switch (n_tokens) {
        DOT_CASE(1)
        DOT_CASE(2)
#if DOT_TOKENS > 3
        DOT_CASE(3)
#endif
#if DOT_TOKENS > 4
        DOT_CASE(4)
        DOT_CASE(5)
#endif
    default: dot_block(d, n_rows, DOT_TOKENS, s, load);
    }
}
#undef DOT_CASE

/* n_rows rows, a constant, from end to end: read from memory with the first tokens, and in cache with the others. */
INLINE void dot_whole_rows(const dots *d, int n_rows, int n_tokens, const uint8_t *ahead, load_fn load) {
    span s = {0, d->n, NULL, d->ldx, DOT_STEP, ahead, DOT_STEP * (size_t)n_rows * d->size, NULL};
    for (int t = 0; t < n_tokens; t += DOT_TOKENS, s.ahead = NULL) {
        const dots part = dots_from(d, 0, t);
        s.x = part.x;
        dot_tokens(&part, n_rows, lc_at_most(n_tokens - t, DOT_TOKENS), s, load);
    }
}

/* Few tokens, `at_once` rows at a time. */
INLINE void dot_few(const dots *d, int n_rows, int n_tokens, const uint8_t *ahead, load_fn load, int at_once) {
    int r = 0;
    for (; r + at_once <= n_rows; r += at_once) {
        const dots part = dots_from(d, r, 0);
        const bool is_last = r + at_once == n_rows;
        dot_whole_rows(&part, at_once, n_tokens, is_last ? ahead : part.rows + (size_t)at_once * d->row_bytes, load);
    }
    for (; r < n_rows; r++) {
        const dots part = dots_from(d, r, 0);
        dot_whole_rows(&part, 1, n_tokens, ahead, load);
    }
}

/* Many tokens where they are. */
INLINE void dot_in_place(const dots *d, int n_rows, int n_tokens, const uint8_t *ahead, load_fn load) {
    const int groups = DOT_NEAR_BYTES / (int)sizeof *d->x / DOT_TOKENS / d->n, near = (groups > 0 ? groups : 1) * DOT_TOKENS;
    for (int t = 0; t < n_tokens; t += near) {
        const dots part = dots_from(d, 0, t);
        dot_few(&part, n_rows, lc_at_most(n_tokens - t, near), ahead, load, DOT_ROWS);
    }
}

/* x of a block's tokens, [n / DOT_STEP][n_tokens][DOT_STEP]. */
INLINE void pack_tokens(const float *x, size_t ldx, int n_tokens, int n, float *to) {
    for (int t = 0; t < n_tokens; t++, x += ldx, to += DOT_STEP) {
        int i = 0;
        for (; i + DOT_STEP <= n; i += DOT_STEP) f_store(to + i * n_tokens, f_load(x + i));
        memcpy(to + i * n_tokens, x + i, (size_t)(n - i) * sizeof *x);
    }
}

/* Many tokens with at most LC_DOT_STRETCH rows. Each row or row of rows asks for a part of the next tokens. */
INLINE void dot_many(const dots *d, int n_rows, int n_tokens, float *scratch, load_fn load) {
    float *packed = scratch + DOT_SUMS;
    for (int t = 0; t < n_tokens; t += DOT_TOKENS) {
        const int here = lc_at_most(n_tokens - t, DOT_TOKENS);
        for (int k = 0; k < d->n; k += LC_DOT_SPAN) {
            const int to = k + lc_at_most(d->n - k, LC_DOT_SPAN);
            const float *x = d->x + (size_t)t * d->ldx;
            pack_tokens(x + k, d->ldx, here, to - k, packed);
            const float *next = to < d->n ? x + to : x + (size_t)DOT_TOKENS * d->ldx;
            const int n_next = to < d->n ? here : lc_at_most(n_tokens - t - DOT_TOKENS, DOT_TOKENS);
            span s = {k, to, packed, DOT_STEP, (size_t)here * DOT_STEP, NULL, DOT_STEP * sizeof *x, scratch};
            for (int r = 0, asked = 0; r < n_rows; asked++) {
                const dots part = dots_from(d, r, t);
                s.ahead = asked < n_next ? (const uint8_t *)(next + (size_t)asked * d->ldx) : NULL;
                s.waiting = scratch + r * DOT_TOKENS * DOT_STEP;
                if (n_rows - r >= DOT_ROWS) dot_tokens(&part, DOT_ROWS, here, s, load), r += DOT_ROWS;
                else dot_tokens(&part, 1, here, s, load), r++;
            }
        }
    }
}

INLINE void dot_rows(const dots *d, int n_rows, int n_tokens, const uint8_t *ahead, float *scratch, load_fn load) {
    if (n_tokens == 1) /* memory is read fastest in few streams */
        dot_few(d, n_rows, 1, ahead, load, DOT_ROWS_ALONE);
    else if (n_tokens <= DOT_FEW)
        dot_few(d, n_rows, n_tokens, ahead, load, DOT_ROWS);
    else if (!DOT_PACKS)
        dot_in_place(d, n_rows, n_tokens, ahead, load);
    else
        for (int r = 0; r < n_rows; r += LC_DOT_STRETCH) {
            const dots part = dots_from(d, r, 0);
            dot_many(&part, lc_at_most(n_rows - r, LC_DOT_STRETCH), n_tokens, scratch, load);
        }
}

#define DEFINE_DOT(name, load, size)                                                                              \
    static void name(const uint8_t *rows, size_t row_bytes, int n_rows, const float *x, size_t ldx, int n_tokens, \
                     int n, const uint8_t *ahead, float *scratch, float *y, size_t ldy) {                         \
        const dots all = {rows, row_bytes, size, x, ldx, n, y, ldy};                                               \
        dot_rows(&all, n_rows, n_tokens, ahead, scratch, load);                                                   \
    }
DEFINE_DOT(dot_f32, load_f32, 4)
DEFINE_DOT(dot_f16, load_f16, 2)
DEFINE_DOT(dot_bf16, load_bf16, 2)
#undef DEFINE_DOT

#define USE_DOTS                \
    table->dot_f32 = dot_f32;   \
    table->dot_f16 = dot_f16;   \
    table->dot_bf16 = dot_bf16;

#endif
