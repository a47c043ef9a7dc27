/* Sums second moments of the input at one point of a layer, for methods that change a model layer by layer. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/stats/stats.h"

/* ---- the longest row that counts as it is ------------------------------------------------------------------------ */

#define MOST 16 /* times the median of squared lengths */

static int compare_doubles(const void *a, const void *b) {
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

int stats_longest_row(const float *x, size_t rows, size_t cols, double *most, struct err *e) {
    *most = INFINITY;
    if (!rows) return 0;
    double *lengths = mem_array(rows, sizeof *lengths, e);
    if (!lengths) return e->code;
    for (size_t r = 0; r < rows; r++) lengths[r] = kernel_sum_squares(kernel_f32(x + r * cols), cols);
    qsort(lengths, rows, sizeof *lengths, compare_doubles);
    double median = lengths[rows / 2];
    if (median > 0) *most = MOST * median;
    mem_free(lengths);
    return 0;
}

/* ---- tensors in memory during a visit ---------------------------------------------------------------------------- */

int stats_part_begin(struct stats_part *p, struct model_layerwise *l, int64_t layer, struct err *e) {
    struct model *m = model_layerwise_held(l);
    const struct model_config *c = &m->config;
    *p = (struct stats_part){.m = m};
    p->first = layer < 0 ? 0 : model_slot_of_layer(c, (uint32_t)layer);
    p->end = layer == c->n_layers ? model_slot_count(c) : model_slot_of_layer(c, (uint32_t)(layer + 1));
    p->was = mem_array(p->end - p->first, sizeof *p->was, e);
    return p->was ? 0 : e->code;
}

int stats_part_keep(struct stats_part *p, size_t slot, struct err *e) {
    const struct model_param *param = &p->m->params[slot];
    struct kernel_array *was = &p->was[slot - p->first];
    *was = kernel_alloc(p->m->device, DT_F32, param->n, e);
    if (!kernel_has_data(*was)) return err_prefix(e, "tensor '%s'", param->desc.name);
    kernel_convert(*was, param->value, param->n);
    return 0;
}

void stats_part_release(struct stats_part *p) {
    for (size_t i = 0; p->was && i < p->end - p->first; i++) kernel_free(p->m->device, p->was[i]);
    mem_free(p->was);
    *p = (struct stats_part){0};
}

/* Swaps the kept values with the current ones; a second call swaps them back. */
static void swap_part(struct stats_part *p) {
    for (size_t i = p->first; i < p->end; i++) {
        struct kernel_array *was = &p->was[i - p->first], now = p->m->params[i].value;
        if (!kernel_has_data(*was)) continue;
        p->m->params[i].value = *was;
        *was = now;
    }
}

/* ---- sums -------------------------------------------------------------------------------------------------------- */

struct collector {
    struct stats_moments *m;
    struct model_layerwise *l;
    float *dense, *diff; /* [positions][cols] x; [rows of a pass][cols] x - y; NULL: not needed */
    float *short_of;     /* [rows of a pass][hidden] r */
    float *held;         /* [rows of a pass][cols] y, until the layer's output is known */
    size_t at, diff_rows, short_rows, held_rows;
    bool is_dense; /* the pass with the kept weights, which gives x */
};

static int allocate(struct collector *k, const struct stats_moments_options *o, struct err *e) {
    struct stats_moments *m = k->m;
    size_t parts = m->n_experts ? m->n_experts : 1;
    size_t hidden = model_layerwise_held(k->l)->config.hidden;
    bool shift = o->shift && !m->n_experts;
    m->squares = mem_array(parts, m->cols * sizeof *m->squares, e);
    m->sum = m->squares ? mem_array(parts, m->cols * sizeof *m->sum, e) : NULL;
    m->rows = m->sum ? mem_array(parts, sizeof *m->rows, e) : NULL;
    if (!m->rows) return e->code;
    if (o->gram && !(m->gram = mem_array(parts * m->cols, m->cols * sizeof *m->gram, e))) return e->code;
    if (o->gram && shift && !(m->shift = mem_array(m->cols, m->cols * sizeof *m->shift, e))) return e->code;
    if (o->residual && !m->n_experts) {
        m->residual = mem_array(hidden, m->cols * sizeof *m->residual, e);
        m->sum_residual = m->residual ? mem_array(hidden, sizeof *m->sum_residual, e) : NULL;
        if (!m->sum_residual) return e->code;
    }
    if (shift && !(m->sum_shift = mem_array(m->cols, sizeof *m->sum_shift, e))) return e->code;
    if (o->gram && shift && !(k->dense = mem_array(o->positions, m->cols * sizeof *k->dense, e))) return e->code;
    return 0;
}

/* Grows a scratch buffer to the rows of a pass. */
static int make_room(float **x, size_t *have, size_t rows, size_t cols, struct err *e) {
    if (*have >= rows) return 0;
    mem_free(*x);
    *have = 0;
    *x = mem_array(rows, cols * sizeof **x, e);
    if (!*x) return e->code;
    *have = rows;
    return 0;
}

static int take_difference(struct collector *k, const struct model_seen *seen, const float *x, struct err *e) {
    size_t n = seen->rows * seen->cols;
    if (make_room(&k->diff, &k->diff_rows, seen->rows, seen->cols, e)) return e->code;
    for (size_t i = 0; i < n; i++) k->diff[i] = k->dense[k->at * seen->cols + i] - x[i];
    kernel_sum_rows(kernel_f32(k->m->sum_shift), kernel_f32(k->diff), seen->rows, seen->cols);
    return 0;
}

static int add_products(struct collector *k, const struct model_seen *seen, const float *x, size_t part,
                        struct err *e) {
    size_t n = k->m->cols;
    struct kernel_array y = kernel_f32(x);
    if (k->dense && take_difference(k, seen, x, e)) return e->code;
    kernel_matmul_tn(n, n, seen->rows, y, y, 1, kernel_f32(k->m->gram + part * n * n));
    if (k->dense) kernel_matmul_tn(n, n, seen->rows, kernel_f32(k->diff), y, 1, kernel_f32(k->m->shift));
    return 0;
}

/* Adds r of some rows of the residual stream, with y of the same rows. */
static int add_residual(struct collector *k, const float *was, const float *now, const float *y, size_t rows,
                        struct err *e) {
    size_t hidden = model_layerwise_held(k->l)->config.hidden, n = rows * hidden;
    if (make_room(&k->short_of, &k->short_rows, rows, hidden, e)) return e->code;
    for (size_t i = 0; i < n; i++) k->short_of[i] = was[i] - now[i];
    kernel_matmul_tn(hidden, k->m->cols, rows, kernel_f32(k->short_of), kernel_f32(y), 1, kernel_f32(k->m->residual));
    kernel_sum_rows(kernel_f32(k->m->sum_residual), kernel_f32(k->short_of), rows, hidden);
    return 0;
}

/* At POINT_O_IN, r is the difference of the layer's inputs. At POINT_DOWN_IN it is that of its outputs, so y is kept
 * until the output is seen. */
static int see_residual(struct collector *k, const struct model_seen *seen, const float *x, struct err *e) {
    size_t hidden = model_layerwise_held(k->l)->config.hidden, at = k->at * hidden;
    if (seen->point == POINT_O_IN)
        return add_residual(k, model_layerwise_states(k->l, STATES_DENSE) + at,
                            model_layerwise_states(k->l, STATES_NOW) + at, x, seen->rows, e);
    if (make_room(&k->held, &k->held_rows, seen->rows, seen->cols, e)) return e->code;
    memcpy(k->held, x, seen->rows * seen->cols * sizeof *k->held);
    return 0;
}

static int see_output(struct collector *k, const struct model_seen *seen, const float *x, struct err *e) {
    size_t first = (k->at - seen->rows) * seen->cols;
    return add_residual(k, model_layerwise_dense_output(k->l) + first, x, k->held, seen->rows, e);
}

static int see(void *ctx, const struct model_seen *seen, struct err *e) {
    struct collector *k = ctx;
    struct stats_moments *m = k->m;
    size_t part = m->n_experts ? seen->expert - m->first_expert : 0;
    bool output = m->residual && m->point == POINT_DOWN_IN && seen->point == POINT_LAYER && !k->is_dense;
    const float *x;
    if (!output && seen->point != m->point) return 0;
    if (m->n_experts && (seen->expert < m->first_expert || part >= m->n_experts)) return 0;
    int rc = model_seen_f32(seen, &x, e);
    if (rc || output) return rc ? rc : see_output(k, seen, x, e);
    if (k->is_dense) {
        memcpy(k->dense + k->at * m->cols, x, seen->rows * m->cols * sizeof *x);
    } else {
        m->rows[part] += seen->rows;
        kernel_sum_rows(kernel_f32(m->sum + part * m->cols), kernel_f32(x), seen->rows, m->cols);
        kernel_col_norms2(m->squares + part * m->cols, x, seen->rows, m->cols);
        if (m->gram) rc = add_products(k, seen, x, part, e);
        if (!rc && m->residual) rc = see_residual(k, seen, x, e);
    }
    k->at += seen->rows;
    return rc;
}

static int watch(struct collector *k, struct model_layerwise *l, const struct stats_moments_options *o, struct err *e) {
    const enum model_point *last = k->m->n_experts ? NULL : &k->m->point;
    const enum model_point *end = k->m->residual && k->m->point == POINT_DOWN_IN ? NULL : last;
    int rc = 0;
    if (k->dense) {
        k->is_dense = true;
        swap_part(o->part);
        rc = model_layerwise_watch(l, STATES_DENSE, last, see, k, e);
        swap_part(o->part);
        k->is_dense = false;
        k->at = 0;
    }
    return rc ? rc : model_layerwise_watch(l, STATES_NOW, end, see, k, e);
}

int stats_moments_collect(struct stats_moments *m, struct model_layerwise *l, const struct stats_moments_options *o,
                          struct err *e) {
    struct collector k = {.m = m, .l = l};
    *m = (struct stats_moments){.point = o->point, .first_expert = o->first_expert, .n_experts = o->n_experts};
    m->cols = model_point_cols(&model_layerwise_held(l)->config, o->point, o->layer);
    int rc = allocate(&k, o, e);
    if (!rc) rc = watch(&k, l, o, e);
    mem_free(k.dense);
    mem_free(k.diff);
    mem_free(k.short_of);
    mem_free(k.held);
    return rc ? err_prefix(e, "layer %u, %s", o->layer, model_point_name(o->point)) : 0;
}

void stats_moments_release(struct stats_moments *m) {
    mem_free(m->rows);
    mem_free(m->sum);
    mem_free(m->squares);
    mem_free(m->sum_shift);
    mem_free(m->residual);
    mem_free(m->sum_residual);
    mem_free(m->gram);
    mem_free(m->shift);
    *m = (struct stats_moments){0};
}
