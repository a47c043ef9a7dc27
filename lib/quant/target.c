/* Removes noise from the moments, and computes the target values of matrices. */
#include <math.h>
#include <string.h>

#include "lib/quant/moments.h"

#define ASKED 64 /* maximum number of rows used to estimate the share */

/* ---- shrinkage --------------------------------------------------------------------------------------------------- */

/*
 * With few positions, correlations between inputs are partly noise. The two halves of the data show how much: for
 * correlations a and b in the halves, r = sum a b / (sum (a^2 + b^2) / 2) is the reliability of one half, and 2 r / (1
 * + r) that of their sum, which has half the noise (Spearman-Brown formula). Off-diagonal elements are multiplied by
 * it: shrinkage towards the diagonal, which is what rounding to nearest uses (the idea of Ledoit and Wolf).
 */
#define SHARES 64 /* interleaved sets of rows, summed separately whatever the number of threads */

struct reliability_job {
    const float *first, *second;
    size_t n;
    double both[SHARES], each[SHARES];
};

static void reliability_share(void *ctx, size_t share, int thread) {
    struct reliability_job *k = ctx;
    size_t n = k->n;
    double both = 0, each = 0;
    (void)thread;
    for (size_t i = share; i < n; i += SHARES)
        for (size_t j = i + 1; j < n; j++) {
            double a = k->first[i * n + j], b = k->second[i * n + j];
            double da = (double)k->first[i * (n + 1)] * k->first[j * (n + 1)];
            double db = (double)k->second[i * (n + 1)] * k->second[j * (n + 1)];
            if (!(da > 0 && db > 0)) continue;
            both += a * b / sqrt(da * db);
            each += (a * a / da + b * b / db) / 2;
        }
    k->both[share] = both, k->each[share] = each;
}

static double reliability(const float *first, const float *second, size_t n) {
    struct reliability_job k = {.first = first, .second = second, .n = n};
    double both = 0, each = 0;
    parallel_for(SHARES, reliability_share, &k);
    for (size_t i = 0; i < SHARES; i++) both += k.both[i], each += k.each[i];
    return each > 0 && both > 0 ? both / each : 0;
}

struct shrinking {
    float *to;
    const float *a, *b;
    double keep;
    size_t n;
};

static void shrink_row(void *ctx, size_t i, int thread) {
    const struct shrinking *s = ctx;
    const float *a = s->a + i * s->n, *b = s->b ? s->b + i * s->n : NULL;
    float *to = s->to + i * s->n;
    (void)thread;
    for (size_t j = 0; j < s->n; j++) to[j] = (float)(s->keep * (b ? a[j] + b[j] : a[j]));
    to[i] = b ? a[i] + b[i] : a[i];
}

/* The sum of a and b (or NULL) [n][n], with off-diagonal elements multiplied by keep (1: the plain sum). */
static float *shrunk(const float *a, const float *b, double keep, size_t n, struct err *e) {
    float *to = mem_alloc(n * n * sizeof *to, e);
    if (to) parallel_for(n, shrink_row, &(struct shrinking){to, a, b, keep, n});
    return to;
}

/* ---- factors ----------------------------------------------------------------------------------------------------- */

static int factor_shrunk(struct obs_factor **out, const float *a, const float *b, double keep, size_t n,
                         const struct obs_options *o, struct err *e) {
    float *gram = shrunk(a, b, keep, n, e);
    int rc = gram ? obs_factor_new(out, gram, n, o, e) : e->code;
    mem_free(gram);
    return rc;
}

/* Factors the moments over positions with known x. */
static int factor_dense(struct relation *r, double damp, struct err *e) {
    const struct half_moments *h = r->m->half;
    size_t n = r->m->cols;
    struct obs_options o = {.damp = damp, .tries = MOMENTS_TRIES};
    double share = reliability(h[0].of_dense, h[1].of_dense, n);
    int rc = factor_shrunk(&r->half, h[0].of_dense, NULL, share, n, &o, e);
    if (rc) return rc;
    if (h[0].of_dense == h[0].gram)
        r->whole = r->factor;
    else
        rc = factor_shrunk(&r->whole, h[0].of_dense, h[1].of_dense, 2 * share / (1 + share), n, &o, e);
    return rc;
}

int relation_init(struct relation *r, const struct moments *m, double damp, bool act_order, struct err *e) {
    const struct half_moments *h = m->half;
    size_t n = m->cols;
    struct obs_options o = {.damp = damp, .tries = MOMENTS_TRIES, .act_order = act_order};
    double share = reliability(h[0].gram, h[1].gram, n);
    *r = (struct relation){.m = m, .gram = shrunk(h[0].gram, h[1].gram, 2 * share / (1 + share), n, e)};
    int rc = r->gram ? obs_factor_new(&r->factor, r->gram, n, &o, e) : e->code;
    if (rc || !h[0].shift) return rc;
    r->shift = shrunk(h[0].shift, h[1].shift, 1, n, e);
    return r->shift ? factor_dense(r, damp, e) : e->code;
}

void relation_release(struct relation *r) {
    if (r->whole != r->factor) obs_factor_free(r->whole);
    obs_factor_free(r->factor);
    obs_factor_free(r->half);
    mem_free(r->gram);
    mem_free(r->shift);
    *r = (struct relation){0};
}

/* ---- target values ----------------------------------------------------------------------------------------------- */

/* t = w shift H^-1, the least squares solution of t y = w (x - y). b [rows][cols] is scratch. */
static int solve(const struct relation *r, const struct obs_factor *f, const float *w, size_t rows, const float *shift,
                 float *b, float *t, struct err *e) {
    size_t n = r->m->cols;
    kernel_matmul_nn(rows, n, n, kernel_f32(w), kernel_f32(shift), 0, kernel_f32(b));
    return obs_solve(f, b, t, rows, e);
}

/*
 * How well the solution from the first half fits the second: the best multiple of it there, within [0, 1]. It is a
 * single number for all rows, so ASKED rows, spread evenly, estimate it well enough. (With half of the H of all
 * positions instead of the first half's own, a factor less, the divergence of SmolLM2 is 4% larger.)
 */
static int share_that_holds(const struct relation *r, const float *w, size_t rows, float *b, float *t, double *share,
                            struct err *e) {
    size_t n = r->m->cols, asked = rows < ASKED ? rows : ASKED;
    const struct half_moments *h = r->m->half;
    float *some = mem_alloc(asked * n * sizeof *some, e);
    if (!some) return e->code;
    for (size_t i = 0; i < asked; i++) memcpy(some + i * n, w + i * rows / asked * n, n * sizeof *some);
    int rc = solve(r, r->half, some, asked, h[0].shift, b, t, e);
    if (!rc) kernel_matmul_nn(asked, n, n, kernel_f32(some), kernel_f32(h[1].shift), 0, kernel_f32(b));
    mem_free(some);
    if (rc) return rc;
    double right = kernel_dot(kernel_f32(t), kernel_f32(b), asked * n);
    kernel_matmul_nn(asked, n, n, kernel_f32(t), kernel_f32(h[1].of_dense), 0, kernel_f32(b));
    double square = kernel_dot(kernel_f32(t), kernel_f32(b), asked * n);
    *share = !(right > 0) || !(square > 0) ? 0 : right < square ? right / square : 1;
    return 0;
}

int relation_target(const struct relation *r, const float *w, size_t rows, float *t, struct err *e) {
    size_t n = r->m->cols;
    float *b = mem_alloc(rows * n * sizeof *b, e);
    double share = 0;
    int rc = b ? share_that_holds(r, w, rows, b, t, &share, e) : e->code;
    if (!rc) rc = solve(r, r->whole, w, rows, r->shift, b, t, e);
    for (size_t i = 0; !rc && i < rows * n; i++) t[i] = w[i] + (float)share * t[i];
    mem_free(b);
    return rc;
}
