/* IEEE half and bfloat16 in plain C, bit for bit what the hardware does (round to nearest even). */
#ifndef LC_HALF_H
#define LC_HALF_H

#include <stdint.h>
#include <string.h>

static inline float lc_float_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t lc_float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float lc_half_to_float(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    const uint32_t magnitude = h & 0x7FFF;
    if (magnitude < 0x0400) /* zero and subnormals: an integer times 2^-24 */
        return lc_float_from_bits(sign | lc_float_bits((float)magnitude * 0x1p-24f));
    if (magnitude >= 0x7C00) { /* infinity; a NaN becomes quiet */
        const uint32_t quiet = magnitude > 0x7C00 ? 0x400000u : 0;
        return lc_float_from_bits(sign | 0x7F800000u | quiet | (magnitude & 0x3FF) << 13);
    }
    return lc_float_from_bits(sign | ((magnitude << 13) + ((127 - 15) << 23)));
}

static inline uint16_t lc_float_to_half(float x) {
    const uint32_t bits = lc_float_bits(x);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return (uint16_t)(sign | 0x7E00 | (magnitude >> 13 & 0x1FF));
    if (magnitude >= 0x47800000) return (uint16_t)(sign | 0x7C00); /* 65536 and more */
    if (magnitude < 0x38800000) { /* below 2^-14: adding 1/2 leaves the rounded integer in the low bits */
        const float shifted = lc_float_from_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (lc_float_bits(shifted) - 0x3F000000u));
    }
    magnitude += 0xFFF + (magnitude >> 13 & 1);
    return (uint16_t)(sign | ((magnitude - ((127 - 15) << 23)) >> 13));
}

static inline float lc_bf16_to_float(uint16_t b) { return lc_float_from_bits((uint32_t)b << 16); }

static inline uint16_t lc_float_to_bf16(float x) {
    const uint32_t bits = lc_float_bits(x);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

#endif
