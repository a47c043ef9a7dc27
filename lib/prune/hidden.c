/* Narrows the residual stream layer by layer, refitting the matrices that read from it and add to it. */
#include <math.h>
#include <string.h>

#include "lib/prune/second_order.h"

/*
 * Removed channels are zeroed and the model runs in its old shape, so norms still divide by the mean over all channels;
 * the gains and the epsilon of the new shape account for that.
 */
struct narrowing {
    const struct prune_walk *k;
    const struct prune_calibration *c;
    const struct prune_plan *plan;
    struct model *m;
    struct model_layerwise *l;
    uint64_t positions;
    struct prune_kept kept;
    unsigned char *stays;   /* [hidden] */
    struct stats_part held; /* the current layer */
    float *embed;           /* [hidden][hidden] e^T e of a tied embedding */
    struct prune_layer one; /* the tensor being written */
    struct buf scratch;
    struct arena memory;
};

static bool along(enum model_axis axis) {
    return axis == AXIS_HIDDEN || axis == AXIS_EMBED;
}

/* Zeroes the removed rows or columns. */
static void clear(const struct narrowing *q, struct model_param *p) {
    const struct model_role_info *info = model_role_info(p->slot.role);
    size_t rows = p->desc.dims[0], cols = p->desc.rank == 2 ? p->desc.dims[1] : 1;
    float *x = model_host_value(p);
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < cols; i++)
            if ((along(info->rows) && !q->stays[r]) || (along(info->cols) && !q->stays[i])) x[r * cols + i] = 0;
}

static int write_param(struct narrowing *q, const struct model_param *p, struct err *e) {
    struct prune_tensor *t = &q->one.tensor[p->slot.role];
    t->data.len = t->blocks.len = t->norms.len = 0;
    if (buf_append(&t->data, model_host_value(p), p->n * sizeof(float), e))
        return err_prefix(e, "tensor '%s'", p->desc.name);
    t->desc = p->desc;
    t->here = true;
    int rc = prune_narrow(&q->one, q->plan, p->slot, 1, e);
    if (!rc) rc = model_slot_check(&q->plan->to, p->slot, &t->desc, e);
    struct model_param now = {.slot = p->slot, .desc = t->desc, .value = kernel_f32((float *)(void *)t->data.data)};
    now.n = tensor_elems(&now.desc);
    if (!rc) rc = model_save_param(&now, q->k->out, 0, &q->scratch, e);
    buf_release(&t->data);
    buf_release(&t->spare);
    return rc;
}

static int write_part(struct narrowing *q, struct err *e) {
    int rc = 0;
    for (size_t i = q->held.first; !rc && i < q->held.end; i++) rc = write_param(q, &q->m->params[i], e);
    return rc;
}

/* Rescales the gain so that the remaining channels keep their magnitude despite the smaller mean. */
static void scale_gain(const struct narrowing *q, enum model_role norm, uint32_t layer) {
    struct model_param *p = model_param(q->m, norm, layer);
    float *x = model_host_value(p);
    double by = sqrt(prune_kept_energy(q->plan, norm, layer, x));
    for (uint64_t i = 0; i < p->n; i++) x[i] = q->stays[i] ? (float)(x[i] * by) : 0;
}

/* ---- a layer ----------------------------------------------------------------------------------------------------- */

static int report_fit(const struct narrowing *q, const struct model_param *p, const struct prune_matrix *w,
                      const float *gram, const float *was, struct err *e) {
    struct prune_tensor_report t = {.name = p->desc.name, .has_error = true, .elems = p->n};
    int rc = prune_output_error(w, gram, was, &t.output_error, e);
    return rc || !q->plan->o->sparse ? rc : q->plan->o->sparse(q->plan->o->sparse_ctx, &t, e);
}

/* Refits the kept columns of w by least squares, with b = w (gram + shift) + residual / scale. */
static int fit(struct narrowing *q, struct model_param *p, const struct stats_moments *m, const struct prune_kept *kept,
               struct err *e) {
    size_t rows = p->desc.dims[0], n = p->desc.dims[1];
    struct prune_consumer c = {
        .w = {.x = model_host_value(p), .rows = rows, .cols = n}, .gram = m->gram, .damp = q->plan->o->damp};
    float scale = 1 / model_factor(q->m->config.residual_scale);
    float *was = mem_array(rows, n * sizeof *was, e);
    c.b = was ? mem_array(rows, n * sizeof *c.b, e) : NULL;
    int rc = c.b ? 0 : e->code;
    if (!rc) {
        memcpy(was, c.w.x, p->n * sizeof *was);
        kernel_matmul_nn(rows, n, n, kernel_f32(c.w.x), kernel_f32(m->gram), 0, kernel_f32(c.b));
        if (m->shift) kernel_matmul_nn(rows, n, n, kernel_f32(c.w.x), kernel_f32(m->shift), 1, kernel_f32(c.b));
        if (m->residual) kernel_axpy(kernel_f32(c.b), scale, kernel_f32(m->residual), rows * n);
        rc = prune_refit_columns(&c, kept, e);
    }
    if (!rc) clear(q, p);
    if (!rc) rc = prune_round(p, &q->scratch, e);
    if (!rc) rc = report_fit(q, p, &c.w, m->gram, was, e);
    mem_free(c.b);
    mem_free(was);
    return rc ? err_prefix(e, "tensor '%s'", p->desc.name) : 0;
}

/* Refits the matrices that read from a point. */
static int fit_readers(struct narrowing *q, uint32_t layer, enum model_point point, struct err *e) {
    struct stats_moments m = {0};
    bool adds = point == POINT_O_IN || point == POINT_DOWN_IN;
    struct stats_moments_options at = {.point = point,
                                       .layer = layer,
                                       .gram = true,
                                       .shift = point != POINT_DOWN_IN,
                                       .residual = adds,
                                       .positions = q->positions,
                                       .part = &q->held};
    int rc = stats_moments_collect(&m, q->l, &at, e);
    for (size_t i = q->held.first; !rc && i < q->held.end; i++) {
        struct model_param *p = &q->m->params[i];
        if (model_role_is_matrix(p->slot.role) && model_role_info(p->slot.role)->input == point)
            rc = fit(q, p, &m, adds ? &(struct prune_kept){0} : &q->kept, e);
    }
    stats_moments_release(&m);
    return rc;
}

static int narrow_layer(struct narrowing *q, uint32_t layer, struct err *e) {
    static const enum model_point points[] = {POINT_ATTN_IN, POINT_O_IN, POINT_FFN_IN, POINT_DOWN_IN};
    int rc = 0;
    for (size_t i = q->held.first; !rc && i < q->held.end; i++) rc = stats_part_keep(&q->held, i, e);
    if (rc) return rc;
    for (size_t i = q->held.first; i < q->held.end; i++) {
        enum model_axis rows = model_role_info(q->m->params[i].slot.role)->rows;
        if (along(rows) && model_role_info(q->m->params[i].slot.role)->kind != KIND_GAIN) clear(q, &q->m->params[i]);
    }
    scale_gain(q, ROLE_ATTN_NORM, layer);
    scale_gain(q, ROLE_FFN_NORM, layer);
    for (size_t i = 0; !rc && i < COUNT_OF(points); i++) rc = fit_readers(q, layer, points[i], e);
    return rc ? err_prefix(e, "layer %u", layer) : 0;
}

/* ---- before and after the layers --------------------------------------------------------------------------------- */

static int narrow_embedding(struct narrowing *q, struct err *e) {
    const struct model_param *p = model_param(q->m, ROLE_EMBED, 0);
    size_t n = q->m->config.hidden;
    if (q->m->config.tied) {
        q->embed = mem_array(n, n * sizeof *q->embed, e);
        if (!q->embed) return e->code;
        kernel_matmul_tn(n, n, p->desc.dims[0], kernel_f32(model_host_value(p)), kernel_f32(model_host_value(p)), 0,
                         kernel_f32(q->embed));
    }
    for (size_t i = q->held.first; i < q->held.end; i++) clear(q, &q->m->params[i]);
    return 0;
}

struct final {
    const float *x, *gain;
    float *y;
    size_t n;
    double eps;
};

static void norm_row(void *ctx, size_t r, int thread) {
    const struct final *f = ctx;
    const float *x = f->x + r * f->n;
    double sum = 0;
    (void)thread;
    for (size_t i = 0; i < f->n; i++) sum += (double)x[i] * x[i];
    double by = 1 / sqrt(sum / (double)f->n + f->eps);
    for (size_t i = 0; i < f->n; i++) f->y[r * f->n + i] = (float)(x[i] * by * f->gain[i]);
}

/* Moments of the final norm's outputs, y now and x in the original: gram = sum y y^T, cross = sum x y^T. */
static int final_moments(struct narrowing *q, const float *was, const float *now, float *gram, float *cross,
                         struct err *e) {
    size_t n = q->m->config.hidden;
    float *x = mem_array(q->positions, n * sizeof *x, e), *y = x ? mem_array(q->positions, n * sizeof *y, e) : NULL;
    if (y) {
        struct final dense = {model_layerwise_states(q->l, STATES_DENSE), was, x, n, q->m->config.norm_eps};
        struct final narrow = {model_layerwise_states(q->l, STATES_NOW), now, y, n, q->m->config.norm_eps};
        parallel_for(q->positions, norm_row, &dense);
        parallel_for(q->positions, norm_row, &narrow);
        kernel_matmul_tn(n, n, q->positions, kernel_f32(y), kernel_f32(y), 0, kernel_f32(gram));
        kernel_matmul_tn(n, n, q->positions, kernel_f32(x), kernel_f32(y), 0, kernel_f32(cross));
    }
    int rc = y ? 0 : e->code;
    mem_free(x);
    mem_free(y);
    return rc;
}

/* A tied head is unchanged; instead the gain before it is fitted to the logits: with e the embedding, min sum |e x - e
 * diag(d) y|^2, whose normal matrix is the elementwise product of e^T e and gram. */
static int fit_gain(struct narrowing *q, float *gain, float *gram, const float *cross, struct err *e) {
    size_t n = q->m->config.hidden;
    float *d = mem_array(n, sizeof *d, e), *b = d ? mem_array(n, sizeof *b, e) : NULL;
    int rc = b ? 0 : e->code;
    for (size_t i = 0; !rc && i < n; i++) {
        double sum = 0;
        for (size_t j = 0; j < n; j++) sum += (double)q->embed[i * n + j] * cross[j * n + i];
        b[i] = (float)sum;
        d[i] = 1;
        for (size_t j = 0; j < n; j++) gram[i * n + j] *= q->embed[i * n + j];
    }
    struct prune_consumer c = {.w = {.x = d, .rows = 1, .cols = n}, .gram = gram, .b = b, .damp = q->plan->o->damp};
    if (!rc) rc = prune_refit_columns(&c, &q->kept, e);
    for (size_t i = 0; !rc && i < n; i++) gain[i] *= d[i];
    mem_free(b);
    mem_free(d);
    return rc;
}

static int fit_head(struct narrowing *q, float *gram, float *cross, struct err *e) {
    struct model_param *p = model_param(q->m, ROLE_HEAD, 0);
    size_t rows = p->desc.dims[0], n = p->desc.dims[1];
    struct prune_consumer c = {
        .w = {.x = model_host_value(p), .rows = rows, .cols = n}, .gram = gram, .damp = q->plan->o->damp};
    c.b = mem_array(rows, n * sizeof *c.b, e);
    if (!c.b) return e->code;
    kernel_matmul_nn(rows, n, n, kernel_f32(c.w.x), kernel_f32(cross), 0, kernel_f32(c.b));
    int rc = prune_refit_columns(&c, &q->kept, e);
    mem_free(c.b);
    return rc;
}

static int narrow_end(struct narrowing *q, struct err *e) {
    struct model_param *norm = model_param(q->m, ROLE_NORM, 0);
    size_t n = q->m->config.hidden;
    float *was = mem_array(n, sizeof *was, e), *gram = was ? mem_array(n, n * sizeof *gram, e) : NULL;
    float *cross = gram ? mem_array(n, n * sizeof *cross, e) : NULL, *gain = model_host_value(norm);
    int rc = cross ? 0 : e->code;
    if (!rc) {
        memcpy(was, gain, n * sizeof *was);
        scale_gain(q, ROLE_NORM, 0);
        rc = final_moments(q, was, gain, gram, cross, e);
    }
    if (!rc) rc = q->m->config.tied ? fit_gain(q, gain, gram, cross, e) : fit_head(q, gram, cross, e);
    mem_free(cross);
    mem_free(gram);
    mem_free(was);
    return rc ? err_prefix(e, "the head") : 0;
}

/* ---- the model --------------------------------------------------------------------------------------------------- */

static int visit(void *ctx, struct model_layerwise *l, int64_t layer, struct err *e) {
    struct narrowing *q = ctx;
    uint32_t n = q->m->config.n_layers;
    q->l = l;
    int rc = stats_part_begin(&q->held, l, layer, e);
    if (!rc) rc = prune_check_finite(q->m, q->held.first, q->held.end, e);
    if (!rc)
        rc = layer < 0 ? narrow_embedding(q, e) : layer < n ? narrow_layer(q, (uint32_t)layer, e) : narrow_end(q, e);
    if (!rc) rc = write_part(q, e);
    stats_part_release(&q->held);
    if (!rc && layer >= 0 && layer < n && q->c->progress) q->c->progress(q->c->progress_ctx, (uint32_t)layer + 1);
    return rc;
}

static int check(const struct narrowing *q, struct err *e) {
    const struct model_config *from = q->plan->from, *to = &q->plan->to;
    bool alone = from->n_layers == to->n_layers && !q->plan->kept_tokens && !q->plan->kept_experts &&
                 !memcmp(from->layers, to->layers, from->n_layers * sizeof *to->layers);
    if (!q->plan->o->reconstruct) return err_set(e, ERR_USAGE, "--hidden with --data needs --reconstruct");
    if (!alone)
        return err_set(e, ERR_USAGE, "--hidden cannot be combined with other pruning with --data: use a separate run");
    if (from->parallel || from->experts_per_token)
        return err_set(e, ERR_USAGE, "--hidden with --data does not support layers with %s",
                       from->parallel ? "parallel attention and feed-forward parts" : "experts");
    return 0;
}

int prune_hidden(const struct prune_walk *k, const struct prune_plan *plan, struct err *e) {
    struct narrowing q = {.k = k, .c = k->c, .plan = plan, .m = model_layerwise_held(k->c->model)};
    struct model_changes how = {true, visit, &q};
    q.kept = (struct prune_kept){plan->kept_hidden, plan->to.hidden};
    for (size_t i = 0; i < k->c->n; i++) q.positions += k->c->in[i].n_positions;
    int rc = check(&q, e);
    q.stays = rc ? NULL : arena_array(&q.memory, plan->from->hidden, 1, e);
    if (!rc && !q.stays) rc = e->code;
    for (uint32_t i = 0; !rc && i < plan->to.hidden; i++) q.stays[plan->kept_hidden[i]] = 1;
    if (!rc) rc = prune_walk_begin(k, plan, e);
    if (!rc) rc = model_layerwise_change(k->c->model, k->c->scratch, k->c->in, k->c->n, &how, e);
    prune_layer_release(&q.one);
    buf_release(&q.scratch);
    mem_free(q.embed);
    arena_release(&q.memory);
    return rc;
}
