/*
 * Attention of generation: one query a sequence against its cache. What bounds it is memory, so a key is read once for all
 * heads that share it, in the order in which it lies: the keys of a head one behind the other, then its values
 * [n_kv_heads][2][capacity][head_dim]. A (sequence, key head) is a task; scores are in f32, the softmax is online.
 */
#include <math.h>

#include "lib/kernel/attention_internal.h"

#define HEADS 8 /* of a group in a task */

size_t kernel_cache_size(size_t n_kv_heads, size_t head_dim, size_t capacity) {
    return 2 * n_kv_heads * head_dim * capacity;
}

/* The keys of a head, or its values. */
static struct kernel_array rows_of(const struct kernel_attention *a, const struct kernel_cache *c, size_t kv_head,
                                   bool values) {
    return kernel_part(c->memory, (2 * kv_head + values) * c->capacity * a->head_dim);
}

/* ---- appending ---- */

struct append {
    const struct kernel_attention *a;
    struct kernel_cache *caches;
    struct kernel_array k, v;
};

static void append_task(void *ctx, size_t s, int thread) {
    const struct append *p = ctx;
    struct kernel_cache *c = &p->caches[s];
    size_t d = p->a->head_dim, n = p->a->starts[s + 1] - p->a->starts[s];
    size_t row = kernel_array_bytes(c->memory.dtype, d);
    (void)thread;
    for (size_t h = 0; h < p->a->n_kv_heads; h++)
        for (int values = 0; values < 2; values++) {
            char *to = kernel_part(rows_of(p->a, c, h, values), c->length * d).data;
            const char *from = kernel_part(values ? p->v : p->k, (p->a->starts[s] * p->a->n_kv_heads + h) * d).data;
            for (size_t i = 0; i < n; i++) memcpy(to + i * row, from + i * p->a->n_kv_heads * row, row);
        }
    c->length += n;
}

void kernel_cache_append(const struct kernel_attention *a, struct kernel_cache *caches, struct kernel_array k,
                         struct kernel_array v) {
    parallel_for(a->n_seqs, append_task, &(struct append){a, caches, k, v});
}

/* ---- attending ---- */

struct decode {
    const struct kernel_attention *a;
    const struct simd *v;
    struct kernel_array y, q;
    const struct kernel_cache *caches;
    size_t parts; /* of a group */
};

/* One task: some heads of a group against the keys and values of their sequence, a block of keys at a time. */
struct heads {
    const struct decode *c;
    size_t n, d;
    struct kernel_array q;
    float wide_q[HEADS * KERNEL_MAX_HEAD_DIM]; /* when bf16 is multiplied in f32 */
    float room[KEYS_FLOATS];
    float s[HEADS * KEYS], m[HEADS], y[HEADS * KERNEL_MAX_HEAD_DIM];
    double l[HEADS];
};

static size_t keys_in_block(const struct heads *t) {
    return smaller(KEYS, KEYS_FLOATS / t->d);
}

/* A block of rows in f32. */
static const float *wide_rows(struct heads *t, struct kernel_array rows, size_t n) {
    if (rows.dtype == DT_F32) return rows.data;
    t->c->v->from_bf16(t->room, rows.data, n * t->d);
    return t->room;
}

static void scores(struct heads *t, struct kernel_array keys, size_t n, const void *next) {
    const struct simd *v = t->c->v;
    if (keys.dtype == DT_BF16 && v->decode_dots) {
        v->decode_dots(t->s, KEYS, t->q.data, t->n, keys.data, n, t->d, next);
        return;
    }
    const float *q = t->q.dtype == DT_F32 ? t->q.data : t->wide_q, *rows = wide_rows(t, keys, n);
    for (size_t h = 0; h < t->n; h++) v->dots(t->s + h * KEYS, q + h * t->d, rows, t->d, n, t->d);
}

/* Scores become weights, and what was summed up shrinks with a new maximum. */
static void weigh(struct heads *t, size_t n) {
    const struct simd *v = t->c->v;
    float scale = t->c->a->scale;
    for (size_t h = 0; h < t->n; h++) {
        float *s = t->s + h * KEYS, top = v->max(s, n);
        if (top > t->m[h]) {
            float shrink = expf((t->m[h] - top) * scale);
            t->m[h] = top;
            t->l[h] *= shrink;
            v->scale(t->y + h * t->d, t->d, shrink);
        }
        t->l[h] += v->exp_store(s, s, n, t->m[h], scale);
    }
}

static void mix(struct heads *t, struct kernel_array values, size_t n, const void *next) {
    const struct simd *v = t->c->v;
    if (values.dtype == DT_BF16 && v->decode_mix) {
        v->decode_mix(t->y, t->s, KEYS, t->n, values.data, n, t->d, next);
        return;
    }
    const float *rows = wide_rows(t, values, n);
    for (size_t h = 0; h < t->n; h++) v->mix_rows(t->y + h * t->d, t->s + h * KEYS, rows, t->d, n, t->d);
}

static void decode_heads(struct heads *t, const struct kernel_cache *cache, size_t kv_head, size_t at,
                         const void *next) {
    const struct decode *c = t->c;
    struct kernel_array keys = rows_of(c->a, cache, kv_head, false), values = rows_of(c->a, cache, kv_head, true);
    size_t d = t->d;
    t->q = kernel_part(c->q, at);
    if (t->q.dtype != DT_F32 && !c->v->decode_dots) c->v->from_bf16(t->wide_q, t->q.data, t->n * d);
    memset(t->y, 0, t->n * d * sizeof *t->y);
    for (size_t h = 0; h < t->n; h++) t->m[h] = -INFINITY, t->l[h] = 0;
    for (size_t from = 0, n; from < cache->length; from += n) {
        n = smaller(keys_in_block(t), cache->length - from);
        struct kernel_array value = kernel_part(values, from * d);
        bool last = from + n == cache->length;
        scores(t, kernel_part(keys, from * d), n, value.data);
        weigh(t, n);
        mix(t, value, n, last ? next : kernel_part(keys, (from + n) * d).data);
    }
    for (size_t h = 0; h < t->n; h++) c->v->scale(t->y + h * d, d, (float)(1 / t->l[h]));
    if (c->y.dtype == DT_F32)
        memcpy((float *)c->y.data + at, t->y, t->n * d * sizeof *t->y);
    else
        c->v->to_bf16((uint16_t *)c->y.data + at, t->y, t->n * d);
}

static void decode_task(void *ctx, size_t i, int thread) {
    const struct decode *c = ctx;
    size_t part = i % c->parts, kv_head = i / c->parts % c->a->n_kv_heads, seq = i / c->parts / c->a->n_kv_heads;
    size_t group = c->a->n_heads / c->a->n_kv_heads, first = kv_head * group + part * HEADS;
    struct heads t;
    (void)thread;
    t.c = c;
    t.n = smaller(HEADS, group - part * HEADS);
    t.d = c->a->head_dim;
    const void *next = c->caches[seq].memory.data;
    if (part == c->parts - 1) {
        if (kv_head + 1 < c->a->n_kv_heads)
            next = rows_of(c->a, &c->caches[seq], kv_head + 1, false).data;
        else if (seq + 1 < c->a->n_seqs)
            next = rows_of(c->a, &c->caches[seq + 1], 0, false).data;
    }
    decode_heads(&t, &c->caches[seq], kv_head, (seq * c->a->n_heads + first) * t.d, next);
}

void kernel_attention_decode(const struct kernel_attention *a, struct kernel_array y, struct kernel_array q,
                             const struct kernel_cache *caches) {
    struct decode c = {a, simd(), y, q, caches, (a->n_heads / a->n_kv_heads + HEADS - 1) / HEADS};
    parallel_for(a->n_seqs * a->n_kv_heads * c.parts, decode_task, &c);
}
