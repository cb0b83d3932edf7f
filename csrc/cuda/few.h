/* y = W x for 1 to 16 tokens.
 *
 * Limit: every byte of W comes from memory once, so the time is that of reading W. For 32 weights (18 bytes of q4_0) a
 * token costs 8 dp4a, about ten more operations and 40 bytes from L1, which a card hides up to 8 tokens or so. A warp
 * takes two rows (or a row of gate and the same of up), each lane every 32nd unit: 16-byte loads that neighbouring lanes
 * continue, two rows and (up to 4 tokens) two units in flight. `split` warps share long rows. The order of every sum depends on n_in
 * alone, so a token's result does not depend on how many others there are. */
#ifndef LC_CUDA_FEW_H
#define LC_CUDA_FEW_H

#include "decode.h"

enum { STORE = 0, ADD_RESIDUAL = 1, SILU_MUL = 2 }; /* as in enum lc_epilogue */

struct Activations {
    const lc_u8 *codes; /* [n_tokens, n_in] q8 */
    const uint2 *meta;  /* [n_tokens, n_in / 32]: bits of the scale; sums of the codes of each half, 16 bits each */
    const float *x;     /* [n_tokens, n_in] */
};

/* Sum of the codes of the first (half = 0) or second 16 values of a group. */
LC_DEVICE int half_sum(uint2 meta, int half) { return half ? (int)meta.y >> 16 : (int)(meta.y << 16) >> 16; }

LC_DEVICE int dot16(const lc_u32 *codes, uint4 x) {
    int sum = lc_dp4a((int)codes[0], (int)x.x, 0);
    sum = lc_dp4a((int)codes[1], (int)x.y, sum);
    sum = lc_dp4a((int)codes[2], (int)x.z, sum);
    return lc_dp4a((int)codes[3], (int)x.w, sum);
}

/* The q8 values that a unit meets. */
struct Q8Unit {
    uint4 codes[2];
    float scale[2];
    int sum[2];
};

template <class F>
LC_DEVICE void load_q8(const Activations &a, int n_in, int token, int u, Q8Unit &x) {
    const int at = token * n_in + unit_start<F::GAP>(u);
    x.codes[0] = lc_load<uint4>(a.codes + at);
    x.codes[1] = lc_load<uint4>(a.codes + at + F::GAP);
    const uint2 *meta = a.meta + at / 32;
    const uint2 first = lc_load<uint2>(meta);
    uint2 second = first;
    if (F::GAP == 32) second = lc_load<uint2>(meta + 1);
    x.scale[0] = lc_bits_to_float(first.x);
    x.scale[1] = lc_bits_to_float(second.x);
    x.sum[0] = half_sum(first, F::GAP == 16 ? 0 : u & 1);
    x.sum[1] = half_sum(second, F::GAP == 16 ? 1 : u & 1);
}

template <class F>
LC_DEVICE float add_q8(const Unit &w, const Q8Unit &x, float acc) {
    const int dot0 = dot16(w.codes, x.codes[0]) - F::OFFSET * x.sum[0];
    const int dot1 = dot16(w.codes + 4, x.codes[1]) - F::OFFSET * x.sum[1];
    if constexpr (F::GAP == 16) { /* one scale, one group */
        acc = lc_fma(lc_mul(w.scale[0], x.scale[0]), (float)(dot0 + dot1), acc);
        if (F::HAS_MINS) acc = lc_fma(-lc_mul(w.min[0], x.scale[0]), (float)(x.sum[0] + x.sum[1]), acc);
    } else {
        acc = lc_fma(lc_mul(w.scale[0], x.scale[0]), (float)dot0, acc);
        acc = lc_fma(lc_mul(w.scale[1], x.scale[1]), (float)dot1, acc);
        if (F::HAS_MINS) {
            acc = lc_fma(-lc_mul(w.min[0], x.scale[0]), (float)x.sum[0], acc);
            acc = lc_fma(-lc_mul(w.min[1], x.scale[1]), (float)x.sum[1], acc);
        }
    }
    return acc;
}

template <class F>
LC_DEVICE float add_float(const Unit &w, const float *x, float acc) {
    LC_UNROLL for (int piece = 0; piece < 2; piece++) {
        float sum = 0;
        LC_UNROLL for (int i = 0; i < 16; i += 4) {
            const float4 v = lc_load<float4>(x + piece * F::GAP + i);
            const lc_u32 codes = w.codes[(16 * piece + i) >> 2];
            const float values[4] = {v.x, v.y, v.z, v.w};
            LC_UNROLL for (int j = 0; j < 4; j++)
                sum = lc_fma((float)((int)(lc_i8)(codes >> 8 * j) - F::OFFSET), values[j], sum);
        }
        acc = lc_fma(w.scale[piece], sum, acc);
    }
    return acc;
}

/* --- this lane's part of the sums: acc[i · COLS + c] += row i times token c ------------------------------------------- */

template <class F, int ROWS, int COLS>
LC_DEVICE void multiply_raw(const lc_u8 *const (&rows)[ROWS], const float *x, int n_in, const int (&tokens)[COLS],
                            int first, int step, float (&acc)[ROWS * COLS]) {
    if (n_in % 8 != 0) { /* rows of x are not aligned for more than one value */
        for (int k = first; k < n_in; k += step)
            LC_UNROLL for (int i = 0; i < ROWS; i++) LC_UNROLL for (int c = 0; c < COLS; c++)
                acc[i * COLS + c] =
                    lc_fma(F::value(rows[i] + k * F::BYTES), x[tokens[c] * n_in + k], acc[i * COLS + c]);
        return;
    }
    LC_UNROLL_BY(COLS <= 4 ? 2 : 1) for (int k = 8 * first; k < n_in; k += 8 * step) {
        float w[ROWS][8];
        LC_UNROLL for (int i = 0; i < ROWS; i++) F::load8(rows[i] + k * F::BYTES, w[i]);
        LC_UNROLL for (int c = 0; c < COLS; c++) {
            const float *p = x + (tokens[c] * n_in + k);
            const float4 v0 = lc_load<float4>(p), v1 = lc_load<float4>(p + 4);
            const float values[8] = {v0.x, v0.y, v0.z, v0.w, v1.x, v1.y, v1.z, v1.w};
            LC_UNROLL for (int i = 0; i < ROWS; i++) LC_UNROLL for (int j = 0; j < 8; j++)
                acc[i * COLS + c] = lc_fma(w[i][j], values[j], acc[i * COLS + c]);
        }
    }
}

template <class F, int ROWS, int COLS>
LC_DEVICE void multiply_units(const lc_u8 *const (&rows)[ROWS], const lc_i8 *grid, const Activations &a, int n_in,
                              const int (&tokens)[COLS], int first, int step, float (&acc)[ROWS * COLS]) {
    LC_UNROLL_BY(COLS <= 4 ? 2 : 1) for (int u = first; u < n_in / 32; u += step) {
        Unit w[ROWS];
        LC_UNROLL for (int i = 0; i < ROWS; i++) F::decode(rows[i], n_in / F::BLOCK, u, grid, w[i]);
        LC_UNROLL for (int c = 0; c < COLS; c++) {
            if constexpr (F::IS_Q8) {
                Q8Unit x;
                load_q8<F>(a, n_in, tokens[c], u, x);
                LC_UNROLL for (int i = 0; i < ROWS; i++) acc[i * COLS + c] = add_q8<F>(w[i], x, acc[i * COLS + c]);
            } else {
                const float *x = a.x + (tokens[c] * n_in + unit_start<F::GAP>(u));
                LC_UNROLL for (int i = 0; i < ROWS; i++) acc[i * COLS + c] = add_float<F>(w[i], x, acc[i * COLS + c]);
            }
        }
    }
}

/* Sums v[0..N) over the warp; value j ends in v[0] of lane j · 32 / N. Each sum is the tree of lc_warp_sum. */
template <int N, int MASK, int SIZE>
LC_DEVICE void sum_values(float (&v)[SIZE]) {
    if constexpr (MASK > 0) {
        if constexpr (N > 1) {
            const bool upper = lc_lane() & MASK;
            LC_UNROLL for (int i = 0; i < N / 2; i++) {
                const float give = upper ? v[i] : v[i + N / 2];
                const float keep = upper ? v[i + N / 2] : v[i];
                v[i] = keep + lc_shuffle_xor(give, MASK);
            }
        } else {
            v[0] += lc_shuffle_xor(v[0], MASK);
        }
        sum_values<(N > 1 ? N / 2 : 1), MASK / 2>(v);
    }
}

/* --- the block ---------------------------------------------------------------------------------------------------------- */

enum { FEW_ROWS = 2, FEW_WARPS = 4, FEW_THREADS = 32 * FEW_WARPS, MAX_WEIGHTS = 3 };

/* Up to three matrices of one format over the same x; n is 0 for those that are not there. */
struct Weights {
    const lc_u8 *data[MAX_WEIGHTS];
    float *out[MAX_WEIGHTS];
    int n[MAX_WEIGHTS];
};

/* Which row of which weight is row v of all of them together. */
LC_DEVICE int find_weight(const Weights &w, int &v) {
    if (v < w.n[0]) return 0;
    v -= w.n[0];
    if (v < w.n[1]) return 1;
    v -= w.n[1];
    return 2;
}

/* array[i], by comparing: an index that is not known to the compiler would put the array into memory. */
template <typename T>
LC_DEVICE T pick(const T (&array)[MAX_WEIGHTS], int i) {
    return i == 0 ? array[0] : i == 1 ? array[1] : array[2];
}

template <class F, int COLS>
LC_DEVICE void multiply_few(const Activations &a, const lc_i8 *grid, int n_in, int n_tokens, int split,
                            const Weights &weights, const float *residual, int epilogue) {
    enum { V = FEW_ROWS * COLS };
    const bool is_pair = epilogue == SILU_MUL;
    const int n_rows = is_pair ? weights.n[0] : weights.n[0] + weights.n[1] + weights.n[2];
    const int rows_a_warp = is_pair ? 1 : FEW_ROWS, warps_across = FEW_WARPS / split;
    const int row0 = (lc_block_x() * warps_across + lc_warp() / split) * rows_a_warp;
    const int token0 = lc_block_y() * COLS;

    const lc_u8 *rows[FEW_ROWS];
    LC_UNROLL for (int i = 0; i < FEW_ROWS; i++) {
        int v = is_pair ? row0 : row0 + i;
        if (v >= n_rows) v = n_rows - 1; /* computed and not stored */
        const int which = is_pair ? i : find_weight(weights, v);
        rows[i] = pick(weights.data, which) + (lc_i64)v * F::row_bytes(n_in / F::BLOCK);
    }
    const int left = n_tokens - token0;
    int tokens[COLS]; /* from token0 on */
    LC_UNROLL for (int c = 0; c < COLS; c++) tokens[c] = c < left ? c : left - 1;
    const lc_i64 start = (lc_i64)token0 * n_in;
    const Activations here = {a.codes + start, a.meta + start / 32, a.x + start};
    float acc[V];
    LC_UNROLL for (int i = 0; i < V; i++) acc[i] = 0;
    const int first = lc_warp() % split * 32 + lc_lane(), step = 32 * split;
    if constexpr (F::IS_RAW)
        multiply_raw<F, FEW_ROWS, COLS>(rows, here.x, n_in, tokens, first, step, acc);
    else
        multiply_units<F, FEW_ROWS, COLS>(rows, grid, here, n_in, tokens, first, step, acc);
    sum_values<V, 16>(acc);

    struct Parts {
        float sum[FEW_WARPS][V];
    };
    Parts &parts = lc_shared<Parts>();
    if (lc_lane() % (32 / V) == 0) parts.sum[lc_warp()][lc_lane() / (32 / V)] = acc[0];
    lc_sync_block();
    const int group = lc_thread() / V, value = lc_thread() % V;
    const int i = value / COLS, token = token0 + value % COLS;
    int row = (lc_block_x() * warps_across + group) * rows_a_warp + (is_pair ? 0 : i);
    if (group >= warps_across || token >= n_tokens || row >= n_rows || (is_pair && i > 0)) return;
    float sum = 0, up = 0;
    for (int part = 0; part < split; part++) {
        sum += parts.sum[group * split + part][value];
        if (is_pair) up += parts.sum[group * split + part][value + COLS];
    }
    const int which = is_pair ? 0 : find_weight(weights, row);
    const lc_i64 at = (lc_i64)token * pick(weights.n, which) + row;
    if (is_pair) sum = lc_silu_mul_of(sum, up);
    if (epilogue == ADD_RESIDUAL) sum += residual[at];
    pick(weights.out, which)[at] = sum;
}

#endif
