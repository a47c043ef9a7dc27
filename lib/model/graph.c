/* The forward pass, on a tape: inference and training are one code. */
#include "lib/model/model_internal.h"

#include <stdlib.h>

static const char *const point_names[POINT_COUNT] = {
    [POINT_EMBED] = "embed",     [POINT_ATTN_IN] = "attn_in", [POINT_O_IN] = "o_in",       [POINT_FFN_IN] = "ffn_in",
    [POINT_DOWN_IN] = "down_in", [POINT_LAYER] = "layer",     [POINT_HEAD_IN] = "head_in",
};

const char *model_point_name(enum model_point p) {
    return point_names[p];
}

/* One forward pass under construction. */
struct graph {
    struct model *m;
    struct grad_tape *t;
    struct model_input in;
    const uint32_t *position;       /* [n_positions] within the sequence */
    const uint32_t *starts;         /* [n_seqs + 1] */
    struct kv_cache *const *caches; /* [n_seqs], or NULL */
    size_t n_decoded;               /* sequences, the first ones, whose caches hold something */
    model_tap *tap;
    void *tap_ctx;
    struct err *e;
    int rc;
};

static struct grad_var *leaf(struct graph *g, enum model_role role, uint32_t layer) {
    struct model_param *p = model_param(g->m, role, layer);
    if (!p) return NULL;
    size_t cols = p->desc.dims[p->desc.rank - 1];
    return grad_leaf(g->t, p->value, p->grad, p->n / cols, cols);
}

static void tap(struct graph *g, enum model_point point, uint32_t layer, const struct grad_var *x) {
    if (g->tap && x && !g->rc) g->rc = g->tap(g->tap_ctx, point, layer, x->value.data, x->rows, x->cols, g->e);
}

size_t kv_width(const struct model_config *c, uint32_t layers) {
    size_t width = 0;
    for (uint32_t i = 0; i < layers; i++) width += 2 * (size_t)c->layers[i].n_kv_heads * c->head_dim;
    return width;
}

/* Appends this pass's keys and values of one layer to the caches and points keys[], values[] at the whole. */
static void cache_append(const struct graph *g, uint32_t layer, const struct grad_var *k, const struct grad_var *v,
                         const float **keys, const float **values) {
    size_t width = k->cols, before = kv_width(&g->m->config, layer);
    for (size_t i = 0; i < g->in.n_seqs; i++) {
        const struct kv_cache *cache = g->caches[i];
        size_t n = g->in.lengths[i], from = g->starts[i] * width, to = cache->length * width;
        float *at = cache->memory + cache->capacity * before;
        keys[i] = at;
        values[i] = at + cache->capacity * width;
        kernel_copy(at + to, (const float *)k->value.data + from, n * width);
        kernel_copy(at + cache->capacity * width + to, (const float *)v->value.data + from, n * width);
    }
}

/* The first n_decoded sequences bring one query to all that their cache holds; the others are whole. */
static struct grad_var *attend_cached(struct graph *g, uint32_t layer, struct grad_var *q, struct grad_var *k,
                                      struct grad_var *v, const struct kernel_attention *shape) {
    size_t n = g->in.n_seqs, decoded = g->n_decoded;
    struct grad_var *y = grad_scratch(g->t, q->rows, q->cols);
    const float **keys = grad_alloc(g->t, n * sizeof *keys), **values = grad_alloc(g->t, n * sizeof *values);
    uint32_t *length = grad_alloc(g->t, n * sizeof *length);
    uint32_t *starts = grad_alloc(g->t, (n + 1) * sizeof *starts);
    if (!y || !keys || !values || !length || !starts) return NULL;
    cache_append(g, layer, k, v, keys, values);
    for (size_t i = 0; i < n; i++) length[i] = g->caches[i]->length + g->in.lengths[i];
    if (decoded)
        kernel_attention_decode(y->value.data, q->value.data, keys, values, length, decoded, shape->n_heads,
                                shape->n_kv_heads, shape->head_dim, shape->scale);
    if (decoded == n) return y;
    struct kernel_attention rest = *shape;
    rest.n_seqs = n - decoded;
    rest.starts = starts;
    for (size_t i = 0; i <= rest.n_seqs; i++) starts[i] = g->starts[decoded + i] - (uint32_t)decoded;
    size_t first = decoded * q->cols, first_kv = decoded * k->cols;
    kernel_attention(&rest, (float *)y->value.data + first, NULL, (const float *)q->value.data + first,
                     (const float *)k->value.data + first_kv, (const float *)v->value.data + first_kv);
    return y;
}

/* Attention of this pass. */
static struct grad_var *attend(struct graph *g, uint32_t layer, struct grad_var *q, struct grad_var *k,
                               struct grad_var *v, const struct kernel_attention *shape) {
    if (!g->caches) return grad_attention(g->t, q, k, v, shape);
    return q && k && v ? attend_cached(g, layer, q, k, v, shape) : NULL;
}

/* x + o(attention(rope(q), rope(k), v)) of the normalised x */
static struct grad_var *attention_block(struct graph *g, uint32_t layer, struct grad_var *x) {
    const struct model_config *c = &g->m->config;
    const struct model_layer *l = &c->layers[layer];
    struct kernel_attention shape = {.n_heads = l->n_heads,
                                     .n_kv_heads = l->n_kv_heads,
                                     .head_dim = c->head_dim,
                                     .n_seqs = g->in.n_seqs,
                                     .starts = g->starts,
                                     .scale = 1.0f / __builtin_sqrtf((float)c->head_dim)};
    struct grad_var *h = grad_rmsnorm(g->t, x, leaf(g, ROLE_ATTN_NORM, layer), c->norm_eps);
    tap(g, POINT_ATTN_IN, layer, h);
    const struct grad_map maps[] = {{leaf(g, ROLE_Q, layer), leaf(g, ROLE_Q_BIAS, layer)},
                                    {leaf(g, ROLE_K, layer), leaf(g, ROLE_K_BIAS, layer)},
                                    {leaf(g, ROLE_V, layer), leaf(g, ROLE_V_BIAS, layer)}};
    struct grad_var *y[3];
    grad_linears(g->t, h, 3, maps, y);
    struct grad_var *q = grad_rope(g->t, y[0], l->n_heads, c->head_dim, g->position, g->m->inv_freq);
    struct grad_var *k = grad_rope(g->t, y[1], l->n_kv_heads, c->head_dim, g->position, g->m->inv_freq);
    struct grad_var *a = attend(g, layer, q, k, y[2], &shape);
    tap(g, POINT_O_IN, layer, a);
    return grad_linear(g->t, a, leaf(g, ROLE_O, layer), NULL, x);
}

/* x + down(silu(gate) * up) of the normalised x */
static struct grad_var *ffn_block(struct graph *g, uint32_t layer, struct grad_var *x) {
    struct grad_var *h = grad_rmsnorm(g->t, x, leaf(g, ROLE_FFN_NORM, layer), g->m->config.norm_eps);
    tap(g, POINT_FFN_IN, layer, h);
    const struct grad_map maps[] = {{leaf(g, ROLE_GATE, layer), NULL}, {leaf(g, ROLE_UP, layer), NULL}};
    struct grad_var *gated[2];
    grad_linears(g->t, h, 2, maps, gated);
    struct grad_var *y = grad_swiglu(g->t, gated[0], gated[1]);
    tap(g, POINT_DOWN_IN, layer, y);
    return grad_linear(g->t, y, leaf(g, ROLE_DOWN, layer), NULL, x);
}

/* Is this input one that the model can take? */
static int check_input(const struct model *m, const struct model_input *in, struct err *e) {
    size_t at = 0;
    for (size_t s = 0; s < in->n_seqs; s++) {
        uint32_t n = in->lengths[s];
        if (n == 0 || n > in->n_positions - at)
            return err_set(e, ERR_DATA, "sequence %zu has %u positions of %zu left", s, n, in->n_positions - at);
        if (n > m->config.context)
            return err_set(e, ERR_DATA,
                           "sequence %zu has %u positions, the model's context is %u (tokenize --context %u)", s, n,
                           m->config.context, m->config.context);
        for (uint32_t i = 0; i < n; i++, at++)
            if (in->tokens[at] >= m->config.vocab_size)
                return err_set(e, ERR_DATA, "token %u at position %u of sequence %zu is outside the vocabulary of %u",
                               in->tokens[at], i, s, m->config.vocab_size);
    }
    if (at != in->n_positions || at == 0)
        return err_set(e, ERR_DATA, "the sequences have %zu positions, the batch %zu", at, in->n_positions);
    return 0;
}

/* Positions and sequence starts, in the tape's memory because going backward needs them too. */
static int lay_out(struct graph *g, struct err *e) {
    const struct model_input *in = &g->in;
    uint32_t *position = grad_alloc(g->t, in->n_positions * sizeof *position);
    uint32_t *starts = grad_alloc(g->t, (in->n_seqs + 1) * sizeof *starts);
    if (!position || !starts) return grad_error(g->t, e);
    size_t at = 0;
    for (size_t s = 0; s < in->n_seqs; s++) {
        starts[s] = (uint32_t)at;
        uint32_t first = g->caches ? g->caches[s]->length : 0;
        if (first) g->n_decoded = s + 1;
        for (uint32_t i = 0; i < in->lengths[s]; i++) position[at++] = first + i;
    }
    starts[in->n_seqs] = (uint32_t)at;
    g->position = position;
    g->starts = starts;
    return 0;
}

/* A layer as a segment of the tape. When it is run again for backward, who watches has seen it. */
struct layer_run {
    struct graph *g;
    uint32_t layer;
    bool seen;
};

static struct grad_var *run_layer(void *ctx, struct grad_tape *t, struct grad_var *x) {
    struct layer_run *run = ctx;
    struct graph g = *run->g;
    g.t = t;
    if (run->seen) g.tap = NULL;
    struct grad_var *y = ffn_block(&g, run->layer, attention_block(&g, run->layer, x));
    tap(&g, POINT_LAYER, run->layer, y);
    run->seen = true;
    run->g->rc = g.rc;
    return g.rc ? NULL : y;
}

struct grad_var *model_graph_cached(struct model *m, struct grad_tape *t, const struct model_input *in,
                                    struct kv_cache *const *caches, model_tap *fn, void *ctx, struct err *e) {
    struct graph *g = grad_alloc(t, sizeof *g);
    struct layer_run *run = grad_alloc(t, m->config.n_layers * sizeof *run);
    if (grad_error(t, e) || !g || !run) return NULL;
    *g = (struct graph){.m = m, .t = t, .in = *in, .caches = caches, .tap = fn, .tap_ctx = ctx, .e = e};
    if (check_input(m, in, e) || lay_out(g, e)) return NULL;
    struct grad_var *x = grad_embed(t, leaf(g, ROLE_EMBED, 0), in->tokens, in->n_positions);
    tap(g, POINT_EMBED, 0, x);
    for (uint32_t i = 0; i < m->config.n_layers && x && !g->rc; i++) {
        run[i] = (struct layer_run){g, i, false};
        x = grad_segment(t, x, run_layer, &run[i]);
    }
    struct grad_var *h = x && !g->rc ? grad_rmsnorm(t, x, leaf(g, ROLE_NORM, 0), m->config.norm_eps) : NULL;
    tap(g, POINT_HEAD_IN, 0, h);
    if (g->rc || grad_error(t, e)) return NULL;
    for (size_t s = 0; caches && s < in->n_seqs; s++) caches[s]->length += in->lengths[s];
    return h;
}

struct grad_var *model_graph(struct model *m, struct grad_tape *t, const struct model_input *in, model_tap *fn,
                             void *ctx, struct err *e) {
    return model_graph_cached(m, t, in, NULL, fn, ctx, e);
}

struct grad_var *model_head_leaf(struct model *m, struct grad_tape *t) {
    struct model_param *p = model_param(m, m->config.tied ? ROLE_EMBED : ROLE_HEAD, 0);
    return grad_leaf(t, p->value, p->grad, p->desc.dims[0], p->desc.dims[1]);
}

int model_infer(struct model *m, struct grad_tape *scratch, const struct model_input *in, model_tap *fn_tap,
                void *tap_ctx, model_logits_fn *fn, void *ctx, struct err *e) {
    grad_reset(scratch);
    struct grad_var *h = model_graph(m, scratch, in, fn_tap, tap_ctx, e);
    if (!h) return e->code;
    if (!fn || grad_head(scratch, h, model_head_leaf(m, scratch), fn, ctx)) return 0;
    int rc = grad_error(scratch, e);
    return rc ? rc : e->code;
}
