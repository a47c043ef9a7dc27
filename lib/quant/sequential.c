/* Quantizes a model layer by layer, each matrix with the second moments of its inputs. */
#include <math.h>
#include <string.h>

#include "lib/quant/learn.h"
#include "lib/quant/moments.h"
#include "lib/quant/quant_internal.h"

/* A tensor of the current part of the model, until the part is written. */
struct stored {
    struct model_slot slot;
    struct model_param *param;
    struct quant_tensor_report t;
    struct tensor_desc desc; /* as it will be stored */
    unsigned char *data;     /* NULL: not quantized yet */
    float *dense;            /* for learning: the original weights; NULL: not learned */
    const float *gram;       /* for learning: of its inputs */
};

struct sequential {
    struct pass p;
    const struct quant_calibration *c;
    struct model *m;
    uint64_t positions; /* of the data */
    struct stored *part;
    size_t n_part;
    struct dense_inputs dense; /* of the current layer, with asymmetric targets */
    struct phase_clock clock;
    uint64_t done; /* finished tensors */
    uint32_t layer;
    struct digest key; /* with a cache: digest of everything the part depends on */
    /* For learning: */
    struct grad_tape *record;  /* NULL: no learning */
    float *grams[POINT_COUNT]; /* of the current part */
    float *attended, *wanted;  /* [positions][hidden]: output of attention, and target output of a half */
};

static size_t rows_of(const struct stored *s) {
    return s->param->n / tensor_row_elems(&s->desc);
}

/* ---- progress ---------------------------------------------------------------------------------------------------- */

static void tell(struct sequential *q, const char *what) {
    if (q->c->progress) q->c->progress(q->c->progress_ctx, q->done, what);
}

static void tell_tensor(struct sequential *q, const struct stored *s) {
    q->done++;
    tell(q, s->t.name);
}

static void tell_step(void *ctx, unsigned steps) {
    struct sequential *q = ctx;
    char what[64];
    snprintf(what, sizeof what, "layer %u: learning, step %u of %u", q->layer, steps, q->c->passes);
    tell(q, what);
}

/* ---- rounding to nearest ----------------------------------------------------------------------------------------- */

static int reserve_data(struct stored *s, struct err *e) {
    s->data = mem_array(tensor_bytes(&s->desc), 1, e);
    return s->data ? 0 : err_prefix(e, "tensor '%s'", s->t.name);
}

static int round_to_nearest(struct sequential *q, struct stored *s, const float *importance, struct err *e) {
    int rc = reserve_data(s, e);
    uint64_t cols = tensor_row_elems(&s->desc);
    if (!rc && !importance && pass_is_weighed(&q->p, s->slot, s->t.to))
        rc = pass_importance_of(&q->p, s->slot, cols, &importance, e);
    return rc ? rc : pass_round(&q->p, model_host_value(s->param), rows_of(s), cols, importance, s->data, &s->t, e);
}

#define PUT_BACK (1u << 20) /* elements: whole blocks of every type */

/* Replaces the model's values by the stored ones, so that the layer runs on what a reader will get. */
static int put_back(struct sequential *q, struct stored *s, struct err *e) {
    size_t n = s->param->n, most = n < PUT_BACK ? n : PUT_BACK;
    q->p.f32.len = 0;
    if (buf_reserve(&q->p.f32, most * sizeof(float), e)) return err_prefix(e, "tensor '%s'", s->t.name);
    for (size_t at = 0; at < n; at += most) {
        if (n - at < most) most = n - at;
        tensor_to_f32(s->t.to, s->data + dtype_row_bytes(s->t.to, at), (float *)q->p.f32.data, most);
        kernel_upload(kernel_part(s->param->value, at), q->p.f32.data, most);
    }
    return 0;
}

/* The whole matrix, to be rounded from x or compared with it. */
static struct quant_rows all_rows(const struct sequential *q, const struct stored *s, const float *x) {
    return (struct quant_rows){.to = s->t.to,
                               .x = x,
                               .rows = rows_of(s),
                               .cols = tensor_row_elems(&s->desc),
                               .scratch = (float *)q->p.back.data,
                               .packed = s->data};
}

/* Sets the error of the stored values against the original weights. */
static int report_error(struct sequential *q, struct stored *s, struct err *e) {
    struct quant_sums sums = {0};
    struct quant_rows r = all_rows(q, s, s->dense ? s->dense : model_host_value(s->param));
    int rc = quant_measure_rows(&r, &sums, e);
    if (!rc) pass_put_error(&s->t, &sums);
    return rc;
}

/* Keeps the original weights for learning. */
static int keep_dense(struct stored *s, struct err *e) {
    s->dense = mem_array(s->param->n, sizeof *s->dense, e);
    if (!s->dense) return err_prefix(e, "tensor '%s'", s->t.name);
    kernel_download(s->dense, s->param->value, s->param->n);
    return 0;
}

static int quantize_matrix(struct sequential *q, const struct relation *r, const float *importance, struct stored *s,
                           struct err *e) {
    size_t rows = rows_of(s), cols = r->m->cols;
    struct second_order how = {r->gram, r->factor, q->p.o->feedback.sweeps, &q->clock};
    struct second_order_error error;
    float *w = model_host_value(s->param), *t = w;
    int rc = reserve_data(s, e);
    if (!rc && q->record) rc = keep_dense(s, e);
    phase_enter(&q->clock, QUANT_TARGETS);
    if (!rc && r->whole) {
        t = mem_alloc(rows * cols * sizeof *t, e);
        rc = t ? relation_target(r, w, rows, t, e) : e->code;
    }
    phase_enter(&q->clock, QUANT_NEAREST);
    if (!rc) {
        struct quant_rows all = all_rows(q, s, t);
        all.importance = importance;
        if (quant_round_rows(&all, NULL, e)) rc = err_prefix(e, "tensor '%s'", s->t.name);
    }
    if (!rc) rc = second_order_quantize(&how, s->t.to, t, rows, cols, s->data, &error, e);
    if (!rc) rc = report_error(q, s, e);
    if (!rc) s->t.output_error_nearest = error.before, s->t.output_error = error.after;
    if (r->factor->damp > q->p.o->feedback.damp) s->t.damp = r->factor->damp;
    if (t != w) mem_free(t);
    return rc;
}

/* ---- the matrices that read from a point ------------------------------------------------------------------------- */

/* Whether it gets a quantized type other than its present one. */
static bool gets_blocks(const struct stored *s) {
    return dtype_info(s->t.to)->is_quantized && s->t.to != s->t.from;
}

/* Whether it gets blocks and reads from the point. */
static bool reads(const struct stored *s, enum model_point point) {
    return model_role_is_matrix(s->slot.role) && model_role_info(s->slot.role)->input == point && gets_blocks(s);
}

/* The mean square of each input. False: there were none, as for an expert that no position was routed to. */
static bool put_importance(const struct sequential *q, const struct moments *m, const struct stored *s, float *out) {
    double n = (double)q->positions;
    bool any = false;
    for (size_t j = 0; j < m->cols; j++) {
        size_t diagonal = j * (m->cols + 1);
        out[j] = (float)((m->experts ? m->squares[s->slot.expert * m->cols + j]
                                     : m->half[0].gram[diagonal] + m->half[1].gram[diagonal]) /
                         n);
        any |= out[j] > 0;
    }
    return any;
}

/* importance [cols] is scratch. */
static int quantize_stored(struct sequential *q, const struct moments *m, const struct relation *r, float *importance,
                           struct stored *s, struct err *e) {
    s->t.informed = true;
    if (!put_importance(q, m, s, importance)) {
        s->t.unweighed = pass_is_weighed(&q->p, s->slot, s->t.to);
        if (s->t.unweighed && q->p.o->strict)
            return err_set(e, ERR_DATA,
                           "tensor '%s': no position of --data comes to it (without --strict it does without)",
                           s->t.name);
        importance = NULL;
    }
    int rc = m->experts || !second_order_takes(s->t.to) ? round_to_nearest(q, s, importance, e)
                                                        : quantize_matrix(q, r, importance, s, e);
    return rc ? rc : put_back(q, s, e);
}

/* Keeps the Gram matrix beyond the point, for learning. */
static void keep_gram(struct sequential *q, enum model_point point, struct relation *r) {
    if (!q->record || !r->gram) return;
    for (size_t i = 0; i < q->n_part; i++)
        if (q->part[i].dense && !q->part[i].gram) q->part[i].gram = r->gram;
    q->grams[point] = r->gram;
    r->gram = NULL;
}

static int quantize_point(struct sequential *q, enum model_point point, uint32_t layer, struct err *e) {
    struct moments m;
    struct relation r = {0};
    float *importance = NULL;
    bool any = false, feeds = false;
    for (size_t i = 0; i < q->n_part; i++) {
        any |= reads(&q->part[i], point);
        feeds |= reads(&q->part[i], point) && second_order_takes(q->part[i].t.to);
    }
    if (!any) return 0;
    const struct dense_inputs *dense = q->c->asymmetric && feeds ? &q->dense : NULL;
    int rc = moments_collect(&m, q->c->model, point, layer, dense, &q->clock, e);
    phase_enter(&q->clock, QUANT_FACTORS);
    if (!rc && !m.experts && feeds && relation_init(&r, &m, &q->p.o->feedback, e))
        rc = err_prefix(e, "layer %u, %s", layer, model_point_name(point));
    if (!rc && r.factor && q->p.o->strict && r.factor->damp > q->p.o->feedback.damp)
        rc = err_set(e, ERR_DATA,
                     "layer %u, %s: the second moments cannot be factored with --damp %g (without --strict, more "
                     "damping is used)",
                     layer, model_point_name(point), q->p.o->feedback.damp);
    if (!rc && !(importance = mem_array(m.cols, sizeof *importance, e))) rc = e->code;
    for (size_t i = 0; !rc && i < q->n_part; i++)
        if (reads(&q->part[i], point)) {
            rc = quantize_stored(q, &m, &r, importance, &q->part[i], e);
            if (!rc) tell_tensor(q, &q->part[i]);
        }
    keep_gram(q, point, &r);
    mem_free(importance);
    relation_release(&r);
    moments_release(&m);
    phase_enter(&q->clock, QUANT_PASSES);
    return rc;
}

/* ---- learning, half a layer at a time ---------------------------------------------------------------------------- */

/* x: the states entering the block in the quantized model or, for asymmetric targets, in the original. */
static struct learn_block block_of(const struct sequential *q, uint32_t layer, enum model_block block, const float *x) {
    return (struct learn_block){.model = q->m,
                                .record = q->record,
                                .scratch = q->c->scratch,
                                .in = q->c->in,
                                .n = q->c->n,
                                .layer = layer,
                                .block = block,
                                .x = x,
                                .target = q->wanted,
                                .sample = q->c->learned_positions};
}

static bool is_learned(const struct stored *s, enum model_block block) {
    enum model_point point = model_role_info(s->slot.role)->input;
    bool attends = point == POINT_ATTN_IN || point == POINT_O_IN;
    return s->gram && (block == BLOCK_LAYER || attends == (block == BLOCK_ATTENTION));
}

/* Computes the target output of a half; called before any of its weights changes. */
static int set_wanted(struct sequential *q, uint32_t layer, enum model_block block, const float *x, struct err *e) {
    bool asymmetric = q->c->asymmetric;
    if (asymmetric && block == BLOCK_ATTENTION) x = model_layerwise_states(q->c->model, STATES_DENSE);
    if (asymmetric && block != BLOCK_ATTENTION) {
        memcpy(q->wanted, model_layerwise_dense_output(q->c->model),
               q->positions * q->m->config.hidden * sizeof *q->wanted);
        return 0;
    }
    struct learn_block b = block_of(q, layer, block, x);
    return learn_run(&b, q->wanted, e);
}

static int learn_matrices(struct sequential *q, struct learn_block *b, struct err *e) {
    struct learn_error error;
    for (size_t i = 0; i < q->n_part; i++) {
        struct stored *s = &q->part[i];
        if (is_learned(s, b->block))
            b->matrices[b->n_matrices++] = (struct learn_matrix){s->param, s->gram, s->t.to, s->data};
    }
    if (!b->n_matrices) return 0;
    int rc = learn_rounding(b, q->c->passes, &error, e);
    if (rc) return err_prefix(e, "layer %u", b->layer);
    for (size_t i = 0; !rc && i < q->n_part; i++) {
        struct stored *s = &q->part[i];
        if (!is_learned(s, b->block)) continue;
        s->t.block_error_before = error.before, s->t.block_error = error.after;
        rc = report_error(q, s, e);
        if (!rc) rc = put_back(q, s, e);
    }
    return rc;
}

static int learn(struct sequential *q, uint32_t layer, enum model_block block, const float *x, struct err *e) {
    struct learn_block b = block_of(q, layer, block, x);
    b.step = tell_step, b.step_ctx = q;
    q->layer = layer;
    b.matrices = mem_array(q->n_part, sizeof *b.matrices, e);
    enum quant_phase before = phase_enter(&q->clock, QUANT_LEARNING);
    int rc = b.matrices ? learn_matrices(q, &b, e) : e->code;
    phase_enter(&q->clock, before);
    mem_free(b.matrices);
    return rc;
}

/* Learns the rounding of attention, then runs it, so that the feed-forward half starts from its output. */
static int learn_attention(struct sequential *q, uint32_t layer, const float *x, struct err *e) {
    int rc = learn(q, layer, BLOCK_ATTENTION, x, e);
    struct learn_block b = block_of(q, layer, BLOCK_ATTENTION, x);
    if (!rc) rc = learn_run(&b, q->attended, e);
    return rc ? rc : set_wanted(q, layer, BLOCK_FFN, q->attended, e);
}

static int learn_begin(struct sequential *q, struct err *e) {
    size_t hidden = q->m->config.hidden;
    int rc = grad_tape_new(&q->record, q->m->device, true, grad_precision(q->c->scratch), e);
    if (!rc && !(q->attended = mem_array(q->positions, hidden * sizeof *q->attended, e))) rc = e->code;
    if (!rc && !(q->wanted = mem_array(q->positions, hidden * sizeof *q->wanted, e))) rc = e->code;
    return rc ? err_prefix(e, "learned rounding of %llu positions", (unsigned long long)q->positions) : 0;
}

/* ---- parts of the model: before the layers, a layer, after the layers -------------------------------------------- */

static void part_release(struct sequential *q) {
    for (size_t i = 0; i < q->n_part; i++) {
        mem_free(q->part[i].data);
        mem_free(q->part[i].dense);
    }
    for (size_t i = 0; i < POINT_COUNT; i++) {
        mem_free(q->grams[i]);
        q->grams[i] = NULL;
    }
    mem_free(q->part);
    q->part = NULL;
    q->n_part = 0;
}

static int part_begin(struct sequential *q, size_t first, size_t end, struct err *e) {
    q->part = mem_array(end - first, sizeof *q->part, e);
    if (!q->part) return e->code;
    for (size_t i = first; i < end; i++) {
        struct stored *s = &q->part[q->n_part++];
        struct model_param *param = &q->m->params[i];
        *s = (struct stored){.slot = param->slot, .param = param, .desc = param->desc};
        s->t = (struct quant_tensor_report){.name = param->desc.name, .from = param->desc.dtype, .elems = param->n};
        int rc = pass_choose_type(&q->p, s->slot, tensor_row_elems(&s->desc), &s->t, e);
        s->desc.dtype = s->t.to;
        if (rc) return rc;
    }
    return 0;
}

static int part_write(struct sequential *q, struct err *e) {
    int rc = 0;
    for (size_t i = 0; !rc && i < q->n_part; i++) {
        struct stored *s = &q->part[i];
        rc = stream_write_tensor(q->p.out, &s->desc, NULL, s->data, e);
        if (!rc) rc = pass_count(&q->p, s->slot, &s->param->desc, &s->t, e);
        if (!rc && q->p.report) rc = q->p.report(q->p.ctx, &s->t, e);
    }
    return rc;
}

/* ---- the head ---------------------------------------------------------------------------------------------------- */

#define HEAD_ROWS 4096 /* rows at once; there are as many as tokens */

static bool is_fed(const struct sequential *q, const struct stored *s) {
    return s->t.to != s->t.from && pass_is_fed(&q->p, s->slot, s->t.to);
}

/* Uses the original's second moments from the statistics, since a tied embedding is written before any layer has
 * run. */
static int quantize_head(struct sequential *q, struct stored *s, struct err *e) {
    size_t rows = rows_of(s), cols = tensor_row_elems(&s->desc), row_bytes = dtype_row_bytes(s->t.to, cols);
    struct quant_rows r = all_rows(q, s, NULL);
    int rc = reserve_data(s, e);
    if (!rc) rc = feedback_begin(&q->p, s->slot, &s->t, &r.importance, e);
    for (; !rc && r.first < rows; r.first += r.rows) {
        r.rows = rows - r.first < HEAD_ROWS ? rows - r.first : HEAD_ROWS;
        r.x = model_host_value(s->param) + r.first * cols;
        r.packed = s->data + r.first * row_bytes;
        phase_enter(&q->clock, QUANT_NEAREST);
        if (quant_round_rows(&r, NULL, e)) rc = err_prefix(e, "tensor '%s'", s->t.name);
        if (!rc) rc = feedback_rows(&q->p, &r, &s->t, e);
    }
    if (!rc) rc = report_error(q, s, e);
    phase_enter(&q->clock, QUANT_NEAREST);
    return rc;
}

/* Quantizes everything that needs no data beyond statistics. */
static int round_the_rest(struct sequential *q, const enum model_point *points, size_t n, struct err *e) {
    int rc = 0;
    phase_enter(&q->clock, QUANT_NEAREST);
    for (size_t i = 0; !rc && i < q->n_part; i++) {
        struct stored *s = &q->part[i];
        bool waits = false;
        for (size_t k = 0; k < n; k++) waits |= reads(s, points[k]);
        if (waits) continue;
        rc = is_fed(q, s) ? quantize_head(q, s, e) : round_to_nearest(q, s, NULL, e);
        if (!rc) rc = put_back(q, s, e);
        if (!rc) tell_tensor(q, s);
    }
    phase_enter(&q->clock, QUANT_PASSES);
    return rc;
}

static int quantize_part(struct sequential *q, int64_t layer, struct err *e) {
    static const enum model_point points[] = {POINT_ATTN_IN, POINT_O_IN,      POINT_FFN_IN,
                                              POINT_DOWN_IN, POINT_EXPERT_IN, POINT_EXPERT_DOWN_IN};
    bool is_layer = layer >= 0 && layer < q->m->config.n_layers;
    bool learns = is_layer && q->record, halves = model_has_halves(&q->m->config);
    size_t n = is_layer ? COUNT_OF(points) : 0;
    const float *x = learns ? model_layerwise_states(q->c->model, STATES_NOW) : NULL;
    int rc = learns ? set_wanted(q, (uint32_t)layer, halves ? BLOCK_ATTENTION : BLOCK_LAYER, x, e) : 0;
    if (!rc) rc = round_the_rest(q, points, n, e);
    for (size_t i = 0; !rc && i < n; i++) {
        rc = quantize_point(q, points[i], (uint32_t)layer, e);
        if (!rc && learns && halves && points[i] == POINT_O_IN) rc = learn_attention(q, (uint32_t)layer, x, e);
    }
    if (!rc && learns) rc = learn(q, (uint32_t)layer, halves ? BLOCK_FFN : BLOCK_LAYER, halves ? q->attended : x, e);
    return rc;
}

/* ---- cache: parts quantized earlier in an identical run ---------------------------------------------------------- */

/* Digests everything before the first part. */
static int begin_key(struct sequential *q, struct err *e) {
    const struct quant_calibration *c = q->c;
    const struct quant_feedback *how = &q->p.o->feedback;
    struct digest_state *s = digest_new(e);
    if (!s) return e->code;
    int rc = model_config_digest(&q->m->config, s, e);
    uint64_t head[] = {BLOCKS_VERSION,
                       how->act_order,
                       c->asymmetric,
                       c->asymmetric ? c->dense_positions : 0,
                       how->sweeps,
                       c->passes,
                       c->passes ? c->learned_positions : 0,
                       (uint64_t)grad_precision(c->scratch),
                       q->p.vocab.lo,
                       q->p.vocab.hi};
    digest_update(s, RILL_VERSION, sizeof RILL_VERSION);
    digest_update(s, &how->damp, sizeof how->damp);
    digest_update(s, head, sizeof head);
    for (size_t i = 0; i < c->n; i++) {
        const struct model_input *in = &c->in[i];
        uint64_t sizes[] = {in->n_positions, in->n_seqs};
        digest_update(s, sizes, sizeof sizes);
        digest_update(s, in->tokens, in->n_positions * sizeof *in->tokens);
        digest_update(s, in->lengths, in->n_seqs * sizeof *in->lengths);
        if (in->types) digest_update(s, in->types, in->n_positions * sizeof *in->types);
    }
    q->key = digest_get(s);
    digest_free(s);
    return rc;
}

/* Extends the key by this part, since later parts depend on it. */
static int extend_key(struct sequential *q, struct err *e) {
    struct digest_state *s = digest_new(e);
    int rc = s ? 0 : e->code;
    if (s) digest_update(s, &q->key, sizeof q->key);
    for (size_t i = 0; !rc && i < q->n_part; i++) {
        const struct stored *t = &q->part[i];
        const float *importance = NULL;
        uint64_t head[] = {t->t.from, t->t.to, t->param->n, tensor_row_elems(&t->desc)};
        digest_update(s, head, sizeof head);
        digest_update(s, model_host_value(t->param), t->param->n * sizeof(float));
        if (pass_has_importance(&q->p) && pass_is_weighed(&q->p, t->slot, t->t.to))
            rc = pass_importance_of(&q->p, t->slot, head[3], &importance, e);
        if (importance) digest_update(s, importance, head[3] * sizeof *importance);
        struct digest moments = {0};
        if (!rc && is_fed(q, t)) rc = feedback_digest(&q->p, t->slot, &moments, e);
        digest_update(s, &moments, sizeof moments);
    }
    if (s) q->key = digest_get(s);
    digest_free(s);
    return rc;
}

static struct digest key_of(const struct sequential *q, const struct stored *s) {
    struct {
        struct digest part;
        uint64_t place;
    } of = {q->key, (uint64_t)(s - q->part)};
    return digest_bytes(&of, sizeof of);
}

/* Recalls all tensors of the part or none. */
static int recall_part(struct sequential *q, bool *found, struct err *e) {
    size_t i = 0;
    *found = true;
    for (; *found && i < q->n_part; i++) {
        struct stored *s = &q->part[i];
        if (!gets_blocks(s)) continue;
        int rc = reserve_data(s, e);
        if (!rc) rc = blocks_recall(q->p.o->cache, key_of(q, s), &s->t, s->data, tensor_bytes(&s->desc), found, e);
        if (!rc && *found) rc = feedback_check_damp(&q->p, &s->t, e);
        if (rc) return rc;
        s->t.recalled = true;
    }
    for (; !*found && i-- > 0;) {
        struct stored *s = &q->part[i];
        mem_free(s->data);
        s->data = NULL;
        s->t.recalled = false;
    }
    return 0;
}

static int store_part(struct sequential *q, struct err *e) {
    for (size_t i = 0; i < q->n_part; i++) {
        const struct stored *s = &q->part[i];
        if (gets_blocks(s) && blocks_store(q->p.o->cache, key_of(q, s), &s->t, s->data, tensor_bytes(&s->desc), e))
            return e->code;
    }
    return 0;
}

/* Continues with a part whose quantized tensors were all recalled. */
static int take_recalled(struct sequential *q, struct err *e) {
    int rc = 0;
    for (size_t i = 0; !rc && i < q->n_part; i++) {
        struct stored *s = &q->part[i];
        rc = s->data ? 0 : round_to_nearest(q, s, NULL, e);
        if (!rc) rc = put_back(q, s, e);
        if (!rc) tell_tensor(q, s);
    }
    return rc ? rc : part_write(q, e);
}

static int quantize_or_recall(struct sequential *q, int64_t layer, struct err *e) {
    bool found;
    if (!q->p.o->cache) return quantize_part(q, layer, e) ? e->code : part_write(q, e);
    int rc = extend_key(q, e);
    if (!rc) rc = recall_part(q, &found, e);
    if (!rc && found) return take_recalled(q, e);
    if (!rc) rc = quantize_part(q, layer, e);
    if (!rc) rc = store_part(q, e);
    return rc ? rc : part_write(q, e);
}

static int visit(void *ctx, struct model_layerwise *l, int64_t layer, struct err *e) {
    struct sequential *q = ctx;
    const struct model_config *c = &q->m->config;
    size_t first = layer < 0 ? 0 : model_slot_of_layer(c, (uint32_t)layer);
    size_t end = layer == c->n_layers ? model_slot_count(c) : model_slot_of_layer(c, (uint32_t)(layer + 1));
    int rc = part_begin(q, first, end, e);
    if (!rc) rc = quantize_or_recall(q, layer, e);
    if (layer + 1 == c->n_layers) model_layerwise_skip(l); /* nobody reads the last layer's output */
    part_release(q);
    feedback_end(&q->p); /* of the head, which is in one part */
    dense_inputs_forget(&q->dense);
    return rc;
}

static int see_dense(void *ctx, const struct model_seen *seen, struct err *e) {
    struct sequential *q = ctx;
    return dense_inputs_see(&q->dense, seen, e);
}

int quantize_layerwise(const struct quant_calibration *c, struct stream_writer *out, const struct quant_options *o,
                       quant_report_fn *report, void *ctx, struct quant_totals *totals, struct err *e) {
    struct model *m = model_layerwise_held(c->model);
    struct sequential q = {.c = c, .m = m};
    q.p = (struct pass){.out = out, .o = o, .report = report, .ctx = ctx, .totals = totals, .config = &m->config};
    q.p.vocab = m->vocab_digest, q.p.clock = &q.clock;
    struct model_changes how = {.dense = c->asymmetric, .visit = visit, .ctx = &q};
    how.in_order = !c->passes; /* learning changes matrices before the last observed point */
    *totals = (struct quant_totals){0};
    phase_begin(&q.clock, totals->seconds, QUANT_PASSES);
    for (size_t i = 0; i < c->n; i++) q.positions += c->in[i].n_positions;
    if (c->asymmetric) {
        dense_inputs_init(&q.dense, c->in, c->n, c->passes ? q.positions : c->dense_positions);
        how.dense_every = q.dense.every;
        how.dense_tap = see_dense;
    }
    int rc = pass_prepare(&q.p, e);
    if (!rc && c->passes && m->config.layer_kind == LAYER_TRANSFORMER) rc = learn_begin(&q, e);
    if (!rc && o->cache) rc = begin_key(&q, e);
    if (!rc) rc = pass_write_head(&q.p, m->vocab_bytes.data, m->vocab_bytes.len, m->meta, e);
    if (!rc) rc = model_layerwise_change(c->model, c->scratch, c->in, c->n, &how, e);
    feedback_end(&q.p);
    pass_finish(&q.p);
    dense_inputs_release(&q.dense);
    grad_tape_free(q.record);
    mem_free(q.attended);
    mem_free(q.wanted);
    phase_enter(&q.clock, QUANT_PASSES);
    return rc;
}
