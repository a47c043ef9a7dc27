/* Rows of logits: normalise, find, draw. A row is walked in chunks that stay in the first cache. */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

#define CHUNK 2048 /* floats, 8 KiB */

/* One pass over memory: each chunk is read from the cache a second time, with the running maximum known (the online
 * normaliser of Milakov and Gimelshein 2018, chunk by chunk). */
struct softmax_sum row_softmax_sum(const struct simd *v, const float *x, size_t d, float s) {
    struct softmax_sum out = {.max = -INFINITY};
    for (size_t i = 0; i < d; i += CHUNK) {
        size_t n = smaller(CHUNK, d - i);
        float top = v->max(x + i, n);
        if (top > out.max) {
            out.sum *= exp(((double)out.max - top) * s);
            out.max = top;
        }
        if (out.max > -INFINITY) out.sum += v->exp_sum(x + i, n, out.max, s);
    }
    return out;
}

struct rows {
    const struct simd *v;
    float *out;
    uint32_t *ids;
    const float *x;
    const double *u;
    size_t d, k;
    float s;
};

static void logsumexp_rows(void *ctx, size_t begin, size_t end) {
    const struct rows *c = ctx;
    for (size_t r = begin; r < end; r++) {
        struct softmax_sum z = row_softmax_sum(c->v, c->x + r * c->d, c->d, c->s);
        c->out[r] = (float)((double)z.max * c->s + log(z.sum));
    }
}

void kernel_logsumexp(float *lse, const float *x, size_t rows, size_t d, float inv_temperature) {
    struct rows c = {.v = simd(), .out = lse, .x = x, .d = d, .s = inv_temperature};
    kernel_split(rows, piece_rows(d), logsumexp_rows, &c);
}

static void log_softmax_rows(void *ctx, size_t begin, size_t end) {
    const struct rows *c = ctx;
    for (size_t r = begin; r < end; r++) {
        const float *x = c->x + r * c->d;
        struct softmax_sum z = row_softmax_sum(c->v, x, c->d, c->s);
        c->v->affine(c->out + r * c->d, x, c->d, z.max, c->s, (float)log(z.sum));
    }
}

void kernel_log_softmax(float *y, const float *x, size_t rows, size_t d, float inv_temperature) {
    struct rows c = {.v = simd(), .out = y, .x = x, .d = d, .s = inv_temperature};
    kernel_split(rows, piece_rows(d), log_softmax_rows, &c);
}

static void argmax_rows(void *ctx, size_t begin, size_t end) {
    const struct rows *c = ctx;
    for (size_t r = begin; r < end; r++) {
        const float *x = c->x + r * c->d;
        size_t best = 0;
        float bound = isnan(x[0]) ? -INFINITY : x[0];
        for (size_t i = 1; (i += c->v->find_above(x + i, c->d - i, bound)) < c->d; i++) best = i, bound = x[i];
        c->ids[r] = (uint32_t)best;
    }
}

void kernel_argmax(uint32_t *index, const float *x, size_t rows, size_t d) {
    struct rows c = {.v = simd(), .ids = index, .x = x, .d = d};
    kernel_split(rows, piece_rows(d), argmax_rows, &c);
}

/* ---- the k largest: a heap whose root is the worst of the k best so far, which is the bound to be beaten ---- */

struct heap {
    uint32_t *ids;
    float *values;
    size_t n;
};

/* Is entry a to leave before entry b? The smaller value, and of equals the later index. */
static bool worse(const struct heap *h, size_t a, size_t b) {
    return h->values[a] < h->values[b] || (h->values[a] == h->values[b] && h->ids[a] > h->ids[b]);
}

static void swap(struct heap *h, size_t a, size_t b) {
    uint32_t id = h->ids[a];
    float value = h->values[a];
    h->ids[a] = h->ids[b], h->values[a] = h->values[b];
    h->ids[b] = id, h->values[b] = value;
}

static void sift_down(struct heap *h, size_t i) {
    for (;;) {
        size_t least = i;
        if (2 * i + 1 < h->n && worse(h, 2 * i + 1, least)) least = 2 * i + 1;
        if (2 * i + 2 < h->n && worse(h, 2 * i + 2, least)) least = 2 * i + 2;
        if (least == i) return;
        swap(h, i, least);
        i = least;
    }
}

/* NaN counts as minus infinity, so that the order is total. */
static void topk_row(const struct simd *v, struct heap h, const float *x, size_t d) {
    size_t k = h.n;
    for (size_t i = 0; i < k; i++) h.ids[i] = (uint32_t)i, h.values[i] = isnan(x[i]) ? -INFINITY : x[i];
    for (size_t i = k / 2; i-- > 0;) sift_down(&h, i);
    for (size_t i = k; (i += v->find_above(x + i, d - i, h.values[0])) < d; i++) {
        h.ids[0] = (uint32_t)i, h.values[0] = x[i];
        sift_down(&h, 0);
    }
    while (h.n > 1) { /* heap sort: the worst goes to the end */
        swap(&h, 0, --h.n);
        sift_down(&h, 0);
    }
}

static void topk_rows(void *ctx, size_t begin, size_t end) {
    const struct rows *c = ctx;
    for (size_t r = begin; r < end; r++) {
        struct heap h = {c->ids + r * c->k, c->out + r * c->k, c->k};
        topk_row(c->v, h, c->x + r * c->d, c->d);
    }
}

void kernel_topk(uint32_t *ids, float *values, const float *x, size_t rows, size_t d, size_t k) {
    if (k == 0) return;
    struct rows c = {.v = simd(), .out = values, .ids = ids, .x = x, .d = d, .k = k};
    kernel_split(rows, piece_rows(d), topk_rows, &c);
}

/* ---- sampling ---- */

static int compare_f64(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int compare_u32(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

#define SKIP  128 /* floats that are stepped over at once when no draw falls into them */
#define DRAWS 256 /* at a time: their sorted thresholds fit on the stack, and one pass serves them all */

/*
 * Inversion: a draw is the first index whose cumulative weight exceeds u Z. The thresholds are sorted, so one walk over
 * the row meets them in order; a piece that holds none is added to the cumulative weight as a whole.
 */
static void draw(const struct simd *v, const float *x, size_t d, float s, struct softmax_sum z, double *threshold,
                 size_t n, uint32_t *ids) {
    float e[SKIP];
    double before = 0;
    size_t next = 0, last = 0; /* last: the latest index with any weight */
    for (size_t i = 0; i < d && next < n; i += SKIP) {
        size_t count = smaller(SKIP, d - i);
        double sum = v->exp_store(e, x + i, count, z.max, s), cumulative = before;
        before += sum;
        if (sum > 0)
            for (last = i + count - 1; e[last - i] == 0; last--) {
            }
        if (threshold[next] >= before) continue;
        for (size_t j = 0; j < count && next < n; j++) {
            cumulative += e[j];
            while (next < n && threshold[next] < cumulative) ids[next++] = (uint32_t)(i + j);
        }
        /* The walk and the piece's sum add in different orders: what falls between them goes to the piece's last. */
        while (next < n && threshold[next] < before) ids[next++] = (uint32_t)last;
        if (cumulative > before) before = cumulative;
    }
    while (next < n) ids[next++] = (uint32_t)last; /* u close to 1, likewise */
}

static void sample_row(const struct rows *c, size_t r) {
    const float *x = c->x + r * c->d;
    uint32_t *ids = c->ids + r * c->k;
    struct softmax_sum z = row_softmax_sum(c->v, x, c->d, c->s);
    double threshold[DRAWS];
    for (size_t first = 0; first < c->k; first += DRAWS) {
        size_t n = smaller(DRAWS, c->k - first);
        for (size_t i = 0; i < n; i++) threshold[i] = c->u[r * c->k + first + i] * z.sum;
        qsort(threshold, n, sizeof *threshold, compare_f64);
        draw(c->v, x, c->d, c->s, z, threshold, n, ids + first);
    }
    if (c->k > DRAWS) qsort(ids, c->k, sizeof *ids, compare_u32);
}

static void sample_rows(void *ctx, size_t begin, size_t end) {
    for (size_t r = begin; r < end; r++) sample_row(ctx, r);
}

void kernel_sample(uint32_t *ids, const double *u, const float *x, size_t rows, size_t d, size_t n,
                   float inv_temperature) {
    struct rows c = {.v = simd(), .ids = ids, .x = x, .u = u, .d = d, .k = n, .s = inv_temperature};
    kernel_split(rows, piece_rows(d), sample_rows, &c);
}
