/* Second moments of what comes into a point of a layer, for methods that change a model layer by layer. */
#include <string.h>

#include "lib/stats/stats.h"

struct collector {
    struct stats_moments *m;
    float *dense, *diff; /* [positions][cols] x; [the rows of a pass][cols]; NULL: not wanted */
    size_t at, diff_rows;
    bool is_dense; /* x comes in */
};

static float *zeros(size_t n, size_t each, struct err *e) {
    float *x = mem_array(n, each * sizeof *x, e);
    if (x) memset(x, 0, n * each * sizeof *x);
    return x;
}

static int allocate(struct collector *k, const struct stats_moments_options *o, struct err *e) {
    struct stats_moments *m = k->m;
    size_t parts = m->n_experts ? m->n_experts : 1;
    m->squares = zeros(parts, m->cols, e);
    if (!m->squares) return e->code;
    if (!o->gram) return 0;
    m->gram = zeros(parts * m->cols, m->cols, e);
    if (!m->gram) return e->code;
    if (!o->shift || m->n_experts) return 0;
    m->shift = zeros(m->cols, m->cols, e);
    k->dense = m->shift ? mem_array(o->positions, m->cols * sizeof *k->dense, e) : NULL;
    return k->dense ? 0 : e->code;
}

static int add_shift(struct collector *k, const struct model_seen *seen, struct err *e) {
    size_t n = seen->rows * seen->cols;
    if (k->diff_rows < seen->rows) {
        mem_free(k->diff);
        k->diff = mem_array(seen->rows, seen->cols * sizeof *k->diff, e);
        if (!k->diff) return e->code;
        k->diff_rows = seen->rows;
    }
    for (size_t i = 0; i < n; i++) k->diff[i] = k->dense[k->at * seen->cols + i] - seen->x[i];
    kernel_matmul_tn(seen->cols, seen->cols, seen->rows, kernel_f32(k->diff), kernel_f32(seen->x), 1,
                     kernel_f32(k->m->shift));
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
        if (m->gram)
            kernel_matmul_tn(m->cols, m->cols, seen->rows, kernel_f32(seen->x), kernel_f32(seen->x), 1,
                             kernel_f32(m->gram + part * m->cols * m->cols));
        if (m->shift) rc = add_shift(k, seen, e);
    }
    k->at += seen->rows;
    return rc;
}

static int watch(struct collector *k, struct model_layerwise *l, const struct stats_moments_options *o, struct err *e) {
    const enum model_point *last = k->m->n_experts ? NULL : &k->m->point;
    int rc = 0;
    if (k->dense) {
        k->is_dense = true;
        o->swap(o->swap_ctx);
        rc = model_layerwise_watch(l, STATES_DENSE, last, see, k, e);
        o->swap(o->swap_ctx);
        k->is_dense = false;
        k->at = 0;
    }
    return rc ? rc : model_layerwise_watch(l, STATES_NOW, last, see, k, e);
}

int stats_moments_collect(struct stats_moments *m, struct model_layerwise *l, const struct stats_moments_options *o,
                          struct err *e) {
    struct collector k = {.m = m};
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
    mem_free(m->gram);
    mem_free(m->shift);
    *m = (struct stats_moments){0};
}
