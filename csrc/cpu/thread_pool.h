/* Threads that run one job at a time together with the caller, the barrier between the job's phases, and the counter
 * from which they take work. */
#ifndef LC_THREAD_POOL_H
#define LC_THREAD_POOL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernel_table.h"
#include "localcoder.h"
#include "threads.h"

/* Where threads wait for a number to move on: they spin briefly, then sleep. */
typedef struct lc_gate {
    atomic_uint generation;
    atomic_int n_asleep;
    lc_mutex mutex;
    lc_cond moved;
} lc_gate;

/* What every thread of the pool does; `thread` is 0 (the caller) to n_threads - 1. */
typedef void (*lc_job)(void *context, int thread);

struct lc_pool {
    lc_kernels table;
    const lc_kernels *kernels; /* the table */
    int n_threads;
    long process_id; /* of the process that started the threads */
    lc_thread *threads; /* [n_threads - 1] */
    struct lc_worker *workers;
    int n_started;
    lc_mutex turn; /* held by the caller whose job runs */
    lc_gate start, phase;
    lc_job job;
    void *context;
    bool stopping;
    _Alignas(64) atomic_int n_arrived;
    _Alignas(64) atomic_int next_item;
};

/* Runs `job` on every thread and returns when all are done. */
int lc_pool_run(lc_pool *pool, lc_job job, void *context);

/* The number of a thread's next piece of work in this phase. Its first one has the thread's own number, so that it is
 * known before the phase starts. */
static inline int lc_pool_take(lc_pool *pool) {
    return pool->n_threads + atomic_fetch_add_explicit(&pool->next_item, 1, memory_order_relaxed);
}

/* The end of a phase. True for the thread that came last: it alone goes on, the others wait until it calls
 * lc_pool_release, which also starts the count of work over. */
bool lc_pool_arrive(lc_pool *pool);
void lc_pool_release(lc_pool *pool);

#endif
