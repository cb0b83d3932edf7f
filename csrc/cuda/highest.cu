/* The k highest logits of each row, so that a step need copy a few words to the host instead of the whole vocabulary.
 *
 * Limit: the launches; a row is 100 to 400 KB and read once, by many blocks. A block takes 4096 logits down to k, and
 * another one up to 4096 of what such blocks left, until one group is left. Logits become 64-bit keys that are
 * ordered as the logits are, of equal ones the earlier higher, so no two are equal and every result is the only one. A
 * logit that is not finite comes before all others: whoever looks at the result sees it. */
#include "intrinsics.h"

enum { HIGHEST_GROUP = 4096, MAX_HIGHEST = 512, ROW_THREADS = 256 };
enum { HIGHEST_WARPS = ROW_THREADS / 32, HIGHEST_KEYS = HIGHEST_GROUP / ROW_THREADS };

/* 0 is below every key. */
LC_DEVICE lc_u64 key_of(float x, int id, bool is_wanted) {
    const lc_u64 low = 0xFFFFFFFFu - (lc_u32)id;
    if (!lc_is_finite(x)) return 0xFFFFFFFFull << 32 | low;
    if (!is_wanted) return 0;
    const lc_u32 bits = lc_float_to_bits(x + 0.0f); /* -0 is 0 */
    return (lc_u64)(bits & 0x80000000u ? ~bits : bits | 0x80000000u) << 32 | low;
}
LC_DEVICE int id_of(lc_u64 key) { return (int)(0xFFFFFFFFu - (lc_u32)key); }

struct HighestParts {
    int counts[2][HIGHEST_WARPS];
    lc_u64 most[HIGHEST_WARPS];
    lc_u64 keys[MAX_HIGHEST];
};

/* How many of the block's keys are at least `least`. `step` counts the calls. */
LC_DEVICE int count_from(HighestParts &parts, const lc_u64 (&keys)[HIGHEST_KEYS], lc_u64 least, int step) {
    int count = 0;
    LC_UNROLL for (int i = 0; i < HIGHEST_KEYS; i++) count += keys[i] >= least;
    LC_UNROLL for (int mask = 16; mask > 0; mask >>= 1) count += lc_shuffle_xor(count, mask);
    int *counts = parts.counts[step & 1]; /* two of them: one barrier a step is enough */
    if (lc_lane() == 0) counts[lc_warp()] = count;
    lc_sync_block();
    count = 0;
    LC_UNROLL for (int w = 0; w < HIGHEST_WARPS; w++) count += counts[w];
    return count;
}

/* The block's k-th highest key; 1 where fewer are above 0. Bit by bit, until k keys are left above what is known of it. */
LC_DEVICE lc_u64 kth_highest(HighestParts &parts, const lc_u64 (&keys)[HIGHEST_KEYS], int k) {
    lc_u64 least = 0;
    for (int bit = 63; bit >= 0; bit--) {
        const lc_u64 higher = least | 1ull << bit;
        const int count = count_from(parts, keys, higher, bit);
        if (count >= k) least = higher;
        if (count == k) break;
    }
    return least ? least : 1;
}

LC_DEVICE lc_u64 highest(HighestParts &parts, const lc_u64 (&keys)[HIGHEST_KEYS]) {
    lc_u64 most = 0;
    LC_UNROLL for (int i = 0; i < HIGHEST_KEYS; i++) most = keys[i] > most ? keys[i] : most;
    LC_UNROLL for (int mask = 16; mask > 0; mask >>= 1) {
        const lc_u64 other = lc_shuffle_xor(most, mask);
        most = other > most ? other : most;
    }
    if (lc_lane() == 0) parts.most[lc_warp()] = most;
    lc_sync_block();
    LC_UNROLL for (int w = 0; w < HIGHEST_WARPS; w++) most = parts.most[w] > most ? parts.most[w] : most;
    return most;
}

/* parts.keys = those from `least` on, at most k, in no order; zeros behind them up to `size`. */
LC_DEVICE void gather(HighestParts &parts, const lc_u64 (&keys)[HIGHEST_KEYS], lc_u64 least, int size) {
    int n = 0;
    LC_UNROLL for (int i = 0; i < HIGHEST_KEYS; i++) n += keys[i] >= least;
    int before = 0, all = n;
    LC_UNROLL for (int mask = 1; mask < 32; mask <<= 1) {
        const int others = lc_shuffle_xor(all, mask);
        if (lc_lane() & mask) before += others;
        all += others;
    }
    lc_sync_block(); /* the last counts have been read */
    if (lc_lane() == 0) parts.counts[0][lc_warp()] = all;
    lc_sync_block();
    int total = 0;
    LC_UNROLL for (int w = 0; w < HIGHEST_WARPS; w++) {
        if (w < lc_warp()) before += parts.counts[0][w];
        total += parts.counts[0][w];
    }
    LC_UNROLL for (int i = 0; i < HIGHEST_KEYS; i++)
        if (keys[i] >= least) parts.keys[before++] = keys[i];
    for (int i = total + lc_thread(); i < size; i += ROW_THREADS) parts.keys[i] = 0;
    lc_sync_block();
}

/* Sorts parts.keys, of which there are a power of two, downwards (a bitonic network). */
LC_DEVICE void sort_down(HighestParts &parts, int size) {
    for (int run = 2; run <= size; run *= 2)
        for (int apart = run / 2; apart > 0; apart /= 2) {
            const int pair = lc_thread(), i = pair / apart * 2 * apart + pair % apart, j = i + apart;
            if (j < size) {
                const lc_u64 a = parts.keys[i], b = parts.keys[j];
                if ((a < b) == ((i & run) == 0)) parts.keys[i] = b, parts.keys[j] = a;
            }
            lc_sync_block();
        }
}

/* The block's k highest keys: to `keys` [k] in no order, or, where `out` is not NULL, there, the highest first, as pairs
 * of an id and the bits of its logit. */
LC_DEVICE void leave_highest(const lc_u64 (&mine)[HIGHEST_KEYS], int k, const float *logits, lc_u64 *keys, uint2 *out) {
    HighestParts &parts = lc_shared<HighestParts>();
    int size = 1;
    while (size < k) size *= 2;
    if (k == 1) {
        const lc_u64 most = highest(parts, mine);
        if (lc_thread() == 0) parts.keys[0] = most;
        lc_sync_block();
    } else {
        const lc_u64 least = kth_highest(parts, mine, k);
        gather(parts, mine, least, size);
    }
    if (out) sort_down(parts, size);
    for (int i = lc_thread(); i < k; i += ROW_THREADS) {
        if (out) {
            const int id = id_of(parts.keys[i]);
            const uint2 pair = {(lc_u32)id, lc_float_to_bits(logits[id])};
            out[i] = pair;
        } else {
            keys[i] = parts.keys[i];
        }
    }
}

/* logits [rows, n] -> keys [rows, groups, k] or out [rows, k], from ids below n_ids. Grid: groups, rows. */
LC_KERNEL(lc_highest, ROW_THREADS, 1,
          (const float *logits, lc_i64 n, lc_i64 n_ids, lc_i64 k, lc_i64 n_groups, lc_u64 *keys, uint2 *out)) {
    const lc_i64 row = lc_block_y();
    const int first = lc_block_x() * HIGHEST_GROUP;
    lc_u64 mine[HIGHEST_KEYS];
    LC_UNROLL for (int i = 0; i < HIGHEST_KEYS; i++) {
        const int id = first + i * ROW_THREADS + lc_thread();
        mine[i] = id < n ? key_of(logits[row * n + id], id, id < n_ids) : 0;
    }
    leave_highest(mine, (int)k, logits + row * n, keys + (row * n_groups + lc_block_x()) * k, out ? out + row * k : out);
}

/* The same from keys [rows, n_keys] of logits [rows, n]. */
LC_KERNEL(lc_highest_again, ROW_THREADS, 1,
          (const lc_u64 *from, lc_i64 n_keys, const float *logits, lc_i64 n, lc_i64 k, lc_i64 n_groups, lc_u64 *keys,
           uint2 *out)) {
    const lc_i64 row = lc_block_y();
    const lc_i64 first = (lc_i64)lc_block_x() * HIGHEST_GROUP;
    lc_u64 mine[HIGHEST_KEYS];
    LC_UNROLL for (int i = 0; i < HIGHEST_KEYS; i++) {
        const lc_i64 at = first + i * ROW_THREADS + lc_thread();
        mine[i] = at < n_keys ? from[row * n_keys + at] : 0;
    }
    leave_highest(mine, (int)k, logits + row * n, keys + (row * n_groups + lc_block_x()) * k, out ? out + row * k : out);
}
