/* The searches of all block formats for one instruction set: the text of every quantize_search_<isa>.c.
 *
 * The including file defines LC_LANES and LC_SEARCHES, the name of the function that fills the kernel table. */
#include <stddef.h>
#include <string.h>

#include "half.h"
#include "quantize_super.h"

/* Blocks in the lanes: where each is written, and how many there are. */
typedef struct lc_lanes {
    uint8_t *out[LC_LANES];
    int n;
} lc_lanes;

typedef void (*lc_encode_fn)(const lc_lanes *lanes, const lc_vf *x, const lc_vf *w);

/* One block a lane: to[j] = value j of each; block l starts at from[l]. */
static void lc_load(lc_vf *to, const float *const *from, int elems) {
    float *flat = (float *)to;
    for (int j = 0; j < elems; j++)
        for (int l = 0; l < LC_LANES; l++) flat[j * LC_LANES + l] = from[l][j];
}

static bool lc_all_finite(const lc_vf *x, int n) {
    lc_vi bad = {0};
    for (int j = 0; j < n; j++) bad |= x[j] - x[j] != 0.0f;
    int any = 0;
    for (int l = 0; l < LC_LANES; l++) any |= bad[l];
    return any == 0;
}

/* n codes' bits first_bit ... first_bit + n_bits - 1 -> n · n_bits / 32 words of little-endian bytes, packed as
 * localcoder/quants/bits.py says. */
LC_INLINE void lc_pack(const lc_vu *codes, int n, int first_bit, int n_bits, int run, lc_vu *words) {
    const uint32_t mask = (1u << n_bits) - 1;
    const int n_runs = 8 / n_bits;
    for (int i = 0; i < n * n_bits / 8; i++) {
        lc_vu byte = {0};
        for (int s = 0; s < n_runs; s++)
            byte |= (codes[(i / run * n_runs + s) * run + i % run] >> first_bit & mask) << (s * n_bits);
        if (i % 4 != 0) byte = words[i / 4] | byte << (8 * (i % 4));
        words[i / 4] = byte;
    }
}

/* Writes n_words words to every block, `offset` bytes from its start. */
LC_INLINE void lc_store(const lc_lanes *lanes, size_t offset, const lc_vu *words, int n_words) {
    for (int l = 0; l < lanes->n; l++) {
        for (int i = 0; i < n_words; i++) {
            const uint32_t word = words[i][l];
            memcpy(lanes->out[l] + offset + 4 * i, &word, 4);
        }
    }
}

LC_INLINE void lc_store_half(const lc_lanes *lanes, size_t offset, lc_vf d) {
    for (int l = 0; l < lanes->n; l++) {
        const uint16_t bits = lc_float_to_half(d[l]);
        memcpy(lanes->out[l] + offset, &bits, 2);
    }
}

LC_INLINE void lc_store_packed(const lc_lanes *lanes, size_t offset, const lc_vu *codes, int n, int first_bit,
                               int n_bits, int run) {
    lc_vu words[LC_SUPER_BLOCK / 4];
    lc_pack(codes, n, first_bit, n_bits, run, words);
    lc_store(lanes, offset, words, n * n_bits / 32);
}

#define AT(name, field) offsetof(lc_block_##name, field)

/* Every lc_encode_<type> searches the blocks in x (w: weights, or NULL) and writes them. Searches are inlined twice, so
 * that there is one that knows of no weights. */

LC_INLINE void lc_signed_codes(const lc_vf *x, int k, lc_levels levels, lc_vf d, lc_vu *codes) {
    const lc_vf inverse = lc_reciprocal_or_zero(d);
    for (int j = 0; j < k; j++) codes[j] = lc_codes(levels, lc_nearest(levels, x[j] * inverse));
}

LC_INLINE lc_vf lc_encode_signed(const lc_vf *x, const lc_vf *w, const lc_scale_search *search, lc_vu *codes) {
    const lc_vf best = w == NULL ? lc_best_scale(x, NULL, 32, search) : lc_best_scale(x, w, 32, search);
    const lc_vf d = lc_to_half(best);
    lc_signed_codes(x, 32, search->levels, d, codes);
    return d;
}

LC_INLINE void lc_encode_q4_0(const lc_lanes *lanes, const lc_vf *x, const lc_vf *w) {
    lc_vu codes[32];
    lc_store_half(lanes, AT(q4_0, d), lc_encode_signed(x, w, &LC_SEARCH_Q4_0, codes));
    lc_store_packed(lanes, AT(q4_0, qs), codes, 32, 0, 4, 16);
}

LC_INLINE void lc_encode_iq4_nl(const lc_lanes *lanes, const lc_vf *x, const lc_vf *w) {
    lc_vu codes[32];
    lc_store_half(lanes, AT(iq4_nl, d), lc_encode_signed(x, w, &LC_SEARCH_IQ4_NL, codes));
    lc_store_packed(lanes, AT(iq4_nl, qs), codes, 32, 0, 4, 16);
}

LC_INLINE void lc_encode_q5_0(const lc_lanes *lanes, const lc_vf *x, const lc_vf *w) {
    lc_vu codes[32];
    lc_store_half(lanes, AT(q5_0, d), lc_encode_signed(x, w, &LC_SEARCH_Q5_0, codes));
    lc_store_packed(lanes, AT(q5_0, qh), codes, 32, 4, 1, 1);
    lc_store_packed(lanes, AT(q5_0, qs), codes, 32, 0, 4, 16);
}

LC_INLINE void lc_encode_q8_0(const lc_lanes *lanes, const lc_vf *x, const lc_vf *w) {
    const lc_scale_search *search = &LC_SEARCH_Q8_0;
    const lc_vf best = w == NULL ? lc_best_scale(x, NULL, 32, search) : lc_best_scale(x, w, 32, search);
    const lc_vf d = w == NULL ? lc_best_half(x, NULL, 32, search->levels, best)
                              : lc_best_half(x, w, 32, search->levels, best);
    const lc_vf inverse = lc_reciprocal_or_zero(d);
    lc_vu codes[32];
    for (int j = 0; j < 32; j++)
        codes[j] = (lc_vu)__builtin_convertvector(lc_nearest(search->levels, x[j] * inverse), lc_vi);
    lc_store_half(lanes, AT(q8_0, d), d);
    lc_store_packed(lanes, AT(q8_0, qs), codes, 32, 0, 8, 1);
}

LC_INLINE void lc_encode_scale_min(const lc_vf *x, const lc_vf *w, const lc_offset_search *search, lc_vf *d,
                                   lc_vf *m, lc_vu *codes) {
    const lc_scale_offset best =
        w == NULL ? lc_best_scale_offset(x, NULL, 32, search, true) : lc_best_scale_offset(x, w, 32, search, true);
    *d = lc_to_half(best.d);
    *m = lc_to_half(-best.o);
    const lc_vf inverse = lc_reciprocal_or_zero(*d);
    const lc_levels levels = {false, 0, search->last};
    for (int j = 0; j < 32; j++) codes[j] = lc_codes(levels, lc_nearest(levels, (x[j] - *m) * inverse));
}

LC_INLINE void lc_encode_q4_1(const lc_lanes *lanes, const lc_vf *x, const lc_vf *w) {
    lc_vf d, m;
    lc_vu codes[32];
    lc_encode_scale_min(x, w, &LC_SEARCH_Q4_1, &d, &m, codes);
    lc_store_half(lanes, AT(q4_1, d), d);
    lc_store_half(lanes, AT(q4_1, m), m);
    lc_store_packed(lanes, AT(q4_1, qs), codes, 32, 0, 4, 16);
}

LC_INLINE void lc_encode_q5_1(const lc_lanes *lanes, const lc_vf *x, const lc_vf *w) {
    lc_vf d, m;
    lc_vu codes[32];
    lc_encode_scale_min(x, w, &LC_SEARCH_Q5_1, &d, &m, codes);
    lc_store_half(lanes, AT(q5_1, d), d);
    lc_store_half(lanes, AT(q5_1, m), m);
    lc_store_packed(lanes, AT(q5_1, qh), codes, 32, 4, 1, 1);
    lc_store_packed(lanes, AT(q5_1, qs), codes, 32, 0, 4, 16);
}

/* Codes of a super-block, and its integer scales, biased to count from 0. */
LC_INLINE lc_vf lc_encode_signed_super(const lc_vf *x, const lc_vf *w, const lc_signed_super *spec, lc_vu *scales,
                                       lc_vu *codes) {
    lc_signed_fit fit;
    if (w == NULL)
        lc_fit_signed(&fit, x, NULL, spec);
    else
        lc_fit_signed(&fit, x, w, spec);
    const int k = LC_SUPER_BLOCK / spec->n_sub;
    for (int sub = 0; sub < spec->n_sub; sub++) {
        lc_signed_codes(x + sub * k, k, spec->block->levels, fit.d * fit.scales[sub], codes + sub * k);
        scales[sub] = lc_codes(spec->scales, fit.scales[sub]);
    }
    return fit.d;
}

LC_INLINE void lc_encode_q3_k(const lc_lanes *lanes, const lc_vf *x, const lc_vf *w) {
    lc_vu scales[16], codes[256];
    lc_store_half(lanes, AT(q3_k, d), lc_encode_signed_super(x, w, &LC_SEARCH_Q3_K, scales, codes));
    lc_store_packed(lanes, AT(q3_k, scales), scales, 16, 0, 4, 8);
    lc_store_packed(lanes, AT(q3_k, scales) + 8, scales, 16, 4, 2, 4);
    lc_store_packed(lanes, AT(q3_k, qs), codes, 256, 0, 2, 32);
    lc_store_packed(lanes, AT(q3_k, hmask), codes, 256, 2, 1, 32);
}

LC_INLINE void lc_encode_q6_k(const lc_lanes *lanes, const lc_vf *x, const lc_vf *w) {
    lc_vu scales[16], codes[256];
    lc_store_half(lanes, AT(q6_k, d), lc_encode_signed_super(x, w, &LC_SEARCH_Q6_K, scales, codes));
    for (int sub = 0; sub < 16; sub++) scales[sub] += (uint32_t)LC_SEARCH_Q6_K.scales.first; /* stored signed */
    lc_store_packed(lanes, AT(q6_k, scales), scales, 16, 0, 8, 1);
    lc_store_packed(lanes, AT(q6_k, ql), codes, 256, 0, 4, 64);
    lc_store_packed(lanes, AT(q6_k, qh), codes, 256, 4, 2, 32);
}

LC_INLINE void lc_encode_iq4_xs(const lc_lanes *lanes, const lc_vf *x, const lc_vf *w) {
    lc_vu scales[8], codes[256], high = {0};
    lc_store_half(lanes, AT(iq4_xs, d), lc_encode_signed_super(x, w, &LC_SEARCH_IQ4_XS, scales, codes));
    for (int sub = 0; sub < 8; sub++) high |= scales[sub] >> 4 << (2 * sub);
    for (int l = 0; l < lanes->n; l++) {
        const uint16_t bits = (uint16_t)high[l];
        memcpy(lanes->out[l] + AT(iq4_xs, scales_h), &bits, 2);
    }
    lc_store_packed(lanes, AT(iq4_xs, scales_l), scales, 8, 0, 4, 1);
    lc_store_packed(lanes, AT(iq4_xs, qs), codes, 256, 0, 4, 16);
}

typedef struct lc_scale_min_codes {
    lc_vf d, dmin;
    lc_vu scales[LC_MAX_SUB], mins[LC_MAX_SUB], codes[LC_SUPER_BLOCK];
} lc_scale_min_codes;

LC_INLINE void lc_encode_scale_min_super(const lc_vf *x, const lc_vf *w, const lc_scale_min_super *spec,
                                         lc_scale_min_codes *to) {
    lc_scale_min_fit fit;
    if (w == NULL)
        lc_fit_scale_min(&fit, x, NULL, spec);
    else
        lc_fit_scale_min(&fit, x, w, spec);
    const int k = LC_SUPER_BLOCK / spec->n_sub;
    const lc_levels levels = {false, 0, 0};
    for (int sub = 0; sub < spec->n_sub; sub++) {
        const lc_vf offset = fit.dmin * fit.mins[sub], inverse = lc_reciprocal_or_zero(fit.d * fit.scales[sub]);
        for (int j = sub * k; j < (sub + 1) * k; j++)
            to->codes[j] = lc_codes(levels, lc_code(x[j], inverse, offset, spec->block.last));
        to->scales[sub] = lc_codes(levels, fit.scales[sub]);
        to->mins[sub] = lc_codes(levels, fit.mins[sub]);
    }
    to->d = fit.d;
    to->dmin = fit.dmin;
}

LC_INLINE void lc_encode_q2_k(const lc_lanes *lanes, const lc_vf *x, const lc_vf *w) {
    lc_scale_min_codes c;
    lc_encode_scale_min_super(x, w, &LC_SEARCH_Q2_K, &c);
    for (int sub = 0; sub < 16; sub++) c.scales[sub] |= c.mins[sub] << 4;
    lc_store_half(lanes, AT(q2_k, d), c.d);
    lc_store_half(lanes, AT(q2_k, dmin), c.dmin);
    lc_store_packed(lanes, AT(q2_k, scales), c.scales, 16, 0, 8, 1);
    lc_store_packed(lanes, AT(q2_k, qs), c.codes, 256, 0, 2, 32);
}

/* Six bits each: the first four of both with the top bits of the last four above them, then the low halves of those. */
LC_INLINE void lc_store_scales_mins(const lc_lanes *lanes, size_t offset, const lc_scale_min_codes *c) {
    lc_vu bytes[12];
    for (int i = 0; i < 4; i++) {
        bytes[i] = c->scales[i] | c->scales[4 + i] >> 4 << 6;
        bytes[4 + i] = c->mins[i] | c->mins[4 + i] >> 4 << 6;
        bytes[8 + i] = (c->scales[4 + i] & 15) | c->mins[4 + i] << 4;
    }
    lc_store_packed(lanes, offset, bytes, 12, 0, 8, 1);
}

LC_INLINE void lc_encode_q4_k(const lc_lanes *lanes, const lc_vf *x, const lc_vf *w) {
    lc_scale_min_codes c;
    lc_encode_scale_min_super(x, w, &LC_SEARCH_Q4_K, &c);
    lc_store_half(lanes, AT(q4_k, d), c.d);
    lc_store_half(lanes, AT(q4_k, dmin), c.dmin);
    lc_store_scales_mins(lanes, AT(q4_k, scales), &c);
    lc_store_packed(lanes, AT(q4_k, qs), c.codes, 256, 0, 4, 32);
}

LC_INLINE void lc_encode_q5_k(const lc_lanes *lanes, const lc_vf *x, const lc_vf *w) {
    lc_scale_min_codes c;
    lc_encode_scale_min_super(x, w, &LC_SEARCH_Q5_K, &c);
    lc_store_half(lanes, AT(q5_k, d), c.d);
    lc_store_half(lanes, AT(q5_k, dmin), c.dmin);
    lc_store_scales_mins(lanes, AT(q5_k, scales), &c);
    lc_store_packed(lanes, AT(q5_k, qh), c.codes, 256, 4, 1, 32);
    lc_store_packed(lanes, AT(q5_k, qs), c.codes, 256, 0, 4, 32);
}

/* What every lc_search_fn does; the last block fills the lanes that are left. */
LC_INLINE bool lc_search(lc_encode_fn encode, int elems, int bytes, const float *x, int64_t n, const float *w,
                         int64_t w_blocks, int64_t first, uint8_t *blocks) {
    lc_vf x_lanes[LC_SUPER_BLOCK], w_lanes[LC_SUPER_BLOCK];
    for (int64_t i = 0; i < n; i += LC_LANES) {
        lc_lanes lanes = {.n = n - i < LC_LANES ? (int)(n - i) : LC_LANES};
        const float *x_from[LC_LANES], *w_from[LC_LANES] = {NULL};
        for (int l = 0; l < LC_LANES; l++) {
            const int64_t block = i + (l < lanes.n ? l : lanes.n - 1);
            lanes.out[l] = blocks + block * bytes;
            x_from[l] = x + block * elems;
            if (w != NULL) w_from[l] = w + (first + block) % w_blocks * elems;
        }
        lc_load(x_lanes, x_from, elems);
        if (!lc_all_finite(x_lanes, elems)) return false;
        if (w != NULL) lc_load(w_lanes, w_from, elems);
        encode(&lanes, x_lanes, w == NULL ? NULL : w_lanes);
    }
    return true;
}

#define SEARCHED(X)                                                                                               \
    X(q4_0, 32, Q4_0) X(q4_1, 32, Q4_1) X(q5_0, 32, Q5_0) X(q5_1, 32, Q5_1) X(q8_0, 32, Q8_0)                     \
    X(iq4_nl, 32, IQ4_NL) X(q2_k, 256, Q2_K) X(q3_k, 256, Q3_K) X(q4_k, 256, Q4_K) X(q5_k, 256, Q5_K)             \
    X(q6_k, 256, Q6_K) X(iq4_xs, 256, IQ4_XS)

#define DEFINE(name, elems, id)                                                                                   \
    static bool search_##name(const float *x, int64_t n, const float *w, int64_t w_blocks, int64_t first,         \
                              uint8_t *blocks) {                                                                  \
        return lc_search(lc_encode_##name, elems, sizeof(lc_block_##name), x, n, w, w_blocks, first, blocks);     \
    }
SEARCHED(DEFINE)

#define ENTER(name, elems, id) table->search[LC_TYPE_##id] = search_##name;
void LC_SEARCHES(lc_kernels *table) { SEARCHED(ENTER) }
