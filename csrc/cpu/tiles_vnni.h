/* Tile kernels for AVX-512 with VNNI. Included after block_kernels.h. The sums of a group of codes, and totals, stay in
 * registers: of 12 pairs of token and vector of rows, which are 12 tokens and one vector, or 6 and two. With two, fewer
 * registers are loaded for each product. */
#ifndef LC_TILES_VNNI_H
#define LC_TILES_VNNI_H

enum { PAIRS = 12, TILE_TOKENS = PAIRS / TILE_VECS };

/* M(i) for each of N pairs. Named variables instead of arrays, which the compiler would keep in memory. */
#define PAIRS_1(M) M(0)
#define PAIRS_2(M) PAIRS_1(M) M(1)
#define PAIRS_3(M) PAIRS_2(M) M(2)
#define PAIRS_4(M) PAIRS_3(M) M(3)
#define PAIRS_5(M) PAIRS_4(M) M(4)
#define PAIRS_6(M) PAIRS_5(M) M(5)
#define PAIRS_7(M) PAIRS_6(M) M(6)
#define PAIRS_8(M) PAIRS_7(M) M(7)
#define PAIRS_9(M) PAIRS_8(M) M(8)
#define PAIRS_10(M) PAIRS_9(M) M(9)
#define PAIRS_11(M) PAIRS_10(M) M(10)
#define PAIRS_12(M) PAIRS_11(M) M(11)

#if TILE_VECS == 1
#define EACH_TILE(M, ...)                                                                                              \
    M(1, __VA_ARGS__) M(2, __VA_ARGS__) M(3, __VA_ARGS__) M(4, __VA_ARGS__) M(5, __VA_ARGS__) M(6, __VA_ARGS__)        \
    M(7, __VA_ARGS__) M(8, __VA_ARGS__) M(9, __VA_ARGS__) M(10, __VA_ARGS__) M(11, __VA_ARGS__) M(12, __VA_ARGS__)
#define ADD_DOT(i) ADD_FOUR(sum##i, w[0], a + 4 * (i));
#else
#define EACH_TILE(M, ...) \
    M(2, __VA_ARGS__) M(4, __VA_ARGS__) M(6, __VA_ARGS__) M(8, __VA_ARGS__) M(10, __VA_ARGS__) M(12, __VA_ARGS__)
#define ADD_DOT(i) sum##i = add_products(sum##i, w[VEC_OF(i)], v_repeat4(a + 4 * TOKEN_OF(i)), 8);
#endif
#define TOKEN_OF(i) ((i) / TILE_VECS)
#define VEC_OF(i) ((i) % TILE_VECS)
#define PLACE_OF(i) (c + TOKEN_OF(i) * ldc + VEC_OF(i) * VEC_ROWS)

#define LOAD_TOTAL(i) fvec total##i = f_load(PLACE_OF(i));
#define START_SUM(i) vec sum##i = v_set32(has_min ? 0 : bias[TOKEN_OF(i)]);
#define ADD_SCALED(i) \
    total##i = f_fma(f_from(sum##i), f_mul(scale[VEC_OF(i)], f_set(a_scale[TOKEN_OF(i)])), total##i);
#define SUBTRACT_MIN(i) total##i = f_fnma(min[VEC_OF(i)], f_set(a_sum[TOKEN_OF(i)]), total##i);
#define STORE_TOTAL(i) f_store(PLACE_OF(i), total##i);

#define DEFINE_TILE_OF(N, ...)                                                                                         \
    INLINE void tile_##N(const lc_panel *panel, const lc_q8_block *x, int n, float *c, int ldc, int sub, int has_min) { \
        enum { TOKENS = N / TILE_VECS };                                                                               \
        const uint8_t *codes = panel->codes;                                                                           \
        const int8_t *a = x->codes;                                                                                    \
        PAIRS_##N(LOAD_TOTAL)                                                                                          \
        for (int s = 0; s < n / sub; s++) {                                                                            \
            const int32_t *bias = (sub == 32 ? x->bias32 : x->bias16) + s * TOKENS;                                    \
            PAIRS_##N(START_SUM)                                                                                       \
            for (int k = 0; k < sub / 4; k++, codes += 4 * TILE_ROWS, a += 4 * TOKENS) {                               \
                vec w[TILE_VECS];                                                                                      \
                UNROLLED for (int v = 0; v < TILE_VECS; v++) w[v] = v_load(codes + 4 * VEC_ROWS * v);                  \
                PAIRS_##N(ADD_DOT)                                                                                     \
            }                                                                                                          \
            const float *a_scale = x->scales + s * sub / LC_GROUP * TOKENS;                                            \
            fvec scale[TILE_VECS];                                                                                     \
            UNROLLED for (int v = 0; v < TILE_VECS; v++) scale[v] = f_load(panel->scales + s * TILE_ROWS + v * VEC_ROWS); \
            PAIRS_##N(ADD_SCALED)                                                                                      \
            if (has_min) {                                                                                             \
                fvec min[TILE_VECS];                                                                                   \
                UNROLLED for (int v = 0; v < TILE_VECS; v++) min[v] = f_load(panel->mins + s * TILE_ROWS + v * VEC_ROWS); \
                const float *a_sum = (sub == 32 ? x->sums32 : x->sums16) + s * TOKENS;                                 \
                PAIRS_##N(SUBTRACT_MIN)                                                                                \
            }                                                                                                          \
        }                                                                                                              \
        PAIRS_##N(STORE_TOTAL)                                                                                         \
    }
EACH_TILE(DEFINE_TILE_OF, )

#define TILE_CASE(N, sub, has_min) \
    case N: tile_##N(panel, x, n, c, ldc, sub, has_min); break;
#define DEFINE_TILE(name, sub, has_min)                                                       \
    static void name(const lc_panel *panel, const lc_q8_block *x, int n, float *c, int ldc) { \
        switch (x->n_tokens * TILE_VECS) {                                                    \
            EACH_TILE(TILE_CASE, sub, has_min)                                                \
        }                                                                                     \
    }
DEFINE_TILE(tile_32, 32, 0)
DEFINE_TILE(tile_16, 16, 0)
DEFINE_TILE(tile_32_min, 32, 1)
DEFINE_TILE(tile_16_min, 16, 1)

#define USE_TILES lc_use_tiles(table, tile_32, tile_16, tile_32_min, tile_16_min);

#endif
