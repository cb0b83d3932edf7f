/* Every kernel of every instruction set that this machine can run, against the plain ones: awkward lengths, memory of
 * just the stated size, padding filled with NaN, values that are not finite. */
#include "aligned.h"
#include "check.h"
#include "dispatch.h"
#include "fused.h"
#include "half.h"
#include "attention.h"
#include "convert.h"
#include "matmul.h"

static const int LENGTHS[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 80, 127, 500};
enum { N_LENGTHS = sizeof LENGTHS / sizeof *LENGTHS };

static lc_kernels ref;

static bool same(const float *a, const float *b, size_t n) { return memcmp(a, b, n * sizeof *a) == 0; }

/* Against the library's own: operands of all sizes, sums that cancel, and products between two floats that a tiny
 * addend pushes to one side. */
static void test_fused(void) {
    for (int i = 0; i < 1000000; i++) {
        float a = lc_float_from_bits(random_bits()), b = lc_float_from_bits(random_bits());
        float c = lc_float_from_bits(random_bits());
        if (i % 3 == 1) c = -a * b * (1 + random_float() * 1e-7f);
        if (i % 3 == 2) {
            a = (float)(random_bits() % 4096 | 4097), b = (float)(random_bits() % 4096 | 4097);
            c = random_float() * 1e-12f;
        }
        const float mine = lc_fma(a, b, c), theirs = fmaf(a, b, c);
        CHECK(lc_float_bits(mine) == lc_float_bits(theirs) || (isnan(mine) && isnan(theirs)), "%a * %a + %a = %a, not %a",
              (double)a, (double)b, (double)c, (double)theirs, (double)mine);
    }
    for (int i = -9000; i <= 9000; i++) {
        const float x = (float)i / 100, e = lc_exp(x);
        if (i < -8700) CHECK(e == 0, "exp(%g) is %g", (double)x, (double)e);
        else if (i <= 8800) CHECK(fabs(e / exp((double)x) - 1) < 1.5e-7, "exp(%g) is %g", (double)x, (double)e);
    }
    CHECK(isnan(lc_exp(NAN)) && lc_exp(-INFINITY) == 0 && lc_exp(INFINITY) == lc_exp(88), "exp at the ends");
}

static void test_rows(const lc_kernels *k) {
    for (int i = 0; i < N_LENGTHS; i++) {
        const int n = LENGTHS[i];
        float *x = random_floats((size_t)n), *y = random_floats((size_t)n);
        float *a = take((size_t)n * 4), *b = take((size_t)n * 4);
        uint16_t *ha = take((size_t)n * 2), *hb = take((size_t)n * 2);
        k->rms_norm(x, y, n, 1e-6, a), ref.rms_norm(x, y, n, 1e-6, b);
        CHECK(same(a, b, (size_t)n), "%s rms_norm %d", k->isa, n);
        for (int j = 0; j < n; j++) x[j] *= 100;
        k->silu_mul(x, y, n, a), ref.silu_mul(x, y, n, b);
        CHECK(same(a, b, (size_t)n), "%s silu_mul %d", k->isa, n);
        memcpy(a, x, (size_t)n * 4);
        k->silu_mul(a, y, n, a);
        CHECK(same(a, b, (size_t)n), "%s silu_mul in place %d", k->isa, n);
        k->add(x, y, n, a), ref.add(x, y, n, b);
        CHECK(same(a, b, (size_t)n), "%s add %d", k->isa, n);
        k->float_to_half(x, n, ha), ref.float_to_half(x, n, hb);
        CHECK(memcmp(ha, hb, (size_t)n * 2) == 0, "%s float_to_half %d", k->isa, n);
        k->half_to_float(ha, n, a), ref.half_to_float(hb, n, b);
        CHECK(same(a, b, (size_t)n), "%s half_to_float %d", k->isa, n);
        free(x), free(y), free(a), free(b), free(ha), free(hb);
    }
}

/* What a cache is kept in becomes the same floats everywhere. */
static void test_to_float(const lc_kernels *k) {
    enum { N = 160 };
    for (int type = 0; type < LC_TYPE_END; type++) {
        if (k->to_float[type] == NULL) continue;
        const size_t n_bytes = lc_row_bytes(lc_format_of(type), N);
        uint8_t *blocks = take(n_bytes);
        for (size_t i = 0; i < n_bytes; i++) blocks[i] = (uint8_t)random_bits() & 0xBF; /* no exponent of all ones */
        float *a = take(N * 4), *b = take(N * 4);
        k->to_float[type](blocks, N, a);
        lc_dequantize_row(type, blocks, NULL, N, b);
        CHECK(same(a, b, N), "%s to_float of %s", k->isa, lc_format_of(type)->name);
        free(blocks), free(a), free(b);
    }
}

/* One query with the cache's rows as they lie, against rows that were made float32. */
static void test_along_cache(const lc_kernels *k) {
    enum { MOST = 64 };
    for (int type = 0; type < LC_TYPE_END; type++) {
        if (k->scores_along[type] == NULL) continue;
        for (int d = 32; d <= 288; d += 64)
            for (int n_k = 1; n_k <= MOST; n_k += 7) {
                const size_t row_bytes = lc_row_bytes(lc_format_of(type), d), n = (size_t)(n_k * d);
                uint8_t *rows = take((size_t)n_k * row_bytes);
                for (size_t i = 0; i < (size_t)n_k * row_bytes; i++) rows[i] = (uint8_t)random_bits() & 0x3F;
                float *q = random_floats((size_t)d), *out = random_floats((size_t)d), *floats = take(n * 4);
                float *expected = take((size_t)d * 4), a[MOST], b[MOST];
                memcpy(expected, out, (size_t)d * 4);
                lc_dequantize_row(type, rows, NULL, (int64_t)n, floats);
                k->scores_along[type](q, rows, row_bytes, n_k, d, 0.25f, rows, a);
                ref.attend_scores(q, 1, floats, n_k, d, 0.25f, b, MOST);
                const char *name = lc_format_of(type)->name;
                CHECK(same(a, b, (size_t)n_k), "%s scores along %s, %d keys of %d", k->isa, name, n_k, d);
                const float keep = 0.5f;
                k->mix_along[type](b, keep, rows, row_bytes, n_k, d, rows, out);
                ref.attend_mix(b, MOST, &keep, 1, floats, n_k, d, expected);
                CHECK(same(out, expected, (size_t)d), "%s mix along %s, %d keys of %d", k->isa, name, n_k, d);
                free(rows), free(q), free(out), free(floats), free(expected);
            }
    }
}

static void test_not_finite(const lc_kernels *k) {
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        float x[40], one[40], out[40];
        for (int j = 0; j < 40; j++) x[j] = one[j] = 1;
        x[37] = bad[i];
        k->rms_norm(x, one, 40, 1e-6, out);
        CHECK(!isfinite(out[37]), "%s rms_norm of %g gives %g", k->isa, (double)bad[i], (double)out[37]);
        k->silu_mul(one, x, 40, out);
        CHECK(!isfinite(out[37]), "%s silu_mul of %g gives %g", k->isa, (double)bad[i], (double)out[37]);
    }
    float scores[16], out[40], nan_gate[40];
    for (int j = 0; j < 40; j++) nan_gate[j] = NAN;
    k->silu_mul(nan_gate, nan_gate, 40, out);
    CHECK(isnan(out[0]) && isnan(out[39]), "%s silu_mul of NaN", k->isa);
    for (int j = 0; j < 16; j++) scores[j] = j < 3 ? 0 : -INFINITY;
    CHECK(k->exp_sum(scores, 16, 0) == 3 && scores[5] == 0, "%s exp_sum of -infinity", k->isa);
    scores[7] = NAN;
    CHECK(isnan(k->exp_sum(scores, 16, 0)), "%s exp_sum of NaN", k->isa);
}

static void test_rope(const lc_kernels *k) {
    for (int d = 2; d <= 130; d += d < 20 ? 2 : 22) {
        float *x = random_floats(3 * (size_t)d);
        float *cos = random_floats((size_t)d / 2), *sin = random_floats((size_t)d / 2);
        float *a = take(3 * (size_t)d * 4), *b = take(3 * (size_t)d * 4);
        k->rope(x, cos, sin, 3, d, a), ref.rope(x, cos, sin, 3, d, b);
        CHECK(same(a, b, 3 * (size_t)d), "%s rope %d", k->isa, d);
        k->rope(x, cos, sin, 3, d, x);
        CHECK(same(x, b, 3 * (size_t)d), "%s rope in place %d", k->isa, d);
        free(x), free(cos), free(sin), free(a), free(b);
    }
}

static void test_attention(const lc_kernels *k) {
    enum { LDS = 64 };
    for (int n_q = 1; n_q <= 9; n_q++)
        for (int n_k = 1; n_k <= 64; n_k += 9)
            for (int d = 16; d <= 144; d += 32) {
                float *q = random_floats((size_t)(n_q * d)), *rows = random_floats((size_t)(n_k * d));
                float *keep = random_floats((size_t)n_q), *out = random_floats((size_t)(n_q * d));
                float *a = take((size_t)n_q * LDS * 4), *b = take((size_t)n_q * LDS * 4);
                memset(a, 0xFF, (size_t)n_q * LDS * 4); /* NaN */
                memset(b, 0xFF, (size_t)n_q * LDS * 4);
                float *out_b = take((size_t)(n_q * d) * 4);
                memcpy(out_b, out, (size_t)(n_q * d) * 4);
                k->attend_scores(q, n_q, rows, n_k, d, 0.25f, a, LDS);
                ref.attend_scores(q, n_q, rows, n_k, d, 0.25f, b, LDS);
                for (int i = 0; i < n_q; i++)
                    CHECK(same(a + i * LDS, b + i * LDS, (size_t)n_k), "%s scores %d %d", k->isa, n_k, d);
                for (int i = 0; i < n_q; i++) { /* one query at a time gives the same bits */
                    float alone[LDS];
                    k->attend_scores(q + i * d, 1, rows, n_k, d, 0.25f, alone, LDS);
                    CHECK(same(alone, a + i * LDS, (size_t)n_k), "%s scores alone", k->isa);
                }
                k->attend_mix(a, LDS, keep, n_q, rows, n_k, d, out);
                ref.attend_mix(b, LDS, keep, n_q, rows, n_k, d, out_b);
                CHECK(same(out, out_b, (size_t)(n_q * d)), "%s mix %d %d %d", k->isa, n_q, n_k, d);
                free(q), free(rows), free(keep), free(out), free(a), free(b), free(out_b);
            }
}

static void test_exp(const lc_kernels *k) {
    enum { N = 4096 };
    float *a = take(N * 4), *b = take(N * 4);
    for (int i = 0; i < N; i++) a[i] = b[i] = -100.0f * (float)i / N;
    const float sum_a = k->exp_sum(a, N, 0), sum_b = ref.exp_sum(b, N, 0);
    CHECK(same(a, b, N), "%s exp", k->isa);
    CHECK(sum_a == sum_b, "%s sum of exp", k->isa);
    free(a), free(b);
}

/* Rows of a float type: 0 float32, 1 half, 2 bf16. */
static uint8_t *random_float_rows(int type, int n_values) {
    const size_t size = type == 0 ? 4 : 2;
    uint8_t *rows = take((size_t)n_values * size);
    for (int j = 0; j < n_values; j++) {
        const float w = random_float();
        const uint16_t bits = type == 1 ? lc_float_to_half(w) : lc_float_to_bf16(w);
        memcpy(rows + (size_t)j * size, type == 0 ? (const void *)&w : &bits, size);
    }
    return rows;
}

static void test_float_dots(const lc_kernels *k) {
    const lc_float_tile_fn mine[] = {k->dot_f32, k->dot_f16, k->dot_bf16};
    const lc_float_tile_fn plain[] = {ref.dot_f32, ref.dot_f16, ref.dot_bf16};
    float *scratch = lc_alloc(LC_DOT_SCRATCH * sizeof(float));
    memset(scratch, 0xFF, LC_DOT_SCRATCH * sizeof(float));
    for (int type = 0; type < 3; type++)
        for (int i = 0; i < N_LENGTHS; i++) {
            const int n = LENGTHS[i], n_rows = 1 + i % 6, n_tokens = 1 + i * 5 % 17, size = type == 0 ? 4 : 2;
            uint8_t *rows = random_float_rows(type, n_rows * n);
            float *x = random_floats((size_t)(n * n_tokens));
            float *a = take((size_t)(n_rows * n_tokens) * 4), *b = take((size_t)(n_rows * n_tokens) * 4);
            mine[type](rows, (size_t)(n * size), n_rows, x, (size_t)n, n_tokens, n, rows, scratch, a, (size_t)n_rows);
            plain[type](rows, (size_t)(n * size), n_rows, x, (size_t)n, n_tokens, n, rows, scratch, b, (size_t)n_rows);
            CHECK(all_close(a, b, (size_t)(n_rows * n_tokens), 2e-6f), "%s dot type %d length %d", k->isa, type, n);
            free(rows), free(x), free(a), free(b);
        }
    lc_free(scratch);
}

/* Of many rows and tokens, each sum is what it is for a row and a token alone. */
static void test_many_float_dots(const lc_kernels *k) {
    enum { N_ROWS = LC_DOT_STRETCH + 7, N_TOKENS = 17 };
    static const int LONG[] = {20, LC_DOT_SPAN, 2 * LC_DOT_SPAN + 37};
    const lc_float_tile_fn dot[] = {k->dot_f32, k->dot_f16, k->dot_bf16};
    float *scratch = lc_alloc(LC_DOT_SCRATCH * sizeof(float)), *y = take(N_ROWS * N_TOKENS * sizeof(float));
    memset(scratch, 0xFF, LC_DOT_SCRATCH * sizeof(float));
    for (int type = 0; type < 3; type++)
        for (int i = 0; i < 3; i++) {
            const int n = LONG[i];
            const size_t row_bytes = (size_t)(n * (type == 0 ? 4 : 2)), ldx = (size_t)n;
            uint8_t *rows = random_float_rows(type, N_ROWS * n);
            float *x = random_floats((size_t)(n * N_TOKENS));
            dot[type](rows, row_bytes, N_ROWS, x, ldx, N_TOKENS, n, rows, scratch, y, N_ROWS);
            for (int r = 0; r < N_ROWS; r++)
                for (int t = 0; t < N_TOKENS; t++) {
                    float alone;
                    dot[type](rows + (size_t)r * row_bytes, row_bytes, 1, x + (size_t)t * ldx, ldx, 1, n, rows, scratch,
                              &alone, 1);
                    CHECK(same(&alone, y + t * N_ROWS + r, 1), "%s dot type %d length %d row %d token %d", k->isa, type, n,
                          r, t);
                }
            free(rows), free(x);
        }
    lc_free(scratch), free(y);
}

/* Rounded activations of `n_tokens` tokens in memory of just the right size. */
static lc_activations rounded(const lc_kernels *k, const float *x, int n_tokens, int n, bool is_bf16) {
    lc_activations store = {take(lc_activation_bytes(k, n_tokens, n)), n_tokens, n, is_bf16};
    for (int t = 0; t < n_tokens; t++) lc_round_activations(k, &store, t, x + (size_t)t * (size_t)n);
    return store;
}

static void test_quantize_q8(const lc_kernels *k) {
    enum { N = 192 };
    float x[N];
    for (int i = 0; i < N; i++) x[i] = i < 32 ? 0 : i < 64 ? (float)(i - 48) * 0.5f : random_float();
    x[100] = 100;
    lc_kernels alone = *k, plain = ref;
    alone.tile_tokens = plain.tile_tokens = alone.few_tokens = plain.few_tokens = 1;
    lc_activations a = rounded(&alone, x, 1, N, false), b = rounded(&plain, x, 1, N, false);
    const lc_q8_block mine = lc_q8_block_at(&alone, &a, 0), theirs = lc_q8_block_at(&plain, &b, 0);
    CHECK(memcmp(mine.codes, theirs.codes, N) == 0, "%s codes", k->isa);
    CHECK(memcmp(mine.scales, theirs.scales, N / 32 * 4) == 0, "%s scales", k->isa);
    CHECK(memcmp(mine.sums32, theirs.sums32, N / 32 * 4) == 0, "%s sums32", k->isa);
    CHECK(memcmp(mine.sums16, theirs.sums16, N / 16 * 4) == 0, "%s sums16", k->isa);
    for (int g = 0; g < N / 16; g++) {
        int sum = 0;
        for (int i = 0; i < 16; i++) sum += mine.codes[16 * g + i];
        CHECK(mine.bias16[g] == -LC_CODE_BIAS * sum, "%s bias16", k->isa);
    }
    free(a.memory), free(b.memory);
}

/* Random blocks with scales that are finite and not large; those of the first n_extreme rows, at most 4, have the largest
 * and smallest codes. */
static uint8_t *random_weight(int32_t type, int n_rows, int n_in, size_t n_extreme) {
    static const uint8_t EXTREMES[] = {0x80, 0x7F, 0xFF, 0};
    const lc_format *format = lc_format_of(type);
    const size_t row_blocks = (size_t)(n_in / format->elems), row_bytes = row_blocks * (size_t)format->bytes;
    const size_t n_blocks = (size_t)n_rows * row_blocks;
    uint8_t *data = take(n_blocks * (size_t)format->bytes);
    for (size_t i = 0; i < n_blocks * (size_t)format->bytes; i++)
        data[i] = i < n_extreme * row_bytes ? EXTREMES[i / row_bytes] : (uint8_t)random_bits();
    for (size_t i = 0; i < n_blocks; i++) {
        uint8_t *block = data + i * (size_t)format->bytes;
        const uint16_t d = lc_float_to_half(random_float() / 16);
        size_t at = 0, n = 1;
        switch (type) {
        case LC_TYPE_F32: {
            const float w = random_float();
            memcpy(block, &w, 4);
            continue;
        }
        case LC_TYPE_Q4_1:
        case LC_TYPE_Q5_1:
        case LC_TYPE_Q4_K:
        case LC_TYPE_Q5_K: n = 2; break;
        case LC_TYPE_Q2_K: at = offsetof(lc_block_q2_k, d), n = 2; break;
        case LC_TYPE_Q3_K: at = offsetof(lc_block_q3_k, d); break;
        case LC_TYPE_Q6_K: at = offsetof(lc_block_q6_k, d); break;
        case LC_TYPE_TQ1_0: at = offsetof(lc_block_tq1_0, d); break;
        case LC_TYPE_TQ2_0: at = offsetof(lc_block_tq2_0, d); break;
        case LC_TYPE_MXFP4: block[0] = (uint8_t)(120 + block[0] % 8); continue;
        case LC_TYPE_NVFP4: continue;
        case LC_TYPE_IQ1_M: block[51] &= 0x3F, block[53] &= 0x3F, block[55] &= 0x3F; continue;
        default: break;
        }
        for (size_t j = 0; j < n; j++) memcpy(block + at + 2 * j, &d, 2);
    }
    return data;
}

static void test_matmul(const lc_kernels *k, const lc_format *format, int32_t type, const int8_t *grid) {
    const int n_in = format->elems == 1 ? 70 : format->elems * (1280 / format->elems) + format->elems;
    const int n_out = 37, max_tokens = 27;
    uint8_t *data = random_weight(type, n_out, n_in, 4);
    const lc_weight weight = {data, grid, type, n_out, n_in};
    float *x = random_floats((size_t)(max_tokens * n_in));
    for (int i = 0; i < 2 * n_in; i++) x[i] = i < n_in ? 1 : -1; /* codes of 127 and -127 */
    const lc_kernels *both[] = {k, &ref};
    for (int n_tokens = 1; n_tokens <= max_tokens; n_tokens += n_tokens < 14 ? 1 : 13) {
        float *c[2], *at_once = NULL;
        for (int i = 0; i < 2; i++) {
            lc_activations q8 = {NULL, n_tokens, n_in, false};
            if (format->is_q8) q8 = rounded(both[i], x, n_tokens, n_in, false);
            const size_t c_size = (size_t)(n_tokens * lc_sums_step(n_tokens));
            lc_matmul_scratch scratch = {lc_alloc(lc_panels_bytes(both[i])),
                                         {NULL, NULL}, take(LC_FLOAT_ROWS * (size_t)n_in * 4)};
            memset(scratch.panels, 0xFF, lc_panels_bytes(both[i]));
            c[i] = take(c_size * 4);
            memset(c[i], 0xFF, c_size * 4);
            lc_matmul_chunk(both[i], &weight, 0, n_out, &q8, x, n_tokens, data, &scratch, c[i]);
            if (i == 0) { /* rows from the middle give the same bits */
                at_once = take(c_size * 4);
                lc_matmul_chunk(k, &weight, 13, n_out - 13, &q8, x, n_tokens, data, &scratch, at_once);
            }
            free(q8.memory), lc_free(scratch.panels), free(scratch.rows);
        }
        for (int t = 0; t < n_tokens; t++) {
            const int at = t * lc_sums_step(n_tokens);
            const float *a = c[0] + at, *b = c[1] + at;
            const bool agree = format->is_q8 ? same(a, b, (size_t)n_out) : all_close(a, b, (size_t)n_out, 1e-5f);
            CHECK(agree, "%s %s, token %d of %d", k->isa, format->name, t, n_tokens);
            CHECK(same(a + 13, at_once + at, (size_t)(n_out - 13)), "%s %s: rows", k->isa, format->name);
        }
        free(c[0]), free(c[1]), free(at_once);
    }
    free(data), free(x);
}

static double in_bf16(float x) { return (double)lc_bf16_to_float(lc_float_to_bf16(x)); }

/* Many tokens on products of bf16, beside sums in double of the same rounded values. */
static void test_bf16(const lc_kernels *k, const lc_format *format, int32_t type, const int8_t *grid) {
    const int n_in = format->elems * (640 / format->elems) + format->elems, n_out = 74, most = 3 * LC_BF16_SIDE;
    uint8_t *data = random_weight(type, n_out, n_in, 0);
    const lc_weight weight = {data, grid, type, n_out, n_in};
    float *x = random_floats((size_t)(most * n_in)), *row = take((size_t)n_in * 4), *residual = random_floats((size_t)(most * n_out));
    float *c = lc_alloc(lc_sums_bytes(k, most)), *out = take((size_t)(most * n_out) * 4), *middle = take((size_t)(most * n_out) * 4);
    const lc_matmul_scratch scratch = {lc_alloc(lc_panels_bytes(k)), {NULL, NULL}, NULL};
    for (int n_tokens = 1; n_tokens <= most; n_tokens += n_tokens == 1 ? 16 : 5) {
        lc_activations rounded_x = rounded(k, x, n_tokens, n_in, true);
        memset(scratch.panels, 0xFF, lc_panels_bytes(k));
        memset(c, 0xFF, lc_sums_bytes(k, most));
        lc_bf16_chunk(k, &weight, 0, n_out, &rounded_x, &scratch, c);
        lc_end_bf16(k, c, NULL, residual, n_tokens, n_out, out, (size_t)n_out);
        lc_bf16_chunk(k, &weight, 13, n_out - 13, &rounded_x, &scratch, c);
        lc_end_bf16(k, c, NULL, NULL, n_tokens, n_out - 13, middle, (size_t)n_out);
        for (int r = 0; r < n_out; r++) {
            lc_dequantize_row(type, data + (size_t)r * lc_row_bytes(format, n_in), grid, n_in, row);
            for (int t = 0; t < n_tokens; t++) {
                double sum = 0, size = 0;
                for (int i = 0; i < n_in; i++) {
                    const double product = in_bf16(row[i]) * in_bf16(x[t * n_in + i]);
                    sum += product, size += fabs(product);
                }
                const float added = residual[t * n_out + r], got = out[t * n_out + r];
                CHECK(fabs((double)got - added - sum) <= (format->has_min ? 1e-4 : 2e-5) * size, "%s %s in bf16, row %d, token %d of %d: %g, not %g", k->isa,
                      format->name, r, t, n_tokens, (double)(got - added), sum);
                CHECK(r < 13 || got == middle[t * n_out + r - 13] + added, "%s %s in bf16: rows", k->isa, format->name);
            }
        }
        free(rounded_x.memory);
    }
    free(data), free(x), free(row), free(residual), free(out), free(middle), lc_free(c), lc_free(scratch.panels);
}

/* gate · silu(up) goes into activations as if it had been stored and rounded. */
static void test_bf16_pair(const lc_kernels *k) {
    enum { N_IN = 64, N_OUT = 96, N_TOKENS = 37 };
    uint8_t *data[2];
    float *c[2], *x = random_floats(N_TOKENS * N_IN), *out = take(N_TOKENS * N_OUT * 4);
    const lc_activations in = rounded(k, x, N_TOKENS, N_IN, true);
    const lc_matmul_scratch scratch = {lc_alloc(lc_panels_bytes(k)), {NULL, NULL}, NULL};
    for (int i = 0; i < 2; i++) {
        data[i] = random_weight(LC_TYPE_Q8_0, N_OUT, N_IN, 0);
        c[i] = lc_alloc(lc_sums_bytes(k, N_TOKENS));
        const lc_weight weight = {data[i], NULL, LC_TYPE_Q8_0, N_OUT, N_IN};
        lc_bf16_chunk(k, &weight, 0, N_OUT, &in, &scratch, c[i]);
    }
    lc_end_bf16(k, c[0], c[1], NULL, N_TOKENS, N_OUT, out, N_OUT);
    const lc_activations stored = rounded(k, out, N_TOKENS, N_OUT, true);
    const lc_activations direct = {take(lc_activation_bytes(k, N_TOKENS, N_OUT)), N_TOKENS, N_OUT, true};
    lc_end_pair_bf16(k, c[0], c[1], 0, N_OUT, &direct);
    uint8_t *weight = random_weight(LC_TYPE_Q8_0, 32, N_OUT, 0);
    float *y[2];
    for (int i = 0; i < 2; i++) { /* missing tokens are not compared */
        const lc_weight next = {weight, NULL, LC_TYPE_Q8_0, 32, N_OUT};
        y[i] = take(N_TOKENS * 32 * 4);
        lc_bf16_chunk(k, &next, 0, 32, i == 0 ? &stored : &direct, &scratch, c[0]);
        lc_end_bf16(k, c[0], NULL, NULL, N_TOKENS, 32, y[i], 32);
    }
    CHECK(same(y[0], y[1], N_TOKENS * 32), "%s: a pair in bf16", k->isa);
    free(in.memory), free(stored.memory), free(direct.memory), free(weight), free(x), free(out), free(y[0]), free(y[1]);
    for (int i = 0; i < 2; i++) free(data[i]), lc_free(c[i]);
    lc_free(scratch.panels);
}

/* Attention in bf16 beside the same in float32, on a cache that is NaN where nothing was written. */
static void test_bf16_attention(const lc_kernels *k, int head_dim, int page_size, int n_head, int32_t kv_type) {
    enum { N_TOKENS = 75, N_HEAD_KV = 2 };
    const int start = 13, n_pages = (start + N_TOKENS + page_size - 1) / page_size, width = n_head * head_dim;
    const size_t row_bytes = lc_row_bytes(lc_format_of(kv_type), head_dim), n_rows = (size_t)(n_pages * N_HEAD_KV * page_size);
    uint8_t *rows[2] = {take(n_rows * row_bytes), take(n_rows * row_bytes)};
    int32_t positions[N_TOKENS], sequences[N_TOKENS] = {0}, *pages = take((size_t)n_pages * 4);
    for (int i = 0; i < n_pages; i++) pages[i] = n_pages - 1 - i;
    for (int i = 0; i < N_TOKENS; i++) positions[i] = start + i;
    const lc_kv kv = {rows[0], rows[1], kv_type, 1, n_pages, N_HEAD_KV, page_size, head_dim};
    const lc_step step = {.n_tokens = N_TOKENS, .positions = positions, .sequences = sequences, .page_table = pages,
                          .n_entries = n_pages, .n_sequences = 1};
    for (int i = 0; i < 2; i++) {
        memset(rows[i], 0xFF, n_rows * row_bytes);
        for (int at = 0; at < start + N_TOKENS; at++)
            for (int h = 0; h < N_HEAD_KV; h++) {
                float *x = random_floats((size_t)head_dim);
                uint8_t *row = rows[i] + lc_kv_offset(&kv, &step, 0, 0, at, h);
                if (kv_type == LC_TYPE_F16) k->float_to_half(x, head_dim, (uint16_t *)(void *)row);
                else lc_quantize_row(kv_type, x, head_dim, row);
                free(x);
            }
    }
    lc_run runs[N_TOKENS];
    int n_runs = 0;
    for (int at = 0, most = lc_attend_run_tokens(n_head, N_HEAD_KV); at < N_TOKENS; at += most, n_runs++)
        runs[n_runs] = (lc_run){at, N_TOKENS - at < most ? N_TOKENS - at : most};
    float *q = random_floats((size_t)(N_TOKENS * width)), *out[2], *scratch = take(lc_attend_scratch(k, &kv) * sizeof *scratch);
    for (int i = 0; i < 2; i++) {
        out[i] = take((size_t)(N_TOKENS * width) * sizeof *q);
        const lc_attention attention = {k, &kv, &step, 0, n_head, q, out[i], runs, n_runs, i == 1};
        for (int item = 0; item < lc_attend_count(&attention); item++) lc_attend_item(&attention, item, scratch);
    }
    double error = 0, size = 0;
    for (int i = 0; i < N_TOKENS * width; i++) {
        const double a = (double)out[0][i], b = (double)out[1][i];
        error += (a - b) * (a - b), size += a * a;
    }
    CHECK(error <= 2e-5 * size, "%s attention in bf16, heads of %d, pages of %d: %g", k->isa, head_dim, page_size,
          sqrt(error / size));
    free(rows[0]), free(rows[1]), free(pages), free(q), free(out[0]), free(out[1]), free(scratch);
}

int main(void) {
    lc_kernels_ref(&ref);
    test_fused();
    int8_t grid[2048 * 8];
    for (size_t i = 0; i < sizeof grid; i++) grid[i] = (int8_t)(random_bits() % 13);
    for (int isa = 0; isa < lc_isa_count(); isa++) {
        printf("%s: %s\n", lc_isa_name(isa), lc_isa_missing(isa) ? lc_isa_missing(isa) : "testing");
        lc_kernels kernels;
        if (lc_isa_select(lc_isa_name(isa), &kernels) != LC_OK) continue;
        CHECK(strcmp(kernels.isa, lc_isa_name(isa)) == 0, "the table of %s", lc_isa_name(isa));
        CHECK(LC_CHUNK_ROWS % kernels.tile_rows == 0 && kernels.tile_rows <= LC_MAX_TILE_ROWS, "tile rows");
        test_rows(&kernels);
        test_to_float(&kernels);
        test_along_cache(&kernels);
        test_not_finite(&kernels);
        test_rope(&kernels);
        test_attention(&kernels);
        test_exp(&kernels);
        test_float_dots(&kernels);
        test_many_float_dots(&kernels);
        test_quantize_q8(&kernels);
        for (int32_t type = 0; type < LC_TYPE_END; type++) {
            const lc_format *format = lc_format_of(type);
            if (format != NULL) test_matmul(&kernels, format, type, grid);
            if (format != NULL && format->is_q8 && lc_has_bf16(&kernels)) test_bf16(&kernels, format, type, grid);
        }
        if (lc_has_bf16(&kernels)) {
            test_bf16_pair(&kernels);
            test_bf16_attention(&kernels, 128, 64, 2, LC_TYPE_F16);
            test_bf16_attention(&kernels, 64, 128, 16, LC_TYPE_Q8_0);
            test_bf16_attention(&kernels, 48, 36, 6, LC_TYPE_F16);
            test_bf16_attention(&kernels, 32, 8, 80, LC_TYPE_Q4_0);
        }
        kernels.end_step();
    }
    printf(n_failed ? "%d checks failed\n" : "all checks passed\n", n_failed);
    return n_failed != 0;
}
