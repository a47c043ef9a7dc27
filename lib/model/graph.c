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

static struct grad_var *leaf(struct graph *g, enum model_role role, uint32_t layer) {
    struct model_param *p = model_param(g->m, role, layer);
    if (!p) return NULL;
    if (p->panels.data) return grad_leaf_packed(g->t, &p->panels);
    size_t cols = p->desc.dims[p->desc.rank - 1];
    return grad_parameter(g->t, p->value, p->grad, &p->grad_begun, p->n / cols, cols);
}

static void tap(struct graph *g, enum model_point point, uint32_t layer, const struct grad_var *x) {
    if (!g->tap || !x || g->rc) return;
    size_t mark = grad_mark(g->t);
    const float *value = grad_value(g->t, x);
    if (value) g->rc = g->tap(g->tap_ctx, point, layer, value, x->rows, x->cols, g->e);
    grad_rewind(g->t, mark);
}

/* Attention of this pass. */
static struct grad_var *attend(struct graph *g, uint32_t layer, struct grad_var *q, struct grad_var *k,
                               struct grad_var *v, const struct kernel_attention *shape) {
    if (!g->caches) return grad_attention(g->t, q, k, v, shape);
    return q && k && v ? graph_attend_cached(g, layer, q, k, v, shape) : NULL;
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
    struct grad_var *h = grad_rmsnorm(g->t, x, leaf(g, ROLE_ATTN_NORM, layer), c->norm_eps, grad_precision(g->t));
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
    struct grad_var *h =
        grad_rmsnorm(g->t, x, leaf(g, ROLE_FFN_NORM, layer), g->m->config.norm_eps, grad_precision(g->t));
    tap(g, POINT_FFN_IN, layer, h);
    struct grad_var *y = grad_gated(g->t, h, leaf(g, ROLE_GATE, layer), leaf(g, ROLE_UP, layer));
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
            if (in->tokens[at] >= model_n_tokens(m))
                return err_set(e, ERR_DATA, "token %u at position %u of sequence %zu is outside the vocabulary of %u",
                               in->tokens[at], i, s, model_n_tokens(m));
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

struct graph *graph_begin(struct model *m, struct grad_tape *t, const struct model_input *in,
                          struct kv_cache *const *caches, model_tap *fn, void *ctx, struct err *e) {
    struct graph *g = grad_alloc(t, sizeof *g);
    if (!g) return grad_error(t, e) ? NULL : g;
    *g = (struct graph){.m = m, .t = t, .in = *in, .caches = caches, .tap = fn, .tap_ctx = ctx, .e = e};
    return check_input(m, in, e) || lay_out(g, e) ? NULL : g;
}

struct grad_var *graph_embed(struct graph *g) {
    struct grad_var *x = grad_embed(g->t, leaf(g, ROLE_EMBED, 0), g->in.tokens, g->in.n_positions);
    tap(g, POINT_EMBED, 0, x);
    return g->rc ? NULL : x;
}

struct grad_var *graph_layer(struct graph *g, uint32_t layer, struct grad_var *x) {
    struct layer_run *run = grad_alloc(g->t, sizeof *run);
    if (!run) return NULL;
    *run = (struct layer_run){g, layer, false};
    return grad_segment(g->t, x, run_layer, run);
}

struct grad_var *graph_norm(struct graph *g, struct grad_var *x) {
    struct grad_var *h = grad_rmsnorm(g->t, x, leaf(g, ROLE_NORM, 0), g->m->config.norm_eps, DT_F32);
    tap(g, POINT_HEAD_IN, 0, h);
    return g->rc ? NULL : h;
}

int graph_failure(const struct graph *g) {
    return g->rc ? g->rc : grad_error(g->t, g->e);
}

struct grad_var *model_graph_cached(struct model *m, struct grad_tape *t, const struct model_input *in,
                                    struct kv_cache *const *caches, model_tap *fn, void *ctx, struct err *e) {
    struct graph *g = graph_begin(m, t, in, caches, fn, ctx, e);
    struct grad_var *x = g ? graph_embed(g) : NULL;
    for (uint32_t i = 0; x && i < m->config.n_layers; i++) x = graph_layer(g, i, x);
    struct grad_var *h = g ? graph_norm(g, x) : NULL;
    if (g && !h) graph_failure(g);
    if (!h) return NULL;
    for (size_t s = 0; caches && s < in->n_seqs; s++) caches[s]->length += in->lengths[s];
    return h;
}

struct grad_var *model_graph(struct model *m, struct grad_tape *t, const struct model_input *in, model_tap *fn,
                             void *ctx, struct err *e) {
    return model_graph_cached(m, t, in, NULL, fn, ctx, e);
}

/* The rows of padding are cut off here, before anything is computed of them: rows come first in every way that the
 * matrix is held (panels hold some rows each, the last one partly used). Nothing is ever added to their gradient,
 * which model_enable_grad zeroed. */
struct grad_var *model_head_leaf(struct model *m, struct grad_tape *t) {
    struct model_param *p = model_param(m, m->config.tied ? ROLE_EMBED : ROLE_HEAD, 0);
    if (p->panels.data) {
        struct kernel_panels tokens = p->panels;
        tokens.n = model_n_tokens(m);
        return grad_leaf_packed(t, &tokens);
    }
    return grad_parameter(t, p->value, p->grad, &p->grad_begun, model_n_tokens(m), p->desc.dims[1]);
}

/* Who looks at logits, as grad_head's loss: of a tape that does not record nothing is learned. */
struct watcher {
    model_logits_fn *fn;
    void *ctx;
};

static int watch_block(void *ctx, size_t first, size_t rows, size_t vocab, float *logits, struct kernel_array slope,
                       struct err *e) {
    const struct watcher *w = ctx;
    (void)slope;
    return w->fn(w->ctx, first, rows, vocab, logits, e);
}

int model_infer(struct model *m, struct grad_tape *scratch, const struct model_input *in, model_tap *fn_tap,
                void *tap_ctx, model_logits_fn *fn, void *ctx, struct err *e) {
    grad_reset(scratch);
    struct grad_var *h = model_graph(m, scratch, in, fn_tap, tap_ctx, e);
    if (!h) return e->code;
    struct watcher w = {fn, ctx};
    if (!fn || grad_head(scratch, h, model_head_leaf(m, scratch), watch_block, &w)) return 0;
    int rc = grad_error(scratch, e);
    return rc ? rc : e->code;
}
