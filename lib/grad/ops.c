/* The operations: each checks shapes, runs forward, and records a function that runs backward. */
#include "lib/grad/grad_internal.h"

static bool wanted(const struct grad_var *v) {
    return v && ((const struct grad_node *)v)->wanted;
}

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
    if (g) kernel_scatter_add(g, op->out->var.grad, o->ids, op->out->var.rows, op->out->var.cols);
}

struct grad_var *grad_embed(struct grad_tape *t, struct grad_var *table, const uint32_t *ids, size_t n) {
    if (!table || t->error.code) return NULL;
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= table->rows)
            return tape_fail(t, ERR_DATA, "token %u at position %zu: the vocabulary has %zu", ids[i], i, table->rows);
    struct grad_node *out = tape_result(t, n, table->cols, wanted(table));
    if (!out) return NULL;
    kernel_gather(out->var.value, table->value, ids, n, table->cols);
    struct embed_op *o = tape_record(t, sizeof *o, embed_backward, out);
    uint32_t *copy = o ? tape_alloc(t, n, sizeof *ids) : NULL;
    if (copy) {
        memcpy(copy, ids, n * sizeof *ids);
        o->table = node_of(table);
        o->ids = copy;
    }
    return t->error.code ? NULL : &out->var;
}

/* ---- linear ---- */

struct linear_op {
    struct grad_op op;
    struct grad_node *x, *w, *bias;
};

static void linear_backward(struct grad_tape *t, struct grad_op *op) {
    struct linear_op *o = (struct linear_op *)op;
    const float *dy = op->out->var.grad;
    size_t n = op->out->var.rows, out = op->out->var.cols, in = o->x->var.cols;
    bool fresh;
    if (o->x->wanted) {
        float *dx = node_target(t, o->x, &fresh);
        if (dx) kernel_matmul_nn(n, in, out, dy, o->w->var.value, fresh ? 0 : 1, dx);
    }
    if (o->w->wanted) {
        float *dw = node_target(t, o->w, &fresh);
        if (dw) kernel_matmul_tn(out, in, n, dy, o->x->var.value, fresh ? 0 : 1, dw);
    }
    if (o->bias && o->bias->wanted) {
        float *db = node_sum(t, o->bias);
        if (db) kernel_sum_rows(db, dy, n, out);
    }
}

struct grad_var *grad_linear(struct grad_tape *t, struct grad_var *x, struct grad_var *w, struct grad_var *bias) {
    if (!x || !w || t->error.code) return NULL;
    if (x->cols != w->cols)
        return tape_fail(t, ERR_DATA, "linear: input of %zu, weight [%zu, %zu]", x->cols, w->rows, w->cols);
    if (bias && (bias->rows != 1 || bias->cols != w->rows))
        return tape_fail(t, ERR_DATA, "linear: bias [%zu, %zu] for an output of %zu", bias->rows, bias->cols, w->rows);
    struct grad_node *out = tape_result(t, x->rows, w->rows, wanted(x) || wanted(w) || wanted(bias));
    if (!out) return NULL;
    kernel_matmul_nt(x->rows, w->rows, x->cols, x->value, w->value, 0, out->var.value);
    if (bias) kernel_add_bias(out->var.value, bias->value, x->rows, w->rows);
    struct linear_op *o = tape_record(t, sizeof *o, linear_backward, out);
    if (o) {
        o->x = node_of(x);
        o->w = node_of(w);
        o->bias = bias ? node_of(bias) : NULL;
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
    kernel_rmsnorm_backward(dx, dw, op->out->var.grad, o->x->var.value, o->w->var.value, o->inv, op->out->var.rows,
                            op->out->var.cols);
}

struct grad_var *grad_rmsnorm(struct grad_tape *t, struct grad_var *x, struct grad_var *w, float eps) {
    if (!x || !w || t->error.code) return NULL;
    if (w->rows != 1 || w->cols != x->cols)
        return tape_fail(t, ERR_DATA, "rmsnorm: weight [%zu, %zu] for rows of %zu", w->rows, w->cols, x->cols);
    struct grad_node *out = tape_result(t, x->rows, x->cols, wanted(x) || wanted(w));
    if (!out) return NULL;
    struct rmsnorm_op *o = tape_record(t, sizeof *o, rmsnorm_backward, out);
    float *inv = o ? tape_alloc(t, x->rows, sizeof *inv) : NULL;
    kernel_rmsnorm(out->var.value, inv, x->value, w->value, x->rows, x->cols, eps);
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
    float *dy = node_sum(t, op->out);
    if (!dy) return;
    kernel_rope(dy, op->out->var.rows, o->n_heads, o->head_dim, o->position, o->inv_freq, -1);
    node_pass_on(t, o->x, op->out);
}

struct grad_var *grad_rope(struct grad_tape *t, struct grad_var *x, size_t n_heads, size_t head_dim,
                           const uint32_t *position, const double *inv_freq) {
    if (!x || t->error.code) return NULL;
    if (head_dim % 2 != 0 || head_dim == 0 || x->cols / head_dim != n_heads || x->cols % head_dim != 0)
        return tape_fail(t, ERR_DATA, "rope: %zu heads of %zu in rows of %zu", n_heads, head_dim, x->cols);
    struct grad_node *out = tape_result(t, x->rows, x->cols, wanted(x));
    if (!out) return NULL;
    kernel_copy(out->var.value, x->value, x->rows * x->cols);
    kernel_rope(out->var.value, x->rows, n_heads, head_dim, position, inv_freq, 1);
    struct rope_op *o = tape_record(t, sizeof *o, rope_backward, out);
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
    size_t mark = grad_mark(t);
    for (int i = 0; i < 3; i++) {
        if (unwanted[i]) continue;
        d[i] = node_sum(t, in[i]);
        mark = grad_mark(t);
    }
    for (int i = 0; i < 3; i++) {
        if (!unwanted[i]) continue;
        d[i] = tape_alloc(t, in[i]->var.rows * in[i]->var.cols, sizeof *d[i]);
        if (d[i]) kernel_fill(d[i], in[i]->var.rows * in[i]->var.cols, 0);
    }
    if (!t->error.code)
        kernel_attention_backward(&o->shape, d[0], d[1], d[2], op->out->var.grad, op->out->var.value, o->lse,
                                  o->q->var.value, o->k->var.value, o->v->var.value);
    grad_rewind(t, mark);
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
    struct grad_node *out = tape_result(t, q->rows, q->cols, wanted(q) || wanted(k) || wanted(v));
    if (!out) return NULL;
    struct attention_op *o = tape_record(t, sizeof *o, attention_backward, out);
    float *lse = o ? tape_alloc(t, q->rows * shape->n_heads, sizeof *lse) : NULL;
    kernel_attention(shape, out->var.value, lse, q->value, k->value, v->value);
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
    size_t n = op->out->var.rows * op->out->var.cols, mark = 0;
    float *dgate = node_sum(t, o->gate), *dup = node_sum(t, o->up), *unused = NULL;
    if (!o->gate->wanted || !o->up->wanted) { /* both are made at once; one of them is dropped */
        mark = grad_mark(t);
        unused = tape_alloc(t, n, sizeof *unused);
        if (unused) kernel_fill(unused, n, 0);
    }
    if (!t->error.code)
        kernel_swiglu_backward(dgate ? dgate : unused, dup ? dup : unused, op->out->var.grad, o->gate->var.value,
                               o->up->var.value, n);
    if (unused) grad_rewind(t, mark);
}

struct grad_var *grad_swiglu(struct grad_tape *t, struct grad_var *gate, struct grad_var *up) {
    if (!gate || !up || t->error.code) return NULL;
    if (!same_shape(gate, up))
        return tape_fail(t, ERR_DATA, "swiglu: gate [%zu, %zu], up [%zu, %zu]", gate->rows, gate->cols, up->rows,
                         up->cols);
    struct grad_node *out = tape_result(t, gate->rows, gate->cols, wanted(gate) || wanted(up));
    if (!out) return NULL;
    kernel_swiglu(out->var.value, gate->value, up->value, gate->rows * gate->cols);
    struct swiglu_op *o = tape_record(t, sizeof *o, swiglu_backward, out);
    if (o) {
        o->gate = node_of(gate);
        o->up = node_of(up);
    }
    return t->error.code ? NULL : &out->var;
}

/* ---- addition ---- */

struct add_op {
    struct grad_op op;
    struct grad_node *a, *b;
};

static void add_backward(struct grad_tape *t, struct grad_op *op) {
    struct add_op *o = (struct add_op *)op;
    node_pass_on(t, o->a, op->out);
    node_pass_on(t, o->b, op->out);
}

struct grad_var *grad_add(struct grad_tape *t, struct grad_var *a, struct grad_var *b) {
    if (!a || !b || t->error.code) return NULL;
    if (!same_shape(a, b))
        return tape_fail(t, ERR_DATA, "add: [%zu, %zu] and [%zu, %zu]", a->rows, a->cols, b->rows, b->cols);
    struct grad_node *out = tape_result(t, a->rows, a->cols, wanted(a) || wanted(b));
    if (!out) return NULL;
    kernel_copy(out->var.value, a->value, a->rows * a->cols);
    kernel_add(out->var.value, b->value, a->rows * a->cols);
    struct add_op *o = tape_record(t, sizeof *o, add_backward, out);
    if (o) {
        o->a = node_of(a);
        o->b = node_of(b);
    }
    return t->error.code ? NULL : &out->var;
}
