/*
 * The tape: memory, variables, gradients.
 *
 * Gradients of intermediate results live shorter than values: one is allocated when the first contribution arrives and
 * freed when the operation that made the result has run backward, so a few buffers suffice for a model of any depth.
 */
#include "lib/grad/grad_internal.h"

void *tape_fail(struct grad_tape *t, int code, const char *fmt, ...) {
    if (t->error.code) return NULL;
    char text[sizeof t->error.msg];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    err_set(&t->error, code, "%s", text);
    return NULL;
}

/* ---- memory ---- */

static struct kernel_array take(struct grad_tape *t, struct grad_stack *from, enum dtype dtype, size_t n, size_t size) {
    struct err e;
    if (t->error.code) return kernel_none(dtype);
    struct kernel_array a = stack_take(from, dtype, n, size, &e);
    if (!kernel_has_data(a)) tape_fail(t, e.code, "%s", e.msg);
    return a;
}

static void *take_note(struct grad_tape *t, struct grad_stack *from, size_t n, size_t size) {
    return kernel_host(take(t, from, DT_U8, n, size), n * size);
}

void *tape_alloc(struct grad_tape *t, size_t n, size_t size) {
    return take_note(t, &t->notes, n, size);
}

struct kernel_array tape_value(struct grad_tape *t, enum dtype dtype, size_t n) {
    return take(t, &t->values, dtype, n, kernel_array_bytes(dtype, 1));
}

struct kernel_array tape_scratch(struct grad_tape *t, enum dtype dtype, size_t n) {
    return take(t, &t->scratch, dtype, n, kernel_array_bytes(dtype, 1));
}

struct kernel_array tape_scratch_matrix(struct grad_tape *t, size_t n, size_t k) {
    return take(t, &t->scratch, DT_U8, kernel_matrix_bytes(KERNEL_PACKED_BF16, DT_BF16, n, k), 1);
}

void *grad_alloc(struct grad_tape *t, size_t n) {
    return tape_alloc(t, n, 1);
}

struct grad_mark grad_mark(const struct grad_tape *t) {
    return (struct grad_mark){stack_mark(&t->values), stack_mark(&t->notes)};
}

void grad_rewind(struct grad_tape *t, struct grad_mark mark) {
    stack_rewind(&t->values, mark.values);
    stack_rewind(&t->notes, mark.notes);
}

struct grad_memory grad_memory(const struct grad_tape *t) {
    return (struct grad_memory){t->values.peak + t->notes.peak, t->gradients.peak + t->gradient_notes.peak,
                                t->scratch.peak};
}

/* ---- the tape ---- */

int grad_tape_new(struct grad_tape **out, struct kernel_device *device, bool record, enum dtype precision,
                  struct err *e) {
    struct grad_tape *t = *out = mem_zalloc(sizeof *t, e);
    if (!t) return e->code;
    t->record = record;
    t->precision = precision;
    t->values.device = t->gradients.device = t->scratch.device = device;
    t->notes.device = t->gradient_notes.device = kernel_cpu();
    return 0;
}

bool grad_records(const struct grad_tape *t) {
    return t->record;
}

enum dtype grad_precision(const struct grad_tape *t) {
    return t->precision;
}

void grad_recompute(struct grad_tape *t, bool on) {
    t->recompute = on;
}

void grad_tape_free(struct grad_tape *t) {
    if (!t) return;
    stack_release(&t->values);
    stack_release(&t->gradients);
    stack_release(&t->scratch);
    stack_release(&t->notes);
    stack_release(&t->gradient_notes);
    mem_free(t);
}

void grad_reset(struct grad_tape *t) {
    stack_rewind(&t->values, 0);
    stack_rewind(&t->gradients, 0);
    stack_rewind(&t->scratch, 0);
    stack_rewind(&t->notes, 0);
    stack_rewind(&t->gradient_notes, 0);
    t->last = NULL;
    t->free_buffers = NULL;
    t->error.code = 0;
}

int grad_error(const struct grad_tape *t, struct err *e) {
    if (t->error.code) *e = t->error;
    return t->error.code;
}

static struct grad_node *new_node(struct grad_tape *t, size_t rows, size_t cols) {
    struct grad_node *v = tape_alloc(t, 1, sizeof *v);
    if (v) *v = (struct grad_node){.var = {.rows = rows, .cols = cols}};
    return v;
}

struct grad_var *grad_leaf(struct grad_tape *t, struct kernel_array value, struct kernel_array grad, size_t rows,
                           size_t cols) {
    struct grad_node *v = new_node(t, rows, cols);
    if (!v) return NULL;
    v->var.value = value;
    v->var.grad = grad;
    v->wanted = t->record && kernel_has_data(grad);
    v->is_leaf = true;
    return &v->var;
}

struct grad_var *grad_parameter(struct grad_tape *t, struct kernel_array value, struct kernel_array grad, bool *begun,
                                size_t rows, size_t cols) {
    struct grad_var *v = grad_leaf(t, value, grad, rows, cols);
    if (v) node_of(v)->begun = begun;
    return v;
}

struct grad_var *grad_leaf_packed(struct grad_tape *t, const struct kernel_matrix *w) {
    if (t->precision != DT_BF16 || t->record)
        return tape_fail(t, ERR_USAGE, "packed weights are for inference in bf16, which this tape is not made for");
    struct grad_node *v = new_node(t, w->n, w->k);
    if (!v) return NULL;
    v->matrix = *w;
    v->is_leaf = true;
    return &v->var;
}

struct grad_var *grad_scratch(struct grad_tape *t, size_t rows, size_t cols, enum dtype dtype) {
    struct grad_node *v = tape_result(t, rows, cols, dtype, false);
    return v ? &v->var : NULL;
}

const float *grad_host_value(struct grad_tape *t, const struct grad_var *v) {
    if (!v) return NULL;
    struct kernel_array x = v->value;
    if (x.dtype != DT_F32) {
        x = tape_value(t, DT_F32, var_size(v));
        if (kernel_has_data(x)) kernel_convert(x, v->value, var_size(v));
    }
    return kernel_host(x, var_size(v));
}

struct grad_node *tape_result(struct grad_tape *t, size_t rows, size_t cols, enum dtype dtype, bool wanted) {
    struct grad_node *v = new_node(t, rows, cols);
    uint64_t n;
    if (!v) return NULL;
    if (!u64_mul(rows, cols, &n)) return tape_fail(t, ERR_IO, "out of memory: a matrix of [%zu, %zu]", rows, cols);
    v->wanted = wanted && t->record;
    v->var.value = tape_value(t, dtype, n);
    v->var.grad = kernel_none(dtype);
    return kernel_has_data(v->var.value) ? v : NULL;
}

struct grad_node *tape_result_in(struct grad_tape *t, const struct grad_var *of, bool wanted) {
    struct grad_node *v = new_node(t, of->rows, of->cols);
    if (!v) return NULL;
    v->wanted = wanted && t->record;
    v->var.value = of->value;
    v->var.grad = kernel_none(of->grad.dtype);
    return v;
}

void *tape_record(struct grad_tape *t, size_t size, void (*backward)(struct grad_tape *, struct grad_op *),
                  size_t n_out, struct grad_node *const *out) {
    bool wanted = false;
    for (size_t i = 0; i < n_out; i++) wanted = wanted || out[i]->wanted;
    struct grad_op *op = wanted ? tape_alloc(t, 1, size) : NULL;
    if (!op) return NULL;
    *op = (struct grad_op){.backward = backward, .previous = t->last, .n_out = n_out};
    for (size_t i = 0; i < n_out; i++) op->out[i] = out[i];
    t->last = op;
    return op;
}

/* ---- gradients ---- */

static bool take_buffer(struct grad_tape *t, struct grad_node *v) {
    size_t bytes = kernel_array_bytes(v->var.grad.dtype, var_size(&v->var));
    struct grad_buffer **at = &t->free_buffers, *b;
    while (*at && (*at)->bytes != bytes) at = &(*at)->next_free;
    if (*at) {
        b = *at;
        *at = b->next_free;
    } else {
        b = take_note(t, &t->gradient_notes, 1, sizeof *b);
        struct kernel_array data = take(t, &t->gradients, DT_U8, bytes, 1);
        if (!b || !kernel_has_data(data)) return false;
        *b = (struct grad_buffer){.data = data, .bytes = bytes};
    }
    b->users = 1;
    v->buffer = b;
    v->var.grad = kernel_typed(b->data, v->var.grad.dtype);
    return true;
}

static void drop_buffer(struct grad_tape *t, struct grad_node *v) {
    struct grad_buffer *b = v->buffer;
    if (!b) return;
    v->buffer = NULL;
    v->var.grad = kernel_none(v->var.grad.dtype);
    if (--b->users > 0) return;
    b->next_free = t->free_buffers;
    t->free_buffers = b;
}

struct kernel_array node_target(struct grad_tape *t, struct grad_node *v, bool *fresh) {
    *fresh = v->is_leaf ? v->begun && !*v->begun : !v->buffer;
    if (v->is_leaf) {
        if (*fresh) *v->begun = true;
    } else if (*fresh) {
        take_buffer(t, v);
    } else if (v->buffer->users > 1) { /* another variable still reads it: copy on write */
        struct grad_buffer *shared = v->buffer;
        struct kernel_array from = v->var.grad;
        v->var.grad = kernel_none(from.dtype);
        if (take_buffer(t, v)) {
            kernel_convert(v->var.grad, from, var_size(&v->var));
            shared->users--;
        }
    }
    return v->var.grad;
}

struct kernel_array node_sum(struct grad_tape *t, struct grad_node *v) {
    bool fresh;
    if (!v->wanted) return kernel_none(v->var.grad.dtype);
    struct kernel_array g = node_target(t, v, &fresh);
    if (kernel_has_data(g) && fresh) kernel_fill(g, var_size(&v->var), 0);
    return g;
}

struct kernel_array grad_of(struct grad_tape *t, struct grad_var *v) {
    return v ? node_sum(t, node_of(v)) : kernel_none(DT_F32);
}

void grad_add_to(struct grad_tape *t, struct grad_var *v, const float *g) {
    struct kernel_array to = grad_of(t, v);
    if (kernel_has_data(to)) kernel_add(to, kernel_f32(g), var_size(v));
}

struct kernel_array node_open(struct grad_tape *t, struct grad_node *v) {
    enum dtype dtype = v->var.grad.dtype;
    bool fresh;
    if (v->wanted && !v->is_leaf && !v->buffer) return node_target(t, v, &fresh);
    return tape_scratch(t, dtype, var_size(&v->var));
}

void node_close(struct grad_tape *t, struct grad_node *v, struct kernel_array contribution) {
    if (!v->wanted || t->error.code || kernel_same_data(v->var.grad, contribution)) return;
    bool fresh;
    struct kernel_array g = node_target(t, v, &fresh);
    if (kernel_has_data(g) && fresh) kernel_convert(g, contribution, var_size(&v->var));
    if (kernel_has_data(g) && !fresh) kernel_add(g, contribution, var_size(&v->var));
}

void node_pass_on(struct grad_tape *t, struct grad_node *to, struct grad_node *from) {
    if (!to->wanted) return;
    if (to->is_leaf || to->buffer || to->var.grad.dtype != from->var.grad.dtype) {
        struct kernel_array g = node_sum(t, to);
        if (kernel_has_data(g)) kernel_add(g, from->var.grad, var_size(&from->var));
        return;
    }
    to->buffer = from->buffer;
    to->var.grad = from->var.grad;
    to->buffer->users++;
}

static bool depended_on(const struct grad_op *op) {
    for (size_t i = 0; i < op->n_out; i++)
        if (op->out[i]->buffer) return true;
    return false;
}

void tape_walk(struct grad_tape *t, struct grad_op *until) {
    while (t->last != until && !t->error.code) {
        struct grad_op *op = t->last;
        t->last = op->previous; /* before the call: recomputed segments record after it */
        if (!depended_on(op)) continue;
        op->backward(t, op);
        for (size_t i = 0; i < op->n_out; i++) drop_buffer(t, op->out[i]);
    }
    t->last = until;
}

void grad_backward(struct grad_tape *t) {
    tape_walk(t, NULL);
}
