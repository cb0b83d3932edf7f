/* Searching the blocks of a matrix on all threads. */
#include <stdatomic.h>

#include "localcoder.h"
#include "thread_pool.h"

enum { CHUNK_VALUES = 1 << 16 }; /* a thread's share at a time */

typedef struct search_job {
    lc_pool *pool;
    lc_search_fn search;
    const float *x, *weights;
    int64_t n_blocks, weight_blocks, chunk;
    uint8_t *blocks;
    atomic_bool not_finite;
} search_job;

static void run_search(void *context, int thread) {
    search_job *job = context;
    (void)thread;
    for (int64_t first; (first = lc_pool_take(job->pool) * job->chunk) < job->n_blocks;) {
        if (atomic_load_explicit(&job->not_finite, memory_order_relaxed)) return;
        const int64_t left = job->n_blocks - first, n = left < job->chunk ? left : job->chunk;
        if (!job->search(job->x, job->weights, job->weight_blocks, first, n, job->blocks))
            atomic_store_explicit(&job->not_finite, true, memory_order_relaxed);
    }
}

int32_t lc_quantize_best(lc_pool *pool, int32_t type, const float *x, const float *weights, int64_t n_weight_rows,
                         int64_t n_rows, int64_t n, uint8_t *blocks) {
    const lc_format *format = lc_format_of(type);
    if (format == NULL || pool->kernels->search[type] == NULL) return LC_BAD_ARGUMENT;
    if (n_rows < 0 || n < 0 || n % format->elems != 0) return LC_BAD_ARGUMENT;
    if (weights != NULL && n_weight_rows != 1 && n_weight_rows != n_rows) return LC_BAD_ARGUMENT;
    const int64_t row_blocks = n / format->elems;
    search_job job = {
        .pool = pool,
        .search = pool->kernels->search[type],
        .x = x,
        .weights = weights,
        .n_blocks = n_rows * row_blocks,
        .weight_blocks = n_weight_rows * row_blocks,
        .chunk = CHUNK_VALUES / format->elems,
        .blocks = blocks,
    };
    atomic_init(&job.not_finite, false);
    const int status = lc_pool_run(pool, run_search, &job);
    if (status != LC_OK) return status;
    return atomic_load(&job.not_finite) ? LC_NOT_FINITE : LC_OK;
}
