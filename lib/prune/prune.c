/* One pass over a model stream: what stays is written, layer by layer. */
#include "lib/prune/prune_internal.h"

#include <stdlib.h>

struct pass {
    struct stream_writer *out;
    struct prune_plan plan;
    struct prune_report *report;
    struct prune_layer layer; /* the one being gathered */
    struct prune_layer one;   /* a tensor outside layers */
    struct buf scratch, packed;
};

/* Stored again as it was, or as f32 when it was quantized and other numbers share its blocks now. */
static int write_values(struct pass *p, struct prune_tensor *t, struct err *e) {
    struct tensor_desc *d = &t->desc;
    const float *x = (const float *)t->data.data;
    if (t->blocks.len) return stream_write_tensor(p->out, d, NULL, t->blocks.data, e);
    if (dtype_info(d->dtype)->is_quantized) d->dtype = DT_F32;
    if (d->dtype == DT_F32) return stream_write_tensor(p->out, d, NULL, x, e);
    p->packed.len = 0;
    int rc = buf_reserve(&p->packed, tensor_bytes(d), e);
    if (!rc) rc = tensor_from_f32_checked(d->dtype, x, p->packed.data, tensor_elems(d), NULL, e);
    return rc ? err_prefix(e, "tensor '%s'", d->name) : stream_write_tensor(p->out, d, NULL, p->packed.data, e);
}

/* Magnitude pruning (Han et al. 2015): the smallest |w| of each matrix. */
static int sparsify(struct pass *p, struct prune_layer *l, enum model_role role, struct err *e) {
    const struct prune_options *o = p->plan.o;
    bool outside = !model_role_in_layer(role);
    if (o->sparsity == 0 || !model_role_is_matrix(role) || (outside && !o->prune_head)) return 0;
    uint64_t n = tensor_elems(&l->tensor[role].desc);
    p->scratch.len = 0;
    int rc = buf_reserve(&p->scratch, n * sizeof(float), e);
    if (rc) return rc;
    l->tensor[role].blocks.len = 0;
    p->report->zeros += kernel_zero_smallest((float *)l->tensor[role].data.data, n, (size_t)(o->sparsity * (double)n),
                                             (float *)p->scratch.data);
    return 0;
}

static int write_tensor(struct pass *p, struct prune_layer *l, struct model_slot s, struct err *e) {
    struct tensor_desc *d = &l->tensor[s.role].desc;
    model_slot_name(s, d->name);
    int rc = sparsify(p, l, s.role, e);
    if (!rc) rc = model_slot_check(&p->plan.to, s, d, e);
    return rc ? rc : write_values(p, &l->tensor[s.role], e);
}

static int take(struct prune_layer *l, enum model_role role, const struct tensor_desc *d, const void *data,
                struct err *e) {
    struct prune_tensor *t = &l->tensor[role];
    t->data.len = t->blocks.len = 0;
    int rc = buf_reserve(&t->data, tensor_elems(d) * sizeof(float), e);
    if (!rc && dtype_info(d->dtype)->is_quantized) rc = buf_append(&t->blocks, data, tensor_bytes(d), e);
    if (rc) return err_prefix(e, "tensor '%s'", d->name);
    t->desc = *d;
    t->here = true;
    tensor_to_f32(d->dtype, data, (float *)t->data.data, tensor_elems(d));
    return 0;
}

/* All of a layer is in memory: shrinks it and writes it under its new number. */
static int finish_layer(struct pass *p, uint32_t old_layer, struct err *e) {
    int rc = prune_layer_shrink(&p->layer, &p->plan, old_layer, e);
    for (int r = 0; !rc && r < ROLE_COUNT; r++)
        if (p->layer.tensor[r].here)
            rc = write_tensor(p, &p->layer, (struct model_slot){(enum model_role)r, p->plan.new_layer[old_layer]}, e);
    for (int r = 0; r < ROLE_COUNT; r++) p->layer.tensor[r].here = false;
    return rc;
}

static int write_outside(struct pass *p, struct model_slot s, struct err *e) {
    struct tensor_desc *d = &p->one.tensor[s.role].desc;
    struct buf kept = {0};
    if (p->plan.kept_tokens && model_role_info(s.role)->rows == AXIS_VOCAB) {
        uint64_t n = p->plan.to.vocab_size, cols = d->rank == 2 ? d->dims[1] : 1;
        int rc = buf_reserve(&kept, n * cols * sizeof(float), e);
        if (!rc) rc = prune_keep_blocks(&p->one.tensor[s.role], p->plan.kept_tokens, n, e);
        if (rc) {
            buf_release(&kept);
            return rc;
        }
        kernel_gather((float *)kept.data, (const float *)p->one.tensor[s.role].data.data, p->plan.kept_tokens, n, cols);
        d->dims[0] = n;
        buf_release(&p->one.tensor[s.role].data);
        p->one.tensor[s.role].data = kept;
    }
    int rc = write_tensor(p, &p->one, s, e);
    /* embedding and head are the largest: they are not kept in memory through the layers */
    buf_release(&p->one.tensor[s.role].data);
    buf_release(&p->one.tensor[s.role].blocks);
    return rc;
}

static int prune_tensor(void *ctx, struct model_slot s, const struct tensor_desc *d, const cJSON *attrs,
                        const void *data, struct err *e) {
    (void)attrs;
    struct pass *p = ctx;
    if (!model_role_in_layer(s.role)) {
        int rc = take(&p->one, s.role, d, data, e);
        return rc ? rc : write_outside(p, s, e);
    }
    if (p->plan.new_layer[s.layer] == LAYER_GONE) return 0;
    int rc = take(&p->layer, s.role, d, data, e);
    return rc || !model_slot_ends_layer(p->plan.from, s) ? rc : finish_layer(p, s.layer, e);
}

static int fill_report(struct prune_report *r, const struct prune_plan *p, struct err *e) {
    int rc = model_config_copy(&r->before, p->from, &r->memory, e);
    if (!rc) rc = model_config_copy(&r->after, &p->to, &r->memory, e);
    if (rc) return rc;
    r->kept_layers = arena_array(&r->memory, p->to.n_layers, sizeof *r->kept_layers, e);
    if (!r->kept_layers) return e->code;
    memcpy(r->kept_layers, p->old_layer, p->to.n_layers * sizeof *r->kept_layers);
    r->parameters_before = model_parameters(p->from);
    r->parameters_after = model_parameters(&p->to);
    return 0;
}

int prune_stream(struct stream_reader *in, struct stream_writer *out, const struct prune_options *o,
                 struct prune_report *report, struct err *e) {
    struct model_head head = {0};
    struct stream_item item;
    struct pass p = {.out = out, .report = report};
    int rc = model_head_read(in, &head, &item, e);
    if (!rc) rc = prune_plan_make(&p.plan, &head, o, e);
    const struct buf *vocab = p.plan.vocab.len ? &p.plan.vocab : &head.vocab;
    if (!rc) prune_plan_warn(&p.plan);
    if (!rc) rc = fill_report(report, &p.plan, e);
    if (!rc) rc = prune_rename(head.meta, report->parameters_before, report->parameters_after, e);
    if (!rc) rc = model_head_write(out, &p.plan.to, vocab->data, vocab->len, head.meta, e);
    if (!rc) rc = model_each_tensor(in, &head.config, &item, prune_tensor, &p, e);
    for (int r = 0; r < ROLE_COUNT; r++) {
        buf_release(&p.layer.tensor[r].data);
        buf_release(&p.layer.tensor[r].spare);
        buf_release(&p.layer.tensor[r].blocks);
        buf_release(&p.one.tensor[r].data);
        buf_release(&p.one.tensor[r].blocks);
    }
    buf_release(&p.scratch);
    buf_release(&p.packed);
    prune_plan_release(&p.plan);
    model_head_release(&head);
    return rc;
}

void prune_report_release(struct prune_report *r) {
    arena_release(&r->memory);
}
