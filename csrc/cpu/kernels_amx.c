/* AMX: tiles over the kernels of avx512vnni. 16 tokens (rows of operand a) meet 16 rows of weights (columns of operand b,
 * just as a panel has them).
 *
 * Sums of codes are exact and scaled in the common order, group by group, so results have the bits of every other kernel;
 * but the scaling takes several times as long as the products. Compiled with bf16, weights with their scales become bf16,
 * once for many tokens, and nothing is left to do but products. */
#include <immintrin.h>
#include <stdbool.h>

#include "simd_avx512.h"

#if !defined(LC_AMX_EMULATED)
#define LC_AMX_EMULATED 0
#endif
#include "amx.h"

enum { TILE_TOKENS = 16, RUN = LC_GROUP, CODES_A = 4, CODES_B = 6 /* and the tiles after each */ };

/* What this thread's tiles are shaped for; 0: nothing. */
static _Thread_local int shaped_tokens, shaped_sub;

static void shape_tiles(int n_tokens, int sub) {
    if (n_tokens == shaped_tokens && sub == shaped_sub) return;
    lc_tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.rows[i] = (uint8_t)(i < CODES_B ? n_tokens : sub / 4);
        shapes.row_bytes[i] = (uint16_t)(i < CODES_A || i >= CODES_B ? 4 * TILE_ROWS : sub);
    }
    lc_tiles_configure(&shapes);
    shaped_tokens = n_tokens;
    shaped_sub = sub;
}

static void end_step(void) {
    if (shaped_tokens == 0) return;
    lc_tiles_release();
    shaped_tokens = shaped_sub = 0;
}

/* Sums of codes of one group, or half of one: [n_tokens][TILE_ROWS]. */
typedef int32_t group_sums[TILE_TOKENS * TILE_ROWS] __attribute__((aligned(64)));

/* Two at a time, so that the scaling of one overlaps with the products of the next. */
INLINE void multiply_two(const uint8_t *w, const int8_t *a0, const int8_t *a1, int sub, group_sums sums[2]) {
    LC_TILE_ZERO(0);
    LC_TILE_ZERO(1);
    LC_TILE_LOAD(4, a0, RUN);
    LC_TILE_LOAD(6, w, 4 * TILE_ROWS);
    LC_TILE_LOAD(5, a1, RUN);
    LC_TILE_LOAD(7, w + sub * TILE_ROWS, 4 * TILE_ROWS);
    LC_TILE_DOT(0, 4, 6);
    LC_TILE_DOT(1, 5, 7);
    LC_TILE_STORE(0, sums[0], 4 * TILE_ROWS);
    LC_TILE_STORE(1, sums[1], 4 * TILE_ROWS);
}
INLINE void multiply_one(const uint8_t *w, const int8_t *a, int32_t *sums) {
    LC_TILE_ZERO(0);
    LC_TILE_LOAD(4, a, RUN);
    LC_TILE_LOAD(6, w, 4 * TILE_ROWS);
    LC_TILE_DOT(0, 4, 6);
    LC_TILE_STORE(0, sums, 4 * TILE_ROWS);
}

/* Adds the sums of group s, with its scales, to the totals of all tokens. */
INLINE void add_scaled(const lc_panel *panel, const lc_q8_block *x, int s, const int32_t *sums, __m512 *total,
                       int n_tokens, int sub, bool has_min) {
    const __m512 scale = _mm512_loadu_ps(panel->scales + s * TILE_ROWS);
    const float *a_scale = x->scales + s * sub / LC_GROUP * n_tokens;
    const int32_t *bias = (sub == 32 ? x->bias32 : x->bias16) + s * n_tokens;
    for (int t = 0; t < n_tokens; t++) {
        __m512i d = _mm512_load_si512(sums + t * TILE_ROWS);
        if (!has_min) d = _mm512_add_epi32(d, _mm512_set1_epi32(bias[t]));
        total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d), _mm512_mul_ps(scale, _mm512_set1_ps(a_scale[t])), total[t]);
    }
    if (!has_min) return;
    const __m512 min = _mm512_loadu_ps(panel->mins + s * TILE_ROWS);
    const float *a_sum = (sub == 32 ? x->sums32 : x->sums16) + s * n_tokens;
    for (int t = 0; t < n_tokens; t++) total[t] = _mm512_fnmadd_ps(min, _mm512_set1_ps(a_sum[t]), total[t]);
}

/* Codes of group s, sub values, of the first token. */
INLINE const int8_t *group_codes(const lc_q8_block *x, int s, int sub, int n_tokens) {
    return x->codes + (size_t)(s * sub / RUN) * RUN * (size_t)n_tokens + s * sub % RUN;
}

INLINE void tile(const lc_panel *panel, const lc_q8_block *x, int n, float *c, int ldc, int n_tokens, int sub,
                 bool has_min) {
    __m512 total[TILE_TOKENS];
    group_sums sums[2];
    shape_tiles(n_tokens, sub);
    for (int t = 0; t < n_tokens; t++) total[t] = _mm512_loadu_ps(c + t * ldc);
    const uint8_t *w = panel->codes;
    int s = 0;
    for (; s + 2 <= n / sub; s += 2, w += 2 * sub * TILE_ROWS) {
        multiply_two(w, group_codes(x, s, sub, n_tokens), group_codes(x, s + 1, sub, n_tokens), sub, sums);
        add_scaled(panel, x, s, sums[0], total, n_tokens, sub, has_min);
        add_scaled(panel, x, s + 1, sums[1], total, n_tokens, sub, has_min);
    }
    if (s < n / sub) {
        multiply_one(w, group_codes(x, s, sub, n_tokens), sums[0]);
        add_scaled(panel, x, s, sums[0], total, n_tokens, sub, has_min);
    }
    for (int t = 0; t < n_tokens; t++) _mm512_storeu_ps(c + t * ldc, total[t]);
}

/* Whole tiles keep their totals in registers, because the compiler knows how many there are. */
#define DEFINE_TILE(name, sub, has_min)                                                                \
    static void name(const lc_panel *panel, const lc_q8_block *x, int n, float *c, int ldc) {          \
        if (x->n_tokens == TILE_TOKENS) tile(panel, x, n, c, ldc, TILE_TOKENS, sub, has_min);          \
        else tile(panel, x, n, c, ldc, x->n_tokens, sub, has_min);                                     \
    }
DEFINE_TILE(tile_32, 32, false)
DEFINE_TILE(tile_16, 16, false)
DEFINE_TILE(tile_32_min, 32, true)
DEFINE_TILE(tile_16_min, 16, true)

/* Products of full tiles, of `depth` values, whose sums do not wait for one another. */
#define DEFINE_TILE_PEAK(name, dot, depth)                           \
    static int64_t name(int64_t rounds) {                            \
        shape_tiles(TILE_TOKENS, 64);                                \
        for (int64_t i = 0; i < rounds; i++) {                       \
            dot(0, 4, 6);                                            \
            dot(1, 5, 6);                                            \
            dot(2, 4, 7);                                            \
            dot(3, 5, 7);                                            \
        }                                                            \
        end_step();                                                  \
        return rounds * 4 * 2 * TILE_TOKENS * TILE_ROWS * (depth);   \
    }

#if defined(__AVX512BF16__)
#include "amx_bf16.h"
#endif

DEFINE_TILE_PEAK(peak_int8, LC_TILE_DOT, 64)

void LC_KERNELS(lc_kernels *table) {
    table->isa = LC_ISA_NAME;
    table->tile_tokens = TILE_TOKENS;
    table->run_log2 = 5;
    lc_use_tiles(table, tile_32, tile_16, tile_32_min, tile_16_min);
    table->peak[LC_PEAK_INT8] = peak_int8;
    table->end_step = end_step;
#if defined(__AVX512BF16__)
    use_bf16(table);
#endif
}
