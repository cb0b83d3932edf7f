/* Replays a compiled program. Ops are gathered into phases: within one, threads take pieces of work as they come; all
 * meet at its end. A phase too small to share is done by the thread that came last to the one before it. */
#include "program.h"

#include <string.h>

#include "convert.h"

static int rows_of(const lc_program *p, const lc_op *op) { return op->outputs ? p->step.n_outputs : p->step.n_tokens; }

static float *slot(const lc_program *p, int32_t index) {
    return index == LC_LOGITS_SLOT ? p->step.logits : index == LC_NO_SLOT ? NULL : p->slots[index];
}

/* --- ops that work on a row by itself ------------------------------------------------------------------------- */

static void embed_row(const lc_program *p, const lc_op *op, int t, float *out) {
    const lc_weight *w = &op->weights[0];
    const size_t row_bytes = lc_row_bytes(lc_format_of(w->type), w->n_in);
    lc_dequantize_row(w->type, w->data + (size_t)p->step.tokens[t] * row_bytes, w->grid, w->n_in, out);
}

static void write_kv_row(const lc_program *p, const lc_op *op, int t, const float *k, const float *v) {
    const lc_kv *kv = &p->kv;
    const int d = kv->head_dim;
    for (int h = 0; h < kv->n_head_kv; h++) {
        const size_t at = lc_kv_offset(kv, &p->step, op->layer, t, p->step.positions[t], h);
        if (kv->type == LC_TYPE_F16) {
            p->pool->kernels->float_to_half(k + h * d, d, (uint16_t *)(void *)(kv->k + at));
            p->pool->kernels->float_to_half(v + h * d, d, (uint16_t *)(void *)(kv->v + at));
        } else {
            lc_quantize_row(kv->type, k + h * d, d, kv->k + at);
            lc_quantize_row(kv->type, v + h * d, d, kv->v + at);
        }
    }
}

/* Where the rounded input of `op` is. bf16 depends on how many tokens a sequence is given, so that steps of many sequences
 * give the same as steps of one. */
static lc_activations activations_of(const lc_program *p, const lc_op *op) {
    const lc_kernels *kernels = p->pool->kernels;
    const int n_rows = rows_of(p, op), few = LC_BF16_SIDE;
    const bool is_bf16 = lc_has_bf16(kernels) && p->most_at_once > few && n_rows > few;
    const bool is_second = is_bf16 && (p->roles[op - p->ops] & LC_READS_SECOND) != 0;
    return (lc_activations){is_second ? p->second : p->q8.memory, n_rows, op->width, is_bf16};
}

static bool uses_bf16(const lc_program *p, const lc_op *op, int weight) {
    return activations_of(p, op).is_bf16 && lc_format_of(op->weights[weight].type)->is_q8;
}

static void quantize_row(const lc_program *p, const lc_op *op, int t, const float *x) {
    const lc_activations to = activations_of(p, op);
    lc_round_activations(p->pool->kernels, &to, t, x);
}

static void run_row(const lc_program *p, const lc_op *op, int t) {
    const lc_kernels *kernels = p->pool->kernels;
    const size_t at = (size_t)t * (size_t)op->width;
    const int half_dim = p->kv.head_dim / 2;
    const float *x = op->x == LC_NO_SLOT ? NULL : slot(p, op->x) + at;
    const float *y = op->y == LC_NO_SLOT ? NULL : slot(p, op->y) + at;
    float *out = op->out[0] == LC_NO_SLOT ? NULL : slot(p, op->out[0]) + at;
    switch (op->kind) {
    case LC_OP_INPUT: memcpy(out, p->step.inputs[op->input] + at, (size_t)op->width * sizeof *out); break;
    case LC_OP_EMBED: embed_row(p, op, t, out); break;
    case LC_OP_RMS_NORM: kernels->rms_norm(x, op->vector, op->width, op->eps, out); break;
    case LC_OP_QUANTIZE: quantize_row(p, op, t, x); break;
    case LC_OP_ROPE: {
        const size_t angle = (size_t)p->step.positions[t] * (size_t)half_dim;
        kernels->rope(x, p->rope_cos + angle, p->rope_sin + angle, op->n_head, p->kv.head_dim, out);
        break;
    }
    case LC_OP_WRITE_KV: write_kv_row(p, op, t, x, y); break;
    case LC_OP_SILU_MUL: kernels->silu_mul(x, y, op->width, out); break;
    case LC_OP_ADD: kernels->add(x, y, op->width, out); break;
    case LC_OP_SELECT:
        memcpy(out, slot(p, op->x) + (size_t)p->step.outputs[t] * (size_t)op->width, (size_t)op->width * sizeof *out);
        break;
    default: break;
    }
}

/* --- phases --------------------------------------------------------------------------------------------------- */

static int parts_of(int n, int part) { return (n + part - 1) / part; }

/* Rows in one piece of work: few enough that every thread gets several, whole tiles where there are many. */
static int rows_per_item(const lc_program *p, int n_rows) {
    const int share = n_rows / (4 * p->pool->n_threads);
    const int most = p->pool->kernels->tile_tokens;
    return share < 1 ? 1 : share < most ? share : most;
}

/* How the rows of a weight are cut: `n_long` pieces of `longer` rows, then ones of `rows`. Where few tokens meet them, the
 * first of them read on for long, which memory rewards, and the last are short, so that threads end at the same time. */
typedef struct cut {
    int longer, n_long, rows, n;
} cut;

static int whole_tiles(int rows, int tile) { return rows < tile ? tile : rows / tile * tile; }

static cut cut_of(const lc_program *p, const lc_op *op, int weight) {
    enum { LONG_BYTES = 1 << 18, BYTES = 1 << 16 };
    const lc_weight *w = &op->weights[weight];
    const bool is_bf16 = uses_bf16(p, op, weight), is_few = rows_of(p, op) <= LC_FEW_TOKENS;
    const int tile = is_bf16 ? LC_BF16_PAIR : p->pool->kernels->tile_rows, n = w->n_out;
    const int share = n / (4 * p->pool->n_threads), row_bytes = (int)lc_row_bytes(lc_format_of(w->type), w->n_in);
    const int most = is_bf16 ? LC_BF16_ROWS : LC_CHUNK_ROWS;
    cut c = {.rows = whole_tiles(lc_at_most(share, is_few ? lc_at_most(BYTES / row_bytes, most) : most), tile)};
    c.longer = is_few ? whole_tiles(lc_at_most(share, lc_at_most(LONG_BYTES / row_bytes, LC_FEW_ROWS)), tile) : c.rows;
    c.n_long = n * 3 / 4 / c.longer;
    c.n = c.n_long + parts_of(n - c.n_long * c.longer, c.rows);
    return c;
}

static void epilogue(const lc_program *p, const lc_op *op, int weight, int row0, int n_rows, bool is_bf16,
                     const lc_matmul_scratch *scratch) {
    const lc_kernels *kernels = p->pool->kernels;
    const bool is_pair = op->epilogue == LC_APPLY_SILU_MUL;
    const size_t ld = (size_t)op->weights[weight].n_out;
    float *out = slot(p, op->out[weight]) + row0;
    const float *residual = op->y == LC_NO_SLOT ? NULL : slot(p, op->y) + row0;
    const int n_tokens = rows_of(p, op);
    if (is_bf16 && (p->roles[op - p->ops] & LC_WRITES_ROUNDED) != 0) {
        const lc_activations to = {p->second, n_tokens, (int)ld, true};
        lc_end_pair_bf16(kernels, scratch->c[0], scratch->c[1], row0, n_rows, &to);
        return;
    }
    if (is_bf16) {
        lc_end_bf16(kernels, scratch->c[0], is_pair ? scratch->c[1] : NULL,
                    op->epilogue == LC_ADD_RESIDUAL ? residual : NULL, n_tokens, n_rows, out, ld);
        return;
    }
    for (int t = 0; t < n_tokens; t++) {
        const size_t at = (size_t)(t * lc_sums_step(n_tokens));
        const float *c = scratch->c[0] + at;
        float *to = out + (size_t)t * ld;
        if (op->epilogue == LC_ADD_RESIDUAL)
            kernels->add(residual + (size_t)t * ld, c, n_rows, to);
        else if (is_pair)
            kernels->silu_mul(c, scratch->c[1] + at, n_rows, to);
        else
            memcpy(to, c, (size_t)n_rows * sizeof *to);
    }
}

/* Which rows of which weight an item is. */
typedef struct piece {
    int weight, row0, n_rows;
} piece;

static piece piece_of(const lc_program *p, const lc_op *op, int item) {
    int weight = 0;
    cut c = cut_of(p, op, 0);
    for (; item >= c.n; c = cut_of(p, op, weight)) {
        item -= c.n;
        weight++;
    }
    if (item < c.n_long) return (piece){weight, item * c.longer, c.longer};
    const int row0 = c.n_long * c.longer + (item - c.n_long) * c.rows;
    return (piece){weight, row0, lc_at_most(op->weights[weight].n_out - row0, c.rows)};
}

static const uint8_t *piece_data(const lc_op *op, piece at) {
    const lc_weight *w = &op->weights[at.weight];
    return w->data + (size_t)at.row0 * lc_row_bytes(lc_format_of(w->type), w->n_in);
}

/* `next` is the item that this thread does after this one, -1 if there is none. */
static void run_linear_item(const lc_program *p, const lc_op *op, int item, int next,
                            const lc_matmul_scratch *scratch) {
    const int n_tokens = rows_of(p, op);
    const piece here = piece_of(p, op, item);
    const lc_activations q8 = activations_of(p, op);
    const uint8_t *after = piece_data(op, next < 0 ? here : piece_of(p, op, next));
    const float *x = slot(p, op->x);
    const bool is_pair = op->epilogue == LC_APPLY_SILU_MUL;
    const bool is_bf16 = uses_bf16(p, op, here.weight);
    for (int i = 0; i < 1 + is_pair; i++) {
        const piece twin = {here.weight + 1, here.row0, here.n_rows};
        const lc_weight *weight = &op->weights[here.weight + i];
        const uint8_t *ahead = is_pair && i == 0 ? piece_data(op, twin) : after;
        if (is_bf16)
            lc_bf16_chunk(p->pool->kernels, weight, here.row0, here.n_rows, &q8, scratch, scratch->c[i]);
        else
            lc_matmul_chunk(p->pool->kernels, weight, here.row0, here.n_rows, &q8, x, n_tokens, ahead, scratch,
                            scratch->c[i]);
    }
    epilogue(p, op, here.weight, here.row0, here.n_rows, is_bf16, scratch);
}

static lc_attention attention_of(const lc_program *p, const lc_op *op) {
    const bool is_bf16 = p->is_rounded && activations_of(p, op).is_bf16;
    return (lc_attention){p->pool->kernels, &p->kv,  &p->step,  op->layer, op->n_head, slot(p, op->x),
                          slot(p, op->out[0]), p->runs, p->n_runs, is_bf16};
}

static int count_items(const lc_program *p, const lc_phase *ph) {
    const lc_op *op = &p->ops[ph->first];
    const int n_rows = rows_of(p, op);
    if (n_rows == 0) return 0;
    if ((p->roles[ph->first] & LC_WAS_DONE) != 0 && activations_of(p, op).is_bf16) return 0;
    if (ph->kind == LC_PHASE_ROWS) return parts_of(n_rows, rows_per_item(p, n_rows));
    if (ph->kind == LC_PHASE_ATTEND) {
        const lc_attention attention = attention_of(p, op);
        return lc_attend_count(&attention);
    }
    const int n_weights = op->epilogue == LC_APPLY_SILU_MUL ? 1 : op->n_weights;
    int n = 0;
    for (int i = 0; i < n_weights; i++) n += cut_of(p, op, i).n;
    return n;
}

static void run_item(const lc_program *p, const lc_phase *ph, int item, int next, int thread) {
    uint8_t *scratch = p->scratch + (size_t)thread * p->scratch_bytes;
    const lc_op *op = &p->ops[ph->first];
    if (ph->kind == LC_PHASE_ATTEND) {
        const lc_attention attention = attention_of(p, op);
        lc_attend_item(&attention, item, (float *)(void *)scratch);
    } else if (ph->kind == LC_PHASE_LINEAR) {
        float *c = (float *)(void *)(scratch + p->panel_bytes);
        float *c2 = c + p->c_bytes / sizeof *c;
        const lc_matmul_scratch parts = {scratch, {c, c2}, c2 + p->c_bytes / sizeof *c};
        run_linear_item(p, op, item, next, &parts);
    } else {
        const int n_rows = rows_of(p, op), per_item = rows_per_item(p, n_rows);
        const int end = (item + 1) * per_item < n_rows ? (item + 1) * per_item : n_rows;
        for (int i = 0; i < ph->n_ops; i++)
            for (int t = item * per_item; t < end; t++) run_row(p, op + i, t);
    }
}

/* Moves on to the next phase that is worth sharing; does those before it. */
static void advance(lc_program *p, int thread) {
    for (p->phase++; p->phase < p->n_phases; p->phase++) {
        const lc_phase *ph = &p->phases[p->phase];
        const int n = count_items(p, ph);
        if (n > 1 && p->pool->n_threads > 1) return;
        for (int item = 0; item < n; item++) run_item(p, ph, item, item + 1 < n ? item + 1 : -1, thread);
    }
}

/* Before the threads meet: the start of what this thread will read in the next LINEAR. Memory would idle meanwhile. */
static void fetch_next(const lc_program *p, int thread) {
    enum { MOST_BYTES = 4096 }; /* more would keep the thread from the others, who wait */
    for (int i = p->phase + 1; i < p->n_phases; i++) {
        if (p->phases[i].kind != LC_PHASE_LINEAR) continue;
        const lc_op *op = &p->ops[p->phases[i].first];
        const lc_weight *w = &op->weights[0];
        if (rows_of(p, op) == 0 || thread >= count_items(p, &p->phases[i])) return;
        const size_t n_bytes = (size_t)p->pool->kernels->tile_rows * lc_row_bytes(lc_format_of(w->type), w->n_in);
        lc_fetch(piece_data(op, piece_of(p, op, thread)), n_bytes < MOST_BYTES ? n_bytes : MOST_BYTES);
        return;
    }
}

static void program_job(void *context, int thread) {
    lc_program *p = context;
    while (p->phase < p->n_phases) {
        const lc_phase *ph = &p->phases[p->phase];
        const int n = count_items(p, ph);
        for (int item = thread, next; item < n; item = next) {
            next = lc_pool_take(p->pool);
            run_item(p, ph, item, next < n ? next : -1, thread);
        }
        fetch_next(p, thread);
        if (lc_pool_arrive(p->pool)) {
            advance(p, thread);
            lc_pool_release(p->pool);
        }
    }
    p->pool->kernels->end_step();
}

/* --- steps ---------------------------------------------------------------------------------------------------- */

static bool pages_are_valid(const lc_program *p, const lc_step *s, int token) {
    const int n_pages = s->positions[token] / p->kv.page_size + 1;
    if (n_pages > s->n_entries) return false;
    const int32_t *entries = s->page_table + (size_t)s->sequences[token] * (size_t)s->n_entries;
    for (int i = 0; i < n_pages; i++)
        if (entries[i] < 0 || entries[i] >= p->kv.n_pages) return false;
    return true;
}

/* Cuts the step's tokens into runs; false if anything is out of range. */
static bool read_step(lc_program *p, const lc_step *s) {
    if (s->n_inputs < p->n_inputs) return false;
    if (s->n_tokens < 1 || s->n_tokens > p->max_tokens || s->n_outputs < 0 || s->n_outputs > s->n_tokens) return false;
    p->n_runs = p->most_at_once = 0;
    for (int t = 0, at_once = 0; t < s->n_tokens; t++) {
        if (s->tokens[t] < 0 || s->tokens[t] >= p->n_vocab_in) return false;
        if (s->positions[t] < 0 || s->positions[t] >= p->n_ctx) return false;
        if (s->sequences[t] < 0 || s->sequences[t] >= s->n_sequences) return false;
        lc_run *run = p->n_runs ? &p->runs[p->n_runs - 1] : NULL;
        const bool goes_on = run != NULL && s->sequences[t] == s->sequences[t - 1] &&
                             s->positions[t] == s->positions[t - 1] + 1;
        at_once = goes_on ? at_once + 1 : 1;
        if (at_once > p->most_at_once) p->most_at_once = at_once;
        if (goes_on && run->n < p->run_tokens)
            run->n++;
        else
            p->runs[p->n_runs++] = (lc_run){t, 1};
    }
    for (int i = 0; i < p->n_runs; i++)
        if (!pages_are_valid(p, s, p->runs[i].first + p->runs[i].n - 1)) return false;
    for (int i = 0; i < s->n_outputs; i++)
        if (s->outputs[i] < 0 || s->outputs[i] >= s->n_tokens) return false;
    p->step = *s;
    return true;
}

int32_t lc_program_run(lc_program *p, const lc_step *step) {
    if (!read_step(p, step)) return LC_BAD_ARGUMENT;
    p->phase = -1;
    advance(p, 0);
    return p->phase < p->n_phases ? lc_pool_run(p->pool, program_job, p) : LC_OK;
}
