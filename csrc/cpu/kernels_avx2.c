/* AVX2 with FMA and F16C; with AVX-VNNI where the compiler may use it. Tiles hold 16 rows, in the lanes of two registers, and 5 tokens. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "half.h"
#include "simd_avx2.h"
#include "block_kernels.h"
#include "peaks.h"

INLINE float sum_f32(__m256 x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

INLINE float max_f32(__m256 x) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

INLINE int32_t sum_i32(__m256i x) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
}

/* --- q8 ------------------------------------------------------------------------------------------------------- */

static void quantize_q8(const float *x, int n, const lc_q8_block *block, int t) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF)), zero = _mm256_setzero_ps();
    for (int g = 0; g < n / LC_GROUP; g++, x += LC_GROUP) {
        __m256 v[4], extreme = zero, poison = zero;
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            extreme = _mm256_max_ps(extreme, _mm256_and_ps(v[i], magnitude));
            poison = _mm256_add_ps(poison, _mm256_mul_ps(v[i], zero));
        }
        const float top = max_f32(extreme);
        const float scale = top / 127.0f + sum_f32(poison); /* NaN if a value is not finite */
        const __m256 inverse = _mm256_set1_ps(lc_q8_inverse(top));
        __m256i q[4];
        for (int i = 0; i < 4; i++) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
        const int low = sum_i32(_mm256_add_epi32(q[0], q[1])), high = sum_i32(_mm256_add_epi32(q[2], q[3]));
        const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        int8_t codes[LC_GROUP];
        _mm256_storeu_si256((__m256i *)(void *)codes,
                            _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
        lc_q8_put_group(block, g, t, codes, scale, low, high);
    }
}

#include "tiles.h"

/* --- float types ---------------------------------------------------------------------------------------------- */

INLINE __m256 load_f32(const uint8_t *p) { return _mm256_loadu_ps((const float *)(const void *)p); }
INLINE __m256 load_f16(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE __m256 load_bf16(const uint8_t *p) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}

#define f_total sum_f32
#define DOT_TOKENS 3
enum { DOT_ROWS = 4, DOT_ROWS_ALONE = 2, DOT_PACKS = false };
#include "dot_rows.h"

/* --- rows ----------------------------------------------------------------------------------------------------- */

static void rms_norm(const float *x, const float *weight, int n, double eps, float *out) {
    __m256d sum[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
    for (int i = 0; i < n; i += 8) {
        float rest[8] = {0};
        const float *from = i + 8 <= n ? x + i : memcpy(rest, x + i, (size_t)(n - i) * sizeof *x);
        for (int h = 0; h < 2; h++) {
            const __m256d v = _mm256_cvtps_pd(_mm_loadu_ps(from + 4 * h));
            sum[h] = _mm256_fmadd_pd(v, v, sum[h]); /* squares of floats are exact in double */
        }
    }
    double lane[4];
    _mm256_storeu_pd(lane, _mm256_add_pd(sum[0], sum[1]));
    const double total = (lane[0] + lane[2]) + (lane[1] + lane[3]);
    const float inverse = (float)(1.0 / sqrt(total / n + eps));
    for (int i = 0; i < n; i++) out[i] = x[i] * inverse * weight[i];
}

/* Eight pairs of one head. */
INLINE __m256 rotate(__m256 v, __m128 cos, __m128 sin) {
    const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    const __m256 c = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(cos), twice);
    const __m256 s = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(sin), twice);
    return _mm256_fmaddsub_ps(v, c, _mm256_mul_ps(_mm256_permute_ps(v, 0xB1), s));
}

static void rope(const float *x, const float *cos, const float *sin, int n_head, int head_dim, float *out) {
    for (int h = 0; h < n_head; h++, x += head_dim, out += head_dim) {
        int i = 0;
        for (; i + 8 <= head_dim; i += 8)
            _mm256_storeu_ps(out + i, rotate(_mm256_loadu_ps(x + i), _mm_loadu_ps(cos + i / 2), _mm_loadu_ps(sin + i / 2)));
        if (i == head_dim) continue;
        const size_t left = (size_t)(head_dim - i) * sizeof *x;
        float v[8] = {0}, c[4] = {0}, s[4] = {0};
        memcpy(v, x + i, left);
        memcpy(c, cos + i / 2, left / 2);
        memcpy(s, sin + i / 2, left / 2);
        _mm256_storeu_ps(v, rotate(_mm256_loadu_ps(v), _mm_loadu_ps(c), _mm_loadu_ps(s)));
        memcpy(out + i, v, left);
    }
}

/* lc_exp */
INLINE __m256 exp8(__m256 x) {
    const __m256 low = _mm256_set1_ps(-87.0f);
    const __m256 is_tiny = _mm256_cmp_ps(x, low, _CMP_LT_OQ);
    const __m256 v = _mm256_min_ps(_mm256_set1_ps(88.0f), _mm256_max_ps(low, x)); /* these keep a NaN in x */
    const __m256 k = _mm256_round_ps(_mm256_mul_ps(v, _mm256_set1_ps(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(k, _mm256_set1_ps(0.693359375f), v);
    r = _mm256_fnmadd_ps(k, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.0f / 5040);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(is_tiny, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}

INLINE __m256 silu_mul8(__m256 gate, __m256 up) {
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 e = exp8(_mm256_xor_ps(gate, _mm256_set1_ps(-0.0f)));
    return _mm256_mul_ps(_mm256_div_ps(gate, _mm256_add_ps(one, e)), up);
}

static void silu_mul(const float *gate, const float *up, int n, float *out) {
    int i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, silu_mul8(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    if (i == n) return;
    float g[8] = {0}, u[8] = {0};
    memcpy(g, gate + i, (size_t)(n - i) * sizeof *g);
    memcpy(u, up + i, (size_t)(n - i) * sizeof *u);
    _mm256_storeu_ps(g, silu_mul8(_mm256_loadu_ps(g), _mm256_loadu_ps(u)));
    memcpy(out + i, g, (size_t)(n - i) * sizeof *g);
}

static void half_to_float(const uint16_t *h, int n, float *x) {
    int i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(h + i))));
    for (; i < n; i++) x[i] = lc_half_to_float(h[i]);
}

static void float_to_half(const float *x, int n, uint16_t *h) {
    int i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(h + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; i++) h[i] = lc_float_to_half(x[i]);
}

#include "attend_avx2.h"

void LC_KERNELS(lc_kernels *table) {
    table->isa = LC_ISA_NAME;
    table->tile_rows = TILE_ROWS;
    table->tile_tokens = TILE_TOKENS;
    table->code_bias = BIAS_OF(8);
    table->quantize_q8 = quantize_q8;
    USE_TILES
    USE_FORMATS
    USE_PEAKS
    USE_DOTS
    table->rms_norm = rms_norm;
    table->rope = rope;
    table->silu_mul = silu_mul;
    table->half_to_float = half_to_float;
    table->float_to_half = float_to_half;
    USE_ATTENTION
}
