/* The outputs of a layer that can be scaled, and the tensors that read them. */
#include "lib/fold/fold_internal.h"

/* Producers of the channels observed at each point, as the forward pass determines them (lib/model/graph.c). */
static const struct maker {
    enum model_role role, bias;
    enum model_point point;
    bool is_norm;
    bool through_act; /* read after an activation or a product with one */
} makers[] = {
    {ROLE_ATTN_NORM, ROLE_ATTN_NORM_BIAS, POINT_ATTN_IN, true, false},
    {ROLE_V, ROLE_V_BIAS, POINT_O_IN, false, false}, /* attention weights do not depend on values */
    {ROLE_FFN_NORM, ROLE_FFN_NORM_BIAS, POINT_FFN_IN, true, false},
    {ROLE_UP, ROLE_UP_BIAS, POINT_DOWN_IN, false, true},
    {ROLE_EXPERT_UP, 0, POINT_EXPERT_DOWN_IN, false, true}, /* for each expert, after all others */
};
#define OF_LAYER (COUNT_OF(makers) - 1)

/* Does scaling commute with the activation? It does in act(gate) * up and in max(0, up). */
static bool passes(const struct model_config *c) {
    return c->ffn_kind == FFN_GATED || c->act == ACT_RELU;
}

static const char *obstacle(const struct model_config *c, const struct maker *k) {
    if (k->role == ROLE_FFN_NORM && c->shared_norm) return "it reads what attn_in reads, with which it is folded";
    if (k->is_norm && !model_has_role(c, k->role))
        return "what is read is the residual stream itself, or a norm's output that is added to it";
    if (k->through_act && !passes(c)) return "a factor does not pass the activation";
    return NULL;
}

bool fold_pair_at(const struct model_config *c, uint32_t layer, size_t i, struct fold_pair *out) {
    const struct model_layer *l = &c->layers[layer];
    bool of_expert = i >= OF_LAYER;
    const struct maker *k = &makers[of_expert ? OF_LAYER : i];
    if (c->layer_kind != LAYER_TRANSFORMER || (of_expert && i - OF_LAYER >= l->experts)) return false;
    *out = (struct fold_pair){.from = {k->role, layer, of_expert ? (uint32_t)(i - OF_LAYER) : 0},
                              .bias = k->bias,
                              .point = k->point,
                              .share = 1,
                              .obstacle = obstacle(c, k)};
    out->n = model_axis_size(c, model_role_info(k->role)->rows, layer);
    out->run = out->n;
    if (k->role == ROLE_V) out->run = c->head_dim, out->share = l->n_heads / l->n_kv_heads;
    return true;
}

/* Returns the point at which the role's input is observed for all positions together. */
static enum model_point input_of(const struct model_config *c, enum model_role role) {
    enum model_point p = model_role_info(role)->input;
    if (p == POINT_EXPERT_IN) p = POINT_FFN_IN;
    return p == POINT_FFN_IN && c->shared_norm ? POINT_ATTN_IN : p;
}

bool fold_pair_feeds(const struct model_config *c, const struct fold_pair *p, struct model_slot s) {
    if (!model_role_in_layer(s.role) || s.layer != p->from.layer || input_of(c, s.role) != p->point) return false;
    return p->point != POINT_EXPERT_DOWN_IN || s.expert == p->from.expert;
}

size_t fold_pair_factor(const struct fold_pair *p, size_t column) {
    return column / (p->run * p->share) * p->run + column % p->run;
}

/* ---- weights ----------------------------------------------------------------------------------------------------- */

int fold_take(const struct model_param *p, struct buf *out, float **x, struct err *e) {
    out->len = 0;
    if (buf_reserve(out, p->n * sizeof(float), e)) return err_prefix(e, "tensor '%s'", p->desc.name);
    *x = (float *)(void *)out->data;
    kernel_download(*x, p->value, p->n);
    return 0;
}

void fold_put(struct model *m, struct model_param *p, const float *x, bool *changed) {
    kernel_upload(p->value, x, p->n);
    changed[p - m->params] = true;
}

/* Divides rows of a matrix, or elements of a vector, by their factors. A factor of 0 is a norm's gain: its readers'
 * weights become 0, so the gain can be 1. */
static void divide(float *x, const struct model_param *p, const float *scale) {
    size_t rows = p->desc.dims[0], cols = p->n / rows;
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < cols; i++) x[r * cols + i] = scale[r] == 0 ? 1 : x[r * cols + i] / scale[r];
}

static void multiply(float *x, const struct model_param *p, const struct fold_pair *pair, const float *scale) {
    size_t cols = p->desc.rank == 1 ? p->n : tensor_row_elems(&p->desc);
    for (size_t i = 0; i < p->n; i++) x[i] *= scale[fold_pair_factor(pair, i % cols)];
}

static int scale_one(struct model *m, struct model_param *p, const struct fold_pair *pair, const float *scale,
                     bool reader, bool *changed, struct buf *x, struct err *e) {
    float *y;
    if (!p) return 0;
    if (fold_take(p, x, &y, e)) return e->code;
    if (reader)
        multiply(y, p, pair, scale);
    else
        divide(y, p, scale);
    fold_put(m, p, y, changed);
    return 0;
}

int fold_pair_scale(struct model *m, const struct fold_pair *p, const float *scale, bool *changed, struct err *e) {
    const struct model_config *c = &m->config;
    struct buf x = {0};
    size_t end = model_slot_of_layer(c, p->from.layer + 1);
    int rc = scale_one(m, model_expert_param(m, p->from.role, p->from.layer, p->from.expert), p, scale, false, changed,
                       &x, e);
    if (!rc && p->bias) rc = scale_one(m, model_param(m, p->bias, p->from.layer), p, scale, false, changed, &x, e);
    for (size_t i = model_slot_of_layer(c, p->from.layer); !rc && i < end; i++)
        if (fold_pair_feeds(c, p, m->params[i].slot)) rc = scale_one(m, &m->params[i], p, scale, true, changed, &x, e);
    buf_release(&x);
    return rc;
}
