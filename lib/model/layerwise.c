/*
 * Inference with one layer in memory: model_infer with its loops over passes and over layers exchanged. Between two
 * layers the hidden states of the whole block are kept: [positions][hidden], or as wide as the first layer's input.
 */
#include "lib/model/model_internal.h"

/* A value inside a layer, for all positions. */
struct rows {
    struct buf data; /* [positions][cols] */
    enum dtype dtype;
    size_t cols;
};

/* Where the last passes stopped inside the layer, and the values needed to resume there. `residual` is kept from
 * POINT_FFN_IN on, and does not change before POINT_DOWN_IN; at POINT_O_IN it is still the layer's input. */
struct halt {
    bool any;
    enum model_point point;
    struct rows o_in, down_in, residual;
};

struct model_layerwise {
    struct model *m; /* holds the weights of the current layer */
    model_again_fn *again;
    void *again_ctx;
    bool read_once;       /* the first reader is at its end */
    struct digest digest; /* of the stream: it must not change between readings */

    /* The current reading of the stream. */
    struct stream_reader *r;
    struct stream_item item;
    struct model_tensors tensors;

    struct buf states; /* of the block, [n_positions][width], the output of the last step */
    struct buf next;   /* the next states, if their width differs: they cannot overwrite the current ones */
    model_tap *tap;
    void *tap_ctx;

    /* While model_layerwise_change runs. */
    struct buf dense, dense_next; /* input and output of the unchanged layer */
    struct grad_tape *t;
    const struct model_input *in;
    size_t n;
    int64_t layer;
    const struct model_changes *changes;
    struct halt halt;
    bool skips; /* the current layer is left out */
};

/* One step of the block: a layer (or the embedding), its input and output, and its tap. */
struct step {
    int64_t layer; /* -1: the embedding */
    const struct buf *from;
    struct buf *to; /* NULL: discarded */
    model_tap *tap;
    void *ctx;
    const enum model_point *last; /* point where the pass stops; NULL: none */
    struct halt *halt;            /* where the pass resumes and stores its state; NULL: runs from the start */
    size_t every;                 /* runs one pass in `every`, with contiguous states; 0: 1 */
};

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* Moves to the first tensor of the stream: in the first reader, or in a new one. */
static int begin_reading(struct model_layerwise *l, struct err *e) {
    if (l->read_once) {
        if (!l->again) return err_set(e, ERR_USAGE, "a model that comes through a pipe can be read once only");
        struct model_head head = {0};
        int rc = l->again(l->again_ctx, &l->r, e);
        if (!rc) rc = model_head_read(l->r, &head, &l->item, e);
        bool same = rc || (digest_equal(head.vocab_digest, l->m->vocab_digest) &&
                           model_slot_count(&head.config) == model_slot_count(&l->m->config));
        model_head_release(&head);
        if (rc) return rc;
        if (!same)
            return err_set(e, ERR_DATA, "%s: another model than when it was first read", stream_reader_name(l->r));
    }
    model_tensors_release(&l->tensors);
    model_tensors_begin(&l->tensors, l->r, &l->m->config, &l->item);
    return 0;
}

/* Loads the next tensor of the stream into the model. */
static int load_next(struct model_layerwise *l, struct err *e) {
    bool more;
    return model_load_next(l->m, &l->tensors, &more, e);
}

static bool at_layer(const struct model_layerwise *l, uint32_t layer) {
    size_t i = l->tensors.next;
    if (i == model_slot_count(&l->m->config)) return false;
    struct model_slot s = model_slot_at(&l->m->config, i);
    return model_role_in_layer(s.role) && s.layer == layer;
}

/* Everything before the layers: embedding, positions, their norm. */
static int load_before_layers(struct model_layerwise *l, struct err *e) {
    int rc = 0;
    while (!rc && !model_role_in_layer(model_slot_at(&l->m->config, l->tensors.next).role)) rc = load_next(l, e);
    return rc;
}

static void drop_before_layers(struct model_layerwise *l, bool embed_too) {
    struct model_slot s;
    for (size_t i = 0; !model_role_in_layer((s = model_slot_at(&l->m->config, i)).role); i++)
        if (embed_too || s.role != ROLE_EMBED) model_drop(l->m, s);
}

static int load_layer(struct model_layerwise *l, uint32_t layer, struct err *e) {
    int rc = 0;
    while (!rc && at_layer(l, layer)) rc = load_next(l, e);
    return rc;
}

static void drop_layer(struct model_layerwise *l, uint32_t layer) {
    const struct model_config *c = &l->m->config;
    size_t end = model_slot_of_layer(c, layer + 1);
    for (size_t i = model_slot_of_layer(c, layer); i < end; i++) model_drop(l->m, model_slot_at(c, i));
}

/* Loads everything after the layers and reads the stream to its end. */
static int finish_reading(struct model_layerwise *l, struct err *e) {
    struct stream_totals totals;
    bool more;
    int rc = 0;
    while (!rc && l->tensors.next < model_slot_count(&l->m->config)) rc = load_next(l, e);
    if (!rc) rc = model_tensors_open(&l->tensors, &more, e);
    if (!rc) rc = stream_drain(l->r, e);
    if (rc) return rc;
    stream_reader_totals(l->r, &totals);
    if (l->read_once && !digest_equal(l->digest, totals.digest))
        return err_set(e, ERR_DATA, "%s: changed while it was read", stream_reader_name(l->r));
    l->digest = totals.digest;
    l->read_once = true;
    return 0;
}

/* Loads an embedding again that is also the head. */
static int load_tied_head(struct model_layerwise *l, struct err *e) {
    const struct model_param *embed = model_param(l->m, ROLE_EMBED, 0);
    if (!l->m->config.tied || kernel_has_data(embed->value) || kernel_has_matrix(&embed->matrix)) return 0;
    int rc = begin_reading(l, e);
    return rc ? rc : load_next(l, e);
}

/* ---- a block ----------------------------------------------------------------------------------------------------- */

/* The width of a layer's input; layer n_layers: of the final hidden states. */
static size_t width_into(const struct model_layerwise *l, int64_t layer) {
    return layer < l->m->config.n_layers ? model_axis_size(&l->m->config, AXIS_INPUT, layer < 0 ? 0 : (uint32_t)layer)
                                         : l->m->config.hidden;
}

/* The states of one pass as a variable, and back. */
static struct grad_var *take_states(const struct model_layerwise *l, const struct buf *states, struct grad_tape *t,
                                    int64_t layer, size_t first, size_t rows) {
    size_t width = width_into(l, layer);
    struct grad_var *x = grad_scratch(t, rows, width, DT_F32);
    if (x) kernel_upload(x->value, (const float *)states->data + first * width, rows * width);
    return x;
}

static void put_states(struct buf *states, size_t first, const struct grad_var *x) {
    kernel_download((float *)states->data + first * x->cols, x->value, x->rows * x->cols);
}

/* Positions per pass: with this many, a layer's activations are small compared with its weights. */
#define PASS 1024

/* The next whole sequences of `in` from *seq and position *at: about PASS positions. A remainder smaller than PASS
 * joins this pass, because f32 products of a few rows sum in another order. */
static struct model_input next_pass(const struct model_input *in, size_t *seq, size_t *at) {
    size_t first = *seq, begin = *at;
    while (*seq < in->n_seqs && !(*at - begin >= PASS && in->n_positions - *at >= PASS)) *at += in->lengths[(*seq)++];
    return model_input_part(in, first, *seq - first, begin);
}

static bool left_out(size_t pass, size_t every) {
    return every > 1 && pass % every != 0;
}

size_t model_layerwise_positions(const struct model_input *in, size_t n, size_t every) {
    size_t positions = 0, pass = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t seq = 0, at = 0; seq < in[i].n_seqs;) {
            struct model_input part = next_pass(&in[i], &seq, &at);
            positions += left_out(pass++, every) ? 0 : part.n_positions;
        }
    return positions;
}

/* Where one pass stores its values when it stops; its rows begin at `first`. */
struct halting {
    struct halt *halt;
    enum model_point point;
    size_t first, positions; /* positions: of all passes */
    struct err *e;
    int rc;
};

static void release_halt(struct halt *h) {
    buf_release(&h->o_in.data);
    buf_release(&h->down_in.data);
    buf_release(&h->residual.data);
}

/* Where the value at a point is stored; NULL: it is recomputed from the residual. */
static struct rows *rows_at(struct halt *h, enum model_point point) {
    return point == POINT_O_IN ? &h->o_in : point == POINT_DOWN_IN ? &h->down_in : NULL;
}

static int keep_rows(struct rows *r, const struct halting *k, const struct grad_var *x) {
    size_t each = kernel_array_bytes(x->value.dtype, x->cols);
    uint64_t bytes;
    r->dtype = x->value.dtype;
    r->cols = x->cols;
    r->data.len = 0;
    if (!u64_mul(k->positions, each, &bytes) || buf_reserve(&r->data, bytes, k->e))
        return err_prefix(k->e, "states of %zu positions inside a layer", k->positions);
    kernel_download(r->data.data + k->first * each, x->value, x->rows * x->cols);
    return 0;
}

static struct grad_var *take_rows(const struct rows *r, struct grad_tape *t, size_t first, size_t n) {
    struct grad_var *x = grad_scratch(t, n, r->cols, r->dtype);
    size_t each = kernel_array_bytes(r->dtype, r->cols);
    if (x) kernel_upload(x->value, r->data.data + first * each, n * r->cols);
    return x;
}

static void keep_halt(void *ctx, const struct grad_var *value, const struct grad_var *residual) {
    struct halting *k = ctx;
    struct rows *r = rows_at(k->halt, k->point);
    bool is_kept = k->halt->any && k->halt->point >= POINT_FFN_IN;
    if (k->point != POINT_O_IN && !is_kept) k->rc = keep_rows(&k->halt->residual, k, residual);
    if (!k->rc && r) k->rc = keep_rows(r, k, value);
}

/* Restores the rows of a pass at the halt: returns the residual and sets part->given to the value at the point. */
static struct grad_var *take_halt(const struct model_layerwise *l, const struct step *s, struct graph_part *part,
                                  struct grad_tape *t, size_t first, size_t n) {
    struct halt *h = s->halt;
    const struct rows *r = rows_at(h, h->point);
    struct grad_var *x =
        h->point == POINT_O_IN ? take_states(l, s->from, t, s->layer, first, n) : take_rows(&h->residual, t, first, n);
    part->resumes = true;
    part->from = h->point;
    if (r) part->given = take_rows(r, t, first, n);
    return r && !part->given ? NULL : x;
}

/* Can a pass stop here and another resume? Before ATTN_IN there is only a norm, which is not worth it; and with
 * experts, the residual does not yet include their sum at DOWN_IN. */
static bool halts_at(const struct model_layerwise *l, int64_t layer, enum model_point point) {
    return point == POINT_O_IN || point == POINT_FFN_IN ||
           (point == POINT_DOWN_IN && !l->m->config.layers[layer].experts);
}

static int run_pass(struct model_layerwise *l, struct grad_tape *t, const struct model_input *in, size_t first,
                    size_t positions, const struct step *s, struct err *e) {
    struct graph_part part = {0};
    struct halting k = {.halt = s->halt, .first = first, .positions = positions, .e = e};
    grad_reset(t);
    struct graph *g = graph_begin(l->m, t, in, NULL, s->tap, s->ctx, e);
    if (!g) return e->code;
    g->last = s->last;
    if (s->halt) g->part = &part;
    if (s->halt && s->last && halts_at(l, s->layer, *s->last)) k.point = *s->last, part.end = keep_halt, part.ctx = &k;
    struct grad_var *x;
    if (s->layer < 0)
        x = graph_embed(g);
    else if (s->halt && s->halt->any)
        x = graph_layer(g, (uint32_t)s->layer, take_halt(l, s, &part, t, first, in->n_positions));
    else
        x = graph_layer(g, (uint32_t)s->layer, take_states(l, s->from, t, s->layer, first, in->n_positions));
    if (k.rc) return k.rc;
    if (!x) return g->ended && !g->rc ? 0 : graph_failure(g);
    if (s->to) put_states(s->to, first, x);
    return 0;
}

/* ---- weights of a step ------------------------------------------------------------------------------------------- */

/* Does the step multiply by this matrix? False for experts, of which a layer has many, and for second factors: their
 * products pack them. */
static bool multiplies_by(const struct step *s, enum model_role role) {
    const struct model_role_info *info = model_role_info(role);
    if (info->kind != KIND_MATRIX || info->each != AXIS_ONE || info->input == POINT_COUNT) return false;
    if (s->halt && s->halt->any && info->input < s->halt->point) return false;
    return !s->last || info->input < *s->last;
}

static void unpack_weights(struct model_layerwise *l, int64_t layer) {
    const struct model_config *c = &l->m->config;
    for (size_t i = model_slot_of_layer(c, (uint32_t)layer); i < model_slot_of_layer(c, (uint32_t)layer + 1); i++) {
        struct model_param *p = &l->m->params[i];
        if (!kernel_has_data(p->value) || !kernel_has_matrix(&p->matrix)) continue;
        kernel_free(l->m->device, kernel_matrix_memory(&p->matrix));
        p->matrix = (struct kernel_matrix){0};
    }
}

/* Packs f32 weights for bf16 products once for all passes; as they may change, the next step packs them anew. A matrix
 * for which there is no memory is packed by each product. */
static void pack_weights(struct model_layerwise *l, const struct step *s) {
    const struct model_config *c = &l->m->config;
    size_t first = model_slot_of_layer(c, (uint32_t)s->layer), end = model_slot_of_layer(c, (uint32_t)s->layer + 1);
    for (size_t i = first; i < end; i++) {
        struct model_param *p = &l->m->params[i];
        struct err e;
        if (!kernel_has_data(p->value) || !multiplies_by(s, p->slot.role)) continue;
        size_t n = p->desc.dims[0], k = p->desc.dims[1];
        size_t bytes = kernel_matrix_bytes(KERNEL_PACKED_BF16, DT_BF16, n, k);
        struct kernel_array memory = kernel_alloc(l->m->device, DT_U8, bytes, &e);
        if (!kernel_has_data(memory)) return;
        struct kernel_matrix stored = kernel_matrix_of(p->value, n, k);
        p->matrix = kernel_pack_nt(memory, &stored);
    }
}

/* ---- all passes of a step ---------------------------------------------------------------------------------------- */

static int run_passes(struct model_layerwise *l, struct grad_tape *t, const struct model_input *in, size_t n,
                      const struct step *s, struct err *e) {
    size_t first = 0, pass = 0, positions = model_layerwise_positions(in, n, s->every);
    for (size_t i = 0; i < n; i++) {
        for (size_t seq = 0, at = 0; seq < in[i].n_seqs;) {
            struct model_input part = next_pass(&in[i], &seq, &at);
            if (left_out(pass++, s->every)) continue;
            int rc = run_pass(l, t, &part, first, positions, s, e);
            if (rc) return rc;
            first += part.n_positions;
        }
    }
    if (s->halt && s->last && halts_at(l, s->layer, *s->last)) s->halt->any = true, s->halt->point = *s->last;
    return 0;
}

/* Runs one step for all inputs. */
static int run_inputs(struct model_layerwise *l, struct grad_tape *t, const struct model_input *in, size_t n,
                      const struct step *s, struct err *e) {
    bool packs = n && s->layer >= 0 && grad_precision(t) == DT_BF16 && !grad_records(t);
    if (packs) pack_weights(l, s);
    int rc = run_passes(l, t, in, n, s, e);
    if (packs) unpack_weights(l, s->layer);
    return rc;
}

static int reserve_states(struct model_layerwise *l, struct buf *states, const struct model_input *in, size_t n,
                          size_t every, struct err *e) {
    uint64_t positions = model_layerwise_positions(in, n, every), floats, bytes;
    size_t width = width_into(l, 0) > width_into(l, l->m->config.n_layers) ? width_into(l, 0) : l->m->config.hidden;
    if (!u64_mul(positions, width, &floats) || !u64_mul(floats, sizeof(float), &bytes))
        return err_set(e, ERR_IO, "hidden states of %llu positions are too large", (unsigned long long)positions);
    states->len = 0;
    if (buf_reserve(states, bytes, e))
        return err_prefix(e, "hidden states of %llu positions", (unsigned long long)positions);
    return 0;
}

/* Replaces the states of the block by the layer's output. */
static int advance(struct model_layerwise *l, struct grad_tape *t, const struct model_input *in, size_t n,
                   int64_t layer, struct err *e) {
    bool apart = layer >= 0 && width_into(l, layer) != width_into(l, layer + 1);
    if (apart && reserve_states(l, &l->next, in, n, 1, e)) return e->code;
    struct step s = {layer, &l->states, apart ? &l->next : &l->states, l->tap, l->tap_ctx};
    if (l->halt.any) s.halt = &l->halt;
    int rc = run_inputs(l, t, in, n, &s, e);
    if (rc || !apart) return rc;
    buf_release(&l->states);
    l->states = l->next;
    l->next = (struct buf){0};
    return 0;
}

static int run_layers(struct model_layerwise *l, struct grad_tape *t, const struct model_input *in, size_t n,
                      model_layer_fn *progress, void *ctx, struct err *e) {
    int rc = 0;
    for (uint32_t i = 0; !rc && i < l->m->config.n_layers; i++) {
        rc = load_layer(l, i, e);
        if (!rc) rc = advance(l, t, in, n, i, e);
        drop_layer(l, i);
        if (!rc && progress) progress(ctx, i + 1);
    }
    return rc;
}

int model_layerwise_run(struct model_layerwise *l, struct grad_tape *t, const struct model_input *in, size_t n,
                        model_layer_fn *progress, void *ctx, struct err *e) {
    if (reserve_states(l, &l->states, in, n, 1, e)) return e->code;
    model_drop_all(l->m);
    int rc = begin_reading(l, e);
    if (!rc) rc = load_before_layers(l, e);
    if (!rc) rc = advance(l, t, in, n, -1, e);
    drop_before_layers(l, l->again || !l->m->config.tied);
    if (!rc) rc = run_layers(l, t, in, n, progress, ctx, e);
    if (!rc) rc = finish_reading(l, e);
    return rc ? rc : load_tied_head(l, e);
}

/* ---- changing weights on the way --------------------------------------------------------------------------------- */

/* Runs the layer with its unchanged weights on the dense states. */
static int run_dense(struct model_layerwise *l, int64_t layer, struct err *e) {
    const struct model_changes *c = l->changes;
    struct step s = {.layer = layer, .from = &l->dense, .to = &l->dense_next, .every = c->dense_every};
    s.tap = c->dense_tap;
    s.ctx = c->ctx;
    return run_inputs(l, l->t, l->in, l->n, &s, e);
}

static void swap_dense(struct model_layerwise *l) {
    struct buf next = l->dense_next;
    l->dense_next = l->dense;
    l->dense = next;
}

/* One layer: dense run, visit, then the run with the changed weights. */
static int change_step(struct model_layerwise *l, const struct model_changes *c, int64_t layer, struct err *e) {
    l->layer = layer;
    l->skips = false;
    l->halt.any = false;
    int rc = c->dense ? run_dense(l, layer, e) : 0;
    if (!rc) rc = c->visit(c->ctx, l, layer, e);
    if (!rc && !l->skips) rc = advance(l, l->t, l->in, l->n, layer, e);
    l->halt.any = false;
    swap_dense(l);
    return rc;
}

int model_layerwise_change(struct model_layerwise *l, struct grad_tape *t, const struct model_input *in, size_t n,
                           const struct model_changes *c, struct err *e) {
    int64_t n_layers = l->m->config.n_layers;
    l->t = t, l->in = in, l->n = n, l->changes = c;
    if (reserve_states(l, &l->states, in, n, 1, e) ||
        (c->dense && (reserve_states(l, &l->dense, in, n, c->dense_every, e) ||
                      reserve_states(l, &l->dense_next, in, n, c->dense_every, e))))
        return e->code;
    model_drop_all(l->m);
    int rc = begin_reading(l, e);
    if (!rc) rc = load_before_layers(l, e);
    if (!rc) rc = change_step(l, c, -1, e);
    drop_before_layers(l, true);
    for (int64_t i = 0; !rc && i < n_layers; i++) {
        rc = load_layer(l, (uint32_t)i, e);
        if (!rc) rc = change_step(l, c, i, e);
        drop_layer(l, (uint32_t)i);
    }
    l->layer = n_layers;
    if (!rc) rc = finish_reading(l, e);
    if (!rc) rc = c->visit(c->ctx, l, n_layers, e);
    model_drop_all(l->m);
    release_halt(&l->halt);
    return rc;
}

int model_layerwise_watch(struct model_layerwise *l, enum model_states which, const enum model_point *last,
                          model_tap *tap, void *ctx, struct err *e) {
    struct step s = {.layer = l->layer, .tap = tap, .ctx = ctx, .last = last};
    s.from = which == STATES_DENSE ? &l->dense : &l->states;
    if (which == STATES_DENSE) s.every = l->changes->dense_every;
    if (which == STATES_NOW && l->changes->in_order && model_has_halves(&l->m->config)) {
        if (last && l->halt.any && *last <= l->halt.point) l->halt.any = false; /* backwards: restart the layer */
        s.halt = &l->halt;
    }
    return run_inputs(l, l->t, l->in, l->n, &s, e);
}

void model_layerwise_skip(struct model_layerwise *l) {
    l->skips = true;
}

const float *model_layerwise_states(const struct model_layerwise *l, enum model_states which) {
    return (const float *)(which == STATES_DENSE ? l->dense.data : l->states.data);
}

const float *model_layerwise_dense_output(const struct model_layerwise *l) {
    return (const float *)l->dense_next.data;
}

/* Numbers the rows of one input's logits through the block. */
struct shifted {
    model_logits_fn *fn;
    void *ctx;
    size_t first;
};

static int shift_rows(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                      struct kernel_array dlogits, struct err *e) {
    const struct shifted *s = ctx;
    (void)dlogits; /* a tape that does not record needs no gradient */
    return s->fn(s->ctx, s->first + first, rows, vocab, kernel_host(logits, rows * vocab), e);
}

int model_layerwise_logits(struct model_layerwise *l, struct grad_tape *t, const struct model_input *in, size_t n,
                           model_logits_fn *fn, void *ctx, struct err *e) {
    const struct model_config *c = &l->m->config;
    struct shifted s = {fn, ctx, 0};
    size_t position = 0;
    if (fn && c->output == OUTPUT_NONE) return model_no_head(e);
    for (size_t i = 0; i < n; position += in[i].n_positions, s.first += model_asked_rows(c, &in[i++])) {
        grad_reset(t);
        struct graph *g = graph_begin(l->m, t, &in[i], NULL, l->tap, l->tap_ctx, e);
        if (!g) return e->code;
        struct grad_var *h = graph_norm(g, take_states(l, &l->states, t, c->n_layers, position, in[i].n_positions));
        if (!h) return graph_failure(g);
        if (!fn) continue;
        if (!model_run_head(l->m, t, &in[i], h, shift_rows, &s)) return graph_failure(g);
    }
    return 0;
}

struct grad_var *model_layerwise_hidden(struct model_layerwise *l, struct grad_tape *t, const struct model_input *in,
                                        size_t first, struct err *e) {
    grad_reset(t);
    struct graph *g = graph_begin(l->m, t, in, NULL, NULL, NULL, e);
    struct grad_var *h =
        g ? graph_norm(g, take_states(l, &l->states, t, l->m->config.n_layers, first, in->n_positions)) : NULL;
    if (g && !h) graph_failure(g);
    return h;
}

struct model *model_layerwise_held(struct model_layerwise *l) {
    return l->m;
}

/* ---- the interface ----------------------------------------------------------------------------------------------- */

int model_layerwise_new(struct model_layerwise **out, struct kernel_device *device, struct stream_reader *r,
                        enum model_weight_format format, model_again_fn *again, void *again_ctx, struct err *e) {
    struct model_head head = {0};
    struct model_layerwise *l = mem_zalloc(sizeof *l, e);
    if (!l) return e->code;
    l->r = r;
    l->again = again;
    l->again_ctx = again_ctx;
    int rc = model_head_read(r, &head, &l->item, e);
    if (!rc && model_new(&l->m, device, &head.config, format, head.vocab.data, head.vocab.len, e))
        rc = err_prefix(e, "%s", stream_reader_name(r));
    if (!rc) l->m->meta = head.meta, head.meta = NULL;
    model_head_release(&head);
    if (rc)
        model_layerwise_free(l);
    else
        *out = l;
    return rc;
}

void model_layerwise_tap(struct model_layerwise *l, model_tap *tap, void *ctx) {
    l->tap = tap;
    l->tap_ctx = ctx;
}

const struct model *model_layerwise_model(const struct model_layerwise *l) {
    return l->m;
}

struct digest model_layerwise_digest(const struct model_layerwise *l) {
    return l->digest;
}

void model_layerwise_free(struct model_layerwise *l) {
    if (!l) return;
    model_free(l->m);
    model_tensors_release(&l->tensors);
    buf_release(&l->states);
    buf_release(&l->next);
    buf_release(&l->dense);
    buf_release(&l->dense_next);
    release_halt(&l->halt);
    mem_free(l);
}
