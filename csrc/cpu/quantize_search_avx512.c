/* The searches for scales with AVX-512. */
#define LC_LANES 16
#define LC_SEARCHES lc_searches_avx512
#include "quantize_types.h"
