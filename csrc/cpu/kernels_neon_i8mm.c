/* NEON with matrix products of int8: tiles over those of neon_dotprod. One instruction multiplies 8 codes of two rows
 * with 8 of two tokens, so activations stand in runs of 8. */
#include "half.h"
#include "kernel_table.h"
#include "peaks.h"
#include "simd_neon.h"

#if !defined(__ARM_FEATURE_MATMUL_INT8)
#error compiled without matrix products
#endif

enum { TILE_TOKENS = 8, RUN = 8 };

/* 8 codes of tokens t and t + 1; zeros for a token that does not exist. */
INLINE int8x16_t token_pair(const int8_t *a, int t, int n_tokens) {
    if (t + 1 < n_tokens) return vld1q_s8(a + RUN * t);
    return vcombine_s8(vld1_s8(a + RUN * t), vdup_n_s8(0));
}

/* Four sums, rows 0 and 1 (low) or 2 and 3 (high) of two tokens, become the sums of four rows of one token. */
INLINE vec first_token(vec low, vec high) { return v_unpacklo64(low, high); }
INLINE vec second_token(vec low, vec high) { return v_unpackhi64(low, high); }

INLINE void tile(const lc_panel *panel, const lc_q8_block *x, int n, float *c, int ldc, int n_tokens, int sub,
                 int has_min) {
    fvec total[TILE_TOKENS];
    for (int t = 0; t < n_tokens; t++) total[t] = f_load(c + t * ldc);
    const uint8_t *codes = panel->codes;
    const int8_t *a = x->codes;
    for (int s = 0; s < n / sub; s++) {
        vec low[TILE_TOKENS / 2], high[TILE_TOKENS / 2]; /* [token, row]: 00 01 10 11 */
        for (int p = 0; 2 * p < n_tokens; p++) low[p] = high[p] = v_set32(0);
        for (int k = 0; k < sub; k += RUN, codes += RUN * TILE_ROWS, a += RUN * n_tokens) {
            const vec first = v_load(codes), second = v_load(codes + 4 * TILE_ROWS); /* 4 codes of each row, 4 more */
            const int8x16_t w_low = AS_8(vzip1q_s32(first, second)), w_high = AS_8(vzip2q_s32(first, second));
            for (int p = 0; 2 * p < n_tokens; p++) {
                const int8x16_t pair = token_pair(a, 2 * p, n_tokens);
                low[p] = vmmlaq_s32(low[p], pair, w_low);
                high[p] = vmmlaq_s32(high[p], pair, w_high);
            }
        }
        const fvec scale = f_load(panel->scales + s * TILE_ROWS);
        const float *a_scale = x->scales + s * sub / LC_GROUP * n_tokens;
        for (int t = 0; t < n_tokens; t++) {
            const vec sum = t % 2 == 0 ? first_token(low[t / 2], high[t / 2]) : second_token(low[t / 2], high[t / 2]);
            total[t] = f_fma(f_from(sum), f_mul(scale, f_set(a_scale[t])), total[t]);
        }
        if (!has_min) continue;
        const fvec min = f_load(panel->mins + s * TILE_ROWS);
        const float *a_sum = (sub == 32 ? x->sums32 : x->sums16) + s * n_tokens;
        for (int t = 0; t < n_tokens; t++) total[t] = f_fnma(min, f_set(a_sum[t]), total[t]);
    }
    for (int t = 0; t < n_tokens; t++) f_store(c + t * ldc, total[t]);
}

#define DEFINE_TILE(name, sub, has_min)                                                       \
    static void name(const lc_panel *panel, const lc_q8_block *x, int n, float *c, int ldc) { \
        switch (x->n_tokens) {                                                                \
        case 1: tile(panel, x, n, c, ldc, 1, sub, has_min); break;                            \
        case 2: tile(panel, x, n, c, ldc, 2, sub, has_min); break;                            \
        case 3: tile(panel, x, n, c, ldc, 3, sub, has_min); break;                            \
        case 4: tile(panel, x, n, c, ldc, 4, sub, has_min); break;                            \
        case 5: tile(panel, x, n, c, ldc, 5, sub, has_min); break;                            \
        case 6: tile(panel, x, n, c, ldc, 6, sub, has_min); break;                            \
        case 7: tile(panel, x, n, c, ldc, 7, sub, has_min); break;                            \
        default: tile(panel, x, n, c, ldc, 8, sub, has_min);                                  \
        }                                                                                     \
    }
DEFINE_TILE(tile_32, 32, 0)
DEFINE_TILE(tile_16, 16, 0)
DEFINE_TILE(tile_32_min, 32, 1)
DEFINE_TILE(tile_16_min, 16, 1)

void LC_KERNELS(lc_kernels *table) {
    table->isa = LC_ISA_NAME;
    table->tile_tokens = TILE_TOKENS;
    table->run_log2 = 3;
    lc_use_tiles(table, tile_32, tile_16, tile_32_min, tile_16_min);
    USE_PEAKS
}
