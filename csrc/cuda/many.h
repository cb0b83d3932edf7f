/* out = x Wᵀ for many tokens, on tensor cores.
 *
 * Limit: the rate of mma.sync. A block computes 128 rows of W times 64 tokens, 64 values of n_in at a time: weights are
 * taken apart into shared memory once for 64 tokens (about 40 operations for 32 weights, a fifth of the work that
 * follows), activations come by asynchronous copies. Two blocks fit on a multiprocessor: one loads while the other
 * multiplies. 8 warps, 32 rows x 32 tokens each.
 *
 * Int8Tile: products of 32 (or 16) values that share their scales are exact in int32 and go to float32 sums in the order
 * of n_in. Each mma is followed by 12 float operations a lane: integer sums start at 2^23 + 2^22, so that they are the
 * low bits of a float, because converting integers is slow on most cards.
 * PartsTile: activations are not rounded, so they and weights that are not exact are sums of two 16-bit parts: two or
 * three products for one, sums in float32. Parts are halves (of activations scaled per token by a power of two), or bf16
 * where weights are, whose range is then kept; cards before 8.0 have halves only. */
#ifndef LC_CUDA_MANY_H
#define LC_CUDA_MANY_H

#include "few.h"

enum { MANY_ROWS = 128, MANY_TOKENS = 64, MANY_K = 64, MANY_THREADS = 256 };

/* Blocks that share a multiprocessor: two, but where two scales and minimums for 32 values need the registers. */
template <class F>
struct ManyBlocks {
    enum { PER_SM = F::HAS_MINS && F::SUB == 16 ? 1 : 2 };
};

/* The block's tile, and how many rows and tokens there are in all. */
struct ManyPlace {
    int row0, token0, n_rows, n_tokens;
};

struct ManySums {
    float of[2][4][4]; /* [row tile][token tile][of the lane, as in lc_mma] */
};

LC_DEVICE int many_warp_row() { return lc_warp() % 4 * 32; }
LC_DEVICE int many_warp_token() { return lc_warp() / 4 * 32; }

/* One value of a decoded unit. */
template <class F>
LC_DEVICE float value_of(const Unit &unit, int i) {
    const int code = (int)(lc_i8)(unit.codes[i >> 2] >> 8 * (i & 3)) - F::OFFSET;
    return unit.scale[i >> 4] * (float)code - unit.min[i >> 4];
}

LC_DEVICE void store_zeros(void *shared) {
    const uint4 zeros = {0, 0, 0, 0};
    *(uint4 *)shared = zeros;
}

/* --- int8 -------------------------------------------------------------------------------------------------------------- */

template <class F>
struct Int8Tile {
    enum { K = MANY_K, STRIDE = K + 16, SCALES = MANY_K / F::SUB };
    lc_u8 w[MANY_ROWS][STRIDE], x[MANY_TOKENS][STRIDE];
    float w_scale[MANY_ROWS][SCALES], x_scale[MANY_TOKENS][MANY_K / 32];
    float w_min[F::HAS_MINS ? MANY_ROWS : 1][SCALES], x_sum[F::HAS_MINS ? MANY_TOKENS : 1][SCALES];
};

template <class F>
LC_DEVICE void load_weights(Int8Tile<F> &tile, const ManyPlace &at, const lc_u8 *weight, const lc_i8 *grid, int n_in,
                            int k0) {
    const int row = lc_thread() / 2, u = k0 / 32 + lc_thread() % 2; /* two units are 64 values */
    Unit unit;
    if (at.row0 + row < at.n_rows && 32 * u < n_in) {
        const lc_u8 *data = weight + (lc_i64)(at.row0 + row) * F::row_bytes(n_in / F::BLOCK);
        F::decode(data, n_in / F::BLOCK, u, grid, unit);
        LC_UNROLL for (int i = 0; i < 8; i++)
            unit.codes[i] = lc_add_bytes(unit.codes[i], (lc_u32)(lc_u8)-F::OFFSET * 0x01010101u);
    } else {
        LC_UNROLL for (int i = 0; i < 8; i++) unit.codes[i] = 0;
        same_scale(unit, 0);
    }
    LC_UNROLL for (int piece = 0; piece < 2; piece++) {
        const lc_u32 *c = unit.codes + 4 * piece;
        const int k = unit_start<F::GAP>(u) - k0 + piece * F::GAP;
        const uint4 words = {c[0], c[1], c[2], c[3]};
        *(uint4 *)&tile.w[row][k] = words;
        if (k % F::SUB == 0) {
            tile.w_scale[row][k / F::SUB] = unit.scale[piece];
            if (F::HAS_MINS) tile.w_min[row][k / F::SUB] = unit.min[piece];
        }
    }
}

template <class F>
LC_DEVICE void load_tokens(Int8Tile<F> &tile, const ManyPlace &at, const Activations &a, int n_in, int k0) {
    const int token = lc_thread() / 4, part = lc_thread() % 4; /* 16 values each */
    const int k = k0 + 16 * part;
    const bool here = at.token0 + token < at.n_tokens && k < n_in;
    const lc_i64 from = (lc_i64)(at.token0 + token) * n_in + k;
    uint2 meta = {0, 0};
    if (here) {
        lc_async_copy(&tile.x[token][16 * part], a.codes + from);
        meta = lc_load<uint2>(a.meta + from / 32);
    } else {
        store_zeros(&tile.x[token][16 * part]);
    }
    const float scale = lc_bits_to_float(meta.x);
    if (part % 2 == 0) tile.x_scale[token][part / 2] = scale;
    if (F::HAS_MINS) {
        if (F::SUB == 16)
            tile.x_sum[token][part] = scale * (float)half_sum(meta, part % 2);
        else if (part % 2 == 0)
            tile.x_sum[token][part / 2] = scale * (float)(half_sum(meta, 0) + half_sum(meta, 1));
    }
}

LC_DEVICE int word_at(const lc_u8 *p) { return *(const int *)p; }

LC_DEVICE void start_sums(int (&c)[4]) {
    LC_UNROLL for (int i = 0; i < 4; i++) c[i] = 0x4B400000; /* bits of 12582912 */
}
LC_DEVICE float sum_of(int c) { return lc_bits_to_float((lc_u32)c) - 12582912.0f; }

/* acc[i] += the products c of group `group` of n_in, with the scales of their rows and tokens. */
template <class F>
LC_DEVICE void add_scaled(const Int8Tile<F> &tile, int row, int token, int group, const int (&c)[2][4],
                          float (&acc)[4]) {
    LC_UNROLL for (int i = 0; i < 4; i++) {
        const int r = row + 8 * (i / 2), t = token + i % 2;
        const float x_scale = tile.x_scale[t][group];
        LC_UNROLL for (int half = 0; half < 32 / F::SUB; half++) {
            const int s = group * (32 / F::SUB) + half;
            acc[i] = lc_fma(lc_mul(tile.w_scale[r][s], x_scale), sum_of(c[half][i]), acc[i]);
            if (F::HAS_MINS) acc[i] = lc_fma(-tile.w_min[r][s], tile.x_sum[t][s], acc[i]);
        }
    }
}

template <class F>
LC_DEVICE void multiply_tile(const Int8Tile<F> &tile, ManySums &acc) {
    const int g = lc_lane() / 4, t = lc_lane() % 4;
    LC_UNROLL for (int group = 0; group < MANY_K / 32; group++) {
        int b[4][2];
        LC_UNROLL for (int n = 0; n < 4; n++) {
            const lc_u8 *x = &tile.x[many_warp_token() + 8 * n + g][32 * group + 4 * t];
            b[n][0] = word_at(x);
            b[n][1] = word_at(x + 16);
        }
        LC_UNROLL for (int m = 0; m < 2; m++) {
            enum { NEXT = 8 * Int8Tile<F>::STRIDE };
            const int row = many_warp_row() + 16 * m + g;
            const lc_u8 *w = &tile.w[row][32 * group + 4 * t];
            const int a[4] = {word_at(w), word_at(w + NEXT), word_at(w + 16), word_at(w + NEXT + 16)};
            LC_UNROLL for (int n = 0; n < 4; n++) {
                int c[2][4];
                start_sums(c[0]);
                start_sums(c[1]);
                if constexpr (F::SUB == 32) {
                    lc_mma_s8_k32(c[0], a, b[n]);
                } else {
                    lc_mma_s8_k16(c[0], a[0], a[1], b[n][0]);
                    lc_mma_s8_k16(c[1], a[2], a[3], b[n][1]);
                }
                add_scaled(tile, row, many_warp_token() + 8 * n + 2 * t, group, c, acc.of[m][n]);
            }
        }
    }
}

/* --- 16-bit parts ------------------------------------------------------------------------------------------------------ */

/* x in two parts whose sum is x to 22 bits (halves) or 16 (bf16); weights in two where one is not exact. */
struct PartsTile {
    enum { K = 32, STRIDE = K + 8 };
    lc_u16 w[2][MANY_ROWS][STRIDE], x[2][MANY_TOKENS][STRIDE];
};

/* 16 values of a row from k on, zeros where it ends. */
template <class F>
LC_DEVICE void load16(const lc_u8 *row, const lc_i8 *grid, int n_in, int n, int k, float (&v)[16]) {
    if constexpr (F::IS_RAW) {
        (void)grid;
        LC_UNROLL for (int i = 0; i < 16; i += 8) {
            float part[8];
            if (n_in % 8 == 0 && k + i < n) {
                F::load8(row + (k + i) * F::BYTES, part);
            } else {
                LC_UNROLL for (int e = 0; e < 8; e++)
                    part[e] = k + i + e < n ? F::value(row + (k + i + e) * F::BYTES) : 0.0f;
            }
            LC_UNROLL for (int e = 0; e < 8; e++) v[i + e] = part[e];
        }
    } else {
        LC_UNROLL for (int i = 0; i < 16; i++) v[i] = 0;
        if (k >= n) return;
        Unit unit;
        F::decode(row, n_in / F::BLOCK, k / 32, grid, unit);
        LC_UNROLL for (int i = 0; i < 16; i++)
            v[i] = k % 32 ? value_of<F>(unit, 16 + i) : value_of<F>(unit, i);
    }
}

template <class Part>
LC_DEVICE lc_u32 pack_parts(const float *v) {
    return (lc_u32)Part::of(v[0]) | (lc_u32)Part::of(v[1]) << 16;
}
template <class Part>
LC_DEVICE void store_parts(lc_u16 *shared, const float *v) {
    LC_UNROLL for (int i = 0; i < 16; i += 8) {
        const uint4 packed = {pack_parts<Part>(v + i), pack_parts<Part>(v + i + 2), pack_parts<Part>(v + i + 4),
                              pack_parts<Part>(v + i + 6)};
        *(uint4 *)(shared + i) = packed;
    }
}

template <class F>
LC_DEVICE void load_weights(PartsTile &tile, const ManyPlace &at, const lc_u8 *weight, const lc_i8 *grid, int n_in,
                            int k0) {
    static_assert(F::GAP == 16, "a unit is 32 neighbours");
    const int row = lc_thread() / 2, k = lc_thread() % 2 * 16;
    const bool here = at.row0 + row < at.n_rows;
    const lc_u8 *data = weight + (here ? (lc_i64)(at.row0 + row) * F::row_bytes(n_in / F::BLOCK) : 0);
    float v[16];
    load16<F>(data, grid, n_in, here ? n_in : 0, k0 + k, v);
    typedef typename F::Part Part;
    store_parts<Part>(&tile.w[0][row][k], v);
    if constexpr (!F::IS_EXACT) {
        LC_UNROLL for (int i = 0; i < 16; i++) v[i] -= Part::value(Part::of(v[i]));
        store_parts<Part>(&tile.w[1][row][k], v);
    }
}

/* x: parts [2, n_tokens, n_in rounded up to MANY_K], padded with zeros. */
LC_DEVICE void load_tokens(PartsTile &tile, const ManyPlace &at, const lc_u16 *x, int n_in, int k0) {
    const int token = lc_thread() / 4, k = lc_thread() % 4 * 8, padded = (n_in + MANY_K - 1) / MANY_K * MANY_K;
    LC_UNROLL for (int part = 0; part < 2; part++) {
        if (at.token0 + token < at.n_tokens)
            lc_async_copy(&tile.x[part][token][k],
                          x + ((lc_i64)part * at.n_tokens + at.token0 + token) * padded + k0 + k);
        else
            store_zeros(&tile.x[part][token][k]);
    }
}

LC_DEVICE lc_u32 pair_at(const lc_u16 *p) { return *(const lc_u32 *)p; }

/* A lane's fragment of 8 columns of B, and of 16 rows of A, from rows of `STRIDE` parts. */
LC_DEVICE void load_b(lc_u32 (&b)[2], const lc_u16 *p) {
    b[0] = pair_at(p);
    b[1] = pair_at(p + 8);
}
LC_DEVICE void load_a(lc_u32 (&a)[4], const lc_u16 *p) {
    enum { NEXT = 8 * PartsTile::STRIDE };
    a[0] = pair_at(p);
    a[1] = pair_at(p + NEXT);
    a[2] = pair_at(p + 8);
    a[3] = pair_at(p + NEXT + 8);
}

template <class F>
LC_DEVICE void multiply_tile(const PartsTile &tile, ManySums &acc) {
    const int g = lc_lane() / 4, t = lc_lane() % 4;
    LC_UNROLL for (int k = 0; k < PartsTile::K; k += 16) {
        lc_u32 b[2][4][2];
        LC_UNROLL for (int n = 0; n < 4; n++) LC_UNROLL for (int part = 0; part < 2; part++)
            load_b(b[part][n], &tile.x[part][many_warp_token() + 8 * n + g][k + 2 * t]);
        LC_UNROLL for (int m = 0; m < 2; m++) {
            const int row = many_warp_row() + 16 * m + g;
            lc_u32 a[4];
            load_a(a, &tile.w[0][row][k + 2 * t]);
            LC_UNROLL for (int n = 0; n < 4; n++) {
                F::Part::multiply(acc.of[m][n], a, b[1][n]);
                F::Part::multiply(acc.of[m][n], a, b[0][n]);
            }
            if constexpr (!F::IS_EXACT) {
                load_a(a, &tile.w[1][row][k + 2 * t]);
                LC_UNROLL for (int n = 0; n < 4; n++) F::Part::multiply(acc.of[m][n], a, b[0][n]);
            }
        }
    }
}

/* --- the block ---------------------------------------------------------------------------------------------------------- */

/* Tile and X fit together: Int8Tile with Activations, PartsTile with parts. */
template <class F, class Tile, class X>
LC_DEVICE void multiply_many(const ManyPlace &at, const lc_u8 *weight, const lc_i8 *grid, const X &x, int n_in,
                             ManySums &acc) {
    Tile &tile = lc_shared<Tile>();
    LC_UNROLL for (int i = 0; i < 32; i++) acc.of[i / 16][i / 4 % 4][i % 4] = 0;
    for (int k0 = 0; k0 < n_in; k0 += Tile::K) {
        load_tokens(tile, at, x, n_in, k0);
        load_weights<F>(tile, at, weight, grid, n_in, k0);
        lc_async_wait();
        lc_sync_block();
        multiply_tile<F>(tile, acc);
        lc_sync_block();
    }
}

/* scales: NULL, or one factor a token. */
LC_DEVICE void store_sums(const ManySums &acc, const ManyPlace &at, const float *scales, float *out,
                          const float *residual, int epilogue) {
    const int g = lc_lane() / 4, t = lc_lane() % 4;
    LC_UNROLL for (int j = 0; j < 32; j++) {
        const int m = j / 16, n = j / 4 % 4, i = j % 4;
        const int row = at.row0 + many_warp_row() + 16 * m + g + 8 * (i / 2);
        const int token = at.token0 + many_warp_token() + 8 * n + 2 * t + i % 2;
        if (row >= at.n_rows || token >= at.n_tokens) continue;
        const lc_i64 to = (lc_i64)token * at.n_rows + row;
        float sum = acc.of[m][n][i];
        if (scales) sum *= scales[token];
        out[to] = epilogue == ADD_RESIDUAL ? residual[to] + sum : sum;
    }
}

#endif
