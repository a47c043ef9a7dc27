/* Private to lib/grad: memory, variables, and the tape that operations record on. */
#ifndef RILL_GRAD_INTERNAL_H
#define RILL_GRAD_INTERNAL_H

#include "lib/grad/grad.h"

/* ---- a stack allocator (stack.c) ---- */

struct grad_block {
    struct kernel_array memory; /* bytes */
    size_t size, before;        /* before: total size of the earlier blocks */
};

struct grad_stack {
    struct kernel_device *device;
    struct grad_block *blocks;
    size_t n_blocks, max_blocks;
    size_t block, used; /* current position: `used` bytes of blocks[block] */
    size_t peak;        /* highest position so far */
};

/* n objects of `size` bytes, as an array of this type, 64-byte aligned; no data and *e if out of memory. */
struct kernel_array stack_take(struct grad_stack *s, enum dtype dtype, size_t n, size_t size, struct err *e);
size_t stack_mark(const struct grad_stack *s);
void stack_rewind(struct grad_stack *s, size_t mark);
size_t stack_held(const struct grad_stack *s); /* bytes */
void stack_release(struct grad_stack *s);

/* ---- the tape (tape.c) ---- */

/* Memory of a gradient. Variables may share one as long as none writes to it (see node_pass_on). */
struct grad_buffer {
    struct kernel_array data; /* bytes */
    size_t bytes;
    int users;
    struct grad_buffer *next_free;
};

/* A variable with its private part. */
struct grad_node {
    struct grad_var var;         /* must be first: a grad_var is cast to its node */
    bool wanted;                 /* depends on a leaf with a gradient */
    bool is_leaf;                /* value and gradient are the caller's */
    bool *begun;                 /* of a leaf, or NULL: has the gradient been written to? */
    struct kernel_matrix matrix; /* of a packed leaf */
    struct grad_buffer *buffer;
};

/* The record of an operation; the first member of the operation's own struct. */
struct grad_op {
    void (*backward)(struct grad_tape *t, struct grad_op *op); /* from the gradients of out to those of the inputs */
    struct grad_op *previous;
    size_t n_out;
    struct grad_node *out[GRAD_MAX_MAPS];
};

struct grad_tape {
    bool record, recompute;
    bool bare; /* inside a segment whose input may be overwritten */
    enum dtype precision;
    /* Separate stacks, because a segment that is recomputed frees its values while gradients outlive them. */
    struct grad_stack values, gradients, scratch;
    /* Host memory: nodes and the record, with the lifetime of values; grad_buffers, with that of gradients. */
    struct grad_stack notes, gradient_notes;
    struct grad_op *last; /* newest operation */
    struct grad_buffer *free_buffers;
    struct err error; /* code 0: no error */
};

/* Stores the error unless there is one already. Returns NULL, for `return tape_fail(...)`. */
void *tape_fail(struct grad_tape *t, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Allocation; on failure no data, with the error stored. tape_alloc: n objects in host memory, as long as the graph;
 * tape_value: n elements of a value; tape_scratch and _matrix: n elements, or a matrix [n][k] packed in bf16, for one
 * operation, which marks and rewinds t->scratch. */
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

/* An uninitialized result [rows][cols]; it and its gradient have this type. */
struct grad_node *tape_result(struct grad_tape *t, size_t rows, size_t cols, enum dtype dtype, bool wanted);
/* A result in the memory of another variable. */
struct grad_node *tape_result_in(struct grad_tape *t, const struct grad_var *of, bool wanted);

/*
 * Records an operation: `size` bytes that start with a struct grad_op. NULL if nothing is to be recorded (the tape does
 * not record, or no result is wanted) or memory is out; the caller then skips what only the backward pass needs.
 */
void *tape_record(struct grad_tape *t, size_t size, void (*backward)(struct grad_tape *, struct grad_op *),
                  size_t n_out, struct grad_node *const *out);

/* Runs the backward pass of all operations recorded after `until` and drops them. */
void tape_walk(struct grad_tape *t, struct grad_op *until);

/*
 * The gradient of a wanted node, to write to. *fresh: it is uninitialized and must be overwritten, not added to. No
 * data if out of memory.
 */
struct kernel_array node_target(struct grad_tape *t, struct grad_node *v, bool *fresh);
/* The same for adding: zeroed if fresh. No data if v is not wanted, either. */
struct kernel_array node_sum(struct grad_tape *t, struct grad_node *v);
/*
 * For operations that overwrite: node_open returns where to write a contribution to the gradient of v, wanted or not:
 * the gradient itself if it is fresh, else scratch. node_close then adds the scratch to the gradient, or drops it.
 */
struct kernel_array node_open(struct grad_tape *t, struct grad_node *v);
void node_close(struct grad_tape *t, struct grad_node *v, struct kernel_array contribution);
/* Adds the gradient of `from` to that of `to`; if `to` has none yet they share the memory without a copy. */
void node_pass_on(struct grad_tape *t, struct grad_node *to, struct grad_node *from);

/* Backward of y = x w^T in f32, for wanted inputs; value: x in f32. (linear.c) */
void map_backward_f32(struct grad_tape *t, const struct grad_var *y, struct grad_node *x, struct kernel_array value,
                      struct grad_node *w);

#endif
