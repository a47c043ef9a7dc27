/*
 * Attention with grouped queries, causal or not, blocked with online softmax (Dao et al. 2022, "FlashAttention", algorithms 1
 * and 4): scores exist for one block of queries and one block of keys at a time.
 *
 * The queries of all heads that share a key head are stacked as rows of one matrix, head by head, so that a block of
 * keys is read once for the whole group and the products are large enough to be worth a gemm. All block sizes depend on
 * the shape alone, and every task writes memory that no other does.
 */
#include <math.h>

#include "lib/kernel/attention_internal.h"

static struct cut cut_for(const struct kernel_attention *a, size_t rows_floats, size_t max_rows) {
    struct cut c = {.group = a->n_heads / a->n_kv_heads};
    size_t rows = smaller(rows_floats / a->head_dim, max_rows);
    c.heads = c.group < rows ? c.group : rows;
    c.queries = rows / c.heads;
    return c;
}

static void widen(const struct simd *v, float *to, struct kernel_array from, size_t at, size_t d) {
    v->from_bf16(to, (const uint16_t *)from.data + at, d);
}

static void pack(const struct simd *v, const struct kernel_attention *a, const struct block *b, float *to,
                 struct kernel_array from, float factor) {
    for (size_t r = 0; r < b->heads * b->n; r++) {
        float *row = to + r * a->head_dim;
        size_t at = query_at(a, b, r);
        if (from.dtype != DT_F32) widen(v, row, from, at, a->head_dim);
        v->scale_copy(row, factor, from.dtype == DT_F32 ? (const float *)from.data + at : row, a->head_dim);
    }
}

/* Keys, or values, in a block: as many as KEYS, but no more than fit when they must be widened. */
static size_t keys_in_block(const struct kernel_attention *a, struct kernel_array k) {
    return k.dtype == DT_F32 ? KEYS : smaller(KEYS, KEYS_FLOATS / a->head_dim);
}

/* Rows of keys or values from `at` on as f32, *ld apart. */
static const float *key_rows(const struct simd *v, const struct kernel_attention *a, struct kernel_array k, size_t at,
                             size_t keys, float *room, size_t *ld) {
    size_t stride = a->n_kv_heads * a->head_dim;
    *ld = k.dtype == DT_F32 ? stride : a->head_dim;
    if (k.dtype == DT_F32) return (const float *)k.data + at;
    for (size_t i = 0; i < keys; i++) widen(v, room + i * a->head_dim, k, at + i * stride, a->head_dim);
    return room;
}

/* ---- forward ---- */

/* Keys of a block that a row does not see. */
static void zero_outside(float *row, struct keys see, size_t keys) {
    memset(row, 0, see.begin * sizeof *row);
    memset(row + see.end, 0, (keys - see.end) * sizeof *row);
}

/* Online softmax of one block of scores: probabilities relative to the running maximum m, whose sums go to l; the output so
 * far, o, is rescaled. Keys that a row does not see become 0. */
static void online_softmax(const struct forward *f, const struct block *b, size_t from, size_t keys, float *s, float *m,
                           double *l, float *o) {
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

static void forward_block(const struct forward *f, const struct block *b) {
    const struct kernel_attention *a = f->a;
    size_t d = a->head_dim, rows = b->heads * b->n, step = keys_in_block(a, f->k), ldk, ldv;
    float q[ROWS_FLOATS], o[ROWS_FLOATS], s[MAX_ROWS * KEYS], m[MAX_ROWS], k_room[KEYS_FLOATS], v_room[KEYS_FLOATS];
    double l[MAX_ROWS];
    pack(f->v, a, b, q, f->q, a->scale);
    memset(o, 0, rows * d * sizeof *o);
    for (size_t r = 0; r < rows; r++) m[r] = -INFINITY, l[r] = 0;
    struct keys all = keys_of(a, b);
    for (size_t from = all.begin; from < all.end; from += step) {
        size_t keys = smaller(step, all.end - from), at = key_at(a, b, from);
        const float *k = key_rows(f->v, a, f->k, at, keys, k_room, &ldk);
        f->v->gemm(GEMM_NT, rows, keys, d, q, d, k, ldk, 0, s, KEYS);
        online_softmax(f, b, from, keys, s, m, l, o);
        const float *v = key_rows(f->v, a, f->values, at, keys, v_room, &ldv);
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

/*
 * One block of queries a task. All sequences are cut as the longest is, and blocks past a sequence's end are empty.
 * Late blocks see more keys and go first, so that no thread is left with a long one at the end.
 */
static void forward_task(void *ctx, size_t i, int thread) {
    const struct forward *f = ctx;
    const struct kernel_attention *a = f->a;
    (void)thread;
    size_t head_block = i % f->head_blocks, rest = i / f->head_blocks;
    struct block b = {.kv_head = rest % a->n_kv_heads};
    rest /= a->n_kv_heads;
    size_t seq = rest % a->n_seqs, length = a->starts[seq + 1] - a->starts[seq];
    b.start = a->starts[seq];
    b.length = length;
    b.head = b.kv_head * f->cut.group + head_block * f->cut.heads;
    b.heads = smaller(f->cut.heads, f->cut.group - head_block * f->cut.heads);
    b.first = (f->query_blocks - 1 - rest / a->n_seqs) * f->cut.queries;
    if (b.first >= length) return;
    b.n = smaller(f->cut.queries, length - b.first);
    if (f->is_bf16)
        forward_block_bf16(f, &b);
    else
        forward_block(f, &b);
}

void kernel_attention(const struct kernel_attention *a, struct kernel_array y, float *lse, struct kernel_array q,
                      struct kernel_array k, struct kernel_array v) {
    struct forward f = {.a = a, .v = simd(), .y = y, .lse = lse, .q = q, .k = k, .values = v};
    size_t longest = 0;
    f.is_bf16 = attention_is_bf16(f.v, a, q, k, v);
    f.cut = f.is_bf16 ? cut_for(a, FORWARD_FLOATS, FORWARD_ROWS) : cut_for(a, ROWS_FLOATS, MAX_ROWS);
    for (size_t s = 0; s < a->n_seqs; s++)
        if (a->starts[s + 1] - a->starts[s] > longest) longest = a->starts[s + 1] - a->starts[s];
    f.query_blocks = (longest + f.cut.queries - 1) / f.cut.queries;
    f.head_blocks = (f.cut.group + f.cut.heads - 1) / f.cut.heads;
    parallel_for(f.query_blocks * f.head_blocks * a->n_seqs * a->n_kv_heads, forward_task, &f);
}

/* ---- backward ---- */

/* A block of queries and what backward knows of it, packed. */
struct packed {
    float q[ROWS_FLOATS], dy[ROWS_FLOATS], dq[ROWS_FLOATS]; /* [rows][head_dim]; q is scaled */
    float lse[MAX_ROWS], dot[MAX_ROWS];                     /* dot = dy . y, the D of algorithm 4 */
    float p[MAX_ROWS * KEYS], ds[MAX_ROWS * KEYS];
    float k[KEYS_FLOATS], v[KEYS_FLOATS]; /* widened */
};

/* Probabilities from scores, and the gradient of the scores from that of the probabilities, in place. */
static void softmax_backward(const struct backward *w, const struct block *b, size_t from, size_t keys,
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

/* dy . y of row r, y widened into `room` when it must be. */
static float dot_dy_y(const struct backward *w, const struct packed *t, size_t r, size_t at, float *room) {
    size_t d = w->a->head_dim;
    const float *y = (const float *)w->y.data + at;
    if (w->y.dtype != DT_F32) {
        widen(w->v, room, w->y, at, d);
        y = room;
    }
    return (float)w->v->dot(t->dy + r * d, y, d);
}

/* dv += p^T dy, dk += ds^T q, dq = sum ds k over all blocks of keys that these queries see. */
static void backward_block(const struct backward *w, const struct block *b) {
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

/* With a soft cap the way back is in f32, which needs the capped scores unrounded. */
static bool backward_is_bf16(const struct backward *w) {
    return w->a->softcap == 0 && w->dq.dtype == DT_BF16 && w->dy.dtype == DT_BF16 && w->y.dtype == DT_BF16;
}

/* A (sequence, key head) a task: every query of the sequence adds to the same dk and dv, in order. */
static void backward_task(void *ctx, size_t i, int thread) {
    const struct backward *w = ctx;
    const struct kernel_attention *a = w->a;
    (void)thread;
    size_t seq = i / a->n_kv_heads, length = a->starts[seq + 1] - a->starts[seq];
    struct block b = {.start = a->starts[seq], .length = length, .kv_head = i % a->n_kv_heads};
    for (size_t key = 0; key < length; key++) {
        memset(w->dk + key_at(a, &b, key), 0, a->head_dim * sizeof *w->dk);
        memset(w->dv + key_at(a, &b, key), 0, a->head_dim * sizeof *w->dv);
    }
    for (size_t done = 0; done < w->cut.group; done += b.heads) {
        b.head = b.kv_head * w->cut.group + done;
        b.heads = smaller(w->cut.heads, w->cut.group - done);
        for (b.first = 0; b.first < length; b.first += w->cut.queries) {
            b.n = smaller(w->cut.queries, length - b.first);
            if (attention_is_bf16(w->v, a, w->q, w->k, w->values) && backward_is_bf16(w))
                backward_block_bf16(w, &b);
            else
                backward_block(w, &b);
        }
    }
}

void kernel_attention_backward(const struct kernel_attention *a, struct kernel_array dq, float *dk, float *dv,
                               struct kernel_array dy, struct kernel_array y, const float *lse, struct kernel_array q,
                               struct kernel_array k, struct kernel_array v) {
    struct backward w = {a, simd(), dq, dy, y, q, k, v, dk, dv, lse, cut_for(a, ROWS_FLOATS, MAX_ROWS)};
    parallel_for(a->n_seqs * a->n_kv_heads, backward_task, &w);
}
