/* Memory aligned to cache lines; not touched, so large pieces cost nothing until they are used. */
#ifndef LC_ALIGNED_H
#define LC_ALIGNED_H

#include <stddef.h>
#include <stdlib.h>
#if defined(_WIN32)
#include <malloc.h>
#endif

enum { LC_ALIGN = 64 };

static inline size_t lc_round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/* NULL if there is none. */
static inline void *lc_alloc(size_t n_bytes) {
    n_bytes = lc_round_up(n_bytes ? n_bytes : 1, LC_ALIGN);
#if defined(_WIN32)
    return _aligned_malloc(n_bytes, LC_ALIGN);
#else
    return aligned_alloc(LC_ALIGN, n_bytes);
#endif
}

static inline void lc_free(void *p) {
#if defined(_WIN32)
    _aligned_free(p);
#else
    free(p);
#endif
}

#endif
