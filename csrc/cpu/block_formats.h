/* Blocks of a tile's rows, taken apart. One text for every instruction set: the file that includes it includes its simd_ISA.h
 * before.
 *
 * 16 bytes at one place of each row are loaded and transposed, so that vector k holds dword k of every row: codes come
 * out interleaved as tiles want them, and packed scales as vectors over the rows. Where codes go straight into products
 * with one token they are transposed by halves only, which takes half of the instructions, and sums are joined instead.
 *
 * Every block format is two functions, scales_NAME and block_NAME, that take a block of all rows apart and put the
 * parts into a sink; block_kernels.h makes kernels of them. All is inlined with constant arguments and without loops,
 * because the compiler keeps the sums in registers only if every index is a constant from the start. */
#ifndef LC_BLOCK_FORMATS_H
#define LC_BLOCK_FORMATS_H

#include <stddef.h>
#include <string.h>

#include "kernel_table.h"

/* Sums are kept in registers only if every loop over them is. */
#define UNROLLED _Pragma("GCC unroll 8")

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

/* Four dwords of every row: vector k has dword k, if nothing else is said. */
typedef struct quad {
    vec k0, k1, k2, k3;
} quad;

/* What becomes of a block's codes: a panel (of bf16), or products with one token; then it is the number of codes that share
 * a sum. FOR_TOKENS of that number are products with several. */
enum { IN_PANEL = 0, IN_BF16 = -1 };
#define FOR_TOKENS(sub) (-(sub))
#define IS_FOR_TOKENS(sub) ((sub) < IN_BF16)

/* The 16 bytes at `at` of each row, in whose vector k stand rows k, k + 4, ... */
INLINE quad load_rows(const lc_rows row, size_t at) {
    return (quad){load_every_fourth(row, at, 0), load_every_fourth(row, at, 1), load_every_fourth(row, at, 2),
                  load_every_fourth(row, at, 3)};
}

INLINE quad load_quad(const lc_rows row, size_t at) {
    const quad q = load_rows(row, at);
    const vec a = v_unpacklo32(q.k0, q.k1), b = v_unpackhi32(q.k0, q.k1);
    const vec c = v_unpacklo32(q.k2, q.k3), d = v_unpackhi32(q.k2, q.k3);
    return (quad){v_unpacklo64(a, c), v_unpackhi64(a, c), v_unpacklo64(b, d), v_unpackhi64(b, d)};
}

/* The same for codes. For products: of every four rows, vectors 0 and 1 have the first and the last eight bytes of rows 0
 * and 1, vectors 2 and 3 those of rows 2 and 3. */
INLINE quad load_codes(const lc_rows row, size_t at, int sub) {
    if (sub <= 0) return load_quad(row, at);
    const quad q = load_rows(row, at);
    return (quad){v_unpacklo64(q.k0, q.k1), v_unpackhi64(q.k0, q.k1), v_unpacklo64(q.k2, q.k3), v_unpackhi64(q.k2, q.k3)};
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

INLINE vec dword_bits(vec v, int shift, int mask) {
    return v_and(v_srl32(v, shift), v_set32(mask));
}
INLINE fvec times(fvec d, vec whole) { return f_mul(d, f_from(whole)); }

/* Byte i of each dword is used where it stands, as a multiple of 2^8i: d is divided by as much, which rounds nothing. */
INLINE vec bits_of_byte(vec v, int i, int mask) { return v_and(v, v_set32((int)((uint32_t)mask << 8 * i))); }
INLINE fvec of_byte(fvec d, int i) { return i == 0 ? d : f_mul(d, f_set(1.0f / (float)(1 << 8 * i))); }
/* d times bits of byte i; of byte 3 no more than seven, or it would be negative. */
INLINE fvec times_byte(fvec d, vec v, int i, int mask) { return f_mul(of_byte(d, i), f_from(bits_of_byte(v, i, mask))); }
/* d times (bits of byte i - bias), a power of two: d · bias is exact. */
INLINE fvec times_less(fvec d, vec v, int i, int mask, int bias) {
    return f_fma(of_byte(d, i), f_from(bits_of_byte(v, i, mask)), f_mul(d, f_set((float)-bias)));
}
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
/* The same for eight codes of two rows, as they are loaded for products: rows 2 · pair and 2 · pair + 1 of every four. */
INLINE vec plus_fifth_of_two(vec codes, vec qh, int pair, int eighth) {
#define EIGHT(x) x, x, x, x, x, x, x, x
#define TWO_ROWS(x) {EIGHT(x), EIGHT((x) + 4)}
    static const int8_t BYTES[2][4][16] = {{TWO_ROWS(0), TWO_ROWS(1), TWO_ROWS(2), TWO_ROWS(3)},
                                           {TWO_ROWS(8), TWO_ROWS(9), TWO_ROWS(10), TWO_ROWS(11)}};
    static const int8_t BITS[16] = {1, 2, 4, 8, 16, 32, 64, -128, 1, 2, 4, 8, 16, 32, 64, -128};
#undef TWO_ROWS
#undef EIGHT
    return add_where(codes, v_lookup(qh, v_repeat16(BYTES[pair][eighth])), v_repeat16(BITS), v_set8(16));
}
INLINE quad plus_fifths(quad q, vec qh, int is_upper, int sub) {
    if (sub > 0)
        return (quad){plus_fifth_of_two(q.k0, qh, 0, 2 * is_upper), plus_fifth_of_two(q.k1, qh, 0, 2 * is_upper + 1),
                      plus_fifth_of_two(q.k2, qh, 1, 2 * is_upper), plus_fifth_of_two(q.k3, qh, 1, 2 * is_upper + 1)};
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

/* Sums of two rows of every four, two dwords for each. If widen_later(), all of a group wait in what products are. */
typedef struct half_sums {
    vec rows01, rows23;
} half_sums;

INLINE vec dot8(vec sum, vec w, vec a, int bits) {
    if (widen_later(bits)) return add_products(sum, w, a, bits);
    return v_add32(sum, widened(add_products(v_set32(0), w, a, bits)));
}

/* sum += 16 codes of each row, as they are loaded for products, times 16 of one token. */
INLINE half_sums dot16(half_sums sum, quad w, const int8_t *a, int bits) {
    const vec a0 = v_repeat8(a), a1 = v_repeat8(a + 8);
    sum.rows01 = dot8(dot8(sum.rows01, w.k0, a0, bits), w.k1, a1, bits);
    sum.rows23 = dot8(dot8(sum.rows23, w.k2, a0, bits), w.k3, a1, bits);
    return sum;
}

/* Those of a group of `sub` codes, as one dword for each row. */
INLINE vec joined(half_sums sum, int sub, int bits, int has_min) {
    if (widen_later(bits)) sum = (half_sums){widened(sum.rows01), widened(sum.rows23)};
    const int largest = has_min || BIAS_LOG2(bits) < bits ? (1 << bits) - 1 : UINT8_MAX;
    return pairs_added(sum.rows01, sum.rows23, sub / 2 * largest * 127);
}

/* --- where the parts of a block go ---------------------------------------------------------------------------- */

typedef struct sink {
    uint8_t *codes; /* of this block in the panel */
    float *scales, *mins;
    int32_t *lacks;
    int stride;     /* from one scale of a row to its next */
    int bits;       /* of a code */
    int has_min;    /* whether there are minimums */
    uint16_t *bf16; /* of this block in a panel of bf16, */
    int shared;     /* so many of which, or of codes of a panel, share a scale */
    const uint8_t *ahead;       /* what to ask memory for next, */
    int lines, n_quads, quad_i; /* so many lines of it, evenly with so many quads: requests in a burst get lost */
    const uint8_t *const *row;  /* and what to bring from the second-level cache into the first: */
    size_t next, next_bytes;    /* so many bytes of every row */
    const lc_q8_block *x;   /* the tokens of products, */
    int n_tokens;           /* so many, */
    int first;              /* the number of this block's first group in the row, */
    half_sums half_sum[16]; /* groups that are under way, the first half of each before the second, */
    vec sum[16][LC_MAX_FEW_TOKENS]; /* sums of all of a group's codes, */
    fvec total[LC_MAX_FEW_TOKENS];  /* and what the groups that have ended give */
} sink;

#if defined(HAS_BF16)
INLINE void put_bf16(sink *to, int first, quad q);
#endif

INLINE void ask_ahead(sink *to, const uint8_t *ahead, int block_bytes, int block_elems) {
    to->ahead = ahead;
    to->lines = (VEC_ROWS * block_bytes + LC_LINE - 1) / LC_LINE;
    to->n_quads = block_elems / 16;
    to->quad_i = 0;
}
/* Where compilers would gather the requests, v keeps each in its place. */
INLINE vec ask_lines(sink *to, vec v) {
    const int i = to->quad_i++, first = i * to->lines / to->n_quads, end = (i + 1) * to->lines / to->n_quads;
    UNROLLED for (int line = first; line < end; line++) FETCH_WITH(v, to->ahead + line * LC_LINE);
    return v;
}

/* What takes the bias out of the sums of token t with group `at` of the row. */
INLINE vec less_bias(const sink *to, int sub, int t, int at) {
    return less_bias_of((sub == 32 ? to->x[t].bias32 : to->x[t].bias16) + at, to->bits, to->has_min);
}

/* Called before ask_lines(). */
INLINE vec bring_rows(const sink *to, vec v) {
#if defined(BRING_WITH)
    const int i = to->quad_i, first = i * VEC_ROWS / to->n_quads, end = (i + 1) * VEC_ROWS / to->n_quads;
    UNROLLED for (int r = first; r < end; r++) {
        const uint8_t *next = to->row[r] + to->next + LC_LINE - 1;
        UNROLLED for (size_t k = 0; k < to->next_bytes; k += LC_LINE) BRING_WITH(v, next + k);
#if defined(FETCH_NEAR) /* see matvec_along.h; short blocks would spend too much on it */
        if (to->next_bytes > LC_LINE / 2) {
            BRING_WITH(v, next + 3 * to->next_bytes);
            BRING_WITH(v, next + 6 * to->next_bytes);
        }
#endif
    }
#else
    (void)to;
#endif
    return v;
}

#if FEW_TOKENS > 1
/* Adds what 16 codes of each row, from number `first` of the block on, give with token t. */
INLINE void dot_token(sink *to, int sub, int first, quad q, int t) {
    if (t >= to->n_tokens) return;
    const int group = first / sub;
    const int8_t *a = to->x[t].codes + to->first * sub + first;
    vec sum = first % sub == 0 ? less_bias(to, sub, t, to->first + group) : to->sum[group][t];
    ADD_FOUR(sum, q.k0, a);
    ADD_FOUR(sum, q.k1, a + 4);
    ADD_FOUR(sum, q.k2, a + 8);
    ADD_FOUR(sum, q.k3, a + 12);
    to->sum[group][t] = sum;
}
#endif

/* 16 codes of each row, from number `first` of the block on. */
INLINE void put_quad(sink *to, int sub, int first, quad q) {
#if defined(HAS_BF16)
    if (sub == IN_BF16) {
        put_bf16(to, first, q);
        return;
    }
#endif
    if (sub != IN_PANEL) q.k1 = bring_rows(to, q.k1);
    q.k0 = ask_lines(to, q.k0);
#if FEW_TOKENS > 1
    if (IS_FOR_TOKENS(sub)) {
        FOR_8(dot_token, to, FOR_TOKENS(sub), first, q);
        return;
    }
#endif
    if (sub > 0) {
        const half_sums none = {v_set32(0), v_set32(0)};
        half_sums *sum = &to->half_sum[first / sub];
        *sum = dot16(first % sub == 0 ? none : *sum, q, to->x->codes + to->first * sub + first, to->bits);
        if (first % sub + 16 == sub) to->sum[first / sub][0] = joined(*sum, sub, to->bits, to->has_min);
        return;
    }
    uint8_t *codes = to->codes + (size_t)first * TILE_ROWS;
    v_store(codes, q.k0);
    v_store(codes + 4 * TILE_ROWS, q.k1);
    v_store(codes + 8 * TILE_ROWS, q.k2);
    v_store(codes + 12 * TILE_ROWS, q.k3);
    if (!HAS_WIDE_SUMS && to->bits == 8) {
        int32_t *lacks = to->lacks + first / to->shared * to->stride;
        const vec lack = lack_of(q.k0, q.k1, q.k2, q.k3);
        v_store(lacks, first % to->shared == 0 ? lack : v_add32(v_load(lacks), lack));
    }
}

/* Adds what group s of a block gives with token t, once the sum of its codes is there. */
INLINE void end_group(sink *to, int sub, int s, int t) {
    if (t >= to->n_tokens) return;
    const lc_q8_block *x = to->x + t;
    const int at = to->first + s;
    const fvec scale = f_mul(f_load(to->scales + s * to->stride), f_set(x->scales[at * sub / LC_GROUP]));
    const fvec sum = f_fma(f_from(to->sum[s][t]), scale, to->total[t]);
    const float *codes = sub == 32 ? x->sums32 : x->sums16;
    to->total[t] = to->has_min ? f_fnma(f_load(to->mins + s * to->stride), f_set(codes[at]), sum) : sum;
}
INLINE void end_group_of_one(sink *to, int sub, int s, int n, int i) {
    if (i >= n) return;
    to->sum[s + i][0] = v_add32(to->sum[s + i][0], less_bias(to, sub, 0, to->first + s + i));
    end_group(to, sub, s + i, 0);
}
INLINE void end_group_of_all(sink *to, int sub, int s, int n, int i) {
    if (i < n) FOR_8(end_group, to, sub, s + i);
}
/* Groups s to s + n - 1 have all their codes. Said as early as can be, because each waits for the one before. */
INLINE void end_groups(sink *to, int sub, int s, int n) {
    if (sub > 0) FOR_8(end_group_of_one, to, sub, s, n);
    if (IS_FOR_TOKENS(sub)) FOR_8(end_group_of_all, to, FOR_TOKENS(sub), s, n);
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
    const quad q = load_codes(row, AT(q4_0, qs), sub);
    put_quad(to, sub, 0, plus(low_nibbles(q), BIAS_OF(4) - 8));
    put_quad(to, sub, 16, plus(high_nibbles(q), BIAS_OF(4) - 8));
    end_groups(to, sub, 0, 1);
}

SCALES(q4_1) {
    const vec d_m = load_dword(row, AT(q4_1, d));
    put_scale(to, 0, halves_of(d_m));
    put_min(to, 0, negative(halves_of(v_srl32(d_m, 16))));
}
BLOCK(q4_1) {
    const quad q = load_codes(row, AT(q4_1, qs), sub);
    put_quad(to, sub, 0, low_nibbles(q));
    put_quad(to, sub, 16, high_nibbles(q));
    end_groups(to, sub, 0, 1);
}

SCALES(q5_0) { put_scale(to, 0, load_halves(row, AT(q5_0, d))); }
BLOCK(q5_0) {
    const quad q = load_codes(row, AT(q5_0, qs), sub);
    const vec qh = load_dword(row, AT(q5_0, qh));
    put_quad(to, sub, 0, plus_fifths(plus(low_nibbles(q), BIAS_OF(5) - 16), qh, 0, sub));
    put_quad(to, sub, 16, plus_fifths(plus(high_nibbles(q), BIAS_OF(5) - 16), qh, 1, sub));
    end_groups(to, sub, 0, 1);
}

SCALES(q5_1) {
    const vec d_m = load_dword(row, AT(q5_1, d));
    put_scale(to, 0, halves_of(d_m));
    put_min(to, 0, negative(halves_of(v_srl32(d_m, 16))));
}
BLOCK(q5_1) {
    const quad q = load_codes(row, AT(q5_1, qs), sub);
    const vec qh = load_dword(row, AT(q5_1, qh));
    put_quad(to, sub, 0, plus_fifths(low_nibbles(q), qh, 0, sub));
    put_quad(to, sub, 16, plus_fifths(high_nibbles(q), qh, 1, sub));
    end_groups(to, sub, 0, 1);
}

SCALES(q8_0) { put_scale(to, 0, load_halves(row, AT(q8_0, d))); }
BLOCK(q8_0) {
    put_quad(to, sub, 0, plus(load_codes(row, AT(q8_0, qs), sub), BIAS_OF(8)));
    put_quad(to, sub, 16, plus(load_codes(row, AT(q8_0, qs) + 16, sub), BIAS_OF(8)));
    end_groups(to, sub, 0, 1);
}

SCALES(iq4_nl) { put_scale(to, 0, load_halves(row, AT(iq4_nl, d))); }
BLOCK(iq4_nl) {
    const quad q = load_codes(row, AT(iq4_nl, qs), sub);
    put_quad(to, sub, 0, iq4_values(low_nibbles(q)));
    put_quad(to, sub, 16, iq4_values(high_nibbles(q)));
    end_groups(to, sub, 0, 1);
}

/* --- super-blocks of 256 -------------------------------------------------------------------------------------- */

/* Scales and minimums of Q4_K and Q5_K: the first 16 bytes of a block are d, dmin and 12 bytes of 6-bit numbers. */
INLINE void k_scale(sink *to, quad q, fvec d, fvec dmin, int s) {
    put_scale(to, s, times_byte(d, q.k1, s, 63));
    put_min(to, s, times_byte(dmin, q.k2, s, 63));
    put_scale(to, s + 4, times_byte(d, v_or(moved_bits(q.k3, 0, 0, 15), moved_bits(q.k1, 6, 4, 3)), s, 63));
    put_min(to, s + 4, times_byte(dmin, v_or(moved_bits(q.k3, 4, 0, 15), moved_bits(q.k2, 6, 4, 3)), s, 63));
}
INLINE void k_scales(const lc_rows row, size_t at, sink *to) {
    const quad q = load_quad(row, at);
    const fvec d = halves_of(q.k0), dmin = halves_of(v_srl32(q.k0, 16));
    FOR_4(k_scale, to, q, d, dmin);
}

/* 16 bytes: half of sub-block c / 2 * 2 (low nibbles) and of the next (high). */
INLINE void q4_k_part(const lc_rows row, size_t at, sink *to, int sub, int c) {
    const quad q = load_codes(row, AT(q4_k, qs) + 16 * (size_t)c, sub);
    put_quad(to, sub, c / 2 * 64 + c % 2 * 16, low_nibbles(q));
    put_quad(to, sub, c / 2 * 64 + c % 2 * 16 + 32, high_nibbles(q));
    end_groups(to, sub, c / 2 * 2, c % 2 * 2);
}
SCALES(q4_k) { k_scales(row, at, to); }
BLOCK(q4_k) {
    FOR_8(q4_k_part, row, at, to, sub);
}

/* The same; bit s of `qh` belongs to sub-block s. */
INLINE void q5_k_half(const lc_rows row, size_t at, sink *to, int sub, quad qh, int c, int h) {
    const quad q = load_codes(row, AT(q5_k, qs) + 32 * (size_t)c + 16 * (size_t)h, sub);
    put_quad(to, sub, c * 64 + h * 16, plus_where(low_nibbles(q), qh, 2 * c, 4));
    put_quad(to, sub, c * 64 + h * 16 + 32, plus_where(high_nibbles(q), qh, 2 * c + 1, 4));
}
INLINE void q5_k_part(const lc_rows row, size_t at, sink *to, int sub, quad qh0, quad qh1, int c) {
    q5_k_half(row, at, to, sub, qh0, c, 0);
    q5_k_half(row, at, to, sub, qh1, c, 1);
    end_groups(to, sub, 2 * c, 2);
}
SCALES(q5_k) { k_scales(row, at, to); }
BLOCK(q5_k) {
    const quad qh0 = load_codes(row, AT(q5_k, qh), sub), qh1 = load_codes(row, AT(q5_k, qh) + 16, sub);
    FOR_4(q5_k_part, row, at, to, sub, qh0, qh1);
}

INLINE void q6_k_scale(sink *to, quad scales, fvec d, int s) {
    const vec four = dword_of(scales, s / 4);
    if (s % 4 == 3) put_scale(to, s, f_mul(of_byte(d, 3), f_from(bits_of_byte(four, 3, 255)))); /* with its sign */
    else put_scale(to, s, times_less(d, v_add8(four, v_set8(128)), s % 4, 255, 128));
}
/* 128 values are four groups of 32: bytes c of `ql` hold group c (low nibbles) and c + 2 (high). */
INLINE void q6_k_part(const lc_rows row, size_t at, sink *to, int sub, quad qh, int half, int h, int c) {
    const quad q = load_codes(row, AT(q6_k, ql) + 64 * (size_t)half + 32 * (size_t)c + 16 * (size_t)h, sub);
    const quad low = with_high(low_nibbles(q), qh, 2 * c);
    const quad high = with_high(high_nibbles(q), qh, 2 * c + 4);
    put_quad(to, sub, half * 128 + c * 32 + h * 16, plus(low, BIAS_OF(6) - 32));
    put_quad(to, sub, half * 128 + c * 32 + h * 16 + 64, plus(high, BIAS_OF(6) - 32));
}
INLINE void q6_k_half(const lc_rows row, size_t at, sink *to, int sub, int half, int h) {
    const quad qh = load_codes(row, AT(q6_k, qh) + 32 * (size_t)half + 16 * (size_t)h, sub);
    FOR_2(q6_k_part, row, at, to, sub, qh, half, h);
    end_groups(to, sub, 8 * half, 8 * h);
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

INLINE void q2_k_scale(sink *to, quad scales, quad mins, fvec d, fvec dmin, int s) {
    put_scale(to, s, times_byte(d, dword_of(scales, s / 4), s % 4, 15));
    put_min(to, s, times_byte(dmin, dword_of(mins, s / 4), s % 4, 15));
}
INLINE void q2_k_group(sink *to, int sub, quad q, int c, int g) {
    put_quad(to, sub, c / 2 * 128 + g * 32 + c % 2 * 16, bits_of(q, 2 * g, 3));
}
/* 16 bytes hold 16 codes of each of four groups. */
INLINE void q2_k_part(const lc_rows row, size_t at, sink *to, int sub, int c) {
    const quad q = load_codes(row, AT(q2_k, qs) + 16 * (size_t)c, sub);
    FOR_4(q2_k_group, to, sub, q, c);
    end_groups(to, sub, c / 2 * 8, c % 2 * 8);
}
SCALES(q2_k) {
    const vec d_dmin = load_dword(row, AT(q2_k, d));
    const fvec d = halves_of(d_dmin), dmin = halves_of(v_srl32(d_dmin, 16));
    const quad scales = load_quad(row, AT(q2_k, scales));
    FOR_16(q2_k_scale, to, scales, high_nibbles(scales), d, dmin);
}
BLOCK(q2_k) {
    FOR_4(q2_k_part, row, at, to, sub);
}

/* `tail` is the last 16 bytes of a block: two of qs, 12 of scales, d. Byte i of the scales is byte i + 2 here. The low four
 * bits of a scale and the high two are in the same place of their dwords. */
INLINE void q3_k_scale(sink *to, quad tail, fvec d, int s) {
    const int low_at = s % 8 + 2, high_at = 8 + s % 4 + 2;
    const vec low = moved_bits(dword_of(tail, low_at / 4), s / 8 * 4, 0, 15);
    const vec high = moved_bits(dword_of(tail, high_at / 4), s / 4 * 2, 4, 3);
    put_scale(to, s, times_less(d, v_or(low, high), low_at % 4, 63, 32));
}
INLINE void q3_k_group(sink *to, int sub, quad q, quad hmask, int h, int half, int g) {
    const quad codes = plus_where(plus(bits_of(q, 2 * g, 3), BIAS_OF(3) - 4), hmask, 4 * half + g, 2);
    put_quad(to, sub, half * 128 + g * 32 + h * 16, codes);
}
INLINE void q3_k_half(const lc_rows row, size_t at, sink *to, int sub, quad hmask, int half, int h) {
    const quad q = load_codes(row, AT(q3_k, qs) + 32 * (size_t)half + 16 * (size_t)h, sub);
    FOR_4(q3_k_group, to, sub, q, hmask, h, half);
}
INLINE void q3_k_part(const lc_rows row, size_t at, sink *to, int sub, quad hmask0, quad hmask1, int half) {
    q3_k_half(row, at, to, sub, hmask0, half, 0);
    q3_k_half(row, at, to, sub, hmask1, half, 1);
    end_groups(to, sub, 8 * half, 8);
}
SCALES(q3_k) {
    const quad tail = load_quad(row, at + sizeof(lc_block_q3_k) - 16);
    const fvec d = halves_of(v_srl32(tail.k3, 16));
    FOR_16(q3_k_scale, to, tail, d);
}
BLOCK(q3_k) {
    const quad hmask0 = load_codes(row, AT(q3_k, hmask), sub), hmask1 = load_codes(row, AT(q3_k, hmask) + 16, sub);
    FOR_2(q3_k_part, row, at, to, sub, hmask0, hmask1);
}

/* `head` is d and scales_h, scales_l, 8 bytes of qs. */
INLINE void iq4_xs_scale(sink *to, quad head, fvec d, int s) {
    const vec high = v_sll32(dword_bits(head.k0, 16 + 2 * s, 3), 4);
    const vec scale = v_or(dword_bits(head.k1, 4 * s, 15), high);
    put_scale(to, s, times(d, v_sub32(scale, v_set32(32))));
}
INLINE void iq4_xs_part(const lc_rows row, size_t at, sink *to, int sub, int s) {
    const quad q = load_codes(row, AT(iq4_xs, qs) + 16 * (size_t)s, sub);
    put_quad(to, sub, 32 * s, iq4_values(low_nibbles(q)));
    put_quad(to, sub, 32 * s + 16, iq4_values(high_nibbles(q)));
    end_groups(to, sub, s, 1);
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
