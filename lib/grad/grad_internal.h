/* Private to lib/grad: the tape behind the operations. */
#ifndef RILL_GRAD_INTERNAL_H
#define RILL_GRAD_INTERNAL_H

#include "lib/grad/grad.h"

/* Memory of a gradient. Two variables may share one as long as neither writes (see node_pass_on). */
struct grad_buffer {
    float *data;
    size_t n; /* floats */
    int users;
    struct grad_buffer *next_free;
};

/* A variable and what the caller does not see of it. */
struct grad_node {
    struct grad_var var; /* first: a grad_var of this tape is cast back */
    bool wanted;         /* some parameter below it wants a gradient */
    bool is_leaf;        /* value and gradient are the caller's */
    struct grad_buffer *buffer;
};

/* What an operation leaves for the way back. Extra facts lie behind it, in the operation's own struct. */
struct grad_op {
    void (*backward)(struct grad_tape *t, struct grad_op *op); /* reads out's gradient, adds to the inputs' */
    struct grad_op *previous;
    struct grad_node *out;
};

struct grad_block {
    unsigned char *data;
    size_t size, before; /* before: sizes of the blocks in front of it */
};

struct grad_tape {
    bool record;
    struct grad_block *blocks;
    size_t n_blocks, max_blocks;
    size_t block, used;   /* the position: bytes used of blocks[block] */
    struct grad_op *last; /* newest first */
    struct grad_buffer *free_buffers;
    struct err error; /* code 0: none */
};

/* Notes the first failure. Returns NULL, for `return tape_fail(...)`. */
void *tape_fail(struct grad_tape *t, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* n objects of `size` bytes, 64-byte aligned; NULL with the failure noted. */
void *tape_alloc(struct grad_tape *t, size_t n, size_t size);

static inline struct grad_node *node_of(struct grad_var *v) {
    return (struct grad_node *)v;
}

/* A result [rows][cols], uninitialised. */
struct grad_node *tape_result(struct grad_tape *t, size_t rows, size_t cols, bool wanted);

/*
 * Begins the record of an operation: `size` bytes whose head is a struct grad_op. NULL when nothing is to be recorded
 * (no record, or out not wanted) or memory is out; the caller then leaves out what is only needed for backward.
 */
void *tape_record(struct grad_tape *t, size_t size, void (*backward)(struct grad_tape *, struct grad_op *),
                  struct grad_node *out);

/*
 * The gradient of a wanted node, to write to. *fresh: it is new and uninitialised, and must be overwritten instead of
 * added to. NULL when memory is out.
 */
float *node_target(struct grad_tape *t, struct grad_node *v, bool *fresh);
/* The same, zeroed when new: for adding to. NULL when v is not wanted, too. */
float *node_sum(struct grad_tape *t, struct grad_node *v);
/* Adds the gradient of `from` to that of `to`; if `to` has none yet they share the memory and nothing is copied. */
void node_pass_on(struct grad_tape *t, struct grad_node *to, struct grad_node *from);

#endif
