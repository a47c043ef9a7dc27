/* Factors the moments without their noise, and computes the target values of matrices. */
#include <math.h>
#include <string.h>

#include "lib/quant/moments.h"

#define ASKED 64 /* maximum number of rows used to estimate the share */

/* ---- factors ----------------------------------------------------------------------------------------------------- */

static int factor_shrunk(struct obs_factor **out, const float *a, const float *b, double keep, size_t n,
                         const struct obs_options *o, struct err *e) {
    float *gram = shrink_sum(a, b, keep, n, e);
    int rc = gram ? obs_factor_new(out, gram, n, o, e) : e->code;
    mem_free(gram);
    return rc;
}

/* Factors the moments over positions with known x. */
static int factor_dense(struct relation *r, double damp, struct err *e) {
    const struct half_moments *h = r->m->half;
    size_t n = r->m->cols;
    struct obs_options o = {.damp = damp, .tries = MOMENTS_TRIES};
    double share = shrink_reliability(h[0].of_dense, h[1].of_dense, n);
    int rc = factor_shrunk(&r->half, h[0].of_dense, NULL, share, n, &o, e);
    if (rc) return rc;
    if (h[0].of_dense == h[0].gram)
        r->whole = r->factor;
    else
        rc = factor_shrunk(&r->whole, h[0].of_dense, h[1].of_dense, shrink_of_sum(share), n, &o, e);
    return rc;
}

int relation_init(struct relation *r, const struct moments *m, const struct quant_feedback *how, struct err *e) {
    const struct half_moments *h = m->half;
    size_t n = m->cols;
    struct obs_options o = {.damp = how->damp, .tries = MOMENTS_TRIES, .act_order = how->act_order};
    double share = shrink_reliability(h[0].gram, h[1].gram, n);
    *r = (struct relation){.m = m, .gram = shrink_sum(h[0].gram, h[1].gram, shrink_of_sum(share), n, e)};
    int rc = r->gram ? obs_factor_new(&r->factor, r->gram, n, &o, e) : e->code;
    if (rc || !h[0].shift) return rc;
    r->shift = shrink_sum(h[0].shift, h[1].shift, 1, n, e);
    return r->shift ? factor_dense(r, how->damp, e) : e->code;
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
