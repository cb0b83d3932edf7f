/* The C API of localcoder: everything that crosses the border between Python and C.
 *
 * Conventions. Functions return LC_OK (0) or another lc_status; they never print, abort or exit. Pointers are borrowed
 * for the duration of a call unless their comment says longer. `y = W x`: W is (n_out, n_in), rows contiguous.
 * cffi reads the marked region as it stands, so it holds plain declarations only. */
#ifndef LOCALCODER_H
#define LOCALCODER_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if !defined(_WIN32) /* there, CMake makes a list of what is declared here */
#pragma GCC visibility push(default)
#endif

/* cffi: begin */

/* Changes whenever anything in this region does; compared when the library is loaded. */
enum { LC_ABI_VERSION = 5 };
int32_t lc_abi_version(void);

enum lc_status {
    LC_OK = 0,
    LC_NO_MEMORY = 1,
    LC_BAD_ARGUMENT = 2,    /* an argument breaks its contract; nothing was done */
    LC_NO_SUCH_ISA = 3,     /* no instruction set of that name is known */
    LC_ISA_UNSUPPORTED = 4, /* known, but not in this library or not on this machine: see lc_isa_missing */
    LC_NO_THREADS = 5,      /* the system refused to start a thread */
    LC_NOT_FINITE = 6       /* a value is infinite or NaN; the result is of no use */
};

/* Instruction sets, best first, down to "ref", which runs everywhere. After it those that are taken by name alone: with
 * other bits than the rest, and in test builds those that only tests want. */
int32_t lc_isa_count(void);
const char *lc_isa_name(int32_t index);
/* Why an instruction set cannot be used here, or NULL if it can. */
const char *lc_isa_missing(int32_t index);

/* A pool: threads, and the kernels of one instruction set. `n_threads` includes the caller's thread. `isa` names an
 * instruction set; NULL takes the best that this machine has. One job runs at a time; further callers wait. A process
 * that forks gets its threads back on first use. */
typedef struct lc_pool lc_pool;
int32_t lc_pool_new(int32_t n_threads, const char *isa, lc_pool **pool);
void lc_pool_free(lc_pool *pool);
const char *lc_pool_isa(const lc_pool *pool);
/* Whether the pool's instruction set has kernels of its own for blocks of `type` (else the plain ones unpack them). */
int32_t lc_pool_has_kernel(const lc_pool *pool, int32_t type);

/* Some formats look their codes up in a grid, int8 [entries, 4 or 8], that the caller owns: its size, else 0. */
int32_t lc_grid_bytes(int32_t type);

/* float32 [n_rows, n] -> blocks of `type`, by plain rounding, and back. LC_BAD_ARGUMENT: `type` is unknown, cannot be
 * written, or n is not a whole number of blocks. */
int32_t lc_quantize(lc_pool *pool, int32_t type, const float *x, int64_t n_rows, int64_t n, uint8_t *blocks);
int32_t lc_dequantize(lc_pool *pool, int32_t type, const uint8_t *blocks, const int8_t *grid, int64_t n_rows,
                      int64_t n, float *x);

/* [n_rows, n] values in any format -> blocks of `type` with searched scales, bit for bit as localcoder/quants/search.py
 * finds them. weights: float32 [n_weight_rows, n], n_weight_rows 1 or n_rows, not negative, with mean 1 in every row;
 * NULL: all equal. LC_BAD_ARGUMENT also where there is no search for `type`; LC_NOT_FINITE: a source value is not. */
int32_t lc_quantize_best(lc_pool *pool, int32_t type, const float *weights, int64_t n_weight_rows,
                         int32_t source_type, const uint8_t *source, const int8_t *grid, int64_t n_rows, int64_t n,
                         uint8_t *blocks);

/* What results are measured against. Reads n bytes once, on all threads. */
int32_t lc_read_memory(lc_pool *pool, const uint8_t *memory, int64_t n);
/* So many rounds of multiply-adds on registers in every thread; `ops`: how many operations (a multiply and an add are
 * two) that was, 0 if the instruction set has none of that kind. */
enum lc_peak { LC_PEAK_INT8 = 0, LC_PEAK_BF16 = 1, LC_PEAK_F32 = 2, LC_PEAK_END = 3 };
int32_t lc_run_peak(lc_pool *pool, int32_t kind, int64_t rounds, int64_t *ops);
/* Of which kind the products of quantized weights with many tokens are. */
int32_t lc_prefill_peak(const lc_pool *pool);

/* A matrix in a block format, [n_out, n_in], its rows one after another. */
typedef struct lc_weight {
    const uint8_t *data;
    const int8_t *grid; /* lc_grid_bytes(type), or NULL */
    int32_t type;
    int32_t n_out;
    int32_t n_in;
} lc_weight;

/* Ops of a program. Buffers are float32 matrices [rows, width] in numbered slots; rows is every token of the step, or
 * (in ops marked `outputs`) those whose logits are wanted. */
enum lc_op_kind {
    LC_OP_EMBED = 0,     /* out[t] = weight[token[t]] */
    LC_OP_RMS_NORM = 1,  /* out = x / sqrt(mean(x²) + eps) · vector; out may be x */
    LC_OP_QUANTIZE = 2,  /* rounds x to q8 for the LINEAR ops that follow, until the next QUANTIZE */
    LC_OP_LINEAR = 3,    /* out[i] = x weight[i]ᵀ for each weight, with an epilogue; q8 types read the last QUANTIZE */
    LC_OP_ROPE = 4,      /* rotates the pairs (2i, 2i+1) of `n_head` heads; out may be x */
    LC_OP_WRITE_KV = 5,  /* stores x (keys) and y (values) of `layer` in the cache */
    LC_OP_ATTEND = 6,    /* causal attention of x over the cache of `layer` */
    LC_OP_SILU_MUL = 7,  /* out = x · sigmoid(x) · y; out may be x or y */
    LC_OP_ADD = 8,       /* out = x + y; out may be x or y */
    LC_OP_SELECT = 9,    /* out [outputs] = the rows of x [tokens] whose logits are wanted */
    LC_OP_INPUT = 10     /* out = inputs[`input`] of the step */
};

enum lc_epilogue {
    LC_STORE = 0,         /* out[i] = product */
    LC_ADD_RESIDUAL = 1,  /* out[0] = y + product; one weight; out may be y */
    LC_APPLY_SILU_MUL = 2 /* out[0] = silu(product of weight[0]) · product of weight[1] */
};

enum { LC_MAX_WEIGHTS = 3, LC_NO_SLOT = -1, LC_LOGITS_SLOT = -2 };

typedef struct lc_op {
    int32_t kind;
    int32_t barrier; /* all threads meet before this op. Needed unless it and the op before work row by row (neither is
                      * LINEAR or ATTEND) on rows of the same kind, and this is no SELECT. */
    int32_t outputs; /* rows are the outputs, not the tokens */
    int32_t x;       /* slots; LC_LOGITS_SLOT as `out` of the last op is the step's logits */
    int32_t y;
    int32_t out[3];
    int32_t width;   /* of x (EMBED: of out) */
    int32_t epilogue;
    int32_t n_weights;
    lc_weight weights[3];
    const float *vector; /* RMS_NORM: float32 [width] */
    double eps;
    int32_t n_head;
    int32_t layer;
    int32_t input;
} lc_op;

/* The KV cache: k and v are [n_layer, n_pages, n_head_kv, page_size, bytes of head_dim values in `type`]. */
typedef struct lc_kv {
    uint8_t *k;
    uint8_t *v;
    int32_t type;
    int32_t n_layer;
    int32_t n_pages;
    int32_t n_head_kv;
    int32_t page_size;
    int32_t head_dim;
} lc_kv;

/* A compiled program with its work buffers. Weights, vectors, rope tables and the cache are borrowed until it is
 * freed. rope_cos, rope_sin: float32 [n_ctx, head_dim / 2]. Buffers hold `max_tokens` rows each and are not touched
 * before a step needs them. */
typedef struct lc_program lc_program;
int32_t lc_program_new(lc_pool *pool, const lc_op *ops, int32_t n_ops, const int32_t *slot_widths, int32_t n_slots,
                       const lc_kv *kv, const float *rope_cos, const float *rope_sin, int32_t n_ctx,
                       int32_t max_tokens, lc_program **program);
void lc_program_free(lc_program *program);

/* One step, see localcoder/backends/program.py. All arrays are C-contiguous; logits is float32 [n_outputs, n_vocab]. */
typedef struct lc_step {
    int32_t n_tokens;
    int32_t n_outputs;
    int32_t n_sequences;
    int32_t n_entries; /* width of the page table */
    const int32_t *tokens;
    const int32_t *positions;
    const int32_t *sequences;
    const int32_t *page_table;
    const int32_t *outputs;
    const float *const *inputs; /* [n_inputs] matrices [n_tokens, width] for the INPUT ops */
    int32_t n_inputs;
    float *logits;
} lc_step;

/* Replays the program. LC_BAD_ARGUMENT: a token, position, page or index is out of range, or there are too many. */
int32_t lc_program_run(lc_program *program, const lc_step *step);

/* The k highest of the first n_ids of each row of logits [n_rows, n], highest first, of equal ones the earlier: their ids
 * and the logits, [n_rows, k]. One that is not finite, whatever its id, comes before all others. LC_BAD_ARGUMENT: unless
 * 1 <= k <= n_ids <= n and k <= LC_MAX_HIGHEST. */
enum { LC_MAX_HIGHEST = 512 };
int32_t lc_highest(const float *logits, int32_t n_rows, int32_t n, int32_t n_ids, int32_t k, int64_t *ids, float *highest);

/* cffi: end */

#if !defined(_WIN32)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif
