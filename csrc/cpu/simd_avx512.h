/* What block_kernels.h is written in, for AVX-512 with and without VNNI: a `vec` has one dword of each of 16 rows, an `fvec` one float. */
#ifndef LC_SIMD_AVX512_H
#define LC_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernel_table.h"

#define INLINE static inline __attribute__((always_inline))

enum { VEC_ROWS = 16, TILE_ROWS = 16 };

typedef __m512i vec;
typedef __m512 fvec;
typedef const uint8_t *lc_rows[VEC_ROWS];

#define v_and _mm512_and_si512
#define v_or _mm512_or_si512
#define v_add8 _mm512_add_epi8
#define v_add32 _mm512_add_epi32
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

/* sum += products of 16 rows' next four codes with the four at `four`. */
#if defined(__AVX512VNNI__)
#define READ_ALONG /* see matvec_along.h */
#include "wide_sums.h"
#define BIAS_LOG2(bits) 7
/* The instruction broadcasts the token's codes from memory; no intrinsic says that. */
INLINE vec add_products(vec sum, vec w, const int8_t *four, int bits) {
    (void)bits;
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*(const int32_t *)(const void *)four));
    return sum;
}
#else
#include "narrow_sums.h"
INLINE vec add_products(vec sum, vec w, const int8_t *four, int bits) {
    int32_t dword;
    memcpy(&dword, four, 4);
    const vec a = v_set32(dword);
    const vec pairs = bits < 8 ? _mm512_maddubs_epi16(w, a)
                               : _mm512_maddubs_epi16(_mm512_abs_epi8(w),
                                                      _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), v_set32(0), a));
    sum = _mm512_add_epi16(sum, pairs);
    KEEP_ORDER(sum);
    return sum;
}
INLINE vec widened(vec sum) { return _mm512_madd_epi16(sum, _mm512_set1_epi16(1)); }
#endif

#define HAS_BYTE_MASKS
/* Adds `value` to the bytes of v in which `flags` has any of `bits`. */
INLINE vec add_where(vec v, vec flags, vec bits, vec value) {
    return _mm512_mask_add_epi8(v, _mm512_test_epi8_mask(flags, bits), v, value);
}

INLINE __m128i load_16(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }

/* 16 bytes of rows i, i + 4, i + 8 and i + 12. */
INLINE vec load_every_fourth(const lc_rows row, size_t at, int i) {
    const __m256i low =
        _mm256_inserti128_si256(_mm256_castsi128_si256(load_16(row[i] + at)), load_16(row[i + 4] + at), 1);
    const __m256i high =
        _mm256_inserti128_si256(_mm256_castsi128_si256(load_16(row[i + 8] + at)), load_16(row[i + 12] + at), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* Puts what is at `p` into place i; compilers would take it there through another register, or memory. */
#define INSERT(code, v, p, i) \
    __asm__(code " %2, %1, %0, %0" : "+x"(v) : "m"(*(const uint8_t(*)[4])(const void *)(p)), "i"(i))

#define HAS_LOADS /* load_halves and load_dword, else made of float_halves and gather */

/* Eight rows' halves. */
INLINE __m128i eight_halves(const uint8_t *const *row, size_t at) {
    __m128i v = _mm_setzero_si128();
    INSERT("vpinsrw", v, row[0] + at, 0);
    INSERT("vpinsrw", v, row[1] + at, 1);
    INSERT("vpinsrw", v, row[2] + at, 2);
    INSERT("vpinsrw", v, row[3] + at, 3);
    INSERT("vpinsrw", v, row[4] + at, 4);
    INSERT("vpinsrw", v, row[5] + at, 5);
    INSERT("vpinsrw", v, row[6] + at, 6);
    INSERT("vpinsrw", v, row[7] + at, 7);
    return v;
}
INLINE fvec load_halves(const lc_rows row, size_t at) {
    return _mm512_cvtph_ps(_mm256_set_m128i(eight_halves(row + 8, at), eight_halves(row, at)));
}

INLINE __m128i four_dwords(const uint8_t *const *row, size_t at) {
    __m128i v = _mm_setzero_si128();
    INSERT("vpinsrd", v, row[0] + at, 0);
    INSERT("vpinsrd", v, row[1] + at, 1);
    INSERT("vpinsrd", v, row[2] + at, 2);
    INSERT("vpinsrd", v, row[3] + at, 3);
    return v;
}
INLINE vec load_dword(const lc_rows row, size_t at) {
    const __m256i low = _mm256_set_m128i(four_dwords(row + 4, at), four_dwords(row, at));
    const __m256i high = _mm256_set_m128i(four_dwords(row + 12, at), four_dwords(row + 8, at));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}


/* The half in the low 16 bits of each dword. */
INLINE fvec halves_of(vec dwords) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(dwords)); }

#endif
