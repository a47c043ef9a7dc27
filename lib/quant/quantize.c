/* A model stream through a grid, one tensor at a time. */
#include "lib/quant/quant.h"

#include <math.h>
#include <stdlib.h>

struct pass {
    struct stream_writer *out;
    const struct quant_options *o;
    const struct model_config *config;
    quant_report_fn *report;
    void *ctx;
    struct quant_totals *totals;
    struct buf f32, packed; /* one tensor: as f32, and quantized */
    struct buf back;        /* [threads][widest row]: dequantized again, for the error */
    uint64_t widest;        /* row of the model */
    float *importance;      /* [widest], with stats */
};

/* ---- rows in parallel: each is quantized on its own, so the result cannot depend on who did it ------------------- */

#define ROWS_AT_ONCE 16

struct rows_job {
    const float *x;
    unsigned char *y;
    float *back; /* [threads][cols] */
    const float *importance;
    enum dtype to;
    uint64_t rows, cols, row_bytes;
    double *error;      /* squared, one a piece */
    struct err *failed; /* one a piece; code 0: fine */
};

static void quantize_piece(void *ctx, size_t i, int thread) {
    struct rows_job *j = ctx;
    uint64_t first = i * ROWS_AT_ONCE, n = j->rows - first < ROWS_AT_ONCE ? j->rows - first : ROWS_AT_ONCE;
    float *back = j->back + (size_t)thread * j->cols;
    for (uint64_t r = first; r < first + n; r++) {
        const float *x = j->x + r * j->cols;
        unsigned char *y = j->y + r * j->row_bytes;
        if (tensor_from_f32_checked(j->to, x, y, j->cols, j->importance, &j->failed[i])) {
            err_prefix(&j->failed[i], "row %llu", (unsigned long long)r);
            return;
        }
        tensor_to_f32(j->to, y, back, j->cols);
        for (uint64_t c = 0; c < j->cols; c++) j->error[i] += ((double)back[c] - x[c]) * ((double)back[c] - x[c]);
    }
}

static int quantize_rows(struct rows_job *j, double *squared_error, struct err *e) {
    size_t pieces = (size_t)((j->rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE);
    struct arena a = {0};
    j->error = arena_array(&a, pieces, sizeof *j->error, e);
    j->failed = j->error ? arena_array(&a, pieces, sizeof *j->failed, e) : NULL;
    int rc = j->failed ? 0 : e->code;
    if (!rc) parallel_for(pieces, quantize_piece, j);
    *squared_error = 0;
    for (size_t i = 0; !rc && i < pieces; i++) {
        *squared_error += j->error[i];
        if (j->failed[i].code) *e = j->failed[i], rc = e->code;
    }
    arena_release(&a);
    return rc;
}

/* ---- a tensor ---------------------------------------------------------------------------------------------------- */

/* Which input of a layer the columns of a matrix meet, and whether statistics know it. */
static bool input_of(const struct model_config *c, struct model_slot s, enum model_point *point) {
    /* A tied embedding is quantized for its second job, the output matrix. */
    return stats_input_point(s.role == ROLE_EMBED && c->tied ? ROLE_HEAD : s.role, point);
}

static bool is_weighed(const struct model_config *c, struct model_slot s, enum dtype to) {
    enum model_point point;
    return dtype_info(to)->is_quantized && to != DT_Q8_0 && input_of(c, s, &point);
}

/* The weight of each input channel in the error: mean x^2, or NULL where nothing is known or nothing came through. */
static const float *importance_of(struct pass *p, struct model_slot s, uint64_t cols) {
    enum model_point point;
    if (!p->o->stats || !input_of(p->config, s, &point)) return NULL;
    uint32_t layer = model_role_in_layer(s.role) ? s.layer : 0;
    const double *sum = stats_sum_sq(p->o->stats, point, layer);
    double n = (double)stats_positions(p->o->stats), total = 0;
    for (uint64_t i = 0; i < cols; i++) {
        p->importance[i] = (float)(sum[i] / n);
        total += sum[i];
    }
    return total > 0 ? p->importance : NULL;
}

static int write_quantized(struct pass *p, struct model_slot s, struct tensor_desc *d, const void *data,
                           struct quant_tensor_report *t, struct err *e) {
    uint64_t n = tensor_elems(d), cols = tensor_row_elems(d);
    enum dtype from = d->dtype;
    d->dtype = t->to;
    p->f32.len = p->packed.len = 0;
    int rc = buf_reserve(&p->f32, n * sizeof(float), e);
    if (!rc) rc = buf_reserve(&p->packed, tensor_bytes(d), e);
    if (rc) return err_prefix(e, "tensor '%s'", d->name);
    float *x = (float *)p->f32.data;
    tensor_to_f32(from, data, x, n);
    struct rows_job job = {.x = x,
                           .y = p->packed.data,
                           .back = (float *)p->back.data,
                           .to = t->to,
                           .rows = n / cols,
                           .cols = cols,
                           .row_bytes = dtype_row_bytes(t->to, cols),
                           .importance = is_weighed(p->config, s, t->to) ? importance_of(p, s, cols) : NULL};
    double error = 0, power = kernel_sum_squares(x, n);
    rc = quantize_rows(&job, &error, e);
    if (rc) return err_prefix(e, "tensor '%s'", d->name);
    t->rmse = sqrt(error / (double)n);
    t->relative = power > 0 ? sqrt(error / power) : 0;
    return stream_write_tensor(p->out, d, NULL, p->packed.data, e);
}

static double bits_of(enum dtype t) {
    return 8.0 * dtype_info(t)->block_bytes / dtype_info(t)->block_elems;
}

/* Chooses t->to. */
static int choose_type(const struct pass *p, struct model_slot s, uint64_t cols, struct quant_tensor_report *t,
                       struct err *e) {
    const struct quant_options *o = p->o;
    t->wanted = quant_wanted(o, p->config, s);
    t->to = quant_fallback(t->wanted, cols);
    t->fell_back = t->to != t->wanted;
    bool both = dtype_info(t->from)->is_quantized && dtype_info(t->to)->is_quantized;
    if (o->grow || !both || bits_of(t->to) <= bits_of(t->from)) return 0;
    enum dtype plain = quant_is_named(o, p->config, s) ? t->to : quant_fallback(o->type->base, cols);
    if (bits_of(plain) > bits_of(t->from)) /* not for the mixture's sake alone */
        return err_set(e, ERR_USAGE,
                       "tensor '%s' is %s already, %g bits per weight: %s would take %g and gain nothing (quantize the "
                       "original, or --force)",
                       t->name, dtype_info(t->from)->name, bits_of(t->from), dtype_info(t->to)->name, bits_of(t->to));
    t->to = t->from;
    t->fell_back = false;
    return 0;
}

static int quantize_tensor(void *ctx, struct model_slot s, const struct tensor_desc *from, const cJSON *attrs,
                           const void *data, struct err *e) {
    (void)attrs;
    struct pass *p = ctx;
    struct tensor_desc d = *from;
    struct quant_tensor_report t = {.name = from->name, .from = from->dtype, .elems = tensor_elems(from)};
    int rc = choose_type(p, s, tensor_row_elems(from), &t, e);
    if (rc) return rc;
    if (t.to == from->dtype) /* already there: a second rounding would only lose */
        rc = stream_write_tensor(p->out, from, NULL, data, e);
    else
        rc = write_quantized(p, s, &d, data, &t, e);
    if (rc) return rc;
    t.bytes = tensor_bytes(&d);
    p->totals->elems += t.elems;
    p->totals->bytes += t.bytes;
    p->totals->bytes_before += tensor_bytes(from);
    p->totals->fell_back += t.fell_back;
    return p->report ? p->report(p->ctx, &t, e) : 0;
}

/* ---- the stream -------------------------------------------------------------------------------------------------- */

/* With --strict refuses what would fall back; finds the widest row on the way. */
static int plan(struct pass *p, struct err *e) {
    bool weighed = false;
    if (p->o->embed_type && p->config->tied)
        return err_set(e, ERR_USAGE, "the embedding is the output matrix too, whose type --head-type names");
    for (size_t i = 0; i < model_slot_count(p->config); i++) {
        struct model_slot s = model_slot_at(p->config, i);
        uint64_t dims[2];
        uint64_t cols = dims[model_slot_shape(p->config, s, dims) - 1];
        enum dtype wanted = quant_wanted(p->o, p->config, s), to = quant_fallback(wanted, cols);
        if (cols > p->widest) p->widest = cols;
        weighed |= is_weighed(p->config, s, to);
        char name[TENSOR_MAX_NAME + 1];
        if (p->o->strict && to != wanted)
            return err_set(e, ERR_DATA,
                           "tensor '%s': rows of %llu are not a whole number of %s's blocks of %u (without --strict it "
                           "becomes %s)",
                           model_slot_name(s, name), (unsigned long long)cols, dtype_info(wanted)->name,
                           dtype_info(wanted)->block_elems, dtype_info(to)->name);
    }
    if (p->o->stats && !weighed)
        return err_set(e, ERR_USAGE, "statistics change nothing in %s: the error is only weighed in types below q8_0",
                       p->o->type->name);
    int rc = buf_reserve(&p->back, p->widest * sizeof(float) * (size_t)parallel_threads(), e);
    if (rc || !p->o->stats) return rc;
    p->importance = mem_array(p->widest, sizeof *p->importance, e);
    return p->importance ? stats_check(p->o->stats, p->config, e) : e->code;
}

int quantize_stream(struct stream_reader *in, struct stream_writer *out, const struct quant_options *o,
                    quant_report_fn *report, void *ctx, struct quant_totals *totals, struct err *e) {
    struct model_head head = {0};
    struct stream_item item;
    struct pass p = {.out = out, .o = o, .report = report, .ctx = ctx, .totals = totals, .config = &head.config};
    *totals = (struct quant_totals){0};
    int rc = model_head_read(in, &head, &item, e);
    if (!rc) rc = plan(&p, e);
    if (!rc) rc = model_head_write(out, &head.config, head.vocab.data, head.vocab.len, head.meta, e);
    if (!rc) rc = model_each_tensor(in, &head.config, &item, quantize_tensor, &p, e);
    buf_release(&p.f32);
    buf_release(&p.packed);
    buf_release(&p.back);
    mem_free(p.importance);
    model_head_release(&head);
    return rc;
}
