/* How vectors are filled from rows on x86-64, in 128 bits: what simd_avx2.h and simd_avx512.h put together. */
#ifndef LC_SIMD_X86_H
#define LC_SIMD_X86_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

INLINE __m128i load_16(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }

INLINE __m256i two_16(const uint8_t *low, const uint8_t *high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load_16(low)), load_16(high), 1);
}

/* Puts what is at `p` into place i; compilers would take it there through another register, or memory. */
#define INSERT(code, v, p, i) \
    __asm__(code " %2, %1, %0, %0" : "+x"(v) : "m"(*(const uint8_t(*)[4])(const void *)(p)), "i"(i))

/* lc_fetch_for_one() of one line, after v was computed and before it is used. Nothing is read at p, whatever the operand says. */
#if defined(FETCH_NEAR)
#define FETCH_CODE "prefetcht0"
#else
#define FETCH_CODE "prefetcht1"
#endif
#define FETCH_WITH(v, p) __asm__ volatile(FETCH_CODE " %1" : "+v"(v) : "m"(*(const uint8_t *)(p)))

/* The half at `at` of eight rows. */
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

INLINE __m128i four_dwords(const uint8_t *const *row, size_t at) {
    __m128i v = _mm_setzero_si128();
    INSERT("vpinsrd", v, row[0] + at, 0);
    INSERT("vpinsrd", v, row[1] + at, 1);
    INSERT("vpinsrd", v, row[2] + at, 2);
    INSERT("vpinsrd", v, row[3] + at, 3);
    return v;
}
INLINE __m256i eight_dwords(const uint8_t *const *row, size_t at) {
    return _mm256_set_m128i(four_dwords(row + 4, at), four_dwords(row, at));
}

INLINE int32_t four_codes(const int8_t *p) {
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    return codes;
}
INLINE int64_t eight_codes(const int8_t *p) {
    int64_t codes;
    memcpy(&codes, p, sizeof codes);
    return codes;
}

#endif
