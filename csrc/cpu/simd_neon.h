/* What block_kernels.h is written in, for NEON with and without dot products: a `vec` has one dword of each of 4 rows, an `fvec`
 * one float. */
#ifndef LC_SIMD_NEON_H
#define LC_SIMD_NEON_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "kernel_table.h"

#define INLINE static inline __attribute__((always_inline))

#define FEW_TOKENS 1
enum { VEC_ROWS = 4, TILE_ROWS = 4 };

typedef int32x4_t vec;
typedef float32x4_t fvec;
typedef const uint8_t *lc_rows[VEC_ROWS];

#define AS_8(v) vreinterpretq_s8_s32(v)
#define AS_U8(v) vreinterpretq_u8_s32(v)
#define AS_U16(v) vreinterpretq_u16_s32(v)
#define AS_U32(v) vreinterpretq_u32_s32(v)
#define AS_64(v) vreinterpretq_s64_s32(v)

#define v_and vandq_s32
#define v_or vorrq_s32
#define v_add8(a, b) vreinterpretq_s32_s8(vaddq_s8(AS_8(a), AS_8(b)))
#define v_add32 vaddq_s32
#define v_sub32 vsubq_s32
#define v_srl16(v, n) vreinterpretq_s32_u16(vshlq_u16(AS_U16(v), vdupq_n_s16((int16_t)(-(n)))))
#define v_sll16(v, n) vreinterpretq_s32_u16(vshlq_u16(AS_U16(v), vdupq_n_s16((int16_t)(n))))
#define v_srl32(v, n) vreinterpretq_s32_u32(vshlq_u32(AS_U32(v), vdupq_n_s32(-(n))))
#define v_sll32(v, n) vshlq_s32(v, vdupq_n_s32(n))
#define v_sra32(v, n) vshlq_s32(v, vdupq_n_s32(-(n)))
#define v_set8(x) vreinterpretq_s32_s8(vdupq_n_s8((int8_t)(x)))
#define v_set32 vdupq_n_s32
#define v_repeat16(p) vreinterpretq_s32_s8(vld1q_s8(p))
#define v_lookup(table, index) vreinterpretq_s32_u8(vqtbl1q_u8(AS_U8(table), AS_U8(index)))
#define v_load(p) vreinterpretq_s32_s8(vld1q_s8((const int8_t *)(p)))
#define v_store(p, v) vst1q_s8((int8_t *)(p), AS_8(v))
#define v_unpacklo32 vzip1q_s32
#define v_unpackhi32 vzip2q_s32
#define v_unpacklo64(a, b) vreinterpretq_s32_s64(vzip1q_s64(AS_64(a), AS_64(b)))
#define v_unpackhi64(a, b) vreinterpretq_s32_s64(vzip2q_s64(AS_64(a), AS_64(b)))
#define f_load vld1q_f32
#define f_store vst1q_f32
#define f_set vdupq_n_f32
#define f_mul vmulq_f32
#define f_sub vsubq_f32
#define f_fma(a, b, c) vfmaq_f32(c, a, b)
#define f_fnma(a, b, c) vfmsq_f32(c, a, b)
#define f_from vcvtq_f32_s32

INLINE void f_store_first(float *p, int n, fvec x) {
    float all[VEC_ROWS];
    f_store(all, x);
    memcpy(p, all, (size_t)n * sizeof *p);
}

/* lc_fetch() of one line, after v was computed and before it is used. */
#define FETCH_WITH(v, p) __asm__ volatile("prfm pldl2keep, [%1]" : "+w"(v) : "r"(p))

INLINE vec v_repeat4(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, 4);
    return vdupq_n_s32(four);
}
INLINE vec v_repeat8(const int8_t *p) { return vreinterpretq_s32_s8(vcombine_s8(vld1_s8(p), vld1_s8(p))); }

/* Neighbours added up: the four lanes of either become two of each. */
INLINE vec pairs_added(vec p, vec q, int most) { return (void)most, vpaddq_s32(p, q); }

/* sum += products of the codes in w and a, four to a dword, signed all of them. */
#include "wide_sums.h"
#define BIAS_LOG2(bits) (-1)
INLINE vec add_products(vec sum, vec w, vec a, int bits) {
    (void)bits;
    const int8x16_t codes = AS_8(w), others = AS_8(a);
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, codes, others);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(codes), vget_low_s8(others)), high = vmull_high_s8(codes, others);
    return vpadalq_s16(sum, vpaddq_s16(low, high)); /* two products are at most 2 · 128 · 127 */
#endif
}

/* Adds `value` to the bytes of v in which `flags` has any of `bits`. */
INLINE vec add_where(vec v, vec flags, vec bits, vec value) {
    const vec mask = vreinterpretq_s32_u8(vtstq_u8(AS_U8(flags), AS_U8(bits)));
    return v_add8(v, v_and(mask, value));
}

/* 16 bytes of row i. */
INLINE vec load_every_fourth(const lc_rows row, size_t at, int i) { return v_load(row[i] + at); }

INLINE vec load_dword(const lc_rows row, size_t at) {
    int32_t v[VEC_ROWS];
    for (int r = 0; r < VEC_ROWS; r++) memcpy(&v[r], row[r] + at, 4);
    return vld1q_s32(v);
}
INLINE fvec load_halves(const lc_rows row, size_t at) {
    int16_t h[VEC_ROWS];
    for (int r = 0; r < VEC_ROWS; r++) memcpy(&h[r], row[r] + at, 2);
    return vcvt_f32_f16(vreinterpret_f16_s16(vld1_s16(h)));
}

/* The half in the low 16 bits of each dword. */
INLINE fvec halves_of(vec dwords) { return vcvt_f32_f16(vreinterpret_f16_s16(vmovn_s32(dwords))); }

#endif
