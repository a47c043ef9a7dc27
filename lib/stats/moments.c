/* Second moments of what comes into a point of a layer, for methods that change a model layer by layer. */
#include <string.h>

#include "lib/stats/stats.h"

/* ---- the tensors at hand ----------------------------------------------------------------------------------------- */

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

/* The weights as they were take the place of those that are there, or back. */
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
    float *dense, *diff; /* [positions][cols] x; [the rows of a pass][cols]; NULL: not wanted */
    size_t at, diff_rows;
    bool is_dense; /* x comes in */
    bool halves;
    size_t passes;
};

static int allocate(struct collector *k, const struct stats_moments_options *o, struct err *e) {
    struct stats_moments *m = k->m;
    size_t parts = m->n_experts ? m->n_experts : 1;
    bool shift = o->shift && !m->n_experts;
    m->squares = mem_array(parts, m->cols * sizeof *m->squares, e);
    if (!m->squares) return e->code;
    for (int i = 0; o->gram && i < (o->halves ? 2 : 1); i++) {
        if (!(m->gram[i] = mem_array(parts * m->cols, m->cols * sizeof **m->gram, e))) return e->code;
        if (shift && !(m->shift[i] = mem_array(m->cols, m->cols * sizeof **m->shift, e))) return e->code;
    }
    if (o->gram && shift && !(k->dense = mem_array(o->positions, m->cols * sizeof *k->dense, e))) return e->code;
    return 0;
}

static int take_difference(struct collector *k, const struct model_seen *seen, struct err *e) {
    size_t n = seen->rows * seen->cols;
    if (k->diff_rows < seen->rows) {
        mem_free(k->diff);
        k->diff = mem_array(seen->rows, seen->cols * sizeof *k->diff, e);
        if (!k->diff) return e->code;
        k->diff_rows = seen->rows;
    }
    for (size_t i = 0; i < n; i++) k->diff[i] = k->dense[k->at * seen->cols + i] - seen->x[i];
    return 0;
}

/* Rows [first, first + rows) of what is seen. */
static void add_rows(struct collector *k, const struct model_seen *seen, size_t part, int half, size_t first,
                     size_t rows) {
    size_t n = k->m->cols;
    struct kernel_array y = kernel_f32(seen->x + first * n);
    kernel_matmul_tn(n, n, rows, y, y, 1, kernel_f32(k->m->gram[half] + part * n * n));
    if (k->dense) kernel_matmul_tn(n, n, rows, kernel_f32(k->diff + first * n), y, 1, kernel_f32(k->m->shift[half]));
}

static int add_products(struct collector *k, const struct model_seen *seen, size_t part, struct err *e) {
    size_t middle = seen->rows / 2;
    if (k->dense && take_difference(k, seen, e)) return e->code;
    if (!k->halves) {
        add_rows(k, seen, part, 0, 0, seen->rows);
        return 0;
    }
    int half = k->passes++ % 2; /* in turn, for where a sequence begins is unlike the rest */
    add_rows(k, seen, part, half, 0, middle);
    add_rows(k, seen, part, !half, middle, seen->rows - middle);
    return 0;
}

static int see(void *ctx, const struct model_seen *seen, struct err *e) {
    struct collector *k = ctx;
    struct stats_moments *m = k->m;
    size_t part = m->n_experts ? seen->expert - m->first_expert : 0;
    int rc = 0;
    if (seen->point != m->point || (m->n_experts && (seen->expert < m->first_expert || part >= m->n_experts))) return 0;
    if (k->is_dense) {
        memcpy(k->dense + k->at * m->cols, seen->x, seen->rows * m->cols * sizeof *seen->x);
    } else {
        kernel_col_norms2(m->squares + part * m->cols, seen->x, seen->rows, m->cols);
        if (m->gram[0]) rc = add_products(k, seen, part, e);
    }
    k->at += seen->rows;
    return rc;
}

static int watch(struct collector *k, struct model_layerwise *l, const struct stats_moments_options *o, struct err *e) {
    const enum model_point *last = k->m->n_experts ? NULL : &k->m->point;
    int rc = 0;
    if (k->dense) {
        k->is_dense = true;
        swap_part(o->part);
        rc = model_layerwise_watch(l, STATES_DENSE, last, see, k, e);
        swap_part(o->part);
        k->is_dense = false;
        k->at = 0;
    }
    return rc ? rc : model_layerwise_watch(l, STATES_NOW, last, see, k, e);
}

int stats_moments_collect(struct stats_moments *m, struct model_layerwise *l, const struct stats_moments_options *o,
                          struct err *e) {
    struct collector k = {.m = m, .halves = o->halves};
    *m = (struct stats_moments){.point = o->point, .first_expert = o->first_expert, .n_experts = o->n_experts};
    m->cols = model_point_cols(&model_layerwise_held(l)->config, o->point, o->layer);
    int rc = allocate(&k, o, e);
    if (!rc) rc = watch(&k, l, o, e);
    mem_free(k.dense);
    mem_free(k.diff);
    return rc ? err_prefix(e, "layer %u, %s", o->layer, model_point_name(o->point)) : 0;
}

void stats_moments_release(struct stats_moments *m) {
    mem_free(m->squares);
    for (int i = 0; i < 2; i++) {
        mem_free(m->gram[i]);
        mem_free(m->shift[i]);
    }
    *m = (struct stats_moments){0};
}
