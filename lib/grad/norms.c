/* RMSNorm and LayerNorm, of rows or of the heads in each row. */
#include "lib/grad/grad_internal.h"

struct norm_op {
    struct grad_op op;
    struct grad_node *x, *w, *b;
    size_t rows, d;           /* normalized vectors: rows of x, or heads in them */
    struct kernel_array kept; /* f32 [rows] 1 / rms, or [rows][2] mean and 1 / standard deviation */
};

static void rmsnorm_backward(struct grad_tape *t, struct grad_op *op) {
    struct norm_op *o = (struct norm_op *)op;
    const struct grad_var *y = &op->out[0]->var;
    struct kernel_array dx = node_sum(t, o->x), dw = node_sum(t, o->w);
    if (t->error.code) return;
    kernel_rmsnorm_backward(dx, dw, y->grad, o->x->var.value, o->w->var.value, o->kept, o->rows, o->d);
}

/* RMSNorm of each d consecutive elements of x; `out` and `gradient` are the types of the result and of its gradient. */
static struct grad_var *rmsnorm(struct grad_tape *t, struct grad_var *x, struct grad_var *w, float eps, size_t d,
                                enum dtype out, enum dtype gradient) {
    struct grad_node *y = tape_result(t, x->rows, x->cols, out, node_wanted(x) || node_wanted(w));
    if (!y) return NULL;
    size_t rows = var_size(x) / d;
    y->var.grad.dtype = gradient;
    struct norm_op *o = tape_record(t, sizeof *o, rmsnorm_backward, 1, &y);
    struct kernel_array inv = o ? tape_value(t, DT_F32, rows) : kernel_none(DT_F32);
    kernel_rmsnorm(y->var.value, inv, x->value, w->value, rows, d, eps);
    if (o) {
        o->x = node_of(x);
        o->w = node_of(w);
        o->rows = rows;
        o->d = d;
        o->kept = inv;
    }
    return t->error.code ? NULL : &y->var;
}

struct grad_var *grad_rmsnorm(struct grad_tape *t, struct grad_var *x, struct grad_var *w, float eps, enum dtype out) {
    if (!x || !w || t->error.code) return NULL;
    if (w->rows != 1 || w->cols != x->cols)
        return tape_fail(t, ERR_DATA, "rmsnorm: weight [%zu, %zu] for rows of %zu", w->rows, w->cols, x->cols);
    return rmsnorm(t, x, w, eps, x->cols, out, DT_F32); /* sums the gradients of several linear maps */
}

struct grad_var *grad_rmsnorm_heads(struct grad_tape *t, struct grad_var *x, struct grad_var *w, float eps) {
    if (!x || !w || t->error.code) return NULL;
    if (w->rows != 1 || w->cols == 0 || x->cols % w->cols != 0)
        return tape_fail(t, ERR_DATA, "rmsnorm: weight [%zu, %zu] for heads in rows of %zu", w->rows, w->cols, x->cols);
    return rmsnorm(t, x, w, eps, w->cols, x->value.dtype, x->value.dtype);
}

static void layernorm_backward(struct grad_tape *t, struct grad_op *op) {
    struct norm_op *o = (struct norm_op *)op;
    const struct grad_var *y = &op->out[0]->var;
    struct kernel_array dx = node_sum(t, o->x), dw = node_sum(t, o->w);
    struct kernel_array db = o->b ? node_sum(t, o->b) : kernel_none(DT_F32);
    if (t->error.code) return;
    kernel_layernorm_backward(dx, dw, db, y->grad, o->x->var.value, o->w->var.value, o->kept, o->rows, o->d);
}

/* LayerNorm of each w->cols consecutive elements of x; types as above. */
static struct grad_var *layernorm(struct grad_tape *t, struct grad_var *x, struct grad_var *w, struct grad_var *b,
                                  float eps, enum dtype out, enum dtype gradient) {
    bool wanted = node_wanted(x) || node_wanted(w) || node_wanted(b);
    struct grad_node *y = tape_result(t, x->rows, x->cols, out, wanted);
    if (!y) return NULL;
    size_t d = w->cols, rows = var_size(x) / d;
    y->var.grad.dtype = gradient;
    struct norm_op *o = tape_record(t, sizeof *o, layernorm_backward, 1, &y);
    struct kernel_array moments = o ? tape_value(t, DT_F32, 2 * rows) : kernel_none(DT_F32);
    kernel_layernorm(y->var.value, moments, x->value, w->value, b ? b->value : kernel_none(DT_F32), rows, d, eps);
    if (o) {
        o->x = node_of(x);
        o->w = node_of(w);
        o->b = b ? node_of(b) : NULL;
        o->rows = rows;
        o->d = d;
        o->kept = moments;
    }
    return t->error.code ? NULL : &y->var;
}

struct grad_var *grad_layernorm(struct grad_tape *t, struct grad_var *x, struct grad_var *w, struct grad_var *b,
                                float eps, enum dtype out) {
    if (!x || !w || t->error.code) return NULL;
    if (w->rows != 1 || w->cols != x->cols || (b && !same_shape(w, b)))
        return tape_fail(t, ERR_DATA, "layernorm: weight [%zu, %zu] for rows of %zu", w->rows, w->cols, x->cols);
    return layernorm(t, x, w, b, eps, out, DT_F32); /* sums the gradients of several linear maps */
}

struct grad_var *grad_layernorm_heads(struct grad_tape *t, struct grad_var *x, struct grad_var *w, struct grad_var *b,
                                      float eps) {
    if (!x || !w || t->error.code) return NULL;
    if (w->rows != 1 || w->cols == 0 || x->cols % w->cols != 0 || (b && !same_shape(w, b)))
        return tape_fail(t, ERR_DATA, "layernorm: weight [%zu, %zu] for heads in rows of %zu", w->rows, w->cols,
                         x->cols);
    return layernorm(t, x, w, b, eps, x->value.dtype, x->value.dtype);
}
