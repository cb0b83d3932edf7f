/* Searching the blocks of a matrix on all threads. */
#include <stdatomic.h>

#include "aligned.h"
#include "localcoder.h"
#include "thread_pool.h"

enum { CHUNK_VALUES = 1 << 14 }; /* a thread's share at a time; a multiple of every block, small enough for its cache */

typedef struct search_job {
    lc_pool *pool;
    const lc_format *format, *source_format;
    lc_search_fn search;
    int32_t source_type;
    const uint8_t *source;
    const int8_t *grid;
    const float *weights;
    int64_t n_values, weight_blocks;
    uint8_t *blocks;
    float *scratch; /* [n_threads, CHUNK_VALUES]; NULL where the source is read as it lies */
    atomic_bool not_finite;
} search_job;

/* The n values from `first` on, as float32. */
static const float *take_values(const search_job *job, int64_t first, int64_t n, int thread) {
    const uint8_t *source = job->source + lc_row_bytes(job->source_format, first);
    if (job->scratch == NULL) return (const float *)(const void *)source;
    float *x = job->scratch + (int64_t)thread * CHUNK_VALUES;
    if (job->source_type == LC_TYPE_F16)
        job->pool->kernels->half_to_float((const uint16_t *)(const void *)source, (int)n, x);
    else
        lc_dequantize_row(job->source_type, source, job->grid, n, x);
    return x;
}

static void run_search(void *context, int thread) {
    search_job *job = context;
    const int elems = job->format->elems;
    for (int item = thread;; item = lc_pool_take(job->pool)) {
        const int64_t first = (int64_t)item * CHUNK_VALUES;
        if (first >= job->n_values) return;
        if (atomic_load_explicit(&job->not_finite, memory_order_relaxed)) return;
        const int64_t left = job->n_values - first, n = left < CHUNK_VALUES ? left : CHUNK_VALUES;
        const float *x = take_values(job, first, n, thread);
        uint8_t *blocks = job->blocks + lc_row_bytes(job->format, first);
        if (!job->search(x, n / elems, job->weights, job->weight_blocks, first / elems, blocks))
            atomic_store_explicit(&job->not_finite, true, memory_order_relaxed);
    }
}

int32_t lc_quantize_best(lc_pool *pool, int32_t type, const float *weights, int64_t n_weight_rows,
                         int32_t source_type, const uint8_t *source, const int8_t *grid, int64_t n_rows, int64_t n,
                         uint8_t *blocks) {
    const lc_format *format = lc_format_of(type), *source_format = lc_format_of(source_type);
    if (format == NULL || source_format == NULL || pool->kernels->search[type] == NULL) return LC_BAD_ARGUMENT;
    if (n_rows < 0 || n < 0 || n % format->elems != 0 || n % source_format->elems != 0) return LC_BAD_ARGUMENT;
    if (weights != NULL && n_weight_rows != 1 && n_weight_rows != n_rows) return LC_BAD_ARGUMENT;
    if (source_format->grid_bytes > 0 && grid == NULL) return LC_BAD_ARGUMENT;
    search_job job = {
        .pool = pool,
        .format = format,
        .source_format = source_format,
        .search = pool->kernels->search[type],
        .source_type = source_type,
        .source = source,
        .grid = grid,
        .weights = weights,
        .n_values = n_rows * n,
        .weight_blocks = n_weight_rows * (n / format->elems),
        .blocks = blocks,
    };
    atomic_init(&job.not_finite, false);
    if (source_type != LC_TYPE_F32 || (uintptr_t)source % sizeof(float) != 0) {
        job.scratch = lc_alloc((size_t)pool->n_threads * CHUNK_VALUES * sizeof(float));
        if (job.scratch == NULL) return LC_NO_MEMORY;
    }
    const int status = lc_pool_run(pool, run_search, &job);
    lc_free(job.scratch);
    if (status != LC_OK) return status;
    return atomic_load(&job.not_finite) ? LC_NOT_FINITE : LC_OK;
}
