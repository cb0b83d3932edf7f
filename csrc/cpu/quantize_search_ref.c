/* The searches for scales in plain C (four lanes: every machine has that much). */
#define LC_LANES 4
#define LC_SEARCHES lc_searches_ref
#include "quantize_types.h"
