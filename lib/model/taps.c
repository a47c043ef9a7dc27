/* Shared parts of the forward pass: parameters as leaves of the tape, adapters, and the points where values can be
 * observed. */
#include "lib/model/model_internal.h"

static const char *const point_names[POINT_ALL] = {
    [POINT_EMBED] = "embed",
    [POINT_ATTN_IN] = "attn_in",
    [POINT_O_IN] = "o_in",
    [POINT_FFN_IN] = "ffn_in",
    [POINT_DOWN_IN] = "down_in",
    [POINT_LSTM_IN] = "lstm_in",
    [POINT_LAYER] = "layer",
    [POINT_HEAD_IN] = "head_in",
    [POINT_ROUTED] = "routed",
    [POINT_EXPERT_IN] = "in",
    [POINT_EXPERT_DOWN_IN] = "down_in",
    [POINT_EXPERT_OUT] = "out",
    [POINT_Q] = "q",
    [POINT_K] = "k",
    [POINT_V] = "v",
};

const char *model_point_name(enum model_point p) {
    return point_names[p];
}

struct grad_var *graph_parameter(const struct model *m, struct grad_tape *t, struct model_param *p, size_t rows) {
    bool quantized = p->grid && !m->masters;
    return grad_parameter(t, quantized ? p->grid->forward : p->value, p->grad, &p->grad_begun, rows,
                          p->desc.dims[p->desc.rank - 1]);
}

struct grad_var *graph_leaf(struct graph *g, struct model_slot s) {
    struct model_param *p = model_expert_param(g->m, s.role, s.layer, s.expert);
    if (!p) return NULL;
    if (kernel_has_matrix(&p->matrix)) return grad_leaf_packed(g->t, &p->matrix);
    size_t cols = p->desc.dims[p->desc.rank - 1];
    return graph_parameter(g->m, g->t, p, p->n / cols);
}

struct grad_var *graph_adapt(struct graph *g, struct model_slot s, struct grad_var *x, struct grad_var *y) {
    const struct model_param *p = model_expert_param(g->m, s.role, s.layer, s.expert);
    struct model_adapter *d = p ? p->adapter : NULL;
    if (!d || !x || !y) return y;
    struct grad_var *a = grad_parameter(g->t, d->a, d->a_grad, &d->a_begun, d->rank, x->cols);
    struct grad_var *b = grad_parameter(g->t, d->b, d->b_grad, &d->b_begun, y->cols, d->rank);
    struct grad_var *low = grad_scale(g->t, grad_linear(g->t, x, a, NULL, NULL), d->scale);
    if (y->value.dtype == DT_F32) return grad_linear(g->t, low, b, NULL, y);
    return grad_add(g->t, y, grad_linear(g->t, low, b, NULL, NULL));
}

/* Sets *out to the slot of the second factor; false: the matrix is stored whole. */
static bool second_factor(const struct graph *g, struct model_slot s, struct model_slot *out) {
    *out = (struct model_slot){model_role_info(s.role)->out, s.layer, 0};
    return model_rank(&g->m->config, s.role, s.layer) != 0;
}

struct grad_var *graph_linear(struct graph *g, struct model_slot s, struct grad_var *x, struct grad_var *bias,
                              struct grad_var *added) {
    struct model_slot out;
    struct grad_var *y = x;
    if (!second_factor(g, s, &out)) return graph_adapt(g, s, x, grad_linear(g->t, x, graph_leaf(g, s), bias, added));
    y = graph_adapt(g, s, x, grad_linear(g->t, x, graph_leaf(g, s), NULL, NULL));
    return graph_adapt(g, out, y, grad_linear(g->t, y, graph_leaf(g, out), bias, added));
}

void graph_linears(struct graph *g, size_t n, const struct model_slot *s, struct grad_var *x,
                   struct grad_var *const *biases, struct grad_var **y) {
    enum { MOST = 3 };
    struct grad_map maps[MOST] = {{0}};
    struct model_slot out;
    bool whole = true;
    for (size_t i = 0; i < n; i++) whole &= !second_factor(g, s[i], &out);
    if (!whole) {
        for (size_t i = 0; i < n; i++) y[i] = graph_linear(g, s[i], x, biases ? biases[i] : NULL, NULL);
        return;
    }
    for (size_t i = 0; i < n; i++) maps[i] = (struct grad_map){graph_leaf(g, s[i]), biases ? biases[i] : NULL};
    grad_linears(g->t, x, n, maps, y);
    for (size_t i = 0; i < n; i++) y[i] = graph_adapt(g, s[i], x, y[i]);
}

static bool is_adapted(const struct graph *g, struct model_slot s) {
    return model_expert_param(g->m, s.role, s.layer, s.expert)->adapter != NULL;
}

struct grad_var *graph_gated(struct graph *g, struct model_slot gate, struct model_slot up, struct grad_var *h) {
    const struct model_slot slots[] = {gate, up};
    struct model_slot out;
    enum kernel_act act = g->m->config.act;
    struct grad_var *y[2];
    bool whole = !second_factor(g, gate, &out) && !second_factor(g, up, &out);
    if (whole && !is_adapted(g, gate) && !is_adapted(g, up))
        return grad_gated(g->t, act, h, graph_leaf(g, gate), graph_leaf(g, up));
    graph_linears(g, 2, slots, h, NULL, y);
    return grad_glu(g->t, act, y[0], y[1]);
}

void graph_tap(struct graph *g, struct model_seen seen, const struct grad_var *x) {
    if (!g->tap || !x || g->rc) return;
    struct grad_mark mark = grad_mark(g->t);
    seen.x = x;
    seen.cols = x->cols;
    seen.tape = g->t;
    g->rc = g->tap(g->tap_ctx, &seen, g->e);
    grad_rewind(g->t, mark);
}

int model_seen_f32(const struct model_seen *seen, const float **x, struct err *e) {
    *x = grad_host_value(seen->tape, seen->x);
    return *x ? 0 : grad_error(seen->tape, e);
}

/* Sets the wanted variable of a point, or fills its copy if prepare_copies allocated one. */
void graph_want(struct graph *g, enum model_point point, uint32_t layer, struct grad_var *x) {
    for (size_t i = 0; x && i < g->n_wants; i++) {
        struct model_want *w = &g->wants[i];
        if (w->point != point || w->layer != layer) continue;
        if (w->var)
            kernel_convert(w->var->value, x->value, x->rows * x->cols);
        else
            w->var = x;
    }
}

struct grad_var *graph_expose(struct graph *g, enum model_point point, uint32_t layer, struct grad_var *x) {
    if (x) graph_tap(g, (struct model_seen){.point = point, .layer = layer, .rows = x->rows}, x);
    graph_want(g, point, layer, x);
    if (!g->last || point != *g->last) return x;
    g->ended |= x != NULL;
    if (x && g->part && g->part->end) g->part->end(g->part->ctx, x, g->residual);
    return NULL;
}
