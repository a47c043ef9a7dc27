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
    struct moments *seen; /* while a point is watched */
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
    float *gram;         /* [cols][cols] sum y y^T; of experts: */
    float *squares;      /* [experts][cols] sum y^2 */
    float *shift;        /* [cols][cols] sum (x - y) y^T; NULL: not wanted */
    float *dense, *diff; /* [positions][cols] x; [the rows of a pass][cols]; NULL: not wanted */
    size_t at, diff_rows;
    bool is_dense; /* x comes in */
};

static void moments_release(struct moments *m) {
    mem_free(m->gram);
    mem_free(m->squares);
    mem_free(m->shift);
    mem_free(m->dense);
    mem_free(m->diff);
}

static int moments_init(struct moments *m, const struct sequential *q, enum model_point point, uint32_t layer,
                        struct err *e) {
    bool per_expert = point == POINT_EXPERT_IN || point == POINT_EXPERT_DOWN_IN;
    *m = (struct moments){.point = point, .cols = model_point_cols(&q->m->config, point, layer)};
    if (per_expert) {
        m->experts = q->m->config.layers[layer].experts;
        m->squares = mem_array(m->experts, m->cols * sizeof *m->squares, e);
        if (m->squares) memset(m->squares, 0, m->experts * m->cols * sizeof *m->squares);
        return m->squares ? 0 : e->code;
    }
    m->gram = mem_array(m->cols, m->cols * sizeof *m->gram, e);
    if (!m->gram) return e->code;
    memset(m->gram, 0, m->cols * m->cols * sizeof *m->gram);
    if (!q->c->asymmetric) return 0;
    m->shift = mem_array(m->cols, m->cols * sizeof *m->shift, e);
    m->dense = m->shift ? mem_array(q->positions, m->cols * sizeof *m->dense, e) : NULL;
    if (!m->dense) return e->code;
    memset(m->shift, 0, m->cols * m->cols * sizeof *m->shift);
    return 0;
}

static int add_shift(struct moments *m, const struct model_seen *seen, struct err *e) {
    size_t n = seen->rows * seen->cols;
    if (m->diff_rows < seen->rows) {
        mem_free(m->diff);
        m->diff = mem_array(seen->rows, seen->cols * sizeof *m->diff, e);
        if (!m->diff) return e->code;
        m->diff_rows = seen->rows;
    }
    for (size_t i = 0; i < n; i++) m->diff[i] = m->dense[m->at * seen->cols + i] - seen->x[i];
    kernel_matmul_tn(seen->cols, seen->cols, seen->rows, kernel_f32(m->diff), kernel_f32(seen->x), 1,
                     kernel_f32(m->shift));
    return 0;
}

static int see(void *ctx, const struct model_seen *seen, struct err *e) {
    struct moments *m = ctx;
    int rc = 0;
    if (seen->point != m->point) return 0;
    if (m->experts) {
        float *sum = m->squares + seen->expert * m->cols;
        for (size_t r = 0; r < seen->rows; r++)
            for (size_t j = 0; j < m->cols; j++) sum[j] += seen->x[r * m->cols + j] * seen->x[r * m->cols + j];
    } else if (m->is_dense)
        memcpy(m->dense + m->at * m->cols, seen->x, seen->rows * m->cols * sizeof *seen->x);
    else {
        kernel_matmul_tn(m->cols, m->cols, seen->rows, kernel_f32(seen->x), kernel_f32(seen->x), 1,
                         kernel_f32(m->gram));
        if (m->shift) rc = add_shift(m, seen, e);
    }
    m->at += seen->rows;
    return rc;
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

/* ---- the matrices of a point ------------------------------------------------------------------------------------------- */

/* All that they share. */
struct shared {
    struct sequential *q;
    struct moments *m;
    struct obs_factor *factor, *plain; /* plain: in the order of the inputs, for obs_solve; NULL: not wanted */
    float *importance;                 /* [cols] */
};

/* t = W + W shift H^-1: the least squares solution of t y = W x, drawn to W by the damping. */
static int shift_target(const struct shared *h, const float *w, size_t rows, float *t, struct err *e) {
    size_t n = h->m->cols;
    float *b = mem_array(rows, n * sizeof *b, e);
    if (!b) return e->code;
    kernel_matmul_nn(rows, n, n, kernel_f32(w), kernel_f32(h->m->shift), 0, kernel_f32(b));
    int rc = obs_solve(h->plain, b, t, rows, e);
    for (size_t i = 0; !rc && i < rows * n; i++) t[i] += w[i];
    mem_free(b);
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
    struct second_order how = {h->m->gram, h->factor, q->c->sweeps};
    struct second_order_error error;
    float *w = model_host_value(s->param), *t = w;
    int rc = reserve_data(s, e);
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
    struct obs_options o = {.damp = c->damp, .tries = TRIES, .act_order = c->act_order};
    int rc = obs_factor_new(&h->factor, h->m->gram, h->m->cols, &o, e);
    if (rc || !h->m->shift) return rc;
    o.act_order = false;
    return obs_factor_new(&h->plain, h->m->gram, h->m->cols, &o, e);
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
        h->importance[j] =
            (float)((of_expert ? m->squares[s->slot.expert * m->cols + j] : m->gram[j * (m->cols + 1)]) / n);
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
    int rc = moments_init(&m, q, point, layer, e);
    if (!rc) rc = watch(q, &m, e);
    if (!rc && !m.experts && feeds && factor(&h, e)) rc = err_prefix(e, "layer %u, %s", layer, model_point_name(point));
    if (!rc && !(h.importance = mem_array(m.cols, sizeof *h.importance, e))) rc = e->code;
    for (size_t i = 0; !rc && i < q->n_part; i++)
        if (reads(&q->part[i], point)) rc = quantize_stored(&h, &q->part[i], e);
    obs_factor_free(h.factor);
    obs_factor_free(h.plain);
    mem_free(h.importance);
    moments_release(&m);
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
        rc = round_to_nearest(q, s, NULL, e);
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
    for (size_t i = 0; i < c->n; i++) q.positions += c->in[i].n_positions;
    int rc = pass_prepare(&q.p, e);
    if (!rc) rc = model_head_write(out, &m->config, m->vocab_bytes.data, m->vocab_bytes.len, m->meta, e);
    if (!rc) rc = model_layerwise_change(c->model, c->scratch, c->in, c->n, &how, e);
    pass_finish(&q.p);
    return rc;
}
