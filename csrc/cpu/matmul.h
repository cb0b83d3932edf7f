/* Products of activations with weights in any block format, in chunks of rows that threads take in turn. */
#ifndef LC_MATMUL_H
#define LC_MATMUL_H

#include "kernel_table.h"
#include "localcoder.h"

/* Rounded activations of a step: blocks of lc_q8_block_tokens() tokens, the last one shorter; or of LC_BF16_SIDE of bf16. */
typedef struct lc_activations {
    uint8_t *memory; /* lc_activation_bytes(kernels, max_tokens, max_n) */
    int n_tokens;
    int n; /* length of a row, a multiple of 32 */
    bool is_bf16; /* kernels->tile_bf16 multiplies them */
} lc_activations;

size_t lc_activation_bytes(const lc_kernels *kernels, int n_tokens, int n);
/* Rounds x [n] into the place of token t. */
void lc_round_activations(const lc_kernels *kernels, const lc_activations *to, int t, const float *x);
/* The same where activations are bf16. */
void lc_round_bf16(const lc_kernels *kernels, const lc_activations *to, int t, const float *x);
/* 1 where the tokens are few enough for the matvec kernels, else tile_tokens. */
int lc_q8_block_tokens(const lc_kernels *kernels, const lc_activations *store);
/* Block b of the store. */
lc_q8_block lc_q8_block_at(const lc_kernels *kernels, const lc_activations *store, int b);
/* The same block from value k0 (a multiple of 32) on. */
lc_q8_block lc_q8_block_from(const lc_q8_block *block, int k0);

enum {
    LC_CHUNK_ROWS = 64, /* most rows in a chunk; a multiple of every tile_rows */
    LC_FEW_TOKENS = 8,  /* So many may have longer chunks, because memory is read faster the further it is read on: */
    LC_FEW_ROWS = 128,  /* so many rows at most */
    LC_BF16_ROWS = 256, /* the same where activations are bf16: each of them meets so many rows before it makes room */
    LC_FLOAT_ROWS = 4   /* rows of block formats that are made float32 at a time */
};

/* What one thread needs besides its stack. */
typedef struct lc_matmul_scratch {
    uint8_t *panels; /* lc_panels_bytes() */
    float *c[2];     /* lc_sums_bytes() */
    float *rows;     /* [LC_FLOAT_ROWS][n_in] for block formats whose activations stay float32, else NULL */
} lc_matmul_scratch;

/* A tile's panel, and where it lies. */
size_t lc_panel_bytes(const lc_kernels *kernels);
lc_panel lc_panel_at(const lc_kernels *kernels, uint8_t *panels, int tile);
void lc_unpack_tile(const lc_kernels *kernels, const lc_weight *weight, const uint8_t *rows, size_t row_bytes, int n_rows,
                    int n, const uint8_t *ahead, const lc_panel *panel);

size_t lc_panels_bytes(const lc_kernels *kernels);
size_t lc_sums_bytes(const lc_kernels *kernels, int max_tokens);
/* From the sums of one token to those of the next. */
static inline int lc_sums_step(int n_tokens) { return n_tokens <= LC_FEW_TOKENS ? LC_FEW_ROWS : LC_CHUNK_ROWS; }

/* Where rows of `weight` from row0 on meet all tokens: c[t * lc_sums_step(n_tokens) + r], r < n_rows. Quantized formats read
 * `q8`, float types read x [n_tokens][n_in]. `ahead`: where the thread will read next. */
void lc_matmul_chunk(const lc_kernels *kernels, const lc_weight *weight, int row0, int n_rows, const lc_activations *q8,
                     const float *x, int n_tokens, const uint8_t *ahead, const lc_matmul_scratch *scratch, float *c);

/* The same where activations are bf16; n_rows <= LC_BF16_ROWS. Sums lie in tiles: lc_end_bf16() takes them out. */
void lc_bf16_chunk(const lc_kernels *kernels, const lc_weight *weight, int row0, int n_rows, const lc_activations *x,
                   const lc_matmul_scratch *scratch, float *c);
/* Rows of out, ld values apart, from those sums; see kernels->end_bf16. */
void lc_end_bf16(const lc_kernels *kernels, const float *c, const float *c2, const float *residual, int n_tokens, int n_rows,
                 float *out, size_t ld);

/* silu_mul of two such sums to values row0 to row0 + n_rows - 1, multiples of 32, of rounded activations. */
void lc_end_pair_bf16(const lc_kernels *kernels, const float *c, const float *c2, int row0, int n_rows, const lc_activations *to);

#endif
