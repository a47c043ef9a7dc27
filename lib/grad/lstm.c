/* LSTM over sequences, in one direction or both, and its backpropagation through time. */
#include "lib/grad/grad_internal.h"

struct lstm_op {
    struct grad_op op;
    struct kernel_lstm shape;
    struct {
        struct grad_node *gates, *w, *bias;
    } direction[2];
    struct kernel_lstm_direction kept[2];
};

/* dW += dgates^T h, with h of the previous step */
static void weight_gradient(struct grad_tape *t, struct lstm_op *o, size_t i, struct kernel_array dgates) {
    struct grad_node *w = o->direction[i].w, *bias = o->direction[i].bias;
    size_t n = o->op.out[0]->var.rows, units = o->shape.units, mark = stack_mark(&t->scratch);
    struct kernel_array before = w->wanted ? tape_scratch(t, DT_F32, n * units) : kernel_none(DT_F32);
    bool fresh;
    if (kernel_has_data(before)) {
        struct kernel_array dw = node_target(t, w, &fresh);
        kernel_lstm_before(&o->shape, i, before, o->op.out[0]->var.value);
        if (kernel_has_data(dw)) kernel_matmul_tn(4 * units, units, n, dgates, before, fresh ? 0 : 1, dw);
    }
    stack_rewind(&t->scratch, mark);
    if (!bias || !bias->wanted || t->error.code) return;
    struct kernel_array db = node_sum(t, bias);
    if (kernel_has_data(db)) kernel_sum_rows(db, dgates, n, 4 * units);
}

static void lstm_backward(struct grad_tape *t, struct grad_op *op) {
    struct lstm_op *o = (struct lstm_op *)op;
    const struct kernel_lstm *s = &o->shape;
    size_t mark = stack_mark(&t->scratch);
    struct kernel_array dgates[2] = {{0}};
    for (size_t i = 0; i < s->directions; i++) {
        dgates[i] = node_open(t, o->direction[i].gates);
        o->kept[i].weight = o->direction[i].w->var.value;
    }
    struct kernel_array carried = tape_scratch(t, DT_F32, s->directions * s->n_seqs * 2 * s->units);
    if (!t->error.code) kernel_lstm_backward(s, dgates, op->out[0]->var.grad, o->kept, carried);
    for (size_t i = 0; i < s->directions && !t->error.code; i++) {
        weight_gradient(t, o, i, dgates[i]);
        if (!t->error.code) node_close(t, o->direction[i].gates, dgates[i]);
    }
    stack_rewind(&t->scratch, mark);
}

static bool sequences_fit(size_t rows, size_t n_seqs, const uint32_t *starts) {
    if (n_seqs == 0 || starts[0] != 0) return false;
    for (size_t i = 0; i < n_seqs; i++)
        if (starts[i + 1] <= starts[i]) return false;
    return starts[n_seqs] == rows;
}

static bool direction_fits(struct grad_tape *t, const struct grad_lstm_direction *d, size_t n_seqs,
                           const uint32_t *starts) {
    const struct grad_var *g = d->gates, *w = d->w, *b = d->bias;
    if (w->cols == 0 || w->rows != 4 * w->cols || g->cols != w->rows || (b && (b->rows != 1 || b->cols != w->rows)))
        return tape_fail(t, ERR_DATA, "lstm: gates of %zu for a weight [%zu, %zu]", g->cols, w->rows, w->cols);
    if (g->value.dtype != DT_F32 || (!node_packed(w) && w->value.dtype != DT_F32))
        return tape_fail(t, ERR_DATA, "lstm: gates and weights must be f32");
    if (!sequences_fit(g->rows, n_seqs, starts))
        return tape_fail(t, ERR_DATA, "lstm: %zu sequences do not fit %zu rows", n_seqs, g->rows);
    return true;
}

/* The weight in f32: in place, or unpacked. */
static struct kernel_array wide_weight(struct grad_tape *t, const struct grad_var *w) {
    if (!node_packed(w)) return w->value;
    struct kernel_array wide = tape_scratch(t, DT_F32, var_size(w));
    uint32_t *rows = tape_alloc(t, w->rows, sizeof *rows);
    for (size_t i = 0; rows && i < w->rows; i++) rows[i] = (uint32_t)i;
    if (rows && kernel_has_data(wide))
        kernel_matrix_gather(wide, &((const struct grad_node *)w)->matrix, rows, w->rows);
    return wide;
}

/* Memory for the gates, which are computed in place unless the input is a leaf. */
static struct kernel_array own_gates(struct grad_tape *t, struct grad_var *gates) {
    if (!node_of(gates)->is_leaf) return gates->value;
    struct kernel_array copy = tape_value(t, DT_F32, var_size(gates));
    if (kernel_has_data(copy)) kernel_convert(copy, gates->value, var_size(gates));
    return copy;
}

struct grad_var *grad_lstm(struct grad_tape *t, size_t n, const struct grad_lstm_direction *d, size_t n_seqs,
                           const uint32_t *starts) {
    bool wanted = false;
    if (t->error.code) return NULL;
    for (size_t i = 0; i < n; i++) {
        if (!d[i].gates || !d[i].w || !direction_fits(t, &d[i], n_seqs, starts)) return NULL;
        if (d[i].gates->rows != d[0].gates->rows || d[i].w->cols != d[0].w->cols)
            return tape_fail(t, ERR_DATA, "lstm: directions of %zu and %zu units", d[0].w->cols, d[i].w->cols);
        wanted = wanted || node_wanted(d[i].gates) || node_wanted(d[i].w) || node_wanted(d[i].bias);
    }
    size_t units = d[0].w->cols, rows = d[0].gates->rows, mark = stack_mark(&t->scratch);
    struct kernel_lstm shape = {.n_seqs = n_seqs, .starts = starts, .units = units, .directions = n};
    struct kernel_lstm_direction at[2];
    struct grad_node *y = tape_result(t, rows, n * units, DT_F32, wanted);
    for (size_t i = 0; i < n; i++)
        at[i] = (struct kernel_lstm_direction){.gates = own_gates(t, d[i].gates),
                                               .cells = tape_value(t, DT_F32, rows * units),
                                               .weight = wide_weight(t, d[i].w),
                                               .bias = d[i].bias ? d[i].bias->value : kernel_none(DT_F32)};
    struct kernel_array transposed = tape_scratch(t, DT_F32, n * 4 * units * units);
    if (!t->error.code) kernel_lstm(&shape, y->var.value, at, transposed);
    stack_rewind(&t->scratch, mark);
    struct lstm_op *o = t->error.code ? NULL : tape_record(t, sizeof *o, lstm_backward, 1, &y);
    for (size_t i = 0; o && i < n; i++) {
        o->shape = shape;
        o->kept[i] = at[i];
        o->direction[i].gates = node_of(d[i].gates);
        o->direction[i].w = node_of(d[i].w);
        o->direction[i].bias = d[i].bias ? node_of(d[i].bias) : NULL;
    }
    return t->error.code ? NULL : &y->var;
}
