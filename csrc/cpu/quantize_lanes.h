/* Vectors of LC_LANES floats, one lane a block: what the searches for scales are written in.
 *
 * Blocks do not see each other, and within a block every operation and its order is written out, so results have the
 * same bits whatever the number of lanes. + - * / and comparisons come from the compiler's vector extension; here is
 * the rest, in the machine's own instructions where there are some. The including file defines LC_LANES. */
#ifndef LC_QUANTIZE_LANES_H
#define LC_QUANTIZE_LANES_H

#include <float.h>
#include <stdint.h>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define LC_INLINE static inline __attribute__((always_inline))

typedef float lc_vf __attribute__((vector_size(4 * LC_LANES), may_alias));
typedef int32_t lc_vi __attribute__((vector_size(4 * LC_LANES), may_alias));
typedef uint32_t lc_vu __attribute__((vector_size(4 * LC_LANES), may_alias));

LC_INLINE lc_vf lc_splat(float a) { return (lc_vf){0} + a; }

/* lc_where_less(a, b, x, y): a < b ? x : y. lc_min, lc_max: b where either is NaN or both are equal.
 * lc_rint: the nearest integer, halves to even; beyond 2^22 perhaps another integer nearby. */
#if LC_LANES == 16 && defined(__AVX512F__)

LC_INLINE lc_vf lc_where_less(lc_vf a, lc_vf b, lc_vf x, lc_vf y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
LC_INLINE lc_vf lc_min(lc_vf a, lc_vf b) { return _mm512_min_ps(a, b); }
LC_INLINE lc_vf lc_max(lc_vf a, lc_vf b) { return _mm512_max_ps(a, b); }
LC_INLINE lc_vf lc_rint(lc_vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

#elif LC_LANES == 8 && defined(__AVX__)

LC_INLINE lc_vf lc_where_less(lc_vf a, lc_vf b, lc_vf x, lc_vf y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
LC_INLINE lc_vf lc_min(lc_vf a, lc_vf b) { return _mm256_min_ps(a, b); }
LC_INLINE lc_vf lc_max(lc_vf a, lc_vf b) { return _mm256_max_ps(a, b); }
LC_INLINE lc_vf lc_rint(lc_vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

#else

LC_INLINE lc_vf lc_where_less(lc_vf a, lc_vf b, lc_vf x, lc_vf y) {
    const lc_vi less = a < b;
    return (lc_vf)((less & (lc_vi)x) | (~less & (lc_vi)y));
}
#if LC_LANES == 4 && defined(__SSE2__)
LC_INLINE lc_vf lc_min(lc_vf a, lc_vf b) { return _mm_min_ps(a, b); }
LC_INLINE lc_vf lc_max(lc_vf a, lc_vf b) { return _mm_max_ps(a, b); }
#else
LC_INLINE lc_vf lc_min(lc_vf a, lc_vf b) { return lc_where_less(a, b, a, b); }
LC_INLINE lc_vf lc_max(lc_vf a, lc_vf b) { return lc_where_less(b, a, a, b); }
#endif
#if LC_LANES == 4 && defined(__aarch64__)
LC_INLINE lc_vf lc_rint(lc_vf a) { return vrndnq_f32(a); }
#else
LC_INLINE lc_vf lc_rint(lc_vf a) { return a + 0x1.8p23f - 0x1.8p23f; }
#endif

#endif

/* Rounds down; beyond 2^22 perhaps to another integer nearby. */
LC_INLINE lc_vf lc_floor(lc_vf a) {
    const lc_vf nearest = lc_rint(a);
    return lc_where_less(a, nearest, nearest - 1.0f, nearest);
}

LC_INLINE lc_vf lc_abs(lc_vf a) { return (lc_vf)((lc_vu)a & 0x7FFFFFFFu); }

/* The value clamped to what levels first ... last allow; NaN stays NaN. */
LC_INLINE lc_vf lc_clamp(lc_vf a, float first, float last) {
    return lc_min(lc_splat(last), lc_max(lc_splat(first), a));
}

/* a / b where b is positive, else 0. */
LC_INLINE lc_vf lc_ratio_or_zero(lc_vf a, lc_vf b) {
    const lc_vf zero = lc_splat(0);
    return lc_where_less(zero, b, a / lc_where_less(zero, b, b, lc_splat(1)), zero);
}

/* 1 / d, or 0 where that is not finite. */
LC_INLINE lc_vf lc_reciprocal_or_zero(lc_vf d) {
    const lc_vf inverse = 1.0f / d;
    return lc_where_less(lc_abs(inverse), lc_splat(__builtin_inff()), inverse, lc_splat(0));
}

/* The nearest finite half-precision value; zero is never negative, NaN stays NaN. */
LC_INLINE lc_vf lc_to_half(lc_vf a) {
    const lc_vu bits = (lc_vu)lc_clamp(a, -65504.0f, 65504.0f), sign = bits & 0x80000000u;
    const lc_vf magnitude = (lc_vf)(bits ^ sign);
    const lc_vu rounded = ((lc_vu)magnitude + (((lc_vu)magnitude >> 13 & 1) + 0xFFF)) & ~0x1FFFu;
    const lc_vf subnormal = magnitude + 0.5f - 0.5f; /* below 2^-14 halves are multiples of 2^-24, as floats at 1/2 */
    const lc_vf half = lc_where_less(magnitude, lc_splat(0x1p-14f), subnormal, (lc_vf)rounded);
    return (lc_vf)((lc_vu)half | sign) + 0.0f;
}

#endif
