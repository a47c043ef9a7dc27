/*
 * Attention for one block of queries in f32, one block of keys at a time: scores, online softmax, and their gradients.
 * bf16 is widened.
 */
#include <math.h>

#include "lib/kernel/attention_block.h"

static void widen(const struct simd *v, float *to, struct view from, size_t at, size_t d) {
    v->from_bf16(to, (const uint16_t *)from.data + at, d);
}

static void pack(const struct simd *v, const struct kernel_attention *a, const struct attention_block *b, float *to,
                 struct view from, float factor) {
    for (size_t r = 0; r < b->heads * b->n; r++) {
        float *row = to + r * a->head_dim;
        size_t at = query_at(a, b, r);
        if (from.dtype != DT_F32) widen(v, row, from, at, a->head_dim);
        v->scale_copy(row, factor, from.dtype == DT_F32 ? (const float *)from.data + at : row, a->head_dim);
    }
}

/* Keys or values per block: KEYS, or fewer if they must be widened and no more fit. */
static size_t keys_in_block(const struct kernel_attention *a, struct view k) {
    return k.dtype == DT_F32 ? KEYS : smaller(KEYS, KEYS_FLOATS / a->head_dim);
}

/* Rows of keys or values from `at` on in f32, with row stride *ld. */
static const float *key_rows(const struct simd *v, const struct kernel_attention *a, struct view k, size_t at,
                             size_t keys, float *scratch, size_t *ld) {
    size_t stride = a->n_kv_heads * a->head_dim;
    *ld = k.dtype == DT_F32 ? stride : a->head_dim;
    if (k.dtype == DT_F32) return (const float *)k.data + at;
    for (size_t i = 0; i < keys; i++) widen(v, scratch + i * a->head_dim, k, at + i * stride, a->head_dim);
    return scratch;
}

/* ---- forward ---- */

/* Online softmax of one block of scores: makes probabilities relative to the running maximum m, adds their sums to l
 * and rescales the output o. Keys that a row does not see become 0. */
static void online_softmax(const struct forward *f, const struct attention_block *b, size_t from, size_t keys, float *s,
                           float *m, double *l, float *o) {
    size_t d = f->a->head_dim;
    float cap = f->a->softcap;
    for (size_t r = 0; r < b->heads * b->n; r++) {
        struct keys see = visible(f->a, b, r, from, keys);
        float *row = s + r * KEYS + see.begin;
        size_t seen = see.end - see.begin;
        if (cap > 0) f->v->softcap(row, row, seen, cap, 1 / cap);
        float top = f->v->max(row, seen);
        if (top > m[r]) {
            float shrink = expf(m[r] - top);
            m[r] = top;
            l[r] *= shrink;
            f->v->scale(o + r * d, d, shrink);
        }
        l[r] += f->v->exp_store(row, row, seen, m[r], 1);
        zero_outside(s + r * KEYS, see, keys);
    }
}

void forward_block_f32(const struct forward *f, const struct attention_block *b) {
    const struct kernel_attention *a = f->a;
    size_t d = a->head_dim, rows = b->heads * b->n, step = keys_in_block(a, f->k), ldk, ldv;
    float q[ROWS_FLOATS], o[ROWS_FLOATS], s[MAX_ROWS * KEYS], m[MAX_ROWS], wide_k[KEYS_FLOATS], wide_v[KEYS_FLOATS];
    double l[MAX_ROWS];
    pack(f->v, a, b, q, f->q, a->scale);
    memset(o, 0, rows * d * sizeof *o);
    for (size_t r = 0; r < rows; r++) m[r] = -INFINITY, l[r] = 0;
    struct keys all = keys_of(a, b);
    for (size_t from = all.begin; from < all.end; from += step) {
        size_t keys = smaller(step, all.end - from), at = key_at(a, b, from);
        const float *k = key_rows(f->v, a, f->k, at, keys, wide_k, &ldk);
        f->v->gemm(GEMM_NT, rows, keys, d, q, d, k, ldk, 0, s, KEYS);
        online_softmax(f, b, from, keys, s, m, l, o);
        const float *v = key_rows(f->v, a, f->values, at, keys, wide_v, &ldv);
        f->v->gemm(GEMM_NN, rows, d, keys, s, KEYS, v, ldv, 1, o, d);
    }
    for (size_t r = 0; r < rows; r++) {
        size_t at = query_at(a, b, r);
        bool f32 = f->y.dtype == DT_F32;
        f->v->scale_copy(f32 ? (float *)f->y.data + at : o + r * d, (float)(1 / l[r]), o + r * d, d);
        if (!f32) f->v->to_bf16((uint16_t *)f->y.data + at, o + r * d, d);
        if (f->lse) f->lse[at / d] = (float)(m[r] + log(l[r]));
    }
}

/* ---- backward ---- */

/* A block of queries, packed, with the scratch of the backward pass. */
struct packed {
    float q[ROWS_FLOATS], dy[ROWS_FLOATS], dq[ROWS_FLOATS]; /* [rows][head_dim]; q is scaled */
    float lse[MAX_ROWS], dot[MAX_ROWS];                     /* dot = dy . y, D in algorithm 4 */
    float p[MAX_ROWS * KEYS], ds[MAX_ROWS * KEYS];
    float k[KEYS_FLOATS], v[KEYS_FLOATS]; /* widened */
};

/* In place: scores become probabilities, and their gradient becomes that of the scores. */
static void softmax_backward(const struct backward *w, const struct attention_block *b, size_t from, size_t keys,
                             struct packed *t) {
    float capped[KEYS], cap = w->a->softcap;
    for (size_t r = 0; r < b->heads * b->n; r++) {
        struct keys see = visible(w->a, b, r, from, keys);
        float *p = t->p + r * KEYS + see.begin, *ds = t->ds + r * KEYS + see.begin;
        size_t seen = see.end - see.begin;
        if (cap > 0) {
            w->v->softcap(p, p, seen, cap, 1 / cap);
            memcpy(capped, p, seen * sizeof *p);
        }
        w->v->exp_store(p, p, seen, t->lse[r], 1);
        w->v->softmax_backward(ds, p, ds, t->dot[r], seen);
        if (cap > 0) w->v->softcap_backward(ds, capped, seen, 1 / cap);
        zero_outside(t->p + r * KEYS, see, keys);
        zero_outside(t->ds + r * KEYS, see, keys);
    }
}

/* dy . y of row r; y is widened into `scratch` if it is bf16. */
static float dot_dy_y(const struct backward *w, const struct packed *t, size_t r, size_t at, float *scratch) {
    size_t d = w->a->head_dim;
    const float *y = (const float *)w->y.data + at;
    if (w->y.dtype != DT_F32) {
        widen(w->v, scratch, w->y, at, d);
        y = scratch;
    }
    return (float)w->v->dot(t->dy + r * d, y, d);
}

/* dv += p^T dy, dk += ds^T q, dq = sum ds k, over all blocks of keys that these queries see. */
void backward_block_f32(const struct backward *w, const struct attention_block *b) {
    const struct kernel_attention *a = w->a;
    size_t d = a->head_dim, rows = b->heads * b->n, stride = a->n_kv_heads * d, step = keys_in_block(a, w->k), ldk, ldv;
    struct packed t;
    pack(w->v, a, b, t.q, w->q, a->scale);
    pack(w->v, a, b, t.dy, w->dy, 1);
    memset(t.dq, 0, rows * d * sizeof *t.dq);
    for (size_t r = 0; r < rows; r++) {
        size_t at = query_at(a, b, r);
        t.lse[r] = w->lse[at / d];
        t.dot[r] = dot_dy_y(w, &t, r, at, t.p);
    }
    struct keys all = keys_of(a, b);
    for (size_t from = all.begin; from < all.end; from += step) {
        size_t keys = smaller(step, all.end - from), at = key_at(a, b, from);
        const float *k = key_rows(w->v, a, w->k, at, keys, t.k, &ldk);
        const float *v = key_rows(w->v, a, w->values, at, keys, t.v, &ldv);
        w->v->gemm(GEMM_NT, rows, keys, d, t.q, d, k, ldk, 0, t.p, KEYS);
        w->v->gemm(GEMM_NT, rows, keys, d, t.dy, d, v, ldv, 0, t.ds, KEYS);
        softmax_backward(w, b, from, keys, &t);
        w->v->gemm(GEMM_TN, keys, d, rows, t.p, KEYS, t.dy, d, 1, w->dv + at, stride);
        w->v->gemm(GEMM_TN, keys, d, rows, t.ds, KEYS, t.q, d, 1, w->dk + at, stride);
        w->v->gemm(GEMM_NN, rows, d, keys, t.ds, KEYS, k, ldk, 1, t.dq, d);
    }
    for (size_t r = 0; r < rows; r++) {
        size_t at = query_at(a, b, r);
        bool f32 = w->dq.dtype == DT_F32;
        w->v->scale_copy(f32 ? (float *)w->dq.data + at : t.dq + r * d, a->scale, t.dq + r * d, d);
        if (!f32) w->v->to_bf16((uint16_t *)w->dq.data + at, t.dq + r * d, d);
    }
}
