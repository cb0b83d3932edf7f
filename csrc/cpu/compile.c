/* Checks a program and lays it out for replay. */
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "convert.h"
#include "program.h"

static lc_phase_kind kind_of(const lc_op *op) {
    return op->kind == LC_OP_LINEAR ? LC_PHASE_LINEAR : op->kind == LC_OP_ATTEND ? LC_PHASE_ATTEND : LC_PHASE_ROWS;
}

static bool slot_fits(int32_t index, int width, const int32_t *slot_widths, int n_slots) {
    return index == LC_LOGITS_SLOT || (index >= 0 && index < n_slots && width <= slot_widths[index]);
}

static bool weight_is_valid(const lc_weight *w) {
    const lc_format *format = lc_format_of(w->type);
    if (format == NULL || w->data == NULL || w->n_out < 1 || w->n_in < 1 || w->n_in % format->elems != 0) return false;
    if (format->grid_bytes > 0 && w->grid == NULL) return false;
    return !format->is_q8 || w->n_in % LC_GROUP == 0;
}

static bool is_q8(const lc_weight *w) { return lc_format_of(w->type)->is_q8; }

static bool op_is_valid(const lc_program *p, const lc_op *op, const int32_t *slot_widths) {
    const bool wants_x = op->kind != LC_OP_EMBED && op->kind != LC_OP_INPUT;
    const bool wants_y = op->kind == LC_OP_WRITE_KV || op->kind == LC_OP_SILU_MUL || op->kind == LC_OP_ADD;
    const bool wants_out = op->kind != LC_OP_QUANTIZE && op->kind != LC_OP_WRITE_KV && op->kind != LC_OP_LINEAR;
    const int head_dim = p->kv.head_dim, n_head_kv = p->kv.n_head_kv;
    if (op->kind < LC_OP_EMBED || op->kind > LC_OP_INPUT || op->width < 1) return false;
    if (wants_x && !slot_fits(op->x, op->width, slot_widths, p->n_slots)) return false;
    if (wants_y && !slot_fits(op->y, op->width, slot_widths, p->n_slots)) return false;
    if (wants_out && !slot_fits(op->out[0], op->width, slot_widths, p->n_slots)) return false;
    const bool in_layer = op->layer >= 0 && op->layer < p->kv.n_layer;
    const int64_t heads_width = (int64_t)op->n_head * head_dim;
    switch (op->kind) {
    case LC_OP_EMBED: return weight_is_valid(&op->weights[0]) && op->weights[0].n_in == op->width;
    case LC_OP_INPUT: return op->input >= 0 && !op->outputs;
    case LC_OP_RMS_NORM: return op->vector != NULL;
    case LC_OP_QUANTIZE: return op->width % LC_GROUP == 0;
    case LC_OP_ROPE: return op->n_head > 0 && heads_width == op->width;
    case LC_OP_WRITE_KV: return in_layer && (int64_t)n_head_kv * head_dim == op->width;
    case LC_OP_ATTEND: return in_layer && op->n_head > 0 && op->n_head % n_head_kv == 0 && heads_width == op->width;
    case LC_OP_LINEAR: break;
    default: return true;
    }
    const bool is_pair = op->epilogue == LC_APPLY_SILU_MUL;
    if (op->n_weights < 1 || op->n_weights > LC_MAX_WEIGHTS || op->epilogue < LC_STORE) return false;
    if (op->epilogue > LC_APPLY_SILU_MUL || (is_pair && op->n_weights != 2)) return false;
    if (op->epilogue == LC_ADD_RESIDUAL &&
        (op->n_weights != 1 || !slot_fits(op->y, op->weights[0].n_out, slot_widths, p->n_slots)))
        return false;
    for (int i = 0; i < op->n_weights; i++) {
        const lc_weight *w = &op->weights[i];
        if (!weight_is_valid(w) || w->n_in != op->width) return false;
        if (is_pair && (w->n_out != op->weights[0].n_out || is_q8(w) != is_q8(&op->weights[0]))) return false;
        if (!(is_pair && i == 1) && !slot_fits(op->out[i], w->n_out, slot_widths, p->n_slots)) return false;
    }
    return true;
}

static bool kv_is_valid(const lc_kv *kv) {
    const lc_format *format = lc_format_of(kv->type);
    return format != NULL && lc_can_quantize(kv->type) && kv->k != NULL && kv->v != NULL && kv->n_layer > 0 &&
           kv->n_pages > 0 && kv->n_head_kv > 0 && kv->page_size > 0 && kv->head_dim > 0 && kv->head_dim % 2 == 0 &&
           kv->head_dim % format->elems == 0;
}

/* Rows of SELECT come from anywhere, so those before must all be done. */
static bool needs_barrier(const lc_op *op, const lc_op *before) {
    return kind_of(op) != LC_PHASE_ROWS || kind_of(before) != LC_PHASE_ROWS || op->kind == LC_OP_SELECT ||
           op->outputs != before->outputs;
}

static void build_phases(lc_program *p) {
    for (int i = 0; i < p->n_ops; i++) {
        if (i > 0 && !p->ops[i].barrier)
            p->phases[p->n_phases - 1].n_ops++;
        else
            p->phases[p->n_phases++] = (lc_phase){kind_of(&p->ops[i]), i, 1};
    }
}

static bool is_all_q8(const lc_op *op) {
    for (int i = 0; i < op->n_weights; i++)
        if (!is_q8(&op->weights[i])) return false;
    return true;
}

/* Whether the pair at i is only read once it has been rounded by the next op, and then by the LINEAR after that. */
static bool may_write_rounded(const lc_program *p, int i) {
    const lc_op *op = &p->ops[i];
    if (i + 2 >= p->n_ops || op->kind != LC_OP_LINEAR || op->epilogue != LC_APPLY_SILU_MUL || !is_all_q8(op)) return false;
    const int32_t out = op->out[0];
    const lc_op *quantize = &p->ops[i + 1], *reader = &p->ops[i + 2];
    if (quantize->kind != LC_OP_QUANTIZE || quantize->x != out || quantize->width != op->weights[0].n_out) return false;
    if (reader->kind != LC_OP_LINEAR || reader->x != out || !is_all_q8(reader) || !reader->barrier) return false;
    if (quantize->outputs != op->outputs || reader->outputs != op->outputs || out == LC_LOGITS_SLOT) return false;
    if (reader->y == out) return false;
    for (int j = i + 2; j < p->n_ops; j++) {
        const lc_op *later = &p->ops[j];
        if (j > i + 2 && (later->x == out || later->y == out)) return false;
        for (int k = 0; k < 3; k++)
            if (later->out[k] == out) return true; /* something else from there on */
    }
    return true;
}

static void assign_roles(lc_program *p) {
    for (int i = 0; i < p->n_ops; i++) {
        if (!may_write_rounded(p, i)) continue;
        p->roles[i] |= LC_WRITES_ROUNDED;
        p->roles[i + 1] |= LC_WAS_DONE;
        p->roles[i + 2] |= LC_READS_SECOND;
    }
}

/* Sizes that the ops ask for. */
typedef struct demands {
    int n_head;      /* most heads of an ATTEND */
    int q8_width;    /* widest QUANTIZE */
    int float_width; /* widest rows of a block format whose activations stay float32 */
} demands;

static void add_demands(lc_program *p, const lc_op *op, demands *most) {
    if (op->kind == LC_OP_QUANTIZE) p->is_rounded = true;
    if (op->kind == LC_OP_QUANTIZE && op->width > most->q8_width) most->q8_width = op->width;
    if (op->kind == LC_OP_ATTEND && op->n_head > most->n_head) most->n_head = op->n_head;
    if (op->kind == LC_OP_EMBED && op->weights[0].n_out < p->n_vocab_in) p->n_vocab_in = op->weights[0].n_out;
    if (op->kind == LC_OP_INPUT && op->input >= p->n_inputs) p->n_inputs = op->input + 1;
    for (int i = 0; op->kind == LC_OP_LINEAR && i < op->n_weights; i++) {
        const lc_format *format = lc_format_of(op->weights[i].type);
        if (!format->is_q8 && format->unpack != NULL && op->width > most->float_width) most->float_width = op->width;
    }
}

static bool allocate(lc_program *p, const int32_t *slot_widths, const demands *most) {
    const lc_kernels *kernels = p->pool->kernels;
    const size_t max_tokens = (size_t)p->max_tokens;
    p->slots = calloc((size_t)p->n_slots + 1, sizeof *p->slots);
    p->runs = calloc(max_tokens, sizeof *p->runs);
    p->phases = calloc((size_t)p->n_ops, sizeof *p->phases);
    p->roles = calloc((size_t)p->n_ops, sizeof *p->roles);
    if (p->roles == NULL || p->slots == NULL || p->runs == NULL || p->phases == NULL) return false;
    for (int i = 0; i < p->n_slots; i++) {
        p->slots[i] = lc_alloc(max_tokens * (size_t)slot_widths[i] * sizeof **p->slots);
        if (p->slots[i] == NULL) return false;
    }
    p->q8.memory = lc_alloc(lc_activation_bytes(kernels, p->max_tokens, most->q8_width));
    if (lc_has_bf16(kernels)) {
        p->second = lc_alloc(lc_activation_bytes(kernels, p->max_tokens, most->q8_width));
        if (p->second == NULL) return false;
    }
    p->panel_bytes = lc_round_up(lc_panels_bytes(kernels), LC_ALIGN);
    p->c_bytes = lc_sums_bytes(kernels, p->max_tokens);
    const size_t rows_bytes = LC_FLOAT_ROWS * (size_t)most->float_width * sizeof(float);
    const size_t linear_bytes = p->panel_bytes + 2 * p->c_bytes + rows_bytes;
    const size_t attend_bytes = lc_attend_scratch(kernels, &p->kv) * sizeof(float);
    p->scratch_bytes = lc_round_up(attend_bytes > linear_bytes ? attend_bytes : linear_bytes, LC_ALIGN);
    p->scratch = lc_alloc(p->scratch_bytes * (size_t)p->pool->n_threads);
    return p->q8.memory != NULL && p->scratch != NULL;
}

static int compile(lc_program *p, const lc_op *ops, const int32_t *slot_widths) {
    demands most = {.n_head = p->kv.n_head_kv, .q8_width = LC_GROUP};
    for (int i = 0; i < p->n_slots; i++)
        if (slot_widths[i] < 1) return LC_BAD_ARGUMENT;
    for (int i = 0; i < p->n_ops; i++) {
        if (!op_is_valid(p, &ops[i], slot_widths)) return LC_BAD_ARGUMENT;
        if (i > 0 && !ops[i].barrier && needs_barrier(&ops[i], &ops[i - 1])) return LC_BAD_ARGUMENT;
        add_demands(p, &ops[i], &most);
    }
    p->run_tokens = lc_attend_run_tokens(most.n_head, p->kv.n_head_kv);
    p->ops = malloc((size_t)p->n_ops * sizeof *p->ops);
    if (p->ops == NULL || !allocate(p, slot_widths, &most)) return LC_NO_MEMORY;
    memcpy(p->ops, ops, (size_t)p->n_ops * sizeof *ops);
    build_phases(p);
    if (lc_has_bf16(p->pool->kernels)) assign_roles(p);
    return LC_OK;
}

int32_t lc_program_new(lc_pool *pool, const lc_op *ops, int32_t n_ops, const int32_t *slot_widths, int32_t n_slots,
                       const lc_kv *kv, const float *rope_cos, const float *rope_sin, int32_t n_ctx,
                       int32_t max_tokens, lc_program **out) {
    *out = NULL;
    if (n_ops < 1 || n_slots < 0 || n_ctx < 1 || max_tokens < 1 || !kv_is_valid(kv)) return LC_BAD_ARGUMENT;
    lc_program *p = calloc(1, sizeof *p);
    if (p == NULL) return LC_NO_MEMORY;
    *p = (lc_program){.pool = pool, .n_ops = n_ops, .kv = *kv, .rope_cos = rope_cos, .rope_sin = rope_sin,
                      .n_ctx = n_ctx, .max_tokens = max_tokens, .n_slots = n_slots, .n_vocab_in = INT32_MAX};
    const int status = compile(p, ops, slot_widths);
    if (status == LC_OK)
        *out = p;
    else
        lc_program_free(p);
    return status;
}

void lc_program_free(lc_program *p) {
    if (p == NULL) return;
    for (int i = 0; p->slots != NULL && i < p->n_slots; i++) lc_free(p->slots[i]);
    free(p->slots);
    free(p->runs);
    free(p->phases);
    free(p->roles);
    free(p->ops);
    lc_free(p->q8.memory);
    lc_free(p->second);
    lc_free(p->scratch);
    free(p);
}
