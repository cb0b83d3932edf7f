/* Causal attention over the paged KV cache: split over the keys for few tokens (flash-decoding), tiled over tokens on
 * tensor cores for many (flash attention). head_dim is at most 256; beyond 128, split only: tiles of so wide heads fit
 * neither in shared memory nor in registers. */
#include "intrinsics.h"

enum { MAX_DIM = 256, KEYS = 128, FEW_THREADS = 128, FEW_WARPS = FEW_THREADS / 32 };
#define MINUS_INFINITY lc_bits_to_float(0xFF800000u)
#define LOG2_E 1.4426950408889634f

/* One layer's keys and values, and where each sequence's positions lie: [n_pages, n_head_kv, page_size, row]. */
struct Cache {
    const lc_u8 *k, *v;
    const int *page_table; /* [n_sequences, n_entries] */
    int n_entries, page_size, n_head_kv, head_dim;
};

LC_DEVICE lc_i64 cache_row(const Cache &c, int sequence, int position, int head) {
    const int page = c.page_table[(lc_i64)sequence * c.n_entries + position / c.page_size];
    return ((lc_i64)page * c.n_head_kv + head) * c.page_size + position % c.page_size;
}

/* --- formats of the cache: 8 values of a row from d on, zeros beyond its end ------------------------------------------ */

struct CacheF16 {
    LC_MEMBER lc_i64 row_bytes(int head_dim) { return 2 * head_dim; }
    LC_MEMBER void load8(const lc_u8 *row, int d, int head_dim, float (&x)[8]) {
        if (head_dim % 8 == 0 && d < head_dim) {
            const uint4 q = lc_load<uint4>(row + 2 * d);
            const lc_u32 words[4] = {q.x, q.y, q.z, q.w};
            LC_UNROLL for (int i = 0; i < 8; i++) x[i] = lc_half_to_float((lc_u16)(words[i >> 1] >> 16 * (i & 1)));
        } else {
            LC_UNROLL for (int i = 0; i < 8; i++)
                x[i] = d + i < head_dim ? lc_half_to_float(lc_load<lc_u16>(row + 2 * (d + i))) : 0.0f;
        }
    }
};

struct CacheQ8 {
    LC_MEMBER lc_i64 row_bytes(int head_dim) { return head_dim / 32 * 34; }
    LC_MEMBER void load8(const lc_u8 *row, int d, int head_dim, float (&x)[8]) {
        if (d >= head_dim) {
            LC_UNROLL for (int i = 0; i < 8; i++) x[i] = 0;
            return;
        }
        const lc_u8 *block = row + d / 32 * 34, *codes = block + 2 + d % 32;
        const float scale = lc_half_to_float(lc_load<lc_u16>(block));
        LC_UNROLL for (int i = 0; i < 8; i += 2) {
            const lc_u32 pair = lc_load<lc_u16>(codes + i);
            x[i] = scale * (float)(lc_i8)pair;
            x[i + 1] = scale * (float)(lc_i8)(pair >> 8);
        }
    }
};

/* --- few tokens --------------------------------------------------------------------------------------------------------- */
/* A block computes one token, HEADS query heads that share a KV head, over 128 positions; so a long context fills the
 * card even for one token, and grouped heads read their keys once. Limit: reading the cache; 16 lanes take a row of 128
 * values (32 lanes, of 256) in 16-byte pieces, 8 (4) rows are in flight a block. lc_combine joins the pieces. The cut into 128 positions is
 * fixed, so results do not depend on what else is in the step. */

template <int HEADS, int DIM>
struct FewScores {
    float score[HEADS][KEYS];
    float sum[FEW_WARPS][HEADS][DIM];
};

/* Scores in shared memory become weights exp(score - max); returns nothing but writes (max, sum) of each head. */
template <int HEADS, int DIM>
LC_DEVICE void soften(FewScores<HEADS, DIM> &shared, int n_heads, int n_keys, float *max_sum, lc_i64 stride) {
    for (int h = lc_warp(); h < HEADS; h += FEW_WARPS) {
        float x[KEYS / 32], most = MINUS_INFINITY, sum = 0;
        LC_UNROLL for (int i = 0; i < KEYS / 32; i++) {
            const int key = 32 * i + lc_lane();
            x[i] = key < n_keys ? shared.score[h][key] : MINUS_INFINITY;
            most = lc_max(x[i], most); /* a NaN goes on to the sum */
        }
        LC_UNROLL for (int mask = 16; mask > 0; mask >>= 1) most = lc_max(lc_shuffle_xor(most, mask), most);
        LC_UNROLL for (int i = 0; i < KEYS / 32; i++) {
            x[i] = lc_exp2((x[i] - most) * LOG2_E);
            sum += x[i];
            shared.score[h][32 * i + lc_lane()] = x[i];
        }
        sum = lc_warp_sum(sum);
        if (lc_lane() == 0 && h < n_heads) {
            max_sum[h * stride] = most;
            max_sum[h * stride + 1] = sum;
        }
    }
}

/* Grid: splits, KV heads x pieces of their group, tokens. out: [token, head, split, head_dim] sums; max_sum: [token, head,
 * split, 2]. */
template <class KV, int HEADS, int DIM>
LC_DEVICE void attend_few(const float *q, const Cache &c, const int *positions, const int *sequences, int n_head,
                          int n_splits, float *out, float *max_sum) {
    const int split = lc_block_x(), t = lc_block_z(), position = positions[t], sequence = sequences[t];
    const int group = n_head / c.n_head_kv, pieces = (group + HEADS - 1) / HEADS;
    const int head_kv = lc_block_y() / pieces, in_group = lc_block_y() % pieces * HEADS;
    const int head0 = head_kv * group + in_group, n_heads = group - in_group < HEADS ? group - in_group : HEADS;
    const int key0 = split * KEYS, left = position + 1 - key0, n_keys = left < KEYS ? left : KEYS;
    if (n_keys <= 0) return;
    enum { DIM_LANES = DIM / 8 };
    FewScores<HEADS, DIM> &shared = lc_shared<FewScores<HEADS, DIM>>();
    const int d = lc_lane() % DIM_LANES * 8, row = lc_thread() / DIM_LANES; /* 8 or 4 rows at once */
    const float scale = lc_inverse_sqrt((float)c.head_dim);

    float x[HEADS][8];
    LC_UNROLL for (int h = 0; h < HEADS; h++) LC_UNROLL for (int i = 0; i < 8; i++) {
        const lc_i64 at = ((lc_i64)t * n_head + head0 + h) * c.head_dim + d + i;
        x[h][i] = h < n_heads && d + i < c.head_dim ? q[at] * scale : 0.0f;
    }
    for (int j = row; j < KEYS; j += FEW_THREADS / DIM_LANES) { /* every lane comes along: they shuffle */
        const int key = j < n_keys ? j : n_keys - 1;
        float k[8];
        KV::load8(c.k + cache_row(c, sequence, key0 + key, head_kv) * KV::row_bytes(c.head_dim), d, c.head_dim, k);
        LC_UNROLL for (int h = 0; h < HEADS; h++) {
            float dot = 0;
            LC_UNROLL for (int i = 0; i < 8; i++) dot = lc_fma(x[h][i], k[i], dot);
            LC_UNROLL for (int mask = DIM_LANES / 2; mask > 0; mask >>= 1) dot += lc_shuffle_xor(dot, mask);
            if (lc_lane() % DIM_LANES == 0) shared.score[h][j] = dot;
        }
    }
    lc_sync_block();
    const lc_i64 at = ((lc_i64)t * n_head + head0) * n_splits + split;
    soften<HEADS, DIM>(shared, n_heads, n_keys, max_sum + 2 * at, 2 * (lc_i64)n_splits);
    lc_sync_block();

    float sum[HEADS][8];
    LC_UNROLL for (int h = 0; h < HEADS; h++) LC_UNROLL for (int i = 0; i < 8; i++) sum[h][i] = 0;
    for (int j = row; j < n_keys; j += FEW_THREADS / DIM_LANES) {
        float v[8];
        KV::load8(c.v + cache_row(c, sequence, key0 + j, head_kv) * KV::row_bytes(c.head_dim), d, c.head_dim, v);
        LC_UNROLL for (int h = 0; h < HEADS; h++) LC_UNROLL for (int i = 0; i < 8; i++)
            sum[h][i] = lc_fma(shared.score[h][j], v[i], sum[h][i]);
    }
    lc_sync_warp(); /* lanes leave the loop at different times */
    LC_UNROLL for (int h = 0; h < HEADS; h++) LC_UNROLL for (int i = 0; i < 8; i++) {
        float both = sum[h][i];
        if (DIM_LANES < 32) both += lc_shuffle_xor(both, DIM_LANES & 31);
        if (lc_lane() < DIM_LANES) shared.sum[lc_warp()][h][d + i] = both;
    }
    lc_sync_block();
    for (int i = lc_thread(); i < n_heads * c.head_dim; i += FEW_THREADS) {
        const int h = i / c.head_dim, e = i % c.head_dim;
        float total = 0;
        LC_UNROLL for (int w = 0; w < FEW_WARPS; w++) total += shared.sum[w][h][e];
        out[(at + (lc_i64)h * n_splits) * c.head_dim + e] = total;
    }
}

#define LC_ATTEND_FEW(kv, KV, heads, dim)                                                                         \
    LC_KERNEL(lc_attend_few_##kv##_##heads##_##dim, FEW_THREADS, 1,                                               \
              (const float *q, const lc_u8 *k, const lc_u8 *v, const int *positions, const int *sequences,        \
               const int *page_table, lc_i64 n_entries, lc_i64 page_size, lc_i64 n_head_kv, lc_i64 head_dim,      \
               lc_i64 n_head, lc_i64 n_splits, float *out, float *max_sum)) {                                     \
        const Cache c = {k, v, page_table, (int)n_entries, (int)page_size, (int)n_head_kv, (int)head_dim};        \
        attend_few<KV, heads, dim>(q, c, positions, sequences, (int)n_head, (int)n_splits, out, max_sum);         \
    }
LC_ATTEND_FEW(f16, CacheF16, 1, 128)
LC_ATTEND_FEW(f16, CacheF16, 4, 128)
LC_ATTEND_FEW(f16, CacheF16, 8, 128)
LC_ATTEND_FEW(f16, CacheF16, 1, 256)
LC_ATTEND_FEW(f16, CacheF16, 4, 256)
LC_ATTEND_FEW(f16, CacheF16, 8, 256)
LC_ATTEND_FEW(q8_0, CacheQ8, 1, 128)
LC_ATTEND_FEW(q8_0, CacheQ8, 4, 128)
LC_ATTEND_FEW(q8_0, CacheQ8, 8, 128)
LC_ATTEND_FEW(q8_0, CacheQ8, 1, 256)
LC_ATTEND_FEW(q8_0, CacheQ8, 4, 256)
LC_ATTEND_FEW(q8_0, CacheQ8, 8, 256)

/* out [token, n_head * head_dim] = the splits of each head joined. Grid: heads, tokens. 4 warps take every fourth split. */
LC_KERNEL(lc_combine, FEW_THREADS, 1,
          (const float *sums, const float *max_sum, const int *positions, lc_i64 n_head, lc_i64 n_splits,
           lc_i64 head_dim, float *out)) {
    struct Parts {
        float most[FEW_WARPS], weight[FEW_WARPS], sum[FEW_WARPS][MAX_DIM];
    };
    Parts &parts = lc_shared<Parts>();
    const int t = lc_block_y(), d = (int)head_dim, n = positions[t] / KEYS + 1;
    const lc_i64 head = (lc_i64)t * n_head + lc_block_x();
    const float *pairs = max_sum + 2 * head * n_splits, *rows = sums + head * n_splits * d;
    float most = MINUS_INFINITY;
    for (int s = lc_thread(); s < n; s += FEW_THREADS) most = lc_max(pairs[2 * s], most);
    lc_sync_warp();
    LC_UNROLL for (int mask = 16; mask > 0; mask >>= 1) most = lc_max(lc_shuffle_xor(most, mask), most);
    if (lc_lane() == 0) parts.most[lc_warp()] = most;
    lc_sync_block();
    LC_UNROLL for (int w = 0; w < FEW_WARPS; w++) most = lc_max(parts.most[w], most);

    float weight = 0, sum[MAX_DIM / 32];
    LC_UNROLL for (int i = 0; i < MAX_DIM / 32; i++) sum[i] = 0;
    LC_UNROLL_BY(4) for (int s = lc_warp(); s < n; s += FEW_WARPS) {
        const float factor = lc_exp2((pairs[2 * s] - most) * LOG2_E);
        weight = lc_fma(factor, pairs[2 * s + 1], weight);
        LC_UNROLL for (int i = 0; i < MAX_DIM / 32; i++) {
            const int e = 32 * i + lc_lane();
            if (e < d) sum[i] = lc_fma(factor, rows[(lc_i64)s * d + e], sum[i]);
        }
    }
    if (lc_lane() == 0) parts.weight[lc_warp()] = weight;
    LC_UNROLL for (int i = 0; i < MAX_DIM / 32; i++) parts.sum[lc_warp()][32 * i + lc_lane()] = sum[i];
    lc_sync_block();
    for (int e = lc_thread(); e < d; e += FEW_THREADS) {
        float total = 0, weights = 0;
        LC_UNROLL for (int w = 0; w < FEW_WARPS; w++) {
            total += parts.sum[w][e];
            weights += parts.weight[w];
        }
        out[head * d + e] = total / weights;
    }
}

/* --- many tokens -------------------------------------------------------------------------------------------------------- */
/* A block computes up to 64 neighbouring tokens of one sequence, one head, over all their keys, 64 at a time; a warp has
 * 16 of the tokens. Queries and weights are sums of two halves, so that attention adds no error of its own that would
 * turn the rounding of activations behind it: twice the products, of an op that is a small part of prefill until contexts
 * are long. Limit: the rate of mma.sync on halves; scores, weights and sums never leave the registers, with the
 * softmax kept running (Dao et al., FlashAttention-2). Values lie transposed in shared memory, so that a lane finds two
 * neighbouring keys in one word. */

enum { TILE = 64, TILE_WARPS = TILE / 16, TILE_THREADS = 32 * TILE_WARPS };

template <int DIM>
struct ManyTile {
    lc_u16 k[TILE][DIM + 8], v[DIM][TILE + 8];
};

template <class KV, int DIM>
LC_DEVICE void load_tile(ManyTile<DIM> &tile, const Cache &c, int sequence, int head_kv, int key0, int n_keys) {
    const int key = lc_thread() % TILE; /* neighbouring lanes store neighbouring halves of v */
    const bool here = key0 + key < n_keys;
    const lc_i64 row = here ? cache_row(c, sequence, key0 + key, head_kv) * KV::row_bytes(c.head_dim) : 0;
    const int head_dim = here ? c.head_dim : 0;
    LC_UNROLL_BY(2) for (int d = lc_thread() / TILE * 8; d < DIM; d += TILE_THREADS / TILE * 8) {
        float x[8];
        KV::load8(c.k + row, d, head_dim, x);
        const uint4 packed = {lc_pack_halves(x[0], x[1]), lc_pack_halves(x[2], x[3]), lc_pack_halves(x[4], x[5]),
                              lc_pack_halves(x[6], x[7])};
        *(uint4 *)&tile.k[key][d] = packed;
        KV::load8(c.v + row, d, head_dim, x);
        LC_UNROLL for (int i = 0; i < 8; i++) tile.v[d + i][key] = lc_float_to_half(x[i]);
    }
}

LC_DEVICE lc_u32 pair_at(const lc_u16 *p) { return *(const lc_u32 *)p; }

/* What rounding to halves left of two values. */
LC_DEVICE lc_u32 rest_of(lc_u32 halves, float low, float high) {
    return lc_pack_halves(low - lc_half_to_float((lc_u16)halves), high - lc_half_to_float((lc_u16)(halves >> 16)));
}

/* What a warp keeps of its 16 tokens; a lane has rows g and g + 8 (see lc_mma_f16). */
template <int DIM>
struct Flash {
    lc_u32 q[2][DIM / 16][4]; /* high and low halves */
    float sum[DIM / 8][4], most[2], weight[2];
};

/* The lane's part of q, times `scale`. n_rows: tokens that this warp has. */
template <int DIM>
LC_DEVICE void load_queries(Flash<DIM> &f, const float *q, lc_i64 stride, int n_rows, int head_dim, float scale) {
    const int g = lc_lane() / 4, t = lc_lane() % 4;
    LC_UNROLL for (int k = 0; k < DIM / 16; k++) LC_UNROLL for (int i = 0; i < 4; i++) {
        const int row = g + 8 * (i % 2), d = 16 * k + 8 * (i / 2) + 2 * t;
        const float *p = q + row * stride + d;
        const float low = row < n_rows && d < head_dim ? p[0] * scale : 0.0f;
        const float high = row < n_rows && d + 1 < head_dim ? p[1] * scale : 0.0f;
        f.q[0][k][i] = lc_pack_halves(low, high);
        f.q[1][k][i] = rest_of(f.q[0][k][i], low, high);
    }
}

/* Takes in the tile's keys, of which token i of the warp sees the first n_seen + i. */
template <int DIM>
LC_DEVICE void take_tile(Flash<DIM> &f, const ManyTile<DIM> &tile, int n_seen) {
    const int g = lc_lane() / 4, t = lc_lane() % 4;
    float s[TILE / 8][4];
    LC_UNROLL for (int n = 0; n < TILE / 8; n++) {
        LC_UNROLL for (int i = 0; i < 4; i++) s[n][i] = 0;
        LC_UNROLL for (int k = 0; k < DIM / 16; k++) {
            const lc_u16 *p = &tile.k[8 * n + g][16 * k + 2 * t];
            const lc_u32 b[2] = {pair_at(p), pair_at(p + 8)};
            lc_mma_f16(s[n], f.q[1][k], b);
            lc_mma_f16(s[n], f.q[0][k], b);
        }
    }
    float most[2] = {f.most[0], f.most[1]};
    LC_UNROLL for (int n = 0; n < TILE / 8; n++) LC_UNROLL for (int i = 0; i < 4; i++) {
        const int key = 8 * n + 2 * t + i % 2, row = i / 2;
        if (key >= n_seen + g + 8 * row) s[n][i] = MINUS_INFINITY;
        most[row] = lc_max(s[n][i], most[row]);
    }
    float keep[2], total[2] = {0, 0};
    LC_UNROLL for (int row = 0; row < 2; row++) {
        most[row] = lc_max(lc_shuffle_xor(most[row], 1), most[row]);
        most[row] = lc_max(lc_shuffle_xor(most[row], 2), most[row]);
        if (most[row] == MINUS_INFINITY) most[row] = 0; /* a row that sees nothing here */
        keep[row] = lc_exp2(f.most[row] - most[row]);
        f.most[row] = most[row];
    }
    LC_UNROLL for (int n = 0; n < TILE / 8; n++) LC_UNROLL for (int i = 0; i < 4; i++) {
        s[n][i] = lc_exp2(s[n][i] - most[i / 2]);
        total[i / 2] += s[n][i];
    }
    LC_UNROLL for (int row = 0; row < 2; row++) {
        total[row] += lc_shuffle_xor(total[row], 1);
        total[row] += lc_shuffle_xor(total[row], 2);
        f.weight[row] = lc_fma(f.weight[row], keep[row], total[row]);
    }
    LC_UNROLL for (int n = 0; n < DIM / 2; n++) f.sum[n / 4][n % 4] *= keep[n / 2 % 2];
    LC_UNROLL for (int k = 0; k < TILE / 16; k++) {
        lc_u32 high[4], low[4];
        LC_UNROLL for (int i = 0; i < 4; i++) {
            const float *pair = &s[2 * k + i / 2][i % 2 * 2];
            high[i] = lc_pack_halves(pair[0], pair[1]);
            low[i] = rest_of(high[i], pair[0], pair[1]);
        }
        LC_UNROLL for (int n = 0; n < DIM / 8; n++) {
            const lc_u16 *p = &tile.v[8 * n + g][16 * k + 2 * t];
            const lc_u32 b[2] = {pair_at(p), pair_at(p + 8)};
            lc_mma_f16(f.sum[n], low, b);
            lc_mma_f16(f.sum[n], high, b);
        }
    }
}

/* Grid: tiles, heads. tiles: [n, 2] first token and how many, at most 64, of one sequence and with positions in a row. */
template <class KV, int DIM>
LC_DEVICE void attend_many(const float *q, const Cache &c, const int *positions, const int *sequences, const int *tiles,
                           int n_head, float *out) {
    const int first = tiles[2 * lc_block_x()], n = tiles[2 * lc_block_x() + 1], head = lc_block_y();
    const int position = positions[first], sequence = sequences[first], head_kv = head / (n_head / c.n_head_kv);
    const int n_keys = position + n, row0 = 16 * lc_warp(), n_rows = n - row0;
    const lc_i64 stride = (lc_i64)n_head * c.head_dim, at = (first + row0) * stride + (lc_i64)head * c.head_dim;
    ManyTile<DIM> &tile = lc_shared<ManyTile<DIM>>();
    Flash<DIM> f;
    load_queries<DIM>(f, q + at, stride, n_rows, c.head_dim, lc_inverse_sqrt((float)c.head_dim) * LOG2_E);
    LC_UNROLL for (int i = 0; i < DIM / 2; i++) f.sum[i / 4][i % 4] = 0;
    f.most[0] = f.most[1] = MINUS_INFINITY;
    f.weight[0] = f.weight[1] = 0;
    for (int key0 = 0; key0 < n_keys; key0 += TILE) {
        load_tile<KV, DIM>(tile, c, sequence, head_kv, key0, n_keys);
        lc_sync_block();
        take_tile<DIM>(f, tile, position + row0 + 1 - key0);
        lc_sync_block();
    }
    const int g = lc_lane() / 4, t = lc_lane() % 4;
    LC_UNROLL for (int j = 0; j < DIM / 2; j++) {
        const int i = j % 4, row = g + 8 * (i / 2), d = 8 * (j / 4) + 2 * t + i % 2;
        if (row < n_rows && d < c.head_dim) out[at + row * stride + d] = f.sum[j / 4][i] / f.weight[i / 2];
    }
}

#define LC_ATTEND_MANY(kv, KV, dim)                                                                               \
    LC_KERNEL(lc_attend_many_##kv##_##dim, TILE_THREADS, 1,                                                       \
              (const float *q, const lc_u8 *k, const lc_u8 *v, const int *positions, const int *sequences,        \
               const int *page_table, lc_i64 n_entries, lc_i64 page_size, lc_i64 n_head_kv, lc_i64 head_dim,      \
               lc_i64 n_head, const int *tiles, float *out)) {                                                    \
        const Cache c = {k, v, page_table, (int)n_entries, (int)page_size, (int)n_head_kv, (int)head_dim};        \
        attend_many<KV, dim>(q, c, positions, sequences, tiles, (int)n_head, out);                                \
    }
LC_ATTEND_MANY(f16, CacheF16, 64)
LC_ATTEND_MANY(f16, CacheF16, 128)
LC_ATTEND_MANY(q8_0, CacheQ8, 64)
LC_ATTEND_MANY(q8_0, CacheQ8, 128)
