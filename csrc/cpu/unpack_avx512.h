/* Blocks of 16 rows at a time, for kernels_avx512.c alone: into panels, or straight into products with one token.
 *
 * 16 bytes at one place of each of 16 rows are loaded into four registers and transposed, so that register k holds
 * dword k of every row: codes come out interleaved as tiles want them, and packed scales as vectors over the rows.
 *
 * Every block format is one function, block_NAME, that takes a block of all rows apart and puts the parts into a sink;
 * DEFINE_FORMAT makes both kernels of it. All is inlined with constant arguments and without loops, because the
 * compiler keeps the sums in registers only if every index is a constant from the start. */
#ifndef LC_UNPACK_AVX512_H
#define LC_UNPACK_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <string.h>

#include "kernel_table.h"

#define INLINE static inline __attribute__((always_inline))
#define FOR_2(f, ...) f(__VA_ARGS__, 0), f(__VA_ARGS__, 1)
#define FOR_4(f, ...) FOR_2(f, __VA_ARGS__), f(__VA_ARGS__, 2), f(__VA_ARGS__, 3)
#define FOR_8(f, ...) FOR_4(f, __VA_ARGS__), f(__VA_ARGS__, 4), f(__VA_ARGS__, 5), f(__VA_ARGS__, 6), f(__VA_ARGS__, 7)
#define FOR_16(f, ...)                                                                                     \
    FOR_8(f, __VA_ARGS__), f(__VA_ARGS__, 8), f(__VA_ARGS__, 9), f(__VA_ARGS__, 10), f(__VA_ARGS__, 11),  \
        f(__VA_ARGS__, 12), f(__VA_ARGS__, 13), f(__VA_ARGS__, 14), f(__VA_ARGS__, 15)

enum { TILE_ROWS = 16, CODE_BIAS = 128 };

/* sum += 16 rows' next four codes times the four of one token, which the instruction broadcasts from memory; no
 * intrinsic says that. */
#define DOT4(sum, w, four) \
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*(const int32_t *)(const void *)(four)))

/* --- loading -------------------------------------------------------------------------------------------------- */

typedef const uint8_t *lc_rows[TILE_ROWS];

/* Rows that do not exist read the last one that does. */
INLINE void row_pointers(const uint8_t *rows, size_t row_bytes, int n_rows, lc_rows row) {
    for (int r = 0; r < TILE_ROWS; r++) row[r] = rows + (size_t)(r < n_rows ? r : n_rows - 1) * row_bytes;
}

/* Four dwords of 16 rows. */
typedef struct quad {
    __m512i k0, k1, k2, k3;
} quad;

INLINE __m128i load_16(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }

INLINE __m512i load_four_rows(const lc_rows row, size_t at, int i) {
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(load_16(row[i] + at)), load_16(row[i + 4] + at), 1);
    const __m256i high =
        _mm256_inserti128_si256(_mm256_castsi128_si256(load_16(row[i + 8] + at)), load_16(row[i + 12] + at), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* The 16 bytes at `at` of each row. */
INLINE quad load_quad(const lc_rows row, size_t at) {
    const __m512i q0 = load_four_rows(row, at, 0), q1 = load_four_rows(row, at, 1);
    const __m512i q2 = load_four_rows(row, at, 2), q3 = load_four_rows(row, at, 3);
    const __m512i a = _mm512_unpacklo_epi32(q0, q1), b = _mm512_unpackhi_epi32(q0, q1);
    const __m512i c = _mm512_unpacklo_epi32(q2, q3), d = _mm512_unpackhi_epi32(q2, q3);
    return (quad){_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
                  _mm512_unpackhi_epi64(b, d)};
}

INLINE __m512i dword_of(quad q, int i) { return i == 0 ? q.k0 : i == 1 ? q.k1 : i == 2 ? q.k2 : q.k3; }

INLINE uint16_t half_at(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return h;
}

INLINE __m512 load_halves(const lc_rows row, size_t at) {
    const __m256i h = _mm256_setr_epi16(
        (short)half_at(row[0] + at), (short)half_at(row[1] + at), (short)half_at(row[2] + at),
        (short)half_at(row[3] + at), (short)half_at(row[4] + at), (short)half_at(row[5] + at),
        (short)half_at(row[6] + at), (short)half_at(row[7] + at), (short)half_at(row[8] + at),
        (short)half_at(row[9] + at), (short)half_at(row[10] + at), (short)half_at(row[11] + at),
        (short)half_at(row[12] + at), (short)half_at(row[13] + at), (short)half_at(row[14] + at),
        (short)half_at(row[15] + at));
    return _mm512_cvtph_ps(h);
}

INLINE __m512i load_dword(const lc_rows row, size_t at) {
    int32_t v[TILE_ROWS];
    for (int r = 0; r < TILE_ROWS; r++) memcpy(&v[r], row[r] + at, 4);
    return _mm512_setr_epi32(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13],
                             v[14], v[15]);
}

/* The half in the low 16 bits of each dword. */
INLINE __m512 halves_of(__m512i dwords) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(dwords)); }
INLINE __m512i dword_bits(__m512i v, int shift, int mask) {
    return _mm512_and_si512(_mm512_srli_epi32(v, (unsigned)shift), _mm512_set1_epi32(mask));
}
INLINE __m512 times(__m512 d, __m512i whole) { return _mm512_mul_ps(d, _mm512_cvtepi32_ps(whole)); }
INLINE __m512 negative(__m512 x) { return _mm512_sub_ps(_mm512_setzero_ps(), x); }

/* --- arithmetic on the bytes of a quad ------------------------------------------------------------------------ */

#define EACH_OF(expression) \
    (quad) { expression(k0), expression(k1), expression(k2), expression(k3) }

INLINE quad bits_of(quad q, int shift, int mask) {
    const __m512i m = _mm512_set1_epi8((char)mask);
#define BITS(k) _mm512_and_si512(shift ? _mm512_srli_epi16(q.k, (unsigned)shift) : q.k, m)
    return EACH_OF(BITS);
#undef BITS
}
INLINE quad low_nibbles(quad q) { return bits_of(q, 0, 15); }
INLINE quad high_nibbles(quad q) { return bits_of(q, 4, 15); }

INLINE quad plus(quad q, int value) {
    const __m512i v = _mm512_set1_epi8((char)value);
#define PLUS(k) _mm512_add_epi8(q.k, v)
    return EACH_OF(PLUS);
#undef PLUS
}

/* low | high << shift, high below 1 << (8 - shift) */
INLINE quad with_high(quad low, quad high, int shift) {
#define WITH(k) _mm512_or_si512(low.k, _mm512_slli_epi16(high.k, (unsigned)shift))
    return EACH_OF(WITH);
#undef WITH
}

/* Adds `value` to the bytes for which bit `bit` of the flags is set. */
INLINE quad plus_where(quad q, quad flags, int bit, int value) {
    const __m512i b = _mm512_set1_epi8((char)(1 << bit)), v = _mm512_set1_epi8((char)value);
#define PLUS_WHERE(k) _mm512_mask_add_epi8(q.k, _mm512_test_epi8_mask(flags.k, b), q.k, v)
    return EACH_OF(PLUS_WHERE);
#undef PLUS_WHERE
}

/* Adds 16 to code i of 32 where bit i of the row's dword `qh` is set; the quad is codes 0-15 or 16-31. */
INLINE __m512i plus_fifth(__m512i codes, __m512i qh, int k) {
    const __m512i row_start = _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0);
    const __m512i byte = _mm512_shuffle_epi8(qh, _mm512_add_epi8(row_start, _mm512_set1_epi8((char)(k / 2))));
    const __m512i bits = _mm512_set1_epi32(k % 2 ? (int)0x80402010 : 0x08040201);
    return _mm512_mask_add_epi8(codes, _mm512_test_epi8_mask(byte, bits), codes, _mm512_set1_epi8(16));
}
INLINE quad plus_fifths(quad q, __m512i qh, int is_upper) {
    return (quad){plus_fifth(q.k0, qh, 4 * is_upper), plus_fifth(q.k1, qh, 4 * is_upper + 1),
                  plus_fifth(q.k2, qh, 4 * is_upper + 2), plus_fifth(q.k3, qh, 4 * is_upper + 3)};
}

/* The 16 values of IQ4, plus CODE_BIAS. */
INLINE quad iq4_values(quad q) {
    const __m512i values = _mm512_broadcast_i32x4(
        _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, (char)129, (char)141, (char)153, (char)166, (char)181, (char)197,
                      (char)217, (char)241));
#define VALUE(k) _mm512_shuffle_epi8(values, q.k)
    return EACH_OF(VALUE);
#undef VALUE
}

/* --- where the parts of a block go ---------------------------------------------------------------------------- */

/* The functions that put codes take `sub` as well: 0 for a panel, else the number of codes that share a sum. */
typedef struct sink {
    uint8_t *codes; /* of this block in the panel */
    float *scales, *mins;
    const int8_t *a; /* the token's codes, if this is no panel */
    __m512i sum[16];
} sink;

INLINE void put_codes(sink *to, int sub, int k4, __m512i codes) {
    if (sub == 0) _mm512_storeu_si512(to->codes + (size_t)k4 * 4 * TILE_ROWS, codes);
    else DOT4(to->sum[k4 * 4 / sub], codes, to->a + 4 * k4);
}
/* 16 codes of each row, from number `first` of the block on. */
INLINE void put_quad(sink *to, int sub, int first, quad q) {
    put_codes(to, sub, first / 4, q.k0);
    put_codes(to, sub, first / 4 + 1, q.k1);
    put_codes(to, sub, first / 4 + 2, q.k2);
    put_codes(to, sub, first / 4 + 3, q.k3);
}
INLINE void put_scale(sink *to, int i, __m512 scale) { _mm512_storeu_ps(to->scales + i * TILE_ROWS, scale); }
INLINE void put_min(sink *to, int i, __m512 min) { _mm512_storeu_ps(to->mins + i * TILE_ROWS, min); }

/* --- blocks of 32 --------------------------------------------------------------------------------------------- */

#define BLOCK(name) INLINE void block_##name(const lc_rows row, size_t at, sink *to, int sub)
#define AT(name, field) (at + offsetof(lc_block_##name, field))

BLOCK(q4_0) {
    const quad q = load_quad(row, AT(q4_0, qs));
    put_quad(to, sub, 0, plus(low_nibbles(q), CODE_BIAS - 8));
    put_quad(to, sub, 16, plus(high_nibbles(q), CODE_BIAS - 8));
    put_scale(to, 0, load_halves(row, AT(q4_0, d)));
}

BLOCK(q4_1) {
    const quad q = load_quad(row, AT(q4_1, qs));
    put_quad(to, sub, 0, low_nibbles(q));
    put_quad(to, sub, 16, high_nibbles(q));
    const __m512i d_m = load_dword(row, AT(q4_1, d));
    put_scale(to, 0, halves_of(d_m));
    put_min(to, 0, negative(halves_of(_mm512_srli_epi32(d_m, 16))));
}

BLOCK(q5_0) {
    const quad q = load_quad(row, AT(q5_0, qs));
    const __m512i qh = load_dword(row, AT(q5_0, qh));
    put_quad(to, sub, 0, plus_fifths(plus(low_nibbles(q), CODE_BIAS - 16), qh, 0));
    put_quad(to, sub, 16, plus_fifths(plus(high_nibbles(q), CODE_BIAS - 16), qh, 1));
    put_scale(to, 0, load_halves(row, AT(q5_0, d)));
}

BLOCK(q5_1) {
    const quad q = load_quad(row, AT(q5_1, qs));
    const __m512i qh = load_dword(row, AT(q5_1, qh)), d_m = load_dword(row, AT(q5_1, d));
    put_quad(to, sub, 0, plus_fifths(low_nibbles(q), qh, 0));
    put_quad(to, sub, 16, plus_fifths(high_nibbles(q), qh, 1));
    put_scale(to, 0, halves_of(d_m));
    put_min(to, 0, negative(halves_of(_mm512_srli_epi32(d_m, 16))));
}

BLOCK(q8_0) {
    put_quad(to, sub, 0, plus(load_quad(row, AT(q8_0, qs)), CODE_BIAS));
    put_quad(to, sub, 16, plus(load_quad(row, AT(q8_0, qs) + 16), CODE_BIAS));
    put_scale(to, 0, load_halves(row, AT(q8_0, d)));
}

BLOCK(iq4_nl) {
    const quad q = load_quad(row, AT(iq4_nl, qs));
    put_quad(to, sub, 0, iq4_values(low_nibbles(q)));
    put_quad(to, sub, 16, iq4_values(high_nibbles(q)));
    put_scale(to, 0, load_halves(row, AT(iq4_nl, d)));
}

/* --- super-blocks of 256 -------------------------------------------------------------------------------------- */

/* Scales and minimums of Q4_K and Q5_K: the first 16 bytes of a block are d, dmin and 12 bytes of 6-bit numbers. */
INLINE void k_scale(sink *to, quad q, __m512 d, __m512 dmin, int s) {
    put_scale(to, s, times(d, dword_bits(q.k1, 8 * s, 63)));
    put_min(to, s, times(dmin, dword_bits(q.k2, 8 * s, 63)));
    const __m512i scale_top = _mm512_slli_epi32(dword_bits(q.k1, 8 * s + 6, 3), 4);
    const __m512i min_top = _mm512_slli_epi32(dword_bits(q.k2, 8 * s + 6, 3), 4);
    put_scale(to, s + 4, times(d, _mm512_or_si512(dword_bits(q.k3, 8 * s, 15), scale_top)));
    put_min(to, s + 4, times(dmin, _mm512_or_si512(dword_bits(q.k3, 8 * s + 4, 15), min_top)));
}
INLINE void k_scales(const lc_rows row, size_t at, sink *to) {
    const quad q = load_quad(row, at);
    const __m512 d = halves_of(q.k0), dmin = halves_of(_mm512_srli_epi32(q.k0, 16));
    FOR_4(k_scale, to, q, d, dmin);
}

/* 16 bytes: half of sub-block c / 2 * 2 (low nibbles) and of the next (high). */
INLINE void q4_k_part(const lc_rows row, size_t at, sink *to, int sub, int c) {
    const quad q = load_quad(row, AT(q4_k, qs) + 16 * (size_t)c);
    put_quad(to, sub, c / 2 * 64 + c % 2 * 16, low_nibbles(q));
    put_quad(to, sub, c / 2 * 64 + c % 2 * 16 + 32, high_nibbles(q));
}
BLOCK(q4_k) {
    k_scales(row, at, to);
    FOR_8(q4_k_part, row, at, to, sub);
}

/* The same; bit s of `qh` belongs to sub-block s. */
INLINE void q5_k_part(const lc_rows row, size_t at, sink *to, int sub, quad qh, int h, int c) {
    const quad q = load_quad(row, AT(q5_k, qs) + 32 * (size_t)c + 16 * (size_t)h);
    put_quad(to, sub, c * 64 + h * 16, plus_where(low_nibbles(q), qh, 2 * c, 16));
    put_quad(to, sub, c * 64 + h * 16 + 32, plus_where(high_nibbles(q), qh, 2 * c + 1, 16));
}
INLINE void q5_k_half(const lc_rows row, size_t at, sink *to, int sub, int h) {
    const quad qh = load_quad(row, AT(q5_k, qh) + 16 * (size_t)h);
    FOR_4(q5_k_part, row, at, to, sub, qh, h);
}
BLOCK(q5_k) {
    k_scales(row, at, to);
    FOR_2(q5_k_half, row, at, to, sub);
}

INLINE void q6_k_scale(sink *to, quad scales, __m512 d, int s) {
    const __m512i top = _mm512_slli_epi32(dword_of(scales, s / 4), (unsigned)(24 - s % 4 * 8));
    put_scale(to, s, times(d, _mm512_srai_epi32(top, 24)));
}
/* 128 values are four groups of 32: bytes c of `ql` hold group c (low nibbles) and c + 2 (high). */
INLINE void q6_k_part(const lc_rows row, size_t at, sink *to, int sub, quad qh, int half, int h, int c) {
    const quad q = load_quad(row, AT(q6_k, ql) + 64 * (size_t)half + 32 * (size_t)c + 16 * (size_t)h);
    const quad low = with_high(low_nibbles(q), bits_of(qh, 2 * c, 3), 4);
    const quad high = with_high(high_nibbles(q), bits_of(qh, 2 * c + 4, 3), 4);
    put_quad(to, sub, half * 128 + c * 32 + h * 16, plus(low, CODE_BIAS - 32));
    put_quad(to, sub, half * 128 + c * 32 + h * 16 + 64, plus(high, CODE_BIAS - 32));
}
INLINE void q6_k_half(const lc_rows row, size_t at, sink *to, int sub, int half, int h) {
    const quad qh = load_quad(row, AT(q6_k, qh) + 32 * (size_t)half + 16 * (size_t)h);
    FOR_2(q6_k_part, row, at, to, sub, qh, half, h);
}
BLOCK(q6_k) {
    const __m512 d = load_halves(row, AT(q6_k, d));
    const quad scales = load_quad(row, AT(q6_k, scales));
    FOR_16(q6_k_scale, to, scales, d);
    FOR_2(q6_k_half, row, at, to, sub, 0);
    FOR_2(q6_k_half, row, at, to, sub, 1);
}

INLINE void q2_k_scale(sink *to, quad scales, __m512 d, __m512 dmin, int s) {
    put_scale(to, s, times(d, dword_bits(dword_of(scales, s / 4), s % 4 * 8, 15)));
    put_min(to, s, times(dmin, dword_bits(dword_of(scales, s / 4), s % 4 * 8 + 4, 15)));
}
INLINE void q2_k_group(sink *to, int sub, quad q, int c, int g) {
    put_quad(to, sub, c / 2 * 128 + g * 32 + c % 2 * 16, bits_of(q, 2 * g, 3));
}
/* 16 bytes hold 16 codes of each of four groups. */
INLINE void q2_k_part(const lc_rows row, size_t at, sink *to, int sub, int c) {
    const quad q = load_quad(row, AT(q2_k, qs) + 16 * (size_t)c);
    FOR_4(q2_k_group, to, sub, q, c);
}
BLOCK(q2_k) {
    const __m512i d_dmin = load_dword(row, AT(q2_k, d));
    const __m512 d = halves_of(d_dmin), dmin = halves_of(_mm512_srli_epi32(d_dmin, 16));
    const quad scales = load_quad(row, AT(q2_k, scales));
    FOR_16(q2_k_scale, to, scales, d, dmin);
    FOR_4(q2_k_part, row, at, to, sub);
}

/* `tail` is the last 16 bytes of a block: two of qs, 12 of scales, d. Byte i of the scales is byte i + 2 here. */
INLINE void q3_k_scale(sink *to, quad tail, __m512 d, int s) {
    const int low_at = s % 8 + 2, high_at = 8 + s % 4 + 2;
    const __m512i low = dword_bits(dword_of(tail, low_at / 4), low_at % 4 * 8 + s / 8 * 4, 15);
    const __m512i high = dword_bits(dword_of(tail, high_at / 4), high_at % 4 * 8 + s / 4 * 2, 3);
    const __m512i scale = _mm512_or_si512(low, _mm512_slli_epi32(high, 4));
    put_scale(to, s, times(d, _mm512_sub_epi32(scale, _mm512_set1_epi32(32))));
}
INLINE void q3_k_group(sink *to, int sub, quad q, quad hmask, int h, int half, int g) {
    const quad codes = plus_where(plus(bits_of(q, 2 * g, 3), CODE_BIAS - 4), hmask, 4 * half + g, 4);
    put_quad(to, sub, half * 128 + g * 32 + h * 16, codes);
}
INLINE void q3_k_part(const lc_rows row, size_t at, sink *to, int sub, quad hmask, int h, int half) {
    const quad q = load_quad(row, AT(q3_k, qs) + 32 * (size_t)half + 16 * (size_t)h);
    FOR_4(q3_k_group, to, sub, q, hmask, h, half);
}
INLINE void q3_k_half(const lc_rows row, size_t at, sink *to, int sub, int h) {
    const quad hmask = load_quad(row, AT(q3_k, hmask) + 16 * (size_t)h);
    FOR_2(q3_k_part, row, at, to, sub, hmask, h);
}
BLOCK(q3_k) {
    const quad tail = load_quad(row, at + sizeof(lc_block_q3_k) - 16);
    const __m512 d = halves_of(_mm512_srli_epi32(tail.k3, 16));
    FOR_16(q3_k_scale, to, tail, d);
    FOR_2(q3_k_half, row, at, to, sub);
}

/* `head` is d and scales_h, scales_l, 8 bytes of qs. */
INLINE void iq4_xs_scale(sink *to, quad head, __m512 d, int s) {
    const __m512i high = _mm512_slli_epi32(dword_bits(head.k0, 16 + 2 * s, 3), 4);
    const __m512i scale = _mm512_or_si512(dword_bits(head.k1, 4 * s, 15), high);
    put_scale(to, s, times(d, _mm512_sub_epi32(scale, _mm512_set1_epi32(32))));
}
INLINE void iq4_xs_part(const lc_rows row, size_t at, sink *to, int sub, int s) {
    const quad q = load_quad(row, AT(iq4_xs, qs) + 16 * (size_t)s);
    put_quad(to, sub, 32 * s, iq4_values(low_nibbles(q)));
    put_quad(to, sub, 32 * s + 16, iq4_values(high_nibbles(q)));
}
BLOCK(iq4_xs) {
    const quad head = load_quad(row, at);
    const __m512 d = halves_of(head.k0);
    FOR_8(iq4_xs_scale, to, head, d);
    FOR_8(iq4_xs_part, row, at, to, sub);
}

/* --- kernels -------------------------------------------------------------------------------------------------- */

INLINE void start_sum(sink *to, const int32_t *bias, int has_min, int n_subs, int s) {
    if (s < n_subs) to->sum[s] = has_min ? _mm512_setzero_si512() : _mm512_set1_epi32(bias[s]);
}

/* total += sub-block s; i is its number in the row. */
INLINE void end_sum(const sink *to, int sub, const lc_q8_block *x, int first, int has_min, int n_subs, __m512 *total,
                    int s) {
    if (s >= n_subs) return;
    const int i = first + s;
    const __m512 a_scale = _mm512_set1_ps(x->scales[i * sub / LC_GROUP]);
    const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(to->scales + s * TILE_ROWS), a_scale);
    *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(to->sum[s]), scale, *total);
    if (!has_min) return;
    const __m512 a_sum = _mm512_set1_ps((sub == 32 ? x->sums32 : x->sums16)[i]);
    *total = _mm512_fnmadd_ps(_mm512_loadu_ps(to->mins + s * TILE_ROWS), a_sum, *total);
}

/* unpack_NAME and matvec_NAME. */
#define DEFINE_FORMAT(name, elems, sub_elems, has_min)                                                        \
    static void unpack_##name(const uint8_t *rows, size_t row_bytes, int n_rows, int n, const uint8_t *ahead, \
                              lc_panel *panel) {                                                              \
        enum { BYTES = sizeof(lc_block_##name), SUBS = elems / sub_elems };                                   \
        lc_rows row;                                                                                          \
        row_pointers(rows, row_bytes, n_rows, row);                                                           \
        for (int b = 0; b < n / elems; b++, ahead += TILE_ROWS * BYTES) {                                     \
            lc_fetch(ahead, TILE_ROWS * BYTES);                                                               \
            sink to;                                                                                          \
            to.codes = panel->codes + (size_t)b * elems * TILE_ROWS;                                          \
            to.scales = panel->scales + b * SUBS * TILE_ROWS;                                                 \
            to.mins = panel->mins + b * SUBS * TILE_ROWS;                                                     \
            block_##name(row, (size_t)b * BYTES, &to, 0);                                                     \
        }                                                                                                     \
    }                                                                                                         \
    static void matvec_##name(const uint8_t *rows, size_t row_bytes, int n_rows, const lc_q8_block *x, int n, \
                              const uint8_t *ahead, float *c) {                                               \
        enum { BYTES = sizeof(lc_block_##name), SUBS = elems / sub_elems };                                   \
        lc_rows row;                                                                                          \
        row_pointers(rows, row_bytes, n_rows, row);                                                           \
        const int32_t *bias = sub_elems == 32 ? x->bias32 : x->bias16;                                        \
        float scales[SUBS * TILE_ROWS], mins[has_min ? SUBS * TILE_ROWS : 1];                                 \
        __m512 total = _mm512_setzero_ps();                                                                   \
        for (int b = 0; b < n / elems; b++, ahead += TILE_ROWS * BYTES) {                                     \
            lc_fetch(ahead, TILE_ROWS * BYTES);                                                               \
            sink to;                                                                                          \
            to.scales = scales;                                                                               \
            to.mins = mins;                                                                                   \
            to.a = x->codes + b * elems;                                                                      \
            FOR_16(start_sum, &to, bias + b * SUBS, has_min, SUBS);                                           \
            block_##name(row, (size_t)b * BYTES, &to, sub_elems);                                             \
            FOR_16(end_sum, &to, sub_elems, x, b *SUBS, has_min, SUBS, &total);                               \
        }                                                                                                     \
        _mm512_mask_storeu_ps(c, (__mmask16)((1u << n_rows) - 1), total);                                     \
    }
DEFINE_FORMAT(q4_0, 32, 32, 0)
DEFINE_FORMAT(q4_1, 32, 32, 1)
DEFINE_FORMAT(q5_0, 32, 32, 0)
DEFINE_FORMAT(q5_1, 32, 32, 1)
DEFINE_FORMAT(q8_0, 32, 32, 0)
DEFINE_FORMAT(iq4_nl, 32, 32, 0)
DEFINE_FORMAT(q2_k, 256, 16, 1)
DEFINE_FORMAT(q3_k, 256, 16, 0)
DEFINE_FORMAT(q4_k, 256, 32, 1)
DEFINE_FORMAT(q5_k, 256, 32, 1)
DEFINE_FORMAT(q6_k, 256, 16, 0)
DEFINE_FORMAT(iq4_xs, 256, 32, 0)

#undef AT
#undef BLOCK
#undef DEFINE_FORMAT
#undef EACH_OF
#undef FOR_2
#undef FOR_4
#undef FOR_8
#undef FOR_16

#endif
