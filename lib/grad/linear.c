/* Linear maps: one weight, or several with the same input. */
#include "lib/grad/grad_internal.h"

struct linear_op {
    struct grad_op op;
    struct grad_node *x, *residual;
    struct {
        struct grad_node *w, *bias;
    } map[GRAD_MAX_MAPS];
};

/* ---- backward ---- */

void map_backward_f32(struct grad_tape *t, const struct grad_var *y, struct grad_node *x, struct kernel_array value,
                      struct grad_node *w) {
    size_t n = y->rows, out = y->cols, in = x->var.cols;
    bool fresh;
    if (x->wanted) {
        struct kernel_array dx = node_target(t, x, &fresh);
        if (kernel_has_data(dx)) kernel_matmul_nn(n, in, out, y->grad, w->var.value, fresh ? 0 : 1, dx);
    }
    if (w->wanted) {
        struct kernel_array dw = node_target(t, w, &fresh);
        if (kernel_has_data(dw)) kernel_matmul_tn(out, in, n, y->grad, value, fresh ? 0 : 1, dw);
    }
}

/* dx = dy W, rounded if the gradient of x is bf16, else summed in f32 over the maps of x. */
static void input_gradient_bf16(struct grad_tape *t, struct grad_node *x, const struct grad_node *w, size_t rows,
                                struct kernel_array dy) {
    struct kernel_epilogue how = {0};
    struct kernel_array dx;
    bool fresh = true, sums = x->var.grad.dtype == DT_F32;
    struct kernel_array memory = tape_scratch_matrix(t, w->var.cols, w->var.rows);
    dx = sums ? node_target(t, x, &fresh) : node_open(t, x);
    if (t->error.code) return;
    how.accumulate = !fresh;
    struct kernel_matrix packed = kernel_pack_nn(memory, w->var.cols, w->var.rows, w->var.value);
    kernel_multiply(rows, dy, &packed, &how, dx);
    if (!sums) node_close(t, x, dx);
}

/* dw += dy^T x, with x packed. */
static void weight_gradient_bf16(struct grad_tape *t, struct grad_node *w, struct kernel_array dy,
                                 const struct kernel_matrix *x) {
    bool fresh;
    struct kernel_array dw = node_target(t, w, &fresh);
    if (t->error.code) return;
    struct kernel_epilogue how = {.accumulate = !fresh};
    kernel_multiply_tn(w->var.rows, dy, x, &how, dw);
}

/* dy in bf16: rounded once into scratch for both products, or in place. */
static struct kernel_array rounded_gradient(struct grad_tape *t, const struct grad_var *y) {
    if (y->grad.dtype == DT_BF16) return y->grad;
    struct kernel_array dy = tape_scratch(t, DT_BF16, var_size(y));
    if (kernel_has_data(dy)) kernel_convert(dy, y->grad, var_size(y));
    return dy;
}

static void map_backward_bf16(struct grad_tape *t, struct linear_op *o, size_t i, const struct kernel_matrix *x) {
    size_t mark = stack_mark(&t->scratch), rows = o->x->var.rows;
    struct kernel_array dy = rounded_gradient(t, &o->op.out[i]->var);
    bool ready = kernel_has_data(dy);
    size_t with_dy = stack_mark(&t->scratch);
    if (ready && o->x->wanted) input_gradient_bf16(t, o->x, o->map[i].w, rows, dy);
    stack_rewind(&t->scratch, with_dy);
    if (ready && o->map[i].w->wanted) weight_gradient_bf16(t, o->map[i].w, dy, x);
    stack_rewind(&t->scratch, mark);
}

/* Packs x for dw; the maps share it. */
static struct kernel_matrix pack_input(struct grad_tape *t, const struct linear_op *o) {
    const struct grad_var *x = &o->x->var;
    bool wanted = false;
    for (size_t i = 0; i < o->op.n_out; i++) wanted = wanted || o->map[i].w->wanted;
    struct kernel_array memory = wanted ? tape_scratch_matrix(t, x->cols, x->rows) : kernel_none(DT_BF16);
    if (!kernel_has_data(memory)) return (struct kernel_matrix){0};
    return kernel_pack_nn(memory, x->cols, x->rows, x->value);
}

static void linear_backward(struct grad_tape *t, struct grad_op *op) {
    struct linear_op *o = (struct linear_op *)op;
    size_t mark = stack_mark(&t->scratch);
    bool bf16 = t->precision == DT_BF16;
    struct kernel_matrix x = bf16 ? pack_input(t, o) : (struct kernel_matrix){0};
    if (o->residual) node_pass_on(t, o->residual, op->out[0]);
    for (size_t i = op->n_out; i-- > 0 && !t->error.code;) {
        const struct grad_node *y = op->out[i];
        struct grad_node *bias = o->map[i].bias;
        if (!y->buffer) continue;
        if (bf16)
            map_backward_bf16(t, o, i, &x);
        else
            map_backward_f32(t, &y->var, o->x, o->x->var.value, o->map[i].w);
        if (!bias || !bias->wanted || t->error.code) continue;
        struct kernel_array db = node_sum(t, bias);
        if (kernel_has_data(db)) kernel_sum_rows(db, y->var.grad, y->var.rows, y->var.cols);
    }
    stack_rewind(&t->scratch, mark);
}

/* ---- forward ---- */

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

static void multiply_f32(struct grad_var *y, const struct grad_var *x, const struct grad_map *m,
                         const struct grad_var *residual) {
    kernel_matmul_nt(x->rows, m->w->rows, x->cols, x->value, m->w->value, 0, y->value);
    if (m->bias) kernel_add_bias(y->value, m->bias->value, x->rows, m->w->rows);
    if (residual) kernel_add(y->value, residual->value, var_size(residual));
}

/* A weight changes between products, so each product packs it: in advance if several tiles of rows read it, or strip by
 * strip. */
#define MANY_ROWS 128

static struct kernel_matrix packed_weight(struct grad_tape *t, const struct grad_var *w, size_t rows) {
    if (node_packed(w)) return ((const struct grad_node *)w)->matrix;
    struct kernel_matrix stored = kernel_matrix_of(w->value, w->rows, w->cols);
    if (rows <= MANY_ROWS) return stored;
    struct kernel_array memory = tape_scratch_matrix(t, w->rows, w->cols);
    return kernel_has_data(memory) ? kernel_pack_nt(memory, &stored) : stored;
}

static void multiply_bf16(struct grad_tape *t, struct grad_var *y, const struct grad_var *x, const struct grad_map *m,
                          const struct grad_var *residual, const struct grad_var *gate, enum kernel_act act) {
    size_t mark = stack_mark(&t->scratch);
    struct kernel_matrix w = packed_weight(t, m->w, x->rows);
    struct kernel_epilogue how = {.act = act};
    if (m->bias) how.bias = m->bias->value;
    if (residual) how.residual = residual->value;
    if (gate) how.gate = gate->value;
    if (!t->error.code) kernel_multiply(x->rows, x->value, &w, &how, y->value);
    stack_rewind(&t->scratch, mark);
}

static struct grad_node *map_forward(struct grad_tape *t, struct grad_var *x, const struct grad_map *m,
                                     struct grad_var *residual) {
    if (!m->w || !shapes_fit(t, x, m, residual)) return NULL;
    bool wanted = node_wanted(x) || node_wanted(m->w) || node_wanted(m->bias) || node_wanted(residual);
    /* an f32 product cannot overwrite what is added after it */
    bool over = residual && t->bare && t->precision == DT_BF16 && !node_of(residual)->is_leaf;
    struct grad_node *y = over ? tape_result_in(t, residual, wanted)
                               : tape_result(t, x->rows, m->w->rows, residual ? DT_F32 : t->precision, wanted);
    if (y && t->precision == DT_BF16)
        multiply_bf16(t, &y->var, x, m, residual, NULL, ACT_SILU);
    else if (y)
        multiply_f32(&y->var, x, m, residual);
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

/* Without a record nothing reads gate or up again: the epilogue of up's product multiplies by the activated gate, in
 * the gate's memory. */
struct grad_var *grad_gated(struct grad_tape *t, enum kernel_act act, struct grad_var *x, struct grad_var *gate,
                            struct grad_var *up) {
    struct grad_map maps[2] = {{gate, NULL}, {up, NULL}};
    struct grad_var *y[2];
    if (t->record || t->precision != DT_BF16) {
        grad_linears(t, x, 2, maps, y);
        return grad_glu(t, act, y[0], y[1]);
    }
    if (!x || !up || t->error.code || !shapes_fit(t, x, &maps[1], NULL)) return NULL;
    struct grad_var *g = grad_linear(t, x, gate, NULL, NULL);
    if (!g) return NULL;
    if (g->cols != up->rows) return tape_fail(t, ERR_DATA, "gated: gate of %zu, up of %zu", g->cols, up->rows);
    multiply_bf16(t, g, x, &maps[1], NULL, g, act);
    return t->error.code ? NULL : g;
}
