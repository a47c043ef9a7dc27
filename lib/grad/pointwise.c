/* Elementwise operations: activation functions, gated linear units, scaling, sums. */
#include "lib/grad/grad_internal.h"

/* ---- activation functions ---- */

struct activate_op {
    struct grad_op op;
    enum kernel_act act;
    struct grad_node *x;
};

static void activate_backward(struct grad_tape *t, struct grad_op *op) {
    struct activate_op *o = (struct activate_op *)op;
    const struct grad_var *y = &op->out[0]->var;
    size_t mark = stack_mark(&t->scratch);
    struct kernel_array dx = node_open(t, o->x);
    if (!t->error.code) {
        kernel_activate_backward(o->act, dx, y->grad, o->x->var.value, var_size(y));
        node_close(t, o->x, dx);
    }
    stack_rewind(&t->scratch, mark);
}

/* Overwrites x on a tape that does not record. */
struct grad_var *grad_activate(struct grad_tape *t, enum kernel_act act, struct grad_var *x) {
    if (!x || t->error.code) return NULL;
    bool over = !t->record && !node_of(x)->is_leaf;
    struct grad_node *out =
        over ? tape_result_in(t, x, false) : tape_result(t, x->rows, x->cols, x->value.dtype, node_wanted(x));
    if (!out) return NULL;
    kernel_activate(act, out->var.value, x->value, var_size(x));
    struct activate_op *o = tape_record(t, sizeof *o, activate_backward, 1, &out);
    if (o) {
        o->act = act;
        o->x = node_of(x);
    }
    return t->error.code ? NULL : &out->var;
}

/* ---- gated linear units ---- */

struct glu_op {
    struct grad_op op;
    enum kernel_act act;
    struct grad_node *gate, *up;
};

static void glu_backward(struct grad_tape *t, struct grad_op *op) {
    struct glu_op *o = (struct glu_op *)op;
    const struct grad_var *y = &op->out[0]->var;
    size_t mark = stack_mark(&t->scratch);
    struct kernel_array dgate = node_open(t, o->gate), dup = node_open(t, o->up);
    if (!t->error.code) {
        kernel_glu_backward(o->act, dgate, dup, y->grad, o->gate->var.value, o->up->var.value, var_size(y));
        node_close(t, o->gate, dgate);
        node_close(t, o->up, dup);
    }
    stack_rewind(&t->scratch, mark);
}

struct grad_var *grad_glu(struct grad_tape *t, enum kernel_act act, struct grad_var *gate, struct grad_var *up) {
    if (!gate || !up || t->error.code) return NULL;
    if (!same_shape(gate, up))
        return tape_fail(t, ERR_DATA, "glu: gate [%zu, %zu], up [%zu, %zu]", gate->rows, gate->cols, up->rows,
                         up->cols);
    struct grad_node *out =
        tape_result(t, gate->rows, gate->cols, gate->value.dtype, node_wanted(gate) || node_wanted(up));
    if (!out) return NULL;
    kernel_glu(act, out->var.value, gate->value, up->value, var_size(gate));
    struct glu_op *o = tape_record(t, sizeof *o, glu_backward, 1, &out);
    if (o) {
        o->act = act;
        o->gate = node_of(gate);
        o->up = node_of(up);
    }
    return t->error.code ? NULL : &out->var;
}

/* ---- scaling ---- */

struct scale_op {
    struct grad_op op;
    struct grad_node *x;
    float factor;
};

/* Scales the gradient in place, as nothing reads it later. */
static void scale_backward(struct grad_tape *t, struct grad_op *op) {
    struct scale_op *o = (struct scale_op *)op;
    struct kernel_array dy = node_sum(t, op->out[0]);
    if (!kernel_has_data(dy)) return;
    kernel_scale(dy, var_size(&op->out[0]->var), o->factor);
    node_pass_on(t, o->x, op->out[0]);
}

struct grad_var *grad_scale(struct grad_tape *t, struct grad_var *x, float factor) {
    if (!x || t->error.code || factor == 1) return t->error.code ? NULL : x;
    bool own = !node_of(x)->is_leaf;
    struct grad_node *out =
        own ? tape_result_in(t, x, node_wanted(x)) : tape_result(t, x->rows, x->cols, x->value.dtype, node_wanted(x));
    if (!out) return NULL;
    if (!own) kernel_convert(out->var.value, x->value, var_size(x));
    kernel_scale(out->var.value, var_size(x), factor);
    struct scale_op *o = tape_record(t, sizeof *o, scale_backward, 1, &out);
    if (o) {
        o->x = node_of(x);
        o->factor = factor;
    }
    return t->error.code ? NULL : &out->var;
}

/* ---- sums ---- */

struct add_op {
    struct grad_op op;
    struct grad_node *x, *y;
};

static void add_backward(struct grad_tape *t, struct grad_op *op) {
    struct add_op *o = (struct add_op *)op;
    node_pass_on(t, o->x, op->out[0]);
    node_pass_on(t, o->y, op->out[0]);
}

struct grad_var *grad_add(struct grad_tape *t, struct grad_var *x, struct grad_var *y) {
    if (!x || !y || t->error.code) return NULL;
    if (!same_shape(x, y))
        return tape_fail(t, ERR_DATA, "add: [%zu, %zu] and [%zu, %zu]", x->rows, x->cols, y->rows, y->cols);
    bool over = t->bare && !node_of(x)->is_leaf, wanted = node_wanted(x) || node_wanted(y);
    struct grad_node *out =
        over ? tape_result_in(t, x, wanted) : tape_result(t, x->rows, x->cols, x->value.dtype, wanted);
    if (!out) return NULL;
    if (!over) kernel_convert(out->var.value, x->value, var_size(x));
    kernel_add(out->var.value, y->value, var_size(x));
    struct add_op *o = tape_record(t, sizeof *o, add_backward, 1, &out);
    if (o) {
        o->x = node_of(x);
        o->y = node_of(y);
    }
    return t->error.code ? NULL : &out->var;
}

/* ---- types ---- */

struct to_f32_op {
    struct grad_op op;
    struct grad_node *x;
};

static void to_f32_backward(struct grad_tape *t, struct grad_op *op) {
    node_pass_on(t, ((struct to_f32_op *)op)->x, op->out[0]);
}

struct grad_var *grad_to_f32(struct grad_tape *t, struct grad_var *x) {
    if (!x || t->error.code || x->value.dtype == DT_F32) return t->error.code ? NULL : x;
    struct grad_node *out = tape_result(t, x->rows, x->cols, DT_F32, node_wanted(x));
    if (!out) return NULL;
    kernel_convert(out->var.value, x->value, var_size(x));
    struct to_f32_op *o = tape_record(t, sizeof *o, to_f32_backward, 1, &out);
    if (o) o->x = node_of(x);
    return t->error.code ? NULL : &out->var;
}

/* ---- rows of another length ---- */

struct reshape_op {
    struct grad_op op;
    struct grad_node *x;
};

static void reshape_backward(struct grad_tape *t, struct grad_op *op) {
    node_pass_on(t, ((struct reshape_op *)op)->x, op->out[0]);
}

struct grad_var *grad_reshape(struct grad_tape *t, struct grad_var *x, size_t rows, size_t cols) {
    uint64_t n;
    if (!x || t->error.code) return NULL;
    if (!u64_mul(rows, cols, &n) || n != var_size(x))
        return tape_fail(t, ERR_DATA, "reshape: [%zu, %zu] to [%zu, %zu]", x->rows, x->cols, rows, cols);
    struct grad_node *out = tape_result_in(t, x, node_wanted(x));
    if (!out) return NULL;
    out->var.rows = rows;
    out->var.cols = cols;
    struct reshape_op *o = tape_record(t, sizeof *o, reshape_backward, 1, &out);
    if (o) o->x = node_of(x);
    return t->error.code ? NULL : &out->var;
}
