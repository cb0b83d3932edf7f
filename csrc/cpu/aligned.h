/* Memory aligned to cache lines; not touched, so large pieces cost little until they are used. */
#ifndef LC_ALIGNED_H
#define LC_ALIGNED_H

#include <stddef.h>

enum {
    LC_ALIGN = 64,
    LC_HUGE_PAGE = 2 << 20 /* Pieces are kept in such pages as far as they fill them, where the system has them: many tokens
                              come from more small pages than a processor remembers the places of. */
};

static inline size_t lc_round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/* NULL if there is none. */
void *lc_alloc(size_t n_bytes);
void lc_free(void *p);

#endif
