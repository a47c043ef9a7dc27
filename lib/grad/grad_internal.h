/* Private to lib/grad: the tape that the operations record on. */
#ifndef RILL_GRAD_INTERNAL_H
#define RILL_GRAD_INTERNAL_H

#include "lib/grad/grad.h"

/* ---- memory filled from the front and given back to a mark (stack.c) ---- */

struct grad_block {
    struct kernel_array memory; /* bytes */
    size_t size, before;        /* before: sizes of the blocks in front of it */
};

struct grad_stack {
    struct kernel_device *device;
    struct grad_block *blocks;
    size_t n_blocks, max_blocks;
    size_t block, used; /* the position: bytes used of blocks[block] */
    size_t peak;        /* the furthest position so far */
};

/* n objects of `size` bytes as an array of this type, 64-byte aligned; no data and *e when memory is out. */
struct kernel_array stack_take(struct grad_stack *s, enum dtype dtype, size_t n, size_t size, struct err *e);
size_t stack_mark(const struct grad_stack *s);
void stack_rewind(struct grad_stack *s, size_t mark);
size_t stack_held(const struct grad_stack *s); /* bytes */
void stack_release(struct grad_stack *s);

/* ---- the tape (tape.c) ---- */

/* Memory of a gradient. Two variables may share one as long as neither writes (see node_pass_on). */
struct grad_buffer {
    struct kernel_array data; /* bytes */
    size_t bytes;
    int users;
    struct grad_buffer *next_free;
};

/* A variable and its private part. */
struct grad_node {
    struct grad_var var;         /* first: a grad_var of this tape is cast back */
    bool wanted;                 /* it depends on a parameter that wants a gradient */
    bool is_leaf;                /* value and gradient are the caller's */
    bool *begun;                 /* of a leaf, or NULL: does the gradient hold anything yet? */
    struct kernel_matrix matrix; /* of a packed leaf */
    struct grad_buffer *buffer;
};

/* What an operation records for backward; the first member of the operation's own struct. */
struct grad_op {
    void (*backward)(struct grad_tape *t, struct grad_op *op); /* reads out's gradients, adds to the inputs' */
    struct grad_op *previous;
    size_t n_out;
    struct grad_node *out[GRAD_MAX_MAPS];
};

struct grad_tape {
    bool record, recompute;
    bool bare; /* inside a segment whose input may be overwritten */
    enum dtype precision;
    /* Apart, because a segment that is run again gives its values back while gradients and what is outside stay. */
    struct grad_stack values, gradients, scratch;
    /* In host memory: the record goes with the values, what describes gradients with those. */
    struct grad_stack notes, gradient_notes;
    struct grad_op *last; /* newest first */
    struct grad_buffer *free_buffers;
    struct err error; /* code 0: none */
};

/* Notes the first failure. Returns NULL, for `return tape_fail(...)`. */
void *tape_fail(struct grad_tape *t, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Memory; none, with the failure noted, when it is out. n objects on the host, for the record; n elements of a value; and
 * for the time of one operation n elements, or a matrix [n][k] packed in bf16: the caller marks and rewinds t->scratch. */
void *tape_alloc(struct grad_tape *t, size_t n, size_t size);
struct kernel_array tape_value(struct grad_tape *t, enum dtype dtype, size_t n);
struct kernel_array tape_scratch(struct grad_tape *t, enum dtype dtype, size_t n);
struct kernel_array tape_scratch_matrix(struct grad_tape *t, size_t n, size_t k);

static inline struct grad_node *node_of(struct grad_var *v) {
    return (struct grad_node *)v;
}

static inline bool node_packed(const struct grad_var *v) {
    return kernel_has_matrix(&((const struct grad_node *)v)->matrix);
}

static inline bool node_wanted(const struct grad_var *v) {
    return v && ((const struct grad_node *)v)->wanted;
}

static inline bool same_shape(const struct grad_var *a, const struct grad_var *b) {
    return a->rows == b->rows && a->cols == b->cols;
}

static inline size_t var_size(const struct grad_var *v) {
    return v->rows * v->cols;
}

/* A result [rows][cols] and its gradient, both of this type; uninitialised. */
struct grad_node *tape_result(struct grad_tape *t, size_t rows, size_t cols, enum dtype dtype, bool wanted);
/* One in the memory of another variable. */
struct grad_node *tape_result_in(struct grad_tape *t, const struct grad_var *of, bool wanted);

/*
 * Begins the record of an operation: `size` bytes whose head is a struct grad_op. NULL when nothing is to be recorded
 * (no record, or no result wanted) or memory is out; the caller then leaves out what is only needed for backward.
 */
void *tape_record(struct grad_tape *t, size_t size, void (*backward)(struct grad_tape *, struct grad_op *),
                  size_t n_out, struct grad_node *const *out);

/* Goes backward through what was recorded after `until`, and forgets it. */
void tape_walk(struct grad_tape *t, struct grad_op *until);

/*
 * The gradient of a wanted node, to write to. *fresh: there is nothing in it yet, and it must be overwritten instead of
 * added to. No data when memory is out.
 */
struct kernel_array node_target(struct grad_tape *t, struct grad_node *v, bool *fresh);
/* The same, zeroed when new: for adding to. No data when v is not wanted, too. */
struct kernel_array node_sum(struct grad_tape *t, struct grad_node *v);
/*
 * For operations that overwrite: where to write a contribution to the gradient of v, wanted or not, and what to call
 * when it is there. It is the gradient itself if that is new, else scratch that is added or forgotten.
 */
struct kernel_array node_open(struct grad_tape *t, struct grad_node *v);
void node_close(struct grad_tape *t, struct grad_node *v, struct kernel_array contribution);
/* Adds the gradient of `from` to that of `to`; if `to` has none yet they share the memory and nothing is copied. */
void node_pass_on(struct grad_tape *t, struct grad_node *to, struct grad_node *from);

/* Backward of y = x w^T in f32, of what is wanted; value: x, in f32 (linear.c). */
void map_backward_f32(struct grad_tape *t, const struct grad_var *y, struct grad_node *x, struct kernel_array value,
                      struct grad_node *w);

#endif
