/* Prunes single weights layer by layer, each matrix given its inputs in the already pruned model. */
#include <math.h>
#include <string.h>

#include "lib/prune/second_order.h"

#define EXPERT_BYTES (256ull << 20) /* limit for the Gram matrices of experts collected at once */

struct sequential {
    const struct prune_walk *k;
    const struct prune_calibration *c;
    const struct prune_options *o;
    struct prune_report *report;
    struct model *m;
    struct prune_plan plan;
    uint64_t positions;
    struct stats_part held; /* the current layer */
    struct factors {        /* of its matrices; without data: not factored */
        struct model_param first, second;
    } factors[FACTOR_COUNT];
    bool has_ranks; /* whether any matrix is factored */
    struct buf scratch;
};

static bool needs_factor(const struct sequential *q) {
    return q->has_ranks || q->o->method == PRUNE_SPARSEGPT;
}

static bool needs_gram(const struct sequential *q) {
    return needs_factor(q) || q->o->reconstruct || q->o->method == PRUNE_ALPS;
}

/* ---- low-rank factors -------------------------------------------------------------------------------------------- */

/* Allocates a factor in the type of the original matrix; its values are freed with mem_free. */
static int new_factor(const struct sequential *q, struct model_param *p, enum model_role role,
                      const struct model_param *of, struct err *e) {
    struct model_slot s = {role, of->slot.layer, 0};
    char name[TENSOR_MAX_NAME + 1];
    uint64_t dims[2];
    unsigned rank = model_slot_shape(&q->plan.to, s, dims);
    enum dtype type = dtype_info(of->desc.dtype)->is_quantized ? DT_F32 : of->desc.dtype;
    float *x = mem_array(dims[0], dims[1] * sizeof *x, e);
    if (!x) return e->code;
    *p = (struct model_param){.slot = s, .n = dims[0] * dims[1], .value = kernel_f32(x)};
    return tensor_desc_init(&p->desc, model_slot_name(s, name), type, rank, dims, e);
}

static void release_factors(struct sequential *q) {
    for (int i = 0; i < FACTOR_COUNT; i++) {
        struct factors *f = &q->factors[i];
        if (kernel_has_data(f->first.value)) mem_free(model_host_value(&f->first));
        if (kernel_has_data(f->second.value)) mem_free(model_host_value(&f->second));
        *f = (struct factors){0};
    }
}

/* ---- one matrix -------------------------------------------------------------------------------------------------- */

/* Shared by the matrices that read from one point. */
struct shared {
    struct sequential *q;
    const struct stats_moments *m;
    size_t part;
    struct obs_factor *factor; /* NULL: not needed */
    float *norms;              /* [cols] */
    double ridge;
};

static const float *gram_of(const struct shared *h) {
    return h->m->gram ? h->m->gram + h->part * h->m->cols * h->m->cols : NULL;
}

/* Factors a matrix and replaces it by the product of the rounded factors, so that later layers see what a reader
 * will. */
static int factor(const struct shared *h, const struct model_param *p, const struct prune_matrix *w,
                  const struct prune_fit *fit, uint32_t rank, struct err *e) {
    struct sequential *q = h->q;
    const struct model_role_info *info = model_role_info(p->slot.role);
    struct factors *f = &q->factors[info->factored];
    int rc = new_factor(q, &f->first, p->slot.role, p, e);
    if (!rc) rc = new_factor(q, &f->second, info->out, p, e);
    if (rc) return rc;
    struct prune_factors both = {model_host_value(&f->first), model_host_value(&f->second)};
    rc = prune_low_rank(w, h->factor, rank, &both, e);
    if (!rc) rc = prune_round(&f->first, &q->scratch, e);
    if (!rc && q->o->reconstruct) rc = prune_fit_second(w, fit, rank, &both, e);
    if (!rc) rc = prune_round(&f->second, &q->scratch, e);
    if (!rc) kernel_matmul_nn(w->rows, w->cols, rank, f->second.value, f->first.value, 0, kernel_f32(w->x));
    return rc;
}

static int carry_out(const struct shared *h, const struct model_param *p, const struct prune_matrix *w,
                     struct prune_sparsity s, struct err *e) {
    const struct prune_options *o = h->q->o;
    struct prune_fit fit = {.gram = gram_of(h), .ridge = h->ridge, .iterations = PRUNE_REFIT_STEPS};
    bool fits = o->reconstruct || o->method == PRUNE_ALPS;
    float *b = fits ? prune_wanted(w, gram_of(h), h->m->shift, h->ridge, e) : NULL;
    if (fits && !b) return e->code;
    fit.b = b;
    int rc = 0;
    if (s.rank) {
        rc = factor(h, p, w, &fit, s.rank, e);
        mem_free(b);
        return rc;
    }
    switch (o->method) {
    case PRUNE_SVD: break; /* all shares have become ranks */
    case PRUNE_MAGNITUDE:
    case PRUNE_WANDA: rc = prune_mask(w, s, o->method, &h->q->scratch, e); break;
    case PRUNE_SPARSEGPT: rc = prune_sparsegpt(w, h->factor, s, e); break;
    case PRUNE_ALPS: rc = prune_alps(w, &fit, s, e); break;
    }
    if (!rc && o->reconstruct && o->method != PRUNE_ALPS) rc = prune_refit(w, &fit, e);
    mem_free(b);
    return rc;
}

static int prune_matrix(const struct shared *h, size_t slot, struct err *e) {
    struct sequential *q = h->q;
    struct model_param *p = &q->m->params[slot];
    struct prune_matrix w = {model_host_value(p), p->desc.dims[0], p->desc.dims[1], h->norms};
    struct prune_tensor_report t = {.name = p->desc.name, .elems = p->n, .rank = q->plan.sparse[slot].rank};
    float *was = gram_of(h) ? mem_array(p->n, sizeof *was, e) : NULL;
    int rc = gram_of(h) && !was ? e->code : 0;
    if (was) memcpy(was, w.x, p->n * sizeof *was);
    if (!rc) rc = carry_out(h, p, &w, q->plan.sparse[slot], e);
    if (!rc && !t.rank)
        rc = prune_round(p, &q->scratch, e); /* later matrices see the values that a reader of the file will */
    if (!rc && was) rc = prune_output_error(&w, gram_of(h), was, &t.output_error, e);
    t.has_error = was != NULL;
    mem_free(was);
    if (rc) return err_prefix(e, "tensor '%s'", p->desc.name);
    prune_count(q->report, &t, w.x);
    return q->o->sparse ? q->o->sparse(q->o->sparse_ctx, &t, e) : 0;
}

/* ---- the matrices that read from a point ------------------------------------------------------------------------- */

/* Whether a matrix reads from the point, belongs to the current experts if any, and is to be pruned. */
static bool reads(const struct sequential *q, size_t slot, const struct stats_moments_options *at) {
    struct model_slot s = model_slot_at(&q->m->config, slot);
    if (!prune_is_sparse(q->plan.sparse[slot]) || model_role_info(s.role)->input != at->point) return false;
    return !at->n_experts || (s.expert >= at->first_expert && s.expert - at->first_expert < at->n_experts);
}

/* Computes norms, ridge and factor from one Gram matrix, or from its diagonal alone. */
static int prepare(struct shared *h, struct err *e) {
    const struct prune_options *o = h->q->o;
    size_t n = h->m->cols;
    const float *squares = h->m->squares + h->part * n;
    double mean = 0;
    obs_factor_free(h->factor);
    h->factor = NULL;
    for (size_t i = 0; i < n; i++) {
        if (!(squares[i] >= 0) || isinf(squares[i]))
            return err_set(e, ERR_DATA, "input %zu: the sum of its squares is %g", i, (double)squares[i]);
        h->norms[i] = sqrtf(squares[i]);
        mean += (double)squares[i] / (double)n;
    }
    h->ridge = o->damp * mean;
    if (!needs_factor(h->q)) return 0;
    struct obs_options how = {.damp = o->damp, .tries = PRUNE_TRIES};
    return obs_factor_new(&h->factor, gram_of(h), n, &how, e);
}

/* Prunes the matrices at a point, given its moments. */
static int prune_readers(struct sequential *q, const struct stats_moments *m, const struct stats_moments_options *at,
                         struct err *e) {
    struct shared h = {.q = q, .m = m, .norms = mem_array(m->cols, sizeof *h.norms, e)};
    bool prepared = false;
    int rc = h.norms ? 0 : e->code;
    for (size_t i = q->held.first; !rc && i < q->held.end; i++) {
        if (!reads(q, i, at)) continue;
        size_t part = m->n_experts ? model_slot_at(&q->m->config, i).expert - m->first_expert : 0;
        if (!prepared || part != h.part) {
            h.part = part;
            rc = prepare(&h, e);
            if (rc) err_prefix(e, "layer %u, %s", at->layer, model_point_name(at->point));
        }
        prepared = true;
        if (!rc) rc = prune_matrix(&h, i, e);
    }
    obs_factor_free(h.factor);
    mem_free(h.norms);
    return rc;
}

static int prune_part(struct sequential *q, struct stats_moments_options *at, struct err *e) {
    struct stats_moments m = {0};
    bool any = false;
    for (size_t i = q->held.first; i < q->held.end; i++) any |= reads(q, i, at);
    if (!any) return 0;
    int rc = stats_moments_collect(&m, q->c->model, at, e);
    if (!rc) rc = prune_readers(q, &m, at, e);
    stats_moments_release(&m);
    return rc;
}

/* Processes as many experts at once as the limit on Gram matrices allows. */
static int prune_point(struct sequential *q, enum model_point point, uint32_t layer, struct err *e) {
    const struct model_config *c = &q->m->config;
    struct stats_moments_options at = {.point = point,
                                       .layer = layer,
                                       .gram = needs_gram(q),
                                       .shift = q->o->reconstruct,
                                       .positions = q->positions,
                                       .part = &q->held};
    bool of_experts = point == POINT_EXPERT_IN || point == POINT_EXPERT_DOWN_IN;
    if (!of_experts) return prune_part(q, &at, e);
    uint64_t cols = model_point_cols(c, point, layer), each = cols * cols * sizeof(float);
    uint64_t n = at.gram ? EXPERT_BYTES / (each ? each : 1) : MODEL_MAX_EXPERTS;
    int rc = 0;
    for (uint32_t i = 0; !rc && i < c->layers[layer].experts; i += at.n_experts) {
        uint32_t left = c->layers[layer].experts - i;
        at.first_expert = i;
        at.n_experts = n < 1 ? 1 : n < left ? (uint32_t)n : left;
        rc = prune_part(q, &at, e);
    }
    return rc;
}

/* ---- the model --------------------------------------------------------------------------------------------------- */

/* A tensor of the pruned model: a factor, or the tensor in its slot of the current model. */
static const struct model_param *param_of(const struct sequential *q, struct model_slot s) {
    const struct model_role_info *info = model_role_info(s.role);
    const struct factors *f = info->out || info->is_out ? &q->factors[info->factored] : NULL;
    if (f && kernel_has_data(f->first.value)) return info->is_out ? &f->second : &f->first;
    return model_expert_param(q->m, s.role, s.layer, s.expert);
}

static int write_part(struct sequential *q, int64_t layer, struct err *e) {
    const struct model_config *to = &q->plan.to;
    size_t first = layer < 0 ? 0 : model_slot_of_layer(to, (uint32_t)layer);
    size_t end = layer == to->n_layers ? model_slot_count(to) : model_slot_of_layer(to, (uint32_t)(layer + 1));
    int rc = 0;
    for (size_t i = first; !rc && i < end; i++)
        rc = prune_write_param(q->k, &q->plan, param_of(q, model_slot_at(to, i)), &q->scratch, e);
    return rc;
}

/* Keeps copies of the matrices that will change. */
static int keep_sparse(struct sequential *q, struct err *e) {
    int rc = 0;
    for (size_t i = q->held.first; !rc && i < q->held.end; i++)
        if (prune_is_sparse(q->plan.sparse[i])) rc = stats_part_keep(&q->held, i, e);
    return rc;
}

static int visit(void *ctx, struct model_layerwise *l, int64_t layer, struct err *e) {
    static const enum model_point points[] = {POINT_ATTN_IN,   POINT_O_IN,           POINT_FFN_IN, POINT_DOWN_IN,
                                              POINT_EXPERT_IN, POINT_EXPERT_DOWN_IN, POINT_LSTM_IN};
    struct sequential *q = ctx;
    const struct model_config *c = &q->m->config;
    bool is_layer = layer >= 0 && layer < c->n_layers;
    int rc = stats_part_begin(&q->held, l, layer, e);
    if (!rc) rc = prune_check_finite(q->m, q->held.first, q->held.end, e);
    if (!rc && is_layer && q->o->reconstruct) rc = keep_sparse(q, e);
    for (size_t i = 0; !rc && is_layer && i < COUNT_OF(points); i++) rc = prune_point(q, points[i], (uint32_t)layer, e);
    if (!rc) rc = write_part(q, layer, e);
    release_factors(q);
    stats_part_release(&q->held);
    if (!rc && is_layer && q->c->progress) q->c->progress(q->c->progress_ctx, (uint32_t)layer + 1);
    return rc;
}

/* Only matrices inside layers can be pruned here. */
static int check_options(const struct sequential *q, struct err *e) {
    for (size_t i = 0; i < q->plan.n_slots; i++) {
        struct model_slot s = model_slot_at(&q->m->config, i);
        char name[TENSOR_MAX_NAME + 1];
        if (!model_role_in_layer(s.role) && prune_is_sparse(q->plan.sparse[i]))
            return err_set(e, ERR_USAGE, "tensor '%s' is in no layer: with data, only matrices of layers are pruned",
                           model_slot_name(s, name));
    }
    return 0;
}

int prune_weights(const struct prune_walk *k, const struct prune_plan *plan, struct err *e) {
    struct sequential q = {.k = k, .c = k->c, .o = plan->o, .report = k->report, .plan = *plan};
    struct model_changes how = {.dense = plan->o->reconstruct, .visit = visit, .ctx = &q, .in_order = true};
    q.m = model_layerwise_held(k->c->model);
    for (size_t i = 0; i < plan->n_slots; i++) q.has_ranks |= plan->sparse[i].rank != 0;
    for (size_t i = 0; i < k->c->n; i++) q.positions += k->c->in[i].n_positions;
    int rc = check_options(&q, e);
    if (!rc) rc = prune_walk_begin(k, plan, e);
    if (!rc) rc = model_layerwise_change(k->c->model, k->c->scratch, k->c->in, k->c->n, &how, e);
    buf_release(&q.scratch);
    return rc;
}
