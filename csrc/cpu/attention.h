/* Causal attention over paged keys and values, one block (page) of keys at a time with a running softmax. */
#ifndef LC_ATTENTION_H
#define LC_ATTENTION_H

#include "kernel_table.h"
#include "localcoder.h"

enum {
    LC_ATTEND_QUERIES = 32, /* most query rows (tokens x heads of a group) in one piece of work */
    LC_ATTEND_KEYS = 32     /* rows of the cache that are made float32 at a time: they stay in the nearest cache */
};

/* Tokens of one sequence that stand together in a step. */
typedef struct lc_run {
    int first, n;
} lc_run;

typedef struct lc_attention {
    const lc_kernels *kernels;
    const lc_kv *kv;
    const lc_step *step;
    int layer, n_head;
    const float *q; /* [n_tokens][n_head * head_dim] */
    float *out;     /* same */
    const lc_run *runs;
    int n_runs;
    bool is_bf16; /* in products of bf16 */
} lc_attention;

/* A piece of work: queries, which are tokens of a run x heads that share keys. */
typedef struct lc_attend_piece {
    lc_run run;
    int head0, n_heads, head_kv;
    int n; /* queries; token after token, each with all heads */
} lc_attend_piece;

lc_attend_piece lc_attend_piece_of(const lc_attention *attention, int item);
/* Where query i is in q and out. */
size_t lc_attend_query(const lc_attention *attention, const lc_attend_piece *piece, int i);

/* Most tokens of a run. */
int lc_attend_run_tokens(int n_head, int n_head_kv);
/* Pieces of work in a step. */
int lc_attend_count(const lc_attention *attention);
/* Floats of scratch that one thread needs. */
size_t lc_attend_scratch(const lc_kernels *kernels, const lc_kv *kv);
void lc_attend_item(const lc_attention *attention, int item, float *scratch);

/* The same in products of bf16. */
size_t lc_attend_bf16_scratch(const lc_kv *kv);
void lc_attend_bf16_item(const lc_attention *attention, int item, float *scratch);

/* Takes n keys of a page, which begins with key number key0; what lies at `ahead` will be wanted next. */
typedef void (*lc_attend_page_fn)(const lc_attention *attention, void *work, const uint8_t *keys, const uint8_t *values, int key0,
                                  int n, const uint8_t *ahead);
/* All keys that a piece sees, page by page. */
void lc_attend_pages(const lc_attention *attention, const lc_attend_piece *piece, lc_attend_page_fn attend, void *work);

/* Rows of the cache from number `first` of a page on, as float32 [n][d]; meanwhile asks for as many of `ahead`. */
void lc_load_kv_rows(const lc_attention *attention, const uint8_t *page, int first, int n, int d, const uint8_t *ahead,
                     float *out);

/* Where head h of `position` lies in k or v of `layer`. */
size_t lc_kv_offset(const lc_kv *kv, const lc_step *step, int layer, int token, int position, int head);

#endif
