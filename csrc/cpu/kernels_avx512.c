/* AVX-512, with VNNI where the compiler may use it. Tiles hold 16 rows in the lanes of a register and up to 12 tokens,
 * or 4 without VNNI. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "math_avx512.h"
#include "simd_avx512.h"
#include "block_kernels.h"
#include "peaks.h"

/* --- q8 ------------------------------------------------------------------------------------------------------- */

/* The largest magnitude of 32 values; NaN if one is not finite, because the bits of those are the largest. */
INLINE float extreme_of(__m512 a, __m512 b) {
    const __m512i ia = _mm512_castps_si512(_mm512_abs_ps(a)), ib = _mm512_castps_si512(_mm512_abs_ps(b));
    const uint32_t bits = _mm512_reduce_max_epu32(_mm512_max_epu32(ia, ib));
    float extreme;
    memcpy(&extreme, &bits, 4);
    return bits < 0x7F800000 ? extreme : NAN;
}

/* The sums of each half of 32 codes. */
INLINE void sums_of_halves(__m256i codes, int *low, int *high) {
    const __m256i biased = _mm256_xor_si256(codes, _mm256_set1_epi8((char)0x80)); /* unsigned: 128 more */
    const __m256i eights = _mm256_sad_epu8(biased, _mm256_setzero_si256());
    const __m256i halves = _mm256_add_epi64(eights, _mm256_bsrli_epi128(eights, 8));
    *low = _mm_cvtsi128_si32(_mm256_castsi256_si128(halves)) - 16 * 128;
    *high = _mm_cvtsi128_si32(_mm256_extracti128_si256(halves, 1)) - 16 * 128;
}

static void quantize_q8(const float *x, int n, const lc_q8_block *block, int t) {
    for (int g = 0; g < n / LC_GROUP; g++, x += LC_GROUP) {
        const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
        const float extreme = extreme_of(a, b), scale = extreme / 127.0f;
        const __m512 inverse = _mm512_set1_ps(lc_q8_inverse(extreme));
        const __m128i low_codes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)));
        const __m128i high_codes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(b, inverse)));
        const __m256i both = _mm256_set_m128i(high_codes, low_codes);
        int8_t codes[LC_GROUP];
        _mm256_storeu_si256((__m256i *)(void *)codes, both);
        int low, high;
        sums_of_halves(both, &low, &high);
        lc_q8_put_group(block, g, t, codes, scale, low, high);
    }
}

#if defined(__AVX512VNNI__)
#include "tiles_vnni.h"
#else
#include "tiles.h"
#endif
#include "dot_avx512.h"

/* --- rows ----------------------------------------------------------------------------------------------------- */

static void rms_norm(const float *x, const float *weight, int n, double eps, float *out) {
    __m512d sum = _mm512_setzero_pd();
    for (int i = 0; i < n; i += 8) {
        const __mmask8 m = (__mmask8)first(n - i);
        const __m512d v = _mm512_cvtps_pd(_mm256_maskz_loadu_ps(m, x + i));
        sum = _mm512_fmadd_pd(v, v, sum);
    }
    const __m512 inverse = _mm512_set1_ps((float)(1.0 / sqrt(_mm512_reduce_add_pd(sum) / n + eps)));
    for (int i = 0; i < n; i += 16) {
        const __mmask16 m = first(n - i);
        const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), inverse);
        _mm512_mask_storeu_ps(out + i, m, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, weight + i)));
    }
}

static void rope(const float *x, const float *cos, const float *sin, int n_head, int head_dim, float *out) {
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    for (int i = 0; i < head_dim; i += 16) {
        const __mmask16 m = first(head_dim - i);
        const __mmask8 half = (__mmask8)first((head_dim - i + 1) / 2);
        const __m512 c = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_maskz_loadu_ps(half, cos + i / 2)));
        const __m512 s = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_maskz_loadu_ps(half, sin + i / 2)));
        for (int h = 0; h < n_head; h++) {
            const __m512 v = _mm512_maskz_loadu_ps(m, x + h * head_dim + i);
            const __m512 swapped = _mm512_permute_ps(v, 0xB1); /* even · cos - odd · sin, odd · cos + even · sin */
            _mm512_mask_storeu_ps(out + h * head_dim + i, m, _mm512_fmaddsub_ps(v, c, _mm512_mul_ps(swapped, s)));
        }
    }
}

static void silu_mul(const float *gate, const float *up, int n, float *out) {
    for (int i = 0; i < n; i += 16) {
        const __mmask16 m = first(n - i);
        const __m512 g = _mm512_maskz_loadu_ps(m, gate + i), u = _mm512_maskz_loadu_ps(m, up + i);
        _mm512_mask_storeu_ps(out + i, m, _mm512_mul_ps(silu16(g), u));
    }
}

static void add(const float *a, const float *b, int n, float *out) {
    for (int i = 0; i < n; i += 16) {
        const __mmask16 m = first(n - i);
        const __m512 x = _mm512_maskz_loadu_ps(m, a + i), y = _mm512_maskz_loadu_ps(m, b + i);
        _mm512_mask_storeu_ps(out + i, m, _mm512_add_ps(x, y));
    }
}

static void half_to_float(const uint16_t *h, int n, float *x) {
    for (int i = 0; i < n; i += 16) {
        const __mmask16 m = first(n - i);
        _mm512_mask_storeu_ps(x + i, m, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, h + i)));
    }
}

static void float_to_half(const float *x, int n, uint16_t *h) {
    for (int i = 0; i < n; i += 16) {
        const __mmask16 m = first(n - i);
        _mm256_mask_storeu_epi16(h + i, m, _mm512_cvtps_ph(_mm512_maskz_loadu_ps(m, x + i), _MM_FROUND_TO_NEAREST_INT));
    }
}

#include "attend_avx512.h"

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
    table->add = add;
    table->half_to_float = half_to_float;
    table->float_to_half = float_to_half;
    USE_ATTENTION
}
