/* AMX: tiles over the kernels of avx512vnni. 16 tokens (rows of operand a) meet 16 rows of weights (columns of operand b,
 * just as a panel has them).
 *
 * Sums of codes are exact and scaled in the common order, group by group, so results have the bits of every other kernel;
 * but the scaling takes several times as long as the products. Compiled with bf16, weights with their scales become bf16,
 * once for many tokens, and nothing is left to do but products. */
#include <immintrin.h>
#include <stdbool.h>

#include "kernel_table.h"

#if !defined(LC_AMX_EMULATED)
#define LC_AMX_EMULATED 0
#endif
#include "amx.h"

#define INLINE static inline __attribute__((always_inline))

enum { TILE_ROWS = 16, TILE_TOKENS = 16, RUN = LC_GROUP, CODES_A = 4, CODES_B = 6 /* and the tiles after each */ };

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

#if defined(__AVX512BF16__) /* --- products of bf16 -------------------------------------------------------------- */

/* Value i of both halves of 32 words side by side. */
INLINE __m512i interleave_halves(__m512i words) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(words));
    const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(words, 1));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

static void round_bf16(const float *x, int n, uint16_t *block, int n_tokens, int t) {
    for (int k = 0; k < n; k += 32) {
        const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + k + 16), _mm512_loadu_ps(x + k));
        _mm512_storeu_si512(block + (size_t)k * (size_t)n_tokens + 32 * t, (__m512i)both);
    }
}

/* Byte i of each quad of codes, times scale, plus offset. */
INLINE __m512 weights_of(__m512i codes, int i, __m512 scale, __m512 offset) {
    const __m512i code = _mm512_and_si512(_mm512_srli_epi32(codes, 8 * i), _mm512_set1_epi32(0xFF));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(code), scale, offset);
}

static void bf16_panel(const lc_panel *panel, int n, int sub, bool has_min, uint16_t *out) {
    for (int k = 0; k < n; k += sub) {
        const __m512 scale = _mm512_loadu_ps(panel->scales + k / sub * TILE_ROWS);
        const __m512 offset = has_min ? _mm512_sub_ps(_mm512_setzero_ps(), _mm512_loadu_ps(panel->mins + k / sub * TILE_ROWS))
                                      : _mm512_mul_ps(scale, _mm512_set1_ps(-LC_CODE_BIAS));
        for (int i = k; i < k + sub; i += 4) {
            const __m512i codes = _mm512_loadu_si512(panel->codes + i * TILE_ROWS);
            for (int j = 0; j < 4; j += 2) {
                const __m512bh pairs = _mm512_cvtne2ps_pbh(weights_of(codes, j + 1, scale, offset),
                                                           weights_of(codes, j, scale, offset));
                _mm512_storeu_si512(out + (i + j) * TILE_ROWS, interleave_halves((__m512i)pairs));
            }
        }
    }
}

/* Tiles: 0 to 3 sums, of block i with panel j in 2 i + j; 4 and 5 tokens, 6 and 7 weights. */
INLINE void multiply_bf16(const uint16_t *panels, const lc_bf16_block *x, int n, float *c, int ldc, bool two_panels,
                          bool two_blocks) {
    const size_t row = (size_t)ldc * sizeof *c, token_step = 32 * (size_t)x->n_tokens;
    float *next = c + TILE_TOKENS * ldc;
    const uint16_t *a = x->values, *b = panels;
    shape_tiles(x->n_tokens, 64);
    LC_TILE_LOAD(0, c, row);
    if (two_panels) LC_TILE_LOAD(1, c + TILE_ROWS, row);
    if (two_blocks) LC_TILE_LOAD(2, next, row);
    if (two_blocks && two_panels) LC_TILE_LOAD(3, next + TILE_ROWS, row);
    for (int k = 0; k < n; k += 32, a += token_step, b += 32 * TILE_ROWS) {
        LC_TILE_LOAD(4, a, 64);
        LC_TILE_LOAD(6, b, 64);
        LC_TILE_DOT_BF16(0, 4, 6);
        if (two_panels) LC_TILE_LOAD(7, b + LC_BF16_PANEL, 64);
        if (two_panels) LC_TILE_DOT_BF16(1, 4, 7);
        if (two_blocks) LC_TILE_LOAD(5, x[1].values + (a - x->values), 64);
        if (two_blocks) LC_TILE_DOT_BF16(2, 5, 6);
        if (two_blocks && two_panels) LC_TILE_DOT_BF16(3, 5, 7);
    }
    LC_TILE_STORE(0, c, row);
    if (two_panels) LC_TILE_STORE(1, c + TILE_ROWS, row);
    if (two_blocks) LC_TILE_STORE(2, next, row);
    if (two_blocks && two_panels) LC_TILE_STORE(3, next + TILE_ROWS, row);
}

static void tile_bf16(const uint16_t *panels, int n_panels, const lc_bf16_block *x, int n_blocks, int n, float *c, int ldc) {
    if (n_blocks == 2 && x[1].n_tokens == TILE_TOKENS) {
        if (n_panels == 2) multiply_bf16(panels, x, n, c, ldc, true, true);
        else multiply_bf16(panels, x, n, c, ldc, false, true);
        return;
    }
    for (int b = 0; b < n_blocks; b++, c += TILE_TOKENS * ldc) {
        if (n_panels == 2) multiply_bf16(panels, x + b, n, c, ldc, true, false);
        else multiply_bf16(panels, x + b, n, c, ldc, false, false);
    }
}

static int64_t peak_bf16(int64_t rounds) {
    enum { DEPTH = 32 };
    shape_tiles(TILE_TOKENS, 2 * DEPTH);
    for (int64_t i = 0; i < rounds; i++) {
        LC_TILE_DOT_BF16(0, 4, 6);
        LC_TILE_DOT_BF16(1, 5, 6);
        LC_TILE_DOT_BF16(2, 4, 7);
        LC_TILE_DOT_BF16(3, 5, 7);
    }
    end_step();
    return rounds * 4 * 2 * TILE_TOKENS * TILE_ROWS * DEPTH;
}

#endif

static int64_t peak_int8(int64_t rounds) {
    enum { DEPTH = 64 };
    shape_tiles(TILE_TOKENS, DEPTH);
    for (int64_t i = 0; i < rounds; i++) {
        LC_TILE_DOT(0, 4, 6);
        LC_TILE_DOT(1, 5, 6);
        LC_TILE_DOT(2, 4, 7);
        LC_TILE_DOT(3, 5, 7);
    }
    end_step();
    return rounds * 4 * 2 * TILE_TOKENS * TILE_ROWS * DEPTH;
}

void LC_KERNELS(lc_kernels *table) {
    table->isa = LC_ISA_NAME;
    table->tile_tokens = TILE_TOKENS;
    table->run_log2 = 5;
    lc_use_tiles(table, tile_32, tile_16, tile_32_min, tile_16_min);
    table->peak[LC_PEAK_INT8] = peak_int8;
    table->end_step = end_step;
#if defined(__AVX512BF16__)
    table->round_bf16 = round_bf16;
    table->bf16_panel = bf16_panel;
    table->tile_bf16 = tile_bf16;
    table->peak[LC_PEAK_BF16] = peak_bf16;
#endif
}
