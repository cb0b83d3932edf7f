/* The searches for scales with AVX2. */
#define LC_LANES 8
#define LC_SEARCHES lc_searches_avx2
#include "quantize_types.h"
