#include "thread_pool.h"

#include <stdlib.h>
#include <string.h>

#include "dispatch.h"
#include "aligned.h"

enum { SPINS = 2000, MAX_THREADS = 1024 };

typedef struct lc_worker {
    lc_pool *pool;
    int index;
    unsigned seen; /* generation of the start gate when the thread was started */
} lc_worker;

static void gate_init(lc_gate *gate) {
    atomic_init(&gate->generation, 0);
    atomic_init(&gate->n_asleep, 0);
    lc_mutex_init(&gate->mutex);
    lc_cond_init(&gate->moved);
}

static void gate_destroy(lc_gate *gate) {
    lc_mutex_destroy(&gate->mutex);
    lc_cond_destroy(&gate->moved);
}

/* Sleeper and opener each write their own variable before they read the other's, both in one total order, so one of
 * them sees the other: nobody sleeps through an opening. */
static void gate_wait(lc_gate *gate, unsigned seen) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&gate->generation, memory_order_acquire) != seen) return;
        lc_pause();
    }
    lc_mutex_lock(&gate->mutex);
    atomic_fetch_add(&gate->n_asleep, 1);
    while (atomic_load(&gate->generation) == seen) lc_cond_wait(&gate->moved, &gate->mutex);
    atomic_fetch_sub(&gate->n_asleep, 1);
    lc_mutex_unlock(&gate->mutex);
}

static void gate_open(lc_gate *gate) {
    atomic_fetch_add(&gate->generation, 1);
    if (atomic_load(&gate->n_asleep) == 0) return;
    lc_mutex_lock(&gate->mutex);
    lc_cond_broadcast(&gate->moved);
    lc_mutex_unlock(&gate->mutex);
}

bool lc_pool_arrive(lc_pool *pool) {
    const unsigned seen = atomic_load_explicit(&pool->phase.generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->n_arrived, 1, memory_order_acq_rel) == pool->n_threads - 1) return true;
    gate_wait(&pool->phase, seen);
    return false;
}

void lc_pool_release(lc_pool *pool) {
    atomic_store_explicit(&pool->n_arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->next_item, 0, memory_order_relaxed);
    if (pool->n_threads > 1) gate_open(&pool->phase);
}

static void run_job(lc_pool *pool, int thread) {
    pool->job(pool->context, thread);
    if (lc_pool_arrive(pool)) lc_pool_release(pool);
}

LC_THREAD_FN(worker_main, argument) {
    lc_worker *worker = argument;
    lc_pool *pool = worker->pool;
    for (unsigned seen = worker->seen;; seen++) {
        gate_wait(&pool->start, seen);
        if (pool->stopping) LC_THREAD_RETURN;
        run_job(pool, worker->index);
    }
}

static void stop_threads(lc_pool *pool) {
    if (pool->n_started == 0) return;
    pool->stopping = true;
    gate_open(&pool->start);
    for (int i = 0; i < pool->n_started; i++) lc_thread_join(pool->threads[i]);
    pool->n_started = 0;
    pool->stopping = false;
}

static int start_threads(lc_pool *pool) {
    lc_mutex_init(&pool->turn);
    gate_init(&pool->start);
    gate_init(&pool->phase);
    atomic_init(&pool->n_arrived, 0);
    atomic_init(&pool->next_item, 0);
    pool->process_id = lc_process_id();
    pool->stopping = false;
    for (pool->n_started = 0; pool->n_started < pool->n_threads - 1; pool->n_started++) {
        const int i = pool->n_started;
        pool->workers[i] = (lc_worker){pool, i + 1, 0};
        if (!lc_thread_start(&pool->threads[i], worker_main, &pool->workers[i])) {
            stop_threads(pool);
            return LC_NO_THREADS;
        }
    }
    return LC_OK;
}

int lc_pool_run(lc_pool *pool, lc_job job, void *context) {
    if (pool->process_id != lc_process_id()) { /* a forked child: only the calling thread came along */
        const int status = start_threads(pool);
        if (status != LC_OK) {
            pool->process_id = 0;
            return status;
        }
    }
    lc_mutex_lock(&pool->turn);
    pool->job = job;
    pool->context = context;
    if (pool->n_threads > 1) gate_open(&pool->start);
    run_job(pool, 0);
    lc_mutex_unlock(&pool->turn);
    return LC_OK;
}

int32_t lc_pool_new(int32_t n_threads, const char *isa, lc_pool **out) {
    *out = NULL;
    if (n_threads < 1 || n_threads > MAX_THREADS) return LC_BAD_ARGUMENT;
    lc_kernels table;
    int status = lc_isa_select(isa, &table);
    if (status != LC_OK) return status;
    lc_pool *pool = lc_alloc(sizeof *pool);
    if (pool == NULL) return LC_NO_MEMORY;
    memset(pool, 0, sizeof *pool);
    pool->table = table;
    pool->kernels = &pool->table;
    pool->n_threads = n_threads;
    pool->threads = calloc((size_t)n_threads, sizeof *pool->threads);
    pool->workers = calloc((size_t)n_threads, sizeof *pool->workers);
    if (pool->threads == NULL || pool->workers == NULL)
        status = LC_NO_MEMORY;
    else
        status = start_threads(pool);
    if (status != LC_OK) {
        free(pool->threads);
        free(pool->workers);
        lc_free(pool);
        return status;
    }
    *out = pool;
    return LC_OK;
}

void lc_pool_free(lc_pool *pool) {
    if (pool == NULL) return;
    if (pool->process_id == lc_process_id()) { /* else its threads live in another process */
        stop_threads(pool);
        lc_mutex_destroy(&pool->turn);
        gate_destroy(&pool->start);
        gate_destroy(&pool->phase);
    }
    free(pool->threads);
    free(pool->workers);
    lc_free(pool);
}

const char *lc_pool_isa(const lc_pool *pool) { return pool->kernels->isa; }

int32_t lc_pool_has_kernel(const lc_pool *pool, int32_t type) {
    const lc_format *format = lc_format_of(type);
    if (format == NULL) return 0;
    return format->unpack == NULL || pool->kernels->unpack_tile[type] != NULL || pool->kernels->matvec[type] != NULL;
}
