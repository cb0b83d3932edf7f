/* A small model as a program: the same bits with any number of threads, in one chunk or many (but where many tokens at
 * once are multiplied in bf16: then nearly the same), from two callers at once, and in a forked child; steps and programs
 * that break their contract are refused. */
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "half.h"
#include "localcoder.h"
#include "blocks.h"
#include "program.h"
#include "thread_pool.h"

enum {
    N_EMBD = 64, N_HEAD = 4, N_HEAD_KV = 2, HEAD_DIM = 16, N_VOCAB = 50, N_CTX = 64, PAGE = 8, N_LAYER = 2,
    N_TOKENS = 40, N_FF = 96, N_OPS_A_LAYER = 15
};

typedef struct model {
    lc_op ops[2 + N_OPS_A_LAYER * N_LAYER + 4];
    int n_ops;
    uint8_t *weights[7 * N_LAYER + 2];
    int n_weights;
    float norm[N_EMBD], cos[N_CTX * HEAD_DIM / 2], sin[N_CTX * HEAD_DIM / 2];
} model;

/* Random Q8_0 rows. */
static lc_weight new_weight(model *m, int n_out, int n_in) {
    const size_t n_blocks = (size_t)n_out * (size_t)n_in / 32;
    lc_block_q8_0 *blocks = take(n_blocks * sizeof *blocks);
    for (size_t i = 0; i < n_blocks; i++) {
        blocks[i].d = lc_float_to_half(1.0f / 512);
        for (int j = 0; j < 32; j++) blocks[i].qs[j] = (int8_t)random_bits();
    }
    m->weights[m->n_weights++] = (uint8_t *)blocks;
    return (lc_weight){(uint8_t *)blocks, NULL, LC_TYPE_Q8_0, n_out, n_in};
}

static lc_op *new_op(model *m, int kind, int width, int x, int out, int barrier) {
    lc_op *op = &m->ops[m->n_ops++];
    *op = (lc_op){.kind = kind, .barrier = barrier, .x = x, .y = LC_NO_SLOT, .width = width,
                  .out = {out, LC_NO_SLOT, LC_NO_SLOT}};
    return op;
}

/* Slots: 0 the residual, 1 normed, 2 q, 3 k, 4 v, 5 between gate and up and down. */
static const int32_t SLOT_WIDTHS[] = {N_EMBD, N_EMBD, N_EMBD, N_HEAD_KV * HEAD_DIM, N_HEAD_KV * HEAD_DIM, N_FF};
enum { N_SLOTS = sizeof SLOT_WIDTHS / sizeof *SLOT_WIDTHS };

static void add_layer(model *m, int layer) {
    new_op(m, LC_OP_RMS_NORM, N_EMBD, 0, 1, layer > 0)->vector = m->norm;
    new_op(m, LC_OP_QUANTIZE, N_EMBD, 1, LC_NO_SLOT, 0);
    lc_op *qkv = new_op(m, LC_OP_LINEAR, N_EMBD, 1, 2, 1);
    qkv->out[1] = 3, qkv->out[2] = 4, qkv->n_weights = 3;
    qkv->weights[0] = new_weight(m, N_EMBD, N_EMBD);
    qkv->weights[1] = new_weight(m, N_HEAD_KV * HEAD_DIM, N_EMBD);
    qkv->weights[2] = new_weight(m, N_HEAD_KV * HEAD_DIM, N_EMBD);
    new_op(m, LC_OP_ROPE, N_EMBD, 2, 2, 1)->n_head = N_HEAD;
    new_op(m, LC_OP_ROPE, N_HEAD_KV * HEAD_DIM, 3, 3, 0)->n_head = N_HEAD_KV;
    lc_op *write = new_op(m, LC_OP_WRITE_KV, N_HEAD_KV * HEAD_DIM, 3, LC_NO_SLOT, 0);
    write->y = 4, write->layer = layer;
    lc_op *attend = new_op(m, LC_OP_ATTEND, N_EMBD, 2, 1, 1);
    attend->n_head = N_HEAD, attend->layer = layer;
    new_op(m, LC_OP_QUANTIZE, N_EMBD, 1, LC_NO_SLOT, 1);
    lc_op *o = new_op(m, LC_OP_LINEAR, N_EMBD, 1, 0, 1);
    o->epilogue = LC_ADD_RESIDUAL, o->y = 0, o->n_weights = 1;
    o->weights[0] = new_weight(m, N_EMBD, N_EMBD);
    new_op(m, LC_OP_RMS_NORM, N_EMBD, 0, 1, 1)->vector = m->norm;
    new_op(m, LC_OP_QUANTIZE, N_EMBD, 1, LC_NO_SLOT, 0);
    lc_op *pair = new_op(m, LC_OP_LINEAR, N_EMBD, 1, 5, 1);
    pair->epilogue = LC_APPLY_SILU_MUL, pair->n_weights = 2;
    pair->weights[0] = new_weight(m, N_FF, N_EMBD), pair->weights[1] = new_weight(m, N_FF, N_EMBD);
    new_op(m, LC_OP_QUANTIZE, N_FF, 5, LC_NO_SLOT, 1);
    lc_op *down = new_op(m, LC_OP_LINEAR, N_FF, 5, 0, 1);
    down->epilogue = LC_ADD_RESIDUAL, down->y = 0, down->n_weights = 1;
    down->weights[0] = new_weight(m, N_EMBD, N_FF);
    lc_block_q8_0 *blocks = (lc_block_q8_0 *)(void *)m->weights[m->n_weights - 1];
    for (int i = 0; i < N_EMBD * N_FF / 32; i++) blocks[i].d = lc_float_to_half(1.0f / 2048); /* adds a little, as models do */
}

static model *new_model(void) {
    model *m = take(sizeof *m);
    memset(m, 0, sizeof *m);
    for (int i = 0; i < N_EMBD; i++) m->norm[i] = 1 + 0.1f * random_float();
    for (int i = 0; i < N_CTX * HEAD_DIM / 2; i++) {
        const float angle = (float)(i / (HEAD_DIM / 2)) / (float)(1 + i % (HEAD_DIM / 2));
        m->cos[i] = cosf(angle), m->sin[i] = sinf(angle);
    }
    new_op(m, LC_OP_EMBED, N_EMBD, LC_NO_SLOT, 0, 1)->weights[0] = new_weight(m, N_VOCAB, N_EMBD);
    for (int layer = 0; layer < N_LAYER; layer++) add_layer(m, layer);
    new_op(m, LC_OP_SELECT, N_EMBD, 0, 1, 1)->outputs = 1;
    lc_op *norm = new_op(m, LC_OP_RMS_NORM, N_EMBD, 1, 1, 0);
    norm->vector = m->norm, norm->outputs = 1;
    new_op(m, LC_OP_QUANTIZE, N_EMBD, 1, LC_NO_SLOT, 0)->outputs = 1;
    lc_op *logits = new_op(m, LC_OP_LINEAR, N_EMBD, 1, LC_LOGITS_SLOT, 1);
    logits->outputs = 1, logits->n_weights = 1;
    logits->weights[0] = new_weight(m, N_VOCAB, N_EMBD);
    return m;
}

static void free_model(model *m) {
    for (int i = 0; i < m->n_weights; i++) free(m->weights[i]);
    free(m);
}

/* A program of its own pages. */
typedef struct runner {
    lc_program *program;
    uint8_t *k, *v;
} runner;

static runner new_runner(const model *m, lc_pool *pool) {
    const size_t n_bytes = (size_t)N_LAYER * (N_CTX / PAGE) * N_HEAD_KV * PAGE * HEAD_DIM * 2;
    runner r = {NULL, take(n_bytes), take(n_bytes)};
    memset(r.k, 0xFF, n_bytes), memset(r.v, 0xFF, n_bytes); /* NaN where nothing was written */
    const lc_kv kv = {r.k, r.v, LC_TYPE_F16, N_LAYER, N_CTX / PAGE, N_HEAD_KV, PAGE, HEAD_DIM};
    const int status = lc_program_new(pool, m->ops, m->n_ops, SLOT_WIDTHS, N_SLOTS, &kv, m->cos, m->sin, N_CTX,
                                      N_TOKENS, &r.program);
    CHECK(status == LC_OK, "lc_program_new: %d", status);
    return r;
}

static void free_runner(runner *r) {
    lc_program_free(r->program);
    free(r->k), free(r->v);
}

/* Tokens first .. first + n - 1 of one sequence whose pages stand in reverse order; logits of all of them. */
static int run_tokens(runner *r, int first, int n, float *logits) {
    int32_t *tokens = take((size_t)n * 4), *positions = take((size_t)n * 4), *rows = take((size_t)n * 4);
    int32_t *sequences = take((size_t)n * 4), pages[N_CTX / PAGE];
    for (int i = 0; i < n; i++) {
        tokens[i] = (first + i) * 7 % N_VOCAB;
        positions[i] = first + i;
        rows[i] = i;
        sequences[i] = 0;
    }
    for (int i = 0; i < N_CTX / PAGE; i++) pages[i] = N_CTX / PAGE - 1 - i;
    const lc_step step = {n, n, 1, N_CTX / PAGE, tokens, positions, sequences, pages, rows, NULL, 0, logits};
    const int status = lc_program_run(r->program, &step);
    free(tokens), free(positions), free(rows), free(sequences);
    return status;
}

enum { N_LOGITS = N_TOKENS * N_VOCAB };

static void run_in_chunks(runner *r, int chunk, float *logits) {
    for (int at = 0; at < N_TOKENS; at += chunk) {
        const int n = N_TOKENS - at < chunk ? N_TOKENS - at : chunk;
        CHECK(run_tokens(r, at, n, logits + at * N_VOCAB) == LC_OK, "chunk at %d", at);
    }
}

/* Two roundings of activations, to 8 bits by the block and to bf16. */
static void check_close(const float *a, const float *b, const char *isa) {
    double difference = 0, size = 0;
    for (int i = 0; i < N_LOGITS; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)a[i] * (double)a[i];
    }
    CHECK(difference > 0 && difference < 4e-4 * size, "%s: bf16 differs by %g", isa, sqrt(difference / size));
}

static void test_threads_and_chunks(const model *m, const char *isa) {
    static float expected[2][N_LOGITS], logits[N_LOGITS];
    bool is_known[2] = {false, false};
    for (int n_threads = 1; n_threads <= 5; n_threads++) {
        lc_pool *pool = NULL;
        CHECK(lc_pool_new(n_threads, isa, &pool) == LC_OK, "pool of %d", n_threads);
        for (int chunk = 40; chunk >= 1; chunk = chunk * 2 / 5) {
            runner r = new_runner(m, pool);
            const int is_bf16 = lc_has_bf16(&pool->table) && chunk > LC_BF16_SIDE;
            run_in_chunks(&r, chunk, logits);
            for (int i = 0; i < N_LOGITS; i++) CHECK(isfinite(logits[i]), "logit %d", i);
            if (!is_known[is_bf16]) memcpy(expected[is_bf16], logits, sizeof logits);
            is_known[is_bf16] = true;
            CHECK(memcmp(expected[is_bf16], logits, sizeof logits) == 0, "%s, %d threads, chunks of %d", isa, n_threads,
                  chunk);
            free_runner(&r);
        }
        lc_pool_free(pool);
    }
    if (is_known[1]) check_close(expected[0], expected[1], isa);
}

/* What gate and up give is stored rounded in every layer, but not where another op wants it, rounded or not. */
static void test_roles(model *m, const char *isa) {
    lc_pool *pool = NULL;
    CHECK(lc_pool_new(1, isa, &pool) == LC_OK, "pool");
    for (int extra = 0; extra < 3; extra++) {
        lc_op *first = &m->ops[m->n_ops - 4], kept = *first; /* after the layers */
        const int barrier = first[1].barrier;
        if (extra == 1) *first = (lc_op){.kind = LC_OP_QUANTIZE, .barrier = 1, .width = N_FF, .x = 5, .y = LC_NO_SLOT};
        if (extra == 2) *first = (lc_op){.kind = LC_OP_ADD, .barrier = 1, .width = N_EMBD, .x = 0, .y = 5, .out = {0, -1, -1}};
        first[1].barrier = 1;
        runner r = new_runner(m, pool);
        int n = 0;
        for (int i = 0; i < m->n_ops; i++) n += (r.program->roles[i] & LC_WRITES_ROUNDED) != 0;
        const int expected = !lc_has_bf16(&pool->table) ? 0 : extra == 0 ? N_LAYER : N_LAYER - 1;
        CHECK(n == expected, "%s: %d pairs are stored rounded, not %d", isa, n, expected);
        free_runner(&r);
        *first = kept;
        first[1].barrier = barrier;
    }
    lc_pool_free(pool);
}

static lc_tile_fn counted_tile;
static atomic_int n_counted;

static void count_tile(const lc_panel *panel, const lc_q8_block *x, int n, float *c, int ldc) {
    atomic_fetch_add(&n_counted, 1);
    counted_tile(panel, x, n, c, ldc);
}

/* Steps call through the table of the instruction set that was asked for, whose tiles no other has. */
static void test_forced_isa(const model *m, const char *isa) {
    static float logits[N_LOGITS];
    lc_pool *pool = NULL, *other = NULL;
    CHECK(lc_pool_new(2, isa, &pool) == LC_OK && strcmp(lc_pool_isa(pool), isa) == 0, "%s", isa);
    counted_tile = pool->table.tile[LC_TYPE_Q8_0];
    for (int i = 0; i < lc_isa_count(); i++) {
        if (lc_isa_missing(i) != NULL || strcmp(lc_isa_name(i), isa) == 0) continue;
        CHECK(lc_pool_new(1, lc_isa_name(i), &other) == LC_OK, "%s", lc_isa_name(i));
        CHECK(other->table.tile[LC_TYPE_Q8_0] != counted_tile, "%s and %s share tiles", isa, lc_isa_name(i));
        lc_pool_free(other);
    }
    pool->table.tile[LC_TYPE_Q8_0] = count_tile;
    runner r = new_runner(m, pool);
    n_counted = 0;
    CHECK(run_tokens(&r, 0, 10, logits) == LC_OK && n_counted > 0, "%s: %d tiles", isa, (int)n_counted);
    free_runner(&r);
    lc_pool_free(pool);
}

typedef struct caller {
    const model *m;
    lc_pool *pool;
    float logits[N_LOGITS];
} caller;

static void *call(void *argument) {
    caller *c = argument;
    for (int i = 0; i < 5; i++) {
        runner r = new_runner(c->m, c->pool);
        run_in_chunks(&r, 3, c->logits);
        free_runner(&r);
    }
    return NULL;
}

static void test_two_callers(const model *m) {
    caller *a = take(sizeof *a), *b = take(sizeof *b);
    lc_pool *pool = NULL;
    CHECK(lc_pool_new(3, NULL, &pool) == LC_OK, "pool");
    a->m = b->m = m, a->pool = b->pool = pool;
    pthread_t thread;
    pthread_create(&thread, NULL, call, a);
    call(b);
    pthread_join(thread, NULL);
    CHECK(memcmp(a->logits, b->logits, sizeof a->logits) == 0, "two callers");
    lc_pool_free(pool);
    free(a), free(b);
}

static void test_fork(const model *m) {
    static float before[N_LOGITS], after[N_LOGITS];
    lc_pool *pool = NULL;
    CHECK(lc_pool_new(3, NULL, &pool) == LC_OK, "pool");
    runner r = new_runner(m, pool);
    run_in_chunks(&r, 10, before);
    const pid_t child = fork();
    if (child == 0) {
        run_in_chunks(&r, 10, after);
        const int same = memcmp(before, after, sizeof before) == 0;
        free_runner(&r);
        lc_pool_free(pool);
        _exit(same && n_failed == 0 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child: %d", status);
    run_in_chunks(&r, 10, after);
    CHECK(memcmp(before, after, sizeof before) == 0, "the parent after the fork");
    free_runner(&r);
    lc_pool_free(pool);
}

static void test_refusals(const model *m) {
    lc_pool *pool = NULL;
    CHECK(lc_pool_new(0, NULL, &pool) == LC_BAD_ARGUMENT, "no threads");
    CHECK(lc_pool_new(1, "sse9", &pool) == LC_NO_SUCH_ISA && pool == NULL, "unknown instruction set");
    CHECK(lc_pool_new(2, NULL, &pool) == LC_OK, "pool");
    runner r = new_runner(m, pool);
    float *logits = take(N_LOGITS * 4);
    CHECK(run_tokens(&r, 0, N_TOKENS + 1, logits) == LC_BAD_ARGUMENT, "too many tokens");
    CHECK(run_tokens(&r, N_CTX - 1, 2, logits) == LC_BAD_ARGUMENT, "position out of range");
    int32_t token = N_VOCAB, zero = 0, page = 0;
    lc_step step = {1, 1, 1, 1, &token, &zero, &zero, &page, &zero, NULL, 0, logits};
    CHECK(lc_program_run(r.program, &step) == LC_BAD_ARGUMENT, "token out of range");
    token = 0, page = N_CTX / PAGE;
    CHECK(lc_program_run(r.program, &step) == LC_BAD_ARGUMENT, "page out of range");
    page = 0;
    CHECK(lc_program_run(r.program, &step) == LC_OK, "a good step");
    free_runner(&r);

    const lc_kv kv = {(uint8_t *)logits, (uint8_t *)logits, LC_TYPE_F16, 1, 1, N_HEAD_KV, PAGE, HEAD_DIM};
    lc_program *program = NULL;
    for (int i = 0; i < m->n_ops; i++) { /* each op in turn with something out of range */
        model broken = *m;
        lc_op *op = &broken.ops[i];
        op->width += 1;
        const int status = lc_program_new(pool, broken.ops, broken.n_ops, SLOT_WIDTHS, N_SLOTS, &kv, m->cos, m->sin,
                                          N_CTX, N_TOKENS, &program);
        CHECK(status == LC_BAD_ARGUMENT && program == NULL, "op %d with a wrong width: %d", i, status);
    }
    free(logits);
    lc_pool_free(pool);
}

/* With any argument: without forking, for tools that cannot start threads in a forked child (ThreadSanitizer, qemu). */
int main(int argc, char **argv) {
    (void)argv;
    model *m = new_model();
    for (int isa = 0; isa < lc_isa_count(); isa++)
        if (lc_isa_missing(isa) == NULL) {
            test_threads_and_chunks(m, lc_isa_name(isa));
            test_roles(m, lc_isa_name(isa));
            test_forced_isa(m, lc_isa_name(isa));
        }
    test_two_callers(m);
    if (argc < 2) test_fork(m);
    test_refusals(m);
    free_model(m);
    printf(n_failed ? "%d checks failed\n" : "all checks passed\n", n_failed);
    return n_failed != 0;
}
