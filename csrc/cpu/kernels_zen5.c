/* What Zen 5 does otherwise than other processors with AVX-512 and VNNI. It multiplies as often as it loads, so tiles have
 * two vectors of rows. What memory is asked for, for one token, comes into the first cache, which on others has no room
 * for it; and transposing short blocks takes no longer than reading along them, but spreads what is read more evenly. */
#include <immintrin.h>

#define TILE_VECS 2
#define FETCH_NEAR
#define READ_ALONG(elems) ((elems) == 256)
#define FEW_TOKENS 1
#include "math_avx512.h"
#include "simd_avx512.h"
#include "block_kernels.h"
#include "tiles_vnni.h"
#include "dot_avx512.h"
#include "attend_avx512.h"

void LC_KERNELS(lc_kernels *table) {
    table->isa = LC_ISA_NAME;
    table->tile_rows = TILE_ROWS;
    table->tile_tokens = TILE_TOKENS;
    USE_TILES
    USE_FORMATS
    USE_DOTS
    USE_ATTENTION
}
