/* Blocks of a tile's rows, taken apart. One text for every instruction set: the file that includes it includes its simd_ISA.h
 * before.
 *
 * 16 bytes at one place of each row are loaded and transposed, so that vector k holds dword k of every row: codes come
 * out interleaved as tiles want them, and packed scales as vectors over the rows.
 *
 * Every block format is two functions, scales_NAME and block_NAME, that take a block of all rows apart and put the
 * parts into a sink; block_kernels.h makes kernels of them. All is inlined with constant arguments and without loops,
 * because the compiler keeps the sums in registers only if every index is a constant from the start. */
#ifndef LC_BLOCK_FORMATS_H
#define LC_BLOCK_FORMATS_H

#include <stddef.h>
#include <string.h>

#include "kernel_table.h"

#define FOR_2(f, ...) f(__VA_ARGS__, 0), f(__VA_ARGS__, 1)
#define FOR_4(f, ...) FOR_2(f, __VA_ARGS__), f(__VA_ARGS__, 2), f(__VA_ARGS__, 3)
#define FOR_8(f, ...) FOR_4(f, __VA_ARGS__), f(__VA_ARGS__, 4), f(__VA_ARGS__, 5), f(__VA_ARGS__, 6), f(__VA_ARGS__, 7)
#define FOR_16(f, ...)                                                                                     \
    FOR_8(f, __VA_ARGS__), f(__VA_ARGS__, 8), f(__VA_ARGS__, 9), f(__VA_ARGS__, 10), f(__VA_ARGS__, 11),  \
        f(__VA_ARGS__, 12), f(__VA_ARGS__, 13), f(__VA_ARGS__, 14), f(__VA_ARGS__, 15)

/* --- loading -------------------------------------------------------------------------------------------------- */

/* A vector's rows from number `first` on. Rows that do not exist read the last one that does. */
INLINE void row_pointers(const uint8_t *rows, size_t row_bytes, int first, int n_rows, lc_rows row) {
    for (int i = 0; i < VEC_ROWS; i++) row[i] = rows + (size_t)(first + i < n_rows ? first + i : n_rows - 1) * row_bytes;
}

/* Four dwords of every row. */
typedef struct quad {
    vec k0, k1, k2, k3;
} quad;

/* The 16 bytes at `at` of each row. */
INLINE quad load_quad(const lc_rows row, size_t at) {
    const vec q0 = load_every_fourth(row, at, 0), q1 = load_every_fourth(row, at, 1);
    const vec q2 = load_every_fourth(row, at, 2), q3 = load_every_fourth(row, at, 3);
    const vec a = v_unpacklo32(q0, q1), b = v_unpackhi32(q0, q1), c = v_unpacklo32(q2, q3), d = v_unpackhi32(q2, q3);
    return (quad){v_unpacklo64(a, c), v_unpackhi64(a, c), v_unpacklo64(b, d), v_unpackhi64(b, d)};
}

/* What codes of so many bits get added where kernels want them unsigned; codes of formats with minimums are. */
#define BIAS_OF(bits) (BIAS_LOG2(bits) < 0 ? 0 : 1 << BIAS_LOG2(bits))
/* What takes the bias out of a sum, from what an activation block has for one of 8 bits. */
INLINE vec less_bias_of(const int32_t *bias, int bits, int has_min) {
    const int shift = 7 - BIAS_LOG2(bits);
    (void)bits;
    if (has_min || shift > 7) return v_set32(0);
    return shift == 0 ? v_set32(*bias) : v_sra32(v_set32(*bias), shift);
}

INLINE vec dword_of(quad q, int i) { return i == 0 ? q.k0 : i == 1 ? q.k1 : i == 2 ? q.k2 : q.k3; }

#if !defined(HAS_LOADS)
/* The half at `at` of each row. */
INLINE fvec load_halves(const lc_rows row, size_t at) {
    int16_t h[VEC_ROWS];
    for (int r = 0; r < VEC_ROWS; r++) memcpy(&h[r], row[r] + at, 2);
    return float_halves(h);
}

INLINE vec load_dword(const lc_rows row, size_t at) {
    int32_t v[VEC_ROWS];
    for (int r = 0; r < VEC_ROWS; r++) memcpy(&v[r], row[r] + at, 4);
    return gather(v);
}
#endif

INLINE vec dword_bits(vec v, int shift, int mask) {
    return v_and(v_srl32(v, shift), v_set32(mask));
}
INLINE fvec times(fvec d, vec whole) { return f_mul(d, f_from(whole)); }
INLINE fvec negative(fvec x) { return f_sub(f_set(0), x); }

/* --- arithmetic on the bytes of a quad ------------------------------------------------------------------------ */

#define EACH_OF(expression) \
    (quad) { expression(k0), expression(k1), expression(k2), expression(k3) }

/* The bits of every byte under `mask`, once they are moved from place `from` on to place `to` on. */
INLINE vec moved_bits(vec v, int from, int to, int mask) {
    const vec m = v_set8(mask << to);
    return v_and(to > from ? v_sll16(v, to - from) : to < from ? v_srl16(v, from - to) : v, m);
}

INLINE quad bits_of(quad q, int from, int mask) {
#define BITS(k) moved_bits(q.k, from, 0, mask)
    return EACH_OF(BITS);
#undef BITS
}
INLINE quad low_nibbles(quad q) { return bits_of(q, 0, 15); }
INLINE quad high_nibbles(quad q) { return bits_of(q, 4, 15); }

INLINE quad plus(quad q, int value) {
    const vec v = v_set8(value);
#define PLUS(k) v_add8(q.k, v)
    return EACH_OF(PLUS);
#undef PLUS
}

/* Adds the two bits from place `from` on of `high`, moved to place 4, which is free. */
INLINE quad with_high(quad low, quad high, int from) {
#define WITH(k) v_or(low.k, moved_bits(high.k, from, 4, 3))
    return EACH_OF(WITH);
#undef WITH
}

/* Adds 1 << to to the bytes for which bit `bit` of the flags is set. */
INLINE quad plus_where(quad q, quad flags, int bit, int to) {
#if defined(HAS_BYTE_MASKS)
#define PLUS_WHERE(k) add_where(q.k, flags.k, v_set8(1 << bit), v_set8(1 << to))
#else
#define PLUS_WHERE(k) v_add8(q.k, moved_bits(flags.k, bit, to, 1))
#endif
    return EACH_OF(PLUS_WHERE);
#undef PLUS_WHERE
}

/* Adds 16 to code i of 32 where bit i of the row's dword `qh` is set; the quad is codes 0-15 or 16-31. */
INLINE vec plus_fifth(vec codes, vec qh, int k) {
    static const int8_t ROW_START[16] = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
    const vec byte = v_lookup(qh, v_add8(v_repeat16(ROW_START), v_set8(k / 2)));
    return add_where(codes, byte, v_set32(k % 2 ? (int)0x80402010 : 0x08040201), v_set8(16));
}
INLINE quad plus_fifths(quad q, vec qh, int is_upper) {
    return (quad){plus_fifth(q.k0, qh, 4 * is_upper), plus_fifth(q.k1, qh, 4 * is_upper + 1),
                  plus_fifth(q.k2, qh, 4 * is_upper + 2), plus_fifth(q.k3, qh, 4 * is_upper + 3)};
}

/* The 16 values of IQ4, plus their bias. */
INLINE vec iq4_value(vec indices) {
#define BIASED(value) (int8_t)((value) + BIAS_OF(8))
    static const int8_t VALUES[16] = {BIASED(-127), BIASED(-104), BIASED(-83), BIASED(-65), BIASED(-49), BIASED(-35),
                                      BIASED(-22),  BIASED(-10),  BIASED(1),   BIASED(13),  BIASED(25),  BIASED(38),
                                      BIASED(53),   BIASED(69),   BIASED(89),  BIASED(113)};
#undef BIASED
    return v_lookup(v_repeat16(VALUES), indices);
}
INLINE quad iq4_values(quad q) {
#define VALUE(k) iq4_value(q.k)
    return EACH_OF(VALUE);
#undef VALUE
}

/* --- products --------------------------------------------------------------------------------------------------- */

/* sum += what four steps of a token's codes give, `at_once` of them before the sum is widened. */
INLINE vec dot_steps(vec sum, quad w, const int8_t *a, int bits, int at_once, int i) {
    if (i % at_once != 0) return sum;
    vec part = add_products(HAS_WIDE_SUMS ? sum : v_set32(0), dword_of(w, i), a + 4 * i, bits);
    if (at_once > 1) part = add_products(part, dword_of(w, i + 1), a + 4 * i + 4, bits);
    if (at_once > 2) part = add_products(part, dword_of(w, i + 2), a + 4 * i + 8, bits);
    if (at_once > 2) part = add_products(part, dword_of(w, i + 3), a + 4 * i + 12, bits);
    return HAS_WIDE_SUMS ? part : v_add32(sum, widened(part));
}

/* sum += 16 codes of each row times 16 of one token. */
INLINE vec dot16(vec sum, quad w, const int8_t *a, int bits) {
    const int fit = steps_that_fit(bits), at_once = fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
    sum = dot_steps(sum, w, a, bits, at_once, 0);
    sum = dot_steps(sum, w, a, bits, at_once, 1);
    sum = dot_steps(sum, w, a, bits, at_once, 2);
    return dot_steps(sum, w, a, bits, at_once, 3);
}

/* --- where the parts of a block go ---------------------------------------------------------------------------- */

/* The functions that put codes take `sub` as well: 0 for a panel, IN_BF16 for one of bf16, else the number of codes that
 * share a sum. */
enum { IN_BF16 = -1 };

typedef struct sink {
    uint8_t *codes; /* of this block in the panel */
    float *scales, *mins;
    int stride; /* from one scale of a row to its next */
    const int8_t *a; /* the token's codes, if this is no panel */
    int bits; /* of a code */
    uint16_t *bf16; /* of this block in a panel of bf16, */
    int shared;     /* so many of which share a scale, */
    int has_min;    /* and a minimum */
    const uint8_t *ahead; /* what to ask memory for next, */
    int ahead_bytes;      /* so many bytes with every quad: requests in a burst get lost */
    vec sum[16];
} sink;

#if defined(HAS_BF16)
INLINE void put_bf16(sink *to, int first, quad q);
#endif

INLINE void ask_ahead(sink *to, const uint8_t *ahead, int block_bytes, int block_elems) {
    to->ahead = ahead;
    to->ahead_bytes = VEC_ROWS * block_bytes * 16 / block_elems;
}

/* 16 codes of each row, from number `first` of the block on. */
INLINE void put_quad(sink *to, int sub, int first, quad q) {
    lc_fetch(to->ahead, (size_t)to->ahead_bytes);
    to->ahead += to->ahead_bytes;
#if defined(HAS_BF16)
    if (sub == IN_BF16) {
        put_bf16(to, first, q);
        return;
    }
#endif
    if (sub != 0) {
        to->sum[first / sub] = dot16(to->sum[first / sub], q, to->a + first, to->bits);
        return;
    }
    uint8_t *codes = to->codes + (size_t)first * TILE_ROWS;
    v_store(codes, q.k0);
    v_store(codes + 4 * TILE_ROWS, q.k1);
    v_store(codes + 8 * TILE_ROWS, q.k2);
    v_store(codes + 12 * TILE_ROWS, q.k3);
}
INLINE void put_scale(sink *to, int i, fvec scale) { f_store(to->scales + i * to->stride, scale); }
INLINE void put_min(sink *to, int i, fvec min) { f_store(to->mins + i * to->stride, min); }

/* --- blocks of 32 --------------------------------------------------------------------------------------------- */

/* The codes of a block, and its scales and minimums. */
#define BLOCK(name) INLINE void block_##name(const lc_rows row, size_t at, sink *to, int sub)
#define SCALES(name) INLINE void scales_##name(const lc_rows row, size_t at, sink *to)
#define AT(name, field) (at + offsetof(lc_block_##name, field))

SCALES(q4_0) { put_scale(to, 0, load_halves(row, AT(q4_0, d))); }
BLOCK(q4_0) {
    const quad q = load_quad(row, AT(q4_0, qs));
    put_quad(to, sub, 0, plus(low_nibbles(q), BIAS_OF(4) - 8));
    put_quad(to, sub, 16, plus(high_nibbles(q), BIAS_OF(4) - 8));
}

SCALES(q4_1) {
    const vec d_m = load_dword(row, AT(q4_1, d));
    put_scale(to, 0, halves_of(d_m));
    put_min(to, 0, negative(halves_of(v_srl32(d_m, 16))));
}
BLOCK(q4_1) {
    const quad q = load_quad(row, AT(q4_1, qs));
    put_quad(to, sub, 0, low_nibbles(q));
    put_quad(to, sub, 16, high_nibbles(q));
}

SCALES(q5_0) { put_scale(to, 0, load_halves(row, AT(q5_0, d))); }
BLOCK(q5_0) {
    const quad q = load_quad(row, AT(q5_0, qs));
    const vec qh = load_dword(row, AT(q5_0, qh));
    put_quad(to, sub, 0, plus_fifths(plus(low_nibbles(q), BIAS_OF(5) - 16), qh, 0));
    put_quad(to, sub, 16, plus_fifths(plus(high_nibbles(q), BIAS_OF(5) - 16), qh, 1));
}

SCALES(q5_1) {
    const vec d_m = load_dword(row, AT(q5_1, d));
    put_scale(to, 0, halves_of(d_m));
    put_min(to, 0, negative(halves_of(v_srl32(d_m, 16))));
}
BLOCK(q5_1) {
    const quad q = load_quad(row, AT(q5_1, qs));
    const vec qh = load_dword(row, AT(q5_1, qh));
    put_quad(to, sub, 0, plus_fifths(low_nibbles(q), qh, 0));
    put_quad(to, sub, 16, plus_fifths(high_nibbles(q), qh, 1));
}

SCALES(q8_0) { put_scale(to, 0, load_halves(row, AT(q8_0, d))); }
BLOCK(q8_0) {
    put_quad(to, sub, 0, plus(load_quad(row, AT(q8_0, qs)), BIAS_OF(8)));
    put_quad(to, sub, 16, plus(load_quad(row, AT(q8_0, qs) + 16), BIAS_OF(8)));
}

SCALES(iq4_nl) { put_scale(to, 0, load_halves(row, AT(iq4_nl, d))); }
BLOCK(iq4_nl) {
    const quad q = load_quad(row, AT(iq4_nl, qs));
    put_quad(to, sub, 0, iq4_values(low_nibbles(q)));
    put_quad(to, sub, 16, iq4_values(high_nibbles(q)));
}

/* --- super-blocks of 256 -------------------------------------------------------------------------------------- */

/* Scales and minimums of Q4_K and Q5_K: the first 16 bytes of a block are d, dmin and 12 bytes of 6-bit numbers. */
INLINE void k_scale(sink *to, quad q, fvec d, fvec dmin, int s) {
    put_scale(to, s, times(d, dword_bits(q.k1, 8 * s, 63)));
    put_min(to, s, times(dmin, dword_bits(q.k2, 8 * s, 63)));
    const vec scale_top = v_sll32(dword_bits(q.k1, 8 * s + 6, 3), 4);
    const vec min_top = v_sll32(dword_bits(q.k2, 8 * s + 6, 3), 4);
    put_scale(to, s + 4, times(d, v_or(dword_bits(q.k3, 8 * s, 15), scale_top)));
    put_min(to, s + 4, times(dmin, v_or(dword_bits(q.k3, 8 * s + 4, 15), min_top)));
}
INLINE void k_scales(const lc_rows row, size_t at, sink *to) {
    const quad q = load_quad(row, at);
    const fvec d = halves_of(q.k0), dmin = halves_of(v_srl32(q.k0, 16));
    FOR_4(k_scale, to, q, d, dmin);
}

/* 16 bytes: half of sub-block c / 2 * 2 (low nibbles) and of the next (high). */
INLINE void q4_k_part(const lc_rows row, size_t at, sink *to, int sub, int c) {
    const quad q = load_quad(row, AT(q4_k, qs) + 16 * (size_t)c);
    put_quad(to, sub, c / 2 * 64 + c % 2 * 16, low_nibbles(q));
    put_quad(to, sub, c / 2 * 64 + c % 2 * 16 + 32, high_nibbles(q));
}
SCALES(q4_k) { k_scales(row, at, to); }
BLOCK(q4_k) {
    FOR_8(q4_k_part, row, at, to, sub);
}

/* The same; bit s of `qh` belongs to sub-block s. */
INLINE void q5_k_part(const lc_rows row, size_t at, sink *to, int sub, quad qh, int h, int c) {
    const quad q = load_quad(row, AT(q5_k, qs) + 32 * (size_t)c + 16 * (size_t)h);
    put_quad(to, sub, c * 64 + h * 16, plus_where(low_nibbles(q), qh, 2 * c, 4));
    put_quad(to, sub, c * 64 + h * 16 + 32, plus_where(high_nibbles(q), qh, 2 * c + 1, 4));
}
INLINE void q5_k_half(const lc_rows row, size_t at, sink *to, int sub, int h) {
    const quad qh = load_quad(row, AT(q5_k, qh) + 16 * (size_t)h);
    FOR_4(q5_k_part, row, at, to, sub, qh, h);
}
SCALES(q5_k) { k_scales(row, at, to); }
BLOCK(q5_k) {
    FOR_2(q5_k_half, row, at, to, sub);
}

INLINE void q6_k_scale(sink *to, quad scales, fvec d, int s) {
    const vec top = v_sll32(dword_of(scales, s / 4), 24 - s % 4 * 8);
    put_scale(to, s, times(d, v_sra32(top, 24)));
}
/* 128 values are four groups of 32: bytes c of `ql` hold group c (low nibbles) and c + 2 (high). */
INLINE void q6_k_part(const lc_rows row, size_t at, sink *to, int sub, quad qh, int half, int h, int c) {
    const quad q = load_quad(row, AT(q6_k, ql) + 64 * (size_t)half + 32 * (size_t)c + 16 * (size_t)h);
    const quad low = with_high(low_nibbles(q), qh, 2 * c);
    const quad high = with_high(high_nibbles(q), qh, 2 * c + 4);
    put_quad(to, sub, half * 128 + c * 32 + h * 16, plus(low, BIAS_OF(6) - 32));
    put_quad(to, sub, half * 128 + c * 32 + h * 16 + 64, plus(high, BIAS_OF(6) - 32));
}
INLINE void q6_k_half(const lc_rows row, size_t at, sink *to, int sub, int half, int h) {
    const quad qh = load_quad(row, AT(q6_k, qh) + 32 * (size_t)half + 16 * (size_t)h);
    FOR_2(q6_k_part, row, at, to, sub, qh, half, h);
}
SCALES(q6_k) {
    const fvec d = load_halves(row, AT(q6_k, d));
    const quad scales = load_quad(row, AT(q6_k, scales));
    FOR_16(q6_k_scale, to, scales, d);
}
BLOCK(q6_k) {
    FOR_2(q6_k_half, row, at, to, sub, 0);
    FOR_2(q6_k_half, row, at, to, sub, 1);
}

INLINE void q2_k_scale(sink *to, quad scales, fvec d, fvec dmin, int s) {
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
SCALES(q2_k) {
    const vec d_dmin = load_dword(row, AT(q2_k, d));
    const fvec d = halves_of(d_dmin), dmin = halves_of(v_srl32(d_dmin, 16));
    const quad scales = load_quad(row, AT(q2_k, scales));
    FOR_16(q2_k_scale, to, scales, d, dmin);
}
BLOCK(q2_k) {
    FOR_4(q2_k_part, row, at, to, sub);
}

/* `tail` is the last 16 bytes of a block: two of qs, 12 of scales, d. Byte i of the scales is byte i + 2 here. */
INLINE void q3_k_scale(sink *to, quad tail, fvec d, int s) {
    const int low_at = s % 8 + 2, high_at = 8 + s % 4 + 2;
    const vec low = dword_bits(dword_of(tail, low_at / 4), low_at % 4 * 8 + s / 8 * 4, 15);
    const vec high = dword_bits(dword_of(tail, high_at / 4), high_at % 4 * 8 + s / 4 * 2, 3);
    const vec scale = v_or(low, v_sll32(high, 4));
    put_scale(to, s, times(d, v_sub32(scale, v_set32(32))));
}
INLINE void q3_k_group(sink *to, int sub, quad q, quad hmask, int h, int half, int g) {
    const quad codes = plus_where(plus(bits_of(q, 2 * g, 3), BIAS_OF(3) - 4), hmask, 4 * half + g, 2);
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
SCALES(q3_k) {
    const quad tail = load_quad(row, at + sizeof(lc_block_q3_k) - 16);
    const fvec d = halves_of(v_srl32(tail.k3, 16));
    FOR_16(q3_k_scale, to, tail, d);
}
BLOCK(q3_k) {
    FOR_2(q3_k_half, row, at, to, sub);
}

/* `head` is d and scales_h, scales_l, 8 bytes of qs. */
INLINE void iq4_xs_scale(sink *to, quad head, fvec d, int s) {
    const vec high = v_sll32(dword_bits(head.k0, 16 + 2 * s, 3), 4);
    const vec scale = v_or(dword_bits(head.k1, 4 * s, 15), high);
    put_scale(to, s, times(d, v_sub32(scale, v_set32(32))));
}
INLINE void iq4_xs_part(const lc_rows row, size_t at, sink *to, int sub, int s) {
    const quad q = load_quad(row, AT(iq4_xs, qs) + 16 * (size_t)s);
    put_quad(to, sub, 32 * s, iq4_values(low_nibbles(q)));
    put_quad(to, sub, 32 * s + 16, iq4_values(high_nibbles(q)));
}
SCALES(iq4_xs) {
    const quad head = load_quad(row, at);
    const fvec d = halves_of(head.k0);
    FOR_8(iq4_xs_scale, to, head, d);
}
BLOCK(iq4_xs) {
    FOR_8(iq4_xs_part, row, at, to, sub);
}

/* M(name, id, values of a block, values that share a scale, whether there are minimums, bits of a code) */
#define EACH_FORMAT(M)             \
    M(q4_0, Q4_0, 32, 32, 0, 4)    \
    M(q4_1, Q4_1, 32, 32, 1, 4)    \
    M(q5_0, Q5_0, 32, 32, 0, 5)    \
    M(q5_1, Q5_1, 32, 32, 1, 5)    \
    M(q8_0, Q8_0, 32, 32, 0, 8)    \
    M(iq4_nl, IQ4_NL, 32, 32, 0, 8) \
    M(q2_k, Q2_K, 256, 16, 1, 2)   \
    M(q3_k, Q3_K, 256, 16, 0, 3)   \
    M(q4_k, Q4_K, 256, 32, 1, 4)   \
    M(q5_k, Q5_K, 256, 32, 1, 5)   \
    M(q6_k, Q6_K, 256, 16, 0, 6)   \
    M(iq4_xs, IQ4_XS, 256, 32, 0, 8)

#undef AT
#undef BLOCK
#undef EACH_OF

#endif
