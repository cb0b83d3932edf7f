/* The kernels of one instruction set.
 *
 * kernels_ref.c fills every entry in plain C; the file of an instruction set copies that table and overrides what it
 * does better. Contracts hold for all of them. Rules common to all:
 *   - pointers need no alignment, and nothing is read or written beyond the stated lengths;
 *   - a row's result depends on that row alone: not on how many rows or tokens a call is given (but that instruction
 *     sets with products of bf16 use them where a sequence is given many tokens at once);
 *   - not-finite input gives not-finite output.
 *
 * Arithmetic. Everything but the dot products of float formats is defined to the bit, so that every instruction set, and
 * the numba backend, gives the same: a difference in the last place would now and then move a rounded activation by a
 * whole step. "fma" is a * b + c rounded once, everything else is rounded step by step, in float32 unless stated.
 * Sums "in 16 lanes": lane l adds what has index l, l + 16, l + 32, ... to 0, in this order; then the upper half of the
 * lanes is added to the lower one, 8, 4, 2, 1 lanes at a time.
 *
 * Dot products of q8 formats have one order in every kernel, whatever its tile. Group after group of 32 values (for
 * formats with a scale per 16, of 16): d is the sum of products of codes, an exact integer;
 * sum = fma(d, weight scale * activation scale, sum); where there are minimums, sum = fma(-minimum, sums, sum). */
#ifndef LC_KERNEL_TABLE_H
#define LC_KERNEL_TABLE_H

#include <string.h>

#include "formats.h"
#include "localcoder.h"

enum {
    LC_GROUP = 32,           /* activations that share a scale */
    LC_LINE = 64,            /* bytes that come from memory together */
    LC_CODE_BIAS = 128,      /* what makes any signed code unsigned */
    LC_PANEL_ELEMS = 512,    /* most values of a row in a panel; a multiple of every format's block */
    LC_MAX_TILE_ROWS = 32,
    LC_MAX_TILE_TOKENS = 16,
    LC_BF16_ELEMS = 256,     /* most values of a row in a panel of bf16: two panels and two blocks of tokens fit the nearest cache */
    LC_BF16_SIDE = 16,       /* rows, and tokens, of a tile of bf16 */
    LC_BF16_PANEL = LC_BF16_SIDE * LC_BF16_ELEMS,
    LC_BF16_SUMS = LC_BF16_SIDE * LC_BF16_SIDE,
    LC_BF16_PAIR = 2 * LC_BF16_SIDE,           /* Tiles come in pairs: so many tokens or rows, */
    LC_BF16_PAIR_VALUES = LC_BF16_PAIR * 32,   /* so much of them for 32 values each, */
    LC_BF16_PAIR_SUMS = 4 * LC_BF16_SUMS,      /* and the sums of two pairs */
    LC_MAX_FEW_TOKENS = 8,
    /* Rows of float types with many tokens: */
    LC_DOT_SPAN = 2048,      /* so many values of a few tokens stay in cache while rows pass by, */
    LC_DOT_STRETCH = 64,     /* and so many rows while tokens do; */
    LC_DOT_SCRATCH = 6 * (LC_DOT_SPAN + 16 * LC_DOT_STRETCH) /* floats for at most 6 of those and their sums in 16 lanes */
};

static inline int lc_at_most(int n, int limit) { return n < limit ? n : limit; }

/* Activations of `n_tokens` tokens (at most tile_tokens), rounded to q8. n is the length of a row. */
typedef struct lc_q8_block {
    int32_t n_tokens;
    int32_t run_log2; /* as in the kernel table */
    int8_t *codes;    /* [n / run][n_tokens][run]; each kernel table has its own run */
    float *scales;   /* [n / 32][n_tokens] */
    int32_t *bias32; /* [n / 32][n_tokens] -LC_CODE_BIAS * sum of the group's codes */
    int32_t *bias16; /* [n / 16][n_tokens] the same for each half of a group */
    float *sums32;   /* [n / 32][n_tokens] scale * sum of the group's codes */
    float *sums16;   /* [n / 16][n_tokens] */
} lc_q8_block;

/* Puts group g of token t into the block: its codes, their scale, and the sums of either half's codes. */
static inline void lc_q8_put_group(const lc_q8_block *to, int g, int t, const int8_t *codes, float scale, int low,
                                   int high) {
    const lc_q8_block block = *to; /* for all the compiler knows, storing codes changes *to */
    const size_t n_tokens = (size_t)block.n_tokens, run = (size_t)1 << block.run_log2;
    int8_t *group = block.codes + (size_t)g * LC_GROUP * n_tokens + (size_t)t * run;
    for (size_t i = 0; i < LC_GROUP; i += 4) memcpy(group + i / run * run * n_tokens + i % run, codes + i, 4);
    const size_t at = (size_t)g * n_tokens + (size_t)t, at16 = 2 * (size_t)g * n_tokens + (size_t)t;
    block.scales[at] = scale;
    block.bias32[at] = -LC_CODE_BIAS * (low + high);
    block.bias16[at16] = -LC_CODE_BIAS * low;
    block.bias16[at16 + n_tokens] = -LC_CODE_BIAS * high;
    block.sums32[at] = scale * (float)(low + high);
    block.sums16[at16] = scale * (float)low;
    block.sums16[at16 + n_tokens] = scale * (float)high;
}

/* What activations are multiplied by before rounding; 0 where the group is zero or too small to be scaled up. */
static inline float lc_q8_inverse(float extreme) {
    const float inverse = 127.0f * (1.0f / extreme);
    return inverse <= 0x1.fffffep127f ? inverse : 0.0f;
}

/* tile_rows rows of weights, unpacked; n <= LC_PANEL_ELEMS values each. */
typedef struct lc_panel {
    uint8_t *codes; /* [n / 4][tile_rows][4]; where the format has no minimum, plus what its tile kernel subtracts again */
    float *scales;  /* [n / sub][tile_rows] */
    float *mins;    /* [n / sub][tile_rows]; only where the format has minimums, */
    int32_t *lacks; /* else the same of sums, over codes that are negative, of their sizes, for those who want it; see narrow_sums.h */
} lc_panel;

/* Asks for n bytes to be brought into the second-level cache; the address need not be valid. */
static inline void lc_fetch(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i += LC_LINE) __builtin_prefetch(p + i, 0, 2);
}

/* The same into the first. */
static inline void lc_bring(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i += LC_LINE) __builtin_prefetch(p + i, 0, 3);
}

/* For what one token meets but once: into the first where the text says so. */
static inline void lc_fetch_for_one(const uint8_t *p, size_t n) {
#if defined(FETCH_NEAR)
    lc_bring(p, n);
#else
    lc_fetch(p, n);
#endif
}

/* c[t * ldc + r] += row r of the panel . token t, for n values, all rows of the tile, all tokens of the block. */
typedef void (*lc_tile_fn)(const lc_panel *panel, const lc_q8_block *x, int n, float *c, int ldc);

/* Takes n values (a multiple of the block, at most LC_PANEL_ELEMS) of tile_rows rows apart; rows stand row_bytes
 * apart, those from n_rows on do not exist: their place holds anything finite. Meanwhile it asks for as many bytes from
 * `ahead` on as it reads itself: what will be wanted next, because processors do not foresee so many streams. */
typedef void (*lc_unpack_tile_fn)(const uint8_t *rows, size_t row_bytes, int n_rows, int n, const uint8_t *ahead,
                                  const lc_panel *panel);

/* n values (a multiple of the block, at most LC_BF16_ELEMS) of LC_BF16_SIDE rows as bf16, one of a pair of panels, which is
 * [n / 32][2][16][rows][2]. In the place of rows from n_rows on comes anything. */
typedef void (*lc_rows_bf16_fn)(const uint8_t *rows, size_t row_bytes, int n_rows, int n, uint16_t *panel);

/* Sums over n values, a multiple of 32, of LC_BF16_PAIR tokens, x [n / 32][2][tokens][32], with a pair of panels of weights
 * w, in float32, in the processor's order: c [2 panels][2][tokens][rows]; `goes_on`: what is there is added to. */
typedef void (*lc_tile_bf16_fn)(const uint16_t *w, const uint16_t *x, int n, bool goes_on, float *c);

/* The running softmax of LC_BF16_PAIR queries. */
typedef struct lc_bf16_softmax {
    float max[LC_BF16_PAIR], sum[LC_BF16_PAIR];
    float keep[LC_BF16_PAIR];   /* what the last keys shrink earlier sums by, */
    bool shrinks;                   /* where that is not 1 for all */
    int32_t last[LC_BF16_PAIR]; /* position of the last key that a query sees; -1: there is no query */
} lc_bf16_softmax;

/* c[r] = row r . x, n_rows whole rows of n values; x a block of one token. Same sums as the tile kernel. */
typedef void (*lc_matvec_fn)(const uint8_t *rows, size_t row_bytes, int n_rows, const lc_q8_block *x, int n,
                             const uint8_t *ahead, float *c);

/* c[t * ldc + r] = row r . x[t], the same with 2 to few_tokens blocks of one token each. */
typedef void (*lc_matvec_few_fn)(const uint8_t *rows, size_t row_bytes, int n_rows, const lc_q8_block *x, int n_tokens,
                                 int n, const uint8_t *ahead, float *c, int ldc);

/* y[t * ldy + r] = row r . x[t] for float types: n_rows rows that stand row_bytes apart, n_tokens rows of x, ldx
 * floats apart. Each sum runs in several lanes that are added in a fixed order at the end. `ahead` as above, from the
 * last few rows on. scratch: LC_DOT_SCRATCH floats, aligned to cache lines. */
typedef void (*lc_float_tile_fn)(const uint8_t *rows, size_t row_bytes, int n_rows, const float *x, size_t ldx,
                                 int n_tokens, int n, const uint8_t *ahead, float *scratch, float *y, size_t ldy);

/* n blocks of values x, searched for the least squared error. w: a weight for each value, in w_blocks blocks that repeat
 * for ever, of which x starts at block `first`; NULL: all equal. False if a value is not finite: then some blocks may be
 * missing. The same bits in every instruction set; see localcoder/quants/search.py. */
typedef bool (*lc_search_fn)(const float *x, int64_t n, const float *w, int64_t w_blocks, int64_t first,
                             uint8_t *blocks);

/* So many rounds of multiply-adds on registers, of one kind; returns the number of operations. */
typedef int64_t (*lc_peak_fn)(int64_t rounds);

typedef struct lc_kernels {
    const char *isa;
    int tile_rows;
    int tile_tokens;
    int few_tokens; /* most tokens that matvec_few takes, at most LC_MAX_FEW_TOKENS; 1: there is none */
    int run_log2;   /* 2 to 5: 1 << run_log2 rounded values of a token stand together */
    int code_bias;  /* 0 or LC_CODE_BIAS: what panels of formats without unpack_tile add to signed codes */

    /* One token: x [n], n a multiple of 32, into place `t` of its block. */
    void (*quantize_q8)(const float *x, int n, const lc_q8_block *block, int t);
    lc_tile_fn tile[LC_TYPE_END];
    lc_unpack_tile_fn unpack_tile[LC_TYPE_END]; /* NULL: lc_format.unpack, then interleaved */
    /* Products of bf16, rounded to nearest even; all or none. round_bf16: n activations of a token, a multiple of 32, to its place in x.
     * end_bf16: a token's sums with n_rows rows, c being the first, those in the next tile 2 LC_BF16_SUMS further; what is not NULL of `residual` is
     * added, or they are `gate` and those at c2 `up` of silu_mul. */
    void (*round_bf16)(const float *x, int n, uint16_t *to);
    lc_rows_bf16_fn rows_bf16[LC_TYPE_END]; /* NULL: unpack_tile, then panel_bf16 */
    void (*panel_bf16)(const lc_panel *panel, int n, int sub, bool has_min, uint16_t *to);
    lc_tile_bf16_fn tile_bf16;
    void (*end_bf16)(const float *c, const float *c2, const float *residual, int n_rows, float *out);
    /* silu_mul of both, n_rows a multiple of 32, as round_bf16 would put it. */
    void (*end_pair_bf16)(const float *c, const float *c2, int n_rows, uint16_t *to);
    /* Attention on them. columns_bf16: LC_BF16_SIDE rows of d values, one after another, to a panel of a pair. softmax_bf16:
     * sums of n_keys keys from number key0 on with queries, of LC_BF16_PAIR keys each, become weights, times `scale`: a pair
     * of blocks, with 0 for keys that are missing.
     * values_bf16: 32 values of as many rows to a pair of panels that the rows run along. shrink_bf16: `keep` times sums. */
    void (*columns_bf16)(const float *x, int d, uint16_t *panel);
    void (*softmax_bf16)(const float *scores, int n_keys, int key0, float scale, lc_bf16_softmax *state, uint16_t *weights);
    void (*values_bf16)(const float *x, int ldx, uint16_t *panels);
    void (*shrink_bf16)(const lc_bf16_softmax *state, float *c);
    lc_matvec_fn matvec[LC_TYPE_END];           /* NULL: tiles of one token */
    lc_matvec_few_fn matvec_few[LC_TYPE_END];   /* NULL: tiles of one token, one after the other */
    lc_float_tile_fn dot_f32, dot_f16, dot_bf16;
    /* n values, a multiple of 32, as float32: what a KV cache is kept in. NULL: lc_dequantize_row */
    void (*to_float[LC_TYPE_END])(const uint8_t *blocks, int n, float *x);
    lc_search_fn search[LC_TYPE_END]; /* NULL: there is no search for this format */

    lc_peak_fn peak[LC_PEAK_END];     /* by enum lc_peak; NULL: no such instruction */

    /* out = x / sqrt(mean(x²) + eps) · weight: squares summed in 8 lanes of double (as 16 lanes), 1 / sqrt(sum / n + eps) in
     * double, rounded to float; out = (x · that) · weight */
    void (*rms_norm)(const float *x, const float *weight, int n, double eps, float *out);
    /* Rotates the pairs of n_head heads; cos, sin [head_dim / 2]. out may be x.
     * even = fma(even, cos, -(odd · sin)), odd = fma(odd, cos, even · sin) */
    void (*rope)(const float *x, const float *cos, const float *sin, int n_head, int head_dim, float *out);
    /* out = gate · sigmoid(gate) · up = (gate / (1 + lc_exp(-gate))) · up. out may be either. */
    void (*silu_mul)(const float *gate, const float *up, int n, float *out);
    void (*add)(const float *a, const float *b, int n, float *out);
    void (*half_to_float)(const uint16_t *h, int n, float *x);
    void (*float_to_half)(const float *x, int n, uint16_t *h);

    /* Attention over one block of keys. d is the head dimension padded with zeros to a multiple of 16.
     * scores[i * lds + j] = (q[i * d ...] . k[j * d ...]) * scale, the dot product in 16 lanes by fma */
    void (*attend_scores)(const float *q, int n_q, const float *k, int n_k, int d, float scale, float *scores, int lds);
    /* scores = lc_exp(scores - max), n a multiple of 16; returns their sum, in 16 lanes. */
    float (*exp_sum)(float *scores, int n, float max);
    /* out[i * d ...] *= keep[i]; then for ascending j, out[i * d ...] = fma(weights[i * ldw + j], v[j * d ...], out[i * d ...]) */
    void (*attend_mix)(const float *weights, int ldw, const float *keep, int n_q, const float *v, int n_k, int d,
                       float *out);
    /* The same for one query and rows of n_k keys or values as they lie in the cache, d values (a multiple of 32) each;
     * asks for as many bytes `ahead`. NULL: rows become float32 first. */
    void (*scores_along[LC_TYPE_END])(const float *q, const uint8_t *rows, size_t row_bytes, int n_k, int d,
                                      float scale, const uint8_t *ahead, float *scores);
    void (*mix_along[LC_TYPE_END])(const float *weights, float keep, const uint8_t *rows, size_t row_bytes, int n_k,
                                   int d, const uint8_t *ahead, float *out);
    /* Every thread calls it when its part of a step is done: gives back what kernels left with the thread. */
    void (*end_step)(void);
} lc_kernels;

static inline bool lc_has_bf16(const lc_kernels *kernels) { return kernels->tile_bf16 != NULL; }

/* Gives every format the tile kernel of its kind: `sub` values share a scale, with minimums or without. */
static inline void lc_use_tiles(lc_kernels *table, lc_tile_fn tile_32, lc_tile_fn tile_16, lc_tile_fn tile_32_min,
                                lc_tile_fn tile_16_min) {
    for (int32_t type = 0; type < LC_TYPE_END; type++) {
        const lc_format *format = lc_format_of(type);
        if (format == NULL || !format->is_q8) continue;
        if (format->has_min) table->tile[type] = format->sub == 32 ? tile_32_min : tile_16_min;
        else table->tile[type] = format->sub == 32 ? tile_32 : tile_16;
    }
}

/* Fills a table. lc_kernels_ref fills all of it but `search`; others write their own entries over what their base left. The
 * file of an instruction set calls its function LC_KERNELS and itself LC_ISA_NAME: instruction_sets.cmake defines them.
 * lc_searches_NAME fills `search`. */
typedef void lc_kernels_fn_type(lc_kernels *table);
typedef lc_kernels_fn_type *lc_kernels_fn;
lc_kernels_fn_type lc_kernels_ref;

#endif
