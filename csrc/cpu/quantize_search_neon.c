/* The searches for scales with NEON. */
#define LC_LANES 4
#define LC_SEARCHES lc_searches_neon
#include "quantize_types.h"
