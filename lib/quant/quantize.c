/* A model stream through its plan, one tensor at a time: to nearest. */
#include "lib/quant/quant_internal.h"
#include "lib/quant/second_order.h"

/* Anew, for what a method changed after rounding. */
static void measure_error(struct pass *p, const float *x, uint64_t n, uint64_t cols, struct quant_tensor_report *t) {
    double error = 0;
    float *back = (float *)p->back.data;
    for (uint64_t at = 0; at < n; at += cols) {
        tensor_to_f32(t->to, p->packed.data + at / cols * dtype_row_bytes(t->to, cols), back, cols);
        for (uint64_t i = 0; i < cols; i++) error += ((double)back[i] - x[at + i]) * ((double)back[i] - x[at + i]);
    }
    pass_put_error(t, error, kernel_sum_squares(kernel_f32(x), n), n);
}

/* q and k are not clipped: what their largest channels lose turns up in every score. */
static bool is_clipped(const struct pass *p, struct model_slot s, enum dtype to) {
    return p->o->clip && quant_form(to) && s.role != ROLE_Q && s.role != ROLE_K;
}

/* What a method makes of a tensor that has been rounded to nearest. */
static int improve(struct pass *p, struct model_slot s, const float *x, uint64_t n, uint64_t cols,
                   const float *importance, struct quant_tensor_report *t, struct err *e) {
    bool clips = importance && is_clipped(p, s, t->to), moves = p->o->hqq && hqq_takes(t->to);
    int rc = 0;
    if (clips) rc = clip_improve(t->to, x, n / cols, cols, importance, p->packed.data, e);
    if (moves) rc = hqq_improve(t->to, x, n / cols, cols, p->packed.data, e);
    if (rc) return err_prefix(e, "tensor '%s'", t->name);
    if (clips || moves) measure_error(p, x, n, cols, t);
    return 0;
}

static int write_quantized(struct pass *p, struct model_slot s, struct tensor_desc *d, const void *data,
                           struct quant_tensor_report *t, struct err *e) {
    uint64_t n = tensor_elems(d), cols = tensor_row_elems(d);
    enum dtype from = d->dtype;
    const float *importance = NULL;
    d->dtype = t->to;
    p->f32.len = p->packed.len = 0;
    int rc = buf_reserve(&p->f32, n * sizeof(float), e);
    if (!rc) rc = buf_reserve(&p->packed, tensor_bytes(d), e);
    if (rc) return err_prefix(e, "tensor '%s'", d->name);
    float *x = (float *)p->f32.data;
    tensor_to_f32(from, data, x, n);
    if (pass_is_weighed(p, s, t->to)) rc = pass_importance_of(p, s, cols, &importance, e);
    if (!rc) rc = pass_round(p, x, n / cols, cols, importance, p->packed.data, t, e);
    if (!rc) rc = improve(p, s, x, n, cols, importance, t, e);
    return rc ? rc : stream_write_tensor(p->out, d, NULL, p->packed.data, e);
}

static int quantize_tensor(void *ctx, struct model_slot s, const struct tensor_desc *from, const cJSON *attrs,
                           const void *data, struct err *e) {
    (void)attrs;
    struct pass *p = ctx;
    struct tensor_desc d = *from;
    struct quant_tensor_report t = {.name = from->name, .from = from->dtype, .elems = tensor_elems(from)};
    int rc = pass_choose_type(p, s, tensor_row_elems(from), &t, e);
    if (rc) return rc;
    if (t.to == from->dtype) /* already there: a second rounding would only lose */
        rc = stream_write_tensor(p->out, from, NULL, data, e);
    else
        rc = write_quantized(p, s, &d, data, &t, e);
    if (!rc) rc = pass_count(p, s, from, &t, e);
    if (rc) return rc;
    return p->report ? p->report(p->ctx, &t, e) : 0;
}

static int look_at_tensor(void *ctx, struct model_slot s, const struct tensor_desc *from, const cJSON *attrs,
                          const void *data, struct err *e) {
    (void)attrs, (void)data;
    struct pass *p = ctx;
    struct quant_tensor_report t = {.name = from->name, .from = from->dtype, .elems = tensor_elems(from)};
    int rc = pass_choose_type(p, s, tensor_row_elems(from), &t, e);
    return rc ? rc : pass_count(p, s, from, &t, e);
}

int quantize_stream(struct stream_reader *in, struct stream_writer *out, const struct quant_options *o,
                    quant_report_fn *report, void *ctx, struct quant_totals *totals, struct err *e) {
    struct model_head head = {0};
    struct stream_item item;
    struct pass p = {.out = out, .o = o, .report = report, .ctx = ctx, .totals = totals, .config = &head.config};
    *totals = (struct quant_totals){0};
    int rc = model_head_read(in, &head, &item, e);
    if (!rc) rc = pass_prepare(&p, e);
    if (!rc) rc = model_head_write(out, &head.config, head.vocab.data, head.vocab.len, head.meta, e);
    if (!rc) rc = model_each_tensor(in, &head.config, &item, quantize_tensor, &p, e);
    pass_finish(&p);
    model_head_release(&head);
    return rc;
}

int quantize_dry_run(struct stream_reader *in, const struct quant_options *o, struct buf *plan,
                     struct quant_totals *totals, struct err *e) {
    struct model_head head = {0};
    struct stream_item item;
    struct pass p = {.o = o, .totals = totals, .config = &head.config};
    *totals = (struct quant_totals){0};
    int rc = model_head_read(in, &head, &item, e);
    if (!rc) rc = pass_prepare(&p, e);
    if (!rc) rc = model_each_desc(in, &head.config, &item, look_at_tensor, &p, e);
    if (!rc) rc = quant_plan_write(&p.plan, &head.config, plan, e);
    pass_finish(&p);
    model_head_release(&head);
    return rc;
}
