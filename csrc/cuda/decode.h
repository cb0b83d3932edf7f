/* The block formats as they lie on a card, in planes (localcoder/backends/cuda/layout.py), taken apart 32 values at a
 * time. One struct a format:
 *
 *   BLOCK       values a block
 *   SUB         values that share a scale: 16 or 32
 *   GAP         a unit is two pieces of 16 values, the second GAP behind the first: 16 where a unit is 32 neighbours,
 *               32 where the low and high halves of the same bytes belong to neighbouring sub-blocks
 *   OFFSET      value = scale · (code - OFFSET) - min
 *   HAS_MINS    whether min is ever other than 0
 *   IS_Q8       whether activations are rounded to q8
 *   IS_RAW      whether it has no blocks
 *   Part        what its values are multiplied as on tensor cores where activations are not rounded: AsHalf or AsBf16
 *   IS_EXACT    whether one Part is all of a value (of bf16 as halves: of those above 2^-17)
 *   decode      unit number `u` of a row
 *
 * Unit u begins at value 32u (GAP 16), or at 64 (u / 2) + 16 (u % 2) (GAP 32), so two units in a row cover 64 values. */
#ifndef LC_CUDA_DECODE_H
#define LC_CUDA_DECODE_H

#include "intrinsics.h"
#include "planes.h"

/* codes[0..3]: the first piece, a value a byte, the first in the lowest; codes[4..7]: the second. */
struct Unit {
    lc_u32 codes[8];
    float scale[2], min[2];
};

template <int GAP>
LC_DEVICE int unit_start(int u) {
    return GAP == 16 ? 32 * u : 64 * (u >> 1) + 16 * (u & 1);
}

/* --- planes ------------------------------------------------------------------------------------------------------ */

LC_DEVICE int aligned(int n) { return (n + 15) & ~15; }

template <int... BYTES>
struct Planes {
    /* Plane number I of a row of n blocks. */
    template <int I>
    LC_MEMBER const lc_u8 *at(const lc_u8 *row, int n) {
        const int sizes[] = {BYTES...};
        LC_UNROLL for (int i = 0; i < I; i++) row += aligned(n * sizes[i]);
        return row;
    }
    LC_MEMBER int row_bytes(int n) {
        const int sizes[] = {BYTES...};
        int sum = 0;
        LC_UNROLL for (int i = 0; i < (int)sizeof...(BYTES); i++) sum += aligned(n * sizes[i]);
        return sum;
    }
    /* Moves block b of a row of n from the file's layout into planes. */
    LC_MEMBER void split(const lc_u8 *block, int b, int n, lc_u8 *row) {
        const int sizes[] = {BYTES...};
        LC_UNROLL for (int i = 0; i < (int)sizeof...(BYTES); i++) {
            for (int j = 0; j < sizes[i]; j++) row[b * sizes[i] + j] = *block++;
            row += aligned(n * sizes[i]);
        }
    }
};

/* --- small pieces of decoding ------------------------------------------------------------------------------------- */

LC_DEVICE float load_half(const lc_u8 *p) { return lc_half_to_float(lc_load<lc_u16>(p)); }

/* Bits 0 to 3 of x, one to the bottom of each byte. */
LC_DEVICE lc_u32 spread_bits(lc_u32 x) { return (x & 15) * 0x00204081u & 0x01010101u; }

LC_DEVICE void same_scale(Unit &unit, float scale, float min = 0) {
    unit.scale[0] = unit.scale[1] = scale;
    unit.min[0] = unit.min[1] = min;
}

LC_DEVICE void two_scales(Unit &unit, float first, float second, float min0 = 0, float min1 = 0) {
    unit.scale[0] = first;
    unit.scale[1] = second;
    unit.min[0] = min0;
    unit.min[1] = min1;
}

/* 4 bits from each byte: the low ones are the first piece, the high ones the second. */
LC_DEVICE void take_nibbles(Unit &unit, uint4 q) {
    const lc_u32 words[4] = {q.x, q.y, q.z, q.w};
    LC_UNROLL for (int i = 0; i < 4; i++) {
        unit.codes[i] = words[i] & 0x0F0F0F0Fu;
        unit.codes[4 + i] = words[i] >> 4 & 0x0F0F0F0Fu;
    }
}

/* `mask` of each byte shifted down by `shift` and up by `to`, or-ed into one piece. */
LC_DEVICE void add_bits(lc_u32 *codes, uint4 q, int shift, lc_u32 mask, int to) {
    const lc_u32 words[4] = {q.x, q.y, q.z, q.w};
    LC_UNROLL for (int i = 0; i < 4; i++) codes[i] |= (words[i] >> shift & mask) << to;
}

/* 32 single bits to bit 4 of each code. */
LC_DEVICE void add_fifth_bits(Unit &unit, lc_u32 bits) {
    LC_UNROLL for (int i = 0; i < 8; i++) unit.codes[i] |= spread_bits(bits >> 4 * i) << 4;
}

/* Codes 0 to 15 of a word replaced by a table's bytes. */
LC_DEVICE lc_u32 look_up(lc_u32 codes, lc_u32 t0, lc_u32 t1, lc_u32 t2, lc_u32 t3) {
    lc_u32 low = codes & 0x07070707u;
    low = (low | low >> 4) & 0x00FF00FFu;
    low = (low | low >> 8) & 0xFFFFu;
    const lc_u32 high = (codes >> 3 & 0x01010101u) * 255u;
    return (lc_permute_bytes(t0, t1, low) & ~high) | (lc_permute_bytes(t2, t3, low) & high);
}
LC_DEVICE void look_up_iq4(Unit &unit) { /* -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113 */
    LC_UNROLL for (int i = 0; i < 8; i++)
        unit.codes[i] = look_up(unit.codes[i], 0xBFAD9881u, 0xF6EADDCFu, 0x26190D01u, 0x71594535u);
}
LC_DEVICE void look_up_fp4(Unit &unit) { /* doubled E2M1: 0 1 2 3 4 6 8 12, then the same negated */
    LC_UNROLL for (int i = 0; i < 8; i++)
        unit.codes[i] = look_up(unit.codes[i], 0x03020100u, 0x0C080604u, 0xFDFEFF00u, 0xF4F8FAFCu);
}

/* Four values with the signs of bits 0 to 3 (1: negative). */
LC_DEVICE lc_u32 apply_signs(lc_u32 values, lc_u32 signs) { return lc_negate_bytes(values, spread_bits(signs) * 255u); }

/* Seven sign bits and the eighth, which makes the number of minus signs even. */
LC_DEVICE lc_u32 even_signs(lc_u32 bits) {
    lc_u32 parity = bits & 127;
    parity ^= parity >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return (bits & 127) | (parity & 1) << 7;
}

/* Entry `index` of a grid of 8 values, as codes 2g and 2g + 1. */
LC_DEVICE void put_entry(Unit &unit, int g, const lc_i8 *grid, int index, lc_u32 signs) {
    const uint2 entry = lc_load<uint2>(grid + 8 * index);
    unit.codes[2 * g] = apply_signs(entry.x, signs);
    unit.codes[2 * g + 1] = apply_signs(entry.y, signs >> 4);
}

/* IQ1: values are g ± 1/8, codes eight times that. */
LC_DEVICE void put_shifted(Unit &unit, int g, const lc_i8 *grid, int index, bool down) {
    const uint2 entry = lc_load<uint2>(grid + 8 * index);
    const lc_u32 shift = down ? 0xFFFFFFFFu : 0x01010101u;
    unit.codes[2 * g] = lc_add_bytes(entry.x << 3 & 0xF8F8F8F8u, shift);
    unit.codes[2 * g + 1] = lc_add_bytes(entry.y << 3 & 0xF8F8F8F8u, shift);
}

#define LC_FORMAT(name, block, sub, gap, offset, has_mins, is_q8)                                                     \
    struct Format_##name : Planes<LC_PLANES_##name> {                                                                 \
        typedef AsHalf Part;                                                                                          \
        enum { IS_RAW = 0, IS_EXACT = 0, BLOCK = block, SUB = sub, GAP = gap, OFFSET = offset, HAS_MINS = has_mins, IS_Q8 = is_q8 }; \
        LC_MEMBER void decode(const lc_u8 *row, int n, int u, const lc_i8 *grid, Unit &unit);                         \
    };                                                                                                                \
    LC_DEFINE_MEMBER void Format_##name::decode(const lc_u8 *row, int n, int u, const lc_i8 *grid, Unit &unit)
#define LC_NO_GRID (void)grid

/* --- blocks of 32 ------------------------------------------------------------------------------------------------- */

LC_FORMAT(q4_0, 32, 32, 16, 8, 0, 1) {
    LC_NO_GRID;
    take_nibbles(unit, lc_load<uint4>(at<1>(row, n) + 16 * u));
    same_scale(unit, load_half(at<0>(row, n) + 2 * u));
}

LC_FORMAT(q4_1, 32, 32, 16, 0, 1, 1) {
    LC_NO_GRID;
    take_nibbles(unit, lc_load<uint4>(at<1>(row, n) + 16 * u));
    const lc_u32 dm = lc_load<lc_u32>(at<0>(row, n) + 4 * u);
    same_scale(unit, lc_half_to_float((lc_u16)dm), -lc_half_to_float((lc_u16)(dm >> 16)));
}

LC_FORMAT(q5_0, 32, 32, 16, 16, 0, 1) {
    LC_NO_GRID;
    take_nibbles(unit, lc_load<uint4>(at<2>(row, n) + 16 * u));
    add_fifth_bits(unit, lc_load<lc_u32>(at<1>(row, n) + 4 * u));
    same_scale(unit, load_half(at<0>(row, n) + 2 * u));
}

LC_FORMAT(q5_1, 32, 32, 16, 0, 1, 1) {
    LC_NO_GRID;
    take_nibbles(unit, lc_load<uint4>(at<2>(row, n) + 16 * u));
    add_fifth_bits(unit, lc_load<lc_u32>(at<1>(row, n) + 4 * u));
    const lc_u32 dm = lc_load<lc_u32>(at<0>(row, n) + 4 * u);
    same_scale(unit, lc_half_to_float((lc_u16)dm), -lc_half_to_float((lc_u16)(dm >> 16)));
}

LC_FORMAT(q8_0, 32, 32, 16, 0, 0, 1) {
    LC_NO_GRID;
    const lc_u8 *p = at<1>(row, n) + 32 * u;
    const uint4 a = lc_load<uint4>(p), b = lc_load<uint4>(p + 16);
    const lc_u32 words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    LC_UNROLL for (int i = 0; i < 8; i++) unit.codes[i] = words[i];
    same_scale(unit, load_half(at<0>(row, n) + 2 * u));
}

LC_FORMAT(iq4_nl, 32, 32, 16, 0, 0, 1) {
    LC_NO_GRID;
    take_nibbles(unit, lc_load<uint4>(at<1>(row, n) + 16 * u));
    look_up_iq4(unit);
    same_scale(unit, load_half(at<0>(row, n) + 2 * u));
}

LC_FORMAT(mxfp4, 32, 32, 16, 0, 0, 0) {
    LC_NO_GRID;
    take_nibbles(unit, lc_load<uint4>(at<1>(row, n) + 16 * u));
    look_up_fp4(unit);
    const lc_u32 e = at<0>(row, n)[u]; /* 2^(e - 128), which is subnormal for 0 and 1 */
    same_scale(unit, lc_bits_to_float(e < 2 ? 0x00200000u << e : (e - 1) << 23));
}

/* Unsigned E4M3, halved; 0x7F stands for 0. */
LC_DEVICE float e4m3(lc_u32 x) {
    const int e = (int)(x >> 3 & 15), m = (int)(x & 7);
    const float power = lc_bits_to_float((lc_u32)((e == 0 ? 1 : e) + 127 - 11) << 23);
    return x == 0x7F ? 0.0f : (float)(e == 0 ? m : 8 + m) * power;
}

LC_FORMAT(nvfp4, 64, 16, 16, 0, 0, 0) { /* 16 values in 8 bytes: the low halves first */
    LC_NO_GRID;
    const uint4 q = lc_load<uint4>(at<1>(row, n) + 16 * u);
    const lc_u32 words[4] = {q.x, q.y, q.z, q.w};
    LC_UNROLL for (int i = 0; i < 4; i++) {
        const int to = (i >> 1) * 4 + (i & 1);
        unit.codes[to] = words[i] & 0x0F0F0F0Fu;
        unit.codes[to + 2] = words[i] >> 4 & 0x0F0F0F0Fu;
    }
    look_up_fp4(unit);
    const lc_u32 scales = lc_load<lc_u16>(at<0>(row, n) + 2 * u);
    two_scales(unit, e4m3(scales & 255), e4m3(scales >> 8));
}

/* --- super-blocks of 256: the K family ---------------------------------------------------------------------------- */
/* Unit u is in block u / 8; c = its 64 values' number in the block, s = which 16 of each 32. */
#define LC_K_POSITION const int b = u >> 3, c = u >> 1 & 3, s = u & 1

LC_FORMAT(q2_k, 256, 16, 32, 0, 1, 1) {
    LC_NO_GRID;
    LC_K_POSITION;
    const uint4 q = lc_load<uint4>(at<1>(row, n) + 64 * b + 32 * (c >> 1) + 16 * s);
    LC_UNROLL for (int i = 0; i < 8; i++) unit.codes[i] = 0;
    add_bits(unit.codes, q, 4 * (c & 1), 0x03030303u, 0);
    add_bits(unit.codes + 4, q, 4 * (c & 1) + 2, 0x03030303u, 0);
    const lc_u32 scales = lc_load<lc_u32>(at<0>(row, n) + 16 * b + 4 * c) >> 8 * s;
    const lc_u32 dm = lc_load<lc_u32>(at<2>(row, n) + 4 * b);
    const float d = lc_half_to_float((lc_u16)dm), dmin = lc_half_to_float((lc_u16)(dm >> 16));
    two_scales(unit, d * (float)(scales & 15), d * (float)(scales >> 16 & 15), dmin * (float)(scales >> 4 & 15),
               dmin * (float)(scales >> 20 & 15));
}

LC_FORMAT(q3_k, 256, 16, 32, 4, 0, 1) {
    LC_NO_GRID;
    LC_K_POSITION;
    const uint4 q = lc_load<uint4>(at<1>(row, n) + 64 * b + 32 * (c >> 1) + 16 * s);
    const uint4 h = lc_load<uint4>(at<0>(row, n) + 32 * b + 16 * s);
    LC_UNROLL for (int i = 0; i < 8; i++) unit.codes[i] = 0;
    add_bits(unit.codes, q, 4 * (c & 1), 0x03030303u, 0);
    add_bits(unit.codes + 4, q, 4 * (c & 1) + 2, 0x03030303u, 0);
    add_bits(unit.codes, h, 2 * c, 0x01010101u, 2);
    add_bits(unit.codes + 4, h, 2 * c + 1, 0x01010101u, 2);
    /* Scales 4c + s and 4c + 2 + s: 4 bits in bytes 0-7, 2 more in bytes 8-11. */
    const lc_u8 *p = at<2>(row, n) + 12 * b;
    const lc_u32 low = lc_load<lc_u32>(p + 4 * (c & 1)) >> 8 * s >> 4 * (c >> 1);
    const lc_u32 high = lc_load<lc_u32>(p + 8) >> 8 * s >> 2 * c;
    const float d = load_half(at<3>(row, n) + 2 * b);
    two_scales(unit, d * (float)((int)((low & 15) | (high & 3) << 4) - 32),
               d * (float)((int)((low >> 16 & 15) | (high >> 16 & 3) << 4) - 32));
}

/* Scales and minimums 2c and 2c + 1 of Q4_K and Q5_K, 6 bits each; h: d, dmin and the 12 bytes. */
LC_DEVICE void k_scales(Unit &unit, uint4 h, int c) {
    const int k = 16 * (c & 1);
    const lc_u32 p0 = h.y >> k, p1 = h.z >> k, p2 = h.w >> k;
    const lc_u32 scales = c < 2 ? p0 & 0x3F3Fu : (p2 & 0x0F0Fu) | (p0 & 0xC0C0u) >> 2;
    const lc_u32 mins = c < 2 ? p1 & 0x3F3Fu : (p2 >> 4 & 0x0F0Fu) | (p1 & 0xC0C0u) >> 2;
    const float d = lc_half_to_float((lc_u16)h.x), dmin = lc_half_to_float((lc_u16)(h.x >> 16));
    two_scales(unit, d * (float)(scales & 255), d * (float)(scales >> 8), dmin * (float)(mins & 255),
               dmin * (float)(mins >> 8));
}

LC_FORMAT(q4_k, 256, 32, 32, 0, 1, 1) {
    LC_NO_GRID;
    LC_K_POSITION;
    take_nibbles(unit, lc_load<uint4>(at<1>(row, n) + 128 * b + 32 * c + 16 * s));
    k_scales(unit, lc_load<uint4>(row + 16 * b), c);
}

LC_FORMAT(q5_k, 256, 32, 32, 0, 1, 1) {
    LC_NO_GRID;
    LC_K_POSITION;
    take_nibbles(unit, lc_load<uint4>(at<2>(row, n) + 128 * b + 32 * c + 16 * s));
    const uint4 h = lc_load<uint4>(at<1>(row, n) + 32 * b + 16 * s);
    add_bits(unit.codes, h, 2 * c, 0x01010101u, 4);
    add_bits(unit.codes + 4, h, 2 * c + 1, 0x01010101u, 4);
    k_scales(unit, lc_load<uint4>(row + 16 * b), c);
}

LC_FORMAT(q6_k, 256, 16, 32, 32, 0, 1) {
    LC_NO_GRID;
    LC_K_POSITION;
    const lc_u8 *low = row + 128 * b + 64 * (c >> 1) + 16 * s;
    const uint4 h = lc_load<uint4>(at<1>(row, n) + 64 * b + 32 * (c >> 1) + 16 * s);
    const int high = 4 * (c & 1);
    LC_UNROLL for (int i = 0; i < 8; i++) unit.codes[i] = 0;
    add_bits(unit.codes, lc_load<uint4>(low), high, 0x0F0F0F0Fu, 0);
    add_bits(unit.codes + 4, lc_load<uint4>(low + 32), high, 0x0F0F0F0Fu, 0);
    add_bits(unit.codes, h, high, 0x03030303u, 4);
    add_bits(unit.codes + 4, h, high + 2, 0x03030303u, 4);
    const lc_u32 scales = lc_load<lc_u32>(at<2>(row, n) + 16 * b + 4 * c) >> 8 * s;
    const float d = load_half(at<3>(row, n) + 2 * b);
    two_scales(unit, d * (float)(lc_i8)scales, d * (float)(lc_i8)(scales >> 16));
}

/* --- super-blocks of 256: tables and grids ------------------------------------------------------------------------ */
/* Unit u is sub-block s of block b. */
#define LC_POSITION const int b = u >> 3, s = u & 7

LC_FORMAT(iq4_xs, 256, 32, 16, 0, 0, 1) {
    LC_NO_GRID;
    LC_POSITION;
    take_nibbles(unit, lc_load<uint4>(at<1>(row, n) + 16 * u));
    look_up_iq4(unit);
    const uint2 h = lc_load<uint2>(row + 8 * b); /* d, 16 high bits, 32 low bits */
    const int scale = (int)((h.y >> 4 * s & 15) | (h.x >> (16 + 2 * s) & 3) << 4) - 32;
    same_scale(unit, lc_half_to_float((lc_u16)h.x) * (float)scale);
}

LC_FORMAT(iq2_xxs, 256, 32, 16, 0, 0, 0) {
    LC_POSITION;
    (void)s;
    const uint2 q = lc_load<uint2>(at<1>(row, n) + 8 * u);
    LC_UNROLL for (int g = 0; g < 4; g++)
        put_entry(unit, g, grid, (int)(q.x >> 8 * g & 255), even_signs(q.y >> 7 * g));
    same_scale(unit, load_half(row + 2 * b) * (0.5f + (float)(q.y >> 28)) * 0.25f);
}

/* Scales of IQ2_XS and IQ2_S: 4 bits for 16 values. */
LC_DEVICE void iq2_scales(Unit &unit, float d, lc_u32 scales) {
    two_scales(unit, d * (0.5f + (float)(scales & 15)) * 0.25f, d * (0.5f + (float)(scales >> 4)) * 0.25f);
}

LC_FORMAT(iq2_xs, 256, 16, 16, 0, 0, 0) {
    LC_POSITION;
    (void)s;
    const uint2 q = lc_load<uint2>(at<1>(row, n) + 8 * u);
    LC_UNROLL for (int g = 0; g < 4; g++) {
        const lc_u32 word = (g < 2 ? q.x : q.y) >> 16 * (g & 1) & 0xFFFF;
        put_entry(unit, g, grid, (int)(word & 511), even_signs(word >> 9));
    }
    iq2_scales(unit, load_half(row + 2 * b), at<2>(row, n)[u]);
}

LC_FORMAT(iq2_s, 256, 16, 16, 0, 0, 0) {
    LC_POSITION;
    (void)s;
    const lc_u32 q = lc_load<lc_u32>(at<1>(row, n) + 4 * u), signs = lc_load<lc_u32>(at<2>(row, n) + 4 * u);
    const lc_u32 high = at<3>(row, n)[u];
    LC_UNROLL for (int g = 0; g < 4; g++)
        put_entry(unit, g, grid, (int)((q >> 8 * g & 255) | (high >> 2 * g & 3) << 8), signs >> 8 * g & 255);
    iq2_scales(unit, load_half(row + 2 * b), at<4>(row, n)[u]);
}

LC_FORMAT(iq3_xxs, 256, 32, 16, 0, 0, 0) {
    LC_POSITION;
    (void)s;
    const uint2 q = lc_load<uint2>(at<1>(row, n) + 8 * u);
    const lc_u32 scale_signs = lc_load<lc_u32>(at<2>(row, n) + 4 * u);
    LC_UNROLL for (int g = 0; g < 8; g++) {
        const lc_u32 index = (g < 4 ? q.x : q.y) >> 8 * (g & 3) & 255;
        unit.codes[g] =
            apply_signs(lc_load<lc_u32>(grid + 4 * index), even_signs(scale_signs >> 7 * (g >> 1)) >> 4 * (g & 1));
    }
    same_scale(unit, load_half(row + 2 * b) * (0.5f + (float)(scale_signs >> 28)) * 0.5f);
}

LC_FORMAT(iq3_s, 256, 32, 16, 0, 0, 0) {
    LC_POSITION;
    const uint2 q = lc_load<uint2>(at<1>(row, n) + 8 * u);
    const lc_u32 high = at<2>(row, n)[u], signs = lc_load<lc_u32>(at<3>(row, n) + 4 * u);
    LC_UNROLL for (int g = 0; g < 8; g++) {
        const lc_u32 index = ((g < 4 ? q.x : q.y) >> 8 * (g & 3) & 255) | (high >> g & 1) << 8;
        unit.codes[g] = apply_signs(lc_load<lc_u32>(grid + 4 * index), signs >> 4 * g);
    }
    const lc_u32 scale = (lc_u32)at<4>(row, n)[4 * b + (s >> 1)] >> 4 * (s & 1) & 15;
    same_scale(unit, load_half(row + 2 * b) * (float)(1 + 2 * scale));
}

LC_FORMAT(iq1_s, 256, 32, 16, 0, 0, 0) {
    LC_POSITION;
    (void)s;
    const lc_u32 q = lc_load<lc_u32>(at<1>(row, n) + 4 * u), high = lc_load<lc_u16>(at<2>(row, n) + 2 * u);
    LC_UNROLL for (int g = 0; g < 4; g++)
        put_shifted(unit, g, grid, (int)((q >> 8 * g & 255) | (high >> 3 * g & 7) << 8), high >> 15);
    same_scale(unit, load_half(row + 2 * b) * 0.125f * (float)(2 * (high >> 12 & 7) + 1));
}

LC_FORMAT(iq1_m, 256, 16, 16, 0, 0, 0) {
    LC_POSITION;
    const lc_u32 q = lc_load<lc_u32>(row + 4 * u), high = lc_load<lc_u16>(at<1>(row, n) + 2 * u);
    LC_UNROLL for (int g = 0; g < 4; g++)
        put_shifted(unit, g, grid, (int)((q >> 8 * g & 255) | (high >> 4 * g & 7) << 8), high >> 4 * g & 8);
    const uint2 w = lc_load<uint2>(at<2>(row, n) + 8 * b); /* four words; the top 4 bits of each are d */
    const lc_u32 bits = (w.x >> 12 & 15) | (w.x >> 28) << 4 | (w.y >> 12 & 15) << 8 | (w.y >> 28) << 12;
    const float d = lc_half_to_float((lc_u16)bits) * 0.125f;
    const lc_u32 scales = (s < 4 ? w.x : w.y) >> 16 * (s >> 1 & 1) >> 6 * (s & 1);
    two_scales(unit, d * (float)(2 * (scales & 7) + 1), d * (float)(2 * (scales >> 3 & 7) + 1));
}

/* --- super-blocks of 256: ternary --------------------------------------------------------------------------------- */

/* Digit number `digit` of four bytes that hold five base-3 digits each, from the highest down. */
LC_DEVICE lc_u32 take_digits(lc_u32 word, int digit) {
    const lc_u32 power = digit == 0 ? 1 : digit == 1 ? 3 : digit == 2 ? 9 : digit == 3 ? 27 : 81;
    lc_u32 out = 0;
    LC_UNROLL for (int i = 0; i < 32; i += 8) out |= ((word >> i & 255) * power & 255) * 3 >> 8 << i;
    return out;
}

LC_FORMAT(tq1_0, 256, 32, 16, 1, 0, 0) { /* bytes 0-31 and 32-47 hold five digits, the four of qh four */
    LC_NO_GRID;
    LC_POSITION;
    const lc_u8 *q = row + 48 * b;
    LC_UNROLL for (int i = 0; i < 8; i++) {
        if (s < 5)
            unit.codes[i] = take_digits(lc_load<lc_u32>(q + 4 * i), s);
        else if (s < 7 || i < 4)
            unit.codes[i] = take_digits(lc_load<lc_u32>(q + 32 + 4 * (i & 3)), 2 * (s - 5) + (i >> 2));
        else
            unit.codes[i] = take_digits(lc_load<lc_u32>(at<1>(row, n) + 4 * b), i - 4);
    }
    same_scale(unit, load_half(at<2>(row, n) + 2 * b));
}

LC_FORMAT(tq2_0, 256, 32, 16, 1, 0, 0) {
    LC_NO_GRID;
    LC_POSITION;
    const lc_u8 *q = row + 64 * b + 32 * (s >> 2);
    LC_UNROLL for (int i = 0; i < 8; i++) unit.codes[i] = 0;
    add_bits(unit.codes, lc_load<uint4>(q), 2 * (s & 3), 0x03030303u, 0);
    add_bits(unit.codes + 4, lc_load<uint4>(q + 16), 2 * (s & 3), 0x03030303u, 0);
    same_scale(unit, load_half(at<1>(row, n) + 2 * b));
}

/* --- formats without blocks ---------------------------------------------------------------------------------------- */

struct RawFormat {
    enum { IS_RAW = 1, BLOCK = 1, SUB = 32, GAP = 16, OFFSET = 0, HAS_MINS = 0, IS_Q8 = 0 };
};

/* value: one, of any alignment. load8: eight, of which the first is 16-byte aligned. */
struct Format_f32 : RawFormat, Planes<LC_PLANES_f32> {
    typedef AsHalf Part;
    enum { BYTES = 4, IS_EXACT = 0 };
    LC_MEMBER float value(const lc_u8 *p) { return lc_load<float>(p); }
    LC_MEMBER void load8(const lc_u8 *p, float (&v)[8]) {
        const float4 a = lc_load<float4>(p), b = lc_load<float4>(p + 16);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    }
};

template <class F>
LC_DEVICE void load8_of_16_bits(const lc_u8 *p, float (&v)[8]) {
    const uint4 q = lc_load<uint4>(p);
    const lc_u32 words[4] = {q.x, q.y, q.z, q.w};
    LC_UNROLL for (int i = 0; i < 8; i++) v[i] = F::from_bits((lc_u16)(words[i >> 1] >> 16 * (i & 1)));
}

struct Format_f16 : RawFormat, Planes<LC_PLANES_f16> {
    typedef AsHalf Part;
    enum { BYTES = 2, IS_EXACT = 1 };
    LC_MEMBER float from_bits(lc_u16 bits) { return lc_half_to_float(bits); }
    LC_MEMBER float value(const lc_u8 *p) { return from_bits(lc_load<lc_u16>(p)); }
    LC_MEMBER void load8(const lc_u8 *p, float (&v)[8]) { load8_of_16_bits<Format_f16>(p, v); }
};

struct Format_bf16 : RawFormat, Planes<LC_PLANES_bf16> {
#if LC_HAS_BF16
    typedef AsBf16 Part;
#else
    typedef AsHalf Part;
#endif
    enum { BYTES = 2, IS_EXACT = 1 };
    LC_MEMBER float from_bits(lc_u16 bits) { return lc_bf16_to_float(bits); }
    LC_MEMBER float value(const lc_u8 *p) { return from_bits(lc_load<lc_u16>(p)); }
    LC_MEMBER void load8(const lc_u8 *p, float (&v)[8]) { load8_of_16_bits<Format_bf16>(p, v); }
};

#endif
