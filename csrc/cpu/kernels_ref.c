/* Every kernel in plain C: the definition that the others are tested against. */
#include <math.h>
#include <string.h>

#include "fused.h"
#include "half.h"
#include "kernel_table.h"

enum { TILE_ROWS = 8, TILE_TOKENS = 4 };

static void quantize_q8(const float *x, int n, const lc_q8_block *block, int t) {
    for (int g = 0; g < n / LC_GROUP; g++, x += LC_GROUP) {
        float extreme = 0, poison = 0; /* poison is 0, or NaN where a value is not finite */
        for (int i = 0; i < LC_GROUP; i++) {
            const float magnitude = fabsf(x[i]);
            if (magnitude > extreme) extreme = magnitude;
            poison += x[i] * 0.0f;
        }
        const float inverse = lc_q8_inverse(extreme);
        const float scale = extreme / 127.0f + poison;
        int sums[2] = {0, 0};
        int8_t codes[LC_GROUP];
        for (int i = 0; i < LC_GROUP; i++) {
            const float rounded = poison == 0.0f ? rintf(x[i] * inverse) : 0.0f;
            codes[i] = (int8_t)rounded;
            sums[i / 16] += codes[i];
        }
        lc_q8_put_group(block, g, t, codes, scale, sums[0], sums[1]);
    }
}

/* All rows and one token. `sub` and `has_min` are constants where this is inlined. */
static inline void tile_token(const lc_panel *panel, const lc_q8_block *x, int n, int t, float *c, int sub,
                              int has_min) {
    const int stride = x->n_tokens;
    for (int s = 0; s < n / sub; s++) {
        int32_t sum[TILE_ROWS] = {0};
        for (int k = s * sub / 4; k < (s + 1) * sub / 4; k++) {
            const int8_t *w = (const int8_t *)panel->codes + k * TILE_ROWS * 4;
            const int8_t *a = x->codes + (k * stride + t) * 4;
            for (int r = 0; r < TILE_ROWS; r++)
                for (int i = 0; i < 4; i++) sum[r] += w[4 * r + i] * a[i];
        }
        const float scale = x->scales[s * sub / LC_GROUP * stride + t];
        const float a_sum = (sub == 32 ? x->sums32 : x->sums16)[s * stride + t];
        for (int r = 0; r < TILE_ROWS; r++) {
            c[r] = lc_fma((float)sum[r], panel->scales[s * TILE_ROWS + r] * scale, c[r]);
            if (has_min) c[r] = lc_fma(-panel->mins[s * TILE_ROWS + r], a_sum, c[r]);
        }
    }
}

#define DEFINE_TILE(name, sub, has_min)                                                                             \
    static void name(const lc_panel *panel, const lc_q8_block *x, int n, float *c, int ldc) {                       \
        for (int t = 0; t < x->n_tokens; t++) tile_token(panel, x, n, t, c + t * ldc, sub, has_min);                \
    }
DEFINE_TILE(tile_32, 32, 0)
DEFINE_TILE(tile_16, 16, 0)
DEFINE_TILE(tile_32_min, 32, 1)
DEFINE_TILE(tile_16_min, 16, 1)

enum { LANES = 16 };

static float sum_lanes(float *lane) {
    for (int n = LANES / 2; n > 0; n /= 2)
        for (int l = 0; l < n; l++) lane[l] += lane[l + n];
    return lane[0];
}

static float load_f32(const uint8_t *p) {
    float x;
    memcpy(&x, p, 4);
    return x;
}

static float load_f16(const uint8_t *p) {
    uint16_t bits;
    memcpy(&bits, p, 2);
    return lc_half_to_float(bits);
}

static float load_bf16(const uint8_t *p) {
    uint16_t bits;
    memcpy(&bits, p, 2);
    return lc_bf16_to_float(bits);
}

#define DEFINE_DOT(name, load, size)                                                                              \
    static void name(const uint8_t *rows, size_t row_bytes, int n_rows, const float *x, size_t ldx, int n_tokens, \
                     int n, const uint8_t *ahead, float *scratch, float *y, size_t ldy) {                         \
        (void)ahead, (void)scratch;                                                                               \
        for (int r = 0; r < n_rows; r++)                                                                          \
            for (int t = 0; t < n_tokens; t++) {                                                                  \
                const uint8_t *w = rows + (size_t)r * row_bytes;                                                  \
                const float *v = x + (size_t)t * ldx;                                                             \
                float lane[LANES] = {0};                                                                          \
                for (int i = 0; i < n; i++) lane[i % LANES] += load(w + (size_t)i * (size)) * v[i];               \
                y[(size_t)t * ldy + (size_t)r] = sum_lanes(lane);                                                 \
            }                                                                                                     \
    }
DEFINE_DOT(dot_f32, load_f32, 4)
DEFINE_DOT(dot_f16, load_f16, 2)
DEFINE_DOT(dot_bf16, load_bf16, 2)

static void rms_norm(const float *x, const float *weight, int n, double eps, float *out) {
    double lane[8] = {0};
    for (int i = 0; i < n; i++) lane[i % 8] += (double)x[i] * x[i];
    for (int half = 4; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    const float inverse = (float)(1.0 / sqrt(lane[0] / n + eps));
    for (int i = 0; i < n; i++) out[i] = x[i] * inverse * weight[i];
}

static void rope(const float *x, const float *cos, const float *sin, int n_head, int head_dim, float *out) {
    for (int h = 0; h < n_head; h++, x += head_dim, out += head_dim)
        for (int i = 0; i < head_dim / 2; i++) {
            const float even = x[2 * i], odd = x[2 * i + 1];
            out[2 * i] = lc_fma(even, cos[i], -(odd * sin[i]));
            out[2 * i + 1] = lc_fma(odd, cos[i], even * sin[i]);
        }
}

static void silu_mul(const float *gate, const float *up, int n, float *out) {
    for (int i = 0; i < n; i++) out[i] = gate[i] / (1.0f + lc_exp(-gate[i])) * up[i];
}

static void add(const float *a, const float *b, int n, float *out) {
    for (int i = 0; i < n; i++) out[i] = a[i] + b[i];
}

static void half_to_float(const uint16_t *h, int n, float *x) {
    for (int i = 0; i < n; i++) x[i] = lc_half_to_float(h[i]);
}

static void float_to_half(const float *x, int n, uint16_t *h) {
    for (int i = 0; i < n; i++) h[i] = lc_float_to_half(x[i]);
}

static void attend_scores(const float *q, int n_q, const float *k, int n_k, int d, float scale, float *scores,
                          int lds) {
    for (int i = 0; i < n_q; i++)
        for (int j = 0; j < n_k; j++) {
            float lane[LANES] = {0};
            for (int e = 0; e < d; e += LANES)
                for (int l = 0; l < LANES; l++) lane[l] = lc_fma(q[i * d + e + l], k[j * d + e + l], lane[l]);
            scores[i * lds + j] = sum_lanes(lane) * scale;
        }
}

static float exp_sum(float *scores, int n, float max) {
    float lane[LANES] = {0};
    for (int i = 0; i < n; i++) {
        scores[i] = lc_exp(scores[i] - max);
        lane[i % LANES] += scores[i];
    }
    return sum_lanes(lane);
}

static void attend_mix(const float *weights, int ldw, const float *keep, int n_q, const float *v, int n_k, int d,
                       float *out) {
    for (int i = 0; i < n_q; i++) {
        for (int e = 0; e < d; e++) out[i * d + e] *= keep[i];
        for (int j = 0; j < n_k; j++)
            for (int e = 0; e < d; e++) out[i * d + e] = lc_fma(weights[i * ldw + j], v[j * d + e], out[i * d + e]);
    }
}

static void end_step(void) {}

static const lc_kernels KERNELS = {
    .isa = LC_ISA_NAME,
    .tile_rows = TILE_ROWS,
    .tile_tokens = TILE_TOKENS,
    .few_tokens = 1,
    .run_log2 = 2,
    .quantize_q8 = quantize_q8,
    .dot_f32 = dot_f32,
    .dot_f16 = dot_f16,
    .dot_bf16 = dot_bf16,
    .rms_norm = rms_norm,
    .rope = rope,
    .silu_mul = silu_mul,
    .add = add,
    .half_to_float = half_to_float,
    .float_to_half = float_to_half,
    .attend_scores = attend_scores,
    .exp_sum = exp_sum,
    .attend_mix = attend_mix,
    .end_step = end_step,
};

void LC_KERNELS(lc_kernels *table) {
    *table = KERNELS;
    lc_use_tiles(table, tile_32, tile_16, tile_32_min, tile_16_min);
}
