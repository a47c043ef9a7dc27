/* Rows of logits: normalise, find, draw. A row is walked in chunks that stay in the first cache. */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

#define CHUNK 2048 /* floats, 8 KiB */

/* One pass over memory: each chunk is read from the cache a second time, with the running maximum known (the online
 * normaliser of Milakov and Gimelshein 2018, chunk by chunk). parts: what each chunk adds, with that maximum; or NULL. */
static struct softmax_sum sum_chunks(const struct simd *v, const float *x, size_t d, size_t chunk, float s,
                                     struct softmax_sum *parts) {
    struct softmax_sum out = {.max = -INFINITY};
    for (size_t i = 0; i < d; i += chunk) {
        size_t n = smaller(chunk, d - i);
        float top = v->max(x + i, n);
        if (top > out.max) {
            out.sum *= exp(((double)out.max - top) * s);
            out.max = top;
        }
        double sum = out.max > -INFINITY ? v->exp_sum(x + i, n, out.max, s) : 0;
        out.sum += sum;
        if (parts) *parts++ = (struct softmax_sum){out.max, sum};
    }
    return out;
}

struct softmax_sum row_softmax_sum(const struct simd *v, const float *x, size_t d, float s) {
    return sum_chunks(v, x, d, CHUNK, s, NULL);
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
#define DRAWS 256 /* at a time: their sorted thresholds fit on the stack, and one walk serves them all */
#define PARTS 256 /* of a row, at most, whose weights are known before the walk */

/* A row with the weights of its parts, and the draws: ascending thresholds, of which `next` are done. */
struct walk {
    const struct simd *v;
    const float *x;
    size_t d, chunk;
    float s;
    struct softmax_sum z, part[PARTS];
    double threshold[DRAWS];
    size_t next, n;
    uint32_t *ids;
};

static bool falls_below(const struct walk *w, double weight) {
    return w->next < w->n && w->threshold[w->next] < weight;
}

static void take_below(struct walk *w, double weight, size_t index) {
    while (falls_below(w, weight)) w->ids[w->next++] = (uint32_t)index;
}

/* The last index in [begin, end) with any weight, or end. */
static size_t last_with_weight(const struct walk *w, size_t begin, size_t end) {
    float e[SKIP];
    size_t last = end;
    for (size_t i = begin; i < end; i += SKIP) {
        size_t count = smaller(SKIP, end - i);
        if (w->v->exp_store(e, w->x + i, count, w->z.max, w->s) > 0)
            for (last = i + count - 1; e[last - i] == 0; last--) {
            }
    }
    return last;
}

/* The draws that fall into [begin, end), before which the cumulative weight is `before`; returns that at the end. */
static double walk_part(struct walk *w, size_t begin, size_t end, double before) {
    float e[SKIP];
    for (size_t i = begin; i < end && w->next < w->n; i += SKIP) {
        size_t count = smaller(SKIP, end - i);
        double cumulative = before;
        before += w->v->exp_store(e, w->x + i, count, w->z.max, w->s);
        if (!falls_below(w, before)) continue;
        for (size_t j = 0; j < count; j++) {
            cumulative += e[j];
            take_below(w, cumulative, i + j);
        }
        /* The walk and the piece's sum add in different orders: what falls between them goes to the piece's last. */
        if (falls_below(w, before)) take_below(w, before, last_with_weight(w, i, i + count));
        if (cumulative > before) before = cumulative;
    }
    return before;
}

/*
 * Inversion: a draw is the first index whose cumulative weight exceeds u Z. The thresholds are sorted, so one walk over
 * the row meets them in order; a part, or a piece of it, that holds none is added to the cumulative weight as a whole.
 */
static void draw(struct walk *w) {
    double before = 0;
    size_t begin = 0, end = 0; /* of the latest part with any weight */
    for (size_t i = 0; i < w->d && w->next < w->n; i += w->chunk) {
        struct softmax_sum part = w->part[i / w->chunk];
        size_t n = smaller(w->chunk, w->d - i);
        double after = before + part.sum * exp(((double)part.max - w->z.max) * w->s);
        if (after > before) begin = i, end = i + n;
        if (falls_below(w, after)) {
            before = walk_part(w, i, i + n, before);
            size_t last = falls_below(w, after) ? last_with_weight(w, i, i + n) : 0;
            if (last == i + n) continue; /* weights too small for f32: u = 0 is not theirs either */
            take_below(w, after, last);  /* again another order */
        }
        if (after > before) before = after;
    }
    if (w->next == w->n) return;
    size_t last = last_with_weight(w, begin, end); /* u close to 1, likewise; none: the row is no numbers */
    while (w->next < w->n) w->ids[w->next++] = (uint32_t)(last < end ? last : 0);
}

static void sample_row(const struct rows *c, size_t r) {
    uint32_t *ids = c->ids + r * c->k;
    struct walk w = {.v = c->v, .x = c->x + r * c->d, .d = c->d, .s = c->s};
    w.chunk = c->d <= (size_t)PARTS * CHUNK ? CHUNK : (c->d + PARTS - 1) / PARTS;
    w.z = sum_chunks(c->v, w.x, c->d, w.chunk, c->s, w.part);
    for (size_t first = 0; first < c->k; first += DRAWS) {
        w.next = 0;
        w.n = smaller(DRAWS, c->k - first);
        w.ids = ids + first;
        for (size_t i = 0; i < w.n; i++) w.threshold[i] = c->u[r * c->k + first + i] * w.z.sum;
        qsort(w.threshold, w.n, sizeof *w.threshold, compare_f64);
        draw(&w);
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
