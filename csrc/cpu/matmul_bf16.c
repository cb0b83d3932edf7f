/* Many tokens on products of bf16: all rows of a chunk become bf16, a stretch of k at a time, and meet every token. */
#include "matmul.h"

enum { SIDE = LC_BF16_SIDE, PAIR = LC_BF16_PAIR, PAIRS = LC_BF16_ROWS / PAIR /* of panels in a chunk */ };

_Static_assert(LC_BF16_ROWS % PAIR == 0, "tiles come in pairs");


/* Where token t of a pair of tiles is kept: [n / 32][2][SIDE][32] for each pair, so that both spread over the nearest cache. */
static uint16_t *token_at(const lc_activations *x, int t) {
    uint16_t *pair = (uint16_t *)(void *)x->memory + (size_t)(t / PAIR) * PAIR * (size_t)x->n;
    return pair + t % PAIR * 32;
}

void lc_round_bf16(const lc_kernels *kernels, const lc_activations *to, int t, const float *x) {
    kernels->round_bf16(x, to->n, token_at(to, t));
}

/* Values k ... k + n - 1 of all rows. */
static void make_panels(const lc_kernels *kernels, const lc_weight *weight, const uint8_t *rows, size_t row_bytes, int n_rows,
                        int k, int n, const lc_panel *codes, uint16_t *panels) {
    const lc_format *format = lc_format_of(weight->type);
    const lc_rows_bf16_fn make = kernels->rows_bf16[weight->type];
    for (int r = 0; r < n_rows; r += SIDE) {
        uint16_t *panel = panels + r / PAIR * 2 * LC_BF16_PANEL + r % PAIR * 32;
        const uint8_t *here = rows + (size_t)r * row_bytes + lc_row_bytes(format, k);
        const int n_here = lc_at_most(n_rows - r, SIDE);
        if (make != NULL) {
            make(here, row_bytes, n_here, n, panel);
        } else {
            lc_unpack_tile(kernels, weight, here, row_bytes, n_here, n, here, codes);
            kernels->panel_bf16(codes, n, format->sub, format->has_min, panel);
        }
    }
}

/* Where the sums of token t are. */
static size_t sums_at(int t) { return (size_t)(t / PAIR) * PAIRS * LC_BF16_PAIR_SUMS + (size_t)(t % PAIR) * SIDE; }

void lc_bf16_chunk(const lc_kernels *kernels, const lc_weight *weight, int row0, int n_rows, const lc_activations *x,
                   const lc_matmul_scratch *scratch, float *c) {
    const lc_format *format = lc_format_of(weight->type);
    const size_t row_bytes = lc_row_bytes(format, weight->n_in);
    const uint8_t *rows = weight->data + (size_t)row0 * row_bytes;
    const lc_panel codes = lc_panel_at(kernels, scratch->panels, 0);
    uint16_t *panels = (uint16_t *)(void *)(scratch->panels + lc_panel_bytes(kernels));
    for (int k = 0; k < weight->n_in; k += LC_BF16_ELEMS) {
        const int n = lc_at_most(weight->n_in - k, LC_BF16_ELEMS);
        make_panels(kernels, weight, rows, row_bytes, n_rows, k, n, &codes, panels);
        for (int t = 0; t < x->n_tokens; t += PAIR)
            for (int r = 0; r < n_rows; r += PAIR)
                kernels->tile_bf16(panels + r / PAIR * 2 * LC_BF16_PANEL, token_at(x, t) + (size_t)k * PAIR, n, k > 0,
                                   c + sums_at(t) + r / PAIR * LC_BF16_PAIR_SUMS);
    }
}

void lc_end_bf16(const lc_kernels *kernels, const float *c, const float *c2, const float *residual, int n_tokens, int n_rows,
                 float *out, size_t ld) {
    for (int t = 0; t < n_tokens; t++, out += ld) {
        const size_t at = sums_at(t);
        kernels->end_bf16(c + at, c2 == NULL ? NULL : c2 + at, residual == NULL ? NULL : residual + (size_t)t * ld, n_rows, out);
    }
}

void lc_end_pair_bf16(const lc_kernels *kernels, const float *c, const float *c2, int row0, int n_rows, const lc_activations *to) {
    for (int t = 0; t < to->n_tokens; t++)
        kernels->end_pair_bf16(c + sums_at(t), c2 + sums_at(t), n_rows, token_at(to, t) + (size_t)row0 * PAIR);
}
