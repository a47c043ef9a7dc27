/* Prunes in one pass over a model stream, writing layer by layer. */
#include "lib/prune/second_order.h"

#include <math.h>
#include <stdlib.h>

struct pass {
    struct stream_writer *out;
    struct prune_plan plan;
    struct prune_report *report;
    struct prune_layer layer; /* the layer being gathered; its experts follow one by one ... */
    bool shrunk;              /* ... after the rest, which is shrunk when the first expert arrives */
    struct prune_layer expert;
    struct prune_layer one; /* the current tensor outside layers */
    struct buf packed, scratch;
    struct prune_moments moments;
};

/* Writes the tensor in its type, or as f32 if it was quantized and its blocks are no longer intact. */
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

static int report_matrix(struct pass *p, const struct prune_tensor *t, struct prune_tensor_report *r, struct err *e) {
    r->name = t->desc.name, r->elems = tensor_elems(&t->desc);
    prune_count(p->report, r, (const float *)t->data.data);
    return p->plan.o->sparse ? p->plan.o->sparse(p->plan.o->sparse_ctx, r, e) : 0;
}

/* old: slot in the old model. */
static int sparsify(struct pass *p, struct prune_tensor *t, struct model_slot old, struct err *e) {
    struct prune_tensor_report r = {.has_error = prune_uses_moments(p->plan.o)};
    const struct prune_matrix w = {.x = (float *)t->data.data,
                                   .rows = t->desc.dims[0],
                                   .cols = t->desc.dims[1],
                                   .norms = t->norms.len ? (const float *)t->norms.data : NULL};
    if (!prune_is_sparse(t->sparse)) return 0;
    t->blocks.len = 0;
    int rc = r.has_error ? prune_by_moments(&p->moments, p->plan.o, old, &t->desc, &w, t->sparse, &r.output_error, e)
                         : prune_mask(&w, t->sparse, p->plan.o->method, &p->scratch, e);
    return rc ? err_prefix(e, "tensor '%s'", t->desc.name) : report_matrix(p, t, &r, e);
}

static int narrow(struct pass *p, struct prune_layer *l, struct model_slot old, struct err *e) {
    const struct prune_tensor *t = &l->tensor[old.role];
    if (!p->plan.kept_hidden) return 0;
    bool gain = model_role_info(old.role)->kind == KIND_GAIN && t->desc.dims[0] == p->plan.from->hidden;
    double kept = gain ? prune_kept_energy(&p->plan, old.role, old.layer, (const float *)t->data.data) : 1;
    return prune_narrow(l, &p->plan, old, sqrt(kept), e);
}

/* s: slot in the pruned model. */
static int write_tensor(struct pass *p, struct prune_layer *l, struct model_slot s, struct err *e) {
    struct tensor_desc *d = &l->tensor[s.role].desc;
    struct model_slot old = s;
    if (model_role_in_layer(s.role)) old.layer = p->plan.old_layer[s.layer];
    model_slot_name(s, d->name);
    int rc = narrow(p, l, old, e);
    if (!rc) rc = sparsify(p, &l->tensor[s.role], old, e);
    if (!rc) rc = model_slot_check(&p->plan.to, s, d, e);
    return rc ? rc : write_values(p, &l->tensor[s.role], e);
}

/* Loads the norms of the tensor's inputs; none for an expert that no position was routed to. */
static int take_norms(const struct pass *p, struct prune_tensor *t, struct model_slot s, uint64_t cols, struct err *e) {
    const struct prune_options *o = p->plan.o;
    bool found;
    double *norms = mem_array(cols, sizeof *norms, e);
    int rc = norms ? prune_input_norms(o->stats, &o->squares, p->plan.from, s, cols, norms, &found, e) : e->code;
    if (!rc && found) rc = buf_reserve(&t->norms, cols * sizeof(float), e);
    for (uint64_t i = 0; !rc && found && i < cols; i++) ((float *)t->norms.data)[i] = (float)norms[i];
    if (!rc && found) t->norms.len = cols * sizeof(float);
    mem_free(norms);
    return rc;
}

static int take(const struct pass *p, struct prune_layer *l, struct model_slot s, const struct tensor_desc *d,
                const void *data, struct err *e) {
    struct prune_tensor *t = &l->tensor[s.role];
    t->data.len = t->blocks.len = t->norms.len = 0;
    t->sparse = p->plan.sparse[model_slot_index(p->plan.from, s)];
    int rc = buf_reserve(&t->data, tensor_elems(d) * sizeof(float), e);
    if (!rc && dtype_info(d->dtype)->is_quantized) rc = buf_append(&t->blocks, data, tensor_bytes(d), e);
    if (!rc && prune_is_sparse(t->sparse) && p->plan.o->method == PRUNE_WANDA)
        rc = take_norms(p, t, s, tensor_row_elems(d), e);
    if (rc) return err_prefix(e, "tensor '%s'", d->name);
    t->desc = *d;
    t->here = true;
    tensor_to_f32(d->dtype, data, (float *)t->data.data, tensor_elems(d));
    return 0;
}

/* If requested, factors are multiplied out before anything else ... */
static int merge_layer(struct pass *p, uint32_t old_layer, struct err *e) {
    int rc = 0;
    for (int r = 0; !rc && r < ROLE_COUNT; r++) {
        enum model_role role = (enum model_role)r;
        if (!p->layer.tensor[r].here || !model_role_info(role)->out || !model_rank(p->plan.from, role, old_layer))
            continue;
        if (p->plan.o->merge) rc = prune_merge(&p->layer, role, e);
        if (rc) err_prefix(e, "tensor '%s'", p->layer.tensor[r].desc.name);
    }
    return rc;
}

/* ... and matrices are factored after everything else. */
static int factor_layer(struct pass *p, uint32_t layer, struct err *e) {
    int rc = 0;
    for (int r = 0; !rc && r < ROLE_COUNT; r++) {
        struct prune_tensor *t = &p->layer.tensor[r];
        char name[TENSOR_MAX_NAME + 1];
        if (!t->here || !t->sparse.rank) continue;
        model_slot_name((struct model_slot){(enum model_role)r, layer, 0}, name);
        struct prune_tensor_report report = {.name = name, .elems = tensor_elems(&t->desc), .rank = t->sparse.rank};
        rc = prune_split(&p->layer, (enum model_role)r, t->sparse.rank, e);
        if (rc) return err_prefix(e, "tensor '%s'", name);
        prune_count(p->report, &report, NULL);
        if (p->plan.o->sparse) rc = p->plan.o->sparse(p->plan.o->sparse_ctx, &report, e);
    }
    return rc;
}

/* Writes the tensors of one layer or expert that are present, under their new numbers. */
static int write_all_here(struct pass *p, struct prune_layer *l, uint32_t layer, uint32_t expert, struct err *e) {
    int rc = 0;
    for (int r = 0; r < ROLE_COUNT; r++) {
        if (!rc && l->tensor[r].here)
            rc = write_tensor(p, l, (struct model_slot){(enum model_role)r, layer, expert}, e);
        l->tensor[r].here = false;
    }
    return rc;
}

/* Called when everything pruned together is in memory, and again for the tensors after the experts. */
static int flush_layer(struct pass *p, uint32_t old_layer, struct err *e) {
    int rc = p->shrunk ? 0 : merge_layer(p, old_layer, e);
    if (!rc && !p->shrunk) rc = prune_layer_shrink(&p->layer, &p->plan, old_layer, e);
    if (!rc && !p->shrunk) rc = factor_layer(p, p->plan.new_layer[old_layer], e);
    p->shrunk = true;
    return rc ? rc : write_all_here(p, &p->layer, p->plan.new_layer[old_layer], 0, e);
}

static int prune_expert(struct pass *p, struct model_slot s, const struct tensor_desc *d, const void *data,
                        struct err *e) {
    uint32_t expert = prune_new_expert(&p->plan, s);
    int rc = p->shrunk ? 0 : flush_layer(p, s.layer, e);
    if (rc || expert == LAYER_GONE) return rc;
    rc = take(p, &p->expert, s, d, data, e);
    if (rc || !model_slot_ends_expert(p->plan.from, s)) return rc;
    rc = prune_expert_shrink(&p->expert, &p->plan, s, e);
    return rc ? rc : write_all_here(p, &p->expert, p->plan.new_layer[s.layer], expert, e);
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
        kernel_gather(kernel_f32((float *)kept.data), kernel_f32((const float *)p->one.tensor[s.role].data.data),
                      p->plan.kept_tokens, n, cols);
        d->dims[0] = n;
        buf_release(&p->one.tensor[s.role].data);
        p->one.tensor[s.role].data = kept;
    }
    int rc = write_tensor(p, &p->one, s, e);
    /* embedding and head are the largest tensors: do not hold them while the layers pass */
    buf_release(&p->one.tensor[s.role].data);
    buf_release(&p->one.tensor[s.role].blocks);
    return rc;
}

static int prune_tensor(void *ctx, struct model_slot s, const struct tensor_desc *d, const cJSON *attrs,
                        const void *data, struct err *e) {
    (void)attrs;
    struct pass *p = ctx;
    if (!model_role_in_layer(s.role)) {
        int rc = take(p, &p->one, s, d, data, e);
        return rc ? rc : write_outside(p, s, e);
    }
    if (p->plan.new_layer[s.layer] == LAYER_GONE) return 0;
    bool of_expert = model_role_info(s.role)->each != AXIS_ONE;
    int rc = of_expert ? prune_expert(p, s, d, data, e) : take(p, &p->layer, s, d, data, e);
    if (rc || !model_slot_ends_layer(p->plan.from, s)) return rc;
    rc = flush_layer(p, s.layer, e);
    p->shrunk = false;
    return rc;
}

static int skip(void *ctx, struct model_slot s, const struct tensor_desc *d, const cJSON *attrs, const void *data,
                struct err *e) {
    (void)ctx, (void)s, (void)d, (void)attrs, (void)data, (void)e;
    return 0;
}

int prune_dry_run(struct stream_reader *in, const struct prune_options *o, struct buf *plan,
                  struct prune_report *report, struct err *e) {
    struct model_head head = {0};
    struct stream_item item;
    struct prune_plan p = {0};
    int rc = model_head_read(in, &head, &item, e);
    if (!rc) rc = prune_plan_make(&p, &head, o, e);
    if (!rc) prune_plan_warn(&p);
    if (!rc) rc = prune_fill_report(report, &p, e);
    if (!rc) rc = prune_plan_write(&p, plan, e);
    if (!rc) rc = model_each_desc(in, &head.config, &item, skip, NULL, e);
    prune_plan_release(&p);
    model_head_release(&head);
    return rc;
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
    if (!rc) rc = prune_fill_report(report, &p.plan, e);
    if (!rc) rc = prune_rename(head.meta, report->parameters_before, report->parameters_after, e);
    if (!rc) rc = model_head_write(out, &p.plan.to, vocab->data, vocab->len, head.meta, e);
    if (!rc) rc = model_each_tensor(in, &head.config, &item, prune_tensor, &p, e);
    prune_layer_release(&p.layer);
    prune_layer_release(&p.expert);
    prune_layer_release(&p.one);
    buf_release(&p.packed);
    buf_release(&p.scratch);
    prune_moments_release(&p.moments);
    prune_plan_release(&p.plan);
    model_head_release(&head);
    return rc;
}
