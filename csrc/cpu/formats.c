/* Each block format taken apart in plain C, from its definition in localcoder/quants. */
#include "formats.h"

#include <string.h>

#include "half.h"

static void unpack_q4_0(const void *blocks, int n, int8_t *codes, float *scales, float *mins) {
    const lc_block_q4_0 *b = blocks;
    (void)mins;
    for (int i = 0; i < n / 32; i++, codes += 32) {
        scales[i] = lc_half_to_float(b[i].d);
        for (int j = 0; j < 16; j++) {
            codes[j] = (int8_t)((b[i].qs[j] & 15) - 8);
            codes[j + 16] = (int8_t)((b[i].qs[j] >> 4) - 8);
        }
    }
}

static void unpack_q8_0(const void *blocks, int n, int8_t *codes, float *scales, float *mins) {
    const lc_block_q8_0 *b = blocks;
    (void)mins;
    for (int i = 0; i < n / 32; i++) {
        scales[i] = lc_half_to_float(b[i].d);
        memcpy(codes + 32 * i, b[i].qs, 32);
    }
}

/* Values a scale, whether there are minimums, and how to take it apart; one line a format. */
#define UNPACK_f32 0, false, NULL
#define UNPACK_f16 0, false, NULL
#define UNPACK_bf16 0, false, NULL
#define UNPACK_q4_0 32, false, unpack_q4_0
#define UNPACK_q8_0 32, false, unpack_q8_0

static const lc_format FORMATS[LC_TYPE_END] = {
#define LC_ROW(name, id, elems, bytes, is_q8) [id] = {#name, elems, bytes, is_q8, UNPACK_##name},
    LC_FOR_EACH_TYPE(LC_ROW)
#undef LC_ROW
};

const lc_format *lc_format_of(int32_t type) {
    if (type < 0 || type >= LC_TYPE_END || FORMATS[type].name == NULL) return NULL;
    return &FORMATS[type];
}

enum { UNPACK_ELEMS = 256 }; /* a multiple of every format's block */

static void dequantize_q8_row(const lc_format *format, const uint8_t *blocks, int64_t n, float *x) {
    int8_t codes[UNPACK_ELEMS];
    float scales[UNPACK_ELEMS / 16], mins[UNPACK_ELEMS / 16] = {0};
    for (int64_t i = 0; i < n; i += UNPACK_ELEMS) {
        const int m = n - i < UNPACK_ELEMS ? (int)(n - i) : UNPACK_ELEMS;
        format->unpack(blocks + lc_row_bytes(format, i), m, codes, scales, mins);
        for (int j = 0; j < m; j++)
            x[i + j] = scales[j / format->sub] * (float)codes[j] - mins[j / format->sub];
    }
}

void lc_dequantize_row(int32_t type, const uint8_t *blocks, int64_t n, float *x) {
    switch (type) {
    case LC_TYPE_F32: memcpy(x, blocks, (size_t)n * sizeof *x); return;
    case LC_TYPE_F16:
    case LC_TYPE_BF16:
        for (int64_t i = 0; i < n; i++) {
            uint16_t bits;
            memcpy(&bits, blocks + 2 * i, 2);
            x[i] = type == LC_TYPE_F16 ? lc_half_to_float(bits) : lc_bf16_to_float(bits);
        }
        return;
    default: dequantize_q8_row(lc_format_of(type), blocks, n, x);
    }
}
