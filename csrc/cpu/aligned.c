#define _DEFAULT_SOURCE /* madvise */
#include "aligned.h"

#include <stdlib.h>
#if defined(_WIN32)
#include <malloc.h>
#elif defined(__linux__)
#include <sys/mman.h>
#endif

void *lc_alloc(size_t n_bytes) {
    const size_t align = n_bytes < LC_HUGE_PAGE ? LC_ALIGN : LC_HUGE_PAGE;
    const size_t rounded = lc_round_up(n_bytes ? n_bytes : 1, align); /* what is not touched takes no memory */
#if defined(_WIN32)
    return _aligned_malloc(rounded, align);
#else
    void *p = aligned_alloc(align, rounded);
#if defined(MADV_HUGEPAGE)
    if (p != NULL && align == LC_HUGE_PAGE)
        (void)madvise(p, n_bytes / LC_HUGE_PAGE * LC_HUGE_PAGE, MADV_HUGEPAGE); /* a system without them goes on as before */
#endif
    return p;
#endif
}

void lc_free(void *p) {
#if defined(_WIN32)
    _aligned_free(p);
#else
    free(p);
#endif
}
