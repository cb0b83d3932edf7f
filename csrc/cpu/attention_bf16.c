/* Attention in products of bf16: scores lie with the keys in rows and the queries in the lanes, so that nothing is added or
 * compared across lanes. */
#include <math.h>
#include <string.h>

#include "attention.h"

enum {
    SIDE = LC_BF16_SIDE,
    PAIR = LC_BF16_PAIR,
    PAIR_VALUES = LC_BF16_PAIR_VALUES,
    PAIR_SUMS = LC_BF16_PAIR_SUMS,
    KEYS = 64, /* at a time */
    MAX_PAIRS = KEYS / PAIR
};
_Static_assert((int)LC_ATTEND_QUERIES == PAIR && (int)LC_ATTEND_KEYS == PAIR, "pairs of tiles");

static int padded(int n) { return (n + 31) / 32 * 32; }

/* The queries of a piece, and what has been gathered for them. */
typedef struct queries {
    lc_attend_piece of;
    int d;
    float *rows;       /* [PAIR][d] of the cache */
    float *scores;     /* [KEYS / PAIR] sums of keys with queries */
    float *out;        /* [d / 32] sums of queries with values */
    uint16_t *q;       /* a pair of panels of d values */
    uint16_t *keys;    /* a pair of blocks of d values */
    uint16_t *values;  /* [d / 32] pairs of panels of KEYS values */
    uint16_t *weights; /* a pair of blocks of KEYS values */
    lc_bf16_softmax state;
} queries;

size_t lc_attend_bf16_scratch(const lc_kv *kv) {
    const size_t d = (size_t)padded(kv->head_dim);
    const size_t sums = PAIR * d + MAX_PAIRS * PAIR_SUMS + d / 32 * PAIR_SUMS;
    const size_t in_bf16 = 2 * PAIR * d + KEYS * d + KEYS * PAIR;
    return sums + in_bf16 / 2;
}

static void start(const lc_attention *a, int item, float *scratch, queries *w) {
    const int head_dim = a->kv->head_dim;
    w->of = lc_attend_piece_of(a, item);
    w->d = padded(head_dim);
    w->rows = scratch;
    w->scores = w->rows + PAIR * w->d;
    w->out = w->scores + MAX_PAIRS * PAIR_SUMS;
    w->q = (uint16_t *)(void *)(w->out + w->d / 32 * PAIR_SUMS);
    w->keys = w->q + PAIR * w->d;
    w->values = w->keys + PAIR * w->d;
    w->weights = w->values + KEYS * w->d;
    memset(w->out, 0, (size_t)(w->d / 32) * PAIR_SUMS * sizeof *w->out);
    memset(w->rows, 0, (size_t)PAIR * (size_t)w->d * sizeof *w->rows);
    for (int i = 0; i < PAIR; i++) {
        w->state.max[i] = -INFINITY;
        w->state.sum[i] = 0;
        w->state.last[i] = i < w->of.n ? a->step->positions[w->of.run.first + i / w->of.n_heads] : -1;
        if (i < w->of.n)
            memcpy(w->rows + i * w->d, a->q + lc_attend_query(a, &w->of, i), (size_t)head_dim * sizeof *w->rows);
    }
    for (int i = 0; i < 2; i++) a->kernels->columns_bf16(w->rows + i * SIDE * w->d, w->d, w->q + i * SIDE * 32);
}

/* PAIR rows of the cache, of which n exist, as float32. */
static void load(const lc_attention *a, queries *w, const uint8_t *page, int first, int n, const uint8_t *ahead) {
    lc_load_kv_rows(a, page, first, n, w->d, ahead, w->rows);
    memset(w->rows + n * w->d, 0, (size_t)(PAIR - n) * (size_t)w->d * sizeof *w->rows);
}

/* Keys key0 ... key0 + n - 1, at most KEYS, which are number `first` and more of a page. */
static void attend(const lc_attention *a, queries *w, const uint8_t *keys, const uint8_t *values, int first, int n, int key0,
                   const uint8_t *ahead) {
    const lc_kernels *kernels = a->kernels;
    const int n_pairs = (n + PAIR - 1) / PAIR;
    for (int i = 0; i < n_pairs; i++) {
        const int left = n - i * PAIR;
        load(a, w, keys, first + i * PAIR, left < PAIR ? left : PAIR, values);
        for (int r = 0; r < PAIR; r++) kernels->round_bf16(w->rows + r * w->d, w->d, w->keys + r * 32);
        kernels->tile_bf16(w->q, w->keys, w->d, false, w->scores + i * PAIR_SUMS);
    }
    kernels->softmax_bf16(w->scores, n, key0, 1.0f / sqrtf((float)a->kv->head_dim), &w->state, w->weights);
    for (int i = 0; i < n_pairs; i++) {
        const int left = n - i * PAIR;
        load(a, w, values, first + i * PAIR, left < PAIR ? left : PAIR, ahead);
        for (int e = 0; e < w->d / 32; e++)
            kernels->values_bf16(w->rows + e * 32, w->d, w->values + (e * MAX_PAIRS + i) * PAIR_VALUES);
    }
    for (int e = 0; e < w->d / 32; e++) {
        float *out = w->out + e * PAIR_SUMS;
        kernels->shrink_bf16(&w->state, out);
        kernels->tile_bf16(w->values + e * MAX_PAIRS * PAIR_VALUES, w->weights, n_pairs * PAIR, true, out);
    }
}

static void attend_page(const lc_attention *a, void *work, const uint8_t *keys, const uint8_t *values, int key0, int n,
                        const uint8_t *ahead) {
    for (int first = 0; first < n; first += KEYS)
        attend(a, work, keys, values, first, n - first < KEYS ? n - first : KEYS, key0 + first, ahead);
}

void lc_attend_bf16_item(const lc_attention *a, int item, float *scratch) {
    const lc_kv *kv = a->kv;
    queries w;
    start(a, item, scratch, &w);
    lc_attend_pages(a, &w.of, attend_page, &w);
    for (int i = 0; i < w.of.n; i++) {
        float *out = a->out + lc_attend_query(a, &w.of, i);
        for (int e0 = 0; e0 < kv->head_dim; e0 += SIDE) {
            const float *sums = w.out + e0 / SIDE * 2 * LC_BF16_SUMS + i * SIDE;
            const int n = kv->head_dim - e0 < SIDE ? kv->head_dim - e0 : SIDE;
            for (int e = 0; e < n; e++) out[e0 + e] = sums[e] / w.state.sum[i];
        }
    }
}
