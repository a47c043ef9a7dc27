/* What the parts of the forward pass share: parameters as leaves of the tape, and the points where values can be tapped. */
#include "lib/model/model_internal.h"

static const char *const point_names[POINT_ALL] = {
    [POINT_EMBED] = "embed",
    [POINT_ATTN_IN] = "attn_in",
    [POINT_O_IN] = "o_in",
    [POINT_FFN_IN] = "ffn_in",
    [POINT_DOWN_IN] = "down_in",
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

struct grad_var *graph_leaf(struct graph *g, struct model_slot s) {
    struct model_param *p = model_expert_param(g->m, s.role, s.layer, s.expert);
    if (!p) return NULL;
    if (kernel_has_matrix(&p->matrix)) return grad_leaf_packed(g->t, &p->matrix);
    size_t cols = p->desc.dims[p->desc.rank - 1];
    return grad_parameter(g->t, p->value, p->grad, &p->grad_begun, p->n / cols, cols);
}

void graph_tap(struct graph *g, struct model_seen seen, const struct grad_var *x) {
    if (!g->tap || !x || g->rc) return;
    struct grad_mark mark = grad_mark(g->t);
    seen.x = grad_host_value(g->t, x);
    seen.cols = x->cols;
    if (seen.x) g->rc = g->tap(g->tap_ctx, &seen, g->e);
    grad_rewind(g->t, mark);
}
