/* Quantizes a model stream by its plan, one tensor at a time, rounding to nearest. */
#include "lib/quant/quant_internal.h"
#include "lib/quant/second_order.h"

/* Measures the error again after a method changed the blocks. */
static void measure_error(struct pass *p, const float *x, uint64_t n, uint64_t cols, struct quant_tensor_report *t) {
    double error = 0;
    float *back = (float *)p->back.data;
    for (uint64_t at = 0; at < n; at += cols) {
        tensor_to_f32(t->to, p->packed.data + at / cols * dtype_row_bytes(t->to, cols), back, cols);
        error += kernel_squared_distance(kernel_f32(x + at), kernel_f32(back), cols);
    }
    pass_put_error(t, error, kernel_sum_squares(kernel_f32(x), n), n);
}

/* q and k are not clipped, because errors in their largest channels affect every attention score. */
static bool is_clipped(const struct pass *p, struct model_slot s, enum dtype to) {
    return p->o->clip && quant_form(to) && s.role != ROLE_Q && s.role != ROLE_K;
}

/* Applies clipping and HQQ to a tensor that was rounded to nearest. */
static int improve(struct pass *p, struct model_slot s, const float *x, uint64_t n, uint64_t cols,
                   const float *importance, struct quant_tensor_report *t, struct err *e) {
    bool clips = importance && is_clipped(p, s, t->to), moves = p->o->hqq && hqq_takes(t->to);
    int rc = 0;
    if (clips) rc = clip_improve(t->to, x, n / cols, cols, importance, p->packed.data, e);
    if (rc) return err_prefix(e, "tensor '%s'", t->name);
    if (moves) hqq_improve(t->to, x, n / cols, cols, p->packed.data);
    if (clips || moves) measure_error(p, x, n, cols, t);
    return 0;
}

/* A tensor being quantized into p->packed. */
struct turn {
    struct model_slot slot;
    const struct tensor_desc *from; /* with `data` */
    const void *data;
    const float *importance;
    struct quant_tensor_report *t;
};

static int round_and_improve(struct pass *p, const struct turn *u, struct err *e) {
    uint64_t n = tensor_elems(u->from), cols = tensor_row_elems(u->from);
    const float *x;
    if (quant_values(u->from, u->data, &p->f32, &x, e)) return err_prefix(e, "tensor '%s'", u->t->name);
    int rc = pass_round(p, x, n / cols, cols, u->importance, p->packed.data, u->t, e);
    return rc ? rc : improve(p, u->slot, x, n, cols, u->importance, u->t, e);
}

static int by_cache(struct pass *p, const struct turn *u, uint64_t bytes, struct err *e) {
    struct digest key;
    uint64_t settings[] = {BLOCKS_VERSION, u->t->to, u->importance && is_clipped(p, u->slot, u->t->to), p->o->hqq};
    int rc = cache_key(u->from, u->data, u->importance, settings, COUNT_OF(settings), &key, e);
    if (!rc) rc = blocks_recall(p->o->cache, key, u->t, p->packed.data, bytes, &u->t->recalled, e);
    if (rc || u->t->recalled) return rc;
    rc = round_and_improve(p, u, e);
    return rc ? rc : blocks_store(p->o->cache, key, u->t, p->packed.data, bytes, e);
}

int quantize_blocks(struct pass *p, struct model_slot s, const struct tensor_desc *from, const void *data,
                    struct quant_tensor_report *t, struct err *e) {
    struct turn u = {s, from, data, NULL, t};
    struct tensor_desc d = *from;
    d.dtype = t->to;
    p->packed.len = 0;
    if (buf_reserve(&p->packed, tensor_bytes(&d), e)) return err_prefix(e, "tensor '%s'", d.name);
    int rc = pass_is_weighed(p, s, t->to) ? pass_importance_of(p, s, tensor_row_elems(from), &u.importance, e) : 0;
    t->unweighed = pass_has_importance(p) && pass_is_weighed(p, s, t->to) && !u.importance;
    bool keeps = p->o->cache && dtype_info(t->to)->is_quantized;
    if (rc) return rc;
    return keeps ? by_cache(p, &u, tensor_bytes(&d), e) : round_and_improve(p, &u, e);
}

static int write_quantized(struct pass *p, struct model_slot s, const struct tensor_desc *from, const void *data,
                           struct quant_tensor_report *t, struct err *e) {
    struct tensor_desc d = *from;
    d.dtype = t->to;
    int rc = quantize_blocks(p, s, from, data, t, e);
    return rc ? rc : stream_write_tensor(p->out, &d, NULL, p->packed.data, e);
}

static int quantize_tensor(void *ctx, struct model_slot s, const struct tensor_desc *from, const cJSON *attrs,
                           const void *data, struct err *e) {
    (void)attrs;
    struct pass *p = ctx;
    struct quant_tensor_report t = {.name = from->name, .from = from->dtype, .elems = tensor_elems(from)};
    int rc = pass_choose_type(p, s, tensor_row_elems(from), &t, e);
    if (rc) return rc;
    if (t.to == from->dtype) /* a second rounding would only lose precision */
        rc = stream_write_tensor(p->out, from, NULL, data, e);
    else
        rc = write_quantized(p, s, from, data, &t, e);
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
    p.vocab = head.vocab_digest;
    if (!rc) rc = pass_prepare(&p, e);
    if (!rc) rc = pass_write_head(&p, head.vocab.data, head.vocab.len, head.meta, e);
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
    p.vocab = head.vocab_digest;
    if (!rc) rc = pass_prepare(&p, e);
    if (!rc) rc = model_each_desc(in, &head.config, &item, look_at_tensor, &p, e);
    if (!rc) rc = quant_plan_write(&p.plan, &head.config, plan, e);
    pass_finish(&p);
    model_head_release(&head);
    return rc;
}
