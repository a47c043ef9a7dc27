/*
 * Attention in generation: one query per sequence against its cache. It is bound by memory, so a key is read once for
 * all heads that share it, in memory order: the keys of a head, then its values, [n_kv_heads][2][capacity][head_dim].
 * Scores are f32, the softmax is online.
 *
 * A task is a (sequence, key head, stretch of its keys), so few sequences, even one, keep many threads busy. The
 * results of a sequence's stretches are combined in order (Dao et al. 2023, "Flash-Decoding"). Where stretches begin
 * depends only on the position.
 */
#include <math.h>

#include "lib/kernel/attention_block.h"

#define HEADS   8   /* of a group, per task */
#define STRETCH 512 /* keys per task; a multiple of KEYS */

size_t kernel_cache_size(size_t n_kv_heads, size_t head_dim, size_t capacity) {
    return 2 * n_kv_heads * head_dim * capacity;
}

/* The keys of a head, or its values. */
static struct view rows_of(const struct kernel_attention *a, const struct kernel_cache *c, size_t kv_head,
                           bool values) {
    return view_part(view_of(c->memory), (2 * kv_head + values) * c->capacity * a->head_dim);
}

/* ---- appending ---- */

struct append {
    const struct kernel_attention *a;
    struct kernel_cache *caches;
    struct view k, v;
};

static void append_task(void *ctx, size_t s, int thread) {
    const struct append *p = ctx;
    struct kernel_cache *c = &p->caches[s];
    size_t d = p->a->head_dim, n = p->a->starts[s + 1] - p->a->starts[s];
    size_t row = kernel_array_bytes(c->memory.dtype, d);
    (void)thread;
    for (size_t h = 0; h < p->a->n_kv_heads; h++)
        for (int values = 0; values < 2; values++) {
            char *to = view_part(rows_of(p->a, c, h, values), c->length * d).data;
            const char *from = view_part(values ? p->v : p->k, (p->a->starts[s] * p->a->n_kv_heads + h) * d).data;
            for (size_t i = 0; i < n; i++) memcpy(to + i * row, from + i * p->a->n_kv_heads * row, row);
        }
    c->length += n;
}

void kernel_cache_append(const struct kernel_attention *a, struct kernel_cache *caches, struct kernel_array k,
                         struct kernel_array v) {
    PROFILE(ATTENTION);
    parallel_for(a->n_seqs, append_task, &(struct append){a, caches, view_of(k), view_of(v)});
}

/* ---- attending ---- */

struct decode {
    const struct kernel_attention *a;
    const struct simd *v;
    struct view y, q;
    const struct kernel_cache *caches;
    size_t parts;     /* tasks per group of heads */
    size_t stretches; /* of the longest sequence */
    /* [n_seqs][n_heads][stretches], for sequences with several: maximum, sum, and the weighted sum of values
     * [head_dim] */
    float *scratch;
};

static size_t stretches_of(const struct kernel_cache *c) {
    return (c->length + STRETCH - 1) / STRETCH;
}

/* The first key inside the window of the newest position, and its stretch. */
static size_t first_key(const struct kernel_attention *a, const struct kernel_cache *c) {
    return a->window && c->length > a->window ? c->length - a->window : 0;
}
static size_t first_stretch(const struct kernel_attention *a, const struct kernel_cache *c) {
    return first_key(a, c) / STRETCH;
}

/* Factor of the scores in the softmax; a soft cap has applied the scale already. */
static float softmax_scale(const struct kernel_attention *a) {
    return a->softcap > 0 ? 1 : a->scale;
}

static size_t longest(const struct kernel_attention *a, const struct kernel_cache *caches) {
    size_t most = 0;
    for (size_t s = 0; s < a->n_seqs; s++)
        if (stretches_of(&caches[s]) > most) most = stretches_of(&caches[s]);
    return most;
}

size_t kernel_attention_decode_scratch(const struct kernel_attention *a, const struct kernel_cache *caches) {
    size_t stretches = longest(a, caches);
    return stretches > 1 ? a->n_seqs * a->n_heads * stretches * (a->head_dim + 2) : 0;
}

static float *partial(const struct decode *c, size_t seq, size_t head, size_t stretch) {
    return c->scratch + ((seq * c->a->n_heads + head) * c->stretches + stretch) * (c->a->head_dim + 2);
}

/* One task: some heads of a group against the keys and values of their sequence, one block of keys at a time. */
struct heads {
    const struct decode *c;
    size_t n, d;
    struct view q;
    float wide_q[HEADS * KERNEL_MAX_HEAD_DIM]; /* if bf16 is multiplied in f32 */
    float scratch[KEYS_FLOATS];
    float s[HEADS * KEYS], m[HEADS], y[HEADS * KERNEL_MAX_HEAD_DIM];
    double l[HEADS];
};

static size_t keys_in_block(const struct heads *t) {
    return smaller(KEYS, KEYS_FLOATS / t->d);
}

/* A block of rows in f32. */
static const float *wide_rows(struct heads *t, struct view rows, size_t n) {
    if (rows.dtype == DT_F32) return rows.data;
    t->c->v->from_bf16(t->scratch, rows.data, n * t->d);
    return t->scratch;
}

static void scores(struct heads *t, struct view keys, size_t n, const void *next) {
    const struct simd *v = t->c->v;
    if (keys.dtype == DT_BF16 && v->decode_dots) {
        v->decode_dots(t->s, KEYS, t->q.data, t->n, keys.data, n, t->d, next);
        return;
    }
    const float *q = t->q.dtype == DT_F32 ? t->q.data : t->wide_q, *rows = wide_rows(t, keys, n);
    for (size_t h = 0; h < t->n; h++) v->dots(t->s + h * KEYS, q + h * t->d, rows, t->d, n, t->d);
}

/* Turns scores into weights; rescales earlier sums to the new maximum. */
static void weigh(struct heads *t, size_t n) {
    const struct simd *v = t->c->v;
    const struct kernel_attention *a = t->c->a;
    float scale = softmax_scale(a);
    for (size_t h = 0; h < t->n; h++) {
        float *s = t->s + h * KEYS;
        if (a->softcap > 0) v->softcap(s, s, n, a->softcap, a->scale / a->softcap);
        float top = v->max(s, n);
        if (top > t->m[h]) {
            float shrink = expf((t->m[h] - top) * scale);
            t->m[h] = top;
            t->l[h] *= shrink;
            v->scale(t->y + h * t->d, t->d, shrink);
        }
        t->l[h] += v->exp_store(s, s, n, t->m[h], scale);
    }
}

static void mix(struct heads *t, struct view values, size_t n, const void *next) {
    const struct simd *v = t->c->v;
    if (values.dtype == DT_BF16 && v->decode_mix) {
        v->decode_mix(t->y, t->s, KEYS, t->n, values.data, n, t->d, next);
        return;
    }
    const float *rows = wide_rows(t, values, n);
    for (size_t h = 0; h < t->n; h++) v->mix_rows(t->y + h * t->d, t->s + h * KEYS, rows, t->d, n, t->d);
}

static void attend(struct heads *t, const struct kernel_cache *cache, size_t kv_head, size_t begin, const void *next) {
    const struct kernel_attention *a = t->c->a;
    struct view keys = rows_of(a, cache, kv_head, false), values = rows_of(a, cache, kv_head, true);
    size_t d = t->d, end = smaller(begin + STRETCH, cache->length), first = first_key(a, cache);
    if (t->q.dtype != DT_F32 && !t->c->v->decode_dots) t->c->v->from_bf16(t->wide_q, t->q.data, t->n * d);
    memset(t->y, 0, t->n * d * sizeof *t->y);
    for (size_t h = 0; h < t->n; h++) t->m[h] = -INFINITY, t->l[h] = 0;
    for (size_t from = begin > first ? begin : first, n; from < end; from += n) {
        n = smaller(keys_in_block(t), end - from);
        struct view value = view_part(values, from * d);
        scores(t, view_part(keys, from * d), n, value.data);
        weigh(t, n);
        mix(t, value, n, from + n == cache->length ? next : view_part(keys, (from + n) * d).data);
    }
}

/* Divides y of n heads by their sums and stores it from element `at` on. */
static void finish(const struct decode *c, float *y, const double *l, size_t n, size_t at) {
    size_t d = c->a->head_dim;
    for (size_t h = 0; h < n; h++) c->v->scale(y + h * d, d, (float)(1 / l[h]));
    if (c->y.dtype == DT_F32)
        memcpy((float *)c->y.data + at, y, n * d * sizeof *y);
    else
        c->v->to_bf16((uint16_t *)c->y.data + at, y, n * d);
}

/* The address that the next task reads first, to prefetch. */
static const void *keys_after(const struct decode *c, size_t seq, size_t kv_head, size_t part) {
    if (part + 1 < c->parts) return rows_of(c->a, &c->caches[seq], kv_head, false).data;
    if (kv_head + 1 < c->a->n_kv_heads) return rows_of(c->a, &c->caches[seq], kv_head + 1, false).data;
    return rows_of(c->a, &c->caches[seq + 1 < c->a->n_seqs ? seq + 1 : seq], 0, false).data;
}

/* All sequences are split like the longest one, and stretches past a sequence's end are empty. */
static void decode_task(void *ctx, size_t i, int thread) {
    const struct decode *c = ctx;
    size_t stretch = i % c->stretches, part = i / c->stretches % c->parts, kv_head = i / c->stretches / c->parts;
    size_t seq = kv_head / c->a->n_kv_heads, group = c->a->n_heads / c->a->n_kv_heads, d = c->a->head_dim;
    kv_head %= c->a->n_kv_heads;
    size_t head = kv_head * group + part * HEADS, at = (seq * c->a->n_heads + head) * d;
    const struct kernel_cache *cache = &c->caches[seq];
    struct heads t;
    (void)thread;
    if (stretch * STRETCH >= cache->length || stretch < first_stretch(c->a, cache)) return;
    t.c = c;
    t.n = smaller(HEADS, group - part * HEADS);
    t.d = d;
    t.q = view_part(c->q, at);
    attend(&t, cache, kv_head, stretch * STRETCH, keys_after(c, seq, kv_head, part));
    if (stretches_of(cache) - first_stretch(c->a, cache) == 1) {
        finish(c, t.y, t.l, t.n, at);
        return;
    }
    for (size_t h = 0; h < t.n; h++) {
        float *to = partial(c, seq, head + h, stretch);
        to[0] = t.m[h];
        to[1] = (float)t.l[h];
        memcpy(to + 2, t.y + h * d, d * sizeof *to);
    }
}

/* Combines the stretches of one head of one sequence. */
static void join_task(void *ctx, size_t i, int thread) {
    const struct decode *c = ctx;
    size_t seq = i / c->a->n_heads, head = i % c->a->n_heads, d = c->a->head_dim;
    size_t begin = first_stretch(c->a, &c->caches[seq]), n = stretches_of(&c->caches[seq]);
    float y[KERNEL_MAX_HEAD_DIM], top = -INFINITY;
    double l = 0;
    (void)thread;
    if (n - begin == 1) return;
    for (size_t s = begin; s < n; s++) top = fmaxf(top, partial(c, seq, head, s)[0]);
    memset(y, 0, d * sizeof *y);
    for (size_t s = begin; s < n; s++) {
        const float *from = partial(c, seq, head, s);
        float share = expf((from[0] - top) * softmax_scale(c->a));
        l += (double)share * from[1];
        c->v->axpy(y, share, from + 2, d);
    }
    finish(c, y, &l, 1, i * d);
}

void kernel_attention_decode(const struct kernel_attention *a, struct kernel_array y, struct kernel_array q,
                             const struct kernel_cache *caches, struct kernel_array scratch) {
    PROFILE(ATTENTION);
    struct decode c = {
        .a = a, .v = simd(), .y = view_of(y), .q = view_of(q), .caches = caches, .scratch = host_f32(scratch)};
    c.parts = (a->n_heads / a->n_kv_heads + HEADS - 1) / HEADS;
    c.stretches = longest(a, caches);
    parallel_for(a->n_seqs * a->n_kv_heads * c.parts * c.stretches, decode_task, &c);
    if (c.stretches > 1) parallel_for(a->n_seqs * a->n_heads, join_task, &c);
}
