/* The ops that touch no weight matrix and look at no other token: norms, rounding, rotary positions, the way into the KV
 * cache. Each moves a few KB a token: what they cost at one token is their launch, so what can be one kernel is one. */
#include "intrinsics.h"

enum { ROW_THREADS = 256, Q8_GROUP = 32 };

/* Largest |x|; NaN is larger than everything. */
LC_DEVICE float warp_extreme(float x, int highest_mask) {
    int bits = (int)(lc_float_to_bits(x) & 0x7FFFFFFFu);
    for (int mask = highest_mask; mask > 0; mask >>= 1) {
        const int other = lc_shuffle_xor(bits, mask);
        bits = other > bits ? other : bits;
    }
    return lc_bits_to_float((lc_u32)bits);
}

/* Rounds a group of 32 values, one a lane, to q8 (localcoder/quants/activations.py). */
LC_DEVICE void quantize_group(float x, lc_u8 *codes, uint2 *meta) {
    const float extreme = warp_extreme(x, 16);
    float inverse = lc_mul(127.0f, 1.0f / extreme);
    if (!lc_is_finite(inverse)) inverse = 0;
    const int code = inverse == 0 ? 0 : lc_round(lc_mul(x, inverse)); /* x may be NaN otherwise */
    codes[lc_lane()] = (lc_u8)code;
    int sum = code;
    LC_UNROLL for (int mask = 8; mask > 0; mask >>= 1) sum += lc_shuffle_xor(sum, mask);
    const int other = lc_shuffle_xor(sum, 16);
    if (lc_lane() == 0) {
        const uint2 word = {lc_float_to_bits(extreme / 127.0f), ((lc_u32)sum & 0xFFFFu) | (lc_u32)other << 16};
        *meta = word;
    }
}

/* A sum with what rounding left of it: about 48 bits, of float operations alone. */
struct LongSum {
    float high, low;
};
LC_DEVICE LongSum long_add(LongSum a, LongSum b) {
    const float high = a.high + b.high, back = high - a.high;
    const float rest = (a.high - (high - back)) + (b.high - back);
    const LongSum sum = {high, (a.low + b.low) + rest};
    return sum;
}

/* 1 / sqrt(sum / n + eps), rounded once: what the CPU's kernels compute in double. */
LC_DEVICE float norm_factor(LongSum sum, float n, float eps) {
    const float mean = sum.high / n;
    const LongSum exact = {mean, (lc_fma(-mean, n, sum.high) + sum.low) / n}, more = {eps, 0};
    const LongSum v = long_add(exact, more);
    const float high = v.high + v.low, low = v.low - (high - v.high);
    const float r = lc_inverse_sqrt(high), square = lc_mul(r, r);
    float error = lc_fma(-high, square, 1.0f); /* 1 - v r², a Newton step makes up for it */
    error = lc_fma(-high, lc_fma(r, r, -square), error);
    error = lc_fma(-low, square, error);
    return lc_fma(r, lc_mul(0.5f, error), r);
}

/* out = x / sqrt(mean(x²) + eps) · weight, a block a row. out, or codes and meta, may be NULL. eps: bits of a float. */
LC_KERNEL(lc_rms_norm, ROW_THREADS, 1,
          (const float *x, const float *weight, lc_i64 eps, lc_i64 width, float *out, lc_u8 *codes, uint2 *meta)) {
    struct Sums {
        LongSum of[ROW_THREADS / 32];
    };
    Sums &sums = lc_shared<Sums>();
    const int n = (int)width;
    const lc_i64 row = (lc_i64)lc_block_x() * n;
    LongSum sum = {0, 0};
    for (int i = lc_thread(); i < n; i += ROW_THREADS) {
        const float v = x[row + i], square = lc_mul(v, v);
        const LongSum exact = {square, lc_fma(v, v, -square)};
        sum = long_add(sum, exact);
    }
    lc_sync_warp(); /* lanes leave the loop at different times */
    LC_UNROLL for (int mask = 16; mask > 0; mask >>= 1) {
        const LongSum other = {lc_shuffle_xor(sum.high, mask), lc_shuffle_xor(sum.low, mask)};
        sum = long_add(sum, other);
    }
    if (lc_lane() == 0) sums.of[lc_warp()] = sum;
    lc_sync_block();
    sum = sums.of[0];
    LC_UNROLL for (int i = 1; i < ROW_THREADS / 32; i++) sum = long_add(sum, sums.of[i]);
    const float factor = norm_factor(sum, (float)n, lc_bits_to_float((lc_u32)eps));
    for (int i = lc_thread(); i < n; i += ROW_THREADS) { /* whole warps where there are codes */
        const float y = lc_mul(lc_mul(x[row + i], factor), weight[i]);
        if (out) out[row + i] = y;
        if (codes) quantize_group(y, codes + row + i - lc_lane(), meta + (row + i) / Q8_GROUP);
    }
}

/* x [rows, width], a block a row -> q8. */
LC_KERNEL(lc_quantize, ROW_THREADS, 1, (const float *x, lc_i64 width, lc_u8 *codes, uint2 *meta)) {
    const lc_i64 row = (lc_i64)lc_block_x() * width;
    for (int i = lc_thread(); i < (int)width; i += ROW_THREADS)
        quantize_group(x[row + i], codes + row + i - lc_lane(), meta + (row + i) / Q8_GROUP);
}

/* Two 16-bit parts whose sum is v, at `to` and `stride` behind it. */
template <class Part>
LC_DEVICE void store_parts(float v, lc_u16 *to, lc_i64 stride) {
    const lc_u16 high = Part::of(v);
    to[0] = high;
    to[stride] = Part::of(v - Part::value(high));
}

/* x [rows, width], a block a row -> two parts a value, [2, rows, padded], their sum x times a power of two, the rest
 * zero; and the power of two to multiply results by. Parts are halves, or where as_bf16 and the card has it, bf16. */
LC_KERNEL(lc_to_parts, ROW_THREADS, 1,
          (const float *x, lc_i64 rows, lc_i64 width, lc_i64 padded, lc_u16 *out, float *scales, lc_i64 as_bf16)) {
    struct Extremes {
        float of[ROW_THREADS / 32];
    };
    Extremes &extremes = lc_shared<Extremes>();
    const lc_i64 row = lc_block_x();
    float most = 0;
    for (int i = lc_thread(); i < (int)width; i += ROW_THREADS) {
        const float v = lc_abs(x[row * width + i]);
        most = lc_is_finite(v) ? lc_max(most, v) : most; /* others stay what they are */
    }
    most = warp_extreme(most, 16);
    if (lc_lane() == 0) extremes.of[lc_warp()] = most;
    lc_sync_block();
    LC_UNROLL for (int i = 0; i < ROW_THREADS / 32; i++) most = lc_max(most, extremes.of[i]);
    int exponent = (int)(lc_float_to_bits(most) >> 23);
    exponent = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
    const float down = lc_bits_to_float((lc_u32)(254 - exponent) << 23); /* makes the largest 1 to 2 */
    for (int i = lc_thread(); i < (int)padded; i += ROW_THREADS) {
        const float v = i < (int)width ? x[row * width + i] * down : 0.0f;
        lc_u16 *to = out + row * padded + i;
        if (LC_HAS_BF16 && as_bf16)
            store_parts<AsBf16>(v, to, rows * padded);
        else
            store_parts<AsHalf>(v, to, rows * padded);
    }
    if (lc_thread() == 0) scales[row] = lc_bits_to_float((lc_u32)exponent << 23);
}

/* out = silu(gate) · up and out = a + b; n values. Each reads its inputs once: memory speed. */
LC_KERNEL(lc_silu_mul, ROW_THREADS, 1, (const float *gate, const float *up, float *out, lc_i64 n)) {
    const lc_i64 i = (lc_i64)lc_block_x() * ROW_THREADS + lc_thread();
    if (i < n) out[i] = lc_silu_mul_of(gate[i], up[i]);
}
LC_KERNEL(lc_add, ROW_THREADS, 1, (const float *a, const float *b, float *out, lc_i64 n)) {
    const lc_i64 i = (lc_i64)lc_block_x() * ROW_THREADS + lc_thread();
    if (i < n) out[i] = a[i] + b[i];
}

/* out [outputs, width] = rows of x [tokens, width]; a block a row. */
LC_KERNEL(lc_select, ROW_THREADS, 1, (const float *x, const int *outputs, float *out, lc_i64 width)) {
    const lc_i64 from = (lc_i64)outputs[lc_block_x()] * width, to = (lc_i64)lc_block_x() * width;
    for (int i = lc_thread(); i < (int)width; i += ROW_THREADS) out[to + i] = x[from + i];
}

/* Rotates the pairs (2i, 2i + 1) of every head; a block a token. cos, sin: [n_ctx, head_dim / 2]. out may be x. */
LC_KERNEL(lc_rope, ROW_THREADS, 1,
          (const float *x, const int *positions, const float *cosines, const float *sines, float *out, lc_i64 n_head,
           lc_i64 head_dim)) {
    const int half = (int)head_dim / 2, n_pairs = (int)n_head * half;
    const lc_i64 row = (lc_i64)lc_block_x() * 2 * n_pairs, angle = (lc_i64)positions[lc_block_x()] * half;
    for (int i = lc_thread(); i < n_pairs; i += ROW_THREADS) {
        const float c = cosines[angle + i % half], s = sines[angle + i % half];
        const float even = x[row + 2 * i], odd = x[row + 2 * i + 1];
        out[row + 2 * i] = lc_fma(even, c, -lc_mul(odd, s)); /* as the CPU's */
        out[row + 2 * i + 1] = lc_fma(odd, c, lc_mul(even, s));
    }
}

/* --- into the KV cache -------------------------------------------------------------------------------------------------- */

struct Cache {
    const int *positions, *sequences, *page_table;
    int n_entries, page_size, n_head_kv;
};

/* Number of the row (of head_dim values) where head `head` of token t goes in its layer. */
LC_DEVICE lc_i64 cache_row(const Cache &c, int t, int head) {
    const int position = c.positions[t];
    const int page = c.page_table[(lc_i64)c.sequences[t] * c.n_entries + position / c.page_size];
    return ((lc_i64)page * c.n_head_kv + head) * c.page_size + position % c.page_size;
}

/* keys, values [tokens, n_head_kv * head_dim] -> the layer's k and v; grid: tokens, 2 (keys, values). */
LC_KERNEL(lc_write_kv_f16, ROW_THREADS, 1,
          (const float *keys, const float *values, lc_u8 *k, lc_u8 *v, const int *positions, const int *sequences,
           const int *page_table, lc_i64 n_entries, lc_i64 page_size, lc_i64 n_head_kv, lc_i64 head_dim)) {
    const Cache cache = {positions, sequences, page_table, (int)n_entries, (int)page_size, (int)n_head_kv};
    const int t = lc_block_x(), d = (int)head_dim, width = (int)n_head_kv * d;
    const float *x = (lc_block_y() ? values : keys) + (lc_i64)t * width;
    lc_u16 *store = (lc_u16 *)(lc_block_y() ? v : k);
    for (int i = lc_thread(); i < width; i += ROW_THREADS)
        store[cache_row(cache, t, i / d) * d + i % d] = lc_float_to_half(x[i]);
}

LC_KERNEL(lc_write_kv_q8_0, ROW_THREADS, 1,
          (const float *keys, const float *values, lc_u8 *k, lc_u8 *v, const int *positions, const int *sequences,
           const int *page_table, lc_i64 n_entries, lc_i64 page_size, lc_i64 n_head_kv, lc_i64 head_dim)) {
    const Cache cache = {positions, sequences, page_table, (int)n_entries, (int)page_size, (int)n_head_kv};
    const int t = lc_block_x(), d = (int)head_dim, width = (int)n_head_kv * d;
    const float *x = (lc_block_y() ? values : keys) + (lc_i64)t * width;
    lc_u8 *store = lc_block_y() ? v : k;
    for (int i = lc_thread(); i < width; i += ROW_THREADS) { /* whole warps, a block of 32 each */
        const float scale = warp_extreme(x[i], 16) / 127.0f;
        float inverse = 1.0f / scale;
        if (!lc_is_finite(inverse)) inverse = 0;
        const float scaled = lc_mul(x[i], inverse); /* rounded half away from zero, as q8_0 is defined */
        const int code = inverse == 0 ? 0 : (int)(scaled + (scaled < 0 ? -0.5f : 0.5f));
        lc_u8 *block = store + (cache_row(cache, t, i / d) * (d / 32) + i % d / 32) * 34;
        if (lc_lane() == 0) *(lc_u16 *)block = lc_float_to_half(scale);
        block[2 + lc_lane()] = (lc_u8)code;
    }
}
