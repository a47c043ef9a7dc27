/*
 * Quantizes a model stream by its plan, one tensor at a time, rounding to nearest.
 *
 * No row depends on another one, so a tensor is read and rounded a few rows at a time while they are in a cache, and
 * only its blocks are kept as a whole: memory that is touched for the first time is the slowest there is.
 */
#include <string.h>

#include "lib/quant/quant_internal.h"
#include "lib/quant/second_order.h"

/* q and k are not clipped, because errors in their largest channels affect every attention score. */
static bool is_clipped(const struct pass *p, struct model_slot s, enum dtype to) {
    return p->o->clip && quant_form(to) && s.role != ROLE_Q && s.role != ROLE_K;
}

/* A tensor being quantized into p->packed. */
struct turn {
    struct model_slot slot;
    const struct tensor_desc *from;
    const void *data; /* NULL: to be read from p->in */
    const float *importance;
    struct quant_tensor_report *t;
    bool fed; /* with error feedback */
};

#define AT_ONCE (1u << 21) /* elements: few enough for a cache, many enough for threads to share the reading */

/* *x = the values of these rows. */
static int take_rows(struct pass *p, const struct turn *u, const struct quant_rows *r, const float **x, struct err *e) {
    enum dtype from = u->from->dtype;
    uint64_t n = r->rows * r->cols;
    size_t row_bytes = dtype_row_bytes(from, r->cols);
    const void *data = u->data ? (const char *)u->data + r->first * row_bytes : NULL;
    if (!data) {
        p->stored.len = 0;
        if (buf_reserve(&p->stored, r->rows * row_bytes, e)) return err_prefix(e, "tensor '%s'", u->t->name);
        if (model_tensors_part(p->in, p->stored.data, n, e)) return e->code;
        data = p->stored.data;
    }
    return quant_values(from, data, n, &p->f32, x, e) ? err_prefix(e, "tensor '%s'", u->t->name) : 0;
}

/* Rounds rows to nearest, then applies clipping, HQQ or error feedback. */
static int round_rows(struct pass *p, const struct turn *u, const struct quant_rows *r, struct quant_sums *sums,
                      struct err *e) {
    bool clips = r->importance && is_clipped(p, u->slot, r->to), moves = p->o->hqq && hqq_takes(r->to);
    bool changes = clips || moves || u->fed;
    int rc = quant_round_rows(r, changes ? NULL : sums, e);
    if (!rc && clips) rc = clip_improve(r->to, r->x, r->rows, r->cols, r->importance, r->packed, e);
    if (!rc && moves) hqq_improve(r->to, r->x, r->rows, r->cols, r->packed);
    if (!rc && u->fed) rc = feedback_rows(p, r, u->t, e);
    if (!rc && changes) rc = quant_measure_rows(r, sums, e);
    return rc ? err_prefix(e, "tensor '%s'", u->t->name) : 0;
}

static int round_tensor(struct pass *p, struct turn *u, struct err *e) {
    if (u->fed && feedback_begin(p, u->slot, u->t, &u->importance, e)) return e->code;
    u->t->unweighed = pass_has_importance(p) && pass_is_weighed(p, u->slot, u->t->to) && !u->importance;
    uint64_t rows = tensor_rows(u->from), cols = tensor_row_elems(u->from);
    uint64_t most = quant_whole_pieces(AT_ONCE / cols);
    struct quant_rows r = {.to = u->t->to, .cols = cols, .importance = u->importance, .scratch = (float *)p->back.data};
    struct quant_sums sums = {0};
    for (; r.first < rows; r.first += r.rows) {
        r.rows = rows - r.first < most ? rows - r.first : most;
        r.packed = p->packed.data + r.first * dtype_row_bytes(r.to, cols);
        if (take_rows(p, u, &r, &r.x, e)) return e->code;
        if (round_rows(p, u, &r, &sums, e)) return p->in ? model_tensors_doubt(p->in, e) : e->code;
    }
    pass_put_error(u->t, &sums);
    return 0;
}

static int by_cache(struct pass *p, struct turn *u, uint64_t bytes, struct err *e) {
    struct digest key, moments = {0};
    const struct quant_feedback *how = &p->o->feedback;
    uint64_t damp;
    memcpy(&damp, &how->damp, sizeof damp);
    int rc = u->fed ? feedback_digest(p, u->slot, &moments, e) : 0;
    uint64_t settings[] = {BLOCKS_VERSION,
                           u->t->to,
                           (u->fed || u->importance) && is_clipped(p, u->slot, u->t->to),
                           p->o->hqq,
                           moments.lo,
                           moments.hi,
                           u->fed ? damp : 0,
                           u->fed && how->act_order,
                           u->fed ? how->sweeps : 0};
    if (!rc) rc = cache_key(u->from, u->data, u->importance, settings, COUNT_OF(settings), &key, e);
    if (!rc) rc = blocks_recall(p->o->cache, key, u->t, p->packed.data, bytes, &u->t->recalled, e);
    if (!rc && u->t->recalled) return feedback_check_damp(p, u->t, e);
    if (rc) return rc;
    rc = round_tensor(p, u, e);
    return rc ? rc : blocks_store(p->o->cache, key, u->t, p->packed.data, bytes, e);
}

static bool is_cached(const struct pass *p, enum dtype to) {
    return p->o->cache && dtype_info(to)->is_quantized;
}

int quantize_blocks(struct pass *p, struct model_slot s, const struct tensor_desc *from, const void *data,
                    struct quant_tensor_report *t, struct err *e) {
    struct turn u = {s, from, data, NULL, t, p->o->fed_by_stats && pass_is_fed(p, s, t->to)};
    struct tensor_desc d = *from;
    d.dtype = t->to;
    p->packed.len = 0;
    if (buf_reserve(&p->packed, tensor_bytes(&d), e)) return err_prefix(e, "tensor '%s'", d.name);
    int rc =
        pass_is_weighed(p, s, t->to) && !u.fed ? pass_importance_of(p, s, tensor_row_elems(from), &u.importance, e) : 0;
    if (rc) return rc;
    return is_cached(p, t->to) ? by_cache(p, &u, tensor_bytes(&d), e) : round_tensor(p, &u, e);
}

static int write_quantized(struct pass *p, struct quant_tensor_report *t, struct err *e) {
    struct tensor_desc d = p->in->desc;
    d.dtype = t->to;
    bool whole = is_cached(p, t->to); /* the key of the cache is a digest of all the data */
    int rc = whole ? model_tensors_load(p->in, e) : 0;
    if (!rc) rc = quantize_blocks(p, p->in->slot, &p->in->desc, whole ? p->in->data.data : NULL, t, e);
    return rc ? rc : stream_write_tensor(p->out, &d, NULL, p->packed.data, e);
}

static int write_unchanged(struct pass *p, struct err *e) {
    int rc = model_tensors_load(p->in, e);
    return rc ? rc : stream_write_tensor(p->out, &p->in->desc, NULL, p->in->data.data, e);
}

static int quantize_tensor(struct pass *p, struct err *e) {
    const struct tensor_desc *from = &p->in->desc;
    struct quant_tensor_report t = {.name = from->name, .from = from->dtype, .elems = tensor_elems(from)};
    int rc = pass_choose_type(p, p->in->slot, tensor_row_elems(from), &t, e);
    /* A second rounding to the same type would only lose precision. */
    if (!rc) rc = t.to == from->dtype ? write_unchanged(p, e) : write_quantized(p, &t, e);
    if (!rc) rc = pass_count(p, p->in->slot, from, &t, e);
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
    struct model_tensors tensors;
    struct pass p = {
        .in = &tensors, .out = out, .o = o, .report = report, .ctx = ctx, .totals = totals, .config = &head.config};
    bool more = true;
    *totals = (struct quant_totals){0};
    int rc = model_head_read(in, &head, &item, e);
    p.vocab = head.vocab_digest;
    model_tensors_begin(&tensors, in, &head.config, &item);
    if (!rc) rc = pass_prepare(&p, e);
    if (!rc) rc = pass_write_head(&p, head.vocab.data, head.vocab.len, head.meta, e);
    while (!rc && !(rc = model_tensors_open(&tensors, &more, e)) && more) rc = quantize_tensor(&p, e);
    model_tensors_release(&tensors);
    feedback_end(&p);
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
