/* The forward pass on a tape: the same code for inference and training. */
#include "lib/model/model_internal.h"

#include <stdlib.h>

static struct grad_var *leaf(struct graph *g, enum model_role role, uint32_t layer) {
    return graph_leaf(g, (struct model_slot){.role = role, .layer = layer});
}

static void tap(struct graph *g, enum model_point point, uint32_t layer, const struct grad_var *x) {
    if (x) graph_tap(g, (struct model_seen){.point = point, .layer = layer, .rows = x->rows}, x);
}

/* ---- wanted points ----------------------------------------------------------------------------------------------- */

/* A point between layers, which are segments. On a tape that does not record, the next layer reuses its memory, so it
 * is copied. */
static void want_outside(struct graph *g, enum model_point point, uint32_t layer, struct grad_var *x) {
    for (size_t i = 0; x && !grad_records(g->t) && i < g->n_wants; i++)
        if (g->wants[i].point == point && g->wants[i].layer == layer)
            g->wants[i].var = grad_scratch(g->t, x->rows, x->cols, DT_F32);
    graph_want(g, point, layer, x);
}

/* Returns whether a point inside this layer is wanted. Without recording, allocates memory for its copy that outlives
 * the layer. */
static bool prepare_copies(struct graph *g, uint32_t layer) {
    bool inside = false;
    for (size_t i = 0; i < g->n_wants; i++) {
        struct model_want *w = &g->wants[i];
        if (w->layer != layer || w->point == POINT_LAYER || w->point == POINT_EMBED || w->point == POINT_HEAD_IN)
            continue;
        inside = true;
        if (!grad_records(g->t))
            w->var = grad_scratch(g->t, g->in.n_positions, model_point_cols(&g->m->config, w->point, layer), DT_F32);
    }
    return inside;
}

static int check_wants(const struct graph *g) {
    const struct model_config *c = &g->m->config;
    for (size_t i = 0; i < g->n_wants; i++) {
        const struct model_want *w = &g->wants[i];
        bool one = w->point == POINT_EMBED || w->point == POINT_HEAD_IN;
        if (w->point == POINT_COUNT || w->point >= POINT_ALL || w->layer >= (one ? 1 : c->n_layers))
            return err_set(g->e, ERR_DATA, "point '%s' of layer %u is wanted, and the model has %u layers",
                           w->point < POINT_ALL && w->point != POINT_COUNT ? model_point_name(w->point) : "?", w->layer,
                           c->n_layers);
        if (!model_point_cols(c, w->point, w->layer))
            return err_set(g->e, ERR_DATA, "point '%s' of layer %u is wanted, which has none",
                           model_point_name(w->point), w->layer);
    }
    return 0;
}

/* ---- the parts of a layer ---------------------------------------------------------------------------------------- */

/* The norm whose weight has this role; its bias, if it has one, is the next role. */
static struct grad_var *norm(struct graph *g, enum model_role role, uint32_t layer, struct grad_var *x,
                             enum dtype out) {
    const struct model_config *c = &g->m->config;
    struct grad_var *w = leaf(g, role, layer);
    if (c->norm == NORM_RMS) return grad_rmsnorm(g->t, x, w, c->norm_eps, out);
    struct grad_var *b = c->norm_bias ? leaf(g, role + 1, layer) : NULL;
    return grad_layernorm(g->t, x, w, b, c->norm_eps, out);
}

static struct grad_var *linear(struct graph *g, enum model_role role, uint32_t layer, struct grad_var *x,
                               struct grad_var *bias, struct grad_var *added) {
    return graph_linear(g, (struct model_slot){.role = role, .layer = layer}, x, bias, added);
}

/* The input of a part of the layer: norm(x), or x if norms come later. */
static struct grad_var *before(struct graph *g, enum model_role role, uint32_t layer, struct grad_var *x) {
    if (!model_has_role(&g->m->config, role)) return x;
    return norm(g, role, layer, x, grad_precision(g->t));
}

static bool norm_is_after(const struct model_config *c) {
    return c->norm_place == NORM_SANDWICH || c->norm_place == NORM_OUTPUT;
}

/* x + y, where y is a part's output: applies the residual scale and the norm after the part. */
static struct grad_var *add_value(struct graph *g, uint32_t layer, struct grad_var *x, struct grad_var *y,
                                  enum model_role post) {
    const struct model_config *c = &g->m->config;
    if (norm_is_after(c)) y = norm(g, post, layer, y, grad_precision(g->t));
    x = grad_add(g->t, x, grad_scale(g->t, y, model_factor(c->residual_scale)));
    return c->norm_place == NORM_POST ? norm(g, post, layer, x, DT_F32) : x;
}

/* The same for y w^T + b. */
static struct grad_var *add_part(struct graph *g, uint32_t layer, struct grad_var *x, struct grad_var *y,
                                 enum model_role w, enum model_role b, enum model_role post) {
    const struct model_config *c = &g->m->config;
    struct grad_var *bias = leaf(g, b, layer);
    if (norm_is_after(c) || model_factor(c->residual_scale) != 1)
        return add_value(g, layer, x, linear(g, w, layer, y, bias, NULL), post);
    x = linear(g, w, layer, y, bias, x);
    return c->norm_place == NORM_POST ? norm(g, post, layer, x, DT_F32) : x;
}

static struct grad_var *qk_norm(struct graph *g, enum model_role role, uint32_t layer, struct grad_var *x) {
    const struct model_config *c = &g->m->config;
    if (c->qk_norm == QK_NORM_NONE) return x;
    struct grad_var *w = leaf(g, role, layer);
    if (c->qk_norm == QK_NORM_LAYER) return grad_layernorm_heads(g->t, x, w, leaf(g, role + 1, layer), c->norm_eps);
    return grad_rmsnorm_heads(g->t, x, w, c->norm_eps);
}

static struct grad_var *rotate(struct graph *g, uint32_t layer, struct grad_var *x, uint32_t n_heads) {
    const struct model_config *c = &g->m->config;
    uint32_t which = c->layers[layer].rope;
    if (which == ROPE_NONE || c->positions != POSITIONS_ROTARY) return x;
    bool local = which == ROPE_LOCAL;
    const struct model_rope *r = local ? &c->local_rope : &c->rope;
    struct kernel_rotation how = {.dims = model_rope_dims(c, r),
                                  .inv_freq = local ? g->m->local_inv_freq : g->m->inv_freq,
                                  .table = g->tables[local],
                                  .scale = (float)r->attention_factor};
    return grad_rope(g->t, x, n_heads, c->head_dim, g->position, &how);
}

struct kernel_attention model_attention_shape(const struct model_config *c, uint32_t layer) {
    const struct model_layer *l = &c->layers[layer];
    return (struct kernel_attention){.n_heads = l->n_heads,
                                     .n_kv_heads = l->n_kv_heads,
                                     .head_dim = c->head_dim,
                                     .scale = c->attn_scale != 0 ? c->attn_scale
                                                                 : 1.0f / __builtin_sqrtf((float)c->head_dim),
                                     .bidirectional = c->bidirectional,
                                     .window = l->window,
                                     .softcap = c->attn_softcap};
}

static struct grad_var *attend(struct graph *g, uint32_t layer, struct grad_var *q, struct grad_var *k,
                               struct grad_var *v) {
    struct kernel_attention shape = model_attention_shape(&g->m->config, layer);
    shape.n_seqs = g->in.n_seqs;
    shape.starts = g->starts;
    if (!g->caches) return grad_attention(g->t, q, k, v, &shape);
    return q && k && v ? graph_attend_cached(g, layer, q, k, v, &shape) : NULL;
}

/* attention(rope(q), rope(k), v) of h, heads concatenated */
static struct grad_var *attention(struct graph *g, uint32_t layer, struct grad_var *h) {
    const struct model_layer *l = &g->m->config.layers[layer];
    h = graph_expose(g, POINT_ATTN_IN, layer, h);
    const struct model_slot slots[] = {{ROLE_Q, layer, 0}, {ROLE_K, layer, 0}, {ROLE_V, layer, 0}};
    struct grad_var *y[3], *biases[3];
    for (size_t i = 0; i < 3; i++) biases[i] = leaf(g, ROLE_Q_BIAS + i, layer);
    graph_linears(g, 3, slots, h, biases, y);
    struct grad_var *q = rotate(g, layer, qk_norm(g, ROLE_Q_NORM, layer, y[0]), l->n_heads);
    struct grad_var *k = rotate(g, layer, qk_norm(g, ROLE_K_NORM, layer, y[1]), l->n_kv_heads);
    q = graph_store(g, graph_expose(g, POINT_Q, layer, q), POINT_Q);
    k = graph_store(g, graph_expose(g, POINT_K, layer, k), POINT_K);
    struct grad_var *v = graph_store(g, graph_expose(g, POINT_V, layer, y[2]), POINT_V);
    return graph_expose(g, POINT_O_IN, layer, attend(g, layer, q, k, v));
}

/* the input of down: act(gate h) * up h, or act(up h) */
static struct grad_var *feed_forward(struct graph *g, uint32_t layer, struct grad_var *h) {
    const struct model_config *c = &g->m->config;
    struct grad_var *y;
    if (c->ffn_kind == FFN_GATED)
        y = graph_gated(g, (struct model_slot){ROLE_GATE, layer, 0}, (struct model_slot){ROLE_UP, layer, 0}, h);
    else
        y = grad_activate(g->t, c->act, linear(g, ROLE_UP, layer, h, leaf(g, ROLE_UP_BIAS, layer), NULL));
    return graph_expose(g, POINT_DOWN_IN, layer, y);
}

static struct grad_var *add_attention(struct graph *g, uint32_t layer, struct grad_var *x, struct grad_var *a) {
    return add_part(g, layer, x, a, ROLE_O, ROLE_O_BIAS, ROLE_ATTN_POST_NORM);
}

static struct grad_var *add_ffn(struct graph *g, uint32_t layer, struct grad_var *x, struct grad_var *y) {
    return add_part(g, layer, x, y, ROLE_DOWN, ROLE_DOWN_BIAS, ROLE_FFN_POST_NORM);
}

/* The sum over experts, plus the shared expert's output, gated or not. */
static struct grad_var *mixture(struct graph *g, uint32_t layer, struct grad_var *h) {
    const struct model_config *c = &g->m->config;
    struct grad_var *y = graph_experts(g, layer, h), *shared;
    if (c->layers[layer].ffn == 0) return y;
    shared = feed_forward(g, layer, h);
    shared = linear(g, ROLE_DOWN, layer, shared, NULL, NULL);
    if (c->shared_gate) shared = grad_gate_rows(g->t, shared, grad_scores(g->t, h, leaf(g, ROLE_SHARED_GATE, layer)));
    return grad_add(g->t, y, shared);
}

/* x + feed-forward part of norm(x) */
static struct grad_var *add_feed_forward(struct graph *g, uint32_t layer, struct grad_var *x) {
    struct grad_var *h = graph_expose(g, POINT_FFN_IN, layer, before(g, ROLE_FFN_NORM, layer, x));
    if (g->m->config.layers[layer].experts) return add_value(g, layer, x, mixture(g, layer, h), ROLE_FFN_POST_NORM);
    return add_ffn(g, layer, x, feed_forward(g, layer, h));
}

/* Both parts read the same x (GPT-NeoX, Black et al. 2022), so neither may overwrite it first. */
static struct grad_var *parallel_layer(struct graph *g, uint32_t layer, struct grad_var *x) {
    struct grad_var *h = before(g, ROLE_ATTN_NORM, layer, x);
    struct grad_var *h2 = g->m->config.shared_norm ? h : before(g, ROLE_FFN_NORM, layer, x);
    h2 = graph_expose(g, POINT_FFN_IN, layer, h2);
    struct grad_var *a = attention(g, layer, h), *y = feed_forward(g, layer, h2);
    return add_ffn(g, layer, add_attention(g, layer, x, a), y);
}

/* Does this part of the layer resume at the point? */
static bool resumes_at(const struct graph *g, enum model_point point) {
    return g->part && g->part->resumes && g->part->from == point;
}

/* x + attention, then + the feed-forward part of that. */
static struct grad_var *serial_layer(struct graph *g, uint32_t layer, struct grad_var *x) {
    g->residual = x;
    if (!resumes_at(g, POINT_FFN_IN) && !resumes_at(g, POINT_DOWN_IN)) {
        struct grad_var *a =
            resumes_at(g, POINT_O_IN) ? g->part->given : attention(g, layer, before(g, ROLE_ATTN_NORM, layer, x));
        g->residual = x = add_attention(g, layer, x, a);
    }
    return resumes_at(g, POINT_DOWN_IN) ? add_ffn(g, layer, x, g->part->given) : add_feed_forward(g, layer, x);
}

static struct grad_var *transformer_layer(struct graph *g, uint32_t layer, struct grad_var *x) {
    return g->m->config.parallel ? parallel_layer(g, layer, x) : serial_layer(g, layer, x);
}

static struct grad_var *layer_block(struct graph *g, uint32_t layer, enum model_block block, struct grad_var *x) {
    if (block == BLOCK_FFN) return add_feed_forward(g, layer, x);
    if (block == BLOCK_ATTENTION)
        return add_attention(g, layer, x, attention(g, layer, before(g, ROLE_ATTN_NORM, layer, x)));
    return g->m->config.layer_kind == LAYER_LSTM ? graph_lstm(g, layer, x) : transformer_layer(g, layer, x);
}

/* ERR_DATA unless the model accepts this input. */
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
            if (in->types && in->types[at] >= m->config.token_types)
                return err_set(e, ERR_DATA, "token type %u at position %u of sequence %zu: the model has %u",
                               in->types[at], i, s, m->config.token_types);
            else if (in->tokens[at] >= model_n_tokens(m))
                return err_set(e, ERR_DATA, "token %u at position %u of sequence %zu is outside the vocabulary of %u",
                               in->tokens[at], i, s, model_n_tokens(m));
    }
    if (at != in->n_positions || at == 0)
        return err_set(e, ERR_DATA, "the sequences have %zu positions, the batch %zu", at, in->n_positions);
    return 0;
}

/*
 * LongRoPE uses other frequencies at all positions of a sequence longer than the original context. transformers decides
 * by the longest sequence of a batch; here each sequence is decided on its own, with the result it has in a batch of
 * one. A cache filled up to the original context has keys with the short frequencies: it cannot be continued, and its
 * owner must rebuild it (as transformers does for Phi-3).
 */
static int lay_out_tables(struct graph *g, bool local, struct err *e) {
    const struct model_rope *r = local ? &g->m->config.local_rope : &g->m->config.rope;
    if (model_rope_tables(r) == 1) return 0;
    uint8_t *table = grad_alloc(g->t, g->in.n_positions);
    if (!table) return grad_error(g->t, e);
    g->tables[local] = table;
    for (size_t s = 0; s < g->in.n_seqs; s++) {
        uint32_t held = g->caches ? g->caches[s]->length : 0, n = g->in.lengths[s];
        bool is_long = n > r->original_context || held > r->original_context - n;
        if (is_long && held && held <= r->original_context)
            return err_set(e, ERR_DATA, "sequence %zu passes the %u positions after which its keys rotate otherwise", s,
                           r->original_context);
        memset(table + g->starts[s], is_long, n);
    }
    return 0;
}

/* Positions and sequence starts, allocated on the tape because the backward pass needs them too. */
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
    int rc = lay_out_tables(g, false, e);
    return rc ? rc : lay_out_tables(g, true, e);
}

/* A layer as a segment of the tape; taps fire only on the first run, not when it is run again for backward. */
struct layer_run {
    struct graph *g;
    uint32_t layer;
    bool seen;
};

static struct grad_var *run_layer(void *ctx, struct grad_tape *t, struct grad_var *x) {
    struct layer_run *run = ctx;
    struct graph g = *run->g;
    g.t = t;
    if (run->seen) g.tap = NULL, g.n_wants = 0;
    struct grad_var *y = layer_block(&g, run->layer, BLOCK_LAYER, x);
    tap(&g, POINT_LAYER, run->layer, y);
    run->seen = true;
    run->g->rc = g.rc;
    run->g->ended = g.ended;
    return g.rc ? NULL : y;
}

struct graph *graph_begin(struct model *m, struct grad_tape *t, const struct model_input *in,
                          struct kv_cache *const *caches, model_tap *fn, void *ctx, struct err *e) {
    struct graph *g = grad_alloc(t, sizeof *g);
    if (!g) return grad_error(t, e) ? NULL : g;
    *g = (struct graph){.m = m, .t = t, .in = *in, .caches = caches, .tap = fn, .tap_ctx = ctx, .e = e};
    if (m->config.token_types < 2) g->in.types = NULL; /* there is only one type */
    return check_input(m, &g->in, e) || lay_out(g, e) ? NULL : g;
}

/* Rows of a table of positions or token types; ids NULL: row 0. */
static struct grad_var *look_up(struct graph *g, enum model_role role, const uint32_t *ids, uint32_t offset) {
    size_t n = g->in.n_positions;
    uint32_t *rows = grad_alloc(g->t, n * sizeof *rows);
    for (size_t i = 0; rows && i < n; i++) rows[i] = (ids ? ids[i] : 0) + offset;
    return rows ? grad_embed(g->t, leaf(g, role, 0), rows, n) : NULL;
}

/* The embedding of the tokens, projected to the width of the layers, plus those of positions and types. */
struct grad_var *graph_embed(struct graph *g) {
    const struct model_config *c = &g->m->config;
    struct grad_var *x = grad_embed(g->t, leaf(g, ROLE_EMBED, 0), g->in.tokens, g->in.n_positions);
    x = grad_scale(g->t, x, model_factor(c->embed_scale));
    if (model_has_role(c, ROLE_EMBED_PROJECTION))
        x = grad_to_f32(g->t, grad_linear(g->t, x, leaf(g, ROLE_EMBED_PROJECTION, 0), NULL, NULL));
    if (c->token_types) x = grad_add(g->t, x, look_up(g, ROLE_TYPE_EMBED, g->in.types, 0));
    if (c->positions == POSITIONS_LEARNED)
        x = grad_add(g->t, x, look_up(g, ROLE_POSITION_EMBED, g->position, c->position_offset));
    if (c->embed_norm) x = norm(g, ROLE_EMBED_NORM, 0, x, DT_F32);
    tap(g, POINT_EMBED, 0, x);
    want_outside(g, POINT_EMBED, 0, x);
    return g->rc ? NULL : x;
}

struct grad_var *graph_layer(struct graph *g, uint32_t layer, struct grad_var *x) {
    struct layer_run *run = grad_alloc(g->t, sizeof *run);
    if (!run) return NULL;
    *run = (struct layer_run){g, layer, false};
    bool inside = prepare_copies(g, layer);
    x = inside && grad_records(g->t) ? x ? run_layer(run, g->t, x) : NULL
                                     : grad_segment(g->t, x, g->m->config.hidden, run_layer, run);
    want_outside(g, POINT_LAYER, layer, x);
    return x;
}

/* The first row of each sequence, or the final states of LSTMs, through the pooler if there is one. */
static struct grad_var *pooled(struct graph *g, struct grad_var *h) {
    const struct model_config *c = &g->m->config;
    h = c->layer_kind == LAYER_LSTM ? graph_lstm_ends(g, h) : grad_embed(g->t, h, g->starts, g->in.n_seqs);
    if (!c->pooler) return h;
    h = grad_linear(g->t, h, leaf(g, ROLE_POOLER, 0), leaf(g, ROLE_POOLER_BIAS, 0), NULL);
    return grad_to_f32(g->t, grad_activate(g->t, c->pooler_act, h));
}

struct grad_var *model_pooled(struct model *m, struct grad_tape *t, const struct model_input *in, struct grad_var *h,
                              struct err *e) {
    struct graph *g = graph_begin(m, t, in, NULL, NULL, NULL, e);
    struct grad_var *y = g ? pooled(g, h) : NULL;
    if (g && !y) graph_failure(g);
    return y;
}

struct grad_var *graph_norm(struct graph *g, struct grad_var *x) {
    const struct model_config *c = &g->m->config;
    struct grad_var *h = c->no_final_norm ? x : norm(g, ROLE_NORM, 0, x, DT_F32);
    if (c->output == OUTPUT_CLASSES) return g->rc ? NULL : pooled(g, h);
    if (model_has_role(c, ROLE_HEAD_PROJECTION))
        h = grad_to_f32(g->t, grad_linear(g->t, h, leaf(g, ROLE_HEAD_PROJECTION, 0), NULL, NULL));
    if (c->output == OUTPUT_MASKED_LM) {
        h = grad_linear(g->t, h, leaf(g, ROLE_TRANSFORM, 0), leaf(g, ROLE_TRANSFORM_BIAS, 0), NULL);
        h = norm(g, ROLE_TRANSFORM_NORM, 0, grad_activate(g->t, c->act, h), DT_F32);
    }
    h = grad_scale(g->t, h, model_factor(c->logit_scale));
    tap(g, POINT_HEAD_IN, 0, h);
    want_outside(g, POINT_HEAD_IN, 0, h);
    return g->rc ? NULL : h;
}

int graph_failure(const struct graph *g) {
    return g->rc ? g->rc : grad_error(g->t, g->e);
}

static struct grad_var *run_graph(struct graph *g) {
    struct grad_var *x = g ? graph_embed(g) : NULL;
    for (uint32_t i = 0; x && i < g->m->config.n_layers; i++) x = graph_layer(g, i, x);
    struct grad_var *h = g ? graph_norm(g, x) : NULL;
    if (g && !h) graph_failure(g);
    return h;
}

struct grad_var *model_graph_cached(struct model *m, struct grad_tape *t, const struct model_input *in,
                                    struct kv_cache *const *caches, model_tap *fn, void *ctx, struct err *e) {
    struct grad_var *h = run_graph(graph_begin(m, t, in, caches, fn, ctx, e));
    if (!h) return NULL;
    for (size_t s = 0; caches && s < in->n_seqs; s++) caches[s]->length += in->lengths[s];
    return h;
}

struct grad_var *model_graph(struct model *m, struct grad_tape *t, const struct model_input *in, model_tap *fn,
                             void *ctx, struct err *e) {
    return model_graph_cached(m, t, in, NULL, fn, ctx, e);
}

struct grad_var *model_graph_want(struct model *m, struct grad_tape *t, const struct model_input *in,
                                  struct model_want *wants, size_t n_wants, struct err *e) {
    struct graph *g = graph_begin(m, t, in, NULL, NULL, NULL, e);
    if (!g) return NULL;
    for (size_t i = 0; i < n_wants; i++) wants[i].var = NULL;
    g->wants = wants;
    g->n_wants = n_wants;
    struct grad_var *h = check_wants(g) ? NULL : run_graph(g);
    g->n_wants = 0; /* the caller's array must not be used when layers are recomputed */
    return h;
}

struct grad_var *model_exit(struct model *m, struct grad_tape *t, const struct model_input *in, struct grad_var *x,
                            struct err *e) {
    const struct model_config *c = &m->config;
    if (c->no_final_norm && model_factor(c->logit_scale) != 1) { /* grad_scale would overwrite x */
        err_set(e, ERR_DATA, "a model without a final norm that scales its hidden states has no exits");
        return NULL;
    }
    struct graph *g = graph_begin(m, t, in, NULL, NULL, NULL, e);
    struct grad_var *h = g && x ? graph_norm(g, x) : NULL;
    if (g && !h) graph_failure(g);
    return h;
}

bool model_has_halves(const struct model_config *c) {
    return c->layer_kind == LAYER_TRANSFORMER && !c->parallel;
}

struct grad_var *model_graph_block(struct model *m, struct grad_tape *t, const struct model_input *in, uint32_t layer,
                                   enum model_block block, struct grad_var *x, struct err *e) {
    struct graph *g = graph_begin(m, t, in, NULL, NULL, NULL, e);
    struct grad_var *y = g && x ? layer_block(g, layer, block, x) : NULL;
    if (g && !y) graph_failure(g);
    return y;
}

uint32_t model_columns(const struct model *m) {
    return m->config.classes ? m->config.classes : model_n_tokens(m);
}

size_t model_output_rows(const struct model_config *c, const struct model_input *in) {
    return c->output == OUTPUT_CLASSES ? in->n_seqs : in->n_positions;
}

struct model_input model_input_part(const struct model_input *in, size_t first, size_t n, size_t at) {
    struct model_input part = {.n_seqs = n, .tokens = in->tokens + at, .lengths = in->lengths + first};
    for (size_t i = 0; i < n; i++) part.n_positions += part.lengths[i];
    if (in->types) part.types = in->types + at;
    if (in->asked) part.asked = in->asked + at;
    return part;
}

size_t model_asked_rows(const struct model_config *c, const struct model_input *in) {
    if (!in->asked) return model_output_rows(c, in);
    size_t n = 0;
    for (size_t i = 0; i < in->n_positions; i++) n += in->asked[i] != 0;
    return n;
}

/* Passes on the first n rows only; the others are padding. */
struct few {
    size_t n;
    grad_loss_block *read;
    void *ctx;
};

static int read_few(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                    struct kernel_array dlogits, struct err *e) {
    const struct few *f = ctx;
    (void)rows;
    return f->read(f->ctx, first, f->n, vocab, logits, dlogits, e);
}

/* In f32 a product of at most KERNEL_FEW_ROWS rows has other bits than a larger one: such a selection is padded with
 * copies of its first row, unless the whole input is that small. */
bool model_run_head(struct model *m, struct grad_tape *t, const struct model_input *in, struct grad_var *h,
                    grad_loss_block *read, void *ctx) {
    struct grad_head head = model_logits_head(m, t);
    size_t n = model_asked_rows(&m->config, in), made = 0;
    size_t all = n > KERNEL_FEW_ROWS || h->rows <= KERNEL_FEW_ROWS ? n : KERNEL_FEW_ROWS + 1;
    struct few few = {n, read, ctx};
    if (!n) return true;
    if (n == h->rows) return grad_head(t, h, &head, read, ctx);
    uint32_t *rows = grad_alloc(t, all * sizeof *rows);
    for (uint32_t i = 0; rows && i < in->n_positions; i++)
        if (in->asked[i]) rows[made++] = i;
    for (; rows && made < all; made++) rows[made] = rows[0];
    h = rows ? grad_embed(t, h, rows, all) : NULL;
    return h && (all > n ? grad_head(t, h, &head, read_few, &few) : grad_head(t, h, &head, read, ctx));
}

/* Padding rows of the vocabulary are cut off here, before anything is computed for them: rows are the outer dimension
 * in every format (packed, the last panel is partly used). Their gradient, zeroed by model_enable_grad, stays zero. */
struct grad_head model_logits_head(struct model *m, struct grad_tape *t) {
    const struct model_config *c = &m->config;
    if (c->output == OUTPUT_NONE) return (struct grad_head){.w = NULL};
    bool classes = c->classes != 0;
    struct model_param *p = model_param(m, model_head_role(c), 0);
    struct model_param *b = model_param(m, classes ? ROLE_CLASSIFIER_BIAS : ROLE_HEAD_BIAS, 0);
    struct grad_head head = {.softcap = c->logit_softcap};
    size_t n = classes ? c->classes : model_n_tokens(m);
    if (kernel_has_matrix(&p->matrix)) {
        struct kernel_matrix tokens = kernel_matrix_columns(&p->matrix, n);
        head.w = grad_leaf_packed(t, &tokens);
    } else
        head.w = graph_parameter(m, t, p, n);
    if (b) head.bias = grad_parameter(t, b->value, b->grad, &b->grad_begun, 1, n);
    return head;
}

/* Adapts model_logits_fn to grad_head, as a loss without gradient: the tape does not record. */
struct logits_reader {
    model_logits_fn *fn;
    void *ctx;
};

static int read_block(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                      struct kernel_array dlogits, struct err *e) {
    const struct logits_reader *r = ctx;
    (void)dlogits;
    return r->fn(r->ctx, first, rows, vocab, kernel_host(logits, rows * vocab), e);
}

int model_no_head(struct err *e) {
    return err_set(e, ERR_DATA, "this model has no head that makes logits");
}

int model_infer(struct model *m, struct grad_tape *scratch, const struct model_input *in, model_tap *fn_tap,
                void *tap_ctx, model_logits_fn *fn, void *ctx, struct err *e) {
    grad_reset(scratch);
    struct grad_var *h = model_graph(m, scratch, in, fn_tap, tap_ctx, e);
    if (!h) return e->code;
    if (!fn) return 0;
    if (m->config.output == OUTPUT_NONE) return model_no_head(e);
    struct logits_reader r = {fn, ctx};
    if (model_run_head(m, scratch, in, h, read_block, &r)) return 0;
    int rc = grad_error(scratch, e);
    return rc ? rc : e->code;
}
