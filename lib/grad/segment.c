/* Segments: parts of the graph that are kept whole, or only as a result that is recomputed in the backward pass. */
#include "lib/grad/grad_internal.h"

struct segment_op {
    struct grad_op op;
    struct grad_node *x;
    grad_run *run;
    void *ctx;
};

/*
 * Runs the forward pass once more, now recording, and walks back through that. The result's gradient moves to the new
 * result unchanged, and that of x is added to in place, so every operation sees what it would see if all values had
 * been kept: the bits are the same.
 */
static void segment_backward(struct grad_tape *t, struct grad_op *op) {
    struct segment_op *o = (struct segment_op *)op;
    struct grad_op *before = t->last;
    struct grad_node *out = op->out[0];
    struct grad_mark mark = grad_mark(t);
    struct grad_var *again = o->run(o->ctx, t, &o->x->var);
    if (node_wanted(again)) { /* else it depends on constants only */
        struct grad_node *y = node_of(again);
        y->buffer = out->buffer;
        y->var.grad = out->var.grad;
        out->buffer = NULL;
        out->var.grad = kernel_none(out->var.grad.dtype);
        tape_walk(t, before);
    }
    t->last = before;
    grad_rewind(t, mark);
}

/* Runs without recording and keeps only the result, in `slot`. */
static bool run_bare(struct grad_tape *t, struct grad_var *x, grad_run *run, void *ctx, struct grad_var *slot) {
    bool record = t->record, bare = t->bare;
    struct grad_mark mark = grad_mark(t);
    t->record = false;
    t->bare = slot == x;
    struct grad_var *y = run(ctx, t, x);
    t->record = record;
    t->bare = bare;
    if (!y) return false;
    if (y->rows != slot->rows || y->cols != slot->cols)
        return tape_fail(t, ERR_DATA, "segment: [%zu, %zu] of [%zu, %zu]", y->rows, y->cols, slot->rows, slot->cols);
    if (!kernel_same_data(y->value, slot->value)) kernel_convert(slot->value, y->value, var_size(y));
    grad_rewind(t, mark);
    return true;
}

struct grad_var *grad_segment(struct grad_tape *t, struct grad_var *x, size_t cols, grad_run *run, void *ctx) {
    if (!x || t->error.code) return NULL;
    if (t->record && !t->recompute) return run(ctx, t, x);
    if (!t->record && !node_of(x)->is_leaf && x->cols == cols) return run_bare(t, x, run, ctx, x) ? x : NULL;
    struct grad_node *out = tape_result(t, x->rows, cols, x->value.dtype, true);
    if (!out || !run_bare(t, x, run, ctx, &out->var)) return NULL;
    struct segment_op *o = tape_record(t, sizeof *o, segment_backward, 1, &out);
    if (o) {
        o->x = node_of(x);
        o->run = run;
        o->ctx = ctx;
    }
    return t->error.code ? NULL : &out->var;
}
