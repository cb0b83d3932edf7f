#include "attention.h"

#include <math.h>
#include <string.h>

#include "aligned.h"
#include "fused.h"

static int padded(int n) { return (n + 15) / 16 * 16; }

int lc_attend_run_tokens(int n_head, int n_head_kv) {
    const int group = n_head / n_head_kv;
    return group >= LC_ATTEND_QUERIES ? 1 : LC_ATTEND_QUERIES / group;
}

/* Heads of a group that are computed together. */
static int heads_at_once(int group) { return group < LC_ATTEND_QUERIES ? group : LC_ATTEND_QUERIES; }

static int pieces_of_group(int group) { return (group + LC_ATTEND_QUERIES - 1) / LC_ATTEND_QUERIES; }

int lc_attend_count(const lc_attention *a) {
    return a->n_runs * a->kv->n_head_kv * pieces_of_group(a->n_head / a->kv->n_head_kv);
}

size_t lc_attend_scratch(const lc_kernels *kernels, const lc_kv *kv) {
    const size_t d = (size_t)padded(kv->head_dim), page = (size_t)padded(kv->page_size);
    const size_t n = 2 * LC_ATTEND_QUERIES * d    /* queries, results */
                     + LC_ATTEND_QUERIES * page   /* scores */
                     + LC_ATTEND_KEYS * d;        /* keys, then values */
    const size_t in_bf16 = lc_has_bf16(kernels) ? lc_attend_bf16_scratch(kv) : 0;
    return n > in_bf16 ? n : in_bf16;
}

size_t lc_kv_offset(const lc_kv *kv, const lc_step *step, int layer, int token, int position, int head) {
    const int sequence = step->sequences[token];
    const int page = step->page_table[(size_t)sequence * (size_t)step->n_entries + (size_t)(position / kv->page_size)];
    const size_t row = lc_row_bytes(lc_format_of(kv->type), kv->head_dim);
    const size_t head_at = ((size_t)layer * (size_t)kv->n_pages + (size_t)page) * (size_t)kv->n_head_kv + (size_t)head;
    return (head_at * (size_t)kv->page_size + (size_t)(position % kv->page_size)) * row;
}

void lc_load_kv_rows(const lc_attention *a, const uint8_t *page, int first, int n, int d, const uint8_t *ahead, float *out) {
    const int head_dim = a->kv->head_dim, type = a->kv->type;
    const size_t row_bytes = lc_row_bytes(lc_format_of(type), head_dim);
    for (int i = 0; i < n; i++, out += d) {
        const size_t at = (size_t)(first + i) * row_bytes;
        lc_fetch(ahead + at, row_bytes);
        if (a->kernels->to_float[type] != NULL && head_dim % 32 == 0)
            a->kernels->to_float[type](page + at, head_dim, out);
        else if (type == LC_TYPE_F16)
            a->kernels->half_to_float((const uint16_t *)(const void *)(page + at), head_dim, out);
        else
            lc_dequantize_row(type, page + at, NULL, head_dim, out);
        for (int e = head_dim; e < d; e++) out[e] = 0;
    }
}

/* Whether the cache's rows are read as they lie: one query gains nothing from making them float32 first. */
static bool reads_along(const lc_attention *a, int n_queries) {
    return n_queries == 1 && a->kv->head_dim % 32 == 0 && a->kernels->scores_along[a->kv->type] != NULL;
}

/* The largest of n scores and `top`; not-a-numbers do not count. */
static float largest(const float *scores, int n, float top) {
    enum { LANES = 16 };
    float tops[LANES];
    for (int l = 0; l < LANES; l++) tops[l] = top;
    int j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int l = 0; l < LANES; l++) tops[l] = scores[j + l] > tops[l] ? scores[j + l] : tops[l];
    for (int l = 0; l < LANES; l++) top = tops[l] > top ? tops[l] : top;
    for (; j < n; j++) top = scores[j] > top ? scores[j] : top;
    return top;
}

/* Turns the scores of one query over a page into weights; the first n_seen keys count. */
static void softmax_block(const lc_kernels *kernels, float *scores, int n_seen, int n, float *max, float *sum,
                          float *keep) {
    const float top = largest(scores, n_seen, *max);
    for (int j = n_seen; j < n; j++) scores[j] = -INFINITY;
    *keep = *max == top ? 1.0f : lc_exp(*max - top);
    *max = top;
    *sum = *sum * *keep + kernels->exp_sum(scores, n, top);
}

lc_attend_piece lc_attend_piece_of(const lc_attention *a, int item) {
    const int n_head_kv = a->kv->n_head_kv, group = a->n_head / n_head_kv;
    const int pieces = pieces_of_group(group), at_once = heads_at_once(group);
    /* The last run first: its keys are the most. */
    lc_attend_piece piece = {.run = a->runs[a->n_runs - 1 - item / (n_head_kv * pieces)], .head_kv = item / pieces % n_head_kv};
    piece.head0 = piece.head_kv * group + item % pieces * at_once;
    const int left = (piece.head_kv + 1) * group - piece.head0;
    piece.n_heads = left < at_once ? left : at_once;
    piece.n = piece.run.n * piece.n_heads;
    return piece;
}

size_t lc_attend_query(const lc_attention *a, const lc_attend_piece *piece, int i) {
    const int token = piece->run.first + i / piece->n_heads, head = piece->head0 + i % piece->n_heads;
    return ((size_t)token * (size_t)a->n_head + (size_t)head) * (size_t)a->kv->head_dim;
}

/* What has been gathered for the queries of a piece. */
typedef struct queries {
    lc_attend_piece of;
    int d;
    float *q, *out;     /* [of.n][d] */
    float *scores;      /* [of.n][lds] */
    int lds;
    float *rows;        /* [LC_ATTEND_KEYS][d] */
    float max[LC_ATTEND_QUERIES], sum[LC_ATTEND_QUERIES], keep[LC_ATTEND_QUERIES];
} queries;

static void start_queries(const lc_attention *a, int item, float *scratch, queries *w) {
    const lc_kv *kv = a->kv;
    w->of = lc_attend_piece_of(a, item);
    w->d = padded(kv->head_dim);
    w->lds = padded(kv->page_size);
    w->q = scratch;
    w->out = w->q + LC_ATTEND_QUERIES * w->d;
    w->scores = w->out + LC_ATTEND_QUERIES * w->d;
    w->rows = w->scores + LC_ATTEND_QUERIES * w->lds;
    memset(w->q, 0, (size_t)w->of.n * (size_t)w->d * sizeof *w->q);
    memset(w->out, 0, (size_t)w->of.n * (size_t)w->d * sizeof *w->out);
    for (int i = 0; i < w->of.n; i++) {
        memcpy(w->q + i * w->d, a->q + lc_attend_query(a, &w->of, i), (size_t)kv->head_dim * sizeof *w->q);
        w->max[i] = -INFINITY;
        w->sum[i] = 0;
    }
}

/* Scores of n_k keys of a page. */
static void score_page(const lc_attention *a, queries *w, const uint8_t *keys, int n_k, const uint8_t *ahead) {
    const lc_kv *kv = a->kv;
    const float scale = 1.0f / sqrtf((float)kv->head_dim);
    if (reads_along(a, w->of.n)) {
        const size_t row_bytes = lc_row_bytes(lc_format_of(kv->type), kv->head_dim);
        a->kernels->scores_along[kv->type](w->q, keys, row_bytes, n_k, w->d, scale, ahead, w->scores);
        return;
    }
    for (int j = 0; j < n_k; j += LC_ATTEND_KEYS) {
        const int n = n_k - j < LC_ATTEND_KEYS ? n_k - j : LC_ATTEND_KEYS;
        lc_load_kv_rows(a, keys, j, n, w->d, ahead, w->rows);
        a->kernels->attend_scores(w->q, w->of.n, w->rows, n, w->d, scale, w->scores + j, w->lds);
    }
}

/* Scores of keys key0 ... key0 + n_k - 1 become weights. */
static void weigh_page(const lc_attention *a, queries *w, int key0, int n_k) {
    for (int i = 0; i < w->of.n; i++) {
        float *scores = w->scores + i * w->lds;
        const int seen = a->step->positions[w->of.run.first + i / w->of.n_heads] + 1 - key0;
        const int n_seen = seen < 0 ? 0 : seen < n_k ? seen : n_k;
        if (n_seen == 0) {
            memset(scores, 0, (size_t)w->lds * sizeof *scores);
            w->keep[i] = 1.0f;
        } else {
            softmax_block(a->kernels, scores, n_seen, w->lds, &w->max[i], &w->sum[i], &w->keep[i]);
        }
    }
}

static void mix_page(const lc_attention *a, queries *w, const uint8_t *values, int n_k, const uint8_t *ahead) {
    const lc_kv *kv = a->kv;
    if (reads_along(a, w->of.n)) {
        const size_t row_bytes = lc_row_bytes(lc_format_of(kv->type), kv->head_dim);
        a->kernels->mix_along[kv->type](w->scores, w->keep[0], values, row_bytes, n_k, w->d, ahead, w->out);
        return;
    }
    for (int j = 0; j < n_k; j += LC_ATTEND_KEYS) {
        const int n = n_k - j < LC_ATTEND_KEYS ? n_k - j : LC_ATTEND_KEYS;
        lc_load_kv_rows(a, values, j, n, w->d, ahead, w->rows);
        a->kernels->attend_mix(w->scores + j, w->lds, w->keep, w->of.n, w->rows, n, w->d, w->out);
        for (int i = 0; i < w->of.n; i++) w->keep[i] = 1.0f; /* what was there has been shrunk by now */
    }
}

void lc_attend_pages(const lc_attention *a, const lc_attend_piece *piece, lc_attend_page_fn attend, void *work) {
    const lc_kv *kv = a->kv;
    const int first = piece->run.first, last = a->step->positions[first + piece->run.n - 1], page_size = kv->page_size;
    size_t here = lc_kv_offset(kv, a->step, a->layer, first, 0, piece->head_kv), next = here;
    for (int key0 = 0; key0 <= last; key0 += page_size, here = next) {
        const int left = last + 1 - key0, n = left < page_size ? left : page_size;
        if (left > page_size) next = lc_kv_offset(kv, a->step, a->layer, first, key0 + page_size, piece->head_kv);
        attend(a, work, kv->k + here, kv->v + here, key0, n, kv->k + next);
    }
}

static void attend_page(const lc_attention *a, void *work, const uint8_t *keys, const uint8_t *values, int key0, int n,
                        const uint8_t *ahead) {
    score_page(a, work, keys, n, values);
    weigh_page(a, work, key0, n);
    mix_page(a, work, values, n, ahead);
}

void lc_attend_item(const lc_attention *a, int item, float *scratch) {
    if (a->is_bf16) {
        lc_attend_bf16_item(a, item, scratch);
        return;
    }
    const lc_kv *kv = a->kv;
    queries w;
    start_queries(a, item, scratch, &w);
    lc_attend_pages(a, &w.of, attend_page, &w);
    for (int i = 0; i < w.of.n; i++) {
        float *out = a->out + lc_attend_query(a, &w.of, i);
        for (int e = 0; e < kv->head_dim; e++) out[e] = w.out[i * w.d + e] / w.sum[i];
    }
}
