/* What block_kernels.h is written in, for AVX2 and AVX-VNNI: a `vec` has one dword of each of 8 rows, an `fvec` one float. */
#ifndef LC_SIMD_AVX2_H
#define LC_SIMD_AVX2_H

#include <string.h>

#include "kernel_table.h"
#include "simd_x86.h"

#define FEW_TOKENS 1
#define TILE_VECS 2
enum { VEC_ROWS = 8, TILE_ROWS = TILE_VECS * VEC_ROWS };

typedef __m256i vec;
typedef __m256 fvec;
typedef const uint8_t *lc_rows[VEC_ROWS];

#define v_and _mm256_and_si256
#define v_or _mm256_or_si256
#define v_xor _mm256_xor_si256
#define v_abs8 _mm256_abs_epi8
#define v_add8 _mm256_add_epi8
#define v_add16 _mm256_add_epi16
#define v_add32 _mm256_add_epi32
#define v_sub16 _mm256_sub_epi16
#define v_sub32 _mm256_sub_epi32
#define v_srl16 _mm256_srli_epi16
#define v_sll16 _mm256_slli_epi16
#define v_srl32 _mm256_srli_epi32
#define v_sll32 _mm256_slli_epi32
#define v_sra32 _mm256_srai_epi32
#define v_set8(x) _mm256_set1_epi8((char)(x))
#define v_set32 _mm256_set1_epi32
#define v_repeat16(p) _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define v_lookup _mm256_shuffle_epi8
#define v_load(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define v_store(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)
#define v_unpacklo32 _mm256_unpacklo_epi32
#define v_unpackhi32 _mm256_unpackhi_epi32
#define v_unpacklo64 _mm256_unpacklo_epi64
#define v_unpackhi64 _mm256_unpackhi_epi64
#define f_load _mm256_loadu_ps
#define f_store _mm256_storeu_ps
#define f_set _mm256_set1_ps
#define f_mul _mm256_mul_ps
#define f_sub _mm256_sub_ps
#define f_fma _mm256_fmadd_ps
#define f_fnma _mm256_fnmadd_ps
#define f_from _mm256_cvtepi32_ps

INLINE void f_store_first(float *p, int n, fvec x) {
    float all[VEC_ROWS];
    f_store(all, x);
    memcpy(p, all, (size_t)n * sizeof *p);
}

INLINE vec v_repeat4(const int8_t *p) { return v_set32(four_codes(p)); }
INLINE vec v_repeat8(const int8_t *p) { return _mm256_set1_epi64x(eight_codes(p)); }

/* Neighbours added up: the four lanes of either become two of each. `most`: the largest sum that goes in. */
INLINE vec pairs_added(vec p, vec q, int most) {
    if (most > INT16_MAX) return _mm256_hadd_epi32(p, q);
    return _mm256_madd_epi16(_mm256_packs_epi32(p, q), _mm256_set1_epi16(1));
}

/* sum += products of the codes in w and a, four to a dword. AVX-VNNI has one instruction for that, of unsigned codes;
 * AVX-512 has it too, encoded otherwise. */
#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
#include "wide_sums.h"
#define BIAS_LOG2(bits) 7
INLINE vec add_products(vec sum, vec w, vec a, int bits) {
    (void)bits;
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, w, a);
#else
    return _mm256_dpbusd_epi32(sum, w, a);
#endif
}
#else
#define v_signed8 _mm256_sign_epi8
#define v_signs8(w) _mm256_cmpgt_epi8(v_set32(0), w)
#define v_pairs8 _mm256_maddubs_epi16
#define widened(sum) _mm256_madd_epi16(sum, _mm256_set1_epi16(1))
#include "narrow_sums.h"
#endif

/* Adds `value` to the bytes of v in which `flags` has all of `bits`, of which there is one a byte. */
INLINE vec add_where(vec v, vec flags, vec bits, vec value) {
    return v_add8(v, v_and(_mm256_cmpeq_epi8(v_and(flags, bits), bits), value));
}

/* 16 bytes of rows i and i + 4. */
INLINE vec load_every_fourth(const lc_rows row, size_t at, int i) { return two_16(row[i] + at, row[i + 4] + at); }

INLINE fvec load_halves(const lc_rows row, size_t at) { return _mm256_cvtph_ps(eight_halves(row, at)); }
INLINE vec load_dword(const lc_rows row, size_t at) { return eight_dwords(row, at); }

/* The half in the low 16 bits of each dword. */
INLINE fvec halves_of(vec dwords) {
    const vec low = v_and(dwords, v_set32(0xFFFF));
    const vec packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
}

#endif
