/* A compiled program: what compile.c builds and program.c replays. */
#ifndef LC_PROGRAM_H
#define LC_PROGRAM_H

#include "attention.h"
#include "matmul.h"
#include "thread_pool.h"

typedef enum lc_phase_kind { LC_PHASE_ROWS, LC_PHASE_LINEAR, LC_PHASE_ATTEND } lc_phase_kind;

/* Ops that run without a meeting between them; only LC_PHASE_ROWS has more than one. */
typedef struct lc_phase {
    lc_phase_kind kind;
    int first, n_ops;
} lc_phase;

/* How an op takes part in steps on bf16, where gate · silu(up) goes right into the activations of the next product: into a
 * second store, because others still read the first one. */
typedef enum lc_role {
    LC_WRITES_ROUNDED = 1, /* LINEAR */
    LC_WAS_DONE = 2,       /* QUANTIZE: the LINEAR before did it */
    LC_READS_SECOND = 4    /* LINEAR */
} lc_role;

struct lc_program {
    lc_pool *pool;
    lc_op *ops;
    uint8_t *roles; /* [n_ops] bits of lc_role */
    int n_ops;
    lc_phase *phases;
    int n_phases;
    lc_kv kv;
    const float *rope_cos, *rope_sin;
    int n_ctx, max_tokens, n_vocab_in, n_inputs;
    float **slots;
    int n_slots;
    lc_activations q8;
    uint8_t *second; /* memory of the second store, or NULL */
    bool is_rounded; /* there are products of rounded activations; else attention keeps all of float32, too */
    lc_run *runs; /* [max_tokens] */
    int n_runs, run_tokens, most_at_once; /* tokens of one sequence in this step */
    uint8_t *scratch; /* scratch_bytes for each thread */
    size_t scratch_bytes, panel_bytes, c_bytes;
    /* the step at hand */
    lc_step step;
    int phase;
};

#endif
