/* The operations: each checks shapes, runs forward, and records a function that runs backward. */
#include "lib/grad/grad_internal.h"

static bool same_shape(const struct grad_var *a, const struct grad_var *b) {
    return a->rows == b->rows && a->cols == b->cols;
}

/* ---- embedding ---- */

struct embed_op {
    struct grad_op op;
    struct grad_node *table;
    const uint32_t *ids;
};

static void embed_backward(struct grad_tape *t, struct grad_op *op) {
    struct embed_op *o = (struct embed_op *)op;
    float *g = node_sum(t, o->table);
    if (g) kernel_scatter_add(g, op->out[0]->var.grad.data, o->ids, op->out[0]->var.rows, op->out[0]->var.cols);
}

struct grad_var *grad_embed(struct grad_tape *t, struct grad_var *table, const uint32_t *ids, size_t n) {
    if (!table || t->error.code) return NULL;
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= table->rows)
            return tape_fail(t, ERR_DATA, "token %u at position %zu: the vocabulary has %zu", ids[i], i, table->rows);
    struct grad_node *out = tape_result(t, n, table->cols, node_wanted(table));
    if (!out) return NULL;
    kernel_gather(out->var.value.data, table->value.data, ids, n, table->cols);
    struct embed_op *o = tape_record(t, sizeof *o, embed_backward, 1, &out);
    uint32_t *copy = o ? tape_alloc(t, n, sizeof *ids) : NULL;
    if (copy) {
        memcpy(copy, ids, n * sizeof *ids);
        o->table = node_of(table);
        o->ids = copy;
    }
    return t->error.code ? NULL : &out->var;
}

/* ---- RMSNorm ---- */

struct rmsnorm_op {
    struct grad_op op;
    struct grad_node *x, *w;
    float *inv;
};

static void rmsnorm_backward(struct grad_tape *t, struct grad_op *op) {
    struct rmsnorm_op *o = (struct rmsnorm_op *)op;
    float *dx = node_sum(t, o->x), *dw = node_sum(t, o->w);
    if (t->error.code) return;
    kernel_rmsnorm_backward(dx, dw, op->out[0]->var.grad.data, o->x->var.value.data, o->w->var.value.data, o->inv,
                            op->out[0]->var.rows, op->out[0]->var.cols);
}

struct grad_var *grad_rmsnorm(struct grad_tape *t, struct grad_var *x, struct grad_var *w, float eps) {
    if (!x || !w || t->error.code) return NULL;
    if (w->rows != 1 || w->cols != x->cols)
        return tape_fail(t, ERR_DATA, "rmsnorm: weight [%zu, %zu] for rows of %zu", w->rows, w->cols, x->cols);
    struct grad_node *out = tape_result(t, x->rows, x->cols, node_wanted(x) || node_wanted(w));
    if (!out) return NULL;
    struct rmsnorm_op *o = tape_record(t, sizeof *o, rmsnorm_backward, 1, &out);
    float *inv = o ? tape_alloc(t, x->rows, sizeof *inv) : NULL;
    kernel_rmsnorm(out->var.value.data, inv, x->value.data, w->value.data, x->rows, x->cols, eps);
    if (o) {
        o->x = node_of(x);
        o->w = node_of(w);
        o->inv = inv;
    }
    return t->error.code ? NULL : &out->var;
}

/* ---- rotary positions ---- */

struct rope_op {
    struct grad_op op;
    struct grad_node *x;
    size_t n_heads, head_dim;
    const uint32_t *position;
    const double *inv_freq;
};

/* The gradient is turned back where it lies: after this it is of no other use. */
static void rope_backward(struct grad_tape *t, struct grad_op *op) {
    struct rope_op *o = (struct rope_op *)op;
    float *dy = node_sum(t, op->out[0]);
    if (!dy) return;
    kernel_rope(dy, op->out[0]->var.rows, o->n_heads, o->head_dim, o->position, o->inv_freq, -1);
    node_pass_on(t, o->x, op->out[0]);
}

struct grad_var *grad_rope(struct grad_tape *t, struct grad_var *x, size_t n_heads, size_t head_dim,
                           const uint32_t *position, const double *inv_freq) {
    if (!x || t->error.code) return NULL;
    if (head_dim % 2 != 0 || head_dim == 0 || x->cols / head_dim != n_heads || x->cols % head_dim != 0)
        return tape_fail(t, ERR_DATA, "rope: %zu heads of %zu in rows of %zu", n_heads, head_dim, x->cols);
    bool own = !node_of(x)->is_leaf;
    struct grad_node *out =
        own ? tape_result_in(t, x, node_wanted(x)) : tape_result(t, x->rows, x->cols, node_wanted(x));
    if (!out) return NULL;
    if (!own) kernel_copy(out->var.value.data, x->value.data, var_size(x));
    kernel_rope(out->var.value.data, x->rows, n_heads, head_dim, position, inv_freq, 1);
    struct rope_op *o = tape_record(t, sizeof *o, rope_backward, 1, &out);
    if (o) {
        o->x = node_of(x);
        o->n_heads = n_heads;
        o->head_dim = head_dim;
        o->position = position;
        o->inv_freq = inv_freq;
    }
    return t->error.code ? NULL : &out->var;
}

/* ---- attention ---- */

struct attention_op {
    struct grad_op op;
    struct grad_node *q, *k, *v;
    struct kernel_attention shape;
    float *lse;
};

static void attention_backward(struct grad_tape *t, struct grad_op *op) {
    struct attention_op *o = (struct attention_op *)op;
    /* The kernel makes all three at once; what is not wanted goes to memory that is dropped. */
    bool unwanted[3] = {!o->q->wanted, !o->k->wanted, !o->v->wanted};
    struct grad_node *in[3] = {o->q, o->k, o->v};
    float *d[3];
    size_t mark = stack_mark(&t->scratch);
    for (int i = 0; i < 3; i++) {
        d[i] = unwanted[i] ? tape_scratch(t, var_size(&in[i]->var), sizeof *d[i]) : node_sum(t, in[i]);
        if (unwanted[i] && d[i]) kernel_fill(d[i], var_size(&in[i]->var), 0);
    }
    if (!t->error.code)
        kernel_attention_backward(&o->shape, d[0], d[1], d[2], op->out[0]->var.grad.data, op->out[0]->var.value.data,
                                  o->lse, o->q->var.value.data, o->k->var.value.data, o->v->var.value.data);
    stack_rewind(&t->scratch, mark);
}

static bool attention_fits(const struct grad_var *q, const struct grad_var *k, const struct grad_var *v,
                           const struct kernel_attention *s) {
    if (s->n_kv_heads == 0 || s->head_dim == 0 || s->head_dim > KERNEL_MAX_HEAD_DIM) return false;
    if (s->n_heads == 0 || s->n_heads % s->n_kv_heads != 0) return false;
    if (q->cols / s->head_dim != s->n_heads || q->cols % s->head_dim != 0) return false;
    if (k->cols / s->head_dim != s->n_kv_heads || k->cols % s->head_dim != 0) return false;
    if (!same_shape(k, v) || q->rows != k->rows || s->starts[0] != 0) return false;
    for (size_t i = 0; i < s->n_seqs; i++)
        if (s->starts[i + 1] <= s->starts[i]) return false;
    return s->starts[s->n_seqs] == q->rows;
}

struct grad_var *grad_attention(struct grad_tape *t, struct grad_var *q, struct grad_var *k, struct grad_var *v,
                                const struct kernel_attention *shape) {
    if (!q || !k || !v || t->error.code) return NULL;
    if (!attention_fits(q, k, v, shape))
        return tape_fail(
            t, ERR_DATA, "attention: %zu and %zu heads of %zu over %zu sequences do not fit [%zu, %zu] and [%zu, %zu]",
            shape->n_heads, shape->n_kv_heads, shape->head_dim, shape->n_seqs, q->rows, q->cols, k->rows, k->cols);
    struct grad_node *out = tape_result(t, q->rows, q->cols, node_wanted(q) || node_wanted(k) || node_wanted(v));
    if (!out) return NULL;
    struct attention_op *o = tape_record(t, sizeof *o, attention_backward, 1, &out);
    float *lse = o ? tape_alloc(t, q->rows * shape->n_heads, sizeof *lse) : NULL;
    kernel_attention(shape, out->var.value.data, lse, q->value.data, k->value.data, v->value.data);
    if (o) {
        o->q = node_of(q);
        o->k = node_of(k);
        o->v = node_of(v);
        o->lse = lse;
        o->shape = *shape;
    }
    return t->error.code ? NULL : &out->var;
}

/* ---- SwiGLU ---- */

struct swiglu_op {
    struct grad_op op;
    struct grad_node *gate, *up;
};

static void swiglu_backward(struct grad_tape *t, struct grad_op *op) {
    struct swiglu_op *o = (struct swiglu_op *)op;
    size_t n = var_size(&op->out[0]->var), mark = stack_mark(&t->scratch);
    float *dgate = node_sum(t, o->gate), *dup = node_sum(t, o->up), *unused = NULL;
    if (!o->gate->wanted || !o->up->wanted) { /* both are made at once; one of them is dropped */
        unused = tape_scratch(t, n, sizeof *unused);
        if (unused) kernel_fill(unused, n, 0);
    }
    if (!t->error.code)
        kernel_swiglu_backward(dgate ? dgate : unused, dup ? dup : unused, op->out[0]->var.grad.data,
                               o->gate->var.value.data, o->up->var.value.data, n);
    stack_rewind(&t->scratch, mark);
}

struct grad_var *grad_swiglu(struct grad_tape *t, struct grad_var *gate, struct grad_var *up) {
    if (!gate || !up || t->error.code) return NULL;
    if (!same_shape(gate, up))
        return tape_fail(t, ERR_DATA, "swiglu: gate [%zu, %zu], up [%zu, %zu]", gate->rows, gate->cols, up->rows,
                         up->cols);
    struct grad_node *out = tape_result(t, gate->rows, gate->cols, node_wanted(gate) || node_wanted(up));
    if (!out) return NULL;
    kernel_swiglu(out->var.value.data, gate->value.data, up->value.data, var_size(gate));
    struct swiglu_op *o = tape_record(t, sizeof *o, swiglu_backward, 1, &out);
    if (o) {
        o->gate = node_of(gate);
        o->up = node_of(up);
    }
    return t->error.code ? NULL : &out->var;
}
