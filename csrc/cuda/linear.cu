/* Every kernel that touches a weight matrix, for the one format that LC_WEIGHT names. */
#include "few.h"
#include "many.h"

#define LC_PASTE(a, b) a##b
#define LC_EXPAND(a, b) LC_PASTE(a, b)
#define LC_NAME(prefix) LC_EXPAND(prefix, LC_WEIGHT)

typedef LC_NAME(Format_) Format;

/* [n_rows, n] blocks as in the file -> rows of planes. Once, at loading: speed is that of the copy to the card. */
LC_KERNEL(LC_NAME(lc_split_), 256, 1, (const lc_u8 *blocks, lc_u8 *rows, lc_i64 n_rows, lc_i64 n)) {
    const lc_i64 i = (lc_i64)lc_block_x() * 256 + lc_thread();
    if (i >= n_rows * n) return;
    const int sizes[] = {LC_NAME(LC_PLANES_)};
    int block_bytes = 0;
    LC_UNROLL for (int j = 0; j < (int)(sizeof sizes / sizeof *sizes); j++) block_bytes += sizes[j];
    const lc_i64 row = i / n;
    Format::split(blocks + i * block_bytes, (int)(i - row * n), (int)n, rows + row * Format::row_bytes((int)n));
}

template <class F>
LC_DEVICE void embed(const lc_u8 *row, const lc_i8 *grid, int n_in, float *out) {
    if constexpr (F::IS_RAW) {
        (void)grid;
        for (int i = lc_thread(); i < n_in; i += 128) out[i] = F::value(row + i * F::BYTES);
    } else {
        for (int u = lc_thread(); u < n_in / 32; u += 128) {
            Unit unit;
            F::decode(row, n_in / F::BLOCK, u, grid, unit);
            float *to = out + unit_start<F::GAP>(u);
            LC_UNROLL for (int i = 0; i < 32; i++) to[i < 16 ? i : i - 16 + F::GAP] = value_of<F>(unit, i);
        }
    }
}

/* out[t] = weight[tokens[t]]. A block a token; a few KB in all. */
LC_KERNEL(LC_NAME(lc_embed_), 128, 1,
          (const lc_u8 *weight, const lc_i8 *grid, const int *tokens, float *out, lc_i64 n_in)) {
    const int t = lc_block_x(), n = (int)n_in;
    const lc_u8 *row = weight + (lc_i64)tokens[t] * Format::row_bytes(n / Format::BLOCK);
    embed<Format>(row, grid, n, out + (lc_i64)t * n_in);
}

/* Grid: pieces of the rows (of w0 alone where the epilogue is SILU_MUL: w1 is then `up`), groups of tokens. */
#define LC_FEW(columns)                                                                                                \
    LC_KERNEL(LC_EXPAND(LC_NAME(lc_few_), _##columns), FEW_THREADS, 1,                                                 \
              (const lc_u8 *codes, const uint2 *meta, const float *x, const lc_i8 *grid, lc_i64 n_in, lc_i64 n_tokens, \
               lc_i64 split, const lc_u8 *w0, lc_i64 n0, float *out0, const lc_u8 *w1, lc_i64 n1, float *out1,         \
               const lc_u8 *w2, lc_i64 n2, float *out2, const float *residual, lc_i64 epilogue)) {                     \
        const Activations a = {codes, meta, x};                                                                        \
        const Weights weights = {{w0, w1, w2}, {out0, out1, out2}, {(int)n0, (int)n1, (int)n2}};                       \
        multiply_few<Format, columns>(a, grid, (int)n_in, (int)n_tokens, (int)split, weights, residual,                \
                                      (int)epilogue);                                                                  \
    }
LC_FEW(1)
LC_FEW(2)
LC_FEW(4)
LC_FEW(8)
LC_FEW(16)

/* Grid: tiles of rows, tiles of tokens. q8 formats read codes and meta; others the parts x and their factors `scales`
 * (lc_to_parts). */
LC_KERNEL(LC_NAME(lc_many_), MANY_THREADS, ManyBlocks<Format>::PER_SM,
          (const lc_u8 *codes, const uint2 *meta, const lc_u16 *x, const float *scales, const lc_i8 *grid, lc_i64 n_in,
           lc_i64 n_tokens, const lc_u8 *weight, lc_i64 n_out, float *out, const float *residual, lc_i64 epilogue)) {
    const ManyPlace at = {lc_block_x() * MANY_ROWS, lc_block_y() * MANY_TOKENS, (int)n_out, (int)n_tokens};
    ManySums acc;
    if constexpr (Format::IS_Q8) {
        const Activations a = {codes, meta, nullptr};
        multiply_many<Format, Int8Tile<Format>>(at, weight, grid, a, (int)n_in, acc);
        (void)x, (void)scales;
        store_sums(acc, at, nullptr, out, residual, (int)epilogue);
    } else {
        multiply_many<Format, PartsTile>(at, weight, grid, x, (int)n_in, acc);
        (void)codes, (void)meta;
        store_sums(acc, at, scales, out, residual, (int)epilogue);
    }
}
