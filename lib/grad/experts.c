/* Mixtures of experts: scores in f32, routing, the rows of an expert, and the weighted sum of outputs. */
#include "lib/grad/grad_internal.h"

/* ---- scores ---- */

struct scores_op {
    struct grad_op op;
    struct grad_node *x, *w;
};

/* x in f32: in place, or widened in scratch. */
static struct kernel_array widened(struct grad_tape *t, const struct grad_var *x) {
    if (x->value.dtype == DT_F32) return x->value;
    struct kernel_array wide = tape_scratch(t, DT_F32, var_size(x));
    if (kernel_has_data(wide)) kernel_convert(wide, x->value, var_size(x));
    return wide;
}

static void scores_backward(struct grad_tape *t, struct grad_op *op) {
    struct scores_op *o = (struct scores_op *)op;
    size_t mark = stack_mark(&t->scratch);
    struct kernel_array x = o->w->wanted ? widened(t, &o->x->var) : kernel_none(DT_F32);
    if (!t->error.code) map_backward_f32(t, &op->out[0]->var, o->x, x, o->w);
    stack_rewind(&t->scratch, mark);
}

struct grad_var *grad_scores(struct grad_tape *t, struct grad_var *x, struct grad_var *w) {
    if (!x || !w || t->error.code) return NULL;
    if (x->cols != w->cols || node_packed(w))
        return tape_fail(t, ERR_DATA, "scores: input of %zu, weight [%zu, %zu]", x->cols, w->rows, w->cols);
    if (node_wanted(x) && x->grad.dtype != DT_F32)
        return tape_fail(t, ERR_DATA, "scores of an input whose gradient is not f32");
    size_t mark = stack_mark(&t->scratch);
    struct grad_node *y = tape_result(t, x->rows, w->rows, DT_F32, node_wanted(x) || node_wanted(w));
    struct kernel_array wide = y ? widened(t, x) : kernel_none(DT_F32);
    if (kernel_has_data(wide)) kernel_matmul_nt(x->rows, w->rows, x->cols, wide, w->value, 0, y->var.value);
    stack_rewind(&t->scratch, mark);
    struct scores_op *o = kernel_has_data(wide) ? tape_record(t, sizeof *o, scores_backward, 1, &y) : NULL;
    if (o) {
        o->x = node_of(x);
        o->w = node_of(w);
    }
    return t->error.code ? NULL : &y->var;
}

/* ---- routing ---- */

struct route_op {
    struct grad_op op;
    struct grad_node *logits;
    const uint32_t *ids;
    struct kernel_array probs;
    size_t k;
    bool normalise;
};

static void route_backward(struct grad_tape *t, struct grad_op *op) {
    struct route_op *o = (struct route_op *)op;
    size_t mark = stack_mark(&t->scratch);
    struct kernel_array dx = node_open(t, o->logits);
    if (!t->error.code) {
        kernel_route_backward(dx, op->out[0]->var.grad, o->ids, o->probs, o->logits->var.rows, o->logits->var.cols,
                              o->k, o->normalise);
        node_close(t, o->logits, dx);
    }
    stack_rewind(&t->scratch, mark);
}

struct grad_routing *grad_route(struct grad_tape *t, struct grad_var *logits, size_t k, bool normalise) {
    if (!logits || t->error.code) return NULL;
    size_t n = logits->rows, experts = logits->cols;
    if (k == 0 || k > experts || logits->value.dtype != DT_F32 || n > UINT32_MAX / k)
        return tape_fail(t, ERR_DATA, "routing: %zu of %zu experts for %zu rows", k, experts, n);
    struct grad_routing *r = tape_alloc(t, 1, sizeof *r);
    struct grad_node *weights = tape_result(t, n, k, DT_F32, node_wanted(logits));
    uint32_t *ids = tape_alloc(t, n * k, sizeof *ids), *slots = tape_alloc(t, n * k, sizeof *slots);
    uint32_t *rows = tape_alloc(t, n * k, sizeof *rows), *starts = tape_alloc(t, experts + 1, sizeof *starts);
    struct kernel_array probs = tape_value(t, DT_F32, n * experts);
    if (t->error.code) return NULL;
    kernel_route(probs, ids, weights->var.value, logits->value, n, experts, k, normalise);
    kernel_group(starts, slots, rows, ids, n, k, experts);
    *r = (struct grad_routing){&weights->var, n, experts, k, ids, starts, slots, rows};
    struct route_op *o = tape_record(t, sizeof *o, route_backward, 1, &weights);
    if (o) {
        o->logits = node_of(logits);
        o->ids = ids;
        o->probs = probs;
        o->k = k;
        o->normalise = normalise;
    }
    return t->error.code ? NULL : r;
}

/* ---- rows of an expert ---- */

/* An f32 product of a few rows sums in another order, and how many rows an expert gets depends on the rest of the
 * batch: pad them with zeros to this many. */
#define ENOUGH_ROWS 5

struct rows_op {
    struct grad_op op;
    struct grad_node *x;
    const uint32_t *rows;
    size_t n;
};

static void take_backward(struct grad_tape *t, struct grad_op *op) {
    struct rows_op *o = (struct rows_op *)op;
    struct kernel_array dx = node_sum(t, o->x);
    if (kernel_has_data(dx)) kernel_scatter_add(dx, op->out[0]->var.grad, o->rows, o->n, o->x->var.cols);
}

struct grad_var *grad_take_rows(struct grad_tape *t, struct grad_var *x, const struct grad_routing *r, size_t expert) {
    if (!x || !r || t->error.code) return NULL;
    size_t n = grad_routed(r, expert), rows = n;
    if (x->rows != r->n || (node_wanted(x) && x->grad.dtype != DT_F32))
        return tape_fail(t, ERR_DATA, "rows of [%zu, %zu] to experts, routed %zu", x->rows, x->cols, r->n);
    if (t->precision == DT_F32 && rows < ENOUGH_ROWS) rows = ENOUGH_ROWS;
    struct grad_node *y = tape_result(t, rows, x->cols, x->value.dtype, node_wanted(x));
    if (!y) return NULL;
    y->var.grad.dtype = DT_F32; /* sums the gradients of two linear maps */
    kernel_gather_rows(y->var.value, x->value, r->rows + r->starts[expert], n, x->cols);
    if (rows > n) kernel_fill(kernel_part(y->var.value, n * x->cols), (rows - n) * x->cols, 0);
    struct rows_op *o = tape_record(t, sizeof *o, take_backward, 1, &y);
    if (o) {
        o->x = node_of(x);
        o->rows = r->rows + r->starts[expert];
        o->n = n;
    }
    return t->error.code ? NULL : &y->var;
}

/* ---- outputs of an expert ---- */

struct mix_op {
    struct grad_op op;
    struct grad_node *y, *x;
    const struct grad_routing *r;
    size_t expert;
};

static void mix_backward(struct grad_tape *t, struct grad_op *op) {
    struct mix_op *o = (struct mix_op *)op;
    const struct grad_routing *r = o->r;
    size_t mark = stack_mark(&t->scratch), n = grad_routed(r, o->expert), d = o->x->var.cols;
    uint32_t first = r->starts[o->expert];
    struct kernel_array dx = node_open(t, o->x), dw = node_sum(t, node_of(r->weights));
    if (!node_wanted(r->weights)) dw = tape_scratch(t, DT_F32, var_size(r->weights));
    if (!t->error.code) {
        kernel_scatter_weighted_backward(dx, dw, op->out[0]->var.grad, o->x->var.value, r->weights->value,
                                         r->slots + first, r->rows + first, n, d);
        size_t rest = o->x->var.rows - n;
        if (rest) kernel_fill(kernel_part(dx, n * d), rest * d, 0);
        node_close(t, o->x, dx);
    }
    node_pass_on(t, o->y, op->out[0]);
    stack_rewind(&t->scratch, mark);
}

struct grad_var *grad_zeros(struct grad_tape *t, size_t rows, size_t cols) {
    struct grad_node *y = t->error.code ? NULL : tape_result(t, rows, cols, DT_F32, false);
    if (!y) return NULL;
    kernel_fill(y->var.value, rows * cols, 0);
    return &y->var;
}

struct grad_var *grad_mix_rows(struct grad_tape *t, struct grad_var *y, struct grad_var *x,
                               const struct grad_routing *r, size_t expert) {
    if (!y || !x || !r || t->error.code) return NULL;
    size_t n = grad_routed(r, expert);
    uint32_t first = r->starts[expert];
    if (y->value.dtype != DT_F32 || y->rows != r->n || y->cols != x->cols || x->rows < n || node_of(y)->is_leaf)
        return tape_fail(t, ERR_DATA, "mix: [%zu, %zu] of an expert into [%zu, %zu]", x->rows, x->cols, y->rows,
                         y->cols);
    kernel_scatter_weighted(y->value, x->value, r->weights->value, r->slots + first, r->rows + first, n, x->cols);
    if (!t->record) return y;
    struct grad_node *out = tape_result_in(t, y, node_wanted(y) || node_wanted(x) || node_wanted(r->weights));
    struct mix_op *o = out ? tape_record(t, sizeof *o, mix_backward, 1, &out) : NULL;
    if (o) {
        o->y = node_of(y);
        o->x = node_of(x);
        o->r = r;
        o->expert = expert;
    }
    return t->error.code ? NULL : &out->var;
}

/* ---- a gate for each row ---- */

struct gate_op {
    struct grad_op op;
    struct grad_node *x, *gate;
};

static void gate_backward(struct grad_tape *t, struct grad_op *op) {
    struct gate_op *o = (struct gate_op *)op;
    const struct grad_var *y = &op->out[0]->var;
    size_t mark = stack_mark(&t->scratch);
    struct kernel_array dx = node_open(t, o->x), dgate = node_open(t, o->gate);
    if (!t->error.code) {
        kernel_gate_rows_backward(dx, dgate, y->grad, o->x->var.value, o->gate->var.value, y->rows, y->cols);
        node_close(t, o->x, dx);
        node_close(t, o->gate, dgate);
    }
    stack_rewind(&t->scratch, mark);
}

struct grad_var *grad_gate_rows(struct grad_tape *t, struct grad_var *x, struct grad_var *gate) {
    if (!x || !gate || t->error.code) return NULL;
    if (gate->rows != x->rows || gate->cols != 1 || gate->value.dtype != DT_F32)
        return tape_fail(t, ERR_DATA, "gate [%zu, %zu] of rows [%zu, %zu]", gate->rows, gate->cols, x->rows, x->cols);
    bool over = !t->record && !node_of(x)->is_leaf;
    struct grad_node *out = over
                                ? tape_result_in(t, x, false)
                                : tape_result(t, x->rows, x->cols, x->value.dtype, node_wanted(x) || node_wanted(gate));
    if (!out) return NULL;
    kernel_gate_rows(out->var.value, x->value, gate->value, x->rows, x->cols);
    struct gate_op *o = tape_record(t, sizeof *o, gate_backward, 1, &out);
    if (o) {
        o->x = node_of(x);
        o->gate = node_of(gate);
    }
    return t->error.code ? NULL : &out->var;
}
