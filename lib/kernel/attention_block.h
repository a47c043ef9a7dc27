/*
 * Shared by both forms of attention: how work is split, and layouts. attention_f32.c computes in f32, with bf16
 * widened; attention_bf16.c multiplies bf16 where the path has instructions for it; attention.c calls one of them per
 * block.
 */
#ifndef RILL_ATTENTION_BLOCK_H
#define RILL_ATTENTION_BLOCK_H

#include "lib/kernel/kernel_internal.h"

#define KEYS        128   /* per block */
#define MAX_ROWS    256   /* stacked queries per block */
#define ROWS_FLOATS 16384 /* stacked queries x head_dim: the size of an array on a task's stack, 64 KiB */
#define KEYS_FLOATS 32768 /* widened keys x head_dim */
/* Forward in bf16 keeps less per row, so it takes more rows: keys are packed for fewer blocks of queries. */
#define FORWARD_ROWS   384
#define FORWARD_FLOATS 24576

/* How a (sequence, key head) is split: `heads` of the group at a time, `queries` positions at a time. */
struct cut {
    size_t group, heads, queries;
};

/*
 * One block of stacked queries: row r = (h - head) * n + (t - first), for `heads` heads h and n positions t of a
 * sequence.
 */
struct attention_block {
    size_t start, length; /* of the sequence */
    size_t kv_head, head, heads;
    size_t first, n;
};

/* Index of row r of a block in q, y and their gradients. */
static inline size_t query_at(const struct kernel_attention *a, const struct attention_block *b, size_t r) {
    return ((b->start + b->first + r % b->n) * a->n_heads + b->head + r / b->n) * a->head_dim;
}

/* Index of key `t` of the sequence in k and v. */
static inline size_t key_at(const struct kernel_attention *a, const struct attention_block *b, size_t t) {
    return ((b->start + t) * a->n_kv_heads + b->kv_head) * a->head_dim;
}

/* Keys [begin, end) of the sequence that any row of the block sees; begin is a multiple of KEYS. */
struct keys {
    size_t begin, end;
};
static inline struct keys keys_of(const struct kernel_attention *a, const struct attention_block *b) {
    struct keys k = {0, a->bidirectional ? b->length : b->first + b->n};
    if (a->window && b->first >= a->window) k.begin = (b->first - a->window + 1) / KEYS * KEYS;
    return k;
}

/* The keys among [from, from + n) that row r sees, as [begin, end) relative to `from`; begin and end are 0 if there are
 * none. */
static inline struct keys visible(const struct kernel_attention *a, const struct attention_block *b, size_t r,
                                  size_t from, size_t n) {
    size_t position = b->first + r % b->n;
    if (a->bidirectional) return (struct keys){0, n};
    if (position < from) return (struct keys){0, 0};
    struct keys k = {0, smaller(position - from + 1, n)};
    if (a->window && position + 1 > from + a->window) k.begin = position + 1 - from - a->window;
    return k.begin < k.end ? k : (struct keys){0, 0};
}

/* Zeroes the scores of keys that the row does not see. */
static inline void zero_outside(float *row, struct keys see, size_t keys) {
    memset(row, 0, see.begin * sizeof *row);
    memset(row + see.end, 0, (keys - see.end) * sizeof *row);
}

struct forward {
    const struct kernel_attention *a;
    const struct simd *v;
    struct view y, q, k, values;
    float *lse;
    bool is_bf16;
    struct cut cut;
    size_t query_blocks, head_blocks; /* of the longest sequence; of a group */
};

struct backward {
    const struct kernel_attention *a;
    const struct simd *v;
    struct view dq, dy, y, q, k, values;
    float *dk, *dv;
    const float *lse;
    struct cut cut;
};

/* Can these operands be multiplied as bf16? */
bool attention_is_bf16(const struct simd *v, const struct kernel_attention *a, struct view q, struct view k,
                       struct view values);
void forward_block_f32(const struct forward *f, const struct attention_block *b);
void forward_block_bf16(const struct forward *f, const struct attention_block *b);
void backward_block_f32(const struct backward *w, const struct attention_block *b);
void backward_block_bf16(const struct backward *w, const struct attention_block *b);

#endif
