/* A model layer by layer, each matrix with the second moments of what comes into it. */
#include <math.h>
#include <string.h>

#include "lib/quant/learn.h"
#include "lib/quant/quant_internal.h"

#define TRIES 4 /* more, with ten times the damping each */

/* A tensor of the part that is visited, until the part is written. */
struct stored {
    struct model_slot slot;
    struct model_param *param;
    struct quant_tensor_report t;
    struct tensor_desc desc; /* as it will be stored */
    unsigned char *data;     /* NULL: not yet */
    float *dense;            /* for learning: the weights as they were; NULL: nothing is learned of it */
    const float *gram;       /* ... and of its inputs */
};

struct sequential {
    struct pass p;
    const struct quant_calibration *c;
    struct model *m;
    uint64_t positions; /* of the data */
    struct stats_part held;
    struct stored *part; /* [n_part] of it */
    size_t n_part;
    /* For learning: */
    struct grad_tape *record;  /* NULL: nothing is learned */
    float *grams[POINT_COUNT]; /* of the part */
    float *attended, *wanted;  /* [positions][hidden] what attention leaves, and what should come out of a half */
};

static size_t rows_of(const struct stored *s) {
    return s->param->n / tensor_row_elems(&s->desc);
}

/* ---- rounding to nearest, and into the model ------------------------------------------------------------------------ */

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

/* The layer goes on with what a reader of the file will have. */
static int put_back(struct sequential *q, struct stored *s, struct err *e) {
    q->p.f32.len = 0;
    if (buf_reserve(&q->p.f32, s->param->n * sizeof(float), e)) return err_prefix(e, "tensor '%s'", s->t.name);
    tensor_to_f32(s->t.to, s->data, (float *)q->p.f32.data, s->param->n);
    kernel_upload(s->param->value, q->p.f32.data, s->param->n);
    return 0;
}

/* ---- moments of what comes into a point ------------------------------------------------------------------------------- */

static int add_squares(void *ctx, const struct model_seen *seen, struct err *e) {
    struct stats_moments *m = ctx;
    (void)e;
    if (seen->point != m->point) return 0;
    float *sum = m->squares + seen->expert * m->cols;
    for (size_t r = 0; r < seen->rows; r++)
        for (size_t j = 0; j < m->cols; j++) sum[j] += seen->x[r * m->cols + j] * seen->x[r * m->cols + j];
    return 0;
}

/* Of experts the squares are all that is used. They are summed in the order of positions, not in blocks as stats_moments_collect does it:
 * the last bit of a weight decides between scales that are as good as each other, and so what is in the file. */
static int watch_experts(struct stats_moments *m, const struct sequential *q, const struct stats_moments_options *at,
                         struct err *e) {
    const struct model_config *c = &q->m->config;
    *m = (struct stats_moments){.point = at->point, .n_experts = c->layers[at->layer].experts};
    m->cols = model_point_cols(c, at->point, at->layer);
    m->squares = mem_array(m->n_experts, m->cols * sizeof *m->squares, e);
    return m->squares ? model_layerwise_watch(q->c->model, STATES_NOW, NULL, add_squares, m, e) : e->code;
}

/* ---- what of the moments is noise ----------------------------------------------------------------------------------------- */

/*
 * Few positions show correlations between inputs that others do not have. How much of them holds is seen by the two halves of the data: of
 * correlations a and b in the halves, the share r = sum a b / (sum (a^2 + b^2) / 2) is of what both have; of the sum of the halves,
 * which has half of the noise, it is 2 r / (1 + r) (Spearman and Brown's formula). What is off the diagonal is multiplied by that:
 * shrinkage towards the diagonal, by which rounding to nearest weighs (the idea of Ledoit and Wolf).
 */
static double reliability(const struct stats_moments *m) {
    double both = 0, each = 0;
    size_t n = m->cols;
    for (size_t i = 0; i < n; i++)
        for (size_t j = i + 1; j < n; j++) {
            double a = m->gram[0][i * n + j], b = m->gram[1][i * n + j];
            double da = (double)m->gram[0][i * (n + 1)] * m->gram[0][j * (n + 1)];
            double db = (double)m->gram[1][i * (n + 1)] * m->gram[1][j * (n + 1)];
            if (!(da > 0 && db > 0)) continue;
            both += a * b / sqrt(da * db);
            each += (a * a / da + b * b / db) / 2;
        }
    return each > 0 && both > 0 ? both / each : 0;
}

/* to = what is off the diagonal of a + b (b may be NULL) times keep. */
static void shrink(float *to, const float *a, const float *b, double keep, size_t n) {
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) {
            float sum = a[i * n + j] + (b ? b[i * n + j] : 0);
            to[i * n + j] = i == j ? sum : (float)(keep * sum);
        }
}

/* ---- the matrices of a point ------------------------------------------------------------------------------------------- */

/* All that they share. */
struct shared {
    struct sequential *q;
    struct stats_moments m; /* y: what comes in now; x: what came in when nothing was quantized */
    float *gram;            /* [cols][cols] of all data, shrunk */
    struct obs_factor *factor;
    struct obs_factor *plain, *half; /* for obs_solve: of the gram, and of the first half's; NULL: not wanted */
    float *importance;               /* [cols] */
};

/* t = W shift H^-1, the least squares solution of t y = W (x - y). b [rows][cols] is scratch. */
static int solve_shift(const struct shared *h, const struct obs_factor *f, const float *w, size_t rows,
                       const float *shift, float *b, float *t, struct err *e) {
    size_t n = h->m.cols;
    kernel_matmul_nn(rows, n, n, kernel_f32(w), kernel_f32(shift), 0, kernel_f32(b));
    return obs_solve(f, b, t, rows, e);
}

/* How much of the solution of the first half is right for the second: the best multiple of it there, within [0, 1]. */
static int share_that_holds(const struct shared *h, const float *w, size_t rows, float *b, float *t, double *share,
                            struct err *e) {
    size_t n = h->m.cols;
    int rc = solve_shift(h, h->half, w, rows, h->m.shift[0], b, t, e);
    if (rc) return rc;
    kernel_matmul_nn(rows, n, n, kernel_f32(w), kernel_f32(h->m.shift[1]), 0, kernel_f32(b));
    double right = kernel_dot(kernel_f32(t), kernel_f32(b), rows * n);
    kernel_matmul_nn(rows, n, n, kernel_f32(t), kernel_f32(h->m.gram[1]), 0, kernel_f32(b));
    double square = kernel_dot(kernel_f32(t), kernel_f32(b), rows * n);
    *share = !(right > 0) || !(square > 0) ? 0 : right < square ? right / square : 1;
    return 0;
}

/* t = W + share W shift H^-1, the shift of all data */
static int shift_target(const struct shared *h, const float *w, size_t rows, float *t, struct err *e) {
    size_t n = h->m.cols;
    float *b = mem_array(rows, n * sizeof *b, e);
    float *sum = b ? mem_array(n, n * sizeof *sum, e) : NULL;
    double share = 0;
    int rc = sum ? share_that_holds(h, w, rows, b, t, &share, e) : e->code;
    for (size_t i = 0; !rc && i < n * n; i++) sum[i] = h->m.shift[0][i] + h->m.shift[1][i];
    if (!rc) rc = solve_shift(h, h->plain, w, rows, sum, b, t, e);
    for (size_t i = 0; !rc && i < rows * n; i++) t[i] = w[i] + (float)share * t[i];
    mem_free(b);
    mem_free(sum);
    return rc;
}

/* Of what is stored, against the weights as they were. */
static int report_error(struct sequential *q, struct stored *s, struct err *e) {
    size_t n = s->param->n;
    const float *w = s->dense ? s->dense : model_host_value(s->param);
    double error = 0;
    q->p.f32.len = 0;
    if (buf_reserve(&q->p.f32, n * sizeof(float), e)) return e->code;
    float *back = (float *)q->p.f32.data;
    tensor_to_f32(s->t.to, s->data, back, n);
    for (size_t i = 0; i < n; i++) error += ((double)back[i] - w[i]) * ((double)back[i] - w[i]);
    pass_put_error(&s->t, error, kernel_sum_squares(kernel_f32(w), n), n);
    return 0;
}

/* What learning needs beside the codes. */
static int keep_dense(struct stored *s, struct err *e) {
    s->dense = mem_array(s->param->n, sizeof *s->dense, e);
    if (!s->dense) return err_prefix(e, "tensor '%s'", s->t.name);
    kernel_download(s->dense, s->param->value, s->param->n);
    return 0;
}

static int quantize_matrix(const struct shared *h, struct stored *s, struct err *e) {
    struct sequential *q = h->q;
    size_t rows = rows_of(s), cols = h->m.cols;
    struct second_order how = {h->gram, h->factor, q->c->sweeps};
    struct second_order_error error;
    float *w = model_host_value(s->param), *t = w;
    int rc = reserve_data(s, e);
    if (!rc && q->record) rc = keep_dense(s, e);
    if (!rc && h->plain) {
        t = mem_array(rows, cols * sizeof *t, e);
        rc = t ? shift_target(h, w, rows, t, e) : e->code;
    }
    if (!rc) rc = pass_round(&q->p, t, rows, cols, h->importance, s->data, &s->t, e);
    if (!rc) rc = second_order_quantize(&how, s->t.to, t, rows, cols, s->data, &error, e);
    if (!rc) rc = report_error(q, s, e);
    if (!rc) s->t.output_error_nearest = error.before, s->t.output_error = error.after;
    if (t != w) mem_free(t);
    return rc;
}

static int factor(struct shared *h, struct err *e) {
    const struct quant_calibration *c = h->q->c;
    const struct stats_moments *m = &h->m;
    struct obs_options o = {.damp = c->damp, .tries = TRIES, .act_order = c->act_order};
    double r = reliability(m);
    if (!(h->gram = mem_array(m->cols, m->cols * sizeof *h->gram, e))) return e->code;
    shrink(h->gram, m->gram[0], NULL, r, m->cols);
    int rc = 0;
    if (m->shift[0]) rc = obs_factor_new(&h->half, h->gram, m->cols, &(struct obs_options){c->damp, TRIES, false}, e);
    shrink(h->gram, m->gram[0], m->gram[1], 2 * r / (1 + r), m->cols);
    if (!rc) rc = obs_factor_new(&h->factor, h->gram, m->cols, &o, e);
    o.act_order = false;
    return rc || !m->shift[0] ? rc : obs_factor_new(&h->plain, h->gram, m->cols, &o, e);
}

/* Is it a matrix that reads from the point, and gets a quantized type? */
static bool reads(const struct stored *s, enum model_point point) {
    return model_role_is_matrix(s->slot.role) && model_role_info(s->slot.role)->input == point &&
           dtype_info(s->t.to)->is_quantized && s->t.to != s->t.from;
}

static int quantize_stored(struct shared *h, struct stored *s, struct err *e) {
    const struct stats_moments *m = &h->m;
    bool of_expert = m->n_experts != 0;
    double n = (double)h->q->positions;
    for (size_t j = 0; j < m->cols; j++)
        h->importance[j] = (float)((of_expert ? m->squares[s->slot.expert * m->cols + j]
                                              : m->gram[0][j * (m->cols + 1)] + m->gram[1][j * (m->cols + 1)]) /
                                   n);
    s->t.informed = true;
    int rc = of_expert || !second_order_takes(s->t.to) ? round_to_nearest(h->q, s, h->importance, e)
                                                       : quantize_matrix(h, s, e);
    return rc ? rc : put_back(h->q, s, e);
}

static int quantize_point(struct sequential *q, enum model_point point, uint32_t layer, struct err *e) {
    bool of_experts = point == POINT_EXPERT_IN || point == POINT_EXPERT_DOWN_IN, any = false, feeds = false;
    struct stats_moments_options at = {.point = point,
                                       .layer = layer,
                                       .gram = true,
                                       .shift = q->c->asymmetric,
                                       .halves = true,
                                       .positions = q->positions,
                                       .part = &q->held};
    struct shared h = {.q = q};
    for (size_t i = 0; i < q->n_part; i++) {
        any |= reads(&q->part[i], point);
        feeds |= reads(&q->part[i], point) && second_order_takes(q->part[i].t.to);
    }
    if (!any) return 0;
    int rc = of_experts ? watch_experts(&h.m, q, &at, e) : stats_moments_collect(&h.m, q->c->model, &at, e);
    if (!rc && !of_experts && feeds && factor(&h, e))
        rc = err_prefix(e, "layer %u, %s", layer, model_point_name(point));
    if (!rc && !(h.importance = mem_array(h.m.cols, sizeof *h.importance, e))) rc = e->code;
    for (size_t i = 0; !rc && i < q->n_part; i++)
        if (reads(&q->part[i], point)) rc = quantize_stored(&h, &q->part[i], e);
    obs_factor_free(h.factor);
    obs_factor_free(h.plain);
    obs_factor_free(h.half);
    for (size_t i = 0; q->record && i < q->n_part; i++)
        if (q->part[i].dense && !q->part[i].gram) q->part[i].gram = h.gram;
    if (q->record && h.gram)
        q->grams[point] = h.gram;
    else
        mem_free(h.gram);
    mem_free(h.importance);
    stats_moments_release(&h.m);
    return rc;
}

/* ---- learning, half a layer at a time -------------------------------------------------------------------------------------- */

/* The states that come into a layer are of what is there already, or with asymmetric targets of the original. */
static struct learn_block block_of(const struct sequential *q, uint32_t layer, enum model_block block, const float *x) {
    return (struct learn_block){.model = q->m,
                                .record = q->record,
                                .scratch = q->c->scratch,
                                .in = q->c->in,
                                .n = q->c->n,
                                .layer = layer,
                                .block = block,
                                .x = x,
                                .target = q->wanted};
}

static bool is_learned(const struct stored *s, enum model_block block) {
    enum model_point point = model_role_info(s->slot.role)->input;
    bool attends = point == POINT_ATTN_IN || point == POINT_O_IN;
    return s->gram && (block == BLOCK_LAYER || attends == (block == BLOCK_ATTENTION));
}

/* Before any weight of the half has changed: what should come out of it. */
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
    b.matrices = mem_array(q->n_part, sizeof *b.matrices, e);
    int rc = b.matrices ? learn_matrices(q, &b, e) : e->code;
    mem_free(b.matrices);
    return rc;
}

/* After attention: its rounding is learned, and the other half begins from what it leaves. */
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

/* ---- a part of the model: what is before the layers, a layer, what is after ---------------------------------------------- */

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
    stats_part_release(&q->held);
    q->part = NULL;
    q->n_part = 0;
}

static int part_begin(struct sequential *q, struct model_layerwise *l, int64_t layer, struct err *e) {
    bool keep = layer >= 0 && layer < q->m->config.n_layers && q->c->asymmetric;
    if (stats_part_begin(&q->held, l, layer, e)) return e->code;
    q->part = mem_array(q->held.end - q->held.first, sizeof *q->part, e);
    if (!q->part) return e->code;
    for (size_t i = q->held.first; i < q->held.end; i++) {
        struct stored *s = &q->part[q->n_part++];
        struct model_param *param = &q->m->params[i];
        *s = (struct stored){.slot = param->slot, .param = param, .desc = param->desc};
        s->t = (struct quant_tensor_report){.name = param->desc.name, .from = param->desc.dtype, .elems = param->n};
        int rc = pass_choose_type(&q->p, s->slot, tensor_row_elems(&s->desc), &s->t, e);
        s->desc.dtype = s->t.to;
        if (!rc && keep && model_role_is_matrix(s->slot.role)) rc = stats_part_keep(&q->held, i, e);
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

static int quantize_part(struct sequential *q, int64_t layer, struct err *e) {
    static const enum model_point points[] = {POINT_ATTN_IN, POINT_O_IN,      POINT_FFN_IN,
                                              POINT_DOWN_IN, POINT_EXPERT_IN, POINT_EXPERT_DOWN_IN};
    bool is_layer = layer >= 0 && layer < q->m->config.n_layers;
    bool learns = is_layer && q->record, halves = model_has_halves(&q->m->config);
    const float *x = learns ? model_layerwise_states(q->c->model, STATES_NOW) : NULL;
    int rc = learns ? set_wanted(q, (uint32_t)layer, halves ? BLOCK_ATTENTION : BLOCK_LAYER, x, e) : 0;
    for (size_t i = 0; !rc && is_layer && i < COUNT_OF(points); i++) {
        rc = quantize_point(q, points[i], (uint32_t)layer, e);
        if (!rc && learns && halves && points[i] == POINT_O_IN) rc = learn_attention(q, (uint32_t)layer, x, e);
    }
    if (!rc && learns) rc = learn(q, (uint32_t)layer, halves ? BLOCK_FFN : BLOCK_LAYER, halves ? q->attended : x, e);
    for (size_t i = 0; !rc && i < q->n_part; i++) {
        struct stored *s = &q->part[i];
        if (s->data) continue;
        rc = round_to_nearest(q, s, NULL, e);
        if (!rc) rc = put_back(q, s, e);
    }
    return rc ? rc : part_write(q, e);
}

static int visit(void *ctx, struct model_layerwise *l, int64_t layer, struct err *e) {
    struct sequential *q = ctx;
    int rc = part_begin(q, l, layer, e);
    if (!rc) rc = quantize_part(q, layer, e);
    part_release(q);
    return rc;
}

int quantize_layerwise(const struct quant_calibration *c, struct stream_writer *out, const struct quant_options *o,
                       quant_report_fn *report, void *ctx, struct quant_totals *totals, struct err *e) {
    struct model *m = model_layerwise_held(c->model);
    struct sequential q = {.c = c, .m = m};
    q.p = (struct pass){.out = out, .o = o, .report = report, .ctx = ctx, .totals = totals, .config = &m->config};
    struct model_changes how = {c->asymmetric, visit, &q};
    *totals = (struct quant_totals){0};
    for (size_t i = 0; i < c->n; i++) q.positions += c->in[i].n_positions;
    int rc = pass_prepare(&q.p, e);
    if (!rc && c->passes && m->config.layer_kind == LAYER_TRANSFORMER) rc = learn_begin(&q, e);
    if (!rc) rc = model_head_write(out, &m->config, m->vocab_bytes.data, m->vocab_bytes.len, m->meta, e);
    if (!rc) rc = model_layerwise_change(c->model, c->scratch, c->in, c->n, &how, e);
    pass_finish(&q.p);
    grad_tape_free(q.record);
    mem_free(q.attended);
    mem_free(q.wanted);
    return rc;
}
