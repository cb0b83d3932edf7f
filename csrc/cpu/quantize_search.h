/* What the searches for scales look for, and their entry in the kernel table. */
#ifndef LC_QUANTIZE_SEARCH_H
#define LC_QUANTIZE_SEARCH_H

#include <stdbool.h>

#include "kernel_table.h"

/* What codes stand for: the integers first ... last, or the uneven levels of IQ4. */
typedef struct lc_levels {
    bool is_table;
    int first, last;
} lc_levels;

/* localcoder/quants/search_block.py has the meaning of each; [0] without weights, [1] with. */
typedef struct lc_scale_search {
    lc_levels levels;
    int n_anchors[2];
    const float *anchors[2];
} lc_scale_search;

typedef struct lc_offset_search {
    int last;
    int n_margins[2];
    const double *margins;
} lc_offset_search;

/* localcoder/quants/search_super.py */
typedef struct lc_signed_super {
    int n_sub;
    const lc_scale_search *block;
    lc_levels scales;
    int n_anchors;
    const float *anchors;
} lc_signed_super;

typedef struct lc_scale_min_super {
    int n_sub;
    lc_offset_search block;
    int last_scale;
} lc_scale_min_super;

#endif
