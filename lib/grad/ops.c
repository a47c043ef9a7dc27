/* Embedding, rotary positions, attention: each operation checks shapes, runs forward, and records its backward
 * function. */
#include "lib/grad/grad_internal.h"

/* ---- embedding ---- */

struct embed_op {
    struct grad_op op;
    struct grad_node *table;
    const uint32_t *ids;
};

static void embed_backward(struct grad_tape *t, struct grad_op *op) {
    struct embed_op *o = (struct embed_op *)op;
    struct kernel_array g = node_sum(t, o->table);
    if (kernel_has_data(g))
        kernel_scatter_add(g, op->out[0]->var.grad, o->ids, op->out[0]->var.rows, op->out[0]->var.cols);
}

struct grad_var *grad_embed(struct grad_tape *t, struct grad_var *table, const uint32_t *ids, size_t n) {
    if (!table || t->error.code) return NULL;
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= table->rows)
            return tape_fail(t, ERR_DATA, "token %u at position %zu: the vocabulary has %zu", ids[i], i, table->rows);
    struct grad_node *out = tape_result(t, n, table->cols, DT_F32, node_wanted(table));
    if (!out) return NULL;
    if (node_packed(table))
        kernel_matrix_gather(out->var.value, &node_of(table)->matrix, ids, n);
    else
        kernel_gather(out->var.value, table->value, ids, n, table->cols);
    struct embed_op *o = tape_record(t, sizeof *o, embed_backward, 1, &out);
    uint32_t *copy = o ? tape_alloc(t, n, sizeof *ids) : NULL;
    if (copy) {
        memcpy(copy, ids, n * sizeof *ids);
        o->table = node_of(table);
        o->ids = copy;
    }
    return t->error.code ? NULL : &out->var;
}

/* ---- rotary positions ---- */

struct rope_op {
    struct grad_op op;
    struct grad_node *x;
    size_t n_heads, head_dim;
    const uint32_t *position;
    struct kernel_rotation rotation;
};

/* Rotates the gradient back in place, as nothing reads it later. */
static void rope_backward(struct grad_tape *t, struct grad_op *op) {
    struct rope_op *o = (struct rope_op *)op;
    struct kernel_array dy = node_sum(t, op->out[0]);
    if (!kernel_has_data(dy)) return;
    kernel_rope(dy, op->out[0]->var.rows, o->n_heads, o->head_dim, o->position, &o->rotation, -1);
    node_pass_on(t, o->x, op->out[0]);
}

struct grad_var *grad_rope(struct grad_tape *t, struct grad_var *x, size_t n_heads, size_t head_dim,
                           const uint32_t *position, const struct kernel_rotation *rotation) {
    size_t dims = rotation->dims;
    if (!x || t->error.code) return NULL;
    if (dims % 2 != 0 || dims > head_dim || head_dim == 0 || x->cols / head_dim != n_heads || x->cols % head_dim != 0)
        return tape_fail(t, ERR_DATA, "rope: %zu of each of %zu heads of %zu in rows of %zu", dims, n_heads, head_dim,
                         x->cols);
    bool own = !node_of(x)->is_leaf;
    struct grad_node *out =
        own ? tape_result_in(t, x, node_wanted(x)) : tape_result(t, x->rows, x->cols, x->value.dtype, node_wanted(x));
    if (!out) return NULL;
    if (!own) kernel_convert(out->var.value, x->value, var_size(x));
    kernel_rope(out->var.value, x->rows, n_heads, head_dim, position, rotation, 1);
    struct rope_op *o = tape_record(t, sizeof *o, rope_backward, 1, &out);
    if (o) {
        o->x = node_of(x);
        o->n_heads = n_heads;
        o->head_dim = head_dim;
        o->position = position;
        o->rotation = *rotation;
    }
    return t->error.code ? NULL : &out->var;
}

/* ---- attention ---- */

struct attention_op {
    struct grad_op op;
    struct grad_node *q, *k, *v;
    struct kernel_attention shape;
    struct kernel_array lse;
};

/* dk and dv are summed in f32: in place, or in scratch and then rounded. */
static void attention_backward(struct grad_tape *t, struct grad_op *op) {
    struct attention_op *o = (struct attention_op *)op;
    const struct grad_var *y = &op->out[0]->var;
    size_t mark = stack_mark(&t->scratch), n = var_size(&o->k->var);
    struct kernel_array dq = node_open(t, o->q), dk = node_open(t, o->k), dv = node_open(t, o->v);
    bool round = dk.dtype != DT_F32;
    struct kernel_array sum_k = round ? tape_scratch(t, DT_F32, n) : dk,
                        sum_v = round ? tape_scratch(t, DT_F32, n) : dv;
    if (!t->error.code) {
        kernel_attention_backward(&o->shape, dq, sum_k, sum_v, y->grad, y->value, o->lse, o->q->var.value,
                                  o->k->var.value, o->v->var.value);
        if (round) kernel_convert(dk, sum_k, n);
        if (round) kernel_convert(dv, sum_v, n);
        node_close(t, o->q, dq);
        node_close(t, o->k, dk);
        node_close(t, o->v, dv);
    }
    stack_rewind(&t->scratch, mark);
}

static bool attention_fits(const struct grad_var *q, const struct grad_var *k, const struct grad_var *v,
                           const struct kernel_attention *s) {
    if (s->n_kv_heads == 0 || s->head_dim == 0 || s->head_dim > KERNEL_MAX_HEAD_DIM) return false;
    if (s->n_heads == 0 || s->n_heads % s->n_kv_heads != 0) return false;
    if (q->cols / s->head_dim != s->n_heads || q->cols % s->head_dim != 0) return false;
    if (k->cols / s->head_dim != s->n_kv_heads || k->cols % s->head_dim != 0) return false;
    if (!same_shape(k, v) || k->value.dtype != v->value.dtype || q->rows != k->rows || s->starts[0] != 0) return false;
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
    struct grad_node *out =
        tape_result(t, q->rows, q->cols, q->value.dtype, node_wanted(q) || node_wanted(k) || node_wanted(v));
    if (!out) return NULL;
    struct attention_op *o = tape_record(t, sizeof *o, attention_backward, 1, &out);
    struct kernel_array lse = o ? tape_value(t, DT_F32, q->rows * shape->n_heads) : kernel_none(DT_F32);
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
