/*
 * The tape: memory, variables, gradients.
 *
 * Memory is a list of blocks filled from the front, each at least as large as all before it: a shape's first step makes
 * a few, later steps make none and touch the same pages. Gradients of intermediate results live shorter than values:
 * one is made when the first contribution arrives and given back when its operation has gone backward, so a handful of
 * buffers serves a model of any depth.
 */
#include <sys/mman.h>

#include "lib/grad/grad_internal.h"

#define ALIGN     64
#define MIN_BLOCK ((size_t)1 << 20)
#define HUGE_PAGE ((size_t)2 << 20)

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

/* 4 KiB pages cost more to touch for the first time than the arithmetic done on them: ask for huge ones. */
static void ask_for_huge_pages(unsigned char *data, size_t size) {
    uintptr_t begin = ((uintptr_t)data + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    uintptr_t end = ((uintptr_t)data + size) & ~(HUGE_PAGE - 1);
    if (begin < end) madvise((void *)begin, end - begin, MADV_HUGEPAGE); /* advice: failing changes nothing */
}

static bool add_block(struct grad_tape *t, size_t need) {
    struct err e;
    if (t->n_blocks == t->max_blocks) {
        size_t max = t->max_blocks ? 2 * t->max_blocks : 8;
        struct grad_block *blocks = mem_array(max, sizeof *blocks, &e);
        if (!blocks) return tape_fail(t, e.code, "%s", e.msg);
        if (t->n_blocks) memcpy(blocks, t->blocks, t->n_blocks * sizeof *blocks);
        mem_free(t->blocks);
        t->blocks = blocks;
        t->max_blocks = max;
    }
    size_t held = grad_memory(t), size = held > MIN_BLOCK ? held : MIN_BLOCK;
    if (size < need) size = need;
    unsigned char *data = mem_alloc(size, &e);
    if (!data && size > need) data = mem_alloc(size = need, &e);
    if (!data) return tape_fail(t, e.code, "%s", e.msg);
    ask_for_huge_pages(data, size);
    t->blocks[t->n_blocks++] = (struct grad_block){data, size, held};
    return true;
}

void *tape_alloc(struct grad_tape *t, size_t n, size_t size) {
    uint64_t bytes;
    if (t->error.code) return NULL;
    if (!u64_mul(n, size, &bytes) || !u64_align(bytes ? bytes : 1, ALIGN, &bytes))
        return tape_fail(t, ERR_IO, "out of memory: %zu objects of %zu bytes", n, size);
    while (t->block < t->n_blocks && bytes > t->blocks[t->block].size - t->used) {
        t->block++;
        t->used = 0;
    }
    if (t->block == t->n_blocks && !add_block(t, bytes)) return NULL;
    void *p = t->blocks[t->block].data + t->used;
    t->used += bytes;
    return p;
}

void *grad_alloc(struct grad_tape *t, size_t n) {
    return tape_alloc(t, n, 1);
}

size_t grad_mark(const struct grad_tape *t) {
    return t->block < t->n_blocks ? t->blocks[t->block].before + t->used : grad_memory(t);
}

void grad_rewind(struct grad_tape *t, size_t mark) {
    while (t->block > 0 && (t->block == t->n_blocks || t->blocks[t->block].before > mark)) t->block--;
    t->used = t->n_blocks ? mark - t->blocks[t->block].before : 0;
}

size_t grad_memory(const struct grad_tape *t) {
    return t->n_blocks ? t->blocks[t->n_blocks - 1].before + t->blocks[t->n_blocks - 1].size : 0;
}

/* ---- the tape ---- */

int grad_tape_new(struct grad_tape **out, bool record, struct err *e) {
    *out = mem_zalloc(sizeof **out, e);
    if (!*out) return e->code;
    (*out)->record = record;
    return 0;
}

bool grad_records(const struct grad_tape *t) {
    return t->record;
}

void grad_tape_free(struct grad_tape *t) {
    if (!t) return;
    for (size_t i = 0; i < t->n_blocks; i++) mem_free(t->blocks[i].data);
    mem_free(t->blocks);
    mem_free(t);
}

void grad_reset(struct grad_tape *t) {
    t->block = t->used = 0;
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

struct grad_var *grad_leaf(struct grad_tape *t, float *value, float *grad, size_t rows, size_t cols) {
    struct grad_node *v = new_node(t, rows, cols);
    if (!v) return NULL;
    v->var.value = value;
    v->var.grad = grad;
    v->wanted = grad != NULL;
    v->is_leaf = true;
    return &v->var;
}

struct grad_var *grad_scratch(struct grad_tape *t, size_t rows, size_t cols) {
    struct grad_node *v = tape_result(t, rows, cols, false);
    return v ? &v->var : NULL;
}

struct grad_node *tape_result(struct grad_tape *t, size_t rows, size_t cols, bool wanted) {
    struct grad_node *v = new_node(t, rows, cols);
    uint64_t n;
    if (!v) return NULL;
    if (!u64_mul(rows, cols, &n)) return tape_fail(t, ERR_IO, "out of memory: a matrix of [%zu, %zu]", rows, cols);
    v->wanted = wanted && t->record;
    v->var.value = tape_alloc(t, n, sizeof(float));
    return v->var.value ? v : NULL;
}

void *tape_record(struct grad_tape *t, size_t size, void (*backward)(struct grad_tape *, struct grad_op *),
                  struct grad_node *out) {
    if (!out->wanted) return NULL;
    struct grad_op *op = tape_alloc(t, 1, size);
    if (!op) return NULL;
    *op = (struct grad_op){backward, t->last, out};
    t->last = op;
    return op;
}

/* ---- gradients ---- */

static bool take_buffer(struct grad_tape *t, struct grad_node *v) {
    size_t n = v->var.rows * v->var.cols;
    struct grad_buffer **at = &t->free_buffers, *b;
    while (*at && (*at)->n != n) at = &(*at)->next_free;
    if (*at) {
        b = *at;
        *at = b->next_free;
    } else {
        b = tape_alloc(t, 1, sizeof *b);
        float *data = tape_alloc(t, n, sizeof *data);
        if (!b || !data) return false;
        *b = (struct grad_buffer){.data = data, .n = n};
    }
    b->users = 1;
    v->buffer = b;
    v->var.grad = b->data;
    return true;
}

static void drop_buffer(struct grad_tape *t, struct grad_node *v) {
    struct grad_buffer *b = v->buffer;
    v->buffer = NULL;
    v->var.grad = NULL;
    if (--b->users > 0) return;
    b->next_free = t->free_buffers;
    t->free_buffers = b;
}

float *node_target(struct grad_tape *t, struct grad_node *v, bool *fresh) {
    *fresh = false;
    if (v->is_leaf) return v->var.grad;
    if (!v->buffer) {
        *fresh = true;
        return take_buffer(t, v) ? v->var.grad : NULL;
    }
    if (v->buffer->users > 1) { /* someone else still reads it: write to a copy */
        struct grad_buffer *shared = v->buffer;
        if (!take_buffer(t, v)) return NULL;
        kernel_copy(v->var.grad, shared->data, shared->n);
        shared->users--;
    }
    return v->var.grad;
}

float *node_sum(struct grad_tape *t, struct grad_node *v) {
    bool fresh;
    if (!v->wanted) return NULL;
    float *g = node_target(t, v, &fresh);
    if (g && fresh) kernel_fill(g, v->buffer->n, 0);
    return g;
}

float *grad_of(struct grad_tape *t, struct grad_var *v) {
    return v ? node_sum(t, node_of(v)) : NULL;
}

void node_pass_on(struct grad_tape *t, struct grad_node *to, struct grad_node *from) {
    if (!to->wanted) return;
    if (to->is_leaf || to->buffer) {
        float *g = node_sum(t, to);
        if (g) kernel_add(g, from->var.grad, from->var.rows * from->var.cols);
        return;
    }
    to->buffer = from->buffer;
    to->var.grad = from->var.grad;
    to->buffer->users++;
}

void grad_backward(struct grad_tape *t) {
    for (struct grad_op *op = t->last; op && !t->error.code; op = op->previous) {
        if (!op->out->buffer) continue; /* nothing depends on it */
        op->backward(t, op);
        drop_buffer(t, op->out);
    }
    t->last = NULL;
}
