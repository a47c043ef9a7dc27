/* A model layer by layer, each matrix with the second moments of what comes into it. */
#include <math.h>
#include <string.h>

#include "lib/quant/quant_internal.h"
#include "lib/quant/second_order.h"

#define TRIES 4 /* more, with ten times the damping each */

/* A tensor of the part that is visited, until the part is written. */
struct stored {
    struct model_slot slot;
    struct model_param *param;
    struct quant_tensor_report t;
    struct tensor_desc desc;   /* as it will be stored */
    unsigned char *data;       /* NULL: not yet */
    struct kernel_array dense; /* the weights as they were; no data: not kept */
};

struct sequential {
    struct pass p;
    const struct quant_calibration *c;
    struct model *m;
    uint64_t positions; /* of the data */
    struct stored *part;
    size_t n_part;
    struct phase_clock clock;
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

/* Sums over positions. y: what comes in now; x: what came in when nothing was quantized. */
struct moments {
    enum model_point point;
    size_t cols, experts;
    float *gram[2];  /* [cols][cols] sum y y^T, of two halves of the data. Of experts: */
    float *squares;  /* [experts][cols] sum y^2 */
    float *shift[2]; /* [cols][cols] sum (x - y) y^T of the halves; NULL: not wanted */
    size_t passes;
    float *dense, *diff; /* [positions][cols] x; [the rows of a pass][cols]; NULL: not wanted */
    size_t at, diff_rows;
    bool is_dense; /* x comes in */
    struct phase_clock *clock;
};

static void moments_release(struct moments *m) {
    for (int i = 0; i < 2; i++) {
        mem_free(m->gram[i]);
        mem_free(m->shift[i]);
    }
    mem_free(m->squares);
    mem_free(m->dense);
    mem_free(m->diff);
}

static float *zeros(size_t n, struct err *e) {
    float *x = mem_array(n, n * sizeof *x, e);
    if (x) memset(x, 0, n * n * sizeof *x);
    return x;
}

static int moments_init(struct moments *m, const struct sequential *q, struct phase_clock *clock,
                        enum model_point point, uint32_t layer, struct err *e) {
    bool per_expert = point == POINT_EXPERT_IN || point == POINT_EXPERT_DOWN_IN;
    *m = (struct moments){.point = point, .cols = model_point_cols(&q->m->config, point, layer), .clock = clock};
    if (per_expert) {
        m->experts = q->m->config.layers[layer].experts;
        m->squares = mem_array(m->experts, m->cols * sizeof *m->squares, e);
        if (m->squares) memset(m->squares, 0, m->experts * m->cols * sizeof *m->squares);
        return m->squares ? 0 : e->code;
    }
    for (int i = 0; i < 2; i++) {
        if (!(m->gram[i] = zeros(m->cols, e))) return e->code;
        if (q->c->asymmetric && !(m->shift[i] = zeros(m->cols, e))) return e->code;
    }
    if (q->c->asymmetric) m->dense = mem_array(q->positions, m->cols * sizeof *m->dense, e);
    return q->c->asymmetric && !m->dense ? e->code : 0;
}

static int take_difference(struct moments *m, const struct model_seen *seen, struct err *e) {
    size_t n = seen->rows * seen->cols;
    if (m->diff_rows < seen->rows) {
        mem_free(m->diff);
        m->diff = mem_array(seen->rows, seen->cols * sizeof *m->diff, e);
        if (!m->diff) return e->code;
        m->diff_rows = seen->rows;
    }
    for (size_t i = 0; i < n; i++) m->diff[i] = m->dense[m->at * seen->cols + i] - seen->x[i];
    return 0;
}

/* Rows [first, first + rows) of what is seen into a half. */
static void add_rows(struct moments *m, const struct model_seen *seen, int half, size_t first, size_t rows) {
    size_t n = m->cols;
    struct kernel_array y = kernel_f32(seen->x + first * n);
    kernel_matmul_tn(n, n, rows, y, y, 1, kernel_f32(m->gram[half]));
    if (m->dense) kernel_matmul_tn(n, n, rows, kernel_f32(m->diff + first * n), y, 1, kernel_f32(m->shift[half]));
}

static int see(void *ctx, const struct model_seen *seen, struct err *e) {
    struct moments *m = ctx;
    if (seen->point != m->point) return 0;
    enum quant_phase before = phase_enter(m->clock, QUANT_MOMENTS);
    if (m->experts) {
        float *sum = m->squares + seen->expert * m->cols;
        for (size_t r = 0; r < seen->rows; r++)
            for (size_t j = 0; j < m->cols; j++) sum[j] += seen->x[r * m->cols + j] * seen->x[r * m->cols + j];
    } else if (m->is_dense)
        memcpy(m->dense + m->at * m->cols, seen->x, seen->rows * m->cols * sizeof *seen->x);
    else {
        size_t middle = seen->rows / 2;
        int half = m->passes++ % 2; /* in turn, for where a sequence begins is unlike the rest */
        if (m->dense && take_difference(m, seen, e)) return e->code;
        add_rows(m, seen, half, 0, middle);
        add_rows(m, seen, !half, middle, seen->rows - middle);
    }
    m->at += seen->rows;
    phase_enter(m->clock, before);
    return 0;
}

/* The weights as they were take the place of those that are there, or back. */
static void swap_dense(struct sequential *q) {
    for (size_t i = 0; i < q->n_part; i++) {
        struct stored *s = &q->part[i];
        if (!kernel_has_data(s->dense)) continue;
        struct kernel_array now = s->param->value;
        s->param->value = s->dense;
        s->dense = now;
    }
}

static int watch(struct sequential *q, struct moments *m, struct err *e) {
    const enum model_point *last = m->experts ? NULL : &m->point;
    int rc = 0;
    if (m->dense) {
        m->is_dense = true;
        swap_dense(q);
        rc = model_layerwise_watch(q->c->model, STATES_DENSE, last, see, m, e);
        swap_dense(q);
        m->is_dense = false;
        m->at = 0;
    }
    return rc ? rc : model_layerwise_watch(q->c->model, STATES_NOW, last, see, m, e);
}

/* ---- what of the moments is noise ----------------------------------------------------------------------------------------- */

/*
 * Few positions show correlations between inputs that others do not have. How much of them holds is seen by the two halves of the data: of
 * correlations a and b in the halves, the share r = sum a b / (sum (a^2 + b^2) / 2) is of what both have; of the sum of the halves,
 * which has half of the noise, it is 2 r / (1 + r) (Spearman and Brown's formula). What is off the diagonal is multiplied by that:
 * shrinkage towards the diagonal, by which rounding to nearest weighs (the idea of Ledoit and Wolf).
 */
static double reliability(const struct moments *m) {
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
    struct moments *m;
    float *gram; /* [cols][cols] of all data, shrunk */
    struct obs_factor *factor;
    struct obs_factor *plain, *half; /* for obs_solve: of the gram, and of the first half's; NULL: not wanted */
    float *importance;               /* [cols] */
};

/* t = W shift H^-1, the least squares solution of t y = W (x - y). b [rows][cols] is scratch. */
static int solve_shift(const struct shared *h, const struct obs_factor *f, const float *w, size_t rows,
                       const float *shift, float *b, float *t, struct err *e) {
    size_t n = h->m->cols;
    kernel_matmul_nn(rows, n, n, kernel_f32(w), kernel_f32(shift), 0, kernel_f32(b));
    return obs_solve(f, b, t, rows, e);
}

/* How much of the solution of the first half is right for the second: the best multiple of it there, within [0, 1]. */
static int share_that_holds(const struct shared *h, const float *w, size_t rows, float *b, float *t, double *share,
                            struct err *e) {
    size_t n = h->m->cols;
    int rc = solve_shift(h, h->half, w, rows, h->m->shift[0], b, t, e);
    if (rc) return rc;
    kernel_matmul_nn(rows, n, n, kernel_f32(w), kernel_f32(h->m->shift[1]), 0, kernel_f32(b));
    double right = kernel_dot(kernel_f32(t), kernel_f32(b), rows * n);
    kernel_matmul_nn(rows, n, n, kernel_f32(t), kernel_f32(h->m->gram[1]), 0, kernel_f32(b));
    double square = kernel_dot(kernel_f32(t), kernel_f32(b), rows * n);
    *share = !(right > 0) || !(square > 0) ? 0 : right < square ? right / square : 1;
    return 0;
}

/* t = W + share W shift H^-1, the shift of all data */
static int shift_target(const struct shared *h, const float *w, size_t rows, float *t, struct err *e) {
    size_t n = h->m->cols;
    float *b = mem_array(rows, n * sizeof *b, e);
    float *sum = b ? mem_array(n, n * sizeof *sum, e) : NULL;
    double share = 0;
    int rc = sum ? share_that_holds(h, w, rows, b, t, &share, e) : e->code;
    for (size_t i = 0; !rc && i < n * n; i++) sum[i] = h->m->shift[0][i] + h->m->shift[1][i];
    if (!rc) rc = solve_shift(h, h->plain, w, rows, sum, b, t, e);
    for (size_t i = 0; !rc && i < rows * n; i++) t[i] = w[i] + (float)share * t[i];
    mem_free(b);
    mem_free(sum);
    return rc;
}

/* Of what is stored, against the weights as they were. */
static int report_error(struct sequential *q, struct stored *s, struct err *e) {
    size_t n = s->param->n;
    const float *w = model_host_value(s->param);
    double error = 0;
    q->p.f32.len = 0;
    if (buf_reserve(&q->p.f32, n * sizeof(float), e)) return e->code;
    float *back = (float *)q->p.f32.data;
    tensor_to_f32(s->t.to, s->data, back, n);
    for (size_t i = 0; i < n; i++) error += ((double)back[i] - w[i]) * ((double)back[i] - w[i]);
    pass_put_error(&s->t, error, kernel_sum_squares(s->param->value, n), n);
    return 0;
}

static int quantize_matrix(const struct shared *h, struct stored *s, struct err *e) {
    struct sequential *q = h->q;
    size_t rows = rows_of(s), cols = h->m->cols;
    struct second_order how = {h->gram, h->factor, q->c->sweeps, &q->clock};
    struct second_order_error error;
    float *w = model_host_value(s->param), *t = w;
    int rc = reserve_data(s, e);
    phase_enter(&q->clock, QUANT_TARGETS);
    if (!rc && h->plain) {
        t = mem_array(rows, cols * sizeof *t, e);
        rc = t ? shift_target(h, w, rows, t, e) : e->code;
    }
    phase_enter(&q->clock, QUANT_NEAREST);
    if (!rc) rc = pass_round(&q->p, t, rows, cols, h->importance, s->data, &s->t, e);
    if (!rc) rc = second_order_quantize(&how, s->t.to, t, rows, cols, s->data, &error, e);
    if (!rc) rc = report_error(q, s, e);
    if (!rc) s->t.output_error_nearest = error.before, s->t.output_error = error.after;
    if (t != w) mem_free(t);
    return rc;
}

static int factor(struct shared *h, struct err *e) {
    const struct quant_calibration *c = h->q->c;
    const struct moments *m = h->m;
    struct obs_options o = {.damp = c->damp, .tries = TRIES, .act_order = c->act_order};
    double r = reliability(m);
    if (!(h->gram = zeros(m->cols, e))) return e->code;
    shrink(h->gram, m->gram[0], NULL, r, m->cols);
    int rc = 0;
    if (m->dense) rc = obs_factor_new(&h->half, h->gram, m->cols, &(struct obs_options){c->damp, TRIES, false}, e);
    shrink(h->gram, m->gram[0], m->gram[1], 2 * r / (1 + r), m->cols);
    if (!rc) rc = obs_factor_new(&h->factor, h->gram, m->cols, &o, e);
    o.act_order = false;
    return rc || !m->dense ? rc : obs_factor_new(&h->plain, h->gram, m->cols, &o, e);
}

/* Is it a matrix that reads from the point, and gets a quantized type? */
static bool reads(const struct stored *s, enum model_point point) {
    return model_role_is_matrix(s->slot.role) && model_role_info(s->slot.role)->input == point &&
           dtype_info(s->t.to)->is_quantized && s->t.to != s->t.from;
}

static int quantize_stored(struct shared *h, struct stored *s, struct err *e) {
    struct moments *m = h->m;
    bool of_expert = m->experts != 0;
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
    struct moments m;
    struct shared h = {.q = q, .m = &m};
    bool any = false, feeds = false;
    for (size_t i = 0; i < q->n_part; i++) {
        any |= reads(&q->part[i], point);
        feeds |= reads(&q->part[i], point) && second_order_takes(q->part[i].t.to);
    }
    if (!any) return 0;
    int rc = moments_init(&m, q, &q->clock, point, layer, e);
    if (!rc) rc = watch(q, &m, e);
    phase_enter(&q->clock, QUANT_FACTORS);
    if (!rc && !m.experts && feeds && factor(&h, e)) rc = err_prefix(e, "layer %u, %s", layer, model_point_name(point));
    if (!rc && !(h.importance = mem_array(m.cols, sizeof *h.importance, e))) rc = e->code;
    for (size_t i = 0; !rc && i < q->n_part; i++)
        if (reads(&q->part[i], point)) rc = quantize_stored(&h, &q->part[i], e);
    obs_factor_free(h.factor);
    obs_factor_free(h.plain);
    obs_factor_free(h.half);
    mem_free(h.gram);
    mem_free(h.importance);
    moments_release(&m);
    phase_enter(&q->clock, QUANT_PASSES);
    return rc;
}

/* ---- a part of the model: what is before the layers, a layer, what is after ---------------------------------------------- */

static void part_release(struct sequential *q) {
    for (size_t i = 0; i < q->n_part; i++) {
        mem_free(q->part[i].data);
        kernel_free(q->m->device, q->part[i].dense);
    }
    mem_free(q->part);
    q->part = NULL;
    q->n_part = 0;
}

static int keep_dense(struct sequential *q, struct stored *s, struct err *e) {
    s->dense = kernel_alloc(q->m->device, DT_F32, s->param->n, e);
    if (!kernel_has_data(s->dense)) return err_prefix(e, "tensor '%s'", s->t.name);
    kernel_convert(s->dense, s->param->value, s->param->n);
    return 0;
}

static int part_begin(struct sequential *q, size_t first, size_t end, bool keep, struct err *e) {
    q->part = mem_array(end - first, sizeof *q->part, e);
    if (!q->part) return e->code;
    for (size_t i = first; i < end; i++) {
        struct stored *s = &q->part[q->n_part++];
        struct model_param *param = &q->m->params[i];
        *s = (struct stored){.slot = param->slot, .param = param, .desc = param->desc};
        s->t = (struct quant_tensor_report){.name = param->desc.name, .from = param->desc.dtype, .elems = param->n};
        int rc = pass_choose_type(&q->p, s->slot, tensor_row_elems(&s->desc), &s->t, e);
        s->desc.dtype = s->t.to;
        if (!rc && keep && model_role_is_matrix(s->slot.role)) rc = keep_dense(q, s, e);
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
    int rc = 0;
    for (size_t i = 0; !rc && is_layer && i < COUNT_OF(points); i++)
        rc = quantize_point(q, points[i], (uint32_t)layer, e);
    for (size_t i = 0; !rc && i < q->n_part; i++) {
        struct stored *s = &q->part[i];
        if (s->data) continue;
        phase_enter(&q->clock, QUANT_NEAREST);
        rc = round_to_nearest(q, s, NULL, e);
        phase_enter(&q->clock, QUANT_PASSES);
        if (!rc) rc = put_back(q, s, e);
    }
    return rc ? rc : part_write(q, e);
}

static int visit(void *ctx, struct model_layerwise *l, int64_t layer, struct err *e) {
    struct sequential *q = ctx;
    const struct model_config *c = &q->m->config;
    bool is_layer = layer >= 0 && layer < c->n_layers;
    size_t first = layer < 0 ? 0 : model_slot_of_layer(c, (uint32_t)layer);
    size_t end = layer == c->n_layers ? model_slot_count(c) : model_slot_of_layer(c, (uint32_t)(layer + 1));
    (void)l;
    int rc = part_begin(q, first, end, is_layer && q->c->asymmetric, e);
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
    phase_begin(&q.clock, totals->seconds, QUANT_PASSES);
    for (size_t i = 0; i < c->n; i++) q.positions += c->in[i].n_positions;
    int rc = pass_prepare(&q.p, e);
    if (!rc) rc = model_head_write(out, &m->config, m->vocab_bytes.data, m->vocab_bytes.len, m->meta, e);
    if (!rc) rc = model_layerwise_change(c->model, c->scratch, c->in, c->n, &how, e);
    pass_finish(&q.p);
    phase_enter(&q.clock, QUANT_PASSES);
    return rc;
}
