/* Rows of float types for AVX-512. Included after simd_avx512.h. */
#ifndef LC_DOT_AVX512_H
#define LC_DOT_AVX512_H

INLINE fvec load_f32(const uint8_t *p) { return _mm512_loadu_ps(p); }
INLINE fvec load_f16(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p)); }
INLINE fvec load_bf16(const uint8_t *p) {
    const __m256i bits = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

#define f_total _mm512_reduce_add_ps
#define DOT_TOKENS 6
enum { DOT_ROWS = 4, DOT_ROWS_ALONE = 4, DOT_PACKS = true };
#include "dot_rows.h"

#endif
