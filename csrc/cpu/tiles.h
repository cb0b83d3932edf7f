/* Tile kernels for instruction sets with 16 registers, and for those whose products are widened later (narrow_sums.h).
 * Included after block_kernels.h. Registers hold the sums of a group of codes; totals wait in memory. */
#ifndef LC_TILES_H
#define LC_TILES_H

enum { TILE_TOKENS = 5 };

/* n_vecs times VEC_ROWS rows of the tile, from number v0 on. */
INLINE void tile_vecs(const lc_panel *panel, const lc_q8_block *x, int n, float *c, int ldc, int n_tokens, int sub,
                      int has_min, int bits, int v0, int n_vecs) {
    const int fit = steps_that_fit(bits), at_once = fit < sub / 4 ? fit : sub / 4;
    const vec zero = v_set32(0);
    const uint8_t *w = panel->codes;
    const int8_t *a = x->codes;
    for (int s = 0; s < n / sub; s++) {
        const int32_t *bias = (sub == 32 ? x->bias32 : x->bias16) + s * n_tokens;
        vec sum[TILE_TOKENS][TILE_VECS];
        UNROLLED for (int k = 0; k < sub / 4; k += at_once) {
            vec part[TILE_TOKENS][TILE_VECS];
            UNROLLED for (int i = 0; i < at_once; i++, w += 4 * TILE_ROWS, a += 4 * n_tokens) {
                tile_codes codes[TILE_VECS];
                for (int v = v0; v < v0 + n_vecs; v++) codes[v] = tile_codes_of(v_load(w + 4 * VEC_ROWS * v), bits);
                for (int t = 0; t < n_tokens; t++)
                    for (int v = v0; v < v0 + n_vecs; v++) {
                        const vec start = HAS_WIDE_SUMS ? less_bias_of(bias + t, bits, has_min) : zero;
                        part[t][v] = add_tile_products(i == 0 ? start : part[t][v], codes[v], v_repeat4(a + 4 * t), bits);
                    }
            }
            for (int t = 0; t < n_tokens; t++)
                for (int v = v0; v < v0 + n_vecs; v++) {
                    const vec wide = widened(part[t][v]);
                    sum[t][v] = k == 0 ? wide : v_add32(sum[t][v], wide);
                    KEEP_ORDER(sum[t][v]);
                }
        }
        const float *a_scale = x->scales + s * sub / LC_GROUP * n_tokens;
        const float *a_sum = (sub == 32 ? x->sums32 : x->sums16) + s * n_tokens;
        fvec scale[TILE_VECS], min[TILE_VECS];
        vec lack[TILE_VECS];
        for (int v = v0; v < v0 + n_vecs; v++) {
            const int at = s * TILE_ROWS + v * VEC_ROWS;
            scale[v] = f_load(panel->scales + at);
            if (has_min) min[v] = f_load(panel->mins + at);
            if (bits == 8) lack[v] = v_load(panel->lacks + at);
        }
        UNROLLED for (int t = 0; t < n_tokens; t++) {
            const fvec token_scale = f_set(a_scale[t]), token_sum = f_set(a_sum[t]);
            const vec unbias = less_bias_of(bias + t, bits, has_min);
            for (int v = v0; v < v0 + n_vecs; v++) {
                float *total = c + t * ldc + v * VEC_ROWS;
                const vec d = HAS_WIDE_SUMS ? sum[t][v] : v_add32(sum[t][v], bits == 8 ? lack[v] : unbias);
                const fvec y = f_fma(f_from(d), f_mul(scale[v], token_scale), f_load(total));
                f_store(total, has_min ? f_fnma(min[v], token_sum, y) : y);
            }
        }
    }
}

/* Signed products take registers for what they are made of, so there a register of rows after the other. */
INLINE void tile(const lc_panel *panel, const lc_q8_block *x, int n, float *c, int ldc, int n_tokens, int sub, int has_min,
                 int bits) {
    const int at_once = widen_later(bits) ? TILE_VECS : 1;
    UNROLLED for (int v = 0; v < TILE_VECS; v += at_once)
        tile_vecs(panel, x, n, c, ldc, n_tokens, sub, has_min, bits, v, at_once);
}

/* tile_SUB_MIN_BITS */
#define DEFINE_TILE(sub, has_min, bits)                                                                                 \
    static void tile_##sub##_##has_min##_##bits(const lc_panel *panel, const lc_q8_block *x, int n, float *c, int ldc) { \
        switch (x->n_tokens) {                                                                                          \
        case 1: tile(panel, x, n, c, ldc, 1, sub, has_min, bits); break;                                                \
        case 2: tile(panel, x, n, c, ldc, 2, sub, has_min, bits); break;                                                \
        case 3: tile(panel, x, n, c, ldc, 3, sub, has_min, bits); break;                                                \
        case 4: tile(panel, x, n, c, ldc, 4, sub, has_min, bits); break;                                                \
        default: tile(panel, x, n, c, ldc, TILE_TOKENS, sub, has_min, bits);                                            \
        }                                                                                                               \
    }
DEFINE_TILE(32, 0, 4)
DEFINE_TILE(32, 0, 5)
DEFINE_TILE(32, 0, 8)
DEFINE_TILE(32, 1, 4)
DEFINE_TILE(32, 1, 5)
DEFINE_TILE(16, 0, 3)
DEFINE_TILE(16, 0, 6)
DEFINE_TILE(16, 0, 8)
DEFINE_TILE(16, 1, 2)

#define USE_TILE(name, id, elems, sub, has_min, bits) table->tile[LC_TYPE_##id] = tile_##sub##_##has_min##_##bits;
/* Formats that are not in the list have codes of 8 bits, and no minimums. */
#define USE_TILES                                              \
    lc_use_tiles(table, tile_32_0_8, tile_16_0_8, NULL, NULL); \
    EACH_FORMAT(USE_TILE)

#endif
