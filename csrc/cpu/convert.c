#include "convert.h"

#include <math.h>
#include <string.h>

#include "formats.h"
#include "half.h"
#include "thread_pool.h"

/* 1 / d, or 0 where that has no finite value. */
static float reciprocal_or_zero(float d) {
    const float inverse = 1.0f / d;
    return isfinite(inverse) ? inverse : 0.0f;
}

/* The integer nearest to what a format can hold; a NaN gives 0. */
static int to_code(float x, int low, int high) {
    if (!(x > (float)low)) return x == x ? low : 0;
    return x < (float)high ? (int)x : high;
}

static void quantize_f16(const float *x, int64_t n, uint8_t *blocks) {
    for (int64_t i = 0; i < n; i++) {
        const uint16_t bits = lc_float_to_half(x[i]);
        memcpy(blocks + 2 * i, &bits, 2);
    }
}

static void quantize_bf16(const float *x, int64_t n, uint8_t *blocks) {
    for (int64_t i = 0; i < n; i++) {
        const uint16_t bits = lc_float_to_bf16(x[i]);
        memcpy(blocks + 2 * i, &bits, 2);
    }
}

static void quantize_q4_0(const float *x, int64_t n, uint8_t *blocks) {
    lc_block_q4_0 *b = (lc_block_q4_0 *)(void *)blocks;
    for (int64_t i = 0; i < n / 32; i++, x += 32) {
        float extreme = x[0];
        for (int j = 1; j < 32; j++)
            if (fabsf(x[j]) > fabsf(extreme)) extreme = x[j];
        const float d = extreme / -8.0f, inverse = reciprocal_or_zero(d);
        b[i].d = lc_float_to_half(d);
        for (int j = 0; j < 16; j++) {
            const int low = to_code(x[j] * inverse + 8.5f, 0, 15), high = to_code(x[j + 16] * inverse + 8.5f, 0, 15);
            b[i].qs[j] = (uint8_t)(low | high << 4);
        }
    }
}

static void quantize_q8_0(const float *x, int64_t n, uint8_t *blocks) {
    lc_block_q8_0 *b = (lc_block_q8_0 *)(void *)blocks;
    for (int64_t i = 0; i < n / 32; i++, x += 32) {
        float extreme = 0;
        for (int j = 0; j < 32; j++)
            if (fabsf(x[j]) > extreme) extreme = fabsf(x[j]);
        const float d = extreme / 127.0f, inverse = reciprocal_or_zero(d);
        b[i].d = lc_float_to_half(d);
        for (int j = 0; j < 32; j++) b[i].qs[j] = (int8_t)to_code(roundf(x[j] * inverse), -128, 127);
    }
}

bool lc_can_quantize(int32_t type) {
    return type == LC_TYPE_F32 || type == LC_TYPE_F16 || type == LC_TYPE_BF16 || type == LC_TYPE_Q4_0 ||
           type == LC_TYPE_Q8_0;
}

void lc_quantize_row(int32_t type, const float *x, int64_t n, uint8_t *blocks) {
    switch (type) {
    case LC_TYPE_F32: memcpy(blocks, x, (size_t)n * sizeof *x); return;
    case LC_TYPE_F16: quantize_f16(x, n, blocks); return;
    case LC_TYPE_BF16: quantize_bf16(x, n, blocks); return;
    case LC_TYPE_Q4_0: quantize_q4_0(x, n, blocks); return;
    case LC_TYPE_Q8_0: quantize_q8_0(x, n, blocks); return;
    default: return;
    }
}

typedef struct conversion {
    lc_pool *pool;
    const lc_format *format;
    int32_t type;
    int64_t n_rows, n;
    float *x;
    uint8_t *blocks;
    const int8_t *grid;
    bool to_blocks;
} conversion;

static void convert_job(void *context, int thread) {
    enum { ROWS = 16 };
    const conversion *job = context;
    const size_t row_bytes = lc_row_bytes(job->format, job->n);
    for (int64_t first = (int64_t)thread * ROWS; first < job->n_rows; first = (int64_t)lc_pool_take(job->pool) * ROWS) {
        const int64_t end = first + ROWS < job->n_rows ? first + ROWS : job->n_rows;
        for (int64_t r = first; r < end; r++) {
            float *x = job->x + r * job->n;
            uint8_t *blocks = job->blocks + (size_t)r * row_bytes;
            if (job->to_blocks)
                lc_quantize_row(job->type, x, job->n, blocks);
            else
                lc_dequantize_row(job->type, blocks, job->grid, job->n, x);
        }
    }
}

static bool is_whole(int32_t type, int64_t n_rows, int64_t n) {
    const lc_format *format = lc_format_of(type);
    return format != NULL && n_rows >= 0 && n >= 0 && n % format->elems == 0;
}

int32_t lc_quantize(lc_pool *pool, int32_t type, const float *x, int64_t n_rows, int64_t n, uint8_t *blocks) {
    if (!is_whole(type, n_rows, n) || !lc_can_quantize(type)) return LC_BAD_ARGUMENT;
    conversion job = {pool, lc_format_of(type), type, n_rows, n, (float *)x, blocks, NULL, true};
    return lc_pool_run(pool, convert_job, &job);
}

int32_t lc_dequantize(lc_pool *pool, int32_t type, const uint8_t *blocks, const int8_t *grid, int64_t n_rows,
                      int64_t n, float *x) {
    if (!is_whole(type, n_rows, n)) return LC_BAD_ARGUMENT;
    if (lc_format_of(type)->grid_bytes > 0 && grid == NULL) return LC_BAD_ARGUMENT;
    conversion job = {pool, lc_format_of(type), type, n_rows, n, x, (uint8_t *)blocks, grid, false};
    return lc_pool_run(pool, convert_job, &job);
}
