/* The probabilities of attention, for those who want to see them: nothing else makes an array of them. */
#include <math.h>

#include "lib/kernel/attention_block.h"

#define QUERIES 32 /* in a task */

struct weights {
    const struct kernel_attention *a;
    const struct simd *v;
    size_t start, length, first, n; /* of the sequence; queries in it */
    float *p;
    const float *q, *k;
};

/* Scores of a query into probabilities, in place. */
static void softmax_row(const struct weights *w, float *row, size_t query) {
    const struct kernel_attention *a = w->a;
    struct attention_block b = {.length = w->length, .first = query, .n = 1};
    struct keys see = visible(a, &b, 0, 0, w->length);
    size_t seen = see.end - see.begin;
    float *x = row + see.begin;
    w->v->scale(x, seen, a->scale);
    if (a->softcap > 0) w->v->softcap(x, x, seen, a->softcap, 1 / a->softcap);
    double sum = w->v->exp_store(x, x, seen, w->v->max(x, seen), 1);
    w->v->scale(x, seen, (float)(1 / sum));
    memset(row, 0, see.begin * sizeof *row);
    memset(row + see.end, 0, (w->length - see.end) * sizeof *row);
}

/* Some queries of one head. */
static void weights_task(void *ctx, size_t i, int thread) {
    const struct weights *w = ctx;
    const struct kernel_attention *a = w->a;
    size_t head = i % a->n_heads, at = i / a->n_heads * QUERIES, d = a->head_dim;
    size_t n = smaller(QUERIES, w->n - at), ldq = a->n_heads * d, ldk = a->n_kv_heads * d, ldp = a->n_heads * w->length;
    const float *q = w->q + (w->start + w->first + at) * ldq + head * d;
    const float *k = w->k + w->start * ldk + head / (a->n_heads / a->n_kv_heads) * d;
    float *p = w->p + at * ldp + head * w->length;
    (void)thread;
    w->v->gemm(GEMM_NT, n, w->length, d, q, ldq, k, ldk, 0, p, ldp);
    for (size_t r = 0; r < n; r++) softmax_row(w, p + r * ldp, w->first + at + r);
}

void kernel_attention_weights(const struct kernel_attention *a, size_t seq, size_t first, size_t n,
                              struct kernel_array p, struct kernel_array q, struct kernel_array k) {
    size_t start = a->starts[seq];
    struct weights w = {a, simd(), start, a->starts[seq + 1] - start, first, n, host_f32(p), host_f32(q), host_f32(k)};
    parallel_for((n + QUERIES - 1) / QUERIES * a->n_heads, weights_task, &w);
}
