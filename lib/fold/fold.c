/* Applies one of the rewritings to a model, layer by layer. */
#include <string.h>

#include "lib/fold/fold_internal.h"

struct fold {
    const struct fold_model *f;
    const struct fold_options *o;
    struct stream_writer *out;
    fold_report_fn *report;
    void *ctx;
    struct model *m;
    struct model_config after; /* of the output: differs from m's in `tied` only */
    struct fold_watch watch;
    struct fold_scaling scaling;
    struct fold_rotation r1;
    struct buf head; /* f32: the head of a model that was tied */
    struct buf scratch;
};

static bool needs_scales(const struct fold_options *o) {
    return o->method == FOLD_AWQ || o->method == FOLD_SMOOTH;
}

static int tell(const struct fold *k, const struct fold_report *r, struct err *e) {
    return k->report ? k->report(k->ctx, r, e) : 0;
}

/* ---- scales ------------------------------------------------------------------------------------------------------ */

static int scale_pair(struct fold *k, const struct fold_pair *p, struct err *e) {
    struct fold_report r = {.layer = p->from.layer,
                            .expert = p->from.expert,
                            .point = model_point_name(p->point),
                            .obstacle = p->obstacle,
                            .error = 1};
    int rc = 0;
    if (!p->obstacle)
        rc = k->o->method == FOLD_AWQ ? fold_awq(&k->scaling, p, &r, e) : fold_smooth(&k->scaling, p, &r, e);
    return rc ? rc : tell(k, &r, e);
}

static int scale_layer(struct fold *k, uint32_t layer, struct err *e) {
    struct fold_pair p;
    int rc = fold_watch_layer(&k->watch, k->f, layer, e);
    for (size_t i = 0; !rc && fold_pair_at(&k->m->config, layer, i, &p); i++)
        if (p.n) rc = scale_pair(k, &p, e);
    fold_watch_release(&k->watch);
    return rc;
}

/* ---- rotations --------------------------------------------------------------------------------------------------- */

static int rotate_layer(struct fold *k, uint32_t layer, struct err *e) {
    bool r2 = k->o->method == FOLD_R2;
    struct fold_report r = {.layer = layer, .point = model_point_name(r2 ? POINT_V : POINT_LAYER), .error = 1};
    int rc = r2 ? fold_r2_layer(k->m, layer, k->o->seed, k->scaling.changed, e)
                : fold_r1_layer(k->m, &k->r1, layer, k->scaling.changed, e);
    return rc ? rc : tell(k, &r, e);
}

static int rotate_embedding(struct fold *k, struct err *e) {
    const struct model_param *embed = model_param(k->m, ROLE_EMBED, 0);
    float *copy;
    if (k->m->config.tied && fold_take(embed, &k->head, &copy, e)) return e->code;
    return fold_r1_embed(k->m, &k->r1, k->scaling.changed, e);
}

static int rotate_head(struct fold *k, struct err *e) {
    float *tied = k->m->config.tied ? (float *)(void *)k->head.data : NULL;
    return fold_r1_head(k->m, &k->r1, tied, k->scaling.changed, e);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static int write_head(struct fold *k, struct err *e) {
    struct model_slot s = {.role = ROLE_HEAD};
    char name[TENSOR_MAX_NAME + 1];
    uint64_t dims[2];
    struct tensor_desc d;
    unsigned rank = model_slot_shape(&k->after, s, dims);
    int rc = tensor_desc_init(&d, model_slot_name(s, name), DT_F32, rank, dims, e);
    return rc ? rc : stream_write_tensor(k->out, &d, NULL, k->head.data, e);
}

static int write_part(struct fold *k, size_t first, size_t end, struct err *e) {
    int rc = 0;
    for (size_t i = first; !rc && i < end; i++) {
        long at = model_slot_index(&k->m->config, model_slot_at(&k->after, i));
        if (at < 0)
            rc = write_head(k, e);
        else
            rc = model_save_param(&k->m->params[at], k->out, k->scaling.changed[at] ? DT_F32 : 0, &k->scratch, e);
    }
    return rc;
}

static int rewrite(struct fold *k, int64_t layer, struct err *e) {
    uint32_t n_layers = k->m->config.n_layers;
    bool is_layer = layer >= 0 && layer < n_layers;
    if (needs_scales(k->o)) return is_layer ? scale_layer(k, (uint32_t)layer, e) : 0;
    if (is_layer) return rotate_layer(k, (uint32_t)layer, e);
    if (k->o->method == FOLD_R2) return 0;
    return layer < 0 ? rotate_embedding(k, e) : rotate_head(k, e);
}

static int visit(void *ctx, struct model_layerwise *l, int64_t layer, struct err *e) {
    struct fold *k = ctx;
    const struct model_config *c = &k->after;
    size_t first = layer < 0 ? 0 : model_slot_of_layer(c, (uint32_t)layer);
    size_t end = layer == c->n_layers ? model_slot_count(c) : model_slot_of_layer(c, (uint32_t)(layer + 1));
    (void)l;
    int rc = rewrite(k, layer, e);
    return rc ? rc : write_part(k, first, end, e);
}

/* ---- the whole model --------------------------------------------------------------------------------------------- */

static int prepare_types(struct fold *k, struct err *e) {
    struct quant_plan *plan = &k->scaling.plan;
    bool any = false;
    int rc = quant_plan_make(plan, &k->m->config, k->o->types, e);
    for (size_t i = 0; !rc && i < plan->n; i++)
        any |=
            model_role_in_layer(model_slot_at(&k->m->config, i).role) && dtype_info(plan->choices[i].to)->is_quantized;
    return rc || any ? rc : err_set(e, ERR_USAGE, "awq: no matrix of the layers is to be quantized");
}

static int prepare(struct fold *k, struct err *e) {
    const struct fold_options *o = k->o;
    k->scaling = (struct fold_scaling){.m = k->m, .o = o, .watch = &k->watch};
    k->watch = (struct fold_watch){.config = &k->m->config, .stats = o->stats, .gram = o->method == FOLD_AWQ};
    k->after = k->m->config;
    if (k->after.layer_kind != LAYER_TRANSFORMER)
        return err_set(e, ERR_DATA, "the layers of this model are LSTMs, in which nothing can be folded");
    if (model_is_factored(&k->after))
        return err_set(
            e, ERR_DATA,
            "this model has low-rank factors, which fold does not rewrite; multiply them first (rill prune --merge)");
    k->scaling.changed = mem_array(k->m->n_params, sizeof *k->scaling.changed, e);
    if (!k->scaling.changed) return e->code;
    memset(k->scaling.changed, 0, k->m->n_params * sizeof *k->scaling.changed);
    int rc = o->stats ? stats_check(o->stats, &k->m->config, k->m->vocab_digest, e) : 0;
    if (!rc && o->method == FOLD_AWQ) rc = prepare_types(k, e);
    if (rc || (o->method != FOLD_R1 && o->method != FOLD_PCA)) return rc;
    k->after.tied = false;
    rc = fold_check_r1(&k->m->config, e);
    if (!rc && o->method == FOLD_PCA) return fold_rotation_of(&k->r1, k->m->config.hidden, o->axes, e);
    return rc ? rc : fold_rotation_new(&k->r1, k->m->config.hidden, rng_init(o->seed, 0), e);
}

int fold_model(const struct fold_model *f, struct stream_writer *out, const struct fold_options *o,
               fold_report_fn *report, void *ctx, struct err *e) {
    struct model *m = model_layerwise_held(f->model);
    struct fold k = {.f = f, .o = o, .out = out, .report = report, .ctx = ctx, .m = m};
    struct model_changes how = {false, visit, &k};
    int rc = prepare(&k, e);
    if (!rc) rc = model_head_write(out, &k.after, m->vocab_bytes.data, m->vocab_bytes.len, m->meta, e);
    if (!rc) rc = model_layerwise_change(f->model, f->scratch, f->in, f->n, &how, e);
    quant_plan_release(&k.scaling.plan);
    fold_rotation_release(&k.r1);
    mem_free(k.scaling.changed);
    buf_release(&k.head);
    buf_release(&k.scratch);
    return rc;
}
