/* The probabilities of attention as an array, to observe them, and losses on them; nothing else stores them. */
#include <math.h>

#include "lib/kernel/attention_block.h"

#define QUERIES 32 /* per task */

struct weights {
    const struct kernel_attention *a;
    const struct simd *v;
    size_t start, length, first, n; /* of the sequence; queries in it */
    float *p;
    const float *q, *k;
    bool scores;
};

static struct keys seen_by(const struct weights *w, size_t query) {
    struct attention_block b = {.length = w->length, .first = query, .n = 1};
    return visible(w->a, &b, 0, 0, w->length);
}

/* Turns the products of a query with all keys into scores or probabilities, in place. */
static void finish_row(const struct weights *w, float *row, size_t query) {
    const struct kernel_attention *a = w->a;
    struct keys see = seen_by(w, query);
    size_t seen = see.end - see.begin;
    float *x = row + see.begin;
    w->v->scale(x, seen, a->scale);
    if (a->softcap > 0) w->v->softcap(x, x, seen, a->softcap, 1 / a->softcap);
    if (!w->scores) {
        double sum = w->v->exp_store(x, x, seen, w->v->max(x, seen), 1);
        w->v->scale(x, seen, (float)(1 / sum));
    }
    zero_outside(row, see, w->length);
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
    for (size_t r = 0; r < n; r++) finish_row(w, p + r * ldp, w->first + at + r);
}

static struct weights fill(const struct kernel_attention *a, size_t seq, size_t first, size_t n, float *p,
                           const float *q, const float *k, bool scores) {
    size_t start = a->starts[seq];
    struct weights w = {a, simd(), start, a->starts[seq + 1] - start, first, n, p, q, k, scores};
    parallel_for((n + QUERIES - 1) / QUERIES * a->n_heads, weights_task, &w);
    return w;
}

void kernel_attention_weights(const struct kernel_attention *a, size_t seq, size_t first, size_t n,
                              struct kernel_array p, struct kernel_array q, struct kernel_array k) {
    PROFILE(ATTENTION);
    fill(a, seq, first, n, host_f32(p), host_f32(q), host_f32(k), false);
}

void kernel_attention_scores(const struct kernel_attention *a, size_t seq, size_t first, size_t n,
                             struct kernel_array s, struct kernel_array q, struct kernel_array k) {
    PROFILE(ATTENTION);
    fill(a, seq, first, n, host_f32(s), host_f32(q), host_f32(k), true);
}

/* ---- losses ------------------------------------------------------------------------------------------------------ */

struct attention_loss {
    struct weights w; /* p: scores; q and k */
    const struct kernel_attention_loss *how;
    const float *t, *row_weight;
    float *ds; /* [n][n_heads][length] */
    double *values;
    float *dq, *dk;
};

#define LOGS           64 /* at a time */
#define SQRT_HALF_BITS 0x3f3504f3u
#define MANTISSA_BITS  0x7fffffu

/*
 * y = t ln t, and 0 where t is 0, with relative error 1e-11. t = 2^e m with m in [sqrt(1/2), sqrt(2)], and ln m = 2
 * artanh s with s = (m - 1) / (m + 1), whose series is accurate to that after seven terms. Without branches, so that
 * compilers vectorize it.
 */
static void t_ln_t(double *y, const float *t, size_t n) {
    for (size_t i = 0; i < n; i++) {
        union {
            float f;
            uint32_t bits;
        } of = {t[i]}, m;
        uint32_t from = of.bits - SQRT_HALF_BITS;
        double e = (int32_t)from >> 23;
        m.bits = (from & MANTISSA_BITS) + SQRT_HALF_BITS;
        double s = ((double)m.f - 1) / ((double)m.f + 1), s2 = s * s;
        double series =
            1 + s2 * (1.0 / 3 + s2 * (1.0 / 5 + s2 * (1.0 / 7 + s2 * (1.0 / 9 + s2 * (1.0 / 11 + s2 * (1.0 / 13))))));
        y[i] = t[i] * (2 * s * series + e * M_LN2);
    }
}

/* sum t ln(t / p); ds = p sum t - t. x: scores. */
static double kl_row(const struct simd *v, const float *t, const float *x, size_t n, float *ds) {
    float max = v->max(x, n);
    double sum = v->exp_store(ds, x, n, max, 1), mass = 0, value = 0, log_sum = log(sum) + max, own[LOGS];
    for (size_t at = 0; at < n; at += LOGS) {
        size_t some = smaller(LOGS, n - at);
        t_ln_t(own, t + at, some);
        for (size_t j = at; j < at + some; j++) {
            mass += t[j];
            value += t[j] > 0 ? own[j - at] - t[j] * (x[j] - log_sum) : 0;
        }
    }
    for (size_t j = 0; j < n; j++) ds[j] = (float)(ds[j] * (mass / sum) - t[j]);
    return value;
}

/* mean (p - t)^2; ds = p (g - sum p g), g = 2 (p - t) / n */
static double square_row(const struct simd *v, const float *t, const float *x, size_t n, float *ds) {
    double sum = v->exp_store(ds, x, n, v->max(x, n), 1), value = 0, along = 0;
    for (size_t j = 0; j < n; j++) {
        double p = ds[j] / sum, u = p - t[j];
        value += u * u / (double)n;
        along += p * 2 * u / (double)n;
    }
    for (size_t j = 0; j < n; j++) {
        double p = ds[j] / sum;
        ds[j] = (float)(p * (2 * (p - t[j]) / (double)n - along));
    }
    return value;
}

static double scores_row(const struct simd *v, const float *t, const float *x, size_t n, float *ds) {
    double value = 0;
    (void)v;
    for (size_t j = 0; j < n; j++) {
        double u = (double)x[j] - t[j];
        value += u * u / (double)n;
        ds[j] = (float)(2 * u / (double)n);
    }
    return value;
}

static void loss_rows(void *ctx, size_t begin, size_t end) {
    static double (*const rows[])(const struct simd *, const float *, const float *, size_t, float *) = {
        [ATTENTION_KL] = kl_row, [ATTENTION_SQUARE] = square_row, [ATTENTION_SCORES] = scores_row};
    const struct attention_loss *c = ctx;
    const struct weights *w = &c->w;
    const struct kernel_attention *a = w->a;
    for (size_t i = begin; i < end; i++) {
        size_t query = w->first + i / a->n_heads;
        double weight = c->row_weight[w->start + query];
        struct keys see = seen_by(w, query);
        size_t at = i * w->length + see.begin, n = see.end - see.begin;
        c->values[i] = 0;
        memset(c->ds + i * w->length, 0, w->length * sizeof *c->ds);
        if (weight == 0) continue;
        c->values[i] = weight * rows[c->how->kind](w->v, c->t + at, w->p + at, n, c->ds + at);
        w->v->scale(c->ds + at, n, (float)(weight * c->how->weight * a->scale));
        if (a->softcap > 0) w->v->softcap_backward(c->ds + at, w->p + at, n, 1 / a->softcap);
    }
}

/* dq += ds k, for some queries of one head. */
static void query_task(void *ctx, size_t i, int thread) {
    const struct attention_loss *c = ctx;
    const struct weights *w = &c->w;
    const struct kernel_attention *a = w->a;
    size_t head = i % a->n_heads, at = i / a->n_heads * QUERIES, d = a->head_dim, ld = a->n_heads * w->length;
    size_t n = smaller(QUERIES, w->n - at), ldq = a->n_heads * d, ldk = a->n_kv_heads * d;
    (void)thread;
    w->v->gemm(GEMM_NN, n, d, w->length, c->ds + at * ld + head * w->length, ld,
               w->k + w->start * ldk + head / (a->n_heads / a->n_kv_heads) * d, ldk, 1,
               c->dq + (w->start + w->first + at) * ldq + head * d, ldq);
}

/* dk += ds^T q, for one key head, over the query heads that share it. */
static void key_task(void *ctx, size_t i, int thread) {
    const struct attention_loss *c = ctx;
    const struct weights *w = &c->w;
    const struct kernel_attention *a = w->a;
    size_t group = a->n_heads / a->n_kv_heads, d = a->head_dim, ldq = a->n_heads * d, ldk = a->n_kv_heads * d;
    (void)thread;
    for (size_t head = i * group; head < (i + 1) * group; head++)
        w->v->gemm(GEMM_TN, w->length, d, w->n, c->ds + head * w->length, a->n_heads * w->length,
                   w->q + (w->start + w->first) * ldq + head * d, ldq, 1, c->dk + w->start * ldk + i * d, ldk);
}

void kernel_attention_loss(const struct kernel_attention_loss *how, const struct kernel_attention *a, size_t seq,
                           size_t first, size_t n, const float *t, const float *row_weight, const float *q,
                           const float *k, float *scratch, double *values, float *dq, float *dk) {
    PROFILE(ATTENTION);
    struct attention_loss c = {.w = fill(a, seq, first, n, scratch, q, k, true),
                               .how = how,
                               .t = t,
                               .row_weight = row_weight,
                               .values = values,
                               .dq = dq,
                               .dk = dk};
    c.ds = scratch + n * a->n_heads * c.w.length;
    kernel_split(n * a->n_heads, QUERIES, loss_rows, &c);
    if (!dq || how->weight == 0) return;
    parallel_for((n + QUERIES - 1) / QUERIES * a->n_heads, query_task, &c);
    parallel_for(a->n_kv_heads, key_task, &c);
}
