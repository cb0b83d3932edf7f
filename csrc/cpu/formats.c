/* Each block format taken apart in plain C, from its definition in localcoder/quants. */
#include "formats.h"

#include <string.h>

#include "half.h"

/* Code i of small codes packed into bytes as all formats do it: a run of `run` bytes holds 8 / n_bits runs of codes,
 * the first in the lowest bits of every byte. */
static inline int packed(const uint8_t *data, int n_bits, int run, int i) {
    const int per_byte = 8 / n_bits;
    const int byte = i / (run * per_byte) * run + i % run;
    return data[byte] >> (i / run % per_byte * n_bits) & ((1 << n_bits) - 1);
}

/* Codes 0 to n - 1 of such data, into bits `to` and up of codes[]; those below are there already. Written so that
 * compilers vectorize it. */
static inline void take_bits(const uint8_t *data, int n, int n_bits, int run, int to, int8_t *codes) {
    const int mask = (1 << n_bits) - 1;
    for (int first = 0; first < n; data += run)
        for (int shift = 0; shift < 8; shift += n_bits, first += run)
            for (int i = 0; i < run; i++) {
                const int bits = (data[i] >> shift & mask) << to;
                codes[first + i] = (int8_t)(to == 0 ? bits : codes[first + i] | bits);
            }
}

static inline void shift_codes(int8_t *codes, int n, int by) {
    for (int i = 0; i < n; i++) codes[i] = (int8_t)(codes[i] + by);
}

static inline void look_up(int8_t *codes, int n, const int8_t *values) {
    for (int i = 0; i < n; i++) codes[i] = values[codes[i]];
}

/* The arguments of an unpacker; those that a format has no use for go unmentioned. */
#define UNPACKER(name)                                                                                           \
    static void unpack_##name(const void *blocks, int n, const int8_t *grid, int8_t *codes, float *scales, float *mins)
#define EACH_BLOCK(name, elems)          \
    const lc_block_##name *b = blocks;   \
    (void)grid, (void)scales, (void)mins; \
    for (const lc_block_##name *end = b + n / (elems); b < end; b++, codes += (elems))

/* --- blocks of 32 --------------------------------------------------------------------------------------------- */

UNPACKER(q4_0) {
    EACH_BLOCK(q4_0, 32) {
        *scales++ = lc_half_to_float(b->d);
        take_bits(b->qs, 32, 4, 16, 0, codes);
        shift_codes(codes, 32, -8);
    }
}

UNPACKER(q4_1) {
    EACH_BLOCK(q4_1, 32) {
        *scales++ = lc_half_to_float(b->d);
        *mins++ = -lc_half_to_float(b->m);
        take_bits(b->qs, 32, 4, 16, 0, codes);
    }
}

UNPACKER(q5_0) {
    EACH_BLOCK(q5_0, 32) {
        *scales++ = lc_half_to_float(b->d);
        take_bits(b->qs, 32, 4, 16, 0, codes);
        take_bits(b->qh, 32, 1, 1, 4, codes);
        shift_codes(codes, 32, -16);
    }
}

UNPACKER(q5_1) {
    EACH_BLOCK(q5_1, 32) {
        *scales++ = lc_half_to_float(b->d);
        *mins++ = -lc_half_to_float(b->m);
        take_bits(b->qs, 32, 4, 16, 0, codes);
        take_bits(b->qh, 32, 1, 1, 4, codes);
    }
}

UNPACKER(q8_0) {
    EACH_BLOCK(q8_0, 32) {
        *scales++ = lc_half_to_float(b->d);
        memcpy(codes, b->qs, 32);
    }
}

static const int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

UNPACKER(iq4_nl) {
    EACH_BLOCK(iq4_nl, 32) {
        *scales++ = lc_half_to_float(b->d);
        take_bits(b->qs, 32, 4, 16, 0, codes);
        look_up(codes, 32, IQ4_VALUES);
    }
}

/* Doubled E2M1 values; the scales are halved. */
static const int8_t FP4_VALUES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

UNPACKER(mxfp4) {
    EACH_BLOCK(mxfp4, 32) {
        const uint32_t e = b->e; /* 2^(e - 128), which is subnormal for 0 and 1 */
        *scales++ = lc_float_from_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23);
        take_bits(b->qs, 32, 4, 16, 0, codes);
        look_up(codes, 32, FP4_VALUES);
    }
}

UNPACKER(nvfp4) {
    EACH_BLOCK(nvfp4, 64) {
        for (int g = 0; g < 4; g++) { /* unsigned E4M3; 0x7F stands for 0 */
            const int e = b->d[g] >> 3 & 15, m = b->d[g] & 7;
            const float power = lc_float_from_bits((uint32_t)(e + 127 - 11) << 23);
            const float scale = e == 0 ? (float)m * 0x1p-10f : (float)(8 + m) * power;
            *scales++ = b->d[g] == 0x7F ? 0 : scale;
        }
        take_bits(b->qs, 64, 4, 8, 0, codes);
        look_up(codes, 64, FP4_VALUES);
    }
}

/* --- super-blocks of 256: the K family ------------------------------------------------------------------------ */

UNPACKER(q2_k) {
    EACH_BLOCK(q2_k, 256) {
        const float d = lc_half_to_float(b->d), dmin = lc_half_to_float(b->dmin);
        for (int s = 0; s < 16; s++) {
            *scales++ = d * (float)(b->scales[s] & 15);
            *mins++ = dmin * (float)(b->scales[s] >> 4);
        }
        take_bits(b->qs, 256, 2, 32, 0, codes);
    }
}

UNPACKER(q3_k) {
    EACH_BLOCK(q3_k, 256) {
        const float d = lc_half_to_float(b->d);
        for (int s = 0; s < 16; s++)
            *scales++ = d * (float)((packed(b->scales, 4, 8, s) | packed(b->scales + 8, 2, 4, s) << 4) - 32);
        take_bits(b->qs, 256, 2, 32, 0, codes);
        take_bits(b->hmask, 256, 1, 32, 2, codes);
        shift_codes(codes, 256, -4);
    }
}

/* The scales and minimums of Q4_K and Q5_K, 6 bits each in 12 bytes. */
static void k_scales(const uint8_t *p, float d, float dmin, float *scales, float *mins) {
    for (int s = 0; s < 4; s++) {
        scales[s] = d * (float)(p[s] & 63);
        mins[s] = dmin * (float)(p[s + 4] & 63);
        scales[s + 4] = d * (float)((p[s + 8] & 15) | p[s] >> 6 << 4);
        mins[s + 4] = dmin * (float)(p[s + 8] >> 4 | p[s + 4] >> 6 << 4);
    }
}

UNPACKER(q4_k) {
    EACH_BLOCK(q4_k, 256) {
        k_scales(b->scales, lc_half_to_float(b->d), lc_half_to_float(b->dmin), scales, mins);
        scales += 8, mins += 8;
        take_bits(b->qs, 256, 4, 32, 0, codes);
    }
}

UNPACKER(q5_k) {
    EACH_BLOCK(q5_k, 256) {
        k_scales(b->scales, lc_half_to_float(b->d), lc_half_to_float(b->dmin), scales, mins);
        scales += 8, mins += 8;
        take_bits(b->qs, 256, 4, 32, 0, codes);
        take_bits(b->qh, 256, 1, 32, 4, codes);
    }
}

UNPACKER(q6_k) {
    EACH_BLOCK(q6_k, 256) {
        const float d = lc_half_to_float(b->d);
        for (int s = 0; s < 16; s++) *scales++ = d * (float)b->scales[s];
        take_bits(b->ql, 256, 4, 64, 0, codes);
        take_bits(b->qh, 256, 2, 32, 4, codes);
        shift_codes(codes, 256, -32);
    }
}

/* --- super-blocks of 256: tables and grids -------------------------------------------------------------------- */

UNPACKER(iq4_xs) {
    EACH_BLOCK(iq4_xs, 256) {
        const float d = lc_half_to_float(b->d);
        for (int s = 0; s < 8; s++)
            *scales++ = d * (float)((packed(b->scales_l, 4, 1, s) | (b->scales_h >> 2 * s & 3) << 4) - 32);
        take_bits(b->qs, 256, 4, 16, 0, codes);
        look_up(codes, 256, IQ4_VALUES);
    }
}

/* Seven sign bits and the eighth, which makes the number of minus signs even. */
static uint8_t even_signs(uint32_t seven) {
    uint32_t parity = seven ^ seven >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return (uint8_t)(seven | (parity & 1) << 7);
}

/* n values of a grid entry; bit i of `signs` set: value i is negative. */
static void put_signed(int8_t *codes, const int8_t *entry, int n, int signs) {
    for (int i = 0; i < n; i++) codes[i] = (int8_t)(signs >> i & 1 ? -entry[i] : entry[i]);
}

UNPACKER(iq2_xxs) {
    EACH_BLOCK(iq2_xxs, 256) {
        const float d = lc_half_to_float(b->d);
        for (int s = 0; s < 8; s++) {
            const uint32_t signs = b->qs[4 * s + 2] | (uint32_t)b->qs[4 * s + 3] << 16;
            *scales++ = d * (0.5f + (float)(signs >> 28)) * 0.25f;
            for (int g = 0; g < 4; g++) {
                const int index = b->qs[4 * s + g / 2] >> (8 * (g % 2)) & 255;
                put_signed(codes + 32 * s + 8 * g, grid + 8 * index, 8, even_signs(signs >> 7 * g & 127));
            }
        }
    }
}

UNPACKER(iq2_xs) {
    EACH_BLOCK(iq2_xs, 256) {
        const float d = lc_half_to_float(b->d);
        for (int s = 0; s < 16; s++) *scales++ = d * (0.5f + (float)packed(b->scales, 4, 1, s)) * 0.25f;
        for (int g = 0; g < 32; g++)
            put_signed(codes + 8 * g, grid + 8 * (b->qs[g] & 511), 8, even_signs(b->qs[g] >> 9));
    }
}

UNPACKER(iq2_s) {
    EACH_BLOCK(iq2_s, 256) {
        const float d = lc_half_to_float(b->d);
        for (int s = 0; s < 16; s++) *scales++ = d * (0.5f + (float)packed(b->scales, 4, 1, s)) * 0.25f;
        for (int g = 0; g < 32; g++)
            put_signed(codes + 8 * g, grid + 8 * (b->qs[g] | packed(b->qh, 2, 1, g) << 8), 8, b->signs[g]);
    }
}

UNPACKER(iq3_xxs) {
    EACH_BLOCK(iq3_xxs, 256) {
        const float d = lc_half_to_float(b->d);
        for (int s = 0; s < 8; s++) {
            *scales++ = d * (0.5f + (float)(b->scales_signs[s] >> 28)) * 0.5f;
            for (int g = 0; g < 8; g++) {
                const int signs = even_signs(b->scales_signs[s] >> 7 * (g / 2) & 127) >> (4 * (g % 2));
                put_signed(codes + 32 * s + 4 * g, grid + 4 * b->qs[8 * s + g], 4, signs);
            }
        }
    }
}

UNPACKER(iq3_s) {
    EACH_BLOCK(iq3_s, 256) {
        const float d = lc_half_to_float(b->d);
        for (int s = 0; s < 8; s++) *scales++ = d * (float)(1 + 2 * packed(b->scales, 4, 1, s));
        for (int g = 0; g < 64; g++)
            put_signed(codes + 4 * g, grid + 4 * (b->qs[g] | packed(b->qh, 1, 1, g) << 8), 4,
                       b->signs[g / 2] >> (4 * (g % 2)));
    }
}

/* Values of IQ1 are g ± 1/8: the codes are eight times that. */
static void put_shifted(int8_t *codes, const int8_t *entry, bool down) {
    for (int i = 0; i < 8; i++) codes[i] = (int8_t)(8 * entry[i] + (down ? -1 : 1));
}

UNPACKER(iq1_s) {
    EACH_BLOCK(iq1_s, 256) {
        const float d = lc_half_to_float(b->d) * 0.125f;
        for (int s = 0; s < 8; s++) {
            const int qh = b->qh[s];
            *scales++ = d * (float)(2 * (qh >> 12 & 7) + 1);
            for (int g = 0; g < 4; g++)
                put_shifted(codes + 32 * s + 8 * g, grid + 8 * (b->qs[4 * s + g] | (qh >> 3 * g & 7) << 8), qh >> 15);
        }
    }
}

UNPACKER(iq1_m) {
    EACH_BLOCK(iq1_m, 256) {
        uint16_t bits = 0; /* the top 4 bits of the four words are d */
        for (int s = 0; s < 4; s++) bits = (uint16_t)(bits | (b->scales[s] & 0xF000) >> (12 - 4 * s));
        const float d = lc_half_to_float(bits) * 0.125f;
        for (int s = 0; s < 16; s++) *scales++ = d * (float)(2 * (b->scales[s / 4] >> 3 * (s % 4) & 7) + 1);
        for (int g = 0; g < 32; g++) {
            const int high = packed(b->qh, 4, 1, g);
            put_shifted(codes + 8 * g, grid + 8 * (b->qs[g] | (high & 7) << 8), high >> 3);
        }
    }
}

/* --- super-blocks of 256: ternary ----------------------------------------------------------------------------- */

static void repeat_scale(float *scales, float d) {
    for (int s = 0; s < 8; s++) scales[s] = d;
}

UNPACKER(tq1_0) {
    static const uint8_t POWERS[5] = {1, 3, 9, 27, 81};
    EACH_BLOCK(tq1_0, 256) {
        repeat_scale(scales, lc_half_to_float(b->d));
        scales += 8;
        for (int i = 0; i < 256; i++) { /* bytes 0-31 and 32-47 hold five digits, the four of qh four */
            const int from = i < 160 ? 0 : i < 240 ? 160 : 240, run = i < 160 ? 32 : i < 240 ? 16 : 4;
            const int digit = (i - from) / run, byte = (i - from) % run;
            const uint8_t *data = i < 160 ? b->qs : i < 240 ? b->qs + 32 : b->qh;
            codes[i] = (int8_t)(((uint8_t)(data[byte] * POWERS[digit]) * 3 >> 8) - 1);
        }
    }
}

UNPACKER(tq2_0) {
    EACH_BLOCK(tq2_0, 256) {
        repeat_scale(scales, lc_half_to_float(b->d));
        scales += 8;
        take_bits(b->qs, 256, 2, 32, 0, codes);
        shift_codes(codes, 256, -1);
    }
}

/* --- the table ------------------------------------------------------------------------------------------------ */

/* Values a scale, whether there are minimums, bytes of the grid, and how to take it apart; one line a format. */
#define UNPACK_f32 0, false, 0, NULL
#define UNPACK_f16 0, false, 0, NULL
#define UNPACK_bf16 0, false, 0, NULL
#define UNPACK_q4_0 32, false, 0, unpack_q4_0
#define UNPACK_q4_1 32, true, 0, unpack_q4_1
#define UNPACK_q5_0 32, false, 0, unpack_q5_0
#define UNPACK_q5_1 32, true, 0, unpack_q5_1
#define UNPACK_q8_0 32, false, 0, unpack_q8_0
#define UNPACK_q2_k 16, true, 0, unpack_q2_k
#define UNPACK_q3_k 16, false, 0, unpack_q3_k
#define UNPACK_q4_k 32, true, 0, unpack_q4_k
#define UNPACK_q5_k 32, true, 0, unpack_q5_k
#define UNPACK_q6_k 16, false, 0, unpack_q6_k
#define UNPACK_iq4_nl 32, false, 0, unpack_iq4_nl
#define UNPACK_iq4_xs 32, false, 0, unpack_iq4_xs
#define UNPACK_iq1_s 32, false, 2048 * 8, unpack_iq1_s
#define UNPACK_iq1_m 16, false, 2048 * 8, unpack_iq1_m
#define UNPACK_iq2_xxs 32, false, 256 * 8, unpack_iq2_xxs
#define UNPACK_iq2_xs 16, false, 512 * 8, unpack_iq2_xs
#define UNPACK_iq2_s 16, false, 1024 * 8, unpack_iq2_s
#define UNPACK_iq3_xxs 32, false, 256 * 4, unpack_iq3_xxs
#define UNPACK_iq3_s 32, false, 512 * 4, unpack_iq3_s
#define UNPACK_tq1_0 32, false, 0, unpack_tq1_0
#define UNPACK_tq2_0 32, false, 0, unpack_tq2_0
#define UNPACK_mxfp4 32, false, 0, unpack_mxfp4
#define UNPACK_nvfp4 16, false, 0, unpack_nvfp4

static const lc_format FORMATS[LC_TYPE_END] = {
#define LC_ROW(name, id, elems, bytes, is_q8) [id] = {#name, elems, bytes, is_q8, UNPACK_##name},
    LC_FOR_EACH_TYPE(LC_ROW)
#undef LC_ROW
};

const lc_format *lc_format_of(int32_t type) {
    if (type < 0 || type >= LC_TYPE_END || FORMATS[type].name == NULL) return NULL;
    return &FORMATS[type];
}

static void dequantize_blocks(const lc_format *format, const uint8_t *blocks, const int8_t *grid, int64_t n, float *x) {
    enum { PIECE = 256 }; /* a multiple of every format's block */
    int8_t codes[PIECE];
    float scales[PIECE / 16], mins[PIECE / 16] = {0};
    for (int64_t i = 0; i < n; i += PIECE) {
        const int m = n - i < PIECE ? (int)(n - i) : PIECE;
        format->unpack(blocks + lc_row_bytes(format, i), m, grid, codes, scales, mins);
        for (int s = 0; s < m / format->sub; s++) {
            const float scale = scales[s], min = mins[s];
            const int8_t *from = codes + s * format->sub;
            float *to = x + i + s * format->sub;
            for (int j = 0; j < format->sub; j++) to[j] = scale * (float)from[j] - min;
        }
    }
}

void lc_dequantize_row(int32_t type, const uint8_t *blocks, const int8_t *grid, int64_t n, float *x) {
    switch (type) {
    case LC_TYPE_F32: memcpy(x, blocks, (size_t)n * sizeof *x); return;
    case LC_TYPE_F16:
    case LC_TYPE_BF16:
        for (int64_t i = 0; i < n; i++) {
            uint16_t bits;
            memcpy(&bits, blocks + 2 * i, 2);
            x[i] = type == LC_TYPE_F16 ? lc_half_to_float(bits) : lc_bf16_to_float(bits);
        }
        return;
    default: dequantize_blocks(lc_format_of(type), blocks, grid, n, x);
    }
}
