/*
 * Draws from rows of logits by inversion: a draw is the first index whose cumulative weight exceeds u times the total.
 * A row is read from memory once, in chunks, for the sums of its pieces; then only pieces that contain a draw are
 * walked. f16 and bf16 are also widened in chunks, so a row never exists whole in f32.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "lib/kernel/kernel_internal.h"

#define PIECES 4096 /* maximum per row: their sums are on the stack */
#define DRAWS  256  /* at a time: their sorted thresholds fit on the stack, and one pass serves all */

struct sampling {
    const struct simd *v;
    uint32_t *ids;
    const double *u;
    enum dtype type;
    const unsigned char *x;
    size_t d, n;
    float s;           /* 1 / T, for powers of two */
    size_t piece;      /* elements of a row that are skipped together if no draw falls into them: ... */
    unsigned shift;    /* ... 2^shift, a multiple of WEIGHED */
    atomic_size_t bad; /* the first row with a value that is not finite */
};

/* Sums of a row. */
struct weights {
    const unsigned char *x;
    float max;
    double total, sum[PIECES]; /* of 2^((x - max) s): the total, and each piece */
};

/* n <= ROW_CHUNK logits from `at` on, in f32. */
static const float *get(const struct sampling *c, const unsigned char *x, size_t at, size_t n, float *scratch) {
    const unsigned char *from = x + dtype_row_bytes(c->type, at);
    if (c->type == DT_F32) return (const float *)(const void *)from;
    const uint16_t *halves = (const uint16_t *)(const void *)from;
    if (c->type == DT_F16)
        c->v->from_f16(scratch, halves, n);
    else
        c->v->from_bf16(scratch, halves, n);
    return scratch;
}

/* Sets a new maximum: rescales earlier sums; those so small that a walk might find only zeros become 0 (exp2_store's weights
 * below FLT_MIN are 0). */
static void raise(const struct sampling *c, struct weights *w, float max, size_t pieces) {
    double shrink = exp2(((double)w->max - max) * c->s);
    double least = 2 * (double)c->piece * FLT_MIN;
    for (size_t i = 0; i < pieces; i++) w->sum[i] = w->sum[i] * shrink < least ? 0 : w->sum[i] * shrink;
    w->max = max;
}

/* Asks for WEIGHED elements. Always inlined: GCC drops calls of functions that only prefetch. */
static inline __attribute__((always_inline)) void fetch(const struct sampling *c, const unsigned char *x, size_t at) {
    const unsigned char *from = x + dtype_row_bytes(c->type, at);
    for (size_t i = 0; i < dtype_row_bytes(c->type, WEIGHED); i += 64) __builtin_prefetch(from + i);
}

/* Returns false if a value is not finite. While a chunk is summed, the next one, of this row or the one behind it, comes from memory. */
static bool weigh(const struct sampling *c, struct weights *w) {
    float scratch[ROW_CHUNK];
    bool finite = true;
    size_t pieces = (c->d - 1) / c->piece + 1;
    w->max = -INFINITY;
    w->total = 0;
    memset(w->sum, 0, pieces * sizeof *w->sum);
    for (size_t i = 0; i < c->d; i += ROW_CHUNK) {
        size_t n = smaller(ROW_CHUNK, c->d - i);
        const float *x = get(c, w->x, i, n, scratch);
        float top = c->v->max_finite(x, n, &finite);
        if (top > w->max) raise(c, w, top, (i >> c->shift) + 1);
        for (size_t j = 0; j < n && w->max > -INFINITY; j += WEIGHED) {
            fetch(c, w->x, i + n + j);
            w->sum[(i + j) >> c->shift] += c->v->exp2_sum(x + j, smaller(WEIGHED, n - j), w->max, c->s);
        }
    }
    for (size_t i = 0; i < pieces; i++) w->total += w->sum[i];
    return finite;
}

/*
 * Sets the ids of the draws that fall into a piece, whose cumulative weights go from `before` to `end`; returns how
 * many of the sorted thresholds these are. The walk and the piece's sum differ in their last bits: a threshold in
 * between goes to the last index with any weight.
 */
static size_t draw_piece(const struct sampling *c, const struct weights *w, size_t piece, double before, double end,
                         const double *threshold, size_t n, uint32_t *ids) {
    float scratch[WEIGHED], e[WEIGHED];
    size_t next = 0, first = piece * c->piece, last = first;
    for (size_t i = first; i < smaller(first + c->piece, c->d); i += WEIGHED) {
        size_t count = smaller(WEIGHED, c->d - i);
        c->v->exp2_store(e, get(c, w->x, i, count, scratch), count, w->max, c->s);
        for (size_t j = 0; j < count; j++) {
            if (e[j] > 0) last = i + j;
            before += e[j];
            if (!(threshold[next] < before)) continue;
            while (next < n && threshold[next] < before) ids[next++] = (uint32_t)(i + j);
            if (next == n || threshold[next] >= end) return next;
        }
    }
    while (next < n && threshold[next] < end) ids[next++] = (uint32_t)last;
    return next;
}

static void draw(const struct sampling *c, const struct weights *w, const double *threshold, size_t n, uint32_t *ids) {
    size_t last = (c->d - 1) / c->piece, next = 0;
    double before = 0;
    while (last > 0 && !(w->sum[last] > 0)) last--;
    for (size_t i = 0; i <= last && next < n; i++) {
        double end = i < last ? before + w->sum[i] : INFINITY; /* also for u close to 1 */
        if (threshold[next] < end) next += draw_piece(c, w, i, before, end, threshold + next, n - next, ids + next);
        before = end;
    }
    while (next < n) ids[next++] = 0; /* only if weights are NaN */
}

/* ---- sorting ---- */

static int compare_f64(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int compare_u32(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Insertion sort is faster for few elements. */
static void sort(double *x, size_t n) {
    if (n > 64) {
        qsort(x, n, sizeof *x, compare_f64);
        return;
    }
    for (size_t i = 1; i < n; i++) {
        double t = x[i];
        size_t j = i;
        for (; j > 0 && x[j - 1] > t; j--) x[j] = x[j - 1];
        x[j] = t;
    }
}

/* ---- rows ---- */

static void sample_rows(void *ctx, size_t begin, size_t end) {
    struct sampling *c = ctx;
    struct weights w;
    double threshold[DRAWS];
    for (size_t r = begin; r < end; r++) {
        uint32_t *ids = c->ids + r * c->n;
        w.x = c->x + r * dtype_row_bytes(c->type, c->d);
        if (!weigh(c, &w)) first_row(&c->bad, r);
        for (size_t first = 0; first < c->n; first += DRAWS) {
            size_t n = smaller(DRAWS, c->n - first);
            for (size_t i = 0; i < n; i++) threshold[i] = c->u[r * c->n + first + i] * w.total;
            sort(threshold, n);
            draw(c, &w, threshold, n, ids + first);
        }
        if (c->n > DRAWS) qsort(ids, c->n, sizeof *ids, compare_u32);
    }
}

size_t kernel_sample(uint32_t *ids, const double *u, struct kernel_array x, size_t rows, size_t d, size_t n,
                     float inv_temperature) {
    PROFILE(HEAD);
    struct sampling c = {simd(), ids, u, x.dtype, host_of(x), d, n, inv_temperature * LOG2_E, .bad = rows};
    for (c.shift = __builtin_ctz(WEIGHED); (d - 1) >> c.shift >= PIECES;) c.shift++;
    c.piece = (size_t)1 << c.shift;
    kernel_split(rows, piece_rows(d), sample_rows, &c);
    return atomic_load(&c.bad);
}
