/*
 * Layers with experts: a softmax of the router over all experts, the most probable ones for each position, and the
 * weighted sum of their outputs. Experts are added in the order of their numbers, as in transformers, so a position's
 * sum does not depend on the rest of the batch or on the number of threads.
 */
#include "lib/model/model_internal.h"

/* ---- taps ---- */

static struct model_seen seen_at(enum model_point point, uint32_t layer, uint32_t expert,
                                 const struct grad_routing *r) {
    return (struct model_seen){.point = point,
                               .layer = layer,
                               .expert = expert,
                               .rows = grad_routed(r, expert),
                               .positions = r->rows + r->starts[expert]};
}

static void tap_routing(struct graph *g, uint32_t layer, const struct grad_routing *r) {
    if (!g->tap || !r) return;
    struct grad_mark mark = grad_mark(g->t);
    struct grad_var *y = grad_scratch(g->t, r->n, r->experts, DT_F32);
    if (y) kernel_spread_weights(y->value, r->ids, r->weights->value, r->n, r->experts, r->k);
    graph_tap(g, (struct model_seen){.point = POINT_ROUTED, .layer = layer, .rows = r->n}, y);
    grad_rewind(g->t, mark);
}

/* The expert's contribution to its rows: y times the routing weights. */
static void tap_output(struct graph *g, uint32_t layer, uint32_t expert, const struct grad_routing *r,
                       const struct grad_var *y) {
    if (!g->tap || !y) return;
    struct grad_mark mark = grad_mark(g->t);
    size_t n = grad_routed(r, expert);
    struct grad_var *out = grad_zeros(g->t, n, y->cols);
    uint32_t *row = grad_alloc(g->t, n * sizeof *row);
    if (out && row) {
        for (size_t i = 0; i < n; i++) row[i] = (uint32_t)i;
        kernel_scatter_weighted(out->value, y->value, r->weights->value, r->slots + r->starts[expert], row, n, y->cols);
    }
    graph_tap(g, seen_at(POINT_EXPERT_OUT, layer, expert, r), out);
    grad_rewind(g->t, mark);
}

/* ---- an expert ---- */

/* Returns y plus the expert's contribution to its rows. */
static struct grad_var *add_expert(struct graph *g, uint32_t layer, uint32_t expert, struct grad_var *h,
                                   const struct grad_routing *r, struct grad_var *y) {
    const struct model_config *c = &g->m->config;
    const struct model_slot gate = {ROLE_EXPERT_GATE, layer, expert}, up = {ROLE_EXPERT_UP, layer, expert},
                            down = {ROLE_EXPERT_DOWN, layer, expert};
    struct grad_var *x = grad_take_rows(g->t, h, r, expert), *a;
    graph_tap(g, seen_at(POINT_EXPERT_IN, layer, expert, r), x);
    if (c->ffn_kind == FFN_GATED)
        a = graph_gated(g, gate, up, x);
    else
        a = grad_activate(g->t, c->act, graph_linear(g, up, x, NULL, NULL));
    graph_tap(g, seen_at(POINT_EXPERT_DOWN_IN, layer, expert, r), a);
    a = graph_linear(g, down, a, NULL, NULL);
    tap_output(g, layer, expert, r, a);
    return grad_mix_rows(g->t, y, a, r, expert);
}

struct grad_var *graph_experts(struct graph *g, uint32_t layer, struct grad_var *h) {
    const struct model_config *c = &g->m->config;
    if (!h) return NULL;
    struct grad_var *router = graph_leaf(g, (struct model_slot){.role = ROLE_ROUTER, .layer = layer});
    struct grad_var *y = grad_zeros(g->t, h->rows, c->hidden);
    struct grad_routing *r =
        grad_route(g->t, grad_scores(g->t, h, router), c->experts_per_token, c->norm_expert_weights);
    tap_routing(g, layer, r);
    for (uint32_t i = 0; r && y && i < c->layers[layer].experts; i++) {
        if (grad_routed(r, i) == 0) continue;
        struct grad_mark mark = grad_mark(g->t);
        y = add_expert(g, layer, i, h, r, y);
        if (!grad_records(g->t)) grad_rewind(g->t, mark); /* y was allocated before the mark */
    }
    return r ? y : NULL;
}
