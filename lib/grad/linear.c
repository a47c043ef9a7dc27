/* Linear maps: one weight, or several of one input. */
#include "lib/grad/grad_internal.h"

struct linear_op {
    struct grad_op op;
    struct grad_node *x, *residual;
    struct {
        struct grad_node *w, *bias;
    } map[GRAD_MAX_MAPS];
};

static void map_backward(struct grad_tape *t, struct linear_op *o, size_t i) {
    struct grad_node *x = o->x, *w = o->map[i].w, *bias = o->map[i].bias, *y = o->op.out[i];
    size_t n = y->var.rows, out = y->var.cols, in = x->var.cols;
    const float *dy = y->var.grad.data;
    bool fresh;
    if (x->wanted) {
        float *dx = node_target(t, x, &fresh);
        if (dx) kernel_matmul_nn(n, in, out, dy, w->var.value.data, fresh ? 0 : 1, dx);
    }
    if (w->wanted) {
        float *dw = node_target(t, w, &fresh);
        if (dw) kernel_matmul_tn(out, in, n, dy, x->var.value.data, fresh ? 0 : 1, dw);
    }
    if (bias && bias->wanted) {
        float *db = node_sum(t, bias);
        if (db) kernel_sum_rows(db, dy, n, out);
    }
}

static void linear_backward(struct grad_tape *t, struct grad_op *op) {
    struct linear_op *o = (struct linear_op *)op;
    if (o->residual) node_pass_on(t, o->residual, op->out[0]);
    for (size_t i = op->n_out; i-- > 0;)
        if (op->out[i]->buffer) map_backward(t, o, i);
}

static bool shapes_fit(struct grad_tape *t, const struct grad_var *x, const struct grad_map *m,
                       const struct grad_var *residual) {
    const struct grad_var *w = m->w, *bias = m->bias;
    if (x->cols != w->cols)
        return tape_fail(t, ERR_DATA, "linear: input of %zu, weight [%zu, %zu]", x->cols, w->rows, w->cols);
    if (bias && (bias->rows != 1 || bias->cols != w->rows))
        return tape_fail(t, ERR_DATA, "linear: bias [%zu, %zu] for an output of %zu", bias->rows, bias->cols, w->rows);
    if (residual && (residual->rows != x->rows || residual->cols != w->rows))
        return tape_fail(t, ERR_DATA, "linear: residual [%zu, %zu] for an output of [%zu, %zu]", residual->rows,
                         residual->cols, x->rows, w->rows);
    return true;
}

static struct grad_node *map_forward(struct grad_tape *t, struct grad_var *x, const struct grad_map *m,
                                     struct grad_var *residual) {
    if (!m->w || !shapes_fit(t, x, m, residual)) return NULL;
    bool wanted = node_wanted(x) || node_wanted(m->w) || node_wanted(m->bias) || node_wanted(residual);
    struct grad_node *y = tape_result(t, x->rows, m->w->rows, wanted);
    if (!y) return NULL;
    float *out = y->var.value.data;
    kernel_matmul_nt(x->rows, m->w->rows, x->cols, x->value.data, m->w->value.data, 0, out);
    if (m->bias) kernel_add_bias(out, m->bias->value.data, x->rows, m->w->rows);
    if (residual) kernel_add(out, residual->value.data, var_size(residual));
    return y;
}

static bool linear(struct grad_tape *t, struct grad_var *x, size_t n, const struct grad_map *maps,
                   struct grad_var *residual, struct grad_node **y) {
    if (!x || t->error.code) return false;
    for (size_t i = 0; i < n; i++)
        if (!(y[i] = map_forward(t, x, &maps[i], residual))) return false;
    struct linear_op *o = tape_record(t, sizeof *o, linear_backward, n, y);
    if (o) {
        o->x = node_of(x);
        o->residual = residual ? node_of(residual) : NULL;
        for (size_t i = 0; i < n; i++) {
            o->map[i].w = node_of(maps[i].w);
            o->map[i].bias = maps[i].bias ? node_of(maps[i].bias) : NULL;
        }
    }
    return t->error.code == 0;
}

struct grad_var *grad_linear(struct grad_tape *t, struct grad_var *x, struct grad_var *w, struct grad_var *bias,
                             struct grad_var *residual) {
    struct grad_node *y;
    return linear(t, x, 1, &(struct grad_map){w, bias}, residual, &y) ? &y->var : NULL;
}

void grad_linears(struct grad_tape *t, struct grad_var *x, size_t n, const struct grad_map *maps, struct grad_var **y) {
    struct grad_node *nodes[GRAD_MAX_MAPS];
    bool ok = linear(t, x, n, maps, NULL, nodes);
    for (size_t i = 0; i < n; i++) y[i] = ok ? &nodes[i]->var : NULL;
}
