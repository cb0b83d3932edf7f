/* What block_kernels.h is written in, for AVX-512 with and without VNNI: a `vec` has one dword of each of 16 rows, an `fvec` one float. */
#ifndef LC_SIMD_AVX512_H
#define LC_SIMD_AVX512_H

#include <string.h>

#include "kernel_table.h"
#include "simd_x86.h"

#if !defined(TILE_VECS)
#define TILE_VECS 1
#endif
enum { VEC_ROWS = 16, TILE_ROWS = TILE_VECS * VEC_ROWS };

typedef __m512i vec;
typedef __m512 fvec;
typedef const uint8_t *lc_rows[VEC_ROWS];

#define v_and _mm512_and_si512
#define v_or _mm512_or_si512
#define v_xor _mm512_xor_si512
#define v_abs8 _mm512_abs_epi8
#define v_add8 _mm512_add_epi8
#define v_add16 _mm512_add_epi16
#define v_add32 _mm512_add_epi32
#define v_sub16 _mm512_sub_epi16
#define v_sub32 _mm512_sub_epi32
#define v_srl16(v, n) _mm512_srli_epi16(v, (unsigned)(n))
#define v_sll16(v, n) _mm512_slli_epi16(v, (unsigned)(n))
#define v_srl32(v, n) _mm512_srli_epi32(v, (unsigned)(n))
#define v_sll32(v, n) _mm512_slli_epi32(v, (unsigned)(n))
#define v_sra32(v, n) _mm512_srai_epi32(v, (unsigned)(n))
#define v_set8(x) _mm512_set1_epi8((char)(x))
#define v_set32 _mm512_set1_epi32
#define v_repeat16(p) _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define v_lookup _mm512_shuffle_epi8
#define v_load _mm512_loadu_si512
#define v_store _mm512_storeu_si512
#define v_unpacklo32 _mm512_unpacklo_epi32
#define v_unpackhi32 _mm512_unpackhi_epi32
#define v_unpacklo64 _mm512_unpacklo_epi64
#define v_unpackhi64 _mm512_unpackhi_epi64
#define f_load _mm512_loadu_ps
#define f_store _mm512_storeu_ps
#define f_set _mm512_set1_ps
#define f_mul _mm512_mul_ps
#define f_sub _mm512_sub_ps
#define f_fma _mm512_fmadd_ps
#define f_fnma _mm512_fnmadd_ps
#define f_from _mm512_cvtepi32_ps

INLINE void f_store_first(float *p, int n, fvec x) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), x); }

INLINE vec v_repeat4(const int8_t *p) { return v_set32(four_codes(p)); }
INLINE vec v_repeat8(const int8_t *p) { return _mm512_set1_epi64(eight_codes(p)); }

/* Neighbours added up: the four lanes of either become two of each. `most`: the largest sum that goes in. */
INLINE vec pairs_added(vec p, vec q, int most) {
    if (most <= INT16_MAX) return _mm512_madd_epi16(_mm512_packs_epi32(p, q), _mm512_set1_epi16(1));
    const __m512 x = _mm512_castsi512_ps(p), y = _mm512_castsi512_ps(q);
    return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)),
                            _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xDD)));
}

/* sum += products of the codes in w and a, four to a dword. */
#if defined(__AVX512VNNI__)
#if !defined(READ_ALONG)
#define READ_ALONG(elems) 1 /* whether one token's products go along rows of such blocks; see matvec_along.h */
#endif
#include "wide_sums.h"
#define BIAS_LOG2(bits) 7
INLINE vec add_products(vec sum, vec w, vec a, int bits) { return (void)bits, _mm512_dpbusd_epi32(sum, w, a); }
/* With four codes of memory in every dword; no intrinsic says that the instruction repeats them. */
#define ADD_FOUR(sum, w, a) \
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*(const int8_t(*)[4])(const void *)(a)))
/* lc_bring() of one line, as FETCH_WITH. */
#define BRING_WITH(v, p) __asm__ volatile("prefetcht0 %1" : "+v"(v) : "m"(*(const uint8_t *)(p)))
#if !defined(FEW_TOKENS)
#if defined(LC_QUICK_TO_COMPILE) /* builds that check, or never run this */
#define FEW_TOKENS 2
#else
#define FEW_TOKENS 8
#endif
#endif
#else
#define FEW_TOKENS 1
#define v_signed8(a, w) _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), v_set32(0), a)
#define v_signs8(w) _mm512_movm_epi8(_mm512_movepi8_mask(w))
#define v_pairs8 _mm512_maddubs_epi16
#define widened(sum) _mm512_madd_epi16(sum, _mm512_set1_epi16(1))
#include "narrow_sums.h"
#endif

#define HAS_BYTE_MASKS
/* Adds `value` to the bytes of v in which `flags` has any of `bits`. */
INLINE vec add_where(vec v, vec flags, vec bits, vec value) {
    return _mm512_mask_add_epi8(v, _mm512_test_epi8_mask(flags, bits), v, value);
}

/* 16 bytes of rows i, i + 4, i + 8 and i + 12. */
INLINE vec load_every_fourth(const lc_rows row, size_t at, int i) {
    const __m256i low = two_16(row[i] + at, row[i + 4] + at), high = two_16(row[i + 8] + at, row[i + 12] + at);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

INLINE fvec load_halves(const lc_rows row, size_t at) {
    return _mm512_cvtph_ps(_mm256_set_m128i(eight_halves(row + 8, at), eight_halves(row, at)));
}
INLINE vec load_dword(const lc_rows row, size_t at) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(eight_dwords(row, at)), eight_dwords(row + 8, at), 1);
}

/* The half in the low 16 bits of each dword. */
INLINE fvec halves_of(vec dwords) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(dwords)); }

#endif
