/* NEON (arm64), with dot products where the compiler may use them. Tiles hold 4 rows in the lanes of a register and up to 8 tokens. */
#include "half.h"
#include "simd_neon.h"
#include "block_kernels.h"
#include "peaks.h"

enum { TILE_TOKENS = 8 };

/* --- q8 ------------------------------------------------------------------------------------------------------- */

static void quantize_q8(const float *x, int n, const lc_q8_block *block, int t) {
    for (int g = 0; g < n / LC_GROUP; g++, x += LC_GROUP) {
        float32x4_t v[8], extreme = vdupq_n_f32(0), poison = vdupq_n_f32(0);
        for (int i = 0; i < 8; i++) {
            v[i] = vld1q_f32(x + 4 * i);
            extreme = vmaxnmq_f32(extreme, vabsq_f32(v[i]));
            poison = vaddq_f32(poison, vmulq_n_f32(v[i], 0)); /* NaN where a value is not finite */
        }
        const float top = vmaxvq_f32(extreme), inverse = lc_q8_inverse(top);
        const float scale = top / 127.0f + vaddvq_f32(poison);
        int32x4_t low = vdupq_n_s32(0), high = vdupq_n_s32(0);
        int8_t codes[LC_GROUP];
        for (int i = 0; i < 8; i++) {
            const int32x4_t q = vcvtnq_s32_f32(vmulq_n_f32(v[i], inverse));
            if (i < 4) low = vaddq_s32(low, q);
            else high = vaddq_s32(high, q);
            const int16x4_t q16 = vqmovn_s32(q);
            const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(vqmovn_s16(vcombine_s16(q16, q16))), 0);
            memcpy(codes + 4 * i, &four, 4);
        }
        lc_q8_put_group(block, g, t, codes, scale, vaddvq_s32(low), vaddvq_s32(high));
    }
}

INLINE void tile(const lc_panel *panel, const lc_q8_block *x, int n, float *c, int ldc, int n_tokens, int sub,
                 int has_min) {
    fvec total[TILE_TOKENS];
    for (int t = 0; t < n_tokens; t++) total[t] = f_load(c + t * ldc);
    const uint8_t *codes = panel->codes;
    const int8_t *a = x->codes;
    for (int s = 0; s < n / sub; s++) {
        vec sum[TILE_TOKENS];
        for (int t = 0; t < n_tokens; t++) sum[t] = v_set32(0);
        for (int k = 0; k < sub / 4; k++, codes += 4 * TILE_ROWS, a += 4 * n_tokens) {
            const vec w = v_load(codes);
            for (int t = 0; t < n_tokens; t++) sum[t] = add_products(sum[t], w, v_repeat4(a + 4 * t), 8);
        }
        const fvec scale = f_load(panel->scales + s * TILE_ROWS);
        const float *a_scale = x->scales + s * sub / LC_GROUP * n_tokens;
        for (int t = 0; t < n_tokens; t++)
            total[t] = f_fma(f_from(sum[t]), f_mul(scale, f_set(a_scale[t])), total[t]);
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

/* --- float types ---------------------------------------------------------------------------------------------- */

INLINE float32x4_t load_f32(const uint8_t *p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
INLINE float32x4_t load_f16(const uint8_t *p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
INLINE float32x4_t load_bf16(const uint8_t *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}

#define f_total vaddvq_f32
#define DOT_TOKENS 4
enum { DOT_ROWS = 4, DOT_ROWS_ALONE = 4, DOT_PACKS = true };
#include "dot_rows.h"

/* --- rows ----------------------------------------------------------------------------------------------------- */

static void half_to_float(const uint16_t *h, int n, float *x) {
    int i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(x + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h + i))));
    for (; i < n; i++) x[i] = lc_half_to_float(h[i]);
}

static void float_to_half(const float *x, int n, uint16_t *h) {
    int i = 0;
    for (; i + 4 <= n; i += 4) vst1_u16(h + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
    for (; i < n; i++) h[i] = lc_float_to_half(x[i]);
}

/* --- attention ------------------------------------------------------------------------------------------------ */

/* Dot products in 16 lanes: four registers each. */
INLINE void scores_block(const float *q, const float *k, int d, float scale, float *scores, int n_k) {
    fvec sum[4][4];
    for (int j = 0; j < n_k; j++)
        for (int l = 0; l < 4; l++) sum[j][l] = f_set(0);
    for (int e = 0; e < d; e += 16)
        for (int l = 0; l < 4; l++) {
            const fvec v = f_load(q + e + 4 * l);
            for (int j = 0; j < n_k; j++) sum[j][l] = f_fma(v, f_load(k + j * d + e + 4 * l), sum[j][l]);
        }
    for (int j = 0; j < n_k; j++) {
        const fvec four = vaddq_f32(vaddq_f32(sum[j][0], sum[j][2]), vaddq_f32(sum[j][1], sum[j][3]));
        const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
        scores[j] = vpadds_f32(two) * scale;
    }
}

static void attend_scores(const float *q, int n_q, const float *k, int n_k, int d, float scale, float *scores,
                          int lds) {
    for (int i = 0; i < n_q; i++) {
        int j = 0;
        for (; j + 4 <= n_k; j += 4) scores_block(q + i * d, k + j * d, d, scale, scores + i * lds + j, 4);
        for (; j < n_k; j++) scores_block(q + i * d, k + j * d, d, scale, scores + i * lds + j, 1);
    }
}

INLINE void mix_block(const float *weights, int ldw, const float *keep, const float *v, int n_k, int d, float *out,
                      int n_q) {
    float32x4_t sum[4][4];
    for (int i = 0; i < n_q; i++)
        for (int e = 0; e < 4; e++) sum[i][e] = vmulq_n_f32(vld1q_f32(out + i * d + 4 * e), keep[i]);
    for (int j = 0; j < n_k; j++)
        for (int e = 0; e < 4; e++) {
            const float32x4_t value = vld1q_f32(v + j * d + 4 * e);
            for (int i = 0; i < n_q; i++) sum[i][e] = vfmaq_n_f32(sum[i][e], value, weights[i * ldw + j]);
        }
    for (int i = 0; i < n_q; i++)
        for (int e = 0; e < 4; e++) vst1q_f32(out + i * d + 4 * e, sum[i][e]);
}

static void attend_mix(const float *weights, int ldw, const float *keep, int n_q, const float *v, int n_k, int d,
                       float *out) {
    int i = 0;
    for (; i + 4 <= n_q; i += 4)
        for (int e = 0; e < d; e += 16) mix_block(weights + i * ldw, ldw, keep + i, v + e, n_k, d, out + i * d + e, 4);
    for (; i < n_q; i++)
        for (int e = 0; e < d; e += 16) mix_block(weights + i * ldw, ldw, keep + i, v + e, n_k, d, out + i * d + e, 1);
}

void LC_KERNELS(lc_kernels *table) {
    table->isa = LC_ISA_NAME;
    table->tile_rows = TILE_ROWS;
    table->tile_tokens = TILE_TOKENS;
    table->quantize_q8 = quantize_q8;
    lc_use_tiles(table, tile_32, tile_16, tile_32_min, tile_16_min);
    USE_FORMATS
    USE_PEAKS
    USE_DOTS
    table->half_to_float = half_to_float;
    table->float_to_half = float_to_half;
    table->attend_scores = attend_scores;
    table->attend_mix = attend_mix;
}
