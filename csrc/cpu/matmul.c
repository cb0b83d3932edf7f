#include "matmul.h"

#include <string.h>

#include "aligned.h"

enum { PANEL_SCALES = LC_PANEL_ELEMS / 16 };

size_t lc_activation_bytes(const lc_kernels *kernels, int n_tokens, int n) {
    const size_t per_token = (size_t)n + (size_t)n / LC_GROUP * 7 * sizeof(float);
    if (!lc_has_bf16(kernels)) return lc_round_up((size_t)n_tokens, (size_t)kernels->tile_tokens) * per_token;
    return lc_round_up((size_t)n_tokens, LC_BF16_PAIR) * (per_token < 2 * (size_t)n ? 2 * (size_t)n : per_token);
}

int lc_q8_block_tokens(const lc_kernels *kernels, const lc_activations *store) {
    return store->n_tokens <= kernels->few_tokens ? 1 : kernels->tile_tokens;
}

lc_q8_block lc_q8_block_at(const lc_kernels *kernels, const lc_activations *store, int b) {
    const int most = lc_q8_block_tokens(kernels, store), first = b * most;
    const int left = store->n_tokens - first;
    const int n_tokens = left < most ? left : most;
    const size_t n = (size_t)store->n, groups = n / LC_GROUP * (size_t)n_tokens;
    uint8_t *memory = store->memory + (size_t)first * (n + n / LC_GROUP * 7 * sizeof(float));
    lc_q8_block block = {.n_tokens = n_tokens, .run_log2 = kernels->run_log2};
    block.scales = (float *)memory;
    block.bias32 = (int32_t *)(block.scales + groups);
    block.bias16 = block.bias32 + groups;
    block.sums32 = (float *)(block.bias16 + 2 * groups);
    block.sums16 = block.sums32 + groups;
    block.codes = (int8_t *)(block.sums16 + 2 * groups);
    return block;
}

lc_q8_block lc_q8_block_from(const lc_q8_block *block, int k0) {
    const size_t m = (size_t)block->n_tokens, group = (size_t)k0 / LC_GROUP * m;
    lc_q8_block part = *block;
    part.codes += (size_t)k0 * m;
    part.scales += group;
    part.bias32 += group;
    part.bias16 += 2 * group;
    part.sums32 += group;
    part.sums16 += 2 * group;
    return part;
}

void lc_round_activations(const lc_kernels *kernels, const lc_activations *to, int t, const float *x) {
    if (to->is_bf16) {
        lc_round_bf16(kernels, to, t, x);
        return;
    }
    const int per_block = lc_q8_block_tokens(kernels, to);
    const lc_q8_block block = lc_q8_block_at(kernels, to, t / per_block);
    kernels->quantize_q8(x, to->n, &block, t % per_block);
}

size_t lc_panel_bytes(const lc_kernels *kernels) {
    return (size_t)kernels->tile_rows * (LC_PANEL_ELEMS + 2 * PANEL_SCALES * sizeof(float));
}

size_t lc_panels_bytes(const lc_kernels *kernels) {
    const size_t panel = lc_panel_bytes(kernels), all = LC_CHUNK_ROWS / (size_t)kernels->tile_rows * panel;
    const size_t of_floats = LC_DOT_SCRATCH * sizeof(float), most = all > of_floats ? all : of_floats;
    if (!lc_has_bf16(kernels)) return most;
    const size_t in_bf16 = panel + LC_BF16_ROWS * LC_BF16_ELEMS * sizeof(uint16_t);
    return in_bf16 > most ? in_bf16 : most;
}

size_t lc_sums_bytes(const lc_kernels *kernels, int max_tokens) {
    const size_t few = LC_FEW_TOKENS * LC_FEW_ROWS, n_tokens = lc_round_up((size_t)max_tokens, LC_BF16_PAIR);
    const size_t many = n_tokens * (lc_has_bf16(kernels) ? LC_BF16_ROWS : LC_CHUNK_ROWS);
    return (few > many ? few : many) * sizeof(float);
}

lc_panel lc_panel_at(const lc_kernels *kernels, uint8_t *panels, int tile) {
    uint8_t *p = panels + (size_t)tile * lc_panel_bytes(kernels);
    float *scales = (float *)(p + kernels->tile_rows * LC_PANEL_ELEMS), *mins = scales + kernels->tile_rows * PANEL_SCALES;
    return (lc_panel){p, scales, mins, (int32_t *)(void *)mins};
}

/* Unpacks row by row with the plain code and interleaves. */
static void unpack_plain(const lc_kernels *kernels, const lc_format *format, const int8_t *grid, const uint8_t *rows,
                         size_t row_bytes, int n_rows, int n, const lc_panel *panel) {
    const int tile_rows = kernels->tile_rows;
    const int bias = format->has_min ? 0 : kernels->code_bias;
    int8_t codes[LC_PANEL_ELEMS];
    float scales[PANEL_SCALES], mins[PANEL_SCALES];
    int32_t lacks[PANEL_SCALES];
    for (int r = 0; r < tile_rows; r++) {
        if (r < n_rows) {
            format->unpack(rows + (size_t)r * row_bytes, n, grid, codes, scales, mins);
            memset(lacks, 0, sizeof lacks);
            for (int k = 0; k < n; k++) {
                lacks[k / format->sub] -= codes[k] < 0 ? codes[k] : 0;
                codes[k] = (int8_t)(codes[k] + bias);
            }
        }
        for (int k = 0; k < n; k += 4) memcpy(panel->codes + (k * tile_rows + 4 * r), codes + k, 4);
        for (int s = 0; s < n / format->sub; s++) {
            panel->scales[s * tile_rows + r] = scales[s];
            if (format->has_min)
                panel->mins[s * tile_rows + r] = mins[s];
            else
                panel->lacks[s * tile_rows + r] = lacks[s];
        }
    }
}

void lc_unpack_tile(const lc_kernels *kernels, const lc_weight *weight, const uint8_t *rows, size_t row_bytes, int n_rows,
                    int n, const uint8_t *ahead, const lc_panel *panel) {
    if (kernels->unpack_tile[weight->type] != NULL)
        kernels->unpack_tile[weight->type](rows, row_bytes, n_rows, n, ahead, panel);
    else
        unpack_plain(kernels, lc_format_of(weight->type), weight->grid, rows, row_bytes, n_rows, n, panel);
}

static int blocks_of(const lc_kernels *kernels, const lc_activations *q8) {
    const int most = lc_q8_block_tokens(kernels, q8);
    return (q8->n_tokens + most - 1) / most;
}

static bool has_matvec(const lc_kernels *kernels, int type, int n_tokens) {
    if (n_tokens == 1) return kernels->matvec[type] != NULL;
    return n_tokens <= kernels->few_tokens && kernels->matvec_few[type] != NULL;
}

/* A decoding step: the rows are read once, as they lie. */
static void matvec_chunk(const lc_kernels *kernels, const lc_weight *weight, const uint8_t *rows, size_t row_bytes,
                         int n_rows, const lc_activations *q8, const uint8_t *ahead, float *c) {
    lc_q8_block x[LC_MAX_FEW_TOKENS];
    for (int t = 0; t < q8->n_tokens; t++) x[t] = lc_q8_block_at(kernels, q8, t);
    if (q8->n_tokens == 1)
        kernels->matvec[weight->type](rows, row_bytes, n_rows, x, weight->n_in, ahead, c);
    else
        kernels->matvec_few[weight->type](rows, row_bytes, n_rows, x, q8->n_tokens, weight->n_in, ahead, c,
                                          lc_sums_step(q8->n_tokens));
}

/* Not many tokens: each tile of rows from end to end, in the order of memory. */
static void few_tokens_chunk(const lc_kernels *kernels, const lc_weight *weight, const uint8_t *rows, size_t row_bytes,
                             int n_rows, const lc_activations *q8, const uint8_t *ahead, const lc_matmul_scratch *scratch,
                             float *c) {
    enum { FEW_ELEMS = 256 }; /* stretches short enough to ask for memory evenly */
    const lc_format *format = lc_format_of(weight->type);
    const int tile = kernels->tile_rows, n_blocks = blocks_of(kernels, q8), per_block = lc_q8_block_tokens(kernels, q8);
    const int step = lc_sums_step(q8->n_tokens);
    lc_panel panel = lc_panel_at(kernels, scratch->panels, 0);
    for (int r = 0; r < n_rows; r += tile) {
        const uint8_t *here = rows + (size_t)r * row_bytes;
        const uint8_t *next = r + tile < n_rows ? here + (size_t)tile * row_bytes : ahead;
        for (int k0 = 0; k0 < weight->n_in; k0 += FEW_ELEMS) {
            const int n = lc_at_most(weight->n_in - k0, FEW_ELEMS);
            const size_t at = lc_row_bytes(format, k0);
            lc_unpack_tile(kernels, weight, here + at, row_bytes, lc_at_most(n_rows - r, tile), n, next + (size_t)tile * at,
                        &panel);
            for (int b = 0; b < n_blocks; b++) {
                const lc_q8_block block = lc_q8_block_at(kernels, q8, b), x = lc_q8_block_from(&block, k0);
                kernels->tile[weight->type](&panel, &x, n, c + b * per_block * step + r, step);
            }
        }
    }
}

/* Many tokens: panels of all the chunk's tiles over a stretch of k are unpacked once and meet every token while they
 * are in cache. Each sum still runs through k in order. */
static void many_tokens_chunk(const lc_kernels *kernels, const lc_weight *weight, const uint8_t *rows, size_t row_bytes,
                              int n_rows, const lc_activations *q8, const lc_matmul_scratch *scratch, float *c) {
    const lc_format *format = lc_format_of(weight->type);
    const lc_tile_fn multiply = kernels->tile[weight->type];
    const int tile = kernels->tile_rows, n_blocks = blocks_of(kernels, q8);
    for (int k0 = 0; k0 < weight->n_in; k0 += LC_PANEL_ELEMS) {
        const int n = lc_at_most(weight->n_in - k0, LC_PANEL_ELEMS);
        const size_t n_bytes = lc_row_bytes(format, n);
        const uint8_t *part = rows + lc_row_bytes(format, k0);
        for (int r = 0; r < n_rows; r += tile) {
            lc_panel panel = lc_panel_at(kernels, scratch->panels, r / tile);
            const uint8_t *here = part + (size_t)r * row_bytes;
            lc_unpack_tile(kernels, weight, here, row_bytes, lc_at_most(n_rows - r, tile), n, here, &panel);
        }
        for (int r = 0; r < n_rows && k0 + n < weight->n_in; r++)
            lc_fetch(part + n_bytes + (size_t)r * row_bytes, n_bytes);
        for (int b = 0; b < n_blocks; b++) {
            const lc_q8_block block = lc_q8_block_at(kernels, q8, b);
            const lc_q8_block x = lc_q8_block_from(&block, k0);
            float *c_block = c + (size_t)b * (size_t)kernels->tile_tokens * LC_CHUNK_ROWS;
            for (int r = 0; r < n_rows; r += tile) {
                const lc_panel panel = lc_panel_at(kernels, scratch->panels, r / tile);
                multiply(&panel, &x, n, c_block + r, LC_CHUNK_ROWS);
            }
        }
    }
}

static void floats_chunk(const lc_kernels *kernels, const lc_weight *weight, const uint8_t *rows, size_t row_bytes,
                         int n_rows, const float *x, int n_tokens, const uint8_t *ahead,
                         const lc_matmul_scratch *scratch, float *c) {
    const int n_in = weight->n_in;
    const size_t ldc = (size_t)lc_sums_step(n_tokens);
    float *memory = (float *)(void *)scratch->panels;
    if (lc_format_of(weight->type)->unpack == NULL) {
        const lc_float_tile_fn dot = weight->type == LC_TYPE_F32   ? kernels->dot_f32
                                     : weight->type == LC_TYPE_F16 ? kernels->dot_f16
                                                                   : kernels->dot_bf16;
        dot(rows, row_bytes, n_rows, x, (size_t)n_in, n_tokens, n_in, ahead, memory, c, ldc);
        return;
    }
    const uint8_t *made = (const uint8_t *)scratch->rows;
    for (int r = 0; r < n_rows; r += LC_FLOAT_ROWS) { /* blocks become float32, a few rows at a time */
        const int n = lc_at_most(n_rows - r, LC_FLOAT_ROWS);
        for (int i = 0; i < n; i++)
            lc_dequantize_row(weight->type, rows + (size_t)(r + i) * row_bytes, weight->grid, n_in,
                              scratch->rows + (size_t)i * (size_t)n_in);
        kernels->dot_f32(made, (size_t)n_in * sizeof *scratch->rows, n, x, (size_t)n_in, n_tokens, n_in, made, memory, c + r,
                         ldc);
    }
}

void lc_matmul_chunk(const lc_kernels *kernels, const lc_weight *weight, int row0, int n_rows, const lc_activations *q8,
                     const float *x, int n_tokens, const uint8_t *ahead, const lc_matmul_scratch *scratch, float *c) {
    const lc_format *format = lc_format_of(weight->type);
    const size_t row_bytes = lc_row_bytes(format, weight->n_in);
    const uint8_t *rows = weight->data + (size_t)row0 * row_bytes;
    if (!format->is_q8) {
        floats_chunk(kernels, weight, rows, row_bytes, n_rows, x, n_tokens, ahead, scratch, c);
        return;
    }
    if (has_matvec(kernels, weight->type, n_tokens)) {
        matvec_chunk(kernels, weight, rows, row_bytes, n_rows, q8, ahead, c);
        return;
    }
    memset(c, 0, (size_t)(n_tokens * lc_sums_step(n_tokens)) * sizeof *c);
    if (n_tokens <= LC_MAX_TILE_TOKENS)
        few_tokens_chunk(kernels, weight, rows, row_bytes, n_rows, q8, ahead, scratch, c);
    else
        many_tokens_chunk(kernels, weight, rows, row_bytes, n_rows, q8, scratch, c);
}
