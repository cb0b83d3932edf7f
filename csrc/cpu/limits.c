/* What the machine can do at most: reading memory, and multiply-adds on registers. */
#include <string.h>

#include "thread_pool.h"

typedef struct reading {
    lc_pool *pool;
    const uint8_t *memory;
    int64_t n;
} reading;

static void read_job(void *context, int thread) {
    enum { PIECE = 1 << 18, STEP = 128, AHEAD = 4096 };
    const reading *job = context;
    uint64_t sum[STEP / 8] = {0};
    for (int64_t at = (int64_t)thread * PIECE; at < job->n; at = (int64_t)lc_pool_take(job->pool) * PIECE) {
        const int64_t left = job->n - at, end = at + (left < PIECE ? left : PIECE) / STEP * STEP;
        for (int64_t i = at; i < end; i += STEP) {
            lc_fetch(job->memory + i + AHEAD, STEP);
            uint64_t word[STEP / 8];
            memcpy(word, job->memory + i, STEP);
            for (int j = 0; j < STEP / 8; j++) sum[j] ^= word[j];
        }
    }
    uint64_t all = 0;
    for (int j = 0; j < STEP / 8; j++) all ^= sum[j];
    volatile uint64_t kept = all; /* or the compiler would leave the reading out */
    (void)kept;
}

int32_t lc_read_memory(lc_pool *pool, const uint8_t *memory, int64_t n) {
    if (memory == NULL || n < 0) return LC_BAD_ARGUMENT;
    reading job = {pool, memory, n};
    return lc_pool_run(pool, read_job, &job);
}

typedef struct peak_job {
    lc_peak_fn run;
    int64_t rounds;
    _Atomic int64_t ops;
} peak_job;

static void run_peak(void *context, int thread) {
    (void)thread;
    peak_job *job = context;
    atomic_fetch_add(&job->ops, job->run(job->rounds));
}

int32_t lc_prefill_peak(const lc_pool *pool) { return lc_has_bf16(pool->kernels) ? LC_PEAK_BF16 : LC_PEAK_INT8; }

int32_t lc_run_peak(lc_pool *pool, int32_t kind, int64_t rounds, int64_t *ops) {
    *ops = 0;
    if (kind < 0 || kind >= LC_PEAK_END || rounds < 0) return LC_BAD_ARGUMENT;
    peak_job job = {.run = pool->kernels->peak[kind], .rounds = rounds};
    if (job.run == NULL) return LC_OK;
    atomic_init(&job.ops, 0);
    const int status = lc_pool_run(pool, run_peak, &job);
    *ops = atomic_load(&job.ops);
    return status;
}
