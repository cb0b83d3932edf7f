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

size_t lc_attend_scratch(const lc_kv *kv) {
    const size_t d = (size_t)padded(kv->head_dim), page = (size_t)padded(kv->page_size);
    return 2 * LC_ATTEND_QUERIES * d    /* queries, results */
           + LC_ATTEND_QUERIES * page   /* scores */
           + (size_t)kv->page_size * d; /* keys, then values, of one page */
}

size_t lc_kv_offset(const lc_kv *kv, const lc_step *step, int layer, int token, int position, int head) {
    const int sequence = step->sequences[token];
    const int page = step->page_table[(size_t)sequence * (size_t)step->n_entries + (size_t)(position / kv->page_size)];
    const size_t row = lc_row_bytes(lc_format_of(kv->type), kv->head_dim);
    const size_t head_at = ((size_t)layer * (size_t)kv->n_pages + (size_t)page) * (size_t)kv->n_head_kv + (size_t)head;
    return (head_at * (size_t)kv->page_size + (size_t)(position % kv->page_size)) * row;
}

/* n rows of the cache as float32 [n][d]. */
static void load_rows(const lc_attention *a, const uint8_t *rows, int n, int d, float *out) {
    const int head_dim = a->kv->head_dim;
    const size_t row_bytes = lc_row_bytes(lc_format_of(a->kv->type), head_dim);
    for (int i = 0; i < n; i++) {
        const uint8_t *row = rows + (size_t)i * row_bytes;
        if (a->kv->type == LC_TYPE_F16)
            a->kernels->half_to_float((const uint16_t *)(const void *)row, head_dim, out + i * d);
        else
            lc_dequantize_row(a->kv->type, row, NULL, head_dim, out + i * d);
        for (int e = head_dim; e < d; e++) out[i * d + e] = 0;
    }
}

/* Turns the scores of one query over a page into weights; the first n_seen keys count. */
static void softmax_block(const lc_kernels *kernels, float *scores, int n_seen, int n, float *max, float *sum,
                          float *keep) {
    float top = *max;
    for (int j = 0; j < n_seen; j++)
        if (scores[j] > top) top = scores[j];
    for (int j = n_seen; j < n; j++) scores[j] = -INFINITY;
    *keep = *max == top ? 1.0f : lc_exp(*max - top);
    *max = top;
    *sum = *sum * *keep + kernels->exp_sum(scores, n, top);
}

void lc_attend_item(const lc_attention *a, int item, float *scratch) {
    const lc_kv *kv = a->kv;
    const int head_dim = kv->head_dim, page_size = kv->page_size;
    const int group = a->n_head / kv->n_head_kv, pieces = pieces_of_group(group), at_once = heads_at_once(group);
    /* The last run first: its keys are the most. */
    const lc_run run = a->runs[a->n_runs - 1 - item / (kv->n_head_kv * pieces)];
    const int head_kv = item / pieces % kv->n_head_kv;
    const int head0 = head_kv * group + item % pieces * at_once;
    const int left = (head_kv + 1) * group - head0, n_heads = left < at_once ? left : at_once;
    const int n_q = run.n * n_heads, d = padded(head_dim), lds = padded(page_size);
    const size_t width = (size_t)a->n_head * (size_t)head_dim;
    const float scale = 1.0f / sqrtf((float)head_dim);

    float *q = scratch, *out = q + LC_ATTEND_QUERIES * d, *scores = out + LC_ATTEND_QUERIES * d;
    float *rows = scores + LC_ATTEND_QUERIES * lds;
    float max[LC_ATTEND_QUERIES], sum[LC_ATTEND_QUERIES], keep[LC_ATTEND_QUERIES];
    memset(q, 0, (size_t)n_q * (size_t)d * sizeof *q);
    memset(out, 0, (size_t)n_q * (size_t)d * sizeof *out);
    for (int i = 0; i < n_q; i++) {
        const size_t from = (size_t)(run.first + i / n_heads) * width + (size_t)((head0 + i % n_heads) * head_dim);
        memcpy(q + i * d, a->q + from, (size_t)head_dim * sizeof *q);
        max[i] = -INFINITY;
        sum[i] = 0;
    }
    const int last = a->step->positions[run.first + run.n - 1];
    for (int key0 = 0; key0 <= last; key0 += page_size) {
        const int n_k = last + 1 - key0 < page_size ? last + 1 - key0 : page_size;
        const size_t offset = lc_kv_offset(kv, a->step, a->layer, run.first, key0, head_kv);
        load_rows(a, kv->k + offset, n_k, d, rows);
        a->kernels->attend_scores(q, n_q, rows, n_k, d, scale, scores, lds);
        for (int i = 0; i < n_q; i++) {
            const int seen = a->step->positions[run.first + i / n_heads] + 1 - key0;
            const int n_seen = seen < 0 ? 0 : seen < n_k ? seen : n_k;
            if (n_seen == 0) {
                memset(scores + i * lds, 0, (size_t)lds * sizeof *scores);
                keep[i] = 1.0f;
            } else {
                softmax_block(a->kernels, scores + i * lds, n_seen, lds, &max[i], &sum[i], &keep[i]);
            }
        }
        load_rows(a, kv->v + offset, n_k, d, rows);
        a->kernels->attend_mix(scores, lds, keep, n_q, rows, n_k, d, out);
    }
    for (int i = 0; i < n_q; i++) {
        const size_t to = (size_t)(run.first + i / n_heads) * width + (size_t)((head0 + i % n_heads) * head_dim);
        for (int e = 0; e < head_dim; e++) a->out[to + (size_t)e] = out[i * d + e] / sum[i];
    }
}
