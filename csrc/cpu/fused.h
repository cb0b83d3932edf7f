/* Arithmetic that is the same in every kernel, whatever the machine: multiply and add with one rounding, and e^x. */
#ifndef LC_FUSED_H
#define LC_FUSED_H

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "half.h"

/* a · b + c, rounded once. Machines without the instruction: in double the product is exact and the sum is rounded to
 * odd, after which rounding to float cannot go wrong (S. Boldo, G. Melquiond: Emulation of FMA, 2008). */
static inline float lc_fma(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
    return fmaf(a, b, c);
#else
    const double product = (double)a * b, addend = c, sum = product + addend;
    const double part = sum - product, error = (product - (sum - part)) + (addend - part);
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    const bool is_inexact = error > 0 || error < 0; /* NaN where the sum is not finite */
    if (is_inexact && (bits & 1) == 0) bits += (error > 0) == (sum > 0) ? 1 : (uint64_t)-1;
    double odd;
    memcpy(&odd, &bits, sizeof odd);
    return (float)odd;
#endif
}

/* e^x to about one unit in the last place: 2^k times a polynomial in the rest, k = round(x / ln 2). 0 below -87, e^88
 * above 88; NaN stays NaN. Kernels with vectors repeat these steps. */
static inline float lc_exp(float x) {
    if (!(x >= -87.0f)) return isnan(x) ? x : 0.0f;
    const float v = x > 88.0f ? 88.0f : x;
    const float k = rintf(v * 1.44269504f);
    float r = lc_fma(-k, 0.693359375f, v);
    r = lc_fma(-k, -2.12194440e-4f, r);
    float p = 1.0f / 5040;
    p = lc_fma(p, r, 1.0f / 720);
    p = lc_fma(p, r, 1.0f / 120);
    p = lc_fma(p, r, 1.0f / 24);
    p = lc_fma(p, r, 1.0f / 6);
    p = lc_fma(p, r, 0.5f);
    p = lc_fma(p, r, 1.0f);
    p = lc_fma(p, r, 1.0f);
    return p * lc_float_from_bits((uint32_t)((int32_t)k + 127) << 23);
}

#endif
