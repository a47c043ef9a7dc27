/* Prunes layers, heads and channels layer by layer, refitting the matrices that read a pruned axis. */
#include <string.h>

#include "lib/prune/second_order.h"

struct structure {
    const struct prune_walk *k;
    const struct prune_calibration *c;
    const struct prune_options *o;
    const struct prune_plan *plan;
    struct model *m;
    uint64_t positions;
    bool sums;    /* pre-norm: o and down add directly to the residual stream, so they can be fitted to its error */
    bool changed; /* whether anything was pruned so far */
    struct stats_part held; /* the current layer */
    struct prune_layer layer, expert;
    struct arena memory; /* for the choices in one layer */
    struct prune_heads heads;
    struct prune_kept channels, *of_expert; /* [experts] */
    struct buf scratch;
};

/* ---- tensors in memory ------------------------------------------------------------------------------------------- */

/* Copies a tensor of the model into l. */
static int take(struct structure *q, struct prune_layer *l, size_t slot, struct err *e) {
    const struct model_param *p = &q->m->params[slot];
    struct prune_tensor *t = &l->tensor[p->slot.role];
    t->data.len = t->blocks.len = t->norms.len = 0;
    if (buf_append(&t->data, model_host_value(p), p->n * sizeof(float), e))
        return err_prefix(e, "tensor '%s'", p->desc.name);
    t->desc = p->desc;
    t->here = true;
    return 0;
}

static bool of_expert(const struct structure *q, size_t slot) {
    return model_role_info(q->m->params[slot].slot.role)->each != AXIS_ONE;
}

static int take_layer(struct structure *q, struct err *e) {
    int rc = 0;
    for (size_t i = q->held.first; !rc && i < q->held.end; i++)
        if (!of_expert(q, i)) rc = take(q, &q->layer, i, e);
    return rc;
}

static int write_tensor(struct structure *q, struct prune_layer *l, struct model_slot now, struct err *e) {
    struct prune_tensor *t = &l->tensor[now.role];
    struct model_param p = {.slot = now, .desc = t->desc, .value = kernel_f32((float *)t->data.data)};
    model_slot_name(now, p.desc.name);
    p.n = tensor_elems(&p.desc);
    t->here = false;
    int rc = model_slot_check(&q->plan->to, now, &p.desc, e);
    return rc ? rc : model_save_param(&p, q->k->out, 0, &q->scratch, e);
}

/* Writes an expert, starting at the slot of its first tensor. */
static int write_expert(struct structure *q, size_t slot, struct err *e) {
    size_t n = model_expert_roles(&q->m->config);
    const struct prune_kept *kept = &q->of_expert[q->m->params[slot].slot.expert];
    int rc = 0;
    for (size_t i = slot; !rc && i < slot + n; i++) rc = take(q, &q->expert, i, e);
    if (!rc && kept->at) rc = prune_keep_along(&q->expert, AXIS_EXPERT_FFN, kept->at, kept->n, e);
    for (size_t i = slot; !rc && i < slot + n; i++) {
        struct model_slot now;
        if (prune_new_slot(q->plan, q->m->params[i].slot, &now)) rc = write_tensor(q, &q->expert, now, e);
    }
    return rc;
}

/* Writes the layer in its current state, without the removed parts. */
static int write_layer(struct structure *q, struct err *e) {
    int rc = take_layer(q, e);
    if (!rc) rc = prune_keep_heads(&q->layer, q->plan, &q->heads, e);
    if (!rc && q->channels.at) rc = prune_keep_along(&q->layer, AXIS_FFN, q->channels.at, q->channels.n, e);
    for (size_t i = q->held.first; !rc && i < q->held.end;) {
        struct model_slot now;
        bool expert = of_expert(q, i);
        if (expert)
            rc = write_expert(q, i, e);
        else if (prune_new_slot(q->plan, q->m->params[i].slot, &now))
            rc = write_tensor(q, &q->layer, now, e);
        i += expert ? model_expert_roles(&q->m->config) : 1;
    }
    return rc;
}

/* ---- the original weights ---------------------------------------------------------------------------------------- */

/* Keeps the original attn.o if down is fitted to its original inputs. */
static int keep_dense(struct structure *q, uint32_t layer, struct err *e) {
    if (q->sums || !model_param(q->m, ROLE_O, layer)) return 0;
    return stats_part_keep(&q->held, (size_t)model_slot_index(&q->m->config, (struct model_slot){ROLE_O, layer, 0}), e);
}

/* ---- fitting ----------------------------------------------------------------------------------------------------- */

/* One matrix that reads a pruned axis. */
struct consumer {
    struct structure *q;
    struct model_param *p, *bias; /* NULL: none */
    const struct stats_moments *m;
    size_t part;
    struct prune_consumer fit; /* b is allocated here; so is gram if there is a bias */
};

static void release_fit(struct consumer *k) {
    mem_free(k->fit.b);
    if (k->bias) mem_free(k->fit.gram);
    mem_free(k->fit.wanted);
}

/* b = w (gram + shift) + residual / scale; wanted = w (sum + shift) + residual / scale. */
static void add_wanted(struct consumer *k) {
    const struct prune_matrix *w = &k->fit.w;
    const struct stats_moments *m = k->m;
    size_t n = w->cols;
    float scale = 1 / model_factor(k->q->m->config.residual_scale);
    const float *sums[] = {k->fit.sum, m->sum_shift};
    kernel_matmul_nn(w->rows, n, n, kernel_f32(w->x), kernel_f32(k->fit.gram), 0, kernel_f32(k->fit.b));
    if (m->shift) kernel_matmul_nn(w->rows, n, n, kernel_f32(w->x), kernel_f32(m->shift), 1, kernel_f32(k->fit.b));
    if (m->residual) kernel_axpy(kernel_f32(k->fit.b), scale, kernel_f32(m->residual), w->rows * n);
    for (size_t r = 0; r < w->rows; r++) {
        double t = m->residual ? scale * m->sum_residual[r] : 0;
        for (size_t s = 0; s < COUNT_OF(sums); s++)
            for (size_t i = 0; sums[s] && i < n; i++) t += (double)w->x[r * n + i] * sums[s][i];
        k->fit.wanted[r] = (float)t;
    }
}

#define ROUNDING 1e-5 /* of the sum of squares: the variance that rounding in f32 leaves to an input that is constant */

/* Centres inputs and outputs, since the bias absorbs the means. A constant input becomes 0. */
static int center(struct consumer *k, struct err *e) {
    size_t n = k->fit.w.cols;
    const float *sum = k->fit.sum;
    float *gram = k->fit.gram;
    unsigned char *varies = mem_array(n, 1, e);
    if (!varies) return e->code;
    for (size_t i = 0; i < n; i++)
        varies[i] = gram[i * n + i] - (double)sum[i] * sum[i] / k->fit.n > ROUNDING * gram[i * n + i];
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++)
            gram[i * n + j] =
                varies[i] && varies[j] ? (float)(gram[i * n + j] - (double)sum[i] * sum[j] / k->fit.n) : 0;
    for (size_t r = 0; r < k->fit.w.rows; r++)
        for (size_t j = 0; j < n; j++) {
            float *b = &k->fit.b[r * n + j];
            *b = varies[j] ? (float)(*b - (double)k->fit.wanted[r] * sum[j] / k->fit.n) : 0;
        }
    mem_free(varies);
    return 0;
}

static int begin_fit(struct consumer *k, struct err *e) {
    size_t rows = k->p->desc.dims[0], n = k->p->desc.dims[1];
    float *gram = k->m->gram + k->part * n * n;
    k->fit = (struct prune_consumer){.w = {.x = model_host_value(k->p), .rows = rows, .cols = n},
                                     .bias = k->bias ? model_host_value(k->bias) : NULL,
                                     .gram = gram,
                                     .sum = k->m->sum + k->part * n,
                                     .n = (double)k->m->rows[k->part],
                                     .damp = k->q->o->damp};
    if (k->bias) k->fit.gram = mem_array(n, n * sizeof(float), e);
    k->fit.b = k->fit.gram ? mem_array(rows, n * sizeof(float), e) : NULL;
    k->fit.wanted = k->fit.b ? mem_array(rows, sizeof(float), e) : NULL;
    if (!k->fit.wanted) return e->code;
    if (k->bias) memcpy(k->fit.gram, gram, n * n * sizeof *gram);
    add_wanted(k);
    return k->bias && k->fit.n > 0 ? center(k, e) : 0;
}

static int report_fit(struct consumer *k, const float *was, const struct prune_kept *kept, struct err *e) {
    char name[TENSOR_MAX_NAME + 1];
    struct model_slot now = k->p->slot;
    (void)prune_new_slot(k->q->plan, k->p->slot, &now); /* its layer stays */
    struct prune_tensor_report t = {.name = model_slot_name(now, name), .has_error = true};
    t.elems = k->fit.w.rows * (kept->at ? kept->n : k->fit.w.cols);
    const float *gram = k->m->gram + k->part * k->fit.w.cols * k->fit.w.cols;
    int rc = prune_output_error(&k->fit.w, gram, was, &t.output_error, e);
    return rc || !k->q->o->sparse ? rc : k->q->o->sparse(k->q->o->sparse_ctx, &t, e);
}

static int fit(struct consumer *k, const struct prune_kept *kept, struct err *e) {
    float *was = mem_array(k->p->n, sizeof *was, e);
    if (!was) return e->code;
    memcpy(was, k->fit.w.x, k->p->n * sizeof *was);
    int rc = k->fit.n > 0 ? prune_refit_columns(&k->fit, kept, e) : 0;
    if (!rc) rc = prune_round(k->p, &k->q->scratch, e);
    if (!rc && k->bias) rc = prune_round(k->bias, &k->q->scratch, e);
    if (!rc) rc = report_fit(k, was, kept, e);
    mem_free(was);
    return rc ? err_prefix(e, "tensor '%s'", k->p->desc.name) : 0;
}

/* ---- the parts of a layer ---------------------------------------------------------------------------------------- */

/* Chooses heads by the cost of removing their columns of o with the others compensating. */
static int heads_by_cost(struct consumer *k, uint32_t layer, struct err *e) {
    struct structure *q = k->q;
    const struct model_layer *from = &q->plan->from->layers[layer];
    struct prune_head_scores s = {.query = arena_array(&q->memory, from->n_heads, sizeof *s.query, e)};
    s.key = s.query ? arena_array(&q->memory, from->n_kv_heads, sizeof *s.key, e) : NULL;
    if (!s.key || prune_keeps_heads(q->plan, layer)) return s.key ? 0 : e->code;
    int rc = prune_consumer_units(&k->fit, q->plan->from->head_dim, 0, NULL, s.query, e);
    return rc ? rc : prune_take_heads(q->plan, layer, &s, &q->heads, &q->memory, e);
}

static int channels_by_cost(struct consumer *k, const struct prune_part *part, struct prune_kept *kept, struct err *e) {
    *kept = (struct prune_kept){.n = part->keep};
    if (part->keep == k->fit.w.cols) return 0;
    kept->at = arena_array(&k->q->memory, part->keep, sizeof *kept->at, e);
    return kept->at ? prune_consumer_units(&k->fit, 1, part->keep, kept->at, NULL, e) : e->code;
}

static int collect(struct structure *q, struct stats_moments *m, struct model_slot of, struct err *e) {
    struct stats_moments_options at = {.point = model_role_info(of.role)->input,
                                       .layer = of.layer,
                                       .gram = true,
                                       .residual = q->sums,
                                       .positions = q->positions,
                                       .part = &q->held};
    at.shift = of.role == ROLE_O || (of.role == ROLE_DOWN && !q->sums);
    if (of.role == ROLE_EXPERT_DOWN) at.first_expert = of.expert, at.n_experts = 1, at.residual = false;
    return stats_moments_collect(m, q->c->model, &at, e);
}

/* Chooses which inputs of a matrix stay, and refits it. */
static int consume(struct structure *q, struct model_slot of, enum model_role bias, const struct prune_part *part,
                   struct prune_kept *kept, struct err *e) {
    struct stats_moments m = {0};
    struct consumer k = {.q = q, .m = &m, .p = &q->m->params[model_slot_index(&q->m->config, of)]};
    if (bias != ROLE_COUNT) k.bias = model_param(q->m, bias, of.layer);
    bool by_cost = q->o->score == PRUNE_BY_COST;
    struct prune_layer *l = of.role == ROLE_EXPERT_DOWN ? &q->expert : &q->layer;
    int rc = collect(q, &m, of, e);
    if (!rc) rc = begin_fit(&k, e);
    if (!rc && !part)
        rc = by_cost ? heads_by_cost(&k, of.layer, e)
                     : prune_choose_heads(l, q->plan, of.layer, &q->heads, &q->memory, e);
    if (!rc && part)
        rc = by_cost ? channels_by_cost(&k, part, kept, e)
                     : prune_choose_channels(l, q->plan, part, kept, &q->memory, e);
    if (!rc && kept->at) q->changed = true;
    if (!rc && q->changed) rc = fit(&k, kept, e);
    release_fit(&k);
    stats_moments_release(&m);
    return rc;
}

static int prune_experts(struct structure *q, uint32_t layer, struct err *e) {
    uint32_t n = q->m->config.layers[layer].experts;
    int rc = 0;
    q->of_expert = arena_array(&q->memory, n ? n : 1, sizeof *q->of_expert, e);
    if (!q->of_expert) return e->code;
    for (uint32_t i = 0; !rc && i < n; i++) {
        struct model_slot down = {ROLE_EXPERT_DOWN, layer, i};
        struct prune_part part = prune_expert_part(q->plan, down);
        size_t at = (size_t)model_slot_index(&q->m->config, down), roles = model_expert_roles(&q->m->config);
        if (part.keep == q->m->config.layers[layer].expert_ffn) continue;
        for (size_t k = at + 1 - roles; !rc && k <= at; k++) rc = take(q, &q->expert, k, e);
        if (!rc) rc = consume(q, down, ROLE_COUNT, &part, &q->of_expert[i], e);
    }
    return rc;
}

static int prune_parts(struct structure *q, uint32_t layer, struct err *e) {
    const struct model_layer *from = &q->m->config.layers[layer];
    struct model_slot o = {.role = ROLE_O, .layer = layer};
    int rc = from->n_heads ? consume(q, o, ROLE_O_BIAS, NULL, &q->heads.query, e) : 0;
    struct prune_part dense = prune_dense_part(q->plan, layer);
    if (!rc && from->ffn) rc = consume(q, dense.slot, ROLE_DOWN_BIAS, &dense, &q->channels, e);
    return rc ? rc : prune_experts(q, layer, e);
}

/* ---- the model --------------------------------------------------------------------------------------------------- */

static int prune_one(struct structure *q, uint32_t layer, struct err *e) {
    q->heads = (struct prune_heads){0};
    q->channels = (struct prune_kept){0};
    int rc = keep_dense(q, layer, e);
    if (!rc) rc = take_layer(q, e);
    if (!rc) rc = prune_parts(q, layer, e);
    if (!rc) rc = write_layer(q, e);
    arena_release(&q->memory);
    return rc ? err_prefix(e, "layer %u", layer) : 0;
}

static int visit(void *ctx, struct model_layerwise *l, int64_t layer, struct err *e) {
    struct structure *q = ctx;
    const struct model_config *c = &q->m->config;
    bool is_layer = layer >= 0 && layer < c->n_layers;
    int rc = stats_part_begin(&q->held, l, layer, e);
    if (!rc) rc = prune_check_finite(q->m, q->held.first, q->held.end, e);
    if (rc) {
        stats_part_release(&q->held);
        return rc;
    }
    if (is_layer && q->plan->new_layer[layer] == LAYER_GONE) {
        q->changed = true;
        model_layerwise_skip(l);
    } else if (is_layer) {
        rc = prune_one(q, (uint32_t)layer, e);
    } else {
        for (size_t i = q->held.first; !rc && i < q->held.end; i++)
            rc = prune_write_param(q->k, q->plan, &q->m->params[i], &q->scratch, e);
    }
    stats_part_release(&q->held);
    if (!rc && is_layer && q->c->progress) q->c->progress(q->c->progress_ctx, (uint32_t)layer + 1);
    return rc;
}

static int check_options(const struct structure *q, struct err *e) {
    if (!q->o->reconstruct)
        return err_set(e, ERR_USAGE, "pruning layers, heads or channels with --data needs --reconstruct");
    if (q->plan->kept_experts)
        return err_set(e, ERR_USAGE, "experts cannot be pruned with --data: prune them in a separate run");
    return 0;
}

int prune_structure(const struct prune_walk *k, const struct prune_plan *plan, struct err *e) {
    struct model *m = model_layerwise_held(k->c->model);
    struct structure q = {.k = k, .c = k->c, .o = plan->o, .plan = plan, .m = m};
    struct model_changes how = {.dense = true, .visit = visit, .ctx = &q, .in_order = true};
    q.sums = m->config.norm_place == NORM_PRE;
    for (size_t i = 0; i < k->c->n; i++) q.positions += k->c->in[i].n_positions;
    int rc = check_options(&q, e);
    if (!rc) rc = prune_walk_begin(k, plan, e);
    if (!rc) rc = model_layerwise_change(k->c->model, k->c->scratch, k->c->in, k->c->n, &how, e);
    prune_layer_release(&q.layer);
    prune_layer_release(&q.expert);
    buf_release(&q.scratch);
    return rc;
}
