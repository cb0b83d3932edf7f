/* Block formats into tiles of 16 rows, for kernels_avx512.c alone.
 *
 * 16 bytes at one place of each of 16 rows are loaded into four registers and transposed, so that register k holds
 * dword k of every row: codes come out interleaved as tiles want them, and packed scales as vectors over the rows. */
#ifndef LC_UNPACK_AVX512_H
#define LC_UNPACK_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <string.h>

#include "kernel_table.h"

#define INLINE static inline __attribute__((always_inline))

enum { TILE_ROWS = 16, CODE_BIAS = 128 };

typedef const uint8_t *lc_rows[TILE_ROWS];

/* Rows that do not exist read the last one that does. */
INLINE void row_pointers(const uint8_t *rows, size_t row_bytes, int n_rows, lc_rows row) {
    for (int r = 0; r < TILE_ROWS; r++) row[r] = rows + (size_t)(r < n_rows ? r : n_rows - 1) * row_bytes;
}

INLINE __m512i load_four(const lc_rows row, int i, size_t at) {
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(row[i] + at)));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(row[i + 4] + at)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(row[i + 8] + at)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(row[i + 12] + at)), 3);
}

/* The 16 bytes at `at` of each row; out[k] has dword k of all rows. */
INLINE void load_dwords(const lc_rows row, size_t at, __m512i out[4]) {
    const __m512i q0 = load_four(row, 0, at), q1 = load_four(row, 1, at);
    const __m512i q2 = load_four(row, 2, at), q3 = load_four(row, 3, at);
    const __m512i a = _mm512_unpacklo_epi32(q0, q1), b = _mm512_unpackhi_epi32(q0, q1);
    const __m512i c = _mm512_unpacklo_epi32(q2, q3), d = _mm512_unpackhi_epi32(q2, q3);
    out[0] = _mm512_unpacklo_epi64(a, c);
    out[1] = _mm512_unpackhi_epi64(a, c);
    out[2] = _mm512_unpacklo_epi64(b, d);
    out[3] = _mm512_unpackhi_epi64(b, d);
}

INLINE __m512 load_halves(const lc_rows row, size_t at) {
    uint16_t h[TILE_ROWS];
    for (int r = 0; r < TILE_ROWS; r++) memcpy(&h[r], row[r] + at, 2);
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)h));
}

INLINE __m512i load_dword(const lc_rows row, size_t at) {
    uint32_t v[TILE_ROWS];
    for (int r = 0; r < TILE_ROWS; r++) memcpy(&v[r], row[r] + at, 4);
    return _mm512_loadu_si512(v);
}

/* The half in the low 16 bits of each dword. */
INLINE __m512 halves_of(__m512i dwords) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(dwords)); }

INLINE __m512i low_nibbles(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
INLINE __m512i high_nibbles(__m512i v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }
INLINE __m512i bits_at(__m512i v, int shift, int mask) {
    return _mm512_and_si512(_mm512_srli_epi16(v, (unsigned)shift), _mm512_set1_epi8((char)mask));
}
/* Where bit `bit` of a byte of `flags` is set, adds `value` to that byte of v. */
INLINE __m512i add_where(__m512i v, __m512i flags, int bit, int value) {
    const __mmask64 m = _mm512_test_epi8_mask(flags, _mm512_set1_epi8((char)(1 << bit)));
    return _mm512_mask_add_epi8(v, m, v, _mm512_set1_epi8((char)value));
}
INLINE __m512i add_to(__m512i v, int value) { return _mm512_add_epi8(v, _mm512_set1_epi8((char)value)); }

/* Codes k4 * 4 ... of the tile's rows. */
INLINE void put_codes(lc_panel *panel, int k4, __m512i codes) {
    _mm512_storeu_si512(panel->codes + (size_t)k4 * 4 * TILE_ROWS, codes);
}
INLINE void put_scale(lc_panel *panel, int s, __m512 scale) { _mm512_storeu_ps(panel->scales + s * TILE_ROWS, scale); }
INLINE void put_min(lc_panel *panel, int s, __m512 min) { _mm512_storeu_ps(panel->mins + s * TILE_ROWS, min); }

/* An unpacker's frame: the body runs for each block b of `name`, which starts `at` bytes into the rows. */
#define UNPACKER(name) \
    static void unpack_##name(const uint8_t *rows, size_t row_bytes, int n_rows, int n, lc_panel *panel)
#define EACH_BLOCK(name, elems)                 \
    lc_rows row;                                \
    row_pointers(rows, row_bytes, n_rows, row); \
    size_t at = 0;                              \
    for (int b = 0; b < n / (elems); b++, at += sizeof(lc_block_##name))
#define AT(name, field) (at + offsetof(lc_block_##name, field))

/* --- blocks of 32 --------------------------------------------------------------------------------------------- */

UNPACKER(q4_0) {
    EACH_BLOCK(q4_0, 32) {
        __m512i v[4];
        load_dwords(row, AT(q4_0, qs), v);
        for (int k = 0; k < 4; k++) {
            put_codes(panel, 8 * b + k, add_to(low_nibbles(v[k]), CODE_BIAS - 8));
            put_codes(panel, 8 * b + 4 + k, add_to(high_nibbles(v[k]), CODE_BIAS - 8));
        }
        put_scale(panel, b, load_halves(row, AT(q4_0, d)));
    }
}

UNPACKER(q4_1) {
    EACH_BLOCK(q4_1, 32) {
        __m512i v[4];
        load_dwords(row, AT(q4_1, qs), v);
        for (int k = 0; k < 4; k++) {
            put_codes(panel, 8 * b + k, low_nibbles(v[k]));
            put_codes(panel, 8 * b + 4 + k, high_nibbles(v[k]));
        }
        const __m512i d_m = load_dword(row, AT(q4_1, d));
        put_scale(panel, b, halves_of(d_m));
        put_min(panel, b, _mm512_sub_ps(_mm512_setzero_ps(), halves_of(_mm512_srli_epi32(d_m, 16))));
    }
}

/* Adds 16 to code i of 32 where bit i of the row's `qh` is set; k4 is i / 4. */
INLINE __m512i add_fifth_bit(__m512i codes, __m512i qh, int k4) {
    const __m512i first = _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0);
    const __m512i pick = _mm512_add_epi8(first, _mm512_set1_epi8((char)(k4 / 2))); /* that byte, four times a row */
    const __m512i bits = _mm512_set1_epi32(k4 % 2 ? (int)0x80402010 : 0x08040201);
    const __mmask64 m = _mm512_test_epi8_mask(_mm512_shuffle_epi8(qh, pick), bits);
    return _mm512_mask_add_epi8(codes, m, codes, _mm512_set1_epi8(16));
}

UNPACKER(q5_0) {
    EACH_BLOCK(q5_0, 32) {
        const __m512i qh = load_dword(row, AT(q5_0, qh));
        __m512i v[4];
        load_dwords(row, AT(q5_0, qs), v);
        for (int k = 0; k < 4; k++) {
            put_codes(panel, 8 * b + k, add_fifth_bit(add_to(low_nibbles(v[k]), CODE_BIAS - 16), qh, k));
            put_codes(panel, 8 * b + 4 + k, add_fifth_bit(add_to(high_nibbles(v[k]), CODE_BIAS - 16), qh, k + 4));
        }
        put_scale(panel, b, load_halves(row, AT(q5_0, d)));
    }
}

UNPACKER(q5_1) {
    EACH_BLOCK(q5_1, 32) {
        const __m512i qh = load_dword(row, AT(q5_1, qh));
        __m512i v[4];
        load_dwords(row, AT(q5_1, qs), v);
        for (int k = 0; k < 4; k++) {
            put_codes(panel, 8 * b + k, add_fifth_bit(low_nibbles(v[k]), qh, k));
            put_codes(panel, 8 * b + 4 + k, add_fifth_bit(high_nibbles(v[k]), qh, k + 4));
        }
        const __m512i d_m = load_dword(row, AT(q5_1, d));
        put_scale(panel, b, halves_of(d_m));
        put_min(panel, b, _mm512_sub_ps(_mm512_setzero_ps(), halves_of(_mm512_srli_epi32(d_m, 16))));
    }
}

UNPACKER(q8_0) {
    EACH_BLOCK(q8_0, 32) {
        for (int h = 0; h < 2; h++) {
            __m512i v[4];
            load_dwords(row, AT(q8_0, qs) + 16 * (size_t)h, v);
            for (int k = 0; k < 4; k++) put_codes(panel, 8 * b + 4 * h + k, add_to(v[k], CODE_BIAS));
        }
        put_scale(panel, b, load_halves(row, AT(q8_0, d)));
    }
}

/* The 16 values of IQ4 plus CODE_BIAS. */
INLINE __m512i iq4_values(__m512i nibbles) {
    const __m128i values = _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, (char)129, (char)141, (char)153, (char)166,
                                         (char)181, (char)197, (char)217, (char)241);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), nibbles);
}

UNPACKER(iq4_nl) {
    EACH_BLOCK(iq4_nl, 32) {
        __m512i v[4];
        load_dwords(row, AT(iq4_nl, qs), v);
        for (int k = 0; k < 4; k++) {
            put_codes(panel, 8 * b + k, iq4_values(low_nibbles(v[k])));
            put_codes(panel, 8 * b + 4 + k, iq4_values(high_nibbles(v[k])));
        }
        put_scale(panel, b, load_halves(row, AT(iq4_nl, d)));
    }
}

/* --- super-blocks of 256 -------------------------------------------------------------------------------------- */

INLINE __m512i dword_bits(__m512i v, int shift, int mask) {
    return _mm512_and_si512(_mm512_srli_epi32(v, (unsigned)shift), _mm512_set1_epi32(mask));
}
INLINE __m512 times(__m512 d, __m512i whole) { return _mm512_mul_ps(d, _mm512_cvtepi32_ps(whole)); }

/* Scales and minimums of Q4_K and Q5_K: the first 16 bytes of a block are d, dmin and 12 bytes of 6-bit numbers. */
INLINE void unpack_k_scales(const lc_rows row, size_t at, int b, lc_panel *panel) {
    __m512i v[4];
    load_dwords(row, at, v);
    const __m512 d = halves_of(v[0]), dmin = halves_of(_mm512_srli_epi32(v[0], 16));
    for (int s = 0; s < 4; s++) {
        put_scale(panel, 8 * b + s, times(d, dword_bits(v[1], 8 * s, 63)));
        put_min(panel, 8 * b + s, times(dmin, dword_bits(v[2], 8 * s, 63)));
        const __m512i scale_top = _mm512_slli_epi32(dword_bits(v[1], 8 * s + 6, 3), 4);
        const __m512i min_top = _mm512_slli_epi32(dword_bits(v[2], 8 * s + 6, 3), 4);
        put_scale(panel, 8 * b + s + 4, times(d, _mm512_or_si512(dword_bits(v[3], 8 * s, 15), scale_top)));
        put_min(panel, 8 * b + s + 4, times(dmin, _mm512_or_si512(dword_bits(v[3], 8 * s + 4, 15), min_top)));
    }
}

UNPACKER(q4_k) {
    EACH_BLOCK(q4_k, 256) {
        unpack_k_scales(row, at, b, panel);
        for (int c = 0; c < 8; c++) { /* 16 bytes: half of sub-blocks c / 2 * 2 (low) and the next (high) */
            __m512i v[4];
            load_dwords(row, AT(q4_k, qs) + 16 * (size_t)c, v);
            const int k4 = 64 * b + c / 2 * 16 + c % 2 * 4;
            for (int k = 0; k < 4; k++) {
                put_codes(panel, k4 + k, low_nibbles(v[k]));
                put_codes(panel, k4 + 8 + k, high_nibbles(v[k]));
            }
        }
    }
}

UNPACKER(q5_k) {
    EACH_BLOCK(q5_k, 256) {
        unpack_k_scales(row, at, b, panel);
        for (int h = 0; h < 2; h++) { /* bit s of `qh` belongs to sub-block s */
            __m512i qh[4];
            load_dwords(row, AT(q5_k, qh) + 16 * (size_t)h, qh);
            for (int c = 0; c < 4; c++) {
                __m512i v[4];
                load_dwords(row, AT(q5_k, qs) + 32 * (size_t)c + 16 * (size_t)h, v);
                const int k4 = 64 * b + c * 16 + h * 4;
                for (int k = 0; k < 4; k++) {
                    put_codes(panel, k4 + k, add_where(low_nibbles(v[k]), qh[k], 2 * c, 16));
                    put_codes(panel, k4 + 8 + k, add_where(high_nibbles(v[k]), qh[k], 2 * c + 1, 16));
                }
            }
        }
    }
}

UNPACKER(q6_k) {
    EACH_BLOCK(q6_k, 256) {
        __m512i v[4], qh[4];
        const __m512 d = load_halves(row, AT(q6_k, d));
        load_dwords(row, AT(q6_k, scales), v);
        for (int s = 0; s < 16; s++) {
            const __m512i top = _mm512_slli_epi32(v[s / 4], (unsigned)(24 - s % 4 * 8));
            put_scale(panel, 16 * b + s, times(d, _mm512_srai_epi32(top, 24)));
        }
        for (int half = 0; half < 2; half++)   /* 128 values */
            for (int h = 0; h < 2; h++) {      /* 16 of each 32 of them */
                load_dwords(row, AT(q6_k, qh) + 32 * (size_t)half + 16 * (size_t)h, qh);
                for (int c = 0; c < 2; c++) { /* groups c (low nibbles) and c + 2 (high) of the four */
                    load_dwords(row, AT(q6_k, ql) + 64 * (size_t)half + 32 * (size_t)c + 16 * (size_t)h, v);
                    const int k4 = 64 * b + half * 32 + c * 8 + h * 4;
                    for (int k = 0; k < 4; k++) {
                        const __m512i low = _mm512_slli_epi16(bits_at(qh[k], 2 * c, 3), 4);
                        const __m512i high = _mm512_slli_epi16(bits_at(qh[k], 2 * c + 4, 3), 4);
                        put_codes(panel, k4 + k, add_to(_mm512_or_si512(low_nibbles(v[k]), low), CODE_BIAS - 32));
                        put_codes(panel, k4 + 16 + k,
                                  add_to(_mm512_or_si512(high_nibbles(v[k]), high), CODE_BIAS - 32));
                    }
                }
            }
    }
}

UNPACKER(q2_k) {
    EACH_BLOCK(q2_k, 256) {
        __m512i v[4];
        const __m512i d_dmin = load_dword(row, AT(q2_k, d));
        const __m512 d = halves_of(d_dmin), dmin = halves_of(_mm512_srli_epi32(d_dmin, 16));
        load_dwords(row, AT(q2_k, scales), v);
        for (int s = 0; s < 16; s++) {
            put_scale(panel, 16 * b + s, times(d, dword_bits(v[s / 4], s % 4 * 8, 15)));
            put_min(panel, 16 * b + s, times(dmin, dword_bits(v[s / 4], s % 4 * 8 + 4, 15)));
        }
        for (int c = 0; c < 4; c++) { /* 16 bytes hold 16 codes of each of four groups */
            load_dwords(row, AT(q2_k, qs) + 16 * (size_t)c, v);
            for (int g = 0; g < 4; g++)
                for (int k = 0; k < 4; k++)
                    put_codes(panel, 64 * b + c / 2 * 32 + g * 8 + c % 2 * 4 + k, bits_at(v[k], 2 * g, 3));
        }
    }
}

UNPACKER(q3_k) {
    EACH_BLOCK(q3_k, 256) {
        __m512i v[4], hmask[4];
        /* The last 16 bytes: two of qs, 12 of scales, d. Byte i of the scales is byte i + 2 here. */
        load_dwords(row, at + sizeof(lc_block_q3_k) - 16, v);
        const __m512 d = halves_of(_mm512_srli_epi32(v[3], 16));
        for (int s = 0; s < 16; s++) {
            const int low_at = s % 8 + 2, high_at = 8 + s % 4 + 2;
            const __m512i low = dword_bits(v[low_at / 4], low_at % 4 * 8 + s / 8 * 4, 15);
            const __m512i high = dword_bits(v[high_at / 4], high_at % 4 * 8 + s / 4 * 2, 3);
            const __m512i scale = _mm512_or_si512(low, _mm512_slli_epi32(high, 4));
            put_scale(panel, 16 * b + s, times(d, _mm512_sub_epi32(scale, _mm512_set1_epi32(32))));
        }
        for (int h = 0; h < 2; h++) {
            load_dwords(row, AT(q3_k, hmask) + 16 * (size_t)h, hmask);
            for (int half = 0; half < 2; half++) {
                load_dwords(row, AT(q3_k, qs) + 32 * (size_t)half + 16 * (size_t)h, v);
                for (int g = 0; g < 4; g++)
                    for (int k = 0; k < 4; k++) {
                        const __m512i low = add_to(bits_at(v[k], 2 * g, 3), CODE_BIAS - 4);
                        put_codes(panel, 64 * b + half * 32 + g * 8 + h * 4 + k,
                                  add_where(low, hmask[k], 4 * half + g, 4));
                    }
            }
        }
    }
}

UNPACKER(iq4_xs) {
    EACH_BLOCK(iq4_xs, 256) {
        __m512i v[4];
        load_dwords(row, at, v); /* d and scales_h, scales_l, 8 bytes of qs */
        const __m512 d = halves_of(v[0]);
        for (int s = 0; s < 8; s++) {
            const __m512i high = _mm512_slli_epi32(dword_bits(v[0], 16 + 2 * s, 3), 4);
            const __m512i scale = _mm512_or_si512(dword_bits(v[1], 4 * s, 15), high);
            put_scale(panel, 8 * b + s, times(d, _mm512_sub_epi32(scale, _mm512_set1_epi32(32))));
        }
        for (int s = 0; s < 8; s++) {
            load_dwords(row, AT(iq4_xs, qs) + 16 * (size_t)s, v);
            for (int k = 0; k < 4; k++) {
                put_codes(panel, 64 * b + 8 * s + k, iq4_values(low_nibbles(v[k])));
                put_codes(panel, 64 * b + 8 * s + 4 + k, iq4_values(high_nibbles(v[k])));
            }
        }
    }
}

#undef UNPACKER
#undef EACH_BLOCK
#undef AT

#endif
