/* Rows of logits: normalization, storing in other types, largest elements. Rows are read in chunks that stay in L1. */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

void first_row(atomic_size_t *first, size_t r) {
    size_t known = atomic_load_explicit(first, memory_order_relaxed);
    while (r < known && !atomic_compare_exchange_weak(first, &known, r)) {
    }
}

/* Adds exp((x - max) s) of a chunk to a row's sum. */
typedef double add_chunk_fn(const struct simd *v, double sum, const float *x, size_t n, float max, float s);

static double add_exact(const struct simd *v, double sum, const float *x, size_t n, float max, float s) {
    return sum + v->exp_sum(x, n, max, s);
}

/* One pass over memory: each chunk is read again from cache once the running maximum is known (the online normalizer of
 * Milakov and Gimelshein 2018, by chunks). */
static struct softmax_sum row_sum(const struct simd *v, const float *x, size_t d, float s, add_chunk_fn *add_chunk) {
    struct softmax_sum out = {.max = -INFINITY};
    for (size_t i = 0; i < d; i += ROW_CHUNK) {
        size_t n = smaller(ROW_CHUNK, d - i);
        float top = v->max(x + i, n);
        if (top > out.max) {
            out.sum *= exp(((double)out.max - top) * s);
            out.max = top;
        }
        if (out.max > -INFINITY) out.sum = add_chunk(v, out.sum, x + i, n, out.max, s);
    }
    return out;
}

struct softmax_sum row_softmax_sum(const struct simd *v, const float *x, size_t d, float s) {
    return row_sum(v, x, d, s, add_exact);
}

/* Summed directly: 1 - sum p would lose all digits if the entries have nearly all probability. */
double row_others_sum(const struct simd *v, const float *x, size_t d, float max, float s, const uint32_t *ids,
                      size_t k) {
    float part[ENTRY_CHUNK];
    double sum = 0;
    for (size_t i = 0; i < d; i += ENTRY_CHUNK) {
        size_t n = smaller(ENTRY_CHUNK, d - i);
        memcpy(part, x + i, n * sizeof *part);
        for (size_t j = 0; j < k; j++)
            if (ids[j] >= i && ids[j] - i < n) part[ids[j] - i] = -INFINITY;
        sum += v->exp_sum(part, n, max, s);
    }
    return sum > OTHERS_MIN ? sum : OTHERS_MIN;
}

struct rows_f32 {
    const struct simd *v;
    float *out;
    uint32_t *ids;
    const float *x;
    size_t d, k;
    float s;
};

static void logsumexp_rows(void *ctx, size_t begin, size_t end) {
    const struct rows_f32 *c = ctx;
    for (size_t r = begin; r < end; r++) {
        struct softmax_sum z = row_softmax_sum(c->v, c->x + r * c->d, c->d, c->s);
        c->out[r] = (float)((double)z.max * c->s + log(z.sum));
    }
}

void kernel_logsumexp(float *lse, struct kernel_array x, size_t rows, size_t d, float inv_temperature) {
    PROFILE(HEAD);
    struct rows_f32 c = {.v = simd(), .out = lse, .x = host_f32(x), .d = d, .s = inv_temperature};
    kernel_split(rows, piece_rows(d), logsumexp_rows, &c);
}

static void log_softmax_rows(void *ctx, size_t begin, size_t end) {
    const struct rows_f32 *c = ctx;
    for (size_t r = begin; r < end; r++) {
        const float *x = c->x + r * c->d;
        struct softmax_sum z = row_softmax_sum(c->v, x, c->d, c->s);
        c->v->affine(c->out + r * c->d, x, c->d, z.max, c->s, (float)log(z.sum));
    }
}

void kernel_log_softmax(struct kernel_array y, struct kernel_array x, size_t rows, size_t d, float inv_temperature) {
    PROFILE(HEAD);
    struct rows_f32 c = {.v = simd(), .out = host_f32(y), .x = host_f32(x), .d = d, .s = inv_temperature};
    kernel_split(rows, piece_rows(d), log_softmax_rows, &c);
}

/* ---- stored in another type ---- */

struct storing {
    const struct simd *v;
    enum dtype type;
    unsigned char *y;
    const float *x;
    size_t d;
    float s;
    bool log_probs;
    atomic_size_t bad; /* the first row with a value that is not finite */
};

/* By powers of two, 128 of which are summed in f32: the error is a thousandth of f16's. */
static double add_powers(const struct simd *v, double sum, const float *x, size_t n, float max, float s) {
    for (size_t i = 0; i < n; i += WEIGHED) sum += v->exp2_sum(x + i, smaller(WEIGHED, n - i), max, s * LOG2_E);
    return sum;
}

static bool store_f16(const struct storing *c, uint16_t *y, const float *x) {
    if (!c->log_probs) return c->v->affine_f16(y, x, c->d, 0, 1, 0);
    struct softmax_sum z = row_sum(c->v, x, c->d, c->s, add_powers);
    return c->v->affine_f16(y, x, c->d, z.max, c->s, (float)log(z.sum));
}

/* Chunks are converted and checked while in L1. */
static bool store_any(const struct storing *c, unsigned char *y, const float *x) {
    float scratch[ROW_CHUNK];
    struct err unused;
    struct softmax_sum z = {0};
    bool good = true;
    if (c->log_probs) z = row_softmax_sum(c->v, x, c->d, c->s);
    float log_sum = (float)log(z.sum);
    for (size_t i = 0, n; i < c->d; i += n, y += dtype_row_bytes(c->type, n)) {
        n = smaller(ROW_CHUNK, c->d - i);
        if (c->log_probs) c->v->affine(scratch, x + i, n, z.max, c->s, log_sum);
        good = !tensor_from_f32(c->type, c->log_probs ? scratch : x + i, y, n, NULL, &unused) && good;
        good = tensor_first_nonfinite(c->type, y, n) == n && good;
    }
    return good;
}

static void store_rows(void *ctx, size_t begin, size_t end) {
    struct storing *c = ctx;
    for (size_t r = begin; r < end; r++) {
        const float *x = c->x + r * c->d;
        unsigned char *y = c->y + r * dtype_row_bytes(c->type, c->d);
        bool good = c->type == DT_F16 ? store_f16(c, (uint16_t *)(void *)y, x) : store_any(c, y, x);
        if (!good) first_row(&c->bad, r);
    }
}

size_t kernel_store_logits(enum dtype type, void *host_y, struct kernel_array x, size_t rows, size_t d,
                           float inv_temperature, bool log_probs) {
    PROFILE(HEAD);
    struct storing c = {simd(), type, host_y, host_f32(x), d, inv_temperature, log_probs, rows};
    kernel_split(rows, piece_rows(d), store_rows, &c);
    return atomic_load(&c.bad);
}

/* ---- the largest element ----------------------------------------------------------------------------------------- */

static void argmax_rows(void *ctx, size_t begin, size_t end) {
    const struct rows_f32 *c = ctx;
    for (size_t r = begin; r < end; r++) {
        const float *x = c->x + r * c->d;
        size_t best = 0;
        float bound = isnan(x[0]) ? -INFINITY : x[0];
        for (size_t i = 1; (i += c->v->find_above(x + i, c->d - i, bound)) < c->d; i++) best = i, bound = x[i];
        c->ids[r] = (uint32_t)best;
    }
}

void kernel_argmax(uint32_t *index, struct kernel_array x, size_t rows, size_t d) {
    PROFILE(HEAD);
    struct rows_f32 c = {.v = simd(), .ids = index, .x = host_f32(x), .d = d};
    kernel_split(rows, piece_rows(d), argmax_rows, &c);
}

/* ---- the k largest: a heap whose root is the worst of the k best so far, which is the bound to beat -------------- */

struct heap {
    uint32_t *ids;
    float *values;
    size_t n;
};

/* Does entry a rank below entry b? By smaller value, then by higher index. */
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
    while (h.n > 1) { /* heap sort: moves the worst to the end */
        swap(&h, 0, --h.n);
        sift_down(&h, 0);
    }
}

static void topk_rows(void *ctx, size_t begin, size_t end) {
    const struct rows_f32 *c = ctx;
    for (size_t r = begin; r < end; r++) {
        struct heap h = {c->ids + r * c->k, c->out + r * c->k, c->k};
        topk_row(c->v, h, c->x + r * c->d, c->d);
    }
}

void kernel_topk(uint32_t *ids, float *values, struct kernel_array x, size_t rows, size_t d, size_t k) {
    PROFILE(HEAD);
    if (k == 0) return;
    struct rows_f32 c = {.v = simd(), .out = values, .ids = ids, .x = host_f32(x), .d = d, .k = k};
    kernel_split(rows, piece_rows(d), topk_rows, &c);
}
